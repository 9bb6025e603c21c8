#define SP_LOG "engine"
#include "runtime/engine/engine.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/dispatch.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/engine_kv.h"
#include "runtime/engine/engine_metrics.h"
#include "runtime/engine/engine_offer.h"
#include "runtime/engine/engine_request.h"
#include "runtime/engine/group_figures.h"
#include "runtime/engine/stepper.h"

#include <stdio.h>
#include <string.h>

#define ROWS_DEFAULT 256
#define BYE_PATIENCE_NS (200 * SP_NS_PER_MS)
/* After a link closed: how long the others have to tell more. They hear of it at once, by theirs. */
#define LAST_WORDS_NS (250 * SP_NS_PER_MS)

/* What the engine knows of one rank. */
typedef struct rank_state {
    sp_wire_ready offer; /* when ready */
    uint64_t done_bytes, all_bytes;
    int32_t group;
    bool ready, faulted, closed;
} rank_state;

/* A group of ranks: the stepper is made when all ranks are ready. */
typedef struct group {
    sp_engine_group conf;
    sp_stepper *stepper;
    sp_gauge role; /* sp_pool_role; changed under the engine's lock */
    sp_group_figures figures;
} group;

/* Why a rank was lost, from what says least to what says most: a link that takes no frames is still
 * to be read; a peer's fault is about somebody else, who may have told more or may just have gone. */
typedef enum reason_rank {
    REASON_SEND,
    REASON_PEER,
    REASON_CLOSED,
    REASON_TOLD,
} reason_rank;

/* The stepper is made when the rank has said how many blocks it has, and is the engine thread's
 * alone. Others reach the desk (which locks), the figures (atomics), and what `lock` covers. */
struct sp_engine {
    sp_engine_config config;
    int32_t *eos;
    sp_fan *fan;
    rank_state *ranks; /* [n_ranks], by link */
    int32_t n_ranks, n_ready;
    sp_desk *desk;
    sp_engine_metrics metrics;
    sp_gauge loaded_bytes, all_bytes;
    sp_thread thread;

    pthread_mutex_t lock;
    sp_engine_info info;
    char why[160];

    group *groups;
    int32_t n_groups;
    sp_engine_kv *kv;      /* NULL: one group, which shares nothing */
    bool steps;            /* the groups have their steppers */
    sp_engine_state state; /* the thread's view; the desk has the one that others see */
    int lost;              /* link of the last error that had one; -1: none */
    bool lost_by_peer;     /* it was a fault of reason peer */
    bool over;
    int64_t ready_by_ns;
    char kv_dtype[17];
};

/* ---- creation ---- */

static void wake_engine(void *ctx) {
    sp_fan_wake(((sp_engine *)ctx)->fan);
}

static void pause_seq(void *ctx, sp_seq *q, bool paused) {
    sp_engine *e = ctx;
    if (e->steps) sp_stepper_pause(e->groups[q->req->group].stepper, q, paused);
}

static sp_pool_role role_of(const group *g) {
    return (sp_pool_role)sp_gauge_get(&g->role);
}

static sp_status take_groups(sp_engine *e, sp_err *err) {
    const sp_engine_config *c = &e->config;
    sp_engine_group one = {.n_links = e->n_ranks,
                           .n_stages = c->n_stages,
                           .sampler = c->sampler,
                           .n_blocks = c->n_blocks};
    e->n_groups = c->groups ? c->n_groups : 1;
    e->groups = sp_try_alloc_array((size_t)e->n_groups, sizeof *e->groups);
    if (!e->groups) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d groups", e->n_groups);
    for (int32_t i = 0; i < e->n_groups; i++) {
        group *g = &e->groups[i];
        g->conf = c->groups ? c->groups[i] : one;
        if (g->conf.n_stages == 0) g->conf.n_stages = 1;
        sp_gauge_set(&g->role, g->conf.role);
        for (int k = 0; k < g->conf.n_links; k++) e->ranks[g->conf.first_link + k].group = i;
    }
    e->config.groups = NULL;
    return SP_OK;
}

