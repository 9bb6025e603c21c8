/* tests/kernels/cuda/rows_env.h - what the tests of the row kernels share: the emulated device beside
 * the ref backend, memory with canaries, weights packed by both. Included by test_gemm.c, test_norm.c,
 * test_embed.c and test_elementwise.c. */
#pragma once

#include "comm/group_tree.h"
#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/kernels.h"
#include "tests/kernels/ops_env.h"

/* The thread sanitizer knows nothing of fibres, and the emulator has a race checker of its own. */
#if defined(__SANITIZE_THREAD__)
#define ROWS_UNDER_TSAN 1
#else
#define ROWS_UNDER_TSAN 0
#endif
#define NEEDS_FIBRES() \
    if (ROWS_UNDER_TSAN) SP_SKIP("fibres under the thread sanitizer")

#define CANARY 12345.5f

#define CUDA_OK(call) \
    do { \
        cudaError_t cuda_ok_ = (call); \
        if (cuda_ok_ != cudaSuccess) \
            printf("%s: %s: %s\n", #call, cudaGetErrorName(cuda_ok_), cu_emu_last_report()); \
        CU_ASSERT_EQUAL_FATAL(cuda_ok_, cudaSuccess); \
    } while (0)

/* A device as new; threads and blocks in another order each time. */
static UNUSED void device_fresh(int round) {
    cu_emu_config c;
    cu_emu_reset();
    cu_emu_get_config(&c);
    c.order = (cu_emu_order)(round % 3);
    c.seed = (uint64_t)round + 1;
    c.quiet = 1;
    cu_emu_configure(&c);
}

static UNUSED sp_dev ref_open(uint64_t seed) {
    sp_dev dev = {0};
    sp_err err = {0};
    const sp_dev_config config = {.backend = "ref"};
    sp_log_setup("test", SP_LOG_ERROR, false);
    rng_state = seed;
    CU_ASSERT_EQUAL_FATAL(sp_dev_open(&dev, &config, &err), SP_OK);
    return dev;
}

/* Device memory with this in it. Owner: the device, until it is made new. */
static UNUSED void *upload(const void *host, size_t bytes) {
    void *p = NULL;
    CUDA_OK(cudaMalloc(&p, bytes ? bytes : 1));
    if (host && bytes) CUDA_OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}
static UNUSED float *upload_floats(const float *host, size_t n) {
    return host ? upload(host, n * sizeof *host) : NULL;
}
static UNUSED float *canaries(size_t n) {
    float *p = malloc((n ? n : 1) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = CANARY;
    return p;
}
/* Owner: caller. */
static UNUSED float *download(const float *device, size_t n) {
    float *p = malloc((n ? n : 1) * sizeof *p);
    CUDA_OK(cudaMemcpy(p, device, n * sizeof *p, cudaMemcpyDeviceToHost));
    return p;
}

static UNUSED size_t dtype_bytes(sp_dtype t) {
    return t == SP_DTYPE_F32 ? 4 : 2;
}

/* Packs `s` on the device in up to three calls, the last rows first. */
static UNUSED cu_weight device_weight(const source *s, const sp_segments *seg) {
    const size_t bytes = cu_weight_bytes(s->rows, s->cols, s->dtype, seg);
    const size_t elt = dtype_bytes(s->dtype);
    char *src = upload(s->data, (size_t)s->rows * (size_t)s->stride * elt);
    void *dst = upload(NULL, bytes);
    if (bytes) CUDA_OK(cudaMemset(dst, 0, bytes));
    const cu_weight w = {
        .data = dst, .dtype = s->dtype, .rows = s->rows, .cols = s->cols, .seg = *seg};
    const int32_t cut[] = {0, s->rows / 3, s->rows / 2, s->rows};
    for (int i = 2; i >= 0; i--)
        CUDA_OK(cu_weight_pack(NULL, dst, &w, cut[i],
                               src + (size_t)cut[i] * (size_t)s->stride * elt, cut[i + 1] - cut[i],
                               s->stride));
    return w;
}

static UNUSED void expect_gaps_untouched(const float *y, int32_t rows, int32_t cols, int32_t ld) {
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = cols; i < ld; i++) CU_ASSERT_EQUAL(y[(ptrdiff_t)r * ld + i], CANARY);
}
