/* Covers runtime/format/model_desc.c: config.json old and new, its ranges, and its neighbours. */
#include "runtime/format/model_desc.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CORE \
    "\"hidden_size\":64,\"num_hidden_layers\":2,\"intermediate_size\":128,\"vocab_size\":320," \
    "\"num_attention_heads\":8,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5," \
    "\"hidden_act\":\"silu\","
#define LLAMA "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
#define CONFIG(more) "{" LLAMA CORE more "\"use_cache\":true}"

static sp_status load(sp_model_desc *d, const char *config, const char *generation, sp_err *err) {
    char *dir = sp_tiny_folder();
    sp_tiny_put(dir, "config.json", config, strlen(config));
    if (generation) sp_tiny_put(dir, "generation_config.json", generation, strlen(generation));
    sp_status st = sp_model_desc_load(d, dir, err);
    sp_tiny_remove(dir);
    return st;
}

static sp_model_desc loaded(const char *config) {
    sp_model_desc d = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL(load(&d, config, NULL, &err), SP_OK);
    if (err.text[0]) fprintf(stderr, "    %s\n", err.text);
    return d;
}

static void refused(const char *config, const char *generation, sp_status want, const char *words) {
    sp_model_desc d = {.hidden = 7};
    sp_err err = {0};
    sp_status st = load(&d, config, generation, &err);
    if (st != want || !strstr(err.text, words))
        fprintf(stderr, "    want '%s', got %s: %s\n", words, sp_status_name(st), err.text);
    CU_ASSERT_EQUAL(st, want);
    CU_ASSERT_EQUAL(err.code, want);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_EQUAL(d.hidden, 7); /* written only on success */
}

static void a_published_config_is_read(void) {
    sp_model_desc d = loaded(CONFIG("\"num_key_value_heads\":2,\"rope_theta\":500000.0,"
                                    "\"rope_scaling\":null,\"torch_dtype\":\"bfloat16\","
                                    "\"bos_token_id\":1,\"eos_token_id\":[2,3,2],"
                                    "\"attention_bias\":true,\"tie_word_embeddings\":true,"));
    CU_ASSERT_STRING_EQUAL(d.architecture, "LlamaForCausalLM");
    CU_ASSERT_STRING_EQUAL(d.model_type, "llama");
    CU_ASSERT_EQUAL(d.hidden, 64);
    CU_ASSERT_EQUAL(d.n_layers, 2);
    CU_ASSERT_EQUAL(d.intermediate, 128);
    CU_ASSERT_EQUAL(d.vocab, 320);
    CU_ASSERT_EQUAL(d.n_heads, 8);
    CU_ASSERT_EQUAL(d.n_kv_heads, 2);
    CU_ASSERT_EQUAL(d.head_dim, 8);
    CU_ASSERT_EQUAL(d.max_positions, 512);
    CU_ASSERT_STRING_EQUAL(d.act, "silu");
    CU_ASSERT_EQUAL(d.norm_eps, 1e-5);
    CU_ASSERT_EQUAL(d.rope.type, SP_ROPE_DEFAULT);
    CU_ASSERT_EQUAL(d.rope.theta, 500000);
    CU_ASSERT_EQUAL(d.rope.partial_rotary_factor, 1);
    CU_ASSERT(d.attention_bias && !d.mlp_bias && d.tie_embeddings && d.has_tie_key);
    CU_ASSERT_EQUAL(d.dtype, SP_DTYPE_BF16);
    CU_ASSERT_EQUAL(d.bos_id, 1);
    CU_ASSERT_EQUAL(d.pad_id, -1);
    CU_ASSERT_EQUAL(d.n_eos, 2);
    CU_ASSERT_EQUAL(d.eos[0], 2);
    CU_ASSERT_EQUAL(d.eos[1], 3);
    CU_ASSERT_STRING_EQUAL(d.quant_method, "");
    CU_ASSERT(isnan(d.gen_temperature) && isnan(d.gen_top_p) && isnan(d.gen_min_p));
    CU_ASSERT_EQUAL(d.gen_top_k, -1);
    CU_ASSERT_EQUAL(d.gen_max_new_tokens, -1);
}

