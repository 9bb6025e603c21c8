/* Covers kernels/math.h, kernels/math.c, kernels/rope.c and kernels/cpu/vecmath.h: bounds against
 * libm in a wider type, special values, and the same bits on every instruction set. */
#include "kernels/cpu/isa.h"
#include "kernels/math.h"
#include "kernels/rope.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PI 3.14159265358979323846264338327950288L
/* Sanitizer builds look for other things and are slow: fewer samples there. */
#ifdef SP_DEBUG
#define SAMPLES 300000
#else
#define SAMPLES 10000000
#endif

static uint64_t rng_state;
static uint32_t rng(void) {
    rng_state += 0x9e3779b97f4a7c15u;
    uint64_t z = rng_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static double uniform(double lo, double hi) {
    return lo + (hi - lo) * rng() / 4294967296.0;
}

typedef float float_fn(float);
typedef double double_fn(double);

/* Distance in units of the last place of the float nearest to `want`. */
static double ulps(float got, double want) {
    if (isnan(want)) return isnan(got) ? 0 : INFINITY;
    const float near = (float)want;
    if (near == got) return 0;
    if (isinf(near) || isinf(got))
        return fabs(want) > 3.4e38 && fabsf(got) > 3.4e38f ? 1 : INFINITY;
    int exp;
    frexp(want, &exp);
    const double ulp = ldexp(1, exp - 24 < -149 ? -149 : exp - 24);
    return fabs((double)got - want) / ulp;
}

static double worst_ulps(float_fn *fn, double_fn *ref, double lo, double hi, int n) {
    double worst = 0;
    for (int i = 0; i < n; i++) {
        const float x = (float)uniform(lo, hi);
        const double u = ulps(fn(x), ref(x));
        worst = u > worst ? u : worst;
    }
    return worst;
}

static void float_functions_are_within_two_ulp(void) {
    rng_state = 1;
    const int n = SAMPLES / 20;
    CU_ASSERT(worst_ulps(sp_expf, exp, -104, 89, n) <= 2);
    CU_ASSERT(worst_ulps(sp_expf, exp, -1, 1, n) <= 2);
    CU_ASSERT(worst_ulps(sp_logf, log, 0, 2, n) <= 2);
    CU_ASSERT(worst_ulps(sp_logf, log, 0, 3e38, n) <= 2);
    CU_ASSERT(worst_ulps(sp_logf, log, 0, 1e-38, n) <= 2);
    CU_ASSERT(worst_ulps(sp_tanhf, tanh, -1, 1, n) <= 2);
    CU_ASSERT(worst_ulps(sp_tanhf, tanh, -12, 12, n) <= 2);
    CU_ASSERT(worst_ulps(sp_erff, erf, -1.2, 1.2, n) <= 2);
    CU_ASSERT(worst_ulps(sp_erff, erf, -5, 5, n) <= 2);
    CU_ASSERT(worst_ulps(sp_erff, erf, -1e-30, 1e-30, n) <= 2);
}

static void float_functions_know_the_special_values(void) {
    CU_ASSERT(sp_expf(INFINITY) == INFINITY && sp_expf(-INFINITY) == 0 && sp_expf(0) == 1);
    CU_ASSERT(sp_expf(88.8f) == INFINITY && sp_expf(-104.5f) == 0 && sp_expf(-103.0f) > 0);
    CU_ASSERT(sp_expf(3e38f) == INFINITY && sp_expf(-3e38f) == 0);
    CU_ASSERT(isnan(sp_expf(NAN)) && isnan(sp_logf(NAN)) && isnan(sp_tanhf(NAN)) &&
              isnan(sp_erff(NAN)));
    CU_ASSERT(sp_logf(0) == -INFINITY && sp_logf(-0.0f) == -INFINITY && isnan(sp_logf(-1)));
    CU_ASSERT(sp_logf(1) == 0 && sp_logf(INFINITY) == INFINITY);
    CU_ASSERT(sp_tanhf(INFINITY) == 1 && sp_tanhf(-INFINITY) == -1 && signbit(sp_tanhf(-0.0f)));
    CU_ASSERT(sp_erff(INFINITY) == 1 && sp_erff(-INFINITY) == -1 && signbit(sp_erff(-0.0f)));
    CU_ASSERT(sp_siluf(0) == 0 && sp_siluf(-200) == 0 && sp_siluf(200) == 200);
    CU_ASSERT(sp_geluf(-40) == 0 && sp_geluf(40) == 40 && sp_gelu_tanhf(1e30f) == 1e30f);
}

static void activations_are_close_to_their_definitions(void) {
    rng_state = 2;
    for (int i = 0; i < 100000; i++) {
        const float x = (float)uniform(-12, 12);
        const double d = x, tol = 4e-7 * (1 + fabs(d));
        const double inner = 0.7978845608028654 * (d + 0.044715 * d * d * d);
        CU_ASSERT(fabs(sp_siluf(x) - d / (1 + exp(-d))) <= tol);
        CU_ASSERT(fabs(sp_geluf(x) - d * 0.5 * (1 + erf(d / sqrt(2)))) <= tol);
        CU_ASSERT(fabs(sp_gelu_tanhf(x) - 0.5 * d * (1 + tanh(inner))) <= tol);
    }
}

static bool same_float(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

/* Any bits, numbers around the branches, and plain ones. */
static float sample(int i) {
    static const float edges[] = {0.0f,      -0.0f,      INFINITY,    -INFINITY,   NAN,
                                  0x1p-149f, -0x1p-149f, 89.0f,       -105.0f,     0.625f,
                                  0.95f,     4.0f,       0x1p-126f,   1.0f,        3.4e38f,
                                  -3.4e38f,  88.72284f,  -103.97208f, 0.70710677f, 0x1p-127f};
    const int n = (int)SP_LEN(edges);
    if (i < n) return edges[i];
    if (i < 3 * n) return nextafterf(edges[i % n], i < 2 * n ? INFINITY : -INFINITY);
    if (i % 2) return sp_f32_of_bits(rng());
    return (float)uniform(-110, 110);
}

static void vector_functions_have_the_bits_of_the_scalar_ones(void) {
    static float_fn *const scalar[] = {sp_expf, sp_logf, sp_tanhf, sp_erff};
    enum {
        N = 1000
    };
    float x[N], y[N];
    for (const sp_cpu_isa *const *isa = sp_cpu_isas(); *isa; isa++) {
        /* The plain lanes call libm's fma: one in ten of the samples says as much. */
        const int rounds = SAMPLES / N / (strcmp((*isa)->name, "generic") == 0 ? 40 : 4);
        int differ = 0;
        rng_state = 3;
        for (int r = 0; r < rounds; r++) {
            for (int i = 0; i < N; i++) x[i] = sample(r * N + i);
            for (int fn = 0; fn < 4; fn++) {
                (*isa)->ops->math((sp_isa_fn)fn, y, x, N - r % 16);
                for (int i = 0; i < N - r % 16; i++) differ += !same_float(y[i], scalar[fn](x[i]));
            }
        }
        if (differ) fprintf(stderr, "%s: %d values differ\n", (*isa)->name, differ);
        CU_ASSERT_EQUAL(differ, 0);
    }
}

static double relative(double got, long double want) {
    if (want == 0) return got == 0 ? 0 : INFINITY;
    return (double)fabsl((got - want) / want);
}

static void double_functions_are_within_1e_14(void) {
    rng_state = 4;
    double e = 0, l = 0, p = 0;
    for (int i = 0; i < SAMPLES / 20; i++) {
        const double x = uniform(-700, 700), a = uniform(1e-3, 4);
        const double b = sp_exp(uniform(-300, 300)), y = uniform(-2, 2);
        e = fmax(e, relative(sp_exp(x), expl(x)));
        l = fmax(l, relative(sp_log(a), logl(a)));
        l = fmax(l, relative(sp_log(b), logl(b)));
        p = fmax(p, relative(sp_pow(b, y), powl(b, y)));
        p = fmax(p, relative(sp_pow(a, y * 40), powl(a, y * 40)));
    }
    CU_ASSERT(e <= 1e-14);
    CU_ASSERT(l <= 1e-14);
    CU_ASSERT(p <= 1e-14);
}

static void sines_are_within_1e_14_even_beside_their_zeros(void) {
    rng_state = 5;
    double s = 0, c = 0;
    for (int i = 0; i < SAMPLES / 20; i++) {
        const double x = uniform(-1048576, 1048576) * (i % 3 ? 1 : 1e-3);
        /* The doubles nearest to multiples of pi/2 lose the most in the reduction. */
        const double z = (double)((PI / 2) * (int)(rng() % 1300000) + 0.0L);
        const double big = uniform(-0x1p30, 0x1p30);
        const double at[] = {x, z, big};
        for (int k = 0; k < 3; k++) {
            s = fmax(s, relative(sp_sin(at[k]), sinl(at[k])));
            c = fmax(c, relative(sp_cos(at[k]), cosl(at[k])));
        }
    }
#if __LDBL_MANT_DIG__ >= 64
    /* x87's long double has 11 bits more; near a zero its own sine is exact to those. */
    CU_ASSERT(s <= 1e-14);
    CU_ASSERT(c <= 1e-14);
#endif
    CU_ASSERT(sp_sin(0) == 0 && sp_cos(0) == 1 && signbit(sp_sin(-0.0)));
    CU_ASSERT(isnan(sp_sin(INFINITY)) && isnan(sp_cos(NAN)) && isnan(sp_sin(0x1p31)));
    /* 3 pi/2 as a double: a value from a table of 40 digits. */
    CU_ASSERT(fabs(sp_cos(4.71238898038468985769) - -1.8369701987210297e-16) < 1e-30);
}

static void double_functions_know_the_special_values(void) {
    CU_ASSERT(sp_exp(INFINITY) == INFINITY && sp_exp(-INFINITY) == 0 && sp_exp(0) == 1);
    CU_ASSERT(sp_exp(710) == INFINITY && sp_exp(-745.0) > 0 && sp_exp(-746.5) == 0);
    CU_ASSERT(isnan(sp_exp(NAN)) && isnan(sp_log(NAN)) && isnan(sp_log(-1)));
    CU_ASSERT(sp_log(0) == -INFINITY && sp_log(1) == 0 && sp_log(INFINITY) == INFINITY);
    CU_ASSERT(fabs(sp_log(0x1p-1074) - -744.4400719213812) < 1e-12);
    CU_ASSERT(sp_pow(0, 2) == 0 && sp_pow(0, -1) == INFINITY && sp_pow(NAN, 0) == 1);
    CU_ASSERT(sp_pow(2, INFINITY) == INFINITY && sp_pow(0.5, INFINITY) == 0);
    CU_ASSERT(sp_pow(0.5, -INFINITY) == INFINITY && sp_pow(INFINITY, -1) == 0);
    CU_ASSERT(isnan(sp_pow(-2, 2)) && isnan(sp_pow(2, NAN)) && sp_pow(1, NAN) == 1);
    CU_ASSERT(sp_pow(2, 10) == 1024 && sp_pow(10, 400) == INFINITY && sp_pow(10, -400) == 0);
}

/* FNV-1a over bits: the constant below was computed once; another machine must agree. */
static uint64_t hash_of(const void *p, size_t n) {
    return sp_hash_bytes(p, n);
}

static void rope_tables_hold_cosine_and_sine_of_position_times_frequency(void) {
    enum {
        N = 300,
        DIMS = 64
    };
    const sp_rope_params p = {.dims = DIMS, .theta = 10000};
    float *c = malloc(N * DIMS / 2 * sizeof *c), *s = malloc(N * DIMS / 2 * sizeof *s);
    sp_rope_fill(&p, N, c, s);
    double worst = 0;
    for (int pos = 0; pos < N; pos++)
        for (int i = 0; i < DIMS / 2; i++) {
            const long double angle = pos * powl(10000, -2.0L * i / DIMS);
            worst = fmax(worst, fabs((double)(c[pos * DIMS / 2 + i] - cosl(angle))));
            worst = fmax(worst, fabs((double)(s[pos * DIMS / 2 + i] - sinl(angle))));
        }
    CU_ASSERT(worst <= 0x1p-24);
    CU_ASSERT_EQUAL(hash_of(c, N * DIMS / 2 * sizeof *c), 0xb0513822a990e49cu);
    CU_ASSERT_EQUAL(hash_of(s, N * DIMS / 2 * sizeof *s), 0x1ed4bb0c7b88d39du);
    free(c);
    free(s);
}

static void rope_frequencies_are_rescaled_by_type(void) {
    sp_rope_params p = {.dims = 128, .theta = 500000};
    CU_ASSERT_EQUAL(sp_rope_inv_freq(&p, 0), 1);
    const double f20 = sp_rope_inv_freq(&p, 20), f60 = sp_rope_inv_freq(&p, 60);
    p.type = SP_ROPE_SCALE_LINEAR;
    p.factor = 8;
    CU_ASSERT_EQUAL(sp_rope_inv_freq(&p, 20), f20 / 8);
    p.type = SP_ROPE_SCALE_LLAMA3;
    p.low_freq_factor = 1;
    p.high_freq_factor = 4;
    p.original_max_positions = 8192;
    CU_ASSERT_EQUAL(sp_rope_inv_freq(&p, 0), 1);        /* short wavelength: kept */
    CU_ASSERT_EQUAL(sp_rope_inv_freq(&p, 20), f20);     /* 8192 f / 2 pi = 21.6 turns */
    CU_ASSERT_EQUAL(sp_rope_inv_freq(&p, 60), f60 / 8); /* far longer than the context */
    /* Pair 32: theta^(-1/2), 1.8437 turns, so keep = 0.28124. */
    const double f32_ = 1 / sqrt(500000), keep = (8192 * f32_ / (2 * (double)PI) - 1) / 3;
    CU_ASSERT(fabs(sp_rope_inv_freq(&p, 32) / ((1 - keep) * f32_ / 8 + keep * f32_) - 1) < 1e-14);
    p.high_freq_factor = 1; /* no ramp: nothing is divided by zero */
    for (int i = 0; i < 64; i++) CU_ASSERT(sp_rope_inv_freq(&p, i) > 0);
}

static void a_longer_rope_table_begins_with_the_shorter_one(void) {
    const sp_rope_params p = {.dims = 32, .theta = 1e6};
    float c1[10 * 16], s1[10 * 16], c2[50 * 16], s2[50 * 16];
    sp_rope_fill(&p, 10, c1, s1);
    sp_rope_fill(&p, 50, c2, s2);
    CU_ASSERT(memcmp(c1, c2, sizeof c1) == 0 && memcmp(s1, s2, sizeof s1) == 0);
}

SP_TEST_MAIN("kernels/math", SP_TEST(float_functions_are_within_two_ulp),
             SP_TEST(float_functions_know_the_special_values),
             SP_TEST(activations_are_close_to_their_definitions),
             SP_TEST(vector_functions_have_the_bits_of_the_scalar_ones),
             SP_TEST(double_functions_are_within_1e_14),
             SP_TEST(sines_are_within_1e_14_even_beside_their_zeros),
             SP_TEST(double_functions_know_the_special_values),
             SP_TEST(rope_tables_hold_cosine_and_sine_of_position_times_frequency),
             SP_TEST(rope_frequencies_are_rescaled_by_type),
             SP_TEST(a_longer_rope_table_begins_with_the_shorter_one))
