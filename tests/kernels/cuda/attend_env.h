/* tests/kernels/cuda/attend_env.h - random models and texts for rope_store and attend: run on the
 * emulated device in steps of any size, beside `ref`. Included by test_attend.c and test_rope.c.
 *
 * Every cache begins as NaN, host's and device's: what is read before it was written shows. */
#pragma once

#include "kernels/cuda/attend_shape.h"
#include "kernels/math.h"
#include "kernels/rope.h"
#include "tests/kernels/cuda/emu_env.h"
#include "tests/kernels/ops_env.h"

#define SEQS_MAX 8

typedef struct model {
    int32_t H, K, D, window;
    sp_dtype kv;
    sp_rope_table rope; /* host */
    float *cos, *sin;
    float scale;
} model;

/* Sequences; outputs are wanted of positions from..length-1. */
typedef struct text {
    int32_t n, length[SEQS_MAX], from[SEQS_MAX];
    float *qkv[SEQS_MAX];
} text;

/* A way to compute the same: block size, rows of a sequence in a step, sequences together or one
 * after another, launch shape (NULL: attend's own choice). */
typedef struct way {
    int32_t block_tokens, chunk;
    bool joined;
    const cu_attend_shape *shape;
    int32_t misalign; /* bytes that the cache lies beside 16 */
} way;

/* What comes out: out and rotated q [length - from][H D] of each sequence, and the cache. */
typedef struct result {
    float *out[SEQS_MAX], *q[SEQS_MAX];
    sp_kv_view kv;
    unsigned char *memory;
    size_t bytes;
    int32_t *tables, table0[SEQS_MAX], n_table;
} result;

static UNUSED int32_t width_of(const model *m) {
    return (m->H + 2 * m->K) * m->D;
}

static UNUSED model model_make(int32_t H, int32_t K, int32_t D, int32_t window, sp_dtype kv,
                               int32_t dims, bool interleaved, int32_t max_pos) {
    model m = {.H = H, .K = K, .D = D, .window = window, .kv = kv};
    const sp_rope_params p = {.dims = dims, .theta = 10000};
    const size_t n = (size_t)max_pos * (size_t)(dims / 2);
    m.cos = malloc(n * sizeof(float));
    m.sin = malloc(n * sizeof(float));
    sp_rope_fill(&p, max_pos, m.cos, m.sin);
    m.rope = (sp_rope_table){m.cos, m.sin, max_pos, dims, interleaved};
    m.scale = 4.0f / sqrtf((float)D); /* scores spread by about 1: a wrong position is seen */
    return m;
}
static UNUSED void model_free(model *m) {
    free(m->cos);
    free(m->sin);
}

static UNUSED void text_add(text *t, const model *m, int32_t length, int32_t rows) {
    const size_t n = (size_t)length * (size_t)width_of(m);
    t->length[t->n] = length;
    t->from[t->n] = rows < length ? length - rows : 0;
    t->qkv[t->n] = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) t->qkv[t->n][i] = (float)((int32_t)rng()) / 2147483648.0f;
    t->n++;
}
static UNUSED void text_free(text *t) {
    for (int32_t s = 0; s < t->n; s++) free(t->qkv[s]);
}

static UNUSED size_t rows_of(const text *t, int32_t s) {
    return (size_t)(t->length[s] - t->from[s]);
}

