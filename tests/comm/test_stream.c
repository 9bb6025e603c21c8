/* Covers comm/stream.c: the bytes on the wire, every rule broken once, any split of the stream, a
 * full socket, and processes over TCP. */
#include "comm/stream.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <openssl/evp.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint32_t)1 << 20)
#define HEADER 64
#define TAG 16

static const sp_link_keys A = {.send = {1, 2, 3}, .receive = {[31] = 9}};
static const sp_link_keys B = {.send = {[31] = 9}, .receive = {1, 2, 3}};

typedef struct pair {
    sp_link *a, *b;
} pair;

static int64_t soon(void) {
    return sp_now_ns() + 10 * SP_NS_PER_S;
}

static pair make_pair(bool has_keys) {
    pair p;
    int fds[2];
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&p.a, fds[0], has_keys ? &A : NULL, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&p.b, fds[1], has_keys ? &B : NULL, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_fd(p.a), fds[0]);
    return p;
}

static void drop_pair(pair *p) {
    sp_link_close(p->a);
    sp_link_close(p->b);
}

static sp_status send_bytes(sp_link *l, const void *p, uint32_t n, int64_t deadline) {
    sp_piece piece = {p, n};
    return sp_link_send(l, SP_FRAME_STEP, &piece, 1, deadline, NULL);
}

/* A link whose other end is a bare socket: to see what it writes, and to write it what we like. */
static sp_link *bare(int *other, const sp_link_keys *keys) {
    int fds[2];
    sp_link *l;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l, fds[0], keys, NULL), SP_OK);
    *other = fds[1];
    return l;
}

/* What side A writes for frames with these payloads. */
static size_t record(unsigned char *wire, size_t size, const sp_link_keys *keys,
                     const char *const *payloads, int n) {
    int fd;
    size_t used = 0;
    sp_link *l = bare(&fd, keys);
    sp_link_id id = {.term = 0x0102030405060708, .epoch = 9, .incarnation = {0xa, 0xb}};
    sp_link_set_id(l, &id);
    for (int i = 0; i < n; i++)
        CU_ASSERT_EQUAL_FATAL(send_bytes(l, payloads[i], (uint32_t)strlen(payloads[i]), 0), SP_OK);
    sp_link_close(l);
    for (ssize_t got; (got = read(fd, wire + used, size - used)) > 0;) used += (size_t)got;
    close(fd);
    return used;
}

/* What side B says to these bytes and the end of the stream: how many frames, then what. */
static int play(const unsigned char *wire, size_t n, const sp_link_keys *keys, sp_status *end,
                sp_err *err) {
    int fd, n_frames = 0;
    sp_frame f;
    sp_link *l = bare(&fd, keys);
    CU_ASSERT_EQUAL(write(fd, wire, n), (ssize_t)n);
    shutdown(fd, SHUT_WR);
    while ((*end = sp_link_recv(l, &f, SP_NEVER, err)) == SP_OK) n_frames++;
    if (*end == SP_E_PROTOCOL) { /* it stays so, and the other side learns of it */
        char byte;
        CU_ASSERT_EQUAL(sp_link_recv(l, &f, SP_NEVER, NULL), SP_E_PROTOCOL);
        CU_ASSERT_EQUAL(send_bytes(l, "x", 1, SP_NEVER), SP_E_CLOSED);
        CU_ASSERT_EQUAL(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
    }
    sp_link_close(l);
    close(fd);
    return n_frames;
}

static void the_bytes_in_the_clear_are_header_and_payload(void) {
    unsigned char wire[400];
    size_t n = record(wire, sizeof wire, NULL, (const char *const[]){"x", "yz"}, 2);
    static const unsigned char want[HEADER + 1] = {
        'S', 'P', 'F', '1', 1, 0, 6, 0, 1, 0, 0,  0, 0, 0, 0, 0, 8, 7, 6,  5, 4,  3,
        2,   1,   9,   0,   0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0,  0,
        0,   0,   0,   0,   1, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 'x'};
    CU_ASSERT_EQUAL(n, 2 * HEADER + 3);
    CU_ASSERT_EQUAL(memcmp(wire, want, sizeof want), 0);
    CU_ASSERT_EQUAL(wire[HEADER + 1 + 48], 2); /* the second frame's sequence */
}

/* The same by the cipher alone, as the comment in stream.h says it. */
static void the_bytes_under_keys_are_those_of_gcm(void) {
    static const char text[] = "nobody on the way reads this";
    unsigned char wire[400], nonce[12] = {0, 0, 0, 0, 2}, want[64], tag[TAG];
    const int len = (int)strlen(text);
    size_t n = record(wire, sizeof wire, &A, (const char *const[]){"", text}, 2);
    CU_ASSERT_EQUAL_FATAL(n, 2 * (HEADER + TAG) + (size_t)len);
    unsigned char *second = wire + HEADER + TAG;
    CU_ASSERT_EQUAL(memcmp(second, "SPF1", 4), 0);
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    int got;
    EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, A.send, nonce);
    EVP_EncryptUpdate(c, NULL, &got, second, HEADER);
    EVP_EncryptUpdate(c, want, &got, (const unsigned char *)text, len);
    EVP_EncryptFinal_ex(c, want, &got);
    EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG, tag);
    EVP_CIPHER_CTX_free(c);
    CU_ASSERT_EQUAL(memcmp(second + HEADER, want, (size_t)len), 0);
    CU_ASSERT_EQUAL(memcmp(second + HEADER + len, tag, TAG), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(second + HEADER, text, (size_t)len), 0);
}

