/* Products of mode fast by row-major weights (kernels.h): up to 16 rows, and rows of x as cuBLASLt wants
 * them for more.
 *
 * plain_kernel    2 byte weights. Floor: the weight's bytes, once. Grid N / 32, 8 warps; a warp takes
 *                 every eighth piece of 64 k: 8 loads of 16 bytes on their way, so that four lanes read
 *                 128 neighbouring bytes of an output's row. Which k a lane has is another order than
 *                 that of gemm.cuh, on both operands alike: 4t..4t+3 of each half instead of
 *                 2t, 2t+1, 2t+8, 2t+9.
 * plain_wide      f32 weights. A warp has 2 outputs, its lanes 4 k each; sums by a butterfly. No path
 *                 for speed.
 * round_kernel    4 bytes read and 2 written an element; 16 byte stores.
 *
 * Numerics: f32 sums of x (rounded to a 2 byte weight's type) times w, a warp's pieces with k
 * ascending, warps in ascending order, then + bias: bits depend on K alone, not on T or the other
 * rows. Bound against the product of the rounded x in double: (K + 8) 2^-23 sum |x w|; rounding x adds
 * at most 2^-8 (bf16) or 2^-11 (f16) sum |x w|. */
#include "kernels/cuda/weight.cuh"

#define WARPS 8
#define COLS 32 /* outputs of a block, 2 byte types */
#define WIDE_COLS (2 * WARPS)
#define PIECE 64 /* k of a warp's turn */

/* x[row, k..k+3], zeros beyond the rows and K. `quads`: rows begin at 16 bytes. */
static __device__ __forceinline__ float4 four(const float *x, int32_t ldx, int32_t T, int32_t row,
                                              int32_t k, int32_t K, bool quads) {
    float4 v = make_float4(0, 0, 0, 0);
    if (row >= T) return v;
    const float *from = x + (int64_t)row * ldx + k;
    if (quads && k + 4 <= K) return *(const float4 *)from;
    if (k < K) v.x = from[0];
    if (k + 1 < K) v.y = from[1];
    if (k + 2 < K) v.z = from[2];
    if (k + 3 < K) v.w = from[3];
    return v;
}

template <bool HALF> static __device__ __forceinline__ uint32_t pair(float low, float high) {
    return HALF ? cu_pack_f16(low, high) : cu_pack_bf16(low, high);
}

template <bool HALF>
static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    if (HALF)
        cu_mma_f16(c, a, b, c);
    else
        cu_mma_bf16(c, a, b, c);
}

/* Operand A of 16 rows: this lane's four k, `k` on, as slots 2t, 2t+1 and 2t+8, 2t+9. */
template <bool HALF>
static __device__ __forceinline__ void take_rows(uint32_t (&a)[4], const float *x, int32_t ldx,
                                                 int32_t T, int32_t k, int32_t K, bool quads) {
    const int32_t g = (int32_t)(threadIdx.x % 32) / 4;
    CU_UNROLL for (int i = 0; i < 2; i++) {
        const float4 v = four(x, ldx, T, g + i * 8, k, K, quads);
        a[i] = pair<HALF>(v.x, v.y);
        a[i + 2] = pair<HALF>(v.z, v.w);
    }
}

/* c += 16 rows by 32 outputs, over one piece of k. `ld16`: pieces of 16 bytes in a row of w. */
template <bool HALF>
static __device__ __forceinline__ void take_piece(float (&c)[4][4], const float *x, int32_t ldx,
                                                  const uint4 *w, int32_t ld16, int32_t n0,
                                                  int32_t piece, int32_t T, int32_t N, int32_t K,
                                                  bool quads) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    uint4 b[2][4];
    CU_UNROLL for (int i = 0; i < 8; i++) {
        const int32_t at = piece * (PIECE / 8) + i / 4 * 4 + t;
        const int32_t row = min(n0 + i % 4 * 8 + g, N - 1); /* beyond N: never stored */
        b[i / 4][i % 4] = at < ld16 ? __ldcs(w + (int64_t)row * ld16 + at) : make_uint4(0, 0, 0, 0);
    }
    CU_UNROLL for (int i = 0; i < 4; i++) { /* steps of 16 k */
        uint32_t a[4];
        take_rows<HALF>(a, x, ldx, T, piece * PIECE + i / 2 * 32 + t * 8 + i % 2 * 4, K, quads);
        CU_UNROLL for (int n = 0; n < 4; n++) {
            const uint4 v = b[i / 2][n];
            multiply<HALF>(c[n], a, i % 2 ? v.z : v.x, i % 2 ? v.w : v.y);
        }
    }
}

template <bool HALF>
__global__ void __launch_bounds__(32 * WARPS)
    plain_kernel(float *y, int32_t ldy, const float *x, int32_t ldx, const uint4 *w, int32_t ld16,
                 const float *bias, int32_t T, int32_t N, int32_t K, bool quads) {
    CU_SHARED(float, part, [WARPS][CU_PLAIN_ROWS][COLS]);
    const int32_t n0 = (int32_t)blockIdx.x * COLS, warp = (int32_t)(threadIdx.x / 32);
    const int32_t lane = (int32_t)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    float c[4][4] = {};
    for (int32_t piece = warp; piece < cu_tiles(K, PIECE); piece += WARPS)
        take_piece<HALF>(c, x, ldx, w, ld16, n0, piece, T, N, K, quads);
    CU_UNROLL for (int i = 0; i < 16; i++)
        part[warp][g + i % 4 / 2 * 8][i / 4 * 8 + t * 2 + i % 2] = c[i / 4][i % 4];
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < T * COLS; i += 32 * WARPS) {
        const int32_t row = i / COLS, col = i % COLS;
        if (n0 + col >= N) continue;
        float sum = part[0][row][col];
        CU_UNROLL for (int m = 1; m < WARPS; m++) sum += part[m][row][col];
        y[(int64_t)row * ldy + n0 + col] = bias ? sum + bias[n0 + col] : sum;
    }
}

