/* Matrix products on the device: ref's bits with f32 weights; with others the stated order and bound;
 * and the same bits for a row whatever stands beside it. */
#include "tests/kernels/cuda/rows_env.h"
#include "tests/kernels/cuda/terms.h"

static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};

typedef struct shape {
    int32_t T, N, K, ldx, ldy;
    sp_segments seg;
    source src;
    float *x, *bias;
} shape;

static shape any_shape(int32_t T, int32_t N, int32_t K, sp_dtype dtype) {
    shape s = {.T = T, .N = N, .K = K, .seg = any_segments(K), .src = any_source(N, K, dtype)};
    s.ldy = N + between(0, 1) * 3;
    s.ldx = K + between(0, 1) * 7;
    s.x = values((size_t)T * (size_t)s.ldx);
    s.bias = rng() % 2 ? values((size_t)N) : NULL;
    return s;
}

static void shape_free(shape *s) {
    free(s->src.data);
    free(s->x);
    free(s->bias);
}

typedef cudaError_t (*run_fn)(float *y, const float *x, const float *bias, const cu_weight *w,
                              const shape *s);

static cudaError_t run_gemm(float *y, const float *x, const float *bias, const cu_weight *w,
                            const shape *s) {
    const size_t need = cu_gemm_scratch(s->N, s->K, s->src.dtype, s->T);
    void *scratch = need ? upload(NULL, need) : NULL;
    return cu_gemm(NULL, y, s->ldy, x, s->ldx, w, bias, s->T, scratch);
}

static cudaError_t run_skinny(float *y, const float *x, const float *bias, const cu_weight *w,
                              const shape *s) {
    return cu_gemm_skinny(NULL, y, s->ldy, x, s->ldx, w, bias, s->T);
}

/* Owner: caller. */
static float *product(const shape *s, run_fn run) {
    const size_t n = (size_t)s->T * (size_t)s->ldy;
    float *fill = canaries(n), *dy = upload_floats(fill, n);
    const cu_weight w = device_weight(&s->src, &s->seg);
    const float *dx = upload_floats(s->x, (size_t)s->T * (size_t)s->ldx);
    CUDA_OK(run(dy, dx, upload_floats(s->bias, (size_t)s->N), &w, s));
    float *y = download(dy, n);
    expect_gaps_untouched(y, s->T, s->N, s->ldy);
    free(fill);
    return y;
}

static float *ref_product(sp_dev *ref, const shape *s) {
    float *y = canaries((size_t)s->T * (size_t)s->ldy);
    sp_weight *w = pack(ref, &s->src, &s->seg);
    ref->ops->gemm(ref, mat(y, s->T, s->N, s->ldy), mat(s->x, s->T, s->K, s->ldx), w, s->bias);
    expect_no_fault(ref);
    ref->ops->weight_free(ref, w);
    return y;
}

/* The products of one step of 16 k, one after another as the emulated tensor core has them: all with
 * the first term of x, then all with the second; f16 weights are two terms themselves. */
static float plain_step(const shape *s, int32_t t, int32_t n, int32_t k, int32_t end, float sum) {
    const bool f16 = s->src.dtype == SP_DTYPE_F16;
    for (int term = 0; term < (f16 ? 3 : 2); term++)
        for (int32_t i = k; i < k + 16 && i < end; i++) {
            const terms x = terms_of(s->x[(ptrdiff_t)t * s->ldx + i], SP_DTYPE_BF16);
            const float w = source_at(&s->src, n, i);
            const terms v = f16 ? terms_of(w, SP_DTYPE_BF16) : (terms){w, 0};
            sum += (term == 1 ? x.lo : x.hi) * (term == 2 ? v.lo : v.hi);
        }
    return sum;
}

/* What gemm.cu's head says, for weights of 2 bytes: the bits. */
static bool has_the_stated_order(const shape *s, const float *y) {
    for (int32_t t = 0; t < s->T; t++)
        for (int32_t n = 0; n < s->N; n++) {
            float part[SP_SEGMENTS] = {0};
            for (int i = 0; i < s->seg.n; i++) {
                for (int32_t k = s->seg.edge[i]; k < s->seg.edge[i + 1]; k += 16)
                    part[i] = plain_step(s, t, n, k, s->seg.edge[i + 1], part[i]);
            }
            for (int step = 1; step < s->seg.n; step *= 2)
                for (int i = 0; i + step < s->seg.n; i += 2 * step) part[i] += part[i + step];
            const float want = s->bias ? part[0] + s->bias[n] : part[0];
            if (!same(&y[(ptrdiff_t)t * s->ldy + n], &want, 1)) return false;
        }
    return true;
}

