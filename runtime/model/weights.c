#include "runtime/model/weights.h"

#include "runtime/base/mem.h"

#include <stdio.h>

#define PARTS_MAX 3

typedef struct loader {
    sp_dev *dev; /* NULL: only look whether everything is there, and count it */
    const sp_model_dir *dir;
    const sp_model_desc *desc;
    const sp_arch *arch;
    const sp_part *part;
    sp_load_progress *progress;
    void *progress_ctx;
    uint64_t done_bytes, total_bytes; /* of the part */
    sp_err *err;
} loader;

/* A matrix [rows, cols] of the checkpoint, and what of it is ours. */
typedef struct cut {
    const char *pattern;
    int32_t rows, cols;
    int32_t row0, n_rows, col0, n_cols;
} cut;

static cut all_of(const char *pattern, int32_t rows, int32_t cols) {
    return (cut){pattern, rows, cols, 0, rows, 0, cols};
}
static cut rows_of(const char *pattern, int32_t rows, int32_t cols, int32_t row0, int32_t n_rows) {
    return (cut){pattern, rows, cols, row0, n_rows, 0, cols};
}
static cut cols_of(const char *pattern, int32_t rows, int32_t cols, int32_t col0, int32_t n_cols) {
    return (cut){pattern, rows, cols, 0, rows, col0, n_cols};
}

static size_t element_bytes(sp_dtype t) {
    return (size_t)sp_dtype_bits(t) / 8;
}

static void told(loader *l, uint64_t bytes) {
    l->done_bytes += bytes;
    if (l->dev && l->progress) l->progress(l->progress_ctx, l->done_bytes, l->total_bytes);
}

/* safetensors promises no alignment; the packers read whole elements, so a part that starts in
 * between is copied first. False: no memory. */
static bool view(const sp_tensor *t, const cut *c, sp_weight_part *out, void **copy) {
    const size_t elt = element_bytes(t->dtype), row_bytes = (size_t)c->n_cols * elt;
    const unsigned char *data = t->data;
    data += ((size_t)c->row0 * (size_t)c->cols + (size_t)c->col0) * elt;
    *out = (sp_weight_part){data, t->dtype, c->n_rows, c->n_cols, c->cols};
    *copy = NULL;
    if ((uintptr_t)data % elt == 0) return true;
    unsigned char *to = sp_try_alloc_aligned(64, (size_t)c->n_rows * row_bytes);
    if (!to) return false;
    for (int32_t r = 0; r < c->n_rows; r++)
        memcpy(to + (size_t)r * row_bytes, data + (size_t)r * (size_t)c->cols * elt, row_bytes);
    out->data = *copy = to;
    out->stride = c->n_cols;
    return true;
}

static sp_status get_matrix(loader *l, const char *name, int32_t rows, int32_t cols,
                            const sp_tensor **out) {
    SP_TRY(sp_model_dir_get(l->dir, name, 2, (int64_t[]){rows, cols}, out, l->err));
    sp_dtype t = (*out)->dtype;
    if (t != SP_DTYPE_BF16 && t != SP_DTYPE_F16 && t != SP_DTYPE_F32)
        return SP_FAIL(l->err, SP_E_UNSUPPORTED, "'%s' is %s, want BF16, F16 or F32", name,
                       sp_dtype_name(t));
    return SP_OK;
}

/* Packs several matrices of equal width, one below the other. */
static sp_status load_matrix(loader *l, sp_weight **out, const cut *cuts, int n, int layer,
                             sp_segments seg) {
    sp_weight_part parts[PARTS_MAX];
    void *copies[PARTS_MAX] = {0};
    char name[128];
    sp_status st = SP_OK;
    sp_dtype first = SP_DTYPE_F32;
    for (int i = 0; i < n; i++) {
        const sp_tensor *t;
        sp_arch_name(name, sizeof name, cuts[i].pattern, layer, ".weight");
        if ((st = get_matrix(l, name, cuts[i].rows, cuts[i].cols, &t)) != SP_OK) goto free_copies;
        if (i == 0) first = t->dtype;
        if (t->dtype != first) {
            st = SP_FAIL(l->err, SP_E_UNSUPPORTED, "'%s' is %s, its neighbours are %s", name,
                         sp_dtype_name(t->dtype), sp_dtype_name(first));
            goto free_copies;
        }
        if (l->dev && !view(t, &cuts[i], &parts[i], &copies[i])) {
            st = SP_FAIL(l->err, SP_E_NOMEM, "no memory to align '%s'", name);
            goto free_copies;
        }
        told(l, (uint64_t)cuts[i].n_rows * (uint64_t)cuts[i].n_cols * element_bytes(first));
    }
    if (l->dev) st = l->dev->ops->pack(l->dev, out, parts, n, &seg, l->err);
    if (st != SP_OK) sp_err_context(l->err, "packing '%s'", name);
free_copies:
    for (int i = 0; i < n; i++) sp_free(copies[i]);
    return st;
}

