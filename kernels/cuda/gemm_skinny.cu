/* Products with up to 16 rows for mode fast: the weight is streamed once, by all warps, whatever
 * the segments are.
 *
 * skinny_kernel   2 byte weights: floor the weight's bytes; 16 bytes a lane, 8 loads on their way
 *                 in each of 8 warps; tiles of 64 k are dealt to the warps in turn. Grid N / 32.
 * skinny_wide     f32 weights: 8 bytes a lane; x comes as broadcasts. Grid N / 64.
 *
 * Numerics: a warp's sum over its tiles, k ascending; warps added in ascending order; then + bias.
 * So the bits depend on the segments (they place the tiles), not on T or the other rows: f32
 * exactly so, and within the bounds of gemm.cu, which the test uses. With a whole K of 8 segments
 * cu_gemm reads the weight with as many warps; this one is for ranks that hold 1 or 2 segments. */
#include "kernels/cuda/gemm.cuh"

template <bool HALF>
__global__ void __launch_bounds__(32 * CU_FEW_WARPS)
    skinny_kernel(float *y, int32_t ldy, const float *x, int32_t ldx, const uint4 *w, cu_cuts cuts,
                  const float *bias, int32_t T, int32_t N) {
    CU_SHARED(float, part, [CU_FEW_WARPS][CU_FEW_ROWS][CU_FEW_COLS]);
    const int32_t n0 = (int32_t)blockIdx.x * CU_FEW_COLS, warp = (int32_t)(threadIdx.x / 32);
    float c[2][2][4] = {};
    for (int32_t tile = warp; tile < cuts.n_tiles; tile += CU_FEW_WARPS)
        cu_few_tile<HALF>(c, x, ldx, T, w, cuts, cu_segment_of_tile(cuts, tile), tile, n0 / 16);
    cu_few_lay(part[warp], c);
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < T * CU_FEW_COLS; i += 32 * CU_FEW_WARPS) {
        const int32_t row = i / CU_FEW_COLS, col = i % CU_FEW_COLS;
        if (n0 + col >= N) continue;
        float sum = part[0][row][col];
        CU_UNROLL for (int m = 1; m < CU_FEW_WARPS; m++) sum += part[m][row][col];
        y[(int64_t)row * ldy + n0 + col] = bias ? sum + bias[n0 + col] : sum;
    }
}

/* ROWS: 1, 4 or 16, at least T. A lane has outputs 2 lane, 2 lane + 1 of the tile. */
template <int ROWS>
__global__ void __launch_bounds__(32 * CU_FEW_WARPS)
    skinny_wide(float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, cu_cuts cuts,
                const float *bias, int32_t T, int32_t N) {
    CU_SHARED(float, part, [CU_FEW_WARPS][ROWS][CU_GEMM_TILE_N]);
    const int32_t lane = (int32_t)(threadIdx.x % 32), warp = (int32_t)(threadIdx.x / 32);
    const int32_t n0 = (int32_t)blockIdx.x * CU_GEMM_TILE_N;
    float c[ROWS][2] = {};
    for (int32_t tile = warp; tile < cuts.n_tiles; tile += CU_FEW_WARPS) {
        const int s = cu_segment_of_tile(cuts, tile);
        const int32_t k0 = cu_first_k(cuts, s, tile),
                      n = min(cuts.edge[s + 1] - k0, CU_GEMM_TILE_K);
        const float *from = w + cu_weight_at(cuts, 1, n0, tile * CU_GEMM_TILE_K) + lane * 2;
        CU_UNROLL_BY(8) for (int32_t k = 0; k < n; k++) {
            const float2 v = __ldcs((const float2 *)(from + k * CU_GEMM_TILE_N));
            CU_UNROLL for (int r = 0; r < ROWS; r++) {
                const float xv = r < T ? x[(int64_t)r * ldx + k0 + k] : 0.0f;
                c[r][0] = __fmaf_rn(xv, v.x, c[r][0]);
                c[r][1] = __fmaf_rn(xv, v.y, c[r][1]);
            }
        }
    }
    CU_UNROLL for (int i = 0; i < ROWS * 2; i++) part[warp][i / 2][lane * 2 + i % 2] =
        c[i / 2][i % 2];
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < T * CU_GEMM_TILE_N; i += 32 * CU_FEW_WARPS) {
        const int32_t row = i / CU_GEMM_TILE_N, col = i % CU_GEMM_TILE_N;
        if (n0 + col >= N) continue;
        float sum = part[0][row][col];
        CU_UNROLL for (int m = 1; m < CU_FEW_WARPS; m++) sum += part[m][row][col];
        y[(int64_t)row * ldy + n0 + col] = bias ? sum + bias[n0 + col] : sum;
    }
}

extern "C" cudaError_t cu_gemm_skinny(cudaStream_t st, float *y, int32_t ldy, const float *x,
                                      int32_t ldx, const cu_weight *w, const float *bias,
                                      int32_t T) {
    if (T < 0 || T > CU_FEW_ROWS) return cudaErrorInvalidValue;
    if (T == 0 || w->rows == 0) return cudaSuccess;
    const cu_cuts cuts = cu_cuts_of(&w->seg);
    const int32_t by = w->dtype == SP_DTYPE_F32 ? CU_GEMM_TILE_N : CU_FEW_COLS;
    const cu_shape shape = {dim3((unsigned)cu_tiles(w->rows, by)), dim3(32 * CU_FEW_WARPS), 0, st};
    if (w->dtype == SP_DTYPE_F32)
        return cu_launch(shape,
                         T == 1   ? skinny_wide<1>
                         : T <= 4 ? skinny_wide<4>
                                  : skinny_wide<16>,
                         y, ldy, x, ldx, (const float *)w->data, cuts, bias, T, w->rows);
    if (w->dtype != SP_DTYPE_F16 && w->dtype != SP_DTYPE_BF16) return cudaErrorInvalidValue;
    return cu_launch(shape, w->dtype == SP_DTYPE_F16 ? skinny_kernel<true> : skinny_kernel<false>,
                     y, ldy, x, ldx, (const uint4 *)w->data, cuts, bias, T, w->rows);
}
