/* The exporter's side of comm/kvx.h over TCP: one thread that lets in, and one for each reader. A
 * reader's asks are checked one by one; whatever is wrong with it ends its connection alone. */
#include "comm/address.h"
#include "comm/kvx_io.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SHAKE_NS (5 * SP_NS_PER_S)
#define ACCEPT_REST_MS 100
#define SUMS_AT_ONCE 512

typedef struct conn {
    sp_kvx_server *server;
    sp_thread thread;
    int fd;
    _Atomic bool over; /* the thread ends: it may be joined */
} conn;

struct sp_kvx_server {
    const unsigned char *base;
    sp_kvx_shape shape;
    sp_kvx_head head;
    sp_token token;
    int listen_fd, port;
    sp_wake wake;
    sp_thread thread;
    _Atomic bool closing;
    _Atomic uint64_t refused;
    conn *conns[SP_KVX_CONNS_MAX]; /* of the accepting thread */
};

/* ---- one reader ---- */

static sp_status meet(sp_kvx_server *s, const sp_kvx_io *io) {
    uint8_t nonce[SP_SHAKE_NONCE];
    sp_shake shake;
    SP_TRY(sp_random_bytes(nonce, sizeof nonce, NULL));
    SP_TRY(sp_shake_begin_head(&shake, &s->token, SP_KVX_BUILD, nonce, NULL));
    sp_status st = sp_kvx_shake_hands(io, &shake);
    if (st == SP_OK && sp_shake_role(&shake) != SP_ROLE_PEER) st = SP_E_DENIED;
    sp_shake_wipe(&shake);
    if (st != SP_OK) {
        atomic_fetch_add(&s->refused, 1);
        return st;
    }
    sp_kvx_hello h;
    SP_TRY(sp_kvx_recv_bytes(io, &h, sizeof h));
    sp_kvx_meet m = {.head = s->head};
    if (memcmp(h.incarnation, s->head.incarnation, sizeof h.incarnation) != 0)
        m.fault = SP_KVX_PEER;
    else if (memcmp(h.identity, s->head.identity, sizeof h.identity) != 0 ||
             h.block_tokens != s->head.block_tokens || h.head_dim != s->head.head_dim ||
             h.dtype != s->head.dtype)
        m.fault = SP_KVX_IDENTITY;
    SP_TRY(sp_kvx_send_bytes(io, &m, sizeof m));
    return m.fault ? SP_E_DENIED : SP_OK;
}

/* Walks the runs of an ask: heads of K or V of one layer, which lie side by side. */
typedef struct run {
    const sp_kvx_want *w;
    int32_t i; /* 2 * layer + is_value, from the first */
} run;

static size_t run_at(const sp_kvx_server *s, const run *r) {
    return sp_kvx_piece_index(&s->shape, r->w->layer_first + r->i / 2, r->i & 1, r->w->head_first);
}

static const sp_kvx_slot *slot_of(const sp_kvx_server *s, uint32_t block) {
    return (const sp_kvx_slot *)(const void *)(s->base + sp_kvx_slot_offset(&s->head, block));
}

static sp_status send_sums(const sp_kvx_server *s, const sp_kvx_io *io, const sp_kvx_want *w) {
    uint64_t sums[SUMS_AT_ONCE];
    const sp_kvx_slot *slot = slot_of(s, w->block);
    size_t n = 0;
    for (run r = {w, 0}; r.i < 2 * w->n_layers; r.i++) {
        size_t at = run_at(s, &r);
        for (int32_t k = 0; k < w->n_heads; k++) {
            sums[n++] = atomic_load_explicit(&slot->sums[at + (size_t)k], memory_order_relaxed);
            if (n < SUMS_AT_ONCE) continue;
            SP_TRY(sp_kvx_send_bytes(io, sums, sizeof sums));
            n = 0;
        }
    }
    return n ? sp_kvx_send_bytes(io, sums, n * sizeof *sums) : SP_OK;
}

