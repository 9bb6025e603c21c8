// Streams and events: who may run, and who makes them run.
#include "kernels/cuda/emu/stream.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LAZY_POLLS 3 /* a lazy stream moves by one operation every so many questions */

static struct CUstream_st *streams; /* newest first */
static struct CUevent_st *events;
static uint64_t next_seq = 1;

struct CUstream_st *cu_streams(void) {
    return streams;
}

struct CUstream_st *cu_stream_make(int device, bool blocking) {
    struct CUstream_st *s = (struct CUstream_st *)calloc(1, sizeof *s);
    if (!s) return NULL;
    s->device = device;
    s->blocking = blocking;
    s->next = streams;
    streams = s;
    return s;
}

struct CUstream_st *cu_stream_find(cudaStream_t handle) {
    cu_device *d = &cu_rt.device[cu_device_now()];
    if (handle == NULL || handle == cudaStreamLegacy) {
        if (!d->legacy && (d->legacy = cu_stream_make(cu_device_now(), false)))
            d->legacy->legacy = true;
        return d->legacy;
    }
    for (struct CUstream_st *s = streams; s; s = s->next)
        if (s == handle) return s->dying || s->legacy ? NULL : s;
    return NULL;
}

static void stream_free(struct CUstream_st *s) {
    struct CUstream_st **at = &streams;
    while (*at && *at != s) at = &(*at)->next;
    if (*at) *at = s->next;
    free(s->last.at);
    free(s);
}

void cu_stream_drop(struct CUstream_st *s) {
    s->dying = true;
    if (!s->head && !s->busy) stream_free(s);
}

/* ---- one step ---- */

static struct CUstream_st *legacy_of(const struct CUstream_st *s) {
    return cu_rt.device[s->device].legacy;
}