static void absent_and_null_keys_take_their_defaults(void) {
    sp_model_desc d = loaded(CONFIG("\"num_key_value_heads\":null,\"head_dim\":null,"
                                    "\"sliding_window\":null,\"eos_token_id\":null,"
                                    "\"quantization_config\":null,"));
    CU_ASSERT_EQUAL(d.n_kv_heads, 8);
    CU_ASSERT_EQUAL(d.head_dim, 8);
    CU_ASSERT_EQUAL(d.rope.theta, 10000);
    CU_ASSERT_EQUAL(d.dtype, SP_DTYPE_F32);
    CU_ASSERT_EQUAL(d.n_eos, 0);
    CU_ASSERT_EQUAL(d.bos_id, -1);
    CU_ASSERT(!d.has_tie_key && !d.tie_embeddings);
    CU_ASSERT_EQUAL(loaded(CONFIG("\"head_dim\":16,")).head_dim, 16);
    sp_model_desc empty = loaded("{}");
    CU_ASSERT_EQUAL(empty.hidden, 0);
    CU_ASSERT_STRING_EQUAL(empty.architecture, "");
}

static void transformers_5_spellings_mean_the_same(void) {
    sp_tiny t = sp_tiny_default();
    t.rope = SP_TINY_ROPE_LLAMA3;
    t.rope_theta = 500000;
    char *old_dir = sp_tiny_create(&t);
    t.transformers5 = true;
    char *new_dir = sp_tiny_create(&t);
    sp_model_desc a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&a, old_dir, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&b, new_dir, NULL), SP_OK);
    CU_ASSERT_EQUAL(b.rope.type, SP_ROPE_LLAMA3);
    CU_ASSERT_EQUAL(a.rope.theta, 500000);
    CU_ASSERT_EQUAL(b.rope.theta, 500000);
    CU_ASSERT_EQUAL(b.rope.factor, 8);
    CU_ASSERT_EQUAL(b.rope.low_freq_factor, 1);
    CU_ASSERT_EQUAL(b.rope.high_freq_factor, 4);
    CU_ASSERT_EQUAL(b.rope.original_max_positions, 64);
    CU_ASSERT_EQUAL(b.dtype, SP_DTYPE_BF16);
    CU_ASSERT_EQUAL(a.dtype, b.dtype);
    CU_ASSERT_EQUAL(a.rope.type, b.rope.type);
    sp_tiny_remove(old_dir);
    sp_tiny_remove(new_dir);
}

static void rope_is_read_in_every_spelling(void) {
    sp_model_desc d = loaded(CONFIG("\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"));
    CU_ASSERT_EQUAL(d.rope.type, SP_ROPE_LINEAR);
    CU_ASSERT_EQUAL(d.rope.factor, 2);
    static const struct {
        const char *word;
        sp_rope_type type;
    } types[] = {{"default", SP_ROPE_DEFAULT},   {"dynamic", SP_ROPE_DYNAMIC},
                 {"yarn", SP_ROPE_YARN},         {"su", SP_ROPE_LONGROPE},
                 {"longrope", SP_ROPE_LONGROPE}, {"mrope", SP_ROPE_OTHER}};
    for (size_t i = 0; i < SP_LEN(types); i++) {
        char config[700];
        snprintf(config, sizeof config,
                 CONFIG("\"rope_scaling\":{\"rope_type\":\"%s\",\"factor\":4},"), types[i].word);
        d = loaded(config);
        CU_ASSERT_EQUAL(d.rope.type, types[i].type);
        CU_ASSERT_STRING_EQUAL(d.rope.type_name, types[i].word);
    }
    d = loaded(CONFIG("\"rope_theta\":7,\"rope_parameters\":{\"partial_rotary_factor\":0.5},"));
    CU_ASSERT_EQUAL(d.rope.theta, 7);
    CU_ASSERT_EQUAL(d.rope.partial_rotary_factor, 0.5);
    d = loaded(CONFIG("\"rotary_pct\":0.25,\"rotary_emb_base\":99,"));
    CU_ASSERT_EQUAL(d.rope.theta, 99);
    CU_ASSERT_EQUAL(d.rope.partial_rotary_factor, 0.25);
    d = loaded(CONFIG("\"rope_parameters\":{\"sliding_attention\":{\"rope_theta\":5},"
                      "\"full_attention\":{\"rope_theta\":6,\"rope_type\":\"default\"}},"));
    CU_ASSERT(d.rope.by_layer_type);
    CU_ASSERT_EQUAL(d.rope.theta, 6);
}

