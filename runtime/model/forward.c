#include "runtime/model/forward.h"

#include "kernels/rope.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/model/attn.h"
#include "runtime/model/ffn.h"
#include "runtime/model/mat.h"
#include "runtime/model/plan.h"

#include <math.h>

static void *take(sp_forward *s, size_t rows, size_t cols) {
    return s->dev->ops->alloc(s->dev, rows * cols * sizeof(float));
}

static void give(sp_forward *s, float *p, size_t rows, size_t cols) {
    if (p) s->dev->ops->free(s->dev, p, rows * cols * sizeof(float));
}

typedef struct scratch_row {
    float **at;
    size_t rows, cols;
} scratch_row;

#define SCRATCH_ROWS 10
static void list_scratch(sp_forward *s, scratch_row rows[SCRATCH_ROWS]) {
    const sp_part *p = &s->config.part;
    size_t T = (size_t)s->config.max_tokens, R = (size_t)s->config.max_rows;
    size_t E = (size_t)s->hidden, D = (size_t)s->head_dim, F = (size_t)s->ffn;
    size_t H = (size_t)s->n_heads, K = (size_t)s->n_kv_heads;
    size_t ends = p->stage.has_head ? R : 0; /* rows of the head, where it is */
    size_t whole = p->tp_rank == 0 ? ends : 0, parts = p->tp > 1 ? ends : 0;
    const scratch_row list[SCRATCH_ROWS] = {
        {&s->x, T, E},
        {&s->normed, T, E},
        {&s->qkv, T, (H + 2 * K) * D},
        {&s->attn, T, H * D},
        {&s->gate_up, T, 2 * F},
        {&s->act_out, T, F},
        {&s->partial, T, E},
        {&s->last, 2 * ends, E},
        {&s->logits, whole, (size_t)s->vocab},
        {&s->logits_part, parts, (size_t)s->n_vocab},
    };
    memcpy(rows, list, sizeof list);
}

static sp_status take_scratch(sp_forward *s, sp_err *err) {
    scratch_row rows[SCRATCH_ROWS];
    list_scratch(s, rows);
    for (int i = 0; i < SCRATCH_ROWS; i++) {
        if (rows[i].rows == 0) continue;
        *rows[i].at = take(s, rows[i].rows, rows[i].cols);
        if (!*rows[i].at)
            return SP_FAIL(err, SP_E_NOMEM, "no device memory for [%zu,%zu] activations",
                           rows[i].rows, rows[i].cols);
    }
    if (s->config.part.tp == 1 || !s->config.part.stage.has_embed) return SP_OK;
    s->ids = sp_try_alloc_array(2 * (size_t)s->config.max_tokens, sizeof *s->ids);
    if (s->ids) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for the owners of %d ids", s->config.max_tokens);
}

static sp_rope_params rope_params(const sp_model_desc *d) {
    return (sp_rope_params){
        .dims = (int32_t)(d->head_dim * d->rope.partial_rotary_factor),
        .theta = d->rope.theta,
        .type = d->rope.type == SP_ROPE_LLAMA3   ? SP_ROPE_SCALE_LLAMA3
                : d->rope.type == SP_ROPE_LINEAR ? SP_ROPE_SCALE_LINEAR
                                                 : SP_ROPE_SCALE_NONE,
        .factor = d->rope.factor,
        .low_freq_factor = d->rope.low_freq_factor,
        .high_freq_factor = d->rope.high_freq_factor,
        .original_max_positions = d->rope.original_max_positions,
    };
}

static sp_status take_rope(sp_forward *s, const sp_model_desc *d, sp_err *err) {
    sp_rope_params p = rope_params(d);
    size_t n = (size_t)s->config.max_model_len, half = (size_t)p.dims / 2;
    float *cos_table = take(s, n, half), *sin_table = take(s, n, half);
    s->rope = (sp_rope_table){cos_table, sin_table, s->config.max_model_len, p.dims, false};
    if (!cos_table || !sin_table)
        return SP_FAIL(err, SP_E_NOMEM, "no device memory for rope tables of %zu positions", n);
    sp_rope_fill(&p, s->config.max_model_len, cos_table, sin_table);
    return SP_OK;
}