static sp_status take_memory(sp_engine *e, sp_err *err) {
    const sp_engine_config *c = &e->config;
    e->eos = sp_try_alloc_array((size_t)c->n_eos_ids, sizeof *e->eos);
    if (!e->eos) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d eos ids", c->n_eos_ids);
    if (c->n_eos_ids) memcpy(e->eos, c->eos_ids, (size_t)c->n_eos_ids * sizeof *e->eos);
    e->config.eos_ids = e->eos;
    e->ranks = sp_try_alloc_array((size_t)e->n_ranks, sizeof *e->ranks);
    if (!e->ranks) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d ranks", e->n_ranks);
    SP_TRY(take_groups(e, err));
    /* Beyond the queue: those that run, and as many that ended and whose events nobody took yet. */
    int64_t live = (int64_t)c->queue_max + 2 * (int64_t)c->max_num_seqs * e->n_groups + 64;
    sp_desk_config desk = {.queue_max = c->queue_max,
                           .live_max = live < INT32_MAX ? (int32_t)live : INT32_MAX,
                           .wake = wake_engine,
                           .pause = pause_seq,
                           .ctx = e};
    return sp_desk_create(&e->desk, &desk, err);
}

sp_status sp_engine_create(sp_engine **out, const sp_engine_config *config, sp_fan *fan,
                           sp_err *err) {
    SP_ASSERT(out && config && fan);
    SP_TRY(sp_config_fits(config, sp_fan_count(fan), err));
    sp_engine *e = sp_alloc(sizeof *e);
    e->config = *config;
    if (e->config.n_stages == 0) e->config.n_stages = 1;
    e->fan = fan;
    e->n_ranks = sp_fan_count(fan);
    e->lost = -1;
    sp_status st = take_memory(e, err);
    if (st != SP_OK) {
        sp_free(e->groups);
        sp_free(e->ranks);
        sp_free(e->eos);
        sp_free(e);
        return st;
    }
    pthread_mutex_init(&e->lock, NULL);
    e->info = (sp_engine_info){.max_model_len = config->max_model_len,
                               .n_vocab = config->n_vocab,
                               .block_tokens = config->block_tokens,
                               .max_num_seqs = config->max_num_seqs,
                               .max_batched_tokens = config->max_batched_tokens,
                               .kv_dtype = ""};
    sp_engine_metrics_init(&e->metrics, config->max_model_len);
    *out = e;
    return SP_OK;
}

void sp_engine_destroy(sp_engine *e) {
    if (!e) return;
    sp_engine_stop(e);
    sp_desk_destroy(e->desk);
    sp_engine_kv_destroy(e->kv);
    for (int32_t i = 0; i < e->n_groups; i++) sp_stepper_destroy(e->groups[i].stepper);
    pthread_mutex_destroy(&e->lock);
    sp_free(e->groups);
    sp_free(e->ranks);
    sp_free(e->eos);
    sp_free(e);
}

/* ---- any thread ---- */

sp_status sp_engine_submit(sp_engine *e, const sp_engine_request *req, uint64_t *id, sp_err *err) {
    SP_ASSERT(e && req && req->params && id);
    sp_engine_info info = sp_engine_get_info(e);
    sp_request_world w = {.max_model_len = info.max_model_len,
                          .n_vocab = info.n_vocab,
                          .kv_shared = e->config.kv_shared && e->config.enable_prefix_cache};
    SP_TRY(sp_request_fits(req, &w, err));
    const sp_gen_params *g = req->params;
    int32_t room = info.max_model_len - req->n_prompt;
    sp_request *r;
    SP_TRY(sp_request_create(&r, req, g->max_tokens < room ? g->max_tokens : room,
                             info.block_tokens, err));
    r->arrival_ns = sp_now_ns();
    sp_status st = sp_desk_submit(e->desk, r, id, err);
    if (st != SP_OK) sp_request_destroy(r);
    return st;
}

void sp_engine_cancel(sp_engine *e, uint64_t id, int32_t choice, sp_finish as) {
    sp_desk_cancel(e->desk, id, choice, as);
}

int sp_engine_event_fd(const sp_engine *e) {
    return sp_desk_fd(e->desk);
}
int sp_engine_events(sp_engine *e, sp_event *out, int max) {
    return sp_desk_take(e->desk, out, max);
}
sp_engine_state sp_engine_get_state(const sp_engine *e) {
    return sp_desk_state(e->desk);
}
void sp_engine_drain(sp_engine *e) {
    sp_desk_ask(e->desk, true, false);
}
const sp_engine_metrics *sp_engine_get_metrics(const sp_engine *e) {
    return &e->metrics;
}

sp_engine_info sp_engine_get_info(const sp_engine *e) {
    pthread_mutex_t *lock = &((sp_engine *)e)->lock;
    pthread_mutex_lock(lock);
    sp_engine_info info = e->info;
    pthread_mutex_unlock(lock);
    return info;
}

