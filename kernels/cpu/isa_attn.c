/* Attention over a paged cache.
 *
 * A split is 256 absolute positions. Few queries read K and V where they lie; many (a prefill, or a
 * wide group of heads) first turn the split into scratch: K in groups of 16 positions as
 * [d mod 16][d / 16][position], so that a lane is a position and the 16 virtual lanes of a dot
 * product become 16 registers, and V as f32 rows. */
#include "kernels/cpu/attn_kernels.h"

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
    const bool joint = (n == 2 || n == QUERIES) && from < to;
    for (int32_t q = 0; q < n; q++)
        out_query(w, p + q * SPLIT, lo[q], joint ? from : hi[q], part[i + q]);
    if (!joint) return;
    out_queries(w, p, n, from, to, part + i);
    for (int32_t q = 0; q < n; q++) out_query(w, p + q * SPLIT, to, hi[q], part[i + q]);
}

/* Positions of V in chunks, all queries a chunk: it is read from memory once. */
static void out_all(const work *w, int32_t first, int32_t end, float *const *part) {
    for (int32_t c = w->lo; c < w->hi; c += CHUNK) {
        const int32_t c1 = min_of(c + CHUNK, w->hi);
        for (int32_t i = first; i < end;) {
            const int32_t left = end - i, n = left >= QUERIES ? QUERIES : left >= 2 ? 2 : 1;
            out_chunk(w, i, n, c, c1, part);
            i += n;
        }
    }
}

/* Scores become p; the parts begin. */
static void begin_parts(const work *w, int32_t first, int32_t end, float *const *part) {
    for (int32_t i = first; i < end; i++) {
        float *top = part[i] + w->vecs * 16;
        softmax(w->scratch + AT_P + i * SPLIT, w->q_lo[i], w->q_hi[i], &top[0], &top[1]);
        for (int32_t d = 0; d < w->vecs; d++) v16_store(part[i] + d * 16, v16_zero());
    }
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
    if (end - first < PACK_MIN) {
        scores_direct(&w, first, end);
    } else {
        pack_split(&w);
        scores_packed(&w, first, end);
    }
    begin_parts(&w, first, end, part);
    out_all(&w, first, end, part);
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

static float *out_of(const sp_cpu_attn *t, int32_t i) {
    const int32_t n = t->query0 + i, row = t->seq->row0 + n / t->group;
    const int32_t head = t->kv_head * t->group + n % t->group;
    return (float *)t->a->out.data + (ptrdiff_t)row * t->a->out.stride +
           (ptrdiff_t)head * t->a->kv.head_dim;
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

const sp_isa_attn SP_ISA_NAME(sp_isa_attn_) = {SCRATCH, attn_run, attn_split, attn_merge};
