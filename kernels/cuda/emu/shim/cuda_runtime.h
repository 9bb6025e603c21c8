/* kernels/cuda/emu/shim/cuda_runtime.h - what CUDA sources include: the runtime's C interface, and for
 * C++ the language of kernels (kernels/cuda/emu/language.cuh). */
#pragma once
#define __CUDA_RUNTIME_H__ /* the toolkit's own, included later, is empty */

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#ifdef __cplusplus
#include "kernels/cuda/emu/language.cuh"
#endif