const char *sp_engine_why(sp_engine *e, char *out, size_t n) {
    pthread_mutex_lock(&e->lock);
    snprintf(out, n, "%s", e->why);
    pthread_mutex_unlock(&e->lock);
    return out;
}

void sp_engine_progress(const sp_engine *e, uint64_t *done_bytes, uint64_t *all_bytes) {
    *done_bytes = (uint64_t)sp_gauge_get(&e->loaded_bytes);
    *all_bytes = (uint64_t)sp_gauge_get(&e->all_bytes);
}

const char *sp_pool_role_name(sp_pool_role role) {
    static const char *const names[] = {"mixed", "prefill", "decode"};
    return (size_t)role < SP_LEN(names) ? names[role] : "unknown";
}

sp_status sp_engine_set_role(sp_engine *e, int at, sp_pool_role role, sp_err *err) {
    if (at < 0 || at >= e->n_groups || (unsigned)role > SP_POOL_DECODE)
        return SP_FAIL(err, SP_E_INVALID, "group %d of role %d, want group 0..%d of role 0..%d", at,
                       (int)role, e->n_groups - 1, SP_POOL_DECODE);
    sp_pool_role roles[SP_ENGINE_GROUPS_MAX];
    pthread_mutex_lock(&e->lock);
    for (int32_t i = 0; i < e->n_groups; i++) roles[i] = role_of(&e->groups[i]);
    roles[at] = role;
    bool good = sp_dispatch_can_decode(roles, e->n_groups);
    if (good) sp_gauge_set(&e->groups[at].role, role);
    pthread_mutex_unlock(&e->lock);
    if (good) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "group %d is the last one that decodes", at);
}

int sp_engine_group_count(const sp_engine *e) {
    return e->n_groups;
}

bool sp_engine_group_info(const sp_engine *e, int at, sp_engine_group_status *out) {
    if (at < 0 || at >= e->n_groups) return false;
    const group *g = &e->groups[at];
    *out = (sp_engine_group_status){.role = role_of(g),
                                    .first_link = g->conf.first_link,
                                    .n_links = g->conf.n_links,
                                    .n_stages = g->conf.n_stages};
    sp_group_figures_get(&g->figures, sp_now_ns(), out);
    memcpy(out->pool, g->conf.pool, sizeof out->pool);
    return true;
}

/* ---- the engine thread ---- */

static void set_state(sp_engine *e, sp_engine_state state) {
    e->state = state;
    sp_desk_set_state(e->desk, state);
}

static void place_import(sp_engine *e, sp_request *r, int32_t decode, int32_t cached) {
    sp_err err = {0};
    if (sp_moves_import(sp_engine_kv_moves(e->kv), r, decode, cached, &err) == SP_OK) return;
    sp_counter_add(&e->metrics.kv_failed_notices, 1); /* the lease runs out by itself */
    sp_counter_add(&e->metrics.kv_failures[SP_KV_NO_ROOM], 1);
    r->group = decode;
    if (r->import->must)
        sp_stepper_refuse(e->groups[decode].stepper, r, SP_E_UNAVAILABLE, err.text);
    else
        sp_stepper_add(e->groups[decode].stepper, r);
}

/* Which groups a request goes to. What is not known to the index is not found, and not split. */
static void place(sp_engine *e, sp_request *r) {
    int32_t B = e->config.block_tokens;
    int32_t most = e->config.enable_prefix_cache ? sp_moves_blocks(r, B) : 0;
    sp_dispatch_group g[SP_ENGINE_GROUPS_MAX];
    for (int32_t i = 0; i < e->n_groups; i++)
        g[i] = (sp_dispatch_group){
            .role = role_of(&e->groups[i]),
            .load = sp_stepper_get_figures(e->groups[i].stepper).load,
            .cached = B * sp_sched_cached(sp_stepper_sched(e->groups[i].stepper), r, most)};
    sp_dispatch_choice c =
        sp_dispatch(g, e->n_groups, most * B, e->config.prefill_threshold_tokens);
    /* Roles change one by one: for a moment a reader may see none that decodes. */
    if (c.decode < 0) c.decode = 0;
    sp_err err = {0};
    if (r->import) {
        place_import(e, r, c.decode, g[c.decode].cached / B);
        return;
    }
    /* What is lent lies where it was decoded: one group does all of it. */
    if (c.prefill >= 0 && !r->keep_kv &&
        sp_moves_begin(sp_engine_kv_moves(e->kv), r, c.prefill, c.decode, g[c.decode].cached / B,
                       &err) == SP_OK)
        return;
    sp_counter_add(&e->metrics.prefilled_here, 1);
    r->group = c.decode;
    sp_stepper_add(e->groups[c.decode].stepper, r);
}