#define LLAMA3(low, high) \
    "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8," low high \
    "\"original_max_position_embeddings\":64},"

static void rope_without_what_its_type_wants_is_refused(void) {
    refused(CONFIG("\"rope_scaling\":{\"type\":\"linear\"},"), NULL, SP_E_INVALID,
            "rope_scaling.factor is missing");
    refused(CONFIG("\"rope_scaling\":{\"factor\":2.0},"), NULL, SP_E_INVALID,
            "rope_scaling.rope_type is missing");
    refused(CONFIG(LLAMA3("", "\"high_freq_factor\":4,")), NULL, SP_E_INVALID,
            "rope_scaling.low_freq_factor is missing, rope type 'llama3'");
    refused(CONFIG(LLAMA3("\"low_freq_factor\":1,", "")), NULL, SP_E_INVALID,
            "rope_scaling.high_freq_factor is missing");
    refused(CONFIG("\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,"
                   "\"low_freq_factor\":1,\"high_freq_factor\":4},"),
            NULL, SP_E_INVALID, "rope_parameters.original_max_position_embeddings is missing");
    refused(CONFIG(LLAMA3("\"low_freq_factor\":4,", "\"high_freq_factor\":1,")), NULL, SP_E_INVALID,
            "high_freq_factor is 1, want at least low_freq_factor 4");
    refused(CONFIG(LLAMA3("\"low_freq_factor\":\"1\",", "\"high_freq_factor\":4,")), NULL,
            SP_E_INVALID, "rope_scaling.low_freq_factor is \"1\", want a number above 0");
    CU_ASSERT_EQUAL(
        loaded(CONFIG(LLAMA3("\"low_freq_factor\":4,", "\"high_freq_factor\":4,"))).rope.type,
        SP_ROPE_LLAMA3);
    refused(CONFIG("\"rope_scaling\":[],"), NULL, SP_E_INVALID, "rope_scaling is [], want an obj");
    refused(CONFIG("\"rope_theta\":0,"), NULL, SP_E_INVALID,
            "rope_theta is 0, want a number above");
    refused(CONFIG("\"rope_theta\":1e999,"), NULL, SP_E_INVALID, "rope_theta");
    refused(CONFIG("\"partial_rotary_factor\":1.5,"), NULL, SP_E_INVALID, "partial_rotary_factor");
}

/* CONFIG with one key of CORE replaced. */
static void refused_core(const char *key, const char *value, const char *words) {
    char config[1000], whole[64];
    static const char text[] = CONFIG("");
    snprintf(whole, sizeof whole, "\"%s\":", key);
    const char *at = strstr(text, whole), *end = at ? strpbrk(at + strlen(whole), ",}") : NULL;
    CU_ASSERT_PTR_NOT_NULL_FATAL(end);
    snprintf(config, sizeof config, "%.*s%s%s%s", (int)(at - text), text, whole, value, end);
    refused(config, NULL, SP_E_INVALID, words);
}

