/* Matrix products with the bits of the contract (kernels.h): an element of y depends on its own row
 * of x, its row of w and the segments. Layouts: weight.cuh; x in two terms: gemm.cuh.
 *
 * few_kernel     2 byte weights, up to 16 rows. Floor: the weight, once, straight into registers
 *                (16 bytes a lane, 8 loads on their way): 8 T operations a byte (f16: 12), against
 *                295 that an H100 has for one. Grid N / 32; a warp a segment (1..8 warps), so that
 *                a whole K is read by 8 warps at once; their sums meet in 16 KiB of shared memory.
 * rows_kernel    packs x for the next one: 4 bytes read and 4 written an element.
 * tiles_kernel   2 byte weights, more rows. Floor: 4 T N K operations (f16 weights 6), twice
 *                those of a product of rounded x: what its accuracy costs. Blocks of 64x64 or
 *                128x128 outputs, 4 or 8 warps, three stages of 32 k by cp.async (36 or 72 KiB of
 *                dynamic shared memory); both operands come in the order that mma wants. Blocks of
 *                one column of tiles run side by side: the weight comes once out of memory.
 * wide_kernel    f32 weights: fmaf, 16 or 64 rows by 64 outputs a block, 256 threads, 16.5 KiB. No
 *                path for speed: f32 weights are for tests and small models.
 *
 * Numerics. 2 byte types: in one f32 accumulator a segment, from zero, for each step of 16 k,
 * ascending: mma m16n8k16 of x's first term, then of its second; f16 weights then of x's first term
 * with the weight's second. Segments by the tree; then + bias. Bound against the product in
 * doubles, and of `ref` against it, K products of n terms each (2 for bf16, 3 for f16):
 *     (r + (n K + 8) 2^-23) sum |x w|,   r = 2^-18 (bf16), 2^-17 (f16)
 * where r is what the terms leave out and 2^-23 an addition that a tensor core cuts where the
 * emulator rounds. x may be any f32: one that is not finite has no second term, and gives infinity
 * or NaN. Weights are finite. f32: fma over ascending k, never over padding: ref's bits.
 *
 * Sums that wait in the tree lie in local memory: they are touched at a segment's end only, and as
 * registers they would take three times the accumulators. */
#include "kernels/cuda/gemm.cuh"

/* ---- the tree over segments, of a thread's N accumulators ---- */

#define TREE_DEPTH 3

template <int N> struct waiting { float sum[TREE_DEPTH][N]; };

/* Segment s is done; after the last one (of 1, 2, 4, 8) acc is the value. */
template <int N> static __device__ __forceinline__ void join(float *acc, waiting<N> &w, int s) {
    int j = 0;
    for (; s >> j & 1; j++) CU_UNROLL for (int i = 0; i < N; i++) acc[i] = w.sum[j][i] + acc[i];
    if (j == TREE_DEPTH) return;
    CU_UNROLL for (int i = 0; i < N; i++) w.sum[j][i] = acc[i];
}

/* ---- few rows ---- */

template <bool HALF>
__global__ void __launch_bounds__(32 * SP_SEGMENTS)
    few_kernel(float *y, int32_t ldy, const float *x, int32_t ldx, const uint4 *w, cu_cuts cuts,
               const float *bias, int32_t T, int32_t N) {
    CU_SHARED(float, part, [SP_SEGMENTS][CU_FEW_ROWS][CU_FEW_COLS]);
    const int32_t n0 = (int32_t)blockIdx.x * CU_FEW_COLS;
    const int s = (int)(threadIdx.x / 32);
    float c[2][2][4] = {};
    for (int32_t tile = cuts.tile[s]; tile < cuts.tile[s + 1]; tile++)
        cu_few_tile<HALF>(c, x, ldx, T, w, cuts, s, tile, n0 / 16);
    cu_few_lay(part[s], c);
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < T * CU_FEW_COLS; i += (int32_t)blockDim.x) {
        const int32_t row = i / CU_FEW_COLS, col = i % CU_FEW_COLS;
        if (n0 + col >= N) continue;
        float level[TREE_DEPTH + 1] = {}; /* gcc does not see that each is set before it is read */
        for (int m = 0; m < cuts.n; m++) cu_tree_push(level, m, part[m][row][col]);
        const float sum = cu_tree_value(level, cuts.n);
        y[(int64_t)row * ldy + n0 + col] = bias ? __fadd_rn(sum, bias[n0 + col]) : sum;
    }
}

/* ---- many rows ---- */

