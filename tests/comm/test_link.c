/* Covers comm/link.c: frames between threads and processes, a killed peer, and broken rules. */
#include "comm/link.h"

#include "comm/ring.h"
#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define BYTES ((uint32_t)(4 * MIB))

typedef struct pair {
    int fd;
    sp_link *head, *rank;
} pair;

static pair make_pair(void) {
    pair p = {0};
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&p.fd, BYTES, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&p.head, p.fd, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&p.rank, p.fd, 1, NULL), SP_OK);
    return p;
}

static void drop_pair(pair *p) {
    sp_link_close(p->head);
    sp_link_close(p->rank);
    close(p->fd);
}

static uint32_t next_random(uint32_t *s) {
    return *s = *s * 1664525u + 1013904223u;
}

/* A payload that its length and seed foretell. */
static void fill(unsigned char *p, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)(seed + i * 7 + (i >> 8));
}

static bool is_filled(const void *at, size_t n, uint32_t seed) {
    const unsigned char *p = at;
    for (size_t i = 0; i < n; i++)
        if (p[i] != (unsigned char)(seed + i * 7 + (i >> 8))) return false;
    return true;
}

static sp_status send_bytes(sp_link *l, const void *p, uint32_t n, int64_t deadline) {
    sp_piece piece = {p, n};
    return sp_link_send(l, SP_FRAME_STEP, &piece, 1, deadline, NULL);
}

