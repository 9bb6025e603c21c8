/* Covers comm/fan.c: turns, sending to all, the end of a link, wakes; rings, streams and both; and
 * ranks that are processes. */
#include "comm/fan.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint32_t)1 << 20)
#define RING_BYTES (4 * MIB)
#define RANKS_MAX 64

typedef struct star { /* a fan and the ranks' ends of its links */
    sp_fan *fan;
    sp_link *rank[RANKS_MAX];
    int n;
} star;

static int64_t soon(void) {
    return sp_now_ns() + 10 * SP_NS_PER_S; /* far beyond what anything takes, but an end */
}

static star make_star(int n_rings, int n_streams) {
    star s = {0};
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&s.fan, -1, NULL), SP_OK);
    for (; s.n < n_rings + n_streams; s.n++) {
        sp_link *head = NULL;
        int fds[2];
        if (s.n < n_rings) {
            CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fds[0], RING_BYTES, NULL), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&head, fds[0], 0, NULL), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&s.rank[s.n], fds[0], 1, NULL), SP_OK);
            sp_link_set_bells(s.rank[s.n], -1, sp_fan_bell(s.fan));
            close(fds[0]);
        } else {
            CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
            CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&head, fds[0], NULL, NULL), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&s.rank[s.n], fds[1], NULL, NULL), SP_OK);
        }
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(s.fan, head, NULL), SP_OK);
        CU_ASSERT_PTR_EQUAL(sp_fan_link(s.fan, s.n), head);
    }
    CU_ASSERT_EQUAL(sp_fan_count(s.fan), s.n);
    return s;
}

static void drop_star(star *s) {
    sp_fan_close(s->fan);
    for (int i = 0; i < s->n; i++) sp_link_close(s->rank[i]);
}

static sp_status say(sp_link *l, const void *p, uint32_t n) {
    sp_piece piece = {p, n};
    return sp_link_send(l, SP_FRAME_TOKENS, &piece, 1, soon(), NULL);
}

static sp_status tell(star *s, int to, const void *p, uint32_t n, int64_t deadline, sp_err *err) {
    sp_piece piece = {p, n};
    return sp_fan_send(s->fan, to, SP_FRAME_STEP, &piece, 1, deadline, err);
}

static int heard(sp_link *l) { /* the one byte of the next frame, or the status below zero */
    sp_frame f;
    sp_status st = sp_link_recv(l, &f, 0, NULL);
    return st == SP_OK ? *(const unsigned char *)f.payload : st == SP_AGAIN ? -1000 : (int)st;
}

static void every_frame_comes_with_the_index_of_its_link(void) {
    star s = make_star(3, 3);
    sp_frame f;
    int from = -7;
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(from, -7);
    for (int i = s.n - 1; i >= 0; i--) {
        unsigned char byte = (unsigned char)(i + 40);
        CU_ASSERT_EQUAL(say(s.rank[i], &byte, 1), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_OK);
        CU_ASSERT_EQUAL(from, i);
        CU_ASSERT_EQUAL(f.type, SP_FRAME_TOKENS);
        CU_ASSERT_EQUAL(f.length, 1);
        CU_ASSERT_EQUAL(*(const unsigned char *)f.payload, byte);
        CU_ASSERT_EQUAL((uintptr_t)f.payload % 8, 0);
    }
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_AGAIN);
    drop_star(&s);
}

static void a_frame_goes_to_one_or_to_all(void) {
    star s = make_star(2, 2);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, "a", 1, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(tell(&s, 1, "b", 1, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(tell(&s, 3, "c", 1, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, "a", 1, 0, NULL), SP_OK); /* the same: again to all */
    static const char *const want[] = {"aa", "aba", "aa", "aca"};
    for (int i = 0; i < s.n; i++) {
        for (const char *c = want[i]; *c; c++) CU_ASSERT_EQUAL(heard(s.rank[i]), *c);
        CU_ASSERT_EQUAL(heard(s.rank[i]), -1000);
    }
    unsigned char *big = sp_alloc(MIB + 1);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, big, MIB + 1, 0, NULL), SP_E_TOOLONG);
    CU_ASSERT_EQUAL(heard(s.rank[0]), -1000);
    sp_free(big);
    drop_star(&s);
}

