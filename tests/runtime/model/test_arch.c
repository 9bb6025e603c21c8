/* Covers runtime/model/arch.c: the table of families, and what is refused by name. */
#include "runtime/model/arch.h"

#include "tests/harness.h"

#include <stdio.h>

static sp_model_desc llama(void) {
    return (sp_model_desc){
        .architecture = "LlamaForCausalLM",
        .model_type = "llama",
        .hidden = 64,
        .n_layers = 2,
        .intermediate = 128,
        .vocab = 320,
        .n_heads = 8,
        .n_kv_heads = 4,
        .head_dim = 8,
        .max_positions = 512,
        .act = "silu",
        .norm_eps = 1e-5,
        .rope = {.theta = 10000, .partial_rotary_factor = 1, .type_name = "default"},
        .dtype = SP_DTYPE_BF16,
    };
}

static void refused(const sp_model_desc *d, sp_status want, const char *words) {
    const sp_arch *arch = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_arch_find(&arch, d, &err), want);
    CU_ASSERT_EQUAL(err.code, want);
    if (!strstr(err.text, words)) fprintf(stderr, "    want '%s', got: %s\n", words, err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_PTR_NULL(arch);
}

static void llama_is_found_with_the_names_of_its_tensors(void) {
    sp_model_desc d = llama();
    const sp_arch *a = NULL;
    char name[100];
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&a, &d, NULL), SP_OK);
    CU_ASSERT_STRING_EQUAL(a->architecture, "LlamaForCausalLM");
    CU_ASSERT_STRING_EQUAL(sp_arch_name(name, sizeof name, a->q, 7, ".weight"),
                           "model.layers.7.self_attn.q_proj.weight");
    CU_ASSERT_STRING_EQUAL(sp_arch_name(name, sizeof name, a->down, 125, ".bias"),
                           "model.layers.125.mlp.down_proj.bias");
    CU_ASSERT_STRING_EQUAL(sp_arch_name(name, sizeof name, a->ffn_norm, 0, ".weight"),
                           "model.layers.0.post_attention_layernorm.weight");
    CU_ASSERT_STRING_EQUAL(sp_arch_name(name, sizeof name, a->lm_head, 3, ".weight"),
                           "lm_head.weight");
    CU_ASSERT_STRING_EQUAL(sp_arch_name(name, 8, a->lm_head, 3, ".weight"), "lm_head");
}

static void biases_and_ties_follow_config_or_the_family(void) {
    sp_model_desc d = llama();
    const sp_arch *a = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&a, &d, NULL), SP_OK);
    CU_ASSERT(sp_arch_has_bias(a->qkv_bias, true) && !sp_arch_has_bias(a->qkv_bias, false));
    CU_ASSERT(sp_arch_has_bias(a->o_bias, true) && sp_arch_has_bias(a->mlp_bias, true));
    CU_ASSERT(sp_arch_has_bias(SP_BIAS_YES, false) && !sp_arch_has_bias(SP_BIAS_NO, true));
    CU_ASSERT(!sp_arch_is_tied(a, &d));
    d.tie_embeddings = true;
    CU_ASSERT(!sp_arch_is_tied(a, &d)); /* the key was not there */
    d.has_tie_key = true;
    CU_ASSERT(sp_arch_is_tied(a, &d));
    sp_arch other = *a;
    other.tie_default = true;
    d.has_tie_key = false;
    CU_ASSERT(sp_arch_is_tied(&other, &d));
}

static void another_architecture_is_refused_by_name(void) {
    static const char *const others[] = {"Qwen2ForCausalLM",  "MistralForCausalLM",
                                         "BertModel",         "llamaforcausallm",
                                         "LlamaForCausalLM2", "LlamaForSequenceClassification",
                                         "MixtralForCausalLM"};
    for (size_t i = 0; i < SP_LEN(others); i++) {
        sp_model_desc d = llama();
        char words[120];
        snprintf(d.architecture, sizeof d.architecture, "%s", others[i]);
        snprintf(words, sizeof words,
                 "architecture '%s' is not supported; supported: LlamaForCausalLM", others[i]);
        refused(&d, SP_E_UNSUPPORTED, words);
    }
    sp_model_desc none = llama();
    none.architecture[0] = 0;
    refused(&none, SP_E_UNSUPPORTED, "names no architecture; supported: LlamaForCausalLM");
    CU_ASSERT_STRING_EQUAL(sp_arch_names()[0], "LlamaForCausalLM");
}

static void a_feature_that_cannot_be_computed_is_refused_by_name(void) {
    sp_model_desc d = llama();
    snprintf(d.quant_method, sizeof d.quant_method, "compressed-tensors");
    refused(&d, SP_E_UNSUPPORTED, "quantization 'compressed-tensors'");
    d = llama();
    d.sliding_window = 24;
    refused(&d, SP_E_UNSUPPORTED, "sliding window 24");
    d = llama();
    snprintf(d.layer_type, sizeof d.layer_type, "chunked_attention");
    refused(&d, SP_E_UNSUPPORTED, "layer type 'chunked_attention'");
    d = llama();
    snprintf(d.act, sizeof d.act, "relu2");
    refused(&d, SP_E_UNSUPPORTED, "activation 'relu2'");
    d = llama();
    d.head_dim = 513;
    refused(&d, SP_E_UNSUPPORTED, "head_dim 513 is not supported, want at most 512");
    d = llama();
    d.rope.by_layer_type = true;
    refused(&d, SP_E_UNSUPPORTED, "by layer type");
}

