// The shim's conversions, bit for bit: against their meaning everywhere, against the toolkit's own
// host code where it is installed.
#include "kernels/cuda/emu/half.h"
#include "tests/harness.h"

#include <math.h>

int emu_toolkit(void);
uint16_t emu_toolkit_bf16(float f);
uint16_t emu_toolkit_f16(float f);
float emu_toolkit_from_bf16(uint16_t bits);
float emu_toolkit_from_f16(uint16_t bits);

static void every_16_bit_value_survives_the_way_to_f32_and_back(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        float b = cu_bf16_to_float((uint16_t)h), f = cu_f16_to_float((uint16_t)h);
        CU_ASSERT_FATAL(isnan(b) || cu_bf16_from_float(b) == h);
        CU_ASSERT_FATAL(isnan(f) || cu_f16_from_float(f) == h);
    }
    CU_ASSERT_EQUAL(cu_f16_to_float(0x3c00), 1.0f);
    CU_ASSERT_EQUAL(cu_f16_to_float(0x0001), 0x1p-24f);
    CU_ASSERT_EQUAL(cu_f16_to_float(0x7bff), 65504.0f);
    CU_ASSERT(isinf(cu_f16_to_float(0xfc00)) && isnan(cu_f16_to_float(0x7c01)));
}

// Halfway between two neighbours goes to the even one, just above it goes up, just below down.
static void halves_round_to_nearest_even(void) {
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float lo = cu_f16_to_float((uint16_t)h), hi = cu_f16_to_float((uint16_t)(h + 1));
        float mid = lo + (hi - lo) / 2;
        CU_ASSERT_EQUAL_FATAL(cu_f16_from_float(mid), h + (h & 1));
        CU_ASSERT_EQUAL_FATAL(cu_f16_from_float(nextafterf(mid, INFINITY)), h + 1);
        CU_ASSERT_EQUAL_FATAL(cu_f16_from_float(nextafterf(mid, 0)), h);
    }
    CU_ASSERT_EQUAL(cu_f16_from_float(65519.996f), 0x7bff);
    CU_ASSERT_EQUAL(cu_f16_from_float(65520.0f), 0x7c00);
    CU_ASSERT_EQUAL(cu_f16_from_float(-65520.0f), 0xfc00);
    CU_ASSERT_EQUAL(cu_f16_from_float(NAN), 0x7fff);
    CU_ASSERT_EQUAL(cu_bf16_from_float(cu_float_of_bits(0x3f808000)), 0x3f80);
    CU_ASSERT_EQUAL(cu_bf16_from_float(cu_float_of_bits(0x3f818000)), 0x3f82);
    CU_ASSERT_EQUAL(cu_bf16_from_float(cu_float_of_bits(0x7f7fffff)), 0x7f80);
    CU_ASSERT_EQUAL(cu_bf16_from_float(-NAN), 0x7fff);
}

static void the_toolkit_gives_the_same_bits(void) {
    if (!emu_toolkit()) SP_SKIP("no CUDA toolkit");
    for (uint32_t h = 0; h < 65536; h++) {
        float b = cu_bf16_to_float((uint16_t)h), f = cu_f16_to_float((uint16_t)h);
        float tb = emu_toolkit_from_bf16((uint16_t)h), tf = emu_toolkit_from_f16((uint16_t)h);
        CU_ASSERT_FATAL(cu_bits_of_float(b) == cu_bits_of_float(tb) || (isnan(b) && isnan(tb)));
        CU_ASSERT_FATAL(cu_bits_of_float(f) == cu_bits_of_float(tf) || (isnan(f) && isnan(tf)));
    }
    // All exponents and signs, with mantissas that stand around every rounding edge.
    uint32_t step = 4099;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += step) {
        for (uint32_t k = 0; k < 4; k++) {
            static const uint32_t edges[4] = {0, 0x1000, 0x7fff, 0x8000};
            float f = cu_float_of_bits(k ? ((uint32_t)u & ~0xffffu) | edges[k] : (uint32_t)u);
            CU_ASSERT_EQUAL_FATAL(cu_bf16_from_float(f), emu_toolkit_bf16(f));
            CU_ASSERT_EQUAL_FATAL(cu_f16_from_float(f), emu_toolkit_f16(f));
        }
    }
}

SP_TEST_MAIN("emu_toolkit", SP_TEST(every_16_bit_value_survives_the_way_to_f32_and_back),
             SP_TEST(halves_round_to_nearest_even), SP_TEST(the_toolkit_gives_the_same_bits))
