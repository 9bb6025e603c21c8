#include "runtime/model/ffn.h"

#include "runtime/model/mat.h"

void sp_ffn(sp_forward *s, const sp_layer_weights *w, const sp_batch *b, const float *bias) {
    const sp_dev_ops *ops = s->dev->ops;
    int32_t T = b->n_tokens, E = s->hidden, F = s->ffn;
    sp_mat x = sp_mat_of(s->x, T, E), normed = sp_mat_of(s->normed, T, E);
    sp_mat partial = sp_mat_of(s->partial, T, E);
    sp_mat gate_up = sp_mat_of(s->gate_up, T, 2 * F), act_out = sp_mat_of(s->act_out, T, F);

    ops->add_rmsnorm(s->dev, normed, x, partial, bias, w->ffn_norm, s->eps);
    ops->gemm(s->dev, gate_up, normed, w->gate_up, w->gate_up_bias);
    ops->act_mul(s->dev, act_out, gate_up, s->act);
    ops->gemm(s->dev, partial, act_out, w->down, NULL);
    sp_tp_sum(s, s->partial, T);
}
