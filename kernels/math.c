#include "kernels/math.h"

#include "kernels/math_log.h"

#define MAGIC 0x1.8p52
#define LN2 0x1.62e42fefa39efp-1
#define LN2_REST 0x1.abc9e3b39803fp-56 /* log(2) - LN2 */

static double fma_(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

/* e^(x + lo) for a lo far below x. */
static double exp_sum(double x, double lo) {
    static const double c[] = {1.0,
                               1.0,
                               1.0 / 2,
                               1.0 / 6,
                               1.0 / 24,
                               1.0 / 120,
                               1.0 / 720,
                               1.0 / 5040,
                               1.0 / 40320,
                               1.0 / 362880,
                               1.0 / 3628800,
                               1.0 / 39916800,
                               1.0 / 479001600,
                               1.0 / 6227020800.0};
    if (x != x) return x;
    if (x > 710) return __builtin_inf();
    if (x < -746) return 0;
    const double t = fma_(x, 0x1.71547652b82fep0, MAGIC), n = t - MAGIC;
    const double r = fma_(n, -LN2, x) + fma_(n, -LN2_REST, lo);
    const double p = sp_poly(c, SP_LEN(c), r);
    const int64_t i = (int64_t)(sp_bits_of_f64(t) - sp_bits_of_f64(MAGIC)), half = i >> 1;
    return p * sp_f64_of_bits((uint64_t)(half + 1023) << 52) *
           sp_f64_of_bits((uint64_t)(i - half + 1023) << 52);
}

double sp_exp(double x) {
    return exp_sum(x, 0);
}

double sp_log(double x) {
    return sp_log_both(x);
}

double sp_pow(double x, double y) {
    if (y == 0 || x == 1) return 1;
    if (!(x >= 0) || y != y) return __builtin_nan("");
    const bool grows = (x > 1) == (y > 0);
    if (x == 0 || x == __builtin_inf()) return grows ? __builtin_inf() : 0;
    double lo;
    const double hi = sp_log_pair(x, &lo), p = y * hi;
    if (p > 710 || p < -746) return grows ? __builtin_inf() : 0;
    return exp_sum(p, fma_(y, hi, -p) + y * lo);
}

/* x = n pi/2 + r + r_lo, |r| <= pi/4. The first step is exact: both terms are multiples of 2^-52
 * and their difference is below 1, for every |x| up to 2^30. */
static int64_t reduce(double x, double *r, double *r_lo) {
    const double p1 = 0x1.921fb54442d18p0, p2 = 0x1.1a62633145c07p-54, p3 = -0x1.f1976b7ed8fbcp-110;
    const double n = fma_(x, 0x1.45f306dc9c883p-1, MAGIC) - MAGIC;
    const double a = fma_(-n, p1, x), w = n * p2;
    *r = a - w;
    *r_lo = ((a - *r) - w) - fma_(n, p3, fma_(n, p2, -w));
    return (int64_t)n;
}

static double sin_kernel(double r, double r_lo) {
    static const double c[] = {-1.0 / 6,
                               1.0 / 120,
                               -1.0 / 5040,
                               1.0 / 362880,
                               -1.0 / 39916800,
                               1.0 / 6227020800.0,
                               -1.0 / 1307674368000.0,
                               1.0 / 355687428096000.0};
    const double z = r * r;
    return r + fma_(sp_poly(c, SP_LEN(c), z) * z, r, r_lo * (1.0 - 0.5 * z));
}

static double cos_kernel(double r, double r_lo) {
    static const double c[] = {1.0 / 24,
                               -1.0 / 720,
                               1.0 / 40320,
                               -1.0 / 3628800,
                               1.0 / 479001600,
                               -1.0 / 87178291200.0,
                               1.0 / 20922789888000.0,
                               -1.0 / 6402373705728000.0};
    const double z = r * r, h = 0.5 * z, w = 1.0 - h;
    return w + (((1.0 - w) - h) + fma_(sp_poly(c, SP_LEN(c), z) * z, z, -r * r_lo));
}

/* sin(x + quarter * pi/2) */
static double sine(double x, int64_t quarter) {
    if (!(x >= -0x1p30 && x <= 0x1p30)) return __builtin_nan("");
    double r, r_lo;
    const int64_t n = reduce(x, &r, &r_lo) + quarter;
    const double y = n & 1 ? cos_kernel(r, r_lo) : sin_kernel(r, r_lo);
    return n & 2 ? -y : y;
}

double sp_sin(double x) {
    return x == 0 ? x : sine(x, 0);
}
double sp_cos(double x) {
    return sine(x, 1);
}
