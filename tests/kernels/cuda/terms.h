/* tests/kernels/cuda/terms.h - an f32 as the two terms that tensor cores are given: what
 * kernels/cuda/portable_mma.cuh does, in plain C, for the models of test_gemm.c and test_attend.c. */
#pragma once

#include "runtime/base/dtype.h"

#include <math.h>

typedef struct terms {
    float hi, lo;
} terms;

/* bf16 to 2^-18 of x; f16 to 2^-22 of it or 2^-25. What would round to infinity keeps the greatest
 * number for hi, as far as a lo as large can make it whole. */
static inline terms terms_of(float x, sp_dtype t) {
    const bool f16 = t == SP_DTYPE_F16;
    const float most = f16 ? 65504 : 0x1.fep127f, end = f16 ? 2 * most : INFINITY;
    terms r = {f16 ? sp_f32_of_f16(sp_f16_of_f32(x)) : sp_f32_of_bf16(sp_bf16_of_f32(x)), 0};
    if (!(fabsf(x) < end)) return r;
    if (fabsf(r.hi) > most) r.hi = copysignf(most, x);
    r.lo = f16 ? sp_f32_of_f16(sp_f16_of_f32(x - r.hi)) : sp_f32_of_bf16(sp_bf16_of_f32(x - r.hi));
    return r;
}