static void pieces_arrive_as_one_payload_that_is_aligned(void) {
    for (int keys = 0; keys < 2; keys++) {
        pair p = make_pair(keys);
        sp_frame f, g;
        sp_piece pieces[] = {{"he", 2}, {NULL, 0}, {"ad and ", 7}, {"rank", 4}};
        for (int i = 0; i < 3; i++) { /* 13 bytes: the next frame lies oddly in the stream */
            CU_ASSERT_EQUAL(sp_link_send(p.a, SP_FRAME_STATUS, pieces, 4, 0, NULL), SP_OK);
            CU_ASSERT_EQUAL(sp_link_send(p.b, SP_FRAME_BYE, NULL, 0, 0, NULL), SP_OK);
        }
        for (int i = 0; i < 3; i++) {
            CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.b, &f, 0, NULL), SP_OK);
            CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.a, &g, 0, NULL), SP_OK);
            CU_ASSERT_EQUAL(f.type, SP_FRAME_STATUS);
            CU_ASSERT_EQUAL(f.length, 13);
            CU_ASSERT_EQUAL(memcmp(f.payload, "head and rank", 13), 0);
            CU_ASSERT_EQUAL((uintptr_t)f.payload % 8, 0);
            CU_ASSERT_EQUAL(g.type, SP_FRAME_BYE);
            CU_ASSERT_EQUAL(g.length, 0);
        }
        CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_AGAIN);
        CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, sp_now_ns() + SP_NS_PER_MS, NULL), SP_AGAIN);
        drop_pair(&p);
    }
}

static void a_frame_of_one_mebibyte_fits_and_one_byte_more_does_not(void) {
    pair p = make_pair(true);
    unsigned char *big = sp_alloc(MIB + 1);
    for (uint32_t i = 0; i <= MIB; i++) big[i] = (unsigned char)(i * 7 + (i >> 8));
    sp_piece over[] = {{big, MIB}, {big, 1}};
    sp_frame f;
    CU_ASSERT_EQUAL(sp_link_send(p.a, SP_FRAME_ROW, over, 2, 0, NULL), SP_E_TOOLONG);
    for (int i = 0; i < 3; i++) {
        sp_status st;
        CU_ASSERT_EQUAL(send_bytes(p.a, big, MIB, 0), SP_OK); /* begun, so it counts as sent */
        while ((st = sp_link_recv(p.b, &f, 0, NULL)) == SP_AGAIN) {
            sp_frame none;
            CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.a, &none, 0, NULL), SP_AGAIN); /* flushes */
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        CU_ASSERT_EQUAL(f.length, MIB);
        CU_ASSERT_EQUAL(memcmp(f.payload, big, MIB), 0);
    }
    sp_free(big);
    drop_pair(&p);
}