/* Memory of the host: the cache's bytes as they begin, block tables in no order. */
static UNUSED result result_make(const model *m, const text *t, int32_t B) {
    result r = {.kv = {.block_tokens = B,
                       .n_kv_heads = m->K,
                       .head_dim = m->D,
                       .dtype = m->kv,
                       .layer_offset = 64}};
    for (int32_t s = 0; s < t->n; s++) {
        r.table0[s] = r.n_table;
        r.n_table += (t->length[s] + B - 1) / B;
        const size_t n = rows_of(t, s) * (size_t)(m->H * m->D) * sizeof(float);
        r.out[s] = malloc(n);
        r.q[s] = malloc(n);
    }
    r.tables = malloc((size_t)r.n_table * sizeof *r.tables);
    for (int32_t i = 0; i < r.n_table; i++) r.tables[i] = i;
    for (int32_t i = r.n_table - 1; i > 0; i--) {
        const int32_t j = between(0, i), x = r.tables[i];
        r.tables[i] = r.tables[j];
        r.tables[j] = x;
    }
    r.kv.block_bytes = 64 + 2 * sp_kv_v_offset(&r.kv) + 32;
    r.bytes = (size_t)r.n_table * r.kv.block_bytes;
    r.memory = malloc(r.bytes);
    memset(r.memory, 0xff, r.bytes);
    r.kv.base = r.memory;
    return r;
}
static UNUSED void result_free(result *r, const text *t) {
    for (int32_t s = 0; s < t->n; s++) {
        free(r->out[s]);
        free(r->q[s]);
    }
    free(r->tables);
    free(r->memory);
}

static UNUSED void *to_device(const void *host, size_t bytes) {
    void *p = NULL;
    EMU_OK(cudaMalloc(&p, bytes ? bytes : 1));
    if (host) EMU_OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}

/* One step on either side: rows done[s]..done[s]+n[s]-1 of each sequence. */
typedef struct step_rows {
    int32_t T, max_pos, ld;
    int32_t *pos, *table, row0[SEQS_MAX];
    float *qkv;
} step_rows;

static UNUSED step_rows step_make(const model *m, const text *t, const result *r,
                                  const int32_t *done, const int32_t *n) {
    step_rows p = {.ld = width_of(m) + 3};
    for (int32_t s = 0; s < t->n; s++) {
        p.row0[s] = p.T;
        p.T += n[s];
    }
    p.pos = malloc((size_t)p.T * sizeof *p.pos);
    p.table = malloc((size_t)p.T * sizeof *p.table);
    p.qkv = malloc((size_t)p.T * (size_t)p.ld * sizeof *p.qkv);
    for (int32_t s = 0; s < t->n; s++)
        for (int32_t i = 0; i < n[s]; i++) {
            const int32_t at = p.row0[s] + i, pos = done[s] + i;
            p.pos[at] = pos;
            p.table[at] = r->table0[s];
            p.max_pos = pos > p.max_pos ? pos : p.max_pos;
            memcpy(p.qkv + (ptrdiff_t)at * p.ld, t->qkv[s] + (ptrdiff_t)pos * width_of(m),
                   (size_t)width_of(m) * sizeof(float));
        }
    return p;
}
static UNUSED void step_free(step_rows *p) {
    free(p->pos);
    free(p->table);
    free(p->qkv);
}

/* The rows of a step that are wanted. */
static UNUSED void step_take(const model *m, const text *t, result *r, const step_rows *p,
                             const int32_t *done, const int32_t *n, const float *out) {
    const ptrdiff_t HD = (ptrdiff_t)m->H * m->D;
    for (int32_t s = 0; s < t->n; s++)
        for (int32_t i = 0; i < n[s]; i++) {
            const ptrdiff_t to = done[s] + i - t->from[s], at = p->row0[s] + i;
            if (to < 0) continue;
            memcpy(r->out[s] + to * HD, out + at * (HD + 1), (size_t)HD * sizeof(float));
            memcpy(r->q[s] + to * HD, p->qkv + at * p->ld, (size_t)HD * sizeof(float));
        }
}

