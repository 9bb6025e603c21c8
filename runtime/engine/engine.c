#define SP_LOG "engine"
#include "runtime/engine/engine.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/engine_metrics.h"
#include "runtime/engine/stepper.h"

#include <stdio.h>
#include <string.h>

#define ROWS_DEFAULT 256
#define BYE_PATIENCE_NS (200 * SP_NS_PER_MS)

/* The stepper is made when the rank has said how many blocks it has, and is the engine thread's
 * alone. Others reach the desk (which locks), the figures (atomics), and what `lock` covers. */
struct sp_engine {
    sp_engine_config config;
    int32_t *eos;
    sp_link *link;
    sp_desk *desk;
    sp_engine_metrics metrics;
    sp_gauge loaded_bytes, all_bytes;
    sp_thread thread;

    pthread_mutex_t lock;
    sp_engine_info info;
    char why[160];

    sp_stepper *stepper;
    sp_engine_state state; /* the thread's view; the desk has the one that others see */
    bool over;
    int64_t ready_by_ns;
    char kv_dtype[17];
};

/* ---- creation ---- */

static void wake_engine(void *ctx) {
    sp_link_wake(((sp_engine *)ctx)->link);
}

static void pause_seq(void *ctx, sp_seq *q, bool paused) {
    sp_engine *e = ctx;
    if (e->stepper) sp_stepper_pause(e->stepper, q, paused);
}

static sp_status check_config(const sp_engine_config *c, sp_err *err) {
    const struct {
        const char *name;
        int64_t value, min;
    } rows[] = {
        {"max_num_seqs", c->max_num_seqs, 1},
        {"max_batched_tokens", c->max_batched_tokens, 1},
        {"max_step_rows", c->max_step_rows, 0},
        {"block_tokens", c->block_tokens, 1},
        {"n_blocks", c->n_blocks, 0},
        {"max_model_len", c->max_model_len, 1},
        {"n_vocab", c->n_vocab, 1},
        {"n_eos_ids", c->n_eos_ids, 0},
        {"queue_max", c->queue_max, 1},
        {"steps_in_flight", c->steps_in_flight, 1},
        {"send_timeout_ns", c->send_timeout_ns, 1},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %lld, want at least %lld", rows[i].name,
                           (long long)rows[i].value, (long long)rows[i].min);
    return SP_OK;
}

sp_status sp_engine_create(sp_engine **out, const sp_engine_config *config, sp_link *link,
                           sp_err *err) {
    SP_ASSERT(out && config && link);
    SP_TRY(check_config(config, err));
    sp_engine *e = sp_alloc(sizeof *e);
    e->config = *config;
    e->link = link;
    e->eos = sp_try_alloc_array((size_t)config->n_eos_ids, sizeof *e->eos);
    /* Beyond the queue: those that run, and as many that ended and whose events nobody took yet. */
    int64_t live = (int64_t)config->queue_max + 2 * (int64_t)config->max_num_seqs + 64;
    sp_desk_config desk = {.queue_max = config->queue_max,
                           .live_max = live < INT32_MAX ? (int32_t)live : INT32_MAX,
                           .wake = wake_engine,
                           .pause = pause_seq,
                           .ctx = e};
    sp_status st = e->eos ? sp_desk_create(&e->desk, &desk, err)
                          : SP_FAIL(err, SP_E_NOMEM, "no memory for %d eos ids", config->n_eos_ids);
    if (st != SP_OK) {
        sp_free(e->eos);
        sp_free(e);
        return st;
    }
    if (config->n_eos_ids)
        memcpy(e->eos, config->eos_ids, (size_t)config->n_eos_ids * sizeof *e->eos);
    e->config.eos_ids = e->eos;
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
    sp_stepper_destroy(e->stepper);
    pthread_mutex_destroy(&e->lock);
    sp_free(e->eos);
    sp_free(e);
}

/* ---- any thread ---- */

static sp_status refuse_id(const char *what, int32_t id, int32_t n_vocab, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "'%s' has token %d, the vocabulary has %d", what, id,
                   n_vocab);
}

/* Whether ids at a stride lie in the vocabulary. */
static sp_status check_ids(const char *what, const int32_t *ids, int32_t n, int32_t stride,
                           int32_t n_vocab, sp_err *err) {
    for (int32_t i = 0; i < n; i++)
        if (ids[(size_t)i * (size_t)stride] < 0 || ids[(size_t)i * (size_t)stride] >= n_vocab)
            return refuse_id(what, ids[(size_t)i * (size_t)stride], n_vocab, err);
    return SP_OK;
}