static sp_status send_pieces(const sp_kvx_server *s, const sp_kvx_io *io, const sp_kvx_want *w) {
    const size_t bytes = sp_kvx_piece_bytes(&s->shape);
    const unsigned char *block =
        s->base + s->head.kv_offset + (size_t)w->block * s->shape.block_bytes;
    struct iovec v[SP_KVX_IOV_MAX];
    int n = 0;
    for (run r = {w, 0}; r.i < 2 * w->n_layers; r.i++) {
        unsigned char *at = (unsigned char *)(uintptr_t)block + run_at(s, &r) * bytes;
        size_t len = (size_t)w->n_heads * bytes;
        /* All heads: the next run begins where this one ends. */
        if (n && (unsigned char *)v[n - 1].iov_base + v[n - 1].iov_len == at) {
            v[n - 1].iov_len += len;
            continue;
        }
        if (n == SP_KVX_IOV_MAX) {
            SP_TRY(sp_kvx_send(io, v, n));
            n = 0;
        }
        v[n++] = (struct iovec){at, len};
    }
    return sp_kvx_send(io, v, n);
}

static bool is_bounded(const sp_kvx_server *s, const sp_kvx_want *w) {
    uint64_t n = (uint64_t)w->n_layers * 2 * (uint64_t)w->n_heads;
    return n == 2 || n * sp_kvx_piece_bytes(&s->shape) <= SP_KVX_CREDIT_BYTES;
}

static sp_status give(const sp_kvx_server *s, const sp_kvx_io *io, const sp_kvx_want *w) {
    sp_kvx_give g = {.magic = SP_KVX_GIVE_MAGIC};
    if (!sp_kvx_has(&s->shape, w->block, w->layer_first, w->n_layers, w->head_first, w->n_heads))
        g.fault = SP_KVX_RANGE;
    else if (w->generation == 0 || atomic_load_explicit(&slot_of(s, w->block)->generation,
                                                        memory_order_acquire) != w->generation)
        g.fault = SP_KVX_STALE;
    else if (!is_bounded(s, w))
        return SP_E_PROTOCOL;
    if (g.fault) return sp_kvx_send_bytes(io, &g, sizeof g);
    g.n_pieces = (uint32_t)w->n_layers * 2 * (uint32_t)w->n_heads;
    SP_TRY(sp_kvx_send_bytes(io, &g, sizeof g));
    SP_TRY(send_sums(s, io, w));
    SP_TRY(send_pieces(s, io, w));
    sp_kvx_fence();
    sp_kvx_last last = {SP_KVX_GIVE_MAGIC, atomic_load_explicit(&slot_of(s, w->block)->generation,
                                                                memory_order_relaxed)};
    return sp_kvx_send_bytes(io, &last, sizeof last);
}

static void *serve_reader(void *arg) {
    conn *c = arg;
    sp_kvx_server *s = c->server;
    /* Closing shuts the socket down, which ends any wait. */
    sp_kvx_io io = {c->fd, sp_now_ns() + SHAKE_NS, NULL};
    sp_status st = meet(s, &io);
    while (st == SP_OK) {
        sp_kvx_want w;
        io.deadline_ns = SP_NEVER; /* it may have nothing to ask for hours */
        st = sp_kvx_wait(&io, POLLIN);
        io.deadline_ns = sp_now_ns() + sp_kvx_time_for(SP_KVX_CREDIT_BYTES);
        if (st == SP_OK) st = sp_kvx_recv_bytes(&io, &w, sizeof w);
        if (st == SP_OK && (w.magic != SP_KVX_WANT_MAGIC || w.zero != 0)) st = SP_E_PROTOCOL;
        if (st == SP_OK) st = give(s, &io, &w);
    }
    shutdown(c->fd, SHUT_RDWR);
    atomic_store(&c->over, true);
    return NULL;
}

