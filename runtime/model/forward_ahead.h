/* runtime/model/forward_ahead.h - steps one ahead of the host, on a device that draws tokens itself.
 *
 * sp_forward_run() waits for logits, and the device waits for the host to draw. Here the draw is the
 * device's, the token of slot i stays in `last[i]`, and the next step names it as id -1 - i: so a step is
 * queued while the one before it runs, and only what was drawn travels back, by pinned memory.
 *
 *   host    | lay out n+1, submit | finish n, answer | lay out n+2, submit | finish n+1 ...
 *   device  | .. n ............................| n+1 ............................|
 *
 * The logits are overwritten by the next step, so who wants them runs the step alone, when all before it
 * have been finished.
 *
 * With tensor parallelism TP rank 0 draws, and on the stream, behind the draw, its `last` becomes that
 * of all ranks (pick_rows: a copy). All of them embed from there: each the rows that it has, -0 for
 * those of others, and the sum is the row to the bit. So every rank names a token by its slot in the
 * same steps, whether it has heard of the token or not; and submits the same steps, with as many draws.
 * A member that is lost shows in finish, which asks the group while it waits for the device.
 *
 * Limits: SP_FORWARD_STEPS steps that are not finished. One stage (PP 1): the first of several stands in
 * another process than the last, and is told the host's draws by the feedback group. With TP the
 * groups have to be the device's own (sp_group_ops.came).
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/model/forward.h"

#define SP_FORWARD_STEPS 2

/** Whether steps will run ahead here, before anything is open; device memory that this takes. */
bool sp_forward_may_run_ahead(const sp_forward *s);
size_t sp_forward_ahead_bytes(const sp_forward *s);
/** Takes what is needed where steps can run ahead (a device that draws, `n_slots`, one stage), else
 * leaves s->ahead NULL. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_forward_ahead_open(sp_forward *s, sp_err *err);
void sp_forward_ahead_close(sp_forward *s);

/** Whether steps can be submitted here. */
static inline bool sp_forward_runs_ahead(const sp_forward *s) {
    return s->ahead != NULL;
}

/** Queues a step and its draws, and waits for nothing. `b` and `draws` are borrowed for the call; ids of
 * `b` may be -1 - slot, for the token that the last draw of this slot gave. Of `draws` the caller sets
 * n (at most n_slots), draws, tokens, bias and their numbers; only n where tp_rank is not 0. At most SP_FORWARD_STEPS are not finished.
 * Errors: those that show at once; the device's show in finish. */
SP_NODISCARD sp_status sp_forward_submit(sp_forward *s, const sp_batch *b,
                                         const sp_draw_args *draws, sp_err *err);

/** Gives what the oldest submitted step drew, in the order of its draws; borrowed until the second
 * submit after; NULL where tp_rank is not 0.
 * Errors: SP_AGAIN not yet at the deadline; the first fault of the device, or of the group. */
SP_NODISCARD sp_status sp_forward_finish(sp_forward *s, int64_t deadline_ns, const sp_drawn **drawn,
                                         sp_err *err);

/** Embeds the ids of a step, those that only the device knows too. False: there are none of these and the
 * embedding is split, nothing was done. The same at all ranks. */
bool sp_forward_embed_fed(sp_forward *s, const sp_batch *b, sp_mat x);
