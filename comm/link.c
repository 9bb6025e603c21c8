#include "comm/link.h"

#include "comm/frame.h"
#include "comm/link_fan.h"
#include "comm/ring.h"
#include "comm/stream.h"
#include "runtime/base/mem.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* What differs between the two ways to carry frames. */
typedef struct link_kind {
    /* `h` is complete; its sequence is used up only when this succeeds. */
    sp_status (*send)(sp_link *l, const sp_frame_header *h, const sp_piece *pieces, int n,
                      int64_t deadline_ns, sp_err *err);
    /* The next frame, whose header has passed sp_frame_check(). */
    sp_status (*recv)(sp_link *l, sp_frame_header *h, const void **payload, int64_t deadline_ns,
                      sp_err *err);
    void (*give_back)(sp_link *l);
    void (*wake)(sp_link *l);
    void (*close)(sp_link *l);
} link_kind;

struct sp_link {
    const link_kind *kind;
    sp_ring *ring;     /* of these two */
    sp_stream *stream; /* exactly one is there */
    /* The receiving thread learns the id (FORM) while the sending one may be building a header. */
    pthread_mutex_t id_lock;
    sp_link_id id;
    uint64_t sent;     /* sequence of the last frame sent; the sending thread's */
    uint64_t received; /* the same of the receiving thread */
    size_t lent_bytes; /* of the ring, by the last receive */
    bool broken;       /* a rule was broken: nothing after it can be trusted */
    _Atomic uint64_t n_stale;
};

/* Frames start at multiples of 8 in a ring, so that payloads do. */
static size_t ring_bytes(uint32_t length) {
    return sizeof(sp_frame_header) + (((size_t)length + 7) & ~(size_t)7);
}

static sp_status ring_send(sp_link *l, const sp_frame_header *h, const sp_piece *pieces, int n,
                           int64_t deadline_ns, sp_err *err) {
    size_t bytes = ring_bytes(h->length);
    void *at;
    SP_TRY(sp_ring_reserve(l->ring, bytes, deadline_ns, &at, err));
    memcpy(at, h, sizeof *h);
    unsigned char *end = sp_frame_gather((unsigned char *)at + sizeof *h, pieces, n);
    memset(end, 0, bytes - sizeof *h - h->length);
    sp_ring_publish(l->ring, bytes);
    return SP_OK;
}

static sp_status ring_recv(sp_link *l, sp_frame_header *h, const void **payload,
                           int64_t deadline_ns, sp_err *err) {
    const void *at;
    size_t ready;
    SP_TRY(sp_ring_peek(l->ring, deadline_ns, &at, &ready, err));
    if (ready < sizeof *h)
        return SP_FAIL(err, SP_E_PROTOCOL, "a frame of %zu bytes with only %zu in the ring",
                       sizeof *h, ready);
    /* Our copy: the peer cannot change it between the check and the use. */
    memcpy(h, at, sizeof *h);
    SP_TRY(sp_frame_check(h, l->received + 1, err));
    if (ring_bytes(h->length) > ready)
        return SP_FAIL(err, SP_E_PROTOCOL, "a frame of %zu bytes with only %zu in the ring",
                       ring_bytes(h->length), ready);
    l->lent_bytes = ring_bytes(h->length);
    *payload = (const unsigned char *)at + sizeof *h;
    return SP_OK;
}

static void ring_give_back(sp_link *l) {
    if (l->lent_bytes) sp_ring_consume(l->ring, l->lent_bytes);
    l->lent_bytes = 0;
}

static void ring_wake(sp_link *l) {
    sp_ring_wake(l->ring);
}

static void ring_close(sp_link *l) {
    sp_ring_close(l->ring);
}

static sp_status stream_send(sp_link *l, const sp_frame_header *h, const sp_piece *pieces, int n,
                             int64_t deadline_ns, sp_err *err) {
    return sp_stream_send(l->stream, h, pieces, n, deadline_ns, err);
}

static sp_status stream_recv(sp_link *l, sp_frame_header *h, const void **payload,
                             int64_t deadline_ns, sp_err *err) {
    return sp_stream_recv(l->stream, l->received + 1, h, payload, deadline_ns, err);
}

/* A stream's next receive overwrites its buffer by itself: no peer waits for that room. */
static void stream_give_back(sp_link *l) {
    (void)l;
}

static void stream_wake(sp_link *l) {
    sp_stream_wake(l->stream);
}

static void stream_close(sp_link *l) {
    sp_stream_close(l->stream);
}

static const link_kind RING = {ring_send, ring_recv, ring_give_back, ring_wake, ring_close};
static const link_kind STREAM = {stream_send, stream_recv, stream_give_back, stream_wake,
                                 stream_close};

static sp_link *new_link(const link_kind *kind) {
    sp_link *l = sp_alloc(sizeof *l);
    l->kind = kind;
    pthread_mutex_init(&l->id_lock, NULL);
    return l;
}

