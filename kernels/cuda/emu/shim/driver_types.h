/* kernels/cuda/emu/shim/driver_types.h - the types of the CUDA runtime that the emulated device
 * knows. Names and values are the toolkit's interface; values.inc has the list that a check compares
 * with the toolkit where that is installed. Handles are opaque, as there. */
#pragma once
#define __DRIVER_TYPES_H__ /* the toolkit's own, included later, is empty */

#include <stddef.h>
#include <vector_types.h>

#define CUDART_CB
#define __host__
#define __device__

#define cudaHostAllocDefault 0x00
#define cudaHostAllocPortable 0x01
#define cudaHostAllocMapped 0x02
#define cudaHostAllocWriteCombined 0x04
#define cudaHostRegisterDefault 0x00
#define cudaHostRegisterPortable 0x01
#define cudaHostRegisterMapped 0x02
#define cudaHostRegisterReadOnly 0x08
#define cudaStreamDefault 0x00
#define cudaStreamNonBlocking 0x01
#define cudaStreamLegacy ((cudaStream_t)0x1)
#define cudaStreamPerThread ((cudaStream_t)0x2)
#define cudaEventDefault 0x00
#define cudaEventBlockingSync 0x01
#define cudaEventDisableTiming 0x02
#define cudaEventInterprocess 0x04
#define cudaEventRecordDefault 0x00
#define cudaEventWaitDefault 0x00
#define cudaDeviceScheduleAuto 0x00
#define cudaDeviceScheduleSpin 0x01
#define cudaDeviceScheduleYield 0x02
#define cudaDeviceScheduleBlockingSync 0x04

enum cudaError {
#define CU_VALUE(name, value) name = (value),
#define CU_ERRORS
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_ERRORS
};
enum cudaDeviceAttr {
#define CU_ATTRS
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_ATTRS
};
enum cudaDeviceP2PAttr {
#define CU_P2P
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_P2P
};
enum cudaMemcpyKind {
#define CU_KINDS
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_KINDS
};
enum cudaMemoryType {
#define CU_MEMORY
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_MEMORY
};
enum cudaStreamCaptureMode {
#define CU_CAPTURE_MODE
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_CAPTURE_MODE
};
enum cudaStreamCaptureStatus {
#define CU_CAPTURE_STATUS
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_CAPTURE_STATUS
};
enum cudaFuncAttribute {
#define CU_FUNC
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_FUNC
};
enum cudaLimit {
#define CU_LIMIT
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_LIMIT
};
enum cudaMemPoolAttr {
#define CU_POOL
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_POOL
};
enum cudaGraphExecUpdateResult {
#define CU_UPDATE
#include "kernels/cuda/emu/shim/values.inc"
#undef CU_UPDATE
#undef CU_VALUE
};

typedef enum cudaError cudaError_t;
typedef enum cudaGraphExecUpdateResult cudaGraphExecUpdateResult;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;
typedef struct CUmemPoolHandler_st *cudaMemPool_t;
typedef void (*cudaHostFn_t)(void *user);

typedef struct CUuuid_st {
    char bytes[16];
} CUuuid;
typedef CUuuid cudaUUID_t;

/* The fields that a server asks for; the toolkit's struct has more. */
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize;
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
    size_t totalConstMem;
    int major, minor, multiProcessorCount, integrated, canMapHostMemory;
    int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID;
    int asyncEngineCount, unifiedAddressing, memoryBusWidth, l2CacheSize;
    int maxThreadsPerMultiProcessor;
    size_t sharedMemPerMultiprocessor;
    int regsPerMultiprocessor, managedMemory, cooperativeLaunch;
    size_t sharedMemPerBlockOptin;
    int maxBlocksPerMultiProcessor;
    size_t reservedSharedMemPerBlock;
    int hostRegisterSupported, memoryPoolsSupported, clusterLaunch;
};

struct cudaPointerAttributes {
    enum cudaMemoryType type;
    int device;
    void *devicePointer;
    void *hostPointer;
};

struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA;
    int maxDynamicSharedSizeBytes, preferredShmemCarveout;
};

/* Attributes of a launch are refused (numAttrs must be 0): clusters and programmatic launches are
 * paths of real hardware. */
typedef struct cudaLaunchAttribute_st {
    int id;
    char pad[68];
} cudaLaunchAttribute;

typedef struct cudaLaunchConfig_st {
    dim3 gridDim;
    dim3 blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned int numAttrs;
} cudaLaunchConfig_t;

typedef struct cudaGraphExecUpdateResultInfo_st {
    enum cudaGraphExecUpdateResult result;
    cudaGraphNode_t errorNode, errorFromNode;
} cudaGraphExecUpdateResultInfo;
