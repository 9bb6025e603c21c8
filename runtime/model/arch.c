#include "runtime/model/arch.h"

#include <stdio.h>

#define HEAD_DIM_MAX 512 /* what the attention operations are built and compared for */

static const sp_arch archs[] = {
    {
        .architecture = "LlamaForCausalLM",
        .embed = "model.embed_tokens",
        .final_norm = "model.norm",
        .lm_head = "lm_head",
        .attn_norm = "model.layers.{i}.input_layernorm",
        .q = "model.layers.{i}.self_attn.q_proj",
        .k = "model.layers.{i}.self_attn.k_proj",
        .v = "model.layers.{i}.self_attn.v_proj",
        .o = "model.layers.{i}.self_attn.o_proj",
        .ffn_norm = "model.layers.{i}.post_attention_layernorm",
        .gate = "model.layers.{i}.mlp.gate_proj",
        .up = "model.layers.{i}.mlp.up_proj",
        .down = "model.layers.{i}.mlp.down_proj",
        .tie_default = false,
        .qkv_bias = SP_BIAS_CONFIG,
        .o_bias = SP_BIAS_CONFIG,
        .mlp_bias = SP_BIAS_CONFIG,
    },
};

static const char *const names[SP_LEN(archs) + 1] = {"LlamaForCausalLM", NULL};

const char *const *sp_arch_names(void) {
    return names;
}

static const sp_arch *row_of(const sp_model_desc *d) {
    for (size_t i = 0; i < SP_LEN(archs); i++)
        if (strcmp(archs[i].architecture, d->architecture) == 0) return &archs[i];
    return NULL;
}

/* ---- what may be refused, one condition each ---- */

static sp_status check_architecture(const sp_model_desc *d, sp_err *err) {
    if (row_of(d)) return SP_OK;
    sp_buf b;
    sp_buf_init(&b, 0);
    for (int i = 0; names[i]; i++) sp_buf_printf(&b, "%s%s", i ? ", " : "", names[i]);
    sp_status st =
        d->architecture[0]
            ? SP_FAIL(err, SP_E_UNSUPPORTED, "architecture '%s' is not supported; supported: %s",
                      d->architecture, b.ptr)
            : SP_FAIL(err, SP_E_UNSUPPORTED, "config.json names no architecture; supported: %s",
                      b.ptr);
    sp_buf_fini(&b);
    return st;
}

static sp_status check_quantization(const sp_model_desc *d, sp_err *err) {
    if (!d->quant_method[0]) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "quantization '%s' is not supported, want unquantised BF16, F16 or F32 weights",
                   d->quant_method);
}

static sp_status check_sizes(const sp_model_desc *d, sp_err *err) {
    const struct {
        const char *key;
        int32_t value;
    } sizes[] = {
        {"hidden_size", d->hidden},
        {"num_hidden_layers", d->n_layers},
        {"intermediate_size", d->intermediate},
        {"vocab_size", d->vocab},
        {"num_attention_heads", d->n_heads},
        {"max_position_embeddings", d->max_positions},
    };
    for (size_t i = 0; i < SP_LEN(sizes); i++)
        if (sizes[i].value < 1)
            return SP_FAIL(err, SP_E_INVALID, "config.json: %s is missing, want a positive integer",
                           sizes[i].key);
    if (!(d->norm_eps > 0))
        return SP_FAIL(err, SP_E_INVALID,
                       "config.json: rms_norm_eps is missing, want a number above 0 and below 1");
    return SP_OK;
}

static sp_status check_heads(const sp_model_desc *d, sp_err *err) {
    int32_t dims = sp_arch_rope_dims(d);
    if (d->head_dim > HEAD_DIM_MAX)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "head_dim %d is not supported, want at most %d",
                       d->head_dim, HEAD_DIM_MAX);
    if (d->head_dim > 0 && (dims < 2 || dims % 2))
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "rotary dimensions %d (head_dim %d, partial_rotary_factor %g) are not "
                       "supported, want an even number from 2",
                       dims, d->head_dim, d->rope.partial_rotary_factor);
    return SP_OK;
}

static sp_status check_rope(const sp_model_desc *d, sp_err *err) {
    if (d->rope.by_layer_type)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "rope parameters by layer type are not supported, want one set");
    if (d->rope.type <= SP_ROPE_LLAMA3) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "rope type '%s' is not supported; supported: default, linear, llama3",
                   d->rope.type_name);
}

static sp_status check_window(const sp_model_desc *d, sp_err *err) {
    if (d->sliding_window > 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "sliding window %d is not supported, want full attention",
                       d->sliding_window);
    if (d->layer_type[0])
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "layer type '%s' is not supported, want full_attention", d->layer_type);
    return SP_OK;
}

static sp_status check_act(const sp_model_desc *d, sp_err *err) {
    sp_act act;
    return sp_arch_act(&act, d, err);
}

typedef sp_status check_fn(const sp_model_desc *d, sp_err *err);
static check_fn *const checks[] = {check_architecture, check_quantization, check_sizes, check_heads,
                                   check_rope,         check_window,       check_act};

/* ---- public ---- */

int sp_arch_refusals(const sp_model_desc *desc, sp_err *out, int max) {
    int n = 0;
    for (size_t i = 0; i < SP_LEN(checks) && n < max; i++) {
        sp_err err = {0};
        if (checks[i](desc, &err) != SP_OK) out[n++] = err;
    }
    return n;
}

sp_status sp_arch_find(const sp_arch **out, const sp_model_desc *desc, sp_err *err) {
    sp_err first;
    if (sp_arch_refusals(desc, &first, 1) > 0) {
        if (err) *err = first;
        return first.code;
    }
    *out = row_of(desc);
    return SP_OK;
}

sp_status sp_arch_act(sp_act *out, const sp_model_desc *desc, sp_err *err) {
    static const struct {
        const char *word;
        sp_act act;
    } words[] = {
        {"silu", SP_ACT_SILU},          {"swish", SP_ACT_SILU},
        {"gelu", SP_ACT_GELU},          {"gelu_pytorch_tanh", SP_ACT_GELU_TANH},
        {"gelu_new", SP_ACT_GELU_TANH},
    };
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(desc->act, words[i].word) == 0) {
            *out = words[i].act;
            return SP_OK;
        }
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "activation '%s' is not supported; supported: silu, gelu, gelu_pytorch_tanh, "
                   "gelu_new",
                   desc->act);
}

int32_t sp_arch_rope_dims(const sp_model_desc *desc) {
    return (int32_t)((double)desc->head_dim * desc->rope.partial_rotary_factor);
}

bool sp_arch_is_tied(const sp_arch *arch, const sp_model_desc *desc) {
    return desc->has_tie_key ? desc->tie_embeddings : arch->tie_default;
}

bool sp_arch_has_bias(enum sp_arch_bias which, bool config_says) {
    return which == SP_BIAS_YES || (which == SP_BIAS_CONFIG && config_says);
}

const char *sp_arch_name(char *out, size_t n, const char *pattern, int layer, const char *suffix) {
    const char *at = strstr(pattern, "{i}");
    if (at)
        snprintf(out, n, "%.*s%d%s%s", (int)(at - pattern), pattern, layer, at + 3, suffix);
    else
        snprintf(out, n, "%s%s", pattern, suffix);
    return out;
}
