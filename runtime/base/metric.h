/* runtime/base/metric.h - counters, gauges and histograms of one process.
 *
 * Values are plain atomics with relaxed order: a reader may see one step's update a moment late,
 * never a torn one. What they are called and how they are printed is frontend/export.h's business.
 *
 * Thread: any. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_METRIC_BUCKETS_MAX 32

typedef struct sp_counter {
    _Atomic uint64_t n;
} sp_counter;

typedef struct sp_gauge {
    _Atomic int64_t v;
} sp_gauge;

/** Cumulative histogram over fixed upper bounds. `bounds` is borrowed for ever (a static table). */
typedef struct sp_histogram {
    const double *bounds;
    int n_bounds;                                        /* <= SP_METRIC_BUCKETS_MAX */
    _Atomic uint64_t buckets[SP_METRIC_BUCKETS_MAX + 1]; /* not cumulative; last is +Inf */
    /* The sum of values: whole ones, and millionths of what is left of each. Bytes fit for ever. */
    _Atomic uint64_t sum_whole, sum_micro;
} sp_histogram;

void sp_counter_add(sp_counter *c, uint64_t n);
uint64_t sp_counter_get(const sp_counter *c);
void sp_gauge_set(sp_gauge *g, int64_t v);
int64_t sp_gauge_get(const sp_gauge *g);
void sp_histogram_init(sp_histogram *h, const double *bounds, int n_bounds);
void sp_histogram_observe(sp_histogram *h, double v); /* negative values count as 0 */
double sp_histogram_sum(const sp_histogram *h);
