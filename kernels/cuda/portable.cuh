/* kernels/cuda/portable.cuh - what a .cu file includes: one source for nvcc and for g++.
 *
 * By nvcc this is CUDA and PTX; by g++, against kernels/cuda/emu/shim, it is the emulated device. A
 * kernel therefore writes no <<<>>>, no bare __shared__, no #pragma unroll and no PTX of its own:
 * what differs stands here, in pairs. kernels/cuda/emu/README.md has the list of what else may be
 * used, and the rules that make a kernel right in any order of its threads.
 *
 * Paths of one architecture (wgmma, TMA) stand under CU_HAS_SM90A, are chosen by device properties,
 * and are compared with the portable path on a real GPU: g++ never sees them. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdint.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CU_HAS_SM90A 1
#else
#define CU_HAS_SM90A 0
#endif

#ifdef CUDA_EMULATED
#define CU_EMULATED 1
#define CU_PLACE_DECL , CU_AT
#define CU_PLACE , file, line
#define CU_NOINLINE __attribute__((noinline))
#define CU_UNROLL
#define CU_UNROLL_BY(n)
#else
#define CU_EMULATED 0
#define CU_PLACE_DECL
#define CU_PLACE
#define CU_NOINLINE __noinline__
#define CU_TO_PRAGMA(x) _Pragma(#x)
#define CU_UNROLL _Pragma("unroll")
#define CU_UNROLL_BY(n) CU_TO_PRAGMA(unroll n)
#endif

/* ---- shared memory ----
 * CU_SHARED(float, tile, [32][33]);   CU_SHARED(int, flag, );   aligned to 16 bytes
 * CU_DYN_SHARED(float, rest);         float *rest, what the launch says; one a kernel */
#if CU_EMULATED
#define CU_SHARED(T, name, dims) \
    typedef T name##_shared dims; \
    static const char name##_key = 0; \
    name##_shared &name = *(name##_shared *)cu_emu_shared( \
        &name##_key, sizeof(name##_shared), alignof(name##_shared), #name, __FILE__, __LINE__)
#define CU_DYN_SHARED(T, name) T *name = (T *)cu_emu_dynamic()
#else
#define CU_SHARED(T, name, dims) __shared__ __align__(16) T name dims
extern __shared__ __align__(16) unsigned char cu_dynamic_shared[];
#define CU_DYN_SHARED(T, name) T *name = (T *)(void *)cu_dynamic_shared
#endif

/* ---- launch ---- */

typedef struct cu_shape {
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
} cu_shape;

#if CU_EMULATED
template <class F> struct cu_thunk;
template <class... P> struct cu_thunk<void (*)(P...)> {
    static void call(void *fn, void **args) {
        step(fn, args, (cu_types<> *)0, (cu_types<P...> *)0);
    }

  private:
    template <class... Q> struct cu_types {};
    template <class... Done, class First, class... Rest>
    static void step(void *fn, void **args, cu_types<Done...> *, cu_types<First, Rest...> *,
                     Done *...done) {
        step(fn, args + 1, (cu_types<Done..., First> *)0, (cu_types<Rest...> *)0, done...,
             (First *)args[0]);
    }
    template <class... Done>
    static void step(void *fn, void **args, cu_types<Done...> *, cu_types<> *, Done *...done) {
        (void)args;
        ((void (*)(P...))fn)(*done...);
    }
};
template <class T> struct cu_is_pointer { static const bool value = false; };
template <class T> struct cu_is_pointer<T *> { static const bool value = true; };
template <class R, class... Q> struct cu_is_pointer<R (*)(Q...)> {
    static const bool value = false;
};
#endif

template <class... P>
static inline cudaError_t cu_launch_exact(const cu_shape &shape, void (*kernel)(P...), P... args) {
    void *pointers[] = {(void *)&args..., NULL};
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.smem;
    config.stream = shape.stream;
#if CU_EMULATED
    uint32_t sizes[] = {(uint32_t)sizeof(P)..., 0};
    const bool is_pointer[] = {cu_is_pointer<P>::value..., false};
    uint64_t mask = 0;
    for (size_t i = 0; i < sizeof...(P) && i < 64; i++) mask |= (uint64_t)is_pointer[i] << i;
    return cu_emu_launch((void *)kernel, cu_thunk<void (*)(P...)>::call, &config, pointers, sizes,
                         (int)sizeof...(P), mask);
#else
    return cudaLaunchKernelExC(&config, (const void *)kernel, pointers);
#endif
}

/** Queues kernel(args...) on shape.stream; arguments convert as in a call. */
template <class... P, class... A>
static inline cudaError_t cu_launch(const cu_shape &shape, void (*kernel)(P...), A... args) {
    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has");
    return cu_launch_exact<P...>(shape, kernel, static_cast<P>(args)...);
}

/* ---- reductions: one fixed butterfly, the same bits on both sides ---- */

