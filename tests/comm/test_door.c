/* Covers comm/door.c and comm/knock.c over loopback: who gets in, who does not and what is said of
 * it, crowds of strangers, a man in the middle, time. */
#include "comm/door.h"

#include "comm/handshake.h"
#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUILD "0.1.0-test"
#define GUESTS_MAX 32

static const sp_token TOKEN = {{1, 2, 3, 4, 5, 6, 7, 8, 9}};
static const sp_token OTHER = {{9}};

static int64_t in_ms(int64_t ms) {
    return sp_now_ns() + ms * SP_NS_PER_MS;
}

/* ---- a head ----------------------------------------------------------------------------------- */

typedef struct host {
    int fd, port;
    sp_door *door;
    sp_thread thread;
    sp_guest guests[GUESTS_MAX]; /* of the thread until it has ended */
    int n_guests;
    bool stop; /* atomic */
} host;

static void open_host(host *h) {
    memset(h, 0, sizeof *h);
    CU_ASSERT_EQUAL_FATAL(sp_door_listen(&h->fd, &h->port, "127.0.0.1", 0, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_door_open(&h->door, h->fd, &TOKEN, BUILD, NULL), SP_OK);
}

static void close_host(host *h) {
    for (int i = 0; i < h->n_guests; i++) sp_link_close(h->guests[i].link);
    sp_door_close(h->door);
    close(h->fd);
}

static void greet(sp_guest *g) {
    sp_piece piece = {"come in", 7};
    CU_ASSERT_EQUAL(sp_link_send(g->link, SP_FRAME_WELCOME, &piece, 1, in_ms(1000), NULL), SP_OK);
}

static void *serve(void *arg) {
    host *h = arg;
    while (!__atomic_load_n(&h->stop, __ATOMIC_ACQUIRE) && h->n_guests < GUESTS_MAX) {
        sp_guest *g = &h->guests[h->n_guests];
        sp_status st = sp_door_next(h->door, g, in_ms(10), NULL);
        if (st == SP_AGAIN) continue;
        CU_ASSERT_EQUAL_FATAL(st, SP_OK);
        h->n_guests++;
        greet(g);
    }
    return NULL;
}

static void start_host(host *h) {
    open_host(h);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&h->thread, "host", serve, h, NULL), SP_OK);
}

/* Afterwards its counts and guests may be looked at. */
static void stop_host(host *h) {
    __atomic_store_n(&h->stop, true, __ATOMIC_RELEASE);
    sp_thread_join(&h->thread);
}

/* Turns of a head without a thread: until `n` are refused for this reason, or 2 s have passed. */
static void turn_until(host *h, sp_refusal reason, uint64_t n) {
    for (int i = 0; i < 400 && sp_door_refused(h->door, reason) < n; i++) {
        sp_guest g;
        CU_ASSERT_EQUAL_FATAL(sp_door_next(h->door, &g, in_ms(5), NULL), SP_AGAIN);
    }
    CU_ASSERT_EQUAL(sp_door_refused(h->door, reason), n);
}

/* Turns that also work while the clock stands. */
static void turn_some(host *h, int n) {
    sp_guest g;
    struct pollfd p = {.fd = sp_door_fd(h->door), .events = POLLIN};
    for (int i = 0; i < n; i++) {
        poll(&p, 1, 2);
        CU_ASSERT_EQUAL_FATAL(sp_door_next(h->door, &g, 0, NULL), SP_AGAIN);
    }
}

static uint64_t refused_in_all(const host *h) {
    uint64_t n = 0;
    for (int r = 0; r < SP_REFUSE_COUNT; r++) n += sp_door_refused(h->door, (sp_refusal)r);
    return n;
}

/* ---- guests and strangers --------------------------------------------------------------------- */

static sp_status knock_at(int port, sp_link **link, const sp_token *token, const char *build,
                          const char *words, sp_err *err) {
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    return sp_door_knock(link, address, token, build, SP_ROLE_AGENT, words, in_ms(5000), err);
}

static void expect_welcome(sp_link *link) {
    sp_frame f = {0};
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(link, &f, in_ms(2000), NULL), SP_OK);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_WELCOME);
    CU_ASSERT(f.length == 7 && memcmp(f.payload, "come in", 7) == 0);
}

