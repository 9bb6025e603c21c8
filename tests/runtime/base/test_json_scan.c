/* Covers runtime/base/json_scan.c: what is JSON, what is not, and what must be remembered. */
#include "runtime/base/json_scan.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

/* A copy of its own without a NUL after it, so that a sanitizer sees a read beyond the end. */
static sp_status scan(const char *text, size_t n, int depth, sp_json_facts *facts, sp_err *err) {
    char *copy = malloc(n ? n : 1);
    memcpy(copy, text, n);
    sp_status st = sp_json_scan((sp_slice){copy, n}, depth, facts, err);
    free(copy);
    return st;
}

static void json_is_accepted(void) {
    static const char *const good[] = {"0",
                                       "-0",
                                       "1.5e+10",
                                       "\"\"",
                                       "null",
                                       "true",
                                       "false",
                                       "[]",
                                       "{}",
                                       " [ ] ",
                                       "\t\r\n{\n}\n",
                                       "[1,2,[3,{\"a\":[]}]]",
                                       "{\"a\":1,\"b\":{\"c\":null}}",
                                       "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u12aF\"",
                                       "\"\\ud83d\\ude00\"",
                                       "\"\xf0\x9f\x98\x80\"",
                                       "\"\x7f\"",
                                       "1E5",
                                       "0.0",
                                       "-1.0E-0"};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        sp_json_facts facts;
        CU_ASSERT_EQUAL(scan(good[i], strlen(good[i]), 10, &facts, NULL), SP_OK);
    }
}

static void what_is_not_json_is_refused_with_its_place(void) {
    static const struct {
        const char *text;
        int at;
    } bad[] = {{"", 0},
               {" ", 1},
               {"[", 1},
               {"[1", 2},
               {"[1,", 3},
               {"[1,]", 3},
               {"[,1]", 1},
               {"{", 1},
               {"{a:1}", 1},
               {"{\"a\"}", 4},
               {"{\"a\":}", 5},
               {"{\"a\":1,}", 7},
               {"{1:2}", 1},
               {"\"", 1},
               {"\"a", 2},
               {"\"\n\"", 1},
               {"\"\\x\"", 2},
               {"\"\\", 2},
               {"tru", 0},
               {"truex", 4},
               {"nul", 0},
               {"None", 0},
               {"NaN", 0},
               {"Infinity", 0},
               {"01", 0},
               {"1.", 0},
               {".5", 0},
               {"+1", 0},
               {"1e", 0},
               {"-", 0},
               {"0x1", 1},
               {"1 2", 2},
               {"[1] x", 4},
               {"'a'", 0},
               {"\"\xff\"", 1},
               {"\"\xc0\x80\"", 1},
               {"\"\xed\xa0\x80\"", 1},
               {"\"\\ud800\"", 7},
               {"\"\\ud800\\u0041\"", 7},
               {"\"\\udc00\"", 2},
               {"/*c*/1", 0},
               {"[1}", 2},
               {"{\"a\":1]", 6},
               {"\xef\xbb\xbf{}", 0},
               {"\"\\u12g4\"", 2}};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_json_facts facts;
        sp_err err = {0};
        char place[32];
        CU_ASSERT_EQUAL(scan(bad[i].text, strlen(bad[i].text), 10, &facts, &err), SP_E_FORMAT);
        snprintf(place, sizeof place, "byte %d", bad[i].at);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, place));
        if (!strstr(err.text, place)) fprintf(stderr, "'%s': %s\n", bad[i].text, err.text);
    }
    sp_json_facts facts;
    CU_ASSERT_EQUAL(scan("[1\0]", 4, 10, &facts, NULL), SP_E_FORMAT);
    CU_ASSERT_EQUAL(scan("\"a\0\"", 4, 10, &facts, NULL), SP_E_FORMAT);
    CU_ASSERT_EQUAL(scan("1\0", 2, 10, &facts, NULL), SP_E_FORMAT);
    CU_ASSERT_EQUAL(scan("\"\\\0\"", 4, 10, &facts, NULL), SP_E_FORMAT);
}

/* Every beginning of a text is refused, and none is read beyond its end. */
static void every_cut_is_refused(void) {
    static const char text[] =
        "{\"k\\u00e9\":[-1.25e+3,\"\\ud83d\\ude00\xe2\x82\xac\\n\",true,false,null,{}]}";
    sp_json_facts facts;
    for (size_t n = 0; n < sizeof text - 1; n++)
        CU_ASSERT_EQUAL(scan(text, n, 10, &facts, NULL), SP_E_FORMAT);
    CU_ASSERT_EQUAL(scan(text, sizeof text - 1, 10, &facts, NULL), SP_OK);
}

static void depth_is_bounded(void) {
    static const char *const deep[] = {"[[[[]]]]", "{\"a\":[{\"b\":[]}]}"};
    sp_json_facts facts;
    for (size_t i = 0; i < SP_LEN(deep); i++) {
        CU_ASSERT_EQUAL(scan(deep[i], strlen(deep[i]), 4, &facts, NULL), SP_OK);
        CU_ASSERT_EQUAL(scan(deep[i], strlen(deep[i]), 3, &facts, NULL), SP_E_TOOLONG);
    }
    CU_ASSERT_EQUAL(scan("[[[1]],[[2]],[[3]]]", 19, 3, &facts, NULL), SP_OK);
}

static void numbers_that_a_double_would_change_are_counted(void) {
    static const struct {
        const char *text;
        int n;
    } cases[] = {
        {"[1,-2,123456789012345]", 0}, {"1234567890123456", 1}, {"1.0", 1}, {"1e5", 1}, {"-0", 1},
        {"[-1,-0.0,\"1.0\",0]", 1},    {"{\"1.5\":[2.5,3]}", 1}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_json_facts facts;
        CU_ASSERT_EQUAL(scan(cases[i].text, strlen(cases[i].text), 9, &facts, NULL), SP_OK);
        CU_ASSERT_EQUAL(facts.n_lexemes, cases[i].n);
    }
}

static void escaped_nuls_are_counted(void) {
    sp_json_facts facts;
    static const char text[] = "[\"\\u0000\",\"\\\\u0000\",\"a\\u0000\\u0000\",\"\\u00001\"]";
    CU_ASSERT_EQUAL(scan(text, sizeof text - 1, 9, &facts, NULL), SP_OK);
    CU_ASSERT_EQUAL(facts.n_nul, 4);
}

static void a_number_has_a_length(void) {
    static const struct {
        const char *text;
        size_t len;
    } cases[] = {{"12,", 3 - 1}, {"-1.5e3]", 6}, {"0", 1}, {"01", 0}, {"-", 0},
                 {"1.x", 0},     {"1e+", 0},     {"x", 0}, {"", 0}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        bool keep = false;
        CU_ASSERT_EQUAL(sp_json_scan_number(cases[i].text, strlen(cases[i].text), &keep),
                        cases[i].len);
    }
}

SP_TEST_MAIN("runtime/base/json_scan", SP_TEST(json_is_accepted),
             SP_TEST(what_is_not_json_is_refused_with_its_place), SP_TEST(every_cut_is_refused),
             SP_TEST(depth_is_bounded), SP_TEST(numbers_that_a_double_would_change_are_counted),
             SP_TEST(escaped_nuls_are_counted), SP_TEST(a_number_has_a_length))
