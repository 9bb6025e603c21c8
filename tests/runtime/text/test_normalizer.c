/* Covers runtime/text/normalizer.c: each type, chains, growth, and refused parts. */
#include "runtime/text/normalizer.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

static sp_normalizer *load(const char *json, sp_err *err) {
    sp_json *doc = NULL;
    sp_normalizer *n = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 0, err), SP_OK);
    if (sp_normalizer_load(&n, sp_json_root(doc), err) != SP_OK) n = NULL;
    sp_json_free(doc);
    return n;
}

static bool makes(const char *json, const char *text, const char *want, bool want_cut) {
    sp_err err = {0};
    sp_normalizer *n = load(json, &err);
    if (!n) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(n);
    sp_regex_scratch regex = {0};
    sp_normalizer_scratch s = {.regex = &regex};
    sp_slice out = {0};
    bool cut = false;
    CU_ASSERT_EQUAL(sp_normalizer_run(n, sp_slice_of(text), &s, &out, &cut, &err), SP_OK);
    bool same = sp_slice_is(out, want) && cut == want_cut;
    if (!same) fprintf(stderr, "    %s gives '%.*s' %d\n", json, (int)out.len, out.ptr, cut);
    sp_normalizer_scratch_fini(&s);
    sp_regex_scratch_fini(&regex);
    sp_normalizer_free(n);
    return same;
}

static void each_type_does_what_its_name_says(void) {
    CU_ASSERT(makes("{\"type\":\"NFC\"}", "e\xcc\x81", "\xc3\xa9", false));
    CU_ASSERT(makes("{\"type\":\"NFKD\"}", "\xc2\xb2", "2", false));
    CU_ASSERT(makes("{\"type\":\"Lowercase\"}", "ABC", "abc", false));
    CU_ASSERT(makes("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "a", "_a", false));
    CU_ASSERT(makes("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "", "", false));
    CU_ASSERT(makes("{\"type\":\"StripAccents\"}", "e\xcc\x81", "e", false));
    CU_ASSERT(makes("{\"type\":\"StripAccents\"}",
                    "\xcc\x81"
                    "e",
                    "e", true));
    CU_ASSERT(makes("{\"type\":\"ByteLevel\"}", "a \xc3\xa9", "a\xc4\xa0\xc3\x83\xc2\xa9", false));
    CU_ASSERT(makes("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
                    " \xc2\xa0x \n", "x", true));
    CU_ASSERT(makes("{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true}", " x ", " x",
                    false));
    CU_ASSERT(
        makes("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}", "  ", "", true));
}

static void replace_takes_strings_and_regexes(void) {
    CU_ASSERT(makes("{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}",
                    "a b  c", "a_b__c", false));
    CU_ASSERT(
        makes("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"\\\\1\"}",
              "a   b", "a\\1b", false)); /* the content is plain text */
    CU_ASSERT(makes("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"^\\\\s+\"},\"content\":\"\"}",
                    "  a", "a", true));
    CU_ASSERT(makes("{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"b\"}",
                    "aaa", "ba", false));
    CU_ASSERT(makes("{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"-\"}", "ab",
                    "-a-b-", false));
}

static void a_sequence_runs_in_order(void) {
    CU_ASSERT(
        makes("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"},"
              "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Replace\",\"pattern\":{"
              "\"String\":\" \"},\"content\":\"_\"},{\"type\":\"Lowercase\"}]}]}",
              "A B", "_a_b", false));
    CU_ASSERT(makes("null", "A", "A", false));
    CU_ASSERT(makes("{\"type\":\"Sequence\",\"normalizers\":[]}", "A", "A", false));
}

static void a_text_that_grows_without_measure_is_refused(void) {
    sp_err err = {0};
    sp_buf json;
    sp_buf_init(&json, 0);
    sp_buf_puts(&json, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"");
    for (int i = 0; i < 1000; i++) sp_buf_putc(&json, 'x');
    sp_buf_puts(&json, "\"}");
    sp_normalizer *n = load(json.ptr, &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(n);
    char *text = malloc(100000);
    memset(text, 'a', 100000);
    sp_regex_scratch regex = {0};
    sp_normalizer_scratch s = {.regex = &regex};
    sp_slice out;
    bool cut;
    CU_ASSERT_EQUAL(sp_normalizer_run(n, (sp_slice){text, 100000}, &s, &out, &cut, &err),
                    SP_E_TOOLONG);
    sp_normalizer_scratch_fini(&s);
    free(text);
    sp_normalizer_free(n);
    sp_buf_fini(&json);
}

static void refused_parts_are_named(void) {
    static const char *const cases[][2] = {
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"\"}", "type 'Precompiled'"},
        {"{\"type\":\"Sequence\"}", "has no 'normalizers'"},
        {"{\"type\":\"Sequence\",\"normalizers\":[5]}", "want an object, got an integer"},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}", "content: is missing"},
        {"{\"type\":\"Replace\",\"content\":\"a\"}", "pattern: want"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"a\"}", "regex"},
        {"{\"type\":\"Prepend\"}", "prepend: is missing"},
        {"{\"type\":\"Strip\",\"strip_left\":\"yes\"}", "want a boolean"},
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_err err = {0};
        sp_normalizer *n = load(cases[i][0], &err);
        bool good = !n && strstr(err.text, cases[i][1]) && strstr(err.text, "normalizer: ");
        if (!good) fprintf(stderr, "    %s gives '%s'\n", cases[i][0], err.text);
        CU_ASSERT(good);
        sp_normalizer_free(n);
    }
}

SP_TEST_MAIN("runtime/text/normalizer", SP_TEST(each_type_does_what_its_name_says),
             SP_TEST(replace_takes_strings_and_regexes), SP_TEST(a_sequence_runs_in_order),
             SP_TEST(a_text_that_grows_without_measure_is_refused),
             SP_TEST(refused_parts_are_named))