static sp_status check_bad_words(const sp_gen_params *g, int32_t n_vocab, sp_err *err) {
    for (int32_t at = 0; at < g->n_bad_words_ints;) {
        int32_t n = g->bad_words[at++];
        if (n < 1 || n > g->n_bad_words_ints - at)
            return SP_FAIL(err, SP_E_INVALID, "'bad_words' has a run of %d, %d ids are left", n,
                           g->n_bad_words_ints - at);
        SP_TRY(check_ids("bad_words", g->bad_words + at, n, 1, n_vocab, err));
        at += n;
    }
    return SP_OK;
}

/* What the front end has checked, checked where it would break something if it had not. */
static sp_status check_params(const sp_gen_params *g, int32_t n_vocab, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, min, max;
    } rows[] = {
        {"n", g->n, 1, SP_N_MAX},
        {"max_tokens", g->max_tokens, 0, INT32_MAX},
        {"logprobs", g->n_logprobs, -1, SP_LOGPROBS_MAX},
        {"prompt_logprobs", g->n_prompt_logprobs, -1, SP_LOGPROBS_MAX},
        {"stop_token_ids", g->n_stop_ids, 0, SP_STOP_IDS_MAX},
        {"logit_bias", g->n_logit_bias, 0, SP_LOGIT_BIAS_MAX},
        {"allowed_token_ids", g->n_allowed_ids, 0, SP_ALLOWED_IDS_MAX},
        {"bad_words", g->n_bad_words_ints, 0, SP_BAD_WORDS_TOKENS_MAX},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %d, want %d..%d", rows[i].name,
                           rows[i].value, rows[i].min, rows[i].max);
    if (g->n_logit_bias)
        SP_TRY(check_ids("logit_bias", &g->logit_bias[0].id, g->n_logit_bias,
                         sizeof(sp_logit_bias) / sizeof(int32_t), n_vocab, err));
    SP_TRY(check_ids("allowed_token_ids", g->allowed_ids, g->n_allowed_ids, 1, n_vocab, err));
    return check_bad_words(g, n_vocab, err);
}

sp_status sp_engine_submit(sp_engine *e, const sp_engine_request *req, uint64_t *id, sp_err *err) {
    SP_ASSERT(e && req && req->params && id);
    sp_engine_info info = sp_engine_get_info(e);
    const sp_gen_params *g = req->params;
    SP_TRY(check_params(g, info.n_vocab, err));
    int32_t most = info.max_model_len - (g->max_tokens > 0);
    if (req->n_prompt < 1) return SP_FAIL(err, SP_E_INVALID, "the prompt is empty");
    if (req->n_prompt > most)
        return SP_FAIL(err, SP_E_INVALID, "the prompt has %d tokens, the most is %d", req->n_prompt,
                       most);
    SP_TRY(check_ids("prompt", req->prompt, req->n_prompt, 1, info.n_vocab, err));
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

/* ---- the engine thread ---- */

static void set_state(sp_engine *e, sp_engine_state state) {
    e->state = state;
    sp_desk_set_state(e->desk, state);
}

static void take_mail(sp_engine *e, sp_desk_mail mail) {
    for (sp_request *r = mail.fresh, *next; r; r = next) {
        next = r->mail_next;
        sp_stepper_add(e->stepper, r);
    }
    for (sp_request *r = mail.cancelled, *next; r; r = next) {
        next = r->cancel_next;
        sp_stepper_cancel(e->stepper, r);
    }
}

/* The end of everything that lives. Refusing comes first, so that nothing is handed in unseen. */
static void end_all(sp_engine *e, sp_engine_state state, sp_status error, const char *text) {
    set_state(e, state);
    if (e->stepper) {
        take_mail(e, sp_desk_collect(e->desk));
        sp_stepper_end_all(e->stepper,
                           (sp_ending){.finish = SP_FINISH_ERROR, .error = error, .text = text});
        sp_stepper_account(e->stepper);
        sp_desk_publish(e->desk);
    }
    e->over = true;
}

static void say_bye(sp_engine *e) {
    sp_err err = {0};
    if (sp_link_send(e->link, SP_FRAME_BYE, NULL, 0, sp_now_ns() + BYE_PATIENCE_NS, &err) != SP_OK)
        sp_debug("no goodbye to the rank: %s", err.text);
}

/* ---- frames from the rank ---- */

static sp_status want_same(const char *what, int32_t offered, int32_t wanted, sp_err *err) {
    if (offered == wanted) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "the rank's '%s' is %d, want %d", what, offered, wanted);
}

static sp_status want_most(const char *what, int32_t offered, int32_t wanted, sp_err *err) {
    if (offered >= wanted) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "the rank's '%s' is %d, want at least %d", what, offered,
                   wanted);
}

