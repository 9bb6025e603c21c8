/* kernels/math_log.h - the natural logarithm in f64, for the host and for kernels of a GPU.
 *
 * sp_log() of kernels/math.h is this; the draw of a token on a device calls it here and gets the
 * same bits, because it is the same source without a contraction (-ffp-contract=off, -fmad=false).
 *
 * Source: as kernels/math.h.
 * Thread: any; pure functions. */
#pragma once

#include "kernels/math.h"

SP_BOTH static inline double sp_f64_of_bits(uint64_t u) {
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}
SP_BOTH static inline uint64_t sp_bits_of_f64(double d) {
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

/** c[0] + c[1] x + ... by Horner with fma. */
SP_BOTH static inline double sp_poly(const double *c, int n, double x) {
    double y = c[n - 1];
    for (int i = n - 2; i >= 0; i--) y = __builtin_fma(y, x, c[i]);
    return y;
}

#define SP_LN2_SHORT 0x1.62e42fefa38p-1 /* of log(2), 42 bits: times an exponent it is exact */
#define SP_LN2_SHORT_REST 0x1.ef35793c7673p-45

/** log(x) as a sum of two doubles, for finite x > 0. About 2^-60 relative: sp_pow() multiplies the
 * error by up to 700. */
SP_BOTH static inline double sp_log_pair(double x, double *lo) {
    static const double c[11] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
    const uint64_t sqrt_half = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;
    const bool tiny = x < 0x1p-1022;
    const uint64_t u = sp_bits_of_f64(tiny ? x * 0x1p54 : x) + (one - sqrt_half);
    const double e = (double)((int64_t)(u >> 52) - (tiny ? 1023 + 54 : 1023));
    const double f = sp_f64_of_bits((u & 0xfffffffffffff) + sqrt_half) - 1.0;

    /* s + s_lo = f / (2 + f), the rounding of 2 + f included. */
    const double d = f + 2.0, d_lo = f - (d - 2.0), s = f / d;
    const double s_lo = (__builtin_fma(-s, d, f) - s * d_lo) / d, z = s * s;
    const double small = __builtin_fma(2.0 * s * z, sp_poly(c, 11, z), 2.0 * s_lo);

    const double a = e * SP_LN2_SHORT, b = 2.0 * s, sum = a + b;
    const double rest = ((a - sum) + b) + __builtin_fma(e, SP_LN2_SHORT_REST, small);
    const double hi = sum + rest;
    *lo = rest - (hi - sum);
    return hi;
}

/** As sp_log(). */
SP_BOTH static inline double sp_log_both(double x) {
    double lo;
    if (x > 0) return x == __builtin_inf() ? x : sp_log_pair(x, &lo);
    return x == 0 ? -__builtin_inf() : __builtin_nan("");
}
