/* tests/kernels/ops_env.h - ref beside every other backend of this machine, and random shapes.
 * Included by test_ops.c and test_attn.c. */
#pragma once

#include "kernels/dev.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define UNUSED __attribute__((unused))
/* Sanitizer builds are slow and look for other things: fewer rounds there. */
#ifdef SP_DEBUG
#define ROUNDS(n) ((n) / 4 + 1)
#else
#define ROUNDS(n) (n)
#endif

static uint64_t rng_state;
static UNUSED uint32_t rng(void) {
    rng_state += 0x9e3779b97f4a7c15u;
    uint64_t z = rng_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static UNUSED int32_t between(int32_t lo, int32_t hi) {
    return lo + (int32_t)(rng() % (uint32_t)(hi - lo + 1));
}
#define PICK(...) \
    ((const int32_t[]){__VA_ARGS__})[rng() % (sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))]

/* Mostly around 1; now and then a zero of either sign, a subnormal or a large number. */
static UNUSED float value(void) {
    const float f = (float)((int32_t)rng()) / 2147483648.0f;
    switch (rng() % 200) {
    case 0:
        return 0.0f;
    case 1:
        return -0.0f;
    case 2:
        return f * 0x1p-126f;
    case 3:
        return f * 0x1p-20f;
    case 4:
        return f * 1000.0f;
    default:
        return f;
    }
}

static UNUSED float *values(size_t n) {
    float *p = malloc((n ? n : 1) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = value();
    return p;
}

/* The backends under test: ref first, then each other with 1, 2 and 3 threads. */
#define DEVS_MAX 12
typedef struct env {
    sp_dev dev[DEVS_MAX];
    char name[DEVS_MAX][40];
    int n;
} env;

static UNUSED void env_add(env *e, const char *backend, int n_threads) {
    sp_err err = {0};
    const sp_dev_config config = {.backend = backend, .n_threads = n_threads};
    CU_ASSERT_EQUAL_FATAL(sp_dev_open(&e->dev[e->n], &config, &err), SP_OK);
    snprintf(e->name[e->n], sizeof e->name[0], "%s x %d", backend, n_threads);
    e->n++;
}

static UNUSED env env_open(uint64_t seed) {
    sp_log_setup("test", SP_LOG_ERROR, false);
    env e = {0};
    rng_state = seed;
    env_add(&e, "ref", 1);
    for (const char *const *name = sp_dev_backends(); *name; name++)
        for (int threads = 1; threads <= 3 && strncmp(*name, "cpu-", 4) == 0; threads++)
            env_add(&e, *name, threads);
    return e;
}

static UNUSED void env_close(env *e) {
    for (int i = 0; i < e->n; i++) sp_dev_close(&e->dev[i]);
}

/* Equal bytes, where any NaN equals any other. */
static UNUSED bool same(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static UNUSED sp_mat mat(float *p, int32_t rows, int32_t cols, int32_t stride) {
    return (sp_mat){p, rows, cols, stride, SP_DTYPE_F32};
}

/* Segments that fit `cols`: the rule's, or any other cut into 1, 2, 4 or 8, empty ones included. */
static UNUSED sp_segments any_segments(int32_t cols) {
    if (rng() % 2) return sp_segments_of(cols, 1);
    sp_segments s = {.n = PICK(1, 2, 4, 8)};
    for (int i = 1; i < s.n; i++) s.edge[i] = between(0, cols);
    s.edge[s.n] = cols;
    for (int i = 1; i < s.n; i++) /* insertion sort */
        for (int j = i; j > 1 && s.edge[j] < s.edge[j - 1]; j--) {
            const int32_t t = s.edge[j];
            s.edge[j] = s.edge[j - 1];
            s.edge[j - 1] = t;
        }
    return s;
}

/* A matrix in memory, as a file would hold it. */
typedef struct source {
    void *data;
    sp_dtype dtype;
    int32_t rows, cols;
    int64_t stride;
} source;

static UNUSED source any_source(int32_t rows, int32_t cols, sp_dtype dtype) {
    source s = {.dtype = dtype, .rows = rows, .cols = cols, .stride = cols + between(0, 1) * 5};
    const size_t n = (size_t)rows * (size_t)s.stride, elt = dtype == SP_DTYPE_F32 ? 4 : 2;
    s.data = malloc((n ? n : 1) * elt);
    for (size_t i = 0; i < n; i++) {
        const float f = value();
        if (dtype == SP_DTYPE_F32)
            ((float *)s.data)[i] = f;
        else
            ((uint16_t *)s.data)[i] = dtype == SP_DTYPE_F16 ? sp_f16_of_f32(f) : sp_bf16_of_f32(f);
    }
    return s;
}

static UNUSED float source_at(const source *s, int32_t row, int32_t col) {
    const size_t i = (size_t)row * (size_t)s->stride + (size_t)col;
    if (s->dtype == SP_DTYPE_F32) return ((const float *)s->data)[i];
    const uint16_t h = ((const uint16_t *)s->data)[i];
    return s->dtype == SP_DTYPE_F16 ? sp_f32_of_f16(h) : sp_f32_of_bf16(h);
}

/* Packs rows of `s` as up to three parts. */
static UNUSED sp_weight *pack(sp_dev *dev, const source *s, const sp_segments *seg) {
    sp_err err = {0};
    sp_weight *w = NULL;
    const size_t elt = s->dtype == SP_DTYPE_F32 ? 4 : 2;
    const int32_t cut[] = {0, s->rows / 3, s->rows / 2, s->rows};
    sp_weight_part parts[3];
    for (int i = 0; i < 3; i++)
        parts[i] = (sp_weight_part){
            .data = (const char *)s->data + (size_t)cut[i] * (size_t)s->stride * elt,
            .dtype = s->dtype,
            .rows = cut[i + 1] - cut[i],
            .cols = s->cols,
            .stride = s->stride,
        };
    CU_ASSERT_EQUAL_FATAL(dev->ops->pack(dev, &w, parts, 3, seg, &err), SP_OK);
    return w;
}

static UNUSED void expect_no_fault(sp_dev *dev) {
    sp_err err = {0};
    CU_ASSERT_EQUAL(dev->ops->poll(dev, dev->ops->submit(dev), INT64_MAX, &err), SP_OK);
}
