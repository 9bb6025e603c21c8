#include "runtime/engine/dispatch.h"

#include "tests/harness.h"

#define D SP_POOL_DECODE
#define P SP_POOL_PREFILL
#define M SP_POOL_MIXED

static void the_least_busy_group_decodes(void) {
    sp_dispatch_group g[] = {{D, 900, 0}, {M, 100, 0}, {P, 0, 0}};
    CU_ASSERT_EQUAL(sp_dispatch(g, 3, 0, 256).decode, 1);
}

static void a_cached_prefix_wins_over_a_little_more_load(void) {
    sp_dispatch_group g[] = {{D, 900, 0}, {D, 1400, 320}};
    CU_ASSERT_EQUAL(sp_dispatch(g, 2, 0, 256).decode, 1);
    g[1].load = 900 + 900 + 320 + 1;
    CU_ASSERT_EQUAL(sp_dispatch(g, 2, 0, 256).decode, 0);
    g[1].load--;
    CU_ASSERT_EQUAL(sp_dispatch(g, 2, 0, 256).decode, 1);
}

static void only_more_than_the_threshold_is_prefilled_elsewhere(void) {
    sp_dispatch_group g[] = {{D, 0, 0}, {P, 0, 0}, {P, 10, 64}};
    CU_ASSERT_EQUAL(sp_dispatch(g, 3, 256, 256).prefill, -1);
    CU_ASSERT_EQUAL(sp_dispatch(g, 3, 257, 256).prefill, 2);
    g[0].cached = 16;
    CU_ASSERT_EQUAL(sp_dispatch(g, 3, 272, 256).prefill, -1);
    CU_ASSERT_EQUAL(sp_dispatch(g, 3, 0, 0).prefill, -1);
}

static void without_a_prefill_group_nothing_is_split(void) {
    sp_dispatch_group g[] = {{D, 5, 0}, {M, 0, 0}};
    sp_dispatch_choice c = sp_dispatch(g, 2, 5000, 0);
    CU_ASSERT(c.decode == 1 && c.prefill == -1);
}

static void somebody_must_decode(void) {
    const sp_pool_role none[] = {P, P}, one[] = {P, M};
    CU_ASSERT_FALSE(sp_dispatch_can_decode(none, 2));
    CU_ASSERT(sp_dispatch_can_decode(one, 2));
    sp_dispatch_group g[] = {{P, 0, 0}};
    CU_ASSERT_EQUAL(sp_dispatch(g, 1, 10, 0).decode, -1);
}

SP_TEST_MAIN("runtime/engine/dispatch", SP_TEST(the_least_busy_group_decodes),
             SP_TEST(a_cached_prefix_wins_over_a_little_more_load),
             SP_TEST(only_more_than_the_threshold_is_prefilled_elsewhere),
             SP_TEST(without_a_prefill_group_nothing_is_split), SP_TEST(somebody_must_decode))
