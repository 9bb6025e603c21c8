/* kernels/cuda/portable_mma.cuh - tensor cores and asynchronous copies, each as PTX and emulated.
 * Included by portable.cuh alone.
 *
 * mma.m16n8k16, one warp: lane 4g+t holds, two neighbours in a register (low half first),
 *   a[0] A(g, 2t)   a[1] A(g+8, 2t)   a[2] A(g, 2t+8)   a[3] A(g+8, 2t+8)      A is [16, 16]
 *   b[0] B(2t, g)   b[1] B(2t+8, g)   (rows 2t, 2t+1)                          B is [16, 8]
 *   c[0], c[1] C(g, 2t), C(g, 2t+1)   c[2], c[3] C(g+8, 2t), C(g+8, 2t+1)      C, D are [16, 8]
 * ldmatrix: lanes 8i..8i+7 point to the eight 16-byte rows of matrix i; lane 4g+t gets the
 * neighbours (g, 2t), (g, 2t+1) of it in d[i]; transposed: (2t, g), (2t+1, g).
 * cp.async: 16 bytes from device to shared memory; a commit closes a group; wait<N> waits until at
 * most the N newest groups of this thread are on their way. A barrier makes them visible to
 * others. */
#pragma once

#if CU_EMULATED

static inline void cu_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               const float (&c)[4], CU_AT) {
    cu_emu_mma(false, d, a, b, c, file, line);
}
static inline void cu_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], CU_AT) {
    cu_emu_mma(true, d, a, b, c, file, line);
}
static inline void cu_ldmatrix_x4(uint32_t (&d)[4], const void *row, CU_AT) {
    cu_emu_ldmatrix(4, false, d, row, file, line);
}
static inline void cu_ldmatrix_x4_trans(uint32_t (&d)[4], const void *row, CU_AT) {
    cu_emu_ldmatrix(4, true, d, row, file, line);
}
static inline void cu_ldmatrix_x2(uint32_t (&d)[2], const void *row, CU_AT) {
    cu_emu_ldmatrix(2, false, d, row, file, line);
}
static inline void cu_ldmatrix_x2_trans(uint32_t (&d)[2], const void *row, CU_AT) {
    cu_emu_ldmatrix(2, true, d, row, file, line);
}
static inline void cu_cp_async16(void *smem, const void *gmem, CU_AT) {
    cu_emu_copy_async(smem, gmem, 16, 16, file, line);
}
static inline void cu_cp_async16_some(void *smem, const void *gmem, int bytes, CU_AT) {
    cu_emu_copy_async(smem, gmem, 16, bytes, file, line);
}
static inline void cu_cp_async_commit(void) {
    cu_emu_copy_commit();
}
template <int N> static inline void cu_cp_async_wait(CU_AT) {
    cu_emu_copy_wait(N, file, line);
}
static inline void cu_cp_async_wait_all(CU_AT) {
    cu_emu_copy_wait(-1, file, line);
}

#else

static __device__ __forceinline__ uint32_t cu_shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

#define CU_MMA(name, type) \
    static __device__ __forceinline__ void name(float(&d)[4], const uint32_t(&a)[4], \
                                                const uint32_t(&b)[2], const float(&c)[4]) { \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 " \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};" \
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), \
                       "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])); \
    }
CU_MMA(cu_mma_bf16, "bf16")
CU_MMA(cu_mma_f16, "f16")
#undef CU_MMA

#define CU_LDMATRIX4(name, trans) \
    static __device__ __forceinline__ void name(uint32_t(&d)[4], const void *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0,%1,%2,%3}, [%4];" \
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) \
                     : "r"(cu_shared_address(row)) \
                     : "memory"); \
    }
#define CU_LDMATRIX2(name, trans) \
    static __device__ __forceinline__ void name(uint32_t(&d)[2], const void *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0,%1}, [%2];" \
                     : "=r"(d[0]), "=r"(d[1]) \
                     : "r"(cu_shared_address(row)) \
                     : "memory"); \
    }
CU_LDMATRIX4(cu_ldmatrix_x4, "")
CU_LDMATRIX4(cu_ldmatrix_x4_trans, ".trans")
CU_LDMATRIX2(cu_ldmatrix_x2, "")
CU_LDMATRIX2(cu_ldmatrix_x2_trans, ".trans")
#undef CU_LDMATRIX4
#undef CU_LDMATRIX2

static __device__ __forceinline__ void cu_cp_async16(void *smem, const void *gmem) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(cu_shared_address(smem)),
                 "l"(gmem)
                 : "memory");
}
/** Reads only `bytes` (0..16) and fills the rest with zeros. */
static __device__ __forceinline__ void cu_cp_async16_some(void *smem, const void *gmem, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(cu_shared_address(smem)),
                 "l"(gmem), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void cu_cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> static __device__ __forceinline__ void cu_cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
static __device__ __forceinline__ void cu_cp_async_wait_all(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif

/** Two f32 as neighbours in a register, the first in the low half. */
static __device__ __forceinline__ uint32_t cu_pack_bf16(float low, float high) {
    const uint32_t a = __bfloat16_as_ushort(__float2bfloat16_rn(low));
    return a | (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}
static __device__ __forceinline__ uint32_t cu_pack_f16(float low, float high) {
    const uint32_t a = __half_as_ushort(__float2half_rn(low));
    return a | (uint32_t)__half_as_ushort(__float2half_rn(high)) << 16;
}

/** x = hi + lo, two bf16 whose sum is x to 2^-18 of it. `hi` is the nearest, `lo` the nearest to
 * what is left; an x that would round to infinity keeps the greatest bf16 as hi, and what is not
 * finite has no lo: it would be a NaN. */
static __device__ __forceinline__ void cu_split_bf16(uint16_t &hi, uint16_t &lo, float x) {
    uint16_t h = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    const bool finite = fabsf(x) < INFINITY;
    if (finite && (h & 0x7fff) == 0x7f80) h--;
    hi = h;
    lo = 0;
    if (finite)
        lo = __bfloat16_as_ushort(
            __float2bfloat16_rn(__fsub_rn(x, __bfloat162float(__ushort_as_bfloat16(h)))));
}
/** The same in f16: to 2^-22 of x, or to 2^-25 where that is more; up to 131008, then infinite. */
static __device__ __forceinline__ void cu_split_f16(uint16_t &hi, uint16_t &lo, float x) {
    uint16_t h = __half_as_ushort(__float2half_rn(x));
    const bool finite = fabsf(x) < 131008.0f;
    if (finite && (h & 0x7fff) == 0x7c00) h--;
    hi = h;
    lo = 0;
    if (finite)
        lo = __half_as_ushort(__float2half_rn(__fsub_rn(x, __half2float(__ushort_as_half(h)))));
}
