/* Covers cu_reserve() of kernels/cuda/cuda_memory.c: what a device takes before its first step is
 * enough for every step, and no more than the plan is told. */
#include "kernels/cuda/cuda_dev.h"
#include "kernels/cuda/emu/emu.h"
#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const sp_dev_plugin *superpod_device_plugin(int abi);

#if defined(__SANITIZE_THREAD__)
#define NEEDS_FIBRES() SP_SKIP("fibres under the thread sanitizer")
#else
#define NEEDS_FIBRES() (void)0
#endif

enum {
    MAX_TOKENS = 40,
    MAX_POS = 700,
    N_WEIGHTS = 3,
    ROWS = 33,
    COLS_MAX = 700,
    H = 4,
    K = 2,
    D = 16,
    B = 16,
    N_BLOCKS = 4 * (MAX_POS / B + 1),
    QKV = (H + 2 * K) * D,
    BLOCK_BYTES = 2 * K * B * D * 2
};

/* The largest is neither the first nor the last; its segments are uneven. */
static const int32_t cols_of[N_WEIGHTS] = {70, COLS_MAX, 64};

static const sp_dev_sizes sizes = {.max_tokens = MAX_TOKENS,
                                   .max_positions = MAX_POS,
                                   .n_heads = H,
                                   .n_kv_heads = K,
                                   .head_dim = D,
                                   .max_cols = COLS_MAX};

typedef struct fixture {
    sp_dev dev;
    sp_weight *w[N_WEIGHTS];
    float *x, *y, *qkv, *out;
    unsigned char *kv;
} fixture;

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static float *take(fixture *f, size_t n) {
    float *p = f->dev.ops->alloc(&f->dev, n * sizeof *p);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    return p;
}

static void open_fixture(fixture *f) {
    static const uint16_t zeros[ROWS * COLS_MAX];
    const sp_dev_config config = {.backend = "emu"};
    sp_err err = {0};
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.memory_bytes = (size_t)64 << 20;
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
    *f = (fixture){.dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops}};
    must(f->dev.ops->open(&f->dev, &config, &err), &err);
    for (int i = 0; i < N_WEIGHTS; i++) {
        const sp_weight_part part = {zeros, SP_DTYPE_BF16, ROWS, cols_of[i], cols_of[i]};
        const sp_segments seg = i == 1 ? (sp_segments){8, {0, 1, 3, 3, 70, 71, 300, 500, 700}}
                                       : sp_segments_of(cols_of[i], 1);
        must(f->dev.ops->pack(&f->dev, &f->w[i], &part, 1, &seg, &err), &err);
    }
    f->x = take(f, (size_t)MAX_TOKENS * COLS_MAX);
    f->y = take(f, (size_t)MAX_TOKENS * ROWS);
    f->qkv = take(f, (size_t)MAX_TOKENS * QKV);
    f->out = take(f, (size_t)MAX_TOKENS * H * D);
    f->kv = f->dev.ops->alloc(&f->dev, (size_t)N_BLOCKS * BLOCK_BYTES);
    CU_ASSERT_PTR_NOT_NULL_FATAL(f->kv);
}

static void close_fixture(fixture *f) {
    const sp_dev_ops *o = f->dev.ops;
    for (int i = 0; i < N_WEIGHTS; i++) o->weight_free(&f->dev, f->w[i]);
    o->free(&f->dev, f->x, 0);
    o->free(&f->dev, f->y, 0);
    o->free(&f->dev, f->qkv, 0);
    o->free(&f->dev, f->out, 0);
    o->free(&f->dev, f->kv, 0);
    sp_dev_close(&f->dev);
}

