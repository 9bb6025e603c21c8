/* Covers runtime/engine/kv_leases.c: what many threads say reaches one, in order, and what is dropped
 * when it is too much can be said again. */
#include "runtime/engine/kv_leases.h"

#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <unistd.h>

static sp_kv_leases *fresh(sp_link *link) {
    sp_kv_leases *l = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_kv_leases_create(&l, link, &err), SP_OK);
    return l;
}

static void expect(sp_kv_leases *l, uint64_t lease, bool renewed) {
    uint64_t got = 0;
    bool how = !renewed;
    CU_ASSERT(sp_kv_leases_take(l, &got, &how));
    CU_ASSERT(got == lease && how == renewed);
}

static void expect_none(sp_kv_leases *l) {
    uint64_t got = 0;
    bool how;
    CU_ASSERT_FALSE(sp_kv_leases_take(l, &got, &how));
}

static void words_come_in_order_and_each_once(void) {
    sp_kv_leases *l = fresh(NULL);
    expect_none(l);
    sp_kv_leases_put(l, 1, true);
    sp_kv_leases_put(l, 2, false);
    sp_kv_leases_put(l, 1, true); /* said again: no news */
    sp_kv_leases_put(l, 0, true); /* none */
    expect(l, 1, true);
    expect(l, 2, false);
    expect_none(l);
    sp_kv_leases_put(l, 1, true); /* news once more */
    expect(l, 1, true);
    CU_ASSERT_EQUAL(sp_kv_leases_dropped(l), 0);
    sp_kv_leases_destroy(l);
    sp_kv_leases_destroy(NULL);
}

static void what_was_given_back_is_not_renewed(void) {
    sp_kv_leases *l = fresh(NULL);
    sp_kv_leases_put(l, 1, true);
    sp_kv_leases_put(l, 1, false);
    sp_kv_leases_put(l, 1, true);
    expect(l, 1, false);
    expect_none(l);
    sp_kv_leases_destroy(l);
}

static void a_full_queue_drops_the_oldest_renewal_and_no_return(void) {
    sp_kv_leases *l = fresh(NULL);
    sp_kv_leases_put(l, 1, false);
    sp_kv_leases_put(l, 2, true);
    for (uint64_t i = 3; i <= SP_KV_LEASES_MAX; i++) sp_kv_leases_put(l, i, true);
    CU_ASSERT_EQUAL(sp_kv_leases_dropped(l), 0);
    sp_kv_leases_put(l, 5000, false);
    sp_kv_leases_put(l, 5001, true);
    CU_ASSERT_EQUAL(sp_kv_leases_dropped(l), 2);
    expect(l, 1, false);
    expect(l, 4, true); /* 2 and 3 made room */
    for (uint64_t i = 5; i <= SP_KV_LEASES_MAX; i++) expect(l, i, true);
    expect(l, 5000, false);
    expect(l, 5001, true);
    expect_none(l);
    sp_kv_leases_destroy(l);
}

static void a_queue_of_returns_alone_stays_as_it_is(void) {
    sp_kv_leases *l = fresh(NULL);
    for (uint64_t i = 1; i <= SP_KV_LEASES_MAX; i++) sp_kv_leases_put(l, i, false);
    sp_kv_leases_put(l, 9000, true);
    sp_kv_leases_put(l, 9001, false);
    sp_kv_leases_put(l, 7, false); /* waits already: nothing is lost */
    CU_ASSERT_EQUAL(sp_kv_leases_dropped(l), 2);
    for (uint64_t i = 1; i <= SP_KV_LEASES_MAX; i++) expect(l, i, false);
    expect_none(l);
    sp_kv_leases_destroy(l);
}

#define THREADS 4
#define EACH 200

typedef struct speaker {
    sp_kv_leases *l;
    uint64_t first;
    sp_thread thread;
} speaker;

static void *speak(void *arg) {
    const speaker *s = arg;
    for (uint64_t i = 0; i < EACH; i++) sp_kv_leases_put(s->l, s->first + i, i % 2 == 0);
    return NULL;
}

/* THREADS * EACH fit, so nothing may be lost; the taker waits as a rank does. */
static void many_threads_wake_the_rank_that_waits(void) {
    sp_link *head, *rank;
    sp_err err = {0};
    int fd;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&rank, fd, 1, &err), SP_OK);
    close(fd);
    sp_kv_leases *l = fresh(rank);
    speaker s[THREADS];
    uint64_t next[THREADS];
    for (uint64_t i = 0; i < THREADS; i++) {
        s[i] = (speaker){.l = l, .first = 1 + i * EACH};
        next[i] = s[i].first;
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&s[i].thread, "speaker", speak, &s[i], &err), SP_OK);
    }
    for (int left = THREADS * EACH; left > 0;) {
        sp_frame f;
        uint64_t lease;
        bool renewed;
        while (sp_kv_leases_take(l, &lease, &renewed)) {
            const uint64_t who = (lease - 1) / EACH;
            CU_ASSERT_EQUAL(lease, next[who]); /* each thread's in its order */
            CU_ASSERT_EQUAL(renewed, (lease - 1) % EACH % 2 == 0);
            next[who]++;
            left--;
        }
        if (left == 0) break;
        const sp_status st = sp_link_recv(rank, &f, sp_now_ns() + 20 * SP_NS_PER_S, &err);
        CU_ASSERT_EQUAL_FATAL(st, SP_AGAIN);
    }
    for (int i = 0; i < THREADS; i++) sp_thread_join(&s[i].thread);
    sp_kv_leases_destroy(l);
    sp_link_close(head);
    sp_link_close(rank);
}

SP_TEST_MAIN("runtime/engine/kv_leases", SP_TEST(words_come_in_order_and_each_once),
             SP_TEST(what_was_given_back_is_not_renewed),
             SP_TEST(a_full_queue_drops_the_oldest_renewal_and_no_return),
             SP_TEST(a_queue_of_returns_alone_stays_as_it_is),
             SP_TEST(many_threads_wake_the_rank_that_waits))
