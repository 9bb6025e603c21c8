/* Covers runtime/text/unicode.c: classes, normal forms, repair of bytes that are not UTF-8. */
#include "runtime/text/unicode.h"

#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

static bool normal(sp_unicode_form form, const char *text, const char *want) {
    sp_buf out;
    sp_err err = {0};
    sp_buf_init(&out, 0);
    CU_ASSERT_EQUAL(sp_unicode_normalize(form, sp_slice_of(text), &out, &err), SP_OK);
    bool same = sp_slice_is(sp_buf_slice(&out), want);
    if (!same) fprintf(stderr, "    '%s' gives '%s', want '%s'\n", text, out.ptr, want);
    sp_buf_fini(&out);
    return same;
}

static void the_four_normal_forms(void) {
    CU_ASSERT(normal(SP_UNICODE_NFC, "e\xcc\x81", "\xc3\xa9"));
    CU_ASSERT(normal(SP_UNICODE_NFD, "\xc3\xa9", "e\xcc\x81"));
    CU_ASSERT(normal(SP_UNICODE_NFKC, "\xef\xac\x81\xc2\xb2\xe3\x8e\x8f", "fi2kg"));
    CU_ASSERT(normal(SP_UNICODE_NFKD, "\xef\xac\x81\xc3\xa9", "fie\xcc\x81"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"));
    CU_ASSERT(normal(SP_UNICODE_NFD, "\xed\x95\x9c", "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "\xe2\x84\xab", "\xc3\x85"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "plain \xc3\xa9", "plain \xc3\xa9"));
    CU_ASSERT(normal(SP_UNICODE_NFKD, "", ""));
}

static void marks_are_sorted_by_class_and_equals_stay(void) {
    CU_ASSERT(normal(SP_UNICODE_NFD, "a\xcc\x81\xcc\x96", "a\xcc\x96\xcc\x81"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "a\xcc\x81\xcc\x96", "\xc3\xa1\xcc\x96"));
    CU_ASSERT(normal(SP_UNICODE_NFD, "a\xcc\x81\xcc\x82\xcc\x96", "a\xcc\x96\xcc\x81\xcc\x82"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "a\xcc\x82\xcc\x81", "\xe1\xba\xa5"));
}

static void marks_of_unicode_10_and_later_do_not_move(void) {
    /* U+0D3C; what follows it stays behind it, and nothing is composed across it */
    CU_ASSERT(normal(SP_UNICODE_NFC, "\xdb\xab\xe0\xb4\xbc", "\xdb\xab\xe0\xb4\xbc"));
    CU_ASSERT(normal(SP_UNICODE_NFC, "a\xe1\xaa\xbf\xcc\x81", "a\xe1\xaa\xbf\xcc\x81"));
}

static void a_million_marks_are_sorted_at_once(void) {
    const size_t half = 250000;
    char *text = malloc(4 * half + 1);
    for (size_t i = 0; i < half; i++) {
        memcpy(text + 2 * i, "\xcc\x81", 2);            /* class 230 */
        memcpy(text + 2 * half + 2 * i, "\xcc\x96", 2); /* class 220: all must go first */
    }
    sp_buf out;
    sp_err err = {0};
    sp_buf_init(&out, 0);
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(sp_unicode_normalize(SP_UNICODE_NFC, (sp_slice){text, 4 * half}, &out, &err),
                    SP_OK);
    CU_ASSERT(sp_now_ns() - start < 10000000000);
    CU_ASSERT(out.len == 4 * half && memcmp(out.ptr, "\xcc\x96", 2) == 0);
    sp_buf_fini(&out);
    free(text);
}

static void lower_case_takes_each_character_alone(void) {
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_unicode_lower(SP_SLICE("AZ[\xc3\x89\xce\xa3\xc4\xb0\xe2\x84\xaa\xf0\x90\x90\x80"), &out);
    CU_ASSERT_STRING_EQUAL(out.ptr, "az[\xc3\xa9\xcf\x83i\xcc\x87k\xf0\x90\x90\xa8");
    sp_buf_fini(&out);
}

static void classes_hold_what_they_name(void) {
    static const uint32_t spaces[] = {9, 10, 13, 32, 0x85, 0xa0, 0x1680, 0x2003, 0x2029, 0x3000};
    for (size_t i = 0; i < SP_LEN(spaces); i++) CU_ASSERT(sp_unicode_is_space(spaces[i]));
    static const uint32_t others[] = {0, 8, 14, 0x180e, 0x200b, 0x2060, 0xfeff};
    for (size_t i = 0; i < SP_LEN(others); i++) CU_ASSERT(!sp_unicode_is_space(others[i]));
    static const uint32_t words[] = {'a',   'Z',    '0',    '_',    0xe9,
                                     0x301, 0x4e2d, 0x200d, 0x24d0, 0x2160};
    for (size_t i = 0; i < SP_LEN(words); i++) CU_ASSERT(sp_unicode_is_word(words[i]));
    static const uint32_t no_words[] = {' ', '-', 0xb2, 0x2026, 0x1f600, 0x10ffff};
    for (size_t i = 0; i < SP_LEN(no_words); i++) CU_ASSERT(!sp_unicode_is_word(no_words[i]));
    CU_ASSERT(sp_unicode_is_punct('$') && sp_unicode_is_punct('_') && sp_unicode_is_punct(0x3002));
    CU_ASSERT(!sp_unicode_is_punct('a') && !sp_unicode_is_punct(0x20ac) &&
              !sp_unicode_is_punct(127));
    CU_ASSERT(sp_unicode_is_numeric('7') && sp_unicode_is_numeric(0xbd) &&
              sp_unicode_is_numeric(0x2167));
    CU_ASSERT(!sp_unicode_is_numeric('x') && !sp_unicode_is_numeric(0x4e00));
    CU_ASSERT(sp_unicode_is_mark(0x301) && !sp_unicode_is_mark('a'));
}

static void byte_letters_go_both_ways(void) {
    for (int b = 0; b < 256; b++)
        CU_ASSERT_EQUAL(sp_bytelevel_byte(sp_bytelevel_char((unsigned char)b)), b);
    CU_ASSERT_EQUAL(sp_bytelevel_char(' '), 0x120);
    CU_ASSERT_EQUAL(sp_bytelevel_char(0xad), 0x143);
    CU_ASSERT_EQUAL(sp_bytelevel_byte(' '), -1);
    CU_ASSERT_EQUAL(sp_bytelevel_byte(0x144), -1);
    CU_ASSERT_EQUAL(sp_bytelevel_byte(0x10ffff), -1);
}

static bool repairs(sp_slice bytes, const char *want) {
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_utf8_repair(bytes, &out);
    bool same = sp_slice_is(sp_buf_slice(&out), want);
    sp_buf_fini(&out);
    return same;
}

#define R SP_UTF8_REPLACEMENT
#define REPAIRS(bytes, want) CU_ASSERT(repairs(SP_SLICE(bytes), (want)))

static void each_maximal_bad_part_becomes_one_u_fffd(void) {
    REPAIRS("a\xff"
            "b",
            "a" R "b");
    REPAIRS("\xe2\x82", R);
    REPAIRS("\xe2\x82\xe2\x82\xac", R "\xe2\x82\xac");
    REPAIRS("\xf0\x9f\x98x", R "x");
    REPAIRS("\xed\xa0\x80", R R R);
    REPAIRS("\xc0\x80\xf5", R R R);
    REPAIRS("\xf4\x90\x80\x80", R R R R);
    REPAIRS("\xe0\x80", R R);
    REPAIRS("\xf0\x90\x80", R);
}

static void the_next_character_may_be_whole_cut_or_bad(void) {
    CU_ASSERT_EQUAL(sp_utf8_next("a", 1), 1);
    CU_ASSERT_EQUAL(sp_utf8_next("\xf0\x9f\x98\x80z", 5), 4);
    CU_ASSERT_EQUAL(sp_utf8_next("\xf0\x9f\x98", 3), 0);
    CU_ASSERT_EQUAL(sp_utf8_next("\xe2", 1), 0);
    CU_ASSERT_EQUAL(sp_utf8_next("\xe2\x28", 2), -1);
    CU_ASSERT_EQUAL(sp_utf8_next("\xf0\x9f\x28", 3), -2);
    CU_ASSERT_EQUAL(sp_utf8_next("\x80", 1), -1);
}

SP_TEST_MAIN("runtime/text/unicode", SP_TEST(the_four_normal_forms),
             SP_TEST(marks_are_sorted_by_class_and_equals_stay),
             SP_TEST(marks_of_unicode_10_and_later_do_not_move),
             SP_TEST(a_million_marks_are_sorted_at_once),
             SP_TEST(lower_case_takes_each_character_alone), SP_TEST(classes_hold_what_they_name),
             SP_TEST(byte_letters_go_both_ways), SP_TEST(each_maximal_bad_part_becomes_one_u_fffd),
             SP_TEST(the_next_character_may_be_whole_cut_or_bad))
