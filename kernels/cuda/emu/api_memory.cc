// Memory and copies, under the runtime's names.
//
// Asynchronous copies read pinned memory when they happen, and pageable memory when they are called,
// as CUDA does: a staging buffer that is filled again too early shows in the lazy pace.
#include "kernels/cuda/emu/stream.h"

#include <stdlib.h>
#include <string.h>

cudaError_t cudaMalloc(void **ptr, size_t size) {
    cudaError_t err = cu_enter();
    if (!err) err = cu_capture_forbids();
    if (!err && !ptr) err = cudaErrorInvalidValue;
    if (!err && size == 0) {
        *ptr = NULL;
        return cu_leave(cudaSuccess);
    }
    if (!err) err = cu_mem_take(ptr, size, cu_device_now());
    return cu_leave(err);
}

// Waits for the device, as cudaFree does; then nothing queued can still use the memory.
cudaError_t cudaFree(void *ptr) {
    cudaError_t err = cu_enter();
    if (!err && ptr) err = cu_capture_forbids();
    if (!err) cu_stream_drain(NULL);
    if (!err && ptr) err = cu_mem_drop(ptr);
    return cu_leave(err);
}

cudaError_t cudaMallocAsync(void **ptr, size_t size, cudaStream_t stream) {
    cudaError_t err = cu_enter();
    struct CUstream_st *s = err ? NULL : cu_stream_find(stream);
    if (!err && !s) err = cudaErrorInvalidResourceHandle;
    if (!err && s->graph) err = cudaErrorNotSupported; // memory nodes of graphs
    if (!err && !ptr) err = cudaErrorInvalidValue;
    if (!err && size == 0) {
        *ptr = NULL;
        return cu_leave(cudaSuccess);
    }
    if (!err) err = cu_mem_take(ptr, size, s->device);
    return cu_leave(err);
}

static int free_run(void *ptr) {
    cu_lock();
    cudaError_t err = cu_mem_drop(ptr);
    cu_unlock();
    return err ? cudaErrorIllegalAddress : 0;
}

cudaError_t cudaFreeAsync(void *ptr, cudaStream_t stream) {
    cudaError_t err = cu_enter();
    struct CUstream_st *s = err ? NULL : cu_stream_find(stream);
    void *base = NULL;
    if (!err && !s) err = cudaErrorInvalidResourceHandle;
    if (!err && s->graph) err = cudaErrorNotSupported;
    if (!err && !ptr) return cu_leave(cudaSuccess);
    if (!err && (!cu_mem_find(ptr, &base, NULL, NULL) || base != ptr)) err = cudaErrorInvalidValue;
    cu_work w = {"free", free_run, ptr, NULL, false};
    if (!err) err = cu_stream_push(s, &w);
    return cu_leave(err);
}

cudaError_t cudaHostAlloc(void **ptr, size_t size, unsigned int flags) {
    cudaError_t err = cu_enter();
    if (!err) err = cu_capture_forbids();
    if (!err && (!ptr || flags > 7)) err = cudaErrorInvalidValue;
    if (!err) err = cu_pin_take(ptr, size);
    return cu_leave(err);
}

cudaError_t cudaMallocHost(void **ptr, size_t size) {
    return cudaHostAlloc(ptr, size, 0);
}

cudaError_t cudaFreeHost(void *ptr) {
    cudaError_t err = cu_enter();
    if (!err && ptr) err = cu_capture_forbids();
    if (!err) cu_stream_drain(NULL);
    if (!err && ptr) err = cu_pin_drop(ptr);
    return cu_leave(err);
}

cudaError_t cudaHostRegister(void *ptr, size_t size, unsigned int flags) {
    cudaError_t err = cu_enter();
    if (!err && (flags & ~0xfu)) err = cudaErrorInvalidValue;
    if (!err) err = cu_pin_add(ptr, size, false);
    return cu_leave(err);
}

