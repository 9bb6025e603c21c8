#include "runtime/base/metric.h"

#include <stdatomic.h>

void sp_counter_add(sp_counter *c, uint64_t n) {
    atomic_fetch_add_explicit(&c->n, n, memory_order_relaxed);
}
uint64_t sp_counter_get(const sp_counter *c) {
    return atomic_load_explicit(&((sp_counter *)c)->n, memory_order_relaxed);
}
void sp_gauge_set(sp_gauge *g, int64_t v) {
    atomic_store_explicit(&g->v, v, memory_order_relaxed);
}
int64_t sp_gauge_get(const sp_gauge *g) {
    return atomic_load_explicit(&((sp_gauge *)g)->v, memory_order_relaxed);
}

void sp_histogram_init(sp_histogram *h, const double *bounds, int n_bounds) {
    SP_ASSERT(n_bounds > 0 && n_bounds <= SP_METRIC_BUCKETS_MAX);
    h->bounds = bounds;
    h->n_bounds = n_bounds;
}

void sp_histogram_observe(sp_histogram *h, double v) {
    if (!(v > 0)) v = 0;
    if (v > 1e12) v = 1e12; /* infinity too: the sum is an integer */
    int i = 0;
    while (i < h->n_bounds && v > h->bounds[i]) i++;
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    uint64_t whole = (uint64_t)v;
    atomic_fetch_add_explicit(&h->sum_whole, whole, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_micro, (uint64_t)((v - (double)whole) * 1e6),
                              memory_order_relaxed);
}

double sp_histogram_sum(const sp_histogram *h) {
    sp_histogram *w = (sp_histogram *)h;
    return (double)atomic_load_explicit(&w->sum_whole, memory_order_relaxed) +
           (double)atomic_load_explicit(&w->sum_micro, memory_order_relaxed) / 1e6;
}
