/* runtime/engine/kv_from.h - a group of ranks, of this pod or of another, as one rank reads from it:
 * its readers, and which part of the rank's own block each gives (runtime/model/kv_pieces.h).
 *
 * Parts are cut by layers to SP_KV_READ_BYTES, so that no read takes so long that its rank seems to
 * have stopped.
 *
 * Thread: one at a time; cancel from any, while nothing opens or closes it. */
#pragma once

#include "comm/kvx.h"
#include "runtime/base/str.h"
#include "runtime/model/kv_pieces.h"
#include "runtime/model/plan.h"

#define SP_KV_READ_BYTES ((size_t)8 << 20)

/** What the rank holds itself. Borrowed until what was opened with it is closed. */
typedef struct sp_kv_own {
    const sp_model_desc *desc;
    const sp_arch *arch;
    sp_part part;
    sp_kv_layout layout; /* of its blocks */
    sp_kvx_shape shape;
    uint8_t key[SP_KVX_KEY_BYTES], identity[SP_KVX_IDENTITY_BYTES];
    bool ucx; /* bytes by UCX, where the other side can too */
} sp_kv_own;

/** A part of a block, and who has it. */
typedef struct sp_kv_giver {
    sp_kv_piece piece;
    sp_kvx *reader; /* one of the group's */
} sp_kv_giver;

typedef struct sp_kv_from {
    sp_kv_giver *givers; /* [n_givers]: together a whole block */
    sp_kvx **readers;    /* [n_readers], by ascending stage, then rank */
    int32_t n_givers, n_readers;
} sp_kv_from;

/** `addresses` and `same_node` [tp * pp], stage by stage.
 * Owner:  caller, sp_kv_from_close().
 * Errors: SP_E_INVALID an address, a degree; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_from_open(sp_kv_from *out, const sp_kv_own *own,
                                       const sp_kv_source *cut, const char *const *addresses,
                                       const bool *same_node, sp_err *err);
/** A group of another pod, from what KV_SOURCE says of it (runtime/engine/kv_source.h): over the
 * network alone. Errors: as above, and those of sp_kv_source_read(). */
SP_NODISCARD sp_status sp_kv_from_open_text(sp_kv_from *out, const sp_kv_own *own, sp_slice text,
                                            sp_err *err);
/** Makes what is being read, and all that comes later, SP_KVX_PEER. */
void sp_kv_from_cancel(sp_kv_from *f);
void sp_kv_from_close(sp_kv_from *f);

/** Bytes that one block's part has. */
size_t sp_kv_giver_bytes(const sp_kv_own *own, const sp_kv_giver *g);
