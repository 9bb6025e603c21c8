/* Covers runtime/engine/engine.c, stage.c and rehearsal.c over many ranks: what ranks of every shape
 * give, what becomes of a rank that dies, and what ranks that do not fit are told. */
#include "tests/engine_pod.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const int SHAPES[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {1, 4}, {4, 2}};

/* ---- ranks that do their work ---- */

static void every_shape_gives_the_same_tokens(void) {
    for (size_t i = 0; i < SP_LEN(SHAPES); i++) {
        pod p;
        static ask a[8];
        sp_engine_config c = pod_config();
        pod_start_shape(&p, c, 64, -1, SHAPES[i][0], SHAPES[i][1]);
        for (int k = 0; k < 8; k++) {
            ask_init(&a[k], 20 + 9 * k, k);
            a[k].params.max_tokens = 30 + k;
            a[k].params.temperature = k % 2 ? 0.8f : 0;
            a[k].params.repetition_penalty = k % 3 ? 1.0f : 1.3f;
            a[k].params.ignore_eos = k % 4;
            ask_must_submit(&p, &a[k]);
        }
        pod_finish(&p, a, 8);
        for (int k = 0; k < 8; k++) ask_check(&a[k], 200);
        pod_drain(&p);
        pod_end(&p);
    }
}

static void a_single_stream_wastes_no_step_whatever_the_stages(void) {
    for (size_t i = 0; i < SP_LEN(SHAPES); i++) {
        pod p;
        static ask a;
        pod_start_shape(&p, pod_config(), 64, -1, SHAPES[i][0], SHAPES[i][1]);
        ask_init(&a, 5, 2);
        a.params.max_tokens = 20;
        ask_must_submit(&p, &a);
        pod_finish(&p, &a, 1);
        ask_check(&a, 200);
        pod_drain(&p);
        for (int r = 0; r < pod_rank_count(&p); r++)
            CU_ASSERT_EQUAL(pod_rank(&p, r)->n_steps, 20); /* each rank runs each step */
        pod_end(&p);
    }
}

static void steps_are_sent_to_all_stages_before_the_first_is_answered(void) {
    enum {
        N = 8
    };
    pod p;
    static ask a[N];
    sp_engine_config c = pod_config();
    pod_start_shape(&p, c, 128, 0, 1, 4);
    for (int k = 0; k < N; k++) {
        ask_init(&a[k], 6, k);
        a[k].params.max_tokens = 40;
        ask_must_submit(&p, &a[k]);
    }
    sp_fake_rank_wait_steps(&p.rank, 1); /* the last stage is held at its first step */
    sp_fake_rank_wait_steps(pod_rank(&p, 2), 2);
    sp_fake_rank_allow(&p.rank, 20);
    sp_fake_rank_wait_steps(&p.rank, 20);
    /* By now no stage needs a token that is still drawn: the first can be four steps further. */
    sp_fake_rank_wait_steps(pod_rank(&p, 0), 23);
    sp_fake_rank_allow(&p.rank, -1);
    pod_finish(&p, a, N);
    for (int k = 0; k < N; k++) ask_check(&a[k], 200);
    pod_drain(&p);
    pod_end(&p);
}

static void tokens_of_sequences_that_are_gone_are_taken_and_thrown_away(void) {
    pod p;
    static ask a[12];
    sp_engine_config c = pod_config();
    c.max_num_seqs = 4;
    pod_start_shape(&p, c, 64, -1, 2, 2);
    for (int round = 0; round < 6; round++) {
        for (int k = 0; k < 12; k++) {
            ask_init(&a[k], 10 + k, k + round);
            a[k].params.max_tokens = 60;
            ask_must_submit(&p, &a[k]);
        }
        for (int k = 0; k < 3; k++) (void)pod_pump(&p, 5);
        for (int k = 0; k < 12; k += 2) {
            sp_engine_cancel(p.engine, a[k].id, -1, SP_FINISH_ABORT);
            if (a[k].finish[0] == SP_FINISH_NONE) a[k].cancelled[0] = true;
        }
        pod_finish(&p, a, 12);
        for (int k = 0; k < 12; k++) ask_check(&a[k], 200);
    }
    pod_drain(&p);
    pod_end(&p);
}

