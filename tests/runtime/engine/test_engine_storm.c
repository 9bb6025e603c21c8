/* Covers runtime/engine/engine.c and all behind it under load: random requests, cancels, orders,
 * shared prefixes, tiny pools and budgets, with real threads; and what a step costs the head. */
#include "runtime/base/mem.h"
#include "tests/engine_pod.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- everything at once ---- */

static uint64_t rng_state;
static int32_t rnd(int32_t n) {
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int32_t)((rng_state >> 33) % (uint64_t)n);
}

static void random_ask(ask *a, int32_t max_model_len) {
    static const int32_t stop_table[] = {11, 12};
    static const sp_logit_bias bias_table[] = {{3, 2.5f}, {50, -100.0f}};
    static const int32_t bad_table[] = {1, 7, 2, 8, 9};
    ask_init(a, 1 + rnd(max_model_len / 2), rnd(3)); /* few seeds: many shared prefixes */
    if (rnd(3) == 0) a->prompt[rnd(a->n_prompt)] = rnd(VOCAB);
    sp_gen_params *g = &a->params;
    g->max_tokens = rnd(8) == 0 ? 0 : 1 + rnd(max_model_len);
    g->temperature = (float)rnd(3) * 0.6f;
    g->top_k = rnd(2) ? 0 : 5;
    g->top_p = rnd(2) ? 1.0f : 0.8f;
    g->repetition_penalty = rnd(3) ? 1.0f : 1.2f;
    g->presence_penalty = rnd(3) ? 0 : 0.5f;
    g->seed = (uint64_t)rnd(1000);
    g->ignore_eos = rnd(2);
    g->min_tokens = rnd(4) ? 0 : rnd(20);
    g->n = rnd(4) ? 1 : 1 + rnd(CHOICES_MAX);
    g->n_logprobs = rnd(5) ? -1 : rnd(4);
    g->n_prompt_logprobs = rnd(6) ? -1 : rnd(3);
    g->all_logits = g->n == 1 && rnd(8) == 0;
    if (rnd(3) == 0) g->stop_ids = stop_table, g->n_stop_ids = 2;
    if (rnd(4) == 0) g->logit_bias = bias_table, g->n_logit_bias = 2;
    if (rnd(4) == 0) g->bad_words = bad_table, g->n_bad_words_ints = 5;
    a->priority = rnd(3) - 1;
    a->salt = rnd(5) ? NULL : "salt";
}

enum {
    ASKS = 24
};
typedef struct storm {
    pod p;
    ask a[ASKS];
    int submitted, checked;
} storm;

static void storm_op(storm *s) {
    ask *a = &s->a[rnd(ASKS)];
    int what = rnd(10);
    if (a->live && ask_over(a)) {
        ask_check(a, s->p.config.max_model_len);
        s->checked++;
        a->live = false;
    }
    if (!a->live && what < 7) {
        sp_err err = {0};
        random_ask(a, s->p.config.max_model_len);
        sp_status st = ask_submit(&s->p, a, SP_NEVER, &err);
        CU_ASSERT_FATAL(st == SP_OK || st == SP_E_LIMIT);
        s->submitted += st == SP_OK;
    } else if (a->live && what == 7) {
        int32_t c = rnd(3) ? rnd(a->params.n) : -1;
        sp_engine_cancel(s->p.engine, a->id, c, rnd(2) ? SP_FINISH_ABORT : SP_FINISH_STOP);
        for (int32_t i = 0; i < a->params.n; i++)
            if ((c < 0 || c == i) && a->finish[i] == SP_FINISH_NONE) a->cancelled[i] = true;
    } else {
        (void)pod_pump(&s->p, rnd(2));
    }
}

