/* kernels/cuda/emu/shim/cuda_bf16.h - bf16 as the emulated device has it: storage, conversions, and
 * arithmetic that rounds once to f32 and once to bf16. From C only the types. */
#pragma once
#define __CUDA_BF16_H__ /* the toolkit's own, included later, is empty */

#include "kernels/cuda/emu/half.h"

#define CU_HALF_TYPE __nv_bfloat16
#define CU_HALF_PAIR __nv_bfloat162
#define CU_HALF_RAW __nv_bfloat16_raw
#define CU_HALF_TO cu_bf16_to_float
#define CU_HALF_FROM cu_bf16_from_float
#include "kernels/cuda/emu/shim/half_type.inc"

#ifdef __cplusplus
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat16 __float2bfloat16(float f) {
    return __nv_bfloat16(f);
}
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    return __nv_bfloat16(f);
}
static inline float __bfloat162float(__nv_bfloat16 h) {
    return (float)h;
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) {
    return h.x;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 h;
    h.x = bits;
    return h;
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return __nv_bfloat162(__nv_bfloat16(a), __nv_bfloat16(b));
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return float2{(float)v.x, (float)v.y};
}
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) {
    return __nv_bfloat162(v, v);
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat162(a, b);
}
#endif
