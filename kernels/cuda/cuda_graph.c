#include "kernels/cuda/cuda_graph.h"

#include "kernels/cuda/cuda_dev.h"

#include <string.h>

/* ---- which graph ---- */

static int32_t rows_bucket(int32_t n, int32_t max_rows) {
    int32_t b = 1;
    while (b < n) b *= 2;
    return b < max_rows ? b : max_rows;
}

/* Positions that the grid of attention covers: 256, 512, 1024, ... and never beyond the rope table. */
static int32_t positions_bucket(int32_t max_pos, int32_t max_positions) {
    int64_t p = SP_ATTN_SPLIT;
    while (p <= max_pos) p *= 2;
    return p < max_positions ? (int32_t)p : max_positions;
}

static void drop(cu_graphs *g, cu_graph *x) {
    if (x->exec) {
        (void)cudaGraphExecDestroy(x->exec);
        g->dropped++;
    }
    *x = (cu_graph){0};
}

void cu_graphs_drop(cu_dev *cu) {
    for (int i = 0; i < CU_GRAPHS_MAX; i++) drop(&cu->graphs, &cu->graphs.at[i]);
}

/* The one of this shape; else a place for it, of the one that was not used for longest. */
static cu_graph *find(cu_graphs *g, const void *owner, int32_t rows, int32_t positions) {
    cu_graph *oldest = &g->at[0];
    for (int i = 0; i < CU_GRAPHS_MAX; i++) {
        cu_graph *x = &g->at[i];
        if (x->used && x->owner == owner && x->rows == rows && x->positions == positions) return x;
        if (x->used < oldest->used) oldest = x;
    }
    drop(g, oldest);
    oldest->owner = owner;
    oldest->rows = rows;
    oldest->positions = positions;
    return oldest;
}

/* ---- a step's data: ids | pos | rows | table | blocks, in one piece ---- */

static int32_t blocks_of(const sp_dev_decode *d, int32_t i) {
    return d->seqs[i].pos0 / d->block_tokens + 1;
}

/* The graph knows where the fixed parts are; block tables are last, as long as they are. Rows that only
 * fill the bucket are at position -1 and own an empty table, so that no tile of attention joins them
 * to a sequence; id 0 and row 0 are there and harm nobody. */
static void fill(int32_t *to, const sp_dev_decode *d, int32_t rows) {
    int32_t *ids = to, *pos = to + rows, *row = to + 2 * (size_t)rows, *table = row + rows;
    int32_t *blocks = table + rows, at = 0;
    memcpy(ids, d->ids, (size_t)d->n * sizeof *ids);
    for (int32_t i = 0; i < d->n; i++) {
        const int32_t n = blocks_of(d, i);
        pos[i] = d->seqs[i].pos0;
        row[i] = i;
        table[i] = at;
        memcpy(blocks + at, d->seqs[i].blocks, (size_t)n * sizeof *blocks);
        at += n;
    }
    for (int32_t i = d->n; i < rows; i++) {
        ids[i] = row[i] = 0;
        pos[i] = -1;
        table[i] = at;
    }
    blocks[at] = 0;
}

/* The device's side of the data, whose address is in every graph: a larger one makes them all new. */
static bool hold(cu_dev *cu, size_t bytes) {
    cu_graphs *g = &cu->graphs;
    if (bytes <= g->data_bytes) return true;
    size_t size = g->data_bytes ? g->data_bytes : CU_GRAPH_DATA_MIN;
    while (size < bytes) size *= 2;
    void *p = cu_mem_take(cu, size);
    if (!p) return false;
    for (int i = 0; i < CU_GRAPHS_MAX; i++) {
        if (!g->at[i].exec) continue;
        (void)cudaGraphExecDestroy(g->at[i].exec);
        g->at[i].exec = NULL;
        g->dropped++;
    }
    cu_mem_drop(g->data);
    g->data = p;
    g->data_bytes = size;
    return true;
}

bool cu_graphs_reserve(cu_dev *cu) {
    cu->graphs.ready = hold(cu, CU_GRAPH_DATA_MIN);
    return cu->graphs.ready;
}

void cu_graphs_close(cu_dev *cu) {
    cu_graphs_drop(cu);
    cu_mem_drop(cu->graphs.data);
    cu->graphs = (cu_graphs){0};
}

