/* Covers runtime/engine/engine.c with real threads and a real link, one behaviour at a time. */
#include "tests/engine_pod.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* ---- one thing at a time ---- */

static void one_request_gives_the_tokens_of_its_prompt(void) {
    pod p;
    static ask a;
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, -1);
    ask_init(&a, 37, 1);
    a.params.max_tokens = 50;
    ask_must_submit(&p, &a);
    pod_finish(&p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(a.finish[0], SP_FINISH_LENGTH);
    CU_ASSERT_EQUAL(a.n_cached, 0);
    pod_drain(&p);
    const sp_engine_metrics *m = sp_engine_get_metrics(p.engine);
    CU_ASSERT_EQUAL(sp_counter_get(&m->generation_tokens), 50);
    CU_ASSERT_EQUAL(sp_counter_get(&m->prompt_tokens), 37);
    CU_ASSERT_EQUAL(sp_counter_get(&m->finished[SP_FINISH_LENGTH]), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->ttft_s), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->itl_s), 49);
    CU_ASSERT_EQUAL(pod_observed(&m->tpot_s), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->req_n), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->iteration_tokens), sp_counter_get(&m->steps));
    CU_ASSERT_EQUAL(GAUGE(&p, blocks_used), 0);
    pod_end(&p);
}

static void a_second_step_is_sent_before_the_first_one_answers(void) {
    pod p;
    static ask a;
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, 0);
    ask_init(&a, 5, 2);
    a.params.max_tokens = 6;
    ask_must_submit(&p, &a);
    sp_fake_rank_wait_steps(&p.rank, 1);
    /* Step 1 waits at the gate; let it go: step 2 must be there already, without its token. */
    sp_fake_rank_allow(&p.rank, 1);
    sp_fake_rank_wait_steps(&p.rank, 2);
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, &a, 1);
    ask_check(&a, 200);
    pod_end(&p);
    CU_ASSERT_EQUAL(p.rank.n_steps, 6); /* nothing beyond max_tokens was ever run */
}

static void eos_stop_ids_length_and_context_end_a_choice_each_in_its_way(void) {
    pod p;
    static ask a[6];
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 128, -1);
    for (int i = 0; i < 6; i++) {
        ask_init(&a[i], 20 + i, i);
        a[i].params.max_tokens = 150;
    }
    a[0].params.ignore_eos = false;
    expectation x = expect(&a[1], 0, 200);
    int32_t stop = x.out[9];
    a[1].params.stop_ids = &stop;
    a[1].params.n_stop_ids = 1;
    a[2].params.max_tokens = 1;
    a[3].params.max_tokens = 100000; /* the context ends first */
    a[4].params.max_tokens = 0;
    a[5].params.ignore_eos = false;
    a[5].params.min_tokens = 120;
    for (int i = 0; i < 6; i++) ask_must_submit(&p, &a[i]);
    pod_finish(&p, a, 6);
    for (int i = 0; i < 6; i++) ask_check(&a[i], 200);
    CU_ASSERT_EQUAL(a[1].finish[0], SP_FINISH_STOP);
    CU_ASSERT_EQUAL(a[1].stop_id[0], stop);
    CU_ASSERT_EQUAL(a[2].n_out[0], 1);
    CU_ASSERT_EQUAL(a[3].n_out[0], 200 - 23);
    CU_ASSERT_EQUAL(a[3].finish[0], SP_FINISH_LENGTH);
    CU_ASSERT_EQUAL(a[4].n_out[0], 0);
    CU_ASSERT_EQUAL(a[4].finish[0], SP_FINISH_LENGTH);
    CU_ASSERT(a[5].n_out[0] >= 120);
    pod_drain(&p);
    CU_ASSERT_EQUAL(COUNTER(&p, prompt_tokens), 20 + 21 + 22 + 23 + 24 + 25);
    pod_end(&p);
}

