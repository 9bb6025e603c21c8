/* Covers runtime/engine/desk.c: tickets, mail, events, cancels that come late, slow consumers. */
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/engine/desk.h"
#include "tests/harness.h"

#include <poll.h>
#include <string.h>

typedef struct world {
    sp_desk *desk;
    sp_counter wakes;
    sp_seq *paused, *resumed;
} world;

static void note_wake(void *ctx) {
    sp_counter_add(&((world *)ctx)->wakes, 1);
}
static void note_pause(void *ctx, sp_seq *q, bool paused) {
    *(paused ? &((world *)ctx)->paused : &((world *)ctx)->resumed) = q;
}

static void open_desk(world *w, int32_t queue_max, int32_t live_max) {
    sp_err err = {0};
    *w = (world){0};
    sp_desk_config c = {.queue_max = queue_max,
                        .live_max = live_max,
                        .wake = note_wake,
                        .pause = note_pause,
                        .ctx = w};
    CU_ASSERT_EQUAL_FATAL(sp_desk_create(&w->desk, &c, &err), SP_OK);
    sp_desk_set_state(w->desk, SP_ENGINE_READY);
    sp_event ev;
    CU_ASSERT_EQUAL(sp_desk_take(w->desk, &ev, 1), 0);
}

static sp_request *make(int32_t n) {
    static const int32_t prompt[] = {1, 2};
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.n = n;
    sp_engine_request req = {.user = &g, .prompt = prompt, .n_prompt = 2, .params = &g};
    sp_request *r = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_request_create(&r, &req, 4, 4, &err), SP_OK);
    return r;
}

static sp_status hand_in(world *w, int32_t n, uint64_t *id, sp_request **out, sp_err *err) {
    sp_request *r = make(n);
    sp_status st = sp_desk_submit(w->desk, r, id, err);
    if (st != SP_OK) sp_request_destroy(r);
    *out = st == SP_OK ? r : NULL;
    CU_ASSERT(sp_desk_check(w->desk));
    return st;
}

static void end(world *w, sp_request *r) {
    for (int32_t i = 0; i < r->params.n; i++) r->seqs[i].state = SP_SEQ_DONE;
    sp_desk_close(w->desk, r);
    sp_desk_publish(w->desk);
    CU_ASSERT(sp_desk_check(w->desk));
}

static bool readable(const world *w) {
    struct pollfd f = {.fd = sp_desk_fd(w->desk), .events = POLLIN};
    return poll(&f, 1, 0) == 1;
}

static void mail_comes_in_order_and_full_desks_refuse(void) {
    world w;
    sp_err err = {0};
    uint64_t id[4];
    sp_request *r[4];
    open_desk(&w, 2, 3);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[0], &r[0], &err), SP_OK);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[1], &r[1], &err), SP_OK);
    CU_ASSERT_EQUAL(sp_counter_get(&w.wakes), 2);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[2], &r[2], &err), SP_E_LIMIT);
    sp_desk_mail mail = sp_desk_collect(w.desk);
    CU_ASSERT(mail.fresh == r[0] && r[0]->mail_next == r[1] && !r[1]->mail_next);
    CU_ASSERT_PTR_NULL(sp_desk_collect(w.desk).fresh);
    sp_desk_started(w.desk, r[0]);
    sp_desk_started(w.desk, r[0]);
    (void)sp_desk_collect(w.desk);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[2], &r[2], &err), SP_OK);
    sp_desk_started(w.desk, r[1]);
    sp_desk_started(w.desk, r[2]);
    (void)sp_desk_collect(w.desk);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[3], &r[3], &err), SP_E_LIMIT); /* no ticket is left */
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "3 requests are not done with"));
    end(&w, r[0]);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id[3], &r[3], &err), SP_OK);
    CU_ASSERT(id[3] != id[0]); /* the same ticket, another generation */
    for (int i = 1; i < 4; i++) end(&w, r[i]);
    sp_desk_destroy(w.desk);
}