static void take_mail(sp_engine *e, sp_desk_mail mail) {
    for (sp_request *r = mail.fresh, *next; r; r = next) {
        next = r->mail_next;
        if (e->kv)
            place(e, r);
        else
            sp_stepper_add(e->groups[0].stepper, r);
    }
    for (sp_request *r = mail.cancelled, *next; r; r = next) {
        next = r->cancel_next;
        if (r->parting)
            sp_lends_cancel(sp_engine_kv_lends(e->kv), r);
        else
            sp_stepper_cancel(e->groups[r->group].stepper, r);
    }
}

static void account(sp_engine *e) {
    const int64_t now_ns = sp_now_ns();
    for (int32_t i = 0; i < e->n_groups; i++) {
        group *g = &e->groups[i];
        sp_stepper_account(g->stepper);
        sp_stepper_figures f = sp_stepper_get_figures(g->stepper);
        sp_group_figures_set(&g->figures, &f, now_ns);
    }
}

static bool is_idle(const sp_engine *e) {
    for (int32_t i = 0; i < e->n_groups; i++)
        if (!sp_stepper_is_idle(e->groups[i].stepper)) return false;
    /* Leases are not waited for: who reads meanwhile computes what did not come. */
    return !e->kv || sp_lends_parting(sp_engine_kv_lends(e->kv)) == 0;
}

/* The end of everything that lives. Refusing comes first, so that nothing is handed in unseen. */
static void end_all(sp_engine *e, sp_engine_state state, sp_status error, const char *text) {
    set_state(e, state);
    if (e->steps) {
        take_mail(e, sp_desk_collect(e->desk));
        for (int32_t i = 0; i < e->n_groups; i++)
            sp_stepper_end_all(
                e->groups[i].stepper,
                (sp_ending){.finish = SP_FINISH_ERROR, .error = error, .text = text});
        if (e->kv) sp_lends_part_all(sp_engine_kv_lends(e->kv));
        account(e);
        sp_desk_publish(e->desk);
    }
    e->over = true;
}

static void say_bye(sp_engine *e) {
    sp_err err = {0};
    if (sp_fan_send(e->fan, SP_FAN_ALL, SP_FRAME_BYE, NULL, 0, sp_now_ns() + BYE_PATIENCE_NS,
                    &err) != SP_OK)
        sp_debug("no goodbye to every rank: %s", err.text);
}

/* ---- what the ranks offer ---- */

static int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* The least of its ranks' blocks is what a step may name. Returns how many tokens they hold. */
static int64_t settle_group(const sp_engine *e, group *g) {
    const rank_state *r = &e->ranks[g->conf.first_link];
    int32_t n_blocks = r->offer.n_blocks;
    for (int32_t i = 1; i < g->conf.n_links; i++) n_blocks = min32(n_blocks, r[i].offer.n_blocks);
    if (g->conf.n_blocks == 0) g->conf.n_blocks = n_blocks;
    return (int64_t)g->conf.n_blocks * e->config.block_tokens;
}

/* All have offered the same, but for blocks. Every group must hold the longest sequence. */
static void settle_config(sp_engine *e) {
    sp_engine_config *c = &e->config;
    const sp_wire_ready *r = &e->ranks[0].offer;
    if (c->max_step_rows == 0) {
        c->max_step_rows = c->max_num_seqs > ROWS_DEFAULT ? c->max_num_seqs : ROWS_DEFAULT;
        c->max_step_rows = min32(c->max_step_rows, r->max_step_rows);
    }
    int64_t held = INT64_MAX, n_blocks = 0;
    for (int32_t i = 0; i < e->n_groups; i++) {
        int64_t tokens = settle_group(e, &e->groups[i]);
        if (tokens < held) held = tokens;
        n_blocks += e->groups[i].conf.n_blocks;
    }
    c->n_blocks = n_blocks < INT32_MAX ? (int32_t)n_blocks : INT32_MAX;
    int32_t len = min32(c->max_model_len, r->max_model_len);
    if (len > held) len = (int32_t)held;
    if (len < c->max_model_len)
        sp_warn("max_model_len is %d instead of %d: %lld tokens of blocks, the ranks' most is %d",
                len, c->max_model_len, (long long)held, r->max_model_len);
    c->max_model_len = len;
}