static void rope_types_are_computed_or_refused_by_name(void) {
    const struct {
        sp_rope_type type;
        const char *name;
        bool computed;
    } cases[] = {{SP_ROPE_DEFAULT, "default", true},    {SP_ROPE_LINEAR, "linear", true},
                 {SP_ROPE_LLAMA3, "llama3", true},      {SP_ROPE_DYNAMIC, "dynamic", false},
                 {SP_ROPE_YARN, "yarn", false},         {SP_ROPE_LONGROPE, "longrope", false},
                 {SP_ROPE_OTHER, "proportional", false}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_model_desc d = llama();
        const sp_arch *a = NULL;
        char words[64];
        d.rope.type = cases[i].type;
        snprintf(d.rope.type_name, sizeof d.rope.type_name, "%s", cases[i].name);
        snprintf(words, sizeof words, "rope type '%s'", cases[i].name);
        if (cases[i].computed)
            CU_ASSERT_EQUAL(sp_arch_find(&a, &d, NULL), SP_OK)
        else
            refused(&d, SP_E_UNSUPPORTED, words);
    }
}

static void rotary_dimensions_must_be_even(void) {
    sp_model_desc d = llama();
    d.head_dim = 80;
    d.rope.partial_rotary_factor = 0.4;
    const sp_arch *a = NULL;
    CU_ASSERT_EQUAL(sp_arch_find(&a, &d, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_arch_rope_dims(&d), 32);
    d.head_dim = 7;
    d.rope.partial_rotary_factor = 1;
    refused(&d, SP_E_UNSUPPORTED, "rotary dimensions 7");
    d.head_dim = 20;
    d.rope.partial_rotary_factor = 0.25;
    refused(&d, SP_E_UNSUPPORTED, "rotary dimensions 5");
    d.rope.partial_rotary_factor = 0.01;
    refused(&d, SP_E_UNSUPPORTED, "rotary dimensions 0");
}

static void a_missing_size_is_refused_by_its_key(void) {
    sp_model_desc d = llama();
    d.vocab = 0;
    refused(&d, SP_E_INVALID, "vocab_size is missing");
    d = llama();
    d.max_positions = 0;
    refused(&d, SP_E_INVALID, "max_position_embeddings is missing");
    d = llama();
    d.norm_eps = 0;
    refused(&d, SP_E_INVALID, "rms_norm_eps is missing");
}

static void every_refusal_is_listed(void) {
    sp_model_desc d = llama();
    sp_err list[8] = {0};
    CU_ASSERT_EQUAL(sp_arch_refusals(&d, list, 8), 0);
    d.sliding_window = 4;
    d.rope.type = SP_ROPE_YARN;
    snprintf(d.quant_method, sizeof d.quant_method, "fp8");
    CU_ASSERT_EQUAL(sp_arch_refusals(&d, list, 8), 3);
    CU_ASSERT_PTR_NOT_NULL(strstr(list[0].text, "fp8"));
    CU_ASSERT_EQUAL(sp_arch_refusals(&d, list, 2), 2);
}

static void activations_are_known_by_their_words(void) {
    const struct {
        const char *word;
        sp_act act;
    } cases[] = {{"silu", SP_ACT_SILU},
                 {"gelu", SP_ACT_GELU},
                 {"gelu_pytorch_tanh", SP_ACT_GELU_TANH},
                 {"gelu_new", SP_ACT_GELU_TANH}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_model_desc d = llama();
        sp_act act = (sp_act)99;
        snprintf(d.act, sizeof d.act, "%s", cases[i].word);
        CU_ASSERT_EQUAL(sp_arch_act(&act, &d, NULL), SP_OK);
        CU_ASSERT_EQUAL(act, cases[i].act);
    }
    sp_model_desc d = llama();
    sp_act act;
    sp_err err = {0};
    d.act[0] = 0;
    CU_ASSERT_EQUAL(sp_arch_act(&act, &d, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "supported: silu, gelu"));
}

SP_TEST_MAIN("arch", SP_TEST(llama_is_found_with_the_names_of_its_tensors),
             SP_TEST(biases_and_ties_follow_config_or_the_family),
             SP_TEST(another_architecture_is_refused_by_name),
             SP_TEST(a_feature_that_cannot_be_computed_is_refused_by_name),
             SP_TEST(rope_types_are_computed_or_refused_by_name),
             SP_TEST(rotary_dimensions_must_be_even), SP_TEST(a_missing_size_is_refused_by_its_key),
             SP_TEST(every_refusal_is_listed), SP_TEST(activations_are_known_by_their_words))
