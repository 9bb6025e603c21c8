/* Covers runtime/base/dtype.c: names, and f16 and bf16 over all values. */
#include "runtime/base/dtype.h"

#include "tests/harness.h"

#include <math.h>
#include <stdio.h>

static void every_type_is_found_by_its_safetensors_name(void) {
    for (int t = 0; t < SP_DTYPE_COUNT; t++) {
        sp_dtype found = SP_DTYPE_COUNT;
        CU_ASSERT_EQUAL(sp_dtype_parse(sp_slice_of(sp_dtype_name((sp_dtype)t)), &found), SP_OK);
        CU_ASSERT_EQUAL((int)found, t);
        CU_ASSERT(sp_dtype_bits((sp_dtype)t) >= 4 && sp_dtype_bits((sp_dtype)t) <= 64);
    }
    CU_ASSERT_EQUAL(sp_dtype_bits(SP_DTYPE_BF16), 16);
    CU_ASSERT_EQUAL(sp_dtype_bits(SP_DTYPE_F4), 4);
    CU_ASSERT_STRING_EQUAL(sp_dtype_name(SP_DTYPE_F8_E4M3), "F8_E4M3");
    CU_ASSERT_STRING_EQUAL(sp_dtype_name(SP_DTYPE_COUNT), "?");
}

static void unknown_names_are_refused(void) {
    static const char *const bad[] = {"", "f32", "F32 ", "BF1", "BF166", "FLOAT"};
    sp_dtype t = SP_DTYPE_I8;
    for (size_t i = 0; i < SP_LEN(bad); i++)
        CU_ASSERT_EQUAL(sp_dtype_parse(sp_slice_of(bad[i]), &t), SP_E_UNSUPPORTED);
    CU_ASSERT_EQUAL(sp_dtype_parse(SP_SLICE("F32\0"), &t), SP_E_UNSUPPORTED);
    CU_ASSERT_EQUAL(t, SP_DTYPE_I8);
}

/* By the definition of the format, in double. */
static double value_of_f16(uint16_t h) {
    int exp = h >> 10 & 31, man = h & 1023;
    double v = exp == 0 ? ldexp(man, -24) : ldexp(1024 + man, exp - 25);
    return h & 0x8000 ? -v : v;
}

