/* Covers runtime/text/tokenizer.c and tokenizer_load.c: third-party vectors both ways, flags and
 * markers, what surrounds a text, the questions a tokenizer answers, and refused files. */
#include "runtime/text/tokenizer.h"

#include "runtime/base/thread.h"
#include "runtime/text/unicode.h"
#include "tests/runtime/text/tokenizer_help.h"

/* ---- vectors ---- */

/* One line of a .out file for each text of the .inp file. */
static void check_llama_cpp(const sp_tokenizer *t, const char *name) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[128];
    size_t n_inp;
    snprintf(path, sizeof path, "tokenizers/llama.cpp/ggml-vocab-%s.gguf.inp", name);
    char *inp = help_fixture(path, &n_inp);
    snprintf(path, sizeof path, "tokenizers/llama.cpp/ggml-vocab-%s.gguf.out", name);
    char *out = help_fixture(path, NULL);
    CU_ASSERT_FATAL(inp && out);
    sp_slice rest = {inp, n_inp};
    char *line = out;
    int n = 0, good = 0;
    while (rest.len) {
        ptrdiff_t at = sp_slice_find(rest, sp_slice_of(separator), 0);
        if (at < 0) break;
        sp_ids want = {0};
        char *end = line + strcspn(line, "\n");
        while (line < end) {
            CU_ASSERT_EQUAL(sp_ids_push(&want, (int32_t)strtol(line, &line, 10)), SP_OK);
            line += strspn(line, " ");
        }
        line = end + (*end == '\n');
        good += help_encodes(t, (sp_slice){rest.ptr, (size_t)at}, 0, want.ptr, want.len);
        sp_ids_fini(&want);
        n++;
        rest.ptr += (size_t)at + sizeof separator - 1;
        rest.len -= (size_t)at + sizeof separator - 1;
    }
    CU_ASSERT(n >= 46);
    CU_ASSERT_EQUAL(good, n);
    free(inp);
    free(out);
}

/* `nfc`: the tokenizer composes characters, and what comes back is composed. */
static bool comes_back(const sp_tokenizer *t, const sp_json_node *ids, sp_slice text, bool nfc) {
    sp_buf composed;
    sp_err err = {0};
    sp_buf_init(&composed, 0);
    if (nfc) CU_ASSERT_EQUAL(sp_unicode_normalize(SP_UNICODE_NFC, text, &composed, &err), SP_OK);
    bool same = help_decodes_json(t, ids, false, nfc ? sp_buf_slice(&composed) : text);
    sp_buf_fini(&composed);
    return same;
}

static void check_dev(const sp_tokenizer *t, const char *name, bool nfc) {
    sp_json *doc = help_json("tokenizers/vectors_dev.json");
    CU_ASSERT_PTR_NOT_NULL_FATAL(doc);
    const sp_json_node *root = sp_json_root(doc);
    const sp_json_node *of = sp_json_find(sp_json_find(root, "tokenizers"), name);
    const sp_json_node *text = sp_json_first(sp_json_find(root, "texts"));
    const sp_json_node *ids = sp_json_first(sp_json_find(of, "ids"));
    int n = 0, good = 0, back = 0;
    for (; text && ids; text = sp_json_next(text), ids = sp_json_next(ids), n++) {
        good += help_encodes_json(t, sp_json_string(text), 0, ids);
        back += comes_back(t, ids, sp_json_string(text), nfc);
    }
    CU_ASSERT(n >= 180);
    CU_ASSERT_EQUAL(good, n);
    CU_ASSERT_EQUAL(back, n);
    sp_json_free(doc);
}

/* {"text", "token_ids", "decoded_text"}; the ids hold what the post-processor adds. */
static void check_swift_file(const sp_tokenizer *t, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "tokenizers/swift-transformers/%s.json", name);
    sp_json *doc = help_json(path);
    CU_ASSERT_PTR_NOT_NULL_FATAL(doc);
    const sp_json_node *r = sp_json_root(doc), *ids = sp_json_find(r, "token_ids");
    CU_ASSERT(help_encodes_json(t, sp_json_string(sp_json_find(r, "text")), SP_ENCODE_BOS, ids));
    CU_ASSERT(help_decodes_json(t, ids, false, sp_json_string(sp_json_find(r, "decoded_text"))));
    sp_json_free(doc);
}

/* Wrong as a vector of the tokenizer: its decoded texts were cleaned up by a wrapper afterwards
 * (clean_up_tokenization_spaces takes the space out of " !"), which the decoder of the file does
 * not do. There the text itself must come back. */
static const char *const cleaned_up = "A\n'll !!to?'d''d of, can't.";

