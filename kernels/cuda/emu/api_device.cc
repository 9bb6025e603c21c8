// Devices, errors and properties, under the runtime's names.
#include "kernels/cuda/emu/stream.h"

#include <stdio.h>
#include <string.h>

static __thread int device_now;
static __thread cudaError_t last_error;

int cu_device_now(void) {
    return device_now;
}

cudaError_t cu_error(cudaError_t err) {
    if (err) last_error = err;
    return err;
}

cudaError_t cu_enter(void) {
    cu_lock();
    if (cu_rt.config.devices < 1) return cudaErrorNoDevice;
    return cu_rt.device[device_now].sticky;
}

// A report may have made the error sticky while the call drove streams.
cudaError_t cu_leave(cudaError_t err) {
    if (!err || err == cudaErrorNotReady) {
        cudaError_t sticky = cu_rt.device[device_now].sticky;
        if (sticky) err = sticky;
    }
    cu_unlock();
    return cu_error(err);
}

cudaError_t cudaGetLastError(void) {
    cu_lock();
    cudaError_t err = cu_rt.device[device_now].sticky;
    cu_unlock();
    if (!err) err = last_error;
    last_error = cudaSuccess;
    return err;
}

cudaError_t cudaPeekAtLastError(void) {
    cu_lock();
    cudaError_t err = cu_rt.device[device_now].sticky;
    cu_unlock();
    return err ? err : last_error;
}

const char *cudaGetErrorName(cudaError_t error) {
    switch ((int)error) {
#define CU_VALUE(name, value) \
    case value: \
        return #name;
#define CU_ERRORS
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_ERRORS
#undef CU_VALUE
    default:
        return "unrecognized error code";
    }
}

// The name in words: "cudaErrorIllegalAddress" is "illegal address".
const char *cudaGetErrorString(cudaError_t error) {
    static __thread char text[96];
    const char *name = cudaGetErrorName(error);
    if (strncmp(name, "cuda", 4) == 0) name += 4;
    if (strncmp(name, "Error", 5) == 0) name += 5;
    size_t n = 0;
    for (const char *p = name; *p && n + 2 < sizeof text; p++) {
        bool upper = *p >= 'A' && *p <= 'Z';
        if (upper && n) text[n++] = ' ';
        text[n++] = (char)(upper ? *p + ('a' - 'A') : *p);
    }
    text[n] = 0;
    return text;
}

cudaError_t cudaDriverGetVersion(int *version) {
    cu_rt_start();
    if (!version) return cu_error(cudaErrorInvalidValue);
    *version = cu_rt.config.driver;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    if (!version) return cu_error(cudaErrorInvalidValue);
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    cu_lock();
    int n = cu_rt.config.devices, driver = cu_rt.config.driver;
    cu_unlock();
    if (!count) return cu_error(cudaErrorInvalidValue);
    // A driver serves every toolkit of its own major version.
    if (driver / 1000 < CUDART_VERSION / 1000) return cu_error(cudaErrorInsufficientDriver);
    *count = n;
    return cu_error(n ? cudaSuccess : cudaErrorNoDevice);
}

static bool device_is(int device) {
    return device >= 0 && device < cu_rt.config.devices;
}

cudaError_t cudaSetDevice(int device) {
    cu_rt_start();
    if (!device_is(device)) return cu_error(cudaErrorInvalidDevice);
    device_now = device;
    cudaError_t err = cu_enter();
    return cu_leave(err);
}