static double worst; /* of the bound, over a run */

/* Within (r + (terms K + 8) 2^-23) of the sum of absolute values; gemm.cu has the formula. */
static bool close_to_mathematics(const shape *s, const float *y) {
    const double r = s->src.dtype == SP_DTYPE_F32   ? 0
                     : s->src.dtype == SP_DTYPE_F16 ? 0x1p-17
                                                    : 0x1p-18;
    const int n_terms = s->src.dtype == SP_DTYPE_F32 ? 1 : s->src.dtype == SP_DTYPE_F16 ? 3 : 2;
    const double by = r + (n_terms * s->K + 8) * 0x1p-23;
    for (int32_t t = 0; t < s->T; t++)
        for (int32_t n = 0; n < s->N; n++) {
            double sum = s->bias ? s->bias[n] : 0, magnitude = fabs(sum);
            for (int32_t k = 0; k < s->K; k++) {
                const float x = s->x[(ptrdiff_t)t * s->ldx + k];
                const double term = (double)x * source_at(&s->src, n, k);
                sum += term;
                magnitude += fabs(term);
            }
            const double bound = by * magnitude + (s->K + 8) * 0x1p-134;
            const double off = fabs(y[(ptrdiff_t)t * s->ldy + n] - sum);
            if (off / bound > worst) worst = off / bound;
            if (!(off <= bound)) return false;
        }
    return true;
}

static void say(const char *what, const shape *s) {
    printf("%s: T %d N %d K %d ldx %d %s, %d segments%s: %s\n", what, s->T, s->N, s->K, s->ldx,
           sp_dtype_name(s->src.dtype), s->seg.n, s->bias ? ", bias" : "", cu_emu_last_report());
}

static void f32_weights_give_the_bits_of_ref(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(21);
    for (int round = 0; round < ROUNDS(36); round++) {
        device_fresh(round);
        const int32_t T = PICK(1, 1, 2, 7, 15, 16, 17, 33, 64, 65), N = between(1, 140);
        shape s = any_shape(T, N, between(1, T > 16 ? 100 : 260), SP_DTYPE_F32);
        float *y = product(&s, run_gemm), *want = ref_product(&ref, &s);
        const bool ok = same(y, want, (size_t)s.T * (size_t)s.ldy);
        if (!ok) say("f32", &s);
        CU_ASSERT(ok);
        free(y);
        free(want);
        shape_free(&s);
    }
    sp_dev_close(&ref);
}

static void narrow_weights_give_the_stated_order_and_bound(void) {
    NEEDS_FIBRES();
    rng_state = 22;
    worst = 0;
    for (int round = 0; round < ROUNDS(30); round++) {
        device_fresh(round);
        const int32_t T = PICK(1, 3, 8, 15, 16, 17, 40, 64, 65, 129), N = between(1, 150);
        shape s = any_shape(T, N, between(1, T > 16 ? 150 : 400), dtypes[1 + round % 2]);
        float *y = product(&s, run_gemm);
        const bool ok = has_the_stated_order(&s, y) && close_to_mathematics(&s, y);
        if (!ok) say("narrow", &s);
        CU_ASSERT(ok);
        free(y);
        shape_free(&s);
    }
    printf("  largest error %.2f of the bound\n", worst);
}

/* Neither type's range is a limit: what f16 cannot hold, the last numbers before infinity, and those
 * that are nearly nothing. */