static int stranger(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT_FATAL(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void say(int fd, const void *p, size_t n) {
    CU_ASSERT_EQUAL(send(fd, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* Everything until the end of the stream, or 2 s. */
static size_t hear_all(int fd, uint8_t *out, size_t room) {
    struct timeval t = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    size_t n = 0;
    ssize_t got;
    while (n < room && (got = recv(fd, out + n, room - n, 0)) > 0) n += (size_t)got;
    return n;
}

static size_t make_hello(uint8_t *out, const char *words) {
    static const uint8_t nonce[SP_SHAKE_NONCE] = {5};
    sp_shake s;
    size_t n;
    CU_ASSERT_EQUAL_FATAL(sp_shake_begin_guest(&s, &TOKEN, BUILD, SP_ROLE_RANK, words, nonce, NULL),
                          SP_OK);
    const uint8_t *p = sp_shake_outgoing(&s, &n);
    memcpy(out, p, n);
    return n;
}

/* ---- what the head logs ----------------------------------------------------------------------- */

static int stderr_kept = -1, log_fd = -1;

static void catch_log(void) {
    stderr_kept = dup(STDERR_FILENO);
    log_fd = memfd_create("log", MFD_CLOEXEC);
    CU_ASSERT_FATAL(stderr_kept >= 0 && log_fd >= 0);
    dup2(log_fd, STDERR_FILENO);
}

/* Owner: static; good until the next call. */
static const char *caught_log(void) {
    static char text[16384];
    dup2(stderr_kept, STDERR_FILENO);
    close(stderr_kept);
    ssize_t n = pread(log_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    close(log_fd);
    return text;
}

static int count_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static void expect_one_line(const char *text, const char *word) {
    CU_ASSERT_EQUAL(count_lines(text), 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "refused '127.0.0.1:"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, word));
}

/* ---- getting in ------------------------------------------------------------------------------- */

static void a_guest_gets_in_and_frames_go_both_ways(void) {
    host h;
    sp_link *link = NULL;
    start_host(&h);
    CU_ASSERT_EQUAL_FATAL(knock_at(h.port, &link, &TOKEN, BUILD, "{\"pid\":7}", NULL), SP_OK);
    expect_welcome(link);
    sp_piece piece = {"thanks", 6};
    CU_ASSERT_EQUAL(sp_link_send(link, SP_FRAME_STATUS, &piece, 1, in_ms(1000), NULL), SP_OK);
    stop_host(&h);
    CU_ASSERT_EQUAL_FATAL(h.n_guests, 1);
    CU_ASSERT_EQUAL(h.guests[0].role, SP_ROLE_AGENT);
    CU_ASSERT_STRING_EQUAL(h.guests[0].words, "{\"pid\":7}");
    CU_ASSERT(strncmp(h.guests[0].address, "127.0.0.1:", 10) == 0);
    sp_frame f = {0};
    CU_ASSERT_EQUAL(sp_link_recv(h.guests[0].link, &f, in_ms(2000), NULL), SP_OK);
    CU_ASSERT(f.type == SP_FRAME_STATUS && f.length == 6);
    CU_ASSERT_EQUAL(refused_in_all(&h), 0);
    sp_link_close(link);
    close_host(&h);
}

typedef struct caller {
    sp_thread thread;
    int port;
    sp_status st;
    sp_link *link;
} caller;

static void *call(void *arg) {
    caller *c = arg;
    c->st = knock_at(c->port, &c->link, &TOKEN, BUILD, "", NULL);
    return NULL;
}

static void many_guests_at_once_all_get_in(void) {
    host h;
    caller callers[GUESTS_MAX] = {0};
    start_host(&h);
    for (int i = 0; i < GUESTS_MAX; i++) {
        callers[i].port = h.port;
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&callers[i].thread, "guest", call, &callers[i], NULL),
                              SP_OK);
    }
    for (int i = 0; i < GUESTS_MAX; i++) {
        sp_thread_join(&callers[i].thread);
        CU_ASSERT_EQUAL_FATAL(callers[i].st, SP_OK);
        expect_welcome(callers[i].link);
        sp_link_close(callers[i].link);
    }
    stop_host(&h);
    CU_ASSERT_EQUAL(h.n_guests, GUESTS_MAX);
    CU_ASSERT_EQUAL(refused_in_all(&h), 0);
    close_host(&h);
}

static void a_guest_gets_in_among_a_hundred_strangers(void) {
    host h;
    int strangers[100];
    sp_link *link = NULL;
    catch_log();
    start_host(&h);
    for (int i = 0; i < 100; i++) {
        strangers[i] = stranger(h.port);
        if (i % 3 == 1) say(strangers[i], "SPD1", 4);
        if (i % 3 == 2) say(strangers[i], "GET / HTTP/1.1\r\n\r\n", 18);
    }
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(knock_at(h.port, &link, &TOKEN, BUILD, "", NULL), SP_OK);
    CU_ASSERT(sp_now_ns() - start < 2 * SP_NS_PER_S);
    if (link) expect_welcome(link);
    stop_host(&h);
    turn_until(&h, SP_REFUSE_GARBAGE, 33);
    for (int i = 0; i < 100; i++) close(strangers[i]);
    CU_ASSERT_EQUAL(h.n_guests, 1);
    CU_ASSERT(count_lines(caught_log()) <= 20);
    sp_link_close(link);
    close_host(&h);
}

static void a_handshake_by_single_bytes_is_understood(void) {
    host h;
    sp_shake s;
    static const uint8_t nonce[SP_SHAKE_NONCE] = {5};
    CU_ASSERT_EQUAL_FATAL(sp_shake_begin_guest(&s, &TOKEN, BUILD, SP_ROLE_RANK, "{}", nonce, NULL),
                          SP_OK);
    start_host(&h);
    int fd = stranger(h.port);
    while (s.state == SP_SHAKE_TALKING) {
        size_t n;
        const uint8_t *p = sp_shake_outgoing(&s, &n);
        uint8_t byte;
        if (n) {
            say(fd, p, 1);
            sp_shake_sent(&s, 1);
        } else {
            CU_ASSERT_FATAL(recv(fd, &byte, 1, 0) == 1);
            sp_shake_take(&s, &byte, 1);
        }
    }
    CU_ASSERT_EQUAL(s.state, SP_SHAKE_DONE);
    stop_host(&h);
    CU_ASSERT_EQUAL(h.n_guests, 1);
    CU_ASSERT_EQUAL(h.guests[0].role, SP_ROLE_RANK);
    close(fd);
    close_host(&h);
}

static void the_descriptor_is_readable_when_there_is_work(void) {
    host h;
    sp_guest g = {0};
    open_host(&h);
    struct pollfd p = {.fd = sp_door_fd(h.door), .events = POLLIN};
    CU_ASSERT_EQUAL(poll(&p, 1, 0), 0);
    caller c = {.port = h.port};
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&c.thread, "guest", call, &c, NULL), SP_OK);
    sp_status st = SP_AGAIN;
    for (int i = 0; i < 50 && st == SP_AGAIN; i++) {
        CU_ASSERT_EQUAL_FATAL(poll(&p, 1, 2000), 1);
        st = sp_door_next(h.door, &g, 0, NULL); /* a deadline in the past: one turn */
    }
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    sp_thread_join(&c.thread);
    CU_ASSERT_EQUAL_FATAL(c.st, SP_OK);
    CU_ASSERT_EQUAL(poll(&p, 1, 0), 0);
    sp_link_close(c.link);
    sp_link_close(g.link);
    close_host(&h);
}

/* ---- being refused ---------------------------------------------------------------------------- */

static void refuse_one(const sp_token *token, const char *build, sp_refusal reason, sp_err *err) {
    host h;
    sp_link *link = NULL;
    catch_log();
    start_host(&h);
    sp_status st = knock_at(h.port, &link, token, build, "", err);
    stop_host(&h);
    turn_until(&h, reason, 1); /* the guest knows before the head has heard its farewell */
    const char *log = caught_log();
    CU_ASSERT_EQUAL(st, SP_E_DENIED);
    CU_ASSERT_PTR_NULL(link);
    CU_ASSERT_EQUAL(h.n_guests, 0);
    CU_ASSERT_EQUAL(sp_door_refused(h.door, reason), 1);
    CU_ASSERT_EQUAL(refused_in_all(&h), 1);
    expect_one_line(log, sp_refusal_name(reason));
    close_host(&h);
}

static void a_wrong_token_is_denied_counted_and_logged_once(void) {
    sp_err err = {0};
    refuse_one(&OTHER, BUILD, SP_REFUSE_TOKEN, &err);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "token"));
}

