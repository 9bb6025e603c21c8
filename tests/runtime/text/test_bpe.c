/* Covers runtime/text/bpe.c and bpe_load.c: the order of merges, unknown characters, affixes, long
 * words, and merging in stretches against merging pair by pair. */
#include "runtime/text/bpe.h"

#include "runtime/base/clock.h"
#include "tests/runtime/text/tokenizer_help.h"

static sp_bpe *load_text(sp_slice json, sp_err *err) {
    sp_json *doc = NULL;
    sp_bpe *m = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, json, 0, err), SP_OK);
    if (sp_bpe_load(&m, sp_json_root(doc), err) != SP_OK) m = NULL;
    sp_json_free(doc);
    return m;
}

static sp_bpe *load(const char *json) {
    sp_err err = {0};
    sp_bpe *m = load_text(sp_slice_of(json), &err);
    if (!m) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(m);
    return m;
}

static sp_ids encode(const sp_bpe *m, sp_slice word) {
    sp_bpe_scratch s = {0};
    sp_ids ids = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_bpe_encode(m, word, &s, &ids, &err), SP_OK);
    sp_bpe_scratch_fini(&s);
    return ids;
}

static bool gives(const sp_bpe *m, const char *word, const int32_t *want, size_t n) {
    sp_ids ids = encode(m, sp_slice_of(word));
    bool same = ids.len == n && (n == 0 || memcmp(ids.ptr, want, n * 4) == 0);
    if (!same) help_print_ids(word, ids.ptr, ids.len);
    sp_ids_fini(&ids);
    return same;
}

#define EXPECT(m, word, ...) \
    do { \
        const int32_t want_[] = {__VA_ARGS__}; \
        CU_ASSERT(gives((m), (word), want_, SP_LEN(want_))); \
    } while (0)

#define ABC "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,\"aa\":6,\"aaaa\":7}"

static void the_lowest_rank_is_merged_first(void) {
    sp_bpe *m = load("{\"type\":\"BPE\"," ABC ",\"merges\":[\"b c\",\"a b\"]}");
    EXPECT(m, "abc", 0, 4);
    EXPECT(m, "ab", 3);
    sp_bpe_free(m);
    m = load("{" ABC ",\"merges\":[[\"a\",\"b\"],[\"b\",\"c\"]]}");
    EXPECT(m, "abc", 3, 2);
    EXPECT(m, "bcab", 4, 3);
    sp_bpe_free(m);
}

static void of_equal_ranks_the_leftmost_is_merged(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[\"a a\",\"aa aa\"]}");
    EXPECT(m, "aaa", 6, 0);
    EXPECT(m, "aaaa", 7);
    EXPECT(m, "aaaaaaa", 7, 6, 0);
    sp_bpe_free(m);
}

static void a_pair_listed_twice_takes_its_last_rank(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[\"#version: 0.2\",\"a b\",\"b c\",\"a b\"]}");
    EXPECT(m, "abc", 0, 4);
    sp_bpe_free(m);
}

static void ignore_merges_takes_a_whole_word_from_the_vocabulary(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[\"b c\"],\"ignore_merges\":true}");
    EXPECT(m, "abc", 5);
    EXPECT(m, "abca", 0, 4, 0);
    sp_bpe_free(m);
}

static void an_unknown_character_is_dropped_marked_or_fused(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[\"a b\"]}");
    EXPECT(m,
           "a\xc3\xa9"
           "b",
           3); /* nothing stands between them: they are neighbours */
    CU_ASSERT(gives(m, "\xe4\xb8\xad", NULL, 0));
    sp_bpe_free(m);
    m = load("{" ABC ",\"merges\":[\"a b\"],\"unk_token\":\"c\"}");
    EXPECT(m,
           "ax\xc3\xa9"
           "b",
           0, 2, 2, 1);
    sp_bpe_free(m);
    m = load("{" ABC ",\"merges\":[\"a b\"],\"unk_token\":\"c\",\"fuse_unk\":true}");
    EXPECT(m,
           "ax\xc3\xa9"
           "bxx",
           0, 2, 1, 2);
    sp_bpe_free(m);
}

static void an_unk_token_outside_the_vocabulary_fails_only_when_needed(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[],\"unk_token\":\"<unk>\"}");
    EXPECT(m, "ab", 0, 1);
    sp_bpe_scratch s = {0};
    sp_ids ids = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_bpe_encode(m, SP_SLICE("axb"), &s, &ids, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'x' has no token"));
    sp_ids_fini(&ids);
    sp_bpe_scratch_fini(&s);
    sp_bpe_free(m);
}

