/* runtime/model/weights.h - the weights of one rank's part, packed for one device.
 *
 * Only the part's layers, rows and columns are read: a column slice (o, down) is a strided view of
 * the mapped file.
 *
 * Tensors are looked up by the family's row (arch.h) with the exact shape that the description
 * wants; matrices that are multiplied by the same input are packed as one (q|k|v, gate|up). Vectors
 * (norms, biases) become f32. A matrix that is only looked up (an embedding that is not tied) is
 * packed too: the mapped file may then be dropped.
 *
 * Shapes: letters of kernels/args.h. Thread: the rank's engine thread. */
#pragma once

#include "kernels/dev.h"
#include "runtime/format/model_dir.h"
#include "runtime/model/plan.h"

/* H, K, F and V are the part's. */
typedef struct sp_layer_weights {
    float *attn_norm;    /* [E] */
    sp_weight *qkv;      /* [(H + 2K) * D, E] */
    float *qkv_bias;     /* [(H + 2K) * D] or NULL */
    sp_weight *o;        /* [E, H * D], segments by head */
    float *o_bias;       /* [E] or NULL */
    float *ffn_norm;     /* [E] */
    sp_weight *gate_up;  /* [2F, E] */
    float *gate_up_bias; /* [2F] or NULL */
    sp_weight *down;     /* [E, F] */
    float *down_bias;    /* [E] or NULL */
} sp_layer_weights;

typedef struct sp_weights {
    sp_dev *dev;
    sp_weight *embed;  /* [V, E]; NULL but on the first stage (and a tied last one) */
    sp_weight *head;   /* [V, E]; the same as embed when tied; NULL but on the last stage */
    float *final_norm; /* [E]; on the last stage */
    sp_layer_weights *layers;
    int32_t n_layers, hidden, qkv_rows, ffn; /* sizes of the vectors, for freeing */
} sp_weights;

/** Proves that every tensor `desc` asks for is there with its type and shape; loads nothing.
 * Errors: SP_E_NOTFOUND, SP_E_FORMAT, SP_E_UNSUPPORTED, as sp_weights_load(). */
SP_NODISCARD sp_status sp_weights_check(const sp_model_dir *dir, const sp_model_desc *desc,
                                        const sp_arch *arch, sp_err *err);

/** Told after each tensor: bytes read so far, bytes in all, of the part. */
typedef void sp_load_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/** Reads, checks and packs the part of everything `desc` asks for.
 * Owner:  caller, sp_weights_unload().
 * Errors: SP_E_NOTFOUND, SP_E_FORMAT (tensor, shape seen, shape wanted), SP_E_UNSUPPORTED (dtype),
 *         SP_E_NOMEM; nothing stays allocated. */
SP_NODISCARD sp_status sp_weights_load(sp_weights *out, sp_dev *dev, const sp_model_dir *dir,
                                       const sp_model_desc *desc, const sp_arch *arch,
                                       const sp_part *part, sp_load_progress *progress, void *ctx,
                                       sp_err *err);
void sp_weights_unload(sp_weights *w);
