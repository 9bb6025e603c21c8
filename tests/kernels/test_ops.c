/* Covers the row operations of every backend: gemm, embed, norm, activation and gather give ref's
 * bytes on random shapes, and ref gives the mathematics within a bound. */
#include "tests/kernels/ops_env.h"

#define CANARY 12345.5f

typedef struct shape {
    int32_t T, N, K, y_stride, x_stride;
    sp_segments seg;
    source src;
    float *x, *bias;
} shape;

static shape any_shape(int32_t T, int32_t N, int32_t K, sp_dtype dtype) {
    shape s = {.T = T, .N = N, .K = K, .seg = any_segments(K), .src = any_source(N, K, dtype)};
    s.y_stride = N + between(0, 1) * 3;
    s.x_stride = K + between(0, 1) * 7;
    s.x = values((size_t)T * (size_t)s.x_stride);
    s.bias = rng() % 2 ? values((size_t)N) : NULL;
    return s;
}

static void shape_free(shape *s) {
    free(s->src.data);
    free(s->x);
    free(s->bias);
}

/* The product in calls of at most `step` rows, into fresh memory with canaries between the rows. */
static float *product(sp_dev *dev, const shape *s, int32_t step) {
    const size_t n = (size_t)s->T * (size_t)s->y_stride;
    float *y = malloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = CANARY;
    sp_weight *w = pack(dev, &s->src, &s->seg);
    for (int32_t t = 0; t < s->T; t += step) {
        const int32_t rows = s->T - t < step ? s->T - t : step;
        dev->ops->gemm(dev, mat(y + (ptrdiff_t)t * s->y_stride, rows, s->N, s->y_stride),
                       mat(s->x + (ptrdiff_t)t * s->x_stride, rows, s->K, s->x_stride), w, s->bias);
    }
    expect_no_fault(dev);
    dev->ops->weight_free(dev, w);
    for (int32_t t = 0; t < s->T; t++)
        for (int32_t i = s->N; i < s->y_stride; i++)
            CU_ASSERT_EQUAL(y[(ptrdiff_t)t * s->y_stride + i], CANARY);
    return y;
}

/* ref against double: each of the K / n + 3 roundings on the way of a term is at most 2^-24 of the
 * sum of absolute values. */
static void check_product(const shape *s, const float *y) {
    for (int32_t t = 0; t < s->T; t++)
        for (int32_t n = 0; n < s->N; n++) {
            double sum = s->bias ? s->bias[n] : 0, magnitude = fabs(sum);
            for (int32_t k = 0; k < s->K; k++) {
                const double term =
                    (double)s->x[(ptrdiff_t)t * s->x_stride + k] * source_at(&s->src, n, k);
                sum += term;
                magnitude += fabs(term);
            }
            const double bound = (s->K + 4) * 0x1p-24 * magnitude + (s->K + 4) * 0x1p-149;
            CU_ASSERT(fabs(y[(ptrdiff_t)t * s->y_stride + n] - sum) <= bound);
        }
}

static void compare_product(env *e, const shape *s) {
    float *want = product(&e->dev[0], s, s->T);
    check_product(s, want);
    for (int i = 1; i < e->n; i++) {
        const int32_t step = rng() % 3 ? s->T : between(1, s->T);
        float *y = product(&e->dev[i], s, step);
        const bool ok = same(y, want, (size_t)s->T * (size_t)s->y_stride);
        if (!ok)
            fprintf(stderr, "%s: T %d N %d K %d %s, %d segments, %d rows a call\n", e->name[i],
                    s->T, s->N, s->K, sp_dtype_name(s->src.dtype), s->seg.n, step);
        CU_ASSERT(ok);
        free(y);
    }
    free(want);
}

static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};

static void every_backend_multiplies_like_ref(void) {
    env e = env_open(11);
    for (int round = 0; round < ROUNDS(240); round++) {
        const int32_t T = PICK(1, 1, 2, 3, 4, 5, 7, 12, 13, 24, 37, 48, 49, 70);
        const int32_t N = between(1, 90), K = T > 12 ? between(1, 70) : between(1, 300);
        shape s = any_shape(T, N, K, dtypes[round % 3]);
        compare_product(&e, &s);
        shape_free(&s);
    }
    env_close(&e);
}

static void a_whole_k_of_equal_segments_and_many_tiles_multiplies_like_ref(void) {
    env e = env_open(12);
    for (int i = 0; i < 3; i++) {
        shape s = any_shape(PICK(1, 6, 9), 16 * 13 + 1, 256, dtypes[i]);
        s.seg = sp_segments_of(256, 1);
        compare_product(&e, &s);
        shape_free(&s);
    }
    /* Heads as units: 12 of 8 make segments of 1 and 2 heads, 5 of 8 leave three empty. */
    for (int32_t heads = 5; heads <= 12; heads += 7) {
        shape s = any_shape(3, 40, heads * 8, SP_DTYPE_BF16);
        s.seg = sp_segments_of(heads, 8);
        compare_product(&e, &s);
        shape_free(&s);
    }
    env_close(&e);
}

