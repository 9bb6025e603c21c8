// Each mistake beside the kernel without it: BROKEN is the only difference.
#include "tests/kernels/cuda/emu_kernels.h"

#include "kernels/cuda/portable.cuh"

#define CASE(name) \
    template <bool BROKEN> \
    __global__ void name(float *out, [[maybe_unused]] const float *in, \
                         [[maybe_unused]] emu_extra x)

struct emu_extra {
    const float *host, *device;
};

CASE(missing_barrier) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    s[t] = in[t];
    if (!BROKEN) __syncthreads();
    out[t] = s[127 - t];
}

CASE(barrier_in_branch) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    s[t] = in[t];
    if (!BROKEN || t < 32) __syncthreads();
    out[t] = s[t ^ 1];
}

CASE(early_exit_before_barrier) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    if (BROKEN && t >= 100) return;
    s[t] = in[t];
    __syncthreads();
    if (t < 100) out[t] = s[99 - t];
}

CASE(two_barriers) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    s[t] = in[t];
    if (BROKEN && t < 64) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[t] = s[127 - t];
}

CASE(divergent_shuffle) {
    int t = (int)threadIdx.x;
    float v = in[t];
    if (BROKEN) {
        if (t % 32 < 16)
            v += __shfl_xor_sync(0xffffffffu, v, 1);
        else
            v += __shfl_xor_sync(0xffffffffu, v, 2);
    } else {
        v += __shfl_xor_sync(0xffffffffu, v, 1);
    }
    out[t] = v;
}

CASE(shuffle_from_an_exited_lane) {
    int t = (int)threadIdx.x;
    if (BROKEN && t % 32 == 31) return;
    out[t] = __shfl_down_sync(0xffffffffu, in[t], 1);
}

CASE(lane_outside_mask) {
    int t = (int)threadIdx.x;
    unsigned mask = BROKEN ? 0xffffu : 0xffffffffu;
    out[t] = __shfl_xor_sync(mask, in[t], 1);
}

CASE(absent_lanes) {
    int t = (int)threadIdx.x;
    unsigned mask = BROKEN || t < 32 ? 0xffffffffu : 0xffffu;
    out[t] = __shfl_xor_sync(mask, in[t], 1);
}

CASE(shared_off_by_one) {
    CU_SHARED(float, s, [64]);
    int t = (int)threadIdx.x;
    if (t < (BROKEN ? 65 : 64)) s[t] = in[t];
    __syncthreads();
    if (t < 64) out[t] = s[63 - t];
}

CASE(global_off_by_one) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (BROKEN ? i <= EMU_OUT : i < EMU_OUT) out[i] = in[i];
}

CASE(global_far_out) {
    int i = (int)threadIdx.x;
    out[BROKEN && i == 3 ? i + 4096 : i] = in[i];
}

CASE(global_before) {
    int i = (int)threadIdx.x;
    if (BROKEN && i == 0) out[-1] = 1;
    out[i] = in[i];
}

CASE(copy_without_wait) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    if (t < 32) cu_cp_async16(&s[t * 4], &in[t * 4]);
    cu_cp_async_commit();
    if (!BROKEN) cu_cp_async_wait<0>();
    __syncthreads();
    out[t] = s[127 - t];
}

CASE(copy_wait_one_group_short) {
    CU_SHARED(float, s, [2][128]);
    int t = (int)threadIdx.x;
    for (int g = 0; g < 2; g++) {
        if (t < 32) cu_cp_async16(&s[g][t * 4], &in[g * 128 + t * 4]);
        cu_cp_async_commit();
    }
    if (BROKEN)
        cu_cp_async_wait<1>();
    else
        cu_cp_async_wait<0>();
    __syncthreads();
    out[t] = s[0][t] + s[1][127 - t];
}

CASE(ldmatrix_misaligned) {
    CU_SHARED(uint16_t, s, [8 * 16]);
    int t = (int)threadIdx.x;
    for (int i = t; i < 128; i += 32) s[i] = (uint16_t)i;
    __syncthreads();
    uint32_t d[2];
    cu_ldmatrix_x2(d, &s[t % 8 * 16 + (BROKEN ? 4 : t / 8 % 2 * 8)]);
    out[t] = (float)(d[0] & 0xffff) + (float)(d[1] >> 16);
}

CASE(ldmatrix_outside) {
    CU_SHARED(uint16_t, s, [8 * 16]);
    int t = (int)threadIdx.x;
    for (int i = t; i < 128; i += 32) s[i] = (uint16_t)i;
    __syncthreads();
    uint32_t d[2];
    cu_ldmatrix_x2(d, &s[(BROKEN ? t % 16 : t % 8) * 16 + t / 8 % 2 * 8]);
    out[t] = (float)(d[0] & 0xffff) + (float)(d[1] >> 16);
}

CASE(shared_not_initialised) {
    CU_SHARED(float, sum, [4]);
    int t = (int)threadIdx.x;
    if (!BROKEN && t < 4) sum[t] = 0;
    __syncthreads();
    atomicAdd(&sum[t % 4], 1.0f);
    __syncthreads();
    out[t] = sum[t % 4];
}

