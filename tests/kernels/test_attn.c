/* Covers rope_store and attend of every backend: ref's bytes whatever the chunks, blocks, threads
 * and neighbours in the step; ref against double; unused cache slots never leak. */
#include "tests/kernels/ops_env.h"

#include "kernels/rope.h"

typedef struct model {
    int32_t H, K, D, window;
    sp_dtype kv;
    sp_rope_table rope;
    float *cos, *sin;
    float scale;
} model;

static model any_model(int32_t max_pos) {
    model m = {.K = PICK(1, 1, 2, 3), .D = PICK(5, 8, 16, 20, 32, 48, 64, 80, 128)};
    m.H = m.K * PICK(1, 1, 2, 4, 7);
    m.window = PICK(0, 0, 0, 1, 7, 100, 300);
    m.kv = (sp_dtype)PICK(SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16);
    const int32_t dims = rng() % 4 ? m.D / 2 * 2 : m.D / 4 * 2;
    const sp_rope_params p = {.dims = dims > 0 ? dims : 2, .theta = 10000};
    const size_t n = (size_t)max_pos * (size_t)(p.dims / 2);
    m.cos = malloc(n * sizeof(float));
    m.sin = malloc(n * sizeof(float));
    sp_rope_fill(&p, max_pos, m.cos, m.sin);
    m.rope = (sp_rope_table){m.cos, m.sin, max_pos, p.dims, rng() % 4 == 0};
    m.scale = (float)(1 / sqrt(m.D));
    return m;
}

static void model_free(model *m) {
    free(m->cos);
    free(m->sin);
}

static int32_t width(const model *m) {
    return (m->H + 2 * m->K) * m->D;
}

/* A cache that holds NaN wherever nothing was stored, with block tables in no order. */
typedef struct cache {
    unsigned char *memory;
    sp_kv_view view;
    int32_t **tables;
    int32_t n_seqs;
} cache;

static cache cache_make(const model *m, int32_t B, const int32_t *lengths, int32_t n_seqs) {
    cache c = {.n_seqs = n_seqs, .tables = malloc((size_t)n_seqs * sizeof *c.tables)};
    int32_t n = 0;
    for (int32_t s = 0; s < n_seqs; s++) n += (lengths[s] + B - 1) / B;
    int32_t *order = malloc((size_t)n * sizeof *order);
    for (int32_t i = 0; i < n; i++) order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t j = between(0, i), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (int32_t s = 0, at = 0; s < n_seqs; s++) {
        const int32_t blocks = (lengths[s] + B - 1) / B;
        c.tables[s] = malloc((size_t)blocks * sizeof **c.tables);
        memcpy(c.tables[s], order + at, (size_t)blocks * sizeof **c.tables);
        at += blocks;
    }
    free(order);
    c.view = (sp_kv_view){.block_tokens = B,
                          .n_kv_heads = m->K,
                          .head_dim = m->D,
                          .dtype = m->kv,
                          .layer_offset = 64};
    c.view.block_bytes = 64 + 2 * sp_kv_v_offset(&c.view) + 32;
    c.memory = malloc((size_t)n * c.view.block_bytes);
    memset(c.memory, 0xff, (size_t)n * c.view.block_bytes);
    c.view.base = c.memory;
    return c;
}

static void cache_free(cache *c) {
    for (int32_t s = 0; s < c->n_seqs; s++) free(c->tables[s]);
    free(c->tables);
    free(c->memory);
}

/* Some sequences: rows of q | k | v of all their positions, and where attention is asked for. */
typedef struct text {
    int32_t n_seqs, length[4], from[4]; /* outputs of positions from..length-1 */
    float *qkv[4];
} text;

/* Without the large ones: they would leave one position with all the weight. */
static float *scores_near_one(size_t n) {
    float *p = values(n);
    for (size_t i = 0; i < n; i++) p[i] = fabsf(p[i]) > 1 ? 1 : p[i];
    return p;
}

static text any_text(const model *m, int32_t n_seqs, int32_t max_length, int32_t max_rows) {
    text t = {.n_seqs = n_seqs};
    for (int32_t s = 0; s < n_seqs; s++) {
        t.length[s] = between(1, max_length);
        const int32_t rows = between(1, max_rows < t.length[s] ? max_rows : t.length[s]);
        t.from[s] = t.length[s] - rows;
        t.qkv[s] = scores_near_one((size_t)t.length[s] * (size_t)width(m));
    }
    return t;
}

static void text_free(text *t) {
    for (int32_t s = 0; s < t->n_seqs; s++) free(t->qkv[s]);
}

