/* kernels/cpu/vec16_plain.h - vec16.h in plain C. Included by vec16.h only.
 *
 * Loops over 16 lanes that a compiler may turn into what the machine has; without a hardware fma
 * __builtin_fmaf calls libm's exact one: slow, and right.
 *
 * Thread: any. */
#pragma once

#include "kernels/cpu/vec16_base.h"

/* Debug and sanitizer builds leave the choice to the compiler: inlined, they take it a minute. */
#ifdef SP_DEBUG
#define V16_FN static __attribute__((unused))
#else
#define V16_FN SP_INLINE
#endif

typedef struct v16 {
    float f[16];
} v16;
typedef struct v16i {
    uint32_t u[16];
} v16i;

#define V16_EACH(type, member, expr) \
    type r_; \
    for (int i = 0; i < 16; i++) r_.member[i] = (expr); \
    return r_

V16_FN v16 v16_set(float x) {
    V16_EACH(v16, f, x);
}
V16_FN v16 v16_zero(void) {
    return v16_set(0.0f);
}
V16_FN v16 v16_load(const float *p) {
    V16_EACH(v16, f, p[i]);
}
V16_FN v16 v16_load_n(const float *p, int n) {
    V16_EACH(v16, f, i < n ? p[i] : 0.0f);
}
V16_FN void v16_store_n(float *p, v16 a, int n) {
    for (int i = 0; i < n; i++) p[i] = a.f[i];
}
V16_FN void v16_store(float *p, v16 a) {
    v16_store_n(p, a, 16);
}

V16_FN v16 v16_add(v16 a, v16 b) {
    V16_EACH(v16, f, a.f[i] + b.f[i]);
}
V16_FN v16 v16_sub(v16 a, v16 b) {
    V16_EACH(v16, f, a.f[i] - b.f[i]);
}
V16_FN v16 v16_mul(v16 a, v16 b) {
    V16_EACH(v16, f, a.f[i] * b.f[i]);
}
V16_FN v16 v16_div(v16 a, v16 b) {
    V16_EACH(v16, f, a.f[i] / b.f[i]);
}
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    V16_EACH(v16, f, __builtin_fmaf(a.f[i], b.f[i], c.f[i]));
}
V16_FN v16 v16_max(v16 a, v16 b) {
    V16_EACH(v16, f, a.f[i] > b.f[i] ? a.f[i] : b.f[i]);
}

V16_FN v16 v16_lt_sel(v16 a, v16 b, v16 x, v16 y) {
    V16_EACH(v16, f, a.f[i] < b.f[i] ? x.f[i] : y.f[i]);
}
V16_FN v16 v16_le_sel(v16 a, v16 b, v16 x, v16 y) {
    V16_EACH(v16, f, a.f[i] <= b.f[i] ? x.f[i] : y.f[i]);
}
V16_FN v16 v16_range_sel(int lo, int hi, v16 x, v16 y) {
    V16_EACH(v16, f, i >= lo && i < hi ? x.f[i] : y.f[i]);
}
V16_FN v16 v16_abs(v16 a) {
    V16_EACH(v16, f, __builtin_fabsf(a.f[i]));
}
V16_FN v16 v16_copysign(v16 a, v16 s) {
    V16_EACH(v16, f, __builtin_copysignf(a.f[i], s.f[i]));
}

V16_FN v16i v16_bits(v16 a) {
    V16_EACH(v16i, u, sp_bits_of_f32(a.f[i]));
}
V16_FN v16 v16_of_bits(v16i a) {
    V16_EACH(v16, f, sp_f32_of_bits(a.u[i]));
}
V16_FN v16 v16_of_int(v16i a) {
    V16_EACH(v16, f, (float)(int32_t)a.u[i]);
}
V16_FN v16i v16i_set(uint32_t x) {
    V16_EACH(v16i, u, x);
}
V16_FN v16i v16i_add(v16i a, v16i b) {
    V16_EACH(v16i, u, a.u[i] + b.u[i]);
}
V16_FN v16i v16i_sub(v16i a, v16i b) {
    V16_EACH(v16i, u, a.u[i] - b.u[i]);
}
V16_FN v16i v16i_and(v16i a, v16i b) {
    V16_EACH(v16i, u, a.u[i] & b.u[i]);
}
V16_FN v16i v16i_shl(v16i a, int n) {
    V16_EACH(v16i, u, a.u[i] << n);
}
V16_FN v16i v16i_shr(v16i a, int n) {
    V16_EACH(v16i, u, a.u[i] >> n);
}
V16_FN v16i v16i_sar(v16i a, int n) {
    V16_EACH(v16i, u, (uint32_t)((int32_t)a.u[i] >> n));
}

V16_FN v16 v16_load_bf16_n(const uint16_t *p, int n) {
    V16_EACH(v16, f, i < n ? sp_f32_of_bf16(p[i]) : 0.0f);
}
V16_FN v16 v16_load_bf16(const uint16_t *p) {
    V16_EACH(v16, f, sp_f32_of_bf16(p[i]));
}
V16_FN v16 v16_load_f16_n(const uint16_t *p, int n) {
    V16_EACH(v16, f, i < n ? sp_f32_of_f16(p[i]) : 0.0f);
}
V16_FN v16 v16_load_f16(const uint16_t *p) {
    return v16_load_f16_n(p, 16);
}
V16_FN void v16_pair(const void *p, v16 *lo, v16 *hi) {
    const uint16_t *q = p;
    for (int i = 0; i < 16; i++) {
        lo->f[i] = sp_f32_of_bf16(q[2 * i]);
        hi->f[i] = sp_f32_of_bf16(q[2 * i + 1]);
    }
}
V16_FN void v16_store_bf16_n(uint16_t *p, v16 a, int n) {
    for (int i = 0; i < n; i++) p[i] = sp_bf16_of_f32(a.f[i]);
}
V16_FN void v16_store_f16_n(uint16_t *p, v16 a, int n) {
    for (int i = 0; i < n; i++) p[i] = sp_f16_of_f32(a.f[i]);
}

V16_FN float v16_tree(v16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.f[i] += a.f[i + half];
    return a.f[0];
}
V16_FN v16 v16_tree_rows(const v16 *a) {
    V16_EACH(v16, f, v16_tree(a[i]));
}
V16_FN void v16_transpose(v16 *a) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            const float t = a[i].f[j];
            a[i].f[j] = a[j].f[i];
            a[j].f[i] = t;
        }
}
