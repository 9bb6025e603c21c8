/* Covers runtime/kv/blocks.c: growing whole or not at all, sharing, order of release. */
#include "runtime/base/mem.h"
#include "runtime/kv/blocks.h"
#include "tests/harness.h"

static void a_table_grows_whole_or_not_at_all(void) {
    sp_err err = {0};
    sp_kv_pool *p = NULL;
    sp_kv_blocks t = {0};
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(&p, 4, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_kv_blocks_init(&t, 6, &err), SP_OK);
    CU_ASSERT(sp_kv_blocks_grow(&t, p, 3));
    CU_ASSERT_FALSE(sp_kv_blocks_grow(&t, p, 2));
    CU_ASSERT_EQUAL(t.n, 3);
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), 1);
    CU_ASSERT(sp_kv_blocks_grow(&t, p, 0));
    CU_ASSERT(sp_kv_blocks_check(&t, p) && sp_kv_pool_check(p));
    sp_kv_blocks_release(&t, p, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), 4);
    sp_kv_blocks_fini(&t);
    CU_ASSERT_PTR_NULL(t.ids);
    sp_kv_pool_destroy(p);
}

static void the_end_of_a_shared_prefix_is_given_up_first(void) {
    sp_err err = {0};
    sp_kv_pool *p = NULL;
    sp_kv_blocks a = {0}, b = {0};
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(&p, 3, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_kv_blocks_init(&a, 3, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_kv_blocks_init(&b, 3, &err), SP_OK);
    CU_ASSERT_FATAL(sp_kv_blocks_grow(&a, p, 3));
    for (int i = 0; i < 3; i++) sp_kv_pool_keep(p, a.ids[i]);
    sp_kv_blocks_adopt(&b, p, a.ids[0]);
    sp_kv_blocks_adopt(&b, p, a.ids[1]);
    sp_kv_blocks_release(&a, p, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_idle(p), 1); /* the third; two are b's still */
    CU_ASSERT(sp_kv_blocks_check(&b, p));
    sp_kv_blocks_release(&b, p, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 2);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 1);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 0);
    sp_kv_blocks_fini(&a);
    sp_kv_blocks_fini(&b);
    sp_kv_pool_destroy(p);
}

static void the_number_of_blocks_is_rounded_up_without_overflow(void) {
    CU_ASSERT_EQUAL(sp_kv_blocks_for(0, 16), 0);
    CU_ASSERT_EQUAL(sp_kv_blocks_for(1, 16), 1);
    CU_ASSERT_EQUAL(sp_kv_blocks_for(16, 16), 1);
    CU_ASSERT_EQUAL(sp_kv_blocks_for(17, 16), 2);
    CU_ASSERT_EQUAL(sp_kv_blocks_for(INT32_MAX, 16), 1 << 27);
}

static void short_memory_is_said(void) {
    sp_err err = {0};
    sp_kv_blocks t = {0};
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_kv_blocks_init(&t, 4, &err), SP_E_NOMEM);
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(t.ids);
}

SP_TEST_MAIN("runtime/kv/blocks", SP_TEST(a_table_grows_whole_or_not_at_all),
             SP_TEST(the_end_of_a_shared_prefix_is_given_up_first),
             SP_TEST(the_number_of_blocks_is_rounded_up_without_overflow),
             SP_TEST(short_memory_is_said))
