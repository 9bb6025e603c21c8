/* Covers runtime/text/decoder.c: each type, chains, and streams that give the same as a whole. */
#include "runtime/text/decoder.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

static sp_decoder *load(const char *json, sp_err *err) {
    sp_json *doc = NULL;
    sp_decoder *d = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 0, err), SP_OK);
    if (sp_decoder_load(&d, sp_json_root(doc), err) != SP_OK) d = NULL;
    sp_json_free(doc);
    return d;
}

/* `tokens` are separated by '|'. */
static void decode(const sp_decoder *d, const char *tokens, bool raw, sp_buf *out) {
    sp_decode_stream *s = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_decode_open(&s, d, raw), SP_OK);
    sp_buf_puts(out, "");
    while (*tokens) {
        size_t n = strcspn(tokens, "|");
        sp_decode_token(s, (sp_slice){tokens, n}, out);
        tokens += n + (tokens[n] == '|');
    }
    sp_decode_end(s, out);
    sp_decode_close(s);
}

static bool gives(const char *json, const char *tokens, const char *want) {
    sp_err err = {0};
    sp_decoder *d = load(json, &err);
    if (!d) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(d);
    sp_buf out;
    sp_buf_init(&out, 0);
    decode(d, tokens, false, &out);
    bool same = strcmp(out.ptr, want) == 0;
    if (!same) fprintf(stderr, "    %s\n    want '%s'\n    got  '%s'\n", json, want, out.ptr);
    sp_buf_fini(&out);
    sp_decoder_free(d);
    return same;
}

#define MARK "\xe2\x96\x81"
#define R "\xef\xbf\xbd"
#define SEQUENCE(list) "{\"type\":\"Sequence\",\"decoders\":[" list "]}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK "\"},\"content\":\" \"}"
#define FALLBACK "{\"type\":\"ByteFallback\"}"
#define FUSE "{\"type\":\"Fuse\"}"
#define STRIP "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"
#define LLAMA SEQUENCE(REPLACE "," FALLBACK "," FUSE "," STRIP)

static void without_a_decoder_tokens_are_joined_by_spaces(void) {
    CU_ASSERT(gives("null", "a|b|c", "a b c"));
    CU_ASSERT(gives("null", "a", "a"));
    CU_ASSERT(gives(SEQUENCE(""), "a|b", "ab"));
}

static void bytelevel_reads_letters_as_bytes(void) {
    static const char json[] = "{\"type\":\"ByteLevel\"}";
    CU_ASSERT(gives(json, "Hi|\xc4\xa0you|\xc4\x8a", "Hi you\n"));
    CU_ASSERT(
        gives(json, "\xc3\xa2\xc4\xab|\xc4\xb3", "\xe2\x89\x91")); /* a character in two tokens */
    CU_ASSERT(gives(json, "\xc3\xa2\xc4\xab|x", R "x"));
    CU_ASSERT(
        gives(json, "a b|\xe4\xb8\xad", "a b\xe4\xb8\xad")); /* not byte letters: as they are */
    CU_ASSERT(gives(json, "x|\xc3\xa2", "x" R));
}

static void byte_fallback_reads_runs_of_bytes(void) {
    CU_ASSERT(gives(FALLBACK, "<0xE4>|<0xB8>|<0xAD>|a",
                    "\xe4\xb8\xad"
                    "a"));
    CU_ASSERT(gives(FALLBACK, "<0xE4>|<0xb8>|a", R R "a"));
    CU_ASSERT(gives(FALLBACK, "<0x61>|<0xFF>|<0x62>|c", R R R "c")); /* all of a bad run */
    CU_ASSERT(gives(FALLBACK, "<0x61>|<0xE4>", R R));
    CU_ASSERT(gives(FALLBACK, "<0x6>|<0xZZ>|<0x61>>", "<0x6><0xZZ><0x61>>"));
}

static void llama_replaces_falls_back_fuses_and_strips(void) {
    CU_ASSERT(gives(LLAMA, MARK "Hello|" MARK "world", "Hello world"));
    CU_ASSERT(gives(LLAMA, MARK "|" MARK "a", " a"));
    CU_ASSERT(gives(LLAMA, "<s>|" MARK "a", "<s> a"));
    CU_ASSERT(gives(LLAMA, "<0x20>|" MARK "a", " a"));
    CU_ASSERT(gives(LLAMA, "a" MARK MARK "b", "a  b"));
    CU_ASSERT(gives(LLAMA, "", ""));
}