typedef struct run_out {
    float *out[4], *q[4]; /* [length - from][H D], of each sequence; q as rotated */
} run_out;

static void out_free(run_out *o, int32_t n) {
    for (int32_t s = 0; s < n; s++) {
        free(o->out[s]);
        free(o->q[s]);
    }
}

/* One step: rows done[s]..done[s]+rows[s]-1 of every sequence, joined in one batch. */
static void step(sp_dev *dev, const model *m, const text *t, const cache *c, const int32_t *done,
                 const int32_t *rows, bool attend, run_out *o) {
    const int32_t W = width(m), HD = m->H * m->D, stride = W + 3;
    sp_seq_rows seqs[4];
    int32_t T = 0;
    for (int32_t s = 0; s < t->n_seqs; s++) {
        seqs[s] = (sp_seq_rows){T, rows[s], done[s], c->tables[s]};
        T += rows[s];
    }
    float *qkv = malloc((size_t)T * (size_t)stride * sizeof *qkv + 1);
    float *out = malloc((size_t)T * (size_t)HD * sizeof *out + 1);
    for (int32_t s = 0; s < t->n_seqs; s++)
        for (int32_t i = 0; i < rows[s]; i++)
            memcpy(qkv + (ptrdiff_t)(seqs[s].row0 + i) * stride,
                   t->qkv[s] + (ptrdiff_t)(done[s] + i) * W, (size_t)W * sizeof *qkv);
    const sp_rope_store_args store = {.qkv = mat(qkv, T, W, stride),
                                      .n_heads = m->H,
                                      .rope = m->rope,
                                      .kv = c->view,
                                      .seqs = seqs,
                                      .n_seqs = t->n_seqs};
    dev->ops->rope_store(dev, &store);
    const sp_attn_args args = {.out = mat(out, T, HD, HD),
                               .qkv = store.qkv,
                               .n_heads = m->H,
                               .scale = m->scale,
                               .window = m->window,
                               .kv = c->view,
                               .seqs = seqs,
                               .n_seqs = t->n_seqs};
    if (attend) dev->ops->attend(dev, &args);
    for (int32_t s = 0; attend && s < t->n_seqs; s++)
        for (int32_t i = 0; i < rows[s]; i++) {
            const ptrdiff_t to = (ptrdiff_t)(done[s] + i - t->from[s]) * HD;
            const ptrdiff_t row = seqs[s].row0 + i;
            memcpy(o->out[s] + to, out + row * HD, (size_t)HD * sizeof *out);
            memcpy(o->q[s] + to, qkv + row * stride, (size_t)HD * sizeof *out);
        }
    free(qkv);
    free(out);
}

/* Stores what comes before `from`, then goes on in chunks of random size up to `chunk`. */
static run_out run_text(sp_dev *dev, const model *m, const text *t, const cache *c, int32_t chunk) {
    run_out o = {0};
    int32_t done[4] = {0}, rows[4], left = 0;
    for (int32_t s = 0; s < t->n_seqs; s++) {
        const size_t n = (size_t)(t->length[s] - t->from[s]) * (size_t)(m->H * m->D);
        o.out[s] = malloc(n * sizeof(float));
        o.q[s] = malloc(n * sizeof(float));
        left += t->length[s] - t->from[s];
    }
    step(dev, m, t, c, done, t->from, false, &o);
    memcpy(done, t->from, sizeof done);
    while (left > 0) {
        for (int32_t s = 0; s < t->n_seqs; s++) {
            const int32_t rest = t->length[s] - done[s];
            rows[s] = chunk < INT32_MAX ? between(0, chunk) : rest;
            rows[s] = rows[s] < rest ? rows[s] : rest;
        }
        step(dev, m, t, c, done, rows, true, &o);
        for (int32_t s = 0; s < t->n_seqs; s++) {
            done[s] += rows[s];
            left -= rows[s];
        }
    }
    expect_no_fault(dev);
    return o;
}