static void tokens_after_the_end_are_never_told_and_never_counted(void) {
    pod p;
    static ask a;
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, -1);
    ask_init(&a, 11, 3);
    a.params.max_tokens = 100;
    expectation x = expect(&a, 0, 200);
    int32_t stop = x.out[4]; /* while the step for its successor is on its way */
    a.params.stop_ids = &stop;
    a.params.n_stop_ids = 1;
    x = expect(&a, 0, 200);
    ask_must_submit(&p, &a);
    pod_finish(&p, &a, 1);
    pod_drain(&p);
    CU_ASSERT_EQUAL(a.n_out[0], x.n);
    CU_ASSERT_EQUAL(COUNTER(&p, generation_tokens), (uint64_t)x.n);
    CU_ASSERT(p.rank.n_steps > x.n); /* it was run ahead, and thrown away */
    pod_end(&p);
}

static void logprobs_come_with_tokens_and_with_the_prompt(void) {
    pod p;
    static ask a[3];
    sp_engine_config c = pod_config();
    c.max_batched_tokens = 7;
    pod_start(&p, &c, 64, -1);
    for (int i = 0; i < 3; i++) {
        ask_init(&a[i], 45, 7); /* the same prompt: it must be computed anew for each */
        a[i].params.max_tokens = 5;
        a[i].params.n_prompt_logprobs = 3;
    }
    a[0].params.n_logprobs = 4;
    a[1].params.max_tokens = 0;
    a[2].n_prompt = 1;
    for (int i = 0; i < 3; i++) {
        ask_must_submit(&p, &a[i]);
        pod_finish(&p, &a[i], 1);
        ask_check(&a[i], 200);
        CU_ASSERT_EQUAL(a[i].n_prompt_logprobs, a[i].n_prompt);
        CU_ASSERT_EQUAL(a[i].n_cached, 0);
    }
    pod_drain(&p);
    CU_ASSERT_EQUAL(COUNTER(&p, prefix_queries), 1); /* a prompt of one token has no rows to tell */
    CU_ASSERT_EQUAL(COUNTER(&p, prefix_hits), 0);
    pod_end(&p);
}

static void sampled_logprobs_are_those_of_the_untouched_row(void) {
    pod p;
    static ask a;
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, -1);
    ask_init(&a, 9, 4);
    a.params.max_tokens = 12;
    a.params.temperature = 0.9f;
    a.params.seed = 77;
    a.params.n_logprobs = 5;
    ask_must_submit(&p, &a);
    int seen = 0;
    while (!ask_over(&a)) {
        sp_event ev;
        if (sp_engine_events(p.engine, &ev, 1) == 0) continue;
        ask_take(&a, &ev);
        int32_t tokens[64];
        memcpy(tokens, a.prompt, 9 * sizeof *tokens);
        memcpy(tokens + 9, a.out[0], (size_t)a.n_out[0] * sizeof *tokens);
        check_logprobs(ev.logprobs[0], tokens, 9 + a.n_out[0] - 1, 5);
        seen++;
        sp_event_release(&ev);
    }
    CU_ASSERT_EQUAL(seen, 12);
    ask_check(&a, 200);
    pod_end(&p);
}

static void every_row_of_logits_comes_once_and_in_order(void) {
    pod p;
    static ask a[2];
    sp_engine_config c = pod_config();
    c.max_batched_tokens = 16;
    pod_start(&p, &c, 64, -1);
    for (int i = 0; i < 2; i++) {
        ask_init(&a[i], 50, 9);
        a[i].params.all_logits = true;
        a[i].params.max_tokens = i * 4;
        ask_must_submit(&p, &a[i]);
    }
    pod_finish(&p, a, 2);
    CU_ASSERT_EQUAL(a[0].n_rows, 50);
    CU_ASSERT_EQUAL(a[1].n_rows, 53); /* the last token drawn is not run */
    ask_check(&a[1], 200);
    pod_end(&p);
}