// Whose work has to happen before this head: NULL when nobody's. *seq: up to which operation.
static struct CUstream_st *blocker(struct CUstream_st *s, uint64_t *seq) {
    const cu_op *op = s->head;
    if (op->kind == CU_OP_WAIT && op->event->done < op->generation) {
        *seq = op->recorder_seq;
        return op->recorder;
    }
    *seq = op->seq;
    struct CUstream_st *legacy = legacy_of(s);
    if (s->blocking && legacy && legacy->head && legacy->head->seq < op->seq) return legacy;
    for (struct CUstream_st *t = streams; s->legacy && t; t = t->next)
        if (t->blocking && t->device == s->device && t->head && t->head->seq < op->seq) return t;
    return NULL;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int run_work(const cu_work *w) {
    if (!w->host) cu_mem_open();
    int rc = w->fn(w->arg);
    if (!w->host) cu_mem_close();
    return rc;
}

static void op_free(cu_op *op) {
    if (op->kind == CU_OP_WORK && op->work.drop) op->work.drop(op->work.arg);
    if (op->event) cu_event_unref(op->event);
    free(op);
}

static void head_done(struct CUstream_st *s) {
    cu_op *op = s->head;
    s->head = op->next;
    if (!s->head) s->tail = NULL;
    if (op->kind == CU_OP_RECORD && op->event->done < op->generation) {
        op->event->done = op->generation;
        op->event->time_ns = now_ns();
    }
    op_free(op);
    pthread_cond_broadcast(&cu_rt.moved);
    if (s->dying && !s->head) stream_free(s);
}

// True when the head is gone. After a sticky error nothing runs any more, as on a GPU.
static bool step(struct CUstream_st *s) {
    uint64_t seq;
    if (!s->head || s->busy) return false;
    cu_device *d = &cu_rt.device[s->device];
    if (!d->sticky && blocker(s, &seq)) return false;
    if (!d->sticky && s->head->kind == CU_OP_WORK) {
        s->busy = true;
        cu_unlock();
        int rc = run_work(&s->head->work);
        cu_lock();
        s->busy = false;
        if (rc == CU_EMU_AGAIN) return false;
        if (rc && !d->sticky) d->sticky = (cudaError_t)rc;
    }
    head_done(s);
    return true;
}

static bool has(const struct CUstream_st *s) {
    for (const struct CUstream_st *t = streams; t; t = t->next)
        if (t == s) return true;
    return false;
}

// One step of this stream, or of what holds it up.
static bool step_towards(struct CUstream_st *s, int depth) {
    uint64_t seq;
    if (step(s)) return true;
    if (!has(s) || !s->head || s->busy || depth > 64) return false;
    struct CUstream_st *b = blocker(s, &seq);
    return b && has(b) && step_towards(b, depth + 1);
}

static bool run_to(struct CUstream_st *s, uint64_t seq) {
    bool moved = false;
    while (has(s) && s->head && s->head->seq <= seq && step_towards(s, 0)) moved = true;
    return moved;
}

static int count_streams(void) {
    int n = 0;
    for (struct CUstream_st *s = streams; s; s = s->next) n++;
    return n;
}

// While a step runs the lock is open: streams come and go.
static bool step_any(void) {
    for (int tries = 0, n; (n = count_streams()) > 0 && tries < 2 * n; tries++) {
        struct CUstream_st *s = streams;
        for (int k = cu_random_below(n); k > 0; k--) s = s->next;
        if (step(s)) return true;
    }
    return false;
}

static bool step_others(void) {
    for (struct CUstream_st *s = streams; s; s = s->next)
        if (step(s)) return true;
    return false;
}

// Somebody else's thread, process or closure has to move first.
static void wait_a_little(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 200000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    pthread_cond_timedwait(&cu_rt.moved, &cu_rt.lock, &t);
}

static void drive(struct CUstream_st *s, uint64_t seq, const struct CUevent_st *event,
                  uint64_t generation) {
    while (event ? event->done < generation : has(s) && s->head && s->head->seq <= seq) {
        bool moved = cu_rt.config.pace == CU_EMU_MIXED && step_any();
        if (!moved && has(s)) moved = step_towards(s, 0);
        if (!moved) moved = step_others();
        if (!moved) wait_a_little();
    }
}

/* ---- queueing ---- */

static void after_push(struct CUstream_st *s) {
    if (cu_rt.config.pace == CU_EMU_EAGER) run_to(s, UINT64_MAX);
    if (cu_rt.config.pace != CU_EMU_MIXED) return;
    for (int n = cu_random_below(4); n > 0; n--) step_any();
}

static cu_op *push(struct CUstream_st *s, cu_op_kind kind, struct CUevent_st *event) {
    cu_op *op = (cu_op *)calloc(1, sizeof *op);
    if (!op) return NULL;
    op->seq = next_seq++;
    op->kind = kind;
    op->event = event;
    if (event) event->refs++;
    *(s->tail ? &s->tail->next : &s->head) = op;
    s->tail = op;
    return op;
}

cudaError_t cu_stream_push(struct CUstream_st *s, const cu_work *w) {
    cudaError_t err = cu_capture_legacy(s);
    if (!err && s->graph) return cu_graph_add(s, w);
    cu_op *op = err ? NULL : push(s, CU_OP_WORK, NULL);
    if (!op) {
        if (w->drop) w->drop(w->arg);
        return err ? err : cudaErrorMemoryAllocation;
    }
    op->work = *w;
    after_push(s);
    return cudaSuccess;
}

void cu_stream_drain(struct CUstream_st *s) {
    uint64_t last = next_seq - 1;
    if (s) {
        drive(s, last, NULL, 0);
        return;
    }
    int device = cu_device_now();
    for (;;) {
        struct CUstream_st *t = streams;
        while (t && !(t->device == device && t->head && t->head->seq <= last)) t = t->next;
        if (!t) return;
        drive(t, last, NULL, 0);
    }
}

static void poll(struct CUstream_st *s) {
    if (cu_rt.config.pace == CU_EMU_EAGER) {
        if (!run_to(s, UINT64_MAX)) step_others();
        return;
    }
    if (cu_rt.config.pace == CU_EMU_MIXED) step_any();
    if (!has(s) || ++s->polls < LAZY_POLLS) return;
    s->polls = 0;
    if (!step_towards(s, 0)) step_others();
}

bool cu_stream_poll(struct CUstream_st *s) {
    if (s->head) poll(s);
    return !s->head;
}

/* ---- events ---- */

struct CUevent_st *cu_event_make(int device, unsigned flags) {
    struct CUevent_st *e = (struct CUevent_st *)calloc(1, sizeof *e);
    if (!e) return NULL;
    e->refs = 1;
    e->device = device;
    e->flags = flags;
    e->next = events;
    events = e;
    return e;
}

struct CUevent_st *cu_event_find(cudaEvent_t handle) {
    for (struct CUevent_st *e = events; e; e = e->next)
        if (e == handle) return e;
    return NULL;
}

void cu_event_unref(struct CUevent_st *e) {
    if (--e->refs) return;
    free(e->deps.at);
    free(e);
}

void cu_event_forget(struct CUevent_st *e) {
    struct CUevent_st **at = &events;
    while (*at && *at != e) at = &(*at)->next;
    if (*at) *at = e->next;
    cu_event_unref(e);
}

cudaError_t cu_stream_record(struct CUstream_st *s, struct CUevent_st *e) {
    if (s->graph) {
        e->graph = s->graph;
        e->deps.n = 0;
        return cu_deps_add(&e->deps, s->last.at, s->last.n) ? cudaSuccess
                                                            : cudaErrorMemoryAllocation;
    }
    cudaError_t err = cu_capture_legacy(s);
    cu_op *op = err ? NULL : push(s, CU_OP_RECORD, e);
    if (!op) return err ? err : cudaErrorMemoryAllocation;
    e->graph = NULL;
    e->stream = s;
    e->stream_seq = op->seq;
    op->generation = ++e->issued;
    after_push(s);
    return cudaSuccess;
}

// An event of a capture brings the waiting stream into it; others may not reach into a capture.
static cudaError_t wait_captured(struct CUstream_st *s, struct CUevent_st *e) {
    if (s->graph && s->graph != e->graph) {
        s->graph->invalid = e->graph->invalid = true;
        return cudaErrorStreamCaptureMerge;
    }
    if (s->legacy) return cudaErrorStreamCaptureImplicit;
    if (!s->graph) s->last.n = 0;
    s->graph = e->graph;
    return cu_deps_add(&s->last, e->deps.at, e->deps.n) ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cu_stream_wait(struct CUstream_st *s, struct CUevent_st *e) {
    if (e->graph) return wait_captured(s, e);
    if (s->graph) {
        // An event that was never recorded is no dependency; one of outside work is an error.
        if (!e->issued) return cudaSuccess;
        s->graph->invalid = true;
        return cudaErrorStreamCaptureIsolation;
    }
    cudaError_t err = cu_capture_legacy(s);
    if (err || e->done >= e->issued) return err;
    cu_op *op = push(s, CU_OP_WAIT, e);
    if (!op) return cudaErrorMemoryAllocation;
    op->generation = e->issued;
    op->recorder = e->stream;
    op->recorder_seq = e->stream_seq;
    after_push(s);
    return cudaSuccess;
}

void cu_events_leave(const struct CUgraph_st *g) {
    for (struct CUevent_st *e = events; e; e = e->next)
        if (e->graph == g) e->graph = NULL;
}

void cu_event_drain(struct CUevent_st *e) {
    e->refs++;
    drive(e->stream, e->stream_seq, e, e->issued);
    cu_event_unref(e);
}

bool cu_event_poll(struct CUevent_st *e) {
    e->refs++;
    if (e->done < e->issued && has(e->stream)) poll(e->stream);
    bool done = e->done >= e->issued;
    cu_event_unref(e);
    return done;
}

void cu_streams_reset(void) {
    while (streams) {
        struct CUstream_st *s = streams;
        while (s->head) {
            cu_op *op = s->head;
            s->head = op->next;
            op_free(op);
        }
        stream_free(s);
    }
    for (int i = 0; i < CU_MAX_DEVICES; i++) cu_rt.device[i].legacy = NULL;
    while (events) cu_event_forget(events);
}