static void check_swift_list(const sp_tokenizer *t, const char *model) {
    sp_json *doc = help_json("tokenizers/swift-transformers/tokenizer_tests.json");
    CU_ASSERT_PTR_NOT_NULL_FATAL(doc);
    const sp_json_node *v = sp_json_first(sp_json_find(sp_json_root(doc), model));
    int n = 0, good = 0, with = 0, without = 0;
    for (; v; v = sp_json_next(v), n++) {
        const sp_json_node *ids = sp_json_find(sp_json_find(v, "encoded"), "input_ids");
        sp_slice input = sp_json_string(sp_json_find(v, "input"));
        sp_slice with_special = sp_json_string(sp_json_find(v, "decoded_with_special"));
        sp_slice plain = sp_json_string(sp_json_find(v, "decoded_without_special"));
        bool wrong = sp_slice_is(input, cleaned_up);
        good += help_encodes_json(t, input, SP_ENCODE_BOS | SP_ENCODE_SPECIAL, ids);
        with += wrong || help_decodes_json(t, ids, false, with_special);
        without += help_decodes_json(t, ids, true, wrong ? input : plain);
    }
    CU_ASSERT(n >= 18);
    CU_ASSERT_EQUAL(good, n);
    CU_ASSERT_EQUAL(with, n);
    CU_ASSERT_EQUAL(without, n);
    sp_json_free(doc);
}

static void gpt2_gives_the_ids_of_all_vectors(void) {
    sp_tokenizer *t = help_load_folder("gpt2");
    if (!t) SP_SKIP("no fixtures");
    check_dev(t, "gpt2", false);
    check_llama_cpp(t, "gpt-2");
    check_swift_file(t, "gpt2_encoded_tokens");
    check_swift_list(t, "distilgpt2");
    sp_tokenizer_free(t);
}

static void llama2_gives_the_ids_of_all_vectors(void) {
    sp_tokenizer *t = help_load_folder("llama2");
    if (!t) SP_SKIP("no fixtures");
    check_dev(t, "llama2-spm", false);
    check_llama_cpp(t, "llama-spm");
    check_llama_cpp(t, "phi-3"); /* the same vocabulary */
    check_swift_file(t, "llama_encoded");
    check_swift_list(t, "coreml-projects/Llama-2-7b-chat-coreml");
    CU_ASSERT_EQUAL(sp_tokenizer_bos(t), 1);
    CU_ASSERT_EQUAL(sp_tokenizer_eos(t), 2);
    sp_tokenizer_free(t);
}

static void llama3_gives_the_ids_of_all_vectors(void) {
    sp_tokenizer *t = help_assemble("llama3", "llama3");
    if (!t) SP_SKIP("no fixtures");
    check_dev(t, "llama3", false);
    check_llama_cpp(t, "llama-bpe");
    check_swift_file(t, "llama_3.2_encoded");
    check_swift_list(t, "pcuenq/Llama-3.2-1B-Instruct-tokenizer");
    CU_ASSERT_EQUAL(sp_tokenizer_size(t), 128256);
    CU_ASSERT_EQUAL(sp_tokenizer_n_special(t), 256);
    sp_tokenizer_free(t);
}

static void qwen_gives_the_ids_of_all_vectors(void) {
    sp_tokenizer *t = help_assemble("qwen3", "qwen2");
    if (!t) SP_SKIP("no fixtures");
    check_dev(t, "qwen2", true);
    check_llama_cpp(t, "qwen2");
    static const char *const files[] = {"tokenizers/parity/qwen3-30b/short.json",
                                        "tokenizers/parity/qwen3-30b/special_token_heavy.json"};
    for (size_t i = 0; i < SP_LEN(files); i++) {
        sp_json *doc = help_json(files[i]);
        CU_ASSERT_PTR_NOT_NULL_FATAL(doc);
        const sp_json_node *r = sp_json_root(doc), *ids = sp_json_find(r, "expected_token_ids");
        sp_slice text = sp_json_string(sp_json_find(r, "prompt_text"));
        CU_ASSERT(help_encodes_json(t, text, SP_ENCODE_SPECIAL, ids));
        CU_ASSERT(help_decodes_json(t, ids, false, text));
        sp_json_free(doc);
    }
    sp_tokenizer_free(t);
}

static void sentencepiece_models_give_the_ids_of_their_vectors(void) {
    static const char *const models[][2] = {
        {"models/llama2.c/tokenizer.model", "llama2-spm"},
        {"tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3", "mistral-v3-spm"},
        {"models/stories260K/tok512.model", "tok512-spm"}};
    for (size_t i = 0; i < SP_LEN(models); i++) {
        sp_tokenizer *t = help_load_spm(models[i][0]);
        if (!t) SP_SKIP("no fixtures");
        check_dev(t, models[i][1], false);
        sp_tokenizer_free(t);
    }
}

