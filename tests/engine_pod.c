#include "tests/engine_pod.h"

#include "runtime/base/mem.h"

#include <poll.h>
#include <sched.h>
#include <string.h>

static const int32_t EOS_IDS[] = {EOS};

/* ---- a pod of two threads ---- */

sp_engine_config pod_config(void) {
    sp_engine_config c = SP_ENGINE_CONFIG_DEFAULT;
    c.max_num_seqs = 8;
    c.max_batched_tokens = 64;
    c.max_model_len = 200;
    c.n_vocab = VOCAB;
    c.eos_ids = EOS_IDS;
    c.n_eos_ids = 1;
    return c;
}

void pod_wait_state(pod *p, sp_engine_state want) {
    int64_t until = sp_now_ns() + 20 * SP_NS_PER_S;
    while (sp_engine_get_state(p->engine) != want) {
        struct pollfd f = {.fd = sp_engine_event_fd(p->engine), .events = POLLIN};
        poll(&f, 1, 50);
        CU_ASSERT_FATAL(sp_now_ns() < until);
        if (f.revents) break; /* events, or news of a state */
    }
    while (sp_engine_get_state(p->engine) != want) {
        CU_ASSERT_FATAL(sp_now_ns() < until);
        sched_yield();
    }
}

static void start_one(pod *p, const sp_engine_config *c, int32_t n_blocks, int allowed,
                      bool ahead) {
    sp_wire_ready offer = sp_fake_offer(c->n_vocab, n_blocks, c->block_tokens);
    p->config = *c;
    p->shape = NULL;
    (ahead ? sp_fake_rank_start_ahead : sp_fake_rank_start)(&p->rank, &offer, c->eos_ids,
                                                            c->n_eos_ids, 0, allowed);
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&p->engine, c, p->rank.fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(p->engine, &err), SP_OK);
    pod_wait_state(p, SP_ENGINE_READY);
}

void pod_start(pod *p, const sp_engine_config *c, int32_t n_blocks, int allowed) {
    start_one(p, c, n_blocks, allowed, false);
}
void pod_start_ahead(pod *p, const sp_engine_config *c, int32_t n_blocks, int allowed) {
    start_one(p, c, n_blocks, allowed, true);
}

/* ---- more ranks ---- */

enum {
    RANKS_MAX = 16,
    HIDDEN = 8
};

typedef struct member {
    pod_shape *shape;
    sp_fake_rank *rank, own; /* rank: own, or the pod's */
    sp_rehearsal *rehearsal;
    sp_stage_model model; /* the rehearsal's */
    float *logits;        /* at the sampler: [max_step_rows, VOCAB] */
    int stage, tp_rank;
} member;

struct pod_shape {
    int tp, pp;
    sp_fake_hub *tp_hubs[RANKS_MAX], *pp_hubs[RANKS_MAX], *feedback;
    member m[RANKS_MAX];
};

/* The rehearsal's step; then what it agreed on, as logits. */
static sp_status member_forward(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    member *m = ctx;
    SP_TRY(m->model.forward(m->model.ctx, b, logits, err));
    if (!m->logits) return SP_OK;
    for (int32_t k = 0; k < b->n_rows; k++)
        sp_null_model_row(sp_rehearsal_state(m->rehearsal, k), m->logits + (size_t)k * VOCAB,
                          VOCAB);
    *logits = m->logits;
    return SP_OK;
}

static void member_gone(sp_fake_rank *r, void *ctx) {
    (void)r;
    member *m = ctx;
    pod_shape *s = m->shape;
    sp_fake_hub_leave(s->tp_hubs[m->stage], m->tp_rank);
    sp_fake_hub_leave(s->pp_hubs[m->tp_rank], m->stage);
    sp_fake_hub_leave(s->feedback, 0);
}

static sp_stage_role role_of(const pod_shape *s, int stage, int tp_rank) {
    sp_stage_role r = {.embeds = stage == 0,
                       .samples = stage == s->pp - 1 && tp_rank == 0,
                       .steps_in_flight = s->pp + 1};
    int me = r.samples ? 0 : s->pp > 1 ? 1 + tp_rank : tp_rank;
    if ((r.embeds || r.samples) && s->tp * s->pp > 1)
        r.feedback = sp_fake_hub_member(s->feedback, me);
    return r;
}