static void a_wide_row_of_logits_comes_in_pieces(void) {
    enum {
        WIDE = 600000
    }; /* 2.4 MB a row */
    pod p;
    sp_engine_config c = pod_config();
    c.n_vocab = WIDE;
    c.max_num_seqs = 2;
    c.max_step_rows = 4;
    sp_wire_ready offer = sp_fake_offer(WIDE, 16, c.block_tokens);
    offer.max_step_rows = 4;
    p.config = c;
    p.shape = NULL;
    sp_fake_rank_start(&p.rank, &offer, NULL, 0, 0, -1);
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&p.engine, &c, p.rank.fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(p.engine, &err), SP_OK);
    pod_wait_state(&p, SP_ENGINE_READY);
    static ask a;
    ask_init(&a, 10, 1);
    a.params.all_logits = true;
    a.params.max_tokens = 0;
    ask_must_submit(&p, &a);
    float *want = malloc(WIDE * sizeof *want);
    for (int n = 0; !ask_over(&a);) {
        sp_event ev;
        if (sp_engine_events(p.engine, &ev, 1) == 0) continue;
        if (ev.logits) {
            CU_ASSERT_EQUAL(ev.logits_position, n);
            sp_null_model_logits(a.prompt, ++n, want, WIDE);
            CU_ASSERT(memcmp(want, ev.logits, WIDE * sizeof *want) == 0);
        }
        if (ev.finish) a.finish[0] = ev.finish;
        sp_event_release(&ev);
    }
    free(want);
    pod_end(&p);
}

/* ---- sharing ---- */

static void a_cached_prefix_is_found_and_changes_nothing(void) {
    pod p;
    static ask a[4];
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, -1);
    for (int i = 0; i < 4; i++) {
        ask_init(&a[i], 64, 5);
        a[i].params.max_tokens = 20;
    }
    a[1].prompt[40] = 3; /* the third block differs */
    a[3].salt = "someone else";
    for (int i = 0; i < 4; i++) {
        ask_must_submit(&p, &a[i]);
        pod_finish(&p, &a[i], 1);
        ask_check(&a[i], 200);
    }
    CU_ASSERT_EQUAL(a[0].n_cached, 0);
    CU_ASSERT_EQUAL(a[1].n_cached, 32);
    CU_ASSERT_EQUAL(a[2].n_cached, 48); /* all 64 are there; the last token is computed anyway */
    CU_ASSERT_EQUAL(a[3].n_cached, 0);
    pod_drain(&p);
    CU_ASSERT_EQUAL(COUNTER(&p, prefix_queries), 4 * 64);
    CU_ASSERT_EQUAL(COUNTER(&p, prefix_hits), 32 + 48);
    CU_ASSERT_EQUAL(COUNTER(&p, prompt_tokens_cached), 32 + 48);
    pod_end(&p);
}

static void generated_tokens_are_found_by_the_next_turn_of_a_talk(void) {
    pod p;
    static ask a, b;
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, -1);
    ask_init(&a, 30, 6);
    a.params.max_tokens = 40;
    ask_must_submit(&p, &a);
    pod_finish(&p, &a, 1);
    ask_init(&b, 30, 6);
    memcpy(b.prompt + 30, a.out[0], 40 * sizeof *b.prompt);
    for (int i = 70; i < 80; i++) b.prompt[i] = i;
    b.n_prompt = 80;
    ask_must_submit(&p, &b);
    pod_finish(&p, &b, 1);
    ask_check(&b, 200);
    CU_ASSERT_EQUAL(b.n_cached, 64); /* 69 positions were computed: 4 whole blocks */
    pod_end(&p);
}

static void choices_share_the_prompt_and_are_what_they_would_be_alone(void) {
    for (int cache = 0; cache < 2; cache++) {
        pod p;
        static ask a;
        sp_engine_config c = pod_config();
        c.enable_prefix_cache = cache;
        pod_start(&p, &c, 64, -1);
        ask_init(&a, 100, 8);
        a.params.max_tokens = 30;
        a.params.temperature = 1;
        a.params.seed = 4242;
        a.params.n = CHOICES_MAX;
        a.params.ignore_eos = false;
        ask_must_submit(&p, &a);
        pod_finish(&p, &a, 1);
        ask_check(&a, 200);
        pod_drain(&p);
        const sp_engine_metrics *m = sp_engine_get_metrics(p.engine);
        /* 96 of 100 prompt tokens were computed once; each tail of 4 by each. */
        uint64_t computed = sp_counter_get(&m->generation_tokens);
        CU_ASSERT((uint64_t)sp_histogram_sum(&m->iteration_tokens) <
                  100 + 4 * 4 + computed + 3 * CHOICES_MAX);
        CU_ASSERT_EQUAL(pod_observed(&m->req_n), 1);
        CU_ASSERT_EQUAL(pod_observed(&m->e2e_s), CHOICES_MAX);
        CU_ASSERT_EQUAL(sp_counter_get(&m->prompt_tokens), 100);
        pod_end(&p);
    }
}

