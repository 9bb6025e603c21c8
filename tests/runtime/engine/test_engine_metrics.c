/* Covers runtime/engine/engine_metrics.c: bounds, and what a life leaves in the figures. */
#include "runtime/base/clock.h"
#include "runtime/engine/engine_metrics.h"
#include "tests/harness.h"

#include <string.h>

static uint64_t count(const sp_histogram *h) {
    uint64_t n = 0;
    for (int i = 0; i <= h->n_bounds; i++) n += h->buckets[i];
    return n;
}

static void token_bounds_end_at_the_longest_sequence(void) {
    static sp_engine_metrics m;
    sp_engine_metrics_init(&m, 4096);
    const sp_histogram *h = &m.req_prompt_tokens;
    CU_ASSERT_EQUAL(h->n_bounds, 11);
    CU_ASSERT(h->bounds[0] == 1 && h->bounds[1] == 2 && h->bounds[2] == 5 && h->bounds[10] == 2000);
    sp_engine_metrics_init(&m, 1);
    CU_ASSERT_EQUAL(m.req_max_tokens.n_bounds, 1);
    CU_ASSERT(m.ttft_s.n_bounds == 22 && m.itl_s.n_bounds == 19 && m.e2e_s.n_bounds == 21);
    CU_ASSERT(m.ttft_s.bounds[21] == 2560 && m.queue_s.bounds[20] == 7680);
    CU_ASSERT(m.iteration_tokens.bounds[12] == 16384 && m.req_n.n_bounds == 5);
}

static sp_request *make(void) {
    static const int32_t prompt[] = {1, 2, 3, 4};
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    sp_engine_request req = {.prompt = prompt, .n_prompt = 4, .params = &g};
    sp_request *r = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_request_create(&r, &req, 9, 4, &err), SP_OK);
    return r;
}

static void a_life_leaves_each_figure_once(void) {
    static sp_engine_metrics m;
    sp_engine_metrics_init(&m, 4096);
    sp_request *r = make();
    sp_seq *q = r->seqs;
    r->arrival_ns = 1 * SP_NS_PER_S;
    q->scheduled_ns = 2 * SP_NS_PER_S;
    r->n_cached = 2;
    q->n_computed = 2;
    sp_engine_metrics_prompt(&m, r);
    for (int i = 0; i < 3; i++) {
        q->n_output++;
        sp_engine_metrics_token(&m, q, (4 + i) * SP_NS_PER_S);
    }
    r->max_output = 3;
    sp_engine_metrics_end(&m, q, SP_FINISH_STOP, 6 * SP_NS_PER_S);
    sp_engine_metrics_request(&m, r);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.ttft_s), 3);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.queue_s), 1);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.prefill_s), 2);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.decode_s), 2);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.inference_s), 4);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.tpot_s), 1);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.itl_s), 2);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.e2e_s), 5);
    CU_ASSERT(count(&m.itl_s) == 2 && count(&m.req_n) == 1 && count(&m.e2e_s) == 1);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.req_generation_tokens), 3);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.req_max_tokens), 9);
    CU_ASSERT_EQUAL(sp_histogram_sum(&m.req_prefill_computed_tokens), 2);
    CU_ASSERT(sp_counter_get(&m.prompt_tokens) == 4 &&
              sp_counter_get(&m.prompt_tokens_cached) == 2);
    CU_ASSERT(sp_counter_get(&m.finished[SP_FINISH_STOP]) == 1);
    sp_request_destroy(r);
}

static void who_never_ran_has_no_phases(void) {
    static sp_engine_metrics m;
    sp_engine_metrics_init(&m, 4096);
    sp_request *r = make();
    r->arrival_ns = SP_NS_PER_S;
    sp_engine_metrics_end(&m, r->seqs, SP_FINISH_ABORT, 2 * SP_NS_PER_S);
    CU_ASSERT(count(&m.e2e_s) == 1 && count(&m.queue_s) == 0 && count(&m.decode_s) == 0);
    CU_ASSERT_EQUAL(count(&m.ttft_s), 0);
    sp_request_destroy(r);
}

SP_TEST_MAIN("runtime/engine/engine_metrics", SP_TEST(token_bounds_end_at_the_longest_sequence),
             SP_TEST(a_life_leaves_each_figure_once), SP_TEST(who_never_ran_has_no_phases))
