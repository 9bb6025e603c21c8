/* runtime/engine/kv_mirror.h - KV blocks of a device whose memory others cannot read: a copy of them
 * in memory of the host, where they can.
 *
 * Block b of the device has block b of the host to itself, of the same bytes in the same order
 * (runtime/model/plan.h), so no index ever changes on its way. Nothing is copied by itself: a block
 * is saved when it is sealed and loaded when what was pulled has been proven. Copies are queued on
 * the device's one stream, after every step that was queued before them and before every later one,
 * so nobody has to wait for a step; settle() waits for the copies, and with them for the steps ahead.
 *
 * The host's memory is page-locked where the machine lets us: a copy is then the device's work alone.
 * Elsewhere saving goes through a buffer of SP_KV_MIRROR_BOUNCE bytes, one fill at a time. Neighbours
 * are copied in one piece.
 *
 * Costs as much memory of the host as the blocks have on the device: all of it from the start when
 * it is locked, else what was ever saved or pulled. Not here: network cards that read the device
 * itself (GPUDirect), NVLink between ranks.
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "kernels/dev.h"

#define SP_KV_MIRROR_BOUNCE ((size_t)4 << 20)

typedef struct sp_kv_mirror_config {
    sp_dev *dev;          /* borrowed until close */
    unsigned char *there; /* borrowed: n_blocks on the device */
    unsigned char *here;  /* borrowed: the same on the host */
    size_t here_bytes;
    size_t block_bytes;
    int32_t n_blocks;
} sp_kv_mirror_config;

typedef struct sp_kv_mirror sp_kv_mirror;
/** Owner:  caller, sp_kv_mirror_close(), before both memories and the device.
 * Errors: SP_E_INVALID `here` is too small; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_mirror_open(sp_kv_mirror **out, const sp_kv_mirror_config *c,
                                         sp_err *err);
void sp_kv_mirror_close(sp_kv_mirror *m);
bool sp_kv_mirror_is_locked(const sp_kv_mirror *m);

/** Queues a block's copy, device to host or host to device. What it holds there counts at settle(). */
void sp_kv_mirror_save(sp_kv_mirror *m, uint32_t block);
void sp_kv_mirror_load(sp_kv_mirror *m, uint32_t block);
/** Ends every copy since the last call. Errors: the device's fault: nothing that was copied may be
 * believed. */
SP_NODISCARD sp_status sp_kv_mirror_settle(sp_kv_mirror *m, sp_err *err);