static void every_count_has_a_range(void) {
    static const char *const keys[] = {"hidden_size",         "num_hidden_layers",
                                       "intermediate_size",   "vocab_size",
                                       "num_attention_heads", "max_position_embeddings"};
    static const char *const bad[] = {"0",
                                      "-1",
                                      "1.5",
                                      "64.0",
                                      "\"64\"",
                                      "true",
                                      "[64]",
                                      "{}",
                                      "1e3",
                                      "4294967360",
                                      "99999999999999999999"};
    for (size_t k = 0; k < SP_LEN(keys); k++)
        for (size_t b = 0; b < SP_LEN(bad); b++) {
            char words[100];
            snprintf(words, sizeof words, "config.json: %s is %.20s", keys[k], bad[b]);
            refused_core(keys[k], bad[b], words);
        }
    refused_core("hidden_size", "1048577", "want an integer from 1 to 1048576");
    refused_core("num_hidden_layers", "4097", "from 1 to 4096");
    refused_core("hidden_size", "63",
                 "hidden_size is 63, want a multiple of num_attention_heads 8");
    static const char *const eps[] = {"0", "1", "-1e-5", "1e999", "\"1e-5\""};
    for (size_t i = 0; i < SP_LEN(eps); i++)
        refused_core("rms_norm_eps", eps[i], "want a number above 0 and below 1");
    refused_core("hidden_act", "5", "hidden_act is 5, want a word");
    refused_core("hidden_act", "\"si lu\"", "want a word");
    refused(CONFIG("\"num_key_value_heads\":3,"), NULL, SP_E_INVALID,
            "num_key_value_heads is 3, want a divisor of num_attention_heads 8");
    refused(CONFIG("\"head_dim\":0,"), NULL, SP_E_INVALID, "head_dim is 0");
    refused(CONFIG("\"attention_bias\":1,"), NULL, SP_E_INVALID, "attention_bias is 1, want true");
    refused(CONFIG("\"tie_word_embeddings\":\"yes\","), NULL, SP_E_INVALID, "tie_word_embeddings");
    refused(CONFIG("\"torch_dtype\":\"int3\","), NULL, SP_E_INVALID, "torch_dtype is \"int3\"");
}

static void names_must_be_words(void) {
    refused("{\"architectures\":\"Llama\"}", NULL, SP_E_INVALID, "architectures is \"Llama\"");
    refused("{\"architectures\":[7]}", NULL, SP_E_INVALID, "architectures[0] is 7");
    refused("{\"architectures\":[\"a\\nb\"]}", NULL, SP_E_INVALID, "want a word");
    refused("{\"model_type\":\"a-word-that-is-longer-than-any-model-type-is\"}", NULL, SP_E_INVALID,
            "model_type");
    CU_ASSERT_STRING_EQUAL(loaded("{\"architectures\":[]}").architecture, "");
}

static void token_ids_must_be_in_the_vocabulary(void) {
    refused(CONFIG("\"eos_token_id\":320,"), NULL, SP_E_INVALID, "eos_token_id is 320");
    refused(CONFIG("\"eos_token_id\":[1,-1],"), NULL, SP_E_INVALID, "eos_token_id is -1");
    refused(CONFIG("\"eos_token_id\":\"</s>\","), NULL, SP_E_INVALID, "eos_token_id is \"</s>\"");
    refused(CONFIG("\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17],"), NULL,
            SP_E_INVALID, "more than 16 eos_token_id");
    refused(CONFIG("\"bos_token_id\":320,"), NULL, SP_E_INVALID, "bos_token_id is 320");
    CU_ASSERT_EQUAL(loaded(CONFIG("\"pad_token_id\":-1,")).pad_id, -1);
    CU_ASSERT_EQUAL(loaded(CONFIG("\"pad_token_id\":320,")).pad_id, -1);
    CU_ASSERT_EQUAL(loaded(CONFIG("\"pad_token_id\":319,")).pad_id, 319);
}

static void a_window_counts_only_where_it_is_used(void) {
#define WINDOW(more) (loaded(CONFIG("\"sliding_window\":64," more)).sliding_window)
    CU_ASSERT_EQUAL(WINDOW(""), 64);
    CU_ASSERT_EQUAL(WINDOW("\"use_sliding_window\":false,"), 0);
    CU_ASSERT_EQUAL(WINDOW("\"use_sliding_window\":true,"), 64);
    CU_ASSERT_EQUAL(WINDOW("\"use_sliding_window\":true,\"max_window_layers\":1,"), 64);
    CU_ASSERT_EQUAL(WINDOW("\"use_sliding_window\":true,\"max_window_layers\":2,"), 0);
    CU_ASSERT_EQUAL(WINDOW("\"layer_types\":[\"full_attention\",\"full_attention\"],"), 0);
    CU_ASSERT_EQUAL(WINDOW("\"layer_types\":[\"full_attention\",\"sliding_attention\"],"), 64);
#undef WINDOW
    sp_model_desc d = loaded(CONFIG("\"layer_types\":[\"full_attention\",\"chunked_attention\"],"));
    CU_ASSERT_STRING_EQUAL(d.layer_type, "chunked_attention");
    d = loaded("{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\"," CORE
               "\"sliding_window\":64}");
    CU_ASSERT_EQUAL(d.sliding_window, 0);
}

