// Where the CUDA toolkit is installed: its enumerators against the shim's (at compile time), and its
// own host conversions for the test to compare with.
#include "kernels/cuda/emu/half.h"

#include <stdint.h>
#include <string.h>

#ifdef EMU_TOOLKIT
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#define CU_VALUE(name, value) static_assert((int)name == value, #name);
#define CU_ERRORS
#define CU_ATTRS
#define CU_P2P
#define CU_KINDS
#define CU_MEMORY
#define CU_CAPTURE_MODE
#define CU_CAPTURE_STATUS
#define CU_FUNC
#define CU_LIMIT
#define CU_POOL
#define CU_UPDATE
#include "kernels/cuda/emu/shim/values.inc"

static_assert(cudaStreamNonBlocking == 1 && cudaEventDisableTiming == 2, "flags");
static_assert(cudaHostAllocWriteCombined == 4 && cudaHostRegisterReadOnly == 8, "flags");
static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8, "vectors");
static_assert(sizeof(float3) == 12 && alignof(ushort4) == 8 && alignof(uchar4) == 4, "vectors");
static_assert(sizeof(dim3) == 12 && alignof(uint4) == 16 && alignof(short2) == 4, "vectors");
static_assert(alignof(longlong2) == 16 && alignof(double2) == 16, "vectors");

extern "C" int emu_toolkit(void) {
    return 1;
}
extern "C" uint16_t emu_toolkit_bf16(float f) {
    __nv_bfloat16_raw raw = __float2bfloat16_rn(f);
    return raw.x;
}
extern "C" uint16_t emu_toolkit_f16(float f) {
    __half_raw raw = __float2half_rn(f);
    return raw.x;
}
extern "C" float emu_toolkit_from_bf16(uint16_t bits) {
    __nv_bfloat16_raw raw;
    raw.x = bits;
    return __bfloat162float(__nv_bfloat16(raw));
}
extern "C" float emu_toolkit_from_f16(uint16_t bits) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
}
#else
extern "C" int emu_toolkit(void) {
    return 0;
}
extern "C" uint16_t emu_toolkit_bf16(float f) {
    return cu_bf16_from_float(f);
}
extern "C" uint16_t emu_toolkit_f16(float f) {
    return cu_f16_from_float(f);
}
extern "C" float emu_toolkit_from_bf16(uint16_t bits) {
    return cu_bf16_to_float(bits);
}
extern "C" float emu_toolkit_from_f16(uint16_t bits) {
    return cu_f16_to_float(bits);
}
#endif
