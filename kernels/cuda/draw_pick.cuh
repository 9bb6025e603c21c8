/* kernels/cuda/draw_pick.cuh - the random part of a draw: Philox words, Gumbel scores, one segment.
 *
 * A word with n leading ones gives a score of at most x / T + (n + 1) log 2. What that bound rules out
 * against the score of the most likely token needs no logarithm; the result has the bits of all of
 * them computed. The slack is far above all rounding errors (runtime/gen/sampler.c has the same). */
#pragma once

#include "kernels/cuda/draw_row.cuh"
#include "kernels/math_log.h"

#define DRAW_LIMITS 33
#define DRAW_LN2_ABOVE 0.69315

/* The first word of Philox4x32-10: key = seed, low word first; counter = choice, position, id, 0. */
static __device__ __forceinline__ uint32_t draw_word(const sp_draw *d, int32_t id) {
    uint32_t c0 = (uint32_t)d->choice, c1 = (uint32_t)d->position, c2 = (uint32_t)id, c3 = 0;
    uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);
    CU_UNROLL for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c0;
}

static __device__ __forceinline__ double draw_score(const sp_draw *d, float x, uint32_t word) {
    const double u = ((double)word + 0.5) * 0x1p-32;
    return (double)x / (double)d->temperature - sp_log_both(-sp_log_both(u));
}

/* The largest float below which no logit wins against `score` with a word of n leading ones. */
static __device__ float draw_limit(const sp_draw *d, double score, int32_t n) {
    const double t = (double)d->temperature;
    const double slack = (fabs(score) + 64) * t * 1e-12;
    const double x = (score - (n + 1) * DRAW_LN2_ABOVE) * t - slack;
    if (x < -(double)FLT_MAX) return -INFINITY;
    if (x >= (double)FLT_MAX) return FLT_MAX;
    const float f = (float)x;
    return (double)f > x ? -draw_float_above(-f) : f;
}

/* f64 as an integer of the same order; -0 and +0 are one. */
static __device__ __forceinline__ long long draw_rank_of(double score) {
    const long long u = __double_as_longlong(score + 0.0);
    return u < 0 ? u ^ LLONG_MAX : u;
}

/* The winner of [from, to), into `part`: the largest score, of equal ones the lowest id. The block
 * calls it together; limit: [DRAW_LIMITS], shared. */
template <int BLOCK>
static __device__ void draw_pick(draw_part *part, float *limit, const sp_draw *d, const float *row,
                                 const draw_choice *c, int32_t from, int32_t to) {
    const int32_t tid = (int32_t)threadIdx.x;
    const draw_cut cut = c->cut;
    if (tid < DRAW_LIMITS)
        limit[tid] = draw_limit(d, draw_score(d, row[c->first], draw_word(d, c->first)), tid);
    __syncthreads();
    double best = 0;
    int32_t id = -1;
    for (int32_t at = from + tid; at < to; at += DRAW_BATCH * BLOCK) {
        float x[DRAW_BATCH];
        draw_load(x, row, at, BLOCK, to);
        CU_UNROLL for (int32_t u = 0; u < DRAW_BATCH; u++) {
            const int32_t i = at + u * BLOCK;
            if (i >= to || x[u] < limit[DRAW_LIMITS - 1] || !draw_keeps(cut, x[u], i)) continue;
            const uint32_t word = draw_word(d, i);
            if (x[u] < limit[word == UINT_MAX ? 32 : __clz((int)~word)]) continue;
            const double score = draw_score(d, x[u], word);
            if (id >= 0 && !(score > best)) continue; /* ids ascend: the lowest of equals stays */
            best = score;
            id = i;
        }
    }
    const long long mine = id >= 0 ? draw_rank_of(best) : LLONG_MIN;
    const long long most = cu_block_max(mine);
    const long long lowest = cu_block_max(id >= 0 && mine == most ? (long long)-id : LLONG_MIN);
    if (id >= 0 && -(long long)id == lowest) {
        part->id = id;
        part->score = best;
    }
    if (tid == 0 && lowest == LLONG_MIN) part->id = -1;
}

/* ---- the most likely tokens ---- */

static __device__ long long draw_next_place(const float *row, int32_t from, int32_t to,
                                            long long below) {
    long long best = DRAW_NOWHERE;
    for (int32_t i = from + (int32_t)threadIdx.x; i < to; i += (int32_t)blockDim.x) {
        const long long p = draw_place(row[i], i);
        if (p < below && p > best) best = p;
    }
    return best;
}

/* The first n places of [from, to): the thread whose place was taken looks for its next one. */
static __device__ void draw_top(draw_part *part, const float *row, int32_t from, int32_t to,
                                int32_t n) {
    long long mine = draw_next_place(row, from, to, LLONG_MAX);
    for (int32_t k = 0; k < n; k++) {
        const long long first = cu_block_max(mine);
        if (threadIdx.x == 0) part->top[k] = first;
        if (first != DRAW_NOWHERE && first == mine) mine = draw_next_place(row, from, to, mine);
    }
}
