/* kernels/cuda/emu/nccl_inside.h - communicators and what is queued of them.
 *
 * A batch is what one ncclGroupEnd (or one call outside of a group) queues on one stream: a closure
 * that makes flows of its operations, moves them as far as the peers let it, and asks to be called
 * again. Batches of one communicator run one at a time.
 *
 * Thread: comm.lock guards a communicator; a batch belongs to the thread that runs it. */
#pragma once

#include "kernels/cuda/emu/nccl_wire.h"

typedef struct nccl_call {
    nccl_kind kind;
    bool out; /* of a point-to-point operation: send */
    const void *from;
    void *to;
    size_t count;
    cu_nccl_type type;
    cu_nccl_op op;
    int root; /* or the peer */
} nccl_call;

typedef struct nccl_batch {
    struct nccl_batch *next; /* while the communicator holds it back */
    struct ncclComm *comm;
    struct CUstream_st *stream;
    nccl_call *calls;
    int n_calls;
    nccl_flow *flows;
    int n_flows;
    char *scratch;  /* the others' parts of sums */
    int idle;       /* runs in vain since something moved */
    bool disagrees; /* found just now, to be reported */
} nccl_batch;

struct ncclComm {
    struct ncclComm *next;
    pthread_mutex_t lock;
    int refs; /* the handle, each batch */
    bool ready, used, finalizing, aborted;
    bool say_lost; /* a lost member is an error, not only a silence */
    int polls;
    nccl_wire wire;
    uint64_t seq; /* collectives begun */
    nccl_batch *held, *running;
    int n_batches; /* not yet done or dropped */
    int32_t error; /* cu_nccl_result of this member alone; sticks */
    uint64_t random;
    char words[NCCL_WORDS];
};

CU_HIDDEN size_t nccl_type_bytes(cu_nccl_type type);
CU_HIDDEN bool nccl_can_reduce(cu_nccl_type type, cu_nccl_op op);
/* to[i] = the sum, product ... of n parts, each in another order for each n-th of the elements, as a
 * ring does it: the same at all members, but no tree. */
CU_HIDDEN void nccl_reduce(void *to, const void *const *parts, int n, size_t count,
                           cu_nccl_type type, cu_nccl_op op);
CU_HIDDEN int nccl_batch_run(void *batch);
CU_HIDDEN void nccl_batch_drop(void *batch);
CU_HIDDEN void nccl_comm_unref(struct ncclComm *c);
