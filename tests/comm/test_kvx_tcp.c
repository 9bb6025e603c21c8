/* Covers comm/kvx_tcp.c, kvx_serve.c and kvx_io.c: harm that a network does, by a relay between the two
 * ends, peers that talk nonsense or die, and leases. */
#include "comm/kvx_part.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"
#include "tests/kvx_side.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a network that does harm ---- */

typedef enum harm {
    HARM_NONE,
    HARM_FLIP,   /* a byte of what the exporter says, after `at` bytes of it */
    HARM_CUT,    /* nothing after it, and the end */
    HARM_SILENT, /* nothing after it */
    HARM_HOLD    /* nothing after it until the test says so */
} harm;

typedef struct relay {
    int listen_fd, port, to_port;
    harm kind;
    size_t at, passed;
    _Atomic bool stop, holds, go;
    sp_thread thread;
} relay;

static int dial(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void push(int fd, const unsigned char *p, size_t n) {
    while (n > 0) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0) return;
        p += k;
        n -= (size_t)k;
    }
}

/* False: the connection is to end. */
static bool pass_on(relay *r, int to, unsigned char *p, size_t n) {
    bool here = r->kind != HARM_NONE && r->at >= r->passed && r->at < r->passed + n;
    size_t before = here ? r->at - r->passed : n;
    r->passed += n;
    if (here && r->kind == HARM_FLIP) {
        p[before] ^= 0x10;
        before = n;
    }
    push(to, p, before);
    if (!here || r->kind == HARM_FLIP) return true;
    if (r->kind == HARM_CUT) return false;
    r->holds = true;
    while (!r->stop && !r->go) poll(NULL, 0, 1);
    if (r->kind == HARM_SILENT) return false;
    push(to, p + before, n - before);
    return true;
}

static void relay_one(relay *r, int from) {
    unsigned char bytes[8192];
    int to = dial(r->to_port);
    struct pollfd p[] = {{.fd = from, .events = POLLIN}, {.fd = to, .events = POLLIN}};
    bool on = true;
    while (on && !r->stop) {
        if (poll(p, 2, 20) <= 0) continue;
        for (int i = 0; i < 2 && on; i++) {
            if (!p[i].revents) continue;
            ssize_t n = recv(p[i].fd, bytes, sizeof bytes, 0);
            on = n > 0 &&
                 (i == 0 ? (push(to, bytes, (size_t)n), true) : pass_on(r, from, bytes, (size_t)n));
        }
    }
    close(to);
    close(from);
}

static void *relay_main(void *arg) {
    relay *r = arg;
    while (!r->stop) {
        struct pollfd p = {.fd = r->listen_fd, .events = POLLIN};
        if (poll(&p, 1, 20) > 0) {
            int fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0) relay_one(r, fd);
        }
    }
    return NULL;
}

static void open_relay(relay *r, const sp_side *s, harm kind, size_t at) {
    sp_err err = {0};
    memset(r, 0, sizeof *r);
    r->to_port = s->port;
    r->kind = kind;
    r->at = at;
    sp_side_must(sp_door_listen(&r->listen_fd, &r->port, "127.0.0.1", 0, &err), &err);
    sp_side_must(sp_thread_start(&r->thread, "relay", relay_main, r, &err), &err);
}

static void close_relay(relay *r) {
    r->stop = true;
    sp_thread_join(&r->thread);
    close(r->listen_fd);
}

static sp_kvx_fault read_through(const sp_side *s, relay *r, bool *right) {
    char address[SP_KVX_ADDRESS_BYTES];
    sp_side_address(s, r->port, address);
    sp_kvx *k = sp_side_reader(address, s->shape, SP_SIDE_TCP);
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(s, to, 0, 5);
    sp_kvx_fault f = sp_side_read(k, &a);
    *right = sp_side_came(s, &a, 5);
    sp_kvx_close(k);
    sp_free(to);
    return f;
}

static size_t bytes_of_a_read(const sp_side *s) {
    relay r;
    bool right;
    open_relay(&r, s, HARM_NONE, 0);
    CU_ASSERT_EQUAL(read_through(s, &r, &right), SP_KVX_OK);
    CU_ASSERT(right);
    close_relay(&r);
    return r.passed;
}

