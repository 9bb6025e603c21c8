/* kernels/math.h - the project's only exp, log, pow, sin, cos, tanh and erf.
 *
 * libm's bits differ from one machine to the next, so nothing that can reach a token may call it
 * (same bits: contract 1). The float functions are straight lines of IEEE operations and fma:
 * kernels/cpu/vecmath.h repeats each line on 16 lanes and gets the same bits, and a test compares
 * them. They stay within 2 ulp. The double functions (tables and the sampler) stay within 1e-14
 * relative. Special values follow C's annex F, except where a comment says otherwise; which NaN
 * comes out is left open.
 *
 * Source: reductions after Cody & Waite 1980; log by atanh(f / (2 + f)); polynomials fitted here
 * by Remez exchange (float) or Taylor (double).
 * Thread: any; pure functions. */
#pragma once

#include "runtime/base/dtype.h"

#include <stdint.h>

#define SP_MAGIC 0x1.8p23f /* added: the nearest integer sits in the low mantissa bits */
#define SP_LOG2E 0x1.715476p0f
#define SP_LN2_HI 0x1.62e43p-1f /* log(2) rounded; the rest of it: */
#define SP_LN2_LO (-0x1.05c610p-29f)
#define SP_SQRT_HALF_BITS 0x3f3504f3u
#define SP_INF __builtin_inff()
#define SP_NAN __builtin_nanf("")

/* (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, ascending powers. */
#define SP_EXPF_POLY \
    { 0x1.fffffcp-2f, 0x1.555490p-3f, 0x1.5558f6p-5f, 0x1.123a8ep-7f, 0x1.6a2318p-10f }
/* 2 atanh(s) / s - 2, powers of s^2 from the first: 2/3, 2/5, 2/7, 2/9. */
#define SP_LOGF_POLY \
    { 0x1.555556p-1f, 0x1.99999ap-2f, 0x1.24924ap-2f, 0x1.c71c72p-3f }
/* (tanh(x) / x - 1) / x^2 on |x| <= 0.625, powers of x^2. */
#define SP_TANHF_POLY \
    { -0x1.555542p-2f, 0x1.1109ccp-3f, -0x1.b887fcp-5f, 0x1.53dadcp-6f, -0x1.7cc1acp-8f }
/* erf(x) / x - 1 on |x| <= 0.95, powers of x^2. */
#define SP_ERFF_NEAR_POLY \
    { \
        0x1.06eba8p-3f, -0x1.812742p-2f, 0x1.ce2de2p-4f, -0x1.b80b0ep-6f, 0x1.54a492p-8f, \
            -0x1.a8fc6ep-11f, 0x1.58947ap-14f \
    }
/* log(erfc(x)) on 0.9 <= x <= 4. */
#define SP_ERFF_FAR_POLY \
    { \
        0x1.65abb8p-13f, -0x1.212698p0f, -0x1.444b42p-1f, -0x1.bb564ep-4f, 0x1.9b1950p-6f, \
            -0x1.10a9fap-8f, 0x1.c54d2cp-12f, -0x1.5ecd72p-16f \
    }
/* As arrays; inside the functions they are arrays of their own, which device code may read. */
#ifndef __CUDACC__
static const float sp_expf_poly[5] = SP_EXPF_POLY;
static const float sp_logf_poly[4] = SP_LOGF_POLY;
static const float sp_tanhf_poly[5] = SP_TANHF_POLY;
static const float sp_erff_near[7] = SP_ERFF_NEAR_POLY;
static const float sp_erff_far[8] = SP_ERFF_FAR_POLY;
#endif
#define SP_TANHF_NEAR 0.625f
#define SP_ERFF_NEAR 0.95f
#define SP_ERFF_ONE 4.0f /* from here on erf is 1 in float */
/* Beyond these the result is inf or 0; between them the arithmetic over- and underflows itself. */
#define SP_EXPF_MAX 89.0f
#define SP_EXPF_MIN (-105.0f)

