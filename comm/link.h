/* comm/link.h - framed messages between two processes of the pod.
 *
 * Same frames on a shared-memory ring (one node; here) and on TCP (other nodes). A frame is a
 * 64-byte header and a payload of at most SP_FRAME_MAX bytes; it is applied whole or not at all.
 *
 *   offset  size  field
 *        0     4  magic 'SPF1'
 *        4     2  version
 *        6     2  type
 *        8     4  payload length
 *       12     4  flags (0)
 *       16     8  head term
 *       24     8  pod epoch
 *       32    16  incarnation of the sender
 *       48     8  sequence, +1 a frame and direction, from 1
 *       56     8  checksum of the payload (0 on a ring: the kernel's memory is trusted)
 *
 * A receiver refuses an unknown version or type, a length beyond the maximum, a wrong sequence, and
 * a term or epoch below its own (that one is dropped and counted, not an error).
 * Waiting is a short spin, then a futex: nothing burns a core while idle.
 *
 * Thread: one sender thread and one receiver thread a side; sp_link_wake() from any. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_FRAME_MAX ((uint32_t)1 << 20)
#define SP_FRAME_VERSION 1

typedef enum sp_frame_type {
    SP_FRAME_FORM = 1,  /* head -> rank: what to load and how (JSON) */
    SP_FRAME_PROGRESS,  /* rank -> head: bytes loaded, bytes in all */
    SP_FRAME_READY,     /* rank -> head: loaded; what it offers */
    SP_FRAME_SEQ_ADD,   /* head -> rank: a sequence's tokens and parameters, in pieces */
    SP_FRAME_SEQ_DROP,  /* head -> rank: sequences that are no more */
    SP_FRAME_STEP,      /* head -> rank: one step */
    SP_FRAME_TOKENS,    /* rank -> head: what a step gave */
    SP_FRAME_ROW,       /* rank -> head: a row of logits, in pieces (inspect logits) */
    SP_FRAME_FAULT,     /* rank -> head: a closed list of reasons, and words */
    SP_FRAME_BYE,       /* either: this side ends in good order */
    SP_FRAME_WELCOME,   /* head -> guest: let in (JSON: what it is to start) */
    SP_FRAME_ADDRESS,   /* rank -> head: where its neighbours reach it (JSON) */
    SP_FRAME_PEERS,     /* head -> rank: everybody's ADDRESS (JSON) */
    SP_FRAME_MEASURE,   /* head -> agent: measure the way to another; and its answer (JSON) */
    SP_FRAME_STATUS,    /* agent -> head: what became of its ranks (JSON) */
    SP_FRAME_KV_SEAL,   /* head -> rank: blocks that others may read from now on */
    SP_FRAME_KV_SEALED, /* rank -> head: done */
    SP_FRAME_KV_PULL,   /* head -> rank: blocks to read from another group */
    SP_FRAME_KV_PULLED, /* rank -> head: what became of each */
    SP_FRAME_KV_FREE,   /* head -> rank: blocks that nobody may read any more */
    SP_FRAME_KV_RENEW,  /* rank -> head: still pulling */
    SP_FRAME_KV_SOURCE, /* head -> rank: a group of another pod */
    SP_FRAME_KV_LEAVE,  /* head -> rank: what another pod lent is given back */
    SP_FRAME_KV_LEASE,  /* rank -> head: a reader of another pod renews, or gives back */
    SP_FRAME_TIMES,     /* rank -> head: what its device did since it last said so */
    SP_FRAME_TYPE_END
} sp_frame_type;

typedef struct sp_frame_header {
    uint32_t magic;
    uint16_t version, type;
    uint32_t length, flags;
    uint64_t term, epoch;
    uint64_t incarnation[2];
    uint64_t sequence, checksum;
} sp_frame_header;
_Static_assert(sizeof(sp_frame_header) == 64, "wire layout");

typedef struct sp_frame {
    sp_frame_type type;
    uint64_t term, epoch;
    const void *payload; /* borrowed until the next receive on this link; 8-byte aligned */
    uint32_t length;
} sp_frame;

