/* Reading a region of another node: asks go ahead of what comes, as far as the credit allows. */
#define SP_LOG "kvx"
#include "comm/address.h"
#include "comm/kvx_ucx.h"
#include "comm/secret.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_NS (2 * SP_NS_PER_S)
#define NOTICE_NS SP_NS_PER_S
#define BATCH_BYTES ((size_t)128 * 1024) /* received at once, then summed while it is near */
#define SUMS_MAX 8192                    /* of one ask */
#define UCX_TRIES 2                      /* reads that UCX may spoil before it is left alone */

typedef struct tcp_reader {
    sp_kvx k;
    int fd; /* -1: not connected */
    sp_kvx_shape shape;
    uint64_t sums[SUMS_MAX];
    /* by UCX: */
    sp_ucx_home *home;
    sp_kvx_ucx *ucx; /* of this connection; NULL: all goes over TCP */
    bool no_ucx;     /* it was tried in vain */
    int n_spoiled;
    uint64_t tag;            /* of the next message */
    uint64_t came[SUMS_MAX]; /* checksums of what has come */
} tcp_reader;

static const sp_kvx_ops tcp_ops, ucx_ops;

/* First UCX: then nothing writes to the destination any more. */
static void hang_up(tcp_reader *t) {
    sp_kvx_ucx_close(t->ucx);
    t->ucx = NULL;
    t->k.ops = &tcp_ops;
    if (t->fd >= 0) close(t->fd);
    t->fd = -1;
}

static void leave_ucx(tcp_reader *t, const char *why) {
    t->no_ucx = true;
    sp_info("KV blocks come by tcp, not ucx: %s", why);
}

static void close_tcp(sp_kvx *k) {
    tcp_reader *t = (tcp_reader *)k;
    hang_up(t);
    sp_ucx_home_close(t->home);
    sp_wipe(&t->k, sizeof t->k);
    sp_free(t);
}

/* ---- connecting ---- */

static sp_status connect_to(tcp_reader *t, const struct addrinfo *a, int64_t deadline_ns) {
    int e = 0;
    socklen_t n = sizeof e;
    t->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (t->fd < 0) return SP_E_IO;
    SP_TRY(sp_kvx_set_options(t->fd));
    sp_kvx_io io = {t->fd, deadline_ns, &t->k.cancelled};
    if (connect(t->fd, a->ai_addr, a->ai_addrlen) == 0) return SP_OK;
    if (errno != EINPROGRESS && errno != EINTR) return SP_E_CLOSED;
    SP_TRY(sp_kvx_wait(&io, POLLOUT));
    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &e, &n) != 0 || e != 0) return SP_E_CLOSED;
    return SP_OK;
}

static sp_status prove(tcp_reader *t, const sp_kvx_io *io) {
    sp_token token;
    sp_shake shake;
    uint8_t nonce[SP_SHAKE_NONCE];
    SP_TRY(sp_random_bytes(nonce, sizeof nonce, NULL));
    sp_kvx_token(&token, t->k.config.key);
    sp_status st =
        sp_shake_begin_guest(&shake, &token, SP_KVX_BUILD, SP_ROLE_PEER, "", nonce, NULL);
    if (st == SP_OK) {
        st = sp_kvx_shake_hands(io, &shake);
        sp_shake_wipe(&shake);
    }
    sp_wipe(&token, sizeof token);
    return st;
}

static sp_kvx_fault fault_of(sp_status st) {
    return st == SP_OK ? SP_KVX_OK : st == SP_E_TIMEOUT ? SP_KVX_TIMEOUT : SP_KVX_PEER;
}

/* Both have said that they would by UCX: now they see whether they can. */
static sp_status greet(tcp_reader *t, const sp_kvx_io *io) {
    sp_err why = {0};
    sp_status st = SP_OK;
    if (!t->home) st = sp_ucx_home_open(&t->home, &why);
    if (st == SP_OK) st = sp_kvx_ucx_open(&t->ucx, t->home, false, &why);
    if (st != SP_OK) t->ucx = NULL;
    SP_TRY(sp_kvx_ucx_greet(&t->ucx, io, false, &why));
    if (t->ucx)
        t->k.ops = &ucx_ops;
    else
        leave_ucx(t, why.text);
    return SP_OK;
}