static void ranks_of_a_tensor_group_continue_the_same_tree(void) {
    env e = env_open(13);
    enum {
        T = 3,
        N = 20,
        K = 77
    };
    shape s = any_shape(T, N, K, SP_DTYPE_BF16);
    free(s.bias);
    s.bias = NULL;
    s.seg = sp_segments_of(K, 1);
    float *whole = product(&e.dev[0], &s, T);
    for (int i = 0; i < e.n; i++)
        for (int tp = 2; tp <= 8; tp *= 2) {
            float *part[8];
            for (int r = 0; r < tp; r++) {
                shape p = s;
                int32_t first;
                p.seg = sp_segments_slice(s.seg, tp, r, &first);
                p.K = p.src.cols = p.seg.edge[p.seg.n];
                p.x = s.x + first;
                p.src.data = (uint16_t *)s.src.data + first;
                part[r] = product(&e.dev[i], &p, T);
            }
            for (int left = tp; left > 1; left /= 2)
                for (int r = 0; r < left / 2; r++)
                    for (int k = 0; k < T * s.y_stride; k++) {
                        const float sum = part[2 * r][k] + part[2 * r + 1][k];
                        part[2 * r + 1][k] = 0;
                        part[r][k] = sum;
                    }
            for (int t = 0; t < T; t++)
                CU_ASSERT(same(part[0] + t * s.y_stride, whole + t * s.y_stride, N));
            for (int r = 0; r < tp; r++) free(part[r]);
        }
    free(whole);
    shape_free(&s);
    env_close(&e);
}

static void embedding_rows_come_back_exactly_from_a_packed_weight(void) {
    env e = env_open(14);
    for (int round = 0; round < ROUNDS(60); round++) {
        const int32_t V = between(1, 100), E = between(1, 200), T = between(1, 9);
        source src = any_source(V, E, dtypes[round % 3]);
        const sp_segments seg = any_segments(E);
        int32_t ids[9];
        for (int32_t t = 0; t < T; t++) ids[t] = t ? between(0, V - 1) : V - 1;
        for (int i = 0; i < e.n; i++) {
            sp_weight *w = pack(&e.dev[i], &src, &seg);
            float *y = values((size_t)T * (size_t)(E + 2));
            e.dev[i].ops->embed(&e.dev[i], mat(y, T, E, E + 2), w, ids);
            bool ok = true;
            for (int32_t t = 0; t < T; t++)
                for (int32_t k = 0; k < E; k++) {
                    const float want = source_at(&src, ids[t], k);
                    ok = ok && same(&y[t * (E + 2) + k], &want, 1);
                }
            CU_ASSERT(ok);
            e.dev[i].ops->weight_free(&e.dev[i], w);
            free(y);
        }
        free(src.data);
    }
    env_close(&e);
}

static void an_id_outside_the_vocabulary_is_a_fault_that_stays(void) {
    env e = env_open(15);
    source src = any_source(10, 8, SP_DTYPE_F32);
    const sp_segments seg = sp_segments_of(8, 1);
    const int32_t ids[] = {3, 10}, good[] = {1};
    for (int i = 0; i < e.n; i++) {
        float y[16] = {0};
        sp_err err = {0};
        sp_dev *dev = &e.dev[i];
        sp_weight *w = pack(dev, &src, &seg);
        dev->ops->embed(dev, mat(y, 2, 8, 8), w, ids);
        CU_ASSERT_EQUAL(y[0], 0);
        dev->ops->embed(dev, mat(y, 1, 8, 8), w, good);
        CU_ASSERT_EQUAL(dev->ops->poll(dev, dev->ops->submit(dev), 0, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "token id 10"));
        dev->ops->weight_free(dev, w);
    }
    free(src.data);
    env_close(&e);
}

typedef struct norm_case {
    int32_t T, E;
    float *x, *partial, *bias, *weight;
} norm_case;

/* y and then the new x, one after the other. */
static float *norm(sp_dev *dev, const norm_case *c, int32_t step) {
    const size_t n = (size_t)c->T * (size_t)c->E;
    float *out = malloc(2 * n * sizeof *out);
    memcpy(out + n, c->x, n * sizeof *out);
    for (int32_t t = 0; t < c->T; t += step) {
        const int32_t rows = c->T - t < step ? c->T - t : step;
        const size_t at = (size_t)t * (size_t)c->E;
        const sp_mat p = mat(c->partial ? c->partial + at : NULL, rows, c->E, c->E);
        dev->ops->add_rmsnorm(dev, mat(out + at, rows, c->E, c->E),
                              mat(out + n + at, rows, c->E, c->E), p, c->bias, c->weight, 1e-5f);
    }
    return out;
}

