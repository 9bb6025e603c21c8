/* kernels/cuda/attend_fma.cuh - attention over a cache of f32, by fma in the order of `ref`.
 *
 * Score: element d by fma into lane d mod 16, tree, times scale; one thread has all 16 lanes of one
 * score. Output: o[d] = fma(p, v[d], o[d]), positions ascending, from +0, one thread a column; a
 * position that a row does not see is skipped and not multiplied. K rows of 32 neighbouring threads
 * are 32 lines that stay in L1 while they are walked; V and q are read as they lie.
 *
 * Thread: device code, one block of 128 threads. */
#pragma once

#include "kernels/cuda/attend_soft.cuh"

#define CU_FMA_ROWS 8
#define CU_FMA_THREADS 128

struct cu_p_f32 {
    static __device__ __forceinline__ void put(float *row, int32_t j, float p) { row[j] = p; }
};

static __device__ __forceinline__ float cu_fma_score(const float *q, const float *k, int32_t D,
                                                     float scale) {
    float l[SP_LANES] = {};
    for (int32_t d0 = 0; d0 < D; d0 += SP_LANES)
        CU_UNROLL for (int i = 0; i < SP_LANES; i++) if (d0 + i < D) l[i] =
            sp_fmaf(q[d0 + i], k[d0 + i], l[i]);
    CU_UNROLL for (int n = SP_LANES / 2; n > 0; n /= 2) CU_UNROLL for (int i = 0; i < n; i++) l[i] =
        __fadd_rn(l[i], l[i + n]);
    return __fmul_rn(l[0], scale);
}

static __device__ __forceinline__ void cu_fma_scores(const cu_attend_step &a, const cu_tile &w,
                                                     const cu_soft<CU_FMA_ROWS> &z, float *s,
                                                     int32_t lo) {
    for (int32_t j = (int32_t)threadIdx.x; j < SP_ATTN_SPLIT; j += CU_FMA_THREADS) {
        const int32_t pos = lo + j;
        if (pos < w.seen.lo || pos >= w.seen.hi) continue;
        const float *k = (const float *)cu_kv_row(a.kv, w.blocks, w.kv_head, pos, false);
        for (int32_t r = 0; r < w.n_rows; r++)
            if (pos >= z.span[r].lo && pos < z.span[r].hi)
                s[r * SP_ATTN_SPLIT + j] = cu_fma_score(cu_row_q(a, w, r), k, a.kv.D, a.scale);
    }
}

template <int C>
static __device__ __forceinline__ void cu_fma_values(const cu_attend_step &a, const cu_tile &w,
                                                     const cu_soft<CU_FMA_ROWS> &z, const float *s,
                                                     int32_t lo, float (&one)[CU_FMA_ROWS][C]) {
    const cu_span seen = cu_cut(w.seen, lo, lo + SP_ATTN_SPLIT);
    CU_UNROLL for (int r = 0; r < CU_FMA_ROWS; r++) CU_UNROLL for (int c = 0; c < C; c++)
        one[r][c] = 0;
    if ((int32_t)threadIdx.x >= a.kv.D) return; /* no column of its own */
    for (int32_t pos = seen.lo; pos < seen.hi; pos++) {
        const float *v = (const float *)cu_kv_row(a.kv, w.blocks, w.kv_head, pos, true);
        float x[C];
        CU_UNROLL for (int c = 0; c < C; c++) {
            const int32_t d = (int32_t)threadIdx.x + c * CU_FMA_THREADS;
            x[c] = d < a.kv.D ? v[d] : 0;
        }
        CU_UNROLL for (int r = 0; r < CU_FMA_ROWS; r++) {
            if (pos < z.span[r].lo || pos >= z.span[r].hi) continue;
            const float p = s[r * SP_ATTN_SPLIT + pos - lo];
            CU_UNROLL for (int c = 0; c < C; c++) one[r][c] = sp_fmaf(p, x[c], one[r][c]);
        }
    }
}

/* What a split gave: partial results to memory, or into `all`. */
template <int C>
static __device__ __forceinline__ void cu_fma_keep(const cu_attend_step &a, const cu_tile &w,
                                                   const cu_soft<CU_FMA_ROWS> &z, int32_t split,
                                                   const float (&one)[CU_FMA_ROWS][C],
                                                   float (&all)[CU_FMA_ROWS][C]) {
    CU_UNROLL for (int r = 0; r < CU_FMA_ROWS; r++) {
        if (z.what[r] == CU_SKIP) continue;
        float *to = nullptr;
        if (a.part)
            to = a.part + cu_row_part(a, cu_row_token(w, r), cu_row_head(w, r), split) * a.kv.D;
        CU_UNROLL for (int c = 0; c < C; c++) {
            const int32_t d = (int32_t)threadIdx.x + c * CU_FMA_THREADS;
            if (!to)
                all[r][c] = cu_soft_join(z, r, all[r][c], one[r][c]);
            else if (d < a.kv.D)
                to[d] = one[r][c];
        }
    }
}

template <int C>
static __device__ __forceinline__ void cu_fma_tile(const cu_attend_step &a, const cu_tile &w,
                                                   cu_soft<CU_FMA_ROWS> &z, float *s) {
    float all[CU_FMA_ROWS][C] = {}, one[CU_FMA_ROWS][C];
    const int32_t tid = (int32_t)threadIdx.x;
    if (tid < CU_FMA_ROWS) z.span[tid] = cu_row_span(a, w, tid);
    __syncthreads();
    int32_t split = w.seen.lo / SP_ATTN_SPLIT, end = (w.seen.hi - 1) / SP_ATTN_SPLIT + 1;
    if (a.part) {
        split = max(split, (int32_t)blockIdx.z);
        end = min(end, (int32_t)blockIdx.z + 1);
    }
    for (; split < end; split++) {
        const int32_t lo = split * SP_ATTN_SPLIT;
        cu_fma_scores(a, w, z, s, lo);
        __syncthreads();
        cu_soft_split<cu_p_f32, CU_FMA_ROWS, CU_FMA_THREADS / 32>(a, w, z, s, SP_ATTN_SPLIT, split);
        __syncthreads();
        cu_fma_values<C>(a, w, z, s, lo, one);
        cu_fma_keep<C>(a, w, z, split, one, all);
        __syncthreads(); /* scores and factors are written again */
    }
    if (a.part) return;
    CU_UNROLL for (int r = 0; r < CU_FMA_ROWS; r++) CU_UNROLL for (int c = 0; c < C; c++) {
        const int32_t d = tid + c * CU_FMA_THREADS;
        if (r < w.n_rows && d < a.kv.D) cu_row_out(a, w, r)[d] = cu_soft_out(z, r, all[r][c]);
    }
}

/* C: columns of a thread, D <= 128 C. */
template <int C>
__global__ void __launch_bounds__(CU_FMA_THREADS) cu_attend_fma(const cu_attend_step a) {
    CU_SHARED(float, s, [CU_FMA_ROWS * SP_ATTN_SPLIT]);
    CU_SHARED(cu_soft<CU_FMA_ROWS>, z, [1]);
    const int32_t first = (int32_t)blockIdx.x * a.step, end = min(first + a.step, a.rows.T);
    for (int32_t t = first; t < end; t++) {
        if (!cu_begins_tile(a, t)) continue;
        cu_fma_tile<C>(a, cu_tile_at(a, t, (int32_t)blockIdx.y), z[0], s);
        __syncthreads();
    }
}
