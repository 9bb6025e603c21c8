/* Token ids that the host does not know yet, put in by the device: one step ahead of the host.
 *
 * Floor: 4 bytes read and written an id, and 4 of `last` for those that are looked up; launch time
 * bounds it. Numerics: none, ids are copied. A slot that there is not stays as it is: negative, so
 * that the embedding behind it makes it the step's fault.
 * Launch: 256 threads, a thread an id, no shared memory. Each id is read and written by its own
 * thread alone; `last` is written by the draw of the step before, in the same stream. */
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.cuh"

#define THREADS 256

__global__ void __launch_bounds__(THREADS)
    feed_kernel(int32_t *ids, const int32_t *last, int32_t n_last, int32_t T) {
    const int32_t t = (int32_t)(blockIdx.x * THREADS + threadIdx.x);
    if (t >= T || ids[t] >= 0) return;
    const int32_t slot = -1 - ids[t];
    if (slot < n_last) ids[t] = last[slot];
}

extern "C" cudaError_t cu_feed(cudaStream_t st, int32_t *ids, const int32_t *last, int32_t n_last,
                               int32_t T) {
    if (T < 0 || n_last < 0) return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    return cu_launch({dim3((unsigned)((T + THREADS - 1) / THREADS)), dim3(THREADS), 0, st},
                     feed_kernel, ids, last, n_last, T);
}
