/* kernels/cuda/emu/half.h - bits of f16 and bf16, to and from f32.
 *
 * Rounding is to nearest, ties to even; a NaN becomes the one NaN that CUDA's conversions give
 * (0x7fff). Compared with the toolkit's own host code, all values, by a test. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float cu_float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t cu_bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float cu_bf16_to_float(uint16_t h) {
    return cu_float_of_bits((uint32_t)h << 16);
}

static inline uint16_t cu_bf16_from_float(float f) {
    uint32_t u = cu_bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float cu_f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    if (rest >= 0x0f800000u) return cu_float_of_bits(sign | 0x70000000u | rest); /* inf, NaN */
    /* The exponent is moved by a multiplication, which also makes subnormals normal; exact. */
    return cu_float_of_bits(sign | cu_bits_of_float(cu_float_of_bits(rest) * 0x1p112f));
}

static inline uint16_t cu_f16_from_float(float f) {
    uint32_t u = cu_bits_of_float(f), sign = (u >> 16) & 0x8000, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return 0x7fff;
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
    if (mag < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves the bits of a multiple of 2^-24 in the mantissa's end. */
        uint32_t sum = cu_bits_of_float(cu_float_of_bits(mag) + 0.5f);
        return (uint16_t)(sign | (sum - 0x3f000000u));
    }
    mag += 0xfffu + ((mag >> 13) & 1);
    return (uint16_t)(sign | ((mag - 0x38000000u) >> 13));
}
