/* launcher/bench_gpu_impl.h - what the files of `superpod bench gpu` share: the device with its
 * buffers, shapes, and rows of results.
 *
 *   bench_gpu.c       options, the run, table and JSON
 *   bench_gpu_ops.c   which operations at which shapes, their bytes and operations
 *   bench_gpu_time.c  medians by the device's own clock; memory that is filled
 *
 * Thread: main. */
#pragma once

#include "kernels/dev.h"

#define SP_GPU_ROWS_MAX 96

/** The shapes of one layer on one GPU; letters of kernels/args.h. */
typedef struct sp_gpu_shape {
    int32_t E, H, K, D, F, V, rope_dims;
    sp_act act;
    sp_dtype dtype, kv_dtype; /* of weights, of the cache */
} sp_gpu_shape;

typedef struct sp_gpu_row {
    char op[16], shape[48];
    double us, bytes, flops; /* of one call; a multiply-add is two */
} sp_gpu_row;

typedef struct sp_gpu_ceilings {
    double copy_bytes_s; /* read and written bytes both count */
    double gemm_flops_s; /* the largest bf16 product of this backend */
    double launch_us;    /* of the smallest operation, one after the other */
} sp_gpu_ceilings;

typedef struct sp_gpu {
    sp_dev dev;
    const sp_dev_meter *meter;
    sp_dev_info info;
    bool emulated; /* small shapes, few rounds */
    sp_gpu_shape shape;
    sp_gpu_ceilings ceilings;
    sp_gpu_row rows[SP_GPU_ROWS_MAX];
    int n_rows;
} sp_gpu;

/** Queues one call; `turn` counts them, for those who take turns among operands. */
typedef void sp_gpu_call(sp_gpu *g, void *ctx, int turn);

/** The median time of one call, after one that is not counted. Errors: the device's fault. */
SP_NODISCARD sp_status sp_gpu_time(sp_gpu *g, sp_gpu_call *call, void *ctx, double *us,
                                   sp_err *err);

/** Device memory of small random numbers of `dtype`; give it back by ops->free with these bytes.
 * Errors: SP_E_NOMEM names `what`; the device's fault. */
SP_NODISCARD sp_status sp_gpu_fill(sp_gpu *g, void **out, size_t bytes, sp_dtype dtype,
                                   const char *what, sp_err *err);
/** `n` random numbers of `dtype` in memory of the host. Owner: caller, sp_free(). NULL when short. */
void *sp_gpu_random(size_t n, sp_dtype dtype);

/** Fills ceilings. Errors: as sp_gpu_time(), sp_gpu_fill(). */
SP_NODISCARD sp_status sp_gpu_measure_ceilings(sp_gpu *g, sp_err *err);
/** Adds a row for each operation and shape. Errors: likewise. */
SP_NODISCARD sp_status sp_gpu_measure_ops(sp_gpu *g, sp_err *err);

/** Microseconds that a row needs under the ceilings; `*by_memory`: bytes are what binds it. */
double sp_gpu_floor_us(const sp_gpu_ceilings *c, const sp_gpu_row *row, bool *by_memory);