static void without_the_cache_nothing_is_shared_between_requests(void) {
    pod p;
    static ask a[2];
    sp_engine_config c = pod_config();
    c.enable_prefix_cache = false;
    pod_start(&p, &c, 64, -1);
    for (int i = 0; i < 2; i++) {
        ask_init(&a[i], 64, 5);
        a[i].params.n = 2;
        ask_must_submit(&p, &a[i]);
        pod_finish(&p, &a[i], 1);
        CU_ASSERT_EQUAL(a[i].n_cached, 0);
        ask_check(&a[i], 200);
    }
    pod_drain(&p);
    CU_ASSERT_EQUAL(COUNTER(&p, prefix_queries), 0);
    pod_end(&p);
}

/* ---- refusals, ends and losses ---- */

static void what_cannot_be_served_is_refused_with_words(void) {
    pod p;
    static ask a;
    sp_err err = {0};
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 8, -1); /* 128 positions: less than max_model_len */
    CU_ASSERT_EQUAL(sp_engine_get_info(p.engine).max_model_len, 128);
    CU_ASSERT_EQUAL(sp_engine_get_info(p.engine).n_blocks, 8);
    CU_ASSERT_STRING_EQUAL(sp_engine_get_info(p.engine).kv_dtype, "f32");
    ask_init(&a, 128, 1);
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "the prompt has 128 tokens, the most is 127"));
    a.params.max_tokens = 0; /* it fits when nothing is to come */
    ask_must_submit(&p, &a);
    pod_finish(&p, &a, 1);
    ask_init(&a, 0, 1);
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_INVALID);
    ask_init(&a, 4, 1);
    a.prompt[2] = VOCAB;
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "token 97"));
    ask_init(&a, 4, 1);
    a.params.n = SP_N_MAX + 1;
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_INVALID);
    ask_init(&a, 4, 1);
    const int32_t words[] = {3, 1, 2};
    a.params.bad_words = words;
    a.params.n_bad_words_ints = 3;
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_INVALID);
    pod_end(&p);
}

static void a_full_queue_refuses_and_recovers(void) {
    pod p;
    static ask a[8];
    sp_err err = {0};
    sp_engine_config c = pod_config();
    c.max_num_seqs = 1;
    c.queue_max = 3;
    pod_start(&p, &c, 64, 0);
    for (int i = 0; i < 8; i++) ask_init(&a[i], 10, i);
    ask_must_submit(&p, &a[0]);
    sp_fake_rank_wait_steps(&p.rank, 1); /* it has started: it is not in the queue any more */
    int taken = 1;
    sp_status st = SP_OK;
    for (; taken < 8 && st == SP_OK; taken += st == SP_OK)
        st = ask_submit(&p, &a[taken], SP_NEVER, &err);
    CU_ASSERT_EQUAL(st, SP_E_LIMIT);
    CU_ASSERT(taken == 4 || taken == 3); /* the first may not be accounted as started yet */
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "the queue takes 3"));
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, taken);
    ask_must_submit(&p, &a[7]);
    pod_finish(&p, &a[7], 1);
    ask_check(&a[7], 200);
    pod_end(&p);
}

