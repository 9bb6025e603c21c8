/* kernels/cuda/emu/language.cuh - CUDA C++ for g++: the words of the language, what a kernel may call,
 * and the runtime's C++ overloads. Included by shim/cuda_runtime.h alone.
 *
 * What is missing is missing on purpose (README.md): <<<>>>, __shared__, __activemask, cooperative
 * groups, textures. A place (file, line) rides along as default arguments. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cuda/emu/device.h"

#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

/* ---- synchronisation, warp operations ---- */

static const cu_emu_block_op cu_syncthreads_op = {"__syncthreads", NULL};
static inline void __syncthreads(CU_AT) {
    cu_emu_gather(&cu_syncthreads_op, NULL, file, line);
}
static inline int __syncthreads_count(int p, CU_AT) {
    return cu_emu_sync_count(CU_SYNC_COUNT, p, file, line);
}
static inline int __syncthreads_and(int p, CU_AT) {
    return cu_emu_sync_count(CU_SYNC_AND, p, file, line);
}
static inline int __syncthreads_or(int p, CU_AT) {
    return cu_emu_sync_count(CU_SYNC_OR, p, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, CU_AT) {
    cu_emu_syncwarp(mask, file, line);
}
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) {}

template <class T>
static inline T cu_shuffle(int mode, unsigned mask, T v, int lane, int width, const char *file,
                           int line) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    bits = cu_emu_shuffle(mode, mask, bits, lane, width, file, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CU_AT) {
    return cu_shuffle(CU_SHFL_IDX, mask, v, lane, width, file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CU_AT) {
    return cu_shuffle(CU_SHFL_UP, mask, v, (int)by, width, file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CU_AT) {
    return cu_shuffle(CU_SHFL_DOWN, mask, v, (int)by, width, file, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, CU_AT) {
    return cu_shuffle(CU_SHFL_XOR, mask, v, by, width, file, line);
}
static inline int __all_sync(unsigned mask, int p, CU_AT) {
    return (int)cu_emu_vote(CU_VOTE_ALL, mask, p, file, line);
}
static inline int __any_sync(unsigned mask, int p, CU_AT) {
    return (int)cu_emu_vote(CU_VOTE_ANY, mask, p, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int p, CU_AT) {
    return cu_emu_vote(CU_VOTE_BALLOT, mask, p, file, line);
}
template <class T> static inline unsigned __match_any_sync(unsigned mask, T v, CU_AT) {
    int64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return cu_emu_vote(CU_VOTE_MATCH, mask, bits, file, line);
}
#define CU_REDUCE(name, T, mode) \
    static inline T name(unsigned mask, T v, CU_AT) { \
        return (T)cu_emu_vote(mode, mask, (int64_t)v, file, line); \
    }
CU_REDUCE(__reduce_add_sync, int, CU_VOTE_ADD)
CU_REDUCE(__reduce_add_sync, unsigned, CU_VOTE_ADD)
CU_REDUCE(__reduce_min_sync, int, CU_VOTE_MIN)
CU_REDUCE(__reduce_min_sync, unsigned, CU_VOTE_UMIN)
CU_REDUCE(__reduce_max_sync, int, CU_VOTE_MAX)
CU_REDUCE(__reduce_max_sync, unsigned, CU_VOTE_UMAX)
CU_REDUCE(__reduce_and_sync, unsigned, CU_VOTE_AND)
CU_REDUCE(__reduce_or_sync, unsigned, CU_VOTE_OR)
CU_REDUCE(__reduce_xor_sync, unsigned, CU_VOTE_XOR)
#undef CU_REDUCE

/* ---- atomics: other host threads may run kernels on the same memory ---- */

template <class T, class F> static inline T cu_atomic(T *p, F change) {
    cu_emu_touch(p, sizeof *p, true, true);
    T seen, next;
    __atomic_load(p, &seen, __ATOMIC_RELAXED);
    do {
        next = change(seen);
    } while (
        !__atomic_compare_exchange(p, &seen, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return seen;
}
#define CU_ATOMIC(name, T, expression) \
    static inline T name(T *p, T v) { \
        return cu_atomic(p, [v](T old) -> T { return expression; }); \
    }
#define CU_ATOMIC_INTEGERS(T) \
    CU_ATOMIC(atomicAdd, T, (T)(old + v)) \
    CU_ATOMIC(atomicMin, T, v < old ? v : old) \
    CU_ATOMIC(atomicMax, T, v > old ? v : old) \
    CU_ATOMIC(atomicAnd, T, old &v) \
    CU_ATOMIC(atomicOr, T, old | v) \
    CU_ATOMIC(atomicXor, T, old ^ v) \
    CU_ATOMIC(atomicExch, T, ((void)old, v)) \
    static inline T atomicCAS(T *p, T want, T v) { \
        return cu_atomic(p, [want, v](T old) -> T { return old == want ? v : old; }); \
    }
CU_ATOMIC_INTEGERS(int)
CU_ATOMIC_INTEGERS(unsigned)
CU_ATOMIC_INTEGERS(unsigned long long)
CU_ATOMIC(atomicSub, int, old - v)
CU_ATOMIC(atomicSub, unsigned, old - v)
CU_ATOMIC(atomicAdd, float, old + v)
CU_ATOMIC(atomicAdd, double, old + v)
CU_ATOMIC(atomicExch, float, ((void)old, v))
CU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
#undef CU_ATOMIC
#undef CU_ATOMIC_INTEGERS

/* ---- loads with a hint ---- */

template <class T> static inline T __ldg(const T *p) {
    return *p;
}
template <class T> static inline T __ldca(const T *p) {
    return *p;
}
template <class T> static inline T __ldcg(const T *p) {
    return *p;
}
template <class T> static inline T __ldcs(const T *p) {
    return *p;
}
template <class T> static inline void __stcg(T *p, T v) {
    *p = v;
}
template <class T> static inline void __stcs(T *p, T v) {
    *p = v;
}

/* ---- numbers ---- */

template <class A, class B> static inline A cu_bits_as(B v) {
    static_assert(sizeof(A) == sizeof(B), "the same bits");
    A out;
    memcpy(&out, &v, sizeof out);
    return out;
}
static inline float __int_as_float(int v) {
    return cu_bits_as<float>(v);
}
static inline float __uint_as_float(unsigned v) {
    return cu_bits_as<float>(v);
}
static inline int __float_as_int(float v) {
    return cu_bits_as<int>(v);
}
static inline unsigned __float_as_uint(float v) {
    return cu_bits_as<unsigned>(v);
}
static inline double __longlong_as_double(long long v) {
    return cu_bits_as<double>(v);
}
static inline long long __double_as_longlong(double v) {
    return cu_bits_as<long long>(v);
}

static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
static inline float __frcp_rn(float a) {
    return 1.0f / a;
}
static inline float __frsqrt_rn(float a) {
    return (float)(1.0 / sqrt((double)a));
}
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline float __saturatef(float a) {
    return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f;
}
static inline float rsqrtf(float a) {
    return (float)(1.0 / sqrt((double)a));
}
static inline double __dadd_rn(double a, double b) {
    return a + b;
}
static inline double __dmul_rn(double a, double b) {
    return a * b;
}
static inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}

/* The C library has functions of these names; a GPU's are less exact than what stands here. */
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, (x))
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf((x), (y))
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

static inline int __float2int_rn(float v) {
    return (int)rintf(v);
}
static inline int __float2int_rz(float v) {
    return (int)v;
}
static inline int __float2int_rd(float v) {
    return (int)floorf(v);
}
static inline int __float2int_ru(float v) {
    return (int)ceilf(v);
}
static inline unsigned __float2uint_rn(float v) {
    return (unsigned)rintf(v);
}
static inline unsigned __float2uint_rz(float v) {
    return (unsigned)v;
}
static inline float __int2float_rn(int v) {
    return (float)v;
}
static inline float __uint2float_rn(unsigned v) {
    return (float)v;
}

static inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
static inline int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
static inline int __clzll(long long v) {
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
static inline int __ffs(int v) {
    return __builtin_ffs(v);
}
static inline int __ffsll(long long v) {
    return __builtin_ffsll(v);
}
static inline unsigned __brev(unsigned v) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (v >> i & 1) << (31 - i);
    return out;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline int __mulhi(int a, int b) {
    return (int)((long long)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = s >> (4 * i) & 15;
        unsigned byte = (unsigned)(both >> (8 * (pick & 7))) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i));
    return c;
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}

#define CU_MIN_MAX(T) \
    static inline constexpr T min(T a, T b) { \
        return b < a ? b : a; \
    } \
    static inline constexpr T max(T a, T b) { \
        return a < b ? b : a; \
    }
CU_MIN_MAX(int)
CU_MIN_MAX(unsigned)
CU_MIN_MAX(long)
CU_MIN_MAX(unsigned long)
CU_MIN_MAX(long long)
CU_MIN_MAX(unsigned long long)
#undef CU_MIN_MAX
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}

static inline void __trap(CU_AT) {
    cu_emu_trap("__trap()", file, line);
}
static inline void __nanosleep(unsigned ns) {
    (void)ns;
}
static inline long long clock64(void) {
    return 0;
} /* there is no time in here */

/* ---- the runtime's C++ overloads ---- */

template <class T> static inline cudaError_t cudaMalloc(T **p, size_t size) {
    return cudaMalloc((void **)(void *)p, size);
}
template <class T> static inline cudaError_t cudaMallocAsync(T **p, size_t size, cudaStream_t s) {
    return cudaMallocAsync((void **)(void *)p, size, s);
}
template <class T>
static inline cudaError_t cudaMallocHost(T **p, size_t size, unsigned flags = 0) {
    return cudaHostAlloc((void **)(void *)p, size, flags);
}
template <class T> static inline cudaError_t cudaHostAlloc(T **p, size_t size, unsigned flags) {
    return cudaHostAlloc((void **)(void *)p, size, flags);
}
template <class T>
static inline cudaError_t cudaFuncSetAttribute(T *fn, enum cudaFuncAttribute attr, int value) {
    return cudaFuncSetAttribute((const void *)fn, attr, value);
}
template <class T>
static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attr, T *fn) {
    return cudaFuncGetAttributes(attr, (const void *)fn);
}
template <class T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, T *fn, int block,
                                                                        size_t smem) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, (const void *)fn, block, smem);
}
