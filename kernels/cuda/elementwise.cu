/* Activation, rows gathered, members' sums added: each element by itself.
 *
 * act_mul     floor 12 bytes an element (two in, one out); kernels/math.h's functions, so that the
 *             bits are ref's (bound 0). Grid: rows, pieces of 1024 columns; 256 threads.
 * gather_rows floor 8 bytes an element; copies. Same launch.
 * tree_sum    floor 4 (n + 1) bytes an element; the order of comm/group_tree.h: a binary tree over
 *             the members, missing ones left out (bound 0). A thread an element, 256 threads.
 * All are bounded by memory; loads of a warp are neighbours, 4 bytes each, since no stride is a
 * multiple of anything. `out` of tree_sum may be one of the members' buffers. */
#include "kernels/cuda/weight.cuh"

#include "kernels/math.h"

#define THREADS 256
#define PIECE 1024

/* Columns cols of T rows. */
static cu_shape by_rows(cudaStream_t st, int32_t T, int32_t cols) {
    const int32_t pieces = cu_tiles(cols, PIECE);
    return {dim3((unsigned)T, (unsigned)min(pieces, 65535)), dim3(THREADS), 0, st};
}
static __device__ __forceinline__ int32_t first_column(void) {
    return (int32_t)(blockIdx.y * THREADS + threadIdx.x);
}
static __device__ __forceinline__ int32_t column_step(void) {
    return (int32_t)(gridDim.y * THREADS);
}

template <int ACT> static __device__ __forceinline__ float activate(float x) {
    if (ACT == SP_ACT_SILU) return sp_siluf(x);
    if (ACT == SP_ACT_GELU) return sp_geluf(x);
    return sp_gelu_tanhf(x);
}

template <int ACT>
__global__ void __launch_bounds__(THREADS)
    act_mul_kernel(float *y, int32_t ldy, const float *gate_up, int32_t ldg, int32_t F) {
    const float *gate = gate_up + (int64_t)blockIdx.x * ldg, *up = gate + F;
    float *yr = y + (int64_t)blockIdx.x * ldy;
    for (int32_t i = first_column(); i < F; i += column_step())
        yr[i] = __fmul_rn(activate<ACT>(gate[i]), up[i]);
}

extern "C" cudaError_t cu_act_mul(cudaStream_t st, float *y, int32_t ldy, const float *gate_up,
                                  int32_t ldg, sp_act act, int32_t T, int32_t F) {
    if (T <= 0 || F <= 0) return T == 0 || F == 0 ? cudaSuccess : cudaErrorInvalidValue;
    const cu_shape shape = by_rows(st, T, F);
    switch (act) {
    case SP_ACT_SILU:
        return cu_launch(shape, act_mul_kernel<SP_ACT_SILU>, y, ldy, gate_up, ldg, F);
    case SP_ACT_GELU:
        return cu_launch(shape, act_mul_kernel<SP_ACT_GELU>, y, ldy, gate_up, ldg, F);
    case SP_ACT_GELU_TANH:
        return cu_launch(shape, act_mul_kernel<SP_ACT_GELU_TANH>, y, ldy, gate_up, ldg, F);
    }
    return cudaErrorInvalidValue;
}

__global__ void __launch_bounds__(THREADS)
    gather_kernel(float *y, int32_t ldy, const float *x, int32_t ldx, const int32_t *rows,
                  int32_t cols) {
    const float *from = x + (int64_t)rows[blockIdx.x] * ldx;
    float *yr = y + (int64_t)blockIdx.x * ldy;
    for (int32_t i = first_column(); i < cols; i += column_step()) yr[i] = from[i];
}

extern "C" cudaError_t cu_gather_rows(cudaStream_t st, float *y, int32_t ldy, const float *x,
                                      int32_t ldx, const int32_t *rows, int32_t n, int32_t cols) {
    if (n <= 0 || cols <= 0) return n == 0 || cols == 0 ? cudaSuccess : cudaErrorInvalidValue;
    return cu_launch(by_rows(st, n, cols), gather_kernel, y, ldy, x, ldx, rows, cols);
}

#define TREE_LEVELS 7 /* comm/group.h: up to 64 members */

/* N > 0: that many members, known to the compiler, so that all loads are on their way at once. */
template <int N>
__global__ void __launch_bounds__(THREADS)
    tree_kernel(float *out, const float *all, int32_t n, int64_t count) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * THREADS) {
        float level[TREE_LEVELS] = {}; /* gcc does not see that a level is set before it is read */
        if (N > 0) {
            float leaf[N > 0 ? N : 1];
            CU_UNROLL for (int m = 0; m < N; m++) leaf[m] = all[m * count + i];
            CU_UNROLL for (int m = 0; m < N; m++) cu_tree_push(level, m, leaf[m]);
            out[i] = cu_tree_value(level, N);
        } else {
            for (int m = 0; m < n; m++) cu_tree_push(level, m, all[m * count + i]);
            out[i] = cu_tree_value(level, n);
        }
    }
}

extern "C" cudaError_t cu_tree_sum(cudaStream_t st, float *out, const float *all, int32_t n,
                                   size_t count) {
    if (n < 1 || n >= 1 << TREE_LEVELS || count > INT64_MAX / 512) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    const size_t blocks = (count + THREADS - 1) / THREADS;
    const cu_shape shape = {dim3((unsigned)(blocks < 65536 ? blocks : 65536)), dim3(THREADS), 0,
                            st};
    const int64_t c = (int64_t)count;
    if (n == 2) return cu_launch(shape, tree_kernel<2>, out, all, n, c);
    if (n == 4) return cu_launch(shape, tree_kernel<4>, out, all, n, c);
    if (n == 8) return cu_launch(shape, tree_kernel<8>, out, all, n, c);
    return cu_launch(shape, tree_kernel<0>, out, all, n, c);
}