static void pieces_arrive_as_one_payload(void) {
    pair p = make_pair();
    sp_frame f;
    sp_piece pieces[] = {{"he", 2}, {NULL, 0}, {"ad and ", 7}, {"rank", 4}};
    CU_ASSERT_EQUAL(sp_link_send(p.head, SP_FRAME_FORM, pieces, 4, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_send(p.rank, SP_FRAME_BYE, NULL, 0, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_FORM);
    CU_ASSERT_EQUAL(f.length, 13);
    CU_ASSERT_EQUAL(memcmp(f.payload, "head and rank", 13), 0);
    CU_ASSERT_EQUAL((uintptr_t)f.payload % 8, 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.head, &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_BYE);
    CU_ASSERT_EQUAL(f.length, 0);
    CU_ASSERT_EQUAL(sp_link_recv(p.head, &f, 0, NULL), SP_AGAIN);
    drop_pair(&p);
}

static void the_header_in_memory_is_the_one_of_the_contract(void) {
    pair p = make_pair();
    sp_link_id id = {.term = 0x0102030405060708, .epoch = 9, .incarnation = {0xa, 0xb}};
    sp_link_set_id(p.head, &id);
    CU_ASSERT_EQUAL(send_bytes(p.head, "x", 1, 0), SP_OK);
    CU_ASSERT_EQUAL(send_bytes(p.head, "yz", 2, 0), SP_OK);
    const unsigned char *m = mmap(NULL, SP_RING_DATA_AT + 4096, PROT_READ, MAP_SHARED, p.fd, 0);
    CU_ASSERT_PTR_NOT_EQUAL_FATAL(m, MAP_FAILED);
    static const unsigned char want[72] = {
        'S', 'P', 'F', '1', 1, 0, 6, 0, 1,  0, 0, 0, 0, 0, 0, 0, 8,   7, 6, 5, 4, 3, 2, 1,
        9,   0,   0,   0,   0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 11,  0, 0, 0, 0, 0, 0, 0,
        1,   0,   0,   0,   0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 'x', 0, 0, 0, 0, 0, 0, 0};
    CU_ASSERT_EQUAL(memcmp(m + SP_RING_DATA_AT, want, sizeof want), 0);
    CU_ASSERT_EQUAL(m[SP_RING_DATA_AT + 72 + 48], 2); /* the second frame's sequence */
    munmap((void *)m, SP_RING_DATA_AT + 4096);
    sp_frame f;
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(f.term, id.term);
    CU_ASSERT_EQUAL(f.epoch, 9);
    drop_pair(&p);
}

static void a_frame_of_one_mebibyte_fits_and_one_byte_more_does_not(void) {
    pair p = make_pair();
    unsigned char *big = malloc(MIB + 1);
    fill(big, MIB + 1, 3);
    sp_frame f;
    sp_err err = {0};
    sp_piece over[] = {{big, (uint32_t)MIB}, {big, 1}}, huge[] = {{big, UINT32_MAX}, {big, 8}};
    for (int i = 0; i < 11; i++) { /* the ring holds three and a bit: all wrap positions come */
        CU_ASSERT_EQUAL_FATAL(send_bytes(p.head, big, (uint32_t)MIB, 0), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
        CU_ASSERT_EQUAL(f.length, MIB);
        CU_ASSERT(is_filled(f.payload, f.length, 3));
        CU_ASSERT_EQUAL((uintptr_t)f.payload % 8, 0);
    }
    CU_ASSERT_EQUAL(sp_link_send(p.head, SP_FRAME_ROW, over, 2, 0, &err), SP_E_TOOLONG);
    CU_ASSERT_EQUAL(sp_link_send(p.head, SP_FRAME_ROW, huge, 2, 0, &err), SP_E_TOOLONG);
    CU_ASSERT_EQUAL(send_bytes(p.head, big, 5, 0), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK); /* no sequence number was used up */
    free(big);
    drop_pair(&p);
}

static void a_full_ring_times_out_and_the_sequence_goes_on(void) {
    pair p = make_pair();
    unsigned char *big = malloc(MIB);
    fill(big, MIB, 0);
    int sent = 0, got = 0;
    sp_frame f;
    while (send_bytes(p.head, big, (uint32_t)MIB, 0) == SP_OK) sent++;
    CU_ASSERT_EQUAL(sent, 3);
    CU_ASSERT_EQUAL(send_bytes(p.head, big, (uint32_t)MIB, sp_now_ns() + 2 * SP_NS_PER_MS),
                    SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
    /* Lent out until the next receive, so its room is not free yet. */
    CU_ASSERT_EQUAL(send_bytes(p.head, big, (uint32_t)MIB, 0), SP_E_TIMEOUT);
    CU_ASSERT(is_filled(f.payload, f.length, 0));
    for (got = 1; sp_link_recv(p.rank, &f, 0, NULL) == SP_OK;) got++;
    CU_ASSERT_EQUAL(got, 3);
    CU_ASSERT_EQUAL(send_bytes(p.head, big, 1, 0), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
    free(big);
    drop_pair(&p);
}

static void frames_of_an_older_term_or_epoch_are_dropped_and_counted(void) {
    pair p = make_pair();
    static const sp_link_id ids[] = {{4, 7, {1, 1}}, {5, 6, {1, 1}}, {5, 7, {1, 1}},
                                     {6, 7, {1, 1}}, {5, 8, {1, 1}}, {4, 9, {1, 1}}};
    sp_link_set_id(p.rank, &ids[2]);
    for (size_t i = 0; i < SP_LEN(ids); i++) {
        unsigned char byte = (unsigned char)i;
        sp_link_set_id(p.head, &ids[i]);
        CU_ASSERT_EQUAL(send_bytes(p.head, &byte, 1, 0), SP_OK);
    }
    static const unsigned char want[] = {2, 3, 4};
    sp_frame f;
    for (size_t i = 0; i < SP_LEN(want); i++) {
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
        CU_ASSERT_EQUAL(*(const unsigned char *)f.payload, want[i]);
        CU_ASSERT_EQUAL(f.term, ids[want[i]].term);
        CU_ASSERT_EQUAL(f.epoch, ids[want[i]].epoch);
    }
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(sp_link_stale_count(p.rank), 3);
    CU_ASSERT_EQUAL(sp_link_stale_count(p.head), 0);
    drop_pair(&p);
}

/* Sends two frames, changes one bit pattern in the first's header behind the link's back. */
static void broken_rules_are_named_and_end_the_link(void) {
    static const struct {
        size_t at;
        unsigned char value;
        const char *word;
    } rules[] = {{0, 'X', "magic"},   {4, 2, "version"},
                 {6, 0, "type"},      {6, SP_FRAME_TYPE_END, "type"},
                 {7, 1, "type"},      {11, 1, "length"},
                 {9, 16, "only"},     {12, 1, "flags"},
                 {48, 2, "sequence"}, {48, 0, "sequence"},
                 {55, 1, "sequence"}, {56, 1, "checksum"}};
    for (size_t i = 0; i < SP_LEN(rules); i++) {
        pair p = make_pair();
        sp_frame f = {0};
        sp_err err = {0};
        CU_ASSERT_EQUAL(send_bytes(p.head, "12345678", 8, 0), SP_OK);
        unsigned char *m =
            mmap(NULL, SP_RING_DATA_AT + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
        CU_ASSERT_PTR_NOT_EQUAL_FATAL(m, MAP_FAILED);
        m[SP_RING_DATA_AT + rules[i].at] = rules[i].value;
        CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, &err), SP_E_PROTOCOL);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rules[i].word));
        CU_ASSERT_PTR_NULL(f.payload);
        CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, SP_NEVER, &err), SP_E_PROTOCOL);
        munmap(m, SP_RING_DATA_AT + 4096);
        drop_pair(&p);
    }
}

