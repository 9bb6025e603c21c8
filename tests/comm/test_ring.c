/* Covers comm/ring.c: wrapping, backpressure, closing, waking, and a peer that lies. */
#include "comm/ring.h"

#include "comm/link.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define BYTES ((uint32_t)(4 * MIB))

typedef struct pair {
    int fd;
    sp_ring *a, *b; /* side 0, side 1 */
    sp_ring_control *c;
} pair;

static pair make_pair(void) {
    pair p = {0};
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&p.fd, BYTES, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_ring_open(&p.a, p.fd, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_ring_open(&p.b, p.fd, 1, NULL), SP_OK);
    p.c = mmap(NULL, sizeof *p.c, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
    CU_ASSERT_PTR_NOT_EQUAL_FATAL(p.c, MAP_FAILED);
    return p;
}

static void drop_pair(pair *p) {
    sp_ring_close(p->a);
    sp_ring_close(p->b);
    munmap(p->c, sizeof *p->c);
    close(p->fd);
}

static int64_t soon(int ms) {
    return sp_now_ns() + ms * SP_NS_PER_MS;
}

static sp_status put(sp_ring *r, size_t n, unsigned char first, int64_t deadline) {
    void *at;
    sp_status st = sp_ring_reserve(r, n, deadline, &at, NULL);
    if (st != SP_OK) return st;
    for (size_t i = 0; i < n; i++) ((unsigned char *)at)[i] = (unsigned char)(first + i);
    sp_ring_publish(r, n);
    return SP_OK;
}

static bool holds(const void *at, size_t n, unsigned char first) {
    for (size_t i = 0; i < n; i++)
        if (((const unsigned char *)at)[i] != (unsigned char)(first + i)) return false;
    return true;
}

static void a_ring_is_a_power_of_two_of_at_least_four_frames(void) {
    static const uint32_t wrong[] = {0, 1, 4096, 2 * 1024 * 1024, 5 * 1024 * 1024, UINT32_MAX};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        int fd = -7;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_ring_create(&fd, wrong[i], &err), SP_E_INVALID);
        CU_ASSERT_EQUAL(fd, -7);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "power of two"));
    }
}

static void a_descriptor_that_is_no_ring_is_refused(void) {
    sp_ring *r = NULL;
    CU_ASSERT_EQUAL(sp_ring_open(&r, -1, 0, NULL), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(sp_ring_open(&r, STDIN_FILENO, 0, NULL), SP_E_PROTOCOL);
    int small, right_size;
    CU_ASSERT_EQUAL_FATAL(sp_memfd_create(&small, "t", 100, false, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_ring_open(&r, small, 0, NULL), SP_E_PROTOCOL);
    sp_ring_mark_closed(small); /* does nothing, quietly */
    close(small);
    size_t size = SP_RING_DATA_AT + 2 * (size_t)BYTES;
    CU_ASSERT_EQUAL_FATAL(sp_memfd_create(&right_size, "t", size, false, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_ring_open(&r, right_size, 0, NULL), SP_E_PROTOCOL);
    close(right_size);
    CU_ASSERT_PTR_NULL(r);
}

static void a_control_block_that_lies_about_its_size_is_refused(void) {
    int fd;
    sp_err err = {0};
    sp_ring *r = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, BYTES, NULL), SP_OK);
    sp_ring_control *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CU_ASSERT_PTR_NOT_EQUAL_FATAL(c, MAP_FAILED);
    static const uint32_t lies[] = {0, 3, BYTES * 2, BYTES / 2, UINT32_MAX, 1u << 31};
    for (size_t i = 0; i < SP_LEN(lies); i++) {
        c->bytes_each = lies[i];
        CU_ASSERT_EQUAL(sp_ring_open(&r, fd, 0, &err), SP_E_PROTOCOL);
    }
    c->bytes_each = BYTES;
    c->magic ^= 1;
    CU_ASSERT_EQUAL(sp_ring_open(&r, fd, 0, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "version"));
    munmap(c, sizeof *c);
    close(fd);
}

static void a_side_is_opened_once(void) {
    pair p = make_pair();
    sp_ring *again = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_ring_open(&again, p.fd, 0, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "opened before"));
    CU_ASSERT_EQUAL(sp_ring_open(&again, p.fd, 2, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_ring_open(&again, p.fd, -1, NULL), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(again);
    drop_pair(&p);
}

static void bytes_that_pass_the_end_are_one_piece_both_ways(void) {
    pair p = make_pair();
    sp_ring *ends[2][2] = {{p.a, p.b}, {p.b, p.a}};
    for (int way = 0; way < 2; way++) {
        for (int round = 0; round < 9; round++) {
            size_t n = 3 * MIB - 8 * (size_t)round, got;
            const void *at;
            CU_ASSERT_EQUAL_FATAL(put(ends[way][0], n, (unsigned char)round, 0), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_ring_peek(ends[way][1], 0, &at, &got, NULL), SP_OK);
            CU_ASSERT_EQUAL_FATAL(got, n);
            CU_ASSERT_EQUAL((uintptr_t)at % 8, 0);
            CU_ASSERT(holds(at, n, (unsigned char)round));
            sp_ring_consume(ends[way][1], n);
        }
    }
    drop_pair(&p);
}

static void a_full_ring_times_out_and_goes_on_when_read(void) {
    pair p = make_pair();
    const void *at;
    size_t n;
    sp_err err = {0};
    void *room;
    CU_ASSERT_EQUAL(put(p.a, BYTES, 5, 0), SP_OK); /* to the last byte */
    CU_ASSERT_EQUAL(sp_ring_reserve(p.a, 8, 0, &room, &err), SP_E_TIMEOUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "full"));
    CU_ASSERT_EQUAL(put(p.a, 8, 5, soon(3)), SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, 0, &at, &n, NULL), SP_OK);
    CU_ASSERT_EQUAL(n, BYTES);
    CU_ASSERT(holds(at, n, 5));
    sp_ring_consume(p.b, 16);
    CU_ASSERT_EQUAL(put(p.a, 16, 9, 0), SP_OK);
    CU_ASSERT_EQUAL(put(p.a, 8, 9, 0), SP_E_TIMEOUT);
    drop_pair(&p);
}

