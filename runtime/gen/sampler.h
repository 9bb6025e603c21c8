/* runtime/gen/sampler.h - from one row of logits to one token, the same for ever.
 *
 * A draw is a pure function of (logits row, parameters, prompt and output tokens, choice, position):
 * no state is carried from token to token, so a replay after a fault draws the same token.
 * Order: report logprobs from the untouched row; allowed ids; bad words; min_tokens (EOS and stop
 * ids to -inf) and logit bias; repetition, frequency, presence penalty; greedy, or temperature,
 * min_p, top_k (ties with the k-th survive), top_p (the largest always survives), Gumbel-max.
 * Ties: the lowest id. Sorts: (logit descending, id ascending).
 * Log-sum-exp: global maximum, then 8 fixed segments of the vocabulary (edge i = floor(i*V/8)), each
 * 16 lanes by (id - segment start) mod 16 and the lane tree, then the segment tree.
 * The draw: argmax of logit/T + Gumbel(Philox4x32-10(key = seed, counter = (choice, position,
 * token id))) over the survivors. Only kernels/math.h functions.
 *
 * Source: Philox: Salmon et al., SC 2011. Gumbel-max: Maddison et al., NIPS 2014.
 * Thread: any; scratch belongs to one thread at a time. */
#pragma once

#include "runtime/gen/params.h"

typedef struct sp_top_logprob {
    int32_t id;
    float logprob;
} sp_top_logprob;

typedef struct sp_sample {
    int32_t id;
    float logprob;                       /* of id, raw; valid when params.n_logprobs >= 0 */
    int32_t rank;                        /* 1 = most likely; valid with logprobs */
    int32_t n_top;                       /* entries of top */
    sp_top_logprob top[SP_LOGPROBS_MAX]; /* most likely first */
} sp_sample;

/** What a draw looks at. Everything is borrowed for the call. */
typedef struct sp_sample_input {
    const float *logits; /* [n_vocab], padding excluded */
    int32_t n_vocab;
    const sp_gen_params *params;
    const int32_t *prompt;
    int32_t n_prompt;
    const int32_t *output; /* tokens accepted so far */
    int32_t n_output;
    const int32_t *eos_ids; /* of the model */
    int32_t n_eos_ids;
    int32_t choice;   /* 0..n-1 */
    int32_t position; /* absolute position of the token to draw */
} sp_sample_input;

typedef struct sp_sampler sp_sampler; /* scratch for one vocabulary */
sp_sampler *sp_sampler_create(int32_t n_vocab);
void sp_sampler_destroy(sp_sampler *s);

/** Draws one token. A row of nothing but -inf or NaN gives SP_E_INTERNAL. Allocates nothing. */
SP_NODISCARD sp_status sp_sampler_draw(sp_sampler *s, const sp_sample_input *in, sp_sample *out);

/** Log-probability of `id` and the `n_top` most likely, from an untouched row (prompt logprobs). */
void sp_sampler_logprobs(sp_sampler *s, const float *logits, int32_t n_vocab, int32_t id,
                         int32_t n_top, sp_sample *out);
