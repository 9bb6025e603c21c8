/* runtime/model/kv_pieces.h - which ranks of another group hold what one rank needs of a block.
 *
 * A block of a rank holds layers x KV heads of the model. The other group cuts both at other places,
 * so what one rank needs lies in rectangles on some of the other's ranks. KV heads that several of
 * them hold (more ranks than KV heads) are taken from the lowest. All follows from the degrees.
 *
 * Thread: plain data. */
#pragma once

#include "runtime/model/part.h"

/** Layers and KV heads of the model that rank (stage, tp_rank) of the other group gives. */
typedef struct sp_kv_piece {
    int32_t stage, tp_rank;
    int32_t layer_first, n_layers;
    int32_t head_first, n_heads;
} sp_kv_piece;

/** At most this many: each of the other's stages, and each of its ranks of one. */
#define SP_KV_PIECES_MAX (SP_PLAN_PP_MAX * SP_PLAN_TP_MAX)

/** How another group is cut. */
typedef struct sp_kv_source {
    int32_t tp, pp;
    const int32_t *pp_layers; /* [pp], NULL: balanced */
} sp_kv_source;

/** Writes the `*n` pieces (at most `cap`) that make a block of `mine`: they do not overlap and leave
 * nothing out. By ascending stage, then rank.
 * Errors: as sp_part_of() for the other group's degrees; SP_E_LIMIT `cap` is too small. */
SP_NODISCARD sp_status sp_kv_pieces(sp_kv_piece *out, int32_t cap, int32_t *n, const sp_part *mine,
                                    const sp_kv_source *from, const sp_model_desc *desc,
                                    const sp_arch *arch, sp_err *err);