static void a_deadline_ends_a_request_in_every_phase(void) {
    pod p;
    static ask a[4];
    sp_err err = {0};
    sp_engine_config c = pod_config();
    c.max_num_seqs = 2;
    pod_start(&p, &c, 64, 0);
    for (int i = 0; i < 4; i++) {
        ask_init(&a[i], 40, i);
        a[i].params.max_tokens = 100;
    }
    /* Two run (held at the gate), two wait; all but the last have until soon. */
    int64_t soon = sp_now_ns() + 30 * SP_NS_PER_MS;
    for (int i = 0; i < 4; i++)
        CU_ASSERT_EQUAL_FATAL(ask_submit(&p, &a[i], i == 3 ? SP_NEVER : soon, &err), SP_OK);
    pod_finish(&p, a, 3);
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(a[i].finish[0], SP_FINISH_ERROR);
        CU_ASSERT_EQUAL(a[i].error[0], SP_E_TIMEOUT);
    }
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, 4);
    ask_check(&a[3], 200);
    pod_drain(&p);
    pod_end(&p);
}

static void a_cancelled_choice_is_never_heard_of_again(void) {
    pod p;
    static ask a[4];
    sp_engine_config c = pod_config();
    c.max_num_seqs = 4;
    pod_start(&p, &c, 64, 3);
    for (int i = 0; i < 4; i++) {
        ask_init(&a[i], 33, i);
        a[i].params.max_tokens = 60;
        a[i].params.n = i == 1 ? 3 : 1;
        ask_must_submit(&p, &a[i]);
    }
    sp_fake_rank_wait_steps(&p.rank, 4); /* events of three steps wait, a fourth is held */
    sp_engine_cancel(p.engine, a[0].id, -1, SP_FINISH_ABORT);
    a[0].cancelled[0] = true;
    sp_engine_cancel(p.engine, a[1].id, 0, SP_FINISH_STOP); /* the leader of three */
    a[1].cancelled[0] = true;
    sp_engine_cancel(p.engine, a[1].id, 0, SP_FINISH_ABORT); /* the first word counts */
    sp_engine_cancel(p.engine, 0, -1, SP_FINISH_ABORT);
    sp_engine_cancel(p.engine, UINT64_MAX, -1, SP_FINISH_ABORT);
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, 4);
    for (int i = 0; i < 4; i++) ask_check(&a[i], 200);
    sp_engine_cancel(p.engine, a[2].id, -1, SP_FINISH_ABORT); /* over: nothing happens */
    pod_drain(&p);
    const sp_engine_metrics *m = sp_engine_get_metrics(p.engine);
    CU_ASSERT_EQUAL(sp_counter_get(&m->finished[SP_FINISH_ABORT]), 1);
    CU_ASSERT_EQUAL(sp_counter_get(&m->finished[SP_FINISH_STOP]), 1);
    CU_ASSERT_EQUAL(sp_counter_get(&m->finished[SP_FINISH_LENGTH]), 4);
    CU_ASSERT_EQUAL(GAUGE(&p, blocks_used), 0);
    pod_end(&p);
}

static void a_drain_refuses_the_new_finishes_the_old_and_says_bye(void) {
    pod p;
    static ask a[3];
    sp_err err = {0};
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, 0);
    for (int i = 0; i < 3; i++) ask_init(&a[i], 20, i);
    ask_must_submit(&p, &a[0]);
    ask_must_submit(&p, &a[1]);
    sp_engine_drain(p.engine);
    CU_ASSERT_EQUAL(sp_engine_get_state(p.engine), SP_ENGINE_DRAINING);
    CU_ASSERT_EQUAL(ask_submit(&p, &a[2], SP_NEVER, &err), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "draining"));
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, 2);
    for (int i = 0; i < 2; i++) ask_check(&a[i], 200);
    pod_drain(&p);
    CU_ASSERT_EQUAL(ask_submit(&p, &a[2], SP_NEVER, &err), SP_E_UNAVAILABLE);
    pod_end(&p);
}

