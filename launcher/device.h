/* launcher/device.h - which backend a pod computes with, and the memory that its plan may count on.
 *
 * "auto" is decided once, by who leads: the ranks of a pod compute the same bits, so one of them
 * does not take a GPU where another has none. A GPU is asked for what it is, not opened: the head
 * owns no device, and whatever else lives on the card is found by the rank (runtime/model/forward.h).
 *
 * Thread: main. */
#pragma once

#include "kernels/dev.h"
#include "launcher/config.h"
#include "runtime/model/plan.h"

/* Of a GPU's memory: the driver's context, NCCL and what else lives on the card take the rest. */
#define SP_DEVICE_USABLE_PERCENT 92

typedef struct sp_device {
    char backend[32];      /* never "auto" */
    const sp_dev_ops *ops; /* of it, for the sizes of packed weights; NULL: not known */
    char why[256];         /* what "auto" found, for one log line; or "" */
    bool own_memory;       /* a GPU: its memory is not the host's */
    bool fast;             /* numerics fast, where a device has it */
    uint64_t memory_bytes; /* of the smallest GPU that this process sees */
    int n_devices;
    char name[64]; /* of the first GPU */
} sp_device;

/** Errors: SP_E_NOTFOUND no plugin; SP_E_UNAVAILABLE no driver or no device; SP_E_UNSUPPORTED a
 * driver, a card or a backend that cannot be used: one line each that names the option. */
SP_NODISCARD sp_status sp_device_choose(sp_device *out, const char *backend, sp_err *err);

/** Whether each rank has a device to itself; groups of them: launcher/device_groups.h.
 * Errors: SP_E_UNSUPPORTED more ranks here than devices. */
SP_NODISCARD sp_status sp_device_check(const sp_device *d, const sp_config *config, sp_err *err);

/** Takes option `numerics`. Errors: SP_E_UNSUPPORTED this device has no mode fast. */
SP_NODISCARD sp_status sp_device_settle_numerics(sp_device *d, const char *numerics, sp_err *err);

/** A GPU that need not be here, of `memory_bytes`: its packing is told by whichever plugin there is,
 * since all of them pack alike. `backend`: "cuda" or "emu", or NULL for any. */
void sp_device_imagine(sp_device *out, const char *backend, uint64_t memory_bytes);

/** Changes what a plan is made of to this device's: memory, packing, one rank a device. What `serve`
 * refuses and what `plan` says are both this. */
void sp_device_plan(const sp_device *d, sp_plan_request *req);

/** KV blocks that others may read are in memory of the host as well (runtime/engine/kv_mirror.h). Makes
 * `plan` anew with fewer blocks where the `ranks_on_node` find too little there and nobody asked for
 * a number. Errors: SP_E_LIMIT what is there and what would fit. */
SP_NODISCARD sp_status sp_device_plan_mirror(const sp_device *d, sp_plan *plan,
                                             sp_plan_request *req, const sp_memory *host,
                                             int32_t ranks_on_node, sp_err *err);

/** The GPU of a rank that is number `local_rank` of its node. Where a launcher gives each agent cards
 * of its own (CUDA_VISIBLE_DEVICES), they are counted among those. */
int sp_device_index(const char *backend, int local_rank);
