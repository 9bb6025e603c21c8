#include "tests/fake_ahead.h"

#include "runtime/base/mem.h"
#include "tests/fake_draw.h"
#include "tests/harness.h"

#include <string.h>

struct sp_fake_ahead_step {
    sp_batch batch;
    sp_draw_args args;
    int32_t *ids, *rows, *tokens;
    int32_t **blocks;
    sp_seq_rows *seqs;
    sp_draw *draws;
    sp_draw_bias *bias;
};

static void *copy(const void *p, size_t n, size_t size) {
    void *to = sp_alloc(n * size + 1);
    if (n) memcpy(to, p, n * size);
    return to;
}

static void free_step(sp_fake_ahead_step *t) {
    for (int32_t i = 0; i < t->batch.n_seqs; i++) sp_free(t->blocks[i]);
    sp_free(t->blocks);
    sp_free(t->ids);
    sp_free(t->rows);
    sp_free(t->tokens);
    sp_free(t->seqs);
    sp_free(t->draws);
    sp_free(t->bias);
    sp_free(t);
}

/* As a device: what the host may change after the call is copied. */
static sp_fake_ahead_step *keep(const sp_batch *b, const sp_draw_args *d, int32_t block_tokens) {
    sp_fake_ahead_step *t = sp_alloc(sizeof *t);
    t->batch = *b;
    t->args = *d;
    t->batch.ids = t->ids = copy(b->ids, (size_t)b->n_tokens, sizeof *b->ids);
    t->batch.rows = t->rows = copy(b->rows, (size_t)b->n_rows, sizeof *b->rows);
    t->batch.seqs = t->seqs = copy(b->seqs, (size_t)b->n_seqs, sizeof *b->seqs);
    t->blocks = sp_alloc(((size_t)b->n_seqs + 1) * sizeof *t->blocks);
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const int32_t end = b->seqs[i].pos0 + b->seqs[i].n_rows;
        t->blocks[i] = copy(b->seqs[i].blocks, (size_t)((end + block_tokens - 1) / block_tokens),
                            sizeof **t->blocks);
        t->seqs[i].blocks = t->blocks[i];
    }
    t->args.draws = t->draws = copy(d->draws, (size_t)d->n, sizeof *d->draws);
    t->args.tokens = t->tokens = copy(d->tokens, (size_t)d->n_tokens, sizeof *d->tokens);
    t->args.bias = t->bias = copy(d->bias, (size_t)d->n_bias, sizeof *d->bias);
    return t;
}

uint64_t sp_fake_ahead_digest(uint64_t digest, bool submitted, const sp_batch *b, int32_t n_draws) {
    const uint64_t by = UINT64_C(0x9e3779b97f4a7c15);
    digest = (digest ^ (uint64_t)submitted ^ (uint64_t)n_draws << 8) * by;
    digest = (digest ^ (uint64_t)b->n_tokens ^ (uint64_t)b->n_rows << 32) * by;
    for (int32_t i = 0; i < b->n_tokens; i++) digest = (digest ^ (uint32_t)b->ids[i]) * by;
    return digest;
}

static void feed(const sp_fake_ahead *a, int32_t *ids, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        CU_ASSERT_FATAL(ids[i] >= -a->n_slots);
        if (ids[i] < 0) ids[i] = a->last[-1 - ids[i]];
    }
}

static sp_status forward(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    sp_fake_ahead *a = ctx;
    CU_ASSERT_EQUAL_FATAL(a->n_pending, 0); /* else the logits would be another step's */
    int32_t *ids = copy(b->ids, (size_t)b->n_tokens, sizeof *b->ids);
    feed(a, ids, b->n_tokens);
    sp_batch fed = *b;
    fed.ids = ids;
    a->digest = sp_fake_ahead_digest(a->digest, false, b, 0);
    a->n_forward++;
    const sp_status st = a->null.forward(a->null.ctx, &fed, logits, err);
    sp_free(ids);
    return st;
}

static sp_status submit(void *ctx, const sp_batch *b, const sp_draw_args *d, sp_err *err) {
    sp_fake_ahead *a = ctx;
    (void)err;
    CU_ASSERT_FATAL(a->n_pending < SP_STAGE_AHEAD);
    CU_ASSERT_FATAL(d->n <= a->n_slots);
    a->n_deep += a->n_pending > 0;
    a->steps[a->n_pending++] = keep(b, d, a->block_tokens);
    a->digest = sp_fake_ahead_digest(a->digest, true, b, d->n);
    a->n_submitted++;
    return SP_OK;
}

static sp_status finish(void *ctx, int64_t deadline_ns, const sp_drawn **drawn, sp_err *err) {
    sp_fake_ahead *a = ctx;
    const float *logits;
    CU_ASSERT_FATAL(a->n_pending > 0);
    if (a->n_waits > 0 && deadline_ns != INT64_MAX) {
        a->n_waits--;
        return SP_AGAIN;
    }
    if (a->fail_at == a->n_finished + 1) return SP_FAIL(err, SP_E_DEVICE, "the test wants it");
    sp_fake_ahead_step *t = a->steps[0];
    feed(a, t->ids, t->batch.n_tokens);
    SP_TRY(a->null.forward(a->null.ctx, &t->batch, &logits, err));
    t->args.logits = logits;
    t->args.ld = t->args.V = a->n_vocab;
    t->args.last = a->last;
    t->args.drawn = a->drawn[a->turn];
    sp_fake_draw(a->sampler, &t->args);
    *drawn = a->drawn[a->turn];
    a->turn = (a->turn + 1) % (SP_STAGE_AHEAD + 1);
    free_step(t);
    memmove(a->steps, a->steps + 1, (SP_STAGE_AHEAD - 1) * sizeof a->steps[0]);
    a->n_pending--;
    a->n_finished++;
    return SP_OK;
}

static void rest(void *ctx) {
    ((sp_fake_ahead *)ctx)->n_rests++;
}

static void times(void *ctx, sp_wire_times *out) {
    const sp_fake_ahead *a = ctx;
    const uint64_t n = a->keeps_time ? (uint64_t)a->n_finished : 0;
    *out = (sp_wire_times){n * 1000000, n * 250000};
}

void sp_fake_ahead_init(sp_fake_ahead *a, const sp_stage_model *null, const sp_wire_ready *offer) {
    const size_t n = (size_t)offer->max_num_seqs;
    *a = (sp_fake_ahead){.null = *null,
                         .n_vocab = offer->n_vocab,
                         .n_slots = offer->max_num_seqs,
                         .block_tokens = offer->block_tokens};
    a->sampler = sp_sampler_create(offer->n_vocab);
    a->last = sp_alloc(n * sizeof *a->last);
    for (int i = 0; i <= SP_STAGE_AHEAD; i++) a->drawn[i] = sp_alloc(n * sizeof *a->drawn[i]);
}

void sp_fake_ahead_fini(sp_fake_ahead *a) {
    for (int i = 0; i < a->n_pending; i++) free_step(a->steps[i]);
    for (int i = 0; i <= SP_STAGE_AHEAD; i++) sp_free(a->drawn[i]);
    sp_free(a->last);
    sp_sampler_destroy(a->sampler);
}

sp_stage_model sp_fake_ahead_callbacks(sp_fake_ahead *a) {
    return (sp_stage_model){.forward = forward,
                            .submit = submit,
                            .finish = finish,
                            .rest = rest,
                            .times = times,
                            .ctx = a};
}