/* ---- ranks that die ---- */

static void lose(int tp, int pp, int link, int step, sp_status failure, const char *word) {
    pod p;
    static ask a[6];
    char why[200];
    sp_err err = {0};
    sp_engine_config c = pod_config();
    pod_start_shape(&p, c, 64, -1, tp, pp);
    sp_fake_rank_fail_at(pod_rank(&p, link), step, failure);
    for (int i = 0; i < 6; i++) {
        ask_init(&a[i], 20, i);
        a[i].params.max_tokens = 100;
        sp_status st = ask_submit(&p, &a[i], SP_NEVER, &err);
        CU_ASSERT(st == SP_OK || (st == SP_E_UNAVAILABLE && i > 0)); /* it was quick to fail */
    }
    pod_finish(&p, a, 6);
    for (int i = 0; i < 6; i++) {
        if (!a[i].live) continue;
        CU_ASSERT_EQUAL(a[i].finish[0], SP_FINISH_ERROR);
        CU_ASSERT_EQUAL(a[i].error[0], SP_E_PEER_LOST);
    }
    CU_ASSERT_EQUAL(sp_engine_get_state(p.engine), SP_ENGINE_FAILED);
    sp_engine_why(p.engine, why, sizeof why);
    if (!strstr(why, word)) printf("why: '%s', want '%s'\n", why, word);
    CU_ASSERT_PTR_NOT_NULL(strstr(why, word));
    pod_end(&p);
    for (int i = 0; i < 6; i++) a[i].live = false;
}

static void the_rank_that_told_a_fault_is_named_and_not_those_that_missed_it(void) {
    char word[80];
    for (int i = 0; i < 8; i++)
        for (int link = 0; link < 4; link++) {
            snprintf(word, sizeof word, "rank %d: device fault: the test wants it", link);
            lose(2, 2, link, 1 + i * 3, SP_E_DEVICE, word);
        }
}

static void a_rank_that_vanishes_is_named_rather_than_those_that_miss_it(void) {
    char word[80];
    for (int i = 0; i < 8; i++)
        for (int link = 0; link < 4; link++) {
            snprintf(word, sizeof word, "rank lost: rank %d: ", link);
            lose(2, 2, link, 1 + i * 3, SP_E_CLOSED, word);
        }
    lose(1, 4, 2, 7, SP_E_CLOSED, "rank lost: rank 2: ");
}

/* ---- the test as ranks: what an engine makes of their frames ---- */

enum {
    HANDS = 3
};
typedef struct hands {
    sp_fan *fan;
    sp_link *rank[HANDS];
    sp_engine *engine;
} hands;

static void hands_start(hands *h, int32_t sampler) {
    sp_err err = {0};
    sp_engine_config c = pod_config();
    c.n_stages = HANDS;
    c.sampler = sampler;
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&h->fan, -1, &err), SP_OK);
    for (int i = 0; i < HANDS; i++) {
        sp_link *head = NULL;
        int fd = -1;
        CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&head, fd, 0, &err), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&h->rank[i], fd, 1, &err), SP_OK);
        close(fd);
        sp_link_set_bells(h->rank[i], -1, sp_fan_bell(h->fan));
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(h->fan, head, &err), SP_OK);
    }
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&h->engine, &c, h->fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(h->engine, &err), SP_OK);
}

static void hands_end(hands *h) {
    sp_engine_destroy(h->engine);
    sp_fan_close(h->fan);
    for (int i = 0; i < HANDS; i++) sp_link_close(h->rank[i]);
}

static void say(hands *h, int link, sp_frame_type type, const void *data, size_t bytes) {
    sp_err err = {0};
    sp_piece piece = {data, (uint32_t)bytes};
    CU_ASSERT_EQUAL_FATAL(
        sp_link_send(h->rank[link], type, &piece, 1, sp_now_ns() + SP_NS_PER_S, &err), SP_OK);
}

static void say_fault(hands *h, int link, sp_fault reason, const char *text) {
    struct {
        sp_wire_fault_head head;
        char text[64];
    } f = {.head = {reason, (uint32_t)strlen(text)}};
    snprintf(f.text, sizeof f.text, "%s", text);
    say(h, link, SP_FRAME_FAULT, &f, sizeof f.head + strlen(text));
}

