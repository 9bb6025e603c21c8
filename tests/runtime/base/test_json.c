/* Covers runtime/base/json.c: the public test suite, lexemes, NULs, duplicates, reads, writing. */
#include "runtime/base/json.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Parses a copy without a NUL after it, so that a sanitizer sees a read beyond the end. */
static sp_status parse(sp_json **out, sp_slice text, sp_err *err) {
    char *copy = malloc(text.len ? text.len : 1);
    memcpy(copy, text.ptr, text.len);
    sp_status st = sp_json_parse(out, (sp_slice){copy, text.len}, 0, err);
    free(copy);
    return st;
}

static sp_json *must_parse(sp_slice text) {
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(parse(&doc, text, &err), SP_OK);
    return doc;
}

/* Writes the document again. Owner: caller, sp_buf_fini(). */
static sp_buf written(const sp_json *doc) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_node(&w, sp_json_root(doc));
    CU_ASSERT(!b.failed);
    return b;
}

/* What was written reads back, and is written the same again. */
static void check_round_trip(const sp_json *doc) {
    sp_json *again = NULL;
    sp_buf one = written(doc);
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&again, sp_buf_slice(&one), 0, NULL), SP_OK);
    sp_buf two = written(again);
    CU_ASSERT(sp_slice_eq(sp_buf_slice(&one), sp_buf_slice(&two)));
    sp_json_free(again);
    sp_buf_fini(&one);
    sp_buf_fini(&two);
}

static void the_public_suite_is_accepted_and_refused_as_it_says(void) {
    if (!sp_test_fixtures()) SP_SKIP("no fixtures: json/JSONTestSuite");
    char dir[400], path[700];
    int n[3] = {0};
    snprintf(dir, sizeof dir, "%s/json/JSONTestSuite", sp_test_fixtures());
    DIR *d = opendir(dir);
    CU_ASSERT_PTR_NOT_NULL_FATAL(d);
    for (struct dirent *e; (e = readdir(d));) {
        char kind = e->d_name[0];
        if (e->d_name[1] != '_' || !strchr("yni", kind)) continue;
        size_t len;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        char *text = sp_test_read(path, &len);
        sp_json *doc = NULL;
        sp_err err = {0};
        sp_status st = parse(&doc, (sp_slice){text, len}, &err);
        n[kind == 'y' ? 0 : kind == 'n' ? 1 : 2]++;
        /* RFC 8259 lets a parser refuse names that come twice; ours does. */
        bool twice = strstr(e->d_name, "duplicated_key") != NULL;
        bool right = kind == 'i' || (kind == 'y' && !twice ? st == SP_OK : st < 0);
        CU_ASSERT(right);
        if (!right) fprintf(stderr, "%s: %s %s\n", e->d_name, sp_status_name(st), err.text);
        CU_ASSERT((st == SP_OK) == (doc != NULL));
        if (st != SP_OK) CU_ASSERT(st == SP_E_FORMAT || st == SP_E_TOOLONG);
        if (doc) check_round_trip(doc);
        sp_json_free(doc);
        free(text);
    }
    closedir(d);
    printf("JSONTestSuite: %d y, %d n, %d i\n", n[0], n[1], n[2]);
    CU_ASSERT(n[0] > 0 && n[1] > 0 && n[2] > 0);
}

static size_t from_base64(sp_slice s, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    uint32_t bits = 0;
    int n_bits = 0;
    for (size_t i = 0; i < s.len && s.ptr[i] != '='; i++) {
        const char *at = strchr(digits, s.ptr[i]);
        CU_ASSERT_PTR_NOT_NULL_FATAL(at);
        bits = bits << 6 | (uint32_t)(at - digits);
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        out[n++] = (char)(bits >> n_bits);
    }
    return n;
}

