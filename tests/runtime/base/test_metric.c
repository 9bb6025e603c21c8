/* Covers runtime/base/metric.c: counters, gauges, histograms, from several threads. */
#include "runtime/base/metric.h"

#include "tests/harness.h"

#include <math.h>
#include <pthread.h>

static void a_counter_adds_and_a_gauge_is_set(void) {
    sp_counter c = {0};
    sp_gauge g = {0};
    sp_counter_add(&c, 3);
    sp_counter_add(&c, 0);
    sp_counter_add(&c, UINT64_C(1) << 40);
    CU_ASSERT_EQUAL(sp_counter_get(&c), (UINT64_C(1) << 40) + 3);
    sp_gauge_set(&g, -5);
    CU_ASSERT_EQUAL(sp_gauge_get(&g), -5);
    sp_gauge_set(&g, INT64_MAX);
    CU_ASSERT_EQUAL(sp_gauge_get(&g), INT64_MAX);
}

/* A bound is inside its bucket ("le"). */
static void a_value_falls_into_the_first_bucket_that_holds_it(void) {
    static const double bounds[] = {0.001, 0.1, 1};
    static const struct {
        double v;
        int bucket;
    } cases[] = {{0, 0},   {0.001, 0}, {0.0010001, 1}, {0.1, 1}, {0.5, 2},
                 {1.0, 2}, {1.01, 3},  {1e6, 3},       {-7, 0},  {NAN, 0}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_histogram h = {0};
        sp_histogram_init(&h, bounds, 3);
        sp_histogram_observe(&h, cases[i].v);
        for (int b = 0; b < 4; b++) CU_ASSERT_EQUAL(h.buckets[b], b == cases[i].bucket);
        CU_ASSERT_DOUBLE_EQUAL(sp_histogram_sum(&h), cases[i].v > 0 ? cases[i].v : 0, 1e-6);
    }
}

/* A year of bytes at 100 GB/s. */
static void a_sum_of_many_large_values_does_not_wrap(void) {
    static const double bounds[] = {1e9};
    sp_histogram h = {0};
    sp_histogram_init(&h, bounds, 1);
    for (int i = 0; i < 3200000; i++) sp_histogram_observe(&h, 1e12);
    CU_ASSERT_EQUAL(sp_histogram_sum(&h), 3.2e18);
}

static void a_histogram_may_have_the_most_buckets_there_are(void) {
    double bounds[SP_METRIC_BUCKETS_MAX];
    for (int i = 0; i < SP_METRIC_BUCKETS_MAX; i++) bounds[i] = i + 1;
    sp_histogram h = {0};
    sp_histogram_init(&h, bounds, SP_METRIC_BUCKETS_MAX);
    for (int i = 0; i <= SP_METRIC_BUCKETS_MAX; i++) sp_histogram_observe(&h, i + 0.5);
    for (int i = 0; i <= SP_METRIC_BUCKETS_MAX; i++) CU_ASSERT_EQUAL(h.buckets[i], 1);
}

typedef struct shared {
    sp_counter c;
    sp_gauge g;
    sp_histogram h;
} shared;

static void *use(void *arg) {
    shared *s = arg;
    for (int i = 0; i < 20000; i++) {
        sp_counter_add(&s->c, 1);
        sp_gauge_set(&s->g, i);
        sp_histogram_observe(&s->h, 0.25);
    }
    return NULL;
}

static void threads_lose_no_update(void) {
    static const double bounds[] = {1};
    static shared s;
    pthread_t t[4];
    sp_histogram_init(&s.h, bounds, 1);
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, use, &s);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    CU_ASSERT_EQUAL(sp_counter_get(&s.c), 80000);
    CU_ASSERT_EQUAL(s.h.buckets[0], 80000);
    CU_ASSERT_EQUAL(sp_histogram_sum(&s.h), 20000);
    CU_ASSERT_EQUAL(sp_gauge_get(&s.g), 19999);
}

SP_TEST_MAIN("runtime/base/metric", SP_TEST(a_counter_adds_and_a_gauge_is_set),
             SP_TEST(a_value_falls_into_the_first_bucket_that_holds_it),
             SP_TEST(a_sum_of_many_large_values_does_not_wrap),
             SP_TEST(a_histogram_may_have_the_most_buckets_there_are),
             SP_TEST(threads_lose_no_update))