static void podling_gives_the_ids_of_its_golden_prompts(void) {
    char path[512];
    const char *dir = help_podling(path, sizeof path);
    size_t len;
    char *text = help_fixture("../podling/golden/golden.json", &len);
    if (!dir || !text) SP_SKIP("no golden prompts of the demo model");
    sp_err err = {0};
    sp_tokenizer *t = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_tokenizer_load(&t, dir, &err), SP_OK);
    sp_json *doc = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, (sp_slice){text, len}, 0, &err), SP_OK);
    int n = 0;
    const sp_json_node *v = sp_json_first(sp_json_find(sp_json_root(doc), "cases"));
    for (; v; v = sp_json_next(v), n++) {
        sp_slice prompt = sp_json_string(sp_json_find(v, "prompt"));
        CU_ASSERT(help_encodes_json(t, prompt, SP_ENCODE_SPECIAL, sp_json_find(v, "prompt_ids")));
        CU_ASSERT(help_decodes_json(t, sp_json_find(v, "prompt_ids"), false, prompt));
        CU_ASSERT(help_decodes_json(t, sp_json_find(v, "ids"), true,
                                    sp_json_string(sp_json_find(v, "text"))));
    }
    CU_ASSERT(n >= 20);
    CU_ASSERT_EQUAL(sp_tokenizer_bos(t), 0);
    sp_json_free(doc);
    free(text);
    sp_tokenizer_free(t);
}