static void member_start(pod *p, member *m, int32_t n_blocks, int allowed, int bell) {
    pod_shape *s = m->shape;
    const sp_engine_config *c = &p->config;
    sp_fake_rank_config rc = {.offer = sp_fake_offer(c->n_vocab, n_blocks, c->block_tokens),
                              .eos = c->eos_ids,
                              .n_eos = c->n_eos_ids,
                              .allowed = -1,
                              .bell = bell,
                              .role = role_of(s, m->stage, m->tp_rank),
                              .gone = member_gone,
                              .gone_ctx = m};
    sp_rehearsal_config hc = {.hidden = HIDDEN,
                              .n_layers = 1,
                              .n_vocab = c->n_vocab,
                              .token_hi = c->n_vocab - 1,
                              .n_blocks = n_blocks,
                              .block_tokens = c->block_tokens,
                              .max_batched_tokens = rc.offer.max_batched_tokens,
                              .max_step_rows = rc.offer.max_step_rows};
    if (s->tp > 1) hc.tp = sp_fake_hub_member(s->tp_hubs[m->stage], m->tp_rank);
    if (s->pp > 1) hc.pp = sp_fake_hub_member(s->pp_hubs[m->tp_rank], m->stage);
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_rehearsal_create(&m->rehearsal, &hc, &err), SP_OK);
    m->model = sp_rehearsal_callbacks(m->rehearsal);
    sp_stage_model model = {.forward = member_forward, .ctx = m};
    rc.model = &model;
    if (rc.role.samples) {
        rc.allowed = allowed;
        m->logits = sp_alloc((size_t)hc.max_step_rows * VOCAB * sizeof *m->logits);
    }
    m->rank = rc.role.samples ? &p->rank : &m->own;
    sp_fake_rank_open(m->rank, &rc);
}

void pod_start_shape(pod *p, sp_engine_config c, int32_t n_blocks, int allowed, int tp, int pp) {
    sp_err err = {0};
    c.n_stages = pp;
    c.sampler = (pp - 1) * tp;
    p->config = c;
    pod_shape *s = p->shape = sp_alloc(sizeof *s);
    s->tp = tp;
    s->pp = pp;
    for (int i = 0; i < pp; i++) s->tp_hubs[i] = sp_fake_hub_open(tp, SP_GROUP_SENDS);
    for (int i = 0; i < tp; i++) s->pp_hubs[i] = sp_fake_hub_open(pp, SP_GROUP_SENDS);
    s->feedback = sp_fake_hub_open(pp > 1 ? tp + 1 : tp, pp + 2);
    sp_fan *fan = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&fan, -1, &err), SP_OK);
    for (int i = 0; i < tp * pp; i++) {
        s->m[i].shape = s;
        s->m[i].stage = i / tp;
        s->m[i].tp_rank = i % tp;
        member_start(p, &s->m[i], n_blocks, allowed, sp_fan_bell(fan));
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(fan, s->m[i].rank->head, &err), SP_OK);
    }
    p->rank.fan = fan;
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&p->engine, &c, fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(p->engine, &err), SP_OK);
    pod_wait_state(p, SP_ENGINE_READY);
}

int pod_rank_count(const pod *p) {
    return p->shape ? p->shape->tp * p->shape->pp : 1;
}

sp_fake_rank *pod_rank(pod *p, int link) {
    return p->shape ? p->shape->m[link].rank : &p->rank;
}

static void shape_end(pod *p) {
    pod_shape *s = p->shape;
    if (!s) return;
    int n = pod_rank_count(p);
    for (int i = 0; i < n; i++) {
        if (s->m[i].rank == &s->m[i].own) sp_fake_rank_fini(&s->m[i].own);
        sp_rehearsal_destroy(s->m[i].rehearsal);
        sp_free(s->m[i].logits);
    }
    CU_ASSERT(sp_fake_hub_most_waiting(s->feedback) <= s->pp + 1);
    for (int i = 0; i < RANKS_MAX; i++) {
        sp_fake_hub_close(s->tp_hubs[i]);
        sp_fake_hub_close(s->pp_hubs[i]);
    }
    sp_fake_hub_close(s->feedback);
    sp_free(s);
}

void pod_end(pod *p) {
    sp_engine_stop(p->engine);
    CU_ASSERT(sp_engine_check(p->engine));
    sp_engine_destroy(p->engine);
    for (int i = 0; i < pod_rank_count(p); i++) sp_fake_rank_allow(pod_rank(p, i), -1);
    sp_fake_rank_fini(&p->rank);
    shape_end(p);
}

/* ---- requests as the test sees them ---- */

void ask_init(ask *a, int32_t n_prompt, int32_t seed) {
    memset(a, 0, sizeof *a);
    a->n_prompt = n_prompt;
    for (int32_t i = 0; i < n_prompt; i++) a->prompt[i] = (seed * 31 + i * 7) % VOCAB;
    a->params = SP_GEN_PARAMS_DEFAULT;
    a->params.temperature = 0;
    a->params.ignore_eos = true;
    a->n_cached = -1;
}

void ask_fini(ask *a) {
    sp_free(a->kv);
    a->kv = NULL;
}

static sp_kv_handle *copy_handle(const sp_kv_handle *h) {
    size_t bytes = sizeof *h + (size_t)h->n_blocks * sizeof h->blocks[0];
    return memcpy(sp_alloc(bytes), h, bytes);
}

