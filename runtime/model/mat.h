/* runtime/model/mat.h - an f32 matrix over scratch memory.
 * Thread: plain data. */
#pragma once

#include "kernels/args.h"

static inline sp_mat sp_mat_of(float *data, int32_t rows, int32_t cols) {
    return (sp_mat){data, rows, cols, cols, SP_DTYPE_F32};
}
