/* kernels/cuda/weight.cuh - the packed weight: where element (n, k) lies, for all who read it.
 *
 * K is cut at the edges of its segments, and each segment is padded with zeros to whole tiles of
 * 64: "padded k" counts those. Tiles stand one after another, [tile of 64 outputs][tile of 64
 * padded k]. A tile of 2 byte types is 4 x 4 pieces [16 k][16 outputs] of 512 bytes, each laid out
 * as a warp feeds it to two mma.m16n8k16: lane 4g+t has 16 bytes, 8 elements, of outputs
 * g and g + 8:
 *     (g; 2t, 2t+1, 2t+8, 2t+9)  (g+8; 2t, 2t+1, 2t+8, 2t+9)
 * A tile of f32 is [64 k][64 outputs].
 * So a kernel reads whole aligned pieces in any case, without ldmatrix and without conflicts
 * between banks, and a segment can begin anywhere in x.
 *
 * Rows of x, each element as two bf16 terms (gemm.cuh), are packed alike (scratch of cu_gemm):
 * [tile of 16 rows][padded k / 16][term] pieces of 512 bytes, lane 4g+t has
 *     (g; 2t, 2t+1) (g+8; 2t, 2t+1) (g; 2t+8, 2t+9) (g+8; 2t+8, 2t+9)
 *
 * Thread: plain arithmetic. */
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.cuh"

/* Segments of K and the tiles they take; an argument of kernels, by value. */
typedef struct cu_cuts {
    int32_t n, n_tiles;            /* tiles of CU_GEMM_TILE_K */
    int32_t edge[SP_SEGMENTS + 1]; /* in K */
    int32_t tile[SP_SEGMENTS + 1]; /* first tile of a segment; tile[n] = n_tiles */
} cu_cuts;

static __host__ __device__ __forceinline__ int32_t cu_tiles(int32_t n, int32_t by) {
    return n / by + (n % by != 0);
}

static inline cu_cuts cu_cuts_of(const sp_segments *seg) {
    cu_cuts c = {};
    c.n = seg->n;
    for (int s = 0; s <= seg->n; s++) c.edge[s] = seg->edge[s];
    for (int s = 0; s < seg->n; s++)
        c.tile[s + 1] = c.tile[s] + cu_tiles(seg->edge[s + 1] - seg->edge[s], CU_GEMM_TILE_K);
    c.n_tiles = c.tile[c.n];
    return c;
}

/** The segment that a tile belongs to. */
static __host__ __device__ __forceinline__ int cu_segment_of_tile(const cu_cuts &c, int32_t tile) {
    int s = 0;
    while (s + 1 < c.n && tile >= c.tile[s + 1]) s++;
    return s;
}
/** Padded k of the element k, and back for the first k of a tile. */
static __host__ __device__ __forceinline__ int32_t cu_padded_k(const cu_cuts &c, int32_t k) {
    int s = 0;
    while (s + 1 < c.n && k >= c.edge[s + 1]) s++;
    return c.tile[s] * CU_GEMM_TILE_K + (k - c.edge[s]);
}
static __host__ __device__ __forceinline__ int32_t cu_first_k(const cu_cuts &c, int s,
                                                              int32_t tile) {
    return c.edge[s] + (tile - c.tile[s]) * CU_GEMM_TILE_K;
}

/** Elements before (n, padded k). */
static __host__ __device__ __forceinline__ int64_t cu_weight_at(const cu_cuts &c, int wide,
                                                                int32_t n, int32_t k) {
    const int64_t tile = (int64_t)(n / CU_GEMM_TILE_N) * c.n_tiles + k / CU_GEMM_TILE_K;
    const int32_t i = n % CU_GEMM_TILE_N, j = k % CU_GEMM_TILE_K;
    if (wide) return tile * (CU_GEMM_TILE_N * CU_GEMM_TILE_K) + j * CU_GEMM_TILE_N + i;
    const int32_t piece = j / 16 * 4 + i / 16, lane = i % 8 * 4 + j % 8 / 2;
    return tile * (CU_GEMM_TILE_N * CU_GEMM_TILE_K) + piece * 256 + lane * 8 + i % 16 / 8 * 4 +
           j % 16 / 8 * 2 + j % 2;
}

/** Pieces of 32 uint4: of outputs n16 * 16.. and padded k k16 * 16.., and of packed rows of x,
 * whose two terms lie side by side. */
static __device__ __forceinline__ int64_t cu_weight_piece(const cu_cuts &c, int32_t n16,
                                                          int32_t k16) {
    const int64_t tile = (int64_t)(n16 / 4) * c.n_tiles + k16 / 4;
    return (tile * 16 + k16 % 4 * 4 + n16 % 4) * 32;
}
static __device__ __forceinline__ int64_t cu_rows_piece(const cu_cuts &c, int32_t m16,
                                                        int32_t k16) {
    return ((int64_t)m16 * c.n_tiles * 4 + k16) * 64;
}

/** Adds leaf i (ascending, from 0) to a tree: `level` holds what waits for its right neighbour. */
template <int LEVELS>
static __device__ __forceinline__ void cu_tree_push(float (&level)[LEVELS], int i, float v) {
    bool carry = true;
    CU_UNROLL for (int j = 0; j < LEVELS; j++) {
        if (!carry) continue;
        if (i >> j & 1) {
            v = level[j] + v;
        } else {
            level[j] = v;
            carry = false;
        }
    }
}
/** The tree's value after n >= 1 leaves: missing ones are left out. */
template <int LEVELS>
static __device__ __forceinline__ float cu_tree_value(const float (&level)[LEVELS], int n) {
    float v = 0;
    bool first = true;
    CU_UNROLL for (int j = 0; j < LEVELS; j++) {
        if (!(n >> j & 1)) continue;
        v = first ? level[j] : level[j] + v;
        first = false;
    }
    return v;
}