static void run_storm(int seed, int ops, int tp, int pp, bool ahead) {
    static const int32_t budgets[] = {1, 7, 64}, sizes[] = {8, 16, 32};
    static storm s;
    memset(&s, 0, sizeof s);
    rng_state = (uint64_t)seed * 1000003;
    sp_engine_config c = pod_config();
    c.max_batched_tokens = budgets[seed % 3];
    c.block_tokens = sizes[seed / 3 % 3];
    c.max_num_seqs = 1 + rnd(8);
    c.max_step_rows = c.max_num_seqs + rnd(20);
    c.n_stages = 1 + rnd(4); /* alone: planned as for a pipeline, for a rank that is none */
    c.queue_max = 16;
    c.enable_prefix_cache = rnd(4) != 0;
    int32_t blocks_a_seq = sp_kv_blocks_for(64, c.block_tokens);
    int32_t n_blocks = blocks_a_seq + rnd(2 * blocks_a_seq); /* tiny: preemption is common */
    c.max_model_len = blocks_a_seq * c.block_tokens - rnd(8);
    if (tp * pp > 1)
        pod_start_shape(&s.p, c, n_blocks, -1, tp, pp);
    else
        (ahead ? pod_start_ahead : pod_start)(&s.p, &c, n_blocks, -1);
    for (int i = 0; i < ops; i++) storm_op(&s);
    pod_finish(&s.p, s.a, ASKS);
    for (int i = 0; i < ASKS; i++)
        if (s.a[i].live) ask_check(&s.a[i], c.max_model_len);
    pod_drain(&s.p);
    sp_engine_stop(s.p.engine);
    CU_ASSERT(sp_engine_check(s.p.engine));
    CU_ASSERT_EQUAL(GAUGE(&s.p, blocks_used), 0);
    CU_ASSERT_EQUAL(GAUGE(&s.p, running) + GAUGE(&s.p, waiting), 0);
    uint64_t finished = 0;
    for (int f = 0; f <= SP_FINISH_ERROR; f++) finished += COUNTER(&s.p, finished[f]);
    CU_ASSERT(finished >= (uint64_t)s.submitted);
    CU_ASSERT_EQUAL(COUNTER(&s.p, finished[SP_FINISH_ERROR]), 0);
    if (getenv("SP_TEST_VERBOSE"))
        printf("storm %d, tp %d pp %d: %d requests, %d compared, %llu preemptions, %llu hits, %llu "
               "steps\n",
               seed, tp, pp, s.submitted, s.checked, (unsigned long long)COUNTER(&s.p, preemptions),
               (unsigned long long)COUNTER(&s.p, prefix_hits),
               (unsigned long long)COUNTER(&s.p, steps));
    if (ahead) CU_ASSERT(s.p.rank.ahead.n_deep > 0);
    pod_end(&s.p);
}

static void a_storm_of_requests_gives_the_tokens_of_each_alone(void) {
    const char *ops = getenv("SP_TEST_OPS");
    for (int seed = 0; seed < 18; seed++) run_storm(seed, ops ? atoi(ops) : 250, 1, 1, false);
}

/* The rank submits steps of which it does not know all tokens, and answers them when they end. */
static void a_storm_for_a_device_that_runs_ahead_gives_the_same_tokens(void) {
    const char *ops = getenv("SP_TEST_OPS");
    for (int seed = 0; seed < 18; seed++) run_storm(200 + seed, ops ? atoi(ops) : 200, 1, 1, true);
}

/* Every rank of the pod has to agree with all others on every token, every table and every block. */
static void a_storm_over_many_ranks_gives_the_same_tokens(void) {
    static const int shapes[][2] = {{2, 1}, {1, 2}, {2, 2}, {1, 3}, {1, 4}, {4, 1}};
    const char *ops = getenv("SP_TEST_OPS");
    for (int seed = 0; seed < 18; seed++) {
        const int *shape = shapes[(size_t)(seed * 5 + seed / 6) % SP_LEN(shapes)];
        run_storm(100 + seed, ops ? atoi(ops) : 120, shape[0], shape[1], false);
    }
}

/* Figures, not limits: they depend on the machine. */
static void measure(int32_t n_seqs) {
    enum {
        EACH = 200
    };
    pod p;
    sp_engine_config c = pod_config();
    c.max_num_seqs = n_seqs;
    c.max_batched_tokens = 2048;
    c.max_model_len = 256;
    ask *a = calloc((size_t)n_seqs, sizeof *a);
    pod_start(&p, &c, n_seqs * 16, 0);
    for (int i = 0; i < n_seqs; i++) {
        ask_init(&a[i], 16, i);
        a[i].params.max_tokens = EACH;
        ask_must_submit(&p, &a[i]);
    }
    sp_fake_rank_allow(&p.rank, 20); /* all run, everything has its size */
    while (COUNTER(&p, steps) < 20) (void)pod_pump(&p, 10);
    uint64_t cpu = COUNTER(&p, engine_cpu_ns), steps = COUNTER(&p, steps), allocs = sp_mem_count();
    sp_fake_rank_allow(&p.rank, -1);
    while (COUNTER(&p, steps) < 150) (void)pod_pump(&p, 10);
    /* Head, rank and consumer together: event slabs only, as far as the consumer fell behind, which
     * is up to the machine; a thing allocated per token would make n_seqs * 130. */
    CU_ASSERT(sp_mem_count() - allocs <= 64 + (uint64_t)n_seqs * 13);
    cpu = COUNTER(&p, engine_cpu_ns) - cpu;
    steps = COUNTER(&p, steps) - steps;
    printf("engine thread at %d sequences: %.1f us of CPU a step\n", n_seqs,
           (double)cpu / (double)steps / 1000.0);
    pod_finish(&p, a, n_seqs);
    for (int i = 0; i < n_seqs; i += 17) ask_check(&a[i], c.max_model_len);
    free(a);
    pod_end(&p);
}

static void the_engine_thread_needs_little_for_a_step(void) {
    measure(1);
    measure(32);
    measure(256);
}

SP_TEST_MAIN("runtime/engine/engine storm",
             SP_TEST(a_storm_of_requests_gives_the_tokens_of_each_alone),
             SP_TEST(a_storm_for_a_device_that_runs_ahead_gives_the_same_tokens),
             SP_TEST(a_storm_over_many_ranks_gives_the_same_tokens),
             SP_TEST(the_engine_thread_needs_little_for_a_step))
