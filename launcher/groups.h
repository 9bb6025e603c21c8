/* launcher/groups.h - the groups of one rank: its tensor-parallel stage, its pipeline, and the way
 * by which sampled tokens come back to the first stage.
 *
 *   tp        ranks of one stage, member = tensor-parallel rank
 *   pp        ranks of one tensor-parallel rank, member = stage
 *   feedback  member 0 the rank that samples (TP rank 0 of the last stage), then those of stage 0
 *             that it is not
 * A group whose members share one node is shared memory, made by its member 0 and handed to the
 * others; any other is UCX. Joining takes two steps, so that nobody looks for what is not there
 * yet: prepare() makes what others will ask for and gives the rank's ADDRESS; connect() joins when
 * everybody's is known.
 *
 * Thread: the rank's main thread. */
#pragma once

#include "comm/group.h"
#include "launcher/form.h"
#include "launcher/words.h"

typedef struct sp_groups sp_groups;

/** Makes this rank's shared memory and opens UCX where it is needed; fills `address`.
 * Owner:  caller, sp_groups_close().
 * Errors: SP_E_INVALID in `form`; SP_E_UNSUPPORTED no UCX; SP_E_NOMEM; SP_E_IO. */
SP_NODISCARD sp_status sp_groups_prepare(sp_groups **out, const sp_form *form, int32_t hidden,
                                         int32_t vocab, bool crowded, sp_address *address,
                                         sp_err *err);
/** Joins all groups. `peers` of all ranks of the pod. Errors: as sp_share_take(), sp_group_open_*(). */
SP_NODISCARD sp_status sp_groups_connect(sp_groups *g, const sp_address *peers, int64_t deadline_ns,
                                         sp_err *err);
void sp_groups_close(sp_groups *g);

/** NULL where this rank is not in such a group or alone in it. Borrowed. */
sp_group *sp_groups_tp(const sp_groups *g);
sp_group *sp_groups_pp(const sp_groups *g);
sp_group *sp_groups_feedback(const sp_groups *g);
