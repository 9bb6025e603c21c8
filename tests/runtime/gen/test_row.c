/* Covers runtime/gen/row.c: scan, order and the sum that is law, against plain loops. */
#include "runtime/gen/row.h"

#include "kernels/math.h"
#include "tests/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define V_MAX 3000
static float block_max[SP_ROW_BLOCKS(V_MAX)];
static uint32_t state = 12345;

static uint32_t next_random(void) {
    return state = state * 1664525u + 1013904223u;
}

/* Few different values, so that ties are common. */
static void fill(float *x, int32_t n, int spread) {
    for (int32_t i = 0; i < n; i++)
        x[i] = (float)((int)(next_random() >> 16) % spread - spread / 2) * 0.37f;
}

static bool before(const float *x, int32_t a, int32_t b) {
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

static void maximum_rank_and_top_agree_with_plain_loops(void) {
    static float x[V_MAX];
    static const int32_t sizes[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1000, 2999};
    for (size_t k = 0; k < SP_LEN(sizes); k++) {
        int32_t n = sizes[k], best = 0;
        fill(x, n, k % 2 ? 7 : 4001);
        sp_row r = sp_row_scan(x, n, block_max);
        for (int32_t i = 1; i < n; i++)
            if (before(x, i, best)) best = i;
        CU_ASSERT_EQUAL(sp_row_argmax(&r), best);
        CU_ASSERT_EQUAL(r.max, x[best]);
        CU_ASSERT(sp_row_is_sound(&r));
        sp_top_logprob top[SP_LOGPROBS_MAX];
        for (int32_t want = 0; want <= SP_LOGPROBS_MAX; want += 5) {
            int32_t have = sp_row_top(&r, want, top);
            CU_ASSERT_EQUAL(have, want < n ? want : n);
            for (int32_t i = 0; i < have; i++) {
                CU_ASSERT_EQUAL(sp_row_rank(&r, top[i].id), i + 1);
                CU_ASSERT_EQUAL(top[i].logprob, x[top[i].id]);
            }
        }
        for (int t = 0; t < 20; t++) {
            int32_t id = (int32_t)(next_random() >> 8) % n, rank = 1;
            for (int32_t i = 0; i < n; i++) rank += before(x, i, id);
            CU_ASSERT_EQUAL(sp_row_rank(&r, id), rank);
        }
    }
}

static void the_lowest_id_of_equal_maxima_wins_whatever_the_sign_of_zero(void) {
    static float x[200];
    for (int32_t i = 0; i < 200; i++) x[i] = -1;
    x[150] = 0.0f;
    x[70] = -0.0f;
    sp_row r = sp_row_scan(x, 200, block_max);
    CU_ASSERT_EQUAL(sp_row_argmax(&r), 70);
    CU_ASSERT_EQUAL(sp_row_rank(&r, 150), 2);
}

static void one_nan_anywhere_is_noticed(void) {
    static float x[V_MAX];
    for (int32_t n = 1; n < 140; n++)
        for (int32_t at = 0; at < n; at++) {
            for (int32_t i = 0; i < n; i++) x[i] = (float)i;
            x[at] = NAN;
            CU_ASSERT(sp_row_scan(x, n, block_max).has_nan);
            x[at] = -INFINITY;
            CU_ASSERT(!sp_row_scan(x, n, block_max).has_nan);
        }
}

static void infinities_are_no_sound_row_but_masks_are(void) {
    float x[3] = {1, -INFINITY, 2};
    sp_row r = sp_row_scan(x, 3, block_max);
    CU_ASSERT(sp_row_is_sound(&r));
    x[1] = INFINITY;
    r = sp_row_scan(x, 3, block_max);
    CU_ASSERT(!sp_row_is_sound(&r));
    x[0] = x[1] = x[2] = -INFINITY;
    r = sp_row_scan(x, 3, block_max);
    CU_ASSERT(!sp_row_is_sound(&r));
}

/* The law of sampler.h, written down once more without any skipping. */
static float plain_mass(const float *x, int32_t n, float max, float t, float least) {
    float sum[8], lane[16];
    for (int s = 0; s < 8; s++) {
        int32_t from = (int32_t)((int64_t)s * n / 8), to = (int32_t)((int64_t)(s + 1) * n / 8);
        memset(lane, 0, sizeof lane);
        for (int32_t i = from; i < to; i++)
            if (x[i] >= least) lane[(i - from) % 16] += sp_expf((x[i] - max) / t);
        for (int i = 0; i < 8; i++) lane[i] += lane[i + 8];
        for (int i = 0; i < 4; i++) lane[i] += lane[i + 4];
        for (int i = 0; i < 2; i++) lane[i] += lane[i + 2];
        sum[s] = lane[0] + lane[1];
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static void the_sum_has_the_bits_of_the_eight_segments_and_sixteen_lanes(void) {
    static float x[V_MAX];
    static const float temperatures[] = {1.0f, 0.01f, 0.7f, 2.0f, 1e-5f};
    for (int32_t n = 1; n < V_MAX; n += n < 300 ? 1 : 271) {
        fill(x, n, 100);
        if (n % 3 == 0) x[n / 2] = -INFINITY;
        sp_row r = sp_row_scan(x, n, block_max);
        if (!sp_row_is_sound(&r)) continue;
        float t = temperatures[n % 5], least = n % 2 ? -INFINITY : r.max * 0.5f;
        float got = sp_row_mass(&r, t, least), want = plain_mass(x, n, r.max, t, least);
        CU_ASSERT_EQUAL(memcmp(&got, &want, sizeof got), 0);
    }
}

static void the_sum_is_close_to_the_true_one(void) {
    static float x[V_MAX];
    fill(x, V_MAX, 50);
    sp_row r = sp_row_scan(x, V_MAX, block_max);
    double want = 0;
    for (int32_t i = 0; i < V_MAX; i++) want += exp((double)x[i] - (double)r.max);
    CU_ASSERT_DOUBLE_EQUAL(sp_row_mass(&r, 1, -INFINITY) / want, 1.0, 1e-6);
}

SP_TEST_MAIN("runtime/gen/row", SP_TEST(maximum_rank_and_top_agree_with_plain_loops),
             SP_TEST(the_lowest_id_of_equal_maxima_wins_whatever_the_sign_of_zero),
             SP_TEST(one_nan_anywhere_is_noticed),
             SP_TEST(infinities_are_no_sound_row_but_masks_are),
             SP_TEST(the_sum_has_the_bits_of_the_eight_segments_and_sixteen_lanes),
             SP_TEST(the_sum_is_close_to_the_true_one))
