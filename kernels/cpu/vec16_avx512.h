/* kernels/cpu/vec16_avx512.h - vec16.h on AVX-512 F, BW, VL, DQ. Included by vec16.h only.
 * Thread: any. */
#pragma once

#include "kernels/cpu/vec16_base.h"

#if defined(SP_ISA_avx512)
#include <immintrin.h>

typedef __m512 v16;
typedef __m512i v16i;

SP_INLINE __mmask16 v16_first(int n) {
    return (__mmask16)((1u << n) - 1u);
}

SP_INLINE v16 v16_zero(void) {
    return _mm512_setzero_ps();
}
SP_INLINE v16 v16_set(float x) {
    return _mm512_set1_ps(x);
}
SP_INLINE v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
SP_INLINE v16 v16_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps(v16_first(n), p);
}
SP_INLINE void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
SP_INLINE void v16_store_n(float *p, v16 a, int n) {
    _mm512_mask_storeu_ps(p, v16_first(n), a);
}

SP_INLINE v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
SP_INLINE v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
SP_INLINE v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
SP_INLINE v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
SP_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
SP_INLINE v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}

SP_INLINE v16 v16_lt_sel(v16 a, v16 b, v16 x, v16 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
SP_INLINE v16 v16_le_sel(v16 a, v16 b, v16 x, v16 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), y, x);
}
SP_INLINE v16 v16_range_sel(int lo, int hi, v16 x, v16 y) {
    const int a = lo < 0 ? 0 : lo > 16 ? 16 : lo, b = hi < a ? a : hi > 16 ? 16 : hi;
    return _mm512_mask_blend_ps((__mmask16)(v16_first(b) & ~v16_first(a)), y, x);
}

SP_INLINE v16i v16_bits(v16 a) {
    return _mm512_castps_si512(a);
}
SP_INLINE v16 v16_of_bits(v16i a) {
    return _mm512_castsi512_ps(a);
}
SP_INLINE v16 v16_of_int(v16i a) {
    return _mm512_cvtepi32_ps(a);
}
SP_INLINE v16i v16i_set(uint32_t x) {
    return _mm512_set1_epi32((int)x);
}
SP_INLINE v16i v16i_add(v16i a, v16i b) {
    return _mm512_add_epi32(a, b);
}
SP_INLINE v16i v16i_sub(v16i a, v16i b) {
    return _mm512_sub_epi32(a, b);
}
SP_INLINE v16i v16i_and(v16i a, v16i b) {
    return _mm512_and_si512(a, b);
}
SP_INLINE v16i v16i_shl(v16i a, unsigned n) {
    return _mm512_slli_epi32(a, n);
}
SP_INLINE v16i v16i_shr(v16i a, unsigned n) {
    return _mm512_srli_epi32(a, n);
}
SP_INLINE v16i v16i_sar(v16i a, unsigned n) {
    return _mm512_srai_epi32(a, n);
}

SP_INLINE v16 v16_abs(v16 a) {
    return v16_of_bits(v16i_and(v16_bits(a), v16i_set(0x7fffffffu)));
}
SP_INLINE v16 v16_copysign(v16 a, v16 s) {
    const v16i sign = v16i_and(v16_bits(s), v16i_set(0x80000000u));
    return v16_of_bits(_mm512_or_si512(v16_bits(v16_abs(a)), sign));
}

SP_INLINE v16 v16_widen_bf16(__m256i h) {
    return v16_of_bits(v16i_shl(_mm512_cvtepu16_epi32(h), 16));
}
SP_INLINE v16 v16_load_bf16(const uint16_t *p) {
    return v16_widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
SP_INLINE v16 v16_load_bf16_n(const uint16_t *p, int n) {
    return v16_widen_bf16(_mm256_maskz_loadu_epi16(v16_first(n), p));
}
SP_INLINE v16 v16_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
SP_INLINE v16 v16_load_f16_n(const uint16_t *p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v16_first(n), p));
}
SP_INLINE void v16_pair(const void *p, v16 *lo, v16 *hi) {
    const v16i raw = _mm512_loadu_si512(p);
    *lo = v16_of_bits(v16i_shl(raw, 16));
    *hi = v16_of_bits(v16i_and(raw, v16i_set(0xffff0000u)));
}
SP_INLINE void v16_store_bf16_n(uint16_t *p, v16 a, int n) {
    const v16i u = v16_bits(a), top = v16i_shr(u, 16);
    const v16i odd = v16i_and(top, v16i_set(1));
    const v16i near = v16i_shr(v16i_add(v16i_add(u, v16i_set(0x7fff)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const v16i r = _mm512_mask_or_epi32(near, nan, top, v16i_set(0x40));
    _mm256_mask_storeu_epi16(p, v16_first(n), _mm512_cvtepi32_epi16(r));
}
SP_INLINE void v16_store_f16_n(uint16_t *p, v16 a, int n) {
    const __m256i near = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m256i sign = _mm256_and_si256(near, _mm256_set1_epi16((short)0x8000));
    const __m256i quiet = _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00));
    _mm256_mask_storeu_epi16(p, v16_first(n), _mm256_mask_blend_epi16(nan, near, quiet));
}

SP_INLINE float v16_tree(v16 a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

/* Each step adds the two halves of two vectors and packs both results into one. */
SP_INLINE v16 v16_fold8(v16 a, v16 b) { /* a0..7 | b0..7 */
    return v16_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
SP_INLINE v16 v16_fold4(v16 a, v16 b) {
    return v16_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
SP_INLINE v16 v16_fold2(v16 a, v16 b) {
    return v16_add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
SP_INLINE v16 v16_fold1(v16 a, v16 b) {
    return v16_add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
SP_INLINE v16 v16_tree_rows(const v16 *a) {
    v16 q[4];
    /* Quad g of q[j] ends as row 4 g + j, so that the last folds leave the rows in order. */
    for (int j = 0; j < 4; j++)
        q[j] = v16_fold4(v16_fold8(a[j], a[4 + j]), v16_fold8(a[8 + j], a[12 + j]));
    return v16_fold1(v16_fold2(q[0], q[1]), v16_fold2(q[2], q[3]));
}

SP_INLINE void v16_transpose(v16 *a) {
    v16 t[16];
    for (int i = 0; i < 4; i++) { /* 4 x 4 blocks inside the quads */
        const v16 *r = a + 4 * i;
        const v16 l0 = _mm512_unpacklo_ps(r[0], r[1]), h0 = _mm512_unpackhi_ps(r[0], r[1]);
        const v16 l1 = _mm512_unpacklo_ps(r[2], r[3]), h1 = _mm512_unpackhi_ps(r[2], r[3]);
        t[4 * i + 0] = _mm512_shuffle_ps(l0, l1, 0x44);
        t[4 * i + 1] = _mm512_shuffle_ps(l0, l1, 0xee);
        t[4 * i + 2] = _mm512_shuffle_ps(h0, h1, 0x44);
        t[4 * i + 3] = _mm512_shuffle_ps(h0, h1, 0xee);
    }
    for (int j = 0; j < 4; j++) { /* then the quads themselves */
        const v16 e01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
        const v16 o01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
        const v16 e23 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
        const v16 o23 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
        a[j] = _mm512_shuffle_f32x4(e01, e23, 0x88);
        a[4 + j] = _mm512_shuffle_f32x4(o01, o23, 0x88);
        a[8 + j] = _mm512_shuffle_f32x4(e01, e23, 0xdd);
        a[12 + j] = _mm512_shuffle_f32x4(o01, o23, 0xdd);
    }
}
#endif
