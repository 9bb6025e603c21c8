/* The exporter's side of comm/kvx.h over TCP: one thread that lets in, and one for each reader. A
 * reader's asks are checked one by one; whatever is wrong with it ends its connection alone. */
#define SP_LOG "kvx"
#include "comm/address.h"
#include "comm/kvx_ucx.h"
#include "comm/secret.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
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
#define ASKS_MAX 64 /* of one reader, taken up by UCX and not yet answered */

typedef struct conn {
    sp_kvx_server *server;
    sp_thread thread;
    int fd;
    _Atomic bool over; /* the thread ends: it may be joined */
    sp_kvx_ucx *ucx;   /* NULL: all goes over TCP */
} conn;

struct sp_kvx_server {
    const unsigned char *base;
    sp_ucx_home *home; /* NULL: no UCX */
    sp_kvx_shape shape;
    sp_kvx_head head;
    sp_token token;
    void (*on_lease)(void *ctx, uint64_t lease, bool renew);
    void *lease_ctx;
    int listen_fd, port;
    sp_wake wake;
    sp_thread thread;
    _Atomic bool closing;
    _Atomic uint64_t refused;
    conn *conns[SP_KVX_CONNS_MAX]; /* of the accepting thread */
};

/* ---- one reader ---- */

/* Both have said that they would by UCX: now they see whether they can. */
static sp_status greet(conn *c, const sp_kvx_io *io) {
    sp_err why = {0};
    if (sp_kvx_ucx_open(&c->ucx, c->server->home, true, &why) != SP_OK) c->ucx = NULL;
    sp_status st = sp_kvx_ucx_greet(&c->ucx, io, true, &why);
    if (st == SP_OK && !c->ucx) sp_info("a reader of KV blocks goes by tcp, not ucx: %s", why.text);
    return st;
}

