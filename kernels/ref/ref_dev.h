/* kernels/ref/ref_dev.h - the reference backend's own parts.
 *
 * ref_ops.c and ref_attn.c are the specification of every operation's bits (kernels/README.md):
 * scalar, in the order that the contract names, and never made faster. ref_dev.c is memory and the
 * table.
 *
 * Thread: the device's. */
#pragma once

#include "kernels/dev.h"

typedef struct sp_ref {
    sp_err fault;
    sp_ticket last;
} sp_ref;

/* Row-major, as given, with no gap between rows. */
struct sp_weight {
    sp_dtype dtype;
    int32_t rows, cols;
    sp_segments seg;
    unsigned char data[];
};

/** Element `i` of an array of F32, F16 or BF16, as f32 (exact). */
float sp_ref_get(const void *p, sp_dtype t, size_t i);
/** Stores `x` as `t`, rounded to nearest even. */
void sp_ref_put(void *p, sp_dtype t, size_t i, float x);
/** l[i] += l[i + 8], then 4, 2, 1. */
float sp_ref_tree16(const float lanes[SP_LANES]);

void sp_ref_embed(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids);
void sp_ref_add_rmsnorm(sp_dev *dev, sp_mat y, sp_mat x, sp_mat partial, const float *bias,
                        const float *weight, float eps);
void sp_ref_add(sp_dev *dev, sp_mat x, sp_mat partial, const float *bias);
void sp_ref_gemm(sp_dev *dev, sp_mat y, sp_mat x, const sp_weight *w, const float *bias);
void sp_ref_rope_store(sp_dev *dev, const sp_rope_store_args *a);
void sp_ref_attend(sp_dev *dev, const sp_attn_args *a);
void sp_ref_act_mul(sp_dev *dev, sp_mat y, sp_mat gate_up, sp_act act);
void sp_ref_gather_rows(sp_dev *dev, sp_mat y, sp_mat x, const int32_t *rows);