SP_BOTH static inline float sp_fmaf(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

/** c[0] + c[1] x + ... by Horner with fma. */
SP_BOTH static inline float sp_polyf(const float *c, int n, float x) {
    float y = c[n - 1];
    for (int i = n - 2; i >= 0; i--) y = sp_fmaf(y, x, c[i]);
    return y;
}

SP_BOTH static inline float sp_expf(float x) {
    static const float poly[5] = SP_EXPF_POLY;
    const float t = sp_fmaf(x, SP_LOG2E, SP_MAGIC), n = t - SP_MAGIC;
    const float r = sp_fmaf(n, -SP_LN2_LO, sp_fmaf(n, -SP_LN2_HI, x));
    const float p = sp_fmaf(sp_polyf(poly, 5, r), r * r, r) + 1.0f;
    /* 2^n in two halves: a subnormal result is rounded once, and 2^128 is never formed. */
    const uint32_t i = sp_bits_of_f32(t) - sp_bits_of_f32(SP_MAGIC);
    const uint32_t low = (uint32_t)((int32_t)i >> 1);
    const float y = p * sp_f32_of_bits((low + 127) << 23) * sp_f32_of_bits((i - low + 127) << 23);
    return x > SP_EXPF_MAX ? SP_INF : x < SP_EXPF_MIN ? 0.0f : y;
}

SP_BOTH static inline float sp_logf(float x) {
    static const float poly[4] = SP_LOGF_POLY;
    const bool tiny = x < 0x1p-126f;
    const float scaled = tiny ? x * 0x1p23f : x;
    const uint32_t u = sp_bits_of_f32(scaled) + (0x3f800000u - SP_SQRT_HALF_BITS);
    const float e = (float)((int32_t)(u >> 23) - (tiny ? 150 : 127));
    const float f = sp_f32_of_bits((u & 0x7fffffu) + SP_SQRT_HALF_BITS) - 1.0f;
    const float s = f / (f + 2.0f), z = s * s, h = 0.5f * f * f;
    const float r = sp_polyf(poly, 4, z) * z;
    /* log(1 + f) = f - (h - s (h + r)); e log(2) joins small parts first. */
    const float small = sp_fmaf(s, h + r, e * SP_LN2_LO);
    const float y = sp_fmaf(e, SP_LN2_HI, f - (h - small));
    return x > 0.0f ? (x == SP_INF ? x : y) : x == 0.0f ? -SP_INF : SP_NAN;
}

SP_BOTH static inline float sp_tanhf(float x) {
    static const float poly[5] = SP_TANHF_POLY;
    const float a = __builtin_fabsf(x), z = x * x;
    const float near = sp_fmaf(sp_polyf(poly, 5, z) * z, x, x);
    const float far = 1.0f - 2.0f / (sp_expf(a + a) + 1.0f);
    return __builtin_copysignf(a <= SP_TANHF_NEAR ? near : far, x);
}

SP_BOTH static inline float sp_erff(float x) {
    static const float near_poly[7] = SP_ERFF_NEAR_POLY;
    static const float far_poly[8] = SP_ERFF_FAR_POLY;
    const float a = __builtin_fabsf(x);
    const float near = sp_fmaf(sp_polyf(near_poly, 7, x * x), x, x);
    const float far = 1.0f - sp_expf(sp_polyf(far_poly, 8, a));
    const float big = a >= SP_ERFF_ONE ? 1.0f : far;
    return __builtin_copysignf(a <= SP_ERFF_NEAR ? near : big, x);
}

/** x / (1 + e^-x). */
SP_BOTH static inline float sp_siluf(float x) {
    return x / (1.0f + sp_expf(-x));
}

/** x Phi(x), by erf. */
SP_BOTH static inline float sp_geluf(float x) {
    const float h = 0.5f * x;
    return sp_fmaf(h, sp_erff(x * 0x1.6a09e6p-1f), h);
}

/** x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. */
SP_BOTH static inline float sp_gelu_tanhf(float x) {
    const float h = 0.5f * x, u = sp_fmaf(0.044715f * (x * x), x, x);
    return sp_fmaf(h, sp_tanhf(u * 0x1.988454p-1f), h);
}

double sp_exp(double x);
double sp_log(double x);
/** x^y for x >= 0; a negative base gives NaN, whatever y. */
double sp_pow(double x, double y);
/** Of radians, |x| <= 2^30; NaN beyond. */
double sp_sin(double x);
double sp_cos(double x);
