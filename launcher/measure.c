#include "launcher/measure.h"

#include "launcher/build_id.h"
#include "launcher/flat.h"
#include "launcher/meeting.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SP_LOG "measure"
#define PINGS_MAX 21
#define FILLER 1 /* a byte of which nothing is to be learned */
#define LAST 0   /* the byte after all of them */
#define CHUNK ((size_t)64 << 10)
#define UNSENT_BYTES (128 << 10) /* so that the end is not behind megabytes that still wait here */
#define SEND_NS (SP_NS_PER_S / 2)

/* A word between two peers: 32 bytes, little-endian as every machine we run on. */
typedef enum word_kind {
    PING = 1,
    PONG,
    BULK,
    READY,
    DONE,
    WRONG_NODE
} word_kind;
typedef struct word {
    uint64_t kind;
    int64_t a, b, c;
} word;
_Static_assert(sizeof(word) == 32, "wire layout");

int64_t sp_unix_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static sp_status say(sp_link *l, word w, int64_t deadline_ns, sp_err *err) {
    sp_piece piece = {&w, sizeof w};
    return sp_link_send(l, SP_FRAME_MEASURE, &piece, 1, deadline_ns, err);
}

static sp_status hear(sp_link *l, word *out, int64_t deadline_ns, sp_err *err) {
    sp_frame f;
    sp_status st = sp_link_recv(l, &f, deadline_ns, err);
    if (st == SP_AGAIN) return SP_FAIL(err, SP_E_TIMEOUT, "it connected, then said nothing");
    if (st != SP_OK) return st;
    if (f.type == SP_FRAME_BYE) return SP_FAIL(err, SP_E_CLOSED, "the peer has done");
    if (f.type != SP_FRAME_MEASURE || f.length != sizeof *out)
        return SP_FAIL(err, SP_E_PROTOCOL, "a frame of type %d and %u bytes", (int)f.type,
                       f.length);
    memcpy(out, f.payload, sizeof *out);
    return SP_OK;
}

static sp_status hear_kind(sp_link *l, word_kind kind, word *out, int64_t deadline_ns,
                           sp_err *err) {
    SP_TRY(hear(l, out, deadline_ns, err));
    if (out->kind == WRONG_NODE)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "another node of the pod answers at this address");
    if (out->kind == (uint64_t)kind) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "a word of kind %llu, want %d",
                   (unsigned long long)out->kind, (int)kind);
}

/* True: ready before the deadline. */
static bool wait_fd(int fd, short events, int64_t deadline_ns) {
    int64_t left = deadline_ns - sp_now_ns();
    struct pollfd p = {.fd = fd, .events = events};
    return left > 0 && poll(&p, 1, (int)(left / SP_NS_PER_MS) + 1) > 0;
}

/* ---- asking ---- */

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* On a long way fewer pings have to do: a third of the time is for them. */
static sp_status ping(sp_link *l, int64_t until_ns, int64_t end_ns, int64_t *median, sp_err *err) {
    int64_t rtt[PINGS_MAX];
    int n = 0;
    while (n < PINGS_MAX && (n == 0 || sp_now_ns() < until_ns)) {
        word w = {.kind = PING, .a = n};
        int64_t sent = sp_now_ns();
        SP_TRY(say(l, w, end_ns, err));
        SP_TRY(hear_kind(l, PONG, &w, end_ns, err));
        rtt[n++] = sp_now_ns() - sent;
    }
    qsort(rtt, (size_t)n, sizeof rtt[0], by_size);
    *median = rtt[n / 2];
    return SP_OK;
}

/* Bytes until `until_ns`, then the last one. Answers how many the socket took; -1: not the last. */
static int64_t pour(int fd, int64_t until_ns, int64_t end_ns, bool *whole) {
    static const unsigned char last = LAST;
    unsigned char *filler = sp_alloc(CHUNK);
    memset(filler, FILLER, CHUNK);
    int64_t sent = 0;
    *whole = false;
    while (!*whole) {
        bool more = sp_now_ns() < until_ns;
        ssize_t n = send(fd, more ? filler : &last, more ? CHUNK : 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            sent += n;
            *whole = !more;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            break;
        } else if (!wait_fd(fd, POLLOUT, more ? until_ns : end_ns) && sp_now_ns() >= end_ns) {
            break;
        }
    }
    sp_free(filler);
    return sent;
}

/* What the other side counted; where it does not come to say so in time (a way so slow that what
 * waits in the sockets takes longer than the measurement), what it has acknowledged till then. */