static UNUSED void ref_step(const model *m, const text *t, result *r, const int32_t *done,
                            const int32_t *n) {
    sp_dev dev = {.ops = &sp_dev_ref};
    sp_err err = {0};
    const sp_dev_config config = {.backend = "ref"};
    CU_ASSERT_EQUAL_FATAL(sp_dev_ref.open(&dev, &config, &err), SP_OK);
    step_rows p = step_make(m, t, r, done, n);
    sp_seq_rows seqs[SEQS_MAX];
    for (int32_t s = 0; s < t->n; s++)
        seqs[s] = (sp_seq_rows){p.row0[s], n[s], done[s], r->tables + r->table0[s]};
    const int32_t HD = m->H * m->D;
    float *out = malloc((size_t)p.T * (size_t)(HD + 1) * sizeof *out);
    const sp_rope_store_args store = {.qkv = mat(p.qkv, p.T, width_of(m), p.ld),
                                      .n_heads = m->H,
                                      .rope = m->rope,
                                      .kv = r->kv,
                                      .seqs = seqs,
                                      .n_seqs = t->n};
    sp_dev_ref.rope_store(&dev, &store);
    const sp_attn_args attn = {.out = mat(out, p.T, HD, HD + 1),
                               .qkv = store.qkv,
                               .n_heads = m->H,
                               .scale = m->scale,
                               .window = m->window,
                               .kv = r->kv,
                               .seqs = seqs,
                               .n_seqs = t->n};
    sp_dev_ref.attend(&dev, &attn);
    step_take(m, t, r, &p, done, n, out);
    free(out);
    step_free(&p);
    sp_dev_ref.close(&dev);
}

static UNUSED result ref_run(const model *m, const text *t) {
    result r = result_make(m, t, 16);
    int32_t done[SEQS_MAX] = {0}, n[SEQS_MAX];
    memcpy(n, t->length, sizeof n);
    ref_step(m, t, &r, done, n);
    return r;
}

/* ---- the emulated device ---- */

typedef struct there {
    sp_kv_view kv;
    sp_rope_table rope;
    int32_t *blocks;
} there;

static UNUSED there there_make(const model *m, const result *r, int32_t misalign) {
    const size_t n = (size_t)m->rope.n_positions * (size_t)(m->rope.dims / 2) * sizeof(float);
    there d = {.kv = r->kv, .rope = m->rope};
    d.rope.cos = to_device(m->cos, n);
    d.rope.sin = to_device(m->sin, n);
    d.blocks = to_device(r->tables, (size_t)r->n_table * sizeof *r->tables);
    unsigned char *base = to_device(NULL, r->bytes + 16);
    d.kv.base = base + misalign;
    EMU_OK(cudaMemcpy(d.kv.base, r->memory, r->bytes, cudaMemcpyHostToDevice));
    return d;
}
static UNUSED void there_free(there *d, int32_t misalign) {
    EMU_OK(cudaFree((void *)(uintptr_t)d->rope.cos));
    EMU_OK(cudaFree((void *)(uintptr_t)d->rope.sin));
    EMU_OK(cudaFree(d->blocks));
    EMU_OK(cudaFree(d->kv.base - misalign));
}

static UNUSED cudaError_t attend_there(const model *m, const way *y, const there *d, float *out,
                                       const float *qkv, int32_t ld, const cu_rows *rows) {
    const int32_t HD = m->H * m->D, D = m->D, last = rows->max_pos;
    /* Exactly as much as it says: a byte more would be an overrun. */
    const size_t bytes = y->shape ? cu_attend_shape_scratch(rows->T, m->H, D, last)
                                  : cu_attend_scratch(rows->T, m->H, D, last + 1);
    void *scratch = bytes ? to_device(NULL, bytes) : NULL;
    const cudaError_t err = y->shape
                                ? cu_attend_in_shape(NULL, out, HD + 1, qkv, ld, m->H, m->scale,
                                                     m->window, &d->kv, rows, scratch, *y->shape)
                                : cu_attend(NULL, out, HD + 1, qkv, ld, m->H, m->scale, m->window,
                                            &d->kv, rows, scratch);
    if (err == cudaSuccess) EMU_OK(cudaDeviceSynchronize());
    if (scratch) EMU_OK(cudaFree(scratch));
    return err;
}