static void another_build_is_denied_and_both_builds_are_named(void) {
    sp_err err = {0};
    refuse_one(&TOKEN, "0.0.9", SP_REFUSE_BUILD, &err);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'0.0.9'"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'" BUILD "'"));
}

/* A stranger says `n` bytes and gets `want` bytes back before the connection ends. */
static void say_and_hear(const void *p, size_t n, size_t want, sp_refusal reason) {
    host h;
    uint8_t heard[512];
    catch_log();
    open_host(&h);
    int fd = stranger(h.port);
    say(fd, p, n);
    turn_until(&h, reason, 1);
    size_t got = hear_all(fd, heard, want ? want : sizeof heard);
    const char *log = caught_log();
    CU_ASSERT_EQUAL(got, want);
    if (want) {
        CU_ASSERT(memcmp(heard, "SPD1", 4) == 0 && heard[6] == 5 && heard[16] == (int)reason);
        /* A clean end: a reset could have overtaken the answer. */
        int e = 0;
        socklen_t len = sizeof e;
        CU_ASSERT_EQUAL(getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len), 0);
        CU_ASSERT_EQUAL(e, 0);
    }
    CU_ASSERT_EQUAL(refused_in_all(&h), 1);
    expect_one_line(log, sp_refusal_name(reason));
    close(fd);
    close_host(&h);
}

