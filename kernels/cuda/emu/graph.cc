// Stream capture and graphs: the same closures, with what each must come after.
//
// Replay takes any order that the captured dependencies allow (lazy: the newest first; mixed: at
// random), so that an event missing between two captured streams shows.
#include "kernels/cuda/emu/stream.h"

#include <stdlib.h>
#include <string.h>

static __thread int thread_mode = cudaStreamCaptureModeGlobal;
static struct CUgraph_st *capturing[16]; /* captures that run */

bool cu_deps_add(cu_deps *d, const int *at, int n) {
    if (d->n + n > d->cap) {
        int cap = d->n + n + 4;
        int *more = (int *)realloc(d->at, (size_t)cap * sizeof *more);
        if (!more) return false;
        d->at = more;
        d->cap = cap;
    }
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int k = 0; k < d->n; k++) known = known || d->at[k] == at[i];
        if (!known) d->at[d->n++] = at[i];
    }
    return true;
}

bool cu_deps_set(cu_deps *d, int at) {
    d->n = 0;
    return cu_deps_add(d, &at, 1);
}

cudaError_t cu_graph_add(struct CUstream_st *s, const cu_work *w) {
    struct CUgraph_st *g = s->graph;
    if (g->invalid) {
        if (w->drop) w->drop(w->arg);
        return cudaErrorStreamCaptureInvalidated;
    }
    if (g->n == g->cap) {
        int cap = g->cap ? g->cap * 2 : 64;
        cu_node *more = (cu_node *)realloc(g->nodes, (size_t)cap * sizeof *more);
        if (!more) {
            if (w->drop) w->drop(w->arg);
            return cudaErrorMemoryAllocation;
        }
        g->nodes = more;
        g->cap = cap;
    }
    cu_node *node = &g->nodes[g->n];
    memset(node, 0, sizeof *node);
    node->work = *w;
    if (!cu_deps_add(&node->deps, s->last.at, s->last.n)) g->invalid = true;
    if (!cu_deps_set(&s->last, g->n)) g->invalid = true;
    g->n++;
    return cudaSuccess;
}

void cu_graph_unref(struct CUgraph_st *g) {
    if (!g || --g->refs) return;
    for (int i = 0; i < g->n; i++) {
        if (g->nodes[i].work.drop) g->nodes[i].work.drop(g->nodes[i].work.arg);
        free(g->nodes[i].deps.at);
    }
    free(g->nodes);
    free(g);
}

/* ---- what a capture forbids ---- */

static void void_capture(struct CUgraph_st *g) {
    g->invalid = true;
}

