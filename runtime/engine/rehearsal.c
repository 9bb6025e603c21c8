#include "runtime/engine/rehearsal.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/null_model.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* Floats at the head of a row of activations: the hash, and the sum of the stage before. */
#define HASH_AT 0
#define SUM_AT 2
#define ROW_MIN 4
/* What a rank tells of a row in the gather: its sum. */
#define TOLD_FLOATS 2

struct sp_rehearsal {
    sp_rehearsal_config config;
    int tp, tp_rank;
    bool first, last;
    uint64_t *slots;  /* [n_blocks, block_tokens] hashes */
    float *x;         /* [max_batched_tokens, E] */
    float *partial;   /* [max_batched_tokens, E] zeros, which sums leave as they are */
    int32_t *owner;   /* [max_batched_tokens] who holds the token's row of the embedding */
    uint64_t *sums;   /* [max_step_rows] */
    float *told;      /* [max_step_rows, 2] */
    float *told_all;  /* [max_step_rows, 2 tp] at TP rank 0 of the last stage */
    int32_t *columns; /* [tp] */
};

static uint64_t get64(const float *at) {
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

static void put64(float *at, uint64_t v) {
    memcpy(at, &v, sizeof v);
}

static float *row_of(const sp_rehearsal *r, int32_t i) {
    return r->x + (size_t)i * (size_t)r->config.hidden;
}

static uint64_t *slot_of(const sp_rehearsal *r, const sp_seq_rows *q, int32_t position) {
    int32_t B = r->config.block_tokens;
    return &r->slots[(size_t)q->blocks[position / B] * (size_t)B + (size_t)(position % B)];
}

/* ---- creation ---- */

static sp_status check_config(const sp_rehearsal_config *c, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, min, max;
    } rows[] = {
        {"hidden", c->hidden, ROW_MIN, 1 << 20},
        {"n_layers", c->n_layers, 0, 1 << 16},
        {"n_vocab", c->n_vocab, 1, 1 << 24},
        {"token_lo", c->token_lo, 0, c->n_vocab - 1},
        {"token_hi", c->token_hi, c->token_lo, c->n_vocab - 1},
        {"n_blocks", c->n_blocks, 1, 1 << 26},
        {"block_tokens", c->block_tokens, 1, 4096},
        {"max_batched_tokens", c->max_batched_tokens, 1, 1 << 20},
        {"max_step_rows", c->max_step_rows, 1, 1 << 20},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %d, want %d..%d", rows[i].name,
                           rows[i].value, rows[i].min, rows[i].max);
    return SP_OK;
}

static sp_status take_memory(sp_rehearsal *r, sp_err *err) {
    const sp_rehearsal_config *c = &r->config;
    size_t T = (size_t)c->max_batched_tokens, R = (size_t)c->max_step_rows, tp = (size_t)r->tp;
    size_t row = (size_t)c->hidden * sizeof(float);
    r->slots = sp_try_alloc_array((size_t)c->n_blocks, (size_t)c->block_tokens * sizeof *r->slots);
    r->x = sp_try_alloc_array(T, row);
    r->partial = sp_try_alloc_array(T, row);
    r->owner = sp_try_alloc_array(T, sizeof *r->owner);
    r->sums = sp_try_alloc_array(R, sizeof *r->sums);
    r->told = sp_try_alloc_array(R, TOLD_FLOATS * sizeof *r->told);
    r->told_all = sp_try_alloc_array(R, TOLD_FLOATS * tp * sizeof *r->told_all);
    r->columns = sp_try_alloc_array(tp, sizeof *r->columns);
    if (!r->slots || !r->x || !r->partial || !r->owner || !r->sums || !r->told || !r->told_all ||
        !r->columns)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for steps of %zu tokens of %d", T, c->hidden);
    for (size_t i = 0; i < tp; i++) r->columns[i] = TOLD_FLOATS;
    return SP_OK;
}

