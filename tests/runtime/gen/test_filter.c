/* Covers runtime/gen/filter.c: survivors against a naive reference in double precision. */
#include "runtime/gen/filter.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define V_MAX 700
static float block_max[SP_ROW_BLOCKS(V_MAX)];
static sp_filter_entry scratch[V_MAX];
static const float *sorting;
static uint32_t state = 1;

static uint32_t next_random(void) {
    return (state = state * 1664525u + 1013904223u) >> 8;
}
static double uniform(void) {
    return (double)next_random() / (1 << 24);
}

static int by_order(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sorting[i] != sorting[j]) return sorting[i] > sorting[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* The steps one after the other, as in the definition: mask by probability, mask below the k-th, mask the tail
 * of the cumulative sum. False: some decision hangs on the last digits, so both are right. */
static bool reference(const float *x, int32_t n, const sp_gen_params *p, bool *keep) {
    static int32_t order[V_MAX];
    static double prob[V_MAX];
    double max = -INFINITY, sum = 0, cum = 0;
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
        keep[i] = x[i] > -INFINITY;
        if (x[i] > max) max = x[i];
    }
    sorting = x;
    qsort(order, (size_t)n, sizeof order[0], by_order);
    for (int32_t i = 0; i < n; i++) {
        prob[i] = exp((x[i] - max) / p->temperature);
        if (p->min_p > 0 && fabs(prob[i] / p->min_p - 1) < 1e-6 && p->min_p < 1) return false;
        if (prob[i] < p->min_p) keep[i] = false;
    }
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++) n_kept += keep[i];
    if (p->top_k > 0 && p->top_k < n_kept) {
        float kth = x[order[p->top_k - 1]];
        for (int32_t i = 0; i < n; i++) keep[i] &= x[i] >= kth;
    }
    if (p->top_p >= 1) return true;
    for (int32_t i = 0; i < n; i++) sum += keep[i] ? prob[i] : 0;
    for (int32_t i = 0; i < n && keep[order[i]]; i++) {
        double now = prob[order[i]] / sum;
        if (i > 0 && fabs(cum - p->top_p) < 2e-6) return false;
        if (i > 0 && cum >= p->top_p) keep[order[i]] = false;
        cum += now;
        if (i > 0 && !keep[order[i]]) {
            for (; i < n; i++) keep[order[i]] = false;
            break;
        }
    }
    return true;
}

static void random_row(float *x, int32_t n) {
    double scale = uniform() < 0.2 ? 0.01 : uniform() < 0.5 ? 3 : 20;
    bool coarse = uniform() < 0.3;
    for (int32_t i = 0; i < n; i++) {
        double v = (uniform() + uniform() + uniform() - 1.5) * scale;
        x[i] = (float)(coarse ? floor(v) : v);
        if (uniform() < 0.02) x[i] = -INFINITY;
    }
    x[next_random() % (uint32_t)n] = (float)scale;
}

static sp_gen_params random_params(int32_t n) {
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.temperature = (float)(uniform() < 0.5 ? 1.0 : 0.05 + 2 * uniform());
    if (uniform() < 0.5) p.min_p = (float)pow(10, -4 * uniform());
    if (uniform() < 0.5) p.top_k = 1 + (int32_t)(next_random() % (uint32_t)(n + 2));
    if (uniform() < 0.6)
        p.top_p = (float)(uniform() < 0.3 ? 1 - pow(10, -6 * uniform()) : uniform());
    if (p.top_p <= 0) p.top_p = 0.5f;
    return p;
}

static void survivors_are_those_of_the_reference(void) {
    static float x[V_MAX];
    static bool keep[V_MAX];
    int compared = 0, close = 0;
    for (int round = 0; round < 6000; round++) {
        int32_t n = 1 + (int32_t)(next_random() % (round % 4 ? 90 : V_MAX));
        random_row(x, n);
        sp_gen_params p = random_params(n);
        sp_row r = sp_row_scan(x, n, block_max);
        sp_cut cut = sp_filter(&r, &p, scratch);
        if (!reference(x, n, &p, keep)) {
            close++;
            continue;
        }
        compared++;
        int wrong = 0;
        for (int32_t i = 0; i < n; i++) wrong += sp_cut_keeps(cut, x[i], i) != keep[i];
        CU_ASSERT_EQUAL(wrong, 0);
        if (wrong)
            fprintf(stderr, "round %d: n %d T %g min_p %g top_k %d top_p %g: %d wrong\n", round, n,
                    p.temperature, p.min_p, p.top_k, p.top_p, wrong);
    }
    printf("survivors compared %d times, %d decisions were too close\n", compared, close);
    CU_ASSERT(compared > 5000);
}

