/* Paged attention for prompts and for decoding, with the same bits in every launch shape.
 *
 * Floors, for a tile of R rows (token, head of the group) that see n positions: 2 n D elements of
 * the cache read once for all heads of a group, 4 R D bytes read (q) and written; 4 R n D
 * operations, in tensor cores 8 R n D: q and p go in as two terms. A decode step with a group of 4
 * has 16 operations a byte of a 2 byte cache, of 295 that an H100 has for one: the cache's bytes
 * bound it; a prompt is bound by operations, where a tile of 64 rows has 128 a byte of L2.
 * Splitting adds 8 (D + 2) bytes for each row and split, written and read: 1/64 of a group's cache
 * bytes.
 *
 * Numerics: attend_soft.cuh has the order of a split and of the merge. A cache of f32: all by fma
 * in the order of ref (attend_fma.cuh); bound against ref: 0. f16, bf16 (attend_mma.cuh): q and p
 * are two terms of the cache's type, products are exact, sums f32, the sum over p is of p itself.
 * Bound against doubles on what the cache holds, and of `ref` against it, of the largest |v|:
 *     (2 A + 1) (2^-17 + (2 max(D, 256) + 16) 2^-23) + 2^-20 for each split
 * A: scale times the largest sum (|q| + 1/8) |k|. 2^-17 holds what the terms leave out, 2^-18 for
 * bf16; for f16 2^-22, and 256 times the 2^-25 that an f16 ends at. q beyond 131008 is infinite in
 * f16, and K and V are finite. Which neighbours a row has changes nothing.
 *
 * Why two terms: with one, the logits of the goldens differ from those of ref on the same bf16
 * cache by 2 to 7 times as much (root of mean squares 2e-2 for 4e-3): rounding q and p weighed as
 * much as rounding the cache. What is left is K and V that round the other way.
 *
 * Launch: block (first token of a tile, kv head, 256 positions or all).
 *   up to 64 rows that reach beyond 256 positions: a block for each split, partial results, merge;
 *   up to 256 rows: tiles of 16 rows, a block begins at every token (a batch of sequences);
 *   more: tiles of 64 rows, where the head dimension is at most 128.
 * Shared memory, bytes for D (padded to 16): (2 M + 64 stages) (2 D + 16) + 1040 M, asked for by
 * attribute where it is more than 32 KiB: M 16: 39 KiB for D 64, 58 for 128, 99 for 256, 114 for
 * 512 (one stage); M 64: 101 KiB for 64, 133 for 128; and 36 M static. f32: 8 rows, 8 KiB. Cards
 * that have 99 KiB for a block (8.6, 8.9) have tiles of 16 rows from D 64 on, and are refused D
 * above 240. */
#include "kernels/cuda/attend_shape.h"

#include "kernels/cuda/attend_fma.cuh"
#include "kernels/cuda/attend_mma.cuh"

#define FEW_ROWS 64 /* at most, for splits */
#define SPLITS_MAX \
    4096 /* rows x splits that scratch is made for; more rows fill the device alone */
#define SINGLE_ROWS 256 /* at most, for blocks that begin at every token */
#define MERGE_THREADS 128

/* Left fold of a row's splits. */
__global__ void __launch_bounds__(MERGE_THREADS) merge_kernel(const cu_attend_step a) {
    const int32_t t = (int32_t)blockIdx.x, h = (int32_t)blockIdx.y, D = a.kv.D;
    const cu_span s = cu_span_of(a, t);
    float *out = a.out + (int64_t)t * a.ldo + (int64_t)h * D;
    const int32_t first = s.lo / SP_ATTN_SPLIT, end = (s.hi + SP_ATTN_SPLIT - 1) / SP_ATTN_SPLIT;
    for (int32_t d = (int32_t)threadIdx.x; d < D; d += MERGE_THREADS) {
        int64_t at = cu_row_part(a, t, h, first);
        if (s.hi == 0) {
            out[d] = 0;
            continue;
        }
        float m = a.stats[2 * at], l = a.stats[2 * at + 1], o = a.part[at * D + d];
        for (int32_t i = first + 1; i < end; i++) {
            at++;
            const cu_factors f = cu_factors_of(m, a.stats[2 * at]);
            m = f.max;
            l = cu_join(l, a.stats[2 * at + 1], f.keep, f.add);
            o = cu_join(o, a.part[at * D + d], f.keep, f.add);
        }
        out[d] = __fdiv_rn(o, l);
    }
}

/* ---- host ---- */

typedef void attend_kernel(cu_attend_step);

template <class P, int HALVES, int MT, int NG>
static cudaError_t run_mma(cu_shape shape, const cu_attend_step &a) {
    typedef cu_mma_block<P, HALVES, MT, NG> block;
    void (*kernel)(cu_attend_step) = cu_attend_mma<P, HALVES, MT, NG>;
    shape.block = dim3(block::THREADS);
    shape.smem = block::smem(a.kv.D);
    if (shape.smem > 32 * 1024) { /* static memory counts too */
        const cudaError_t err = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.smem);
        if (err != cudaSuccess) return err;
    }
    return cu_launch(shape, kernel, a);
}

template <class P>
static cudaError_t run_typed(const cu_shape &shape, const cu_attend_step &a, bool tall) {
    const int32_t D = cu_mma_padded(a.kv.D);
    if (tall) return D <= 64 ? run_mma<P, 2, 2, 1>(shape, a) : run_mma<P, 2, 2, 2>(shape, a);
    if (D <= 64) return run_mma<P, 1, 1, 1>(shape, a);
    if (D <= 128) return run_mma<P, 1, 1, 2>(shape, a);
    if (D <= 256) return run_mma<P, 1, 1, 4>(shape, a);
    return run_mma<P, 1, 1, 8>(shape, a);
}

