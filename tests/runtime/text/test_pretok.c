/* Covers runtime/text/pretok.c: the patterns of real tokenizers, every type of pre-tokenizer, the
 * five behaviors, limits of regexes, and refused parts. */
#include "runtime/text/pretok.h"

#include "runtime/base/clock.h"
#include "tests/runtime/text/tokenizer_help.h"

static sp_pretok *load(const char *json, sp_err *err) {
    sp_json *doc = NULL;
    sp_pretok *p = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 0, err), SP_OK);
    if (sp_pretok_load(&p, sp_json_root(doc), err) != SP_OK) p = NULL;
    sp_json_free(doc);
    return p;
}

/* The pieces of a text, each in brackets. */
static void split(const sp_pretok *p, sp_piece *given, size_t n, sp_buf *out) {
    sp_pieces pieces = {0}, spare = {0};
    sp_arena arena;
    sp_regex_scratch scratch = {0};
    sp_err err = {0};
    sp_arena_init(&arena, 0);
    for (size_t i = 0; i < n; i++) CU_ASSERT_EQUAL(sp_pieces_push(&pieces, given[i]), SP_OK);
    sp_status st = sp_pretok_run(p, &pieces, &spare, &arena, &scratch, &err);
    if (st != SP_OK) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_EQUAL(st, SP_OK);
    for (size_t i = 0; i < pieces.len; i++) {
        if (pieces.ptr[i].id >= 0) sp_buf_printf(out, "<%d>", pieces.ptr[i].id);
        if (pieces.ptr[i].id < 0)
            sp_buf_printf(out, "[%.*s]", (int)pieces.ptr[i].len, pieces.ptr[i].ptr);
    }
    sp_regex_scratch_fini(&scratch);
    sp_arena_fini(&arena);
    sp_pieces_fini(&spare);
    sp_pieces_fini(&pieces);
}

static bool splits(const char *json, const char *text, const char *want) {
    sp_err err = {0};
    sp_pretok *p = load(json, &err);
    if (!p) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_piece piece = {text, strlen(text), -1, true};
    split(p, &piece, 1, &out);
    bool same = strcmp(out.ptr ? out.ptr : "", want) == 0;
    if (!same) fprintf(stderr, "    want %s\n    got  %s\n", want, out.ptr ? out.ptr : "");
    sp_buf_fini(&out);
    sp_pretok_free(p);
    return same;
}

/* {"type":"Split"} with a pattern; quotes and backslashes of the regex are escaped for JSON. */
static void put_split(sp_buf *b, const char *kind, const char *pattern, const char *behavior,
                      bool invert) {
    sp_jw w = sp_jw_on(b);
    sp_jw_object(&w);
    sp_jw_key(&w, "type");
    sp_jw_str(&w, "Split");
    sp_jw_key(&w, "pattern");
    sp_jw_object(&w);
    sp_jw_key(&w, kind);
    sp_jw_str(&w, pattern);
    sp_jw_object_end(&w);
    sp_jw_key(&w, "behavior");
    sp_jw_str(&w, behavior);
    sp_jw_key(&w, "invert");
    sp_jw_bool(&w, invert);
    sp_jw_object_end(&w);
}

static bool regex_splits(const char *pattern, const char *behavior, bool invert, const char *text,
                         const char *want) {
    sp_buf json;
    sp_buf_init(&json, 0);
    put_split(&json, "Regex", pattern, behavior, invert);
    bool same = splits(json.ptr, text, want);
    sp_buf_fini(&json);
    return same;
}

static bool string_splits(const char *pattern, const char *behavior, bool invert, const char *text,
                          const char *want) {
    sp_buf json;
    sp_buf_init(&json, 0);
    put_split(&json, "String", pattern, behavior, invert);
    bool same = splits(json.ptr, text, want);
    sp_buf_fini(&json);
    return same;
}

#define LLAMA3 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define DEEPSEEK \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}" \
    "\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CL100K \
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}| " \
    "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"

