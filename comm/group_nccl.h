/* comm/group_nccl.h - a group (comm/group.h) of GPUs, by NCCL on one CUDA stream.
 *
 * Buffers are device memory and every operation is queued on the one stream that the group was given,
 * after what is there and before what comes; "done" and "may be used again" of comm/group.h mean: for
 * what is queued later. Nothing waits for the device, but poll(), which asks and never synchronises:
 * a stream whose member is lost would hold the thread for ever.
 *
 * Same bits: an all_reduce is a gather and the tree (cu_tree_sum), large ones in slices; the
 * library's own sum, whose order is its own, is used only when `fast` is said.
 *
 * Ends: the first fault sticks and aborts the communicator, so that the stream becomes free. abort()
 * raises a flag and wakes a thread of this group's own, which calls the library: aborting one
 * communicator may wait for others, so all of a rank's are aborted at once, each by its thread. A
 * communicator that had a fault is aborted, never destroyed. After abort() the group is only closed;
 * a new one is opened with a new id. close() waits 3 s for the library and 3 s for the stream; what
 * hangs longer is left behind with its memory, for the process that holds it is about to end.
 *
 * Limits: send() is not buffered: the stream waits there until the receiver's has come. Members that
 *         send to each other before they receive wait for ever (hops of a pipeline do not). can_recv()
 *         is true always: to queue a receive never waits. SP_NCCL_ROWS_MAX rows a piece of pick_rows,
 *         whose `owner` is read during the call; a replayed graph repeats the captured one.
 * Source: NCCL's user guide, nccl.h.
 * Thread: the rank's engine thread, the device current; abort() any. */
#pragma once

#include "comm/group_dev.h"
#include "kernels/cuda/nccl_api.h"

#define SP_NCCL_ROWS_MAX 4096

/** A new name for a group, made by member 0 and given to the others through a private channel: who
 * knows it may join. The process has to live until all have joined.
 * Errors: SP_E_DEVICE. */
SP_NODISCARD sp_status sp_group_nccl_id(cu_nccl_id *id, const cu_nccl *nccl, sp_err *err);

/** Device memory that a group takes for itself. */
size_t sp_group_nccl_bytes(const sp_group_config *config);

/** Joins as member config->me; waits until all have, and hears that all were opened with the same
 * sizes: as long as `wait` says; NULL: config->timeout_ns, at most 30 s.
 * `nccl`, `stream`: borrowed until close. `fast`: sums need not be the tree's.
 * Errors: SP_E_INVALID sizes differ, or config; SP_E_NOMEM; SP_E_DEVICE; SP_E_PEER_LOST not all came;
 *         SP_E_CANCELED wait->gave_up() said so; SP_E_UNSUPPORTED this build has no CUDA.
 * Owner: caller, ops->close(). */
SP_NODISCARD sp_status sp_group_open_nccl(sp_group **out, const cu_nccl *nccl, const cu_nccl_id *id,
                                          struct CUstream_st *stream, bool fast,
                                          const sp_group_config *config, const sp_group_wait *wait,
                                          sp_err *err);