/* ROWS: 1, 4 or 16, at least T. Whole warps stay until the end: the last outputs are repeated. */
template <int ROWS>
__global__ void __launch_bounds__(32 * WARPS)
    plain_wide(float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, int32_t ld,
               const float *bias, int32_t T, int32_t N, int32_t K, bool quads) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), warp = (int32_t)(threadIdx.x / 32);
    const int32_t n0 = (int32_t)blockIdx.x * WIDE_COLS + warp * 2;
    float c[ROWS][2] = {};
    for (int32_t k = lane * 4; k < ld; k += 128) {
        float4 b[2];
        CU_UNROLL for (int n = 0; n < 2; n++) b[n] =
            __ldcs((const float4 *)(w + (int64_t)min(n0 + n, N - 1) * ld + k));
        CU_UNROLL for (int r = 0; r < ROWS; r++) {
            const float4 v = four(x, ldx, T, r, k, K, quads);
            CU_UNROLL for (int n = 0; n < 2; n++) {
                c[r][n] = __fmaf_rn(v.x, b[n].x, c[r][n]);
                c[r][n] = __fmaf_rn(v.y, b[n].y, c[r][n]);
                c[r][n] = __fmaf_rn(v.z, b[n].z, c[r][n]);
                c[r][n] = __fmaf_rn(v.w, b[n].w, c[r][n]);
            }
        }
    }
    CU_UNROLL for (int r = 0; r < ROWS; r++) {
        CU_UNROLL for (int n = 0; n < 2; n++) {
            const float sum = cu_warp_sum(c[r][n]);
            if (lane == 0 && r < T && n0 + n < N)
                y[(int64_t)r * ldy + n0 + n] = bias ? sum + bias[n0 + n] : sum;
        }
    }
}

#define ROUND_THREADS 128

template <bool HALF>
__global__ void __launch_bounds__(ROUND_THREADS)
    round_kernel(uint4 *out, int32_t ld16, const float *x, int32_t ldx, int32_t T, int32_t K,
                 bool quads) {
    const int32_t t = (int32_t)blockIdx.x;
    for (int32_t i = (int32_t)(blockIdx.y * ROUND_THREADS + threadIdx.x); i < ld16;
         i += (int32_t)(gridDim.y * ROUND_THREADS)) {
        const float4 a = four(x, ldx, T, t, i * 8, K, quads);
        const float4 b = four(x, ldx, T, t, i * 8 + 4, K, quads);
        out[(int64_t)t * ld16 + i] = make_uint4(pair<HALF>(a.x, a.y), pair<HALF>(a.z, a.w),
                                                pair<HALF>(b.x, b.y), pair<HALF>(b.z, b.w));
    }
}

/* ---- the host's side ---- */

static bool in_quads(const float *x, int32_t ldx) {
    return (uintptr_t)x % 16 == 0 && ldx % 4 == 0;
}

extern "C" int32_t cu_plain_ld(int32_t cols, sp_dtype dtype) {
    const int32_t by = dtype == SP_DTYPE_F32 ? 4 : 8;
    return cu_tiles(cols, by) * by;
}

extern "C" cudaError_t cu_plain_gemm(cudaStream_t st, float *y, int32_t ldy, const float *x,
                                     int32_t ldx, const cu_weight *w, const float *bias,
                                     int32_t T) {
    const bool wide = w->dtype == SP_DTYPE_F32, quads = in_quads(x, ldx);
    if (T < 0 || T > CU_PLAIN_ROWS || w->ld != cu_plain_ld(w->cols, w->dtype))
        return cudaErrorInvalidValue;
    if (T == 0 || w->rows == 0) return cudaSuccess;
    const cu_shape shape = {dim3((unsigned)cu_tiles(w->rows, wide ? WIDE_COLS : COLS)),
                            dim3(32 * WARPS), 0, st};
    if (wide)
        return cu_launch(shape,
                         T == 1   ? plain_wide<1>
                         : T <= 4 ? plain_wide<4>
                                  : plain_wide<16>,
                         y, ldy, x, ldx, (const float *)w->data, w->ld, bias, T, w->rows, w->cols,
                         quads);
    if (w->dtype != SP_DTYPE_F16 && w->dtype != SP_DTYPE_BF16) return cudaErrorInvalidValue;
    return cu_launch(shape, w->dtype == SP_DTYPE_F16 ? plain_kernel<true> : plain_kernel<false>, y,
                     ldy, x, ldx, (const uint4 *)w->data, w->ld / 8, bias, T, w->rows, w->cols,
                     quads);
}

extern "C" cudaError_t cu_plain_round(cudaStream_t st, void *out, int32_t ld, sp_dtype dtype,
                                      const float *x, int32_t ldx, int32_t T, int32_t K) {
    if (T < 0 || ld != cu_plain_ld(K, dtype) || (dtype != SP_DTYPE_F16 && dtype != SP_DTYPE_BF16))
        return cudaErrorInvalidValue;
    if (T == 0 || ld == 0) return cudaSuccess;
    const cu_shape shape = {
        dim3((unsigned)T, (unsigned)min(cu_tiles(ld / 8, ROUND_THREADS), 65535)),
        dim3(ROUND_THREADS), 0, st};
    return cu_launch(shape, dtype == SP_DTYPE_F16 ? round_kernel<true> : round_kernel<false>,
                     (uint4 *)out, ld / 8, x, ldx, T, K, in_quads(x, ldx));
}
