/* comm/group.h - a few ranks that compute one thing together: sums, gathers, hops.
 *
 * One group is a fixed set of members 0..n-1; every member calls the same operations in the same
 * order (send and recv pair up by themselves). A tensor-parallel group sums and gathers; a pipeline
 * group sends from member to member. Operations queue work and return nothing, like those of a
 * device (kernels/dev.h): the first fault sticks to the group and comes out of poll(), later
 * operations then do nothing, so a forward pass reads as its equations. CPU transports do the work
 * at once; a GPU's queues it on the device's stream.
 *
 * Same bits (contract 3): all_reduce is the tree of contract 2 continued over the members: with n a
 * power of two ((0+1)+(2+3))+((4+5)+(6+7)) cut to n; any other n: members are added by the same
 * rule over n rounded up to a power of two, missing ones left out. Every member gets the same bytes
 * on every transport, whatever the size and however the work is sliced.
 *
 * Waiting: a short spin only while members do not outnumber cores, then sleep; a dead peer is a
 * fault by the timeout, by the transport's error, or by abort(), never a hang.
 *
 * Thread: one caller a member; abort() from any thread. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_GROUP_MEMBERS_MAX 64
/** Messages to one member that send() takes before it waits for the receiver, when not said. */
#define SP_GROUP_SENDS 4

typedef struct sp_group sp_group;

typedef struct sp_group_ops {
    const char *name; /* "self", "shm", "ucx" */
    void (*close)(sp_group *g);
    /** Every member's buf[0..n) becomes the tree sum over the members' bufs. */
    void (*all_reduce)(sp_group *g, float *buf, size_t n);
    /** Every member ends with row i of member owner[i], for all i. rows [n_rows, cols] f32. No
     * arithmetic: an embedding split by vocabulary keeps its bits (-0 too). */
    void (*pick_rows)(sp_group *g, float *rows, size_t n_rows, size_t cols, const int32_t *owner);
    /** At member `root`, out [n_rows, sum of cols] gets the members' columns side by side; others
     * pass out NULL. mine [n_rows, cols[me]]; cols [n]. */
    void (*gather_cols)(sp_group *g, int root, const float *mine, float *out, size_t n_rows,
                        const int32_t *cols);
    /** Messages of a size both sides know, in order per pair. send() returns when data may be used
     * again; config.sends of at most max_message bytes may be on their way to a member. */
    void (*send)(sp_group *g, int to, const void *data, size_t bytes);
    void (*recv)(sp_group *g, int from, void *data, size_t bytes);
    /** Whether recv(from) would not wait. */
    bool (*can_recv)(sp_group *g, int from);
    /** SP_OK: all that was queued is done; SP_AGAIN: not yet at the deadline; else the first fault:
     * SP_E_PEER_LOST (names the member), SP_E_CANCELED (abort), SP_E_INTERNAL (sizes disagree). */
    sp_status (*poll)(sp_group *g, int64_t deadline_ns, sp_err *err);
    /** Optional: of groups that queue on a device. Something that was queued has come, so nobody has
     * waited for nothing: poll() counts the time of a wait from now on. Who never lets the device
     * become idle says so. */
    void (*came)(sp_group *g);
    /** Makes every operation that waits here, and all later ones, give up. */
    void (*abort)(sp_group *g);
} sp_group_ops;

typedef struct sp_group_config {
    int n, me;
    size_t max_reduce;  /* floats of one all_reduce, pick_rows or gather_cols contribution expected;
                         * larger ones work, in pieces */
    size_t max_message; /* bytes of one send */
    int sends;          /* messages to one member that may be on their way; 0: SP_GROUP_SENDS */
    int64_t timeout_ns; /* waiting longer for a member is a fault; 0: never */
    bool crowded;       /* more runnable threads than cores: do not spin */
} sp_group_config;

struct sp_group {
    const sp_group_ops *ops;
    int n, me;
};

/** A group of one: nothing to do. Owner: caller, ops->close(). */
SP_NODISCARD sp_status sp_group_open_self(sp_group **out, sp_err *err);

/* ---- shm: members on one node (comm/group_shm.c) ---- */

/** Memory for a group of `config->n`, as a sealed memfd; untouched pages cost nothing.
 * Owner: caller, close(). Errors: SP_E_NOMEM, SP_E_IO. */
SP_NODISCARD sp_status sp_group_shm_create(int *fd, const sp_group_config *config, sp_err *err);
/** Joins as member config->me. The descriptor may be closed afterwards.
 * Errors: SP_E_PROTOCOL not such memory or other sizes, or the member has joined before;
 *         SP_E_NOMEM. Owner: caller, ops->close(). */
SP_NODISCARD sp_status sp_group_open_shm(sp_group **out, int fd, const sp_group_config *config,
                                         sp_err *err);

/* ---- ucx: members anywhere (comm/group_ucx.c) ---- */

typedef struct sp_ucx sp_ucx; /* one worker a process (a rank), shared by its groups */

/** Opens UCX, found at run time (dlopen); transports tcp, self, cma and RDMA, PEER error mode.
 * Errors: SP_E_UNSUPPORTED no UCX on this machine, or built without its headers; SP_E_DEVICE. */
SP_NODISCARD sp_status sp_ucx_open(sp_ucx **out, sp_err *err);
void sp_ucx_close(sp_ucx *u); /* after its groups */
/** This worker's address, borrowed until close. */
const void *sp_ucx_address(const sp_ucx *u, size_t *bytes);

typedef struct sp_ucx_peer {
    const void *address;
    size_t bytes;
} sp_ucx_peer;

/** A group over workers. peers [config->n] (one's own is not looked at). `group_id` (below 2^16) is
 * the same at all members and differs between groups that share a worker.
 * Errors: SP_E_PEER_LOST, SP_E_INVALID. Owner: caller, ops->close(). */
SP_NODISCARD sp_status sp_group_open_ucx(sp_group **out, sp_ucx *u, const sp_ucx_peer *peers,
                                         uint32_t group_id, const sp_group_config *config,
                                         sp_err *err);