static void links_that_all_have_frames_take_turns(void) {
    star s = make_star(3, 2);
    for (int k = 0; k < 30; k++)
        for (int i = 0; i < s.n; i++) CU_ASSERT_EQUAL(say(s.rank[i], &k, sizeof k), SP_OK);
    int last[5] = {-1, -1, -1, -1, -1};
    for (int k = 0; k < 30; k++) {
        for (int i = 0; i < s.n; i++) {
            sp_frame f;
            int from = -1, number;
            CU_ASSERT_EQUAL_FATAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_OK);
            memcpy(&number, f.payload, sizeof number);
            CU_ASSERT_EQUAL(from, i);
            CU_ASSERT_EQUAL(number, last[from] + 1);
            last[from] = number;
        }
    }
    drop_star(&s);
}

/* The ring is refilled before each receive, so the fan never has a reason to sleep. */
static void a_ring_that_is_never_empty_does_not_starve_a_socket(void) {
    star s = make_star(1, 1);
    sp_frame f;
    int from = 0, n;
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL),
                    SP_AGAIN); /* the socket was looked at */
    CU_ASSERT_EQUAL(say(s.rank[1], "x", 1), SP_OK);
    for (n = 0; n < 1000 && from == 0; n++) {
        CU_ASSERT_EQUAL(say(s.rank[0], "y", 1), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(s.fan, &f, &from, SP_NEVER, NULL), SP_OK);
    }
    CU_ASSERT_EQUAL(from, 1);
    CU_ASSERT(n <= 20);
    drop_star(&s);
}

static void the_room_of_a_frame_is_free_after_the_next_receive_of_any_link(void) {
    star s = make_star(2, 0);
    unsigned char *big = sp_alloc(MIB);
    sp_piece piece = {big, MIB};
    sp_frame f;
    int from;
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(say(s.rank[0], big, MIB), SP_OK);
    CU_ASSERT_EQUAL(say(s.rank[1], "x", 1), SP_OK);
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(from, 0);
    CU_ASSERT_EQUAL(sp_link_send(s.rank[0], SP_FRAME_ROW, &piece, 1, 0, NULL), SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(from, 1);
    CU_ASSERT_EQUAL(sp_link_send(s.rank[0], SP_FRAME_ROW, &piece, 1, 0, NULL), SP_OK);
    sp_free(big);
    drop_star(&s);
}

static void a_closed_link_is_reported_once_with_its_index(void) {
    star s = make_star(3, 3);
    static const int order[] = {1, 4, 0, 5};
    sp_frame f;
    int from;
    for (size_t k = 0; k < SP_LEN(order); k++) {
        int i = order[k];
        sp_err err = {0};
        char name[16];
        snprintf(name, sizeof name, "rank %d:", i);
        CU_ASSERT_EQUAL(say(s.rank[i], "last words", 10), SP_OK);
        sp_link_close(s.rank[i]);
        s.rank[i] = NULL;
        CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, soon(), &err), SP_OK);
        CU_ASSERT_EQUAL(from, i);
        CU_ASSERT_EQUAL(f.length, 10);
        CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, soon(), &err), SP_E_CLOSED);
        CU_ASSERT_EQUAL(from, i);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, name));
        CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_AGAIN);
        CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, sp_now_ns() + SP_NS_PER_MS, NULL), SP_AGAIN);
        CU_ASSERT_EQUAL(tell(&s, i, "x", 1, 0, NULL), SP_E_CLOSED);
    }
    CU_ASSERT_EQUAL(say(s.rank[2], "x", 1), SP_OK);
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(from, 2);
    drop_star(&s);
}

static void a_closed_link_does_not_keep_a_frame_from_the_others(void) {
    star s = make_star(2, 2);
    sp_err err = {0};
    sp_link_close(s.rank[1]);
    sp_link_close(s.rank[2]);
    s.rank[1] = s.rank[2] = NULL;
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, "a", 1, soon(), &err), SP_E_CLOSED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rank 1:"));
    CU_ASSERT_EQUAL(heard(s.rank[0]), 'a');
    CU_ASSERT_EQUAL(heard(s.rank[3]), 'a');
    drop_star(&s);
}