/* Every bit of a frame counts. A longer length is only known to be wrong when the stream ends. */
static void no_frame_with_any_bit_flipped_is_received(void) {
    unsigned char wire[200];
    size_t n = record(wire, sizeof wire, &A, (const char *const[]){"12345678"}, 1);
    sp_status end;
    CU_ASSERT_EQUAL_FATAL(n, HEADER + 8 + TAG);
    CU_ASSERT_EQUAL(play(wire, n, &B, &end, NULL), 1);
    CU_ASSERT_EQUAL(end, SP_E_CLOSED);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        wire[bit / 8] ^= (unsigned char)(1u << bit % 8);
        bool is_longer = bit / 8 >= 8 && bit / 8 < 12 && bit != 8 * 8 + 3 && bit <= 8 * 10 + 3;
        CU_ASSERT_EQUAL(play(wire, n, &B, &end, NULL), 0);
        CU_ASSERT_EQUAL(end, is_longer ? SP_E_CLOSED : SP_E_PROTOCOL);
        wire[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
}

static void broken_rules_are_named(void) {
    static const struct {
        size_t at;
        unsigned char value;
        const char *word;
    } rules[] = {{0, 'X', "magic"},   {4, 2, "version"},
                 {6, 0, "type"},      {6, SP_FRAME_TYPE_END, "type"},
                 {7, 1, "type"},      {11, 1, "length"},
                 {12, 1, "flags"},    {48, 2, "sequence"},
                 {48, 0, "sequence"}, {55, 1, "sequence"},
                 {56, 1, "checksum"}, {63, 1, "checksum"}};
    for (int keys = 0; keys < 2; keys++) {
        for (size_t i = 0; i < SP_LEN(rules); i++) {
            unsigned char wire[200];
            sp_status end;
            sp_err err = {0};
            size_t n =
                record(wire, sizeof wire, keys ? &A : NULL, (const char *const[]){"12345678"}, 1);
            wire[rules[i].at] = rules[i].value;
            CU_ASSERT_EQUAL(play(wire, n, keys ? &B : NULL, &end, &err), 0);
            CU_ASSERT_EQUAL(end, SP_E_PROTOCOL);
            CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rules[i].word));
        }
    }
}

static void a_length_above_the_maximum_is_refused_before_anything_is_allocated(void) {
    static const uint32_t lengths[] = {MIB + 1, 0x7fffffff, UINT32_MAX};
    for (size_t i = 0; i < SP_LEN(lengths); i++) {
        unsigned char wire[200];
        int fd;
        sp_frame f;
        record(wire, sizeof wire, &A, (const char *const[]){""}, 1);
        memcpy(wire + 8, &lengths[i], 4);
        sp_link *l = bare(&fd, &B);
        CU_ASSERT_EQUAL(write(fd, wire, HEADER), HEADER); /* and nothing after it */
        uint64_t before = sp_mem_count();
        CU_ASSERT_EQUAL(sp_link_recv(l, &f, SP_NEVER, NULL), SP_E_PROTOCOL);
        CU_ASSERT_EQUAL(sp_mem_count(), before);
        sp_link_close(l);
        close(fd);
    }
}

static void a_frame_that_comes_again_or_early_or_back_is_refused(void) {
    unsigned char wire[300], order[300];
    static const struct {
        int frames[3], received;
    } cases[] = {{{0, 1, 2}, 3}, {{0, 0, 1}, 1}, {{0, 1, 0}, 2}, {{0, 2, 1}, 1},
                 {{1, 0, 2}, 0}, {{0, 1, 1}, 2}, {{2, 2, 2}, 0}};
    size_t n = record(wire, sizeof wire, &A, (const char *const[]){"one", "two", "six"}, 3),
           each = n / 3;
    sp_status end;
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        for (size_t k = 0; k < 3; k++)
            memcpy(order + k * each, wire + (size_t)cases[i].frames[k] * each, each);
        CU_ASSERT_EQUAL(play(order, n, &B, &end, NULL), cases[i].received);
        CU_ASSERT_EQUAL(end, cases[i].received == 3 ? SP_E_CLOSED : SP_E_PROTOCOL);
    }
    /* Back to its sender, and from a session with another key: the tag is wrong. */
    sp_link_keys other = B;
    sp_err err = {0};
    other.receive[7] ^= 1;
    CU_ASSERT_EQUAL(play(wire, n, &A, &end, &err), 0);
    CU_ASSERT_EQUAL(end, SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "tag"));
    CU_ASSERT_EQUAL(play(wire, n, &other, &end, &err), 0);
    CU_ASSERT_EQUAL(end, SP_E_PROTOCOL);
    /* Keys at one side only. */
    CU_ASSERT_NOT_EQUAL(play(wire, n, NULL, &end, &err), 3);
    CU_ASSERT_EQUAL(end, SP_E_PROTOCOL);
}

static void a_stream_cut_anywhere_gives_the_whole_frames_and_its_end(void) {
    unsigned char wire[300];
    sp_err err = {0};
    sp_status end;
    size_t n = record(wire, sizeof wire, &A, (const char *const[]){"", "four"}, 2);
    for (size_t cut = 0; cut <= n; cut++) {
        int want = cut == n ? 2 : cut >= HEADER + TAG ? 1 : 0;
        CU_ASSERT_EQUAL(play(wire, cut, &B, &end, &err), want);
        CU_ASSERT_EQUAL(end, SP_E_CLOSED);
        bool whole = cut == 0 || cut == HEADER + TAG || cut == n;
        CU_ASSERT_EQUAL(strstr(err.text, "middle of a frame") == NULL, whole);
    }
}