static void activations_of_any_size_are_multiplied(void) {
    NEEDS_FIBRES();
    static const float sizes[] = {65519, 65520, 1e6f, 1e20f, 3e-30f, 0x1p-120f, 0x1.fffffep127f};
    rng_state = 31;
    for (size_t i = 0; i < SP_LEN(sizes) * 4; i++) {
        device_fresh((int)i);
        shape s = any_shape(i % 4 < 2 ? 3 : 18, 20, 40, dtypes[1 + i % 2]);
        s.seg = (sp_segments){2, {0, 25, 40}};
        for (int32_t t = 0; t < s.T; t++) /* one large element a row: no sum leaves f32 */
            for (int32_t k = 0; k < s.K; k++)
                s.x[t * s.ldx + k] *= k == (t * 7) % s.K ? 1.0f : 0x1p-60f;
        for (int32_t t = 0; t < s.T; t++)
            s.x[t * s.ldx + (t * 7) % s.K] = (t % 2 ? -1 : 1) * sizes[i / 4];
        if (sizes[i / 4] > 1e38f) /* times half at most */
            for (int32_t n = 0; n < s.N * (int32_t)s.src.stride; n++)
                ((uint16_t *)s.src.data)[n] &= s.src.dtype == SP_DTYPE_F16 ? 0xb7ff : 0xbeff;
        float *y = product(&s, run_gemm);
        bool ok = has_the_stated_order(&s, y) && close_to_mathematics(&s, y);
        for (int32_t t = 0; t < s.T && ok; t++)
            for (int32_t n = 0; n < s.N; n++) ok = ok && isfinite(y[t * s.ldy + n]);
        if (!ok) printf("%g: ", (double)sizes[i / 4]), say("size", &s);
        CU_ASSERT(ok);
        free(y);
        shape_free(&s);
    }
}

static void the_skinny_product_stays_within_the_bound(void) {
    NEEDS_FIBRES();
    rng_state = 23;
    for (int round = 0; round < ROUNDS(45); round++) {
        device_fresh(round);
        const int32_t T = PICK(1, 2, 4, 5, 8, 16), K = between(1, 900);
        shape s = any_shape(T, between(1, 100), K, dtypes[round % 3]);
        float *y = product(&s, run_skinny);
        const bool ok = close_to_mathematics(&s, y);
        if (!ok) say("skinny", &s);
        CU_ASSERT(ok);
        free(y);
        shape_free(&s);
    }
}

/* Rows of `all` at first, first + step, ... as a product of their own. */
static void compare_rows(const shape *all, const float *want, int32_t first, int32_t step,
                         int32_t n) {
    shape s = *all;
    s.T = n;
    s.ldx = s.K + 1;
    s.ldy = s.N + 2;
    s.x = values((size_t)n * (size_t)s.ldx);
    for (int32_t t = 0; t < n; t++)
        memcpy(s.x + (ptrdiff_t)t * s.ldx, all->x + (ptrdiff_t)(first + t * step) * all->ldx,
               (size_t)s.K * sizeof *s.x);
    float *y = product(&s, run_gemm);
    bool ok = true;
    for (int32_t t = 0; t < n; t++)
        ok = ok && same(y + (ptrdiff_t)t * s.ldy, want + (ptrdiff_t)(first + t * step) * all->ldy,
                        (size_t)s.N);
    if (!ok) printf("rows %d + %d i, %d of them: ", first, step, n), say("", &s);
    CU_ASSERT(ok);
    free(y);
    free(s.x);
}

static void a_row_has_the_same_bits_in_any_company_and_place(void) {
    NEEDS_FIBRES();
    rng_state = 24;
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        shape all = any_shape(130, 70, 170, dtypes[round]);
        all.seg = sp_segments_of(170, 1);
        float *want = product(&all, run_gemm);
        compare_rows(&all, want, 0, 1, 1);
        compare_rows(&all, want, 129, 1, 1);
        compare_rows(&all, want, 77, -1, 8);
        compare_rows(&all, want, 3, 8, 16);
        compare_rows(&all, want, 100, -1, 17);
        compare_rows(&all, want, 63, -1, 64);
        free(want);
        shape_free(&all);
    }
}

static void an_output_has_the_same_bits_in_any_tile(void) {
    NEEDS_FIBRES();
    rng_state = 25;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        shape s = any_shape(round < 3 ? 5 : 66, 131, 90, dtypes[round % 3]);
        float *want = product(&s, run_gemm);
        shape part = s; /* outputs 45.. as a weight of their own */
        const size_t skip = 45 * (size_t)s.src.stride * dtype_bytes(s.src.dtype);
        part.src.data = (char *)s.src.data + skip;
        part.src.rows = part.N = s.N - 45;
        part.bias = s.bias ? s.bias + 45 : NULL;
        part.ldy = part.N;
        float *y = product(&part, run_gemm);
        for (int32_t t = 0; t < s.T; t++)
            CU_ASSERT(same(y + (ptrdiff_t)t * part.ldy, want + (ptrdiff_t)t * s.ldy + 45,
                           (size_t)part.N));
        free(y);
        free(want);
        shape_free(&s);
    }
}