static void half_a_header_is_a_protocol_error(void) {
    pair p = make_pair();
    sp_ring_control *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
    CU_ASSERT_PTR_NOT_EQUAL_FATAL(c, MAP_FAILED);
    sp_frame f;
    CU_ASSERT_EQUAL(send_bytes(p.head, "12345678", 8, 0), SP_OK);
    __atomic_store_n((uint64_t *)&c->ways[0].head, 32, __ATOMIC_SEQ_CST);
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_E_PROTOCOL);
    munmap(c, sizeof *c);
    drop_pair(&p);
}

#define N_RANDOM 3000
typedef struct crossing {
    sp_link *l;
    uint32_t seed;
    bool sends, ok;
} crossing;

static uint32_t random_length(uint32_t *s) {
    uint32_t r = next_random(s) >> 8, kind = r % 16;
    return kind == 0 ? r % (SP_FRAME_MAX / 8) : kind < 4 ? r % 5000 : r % 100;
}

static void *cross(void *arg) {
    crossing *c = arg;
    uint32_t s = c->seed;
    unsigned char *bytes = malloc(SP_FRAME_MAX);
    bool ok = true;
    for (int i = 0; i < N_RANDOM && ok; i++) {
        uint32_t n = random_length(&s);
        if (c->sends) {
            fill(bytes, n, s);
            ok = send_bytes(c->l, bytes, n, SP_NEVER) == SP_OK;
            continue;
        }
        sp_frame f;
        ok = sp_link_recv(c->l, &f, SP_NEVER, NULL) == SP_OK && f.length == n &&
             is_filled(f.payload, n, s);
    }
    free(bytes);
    c->ok = ok;
    return NULL;
}

static void random_sizes_cross_both_ways_at_once(void) {
    pair p = make_pair();
    crossing c[4] = {{p.head, 1, true, false},
                     {p.rank, 1, false, false},
                     {p.rank, 2, true, false},
                     {p.head, 2, false, false}};
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, cross, &c[i]);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    for (int i = 0; i < 4; i++) CU_ASSERT(c[i].ok);
    drop_pair(&p);
}

static void *wake_it(void *arg) {
    for (int i = 0; i < 200; i++) sp_link_wake(arg);
    return NULL;
}

static void wakes_from_many_threads_lose_no_frame(void) {
    pair p = make_pair();
    pthread_t t[3];
    sp_frame f;
    int frames = 0;
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, wake_it, p.rank);
    for (int i = 0; i < 100; i++) {
        CU_ASSERT_EQUAL(send_bytes(p.head, &i, sizeof i, 0), SP_OK);
        sp_status st;
        while ((st = sp_link_recv(p.rank, &f, SP_NEVER, NULL)) == SP_AGAIN) {
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        CU_ASSERT_EQUAL(memcmp(f.payload, &i, sizeof i), 0);
        frames++;
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    CU_ASSERT_EQUAL(frames, 100);
    sp_link_wake(p.rank); /* whatever was left is one wake at most */
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, SP_NEVER, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_AGAIN);
    drop_pair(&p);
}

