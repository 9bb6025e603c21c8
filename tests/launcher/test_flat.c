/* Covers launcher/flat.c: a struct goes round by its table; what the table does not want is refused
 * by its key. */
#include "launcher/flat.h"
#include "tests/harness.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct thing {
    char name[8];
    int64_t size;
    bool big;
} thing;

static const sp_flat_row rows[] = {
    SP_FLAT_TEXT_ROW(thing, name),
    SP_FLAT_NUMBER_ROW(thing, size, -3, 9007199254740991),
    SP_FLAT_FLAG_ROW(thing, big),
};

static sp_err err;

static sp_status parse(thing *out, const char *json, size_t n) {
    err = (sp_err){0};
    *out = (thing){0};
    return sp_flat_parse(out, rows, SP_LEN(rows), (sp_slice){json, n}, &err);
}

static void goes_round(thing in) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_flat_write(&in, rows, SP_LEN(rows), &w);
    thing got;
    CU_ASSERT_EQUAL(parse(&got, text.ptr, text.len), SP_OK);
    CU_ASSERT_STRING_EQUAL(got.name, in.name);
    CU_ASSERT_EQUAL(got.size, in.size);
    CU_ASSERT_EQUAL(got.big, in.big);
    sp_buf_fini(&text);
}

static void a_struct_goes_round(void) {
    goes_round((thing){"", 0, false});
    goes_round((thing){"seven..", 9007199254740991, true});
    goes_round((thing){"\"\\\n\x01é", -3, true});
}

static void keys_may_come_in_any_order(void) {
    static const char text[] = " { \"big\" : true , \"size\" : 4 , \"name\" : \"a\" } ";
    thing got;
    CU_ASSERT_EQUAL(parse(&got, text, sizeof text - 1), SP_OK);
    CU_ASSERT_STRING_EQUAL(got.name, "a");
    CU_ASSERT_EQUAL(got.size, 4);
    CU_ASSERT(got.big);
}

static void refused_bytes(int line, const char *json, size_t n, sp_status want, const char *word) {
    thing got;
    sp_status st = parse(&got, json, n);
    bool ok = st == want && strstr(err.text, word);
    if (!ok) fprintf(stderr, "    line %d: status %d, '%s'\n", line, (int)st, err.text);
    CU_ASSERT(ok);
}
#define REFUSED(json, status, word) refused_bytes(__LINE__, json, sizeof(json) - 1, status, word)

static void what_the_table_does_not_want_is_refused_by_key(void) {
    REFUSED("{\"name\":\"a\",\"size\":1}", SP_E_INVALID, "want an object of 3 keys, got 2");
    REFUSED("{\"name\":\"a\",\"size\":1,\"big\":true,\"more\":1}", SP_E_INVALID, "3 keys, got 4");
    REFUSED("{\"name\":\"a\",\"size\":1,\"bug\":true}", SP_E_INVALID, "big: missing");
    REFUSED("{\"name\":\"a\",\"size\":null,\"big\":true}", SP_E_INVALID, "size: missing");
    REFUSED("{\"name\":7,\"size\":1,\"big\":true}", SP_E_INVALID, "name: want a string");
    REFUSED("{\"name\":\"a\",\"size\":\"1\",\"big\":true}", SP_E_INVALID, "size: want an integer");
    REFUSED("{\"name\":\"a\",\"size\":1.0,\"big\":true}", SP_E_INVALID, "size: want an integer");
    REFUSED("{\"name\":\"a\",\"size\":1,\"big\":1}", SP_E_INVALID, "big: want a boolean");
}
static void what_does_not_fit_is_refused_by_key(void) {
    REFUSED("{\"name\":\"a\",\"size\":-4,\"big\":true}", SP_E_INVALID,
            "size: want an integer from");
    REFUSED("{\"name\":\"a\",\"size\":9007199254740992,\"big\":true}", SP_E_INVALID, "size");
    REFUSED("{\"name\":\"a\",\"size\":99999999999999999999,\"big\":true}", SP_E_INVALID, "size");
    REFUSED("{\"name\":\"12345678\",\"size\":1,\"big\":true}", SP_E_INVALID,
            "name: want at most 7 bytes, got 8");
    REFUSED("{\"name\":\"a\\u0000b\",\"size\":1,\"big\":true}", SP_E_INVALID, "name: want text");
}
static void what_is_no_object_is_refused(void) {
    REFUSED("", SP_E_FORMAT, "JSON");
    REFUSED("[1,2,3]", SP_E_INVALID, "want an object");
    REFUSED("null", SP_E_INVALID, "want an object");
    REFUSED("{\"name\":\"a\",\"size\":1,\"big\":true", SP_E_FORMAT, "JSON ends");
    REFUSED("{\"name\":\"a\",\"size\":1,\"size\":1}", SP_E_FORMAT, "size");
    REFUSED("{\"name\":\"\xff\",\"size\":1,\"big\":true}", SP_E_FORMAT, "UTF-8");
    REFUSED("{\"name\":[[[[[1]]]]],\"size\":1,\"big\":true}", SP_E_TOOLONG, "nest");
}

SP_TEST_MAIN("launcher/flat", SP_TEST(a_struct_goes_round), SP_TEST(keys_may_come_in_any_order),
             SP_TEST(what_the_table_does_not_want_is_refused_by_key),
             SP_TEST(what_does_not_fit_is_refused_by_key), SP_TEST(what_is_no_object_is_refused))