/* packed[m16][k16][term] pieces; a warp two of them, a block a tile of k. */
__global__ void __launch_bounds__(128)
    rows_kernel(uint4 *packed, const float *x, int32_t ldx, cu_cuts cuts, int32_t T) {
    const int32_t m16 = (int32_t)blockIdx.x, warp = (int32_t)(threadIdx.x / 32);
    for (int32_t tile = (int32_t)blockIdx.y; tile < cuts.n_tiles; tile += (int32_t)gridDim.y) {
        const int s = cu_segment_of_tile(cuts, tile);
        const cu_terms t = cu_gemm_rows(x, ldx, T, m16 * 16, cu_first_k(cuts, s, tile) + warp * 16,
                                        cuts.edge[s + 1]);
        uint4 *to = packed + cu_rows_piece(cuts, m16, tile * 4 + warp) + threadIdx.x % 32;
        to[0] = t.hi;
        to[32] = t.lo;
    }
}

#define STAGES 3
#define STAGE_K16 2 /* pieces of 16 k in a stage; two stages a tile */

/* Both terms of a piece of x, as they lie in scratch. */
typedef struct cu_pieces {
    uint4 hi[32], lo[32];
} cu_pieces;

/* 2 x W warps, each P x 2 pieces of 16 x 16 outputs; W is 2 or 4. */
template <int P, int W> struct stage {
    cu_pieces x[2 * P][STAGE_K16];
    uint4 w[W / 2][STAGE_K16][4][32]; /* tiles of 64 outputs */
};

/* Stage `at` of K, for this block: what lies beyond the last rows or outputs is the last ones
 * again, and never stored. */
template <int P, int W>
static __device__ __forceinline__ void fetch(stage<P, W> &to, const uint4 *x, const uint4 *w,
                                             const cu_cuts &cuts, int32_t at, int32_t m_tiles,
                                             int32_t n_tiles) {
    const int32_t tid = (int32_t)threadIdx.x, k16 = at * STAGE_K16;
    CU_UNROLL for (int i = 0; i < 4 * P / W; i++) { /* 128 uint4 for 16 rows */
        const int32_t m = (i * 64 * W + tid) / 128, from = (i * 64 * W + tid) % 128;
        const int32_t m16 = min((int32_t)blockIdx.x * 2 * P + m, m_tiles - 1);
        cu_cp_async16((uint4 *)to.x[m] + from, x + cu_rows_piece(cuts, m16, k16) + from);
    }
    CU_UNROLL for (int i = 0; i < 2; i++) { /* 256 uint4 for 64 outputs */
        const int32_t n = (i * 64 * W + tid) / 256, from = (i * 64 * W + tid) % 256;
        const int32_t n64 = min((int32_t)blockIdx.y * (W / 2) + n, n_tiles - 1);
        cu_cp_async16(&to.w[n][0][0][0] + from, w + cu_weight_piece(cuts, n64 * 4, k16) + from);
    }
}

template <bool HALF, int P, int W>
static __device__ __forceinline__ void multiply(float (&c)[P][2][2][4], const stage<P, W> &in) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), warp = (int32_t)(threadIdx.x / 32);
    CU_UNROLL for (int k = 0; k < STAGE_K16; k++) {
        cu_terms b[2];
        CU_UNROLL for (int n = 0; n < 2; n++) {
            const int n16 = warp % W * 2 + n;
            b[n] = cu_gemm_weight<HALF>(in.w[n16 / 4][k][n16 % 4][lane]);
        }
        CU_UNROLL for (int m = 0; m < P; m++) {
            const cu_pieces &from = in.x[warp / W * P + m][k];
            const cu_terms a = {from.hi[lane], from.lo[lane]};
            cu_gemm_step<HALF>(c[m], a, b);
        }
    }
}

template <int P, int W>
static __device__ __forceinline__ void store(float *y, int32_t ldy, const float (&c)[P][2][2][4],
                                             const float *bias, int32_t T, int32_t N) {
    const int32_t lane = (int32_t)(threadIdx.x % 32), warp = (int32_t)(threadIdx.x / 32);
    const int32_t row0 = ((int32_t)blockIdx.x * 2 + warp / W) * P * 16 + lane / 4;
    const int32_t col0 = ((int32_t)blockIdx.y * W + warp % W) * 32 + lane % 4 * 2;
    CU_UNROLL for (int i = 0; i < P * 16; i++) {
        const int m = i / 16, n = i / 8 % 2, h = i / 4 % 2, e = i % 4;
        const int32_t row = row0 + m * 16 + e / 2 * 8, col = col0 + n * 16 + h * 8 + e % 2;
        if (row >= T || col >= N) continue;
        y[(int64_t)row * ldy + col] = bias ? __fadd_rn(c[m][n][h][e], bias[col]) : c[m][n][h][e];
    }
}

