#include "kernels/ref/ref_dev.h"

#include "kernels/check.h"
#include "kernels/math.h"

static float *row_of(sp_mat m, int32_t row) {
    return (float *)m.data + (ptrdiff_t)row * m.stride;
}

/* (a, b) turned by the angle: a' = fma(a, c, -(b s)), b' = fma(b, c, a s). */
static void rotate(float *head, const sp_rope_table *rope, int32_t pos) {
    const int32_t half = rope->dims / 2, step = rope->interleaved ? 2 : 1;
    const float *c = rope->cos + (ptrdiff_t)pos * half, *s = rope->sin + (ptrdiff_t)pos * half;
    for (int32_t i = 0; i < half; i++) {
        float *a = &head[i * step], *b = a + (rope->interleaved ? 1 : half);
        const float x = *a, y = *b;
        *a = sp_fmaf(x, c[i], -(y * s[i]));
        *b = sp_fmaf(y, c[i], x * s[i]);
    }
}

static void rope_store_row(const sp_rope_store_args *a, const sp_seq_rows *seq, int32_t i) {
    const sp_kv_view *kv = &a->kv;
    const int32_t D = kv->head_dim, pos = seq->pos0 + i;
    float *q = row_of(a->qkv, seq->row0 + i), *k = q + (ptrdiff_t)a->n_heads * D;
    const float *v = k + (ptrdiff_t)kv->n_kv_heads * D;
    for (int32_t h = 0; h < a->n_heads; h++) rotate(q + (ptrdiff_t)h * D, &a->rope, pos);
    for (int32_t h = 0; h < kv->n_kv_heads; h++) {
        float turned[SP_HEAD_DIM_MAX];
        memcpy(turned, k + (ptrdiff_t)h * D, (size_t)D * sizeof *turned);
        rotate(turned, &a->rope, pos);
        unsigned char *to = sp_kv_k_row(kv, seq->blocks, h, pos);
        for (int32_t d = 0; d < D; d++) {
            sp_ref_put(to, kv->dtype, (size_t)d, turned[d]);
            sp_ref_put(to + sp_kv_v_offset(kv), kv->dtype, (size_t)d, v[(ptrdiff_t)h * D + d]);
        }
    }
}

void sp_ref_rope_store(sp_dev *dev, const sp_rope_store_args *a) {
    sp_ref *ref = dev->impl;
    if (!sp_check_rope(&ref->fault, a)) return;
    for (int32_t s = 0; s < a->n_seqs; s++)
        for (int32_t i = 0; i < a->seqs[s].n_rows; i++) rope_store_row(a, &a->seqs[s], i);
}

/* What one split, or all splits so far, know: greatest score, sum of p, sum of p V. */
typedef struct part {
    float max, sum;
    float out[SP_HEAD_DIM_MAX];
} part;

/* Where one query head of one row looks. */
typedef struct view {
    const sp_attn_args *a;
    const sp_seq_rows *seq;
    const float *q;
    int32_t kv_head, lo, hi; /* positions lo..hi-1 */
} view;

static float score(const view *v, int32_t pos) {
    const sp_kv_view *kv = &v->a->kv;
    const unsigned char *k = sp_kv_k_row(kv, v->seq->blocks, v->kv_head, pos);
    float lanes[SP_LANES] = {0};
    for (int32_t d = 0; d < kv->head_dim; d++) {
        float *lane = &lanes[d % SP_LANES];
        *lane = sp_fmaf(v->q[d], sp_ref_get(k, kv->dtype, (size_t)d), *lane);
    }
    return sp_ref_tree16(lanes) * v->a->scale;
}

/* Positions lo..hi-1, all inside one split of 256. */
static void split_part(const view *v, int32_t lo, int32_t hi, part *out) {
    const sp_kv_view *kv = &v->a->kv;
    float s[SP_ATTN_SPLIT], lanes[SP_LANES] = {0};
    *out = (part){.max = -SP_INF};
    for (int32_t pos = lo; pos < hi; pos++) {
        s[pos - lo] = score(v, pos);
        out->max = s[pos - lo] > out->max ? s[pos - lo] : out->max;
    }
    for (int32_t pos = lo; pos < hi; pos++) {
        const float p = sp_expf(s[pos - lo] - out->max);
        const unsigned char *row =
            sp_kv_k_row(kv, v->seq->blocks, v->kv_head, pos) + sp_kv_v_offset(kv);
        lanes[pos % SP_LANES] += p;
        for (int32_t d = 0; d < kv->head_dim; d++)
            out->out[d] = sp_fmaf(p, sp_ref_get(row, kv->dtype, (size_t)d), out->out[d]);
    }
    out->sum = sp_ref_tree16(lanes);
}

/* into := into and then p, both scaled to the greater maximum. */
static void merge(part *into, const part *p, int32_t D) {
    const float max = p->max > into->max ? p->max : into->max;
    const float a = sp_expf(into->max - max), b = sp_expf(p->max - max);
    into->max = max;
    into->sum = sp_fmaf(into->sum, a, p->sum * b);
    for (int32_t d = 0; d < D; d++) into->out[d] = sp_fmaf(into->out[d], a, p->out[d] * b);
}

static void attend_head(const view *v, float *out) {
    const int32_t D = v->a->kv.head_dim;
    part all, one;
    bool first = true;
    for (int32_t lo = v->lo; lo < v->hi;) {
        const int32_t end = (lo / SP_ATTN_SPLIT + 1) * SP_ATTN_SPLIT;
        const int32_t hi = end < v->hi ? end : v->hi;
        split_part(v, lo, hi, first ? &all : &one);
        if (!first) merge(&all, &one, D);
        first = false;
        lo = hi;
    }
    for (int32_t d = 0; d < D; d++) out[d] = all.out[d] / all.sum;
}

void sp_ref_attend(sp_dev *dev, const sp_attn_args *a) {
    sp_ref *ref = dev->impl;
    if (!sp_check_attn(&ref->fault, a)) return;
    const int32_t D = a->kv.head_dim, group = a->n_heads / a->kv.n_kv_heads;
    for (int32_t s = 0; s < a->n_seqs; s++)
        for (int32_t i = 0; i < a->seqs[s].n_rows * a->n_heads; i++) {
            const int32_t row = a->seqs[s].row0 + i / a->n_heads, h = i % a->n_heads;
            const int32_t hi = a->seqs[s].pos0 + i / a->n_heads + 1;
            const int32_t lo = a->window && hi > a->window ? hi - a->window : 0;
            const view v = {a,         &a->seqs[s], row_of(a->qkv, row) + (ptrdiff_t)h * D,
                            h / group, lo,          hi};
            attend_head(&v, row_of(a->out, row) + (ptrdiff_t)h * D);
        }
}