static int count(const float *x, int32_t n, sp_gen_params p) {
    sp_row r = sp_row_scan(x, n, block_max);
    sp_cut cut = sp_filter(&r, &p, scratch);
    int kept = 0;
    for (int32_t i = 0; i < n; i++) kept += sp_cut_keeps(cut, x[i], i);
    return kept;
}

static void nothing_set_keeps_all_but_the_masked(void) {
    static const float x[] = {1, -INFINITY, -FLT_MAX, FLT_MAX, 0};
    CU_ASSERT_EQUAL(count(x, 5, SP_GEN_PARAMS_DEFAULT), 4);
}

static void ties_with_the_kth_survive_and_top_p_cuts_ties_by_id(void) {
    static const float x[] = {2, 1, 2, 1, 1, 0};
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.top_k = 3;
    CU_ASSERT_EQUAL(count(x, 6, p), 5);
    p.top_k = 1;
    CU_ASSERT_EQUAL(count(x, 6, p), 2);
    static const float flat[] = {5, 5, 5, 5};
    p.top_k = 0;
    p.top_p = 0.5f;
    sp_row r = sp_row_scan(flat, 4, block_max);
    sp_cut cut = sp_filter(&r, &p, scratch);
    CU_ASSERT(sp_cut_keeps(cut, 5, 0) && sp_cut_keeps(cut, 5, 1));
    CU_ASSERT(!sp_cut_keeps(cut, 5, 2) && !sp_cut_keeps(cut, 5, 3));
    p.top_p = 0.51f;
    CU_ASSERT_EQUAL(count(flat, 4, p), 3);
}

static void the_largest_always_survives(void) {
    static const float x[] = {0, 3, 1, -2};
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.top_p = 1e-30f;
    CU_ASSERT_EQUAL(count(x, 4, p), 1);
    p.top_p = 1;
    p.min_p = 1;
    CU_ASSERT_EQUAL(count(x, 4, p), 1);
    p = SP_GEN_PARAMS_DEFAULT;
    p.top_k = 1;
    CU_ASSERT_EQUAL(count(x, 4, p), 1);
    p.temperature = 1e-5f;
    p.top_p = 0.999999f;
    CU_ASSERT_EQUAL(count(x, 4, p), 1);
}

static void top_k_at_or_above_the_vocabulary_is_off(void) {
    static const float x[] = {0, 3, 1, -2};
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    for (p.top_k = 4; p.top_k < 7; p.top_k++) CU_ASSERT_EQUAL(count(x, 4, p), 4);
    p.top_k = INT32_MAX;
    CU_ASSERT_EQUAL(count(x, 4, p), 4);
}

/* So close to 1 that the likely tokens' mass may not reach it in f32: all are then put in order. */
static void a_top_p_just_below_one_is_still_exact_enough(void) {
    static float x[V_MAX];
    for (int32_t i = 0; i < V_MAX; i++) x[i] = -(float)(i % 90);
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.top_p = nextafterf(1.0f, 0.0f);
    int kept = count(x, V_MAX, p);
    CU_ASSERT(kept > 100 && kept <= V_MAX);
}

static void logits_of_any_size_are_filtered_without_overflow(void) {
    static const float x[] = {FLT_MAX, 1e38f, -FLT_MAX, -1e-45f, FLT_MAX};
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.top_p = 0.9f;
    CU_ASSERT_EQUAL(count(x, 5, p), 2);
    p.min_p = 0.1f;
    CU_ASSERT_EQUAL(count(x, 5, p), 2);
    p.top_p = 1;
    p.temperature = 1e-4f;
    CU_ASSERT_EQUAL(count(x, 5, p), 2);
}

SP_TEST_MAIN("runtime/gen/filter", SP_TEST(survivors_are_those_of_the_reference),
             SP_TEST(nothing_set_keeps_all_but_the_masked),
             SP_TEST(ties_with_the_kth_survive_and_top_p_cuts_ties_by_id),
             SP_TEST(the_largest_always_survives), SP_TEST(top_k_at_or_above_the_vocabulary_is_off),
             SP_TEST(a_top_p_just_below_one_is_still_exact_enough),
             SP_TEST(logits_of_any_size_are_filtered_without_overflow))