static void a_frame_that_one_full_link_did_not_take_is_given_to_that_one_alone(void) {
    star s = make_star(3, 0);
    unsigned char *big = sp_alloc(MIB);
    sp_err err = {0};
    sp_frame f;
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(tell(&s, 1, big, MIB, 0, NULL), SP_OK);
    memset(big, 'b', MIB);
    for (int i = 0; i < 3; i++) { /* however often */
        int64_t deadline = i ? 0 : sp_now_ns() + 3 * SP_NS_PER_MS;
        CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, big, MIB, deadline, &err), SP_E_TIMEOUT);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rank 1:"));
    }
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(sp_link_recv(s.rank[1], &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(s.rank[1], &f, 0, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, big, MIB, 0, &err), SP_OK);
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(heard(s.rank[i]), 'b');
        CU_ASSERT_EQUAL(heard(s.rank[i]), -1000);
    }
    sp_free(big);
    drop_star(&s);
}

static void another_frame_after_a_time_out_goes_to_all(void) {
    star s = make_star(2, 0);
    unsigned char *big = sp_alloc(MIB);
    sp_frame f;
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(tell(&s, 1, big, MIB, 0, NULL), SP_OK);
    memset(big, 'b', MIB);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, big, MIB, 0, NULL), SP_E_TIMEOUT);
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(sp_link_recv(s.rank[1], &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(s.rank[1], &f, 0, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(tell(&s, SP_FAN_ALL, "c", 1, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(heard(s.rank[0]), 'b');
    CU_ASSERT_EQUAL(heard(s.rank[0]), 'c');
    CU_ASSERT_EQUAL(heard(s.rank[1]), 'c');
    sp_free(big);
    drop_star(&s);
}

static void *recv_for_ever(void *arg) {
    sp_frame f;
    int from;
    return (void *)(intptr_t)sp_fan_recv(arg, &f, &from, SP_NEVER, NULL);
}

static void *wake_often(void *arg) {
    for (int i = 0; i < 200; i++) sp_fan_wake(arg);
    return NULL;
}

static void a_wake_ends_a_wait_or_the_next_one_once(void) {
    star s = make_star(2, 1);
    sp_frame f;
    int from;
    sp_fan_wake(s.fan);
    sp_fan_wake(s.fan); /* two are one */
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, SP_NEVER, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(say(s.rank[0], "x", 1), SP_OK);
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, SP_NEVER, NULL), SP_OK);
    for (int i = 0; i < 50; i++) { /* on its way to sleep, asleep, or not yet there */
        pthread_t t;
        void *st;
        pthread_create(&t, NULL, recv_for_ever, s.fan);
        sp_fan_wake(s.fan);
        pthread_join(t, &st);
        CU_ASSERT_EQUAL((intptr_t)st, SP_AGAIN);
    }
    drop_star(&s);
}

static void wakes_from_many_threads_lose_no_frame(void) {
    star s = make_star(2, 2);
    pthread_t t[3];
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, wake_often, s.fan);
    for (int i = 0; i < 200; i++) {
        sp_frame f;
        sp_status st;
        int from;
        CU_ASSERT_EQUAL(say(s.rank[i % 4], &i, sizeof i), SP_OK);
        while ((st = sp_fan_recv(s.fan, &f, &from, SP_NEVER, NULL)) == SP_AGAIN) {
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        CU_ASSERT_EQUAL(from, i % 4);
        CU_ASSERT_EQUAL(memcmp(f.payload, &i, sizeof i), 0);
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    drop_star(&s);
}

static void an_idle_fan_costs_little_processor_time(void) {
    star s = make_star(16, 2);
    sp_frame f;
    int from;
    int64_t cpu = sp_cpu_thread_ns();
    for (int i = 0; i < 50; i++)
        CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, sp_now_ns() + SP_NS_PER_MS, NULL), SP_AGAIN);
    cpu = sp_cpu_thread_ns() - cpu;
    printf("50 waits of 1 ms for 18 links took %lld us of processor time\n",
           (long long)(cpu / 1000));
    CU_ASSERT(cpu < 25 * SP_NS_PER_MS); /* half of the wall time: far above what it takes */
    drop_star(&s);
}

static void a_fan_takes_as_many_links_as_it_says(void) {
    sp_fan *fan;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&fan, -1, NULL), SP_OK);
    for (int i = 0; i <= SP_FAN_LINKS_MAX; i++) {
        int fd;
        sp_link *l;
        CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, RING_BYTES, NULL), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&l, fd, 0, NULL), SP_OK);
        close(fd);
        sp_status st = sp_fan_add(fan, l, &err);
        CU_ASSERT_EQUAL_FATAL(st, i < SP_FAN_LINKS_MAX ? SP_OK : SP_E_LIMIT);
        if (st != SP_OK) sp_link_close(l);
    }
    CU_ASSERT_EQUAL(sp_fan_count(fan), SP_FAN_LINKS_MAX);
    sp_fan_close(fan);
}

