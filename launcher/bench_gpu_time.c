#include "launcher/bench_gpu_impl.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <stdlib.h>

#define ROUNDS 7
#define ROUND_US 2000.0 /* of calls together: far above what an event can tell apart */
#define CALLS_MAX 200
#define EMULATED_ROUNDS 1 /* nobody reads these times; that each call is right is what is seen */
#define PATTERN_ELEMENTS ((size_t)1 << 20)

typedef struct span {
    sp_gpu *g;
    sp_gpu_call *call;
    void *ctx;
    int from, n;
} span;

static void queue_span(void *ctx) {
    const span *s = ctx;
    for (int i = 0; i < s->n; i++) s->call(s->g, s->ctx, s->from + i);
}

/* A step of the device for each span, so that what the host sent along is given back. */
static sp_status run_span(span *s, double *us, sp_err *err) {
    const sp_dev_ops *ops = s->g->dev.ops;
    SP_TRY(s->g->meter->elapsed(&s->g->dev, queue_span, s, us, err));
    s->from += s->n;
    return ops->poll(&s->g->dev, ops->submit(&s->g->dev), SP_NEVER, err);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

sp_status sp_gpu_time(sp_gpu *g, sp_gpu_call *call, void *ctx, double *us, sp_err *err) {
    span s = {g, call, ctx, 0, 1};
    double of[ROUNDS];
    const int rounds = g->emulated ? EMULATED_ROUNDS : ROUNDS;
    SP_TRY(run_span(&s, &of[0], err)); /* loads code, takes scratch */
    if (!g->emulated) SP_TRY(run_span(&s, &of[0], err));
    const double calls = of[0] > 0 ? ROUND_US / of[0] : CALLS_MAX;
    s.n = g->emulated || calls < 1 ? 1 : calls > CALLS_MAX ? CALLS_MAX : (int)calls;
    for (int i = 0; i < rounds; i++) {
        SP_TRY(run_span(&s, &of[i], err));
        of[i] /= s.n;
    }
    qsort(of, (size_t)rounds, sizeof *of, by_value);
    *us = of[rounds / 2];
    return SP_OK;
}

/* ---- numbers ---- */

/* In (-1, 1), with as few bits as every type holds: what a type costs is not its rounding. */
static float small_number(uint32_t i) {
    const uint32_t x = (i + 1) * 2654435761u;
    return ((float)(x >> 25) - 63.5f) / 64.0f;
}

void *sp_gpu_random(size_t n, sp_dtype dtype) {
    const size_t each = (size_t)sp_dtype_bits(dtype) / 8;
    unsigned char *p = sp_try_alloc_array(n, each);
    for (size_t i = 0; p && i < n; i++) {
        const float f = small_number((uint32_t)i);
        uint16_t half = dtype == SP_DTYPE_BF16 ? sp_bf16_of_f32(f) : sp_f16_of_f32(f);
        memcpy(p + i * each, each == sizeof f ? (const void *)&f : &half, each);
    }
    return p;
}

sp_status sp_gpu_fill(sp_gpu *g, void **out, size_t bytes, sp_dtype dtype, const char *what,
                      sp_err *err) {
    const sp_dev_ops *ops = g->dev.ops;
    const size_t each = (size_t)sp_dtype_bits(dtype) / 8;
    size_t n = bytes / each + 1;
    if (n > PATTERN_ELEMENTS) n = PATTERN_ELEMENTS;
    unsigned char *host = sp_gpu_random(n, dtype), *p = host ? ops->alloc(&g->dev, bytes) : NULL;
    if (!p) {
        sp_free(host);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes of %s", bytes, what);
    }
    const size_t first = n * each < bytes ? n * each : bytes;
    ops->upload(&g->dev, p, host, first);
    /* The rest is copied there, twice as much each time. */
    for (size_t at = first; at < bytes;) {
        const size_t some = at < bytes - at ? at : bytes - at;
        g->meter->copy(&g->dev, p + at, p, some);
        at += some;
    }
    sp_free(host);
    sp_status st = ops->poll(&g->dev, ops->submit(&g->dev), SP_NEVER, err);
    if (st != SP_OK)
        ops->free(&g->dev, p, bytes);
    else
        *out = p;
    return st;
}

double sp_gpu_floor_us(const sp_gpu_ceilings *c, const sp_gpu_row *row, bool *by_memory) {
    const double memory = row->bytes / c->copy_bytes_s, compute = row->flops / c->gemm_flops_s;
    *by_memory = memory >= compute;
    return (*by_memory ? memory : compute) * 1e6;
}