static void all_f16_become_the_f32_of_the_same_value(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = sp_f32_of_f16((uint16_t)h);
        bool inf = (h & 0x7fff) == 0x7c00, nan = (h & 0x7fff) > 0x7c00;
        if (nan)
            wrong += !isnan(f);
        else if (inf)
            wrong += !isinf(f) || (signbit(f) != 0) != (h >= 0x8000);
        else
            wrong += (double)f != value_of_f16((uint16_t)h) || (signbit(f) != 0) != (h >= 0x8000);
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

static void all_f16_go_there_and_back(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t back = sp_f16_of_f32(sp_f32_of_f16((uint16_t)h));
        wrong += (h & 0x7fff) > 0x7c00 ? (back & 0x7fff) <= 0x7c00 : back != h;
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

/* The nearest of all finite f16 and infinity (which stands where 65536 would), ties to even. */
static uint16_t nearest_f16(double v) {
    uint16_t sign = signbit(v) ? 0x8000 : 0, low = 0, high = 0x7c00;
    v = fabs(v);
    if (v >= 65536) return sign | 0x7c00;
    while (high - low > 1) {
        uint16_t mid = (uint16_t)((low + high) / 2);
        if (value_of_f16(mid) <= v)
            low = mid;
        else
            high = mid;
    }
    double below = v - value_of_f16(low);
    double above = (high == 0x7c00 ? 65536 : value_of_f16(high)) - v;
    if (below != above) return sign | (below < above ? low : high);
    return sign | (low & 1 ? high : low);
}

/* Around every f16 and every middle between two: the value, and one f32 step to either side. */
static void f32_are_rounded_to_the_nearest_f16_ties_to_even(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double a = value_of_f16((uint16_t)h);
        double b = h == 0x7bff ? 65536 : value_of_f16((uint16_t)(h + 1));
        float points[] = {(float)a, (float)((a + b) / 2)};
        for (int p = 0; p < 2; p++)
            for (int step = -1; step <= 1; step++) {
                float f = step == 0 ? points[p] : nextafterf(points[p], step * INFINITY);
                wrong += sp_f16_of_f32(f) != nearest_f16((double)f);
                wrong += sp_f16_of_f32(-f) != nearest_f16(-(double)f);
            }
    }
    CU_ASSERT_EQUAL(wrong, 0);
    uint32_t s = 1;
    for (int i = 0; i < 200000; i++) {
        s = s * 1664525u + 1013904223u;
        float f = sp_f32_of_bits(s ^ s >> 7);
        if (!isnan(f)) wrong += sp_f16_of_f32(f) != nearest_f16((double)f);
    }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_EQUAL(sp_f16_of_f32(INFINITY), 0x7c00);
    CU_ASSERT_EQUAL(sp_f16_of_f32(-INFINITY), 0xfc00);
    CU_ASSERT((sp_f16_of_f32(NAN) & 0x7fff) > 0x7c00);
    CU_ASSERT((sp_f16_of_f32(sp_f32_of_bits(0x7f800001)) & 0x7fff) > 0x7c00);
}

static void all_bf16_go_there_and_back(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = sp_f32_of_bf16((uint16_t)h);
        uint16_t back = sp_bf16_of_f32(f);
        wrong += sp_bits_of_f32(f) != h << 16;
        wrong += (h & 0x7fff) > 0x7f80 ? (back & 0x7fff) <= 0x7f80 : back != h;
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

static void f32_are_rounded_to_the_nearest_bf16_ties_to_even(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x7f80; h++)
        for (uint32_t low = 0; low < 0x10000; low += low < 4 || low > 0xfffa ? 1 : 0x1ffe) {
            bool up = low > 0x8000 || (low == 0x8000 && (h & 1));
            uint32_t want = h + up, bits = h << 16 | low;
            wrong += sp_bf16_of_f32(sp_f32_of_bits(bits)) != want;
            wrong += sp_bf16_of_f32(sp_f32_of_bits(bits | 0x80000000)) != (want | 0x8000);
        }
    for (uint32_t h = 0; h < 0x7f80; h++) { /* the tie itself and its neighbours */
        uint32_t tie = h << 16 | 0x8000;
        wrong += sp_bf16_of_f32(sp_f32_of_bits(tie)) != h + (h & 1);
        wrong += sp_bf16_of_f32(sp_f32_of_bits(tie - 1)) != h;
        wrong += sp_bf16_of_f32(sp_f32_of_bits(tie + 1)) != h + 1;
    }
    CU_ASSERT_EQUAL(wrong, 0);
    for (uint32_t low = 1; low < 0x800000; low <<= 1) /* a NaN stays one, wherever its bit is */
        CU_ASSERT((sp_bf16_of_f32(sp_f32_of_bits(0x7f800000 | low)) & 0x7fff) > 0x7f80);
    CU_ASSERT_EQUAL(sp_bf16_of_f32(INFINITY), 0x7f80);
    CU_ASSERT_EQUAL(sp_bf16_of_f32(-INFINITY), 0xff80);
}

SP_TEST_MAIN("runtime/base/dtype", SP_TEST(every_type_is_found_by_its_safetensors_name),
             SP_TEST(unknown_names_are_refused), SP_TEST(all_f16_become_the_f32_of_the_same_value),
             SP_TEST(all_f16_go_there_and_back),
             SP_TEST(f32_are_rounded_to_the_nearest_f16_ties_to_even),
             SP_TEST(all_bf16_go_there_and_back),
             SP_TEST(f32_are_rounded_to_the_nearest_bf16_ties_to_even))