/* The child is side 1 and never returns. */
static pid_t start_child(int fd, void (*fn)(sp_link *l)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    sp_link *l;
    if (sp_link_open_ring(&l, fd, 1, NULL) != SP_OK) _exit(3);
    fn(l);
    sp_link_close(l);
    _exit(0);
}

static void echo(sp_link *l) {
    sp_frame f;
    while (sp_link_recv(l, &f, SP_NEVER, NULL) == SP_OK && f.type != SP_FRAME_BYE) {
        sp_piece piece = {f.payload, f.length};
        if (sp_link_send(l, SP_FRAME_TOKENS, &piece, 1, SP_NEVER, NULL) != SP_OK) _exit(4);
    }
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

#define N_TRIPS 5000
static void a_child_process_echoes_and_the_round_trip_is_told(void) {
    static int64_t trip[N_TRIPS];
    int fd, status = -1;
    sp_link *l;
    sp_frame f;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, BYTES, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&l, fd, 0, NULL), SP_OK);
    pid_t pid = start_child(fd, echo);
    unsigned char step[256];
    for (int i = 0; i < N_TRIPS; i++) {
        fill(step, sizeof step, (uint32_t)i);
        int64_t begin = sp_now_ns();
        CU_ASSERT_EQUAL_FATAL(send_bytes(l, step, sizeof step, SP_NEVER), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(l, &f, SP_NEVER, NULL), SP_OK);
        trip[i] = sp_now_ns() - begin;
        CU_ASSERT_FATAL(is_filled(f.payload, f.length, (uint32_t)i));
    }
    CU_ASSERT_EQUAL(sp_link_send(l, SP_FRAME_BYE, NULL, 0, SP_NEVER, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(l, &f, SP_NEVER, NULL), SP_E_CLOSED); /* the child closed */
    waitpid(pid, &status, 0);
    CU_ASSERT_EQUAL(status, 0);
    qsort(trip, N_TRIPS, sizeof trip[0], by_value);
    printf("round trip of 256 bytes between processes: median %.2f us, p99 %.2f us\n",
           (double)trip[N_TRIPS / 2] / 1e3, (double)trip[N_TRIPS * 99 / 100] / 1e3);
    sp_link_close(l);
    close(fd);
}

static void *echo_frames(void *arg) {
    echo(arg);
    return NULL;
}

/* The first side waits by its bell alone, by the futex, or by its bell for a peer that has one too. */
static void bells_wake_either_side(void) {
    for (int way = 0; way < 3; way++) {
        pair p = make_pair();
        int bell = eventfd(0, 0), other = eventfd(0, 0);
        bool head = way != 1, rank = way != 0;
        pthread_t t;
        sp_frame f;
        CU_ASSERT_EQUAL(sp_link_fd(p.head), -1);
        sp_link_set_bells(p.head, head ? bell : -1, rank ? other : -1);
        sp_link_set_bells(p.rank, rank ? other : -1, head ? bell : -1);
        pthread_create(&t, NULL, echo_frames, p.rank);
        for (int i = 0; i < 2000; i++) {
            CU_ASSERT_EQUAL_FATAL(send_bytes(p.head, &i, sizeof i, SP_NEVER), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.head, &f, SP_NEVER, NULL), SP_OK);
            CU_ASSERT_FATAL(memcmp(f.payload, &i, sizeof i) == 0);
        }
        sp_link_wake(p.head);
        CU_ASSERT_EQUAL(sp_link_recv(p.head, &f, SP_NEVER, NULL), SP_AGAIN);
        CU_ASSERT_EQUAL(sp_link_send(p.head, SP_FRAME_BYE, NULL, 0, SP_NEVER, NULL), SP_OK);
        pthread_join(t, NULL);
        drop_pair(&p);
        close(bell);
        close(other);
    }
}

static void bells_mean_nothing_to_a_stream(void) {
    sp_link *a, *b;
    sp_frame f;
    int fds[2], bell = eventfd(0, EFD_NONBLOCK);
    uint64_t rings;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&a, fds[0], NULL, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&b, fds[1], NULL, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_fd(b), fds[1]);
    sp_link_set_bells(a, -1, bell);
    CU_ASSERT_EQUAL(send_bytes(a, "x", 1, 0), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(b, &f, SP_NEVER, NULL), SP_OK);
    CU_ASSERT(read(bell, &rings, sizeof rings) < 0);
    sp_link_close(a);
    CU_ASSERT_EQUAL(sp_link_recv(b, &f, SP_NEVER, NULL), SP_E_CLOSED);
    sp_link_close(b);
    close(bell);
}

