// Launches: what is refused at the call, and what a kernel's closure does.
#include "kernels/cuda/emu/device.h"
#include "kernels/cuda/emu/stream.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ARGS 64

typedef struct kernel { /* what is known of a function that was launched or configured */
    const void *fn;
    void (*thunk)(void *fn, void **args);
    uint32_t sizes[MAX_ARGS];
    int n;
    uint64_t pointers;
    int dynamic; /* cudaFuncAttributeMaxDynamicSharedMemorySize; 0: never set */
} kernel;

static kernel *kernels;
static size_t n_kernels, cap_kernels;

static kernel *kernel_of(const void *fn, bool make) {
    for (size_t i = 0; i < n_kernels; i++)
        if (kernels[i].fn == fn) return &kernels[i];
    if (!make) return NULL;
    if (n_kernels == cap_kernels) {
        size_t cap = cap_kernels ? cap_kernels * 2 : 64;
        kernel *more = (kernel *)realloc(kernels, cap * sizeof *more);
        if (!more) return NULL;
        kernels = more;
        cap_kernels = cap;
    }
    memset(&kernels[n_kernels], 0, sizeof *kernels);
    kernels[n_kernels].fn = fn;
    return &kernels[n_kernels++];
}

typedef struct launch {
    cu_call call;
    void *args[MAX_ARGS]; /* and what they point to behind it, each at a multiple of 16 */
} launch;

static int launch_run(void *arg) {
    launch *l = (launch *)arg;
    cu_lock();
    cu_rt.launches++;
    bool fail = cu_rt.fail_launch && --cu_rt.fail_launch == 0;
    int error = cu_rt.fail_error;
    cu_unlock();
    if (fail) return error;
    int rc = cu_engine_run(&l->call);
    cu_mem_check(l->call.fn);
    return rc;
}

static size_t dynamic_most(const kernel *k) {
    return k->dynamic ? (size_t)k->dynamic : 48 * 1024;
}

static cudaError_t check_shape(const cudaLaunchConfig_t *c, const kernel *k) {
    dim3 g = c->gridDim, b = c->blockDim;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z) return cudaErrorInvalidConfiguration;
    if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
    if (b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024)
        return cudaErrorInvalidConfiguration;
    if (c->dynamicSmemBytes > dynamic_most(k)) return cudaErrorInvalidValue;
    return c->numAttrs ? cudaErrorNotSupported : cudaSuccess;
}

// NULL is an argument that a kernel may test; the end of an array is one that it may compare with.
static bool pointer_ok(const void *p) {
    return !p || cu_emu_is_device(p, 0) || cu_emu_is_device((const char *)p - 1, 0);
}

static cudaError_t check_pointers(const kernel *k, void *const *args) {
    for (int i = 0; i < k->n; i++) {
        void *p;
        if (!(k->pointers >> i & 1)) continue;
        memcpy(&p, args[i], sizeof p);
        if (pointer_ok(p)) continue;
        char what[256];
        cu_mem_describe(p, what, sizeof what);
        return (cudaError_t)cu_emu_report(CU_EMU_ADDRESS, "argument %d of %s is %p, which is %s",
                                          i + 1, cu_kernel_name(k->fn), p, what);
    }
    return cudaSuccess;
}

static size_t padded(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}

static launch *launch_make(const kernel *k, const cudaLaunchConfig_t *c, void *const *args) {
    size_t size = padded(sizeof(launch));
    for (int i = 0; i < k->n; i++) size += padded(k->sizes[i]);
    void *memory = NULL;
    if (posix_memalign(&memory, 64, size)) return NULL;
    launch *l = (launch *)memory;
    char *at = (char *)memory + padded(sizeof(launch));
    for (int i = 0; i < k->n; i++) {
        memcpy(at, args[i], k->sizes[i]);
        l->args[i] = at;
        at += padded(k->sizes[i]);
    }
    l->call = cu_call{k->thunk,    (void *)(uintptr_t)k->fn, l->args, c->gridDim,
                      c->blockDim, c->dynamicSmemBytes,      memory,  size};
    return l;
}

