/* kernels/cuda/kernels.h - every kernel of the cuda backend, as C functions that queue it on a
 * stream.
 *
 * Pointers are device memory unless they say host; nothing here allocates, waits or looks at what a
 * kernel gave. The .cu files compile by nvcc and, against kernels/cuda/emu, by g++ (portable.cuh).
 *
 * Same bits (the class of the cuda backend, mode deterministic): an element of a result depends on
 * its own row, its weights and its positions alone: not on how many rows there are, which tile a
 * row fell into, how a prompt was cut, or on TP and PP. Therefore:
 *   gemm     K in up to 8 segments (sp_segments), each accumulated in one order from its own start;
 *            segments are added by the tree of contract 2. Tiles never cross a segment.
 *   attend   splits of 256 absolute positions: all scores, their maximum, exp, sum and P*V of a
 *   split
 *            in one order; splits merged in ascending order. One row's arithmetic does not know
 *            what other rows share its tile.
 *   norm     fixed lanes and one fixed tree over the row.
 * No float atomics, no order that depends on the scheduling of blocks.
 *
 * Letters as in kernels/args.h. Activations are f32. Tensor cores take 2 byte types and add in
 * f32, so an f32 operand goes in as two terms, the nearest number of the type and the nearest to
 * the rest:
 *   gemm     weights of bf16 and f16: x as two bf16 terms, whatever the weight is: x to 2^-18 of
 *   it,
 *            in the whole range of f32
 *   attend   caches of bf16 and f16: q and p as two terms of the cache's type: to 2^-18 and 2^-22
 * With f32 weights and an f32 cache all is f32, by fma, and the bits are those of `ref`.
 * A fault of data (an id outside the vocabulary) is written to `fault`, first one wins: the host
 * reads it with the step's results.
 *
 * Errors: what the launch says. Thread: the stream's owner. */
#pragma once

#include "kernels/args.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CU_GEMM_TILE_N 64 /* packed weights are padded to it */
#define CU_GEMM_TILE_K 64

/** Packed weight [N, K]: tiles of CU_GEMM_TILE_N outputs; each segment of K padded with zeros to
 * CU_GEMM_TILE_K, so that every segment begins at a tile. The order inside a tile is gemm.cu's. */
typedef struct cu_weight {
    const void *data;
    sp_dtype dtype;     /* F32, F16, BF16 */
    int32_t rows, cols; /* N, K (not padded) */
    sp_segments seg;    /* over K */
    int32_t ld;         /* 0: tiles; else the row-major form of mode fast (below) */
} cu_weight;

/** Bytes of a packed weight; host arithmetic. */
size_t cu_weight_bytes(int32_t rows, int32_t cols, sp_dtype dtype, const sp_segments *seg);
/** Packs rows row0..row0+n of a row-major matrix on the device: `src` [n, cols], `stride` elements
 * from row to row. `dst`: the whole packed weight, zeroed before the first call. */
cudaError_t cu_weight_pack(cudaStream_t st, void *dst, const cu_weight *w, int32_t row0,
                           const void *src, int32_t n, int64_t stride);

typedef struct cu_fault {
    int32_t code, row, value; /* 0: none */
} cu_fault;
#define CU_FAULT_ID 1

/** y[t,:] = row ids[t] of a packed weight of either form, as f32. */
cudaError_t cu_embed(cudaStream_t st, float *y, int32_t ldy, const cu_weight *w, const int32_t *ids,
                     int32_t T, cu_fault *fault);
/** As cu_embed(), of the rows first, first + 1, ... of a vocabulary: those of other ranks become -0.
 * An id of -1 - slot is last[slot], where there is such a slot. */
typedef struct cu_embed_from {
    const int32_t *last; /* [n_last] */
    int32_t n_last;
    int32_t first, vocab; /* of the weight's rows; ids that there are */
} cu_embed_from;
cudaError_t cu_embed_part(cudaStream_t st, float *y, int32_t ldy, const cu_weight *w,
                          const int32_t *ids, int32_t T, const cu_embed_from *from,
                          cu_fault *fault);
/** ids[t] < 0 become last[-1 - ids[t]]: tokens drawn by a step before, which the host has not seen. */
cudaError_t cu_feed(cudaStream_t st, int32_t *ids, const int32_t *last, int32_t n_last, int32_t T);
/** x += partial + bias; y = x * weight / rms(x). partial NULL: nothing is added, as in
 * kernels/dev.h; bias NULL: none; y NULL: only the sum. */
