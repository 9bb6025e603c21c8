/* runtime/engine/kv_port.h - where blocks of the KV cache enter and leave a rank.
 *
 * Out: blocks of its own region are sealed and freed, on the rank's engine thread. In: a thread of
 * its own pulls, so that no step waits for it; for each block it reads, from whichever ranks of the
 * other group have them, the pieces that make its own block (runtime/model/kv_pieces.h). A block is
 * good when every piece was; its outcome is the first fault otherwise, and the rest is not read.
 *
 * Limits: SP_KV_PULLS_MAX pulls that have not been told of; more is the head's mistake.
 * Thread: one, the rank's engine thread; that of pulling is inside. */
#pragma once

#include "comm/kvx.h"
#include "runtime/engine/stage_kv.h"
#include "runtime/model/kv_pieces.h"
#include "runtime/model/plan.h"

#define SP_KV_PULLS_MAX 1024

/** A group that blocks may be pulled from. tp 0: none may. */
typedef struct sp_kv_group {
    sp_kv_source cut;
    const char *const
        *addresses;        /* [tp * pp] sp_kvx_region_address() of rank stage * tp + tp_rank */
    const bool *same_node; /* [tp * pp] */
} sp_kv_group;

typedef struct sp_kv_port_config {
    sp_kvx_region *region;     /* borrowed; NULL: nothing leaves, KV_SEAL and KV_FREE are refused */
    const sp_model_desc *desc; /* for the call */
    const sp_arch *arch;
    sp_part part;        /* this rank's */
    sp_kv_layout layout; /* of its blocks */
    int32_t n_blocks;
    unsigned char *kv; /* borrowed: sp_forward.kv; NULL: nothing enters, KV_PULL is refused */
    uint8_t key[SP_KVX_KEY_BYTES], identity[SP_KVX_IDENTITY_BYTES];
    const sp_kv_group *groups; /* [n_groups], as KV_PULL numbers them; for the call */
    int32_t n_groups;
    sp_link *link; /* borrowed: woken when a pull has ended; NULL: nobody */
} sp_kv_port_config;

/** The shape of this rank's region. */
sp_kvx_shape sp_kv_port_shape(const sp_kv_layout *layout, const sp_part *part, int32_t n_blocks);

typedef struct sp_kv_port sp_kv_port;
/** Owner:  caller, sp_kv_port_close(), before the region, the KV memory and the link.
 * Errors: SP_E_INVALID an address, a degree; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_port_open(sp_kv_port **out, const sp_kv_port_config *c, sp_err *err);
/** Ends pulls that are under way within a fraction of a second. */
void sp_kv_port_close(sp_kv_port *p);
/** For sp_stage_config. Borrowed. */
const sp_stage_kvx *sp_kv_port_callbacks(const sp_kv_port *p);
