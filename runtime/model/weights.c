#include "runtime/model/weights.h"

#include "runtime/base/mem.h"

#include <stdio.h>

#define PARTS_MAX 3

typedef struct loader {
    sp_dev *dev; /* NULL: only look whether everything is there */
    const sp_model_dir *dir;
    const sp_model_desc *desc;
    const sp_arch *arch;
    sp_load_progress *progress;
    void *progress_ctx;
    uint64_t done_bytes;
    sp_err *err;
} loader;

static void told(loader *l, const sp_tensor *t) {
    l->done_bytes += t->bytes;
    if (l->progress) l->progress(l->progress_ctx, l->done_bytes, sp_model_dir_bytes(l->dir));
}

/* safetensors promises no alignment; the packers read whole elements, so a part that starts in
 * between is copied first. */
static const void *aligned(const sp_tensor *t, void **copy) {
    size_t element = (size_t)sp_dtype_bits(t->dtype) / 8;
    *copy = NULL;
    if ((uintptr_t)t->data % element == 0) return t->data;
    *copy = sp_try_alloc_aligned(64, t->bytes);
    if (*copy) memcpy(*copy, t->data, t->bytes);
    return *copy;
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
static sp_status load_matrix(loader *l, sp_weight **out, const char *const *patterns,
                             const int32_t *rows, int n, int layer, int32_t cols, sp_segments seg) {
    sp_weight_part parts[PARTS_MAX];
    void *copies[PARTS_MAX] = {0};
    char name[128];
    sp_status st = SP_OK;
    for (int i = 0; i < n; i++) {
        const sp_tensor *t;
        sp_arch_name(name, sizeof name, patterns[i], layer, ".weight");
        if ((st = get_matrix(l, name, rows[i], cols, &t)) != SP_OK) goto free_copies;
        if (!l->dev) continue;
        const void *data = aligned(t, &copies[i]);
        if (!data) {
            st = SP_FAIL(l->err, SP_E_NOMEM, "no memory to align '%s'", name);
            goto free_copies;
        }
        parts[i] = (sp_weight_part){data, t->dtype, rows[i], cols, cols};
        if (parts[i].dtype != parts[0].dtype) {
            st = SP_FAIL(l->err, SP_E_UNSUPPORTED, "'%s' is %s, its neighbours are %s", name,
                         sp_dtype_name(parts[i].dtype), sp_dtype_name(parts[0].dtype));
            goto free_copies;
        }
        told(l, t);
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

/* Concatenates vectors as f32 on the device. */
static sp_status load_vector(loader *l, float **out, const char *const *patterns,
                             const int32_t *sizes, int n, int layer, const char *suffix) {
    const sp_tensor *t[PARTS_MAX];
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        char name[128];
        sp_arch_name(name, sizeof name, patterns[i], layer, suffix);
        SP_TRY(get_vector(l, name, sizes[i], &t[i]));
        total += (size_t)sizes[i];
    }
    if (!l->dev) return SP_OK;
    float *v = l->dev->ops->alloc(l->dev, total * sizeof *v);
    if (!v) return SP_FAIL(l->err, SP_E_NOMEM, "no device memory for %zu values", total);
    *out = v;
    for (int i = 0; i < n; i++) {
        for (int32_t k = 0; k < sizes[i]; k++) *v++ = element_f32(t[i], k);
        told(l, t[i]);
    }
    return SP_OK;
}

static sp_status load_attention(loader *l, sp_layer_weights *w, int i) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    const char *const qkv[] = {a->q, a->k, a->v};
    int32_t q = d->n_heads * d->head_dim, kv = d->n_kv_heads * d->head_dim;
    const int32_t rows[] = {q, kv, kv};
    SP_TRY(load_vector(l, &w->attn_norm, &a->attn_norm, &d->hidden, 1, i, ".weight"));
    SP_TRY(load_matrix(l, &w->qkv, qkv, rows, 3, i, d->hidden, sp_segments_of(d->hidden, 1)));
    SP_TRY(
        load_matrix(l, &w->o, &a->o, &d->hidden, 1, i, q, sp_segments_of(d->n_heads, d->head_dim)));
    if (sp_arch_has_bias(a->qkv_bias, d->attention_bias))
        SP_TRY(load_vector(l, &w->qkv_bias, qkv, rows, 3, i, ".bias"));
    if (sp_arch_has_bias(a->o_bias, d->attention_bias))
        SP_TRY(load_vector(l, &w->o_bias, &a->o, &d->hidden, 1, i, ".bias"));
    return SP_OK;
}

static sp_status load_ffn(loader *l, sp_layer_weights *w, int i) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    const char *const gate_up[] = {a->gate, a->up};
    const int32_t rows[] = {d->intermediate, d->intermediate};
    SP_TRY(load_vector(l, &w->ffn_norm, &a->ffn_norm, &d->hidden, 1, i, ".weight"));
    SP_TRY(
        load_matrix(l, &w->gate_up, gate_up, rows, 2, i, d->hidden, sp_segments_of(d->hidden, 1)));
    SP_TRY(load_matrix(l, &w->down, &a->down, &d->hidden, 1, i, d->intermediate,
                       sp_segments_of(d->intermediate, 1)));
    if (!sp_arch_has_bias(a->mlp_bias, d->mlp_bias)) return SP_OK;
    SP_TRY(load_vector(l, &w->gate_up_bias, gate_up, rows, 2, i, ".bias"));
    return load_vector(l, &w->down_bias, &a->down, &d->hidden, 1, i, ".bias");
}