sp_status ask_submit(pod *p, ask *a, int64_t deadline_ns, sp_err *err) {
    sp_engine_request req = {.user = a,
                             .prompt = a->prompt,
                             .n_prompt = a->n_prompt,
                             .params = &a->params,
                             .deadline_ns = deadline_ns,
                             .priority = a->priority,
                             .cache_salt = a->salt,
                             .keep_kv = a->keep_kv,
                             .kv_from = a->from};
    sp_status st = sp_engine_submit(p->engine, &req, &a->id, err);
    if (st == SP_OK) a->live = true;
    return st;
}

void ask_must_submit(pod *p, ask *a) {
    sp_err err = {0};
    sp_status st = ask_submit(p, a, SP_NEVER, &err);
    if (st != SP_OK) {
        char why[160];
        fprintf(stderr, "%s; %s\n", err.text, sp_engine_why(p->engine, why, sizeof why));
    }
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static float oracle_row[VOCAB];

/* The row of position `n - 1`, and whether an event's row equals it. */
static bool same_row(const ask *a, const sp_event *ev) {
    int32_t tokens[600], n = ev->logits_position + 1, c = ev->choice;
    memcpy(tokens, a->prompt, (size_t)a->n_prompt * sizeof *tokens);
    memcpy(tokens + a->n_prompt, a->out[c], (size_t)a->n_out[c] * sizeof *tokens);
    if (n > a->n_prompt + a->n_out[c] || ev->n_vocab != VOCAB) return false;
    sp_null_model_logits(tokens, n, oracle_row, VOCAB);
    return memcmp(oracle_row, ev->logits, sizeof oracle_row) == 0;
}

void check_logprobs(const sp_token_logprobs *lp, const int32_t *tokens, int32_t position,
                    int32_t n_top) {
    static sp_sampler *sampler;
    if (!sampler) sampler = sp_sampler_create(VOCAB);
    sp_sample want = {0};
    sp_null_model_logits(tokens, position, oracle_row, VOCAB);
    sp_sampler_logprobs(sampler, oracle_row, VOCAB, tokens[position], n_top, &want);
    CU_ASSERT_EQUAL(lp->id, tokens[position]);
    CU_ASSERT(lp->logprob == want.logprob && lp->rank == want.rank && lp->n_top == want.n_top);
    for (int i = 0; i < lp->n_top && i < want.n_top; i++)
        CU_ASSERT(lp->top[i].id == want.top[i].id && lp->top[i].logprob == want.top[i].logprob);
}

static void take_prompt_logprobs(ask *a, const sp_event *ev) {
    CU_ASSERT(ev->choice == 0 && a->n_prompt_logprobs == 0);
    CU_ASSERT_EQUAL(ev->n_prompt_logprobs, a->n_prompt);
    CU_ASSERT_PTR_NULL(ev->prompt_logprobs[0]);
    for (int32_t i = 1; i < ev->n_prompt_logprobs; i++) {
        CU_ASSERT_PTR_NOT_NULL_FATAL(ev->prompt_logprobs[i]);
        check_logprobs(ev->prompt_logprobs[i], a->prompt, i, a->params.n_prompt_logprobs);
    }
    a->n_prompt_logprobs = ev->n_prompt_logprobs;
}

void ask_take(ask *a, const sp_event *ev) {
    int32_t c = ev->choice;
    CU_ASSERT_FATAL(a->live && c >= 0 && c < a->params.n && a->id == ev->id);
    CU_ASSERT_FALSE(a->cancelled[c]);
    CU_ASSERT_EQUAL(a->finish[c], SP_FINISH_NONE);
    if (a->n_cached < 0) a->n_cached = ev->n_cached;
    if (ev->prompt_logprobs) take_prompt_logprobs(a, ev);
    if (ev->logits) {
        CU_ASSERT(same_row(a, ev));
        a->n_rows++;
    }
    for (int32_t i = 0; i < ev->n_tokens; i++) {
        CU_ASSERT_FATAL(a->n_out[c] < OUT_MAX);
        a->out[c][a->n_out[c]++] = ev->tokens[i];
        CU_ASSERT_EQUAL(ev->logprobs[i] != NULL, a->params.n_logprobs >= 0);
    }
    CU_ASSERT(!ev->kv || (a->keep_kv && !a->kv && ev->finish != SP_FINISH_NONE));
    if (ev->kv) a->kv = copy_handle(ev->kv);
    a->finish[c] = ev->finish;
    a->stop_id[c] = ev->stop_id;
    a->error[c] = ev->error;
    memcpy(a->text, ev->error_text, sizeof a->text);
}

/* Takes what waits; false when nothing came for too long. */
bool pod_pump(pod *p, int wait_ms) {
    sp_event ev[16];
    int n = sp_engine_events(p->engine, ev, 16);
    if (n == 0) {
        struct pollfd f = {.fd = sp_engine_event_fd(p->engine), .events = POLLIN};
        if (poll(&f, 1, wait_ms) == 0) return false;
        n = sp_engine_events(p->engine, ev, 16);
    }
    for (int i = 0; i < n; i++) {
        ask_take(ev[i].user, &ev[i]);
        sp_event_release(&ev[i]);
    }
    return true;
}

bool ask_over(const ask *a) {
    int over = 0;
    for (int32_t c = 0; c < a->params.n; c++)
        over += a->cancelled[c] || a->finish[c] != SP_FINISH_NONE;
    return over == a->params.n;
}

void pod_finish(pod *p, ask *asks, int n) {
    int64_t until = sp_now_ns() + 60 * SP_NS_PER_S;
    for (int i = 0; i < n;) {
        if (!asks[i].live || ask_over(&asks[i])) {
            i++;
            continue;
        }
        (void)pod_pump(p, 1000);
        CU_ASSERT_FATAL(sp_now_ns() < until);
    }
}

static bool has(const int32_t *ids, int32_t n, int32_t id) {
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

expectation expect(const ask *a, int32_t choice, int32_t max_model_len) {
    static sp_sampler *sampler;
    if (!sampler) sampler = sp_sampler_create(VOCAB);
    expectation x = {.finish = SP_FINISH_LENGTH};
    int32_t tokens[600], n = a->n_prompt;
    memcpy(tokens, a->prompt, (size_t)n * sizeof *tokens);
    int32_t most =
        max_model_len - n < a->params.max_tokens ? max_model_len - n : a->params.max_tokens;
    while (x.n < most) {
        sp_null_model_logits(tokens, n, oracle_row, VOCAB);
        sp_sample_input in = {.logits = oracle_row,
                              .n_vocab = VOCAB,
                              .params = &a->params,
                              .prompt = tokens,
                              .n_prompt = a->n_prompt,
                              .output = tokens + a->n_prompt,
                              .n_output = x.n,
                              .eos_ids = EOS_IDS,
                              .n_eos_ids = 1,
                              .choice = choice,
                              .position = n};
        sp_sample got;
        CU_ASSERT_EQUAL_FATAL(sp_sampler_draw(sampler, &in, &got), SP_OK);
        tokens[n++] = x.out[x.n++] = got.id;
        bool eos = got.id == EOS && !a->params.ignore_eos;
        if (!eos && !has(a->params.stop_ids, a->params.n_stop_ids, got.id)) continue;
        x.finish = SP_FINISH_STOP;
        x.stop_id = eos ? -1 : got.id;
        break;
    }
    return x;
}

void ask_check(const ask *a, int32_t max_model_len) {
    for (int32_t c = 0; c < a->params.n; c++) {
        if (a->cancelled[c] || a->finish[c] == SP_FINISH_ERROR) continue;
        expectation x = expect(a, c, max_model_len);
        CU_ASSERT_EQUAL_FATAL(a->n_out[c], x.n);
        CU_ASSERT_FATAL(memcmp(a->out[c], x.out, (size_t)x.n * sizeof x.out[0]) == 0);
        CU_ASSERT_EQUAL(a->finish[c], x.finish);
        if (x.finish == SP_FINISH_STOP) CU_ASSERT_EQUAL(a->stop_id[c], x.stop_id);
    }
}

void pod_drain(pod *p) {
    sp_engine_drain(p->engine);
    int64_t until = sp_now_ns() + 30 * SP_NS_PER_S;
    while (sp_engine_get_state(p->engine) != SP_ENGINE_DRAINED) {
        (void)pod_pump(p, 10);
        CU_ASSERT_FATAL(sp_now_ns() < until);
    }
    for (int i = 0; i < pod_rank_count(p); i++) {
        sp_fake_rank *r = pod_rank(p, i);
        sp_fake_rank_join(r);
        CU_ASSERT_EQUAL(r->ended, SP_OK);
        CU_ASSERT_EQUAL(sp_stage_seq_count(r->stage), 0);
        CU_ASSERT(sp_stage_check(r->stage));
    }
}

int64_t pod_gauge(pod *p, size_t offset) {
    return sp_gauge_get(
        (const sp_gauge *)((const char *)sp_engine_get_metrics(p->engine) + offset));
}
uint64_t pod_counter(pod *p, size_t offset) {
    return sp_counter_get(
        (const sp_counter *)((const char *)sp_engine_get_metrics(p->engine) + offset));
}
uint64_t pod_observed(const sp_histogram *h) {
    uint64_t n = 0;
    for (int i = 0; i <= h->n_bounds; i++) n += h->buckets[i];
    return n;
}