static UNUSED void cuda_step(const model *m, const text *t, result *r, const there *d, const way *y,
                             const int32_t *done, const int32_t *n) {
    step_rows p = step_make(m, t, r, done, n);
    const size_t HD = (size_t)(m->H * m->D), T = (size_t)p.T;
    const size_t bytes = T * (size_t)p.ld * sizeof(float);
    float *qkv = to_device(p.qkv, bytes), *out = to_device(NULL, T * (HD + 1) * sizeof(float));
    cu_rows rows = {to_device(p.pos, T * 4), to_device(p.table, T * 4), d->blocks, p.T, p.max_pos};
    EMU_OK(cu_rope_store(NULL, qkv, p.ld, m->H, &d->rope, &d->kv, &rows));
    bool wanted = false;
    for (int32_t s = 0; s < t->n; s++) wanted = wanted || (n[s] && done[s] + n[s] > t->from[s]);
    if (wanted) {
        EMU_OK(attend_there(m, y, d, out, qkv, p.ld, &rows));
        float *host = malloc(T * (HD + 1) * sizeof(float));
        EMU_OK(cudaMemcpy(host, out, T * (HD + 1) * sizeof(float), cudaMemcpyDeviceToHost));
        EMU_OK(cudaMemcpy(p.qkv, qkv, bytes, cudaMemcpyDeviceToHost));
        step_take(m, t, r, &p, done, n, host);
        free(host);
    }
    EMU_OK(cudaFree(qkv));
    EMU_OK(cudaFree(out));
    EMU_OK(cudaFree((void *)(uintptr_t)rows.pos));
    EMU_OK(cudaFree((void *)(uintptr_t)rows.table));
    step_free(&p);
}

static UNUSED result cuda_run(const model *m, const text *t, const way *y) {
    result r = result_make(m, t, y->block_tokens);
    there d = there_make(m, &r, y->misalign);
    int32_t done[SEQS_MAX] = {0};
    for (bool more = true; more;) {
        int32_t n[SEQS_MAX] = {0};
        bool store = false; /* what nobody asks about, in one go and without attention */
        for (int32_t s = 0; s < t->n; s++) store = store || done[s] < t->from[s];
        more = false;
        for (int32_t s = 0; s < t->n && (y->joined || !more); s++) {
            const int32_t before = t->from[s] - done[s], left = t->length[s] - done[s];
            n[s] = store ? (before > 0 ? before : 0) : left < y->chunk ? left : y->chunk;
            done[s] += n[s];
            more = more || n[s] > 0;
        }
        if (!more) break;
        for (int32_t s = 0; s < t->n; s++) done[s] -= n[s];
        cuda_step(m, t, &r, &d, y, done, n);
        for (int32_t s = 0; s < t->n; s++) done[s] += n[s];
    }
    EMU_OK(cudaMemcpy(r.memory, d.kv.base, r.bytes, cudaMemcpyDeviceToHost));
    there_free(&d, y->misalign);
    return r;
}

static UNUSED void say(const char *what, const model *m, const way *y, const text *t) {
    printf("%s: H %d K %d D %d window %d %s, blocks of %d, chunk %d, %d sequences, first %d", what,
           m->H, m->K, m->D, m->window, sp_dtype_name(m->kv), y->block_tokens, y->chunk, t->n,
           t->length[0]);
    if (y->shape)
        printf(", tile %d%s%s", y->shape->rows, y->shape->one_each ? " each" : "",
               y->shape->split ? " split" : "");
    printf(": %s\n", cu_emu_last_report());
}

/* Equal outputs and rotated q. */
static UNUSED bool same_result(const model *m, const text *t, const result *a, const result *b) {
    bool ok = true;
    for (int32_t s = 0; s < t->n; s++) {
        const size_t n = rows_of(t, s) * (size_t)(m->H * m->D);
        ok = ok && same(a->out[s], b->out[s], n) && same(a->q[s], b->q[s], n);
    }
    return ok;
}