static void another_version_is_told_which_build_we_are(void) {
    char words[SP_DOOR_WORDS_MAX + 1];
    uint8_t hello[SP_SHAKE_HELLO_MAX];
    memset(words, 'w', sizeof words);
    words[SP_DOOR_WORDS_MAX] = 0;
    size_t n = make_hello(hello, words); /* most of it is never read: the refusal arrives anyway */
    hello[4] = 9;
    say_and_hear(hello, n, 88, SP_REFUSE_VERSION);
}

static void an_unknown_role_is_told_so(void) {
    uint8_t hello[SP_SHAKE_HELLO_MAX];
    size_t n = make_hello(hello, "");
    hello[16 + 64] = 77;
    say_and_hear(hello, n, 88, SP_REFUSE_ROLE);
}

static void garbage_is_closed_without_an_answer(void) {
    uint8_t hello[SP_SHAKE_HELLO_MAX];
    size_t n = make_hello(hello, "");
    say_and_hear("GET / HTTP/1.1\r\n\r\n", 18, 0, SP_REFUSE_GARBAGE);
    hello[11] = 0x7f; /* a length of 2 GB */
    say_and_hear(hello, n, 0, SP_REFUSE_GARBAGE);
}

static void who_leaves_early_is_no_line_in_the_log(void) {
    host h;
    catch_log();
    open_host(&h);
    int mute = stranger(h.port), talker = stranger(h.port), half = stranger(h.port);
    uint8_t hello[SP_SHAKE_HELLO_MAX];
    size_t n = make_hello(hello, "");
    say(talker, "SPD", 3);
    say(half, hello, n);
    turn_some(&h, 5);
    CU_ASSERT_EQUAL(refused_in_all(&h), 0);
    close(mute);
    close(talker);
    close(half);
    turn_until(&h, SP_REFUSE_GARBAGE, 2); /* those that had said something */
    CU_ASSERT_EQUAL(refused_in_all(&h), 2);
    CU_ASSERT_EQUAL(count_lines(caught_log()), 0);
    close_host(&h);
}