sp_status sp_rehearsal_create(sp_rehearsal **out, const sp_rehearsal_config *config, sp_err *err) {
    SP_TRY(check_config(config, err));
    sp_rehearsal *r = sp_alloc(sizeof *r);
    r->config = *config;
    r->tp = config->tp ? config->tp->n : 1;
    r->tp_rank = config->tp ? config->tp->me : 0;
    r->first = !config->pp || config->pp->me == 0;
    r->last = !config->pp || config->pp->me == config->pp->n - 1;
    sp_status st = take_memory(r, err);
    if (st != SP_OK) {
        sp_rehearsal_destroy(r);
        return st;
    }
    *out = r;
    return SP_OK;
}

void sp_rehearsal_destroy(sp_rehearsal *r) {
    if (!r) return;
    sp_free(r->columns);
    sp_free(r->told_all);
    sp_free(r->told);
    sp_free(r->sums);
    sp_free(r->owner);
    sp_free(r->partial);
    sp_free(r->x);
    sp_free(r->slots);
    sp_free(r);
}

/* ---- a step ---- */

/* A vocabulary split evenly over the ranks. Ids of others are whatever: only owners look at theirs. */
static void embed(sp_rehearsal *r, const sp_batch *b) {
    int32_t part = (r->config.n_vocab + r->tp - 1) / r->tp;
    for (int32_t s = 0; s < b->n_seqs; s++)
        for (int32_t i = 0; i < b->seqs[s].n_rows; i++) {
            int32_t at = b->seqs[s].row0 + i, id = b->ids[at];
            r->owner[at] = id / part;
            bool mine = r->owner[at] == r->tp_rank;
            put64(row_of(r, at) + HASH_AT, mine ? sp_null_model_hash(id, b->seqs[s].pos0 + i) : 0);
        }
    if (r->config.tp)
        r->config.tp->ops->pick_rows(r->config.tp, r->x, (size_t)b->n_tokens,
                                     (size_t)r->config.hidden, r->owner);
}

static void run_layers(sp_rehearsal *r, const sp_batch *b) {
    sp_group *g = r->config.tp;
    size_t n = (size_t)b->n_tokens * (size_t)r->config.hidden;
    for (int32_t l = 0; g && l < 2 * r->config.n_layers; l++) {
        if (l == 2 * r->config.n_layers - 1) r->partial[0] = r->partial[n - 1] = 1;
        g->ops->all_reduce(g, r->partial, n);
    }
}

/* The last sum was over ones: each rank took part in each, in the same order. */
static sp_status check_layers(sp_rehearsal *r, const sp_batch *b, sp_err *err) {
    if (!r->config.tp || r->config.n_layers == 0) return SP_OK;
    size_t n = (size_t)b->n_tokens * (size_t)r->config.hidden;
    float got[] = {r->partial[0], r->partial[n - 1]}, want = (float)r->tp;
    r->partial[0] = r->partial[n - 1] = 0;
    if (got[0] == want && got[1] == want) return SP_OK;
    return SP_FAIL(err, SP_E_INTERNAL, "a sum over the group is %g and %g, want %g", (double)got[0],
                   (double)got[1], (double)want);
}

/* Keys and values of the step, as it were; then what attention would see from each wanted row. */
static void attend(sp_rehearsal *r, const sp_batch *b) {
    for (int32_t s = 0; s < b->n_seqs; s++)
        for (int32_t i = 0; i < b->seqs[s].n_rows; i++)
            *slot_of(r, &b->seqs[s], b->seqs[s].pos0 + i) =
                get64(row_of(r, b->seqs[s].row0 + i) + HASH_AT);
    for (int32_t k = 0, s = 0; k < b->n_rows; k++) {
        while (b->rows[k] >= b->seqs[s].row0 + b->seqs[s].n_rows) s++;
        int32_t position = b->seqs[s].pos0 + b->rows[k] - b->seqs[s].row0;
        float *before = row_of(r, b->rows[k]) + SUM_AT;
        uint64_t sum = 0;
        for (int32_t p = 0; p <= position; p++) sum += *slot_of(r, &b->seqs[s], p);
        if (!r->first && sum != get64(before)) sum = sp_null_model_state(sum ^ ~get64(before));
        put64(before, sum);
        r->sums[k] = sum;
    }
}