static sp_status pour_and_count(sp_link *l, int64_t bulk_ns, int64_t end_ns, int64_t *bytes_per_s,
                                sp_err *err) {
    int fd = sp_link_fd(l), unsent = UNSENT_BYTES, waits = 0;
    word w = {.kind = BULK, .a = bulk_ns / 2};
    bool whole;
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    SP_TRY(say(l, w, end_ns, err));
    SP_TRY(hear_kind(l, READY, &w, end_ns, err));
    int64_t start = sp_now_ns();
    int64_t sent = pour(fd, start + bulk_ns, end_ns, &whole);
    sp_status st = whole ? hear_kind(l, DONE, &w, end_ns, err) : SP_E_TIMEOUT;
    if (st == SP_OK && w.a > 0 && w.b > 0) {
        *bytes_per_s = (int64_t)((double)w.a * 1e9 / (double)w.b);
        return SP_OK;
    }
    if (st == SP_OK || st == SP_E_TIMEOUT) {
        if (ioctl(fd, SIOCOUTQ, &waits) != 0) waits = 0;
        double ns = (double)(sp_now_ns() - start);
        *bytes_per_s = (int64_t)((double)(sent - waits) * 1e9 / ns);
        return st;
    }
    return st;
}

/* The words of a knock are about the head; from the first address on they hold for anybody. */
static void only_addresses(sp_err *err) {
    const char *quote = err ? strchr(err->text, '\'') : NULL;
    if (quote) memmove(err->text, quote, strlen(quote) + 1);
}

sp_status sp_measure_way(sp_measure_figure *out, const char *to, const char *node,
                         const sp_token *token, int64_t budget_ns, int64_t bulk_ns, sp_err *err) {
    sp_link *l;
    sp_measure_figure f = {0};
    int64_t start = sp_now_ns(), end = start + budget_ns;
    sp_status st = sp_door_knock(&l, to, token, sp_build_id(), SP_ROLE_PEER, node, end, err);
    if (st != SP_OK) {
        only_addresses(err);
        return st;
    }
    int64_t until = sp_now_ns() + (end - sp_now_ns()) / 3;
    st = ping(l, until, end, &f.rtt_ns, err);
    int64_t room = (end - sp_now_ns()) / 2;
    if (bulk_ns > room) bulk_ns = room;
    if (st == SP_OK && bulk_ns > 0) st = pour_and_count(l, bulk_ns, end, &f.bytes_per_s, err);
    if (st == SP_OK)
        st = sp_link_send(l, SP_FRAME_BYE, NULL, 0, end, err);
    else if (st == SP_E_TIMEOUT && f.rtt_ns > 0)
        st = SP_OK; /* the way is there, and slow: that is a figure, too */
    sp_link_close(l);
    if (st == SP_OK) *out = f;
    return st;
}

/* ---- listening ---- */

struct sp_measure {
    sp_door *door;
    int listen_fd;
    char node[SP_NODE_BYTES];
};

sp_status sp_measure_open(sp_measure **out, const sp_token *token, char *addresses, size_t n,
                          sp_err *err) {
    sp_measure *m = sp_alloc(sizeof *m);
    int port;
    m->listen_fd = -1;
    sp_node_id(m->node);
    sp_status st = sp_door_listen(&m->listen_fd, &port, "", 0, err);
    if (st == SP_OK) st = sp_door_open(&m->door, m->listen_fd, token, sp_build_id(), err);
    if (st == SP_OK) st = sp_local_addresses(addresses, n, port, err);
    if (st != SP_OK) {
        sp_measure_close(m);
        return st;
    }
    *out = m;
    return SP_OK;
}

void sp_measure_close(sp_measure *m) {
    if (!m) return;
    sp_door_close(m->door);
    if (m->listen_fd >= 0) close(m->listen_fd);
    sp_free(m);
}

int sp_measure_fd(const sp_measure *m) {
    return m ? sp_door_fd(m->door) : -1;
}

/* Counts bytes until the last one, from `warm_ns` after the first on; the first half of a connection
 * is it getting faster. */
static sp_status swallow(int fd, int64_t warm_ns, int64_t deadline_ns, word *count, sp_err *err) {
    unsigned char *bytes = sp_alloc(CHUNK);
    int64_t first = 0, base = 0, base_ns = 0, all = 0, now = 0;
    sp_status st = SP_AGAIN;
    while (st == SP_AGAIN) {
        ssize_t n = recv(fd, bytes, CHUNK, MSG_DONTWAIT);
        if (n > 0) {
            now = sp_now_ns();
            all += n;
            if (!first) first = base_ns = now, base = all;
            if (base_ns == first && now - first >= warm_ns) base_ns = now, base = all;
            if (bytes[n - 1] == LAST) st = SP_OK;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            st = SP_FAIL(err, SP_E_CLOSED, "it left in the middle");
        } else if (!wait_fd(fd, POLLIN, deadline_ns) && sp_now_ns() >= deadline_ns) {
            st = SP_FAIL(err, SP_E_TIMEOUT, "it does not come to an end");
        }
    }
    sp_free(bytes);
    if (st == SP_OK) *count = (word){.kind = DONE, .a = all - base, .b = now - base_ns};
    return st;
}