struct cu_add {
    template <class T> static __host__ __device__ T join(T a, T b) { return a + b; }
};
struct cu_larger {
    template <class T> static __host__ __device__ T join(T a, T b) { return a < b ? b : a; }
    static __host__ __device__ float join(float a, float b) { return fmaxf(a, b); }
};
struct cu_smaller {
    template <class T> static __host__ __device__ T join(T a, T b) { return b < a ? b : a; }
    static __host__ __device__ float join(float a, float b) { return fminf(a, b); }
};

#if CU_EMULATED
/* v[lane] = join(v[lane], v[lane ^ o]) for o = width/2 ... 1, of all lanes at once. */
template <class Op, int W, class T> static inline void cu_butterfly(T *v) {
    for (int o = W / 2; o > 0; o >>= 1) {
        T next[32];
        for (int i = 0; i < 32; i++) next[i] = Op::template join(v[i], v[i ^ o]);
        for (int i = 0; i < 32; i++) v[i] = next[i];
    }
}
template <class Op, int W, class T> static void cu_warp_run(void *const *slots, uint32_t mask) {
    (void)mask;
    T v[32];
    for (int i = 0; i < 32; i++) v[i] = *(const T *)slots[i];
    cu_butterfly<Op, W>(v);
    for (int i = 0; i < 32; i++) *(T *)slots[i] = v[i];
}
template <class Op, int W, class T>
static inline T cu_warp_reduce(T v, const char *file, int line) {
    static const cu_emu_op op = {"warp reduction", cu_warp_run<Op, W, T>, false};
    cu_emu_meet(&op, 0xffffffffu, &v, file, line);
    return v;
}
template <class T> struct cu_block_slot { T v, identity; };
template <class Op, class T> static void cu_block_run(void *const *slots, int n) {
    typedef cu_block_slot<T> slot;
    T part[32];
    for (int w = 0; w < 32; w++) part[w] = ((const slot *)slots[0])->identity;
    for (int w = 0; w * 32 < n; w++) {
        T v[32];
        for (int i = 0; i < 32; i++) v[i] = ((const slot *)slots[w * 32 + i])->v;
        cu_butterfly<Op, 32>(v);
        part[w] = v[0];
    }
    cu_butterfly<Op, 32>(part);
    for (int i = 0; i < n; i++) ((slot *)slots[i])->v = part[0];
}
template <class Op, class T>
static inline T cu_block_reduce(T v, T identity, const char *file, int line) {
    static const cu_emu_block_op op = {"block reduction", cu_block_run<Op, T>};
    if (blockDim.x * blockDim.y * blockDim.z % 32)
        cu_emu_trap("a block of broken warps", file, line);
    cu_block_slot<T> slot = {v, identity};
    cu_emu_gather(&op, &slot, file, line);
    return slot.v;
}
#else
template <class Op, int W, class T> static __device__ __forceinline__ T cu_warp_reduce(T v) {
    CU_UNROLL for (int o = W / 2; o > 0; o >>= 1) v =
        Op::template join(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}
template <class Op, class T> static __device__ __forceinline__ T cu_block_reduce(T v, T identity) {
    CU_SHARED(T, part, [32]);
    const unsigned id = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned warps = blockDim.x * blockDim.y * blockDim.z / 32;
    v = cu_warp_reduce<Op, 32>(v);
    if (id % 32 == 0) part[id / 32] = v;
    __syncthreads();
    v = cu_warp_reduce<Op, 32>(id % 32 < warps ? part[id % 32] : identity);
    __syncthreads(); /* `part` may be written again by the next reduction */
    return v;
}
#endif

/** Over W neighbouring lanes (all 32 call it): T is int, unsigned, long long, float or double. */
template <int W = 32, class T> static __device__ __forceinline__ T cu_warp_sum(T v CU_PLACE_DECL) {
    return cu_warp_reduce<cu_add, W>(v CU_PLACE);
}
template <int W = 32, class T> static __device__ __forceinline__ T cu_warp_max(T v CU_PLACE_DECL) {
    return cu_warp_reduce<cu_larger, W>(v CU_PLACE);
}
template <int W = 32, class T> static __device__ __forceinline__ T cu_warp_min(T v CU_PLACE_DECL) {
    return cu_warp_reduce<cu_smaller, W>(v CU_PLACE);
}
/** Over the block, whole warps, the result in every thread; a barrier. Max loses a NaN. */
template <class T> static __device__ __forceinline__ T cu_block_sum(T v CU_PLACE_DECL) {
    return cu_block_reduce<cu_add>(v, (T)0 CU_PLACE);
}
static __device__ __forceinline__ float cu_block_max(float v CU_PLACE_DECL) {
    return cu_block_reduce<cu_larger>(v, -INFINITY CU_PLACE);
}
static __device__ __forceinline__ float cu_block_min(float v CU_PLACE_DECL) {
    return cu_block_reduce<cu_smaller>(v, INFINITY CU_PLACE);
}
static __device__ __forceinline__ long long cu_block_max(long long v CU_PLACE_DECL) {
    return cu_block_reduce<cu_larger>(v, (long long)(-0x7fffffffffffffffLL - 1) CU_PLACE);
}

#include "kernels/cuda/portable_mma.cuh"