static sp_status receive_one(void *ctx, sp_err *err);

static void take_computed(void *ctx, sp_request *shadow, int32_t end, const sp_block *blocks) {
    sp_moves_computed(sp_engine_kv_moves(((sp_engine *)ctx)->kv), shadow, end, blocks);
}

static void take_ended(void *ctx, sp_request *r) {
    sp_moves_ended(sp_engine_kv_moves(((sp_engine *)ctx)->kv), r);
}

static bool take_lend(void *ctx, sp_seq *q, sp_event *last) {
    return sp_lends_begin(sp_engine_kv_lends(((sp_engine *)ctx)->kv), q, last);
}

static sp_status make_stepper(sp_engine *e, group *g, sp_err *err) {
    const sp_engine_config *c = &e->config;
    const sp_wire_ready *r = &e->ranks[0].offer;
    uint8_t identity[sizeof c->fingerprint + sizeof r->numerics];
    memcpy(identity, c->fingerprint, sizeof c->fingerprint);
    memcpy(identity + sizeof c->fingerprint, r->numerics, sizeof r->numerics);
    sp_stepper_config sc = {.sched = {.max_num_seqs = c->max_num_seqs,
                                      .max_batched_tokens = c->max_batched_tokens,
                                      .max_step_rows = c->max_step_rows,
                                      .block_tokens = c->block_tokens,
                                      .n_blocks = g->conf.n_blocks,
                                      .max_model_len = c->max_model_len,
                                      .steps_in_flight = g->conf.n_stages + 1,
                                      .n_stages = g->conf.n_stages,
                                      .enable_prefix_cache = c->enable_prefix_cache,
                                      .identity = identity,
                                      .identity_bytes = sizeof identity},
                            .eos_ids = c->eos_ids,
                            .n_eos_ids = c->n_eos_ids,
                            .n_vocab = c->n_vocab,
                            .send_timeout_ns = c->send_timeout_ns,
                            .step_timeout_ns = c->step_timeout_ns,
                            .first_link = g->conf.first_link,
                            .n_links = g->conf.n_links,
                            .fan = e->fan,
                            .desk = e->desk,
                            .metrics = &e->metrics,
                            .receive = receive_one,
                            .computed = take_computed,
                            .ended = take_ended,
                            .lend = take_lend,
                            .ctx = e};
    memcpy(sc.sched.cache_key, c->cache_key, sizeof c->cache_key);
    return sp_stepper_create(&g->stepper, &sc, err);
}

static sp_status make_kv(sp_engine *e, sp_err *err) {
    const sp_engine_config *c = &e->config;
    if (e->n_groups == 1 && !c->kv_shared) return SP_OK;
    sp_seals_config groups[SP_ENGINE_GROUPS_MAX];
    for (int32_t i = 0; i < e->n_groups; i++) {
        const group *g = &e->groups[i];
        groups[i] = (sp_seals_config){.stepper = g->stepper,
                                      .first_link = g->conf.first_link,
                                      .n_links = g->conf.n_links,
                                      .n_blocks = g->conf.n_blocks};
    }
    sp_engine_kv_config kc = {.groups = groups,
                              .n_groups = e->n_groups,
                              .block_tokens = c->block_tokens,
                              .timeout_ns = c->kv_timeout_ns,
                              .lease_ns = c->kv_lease_ns,
                              .block_bytes = c->kv_block_bytes,
                              .desk = e->desk,
                              .metrics = &e->metrics};
    return sp_engine_kv_create(&e->kv, &kc, err);
}

static sp_status all_ready(sp_engine *e, sp_err *err) {
    settle_config(e);
    for (int32_t i = 0; i < e->n_groups; i++) SP_TRY(make_stepper(e, &e->groups[i], err));
    SP_TRY(make_kv(e, err));
    e->steps = true;
    memcpy(e->kv_dtype, e->ranks[0].offer.kv_dtype, sizeof e->ranks[0].offer.kv_dtype);
    pthread_mutex_lock(&e->lock);
    e->info.n_blocks = e->config.n_blocks;
    e->info.max_model_len = e->config.max_model_len;
    e->info.kv_dtype = e->kv_dtype;
    pthread_mutex_unlock(&e->lock);
    account(e);
    sp_debug("ready: %d ranks, %d blocks of %d tokens (%s), %d sequences, %d tokens a step, "
             "%d a sequence",
             e->n_ranks, e->config.n_blocks, e->config.block_tokens, e->kv_dtype,
             e->config.max_num_seqs, e->config.max_batched_tokens, e->config.max_model_len);
    set_state(e, SP_ENGINE_READY);
    return SP_OK;
}