/* ---- letting in ---- */

static void drop(sp_kvx_server *s, int i) {
    conn *c = s->conns[i];
    sp_thread_join(&c->thread);
    close(c->fd);
    sp_free(c);
    s->conns[i] = NULL;
}

static int free_place(sp_kvx_server *s) {
    int at = -1;
    for (int i = 0; i < SP_KVX_CONNS_MAX; i++) {
        if (s->conns[i] && atomic_load(&s->conns[i]->over)) drop(s, i);
        if (!s->conns[i] && at < 0) at = i;
    }
    return at;
}

static void let_in(sp_kvx_server *s) {
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* Out of descriptors: the queue stays readable, and must not make this a busy loop. */
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            (void)poll(NULL, 0, ACCEPT_REST_MS);
        return;
    }
    int at = free_place(s);
    conn *c = at < 0 || sp_kvx_set_options(fd) != SP_OK ? NULL : sp_try_alloc(sizeof *c);
    if (!c) {
        atomic_fetch_add(&s->refused, 1);
        close(fd);
        return;
    }
    c->server = s;
    c->fd = fd;
    s->conns[at] = c;
    if (sp_thread_start(&c->thread, "kvx-reader", serve_reader, c, NULL) != SP_OK)
        atomic_store(&c->over, true);
}

static void *let_all_in(void *arg) {
    sp_kvx_server *s = arg;
    while (!atomic_load(&s->closing)) {
        struct pollfd p[] = {{.fd = s->wake.fd, .events = POLLIN},
                             {.fd = s->listen_fd, .events = POLLIN}};
        if (poll(p, 2, -1) > 0 && p[1].revents) let_in(s);
    }
    for (int i = 0; i < SP_KVX_CONNS_MAX; i++)
        if (s->conns[i]) shutdown(s->conns[i]->fd, SHUT_RDWR);
    for (int i = 0; i < SP_KVX_CONNS_MAX; i++)
        if (s->conns[i]) drop(s, i);
    return NULL;
}

sp_status sp_kvx_server_open(sp_kvx_server **out, const sp_kvx_config *c, int fd,
                             const sp_kvx_head *head, sp_err *err) {
    sp_kvx_server *s = sp_try_alloc(sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory to serve KV blocks");
    s->shape = c->shape;
    s->head = *head;
    s->listen_fd = s->wake.fd = -1;
    sp_kvx_token(&s->token, c->key);
    void *base = mmap(NULL, head->total_bytes, PROT_READ, MAP_SHARED, fd, 0);
    sp_status st = SP_OK;
    if (base == MAP_FAILED)
        st = SP_FAIL(err, SP_E_NOMEM, "mapping KV memory to serve it: %s", strerror(errno));
    else
        s->base = base;
    if (st == SP_OK)
        st = sp_address_listen(&s->listen_fd, &s->port, c->host ? c->host : "", 0, err);
    if (st == SP_OK) st = sp_wake_open(&s->wake, err);
    if (st == SP_OK) st = sp_thread_start(&s->thread, "kvx-serve", let_all_in, s, err);
    if (st != SP_OK) {
        sp_kvx_server_close(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_kvx_server_close(sp_kvx_server *s) {
    if (!s) return;
    atomic_store(&s->closing, true);
    if (s->thread.started) sp_wake_signal(&s->wake);
    sp_thread_join(&s->thread);
    if (s->wake.fd >= 0) sp_wake_close(&s->wake);
    if (s->listen_fd >= 0) close(s->listen_fd);
    if (s->base) munmap((void *)(uintptr_t)s->base, s->head.total_bytes);
    sp_wipe(&s->token, sizeof s->token);
    sp_free(s);
}

int sp_kvx_server_port(const sp_kvx_server *s) {
    return s->port;
}

uint64_t sp_kvx_server_refused(const sp_kvx_server *s) {
    return atomic_load(&s->refused);
}