typedef struct sp_piece { /* of a payload to send */
    const void *ptr;
    uint32_t len;
} sp_piece;

typedef struct sp_link sp_link;

typedef struct sp_link_id { /* goes into every header sent; told by the head at FORM */
    uint64_t term, epoch;
    uint64_t incarnation[2];
} sp_link_id;

/** Makes the memory of a ring (two directions of `bytes_each` bytes, a power of two, at least
 * 4 * SP_FRAME_MAX) as a memfd that children inherit. Owner: caller, close(). */
SP_NODISCARD sp_status sp_ring_create(int *fd, uint32_t bytes_each, sp_err *err);

/** Maps one side of a ring (0: head, 1: rank). The descriptor may be closed afterwards.
 * Errors: SP_E_PROTOCOL not a ring of this version; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_link_open_ring(sp_link **out, int fd, int side, sp_err *err);
void sp_link_close(sp_link *l); /* marks the ring closed for the peer, then unmaps */

/** Makes this side of a ring wait by, and wake its peer by, eventfds instead of futexes: `own` is
 * what sp_fan waits for (this side's receiver then never sleeps in sp_link_recv() itself), `peer`
 * is what our sends ring when the receiver over there sleeps. -1: the futex. Both are borrowed. Call
 * it right after opening, before the first frame. */
void sp_link_set_bells(sp_link *l, int own, int peer);

/** A link over a connected stream socket (TCP, or AF_UNIX between parent and child), which it owns
 * from now on. `keys` NULL: clear (inherited sockets only). Sends and receives as over a ring;
 * TCP_NODELAY, TCP_USER_TIMEOUT and keepalive are set (a silent cut is SP_E_CLOSED within 4 s, unless
 * sp_link_set_patience() says otherwise).
 * Errors: SP_E_NOMEM, SP_E_IO. */
typedef struct sp_link_keys {
    uint8_t send[32], receive[32]; /* AES-256-GCM */
} sp_link_keys;
SP_NODISCARD sp_status sp_link_open_stream(sp_link **out, int fd, const sp_link_keys *keys,
                                           sp_err *err);
/** How long, from now on, what a stream link sends may stay unacknowledged, or its peer not read,
 * before it counts as cut: TCP_USER_TIMEOUT, 3 s at first. For a peer that computes or loads for
 * longer than that while more waits for it than its window takes; whose death is then to be learned
 * elsewhere. Does nothing for what is not TCP. Any thread. */
void sp_link_set_patience(sp_link *l, int ms);
/** The socket of a stream link, for poll loops (whole frames may wait inside: receive until
 * SP_AGAIN before polling); -1 for a ring. */
int sp_link_fd(const sp_link *l);

/** Marks a ring closed in both directions and wakes both sides: for an agent whose child died. */
void sp_ring_mark_closed(int fd);

void sp_link_set_id(sp_link *l, const sp_link_id *id);

/** Sends one frame made of `n` pieces. Waits while the ring is full, until `deadline_ns`.
 * Errors: SP_E_CLOSED; SP_E_TIMEOUT still full; SP_E_TOOLONG payload above SP_FRAME_MAX. */
SP_NODISCARD sp_status sp_link_send(sp_link *l, sp_frame_type type, const sp_piece *pieces, int n,
                                    int64_t deadline_ns, sp_err *err);

/** Receives the next frame. SP_AGAIN: none came until the deadline, or sp_link_wake() was called.
 * Errors: SP_E_CLOSED; SP_E_PROTOCOL (says which rule was broken; the link is then useless). */
SP_NODISCARD sp_status sp_link_recv(sp_link *l, sp_frame *out, int64_t deadline_ns, sp_err *err);

/** Whether the other side has closed, or is known to be gone; what it sent before may still be there.
 * Any thread, until sp_link_close(). */
bool sp_link_is_over(const sp_link *l);

/** Frames dropped so far because their term or epoch was below ours. Any thread. */
uint64_t sp_link_stale_count(const sp_link *l);

/** Makes a waiting or the next sp_link_recv() on this side return SP_AGAIN. Any thread, lock-free. */
void sp_link_wake(sp_link *l);
