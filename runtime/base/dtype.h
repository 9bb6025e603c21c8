/* runtime/base/dtype.h - element types of tensors and their conversions.
 * Source: safetensors format page for the names; IEEE 754 for f16; bf16 is the upper half of f32.
 * Thread: any. */
#pragma once

#include "runtime/base/str.h"

#include <stdint.h>

/* name, safetensors spelling, bits */
#define SP_DTYPE_LIST(X) \
    X(SP_DTYPE_F32, "F32", 32) \
    X(SP_DTYPE_F16, "F16", 16) \
    X(SP_DTYPE_BF16, "BF16", 16) \
    X(SP_DTYPE_F64, "F64", 64) \
    X(SP_DTYPE_I64, "I64", 64) \
    X(SP_DTYPE_I32, "I32", 32) \
    X(SP_DTYPE_I16, "I16", 16) \
    X(SP_DTYPE_I8, "I8", 8) \
    X(SP_DTYPE_U64, "U64", 64) \
    X(SP_DTYPE_U32, "U32", 32) \
    X(SP_DTYPE_U16, "U16", 16) \
    X(SP_DTYPE_U8, "U8", 8) \
    X(SP_DTYPE_BOOL, "BOOL", 8) \
    X(SP_DTYPE_F8_E4M3, "F8_E4M3", 8) \
    X(SP_DTYPE_F8_E5M2, "F8_E5M2", 8) \
    X(SP_DTYPE_F8_E8M0, "F8_E8M0", 8) \
    X(SP_DTYPE_C64, "C64", 64) \
    X(SP_DTYPE_F4, "F4", 4) \
    X(SP_DTYPE_F6_E2M3, "F6_E2M3", 6) \
    X(SP_DTYPE_F6_E3M2, "F6_E3M2", 6)

typedef enum sp_dtype {
#define X(name, text, bits) name,
    SP_DTYPE_LIST(X)
#undef X
    SP_DTYPE_COUNT
} sp_dtype;

int sp_dtype_bits(sp_dtype t);
const char *sp_dtype_name(sp_dtype t);                            /* "BF16" */
SP_NODISCARD sp_status sp_dtype_parse(sp_slice s, sp_dtype *out); /* the safetensors spelling */

/* Before what kernels of the cuda backend call too: the same source, the same bits. */
#ifdef __CUDACC__
#define SP_BOTH __host__ __device__
#else
#define SP_BOTH
#endif

SP_BOTH static inline float sp_f32_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
SP_BOTH static inline uint32_t sp_bits_of_f32(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
SP_BOTH static inline float sp_f32_of_bf16(uint16_t h) {
    return sp_f32_of_bits((uint32_t)h << 16);
}
float sp_f32_of_f16(uint16_t h);  /* exact */
uint16_t sp_f16_of_f32(float f);  /* nearest, ties to even */
uint16_t sp_bf16_of_f32(float f); /* nearest, ties to even; NaN stays NaN */