cudaError_t cu_add_rmsnorm(cudaStream_t st, float *y, int32_t ldy, float *x, int32_t ldx,
                           const float *partial, int32_t ldp, const float *bias,
                           const float *weight, float eps, int32_t T, int32_t E);
/** y [T,N] = x [T,K] w^T + bias. `scratch`: cu_gemm_scratch() bytes, or NULL when that is 0. */
cudaError_t cu_gemm(cudaStream_t st, float *y, int32_t ldy, const float *x, int32_t ldx,
                    const cu_weight *w, const float *bias, int32_t T, void *scratch);
size_t cu_gemm_scratch(int32_t rows, int32_t cols, sp_dtype dtype, int32_t max_tokens);
/** The same numbers to rounding, not to the bit: m <= 16, streams the weight once (mode fast). */
cudaError_t cu_gemm_skinny(cudaStream_t st, float *y, int32_t ldy, const float *x, int32_t ldx,
                           const cu_weight *w, const float *bias, int32_t T);

/* ---- mode fast: row-major weights, for cuBLASLt and for few rows ---- */

/** Elements from row to row of a row-major weight: whole pieces of 16 bytes, what is beyond K zeros.
 * Rows begin at multiples of 16 bytes. */
int32_t cu_plain_ld(int32_t cols, sp_dtype dtype);
/** y [T,N] = x [T,K] w^T + bias of a row-major weight, T <= CU_PLAIN_ROWS. */
cudaError_t cu_plain_gemm(cudaStream_t st, float *y, int32_t ldy, const float *x, int32_t ldx,
                          const cu_weight *w, const float *bias, int32_t T);
/** out [T,ld]: x [T,K] rounded to f16 or bf16, zeros beyond K. ld as cu_plain_ld() gives it. */
cudaError_t cu_plain_round(cudaStream_t st, void *out, int32_t ld, sp_dtype dtype, const float *x,
                           int32_t ldx, int32_t T, int32_t K);
#define CU_PLAIN_ROWS 16

/** y = act(gate) * up of gate_up [T,2F]. */
cudaError_t cu_act_mul(cudaStream_t st, float *y, int32_t ldy, const float *gate_up, int32_t ldg,
                       sp_act act, int32_t T, int32_t F);
cudaError_t cu_gather_rows(cudaStream_t st, float *y, int32_t ldy, const float *x, int32_t ldx,
                           const int32_t *rows, int32_t n, int32_t cols);

/** Rows of a step as the device has them: row t is position pos[t] of a sequence whose block table
 * begins at blocks[table[t]]. */
typedef struct cu_rows {
    const int32_t *pos, *table; /* [T] */
    const int32_t *blocks;
    int32_t T, max_pos; /* max_pos: host's knowledge of the largest pos, for the grid */
} cu_rows;

/** Rotates q and k of qkv [T,(H+2K)D] and writes k, v into the cache. */
cudaError_t cu_rope_store(cudaStream_t st, float *qkv, int32_t ld, int32_t H,
                          const sp_rope_table *rope, const sp_kv_view *kv, const cu_rows *rows);

/** out [T,H*D]. Works for prompts and for decode, with the same bits for a row. `scratch`:
 * cu_attend_scratch() bytes for partial results of splits. */
cudaError_t cu_attend(cudaStream_t st, float *out, int32_t ldo, const float *qkv, int32_t ld,
                      int32_t H, float scale, int32_t window, const sp_kv_view *kv,
                      const cu_rows *rows, void *scratch);
size_t cu_attend_scratch(int32_t max_tokens, int32_t H, int32_t D, int32_t max_positions);

/** The tree of contract 2 over n members' buffers, gathered side by side: out[i] = tree of
 * all[m * count + i], m = 0..n-1; any n as comm/group.h says. */
cudaError_t cu_tree_sum(cudaStream_t st, float *out, const float *all, int32_t n, size_t count);

/* ---- sampling (runtime/gen has the meaning; the host's sampler is the reference) ---- */

/** The arguments of kernels/args.h with every array on the device. `scratch`: cu_draw_scratch()
 * bytes. */
cudaError_t cu_draw(cudaStream_t st, const sp_draw_args *a, void *scratch);
size_t cu_draw_scratch(int32_t n, int32_t V);

#ifdef __cplusplus
}
#endif