static void lines_are_at_most_ten_a_second_and_then_a_count(void) {
    host h;
    int fds[30];
    catch_log();
    open_host(&h);
    for (int i = 0; i < 30; i++) {
        fds[i] = stranger(h.port);
        say(fds[i], "GET / HTTP/1.1\r\n\r\n", 18);
    }
    turn_until(&h, SP_REFUSE_GARBAGE, 30);
    sp_guest g;
    CU_ASSERT_EQUAL(sp_door_next(h.door, &g, in_ms(1100), NULL), SP_AGAIN);
    const char *log = caught_log();
    CU_ASSERT_EQUAL(count_lines(log), 11);
    CU_ASSERT_PTR_NOT_NULL(strstr(log, "refused 20 more"));
    for (int i = 0; i < 30; i++) close(fds[i]);
    close_host(&h);
}

/* ---- time and crowds -------------------------------------------------------------------------- */

static int64_t standing_ns; /* a clock that only the test moves */

static int64_t read_standing(void) {
    return standing_ns;
}

static void take_clock(void) {
    standing_ns = sp_now_ns();
    sp_clock_set(read_standing);
}

static void who_is_too_slow_is_refused_after_five_seconds(void) {
    host h;
    uint8_t hello[SP_SHAKE_HELLO_MAX], heard[512];
    catch_log();
    take_clock();
    open_host(&h);
    int mute = stranger(h.port), slow = stranger(h.port);
    size_t n = make_hello(hello, "");
    say(slow, hello, n);
    turn_some(&h, 5);
    standing_ns += 4 * SP_NS_PER_S;
    turn_some(&h, 2);
    CU_ASSERT_EQUAL(refused_in_all(&h), 0);
    standing_ns += SP_NS_PER_S;
    turn_some(&h, 2);
    sp_clock_set(NULL);
    const char *log = caught_log();
    CU_ASSERT_EQUAL(sp_door_refused(h.door, SP_REFUSE_SLOW), 2);
    CU_ASSERT_EQUAL(refused_in_all(&h), 2);
    CU_ASSERT_EQUAL(count_lines(log), 2);
    CU_ASSERT_EQUAL(hear_all(mute, heard, sizeof heard), 0);
    CU_ASSERT_EQUAL(hear_all(slow, heard, sizeof heard), 80 + 88); /* CHALLENGE, then why */
    CU_ASSERT_EQUAL(heard[80 + 16], SP_REFUSE_SLOW);
    close(mute);
    close(slow);
    close_host(&h);
}

static void a_full_door_keeps_the_young_and_lets_the_oldest_go(void) {
    host h;
    int fds[SP_DOOR_PENDING + 1];
    uint8_t hello[SP_SHAKE_HELLO_MAX], heard[512];
    size_t n = make_hello(hello, "");
    catch_log();
    take_clock();
    open_host(&h);
    fds[0] = stranger(h.port);
    say(fds[0], hello, n); /* the oldest, but it has said HELLO: not the first to go */
    turn_some(&h, 3);
    fds[1] = stranger(h.port);
    turn_some(&h, 3);
    standing_ns += SP_NS_PER_MS;
    for (int i = 2; i <= SP_DOOR_PENDING; i++) fds[i] = stranger(h.port);
    turn_some(&h, 10);
    CU_ASSERT_EQUAL(refused_in_all(&h), 0); /* the last one waits outside */
    standing_ns += 400 * SP_NS_PER_MS;
    turn_some(&h, 5);
    sp_clock_set(NULL);
    const char *log = caught_log();
    CU_ASSERT_EQUAL(sp_door_refused(h.door, SP_REFUSE_FULL), 1);
    CU_ASSERT_EQUAL(refused_in_all(&h), 1);
    expect_one_line(log, "full");
    CU_ASSERT_EQUAL(hear_all(fds[1], heard, sizeof heard), 0);
    CU_ASSERT_EQUAL(hear_all(fds[0], heard, 80), 80); /* still talked to */
    for (int i = 0; i <= SP_DOOR_PENDING; i++) close(fds[i]);
    close_host(&h);
}