static uint32_t next_random(uint32_t *s) {
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

static void sixty_four_links_of_both_kinds_keep_their_frames_apart(void) {
    star s = make_star(32, 32);
    uint32_t seed = 5, sent[RANKS_MAX] = {0}, got[RANKS_MAX] = {0};
    int n_sent = 0, n_got = 0;
    for (int round = 0; round < 400; round++) {
        for (uint32_t k = next_random(&seed) % 20; k > 0; k--, n_sent++) {
            uint32_t i = next_random(&seed) % RANKS_MAX, words[2] = {i, sent[i]++};
            CU_ASSERT_EQUAL_FATAL(say(s.rank[i], words, sizeof words), SP_OK);
        }
        sp_frame f;
        int from;
        while (sp_fan_recv(s.fan, &f, &from, 0, NULL) == SP_OK) {
            uint32_t words[2];
            memcpy(words, f.payload, sizeof words);
            CU_ASSERT_FATAL(words[0] == (uint32_t)from && words[1] == got[from]++);
            n_got++;
        }
    }
    CU_ASSERT_EQUAL(n_sent, n_got);
    drop_star(&s);
}

/* Ranks as threads: every one answers every frame until BYE. */
static void *echo_thread(void *arg) {
    sp_link *l = arg;
    sp_frame f;
    while (sp_link_recv(l, &f, SP_NEVER, NULL) == SP_OK) {
        if (f.type == SP_FRAME_BYE) return arg;
        sp_piece piece = {f.payload, f.length};
        if (sp_link_send(l, SP_FRAME_TOKENS, &piece, 1, SP_NEVER, NULL) != SP_OK) return NULL;
    }
    return NULL;
}

#define N_CROSSING 500
static void *send_many(void *arg) {
    star *s = arg;
    unsigned char *bytes = sp_alloc(MIB);
    uint32_t seed = 9;
    void *ok = arg;
    for (int i = 0; i < N_CROSSING && ok; i++) {
        uint32_t r = next_random(&seed), n = r % 50 == 0 ? 4 + r % (MIB - 4) : 4 + r % 2000;
        memcpy(bytes, &i, sizeof i);
        if (tell(s, SP_FAN_ALL, bytes, n, SP_NEVER, NULL) != SP_OK) ok = NULL;
    }
    sp_free(bytes);
    return ok;
}

static void one_thread_sends_while_another_receives(void) {
    star s = make_star(3, 3);
    pthread_t ranks[6], sender;
    int got[6] = {0};
    void *ok;
    for (int i = 0; i < s.n; i++) pthread_create(&ranks[i], NULL, echo_thread, s.rank[i]);
    pthread_create(&sender, NULL, send_many, &s);
    for (int k = 0; k < s.n * N_CROSSING; k++) {
        sp_frame f;
        int from, number;
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(s.fan, &f, &from, soon(), NULL), SP_OK);
        memcpy(&number, f.payload, sizeof number);
        CU_ASSERT_EQUAL_FATAL(number, got[from]++);
    }
    pthread_join(sender, &ok);
    CU_ASSERT_PTR_NOT_NULL(ok);
    CU_ASSERT_EQUAL(sp_fan_send(s.fan, SP_FAN_ALL, SP_FRAME_BYE, NULL, 0, soon(), NULL), SP_OK);
    for (int i = 0; i < s.n; i++) {
        pthread_join(ranks[i], &ok);
        CU_ASSERT_PTR_NOT_NULL(ok);
    }
    drop_star(&s);
}

