#include "runtime/model/attn.h"

#include "runtime/model/mat.h"

static sp_kv_view layer_kv(const sp_forward *s, int layer) {
    return (sp_kv_view){
        .base = s->kv,
        .block_bytes = s->block_bytes,
        .layer_offset = (size_t)layer * s->layer_bytes,
        .block_tokens = s->config.block_tokens,
        .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim,
        .dtype = s->config.kv_dtype,
    };
}

void sp_attn(sp_forward *s, const sp_layer_weights *w, int layer, const sp_batch *b, sp_mat partial,
             const float *bias) {
    const sp_dev_ops *ops = s->dev->ops;
    int32_t T = b->n_tokens, E = s->hidden, HD = s->n_heads * s->head_dim;
    sp_mat x = sp_mat_of(s->x, T, E), normed = sp_mat_of(s->normed, T, E);
    sp_mat qkv = sp_mat_of(s->qkv, T, HD + 2 * s->n_kv_heads * s->head_dim);
    sp_mat out = sp_mat_of(s->attn, T, HD);
    sp_kv_view kv = layer_kv(s, layer);

    ops->add_rmsnorm(s->dev, normed, x, partial, bias, w->attn_norm, s->eps);
    ops->gemm(s->dev, qkv, normed, w->qkv, w->qkv_bias);
    ops->rope_store(s->dev, &(sp_rope_store_args){.qkv = qkv,
                                                  .n_heads = s->n_heads,
                                                  .rope = s->rope,
                                                  .kv = kv,
                                                  .seqs = b->seqs,
                                                  .n_seqs = b->n_seqs});
    ops->attend(s->dev, &(sp_attn_args){.out = out,
                                        .qkv = qkv,
                                        .n_heads = s->n_heads,
                                        .scale = s->scale,
                                        .kv = kv,
                                        .seqs = b->seqs,
                                        .n_seqs = b->n_seqs});
    ops->gemm(s->dev, sp_mat_of(s->partial, T, E), out, w->o, NULL);
    sp_tp_sum(s, s->partial, T);
}