/* After the connection is made: prove, ask who it is, and judge. */
static sp_kvx_fault get_to_know(tcp_reader *t, int64_t deadline_ns) {
    const sp_kvx_io io = {t->fd, deadline_ns, &t->k.cancelled};
    const sp_kvx_shape *own = &t->k.config.shape;
    sp_kvx_hello h = {
        .block_tokens = own->block_tokens, .head_dim = own->head_dim, .dtype = (int32_t)own->dtype};
    memcpy(h.incarnation, t->k.place.incarnation, sizeof h.incarnation);
    memcpy(h.identity, t->k.config.identity, sizeof h.identity);
    h.ucx = t->k.config.ucx && !t->no_ucx;
    sp_kvx_meet m;
    sp_kvx_head want;
    sp_status st = prove(t, &io);
    if (st == SP_OK) st = sp_kvx_send_bytes(&io, &h, sizeof h);
    if (st == SP_OK) st = sp_kvx_recv_bytes(&io, &m, sizeof m);
    if (st != SP_OK) return fault_of(st);
    if (m.fault) return m.fault == SP_KVX_IDENTITY ? SP_KVX_IDENTITY : SP_KVX_PEER;
    sp_kvx_head_shape(&m.head, &t->shape);
    if (sp_kvx_head_of(&want, &t->shape, NULL) != SP_OK) return SP_KVX_PEER;
    if (m.ucx > (uint32_t)h.ucx) return SP_KVX_PEER;
    if (h.ucx && !m.ucx) leave_ucx(t, "the exporter does not offer it");
    if (m.ucx) st = greet(t, &io);
    if (st != SP_OK) return fault_of(st);
    return sp_kvx_judge(&t->k, m.head.incarnation, m.head.identity, &t->shape);
}

static sp_kvx_fault try_item(tcp_reader *t, const sp_address *item, int64_t deadline_ns) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM,
                            .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST};
    struct addrinfo *found = NULL;
    if (getaddrinfo(item->host, item->port, &want, &found) != 0) return SP_KVX_PEER;
    sp_status st = connect_to(t, found, deadline_ns);
    freeaddrinfo(found);
    sp_kvx_fault f = st == SP_OK ? get_to_know(t, deadline_ns) : fault_of(st);
    if (f != SP_KVX_OK) hang_up(t);
    return f;
}

/* The first address that proves to be it. Each has a fair share of the time. */
static sp_kvx_fault connect_tcp(tcp_reader *t) {
    if (t->fd >= 0) return SP_KVX_OK;
    int left = 0;
    sp_address item;
    sp_slice list = sp_slice_of(t->k.place.tcp);
    if (sp_address_count(list, &left, NULL) != SP_OK) return SP_KVX_PEER;
    const int64_t deadline_ns = sp_now_ns() + CONNECT_NS;
    sp_kvx_fault f = SP_KVX_PEER;
    for (; sp_address_next(&list, &item, NULL) == SP_OK; left--) {
        int64_t now = sp_now_ns();
        f = try_item(t, &item, now + (deadline_ns - now) / left);
        if (f == SP_KVX_OK || f == SP_KVX_IDENTITY || atomic_load(&t->k.cancelled)) break;
    }
    return f;
}

/* ---- one ask, cut to the credit ---- */

/* Where an ask stands: its parts are some layers of all its heads, or some heads of one layer. */
typedef struct cut {
    const sp_kvx_ask *asks;
    int n, i; /* the ask at hand */
    int32_t layer, head;
    int part_of; /* the ask of the part given last */
} cut;

/* What no exporter can have does not go over the wire. */
static bool is_sane(const sp_kvx_ask *a) {
    return a->n_layers >= 1 && a->n_layers <= SP_KVX_SIDE_MAX && a->n_heads >= 1 &&
           a->n_heads <= SP_KVX_SIDE_MAX && (int64_t)a->n_layers * a->n_heads <= SP_KVX_SIDE_MAX;
}

static size_t ask_bytes(const sp_kvx *k, const sp_kvx_ask *a) {
    return (size_t)a->n_layers * 2 * (size_t)a->n_heads * k->piece_bytes;
}