/* Softmax in double over the cache's own values, for some rows. */
static void check_attention(const model *m, const text *t, const cache *c, const run_out *o) {
    for (int32_t s = 0; s < t->n_seqs; s++)
        for (int32_t n = 0; n < 6; n++) {
            const int32_t pos = between(t->from[s], t->length[s] - 1), h = between(0, m->H - 1);
            const ptrdiff_t at = ((ptrdiff_t)(pos - t->from[s]) * m->H + h) * m->D;
            const int32_t lo = m->window && pos + 1 > m->window ? pos + 1 - m->window : 0;
            double sum = 0, magnitude = 0, *out = calloc((size_t)m->D, sizeof *out);
            for (int32_t p = lo; p <= pos; p++) {
                const unsigned char *k = sp_kv_k_row(&c->view, c->tables[s], h / (m->H / m->K), p);
                const source ks = {(void *)(uintptr_t)k, m->kv, 1, m->D, 0};
                const source vs = {(void *)(uintptr_t)(k + sp_kv_v_offset(&c->view)), m->kv, 1,
                                   m->D, 0};
                double dot = 0;
                for (int32_t d = 0; d < m->D; d++)
                    dot += (double)o->q[s][at + d] * source_at(&ks, 0, d);
                const double w = exp(dot * m->scale);
                sum += w;
                for (int32_t d = 0; d < m->D; d++) {
                    out[d] += w * source_at(&vs, 0, d);
                    magnitude = fmax(magnitude, fabs(source_at(&vs, 0, d)));
                }
            }
            for (int32_t d = 0; d < m->D; d++)
                CU_ASSERT(fabs(o->out[s][at + d] - out[d] / sum) <= 1e-5 * (magnitude + 1e-6));
            free(out);
        }
}

/* ref in one go with one block size; every other backend in chunks with another. */
static void compare_attention(env *e, const model *m, const text *t) {
    cache c0 = cache_make(m, 16, t->length, t->n_seqs);
    run_out want = run_text(&e->dev[0], m, t, &c0, INT32_MAX);
    check_attention(m, t, &c0, &want);
    for (int i = 1; i < e->n; i++) {
        const int32_t B = PICK(8, 16, 24, 32, 64, 128), chunk = PICK(1, 3, 17, 100, INT32_MAX);
        cache c = cache_make(m, B, t->length, t->n_seqs);
        run_out o = run_text(&e->dev[i], m, t, &c, chunk);
        bool ok = true;
        for (int32_t s = 0; s < t->n_seqs; s++) {
            const size_t n = (size_t)(t->length[s] - t->from[s]) * (size_t)(m->H * m->D);
            ok = ok && same(o.q[s], want.q[s], n) && same(o.out[s], want.out[s], n);
        }
        if (!ok)
            fprintf(stderr, "%s: H %d K %d D %d window %d %s, blocks of %d, chunk %d, length %d\n",
                    e->name[i], m->H, m->K, m->D, m->window, sp_dtype_name(m->kv), B, chunk,
                    t->length[0]);
        CU_ASSERT(ok);
        out_free(&o, t->n_seqs);
        cache_free(&c);
    }
    out_free(&want, t->n_seqs);
    cache_free(&c0);
}

static void every_backend_attends_like_ref_over_short_texts(void) {
    env e = env_open(31);
    for (int round = 0; round < ROUNDS(24); round++) {
        model m = any_model(200);
        text t = any_text(&m, between(1, 4), 90, 40);
        compare_attention(&e, &m, &t);
        text_free(&t);
        model_free(&m);
    }
    env_close(&e);
}

static void splits_of_256_positions_merge_like_ref(void) {
    env e = env_open(32);
    for (int round = 0; round < ROUNDS(12); round++) {
        model m = any_model(1100);
        text t = any_text(&m, between(1, 2), 1100, PICK(1, 2, 5, 12));
        compare_attention(&e, &m, &t);
        text_free(&t);
        model_free(&m);
    }
    env_close(&e);
}

/* One kv head and three threads: there are fewer pieces than threads, so splits are spread. */
static void one_kv_head_is_spread_over_threads_by_splits(void) {
    env e = env_open(33);
    for (int round = 0; round < ROUNDS(4); round++) {
        model m = any_model(3000);
        m.K = 1;
        m.H = 4;
        text t = any_text(&m, 1, 3000, 1);
        t.length[0] = 3000 - round;
        t.from[0] = t.length[0] - 1;
        free(t.qkv[0]);
        t.qkv[0] = scores_near_one((size_t)t.length[0] * (size_t)width(&m));
        compare_attention(&e, &m, &t);
        text_free(&t);
        model_free(&m);
    }
    env_close(&e);
}

