/* Covers comm/kvx_ucx.c: messages come bit by bit, an end that goes leaves nothing open, and who cannot
 * by UCX is told. What is built on it: test_kvx_ucx_blocks.c. */
#include "comm/kvx_ucx.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/ucx_cast.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

/* ---- two ends and a socket ---- */

typedef struct ends {
    sp_ucx_home *home[2];
    sp_kvx_ucx *x[2]; /* exporter, reader */
    int fd[2];
    sp_status st[2];
    sp_err why[2];
    _Atomic bool stop;
} ends;

static sp_kvx_io io_of(ends *e, int i, int64_t ns) {
    return (sp_kvx_io){e->fd[i], sp_now_ns() + ns, &e->stop};
}

static void *greet_as_exporter(void *arg) {
    ends *e = arg;
    const sp_kvx_io io = io_of(e, 0, 5 * SP_NS_PER_S);
    e->st[0] = sp_kvx_ucx_greet(&e->x[0], &io, true, &e->why[0]);
    return NULL;
}

/* `has`: which of them has UCX. */
static void open_ends(ends *e, bool exporter_has, bool reader_has) {
    const bool has[2] = {exporter_has, reader_has};
    sp_err err = {0};
    memset(e, 0, sizeof *e);
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, e->fd), 0);
    for (int i = 0; i < 2; i++) {
        if (!has[i]) continue;
        must(sp_ucx_home_open(&e->home[i], &err), &err);
        must(sp_kvx_ucx_open(&e->x[i], e->home[i], i == 0, &err), &err);
    }
    sp_thread t = {0};
    must(sp_thread_start(&t, "exporter", greet_as_exporter, e, &err), &err);
    const sp_kvx_io io = io_of(e, 1, 5 * SP_NS_PER_S);
    e->st[1] = sp_kvx_ucx_greet(&e->x[1], &io, false, &e->why[1]);
    sp_thread_join(&t);
}

static void close_ends(ends *e) {
    for (int i = 0; i < 2; i++) {
        sp_kvx_ucx_close(e->x[i]);
        sp_ucx_home_close(e->home[i]);
        close(e->fd[i]);
    }
}

/* Both ends from one thread, until the oldest of each is no longer open. */
static void move_until_oldest(ends *e, int i) {
    const int64_t until = sp_now_ns() + 5 * SP_NS_PER_S;
    while (sp_kvx_ucx_oldest(e->x[i]) == SP_AGAIN && sp_now_ns() < until)
        for (int k = 0; k < 2; k++) {
            const sp_kvx_io io = {-1, sp_now_ns() + SP_NS_PER_MS, NULL};
            short came;
            (void)!sp_kvx_ucx_step(e->x[k], &io, 0, &came);
        }
}

static void messages_of_all_sizes_and_cuts_arrive_bit_by_bit(void) {
    NEEDS_UCX;
    static const size_t sizes[] = {1,     7,     64,    4095,   4096,          8192,
                                   65535, 65536, 65537, 262144, (1 << 20) + 3, 4 << 20};
    ends e;
    open_ends(&e, true, true);
    CU_ASSERT_FATAL(e.st[0] == SP_OK && e.st[1] == SP_OK && e.x[0] && e.x[1]);
    unsigned char *from = sp_alloc(4 << 20), *to = sp_alloc((4 << 20) + 1);
    for (size_t i = 0; i < 4 << 20; i++) from[i] = (unsigned char)(i * 131 >> 3 ^ i >> 11);
    uint64_t tag = 40;
    for (size_t s = 0; s < SP_LEN(sizes); s++)
        for (int parts = 1; parts <= SP_KVX_UCX_PLACES; parts += parts == 1 ? 2 : 29) {
            const size_t n = sizes[s], part = n / (size_t)parts;
            if (part == 0) continue;
            struct iovec in[SP_KVX_UCX_PLACES], out = {from, n};
            for (int i = 0; i < parts; i++)
                in[i] = (struct iovec){to + (size_t)i * part,
                                       i == parts - 1 ? n - (size_t)i * part : part};
            memset(to, 0xee, n + 1);
            /* Cut at the receiver, or at the sender, or at both. */
            sp_kvx_ucx_post(e.x[1], tag, in, parts);
            for (int i = 0; i < parts; i++) in[i].iov_base = from + (size_t)i * part;
            sp_kvx_ucx_post(e.x[0], tag++, s % 2 ? in : &out, s % 2 ? parts : 1);
            for (int i = 1; i >= 0; i--) {
                move_until_oldest(&e, i);
                CU_ASSERT_EQUAL_FATAL(sp_kvx_ucx_oldest(e.x[i]), SP_OK);
                sp_kvx_ucx_pop(e.x[i]);
            }
            CU_ASSERT(memcmp(from, to, n) == 0);
            CU_ASSERT_EQUAL(to[n], 0xee);
        }
    close_ends(&e);
    sp_free(from);
    sp_free(to);
}

