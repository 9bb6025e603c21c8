/* kernels/cuda/emu/shim/cuda_fp16.h - f16 as the emulated device has it: storage, conversions, and
 * arithmetic that rounds once to f32 and once to f16. From C only the types. */
#pragma once
#define __CUDA_FP16_H__ /* the toolkit's own, included later, is empty */

#include "kernels/cuda/emu/half.h"

#define CU_HALF_TYPE __half
#define CU_HALF_PAIR __half2
#define CU_HALF_RAW __half_raw
#define CU_HALF_TO cu_f16_to_float
#define CU_HALF_FROM cu_f16_from_float
#include "kernels/cuda/emu/shim/half_type.inc"

#ifdef __cplusplus
typedef __half half;
typedef __half2 half2;

static inline __half __float2half(float f) {
    return __half(f);
}
static inline __half __float2half_rn(float f) {
    return __half(f);
}
static inline float __half2float(__half h) {
    return (float)h;
}
static inline unsigned short __half_as_ushort(__half h) {
    return h.x;
}
static inline __half __ushort_as_half(unsigned short bits) {
    __half h;
    h.x = bits;
    return h;
}
static inline __half2 __floats2half2_rn(float a, float b) {
    return __half2(__half(a), __half(b));
}
static inline __half2 __float22half2_rn(float2 v) {
    return __floats2half2_rn(v.x, v.y);
}
static inline float2 __half22float2(__half2 v) {
    return float2{(float)v.x, (float)v.y};
}
static inline __half2 __half2half2(__half v) {
    return __half2(v, v);
}
static inline __half2 __halves2half2(__half a, __half b) {
    return __half2(a, b);
}
#endif
