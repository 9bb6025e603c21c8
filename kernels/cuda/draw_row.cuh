/* kernels/cuda/draw_row.cuh - what the kernels of a draw leave for one another, and their order.
 *
 * A place is (logit, id) as one number: a larger one is earlier in the sampler's order, larger logit
 * first, then lower id. -0 and +0 are one logit. A maximum of places is therefore the same whatever
 * threads came first, and needs no rule for ties beside it. A NaN has no place. */
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.cuh"

#include <float.h>
#include <limits.h>

#define DRAW_PARTS SP_SEGMENTS /* a row's segments are its blocks too */
#define DRAW_NOWHERE LLONG_MIN /* no place: below all */
#define DRAW_GREEDY_BELOW 1e-5f

/* One segment of one row: written by its block, read by the kernels that follow. */
typedef struct draw_part {
    long long raw_first, first;     /* places; `first`: after the edits */
    int32_t raw_bad, bad;           /* there is a NaN */
    float mass;                     /* of the untouched segment, for the report */
    int32_t id;                     /* the segment's winner, -1: none */
    double score;                   /* its score */
    long long top[SP_DRAW_TOP_MAX]; /* most likely first, then DRAW_NOWHERE */
} draw_part;

typedef enum draw_state {
    DRAW_BROKEN, /* the row itself: a NaN, +inf, nothing above -inf */
    DRAW_EMPTY,  /* the request's own masks left nothing */
    DRAW_SOUND,
} draw_state;

/* What survives in a row: the last survivor in order. */
typedef struct draw_cut {
    float logit;
    int32_t id; /* INT32_MAX: all of that logit */
} draw_cut;

typedef struct draw_choice {
    int32_t state; /* draw_state */
    float raw_max, max;
    int32_t first; /* the most likely id after the edits */
    draw_cut cut;
} draw_choice;

typedef struct draw_job {
    const float *logits;
    int32_t ld, V;
    const sp_draw *draws;
    const int32_t *tokens;
    const sp_draw_bias *bias;
    int32_t *last;
    sp_drawn *drawn;
    draw_part *parts;     /* [n][DRAW_PARTS] */
    draw_choice *choices; /* [n] */
    float *edited;        /* [n][V]; rows of draws without edits stay untouched */
    uint32_t *counts;     /* [n][V]; likewise without penalties */
} draw_job;

static __device__ __forceinline__ uint32_t draw_key(float x) {
    const uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f)); /* -0 becomes +0 */
    return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}
static __device__ __forceinline__ float draw_logit_of_key(uint32_t key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}
static __device__ __forceinline__ long long draw_place(float x, int32_t id) {
    return (long long)((uint64_t)(draw_key(x) ^ 0x80000000u) << 32 | (uint32_t)~id);
}
static __device__ __forceinline__ int32_t draw_id_of(long long place) {
    return (int32_t) ~(uint32_t)place;
}

static __device__ __forceinline__ bool draw_keeps(draw_cut c, float x, int32_t id) {
    return x > c.logit || (x == c.logit && id <= c.id);
}

static __device__ __forceinline__ int32_t draw_edge(int32_t V, int32_t part) {
    return (int32_t)((int64_t)part * V / DRAW_PARTS);
}

static __device__ __forceinline__ bool draw_has_penalties(const sp_draw *d) {
    return d->repetition_penalty != 1.0f || d->presence_penalty != 0.0f ||
           d->frequency_penalty != 0.0f;
}
static __device__ __forceinline__ bool draw_has_edits(const sp_draw *d) {
    return d->n_allowed >= 0 || d->n_bias > 0 || draw_has_penalties(d);
}

static __device__ __forceinline__ const float *draw_raw(const draw_job &j, int32_t draw) {
    return j.logits + (int64_t)j.draws[draw].row * j.ld;
}
/* The row that is drawn from. */
static __device__ __forceinline__ const float *draw_row(const draw_job &j, int32_t draw) {
    return draw_has_edits(&j.draws[draw]) ? j.edited + (int64_t)draw * j.V : draw_raw(j, draw);
}

/* The float above x, x neither NaN nor +inf. */
static __device__ __forceinline__ float draw_float_above(float x) {
    const uint32_t u = __float_as_uint(x);
    if (u << 1 == 0) return __uint_as_float(1);
    return __uint_as_float(u >> 31 ? u - 1 : u + 1);
}

#define DRAW_BATCH 4 /* loads on their way before the first is used */

/* x[k] = row[at + k * step], of those below `to`: no load waits for a store between them. */
template <int N>
static __device__ __forceinline__ void draw_load(float (&x)[N], const float *row, int32_t at,
                                                 int32_t step, int32_t to) {
    CU_UNROLL for (int32_t k = 0; k < N; k++) x[k] = at + k * step < to ? row[at + k * step] : 0.0f;
}