static uint32_t next_random(uint32_t *s) {
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

static void garbage_is_never_a_frame(void) {
    uint32_t seed = 3;
    for (int round = 0; round < 300; round++) {
        unsigned char wire[500];
        sp_status end;
        size_t n = HEADER + next_random(&seed) % (sizeof wire - HEADER);
        for (size_t i = 0; i < n; i++) wire[i] = (unsigned char)next_random(&seed);
        if (round % 2) memcpy(wire, "SPF1\1\0", 6);
        CU_ASSERT_EQUAL(play(wire, n, round % 3 ? &B : NULL, &end, NULL), 0);
        CU_ASSERT_EQUAL(end, SP_E_PROTOCOL);
    }
}

static void take_all(sp_link *l, const char *const *want, int *n) {
    sp_frame f;
    while (sp_link_recv(l, &f, 0, NULL) == SP_OK) {
        CU_ASSERT_EQUAL_FATAL(f.length, strlen(want[*n]));
        CU_ASSERT_EQUAL_FATAL(memcmp(f.payload, want[*n], f.length), 0);
        ++*n;
    }
}

static void the_stream_may_be_split_at_every_offset(void) {
    static const char *const texts[] = {"a", "", "three and a bit", "end"};
    unsigned char wire[400];
    for (int keys = 0; keys < 2; keys++) {
        size_t n = record(wire, sizeof wire, keys ? &A : NULL, texts, 4);
        for (size_t step = 1; step < n; step++) { /* cut at, and in pieces of, `step` */
            for (int in_pieces = 0; in_pieces < 2; in_pieces++) {
                int fd, got = 0;
                sp_link *l = bare(&fd, keys ? &B : NULL);
                for (size_t at = 0, len; at < n; at += len) {
                    len = at > 0 && !in_pieces ? n - at : n - at < step ? n - at : step;
                    CU_ASSERT_EQUAL_FATAL(write(fd, wire + at, len), (ssize_t)len);
                    take_all(l, texts, &got);
                }
                CU_ASSERT_EQUAL(got, 4);
                sp_link_close(l);
                close(fd);
            }
        }
    }
}

static void frames_of_an_older_term_or_epoch_are_dropped_and_counted(void) {
    pair p = make_pair(true);
    static const sp_link_id ids[] = {{4, 7, {1, 1}}, {5, 6, {1, 1}}, {5, 7, {1, 1}}};
    sp_frame f;
    sp_link_set_id(p.b, &ids[2]);
    for (size_t i = 0; i < SP_LEN(ids); i++) {
        unsigned char byte = (unsigned char)i;
        sp_link_set_id(p.a, &ids[i]);
        CU_ASSERT_EQUAL(send_bytes(p.a, &byte, 1, 0), SP_OK);
    }
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.b, &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(*(const unsigned char *)f.payload, 2);
    CU_ASSERT_EQUAL(sp_link_stale_count(p.b), 2);
    drop_pair(&p);
}

/* The first frames go out whole, the last one in part; what did not go out at all was not sent. */
static void a_full_socket_times_out_only_when_nothing_of_a_frame_went_out(void) {
    pair p = make_pair(true);
    unsigned char bytes[50000] = {0};
    uint32_t sent = 0, got = 0;
    sp_frame f;
    sp_status st = SP_OK;
    for (; sent < 100; sent++) CU_ASSERT_EQUAL(send_bytes(p.a, &sent, 4, 0), SP_OK);
    for (;; sent++) {
        memcpy(bytes, &sent, 4);
        if ((st = send_bytes(p.a, bytes, sizeof bytes, 0)) != SP_OK) break;
    }
    CU_ASSERT_EQUAL(st, SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(send_bytes(p.a, bytes, sizeof bytes, sp_now_ns() + 3 * SP_NS_PER_MS),
                    SP_E_TIMEOUT);
    while (got < sent) {
        uint32_t number;
        st = sp_link_recv(p.b, &f, 0, NULL);
        if (st == SP_AGAIN) { /* the rest of the last one waits at the other side */
            CU_ASSERT_EQUAL(got, sent - 1);
            CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.a, &f, 0, NULL), SP_AGAIN);
            continue;
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        memcpy(&number, f.payload, 4);
        CU_ASSERT_EQUAL_FATAL(number, got++);
    }
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(send_bytes(p.a, "on", 2, 0), SP_OK); /* no sequence was used up */
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(f.length, 2);
    drop_pair(&p);
}

static void *recv_one(void *arg) {
    sp_frame f;
    return (void *)(intptr_t)sp_link_recv(arg, &f, SP_NEVER, NULL);
}

/* The receiver of side A sleeps before there is anything left to write. */
static void a_rest_is_written_by_a_receiver_that_sleeps_already(void) {
    pair p = make_pair(false);
    unsigned char *big = sp_alloc(MIB);
    pthread_t t;
    void *st;
    int n = 0;
    sp_frame f;
    pthread_create(&t, NULL, recv_one, p.a);
    while (send_bytes(p.a, big, MIB, 0) == SP_OK) n++;
    CU_ASSERT(n >= 1);
    for (int i = 0; i < n; i++) {
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(p.b, &f, soon(), NULL), SP_OK);
        CU_ASSERT_EQUAL(f.length, MIB);
    }
    CU_ASSERT_EQUAL(send_bytes(p.b, "done", 4, 0), SP_OK);
    pthread_join(t, &st);
    CU_ASSERT_EQUAL((intptr_t)st, SP_OK);
    sp_free(big);
    drop_pair(&p);
}

