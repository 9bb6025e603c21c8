/* Covers kernels/cuda/{fast.cu,cuda_fast.c,cublas_api.c} and what the emulated cuBLASLt
 * (kernels/cuda/emu/cublaslt.cc) is strict about. */
#include "kernels/cuda/cublas_api.h"
#include "kernels/cuda/cuda_dev.h"
#include "runtime/base/clock.h"
#include "tests/kernels/cuda/rows_env.h"

#include <string.h>

const sp_dev_plugin *superpod_device_plugin(int abi);
extern int emu_cublaslt_checked(void);

static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};

/* ---- a device in mode fast ---- */

static sp_dev open_with(bool fast) {
    sp_err err = {0};
    sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
    const sp_dev_config config = {.backend = "emu", .fast = fast};
    const sp_status st = dev.ops->open(&dev, &config, &err);
    if (st != SP_OK) printf("    %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    return dev;
}

static void settle(sp_dev *dev) {
    sp_err err = {0};
    const sp_status st = dev->ops->poll(dev, dev->ops->submit(dev), SP_NEVER, &err);
    if (st != SP_OK) printf("    %s: %s\n", err.text, cu_emu_last_report());
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

typedef struct task {
    int32_t T, N, K, ldx, ldy, x_at, y_at; /* x_at, y_at: floats before the first row */
    sp_dtype dtype;
    source src;
    float *x, *bias;
} task;

static task any_task(int32_t N, int32_t K, int32_t T, sp_dtype dtype) {
    task t = {.T = T, .N = N, .K = K, .dtype = dtype, .src = any_source(N, K, dtype)};
    t.ldx = K + PICK(0, 0, 1, 4);
    t.ldy = N + PICK(0, 0, 1, 4);
    t.x_at = PICK(0, 0, 1, 2);
    t.y_at = PICK(0, 0, 1, 2);
    t.x = values((size_t)T * (size_t)t.ldx);
    for (int32_t i = 0; i < T * t.ldx; i++) /* nobody reads the gaps */
        if (i % t.ldx >= K) t.x[i] = NAN;
    t.bias = rng() % 2 ? values((size_t)N) : NULL;
    return t;
}

/* Aligned rows without gaps in x. */
static void be_plain(task *t, int32_t ldy) {
    t->ldx = t->K;
    t->ldy = ldy;
    t->x_at = t->y_at = 0;
    for (int32_t i = 0; i < t->T * t->K; i++) t->x[i] = value();
}

static void task_free(task *t) {
    free(t->src.data);
    free(t->x);
    free(t->bias);
}

static float *put(sp_dev *dev, const float *from, size_t n, size_t skip) {
    float *p = dev->ops->alloc(dev, (n + skip) * sizeof *p);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    if (from) dev->ops->upload(dev, p + skip, from, n * sizeof *p);
    return p;
}

/* y of rows 0..T-1 by a packed weight. Owner: caller. */
static float *multiply(sp_dev *dev, const task *t, const sp_weight *w) {
    const size_t n = (size_t)t->T * (size_t)t->ldy, nx = (size_t)t->T * (size_t)t->ldx;
    float *fill = canaries(n), *host = dev->ops->host_alloc(dev, n * sizeof *host);
    float *x = put(dev, t->x, nx, (size_t)t->x_at), *y = put(dev, fill, n, (size_t)t->y_at);
    float *bias = t->bias ? put(dev, t->bias, (size_t)t->N, 0) : NULL;
    dev->ops->gemm(dev, mat(y + t->y_at, t->T, t->N, t->ldy), mat(x + t->x_at, t->T, t->K, t->ldx),
                   w, bias);
    dev->ops->download(dev, host, y + t->y_at, n * sizeof *host);
    settle(dev);
    expect_gaps_untouched(host, t->T, t->N, t->ldy);
    memcpy(fill, host, n * sizeof *fill);
    dev->ops->host_free(dev, host, n * sizeof *host);
    dev->ops->free(dev, x, 0);
    dev->ops->free(dev, y, 0);
    if (bias) dev->ops->free(dev, bias, 0);
    return fill;
}

static float rounded(float x, sp_dtype t) {
    if (t == SP_DTYPE_F16) return sp_f32_of_f16(sp_f16_of_f32(x));
    return t == SP_DTYPE_BF16 ? sp_f32_of_bf16(sp_bf16_of_f32(x)) : x;
}

/* Against the product of the rounded x in double, (K + 8) 2^-23 sum |x w|; `own_x`: of x as it is,
 * and 2^-8 (bf16) or 2^-11 (f16) of that sum more. */
static bool is_close(const task *t, const float *y, bool own_x) {
    const double of_x = t->dtype == SP_DTYPE_F32 || !own_x ? 0
                        : t->dtype == SP_DTYPE_F16         ? 0x1p-11
                                                           : 0x1p-8;
    for (int32_t r = 0; r < t->T; r++)
        for (int32_t n = 0; n < t->N; n++) {
            double sum = t->bias ? t->bias[n] : 0, magnitude = fabs(sum);
            for (int32_t k = 0; k < t->K; k++) {
                const float x = t->x[(ptrdiff_t)r * t->ldx + k];
                const double term =
                    (double)(own_x ? x : rounded(x, t->dtype)) * (double)source_at(&t->src, n, k);
                sum += term;
                magnitude += fabs(term);
            }
            /* The last summand: what is lost below the smallest normal numbers, of f16 if x is. */
            const double bound = ((t->K + 8) * 0x1p-23 + of_x) * magnitude +
                                 (t->K + 8) * (own_x ? 0x1p-22 : 0x1p-148);
            if (!(fabs(y[(ptrdiff_t)r * t->ldy + n] - sum) <= bound)) return false;
        }
    return true;
}

static void say(const task *t) {
    printf("    T %d N %d K %d ldx %d ldy %d at %d, %d %s%s: %s\n", t->T, t->N, t->K, t->ldx,
           t->ldy, t->x_at, t->y_at, sp_dtype_name(t->dtype), t->bias ? ", bias" : "",
           cu_emu_last_report());
}

static void check(sp_dev *dev, const task *t, const sp_weight *w) {
    float *y = multiply(dev, t, w);
    /* Tiles are of our own kernels, which round x to two terms: to next to nothing. */
    const bool rounds = w->w.ld != 0;
    const bool ok = is_close(t, y, true) && (!rounds || is_close(t, y, false));
    if (!ok) say(t);
    CU_ASSERT(ok);
    free(y);
}

static void every_number_of_rows_stays_within_the_bound(void) {
    NEEDS_FIBRES();
    rng_state = 41;
    for (int order = 0; order < 3; order++) {
        device_fresh(order);
        sp_dev dev = open_with(true);
        for (int32_t T = 1 + order; T <= 40; T += 3) {
            const int32_t N = PICK(1, 7, 31, 33, 64), K = PICK(1, 3, 63, 65, 72, 130);
            task t = any_task(N, K, T, dtypes[T / 3 % 3]);
            const sp_segments seg = any_segments(t.K);
            sp_weight *w = pack(&dev, &t.src, &seg);
            CU_ASSERT_EQUAL(w->w.ld, cu_plain_ld(t.K, t.dtype));
            const int64_t before = cu_emu_lt_products();
            check(&dev, &t, w);
            CU_ASSERT_EQUAL(cu_emu_lt_products() - before, T > CU_PLAIN_ROWS);
            dev.ops->weight_free(&dev, w);
            task_free(&t);
        }
        sp_dev_close(&dev);
    }
}

static void a_long_k_goes_through_all_warps(void) {
    NEEDS_FIBRES();
    rng_state = 42;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        task t = any_task(35, 901 + round, PICK(1, 4, 5, 16), dtypes[round % 3]);
        const sp_segments seg = any_segments(t.K);
        sp_weight *w = pack(&dev, &t.src, &seg);
        check(&dev, &t, w);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&t);
    }
}