static int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static sp_status fit(sp_engine_config *c, const sp_wire_ready *r, sp_err *err) {
    SP_TRY(want_same("n_vocab", r->n_vocab, c->n_vocab, err));
    SP_TRY(want_same("block_tokens", r->block_tokens, c->block_tokens, err));
    SP_TRY(want_same("n_groups", r->n_groups, 1, err));
    SP_TRY(want_most("max_num_seqs", r->max_num_seqs, c->max_num_seqs, err));
    SP_TRY(want_most("max_batched_tokens", r->max_batched_tokens, c->max_batched_tokens, err));
    if (c->max_step_rows == 0) {
        c->max_step_rows = c->max_num_seqs > ROWS_DEFAULT ? c->max_num_seqs : ROWS_DEFAULT;
        c->max_step_rows = min32(c->max_step_rows, r->max_step_rows);
    }
    SP_TRY(want_most("max_step_rows", r->max_step_rows, c->max_step_rows, err));
    SP_TRY(want_most("max_step_rows", c->max_step_rows, c->max_num_seqs, err));
    if (c->n_blocks == 0) c->n_blocks = r->n_blocks;
    SP_TRY(want_most("n_blocks", r->n_blocks, c->n_blocks, err));
    int64_t held = (int64_t)c->n_blocks * c->block_tokens;
    int32_t len = min32(c->max_model_len, r->max_model_len);
    if (len > held) len = (int32_t)held;
    if (len < c->max_model_len)
        sp_warn("max_model_len is %d instead of %d: %d blocks of %d tokens, the rank's most is %d",
                len, c->max_model_len, c->n_blocks, c->block_tokens, r->max_model_len);
    c->max_model_len = len;
    return SP_OK;
}

static sp_status receive_one(void *ctx, sp_err *err);

static sp_status make_stepper(sp_engine *e, const sp_wire_ready *r, sp_err *err) {
    const sp_engine_config *c = &e->config;
    uint8_t identity[sizeof c->fingerprint + sizeof r->numerics];
    memcpy(identity, c->fingerprint, sizeof c->fingerprint);
    memcpy(identity + sizeof c->fingerprint, r->numerics, sizeof r->numerics);
    sp_stepper_config sc = {.sched = {.max_num_seqs = c->max_num_seqs,
                                      .max_batched_tokens = c->max_batched_tokens,
                                      .max_step_rows = c->max_step_rows,
                                      .block_tokens = c->block_tokens,
                                      .n_blocks = c->n_blocks,
                                      .max_model_len = c->max_model_len,
                                      .steps_in_flight = c->steps_in_flight,
                                      .enable_prefix_cache = c->enable_prefix_cache,
                                      .identity = identity,
                                      .identity_bytes = sizeof identity},
                            .eos_ids = c->eos_ids,
                            .n_eos_ids = c->n_eos_ids,
                            .n_vocab = c->n_vocab,
                            .send_timeout_ns = c->send_timeout_ns,
                            .step_timeout_ns = c->step_timeout_ns,
                            .link = e->link,
                            .desk = e->desk,
                            .metrics = &e->metrics,
                            .receive = receive_one,
                            .ctx = e};
    memcpy(sc.sched.cache_key, c->cache_key, sizeof c->cache_key);
    return sp_stepper_create(&e->stepper, &sc, err);
}

static sp_status take_ready(sp_engine *e, const sp_frame *f, sp_err *err) {
    sp_wire_ready r;
    SP_TRY(sp_wire_ready_decode(f->payload, f->length, &r, err));
    SP_TRY(fit(&e->config, &r, err));
    SP_TRY(make_stepper(e, &r, err));
    memcpy(e->kv_dtype, r.kv_dtype, sizeof r.kv_dtype);
    pthread_mutex_lock(&e->lock);
    e->info.n_blocks = e->config.n_blocks;
    e->info.max_model_len = e->config.max_model_len;
    e->info.kv_dtype = e->kv_dtype;
    pthread_mutex_unlock(&e->lock);
    sp_stepper_account(e->stepper);
    sp_debug("ready: %d blocks of %d tokens (%s), %d sequences, %d tokens a step, %d a sequence",
             e->config.n_blocks, e->config.block_tokens, e->kv_dtype, e->config.max_num_seqs,
             e->config.max_batched_tokens, e->config.max_model_len);
    set_state(e, SP_ENGINE_READY);
    return SP_OK;
}

static sp_status take_progress(sp_engine *e, const sp_frame *f, sp_err *err) {
    sp_wire_progress w;
    SP_TRY(sp_wire_progress_decode(f->payload, f->length, &w, err));
    sp_gauge_set(&e->loaded_bytes, (int64_t)w.done_bytes);
    sp_gauge_set(&e->all_bytes, (int64_t)w.all_bytes);
    return SP_OK;
}

