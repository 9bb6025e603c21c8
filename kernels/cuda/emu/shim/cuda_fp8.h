/* kernels/cuda/emu/shim/cuda_fp8.h - storage types of fp8, for headers that name them. Arithmetic and
 * conversions are not emulated: a kernel that uses them does not compile for the emulator. */
#pragma once
#define __CUDA_FP8_H__ /* the toolkit's own, included later, is empty */

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
typedef struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t x;
} __nv_fp8_e4m3;
typedef struct __nv_fp8_e5m2 {
    __nv_fp8_storage_t x;
} __nv_fp8_e5m2;