/* At the last stage: rank 0 compares what all have seen. */
static void gather(sp_rehearsal *r, const sp_batch *b) {
    sp_group *g = r->config.tp;
    if (!g || b->n_rows == 0) return;
    for (int32_t k = 0; k < b->n_rows; k++) put64(r->told + TOLD_FLOATS * k, r->sums[k]);
    g->ops->gather_cols(g, 0, r->told, r->tp_rank == 0 ? r->told_all : NULL, (size_t)b->n_rows,
                        r->columns);
    if (r->tp_rank != 0) return;
    for (int32_t k = 0; k < b->n_rows; k++)
        for (int i = 0; i < r->tp; i++) {
            uint64_t theirs =
                get64(r->told_all + (size_t)TOLD_FLOATS * ((size_t)k * (size_t)r->tp + (size_t)i));
            if (theirs != r->sums[k]) r->sums[k] = sp_null_model_state(r->sums[k] ^ ~theirs);
        }
}

static sp_status settle(sp_group *g, sp_err *err) {
    return g ? g->ops->poll(g, SP_NEVER, err) : SP_OK;
}

static void wait_until(int64_t ns) {
    struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) continue;
}

static sp_status forward(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    sp_rehearsal *r = ctx;
    sp_group *pp = r->config.pp;
    size_t bytes = (size_t)b->n_tokens * (size_t)r->config.hidden * sizeof(float);
    int64_t until = r->config.step_ns ? sp_now_ns() + r->config.step_ns : 0;
    if (b->n_tokens > r->config.max_batched_tokens || b->n_rows > r->config.max_step_rows)
        return SP_FAIL(err, SP_E_INTERNAL, "%d tokens and %d rows, room for %d and %d", b->n_tokens,
                       b->n_rows, r->config.max_batched_tokens, r->config.max_step_rows);
    if (r->first)
        embed(r, b);
    else
        pp->ops->recv(pp, pp->me - 1, r->x, bytes);
    run_layers(r, b);
    SP_TRY(settle(pp, err));
    SP_TRY(settle(r->config.tp, err));
    SP_TRY(check_layers(r, b, err));
    attend(r, b);
    if (until) wait_until(until);
    if (r->last)
        gather(r, b);
    else
        pp->ops->send(pp, pp->me + 1, r->x, bytes);
    SP_TRY(settle(r->config.tp, err));
    SP_TRY(settle(pp, err));
    *logits = NULL;
    return SP_OK;
}

/* ---- what comes out ---- */

static int32_t token_of(uint64_t state, int32_t lo, int32_t hi) {
    return lo + (int32_t)((state >> 8) % (uint64_t)(hi - lo + 1));
}

static int32_t token(void *ctx, int32_t row) {
    const sp_rehearsal *r = ctx;
    return token_of(sp_rehearsal_state(r, row), r->config.token_lo, r->config.token_hi);
}

uint64_t sp_rehearsal_state(const sp_rehearsal *r, int32_t row) {
    return sp_null_model_state(r->sums[row]);
}

int32_t sp_rehearsal_token(const int32_t *tokens, int32_t n, int32_t token_lo, int32_t token_hi) {
    uint64_t sum = 0;
    for (int32_t p = 0; p < n; p++) sum += sp_null_model_hash(tokens[p], p);
    return token_of(sp_null_model_state(sum), token_lo, token_hi);
}

sp_stage_model sp_rehearsal_callbacks(sp_rehearsal *r) {
    return (sp_stage_model){.forward = forward, .token = token, .ctx = r};
}
