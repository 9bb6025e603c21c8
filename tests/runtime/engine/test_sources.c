#include "runtime/engine/sources.h"

#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

#define TEXT(rank) "{\"tp\":1,\"pp\":1,\"pp_layers\":[4],\"ranks\":[\"" rank "\"]}"

static sp_slice slice(const char *s) {
    return (sp_slice){s, strlen(s)};
}

static int32_t take(sp_sources *s, const char *engine, const char *text, sp_status want) {
    sp_err err = {0};
    int32_t number = -1;
    CU_ASSERT_EQUAL(sp_sources_take(s, engine, slice(text), &number, &err), want);
    CU_ASSERT((want == SP_OK) == (err.text[0] == 0));
    return number;
}

static sp_sources *make(void) {
    sp_sources *s;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_sources_create(&s, &err), SP_OK);
    return s;
}

static void the_same_group_has_the_same_number_and_is_told_once_a_group_of_ours(void) {
    sp_sources *s = make();
    int32_t a = take(s, "pod a", TEXT("x"), SP_OK);
    CU_ASSERT_EQUAL(a, SP_KV_SOURCE_FIRST);
    CU_ASSERT_EQUAL(take(s, "pod a", TEXT("x"), SP_OK), a);
    sp_source_news n = sp_sources_news(s, a, 0);
    CU_ASSERT(n.tell && !n.forget && n.text.len == strlen(TEXT("x")));
    n = sp_sources_news(s, a, 0);
    CU_ASSERT(!n.tell && !n.forget);
    n = sp_sources_news(s, a, 63);
    CU_ASSERT(n.tell && !n.forget);
    CU_ASSERT_EQUAL(sp_sources_users(s), 2);
    sp_sources_give(s, a);
    sp_sources_give(s, a);
    CU_ASSERT_EQUAL(sp_sources_users(s), 0);
    sp_sources_destroy(s);
}

static void another_text_of_the_same_engine_is_another_source(void) {
    sp_sources *s = make();
    int32_t a = take(s, "pod a", TEXT("x"), SP_OK), b = take(s, "pod a", TEXT("y"), SP_OK);
    CU_ASSERT_NOT_EQUAL(a, b);
    CU_ASSERT_EQUAL(take(s, "pod a", TEXT("x"), SP_OK), a);
    CU_ASSERT_NOT_EQUAL(take(s, "pod b", TEXT("x"), SP_OK), a);
    sp_sources_destroy(s);
}

static void what_ranks_could_not_read_is_refused_here(void) {
    sp_sources *s = make();
    static char big[SP_KV_SOURCE_TEXT_MAX + 2];
    memset(big, ' ', sizeof big - 1);
    (void)take(s, "pod", "", SP_E_FORMAT);
    (void)take(s, "pod", "{}", SP_E_INVALID);
    (void)take(s, "pod", big, SP_E_TOOLONG);
    CU_ASSERT_EQUAL(sp_sources_users(s), 0);
    sp_sources_destroy(s);
}

static void the_one_that_lay_idle_longest_gives_its_number(void) {
    sp_sources *s = make();
    char name[32];
    for (int i = 0; i < SP_KV_SOURCES_MAX; i++) {
        snprintf(name, sizeof name, "pod %d", i);
        int32_t a = take(s, name, TEXT("x"), SP_OK);
        CU_ASSERT_EQUAL(a, SP_KV_SOURCE_FIRST + i);
        (void)sp_sources_news(s, a, 2);
    }
    (void)take(s, "one more", TEXT("x"), SP_E_LIMIT); /* all are in use */
    for (int i = 0; i < SP_KV_SOURCES_MAX; i++) sp_sources_give(s, SP_KV_SOURCE_FIRST + i);
    sp_sources_give(s, take(s, "pod 0", TEXT("x"), SP_OK)); /* used again: not the oldest */
    int32_t a = take(s, "one more", TEXT("x"), SP_OK);
    CU_ASSERT_EQUAL(a, SP_KV_SOURCE_FIRST + 1);
    sp_source_news n = sp_sources_news(s, a, 2);
    CU_ASSERT(n.forget && n.tell); /* who knew the old one is told to forget it */
    n = sp_sources_news(s, a, 3);
    CU_ASSERT(!n.forget && n.tell);
    CU_ASSERT_NOT_EQUAL(take(s, "pod 1", TEXT("x"), SP_OK), a);
    sp_sources_destroy(s);
}

SP_TEST_MAIN("runtime/engine/sources",
             SP_TEST(the_same_group_has_the_same_number_and_is_told_once_a_group_of_ours),
             SP_TEST(another_text_of_the_same_engine_is_another_source),
             SP_TEST(what_ranks_could_not_read_is_refused_here),
             SP_TEST(the_one_that_lay_idle_longest_gives_its_number))
