/* tests/kernels/cuda/draw_env.h - a batch of draws, told to the host's sampler and to the device.
 *
 * Included by test_draw.c. A want holds the parameters as the host's sampler takes them; batch_add()
 * says the same as an sp_draw: banned ids as a bias of -inf, tokens and biases as spans. */
#pragma once

#include "kernels/cuda/cuda_dev.h"
#include "kernels/math.h"
#include "runtime/base/clock.h"
#include "runtime/gen/philox.h"
#include "runtime/gen/sampler.h"
#include "tests/kernels/cuda/rows_env.h"

#include <float.h>

#define HISTORY 60
#define LISTED 40

typedef struct want {
    sp_gen_params p;
    int32_t row, slot, choice, position;
    int32_t prompt[HISTORY], n_prompt, output[HISTORY], n_output;
    int32_t allowed[LISTED], banned[2 * LISTED]; /* runs of one */
    sp_logit_bias bias[LISTED];
} want;

static UNUSED want want_greedy(int32_t row) {
    want w = {.p = SP_GEN_PARAMS_DEFAULT, .row = row, .slot = -1};
    w.p.temperature = 0;
    return w;
}

#define DRAWS 140
#define SLOTS (2 * DRAWS)
#define LAST_BEFORE 77

typedef struct batch {
    float *logits; /* [R, ld]; owned */
    int32_t R, ld, V, n;
    want wants[DRAWS];
    sp_draw draws[DRAWS];
    int32_t tokens[DRAWS * (2 * HISTORY + LISTED)], n_tokens;
    sp_draw_bias bias[DRAWS * 2 * LISTED];
    int32_t n_bias;
    int32_t last[SLOTS];
    sp_drawn drawn[DRAWS];
} batch;

/* Owner: caller, batch_free(). */
static UNUSED batch *batch_new(int32_t R, int32_t V, int32_t gap) {
    batch *b = calloc(1, sizeof *b);
    b->R = R;
    b->V = V;
    b->ld = V + gap;
    b->logits = malloc((size_t)R * (size_t)b->ld * sizeof *b->logits);
    /* What lies between rows must not be looked at. */
    for (size_t i = 0; i < (size_t)R * (size_t)b->ld; i++) b->logits[i] = NAN;
    return b;
}
static UNUSED void batch_free(batch *b) {
    free(b->logits);
    free(b);
}
static UNUSED float *batch_row(batch *b, int32_t row) {
    return b->logits + (size_t)row * (size_t)b->ld;
}

static int32_t add_tokens(batch *b, const int32_t *ids, int32_t n) {
    const int32_t at = b->n_tokens;
    memcpy(b->tokens + at, ids, (size_t)n * sizeof *ids);
    b->n_tokens += n;
    return at;
}

static UNUSED want *batch_add(batch *b, const want *from) {
    want *w = &b->wants[b->n];
    sp_draw *d = &b->draws[b->n++];
    *w = *from;
    w->p.allowed_ids = w->p.allowed_ids ? w->allowed : NULL;
    w->p.bad_words = w->banned;
    w->p.logit_bias = w->bias;
    *d = (sp_draw){.row = w->row,
                   .slot = w->slot,
                   .temperature = w->p.temperature,
                   .top_p = w->p.top_p,
                   .min_p = w->p.min_p,
                   .repetition_penalty = w->p.repetition_penalty,
                   .presence_penalty = w->p.presence_penalty,
                   .frequency_penalty = w->p.frequency_penalty,
                   .top_k = w->p.top_k,
                   .choice = w->choice,
                   .position = w->position,
                   .seed = w->p.seed,
                   .n_logprobs = w->p.n_logprobs,
                   .n_prompt = w->n_prompt,
                   .n_output = w->n_output,
                   .bias0 = b->n_bias,
                   .n_allowed = w->p.allowed_ids ? w->p.n_allowed_ids : -1};
    d->prompt0 = add_tokens(b, w->prompt, w->n_prompt);
    d->output0 = add_tokens(b, w->output, w->n_output);
    d->allowed0 = add_tokens(b, w->allowed, w->p.n_allowed_ids);
    for (int32_t i = 0; i < w->p.n_logit_bias; i++)
        b->bias[b->n_bias++] = (sp_draw_bias){w->bias[i].id, w->bias[i].bias};
    for (int32_t i = 0; i < w->p.n_bad_words_ints; i += 2)
        b->bias[b->n_bias++] = (sp_draw_bias){w->banned[i + 1], -INFINITY};
    d->n_bias = b->n_bias - d->bias0;
    return w;
}

