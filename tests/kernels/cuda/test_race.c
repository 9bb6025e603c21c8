/* Every kernel of the backend, compiled for the race checker: no order of whole threads can show two
 * accesses that nothing orders. Shapes are just large enough that every kernel and every stage of its
 * pipeline runs; their values are the other tests' business. */
#include "tests/kernels/cuda/attend_env.h"
#include "tests/kernels/cuda/rows_env.h"

/* What was queued has run, in this many launches at least, and nothing was found. */
static void expect_clean(const char *what, int64_t before, int at_least) {
    CUDA_OK(cudaDeviceSynchronize());
    if (cu_emu_reports(CU_EMU_ANY)) printf("%s: %s\n", what, cu_emu_last_report());
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
    CU_ASSERT(cu_emu_launches() - before >= at_least);
}

static void a_product(int32_t T, int32_t N, int32_t K, sp_dtype dtype, bool skinny) {
    const sp_segments seg = sp_segments_of(K, 1);
    source src = any_source(N, K, dtype);
    const cu_weight w = device_weight(&src, &seg);
    float *host = values((size_t)T * (size_t)K);
    float *x = upload_floats(host, (size_t)T * (size_t)K);
    float *y = upload(NULL, (size_t)T * (size_t)N * sizeof(float));
    const size_t need = cu_gemm_scratch(N, K, dtype, T);
    void *scratch = need ? upload(NULL, need) : NULL;
    const int64_t before = cu_emu_launches();
    if (skinny)
        CUDA_OK(cu_gemm_skinny(NULL, y, N, x, K, &w, NULL, T));
    else
        CUDA_OK(cu_gemm(NULL, y, N, x, K, &w, NULL, T, scratch));
    expect_clean("product", before, 1);
    free(host);
    free(src.data);
}

static void products_have_no_race(void) {
    NEEDS_FIBRES();
    static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};
    rng_state = 71;
    for (int d = 0; d < 3; d++) {
        device_fresh(d);
        a_product(2, 20, 70, dtypes[d], false);
        device_fresh(d + 1);
        if (d != 1) a_product(17, 20, 70, dtypes[d], false);
        device_fresh(d + 2);
        a_product(2, 20, 70, dtypes[d], true);
    }
    device_fresh(1);
    a_product(65, 20, 130, SP_DTYPE_BF16, false);
}

/* Mode fast: row-major weights of zeros. */
static void plain_products_have_no_race(void) {
    NEEDS_FIBRES();
    enum {
        T = 2,
        N = 20,
        K = 70
    };
    static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};
    rng_state = 75;
    for (int d = 0; d < 3; d++) {
        device_fresh(d);
        const int32_t ld = cu_plain_ld(K, dtypes[d]);
        const size_t elt = dtype_bytes(dtypes[d]);
        void *weight = upload(NULL, (size_t)N * (size_t)ld * elt);
        CUDA_OK(cudaMemset(weight, 0, (size_t)N * (size_t)ld * elt));
        const cu_weight w = {.data = weight, .dtype = dtypes[d], .rows = N, .cols = K, .ld = ld};
        float *host = values(T * K), *x = upload_floats(host, T * K);
        float *y = upload(NULL, T * N * sizeof(float));
        const int64_t before = cu_emu_launches();
        CUDA_OK(cu_plain_gemm(NULL, y, N, x, K, &w, NULL, T));
        if (d > 0)
            CUDA_OK(cu_plain_round(NULL, upload(NULL, T * (size_t)ld * elt), ld, dtypes[d], x, K, T,
                                   K));
        expect_clean("plain products", before, d > 0 ? 2 : 1);
        free(host);
    }
}

