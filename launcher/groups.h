/* launcher/groups.h - the groups of one rank: its tensor-parallel stage, its pipeline, and the way
 * by which sampled tokens come back to the first stage.
 *
 *   tp        ranks of one stage, member = tensor-parallel rank
 *   pp        ranks of one tensor-parallel rank, member = stage
 *   feedback  member 0 the rank that samples (TP rank 0 of the last stage), then those of stage 0
 *             that it is not
 * On a device with memory of its own, tp and pp are the device's (comm/group_dev.h): member 0 makes
 * an id, which the others are told. Any other group, and feedback always, is of the host: shared
 * memory where its members share one node, made by its member 0 and handed to the others, else UCX.
 * Joining takes two steps, so that nobody looks for what is not there yet: prepare() makes what
 * others will ask for and gives the rank's ADDRESS; connect() joins when everybody's is known.
 *
 * Thread: the rank's main thread; sp_groups_abort() any. */
#pragma once

#include "comm/group_dev.h"
#include "launcher/form.h"
#include "launcher/words.h"

typedef struct sp_groups sp_groups;

/** What a rank has to say to its groups. */
typedef struct sp_groups_config {
    int32_t hidden, vocab;
    bool crowded; /* more compute threads on the node than cores */
    sp_dev *dev;  /* opened; NULL: its memory is the host's. Closed after the groups */
    const struct sp_dev_groups *dev_groups; /* of its plugin */
    bool fast;                              /* sums of the device need not be the tree's */
} sp_groups_config;

/** The sizes of the group `tp` of a device: what the plan counts too. */
sp_group_config sp_groups_tp_sizes(int32_t tp, int32_t hidden, int32_t vocab, int32_t max_tokens,
                                   int32_t max_rows);

/** Makes this rank's shared memory and ids, opens UCX and the device's library where they are needed;
 * fills `address`.
 * Owner:  caller, sp_groups_close().
 * Errors: SP_E_INVALID in `form`; SP_E_UNSUPPORTED no UCX, or no library of the device; SP_E_NOMEM;
 *         SP_E_IO; SP_E_DEVICE. */
SP_NODISCARD sp_status sp_groups_prepare(sp_groups **out, const sp_form *form,
                                         const sp_groups_config *config, sp_address *address,
                                         sp_err *err);
/** Joins all groups. `peers` of all ranks of the pod.
 * Errors: as sp_share_take(), sp_group_open_*(), sp_dev_groups.join. */
SP_NODISCARD sp_status sp_groups_connect(sp_groups *g, const sp_address *peers,
                                         const sp_group_wait *wait, sp_err *err);
/** Makes everything that waits in a group, and all that comes, give up: also what the device waits
 * for, by a thread of each group. They can only be closed then. */
void sp_groups_abort(sp_groups *g);
void sp_groups_close(sp_groups *g);
/** "NCCL 2.28.9": by what the device's groups are; NULL: there are none. Borrowed. */
const char *sp_groups_device_words(const sp_groups *g);

/** NULL where this rank is not in such a group or alone in it. Borrowed. */
sp_group *sp_groups_tp(const sp_groups *g);
sp_group *sp_groups_pp(const sp_groups *g);
sp_group *sp_groups_feedback(const sp_groups *g);
