/* Covers comm/group_tree.c: the order of the additions, for every number of members. */
#include "comm/group_tree.h"

#include "comm/group.h"
#include "runtime/base/status.h"
#include "tests/harness.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LEN_MAX 1100

/* The rule of the contract as it reads: a span is a power of two, missing leaves are left out. */
static float by_the_rule(const float *const *parts, int n, size_t i, int from, int span) {
    if (span == 1) return parts[from][i];
    float left = by_the_rule(parts, n, i, from, span / 2);
    if (from + span / 2 >= n) return left;
    return left + by_the_rule(parts, n, i, from + span / 2, span / 2);
}

static float plain(const float *const *parts, int n, size_t i) {
    int span = 1;
    while (span < n) span *= 2;
    return by_the_rule(parts, n, i, 0, span);
}

/* Values of very different sizes, so that any other order gives other bits. */
static float value(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    uint32_t x = *state >> 8;
    return ldexpf((float)(x & 0xffff) - 32768.0f, (int)(x >> 16) % 24 - 12);
}

typedef struct bed {
    float *store;
    const float *parts[SP_GROUP_MEMBERS_MAX];
} bed;

static void make_bed(bed *b) {
    uint32_t state = 7;
    b->store = malloc(sizeof(float) * SP_GROUP_MEMBERS_MAX * LEN_MAX);
    CU_ASSERT_PTR_NOT_NULL_FATAL(b->store);
    for (size_t i = 0; i < SP_GROUP_MEMBERS_MAX * LEN_MAX; i++) b->store[i] = value(&state);
    for (size_t m = 0; m < SP_GROUP_MEMBERS_MAX; m++) b->parts[m] = b->store + m * LEN_MAX;
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

static void every_number_of_members_is_added_by_the_rule(void) {
    static const size_t lens[] = {1, 2, 15, 16, 17, 255, 256, 257, 1099};
    bed b;
    make_bed(&b);
    float out[LEN_MAX];
    for (int n = 1; n <= SP_GROUP_MEMBERS_MAX; n++) {
        for (size_t l = 0; l < SP_LEN(lens); l++) {
            int wrong = 0;
            memset(out, 0x5a, sizeof out);
            sp_group_tree(out, b.parts, n, lens[l]);
            for (size_t i = 0; i < lens[l]; i++) wrong += !same_bits(out[i], plain(b.parts, n, i));
            uint32_t after;
            memcpy(&after, &out[lens[l]], sizeof after);
            CU_ASSERT_EQUAL(wrong, 0);
            CU_ASSERT_EQUAL(after, 0x5a5a5a5a);
        }
    }
    free(b.store);
}

static void another_order_would_be_seen(void) {
    bed b;
    make_bed(&b);
    int differ = 0;
    float out[LEN_MAX];
    sp_group_tree(out, b.parts, 8, LEN_MAX);
    for (size_t i = 0; i < LEN_MAX; i++) {
        float in_a_row = 0;
        for (int m = 0; m < 8; m++) in_a_row += b.parts[m][i];
        differ += !same_bits(out[i], in_a_row);
    }
    CU_ASSERT(differ > LEN_MAX / 10);
    free(b.store);
}

static void the_sum_may_go_where_a_part_lies(void) {
    bed b;
    make_bed(&b);
    float want[LEN_MAX];
    static const int members[] = {1, 2, 3, 7, 8, 9, 20, 64};
    for (size_t k = 0; k < SP_LEN(members); k++) {
        int n = members[k], into = n - 1;
        float *part = b.store + (size_t)into * LEN_MAX;
        for (size_t i = 0; i < LEN_MAX; i++) want[i] = plain(b.parts, n, i);
        sp_group_tree(part, b.parts, n, LEN_MAX);
        CU_ASSERT_EQUAL(memcmp(part, want, sizeof want), 0);
    }
    free(b.store);
}

static void a_missing_member_is_not_a_zero(void) {
    float minus_zero = -0.0f, out;
    const float *parts[SP_GROUP_MEMBERS_MAX];
    for (int m = 0; m < SP_GROUP_MEMBERS_MAX; m++) parts[m] = &minus_zero;
    for (int n = 1; n <= SP_GROUP_MEMBERS_MAX; n++) {
        out = 1;
        sp_group_tree(&out, parts, n, 1);
        CU_ASSERT(same_bits(out, -0.0f));
    }
}

static void nothing_is_summed_when_there_are_no_elements(void) {
    float a = 1, out = 5;
    const float *parts[] = {&a, &a, &a};
    sp_group_tree(&out, parts, 3, 0);
    CU_ASSERT_EQUAL(out, 5);
}

SP_TEST_MAIN("comm/group_tree", SP_TEST(every_number_of_members_is_added_by_the_rule),
             SP_TEST(another_order_would_be_seen), SP_TEST(the_sum_may_go_where_a_part_lies),
             SP_TEST(a_missing_member_is_not_a_zero),
             SP_TEST(nothing_is_summed_when_there_are_no_elements))