static void byte_fallback_spells_unknown_characters(void) {
    sp_bpe *m =
        load("{\"vocab\":{\"<unk>\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"<0xC3><0xA9>\":4},"
             "\"merges\":[],\"byte_fallback\":true,\"unk_token\":\"<unk>\"}");
    EXPECT(m, "a\xc3\xa9", 1, 2, 3);
    EXPECT(m, "\xc3\xaa", 0); /* one byte token is missing: unknown as a whole */
    sp_bpe_free(m);
    m = load("{\"vocab\":{\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"<0xC3><0xA9>\":4},"
             "\"merges\":[\"<0xC3> <0xA9>\"],\"byte_fallback\":true}");
    EXPECT(m,
           "a\xc3\xa9"
           "a",
           1, 4, 1);
    sp_bpe_free(m);
}

static void prefix_and_suffix_mark_the_inside_and_the_end_of_a_word(void) {
    sp_bpe *m = load("{\"vocab\":{\"a\":0,\"##b\":1,\"##c</w>\":2,\"##bc</w>\":3,\"a</w>\":4,"
                     "\"abc</w>\":5,\"##c\":6},\"merges\":[\"##b ##c</w>\",\"a ##bc</w>\"],"
                     "\"continuing_subword_prefix\":\"##\",\"end_of_word_suffix\":\"</w>\"}");
    EXPECT(m, "abc", 5);
    EXPECT(m, "a", 4);
    EXPECT(m, "acbc", 0, 6, 3);
    sp_bpe_free(m);
}

static void ids_may_have_holes(void) {
    sp_bpe *m = load("{\"vocab\":{\"a\":3,\"b\":70000,\"ab\":9},\"merges\":[\"a b\"]}");
    CU_ASSERT_EQUAL(sp_bpe_size(m), 70001);
    CU_ASSERT_PTR_NULL(sp_bpe_piece(m, 4).ptr);
    CU_ASSERT_PTR_NULL(sp_bpe_piece(m, 70001).ptr);
    CU_ASSERT(sp_slice_is(sp_bpe_piece(m, 70000), "b"));
    CU_ASSERT_EQUAL(sp_bpe_find(m, SP_SLICE("ba")), -1);
    EXPECT(m, "bab", 70000, 9);
    sp_bpe_free(m);
}

/* ---- against merging by the book ---- */

typedef struct rule {
    int left, right, made;
} rule;

typedef struct language {
    int n_tokens, n_rules;
    char tokens[80][40];
    rule rules[64];
} language;

static unsigned next_random(unsigned *x) {
    *x = *x * 1103515245u + 12345u;
    return *x >> 12;
}

static int find_token(const language *l, const char *s) {
    for (int i = 0; i < l->n_tokens; i++)
        if (strcmp(l->tokens[i], s) == 0) return i;
    return -1;
}

static void make_language(language *l, unsigned seed, sp_buf *json) {
    unsigned x = seed;
    *l = (language){0};
    int letters = 2 + (int)(seed % 5);
    for (; l->n_tokens < letters; l->n_tokens++)
        l->tokens[l->n_tokens][0] = (char)('a' + l->n_tokens);
    for (int i = 0; i < 60; i++) {
        char s[96];
        int left = (int)(next_random(&x) % (unsigned)l->n_tokens);
        int right = (int)(next_random(&x) % (unsigned)l->n_tokens);
        snprintf(s, sizeof s, "%s%s", l->tokens[left], l->tokens[right]);
        if (strlen(s) > 12) continue;
        int made = find_token(l, s);
        if (made < 0) strcpy(l->tokens[made = l->n_tokens++], s);
        l->rules[l->n_rules++] = (rule){left, right, made};
    }
    sp_jw w = sp_jw_on(json);
    sp_jw_object(&w);
    sp_jw_key(&w, "vocab");
    sp_jw_object(&w);
    for (int i = 0; i < l->n_tokens; i++) {
        sp_jw_key(&w, l->tokens[i]);
        sp_jw_int(&w, i);
    }
    sp_jw_object_end(&w);
    sp_jw_key(&w, "merges");
    sp_jw_array(&w);
    for (int i = 0; i < l->n_rules; i++) {
        char s[96];
        snprintf(s, sizeof s, "%s %s", l->tokens[l->rules[i].left], l->tokens[l->rules[i].right]);
        sp_jw_str(&w, s);
    }
    sp_jw_array_end(&w);
    sp_jw_object_end(&w);
}

/* The last rule for a pair counts. */
static int rank_of(const language *l, int left, int right) {
    for (int i = l->n_rules - 1; i >= 0; i--)
        if (l->rules[i].left == left && l->rules[i].right == right) return i;
    return -1;
}