static void lose_rank(sp_status failure, const char *word) {
    pod p;
    static ask a[6];
    sp_err err = {0};
    char why[200];
    sp_engine_config c = pod_config();
    c.max_num_seqs = 4;
    pod_start(&p, &c, 64, 5);
    sp_fake_rank_fail_at(&p.rank, 6, failure);
    for (int i = 0; i < 6; i++) {
        ask_init(&a[i], 20, i);
        a[i].params.max_tokens = 100;
        a[i].params.n = 1 + i % 2;
        ask_must_submit(&p, &a[i]);
    }
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, 6);
    for (int i = 0; i < 6; i++)
        for (int32_t k = 0; k < a[i].params.n; k++) {
            CU_ASSERT_EQUAL(a[i].finish[k], SP_FINISH_ERROR);
            CU_ASSERT_EQUAL(a[i].error[k], SP_E_PEER_LOST);
            CU_ASSERT_PTR_NOT_NULL(strstr(a[i].text, "rank lost"));
        }
    CU_ASSERT_EQUAL(sp_engine_get_state(p.engine), SP_ENGINE_FAILED);
    CU_ASSERT_PTR_NOT_NULL(strstr(sp_engine_why(p.engine, why, sizeof why), word));
    CU_ASSERT_EQUAL(ask_submit(&p, &a[0], SP_NEVER, &err), SP_E_UNAVAILABLE);
    sp_engine_cancel(p.engine, a[0].id, -1, SP_FINISH_ABORT);
    CU_ASSERT_EQUAL(GAUGE(&p, running), 0);
    pod_end(&p);
}

static void a_rank_that_vanishes_ends_every_request_with_words(void) {
    lose_rank(SP_E_CLOSED, "closed");
}
static void a_rank_that_tells_a_fault_ends_every_request_with_its_words(void) {
    lose_rank(SP_E_DEVICE, "device fault: the test wants it");
}

static void a_rank_that_hangs_is_lost_after_the_step_timeout(void) {
    pod p;
    static ask a;
    sp_engine_config c = pod_config();
    c.step_timeout_ns = 50 * SP_NS_PER_MS;
    pod_start(&p, &c, 64, 2);
    ask_init(&a, 20, 1);
    a.params.max_tokens = 100;
    ask_must_submit(&p, &a);
    pod_finish(&p, &a, 1);
    CU_ASSERT_EQUAL(a.error[0], SP_E_PEER_LOST);
    CU_ASSERT_PTR_NOT_NULL(strstr(a.text, "overdue"));
    sp_fake_rank_allow(&p.rank, -1);
    pod_end(&p);
}

static void a_rank_that_offers_something_else_is_refused(void) {
    pod p;
    char why[200];
    sp_err err = {0};
    sp_engine_config c = pod_config();
    sp_wire_ready offer = sp_fake_offer(VOCAB + 1, 64, c.block_tokens);
    p.shape = NULL;
    sp_fake_rank_start(&p.rank, &offer, NULL, 0, 0, -1);
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&p.engine, &c, p.rank.fan, &err), SP_OK);
    static ask a;
    ask_init(&a, 3, 1);
    CU_ASSERT_EQUAL(ask_submit(&p, &a, SP_NEVER, &err), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "starting"));
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(p.engine, &err), SP_OK);
    pod_wait_state(&p, SP_ENGINE_FAILED);
    CU_ASSERT_PTR_NOT_NULL(strstr(sp_engine_why(p.engine, why, sizeof why), "'n_vocab' is 98"));
    pod_end(&p);
}

static void stopping_ends_what_is_left(void) {
    pod p;
    static ask a[3];
    sp_engine_config c = pod_config();
    pod_start(&p, &c, 64, 0);
    for (int i = 0; i < 3; i++) {
        ask_init(&a[i], 20, i);
        ask_must_submit(&p, &a[i]);
    }
    sp_engine_stop(p.engine);
    pod_finish(&p, a, 3);
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(a[i].error[0], SP_E_UNAVAILABLE);
    sp_fake_rank_allow(&p.rank, -1);
    pod_end(&p);
}

