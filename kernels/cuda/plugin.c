/* The entry of superpod_cuda.so and superpod_cuda_emu.so, and what can be said of a GPU before it is
 * opened: every reason not to use it has its own words. */
#include "kernels/cuda/cuda_dev.h"

#include <ctype.h>
#include <stdio.h>

/* The oldest architecture that has a kernel for every operation (bf16 tensor cores, cp.async). */
#define MAJOR_MIN 8

static sp_status refuse_device(int code, sp_err *err) {
    int driver = 0, toolkit = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&toolkit);
    if (code == cudaErrorNoDevice)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "no GPU on this machine (%s)",
                       cudaGetErrorName((cudaError_t)code));
    if (code == cudaErrorInsufficientDriver && driver == 0)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "no CUDA driver on this machine (%s)",
                       cudaGetErrorName((cudaError_t)code));
    if (code == cudaErrorInsufficientDriver)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "the CUDA driver is of version %d.%d, older than the toolkit %d.%d that "
                       "this superpod was built with",
                       driver / 1000, driver % 1000 / 10, toolkit / 1000, toolkit % 1000 / 10);
    return SP_FAIL(err, SP_E_DEVICE, "no GPU can be used: %s (%s)",
                   cudaGetErrorName((cudaError_t)code), cudaGetErrorString((cudaError_t)code));
}

sp_status cu_probe(sp_dev_info *out, int index, sp_err *err) {
    int n = 0;
    struct cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) return refuse_device((int)e, err);
    if (n < 1) return refuse_device(cudaErrorNoDevice, err);
    if (index < 0 || index >= n)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "GPU %d is wanted, this process sees %d", index, n);
    e = cudaGetDeviceProperties(&prop, index);
    if (e != cudaSuccess) return refuse_device((int)e, err);
    if (prop.major < MAJOR_MIN)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "GPU %d '%.64s' has compute capability %d.%d, want %d.0 or newer", index,
                       prop.name, prop.major, prop.minor, MAJOR_MIN);
    *out = (sp_dev_info){.n_devices = n,
                         .major = prop.major,
                         .minor = prop.minor,
                         .units = prop.multiProcessorCount,
                         .memory_bytes = prop.totalGlobalMem,
                         .cache_bytes = (uint64_t)prop.l2CacheSize};
    snprintf(out->name, sizeof out->name, "%.63s", prop.name);
    (void)cudaDriverGetVersion(&out->driver);
    (void)cudaRuntimeGetVersion(&out->toolkit);
    /* CUDA writes an address in capitals, /sys does not. */
    if (cudaDeviceGetPCIBusId(out->address, (int)sizeof out->address, index) != cudaSuccess)
        out->address[0] = 0;
    for (char *c = out->address; *c; c++) *c = (char)tolower((unsigned char)*c);
    return SP_OK;
}

static sp_status link_of(sp_dev_link *out, int from, int to, sp_err *err) {
    sp_dev_info info;
    int can = 0, atomics = 0, rank = 0;
    SP_TRY(cu_probe(&info, from, err));
    SP_TRY(cu_probe(&info, to, err));
    cudaError_t e = from == to ? cudaSuccess : cudaDeviceCanAccessPeer(&can, from, to);
    if (e != cudaSuccess) return refuse_device((int)e, err);
    /* A driver that does not tell these leaves them 0. */
    if (can) {
        (void)cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to);
        (void)cudaDeviceGetP2PAttribute(&rank, cudaDevP2PAttrPerformanceRank, from, to);
        (void)cudaGetLastError();
    }
    *out = (sp_dev_link){.peer = can != 0, .atomics = atomics != 0, .rank = rank};
    return SP_OK;
}

static const sp_dev_plugin plugin = {
    .abi = SP_DEV_PLUGIN_ABI,
    .name = CU_BACKEND,
    .ops = &cu_dev_ops,
    .probe = cu_probe,
    .groups = &cu_dev_groups,
    .link = link_of,
    .meter = &cu_meter,
};

const sp_dev_plugin *superpod_device_plugin(int abi);
__attribute__((visibility("default"))) const sp_dev_plugin *superpod_device_plugin(int abi) {
    return abi == SP_DEV_PLUGIN_ABI ? &plugin : NULL;
}
