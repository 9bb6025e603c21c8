/* runtime/model/attn.h - the attention half of a layer.
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/model/forward.h"

/** partial = o_proj(attention(norm(x + partial + bias))): the residual that came in with `partial`
 * (NULL data: none) and `bias` is added to x first. The result, summed over the TP group, is in
 * s->partial, to be added to x by whoever comes next. */
void sp_attn(sp_forward *s, const sp_layer_weights *w, int layer, const sp_batch *b, sp_mat partial,
             const float *bias);
