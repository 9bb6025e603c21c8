#include "runtime/base/clock.h"
#include "tests/ucx_cast.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- disagreement ---- */

static void other_sizes(member *m) {
    float f[64] = {0};
    m->g->ops->all_reduce(m->g, f, m->me == 0 ? 10 : 12);
    WANT_POLL(m, SP_E_INTERNAL, "all_reduce");
    m->g->ops->all_reduce(m->g, f, 10); /* does nothing: the fault stays */
    WANT_POLL(m, SP_E_INTERNAL, m->me == 0 ? "member 1" : "member 0");
    sp_cast_meet(m);
}

static void other_shapes(member *m) {
    float f[64] = {0};
    static const int32_t owner[8] = {0, 1, 0, 1, 0, 1, 0, 1};
    m->g->ops->pick_rows(m->g, f, m->me == 0 ? 2 : 4, m->me == 0 ? 4 : 2, owner);
    WANT_POLL(m, SP_E_INTERNAL, "another size");
    sp_cast_meet(m);
}

static void other_operations(member *m) {
    float f[64] = {0};
    static const int32_t owner[2] = {0, 1};
    if (m->me == 0)
        m->g->ops->all_reduce(m->g, f, 4);
    else
        m->g->ops->pick_rows(m->g, f, 2, 4, owner);
    WANT_POLL(m, SP_E_INTERNAL, m->me == 0 ? "pick_rows" : "all_reduce");
    sp_cast_meet(m);
}

static void other_message(member *m) {
    char c[16] = {0};
    if (m->me == 0) {
        m->g->ops->send(m->g, 1, c, 8);
        m->g->ops->send(m->g, 1, c, 8);
    } else {
        m->g->ops->recv(m->g, 0, c, 12);
        WANT_POLL(m, SP_E_INTERNAL, "sent 8 bytes in 'send', want 12");
    }
    sp_cast_meet(m);
}

static void too_long_message(member *m) {
    char *c = calloc(1, 70000);
    if (m->me == 0) {
        m->g->ops->send(m->g, 1, c, 8);
        WANT_POLL(m, SP_OK, NULL);
        m->g->ops->send(m->g, 1, c, 65537);
        WANT_POLL(m, SP_E_INTERNAL, "65537");
    } else {
        m->g->ops->recv(m->g, 0, c, 4);
        WANT_POLL(m, SP_E_INTERNAL, "than the 4 bytes");
    }
    sp_cast_meet(m);
    free(c);
}

static void to_nobody(member *m) {
    char c = 0;
    if (m->me == 0)
        m->g->ops->send(m->g, 2, &c, 1);
    else
        m->g->ops->recv(m->g, 1, &c, 1);
    WANT_POLL(m, SP_E_INTERNAL, "of 2");
    sp_cast_meet(m);
}

static void who_disagrees_hears_it(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, other_sizes), 0);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, other_shapes), 0);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, other_operations), 0);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, other_message), 0);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, too_long_message), 0);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, to_nobody), 0);
}

/* ---- loss ---- */

static void member_1_dies(member *m) {
    float f[1000] = {0};
    m->g->ops->all_reduce(m->g, f, 1000);
    WANT_POLL(m, SP_OK, NULL);
    if (m->me == 1) kill(getpid(), SIGKILL);
    int64_t began = sp_now_ns();
    m->g->ops->all_reduce(m->g, f, 1000);
    WANT_POLL(m, SP_E_PEER_LOST, "member 1");
    WANT(m, sp_now_ns() - began < 2 * SP_NS_PER_S);
    m->g->ops->all_reduce(m->g, f, 1000);
    WANT_POLL(m, SP_E_PEER_LOST, "member 1");
}

/* Dies in the middle of a long row of large sums: messages are cut anywhere. */
static void member_0_dies_busy(member *m) {
    size_t n = (size_t)1 << 18;
    float *f = calloc(n, sizeof *f);
    int64_t began = sp_now_ns();
    sp_status st = SP_OK;
    for (int i = 0; st == SP_OK; i++) {
        if (m->me == 0 && i == 3) kill(getpid(), SIGKILL);
        began = sp_now_ns();
        m->g->ops->all_reduce(m->g, f, n);
        st = m->g->ops->poll(m->g, SP_NEVER, NULL);
    }
    WANT(m, st == SP_E_PEER_LOST);
    WANT(m, sp_now_ns() - began < 2 * SP_NS_PER_S);
    free(f);
}

