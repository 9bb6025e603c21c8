#include "comm/kvx_ucx.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define MESSAGE_BYTES ((size_t)256 * 1024) /* below it messages are a cost, above it sums wait */
#define ALONE_BYTES ((size_t)16 * 1024)    /* such a run is worth a message of its own */
#define FEW_BYTES ((size_t)64 * 1024)

int32_t sp_kvx_ucx_at_once(size_t run_bytes, int32_t runs, bool joined) {
    size_t n =
        joined ? MESSAGE_BYTES / run_bytes : (run_bytes >= ALONE_BYTES ? 1 : FEW_BYTES / run_bytes);
    if (!joined && n > SP_KVX_UCX_PLACES) n = SP_KVX_UCX_PLACES;
    if (n > (size_t)runs) n = (size_t)runs;
    return n < 1 ? 1 : (int32_t)n;
}

#ifndef SP_HAVE_UCX

/* No end can be opened, so that nothing below is reached but the offer that says so. */
sp_status sp_kvx_ucx_open(sp_kvx_ucx **out, sp_ucx_home *home, bool exporter, sp_err *err) {
    (void)out, (void)home, (void)exporter;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "this build has no ucx");
}

void sp_kvx_ucx_close(sp_kvx_ucx *x) {
    (void)x;
}

int sp_kvx_ucx_room(const sp_kvx_ucx *x) {
    (void)x;
    return 0;
}

int sp_kvx_ucx_count(const sp_kvx_ucx *x) {
    (void)x;
    return 0;
}

void sp_kvx_ucx_post(sp_kvx_ucx *x, uint64_t tag, const struct iovec *v, int n) {
    (void)x, (void)tag, (void)v, (void)n;
}

sp_status sp_kvx_ucx_oldest(const sp_kvx_ucx *x) {
    (void)x;
    return SP_E_CLOSED;
}

void sp_kvx_ucx_pop(sp_kvx_ucx *x) {
    (void)x;
}

sp_status sp_kvx_ucx_withdraw(sp_kvx_ucx *x, int n) {
    (void)x, (void)n;
    return SP_E_CLOSED;
}

sp_status sp_kvx_ucx_step(sp_kvx_ucx *x, const sp_kvx_io *io, short events, short *came) {
    (void)x, (void)io, (void)events, (void)came;
    return SP_E_CLOSED;
}

sp_status sp_kvx_ucx_tell(sp_kvx_ucx *x, const sp_kvx_io *io, const void *p, size_t n) {
    (void)x, (void)io, (void)p, (void)n;
    return SP_E_CLOSED;
}

static const void *address_of(const sp_kvx_ucx *x, size_t *bytes, const char **version) {
    (void)x;
    *bytes = 0;
    *version = "";
    return NULL;
}

static sp_status meet(sp_kvx_ucx *x, const void *address, size_t bytes, sp_err *err) {
    (void)address, (void)bytes;
    return sp_kvx_ucx_open(&x, NULL, false, err);
}

#else

#include <errno.h>
#include <sys/socket.h>

#define LOOK_NS (100 * SP_NS_PER_MS)
#define ONCE_NS (10 * SP_NS_PER_S) /* when nobody asks for a stop */
#define DRAIN_NS (20 * SP_NS_PER_MS)
#define ALL_BITS (~UINT64_C(0))

typedef struct message {
    sp_ucx_req req;
    size_t bytes;
    struct iovec places[SP_KVX_UCX_PLACES];
} message;

struct sp_kvx_ucx {
    sp_ucx *ucx;
    sp_ucx_peer_link *peer; /* NULL: not met */
    bool exporter;
    uint32_t first, n; /* of the ring */
    message ring[SP_KVX_UCX_MESSAGES];
};

/* ---- an end ---- */

sp_status sp_kvx_ucx_open(sp_kvx_ucx **out, sp_ucx_home *home, bool exporter, sp_err *err) {
    sp_kvx_ucx *x = sp_try_alloc(sizeof *x);
    if (!x) return SP_FAIL(err, SP_E_NOMEM, "no memory for KV blocks by ucx");
    sp_status st = sp_ucx_open_at(&x->ucx, home, err);
    if (st != SP_OK) {
        sp_free(x);
        return st;
    }
    x->exporter = exporter;
    *out = x;
    return SP_OK;
}

