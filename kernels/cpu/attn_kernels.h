/* kernels/cpu/attn_kernels.h - the inner loops of isa_attn.c: scores, softmax, weighted sums of V.
 *
 * All work on one split of one task (`work`), positions relative to the split. K and V are read
 * where they lie ("direct") or turned in scratch ("packed"); both ways add in the same order.
 * Included by isa_attn.c only.
 *
 * Thread: any number, each with its own `work` and scratch. */
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vecmath.h"

#define SPLIT SP_ATTN_SPLIT
#define PACK_MIN 8 /* queries from which turning the split pays */
#define QUERIES 4  /* queries whose outputs are worked on together */
#define CHUNK 64   /* positions of V that all queries read before the next ones: they stay in L1 */
#if defined(SP_ISA_avx512)
#define SCORE_ROWS 16 /* accumulators of a direct dot product */
#define OUT_VECS 4    /* output vectors of QUERIES queries held in registers */
#define OUT_VECS_ONE 8
#else
#define SCORE_ROWS 4
#define OUT_VECS 1
#define OUT_VECS_ONE 4
#endif

/* Scratch, in floats. */
#define DIM_PAD SP_HEAD_DIM_MAX
#define AT_K 0
#define AT_V (AT_K + DIM_PAD * SPLIT)
#define AT_P (AT_V + DIM_PAD * SPLIT)
#define AT_Q (AT_P + SP_ATTN_QUERIES * SPLIT)
#define AT_PART (AT_Q + SP_ATTN_QUERIES * DIM_PAD)
#define AT_STATE (AT_PART + SP_ATTN_QUERIES * SP_ATTN_PART(SP_HEAD_DIM_MAX))
#define SCRATCH (AT_STATE + SP_ATTN_QUERIES * SP_ATTN_PART(SP_HEAD_DIM_MAX))

SP_INLINE v16 load_n(const unsigned char *p, size_t i, int n, const sp_dtype type) {
    if (type == SP_DTYPE_F32) return v16_load_n((const float *)(const void *)p + i, n);
    const uint16_t *h = (const uint16_t *)(const void *)p + i;
    return type == SP_DTYPE_F16 ? v16_load_f16_n(h, n) : v16_load_bf16_n(h, n);
}

SP_INLINE v16 load(const unsigned char *p, size_t i, const sp_dtype type) {
    if (type == SP_DTYPE_F32) return v16_load((const float *)(const void *)p + i);
    const uint16_t *h = (const uint16_t *)(const void *)p + i;
    return type == SP_DTYPE_F16 ? v16_load_f16(h) : v16_load_bf16(h);
}

/* One split of one task, while it is worked on. Positions are relative to the split. */
typedef struct work {
    const sp_cpu_attn *t;
    int32_t D, vecs;                                      /* head dimension, and in vectors */
    int32_t pos0;                                         /* absolute position of the split */
    int32_t lo, hi;                                       /* what any query of the task sees */
    sp_dtype v_type;                                      /* of what v_row points to */
    int32_t q_lo[SP_ATTN_QUERIES], q_hi[SP_ATTN_QUERIES]; /* what each query sees */
    const unsigned char *k_row[SPLIT], *v_row[SPLIT];
    float *scratch;
} work;

static inline const float *query_of(const sp_cpu_attn *t, int32_t i) {
    const int32_t n = t->query0 + i, row = t->seq->row0 + n / t->group;
    const int32_t head = t->kv_head * t->group + n % t->group;
    return (const float *)t->a->qkv.data + (ptrdiff_t)row * t->a->qkv.stride +
           (ptrdiff_t)head * t->a->kv.head_dim;
}

/* ---- scores ---- */

/* scale * dot(q, k) of the 16 positions of group g, K where it lies, for Q queries at once. */
SP_INLINE void score_group(const work *w, const float *const *q, int32_t g, float *const *s,
                           const int Q, const sp_dtype type) {
    v16 dots[2][16];
    const int R = SCORE_ROWS / Q;
    for (int i0 = 0; i0 < 16; i0 += R) {
        const unsigned char *const *rows = w->k_row + g * 16 + i0;
        v16 acc[2][SCORE_ROWS];
        UNROLL for (int i = 0; i < R; i++) {
            UNROLL for (int n = 0; n < Q; n++) {
                acc[n][i] = v16_zero();
            }
        }
        int32_t d = 0;
        for (; d + 16 <= w->D; d += 16) {
            v16 x[2];
            UNROLL for (int n = 0; n < Q; n++) {
                x[n] = v16_load(q[n] + d);
            }
            UNROLL for (int i = 0; i < R; i++) {
                const v16 k = load(rows[i], (size_t)d, type);
                UNROLL for (int n = 0; n < Q; n++) {
                    acc[n][i] = v16_fma(x[n], k, acc[n][i]);
                }
            }
        }
        for (int i = 0; d < w->D && i < R; i++)
            for (int n = 0; n < Q; n++)
                acc[n][i] = v16_fma(v16_load_n(q[n] + d, w->D - d),
                                    load_n(rows[i], (size_t)d, w->D - d, type), acc[n][i]);
        UNROLL for (int i = 0; i < R; i++) {
            UNROLL for (int n = 0; n < Q; n++) {
                dots[n][i0 + i] = acc[n][i];
            }
        }
    }
    UNROLL for (int n = 0; n < Q; n++) {
        v16_store(s[n] + g * 16, v16_mul(v16_tree_rows(dots[n]), v16_set(w->t->a->scale)));
    }
}

