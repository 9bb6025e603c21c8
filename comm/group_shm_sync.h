/* comm/group_shm_sync.h - publishing, waiting and giving up in a shm group.
 *
 * Collective work goes in phases 1, 2, 3, ... A member fills its slot of the phase, publishes the
 * phase's number, and when it needs the others' slots waits until all have published it. Slots
 * alternate between two: nobody begins phase p + 1 before all have published p, and whoever has
 * published p has finished reading p - 1.
 *
 * Waiting is a spin while it pays, then a futex. Each member sleeps on one bell of its own; whoever
 * completes a phase (finds that all have published it) or a message wakes those that sleep, with no
 * system call when nobody does. Sleeps are cut into slices of SP_SHM_SLICE_NS, so that a member
 * killed between publishing and waking delays the others but cannot stop them.
 *
 * Giving up: the first fault sticks. A member with a fault, one that was aborted and one that closed
 * is `gone`; it says whom it blames. Others keep what it has published before; when they need more
 * from it, they give up at once with SP_E_PEER_LOST and name the member that was blamed, so that a
 * fault runs through a group without waiting for further timeouts.
 *
 * Source: futex(2).
 * Thread: the member's one caller; sp_shm_abort() any. */
#pragma once

#include "comm/group_shm_area.h"

#define SP_SHM_SLICE_NS ((int64_t)100000000)

typedef struct sp_shm_sync {
    sp_shm_area area;
    uint64_t phase; /* last one published here */
    uint64_t met;   /* last one in which this member has met all others */
    uint64_t seq;   /* collective operations begun */
    const char *op; /* the operation under way, for words */
    int64_t timeout_ns;
    int64_t spin_ns;   /* 0: do not spin */
    int fails, unspun; /* spins in vain since one paid; waits since one was tried */
    _Atomic uint32_t aborted;
    sp_status fault; /* sticks */
    sp_err why;
} sp_shm_sync;

void sp_shm_sync_init(sp_shm_sync *s, const sp_group_config *config);

/** Begins an operation; false: there is a fault, do nothing. */
bool sp_shm_begin(sp_shm_sync *s, const char *op);

/** Publishes slot phase + 1 and says what it is for. Does not wait. */
void sp_shm_publish(sp_shm_sync *s, const sp_shm_desc *desc);
/** Waits until all have published this member's phase; true: they did, and agree on what it is.
 * After it their slots of this phase may be read, and this member's slot of the next be filled. */
bool sp_shm_meet(sp_shm_sync *s);

/** Waits until `*word` differs from `old`, which is `peer`'s to bring about. */
bool sp_shm_wait_word(sp_shm_sync *s, int peer, const _Atomic uint64_t *word, uint64_t old);
/** Wakes a member if it sleeps, after something was stored (seq_cst) that it may wait for. */
void sp_shm_wake(sp_shm_sync *s, int member);

/** Sets the fault, unless there is one, tells the others whom to blame and wakes them. */
void sp_shm_fail(sp_shm_sync *s, sp_status code, int blamed, const char *fmt, ...) SP_PRINTF(4, 5);
void sp_shm_abort(sp_shm_sync *s); /* thread: any */
void sp_shm_leave(sp_shm_sync *s); /* before closing */