/* `n` rows of up to four sequences, each ending at position `last`. */
static void step(fixture *f, int32_t n, int32_t last) {
    static int32_t blocks[4][MAX_POS / B + 1];
    const int n_seqs = n < 4 ? 1 : 4;
    sp_seq_rows seqs[4];
    sp_err err = {0};
    for (int32_t i = 0; i < N_BLOCKS; i++) blocks[i % 4][i / 4] = i;
    for (int s = 0; s < n_seqs; s++) {
        const int32_t rows = n / n_seqs, here = s == n_seqs - 1 ? n - s * rows : rows;
        seqs[s] = (sp_seq_rows){s * rows, here, last + 1 - here, blocks[s]};
    }
    for (int i = 0; i < N_WEIGHTS; i++)
        f->dev.ops->gemm(&f->dev, (sp_mat){f->y, n, ROWS, ROWS, SP_DTYPE_F32},
                         (sp_mat){f->x, n, cols_of[i], cols_of[i], SP_DTYPE_F32}, f->w[i], NULL);
    const sp_attn_args a = {.out = {f->out, n, H * D, H * D, SP_DTYPE_F32},
                            .qkv = {f->qkv, n, QKV, QKV, SP_DTYPE_F32},
                            .n_heads = H,
                            .scale = 0.25f,
                            .kv = {f->kv, BLOCK_BYTES, 0, B, K, D, SP_DTYPE_BF16},
                            .seqs = seqs,
                            .n_seqs = n_seqs};
    f->dev.ops->attend(&f->dev, &a);
    must(f->dev.ops->poll(&f->dev, f->dev.ops->submit(&f->dev), SP_NEVER, &err), &err);
}

static uint64_t left_of(fixture *f) {
    uint64_t left = 0, total;
    sp_err err = {0};
    must(f->dev.ops->memory(&f->dev, &left, &total, &err), &err);
    return left;
}

static void no_step_takes_memory_after_it_was_reserved(void) {
    NEEDS_FIBRES();
    static const int32_t n_of[] = {1, 3, 16, 17, MAX_TOKENS}, last_of[] = {39, 300, MAX_POS - 1};
    fixture f;
    sp_err err = {0};
    open_fixture(&f);
    const cu_dev *cu = f.dev.impl;
    must(f.dev.ops->reserve(&f.dev, &sizes, &err), &err);
    const void *scratch = cu->scratch;
    const uint64_t left = left_of(&f);
    for (size_t i = 0; i < SP_LEN(n_of) * SP_LEN(last_of); i++) {
        step(&f, n_of[i % SP_LEN(n_of)], last_of[i / SP_LEN(n_of)]);
        CU_ASSERT_EQUAL(left_of(&f), left);
        CU_ASSERT_PTR_EQUAL(cu->scratch, scratch);
    }
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
    close_fixture(&f);
}

/* So that the test above can fail: without reserve(), the same steps take it as they go. */
static void without_it_steps_take_what_they_need(void) {
    NEEDS_FIBRES();
    fixture f;
    open_fixture(&f);
    const cu_dev *cu = f.dev.impl;
    step(&f, 17, 39);
    const size_t products = cu->scratch_bytes;
    CU_ASSERT_EQUAL(products, cu_gemm_scratch(ROWS, COLS_MAX, SP_DTYPE_BF16, 17));
    step(&f, MAX_TOKENS, MAX_POS - 1);
    CU_ASSERT(cu->scratch_bytes > products);
    close_fixture(&f);
}

static void the_plan_is_told_at_least_what_is_reserved(void) {
    NEEDS_FIBRES();
    for (int32_t tokens = 1; tokens < 3000; tokens = tokens * 3 + 1)
        for (int32_t positions = 1; positions < 5000; positions = positions * 4 + 3) {
            fixture f;
            sp_err err = {0};
            sp_dev_sizes s = sizes;
            s.max_tokens = tokens;
            s.max_positions = positions;
            open_fixture(&f);
            const uint64_t before = left_of(&f);
            must(f.dev.ops->reserve(&f.dev, &s, &err), &err);
            CU_ASSERT(f.dev.ops->reserve_bytes(&s) >= before - left_of(&f));
            close_fixture(&f);
        }
}

static void too_little_for_it_is_named(void) {
    NEEDS_FIBRES();
    fixture f;
    sp_err err = {0};
    open_fixture(&f);
    cu_emu_fail_malloc(2); /* the first is of graphs, which can be done without */
    CU_ASSERT_EQUAL(f.dev.ops->reserve(&f.dev, &sizes, &err), SP_E_NOMEM);
    cu_emu_fail_malloc(0);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "40 tokens, 700 positions"));
    must(f.dev.ops->reserve(&f.dev, &sizes, &err), &err);
    step(&f, MAX_TOKENS, MAX_POS - 1);
    close_fixture(&f);
}

SP_TEST_MAIN("kernels/cuda/cuda_reserve", SP_TEST(no_step_takes_memory_after_it_was_reserved),
             SP_TEST(without_it_steps_take_what_they_need),
             SP_TEST(the_plan_is_told_at_least_what_is_reserved),
             SP_TEST(too_little_for_it_is_named))