static void check_norm(const norm_case *c, const float *out) {
    const float *x = out + (ptrdiff_t)c->T * c->E;
    for (int32_t t = 0; t < c->T; t++) {
        double sum = 0;
        for (int32_t i = 0; i < c->E; i++) sum += (double)x[t * c->E + i] * x[t * c->E + i];
        const double scale = 1 / sqrt(sum / c->E + 1e-5);
        for (int32_t i = 0; i < c->E; i++) {
            const double want = x[t * c->E + i] * scale * c->weight[i];
            CU_ASSERT(fabs(out[t * c->E + i] - want) <= (c->E + 8) * 0x1p-24 * fabs(want) + 1e-40);
        }
    }
}

static void every_backend_normalises_like_ref(void) {
    env e = env_open(16);
    for (int round = 0; round < ROUNDS(60); round++) {
        norm_case c = {.T = between(1, 20), .E = round % 5 ? between(1, 300) : 2048};
        const size_t n = (size_t)c.T * (size_t)c.E;
        c.x = values(n);
        c.weight = values((size_t)c.E);
        c.partial = round % 3 ? values(n) : NULL;
        c.bias = round % 2 ? values((size_t)c.E) : NULL;
        float *want = norm(&e.dev[0], &c, c.T);
        check_norm(&c, want);
        for (int i = 1; i < e.n; i++) {
            float *out = norm(&e.dev[i], &c, between(1, c.T));
            CU_ASSERT(same(out, want, 2 * n));
            free(out);
        }
        free(want);
        free(c.x);
        free(c.weight);
        free(c.partial);
        free(c.bias);
    }
    env_close(&e);
}

static void norm_of_zeros_is_zero_and_adds_nothing_without_a_partial(void) {
    env e = env_open(17);
    for (int i = 0; i < e.n; i++) {
        float x[20] = {0}, y[20], w[20], bias[20];
        for (int k = 0; k < 20; k++) w[k] = bias[k] = 1;
        e.dev[i].ops->add_rmsnorm(&e.dev[i], mat(y, 1, 20, 20), mat(x, 1, 20, 20), (sp_mat){0},
                                  bias, w, 1e-5f);
        for (int k = 0; k < 20; k++) CU_ASSERT(y[k] == 0 && x[k] == 0);
    }
    env_close(&e);
}

static void adding_alone_gives_the_x_that_add_rmsnorm_leaves(void) {
    env e = env_open(22);
    for (int round = 0; round < ROUNDS(60); round++) {
        norm_case c = {.T = between(1, 20), .E = round % 5 ? between(1, 300) : 2048};
        const int32_t stride = c.E + between(0, 3);
        const size_t n = (size_t)c.T * (size_t)c.E, all = (size_t)c.T * (size_t)stride;
        c.x = values(n);
        c.weight = values((size_t)c.E);
        c.partial = values(n);
        c.bias = round % 2 ? values((size_t)c.E) : NULL;
        float *want = norm(&e.dev[0], &c, c.T), *x = malloc(all * sizeof *x);
        for (int i = 0; i < e.n; i++) {
            for (size_t k = 0; k < all; k++) x[k] = CANARY;
            for (int32_t t = 0; t < c.T; t++)
                memcpy(x + t * stride, c.x + t * c.E, (size_t)c.E * sizeof *x);
            e.dev[i].ops->add(&e.dev[i], mat(x, c.T, c.E, stride), mat(c.partial, c.T, c.E, c.E),
                              c.bias);
            for (int32_t t = 0; t < c.T; t++) {
                CU_ASSERT(same(x + t * stride, want + n + t * c.E, (size_t)c.E));
                for (int32_t k = c.E; k < stride; k++) CU_ASSERT_EQUAL(x[t * stride + k], CANARY);
            }
        }
        free(x);
        free(want);
        free(c.x);
        free(c.weight);
        free(c.partial);
        free(c.bias);
    }
    env_close(&e);
}

static void every_backend_activates_like_ref(void) {
    env e = env_open(18);
    for (int round = 0; round < ROUNDS(60); round++) {
        const int32_t T = between(1, 12), F = round % 6 ? between(1, 200) : 4099;
        const int32_t stride = 2 * F + between(0, 3);
        float *x = values((size_t)T * (size_t)stride), *want = malloc((size_t)T * (size_t)F * 4);
        for (int32_t i = 0; i < T * stride; i += 3) x[i] *= 20;
        e.dev[0].ops->act_mul(&e.dev[0], mat(want, T, F, F), mat(x, T, 2 * F, stride),
                              (sp_act)(round % 3));
        for (int i = 1; i < e.n; i++) {
            float *y = malloc((size_t)T * (size_t)F * 4);
            e.dev[i].ops->act_mul(&e.dev[i], mat(y, T, F, F), mat(x, T, 2 * F, stride),
                                  (sp_act)(round % 3));
            CU_ASSERT(same(y, want, (size_t)T * (size_t)F));
            free(y);
        }
        free(want);
        free(x);
    }
    env_close(&e);
}

