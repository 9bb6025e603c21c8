/* Covers runtime/engine/group_figures.c: totals as they were set, rates over the last window or two. */
#include "runtime/engine/group_figures.h"

#include "tests/harness.h"

#define S ((int64_t)1000 * 1000 * 1000)

static sp_engine_group_status at(const sp_group_figures *g, int64_t now_ns) {
    sp_engine_group_status st = {.n_links = 7};
    sp_group_figures_get(g, now_ns, &st);
    CU_ASSERT_EQUAL(st.n_links, 7);
    return st;
}

static void what_was_set_is_what_is_read(void) {
    sp_group_figures g = {0};
    sp_stepper_figures f = {.running = 1,
                            .waiting = 2,
                            .blocks_used = 3,
                            .blocks_total = 4,
                            .load = 5,
                            .prompt_tokens = 6,
                            .generated_tokens = 7};
    CU_ASSERT_EQUAL(at(&g, S).prompt_tokens_per_s, 0);
    sp_group_figures_set(&g, &f, 100 * S);
    sp_engine_group_status st = at(&g, 101 * S);
    CU_ASSERT(st.running == 1 && st.waiting == 2 && st.blocks_used == 3 && st.blocks_total == 4);
    CU_ASSERT(st.load_tokens == 5 && st.prompt_tokens == 6 && st.generated_tokens == 7);
}

static void a_steady_group_shows_its_rate_and_a_resting_one_less_and_less(void) {
    sp_group_figures g = {0};
    sp_stepper_figures f = {0};
    for (int64_t t = 0; t <= 600; t++) { /* a minute, ten steps a second */
        f.prompt_tokens = 100 * t;
        f.generated_tokens = 3 * t;
        sp_group_figures_set(&g, &f, 1000 * S + t * S / 10);
        if (t < 120) continue;
        sp_engine_group_status st = at(&g, 1000 * S + t * S / 10);
        CU_ASSERT_DOUBLE_EQUAL(st.prompt_tokens_per_s, 1000, 25);
        CU_ASSERT_DOUBLE_EQUAL(st.generated_tokens_per_s, 30, 1);
    }
    double before = at(&g, 1060 * S).prompt_tokens_per_s;
    for (int64_t s = 1061; s < 1100; s++) {
        double now = at(&g, s * S).prompt_tokens_per_s;
        CU_ASSERT(now <= before);
        before = now;
    }
    CU_ASSERT(before < 150);
    /* It works again: what is long ago does not count for long. */
    for (int64_t t = 0; t <= 120; t++) {
        f.prompt_tokens += 100;
        sp_group_figures_set(&g, &f, 1100 * S + t * S / 10);
    }
    CU_ASSERT_DOUBLE_EQUAL(at(&g, 1112 * S).prompt_tokens_per_s, 1000, 25);
}

SP_TEST_MAIN("runtime/engine/group figures", SP_TEST(what_was_set_is_what_is_read),
             SP_TEST(a_steady_group_shows_its_rate_and_a_resting_one_less_and_less))