static void fuzzed_texts_neither_crash_nor_hang(void) {
    if (!sp_test_fixtures()) SP_SKIP("no fixtures: json/go-fuzz-json-dev.jsonl");
    char path[400];
    int n_lines = 0, n_good = 0;
    snprintf(path, sizeof path, "%s/json/go-fuzz-json-dev.jsonl", sp_test_fixtures());
    char *all = sp_test_read(path, NULL);
    for (char *line = all, *end; (end = strchr(line, '\n')); line = end + 1, n_lines++) {
        sp_json *doc = must_parse((sp_slice){line, (size_t)(end - line)}), *inner = NULL;
        sp_slice b64 = {0};
        CU_ASSERT_EQUAL(sp_json_get_string(sp_json_root(doc), "b64", &b64, NULL), SP_OK);
        char *bytes = malloc(b64.len + 1);
        size_t n = from_base64(b64, bytes);
        if (parse(&inner, (sp_slice){bytes, n}, NULL) == SP_OK) {
            n_good++;
            check_round_trip(inner);
        }
        sp_json_free(inner);
        sp_json_free(doc);
        free(bytes);
    }
    free(all);
    printf("fuzzed: %d texts, %d are JSON\n", n_lines, n_good);
    CU_ASSERT(n_lines > 100);
}

static void numbers_keep_how_they_were_written(void) {
    static const struct {
        const char *text;
        sp_json_type type;
        int64_t i;
        double f;
    } cases[] = {
        {"1", SP_JSON_INT, 1, 1},
        {"1.0", SP_JSON_FLOAT, 0, 1},
        {"-0", SP_JSON_INT, 0, 0},
        {"-0.0", SP_JSON_FLOAT, 0, 0},
        {"1e5", SP_JSON_FLOAT, 0, 1e5},
        {"1E+2", SP_JSON_FLOAT, 0, 100},
        {"999999999999999", SP_JSON_INT, 999999999999999, 999999999999999.0},
        {"9007199254740993", SP_JSON_INT, 9007199254740993, 9007199254740992.0},
        {"9223372036854775807", SP_JSON_INT, INT64_MAX, 9223372036854775807.0},
        {"-9223372036854775808", SP_JSON_INT, INT64_MIN, -9223372036854775808.0},
        {"9223372036854775808", SP_JSON_FLOAT, 0, 9223372036854775808.0},
        {"123456789012345678901234567890", SP_JSON_FLOAT, 0, 123456789012345678901234567890.0},
        {"0.1", SP_JSON_FLOAT, 0, 0.1}};
    for (size_t c = 0; c < SP_LEN(cases); c++) {
        /* Alone, and as the third of three beside strings that hold digits. */
        char wrapped[200];
        snprintf(wrapped, sizeof wrapped, "{\"k-1\":7,\"s\":\"-3.5\\\"4\",\"v\":[2.50,\"9\",%s]}",
                 cases[c].text);
        sp_json *alone = must_parse(sp_slice_of(cases[c].text));
        sp_json *inside = must_parse(sp_slice_of(wrapped));
        const sp_json_node *array = sp_json_find(sp_json_root(inside), "v");
        const sp_json_node *nodes[] = {sp_json_root(alone), sp_json_at(array, 2)};
        for (int k = 0; k < 2; k++) {
            CU_ASSERT_EQUAL(sp_json_type_of(nodes[k]), cases[c].type);
            CU_ASSERT_EQUAL(sp_json_number(nodes[k]), cases[c].f);
            if (cases[c].type == SP_JSON_INT) CU_ASSERT_EQUAL(sp_json_int(nodes[k]), cases[c].i);
        }
        sp_buf b = written(inside);
        CU_ASSERT(sp_slice_is(sp_buf_slice(&b), wrapped)); /* as it was written, 2.50 too */
        sp_buf_fini(&b);
        sp_json_free(alone);
        sp_json_free(inside);
    }
}

static void very_long_numbers_are_still_numbers(void) {
    char text[2000] = "[0.";
    for (int i = 3; i < 1500; i++) text[i] = (char)('0' + i % 10);
    strcpy(text + 1500, ",1]");
    sp_json *doc = must_parse(sp_slice_of(text));
    CU_ASSERT_EQUAL(sp_json_count(sp_json_root(doc)), 2);
    CU_ASSERT_DOUBLE_EQUAL(sp_json_number(sp_json_at(sp_json_root(doc), 0)), 0.345678901234, 1e-9);
    CU_ASSERT_EQUAL(sp_json_int(sp_json_at(sp_json_root(doc), 1)), 1);
    sp_json_free(doc);
}

