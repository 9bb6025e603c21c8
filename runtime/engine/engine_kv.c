#include "runtime/engine/engine_kv.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine_core.h"

struct sp_engine_kv {
    sp_moves *moves;
    sp_lends *lends;
    int32_t n_groups;
    sp_seals *seals[SP_ENGINE_GROUPS_MAX];
};

static sp_status make_parts(sp_engine_kv *k, const sp_engine_kv_config *c, sp_err *err) {
    for (; k->n_groups < c->n_groups; k->n_groups++)
        SP_TRY(sp_seals_create(&k->seals[k->n_groups], &c->groups[k->n_groups], err));
    sp_moves_config mc = {.seals = k->seals,
                          .n_groups = c->n_groups,
                          .block_tokens = c->block_tokens,
                          .timeout_ns = c->timeout_ns,
                          .lease_ns = c->lease_ns,
                          .block_bytes = c->block_bytes,
                          .metrics = c->metrics};
    SP_TRY(sp_moves_create(&k->moves, &mc, err));
    sp_lends_config lc = {.seals = k->seals,
                          .n_groups = c->n_groups,
                          .block_tokens = c->block_tokens,
                          .timeout_ns = c->timeout_ns,
                          .lease_ns = c->lease_ns,
                          .desk = c->desk,
                          .metrics = c->metrics};
    return sp_lends_create(&k->lends, &lc, err);
}

sp_status sp_engine_kv_create(sp_engine_kv **out, const sp_engine_kv_config *config, sp_err *err) {
    SP_ASSERT(config->n_groups <= SP_ENGINE_GROUPS_MAX);
    sp_engine_kv *k = sp_alloc(sizeof *k);
    sp_status st = make_parts(k, config, err);
    if (st != SP_OK) {
        sp_engine_kv_destroy(k);
        return st;
    }
    *out = k;
    return SP_OK;
}

void sp_engine_kv_destroy(sp_engine_kv *k) {
    if (!k) return;
    sp_lends_destroy(k->lends);
    sp_moves_destroy(k->moves);
    for (int32_t i = 0; i < k->n_groups; i++) sp_seals_destroy(k->seals[i]);
    sp_free(k);
}

sp_moves *sp_engine_kv_moves(const sp_engine_kv *k) {
    return k->moves;
}
sp_lends *sp_engine_kv_lends(const sp_engine_kv *k) {
    return k->lends;
}

static sp_status take_sealed(sp_engine_kv *k, int32_t group, int link, const sp_frame *f,
                             sp_err *err) {
    bool news;
    SP_TRY(sp_seals_take(k->seals[group], link, f, &news, err));
    if (!news) return SP_OK;
    sp_moves_sealed(k->moves, group);
    sp_lends_sealed(k->lends, group);
    return SP_OK;
}

sp_status sp_engine_kv_take(sp_engine_kv *k, int32_t group, int link, const sp_frame *f,
                            sp_err *err) {
    switch (f->type) {
    case SP_FRAME_KV_SEALED:
        return take_sealed(k, group, link, f, err);
    case SP_FRAME_KV_LEASE:
        return sp_lends_take(k->lends, group, f, err);
    default:
        return sp_moves_take(k->moves, group, link, f, err);
    }
}

sp_status sp_engine_kv_turn(sp_engine_kv *k, int64_t now_ns, int64_t *next_ns, sp_err *err) {
    int64_t lends;
    do { /* while a frame of the one waits for room, something may come for the other */
        SP_TRY(sp_moves_turn(k->moves, now_ns, next_ns, err));
        SP_TRY(sp_lends_turn(k->lends, now_ns, &lends, err));
    } while (sp_moves_has_news(k->moves));
    if (lends < *next_ns) *next_ns = lends;
    return SP_OK;
}

bool sp_engine_kv_relieve(sp_engine_kv *k) {
    bool any = false;
    for (int32_t i = 0; i < k->n_groups; i++)
        if (sp_sched_is_starved(sp_stepper_sched(sp_seals_stepper(k->seals[i]))))
            any |= sp_lends_relieve(k->lends, i);
    return any;
}

bool sp_engine_kv_check(const sp_engine_kv *k) {
    return sp_moves_check(k->moves) && sp_lends_check(k->lends);
}