static void an_empty_ring_says_again_at_the_deadline(void) {
    pair p = make_pair();
    const void *at;
    size_t n;
    int64_t begin = sp_now_ns();
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, 0, &at, &n, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, begin + 5 * SP_NS_PER_MS, &at, &n, NULL), SP_AGAIN);
    CU_ASSERT(sp_now_ns() - begin >= 5 * SP_NS_PER_MS);
    drop_pair(&p);
}

static void waiting_costs_little_processor_time(void) {
    pair p = make_pair();
    const void *at;
    size_t n;
    int64_t cpu = sp_cpu_thread_ns();
    for (int i = 0; i < 100; i++)
        CU_ASSERT_EQUAL(sp_ring_peek(p.a, soon(1), &at, &n, NULL), SP_AGAIN);
    cpu = sp_cpu_thread_ns() - cpu;
    printf("100 waits of 1 ms took %lld us of processor time\n", (long long)(cpu / 1000));
    CU_ASSERT(cpu < 50 * SP_NS_PER_MS); /* half of the wall time: far above what it takes */
    drop_pair(&p);
}

#define N_ITEMS 20000
static void *read_all(void *arg) {
    sp_ring *r = arg;
    uint64_t next = 0;
    while (next < N_ITEMS) {
        const void *at;
        size_t n;
        if (sp_ring_peek(r, SP_NEVER, &at, &n, NULL) != SP_OK) return NULL;
        for (size_t i = 0; i < n; i += 8) {
            uint64_t v;
            memcpy(&v, (const char *)at + i, 8);
            if (v != next++) return NULL;
        }
        sp_ring_consume(r, n);
    }
    return arg;
}

static void a_reader_thread_gets_every_item_in_order(void) {
    pair p = make_pair();
    pthread_t t;
    void *result = NULL;
    pthread_create(&t, NULL, read_all, p.b);
    for (uint64_t i = 0; i < N_ITEMS; i++) {
        void *at;
        CU_ASSERT_EQUAL_FATAL(sp_ring_reserve(p.a, 8, SP_NEVER, &at, NULL), SP_OK);
        memcpy(at, &i, 8);
        sp_ring_publish(p.a, 8);
    }
    pthread_join(t, &result);
    CU_ASSERT_PTR_NOT_NULL(result);
    drop_pair(&p);
}