static sp_status take_ready(sp_engine *e, const sp_frame *f, int from, sp_err *err) {
    rank_state *r = &e->ranks[from];
    sp_wire_ready offer;
    SP_TRY(sp_wire_ready_decode(f->payload, f->length, &offer, err));
    SP_TRY(sp_offer_fits(&e->config, e->groups[r->group].conf.n_blocks, &offer, from, err));
    for (int i = 0; i < e->n_ranks; i++)
        if (e->ranks[i].ready) {
            SP_TRY(sp_offer_equals(&offer, from, &e->ranks[i].offer, i, err));
            break;
        }
    r->offer = offer;
    r->ready = true;
    return ++e->n_ready == e->n_ranks ? all_ready(e, err) : SP_OK;
}

static sp_status take_progress(sp_engine *e, const sp_frame *f, int from, sp_err *err) {
    sp_wire_progress w;
    SP_TRY(sp_wire_progress_decode(f->payload, f->length, &w, err));
    e->ranks[from].done_bytes = w.done_bytes;
    e->ranks[from].all_bytes = w.all_bytes;
    uint64_t done = 0, all = 0;
    for (int32_t i = 0; i < e->n_ranks; i++) {
        done += e->ranks[i].done_bytes;
        all += e->ranks[i].all_bytes;
    }
    sp_gauge_set(&e->loaded_bytes, (int64_t)done);
    sp_gauge_set(&e->all_bytes, (int64_t)all);
    return SP_OK;
}

/* ---- frames from the ranks ---- */

static sp_status take_fault(sp_engine *e, const sp_frame *f, int from, sp_err *err) {
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    SP_TRY(sp_wire_fault_decode(f->payload, f->length, &reason, text, err));
    e->ranks[from].faulted = true;
    e->lost_by_peer = reason == SP_FAULT_PEER;
    return SP_FAIL(err, SP_E_PEER_LOST, "%s fault: %.180s", sp_fault_name(reason), text);
}

static sp_status take_answer(sp_engine *e, const sp_frame *f, int from, sp_err *err) {
    const group *g = &e->groups[e->ranks[from].group];
    if (from != g->conf.sampler)
        return SP_FAIL(err, SP_E_PROTOCOL, "it answers a step, rank %d is who does",
                       g->conf.sampler);
    return f->type == SP_FRAME_ROW ? sp_stepper_row(g->stepper, f->payload, f->length, err)
                                   : sp_stepper_tokens(g->stepper, f->payload, f->length, err);
}

static sp_status take_times(sp_engine *e, const sp_frame *f, sp_err *err) {
    sp_wire_times w;
    SP_TRY(sp_wire_times_decode(f->payload, f->length, &w, err));
    sp_counter_add(&e->metrics.device_busy_ns, w.busy_ns);
    sp_counter_add(&e->metrics.device_idle_ns, w.idle_ns);
    return SP_OK;
}

static sp_status take_frame(sp_engine *e, const sp_frame *f, int from, sp_err *err) {
    bool ready = e->ranks[from].ready;
    switch (f->type) {
    case SP_FRAME_PROGRESS:
        if (!ready) return take_progress(e, f, from, err);
        break;
    case SP_FRAME_READY:
        if (!ready) return take_ready(e, f, from, err);
        break;
    case SP_FRAME_TOKENS:
    case SP_FRAME_ROW:
        if (e->steps) return take_answer(e, f, from, err);
        break;
    case SP_FRAME_TIMES:
        if (ready) return take_times(e, f, err);
        break;
    case SP_FRAME_KV_SEALED:
    case SP_FRAME_KV_PULLED:
    case SP_FRAME_KV_RENEW:
    case SP_FRAME_KV_LEASE:
        if (e->kv) return sp_engine_kv_take(e->kv, e->ranks[from].group, from, f, err);
        break;
    case SP_FRAME_FAULT:
        return take_fault(e, f, from, err);
    case SP_FRAME_BYE:
        return SP_FAIL(err, SP_E_PEER_LOST, "it left");
    default:
        break;
    }
    return SP_FAIL(err, SP_E_PROTOCOL, "frame of type %d %s", (int)f->type,
                   e->steps ? "from a rank" : "before ready");
}

