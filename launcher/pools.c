#include "launcher/pools.h"

#include "launcher/words.h"
#include "runtime/base/str.h"
#include "runtime/model/part.h"

#include <stdio.h>
#include <string.h>

#define DEGREE_MAX 64

static sp_status bad(const char *pool, sp_slice key, const char *want, sp_slice got, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "pool '%.60s': %.*s: want %s, got '%.*s'", pool, (int)key.len,
                   key.ptr, want, (int)(got.len < 40 ? got.len : 40), got.ptr);
}

static sp_status take_role(sp_pool_spec *p, const char *pool, sp_slice v, sp_err *err) {
    static const sp_pool_role roles[] = {SP_POOL_MIXED, SP_POOL_PREFILL, SP_POOL_DECODE};
    for (size_t i = 0; i < SP_LEN(roles); i++)
        if (sp_slice_is(v, sp_pool_role_name(roles[i]))) {
            p->role = roles[i];
            return SP_OK;
        }
    return bad(pool, SP_SLICE("role"), "mixed, prefill or decode", v, err);
}

static sp_status take_number(int32_t *out, const char *pool, sp_slice key, sp_slice v,
                             sp_err *err) {
    int64_t n;
    if (sp_parse_i64(v, &n) != SP_OK || n < 1 || n > DEGREE_MAX)
        return bad(pool, key, "1 to 64", v, err);
    *out = (int32_t)n;
    return SP_OK;
}

static sp_status take_text(char *out, size_t size, const char *pool, sp_slice key, sp_slice v,
                           sp_err *err) {
    if (v.len == 0 || v.len >= size) return bad(pool, key, "a short text", v, err);
    memcpy(out, v.ptr, v.len);
    out[v.len] = 0;
    return SP_OK;
}

static sp_status take_pair(sp_pool_spec *p, const char *pool, sp_slice key, sp_slice v,
                           sp_err *err) {
    if (sp_slice_is(key, "name")) return take_text(p->name, sizeof p->name, pool, key, v, err);
    if (sp_slice_is(key, "role")) return take_role(p, pool, v, err);
    if (sp_slice_is(key, "replicas")) return take_number(&p->replicas, pool, key, v, err);
    if (sp_slice_is(key, "tp")) return take_number(&p->tp, pool, key, v, err);
    if (sp_slice_is(key, "pp")) return take_number(&p->pp, pool, key, v, err);
    if (sp_slice_is(key, "pp_layers"))
        return take_text(p->pp_layers, sizeof p->pp_layers, pool, key, v, err);
    return SP_FAIL(
        err, SP_E_INVALID,
        "pool '%.60s': unknown key '%.*s'; known: name, role, replicas, tp, pp, pp_layers", pool,
        (int)(key.len < 40 ? key.len : 40), key.ptr);
}

/* "name=a,role=decode,tp=2"; pp_layers are joined by '/' here, since ',' ends a pair. */
static sp_status parse(sp_pool_spec *out, const char *text, const sp_config *c, sp_err *err) {
    /* `plan` has 0 where nobody said a degree; `serve` would take 1. */
    sp_pool_spec p = {.role = SP_POOL_MIXED,
                      .replicas = 1,
                      .tp = c->tp ? (int32_t)c->tp : 1,
                      .pp = c->pp ? (int32_t)c->pp : 1};
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, ",");
        const char *eq = memchr(at, '=', n);
        if (!eq)
            return SP_FAIL(err, SP_E_INVALID, "pool '%.60s': want key=value, got '%.*s'", text,
                           (int)(n < 40 ? n : 40), at);
        sp_slice key = {at, (size_t)(eq - at)}, value = {eq + 1, n - (size_t)(eq - at) - 1};
        SP_TRY(take_pair(&p, text, key, value, err));
        at += n + (at[n] == ',');
    }
    for (char *at = p.pp_layers; *at; at++)
        if (*at == '/') *at = ',';
    if (!p.name[0]) snprintf(p.name, sizeof p.name, "%s", sp_pool_role_name(p.role));
    *out = p;
    return SP_OK;
}

static sp_status check(const sp_pools *p, sp_err *err) {
    bool decodes = false;
    for (int32_t i = 0; i < p->n; i++) {
        decodes = decodes || p->at[i].role != SP_POOL_PREFILL;
        for (int32_t k = 0; k < i; k++)
            if (strcmp(p->at[i].name, p->at[k].name) == 0)
                return SP_FAIL(err, SP_E_INVALID, "two pools are called '%s'", p->at[i].name);
    }
    if (!decodes)
        return SP_FAIL(
            err, SP_E_INVALID,
            "no pool decodes: want at least one of role decode or mixed, got %d of role prefill",
            (int)p->n);
    if (!p->given) return SP_OK; /* one group: its parts say what they can hold */
    if (sp_pools_groups(p) > SP_GROUPS_MAX || sp_pools_ranks(p) > SP_POD_RANKS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d groups of %d ranks in all, at most %d and %d",
                       (int)sp_pools_groups(p), (int)sp_pools_ranks(p), SP_GROUPS_MAX,
                       SP_POD_RANKS_MAX);
    return SP_OK;
}