static void strings_may_hold_a_nul(void) {
    sp_json *doc =
        must_parse(SP_SLICE("[\"a\\u0000b\",\"\\u0000\",\"\\u0000\\u0000x\",\"\\\\u0000\",\"\"]"));
    static const sp_slice want[] = {{"a\0b", 3}, {"\0", 1}, {"\0\0x", 3}, {"\\u0000", 6}, {"", 0}};
    const sp_json_node *v = sp_json_first(sp_json_root(doc));
    for (size_t i = 0; i < SP_LEN(want); i++, v = sp_json_next(v))
        CU_ASSERT(sp_slice_eq(sp_json_string(v), want[i]));
    sp_buf b = written(doc);
    CU_ASSERT(sp_slice_is(sp_buf_slice(&b),
                          "[\"a\\u0000b\",\"\\u0000\",\"\\u0000\\u0000x\",\"\\\\u0000\",\"\"]"));
    sp_buf_fini(&b);
    sp_json_free(doc);
}

static void numbers_keep_their_place_beside_nuls(void) {
    sp_json *doc =
        must_parse(SP_SLICE("{\"\\u00001.5\":1.50,\"x\":[\"\\u00002\",1e1,\"\\\"3\",-0]}"));
    const sp_json_node *first = sp_json_first(sp_json_root(doc));
    const sp_json_node *array = sp_json_find(sp_json_root(doc), "x");
    CU_ASSERT_EQUAL(sp_json_type_of(first), SP_JSON_FLOAT);
    CU_ASSERT_EQUAL(sp_json_number(first), 1.5);
    CU_ASSERT_EQUAL(sp_json_type_of(sp_json_at(array, 1)), SP_JSON_FLOAT);
    CU_ASSERT_EQUAL(sp_json_type_of(sp_json_at(array, 3)), SP_JSON_INT);
    sp_json_free(doc);
}

static void a_key_that_comes_twice_is_refused_by_name(void) {
    static const char *const bad[] = {"{\"a\":1,\"a\":2}", "{\"a\":1,\"b\":2,\"a\":1}",
                                      "[{\"x\":{\"a\":1,\"\\u0061\":2}}]", "{\"\":1,\"\":2}",
                                      "{\"\\u0000\":1,\"\\u0000\":1}"};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_json *doc = NULL;
        sp_err err = {0};
        CU_ASSERT_EQUAL(parse(&doc, sp_slice_of(bad[i]), &err), SP_E_FORMAT);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "twice"));
        CU_ASSERT_PTR_NULL(doc);
    }
    sp_json_free(
        must_parse(SP_SLICE("{\"a\":{\"a\":1},\"A\":[{\"a\":1},{\"a\":1}],\"a\\u0000\":1}")));
}

static void depth_is_bounded_by_default_and_by_wish(void) {
    char text[600];
    for (int depth = 126; depth <= 130; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        sp_json *doc = NULL;
        sp_slice s = {text, 2 * (size_t)depth};
        CU_ASSERT_EQUAL(sp_json_parse(&doc, s, 0, NULL),
                        depth <= SP_JSON_DEPTH_MAX ? SP_OK : SP_E_TOOLONG);
        sp_json_free(doc);
        doc = NULL;
        CU_ASSERT_EQUAL(sp_json_parse(&doc, s, depth - 1, NULL), SP_E_TOOLONG);
        CU_ASSERT_PTR_NULL(doc);
    }
}

static void walking_takes_what_is_not_there(void) {
    sp_json *doc = must_parse(SP_SLICE("{\"a\":[10,20],\"n\":null}"));
    const sp_json_node *root = sp_json_root(doc), *a = sp_json_find(root, "a");
    CU_ASSERT_EQUAL(sp_json_count(root), 2);
    CU_ASSERT(sp_slice_is(sp_json_key(sp_json_first(root)), "a"));
    CU_ASSERT_EQUAL(sp_json_int(sp_json_at(a, 1)), 20);
    CU_ASSERT_PTR_NULL(sp_json_at(a, 2));
    CU_ASSERT_PTR_NULL(sp_json_at(a, -1));
    CU_ASSERT_PTR_NULL(sp_json_next(sp_json_next(sp_json_first(a))));
    CU_ASSERT_PTR_NULL(sp_json_find(root, "A"));
    CU_ASSERT_PTR_NULL(sp_json_find(a, "a"));
    CU_ASSERT(sp_json_is_null(sp_json_find(root, "n")) && sp_json_is_null(NULL));
    CU_ASSERT(!sp_json_is_null(a));
    CU_ASSERT(sp_json_find(NULL, "x") == NULL && sp_json_at(NULL, 0) == NULL &&
              sp_json_first(NULL) == NULL && sp_json_next(NULL) == NULL);
    CU_ASSERT_EQUAL(sp_json_count(NULL), 0);
    CU_ASSERT_EQUAL(sp_json_string(NULL).len, 0);
    CU_ASSERT_EQUAL(sp_json_key(NULL).len, 0);
    CU_ASSERT_EQUAL(sp_json_type_of(NULL), SP_JSON_NULL);
    sp_json_free(doc);
    sp_json_free(NULL);
}

