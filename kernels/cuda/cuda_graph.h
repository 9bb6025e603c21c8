/* kernels/cuda/cuda_graph.h - decode steps that are recorded once and launched as one thing after.
 *
 * A decode step of a small model is a few hundred launches, each as long for the host as the kernel is for
 * the device. A CUDA graph is one. Steps of a bucket are one graph: rows 1, 2, 4, 8, ... (rows that
 * fill it are at position -1 and leave no trace) and positions 256, 512, 1024, ... (the grid of
 * attention covers them; a split beyond a row's end does nothing). A bucket is recorded when it comes
 * the second time.
 *
 *   begin   data of the step, one pinned piece, one copy to g->data:
 *           | ids [rows] | pos [rows] | row [rows] | table [rows] | blocks ... |
 *   launch  everything that the caller queued from embed_fed() to the logits, reading g->data
 *
 * Same bits: kernels.h says that no result depends on other rows, on the number of rows or on the
 * shape of a launch.
 * Limits: CU_GRAPHS_MAX graphs, of which the one unused for longest goes first. One device alone: with
 * groups of ranks the caller does not ask. Steps of a bucket that cannot be recorded go on without, and
 * CU_GRAPH_FAILURES_MAX such buckets turn graphs off.
 *
 * Source: CUDA C++ programming guide, stream capture. Thread: the device's. */
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/dev.h"

#define CU_GRAPHS_MAX 48
#define CU_GRAPH_FAILURES_MAX 8 /* recordings; then nothing is recorded any more */
#define CU_GRAPH_DATA_MIN ((size_t)64 << 10)

struct cu_dev;

typedef struct cu_graph {
    const void *owner;
    int32_t rows, positions;
    uint64_t used; /* turn of its last step; 0: nothing is here */
    cudaGraphExec_t exec;
    bool plain; /* it could not be recorded */
} cu_graph;

typedef struct cu_graphs {
    cu_graph at[CU_GRAPHS_MAX];
    bool ready, off;
    int32_t *data; /* device: of the step that runs */
    size_t data_bytes;
    uint64_t turn;
    uint64_t recorded, launched, dropped, failed; /* so far */
    /* While one is recorded. */
    cu_graph *now;
    bool spoilt;
    const int32_t *ids; /* the caller's */
    int32_t n;
    cu_rows rows;
} cu_graphs;

/** As in kernels/dev.h. */
bool cu_decode_begin(struct cu_dev *cu, const sp_dev_decode *d);
bool cu_decode_end(struct cu_dev *cu);
/** Takes what no step is to take. False: no memory, or a fault stands; there are then no graphs. */
bool cu_graphs_reserve(struct cu_dev *cu);
/** Forgets all graphs: an address in them will be another's. */
void cu_graphs_drop(struct cu_dev *cu);
void cu_graphs_close(struct cu_dev *cu);
/** While one is recorded: where the ids or rows of the step are on the device. */
const void *cu_graph_data(const struct cu_dev *cu, const void *src, size_t bytes);