static void quantisation_is_known_by_name(void) {
#define QUANT(more) (loaded(CONFIG(more)))
    CU_ASSERT_STRING_EQUAL(
        QUANT("\"quantization_config\":{\"quant_method\":\"fp8\"},").quant_method, "fp8");
    CU_ASSERT_STRING_EQUAL(
        QUANT("\"quantization_config\":{\"quant_method\":\"compressed-tensors\"},").quant_method,
        "compressed-tensors");
    CU_ASSERT_STRING_EQUAL(QUANT("\"quantization_config\":{\"bits\":4},").quant_method, "unknown");
    CU_ASSERT_STRING_EQUAL(QUANT("\"compression_config\":{},").quant_method, "compressed-tensors");
#undef QUANT
    refused(CONFIG("\"quantization_config\":\"fp8\","), NULL, SP_E_INVALID,
            "quantization_config is \"fp8\"");
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t);
    static const char modelopt[] = "{\"quantization\":{\"quant_algo\":\"NVFP4\"}}";
    sp_tiny_put(dir, "hf_quant_config.json", modelopt, sizeof modelopt - 1);
    sp_model_desc d;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&d, dir, NULL), SP_OK);
    CU_ASSERT_STRING_EQUAL(d.quant_method, "modelopt");
    sp_tiny_put(dir, "hf_quant_config.json", "[]", 2);
    CU_ASSERT_EQUAL(sp_model_desc_load(&d, dir, &err), SP_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.text, "hf_quant_config.json: is an array, want an object");
    sp_tiny_remove(dir);
}

static void a_wrapper_is_read_through_its_text_config(void) {
    sp_model_desc d = loaded("{\"architectures\":[\"XForConditionalGeneration\"],"
                             "\"model_type\":\"x\",\"eos_token_id\":9,\"tie_word_embeddings\":true,"
                             "\"text_config\":{" CORE "\"model_type\":\"x_text\"}}");
    CU_ASSERT_STRING_EQUAL(d.architecture, "XForConditionalGeneration");
    CU_ASSERT_STRING_EQUAL(d.model_type, "x");
    CU_ASSERT_EQUAL(d.hidden, 64);
    CU_ASSERT_EQUAL(d.eos[0], 9);
    CU_ASSERT(d.tie_embeddings);
}

static void generation_defaults_are_read_and_checked(void) {
    sp_model_desc d;
    CU_ASSERT_EQUAL_FATAL(
        load(&d, CONFIG("\"eos_token_id\":5,"),
             "{\"eos_token_id\":[7,5],\"bos_token_id\":3,\"pad_token_id\":4,\"temperature\":0.6,"
             "\"top_p\":0.9,\"min_p\":0,\"top_k\":40,\"repetition_penalty\":1.1,"
             "\"max_new_tokens\":77,\"do_sample\":false}",
             NULL),
        SP_OK);
    CU_ASSERT_EQUAL(d.n_eos, 2);
    CU_ASSERT_EQUAL(d.eos[0], 5); /* config.json's first is the primary */
    CU_ASSERT_EQUAL(d.eos[1], 7);
    CU_ASSERT_EQUAL(d.bos_id, 3);
    CU_ASSERT_EQUAL(d.pad_id, 4);
    CU_ASSERT_EQUAL(d.gen_temperature, 0.6);
    CU_ASSERT_EQUAL(d.gen_top_p, 0.9);
    CU_ASSERT_EQUAL(d.gen_min_p, 0);
    CU_ASSERT_EQUAL(d.gen_top_k, 40);
    CU_ASSERT_EQUAL(d.gen_repetition_penalty, 1.1);
    CU_ASSERT_EQUAL(d.gen_max_new_tokens, 77);
    static const char *const bad[][2] = {{"{\"temperature\":-1}", "temperature is -1"},
                                         {"{\"temperature\":\"hot\"}", "temperature is \"hot\""},
                                         {"{\"top_p\":0}", "top_p is 0"},
                                         {"{\"top_p\":1.01}", "top_p is 1.01"},
                                         {"{\"min_p\":-0.1}", "min_p is -0.1"},
                                         {"{\"top_k\":2.5}", "top_k is 2.5"},
                                         {"{\"top_k\":-2}", "top_k is -2"},
                                         {"{\"repetition_penalty\":0}", "repetition_penalty is 0"},
                                         {"{\"max_new_tokens\":0}", "max_new_tokens is 0"},
                                         {"{\"eos_token_id\":320}", "eos_token_id is 320"}};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        char words[100];
        snprintf(words, sizeof words, "generation_config.json: %s", bad[i][1]);
        refused(CONFIG(""), bad[i][0], SP_E_INVALID, words);
    }
    refused(CONFIG(""), "{", SP_E_FORMAT, "generation_config.json: JSON ends");
}

