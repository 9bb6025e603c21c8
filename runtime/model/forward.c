#include "runtime/model/forward.h"

#include "kernels/rope.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/model/attn.h"
#include "runtime/model/ffn.h"
#include "runtime/model/forward_ahead.h"
#include "runtime/model/mat.h"
#include "runtime/model/plan.h"

#include <math.h>
#include <time.h>

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

static size_t logits_bytes(const sp_forward *s) {
    return (size_t)s->config.max_rows * (size_t)s->vocab * sizeof(float);
}

static sp_status take_logits_host(sp_forward *s, sp_err *err) {
    if (!s->logits || s->dev->ops->host_memory) return SP_OK;
    s->logits_host = s->dev->ops->host_alloc(s->dev, logits_bytes(s));
    if (s->logits_host) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no pinned memory for [%d,%d] logits", s->config.max_rows,
                   s->vocab);
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
    SP_TRY(take_logits_host(s, err));
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

/* Computed by the host all the same: its cos and sin are the contract. */
static sp_status upload_rope(sp_forward *s, const sp_rope_params *p, float *cos_table,
                             float *sin_table, sp_err *err) {
    const size_t n = (size_t)s->config.max_model_len * (size_t)p->dims / 2;
    float *host = sp_try_alloc_array(2 * n, sizeof *host);
    if (!host) return SP_FAIL(err, SP_E_NOMEM, "no memory for rope tables of %zu values", 2 * n);
    sp_rope_fill(p, s->config.max_model_len, host, host + n);
    s->dev->ops->upload(s->dev, cos_table, host, n * sizeof *host);
    s->dev->ops->upload(s->dev, sin_table, host + n, n * sizeof *host);
    sp_free(host);
    return SP_OK;
}

static sp_status take_rope(sp_forward *s, const sp_model_desc *d, sp_err *err) {
    sp_rope_params p = rope_params(d);
    size_t n = (size_t)s->config.max_model_len, half = (size_t)p.dims / 2;
    float *cos_table = take(s, n, half), *sin_table = take(s, n, half);
    s->rope = (sp_rope_table){cos_table, sin_table, s->config.max_model_len, p.dims, false};
    if (!cos_table || !sin_table)
        return SP_FAIL(err, SP_E_NOMEM, "no device memory for rope tables of %zu positions", n);
    if (!s->dev->ops->host_memory) return upload_rope(s, &p, cos_table, sin_table, err);
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

/* ---- a device with memory of its own ---- */

/* A plan that knows this part alone: what sp_plan_rank_of() needs of one. */
static sp_status need_bytes(uint64_t *out, const sp_forward *s, const sp_model_dir *dir,
                            const sp_model_desc *desc, const sp_arch *arch, sp_err *err) {
    const sp_forward_config *c = &s->config;
    const sp_plan_request req = {.desc = desc,
                                 .arch = arch,
                                 .dir = dir,
                                 .packed = s->dev->ops->packed_bytes,
                                 .block_tokens = c->block_tokens,
                                 .kv_dtype = c->kv_dtype};
    sp_plan_rank rank;
    sp_plan *p = sp_try_alloc(sizeof *p);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for a plan");
    p->tp = c->part.tp;
    p->pp = c->part.pp;
    p->stages[c->part.stage_index] = c->part.stage;
    p->slices[c->part.tp_rank] = c->part.slice;
    p->max_num_batched_tokens = c->max_tokens;
    p->max_rows = c->max_rows;
    p->max_model_len = c->max_model_len;
    p->n_blocks = c->n_blocks;
    sp_plan_rank_of(&rank, p, &req, c->part.stage_index, c->part.tp_rank);
    sp_free(p);
    *out = rank.total_bytes;
    return SP_OK;
}

static int32_t larger(int32_t a, int32_t b) {
    return a > b ? a : b;
}
static int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static sp_dev_sizes sizes_of(const sp_forward *s) {
    return (sp_dev_sizes){.max_tokens = s->config.max_tokens,
                          .max_positions = s->config.max_model_len,
                          .n_heads = s->n_heads,
                          .n_kv_heads = s->n_kv_heads,
                          .head_dim = s->head_dim,
                          .max_draws = sp_forward_may_run_ahead(s) && s->config.part.tp_rank == 0
                                           ? s->config.n_slots
                                           : 0,
                          .vocab = s->vocab,
                          .max_cols = larger(s->hidden, larger(s->ffn, s->n_heads * s->head_dim))};
}

/* Somebody else may hold memory of the device: what the plan could not know. Refused before any is
 * taken, so that one line names all that is wanted. */
static sp_status check_room(const sp_forward *s, const sp_model_dir *dir, const sp_model_desc *desc,
                            const sp_arch *arch, sp_err *err) {
    const sp_dev_ops *ops = s->dev->ops;
    uint64_t need, left, total;
    if (ops->host_memory) return SP_OK;
    SP_ASSERT(!s->config.kv_memory);
    const sp_dev_sizes sizes = sizes_of(s);
    SP_TRY(need_bytes(&need, s, dir, desc, arch, err));
    SP_TRY(ops->memory(s->dev, &left, &total, err));
    need += ops->reserve_bytes(&sizes) + sp_forward_ahead_bytes(s);
    if (need <= left) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM,
                   "%s has %llu MiB free of %llu MiB, weights, activations and %d KV blocks need "
                   "%llu MiB: use more ranks (--tp, --pp), fewer --num-kv-blocks or a smaller "
                   "--max-num-batched-tokens",
                   s->dev->detail, (unsigned long long)(left >> 20),
                   (unsigned long long)(total >> 20), s->config.n_blocks,
                   (unsigned long long)(need >> 20));
}

