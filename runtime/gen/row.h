/* runtime/gen/row.h - what the sampler asks of one row of logits.
 *
 * A row is scanned once; the maximum of every SP_ROW_BLOCK neighbours is kept, and all later
 * questions skip the blocks that cannot matter. Skipping never changes a bit of an answer: what is
 * skipped would have compared as too small or added +0.
 * "Before" is everywhere: larger logit first, then lower id.
 *
 * Thread: any; a row and its block maxima belong to one thread at a time. */
#pragma once

#include "runtime/gen/sampler.h"

#define SP_ROW_BLOCK 64
#define SP_ROW_BLOCKS(n) (((n) + SP_ROW_BLOCK - 1) / SP_ROW_BLOCK)

typedef struct sp_row {
    const float *logits; /* borrowed */
    int32_t n;
    float max; /* of all but NaN; -inf when there is nothing else */
    bool has_nan;
    const float *block_max; /* [SP_ROW_BLOCKS(n)], borrowed */
} sp_row;

/** Reads the row once and writes `block_max`. */
sp_row sp_row_scan(const float *logits, int32_t n, float *block_max);
/** A broken forward pass: a NaN, +inf, or nothing above -inf. The functions below want a sound row. */
bool sp_row_is_sound(const sp_row *r);
int32_t sp_row_argmax(const sp_row *r);
/** Sum of e^((logit - max) / temperature) over the logits that are at least `least`, in the order of
 * sampler.h: 8 segments, 16 lanes, the lane tree, the segment tree; f32. */
float sp_row_mass(const sp_row *r, float temperature, float least);
/** 1 + the number of tokens before `id`. */
int32_t sp_row_rank(const sp_row *r, int32_t id);
/** The first `n` <= SP_LOGPROBS_MAX tokens in order, with their logits in `logprob`; how many. */
int32_t sp_row_top(const sp_row *r, int32_t n, sp_top_logprob *out);
