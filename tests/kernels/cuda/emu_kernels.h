/* tests/kernels/cuda/emu_kernels.h - kernels that try the emulated device: right ones, and each
 * mistake that it must find beside the same kernel without it. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t emu_add(cudaStream_t st, float *y, const float *a, const float *b, int n);
/* y [rows][2]: the sum of each row of x [rows, n], by hand and by cu_block_sum(). */
cudaError_t emu_sum(cudaStream_t st, float *y, const float *x, int rows, int n);
cudaError_t emu_gemm(cudaStream_t st, float *c, const uint16_t *a, const uint16_t *b, int m, int n,
                     int k, int f16);
/* What the shim offers, one value each into y[0..EMU_WORDS): the test knows them. */
#define EMU_WORDS 64
cudaError_t emu_words(cudaStream_t st, float *y);
cudaError_t emu_scale(cudaStream_t st, float *y, const float *x, float by, int n);
/* Dynamic shared memory of `bytes`; y[0] = the sum of what was written there. */
cudaError_t emu_dynamic(cudaStream_t st, float *y, int bytes, int allow);

/* Mistakes: name, what finds it. VALUES: only a wrong result shows it. */
#define EMU_CASES(X) \
    X(missing_barrier) \
    X(barrier_in_branch) \
    X(early_exit_before_barrier) \
    X(two_barriers) \
    X(divergent_shuffle) \
    X(shuffle_from_an_exited_lane) \
    X(lane_outside_mask) \
    X(absent_lanes) \
    X(shared_off_by_one) \
    X(global_off_by_one) \
    X(global_far_out) \
    X(global_before) \
    X(copy_without_wait) \
    X(copy_wait_one_group_short) \
    X(ldmatrix_misaligned) \
    X(ldmatrix_outside) \
    X(shared_not_initialised) \
    X(block_reads_block) \
    X(missing_syncwarp) \
    X(tile_reused_too_early) \
    X(lost_update) \
    X(two_blocks_one_word) \
    X(unordered_in_warp) \
    X(misaligned_vector) \
    X(host_pointer_inside) \
    X(trap)
typedef enum emu_case {
#define X(name) EMU_##name,
    EMU_CASES(X)
#undef X
    EMU_N_CASES
} emu_case;

#define EMU_OUT 500 /* floats: 2000 bytes, not a multiple of the alignment */
#define EMU_IN 512
/* Runs a case, with or without its mistake. in[i] = i + 1; `host`: ordinary host memory. */
cudaError_t emu_run(emu_case which, int broken, cudaStream_t st, float *out, const float *in,
                    const float *host);

#ifdef __cplusplus
}
#endif