#define N_BLOCKS 64
static void *read_blocks(void *arg) {
    sp_ring *r = arg;
    for (size_t got = 0; got < N_BLOCKS * MIB;) {
        const void *at;
        size_t n;
        if (sp_ring_peek(r, SP_NEVER, &at, &n, NULL) != SP_OK) return NULL;
        sp_ring_consume(r, n);
        got += n;
    }
    return arg;
}

static void a_writer_waits_for_room_and_is_woken(void) {
    pair p = make_pair();
    pthread_t t;
    void *result = NULL, *at;
    pthread_create(&t, NULL, read_blocks, p.b);
    for (int i = 0; i < N_BLOCKS; i++) {
        CU_ASSERT_EQUAL_FATAL(sp_ring_reserve(p.a, MIB, SP_NEVER, &at, NULL), SP_OK);
        sp_ring_publish(p.a, MIB);
    }
    pthread_join(t, &result);
    CU_ASSERT_PTR_NOT_NULL(result);
    drop_pair(&p);
}

static void what_was_published_before_closing_is_still_read(void) {
    pair p = make_pair();
    const void *at;
    size_t n;
    CU_ASSERT_EQUAL(put(p.a, 24, 1, 0), SP_OK);
    sp_ring_close(p.a);
    p.a = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_ring_peek(p.b, 0, &at, &n, NULL), SP_OK);
    CU_ASSERT_EQUAL(n, 24);
    CU_ASSERT(holds(at, n, 1));
    sp_ring_consume(p.b, n);
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, SP_NEVER, &at, &n, NULL), SP_E_CLOSED);
    CU_ASSERT_EQUAL(put(p.b, 8, 0, SP_NEVER), SP_E_CLOSED);
    drop_pair(&p);
}

static void *peek_for_ever(void *arg) {
    const void *at;
    size_t n;
    return (void *)(intptr_t)sp_ring_peek(arg, SP_NEVER, &at, &n, NULL);
}

static void *reserve_for_ever(void *arg) {
    void *at;
    return (void *)(intptr_t)sp_ring_reserve(arg, 8, SP_NEVER, &at, NULL);
}

/* Both threads are on their way into a wait; whether they sleep already makes no difference. */
static void a_third_process_ends_both_sides_waits(void) {
    pair p = make_pair();
    pthread_t reader, writer;
    void *st_reader, *st_writer;
    CU_ASSERT_EQUAL(put(p.a, BYTES, 0, 0), SP_OK);
    pthread_create(&reader, NULL, peek_for_ever, p.a);
    pthread_create(&writer, NULL, reserve_for_ever, p.a);
    while (atomic_load(&p.c->ways[1].reader_waits) != 1 ||
           atomic_load(&p.c->ways[0].writer_waits) != 1)
        sched_yield();
    sp_ring_mark_closed(p.fd);
    pthread_join(reader, &st_reader);
    pthread_join(writer, &st_writer);
    CU_ASSERT_EQUAL((intptr_t)st_reader, SP_E_CLOSED);
    CU_ASSERT_EQUAL((intptr_t)st_writer, SP_E_CLOSED);
    drop_pair(&p);
}

static void a_wake_ends_a_wait_or_the_next_one_once(void) {
    pair p = make_pair();
    const void *at;
    size_t n;
    pthread_t reader;
    void *st;
    sp_ring_wake(p.b);
    sp_ring_wake(p.b); /* two are one */
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, SP_NEVER, &at, &n, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(put(p.a, 8, 0, 0), SP_OK);
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, SP_NEVER, &at, &n, NULL), SP_OK);
    sp_ring_consume(p.b, 8);
    pthread_create(&reader, NULL, peek_for_ever, p.b);
    while (atomic_load(&p.c->ways[0].reader_waits) != 1) sched_yield();
    sp_ring_wake(p.b);
    pthread_join(reader, &st);
    CU_ASSERT_EQUAL((intptr_t)st, SP_AGAIN);
    drop_pair(&p);
}