#define N_RANDOM 1500
typedef struct crossing {
    sp_link *l;
    uint32_t seed;
    bool sends, ok;
} crossing;

static void *cross(void *arg) {
    crossing *c = arg;
    uint32_t s = c->seed;
    unsigned char *bytes = sp_alloc(MIB);
    bool ok = true;
    for (int i = 0; i < N_RANDOM && ok; i++) {
        uint32_t r = next_random(&s), n = r % 64 == 0 ? r % MIB : r % 16 < 4 ? r % 5000 : r % 100;
        memset(bytes, (int)(s >> 3), n);
        if (c->sends) {
            ok = send_bytes(c->l, bytes, n, SP_NEVER) == SP_OK;
            continue;
        }
        sp_frame f;
        ok = sp_link_recv(c->l, &f, SP_NEVER, NULL) == SP_OK && f.length == n &&
             memcmp(f.payload, bytes, n) == 0;
    }
    sp_free(bytes);
    c->ok = ok;
    return NULL;
}

static void random_sizes_cross_both_ways_at_once(void) {
    pair p = make_pair(true);
    crossing c[4] = {{p.a, 1, true, false},
                     {p.b, 1, false, false},
                     {p.b, 2, true, false},
                     {p.a, 2, false, false}};
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
    pair p = make_pair(true);
    pthread_t t[3];
    void *result;
    sp_frame f;
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, wake_it, p.b);
    for (int i = 0; i < 100; i++) {
        sp_status st;
        CU_ASSERT_EQUAL(send_bytes(p.a, &i, sizeof i, 0), SP_OK);
        while ((st = sp_link_recv(p.b, &f, SP_NEVER, NULL)) == SP_AGAIN) {
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        CU_ASSERT_EQUAL(memcmp(f.payload, &i, sizeof i), 0);
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    sp_link_wake(p.b); /* whatever was left is one wake at most */
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, SP_NEVER, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_AGAIN);
    for (int i = 0; i < 50; i++) { /* on its way to sleep, asleep, or not yet there */
        pthread_create(&t[0], NULL, recv_one, p.b);
        sp_link_wake(p.b);
        pthread_join(t[0], &result);
        CU_ASSERT_EQUAL((intptr_t)result, SP_AGAIN);
    }
    drop_pair(&p);
}

static void sending_to_a_closed_peer_is_an_error_and_no_signal(void) {
    pair p = make_pair(true);
    sp_frame f;
    CU_ASSERT_EQUAL(send_bytes(p.b, "last words", 10, 0), SP_OK);
    sp_link_close(p.b);
    p.b = NULL;
    CU_ASSERT_EQUAL(send_bytes(p.a, "x", 1, SP_NEVER), SP_E_CLOSED);
    CU_ASSERT_EQUAL(send_bytes(p.a, "x", 1, SP_NEVER), SP_E_CLOSED);
    CU_ASSERT_EQUAL(sp_link_recv(p.a, &f, SP_NEVER, NULL), SP_OK);
    CU_ASSERT_EQUAL(f.length, 10);
    CU_ASSERT_EQUAL(sp_link_recv(p.a, &f, SP_NEVER, NULL), SP_E_CLOSED);
    drop_pair(&p);
}

