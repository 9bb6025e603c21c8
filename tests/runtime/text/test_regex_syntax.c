/* Covers runtime/text/regex_syntax.c: what the rewritten patterns match. Wanted matches were taken
 * from the library the files are made for. */
#include "runtime/text/regex_syntax.h"

#include "runtime/text/pretok.h"
#include "tests/harness.h"

#include <stdio.h>

/* Replaces every match by '#'. */
static bool becomes(const char *pattern, sp_slice text, const char *want) {
    sp_regex *r = NULL;
    sp_err err = {0};
    if (sp_regex_compile(&r, sp_slice_of(pattern), &err) != SP_OK) {
        fprintf(stderr, "    %s: %s\n", pattern, err.text);
        return false;
    }
    sp_regex_scratch s = {0};
    sp_regex_walk walk = sp_regex_walk_begin();
    sp_buf out;
    sp_buf_init(&out, 0);
    size_t done = 0, start, end;
    for (bool found = true;;) {
        if (sp_regex_next(r, &s, text, &walk, &start, &end, &found, &err) != SP_OK || !found) break;
        sp_buf_put(&out, text.ptr + done, start - done);
        sp_buf_putc(&out, '#');
        done = end;
    }
    sp_buf_put(&out, text.ptr + done, text.len - done);
    bool same = strcmp(out.ptr, want) == 0;
    if (!same) fprintf(stderr, "    %s\n    want '%s'\n    got  '%s'\n", pattern, want, out.ptr);
    sp_buf_fini(&out);
    sp_regex_scratch_fini(&s);
    sp_regex_free(r);
    return same;
}

#define BECOMES(pattern, text, want) CU_ASSERT(becomes((pattern), SP_SLICE(text), (want)))

static void spaces_are_those_of_unicode(void) {
    BECOMES("\\s",
            "a\xc2\xa0\xe3\x80\x80\xe1\xa0\x8e\xc2\x85\x0b"
            "b",
            "a##\xe1\xa0\x8e##b");
    BECOMES("[^\\s]+", "a \xe2\x80\xa9 b", "# \xe2\x80\xa9 #");
    BECOMES("[^\\S\\r\\n]+", "a \t\nb", "a#\nb");
    BECOMES("[[:space:]]",
            "a\xe1\x9a\x80"
            "b",
            "a#b");
    BECOMES("[[:^space:]]", " a", " #");
}

static void word_characters_are_letters_marks_digits_and_connectors(void) {
    BECOMES("\\w", "e\xcc\x81_5\xe2\x91\xa0\xc2\xb9-", "####\xe2\x91\xa0#-");
    BECOMES("[\\w]",
            "\xc2\xb9"
            "a",
            "\xc2\xb9#"); /* another rule inside [] */
    BECOMES("[^\\W_]+", "a_b", "#_#");
    BECOMES("\\bab\\b", "ab cab ab", "# cab #");
    BECOMES("\\B", "ab c", "a#b c");
    BECOMES("[\\w-]+", "a-b c", "# #");
}

static void lines_begin_and_end_at_newlines(void) {
    BECOMES("\\s$", "a \nb \n", "a#\nb##");
    BECOMES("^a", "a\na\n", "#\n#\n");
    BECOMES(".+", "ab\r\ncd", "#\n#");
    BECOMES("(?m:.+)", "ab\ncd", "#");
    BECOMES("(?i-m:A.)", "ab a\n", "# a\n");
}

static void an_interval_with_plus_repeats(void) {
    BECOMES("\\d{1,3}+", "1234567", "#");
    BECOMES("(?:a{1,3}+)a", "aaaa", "#");
    BECOMES("a{2}?", "aaa", "#a#");
    BECOMES("a{1,2}?", "aa", "##");
    BECOMES("a{,2}b", "aaab", "a#");
    BECOMES("a{x}", "a{x}", "#");
    BECOMES("a{", "a{", "#");
    BECOMES("a++a|b", "aab", "aa#");
    BECOMES("[ab]{2}+c", "ababc", "#");
    BECOMES("\\p{L}{2,}+\\d", "abc1", "#");
}