static cudaError_t launch_known(const kernel *k, const cudaLaunchConfig_t *c, void *const *args) {
    struct CUstream_st *s = cu_stream_find(c->stream);
    cudaError_t err = check_shape(c, k);
    if (!err && (!s || s->device != cu_device_now())) err = cudaErrorInvalidResourceHandle;
    if (err) return err;
    if ((err = check_pointers(k, args))) {
        cu_rt.device[s->device].sticky = err;
        return err;
    }
    launch *l = launch_make(k, c, args);
    if (!l) return cudaErrorMemoryAllocation;
    cu_work w = {"kernel", launch_run, l, free, false};
    return cu_stream_push(s, &w);
}

cudaError_t cu_emu_launch(void *fn, void (*thunk)(void *fn, void **args),
                          const cudaLaunchConfig_t *config, void *const *args,
                          const uint32_t *sizes, int n, uint64_t pointers) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    kernel *k = kernel_of(fn, true);
    size_t sum = 0;
    for (int i = 0; i < n && i < MAX_ARGS; i++) sum += sizes[i];
    if (!k || n > MAX_ARGS || sum > CU_MAX_ARGS_BYTES) return cu_leave(cudaErrorInvalidValue);
    k->thunk = thunk;
    k->n = n;
    k->pointers = pointers;
    for (int i = 0; i < n; i++) k->sizes[i] = sizes[i];
    kernel copy = *k; // the table may move while this launch runs
    return cu_leave(launch_known(&copy, config, args));
}

// Without types nobody can call a function: one that was never launched by cu_launch() is unknown.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *func, void **args) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    const kernel *k = kernel_of(func, false);
    if (!config || !k || !k->thunk) return cu_leave(cudaErrorInvalidDeviceFunction);
    kernel copy = *k;
    return cu_leave(launch_known(&copy, config, args));
}

cudaError_t cudaLaunchKernel(const void *func, dim3 grid, dim3 block, void **args, size_t smem,
                             cudaStream_t stream) {
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = smem;
    c.stream = stream;
    return cudaLaunchKernelExC(&c, func, args);
}

static int most_shared(void) {
    return (int)cu_shared_most();
}

cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    kernel *k = kernel_of(func, true);
    if (!func || !k) return cu_leave(cudaErrorInvalidDeviceFunction);
    switch (attr) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 || value > most_shared()) return cu_leave(cudaErrorInvalidValue);
        k->dynamic = value;
        break;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
        if (value < -1 || value > 100) return cu_leave(cudaErrorInvalidValue);
        break;
    default:
        return cu_leave(cudaErrorInvalidValue);
    }
    return cu_leave(cudaSuccess);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attr, const void *func) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    kernel *k = kernel_of(func, true);
    if (!attr || !func || !k) return cu_leave(cudaErrorInvalidValue);
    memset(attr, 0, sizeof *attr);
    attr->maxThreadsPerBlock = 1024;
    attr->numRegs = 64;
    attr->ptxVersion = attr->binaryVersion = cu_rt.config.arch;
    attr->maxDynamicSharedSizeBytes = (int)dynamic_most(k);
    attr->preferredShmemCarveout = -1;
    return cu_leave(cudaSuccess);
}

// By threads and dynamic shared memory; registers are unknown here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *func, int block,
                                                          size_t smem) {
    cudaError_t err = cu_enter();
    if (err) return cu_leave(err);
    const kernel *k = kernel_of(func, true);
    if (!n || !k || block < 1) return cu_leave(cudaErrorInvalidValue);
    size_t by_shared = ((size_t)most_shared() + 1024) / (smem + 1024);
    int by_threads = 2048 / ((block + 31) / 32 * 32);
    *n = block > 1024 || smem > dynamic_most(k) ? 0
         : by_shared < (size_t)by_threads       ? (int)by_shared
                                                : by_threads;
    if (*n > 32) *n = 32;
    return cu_leave(cudaSuccess);
}
