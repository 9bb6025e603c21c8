/* runtime/format/model_desc.h - config.json and generation_config.json as one plain struct.
 *
 * As published and as transformers 5 writes them (rope_parameters, dtype). What family means what
 * is runtime/model/arch.h's business: this file reads keys, checks ranges, and keeps the words. So
 * a key that is absent stays 0 or "" here (families name their sizes differently), and arch.h
 * refuses what its family cannot do without.
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/json.h"

#include <stdint.h>

#define SP_EOS_MAX 16

typedef enum sp_rope_type {
    SP_ROPE_DEFAULT,
    SP_ROPE_LINEAR,
    SP_ROPE_LLAMA3,
    SP_ROPE_DYNAMIC, /* read; arch.h refuses what it cannot compute, by name */
    SP_ROPE_YARN,
    SP_ROPE_LONGROPE,
    SP_ROPE_OTHER, /* type_name says which */
} sp_rope_type;

typedef struct sp_rope_desc {
    sp_rope_type type;
    double theta;
    double factor, low_freq_factor, high_freq_factor;
    int32_t original_max_positions;
    double partial_rotary_factor; /* 1: all of the head */
    char type_name[32];           /* as written, "default" when absent */
    bool by_layer_type; /* one set of parameters a layer type; full attention's are read */
} sp_rope_desc;

typedef struct sp_model_desc {
    char architecture[64]; /* architectures[0] */
    char model_type[32];
    int32_t hidden, n_layers, intermediate, vocab;
    int32_t n_heads, n_kv_heads, head_dim;
    int32_t max_positions;
    char act[32]; /* "silu", "gelu", … */
    double norm_eps;
    sp_rope_desc rope;
    bool attention_bias, mlp_bias;
    bool tie_embeddings;
    bool has_tie_key;       /* the family's default applies when not */
    int32_t sliding_window; /* 0: none in effect */
    char layer_type[32];    /* of layer_types: the first that is no full attention; "" */
    sp_dtype dtype;         /* torch_dtype / dtype; F32 when absent */
    int32_t bos_id;         /* -1: none */
    int32_t n_eos;          /* union of both files, config.json's first id is the primary */
    int32_t eos[SP_EOS_MAX];
    int32_t pad_id;        /* -1: none */
    char quant_method[32]; /* "" when not quantised */

    /* generation_config.json: defaults of a server; NAN or -1 when the file does not say. */
    double gen_temperature, gen_top_p, gen_min_p, gen_repetition_penalty;
    int32_t gen_top_k, gen_max_new_tokens;
} sp_model_desc;

/** Reads DIR/config.json and, when there, DIR/generation_config.json and hf_quant_config.json.
 * Errors: SP_E_NOTFOUND, SP_E_FORMAT, SP_E_INVALID: file, key, value seen, value wanted. */
SP_NODISCARD sp_status sp_model_desc_load(sp_model_desc *out, const char *dir, sp_err *err);
