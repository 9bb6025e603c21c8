#include "launcher/bench_gpu_impl.h"
#include "runtime/base/mem.h"
#include "runtime/model/plan.h"

#include <stdio.h>

#define BLOCK_TOKENS 16
#define PART_ROWS 256 /* of random weights; a matrix is these again and again */
#define COPIES_MAX 8
#define DRAWS_MAX 256

/* What is run at: of a GPU, of the emulated one. */
typedef struct sizes {
    int32_t decode[4], prefill[2]; /* rows of a step */
    struct {
        int32_t seqs, context;
    } attend[4];
    int32_t chunk_at;             /* the second chunk of a prompt begins here */
    int32_t ceiling_n, ceiling_t; /* of the largest product: N = K, T */
    size_t copy_bytes;
} sizes;
static const sizes real = {.decode = {1, 4, 16, 64},
                           .prefill = {512, 2048},
                           .attend = {{1, 1024}, {8, 1024}, {64, 1024}, {1, 8192}},
                           .chunk_at = 2048,
                           .ceiling_n = 8192,
                           .ceiling_t = 4096,
                           .copy_bytes = (size_t)512 << 20};
static const sizes small = {.decode = {1, 2, 4, 8},
                            .prefill = {16, 32},
                            .attend = {{1, 32}, {2, 32}, {4, 32}, {1, 288}},
                            .chunk_at = 32,
                            .ceiling_n = 64,
                            .ceiling_t = 64,
                            .copy_bytes = (size_t)1 << 20};

static const sizes *sizes_of(const sp_gpu *g) {
    return g->emulated ? &small : &real;
}