static void the_cache_holds_ref_s_bytes(void) {
    env e = env_open(34);
    for (int round = 0; round < ROUNDS(18); round++) {
        model m = any_model(50);
        text t = any_text(&m, 1, 50, 50);
        t.from[0] = 0;
        for (int i = 0; i < 20; i++) {
            float *x = &t.qkv[0][rng() % (uint32_t)(t.length[0] * width(&m))];
            *x = i % 4 == 0 ? NAN : i % 4 == 1 ? 1e30f : i % 4 == 2 ? -INFINITY : 6e-8f;
        }
        cache c0 = cache_make(&m, 16, t.length, 1);
        run_out o0 = run_text(&e.dev[0], &m, &t, &c0, INT32_MAX);
        for (int i = 1; i < e.n; i++) {
            cache c = cache_make(&m, 16, t.length, 1);
            run_out o = run_text(&e.dev[i], &m, &t, &c, 7);
            bool ok = true;
            for (int32_t pos = 0; pos < t.length[0]; pos++)
                for (int32_t h = 0; h < m.K; h++) {
                    const unsigned char *a = sp_kv_k_row(&c0.view, c0.tables[0], h, pos);
                    const unsigned char *b = sp_kv_k_row(&c.view, c.tables[0], h, pos);
                    const size_t v = sp_kv_v_offset(&c.view);
                    /* A NaN that went through a rotation: which one comes out is left open. */
                    const source ka = {(void *)(uintptr_t)a, m.kv, 1, m.D, 0};
                    const source kb = {(void *)(uintptr_t)b, m.kv, 1, m.D, 0};
                    for (int32_t d = 0; d < m.D; d++) {
                        const float x = source_at(&ka, 0, d), y = source_at(&kb, 0, d);
                        ok = ok && same(&x, &y, 1);
                    }
                    ok = ok && memcmp(a + v, b + v, sp_kv_row_bytes(&c.view)) == 0;
                }
            CU_ASSERT(ok);
            out_free(&o, 1);
            cache_free(&c);
        }
        out_free(&o0, 1);
        cache_free(&c0);
        text_free(&t);
        model_free(&m);
    }
    env_close(&e);
}

static void a_position_past_the_table_and_a_huge_head_are_faults(void) {
    env e = env_open(35);
    for (int i = 0; i < e.n; i++) {
        sp_err err = {0};
        sp_dev *dev = &e.dev[i];
        float c[8] = {1}, s[8] = {0}, qkv[12] = {0};
        unsigned char memory[1024];
        const int32_t blocks[] = {0};
        const sp_seq_rows seq = {0, 1, 4, blocks};
        sp_rope_store_args a = {.qkv = mat(qkv, 1, 12, 12),
                                .n_heads = 1,
                                .rope = {c, s, 4, 4, false},
                                .kv = {memory, 512, 0, 8, 1, 4, SP_DTYPE_F32},
                                .seqs = &seq,
                                .n_seqs = 1};
        dev->ops->rope_store(dev, &a);
        CU_ASSERT_EQUAL(dev->ops->poll(dev, dev->ops->submit(dev), 0, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rope table has 4"));
    }
    env_close(&e);
    e = env_open(36);
    for (int i = 0; i < e.n; i++) {
        sp_err err = {0};
        sp_dev *dev = &e.dev[i];
        sp_attn_args a = {.n_heads = 1,
                          .kv = {.block_tokens = 8,
                                 .n_kv_heads = 1,
                                 .head_dim = SP_HEAD_DIM_MAX + 1,
                                 .dtype = SP_DTYPE_F32}};
        dev->ops->attend(dev, &a);
        CU_ASSERT_EQUAL(dev->ops->poll(dev, dev->ops->submit(dev), 0, &err), SP_E_UNSUPPORTED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "head dimension 513, at most 512"));
    }
    env_close(&e);
}

static void the_largest_head_attends_like_ref(void) {
    env e = env_open(37);
    model m = any_model(60);
    model_free(&m);
    m = (model){.H = 2, .K = 1, .D = SP_HEAD_DIM_MAX, .kv = SP_DTYPE_BF16, .scale = 0.05f};
    const sp_rope_params p = {.dims = 128, .theta = 1e6};
    m.cos = malloc(60 * 64 * sizeof(float));
    m.sin = malloc(60 * 64 * sizeof(float));
    sp_rope_fill(&p, 60, m.cos, m.sin);
    m.rope = (sp_rope_table){m.cos, m.sin, 60, 128, false};
    text t = any_text(&m, 2, 60, 60);
    compare_attention(&e, &m, &t);
    text_free(&t);
    model_free(&m);
    env_close(&e);
}

SP_TEST_MAIN("kernels/attn", SP_TEST(every_backend_attends_like_ref_over_short_texts),
             SP_TEST(splits_of_256_positions_merge_like_ref),
             SP_TEST(one_kv_head_is_spread_over_threads_by_splits),
             SP_TEST(the_cache_holds_ref_s_bytes),
             SP_TEST(a_position_past_the_table_and_a_huge_head_are_faults),
             SP_TEST(the_largest_head_attends_like_ref))
