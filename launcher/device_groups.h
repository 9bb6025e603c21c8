/* launcher/device_groups.h - the groups of a pod on devices with memory of their own: refused, counted
 * and watched over.
 *
 * Thread: main; the watch has one of its own. */
#pragma once

#include "comm/link.h"
#include "launcher/device.h"
#include "launcher/groups.h"

/** Whether what `d` computes with can be grouped as option 'collectives' says. `n_ranks` of the pod
 * in `n_groups` groups. The library is looked for here, so that all ranks need not say that it is
 * missing. Errors: SP_E_UNSUPPORTED names the option, or the library. */
SP_NODISCARD sp_status sp_device_check_groups(const sp_device *d, const char *collectives,
                                              int n_ranks, int n_groups, sp_err *err);

/** Device memory that the groups of a rank take: for the plan. 0 where they are the host's. */
uint64_t sp_device_group_bytes(const sp_device *d, const sp_plan_request *req);

/* A rank whose head is gone may be waiting for a neighbour that never comes: on a device for ever,
 * and the thread that waits hears no frames. The watch looks at the link meanwhile, and aborts all
 * groups when the head has closed it and the rank has not ended by itself soon after. */
typedef struct sp_group_watch sp_group_watch;

/** `link`, `groups`: borrowed until stop. Owner: caller. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_group_watch_start(sp_group_watch **out, const sp_link *link,
                                            sp_groups *groups, sp_err *err);
void sp_group_watch_stop(sp_group_watch *w); /* NULL: nothing */