/* Side 1 of `p` sleeps by the bell, which side 0 knows. */
static int hang_bell(pair *p) {
    int bell = eventfd(0, 0);
    CU_ASSERT_FATAL(bell >= 0);
    sp_ring_set_own_bell(p->b, bell);
    sp_ring_set_peer_bell(p->a, bell);
    return bell;
}

static uint64_t rings_of(int bell) {
    uint64_t n = 0;
    return read(bell, &n, sizeof n) == sizeof n ? n : 0; /* it does not block any more */
}

static pthread_t sleep_by_bell(pair *p) {
    pthread_t t;
    pthread_create(&t, NULL, peek_for_ever, p->b);
    while (atomic_load(&p->c->ways[0].reader_waits) != 3) sched_yield();
    return t;
}

static void a_reader_with_a_bell_is_woken_by_each_of_its_reasons(void) {
    for (int reason = 0; reason < 4; reason++) {
        pair p = make_pair();
        int bell = hang_bell(&p);
        void *st;
        pthread_t t = sleep_by_bell(&p);
        if (reason == 0) CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK);
        if (reason == 1) sp_ring_wake(p.b);
        if (reason == 2) sp_ring_close(p.a);
        if (reason == 2) p.a = NULL;
        if (reason == 3) { /* a third process marks and rings */
            static const uint64_t one = 1;
            sp_ring_mark_closed(p.fd);
            CU_ASSERT_EQUAL(write(bell, &one, sizeof one), sizeof one);
        }
        pthread_join(t, &st);
        CU_ASSERT_EQUAL((intptr_t)st, reason == 0 ? SP_OK : reason == 1 ? SP_AGAIN : SP_E_CLOSED);
        drop_pair(&p);
        close(bell);
    }
}

static void a_bell_is_rung_only_for_a_reader_that_sleeps_by_it(void) {
    pair p = make_pair();
    int bell = hang_bell(&p);
    CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK);
    CU_ASSERT_EQUAL(rings_of(bell), 0);
    sp_ring_say_sleeping(p.b, true);
    CU_ASSERT(sp_ring_can_peek(p.b)); /* the second look */
    CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK);
    CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK); /* one ring serves a burst */
    CU_ASSERT_EQUAL(rings_of(bell), 1);
    sp_ring_say_sleeping(p.b, true);
    sp_ring_say_sleeping(p.b, false);
    CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK);
    CU_ASSERT_EQUAL(rings_of(bell), 0);
    drop_pair(&p);
    close(bell);
}

static void a_writer_that_knows_a_bell_still_wakes_a_reader_in_the_futex(void) {
    pair p = make_pair();
    int bell = hang_bell(&p);
    pthread_t t;
    void *st;
    sp_ring_set_own_bell(p.b, -1);
    pthread_create(&t, NULL, peek_for_ever, p.b);
    while (atomic_load(&p.c->ways[0].reader_waits) != 1) sched_yield();
    CU_ASSERT_EQUAL(put(p.a, 8, 1, 0), SP_OK);
    pthread_join(t, &st);
    CU_ASSERT_EQUAL((intptr_t)st, SP_OK);
    CU_ASSERT_EQUAL(rings_of(bell), 0);
    drop_pair(&p);
    close(bell);
}

/* The bell of many rings: its noise does not end a wait early, nor burn a core. */
static void a_bell_that_was_rung_for_others_ends_no_wait(void) {
    pair p = make_pair();
    int bell = hang_bell(&p);
    static const uint64_t one = 1;
    const void *at;
    size_t n;
    CU_ASSERT_EQUAL(write(bell, &one, sizeof one), sizeof one);
    int64_t begin = sp_now_ns(), cpu = sp_cpu_thread_ns();
    CU_ASSERT_EQUAL(sp_ring_peek(p.b, begin + 20 * SP_NS_PER_MS, &at, &n, NULL), SP_AGAIN);
    CU_ASSERT(sp_now_ns() - begin >= 20 * SP_NS_PER_MS);
    CU_ASSERT(sp_cpu_thread_ns() - cpu < 10 * SP_NS_PER_MS);
    drop_pair(&p);
    close(bell);
}