#define SCORES_FN(type) \
    static inline void scores_##type(const work *w, const float *const *q, int32_t n, int32_t g0, \
                                     int32_t g1, float *const *s) { \
        for (int32_t g = g0; n == 2 && g < g1; g++) score_group(w, q, g, s, 2, SP_DTYPE_##type); \
        for (int32_t g = g0; n == 1 && g < g1; g++) score_group(w, q, g, s, 1, SP_DTYPE_##type); \
    }
SCORES_FN(F32)
SCORES_FN(F16)
SCORES_FN(BF16)

/* Scores of queries first..end-1, K where it lies, in pairs. */
static inline void scores_direct(const work *w, int32_t first, int32_t end) {
    for (int32_t i = first; i < end; i += 2) {
        const int32_t n = end - i < 2 ? 1 : 2;
        const int32_t g0 = w->q_lo[i] / 16, g1 = (w->q_hi[i + n - 1] + 15) / 16;
        const float *const q[2] = {query_of(w->t, i), query_of(w->t, i + n - 1)};
        float *const s[2] = {w->scratch + AT_P + i * SPLIT, w->scratch + AT_P + (i + 1) * SPLIT};
        if (w->t->a->kv.dtype == SP_DTYPE_F32)
            scores_F32(w, q, n, g0, g1, s);
        else if (w->t->a->kv.dtype == SP_DTYPE_F16)
            scores_F16(w, q, n, g0, g1, s);
        else
            scores_BF16(w, q, n, g0, g1, s);
    }
}

/* Scores of two turned queries against G groups of turned K. The virtual lanes come in bit-reversed
 * order, so that the lane tree is a running one: at most four sums wait. `vecs` is D / 16 rounded
 * up; a constant where the caller knows it. */
SP_INLINE void scores_turned(const float *q, const float *k, int32_t D, const int32_t vecs,
                             v16 scale, float *const *s, const int G) {
    static const int order[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    v16 wait[5][4];
    int depth = 0;
    UNROLL for (int n = 0; n < 16; n++) {
        const int lane = order[n];
        const float *kl = k + (size_t)(lane * vecs) * 16, *ql = q + 2 * lane;
        v16 acc[4];
        UNROLL for (int i = 0; i < 2 * G; i++) acc[i] = v16_zero();
        for (int32_t c = 0; c < vecs; c++) {
            if (c * 16 + lane >= D) break;
            UNROLL for (int g = 0; g < G; g++) {
                const v16 x = v16_load(kl + ((size_t)g * 16 * (size_t)vecs + (size_t)c) * 16);
                UNROLL for (int i = 0; i < 2; i++) acc[i * G + g] =
                    v16_fma(v16_set(ql[32 * c + i]), x, acc[i * G + g]);
            }
        }
        UNROLL for (int i = 0; i < 2 * G; i++) wait[depth][i] = acc[i];
        depth++;
        for (int bits = n; bits & 1; bits >>= 1) {
            depth--;
            UNROLL for (int i = 0; i < 2 * G; i++) wait[depth - 1][i] =
                v16_add(wait[depth - 1][i], wait[depth][i]);
        }
    }
    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int g = 0; g < G; g++)
        v16_store(s[i] + g * 16, v16_mul(wait[0][i * G + g], scale));
}

typedef void turned_fn(const float *q, const float *k, int32_t D, int32_t vecs, v16 scale,
                       float *const *s);
#define TURNED_FN(name, D, vecs, G) \
    static inline void name(const float *q, const float *k, int32_t any_D, int32_t any_vecs, \
                            v16 scale, float *const *s) { \
        (void)any_D; \
        (void)any_vecs; \
        scores_turned(q, k, D, vecs, scale, s, G); \
    }
TURNED_FN(turned_any_1, any_D, any_vecs, 1)
TURNED_FN(turned_any_2, any_D, any_vecs, 2)
/* [groups - 1] */
static turned_fn *const turned_any[2] = {turned_any_1, turned_any_2};
#if defined(SP_ISA_avx512)
TURNED_FN(turned_64_1, 64, 4, 1)
TURNED_FN(turned_64_2, 64, 4, 2)
TURNED_FN(turned_128_1, 128, 8, 1)
TURNED_FN(turned_128_2, 128, 8, 2)
static turned_fn *const turned_64[2] = {turned_64_1, turned_64_2};
static turned_fn *const turned_128[2] = {turned_128_1, turned_128_2};
static inline turned_fn *const *turned_fns(int32_t D) {
    return D == 64 ? turned_64 : D == 128 ? turned_128 : turned_any;
}
#else
static inline turned_fn *const *turned_fns(int32_t D) {
    (void)D;
    return turned_any;
}
#endif

/* Queries i and i + 1 (the last one alone: twice) side by side. Where they lie, rows of a
 * power-of-two pitch would fight for the same sets of L1: the copy halved the time of a score. */
static inline const float *turn_pair(const work *w, int32_t i, int32_t end) {
    float *to = w->scratch + AT_Q + (size_t)i * (size_t)w->vecs * 16;
    const float *q0 = query_of(w->t, i), *q1 = query_of(w->t, i + 1 < end ? i + 1 : i);
    for (int32_t d = 0; d < w->D; d++) {
        to[2 * d] = q0[d];
        to[2 * d + 1] = q1[d];
    }
    return to;
}

/* Scores of queries first..end-1. K of two groups stays in L1 while all queries go over it. */
static inline void scores_packed(const work *w, int32_t first, int32_t end) {
    const size_t group_floats = (size_t)w->vecs * 16 * 16;
    const v16 scale = v16_set(w->t->a->scale);
    turned_fn *const *fns = turned_fns(w->D);
    const float *q[SP_ATTN_QUERIES];
    for (int32_t i = first; i < end; i += 2) q[i] = turn_pair(w, i, end);
    for (int32_t g = w->lo / 16; g * 16 < w->hi; g += 2) {
        const float *k = w->scratch + AT_K + (size_t)g * group_floats;
        for (int32_t i = first; i < end; i += 2) {
            const int32_t other = i + 1 < end ? i + 1 : i;
            const int32_t lo = w->q_lo[i], hi = w->q_hi[other];
            if (lo >= g * 16 + 32 || hi <= g * 16) continue;
            float *s = w->scratch + AT_P + i * SPLIT + g * 16;
            float *const to[2] = {s, s + (other - i) * SPLIT};
            fns[hi > g * 16 + 16](q[i], k, w->D, w->vecs, scale, to);
        }
    }
}

/* ---- softmax of one split ---- */

/* What is not selected becomes `other`; a group in the middle is taken whole. */
SP_INLINE v16 seen(int32_t g, int32_t lo, int32_t hi, v16 x, v16 other) {
    if (g * 16 >= lo && g * 16 + 16 <= hi) return x;
    return v16_range_sel(lo - g * 16, hi - g * 16, x, other);
}

/* s[lo..hi-1] become p = exp(s - max), the rest of their groups 0. */
static inline void softmax(float *s, int32_t lo, int32_t hi, float *max, float *sum) {
    const int32_t g0 = lo / 16, g1 = (hi + 15) / 16;
    const v16 none = v16_set(-SP_INF);
    v16 top = none, lanes = v16_zero();
    for (int32_t g = g0; g < g1; g++)
        top = v16_max(seen(g, lo, hi, v16_load(s + g * 16), none), top);
    float t[16];
    v16_store(t, top);
    *max = t[0];
    for (int i = 1; i < 16; i++) *max = t[i] > *max ? t[i] : *max;
    const v16 shift = v16_set(*max);
    for (int32_t g = g0; g < g1; g++) {
        const v16 p = v16_exp(v16_sub(v16_load(s + g * 16), shift));
        const v16 kept = seen(g, lo, hi, p, v16_zero());
        lanes = v16_add(lanes, kept);
        v16_store(s + g * 16, kept);
    }
    *sum = v16_tree(lanes);
}

/* ---- outputs ---- */

/* out[0..16 N) goes on over positions lo..hi-1 of one query, from dimension d0. */
SP_INLINE void out_one(const work *w, const float *p, int32_t lo, int32_t hi, size_t d0, float *out,
                       const int N, const sp_dtype type) {
    v16 acc[OUT_VECS_ONE];
    UNROLL for (int i = 0; i < N; i++) acc[i] = v16_load(out + 16 * i);
    for (int32_t pos = lo; pos < hi; pos++) {
        const v16 x = v16_set(p[pos]);
        UNROLL for (int i = 0; i < N; i++) acc[i] =
            v16_fma(x, load(w->v_row[pos], d0 + 16 * (size_t)i, type), acc[i]);
    }
    UNROLL for (int i = 0; i < N; i++) v16_store(out + 16 * i, acc[i]);
}

static inline void out_tail(const work *w, const float *p, int32_t lo, int32_t hi, int32_t d0,
                            float *out) {
    v16 acc = v16_load(out);
    for (int32_t pos = lo; pos < hi; pos++)
        acc =
            v16_fma(v16_set(p[pos]), load_n(w->v_row[pos], (size_t)d0, w->D - d0, w->v_type), acc);
    v16_store(out, acc);
}

#define OUT_CASES(type) \
    static inline int32_t out_##type(const work *w, const float *p, int32_t lo, int32_t hi, \
                                     float *out) { \
        int32_t d = 0; \
        for (; w->D - d >= OUT_VECS_ONE * 16; d += OUT_VECS_ONE * 16) \
            out_one(w, p, lo, hi, (size_t)d, out + d, OUT_VECS_ONE, SP_DTYPE_##type); \
        for (; w->D - d >= 32; d += 32) \
            out_one(w, p, lo, hi, (size_t)d, out + d, 2, SP_DTYPE_##type); \
        for (; w->D - d >= 16; d += 16) \
            out_one(w, p, lo, hi, (size_t)d, out + d, 1, SP_DTYPE_##type); \
        return d; \
    }
OUT_CASES(F32)
OUT_CASES(F16)
OUT_CASES(BF16)

static inline void out_query(const work *w, const float *p, int32_t lo, int32_t hi, float *out) {
    if (lo >= hi) return;
    const int32_t d = w->v_type == SP_DTYPE_F32   ? out_F32(w, p, lo, hi, out)
                      : w->v_type == SP_DTYPE_F16 ? out_F16(w, p, lo, hi, out)
                                                  : out_BF16(w, p, lo, hi, out);
    if (d < w->D) out_tail(w, p, lo, hi, d, out + d);
}

/* The same for Q queries that all see lo..hi-1: each load of V serves them all. */
SP_INLINE void out_joint(const work *w, const float *p, int32_t lo, int32_t hi, size_t d0,
                         float *const *out, const int Q, const int N, const sp_dtype type) {
    v16 acc[QUERIES][OUT_VECS];
    UNROLL for (int q = 0; q < Q; q++) {
        UNROLL for (int i = 0; i < N; i++) {
            acc[q][i] = v16_load(out[q] + d0 + 16 * i);
        }
    }
    for (int32_t pos = lo; pos < hi; pos++) {
        const unsigned char *row = w->v_row[pos];
        v16 x[OUT_VECS];
        UNROLL for (int i = 0; i < N; i++) {
            x[i] = load(row, d0 + 16 * (size_t)i, type);
        }
        UNROLL for (int q = 0; q < Q; q++) {
            const v16 b = v16_set(p[q * SPLIT + pos]);
            UNROLL for (int i = 0; i < N; i++) {
                acc[q][i] = v16_fma(b, x[i], acc[q][i]);
            }
        }
    }
    UNROLL for (int q = 0; q < Q; q++) {
        UNROLL for (int i = 0; i < N; i++) {
            v16_store(out[q] + d0 + 16 * i, acc[q][i]);
        }
    }
}

#define OUT_JOINT_FN(type) \
    static inline int32_t joint_##type(const work *w, const float *p, int32_t n, int32_t lo, \
                                       int32_t hi, float *const *out) { \
        int32_t d = 0; \
        for (; n == 4 && w->D - d >= 16 * OUT_VECS; d += 16 * OUT_VECS) \
            out_joint(w, p, lo, hi, (size_t)d, out, 4, OUT_VECS, SP_DTYPE_##type); \
        for (; n == 4 && w->D - d >= 16; d += 16) \
            out_joint(w, p, lo, hi, (size_t)d, out, 4, 1, SP_DTYPE_##type); \
        for (; n == 2 && w->D - d >= 16 * OUT_VECS; d += 16 * OUT_VECS) \
            out_joint(w, p, lo, hi, (size_t)d, out, 2, OUT_VECS, SP_DTYPE_##type); \
        for (; n == 2 && w->D - d >= 16; d += 16) \
            out_joint(w, p, lo, hi, (size_t)d, out, 2, 1, SP_DTYPE_##type); \
        return d; \
    }
OUT_JOINT_FN(F32)
OUT_JOINT_FN(F16)
OUT_JOINT_FN(BF16)

/* n = 2 or 4 queries. */
static inline void out_queries(const work *w, const float *p, int32_t n, int32_t lo, int32_t hi,
                               float *const *out) {
    const int32_t d = w->v_type == SP_DTYPE_F32   ? joint_F32(w, p, n, lo, hi, out)
                      : w->v_type == SP_DTYPE_F16 ? joint_F16(w, p, n, lo, hi, out)
                                                  : joint_BF16(w, p, n, lo, hi, out);
    for (int32_t q = 0; d < w->D && q < n; q++) out_tail(w, p + q * SPLIT, lo, hi, d, out[q] + d);
}
