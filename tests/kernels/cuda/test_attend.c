// Attention on the emulated device: ref's bits with a cache of f32, a plain model's with f16 and bf16,
// and the same bits whatever the chunks, batches, blocks, tiles and launch shapes.
#include "tests/kernels/cuda/attend_env.h"
#include "tests/kernels/cuda/terms.h"

static const cu_attend_shape shapes[] = {
    {16, true, true},   {16, false, true},  {16, true, false},
    {16, false, false}, {64, false, false}, {64, true, true},
};

static float kv_at(const result *r, int32_t s, int32_t head, int32_t pos, bool value, int32_t d) {
    const unsigned char *row = sp_kv_k_row(&r->kv, r->tables + r->table0[s], head, pos);
    if (value) row += sp_kv_v_offset(&r->kv);
    if (r->kv.dtype == SP_DTYPE_F32) return ((const float *)(const void *)row)[d];
    const uint16_t h = ((const uint16_t *)(const void *)row)[d];
    return r->kv.dtype == SP_DTYPE_F16 ? sp_f32_of_f16(h) : sp_f32_of_bf16(h);
}

/* One row of the tensor-core path in plain C, in the order that the kernel's head states; a sum's
 * products come one after another, as the emulated tensor core has them. */
typedef struct plain {
    float max, sum, out[SP_HEAD_DIM_MAX];
} plain;

/* Products of q's first terms over 16 columns, of its second ones, the next 16 columns. */
static float plain_score(const model *m, const result *r, int32_t s, const terms *q, int32_t head,
                         int32_t pos) {
    float sum = 0;
    for (int32_t d0 = 0; d0 < m->D; d0 += 16)
        for (int term = 0; term < 2; term++)
            for (int32_t d = d0; d < d0 + 16 && d < m->D; d++)
                sum += (term ? q[d].lo : q[d].hi) * kv_at(r, s, head, pos, false, d);
    return sum;
}

/* The same for P over steps of 16 absolute positions. */
static void plain_values(const model *m, const result *r, int32_t s, const float *p, int32_t head,
                         int32_t lo, int32_t hi, float *out) {
    for (int32_t step = lo / 16 * 16; step < hi; step += 16)
        for (int term = 0; term < 2; term++)
            for (int32_t pos = step < lo ? lo : step; pos < step + 16 && pos < hi; pos++) {
                const terms x = terms_of(p[pos - lo], m->kv);
                for (int32_t d = 0; d < m->D; d++)
                    out[d] += (term ? x.lo : x.hi) * kv_at(r, s, head, pos, true, d);
            }
}