static sp_status meet(conn *c, const sp_kvx_io *io) {
    sp_kvx_server *s = c->server;
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
    sp_kvx_meet m = {.head = s->head, .ucx = s->home && h.ucx == 1};
    if (memcmp(h.incarnation, s->head.incarnation, sizeof h.incarnation) != 0)
        m.fault = SP_KVX_PEER;
    else if (memcmp(h.identity, s->head.identity, sizeof h.identity) != 0 ||
             h.block_tokens != s->head.block_tokens || h.head_dim != s->head.head_dim ||
             h.dtype != s->head.dtype)
        m.fault = SP_KVX_IDENTITY;
    SP_TRY(sp_kvx_send_bytes(io, &m, sizeof m));
    if (m.fault) return SP_E_DENIED;
    return m.ucx ? greet(c, io) : SP_OK;
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

static sp_status say(const conn *c, const sp_kvx_io *io, const void *p, size_t n) {
    return c->ucx ? sp_kvx_ucx_tell(c->ucx, io, p, n) : sp_kvx_send_bytes(io, p, n);
}

static sp_status send_sums(const conn *c, const sp_kvx_io *io, const sp_kvx_want *w) {
    uint64_t sums[SUMS_AT_ONCE];
    const sp_kvx_server *s = c->server;
    const sp_kvx_slot *slot = slot_of(s, w->block);
    size_t n = 0;
    for (run r = {w, 0}; r.i < 2 * w->n_layers; r.i++) {
        size_t at = run_at(s, &r);
        for (int32_t k = 0; k < w->n_heads; k++) {
            sums[n++] = atomic_load_explicit(&slot->sums[at + (size_t)k], memory_order_relaxed);
            if (n < SUMS_AT_ONCE) continue;
            SP_TRY(say(c, io, sums, sizeof sums));
            n = 0;
        }
    }
    return n ? say(c, io, sums, n * sizeof *sums) : SP_OK;
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

static uint32_t generation_of(const sp_kvx_server *s, const sp_kvx_want *w) {
    return atomic_load_explicit(&slot_of(s, w->block)->generation, memory_order_acquire);
}

static sp_kvx_fault judge(const sp_kvx_server *s, const sp_kvx_want *w) {
    if (!sp_kvx_has(&s->shape, w->block, w->layer_first, w->n_layers, w->head_first, w->n_heads))
        return SP_KVX_RANGE;
    if (w->generation == 0 || generation_of(s, w) != w->generation) return SP_KVX_STALE;
    if (atomic_load_explicit(&slot_of(s, w->block)->name, memory_order_relaxed) == w->name)
        return SP_KVX_OK;
    sp_kvx_fence();
    return generation_of(s, w) == w->generation ? SP_KVX_FOREIGN : SP_KVX_STALE;
}

static sp_kvx_want half_of(const sp_kvx_want *w) {
    sp_kvx_want half = *w;
    half.n_layers /= 2;
    return half;
}

/* What is said before the pieces, or instead of them. */
static sp_status give_first(const conn *c, const sp_kvx_io *io, const sp_kvx_want *w,
                            sp_kvx_fault fault) {
    sp_kvx_give g = {.magic = SP_KVX_GIVE_MAGIC, .fault = fault};
    if (!fault) g.n_pieces = (uint32_t)w->n_layers * 2 * (uint32_t)w->n_heads;
    SP_TRY(say(c, io, &g, sizeof g));
    return fault ? SP_OK : send_sums(c, io, w);
}

/* And after them: whether they were still what they were. */
static sp_status give_last(const conn *c, const sp_kvx_io *io, const sp_kvx_want *w) {
    sp_kvx_fence();
    sp_kvx_last last = {
        SP_KVX_GIVE_MAGIC,
        atomic_load_explicit(&slot_of(c->server, w->block)->generation, memory_order_relaxed)};
    return say(c, io, &last, sizeof last);
}

static sp_status give(const conn *c, const sp_kvx_io *io, const sp_kvx_want *w) {
    const sp_kvx_server *s = c->server;
    const sp_kvx_fault fault = judge(s, w);
    if (!fault && !is_bounded(s, w)) return SP_E_PROTOCOL;
    SP_TRY(give_first(c, io, w, fault));
    if (fault) return SP_OK;
    if (sp_chaos_hit(SP_CHAOS_KVX_TRUNCATE)) {
        const sp_kvx_want half = half_of(w);
        return half.n_layers && send_pieces(s, io, &half) != SP_OK ? SP_E_IO : SP_E_CLOSED;
    }
    SP_TRY(send_pieces(s, io, w));
    return give_last(c, io, w);
}

static sp_status take_notice(const sp_kvx_server *s, const sp_kvx_io *io, const sp_kvx_notice *n) {
    sp_kvx_give g = {.magic = SP_KVX_GIVE_MAGIC, .fault = s->on_lease ? SP_KVX_OK : SP_KVX_RANGE};
    if (n->lease == 0 || n->renew > 1 || n->zero[0] || n->zero[1] || n->zero[2] || n->zero[3])
        return SP_E_PROTOCOL;
    if (s->on_lease) s->on_lease(s->lease_ctx, n->lease, n->renew == 1);
    return sp_kvx_send_bytes(io, &g, sizeof g);
}

typedef union heard {
    sp_kvx_want want;
    sp_kvx_notice notice;
} heard;

static sp_status serve_by_tcp(conn *c, sp_kvx_io *io) {
    for (;;) {
        heard m;
        io->deadline_ns = SP_NEVER; /* it may have nothing to ask for hours */
        SP_TRY(sp_kvx_wait(io, POLLIN));
        io->deadline_ns = sp_now_ns() + sp_kvx_time_for(SP_KVX_CREDIT_BYTES);
        SP_TRY(sp_kvx_recv_bytes(io, &m, sizeof m));
        if (m.want.magic == SP_KVX_WANT_MAGIC && m.want.runs == 0 && m.want.tag == 0)
            SP_TRY(give(c, io, &m.want));
        else if (m.notice.magic == SP_KVX_NOTICE_MAGIC)
            SP_TRY(take_notice(c->server, io, &m.notice));
        else
            return SP_E_PROTOCOL;
    }
}

/* ---- one reader, by UCX ---- */

typedef struct asked {
    sp_kvx_want want;
    int64_t deadline_ns;
    int messages; /* not yet gone */
    bool posted;
    sp_kvx_fault fault;
} asked;

/* Asks in order: the first `n_posted` are being sent, the oldest is answered next. */
typedef struct line {
    conn *c;
    sp_kvx_io *io;
    int first, n, n_posted;
    asked asks[ASKS_MAX];
} line;

static asked *in_line(line *l, int i) {
    return &l->asks[(l->first + i) % ASKS_MAX];
}

static int messages_of(const sp_kvx_want *w) {
    const uint32_t runs = 2 * (uint32_t)w->n_layers;
    return (int)((runs + w->runs - 1) / w->runs);
}

/* The runs of one message, those side by side as one place. */
static sp_status post_message(line *l, const sp_kvx_want *w, int32_t first, uint64_t tag) {
    const sp_kvx_server *s = l->c->server;
    const size_t bytes = sp_kvx_piece_bytes(&s->shape), len = (size_t)w->n_heads * bytes;
    const unsigned char *block =
        s->base + s->head.kv_offset + (size_t)w->block * s->shape.block_bytes;
    struct iovec v[SP_KVX_UCX_PLACES];
    int n = 0;
    const int32_t all = 2 * w->n_layers;
    const int32_t end = all - first < (int32_t)w->runs ? all : first + (int32_t)w->runs;
    for (run r = {w, first}; r.i < end; r.i++) {
        unsigned char *at = (unsigned char *)(uintptr_t)block + run_at(s, &r) * bytes;
        if (n && (unsigned char *)v[n - 1].iov_base + v[n - 1].iov_len == at) {
            v[n - 1].iov_len += len;
            continue;
        }
        if (n == SP_KVX_UCX_PLACES) return SP_E_PROTOCOL;
        v[n++] = (struct iovec){at, len};
    }
    sp_kvx_ucx_post(l->c->ucx, tag, v, n);
    return SP_OK;
}

/* The generation is looked at now, when its bytes begin to go. SP_AGAIN: there is no room yet. */
static sp_status begin(line *l, asked *a) {
    const sp_kvx_server *s = l->c->server;
    const sp_kvx_want *w = &a->want;
    a->fault = judge(s, w);
    if (!a->fault && !is_bounded(s, w)) return SP_E_PROTOCOL;
    int n = a->fault ? 0 : messages_of(w);
    if (n > SP_KVX_UCX_MESSAGES) return SP_E_PROTOCOL;
    if (n > sp_kvx_ucx_room(l->c->ucx)) return SP_AGAIN;
    const bool cut = n > 0 && sp_chaos_hit(SP_CHAOS_KVX_TRUNCATE);
    for (int i = 0; i < (cut ? n / 2 : n); i++)
        SP_TRY(post_message(l, w, i * (int32_t)w->runs, w->tag + (uint64_t)i));
    a->messages = n;
    return cut ? SP_E_CLOSED : SP_OK;
}

/* The oldest, once all of it has gone. SP_AGAIN: it has not. */
static sp_status answer(line *l) {
    asked *a = in_line(l, 0);
    for (; a->messages > 0; a->messages--) {
        sp_status st = sp_kvx_ucx_oldest(l->c->ucx);
        if (st != SP_OK) return st;
        sp_kvx_ucx_pop(l->c->ucx);
    }
    l->io->deadline_ns = a->deadline_ns;
    SP_TRY(give_first(l->c, l->io, &a->want, a->fault));
    if (!a->fault) SP_TRY(give_last(l->c, l->io, &a->want));
    l->first = (l->first + 1) % ASKS_MAX;
    l->n--;
    l->n_posted--;
    return SP_OK;
}

/* As far as it goes without waiting. */
static sp_status advance(line *l) {
    for (;;) {
        sp_status st = SP_OK;
        const int before = l->n_posted;
        while (st == SP_OK && l->n_posted > 0) st = answer(l);
        if (st != SP_OK && st != SP_AGAIN) return st;
        const int answered = before - l->n_posted;
        for (st = SP_OK; st == SP_OK && l->n_posted < l->n;) {
            st = begin(l, in_line(l, l->n_posted));
            l->n_posted += st == SP_OK;
        }
        if (st != SP_OK && st != SP_AGAIN) return st;
        if (l->n_posted == before - answered) return SP_OK; /* nothing new began */
    }
}

static sp_status hear(line *l) {
    heard m;
    l->io->deadline_ns = sp_now_ns() + sp_kvx_time_for(SP_KVX_CREDIT_BYTES);
    SP_TRY(sp_kvx_recv_bytes(l->io, &m, sizeof m));
    /* A lease is told of between reads: then nothing is in line. */
    if (m.notice.magic == SP_KVX_NOTICE_MAGIC && l->n == 0)
        return take_notice(l->c->server, l->io, &m.notice);
    if (m.want.magic != SP_KVX_WANT_MAGIC || m.want.runs == 0 || m.want.runs > INT32_MAX)
        return SP_E_PROTOCOL;
    *in_line(l, l->n++) = (asked){.want = m.want, .deadline_ns = l->io->deadline_ns};
    return SP_OK;
}

/* Moves UCX while anything is asked for, and sleeps on it and on the connection otherwise. */
static sp_status serve_by_ucx(conn *c, sp_kvx_io *io) {
    line *l = sp_try_alloc(sizeof *l);
    if (!l) return SP_E_NOMEM;
    l->c = c;
    l->io = io;
    sp_status st = SP_OK;
    while (st == SP_OK) {
        short came = 0;
        const short in = l->n < ASKS_MAX ? POLLIN : 0;
        io->deadline_ns = l->n ? in_line(l, 0)->deadline_ns : SP_NEVER;
        st = sp_kvx_ucx_step(c->ucx, io, in | POLLRDHUP, &came);
        if (st == SP_OK && came) st = came & in ? hear(l) : SP_E_CLOSED;
        if (st == SP_OK) st = advance(l);
    }
    sp_free(l);
    return st;
}

static void *serve_reader(void *arg) {
    conn *c = arg;
    /* Closing shuts the socket down, which ends any wait. */
    sp_kvx_io io = {c->fd, sp_now_ns() + SHAKE_NS, NULL};
    /* However it ends, it is the end of this reader alone. */
    if (meet(c, &io) == SP_OK) (void)(c->ucx ? serve_by_ucx(c, &io) : serve_by_tcp(c, &io));
    sp_kvx_ucx_close(c->ucx);
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

/* Without it readers are served over TCP: said once, here. */
static void offer_ucx(sp_kvx_server *s) {
    sp_err why = {0};
    if (sp_ucx_home_open(&s->home, &why) == SP_OK) return;
    s->home = NULL;
    sp_info("KV blocks are served by tcp, not ucx: %s", why.text);
}

sp_status sp_kvx_server_open(sp_kvx_server **out, const sp_kvx_config *c, int fd,
                             const sp_kvx_head *head, sp_err *err) {
    sp_kvx_server *s = sp_try_alloc(sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory to serve KV blocks");
    s->shape = c->shape;
    s->head = *head;
    s->on_lease = c->on_lease;
    s->lease_ctx = c->lease_ctx;
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
    if (st == SP_OK && c->serve_ucx) offer_ucx(s);
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
    sp_ucx_home_close(s->home);
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