template <bool HALF, int P, int W>
__global__ void __launch_bounds__(64 * W)
    tiles_kernel(float *y, int32_t ldy, const uint4 *x, const uint4 *w, cu_cuts cuts,
                 const float *bias, int32_t T, int32_t N) {
    typedef stage<P, W> one_stage;
    CU_DYN_SHARED(one_stage, ring);
    const int32_t m_tiles = cu_tiles(T, 16), n_tiles = cu_tiles(N, CU_GEMM_TILE_N);
    const int32_t end = cuts.n_tiles * 2;
    CU_UNROLL for (int i = 0; i < STAGES - 1; i++) {
        if (i < end) fetch(ring[i], x, w, cuts, i, m_tiles, n_tiles);
        cu_cp_async_commit();
    }
    float c[P][2][2][4];
    waiting<P * 16> tree;
    int32_t at = 0;
    for (int s = 0; s < cuts.n; s++) {
        CU_UNROLL for (int i = 0; i < P * 16; i++) c[i / 16][i / 8 % 2][i / 4 % 2][i % 4] = 0;
        for (; at < cuts.tile[s + 1] * 2; at++) {
            cu_cp_async_wait<STAGES - 2>();
            __syncthreads(); /* stage `at` has come for all, and all are done with the one before */
            const int32_t next = at + STAGES - 1;
            if (next < end) fetch(ring[next % STAGES], x, w, cuts, next, m_tiles, n_tiles);
            cu_cp_async_commit();
            multiply<HALF, P, W>(c, ring[at % STAGES]);
        }
        join<P * 16>(&c[0][0][0][0], tree, s);
    }
    store<P, W>(y, ldy, c, bias, T, N);
}

/* ---- f32 weights ---- */

#define WIDE_K 32

/* Thread (i, j) of 16 x 16: rows j + 16 r, outputs 4 i.. of the block. */
template <int ROWS>
__global__ void __launch_bounds__(256)
    wide_kernel(float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, cu_cuts cuts,
                const float *bias, int32_t T, int32_t N) {
    CU_SHARED(float, xs, [16 * ROWS][WIDE_K + 1]);
    CU_SHARED(float, ws, [WIDE_K][CU_GEMM_TILE_N]);
    const int32_t tid = (int32_t)threadIdx.x, i = tid % 16, j = tid / 16;
    const int32_t row0 = (int32_t)blockIdx.x * 16 * ROWS, n64 = (int32_t)blockIdx.y;
    float c[ROWS * 4];
    waiting<ROWS * 4> tree;
    for (int s = 0; s < cuts.n; s++) {
        CU_UNROLL for (int e = 0; e < ROWS * 4; e++) c[e] = 0;
        for (int32_t k = cuts.edge[s]; k < cuts.edge[s + 1]; k += WIDE_K) {
            const int32_t n = min(cuts.edge[s + 1] - k, WIDE_K);
            const float *from =
                w + cu_weight_at(cuts, 1, n64 * CU_GEMM_TILE_N, cu_padded_k(cuts, k));
            for (int32_t e = tid; e < WIDE_K * CU_GEMM_TILE_N; e += 256)
                ws[e / CU_GEMM_TILE_N][e % CU_GEMM_TILE_N] = from[e];
            for (int32_t e = tid; e < 16 * ROWS * WIDE_K; e += 256)
                xs[e / WIDE_K][e % WIDE_K] =
                    cu_gemm_x(x, ldx, T, row0 + e / WIDE_K, k + e % WIDE_K, cuts.edge[s + 1]);
            __syncthreads();
            for (int32_t kk = 0; kk < n; kk++)
                CU_UNROLL for (int e = 0; e < ROWS * 4; e++) c[e] =
                    __fmaf_rn(xs[j + e / 4 * 16][kk], ws[kk][i * 4 + e % 4], c[e]);
            __syncthreads();
        }
        join<ROWS * 4>(c, tree, s);
    }
    CU_UNROLL for (int e = 0; e < ROWS * 4; e++) {
        const int32_t row = row0 + j + e / 4 * 16, col = n64 * CU_GEMM_TILE_N + i * 4 + e % 4;
        if (row < T && col < N)
            y[(int64_t)row * ldy + col] = bias ? __fadd_rn(c[e], bias[col]) : c[e];
    }
}