/* Few rows: the bits of a row depend on K alone. */
static void a_row_has_the_same_bits_beside_up_to_fifteen_others(void) {
    NEEDS_FIBRES();
    rng_state = 43;
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        task all = any_task(37, 140, 16, dtypes[round]), one = all;
        const sp_segments seg = sp_segments_of(all.K, 1);
        sp_weight *w = pack(&dev, &all.src, &seg);
        float *want = multiply(&dev, &all, w);
        for (int32_t r = 0; r < 16; r += 5) {
            one.T = 1;
            one.x = all.x + r * all.ldx;
            float *y = multiply(&dev, &one, w);
            CU_ASSERT(same(y, want + r * all.ldy, (size_t)all.N));
            free(y);
        }
        free(want);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&all);
    }
}

static void k_may_be_empty_and_an_infinity_stays_in_its_row(void) {
    NEEDS_FIBRES();
    rng_state = 44;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        task t = any_task(20, 70, round < 3 ? 9 : 30, dtypes[round % 3]);
        const sp_segments seg = sp_segments_of(t.K, 1);
        sp_weight *w = pack(&dev, &t.src, &seg);
        float *want = multiply(&dev, &t, w);
        t.x[4 * t.ldx + 69] = INFINITY;
        t.x[4 * t.ldx + 5] = NAN;
        float *y = multiply(&dev, &t, w);
        for (int32_t r = 0; r < t.T; r++)
            CU_ASSERT_EQUAL(same(y + r * t.ldy, want + r * t.ldy, (size_t)t.N), r != 4);
        free(y);
        free(want);
        sp_weight none = {.w = {.dtype = t.dtype, .rows = t.N, .data = w->data}};
        t.K = 0;
        y = multiply(&dev, &t, &none);
        for (int32_t i = 0; i < t.T; i++) CU_ASSERT_EQUAL(y[i * t.ldy + 3], t.bias ? t.bias[3] : 0);
        free(y);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&t);
    }
}

