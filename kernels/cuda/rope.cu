/* Rotation by position, and k and v into the paged cache.
 *
 * Floors: per token 4 (H + 2K) D bytes read, 4 H D written (q) and 2 K D elements of the cache's
 * type; 3 operations an element of q and k. With the tables it is a copy: launch time bounds a
 * decode step.
 * Numerics: pair (a, b): a' = fma(a, c, -(b s)), b' = fma(b, c, a s); no sums. K and V are rounded
 * to nearest even when they are stored. Bound against ref: 0, the cache's bytes included; which NaN
 * a NaN becomes is left open.
 * Launch: grid (T, parts of a row), 256 threads, no shared memory. One thread, one pair of q or k
 * or one element that only moves; neighbours in a warp touch neighbours in memory.
 *
 * A row with a negative position is padding: it is left alone. */
#include "kernels/cuda/attend_rows.cuh"

#define THREADS 256

typedef struct rope_step {
    float *qkv;
    int32_t ld, H, pairs, tail; /* pairs: of a head; tail: dimensions that do not turn */
    bool interleaved;
    const float *cos, *sin;
    cu_kv kv;
    cu_rows rows;
} rope_step;

static __device__ __forceinline__ void store(const rope_step &a, int32_t t, int32_t head, int32_t d,
                                             bool value, float x) {
    unsigned char *row =
        cu_kv_row(a.kv, a.rows.blocks + a.rows.table[t], head, a.rows.pos[t], value);
    if (a.kv.dtype == SP_DTYPE_F32)
        ((float *)row)[d] = x;
    else if (a.kv.dtype == SP_DTYPE_F16)
        ((__half *)row)[d] = __float2half_rn(x);
    else
        ((__nv_bfloat16 *)row)[d] = __float2bfloat16_rn(x);
}

/* Pair i of head h, q heads first and then k heads. */
static __device__ __forceinline__ void turn(const rope_step &a, int32_t t, int32_t h, int32_t i) {
    const int32_t at = a.interleaved ? 2 * i : i, to = a.interleaved ? at + 1 : at + a.pairs;
    const int64_t angle = (int64_t)a.rows.pos[t] * a.pairs + i;
    float *head = a.qkv + (int64_t)t * a.ld + (int64_t)h * a.kv.D;
    const float x = head[at], y = head[to], c = a.cos[angle], s = a.sin[angle];
    const float first = __fmaf_rn(x, c, -__fmul_rn(y, s));
    const float second = __fmaf_rn(y, c, __fmul_rn(x, s));
    if (h < a.H) {
        head[at] = first;
        head[to] = second;
    } else {
        store(a, t, h - a.H, at, false, first);
        store(a, t, h - a.H, to, false, second);
    }
}

__global__ void __launch_bounds__(THREADS) rope_store_kernel(rope_step a) {
    const int32_t t = (int32_t)blockIdx.x, K = a.kv.K, D = a.kv.D;
    if (a.rows.pos[t] < 0) return;
    int32_t i = (int32_t)(blockIdx.y * THREADS + threadIdx.x);
    if (i < (a.H + K) * a.pairs) {
        turn(a, t, i / a.pairs, i % a.pairs);
        return;
    }
    i -= (a.H + K) * a.pairs;
    const float *k = a.qkv + (int64_t)t * a.ld + (int64_t)a.H * D, *v = k + (int64_t)K * D;
    if (i < K * a.tail) {
        const int32_t head = i / a.tail, d = 2 * a.pairs + i % a.tail;
        store(a, t, head, d, false, k[(int64_t)head * D + d]);
        return;
    }
    i -= K * a.tail;
    if (i < K * D) store(a, t, i / D, i % D, true, v[i]);
}

extern "C" cudaError_t cu_rope_store(cudaStream_t st, float *qkv, int32_t ld, int32_t H,
                                     const sp_rope_table *rope, const sp_kv_view *kv,
                                     const cu_rows *rows) {
    if (!cu_kv_is_known(kv) || rope->dims < 2 || rope->dims % 2 || rope->dims > kv->head_dim ||
        rows->max_pos >= rope->n_positions)
        return cudaErrorInvalidValue;
    if (rows->T <= 0) return cudaSuccess;
    rope_step a = {};
    a.qkv = qkv;
    a.ld = ld;
    a.H = H;
    a.pairs = rope->dims / 2;
    a.tail = kv->head_dim - rope->dims;
    a.interleaved = rope->interleaved;
    a.cos = rope->cos;
    a.sin = rope->sin;
    a.kv = cu_kv_of(kv);
    a.rows = *rows;
    const int32_t n = (H + a.kv.K) * a.pairs + a.kv.K * (a.tail + a.kv.D);
    return cu_launch(
        {dim3((unsigned)rows->T, (unsigned)((n + THREADS - 1) / THREADS)), dim3(THREADS), 0, st},
        rope_store_kernel, a);
}
