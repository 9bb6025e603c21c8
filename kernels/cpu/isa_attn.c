/* Attention over a paged cache, and rotation with the store into it.
 *
 * A split is 256 absolute positions. Few queries read K and V where they lie; many (a prefill, or a
 * wide group of heads) first turn the split into scratch: K in groups of 16 positions as
 * [d mod 16][d / 16][position], so that a lane is a position and the 16 virtual lanes of a dot
 * product become 16 registers, and V as f32 rows. Both ways add in the same order. */
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

static const float *query_of(const sp_cpu_attn *t, int32_t i) {
    const int32_t n = t->query0 + i, row = t->seq->row0 + n / t->group;
    const int32_t head = t->kv_head * t->group + n % t->group;
    return (const float *)t->a->qkv.data + (ptrdiff_t)row * t->a->qkv.stride +
           (ptrdiff_t)head * t->a->kv.head_dim;
}

static float *out_of(const sp_cpu_attn *t, int32_t i) {
    const int32_t n = t->query0 + i, row = t->seq->row0 + n / t->group;
    const int32_t head = t->kv_head * t->group + n % t->group;
    return (float *)t->a->out.data + (ptrdiff_t)row * t->a->out.stride +
           (ptrdiff_t)head * t->a->kv.head_dim;
}

/* Absolute positions lo..hi-1 that query i sees. */
static void range_of(const sp_cpu_attn *t, int32_t i, int32_t *lo, int32_t *hi) {
    *hi = t->seq->pos0 + (t->query0 + i) / t->group + 1;
    *lo = t->a->window && *hi > t->a->window ? *hi - t->a->window : 0;
}

static int32_t clip(int32_t x) {
    return x < 0 ? 0 : x > SPLIT ? SPLIT : x;
}

static void find_rows(work *w) {
    const sp_kv_view *kv = &w->t->a->kv;
    const int32_t B = kv->block_tokens;
    const size_t row_bytes = sp_kv_row_bytes(kv), v_offset = sp_kv_v_offset(kv);
    for (int32_t p = w->lo; p < w->hi;) {
        const int32_t pos = w->pos0 + p, left = B - pos % B;
        const unsigned char *k = sp_kv_k_row(kv, w->t->seq->blocks, w->t->kv_head, pos);
        for (int32_t i = 0; i < left && p < w->hi; i++, p++, k += row_bytes) {
            w->k_row[p] = k;
            w->v_row[p] = k + v_offset;
        }
    }
    /* Whole groups of 16 are computed: the rest of a group reads a row that exists, and is not
     * selected. Rows nobody sees are never read: they may hold anything, NaN too. */
    for (int32_t p = w->lo & ~15; p < w->lo; p++) w->k_row[p] = w->k_row[w->lo];
    for (int32_t p = w->hi; p % 16; p++) w->k_row[p] = w->k_row[w->lo];
}

/* ---- scores ---- */

/* scale * dot(q, k) of 16 positions, K where it lies. */
SP_INLINE v16 score_group(const work *w, const float *q, int32_t g, const sp_dtype type) {
    v16 dots[16];
    for (int i0 = 0; i0 < 16; i0 += SCORE_ROWS) {
        const unsigned char *const *rows = w->k_row + g * 16 + i0;
        v16 acc[SCORE_ROWS];
        UNROLL for (int i = 0; i < SCORE_ROWS; i++) acc[i] = v16_zero();
        int32_t d = 0;
        for (; d + 16 <= w->D; d += 16) {
            const v16 x = v16_load(q + d);
            UNROLL for (int i = 0; i < SCORE_ROWS; i++) acc[i] =
                v16_fma(x, load(rows[i], (size_t)d, type), acc[i]);
        }
        if (d < w->D) {
            const v16 x = v16_load_n(q + d, w->D - d);
            for (int i = 0; i < SCORE_ROWS; i++)
                acc[i] = v16_fma(x, load_n(rows[i], (size_t)d, w->D - d, type), acc[i]);
        }
        UNROLL for (int i = 0; i < SCORE_ROWS; i++) dots[i0 + i] = acc[i];
    }
    return v16_mul(v16_tree_rows(dots), v16_set(w->t->a->scale));
}