cudaError_t cudaGetDevice(int *device) {
    *device = device_now;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned int flags) {
    (void)flags;
    return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(enum cudaLimit limit, size_t value) {
    (void)limit, (void)value;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    cu_rt_start();
    if (!device_is(device) || !device_is(peer)) return cu_error(cudaErrorInvalidDevice);
    *can = device != peer && cu_rt.config.peers;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, enum cudaDeviceP2PAttr attr, int from, int to) {
    cu_rt_start();
    if (!value) return cu_error(cudaErrorInvalidValue);
    if (!device_is(from) || !device_is(to) || from == to) return cu_error(cudaErrorInvalidDevice);
    *value = attr != cudaDevP2PAttrPerformanceRank && cu_rt.config.peers;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
    cu_rt_start();
    if (!device_is(peer) || peer == device_now) return cu_error(cudaErrorInvalidDevice);
    return flags ? cu_error(cudaErrorInvalidValue) : cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

// What a card of this architecture says; code chooses its paths by it.
static void fill(struct cudaDeviceProp *p, int device) {
    int arch = cu_rt.config.arch;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device sm_%d", arch);
    memcpy(p->uuid.bytes, "emulated device", 15);
    p->uuid.bytes[15] = (char)device;
    p->totalGlobalMem = cu_rt.config.memory_bytes;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = cu_shared_most();
    p->sharedMemPerMultiprocessor = cu_shared_most() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = arch / 10;
    p->minor = arch % 10;
    p->multiProcessorCount = arch >= 100 ? 148 : arch >= 90 ? 132 : 108;
    p->l2CacheSize = (arch >= 90 ? 50 : 40) << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->memoryBusWidth = 5120;
    p->asyncEngineCount = 3;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
    p->hostRegisterSupported = p->memoryPoolsSupported = 1;
    p->pciBusID = device + 1;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device) {
    cu_rt_start();
    if (!prop) return cu_error(cudaErrorInvalidValue);
    if (!device_is(device)) return cu_error(cudaErrorInvalidDevice);
    fill(prop, device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    cu_rt_start();
    if (!value) return cu_error(cudaErrorInvalidValue);
    if (!device_is(device)) return cu_error(cudaErrorInvalidDevice);
    struct cudaDeviceProp p;
    fill(&p, device);
    const struct {
        enum cudaDeviceAttr attr;
        int value;
    } known[] = {
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrMaxBlockDimX, p.maxThreadsDim[0]},
        {cudaDevAttrMaxBlockDimY, p.maxThreadsDim[1]},
        {cudaDevAttrMaxBlockDimZ, p.maxThreadsDim[2]},
        {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, p.maxGridSize[2]},
        {cudaDevAttrMaxSharedMemoryPerBlock, (int)p.sharedMemPerBlock},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, (int)p.sharedMemPerBlockOptin},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, (int)p.sharedMemPerMultiprocessor},
        {cudaDevAttrReservedSharedMemoryPerBlock, (int)p.reservedSharedMemPerBlock},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock},
        {cudaDevAttrMaxRegistersPerMultiprocessor, p.regsPerMultiprocessor},
        {cudaDevAttrClockRate, 1410000},
        {cudaDevAttrMemoryClockRate, 1215000},
        {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth},
        {cudaDevAttrL2CacheSize, p.l2CacheSize},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrMaxBlocksPerMultiprocessor, p.maxBlocksPerMultiProcessor},
        {cudaDevAttrAsyncEngineCount, p.asyncEngineCount},
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrPciBusId, p.pciBusID},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrMemoryPoolsSupported, 1},
        {cudaDevAttrIntegrated, 0},
        {cudaDevAttrComputeMode, 0},
        {cudaDevAttrEccEnabled, 0},
        {cudaDevAttrPciDeviceId, 0},
        {cudaDevAttrManagedMemory, 0},
        {cudaDevAttrCooperativeLaunch, 0},
        {cudaDevAttrClusterLaunch, 0},
        {cudaDevAttrGPUDirectRDMASupported, 0},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].attr != attr) continue;
        *value = known[i].value;
        return cudaSuccess;
    }
    return cu_error(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int device) {
    cu_rt_start();
    if (!device_is(device)) return cu_error(cudaErrorInvalidDevice);
    if (!id || len < 13) return cu_error(cudaErrorInvalidValue);
    snprintf(id, (size_t)len, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    cudaError_t err = cu_enter();
    if (!err) err = cu_capture_forbids();
    if (!err) cu_stream_drain(NULL);
    if (!err) cu_mem_check(NULL);
    return cu_leave(err);
}

// All devices of the process: what a test begins with.
void cu_emu_reset(void) {
    cu_lock();
    cu_streams_reset();
    cu_graphs_reset();
    cu_mem_reset();
    for (int i = 0; i < CU_MAX_DEVICES; i++) {
        cu_rt.device[i].sticky = cudaSuccess;
        cu_rt.device[i].used = 0;
    }
    cu_rt.fail_launch = cu_rt.fail_malloc = cu_rt.launches = 0;
    cu_rt.random = cu_rt.config.seed;
    cu_reports_forget();
    last_error = cudaSuccess;
    cu_unlock();
}

// One device: what a program may do that gives up on it. Handles of its streams are void after it.
cudaError_t cudaDeviceReset(void) {
    cu_lock();
    cu_device *d = &cu_rt.device[device_now];
    bool only = cu_rt.config.devices <= 1;
    cu_unlock();
    if (!only) return cu_error(cudaErrorNotSupported);
    cu_lock();
    cu_streams_reset();
    cu_graphs_reset();
    cu_mem_reset();
    d->sticky = cudaSuccess;
    last_error = cudaSuccess;
    cu_unlock();
    return cudaSuccess;
}