cudaError_t cu_capture_forbids(void) {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (int i = 0; i < 16; i++) {
        struct CUgraph_st *g = capturing[i];
        bool ours = g && pthread_equal(g->thread, pthread_self());
        if (!g || g->mode == cudaStreamCaptureModeRelaxed) continue;
        if (g->mode == cudaStreamCaptureModeThreadLocal && !ours) continue;
        void_capture(g);
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

cudaError_t cu_capture_refuse(struct CUstream_st *s) {
    if (!s->graph) return cudaSuccess;
    void_capture(s->graph);
    return cudaErrorStreamCaptureUnsupported;
}

// The legacy stream would wait for the captured ones, which never run.
cudaError_t cu_capture_legacy(const struct CUstream_st *s) {
    if (!s->legacy) return cudaSuccess;
    for (int i = 0; i < 16; i++) {
        struct CUgraph_st *g = capturing[i];
        if (!g || g->mode == cudaStreamCaptureModeRelaxed || !g->origin->blocking) continue;
        void_capture(g);
        return cudaErrorStreamCaptureImplicit;
    }
    return cudaSuccess;
}

void cu_graphs_reset(void) {
    memset(capturing, 0, sizeof capturing);
}

/* ---- capture ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    struct CUstream_st *s = cu_stream_find(stream);
    int at = 0;
    while (at < 16 && capturing[at]) at++;
    if (!s) return cu_leave(cudaErrorInvalidResourceHandle);
    if (s->legacy) return cu_leave(cudaErrorStreamCaptureUnsupported);
    if (s->graph || at == 16) return cu_leave(cudaErrorIllegalState);
    struct CUgraph_st *g = (struct CUgraph_st *)calloc(1, sizeof *g);
    if (!g) return cu_leave(cudaErrorMemoryAllocation);
    g->refs = 1;
    g->mode = mode;
    g->origin = s;
    g->thread = pthread_self();
    capturing[at] = g;
    s->graph = g;
    s->last.n = 0;
    return cu_leave(cudaSuccess);
}

// Every node has to lead to what the origin stream saw last; else a stream was never joined.
static bool joined(const struct CUgraph_st *g, const cu_deps *last) {
    bool *seen = (bool *)calloc((size_t)g->n + 1, sizeof *seen);
    if (!seen) return false;
    for (int i = 0; i < last->n; i++) seen[last->at[i]] = true;
    bool all = true;
    for (int i = g->n - 1; i >= 0; i--) {
        all = all && seen[i];
        for (int k = 0; k < g->nodes[i].deps.n && seen[i]; k++) seen[g->nodes[i].deps.at[k]] = true;
    }
    free(seen);
    return all;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    struct CUstream_st *s = cu_stream_find(stream);
    if (!s) return cu_leave(cudaErrorInvalidResourceHandle);
    struct CUgraph_st *g = s->graph;
    if (!g) return cu_leave(cudaErrorIllegalState);
    if (g->origin != s) return cu_leave(cudaErrorStreamCaptureUnmatched);
    if (g->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(g->thread, pthread_self()))
        return cu_leave(cudaErrorStreamCaptureWrongThread);
    if (g->invalid)
        err = cudaErrorStreamCaptureInvalidated;
    else if (!joined(g, &s->last))
        err = cudaErrorStreamCaptureUnjoined;
    for (struct CUstream_st *t = cu_streams(); t; t = t->next)
        if (t->graph == g) t->graph = NULL;
    cu_events_leave(g);
    for (int i = 0; i < 16; i++)
        if (capturing[i] == g) capturing[i] = NULL;
    *graph = err ? NULL : g;
    if (err) cu_graph_unref(g);
    return cu_leave(err);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    struct CUstream_st *s = cu_stream_find(stream);
    if (!s || !status) return cu_leave(s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    *status = !s->graph           ? cudaStreamCaptureStatusNone
              : s->graph->invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
    return cu_leave(cudaSuccess);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    int before = thread_mode;
    thread_mode = *mode;
    *mode = (enum cudaStreamCaptureMode)before;
    return cudaSuccess;
}

/* ---- replay ---- */

typedef struct replay {
    struct CUgraph_st *graph;
    bool *done;
    int left;
} replay;

static bool node_ready(const replay *r, int i) {
    if (r->done[i]) return false;
    const cu_deps *d = &r->graph->nodes[i].deps;
    for (int k = 0; k < d->n; k++)
        if (!r->done[d->at[k]]) return false;
    return true;
}

static int replay_run(void *arg) {
    replay *r = (replay *)arg;
    int n = r->graph->n;
    cu_lock();
    cu_emu_pace pace = cu_rt.config.pace;
    cu_unlock();
    while (r->left) {
        cu_lock();
        int from = pace == CU_EMU_MIXED ? cu_random_below(n) : 0;
        cu_unlock();
        bool moved = false;
        for (int k = 0; k < n && !moved; k++) {
            int i = pace == CU_EMU_LAZY ? n - 1 - k : (from + k) % n;
            if (!node_ready(r, i)) continue;
            const cu_work *w = &r->graph->nodes[i].work;
            // The launch opened device memory; a host function must not see it.
            if (w->host) cu_mem_close();
            int rc = w->fn(w->arg);
            if (w->host) cu_mem_open();
            if (rc > 0) return rc;
            if (rc == CU_EMU_AGAIN) continue;
            r->done[i] = moved = true;
            r->left--;
        }
        if (!moved) return CU_EMU_AGAIN;
    }
    return 0;
}

static void replay_drop(void *arg) {
    replay *r = (replay *)arg;
    cu_graph_unref(r->graph);
    free(r->done);
    free(r);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    struct CUstream_st *s = cu_stream_find(stream);
    if (!s || !exec) return cu_leave(s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    if ((err = cu_capture_refuse(s))) return cu_leave(err);
    replay *r = (replay *)calloc(1, sizeof *r);
    if (r) r->done = (bool *)calloc((size_t)exec->graph->n + 1, sizeof *r->done);
    if (!r || !r->done) {
        free(r);
        return cu_leave(cudaErrorMemoryAllocation);
    }
    r->graph = exec->graph;
    r->left = exec->graph->n;
    exec->graph->refs++;
    cu_work w = {"graph", replay_run, r, replay_drop, false};
    return cu_leave(cu_stream_push(s, &w));
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    if (!exec || !graph || flags) return cu_leave(cudaErrorInvalidValue);
    struct CUgraphExec_st *e = (struct CUgraphExec_st *)calloc(1, sizeof *e);
    if (!e) return cu_leave(cudaErrorMemoryAllocation);
    e->graph = graph;
    graph->refs++;
    *exec = e;
    return cu_leave(cudaSuccess);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
    return cudaGraphInstantiate(exec, graph, flags);
}

static bool same_shape(const struct CUgraph_st *a, const struct CUgraph_st *b) {
    if (a->n != b->n) return false;
    for (int i = 0; i < a->n; i++) {
        const cu_node *x = &a->nodes[i], *y = &b->nodes[i];
        if (x->work.fn != y->work.fn || x->deps.n != y->deps.n) return false;
        if (x->deps.n && memcmp(x->deps.at, y->deps.at, (size_t)x->deps.n * sizeof(int)) != 0)
            return false;
    }
    return true;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *info) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    if (!exec || !graph || !info) return cu_leave(cudaErrorInvalidValue);
    memset(info, 0, sizeof *info);
    if (!same_shape(exec->graph, graph)) {
        info->result = cudaGraphExecUpdateErrorTopologyChanged;
        return cu_leave(cudaErrorGraphExecUpdateFailure);
    }
    graph->refs++;
    cu_graph_unref(exec->graph);
    exec->graph = graph;
    info->result = cudaGraphExecUpdateSuccess;
    return cu_leave(cudaSuccess);
}

// Only the count: a node has no handle of its own here.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n) {
    if (!graph || !n) return cu_error(cudaErrorInvalidValue);
    if (nodes) return cu_error(cudaErrorNotSupported);
    *n = (size_t)graph->n;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    (void)stream;
    return exec ? cudaSuccess : cu_error(cudaErrorInvalidValue);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    if (!exec) return cu_error(cudaErrorInvalidValue);
    cu_lock();
    cu_graph_unref(exec->graph);
    cu_unlock();
    free(exec);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    if (!graph) return cu_error(cudaErrorInvalidValue);
    cu_lock();
    cu_graph_unref(graph);
    cu_unlock();
    return cudaSuccess;
}