static void plain_split(const model *m, const result *r, int32_t s, const float *q, int32_t head,
                        int32_t lo, int32_t hi, plain *p) {
    float v[SP_ATTN_SPLIT], lanes[SP_LANES] = {0};
    terms x[SP_HEAD_DIM_MAX];
    *p = (plain){.max = -INFINITY};
    for (int32_t d = 0; d < m->D; d++) x[d] = terms_of(q[d], m->kv);
    for (int32_t pos = lo; pos < hi; pos++) {
        v[pos - lo] = plain_score(m, r, s, x, head, pos) * m->scale;
        if (v[pos - lo] > p->max) p->max = v[pos - lo];
    }
    for (int32_t pos = lo; pos < hi; pos++) {
        v[pos - lo] = sp_expf(v[pos - lo] - p->max);
        lanes[pos % SP_LANES] += v[pos - lo];
    }
    plain_values(m, r, s, v, head, lo, hi, p->out);
    for (int n = SP_LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    p->sum = lanes[0];
}

static void plain_row(const model *m, const result *r, int32_t s, const float *q, int32_t head,
                      int32_t pos, float *out) {
    plain all = {0}, one;
    const int32_t hi = pos + 1, from = m->window && hi > m->window ? hi - m->window : 0;
    for (int32_t lo = from; lo < hi;) {
        const int32_t edge = (lo / SP_ATTN_SPLIT + 1) * SP_ATTN_SPLIT, end = edge < hi ? edge : hi;
        plain_split(m, r, s, q, head, lo, end, lo == from ? &all : &one);
        if (lo != from) {
            const float max = one.max > all.max ? one.max : all.max;
            const float a = sp_expf(all.max - max), b = sp_expf(one.max - max);
            all.max = max;
            all.sum = sp_fmaf(all.sum, a, one.sum * b);
            for (int32_t d = 0; d < m->D; d++) all.out[d] = sp_fmaf(all.out[d], a, one.out[d] * b);
        }
        lo = end;
    }
    for (int32_t d = 0; d < m->D; d++) out[d] = all.out[d] / all.sum;
}

/* The mathematics, on what the cache holds; the bound of attend.cu's head in *bound. */
static void exact_row(const model *m, const result *r, int32_t s, const float *q, int32_t head,
                      int32_t pos, double *out, double *bound) {
    const int32_t hi = pos + 1, lo = m->window && hi > m->window ? hi - m->window : 0;
    double *p = malloc((size_t)hi * sizeof *p), max = -INFINITY, sum = 0, size = 0, scores = 0;
    for (int32_t i = lo; i < hi; i++) {
        double all = 0;
        p[i] = 0;
        for (int32_t d = 0; d < m->D; d++) {
            const double k = (double)kv_at(r, s, head, i, false, d);
            p[i] += (double)q[d] * k;
            all += (fabs((double)q[d]) + 0.125) * fabs(k);
        }
        p[i] *= (double)m->scale;
        max = p[i] > max ? p[i] : max;
        scores = all > scores ? all : scores;
    }
    for (int32_t d = 0; d < m->D; d++) out[d] = 0;
    for (int32_t i = lo; i < hi; i++) {
        p[i] = exp(p[i] - max);
        sum += p[i];
        for (int32_t d = 0; d < m->D; d++) {
            const double v = (double)kv_at(r, s, head, i, true, d);
            out[d] += p[i] * v;
            size = fabs(v) > size ? fabs(v) : size;
        }
    }
    for (int32_t d = 0; d < m->D; d++) out[d] /= sum;
    free(p);
    const double n = 2 * (m->D > SP_ATTN_SPLIT ? m->D : SP_ATTN_SPLIT) + 16;
    const double splits = hi / SP_ATTN_SPLIT + 1 - lo / SP_ATTN_SPLIT;
    *bound =
        size * ((2 * scores * (double)m->scale + 1) * (0x1p-17 + n * 0x1p-23) + splits * 0x1p-20);
}

static double worst; /* of the bound, over a run */

/* Every output against the plain model's bits and against doubles. `truth` has ref's cache and q. */
static bool is_right(const model *m, const text *t, const result *truth, const result *got) {
    if (m->kv == SP_DTYPE_F32) return same_result(m, t, truth, got);
    for (int32_t s = 0; s < t->n; s++)
        for (int32_t i = 0; i < (int32_t)rows_of(t, s) * m->H; i++) {
            const int32_t h = i % m->H, pos = t->from[s] + i / m->H, head = h / (m->H / m->K);
            const ptrdiff_t at = (ptrdiff_t)i * m->D;
            float want[SP_HEAD_DIM_MAX];
            double exact[SP_HEAD_DIM_MAX], bound;
            plain_row(m, truth, s, truth->q[s] + at, head, pos, want);
            exact_row(m, truth, s, truth->q[s] + at, head, pos, exact, &bound);
            if (!same(got->out[s] + at, want, (size_t)m->D)) return false;
            for (int32_t d = 0; d < m->D; d++) {
                const double off = fabs((double)got->out[s][at + d] - exact[d]);
                worst = off / bound > worst ? off / bound : worst;
                if (!(off <= bound)) return false;
            }
        }
    return true;
}

static void compare(const model *m, const text *t, const way *ways, int32_t n) {
    result truth = ref_run(m, t);
    for (int32_t i = 0; i < n; i++) {
        result got = cuda_run(m, t, &ways[i]);
        const bool ok = is_right(m, t, &truth, &got);
        if (!ok) say("wrong", m, &ways[i], t);
        CU_ASSERT(ok);
        result_free(&got, t);
    }
    result_free(&truth, t);
}

static void random_rounds(const sp_dtype *types, int32_t n_types, int32_t rounds) {
    for (int32_t round = 0; round < ROUNDS(rounds); round++) {
        emu_fresh((cu_emu_order)(round % 3), CU_EMU_EAGER);
        const int32_t K = PICK(1, 1, 2), D = PICK(8, 16, 20, 32, 64, 80, 128);
        model m = model_make(K * PICK(1, 2, 4, 7), K, D, PICK(0, 0, 1, 7, 100, 300),
                             types[round % n_types], D / 2, rng() % 2, 620);
        const cu_attend_shape shape = shapes[rng() % SP_LEN(shapes)];
        const way ways[] = {{PICK(8, 16, 24), PICK(1, 5, 100), true, &shape, 0},
                            {PICK(16, 128), 100, rng() % 2, NULL, PICK(0, 0, 2) * 2}};
        text t = {0};
        for (int32_t s = between(1, 3); s > 0; s--)
            text_add(&t, &m, between(1, PICK(60, 300, 610)), between(1, 9));
        compare(&m, &t, ways, 2);
        text_free(&t);
        model_free(&m);
    }
}

static void a_cache_of_f32_gives_ref_s_bits(void) {
    EMU_NEEDS_FIBRES();
    rng_state = 61;
    const sp_dtype types[] = {SP_DTYPE_F32};
    random_rounds(types, 1, 14);
}

static void tensor_cores_give_the_stated_order_and_bound(void) {
    EMU_NEEDS_FIBRES();
    rng_state = 62;
    worst = 0;
    const sp_dtype types[] = {SP_DTYPE_F16, SP_DTYPE_BF16};
    random_rounds(types, 2, 12);
    printf("largest error %.4f of the bound\n", worst);
}

static const sp_dtype all_types[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};

static void expect_same(const model *m, const text *t, const result *want, const way *ways,
                        int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        result got = cuda_run(m, t, &ways[i]);
        const bool ok = same_result(m, t, want, &got);
        if (!ok) say("other bits", m, &ways[i], t);
        CU_ASSERT(ok);
        result_free(&got, t);
    }
}

