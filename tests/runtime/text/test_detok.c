/* Covers runtime/text/detok.c: streams against whole decodes, stop strings, priming. */
#include "runtime/text/detok.h"

#include "runtime/base/clock.h"
#include "runtime/text/decoder.h"
#include "tests/runtime/text/tokenizer_help.h"

static unsigned next_random(unsigned *x) {
    *x = *x * 1103515245u + 12345u;
    return *x >> 8;
}

static sp_detok *open_detok(const sp_tokenizer *t, const sp_detok_config *config) {
    sp_err err = {0};
    sp_detok *d = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_detok_create(&d, t, config, &err), SP_OK);
    return d;
}

/* ---- against the whole decode ---- */

static void check_stream(const sp_tokenizer *t, const int32_t *ids, size_t n, bool skip) {
    sp_detok *d = open_detok(t, &(sp_detok_config){.skip_special = skip});
    sp_buf text, whole;
    sp_buf_init(&text, 0);
    sp_buf_init(&whole, 0);
    for (size_t i = 0; i < n; i++) {
        size_t had = text.len;
        CU_ASSERT_EQUAL(sp_detok_push(d, ids[i], false, &text), -1);
        sp_slice fresh = {text.ptr + had, text.len - had};
        CU_ASSERT(fresh.len == 0 || sp_utf8_valid(fresh));
    }
    sp_detok_flush(d, &text);
    sp_tokenizer_decode(t, ids, n, skip, &whole);
    bool same = sp_slice_eq(sp_buf_slice(&text), sp_buf_slice(&whole));
    if (!same) {
        help_print_ids("ids", ids, n);
        fprintf(stderr, "    want '%s'\n    got  '%s'\n", whole.ptr, text.ptr);
    }
    CU_ASSERT(same);
    sp_buf_fini(&whole);
    sp_buf_fini(&text);
    sp_detok_destroy(d);
}

static void check_streams(const sp_tokenizer *t, int rounds) {
    unsigned x = 17;
    int32_t ids[24];
    for (int round = 0; round < rounds; round++) {
        size_t n = next_random(&x) % SP_LEN(ids);
        /* any ids; the first ones, which are bytes and special tokens; ids that do not exist */
        unsigned range = round % 3 ? 300 : (unsigned)sp_tokenizer_size(t) + 5;
        for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(next_random(&x) % range);
        check_stream(t, ids, n, round % 2);
    }
}

static void gpt2_streams_equal_whole_decodes(void) {
    sp_tokenizer *t = help_load_folder("gpt2");
    if (!t) SP_SKIP("no fixtures");
    check_streams(t, 3000);
    sp_tokenizer_free(t);
}

static void llama2_streams_equal_whole_decodes(void) {
    sp_tokenizer *t = help_load_folder("llama2");
    if (!t) SP_SKIP("no fixtures");
    check_streams(t, 3000);
    sp_tokenizer_free(t);
}

static void podling_streams_equal_whole_decodes(void) {
    char path[512];
    sp_err err = {0};
    sp_tokenizer *t = NULL;
    const char *dir = help_podling(path, sizeof path);
    if (!dir) SP_SKIP("no demo model");
    CU_ASSERT_EQUAL_FATAL(sp_tokenizer_load(&t, dir, &err), SP_OK);
    check_streams(t, 3000);
    sp_tokenizer_free(t);
}

/* ---- small tokenizers ---- */

/* Letters a..z, space, and the four bytes of an emoji; ids of letters are 'x' - 'a'. */
static sp_tokenizer *letters(const char *decoder) {
    sp_buf json;
    sp_buf_init(&json, 0);
    sp_buf_printf(&json,
                  "{\"decoder\":%s,\"added_tokens\":[{\"id\":40,\"content\":\"<e>\","
                  "\"special\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{",
                  decoder);
    for (int i = 0; i < 26; i++) sp_buf_printf(&json, "\"%c\":%d,", 'a' + i, i);
    sp_buf_puts(&json, "\" \":26,\"<0xF0>\":27,\"<0x9F>\":28,\"<0x98>\":29,\"<0x80>\":30,"
                       "\"abc\":31,\"\xe2\x96\x81"
                       "a\":32,\"stop\":33,\"top s\":34,\"ends\":35},"
                       "\"merges\":[]}}");
    sp_err err = {0};
    sp_tokenizer *t = help_load_text(sp_buf_slice(&json), &err);
    if (!t) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    sp_buf_fini(&json);
    return t;
}

#define FALLBACK "{\"type\":\"ByteFallback\"}"
#define LLAMA \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":" \
    "\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{" \
    "\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"