static void a_config_that_is_no_config_is_refused(void) {
    refused("", NULL, SP_E_FORMAT, "config.json: JSON ends");
    refused("[]", NULL, SP_E_FORMAT, "config.json: is an array, want an object");
    refused("{\"a\":1,\"a\":2}", NULL, SP_E_FORMAT, "comes twice");
    refused("{\"a\":NaN}", NULL, SP_E_FORMAT, "config.json: JSON byte 5");
    sp_model_desc d;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_model_desc_load(&d, "/nowhere", &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "/nowhere/config.json"));
}

/* Real files: every one parses, whatever its family. */
static void published_configs_parse(void) {
    static const char *const names[] = {"llama-3-70b",    "llama-3.1-8b", "llama-3.1-70b",
                                        "llama-3.1-405b", "qwen2-72b",    "qwen3-8b"};
    const char *root = sp_test_fixtures();
    if (!root) SP_SKIP("no fixtures beside the checkout");
    for (size_t i = 0; i < SP_LEN(names); i++) {
        char dir[512];
        sp_model_desc d = {0};
        sp_err err = {0};
        snprintf(dir, sizeof dir, "%s/configs/%s", root, names[i]);
        CU_ASSERT_EQUAL(sp_model_desc_load(&d, dir, &err), SP_OK);
        if (err.text[0]) fprintf(stderr, "    %s: %s\n", names[i], err.text);
        CU_ASSERT(d.n_eos >= 1 && d.head_dim == 128 && d.sliding_window == 0);
        bool scaled = strncmp(names[i], "llama-3.1", 9) == 0;
        CU_ASSERT_EQUAL(d.rope.type, scaled ? SP_ROPE_LLAMA3 : SP_ROPE_DEFAULT);
        if (i == 3) CU_ASSERT(d.n_layers == 126 && d.hidden == 16384 && d.n_eos == 3);
        if (i == 4) CU_ASSERT(d.gen_top_k == 20 && d.gen_repetition_penalty == 1.05);
    }
}

static void every_failing_allocation_of_load_is_told(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t);
    sp_model_desc d;
    int n = 1;
    for (;; n++) {
        sp_err err = {0};
        sp_mem_fail_at(n);
        sp_status st = sp_model_desc_load(&d, dir, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) break;
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        CU_ASSERT_FATAL(n < 100);
    }
    CU_ASSERT(n > 5);
    sp_tiny_remove(dir);
}

SP_TEST_MAIN("model_desc", SP_TEST(a_published_config_is_read),
             SP_TEST(absent_and_null_keys_take_their_defaults),
             SP_TEST(transformers_5_spellings_mean_the_same),
             SP_TEST(rope_is_read_in_every_spelling),
             SP_TEST(rope_without_what_its_type_wants_is_refused), SP_TEST(every_count_has_a_range),
             SP_TEST(names_must_be_words), SP_TEST(token_ids_must_be_in_the_vocabulary),
             SP_TEST(a_window_counts_only_where_it_is_used), SP_TEST(quantisation_is_known_by_name),
             SP_TEST(a_wrapper_is_read_through_its_text_config),
             SP_TEST(generation_defaults_are_read_and_checked),
             SP_TEST(a_config_that_is_no_config_is_refused), SP_TEST(published_configs_parse),
             SP_TEST(every_failing_allocation_of_load_is_told))