static sp_status take_kv(sp_forward *s, sp_err *err) {
    sp_kv_layout layout = sp_kv_layout_of(s->n_layers, s->n_kv_heads, s->head_dim,
                                          s->config.block_tokens, s->config.kv_dtype);
    s->block_bytes = layout.block_bytes;
    s->layer_bytes = layout.layer_bytes;
    s->kv_bytes = s->block_bytes * (size_t)s->config.n_blocks;
    if (s->config.kv_memory) {
        if (s->config.kv_memory_bytes < s->kv_bytes)
            return SP_FAIL(err, SP_E_INVALID, "%zu bytes of KV memory, want %zu",
                           s->config.kv_memory_bytes, s->kv_bytes);
        s->kv = s->config.kv_memory;
        return SP_OK;
    }
    s->kv = s->dev->ops->alloc(s->dev, s->kv_bytes);
    if (!s->kv)
        return SP_FAIL(err, SP_E_NOMEM, "no device memory for %d KV blocks of %zu bytes",
                       s->config.n_blocks, s->block_bytes);
    return SP_OK;
}

/* A group may be left out where there is nobody else. */
static void check_group(const sp_group *g, int32_t n, int32_t me) {
    SP_ASSERT(g ? g->n == n && g->me == me : n == 1);
}

sp_status sp_forward_open(sp_forward **out, sp_dev *dev, const sp_model_dir *dir,
                          const sp_model_desc *desc, const sp_arch *arch,
                          const sp_forward_config *config, sp_load_progress *progress, void *ctx,
                          sp_err *err) {
    const sp_part *part = &config->part;
    SP_ASSERT(part->tp >= 1 && part->pp >= 1 && part->stage.n_layers >= 1);
    check_group(config->tp, part->tp, part->tp_rank);
    check_group(config->pp, part->pp, part->stage_index);
    sp_act act;
    SP_TRY(sp_arch_act(&act, desc, err));
    sp_forward *s = sp_alloc(sizeof *s);
    *s = (sp_forward){
        .dev = dev,
        .config = *config,
        .hidden = desc->hidden,
        .n_heads = part->slice.n_heads,
        .n_kv_heads = part->slice.n_kv_heads,
        .head_dim = desc->head_dim,
        .ffn = part->slice.n_ffn,
        .vocab = desc->vocab,
        .n_vocab = part->slice.n_vocab,
        .n_layers = part->stage.n_layers,
        .eps = (float)desc->norm_eps,
        .scale = (float)(1.0 / sqrt((double)desc->head_dim)),
        .act = act,
    };
    sp_status st = sp_weights_load(&s->weights, dev, dir, desc, arch, part, progress, ctx, err);
    if (st == SP_OK) st = take_scratch(s, err);
    if (st == SP_OK) st = take_rope(s, desc, err);
    if (st == SP_OK) st = take_kv(s, err);
    if (st != SP_OK) {
        sp_forward_close(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_forward_close(sp_forward *s) {
    if (!s) return;
    if (s->kv && !s->config.kv_memory) s->dev->ops->free(s->dev, s->kv, s->kv_bytes);
    size_t n = (size_t)s->rope.n_positions, half = (size_t)s->rope.dims / 2;
    give(s, (float *)s->rope.cos, n, half);
    give(s, (float *)s->rope.sin, n, half);
    scratch_row rows[SCRATCH_ROWS];
    list_scratch(s, rows);
    for (int i = 0; i < SCRATCH_ROWS; i++) give(s, *rows[i].at, rows[i].rows, rows[i].cols);
    sp_free(s->ids);
    sp_weights_unload(&s->weights);
    sp_free(s);
}

/* ---- one step ---- */

static size_t x_floats(const sp_forward *s, const sp_batch *b) {
    return (size_t)b->n_tokens * (size_t)s->hidden;
}

static sp_status poll_group(sp_group *g, sp_err *err) {
    return g ? g->ops->poll(g, SP_NEVER, err) : SP_OK;
}

/* The first fault of the device or a group, once all that was queued is done. */
static sp_status settle(sp_forward *s, sp_err *err) {
    SP_TRY(s->dev->ops->poll(s->dev, s->dev->ops->submit(s->dev), SP_NEVER, err));
    SP_TRY(poll_group(s->config.tp, err));
    return poll_group(s->config.pp, err);
}

/* The embedding is split by vocabulary: each rank looks up its own rows (and row 0 for those of
 * others), and everyone takes each row from its owner. An id outside the vocabulary goes to the
 * device as it is, whose fault it becomes. */
static void embed_split(sp_forward *s, const sp_batch *b, sp_mat x) {
    const sp_part *p = &s->config.part;
    int32_t *here = s->ids, *owner = s->ids + s->config.max_tokens;
    for (int32_t t = 0; t < b->n_tokens; t++) {
        const int32_t id = b->ids[t];
        const bool known = id >= 0 && id < s->vocab;
        owner[t] = known ? sp_part_owner(s->vocab, p->tp, id) : 0;
        here[t] = !known ? id : owner[t] == p->tp_rank ? id - p->slice.vocab_first : 0;
    }
    s->dev->ops->embed(s->dev, x, s->weights.embed, here);
    s->config.tp->ops->pick_rows(s->config.tp, s->x, (size_t)b->n_tokens, (size_t)s->hidden, owner);
}

/* A stage that did not get its x must not lend its TP group sums of what was left in the buffer:
 * the others would take them for good. */
static sp_status start(sp_forward *s, const sp_batch *b, sp_err *err) {
    const sp_part *p = &s->config.part;
    sp_mat x = sp_mat_of(s->x, b->n_tokens, s->hidden);
    if (!p->stage.has_embed) {
        s->config.pp->ops->recv(s->config.pp, p->stage_index - 1, s->x,
                                x_floats(s, b) * sizeof *s->x);
        return poll_group(s->config.pp, err);
    }
    if (p->tp > 1)
        embed_split(s, b, x);
    else
        s->dev->ops->embed(s->dev, x, s->weights.embed, b->ids);
    return SP_OK;
}

/* x moves on whole, so the next stage has no partial to add; and it moves only when it is right:
 * the last stage would answer with tokens drawn from a failed step. */
static sp_status pass_on(sp_forward *s, const sp_batch *b, sp_mat partial, const float *bias,
                         sp_err *err) {
    s->dev->ops->add(s->dev, sp_mat_of(s->x, b->n_tokens, s->hidden), partial, bias);
    SP_TRY(settle(s, err));
    s->config.pp->ops->send(s->config.pp, s->config.part.stage_index + 1, s->x,
                            x_floats(s, b) * sizeof *s->x);
    return poll_group(s->config.pp, err);
}

static void gather_logits(sp_forward *s, int32_t n_rows) {
    const sp_part *p = &s->config.part;
    int32_t cols[SP_PLAN_TP_MAX];
    for (int32_t i = 0; i < p->tp; i++)
        cols[i] = sp_part_edge(s->vocab, p->tp, i + 1) - sp_part_edge(s->vocab, p->tp, i);
    s->config.tp->ops->gather_cols(s->config.tp, 0, s->logits_part, s->logits, (size_t)n_rows,
                                   cols);
}

/* The last norm and the vocabulary, for the wanted rows alone. */
static void head(sp_forward *s, const sp_batch *b, const float *bias) {
    const sp_dev_ops *ops = s->dev->ops;
    int32_t T = b->n_tokens, R = b->n_rows, E = s->hidden;
    float *rest = s->last + (size_t)s->config.max_rows * (size_t)E;
    float *logits = s->logits_part ? s->logits_part : s->logits;
    sp_mat x = sp_mat_of(s->last, R, E), partial = sp_mat_of(rest, R, E);
    sp_mat normed = sp_mat_of(s->normed, R, E);
    ops->gather_rows(s->dev, x, sp_mat_of(s->x, T, E), b->rows);
    ops->gather_rows(s->dev, partial, sp_mat_of(s->partial, T, E), b->rows);
    ops->add_rmsnorm(s->dev, normed, x, partial, bias, s->weights.final_norm, s->eps);
    ops->gemm(s->dev, sp_mat_of(logits, R, s->n_vocab), normed, s->weights.head, NULL);
    if (s->logits_part) gather_logits(s, R);
}

sp_status sp_forward_run(sp_forward *s, const sp_batch *b, const float **logits, sp_err *err) {
    SP_ASSERT(b->n_tokens > 0 && b->n_tokens <= s->config.max_tokens);
    SP_ASSERT(b->n_rows <= s->config.max_rows);
    const float *bias = NULL;
    sp_mat partial = {0};
    SP_TRY(start(s, b, err));
    for (int l = 0; l < s->n_layers; l++) {
        const sp_layer_weights *w = &s->weights.layers[l];
        sp_attn(s, w, l, b, partial, bias);
        sp_ffn(s, w, b, w->o_bias);
        partial = sp_mat_of(s->partial, b->n_tokens, s->hidden);
        bias = w->down_bias;
    }
    if (!s->config.part.stage.has_head) {
        SP_TRY(pass_on(s, b, partial, bias, err));
    } else {
        if (b->n_rows > 0) head(s, b, bias);
        SP_TRY(settle(s, err));
    }
    *logits = b->n_rows > 0 ? s->logits : NULL;
    return SP_OK;
}
