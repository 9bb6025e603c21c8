#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/ucx_cast.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- plays ---- */

static void all_operations(member *m) {
    static const size_t sizes[] = {1, 2, 15, 16, 17, 1000, 4096, 8192, 8193, 100000, 100001};
    for (size_t i = 0; i < SP_LEN(sizes); i++) sp_cast_reduce_and_check(m, sizes[i]);
    sp_cast_pick_and_check(m, 1, 1, 0);
    sp_cast_pick_and_check(m, 5, 64, -1);
    sp_cast_pick_and_check(m, 70, 129, -1);
    sp_cast_pick_and_check(m, 9, 33, m->config.n - 1);
    sp_cast_pick_and_check(m, 3, 60000, -1);
    sp_cast_pick_and_check(m, 2, 120000, -1);
    int32_t even[MEMBERS_MAX], odd[MEMBERS_MAX], wide[MEMBERS_MAX];
    for (int k = 0; k < MEMBERS_MAX; k++) {
        even[k] = 40;
        odd[k] = k == 1 ? 0 : 17 * k + 3;
        wide[k] = 40000 + k;
    }
    sp_cast_gather_and_check(m, 0, 1, even);
    sp_cast_gather_and_check(m, m->config.n - 1, 12, odd);
    sp_cast_gather_and_check(m, 0, 3, wide);
    sp_cast_reduce_and_check(m, 100);
}

static void nothing_at_all(member *m) {
    int32_t cols[MEMBERS_MAX] = {0};
    float f = 3;
    m->g->ops->all_reduce(m->g, &f, 0);
    m->g->ops->pick_rows(m->g, &f, 0, 5, cols);
    m->g->ops->pick_rows(m->g, &f, 1, 0, cols);
    m->g->ops->gather_cols(m->g, 0, &f, m->me == 0 ? &f : NULL, 4, cols);
    m->g->ops->gather_cols(m->g, 0, &f, m->me == 0 ? &f : NULL, 0, cols);
    WANT_POLL(m, SP_OK, NULL);
    WANT(m, f == 3);
    sp_cast_reduce_and_check(m, 3);
}

static void large_sums(member *m) {
    sp_cast_reduce_and_check(m, (size_t)1 << 20);
    sp_cast_reduce_and_check(m, ((size_t)1 << 19) + 5);
}

static void ring_of_messages(member *m) {
    const int n = m->config.n, to = (m->me + 1) % n, from = (m->me + n - 1) % n;
    static const size_t sizes[] = {0, 1, 4, 1000, 8192, 65536, 65535, 3};
    unsigned char *out = malloc(65536), *in = malloc(65537);
    for (int round = 0; round < 3; round++)
        for (size_t s = 0; s < SP_LEN(sizes); s++) {
            memset(out, m->me * 16 + (int)s, 65536);
            memset(in, 0xee, 65537);
            m->g->ops->send(m->g, to, out, sizes[s]);
            memset(out, 0xff, 65536); /* may be used again at once */
            m->g->ops->recv(m->g, from, in, sizes[s]);
            size_t wrong = in[sizes[s]] != 0xee;
            for (size_t i = 0; i < sizes[s]; i++) wrong += in[i] != from * 16 + (int)s;
            WANT(m, wrong == 0);
        }
    WANT_POLL(m, SP_OK, NULL);
    free(out);
    free(in);
}

static void everything(member *m) {
    all_operations(m);
    ring_of_messages(m);
}

static void one_alone(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(1);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, all_operations), 0);
}

static void two_to_four_threads_get_the_same_bits(void) {
    NEEDS_UCX;
    for (int n = 2; n <= 4; n++) {
        sp_group_config c = sp_cast_config_of(n);
        CU_ASSERT_EQUAL(sp_cast_play_threads(&c, everything), 0);
    }
}

static void small_ones(member *m) {
    sp_cast_reduce_and_check(m, 1);
    sp_cast_reduce_and_check(m, 333);
    sp_cast_reduce_and_check(m, 20000);
    sp_cast_pick_and_check(m, 20, 10, -1);
    ring_of_messages(m);
}

static void eight_threads_get_the_same_bits(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(8);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, small_ones), 0);
}

static void two_to_four_processes_get_the_same_bits(void) {
    NEEDS_PROCESSES;
    for (int n = 2; n <= 4; n++) {
        sp_group_config c = sp_cast_config_of(n);
        CU_ASSERT_EQUAL(sp_cast_play_processes(&c, everything), 0);
    }
}

static void sums_of_megabytes_go_in_pieces(void) {
    NEEDS_PROCESSES;
    for (int n = 2; n <= 3; n++) {
        sp_group_config c = sp_cast_config_of(n);
        CU_ASSERT_EQUAL(sp_cast_play_processes(&c, large_sums), 0);
    }
}

static void operations_on_nothing_do_nothing(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(3);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, nothing_at_all), 0);
}

/* ---- messages ---- */

