#include "runtime/engine/null_model.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <string.h>
#include <time.h>

struct sp_null_model {
    sp_null_model_config config;
    uint64_t *slots; /* [n_blocks, block_tokens] */
    float *logits;   /* [max_step_rows, n_vocab] */
};

/* Source: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

uint64_t sp_null_model_hash(int32_t token, int32_t position) {
    return mix((uint64_t)(uint32_t)position << 32 | (uint32_t)token);
}

uint64_t sp_null_model_state(uint64_t sum) {
    return mix(sum);
}

/* About normal in spread, so that samplers have something to choose from: -4..4. */
void sp_null_model_row(uint64_t state, float *logits, int32_t n_vocab) {
    for (int32_t v = 0; v < n_vocab; v++) {
        uint64_t u = mix(state ^ ((uint64_t)(uint32_t)v << 20));
        logits[v] = (float)(int32_t)(u >> 44) * (8.0f / 1048576.0f) - 4.0f;
    }
}

void sp_null_model_logits(const int32_t *tokens, int32_t n, float *logits, int32_t n_vocab) {
    uint64_t state = 0;
    for (int32_t p = 0; p < n; p++) state += sp_null_model_hash(tokens[p], p);
    sp_null_model_row(mix(state), logits, n_vocab);
}

static uint64_t *slot_of(const sp_null_model *m, const sp_seq_rows *q, int32_t position) {
    int32_t B = m->config.block_tokens;
    return &m->slots[(size_t)q->blocks[position / B] * (size_t)B + (size_t)(position % B)];
}

/* What "attention" sees from a position: everything up to it, through the table. */
static uint64_t look_back(const sp_null_model *m, const sp_seq_rows *q, int32_t position) {
    uint64_t state = 0;
    for (int32_t p = 0; p <= position; p++) state += *slot_of(m, q, p);
    return state;
}

static void wait_until(int64_t ns) {
    struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) continue;
}

static sp_status forward(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    sp_null_model *m = ctx;
    int64_t until = m->config.step_ns ? sp_now_ns() + m->config.step_ns : 0;
    if (b->n_rows > m->config.max_step_rows)
        return SP_FAIL(err, SP_E_INTERNAL, "%d rows of logits, room for %d", b->n_rows,
                       m->config.max_step_rows);
    for (int32_t s = 0; s < b->n_seqs; s++)
        for (int32_t r = 0; r < b->seqs[s].n_rows; r++) {
            int32_t position = b->seqs[s].pos0 + r;
            *slot_of(m, &b->seqs[s], position) =
                sp_null_model_hash(b->ids[b->seqs[s].row0 + r], position);
        }
    for (int32_t i = 0, s = 0; i < b->n_rows; i++) {
        while (b->rows[i] >= b->seqs[s].row0 + b->seqs[s].n_rows) s++;
        int32_t position = b->seqs[s].pos0 + b->rows[i] - b->seqs[s].row0;
        sp_null_model_row(mix(look_back(m, &b->seqs[s], position)),
                          m->logits + (size_t)i * (size_t)m->config.n_vocab, m->config.n_vocab);
    }
    *logits = m->logits;
    if (until) wait_until(until);
    return SP_OK;
}

sp_status sp_null_model_create(sp_null_model **out, const sp_null_model_config *config,
                               sp_err *err) {
    sp_null_model *m = sp_alloc(sizeof *m);
    m->config = *config;
    m->slots = sp_try_alloc_array((size_t)config->n_blocks,
                                  (size_t)config->block_tokens * sizeof *m->slots);
    m->logits = sp_try_alloc_array((size_t)config->max_step_rows,
                                   (size_t)config->n_vocab * sizeof *m->logits);
    if (!m->slots || !m->logits) {
        sp_null_model_destroy(m);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for %d blocks of hashes", config->n_blocks);
    }
    *out = m;
    return SP_OK;
}

void sp_null_model_destroy(sp_null_model *m) {
    if (!m) return;
    sp_free(m->logits);
    sp_free(m->slots);
    sp_free(m);
}

sp_stage_model sp_null_model_callbacks(sp_null_model *m) {
    return (sp_stage_model){.forward = forward, .ctx = m};
}

uint64_t *sp_null_model_block(sp_null_model *m, int32_t block) {
    SP_ASSERT(block >= 0 && block < m->config.n_blocks);
    return &m->slots[(size_t)block * (size_t)m->config.block_tokens];
}