/* Runs of one message: many where neither end has gaps between them. */
static int32_t runs_at_once(const tcp_reader *t, const sp_kvx_ask *a, const sp_kvx_want *w) {
    const size_t run = (size_t)w->n_heads * t->k.piece_bytes;
    const bool joined =
        w->n_heads == t->shape.n_heads && a->value_offset == run && a->layer_stride == 2 * run;
    return sp_kvx_ucx_at_once(run, 2 * w->n_layers, joined);
}

static bool next_part(const tcp_reader *t, cut *c, sp_kvx_want *out) {
    while (c->i < c->n && !is_sane(&c->asks[c->i])) c->i++;
    if (c->i >= c->n) return false;
    c->part_of = c->i;
    const sp_kvx_ask *a = &c->asks[c->i];
    size_t most = SP_KVX_CREDIT_BYTES / t->k.piece_bytes / 2;
    if (most > SUMS_MAX / 2) most = SUMS_MAX / 2;
    if (most < 1) most = 1;
    int32_t heads = (size_t)a->n_heads <= most ? a->n_heads : (int32_t)most;
    int32_t left = a->n_layers - c->layer;
    size_t fit = most / (size_t)(heads > 0 ? heads : 1);
    int32_t layers = heads < a->n_heads ? 1 : (size_t)left <= fit ? left : (int32_t)fit;
    if (heads > a->n_heads - c->head) heads = a->n_heads - c->head;
    *out = (sp_kvx_want){.magic = SP_KVX_WANT_MAGIC,
                         .block = a->block,
                         .generation = a->generation,
                         .name = a->name,
                         .layer_first = a->layer_first + c->layer,
                         .n_layers = layers,
                         .head_first = a->head_first + c->head,
                         .n_heads = heads};
    if (t->ucx) out->runs = (uint32_t)runs_at_once(t, a, out);
    c->head += heads;
    if (c->head < a->n_heads) return true;
    c->head = 0;
    c->layer += layers;
    if (c->layer < a->n_layers) return true;
    c->layer = 0;
    c->i++;
    return true;
}

static size_t part_bytes(const tcp_reader *t, const sp_kvx_want *w) {
    return (size_t)w->n_layers * 2 * (size_t)w->n_heads * t->k.piece_bytes;
}

/* ---- what comes ---- */

typedef struct incoming {
    const sp_kvx_ask *a;
    const sp_kvx_want *w;
    uint64_t seed;
    int32_t heads_at_once, runs_at_once;
} incoming;

static unsigned char *place_of(const tcp_reader *t, const incoming *in, int32_t run, int32_t head) {
    int32_t layer = in->w->layer_first - in->a->layer_first + run / 2;
    return in->a->to + (size_t)layer * in->a->layer_stride + (run & 1 ? in->a->value_offset : 0) +
           (size_t)(in->w->head_first - in->a->head_first + head) * t->k.piece_bytes;
}

static bool sum_up(const tcp_reader *t, const incoming *in, int32_t run, int32_t head, int32_t n) {
    const sp_kvx_want *w = in->w;
    bool right = true;
    for (int32_t i = 0; i < n; i++)
        right &= sp_kvx_sum(in->seed, w->layer_first + run / 2, run & 1, w->head_first + head + i,
                            place_of(t, in, run, head + i), t->k.piece_bytes) ==
                 t->sums[(size_t)run * (size_t)w->n_heads + (size_t)(head + i)];
    return right;
}

/* A few whole runs at once, or some heads of one. */
static sp_status take_runs(tcp_reader *t, const sp_kvx_io *io, const incoming *in, int32_t first,
                           int32_t n, bool *right) {
    struct iovec v[SP_KVX_IOV_MAX];
    const size_t bytes = t->k.piece_bytes;
    const int32_t heads = in->w->n_heads;
    if (in->heads_at_once < heads) {
        for (int32_t at = 0; at < heads; at += in->heads_at_once) {
            int32_t k = heads - at < in->heads_at_once ? heads - at : in->heads_at_once;
            SP_TRY(sp_kvx_recv_bytes(io, place_of(t, in, first, at), (size_t)k * bytes));
            *right &= sum_up(t, in, first, at, k);
        }
        return SP_OK;
    }
    for (int32_t i = 0; i < n; i++)
        v[i] = (struct iovec){place_of(t, in, first + i, 0), (size_t)heads * bytes};
    SP_TRY(sp_kvx_recv(io, v, n));
    for (int32_t i = 0; i < n; i++) *right &= sum_up(t, in, first + i, 0, heads);
    return SP_OK;
}