#define SCORES_FN(type) \
    static void scores_##type(const work *w, const float *q, int32_t g0, int32_t g1, float *s) { \
        for (int32_t g = g0; g < g1; g++) \
            v16_store(s + g * 16, score_group(w, q, g, SP_DTYPE_##type)); \
    }
SCORES_FN(F32)
SCORES_FN(F16)
SCORES_FN(BF16)

static void scores_direct(const work *w, const float *q, int32_t g0, int32_t g1, float *s) {
    switch (w->t->a->kv.dtype) {
    case SP_DTYPE_F32:
        scores_F32(w, q, g0, g1, s);
        break;
    case SP_DTYPE_F16:
        scores_F16(w, q, g0, g1, s);
        break;
    default:
        scores_BF16(w, q, g0, g1, s);
        break;
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
    static void name(const float *q, const float *k, int32_t any_D, int32_t any_vecs, v16 scale, \
                     float *const *s) { \
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
static turned_fn *const *turned_fns(int32_t D) {
    return D == 64 ? turned_64 : D == 128 ? turned_128 : turned_any;
}
#else
static turned_fn *const *turned_fns(int32_t D) {
    (void)D;
    return turned_any;
}
#endif

/* Queries i and i + 1 (the last one alone: twice) side by side. Where they lie, rows of a
 * power-of-two pitch would fight for the same sets of L1: the copy halved the time of a score. */
static const float *turn_pair(const work *w, int32_t i, int32_t end) {
    float *to = w->scratch + AT_Q + (size_t)i * (size_t)w->vecs * 16;
    const float *q0 = query_of(w->t, i), *q1 = query_of(w->t, i + 1 < end ? i + 1 : i);
    for (int32_t d = 0; d < w->D; d++) {
        to[2 * d] = q0[d];
        to[2 * d + 1] = q1[d];
    }
    return to;
}

/* Scores of queries first..end-1. K of two groups stays in L1 while all queries go over it. */
static void scores_packed(const work *w, int32_t first, int32_t end) {
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
static void softmax(float *s, int32_t lo, int32_t hi, float *max, float *sum) {
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

static void out_tail(const work *w, const float *p, int32_t lo, int32_t hi, int32_t d0,
                     float *out) {
    v16 acc = v16_load(out);
    for (int32_t pos = lo; pos < hi; pos++)
        acc =
            v16_fma(v16_set(p[pos]), load_n(w->v_row[pos], (size_t)d0, w->D - d0, w->v_type), acc);
    v16_store(out, acc);
}

#define OUT_CASES(type) \
    static int32_t out_##type(const work *w, const float *p, int32_t lo, int32_t hi, float *out) { \
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

static void out_query(const work *w, const float *p, int32_t lo, int32_t hi, float *out) {
    if (lo >= hi) return;
    const int32_t d = w->v_type == SP_DTYPE_F32   ? out_F32(w, p, lo, hi, out)
                      : w->v_type == SP_DTYPE_F16 ? out_F16(w, p, lo, hi, out)
                                                  : out_BF16(w, p, lo, hi, out);
    if (d < w->D) out_tail(w, p, lo, hi, d, out + d);
}

/* The same for QUERIES queries at once, V turned to f32 rows: each load of V serves them all. */
SP_INLINE void out_joint(const float *p, const float *v, size_t v_step, int32_t lo, int32_t hi,
                         float *const *out, const int N) {
    v16 acc[QUERIES][4];
    UNROLL for (int q = 0; q < QUERIES; q++) UNROLL for (int i = 0; i < N; i++) acc[q][i] =
        v16_load(out[q] + 16 * i);
    for (int32_t pos = lo; pos < hi; pos++) {
        const float *row = v + (size_t)pos * v_step;
        v16 x[4];
        UNROLL for (int i = 0; i < N; i++) x[i] = v16_load(row + 16 * i);
        UNROLL for (int q = 0; q < QUERIES; q++) {
            const v16 b = v16_set(p[q * SPLIT + pos]);
            UNROLL for (int i = 0; i < N; i++) acc[q][i] = v16_fma(b, x[i], acc[q][i]);
        }
    }
    UNROLL for (int q = 0; q < QUERIES; q++) UNROLL for (int i = 0; i < N; i++)
        v16_store(out[q] + 16 * i, acc[q][i]);
}

static void out_queries(const work *w, const float *p, int32_t lo, int32_t hi, float *const *out) {
    const float *v = w->scratch + AT_V;
    const size_t v_step = (size_t)w->vecs * 16;
    int32_t i = 0;
    while (i < w->vecs) {
        float *to[QUERIES];
        for (int q = 0; q < QUERIES; q++) to[q] = out[q] + i * 16;
        if (w->vecs - i >= OUT_VECS) {
            out_joint(p, v + i * 16, v_step, lo, hi, to, OUT_VECS);
            i += OUT_VECS;
        } else {
            out_joint(p, v + i * 16, v_step, lo, hi, to, 1);
            i++;
        }
    }
}

/* ---- one split ---- */

/* Turns positions lo..hi-1 into scratch. */
static void pack_split(work *w) {
    const sp_dtype type = w->t->a->kv.dtype;
    const size_t step = (size_t)w->vecs * 16;
    for (int32_t g = w->lo / 16; g * 16 < w->hi; g++) {
        float *k = w->scratch + AT_K + (size_t)g * step * 16;
        for (int32_t d = 0; d < w->D; d += 16) {
            const int n = w->D - d < 16 ? w->D - d : 16;
            v16 t[16];
            for (int i = 0; i < 16; i++)
                t[i] = n == 16 ? load(w->k_row[g * 16 + i], (size_t)d, type)
                               : load_n(w->k_row[g * 16 + i], (size_t)d, n, type);
            v16_transpose(t);
            for (int i = 0; i < 16; i++) v16_store(k + (size_t)(i * w->vecs + d / 16) * 16, t[i]);
        }
    }
    for (int32_t pos = w->lo; pos < w->hi; pos++) {
        float *v = w->scratch + AT_V + (size_t)pos * step;
        for (int32_t d = 0; d < w->D; d += 16) {
            const int n = w->D - d < 16 ? w->D - d : 16;
            v16_store(v + d, n == 16 ? load(w->v_row[pos], (size_t)d, type)
                                     : load_n(w->v_row[pos], (size_t)d, n, type));
        }
        w->v_row[pos] = (const unsigned char *)v;
    }
    w->v_type = SP_DTYPE_F32;
}

static int32_t max_of(int32_t a, int32_t b) {
    return a > b ? a : b;
}
static int32_t min_of(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Positions c0..c1-1 of queries i..i+n-1. What all of them see is taken together; each query's
 * positions come in ascending order. */
static void out_chunk(const work *w, int32_t i, int32_t n, int32_t c0, int32_t c1,
                      float *const *part) {
    int32_t lo[QUERIES], hi[QUERIES], from = c0, to = c1;
    const float *p = w->scratch + AT_P + i * SPLIT;
    for (int32_t q = 0; q < n; q++) {
        lo[q] = max_of(w->q_lo[i + q], c0);
        hi[q] = min_of(w->q_hi[i + q], c1);
        from = max_of(from, lo[q]);
        to = min_of(to, hi[q]);
    }
    const bool joint = n == QUERIES && from < to;
    for (int32_t q = 0; q < n; q++)
        out_query(w, p + q * SPLIT, lo[q], joint ? from : hi[q], part[i + q]);
    if (!joint) return;
    out_queries(w, p, from, to, part + i);
    for (int32_t q = 0; q < n; q++) out_query(w, p + q * SPLIT, to, hi[q], part[i + q]);
}

/* Scores become p; the parts begin. */
static void begin_parts(const work *w, int32_t first, int32_t end, float *const *part) {
    for (int32_t i = first; i < end; i++) {
        float *top = part[i] + w->vecs * 16;
        softmax(w->scratch + AT_P + i * SPLIT, w->q_lo[i], w->q_hi[i], &top[0], &top[1]);
        for (int32_t d = 0; d < w->vecs; d++) v16_store(part[i] + d * 16, v16_zero());
    }
}

static void few_queries(work *w, int32_t first, int32_t end, float *const *part) {
    float *p = w->scratch + AT_P;
    for (int32_t i = first; i < end; i++)
        scores_direct(w, query_of(w->t, i), w->q_lo[i] / 16, (w->q_hi[i] + 15) / 16, p + i * SPLIT);
    begin_parts(w, first, end, part);
    for (int32_t i = first; i < end; i++)
        out_query(w, p + i * SPLIT, w->q_lo[i], w->q_hi[i], part[i]);
}

static void many_queries(work *w, int32_t first, int32_t end, float *const *part) {
    pack_split(w);
    scores_packed(w, first, end);
    begin_parts(w, first, end, part);
    for (int32_t c = w->lo; c < w->hi; c += CHUNK)
        for (int32_t i = first; i < end; i += QUERIES)
            out_chunk(w, i, min_of(end - i, QUERIES), c, min_of(c + CHUNK, w->hi), part);
}

/* Fills part[i] for every query that sees something of the split. */
static void split_into(const sp_cpu_attn *t, int32_t split, float *const *part, float *scratch) {
    work w; /* not initialised as a whole: the row tables are 4 KiB */
    w.t = t;
    w.D = t->a->kv.head_dim;
    w.vecs = (w.D + 15) / 16;
    w.pos0 = split * SPLIT;
    w.v_type = t->a->kv.dtype;
    w.scratch = scratch;
    for (int32_t i = 0; i < t->n_queries; i++) {
        range_of(t, i, &w.q_lo[i], &w.q_hi[i]);
        w.q_lo[i] = clip(w.q_lo[i] - w.pos0);
        w.q_hi[i] = clip(w.q_hi[i] - w.pos0);
    }
    /* Later queries begin and end later: those that see nothing here are at both ends. */
    int32_t first = 0, end = t->n_queries;
    while (first < end && w.q_lo[first] >= w.q_hi[first]) first++;
    while (end > first && w.q_lo[end - 1] >= w.q_hi[end - 1]) end--;
    if (first == end) return;
    w.lo = w.q_lo[first];
    w.hi = w.q_hi[end - 1];
    find_rows(&w);
    if (end - first < PACK_MIN)
        few_queries(&w, first, end, part);
    else
        many_queries(&w, first, end, part);
}

/* state := state and then part, both scaled to the greater maximum. */
static void merge_part(float *state, const float *part, int32_t vecs) {
    float *end = state + vecs * 16;
    const float *p = part + vecs * 16;
    const float max = p[0] > end[0] ? p[0] : end[0];
    const float a = sp_expf(end[0] - max), b = sp_expf(p[0] - max);
    end[0] = max;
    end[1] = sp_fmaf(end[1], a, p[1] * b);
    for (int32_t d = 0; d < vecs * 16; d += 16) {
        const v16 scaled = v16_mul(v16_load(part + d), v16_set(b));
        v16_store(state + d, v16_fma(v16_load(state + d), v16_set(a), scaled));
    }
}

static void write_out(const sp_cpu_attn *t, int32_t i, const float *state) {
    const int32_t D = t->a->kv.head_dim;
    const v16 sum = v16_set(state[(D + 15) / 16 * 16 + 1]);
    float *out = out_of(t, i);
    for (int32_t d = 0; d < D; d += 16)
        v16_store_n(out + d, v16_div(v16_load(state + d), sum), D - d < 16 ? D - d : 16);
}

/* First and last split of query i. */
static void splits_of(const sp_cpu_attn *t, int32_t i, int32_t *first, int32_t *last) {
    int32_t lo, hi;
    range_of(t, i, &lo, &hi);
    *first = lo / SPLIT;
    *last = (hi - 1) / SPLIT;
}

static void attn_run(const sp_cpu_attn *t, float *scratch) {
    const size_t size = SP_ATTN_PART(t->a->kv.head_dim);
    const int32_t vecs = (t->a->kv.head_dim + 15) / 16;
    int32_t from, to, first, last;
    splits_of(t, 0, &from, &last);
    splits_of(t, t->n_queries - 1, &first, &to);
    for (int32_t split = from; split <= to; split++) {
        float *part[SP_ATTN_QUERIES];
        for (int32_t i = 0; i < t->n_queries; i++) {
            splits_of(t, i, &first, &last);
            part[i] = scratch + (split == first ? AT_STATE : AT_PART) + (size_t)i * size;
        }
        split_into(t, split, part, scratch);
        for (int32_t i = 0; i < t->n_queries; i++) {
            float *state = scratch + AT_STATE + (size_t)i * size;
            splits_of(t, i, &first, &last);
            if (split > first && split <= last) merge_part(state, part[i], vecs);
            if (split == last) write_out(t, i, state);
        }
    }
}

static void attn_split(const sp_cpu_attn *t, int32_t split, float *parts, float *scratch) {
    float *part[SP_ATTN_QUERIES];
    for (int32_t i = 0; i < t->n_queries; i++)
        part[i] = parts + (size_t)i * SP_ATTN_PART(t->a->kv.head_dim);
    split_into(t, split, part, scratch);
}

static void attn_merge(const sp_cpu_attn *t, int32_t split0, int32_t split1, const float *parts,
                       float *states) {
    const size_t size = SP_ATTN_PART(t->a->kv.head_dim);
    const int32_t vecs = (t->a->kv.head_dim + 15) / 16;
    for (int32_t i = 0; i < t->n_queries; i++) {
        int32_t first, last;
        splits_of(t, i, &first, &last);
        float *state = states + (size_t)i * size;
        for (int32_t s = split0; s < split1; s++) {
            const float *part =
                parts + ((size_t)(s - split0) * (size_t)t->n_queries + (size_t)i) * size;
            if (s == first) memcpy(state, part, size * sizeof *state);
            if (s > first && s <= last) merge_part(state, part, vecs);
            if (s == last) write_out(t, i, state);
        }
    }
}

/* ---- rotation and store ---- */

static void rotate(float *to, const float *from, const sp_rope_table *rope, int32_t pos) {
    const int32_t half = rope->dims / 2;
    const float *c = rope->cos + (ptrdiff_t)pos * half, *s = rope->sin + (ptrdiff_t)pos * half;
    if (rope->interleaved) {
        for (int32_t i = 0; i < half; i++) {
            const float x = from[2 * i], y = from[2 * i + 1];
            to[2 * i] = sp_fmaf(x, c[i], -(y * s[i]));
            to[2 * i + 1] = sp_fmaf(y, c[i], x * s[i]);
        }
        return;
    }
    const v16i sign = v16i_set(0x80000000u);
    for (int32_t i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const v16 x = v16_load_n(from + i, n), y = v16_load_n(from + half + i, n);
        const v16 cv = v16_load_n(c + i, n), sv = v16_load_n(s + i, n);
        const v16 minus = v16_of_bits(v16i_add(v16_bits(v16_mul(y, sv)), sign));
        v16_store_n(to + i, v16_fma(x, cv, minus), n);
        v16_store_n(to + half + i, v16_fma(y, cv, v16_mul(x, sv)), n);
    }
}

static void store_row(unsigned char *to, const float *from, int32_t D, sp_dtype type) {
    for (int32_t d = 0; d < D; d += 16) {
        const int n = D - d < 16 ? D - d : 16;
        const v16 x = v16_load_n(from + d, n);
        if (type == SP_DTYPE_F32)
            v16_store_n((float *)(void *)to + d, x, n);
        else if (type == SP_DTYPE_F16)
            v16_store_f16_n((uint16_t *)(void *)to + d, x, n);
        else
            v16_store_bf16_n((uint16_t *)(void *)to + d, x, n);
    }
}

static void rope_store(const sp_rope_store_args *a, const sp_seq_rows *seq, int32_t row0,
                       int32_t row1) {
    const sp_kv_view *kv = &a->kv;
    const int32_t D = kv->head_dim;
    const size_t v_offset = sp_kv_v_offset(kv);
    for (int32_t i = row0; i < row1; i++) {
        const int32_t pos = seq->pos0 + i;
        float *q = (float *)a->qkv.data + (ptrdiff_t)(seq->row0 + i) * a->qkv.stride;
        const float *k = q + (ptrdiff_t)a->n_heads * D, *v = k + (ptrdiff_t)kv->n_kv_heads * D;
        for (int32_t h = 0; h < a->n_heads; h++, q += D) rotate(q, q, &a->rope, pos);
        for (int32_t h = 0; h < kv->n_kv_heads; h++, k += D, v += D) {
            float turned[SP_HEAD_DIM_MAX];
            unsigned char *to = sp_kv_k_row(kv, seq->blocks, h, pos);
            memcpy(turned, k, (size_t)D * sizeof *turned);
            rotate(turned, k, &a->rope, pos);
            store_row(to, turned, D, kv->dtype);
            store_row(to + v_offset, v, D, kv->dtype);
        }
    }
}

const sp_isa_attn SP_ISA_NAME(sp_isa_attn_) = {SCRATCH, attn_run, attn_split, attn_merge,
                                               rope_store};