static void events_come_in_order_with_one_wake_and_the_descriptor_follows(void) {
    world w;
    sp_err err = {0};
    uint64_t id;
    sp_request *r;
    sp_event ev[8];
    open_desk(&w, 4, 4);
    CU_ASSERT_EQUAL(hand_in(&w, 2, &id, &r, &err), SP_OK);
    for (int i = 0; i < 5; i++) sp_desk_event(w.desk, &r->seqs[i % 2])->tokens[0] = i;
    CU_ASSERT_FALSE(readable(&w));
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 8), 0); /* not given out yet */
    sp_desk_publish(w.desk);
    CU_ASSERT(readable(&w));
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 3), 3);
    CU_ASSERT(ev[2].tokens[0] == 2 && ev[1].choice == 1 && ev[0].id == id && ev[0].user);
    CU_ASSERT(readable(&w));
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 8), 2);
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 8), 0);
    CU_ASSERT_FALSE(readable(&w));
    sp_desk_event(w.desk, &r->seqs[0])->finish = SP_FINISH_STOP;
    end(&w, r);
    CU_ASSERT(readable(&w));
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 8), 1);
    CU_ASSERT_EQUAL(ev[0].finish, SP_FINISH_STOP);
    sp_desk_destroy(w.desk);
}

static void a_cancel_holds_back_what_waits_and_frees_what_it_owned(void) {
    world w;
    sp_err err = {0};
    uint64_t id;
    sp_request *r;
    sp_event ev[8];
    open_desk(&w, 4, 4);
    CU_ASSERT_EQUAL(hand_in(&w, 2, &id, &r, &err), SP_OK);
    (void)sp_desk_collect(w.desk);
    for (int i = 0; i < 4; i++)
        sp_desk_event(w.desk, &r->seqs[i % 2])->logprobs[0] = sp_alloc(sizeof(sp_token_logprobs));
    sp_desk_publish(w.desk);
    sp_desk_cancel(w.desk, id, 1, SP_FINISH_STOP);
    sp_desk_cancel(w.desk, id, 1, SP_FINISH_ABORT);
    sp_desk_mail mail = sp_desk_collect(w.desk);
    CU_ASSERT_PTR_EQUAL(mail.cancelled, r);
    CU_ASSERT(r->seen_stopped[0] == 2 && r->seen_aborted[0] == 0);
    int n = sp_desk_take(w.desk, ev, 8);
    CU_ASSERT_EQUAL(n, 2);
    for (int i = 0; i < n; i++) {
        CU_ASSERT_EQUAL(ev[i].choice, 0);
        sp_event_release(&ev[i]);
    }
    sp_desk_event(w.desk, &r->seqs[0])->finish = SP_FINISH_LENGTH;
    end(&w, r);
    sp_desk_cancel(w.desk, id, -1, SP_FINISH_ABORT); /* it has ended; its last event still waits */
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 8), 0);
    CU_ASSERT(sp_desk_check(w.desk));
    sp_desk_cancel(w.desk, id, -1, SP_FINISH_ABORT); /* and now it is gone */
    CU_ASSERT_PTR_NULL(sp_desk_collect(w.desk).cancelled);
    sp_desk_destroy(w.desk);
}

static void a_request_that_is_cancelled_and_ends_at_once_is_freed_once(void) {
    world w;
    sp_err err = {0};
    uint64_t id;
    sp_request *r;
    open_desk(&w, 1, 1);
    for (int i = 0; i < 100; i++) {
        CU_ASSERT_EQUAL_FATAL(hand_in(&w, 1, &id, &r, &err), SP_OK);
        (void)sp_desk_collect(w.desk);
        if (i % 2) sp_desk_event(w.desk, &r->seqs[0]);
        if (i % 3) sp_desk_cancel(w.desk, id, 0, SP_FINISH_ABORT);
        end(&w, r);
        sp_event ev;
        (void)sp_desk_take(w.desk, &ev, 1);
        (void)sp_desk_collect(w.desk);
        CU_ASSERT_FATAL(sp_desk_check(w.desk));
    }
    sp_desk_destroy(w.desk);
}

static void a_slow_consumer_pauses_and_resumes_a_sequence(void) {
    world w;
    sp_err err = {0};
    uint64_t id;
    sp_request *r;
    sp_event ev[SP_EVENTS_PAUSE];
    open_desk(&w, 1, 1);
    CU_ASSERT_EQUAL(hand_in(&w, 1, &id, &r, &err), SP_OK);
    for (int i = 0; i < SP_EVENTS_PAUSE; i++) {
        CU_ASSERT_PTR_NULL(w.paused);
        sp_desk_event(w.desk, &r->seqs[0]);
        sp_desk_publish(w.desk);
    }
    CU_ASSERT_PTR_EQUAL(w.paused, &r->seqs[0]);
    uint64_t wakes = sp_counter_get(&w.wakes);
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 49), 49);
    CU_ASSERT_EQUAL(sp_counter_get(&w.wakes), wakes);
    (void)sp_desk_collect(w.desk);
    CU_ASSERT_PTR_NULL(w.resumed);
    CU_ASSERT_EQUAL(sp_desk_take(w.desk, ev, 1), 1);
    CU_ASSERT_EQUAL(sp_counter_get(&w.wakes), wakes + 1); /* now the engine must hear of it */
    (void)sp_desk_collect(w.desk);
    CU_ASSERT_PTR_EQUAL(w.resumed, &r->seqs[0]);
    CU_ASSERT(sp_desk_check(w.desk));
    end(&w, r);
    sp_desk_destroy(w.desk); /* 50 events are still there */
}

