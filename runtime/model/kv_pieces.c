#include "runtime/model/kv_pieces.h"

typedef struct range {
    int32_t first, end;
} range;

static range meet(range a, int32_t first, int32_t n) {
    return (range){first > a.first ? first : a.first, first + n < a.end ? first + n : a.end};
}

typedef struct list {
    sp_kv_piece *out;
    int32_t n, cap;
} list;

/* The heads of one stage: slices ascend, so a head that is there already came from a lower rank. */
static bool add_stage(list *l, int32_t stage, range layers, range heads,
                      const sp_plan_slice *slices, int32_t tp) {
    for (int32_t i = 0; i < tp && heads.first < heads.end; i++) {
        range r = meet(heads, slices[i].kv_head_first, slices[i].n_kv_heads);
        if (r.first >= r.end) continue;
        if (l->n == l->cap) return false;
        l->out[l->n++] = (sp_kv_piece){.stage = stage,
                                       .tp_rank = i,
                                       .layer_first = layers.first,
                                       .n_layers = layers.end - layers.first,
                                       .head_first = r.first,
                                       .n_heads = r.end - r.first};
        heads.first = r.end;
    }
    return true;
}

sp_status sp_kv_pieces(sp_kv_piece *out, int32_t cap, int32_t *n, const sp_part *mine,
                       const sp_kv_source *from, const sp_model_desc *desc, const sp_arch *arch,
                       sp_err *err) {
    sp_plan_stage stages[SP_PLAN_PP_MAX];
    sp_plan_slice slices[SP_PLAN_TP_MAX];
    SP_TRY(sp_part_stages(stages, desc, arch, from->pp, from->pp_layers, err));
    SP_TRY(sp_part_slices(slices, desc, from->tp, err));
    const range layers = {mine->stage.layer_first, mine->stage.layer_first + mine->stage.n_layers};
    const range heads = {mine->slice.kv_head_first,
                         mine->slice.kv_head_first + mine->slice.n_kv_heads};
    list l = {.out = out, .cap = cap};
    for (int32_t s = 0; s < from->pp; s++) {
        range r = meet(layers, stages[s].layer_first, stages[s].n_layers);
        if (r.first < r.end && !add_stage(&l, s, r, heads, slices, from->tp))
            return SP_FAIL(err, SP_E_LIMIT, "a KV block comes from more than %d ranks", cap);
    }
    *n = l.n;
    return SP_OK;
}