static void a_byte_tokenizer_gives_every_text_back(void) {
    size_t len;
    char *json = help_fixture("tokenizers/tiny/tiny_tokenizer.json", &len);
    if (!json) SP_SKIP("no fixtures");
    sp_err err = {0};
    sp_tokenizer *t = help_load_text((sp_slice){json, len}, &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    for (unsigned seed = 1; seed < 200; seed++) {
        sp_buf text;
        sp_buf_init(&text, 0);
        for (unsigned i = 0, x = seed; i < 20; i++) {
            x = x * 1103515245u + 12345u;
            uint32_t cp = (x >> 8) % (seed % 2 ? 0x3000 : 0x1ffff);
            char utf8[4];
            if (cp < 0xd800 || cp > 0xdfff)
                sp_buf_put(&text, utf8, (size_t)sp_utf8_encode(cp, utf8));
        }
        sp_ids ids = {0};
        CU_ASSERT_EQUAL(sp_tokenizer_encode(t, sp_buf_slice(&text), 0, (sp_slice){0}, &ids, &err),
                        SP_OK);
        CU_ASSERT_EQUAL(ids.len, text.len);
        CU_ASSERT(help_decodes(t, ids.ptr, ids.len, false, sp_buf_slice(&text)));
        sp_ids_fini(&ids);
        sp_buf_fini(&text);
    }
    sp_tokenizer_free(t);
    free(json);
}

/* ---- flags, markers, special tokens ---- */

/* Letters and a few merges; <s> </s> [x] special, <t> an added token that is not. */
#define SMALL(parts) \
    "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true}," \
    "{\"id\":1,\"content\":\"</s>\",\"special\":true,\"normalized\":false}," \
    "{\"id\":20,\"content\":\"<t>\",\"special\":false}," \
    "{\"id\":21,\"content\":\"[x]\",\"special\":true,\"normalized\":true}]," parts \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"</s>\":1,\"a\":2,\"b\":3,\"ab\":4," \
    "\"<\":5,\"s\":6,\">\":7,\"/\":8,\"t\":9,\"[\":10,\"x\":11,\"]\":12,\" \":13,\"abab\":14}," \
    "\"merges\":[\"a b\",[\"ab\",\"ab\"]]}}"

#define EXPECT(t, text, flags, ...) \
    do { \
        const int32_t want_[] = {__VA_ARGS__}; \
        CU_ASSERT(help_encodes((t), sp_slice_of(text), (flags), want_, SP_LEN(want_))); \
    } while (0)

static void special_tokens_are_text_unless_asked_for(void) {
    sp_tokenizer *t = help_load_ok(SMALL(""));
    EXPECT(t, "a<s>b", 0, 2, 5, 6, 7, 3);
    EXPECT(t, "a<s>b", SP_ENCODE_SPECIAL, 2, 0, 3);
    EXPECT(t, "a[x]b", 0, 2, 10, 11, 12, 3);
    EXPECT(t, "a[x]b", SP_ENCODE_SPECIAL, 2, 21, 3);
    sp_tokenizer_free(t);
}

static void other_added_tokens_are_always_found(void) {
    sp_tokenizer *t = help_load_ok(SMALL(""));
    EXPECT(t, "ab<t>abab", 0, 4, 20, 14);
    EXPECT(t, "ab<t>abab", SP_ENCODE_SPECIAL, 4, 20, 14);
    sp_tokenizer_free(t);
}

static bool encodes_marked(const sp_tokenizer *t, const char *text, const char *marker,
                           const int32_t *want, size_t n) {
    sp_ids got = {0};
    sp_err err = {0};
    sp_status st = sp_tokenizer_encode(t, sp_slice_of(text), SP_ENCODE_SPECIAL, sp_slice_of(marker),
                                       &got, &err);
    bool same = st == SP_OK && got.len == n && (n == 0 || memcmp(got.ptr, want, n * 4) == 0);
    if (!same) help_print_ids("got ", got.ptr, got.len);
    sp_ids_fini(&got);
    return same;
}

static void a_marker_breaks_a_special_token_and_vanishes(void) {
    static const char *const markers[] = {"\xef\xbf\xbe", "#", "\xff\xfe", "\xef\xb7\x90", "@@@@"};
    static const char *const normalizers[] = {
        "", "\"normalizer\":{\"type\":\"NFKC\"},",
        "\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":{\"type\":\"Digits\"},"};
    const int32_t want[] = {2, 5, 6, 7, 0, 10, 11, 12, 21, 4};
    for (size_t k = 0; k < SP_LEN(normalizers); k++) {
        char json[2048];
        snprintf(json, sizeof json, SMALL("%s"), normalizers[k]);
        sp_tokenizer *t = help_load_ok(json);
        for (size_t i = 0; i < SP_LEN(markers); i++) {
            char text[128];
            const char *m = markers[i];
            /* broken, whole, broken (a token that is looked for after the normalizer), whole */
            snprintf(text, sizeof text, "a<%ss><s>[%sx][x]a%sb%s", m, m, m, m);
            CU_ASSERT(encodes_marked(t, text, m, want, SP_LEN(want)));
        }
        sp_tokenizer_free(t);
    }
}

static void a_marker_alone_is_nothing(void) {
    sp_tokenizer *t =
        help_load_ok(SMALL("\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"x\"},"));
    const int32_t want[] = {0, 0};
    CU_ASSERT(encodes_marked(t, "<s>##<s>", "#", want, 2));
    CU_ASSERT(encodes_marked(t, "###", "#", NULL, 0));
    sp_tokenizer_free(t);
}

/* A normalizer that takes the marker out must not let a broken token through. */
static void a_marker_that_the_normalizer_removes_still_breaks(void) {
    sp_tokenizer *t = help_load_ok(SMALL("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{"
                                         "\"Regex\":\"[^\\\\x00-\\\\x7f]\"},\"content\":\"\"},"));
    const int32_t want[] = {2, 10, 11, 12};
    CU_ASSERT(encodes_marked(t, "a[#x]", "#", want, 4));
    sp_tokenizer_free(t);
}

static void what_is_around_a_text_is_added_on_request(void) {
    static const char *const processors[] = {
        ("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\",\"type_id\":"
         "0"
         "}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":\"E\",\"type_"
         "id\""
         ":0}}],\"special_tokens\":{\"B\":{\"id\":\"B\",\"ids\":[0],\"tokens\":[\"<s>\"]},\"E\":{"
         "\"id\":\"E\",\"ids\":[1,1],\"tokens\":[\"</s>\",\"</s>\"]}}}"),
        "{\"type\":\"BertProcessing\",\"cls\":[\"<s>\",0],\"sep\":[\"</s>\",1]}",
        ("{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\",\"trim_offsets\":true},{"
         "\"type\":\"RobertaProcessing\",\"cls\":[\"<s>\",0],\"sep\":[\"</s>\",1]}]}")};
    for (size_t i = 0; i < SP_LEN(processors); i++) {
        char json[4096];
        snprintf(json, sizeof json, SMALL("\"post_processor\":%s,"), processors[i]);
        sp_tokenizer *t = help_load_ok(json);
        EXPECT(t, "ab", 0, 4);
        if (i == 0)
            EXPECT(t, "ab", SP_ENCODE_BOS, 0, 4, 1, 1);
        else
            EXPECT(t, "ab", SP_ENCODE_BOS, 0, 4, 1);
        sp_tokenizer_free(t);
    }
}

static void ids_are_appended_and_a_failure_takes_them_back(void) {
    sp_tokenizer *t = help_load_ok(SMALL(""));
    sp_ids ids = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_ids_push(&ids, 99), SP_OK);
    CU_ASSERT_EQUAL(sp_tokenizer_encode(t, SP_SLICE("ab"), 0, (sp_slice){0}, &ids, &err), SP_OK);
    CU_ASSERT_EQUAL(ids.len, 2);
    for (int n = 1; n < 20; n++) {
        sp_mem_fail_at(n);
        sp_status st =
            sp_tokenizer_encode(t, SP_SLICE("ab<t>\xff ab"), 0, (sp_slice){0}, &ids, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) break;
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        CU_ASSERT_EQUAL(ids.len, 2);
        CU_ASSERT_EQUAL(ids.ptr[0], 99);
    }
    sp_ids_fini(&ids);
    sp_tokenizer_free(t);
}

static void bytes_that_are_not_utf8_are_read_as_u_fffd(void) {
    sp_tokenizer *t = help_load_folder("gpt2");
    if (!t) SP_SKIP("no fixtures");
    sp_ids a = {0}, b = {0};
    sp_err err = {0};
    sp_slice bad = SP_SLICE("x\xff\xe2\x82z\xed\xa0\x80");
    sp_slice good = SP_SLICE("x\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    CU_ASSERT_EQUAL(sp_tokenizer_encode(t, bad, 0, (sp_slice){0}, &a, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_tokenizer_encode(t, good, 0, (sp_slice){0}, &b, &err), SP_OK);
    CU_ASSERT(a.len == b.len && memcmp(a.ptr, b.ptr, a.len * 4) == 0);
    sp_ids_fini(&a);
    sp_ids_fini(&b);
    sp_tokenizer_free(t);
}

static void nul_bytes_are_text(void) {
    sp_tokenizer *t = help_load_ok("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\u0000\":0,\"a\":1,"
                                   "\"a\\u0000\":2},\"merges\":[[\"a\",\"\\u0000\"]]}}");
    const int32_t want[] = {0, 2, 1};
    CU_ASSERT(help_encodes(t, SP_SLICE("\0a\0a"), 0, want, 3));
    CU_ASSERT_EQUAL(sp_tokenizer_piece(t, 2).len, 2);
    sp_tokenizer_free(t);
}

/* ---- questions ---- */

static void pieces_and_ids_lead_to_one_another(void) {
    sp_tokenizer *t = help_load_ok(SMALL(""));
    CU_ASSERT_EQUAL(sp_tokenizer_size(t), 22);
    CU_ASSERT(sp_slice_is(sp_tokenizer_piece(t, 4), "ab"));
    CU_ASSERT(sp_slice_is(sp_tokenizer_piece(t, 20), "<t>"));
    CU_ASSERT_EQUAL(sp_tokenizer_piece(t, 17).len, 0); /* a hole */
    CU_ASSERT_EQUAL(sp_tokenizer_piece(t, -1).len, 0);
    CU_ASSERT_EQUAL(sp_tokenizer_piece(t, INT32_MAX).len, 0);
    CU_ASSERT_EQUAL(sp_tokenizer_find(t, SP_SLICE("abab")), 14);
    CU_ASSERT_EQUAL(sp_tokenizer_find(t, SP_SLICE("<t>")), 20);
    CU_ASSERT_EQUAL(sp_tokenizer_find(t, SP_SLICE("nowhere")), -1);
    CU_ASSERT(sp_tokenizer_is_special(t, 0) && sp_tokenizer_is_special(t, 21));
    CU_ASSERT(!sp_tokenizer_is_special(t, 20) && !sp_tokenizer_is_special(t, 1000));
    CU_ASSERT_EQUAL(sp_tokenizer_n_special(t), 3);
    CU_ASSERT(sp_slice_is(sp_tokenizer_special(t, 2), "[x]"));
    CU_ASSERT_EQUAL(sp_tokenizer_bos(t), -1);
    CU_ASSERT_PTR_NULL(sp_tokenizer_config(t));
    sp_tokenizer_free(t);
}

static void ids_without_a_token_are_passed_over(void) {
    sp_tokenizer *t = help_load_ok(SMALL("\"decoder\":{\"type\":\"Fuse\"},"));
    const int32_t ids[] = {-5, 2, 17, 3, INT32_MAX, 0, INT32_MIN, 20};
    CU_ASSERT(help_decodes(t, ids, SP_LEN(ids), false, SP_SLICE("ab<s><t>")));
    CU_ASSERT(help_decodes(t, ids, SP_LEN(ids), true, SP_SLICE("ab<t>")));
    CU_ASSERT(help_decodes(t, NULL, 0, false, SP_SLICE("")));
    sp_tokenizer_free(t);
}

static sp_tokenizer *load_with(const char *config, const char *map, sp_err *err) {
    help_dir d = help_dir_make();
    help_dir_write(&d, "tokenizer.json", sp_slice_of(SMALL("")));
    if (config) help_dir_write(&d, "tokenizer_config.json", sp_slice_of(config));
    if (map) help_dir_write(&d, "special_tokens_map.json", sp_slice_of(map));
    sp_tokenizer *t = NULL;
    if (sp_tokenizer_load(&t, d.path, err) != SP_OK) t = NULL;
    help_dir_remove(&d);
    return t;
}

static void named_tokens_come_from_the_config_then_from_the_map(void) {
    sp_err err = {0};
    sp_tokenizer *t =
        load_with("{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":null,"
                  "\"chat_template\":\"hi\"}",
                  "{\"eos_token\":\"</s>\",\"pad_token\":\"ab\",\"bos_token\":\"a\"}", &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    CU_ASSERT_EQUAL(sp_tokenizer_bos(t), 0);
    CU_ASSERT_EQUAL(sp_tokenizer_eos(t), 1);
    CU_ASSERT(sp_slice_is(sp_tokenizer_named(t, "bos_token"), "<s>"));
    CU_ASSERT(sp_slice_is(sp_tokenizer_named(t, "pad_token"), "ab"));
    CU_ASSERT_EQUAL(sp_tokenizer_named(t, "unk_token").len, 0);
    CU_ASSERT_EQUAL(sp_tokenizer_named(t, "no_token").len, 0);
    /* a token that is named becomes special though only the vocabulary lists it */
    CU_ASSERT(sp_tokenizer_is_special(t, 4));
    CU_ASSERT(
        sp_slice_is(sp_json_string(sp_json_find(sp_tokenizer_config(t), "chat_template")), "hi"));
    sp_tokenizer_free(t);
}

static void the_config_may_add_tokens(void) {
    sp_err err = {0};
    sp_tokenizer *t = load_with("{\"added_tokens_decoder\":{\"0\":{\"content\":\"<s>\",\"special\":"
                                "true},\"30\":{\"content\":\"<new>\",\"special\":true}}}",
                                NULL, &err);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    EXPECT(t, "a<new>b", SP_ENCODE_SPECIAL, 2, 30, 3);
    CU_ASSERT_EQUAL(sp_tokenizer_size(t), 31);
    sp_tokenizer_free(t);
    CU_ASSERT_PTR_NULL(
        load_with("{\"added_tokens_decoder\":{\"x\":{\"content\":\"q\"}}}", NULL, &err));
    CU_ASSERT_PTR_NULL(load_with("[1]", NULL, &err));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "tokenizer_config.json"));
    CU_ASSERT_PTR_NULL(load_with("{}", "{", &err));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "special_tokens_map.json"));
}