static void a_message_of_another_size_is_a_broken_rule(void) {
    NEEDS_UCX;
    static const size_t sent[] = {100, 300, 100000, 300000};
    static const size_t wanted[] = {200, 200, 200000, 200000};
    ends e;
    open_ends(&e, true, true);
    CU_ASSERT_FATAL(e.x[0] && e.x[1]);
    unsigned char *from = sp_alloc(300000), *to = sp_alloc(300000);
    for (size_t i = 0; i < SP_LEN(sent); i++) {
        sp_kvx_ucx_post(e.x[1], i, &(struct iovec){to, wanted[i]}, 1);
        sp_kvx_ucx_post(e.x[0], i, &(struct iovec){from, sent[i]}, 1);
        move_until_oldest(&e, 1);
        CU_ASSERT_EQUAL(sp_kvx_ucx_oldest(e.x[1]), SP_E_PROTOCOL);
        sp_kvx_ucx_pop(e.x[1]);
        move_until_oldest(&e, 0);
        sp_kvx_ucx_pop(e.x[0]);
    }
    close_ends(&e);
    sp_free(from);
    sp_free(to);
}

static void the_ring_holds_what_it_says_and_gives_back_what_nobody_sends(void) {
    NEEDS_UCX;
    ends e;
    open_ends(&e, true, true);
    CU_ASSERT_FATAL(e.x[0] && e.x[1]);
    unsigned char *to = sp_alloc(SP_KVX_UCX_MESSAGES * 64), *from = sp_alloc(64);
    memset(from, 9, 64);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < SP_KVX_UCX_MESSAGES; i++) {
            CU_ASSERT_EQUAL(sp_kvx_ucx_room(e.x[1]), SP_KVX_UCX_MESSAGES - i);
            sp_kvx_ucx_post(e.x[1], 1000 + (uint64_t)i, &(struct iovec){to + i * 64, 64}, 1);
        }
        CU_ASSERT_EQUAL(sp_kvx_ucx_room(e.x[1]), 0);
        CU_ASSERT_EQUAL(sp_kvx_ucx_withdraw(e.x[1], SP_KVX_UCX_MESSAGES - 1), SP_OK);
        CU_ASSERT_EQUAL(sp_kvx_ucx_count(e.x[1]), 1);
        /* The one that is left still comes, and nothing of the others was touched. */
        const uint64_t tag = 1000 + SP_KVX_UCX_MESSAGES - 1;
        sp_kvx_ucx_post(e.x[0], tag, &(struct iovec){from, 64}, 1);
        move_until_oldest(&e, 1);
        CU_ASSERT_EQUAL(sp_kvx_ucx_oldest(e.x[1]), SP_OK);
        sp_kvx_ucx_pop(e.x[1]);
        CU_ASSERT_EQUAL(to[(SP_KVX_UCX_MESSAGES - 1) * 64], 9);
        CU_ASSERT_EQUAL(to[0], 0);
        move_until_oldest(&e, 0);
        sp_kvx_ucx_pop(e.x[0]);
    }
    close_ends(&e);
    sp_free(from);
    sp_free(to);
}

/* Wherever in a long message the other end goes: no process falls, no memory is written to later, and
 * what is open at this end ends. */
static void an_end_that_closes_leaves_the_other_no_message_open_for_ever(void) {
    NEEDS_UCX;
    enum {
        BYTES = 4 << 20
    };
    for (int steps = 0; steps < 160; steps += steps < 16 ? 1 : 12)
        for (int closes = 0; closes < 2; closes++) {
            ends e;
            short came;
            open_ends(&e, true, true);
            CU_ASSERT_FATAL(e.x[0] && e.x[1]);
            unsigned char *m[2] = {sp_alloc(BYTES), sp_alloc(BYTES)};
            sp_kvx_ucx_post(e.x[1], 5, &(struct iovec){m[1], BYTES}, 1);
            sp_kvx_ucx_post(e.x[0], 5, &(struct iovec){m[0], BYTES}, 1);
            for (int i = 0; i < steps; i++) {
                const sp_kvx_io brief = {-1, sp_now_ns() + SP_NS_PER_MS / 10, NULL};
                (void)!sp_kvx_ucx_step(e.x[i & 1], &brief, 0, &came);
            }
            sp_kvx_ucx_close(e.x[closes]);
            e.x[closes] = NULL;
            sp_free(m[closes]); /* asan: nothing of ucx reads or writes there any more */
            const int left = !closes;
            const sp_kvx_io io = io_of(&e, left, 5 * SP_NS_PER_S);
            sp_status st = SP_AGAIN;
            while (st == SP_AGAIN) {
                st = sp_kvx_ucx_step(e.x[left], &io, 0, &came);
                if (st == SP_OK) st = sp_kvx_ucx_oldest(e.x[left]);
            }
            CU_ASSERT(st == SP_E_CLOSED || st == SP_OK);
            sp_kvx_ucx_close(e.x[left]);
            e.x[left] = NULL;
            sp_free(m[left]);
            close_ends(&e);
        }
}

