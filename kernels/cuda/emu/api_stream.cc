// Streams, events and host functions, under the runtime's names.
#include "kernels/cuda/emu/stream.h"

#include <stdlib.h>

static cudaError_t find(cudaStream_t handle, struct CUstream_st **s) {
    cudaError_t err = cu_enter();
    if (err) return err;
    *s = cu_stream_find(handle);
    return *s ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority) {
    (void)priority;
    cudaError_t err = cu_enter();
    if (!err && (!stream || flags > cudaStreamNonBlocking)) err = cudaErrorInvalidValue;
    struct CUstream_st *s =
        err ? NULL : cu_stream_make(cu_device_now(), flags != cudaStreamNonBlocking);
    if (!err && !s) err = cudaErrorMemoryAllocation;
    if (!err) *stream = s;
    return cu_leave(err);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    if (!err && (s->legacy || s->graph)) err = cudaErrorInvalidResourceHandle;
    if (!err) cu_stream_drop(s);
    return cu_leave(err);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    if (!err) err = cu_capture_refuse(s);
    if (!err) cu_stream_drain(s);
    return cu_leave(err);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    if (!err) err = cu_capture_refuse(s);
    if (!err && !cu_stream_poll(s)) err = cudaErrorNotReady;
    return cu_leave(err);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    struct CUevent_st *e = err ? NULL : cu_event_find(event);
    if (!err && !e) err = cudaErrorInvalidResourceHandle;
    if (!err && flags) err = cudaErrorInvalidValue;
    if (!err) err = cu_stream_wait(s, e);
    return cu_leave(err);
}

typedef struct host_call {
    cudaHostFn_t fn;
    void *user;
} host_call;

static int host_run(void *arg) {
    const host_call *h = (const host_call *)arg;
    h->fn(h->user);
    return 0;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    if (!err && !fn) err = cudaErrorInvalidValue;
    host_call *h = err ? NULL : (host_call *)malloc(sizeof *h);
    if (!err && !h) err = cudaErrorMemoryAllocation;
    if (err) return cu_leave(err);
    h->fn = fn;
    h->user = user;
    cu_work w = {"host function", host_run, h, free, true};
    return cu_leave(cu_stream_push(s, &w));
}

cudaError_t cu_emu_enqueue(cudaStream_t stream, const char *name, int (*fn)(void *arg), void *arg,
                           void (*drop)(void *arg)) {
    struct CUstream_st *s = NULL;
    cudaError_t err = find(stream, &s);
    cu_work w = {name, fn, arg, drop, false};
    if (err && drop) drop(arg);
    if (!err) err = cu_stream_push(s, &w);
    return cu_leave(err);
}

/* ---- events ---- */

static cudaError_t find_event(cudaEvent_t handle, struct CUevent_st **e) {
    cudaError_t err = cu_enter();
    if (err) return err;
    *e = cu_event_find(handle);
    return *e ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    cudaError_t err = cu_enter();
    if (!err && (!event || flags > 3)) err = cudaErrorInvalidValue;
    struct CUevent_st *e = err ? NULL : cu_event_make(cu_device_now(), flags);
    if (!err && !e) err = cudaErrorMemoryAllocation;
    if (!err) *event = e;
    return cu_leave(err);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    struct CUevent_st *e = NULL;
    cudaError_t err = find_event(event, &e);
    struct CUstream_st *s = err ? NULL : cu_stream_find(stream);
    if (!err && (!s || s->device != e->device)) err = cudaErrorInvalidResourceHandle;
    if (!err) err = cu_stream_record(s, e);
    return cu_leave(err);
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
    if (flags) return cu_error(cudaErrorInvalidValue);
    return cudaEventRecord(event, stream);
}

static cudaError_t captured(const struct CUevent_st *e) {
    if (!e->graph) return cudaSuccess;
    e->graph->invalid = true;
    return cudaErrorCapturedEvent;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    struct CUevent_st *e = NULL;
    cudaError_t err = find_event(event, &e);
    if (!err) err = captured(e);
    if (!err && !cu_event_poll(e)) err = cudaErrorNotReady;
    return cu_leave(err);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    struct CUevent_st *e = NULL;
    cudaError_t err = find_event(event, &e);
    if (!err) err = captured(e);
    if (!err) cu_event_drain(e);
    return cu_leave(err);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    struct CUevent_st *a = NULL;
    cudaError_t err = find_event(start, &a);
    struct CUevent_st *b = err ? NULL : cu_event_find(end);
    if (!err && (!b || !ms || !a->issued || !b->issued)) err = cudaErrorInvalidResourceHandle;
    if (!err && ((a->flags | b->flags) & cudaEventDisableTiming))
        err = cudaErrorInvalidResourceHandle;
    if (!err && (a->done < a->issued || b->done < b->issued)) err = cudaErrorNotReady;
    if (!err) *ms = (float)((double)(b->time_ns - a->time_ns) / 1e6);
    return cu_leave(err);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    struct CUevent_st *e = NULL;
    cudaError_t err = find_event(event, &e);
    if (!err) cu_event_forget(e);
    return cu_leave(err);
}
