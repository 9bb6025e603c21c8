/* Covers comm/backoff.c: bounds, growth, jitter, reset. */
#include "comm/backoff.h"

#include "tests/harness.h"

static void every_wait_is_between_50_ms_and_2_s(void) {
    for (uint64_t seed = 0; seed < 200; seed++) {
        sp_backoff b;
        sp_backoff_init(&b, seed);
        for (int i = 0; i < 200; i++) {
            int64_t ns = sp_backoff_next(&b);
            CU_ASSERT(ns >= SP_BACKOFF_MIN_NS && ns <= SP_BACKOFF_MAX_NS);
        }
    }
}

static void steps_double_until_the_longest(void) {
    sp_backoff b;
    sp_backoff_init(&b, 7);
    int64_t step = 2 * SP_BACKOFF_MIN_NS;
    for (int i = 0; i < 20; i++) {
        int64_t ns = sp_backoff_next(&b);
        CU_ASSERT(ns >= step / 2 && ns <= step);
        step = step * 2 < SP_BACKOFF_MAX_NS ? step * 2 : SP_BACKOFF_MAX_NS;
    }
}

static void waits_of_different_seeds_spread(void) {
    int n_low = 0;
    for (uint64_t seed = 0; seed < 1000; seed++) {
        sp_backoff b;
        sp_backoff_init(&b, seed);
        if (sp_backoff_next(&b) < SP_BACKOFF_MIN_NS * 3 / 2) n_low++;
    }
    CU_ASSERT(n_low > 400 && n_low < 600);
}

static void reset_starts_from_the_shortest(void) {
    sp_backoff b;
    sp_backoff_init(&b, 1);
    for (int i = 0; i < 9; i++) (void)sp_backoff_next(&b);
    sp_backoff_reset(&b);
    CU_ASSERT(sp_backoff_next(&b) <= 2 * SP_BACKOFF_MIN_NS);
}

SP_TEST_MAIN("comm/backoff", SP_TEST(every_wait_is_between_50_ms_and_2_s),
             SP_TEST(steps_double_until_the_longest), SP_TEST(waits_of_different_seeds_spread),
             SP_TEST(reset_starts_from_the_shortest))