/* Whatever byte of what the exporter says is changed: it is never called right and is not. */
static void a_byte_that_changes_on_the_way_is_never_called_right(void) {
    sp_side s;
    sp_kvx_shape shape = sp_side_small();
    shape.n_layers = 3;
    sp_side_open(&s, shape);
    sp_side_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    int checksums = 0, ok = 0;
    for (size_t at = 0; at < all; at += at < 600 || at + 40 > all ? 13 : 97) {
        relay r;
        bool right;
        open_relay(&r, &s, HARM_FLIP, at);
        sp_kvx_fault f = read_through(&s, &r, &right);
        close_relay(&r);
        if (f == SP_KVX_OK) CU_ASSERT(right);
        checksums += f == SP_KVX_CHECKSUM;
        ok += f == SP_KVX_OK;
    }
    CU_ASSERT(checksums > 10);
    CU_ASSERT(ok < 40); /* bytes that mean nothing: reserved ones, and those of the head's rest */
    sp_kvx_region_close(s.region);
}

static void a_connection_cut_anywhere_is_a_lost_peer(void) {
    sp_side s;
    sp_kvx_shape shape = sp_side_small();
    shape.n_layers = 3;
    sp_side_open(&s, shape);
    sp_side_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    for (size_t i = 0; i <= 40; i++) {
        relay r;
        bool right;
        open_relay(&r, &s, HARM_CUT, i == 40 ? all - 1 : all * i / 40);
        CU_ASSERT_EQUAL(read_through(&s, &r, &right), SP_KVX_PEER);
        close_relay(&r);
    }
    sp_kvx_region_close(s.region);
}

