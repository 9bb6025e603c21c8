/* runtime/model/part.h - which part of the model one rank of a super pod holds.
 *
 * Stages: consecutive layers, balanced by weight elements with the embedding counted on the first
 * and the last norm and the head on the last, or as pp_layers says. Slices (tp ranks): query heads,
 * feed-forward columns and vocabulary rows at floor(i * whole / tp), KV heads with their query
 * heads, one each and replicated when there are fewer than ranks.
 *
 * Same bits: those edges are edges of the 8 segments (kernels/args.h) at tp 1, 2, 4 and 8, so each
 * rank holds 8 / tp whole segments of o and down and the all-reduce continues their tree. Another
 * tp that divides the heads works outside the contract: its ranks cut their own columns into 8.
 *
 * Everything comes from the description and the degrees alone, so every rank computes its own.
 * Shapes: letters of kernels/args.h. Thread: plain data. */
#pragma once

#include "runtime/model/arch.h"

#define SP_PLAN_TP_MAX 64
#define SP_PLAN_PP_MAX 128

/** One pipeline stage: layers first..first+n-1; the first embeds, the last has norm and head. */
typedef struct sp_plan_stage {
    int32_t layer_first, n_layers;
    bool has_embed, has_head;
} sp_plan_stage;

/** One tensor-parallel rank's slices, of every layer. */
typedef struct sp_plan_slice {
    int32_t head_first, n_heads;
    int32_t kv_head_first, n_kv_heads;
    int32_t ffn_first, n_ffn;
    int32_t vocab_first, n_vocab;
} sp_plan_slice;

/** What one rank holds: the plan's stage and slice, named. */
typedef struct sp_part {
    int32_t tp, pp, tp_rank, stage_index;
    sp_plan_stage stage;
    sp_plan_slice slice;
    sp_segments o_segments, down_segments; /* of its columns of o and down */
} sp_part;

/** The part of rank (stage, tp_rank), from the description alone: every rank computes its own.
 * pp_layers: [pp] layers of each stage, NULL: balanced.
 * Errors: SP_E_INVALID a degree that does not divide (tp and the heads, tp and the KV heads in
 * either direction), more stages than layers, pp_layers that do not add up: seen and wanted. */
SP_NODISCARD sp_status sp_part_of(sp_part *out, const sp_model_desc *desc, const sp_arch *arch,
                                  int32_t tp, int32_t pp, const int32_t *pp_layers, int32_t stage,
                                  int32_t tp_rank, sp_err *err);

/** All stages [pp] and all slices [tp]. Errors: as sp_part_of(). */
SP_NODISCARD sp_status sp_part_stages(sp_plan_stage *out, const sp_model_desc *desc,
                                      const sp_arch *arch, int32_t pp, const int32_t *pp_layers,
                                      sp_err *err);
SP_NODISCARD sp_status sp_part_slices(sp_plan_slice *out, const sp_model_desc *desc, int32_t tp,
                                      sp_err *err);

/** What sp_part_of() gives as o_segments and down_segments. */
void sp_part_segments(sp_segments *o, sp_segments *down, const sp_model_desc *desc, int32_t tp,
                      int32_t tp_rank);

/** Parses "30,32,32,32". Errors: SP_E_INVALID not pp numbers above 0. */
SP_NODISCARD sp_status sp_pp_layers_parse(const char *text, int32_t pp, int32_t *out, sp_err *err);

/** Whether tp ranks give the same bits as one. */
static inline bool sp_part_is_exact(int32_t tp) {
    return tp == 1 || tp == 2 || tp == 4 || tp == 8;
}
/** Where slice i of n begins: floor(i * whole / n). */
static inline int32_t sp_part_edge(int32_t whole, int32_t n, int32_t i) {
    return (int32_t)((int64_t)i * whole / n);
}
/** Which slice holds element `at` of the whole (0 <= at < whole). */
static inline int32_t sp_part_owner(int32_t whole, int32_t n, int32_t at) {
    return (int32_t)((((int64_t)at + 1) * n - 1) / whole);
}