static message *at(const sp_kvx_ucx *x, uint32_t i) {
    return (message *)(uintptr_t)&x->ring[(x->first + i) % SP_KVX_UCX_MESSAGES];
}

static bool any_open(const sp_kvx_ucx *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (at(x, i)->req.state == SP_UCX_OPEN) return true;
    return false;
}

static void drain(sp_kvx_ucx *x, uint32_t n) {
    const int64_t until = sp_now_ns() + DRAIN_NS;
    while (any_open(x, n) && sp_now_ns() < until)
        if (!sp_ucx_progress(x->ucx)) sp_ucx_sleep(x->ucx, -1, SP_NS_PER_MS);
}

/* A receive that has begun cannot be cancelled, and a send may be read by the peer: both end with the
 * connection. What did not end even so goes with the worker, and only then the ring. */
void sp_kvx_ucx_close(sp_kvx_ucx *x) {
    if (!x) return;
    for (uint32_t i = 0; i < x->n && !x->exporter; i++) sp_ucx_cancel(x->ucx, &at(x, i)->req);
    if (x->peer) sp_ucx_peer_cut(x->ucx, x->peer);
    drain(x, x->n);
    sp_ucx_close(x->ucx);
    sp_free(x);
}

static const void *address_of(const sp_kvx_ucx *x, size_t *bytes, const char **version) {
    *version = sp_ucx_version(x->ucx);
    return sp_ucx_address(x->ucx, bytes);
}

static sp_status meet(sp_kvx_ucx *x, const void *address, size_t bytes, sp_err *err) {
    return sp_ucx_peer_take(&x->peer, x->ucx, address, bytes, err);
}

/* ---- the ring ---- */

int sp_kvx_ucx_room(const sp_kvx_ucx *x) {
    return SP_KVX_UCX_MESSAGES - (int)x->n;
}

int sp_kvx_ucx_count(const sp_kvx_ucx *x) {
    return (int)x->n;
}

void sp_kvx_ucx_post(sp_kvx_ucx *x, uint64_t tag, const struct iovec *v, int n) {
    SP_ASSERT(x->n < SP_KVX_UCX_MESSAGES && n >= 1 && n <= SP_KVX_UCX_PLACES);
    message *m = at(x, x->n++);
    memcpy(m->places, v, (size_t)n * sizeof *v);
    m->bytes = 0;
    for (int i = 0; i < n; i++) m->bytes += v[i].iov_len;
    if (x->exporter)
        sp_ucx_send_all(x->ucx, x->peer, &m->req, tag, m->places, (size_t)n);
    else
        sp_ucx_recv_all(x->ucx, &m->req, tag, ALL_BITS, m->places, (size_t)n);
}

sp_status sp_kvx_ucx_oldest(const sp_kvx_ucx *x) {
    SP_ASSERT(x->n > 0);
    const message *m = at(x, 0);
    switch (m->req.state) {
    case SP_UCX_OPEN:
        return SP_AGAIN;
    case SP_UCX_DONE:
        return x->exporter || m->req.bytes == m->bytes ? SP_OK : SP_E_PROTOCOL;
    case SP_UCX_TOOBIG:
        return SP_E_PROTOCOL;
    default:
        return SP_E_CLOSED;
    }
}

void sp_kvx_ucx_pop(sp_kvx_ucx *x) {
    SP_ASSERT(x->n > 0 && at(x, 0)->req.state != SP_UCX_OPEN);
    x->first = (x->first + 1) % SP_KVX_UCX_MESSAGES;
    x->n--;
}

sp_status sp_kvx_ucx_withdraw(sp_kvx_ucx *x, int n) {
    SP_ASSERT(n >= 0 && (uint32_t)n <= x->n);
    for (uint32_t i = 0; i < (uint32_t)n; i++) sp_ucx_cancel(x->ucx, &at(x, i)->req);
    drain(x, (uint32_t)n);
    if (any_open(x, (uint32_t)n)) return SP_E_CLOSED;
    for (int i = 0; i < n; i++) sp_kvx_ucx_pop(x);
    return SP_OK;
}

/* ---- moving ---- */