static void a_slow_consumer_pauses_its_own_sequences_and_nobody_elses(void) {
    pod p;
    static ask slow, quick[6];
    sp_engine_config c = pod_config();
    c.max_num_seqs = 1; /* the slow one has the only slot: it must give way */
    c.max_model_len = 300;
    pod_start(&p, &c, 64, -1);
    ask_init(&slow, 20, 1);
    slow.params.max_tokens = 250;
    ask_must_submit(&p, &slow);
    while (COUNTER(&p, generation_tokens) < SP_EVENTS_PAUSE) sched_yield();
    for (int i = 0; i < 6; i++) {
        ask_init(&quick[i], 10, i);
        ask_must_submit(&p, &quick[i]);
    }
    /* Nobody takes anything: the slow one stops, the others are served beside it. */
    while (COUNTER(&p, finished[SP_FINISH_LENGTH]) < 6) sched_yield();
    CU_ASSERT(COUNTER(&p, generation_tokens) < SP_EVENTS_MAX + 6 * 16);
    CU_ASSERT_EQUAL(COUNTER(&p, preemptions), 1);
    pod_finish(&p, quick, 6);
    pod_finish(&p, &slow, 1);
    ask_check(&slow, 300);
    for (int i = 0; i < 6; i++) ask_check(&quick[i], 300);
    pod_drain(&p);
    pod_end(&p);
}

static void lower_priority_values_go_first(void) {
    pod p;
    static ask a[5];
    sp_engine_config c = pod_config();
    c.max_num_seqs = 1;
    pod_start(&p, &c, 64, 0);
    for (int i = 0; i < 5; i++) {
        ask_init(&a[i], 10, i);
        a[i].priority = -i;
        a[i].params.max_tokens = 3;
        ask_must_submit(&p, &a[i]);
        if (i == 0) sp_fake_rank_wait_steps(&p.rank, 1);
    }
    sp_fake_rank_allow(&p.rank, -1);
    int order[5], n = 0;
    while (n < 5) {
        sp_event ev;
        if (sp_engine_events(p.engine, &ev, 1) == 0) continue;
        if (ev.finish) order[n++] = (int)((ask *)ev.user - a);
        sp_event_release(&ev);
    }
    const int want[] = {0, 4, 3, 2, 1};
    CU_ASSERT(memcmp(order, want, sizeof want) == 0);
    pod_end(&p);
}

SP_TEST_MAIN("runtime/engine/engine", SP_TEST(one_request_gives_the_tokens_of_its_prompt),
             SP_TEST(a_second_step_is_sent_before_the_first_one_answers),
             SP_TEST(eos_stop_ids_length_and_context_end_a_choice_each_in_its_way),
             SP_TEST(tokens_after_the_end_are_never_told_and_never_counted),
             SP_TEST(logprobs_come_with_tokens_and_with_the_prompt),
             SP_TEST(sampled_logprobs_are_those_of_the_untouched_row),
             SP_TEST(every_row_of_logits_comes_once_and_in_order),
             SP_TEST(a_wide_row_of_logits_comes_in_pieces),
             SP_TEST(a_cached_prefix_is_found_and_changes_nothing),
             SP_TEST(generated_tokens_are_found_by_the_next_turn_of_a_talk),
             SP_TEST(choices_share_the_prompt_and_are_what_they_would_be_alone),
             SP_TEST(without_the_cache_nothing_is_shared_between_requests),
             SP_TEST(what_cannot_be_served_is_refused_with_words),
             SP_TEST(a_full_queue_refuses_and_recovers),
             SP_TEST(a_deadline_ends_a_request_in_every_phase),
             SP_TEST(a_cancelled_choice_is_never_heard_of_again),
             SP_TEST(a_drain_refuses_the_new_finishes_the_old_and_says_bye),
             SP_TEST(a_rank_that_vanishes_ends_every_request_with_words),
             SP_TEST(a_rank_that_tells_a_fault_ends_every_request_with_its_words),
             SP_TEST(a_rank_that_hangs_is_lost_after_the_step_timeout),
             SP_TEST(a_rank_that_offers_something_else_is_refused),
             SP_TEST(stopping_ends_what_is_left),
             SP_TEST(a_slow_consumer_pauses_its_own_sequences_and_nobody_elses),
             SP_TEST(lower_priority_values_go_first))