static int32_t larger(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static sp_mat mat(float *data, int32_t rows, int32_t cols) {
    return (sp_mat){data, rows, cols, cols, SP_DTYPE_F32};
}

/* Activations: three of the largest that a shape has. */
typedef struct room {
    float *a, *b, *c;
    size_t bytes;
} room;

static void close_room(sp_gpu *g, room *r) {
    const sp_dev_ops *ops = g->dev.ops;
    if (r->a) ops->free(&g->dev, r->a, r->bytes);
    if (r->b) ops->free(&g->dev, r->b, r->bytes);
    if (r->c) ops->free(&g->dev, r->c, r->bytes);
}

static sp_status open_room(sp_gpu *g, room *r, size_t rows, size_t cols, sp_err *err) {
    r->bytes = rows * cols * sizeof(float);
    float **const of[] = {&r->a, &r->b, &r->c};
    for (size_t i = 0; i < SP_LEN(of); i++) {
        void *p;
        SP_TRY(sp_gpu_fill(g, &p, r->bytes, SP_DTYPE_F32, "activations", err));
        *of[i] = p;
    }
    return SP_OK;
}

static sp_status add_row(sp_gpu *g, const char *op, sp_gpu_call *call, void *ctx, double bytes,
                         double flops, const char *shape, sp_err *err) {
    SP_ASSERT(g->n_rows < SP_GPU_ROWS_MAX);
    sp_gpu_row *r = &g->rows[g->n_rows];
    *r = (sp_gpu_row){.bytes = bytes, .flops = flops};
    snprintf(r->op, sizeof r->op, "%s", op);
    snprintf(r->shape, sizeof r->shape, "%s", shape);
    sp_status st = sp_gpu_time(g, call, ctx, &r->us, err);
    if (st != SP_OK)
        sp_err_context(err, "timing '%s' (%s)", op, shape);
    else
        g->n_rows++;
    return st;
}

/* ---- products ---- */

typedef struct product {
    sp_weight *w[COPIES_MAX]; /* together larger than the card's cache: a decode step reads its
                                 weights from memory */
    int n;
    sp_mat y, x;
} product;

static void call_gemm(sp_gpu *g, void *ctx, int turn) {
    const product *p = ctx;
    g->dev.ops->gemm(&g->dev, p->y, p->x, p->w[turn % p->n], NULL);
}

static void drop_product(sp_gpu *g, product *p) {
    for (int i = 0; i < p->n; i++) g->dev.ops->weight_free(&g->dev, p->w[i]);
    p->n = 0;
}

static sp_status pack_one(sp_gpu *g, product *p, int32_t rows, int32_t cols, sp_dtype dtype,
                          const void *data, sp_err *err) {
    const int n = (rows + PART_ROWS - 1) / PART_ROWS;
    const sp_segments seg = sp_segments_of(cols, 1);
    sp_weight_part *parts = sp_try_alloc_array((size_t)n, sizeof *parts);
    if (!parts) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d parts of a weight", n);
    for (int i = 0; i < n; i++) {
        const int32_t left = rows - i * PART_ROWS;
        parts[i] =
            (sp_weight_part){data, dtype, left < PART_ROWS ? left : PART_ROWS, cols, (int64_t)cols};
    }
    sp_status st = g->dev.ops->pack(&g->dev, &p->w[p->n], parts, n, &seg, err);
    if (st == SP_OK) p->n++;
    sp_free(parts);
    return st;
}

static sp_status pack_product(sp_gpu *g, product *p, int32_t rows, int32_t cols, sp_dtype dtype,
                              sp_err *err) {
    const sp_segments seg = sp_segments_of(cols, 1);
    const size_t bytes = g->dev.ops->packed_bytes(rows, &seg, dtype);
    const size_t copies = g->emulated ? 1 : 2 * (size_t)g->info.cache_bytes / bytes + 1;
    void *data = sp_gpu_random((size_t)PART_ROWS * (size_t)cols, dtype);
    if (!data) return SP_FAIL(err, SP_E_NOMEM, "no memory for random weights");
    sp_status st = SP_OK;
    for (size_t i = 0; i < copies && i < COPIES_MAX && st == SP_OK; i++)
        st = pack_one(g, p, rows, cols, dtype, data, err);
    sp_free(data);
    if (st != SP_OK) drop_product(g, p);
    return st;
}

static double product_flops(double T, double N, double K) {
    return 2 * T * N * K;
}

static sp_status time_product(sp_gpu *g, const room *r, const char *name, int32_t N, int32_t K,
                              const int32_t *T, int n_T, sp_err *err) {
    product p = {0};
    char shape[48];
    const double each = sp_dtype_bits(g->shape.dtype) / 8.0;
    SP_TRY(pack_product(g, &p, N, K, g->shape.dtype, err));
    sp_status st = SP_OK;
    for (int i = 0; i < n_T && st == SP_OK; i++) {
        p.y = mat(r->b, T[i], N);
        p.x = mat(r->a, T[i], K);
        snprintf(shape, sizeof shape, "%s T %d N %d K %d", name, T[i], N, K);
        st = add_row(g, "gemm", call_gemm, &p, each * N * K + 4.0 * T[i] * ((double)N + (double)K),
                     product_flops(T[i], N, K), shape, err);
    }
    drop_product(g, &p);
    return st;
}

static sp_status time_products(sp_gpu *g, const room *r, sp_err *err) {
    const sp_gpu_shape *s = &g->shape;
    const sizes *z = sizes_of(g);
    int32_t T[6];
    memcpy(T, z->decode, sizeof z->decode);
    memcpy(T + 4, z->prefill, sizeof z->prefill);
    const int32_t HD = s->H * s->D;
    SP_TRY(time_product(g, r, "qkv", (s->H + 2 * s->K) * s->D, s->E, T, 6, err));
    SP_TRY(time_product(g, r, "o", s->E, HD, T, 6, err));
    SP_TRY(time_product(g, r, "gate_up", 2 * s->F, s->E, T, 6, err));
    SP_TRY(time_product(g, r, "down", s->E, s->F, T, 6, err));
    return time_product(g, r, "head", s->V, s->E, T, 4, err);
}

/* ---- row by row ---- */

typedef struct rows {
    sp_mat y, x, partial;
    const float *weight;
    sp_act act;
    const sp_weight *embed;
    const int32_t *ids;
} rows;

static void call_norm(sp_gpu *g, void *ctx, int turn) {
    const rows *r = ctx;
    (void)turn;
    g->dev.ops->add_rmsnorm(&g->dev, r->y, r->x, r->partial, NULL, r->weight, 1e-5f);
}
static void call_add(sp_gpu *g, void *ctx, int turn) {
    const rows *r = ctx;
    (void)turn;
    g->dev.ops->add(&g->dev, r->x, r->partial, NULL);
}
static void call_act(sp_gpu *g, void *ctx, int turn) {
    const rows *r = ctx;
    (void)turn;
    g->dev.ops->act_mul(&g->dev, r->y, r->x, r->act);
}
static void call_embed(sp_gpu *g, void *ctx, int turn) {
    const rows *r = ctx;
    (void)turn;
    g->dev.ops->embed(&g->dev, r->y, r->embed, r->ids);
}
static void call_gather(sp_gpu *g, void *ctx, int turn) {
    const rows *r = ctx;
    (void)turn;
    g->dev.ops->gather_rows(&g->dev, r->y, r->x, r->ids);
}

/* Decode of the largest batch here, and a chunk of a prompt. */
static sp_status time_rows_of(sp_gpu *g, const room *r, const product *embed, const int32_t *ids,
                              int32_t T, sp_err *err) {
    const sp_gpu_shape *s = &g->shape;
    const double E = s->E, F = s->F, each = sp_dtype_bits(s->dtype) / 8.0;
    char shape[48];
    rows c = {.y = mat(r->a, T, s->E),
              .x = mat(r->b, T, s->E),
              .partial = mat(r->c, T, s->E),
              /* The last row of y's buffer: any numbers do, and y does not reach there. */
              .weight = r->a + r->bytes / sizeof(float) - s->E,
              .act = s->act,
              .embed = embed->w[0],
              .ids = ids};
    snprintf(shape, sizeof shape, "T %d E %d", T, s->E);
    SP_TRY(add_row(g, "add_rmsnorm", call_norm, &c, 16.0 * T * E + 4 * E, 0, shape, err));
    SP_TRY(add_row(g, "embed", call_embed, &c, T * E * (each + 4), 0, shape, err));
    SP_TRY(add_row(g, "gather_rows", call_gather, &c, 8.0 * T * E, 0, shape, err));
    c.y = mat(r->a, T, s->F);
    c.x = mat(r->b, T, 2 * s->F);
    snprintf(shape, sizeof shape, "T %d F %d", T, s->F);
    return add_row(g, "act_mul", call_act, &c, 12.0 * T * F, 0, shape, err);
}

static sp_status time_rows(sp_gpu *g, const room *r, sp_err *err) {
    const sizes *z = sizes_of(g);
    const int32_t most = z->prefill[1];
    product embed = {0};
    int32_t *ids = sp_alloc((size_t)most * sizeof *ids);
    const int32_t limit =
        most < g->shape.V ? most : g->shape.V; /* rows that x has, ids there are */
    for (int32_t i = 0; i < most; i++)
        ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)limit);
    sp_status st = pack_product(g, &embed, g->shape.V, g->shape.E, g->shape.dtype, err);
    const int32_t T[] = {z->decode[0], z->decode[3], z->prefill[0]};
    for (size_t i = 0; i < SP_LEN(T) && st == SP_OK; i++) {
        /* gather_rows takes rows that are there. */
        for (int32_t t = 0; t < T[i]; t++) ids[t] %= T[i] < limit ? T[i] : limit;
        st = time_rows_of(g, r, &embed, ids, T[i], err);
    }
    drop_product(g, &embed);
    sp_free(ids);
    return st;
}