static void a_lack_of_descriptors_passes(void) {
    host h;
    struct rlimit before, low;
    open_host(&h);
    int fd = stranger(h.port), next = dup(fd);
    close(next);
    CU_ASSERT_EQUAL_FATAL(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = (struct rlimit){(rlim_t)next, before.rlim_max};
    CU_ASSERT_EQUAL_FATAL(setrlimit(RLIMIT_NOFILE, &low), 0);
    sp_guest g;
    int64_t cpu = sp_cpu_thread_ns();
    CU_ASSERT_EQUAL(sp_door_next(h.door, &g, in_ms(150), NULL), SP_AGAIN);
    CU_ASSERT(sp_cpu_thread_ns() - cpu < 75 * SP_NS_PER_MS); /* it does not spin */
    CU_ASSERT_EQUAL_FATAL(setrlimit(RLIMIT_NOFILE, &before), 0);
    say(fd, "GET / HTTP/1.1\r\n\r\n", 18);
    catch_log();
    turn_until(&h, SP_REFUSE_GARBAGE, 1);
    (void)caught_log();
    close(fd);
    close_host(&h);
}

/* ---- a man in the middle ---------------------------------------------------------------------- */

typedef struct middle {
    sp_thread thread;
    int listen_fd, port, to_port;
    uint8_t up[8192], down[8192]; /* recorded: what the guest said, what the head said */
    size_t n_up, n_down;
    const uint8_t *play; /* instead of relaying: say this after the first bytes */
    size_t n_play;
} middle;

static bool relay(int from, int to, uint8_t *record, size_t *n, size_t room) {
    uint8_t bytes[4096];
    ssize_t got = recv(from, bytes, sizeof bytes, 0);
    if (got <= 0) return false;
    if (*n + (size_t)got <= room) memcpy(record + *n, bytes, (size_t)got), *n += (size_t)got;
    return send(to, bytes, (size_t)got, MSG_NOSIGNAL) == got;
}

static void *stand_between(void *arg) {
    middle *m = arg;
    struct pollfd comes = {.fd = m->listen_fd, .events = POLLIN}; /* it is non-blocking */
    poll(&comes, 1, 5000);
    int guest = accept(m->listen_fd, NULL, NULL);
    if (m->play) {
        m->n_up = (size_t)recv(guest, m->up, sizeof m->up, 0);
        (void)!send(guest, m->play, m->n_play, MSG_NOSIGNAL);
        (void)!recv(guest, m->down, sizeof m->down, 0);
        close(guest);
        return NULL;
    }
    int head = stranger(m->to_port);
    struct pollfd p[2] = {{.fd = guest, .events = POLLIN}, {.fd = head, .events = POLLIN}};
    bool alive = true;
    while (alive && poll(p, 2, 5000) > 0) {
        if (p[0].revents) alive = relay(guest, head, m->up, &m->n_up, sizeof m->up);
        if (alive && p[1].revents) alive = relay(head, guest, m->down, &m->n_down, sizeof m->down);
    }
    close(guest);
    close(head);
    return NULL;
}

static void start_middle(middle *m) {
    sp_status st = sp_door_listen(&m->listen_fd, &m->port, "127.0.0.1", 0, NULL);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&m->thread, "middle", stand_between, m, NULL), SP_OK);
}

static void a_recorded_handshake_opens_nothing(void) {
    host h;
    middle m = {0}, liar = {0};
    sp_link *link = NULL, *none = NULL;
    sp_err err = {0};
    start_host(&h);
    m.to_port = h.port;
    start_middle(&m);
    CU_ASSERT_EQUAL_FATAL(knock_at(m.port, &link, &TOKEN, BUILD, "", NULL), SP_OK);
    expect_welcome(link);
    sp_link_close(link);
    sp_thread_join(&m.thread);
    close(m.listen_fd);
    CU_ASSERT_FATAL(m.n_up >= 120 + 48 && m.n_down >= 80 + 48);

    catch_log();
    int fd = stranger(h.port); /* the guest's words, to the head */
    say(fd, m.up, m.n_up);
    uint8_t heard[256];
    size_t n = hear_all(fd, heard, sizeof heard);
    close(fd);
    liar.play = m.down; /* the head's words, to a guest */
    liar.n_play = m.n_down;
    start_middle(&liar);
    sp_status st = knock_at(liar.port, &none, &TOKEN, BUILD, "", &err);
    sp_thread_join(&liar.thread);
    close(liar.listen_fd);
    stop_host(&h);
    expect_one_line(caught_log(), "token");
    CU_ASSERT(n == 80 + 88 && heard[80 + 6] == 5 && heard[80 + 16] == SP_REFUSE_TOKEN);
    CU_ASSERT_EQUAL(h.n_guests, 1);
    CU_ASSERT_EQUAL(sp_door_refused(h.door, SP_REFUSE_TOKEN), 1);
    CU_ASSERT_EQUAL(st, SP_E_DENIED);
    CU_ASSERT_PTR_NULL(none);
    close_host(&h);
}