static void embedding_reads_rows_of_the_same_weight(void) {
    NEEDS_FIBRES();
    rng_state = 45;
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        enum {
            V = 50,
            E = 39,
            T = 12
        };
        source s = any_source(V, E, dtypes[round]);
        const sp_segments seg = sp_segments_of(E, 1);
        sp_weight *w = pack(&dev, &s, &seg);
        int32_t ids[T];
        for (int i = 0; i < T; i++) ids[i] = i == 0 ? V - 1 : between(0, V - 1);
        float *y = put(&dev, NULL, T * E, 0);
        float *host = dev.ops->host_alloc(&dev, T * E * sizeof *host);
        dev.ops->embed(&dev, mat(y, T, E, E), w, ids);
        dev.ops->download(&dev, host, y, T * E * sizeof *host);
        settle(&dev);
        for (int i = 0; i < T * E; i++) CU_ASSERT_EQUAL(host[i], source_at(&s, ids[i / E], i % E));
        dev.ops->host_free(&dev, host, T * E * sizeof *host);
        dev.ops->free(&dev, y, 0);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        free(s.data);
    }
}

/* ---- algorithms ---- */

/* The next product of T rows; how often the heuristic was asked for it. */
static int64_t asked(sp_dev *dev, task *t, const sp_weight *w, int32_t T) {
    const int64_t before = cu_emu_lt_heuristics();
    t->T = T;
    check(dev, t, w);
    return cu_emu_lt_heuristics() - before;
}

static void an_algorithm_is_asked_for_once_a_bucket_and_product(void) {
    NEEDS_FIBRES();
    rng_state = 46;
    device_fresh(0);
    sp_dev dev = open_with(true);
    task t = any_task(24, 40, 160, SP_DTYPE_BF16);
    be_plain(&t, 24);
    const sp_segments seg = sp_segments_of(40, 1);
    sp_weight *w = pack(&dev, &t.src, &seg);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 5), 0); /* few rows are ours */
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 17), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 17), 0);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 32), 0); /* 17..32, 33..48, 49..64, 65..80, ... */
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 33), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 65), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 80), 0);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 81), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 129), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 160), 0); /* 129..160 */
    sp_weight *again = pack(&dev, &t.src, &seg);
    CU_ASSERT_EQUAL(asked(&dev, &t, again, 20), 0); /* the next layer's: the same product */
    t.y_at = 1;
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 17), 1); /* a y that begins elsewhere */
    dev.ops->weight_free(&dev, w);
    dev.ops->weight_free(&dev, again);
    sp_dev_close(&dev);
    task_free(&t);
}

