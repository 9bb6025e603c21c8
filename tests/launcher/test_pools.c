/* Covers launcher/pools.c: pools as words, groups and ranks as numbers. */
#include "launcher/pools.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static sp_err err;
static sp_pools p;

static sp_status read_pools(sp_command command, const char *const *words) {
    sp_config c = {.command = command, .tp = 2, .pp = 3};
    while (words[c.pool.n]) {
        c.pool.at[c.pool.n] = words[c.pool.n];
        c.pool.n++;
    }
    err = (sp_err){0};
    return sp_pools_of(&p, &c, &err);
}
#define READ(...) read_pools(SP_CMD_SERVE, (const char *const[]){__VA_ARGS__, NULL})

static void without_pools_there_is_one_mixed_group(void) {
    sp_config c = {.command = SP_CMD_SERVE, .tp = 4, .pp = 2, .pp_layers = "3,5"};
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&p, &c, &err), SP_OK);
    CU_ASSERT(p.n == 1 && !p.given && p.at[0].role == SP_POOL_MIXED);
    CU_ASSERT(sp_pools_groups(&p) == 1 && sp_pools_ranks(&p) == 8);
    CU_ASSERT_STRING_EQUAL(p.at[0].pp_layers, "3,5");
    char text[SP_POOLS_TEXT];
    sp_pools_text(&p, text);
    CU_ASSERT_STRING_EQUAL(text, "tp 4 x pp 2");
}
static void a_pool_says_what_it_is_and_takes_the_rest_from_the_options(void) {
    CU_ASSERT_EQUAL_FATAL(READ("name=a,role=prefill,replicas=2,tp=1,pp=1", "role=decode"), SP_OK);
    CU_ASSERT(p.n == 2 && p.given);
    CU_ASSERT(p.at[0].role == SP_POOL_PREFILL && p.at[0].replicas == 2 && p.at[0].tp == 1);
    CU_ASSERT_STRING_EQUAL(p.at[1].name, "decode");
    CU_ASSERT(p.at[1].role == SP_POOL_DECODE && p.at[1].replicas == 1);
    CU_ASSERT(p.at[1].tp == 2 && p.at[1].pp == 3);
    CU_ASSERT_EQUAL_FATAL(READ("name=a,pp=2,pp_layers=1/5"), SP_OK);
    CU_ASSERT_STRING_EQUAL(p.at[0].pp_layers, "1,5");
}
static void only_serve_and_plan_have_pools(void) {
    const char *const words[] = {"name=a,replicas=9", NULL};
    CU_ASSERT_EQUAL_FATAL(read_pools(SP_CMD_PLAN, words), SP_OK);
    CU_ASSERT(p.given && sp_pools_ranks(&p) == 54);
    CU_ASSERT_EQUAL_FATAL(read_pools(SP_CMD_RUN, words), SP_OK);
    CU_ASSERT(!p.given && sp_pools_ranks(&p) == 6);
}
static void ranks_are_numbered_group_by_group(void) {
    CU_ASSERT_EQUAL_FATAL(
        READ("name=a,replicas=2,tp=2,pp=2", "name=b,tp=1,pp=3", "name=c,tp=4,pp=1"), SP_OK);
    CU_ASSERT(sp_pools_groups(&p) == 4 && sp_pools_ranks(&p) == 15);
    static const sp_pools_place want[15] = {
        {0, 0, 0, 0, 0}, {0, 0, 0, 0, 1},  {0, 0, 0, 1, 0},  {0, 0, 0, 1, 1},  {1, 0, 4, 0, 0},
        {1, 0, 4, 0, 1}, {1, 0, 4, 1, 0},  {1, 0, 4, 1, 1},  {2, 1, 8, 0, 0},  {2, 1, 8, 1, 0},
        {2, 1, 8, 2, 0}, {3, 2, 11, 0, 0}, {3, 2, 11, 0, 1}, {3, 2, 11, 0, 2}, {3, 2, 11, 0, 3}};
    for (int32_t r = 0; r < 15; r++) {
        sp_pools_place at = sp_pools_place_of(&p, r);
        CU_ASSERT_EQUAL(memcmp(&at, &want[r], sizeof at), 0);
        CU_ASSERT_EQUAL(sp_pools_group_of(&p, r), want[r].group);
    }
    int32_t first = -1;
    CU_ASSERT_PTR_EQUAL(sp_pools_group(&p, 3, &first), &p.at[2]);
    CU_ASSERT_EQUAL(first, 11);
    char text[SP_POOLS_TEXT];
    sp_pools_text(&p, text);
    CU_ASSERT_STRING_EQUAL(text, "a: 2 of tp 2 x pp 2, b: 1 of tp 1 x pp 3, c: 1 of tp 4 x pp 1");
}
static void what_cannot_be_is_refused_by_name(void) {
    const struct {
        const char *word, *why;
    } rows[] = {{"name=a,role=prefill", "no pool decodes"},
                {"name=a,role=Decode", "got 'Decode'"},
                {"name=a,role=", "role"},
                {"name=", "name"},
                {"name=0123456789012345678901234567890123456789", "name"},
                {"name=a,tp=0", "tp: want 1 to 64, got '0'"},
                {"name=a,tp=65", "got '65'"},
                {"name=a,pp=-1", "got '-1'"},
                {"name=a,pp=2x", "got '2x'"},
                {"name=a,replicas=99999999999999999999", "replicas"},
                {"name=a,size=2", "unknown key 'size'"},
                {"name=a,,tp=1", "key=value"},
                {"a", "want key=value, got 'a'"},
                {"name=a,tp=64,pp=64", "4096 ranks"}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        bool taken = READ(rows[i].word) == SP_OK;
        if (taken || !strstr(err.text, rows[i].why))
            fprintf(stderr, "    '%s': %s\n", rows[i].word, taken ? "taken" : err.text);
        CU_ASSERT(!taken && strstr(err.text, rows[i].why));
    }
    CU_ASSERT_EQUAL(READ("name=a", "name=b", "name=a"), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "two pools are called 'a'"));
    CU_ASSERT_EQUAL(READ("name=a,tp=1,pp=1,replicas=64", "name=b"), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "65 groups"));
    CU_ASSERT_EQUAL(READ("name=a", "name=b", "name=c", "name=d", "name=e", "name=f", "name=g",
                         "name=h", "name=i"),
                    SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "9 pools, at most 8"));
}

