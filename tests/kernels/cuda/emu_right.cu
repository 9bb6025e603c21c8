// Small kernels that are right, one for each thing that portable.cuh and the shim offer.
#include "tests/kernels/cuda/emu_kernels.h"

#include "kernels/cuda/portable.cuh"

__global__ void add_kernel(float *y, const float *a, const float *b, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = a[i] + b[i];
}

cudaError_t emu_add(cudaStream_t st, float *y, const float *a, const float *b, int n) {
    return cu_launch({dim3((unsigned)(n + 127) / 128), dim3(128), 0, st}, add_kernel, y, a, b, n);
}

// By hand, through shared memory, and through the wrapper: both must agree to the bit.
__global__ void sum_kernel(float *y, const float *x, int n) {
    CU_SHARED(float, part, [256]);
    int t = (int)threadIdx.x;
    float mine = 0;
    for (int i = t; i < n; i += (int)blockDim.x) mine += x[(int)blockIdx.x * n + i];
    part[t] = mine;
    __syncthreads();
    for (int o = 128; o >= 32; o >>= 1) {
        if (t < o) part[t] += part[t + o];
        __syncthreads();
    }
    if (t < 32) {
        float v = cu_warp_sum(part[t]);
        if (t == 0) y[2 * blockIdx.x] = v;
    }
    float all = cu_block_sum(mine);
    if (t == 255) y[2 * blockIdx.x + 1] = all;
}

cudaError_t emu_sum(cudaStream_t st, float *y, const float *x, int rows, int n) {
    return cu_launch({dim3((unsigned)rows), dim3(256), 0, st}, sum_kernel, y, x, n);
}

// C[M,N] = A[M,K] B[N,K]^T, one warp a tile of 16x8, operands through cp.async and ldmatrix, two
// stages. M, N, K are multiples of 16, 8, 16.
template <bool HALF>
__global__ void gemm_kernel(float *c, const uint16_t *a, const uint16_t *b, int n, int k) {
    CU_SHARED(uint16_t, as, [2][16 * 16]);
    CU_SHARED(uint16_t, bs, [2][8 * 16]);
    const int lane = (int)threadIdx.x, row0 = (int)blockIdx.y * 16, col0 = (int)blockIdx.x * 8;
    const int steps = k / 16;
    auto fetch = [&](int s) {
        int r = lane / 2, h = lane % 2 * 8;
        cu_cp_async16(&as[s % 2][r * 16 + h], a + (int64_t)(row0 + r) * k + s * 16 + h);
        if (lane < 16)
            cu_cp_async16(&bs[s % 2][r * 16 + h], b + (int64_t)(col0 + r) * k + s * 16 + h);
        cu_cp_async_commit();
    };
    float d[4] = {0, 0, 0, 0};
    fetch(0);
    for (int s = 0; s < steps; s++) {
        if (s + 1 < steps) {
            fetch(s + 1);
            cu_cp_async_wait<1>();
        } else {
            cu_cp_async_wait<0>();
        }
        __syncthreads();
        uint32_t af[4], bf[2];
        cu_ldmatrix_x4(af, &as[s % 2][(lane % 16) * 16 + lane / 16 * 8]);
        cu_ldmatrix_x2(bf, &bs[s % 2][(lane % 8) * 16 + lane / 8 % 2 * 8]);
        if (HALF)
            cu_mma_f16(d, af, bf, d);
        else
            cu_mma_bf16(d, af, bf, d);
        __syncthreads();
    }
    const int g = lane / 4, t = lane % 4 * 2;
    for (int h = 0; h < 2; h++) {
        c[(int64_t)(row0 + g) * n + col0 + t + h] = d[h];
        c[(int64_t)(row0 + g + 8) * n + col0 + t + h] = d[2 + h];
    }
}

cudaError_t emu_gemm(cudaStream_t st, float *c, const uint16_t *a, const uint16_t *b, int m, int n,
                     int k, int f16) {
    cu_shape shape = {dim3((unsigned)n / 8, (unsigned)m / 16), dim3(32), 0, st};
    return f16 ? cu_launch(shape, gemm_kernel<true>, c, a, b, n, k)
               : cu_launch(shape, gemm_kernel<false>, c, a, b, n, k);
}

__global__ void scale_kernel(float *y, const float *x, float by, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = x[i] * by;
}

cudaError_t emu_scale(cudaStream_t st, float *y, const float *x, float by, int n) {
    return cu_launch({dim3((unsigned)(n + 63) / 64), dim3(64), 0, st}, scale_kernel, y, x, by, n);
}

__global__ void dynamic_kernel(float *y, int n) {
    CU_DYN_SHARED(float, s);
    CU_SHARED(float, first, [1]);
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) s[i] = 1;
    if (threadIdx.x == 0) first[0] = 0;
    __syncthreads();
    float sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) sum += s[n - 1 - i];
    sum = cu_block_sum(sum) + first[0];
    if (threadIdx.x == 0) y[0] = sum;
}

cudaError_t emu_dynamic(cudaStream_t st, float *y, int bytes, int allow) {
    cudaError_t err = cudaSuccess;
    if (allow)
        err = cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   allow);
    if (err != cudaSuccess) return err;
    return cu_launch({dim3(1), dim3(128), (size_t)bytes, st}, dynamic_kernel, y, bytes / 4);
}

// Two warps; lane l of warp w begins with 10 l + w.
__global__ void words_kernel(float *y) {
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, v = 10 * lane + warp;
    CU_SHARED(int, count, [2]);
    CU_SHARED(int, zero, );
    if (lane == 5 && warp == 1) zero = 0;
    __syncthreads();
    if (lane < 2 && warp == 0) count[lane] = zero;
    const int set = __syncthreads_count(lane == 3);
    float w[20];
    w[0] = (float)__shfl_sync(0xffffffffu, v, 5);
    w[1] = (float)__shfl_up_sync(0xffffffffu, v, 2);
    w[2] = (float)__shfl_down_sync(0xffffffffu, v, 30);
    w[3] = (float)__shfl_xor_sync(0xffffffffu, v, 31);
    w[4] = (float)__shfl_sync(0xffffffffu, v, 1, 8);
    w[5] = (float)(__ballot_sync(0xffffffffu, lane >= 4) >> 3);
    w[6] = (float)__any_sync(0xffffffffu, lane == 9);
    w[7] = (float)__all_sync(0xffffffffu, lane != 9);
    w[8] = (float)__popc(__match_any_sync(0xffffffffu, lane / 4));
    w[9] = (float)__reduce_add_sync(0xffffffffu, lane);
    w[10] = (float)cu_warp_sum(v);
    w[11] = (float)cu_warp_max<16>(lane);
    w[12] = cu_warp_min((float)-lane);
    w[13] = cu_block_max((float)v);
    w[14] = cu_block_sum(1.0f);
    w[15] = (float)set;
    atomicAdd(&count[warp], lane);
    w[16] = (float)__syncthreads_or(v == 51);
    w[17] = (float)atomicMax(&count[warp], 3);
    w[18] = (float)(__brev(1u) >> 31) + (float)__clz(1) + (float)__ffs(8) + __saturatef(2.5f);
    w[19] = (float)__dp4a(0x01ff0203, 0x01010101, 5) + (float)(__byte_perm(0x33221100u, 0, 0x0123));
    if (lane == 6)
        for (int i = 0; i < 20; i++) y[warp * 32 + i] = w[i];
}

cudaError_t emu_words(cudaStream_t st, float *y) {
    return cu_launch({dim3(1), dim3(32, 2), 0, st}, words_kernel, y);
}
