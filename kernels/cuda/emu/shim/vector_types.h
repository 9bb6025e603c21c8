/* kernels/cuda/emu/shim/vector_types.h - float4 and its family, as the emulated device has them.
 *
 * Sizes and alignments are the toolkit's: a kernel that loads a float4 from an address that is only
 * 4-byte aligned is wrong on a GPU, and -fsanitize=alignment sees it here because of them. */
#pragma once
#define __VECTOR_TYPES_H__ /* the toolkit's own, included later, is empty */

/* NOLINTBEGIN(bugprone-macro-parentheses): names of types */
#define CU_VEC2(T, N, A) \
    typedef struct __attribute__((aligned(A))) N { \
        T x, y; \
    } N
#define CU_VEC3(T, N) \
    typedef struct N { \
        T x, y, z; \
    } N
#define CU_VEC4(T, N, A) \
    typedef struct __attribute__((aligned(A))) N { \
        T x, y, z, w; \
    } N
/* NOLINTEND(bugprone-macro-parentheses) */

CU_VEC2(signed char, char2, 2);
CU_VEC4(signed char, char4, 4);
CU_VEC2(unsigned char, uchar2, 2);
CU_VEC4(unsigned char, uchar4, 4);
CU_VEC2(short, short2, 4);
CU_VEC4(short, short4, 8);
CU_VEC2(unsigned short, ushort2, 4);
CU_VEC4(unsigned short, ushort4, 8);
CU_VEC2(int, int2, 8);
CU_VEC3(int, int3);
CU_VEC4(int, int4, 16);
CU_VEC2(unsigned int, uint2, 8);
CU_VEC3(unsigned int, uint3);
CU_VEC4(unsigned int, uint4, 16);
CU_VEC2(long long, longlong2, 16);
CU_VEC2(unsigned long long, ulonglong2, 16);
CU_VEC2(float, float2, 8);
CU_VEC3(float, float3);
CU_VEC4(float, float4, 16);
CU_VEC2(double, double2, 16);

#ifdef __cplusplus
typedef struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int nx = 1, unsigned int ny = 1, unsigned int nz = 1)
        : x(nx), y(ny), z(nz) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3(void) const { return uint3{x, y, z}; }
} dim3;
#else
typedef struct dim3 {
    unsigned int x, y, z;
} dim3;
#endif