static void strip_cuts_each_token_or_the_whole(void) {
    CU_ASSERT(gives("{\"type\":\"Strip\",\"content\":\"H\",\"start\":1,\"stop\":0}",
                    "Hey| friend|HHH", "ey friendHH"));
    CU_ASSERT(
        gives("{\"type\":\"Strip\",\"content\":\"y\",\"start\":0,\"stop\":1}", "Hey|yy|y", "Hey"));
    CU_ASSERT(gives(SEQUENCE(FUSE ",{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":2}"),
                    " |  |a  | b | | ", " a   b "));
    CU_ASSERT(gives("{\"type\":\"Strip\",\"content\":\"\xc3\xa9\",\"start\":1,\"stop\":1}",
                    "\xc3\xa9x\xc3\xa9", "x"));
}

static void metaspace_drops_the_first_mark(void) {
    static const char always[] = "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\"}";
    static const char never[] =
        "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"prepend_scheme\":\"never\"}";
    static const char old[] =
        "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"add_prefix_space\":false}";
    CU_ASSERT(gives(always, MARK "a|" MARK "b", "a b"));
    CU_ASSERT(gives(always, MARK "a" MARK "b|c", "abc"));
    CU_ASSERT(gives(never, MARK "a|" MARK "b", " a b"));
    CU_ASSERT(gives(old, MARK "a|" MARK "b", " a b"));
}

static void bpe_decoder_turns_word_ends_into_spaces(void) {
    CU_ASSERT(gives("{\"type\":\"BPEDecoder\"}", "ab</w>|c|d</w>", "ab cd"));
    CU_ASSERT(gives("{\"type\":\"BPEDecoder\",\"suffix\":\"_\"}", "a_|b_c_|d", "a b c d"));
    CU_ASSERT(gives("{\"type\":\"BPEDecoder\"}", "ab</w>", "ab"));
}

static void replace_sees_one_token_at_a_time_until_they_are_fused(void) {
    CU_ASSERT(gives("{\"type\":\"Replace\",\"pattern\":{\"String\":\"ab\"},\"content\":\"X\"}",
                    "ab|a|b|aab", "XabaX"));
    CU_ASSERT(gives(SEQUENCE(FUSE ",{\"type\":\"Replace\",\"pattern\":{\"String\":\"ab\"},"
                                  "\"content\":\"X\"}"),
                    "ab|a|b|aab|a", "XXaXa"));
    CU_ASSERT(gives(SEQUENCE(FUSE ",{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a+\"},"
                                  "\"content\":\"\"}"),
                    "ba|a|b|a", "bb"));
    CU_ASSERT(gives("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"^ \"},\"content\":\"\"}",
                    " a| b", "ab"));
}

static void refused_parts_are_named(void) {
    static const char *const cases[][2] = {
        {"{\"type\":\"WordPiece\"}", "type 'WordPiece' is not supported"},
        {"{\"type\":\"CTC\"}", "'CTC'"},
        {"{}", "type ''"},
        {"[]", "want an object"},
        {"{\"type\":\"Sequence\"}", "has no 'decoders'"},
        {"{\"type\":\"Replace\",\"content\":\"\"}", "Replace: pattern"},
        {"{\"type\":\"Strip\",\"content\":\"ab\"}", "Strip: content: want one character, got 'ab'"},
        {"{\"type\":\"Strip\",\"content\":\" \",\"start\":-1}", "start: want an integer"},
        {"{\"type\":\"Metaspace\"}", "replacement"},
        {"{\"type\":\"BPEDecoder\",\"suffix\":\"\"}", "suffix: is empty"},
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_err err = {0};
        sp_decoder *d = load(cases[i][0], &err);
        bool good = !d && strstr(err.text, cases[i][1]) && strstr(err.text, "decoder: ");
        if (!good) fprintf(stderr, "    %s gives '%s'\n", cases[i][0], err.text);
        CU_ASSERT(good);
        sp_decoder_free(d);
    }
}

