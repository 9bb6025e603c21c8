/* kernels/cuda/emu/shim/vector_functions.h - make_float4 and its family. */
#pragma once
#define __VECTOR_FUNCTIONS_H__ /* the toolkit's own, included later, is empty */

#include <vector_types.h>

#ifdef __cplusplus
#define CU_MAKE2(T, N) \
    static inline N make_##N(T x, T y) { \
        return N{x, y}; \
    }
#define CU_MAKE3(T, N) \
    static inline N make_##N(T x, T y, T z) { \
        return N{x, y, z}; \
    }
#define CU_MAKE4(T, N) \
    static inline N make_##N(T x, T y, T z, T w) { \
        return N{x, y, z, w}; \
    }

CU_MAKE2(signed char, char2)
CU_MAKE4(signed char, char4)
CU_MAKE2(unsigned char, uchar2)
CU_MAKE4(unsigned char, uchar4)
CU_MAKE2(short, short2)
CU_MAKE4(short, short4)
CU_MAKE2(unsigned short, ushort2)
CU_MAKE4(unsigned short, ushort4)
CU_MAKE2(int, int2)
CU_MAKE3(int, int3)
CU_MAKE4(int, int4)
CU_MAKE2(unsigned int, uint2)
CU_MAKE3(unsigned int, uint3)
CU_MAKE4(unsigned int, uint4)
CU_MAKE2(long long, longlong2)
CU_MAKE2(unsigned long long, ulonglong2)
CU_MAKE2(float, float2)
CU_MAKE3(float, float3)
CU_MAKE4(float, float4)
CU_MAKE2(double, double2)
#endif