static void chunks_batches_blocks_and_shapes_change_no_bit(void) {
    EMU_NEEDS_FIBRES();
    for (size_t type = 0; type < SP_LEN(all_types); type++) {
        rng_state = 63;
        emu_fresh((cu_emu_order)type, CU_EMU_EAGER);
        model m = model_make(6, 2, 16, type == 1 ? 290 : 0, all_types[type], 16, false, 620);
        text t = {0};
        text_add(&t, &m, 18, 18);
        text_add(&t, &m, 530, 8);
        for (int32_t s = 2; s < SEQS_MAX; s++)
            text_add(&t, &m, 1 + 37 * s * (s % 2), between(1, 2));
        const way whole = {16, 1000, true, NULL, 0};
        result want = cuda_run(&m, &t, &whole);
        const way ways[] = {
            {16, 1, true, NULL, 0},          {8, 7, true, NULL, 0},
            {128, 7, false, NULL, 0},        {16, 1, false, &shapes[3], 0},
            {16, 7, true, &shapes[0], 0},    {8, 1000, true, &shapes[1], 2 * 4},
            {8, 7, true, &shapes[2], 0},     {16, 7, false, &shapes[4], 0},
            {16, 1000, true, &shapes[5], 0},
        };
        expect_same(&m, &t, &want, ways, SP_LEN(ways));
        result_free(&want, &t);
        text_free(&t);
        model_free(&m);
    }
}

/* Longer than any number of rows that changes cu_attend()'s mind, with tiles of two sequences. */
static void a_prompt_of_more_than_256_rows_has_the_bits_of_its_tokens(void) {
    EMU_NEEDS_FIBRES();
    for (size_t type = 0; type < SP_LEN(all_types); type++) {
        rng_state = 64;
        emu_fresh((cu_emu_order)type, CU_EMU_EAGER);
        model m = model_make(2, 1, 8, 0, all_types[type], 8, true, 400);
        text t = {0};
        text_add(&t, &m, 261, 261);
        text_add(&t, &m, 30, 30);
        const way whole = {16, 1000, true, NULL, 0}, one = {16, 1, true, NULL, 0};
        CU_ASSERT_EQUAL(cu_attend_shape_of(291, 260, 8).rows, 64);
        result want = cuda_run(&m, &t, &whole);
        expect_same(&m, &t, &want, &one, 1);
        result_free(&want, &t);
        text_free(&t);
        model_free(&m);
    }
}

/* A workstation's card: tiles of 64 rows do not fit, and nobody is refused. */
static void a_card_with_little_shared_memory_has_the_same_bits(void) {
    EMU_NEEDS_FIBRES();
    cu_emu_config c;
    rng_state = 68;
    model m = model_make(2, 1, 128, 0, SP_DTYPE_BF16, 128, false, 300);
    text t = {0};
    text_add(&t, &m, 257, 257);
    const way y = {16, 1000, true, NULL, 0};
    result of[2];
    for (int i = 0; i < 2; i++) {
        emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
        cu_emu_get_config(&c);
        c.arch = i ? 90 : 89;
        cu_emu_configure(&c);
        cu_emu_reset();
        of[i] = cuda_run(&m, &t, &y);
    }
    CU_ASSERT(same_result(&m, &t, &of[0], &of[1]));
    for (int i = 0; i < 2; i++) result_free(&of[i], &t);
    text_free(&t);
    model_free(&m);
}

