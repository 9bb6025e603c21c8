/* runtime/gen/params.h - how the tokens of one request are chosen and when they end.
 *
 * A plain struct: told by the front end, checked by it, carried to the rank as it is.
 * Defaults are SP_GEN_PARAMS_DEFAULT. The order in which these act is the one in sampler.h.
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_LOGPROBS_MAX 20
#define SP_STOP_IDS_MAX 64
#define SP_LOGIT_BIAS_MAX 1024
#define SP_ALLOWED_IDS_MAX 4096
#define SP_BAD_WORDS_TOKENS_MAX 1024
#define SP_N_MAX 128

typedef struct sp_logit_bias {
    int32_t id;
    float bias; /* -100..100 */
} sp_logit_bias;

typedef struct sp_gen_params {
    float temperature;        /* 0 (below 1e-5): greedy */
    float top_p;              /* (0,1]; 1 off */
    float min_p;              /* [0,1]; 0 off */
    int32_t top_k;            /* 0 off */
    float repetition_penalty; /* > 0; 1 off; over prompt and output */
    float presence_penalty;   /* [-2,2]; over output */
    float frequency_penalty;  /* [-2,2]; over output */
    uint64_t seed;            /* always set: the head draws one when the request has none */
    int32_t n;                /* choices, 1..SP_N_MAX */
    int32_t max_tokens;       /* >= 0; 0 only with prompt logprobs or echo */
    int32_t min_tokens;       /* stops are held back until then */
    bool ignore_eos;
    int32_t n_logprobs;        /* -1 none; 0 the sampled token only; up to SP_LOGPROBS_MAX more */
    int32_t n_prompt_logprobs; /* the same for prompt positions; -1 none */
    bool all_logits;           /* every position's logits come back (inspect logits) */

    /* Owned by the request (its arena) for as long as it lives. */
    const int32_t *stop_ids; /* beside the model's own EOS ids */
    int32_t n_stop_ids;
    const sp_logit_bias *logit_bias;
    int32_t n_logit_bias;
    const int32_t *allowed_ids; /* NULL: all */
    int32_t n_allowed_ids;
    /* Banned token runs, each: count, ids...; a run bans its last id when the output ends with the
     * ids before it. */
    const int32_t *bad_words;
    int32_t n_bad_words_ints;
} sp_gen_params;

#define SP_GEN_PARAMS_DEFAULT \
    ((sp_gen_params){.temperature = 1.0f, \
                     .top_p = 1.0f, \
                     .repetition_penalty = 1.0f, \
                     .n = 1, \
                     .max_tokens = 16, \
                     .n_logprobs = -1, \
                     .n_prompt_logprobs = -1})