static cudaError_t run_attend(cu_shape shape, const cu_attend_step &a, bool tall) {
    if (a.kv.dtype == SP_DTYPE_F16) return run_typed<cu_p_f16>(shape, a, tall);
    if (a.kv.dtype == SP_DTYPE_BF16) return run_typed<cu_p_bf16>(shape, a, tall);
    shape.block = dim3(CU_FMA_THREADS);
    return a.kv.D <= CU_FMA_THREADS
               ? cu_launch(shape, cu_attend_fma<1>, a)
               : cu_launch(shape, cu_attend_fma<SP_HEAD_DIM_MAX / CU_FMA_THREADS>, a);
}

static int32_t splits_of(int32_t max_pos) {
    return max_pos / SP_ATTN_SPLIT + 1;
}

extern "C" cu_attend_shape cu_attend_shape_of(int32_t T, int32_t max_pos, int32_t D) {
    const int64_t n = splits_of(max_pos);
    cu_attend_shape s = {};
    s.one_each = T <= SINGLE_ROWS;
    s.rows = s.one_each || D > 128 ? 16 : 64;
    s.split = T <= FEW_ROWS && n > 1 && n * T <= SPLITS_MAX;
    return s;
}

static size_t scratch_of(int64_t parts, int32_t H, int32_t D) {
    return (size_t)parts * (size_t)H * ((size_t)D + 2) * sizeof(float);
}
extern "C" size_t cu_attend_shape_scratch(int32_t T, int32_t H, int32_t D, int32_t max_pos) {
    return scratch_of((int64_t)T * splits_of(max_pos), H, D);
}
extern "C" size_t cu_attend_scratch(int32_t max_tokens, int32_t H, int32_t D,
                                    int32_t max_positions) {
    const int64_t n = splits_of(max(max_positions - 1, 0)), T = min(max_tokens, FEW_ROWS);
    return n > 1 ? scratch_of(n * T < SPLITS_MAX ? n * T : SPLITS_MAX, H, D) : 0;
}

/* The cache's rows can be copied 16 bytes at a time. */
static bool is_whole(const sp_kv_view *kv, const cu_kv &c) {
    return ((uintptr_t)kv->base | c.block_bytes | c.layer_offset | c.row_bytes) % 16 == 0;
}

extern "C" cudaError_t cu_attend_in_shape(cudaStream_t st, float *out, int32_t ldo,
                                          const float *qkv, int32_t ld, int32_t H, float scale,
                                          int32_t window, const sp_kv_view *kv, const cu_rows *rows,
                                          void *scratch, cu_attend_shape shape) {
    if (!cu_kv_is_known(kv) || H < 1 || H % kv->n_kv_heads || window < 0 ||
        (shape.rows != 16 && (shape.rows != 64 || kv->head_dim > 128)) || (shape.split && !scratch))
        return cudaErrorInvalidValue;
    if (rows->T <= 0) return cudaSuccess;
    cu_attend_step a = {};
    a.out = out;
    a.qkv = qkv;
    a.ldo = ldo;
    a.ld = ld;
    a.H = H;
    a.window = window;
    a.scale = scale;
    a.kv = cu_kv_of(kv);
    a.rows = *rows;
    a.whole = is_whole(kv, a.kv);
    const int32_t M = kv->dtype == SP_DTYPE_F32 ? CU_FMA_ROWS : shape.rows;
    a.group = H / a.kv.K;
    a.heads = min(a.group, M);
    a.tokens = M / a.heads;
    a.chunks = (a.group + a.heads - 1) / a.heads;
    a.step = shape.one_each ? 1 : a.tokens;
    a.n_splits = splits_of(rows->max_pos);
    if (shape.split) {
        a.part = (float *)scratch;
        a.stats = a.part + (int64_t)rows->T * H * a.n_splits * a.kv.D;
    }
    const dim3 grid((unsigned)((rows->T + a.step - 1) / a.step), (unsigned)(a.kv.K * a.chunks),
                    (unsigned)(shape.split ? a.n_splits : 1));
    const cudaError_t err = run_attend({grid, dim3(1), 0, st}, a, M == 64);
    if (err != cudaSuccess || !shape.split) return err;
    return cu_launch({dim3((unsigned)rows->T, (unsigned)H), dim3(MERGE_THREADS), 0, st},
                     merge_kernel, a);
}

/* Of shared memory, on the device in use. An error shows at the launch. */
static bool has_room_for_64(int32_t D) {
    int device = 0, most = 0;
    const size_t need = D <= 64 ? cu_mma_block<cu_p_f16, 2, 2, 1>::smem(D) + sizeof(cu_soft<64>)
                                : cu_mma_block<cu_p_f16, 2, 2, 2>::smem(D) + sizeof(cu_soft<64>);
    return cudaGetDevice(&device) != cudaSuccess ||
           cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
               cudaSuccess ||
           need <= (size_t)most;
}

extern "C" cudaError_t cu_attend(cudaStream_t st, float *out, int32_t ldo, const float *qkv,
                                 int32_t ld, int32_t H, float scale, int32_t window,
                                 const sp_kv_view *kv, const cu_rows *rows, void *scratch) {
    cu_attend_shape shape = cu_attend_shape_of(rows->T, rows->max_pos, kv->head_dim);
    shape.split = shape.split && scratch;
    if (shape.rows == 64 && !has_room_for_64(kv->head_dim)) shape.rows = 16;
    return cu_attend_in_shape(st, out, ldo, qkv, ld, H, scale, window, kv, rows, scratch, shape);
}