/* A V that is not finite belongs to who sees it; its tile's other rows are multiplied without it. */
static void infinities_stay_with_the_rows_that_see_them(void) {
    EMU_NEEDS_FIBRES();
    for (int32_t round = 0; round < 6; round++) {
        rng_state = 65;
        emu_fresh((cu_emu_order)(round % 3), CU_EMU_EAGER);
        const int32_t window = round < 3 ? 0 : 9, bad[] = {21, 40, 47};
        model m = model_make(4, 2, 32, window, all_types[round % 3], 32, false, 100);
        text t = {0};
        text_add(&t, &m, 70, 70);
        for (int32_t i = 0; i < 3; i++) /* one head's V: an infinity, a NaN, too large for f16 */
            t.qkv[0][bad[i] * width_of(&m) + (m.H + m.K) * m.D + 5 * i] = i == 0   ? INFINITY
                                                                          : i == 1 ? NAN
                                                                                   : -3e38f;
        const way whole = {16, 1000, true, &shapes[round % 2 ? 3 : 4], 0},
                  one = {16, 1, true, NULL, 0};
        result want = cuda_run(&m, &t, &whole), got = cuda_run(&m, &t, &one);
        CU_ASSERT(same_result(&m, &t, &want, &got));
        for (int32_t pos = 0; pos < t.length[0]; pos++)
            for (int32_t i = 0; i < m.H * m.D; i++) {
                const bool sees = pos >= bad[0] && (!window || pos < bad[2] + window);
                const float x = got.out[0][pos * m.H * m.D + i];
                if (!sees || i >= m.H / m.K * m.D) CU_ASSERT_FATAL(isfinite(x));
            }
        CU_ASSERT(!isfinite(want.out[0][(bad[0] + 1) * m.H * m.D]));
        result_free(&want, &t);
        result_free(&got, &t);
        text_free(&t);
        model_free(&m);
    }
}

static void heads_of_every_size_and_groups_wider_than_a_tile_are_right(void) {
    EMU_NEEDS_FIBRES();
    static const struct {
        int32_t H, K, D, rows;
    } sizes[] = {{1, 1, 2, 3},   {3, 3, 5, 3},   {20, 1, 24, 2},
                 {2, 1, 200, 2}, {2, 1, 512, 3}, {2, 2, 256, 1}};
    for (size_t i = 0; i < SP_LEN(sizes) * SP_LEN(all_types); i++) {
        rng_state = 66 + i;
        emu_fresh((cu_emu_order)(i % 3), CU_EMU_EAGER);
        const int32_t D = sizes[i / 3].D, dims = D < 64 ? D / 2 * 2 : 64;
        if (D > 128 && i % 3 != i / 3 % 3) continue; /* one type each: they are slow here */
        model m =
            model_make(sizes[i / 3].H, sizes[i / 3].K, D, 0, all_types[i % 3], dims, false, 300);
        text t = {0};
        text_add(&t, &m, 270, sizes[i / 3].rows);
        text_add(&t, &m, 4, 4);
        const way ways[] = {{16, 100, true, NULL, 0}, {16, 100, true, &shapes[3], 0}};
        compare(&m, &t, ways, D < 100 ? 2 : 1);
        text_free(&t);
        model_free(&m);
    }
}