static void rows_are_gathered_in_the_order_asked(void) {
    env e = env_open(19);
    float x[4 * 7];
    for (int i = 0; i < 28; i++) x[i] = (float)i;
    const int32_t rows[] = {3, 0, 3};
    for (int i = 0; i < e.n; i++) {
        float y[3 * 5];
        e.dev[i].ops->gather_rows(&e.dev[i], mat(y, 3, 5, 5), mat(x, 4, 5, 7), rows);
        CU_ASSERT(y[0] == 21 && y[4] == 25 && y[5] == 0 && y[10] == 21 && y[14] == 25);
    }
    env_close(&e);
}

static void nothing_to_do_is_fine(void) {
    env e = env_open(20);
    source src = any_source(5, 8, SP_DTYPE_BF16);
    const sp_segments seg = sp_segments_of(8, 1);
    for (int i = 0; i < e.n; i++) {
        sp_dev *dev = &e.dev[i];
        float x[8] = {0}, y[8];
        sp_weight *w = pack(dev, &src, &seg);
        dev->ops->gemm(dev, mat(y, 0, 5, 5), mat(x, 0, 8, 8), w, NULL);
        dev->ops->embed(dev, mat(y, 0, 8, 8), w, NULL);
        dev->ops->act_mul(dev, mat(y, 0, 4, 4), mat(x, 0, 8, 8), SP_ACT_SILU);
        expect_no_fault(dev);
        dev->ops->weight_free(dev, w);
        dev->ops->weight_free(dev, NULL);
    }
    free(src.data);
    env_close(&e);
}

static void memory_is_zeroed_and_aligned_and_its_lack_is_reported(void) {
    env e = env_open(21);
    const size_t sizes[] = {1, 100, (size_t)3 << 20};
    for (int i = 0; i < e.n; i++) {
        sp_dev *dev = &e.dev[i];
        for (size_t k = 0; k < SP_LEN(sizes); k++) {
            unsigned char *p = dev->ops->alloc(dev, sizes[k]);
            CU_ASSERT_PTR_NOT_NULL_FATAL(p);
            CU_ASSERT((uintptr_t)p % 64 == 0 && p[0] == 0 && p[sizes[k] - 1] == 0);
            p[sizes[k] - 1] = 1;
            dev->ops->free(dev, p, sizes[k]);
        }
        source src = any_source(5, 8, SP_DTYPE_F32);
        const sp_segments seg = sp_segments_of(8, 1);
        const sp_weight_part part = {src.data, src.dtype, 5, 8, src.stride};
        int failures = 0;
        for (int n = 1;; n++) {
            sp_weight *w = NULL;
            sp_err err = {0};
            sp_mem_fail_at(n);
            const sp_status st = dev->ops->pack(dev, &w, &part, 1, &seg, &err);
            sp_mem_fail_at(0);
            if (st == SP_OK) {
                dev->ops->weight_free(dev, w);
                break;
            }
            CU_ASSERT_EQUAL(st, SP_E_NOMEM);
            CU_ASSERT_PTR_NULL(w);
            failures++;
        }
        CU_ASSERT(failures >= 1);
        CU_ASSERT(dev->ops->packed_bytes(5, &seg, SP_DTYPE_F32) >= 5 * 8 * 4);
        free(src.data);
    }
    env_close(&e);
}

SP_TEST_MAIN("kernels/ops", SP_TEST(every_backend_multiplies_like_ref),
             SP_TEST(a_whole_k_of_equal_segments_and_many_tiles_multiplies_like_ref),
             SP_TEST(ranks_of_a_tensor_group_continue_the_same_tree),
             SP_TEST(embedding_rows_come_back_exactly_from_a_packed_weight),
             SP_TEST(an_id_outside_the_vocabulary_is_a_fault_that_stays),
             SP_TEST(every_backend_normalises_like_ref),
             SP_TEST(norm_of_zeros_is_zero_and_adds_nothing_without_a_partial),
             SP_TEST(adding_alone_gives_the_x_that_add_rmsnorm_leaves),
             SP_TEST(every_backend_activates_like_ref),
             SP_TEST(rows_are_gathered_in_the_order_asked), SP_TEST(nothing_to_do_is_fine),
             SP_TEST(memory_is_zeroed_and_aligned_and_its_lack_is_reported))