static sp_status take_fault(const sp_frame *f, sp_err *err) {
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    SP_TRY(sp_wire_fault_decode(f->payload, f->length, &reason, text, err));
    return SP_FAIL(err, SP_E_PEER_LOST, "%s fault: %.180s", sp_fault_name(reason), text);
}

static sp_status take_frame(sp_engine *e, const sp_frame *f, sp_err *err) {
    bool starting = !e->stepper;
    switch (f->type) {
    case SP_FRAME_PROGRESS:
        if (starting) return take_progress(e, f, err);
        break;
    case SP_FRAME_READY:
        if (starting) return take_ready(e, f, err);
        break;
    case SP_FRAME_TOKENS:
        if (!starting) return sp_stepper_tokens(e->stepper, f->payload, f->length, err);
        break;
    case SP_FRAME_ROW:
        if (!starting) return sp_stepper_row(e->stepper, f->payload, f->length, err);
        break;
    case SP_FRAME_FAULT:
        return take_fault(f, err);
    case SP_FRAME_BYE:
        return SP_FAIL(err, SP_E_PEER_LOST, "the rank left");
    default:
        break;
    }
    return SP_FAIL(err, SP_E_PROTOCOL, "frame of type %d %s", (int)f->type,
                   starting ? "before ready" : "from a rank");
}

static sp_status receive_one(void *ctx, sp_err *err) {
    sp_engine *e = ctx;
    sp_frame f;
    SP_TRY(sp_link_recv(e->link, &f, 0, err));
    return take_frame(e, &f, err);
}

/* ---- one turn ---- */

/* A send may find the link closed before the rank's last words were read: they say why. */
static void hear_last_words(sp_engine *e, sp_err *err) {
    sp_err more = {0};
    sp_status st;
    do st = receive_one(e, &more);
    while (st == SP_OK);
    if (st == SP_AGAIN) st = receive_one(e, &more); /* it was a wake */
    if (st == SP_E_PEER_LOST) *err = more;
}

static void fail(sp_engine *e, sp_err *err) {
    if (err->code == SP_E_CLOSED && e->stepper) hear_last_words(e, err);
    char text[sizeof e->why];
    snprintf(text, sizeof text, "rank lost: %.140s",
             err->text[0] ? err->text : sp_status_text(err->code));
    pthread_mutex_lock(&e->lock);
    memcpy(e->why, text, sizeof text);
    pthread_mutex_unlock(&e->lock);
    end_all(e, SP_ENGINE_FAILED, SP_E_PEER_LOST, text);
}

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Everything that can be done without waiting; then until when to wait. */
static sp_status work(sp_engine *e, int64_t *wait_until_ns, sp_err *err) {
    int64_t now = sp_now_ns();
    *wait_until_ns = SP_NEVER;
    sp_desk_mail mail = sp_desk_collect(e->desk);
    if (e->stepper) take_mail(e, mail);
    if (mail.stop) {
        say_bye(e);
        end_all(e, SP_ENGINE_DRAINED, SP_E_UNAVAILABLE, "the engine was stopped");
        return SP_OK;
    }
    if (!e->stepper) {
        if (now >= e->ready_by_ns)
            return SP_FAIL(err, SP_E_PEER_LOST, "the rank was not ready in time");
        *wait_until_ns = e->ready_by_ns;
    } else {
        *wait_until_ns = sp_stepper_expire(e->stepper, now);
        SP_TRY(sp_stepper_advance(e->stepper, err));
        sp_stepper_account(e->stepper); /* first: who has seen the events finds the figures right */
        sp_desk_publish(e->desk);
        int64_t overdue = sp_stepper_overdue_ns(e->stepper);
        if (now >= overdue) return SP_FAIL(err, SP_E_PEER_LOST, "a step is overdue");
        *wait_until_ns = sooner(*wait_until_ns, overdue);
        if (sp_stepper_received(e->stepper)) *wait_until_ns = 0;
    }
    if (mail.drain && (!e->stepper || sp_stepper_is_idle(e->stepper))) {
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
        sp_frame f;
        sp_status st = work(e, &until, &err);
        int64_t now = sp_cpu_thread_ns();
        sp_counter_add(&e->metrics.engine_cpu_ns, (uint64_t)(now - cpu));
        if (st == SP_OK && !e->over) {
            st = sp_link_recv(e->link, &f, until, &err);
            cpu = sp_cpu_thread_ns(); /* a spin in there is waiting, not work */
            if (st == SP_OK) st = take_frame(e, &f, &err);
        }
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
    return sp_desk_check(e->desk) && (!e->stepper || sp_stepper_check(e->stepper));
}
