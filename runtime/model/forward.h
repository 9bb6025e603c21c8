/* runtime/model/forward.h - one pipeline stage: weights, scratch, KV memory, and a step through it.
 *
 * Everything is taken at open by the sizes of the configuration and never grows; a step allocates
 * nothing. The same tokens give the same bytes whatever else is in the batch (kernels: same
 * bits), so callers may cut and mix steps as they like.
 *
 * Source: Llama: Touvron et al. 2023; paged attention: Kwon et al., SOSP 2023.
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/model/batch.h"
#include "runtime/model/weights.h"

typedef struct sp_forward_config {
    int32_t max_tokens; /* T at most in one step */
    int32_t max_rows;   /* logits rows at most in one step */
    int32_t max_model_len;
    int32_t block_tokens, n_blocks;
    sp_dtype kv_dtype;
} sp_forward_config;

typedef struct sp_forward {
    sp_dev *dev;
    sp_weights weights;
    sp_forward_config config;
    /* of the model */
    int32_t hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, n_layers;
    float eps, scale;
    sp_act act;
    sp_rope_table rope;
    /* KV memory of every layer here */
    unsigned char *kv;
    size_t kv_bytes, block_bytes, layer_bytes;
    /* scratch, f32, rows = max_tokens unless said */
    float *x, *normed, *qkv, *attn, *gate_up, *act_out, *partial; /* E E QKV HD 2F F E */
    float *last, *logits;                                         /* [max_rows, E], [max_rows, V] */
} sp_forward;

/** Loads the model and takes all memory. `dev` is borrowed until close.
 * Errors: as sp_weights_load(); SP_E_NOMEM names what was short. */
SP_NODISCARD sp_status sp_forward_open(sp_forward **out, sp_dev *dev, const sp_model_dir *dir,
                                       const sp_model_desc *desc, const sp_arch *arch,
                                       const sp_forward_config *config, sp_load_progress *progress,
                                       void *ctx, sp_err *err);
void sp_forward_close(sp_forward *s);

/** Runs one step. `*logits` [n_rows, V] is valid until the next step; NULL when no row is wanted.
 * Errors: SP_E_DEVICE or what the device reports. */
SP_NODISCARD sp_status sp_forward_run(sp_forward *s, const sp_batch *b, const float **logits,
                                      sp_err *err);