static void send_for_ever(sp_link *l) {
    static unsigned char bytes[SP_FRAME_MAX];
    uint32_t s = 77;
    for (;;) {
        uint32_t n = random_length(&s);
        fill(bytes, n, s);
        if (send_bytes(l, bytes, n, SP_NEVER) != SP_OK) _exit(0);
    }
}

/* Killed at a different point each round: every frame seen is whole, then the link is closed. */
static void a_sender_killed_at_any_time_leaves_only_whole_frames(void) {
    for (int round = 0; round < 20; round++) {
        int fd, n = 0;
        sp_link *l;
        sp_frame f;
        sp_status st = SP_OK;
        uint32_t s = 77;
        CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, BYTES, NULL), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&l, fd, 0, NULL), SP_OK);
        pid_t pid = start_child(fd, send_for_ever);
        while (st == SP_OK) {
            st = sp_link_recv(l, &f, SP_NEVER, NULL);
            if (st != SP_OK) break;
            uint32_t want = random_length(&s);
            CU_ASSERT_FATAL(f.length == want && is_filled(f.payload, want, s));
            if (++n != 20 + 13 * round) continue;
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            sp_ring_mark_closed(fd);
        }
        CU_ASSERT_EQUAL(st, SP_E_CLOSED);
        CU_ASSERT(n >= 20 + 13 * round);
        CU_ASSERT_EQUAL(send_bytes(l, "x", 1, SP_NEVER), SP_E_CLOSED);
        sp_link_close(l);
        close(fd);
    }
}

/* Asked beside the thread that receives: what was sent before is still given. */
static void a_link_is_over_once_the_other_side_has_closed(void) {
    pair p = make_pair();
    sp_frame f;
    CU_ASSERT_FALSE(sp_link_is_over(p.rank));
    CU_ASSERT_EQUAL(sp_link_send(p.head, SP_FRAME_BYE, NULL, 0, 0, NULL), SP_OK);
    CU_ASSERT_FALSE(sp_link_is_over(p.rank));
    sp_link_close(p.head);
    CU_ASSERT(sp_link_is_over(p.rank));
    CU_ASSERT_EQUAL(sp_link_recv(p.rank, &f, 0, NULL), SP_OK);
    sp_link_close(p.rank);
    close(p.fd);
    int fds[2];
    sp_link *stream;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&stream, fds[0], NULL, NULL), SP_OK);
    CU_ASSERT_EQUAL(write(fds[1], "unread", 6), 6);
    CU_ASSERT_FALSE(sp_link_is_over(stream));
    shutdown(fds[1], SHUT_WR);
    CU_ASSERT(sp_link_is_over(stream));
    close(fds[1]);
    sp_link_close(stream);
}

SP_TEST_MAIN("comm/link", SP_TEST(a_link_is_over_once_the_other_side_has_closed),
             SP_TEST(pieces_arrive_as_one_payload),
             SP_TEST(the_header_in_memory_is_the_one_of_the_contract),
             SP_TEST(a_frame_of_one_mebibyte_fits_and_one_byte_more_does_not),
             SP_TEST(a_full_ring_times_out_and_the_sequence_goes_on),
             SP_TEST(frames_of_an_older_term_or_epoch_are_dropped_and_counted),
             SP_TEST(broken_rules_are_named_and_end_the_link),
             SP_TEST(half_a_header_is_a_protocol_error),
             SP_TEST(random_sizes_cross_both_ways_at_once),
             SP_TEST(wakes_from_many_threads_lose_no_frame), SP_TEST(bells_wake_either_side),
             SP_TEST(bells_mean_nothing_to_a_stream),
             SP_TEST(a_child_process_echoes_and_the_round_trip_is_told),
             SP_TEST(a_sender_killed_at_any_time_leaves_only_whole_frames))