static void what_is_no_stream_or_has_no_proper_keys_is_refused(void) {
    sp_link *l = NULL;
    sp_link_keys same = {{1}, {1}};
    sp_err err = {0};
    int pipes[2], unix_fds[2], packets = socket(AF_INET, SOCK_DGRAM, 0),
                               tcp = socket(AF_INET, SOCK_STREAM, 0);
    CU_ASSERT_EQUAL_FATAL(pipe(pipes), 0);
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_fds), 0);
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, -1, &A, NULL), SP_E_IO);
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, pipes[0], &A, NULL), SP_E_IO);
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, packets, &A, &err), SP_E_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "stream"));
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, tcp, NULL, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "keys"));
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, unix_fds[0], &same, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "same"));
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_link_open_stream(&l, unix_fds[0], &A, NULL), SP_E_NOMEM);
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(l);
    int fds[] = {pipes[0], pipes[1], unix_fds[0], unix_fds[1], packets, tcp};
    for (size_t i = 0; i < SP_LEN(fds); i++) CU_ASSERT_EQUAL(close(fds[i]), 0); /* ours still */
}

static void short_memory_is_said_and_may_pass(void) {
    pair p = make_pair(true);
    unsigned char bytes[100000] = {7};
    sp_frame f;
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(send_bytes(p.a, bytes, sizeof bytes, 0), SP_E_NOMEM);
    sp_mem_fail_at(0);
    CU_ASSERT_EQUAL(send_bytes(p.a, bytes, sizeof bytes, 0), SP_OK);
    for (int i = 0; i < 2; i++) { /* the buffer to read into, and the one that is lent */
        sp_mem_fail_at(1);
        CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_E_NOMEM);
        sp_mem_fail_at(0);
        if (i == 0) CU_ASSERT_EQUAL(sp_link_recv(p.a, &f, 0, NULL), SP_AGAIN);
        if (i == 0) sp_mem_fail_at(2);
        if (i == 0) CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_E_NOMEM);
    }
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, 0, NULL), SP_OK);
    CU_ASSERT(f.length == sizeof bytes && memcmp(f.payload, bytes, f.length) == 0);
    drop_pair(&p);
}

static void waiting_costs_little_processor_time(void) {
    pair p = make_pair(true);
    sp_frame f;
    int64_t cpu = sp_cpu_thread_ns();
    for (int i = 0; i < 50; i++)
        CU_ASSERT_EQUAL(sp_link_recv(p.a, &f, sp_now_ns() + SP_NS_PER_MS, NULL), SP_AGAIN);
    CU_ASSERT(sp_cpu_thread_ns() - cpu < 25 * SP_NS_PER_MS);
    drop_pair(&p);
}

/* A connected pair of TCP sockets over loopback. */
static bool tcp_pair(int fds[2]) {
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    bool ok = bind(listener, (struct sockaddr *)&at, len) == 0 && listen(listener, 1) == 0 &&
              getsockname(listener, (struct sockaddr *)&at, &len) == 0 &&
              connect(fds[0], (struct sockaddr *)&at, len) == 0;
    fds[1] = ok ? accept(listener, NULL, NULL) : -1;
    close(listener);
    return fds[1] >= 0;
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) == 0 ? value : -1;
}