static void who_cannot_by_ucx_is_told_and_both_stay_with_tcp(void) {
    NEEDS_UCX;
    for (int has = 0; has < 3; has++) {
        ends e;
        open_ends(&e, has == 1, has == 2);
        for (int i = 0; i < 2; i++) {
            CU_ASSERT_EQUAL(e.st[i], SP_OK);
            CU_ASSERT(e.x[i] == NULL);
        }
        if (has) CU_ASSERT(strstr(e.why[has - 1].text, "other side has no ucx") != NULL);
        /* The conversation has not suffered. */
        char c = 'y', d = 0;
        const sp_kvx_io a = io_of(&e, 0, SP_NS_PER_S), b = io_of(&e, 1, SP_NS_PER_S);
        CU_ASSERT_EQUAL(sp_kvx_send_bytes(&a, &c, 1), SP_OK);
        CU_ASSERT_EQUAL(sp_kvx_recv_bytes(&b, &d, 1), SP_OK);
        CU_ASSERT_EQUAL(d, 'y');
        close_ends(&e);
    }
}

/* What a peer of the pod that is broken may say in the greeting. */
static void a_greeting_that_breaks_the_rules_ends_the_connection(void) {
    NEEDS_UCX;
    for (int kind = 0; kind < 4; kind++) {
        sp_kvx_ucx_offer o = {SP_KVX_OFFER_MAGIC, 16, "0.0.1"};
        ends e = {0};
        sp_err err = {0};
        CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, e.fd), 0);
        must(sp_ucx_home_open(&e.home[1], &err), &err);
        must(sp_kvx_ucx_open(&e.x[1], e.home[1], false, &err), &err);
        if (kind == 0) o.magic++;
        if (kind == 1) o.bytes = SP_UCX_ADDRESS_MAX + 1;
        const sp_kvx_io there = io_of(&e, 0, SP_NS_PER_S), here = io_of(&e, 1, SP_NS_PER_S);
        CU_ASSERT_EQUAL(sp_kvx_send_bytes(&there, &o, sizeof o), SP_OK);
        if (kind == 2) shutdown(e.fd[0], SHUT_WR); /* in the middle of the address */
        if (kind == 3) CU_ASSERT_EQUAL(sp_kvx_send_bytes(&there, "0123456789abcdef", 16), SP_OK);
        sp_status st = sp_kvx_ucx_greet(&e.x[1], &here, false, &e.why[1]);
        static const sp_status want[] = {SP_E_PROTOCOL, SP_E_PROTOCOL, SP_E_CLOSED, SP_OK};
        CU_ASSERT_EQUAL(st, want[kind]);
        CU_ASSERT(e.x[1] == NULL);
        if (kind == 3) CU_ASSERT(strstr(e.why[1].text, "ucx 0.0.1 there") != NULL);
        close_ends(&e);
    }
}

static void runs_are_cut_so_that_a_whole_credit_fits_into_the_ring(void) {
    for (size_t run = 8; run <= SP_KVX_CREDIT_BYTES; run += run < 4096 ? 8 : run / 3)
        for (int joined = 0; joined < 2; joined++) {
            size_t runs = SP_KVX_CREDIT_BYTES / run;
            if (runs > 8192) runs = 8192;
            const int32_t n = sp_kvx_ucx_at_once(run, (int32_t)runs, joined);
            CU_ASSERT(n >= 1 && (size_t)n <= runs);
            CU_ASSERT(joined || n <= SP_KVX_UCX_PLACES);
            CU_ASSERT((runs + (size_t)n - 1) / (size_t)n <= SP_KVX_UCX_MESSAGES);
        }
}

SP_TEST_MAIN("comm/kvx_ucx", SP_TEST(runs_are_cut_so_that_a_whole_credit_fits_into_the_ring),
             SP_TEST(messages_of_all_sizes_and_cuts_arrive_bit_by_bit),
             SP_TEST(a_message_of_another_size_is_a_broken_rule),
             SP_TEST(the_ring_holds_what_it_says_and_gives_back_what_nobody_sends),
             SP_TEST(an_end_that_closes_leaves_the_other_no_message_open_for_ever),
             SP_TEST(who_cannot_by_ucx_is_told_and_both_stay_with_tcp),
             SP_TEST(a_greeting_that_breaks_the_rules_ends_the_connection))