/* A stride is not told to the table: the check finds that the kept algorithm does not take it. */
static void an_algorithm_that_does_not_fit_is_replaced_once(void) {
    NEEDS_FIBRES();
    rng_state = 47;
    device_fresh(0);
    sp_dev dev = open_with(true);
    task t = any_task(24, 40, 30, SP_DTYPE_BF16);
    be_plain(&t, 24);
    const sp_segments seg = sp_segments_of(40, 1);
    sp_weight *w = pack(&dev, &t.src, &seg);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 30), 1);
    t.ldy = 25;
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 30), 1);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 30), 0);
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 29), 1); /* its own, not the bucket's */
    dev.ops->weight_free(&dev, w);
    sp_dev_close(&dev);
    task_free(&t);
}

static void what_the_library_cannot_do_goes_in_groups_of_few_rows(void) {
    NEEDS_FIBRES();
    rng_state = 48;
    setenv("SUPERPOD_EMU_CUBLASLT_ALGOS", "aligned", 1);
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        task t = any_task(21, 45, 37, dtypes[round]);
        t.y_at = 1;
        const sp_segments seg = sp_segments_of(t.K, 1);
        sp_weight *w = pack(&dev, &t.src, &seg);
        const int64_t products = cu_emu_lt_products();
        CU_ASSERT_EQUAL(asked(&dev, &t, w, 37), 2); /* for the bucket, for 37 */
        CU_ASSERT_EQUAL(asked(&dev, &t, w, 37), 0); /* "none" is kept too */
        CU_ASSERT_EQUAL(cu_emu_lt_products(), products);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&t);
    }
    unsetenv("SUPERPOD_EMU_CUBLASLT_ALGOS");
}

static void the_table_of_algorithms_has_an_end_and_goes_on(void) {
    NEEDS_FIBRES();
    rng_state = 49;
    device_fresh(0);
    sp_dev dev = open_with(true);
    task t = any_task(1, 8, 300, SP_DTYPE_BF16);
    be_plain(&t, 4);
    const sp_segments seg = sp_segments_of(8, 1);
    sp_weight *w = pack(&dev, &t.src, &seg);
    for (int32_t T = 17; T <= 300; T += 16) CU_ASSERT(asked(&dev, &t, w, T) <= 1);
    t.ldy = 1; /* each T has an algorithm of its own now: more than the table holds */
    for (int32_t T = 17; T < 290; T++) CU_ASSERT(asked(&dev, &t, w, T) >= (T < 250));
    t.ldy = 4;
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 17), 1); /* was the oldest */
    CU_ASSERT_EQUAL(asked(&dev, &t, w, 17), 0);
    dev.ops->weight_free(&dev, w);
    sp_dev_close(&dev);
    task_free(&t);
}

/* A step may be recorded: what the library queues is replayed with what the buffers hold then. */
static void a_captured_product_is_replayed(void) {
    NEEDS_FIBRES();
    rng_state = 53;
    device_fresh(0);
    sp_dev dev = open_with(true);
    cudaStream_t st = ((cu_dev *)dev.impl)->stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    task t = any_task(24, 40, 20, SP_DTYPE_BF16);
    be_plain(&t, 24);
    const sp_segments seg = sp_segments_of(40, 1);
    sp_weight *w = pack(&dev, &t.src, &seg);
    float *before = multiply(&dev, &t, w); /* takes scratch and asks for the algorithm */
    for (int i = 0; i < 20 * 40; i++) t.x[i] = value();
    float *want = multiply(&dev, &t, w);
    float *x = put(&dev, NULL, 20 * 40, 0), *y = put(&dev, NULL, 20 * 24, 0);
    float *bias = t.bias ? put(&dev, t.bias, 24, 0) : NULL;
    float *host = dev.ops->host_alloc(&dev, 20 * 24 * sizeof *host);
    settle(&dev);
    CUDA_OK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    dev.ops->gemm(&dev, mat(y, 20, 24, 24), mat(x, 20, 40, 40), w, bias);
    CUDA_OK(cudaStreamEndCapture(st, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    dev.ops->upload(&dev, x, t.x, 20 * 40 * sizeof *x);
    for (int i = 0; i < 2; i++) CUDA_OK(cudaGraphLaunch(exec, st));
    dev.ops->download(&dev, host, y, 20 * 24 * sizeof *host);
    settle(&dev);
    CU_ASSERT(same(host, want, 20 * 24));
    CU_ASSERT_FALSE(same(host, before, 20 * 24));
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    dev.ops->host_free(&dev, host, 0);
    dev.ops->weight_free(&dev, w);
    sp_dev_close(&dev);
    free(before);
    free(want);
    task_free(&t);
}

/* ---- without the library, and its faults ---- */

static void without_cublaslt_fast_is_by_our_own_kernels_and_says_so(void) {
    NEEDS_FIBRES();
    rng_state = 50;
    setenv("SUPERPOD_EMU_CUBLASLT_VERSION", "110903", 1);
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        sp_dev dev = open_with(true);
        CU_ASSERT_PTR_NOT_NULL_FATAL(dev.note);
        CU_ASSERT_PTR_NOT_NULL(strstr(dev.note, "numerics fast is by superpod's own kernels"));
        CU_ASSERT_PTR_NOT_NULL(strstr(dev.note, "cuBLASLt 11.9.3, want 12.0 or newer"));
        task t = any_task(33, 70, round < 3 ? 7 : 19, dtypes[round % 3]);
        const sp_segments seg = any_segments(t.K);
        sp_weight *w = pack(&dev, &t.src, &seg);
        CU_ASSERT_EQUAL(w->w.ld, 0);
        check(&dev, &t, w);
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&t);
    }
    unsetenv("SUPERPOD_EMU_CUBLASLT_VERSION");
}

