/* comm/group_dev.h - how a device's ranks talk to one another: what a plugin offers besides the device.
 *
 * A device with memory of its own has groups of its own: buffers are the device's, and operations are
 * queued on its one stream, after what is there and before what comes. Member 0 of a group makes an
 * id, which the others are told by a way that strangers cannot read; each joins with it.
 *
 *   open -> make_id (member 0) -> ids are exchanged -> join (all) -> ... -> ops->close -> close
 *
 * Limits: an id is 128 bytes. The process that made one lives until all have joined.
 * Thread: the rank's engine thread, which opened the device; a group's abort() any. */
#pragma once

#include "comm/group.h"
#include "kernels/dev.h"

#define SP_DEV_GROUP_ID_BYTES 128
typedef struct sp_dev_group_id {
    unsigned char bytes[SP_DEV_GROUP_ID_BYTES];
} sp_dev_group_id;

/** How long members are waited for when a group is joined. */
typedef struct sp_group_wait {
    int64_t deadline_ns;
    bool (*gave_up)(void *ctx); /* asked while it waits; NULL: nobody does */
    void *ctx;
} sp_group_wait;

typedef struct sp_dev_comms sp_dev_comms; /* the opened library */

struct sp_dev_groups {
    const char *name; /* as option 'collectives' has it: "nccl" */

    /** Finds the library; nothing is asked of a device. Owner: caller, close(), after its groups.
     * Errors: SP_E_UNSUPPORTED there is none, or one too old, by name; SP_E_NOMEM. */
    sp_status (*open)(sp_dev_comms **out, sp_err *err);
    void (*close)(sp_dev_comms *c);
    /** "NCCL 2.28.9": for logs. Borrowed. */
    const char *(*version)(const sp_dev_comms *c);

    /** Device memory that join() takes for itself: arithmetic alone, for the plan. */
    size_t (*bytes)(const sp_group_config *config);
    /** Errors: SP_E_DEVICE. */
    sp_status (*make_id)(const sp_dev_comms *c, sp_dev_group_id *out, sp_err *err);
    /** Joins as member config->me on the stream of `dev`; waits until all have. `fast`: sums need not
     * be the tree's. `dev` and `c` are borrowed until the group is closed.
     * Errors: as sp_group_open_nccl(); SP_E_CANCELED by `wait`. */
    sp_status (*join)(sp_group **out, const sp_dev_comms *c, sp_dev *dev, const sp_dev_group_id *id,
                      bool fast, const sp_group_config *config, const sp_group_wait *wait,
                      sp_err *err);
};