static sp_status reserve(const sp_forward *s, sp_err *err) {
    const sp_dev_sizes sizes = sizes_of(s);
    return s->dev->ops->reserve ? s->dev->ops->reserve(s->dev, &sizes, err) : SP_OK;
}

/* What was uploaded is there, or the device's fault says why not. */
static sp_status settle_loading(const sp_forward *s, sp_err *err) {
    if (s->dev->ops->host_memory) return SP_OK;
    return s->dev->ops->poll(s->dev, s->dev->ops->submit(s->dev), SP_NEVER, err);
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
    sp_status st = check_room(s, dir, desc, arch, err);
    if (st == SP_OK)
        st = sp_weights_load(&s->weights, dev, dir, desc, arch, part, progress, ctx, err);
    if (st == SP_OK) st = take_scratch(s, err);
    if (st == SP_OK) st = take_rope(s, desc, err);
    if (st == SP_OK) st = take_kv(s, err);
    if (st == SP_OK) st = reserve(s, err);
    if (st == SP_OK) st = sp_forward_ahead_open(s, err);
    if (st == SP_OK) st = settle_loading(s, err);
    if (st != SP_OK) {
        sp_forward_close(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_forward_close(sp_forward *s) {
    if (!s) return;
    sp_forward_ahead_close(s);
    if (s->kv && !s->config.kv_memory) s->dev->ops->free(s->dev, s->kv, s->kv_bytes);
    size_t n = (size_t)s->rope.n_positions, half = (size_t)s->rope.dims / 2;
    give(s, (float *)s->rope.cos, n, half);
    give(s, (float *)s->rope.sin, n, half);
    scratch_row rows[SCRATCH_ROWS];
    list_scratch(s, rows);
    for (int i = 0; i < SCRATCH_ROWS; i++) give(s, *rows[i].at, rows[i].rows, rows[i].cols);
    if (s->logits_host) s->dev->ops->host_free(s->dev, s->logits_host, logits_bytes(s));
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

#define SOON_NS (200 * SP_NS_PER_MS) /* a step that takes longer may be one that never ends */
#define NAP_NS 500000

static sp_status ask_group(sp_group *g, sp_err *err) {
    sp_status st = g ? g->ops->poll(g, 0, err) : SP_OK;
    return st == SP_AGAIN ? SP_OK : st;
}

/* The first fault of the device or a group, once all that was queued is done. A device waits for ever
 * for a member that is lost: after a while its groups, which know better, are asked too. */
static sp_status settle(sp_forward *s, sp_err *err) {
    const sp_ticket ticket = s->dev->ops->submit(s->dev);
    const int64_t soon = sp_now_ns() + SOON_NS;
    sp_status st;
    while ((st = s->dev->ops->poll(s->dev, ticket, soon, err)) == SP_AGAIN) {
        SP_TRY(ask_group(s->config.tp, err));
        SP_TRY(ask_group(s->config.pp, err));
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    SP_TRY(st);
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
    if (s->ahead && sp_forward_embed_fed(s, b, x)) return SP_OK;
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

static sp_status queue(sp_forward *s, const sp_batch *b, sp_err *err) {
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
    if (!s->config.part.stage.has_head) return pass_on(s, b, partial, bias, err);
    if (b->n_rows > 0) head(s, b, bias);
    return SP_OK;
}

/* A step that a device may record: nobody else takes part, and every row is a sequence's only one. */
static bool is_decode(const sp_forward *s, const sp_batch *b) {
    const sp_part *p = &s->config.part;
    return s->dev->ops->decode_begin && p->tp == 1 && p->pp == 1 && b->n_seqs == b->n_tokens &&
           b->n_rows == b->n_tokens;
}

sp_status sp_forward_queue(sp_forward *s, const sp_batch *b, sp_err *err) {
    SP_ASSERT(b->n_tokens > 0 && b->n_tokens <= s->config.max_tokens);
    SP_ASSERT(b->n_rows <= s->config.max_rows);
    if (!is_decode(s, b)) return queue(s, b, err);
    const sp_forward_config *c = &s->config;
    const sp_dev_decode d = {.owner = s,
                             .ids = b->ids,
                             .seqs = b->seqs,
                             .n = b->n_tokens,
                             .block_tokens = c->block_tokens,
                             .max_rows = smaller(c->max_tokens, c->max_rows),
                             .max_positions = c->max_model_len};
    if (s->dev->ops->decode_begin(s->dev, &d)) return SP_OK;
    do SP_TRY(queue(s, b, err));
    while (!s->dev->ops->decode_end(s->dev));
    return SP_OK;
}

sp_status sp_forward_run(sp_forward *s, const sp_batch *b, const float **logits, sp_err *err) {
    SP_TRY(sp_forward_queue(s, b, err));
    if (s->logits_host && b->n_rows > 0)
        s->dev->ops->download(s->dev, s->logits_host, s->logits,
                              (size_t)b->n_rows * (size_t)s->vocab * sizeof(float));
    if (s->config.part.stage.has_head) SP_TRY(settle(s, err));
    *logits = b->n_rows == 0 ? NULL : s->logits_host ? s->logits_host : s->logits;
    return SP_OK;
}
