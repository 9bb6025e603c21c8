/* runtime/model/forward.h - one pipeline stage: weights, scratch, KV memory, and a step through it.
 *
 * A rank of a super pod runs its part: the first stage embeds, the others receive x from the stage
 * before; every stage sends x on; the o and down products are partial sums that the TP group's
 * all-reduce completes; the last stage's TP rank 0 gathers whole rows of logits.
 *
 * Everything is taken at open by the sizes of the configuration and never grows; a step allocates
 * nothing. The same tokens give the same bytes whatever else is in the batch (kernels: same
 * bits), so callers may cut and mix steps as they like.
 *
 * Source: Llama: Touvron et al. 2023; paged attention: Kwon et al., SOSP 2023.
 * Thread: the rank's engine thread. */
#pragma once

#include "comm/group.h"
#include "runtime/model/batch.h"
#include "runtime/model/weights.h"

typedef struct sp_forward_config {
    int32_t max_tokens; /* T at most in one step */
    int32_t max_rows;   /* logits rows at most in one step */
    int32_t max_model_len;
    int32_t block_tokens, n_blocks;
    sp_dtype kv_dtype;
    int32_t n_slots; /* sequences whose last drawn token may stay on the device; 0: none */
    sp_part part;
    sp_group *tp; /* borrowed; this stage's ranks, member tp_rank; NULL: alone */
    sp_group *pp; /* borrowed; this tp_rank's stages, member stage_index; NULL: alone */
    /* Borrowed until close, 64-byte aligned: n_blocks blocks of sp_kv_layout_of(), of host memory
     * that others may read meanwhile (comm/kvx.h). NULL: the device's own, as it must be where its
     * memory is not the host's (runtime/engine/kv_mirror.h). */
    void *kv_memory;
    size_t kv_memory_bytes;
} sp_forward_config;

typedef struct sp_forward {
    sp_dev *dev;
    sp_weights weights;
    sp_forward_config config;
    /* of the model; heads, kv heads, ffn and layers are those here, n_vocab the rows here */
    int32_t hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, n_vocab, n_layers;
    float eps, scale;
    sp_act act;
    sp_rope_table rope;
    /* KV memory of every layer here */
    unsigned char *kv;
    size_t kv_bytes, block_bytes, layer_bytes;
    /* scratch, f32, rows = max_tokens unless said */
    float *x, *normed, *qkv, *attn, *gate_up, *act_out, *partial; /* E E QKV HD 2F F E */
    float *last;        /* [2 * max_rows, E]; last stage */
    float *logits;      /* [max_rows, whole V]; last stage's TP rank 0 */
    float *logits_part; /* [max_rows, V here]; last stage when tp > 1 */
    float *logits_host; /* `logits` as the host reads them, where the device's memory is its own */
    int32_t *ids;       /* [2, T]: row here and owner of each id; first stage when tp > 1 */
    struct sp_forward_ahead *ahead; /* forward_ahead.h; NULL: the host draws every token */
} sp_forward;

/** Loads the part and takes all memory. `dev`, and the groups of `config`, are borrowed until
 * close; a group may be NULL where its degree is 1.
 *
 * What its groups carry: tp: all_reduce and pick_rows of max_tokens * E floats, gather_cols of
 * max_rows * (V / tp + 1); pp: messages of max_tokens * E * 4 bytes to stage + 1.
 * Errors: as sp_weights_load(); SP_E_NOMEM names what was short: where the device's memory is its
 *         own, before anything is taken. */
SP_NODISCARD sp_status sp_forward_open(sp_forward **out, sp_dev *dev, const sp_model_dir *dir,
                                       const sp_model_desc *desc, const sp_arch *arch,
                                       const sp_forward_config *config, sp_load_progress *progress,
                                       void *ctx, sp_err *err);
void sp_forward_close(sp_forward *s);

/** Runs one step: every rank of the pod is given the same batch (ids only matter on the first
 * stage). `*logits` [n_rows, whole V] is valid until the next step; NULL when no row is wanted, and
 * on every rank but TP rank 0 of the last stage.
 * Errors: SP_E_DEVICE or what the device reports; SP_E_PEER_LOST, SP_E_CANCELED of a group. The
 *         step has then not been passed on: the caller ends (or aborts its groups), so that those
 *         who wait for it give up. */
SP_NODISCARD sp_status sp_forward_run(sp_forward *s, const sp_batch *b, const float **logits,
                                      sp_err *err);

/** Queues a step up to the logits (`s->logits`, where they are) and waits for nothing that a device
 * does: what sp_forward_run() and sp_forward_submit() have in common.
 * Errors: those of groups that give x to this stage or take it on. */
SP_NODISCARD sp_status sp_forward_queue(sp_forward *s, const sp_batch *b, sp_err *err);

/** buf [n_rows, E] becomes the tree sum over the stage's TP ranks; nothing when alone. */
static inline void sp_tp_sum(const sp_forward *s, float *buf, int32_t n_rows) {
    if (s->config.part.tp > 1)
        s->config.tp->ops->all_reduce(s->config.tp, buf, (size_t)n_rows * (size_t)s->hidden);
}
