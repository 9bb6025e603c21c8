#include "runtime/model/part.h"

#include "runtime/base/str.h"

#include <stdio.h>

/* ---- stages ---- */

typedef struct loads {
    uint64_t layer, first, last; /* elements of one layer, and of what the two ends hold besides */
} loads;

static loads loads_of(const sp_model_desc *d, const sp_arch *a) {
    uint64_t E = (uint64_t)d->hidden, F = (uint64_t)d->intermediate, V = (uint64_t)d->vocab;
    uint64_t Q = (uint64_t)d->n_heads * (uint64_t)d->head_dim;
    uint64_t KV = (uint64_t)d->n_kv_heads * (uint64_t)d->head_dim;
    uint64_t layer = E * (Q + 2 * KV) + E * Q + 3 * E * F + 2 * E;
    if (sp_arch_has_bias(a->qkv_bias, d->attention_bias)) layer += Q + 2 * KV;
    if (sp_arch_has_bias(a->o_bias, d->attention_bias)) layer += E;
    if (sp_arch_has_bias(a->mlp_bias, d->mlp_bias)) layer += 2 * F + E;
    /* A tied embedding lies on both ends as soon as they are two. */
    return (loads){layer, V * E, V * E + E};
}

/* Layers are alike, so giving each to the stage with the least load makes the greatest least. */
static void balance(int32_t *layers, int32_t pp, int32_t n_layers, loads w) {
    uint64_t load[SP_PLAN_PP_MAX];
    for (int32_t i = 0; i < pp; i++) {
        layers[i] = 1;
        load[i] = w.layer + (i == 0 ? w.first : 0) + (i == pp - 1 ? w.last : 0);
    }
    for (int32_t given = pp; given < n_layers; given++) {
        int32_t least = 0;
        for (int32_t i = 1; i < pp; i++)
            if (load[i] < load[least]) least = i;
        layers[least]++;
        load[least] += w.layer;
    }
}

static sp_status check_pp(const sp_model_desc *d, int32_t pp, const int32_t *pp_layers,
                          sp_err *err) {
    const int32_t max = d->n_layers < SP_PLAN_PP_MAX ? d->n_layers : SP_PLAN_PP_MAX;
    if (pp < 1 || pp > max)
        return SP_FAIL(err, SP_E_INVALID,
                       "--pipeline-parallel-size is %d, want 1 to %d: the model has %d layers", pp,
                       max, d->n_layers);
    int64_t sum = 0;
    for (int32_t i = 0; pp_layers && i < pp; i++) {
        if (pp_layers[i] < 1)
            return SP_FAIL(err, SP_E_INVALID,
                           "--pp-layers gives stage %d %d layers, want 1 or more", i, pp_layers[i]);
        sum += pp_layers[i];
    }
    if (pp_layers && sum != d->n_layers)
        return SP_FAIL(err, SP_E_INVALID, "--pp-layers add up to %lld layers, the model has %d",
                       (long long)sum, d->n_layers);
    return SP_OK;
}

sp_status sp_part_stages(sp_plan_stage *out, const sp_model_desc *desc, const sp_arch *arch,
                         int32_t pp, const int32_t *pp_layers, sp_err *err) {
    SP_TRY(check_pp(desc, pp, pp_layers, err));
    int32_t balanced[SP_PLAN_PP_MAX], first = 0;
    if (!pp_layers) balance(balanced, pp, desc->n_layers, loads_of(desc, arch));
    for (int32_t i = 0; i < pp; i++) {
        const int32_t n = pp_layers ? pp_layers[i] : balanced[i];
        out[i] = (sp_plan_stage){first, n, i == 0, i == pp - 1};
        first += n;
    }
    return SP_OK;
}

sp_status sp_pp_layers_parse(const char *text, int32_t pp, int32_t *out, sp_err *err) {
    SP_ASSERT(pp >= 1 && pp <= SP_PLAN_PP_MAX);
    int32_t layers[SP_PLAN_PP_MAX], n = 0;
    for (const char *p = text; p; n++) {
        const char *comma = strchr(p, ',');
        const sp_slice word = {p, comma ? (size_t)(comma - p) : strlen(p)};
        int64_t v;
        if (n == pp || sp_parse_i64(word, &v) != SP_OK || v < 1 || v > INT32_MAX) {
            n = -1;
            break;
        }
        layers[n] = (int32_t)v;
        p = comma ? comma + 1 : NULL;
    }
    if (n != pp)
        return SP_FAIL(err, SP_E_INVALID,
                       "--pp-layers is '%.60s', want %d numbers above 0 with commas between: one "
                       "for each of --pipeline-parallel-size %d",
                       text ? text : "", pp, pp);
    memcpy(out, layers, (size_t)pp * sizeof *out);
    return SP_OK;
}

/* ---- slices ---- */

static bool kv_heads_divide(const sp_model_desc *d, int32_t tp) {
    return d->n_kv_heads % tp == 0 || tp % d->n_kv_heads == 0;
}

