/* Covers runtime/text/added.c: the longest token at the leftmost place, and its four flags. */
#include "runtime/text/added.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

#define TEXT(s) .content = {(s), sizeof(s) - 1}

static sp_normalizer *no_normalizer(void) {
    sp_normalizer *n = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_normalizer_load(&n, NULL, &err), SP_OK);
    return n;
}

static sp_added *make(const sp_added_token *tokens, size_t n) {
    sp_added *a = NULL;
    sp_err err = {0};
    sp_normalizer *none = no_normalizer();
    CU_ASSERT_EQUAL_FATAL(sp_added_create(&a, &err), SP_OK);
    for (size_t i = 0; i < n; i++) CU_ASSERT_EQUAL(sp_added_put(a, &tokens[i], none, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_added_finish(a, &err), SP_OK);
    sp_normalizer_free(none);
    return a;
}

static bool splits(const sp_added *a, const char *text, bool special, const char *want) {
    sp_pieces pieces = {0};
    sp_piece whole = {text, strlen(text), -1, true};
    CU_ASSERT_EQUAL(sp_added_split(a, false, special, whole, &pieces), SP_OK);
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_buf_puts(&out, "");
    for (size_t i = 0; i < pieces.len; i++) {
        sp_piece p = pieces.ptr[i];
        sp_buf_printf(&out, p.id < 0 ? "[%.*s]" : "<%.*s>", (int)p.len, p.ptr);
    }
    bool same = strcmp(out.ptr, want) == 0;
    if (!same) fprintf(stderr, "    want %s\n    got  %s\n", want, out.ptr);
    sp_buf_fini(&out);
    sp_pieces_fini(&pieces);
    return same;
}

static void the_longest_token_at_the_leftmost_place_is_taken(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT("ab")},
                                     {.id = 2, TEXT("abcd")},
                                     {.id = 3, TEXT("bc")},
                                     {.id = 4, TEXT("  ")}};
    sp_added *a = make(tokens, SP_LEN(tokens));
    CU_ASSERT(splits(a, "xabcy", true, "[x]<ab>[cy]"));
    CU_ASSERT(splits(a, "abcd", true, "<abcd>"));
    CU_ASSERT(splits(a, "abcabcd", true, "<ab>[c]<abcd>"));
    CU_ASSERT(splits(a, "bc   ab", true, "<bc><  >[ ]<ab>"));
    CU_ASSERT(splits(a, "", true, ""));
    CU_ASSERT(splits(a, "xyz", true, "[xyz]"));
    sp_added_free(a);
}

static void special_tokens_hide_what_is_inside_them_even_when_off(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT("<s>"), .special = true},
                                     {.id = 2, TEXT("s>")}};
    sp_added *a = make(tokens, SP_LEN(tokens));
    CU_ASSERT(splits(a, "a<s>s>", true, "[a]<<s>><s>>"));
    CU_ASSERT(splits(a, "a<s>s>", false, "[a<s>]<s>>"));
    sp_added_free(a);
}

static void a_single_word_has_no_word_beside_it(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT("the"), .single_word = true}};
    sp_added *a = make(tokens, 1);
    CU_ASSERT(splits(a, "the other, the-the \xc3\xa9the", true,
                     "<the>[ other, ]<the>[-]<the>[ \xc3\xa9the]"));
    CU_ASSERT(splits(a, "the_ the\xcc\x81", true, "[the_ the\xcc\x81]"));
    sp_added_free(a);
}

static void strips_swallow_the_spaces_around(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT("[L]"), .lstrip = true},
                                     {.id = 2, TEXT("[R]"), .rstrip = true},
                                     {.id = 3, TEXT("[B]"), .lstrip = true, .rstrip = true}};
    sp_added *a = make(tokens, SP_LEN(tokens));
    CU_ASSERT(splits(a, "a \xe3\x80\x80[L] b", true, "[a]< \xe3\x80\x80[L]>[ b]"));
    CU_ASSERT(splits(a, "a [R] \n b", true, "[a ]<[R] \n >[b]"));
    CU_ASSERT(splits(a, " [B] [B] ", true, "< [B] ><[B] >"));
    CU_ASSERT(splits(a, "[R]  [L]x", true, "<[R]  ><[L]>[x]"));
    sp_added_free(a);
}