static bool token_is(const sp_tokenizer *t, int32_t id, sp_slice want) {
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_tokenizer_token_bytes(t, id, &out);
    bool same = sp_slice_eq(sp_buf_slice(&out), want);
    sp_buf_fini(&out);
    return same;
}

static void a_token_tells_its_own_bytes(void) {
    sp_tokenizer *g = help_load_folder("gpt2"), *l = help_load_folder("llama2");
    if (!g || !l) SP_SKIP("no fixtures");
    CU_ASSERT(token_is(g, 262, SP_SLICE(" the")));
    CU_ASSERT(token_is(g, 447, SP_SLICE("\xe2\x80"))); /* part of a character */
    CU_ASSERT(token_is(g, 50256, SP_SLICE("<|endoftext|>")));
    CU_ASSERT(token_is(g, 99999, SP_SLICE("")));
    CU_ASSERT(token_is(l, 278, SP_SLICE(" the"))); /* the space is not stripped */
    CU_ASSERT(token_is(l, 3 + 0xe2, SP_SLICE("\xe2")));
    CU_ASSERT(token_is(l, 1, SP_SLICE("<s>")));
    sp_tokenizer_free(g);
    sp_tokenizer_free(l);
}

/* ---- refused files ---- */

typedef struct refusal {
    const char *json;
    sp_status status;
    const char *words;
} refusal;