static void sets_nest_and_intersect(void) {
    BECOMES("[a-z&&[^aeiou]]+", "hello", "#e#o");
    BECOMES("[a[bc]]", "abcd", "###d");
    BECOMES("[^a[bc]]", "abcd", "abc#");
    BECOMES("[^a-c&&b-d]", "abcd", "#bc#");
    BECOMES("[\\p{L}&&[^\\p{Han}]]+",
            "ab\xe4\xb8\xad"
            "c",
            "#\xe4\xb8\xad#");
    BECOMES("[a&&]", "a&", "a&");
    BECOMES("[&&a]", "a&", "a&");
    BECOMES("[a&b]", "a&b", "###");
    BECOMES("[]a]", "]a", "##");
    BECOMES("[^]a]", "]ab", "]a#");
    BECOMES("[a\\]b]", "]", "#");
    BECOMES("[\\[\\\\\\]^_`{|}~\\-]+", "[]\\^{}-", "#");
}

static void escapes_mean_what_they_mean_in_the_files(void) {
    BECOMES("\\h+", "ff g", "# g");
    BECOMES("\\H", "fg", "f#");
    BECOMES("[\\h]", "g0", "g#");
    BECOMES("\\v", "\x0b\n", "#\n");
    BECOMES("\\u4e2d|\\x{e9}|\\x41",
            "\xe4\xb8\xad\xc3\xa9"
            "A",
            "###");
    BECOMES("[\\u4e00-\\u9fa5]+", "a\xe4\xb8\xad", "a#");
    BECOMES("\\O", "\n", "#");
    BECOMES("\\/\\-\\'\\@\\_", "/-'@_", "#");
    BECOMES("[\\b]", "\b", "#");
    BECOMES("(a)\\1", "aa", "#");
    BECOMES("(?<n>a)\\k<n>", "aa", "#");
    BECOMES("(?#words)a", "a", "#");
    BECOMES("(?<!x)a(?=b)(?!bc)", "abc xab ab", "abc xab #b");
}

static void properties_have_long_short_and_script_names(void) {
    BECOMES("\\p{Letter}\\p{Uppercase_Letter}", "aB", "#");
    BECOMES("\\p{^L}\\P{Lu}", "1a", "#");
    BECOMES("\\p{Han}", "\xe4\xb8\xad\xe3\x80\x81", "#\xe3\x80\x81"); /* not its extensions */
    BECOMES("\\p{Script=Han}", "\xe4\xb8\xad", "#");
    BECOMES("[\\p{Hiragana}\\p{Katakana}]+", "\xe3\x81\x82\xe3\x82\xa2", "#");
    BECOMES("\\p{lu}\\p{Alphabetic}\\pL", "Abc", "#");
    BECOMES("[[:punct:]]", "$", "#");
    BECOMES("[[:alpha:][:digit:]]+", "a5", "#");
    BECOMES("\\p{Alnum}+", "a5", "#");
}

static void case_does_not_count_where_the_pattern_says_so(void) {
    BECOMES("(?i:'s|'ll)", "'S 'Ll 's", "# # #");
    BECOMES("'(?i:[sdmt]|re)", "'RE 'T", "# #");
    BECOMES("(?i)K", "k\xe2\x84\xaa", "##");
}

static void a_nul_is_a_character(void) {
    sp_regex *r = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_regex_compile(&r, SP_SLICE("[\0a]\0"), &err), SP_OK);
    sp_regex_scratch s = {0};
    sp_regex_walk walk = sp_regex_walk_begin();
    size_t start, end;
    bool found;
    CU_ASSERT_EQUAL(sp_regex_next(r, &s, SP_SLICE("xa\0"), &walk, &start, &end, &found, &err),
                    SP_OK);
    CU_ASSERT(found && start == 1 && end == 3);
    sp_regex_scratch_fini(&s);
    sp_regex_free(r);
}

