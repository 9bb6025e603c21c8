#include "kernels/ref/ref_dev.h"

#include "kernels/check.h"
#include "kernels/math.h"

static float *row_of(sp_mat m, int32_t row) {
    SP_DASSERT(m.dtype == SP_DTYPE_F32 && m.stride >= m.cols);
    return (float *)m.data + (ptrdiff_t)row * m.stride;
}

float sp_ref_get(const void *p, sp_dtype t, size_t i) {
    if (t == SP_DTYPE_F32) return ((const float *)p)[i];
    const uint16_t h = ((const uint16_t *)p)[i];
    return t == SP_DTYPE_F16 ? sp_f32_of_f16(h) : sp_f32_of_bf16(h);
}

void sp_ref_put(void *p, sp_dtype t, size_t i, float x) {
    if (t == SP_DTYPE_F32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = t == SP_DTYPE_F16 ? sp_f16_of_f32(x) : sp_bf16_of_f32(x);
}

float sp_ref_tree16(const float lanes[SP_LANES]) {
    float l[SP_LANES];
    memcpy(l, lanes, sizeof l);
    for (int half = SP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) l[i] += l[i + half];
    return l[0];
}

void sp_ref_embed(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids) {
    sp_ref *ref = dev->impl;
    if (!sp_check_ids(&ref->fault, ids, y.rows, w->rows)) return;
    for (int32_t t = 0; t < y.rows; t++)
        for (int32_t k = 0; k < w->cols; k++)
            row_of(y, t)[k] =
                sp_ref_get(w->data, w->dtype, (size_t)ids[t] * (size_t)w->cols + (size_t)k);
}

/* Sum of squares: element i by fma into lane i mod 16. */
static void norm_row(float *y, const float *x, const float *weight, int32_t n, float eps) {
    float lanes[SP_LANES] = {0};
    for (int32_t i = 0; i < n; i++) {
        float *lane = &lanes[i % SP_LANES];
        *lane = sp_fmaf(x[i], x[i], *lane);
    }
    const float mean = sp_ref_tree16(lanes) / (float)n;
    const float scale = 1.0f / __builtin_sqrtf(mean + eps);
    for (int32_t i = 0; i < n; i++) y[i] = (x[i] * scale) * weight[i];
}

static void add_row(float *x, const float *p, const float *bias, int32_t n) {
    for (int32_t i = 0; i < n; i++) x[i] += bias ? p[i] + bias[i] : p[i];
}

void sp_ref_add_rmsnorm(sp_dev *dev, sp_mat y, sp_mat x, sp_mat partial, const float *bias,
                        const float *weight, float eps) {
    (void)dev;
    for (int32_t t = 0; t < x.rows; t++) {
        float *xr = row_of(x, t);
        if (partial.data) add_row(xr, row_of(partial, t), bias, x.cols);
        norm_row(row_of(y, t), xr, weight, x.cols, eps);
    }
}

void sp_ref_add(sp_dev *dev, sp_mat x, sp_mat partial, const float *bias) {
    (void)dev;
    SP_ASSERT(x.cols == partial.cols && x.rows == partial.rows);
    for (int32_t t = 0; t < x.rows; t++) add_row(row_of(x, t), row_of(partial, t), bias, x.cols);
}

/* One output: each segment by fma over ascending k from +0, the tree over segments, the bias. */
static float dot_segments(const float *x, const sp_weight *w, int32_t n) {
    float sum[SP_SEGMENTS] = {0};
    const size_t row = (size_t)n * (size_t)w->cols;
    for (int s = 0; s < w->seg.n; s++)
        for (int32_t k = w->seg.edge[s]; k < w->seg.edge[s + 1]; k++)
            sum[s] = sp_fmaf(x[k], sp_ref_get(w->data, w->dtype, row + (size_t)k), sum[s]);
    for (int left = w->seg.n; left > 1; left /= 2)
        for (int s = 0; s < left / 2; s++) sum[s] = sum[2 * s] + sum[2 * s + 1];
    return sum[0];
}

void sp_ref_gemm(sp_dev *dev, sp_mat y, sp_mat x, const sp_weight *w, const float *bias) {
    (void)dev;
    SP_ASSERT(x.cols == w->cols && y.cols == w->rows && x.rows == y.rows);
    for (int32_t t = 0; t < y.rows; t++)
        for (int32_t n = 0; n < w->rows; n++) {
            const float sum = dot_segments(row_of(x, t), w, n);
            row_of(y, t)[n] = bias ? sum + bias[n] : sum;
        }
}

static float activate(float x, sp_act act) {
    switch (act) {
    case SP_ACT_SILU:
        return sp_siluf(x);
    case SP_ACT_GELU:
        return sp_geluf(x);
    case SP_ACT_GELU_TANH:
        return sp_gelu_tanhf(x);
    }
    return x;
}

void sp_ref_act_mul(sp_dev *dev, sp_mat y, sp_mat gate_up, sp_act act) {
    (void)dev;
    SP_ASSERT(gate_up.cols == 2 * y.cols);
    for (int32_t t = 0; t < y.rows; t++) {
        const float *gate = row_of(gate_up, t), *up = gate + y.cols;
        for (int32_t i = 0; i < y.cols; i++) row_of(y, t)[i] = activate(gate[i], act) * up[i];
    }
}

void sp_ref_gather_rows(sp_dev *dev, sp_mat y, sp_mat x, const int32_t *rows) {
    (void)dev;
    for (int32_t s = 0; s < y.rows; s++) {
        SP_ASSERT(rows[s] >= 0 && rows[s] < x.rows);
        memcpy(row_of(y, s), row_of(x, rows[s]), (size_t)y.cols * sizeof(float));
    }
}
