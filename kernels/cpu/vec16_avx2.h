/* kernels/cpu/vec16_avx2.h - vec16.h on AVX2, FMA and F16C: lanes 0..7 and 8..15 in two registers.
 * Included by vec16.h only.
 * Thread: any. */
#pragma once

#include "kernels/cpu/vec16_base.h"

#if defined(SP_ISA_avx2)
#include <immintrin.h>

typedef struct v16 {
    __m256 a, b;
} v16;
typedef struct v16i {
    __m256i a, b;
} v16i;

SP_INLINE __m256i v8_first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

SP_INLINE v16 v16_zero(void) {
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
SP_INLINE v16 v16_set(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
SP_INLINE v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
SP_INLINE v16 v16_load_n(const float *p, int n) {
    return (v16){_mm256_maskload_ps(p, v8_first(n)), _mm256_maskload_ps(p + 8, v8_first(n - 8))};
}
SP_INLINE void v16_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
SP_INLINE void v16_store_n(float *p, v16 x, int n) {
    _mm256_maskstore_ps(p, v8_first(n), x.a);
    _mm256_maskstore_ps(p + 8, v8_first(n - 8), x.b);
}

SP_INLINE v16 v16_add(v16 x, v16 y) {
    return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
SP_INLINE v16 v16_sub(v16 x, v16 y) {
    return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
SP_INLINE v16 v16_mul(v16 x, v16 y) {
    return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
SP_INLINE v16 v16_div(v16 x, v16 y) {
    return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
SP_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
SP_INLINE v16 v16_max(v16 x, v16 y) {
    return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

SP_INLINE v16 v16_lt_sel(v16 p, v16 q, v16 x, v16 y) {
    return (v16){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_LT_OQ)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_LT_OQ))};
}
SP_INLINE v16 v16_le_sel(v16 p, v16 q, v16 x, v16 y) {
    return (v16){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_LE_OQ)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_LE_OQ))};
}
SP_INLINE __m256 v8_range_sel(int lo, int hi, __m256 x, __m256 y) {
    const __m256i in = _mm256_andnot_si256(v8_first(lo), v8_first(hi));
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(in));
}
SP_INLINE v16 v16_range_sel(int lo, int hi, v16 x, v16 y) {
    return (v16){v8_range_sel(lo, hi, x.a, y.a), v8_range_sel(lo - 8, hi - 8, x.b, y.b)};
}