static void rows_have_no_race(void) {
    NEEDS_FIBRES();
    enum {
        T = 3,
        E = 300,
        F = 150
    };
    rng_state = 72;
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        float *host = values((size_t)T * E);
        float *x = upload_floats(host, (size_t)T * E), *p = upload_floats(host, (size_t)T * E);
        float *y = upload(NULL, (size_t)T * E * sizeof(float));
        const int32_t ids[T] = {4, 0, 9}, order[T] = {2, 0, 1};
        const int32_t *from = upload(order, sizeof order);
        const int64_t before = cu_emu_launches();
        CUDA_OK(cu_add_rmsnorm(NULL, y, E, x, E, p, E, p, p, 1e-5f, T, E));
        CUDA_OK(cu_act_mul(NULL, y, F, x, 2 * F, SP_ACT_SILU, T, F));
        CUDA_OK(cu_gather_rows(NULL, y, E, x, E, from, T, E));
        CUDA_OK(cu_tree_sum(NULL, y, x, T, E));
        source src = any_source(10, E, SP_DTYPE_BF16);
        const sp_segments seg = sp_segments_of(E, 1);
        const cu_weight w = device_weight(&src, &seg);
        cu_fault *fault = upload(NULL, sizeof *fault);
        CUDA_OK(cudaMemset(fault, 0, sizeof *fault));
        CUDA_OK(cu_embed(NULL, y, E, &w, upload(ids, sizeof ids), T, fault));
        expect_clean("rows", before, 5);
        free(src.data);
        free(host);
    }
}

static void attention_has_no_race(void) {
    NEEDS_FIBRES();
    static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};
    rng_state = 73;
    for (int d = 0; d < 3; d++) {
        model m = model_make(2, 1, 16, 0, dtypes[d], 16, false, 300);
        text t = {0};
        text_add(&t, &m, 258, 2); /* two splits: what joins them runs */
        text_add(&t, &m, 9, 9);
        for (int32_t chunk = 1; chunk <= 9; chunk += 8) {
            const way y = {.block_tokens = 16, .chunk = chunk, .joined = true};
            device_fresh(d + chunk);
            const int64_t before = cu_emu_launches();
            result r = cuda_run(&m, &t, &y);
            expect_clean("attention", before, 3);
            result_free(&r, &t);
        }
        text_free(&t);
        model_free(&m);
    }
}

/* Masks, penalties, a cut by top_p and one by top_k, the most likely tokens. */
static void draws_have_no_race(void) {
    NEEDS_FIBRES();
    enum {
        V = 200,
        N = 3
    };
    rng_state = 74;
    for (int round = 1; round < 3; round++) {
        device_fresh(round);
        float *host = values((size_t)N * V);
        const int32_t tokens[] = {3, 3, 9, 150, 1, 2, 3, 4, 5};
        const sp_draw_bias bias[] = {{7, 2.0f}, {8, -INFINITY}};
        sp_draw draws[N];
        for (int32_t i = 0; i < N; i++)
            draws[i] = (sp_draw){.row = i,
                                 .slot = i,
                                 .temperature = (float)i,
                                 .top_p = i == 1 ? 0.9f : 1.0f,
                                 .top_k = i == 2 ? 40 : 0,
                                 .min_p = i == 2 ? 0.001f : 0,
                                 .repetition_penalty = 1.2f,
                                 .frequency_penalty = 0.1f,
                                 .seed = 5,
                                 .n_logprobs = 5,
                                 .n_prompt = 4,
                                 .output0 = 2,
                                 .n_output = 2,
                                 .n_bias = 2,
                                 .n_allowed = -1};
        const size_t need = cu_draw_scratch(N, V);
        const sp_draw_args a = {.logits = upload_floats(host, (size_t)N * V),
                                .ld = V,
                                .V = V,
                                .n = N,
                                .draws = upload(draws, sizeof draws),
                                .tokens = upload(tokens, sizeof tokens),
                                .n_tokens = 9,
                                .bias = upload(bias, sizeof bias),
                                .n_bias = 2,
                                .last = upload(NULL, N * sizeof(int32_t)),
                                .drawn = upload(NULL, N * sizeof(sp_drawn))};
        const int64_t before = cu_emu_launches();
        CUDA_OK(cu_draw(NULL, &a, upload(NULL, need)));
        expect_clean("draws", before, 4);
        free(host);
    }
}

SP_TEST_MAIN("race", SP_TEST(draws_have_no_race), SP_TEST(plain_products_have_no_race),
             SP_TEST(products_have_no_race), SP_TEST(rows_have_no_race),
             SP_TEST(attention_has_no_race))