#define MODEL(parts) "{\"model\":{\"type\":\"BPE\"," parts "}}"
#define WITH(key, value) \
    "{\"" key "\":" value ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}"

static const refusal refusals[] = {
    {"", SP_E_FORMAT, "tokenizer.json"},
    {"{", SP_E_FORMAT, "tokenizer.json"},
    {"[]", SP_E_FORMAT, "want an object, got an array"},
    {"{}", SP_E_FORMAT, "model: is missing"},
    {"{\"version\":\"2.0\",\"model\":{}}", SP_E_UNSUPPORTED, "version '2.0'"},
    {"{\"model\":[]}", SP_E_FORMAT, "want an object, got an array"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", SP_E_UNSUPPORTED,
     "model type 'WordPiece' is not supported; supported: BPE"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", SP_E_UNSUPPORTED, "'Unigram'"},
    {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", SP_E_UNSUPPORTED, "'WordLevel'"},
    {"{\"model\":{\"vocab\":{\"a\":0}}}", SP_E_UNSUPPORTED, "without type"},
    {MODEL("\"merges\":[]"), SP_E_FORMAT, "vocab: is missing"},
    {MODEL("\"vocab\":[],\"merges\":[]"), SP_E_FORMAT, "vocab: want an object"},
    {MODEL("\"vocab\":{},\"merges\":[]"), SP_E_FORMAT, "vocab: is empty"},
    {MODEL("\"vocab\":{\"a\":0}"), SP_E_FORMAT, "merges: is missing"},
    {MODEL("\"vocab\":{\"a\":1.5},\"merges\":[]"), SP_E_FORMAT,
     "'a': want an integer, got a number"},
    {MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]"), SP_E_FORMAT, "got a string"},
    {MODEL("\"vocab\":{\"a\":null},\"merges\":[]"), SP_E_FORMAT, "got null"},
    {MODEL("\"vocab\":{\"a\":-1},\"merges\":[]"), SP_E_FORMAT, "got -1"},
    {MODEL("\"vocab\":{\"a\":16777216},\"merges\":[]"), SP_E_FORMAT, "got 16777216"},
    {MODEL("\"vocab\":{\"a\":9999999999999},\"merges\":[]"), SP_E_FORMAT, "got 9999999999999"},
    {MODEL("\"vocab\":{\"a\":7,\"b\":7},\"merges\":[]"), SP_E_FORMAT,
     "'a' and 'b' have the same id 7"},
    {MODEL("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]"), SP_E_FORMAT, "comes twice"},
    {MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]"), SP_E_FORMAT,
     "merges: entry 0 needs the token 'ab'"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a x\"]"), SP_E_FORMAT, "needs the token 'x'"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a\"]"), SP_E_FORMAT, "entry 0 is neither"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a  a\"]"), SP_E_FORMAT, "entry 0 is neither"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]"), SP_E_FORMAT, "entry 0 is neither"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\",1]]"), SP_E_FORMAT, "entry 0 is neither"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[5]"), SP_E_FORMAT, "entry 0 is neither"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":{}"), SP_E_FORMAT, "merges: want an array"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1"), SP_E_UNSUPPORTED, "dropout: 0.1"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":3"), SP_E_FORMAT, "byte_fallback"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":[]"), SP_E_FORMAT, "unk_token"},
    {WITH("added_tokens", "{}"), SP_E_FORMAT, "added_tokens: want an array"},
    {WITH("added_tokens", "[1]"), SP_E_FORMAT, "added_tokens[0]: want an object"},
    {WITH("added_tokens", "[{\"id\":1}]"), SP_E_FORMAT, "content: is missing"},
    {WITH("added_tokens", "[{\"content\":\"x\"}]"), SP_E_FORMAT, "id: is missing"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":-1}]"), SP_E_FORMAT, "got -1"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":20000000}]"), SP_E_FORMAT, "got 20000000"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":1.0}]"), SP_E_FORMAT, "want an integer"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":0}]"), SP_E_FORMAT, "gives to 'a'"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":5},{\"content\":\"y\",\"id\":5}]"),
     SP_E_FORMAT, "same id 5"},
    {WITH("added_tokens", "[{\"content\":\"x\",\"id\":5},{\"content\":\"x\",\"id\":6}]"),
     SP_E_FORMAT, "two ids, 5 and 6"},
    {WITH("normalizer", "5"), SP_E_FORMAT, "normalizer: want an object"},
    {WITH("normalizer", "{\"type\":\"Precompiled\"}"), SP_E_UNSUPPORTED,
     "normalizer: type 'Precompiled' is not supported"},
    {WITH("normalizer", "{\"type\":\"BertNormalizer\"}"), SP_E_UNSUPPORTED, "'BertNormalizer'"},
    {WITH("normalizer", "{\"type\":\"Nmt\"}"), SP_E_UNSUPPORTED, "'Nmt'"},
    {WITH("pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}"), SP_E_UNSUPPORTED,
     "pre_tokenizer: type 'BertPreTokenizer' is not supported"},
    {WITH("pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":"
                           "\"Isolated\",\"invert\":false}"),
     SP_E_FORMAT, "pre_tokenizer: Split: regex: missing closing parenthesis"},
    {WITH("decoder", "{\"type\":\"WordPiece\"}"), SP_E_UNSUPPORTED,
     "decoder: type 'WordPiece' is not supported"},
    {WITH("decoder", "{\"type\":\"CTC\"}"), SP_E_UNSUPPORTED, "'CTC'"},
    {WITH("post_processor", "{\"type\":\"Nothing\"}"), SP_E_UNSUPPORTED,
     "post_processor: type 'Nothing' is not supported"},
    {WITH("post_processor", "{\"type\":\"BertProcessing\",\"cls\":[\"x\",9],\"sep\":[\"a\",0]}"),
     SP_E_FORMAT, "id 9 has no token"},
    {WITH("post_processor", "{\"type\":\"BertProcessing\",\"cls\":[\"x\"],\"sep\":[\"a\",0]}"),
     SP_E_FORMAT, "cls: want [token, id]"},
    {WITH("post_processor", "{\"type\":\"TemplateProcessing\"}"), SP_E_FORMAT,
     "single: is missing"},
    {WITH("post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}"), SP_E_UNSUPPORTED,
     "holds the text 0 times"},
    {WITH("post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                            "\"id\":\"q\"}}]}"),
     SP_E_FORMAT, "has no 'q'"},
};