static sp_wire_ready offer(void) {
    return sp_fake_offer(VOCAB, 64, 16);
}

static void wait_state(hands *h, sp_engine_state want) {
    int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    while (sp_engine_get_state(h->engine) != want) {
        CU_ASSERT_FATAL(sp_now_ns() < until);
        usleep(100);
    }
}

static void expect_why(hands *h, const char *word) {
    char why[200];
    wait_state(h, SP_ENGINE_FAILED);
    sp_engine_why(h->engine, why, sizeof why);
    if (!strstr(why, word)) printf("why: '%s', want '%s'\n", why, word);
    CU_ASSERT_PTR_NOT_NULL(strstr(why, word));
}

static void it_is_ready_when_the_last_rank_is_and_takes_the_least_blocks(void) {
    hands h;
    hands_start(&h, 2);
    uint64_t done = 0, all = 0;
    for (int i = 0; i < HANDS; i++) {
        sp_wire_progress w = {.done_bytes = 100 + (uint64_t)i, .all_bytes = 1000};
        say(&h, i, SP_FRAME_PROGRESS, &w, sizeof w);
    }
    int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    while (all != 3000 || done != 303) {
        sp_engine_progress(h.engine, &done, &all);
        CU_ASSERT_FATAL(sp_now_ns() < until);
        usleep(100);
    }
    static const int32_t blocks[HANDS] = {64, 40, 50};
    for (int i = 0; i < HANDS; i++) {
        CU_ASSERT_EQUAL(sp_engine_get_state(h.engine), SP_ENGINE_STARTING);
        sp_wire_ready o = offer();
        o.n_blocks = blocks[i];
        say(&h, i, SP_FRAME_READY, &o, sizeof o);
    }
    wait_state(&h, SP_ENGINE_READY);
    CU_ASSERT_EQUAL(sp_engine_get_info(h.engine).n_blocks, 40);
    hands_end(&h);
}

/* Everything that other ranks have said before this is taken in when it returns: links have their
 * turns, so between two frames of one every other was looked at. */
static void let_it_hear(hands *h, int link) {
    int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    for (uint64_t n = 1; n <= 2; n++) {
        sp_wire_progress w = {.done_bytes = n, .all_bytes = 2};
        say(h, link, SP_FRAME_PROGRESS, &w, sizeof w);
        for (uint64_t done = 0, all; done != n;) {
            sp_engine_progress(h->engine, &done, &all);
            CU_ASSERT_FATAL(sp_now_ns() < until);
            usleep(100);
        }
    }
}