sp_status sp_kvx_ucx_step(sp_kvx_ucx *x, const sp_kvx_io *io, short events, short *came) {
    *came = 0;
    if (io->stop && atomic_load_explicit(io->stop, memory_order_relaxed)) return SP_E_CANCELED;
    const int64_t left = io->deadline_ns - sp_now_ns();
    if (left <= 0) return SP_E_TIMEOUT;
    if (sp_ucx_progress(x->ucx)) return SP_OK;
    if (x->peer && sp_ucx_peer_lost(x->peer)) return SP_E_CLOSED;
    const int64_t most = io->stop ? LOOK_NS : ONCE_NS;
    *came = sp_ucx_sleep_on(x->ucx, io->fd, events, left < most ? left : most);
    return SP_OK;
}

sp_status sp_kvx_ucx_tell(sp_kvx_ucx *x, const sp_kvx_io *io, const void *p, size_t n) {
    const char *bytes = p;
    short came;
    while (n > 0) {
        ssize_t k = send(io->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k > 0) {
            bytes += k;
            n -= (size_t)k;
        } else if (k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            SP_TRY(sp_kvx_ucx_step(x, io, POLLOUT, &came));
        } else if (k == 0 || errno != EINTR) {
            return SP_E_CLOSED;
        }
    }
    return SP_OK;
}

#endif

/* ---- greeting ---- */

#define SHORT_BYTES ((size_t)64)
#define LONG_BYTES ((size_t)256 * 1024)
#define TEST_NS SP_NS_PER_S
#define TEST_TAG UINT64_C(0x7465737400000000)

typedef struct greeting {
    sp_kvx_ucx *x; /* NULL: this side cannot */
    const sp_kvx_io *io;
    bool both; /* offered: a verdict follows */
    bool met;  /* and this side has connected */
    unsigned char *bytes;
} greeting;

static sp_status say_offer(greeting *g) {
    sp_kvx_ucx_offer o = {.magic = SP_KVX_OFFER_MAGIC};
    size_t bytes = 0;
    const char *version = "";
    const void *address = g->x ? address_of(g->x, &bytes, &version) : NULL;
    if (bytes > SP_UCX_ADDRESS_MAX) bytes = 0;
    o.bytes = (uint32_t)bytes;
    g->both = bytes > 0;
    strncpy(o.version, version, sizeof o.version - 1);
    SP_TRY(sp_kvx_send_bytes(g->io, &o, sizeof o));
    return bytes ? sp_kvx_send_bytes(g->io, address, bytes) : SP_OK;
}

static sp_status hear_offer(greeting *g, sp_err *why) {
    sp_kvx_ucx_offer o;
    SP_TRY(sp_kvx_recv_bytes(g->io, &o, sizeof o));
    if (o.magic != SP_KVX_OFFER_MAGIC || o.bytes > SP_UCX_ADDRESS_MAX) return SP_E_PROTOCOL;
    if (o.bytes == 0) {
        if (g->x) (void)SP_FAIL(why, SP_E_UNSUPPORTED, "the other side has no ucx");
        g->both = false;
        return SP_OK;
    }
    void *address = sp_try_alloc(o.bytes);
    if (!address) return SP_E_NOMEM;
    sp_status st = sp_kvx_recv_bytes(g->io, address, o.bytes);
    size_t own_bytes;
    const char *own = "";
    if (st == SP_OK && g->both) {
        (void)address_of(g->x, &own_bytes, &own);
        /* What releases say to each other is nowhere promised to be the same. */
        if (strncmp(o.version, own, sizeof o.version - 1) != 0)
            (void)SP_FAIL(why, SP_E_UNSUPPORTED, "ucx %.20s there and %s here", o.version, own);
        else
            g->met = meet(g->x, address, o.bytes, why) == SP_OK;
    }
    sp_free(address);
    return st;
}

