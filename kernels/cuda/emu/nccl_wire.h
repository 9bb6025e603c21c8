/* kernels/cuda/emu/nccl_wire.h - what the members of an emulated NCCL communicator share: a memfd.
 *
 *   head | member 0..n-1 | ring 0->0, 0->1, ... n-1->n-1        (untouched pages cost nothing)
 *
 * A ring carries frames from one member to one other, in order: a head that says what the sender
 * believes is going on, then the bytes. The receiver compares the head with its own belief, and so
 * finds collectives that do not match, which a real NCCL answers by hanging or by wrong numbers.
 *
 * The memory has no name. Its maker's process number and descriptor are the unique id, and members
 * open it through /proc; when the last process is gone, so is the memory. A member that lives holds a
 * lock on a byte of it, which the kernel takes away from a process that dies, by whatever cause.
 *
 * Limits: members of one machine, process space and user.
 * Thread: one a flow; nccl_wire_* questions any. */
#pragma once

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/nccl_api.h"

#define NCCL_MEMBERS_MAX 64
#define NCCL_RING ((uint64_t)65536)
#define NCCL_WORDS 200

typedef enum nccl_kind {
    NCCL_P2P,
    NCCL_ALL_GATHER,
    NCCL_ALL_REDUCE,
    NCCL_BROADCAST,
} nccl_kind;

/* What goes on, as one member sees it. */
typedef struct nccl_frame {
    uint32_t kind, type, op;
    int32_t root; /* 0 where there is none */
    uint64_t count;
    uint64_t seq; /* collectives of this communicator so far */
} nccl_frame;

typedef enum nccl_presence {
    NCCL_ABSENT,
    NCCL_JOINED,
    NCCL_FINALIZED,
    NCCL_ABORTED,
} nccl_presence;

typedef struct nccl_wire {
    struct nccl_shared *shared;
    size_t bytes;
    int fd, n, rank;
} nccl_wire;

/* One direction of one operation with one peer. */
typedef struct nccl_flow {
    int peer;
    bool out, begun;
    bool taken; /* out: done only when the receiver has taken all */
    const char *from;
    char *to;
    size_t bytes, done;
    uint64_t end;
    nccl_frame frame;
} nccl_flow;

typedef enum nccl_moved {
    NCCL_STILL,
    NCCL_MOVED,
    NCCL_DONE,
    NCCL_MISMATCH, /* said to all members */
} nccl_moved;

/* Makes the memory and its id; it stays until a member of this process has seen all join. */
CU_HIDDEN cu_nccl_result nccl_wire_make(cu_nccl_id *id, char *why);
CU_HIDDEN cu_nccl_result nccl_wire_join(nccl_wire *w, const cu_nccl_id *id, int n, int rank,
                                        char *why);
CU_HIDDEN void nccl_wire_leave(nccl_wire *w);
CU_HIDDEN bool nccl_wire_complete(const nccl_wire *w); /* all have joined */
CU_HIDDEN void nccl_wire_say(nccl_wire *w, nccl_presence presence);
CU_HIDDEN bool nccl_wire_all(const nccl_wire *w, nccl_presence presence);
/* Whether a member has aborted, or its process has died. */
CU_HIDDEN bool nccl_wire_gone(const nccl_wire *w, int member);
/* The first error of the communicator, for all members; words: its own, until leave. */
CU_HIDDEN cu_nccl_result nccl_wire_error(const nccl_wire *w, const char **words);
CU_HIDDEN nccl_moved nccl_wire_move(nccl_wire *w, nccl_flow *f);
