#include "kernels/rope.h"

#include "kernels/math.h"

#define TWO_PI 0x1.921fb54442d18p2

static double llama3_scaled(const sp_rope_params *p, double freq) {
    const double turns = p->original_max_positions * freq / TWO_PI; /* over the trained context */
    if (turns < p->low_freq_factor) return freq / p->factor;
    if (turns >= p->high_freq_factor) return freq;
    const double keep = (turns - p->low_freq_factor) / (p->high_freq_factor - p->low_freq_factor);
    return (1.0 - keep) * freq / p->factor + keep * freq;
}

double sp_rope_inv_freq(const sp_rope_params *p, int32_t i) {
    SP_ASSERT(p->dims > 0 && p->dims % 2 == 0 && i >= 0 && i < p->dims / 2);
    const double freq = sp_pow(p->theta, -2.0 * i / p->dims);
    switch (p->type) {
    case SP_ROPE_SCALE_NONE:
        return freq;
    case SP_ROPE_SCALE_LINEAR:
        return freq / p->factor;
    case SP_ROPE_SCALE_LLAMA3:
        return llama3_scaled(p, freq);
    }
    return freq;
}

void sp_rope_fill(const sp_rope_params *p, int32_t n_positions, float *cos_table,
                  float *sin_table) {
    SP_ASSERT(n_positions <= 1 << 30);
    const int32_t half = p->dims / 2;
    for (int32_t i = 0; i < half; i++) {
        const double freq = sp_rope_inv_freq(p, i);
        for (int32_t pos = 0; pos < n_positions; pos++) {
            cos_table[(size_t)pos * (size_t)half + (size_t)i] = (float)sp_cos(pos * freq);
            sin_table[(size_t)pos * (size_t)half + (size_t)i] = (float)sp_sin(pos * freq);
        }
    }
}