/* ---- addresses -------------------------------------------------------------------------------- */

/* A port that nobody listens at: bound, so that nobody else takes it meanwhile. */
static int dead_port(int *fd) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_FATAL(bind(*fd, (struct sockaddr *)&a, n) == 0);
    CU_ASSERT_FATAL(getsockname(*fd, (struct sockaddr *)&a, &n) == 0);
    return ntohs(a.sin_port);
}

static void nobody_there_is_unavailable_at_once(void) {
    int fd, port = dead_port(&fd);
    sp_link *link = NULL;
    sp_err err = {0};
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(knock_at(port, &link, &TOKEN, BUILD, "", &err), SP_E_UNAVAILABLE);
    CU_ASSERT(sp_now_ns() - start < SP_NS_PER_S);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "refused"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "127.0.0.1:"));
    close(fd);
}

static void a_silent_address_costs_only_its_share(void) {
    host h;
    int dead, silent, silent_port, dead_at = dead_port(&dead);
    char list[128];
    sp_link *link = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_door_listen(&silent, &silent_port, "127.0.0.1", 0, NULL), SP_OK);
    start_host(&h);
    snprintf(list, sizeof list, "127.0.0.1:%d, 127.0.0.1:%d ,localhost:%d", dead_at, silent_port,
             h.port);
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(sp_door_knock(&link, list, &TOKEN, BUILD, SP_ROLE_PEER, "", in_ms(1000), &err),
                    SP_OK);
    CU_ASSERT(sp_now_ns() - start < 950 * SP_NS_PER_MS);
    sp_link_close(link);
    link = NULL;

    snprintf(list, sizeof list, "127.0.0.1:%d", silent_port);
    start = sp_now_ns();
    CU_ASSERT_EQUAL(sp_door_knock(&link, list, &TOKEN, BUILD, SP_ROLE_PEER, "", in_ms(200), &err),
                    SP_E_TIMEOUT);
    CU_ASSERT(sp_now_ns() - start < SP_NS_PER_S);
    CU_ASSERT_PTR_NULL(link);
    stop_host(&h);
    CU_ASSERT_EQUAL(h.n_guests, 1);
    close(silent);
    close(dead);
    close_host(&h);
}

static void after_a_stranger_the_next_address_is_tried(void) {
    static const char http[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    host h;
    middle web = {.play = (const uint8_t *)http, .n_play = sizeof http - 1}, web2 = web;
    char list[128];
    sp_link *link = NULL;
    sp_err err = {0};
    start_host(&h);
    start_middle(&web);
    snprintf(list, sizeof list, "127.0.0.1:%d,127.0.0.1:%d", web.port, h.port);
    CU_ASSERT_EQUAL(sp_door_knock(&link, list, &TOKEN, BUILD, SP_ROLE_AGENT, "", in_ms(3000), &err),
                    SP_OK);
    sp_thread_join(&web.thread);
    close(web.listen_fd);
    sp_link_close(link);
    link = NULL;
    start_middle(&web2);
    CU_ASSERT_EQUAL(knock_at(web2.port, &link, &TOKEN, BUILD, "", &err), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "no head of a pod"));
    sp_thread_join(&web2.thread);
    close(web2.listen_fd);
    stop_host(&h);
    close_host(&h);
}

