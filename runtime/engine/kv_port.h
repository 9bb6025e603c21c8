/* runtime/engine/kv_port.h - where blocks of the KV cache enter and leave a rank.
 *
 * Out: blocks of its own region are sealed and freed, on the rank's engine thread. In: a thread of
 * its own pulls, so that no step waits for it; for each block it reads, from whichever ranks of the
 * other group have them, the pieces that make its own block (runtime/engine/kv_from.h). A block is
 * good when every piece was; its outcome is the first fault otherwise, and the rest is not read.
 *
 * Groups of other pods come and go by KV_SOURCE. Each is opened by the thread that pulls when the
 * first pull from it begins, and closed when the last that named it has ended, so that another may
 * take its number at any time. One whose text cannot be read, or that does not fit the model, gives
 * SP_KVX_IDENTITY for every block. They are told that their lease is still needed while its blocks
 * are read, and at KV_LEAVE that it is not, by the group's first rank.
 *
 * Where the blocks are a device's, `kv` and the region are the host's copy of them (kv_mirror.h): a
 * block is copied there before it is sealed, and from there when all of it is proven, before it is told
 * of. What is not proven never reaches the device.
 *
 * While bytes come in, the head hears it of every pull that has not been told of (KV_RENEW): also of
 * those that wait their turn.
 *
 * Limits: SP_KV_PULLS_MAX pulls that have not been told of; more is the head's mistake.
 * SP_KV_LEAVES_MAX leases to be given back; more are not: they end by themselves.
 * Thread: one, the rank's engine thread; that of pulling is inside. */
#pragma once

#include "runtime/engine/kv_from.h"
#include "runtime/engine/kv_leases.h"
#include "runtime/engine/kv_mirror.h"
#include "runtime/engine/stage_kv.h"

#define SP_KV_PULLS_MAX 1024
#define SP_KV_LEAVES_MAX 1024

/** A group of the pod that blocks may be pulled from. tp 0: none may. */
typedef struct sp_kv_group {
    sp_kv_source cut;
    const char *const
        *addresses;        /* [tp * pp] sp_kvx_region_address() of rank stage * tp + tp_rank */
    const bool *same_node; /* [tp * pp] */
} sp_kv_group;

typedef struct sp_kv_port_config {
    sp_kvx_region *region;     /* borrowed; NULL: nothing leaves, KV_SEAL and KV_FREE are refused */
    sp_kv_leases *leases;      /* borrowed: what to say for readers of other pods; NULL: nothing */
    const sp_model_desc *desc; /* borrowed */
    const sp_arch *arch;       /* borrowed */
    sp_part part;              /* this rank's */
    sp_kv_layout layout;       /* of its blocks */
    int32_t n_blocks;
    unsigned char *kv; /* borrowed: where the host has them; NULL: KV_PULL is refused */
    uint8_t key[SP_KVX_KEY_BYTES], identity[SP_KVX_IDENTITY_BYTES];
    bool ucx; /* what is read over the network comes by UCX, where the other side can too */
    const sp_kv_group *groups; /* [n_groups], as KV_PULL numbers them; for the call */
    int32_t n_groups;
    int64_t renew_ns; /* how often a pull that goes on says so; 0: SP_KV_RENEW_NS */
    sp_link *link;    /* borrowed: woken when there is something to tell; NULL: nobody */
} sp_kv_port_config;

/** The shape of this rank's region. */
sp_kvx_shape sp_kv_port_shape(const sp_kv_layout *layout, const sp_part *part, int32_t n_blocks);

typedef struct sp_kv_port sp_kv_port;
/** Owner:  caller, sp_kv_port_close(), before the region, the KV memory and the link.
 * Errors: SP_E_INVALID an address, a degree; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_port_open(sp_kv_port **out, const sp_kv_port_config *c, sp_err *err);
/** Ends pulls that are under way within a fraction of a second. */
void sp_kv_port_close(sp_kv_port *p);
/** From now on the blocks are a device's: before the first frame. `m` is borrowed until close. */
void sp_kv_port_set_mirror(sp_kv_port *p, sp_kv_mirror *m);
/** For sp_stage_config. Borrowed. */
const sp_stage_kvx *sp_kv_port_callbacks(const sp_kv_port *p);
/** Renewals and returns that did not reach whoever lent the blocks. Any thread. */
uint64_t sp_kv_port_failed_notices(const sp_kv_port *p);