static void patterns_of_real_tokenizers_split_as_they_should(void) {
    CU_ASSERT(regex_splits(LLAMA3, "Isolated", false, "It'S  12345 x\n\n y!?\r\n  ",
                           "[It]['S][ ][ ][123][45][ x][\n\n][ y][!?\r\n][  ]"));
    CU_ASSERT(regex_splits(LLAMA3, "Isolated", false, "\xc3\xa9t\xc3\xa9\xe3\x80\x80\xe4\xb8\xad",
                           "[\xc3\xa9t\xc3\xa9][\xe3\x80\x80\xe4\xb8\xad]"));
    /* an emoji of Unicode 15 is a symbol, whatever the library's Unicode */
    CU_ASSERT(regex_splits(DEEPSEEK, "Isolated", false, "a \xf0\x9f\xa9\xb7 .b",
                           "[a][ \xf0\x9f\xa9\xb7][ .][b]"));
    CU_ASSERT(regex_splits(CL100K, "Isolated", false, "we'LL  go\n x  ",
                           "[we]['LL][ ][ go][\n][ x][  ]"));
    CU_ASSERT(regex_splits("[\\p{Lu}\\p{Lt}]*[\\p{Ll}\\p{M}]+(?i:'s)?|[^a-z]", "Isolated", false,
                           "HTMLPage's", "[HTMLPage's]"));
}

static void the_five_behaviors_differ_as_named(void) {
    static const char text[] = "the-final--countdown";
    CU_ASSERT(string_splits("-", "Removed", false, text, "[the][final][countdown]"));
    CU_ASSERT(string_splits("-", "Isolated", false, text, "[the][-][final][-][-][countdown]"));
    CU_ASSERT(
        string_splits("-", "MergedWithPrevious", false, text, "[the-][final-][-][countdown]"));
    CU_ASSERT(string_splits("-", "MergedWithNext", false, text, "[the][-final][-][-countdown]"));
    CU_ASSERT(string_splits("-", "Contiguous", false, text, "[the][-][final][--][countdown]"));
    CU_ASSERT(regex_splits("-", "Contiguous", false, "--a-", "[--][a][-]"));
    CU_ASSERT(regex_splits("-", "MergedWithNext", false, "-a--", "[-a][-][-]"));
    CU_ASSERT(regex_splits("-", "MergedWithPrevious", false, "-a--", "[-][a-][-]"));
}

static void invert_takes_the_pattern_for_the_words(void) {
    CU_ASSERT(regex_splits("[a-z]+", "Removed", true, "ab 12 cd", "[ab][cd]"));
    CU_ASSERT(regex_splits("[a-z]+", "Isolated", true, "ab12cd", "[ab][12][cd]"));
    CU_ASSERT(string_splits(" ", "Removed", true, "a b", "[ ]"));
}

static void empty_matches_separate_characters(void) {
    CU_ASSERT(regex_splits("", "Isolated", false, "a\xc3\xa9z", "[a][\xc3\xa9][z]"));
    CU_ASSERT(string_splits("", "Isolated", false, "ab", "[a][b]"));
    CU_ASSERT(regex_splits("x*", "Isolated", false, "axxb", "[a][xx][b]"));
}

static void bytelevel_writes_bytes_as_letters(void) {
    CU_ASSERT(splits("{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "Hi you\n\xc3\xa9",
                     "[Hi][\xc4\xa0you][\xc4\x8a][\xc3\x83\xc2\xa9]"));
    CU_ASSERT(splits("{\"type\":\"ByteLevel\"}", "Hi", "[\xc4\xa0Hi]"));
    CU_ASSERT(splits("{\"type\":\"ByteLevel\"}", " Hi", "[\xc4\xa0Hi]"));
    CU_ASSERT(splits("{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
                     "a b'll",
                     "[a\xc4\xa0"
                     "b'll]"));
}

#define MARK "\xe2\x96\x81"

static void metaspace_marks_the_beginning_of_words(void) {
    CU_ASSERT(splits("{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\"}", "Hey you",
                     "[" MARK "Hey][" MARK "you]"));
    CU_ASSERT(splits("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}",
                     "Hey  you", "[Hey][_][_you]"));
    CU_ASSERT(splits("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}",
                     "a b", "[a][_b]"));
    CU_ASSERT(splits("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"split\":false}", "a b_c",
                     "[_a_b_c]"));
    CU_ASSERT(splits("{\"type\":\"Metaspace\",\"replacement\":\"_\"}", " a", "[_a]"));
}