static void a_bad_file_is_refused_with_one_line_that_names_the_part(void) {
    for (size_t i = 0; i < SP_LEN(refusals); i++) {
        sp_err err = {0};
        sp_tokenizer *t = help_load_text(sp_slice_of(refusals[i].json), &err);
        bool good = !t && err.code == refusals[i].status && strstr(err.text, refusals[i].words) &&
                    !strchr(err.text, '\n') && strstr(err.text, "tokenizer.json");
        if (refusals[i].status == SP_E_UNSUPPORTED && !t) good &= !strstr(err.text, "line");
        if (!good)
            fprintf(stderr, "    %s\n    gives %s '%s'\n", refusals[i].json,
                    sp_status_name(err.code), err.text);
        CU_ASSERT(good);
        sp_tokenizer_free(t);
    }
}

static void a_missing_folder_is_not_found(void) {
    sp_err err = {0};
    sp_tokenizer *t = NULL;
    CU_ASSERT_EQUAL(sp_tokenizer_load(&t, "/nonexistent/model", &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NULL(t);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "tokenizer.json"));
}

/* Every allocation of a load fails once; nothing may leak or crash. */
static void a_load_survives_every_failed_allocation(void) {
    static const char json[] = SMALL(
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
        "\"a\"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\"b\"}]},"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"Sequence\","
        "\"decoders\":"
        "[{\"type\":\"Replace\",\"pattern\":{\"String\":\"b\"},\"content\":\" \"},{\"type\":"
        "\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},\"post_processor\":{\"type\":"
        "\"BertProcessing\",\"cls\":[\"<s>\",0],\"sep\":[\"</s>\",1]},");
    help_dir d = help_dir_make();
    help_dir_write(&d, "tokenizer.json", sp_slice_of(json));
    int n = 1;
    for (; n < 500; n++) {
        sp_tokenizer *t = NULL;
        sp_err err = {0};
        sp_mem_fail_at(n);
        sp_status st = sp_tokenizer_load(&t, d.path, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) {
            sp_tokenizer_free(t);
            break;
        }
        CU_ASSERT_PTR_NULL(t);
    }
    CU_ASSERT(n > 20 && n < 500);
    help_dir_remove(&d);
}

