/* Covers runtime/kv/pool.c: counting, fences, the order of giving up. */
#include "runtime/base/mem.h"
#include "runtime/kv/pool.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

static sp_kv_pool *make(int32_t n) {
    sp_kv_pool *p = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(&p, n, &err), SP_OK);
    return p;
}

static void a_shared_block_is_free_only_after_its_last_drop(void) {
    sp_kv_pool *p = make(3);
    for (sp_block want = 0; want < 3; want++) CU_ASSERT_EQUAL(sp_kv_pool_take(p), want);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), SP_BLOCK_NONE);
    sp_kv_pool_share(p, 1);
    sp_kv_pool_drop(p, 1, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), 0);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_drop(p, 1, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 1);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_destroy(p);
}

static void a_dropped_block_is_fenced_until_the_last_step_that_names_it_retires(void) {
    sp_kv_pool *p = make(2);
    sp_block a = sp_kv_pool_take(p), b = sp_kv_pool_take(p);
    sp_kv_pool_share(p, a);
    sp_kv_pool_drop(p, a, 5); /* one holder ran in step 5, the other last in step 3 */
    sp_kv_pool_drop(p, a, 3);
    sp_kv_pool_drop(p, b, 4);
    CU_ASSERT_EQUAL(sp_kv_pool_fenced(p), 2);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), SP_BLOCK_NONE);
    sp_kv_pool_retire(p, 4);
    CU_ASSERT(sp_kv_pool_check(p));
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), b);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), SP_BLOCK_NONE);
    sp_kv_pool_retire(p, 5);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), a);
    sp_kv_pool_drop(p, a, 5); /* that step is over: free at once */
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), 1);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_destroy(p);
}

static void note_evicted(void *ctx, sp_block b) {
    *(sp_block *)ctx = b;
}

static void kept_blocks_are_given_up_oldest_first_and_only_when_none_is_free(void) {
    sp_kv_pool *p = make(3);
    sp_block evicted = SP_BLOCK_NONE;
    sp_kv_pool_on_evict(p, note_evicted, &evicted);
    for (int i = 0; i < 2; i++) sp_kv_pool_keep(p, sp_kv_pool_take(p));
    sp_kv_pool_drop(p, 1, 0);
    sp_kv_pool_drop(p, 0, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_idle(p), 2);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 2);
    CU_ASSERT_EQUAL(evicted, SP_BLOCK_NONE);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 1);
    CU_ASSERT_EQUAL(evicted, 1);
    sp_kv_pool_share(p, 0); /* found again: not given up */
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), SP_BLOCK_NONE);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_drop(p, 1, 0); /* what it is now, nobody can find */
    CU_ASSERT_EQUAL(sp_kv_pool_idle(p), 0);
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), 1);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_destroy(p);
}

static void a_fenced_kept_block_can_be_shared_again_and_idles_after_its_fence(void) {
    sp_kv_pool *p = make(1);
    sp_kv_pool_keep(p, sp_kv_pool_take(p));
    sp_kv_pool_drop(p, 0, 7);
    CU_ASSERT_EQUAL(sp_kv_pool_fenced(p), 1);
    sp_kv_pool_share(p, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_fenced(p), 0);
    CU_ASSERT_EQUAL(sp_kv_pool_held(p), 1);
    sp_kv_pool_drop(p, 0, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_fenced(p), 1); /* step 7 still names it */
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_retire(p, 7);
    CU_ASSERT_EQUAL(sp_kv_pool_idle(p), 1);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_destroy(p);
}

static void create_refuses_bad_sizes_and_survives_short_memory(void) {
    sp_err err = {0};
    sp_kv_pool *p = NULL;
    CU_ASSERT_EQUAL(sp_kv_pool_create(&p, 0, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "0 blocks"));
    CU_ASSERT_EQUAL(sp_kv_pool_create(&p, SP_KV_BLOCKS_MAX + 1, &err), SP_E_INVALID);
    for (int64_t n = 1; n <= 6; n++) {
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(sp_kv_pool_create(&p, 4, &err), SP_E_NOMEM);
        CU_ASSERT_PTR_NULL(p);
    }
    sp_mem_fail_at(0);
    sp_kv_pool_destroy(NULL);
}

static void random_use_keeps_the_books(void) {
    enum {
        N = 24,
        HANDS = 64
    };
    sp_kv_pool *p = make(N);
    sp_block hand[HANDS];
    int n = 0;
    uint64_t sent = 0, retired = 0;
    srand(7);
    for (int i = 0; i < 20000; i++) {
        int what = rand() % 6;
        sp_block b;
        if (what < 2 && n < HANDS && (b = sp_kv_pool_take(p)) != SP_BLOCK_NONE) hand[n++] = b;
        if (what == 2 && n > 0 && n < HANDS) {
            b = hand[rand() % n];
            sp_kv_pool_share(p, b);
            hand[n++] = b;
        }
        if (what == 3 && n > 0) {
            int k = rand() % n;
            sp_kv_pool_drop(p, hand[k], sent ? sent - (uint64_t)(rand() % 2) : 0);
            hand[k] = hand[--n];
        }
        if (what == 4 && n > 0) sp_kv_pool_keep(p, hand[rand() % n]);
        if (what == 5 && sent - retired < 3)
            sent++;
        else if (what == 5)
            sp_kv_pool_retire(p, ++retired);
        CU_ASSERT_FATAL(sp_kv_pool_check(p));
    }
    while (n > 0) sp_kv_pool_drop(p, hand[--n], sent);
    sp_kv_pool_retire(p, sent);
    CU_ASSERT_EQUAL(sp_kv_pool_available(p), N);
    CU_ASSERT(sp_kv_pool_check(p));
    sp_kv_pool_destroy(p);
}

SP_TEST_MAIN("runtime/kv/pool", SP_TEST(a_shared_block_is_free_only_after_its_last_drop),
             SP_TEST(a_dropped_block_is_fenced_until_the_last_step_that_names_it_retires),
             SP_TEST(kept_blocks_are_given_up_oldest_first_and_only_when_none_is_free),
             SP_TEST(a_fenced_kept_block_can_be_shared_again_and_idles_after_its_fence),
             SP_TEST(create_refuses_bad_sizes_and_survives_short_memory),
             SP_TEST(random_use_keeps_the_books))