static void the_mode_is_in_the_device_s_words(void) {
    device_fresh(0);
    sp_dev fast = open_with(true);
    CU_ASSERT_PTR_NOT_NULL(strstr(fast.detail, ", fast"));
    CU_ASSERT_PTR_NULL(fast.note);
    sp_dev_close(&fast);
    sp_dev exact = open_with(false);
    CU_ASSERT_PTR_NOT_NULL(strstr(exact.detail, ", deterministic"));
    CU_ASSERT_PTR_NULL(exact.note);
    sp_dev_close(&exact);
}

static void too_little_memory_at_the_start_leaves_nothing_behind(void) {
    NEEDS_FIBRES();
    for (int nth = 1; nth < 7; nth++) {
        sp_err err = {0};
        device_fresh(0);
        cu_emu_fail_malloc(nth);
        sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
        const sp_dev_config config = {.backend = "emu", .fast = true};
        const sp_status st = dev.ops->open(&dev, &config, &err);
        cu_emu_fail_malloc(0);
        CU_ASSERT(st == SP_OK || st == SP_E_NOMEM);
        CU_ASSERT_EQUAL(st == SP_OK, dev.impl != NULL);
        if (st == SP_OK) sp_dev_close(&dev);
    }
    cu_emu_config c;
    cu_emu_get_config(&c);
    const size_t all = c.memory_bytes;
    c.memory_bytes = CU_LT_WORKSPACE / 2;
    cu_emu_reset();
    cu_emu_configure(&c);
    sp_err err = {0};
    sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
    const sp_dev_config config = {.backend = "emu", .fast = true};
    CU_ASSERT_EQUAL(dev.ops->open(&dev, &config, &err), SP_E_NOMEM);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "for cuBLASLt"));
    c.memory_bytes = all;
    cu_emu_reset();
    cu_emu_configure(&c);
}

static void a_product_that_fails_is_the_device_s_fault(void) {
    NEEDS_FIBRES();
    rng_state = 51;
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_LAZY; pace++) {
        sp_err err = {0};
        device_fresh(0);
        cu_emu_config c;
        cu_emu_get_config(&c);
        c.pace = (cu_emu_pace)pace;
        cu_emu_configure(&c);
        sp_dev dev = open_with(true);
        task t = any_task(8, 8, 20, SP_DTYPE_BF16);
        const sp_segments seg = sp_segments_of(8, 1);
        sp_weight *w = pack(&dev, &t.src, &seg);
        float *x = put(&dev, t.x, (size_t)t.T * (size_t)t.ldx, 0);
        float host[20 * 8]; /* no device memory: the library finds out when it runs */
        dev.ops->gemm(&dev, mat(host, 20, 8, 8), mat(x, 20, 8, t.ldx), w, NULL);
        CU_ASSERT_EQUAL(dev.ops->poll(&dev, dev.ops->submit(&dev), SP_NEVER, &err), SP_E_DEVICE);
        CU_ASSERT_PTR_NOT_NULL(strstr(cu_emu_last_report(), "cublasLtMatmul: D"));
        dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
        task_free(&t);
    }
    device_fresh(0);
}