/* The partial sums of each rank, side by side, then cu_tree_sum. */
static float *by_ranks(const shape *s, int tp) {
    const size_t n = (size_t)s->T * (size_t)s->N;
    float *all = upload(NULL, n * (size_t)tp * sizeof *all), *sum = upload(NULL, n * sizeof *sum);
    for (int rank = 0; rank < tp; rank++) {
        int32_t first;
        shape mine = *s;
        mine.seg = sp_segments_slice(s->seg, tp, rank, &first);
        mine.K = mine.seg.edge[mine.seg.n];
        mine.ldy = s->N;
        const size_t elt = dtype_bytes(s->src.dtype), row = (size_t)mine.K * elt;
        source own = {malloc((size_t)s->N * row + 1), s->src.dtype, s->N, mine.K, mine.K};
        for (int32_t r = 0; r < s->N; r++)
            memcpy((char *)own.data + (size_t)r * row,
                   (char *)s->src.data + ((size_t)r * (size_t)s->src.stride + (size_t)first) * elt,
                   row);
        const cu_weight w = device_weight(&own, &mine.seg);
        const float *dx = upload_floats(s->x, (size_t)s->T * (size_t)s->ldx);
        CUDA_OK(run_gemm(all + (size_t)rank * n, dx + first, NULL, &w, &mine));
        free(own.data);
    }
    CUDA_OK(cu_tree_sum(NULL, sum, all, tp, n));
    return download(sum, n);
}

static void ranks_continue_the_same_tree(void) {
    NEEDS_FIBRES();
    rng_state = 26;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        shape s = any_shape(round < 3 ? 6 : 20, 37, 77, dtypes[round % 3]);
        free(s.bias);
        s.bias = NULL;
        s.ldy = s.N;
        /* 5 heads of 15 columns leave three segments empty. */
        s.seg = round % 2 ? sp_segments_of(5, 15) : sp_segments_of(77, 1);
        if (round % 2) s.K = s.src.cols = 75;
        float *want = product(&s, run_gemm);
        for (int tp = 2; tp <= 8; tp *= 2) {
            float *y = by_ranks(&s, tp);
            CU_ASSERT(same(y, want, (size_t)s.T * (size_t)s.N));
            free(y);
        }
        free(want);
        shape_free(&s);
    }
}

static void an_empty_k_gives_the_bias(void) {
    NEEDS_FIBRES();
    rng_state = 27;
    for (int round = 0; round < 9; round++) {
        device_fresh(round);
        const int32_t T = (int32_t[]){2, 20, 70}[round / 3];
        shape s = any_shape(T, 40, 4, dtypes[round % 3]);
        if (!s.bias) s.bias = values(40);
        s.K = s.src.cols = 0;
        s.seg = (sp_segments){.n = 8};
        float *y = product(&s, run_gemm);
        for (int32_t t = 0; t < T; t++)
            for (int32_t n = 0; n < s.N; n++)
                CU_ASSERT_EQUAL(y[(ptrdiff_t)t * s.ldy + n], s.bias[n]);
        free(y);
        shape_free(&s);
    }
}

/* It has no second term, which would be a NaN; with bf16 weights the sum is the infinity of its sign. */
static void an_infinite_activation_gives_infinity(void) {
    NEEDS_FIBRES();
    rng_state = 32;
    for (int round = 0; round < 2; round++) {
        device_fresh(round);
        shape s = any_shape(round ? 18 : 3, 20, 40, SP_DTYPE_BF16);
        for (int32_t t = 0; t < s.T; t++) s.x[t * s.ldx + t] = t % 2 ? INFINITY : -INFINITY;
        float *y = product(&s, run_gemm);
        CU_ASSERT(has_the_stated_order(&s, y));
        for (int32_t t = 0; t < s.T; t++)
            for (int32_t n = 0; n < s.N; n++)
                CU_ASSERT(isinf(y[t * s.ldy + n]) || source_at(&s.src, n, t) == 0);
        free(y);
        shape_free(&s);
    }
}