/* ---- the host's side ---- */

typedef struct product {
    cudaStream_t st;
    float *y;
    int32_t ldy;
    const float *x;
    int32_t ldx;
    const cu_weight *w;
    const float *bias;
    int32_t T;
    void *scratch;
} product;

static cudaError_t wide(const product &p) {
    const cu_cuts cuts = cu_cuts_of(&p.w->seg);
    const int32_t rows = p.T <= 16 ? 16 : 64;
    const cu_shape shape = {
        dim3((unsigned)cu_tiles(p.T, rows), (unsigned)cu_tiles(p.w->rows, CU_GEMM_TILE_N)),
        dim3(256), 0, p.st};
    return cu_launch(shape, rows == 16 ? wide_kernel<1> : wide_kernel<4>, p.y, p.ldy, p.x, p.ldx,
                     (const float *)p.w->data, cuts, p.bias, p.T, p.w->rows);
}

template <bool HALF, int P, int W> static cudaError_t tiles(const product &p, const cu_cuts &cuts) {
    void (*kernel)(float *, int32_t, const uint4 *, const uint4 *, cu_cuts, const float *, int32_t,
                   int32_t) = tiles_kernel<HALF, P, W>;
    const cu_shape shape = {
        dim3((unsigned)cu_tiles(p.T, 32 * P), (unsigned)cu_tiles(p.w->rows, 32 * W)), dim3(64 * W),
        STAGES * sizeof(stage<P, W>), p.st};
    if (shape.smem > 48 * 1024) {
        const cudaError_t err = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.smem);
        if (err != cudaSuccess) return err;
    }
    return cu_launch(shape, kernel, p.y, p.ldy, (const uint4 *)p.scratch, (const uint4 *)p.w->data,
                     cuts, p.bias, p.T, p.w->rows);
}

template <bool HALF> static cudaError_t narrow(const product &p) {
    const cu_cuts cuts = cu_cuts_of(&p.w->seg);
    if (p.T <= CU_FEW_ROWS) {
        const cu_shape shape = {dim3((unsigned)cu_tiles(p.w->rows, CU_FEW_COLS)),
                                dim3(32 * (unsigned)cuts.n), 0, p.st};
        return cu_launch(shape, few_kernel<HALF>, p.y, p.ldy, p.x, p.ldx, (const uint4 *)p.w->data,
                         cuts, p.bias, p.T, p.w->rows);
    }
    if (cuts.n_tiles > 0) {
        if (!p.scratch) return cudaErrorInvalidValue;
        const cu_shape shape = {
            dim3((unsigned)cu_tiles(p.T, 16), (unsigned)min(cuts.n_tiles, 65535)), dim3(128), 0,
            p.st};
        const cudaError_t err =
            cu_launch(shape, rows_kernel, (uint4 *)p.scratch, p.x, p.ldx, cuts, p.T);
        if (err != cudaSuccess) return err;
    }
    return p.T <= 64 ? tiles<HALF, 2, 2>(p, cuts) : tiles<HALF, 4, 4>(p, cuts);
}

extern "C" cudaError_t cu_gemm(cudaStream_t st, float *y, int32_t ldy, const float *x, int32_t ldx,
                               const cu_weight *w, const float *bias, int32_t T, void *scratch) {
    if (T < 0) return cudaErrorInvalidValue;
    if (T == 0 || w->rows == 0) return cudaSuccess;
    const product p = {st, y, ldy, x, ldx, w, bias, T, scratch};
    if (w->dtype == SP_DTYPE_F32) return wide(p);
    if (w->dtype == SP_DTYPE_F16) return narrow<true>(p);
    if (w->dtype == SP_DTYPE_BF16) return narrow<false>(p);
    return cudaErrorInvalidValue;
}

extern "C" size_t cu_gemm_scratch(int32_t rows, int32_t cols, sp_dtype dtype, int32_t max_tokens) {
    (void)rows;
    if (dtype == SP_DTYPE_F32 || max_tokens <= CU_FEW_ROWS) return 0;
    /* Where the segments of K end is not known here: each may need a tile more. */
    const size_t k = ((size_t)cols / CU_GEMM_TILE_K + SP_SEGMENTS) * CU_GEMM_TILE_K;
    return (size_t)cu_tiles(max_tokens, 16) * 16 * k * 4; /* two terms of 2 bytes */
}
