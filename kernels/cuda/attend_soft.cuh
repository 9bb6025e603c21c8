/* kernels/cuda/attend_soft.cuh - one split of 256 positions: maximum, exp, sum; and joining splits.
 *
 * The order, for each row: m = greatest score it sees; p = exp(s - m), 0 where it does not look;
 * position j adds its p, as f32, into lane j mod 16, ascending; tree of 16 lanes. Splits join in
 * ascending order, the first one is the state:
 *     M' = max(M, m)  A = exp(M - M')  B = exp(m - M')  L = fma(L, A, l B)  O = fma(O, A, o B)
 * Adding the 0 of a position that is not seen changes no bit: p is never negative.
 *
 * Source: kernels/README.md. Thread: device code, one block. */
#pragma once

#include "kernels/cuda/attend_rows.cuh"
#include "kernels/math.h"

/* What a split is to a row's output. */
enum {
    CU_SKIP, /* the row sees nothing of it */
    CU_TAKE, /* the first: O = o */
    CU_JOIN, /* O = fma(O, A, o B) */
};

/* In shared memory: for each row of the tile. */
template <int M> struct cu_soft {
    cu_span span[M];
    float max[M], sum[M];  /* M, L */
    float keep[M], add[M]; /* A, B */
    int32_t what[M];
};

static __device__ __forceinline__ float cu_join(float all, float one, float keep, float add) {
    return sp_fmaf(all, keep, __fmul_rn(one, add));
}
struct cu_factors {
    float max, keep, add;
};
static __device__ __forceinline__ cu_factors cu_factors_of(float all, float one) {
    cu_factors f;
    f.max = one > all ? one : all;
    f.keep = sp_expf(__fsub_rn(all, f.max));
    f.add = sp_expf(__fsub_rn(one, f.max));
    return f;
}

/* m and l of row r: joined to its state, or kept for the merge kernel. One thread a row. */
template <int M>
static __device__ __forceinline__ void cu_soft_keep(const cu_attend_step &a, const cu_tile &w,
                                                    cu_soft<M> &z, int32_t r, int32_t split,
                                                    float m, float l) {
    const cu_span seen = cu_cut(z.span[r], split * SP_ATTN_SPLIT, (split + 1) * SP_ATTN_SPLIT);
    const bool none = seen.lo >= seen.hi;
    z.what[r] = none ? CU_SKIP : a.part || cu_is_first(z.span[r], split) ? CU_TAKE : CU_JOIN;
    if (none) return;
    if (a.part) {
        const int64_t at = cu_row_part(a, cu_row_token(w, r), cu_row_head(w, r), split);
        a.stats[2 * at] = m;
        a.stats[2 * at + 1] = l;
    } else if (z.what[r] == CU_TAKE) {
        z.max[r] = m;
        z.sum[r] = l;
    } else {
        const cu_factors f = cu_factors_of(z.max[r], m);
        z.max[r] = f.max;
        z.keep[r] = f.keep;
        z.add[r] = f.add;
        z.sum[r] = cu_join(z.sum[r], l, f.keep, f.add);
    }
}

/** Scores s [M][stride] become P, by P::put(row, j, p), which may lie over the scores.
 * Sixteen lanes a row. */
template <class P, int M, int WARPS>
static __device__ __forceinline__ void cu_soft_split(const cu_attend_step &a, const cu_tile &w,
                                                     cu_soft<M> &z, float *s, int32_t stride,
                                                     int32_t split) {
    static_assert(M % (2 * WARPS) == 0, "whole warps leave the loop together");
    const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % SP_LANES;
    const int32_t lo = split * SP_ATTN_SPLIT;
    for (int32_t r = 2 * warp + (int32_t)threadIdx.x % 32 / SP_LANES; r < M; r += 2 * WARPS) {
        const int32_t from = z.span[r].lo - lo, to = z.span[r].hi - lo;
        float *row = s + r * stride;
        float v[SP_ATTN_SPLIT / SP_LANES], m = -INFINITY, l = 0;
        CU_UNROLL for (int i = 0; i < SP_ATTN_SPLIT / SP_LANES; i++) {
            const int32_t j = lane + i * SP_LANES;
            v[i] = j >= from && j < to ? row[j] : 0;
            if (j >= from && j < to && v[i] > m) m = v[i];
        }
        m = cu_warp_max<SP_LANES>(m);
        CU_UNROLL for (int i = 0; i < SP_ATTN_SPLIT / SP_LANES; i++) {
            const int32_t j = lane + i * SP_LANES;
            v[i] = j >= from && j < to ? sp_expf(__fsub_rn(v[i], m)) : 0;
            l = __fadd_rn(l, v[i]);
        }
        l = cu_warp_sum<SP_LANES>(l);
        __syncwarp(); /* all scores of the row have been read */
        CU_UNROLL for (int i = 0; i < SP_ATTN_SPLIT / SP_LANES; i++)
            P::put(row, lane + i * SP_LANES, v[i]);
        if (lane == 0) cu_soft_keep(a, w, z, r, split, m, l);
    }
}

/** An element of row r after a split: into the state, which it returns. */
template <int M>
static __device__ __forceinline__ float cu_soft_join(const cu_soft<M> &z, int32_t r, float all,
                                                     float one) {
    return z.what[r] == CU_JOIN   ? cu_join(all, one, z.keep[r], z.add[r])
           : z.what[r] == CU_TAKE ? one
                                  : all;
}
/** The end: O / L, and 0 for padding. */
template <int M>
static __device__ __forceinline__ float cu_soft_out(const cu_soft<M> &z, int32_t r, float all) {
    return z.span[r].hi > 0 ? __fdiv_rn(all, z.sum[r]) : 0;
}
