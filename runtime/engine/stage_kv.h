/* runtime/engine/stage_kv.h - the frames by which blocks of the KV cache go from group to group, as a
 * rank takes and answers them: KV_SEAL, KV_PULL, KV_FREE, KV_SOURCE, KV_LEAVE in, KV_SEALED,
 * KV_PULLED, KV_RENEW, KV_LEASE out (wire.h). What they do is done by callbacks (kv_port.h).
 *
 * A block outside the pool is a protocol error and ends the rank, as with any frame of the head.
 * Thread: the rank's engine thread. */
#pragma once

#include "comm/link.h"
#include "runtime/engine/wire.h"

/** What a rank says of itself, between answers. */
typedef struct sp_stage_kv_note {
    bool of_lease; /* KV_LEASE; else KV_RENEW */
    uint64_t id;   /* lease or transfer */
    bool renewed;  /* of a lease: or given back */
} sp_stage_kv_note;

/** What a rank can do with KV of other groups. Errors of the callbacks end the rank. */
typedef struct sp_stage_kvx {
    sp_status (*seal)(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err);
    sp_status (*free_blocks)(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err);
    /** Begins a pull, lent for the call. When it has ended, the rank's link is woken and
     * poll_done() tells. What becomes of a block is no error of this. */
    sp_status (*pull)(void *ctx, const sp_wire_kv_pull *pull, sp_err *err);
    /** A group of another pod that pulls may name from now on (`text` is lent for the call), in place
     * of the one that had its number; no text: not any more. What the text says is no error of this,
     * but an outcome of every pull from there. */
    sp_status (*source)(void *ctx, uint32_t source, sp_slice text, sp_err *err);
    /** Gives a lease back, when this is the rank that does. */
    sp_status (*leave)(void *ctx, const sp_wire_kv_leave *leave, sp_err *err);
    /** The next thing to say, before the pulls that have ended. False: none. */
    bool (*poll_note)(void *ctx, sp_stage_kv_note *out);
    /** The next pull that has ended; its outcomes are borrowed until the next look. False: none. */
    bool (*poll_done)(void *ctx, sp_wire_kv_pulled *out);
    /** Asked before poll_done(): makes what has ended ready to be used. Errors: the device's. NULL: it
     * always is. */
    sp_status (*settle)(void *ctx, sp_err *err);
    void *ctx;
} sp_stage_kvx;

/** Takes one frame of these. `n_blocks`: of the pool. SP_AGAIN: it is none of them.
 * Errors: SP_E_PROTOCOL; those of the callbacks; those of the link. */
SP_NODISCARD sp_status sp_stage_kv_take(const sp_stage_kvx *k, sp_link *link, int32_t n_blocks,
                                        const sp_frame *f, sp_err *err);
/** Tells the head all that there is to tell. Errors: of settle(); those of the link. */
SP_NODISCARD sp_status sp_stage_kv_tell(const sp_stage_kvx *k, sp_link *link, sp_err *err);