SP_INLINE v16i v16_bits(v16 x) {
    return (v16i){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}
SP_INLINE v16 v16_of_bits(v16i x) {
    return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
SP_INLINE v16 v16_of_int(v16i x) {
    return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
SP_INLINE v16i v16i_set(uint32_t x) {
    return (v16i){_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};
}
SP_INLINE v16i v16i_add(v16i x, v16i y) {
    return (v16i){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
SP_INLINE v16i v16i_sub(v16i x, v16i y) {
    return (v16i){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
SP_INLINE v16i v16i_and(v16i x, v16i y) {
    return (v16i){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
SP_INLINE v16i v16i_or(v16i x, v16i y) {
    return (v16i){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
SP_INLINE v16i v16i_shl(v16i x, int n) {
    return (v16i){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
SP_INLINE v16i v16i_shr(v16i x, int n) {
    return (v16i){_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
SP_INLINE v16i v16i_sar(v16i x, int n) {
    return (v16i){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}

SP_INLINE v16 v16_abs(v16 x) {
    return v16_of_bits(v16i_and(v16_bits(x), v16i_set(0x7fffffffu)));
}
SP_INLINE v16 v16_copysign(v16 x, v16 s) {
    return v16_of_bits(v16i_or(v16_bits(v16_abs(x)), v16i_and(v16_bits(s), v16i_set(0x80000000u))));
}

SP_INLINE __m128i v8_load_u16(const uint16_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
SP_INLINE v16 v16_load_bf16(const uint16_t *p) {
    const v16i u = {_mm256_cvtepu16_epi32(v8_load_u16(p)),
                    _mm256_cvtepu16_epi32(v8_load_u16(p + 8))};
    return v16_of_bits(v16i_shl(u, 16));
}
SP_INLINE v16 v16_load_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(v8_load_u16(p)), _mm256_cvtph_ps(v8_load_u16(p + 8))};
}
SP_INLINE v16 v16_load_bf16_n(const uint16_t *p, int n) {
    uint16_t t[16] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return v16_load_bf16(t);
}
SP_INLINE v16 v16_load_f16_n(const uint16_t *p, int n) {
    uint16_t t[16] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return v16_load_f16(t);
}
SP_INLINE void v16_pair(const void *p, v16 *lo, v16 *hi) {
    const __m256i *q = p;
    const v16i raw = {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    *lo = v16_of_bits(v16i_shl(raw, 16));
    *hi = v16_of_bits(v16i_and(raw, v16i_set(0xffff0000u)));
}

SP_INLINE void v16_store_u16(uint16_t *p, __m128i a, __m128i b, int n) {
    uint16_t t[16];
    uint16_t *to = n == 16 ? p : t;
    _mm_storeu_si128((__m128i *)(void *)to, a);
    _mm_storeu_si128((__m128i *)(void *)(to + 8), b);
    if (n == 16) return;
    for (int i = 0; i < n; i++) p[i] = t[i];
}
SP_INLINE __m128i v8_narrow(__m256i x) { /* 8 x 32 bits, each below 2^16 */
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
SP_INLINE __m256i v8_round_bf16(__m256 x) {
    const __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
}
SP_INLINE void v16_store_bf16_n(uint16_t *p, v16 x, int n) {
    v16_store_u16(p, v8_narrow(v8_round_bf16(x.a)), v8_narrow(v8_round_bf16(x.b)), n);
}
SP_INLINE __m128i v8_round_f16(__m256 x) {
    const __m128i near = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m128i nan16 =
        _mm_packs_epi32(_mm256_castsi256_si128(nan), _mm256_extracti128_si256(nan, 1));
    const __m128i sign = _mm_and_si128(near, _mm_set1_epi16((short)0x8000));
    return _mm_blendv_epi8(near, _mm_or_si128(sign, _mm_set1_epi16(0x7e00)), nan16);
}
SP_INLINE void v16_store_f16_n(uint16_t *p, v16 x, int n) {
    v16_store_u16(p, v8_round_f16(x.a), v8_round_f16(x.b), n);
}

SP_INLINE float v16_tree(v16 x) {
    const __m256 b = _mm256_add_ps(x.a, x.b);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

/* Each step adds the two halves of two vectors and packs both results into one. */
SP_INLINE __m256 v8_fold4(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}
SP_INLINE __m256 v8_fold2(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
}
SP_INLINE __m256 v8_fold1(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}
SP_INLINE __m256 v8_tree_rows(const v16 *r) { /* rows 0..7; quad g of q[j] is row 4 g + j */
    __m256 q[4];
    for (int j = 0; j < 4; j++)
        q[j] = v8_fold4(_mm256_add_ps(r[j].a, r[j].b), _mm256_add_ps(r[4 + j].a, r[4 + j].b));
    return v8_fold1(v8_fold2(q[0], q[1]), v8_fold2(q[2], q[3]));
}
SP_INLINE v16 v16_tree_rows(const v16 *r) {
    return (v16){v8_tree_rows(r), v8_tree_rows(r + 8)};
}

SP_INLINE void v8_transpose(__m256 *r) {
    __m256 t[8];
    for (int i = 0; i < 2; i++) {
        const __m256 *s = r + 4 * i;
        const __m256 l0 = _mm256_unpacklo_ps(s[0], s[1]), h0 = _mm256_unpackhi_ps(s[0], s[1]);
        const __m256 l1 = _mm256_unpacklo_ps(s[2], s[3]), h1 = _mm256_unpackhi_ps(s[2], s[3]);
        t[4 * i + 0] = _mm256_shuffle_ps(l0, l1, 0x44);
        t[4 * i + 1] = _mm256_shuffle_ps(l0, l1, 0xee);
        t[4 * i + 2] = _mm256_shuffle_ps(h0, h1, 0x44);
        t[4 * i + 3] = _mm256_shuffle_ps(h0, h1, 0xee);
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
        r[4 + j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
    }
}
SP_INLINE void v16_transpose(v16 *x) {
    __m256 q[4][8]; /* quadrants: rows 0..7 left and right, rows 8..15 left and right */
    for (int i = 0; i < 8; i++) {
        q[0][i] = x[i].a;
        q[1][i] = x[i].b;
        q[2][i] = x[8 + i].a;
        q[3][i] = x[8 + i].b;
    }
    for (int i = 0; i < 4; i++) v8_transpose(q[i]);
    for (int i = 0; i < 8; i++) {
        x[i] = (v16){q[0][i], q[2][i]};
        x[8 + i] = (v16){q[1][i], q[3][i]};
    }
}
#endif