static incoming plan_incoming(const tcp_reader *t, const sp_kvx_ask *a, const sp_kvx_want *w) {
    incoming in = {a, w, sp_kvx_seed_block(t->k.seed_base, w->block, w->generation, w->name), 1, 1};
    size_t run = (size_t)w->n_heads * t->k.piece_bytes;
    size_t pieces = BATCH_BYTES / t->k.piece_bytes;
    in.heads_at_once = pieces < 1 ? 1 : pieces < (size_t)w->n_heads ? (int32_t)pieces : w->n_heads;
    if (in.heads_at_once == w->n_heads) {
        size_t runs = BATCH_BYTES / run;
        in.runs_at_once = runs < 1 ? 1 : runs < SP_KVX_IOV_MAX ? (int32_t)runs : SP_KVX_IOV_MAX;
    }
    return in;
}

/* What is said before the pieces, or instead of them (`fault`). */
static sp_status take_first(tcp_reader *t, const sp_kvx_io *io, const sp_kvx_want *w,
                            sp_kvx_fault *fault) {
    sp_kvx_give g;
    SP_TRY(sp_kvx_recv_bytes(io, &g, sizeof g));
    if (g.magic != SP_KVX_GIVE_MAGIC || g.fault >= SP_KVX_FAULT_COUNT) return SP_E_PROTOCOL;
    if (g.fault) {
        *fault = (sp_kvx_fault)g.fault;
        return SP_OK;
    }
    if (g.n_pieces != 2 * (uint32_t)w->n_layers * (uint32_t)w->n_heads) return SP_E_PROTOCOL;
    return sp_kvx_recv_bytes(io, t->sums, g.n_pieces * sizeof *t->sums);
}

/* And after them. */
static sp_status take_last(const sp_kvx_io *io, uint32_t *generation) {
    sp_kvx_last last;
    SP_TRY(sp_kvx_recv_bytes(io, &last, sizeof last));
    if (last.magic != SP_KVX_GIVE_MAGIC) return SP_E_PROTOCOL;
    *generation = last.generation;
    return SP_OK;
}

static void settle(const tcp_reader *t, const incoming *in, uint32_t generation, bool right,
                   sp_kvx_fault *fault) {
    const sp_kvx_want *w = in->w;
    if (sp_chaos_hit(SP_CHAOS_KVX_CORRUPT))
        right &= sp_kvx_spoiled(&t->k, in->seed, w->layer_first, w->head_first,
                                place_of(t, in, 0, 0), t->sums[0]);
    if (generation != w->generation || sp_chaos_hit(SP_CHAOS_KVX_STALE))
        *fault = SP_KVX_STALE;
    else if (!right)
        *fault = SP_KVX_CHECKSUM;
}

/* The answer to one part. Not SP_OK: the connection is of no more use. */
static sp_status take_part(tcp_reader *t, const sp_kvx_io *io, const sp_kvx_ask *a,
                           const sp_kvx_want *w, sp_kvx_fault *fault) {
    sp_kvx_fault said = SP_KVX_OK;
    uint32_t generation;
    bool right = true;
    SP_TRY(take_first(t, io, w, &said));
    if (said) {
        *fault = said;
        return SP_OK;
    }
    const int32_t runs = 2 * w->n_layers;
    const incoming in = plan_incoming(t, a, w);
    for (int32_t r = 0; r < runs; r += in.runs_at_once) {
        int32_t n = runs - r < in.runs_at_once ? runs - r : in.runs_at_once;
        SP_TRY(take_runs(t, io, &in, r, n, &right));
    }
    SP_TRY(take_last(io, &generation));
    settle(t, &in, generation, right, fault);
    return SP_OK;
}

/* ---- what comes by UCX ---- */

static int messages_of(const sp_kvx_want *w, int32_t runs) {
    const int32_t each = w->runs > 0 ? (int32_t)w->runs : 1;
    return (int)((runs + each - 1) / each);
}

