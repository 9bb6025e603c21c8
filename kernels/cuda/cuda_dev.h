/* kernels/cuda/cuda_dev.h - one GPU as the host side of the cuda backend sees it.
 *
 * Everything is queued on one stream, in the order of the calls; the host never waits inside a step.
 * What the host sends along (ids, positions, block tables) goes through a ring of slots, one a step:
 *
 *   slot of step n      pinned  | ids | pos | table | blocks | rows |
 *                       device  | ids | pos | table | blocks | rows |   the same bytes, copied
 *                       event   recorded by submit(): until it has happened, no byte is used again
 *
 * The first fault sticks: from then on nothing is queued, and poll() gives it to everyone who asks.
 * A fault of the device itself (an illegal address, a dead card) shows at whatever call comes next:
 * its words name CUDA's error and the operation queued last, which is near the cause, not proof.
 *
 * This file and its .c files compile against the toolkit's headers and against kernels/cuda/emu.
 *
 * Thread: the rank's engine thread, which opened the device. */
#pragma once

#include "kernels/cuda/cuda_graph.h"
#include "kernels/cuda/kernels.h"
#include "kernels/dev.h"

#ifdef CUDA_EMULATED
#define CU_BACKEND "emu"
#else
#define CU_BACKEND "cuda"
#endif

#define CU_SLOTS 4   /* steps whose host data may be on their way */
#define CU_CHUNKS 12 /* pieces of memory of a slot; each is twice the one before */
#define CU_CHUNK_MIN ((size_t)64 << 10)
#define CU_SLOT_BYTES_MAX ((size_t)512 << 20) /* of ids and block tables in one step */
#define CU_STAGE_BYTES ((size_t)4 << 20)      /* of each of two pinned buffers for weights */
#define CU_PAGE_BYTES ((size_t)2 << 20)       /* what cudaMalloc deals out */
#define CU_PIECE_BYTES ((size_t)512)          /* and what it cuts them into */
/* Waiting longer for a step that should have ended is a fault: a hung card, not a slow one. */
#define CU_HANG_NS (60 * INT64_C(1000000000))

struct sp_weight {
    cu_weight w;
    void *data;
    size_t bytes;
    sp_weight *next, *prev; /* of the device, for its scratch */
};

typedef struct cu_chunk {
    unsigned char *host, *dev;
    size_t bytes, used;
} cu_chunk;

/** The rows of a step on the device, kept for the layers that follow: rope and attention of every
 * layer are given the same sequences. */
typedef struct cu_rows_kept {
    const sp_seq_rows *seqs; /* NULL: none kept */
    int32_t n_seqs, block_tokens;
    uint64_t digest;
    cu_rows rows;
} cu_rows_kept;

typedef struct cu_slot {
    cu_chunk chunk[CU_CHUNKS];
    int n_chunks;
    cudaEvent_t begin, done; /* they have times */
    sp_ticket ticket;        /* of the step that they are of; 0: none yet */
    bool begun;              /* `begin` was recorded */
    int asked;               /* how often, whether it has ended */
    bool follows;            /* work was pending since the step before: what lies between is idle */
    bool used;               /* `done` was recorded and is not known to have happened */
    cu_rows_kept kept;
} cu_slot;

/** Two pinned buffers that take turns, and the device memory that packing reads from. */
typedef struct cu_stage {
    unsigned char *host[2], *dev;
    cudaEvent_t copied[2];
    bool used[2];
    int turn;
} cu_stage;

typedef struct cu_dev {
    int index;
    cudaStream_t stream;
    sp_err fault;
    const char *op; /* queued last */
    cu_slot slot[CU_SLOTS];
    sp_ticket submitted; /* slot of the step being queued: submitted % CU_SLOTS */
    cu_stage stage;
    void *scratch; /* of whatever operation runs: they run one after the other */
    size_t scratch_bytes;
    sp_weight *weights;
    cu_fault *fault_dev, *fault_host; /* host: pinned, one a slot */
    int32_t vocab;                    /* rows of the last embed, for words */
    char detail[160];
    bool fast;        /* numerics fast: the order of sums is free */
    struct cu_lt *lt; /* cuda_fast.c; NULL: exact, or there is no cuBLASLt */
    char note[320];   /* why there is none, for one line */
    void *pinned;     /* memory of the caller's */
    size_t pinned_bytes;
    cu_graphs graphs;
    bool follows; /* the next step does */
    sp_dev_times times;
} cu_dev;

