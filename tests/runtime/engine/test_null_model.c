/* Covers runtime/engine/null_model.c: it sees through the block table what the tokens say, and it
 * notices what is wrong with a table. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/null_model.h"
#include "tests/harness.h"

#include <string.h>

enum {
    VOCAB = 33,
    B = 4,
    BLOCKS = 6,
    N = 14
};
static const int32_t TOKENS[N] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7};

static sp_null_model *make(int64_t step_ns) {
    sp_null_model_config c = {.n_vocab = VOCAB,
                              .n_blocks = BLOCKS,
                              .block_tokens = B,
                              .max_step_rows = 4,
                              .step_ns = step_ns};
    sp_null_model *m = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&m, &c, &err), SP_OK);
    return m;
}

static const float *run(sp_null_model *m, int32_t from, int32_t n, const int32_t *blocks) {
    sp_stage_model cb = sp_null_model_callbacks(m);
    sp_seq_rows seq = {.n_rows = n, .pos0 = from, .blocks = blocks};
    int32_t row = n - 1;
    sp_batch b = {
        .n_tokens = n, .ids = TOKENS + from, .n_seqs = 1, .seqs = &seq, .n_rows = 1, .rows = &row};
    const float *logits = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(cb.forward(cb.ctx, &b, &logits, &err), SP_OK);
    return logits;
}

static void rows_do_not_depend_on_chunks_or_blocks(void) {
    static const int32_t tables[][4] = {{0, 1, 2, 3}, {5, 2, 4, 0}};
    float want[VOCAB];
    sp_null_model_logits(TOKENS, N, want, VOCAB);
    for (size_t t = 0; t < SP_LEN(tables); t++)
        for (int32_t chunk = 1; chunk <= N; chunk++) {
            sp_null_model *m = make(0);
            const float *got = NULL;
            for (int32_t at = 0; at < N; at += chunk)
                got = run(m, at, chunk < N - at ? chunk : N - at, tables[t]);
            CU_ASSERT(memcmp(got, want, sizeof want) == 0);
            sp_null_model_destroy(m);
        }
}

static void a_wrong_table_a_stale_block_and_a_lost_position_change_the_row(void) {
    static const int32_t good[] = {0, 1, 2, 3}, wrong[] = {0, 4, 2, 3};
    float want[VOCAB];
    sp_null_model_logits(TOKENS, N, want, VOCAB);
    sp_null_model *m = make(0);
    (void)run(m, 0, N - 1, good);
    CU_ASSERT(memcmp(run(m, N - 1, 1, wrong), want, sizeof want) != 0);
    CU_ASSERT(memcmp(run(m, N - 1, 1, good), want, sizeof want) == 0);
    (void)run(m, 8, 4, good + 1); /* another sequence writes into block 3: positions 8..11 */
    CU_ASSERT(memcmp(run(m, N - 1, 1, good), want, sizeof want) != 0);
    sp_null_model_destroy(m);
}

static void too_many_rows_and_short_memory_are_said(void) {
    sp_err err = {0};
    sp_null_model *m = make(0), *none = NULL;
    sp_stage_model cb = sp_null_model_callbacks(m);
    sp_batch b = {.n_rows = 5};
    const float *logits;
    CU_ASSERT_EQUAL(cb.forward(cb.ctx, &b, &logits, &err), SP_E_INTERNAL);
    sp_null_model_destroy(m);
    sp_null_model_config c = {.n_vocab = 4, .n_blocks = 1, .block_tokens = 1, .max_step_rows = 1};
    for (int64_t n = 1; n <= 2; n++) {
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(sp_null_model_create(&none, &c, &err), SP_E_NOMEM);
    }
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(none);
}

static void a_step_takes_the_time_it_is_told(void) {
    static const int32_t good[] = {0, 1, 2, 3};
    sp_null_model *m = make(2 * SP_NS_PER_MS);
    int64_t from = sp_now_ns();
    (void)run(m, 0, 3, good);
    CU_ASSERT(sp_now_ns() - from >= 2 * SP_NS_PER_MS);
    sp_null_model_destroy(m);
}

SP_TEST_MAIN("runtime/engine/null_model", SP_TEST(rows_do_not_depend_on_chunks_or_blocks),
             SP_TEST(a_wrong_table_a_stale_block_and_a_lost_position_change_the_row),
             SP_TEST(too_many_rows_and_short_memory_are_said),
             SP_TEST(a_step_takes_the_time_it_is_told))