/* In f32, padding is never multiplied: 0 * inf would be NaN, and adding 0 turns -0 into +0. */
static void infinities_and_the_smallest_numbers_are_what_ref_says(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(29);
    for (int round = 0; round < 8; round++) {
        device_fresh(round);
        shape s = any_shape(round % 2 ? 20 : 3, 9, 50, SP_DTYPE_F32);
        s.seg = (sp_segments){4, {0, 13, 13, 31, 50}};
        if (round % 4 < 2) {
            const int32_t at = (int32_t[]){0, 13, 31, 49}[round / 2];
            for (int32_t t = 0; t < s.T; t++) s.x[t * s.ldx + at] = INFINITY;
        } else { /* one segment and no bias: nothing takes the sign of a zero away */
            s.seg = (sp_segments){1, {0, 50}};
            free(s.bias);
            s.bias = NULL;
            for (int32_t i = 0; i < s.T * s.ldx; i++) s.x[i] *= 0x1p-140f;
            for (int32_t i = 0; i < s.N * (int32_t)s.src.stride; i++)
                ((float *)s.src.data)[i] *= 0x1p-20f;
        }
        float *y = product(&s, run_gemm), *want = ref_product(&ref, &s);
        const bool ok = same(y, want, (size_t)s.T * (size_t)s.ldy);
        if (!ok) say("special", &s);
        CU_ASSERT(ok);
        free(y);
        free(want);
        shape_free(&s);
    }
    sp_dev_close(&ref);
}

/* The same beside other rows: infinities of a neighbour do not spread. */
static void an_infinity_stays_in_its_row(void) {
    NEEDS_FIBRES();
    rng_state = 30;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        shape s = any_shape(round < 3 ? 9 : 30, 20, 70, dtypes[round % 3]);
        float *want = product(&s, run_gemm);
        s.x[4 * s.ldx + 60] = INFINITY;
        s.x[4 * s.ldx + 5] = NAN;
        float *y = product(&s, run_gemm);
        for (int32_t t = 0; t < s.T; t++)
            CU_ASSERT_EQUAL(same(y + t * s.ldy, want + t * s.ldy, (size_t)s.N), t != 4);
        free(y);
        free(want);
        shape_free(&s);
    }
}

static void what_is_not_possible_is_refused(void) {
    NEEDS_FIBRES();
    rng_state = 28;
    device_fresh(0);
    shape s = any_shape(17, 20, 30, SP_DTYPE_BF16);
    const cu_weight w = device_weight(&s.src, &s.seg);
    cu_weight odd = w;
    odd.dtype = SP_DTYPE_I8;
    float *y = upload(NULL, 17 * 20 * 4);
    const float *x = upload_floats(s.x, (size_t)s.T * (size_t)s.ldx);
    CU_ASSERT_EQUAL(cu_gemm_skinny(NULL, y, 20, x, s.ldx, &w, NULL, 17), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_gemm(NULL, y, 20, x, s.ldx, &w, NULL, 17, NULL), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_gemm(NULL, y, 20, x, s.ldx, &odd, NULL, 3, NULL), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_gemm_skinny(NULL, y, 20, x, s.ldx, &odd, NULL, 3), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_weight_pack(NULL, (void *)w.data, &w, 19, x, 2, 30), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_gemm(NULL, y, 20, x, s.ldx, &w, NULL, 0, NULL), cudaSuccess);
    CU_ASSERT_EQUAL(cu_gemm_scratch(20, 30, SP_DTYPE_BF16, 16), 0);
    CU_ASSERT_EQUAL(cu_gemm_scratch(20, 30, SP_DTYPE_F32, 1000), 0);
    CUDA_OK(cudaDeviceSynchronize());
    shape_free(&s);
}

SP_TEST_MAIN("cuda gemm", SP_TEST(f32_weights_give_the_bits_of_ref),
             SP_TEST(narrow_weights_give_the_stated_order_and_bound),
             SP_TEST(activations_of_any_size_are_multiplied),
             SP_TEST(an_infinite_activation_gives_infinity),
             SP_TEST(the_skinny_product_stays_within_the_bound),
             SP_TEST(a_row_has_the_same_bits_in_any_company_and_place),
             SP_TEST(an_output_has_the_same_bits_in_any_tile),
             SP_TEST(ranks_continue_the_same_tree), SP_TEST(an_empty_k_gives_the_bias),
             SP_TEST(infinities_and_the_smallest_numbers_are_what_ref_says),
             SP_TEST(an_infinity_stays_in_its_row), SP_TEST(what_is_not_possible_is_refused))