static float element_f32(const sp_tensor *t, int32_t i) {
    const unsigned char *p = t->data;
    uint16_t half;
    float f;
    if (t->dtype == SP_DTYPE_F32) {
        memcpy(&f, p + (size_t)i * 4, 4);
        return f;
    }
    memcpy(&half, p + (size_t)i * 2, 2);
    return t->dtype == SP_DTYPE_BF16 ? sp_f32_of_bf16(half) : sp_f32_of_f16(half);
}

static sp_status get_vector(loader *l, const char *name, int32_t size, const sp_tensor **out) {
    SP_TRY(sp_model_dir_get(l->dir, name, 1, (int64_t[]){size}, out, l->err));
    sp_dtype t = (*out)->dtype;
    if (t != SP_DTYPE_BF16 && t != SP_DTYPE_F16 && t != SP_DTYPE_F32)
        return SP_FAIL(l->err, SP_E_UNSUPPORTED, "'%s' is %s, want BF16, F16 or F32", name,
                       sp_dtype_name(t));
    return SP_OK;
}

static void fill_vector(loader *l, float *to, const sp_tensor *const *t, const cut *cuts, int n) {
    for (int i = 0; i < n; i++) {
        for (int32_t k = 0; to && k < cuts[i].n_rows; k++)
            *to++ = element_f32(t[i], cuts[i].row0 + k);
        told(l, (uint64_t)cuts[i].n_rows * element_bytes(t[i]->dtype));
    }
}

/* Concatenates pieces of vectors as f32 on the device: the rows of `cuts`. */
static sp_status load_vector(loader *l, float **out, const cut *cuts, int n, int layer,
                             const char *suffix) {
    const sp_tensor *t[PARTS_MAX];
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        char name[128];
        sp_arch_name(name, sizeof name, cuts[i].pattern, layer, suffix);
        SP_TRY(get_vector(l, name, cuts[i].rows, &t[i]));
        total += (size_t)cuts[i].n_rows;
    }
    if (!l->dev) {
        fill_vector(l, NULL, t, cuts, n);
        return SP_OK;
    }
    const sp_dev_ops *ops = l->dev->ops;
    float *v = ops->alloc(l->dev, total * sizeof *v);
    if (!v) return SP_FAIL(l->err, SP_E_NOMEM, "no device memory for %zu values", total);
    *out = v;
    if (ops->host_memory) {
        fill_vector(l, v, t, cuts, n);
        return SP_OK;
    }
    float *host = sp_try_alloc_array(total, sizeof *host);
    if (!host) return SP_FAIL(l->err, SP_E_NOMEM, "no memory for %zu values", total);
    fill_vector(l, host, t, cuts, n);
    ops->upload(l->dev, v, host, total * sizeof *v);
    sp_free(host);
    return SP_OK;
}

static sp_status load_attention(loader *l, sp_layer_weights *w, int i) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    const sp_plan_slice *s = &l->part->slice;
    const int32_t D = d->head_dim, E = d->hidden, Q = d->n_heads * D, KV = d->n_kv_heads * D;
    const int32_t q0 = s->head_first * D, q = s->n_heads * D;
    const int32_t kv0 = s->kv_head_first * D, kv = s->n_kv_heads * D;
    const cut norm = all_of(a->attn_norm, E, 1), bias = all_of(a->o, E, 1);
    const cut qkv[] = {rows_of(a->q, Q, E, q0, q), rows_of(a->k, KV, E, kv0, kv),
                       rows_of(a->v, KV, E, kv0, kv)};
    const cut o = cols_of(a->o, E, Q, q0, q);
    SP_TRY(load_vector(l, &w->attn_norm, &norm, 1, i, ".weight"));
    SP_TRY(load_matrix(l, &w->qkv, qkv, 3, i, sp_segments_of(E, 1)));
    SP_TRY(load_matrix(l, &w->o, &o, 1, i, l->part->o_segments));
    if (sp_arch_has_bias(a->qkv_bias, d->attention_bias))
        SP_TRY(load_vector(l, &w->qkv_bias, qkv, 3, i, ".bias"));
    if (sp_arch_has_bias(a->o_bias, d->attention_bias))
        SP_TRY(load_vector(l, &w->o_bias, &bias, 1, i, ".bias"));
    return SP_OK;
}

static sp_status load_ffn(loader *l, sp_layer_weights *w, int i) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    const sp_plan_slice *s = &l->part->slice;
    const int32_t E = d->hidden, F = d->intermediate;
    const cut norm = all_of(a->ffn_norm, E, 1), bias = all_of(a->down, E, 1);
    const cut gate_up[] = {rows_of(a->gate, F, E, s->ffn_first, s->n_ffn),
                           rows_of(a->up, F, E, s->ffn_first, s->n_ffn)};
    const cut down = cols_of(a->down, E, F, s->ffn_first, s->n_ffn);
    SP_TRY(load_vector(l, &w->ffn_norm, &norm, 1, i, ".weight"));
    SP_TRY(load_matrix(l, &w->gate_up, gate_up, 2, i, sp_segments_of(E, 1)));
    SP_TRY(load_matrix(l, &w->down, &down, 1, i, l->part->down_segments));
    if (!sp_arch_has_bias(a->mlp_bias, d->mlp_bias)) return SP_OK;
    SP_TRY(load_vector(l, &w->gate_up_bias, gate_up, 2, i, ".bias"));
    return load_vector(l, &w->down_bias, &bias, 1, i, ".bias");
}

