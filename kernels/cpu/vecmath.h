/* kernels/cpu/vecmath.h - kernels/math.h's float functions on 16 lanes, line for line.
 *
 * A change there is a change here; tests/kernels/test_math.c compares the bits. Both branches of a
 * choice are computed and one is taken.
 *
 * Thread: any; pure functions. */
#pragma once

#include "kernels/cpu/vec16.h"
#include "kernels/math.h"

SP_INLINE v16 v16_poly(const float *c, int n, v16 x) {
    v16 y = v16_set(c[n - 1]);
    for (int i = n - 2; i >= 0; i--) y = v16_fma(y, x, v16_set(c[i]));
    return y;
}

SP_INLINE v16 v16_exp(v16 x) {
    const v16 magic = v16_set(SP_MAGIC);
    const v16 t = v16_fma(x, v16_set(SP_LOG2E), magic), n = v16_sub(t, magic);
    const v16 r = v16_fma(n, v16_set(-SP_LN2_LO), v16_fma(n, v16_set(-SP_LN2_HI), x));
    const v16 q = v16_poly(sp_expf_poly, 5, r);
    const v16 p = v16_add(v16_fma(q, v16_mul(r, r), r), v16_set(1.0f));
    const v16i i = v16i_sub(v16_bits(t), v16_bits(magic)), half = v16i_sar(i, 1);
    const v16i bias = v16i_set(127);
    const v16 s0 = v16_of_bits(v16i_shl(v16i_add(half, bias), 23));
    const v16 s1 = v16_of_bits(v16i_shl(v16i_add(v16i_sub(i, half), bias), 23));
    const v16 y = v16_lt_sel(x, v16_set(SP_EXPF_MIN), v16_zero(), v16_mul(v16_mul(p, s0), s1));
    return v16_lt_sel(v16_set(SP_EXPF_MAX), x, v16_set(SP_INF), y);
}

SP_INLINE v16 v16_log(v16 x) {
    const v16 tiny = v16_set(0x1p-126f), one = v16_set(1.0f);
    const v16 scaled = v16_lt_sel(x, tiny, v16_mul(x, v16_set(0x1p23f)), x);
    const v16 bias = v16_lt_sel(x, tiny, v16_set(150.0f), v16_set(127.0f));
    const v16i u = v16i_add(v16_bits(scaled), v16i_set(0x3f800000u - SP_SQRT_HALF_BITS));
    const v16 e = v16_sub(v16_of_int(v16i_shr(u, 23)), bias);
    const v16i m = v16i_add(v16i_and(u, v16i_set(0x7fffffu)), v16i_set(SP_SQRT_HALF_BITS));
    const v16 f = v16_sub(v16_of_bits(m), one);
    const v16 s = v16_div(f, v16_add(f, v16_set(2.0f))), z = v16_mul(s, s);
    const v16 h = v16_mul(v16_mul(v16_set(0.5f), f), f);
    const v16 r = v16_mul(v16_poly(sp_logf_poly, 4, z), z);
    const v16 small = v16_fma(s, v16_add(h, r), v16_mul(e, v16_set(SP_LN2_LO)));
    const v16 y = v16_fma(e, v16_set(SP_LN2_HI), v16_sub(f, v16_sub(h, small)));
    const v16 inf = v16_set(SP_INF), zero = v16_zero();
    const v16 positive = v16_lt_sel(x, inf, y, x);
    const v16 nought = v16_le_sel(zero, x, v16_set(-SP_INF), v16_set(SP_NAN));
    return v16_lt_sel(zero, x, positive, nought);
}

SP_INLINE v16 v16_tanh(v16 x) {
    const v16 a = v16_abs(x), z = v16_mul(x, x), one = v16_set(1.0f);
    const v16 near = v16_fma(v16_mul(v16_poly(sp_tanhf_poly, 5, z), z), x, x);
    const v16 e = v16_add(v16_exp(v16_add(a, a)), one);
    const v16 far = v16_sub(one, v16_div(v16_set(2.0f), e));
    return v16_copysign(v16_le_sel(a, v16_set(SP_TANHF_NEAR), near, far), x);
}

SP_INLINE v16 v16_erf(v16 x) {
    const v16 a = v16_abs(x), one = v16_set(1.0f);
    const v16 near = v16_fma(v16_poly(sp_erff_near, 7, v16_mul(x, x)), x, x);
    const v16 far = v16_sub(one, v16_exp(v16_poly(sp_erff_far, 8, a)));
    const v16 big = v16_le_sel(v16_set(SP_ERFF_ONE), a, one, far);
    return v16_copysign(v16_le_sel(a, v16_set(SP_ERFF_NEAR), near, big), x);
}

SP_INLINE v16 v16_silu(v16 x) {
    const v16 minus = v16_of_bits(v16i_add(v16_bits(x), v16i_set(0x80000000u)));
    return v16_div(x, v16_add(v16_set(1.0f), v16_exp(minus)));
}

SP_INLINE v16 v16_gelu(v16 x) {
    const v16 h = v16_mul(v16_set(0.5f), x);
    return v16_fma(h, v16_erf(v16_mul(x, v16_set(0x1.6a09e6p-1f))), h);
}

SP_INLINE v16 v16_gelu_tanh(v16 x) {
    const v16 h = v16_mul(v16_set(0.5f), x);
    const v16 u = v16_fma(v16_mul(v16_set(0.044715f), v16_mul(x, x)), x, x);
    return v16_fma(h, v16_tanh(v16_mul(u, v16_set(0x1.988454p-1f))), h);
}