/* Pushes a text letter by letter (or the ids of `ids`); returns the stop that ended it. */
typedef struct answer {
    int stop;
    size_t pushes; /* until the stop */
    char text[128];
} answer;

static answer run(const sp_tokenizer *t, const sp_detok_config *config, const int32_t *ids,
                  size_t n, size_t off) {
    answer a = {.stop = -1};
    sp_detok *d = open_detok(t, config);
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_buf_puts(&out, "");
    for (size_t i = 0; i < n && a.stop < 0; i++) {
        a.stop = sp_detok_push(d, ids[i], i < off, &out);
        a.pushes = i + 1;
    }
    sp_detok_flush(d, &out);
    CU_ASSERT(!out.failed);
    snprintf(a.text, sizeof a.text, "%s", out.ptr);
    sp_buf_fini(&out);
    sp_detok_destroy(d);
    return a;
}

static answer type(const sp_tokenizer *t, const char *text, const sp_slice *stops, int n_stops,
                   bool include, size_t off) {
    int32_t ids[128];
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) ids[i] = text[i] == ' ' ? 26 : text[i] - 'a';
    sp_detok_config config = {.stops = stops, .n_stops = n_stops, .include_stop = include};
    return run(t, &config, ids, n, off);
}

static void a_stop_string_is_found_across_tokens(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("world"), SP_SLICE("end")};
    answer a = type(t, "hello world and more", stops, 2, false, 0);
    CU_ASSERT(a.stop == 0 && a.pushes == 11 && strcmp(a.text, "hello ") == 0);
    a = type(t, "hello world and more", stops, 2, true, 0);
    CU_ASSERT(a.stop == 0 && strcmp(a.text, "hello world") == 0);
    a = type(t, "the worl is worlless", stops, 2, false, 0);
    CU_ASSERT(a.stop == -1 && strcmp(a.text, "the worl is worlless") == 0);
    a = type(t, "en", stops, 2, false, 0);
    CU_ASSERT(a.stop == -1 && strcmp(a.text, "en") == 0);
    sp_tokenizer_free(t);
}

static void the_stop_that_is_complete_first_wins(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("world"), SP_SLICE("lo w"), SP_SLICE("o w")};
    answer a = type(t, "hello world", stops, 3, false, 0);
    CU_ASSERT(a.stop == 1 && strcmp(a.text, "hel") == 0); /* of two that end together the longer */
    const sp_slice inner[] = {SP_SLICE("abcd"), SP_SLICE("bc")};
    a = type(t, "xabcd", inner, 2, false, 0);
    CU_ASSERT(a.stop == 1 && strcmp(a.text, "xa") == 0);
    const sp_slice same[] = {SP_SLICE("ab"), SP_SLICE("ab")};
    a = type(t, "ab", same, 2, false, 0);
    CU_ASSERT(a.stop == 0 && strcmp(a.text, "") == 0);
    sp_tokenizer_free(t);
}

static void a_stop_inside_one_token_cuts_it(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("b"), SP_SLICE("op st")};
    const int32_t abc[] = {23, 31, 24};
    answer a = run(t, &(sp_detok_config){.stops = stops, .n_stops = 1}, abc, 3, 0);
    CU_ASSERT(a.stop == 0 && a.pushes == 2 && strcmp(a.text, "xa") == 0);
    const int32_t over[] = {34, 33,
                            0}; /* "top s" "stop": the stop begins in one and ends in the next */
    const sp_slice across[] = {SP_SLICE("p sst")};
    a = run(t, &(sp_detok_config){.stops = across, .n_stops = 1}, over, 3, 0);
    CU_ASSERT(a.stop == 0 && a.pushes == 2 && strcmp(a.text, "to") == 0);
    sp_tokenizer_free(t);
}

static void text_is_held_back_only_while_it_may_be_a_stop(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("aab")};
    sp_detok *d = open_detok(t, &(sp_detok_config){.stops = stops, .n_stops = 1});
    static const char text[] = "caaac";
    static const size_t given[] = {1, 1, 1, 2, 5};
    sp_buf out;
    sp_buf_init(&out, 0);
    for (size_t i = 0; i < 5; i++) {
        CU_ASSERT_EQUAL(sp_detok_push(d, text[i] - 'a', false, &out), -1);
        CU_ASSERT_EQUAL(out.len, given[i]);
    }
    CU_ASSERT_STRING_EQUAL(out.ptr, "caaac");
    sp_buf_fini(&out);
    sp_detok_destroy(d);
    sp_tokenizer_free(t);
}