cudaError_t cudaHostUnregister(void *ptr) {
    cudaError_t err = cu_enter();
    if (!err) cu_stream_drain(NULL);
    if (!err) err = cu_pin_remove(ptr);
    return cu_leave(err);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags) {
    cudaError_t err = cu_enter();
    if (!err && (!device || flags || !cu_pin_find(host, NULL, NULL))) err = cudaErrorInvalidValue;
    if (!err) *device = host;
    return cu_leave(err);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    cudaError_t err = cu_enter();
    if (!err && (!free_bytes || !total)) err = cudaErrorInvalidValue;
    if (!err) {
        *total = cu_rt.config.memory_bytes;
        *free_bytes = *total - cu_rt.device[cu_device_now()].used;
    }
    return cu_leave(err);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *ptr) {
    cudaError_t err = cu_enter();
    if (!err && !a) err = cudaErrorInvalidValue;
    if (err) return cu_leave(err);
    memset(a, 0, sizeof *a);
    a->device = -1;
    a->type = cudaMemoryTypeUnregistered;
    if (cu_mem_find(ptr, NULL, NULL, &a->device)) {
        a->type = cudaMemoryTypeDevice;
        a->devicePointer = (void *)(uintptr_t)ptr;
    } else if (cu_pin_find(ptr, NULL, NULL)) {
        a->type = cudaMemoryTypeHost;
        a->device = cu_device_now();
        a->devicePointer = a->hostPointer = (void *)(uintptr_t)ptr;
    } else {
        a->hostPointer = (void *)(uintptr_t)ptr;
    }
    return cu_leave(cudaSuccess);
}

/* ---- copies ---- */

typedef struct copy {
    char *dst;
    const char *src;
    size_t dpitch, spitch, width, height;
    bool dst_device, src_device;
    int value; /* of a memset: src is NULL */
    char staged[];
} copy;

static size_t extent(size_t pitch, size_t width, size_t height) {
    return height ? pitch * (height - 1) + width : 0;
}

static int bad_side(const void *ptr, size_t bytes, bool device, const char *what) {
    if (!device || bytes == 0 || cu_emu_is_device(ptr, bytes)) return 0;
    char text[256];
    cu_mem_describe(ptr, text, sizeof text);
    return cu_emu_report(CU_EMU_ADDRESS, "%s of %zu bytes at %p, which is %s", what, bytes, ptr,
                         text);
}

// Looks again: what was allocated when the copy was queued may be gone when it happens.
static int copy_run(void *arg) {
    const copy *c = (const copy *)arg;
    const char *src = c->src;
    int rc = bad_side(c->dst, extent(c->dpitch, c->width, c->height), c->dst_device,
                      src ? "copy to" : "memset");
    if (!rc && src)
        rc = bad_side(src, extent(c->spitch, c->width, c->height), c->src_device, "copy from");
    for (size_t y = 0; y < c->height && !rc; y++) {
        if (src)
            memmove(c->dst + y * c->dpitch, src + y * c->spitch, c->width);
        else
            memset(c->dst + y * c->dpitch, c->value, c->width);
    }
    return rc;
}

