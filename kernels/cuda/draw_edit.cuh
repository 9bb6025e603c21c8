/* kernels/cuda/draw_edit.cuh - allowed ids, bias and penalties, by the block that owns a segment.
 *
 * Every block of a row walks all ids of the request and takes those of its own segment, so that no
 * block waits for another. Each step below ends at a barrier; within a step no id's result depends on
 * which thread came first: a penalty is applied by whoever marks the id, from a count that is whole. */
#pragma once

#include "kernels/cuda/draw_row.cuh"

#define DRAW_BIAS_MAX 100.0f
#define DRAW_PENALISED 0x80000000u /* in a count: the id has had its penalty */

typedef struct draw_segment {
    float *row;       /* edited, of the whole vocabulary */
    uint32_t *counts; /* likewise */
    int32_t from, to;
} draw_segment;

static __device__ __forceinline__ bool draw_is_mine(const draw_segment &s, int32_t id) {
    return id >= s.from && id < s.to; /* ids outside the vocabulary are nobody's */
}

static __device__ void draw_allow(const draw_segment &s, const float *raw, const int32_t *ids,
                                  int32_t n) {
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        if (draw_is_mine(s, ids[i])) (void)atomicExch(&s.row[ids[i]], raw[ids[i]]);
    __syncthreads();
}

/* Bans after all sums: an id may be banned beside its bias, and more than once. */
static __device__ void draw_add_bias(const draw_segment &s, const sp_draw_bias *b, int32_t n) {
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x) {
        const float v = b[i].value;
        if (!draw_is_mine(s, b[i].id) || v != v || v == -INFINITY) continue;
        const float bound = v < -DRAW_BIAS_MAX  ? -DRAW_BIAS_MAX
                            : v > DRAW_BIAS_MAX ? DRAW_BIAS_MAX
                                                : v;
        s.row[b[i].id] = __fadd_rn(s.row[b[i].id], bound);
    }
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        if (draw_is_mine(s, b[i].id) && b[i].value == -INFINITY)
            (void)atomicExch(&s.row[b[i].id], -INFINITY);
    __syncthreads();
}

static __device__ __forceinline__ float draw_penalise(const sp_draw *d, float x, uint32_t count) {
    if (x == -INFINITY) return x;
    x = x > 0 ? __fdiv_rn(x, d->repetition_penalty) : __fmul_rn(x, d->repetition_penalty);
    x = __fsub_rn(x, __fmul_rn(d->frequency_penalty, (float)(int32_t)count));
    if (count > 0) x = __fsub_rn(x, d->presence_penalty);
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

static __device__ void draw_forget(const draw_segment &s, const int32_t *ids, int32_t n) {
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        if (draw_is_mine(s, ids[i])) (void)atomicExch(&s.counts[ids[i]], 0u);
}
static __device__ void draw_count(const draw_segment &s, const int32_t *ids, int32_t n) {
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        if (draw_is_mine(s, ids[i])) (void)atomicAdd(&s.counts[ids[i]], 1u);
}
static __device__ void draw_penalise_ids(const draw_segment &s, const sp_draw *d,
                                         const int32_t *ids, int32_t n) {
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x) {
        if (!draw_is_mine(s, ids[i])) continue;
        const uint32_t count = atomicOr(&s.counts[ids[i]], DRAW_PENALISED);
        if (count & DRAW_PENALISED) continue;
        s.row[ids[i]] = draw_penalise(d, s.row[ids[i]], count);
    }
}

/* Counts are made anew each time, by walking the tokens: nothing is kept from draw to draw. */
static __device__ void draw_penalties(const draw_segment &s, const sp_draw *d,
                                      const int32_t *tokens) {
    const int32_t *prompt = tokens + d->prompt0, *output = tokens + d->output0;
    const int32_t n_prompt = d->repetition_penalty != 1.0f ? d->n_prompt : 0;
    draw_forget(s, output, d->n_output);
    draw_forget(s, prompt, n_prompt);
    __syncthreads();
    draw_count(s, output, d->n_output);
    __syncthreads(); /* counts are whole */
    draw_penalise_ids(s, d, output, d->n_output);
    draw_penalise_ids(s, d, prompt, n_prompt);
    __syncthreads();
}

/* Before: a barrier since the segment was copied. After: whoever reads the segment sees it edited. */
static __device__ void draw_edit(const draw_segment &s, const draw_job &j, const sp_draw *d,
                                 const float *raw) {
    if (d->n_allowed >= 0) draw_allow(s, raw, j.tokens + d->allowed0, d->n_allowed);
    if (d->n_bias > 0) draw_add_bias(s, j.bias + d->bias0, d->n_bias);
    if (draw_has_penalties(d)) draw_penalties(s, d, j.tokens);
}