static void degrees_that_nobody_said_are_1(void) {
    sp_config c = {.command = SP_CMD_PLAN, .pool = {.at = {"name=a,tp=2", "name=b"}, .n = 2}};
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&p, &c, &err), SP_OK);
    CU_ASSERT(p.at[0].tp == 2 && p.at[0].pp == 1 && p.at[1].tp == 1 && p.at[1].pp == 1);
}
static void shapes_whose_bits_differ_are_refused_together(void) {
    CU_ASSERT_EQUAL_FATAL(READ("name=a,tp=1", "name=b,tp=8", "name=c,tp=4,pp=7"), SP_OK);
    CU_ASSERT_EQUAL(sp_pools_check_bits(&p, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(READ("name=a,tp=3", "name=b,tp=3,pp=1"), SP_OK);
    CU_ASSERT_EQUAL(sp_pools_check_bits(&p, &err), SP_OK);
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL_FATAL(
            i ? READ("name=a,tp=2", "name=b,tp=3") : READ("name=b,tp=3", "name=a,tp=2"), SP_OK);
        CU_ASSERT_EQUAL(sp_pools_check_bits(&p, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(
            strstr(err.text, "pool 'b': tp 3 does not give the bits of tp 2 of pool 'a': want the "
                             "same tp in all pools, or 1, 2, 4 or 8 in each"));
    }
    CU_ASSERT_EQUAL_FATAL(READ("name=a,tp=6", "name=b,tp=3"), SP_OK);
    CU_ASSERT_EQUAL(sp_pools_check_bits(&p, &err), SP_E_INVALID);
}
static void pools_shrink_by_groups_then_width_then_stages(void) {
    static const char *const want[] = {
        "a: 2 of tp 2 x pp 1, b: 2 of tp 1 x pp 3", "a: 2 of tp 2 x pp 1, b: 1 of tp 1 x pp 3",
        "a: 1 of tp 2 x pp 1, b: 1 of tp 1 x pp 3", "a: 1 of tp 1 x pp 1, b: 1 of tp 1 x pp 3",
        "a: 1 of tp 1 x pp 1, b: 1 of tp 1 x pp 2", "a: 1 of tp 1 x pp 1, b: 1 of tp 1 x pp 1"};
    char text[SP_POOLS_TEXT];
    CU_ASSERT_EQUAL_FATAL(
        READ("name=a,replicas=2,tp=2,pp=1", "name=b,replicas=2,tp=1,pp=3,pp_layers=1/2/3"), SP_OK);
    for (size_t i = 0; i < SP_LEN(want); i++) {
        sp_pools_text(&p, text);
        CU_ASSERT_STRING_EQUAL(text, want[i]);
        CU_ASSERT_EQUAL(strcmp(p.at[1].pp_layers, i < 4 ? "1,2,3" : ""), 0);
        CU_ASSERT_EQUAL(sp_pools_shrink(&p), i + 1 < SP_LEN(want));
    }
    CU_ASSERT_EQUAL_FATAL(READ("name=a,tp=7,pp=1"), SP_OK);
    CU_ASSERT(sp_pools_shrink(&p) && p.at[0].tp == 3);
    CU_ASSERT(sp_pools_shrink(&p) && p.at[0].tp == 1);
}

SP_TEST_MAIN("launcher/pools", SP_TEST(without_pools_there_is_one_mixed_group),
             SP_TEST(a_pool_says_what_it_is_and_takes_the_rest_from_the_options),
             SP_TEST(only_serve_and_plan_have_pools), SP_TEST(degrees_that_nobody_said_are_1),
             SP_TEST(shapes_whose_bits_differ_are_refused_together),
             SP_TEST(pools_shrink_by_groups_then_width_then_stages),
             SP_TEST(ranks_are_numbered_group_by_group), SP_TEST(what_cannot_be_is_refused_by_name))
