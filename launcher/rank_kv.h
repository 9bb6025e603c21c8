/* launcher/rank_kv.h - the KV memory of a rank whose blocks other groups of the pod, and with a
 * secret (launcher/kv_share.h) other pods, may read, and the way by which it reads theirs
 * (runtime/engine/kv_port.h).
 *
 * Two steps, as with groups: open() makes the memory and gives the address that goes with the rank's
 * ADDRESS; connect() names the ranks of all other groups when everybody's address is known.
 *
 * Thread: the rank's main thread. */
#pragma once

#include "launcher/form.h"
#include "launcher/kv_share.h"
#include "runtime/engine/kv_port.h"

#include <stddef.h>

typedef struct sp_rank_kv sp_rank_kv;

typedef struct sp_rank_kv_config {
    const sp_form *form;       /* borrowed until close */
    const sp_model_desc *desc; /* likewise */
    const sp_arch *arch;
    sp_part part;
    sp_dtype kv_dtype;
    const char *numerics; /* sp_numerics(); for open() */
    sp_link *link;        /* borrowed until close */
} sp_rank_kv_config;

/** Owner:  caller, sp_rank_kv_close(), after stage and forward pass, before the link.
 * Errors: SP_E_INVALID in the form; SP_E_NOMEM; SP_E_IO. */
SP_NODISCARD sp_status sp_rank_kv_open(sp_rank_kv **out, const sp_rank_kv_config *c, sp_err *err);
/** For the forward pass to write to, where its device works in memory of the host. */
void *sp_rank_kv_memory(const sp_rank_kv *k, size_t *bytes);
/** Where others read it, for ADDRESS. Borrowed. */
const char *sp_rank_kv_address(const sp_rank_kv *k);
/** `addresses` of all ranks of the pod, in order; for the call. Errors: as sp_kv_port_open(). */
SP_NODISCARD sp_status sp_rank_kv_connect(sp_rank_kv *k, const char *const *addresses, sp_err *err);
/** Else: after connect, before the first frame. `blocks` of the device, which is borrowed with them
 * until sp_rank_kv_end_pulls(). Errors: as sp_kv_mirror_open(). */
SP_NODISCARD sp_status sp_rank_kv_mirror(sp_rank_kv *k, sp_dev *dev, unsigned char *blocks,
                                         sp_err *err);
/** NULL before connect. Borrowed. */
const sp_stage_kvx *sp_rank_kv_callbacks(const sp_rank_kv *k);
/** Ends pulls: before the forward pass lets go of anything. */
void sp_rank_kv_end_pulls(sp_rank_kv *k);
void sp_rank_kv_close(sp_rank_kv *k);