static void a_reader_with_a_bell_gets_every_item_in_order(void) {
    pair p = make_pair();
    int bell = hang_bell(&p);
    pthread_t t;
    void *result = NULL;
    pthread_create(&t, NULL, read_all, p.b);
    for (uint64_t i = 0; i < N_ITEMS; i++) {
        void *at;
        CU_ASSERT_EQUAL_FATAL(sp_ring_reserve(p.a, 8, SP_NEVER, &at, NULL), SP_OK);
        memcpy(at, &i, 8);
        sp_ring_publish(p.a, 8);
    }
    pthread_join(t, &result);
    CU_ASSERT_PTR_NOT_NULL(result);
    drop_pair(&p);
    close(bell);
}

static void the_spin_budget_follows_what_spins_were_good_for(void) {
    sp_spin s = {0};
    int n_spins = 0;
    for (int i = 0; i < 20; i++) { /* they pay: always short ones */
        CU_ASSERT_EQUAL(sp_spin_budget(&s, false), SP_RING_SPIN_MAX_NS);
        sp_spin_note(&s, true, 1000);
    }
    for (int i = 0; i < 10000; i++) {
        int64_t budget = sp_spin_budget(&s, false);
        if (budget == 0) continue;
        n_spins++;
        sp_spin_note(&s, false, budget);
    }
    CU_ASSERT(n_spins > 50 && n_spins < 120); /* a probe in 128 waits, in the end */
    CU_ASSERT_EQUAL(sp_spin_budget(&s, true), SP_RING_SPIN_MAX_NS);
    sp_spin_note(&s, true, 500);
    CU_ASSERT_EQUAL(sp_spin_budget(&s, false), SP_RING_SPIN_MAX_NS);
}

static void an_index_that_makes_no_sense_is_a_protocol_error(void) {
    static const uint64_t heads[] = {BYTES + 8, 4, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 40};
    for (size_t i = 0; i < SP_LEN(heads); i++) {
        pair p = make_pair();
        const void *at;
        size_t n;
        sp_err err = {0};
        atomic_store(&p.c->ways[0].head, heads[i]);
        CU_ASSERT_EQUAL(sp_ring_peek(p.b, 0, &at, &n, &err), SP_E_PROTOCOL);
        drop_pair(&p);
    }
    static const uint64_t tails[] = {8, 1, UINT64_MAX - BYTES, (uint64_t)1 << 63};
    for (size_t i = 0; i < SP_LEN(tails); i++) {
        pair p = make_pair();
        void *at;
        atomic_store(&p.c->ways[0].tail, tails[i]);
        CU_ASSERT_EQUAL(sp_ring_reserve(p.a, 8, 0, &at, NULL), SP_E_PROTOCOL);
        drop_pair(&p);
    }
}

SP_TEST_MAIN("comm/ring", SP_TEST(a_ring_is_a_power_of_two_of_at_least_four_frames),
             SP_TEST(a_descriptor_that_is_no_ring_is_refused),
             SP_TEST(a_control_block_that_lies_about_its_size_is_refused),
             SP_TEST(a_side_is_opened_once),
             SP_TEST(bytes_that_pass_the_end_are_one_piece_both_ways),
             SP_TEST(a_full_ring_times_out_and_goes_on_when_read),
             SP_TEST(an_empty_ring_says_again_at_the_deadline),
             SP_TEST(waiting_costs_little_processor_time),
             SP_TEST(a_reader_thread_gets_every_item_in_order),
             SP_TEST(a_writer_waits_for_room_and_is_woken),
             SP_TEST(what_was_published_before_closing_is_still_read),
             SP_TEST(a_third_process_ends_both_sides_waits),
             SP_TEST(a_wake_ends_a_wait_or_the_next_one_once),
             SP_TEST(a_reader_with_a_bell_is_woken_by_each_of_its_reasons),
             SP_TEST(a_bell_is_rung_only_for_a_reader_that_sleeps_by_it),
             SP_TEST(a_writer_that_knows_a_bell_still_wakes_a_reader_in_the_futex),
             SP_TEST(a_bell_that_was_rung_for_others_ends_no_wait),
             SP_TEST(a_reader_with_a_bell_gets_every_item_in_order),
             SP_TEST(the_spin_budget_follows_what_spins_were_good_for),
             SP_TEST(an_index_that_makes_no_sense_is_a_protocol_error))