/* What the device answers, into b->drawn and b->last. */
static UNUSED void batch_run(batch *b) {
    sp_drawn *drawn = upload(NULL, DRAWS * sizeof *drawn);
    for (int i = 0; i < SLOTS; i++) b->last[i] = LAST_BEFORE;
    int32_t *last = upload(b->last, sizeof b->last);
    CUDA_OK(cudaMemset(drawn, 0xa5, DRAWS * sizeof *drawn));
    const size_t n_scratch = cu_draw_scratch(b->n, b->V);
    void *scratch = upload(NULL, n_scratch);
    CUDA_OK(cudaMemset(scratch, 0x5a, n_scratch));
    const sp_draw_args a = {
        .logits = upload_floats(b->logits, (size_t)b->R * (size_t)b->ld),
        .ld = b->ld,
        .V = b->V,
        .n = b->n,
        .draws = upload(b->draws, (size_t)b->n * sizeof *b->draws),
        .tokens = upload(b->tokens, (size_t)b->n_tokens * sizeof *b->tokens),
        .n_tokens = b->n_tokens,
        .bias = upload(b->bias, (size_t)b->n_bias * sizeof *b->bias),
        .n_bias = b->n_bias,
        .last = last,
        .drawn = drawn,
    };
    CUDA_OK(cu_draw(NULL, &a, scratch));
    CUDA_OK(cudaMemcpy(b->drawn, drawn, DRAWS * sizeof *drawn, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(b->last, last, sizeof b->last, cudaMemcpyDeviceToHost));
}

/* ---- the host's word ---- */

static UNUSED sp_drawn host_says(const batch *b, const want *w) {
    const sp_sample_input in = {.logits = b->logits + (size_t)w->row * (size_t)b->ld,
                                .n_vocab = b->V,
                                .params = &w->p,
                                .prompt = w->prompt,
                                .n_prompt = w->n_prompt,
                                .output = w->output,
                                .n_output = w->n_output,
                                .choice = w->choice,
                                .position = w->position};
    sp_drawn d = {.id = -1};
    sp_sample out;
    sp_sampler *s = sp_sampler_create(b->V);
    const sp_status st = sp_sampler_draw(s, &in, &out);
    sp_sampler_destroy(s);
    d.rank = st == SP_E_INVALID;
    if (st != SP_OK) return d;
    d = (sp_drawn){out.id, out.logprob, out.rank, out.n_top, {0}, {0}};
    for (int32_t i = 0; i < out.n_top; i++) {
        d.top_id[i] = out.top[i].id;
        d.top_logprob[i] = out.top[i].logprob;
    }
    return d;
}

static void print_want(const batch *b, const want *w, const sp_drawn *got, const sp_drawn *host) {
    printf("V %d T %g top_k %d top_p %g min_p %g rep %g freq %g pres %g history %d+%d bias %d "
           "banned %d allowed %d logprobs %d: id %d rank %d %a, host %d rank %d %a (%s)\n",
           b->V, (double)w->p.temperature, w->p.top_k, (double)w->p.top_p, (double)w->p.min_p,
           (double)w->p.repetition_penalty, (double)w->p.frequency_penalty,
           (double)w->p.presence_penalty, w->n_prompt, w->n_output, w->p.n_logit_bias,
           w->p.n_bad_words_ints / 2, w->p.allowed_ids ? w->p.n_allowed_ids : -1, w->p.n_logprobs,
           got->id, got->rank, (double)got->logprob, host->id, host->rank, (double)host->logprob,
           cu_emu_last_report());
}

/* Every byte of every answer, and nothing written beside them. */
static UNUSED bool batch_agrees(const batch *b) {
    bool ok = true;
    int32_t last[SLOTS];
    for (int i = 0; i < SLOTS; i++) last[i] = LAST_BEFORE;
    for (int32_t i = 0; i < b->n; i++) {
        const sp_drawn host = host_says(b, &b->wants[i]);
        if (b->wants[i].slot >= 0) last[b->wants[i].slot] = host.id < 0 ? 0 : host.id;
        if (memcmp(&host, &b->drawn[i], sizeof host) == 0) continue;
        if (ok) print_want(b, &b->wants[i], &b->drawn[i], &host);
        ok = false;
    }
    const unsigned char *beyond = (const unsigned char *)&b->drawn[b->n];
    for (size_t i = 0; i < (size_t)(DRAWS - b->n) * sizeof b->drawn[0]; i++)
        ok &= beyond[i] == 0xa5;
    return ok && memcmp(last, b->last, sizeof last) == 0;
}

/* Runs it and compares; how many drew a token is returned. */
static UNUSED int32_t batch_check(batch *b) {
    int32_t drew = 0;
    batch_run(b);
    CU_ASSERT(batch_agrees(b));
    for (int32_t i = 0; i < b->n; i++) drew += b->drawn[i].id >= 0;
    return drew;
}
