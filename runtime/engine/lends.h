/* runtime/engine/lends.h - prompts whose blocks are kept for other pods: leases, and last events.
 *
 * A request with keep_kv runs as any other. When its last choice has ended well, its prompt's whole
 * blocks are held and sealed, and its last event waits for that: it carries the handle
 * (kv_handle.h), which must not be in anybody's hands before the blocks can be read. From then on
 * the blocks are held until the lease is given back (KV_LEASE, said by a reader to one of the ranks)
 * or has run out since it was last renewed.
 *
 *   NEW ----KV_SEAL----> SEALING --all answered--> LENT --given back, run out--> gone
 *                           +--late, cancelled, the engine ends---> gone, without a handle of blocks
 *
 * Lent blocks starve nobody: of a group's blocks at most every other one is lent (who comes then is
 * given a handle of fewer, or of none), and when nothing runs there for want of blocks the oldest
 * lease ends.
 *
 * What comes in is only noted; frames go out in sp_lends_turn() alone.
 *
 * Limits: SP_LENDS_MAX at a time; beyond that a handle has no blocks.
 * Thread: engine. */
#pragma once

#include "runtime/engine/seals.h"

#define SP_LENDS_MAX 1024

typedef struct sp_lends sp_lends;

typedef struct sp_lends_config {
    sp_seals *const *seals; /* [n_groups], borrowed */
    int32_t n_groups, block_tokens;
    int64_t timeout_ns; /* to seal; 0: for ever */
    int64_t lease_ns;   /* 0: for ever */
    sp_desk *desk;      /* borrowed, as are the figures */
    sp_engine_metrics *metrics;
} sp_lends_config;

/** Owner: caller, sp_lends_destroy(), after sp_lends_part_all(). Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_lends_create(sp_lends **out, const sp_lends_config *config, sp_err *err);
void sp_lends_destroy(sp_lends *x);

/** For sp_stepper_config.lend: `q` is about to end, `last` is its event, whose finish is set. False:
 * there is nothing to wait for, and the event has its (empty) handle. */
bool sp_lends_begin(sp_lends *x, sp_seq *q, sp_event *last);
/** The consumer of a parting request has asked to end choices of it (seen_aborted, seen_stopped). */
void sp_lends_cancel(sp_lends *x, sp_request *r);
/** Gives out every event that waits, without blocks: nobody will seal them. */
void sp_lends_part_all(sp_lends *x);

/** Takes KV_LEASE of a rank of that group. Errors: SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_lends_take(sp_lends *x, int32_t group, const sp_frame *f, sp_err *err);
void sp_lends_sealed(sp_lends *x, int32_t group); /* every rank has answered one more seal */
/** Ends the oldest lease of a group. False: there is none. */
bool sp_lends_relieve(sp_lends *x, int32_t group);

/** Does what can be done; `*next_ns`: when to come again at the latest.
 * Errors: of sp_stepper_send(). */
SP_NODISCARD sp_status sp_lends_turn(sp_lends *x, int64_t now_ns, int64_t *next_ns, sp_err *err);

int32_t sp_lends_parting(const sp_lends *x); /* requests whose last event waits */
int32_t sp_lends_count(const sp_lends *x);
bool sp_lends_check(const sp_lends *x);