/* What a stream has given after each token must be a beginning of the whole, and valid UTF-8. */
static void a_stream_gives_only_what_stays(void) {
    static const char *const chains[] = {
        LLAMA,
        "{\"type\":\"ByteLevel\"}",
        "{\"type\":\"BPEDecoder\",\"suffix\":\"a\"}",
        FALLBACK,
        SEQUENCE(FALLBACK "," FUSE
                          ",{\"type\":\"Strip\",\"content\":\"a\",\"start\":2,\"stop\":3}"),
        SEQUENCE("{\"type\":\"BPEDecoder\",\"suffix\":\"a\"}," FUSE ",{\"type\":\"Replace\","
                 "\"pattern\":{\"String\":\" b\"},\"content\":\"--\"}"),
        "{\"type\":\"Metaspace\",\"replacement\":\"a\"}",
        "null"};
    static const char *const tokens[] = {"a",        "b",      MARK "a", "<0xE2>",   "<0x82>",
                                         "<0xAC>",   "<0x61>", "aa",     "\xc3\xa2", "\xc4\xa4",
                                         "\xc2\xac", " ",      "<0xFF>", "ba",       ""};
    unsigned x = 3;
    for (size_t c = 0; c < SP_LEN(chains); c++) {
        sp_err err = {0};
        sp_decoder *d = load(chains[c], &err);
        CU_ASSERT_PTR_NOT_NULL_FATAL(d);
        for (int round = 0; round < 300; round++) {
            sp_decode_stream *s = NULL;
            CU_ASSERT_EQUAL_FATAL(sp_decode_open(&s, d, false), SP_OK);
            sp_buf whole;
            sp_buf_init(&whole, 0);
            size_t lens[12];
            for (int i = 0; i < 12; i++) {
                x = x * 1103515245u + 12345u;
                sp_decode_token(s, sp_slice_of(tokens[(x >> 12) % SP_LEN(tokens)]), &whole);
                lens[i] = whole.len;
                CU_ASSERT(sp_utf8_valid(sp_buf_slice(&whole)));
            }
            sp_decode_end(s, &whole);
            CU_ASSERT(sp_utf8_valid(sp_buf_slice(&whole)) && whole.len >= lens[11]);
            sp_decode_close(s);
            sp_buf_fini(&whole);
        }
        sp_decoder_free(d);
    }
}

static void a_raw_stream_gives_the_bytes_of_one_token(void) {
    static const struct {
        const char *json, *token;
        sp_slice want;
    } cases[] = {{LLAMA, MARK "the", {" the", 4}},
                 {LLAMA, "<0xE2>", {"\xe2", 1}},
                 {"{\"type\":\"ByteLevel\"}", "\xc3\xa2", {"\xe2", 1}},
                 {"{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\"}", MARK "a", {" a", 2}},
                 {"{\"type\":\"BPEDecoder\"}", "a</w>", {"a ", 2}},
                 {"null", "a", {"a", 1}}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_err err = {0};
        sp_decoder *d = load(cases[i].json, &err);
        CU_ASSERT_PTR_NOT_NULL_FATAL(d);
        sp_buf out;
        sp_buf_init(&out, 0);
        decode(d, cases[i].token, true, &out);
        CU_ASSERT(sp_slice_eq(sp_buf_slice(&out), cases[i].want));
        sp_buf_fini(&out);
        sp_decoder_free(d);
    }
}

SP_TEST_MAIN("runtime/text/decoder", SP_TEST(without_a_decoder_tokens_are_joined_by_spaces),
             SP_TEST(bytelevel_reads_letters_as_bytes), SP_TEST(byte_fallback_reads_runs_of_bytes),
             SP_TEST(llama_replaces_falls_back_fuses_and_strips),
             SP_TEST(strip_cuts_each_token_or_the_whole), SP_TEST(metaspace_drops_the_first_mark),
             SP_TEST(bpe_decoder_turns_word_ends_into_spaces),
             SP_TEST(replace_sees_one_token_at_a_time_until_they_are_fused),
             SP_TEST(refused_parts_are_named), SP_TEST(a_stream_gives_only_what_stays),
             SP_TEST(a_raw_stream_gives_the_bytes_of_one_token))