/* Receives into the destination, before it is asked for. */
static void expect(tcp_reader *t, const sp_kvx_ask *a, sp_kvx_want *w) {
    const incoming in = plan_incoming(t, a, w);
    const size_t len = (size_t)w->n_heads * t->k.piece_bytes;
    const int32_t runs = 2 * w->n_layers;
    w->tag = t->tag;
    for (int32_t r = 0; r < runs;) {
        struct iovec v[SP_KVX_UCX_PLACES];
        int n = 0;
        for (const int32_t end = r + (int32_t)w->runs; r < end && r < runs; r++) {
            unsigned char *at = place_of(t, &in, r, 0);
            if (n && (unsigned char *)v[n - 1].iov_base + v[n - 1].iov_len == at)
                v[n - 1].iov_len += len;
            else
                v[n++] = (struct iovec){at, len};
        }
        sp_kvx_ucx_post(t->ucx, t->tag++, v, n);
    }
}

static void sum_into(tcp_reader *t, const incoming *in, int32_t run, int32_t n) {
    const sp_kvx_want *w = in->w;
    uint64_t *to = t->came + (size_t)run * (size_t)w->n_heads;
    for (int32_t i = run; i < run + n; i++)
        for (int32_t h = 0; h < w->n_heads; h++)
            *to++ = sp_kvx_sum(in->seed, w->layer_first + i / 2, i & 1, w->head_first + h,
                               place_of(t, in, i, h), t->k.piece_bytes);
}

/* Sums up what has come, message by message while they are near; `*got` runs of all. */
static sp_status take_messages(tcp_reader *t, const incoming *in, int32_t *got) {
    const int32_t runs = 2 * in->w->n_layers, each = (int32_t)in->w->runs;
    while (*got < runs) {
        const int32_t n = runs - *got < each ? runs - *got : each;
        SP_TRY(sp_kvx_ucx_oldest(t->ucx));
        sp_kvx_ucx_pop(t->ucx);
        sum_into(t, in, *got, n);
        *got += n;
    }
    return SP_OK;
}

/* The same answer as take_part(): bytes by UCX, the rest over TCP, in whatever order. */
static sp_status take_part_ucx(tcp_reader *t, const sp_kvx_io *io, const sp_kvx_ask *a,
                               const sp_kvx_want *w, sp_kvx_fault *fault) {
    const incoming in = plan_incoming(t, a, w);
    const int32_t runs = 2 * w->n_layers;
    sp_kvx_fault said = SP_KVX_OK;
    int32_t got = 0;
    uint32_t generation = 0;
    for (bool told = false;;) {
        short came;
        sp_status st = take_messages(t, &in, &got);
        if (st != SP_OK && st != SP_AGAIN) return st;
        if (told && got == runs) break;
        SP_TRY(sp_kvx_ucx_step(t->ucx, io, told ? 0 : POLLIN | POLLRDHUP, &came));
        if (!came) continue;
        if (told) return SP_E_CLOSED;
        SP_TRY(take_first(t, io, w, &said));
        if (said) break;
        SP_TRY(take_last(io, &generation));
        told = true;
    }
    if (said) {
        *fault = said;
        return got ? SP_E_PROTOCOL : sp_kvx_ucx_withdraw(t->ucx, messages_of(w, runs));
    }
    const size_t n = (size_t)runs * (size_t)w->n_heads * sizeof *t->sums;
    settle(t, &in, generation, memcmp(t->came, t->sums, n) == 0, fault);
    return SP_OK;
}

/* ---- a read ---- */

/* Asks as far ahead as the credit goes; `ahead` counts bytes asked for and not yet here. */
static sp_status ask_ahead(tcp_reader *t, const sp_kvx_io *io, cut *asking, size_t *ahead) {
    sp_kvx_want w;
    for (;;) {
        cut after = *asking;
        if (!next_part(t, &after, &w)) return SP_OK;
        size_t bytes = part_bytes(t, &w);
        if (*ahead > 0 && *ahead + bytes > SP_KVX_CREDIT_BYTES) return SP_OK;
        if (t->ucx && messages_of(&w, 2 * w.n_layers) > sp_kvx_ucx_room(t->ucx)) return SP_OK;
        if (t->ucx) expect(t, &asking->asks[after.part_of], &w);
        w.name ^= sp_chaos_hit(SP_CHAOS_KVX_FOREIGN);
        SP_TRY(t->ucx ? sp_kvx_ucx_tell(t->ucx, io, &w, sizeof w)
                      : sp_kvx_send_bytes(io, &w, sizeof w));
        *ahead += bytes;
        *asking = after;
    }
}