static unsigned char *take_test_bytes(void) {
    void *p = mmap(NULL, SHORT_BYTES + LONG_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static unsigned char test_byte(size_t i) {
    return (unsigned char)(i * 31 + (i >> 8) + 7);
}

static void post_tests(greeting *g) {
    struct iovec v[] = {{g->bytes, SHORT_BYTES}, {g->bytes + SHORT_BYTES, LONG_BYTES}};
    sp_kvx_ucx_post(g->x, TEST_TAG, &v[0], 1);
    sp_kvx_ucx_post(g->x, TEST_TAG + 1, &v[1], 1);
}

/* Until both messages are through. Errors: as of a step. */
static sp_status finish_tests(greeting *g, const sp_kvx_io *io) {
    while (sp_kvx_ucx_count(g->x) > 0) {
        short came = 0;
        sp_status st = sp_kvx_ucx_oldest(g->x);
        if (st == SP_OK)
            sp_kvx_ucx_pop(g->x);
        else if (st != SP_AGAIN)
            return st;
        else
            SP_TRY(sp_kvx_ucx_step(g->x, io, POLLRDHUP, &came));
        if (st == SP_AGAIN && came) return SP_E_CLOSED;
    }
    return SP_OK;
}

static bool tests_came(greeting *g, sp_err *why) {
    sp_kvx_io io = *g->io;
    const int64_t until = sp_now_ns() + TEST_NS;
    if (io.deadline_ns > until) io.deadline_ns = until;
    post_tests(g);
    sp_status st = finish_tests(g, &io);
    size_t wrong = 0;
    for (size_t i = 0; st == SP_OK && i < SHORT_BYTES + LONG_BYTES; i++)
        wrong += g->bytes[i] != test_byte(i);
    if (st == SP_OK && wrong == 0) return true;
    (void)SP_FAIL(why, SP_E_DEVICE, "nothing comes by ucx from there: %s",
                  wrong ? "other bytes" : sp_status_name(st));
    return false;
}

static sp_status judge(greeting *g, sp_err *why, bool *works) {
    *works = g->met && g->bytes && tests_came(g, why);
    sp_kvx_ucx_verdict v = {SP_KVX_VERDICT_MAGIC, *works};
    return sp_kvx_send_bytes(g->io, &v, sizeof v);
}

static sp_status be_judged(greeting *g, sp_err *why, bool *works) {
    sp_kvx_ucx_verdict v;
    const bool tried = g->met && g->bytes;
    for (size_t i = 0; tried && i < SHORT_BYTES + LONG_BYTES; i++) g->bytes[i] = test_byte(i);
    /* As the blocks are: whatever cannot send from there is found out now. */
    if (tried && mprotect(g->bytes, SHORT_BYTES + LONG_BYTES, PROT_READ) == 0) post_tests(g);
    /* Both messages need this side to go on moving until the reader has spoken. */
    for (short came = 0; tried && !came;) {
        sp_status st = sp_kvx_ucx_step(g->x, g->io, POLLIN | POLLRDHUP, &came);
        if (st == SP_E_CLOSED) break; /* by UCX alone: the verdict will be no */
        SP_TRY(st);
    }
    SP_TRY(sp_kvx_recv_bytes(g->io, &v, sizeof v));
    if (v.magic != SP_KVX_VERDICT_MAGIC) return SP_E_PROTOCOL;
    *works = tried && v.works && finish_tests(g, g->io) == SP_OK;
    if (v.works && !*works) return SP_E_CLOSED; /* the reader believes in what is not there */
    if (!*works && tried) (void)SP_FAIL(why, SP_E_DEVICE, "the reader gets nothing by ucx");
    return SP_OK;
}

sp_status sp_kvx_ucx_greet(sp_kvx_ucx **x, const sp_kvx_io *io, bool exporter, sp_err *why) {
    greeting g = {.x = *x, .io = io};
    bool works = false;
    sp_status st = say_offer(&g);
    if (st == SP_OK) st = hear_offer(&g, why);
    if (st == SP_OK && g.both) {
        g.bytes = take_test_bytes();
        st = exporter ? be_judged(&g, why, &works) : judge(&g, why, &works);
    }
    if (st == SP_OK && !works && why && !why->text[0])
        (void)SP_FAIL(why, SP_E_UNSUPPORTED, "one side cannot connect by ucx");
    if (st != SP_OK || !works) {
        sp_kvx_ucx_close(*x);
        *x = NULL;
    }
    /* Only now: until the end is closed a message may be open. */
    if (g.bytes) munmap(g.bytes, SHORT_BYTES + LONG_BYTES);
    return st;
}