/* Which group that is, when there are several: " (group 1, pool 'decode')". */
static const char *where_is(const sp_engine *e, int32_t at, char *out, size_t n) {
    const group *g = &e->groups[at];
    out[0] = 0;
    if (e->n_groups > 1 && g->conf.pool[0])
        snprintf(out, n, " (group %d, pool '%.32s')", at, g->conf.pool);
    else if (e->n_groups > 1)
        snprintf(out, n, " (group %d)", at);
    return out;
}

/* What is said of a rank may begin with its number already: "rank 1: it left". */
static void say_where(const sp_engine *e, int from, sp_status st, sp_err *err) {
    sp_err told = *err;
    const char *what = told.text[0] ? told.text : sp_status_text(st), *gap = ": ";
    if (strncmp(what, "rank ", 5) == 0) {
        what += 5 + strspn(what + 5, "0123456789");
        gap = "";
    }
    char where[64];
    snprintf(err->text, sizeof err->text, "rank %d%s%s%.160s", from,
             where_is(e, e->ranks[from].group, where, sizeof where), gap, what);
}

/* Receives and takes one frame; an error is told with the rank it is about. */
static sp_status receive(sp_engine *e, int64_t until_ns, int64_t *cpu_ns, sp_err *err) {
    sp_frame f;
    int from = -1;
    sp_status st = sp_fan_recv(e->fan, &f, &from, until_ns, err);
    if (cpu_ns) *cpu_ns = sp_cpu_thread_ns(); /* a spin in there is waiting, not work */
    if (st == SP_AGAIN) return st;
    bool known = from >= 0 && from < e->n_ranks;
    if (st == SP_OK && !known)
        return SP_FAIL(err, SP_E_INTERNAL, "a frame of link %d, there are %d", from, e->n_ranks);
    if (st == SP_OK)
        st = take_frame(e, &f, from, err);
    else if (known)
        e->ranks[from].closed = true;
    if (st == SP_OK) return SP_OK;
    e->lost = from;
    if (known && err) say_where(e, from, st, err);
    if (err && err->code == SP_OK) err->code = st;
    return st;
}

static sp_status receive_one(void *ctx, sp_err *err) {
    return receive(ctx, 0, NULL, err);
}

/* ---- one turn ---- */

static reason_rank rank_reason(const sp_engine *e, sp_status st) {
    if (st == SP_E_CLOSED) return e->lost < 0 ? REASON_SEND : REASON_CLOSED;
    return st == SP_E_PEER_LOST && e->lost_by_peer ? REASON_PEER : REASON_TOLD;
}

static bool all_gone(const sp_engine *e) {
    for (int32_t i = 0; i < e->n_ranks; i++)
        if (!e->ranks[i].closed) return false;
    return true;
}

/* A send may find a link closed before the rank's last words were read, and the first link to close
 * may not be that of the rank that knows why. What comes meanwhile is taken as ever. */
static void hear_last_words(sp_engine *e, sp_err *err) {
    int64_t until = sp_now_ns() + LAST_WORDS_NS;
    reason_rank have = rank_reason(e, err->code);
    while (have < REASON_TOLD && !all_gone(e)) {
        sp_err more = {0};
        if (sp_now_ns() >= until) return;
        sp_status st = receive(e, until, NULL, &more);
        if (st != SP_E_CLOSED && st != SP_E_PEER_LOST) continue;
        /* Who told a fault and then closes says nothing new. */
        bool known = st == SP_E_CLOSED && e->lost >= 0 && e->ranks[e->lost].faulted;
        reason_rank now = rank_reason(e, st);
        if (known || now <= have) continue;
        *err = more;
        have = now;
    }
}

static void fail(sp_engine *e, sp_err *err) {
    if (err->code == SP_E_CLOSED || err->code == SP_E_PEER_LOST) hear_last_words(e, err);
    char text[sizeof e->why];
    snprintf(text, sizeof text, "rank lost: %.140s",
             err->text[0] ? err->text : sp_status_text(err->code));
    pthread_mutex_lock(&e->lock);
    memcpy(e->why, text, sizeof text);
    pthread_mutex_unlock(&e->lock);
    end_all(e, SP_ENGINE_FAILED, SP_E_PEER_LOST, text);
}