sp_status sp_pools_of(sp_pools *out, const sp_config *c, sp_err *err) {
    int given = c->command & (SP_CMD_SERVE | SP_CMD_PLAN) ? c->pool.n : 0;
    sp_pools p = {.n = given ? given : 1, .given = given > 0};
    if (p.n > SP_POOLS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d pools, at most %d", (int)p.n, SP_POOLS_MAX);
    for (int32_t i = 0; i < given; i++) SP_TRY(parse(&p.at[i], c->pool.at[i], c, err));
    if (given == 0) {
        p.at[0] = (sp_pool_spec){.name = "default",
                                 .role = SP_POOL_MIXED,
                                 .replicas = 1,
                                 .tp = (int32_t)c->tp,
                                 .pp = (int32_t)c->pp};
        if (c->pp_layers)
            SP_TRY(take_text(p.at[0].pp_layers, sizeof p.at[0].pp_layers, "default",
                             SP_SLICE("pp_layers"), sp_slice_of(c->pp_layers), err));
    }
    SP_TRY(check(&p, err));
    *out = p;
    return SP_OK;
}

int32_t sp_pools_groups(const sp_pools *p) {
    int32_t n = 0;
    for (int32_t i = 0; i < p->n; i++) n += p->at[i].replicas;
    return n;
}

int32_t sp_pools_ranks(const sp_pools *p) {
    int32_t n = 0;
    for (int32_t i = 0; i < p->n; i++) n += p->at[i].replicas * p->at[i].tp * p->at[i].pp;
    return n;
}

const sp_pool_spec *sp_pools_group(const sp_pools *p, int32_t group, int32_t *first_rank) {
    int32_t rank = 0;
    for (int32_t i = 0; i < p->n; i++) {
        const sp_pool_spec *s = &p->at[i];
        if (group < s->replicas) {
            *first_rank = rank + group * s->tp * s->pp;
            return s;
        }
        group -= s->replicas;
        rank += s->replicas * s->tp * s->pp;
    }
    SP_ASSERT(!"no such group");
    return NULL;
}

int32_t sp_pools_group_of(const sp_pools *p, int32_t rank) {
    int32_t group = 0;
    for (int32_t i = 0; i < p->n; i++) {
        int32_t each = p->at[i].tp * p->at[i].pp, all = each * p->at[i].replicas;
        if (rank < all) return group + rank / each;
        rank -= all;
        group += p->at[i].replicas;
    }
    SP_ASSERT(!"no such rank");
    return -1;
}

sp_pools_place sp_pools_place_of(const sp_pools *p, int32_t rank) {
    sp_pools_place at = {.group = sp_pools_group_of(p, rank)};
    const sp_pool_spec *s = sp_pools_group(p, at.group, &at.first);
    at.pool = (int32_t)(s - p->at);
    at.stage = (rank - at.first) / s->tp;
    at.tp_rank = (rank - at.first) % s->tp;
    return at;
}

sp_status sp_pools_check_bits(const sp_pools *p, sp_err *err) {
    for (int32_t i = 0; i < p->n; i++) {
        const sp_pool_spec *a = &p->at[i];
        if (sp_part_is_exact(a->tp)) continue;
        for (int32_t k = 0; k < p->n; k++)
            if (p->at[k].tp != a->tp)
                return SP_FAIL(
                    err, SP_E_INVALID,
                    "pool '%s': tp %d does not give the bits of tp %d of pool '%s': want "
                    "the same tp in all pools, or 1, 2, 4 or 8 in each",
                    a->name, (int)a->tp, (int)p->at[k].tp, p->at[k].name);
    }
    return SP_OK;
}

/* The pool whose loss of a group, a half of its tp or a stage brings the sum down the most; -1: none
 * can give that. */
typedef enum give {
    GIVE_GROUP,
    GIVE_TP,
    GIVE_STAGE,
    N_GIVES
} give;
static int32_t ranks_after(const sp_pool_spec *s, give what) {
    int32_t r = s->replicas - (what == GIVE_GROUP), tp = what == GIVE_TP ? s->tp / 2 : s->tp;
    return r * tp * (s->pp - (what == GIVE_STAGE));
}
static int32_t most_to_give(const sp_pools *p, give what) {
    int32_t best = -1, most = 0;
    for (int32_t i = 0; i < p->n; i++) {
        const sp_pool_spec *s = &p->at[i];
        int32_t after = ranks_after(s, what), now = s->replicas * s->tp * s->pp;
        if (after == 0 || now - after <= most) continue;
        most = now - after;
        best = i;
    }
    return best;
}

bool sp_pools_shrink(sp_pools *p) {
    for (give what = 0; what < N_GIVES; what++) {
        int32_t i = most_to_give(p, what);
        if (i < 0) continue;
        sp_pool_spec *s = &p->at[i];
        s->replicas -= what == GIVE_GROUP;
        if (what == GIVE_TP) s->tp /= 2;
        s->pp -= what == GIVE_STAGE;
        s->pp_layers[0] = what == GIVE_STAGE ? 0 : s->pp_layers[0];
        return true;
    }
    return false;
}

void sp_pools_text(const sp_pools *p, char out[SP_POOLS_TEXT]) {
    size_t at = 0;
    out[0] = 0;
    for (int32_t i = 0; i < p->n && at + 1 < SP_POOLS_TEXT; i++) {
        const sp_pool_spec *s = &p->at[i];
        size_t left = SP_POOLS_TEXT - at;
        int n = !p->given ? snprintf(out + at, left, "tp %d x pp %d", s->tp, s->pp)
                          : snprintf(out + at, left, "%s%s: %d of tp %d x pp %d", i ? ", " : "",
                                     s->name, s->replicas, s->tp, s->pp);
        at += n < 0 ? 0 : (size_t)n;
    }
}
