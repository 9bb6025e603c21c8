/* kernels/rope.h - cos and sin tables of rotary position embedding.
 *
 * Frequencies and angles are computed in double by kernels/math.h and rounded to f32 once, so that
 * every rank on every machine holds the same bytes. Frequency i of a table of `dims` rotary
 * dimensions is theta^(-2i / dims), then rescaled by type. A row depends on its position alone:
 * a longer table begins with the shorter one.
 *
 * Source: RoFormer, Su et al. 2021, section 3.4; frequency rescaling as in Llama 3.1's reference.
 * Thread: any. */
#pragma once

#include <stdint.h>

typedef enum sp_rope_scaling {
    SP_ROPE_SCALE_NONE,
    SP_ROPE_SCALE_LINEAR, /* every frequency / factor */
    SP_ROPE_SCALE_LLAMA3, /* long wavelengths / factor, short ones kept, a ramp between */
} sp_rope_scaling;

typedef struct sp_rope_params {
    int32_t dims; /* rotary dimensions, even, > 0 */
    double theta; /* > 0 */
    sp_rope_scaling type;
    double factor;                            /* linear and llama3 */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double original_max_positions;            /* llama3 */
} sp_rope_params;

/** Angle per position of pair `i`, 0 <= i < dims / 2. */
double sp_rope_inv_freq(const sp_rope_params *p, int32_t i);

/** Fills both tables, [n_positions][dims / 2]. n_positions <= 2^30 (sp_sin's domain). */
void sp_rope_fill(const sp_rope_params *p, int32_t n_positions, float *cos_table, float *sin_table);
