/* Covers frontend/fields.c: reads that gather violations, their paths and words. */
#include "frontend/fields.h"
#include "tests/harness.h"

#include <stdio.h>

typedef struct desk {
    sp_json *doc;
    sp_arena arena;
    sp_fields f;
    const sp_json_node *root;
} desk;

static void desk_open(desk *d, const char *json) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&d->doc, sp_slice_of(json), 0, &err), SP_OK);
    d->root = sp_json_root(d->doc);
    sp_arena_init(&d->arena, 0);
    sp_fields_init(&d->f, &d->arena);
}
static void desk_close(desk *d) {
    sp_fields_fini(&d->f);
    sp_arena_fini(&d->arena);
    sp_json_free(d->doc);
}

static void good_values_are_read_and_absent_or_null_ones_left_alone(void) {
    desk d;
    desk_open(&d, "{\"b\":true,\"i\":5.0,\"n\":0.5,\"s\":\"x\\u0000y\",\"z\":null,\"a\":[1,2]}");
    bool b = false;
    int64_t i = 0;
    double n = 0;
    sp_slice s = {0};
    CU_ASSERT(sp_field_bool(&d.f, d.root, "b", &b) && b);
    CU_ASSERT(sp_field_int(&d.f, d.root, "i", 0, 9, &i) && i == 5);
    CU_ASSERT(sp_field_number(&d.f, d.root, "n", 0, 1, true, &n) && n == 0.5);
    CU_ASSERT(sp_field_string(&d.f, d.root, "s", &s) && s.len == 3);
    CU_ASSERT_FALSE(sp_field_int(&d.f, d.root, "z", 0, 9, &i));
    CU_ASSERT_FALSE(sp_field_bool(&d.f, d.root, "absent", &b));
    CU_ASSERT_EQUAL(i, 5);
    const int32_t *ids = NULL;
    int32_t n_ids = 0;
    CU_ASSERT(sp_field_ids(&d.f, d.root, "a", 2, 3, &ids, &n_ids));
    CU_ASSERT(n_ids == 2 && ids[0] == 1 && ids[1] == 2);
    CU_ASSERT_EQUAL(d.f.n, 0);
    CU_ASSERT_PTR_NULL(sp_fields_message(&d.f));
    desk_close(&d);
}

static void every_violation_is_listed_with_its_path(void) {
    desk d;
    desk_open(
        &d, "{\"b\":1,\"i\":\"5\",\"j\":12,\"n\":2,\"s\":[],\"o\":3,\"a\":[1,9,\"x\"],\"f\":1.5}");
    bool b;
    int64_t i;
    double n;
    sp_slice s;
    const int32_t *ids;
    int32_t n_ids;
    sp_field_bool(&d.f, d.root, "b", &b);
    sp_field_int(&d.f, d.root, "i", 0, 9, &i);
    sp_field_int(&d.f, d.root, "j", 0, 9, &i);
    sp_field_int(&d.f, d.root, "f", INT64_MIN, INT64_MAX, &i);
    size_t mark = sp_fields_enter(&d.f, "deep", 3);
    sp_field_number(&d.f, d.root, "n", 0, 1, false, &n);
    sp_fields_leave(&d.f, mark);
    sp_field_string(&d.f, d.root, "s", &s);
    CU_ASSERT_PTR_NULL(sp_field_object(&d.f, d.root, "o"));
    CU_ASSERT_PTR_NULL(sp_field_array(&d.f, d.root, "a", 2));
    sp_field_ids(&d.f, d.root, "a", 3, 5, &ids, &n_ids);
    static const char *const want[] = {
        "9 errors: ",
        "b: want a boolean, got an integer",
        "i: want an integer from 0 to 9, got a string",
        "j: want an integer from 0 to 9, got 12",
        "f: want an integer, got a number",
        "deep.3.n: want a number from 0 to 1, got 2",
        "s: want a string, got an array",
        "o: want an object, got an integer",
        "a: want at most 2 items, got 3",
        "a.1: want a token id from 0 to 4, got 9",
    };
    const char *text = sp_fields_message(&d.f);
    for (size_t k = 0; k < SP_LEN(want); k++) {
        if (!strstr(text, want[k])) fprintf(stderr, "no '%s' in '%s'\n", want[k], text);
        CU_ASSERT_PTR_NOT_NULL(strstr(text, want[k]));
    }
    CU_ASSERT_STRING_EQUAL(d.f.first, "b");
    desk_close(&d);
}

static void a_flood_of_violations_is_counted_and_cut(void) {
    desk d;
    desk_open(&d, "{}");
    for (int i = 0; i < 1000; i++) {
        char key[200];
        snprintf(key, sizeof key, "%0150d", i);
        sp_fields_bad(&d.f, key, "bad");
    }
    const char *text = sp_fields_message(&d.f);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "1000 errors: "));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "; and 980 more"));
    CU_ASSERT(strlen(text) < 8192);
    desk_close(&d);
}

static void deep_paths_are_cut_and_never_written_beyond(void) {
    desk d;
    desk_open(&d, "{}");
    size_t marks[100];
    for (int i = 0; i < 100; i++) marks[i] = sp_fields_enter(&d.f, "a-rather-long-key", i);
    sp_fields_bad(&d.f, "x", "bad");
    for (int i = 99; i >= 0; i--) sp_fields_leave(&d.f, marks[i]);
    CU_ASSERT_STRING_EQUAL(d.f.path, "");
    CU_ASSERT(strlen(d.f.first) < SP_FIELDS_PATH_MAX);
    desk_close(&d);
}

SP_TEST_MAIN("frontend/fields", SP_TEST(good_values_are_read_and_absent_or_null_ones_left_alone),
             SP_TEST(every_violation_is_listed_with_its_path),
             SP_TEST(a_flood_of_violations_is_counted_and_cut),
             SP_TEST(deep_paths_are_cut_and_never_written_beyond))