static void checked_reads_say_what_was_wanted(void) {
    sp_json *doc = must_parse(
        SP_SLICE("{\"i\":5,\"f\":1.5,\"s\":\"x\",\"b\":true,\"o\":{},\"a\":[],\"n\":null,"
                 "\"big\":9223372036854775808}"));
    const sp_json_node *o = sp_json_root(doc), *node = NULL;
    int64_t i = 42;
    double f = 42;
    bool b = false;
    sp_slice s = {0};
    sp_err err = {0};
    CU_ASSERT(sp_json_get_int(o, "i", 0, 9, &i, NULL) == SP_OK && i == 5);
    CU_ASSERT(sp_json_get_number(o, "f", &f, NULL) == SP_OK && f == 1.5);
    CU_ASSERT(sp_json_get_number(o, "i", &f, NULL) == SP_OK && f == 5);
    CU_ASSERT(sp_json_get_bool(o, "b", &b, NULL) == SP_OK && b);
    CU_ASSERT(sp_json_get_string(o, "s", &s, NULL) == SP_OK && sp_slice_is(s, "x"));
    CU_ASSERT(sp_json_get_object(o, "o", &node, NULL) == SP_OK && node);
    CU_ASSERT(sp_json_get_array(o, "a", &node, NULL) == SP_OK && node);
    i = 42;
    CU_ASSERT(sp_json_get_int(o, "none", 0, 9, &i, NULL) == SP_OK && i == 42);
    CU_ASSERT(sp_json_get_int(o, "n", 0, 9, &i, NULL) == SP_OK && i == 42);
    CU_ASSERT_EQUAL(sp_json_get_int(o, "i", 6, 9, &i, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "from 6 to 9, got 5"));
    CU_ASSERT_EQUAL(sp_json_get_int(o, "f", 0, 9, &i, &err), SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text, "f: want an integer, got a number");
    CU_ASSERT_EQUAL(sp_json_get_int(o, "big", INT64_MIN, INT64_MAX, &i, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_json_get_int(o, "s", 0, 9, &i, &err), SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text, "s: want an integer, got a string");
    CU_ASSERT_EQUAL(sp_json_get_bool(o, "i", &b, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_json_get_string(o, "a", &s, &err), SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text, "a: want a string, got an array");
    CU_ASSERT_EQUAL(sp_json_get_object(o, "b", &node, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_json_get_array(o, "o", &node, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_json_get_number(o, "s", &f, &err), SP_E_INVALID);
    CU_ASSERT(i == 42 && f == 5);
    sp_json_free(doc);
}

static void the_writer_puts_the_commas(void) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "a"), sp_jw_array(&w), sp_jw_int(&w, INT64_MIN), sp_jw_bool(&w, true);
    sp_jw_object(&w), sp_jw_object_end(&w), sp_jw_array(&w), sp_jw_array_end(&w);
    sp_jw_null(&w), sp_jw_array_end(&w);
    sp_jw_key(&w, "b\"\n"), sp_jw_raw(&w, SP_SLICE("[1]")), sp_jw_key(&w, "c"), sp_jw_str(&w, "");
    sp_jw_object_end(&w);
    CU_ASSERT_STRING_EQUAL(
        b.ptr, "{\"a\":[-9223372036854775808,true,{},[],null],\"b\\\"\\n\":[1],\"c\":\"\"}");
    sp_buf_fini(&b);
}

static void every_byte_in_a_string_reads_back(void) {
    for (int c = 0; c < 256; c++) {
        char raw[3] = {'a', (char)c, 'b'};
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_jw_string(&w, (sp_slice){raw, 3});
        sp_json *doc = must_parse(sp_buf_slice(&b));
        sp_slice back = sp_json_string(sp_json_root(doc));
        sp_slice want = c < 0x80 ? (sp_slice){raw, 3} : SP_SLICE("a\xef\xbf\xbd\x62");
        CU_ASSERT(sp_slice_eq(back, want)); /* the others are not UTF-8 */
        sp_json_free(doc);
        sp_buf_fini(&b);
    }
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_str(&w, "\xe2\x82\xac\xf0\x9f\x98\x80\x7f/");
    CU_ASSERT_STRING_EQUAL(b.ptr, "\"\xe2\x82\xac\xf0\x9f\x98\x80\x7f/\"");
    sp_buf_clear(&b);
    w = sp_jw_on(&b);
    sp_jw_str(&w, "\xe2\x82"); /* cut short: one replacement a byte */
    CU_ASSERT_STRING_EQUAL(b.ptr, "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    sp_buf_fini(&b);
}

static void written_numbers_read_back_the_same(void) {
    uint64_t s = 1;
    for (int i = 0; i < 20000; i++) {
        double v;
        s = s * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = i % 2 ? s : (s >> 40);
        memcpy(&v, &bits, sizeof v);
        if (i % 4 == 0) v = (double)(int64_t)(s >> 44) / 100;
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_jw_number(&w, v);
        if (!isfinite(v)) {
            CU_ASSERT_STRING_EQUAL(b.ptr, "null");
        } else {
            sp_json *doc = must_parse(sp_buf_slice(&b));
            double back = sp_json_number(sp_json_root(doc));
            CU_ASSERT(memcmp(&back, &v, sizeof v) == 0 || v == 0);
            sp_json_free(doc);
        }
        sp_buf_fini(&b);
    }
    static const struct {
        double v;
        const char *text;
    } cases[] = {{0.1, "0.1"}, {1, "1"},          {-2.5, "-2.5"},
                 {0, "0"},     {1e300, "1e+300"}, {1.0 / 3, "0.3333333333333333"}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_jw_number(&w, cases[i].v);
        CU_ASSERT_STRING_EQUAL(b.ptr, cases[i].text);
        sp_buf_fini(&b);
    }
}

/* The n-th allocation fails, for all n: an answer, no crash, no leak. */
static void short_memory_is_an_answer(void) {
    static const char text[] = "{\"a\\u0000\":[1.5,{\"b\":1,\"c\":2}],\"d\":\"\\u0000\"}";
    int failed = 0;
    for (int64_t n = 1; n < 20; n++) {
        sp_json *doc = NULL;
        sp_mem_fail_at(n);
        sp_status st = sp_json_parse(&doc, SP_SLICE(text), 0, NULL);
        sp_mem_fail_at(0);
        CU_ASSERT(st == SP_OK || st == SP_E_NOMEM);
        CU_ASSERT((st == SP_OK) == (doc != NULL));
        failed += st != SP_OK;
        sp_json_free(doc);
    }
    CU_ASSERT(failed > 2);
}

SP_TEST_MAIN("runtime/base/json", SP_TEST(the_public_suite_is_accepted_and_refused_as_it_says),
             SP_TEST(fuzzed_texts_neither_crash_nor_hang),
             SP_TEST(numbers_keep_how_they_were_written),
             SP_TEST(very_long_numbers_are_still_numbers), SP_TEST(strings_may_hold_a_nul),
             SP_TEST(numbers_keep_their_place_beside_nuls),
             SP_TEST(a_key_that_comes_twice_is_refused_by_name),
             SP_TEST(depth_is_bounded_by_default_and_by_wish),
             SP_TEST(walking_takes_what_is_not_there), SP_TEST(checked_reads_say_what_was_wanted),
             SP_TEST(the_writer_puts_the_commas), SP_TEST(every_byte_in_a_string_reads_back),
             SP_TEST(written_numbers_read_back_the_same), SP_TEST(short_memory_is_an_answer))