static sp_status answer(sp_link *l, const word *w, int64_t deadline_ns, sp_err *err) {
    word count;
    if (w->kind == PING) return say(l, (word){.kind = PONG, .a = w->a}, deadline_ns, err);
    if (w->kind != BULK || w->a < 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "a word of kind %llu", (unsigned long long)w->kind);
    SP_TRY(say(l, (word){.kind = READY}, deadline_ns, err));
    SP_TRY(swallow(sp_link_fd(l), w->a, deadline_ns, &count, err));
    return say(l, count, deadline_ns, err);
}

/* Without a look at anything else: what another does meanwhile would be in the figures. */
static void serve(const sp_measure *m, const sp_guest *g) {
    int64_t deadline = sp_now_ns() + SP_MEASURE_PEER_NS;
    sp_err err = {0};
    sp_status st = SP_OK;
    bool meant = g->role == SP_ROLE_PEER && strcmp(g->words, m->node) == 0;
    if (!meant) st = say(g->link, (word){.kind = WRONG_NODE}, deadline, &err);
    while (meant && st == SP_OK) {
        word w;
        st = hear(g->link, &w, deadline, &err);
        if (st == SP_OK) st = answer(g->link, &w, deadline, &err);
    }
    if (st != SP_OK && st != SP_E_CLOSED) sp_debug("measuring with %s: %s", g->address, err.text);
    sp_link_close(g->link);
}

void sp_measure_look(sp_measure *m) {
    sp_guest g;
    sp_err err = {0};
    if (!m) return;
    while (sp_door_next(m->door, &g, 0, &err) == SP_OK) serve(m, &g);
}

/* ---- MEASURE ---- */

#define NUMBER_MAX INT64_C(9007199254740991)
#define SECOND_US 1000000

static const sp_flat_row ask_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_measure_ask, op, SP_MEASURE_CLOCK, SP_MEASURE_END),
    SP_FLAT_NUMBER_ROW(sp_measure_ask, id, 0, INT32_MAX),
    SP_FLAT_NUMBER_ROW(sp_measure_ask, budget_us, 0, SECOND_US),
    SP_FLAT_NUMBER_ROW(sp_measure_ask, bulk_us, 0, SECOND_US),
    SP_FLAT_TEXT_ROW(sp_measure_ask, to),
    SP_FLAT_TEXT_ROW(sp_measure_ask, node),
};
static const sp_flat_row answer_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_measure_answer, op, SP_MEASURE_CLOCK, SP_MEASURE_WAY),
    SP_FLAT_NUMBER_ROW(sp_measure_answer, id, 0, INT32_MAX),
    SP_FLAT_NUMBER_ROW(sp_measure_answer, unix_us, 0, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_measure_answer, rtt_ns, 0, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_measure_answer, bytes_per_s, 0, NUMBER_MAX),
    SP_FLAT_TEXT_ROW(sp_measure_answer, why),
};

void sp_measure_ask_write(const sp_measure_ask *a, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_flat_write(a, ask_rows, SP_LEN(ask_rows), &w);
}

void sp_measure_answer_write(const sp_measure_answer *a, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_flat_write(a, answer_rows, SP_LEN(answer_rows), &w);
}

sp_status sp_measure_ask_read(sp_measure_ask *out, sp_slice json, sp_err *err) {
    sp_measure_ask a = {0};
    SP_TRY(sp_flat_parse(&a, ask_rows, SP_LEN(ask_rows), json, err));
    *out = a;
    return SP_OK;
}

sp_status sp_measure_answer_read(sp_measure_answer *out, sp_slice json, sp_err *err) {
    sp_measure_answer a = {0};
    SP_TRY(sp_flat_parse(&a, answer_rows, SP_LEN(answer_rows), json, err));
    *out = a;
    return SP_OK;
}

static void measure_for_head(const sp_measure_ask *ask, const sp_token *token,
                             sp_measure_answer *out) {
    sp_measure_figure f = {0};
    sp_err err = {0};
    sp_status st = sp_measure_way(&f, ask->to, ask->node, token, ask->budget_us * SP_NS_PER_US,
                                  ask->bulk_us * SP_NS_PER_US, &err);
    out->rtt_ns = f.rtt_ns;
    out->bytes_per_s = f.bytes_per_s;
    if (st != SP_OK) snprintf(out->why, sizeof out->why, "%s", err.text);
}

sp_status sp_measure_take(sp_measure **m, sp_link *head, const sp_token *token, sp_slice words,
                          sp_err *err) {
    sp_measure_ask ask;
    SP_TRY(sp_measure_ask_read(&ask, words, err));
    if (ask.op == SP_MEASURE_END) {
        sp_measure_close(*m);
        *m = NULL;
        return SP_OK;
    }
    sp_measure_answer a = {.op = ask.op, .id = ask.id};
    if (ask.op == SP_MEASURE_WAY) measure_for_head(&ask, token, &a);
    a.unix_us = sp_unix_us();
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_measure_answer_write(&a, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_status st = sp_link_send(head, SP_FRAME_MEASURE, &piece, 1, sp_now_ns() + SEND_NS, err);
    sp_buf_fini(&text);
    return st;
}