static sp_status not_ready(const sp_engine *e, sp_err *err) {
    int32_t first = 0;
    while (first < e->n_ranks - 1 && e->ranks[first].ready) first++;
    char where[64];
    return SP_FAIL(err, SP_E_PEER_LOST, "rank %d%s was not ready in time, %d of %d are", first,
                   where_is(e, e->ranks[first].group, where, sizeof where), e->n_ready, e->n_ranks);
}

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* A turn of every group. Moves go first: they free blocks that the next steps take. */
static sp_status step_groups(sp_engine *e, int64_t now, int64_t *wait_until_ns, sp_err *err) {
    int64_t until = SP_NEVER, overdue = SP_NEVER;
    bool received = false;
    for (int32_t i = 0; i < e->n_groups; i++)
        until = sooner(until, sp_stepper_expire(e->groups[i].stepper, now));
    if (e->kv) {
        int64_t next;
        SP_TRY(sp_engine_kv_turn(e->kv, now, &next, err));
        until = sooner(until, next);
    }
    for (int32_t i = 0; i < e->n_groups; i++) {
        SP_TRY(sp_stepper_advance(e->groups[i].stepper, err));
        received |= sp_stepper_received(e->groups[i].stepper);
    }
    if (e->kv && sp_engine_kv_relieve(e->kv)) received = true;
    account(e); /* first: who has seen the events finds the figures right */
    sp_desk_publish(e->desk);
    for (int32_t i = 0; i < e->n_groups; i++) {
        int64_t at = sp_stepper_overdue_ns(e->groups[i].stepper);
        char where[64];
        if (now >= at)
            return SP_FAIL(err, SP_E_PEER_LOST, "a step%s is overdue",
                           where_is(e, i, where, sizeof where));
        overdue = sooner(overdue, at);
    }
    *wait_until_ns = received ? 0 : sooner(until, overdue);
    return SP_OK;
}

/* Everything that can be done without waiting; then until when to wait. */
static sp_status work(sp_engine *e, int64_t *wait_until_ns, sp_err *err) {
    int64_t now = sp_now_ns();
    *wait_until_ns = SP_NEVER;
    sp_desk_mail mail = sp_desk_collect(e->desk);
    if (e->steps) take_mail(e, mail);
    if (mail.stop) {
        say_bye(e);
        end_all(e, SP_ENGINE_DRAINED, SP_E_UNAVAILABLE, "the engine was stopped");
        return SP_OK;
    }
    if (!e->steps) {
        if (now >= e->ready_by_ns) return not_ready(e, err);
        *wait_until_ns = e->ready_by_ns;
    } else {
        SP_TRY(step_groups(e, now, wait_until_ns, err));
    }
    if (mail.drain && (!e->steps || is_idle(e))) {
        say_bye(e);
        end_all(e, SP_ENGINE_DRAINED, SP_E_UNAVAILABLE, "the engine has drained");
    } else if (mail.drain && e->state == SP_ENGINE_READY) {
        set_state(e, SP_ENGINE_DRAINING);
    }
    return SP_OK;
}

static void *run(void *arg) {
    sp_engine *e = arg;
    int64_t cpu = sp_cpu_thread_ns();
    while (!e->over) {
        sp_err err = {0};
        int64_t until;
        sp_status st = work(e, &until, &err);
        int64_t now = sp_cpu_thread_ns();
        sp_counter_add(&e->metrics.engine_cpu_ns, (uint64_t)(now - cpu));
        if (st == SP_OK && !e->over) st = receive(e, until, &cpu, &err);
        if (st != SP_OK && st != SP_AGAIN) {
            if (err.code == SP_OK) err.code = st;
            fail(e, &err);
        }
    }
    return NULL;
}

sp_status sp_engine_start(sp_engine *e, sp_err *err) {
    SP_ASSERT(!e->thread.started && !e->over);
    e->ready_by_ns =
        e->config.ready_timeout_ns ? sp_now_ns() + e->config.ready_timeout_ns : SP_NEVER;
    return sp_thread_start(&e->thread, "engine", run, e, err);
}

void sp_engine_stop(sp_engine *e) {
    sp_desk_ask(e->desk, false, true);
    sp_thread_join(&e->thread);
}

bool sp_engine_check(sp_engine *e) {
    if (!sp_desk_check(e->desk)) return false;
    for (int32_t i = 0; e->steps && i < e->n_groups; i++)
        if (!sp_stepper_check(e->groups[i].stepper)) return false;
    return !e->kv || sp_engine_kv_check(e->kv);
}