static void what_is_no_address_is_invalid(void) {
    static const char *const lists[] = {
        "", "10.0.0.1", "127.0.0.1:9,", "127.0.0.1:0", "127.0.0.1:65536", "::1:7000", ":7000"};
    for (size_t i = 0; i < SP_LEN(lists); i++) {
        sp_link *link = NULL;
        CU_ASSERT_EQUAL(
            sp_door_knock(&link, lists[i], &TOKEN, BUILD, SP_ROLE_AGENT, "", in_ms(100), NULL),
            SP_E_INVALID);
    }
}

static void one_socket_hears_both_families(void) {
    host h = {0};
    char list[64];
    CU_ASSERT_EQUAL_FATAL(sp_door_listen(&h.fd, &h.port, "", 0, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_door_open(&h.door, h.fd, &TOKEN, BUILD, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&h.thread, "host", serve, &h, NULL), SP_OK);
    sp_link *four = NULL, *six = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(knock_at(h.port, &four, &TOKEN, BUILD, "", NULL), SP_OK);
    snprintf(list, sizeof list, "[::1]:%d", h.port);
    sp_status st = sp_door_knock(&six, list, &TOKEN, BUILD, SP_ROLE_AGENT, "", in_ms(3000), &err);
    stop_host(&h);
    CU_ASSERT(strncmp(h.guests[0].address, "127.0.0.1:", 10) == 0);
    if (st == SP_OK) CU_ASSERT(strncmp(h.guests[1].address, "[::1]:", 6) == 0);
    sp_link_close(four);
    sp_link_close(six);
    close_host(&h);
    if (st != SP_OK) SP_SKIP("this machine has no IPv6 loopback");
}

static void a_port_in_use_is_an_error_that_names_it(void) {
    int fd, port, other, other_port;
    sp_err err = {0};
    char word[16];
    CU_ASSERT_EQUAL_FATAL(sp_door_listen(&fd, &port, "127.0.0.1", 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_door_listen(&other, &other_port, "127.0.0.1", port, &err), SP_E_IO);
    snprintf(word, sizeof word, "%d", port);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, word));
    CU_ASSERT_EQUAL(sp_door_listen(&other, &other_port, "", 70000, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_door_listen(&other, &other_port, "no.such.host.invalid", 0, &err), SP_E_IO);
    close(fd);
}

static void a_door_with_an_impossible_build_id_is_invalid(void) {
    sp_door *d = NULL;
    int fd, port;
    char build[80];
    memset(build, 'b', sizeof build);
    build[79] = 0;
    CU_ASSERT_EQUAL_FATAL(sp_door_listen(&fd, &port, "127.0.0.1", 0, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_door_open(&d, fd, &TOKEN, build, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_door_open(&d, fd, &TOKEN, "", NULL), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(d);
    close(fd);
}

SP_TEST_MAIN(
    "comm/door", SP_TEST(a_guest_gets_in_and_frames_go_both_ways),
    SP_TEST(many_guests_at_once_all_get_in), SP_TEST(a_guest_gets_in_among_a_hundred_strangers),
    SP_TEST(a_handshake_by_single_bytes_is_understood),
    SP_TEST(the_descriptor_is_readable_when_there_is_work),
    SP_TEST(a_wrong_token_is_denied_counted_and_logged_once),
    SP_TEST(another_build_is_denied_and_both_builds_are_named),
    SP_TEST(another_version_is_told_which_build_we_are), SP_TEST(an_unknown_role_is_told_so),
    SP_TEST(garbage_is_closed_without_an_answer), SP_TEST(who_leaves_early_is_no_line_in_the_log),
    SP_TEST(lines_are_at_most_ten_a_second_and_then_a_count),
    SP_TEST(who_is_too_slow_is_refused_after_five_seconds),
    SP_TEST(a_full_door_keeps_the_young_and_lets_the_oldest_go),
    SP_TEST(a_lack_of_descriptors_passes), SP_TEST(a_recorded_handshake_opens_nothing),
    SP_TEST(nobody_there_is_unavailable_at_once), SP_TEST(a_silent_address_costs_only_its_share),
    SP_TEST(after_a_stranger_the_next_address_is_tried), SP_TEST(what_is_no_address_is_invalid),
    SP_TEST(one_socket_hears_both_families), SP_TEST(a_port_in_use_is_an_error_that_names_it),
    SP_TEST(a_door_with_an_impossible_build_id_is_invalid))