static void nothing_comes_after_a_stop(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("b")};
    sp_detok *d = open_detok(t, &(sp_detok_config){.stops = stops, .n_stops = 1});
    sp_buf out;
    sp_buf_init(&out, 0);
    CU_ASSERT_EQUAL(sp_detok_push(d, 0, false, &out), -1);
    CU_ASSERT_EQUAL(sp_detok_push(d, 1, false, &out), 0);
    CU_ASSERT_EQUAL(sp_detok_push(d, 1, false, &out), -1);
    sp_detok_flush(d, &out);
    CU_ASSERT_STRING_EQUAL(out.ptr, "a");
    sp_buf_fini(&out);
    sp_detok_destroy(d);
    sp_tokenizer_free(t);
}

static void stops_that_are_off_are_passed_over(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("ab")};
    answer a = type(t, "abab ab", stops, 1, false, 3);
    CU_ASSERT(a.stop == 0 && a.pushes == 4 && strcmp(a.text, "ab") == 0);
    a = type(t, "abxabx", stops, 1, false, 100);
    CU_ASSERT(a.stop == -1 && strcmp(a.text, "abxabx") == 0);
    a = type(t, "xabx", stops, 1, false, 2); /* begun while off, completed while on */
    CU_ASSERT(a.stop == 0 && strcmp(a.text, "x") == 0);
    sp_tokenizer_free(t);
}

static void a_cut_character_waits_and_becomes_u_fffd_at_the_end(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const int32_t whole[] = {0, 27, 28, 29, 30, 1}, cut[] = {0, 27, 28};
    answer a = run(t, &(sp_detok_config){0}, whole, 6, 0);
    CU_ASSERT_STRING_EQUAL(a.text, "a\xf0\x9f\x98\x80"
                                   "b");
    a = run(t, &(sp_detok_config){0}, cut, 3, 0);
    CU_ASSERT_STRING_EQUAL(a.text, "a\xef\xbf\xbd\xef\xbf\xbd");
    sp_tokenizer_free(t);
}

static void a_stop_set_free_by_the_end_still_cuts(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("\xf0\x9f\x98\x80")};
    const int32_t ids[] = {0, 27, 28, 29, 30}; /* the run of bytes ends with the text */
    answer a = run(t, &(sp_detok_config){.stops = stops, .n_stops = 1}, ids, 5, 0);
    CU_ASSERT_STRING_EQUAL(a.text, "a");
    sp_tokenizer_free(t);
}

static void special_tokens_are_shown_or_skipped(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const int32_t ids[] = {0, 40, 1};
    CU_ASSERT_STRING_EQUAL(run(t, &(sp_detok_config){0}, ids, 3, 0).text, "a<e>b");
    CU_ASSERT_STRING_EQUAL(run(t, &(sp_detok_config){.skip_special = true}, ids, 3, 0).text, "ab");
    sp_tokenizer_free(t);
}

static void a_primed_answer_keeps_its_leading_space(void) {
    sp_tokenizer *t = letters(LLAMA);
    static const int32_t prompt[] = {32, 1, 2};
    static const int32_t cut_prompt[] = {32, 27, 28};
    static const struct {
        const int32_t *prime;
        size_t n;
        int32_t ids[2];
        const char *want;
    } cases[] = {
        {NULL, 0, {32, 1}, "ab"},    /* the first piece of a text loses its space */
        {prompt, 3, {32, 1}, " ab"}, /* in the middle it does not */
        {cut_prompt, 3, {29, 30}, "\xf0\x9f\x98\x80"}, /* the character belongs to the answer */
        {cut_prompt, 3, {0, 1}, "ab"},                 /* the prompt's bad bytes do not */
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_detok *d = open_detok(t, &(sp_detok_config){0});
        sp_detok_prime(d, cases[i].prime, cases[i].n);
        sp_buf out;
        sp_buf_init(&out, 0);
        for (int k = 0; k < 2; k++)
            CU_ASSERT_EQUAL(sp_detok_push(d, cases[i].ids[k], false, &out), -1);
        sp_detok_flush(d, &out);
        CU_ASSERT_STRING_EQUAL(out.ptr, cases[i].want);
        sp_buf_fini(&out);
        sp_detok_destroy(d);
    }
    sp_tokenizer_free(t);
}