static sp_status compile(sp_slice pattern, sp_err *err) {
    sp_regex *r = NULL;
    sp_status st = sp_regex_compile(&r, pattern, err);
    sp_regex_free(st == SP_OK ? r : NULL);
    return st;
}

static void what_cannot_be_compiled_is_refused_in_words(void) {
    sp_err err = {0};
    CU_ASSERT_EQUAL(compile(SP_SLICE("(?~ab)"), &err), SP_E_UNSUPPORTED);
    CU_ASSERT_EQUAL(compile(SP_SLICE("\\y"), &err), SP_E_UNSUPPORTED);
    static const char *const bad[] = {
        "(",     ")",   "[a",   "[[a]",         "*",        "a)",     "(?<n",      "\\",
        "[z-a]", "[\\", "\\p{", "\\p{Nothing}", "(?<=a+)b", "\\k<x>", "[[:alpha:]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sp_err why = {0};
        sp_status st = compile(sp_slice_of(bad[i]), &why);
        if (st != SP_E_FORMAT) fprintf(stderr, "    '%s' gives %s\n", bad[i], sp_status_name(st));
        CU_ASSERT_EQUAL(st, SP_E_FORMAT);
    }
}

static void depth_and_length_are_bounded(void) {
    sp_err err = {0};
    sp_buf b;
    sp_buf_init(&b, 0);
    for (int i = 0; i < 300; i++) sp_buf_putc(&b, '(');
    CU_ASSERT_EQUAL(compile(sp_buf_slice(&b), &err), SP_E_TOOLONG);
    sp_buf_clear(&b);
    for (int i = 0; i < 300; i++) sp_buf_putc(&b, '[');
    CU_ASSERT_EQUAL(compile(sp_buf_slice(&b), &err), SP_E_TOOLONG);
    sp_buf_clear(&b);
    for (int i = 0; i < 70000; i++) sp_buf_putc(&b, 'a');
    CU_ASSERT_EQUAL(compile(sp_buf_slice(&b), &err), SP_E_TOOLONG);
    sp_buf_clear(&b);
    for (int i = 0; i < 20000; i++) sp_buf_puts(&b, "\\w");
    CU_ASSERT_EQUAL(compile(sp_buf_slice(&b), &err), SP_E_TOOLONG);
    sp_buf_fini(&b);
}

/* Any bytes at all: compiled or refused, never a crash. */
static void random_patterns_are_compiled_or_refused(void) {
    static const char alphabet[] = "[](){}\\^$.*+?|&-:,aw19pL<>=!#~ \xc3\xa9";
    unsigned x = 7;
    for (int i = 0; i < 3000; i++) {
        char pattern[24];
        size_t n = 1 + (size_t)i % 23;
        for (size_t k = 0; k < n; k++) {
            x = x * 1103515245u + 12345u;
            pattern[k] = alphabet[(x >> 12) % (sizeof alphabet - 3)];
        }
        sp_err err = {0};
        (void)!compile((sp_slice){pattern, n}, &err);
    }
    CU_PASS("still here");
}

SP_TEST_MAIN("runtime/text/regex_syntax", SP_TEST(spaces_are_those_of_unicode),
             SP_TEST(word_characters_are_letters_marks_digits_and_connectors),
             SP_TEST(lines_begin_and_end_at_newlines), SP_TEST(an_interval_with_plus_repeats),
             SP_TEST(sets_nest_and_intersect), SP_TEST(escapes_mean_what_they_mean_in_the_files),
             SP_TEST(properties_have_long_short_and_script_names),
             SP_TEST(case_does_not_count_where_the_pattern_says_so), SP_TEST(a_nul_is_a_character),
             SP_TEST(what_cannot_be_compiled_is_refused_in_words),
             SP_TEST(depth_and_length_are_bounded),
             SP_TEST(random_patterns_are_compiled_or_refused))