sp_status sp_link_open_ring(sp_link **out, int fd, int side, sp_err *err) {
    sp_ring *ring;
    SP_TRY(sp_ring_open(&ring, fd, side, err));
    *out = new_link(&RING);
    (*out)->ring = ring;
    return SP_OK;
}

sp_status sp_link_open_stream(sp_link **out, int fd, const sp_link_keys *keys, sp_err *err) {
    sp_stream *stream;
    SP_TRY(sp_stream_open(&stream, fd, keys, err));
    *out = new_link(&STREAM);
    (*out)->stream = stream;
    return SP_OK;
}

void sp_link_close(sp_link *l) {
    if (!l) return;
    l->kind->close(l);
    pthread_mutex_destroy(&l->id_lock);
    sp_free(l);
}

void sp_link_set_bells(sp_link *l, int own, int peer) {
    if (!l->ring) return;
    sp_ring_set_own_bell(l->ring, own);
    sp_ring_set_peer_bell(l->ring, peer);
}

int sp_link_fd(const sp_link *l) {
    return l->stream ? sp_stream_fd(l->stream) : -1;
}

void sp_link_set_patience(sp_link *l, int ms) {
    if (l->stream) sp_stream_set_patience(l->stream, ms);
}

void sp_link_set_id(sp_link *l, const sp_link_id *id) {
    pthread_mutex_lock(&l->id_lock);
    l->id = *id;
    pthread_mutex_unlock(&l->id_lock);
}

static sp_link_id get_id(sp_link *l) {
    pthread_mutex_lock(&l->id_lock);
    sp_link_id id = l->id;
    pthread_mutex_unlock(&l->id_lock);
    return id;
}

sp_status sp_link_send(sp_link *l, sp_frame_type type, const sp_piece *pieces, int n,
                       int64_t deadline_ns, sp_err *err) {
    SP_ASSERT(type > 0 && type < SP_FRAME_TYPE_END);
    uint32_t length = 0;
    SP_TRY(sp_frame_length(&length, pieces, n, err));
    sp_link_id id = get_id(l);
    sp_frame_header h = {.magic = SP_FRAME_MAGIC,
                         .version = SP_FRAME_VERSION,
                         .type = (uint16_t)type,
                         .length = length,
                         .term = id.term,
                         .epoch = id.epoch,
                         .incarnation = {id.incarnation[0], id.incarnation[1]},
                         .sequence = l->sent + 1};
    SP_TRY(l->kind->send(l, &h, pieces, n, deadline_ns, err));
    l->sent++;
    return SP_OK;
}

sp_status sp_link_recv(sp_link *l, sp_frame *out, int64_t deadline_ns, sp_err *err) {
    if (l->broken) return SP_FAIL(err, SP_E_PROTOCOL, "the link is broken since an earlier frame");
    for (;;) {
        sp_frame_header h;
        const void *payload;
        l->kind->give_back(l);
        sp_status st = l->kind->recv(l, &h, &payload, deadline_ns, err);
        if (st != SP_OK) {
            l->broken = st == SP_E_PROTOCOL;
            return st;
        }
        l->received++;
        sp_link_id id = get_id(l);
        if (h.term < id.term || h.epoch < id.epoch) {
            atomic_fetch_add_explicit(&l->n_stale, 1, memory_order_relaxed);
            continue;
        }
        *out = (sp_frame){.type = (sp_frame_type)h.type,
                          .term = h.term,
                          .epoch = h.epoch,
                          .payload = payload,
                          .length = h.length};
        return SP_OK;
    }
}

uint64_t sp_link_stale_count(const sp_link *l) {
    return atomic_load_explicit(&((sp_link *)l)->n_stale, memory_order_relaxed);
}

bool sp_link_is_over(const sp_link *l) {
    if (l->ring) return sp_ring_is_closed(l->ring);
    struct pollfd p = {.fd = sp_stream_fd(l->stream), .events = POLLRDHUP};
    return poll(&p, 1, 0) != 0;
}

void sp_link_wake(sp_link *l) {
    l->kind->wake(l);
}

/* For comm/fan.c. */

bool sp_link_is_stream(const sp_link *l) {
    return l->stream != NULL;
}

void sp_link_set_own_bell(sp_link *l, int own) {
    if (l->ring) sp_ring_set_own_bell(l->ring, own);
}

bool sp_link_can_recv(const sp_link *l) {
    return !l->ring || l->broken || sp_ring_can_peek(l->ring);
}

void sp_link_say_sleeping(sp_link *l, bool is) {
    if (l->ring) sp_ring_say_sleeping(l->ring, is);
}

void sp_link_give_back(sp_link *l) {
    l->kind->give_back(l);
}

bool sp_link_peer_spun(const sp_link *l) {
    return l->ring && sp_ring_peer_spun(l->ring);
}

bool sp_link_has_rest(const sp_link *l) {
    return l->stream && sp_stream_has_rest(l->stream);
}

void sp_link_flush(sp_link *l) {
    if (l->stream) sp_stream_flush(l->stream);
}