/* The stop found token by token must be the one found in the whole text. */
static void random_stops_equal_a_search_in_the_whole_text(void) {
    sp_tokenizer *t = letters(FALLBACK);
    unsigned x = 5;
    for (int round = 0; round < 3000; round++) {
        char text[40], words[3][8];
        size_t n = 1 + next_random(&x) % 39;
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + next_random(&x) % 2);
        text[n - 1] = 0;
        sp_slice stops[3];
        for (int s = 0; s < 3; s++) {
            size_t len = 2 + next_random(&x) % 6;
            for (size_t i = 0; i < len; i++) words[s][i] = (char)('a' + next_random(&x) % 2);
            stops[s] = (sp_slice){words[s], len};
        }
        size_t end = SIZE_MAX, start = 0;
        for (int s = 0; s < 3; s++) {
            ptrdiff_t at = sp_slice_find(sp_slice_of(text), stops[s], 0);
            if (at < 0) continue;
            size_t e = (size_t)at + stops[s].len;
            if (e < end || (e == end && (size_t)at < start)) end = e, start = (size_t)at;
        }
        answer a = type(t, text, stops, 3, false, 0);
        CU_ASSERT_EQUAL(a.stop >= 0, end != SIZE_MAX);
        if (end != SIZE_MAX) text[start] = 0;
        CU_ASSERT_STRING_EQUAL(a.text, text);
    }
    sp_tokenizer_free(t);
}

static void bad_stop_strings_are_refused(void) {
    sp_tokenizer *t = letters(FALLBACK);
    static const sp_slice bad[] = {{"", 0}, {"\xff", 1}};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_err err = {0};
        sp_detok *d = NULL;
        sp_detok_config config = {.stops = &bad[i], .n_stops = 1};
        CU_ASSERT_EQUAL(sp_detok_create(&d, t, &config, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NULL(d);
    }
    sp_tokenizer_free(t);
}

static void create_leaks_nothing_when_memory_is_short(void) {
    sp_tokenizer *t = letters(FALLBACK);
    const sp_slice stops[] = {SP_SLICE("ab"), SP_SLICE("cd")};
    sp_detok_config config = {.stops = stops, .n_stops = 2};
    int n = 1;
    for (; n < 50; n++) {
        sp_err err = {0};
        sp_detok *d = NULL;
        sp_mem_fail_at(n);
        sp_status st = sp_detok_create(&d, t, &config, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) {
            sp_detok_destroy(d);
            break;
        }
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
    }
    CU_ASSERT(n > 4 && n < 50);
    sp_tokenizer_free(t);
}

/* A token costs the same at the end of a long answer as at its beginning, and no allocation. */
static void a_long_answer_costs_no_more_a_token(void) {
    sp_tokenizer *t = letters(LLAMA);
    const sp_slice stops[] = {SP_SLICE("never seen")};
    sp_detok *d = open_detok(t, &(sp_detok_config){.stops = stops, .n_stops = 1});
    sp_buf out;
    sp_buf_init(&out, 0);
    int64_t start = sp_now_ns();
    uint64_t allocs = 0;
    for (int i = 0; i < 300000; i++) {
        if (i == 20000) allocs = sp_mem_count();
        if (out.len > 4000) sp_buf_clear(&out);
        CU_ASSERT_EQUAL(sp_detok_push(d, i % 31, false, &out), -1);
    }
    CU_ASSERT_EQUAL(sp_mem_count(), allocs);
    CU_ASSERT(sp_now_ns() - start < 10000000000);
    sp_buf_fini(&out);
    sp_detok_destroy(d);
    sp_tokenizer_free(t);
}

SP_TEST_MAIN(
    "runtime/text/detok", SP_TEST(gpt2_streams_equal_whole_decodes),
    SP_TEST(llama2_streams_equal_whole_decodes), SP_TEST(podling_streams_equal_whole_decodes),
    SP_TEST(a_stop_string_is_found_across_tokens), SP_TEST(the_stop_that_is_complete_first_wins),
    SP_TEST(a_stop_inside_one_token_cuts_it),
    SP_TEST(text_is_held_back_only_while_it_may_be_a_stop), SP_TEST(nothing_comes_after_a_stop),
    SP_TEST(stops_that_are_off_are_passed_over),
    SP_TEST(a_cut_character_waits_and_becomes_u_fffd_at_the_end),
    SP_TEST(a_stop_set_free_by_the_end_still_cuts), SP_TEST(special_tokens_are_shown_or_skipped),
    SP_TEST(a_primed_answer_keeps_its_leading_space),
    SP_TEST(random_stops_equal_a_search_in_the_whole_text), SP_TEST(bad_stop_strings_are_refused),
    SP_TEST(create_leaks_nothing_when_memory_is_short),
    SP_TEST(a_long_answer_costs_no_more_a_token))
