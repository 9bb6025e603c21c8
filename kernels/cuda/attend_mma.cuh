/* kernels/cuda/attend_mma.cuh - attention over a cache of f16 or bf16, by tensor cores.
 *
 * A block has HALVES x 4 warps and M = 16 MT HALVES rows; a warp has the MT row tiles of its half
 * and a quarter of the positions (scores) or of the columns (P V). K and V come in tiles of 64
 * absolute positions, the next one on its way while one is used; what no row of the tile sees is
 * zeros.
 *
 * q and P are f32 and go in as two terms of the cache's type (cu_split_f16, cu_split_bf16): a step
 * of 16 adds all its products with the first term, then all with the second, into one accumulator.
 *
 * Order of a row, which no neighbour changes: a score adds its D / 16 steps ascending from +0; an
 * output its steps of 16 absolute positions, ascending, from +0. Where a row does not look, P is 0
 * and V finite, and such a term, as a step of such terms, leaves the sum's bits: a sum that began
 * at +0 is never -0. V that is not finite is found where rows of a tile differ in what they see;
 * then each row is multiplied with the V it sees alone (mma_strict).
 *
 * Thread: device code, one block of 128 HALVES threads. */
#pragma once

#include "kernels/cuda/attend_soft.cuh"

#define CU_MMA_POS 64                     /* positions of a tile of K or V */
#define CU_MMA_STRIDE (SP_ATTN_SPLIT + 4) /* floats from score row to score row */

/* What the cache's type needs: two terms of an f32, and their place in a row of P. */
struct cu_p_f16 {
    static constexpr uint32_t all_ones = 0x7c00; /* the exponent of what is not finite */
    static __device__ __forceinline__ void split(uint16_t &hi, uint16_t &lo, float x) {
        cu_split_f16(hi, lo, x);
    }
    static __device__ __forceinline__ void put(float *row, int32_t j, float p) {
        uint16_t *to = (uint16_t *)(void *)row + j;
        split(to[0], to[SP_ATTN_SPLIT], p);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
        const uint32_t b[2] = {b0, b1};
        cu_mma_f16(d, a, b, d);
    }
};
struct cu_p_bf16 {
    static constexpr uint32_t all_ones = 0x7f80;
    static __device__ __forceinline__ void split(uint16_t &hi, uint16_t &lo, float x) {
        cu_split_bf16(hi, lo, x);
    }
    static __device__ __forceinline__ void put(float *row, int32_t j, float p) {
        uint16_t *to = (uint16_t *)(void *)row + j;
        split(to[0], to[SP_ATTN_SPLIT], p);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
        const uint32_t b[2] = {b0, b1};
        cu_mma_bf16(d, a, b, d);
    }
};

/* Dp: D in whole steps of 16. Rows of q, K and V lie 16 bytes further than they are long, and rows
 * of scores too: eight rows at the same column are in different banks. */
static __host__ __device__ __forceinline__ int32_t cu_mma_padded(int32_t D) {
    return (D + 15) / 16 * 16;
}