static void a_silent_cut_of_tcp_is_noticed_by_the_options_set(void) {
    int fds[2];
    sp_link *l;
    if (!tcp_pair(fds)) SP_SKIP("no TCP over loopback here");
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l, fds[0], &A, NULL), SP_OK);
    CU_ASSERT_EQUAL(option(fds[0], IPPROTO_TCP, TCP_NODELAY), 1);
    CU_ASSERT_EQUAL(option(fds[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 3000);
    CU_ASSERT_EQUAL(option(fds[0], SOL_SOCKET, SO_KEEPALIVE), 1);
    CU_ASSERT_EQUAL(option(fds[0], IPPROTO_TCP, TCP_KEEPIDLE), 1);
    CU_ASSERT_EQUAL(option(fds[0], IPPROTO_TCP, TCP_KEEPINTVL), 1);
    CU_ASSERT_EQUAL(option(fds[0], IPPROTO_TCP, TCP_KEEPCNT), 3);
    CU_ASSERT(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    sp_link_close(l);
    close(fds[1]);
}

/* From now on the socket hears nothing, acknowledges nothing and tells nobody: a pulled cable. */
static bool cut_silently(int fd) {
    struct sock_filter drop = {.code = BPF_RET | BPF_K, .k = 0};
    struct sock_fprog program = {.len = 1, .filter = &drop};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

/* One idle link and one with data on its way, both at once, since each takes three seconds. */
static void a_silent_cut_of_tcp_is_a_closed_link_within_four_seconds(void) {
    int idle[2], busy[2];
    sp_link *l[2];
    pthread_t t;
    void *st;
    sp_frame f;
    if (!tcp_pair(idle) || !tcp_pair(busy)) SP_SKIP("no TCP over loopback here");
    if (!cut_silently(idle[1]) || !cut_silently(busy[1])) SP_SKIP("no socket filters here");
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l[0], idle[0], &A, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l[1], busy[0], &A, NULL), SP_OK);
    int64_t begin = sp_now_ns(), end = begin + 20 * SP_NS_PER_S;
    CU_ASSERT_EQUAL(send_bytes(l[1], "x", 1, 0), SP_OK);
    pthread_create(&t, NULL, recv_one, l[0]);
    CU_ASSERT_EQUAL(sp_link_recv(l[1], &f, end, NULL), SP_E_CLOSED);
    double after_busy = (double)(sp_now_ns() - begin) / 1e9;
    pthread_join(t, &st);
    double after = (double)(sp_now_ns() - begin) / 1e9;
    CU_ASSERT_EQUAL((intptr_t)st, SP_E_CLOSED);
    printf("a silent cut was noticed after %.2f s with data on its way, both after %.2f s\n",
           after_busy, after);
    CU_ASSERT(after < 4.5); /* 4, and a busy machine */
    for (int i = 0; i < 2; i++) sp_link_close(l[i]);
    close(idle[1]);
    close(busy[1]);
}

/* Sends until the socket takes no more; how many frames it took. */
static uint32_t fill(sp_link *l) {
    static const unsigned char bytes[60000];
    uint32_t n = 0;
    while (send_bytes(l, bytes, sizeof bytes, sp_now_ns() + 20 * SP_NS_PER_MS) == SP_OK) n++;
    return n;
}

/* Neither peer reads: both live, and both are full. */
static void a_peer_that_reads_nothing_is_lost_to_the_impatient_only(void) {
    int quick[2], patient[2];
    sp_link *a[2], *b;
    sp_frame f;
    if (!tcp_pair(quick) || !tcp_pair(patient)) SP_SKIP("no TCP over loopback here");
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&a[0], quick[0], &A, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&a[1], patient[0], &A, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&b, patient[1], &B, NULL), SP_OK);
    sp_link_set_patience(a[0], 400);
    sp_link_set_patience(a[1], 120000);
    CU_ASSERT_EQUAL(option(quick[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 400);
    CU_ASSERT_EQUAL(option(patient[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 120000);
    uint32_t sent = fill(a[1]);
    fill(a[0]);
    CU_ASSERT_EQUAL(sp_link_recv(a[0], &f, soon(), NULL), SP_E_CLOSED);
    sp_status late = send_bytes(a[1], "x", 1, 0);
    CU_ASSERT(late == SP_E_TIMEOUT || late == SP_OK); /* full perhaps, not lost */
    sent += late == SP_OK;
    for (uint32_t got = 0; got < sent;) {
        sp_status st = sp_link_recv(b, &f, sp_now_ns() + SP_NS_PER_MS, NULL);
        if (st == SP_AGAIN)
            st = sp_link_recv(a[1], &f, 0, NULL); /* flushes a rest */
        else
            got += st == SP_OK;
        CU_ASSERT_FATAL(st == SP_OK || st == SP_AGAIN);
    }
    for (int i = 0; i < 2; i++) sp_link_close(a[i]);
    sp_link_close(b);
    close(quick[1]);
}
static void patience_is_of_tcp_only(void) {
    pair p = make_pair(true);
    sp_frame f;
    sp_link_set_patience(p.a, 1);
    CU_ASSERT_EQUAL(send_bytes(p.a, "on", 2, 0), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(p.b, &f, soon(), NULL), SP_OK);
    drop_pair(&p);
}

/* The child is side B and never returns. */
static pid_t start_child(int fd, int other_fd, void (*fn)(sp_link *l)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    sp_link *l;
    close(other_fd);
    if (sp_link_open_stream(&l, fd, &B, NULL) != SP_OK) _exit(3);
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

#define N_TRIPS 2000
static void a_process_echoes_over_tcp_and_the_round_trip_is_told(void) {
    static int64_t trip[N_TRIPS];
    unsigned char step[1024];
    int fds[2], status = -1;
    sp_link *l;
    sp_frame f;
    if (!tcp_pair(fds)) SP_SKIP("no TCP over loopback here");
    pid_t pid = start_child(fds[1], fds[0], echo);
    close(fds[1]);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l, fds[0], &A, NULL), SP_OK);
    for (int i = 0; i < N_TRIPS; i++) {
        memset(step, i, sizeof step);
        int64_t begin = sp_now_ns();
        CU_ASSERT_EQUAL_FATAL(send_bytes(l, step, sizeof step, soon()), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(l, &f, soon(), NULL), SP_OK);
        trip[i] = sp_now_ns() - begin;
        CU_ASSERT_FATAL(f.length == sizeof step && memcmp(f.payload, step, sizeof step) == 0);
    }
    CU_ASSERT_EQUAL(sp_link_send(l, SP_FRAME_BYE, NULL, 0, soon(), NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_link_recv(l, &f, soon(), NULL), SP_E_CLOSED);
    waitpid(pid, &status, 0);
    CU_ASSERT_EQUAL(status, 0);
    qsort(trip, N_TRIPS, sizeof trip[0], by_value);
    printf("round trip of 1 KiB over TCP under AES-256-GCM: median %.1f us, p99 %.1f us\n",
           (double)trip[N_TRIPS / 2] / 1e3, (double)trip[N_TRIPS * 99 / 100] / 1e3);
    sp_link_close(l);
}

static void send_for_ever(sp_link *l) {
    static unsigned char bytes[MIB];
    uint32_t s = 77;
    for (;;) {
        uint32_t r = next_random(&s), n = r % 16 ? r % 3000 : r % MIB;
        memset(bytes, (int)(s >> 3), n);
        if (send_bytes(l, bytes, n, SP_NEVER) != SP_OK) _exit(0);
    }
}

static void a_sender_killed_at_any_time_leaves_only_whole_frames(void) {
    static unsigned char bytes[MIB];
    for (int round = 0; round < 12; round++) {
        int fds[2], n = 0;
        sp_link *l;
        sp_status st;
        sp_frame f;
        uint32_t s = 77;
        bool is_tcp = round % 2 && tcp_pair(fds);
        if (!is_tcp) CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        pid_t pid = start_child(fds[1], fds[0], send_for_ever);
        close(fds[1]);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&l, fds[0], &A, NULL), SP_OK);
        while ((st = sp_link_recv(l, &f, soon(), NULL)) == SP_OK) {
            uint32_t r = next_random(&s), want = r % 16 ? r % 3000 : r % MIB;
            memset(bytes, (int)(s >> 3), want);
            CU_ASSERT_FATAL(f.length == want && memcmp(f.payload, bytes, want) == 0);
            if (++n != 20 + 13 * round) continue;
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
        }
        CU_ASSERT_EQUAL(st, SP_E_CLOSED);
        CU_ASSERT(n >= 20 + 13 * round);
        sp_link_close(l);
    }
}

SP_TEST_MAIN("comm/stream", SP_TEST(the_bytes_in_the_clear_are_header_and_payload),
             SP_TEST(the_bytes_under_keys_are_those_of_gcm),
             SP_TEST(pieces_arrive_as_one_payload_that_is_aligned),
             SP_TEST(a_frame_of_one_mebibyte_fits_and_one_byte_more_does_not),
             SP_TEST(no_frame_with_any_bit_flipped_is_received), SP_TEST(broken_rules_are_named),
             SP_TEST(a_length_above_the_maximum_is_refused_before_anything_is_allocated),
             SP_TEST(a_frame_that_comes_again_or_early_or_back_is_refused),
             SP_TEST(a_stream_cut_anywhere_gives_the_whole_frames_and_its_end),
             SP_TEST(garbage_is_never_a_frame), SP_TEST(the_stream_may_be_split_at_every_offset),
             SP_TEST(frames_of_an_older_term_or_epoch_are_dropped_and_counted),
             SP_TEST(a_full_socket_times_out_only_when_nothing_of_a_frame_went_out),
             SP_TEST(a_rest_is_written_by_a_receiver_that_sleeps_already),
             SP_TEST(random_sizes_cross_both_ways_at_once),
             SP_TEST(wakes_from_many_threads_lose_no_frame),
             SP_TEST(sending_to_a_closed_peer_is_an_error_and_no_signal),
             SP_TEST(what_is_no_stream_or_has_no_proper_keys_is_refused),
             SP_TEST(short_memory_is_said_and_may_pass),
             SP_TEST(waiting_costs_little_processor_time),
             SP_TEST(a_silent_cut_of_tcp_is_noticed_by_the_options_set),
             SP_TEST(a_silent_cut_of_tcp_is_a_closed_link_within_four_seconds),
             SP_TEST(a_peer_that_reads_nothing_is_lost_to_the_impatient_only),
             SP_TEST(patience_is_of_tcp_only),
             SP_TEST(a_process_echoes_over_tcp_and_the_round_trip_is_told),
             SP_TEST(a_sender_killed_at_any_time_leaves_only_whole_frames))
