/* kernels/cuda/gemm.cuh - what the matrix products share: one step of 16 k on tensor cores, and
 * rows of x as its operand.
 *
 * Tensor cores multiply 2 byte types and add in f32. x is f32, so it goes in as two bf16 terms, hi
 * + lo (cu_split_bf16), whatever the weight's type: bf16 has the exponents of f32, so that no
 * activation is too large or too small for it. A weight of f16 is itself two bf16 terms, exactly:
 * the nearest, and the 3 bits that are left. A step adds, into one accumulator, and each over the
 * step's 16 k:
 *     bf16 weights   hi w, lo w                 what is left out: 2^-18 |x w|
 *     f16 weights    hi wh, lo wh, hi wl        2^-17 |x w|: also lo wl
 * One accumulator, not one a term: the rounding of the large sum is the error that remains either
 * way, and registers are what tiles are made of.
 *
 * Same bits: an accumulator sees padded k in steps of 16, ascending from the beginning of its
 * segment, whichever kernel runs it, so that all of them give one result for a row. This supposes
 * that an mma treats its rows and columns alike, and zeros as nothing.
 *
 * Thread: device code of one warp. */
#pragma once

#include "kernels/cuda/weight.cuh"

/* A piece of x or of a weight, in terms; `lo` of a bf16 weight is not used. */
typedef struct cu_terms {
    uint4 hi, lo;
} cu_terms;

/* Two f16 as two bf16 terms. What is not finite has a NaN for its lo: weights are finite. */
static __device__ __forceinline__ void cu_split_pair_f16(uint32_t &hi, uint32_t &lo,
                                                         uint32_t pair) {
    const float a = __half2float(__ushort_as_half((uint16_t)(pair & 0xffffu)));
    const float b = __half2float(__ushort_as_half((uint16_t)(pair >> 16)));
    hi = cu_pack_bf16(a, b);
    lo = cu_pack_bf16(__fsub_rn(a, __uint_as_float(hi << 16)),
                      __fsub_rn(b, __uint_as_float(hi & 0xffff0000u)));
}

/* A piece of the packed weight. */
template <bool HALF> static __device__ __forceinline__ cu_terms cu_gemm_weight(const uint4 &w) {
    cu_terms t = {w, {}};
    if (HALF) {
        cu_split_pair_f16(t.hi.x, t.lo.x, w.x);
        cu_split_pair_f16(t.hi.y, t.lo.y, w.y);
        cu_split_pair_f16(t.hi.z, t.lo.z, w.z);
        cu_split_pair_f16(t.hi.w, t.lo.w, w.w);
    }
    return t;
}

/* c += A B: 16 rows, 32 outputs in two pieces of two halves. Terms come one after the other, so
 * that no mma waits for the one before it. */
template <bool HALF>
static __device__ __forceinline__ void cu_gemm_step(float (&c)[2][2][4], const cu_terms &x,
                                                    const cu_terms (&w)[2]) {
    CU_UNROLL for (int term = 0; term < (HALF ? 3 : 2); term++) {
        const uint4 &r = term == 1 ? x.lo : x.hi;
        const uint32_t a[4] = {r.x, r.y, r.z, r.w};
        CU_UNROLL for (int n = 0; n < 2; n++) {
            const uint4 &v = term == 2 ? w[n].lo : w[n].hi;
            const uint32_t b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
            cu_mma_bf16(c[n][0], a, b0, c[n][0]);
            cu_mma_bf16(c[n][1], a, b1, c[n][1]);
        }
    }
}

/* x[row, k], or zero beyond the rows or the segment. */
static __device__ __forceinline__ float cu_gemm_x(const float *x, int32_t ldx, int32_t T,
                                                  int32_t row, int32_t k, int32_t end) {
    return row < T && k < end ? x[(int64_t)row * ldx + k] : 0.0f;
}

/* This lane's part of the piece of rows row0.. and k.. of x, in two terms. */
static __device__ __forceinline__ cu_terms cu_gemm_rows(const float *x, int32_t ldx, int32_t T,
                                                        int32_t row0, int32_t k, int32_t end) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), g = row0 + lane / 4, c = k + lane % 4 * 2;
    uint32_t hi[4], lo[4];
    CU_UNROLL for (int i = 0; i < 4; i++) {
        const int32_t row = g + i % 2 * 8, at = c + i / 2 * 8;
        uint16_t h[2], l[2];
        cu_split_bf16(h[0], l[0], cu_gemm_x(x, ldx, T, row, at, end));
        cu_split_bf16(h[1], l[1], cu_gemm_x(x, ldx, T, row, at + 1, end));
        hi[i] = h[0] | (uint32_t)h[1] << 16;
        lo[i] = l[0] | (uint32_t)l[1] << 16;
    }
    const cu_terms t = {make_uint4(hi[0], hi[1], hi[2], hi[3]),
                        make_uint4(lo[0], lo[1], lo[2], lo[3])};
    return t;
}

/* ---- few rows: a warp for a part of K (its segment; gemm_skinny.cu: each eighth tile) ---- */

#define CU_FEW_ROWS 16
#define CU_FEW_COLS 32 /* outputs of a block */
#define CU_FEW_WARPS 8

/* c [16 rows, 32 outputs] += one tile of 64 k. */
template <bool HALF>
static __device__ __forceinline__ void cu_few_tile(float (&c)[2][2][4], const float *x, int32_t ldx,
                                                   int32_t T, const uint4 *w, const cu_cuts &cuts,
                                                   int s, int32_t tile, int32_t n16) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), k = cu_first_k(cuts, s, tile);
    uint4 piece[4][2];
    CU_UNROLL for (int j = 0; j < 4; j++) {
        const uint4 *from = w + cu_weight_piece(cuts, n16, tile * 4 + j) + lane;
        piece[j][0] = __ldcs(from);
        piece[j][1] = __ldcs(from + 32);
    }
    CU_UNROLL for (int j = 0; j < 4; j++) {
        const cu_terms rows = cu_gemm_rows(x, ldx, T, 0, k + j * 16, cuts.edge[s + 1]);
        const cu_terms w2[2] = {cu_gemm_weight<HALF>(piece[j][0]),
                                cu_gemm_weight<HALF>(piece[j][1])};
        cu_gemm_step<HALF>(c, rows, w2);
    }
}

/* part[row][output of the block] = this warp's sums. */
static __device__ __forceinline__ void cu_few_lay(float (*part)[CU_FEW_COLS],
                                                  const float (&c)[2][2][4]) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), g = lane / 4, t = lane % 4 * 2;
    CU_UNROLL for (int i = 0; i < 16; i++) {
        const int p = i / 8, h = i / 4 % 2, e = i % 4;
        part[g + e / 2 * 8][p * 16 + h * 8 + t + e % 2] = c[p][h][e];
    }
}