/* ---- memory ---- */

static void what_the_plan_is_told_is_what_fast_takes(void) {
    for (int32_t cols = 1; cols < 700; cols += 13)
        for (size_t i = 0; i < SP_LEN(dtypes); i++) {
            const size_t elt = dtype_bytes(dtypes[i]), ld = (size_t)cu_plain_ld(cols, dtypes[i]);
            CU_ASSERT(ld >= (size_t)cols && ld * elt % 16 == 0 &&
                      ld * elt < (size_t)cols * elt + 16);
            const sp_segments seg = sp_segments_of(cols, 1);
            CU_ASSERT(cu_packed_bytes(33, &seg, dtypes[i]) >= 33 * ld * elt);
            /* Rows of x share the scratch of the deterministic product, which is reserved. */
            for (int32_t T = 17; T < 3000 && i > 0; T *= 3)
                CU_ASSERT(cu_gemm_scratch(33, cols, dtypes[i], T) >= (size_t)T * ld * 2);
        }
    const sp_dev_sizes exact = {
        .max_tokens = 100, .max_positions = 64, .n_heads = 2, .head_dim = 16, .max_cols = 64};
    sp_dev_sizes fast = exact;
    fast.fast = true;
    CU_ASSERT_EQUAL(cu_reserve_bytes(&fast), cu_reserve_bytes(&exact) + CU_LT_WORKSPACE);
}

static void opening_takes_the_workspace_and_no_step_takes_more(void) {
    NEEDS_FIBRES();
    rng_state = 52;
    device_fresh(0);
    sp_dev exact = open_with(false);
    sp_err err = {0};
    uint64_t before, after, later, total;
    CU_ASSERT_EQUAL(exact.ops->memory(&exact, &before, &total, &err), SP_OK);
    sp_dev_close(&exact);
    sp_dev dev = open_with(true);
    CU_ASSERT_EQUAL(dev.ops->memory(&dev, &after, &total, &err), SP_OK);
    CU_ASSERT(before - after >= CU_LT_WORKSPACE && before - after < CU_LT_WORKSPACE + (1 << 20));
    task t = any_task(40, 72, 33, SP_DTYPE_BF16);
    const sp_segments seg = sp_segments_of(72, 1);
    sp_weight *w = pack(&dev, &t.src, &seg);
    const sp_dev_sizes sizes = {.max_tokens = 33,
                                .max_positions = 64,
                                .n_heads = 2,
                                .n_kv_heads = 2,
                                .head_dim = 16,
                                .max_cols = 72};
    CU_ASSERT_EQUAL(dev.ops->reserve(&dev, &sizes, &err), SP_OK);
    CU_ASSERT_EQUAL(dev.ops->memory(&dev, &after, &total, &err), SP_OK);
    check(&dev, &t, w);
    CU_ASSERT_EQUAL(dev.ops->memory(&dev, &later, &total, &err), SP_OK);
    CU_ASSERT_EQUAL(after, later);
    dev.ops->weight_free(&dev, w);
    sp_dev_close(&dev);
    exact = open_with(false);
    CU_ASSERT_EQUAL(exact.ops->memory(&exact, &after, &total, &err), SP_OK);
    CU_ASSERT_EQUAL(after, before); /* and closing gives all of it back */
    sp_dev_close(&exact);
    task_free(&t);
}

/* ---- the table, and the emulated library alone ---- */

static void the_table_is_the_toolkit_s(void) {
    if (emu_cublaslt_checked() < 0) SP_SKIP("no cublasLt.h");
    CU_ASSERT_EQUAL(emu_cublaslt_checked(), 1);
}

