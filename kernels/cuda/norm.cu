/* Residual sum and RMS norm: one block a row.
 *
 * Floors: 12 E bytes read (x, partial, weight) and 8 E written, when x comes out of L2 the second
 * time; 3 E operations. What bounds a single row is the chain of E / 16 dependent fma (E 4096:
 * about 1 us): it is the order of kernels/README.md, and rows run side by side.
 * Numerics: x = x + (p + bias) or x + p; element i by fma(x, x, l) into lane i mod 16, i
 * ascending; tree of 16 lanes; mean = sum / E; scale = 1 / sqrt(mean + eps); y = (x * scale) *
 * weight. Each operation rounds by itself (__f*_rn), so that no flag of a compiler can fuse two.
 * Bound against ref: 0.
 * Launch: grid T, 128 threads; 8 KiB of shared memory carry elements from the threads that load
 * them to the 16 lanes that add them. */
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.cuh"

#define THREADS 128
#define CHUNK 2048 /* elements summed between two barriers; a multiple of 16 */

template <bool NORM>
__global__ void __launch_bounds__(THREADS)
    norm_kernel(float *y, int32_t ldy, float *x, int32_t ldx, const float *partial, int32_t ldp,
                const float *bias, const float *weight, float eps, int32_t E) {
    CU_SHARED(float, chunk, [CHUNK]);
    CU_SHARED(float, scale, );
    const int32_t tid = (int32_t)threadIdx.x;
    float *xr = x + (int64_t)blockIdx.x * ldx;
    const float *pr = partial ? partial + (int64_t)blockIdx.x * ldp : nullptr;
    float lane = 0;
    for (int32_t at = 0; at < E; at += CHUNK) {
        const int32_t n = min(E - at, CHUNK);
        for (int32_t i = tid; i < n; i += THREADS) {
            float v = xr[at + i];
            if (pr) {
                v = __fadd_rn(v, bias ? __fadd_rn(pr[at + i], bias[at + i]) : pr[at + i]);
                xr[at + i] = v;
            }
            if (NORM) chunk[i] = v;
        }
        if (!NORM) continue;
        __syncthreads();
        if (tid < SP_LANES)
            for (int32_t i = tid; i < n; i += SP_LANES) lane = __fmaf_rn(chunk[i], chunk[i], lane);
        __syncthreads(); /* the chunk is filled again */
    }
    if (!NORM) return;
    if (tid < 32) {
        const float sum = cu_warp_sum<SP_LANES>(lane);
        if (tid == 0) scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)E), eps)));
    }
    __syncthreads();
    /* A thread reads what it wrote itself. */
    const float by = scale;
    float *yr = y + (int64_t)blockIdx.x * ldy;
    for (int32_t at = 0; at < E; at += CHUNK)
        for (int32_t i = at + tid; i < min(E, at + CHUNK); i += THREADS)
            yr[i] = __fmul_rn(__fmul_rn(xr[i], by), weight[i]);
}

extern "C" cudaError_t cu_add_rmsnorm(cudaStream_t st, float *y, int32_t ldy, float *x, int32_t ldx,
                                      const float *partial, int32_t ldp, const float *bias,
                                      const float *weight, float eps, int32_t T, int32_t E) {
    if (T <= 0 || E <= 0) return T == 0 || E == 0 ? cudaSuccess : cudaErrorInvalidValue;
    if (y && !weight) return cudaErrorInvalidValue;
    if (!y && !partial) return cudaSuccess;
    const cu_shape shape = {dim3((unsigned)T), dim3(THREADS), 0, st};
    return y ? cu_launch(shape, norm_kernel<true>, y, ldy, x, ldx, partial, ldp, bias, weight, eps,
                         E)
             : cu_launch(shape, norm_kernel<false>, y, ldy, x, ldx, partial, ldp, bias, weight, eps,
                         E);
}
