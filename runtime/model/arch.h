/* runtime/model/arch.h - model families as rows of a table.
 *
 * A family is a row: its architecture name, tensor names with {i} for the layer, and switches. The
 * forward pass reads the row; no family has code of its own. An architecture that is not in the
 * table is refused by name, and so is a feature of a listed one that cannot be computed yet.
 *
 * Source: the families' reference implementations in Hugging Face transformers (keys, tensor names).
 * Thread: const tables. */
#pragma once

#include "kernels/args.h"
#include "runtime/format/model_desc.h"

typedef struct sp_arch {
    const char *architecture; /* "LlamaForCausalLM" */
    const char *embed, *final_norm, *lm_head;
    const char *attn_norm, *q, *k, *v, *o; /* without ".weight" */
    const char *ffn_norm, *gate, *up, *down;
    bool tie_default;
    /* Which biases exist: never, always, or as config.json's key says. */
    enum sp_arch_bias {
        SP_BIAS_NO,
        SP_BIAS_YES,
        SP_BIAS_CONFIG
    } qkv_bias, o_bias, mlp_bias;
} sp_arch;

/** The row of `desc`, with everything it asks for proven computable.
 * Errors: SP_E_UNSUPPORTED: "architecture 'X' is not supported; supported: …", or the feature
 * (quantization 'fp8', rope type 'yarn', activation 'relu', sliding window) by name. */
SP_NODISCARD sp_status sp_arch_find(const sp_arch **out, const sp_model_desc *desc, sp_err *err);

/** Writes every reason for which sp_arch_find() would refuse, at most `max`; returns how many. */
int sp_arch_refusals(const sp_model_desc *desc, sp_err *out, int max);
/** The names of the supported architectures, NULL-terminated. */
const char *const *sp_arch_names(void);

/** The activation by config.json's word. Errors: SP_E_UNSUPPORTED by name. */
SP_NODISCARD sp_status sp_arch_act(sp_act *out, const sp_model_desc *desc, sp_err *err);

/** Rotary dimensions: head_dim times the partial factor, cut to an integer as the references do. */
int32_t sp_arch_rope_dims(const sp_model_desc *desc);
/** Whether lm_head is the embedding: config.json's key, else the family's default. */
bool sp_arch_is_tied(const sp_arch *arch, const sp_model_desc *desc);
bool sp_arch_has_bias(enum sp_arch_bias which, bool config_says);
/** Writes "model.layers.7.self_attn.q_proj.weight" for pattern, layer and suffix. */
const char *sp_arch_name(char *out, size_t n, const char *pattern, int layer, const char *suffix);
