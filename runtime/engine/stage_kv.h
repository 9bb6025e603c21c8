/* runtime/engine/stage_kv.h - the frames by which blocks of the KV cache go from group to group, as a
 * rank takes and answers them: KV_SEAL, KV_PULL, KV_FREE in, KV_SEALED, KV_PULLED out (wire.h). What
 * they do is done by callbacks (kv_port.h).
 *
 * A block outside the pool is a protocol error and ends the rank, as with any frame of the head.
 * Thread: the rank's engine thread. */
#pragma once

#include "comm/link.h"
#include "runtime/engine/wire.h"

/** What a rank can do with KV of other groups. Errors of the callbacks end the rank. */
typedef struct sp_stage_kvx {
    sp_status (*seal)(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err);
    sp_status (*free_blocks)(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err);
    /** Begins a pull, lent for the call. When it has ended, the rank's link is woken and
     * poll_done() tells. What becomes of a block is no error of this. */
    sp_status (*pull)(void *ctx, const sp_wire_kv_pull *pull, sp_err *err);
    /** The next pull that has ended; its outcomes are borrowed until the next look. False: none. */
    bool (*poll_done)(void *ctx, sp_wire_kv_pulled *out);
    void *ctx;
} sp_stage_kvx;

/** Takes one frame of these. `n_blocks`: of the pool. SP_AGAIN: it is none of them.
 * Errors: SP_E_PROTOCOL; those of the callbacks; those of the link. */
SP_NODISCARD sp_status sp_stage_kv_take(const sp_stage_kvx *k, sp_link *link, int32_t n_blocks,
                                        const sp_frame *f, sp_err *err);
/** Tells the head of all pulls that have ended. */
SP_NODISCARD sp_status sp_stage_kv_tell(const sp_stage_kvx *k, sp_link *link, sp_err *err);