/* `*done`: the asks before it have been answered to the end. */
static sp_status read_all(tcp_reader *t, const sp_kvx_io *io, const sp_kvx_ask *asks, int n,
                          sp_kvx_fault *faults, int *done) {
    cut asking = {.asks = asks, .n = n}, taking = asking;
    size_t ahead = 0;
    sp_kvx_want w;
    for (;;) {
        SP_TRY(ask_ahead(t, io, &asking, &ahead));
        if (!next_part(t, &taking, &w)) break;
        SP_TRY((t->ucx ? take_part_ucx : take_part)(t, io, &asks[taking.part_of], &w,
                                                    &faults[taking.part_of]));
        ahead -= part_bytes(t, &w);
        *done = taking.i;
    }
    *done = n;
    return SP_OK;
}

/* A peer that is there and lost again and again is one to whom UCX leads only at first sight. */
static void lose(tcp_reader *t) {
    const bool by_ucx = t->ucx != NULL;
    hang_up(t);
    if (by_ucx && !atomic_load(&t->k.cancelled) && ++t->n_spoiled == UCX_TRIES)
        leave_ucx(t, "it has failed twice");
}

static sp_kvx_fault reach(tcp_reader *t) {
    if (!sp_chaos_hit(SP_CHAOS_KVX_PEER_GONE)) return connect_tcp(t);
    hang_up(t);
    return SP_KVX_PEER;
}

static void read_tcp(sp_kvx *k, const sp_kvx_ask *asks, int n, sp_kvx_fault *faults) {
    tcp_reader *t = (tcp_reader *)k;
    size_t bytes = 0;
    int done = 0;
    sp_kvx_fault f = reach(t);
    for (int i = 0; i < n; i++) {
        const bool sane = is_sane(&asks[i]);
        faults[i] = sane ? SP_KVX_OK : SP_KVX_RANGE;
        if (sane) bytes += ask_bytes(k, &asks[i]);
    }
    if (f == SP_KVX_OK) {
        const sp_kvx_io io = {t->fd, sp_now_ns() + sp_kvx_time_for(bytes), &k->cancelled};
        f = fault_of(read_all(t, &io, asks, n, faults, &done));
        if (f == SP_KVX_OK)
            t->n_spoiled = 0;
        else
            lose(t); /* what is still on its way belongs to nobody */
    }
    /* An ask that was not answered to the end has not been read, whatever has come of it. */
    for (int i = done; f != SP_KVX_OK && i < n; i++) faults[i] = f;
}

static sp_kvx_fault lease_tcp(sp_kvx *k, uint64_t lease, bool renew) {
    tcp_reader *t = (tcp_reader *)k;
    const sp_kvx_notice n = {.magic = SP_KVX_NOTICE_MAGIC, .renew = renew, .lease = lease};
    sp_kvx_give g;
    sp_kvx_fault f = connect_tcp(t);
    if (f != SP_KVX_OK) return f;
    const sp_kvx_io io = {t->fd, sp_now_ns() + NOTICE_NS, &k->cancelled};
    sp_status st = sp_kvx_send_bytes(&io, &n, sizeof n);
    if (st == SP_OK) st = sp_kvx_recv_bytes(&io, &g, sizeof g);
    if (st == SP_OK &&
        (g.magic != SP_KVX_GIVE_MAGIC || g.n_pieces || g.fault >= SP_KVX_FAULT_COUNT))
        st = SP_E_PROTOCOL;
    if (st == SP_OK) return (sp_kvx_fault)g.fault;
    hang_up(t);
    return fault_of(st);
}

static const sp_kvx_ops tcp_ops = {
    .name = "tcp", .close = close_tcp, .read = read_tcp, .lease = lease_tcp};
static const sp_kvx_ops ucx_ops = {
    .name = "ucx", .close = close_tcp, .read = read_tcp, .lease = lease_tcp};

sp_status sp_kvx_open_tcp(sp_kvx **out, const sp_kvx *base, sp_err *err) {
    tcp_reader *t = sp_try_alloc(sizeof *t);
    if (!t) return SP_FAIL(err, SP_E_NOMEM, "no memory for a reader of KV blocks");
    memcpy(&t->k, base, sizeof t->k);
    t->k.ops = &tcp_ops;
    t->fd = -1;
    *out = &t->k;
    return SP_OK;
}
