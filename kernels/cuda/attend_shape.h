/* kernels/cuda/attend_shape.h - the launch shapes of attention, which never change a bit of a
 * result.
 *
 * cu_attend() chooses one by T and by the longest row; tests choose each of them for the same rows
 * and compare bytes. Thread: as kernels.h. */
#pragma once

#include "kernels/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cu_attend_shape {
    int32_t rows;  /* of a tile: 16, or 64 where the head dimension is at most 128; f32: always 8 */
    bool one_each; /* a block begins at every token, or looks over a whole tile's tokens */
    bool split;    /* a block for every 256 positions, and a second kernel that merges them */
} cu_attend_shape;

/** The shape that cu_attend() takes for T rows up to position max_pos. */
cu_attend_shape cu_attend_shape_of(int32_t T, int32_t max_pos, int32_t D);

/** cu_attend() in a given shape. `scratch`: cu_attend_shape_scratch() bytes where it splits.
 * Errors: cudaErrorInvalidValue for a shape, a head or a type that there is not. */
cudaError_t cu_attend_in_shape(cudaStream_t st, float *out, int32_t ldo, const float *qkv,
                               int32_t ld, int32_t H, float scale, int32_t window,
                               const sp_kv_view *kv, const cu_rows *rows, void *scratch,
                               cu_attend_shape shape);
size_t cu_attend_shape_scratch(int32_t T, int32_t H, int32_t D, int32_t max_pos);

#ifdef __cplusplus
}
#endif
