/* Rows of the embedding, out of the packed weight.
 *
 * Floor: 2 or 4 bytes read and 4 written an element; in 2 byte types a row touches 8 bytes of every
 * sector of 32, so up to four times the reads, of a kernel that moves T rows and nothing else; of a
 * row-major weight (mode fast) each byte once.
 * Numerics: widened, exact: bound against ref 0. A row whose id is outside the vocabulary becomes
 * zeros, and the first such row of the earliest call is the fault. In a part of a vocabulary, a row
 * that is another rank's becomes -0, the one value that a sum leaves every other as it is.
 * Launch: grid (T + 1, pieces of 1024 columns), 256 threads; block (T, 0) looks for faults alone,
 * because "first" is a question to all rows, and blocks have no order. */
#include "kernels/cuda/weight.cuh"

#define THREADS 256
#define PIECE 1024

static __device__ __forceinline__ int32_t id_of(const int32_t *ids, const cu_embed_from &from,
                                                int64_t t) {
    const int32_t id = ids[t], slot = -1 - id;
    return id < 0 && slot < from.n_last ? from.last[slot] : id;
}

static __device__ void find_fault(const int32_t *ids, int32_t T, const cu_embed_from &from,
                                  cu_fault *fault) {
    long long first = T;
    for (int32_t t = (int32_t)threadIdx.x; t < T; t += THREADS)
        if ((uint32_t)id_of(ids, from, t) >= (uint32_t)from.vocab && t < first) first = t;
    first = -cu_block_max(-first);
    if (threadIdx.x != 0 || first == T || fault->code != 0) return;
    fault->row = (int32_t)first;
    fault->value = id_of(ids, from, first);
    __threadfence_system(); /* who polls `code` finds the rest written */
    fault->code = CU_FAULT_ID;
}

static __device__ __forceinline__ float widen(const void *data, int dtype, int64_t at) {
    if (dtype == SP_DTYPE_F32) return ((const float *)data)[at];
    if (dtype == SP_DTYPE_F16) return __half2float(((const __half *)data)[at]);
    return __bfloat162float(((const __nv_bfloat16 *)data)[at]);
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS)
    embed_kernel(float *y, int32_t ldy, const void *data, cu_cuts cuts, int32_t ld, int32_t rows,
                 int32_t cols, const int32_t *ids, int32_t T, cu_embed_from from, cu_fault *fault) {
    const int32_t t = (int32_t)blockIdx.x;
    if (t == T) {
        if (blockIdx.y == 0) find_fault(ids, T, from, fault);
        return;
    }
    const int32_t id = id_of(ids, from, t);
    const int32_t row = (int32_t)((uint32_t)id - (uint32_t)from.first);
    const bool known = (uint32_t)id < (uint32_t)from.vocab;
    const bool mine = known && (uint32_t)row < (uint32_t)rows;
    float *yr = y + (int64_t)t * ldy;
    for (int32_t k = (int32_t)(blockIdx.y * THREADS + threadIdx.x); k < cols;
         k += (int32_t)(gridDim.y * THREADS)) {
        const int64_t at =
            ld ? (int64_t)row * ld + k
               : cu_weight_at(cuts, DTYPE == SP_DTYPE_F32, row, cu_padded_k(cuts, k));
        yr[k] = mine ? widen(data, DTYPE, at) : known ? -0.0f : 0.0f;
    }
}

extern "C" cudaError_t cu_embed_part(cudaStream_t st, float *y, int32_t ldy, const cu_weight *w,
                                     const int32_t *ids, int32_t T, const cu_embed_from *from,
                                     cu_fault *fault) {
    if (T < 0 || T == INT32_MAX || from->n_last < 0 || from->first < 0)
        return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    const int32_t pieces = cu_tiles(w->cols, PIECE);
    const cu_shape shape = {dim3((unsigned)T + 1, (unsigned)max(1, min(pieces, 65535))),
                            dim3(THREADS), 0, st};
    const cu_cuts cuts = cu_cuts_of(&w->seg);
    switch ((int)w->dtype) {
    case SP_DTYPE_F32:
        return cu_launch(shape, embed_kernel<SP_DTYPE_F32>, y, ldy, w->data, cuts, w->ld, w->rows,
                         w->cols, ids, T, *from, fault);
    case SP_DTYPE_F16:
        return cu_launch(shape, embed_kernel<SP_DTYPE_F16>, y, ldy, w->data, cuts, w->ld, w->rows,
                         w->cols, ids, T, *from, fault);
    case SP_DTYPE_BF16:
        return cu_launch(shape, embed_kernel<SP_DTYPE_BF16>, y, ldy, w->data, cuts, w->ld, w->rows,
                         w->cols, ids, T, *from, fault);
    }
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t cu_embed(cudaStream_t st, float *y, int32_t ldy, const cu_weight *w,
                                const int32_t *ids, int32_t T, cu_fault *fault) {
    const cu_embed_from whole = {.last = NULL, .n_last = 0, .first = 0, .vocab = w->rows};
    return cu_embed_part(st, y, ldy, w, ids, T, &whole, fault);
}