template <class P, int HALVES, int MT, int NG> struct cu_mma_block {
    static constexpr int M = 16 * MT * HALVES, WARPS = 4 * HALVES, THREADS = 32 * WARPS;
    static constexpr int STAGES = NG > 4 ? 1 : 2;
    static size_t smem(int32_t D) {
        const size_t row = (size_t)(cu_mma_padded(D) + 8) * 2;
        return 2 * M * row + (size_t)M * CU_MMA_STRIDE * sizeof(float) + STAGES * CU_MMA_POS * row;
    }

    const cu_attend_step &a;
    const cu_tile &w;
    cu_soft<M> &z;
    int32_t stride, lane, side, quarter; /* stride: elements of a row of q, K or V */
    uint16_t *q, *kv;                    /* q: M rows of the first term, M of the second */
    float *s; /* scores; then both terms of P, one after the other in a row */
    float all[MT][NG][2][4], one[MT][NG][2][4];

    __device__ __forceinline__ cu_mma_block(const cu_attend_step &step, const cu_tile &tile,
                                            cu_soft<M> &soft, unsigned char *memory)
        : a(step), w(tile), z(soft) {
        stride = cu_mma_padded(a.kv.D) + 8;
        lane = (int32_t)threadIdx.x % 32;
        quarter = (int32_t)threadIdx.x / 32 % 4;
        side = (int32_t)threadIdx.x / 128;
        q = (uint16_t *)(void *)memory;
        s = (float *)(void *)(memory + (size_t)M * (size_t)stride * 4);
        kv = (uint16_t *)(void *)(s + M * CU_MMA_STRIDE);
    }
    __device__ __forceinline__ int32_t steps() const { return (stride - 8) / 16; }
    /* First row of the warp's m-th row tile; first column of its n-th group of 16. */
    __device__ __forceinline__ int32_t row0(int m) const { return (side * MT + m) * 16; }
    __device__ __forceinline__ int32_t col0(int n) const { return (n * 4 + quarter) * 16; }
    __device__ __forceinline__ uint16_t *stage(int32_t i) const {
        return kv + (i % STAGES) * CU_MMA_POS * stride;
    }

    __device__ __forceinline__ void load_q() {
        const int32_t width = stride - 8;
        for (int32_t i = (int32_t)threadIdx.x; i < M * width; i += THREADS) {
            const int32_t r = i / width, d = i % width;
            const float x = r < w.n_rows && d < a.kv.D ? cu_row_q(a, w, r)[d] : 0;
            P::split(q[r * stride + d], q[(M + r) * stride + d], x);
        }
    }

    /* Eight elements of a row of the cache, zeros past its end. */
    __device__ __forceinline__ void load_piece(uint16_t *to, const uint16_t *row, int32_t d) const {
        const int32_t n = min(max(a.kv.D - d, 0), 8);
        if (a.whole && n == 8) {
            cu_cp_async16(to, row + d);
            return;
        }
        for (int32_t i = 0; i < 8; i++) to[i] = i < n ? row[d + i] : (uint16_t)0;
    }
    /* Positions pos0..pos0+63 of K or V; what no row sees is zeros. */
    __device__ __forceinline__ void load(uint16_t *to, int32_t pos0, bool value) const {
        const int32_t pieces = (stride - 8) / 8;
        for (int32_t i = (int32_t)threadIdx.x; i < CU_MMA_POS * pieces; i += THREADS) {
            const int32_t p = i / pieces, d = i % pieces * 8, pos = pos0 + p;
            uint16_t *piece = to + p * stride + d;
            if (pos >= w.seen.lo && pos < w.seen.hi)
                load_piece(piece,
                           (const uint16_t *)(const void *)cu_kv_row(a.kv, w.blocks, w.kv_head, pos,
                                                                     value),
                           d);
            else
                *(uint4 *)(void *)piece = make_uint4(0, 0, 0, 0);
        }
    }

    /* Rows 16 of `from` as operand A: lanes 0..15 name rows at k, 16..31 the same rows at k + 8. */
    __device__ __forceinline__ void load_a(uint32_t (&out)[4], const uint16_t *from,
                                           int32_t from_stride) const {
        cu_ldmatrix_x4(out, from + lane % 16 * from_stride + lane / 16 * 8);
    }

    /* Scores of the 16 positions of this warp in tile k of the split. */
    __device__ __forceinline__ void scores(const uint16_t *tile, int32_t k) {
        float c[MT][2][4] = {};
        const uint16_t *at =
            tile + (quarter * 16 + lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
        for (int32_t step = 0; step < steps(); step++) {
            uint32_t b[4], x[4];
            cu_ldmatrix_x4(b, at + step * 16);
            CU_UNROLL for (int i = 0; i < 2 * MT; i++) {
                const int m = i / 2, term = i % 2;
                load_a(x, q + (term * M + row0(m)) * stride + step * 16, stride);
                P::mma(c[m][0], x, b[0], b[1]);
                P::mma(c[m][1], x, b[2], b[3]);
            }
        }
        CU_UNROLL for (int m = 0; m < MT; m++) CU_UNROLL for (int n = 0; n < 2; n++)
            CU_UNROLL for (int i = 0; i < 4; i++) {
            const int32_t r = row0(m) + lane / 4 + i / 2 * 8;
            const int32_t j = k * CU_MMA_POS + quarter * 16 + n * 8 + lane % 4 * 2 + i % 2;
            s[r * CU_MMA_STRIDE + j] = __fmul_rn(c[m][n][i], a.scale);
        }
    }

    /* A pair of neighbouring positions of V, without what the row does not see. */
    static __device__ __forceinline__ uint32_t seen_of(uint32_t pair, int32_t pos, cu_span span) {
        const uint32_t low = pos >= span.lo && pos < span.hi ? 0xffffu : 0;
        const uint32_t high = pos + 1 >= span.lo && pos + 1 < span.hi ? 0xffff0000u : 0;
        return pair & (low | high);
    }
    /* d += A B, each row with its own B. */
    __device__ __forceinline__ void mma_strict(float (&d)[4], const uint32_t (&x)[4], uint32_t b0,
                                               uint32_t b1, int32_t row, int32_t pos) const {
        float was[4], got[4];
        CU_UNROLL for (int i = 0; i < 4; i++) was[i] = d[i];
        for (int r = 0; r < 16; r++) {
            const cu_span span = z.span[row + r];
            const int32_t mine = pos + lane % 4 * 2;
            CU_UNROLL for (int i = 0; i < 4; i++) got[i] = was[i];
            P::mma(got, x, seen_of(b0, mine, span), seen_of(b1, mine + 8, span));
            CU_UNROLL for (int i = 0; i < 4; i++) if (lane / 4 + i / 2 * 8 == r) d[i] = got[i];
        }
    }
    /* Output of 16 positions, with one term of P: V is read again for the other, which takes fewer
     * registers than both terms do. */
    __device__ __forceinline__ void step_values(const uint16_t *at, int32_t j, int term, int32_t lo,
                                                bool strict) {
        uint32_t x[MT][4], b[4];
        CU_UNROLL for (int m = 0; m < MT; m++) {
            const float *row = s + row0(m) * CU_MMA_STRIDE;
            load_a(x[m], (const uint16_t *)(const void *)row + term * SP_ATTN_SPLIT + j,
                   2 * CU_MMA_STRIDE);
        }
        CU_UNROLL for (int n = 0; n < NG; n++) {
            if (col0(n) >= stride - 8) continue;
            cu_ldmatrix_x4_trans(b, at + col0(n));
            CU_UNROLL for (int i = 0; i < 2 * MT; i++) {
                float(&d)[4] = one[i / 2][n][i % 2];
                const uint32_t b0 = b[i % 2 * 2], b1 = b[i % 2 * 2 + 1];
                if (strict)
                    mma_strict(d, x[i / 2], b0, b1, row0(i / 2), lo + j);
                else
                    P::mma(d, x[i / 2], b0, b1);
            }
        }
    }
    /* Output of tile k of the split. */
    __device__ __forceinline__ void values(const uint16_t *tile, int32_t k, int32_t lo,
                                           bool strict) {
        const uint16_t *at = tile + (lane / 8 % 2 * 8 + lane % 8) * stride + lane / 16 * 8;
        for (int32_t step = 0; step < CU_MMA_POS / 16; step++) {
            const int32_t j = k * CU_MMA_POS + step * 16;
            if (lo + j >= w.seen.hi || lo + j + 16 <= w.seen.lo) continue;
            CU_UNROLL_BY(1)
            for (int term = 0; term < 2; term++)
                step_values(at + step * 16 * stride, j, term, lo, strict);
        }
    }
    /* Whether V of this tile holds what a 0 does not silence, where a row must not look. */
    __device__ __forceinline__ bool needs_strict(const uint16_t *tile, int32_t pos0) const {
        const cu_span in = cu_cut(w.seen, pos0, pos0 + CU_MMA_POS);
        if (in.lo >= w.common.lo && in.hi <= w.common.hi) return false;
        int bad = 0;
        for (int32_t i = (int32_t)threadIdx.x; i < CU_MMA_POS * (stride - 8); i += THREADS) {
            const uint32_t x = tile[i / (stride - 8) * stride + i % (stride - 8)];
            bad |= (x & P::all_ones) == P::all_ones;
        }
        return __syncthreads_or(bad) != 0;
    }

    /* Tiles of K, softmax, tiles of V. */
    __device__ __forceinline__ void split_pass(int32_t split) {
        const int32_t lo = split * SP_ATTN_SPLIT;
        const cu_span seen = cu_cut(w.seen, lo, lo + SP_ATTN_SPLIT);
        const int32_t k0 = (seen.lo - lo) / CU_MMA_POS;
        const int32_t n = (seen.hi - lo + CU_MMA_POS - 1) / CU_MMA_POS - k0;
        auto fetch = [&](int32_t i) {
            load(stage(i), lo + (k0 + i % n) * CU_MMA_POS, i >= n);
            cu_cp_async_commit();
        };
        if (STAGES == 2) fetch(0);
        for (int32_t i = 0; i < 2 * n; i++) {
            const int32_t k = k0 + i % n, next = i + STAGES - 1;
            if (next < 2 * n) fetch(next);
            if (STAGES == 2 && next < 2 * n)
                cu_cp_async_wait<1>();
            else
                cu_cp_async_wait<0>();
            __syncthreads();
            if (i < n)
                scores(stage(i), k);
            else
                values(stage(i), k, lo, needs_strict(stage(i), lo + k * CU_MMA_POS));
            __syncthreads(); /* the stage is filled again */
            if (i == n - 1) {
                cu_soft_split<P, M, WARPS>(a, w, z, s, CU_MMA_STRIDE, split);
                __syncthreads();
            }
        }
    }

    /* f(row, column, all, one) for every element that this thread has. */
    template <class F> __device__ __forceinline__ void each(F f) {
        CU_UNROLL for (int m = 0; m < MT; m++) CU_UNROLL for (int n = 0; n < NG; n++)
            CU_UNROLL for (int i = 0; i < 8; i++) {
            const int32_t r = row0(m) + lane / 4 + i % 4 / 2 * 8;
            const int32_t d = col0(n) + i / 4 * 8 + lane % 4 * 2 + i % 2;
            f(r, d, all[m][n][i / 4][i % 4], one[m][n][i / 4][i % 4]);
        }
    }
    __device__ __forceinline__ void keep(int32_t split) {
        if (!a.part) {
            each([&](int32_t r, int32_t, float &sum, float &x) {
                sum = cu_soft_join(z, r, sum, x);
            });
            return;
        }
        each([&](int32_t r, int32_t d, float &, float &x) {
            if (z.what[r] == CU_SKIP || d >= a.kv.D) return;
            a.part[cu_row_part(a, cu_row_token(w, r), cu_row_head(w, r), split) * a.kv.D + d] = x;
        });
    }

    __device__ __forceinline__ void run() {
        for (int32_t r = (int32_t)threadIdx.x; r < M; r += THREADS)
            z.span[r] = cu_row_span(a, w, r);
        int32_t split = w.seen.lo / SP_ATTN_SPLIT, end = (w.seen.hi - 1) / SP_ATTN_SPLIT + 1;
        if (a.part) {
            split = max(split, (int32_t)blockIdx.z);
            end = min(end, (int32_t)blockIdx.z + 1);
            if (split >= end) return;
        }
        load_q();
        each([](int32_t, int32_t, float &sum, float &) { sum = 0; });
        __syncthreads();
        for (; split < end; split++) {
            each([](int32_t, int32_t, float &, float &x) { x = 0; });
            split_pass(split);
            keep(split);
            __syncthreads(); /* the factors are written again */
        }
        if (a.part) return;
        each([&](int32_t r, int32_t d, float &sum, float &) {
            if (r < w.n_rows && d < a.kv.D) cu_row_out(a, w, r)[d] = cu_soft_out(z, r, sum);
        });
    }
};

/* NG: groups of 16 columns of a warp, D <= 64 NG. */
template <class P, int HALVES, int MT, int NG>
__global__ void __launch_bounds__(128 * HALVES) cu_attend_mma(const cu_attend_step a) {
    typedef cu_mma_block<P, HALVES, MT, NG> block;
    CU_DYN_SHARED(unsigned char, memory);
    CU_SHARED(cu_soft<block::M>, z, [1]);
    const int32_t first = (int32_t)blockIdx.x * a.step, end = min(first + a.step, a.rows.T);
    for (int32_t t = first; t < end; t++) {
        if (!cu_begins_tile(a, t)) continue;
        const cu_tile w = cu_tile_at(a, t, (int32_t)blockIdx.y);
        block b(a, w, z[0], memory);
        b.run();
        __syncthreads();
    }
}