static sp_status load_ends(loader *l, sp_weights *w) {
    const sp_model_desc *d = l->desc;
    const sp_arch *a = l->arch;
    sp_segments seg = sp_segments_of(d->hidden, 1);
    SP_TRY(load_matrix(l, &w->embed, &a->embed, &d->vocab, 1, 0, d->hidden, seg));
    SP_TRY(load_vector(l, &w->final_norm, &a->final_norm, &d->hidden, 1, 0, ".weight"));
    /* The references ignore an lm_head that comes with tied embeddings. */
    if (sp_arch_is_tied(a, d)) {
        w->head = w->embed;
        return SP_OK;
    }
    return load_matrix(l, &w->head, &a->lm_head, &d->vocab, 1, 0, d->hidden, seg);
}

static sp_status load_all(loader *l, sp_weights *w) {
    SP_TRY(load_ends(l, w));
    for (int i = 0; i < l->desc->n_layers; i++) {
        sp_layer_weights scratch = {0}, *layer = w->layers ? &w->layers[i] : &scratch;
        sp_status st = load_attention(l, layer, i);
        if (st == SP_OK) st = load_ffn(l, layer, i);
        if (st != SP_OK) {
            sp_err_context(l->err, "layer %d", i);
            return st;
        }
    }
    return SP_OK;
}

sp_status sp_weights_check(const sp_model_dir *dir, const sp_model_desc *desc, const sp_arch *arch,
                           sp_err *err) {
    loader l = {.dir = dir, .desc = desc, .arch = arch, .err = err};
    sp_weights none = {0};
    return load_all(&l, &none);
}

sp_status sp_weights_load(sp_weights *out, sp_dev *dev, const sp_model_dir *dir,
                          const sp_model_desc *desc, const sp_arch *arch,
                          sp_load_progress *progress, void *ctx, sp_err *err) {
    loader l = {dev, dir, desc, arch, progress, ctx, 0, err};
    sp_weights w = {
        .dev = dev,
        .layers = sp_try_alloc_array((size_t)desc->n_layers, sizeof *w.layers),
        .n_layers = desc->n_layers,
        .hidden = desc->hidden,
        .qkv_rows = (desc->n_heads + 2 * desc->n_kv_heads) * desc->head_dim,
        .ffn = desc->intermediate,
    };
    if (!w.layers) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d layers", desc->n_layers);
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