static bool send_data(cu_dev *cu, const sp_dev_decode *d, int32_t rows) {
    cu_graphs *g = &cu->graphs;
    size_t n = 4 * (size_t)rows + 1;
    for (int32_t i = 0; i < d->n; i++) n += (size_t)blocks_of(d, i);
    if (!hold(cu, n * sizeof(int32_t))) return false;
    int32_t *host = cu_step_room(cu, n * sizeof *host);
    if (!host) return false;
    fill(host, d, rows);
    return cu_check(
        cu, cudaMemcpyAsync(g->data, host, n * sizeof *host, cudaMemcpyHostToDevice, cu->stream),
        cu->op);
}

/* ---- recording ---- */

/* Ids, positions and places of a step that comes from outside: what plain operations refuse one by one.
 * A step that is not sound is left to them. */
static bool is_sound(const sp_dev_decode *d, int32_t *max_pos) {
    *max_pos = 0;
    for (int32_t i = 0; i < d->n; i++) {
        const sp_seq_rows *s = &d->seqs[i];
        if (s->n_rows != 1 || s->row0 != i || s->pos0 < 0 || s->pos0 >= d->max_positions)
            return false;
        if (s->pos0 > *max_pos) *max_pos = s->pos0;
    }
    return d->n > 0 && d->n <= d->max_rows;
}

static bool begin_capture(cu_dev *cu, cu_graph *x, const sp_dev_decode *d) {
    cu_graphs *g = &cu->graphs;
    const cudaError_t e = cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeThreadLocal);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        g->off = true;
        return false;
    }
    const size_t rows = (size_t)x->rows;
    g->now = x;
    g->spoilt = false;
    g->n = d->n;
    g->ids = d->ids;
    g->rows = (cu_rows){.pos = g->data + rows,
                        .table = g->data + 3 * rows,
                        .blocks = g->data + 4 * rows,
                        .T = x->rows,
                        .max_pos = x->positions - 1};
    return true;
}

bool cu_decode_begin(cu_dev *cu, const sp_dev_decode *d) {
    cu_graphs *g = &cu->graphs;
    int32_t max_pos;
    SP_ASSERT(!g->now);
    if (g->off || !g->ready || !is_sound(d, &max_pos) || !cu_begin(cu, "decode")) return false;
    cu_graph *x = find(g, d->owner, rows_bucket(d->n, d->max_rows),
                       positions_bucket(max_pos, d->max_positions));
    const bool before = x->used != 0;
    x->used = ++g->turn;
    /* Recording takes as long as several steps: only for what comes again. */
    if (!before || x->plain) return false;
    if (!send_data(cu, d, x->rows)) return false;
    if (!x->exec) {
        (void)begin_capture(cu, x, d);
        return false;
    }
    g->launched++;
    cu_check(cu, cudaGraphLaunch(x->exec, cu->stream), "decode");
    return true;
}

static cudaError_t instantiate(cu_graph *x, cudaStream_t stream, bool spoilt) {
    cudaGraph_t graph = NULL;
    cudaError_t e = cudaStreamEndCapture(stream, &graph);
    if (e == cudaSuccess && !spoilt) e = cudaGraphInstantiate(&x->exec, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    if (e == cudaSuccess && spoilt) e = cudaErrorStreamCaptureInvalidated;
    return e;
}

bool cu_decode_end(cu_dev *cu) {
    cu_graphs *g = &cu->graphs;
    cu_graph *x = g->now;
    if (!x) return true;
    g->now = NULL;
    const cudaError_t e = instantiate(x, cu->stream, g->spoilt);
    if (cu->fault.code != SP_OK) return true; /* of the step's data: no graph helps */
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        x->exec = NULL;
        x->plain = true;
        g->off = ++g->failed >= CU_GRAPH_FAILURES_MAX;
        return false;
    }
    g->recorded++;
    g->launched++;
    cu_check(cu, cudaGraphLaunch(x->exec, cu->stream), "decode");
    return true;
}

const void *cu_graph_data(const cu_dev *cu, const void *src, size_t bytes) {
    const cu_graphs *g = &cu->graphs;
    SP_ASSERT(bytes == (size_t)g->n * sizeof(int32_t));
    if (src == g->ids) return g->data;
    const int32_t *rows = src;
    for (int32_t i = 0; i < g->n; i++) SP_ASSERT(rows[i] == i);
    return g->data + 2 * (size_t)g->now->rows;
}