static void a_library_that_is_none_is_refused_by_name(void) {
    cu_cublas c;
    sp_err err = {0};
    char text[24];
    CU_ASSERT_EQUAL(cu_cublas_open(&c, "libno-such-blas.so.9", &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "no cuBLASLt: libno-such-blas.so.9"));
    CU_ASSERT_EQUAL(cu_cublas_open(&c, "libm.so.6", &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'libm.so.6' has no 'cublasLtCreate'"));
    CU_ASSERT_EQUAL_FATAL(cu_cublas_open(&c, NULL, &err), SP_OK);
    CU_ASSERT_STRING_EQUAL(c.version_text, "13.1.0");
    cu_cublas_close(&c);
    cu_cublas_version_text(120103, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "12.1.3");
}

static void the_real_library_opens_by_the_same_code(void) {
    const char *path = getenv("SUPERPOD_TEST_CUBLASLT");
    if (!path) SP_SKIP("half a gigabyte: only where SUPERPOD_TEST_CUBLASLT names it");
    cu_cublas c;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(cu_cublas_open(&c, path, &err), SP_OK);
    CU_ASSERT_STRING_EQUAL(c.status_name(CU_LT_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
    cu_cublas_close(&c);
}

typedef struct library {
    cu_cublas api;
    cu_lt_handle handle;
    cu_lt_desc desc;
    cu_lt_layout a, b, d;
    cu_lt_preference preference;
    cu_lt_found found;
    float *memory; /* 4096 */
} library;

#define LT(call) CU_ASSERT_EQUAL_FATAL((call), CU_LT_OK)
/* 16 x 16 x 16 of f32, transposed A. */
static library library_open(void) {
    library l = {.handle = NULL};
    const int32_t op = CU_LT_OP_T;
    const uint64_t workspace = 4096;
    device_fresh(0);
    CU_ASSERT_EQUAL_FATAL(cu_cublas_open(&l.api, NULL, NULL), SP_OK);
    LT(l.api.create(&l.handle));
    LT(l.api.desc_create(&l.desc, CU_LT_COMPUTE_F32, CU_LT_F32));
    LT(l.api.desc_set(l.desc, CU_LT_DESC_TRANS_A, &op, sizeof op));
    LT(l.api.layout_create(&l.a, CU_LT_F32, 16, 16, 16));
    LT(l.api.layout_create(&l.b, CU_LT_F32, 16, 16, 16));
    LT(l.api.layout_create(&l.d, CU_LT_F32, 16, 16, 16));
    LT(l.api.preference_create(&l.preference));
    LT(l.api.preference_set(l.preference, CU_LT_PREF_WORKSPACE, &workspace, sizeof workspace));
    CUDA_OK(cudaMalloc((void **)&l.memory, 4096 * sizeof(float)));
    CUDA_OK(cudaMemset(l.memory, 0, 4096 * sizeof(float)));
    return l;
}

static void library_close(library *l) {
    LT(l->api.preference_destroy(l->preference));
    LT(l->api.layout_destroy(l->d));
    LT(l->api.layout_destroy(l->b));
    LT(l->api.layout_destroy(l->a));
    LT(l->api.desc_destroy(l->desc));
    LT(l->api.destroy(l->handle));
    cu_cublas_close(&l->api);
    cudaFree(l->memory);
}

static cu_lt_status heuristic(library *l) {
    int n = 0;
    return l->api.heuristic(l->handle, l->desc, l->a, l->b, l->d, l->d, l->preference, 1, &l->found,
                            &n);
}
static cu_lt_status run(library *l, float *a, float *d, float *workspace, size_t bytes) {
    static const float one = 1, zero = 0;
    return l->api.matmul(l->handle, l->desc, &one, a, l->a, l->memory + 256, l->b, &zero, d, l->d,
                         d, l->d, &l->found.algo, workspace, bytes, NULL);
}

static void the_emulated_library_is_strict(void) {
    library l = library_open();
    float *m = l.memory, *d = m + 512, *space = m + 1024;
    const uint32_t epilogue = CU_LT_EPILOGUE_BIAS, narrow = CU_LT_BF16;
    const uint64_t rows = 15;
    const int64_t ld = 15;
    LT(heuristic(&l));
    CU_ASSERT_EQUAL(l.found.workspace_bytes, 2048);
    LT(run(&l, m, d, space, 2048));
    CU_ASSERT_EQUAL(run(&l, m, d, space, 2047), CU_LT_INVALID_VALUE);
    CU_ASSERT_EQUAL(run(&l, m, d, space + 1, 2048), CU_LT_INVALID_VALUE);
    CU_ASSERT_EQUAL(run(&l, m, d, NULL, 2048), CU_LT_INVALID_VALUE);
    CU_ASSERT_EQUAL(run(&l, m + 1, d, space, 2048), CU_LT_INVALID_VALUE);
    CU_ASSERT_EQUAL(run(&l, m, d + 1, space, 2048), CU_LT_INVALID_VALUE);
    CU_ASSERT_EQUAL(run(&l, NULL, d, space, 2048), CU_LT_INVALID_VALUE);
    /* An algorithm is of one epilogue. */
    const void *bias = m;
    LT(l.api.desc_set(l.desc, CU_LT_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    CU_ASSERT_EQUAL(heuristic(&l), CU_LT_INVALID_VALUE); /* no bias yet */
    LT(l.api.desc_set(l.desc, CU_LT_DESC_BIAS, &bias, sizeof bias));
    CU_ASSERT_EQUAL(run(&l, m, d, space, 2048), CU_LT_INVALID_VALUE);
    LT(heuristic(&l));
    LT(run(&l, m, d, space, 2048));
    CU_ASSERT_EQUAL(l.api.desc_set(l.desc, CU_LT_DESC_BIAS, &bias, 4), CU_LT_INVALID_VALUE);
    /* Shapes and types that do not go together. */
    LT(l.api.layout_set(l.b, CU_LT_LAYOUT_ROWS, &rows, sizeof rows));
    CU_ASSERT_EQUAL(heuristic(&l), CU_LT_INVALID_VALUE);
    LT(l.api.layout_set(l.a, CU_LT_LAYOUT_ROWS, &rows, sizeof rows));
    LT(heuristic(&l)); /* K 15, columns of 16 */
    LT(l.api.layout_set(l.a, CU_LT_LAYOUT_LD, &ld, sizeof ld));
    CU_ASSERT_EQUAL(run(&l, m, d, space, 2048), CU_LT_NOT_SUPPORTED);
    LT(heuristic(&l));
    CU_ASSERT_EQUAL(l.found.workspace_bytes, 0);
    LT(run(&l, m + 1, d + 1, NULL, 0));
    LT(l.api.layout_set(l.b, CU_LT_LAYOUT_TYPE, &narrow, sizeof narrow));
    CU_ASSERT_EQUAL(heuristic(&l), CU_LT_NOT_SUPPORTED);
    CUDA_OK(cudaDeviceSynchronize());
    library_close(&l);
}

static void the_emulated_workspace_is_overwritten(void) {
    library l = library_open();
    float host[1];
    LT(heuristic(&l));
    LT(run(&l, l.memory, l.memory + 512, l.memory + 1024, 2048));
    CUDA_OK(cudaMemcpy(host, l.memory + 1024 + 511, sizeof host, cudaMemcpyDeviceToHost));
    CU_ASSERT(isnan(host[0]));
    CUDA_OK(cudaMemcpy(host, l.memory + 1024 + 512, sizeof host, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(host[0], 0);
    library_close(&l);
}

SP_TEST_MAIN("cuda fast", SP_TEST(every_number_of_rows_stays_within_the_bound),
             SP_TEST(a_long_k_goes_through_all_warps),
             SP_TEST(a_row_has_the_same_bits_beside_up_to_fifteen_others),
             SP_TEST(k_may_be_empty_and_an_infinity_stays_in_its_row),
             SP_TEST(embedding_reads_rows_of_the_same_weight),
             SP_TEST(an_algorithm_is_asked_for_once_a_bucket_and_product),
             SP_TEST(an_algorithm_that_does_not_fit_is_replaced_once),
             SP_TEST(what_the_library_cannot_do_goes_in_groups_of_few_rows),
             SP_TEST(the_table_of_algorithms_has_an_end_and_goes_on),
             SP_TEST(a_captured_product_is_replayed),
             SP_TEST(without_cublaslt_fast_is_by_our_own_kernels_and_says_so),
             SP_TEST(the_mode_is_in_the_device_s_words),
             SP_TEST(too_little_memory_at_the_start_leaves_nothing_behind),
             SP_TEST(a_product_that_fails_is_the_device_s_fault),
             SP_TEST(what_the_plan_is_told_is_what_fast_takes),
             SP_TEST(opening_takes_the_workspace_and_no_step_takes_more),
             SP_TEST(the_table_is_the_toolkit_s),
             SP_TEST(a_library_that_is_none_is_refused_by_name),
             SP_TEST(the_real_library_opens_by_the_same_code),
             SP_TEST(the_emulated_library_is_strict),
             SP_TEST(the_emulated_workspace_is_overwritten))