static void states_refuse_with_their_reason(void) {
    world w;
    sp_err err = {0};
    uint64_t id;
    sp_request *r;
    open_desk(&w, 1, 1);
    static const struct {
        sp_engine_state state;
        const char *word;
    } rows[] = {{SP_ENGINE_STARTING, "starting"},
                {SP_ENGINE_DRAINING, "draining"},
                {SP_ENGINE_DRAINED, "drained"},
                {SP_ENGINE_FAILED, "lost"}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_desk_set_state(w.desk, rows[i].state);
        CU_ASSERT(readable(&w));
        CU_ASSERT_EQUAL(hand_in(&w, 1, &id, &r, &err), SP_E_UNAVAILABLE);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
    }
    sp_desk_destroy(w.desk);
    sp_desk_config bad = {.queue_max = 0, .live_max = 1};
    CU_ASSERT_EQUAL(sp_desk_create(&w.desk, &bad, &err), SP_E_INVALID);
}

/* The consumer cancels at random while the engine makes events: for a thread sanitizer. */
enum {
    LIVES = 400,
    EVENTS = 30
};
static void *consume(void *arg) {
    world *w = arg;
    for (int ended = 0; ended < LIVES;) {
        sp_event ev;
        if (sp_desk_take(w->desk, &ev, 1) == 0) {
            struct pollfd f = {.fd = sp_desk_fd(w->desk), .events = POLLIN};
            poll(&f, 1, 1000);
            continue;
        }
        bool cut = ev.tokens[0] == 3 && ev.id % 3 == 0;
        CU_ASSERT(ev.id % 3 != 0 || ev.tokens[0] <= 3);
        if (cut) sp_desk_cancel(w->desk, ev.id, 0, SP_FINISH_ABORT);
        ended += cut || ev.finish != SP_FINISH_NONE;
        sp_event_release(&ev);
    }
    return NULL;
}

static void two_threads_use_it_at_once(void) {
    world w;
    sp_err err = {0};
    sp_thread t = {0};
    open_desk(&w, 8, 64);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&t, "consumer", consume, &w, &err), SP_OK);
    for (int i = 0; i < LIVES;) {
        uint64_t id;
        sp_request *r = make(1);
        if (sp_desk_submit(w.desk, r, &id, &err) != SP_OK) {
            sp_request_destroy(r);
            (void)sp_desk_collect(w.desk);
            continue;
        }
        i++;
        (void)sp_desk_collect(w.desk);
        for (int k = 0; k < EVENTS; k++) {
            sp_event *ev = sp_desk_event(w.desk, &r->seqs[0]);
            ev->tokens[0] = k;
            if (k == EVENTS - 1) ev->finish = SP_FINISH_LENGTH;
            if (k % 4 == 0) sp_desk_publish(w.desk);
        }
        r->seqs[0].state = SP_SEQ_DONE;
        sp_desk_close(w.desk, r);
        sp_desk_publish(w.desk);
    }
    sp_thread_join(&t);
    (void)sp_desk_collect(w.desk);
    CU_ASSERT(sp_desk_check(w.desk));
    sp_desk_destroy(w.desk);
}

SP_TEST_MAIN("runtime/engine/desk", SP_TEST(mail_comes_in_order_and_full_desks_refuse),
             SP_TEST(events_come_in_order_with_one_wake_and_the_descriptor_follows),
             SP_TEST(a_cancel_holds_back_what_waits_and_frees_what_it_owned),
             SP_TEST(a_request_that_is_cancelled_and_ends_at_once_is_freed_once),
             SP_TEST(a_slow_consumer_pauses_and_resumes_a_sequence),
             SP_TEST(states_refuse_with_their_reason), SP_TEST(two_threads_use_it_at_once))
