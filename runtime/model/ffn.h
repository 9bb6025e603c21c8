/* runtime/model/ffn.h - the feed-forward half of a layer.
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/model/forward.h"

/** partial = down(act(gate(n)) * up(n)), n = norm(x + partial + bias); see sp_attn(). */
void sp_ffn(sp_forward *s, const sp_layer_weights *w, const sp_batch *b, const float *bias);
