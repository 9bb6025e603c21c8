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

static sp_status gated_forward(void *ctx, const sp_batch *batch, const float **logits,
                               sp_err *err) {
    sp_fake_rank *r = ctx;
    pthread_mutex_lock(&r->lock);
    int number = ++r->n_steps;
    pthread_cond_broadcast(&r->changed);
    while (r->allowed == 0) pthread_cond_wait(&r->changed, &r->lock);
    if (r->allowed > 0) r->allowed--;
    sp_status failure = r->fail_at_step == number ? r->failure : SP_OK;
    pthread_mutex_unlock(&r->lock);
    if (failure != SP_OK) return SP_FAIL(err, failure, "the test wants it");
    return r->model.forward(r->model.ctx, batch, logits, err);
}

static void *rank_main(void *arg) {
    sp_fake_rank *r = arg;
    r->ended = sp_stage_run(r->stage, &r->err);
    sp_link_close(r->rank);
    r->rank = NULL;
    return NULL;
}

void sp_fake_rank_start(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos,
                        int32_t n_eos, int64_t step_ns, int allowed) {
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->allowed = allowed;
    sp_err err = {0};
    int fd = -1;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, RING_BYTES, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&r->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&r->rank, fd, 1, &err), SP_OK);
    close(fd);
    sp_null_model_config nc = {.n_vocab = offer->n_vocab,
                               .n_blocks = offer->n_blocks,
                               .block_tokens = offer->block_tokens,
                               .max_step_rows = offer->max_step_rows,
                               .step_ns = step_ns};
    CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&r->null, &nc, &err), SP_OK);
    r->model = sp_null_model_callbacks(r->null);
    sp_stage_model gated = {.forward = gated_forward, .ctx = r};
    sp_stage_config sc = {.offer = *offer, .eos_ids = eos, .n_eos_ids = n_eos};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&r->stage, &sc, r->rank, &gated, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&r->thread, "rank", rank_main, r, &err), SP_OK);
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
    sp_link_close(r->head); /* a rank that still runs sees the end of the link */
    sp_fake_rank_join(r);
    sp_stage_destroy(r->stage);
    sp_null_model_destroy(r->null);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
}
