/* comm/ring.h - two one-way byte rings in shared memory, with doorbells.
 *
 * One memfd holds a control block and two data areas:
 *
 *   0        sp_ring_control
 *   64 KiB   way 0: side 0 writes, side 1 reads (bytes_each)
 *   + bytes  way 1: side 1 writes, side 0 reads (bytes_each)
 *
 * Each area is mapped twice in a row, so that a run of bytes that passes the end of the ring is
 * still one piece of memory. `head` and `tail` count bytes ever written and read; only their own
 * side writes them, and it keeps a private copy, so that a broken peer can make us stop but never
 * read or write outside the area. Bytes are filled in first and `head` is published last: a writer
 * that is killed in between has written nothing.
 * All lengths are multiples of 8. A side is opened once: rings are not reused, a new peer gets a new
 * ring. sp_ring_create() and sp_ring_mark_closed() are declared in link.h.
 *
 * Waiting: a spin of at most SP_RING_SPIN_MAX_NS while spinning pays, then a futex; a reader that has
 * a bell (an eventfd, one for many rings) sleeps by that instead. `reader_waits` says which of the
 * two the writer has to ring, so that a writer that knows the bell may meet a reader of either kind.
 *
 * Source: futex(2), eventfd(2), memfd_create(2).
 * Thread: one writing and one reading thread a side; sp_ring_wake() from any. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_RING_MAGIC UINT64_C(0x31474e4952505331) /* "1SPRING1" */
#define SP_RING_DATA_AT ((size_t)64 * 1024)        /* a multiple of every page size we meet */
#define SP_RING_SPIN_MAX_NS 8000

typedef struct sp_ring_way {
    _Alignas(64) _Atomic uint64_t head;       /* written by the writer */
    _Alignas(64) _Atomic uint64_t tail;       /* written by the reader */
    _Alignas(64) _Atomic uint32_t data_bell;  /* futex word: changes when the reader must look */
    _Atomic uint32_t reader_waits;            /* 0 awake, 1 asleep, 2 spinning, 3 by its bell */
    _Alignas(64) _Atomic uint32_t space_bell; /* futex word: changes when the writer must look */
    _Atomic uint32_t writer_waits;
} sp_ring_way;

typedef struct sp_ring_control {
    uint64_t magic;
    uint32_t bytes_each;
    _Atomic uint32_t closed;   /* bit s: side s closed; bit 2: marked by a third process */
    _Atomic uint32_t taken[2]; /* 1 when that side has been opened */
    sp_ring_way ways[2];
} sp_ring_control;
_Static_assert(sizeof(sp_ring_control) <= 4096, "the control block is one page");

typedef struct sp_ring sp_ring;

/** Maps one side. Errors: SP_E_INVALID side; SP_E_PROTOCOL not a ring of this version, or the side
 * was opened before; SP_E_NOMEM. Owner: caller, sp_ring_close(). */
SP_NODISCARD sp_status sp_ring_open(sp_ring **out, int fd, int side, sp_err *err);
void sp_ring_close(sp_ring *r); /* marks the ring closed, wakes the peer, unmaps */

/** Gives `*at` with room for `n` bytes (a multiple of 8), waiting for it until the deadline.
 * Nothing is seen by the peer before sp_ring_publish().
 * Errors: SP_E_CLOSED, SP_E_TIMEOUT, SP_E_PROTOCOL (the peer's index makes no sense). */
SP_NODISCARD sp_status sp_ring_reserve(sp_ring *r, size_t n, int64_t deadline_ns, void **at,
                                       sp_err *err);
void sp_ring_publish(sp_ring *r, size_t n);

/** Gives all bytes that have been published and not been consumed, waiting for some until the
 * deadline. They stay where they are until sp_ring_consume(). What was published before the ring
 * was closed is still given.
 * Errors: SP_AGAIN deadline or sp_ring_wake(); SP_E_CLOSED; SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_ring_peek(sp_ring *r, int64_t deadline_ns, const void **at, size_t *n,
                                    sp_err *err);
void sp_ring_consume(sp_ring *r, size_t n);

/** Makes a waiting or the next sp_ring_peek() of this side answer SP_AGAIN. Thread: any. */
void sp_ring_wake(sp_ring *r);

/** Makes this side's reader sleep by the eventfd `own` instead of the futex. -1: the futex.
 * Borrowed; made non-blocking. Before the first wait. */
void sp_ring_set_own_bell(sp_ring *r, int own);

/** The eventfd that our publishing writes to when the reader over there sleeps by its bell; -1: it
 * never does. Borrowed. Before the first frame. */
void sp_ring_set_peer_bell(sp_ring *r, int peer);

/* For a reader of many rings (comm/fan.c): it looks at all, says on all that it sleeps, looks again,
 * and waits for their common bell. Thread: the reading one. */
bool sp_ring_is_closed(const sp_ring *r);       /* by either side or a third; any thread */
bool sp_ring_can_peek(const sp_ring *r);        /* a frame, the end, a wake or nonsense is there */
void sp_ring_say_sleeping(sp_ring *r, bool is); /* by the bell */
bool sp_ring_peer_spun(const sp_ring *r);       /* when we last published; any thread */

/** How long waits may spin: see sp_spin_budget(). Zero is a good start. */
typedef struct sp_spin {
    int fails;  /* spins in vain since the last that paid */
    int unspun; /* waits without a spin since the last with one */
} sp_spin;

/** Nanoseconds that the next wait may spin (0: sleep at once). `peer_is_fast`: whoever will answer
 * was spinning when we last sent. */
int64_t sp_spin_budget(sp_spin *s, bool peer_is_fast);
void sp_spin_note(sp_spin *s, bool came, int64_t took_ns); /* what became of that spin */
void sp_spin_relax(void);                                  /* one breath of a spinning core */