static sp_status load_ends(loader *l, sp_weights *w) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    const sp_plan_stage *stage = &l->part->stage;
    const sp_plan_slice *s = &l->part->slice;
    const bool tied = sp_arch_is_tied(a, d);
    const cut norm = all_of(a->final_norm, d->hidden, 1);
    const cut embed = rows_of(a->embed, d->vocab, d->hidden, s->vocab_first, s->n_vocab);
    const cut head = rows_of(a->lm_head, d->vocab, d->hidden, s->vocab_first, s->n_vocab);
    const sp_segments seg = sp_segments_of(d->hidden, 1);
    if (stage->has_embed || (stage->has_head && tied))
        SP_TRY(load_matrix(l, &w->embed, &embed, 1, 0, seg));
    if (!stage->has_head) return SP_OK;
    SP_TRY(load_vector(l, &w->final_norm, &norm, 1, 0, ".weight"));
    /* The references ignore an lm_head that comes with tied embeddings. */
    if (tied) {
        w->head = w->embed;
        return SP_OK;
    }
    return load_matrix(l, &w->head, &head, 1, 0, seg);
}

static sp_status load_all(loader *l, sp_weights *w) {
    SP_TRY(load_ends(l, w));
    for (int32_t i = 0; i < l->part->stage.n_layers; i++) {
        const int32_t layer = l->part->stage.layer_first + i;
        sp_layer_weights none = {0}, *to = w->layers ? &w->layers[i] : &none;
        sp_status st = load_attention(l, to, layer);
        if (st == SP_OK) st = load_ffn(l, to, layer);
        if (st != SP_OK) {
            sp_err_context(l->err, "layer %d", layer);
            return st;
        }
    }
    return SP_OK;
}

sp_status sp_weights_check(const sp_model_dir *dir, const sp_model_desc *desc, const sp_arch *arch,
                           sp_err *err) {
    sp_part whole;
    SP_TRY(sp_part_of(&whole, desc, arch, 1, 1, NULL, 0, 0, err));
    loader l = {.dir = dir, .desc = desc, .arch = arch, .part = &whole, .err = err};
    sp_weights none = {0};
    return load_all(&l, &none);
}

sp_status sp_weights_load(sp_weights *out, sp_dev *dev, const sp_model_dir *dir,
                          const sp_model_desc *desc, const sp_arch *arch, const sp_part *part,
                          sp_load_progress *progress, void *ctx, sp_err *err) {
    /* Once without a device: nothing is packed of a part that lacks a tensor at its end. */
    loader look = {.dir = dir, .desc = desc, .arch = arch, .part = part, .err = err};
    sp_weights none = {0};
    SP_TRY(load_all(&look, &none));
    loader l = {.dev = dev,
                .dir = dir,
                .desc = desc,
                .arch = arch,
                .part = part,
                .progress = progress,
                .progress_ctx = ctx,
                .total_bytes = look.done_bytes,
                .err = err};
    const sp_plan_slice *s = &part->slice;
    sp_weights w = {
        .dev = dev,
        .layers = sp_try_alloc_array((size_t)part->stage.n_layers, sizeof *w.layers),
        .n_layers = part->stage.n_layers,
        .hidden = desc->hidden,
        .qkv_rows = (s->n_heads + 2 * s->n_kv_heads) * desc->head_dim,
        .ffn = s->n_ffn,
    };
    if (!w.layers) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d layers", part->stage.n_layers);
    sp_status st = load_all(&l, &w);
    if (st != SP_OK) {
        sp_weights_unload(&w);
        return st;
    }
    *out = w;
    return SP_OK;
}

static void free_vector(sp_dev *dev, float *v, int32_t n) {
    if (v) dev->ops->free(dev, v, (size_t)n * sizeof *v);
}

static void free_matrix(sp_dev *dev, sp_weight *w) {
    if (w) dev->ops->weight_free(dev, w);
}

void sp_weights_unload(sp_weights *w) {
    if (!w->layers) return;
    sp_dev *dev = w->dev;
    for (int i = 0; i < w->n_layers; i++) {
        sp_layer_weights *l = &w->layers[i];
        free_vector(dev, l->attn_norm, w->hidden);
        free_vector(dev, l->qkv_bias, w->qkv_rows);
        free_vector(dev, l->o_bias, w->hidden);
        free_vector(dev, l->ffn_norm, w->hidden);
        free_vector(dev, l->gate_up_bias, 2 * w->ffn);
        free_vector(dev, l->down_bias, w->hidden);
        free_matrix(dev, l->qkv);
        free_matrix(dev, l->o);
        free_matrix(dev, l->gate_up);
        free_matrix(dev, l->down);
    }
    if (w->head != w->embed) free_matrix(dev, w->head);
    free_matrix(dev, w->embed);
    free_vector(dev, w->final_norm, w->hidden);
    sp_free(w->layers);
    *w = (sp_weights){0};
}