static bool tp_works(const sp_model_desc *d, int32_t tp) {
    return d->n_heads % tp == 0 && kv_heads_divide(d, tp) && tp <= d->intermediate &&
           tp <= d->vocab;
}

/* "1, 2, 7" */
static void list_degrees(char *out, size_t n, const sp_model_desc *d) {
    size_t len = 0;
    out[0] = 0;
    for (int32_t tp = 1; tp <= SP_PLAN_TP_MAX && len + 8 < n; tp++)
        if (tp_works(d, tp))
            len += (size_t)snprintf(out + len, n - len, "%s%d", len ? ", " : "", tp);
}

static sp_status check_tp(const sp_model_desc *d, int32_t tp, sp_err *err) {
    char list[100];
    list_degrees(list, sizeof list, d);
    if (tp < 1 || tp > SP_PLAN_TP_MAX)
        return SP_FAIL(err, SP_E_INVALID,
                       "--tensor-parallel-size is %d, want 1 to %d; this model works with %s", tp,
                       SP_PLAN_TP_MAX, list);
    if (d->n_heads % tp)
        return SP_FAIL(err, SP_E_INVALID,
                       "--tensor-parallel-size %d does not divide the %d attention heads; this "
                       "model works with %s",
                       tp, d->n_heads, list);
    if (!kv_heads_divide(d, tp))
        return SP_FAIL(
            err, SP_E_INVALID,
            "--tensor-parallel-size %d neither divides the %d KV heads nor is a multiple "
            "of them; this model works with %s",
            tp, d->n_kv_heads, list);
    if (!tp_works(d, tp))
        return SP_FAIL(err, SP_E_INVALID,
                       "--tensor-parallel-size is %d, feed-forward %d and vocabulary %d leave a "
                       "rank with nothing; this model works with %s",
                       tp, d->intermediate, d->vocab, list);
    return SP_OK;
}

static sp_plan_slice slice_of(const sp_model_desc *d, int32_t tp, int32_t i) {
    const int32_t K = d->n_kv_heads;
    sp_plan_slice s = {
        .head_first = sp_part_edge(d->n_heads, tp, i),
        .n_heads = d->n_heads / tp,
        .kv_head_first = sp_part_edge(K, tp, i),
        .n_kv_heads = K % tp == 0 ? K / tp : 1,
        .ffn_first = sp_part_edge(d->intermediate, tp, i),
        .vocab_first = sp_part_edge(d->vocab, tp, i),
    };
    s.n_ffn = sp_part_edge(d->intermediate, tp, i + 1) - s.ffn_first;
    s.n_vocab = sp_part_edge(d->vocab, tp, i + 1) - s.vocab_first;
    return s;
}

sp_status sp_part_slices(sp_plan_slice *out, const sp_model_desc *desc, int32_t tp, sp_err *err) {
    SP_TRY(check_tp(desc, tp, err));
    for (int32_t i = 0; i < tp; i++) out[i] = slice_of(desc, tp, i);
    return SP_OK;
}

/* `units` of the whole, `here` of them on this rank from `first` on. */
static sp_segments segments_of(int32_t tp, int32_t tp_rank, int32_t units, int32_t unit_size,
                               int32_t first, int32_t here) {
    if (!sp_part_is_exact(tp)) return sp_segments_of(here, unit_size);
    int32_t at;
    sp_segments s = sp_segments_slice(sp_segments_of(units, unit_size), tp, tp_rank, &at);
    SP_ASSERT(at == first * unit_size && s.edge[s.n] == here * unit_size);
    return s;
}

void sp_part_segments(sp_segments *o, sp_segments *down, const sp_model_desc *desc, int32_t tp,
                      int32_t tp_rank) {
    const sp_plan_slice s = slice_of(desc, tp, tp_rank);
    *o = segments_of(tp, tp_rank, desc->n_heads, desc->head_dim, s.head_first, s.n_heads);
    *down = segments_of(tp, tp_rank, desc->intermediate, 1, s.ffn_first, s.n_ffn);
}

sp_status sp_part_of(sp_part *out, const sp_model_desc *desc, const sp_arch *arch, int32_t tp,
                     int32_t pp, const int32_t *pp_layers, int32_t stage, int32_t tp_rank,
                     sp_err *err) {
    sp_plan_stage stages[SP_PLAN_PP_MAX];
    SP_TRY(check_tp(desc, tp, err));
    SP_TRY(sp_part_stages(stages, desc, arch, pp, pp_layers, err));
    if (stage < 0 || stage >= pp || tp_rank < 0 || tp_rank >= tp)
        return SP_FAIL(err, SP_E_INVALID, "rank %d of stage %d, want below %d and %d", tp_rank,
                       stage, tp, pp);
    sp_part p = {
        .tp = tp,
        .pp = pp,
        .tp_rank = tp_rank,
        .stage_index = stage,
        .stage = stages[stage],
        .slice = slice_of(desc, tp, tp_rank),
    };
    sp_part_segments(&p.o_segments, &p.down_segments, desc, tp, tp_rank);
    *out = p;
    return SP_OK;
}
