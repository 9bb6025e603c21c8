/* Covers runtime/base/thread.c: names, the bounded queue and the wake-up descriptor. */
#include "runtime/base/thread.h"

#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <poll.h>
#include <string.h>

static void *tell_name(void *arg) {
    strcpy(arg, sp_thread_name());
    return sp_thread_is("worker") ? arg : NULL;
}

static void a_thread_knows_its_name(void) {
    char name[32] = "";
    sp_thread t = {0};
    CU_ASSERT_STRING_EQUAL(sp_thread_name(), "main");
    CU_ASSERT(sp_thread_is("main") && !sp_thread_is("worker"));
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&t, "worker", tell_name, name, NULL), SP_OK);
    sp_thread_join(&t);
    CU_ASSERT_STRING_EQUAL(name, "worker");
    CU_ASSERT(!t.started);
    sp_thread_join(&t); /* does nothing */
    CU_ASSERT_EQUAL_FATAL(
        sp_thread_start(&t, "a name that is much too long", tell_name, name, NULL), SP_OK);
    sp_thread_join(&t);
    CU_ASSERT_STRING_EQUAL(name, "a name that is "); /* 15 characters */
}

static void a_queue_keeps_its_order_and_its_capacity(void) {
    static int items[5];
    sp_queue *q = sp_queue_create(3);
    CU_ASSERT_PTR_NULL(sp_queue_try_pop(q));
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(sp_queue_push(q, &items[i]), SP_OK);
        CU_ASSERT_EQUAL(sp_queue_push(q, &items[3]), SP_E_LIMIT);
        CU_ASSERT_EQUAL(sp_queue_count(q), 3);
        CU_ASSERT_PTR_EQUAL(sp_queue_try_pop(q), &items[0]);
        CU_ASSERT_EQUAL(sp_queue_push(q, &items[4]), SP_OK);
        CU_ASSERT_PTR_EQUAL(sp_queue_pop(q, SP_NEVER), &items[1]);
        CU_ASSERT_PTR_EQUAL(sp_queue_pop(q, 0), &items[2]); /* the deadline is for waiting only */
        CU_ASSERT_PTR_EQUAL(sp_queue_try_pop(q), &items[4]);
    }
    CU_ASSERT_EQUAL(sp_queue_count(q), 0);
    sp_queue_destroy(q);
    sp_queue_destroy(NULL);
}

static void an_empty_queue_waits_until_the_deadline(void) {
    sp_queue *q = sp_queue_create(1);
    int64_t begin = sp_now_ns();
    CU_ASSERT_PTR_NULL(sp_queue_pop(q, begin + 5 * SP_NS_PER_MS));
    CU_ASSERT(sp_now_ns() - begin >= 5 * SP_NS_PER_MS);
    CU_ASSERT_PTR_NULL(sp_queue_pop(q, 0));
    sp_queue_destroy(q);
}

static void a_closed_queue_gives_what_is_inside_and_takes_nothing(void) {
    int item;
    sp_queue *q = sp_queue_create(2);
    CU_ASSERT_EQUAL(sp_queue_push(q, &item), SP_OK);
    sp_queue_close(q);
    CU_ASSERT_EQUAL(sp_queue_push(q, &item), SP_E_CLOSED);
    CU_ASSERT_PTR_EQUAL(sp_queue_pop(q, SP_NEVER), &item);
    CU_ASSERT_PTR_NULL(sp_queue_pop(q, SP_NEVER));
    sp_queue_destroy(q);
}

static void *pop_one(void *arg) {
    return sp_queue_pop(arg, SP_NEVER);
}

static void closing_wakes_all_waiters(void) {
    sp_queue *q = sp_queue_create(2);
    pthread_t t[3];
    void *got = q;
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, pop_one, q);
    sp_queue_close(q);
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], &got);
        CU_ASSERT_PTR_NULL(got);
    }
    sp_queue_destroy(q);
}

#define N_ITEMS 5000
#define N_SIDES 3
typedef struct traffic {
    sp_queue *q;
    char seen[N_SIDES * N_ITEMS + 1];
    _Atomic int n_popped;
} traffic;

static void *push_many(void *arg) {
    static _Atomic int next_side;
    traffic *t = arg;
    int side = next_side++ % N_SIDES;
    for (int i = 0; i < N_ITEMS; i++)
        while (sp_queue_push(t->q, &t->seen[side * N_ITEMS + i]) == SP_E_LIMIT) sched_yield();
    return NULL;
}

static void *pop_many(void *arg) {
    traffic *t = arg;
    for (char *item; (item = sp_queue_pop(t->q, SP_NEVER));) {
        ++*item; /* nobody else has this item */
        t->n_popped++;
    }
    return NULL;
}

static void many_producers_and_consumers_lose_and_double_nothing(void) {
    static traffic t;
    t.q = sp_queue_create(16);
    pthread_t producers[N_SIDES], consumers[N_SIDES];
    for (int i = 0; i < N_SIDES; i++) {
        pthread_create(&producers[i], NULL, push_many, &t);
        pthread_create(&consumers[i], NULL, pop_many, &t);
    }
    for (int i = 0; i < N_SIDES; i++) pthread_join(producers[i], NULL);
    sp_queue_close(t.q);
    for (int i = 0; i < N_SIDES; i++) pthread_join(consumers[i], NULL);
    CU_ASSERT_EQUAL(t.n_popped, N_SIDES * N_ITEMS);
    int wrong = 0;
    for (int i = 0; i < N_SIDES * N_ITEMS; i++) wrong += t.seen[i] != 1;
    CU_ASSERT_EQUAL(wrong, 0);
    sp_queue_destroy(t.q);
}

static bool is_readable(int fd, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static void *signal_it(void *arg) {
    sp_wake_signal(arg);
    return NULL;
}

static void a_wake_is_readable_until_it_is_drained(void) {
    sp_wake w;
    pthread_t t;
    CU_ASSERT_EQUAL_FATAL(sp_wake_open(&w, NULL), SP_OK);
    CU_ASSERT(!is_readable(w.fd, 0));
    sp_wake_drain(&w); /* does not wait */
    sp_wake_signal(&w);
    sp_wake_signal(&w);
    CU_ASSERT(is_readable(w.fd, 0));
    sp_wake_drain(&w);
    CU_ASSERT(!is_readable(w.fd, 0));
    pthread_create(&t, NULL, signal_it, &w);
    CU_ASSERT(is_readable(w.fd, 10000));
    pthread_join(t, NULL);
    sp_wake_close(&w);
    CU_ASSERT_EQUAL(w.fd, -1);
    sp_wake_close(&w);
}

SP_TEST_MAIN("runtime/base/thread", SP_TEST(a_thread_knows_its_name),
             SP_TEST(a_queue_keeps_its_order_and_its_capacity),
             SP_TEST(an_empty_queue_waits_until_the_deadline),
             SP_TEST(a_closed_queue_gives_what_is_inside_and_takes_nothing),
             SP_TEST(closing_wakes_all_waiters),
             SP_TEST(many_producers_and_consumers_lose_and_double_nothing),
             SP_TEST(a_wake_is_readable_until_it_is_drained))