/** Keeps `e` as the device's fault, if it is one: what CUDA calls it, and where it showed. False: a
 * fault stands, nothing may be queued. */
bool cu_check(cu_dev *cu, cudaError_t e, const char *op);
/** False when a fault stands; else names what comes next. */
bool cu_begin(cu_dev *cu, const char *op);

extern const sp_dev_ops cu_dev_ops;              /* cuda_dev.c */
extern const struct sp_dev_groups cu_dev_groups; /* cuda_groups.c */

/** As sp_dev_plugin.probe (plugin.c). */
sp_status cu_probe(sp_dev_info *out, int index, sp_err *err);

extern const sp_dev_meter cu_meter; /* cuda_meter.c */

/* ---- cuda_memory.c ---- */

void *cu_mem_take(cu_dev *cu, size_t bytes);
void cu_mem_drop(void *p);
void *cu_host_take(cu_dev *cu, size_t bytes);
void cu_host_drop(void *p);
void cu_stage_close(cu_stage *s);
/** Copies host bytes to the device through the pinned buffers; src is free again at return. */
void cu_upload(cu_dev *cu, void *dst, const void *src, size_t bytes);
size_t cu_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype);
sp_status cu_pack(cu_dev *cu, sp_weight **out, const sp_weight_part *parts, int n_parts,
                  const sp_segments *seg, sp_err *err);
void cu_weight_drop(cu_dev *cu, sp_weight *w);
size_t cu_reserve_bytes(const sp_dev_sizes *sizes);
/** Errors: SP_E_NOMEM; the fault. */
sp_status cu_reserve(cu_dev *cu, const sp_dev_sizes *sizes, sp_err *err);
/** Scratch of at least `bytes`; false: a fault stands. Growing it waits for what is queued. */
bool cu_scratch(cu_dev *cu, size_t bytes);

/* ---- cuda_pin.c ---- */

bool cu_host_pin(cu_dev *cu, void *p, size_t bytes);
void cu_host_unpin(cu_dev *cu, void *p);
bool cu_host_is_pinned(const cu_dev *cu, const void *p, size_t bytes);

/* ---- cuda_fast.c ---- */

#define CU_LT_WORKSPACE ((size_t)32 << 20) /* what NVIDIA advises for its large cards */
/** Finds cuBLASLt and takes its workspace; without the library fast means our own kernels, and
 * `note` says why. Errors: SP_E_NOMEM; the fault. */
sp_status cu_fast_open(cu_dev *cu, sp_err *err);
void cu_fast_close(cu_dev *cu);
/** False: nothing was queued, and the deterministic product is to be. */
bool cu_fast_gemm(cu_dev *cu, sp_mat y, sp_mat x, const sp_weight *w, const float *bias);

/* ---- cuda_step.c ---- */

/** Takes the ring's events and its first memory. Errors: SP_E_NOMEM, SP_E_DEVICE. */
sp_status cu_ring_open(cu_dev *cu, sp_err *err);
void cu_ring_close(cu_dev *cu);
/** Marks the begin of a step, where it is not marked. False: a fault stands. */
bool cu_step_mark(cu_dev *cu);
/** Pinned memory until this step has ended; NULL: a fault stands. */
void *cu_step_room(cu_dev *cu, size_t bytes);
/** Host bytes as they are now, on the device until this step has ended; NULL: a fault stands. */
const void *cu_send(cu_dev *cu, const void *src, size_t bytes);
/** The rows of `seqs` on the device. False: a fault stands. */
bool cu_send_rows(cu_dev *cu, cu_rows *out, const sp_seq_rows *seqs, int32_t n_seqs,
                  int32_t block_tokens);
sp_ticket cu_submit(cu_dev *cu);
sp_status cu_poll(cu_dev *cu, sp_ticket ticket, int64_t deadline_ns, sp_err *err);
/** Waits, asking again and again, until an event has happened. False: a fault, or a hung card. */
bool cu_wait(cu_dev *cu, cudaEvent_t event, const char *what);

/* ---- cuda_draw.c ---- */

/** As sp_dev_ops.draw. */
void cu_op_draw(sp_dev *dev, const sp_draw_args *a);