static int merge_by_the_book(const language *l, int *ids, int n) {
    for (;;) {
        int best = -1, at = -1;
        for (int i = 0; i + 1 < n; i++) {
            int r = rank_of(l, ids[i], ids[i + 1]);
            if (r >= 0 && (best < 0 || r < best)) best = r, at = i;
        }
        if (best < 0) return n;
        ids[at] = l->rules[best].made;
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

static void random_languages_merge_as_by_the_book(void) {
    for (unsigned seed = 1; seed <= 300; seed++) {
        language l;
        sp_buf json;
        sp_buf_init(&json, 0);
        make_language(&l, seed, &json);
        sp_err err = {0};
        sp_bpe *m = load_text(sp_buf_slice(&json), &err);
        CU_ASSERT_PTR_NOT_NULL_FATAL(m);
        unsigned x = seed * 77;
        for (int k = 0; k < 10; k++) {
            char word[64];
            int ids[64], n = 1 + (int)(next_random(&x) % 60);
            for (int i = 0; i < n; i++) {
                ids[i] = (int)(next_random(&x) % (2 + seed % 5));
                word[i] = (char)('a' + ids[i]);
            }
            sp_ids got = encode(m, (sp_slice){word, (size_t)n});
            int want = merge_by_the_book(&l, ids, n);
            CU_ASSERT(got.len == (size_t)want && memcmp(got.ptr, ids, got.len * 4) == 0);
            sp_ids_fini(&got);
        }
        sp_bpe_free(m);
        sp_buf_fini(&json);
    }
}

/* A quadratic merge would take hours for it. */
static void a_word_of_a_million_characters_takes_no_time(void) {
    sp_bpe *m = load("{" ABC ",\"merges\":[\"a a\",\"aa aa\",\"a b\",\"b c\",\"ab c\"]}");
    const size_t n = 1 << 20;
    char *word = malloc(n);
    static const char *const patterns[] = {"a", "ab", "abc", "aab"};
    for (size_t p = 0; p < SP_LEN(patterns); p++) {
        for (size_t i = 0; i < n; i++) word[i] = patterns[p][i % strlen(patterns[p])];
        int64_t start = sp_now_ns();
        sp_ids ids = encode(m, (sp_slice){word, n});
        CU_ASSERT(ids.len >= n / 4 && ids.len < n);
        CU_ASSERT(sp_now_ns() - start < 20000000000);
        sp_ids_fini(&ids);
    }
    free(word);
    sp_bpe_free(m);
}

/* Tokens that are both a symbol of their own and made by a merge must not mislead the cut into
 * stretches: "<0x61>" is a byte here and also "<0x6" + "1>". */
static void a_token_that_is_symbol_and_product_is_merged_like_any(void) {
    sp_bpe *m = load("{\"vocab\":{\"<0x6\":0,\"1>\":1,\"<0x61>\":2,\"b\":3,\"<0x61>b\":4},"
                     "\"merges\":[\"<0x6 1>\",\"<0x61> b\"],\"byte_fallback\":true}");
    EXPECT(m, "ab", 4);
    sp_bpe_free(m);
}

static void affixes_have_a_limit(void) {
    sp_err err = {0};
    CU_ASSERT_PTR_NULL(load_text(
        SP_SLICE("{\"vocab\":{\"a\":0},\"merges\":[],\"continuing_subword_prefix\":"
                 "\"##################################################################\"}"),
        &err));
    CU_ASSERT_EQUAL(err.code, SP_E_TOOLONG);
}

SP_TEST_MAIN("runtime/text/bpe", SP_TEST(the_lowest_rank_is_merged_first),
             SP_TEST(of_equal_ranks_the_leftmost_is_merged),
             SP_TEST(a_pair_listed_twice_takes_its_last_rank),
             SP_TEST(ignore_merges_takes_a_whole_word_from_the_vocabulary),
             SP_TEST(an_unknown_character_is_dropped_marked_or_fused),
             SP_TEST(an_unk_token_outside_the_vocabulary_fails_only_when_needed),
             SP_TEST(byte_fallback_spells_unknown_characters),
             SP_TEST(prefix_and_suffix_mark_the_inside_and_the_end_of_a_word),
             SP_TEST(ids_may_have_holes), SP_TEST(random_languages_merge_as_by_the_book),
             SP_TEST(a_word_of_a_million_characters_takes_no_time),
             SP_TEST(a_token_that_is_symbol_and_product_is_merged_like_any),
             SP_TEST(affixes_have_a_limit))
