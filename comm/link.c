#include "comm/link.h"

#include "comm/ring.h"
#include "runtime/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define FRAME_MAGIC 0x31465053u /* "SPF1" */

struct sp_link {
    sp_ring *ring;
    /* The receiving thread learns the id (FORM) while the sending one may be building a header. */
    pthread_mutex_t id_lock;
    sp_link_id id;
    uint64_t sent;     /* sequence of the last frame sent; the sending thread's */
    uint64_t received; /* the same of the receiving thread */
    size_t lent_bytes; /* of the frame that the last receive gave out */
    bool broken;       /* a rule was broken: nothing after it can be trusted */
    _Atomic uint64_t n_stale;
};

/* Frames start at multiples of 8, so that payloads do. */
static size_t frame_bytes(uint32_t length) {
    return sizeof(sp_frame_header) + (((size_t)length + 7) & ~(size_t)7);
}

sp_status sp_link_open_ring(sp_link **out, int fd, int side, sp_err *err) {
    sp_ring *ring;
    SP_TRY(sp_ring_open(&ring, fd, side, err));
    sp_link *l = sp_alloc(sizeof *l);
    l->ring = ring;
    pthread_mutex_init(&l->id_lock, NULL);
    *out = l;
    return SP_OK;
}

void sp_link_close(sp_link *l) {
    if (!l) return;
    sp_ring_close(l->ring);
    pthread_mutex_destroy(&l->id_lock);
    sp_free(l);
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

static sp_status total_length(const sp_piece *pieces, int n, uint32_t *out, sp_err *err) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += pieces[i].len;
    if (sum > SP_FRAME_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "a frame of %llu bytes, at most %u are sent",
                       (unsigned long long)sum, SP_FRAME_MAX);
    *out = (uint32_t)sum;
    return SP_OK;
}

sp_status sp_link_send(sp_link *l, sp_frame_type type, const sp_piece *pieces, int n,
                       int64_t deadline_ns, sp_err *err) {
    SP_ASSERT(type > 0 && type < SP_FRAME_TYPE_END);
    uint32_t length = 0;
    SP_TRY(total_length(pieces, n, &length, err));
    void *at;
    SP_TRY(sp_ring_reserve(l->ring, frame_bytes(length), deadline_ns, &at, err));

    sp_link_id id = get_id(l);
    sp_frame_header h = {.magic = FRAME_MAGIC,
                         .version = SP_FRAME_VERSION,
                         .type = (uint16_t)type,
                         .length = length,
                         .term = id.term,
                         .epoch = id.epoch,
                         .incarnation = {id.incarnation[0], id.incarnation[1]},
                         .sequence = ++l->sent};
    unsigned char *p = at;
    memcpy(p, &h, sizeof h);
    p += sizeof h;
    for (int i = 0; i < n; i++) {
        if (pieces[i].len) memcpy(p, pieces[i].ptr, pieces[i].len);
        p += pieces[i].len;
    }
    memset(p, 0, frame_bytes(length) - sizeof h - length);
    sp_ring_publish(l->ring, frame_bytes(length));
    return SP_OK;
}

/* `ready` bytes are readable from the header on. The header is our copy: the peer cannot change it
 * between the check and the use. */
static sp_status check(const sp_link *l, const sp_frame_header *h, size_t ready, sp_err *err) {
    if (h->magic != FRAME_MAGIC)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame magic is 0x%08x, want 0x%08x", h->magic,
                       FRAME_MAGIC);
    if (h->version != SP_FRAME_VERSION)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame version is %u, want %u", h->version,
                       SP_FRAME_VERSION);
    if (h->type == 0 || h->type >= SP_FRAME_TYPE_END)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame type is %u, want 1 to %u", h->type,
                       SP_FRAME_TYPE_END - 1);
    if (h->length > SP_FRAME_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame length is %u, want at most %u", h->length,
                       SP_FRAME_MAX);
    if (h->flags != 0) return SP_FAIL(err, SP_E_PROTOCOL, "frame flags are 0x%x, want 0", h->flags);
    if (h->sequence != l->received + 1)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame sequence is %llu, want %llu",
                       (unsigned long long)h->sequence, (unsigned long long)(l->received + 1));
    if (frame_bytes(h->length) > ready)
        return SP_FAIL(err, SP_E_PROTOCOL, "a frame of %zu bytes with only %zu in the ring",
                       frame_bytes(h->length), ready);
    return SP_OK;
}

static void give_back(sp_link *l) {
    if (l->lent_bytes) sp_ring_consume(l->ring, l->lent_bytes);
    l->lent_bytes = 0;
}

sp_status sp_link_recv(sp_link *l, sp_frame *out, int64_t deadline_ns, sp_err *err) {
    if (l->broken) return SP_FAIL(err, SP_E_PROTOCOL, "the link is broken since an earlier frame");
    for (;;) {
        give_back(l);
        const void *at;
        size_t ready;
        sp_frame_header h = {0};
        sp_status st = sp_ring_peek(l->ring, deadline_ns, &at, &ready, err);
        if (st == SP_OK) {
            memcpy(&h, at, ready < sizeof h ? ready : sizeof h);
            st = check(l, &h, ready, err);
        }
        if (st != SP_OK) {
            l->broken = st == SP_E_PROTOCOL;
            return st;
        }
        l->received++;
        l->lent_bytes = frame_bytes(h.length);
        sp_link_id id = get_id(l);
        if (h.term < id.term || h.epoch < id.epoch) {
            atomic_fetch_add_explicit(&l->n_stale, 1, memory_order_relaxed);
            continue;
        }
        *out = (sp_frame){.type = (sp_frame_type)h.type,
                          .term = h.term,
                          .epoch = h.epoch,
                          .payload = (const unsigned char *)at + sizeof h,
                          .length = h.length};
        return SP_OK;
    }
}

uint64_t sp_link_stale_count(const sp_link *l) {
    return atomic_load_explicit(&((sp_link *)l)->n_stale, memory_order_relaxed);
}

void sp_link_wake(sp_link *l) {
    sp_ring_wake(l->ring);
}