static void spaces_reached_by_an_earlier_token_are_not_given_twice(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT("  "), .lstrip = true, .rstrip = true}};
    sp_added *a = make(tokens, 1);
    CU_ASSERT(splits(a, "      x", true, "<      >[x]"));
    sp_added_free(a);
}

/* Each token strips to the end of the same run: the run must be read once, not once a token. */
static void a_long_run_of_stripping_tokens_is_linear(void) {
    const sp_added_token tokens[] = {{.id = 1, TEXT(" "), .rstrip = true, .lstrip = true}};
    sp_added *a = make(tokens, 1);
    const size_t n = 1 << 20;
    char *text = malloc(n);
    memset(text, ' ', n);
    sp_pieces pieces = {0};
    CU_ASSERT_EQUAL(sp_added_split(a, false, true, (sp_piece){text, n, -1, true}, &pieces), SP_OK);
    CU_ASSERT_EQUAL(pieces.len, 1);
    sp_pieces_fini(&pieces);
    free(text);
    sp_added_free(a);
}

static void normalized_tokens_are_written_as_the_normalizer_leaves_them(void) {
    sp_json *doc = NULL;
    sp_err err = {0};
    sp_normalizer *n = NULL;
    sp_added *a = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, SP_SLICE("{\"type\":\"Lowercase\"}"), 0, &err),
                          SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_normalizer_load(&n, sp_json_root(doc), &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_added_create(&a, &err), SP_OK);
    const sp_added_token upper = {.id = 1, TEXT("ABC"), .normalized = true};
    const sp_added_token raw = {.id = 2, TEXT("DEF")};
    CU_ASSERT_EQUAL(sp_added_put(a, &upper, n, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_added_put(a, &raw, n, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_added_finish(a, &err), SP_OK);
    CU_ASSERT(sp_slice_is(sp_added_get(a, 1)->written, "abc"));
    CU_ASSERT(sp_slice_is(sp_added_get(a, 1)->content, "ABC"));
    CU_ASSERT(sp_slice_is(sp_added_get(a, 2)->written, "DEF"));
    CU_ASSERT(splits(a, "ABCDEF", true, "[ABC]<DEF>")); /* the raw set holds DEF alone */
    sp_added_free(a);
    sp_normalizer_free(n);
    sp_json_free(doc);
}

static void ids_and_contents_are_unique(void) {
    sp_added *a = NULL;
    sp_err err = {0};
    sp_normalizer *none = no_normalizer();
    CU_ASSERT_EQUAL_FATAL(sp_added_create(&a, &err), SP_OK);
    const sp_added_token x = {.id = 1, TEXT("x")}, y = {.id = 1, TEXT("y")},
                         z = {.id = 2, TEXT("x")};
    CU_ASSERT_EQUAL(sp_added_put(a, &x, none, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_added_put(a, &y, none, &err), SP_E_FORMAT);
    CU_ASSERT_EQUAL(sp_added_put(a, &z, none, &err), SP_E_FORMAT);
    CU_ASSERT_EQUAL(sp_added_put(a, &x, none, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_added_count(a), 1);
    for (int i = 10; i < 3000; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        const sp_added_token t = {.id = i, .content = sp_slice_of(name)};
        CU_ASSERT_EQUAL(sp_added_put(a, &t, none, &err), SP_OK);
    }
    CU_ASSERT_EQUAL(sp_added_find(a, SP_SLICE("t2999"))->id, 2999);
    CU_ASSERT(sp_slice_is(sp_added_get(a, 777)->content, "t777"));
    CU_ASSERT_PTR_NULL(sp_added_get(a, 5));
    CU_ASSERT_PTR_NULL(sp_added_find(a, SP_SLICE("t5")));
    sp_added_free(a);
    sp_normalizer_free(none);
}

SP_TEST_MAIN("runtime/text/added", SP_TEST(the_longest_token_at_the_leftmost_place_is_taken),
             SP_TEST(special_tokens_hide_what_is_inside_them_even_when_off),
             SP_TEST(a_single_word_has_no_word_beside_it),
             SP_TEST(strips_swallow_the_spaces_around),
             SP_TEST(spaces_reached_by_an_earlier_token_are_not_given_twice),
             SP_TEST(a_long_run_of_stripping_tokens_is_linear),
             SP_TEST(normalized_tokens_are_written_as_the_normalizer_leaves_them),
             SP_TEST(ids_and_contents_are_unique))
