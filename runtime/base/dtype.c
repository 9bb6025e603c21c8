#include "runtime/base/dtype.h"

int sp_dtype_bits(sp_dtype t) {
    static const int bits[] = {
#define X(name, text, n) n,
        SP_DTYPE_LIST(X)
#undef X
    };
    SP_ASSERT(t < SP_DTYPE_COUNT);
    return bits[t];
}

static const char *const names[] = {
#define X(name, text, n) text,
    SP_DTYPE_LIST(X)
#undef X
};

const char *sp_dtype_name(sp_dtype t) {
    return t < SP_DTYPE_COUNT ? names[t] : "?";
}

sp_status sp_dtype_parse(sp_slice s, sp_dtype *out) {
    for (int t = 0; t < SP_DTYPE_COUNT; t++)
        if (sp_slice_is(s, names[t])) {
            *out = (sp_dtype)t;
            return SP_OK;
        }
    return SP_E_UNSUPPORTED;
}

float sp_f32_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023;
    if (exp == 31) return sp_f32_of_bits(sign | 0x7f800000 | man << 13);
    if (exp) return sp_f32_of_bits(sign | (exp + 112) << 23 | man << 13);
    if (!man) return sp_f32_of_bits(sign);
    /* Subnormal: shift the leading one up to the hidden place. */
    int shift = __builtin_clz(man) - 21;
    return sp_f32_of_bits(sign | (uint32_t)(113 - shift) << 23 | (man << shift & 1023) << 13);
}

uint16_t sp_f16_of_f32(float f) {
    uint32_t u = sp_bits_of_f32(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds above 65504 */
    if (a < 0x33000001) return (uint16_t)sign;             /* at most half of the least subnormal */
    int exp = (int)(a >> 23) - 112;
    uint32_t man = (a & 0x7fffff) | 0x800000;
    int drop = exp < 1 ? 14 - exp : 13;
    uint32_t kept = man >> drop, rest = man & ((1u << drop) - 1), half = 1u << (drop - 1);
    kept += rest > half || (rest == half && (kept & 1));
    /* The hidden one of a normal number adds 1 to the exponent field, hence exp - 1. */
    return (uint16_t)(sign | (kept + (exp < 1 ? 0u : (uint32_t)(exp - 1) << 10)));
}

uint16_t sp_bf16_of_f32(float f) {
    uint32_t u = sp_bits_of_f32(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