/* Steps that a graph has padded: rows without a position. */
static void a_padding_row_gives_zeros_and_disturbs_nobody(void) {
    EMU_NEEDS_FIBRES();
    for (size_t i = 0; i < SP_LEN(all_types) * SP_LEN(shapes); i++) {
        rng_state = 67;
        emu_fresh(CU_EMU_BACKWARD, CU_EMU_EAGER);
        model m = model_make(2, 1, 16, 0, all_types[i % 3], 16, false, 300);
        text t = {0};
        text_add(&t, &m, 280, 280);
        const way y = {16, 1000, true, &shapes[i / 3], 0};
        result want = ref_run(&m, &t), r = result_make(&m, &t, 16);
        memcpy(r.tables, want.tables, (size_t)r.n_table * sizeof *r.tables);
        memcpy(r.memory, want.memory, r.bytes);
        there d = there_make(&m, &r, 0);
        const int32_t pos[] = {278, 279, -1, -1}, table[4] = {0}, HD = m.H * m.D, ld = width_of(&m);
        float qkv[4 * 64], out[4 * 33];
        for (int32_t j = 0; j < 4 * 64; j++) qkv[j] = NAN;
        for (int32_t j = 0; j < 2; j++)
            memcpy(qkv + j * ld, want.q[0] + (278 + j) * HD, (size_t)HD * sizeof(float));
        cu_rows rows = {to_device(pos, sizeof pos), to_device(table, sizeof table), d.blocks, 4,
                        279};
        float *there_q = to_device(qkv, sizeof qkv), *there_out = to_device(NULL, sizeof out);
        EMU_OK(attend_there(&m, &y, &d, there_out, there_q, ld, &rows));
        EMU_OK(cudaMemcpy(out, there_out, sizeof out, cudaMemcpyDeviceToHost));
        for (int32_t j = 0; j < 2 * (HD + 1); j++)
            if (j % (HD + 1) < HD) CU_ASSERT_EQUAL(out[2 * (HD + 1) + j], 0.0f);
        for (int32_t j = 0; j < 2 && m.kv == SP_DTYPE_F32; j++)
            CU_ASSERT(same(out + j * (HD + 1), want.out[0] + (278 + j) * HD, (size_t)HD));
        for (int32_t j = 0; j < 2 * (HD + 1) - 1; j++)
            if (j != HD) CU_ASSERT(isfinite(out[j]));
        result_free(&want, &t);
        result_free(&r, &t);
        text_free(&t);
        model_free(&m);
    }
}

static void what_there_is_no_kernel_for_is_refused(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    const cu_rows rows = {NULL, NULL, NULL, 1, 0}, none = {NULL, NULL, NULL, 0, 0};
    const sp_kv_view good = {NULL, 512, 0, 8, 2, 8, SP_DTYPE_BF16};
    sp_kv_view kv = good;
    kv.head_dim = SP_HEAD_DIM_MAX + 1;
    CU_ASSERT_EQUAL(cu_attend(NULL, NULL, 8, NULL, 8, 2, 1, 0, &kv, &rows, NULL),
                    cudaErrorInvalidValue);
    kv = good;
    kv.dtype = SP_DTYPE_F8_E4M3;
    CU_ASSERT_EQUAL(cu_attend(NULL, NULL, 8, NULL, 8, 2, 1, 0, &kv, &rows, NULL),
                    cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_attend(NULL, NULL, 8, NULL, 8, 3, 1, 0, &good, &rows, NULL),
                    cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_attend(NULL, NULL, 8, NULL, 8, 2, 1, -1, &good, &rows, NULL),
                    cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_attend(NULL, NULL, 8, NULL, 8, 2, 1, 0, &good, &none, NULL), cudaSuccess);
    CU_ASSERT_EQUAL(cu_emu_launches(), 0);
}

static void scratch_is_bounded_and_enough_for_every_shape_it_is_asked_for(void) {
    for (int32_t tokens = 1; tokens < 3000; tokens += tokens / 2 + 1)
        for (int32_t positions = 1; positions < 200000; positions += positions / 2 + 7) {
            const size_t have = cu_attend_scratch(tokens, 32, 128, positions);
            CU_ASSERT(have <= (size_t)4096 * 32 * 130 * 4);
            for (int32_t T = 1; T <= tokens; T++)
                for (int32_t n = 1; n <= positions; n += 255)
                    if (cu_attend_shape_of(T, n - 1, 128).split &&
                        cu_attend_shape_scratch(T, 32, 128, n - 1) > have)
                        CU_FAIL_FATAL("too little");
        }
}

SP_TEST_MAIN("kernels/cuda/attend", SP_TEST(a_cache_of_f32_gives_ref_s_bits),
             SP_TEST(tensor_cores_give_the_stated_order_and_bound),
             SP_TEST(chunks_batches_blocks_and_shapes_change_no_bit),
             SP_TEST(a_prompt_of_more_than_256_rows_has_the_bits_of_its_tokens),
             SP_TEST(a_card_with_little_shared_memory_has_the_same_bits),
             SP_TEST(infinities_stay_with_the_rows_that_see_them),
             SP_TEST(heads_of_every_size_and_groups_wider_than_a_tile_are_right),
             SP_TEST(a_padding_row_gives_zeros_and_disturbs_nobody),
             SP_TEST(what_there_is_no_kernel_for_is_refused),
             SP_TEST(scratch_is_bounded_and_enough_for_every_shape_it_is_asked_for))
