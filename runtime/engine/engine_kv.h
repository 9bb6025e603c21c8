/* runtime/engine/engine_kv.h - all that an engine does with blocks that cross between groups: seals,
 * moves and lends, made and asked together.
 *
 * Thread: engine. */
#pragma once

#include "runtime/engine/lends.h"
#include "runtime/engine/moves.h"

typedef struct sp_engine_kv sp_engine_kv;

typedef struct sp_engine_kv_config {
    const sp_seals_config *groups; /* [n_groups], copied */
    int32_t n_groups, block_tokens;
    int64_t timeout_ns, lease_ns, block_bytes;
    sp_desk *desk; /* borrowed, as are the figures */
    sp_engine_metrics *metrics;
} sp_engine_kv_config;

/** Owner: caller, sp_engine_kv_destroy(), after all requests have ended and before the steppers go.
 * Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_engine_kv_create(sp_engine_kv **out, const sp_engine_kv_config *config,
                                           sp_err *err);
void sp_engine_kv_destroy(sp_engine_kv *k);
sp_moves *sp_engine_kv_moves(const sp_engine_kv *k);
sp_lends *sp_engine_kv_lends(const sp_engine_kv *k);

/** Takes a frame of KV blocks of a link of that group. Errors: SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_engine_kv_take(sp_engine_kv *k, int32_t group, int link,
                                         const sp_frame *f, sp_err *err);
/** Before steps are planned. Errors: of sp_stepper_send(). */
SP_NODISCARD sp_status sp_engine_kv_turn(sp_engine_kv *k, int64_t now_ns, int64_t *next_ns,
                                         sp_err *err);
/** After they were: frees what starves a group of blocks. True: another turn is due at once. */
bool sp_engine_kv_relieve(sp_engine_kv *k);
bool sp_engine_kv_check(const sp_engine_kv *k);