static void ranks_that_offer_other_things_are_refused_by_name(void) {
    static const struct {
        size_t offset;
        int32_t value;
        const char *word;
    } rows[] = {
        {offsetof(sp_wire_ready, n_vocab), VOCAB + 1, "rank 1's 'n_vocab' is 98, want 97"},
        {offsetof(sp_wire_ready, block_tokens), 32, "rank 1's 'block_tokens' is 32, want 16"},
        {offsetof(sp_wire_ready, max_num_seqs), 7, "rank 1's 'max_num_seqs' is 7, want at least 8"},
        {offsetof(sp_wire_ready, max_num_seqs), 600, "rank 1's 'max_num_seqs' is 600, want 512 as"},
        {offsetof(sp_wire_ready, max_model_len), 4096, "'max_model_len' is 4096, want 1048576 as"},
        {offsetof(sp_wire_ready, max_batched_tokens), 64, "'max_batched_tokens' is 64, want 4096"},
        {offsetof(sp_wire_ready, max_step_rows), 256, "'max_step_rows' is 256, want 512 as rank 2"},
        {offsetof(sp_wire_ready, kv_dtype), 0x363166, "'kv_dtype' is 'f16', want 'f32' as rank 2"},
        {offsetof(sp_wire_ready, numerics), 0x01, "rank 1's 'numerics' is 0100000000000000, want"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        hands h;
        hands_start(&h, 0);
        sp_wire_ready o = offer();
        say(&h, 2, SP_FRAME_READY, &o, sizeof o);
        let_it_hear(&h, 0);
        memcpy((char *)&o + rows[i].offset, &rows[i].value, sizeof rows[i].value);
        say(&h, 1, SP_FRAME_READY, &o, sizeof o);
        expect_why(&h, rows[i].word);
        hands_end(&h);
    }
}

static void only_the_sampler_answers(void) {
    static const sp_frame_type types[] = {SP_FRAME_TOKENS, SP_FRAME_ROW};
    for (size_t i = 0; i < SP_LEN(types); i++) {
        hands h;
        hands_start(&h, 2);
        sp_wire_ready o = offer();
        for (int k = 0; k < HANDS; k++) say(&h, k, SP_FRAME_READY, &o, sizeof o);
        wait_state(&h, SP_ENGINE_READY);
        sp_wire_tokens_head head = {.number = 1};
        say(&h, 1, types[i], &head, sizeof head);
        expect_why(&h, "rank 1: it answers a step, rank 2 is who does");
        hands_end(&h);
    }
}

static void a_rank_says_ready_once_and_answers_nothing_before_all_are(void) {
    for (int i = 0; i < 3; i++) {
        static const sp_frame_type types[] = {SP_FRAME_READY, SP_FRAME_PROGRESS, SP_FRAME_TOKENS};
        hands h;
        hands_start(&h, 0);
        sp_wire_ready o = offer();
        say(&h, 0, SP_FRAME_READY, &o, sizeof o);
        say(&h, 0, types[i], &o, sizeof o);
        expect_why(&h, "rank 0: frame of type");
        hands_end(&h);
    }
}

static void a_fault_that_is_told_a_little_later_says_why(void) {
    hands h;
    hands_start(&h, 0);
    sp_link_close(h.rank[1]);
    h.rank[1] = NULL;
    usleep(5000); /* the closing is seen first; whichever way, the fault is what is told */
    say_fault(&h, 2, SP_FAULT_PEER, "member 1 is gone");
    say_fault(&h, 0, SP_FAULT_MEMORY, "no memory for it");
    expect_why(&h, "rank lost: rank 0: memory fault: no memory for it");
    hands_end(&h);
    hands_start(&h, 0);
    say_fault(&h, 2, SP_FAULT_PEER, "member 1 is gone");
    usleep(5000);
    sp_link_close(h.rank[2]);
    sp_link_close(h.rank[1]);
    h.rank[1] = h.rank[2] = NULL;
    expect_why(&h, "rank lost: rank 1: ");
    hands_end(&h);
    hands_start(&h, 0);
    say_fault(&h, 2, SP_FAULT_PEER, "member 1 is gone"); /* nobody knows better */
    expect_why(&h, "rank lost: rank 2: peer fault: member 1 is gone");
    hands_end(&h);
}

static void a_sampler_that_is_not_there_is_refused(void) {
    sp_err err = {0};
    sp_fan *fan = NULL;
    sp_engine *e = NULL;
    sp_engine_config c = pod_config();
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&fan, -1, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_engine_create(&e, &c, fan, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'sampler' is link 0, there are 0"));
    sp_fan_close(fan);
}

SP_TEST_MAIN("runtime/engine/engine ranks", SP_TEST(every_shape_gives_the_same_tokens),
             SP_TEST(a_single_stream_wastes_no_step_whatever_the_stages),
             SP_TEST(steps_are_sent_to_all_stages_before_the_first_is_answered),
             SP_TEST(tokens_of_sequences_that_are_gone_are_taken_and_thrown_away),
             SP_TEST(the_rank_that_told_a_fault_is_named_and_not_those_that_missed_it),
             SP_TEST(a_rank_that_vanishes_is_named_rather_than_those_that_miss_it),
             SP_TEST(it_is_ready_when_the_last_rank_is_and_takes_the_least_blocks),
             SP_TEST(ranks_that_offer_other_things_are_refused_by_name),
             SP_TEST(only_the_sampler_answers),
             SP_TEST(a_rank_says_ready_once_and_answers_nothing_before_all_are),
             SP_TEST(a_fault_that_is_told_a_little_later_says_why),
             SP_TEST(a_sampler_that_is_not_there_is_refused))
