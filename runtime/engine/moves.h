/* runtime/engine/moves.h - prompts whose blocks come from another group of ranks: the doing of it.
 *
 * A move is a request that waits (held) at the group that will decode it, and the blocks on their way
 * (handoff.h). Of a prompt that another group of this pod computes there is besides a shadow (the
 * same prompt up to its last whole block, no output) in that group's queue; its blocks are held there
 * from the step that filled them to the answer of the pull, and stay findable. Of a prompt that
 * another pod has computed there is a handle (kv_handle.h): its names are compared with ours, and
 * its lease is given back (KV_LEAVE) however it ends. Destination blocks are lent by the pool as long
 * as those that run there can spare them; what arrived is named in the index and let go, to be found.
 *
 * Ranks that pull give signs of life. Without any for `timeout_ns` the request goes on without the
 * blocks; without any for `lease_ns` the source blocks are let go too. Destination blocks stay held
 * until the answers come, since ranks may still write there.
 *
 * What comes in (retired steps, answers, ends) is only noted; frames go out and blocks come free in
 * sp_moves_turn() alone, which the engine calls before it plans steps: so that KV_FREE is sent
 * before a step can write to what it frees.
 *
 * Limits: SP_MOVES_MAX at a time; beyond that a prompt is computed where it is decoded.
 * Thread: engine. */
#pragma once

#include "runtime/engine/handoff.h"
#include "runtime/engine/seals.h"
#include "runtime/engine/sources.h"

#define SP_MOVES_MAX 4096

typedef struct sp_moves sp_moves;

typedef struct sp_moves_config {
    sp_seals *const *seals; /* [n_groups], borrowed */
    int32_t n_groups, block_tokens;
    int64_t timeout_ns; /* to seal or to pull; 0: for ever */
    int64_t lease_ns;   /* of source blocks; 0: for ever */
    int64_t block_bytes;
    sp_engine_metrics *metrics; /* borrowed */
} sp_moves_config;

/** Owner: caller, sp_moves_destroy(), after all requests have ended and before the steppers go.
 * Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_moves_create(sp_moves **out, const sp_moves_config *config, sp_err *err);
void sp_moves_destroy(sp_moves *x);
/** Whole blocks of a prompt that may be computed elsewhere; 0: it is not to be split. The last token
 * is never among them: its logits are what the first draw is from. */
int32_t sp_moves_blocks(const sp_request *r, int32_t block_tokens);

/** Takes in a request (moved) that `source` prefills for `target`, which has its first `cached`
 * blocks. Errors: SP_E_LIMIT, SP_E_NOMEM: nothing was done, the caller adds it to a group. */
SP_NODISCARD sp_status sp_moves_begin(sp_moves *x, sp_request *r, int32_t source, int32_t target,
                                      int32_t cached, sp_err *err);

/** Takes in a request (moved) with blocks of another pod (r->import) for `target`, which has its
 * first `cached` blocks; also when none of them is to be had: what was lent is given back, and the
 * request goes on or, if it must have them, ends. Errors: as sp_moves_begin(). */
SP_NODISCARD sp_status sp_moves_import(sp_moves *x, sp_request *r, int32_t target, int32_t cached,
                                       sp_err *err);

/** For sp_stepper_config: `ctx` there is the engine, who passes it on. */
void sp_moves_computed(sp_moves *x, sp_request *shadow, int32_t end, const sp_block *blocks);
void sp_moves_ended(sp_moves *x, sp_request *r);

/** Every rank of the group has answered one more seal. */
void sp_moves_sealed(sp_moves *x, int32_t group);
/** Takes KV_PULLED or KV_RENEW of a link of that group. Errors: SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_moves_take(sp_moves *x, int32_t group, int link, const sp_frame *f,
                                     sp_err *err);

/** Does what can be done; `*next_ns`: when to come again at the latest.
 * Errors: of sp_stepper_send(). */
SP_NODISCARD sp_status sp_moves_turn(sp_moves *x, int64_t now_ns, int64_t *next_ns, sp_err *err);

bool sp_moves_has_news(const sp_moves *x); /* something came in since the last turn */
int32_t sp_moves_count(const sp_moves *x);
bool sp_moves_check(const sp_moves *x);