static void metaspace_first_marks_only_the_beginning_of_the_text(void) {
    sp_err err = {0};
    sp_pretok *p =
        load("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\","
             "\"split\":false}",
             &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    sp_piece given[] = {{"a b", 3, -1, true}, {"<s>", 3, 7, false}, {"c d", 3, -1, false}};
    sp_buf out;
    sp_buf_init(&out, 0);
    split(p, given, 3, &out);
    CU_ASSERT_STRING_EQUAL(out.ptr, "[_a_b]<7>[c_d]");
    sp_buf_fini(&out);
    sp_pretok_free(p);
}

static void classes_of_characters_split(void) {
    CU_ASSERT(splits("{\"type\":\"Digits\",\"individual_digits\":true}", "a12\xc2\xbd",
                     "[a][1][2][\xc2\xbd]"));
    CU_ASSERT(splits("{\"type\":\"Digits\"}", "a12b", "[a][12][b]"));
    CU_ASSERT(splits("{\"type\":\"Punctuation\"}", "a,b!!", "[a][,][b][!][!]"));
    CU_ASSERT(splits("{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "a$\xe2\x80\xa6!",
                     "[a][$\xe2\x80\xa6!]"));
    CU_ASSERT(splits("{\"type\":\"WhitespaceSplit\"}", " a\xc2\xa0\t!b ", "[a][!b]"));
    CU_ASSERT(
        splits("{\"type\":\"Whitespace\"}", " it's _x\xc3\xa9 ++", "[it]['][s][_x\xc3\xa9][++]"));
}

static void a_sequence_runs_in_order_and_spares_added_tokens(void) {
    sp_err err = {0};
    sp_pretok *p = load("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},"
                        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"}]},"
                        "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}]}",
                        &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    sp_piece given[] = {{"a1 b", 4, -1, true}, {"x 1", 3, 5, false}, {"", 0, -1, false}};
    sp_buf out;
    sp_buf_init(&out, 0);
    split(p, given, 3, &out);
    CU_ASSERT_STRING_EQUAL(out.ptr, "[\xc4\xa0"
                                    "a][\xc4\xa0"
                                    "1][\xc4\xa0"
                                    "b]<5>");
    sp_buf_fini(&out);
    sp_pretok_free(p);
}

static void no_pre_tokenizer_leaves_the_text_whole(void) {
    CU_ASSERT(splits("null", "a b", "[a b]"));
    CU_ASSERT(splits("{\"type\":\"Sequence\",\"pretokenizers\":[]}", "a b", "[a b]"));
}

static void refused_parts_are_named(void) {
    static const char *const cases[][2] = {
        {"{\"type\":\"BertPreTokenizer\"}", "type 'BertPreTokenizer' is not supported"},
        {"{\"type\":\"UnicodeScripts\"}", "'UnicodeScripts'"},
        {"{}", "type '' is not supported"},
        {"7", "want an object, got an integer"},
        {"{\"type\":\"Sequence\"}", "has no 'pretokenizers'"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[null]}", "want an object, got null"},
        {"{\"type\":\"Split\",\"behavior\":\"Isolated\"}", "Split: pattern"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"}}", "behavior: is missing"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Never\"}", "'Never'"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a\"},\"behavior\":\"Removed\"}", "no ']'"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{Klingon}\"},\"behavior\":\"Removed\"}",
         "unknown property"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", "want one character, got 'ab'"},
        {"{\"type\":\"Metaspace\"}", "want one character"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"x\"}", "'x'"},
        {"{\"type\":\"Digits\",\"individual_digits\":1}", "want a boolean"},
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_err err = {0};
        sp_pretok *p = load(cases[i][0], &err);
        bool good = !p && strstr(err.text, cases[i][1]) && strstr(err.text, "pre_tokenizer");
        if (!good) fprintf(stderr, "    %s gives '%s'\n", cases[i][0], err.text);
        CU_ASSERT(good);
        sp_pretok_free(p);
    }
}

static void more_steps_than_allowed_are_refused(void) {
    sp_buf json;
    sp_buf_init(&json, 0);
    sp_buf_puts(&json, "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"}");
    for (int i = 0; i < SP_PRETOK_STEPS_MAX; i++) sp_buf_puts(&json, ",{\"type\":\"Digits\"}");
    sp_buf_puts(&json, "]}");
    sp_err err = {0};
    CU_ASSERT_PTR_NULL(load(json.ptr, &err));
    CU_ASSERT_EQUAL(err.code, SP_E_TOOLONG);
    sp_buf_fini(&json);
}

/* ---- regexes ---- */

static sp_status count_matches(const char *pattern, sp_slice text, size_t *n, sp_err *err) {
    sp_regex *r = NULL;
    SP_TRY(sp_regex_compile(&r, sp_slice_of(pattern), err));
    sp_regex_scratch s = {0};
    sp_regex_walk walk = sp_regex_walk_begin();
    size_t start, end;
    bool found = true;
    sp_status st = SP_OK;
    for (*n = 0; found && st == SP_OK; *n += found)
        st = sp_regex_next(r, &s, text, &walk, &start, &end, &found, err);
    sp_regex_scratch_fini(&s);
    sp_regex_free(r);
    return st;
}

static void a_regex_that_explodes_gives_up(void) {
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    sp_err err = {0};
    size_t n = 0;
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(count_matches("^(a+)+$", (sp_slice){text, 64}, &n, &err), SP_E_TOOLONG);
    CU_ASSERT(sp_now_ns() - start < 20000000000);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "gave up at byte 0 of 64"));
}

static void long_runs_cost_one_pass(void) {
    const size_t n = 1 << 20;
    char *text = malloc(n);
    static const char *const fills[] = {" ", "a", "\n", " \n", "!", "1", "\xe4\xb8\xad"};
    for (size_t f = 0; f < SP_LEN(fills); f++) {
        size_t unit = strlen(fills[f]), len = n / unit * unit;
        for (size_t i = 0; i < len; i++) text[i] = fills[f][i % unit];
        size_t matches = 0;
        sp_err err = {0};
        int64_t start = sp_now_ns();
        CU_ASSERT_EQUAL(count_matches(LLAMA3, (sp_slice){text, len}, &matches, &err), SP_OK);
        CU_ASSERT(matches > 0);
        CU_ASSERT(sp_now_ns() - start < 10000000000);
    }
    free(text);
}

static void a_group_repeated_a_million_times_matches_or_says_so(void) {
    const size_t n = 1 << 20;
    char *text = malloc(n);
    for (size_t i = 0; i < n; i++) text[i] = "ab"[i % 2];
    sp_err err = {0};
    size_t matches = 0;
    sp_status st = count_matches("(?:a|b)+", (sp_slice){text, n}, &matches, &err);
    CU_ASSERT((st == SP_OK && matches == 1) || st == SP_E_TOOLONG);
    free(text);
}

SP_TEST_MAIN("runtime/text/pretok", SP_TEST(patterns_of_real_tokenizers_split_as_they_should),
             SP_TEST(the_five_behaviors_differ_as_named),
             SP_TEST(invert_takes_the_pattern_for_the_words),
             SP_TEST(empty_matches_separate_characters), SP_TEST(bytelevel_writes_bytes_as_letters),
             SP_TEST(metaspace_marks_the_beginning_of_words),
             SP_TEST(metaspace_first_marks_only_the_beginning_of_the_text),
             SP_TEST(classes_of_characters_split),
             SP_TEST(a_sequence_runs_in_order_and_spares_added_tokens),
             SP_TEST(no_pre_tokenizer_leaves_the_text_whole), SP_TEST(refused_parts_are_named),
             SP_TEST(more_steps_than_allowed_are_refused), SP_TEST(a_regex_that_explodes_gives_up),
             SP_TEST(long_runs_cost_one_pass),
             SP_TEST(a_group_repeated_a_million_times_matches_or_says_so))