/* The sends do not wait, so they leave a begun frame behind; nobody sends after that. */
static void a_begun_frame_is_finished_while_the_fan_receives(void) {
    star s = make_star(1, 1);
    unsigned char *big = sp_alloc(MIB);
    pthread_t rank;
    int n = 0, from;
    sp_frame f;
    while (tell(&s, 1, big, MIB, 0, NULL) == SP_OK) n++;
    CU_ASSERT(n >= 1);
    pthread_create(&rank, NULL, echo_thread, s.rank[1]);
    for (int i = 0; i < n; i++) {
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(s.fan, &f, &from, soon(), NULL), SP_OK);
        CU_ASSERT_EQUAL(from, 1);
        CU_ASSERT_EQUAL(f.length, MIB);
    }
    CU_ASSERT_EQUAL(sp_fan_send(s.fan, 1, SP_FRAME_BYE, NULL, 0, soon(), NULL), SP_OK);
    pthread_join(rank, NULL);
    int64_t cpu = sp_cpu_thread_ns(); /* and nobody asks about the socket's room any more */
    CU_ASSERT_EQUAL(sp_fan_recv(s.fan, &f, &from, sp_now_ns() + 30 * SP_NS_PER_MS, NULL), SP_AGAIN);
    CU_ASSERT(sp_cpu_thread_ns() - cpu < 15 * SP_NS_PER_MS);
    sp_free(big);
    drop_star(&s);
}

/* Ranks as processes: rings and the bell are inherited, as from an agent. */

typedef struct pod {
    sp_fan *fan;
    int bell, n, ring[16];
    pid_t pid[16];
} pod;

static void rank_process(int ring_fd, int bell, bool all_answer, bool is_first) {
    sp_link *l;
    sp_frame f;
    if (sp_link_open_ring(&l, ring_fd, 1, NULL) != SP_OK) _exit(3);
    sp_link_set_bells(l, -1, bell);
    while (sp_link_recv(l, &f, SP_NEVER, NULL) == SP_OK && f.type != SP_FRAME_BYE) {
        sp_piece piece = {f.payload, f.length};
        if (!all_answer && !is_first) continue;
        if (sp_link_send(l, SP_FRAME_TOKENS, &piece, 1, SP_NEVER, NULL) != SP_OK) _exit(4);
    }
    sp_link_close(l);
    _exit(0);
}

static pod make_pod(int n, bool all_answer) {
    pod p = {.n = n, .bell = eventfd(0, 0)};
    CU_ASSERT_FATAL(p.bell >= 0);
    fflush(NULL);
    for (int i = 0; i < n; i++) {
        CU_ASSERT_EQUAL_FATAL(sp_ring_create(&p.ring[i], RING_BYTES, NULL), SP_OK);
        p.pid[i] = fork();
        if (p.pid[i] == 0) rank_process(p.ring[i], p.bell, all_answer, i == 0);
    }
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&p.fan, p.bell, NULL), SP_OK);
    for (int i = 0; i < n; i++) {
        sp_link *l;
        CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&l, p.ring[i], 0, NULL), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(p.fan, l, NULL), SP_OK);
    }
    return p;
}

static void drop_pod(pod *p, int n_killed) {
    sp_status st = sp_fan_send(p->fan, SP_FAN_ALL, SP_FRAME_BYE, NULL, 0, soon(), NULL);
    CU_ASSERT_EQUAL(st, n_killed ? SP_E_CLOSED : SP_OK);
    sp_frame f;
    int from, n_closed = n_killed;
    while (n_closed < p->n && sp_fan_recv(p->fan, &f, &from, soon(), NULL) == SP_E_CLOSED)
        n_closed++;
    CU_ASSERT_EQUAL(n_closed, p->n);
    for (int i = 0; i < p->n; i++) {
        int status = -1;
        if (p->pid[i] > 0) CU_ASSERT_EQUAL(waitpid(p->pid[i], &status, 0), p->pid[i]);
        if (p->pid[i] > 0) CU_ASSERT_EQUAL(status, 0);
        close(p->ring[i]);
    }
    sp_fan_close(p->fan);
    close(p->bell);
}