static void sender_first(member *m) {
    int32_t v;
    if (m->me == 0) {
        for (v = 100; v < 103; v++) m->g->ops->send(m->g, 1, &v, sizeof v);
        WANT_POLL(m, SP_OK, NULL);
        sp_cast_meet(m); /* sent, and nobody has received */
        for (v = 103; v < 200; v++) m->g->ops->send(m->g, 1, &v, sizeof v);
        m->g->ops->recv(m->g, 1, &v, sizeof v);
        WANT(m, v == 4711);
    } else {
        sp_cast_meet(m);
        for (int32_t w = 100; w < 200; w++) {
            int64_t until = sp_now_ns() + 2 * SP_NS_PER_S;
            while (!m->g->ops->can_recv(m->g, 0) && sp_now_ns() < until) {
            }
            v = 0;
            m->g->ops->recv(m->g, 0, &v, sizeof v);
            WANT(m, v == w);
        }
        WANT(m, !m->g->ops->can_recv(m->g, 0));
        v = 4711;
        m->g->ops->send(m->g, 0, &v, sizeof v);
    }
    WANT_POLL(m, SP_OK, NULL);
}

static void messages_wait_for_their_receiver(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    c.sends = 3;
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, sender_first), 0);
}

#define BIG ((size_t)8 << 20)

/* Both send before either receives, far more than the kernel's buffers hold. */
static void both_send_first(member *m) {
    unsigned char *out = malloc(BIG), *in = malloc(BIG);
    for (int round = 0; round < 2; round++) {
        memset(out, 1 + m->me + round, BIG);
        m->g->ops->send(m->g, 1 - m->me, out, BIG);
        m->g->ops->send(m->g, 1 - m->me, out, 5);
        m->g->ops->recv(m->g, 1 - m->me, in, BIG);
        WANT(m, in[0] == 2 - m->me + round && in[BIG - 1] == 2 - m->me + round);
        m->g->ops->recv(m->g, 1 - m->me, in, 5);
    }
    WANT_POLL(m, SP_OK, NULL);
    free(out);
    free(in);
}

static void large_messages_may_cross(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    c.max_message = BIG;
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, both_send_first), 0);
}

/* The sender does nothing after poll(): what it has sent has to arrive all the same. */
static void send_and_sleep(member *m) {
    unsigned char *data = malloc(BIG);
    memset(data, 5 + m->me, BIG);
    if (m->me == 0) {
        m->g->ops->send(m->g, 1, data, BIG);
        WANT_POLL(m, SP_OK, NULL);
    } else {
        m->g->ops->recv(m->g, 0, data, BIG);
        WANT_POLL(m, SP_OK, NULL);
        WANT(m, data[0] == 5 && data[BIG - 1] == 5);
    }
    sp_cast_meet(m);
    free(data);
}

static void polled_messages_arrive_without_the_sender(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    c.max_message = BIG;
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, send_and_sleep), 0);
}

/* ---- reopening, sharing ---- */

static void *abort_main(void *arg) {
    sp_group *g = arg;
    /* Long enough that the member mostly sleeps by then; correct at any moment. */
    poll(NULL, 0, 50);
    g->ops->abort(g);
    return NULL;
}

/* Member 0 sends its part of a sum that member 1 never asks for; the same group, opened again on
 * the same workers, must not take it for its own. */
static void leftovers(member *m) {
    for (int round = 0; round < 3; round++) {
        float f[20];
        for (int i = 0; i < 20; i++) f[i] = 1e9f;
        if (m->me == 0) {
            m->g->ops->send(m->g, 1, "old", 4);
            m->g->ops->poll(m->g, SP_NEVER, NULL);
            pthread_t t;
            pthread_create(&t, NULL, abort_main, m->g);
            m->g->ops->all_reduce(m->g, f, 20);
            WANT_POLL(m, SP_E_CANCELED, NULL);
            pthread_join(t, NULL);
        }
        sp_cast_meet(m);
        m->g->ops->close(m->g);
        sp_cast_open_group(m, 7);
        if (!m->g) return;
        sp_cast_reduce_and_check(m, 20);
        char got[4] = "";
        if (m->me == 0)
            m->g->ops->send(m->g, 1, "new", 4);
        else {
            m->g->ops->recv(m->g, 0, got, 4);
            WANT(m, strcmp(got, "new") == 0);
        }
        WANT_POLL(m, SP_OK, NULL);
    }
    sp_cast_meet(m);
}

static void a_reopened_group_ignores_what_the_first_left(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, leftovers), 0);
}

