#include "tests/fake_rank.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <string.h>
#include <unistd.h>

#define RING_BYTES ((uint32_t)4 * SP_FRAME_MAX)

sp_wire_ready sp_fake_offer(int32_t n_vocab, int32_t n_blocks, int32_t block_tokens) {
    return (sp_wire_ready){.n_vocab = n_vocab,
                           .max_model_len = 1 << 20,
                           .max_num_seqs = 512,
                           .max_batched_tokens = 4096,
                           .max_step_rows = 512,
                           .block_tokens = block_tokens,
                           .n_blocks = n_blocks,
                           .n_groups = 1,
                           .kv_dtype = "f32"};
}

static sp_status pass_gate(sp_fake_rank *r, sp_err *err) {
    pthread_mutex_lock(&r->lock);
    int number = ++r->n_steps;
    pthread_cond_broadcast(&r->changed);
    while (r->allowed == 0) pthread_cond_wait(&r->changed, &r->lock);
    if (r->allowed > 0) r->allowed--;
    sp_status failure = r->fail_at_step == number ? r->failure : SP_OK;
    pthread_mutex_unlock(&r->lock);
    return failure == SP_OK ? SP_OK : SP_FAIL(err, failure, "the test wants it");
}

static sp_status gated_forward(void *ctx, const sp_batch *batch, const float **logits,
                               sp_err *err) {
    sp_fake_rank *r = ctx;
    SP_TRY(pass_gate(r, err));
    return r->model.forward(r->model.ctx, batch, logits, err);
}

static sp_status gated_submit(void *ctx, const sp_batch *batch, const sp_draw_args *draws,
                              sp_err *err) {
    sp_fake_rank *r = ctx;
    SP_TRY(pass_gate(r, err));
    r->ahead.n_waits = r->n_steps % 3;
    return r->model.submit(r->model.ctx, batch, draws, err);
}
static sp_status finish_ungated(void *ctx, int64_t deadline_ns, const sp_drawn **drawn,
                                sp_err *err) {
    sp_fake_rank *r = ctx;
    return r->model.finish(r->model.ctx, deadline_ns, drawn, err);
}

static void *rank_main(void *arg) {
    sp_fake_rank *r = arg;
    r->ended = sp_stage_run(r->stage, &r->err);
    if (r->ended != SP_OK && r->gone) r->gone(r, r->gone_ctx);
    sp_link_close(r->rank);
    r->rank = NULL;
    return NULL;
}

static void open_links(sp_fake_rank *r, int bell) {
    sp_err err = {0};
    int fd = -1;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, RING_BYTES, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&r->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&r->rank, fd, 1, &err), SP_OK);
    close(fd);
    r->bell = bell < 0 ? -1 : dup(bell);
    sp_link_set_bells(r->rank, -1, r->bell);
}

static int32_t gated_token(void *ctx, int32_t row) {
    sp_fake_rank *r = ctx;
    return r->model.token(r->model.ctx, row);
}

static void times_ungated(void *ctx, sp_wire_times *out) {
    sp_fake_rank *r = ctx;
    r->model.times(r->model.ctx, out);
}

void sp_fake_rank_open(sp_fake_rank *r, const sp_fake_rank_config *c) {
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->allowed = c->allowed;
    r->gone = c->gone;
    r->gone_ctx = c->gone_ctx;
    open_links(r, c->bell);
    sp_err err = {0};
    sp_null_model_config nc = {.n_vocab = c->offer.n_vocab,
                               .n_blocks = c->offer.n_blocks,
                               .block_tokens = c->offer.block_tokens,
                               .max_step_rows = c->offer.max_step_rows,
                               .step_ns = c->step_ns};
    if (c->model) {
        r->model = *c->model;
    } else {
        CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&r->null, &nc, &err), SP_OK);
        r->model = sp_null_model_callbacks(r->null);
    }
    r->runs_ahead = c->ahead;
    if (c->ahead) {
        sp_fake_ahead_init(&r->ahead, &r->model, &c->offer);
        r->model = sp_fake_ahead_callbacks(&r->ahead);
    }
    sp_stage_model gated = {.forward = gated_forward,
                            .token = r->model.token ? gated_token : NULL,
                            .submit = c->ahead ? gated_submit : NULL,
                            .finish = c->ahead ? finish_ungated : NULL,
                            .times = c->ahead ? times_ungated : NULL,
                            .ctx = r};
    sp_stage_config sc = {.offer = c->offer,
                          .eos_ids = c->eos,
                          .n_eos_ids = c->n_eos,
                          .role = c->role,
                          .kvx = c->kvx};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&r->stage, &sc, r->rank, &gated, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&r->thread, "rank", rank_main, r, &err), SP_OK);
}

static void start(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos, int32_t n_eos,
                  int64_t step_ns, int allowed, bool ahead) {
    sp_fake_rank_config c = {.ahead = ahead,
                             .offer = *offer,
                             .eos = eos,
                             .n_eos = n_eos,
                             .step_ns = step_ns,
                             .allowed = allowed,
                             .role = {.embeds = true, .samples = true}};
    sp_fan *fan = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&fan, -1, &err), SP_OK);
    c.bell = sp_fan_bell(fan);
    sp_fake_rank_open(r, &c);
    CU_ASSERT_EQUAL_FATAL(sp_fan_add(fan, r->head, &err), SP_OK);
    r->fan = fan;
}

void sp_fake_rank_start(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos,
                        int32_t n_eos, int64_t step_ns, int allowed) {
    start(r, offer, eos, n_eos, step_ns, allowed, false);
}

void sp_fake_rank_start_ahead(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos,
                              int32_t n_eos, int64_t step_ns, int allowed) {
    start(r, offer, eos, n_eos, step_ns, allowed, true);
}

void sp_fake_rank_allow(sp_fake_rank *r, int steps) {
    pthread_mutex_lock(&r->lock);
    r->allowed = steps < 0 ? -1 : r->allowed + steps;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

void sp_fake_rank_fail_at(sp_fake_rank *r, int step, sp_status failure) {
    pthread_mutex_lock(&r->lock);
    r->fail_at_step = step;
    r->failure = failure;
    pthread_mutex_unlock(&r->lock);
}

void sp_fake_rank_wait_steps(sp_fake_rank *r, int n) {
    pthread_mutex_lock(&r->lock);
    while (r->n_steps < n) pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

void sp_fake_rank_join(sp_fake_rank *r) {
    sp_fake_rank_allow(r, -1);
    sp_thread_join(&r->thread);
}

void sp_fake_rank_fini(sp_fake_rank *r) {
    sp_fan_close(r->fan); /* a rank that still runs sees the end of the link */
    sp_fake_rank_join(r);
    if (r->bell >= 0) close(r->bell);
    sp_stage_destroy(r->stage);
    if (r->runs_ahead) sp_fake_ahead_fini(&r->ahead);
    sp_null_model_destroy(r->null);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
}