static void ranks_in_processes_answer_through_the_bell(void) {
    pod p = make_pod(6, true);
    for (int step = 0; step < 300; step++) {
        unsigned seen = 0;
        sp_piece piece = {&step, sizeof step};
        CU_ASSERT_EQUAL_FATAL(
            sp_fan_send(p.fan, SP_FAN_ALL, SP_FRAME_STEP, &piece, 1, soon(), NULL), SP_OK);
        while (seen != 63) {
            sp_frame f;
            int from;
            CU_ASSERT_EQUAL_FATAL(sp_fan_recv(p.fan, &f, &from, soon(), NULL), SP_OK);
            CU_ASSERT_EQUAL(memcmp(f.payload, &step, sizeof step), 0);
            CU_ASSERT_FALSE(seen & 1u << from);
            seen |= 1u << from;
        }
    }
    drop_pod(&p, 0);
}

/* As an agent does: reap, mark, ring. */
static void *bury_third(void *arg) {
    pod *p = arg;
    static const uint64_t one = 1;
    kill(p->pid[3], SIGKILL);
    waitpid(p->pid[3], NULL, 0);
    sp_ring_mark_closed(p->ring[3]);
    return write(p->bell, &one, sizeof one) == sizeof one ? arg : NULL;
}

static void a_killed_rank_ends_the_wait_of_the_fan(void) {
    pod p = make_pod(5, true);
    pthread_t t;
    sp_frame f;
    int from = -1;
    pthread_create(&t, NULL, bury_third, &p);
    CU_ASSERT_EQUAL(sp_fan_recv(p.fan, &f, &from, soon(), NULL), SP_E_CLOSED);
    CU_ASSERT_EQUAL(from, 3);
    pthread_join(t, NULL);
    p.pid[3] = 0;
    drop_pod(&p, 1);
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

#define N_STEPS 1000
static void what_a_step_costs(int n_ranks) {
    static int64_t cpu[N_STEPS], send_cpu[N_STEPS], wall[N_STEPS];
    pod p = make_pod(n_ranks, false);
    unsigned char step[1024] = {0};
    sp_piece piece = {step, sizeof step};
    sp_piece big = {sp_alloc(MIB), MIB};
    for (int i = 0; i < 5; i++) { /* once around, so that no page is new any more */
        sp_frame f;
        int from;
        CU_ASSERT_EQUAL_FATAL(sp_fan_send(p.fan, SP_FAN_ALL, SP_FRAME_STEP, &big, 1, soon(), NULL),
                              SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(p.fan, &f, &from, soon(), NULL), SP_OK);
    }
    sp_free((void *)big.ptr);
    for (int i = 0; i < N_STEPS; i++) {
        sp_frame f;
        int from;
        usleep(200); /* so that all ranks sleep, as they do while they wait for a step */
        int64_t begin = sp_now_ns(), cpu_begin = sp_cpu_thread_ns();
        CU_ASSERT_EQUAL_FATAL(
            sp_fan_send(p.fan, SP_FAN_ALL, SP_FRAME_STEP, &piece, 1, soon(), NULL), SP_OK);
        send_cpu[i] = sp_cpu_thread_ns() - cpu_begin;
        CU_ASSERT_EQUAL_FATAL(sp_fan_recv(p.fan, &f, &from, soon(), NULL), SP_OK);
        CU_ASSERT_EQUAL(from, 0);
        cpu[i] = sp_cpu_thread_ns() - cpu_begin;
        wall[i] = sp_now_ns() - begin;
    }
    qsort(cpu, N_STEPS, sizeof cpu[0], by_value);
    qsort(send_cpu, N_STEPS, sizeof cpu[0], by_value);
    qsort(wall, N_STEPS, sizeof wall[0], by_value);
    printf(
        "1 KiB to %d sleeping ranks and one answer: median %.1f us of the head's processor (%.1f "
        "of it sending), %.1f us in all\n",
        n_ranks, (double)cpu[N_STEPS / 2] / 1e3, (double)send_cpu[N_STEPS / 2] / 1e3,
        (double)wall[N_STEPS / 2] / 1e3);
    drop_pod(&p, 0);
}

static bool tcp_pair(int fds[2]) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    bool ok = bind(listener, (struct sockaddr *)&at, len) == 0 && listen(listener, 1) == 0 &&
              getsockname(listener, (struct sockaddr *)&at, &len) == 0 &&
              connect(fds[0], (struct sockaddr *)&at, len) == 0;
    fds[1] = ok ? accept(listener, NULL, NULL) : -1;
    close(listener);
    return fds[1] >= 0;
}