static void four_groups(member *m) {
    sp_group *first = m->g, *more[3] = {0};
    for (int i = 0; i < 3; i++) {
        sp_cast_open_group(m, 100 + (uint32_t)i);
        more[i] = m->g;
    }
    sp_group *fifth;
    WANT(m, sp_group_open_ucx(&fifth, m->ucx, m->peers, 200, &m->config, NULL) == SP_E_LIMIT);
    WANT(m, sp_group_open_ucx(&fifth, m->ucx, m->peers, 1 << 16, &m->config, NULL) == SP_E_INVALID);
    /* Messages of one wait while another sums. */
    m->g = more[1];
    int32_t v = 50 + m->me;
    m->g->ops->send(m->g, 1 - m->me, &v, sizeof v);
    m->g = more[0];
    sp_cast_reduce_and_check(m, 5000);
    m->g = first;
    sp_cast_reduce_and_check(m, 7);
    m->g = more[1];
    m->g->ops->recv(m->g, 1 - m->me, &v, sizeof v);
    WANT(m, v == 51 - m->me);
    /* Closed in another order at each, while the last goes on. */
    more[m->me]->ops->close(more[m->me]);
    first->ops->close(first);
    more[1 - m->me]->ops->close(more[1 - m->me]);
    m->g = more[2];
    sp_cast_reduce_and_check(m, 20000);
    sp_cast_meet(m);
}

static void four_groups_share_a_worker(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, four_groups), 0);
}

/* ---- opening ---- */

static void ucx_leaves_signals_and_environment_alone(void) {
    static const int signals[] = {SIGHUP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTERM, SIGINT};
    struct sigaction before, after[SP_LEN(signals)];
    void *handlers[SP_LEN(signals)];
    for (size_t i = 0; i < SP_LEN(signals); i++) {
        sigaction(signals[i], NULL, &before);
        handlers[i] = (void *)(uintptr_t)before.sa_handler;
    }
    NEEDS_UCX;
    for (size_t i = 0; i < SP_LEN(signals); i++) {
        sigaction(signals[i], NULL, &after[i]);
        CU_ASSERT(handlers[i] == (void *)(uintptr_t)after[i].sa_handler);
    }
    CU_ASSERT_PTR_NULL(getenv("UCX_LOG_LEVEL"));
    CU_ASSERT_PTR_NULL(getenv("UCX_HANDLE_ERRORS"));
}

static void other_config(member *m) {
    m->g->ops->close(m->g);
    m->config.max_message += (size_t)m->me;
    sp_err err = {0};
    m->g = NULL;
    WANT(m, sp_group_open_ucx(&m->g, m->ucx, m->peers, 77, &m->config, &err) == SP_E_INVALID);
    WANT(m, strstr(err.text, "another size") != NULL && m->g == NULL);
}

static void members_with_other_sizes_do_not_open(void) {
    NEEDS_UCX;
    sp_group_config c = sp_cast_config_of(2);
    CU_ASSERT_EQUAL(sp_cast_play_threads(&c, other_config), 0);
}

static void what_cannot_be_is_refused(void) {
    NEEDS_UCX;
    sp_ucx *u;
    CU_ASSERT_FATAL(sp_ucx_open(&u, NULL) == SP_OK);
    CU_ASSERT(sp_ucx_version(u)[0] >= '1');
    sp_ucx_peer peers[SP_GROUP_MEMBERS_MAX + 1] = {{NULL, 0}};
    sp_group *g = NULL;
    sp_err err = {0};
    sp_group_config c = sp_cast_config_of(2);
    CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_E_INVALID); /* no address */
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "member 1"));
    c.me = 2;
    CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_E_INVALID);
    c = sp_cast_config_of(SP_GROUP_MEMBERS_MAX + 1);
    CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_E_INVALID);
    c = sp_cast_config_of(1);
    c.sends = 1000;
    CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_E_INVALID);
    c = sp_cast_config_of(1);
    for (int i = 1; i <= 2; i++) { /* no memory at any point: nothing is left behind */
        sp_mem_fail_at(i);
        CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_E_NOMEM);
    }
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(g);
    sp_group *again;
    CU_ASSERT_EQUAL(sp_group_open_ucx(&g, u, peers, 1, &c, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_group_open_ucx(&again, u, peers, 2, &c, &err), SP_OK);
    again->ops->close(again);
    g->ops->close(g);
    sp_ucx_close(u);
}

SP_TEST_MAIN("group_ucx", SP_TEST(ucx_leaves_signals_and_environment_alone), SP_TEST(one_alone),
             SP_TEST(two_to_four_threads_get_the_same_bits),
             SP_TEST(eight_threads_get_the_same_bits),
             SP_TEST(two_to_four_processes_get_the_same_bits),
             SP_TEST(sums_of_megabytes_go_in_pieces), SP_TEST(operations_on_nothing_do_nothing),
             SP_TEST(messages_wait_for_their_receiver), SP_TEST(large_messages_may_cross),
             SP_TEST(polled_messages_arrive_without_the_sender),
             SP_TEST(a_reopened_group_ignores_what_the_first_left),
             SP_TEST(four_groups_share_a_worker), SP_TEST(members_with_other_sizes_do_not_open),
             SP_TEST(what_cannot_be_is_refused))
