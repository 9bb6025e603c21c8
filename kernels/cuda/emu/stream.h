/* kernels/cuda/emu/stream.h - queues of closures, events between them, and graphs of closures.
 *
 * A stream is a queue. Its head runs when nothing in front of it is missing: an event that was
 * recorded but has not happened, or, around the legacy default stream, older work of the others. When
 * heads run is the pace's choice: eager at once, lazy when something waits for exactly them, mixed at
 * random. A missing event therefore shows in lazy and mixed, and never in eager.
 *
 * All functions: cu_rt.lock held, once (drive and poll let go of it while work runs).
 *
 * Thread: any; two threads never run work of the same stream at once. */
#pragma once

#include "kernels/cuda/emu/inside.h"

typedef struct cu_work {
    const char *name;
    int (*fn)(void *arg);
    void *arg;
    void (*drop)(void *arg);
    bool host; /* a host function: device memory is closed to it */
} cu_work;

typedef enum cu_op_kind {
    CU_OP_WORK,
    CU_OP_RECORD,
    CU_OP_WAIT
} cu_op_kind;

typedef struct cu_op {
    struct cu_op *next;
    uint64_t seq;
    cu_op_kind kind;
    cu_work work;
    struct CUevent_st *event;
    uint64_t generation;          /* of the event */
    struct CUstream_st *recorder; /* wait: who will record, */
    uint64_t recorder_seq;        /* and with which operation */
} cu_op;

/* Nodes of a graph that something comes after. */
typedef struct cu_deps {
    int *at;
    int n, cap;
} cu_deps;

struct CUstream_st {
    struct CUstream_st *next;
    int device;
    bool legacy, blocking, busy, dying;
    int polls;
    cu_op *head, *tail;
    struct CUgraph_st *graph; /* what it is captured into */
    cu_deps last;
};

struct CUevent_st {
    struct CUevent_st *next;
    int refs, device;
    unsigned flags;
    uint64_t issued, done;
    struct CUstream_st *stream;
    uint64_t stream_seq;
    int64_t time_ns;
    struct CUgraph_st *graph; /* recorded while capturing */
    cu_deps deps;
};

typedef struct cu_node {
    cu_work work;
    cu_deps deps;
} cu_node;

struct CUgraph_st {
    int refs; /* the handle, each exec, each launch that runs */
    cu_node *nodes;
    int n, cap;
    bool invalid;
    int mode;
    struct CUstream_st *origin;
    pthread_t thread;
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
};

/* ---- stream.cc ---- */
CU_HIDDEN struct CUstream_st *cu_stream_find(cudaStream_t handle); /* NULL: no such stream */
CU_HIDDEN struct CUstream_st *cu_stream_make(int device, bool blocking);
CU_HIDDEN void cu_stream_drop(struct CUstream_st *s);
/* Queues or captures; then lets the pace have its way. Moves w.arg, also on failure. */
CU_HIDDEN cudaError_t cu_stream_push(struct CUstream_st *s, const cu_work *w);
CU_HIDDEN void cu_stream_drain(struct CUstream_st *s); /* NULL: all of this device */
CU_HIDDEN bool cu_stream_poll(struct CUstream_st *s);  /* true: idle */
CU_HIDDEN void cu_streams_reset(void);
CU_HIDDEN struct CUstream_st *cu_streams(void);
CU_HIDDEN cudaError_t cu_stream_record(struct CUstream_st *s, struct CUevent_st *e);
CU_HIDDEN cudaError_t cu_stream_wait(struct CUstream_st *s, struct CUevent_st *e);
CU_HIDDEN struct CUevent_st *cu_event_find(cudaEvent_t handle);
CU_HIDDEN struct CUevent_st *cu_event_make(int device, unsigned flags);
CU_HIDDEN void cu_event_unref(struct CUevent_st *e);
CU_HIDDEN void cu_event_forget(struct CUevent_st *e);       /* takes the handle away */
CU_HIDDEN void cu_events_leave(const struct CUgraph_st *g); /* its capture has ended */
CU_HIDDEN void cu_event_drain(struct CUevent_st *e);
CU_HIDDEN bool cu_event_poll(struct CUevent_st *e);

/* ---- graph.cc ---- */
CU_HIDDEN bool cu_deps_add(cu_deps *d, const int *at, int n);
CU_HIDDEN bool cu_deps_set(cu_deps *d, int at);
CU_HIDDEN cudaError_t cu_graph_add(struct CUstream_st *s, const cu_work *w);
CU_HIDDEN void cu_graph_unref(struct CUgraph_st *g);
/* A call that no capture may contain: cudaErrorStreamCapture..., and the capture is void. */
CU_HIDDEN cudaError_t cu_capture_forbids(void);
CU_HIDDEN cudaError_t cu_capture_refuse(struct CUstream_st *s);
CU_HIDDEN cudaError_t cu_capture_legacy(const struct CUstream_st *s);
CU_HIDDEN void cu_graphs_reset(void);

/* ---- api_device.cc ---- */
CU_HIDDEN int cu_device_now(void);
CU_HIDDEN cudaError_t cu_error(cudaError_t err); /* keeps it for cudaGetLastError */
/* Begins a call: starts the emulator, takes the lock, answers the device's sticky error. */
CU_HIDDEN cudaError_t cu_enter(void);
CU_HIDDEN cudaError_t cu_leave(cudaError_t err); /* gives the lock back */