static void receiver_waits_for_the_dead(member *m) {
    char c = 0;
    if (m->me == 1) {
        m->g->ops->send(m->g, 0, "x", 1);
        WANT_POLL(m, SP_OK, NULL);
        m->g->ops->recv(m->g, 0, &c, 1);
        kill(getpid(), SIGKILL);
    }
    m->g->ops->recv(m->g, 1, &c, 1);
    m->g->ops->send(m->g, 1, "y", 1);
    m->g->ops->recv(m->g, 1, &c, 1);
    WANT_POLL(m, SP_E_PEER_LOST, "member 1");
    WANT(m, c == 'x');
}

static void a_killed_member_is_a_fault_within_two_seconds(void) {
    NEEDS_PROCESSES;
    troupe t;
    sp_group_config c = sp_cast_config_of(3);
    c.timeout_ns = 8 * SP_NS_PER_S;
    CU_ASSERT(sp_cast_start_children(&t, &c, member_1_dies));
    CU_ASSERT_EQUAL(sp_cast_end_children(&t, 1), 0);
    CU_ASSERT(sp_cast_start_children(&t, &c, member_0_dies_busy));
    CU_ASSERT_EQUAL(sp_cast_end_children(&t, 0), 0);
    c.n = 2;
    CU_ASSERT(sp_cast_start_children(&t, &c, receiver_waits_for_the_dead));
    CU_ASSERT_EQUAL(sp_cast_end_children(&t, 1), 0);
}

static void member_1_is_silent(member *m) {
    float f[10] = {0};
    if (m->me == 0) {
        int64_t began = sp_now_ns(), cpu = sp_cpu_thread_ns();
        m->g->ops->all_reduce(m->g, f, 10);
        WANT_POLL(m, SP_E_PEER_LOST, "member 1 has not answered 'all_reduce' for 300 ms");
        int64_t took = sp_now_ns() - began;
        WANT(m, took >= 300 * SP_NS_PER_MS && took < 2 * SP_NS_PER_S);
        WANT(m, sp_cpu_thread_ns() - cpu < took / 3); /* asleep, not spinning */
    }
    sp_cast_meet(m);
}

static void a_silent_member_is_a_fault_by_the_timeout(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    c.timeout_ns = 300 * SP_NS_PER_MS;
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, member_1_is_silent), 0);
}

static void a_worker_that_never_was(void) {
    NEEDS_UCX;
    sp_ucx *u = NULL, *gone = NULL;
    CU_ASSERT_FATAL(sp_ucx_open(&u, NULL) == SP_OK && sp_ucx_open(&gone, NULL) == SP_OK);
    packet p;
    const void *address = sp_ucx_address(gone, &p.bytes);
    memcpy(p.address, address, p.bytes);
    sp_ucx_close(gone);
    sp_ucx_peer peers[2] = {{NULL, 0}, {p.address, p.bytes}};
    sp_group_config c = sp_cast_config_of(2);
    c.timeout_ns = SP_NS_PER_S;
    sp_group *g;
    sp_err err = {0};
    sp_status st = sp_group_open_ucx(&g, u, peers, 1, &c, &err);
    if (st == SP_OK) {
        float f = 1;
        g->ops->all_reduce(g, &f, 1);
        st = g->ops->poll(g, SP_NEVER, &err);
        g->ops->close(g);
    }
    CU_ASSERT_EQUAL(st, SP_E_PEER_LOST);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "member 1"));
    sp_ucx_close(u);
}

/* ---- abort, reopening, sharing ---- */

static void *abort_main(void *arg) {
    sp_group *g = arg;
    /* Long enough that the member mostly sleeps by then; correct at any moment. */
    poll(NULL, 0, 50);
    g->ops->abort(g);
    return NULL;
}

static void aborted_by_a_thread(member *m) {
    float f[10] = {0};
    char c;
    if (m->me == 0) {
        pthread_t t;
        pthread_create(&t, NULL, abort_main, m->g);
        int64_t began = sp_now_ns();
        m->g->ops->recv(m->g, 1, &c, 1);
        WANT_POLL(m, SP_E_CANCELED, "aborted");
        WANT(m, sp_now_ns() - began < 2 * SP_NS_PER_S);
        pthread_join(t, NULL);
        m->g->ops->all_reduce(m->g, f, 10);
        WANT_POLL(m, SP_E_CANCELED, "aborted");
        WANT(m, m->g->ops->can_recv(m->g, 1));
    }
    sp_cast_meet(m);
}

static void abort_ends_a_wait_from_another_thread(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    c.timeout_ns = 0;
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, aborted_by_a_thread), 0);
}

SP_TEST_MAIN("ucx_exchange", SP_TEST(who_disagrees_hears_it),
             SP_TEST(a_killed_member_is_a_fault_within_two_seconds),
             SP_TEST(a_silent_member_is_a_fault_by_the_timeout), SP_TEST(a_worker_that_never_was),
             SP_TEST(abort_ends_a_wait_from_another_thread))