/* A file cut or changed anywhere must load or be refused, nothing else. */
static void a_damaged_file_never_crashes(void) {
    static const char json[] = SMALL(
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{"
        "\"Regex\":\"[a-z&&[^b]]+|(?i:x){1,2}+\"},\"behavior\":\"Isolated\",\"invert\":false},"
        "\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"_\"},");
    static const char bytes[] = "\"{}[],:0\\x\xff(9-";
    size_t n = sizeof json - 1;
    for (size_t i = 0; i < n; i += 3) {
        char copy[sizeof json];
        memcpy(copy, json, sizeof json);
        copy[i] = bytes[i % (sizeof bytes - 1)];
        sp_err err = {0};
        sp_tokenizer *t = help_load_text((sp_slice){copy, n}, &err);
        if (t) {
            sp_ids ids = {0};
            (void)!sp_tokenizer_encode(t, SP_SLICE("<s>ab x<t>XX[x]"), 3, (sp_slice){0}, &ids,
                                       &err);
            sp_ids_fini(&ids);
        }
        sp_tokenizer_free(t);
        sp_tokenizer_free(help_load_text((sp_slice){json, i}, &err));
    }
}

/* ---- threads ---- */

typedef struct worker {
    const sp_tokenizer *t;
    bool good;
} worker;

static void *encode_often(void *arg) {
    worker *w = arg;
    const int32_t want[] = {15496, 995, 11, 340, 338};
    w->good = true;
    for (int i = 0; i < 200; i++)
        w->good &= help_encodes(w->t, SP_SLICE("Hello world, it's"), 0, want, 5) &&
                   help_decodes(w->t, want, 5, false, SP_SLICE("Hello world, it's"));
    return NULL;
}

static void threads_share_one_tokenizer(void) {
    sp_tokenizer *t = help_load_folder("gpt2");
    if (!t) SP_SKIP("no fixtures");
    sp_thread threads[4] = {0};
    worker workers[4];
    sp_err err = {0};
    for (int i = 0; i < 4; i++) {
        workers[i] = (worker){.t = t};
        CU_ASSERT_EQUAL(sp_thread_start(&threads[i], "text", encode_often, &workers[i], &err),
                        SP_OK);
    }
    for (int i = 0; i < 4; i++) {
        sp_thread_join(&threads[i]);
        CU_ASSERT(workers[i].good);
    }
    sp_tokenizer_free(t);
}

SP_TEST_MAIN(
    "runtime/text/tokenizer", SP_TEST(gpt2_gives_the_ids_of_all_vectors),
    SP_TEST(llama2_gives_the_ids_of_all_vectors), SP_TEST(llama3_gives_the_ids_of_all_vectors),
    SP_TEST(qwen_gives_the_ids_of_all_vectors),
    SP_TEST(sentencepiece_models_give_the_ids_of_their_vectors),
    SP_TEST(podling_gives_the_ids_of_its_golden_prompts),
    SP_TEST(a_byte_tokenizer_gives_every_text_back),
    SP_TEST(special_tokens_are_text_unless_asked_for), SP_TEST(other_added_tokens_are_always_found),
    SP_TEST(a_marker_breaks_a_special_token_and_vanishes), SP_TEST(a_marker_alone_is_nothing),
    SP_TEST(a_marker_that_the_normalizer_removes_still_breaks),
    SP_TEST(what_is_around_a_text_is_added_on_request),
    SP_TEST(ids_are_appended_and_a_failure_takes_them_back),
    SP_TEST(bytes_that_are_not_utf8_are_read_as_u_fffd), SP_TEST(nul_bytes_are_text),
    SP_TEST(pieces_and_ids_lead_to_one_another), SP_TEST(ids_without_a_token_are_passed_over),
    SP_TEST(named_tokens_come_from_the_config_then_from_the_map),
    SP_TEST(the_config_may_add_tokens), SP_TEST(a_token_tells_its_own_bytes),
    SP_TEST(a_bad_file_is_refused_with_one_line_that_names_the_part),
    SP_TEST(a_missing_folder_is_not_found), SP_TEST(a_load_survives_every_failed_allocation),
    SP_TEST(a_damaged_file_never_crashes), SP_TEST(threads_share_one_tokenizer))
