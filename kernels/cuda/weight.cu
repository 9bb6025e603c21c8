/* Packing of weights, once at load.
 *
 * pack_kernel: a thread moves one element; reads run along the rows of `src`, writes fall into
 * pieces of 512 bytes (in 2 byte types four neighbouring lanes share 16 bytes), which the L2
 * joins. Floor: the bytes of `src` read and the packed bytes written. No arithmetic: the bits stay
 * as they are, so that two calls with different rows may run in any order. Padding is what the
 * caller zeroed. */
#include "kernels/cuda/weight.cuh"

#define PACK_THREADS 256

template <class T>
__global__ void __launch_bounds__(PACK_THREADS)
    pack_kernel(T *dst, cu_cuts cuts, int32_t row0, const T *src, int32_t n, int32_t cols,
                int64_t stride) {
    const int wide = sizeof(T) == 4;
    for (int32_t k = (int32_t)(blockIdx.x * PACK_THREADS + threadIdx.x); k < cols;
         k += (int32_t)(gridDim.x * PACK_THREADS)) {
        const int32_t at = cu_padded_k(cuts, k);
        for (int32_t r = (int32_t)blockIdx.y; r < n; r += (int32_t)gridDim.y)
            dst[cu_weight_at(cuts, wide, row0 + r, at)] = src[(int64_t)r * stride + k];
    }
}

extern "C" size_t cu_weight_bytes(int32_t rows, int32_t cols, sp_dtype dtype,
                                  const sp_segments *seg) {
    (void)cols; /* seg->edge[n] */
    const cu_cuts cuts = cu_cuts_of(seg);
    const size_t element = dtype == SP_DTYPE_F32 ? 4 : 2;
    return (size_t)cu_tiles(rows, CU_GEMM_TILE_N) * (size_t)cuts.n_tiles * CU_GEMM_TILE_N *
           CU_GEMM_TILE_K * element;
}

template <class T>
static cudaError_t pack(cudaStream_t st, void *dst, const cu_weight *w, int32_t row0,
                        const void *src, int32_t n, int64_t stride) {
    const unsigned x = (unsigned)cu_tiles(w->cols, PACK_THREADS);
    const cu_shape shape = {dim3(x < 256 ? x : 256, (unsigned)(n < 16384 ? n : 16384)),
                            dim3(PACK_THREADS), 0, st};
    return cu_launch(shape, pack_kernel<T>, (T *)dst, cu_cuts_of(&w->seg), row0, (const T *)src, n,
                     w->cols, stride);
}

extern "C" cudaError_t cu_weight_pack(cudaStream_t st, void *dst, const cu_weight *w, int32_t row0,
                                      const void *src, int32_t n, int64_t stride) {
    if (row0 < 0 || n < 0 || n > w->rows - row0) return cudaErrorInvalidValue;
    if (n == 0 || w->cols == 0) return cudaSuccess;
    if (w->dtype == SP_DTYPE_F32) return pack<uint32_t>(st, dst, w, row0, src, n, stride);
    if (w->dtype == SP_DTYPE_F16 || w->dtype == SP_DTYPE_BF16)
        return pack<uint16_t>(st, dst, w, row0, src, n, stride);
    return cudaErrorInvalidValue;
}