static void far_rank_process(int fd, int head_fd) {
    static const sp_link_keys keys = {.send = {2}, .receive = {1}};
    sp_link *l;
    sp_frame f;
    close(head_fd);
    if (sp_link_open_stream(&l, fd, &keys, NULL) != SP_OK) _exit(3);
    while (sp_link_recv(l, &f, SP_NEVER, NULL) == SP_OK && f.type != SP_FRAME_BYE) {
        sp_piece piece = {f.payload, f.length};
        if (sp_link_send(l, SP_FRAME_TOKENS, &piece, 1, SP_NEVER, NULL) != SP_OK) _exit(4);
    }
    sp_link_close(l);
    _exit(0);
}

static void ranks_over_encrypted_tcp_answer_and_the_round_trip_is_told(void) {
    static const sp_link_keys keys = {.send = {1}, .receive = {2}};
    static int64_t wall[N_STEPS];
    pod p = {.n = 2};
    unsigned char step[1024] = {0};
    sp_piece piece = {step, sizeof step};
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&p.fan, -1, NULL), SP_OK);
    for (int i = 0; i < p.n; i++) {
        int fds[2];
        sp_link *l;
        if (!tcp_pair(fds)) {
            sp_fan_close(p.fan);
            SP_SKIP("no TCP over loopback here");
        }
        fflush(NULL);
        p.pid[i] = fork();
        if (p.pid[i] == 0) far_rank_process(fds[1], fds[0]);
        close(fds[1]);
        p.ring[i] = p.bell = -1;
        CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l, fds[0], &keys, NULL), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(p.fan, l, NULL), SP_OK);
    }
    for (int i = 0; i < N_STEPS; i++) {
        sp_frame f;
        int from, to = i % 4 ? 1 : SP_FAN_ALL;
        int64_t begin = sp_now_ns();
        CU_ASSERT_EQUAL_FATAL(sp_fan_send(p.fan, to, SP_FRAME_STEP, &piece, 1, soon(), NULL),
                              SP_OK);
        for (int k = to == 1 ? 1 : 2; k > 0; k--) {
            CU_ASSERT_EQUAL_FATAL(sp_fan_recv(p.fan, &f, &from, soon(), NULL), SP_OK);
            CU_ASSERT(to == SP_FAN_ALL || from == to);
        }
        wall[i] = sp_now_ns() - begin;
    }
    qsort(wall, N_STEPS, sizeof wall[0], by_value);
    printf("1 KiB to a rank over encrypted TCP and its answer: median %.1f us\n",
           (double)wall[N_STEPS / 2] / 1e3);
    drop_pod(&p, 0);
}

static void a_step_for_many_ranks_is_cheap(void) {
    what_a_step_costs(1);
    what_a_step_costs(16);
}

SP_TEST_MAIN("comm/fan", SP_TEST(every_frame_comes_with_the_index_of_its_link),
             SP_TEST(a_frame_goes_to_one_or_to_all), SP_TEST(links_that_all_have_frames_take_turns),
             SP_TEST(a_ring_that_is_never_empty_does_not_starve_a_socket),
             SP_TEST(the_room_of_a_frame_is_free_after_the_next_receive_of_any_link),
             SP_TEST(a_closed_link_is_reported_once_with_its_index),
             SP_TEST(a_closed_link_does_not_keep_a_frame_from_the_others),
             SP_TEST(a_frame_that_one_full_link_did_not_take_is_given_to_that_one_alone),
             SP_TEST(another_frame_after_a_time_out_goes_to_all),
             SP_TEST(a_wake_ends_a_wait_or_the_next_one_once),
             SP_TEST(wakes_from_many_threads_lose_no_frame),
             SP_TEST(an_idle_fan_costs_little_processor_time),
             SP_TEST(a_fan_takes_as_many_links_as_it_says),
             SP_TEST(sixty_four_links_of_both_kinds_keep_their_frames_apart),
             SP_TEST(one_thread_sends_while_another_receives),
             SP_TEST(a_begun_frame_is_finished_while_the_fan_receives),
             SP_TEST(ranks_in_processes_answer_through_the_bell),
             SP_TEST(a_killed_rank_ends_the_wait_of_the_fan),
             SP_TEST(ranks_over_encrypted_tcp_answer_and_the_round_trip_is_told),
             SP_TEST(a_step_for_many_ranks_is_cheap))