static void a_silent_exporter_is_a_timeout_and_a_cancelled_read_ends_at_once(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    relay r;
    bool right;
    open_relay(&r, &s, HARM_SILENT, all / 2);
    int64_t begin = sp_now_ns();
    CU_ASSERT_EQUAL(read_through(&s, &r, &right), SP_KVX_TIMEOUT);
    int64_t took = sp_now_ns() - begin;
    CU_ASSERT(took >= SP_NS_PER_S && took < 3 * SP_NS_PER_S);
    close_relay(&r);
    char address[SP_KVX_ADDRESS_BYTES];
    open_relay(&r, &s, HARM_NONE, 0);
    sp_side_address(&s, r.port, address);
    sp_kvx *k = sp_side_reader(address, s.shape, SP_SIDE_TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(&s, to, 0, 5);
    sp_kvx_cancel(k);
    begin = sp_now_ns();
    (void)sp_side_read(k, &a);
    CU_ASSERT(sp_now_ns() - begin < SP_NS_PER_S / 2);
    sp_kvx_close(k);
    close_relay(&r);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* More than the sockets hold between them, so that the exporter is still sending. */
static sp_kvx_shape large(int32_t n_blocks, int32_t n_heads) {
    sp_kvx_shape s = {.n_blocks = n_blocks,
                      .block_tokens = 16,
                      .head_dim = 128,
                      .dtype = SP_DTYPE_F32,
                      .n_layers = 32,
                      .n_heads = n_heads};
    s.block_bytes = sp_kvx_piece_bytes(&s) * 32 * 2 * (size_t)n_heads + 64;
    return s;
}

typedef struct hasty { /* reads while the test holds the relay */
    const sp_side *s;
    relay *r;
    sp_kvx_fault f;
    bool right;
} hasty;

static void *hasty_main(void *arg) {
    hasty *h = arg;
    h->f = read_through(h->s, h->r, &h->right);
    return NULL;
}

static void a_block_freed_while_it_is_on_its_way_is_stale(void) {
    sp_side s;
    sp_err err = {0};
    relay r;
    sp_side_open(&s, large(1, 32));
    sp_side_seal(&s, 0, 5);
    open_relay(&r, &s, HARM_HOLD, 3000);
    hasty h = {.s = &s, .r = &r};
    sp_thread t = {0};
    sp_side_must(sp_thread_start(&t, "hasty", hasty_main, &h, &err), &err);
    while (!r.holds) poll(NULL, 0, 1);
    sp_side_must(sp_kvx_free(s.region, 0, 5, &err), &err);
    r.go = true;
    sp_thread_join(&t);
    CU_ASSERT_EQUAL(h.f, SP_KVX_STALE);
    close_relay(&r);
    sp_kvx_region_close(s.region);
}

/* Strangers, garbage and asks beyond all bounds end their own connection and nobody else's. */
static void a_peer_that_talks_nonsense_harms_only_itself(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 0, 5);
    sp_kvx *k = sp_side_reader(s.address, s.shape, SP_SIDE_TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(&s, to, 0, 5);
    CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
    for (int i = 0; i < 20; i++) {
        unsigned char junk[600];
        CU_ASSERT_EQUAL(sp_random_bytes(junk, sizeof junk, NULL), SP_OK);
        int fd = dial(s.port);
        push(fd, junk, (size_t)i * 30);
        if (i % 2) shutdown(fd, SHUT_WR);
        CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
        close(fd);
    }
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

typedef struct assassin {
    relay *r;
    pid_t pid;
} assassin;

static void *assassin_main(void *arg) {
    assassin *w = arg;
    while (!w->r->holds) poll(NULL, 0, 1);
    kill(w->pid, SIGKILL);
    waitpid(w->pid, NULL, 0);
    w->r->go = true;
    return NULL;
}

static void an_exporter_that_is_killed_while_it_gives_is_a_lost_peer(void) {
    int says[2];
    CU_ASSERT_EQUAL_FATAL(pipe(says), 0);
    fflush(NULL);
    pid_t pid = fork();
    CU_ASSERT_FATAL(pid >= 0);
    if (pid == 0) {
        sp_side s;
        sp_side_open(&s, large(1, 32));
        sp_side_seal(&s, 0, 5);
        if (write(says[1], &s, sizeof s) != (ssize_t)sizeof s) _exit(1);
        for (;;) pause();
    }
    sp_side s;
    CU_ASSERT_EQUAL_FATAL(read(says[0], &s, sizeof s), (ssize_t)sizeof s);
    sp_kvx *shm = sp_side_reader(s.address, s.shape, SP_SIDE_SHM);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(&s, to, 0, 5);
    CU_ASSERT_EQUAL(sp_side_read(shm, &a), SP_KVX_OK);
    relay r;
    char address[SP_KVX_ADDRESS_BYTES];
    open_relay(&r, &s, HARM_HOLD, 3000);
    snprintf(address, sizeof address, "%s", s.address);
    *strrchr(address, ':') = 0;
    snprintf(address + strlen(address), sizeof address - strlen(address), ":%d", r.port);
    sp_kvx *tcp = sp_side_reader(address, s.shape, SP_SIDE_TCP);
    assassin w = {&r, pid};
    sp_thread t = {0};
    sp_err err = {0};
    sp_side_must(sp_thread_start(&t, "assassin", assassin_main, &w, &err), &err);
    CU_ASSERT_EQUAL(sp_side_read(tcp, &a), SP_KVX_PEER); /* the exporter dies in its midst */
    sp_thread_join(&t);
    close_relay(&r);
    CU_ASSERT_EQUAL(sp_side_read(tcp, &a), SP_KVX_PEER);
    /* Its memory outlives it as long as it is mapped: what was sealed is still right. */
    CU_ASSERT_EQUAL(sp_side_read(shm, &a), SP_KVX_OK);
    CU_ASSERT(sp_side_came(&s, &a, 5));
    sp_kvx_close(tcp);
    sp_kvx_close(shm);
    sp_free(to);
    close(says[0]);
    close(says[1]);
}

/* An ask above the credit goes in parts, by layers and by heads. */
static void blocks_larger_than_the_credit_come_over_too(void) {
    sp_side s;
    sp_kvx_shape shape = {.n_blocks = 2,
                          .block_tokens = 128,
                          .head_dim = 256,
                          .dtype = SP_DTYPE_F32,
                          .n_layers = 2,
                          .n_heads = 40};
    shape.block_bytes = sp_kvx_piece_bytes(&shape) * 2 * 2 * 40;
    sp_side_open(&s, shape);
    sp_side_seal(&s, 1, 5);
    sp_kvx *k = sp_side_reader(s.address, s.shape, SP_SIDE_TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a[2] = {sp_side_whole(&s, to, 0, 5), sp_side_whole(&s, to, 1, 5)};
    sp_kvx_fault f[2];
    sp_kvx_read(k, a, 2, f);
    CU_ASSERT_EQUAL(f[0], SP_KVX_STALE);
    CU_ASSERT_EQUAL(f[1], SP_KVX_OK);
    CU_ASSERT(sp_side_came(&s, &a[1], 5));
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* ---- leases ---- */

typedef struct notices {
    _Atomic int n;
    uint64_t lease[8];
    bool renew[8];
} notices;

static void keep_notice(void *ctx, uint64_t lease, bool renew) {
    notices *all = ctx;
    int at = atomic_load(&all->n);
    all->lease[at % 8] = lease;
    all->renew[at % 8] = renew;
    atomic_store(&all->n, at + 1);
}

static void what_a_reader_says_of_a_lease_reaches_the_exporter(void) {
    sp_err err = {0};
    notices all = {.n = 0};
    sp_kvx_config c = {.shape = sp_side_small(),
                       .serve_shm = true,
                       .serve_tcp = true,
                       .host = "127.0.0.1",
                       .on_lease = keep_notice,
                       .lease_ctx = &all};
    memcpy(c.key, sp_side_key, sizeof c.key);
    memcpy(c.identity, sp_side_model, sizeof c.identity);
    sp_side s = {.shape = c.shape};
    size_t bytes;
    sp_side_must(sp_kvx_region_open(&s.region, &c, &err), &err);
    s.kv = sp_kvx_region_memory(s.region, &bytes);
    sp_side_address(&s, sp_kvx_region_port(s.region), s.address);
    sp_side_seal(&s, 1, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx *k = sp_side_reader(s.address, s.shape, SP_SIDE_TCP);
    sp_kvx_ask a = sp_side_whole(&s, to, 1, 5);
    CU_ASSERT_EQUAL(sp_kvx_lease(k, UINT64_C(0xfedcba9876543210), true), SP_KVX_OK);
    CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
    CU_ASSERT(sp_side_came(&s, &a, 5));
    CU_ASSERT_EQUAL(sp_kvx_lease(k, 7, false), SP_KVX_OK);
    CU_ASSERT_EQUAL_FATAL(atomic_load(&all.n), 2); /* it is answered after it was told */
    CU_ASSERT(all.lease[0] == UINT64_C(0xfedcba9876543210) && all.renew[0]);
    CU_ASSERT(all.lease[1] == 7 && !all.renew[1]);
    CU_ASSERT_EQUAL(sp_kvx_lease(k, 0, true), SP_KVX_PEER); /* no lease: the connection ends */
    CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
    sp_kvx_close(k);
    k = sp_side_reader(s.address, s.shape, SP_SIDE_SHM);
    CU_ASSERT_EQUAL(sp_kvx_lease(k, 7, true), SP_KVX_RANGE);
    sp_kvx_close(k);
    sp_kvx_region_close(s.region);
    sp_side_open(&s, sp_side_small()); /* nobody listens to leases there */
    k = sp_side_reader(s.address, s.shape, SP_SIDE_TCP);
    CU_ASSERT_EQUAL(sp_kvx_lease(k, 7, true), SP_KVX_RANGE);
    sp_kvx_region_close(s.region);
    CU_ASSERT_EQUAL(sp_kvx_lease(k, 7, true), SP_KVX_PEER);
    CU_ASSERT_EQUAL(atomic_load(&all.n), 2);
    sp_kvx_close(k);
    sp_free(to);
}

SP_TEST_MAIN("comm/kvx_tcp", SP_TEST(a_byte_that_changes_on_the_way_is_never_called_right),
             SP_TEST(a_connection_cut_anywhere_is_a_lost_peer),
             SP_TEST(a_silent_exporter_is_a_timeout_and_a_cancelled_read_ends_at_once),
             SP_TEST(a_block_freed_while_it_is_on_its_way_is_stale),
             SP_TEST(a_peer_that_talks_nonsense_harms_only_itself),
             SP_TEST(an_exporter_that_is_killed_while_it_gives_is_a_lost_peer),
             SP_TEST(blocks_larger_than_the_credit_come_over_too),
             SP_TEST(what_a_reader_says_of_a_lease_reaches_the_exporter))