/* ---- rope and attention ---- */

typedef struct cache {
    sp_kv_layout layout;
    sp_kv_view view;
    void *memory;
    size_t bytes, rope_bytes;
    void *rope;
    sp_rope_table table;
    int32_t *blocks;
    sp_seq_rows *seqs;
    sp_rope_store_args store;
    sp_attn_args attend;
} cache;

static void call_rope(sp_gpu *g, void *ctx, int turn) {
    (void)turn;
    g->dev.ops->rope_store(&g->dev, &((cache *)ctx)->store);
}
static void call_attend(sp_gpu *g, void *ctx, int turn) {
    (void)turn;
    g->dev.ops->attend(&g->dev, &((cache *)ctx)->attend);
}

static void close_cache(sp_gpu *g, cache *c) {
    if (c->memory) g->dev.ops->free(&g->dev, c->memory, c->bytes);
    if (c->rope) g->dev.ops->free(&g->dev, c->rope, c->rope_bytes);
    sp_free(c->blocks);
    sp_free(c->seqs);
}

/* One layer for `seqs` sequences of `positions` each, every one with blocks of its own. */
static sp_status open_cache(sp_gpu *g, cache *c, int32_t seqs, int32_t positions, sp_err *err) {
    const sp_gpu_shape *s = &g->shape;
    const int32_t each = (positions + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    c->layout = sp_kv_layout_of(1, s->K, s->D, BLOCK_TOKENS, s->kv_dtype);
    c->bytes = c->layout.block_bytes * (size_t)each * (size_t)seqs;
    c->rope_bytes = (size_t)positions * (size_t)s->rope_dims * sizeof(float);
    SP_TRY(sp_gpu_fill(g, &c->memory, c->bytes, s->kv_dtype, "KV blocks", err));
    SP_TRY(sp_gpu_fill(g, &c->rope, c->rope_bytes, SP_DTYPE_F32, "rope tables", err));
    const float *cos_table = c->rope;
    c->table = (sp_rope_table){cos_table, cos_table + (size_t)positions * (size_t)s->rope_dims / 2,
                               positions, s->rope_dims, false};
    c->view = (sp_kv_view){.base = c->memory,
                           .block_bytes = c->layout.block_bytes,
                           .block_tokens = BLOCK_TOKENS,
                           .n_kv_heads = s->K,
                           .head_dim = s->D,
                           .dtype = s->kv_dtype};
    c->blocks = sp_alloc((size_t)each * (size_t)seqs * sizeof *c->blocks);
    c->seqs = sp_alloc((size_t)seqs * sizeof *c->seqs);
    for (int32_t i = 0; i < each * seqs; i++) c->blocks[i] = i;
    for (int32_t i = 0; i < seqs; i++)
        c->seqs[i] = (sp_seq_rows){i, 1, positions - 1, c->blocks + (size_t)i * (size_t)each};
    return SP_OK;
}

/* `n` rows of each of `seqs` sequences, the last of them at position `end` - 1. */
static sp_status time_attention(sp_gpu *g, const room *r, int32_t seqs, int32_t n, int32_t end,
                                sp_err *err) {
    const sp_gpu_shape *s = &g->shape;
    const int32_t T = seqs * n, HD = s->H * s->D, all = HD + 2 * s->K * s->D;
    cache c = {0};
    sp_status st = open_cache(g, &c, seqs, end, err);
    for (int32_t i = 0; i < seqs && st == SP_OK; i++) {
        c.seqs[i].row0 = i * n;
        c.seqs[i].n_rows = n;
        c.seqs[i].pos0 = end - n;
    }
    c.store = (sp_rope_store_args){mat(r->a, T, all), s->H, c.table, c.view, c.seqs, seqs};
    c.attend = (sp_attn_args){.out = mat(r->b, T, HD),
                              .qkv = mat(r->a, T, all),
                              .n_heads = s->H,
                              .scale = 0.1f,
                              .kv = c.view,
                              .seqs = c.seqs,
                              .n_seqs = seqs};
    const double row = 2.0 * s->K * s->D * sp_dtype_bits(s->kv_dtype) / 8; /* K and V */
    const double seen = (double)seqs * n * (end - (n - 1) / 2.0);          /* keys of all rows */
    char shape[48];
    snprintf(shape, sizeof shape, n == 1 ? "decode S %d context %d" : "prompt S %d T %d of %d",
             seqs, n == 1 ? end : n, end);
    if (st == SP_OK)
        st = add_row(g, "rope_store", call_rope, &c,
                     T * (4.0 * all + 4.0 * HD + row + 4.0 * s->rope_dims), 0, shape, err);
    if (st == SP_OK)
        st = add_row(g, "attend", call_attend, &c, (double)seqs * end * row + 8.0 * T * HD,
                     4.0 * seen * HD, shape, err);
    close_cache(g, &c);
    return st;
}

static sp_status time_attentions(sp_gpu *g, const room *r, sp_err *err) {
    const sizes *z = sizes_of(g);
    for (size_t i = 0; i < SP_LEN(z->attend); i++)
        SP_TRY(time_attention(g, r, z->attend[i].seqs, 1, z->attend[i].context, err));
    SP_TRY(time_attention(g, r, 1, z->prefill[1], z->prefill[1], err));
    return time_attention(g, r, 1, z->prefill[0], z->chunk_at + z->prefill[0], err);
}

/* ---- draws ---- */

static void call_draw(sp_gpu *g, void *ctx, int turn) {
    (void)turn;
    g->dev.ops->draw(&g->dev, ctx);
}

static sp_status time_draws(sp_gpu *g, const room *r, sp_err *err) {
    const sizes *z = sizes_of(g);
    const sp_dev_ops *ops = g->dev.ops;
    sp_draw draws[DRAWS_MAX];
    char shape[48];
    if (!ops->draw) return SP_OK;
    const size_t last_bytes = DRAWS_MAX * sizeof(int32_t),
                 drawn_bytes = DRAWS_MAX * sizeof(sp_drawn);
    int32_t *last = ops->alloc(&g->dev, last_bytes);
    sp_drawn *drawn = ops->alloc(&g->dev, drawn_bytes);
    sp_status st = last && drawn ? SP_OK : SP_FAIL(err, SP_E_NOMEM, "no device memory for draws");
    for (int i = 0; i < 4 && st == SP_OK; i++) {
        const int32_t n = z->decode[i / 2 * 3];
        const bool greedy = i % 2 == 0;
        for (int32_t k = 0; k < n; k++)
            draws[k] = (sp_draw){.row = k,
                                 .slot = k,
                                 .temperature = greedy ? 0.0f : 1.0f,
                                 .top_p = greedy ? 1.0f : 0.95f,
                                 .repetition_penalty = 1,
                                 .position = 7,
                                 .seed = (uint64_t)k,
                                 .n_logprobs = -1,
                                 .n_allowed = -1};
        sp_draw_args a = {.logits = r->a,
                          .ld = g->shape.V,
                          .V = g->shape.V,
                          .n = n,
                          .draws = draws,
                          .last = last,
                          .drawn = drawn};
        snprintf(shape, sizeof shape, "%s n %d V %d", greedy ? "greedy" : "top-p", n, g->shape.V);
        st = add_row(g, "draw", call_draw, &a, 4.0 * n * g->shape.V, 0, shape, err);
    }
    if (last) ops->free(&g->dev, last, last_bytes);
    if (drawn) ops->free(&g->dev, drawn, drawn_bytes);
    return st;
}

sp_status sp_gpu_measure_ops(sp_gpu *g, sp_err *err) {
    const sp_gpu_shape *s = &g->shape;
    const sizes *z = sizes_of(g);
    const int32_t qkv = (s->H + 2 * s->K) * s->D;
    const int32_t widest = larger(larger(2 * s->F, qkv), s->E);
    const size_t chunk = (size_t)(z->prefill[1] + 1) * (size_t)widest;
    const size_t logits = (size_t)z->decode[3] * (size_t)s->V;
    room r = {0};
    sp_status st = open_room(g, &r, chunk > logits ? chunk : logits, 1, err);
    if (st == SP_OK) st = time_rows(g, &r, err);
    if (st == SP_OK) st = time_products(g, &r, err);
    if (st == SP_OK) st = time_attentions(g, &r, err);
    if (st == SP_OK) st = time_draws(g, &r, err);
    close_room(g, &r);
    return st;
}

/* ---- ceilings ---- */

static void call_copy(sp_gpu *g, void *ctx, int turn) {
    const room *r = ctx;
    (void)turn;
    g->meter->copy(&g->dev, r->b, r->a, r->bytes);
}

static sp_status measure_copy(sp_gpu *g, sp_err *err) {
    room r = {0};
    double us;
    sp_status st = open_room(g, &r, sizes_of(g)->copy_bytes / sizeof(float), 1, err);
    if (st == SP_OK) st = sp_gpu_time(g, call_copy, &r, &us, err);
    if (st == SP_OK) g->ceilings.copy_bytes_s = 2 * (double)r.bytes / us * 1e6;
    close_room(g, &r);
    return st;
}

static sp_status measure_product(sp_gpu *g, sp_err *err) {
    const int32_t N = sizes_of(g)->ceiling_n, T = sizes_of(g)->ceiling_t;
    room r = {0};
    product p = {0};
    double us;
    sp_status st = open_room(g, &r, (size_t)T, (size_t)N, err);
    if (st == SP_OK) st = pack_product(g, &p, N, N, SP_DTYPE_BF16, err);
    p.y = mat(r.b, T, N);
    p.x = mat(r.a, T, N);
    if (st == SP_OK) st = sp_gpu_time(g, call_gemm, &p, &us, err);
    if (st == SP_OK) g->ceilings.gemm_flops_s = product_flops(T, N, N) / us * 1e6;
    drop_product(g, &p);
    close_room(g, &r);
    return st;
}

static sp_status measure_launch(sp_gpu *g, sp_err *err) {
    room r = {0};
    sp_status st = open_room(g, &r, 1, 1, err);
    rows c = {.x = mat(r.a, 1, 1), .partial = mat(r.b, 1, 1)};
    if (st == SP_OK) st = sp_gpu_time(g, call_add, &c, &g->ceilings.launch_us, err);
    close_room(g, &r);
    return st;
}

sp_status sp_gpu_measure_ceilings(sp_gpu *g, sp_err *err) {
    SP_TRY(measure_copy(g, err));
    SP_TRY(measure_product(g, err));
    return measure_launch(g, err);
}