// Works in forward order, where block 0 has always run before.
CASE(block_reads_block) {
    int t = (int)threadIdx.x, b = (int)blockIdx.x;
    float before = BROKEN && b > 0 ? out[(b - 1) * 128 + t] - (float)(b - 1) : in[t];
    out[b * 128 + t] = before + (float)b;
}

CASE(missing_syncwarp) {
    CU_SHARED(float, s, [32]);
    int t = (int)threadIdx.x;
    s[t] = in[t];
    if (!BROKEN) __syncwarp();
    out[t] = s[t == 0 ? 0 : t - 1];
}

// Right in any serial order of whole phases; wrong when a fast warp refills the tile.
CASE(tile_reused_too_early) {
    CU_SHARED(float, s, [128]);
    int t = (int)threadIdx.x;
    float sum = 0;
    for (int k = 0; k < 3; k++) {
        s[t] = in[k * 128 + t];
        __syncthreads();
        sum += s[127 - t];
        if (!BROKEN) __syncthreads();
    }
    out[t] = sum;
}

CASE(lost_update) {
    CU_SHARED(int, count, [1]);
    int t = (int)threadIdx.x;
    if (t == 0) count[0] = 0;
    __syncthreads();
    if (BROKEN)
        count[0] = count[0] + 1;
    else
        atomicAdd(&count[0], 1);
    __syncthreads();
    out[t] = (float)count[0];
}

CASE(two_blocks_one_word) {
    int t = (int)threadIdx.x, b = (int)blockIdx.x;
    if (BROKEN)
        out[t] = in[t];
    else
        out[b * 128 + t] = in[t];
}

// Each lane reads what a shuffle does not order.
CASE(unordered_in_warp) {
    CU_SHARED(float, s, [32]);
    int t = (int)threadIdx.x;
    s[t] = in[t];
    float v = __shfl_sync(0xffffffffu, in[t], 0);
    if (!BROKEN) __syncwarp();
    out[t] = s[31 - t] + v;
}

// A GPU faults; x86 gives the right values.
CASE(misaligned_vector) {
    int t = (int)threadIdx.x;
    const float *p = in + t * 4 + 1;
    float4 v;
    if (BROKEN)
        v = *(const float4 *)(const void *)p;
    else
        v = make_float4(p[0], p[1], p[2], p[3]);
    out[t] = v.x + v.y + v.z + v.w;
}

CASE(host_pointer_inside) {
    int t = (int)threadIdx.x;
    out[t] = (BROKEN ? x.host : x.device)[t];
}

CASE(trap) {
    int t = (int)threadIdx.x;
    if (BROKEN && t == 5) __trap();
    out[t] = in[t];
}

typedef void emu_kernel(float *out, const float *in, emu_extra x);

static const struct {
    emu_kernel *right, *broken;
    unsigned blocks, threads;
} table[EMU_N_CASES] = {
#define KERNELS(name) &name<false>, &name<true>
    /* in the order of EMU_CASES */
    {KERNELS(missing_barrier), 1, 128},
    {KERNELS(barrier_in_branch), 1, 128},
    {KERNELS(early_exit_before_barrier), 1, 128},
    {KERNELS(two_barriers), 1, 128},
    {KERNELS(divergent_shuffle), 1, 128},
    {KERNELS(shuffle_from_an_exited_lane), 1, 128},
    {KERNELS(lane_outside_mask), 1, 64},
    {KERNELS(absent_lanes), 1, 48},
    {KERNELS(shared_off_by_one), 1, 128},
    {KERNELS(global_off_by_one), 4, 128},
    {KERNELS(global_far_out), 1, 128},
    {KERNELS(global_before), 1, 128},
    {KERNELS(copy_without_wait), 1, 128},
    {KERNELS(copy_wait_one_group_short), 1, 128},
    {KERNELS(ldmatrix_misaligned), 1, 32},
    {KERNELS(ldmatrix_outside), 1, 32},
    {KERNELS(shared_not_initialised), 1, 128},
    {KERNELS(block_reads_block), 3, 128},
    {KERNELS(missing_syncwarp), 1, 32},
    {KERNELS(tile_reused_too_early), 1, 128},
    {KERNELS(lost_update), 1, 128},
    {KERNELS(two_blocks_one_word), 3, 128},
    {KERNELS(unordered_in_warp), 1, 32},
    {KERNELS(misaligned_vector), 1, 64},
    {KERNELS(host_pointer_inside), 1, 128},
    {KERNELS(trap), 1, 32},
};

cudaError_t emu_run(emu_case which, int broken, cudaStream_t st, float *out, const float *in,
                    const float *host) {
    const emu_extra extra = {host, in};
    return cu_launch({dim3(table[which].blocks), dim3(table[which].threads), 0, st},
                     broken ? table[which].broken : table[which].right, out, in, extra);
}