// Which sides are the device's; an error where the pointers say something else than the kind.
static cudaError_t sides(copy *c, enum cudaMemcpyKind kind) {
    bool dst = cu_mem_inside(c->dst), src = cu_mem_inside(c->src);
    bool pinned_dst = cu_pin_find(c->dst, NULL, NULL), pinned_src = cu_pin_find(c->src, NULL, NULL);
    switch (kind) {
    case cudaMemcpyHostToHost:
        if (dst || src) return cudaErrorInvalidValue;
        break;
    case cudaMemcpyHostToDevice:
        if ((!dst && !pinned_dst) || src) return cudaErrorInvalidValue;
        break;
    case cudaMemcpyDeviceToHost:
        if (dst || (!src && !pinned_src)) return cudaErrorInvalidValue;
        break;
    case cudaMemcpyDeviceToDevice:
        if ((!dst && !pinned_dst) || (!src && !pinned_src)) return cudaErrorInvalidValue;
        break;
    case cudaMemcpyDefault:
        break;
    default:
        return cudaErrorInvalidMemcpyDirection;
    }
    c->dst_device = dst;
    c->src_device = src;
    if (dst && !cu_emu_is_device(c->dst, extent(c->dpitch, c->width, c->height)))
        return cudaErrorInvalidValue;
    if (src && !cu_emu_is_device(c->src, extent(c->spitch, c->width, c->height)))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

static cudaError_t queue_copy(const copy *what, cudaStream_t stream, bool wait) {
    struct CUstream_st *s = cu_stream_find(stream);
    if (!s) return cudaErrorInvalidResourceHandle;
    if (wait && cu_capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    size_t bytes = what->src ? extent(what->spitch, what->width, what->height) : 0;
    bool pageable_src = what->src && !what->src_device && !cu_pin_find(what->src, NULL, NULL);
    bool pageable_dst = !what->dst_device && !cu_pin_find(what->dst, NULL, NULL);
    if (s->graph && (pageable_src || pageable_dst)) {
        cu_emu_report(CU_EMU_MISUSE, "a copy of pageable host memory in a stream capture");
        return cu_capture_refuse(s);
    }
    copy *c = (copy *)malloc(sizeof *c + (pageable_src ? bytes : 0));
    if (!c) return cudaErrorMemoryAllocation;
    *c = *what;
    if (pageable_src && bytes) {
        memcpy(c->staged, c->src, bytes);
        c->src = c->staged;
    }
    cu_work w = {what->src ? "copy" : "memset", copy_run, c, free, false};
    cudaError_t err = cu_stream_push(s, &w);
    if (!err && (wait || pageable_dst)) cu_stream_drain(s);
    return err;
}

static cudaError_t copy_call(copy *c, enum cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
    cudaError_t err = cu_enter();
    if (!err && (c->width > c->dpitch || c->width > c->spitch)) err = cudaErrorInvalidPitchValue;
    if (err || !c->width || !c->height) return cu_leave(err);
    if (!c->dst || !c->src) return cu_leave(cudaErrorInvalidValue);
    err = sides(c, kind);
    if (!err) err = queue_copy(c, stream, wait);
    return cu_leave(err);
}

static copy flat(void *dst, const void *src, size_t count) {
    copy c = {(char *)dst, (const char *)src, count, count, count, 1, false, false, 0};
    return c;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind) {
    copy c = flat(dst, src, count);
    return copy_call(&c, kind, NULL, true);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    copy c = flat(dst, src, count);
    return copy_call(&c, kind, stream, false);
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t count, cudaStream_t stream) {
    cu_rt_start();
    if (dst_device < 0 || dst_device >= cu_rt.config.devices || src_device < 0 ||
        src_device >= cu_rt.config.devices)
        return cu_error(cudaErrorInvalidDevice);
    return cudaMemcpyAsync(dst, src, count, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
    copy c = {(char *)dst, (const char *)src, dpitch, spitch, width, height, false, false, 0};
    return copy_call(&c, kind, stream, false);
}

static cudaError_t set_call(void *ptr, int value, size_t count, cudaStream_t stream, bool wait) {
    cudaError_t err = cu_enter();
    if (err || !count) return cu_leave(err);
    copy c = {(char *)ptr, NULL, count, count, count, 1, true, false, value};
    if (!cu_emu_is_device(ptr, count)) err = cudaErrorInvalidValue;
    if (!err) err = queue_copy(&c, stream, wait);
    return cu_leave(err);
}

cudaError_t cudaMemset(void *ptr, int value, size_t count) {
    return set_call(ptr, value, count, NULL, true);
}

cudaError_t cudaMemsetAsync(void *ptr, int value, size_t count, cudaStream_t stream) {
    return set_call(ptr, value, count, stream, false);
}

/* ---- the pool: there is one, and it keeps nothing ---- */

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    cu_rt_start();
    if (device < 0 || device >= cu_rt.config.devices) return cu_error(cudaErrorInvalidDevice);
    *pool = (cudaMemPool_t)&cu_rt.device[device];
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attr, void *value) {
    (void)attr;
    return pool && value ? cudaSuccess : cu_error(cudaErrorInvalidValue);
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
    (void)keep;
    return pool ? cudaSuccess : cu_error(cudaErrorInvalidValue);
}
