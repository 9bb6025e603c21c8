#include "launcher/pools_set.h"

#include "launcher/pools.h"

#include <string.h>

#define N_ROLES 3
static const sp_pool_role all_roles[N_ROLES] = {SP_POOL_DECODE, SP_POOL_MIXED, SP_POOL_PREFILL};

/* What is to become of each group. */
typedef struct wish {
    int n;
    sp_engine_group_status now[SP_GROUPS_MAX];
    sp_pool_role role[SP_GROUPS_MAX];
} wish;

bool sp_pools_role(sp_slice word, sp_pool_role *out) {
    for (size_t i = 0; i < N_ROLES; i++)
        if (sp_slice_is(word, sp_pool_role_name(all_roles[i]))) {
            *out = all_roles[i];
            return true;
        }
    return false;
}

static sp_status read_role(const sp_json_node *v, sp_pool_role *out, sp_err *err) {
    if (sp_json_type_of(v) != SP_JSON_STRING)
        return SP_FAIL(err, SP_E_INVALID, "role: want mixed, prefill or decode, got %s",
                       sp_json_type_name(sp_json_type_of(v)));
    sp_slice word = sp_json_string(v);
    if (sp_pools_role(word, out)) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "role: want mixed, prefill or decode, got '%.40s'", word.ptr);
}

static sp_status wish_groups(wish *w, const sp_json_node *list, sp_err *err) {
    if (sp_json_type_of(list) != SP_JSON_ARRAY || sp_json_count(list) == 0)
        return SP_FAIL(err, SP_E_INVALID, "groups: want a list of {\"group\", \"role\"}");
    for (const sp_json_node *i = sp_json_first(list); i; i = sp_json_next(i)) {
        const sp_json_node *g = sp_json_find(i, "group");
        if (sp_json_type_of(g) != SP_JSON_INT || sp_json_int(g) < 0 || sp_json_int(g) >= w->n)
            return SP_FAIL(err, SP_E_INVALID, "groups: want each a 'group' from 0 to %d", w->n - 1);
        SP_TRY(read_role(sp_json_find(i, "role"), &w->role[sp_json_int(g)], err));
    }
    return SP_OK;
}

static sp_status wish_pools(wish *w, const sp_json_node *map, sp_err *err) {
    if (sp_json_type_of(map) != SP_JSON_OBJECT || sp_json_count(map) == 0)
        return SP_FAIL(err, SP_E_INVALID, "pools: want an object of names and roles");
    for (const sp_json_node *i = sp_json_first(map); i; i = sp_json_next(i)) {
        bool found = false;
        sp_pool_role role;
        SP_TRY(read_role(i, &role, err));
        for (int k = 0; k < w->n; k++)
            if (sp_slice_is(sp_json_key(i), w->now[k].pool)) {
                w->role[k] = role;
                found = true;
            }
        if (!found)
            return SP_FAIL(err, SP_E_INVALID, "no pool is called '%.40s'", sp_json_key(i).ptr);
    }
    return SP_OK;
}

static sp_status wish_counts(wish *w, const sp_json_node *body, sp_err *err) {
    int64_t left[N_ROLES] = {0}, sum = 0;
    for (const sp_json_node *i = sp_json_first(body); i; i = sp_json_next(i)) {
        sp_pool_role role;
        if (!sp_pools_role(sp_json_key(i), &role))
            return SP_FAIL(err, SP_E_INVALID,
                           "unknown key '%.40s': want groups, pools, or mixed, prefill, decode",
                           sp_json_key(i).ptr);
        int64_t n = sp_json_type_of(i) == SP_JSON_INT ? sp_json_int(i) : -1;
        if (n < 0 || n > w->n)
            return SP_FAIL(err, SP_E_INVALID, "%s: want 0 to %d groups", sp_pool_role_name(role),
                           w->n);
        left[role] = n;
        sum += n;
    }
    if (sum != w->n)
        return SP_FAIL(err, SP_E_INVALID, "want a role for each of %d groups, got %d", w->n,
                       (int)sum);
    bool kept[SP_GROUPS_MAX];
    for (int i = 0; i < w->n; i++) {
        kept[i] = left[w->role[i]] > 0;
        left[w->role[i]] -= kept[i];
    }
    for (int i = 0, at = 0; i < w->n; i++) {
        if (kept[i]) continue;
        while (left[all_roles[at]] == 0) at++;
        w->role[i] = all_roles[at];
        left[all_roles[at]]--;
    }
    return SP_OK;
}

static sp_status read_wish(wish *w, const sp_json_node *body, sp_err *err) {
    if (sp_json_type_of(body) != SP_JSON_OBJECT || sp_json_count(body) == 0)
        return SP_FAIL(err, SP_E_INVALID, "want an object, not empty");
    const sp_json_node *groups = sp_json_find(body, "groups"), *pools = sp_json_find(body, "pools");
    if ((groups || pools) && sp_json_count(body) != 1)
        return SP_FAIL(err, SP_E_INVALID, "want groups, pools or counts of roles, one of them");
    if (groups) return wish_groups(w, groups, err);
    if (pools) return wish_pools(w, pools, err);
    return wish_counts(w, body, err);
}

/* Those that decode first, so that at no time nobody does. */
static sp_status grant(sp_engine *e, const wish *w, sp_err *err) {
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < w->n; i++)
            if (w->role[i] != w->now[i].role && (w->role[i] == SP_POOL_PREFILL) == pass)
                SP_TRY(sp_engine_set_role(e, i, w->role[i], err));
    return SP_OK;
}

sp_status sp_pools_set(sp_engine *e, const sp_json_node *body, sp_err *err) {
    wish w = {.n = sp_engine_group_count(e)};
    bool decodes = false;
    for (int i = 0; i < w.n; i++) {
        if (!sp_engine_group_info(e, i, &w.now[i]))
            return SP_FAIL(err, SP_E_INTERNAL, "no group %d", i);
        w.role[i] = w.now[i].role;
    }
    SP_TRY(read_wish(&w, body, err));
    for (int i = 0; i < w.n; i++) decodes = decodes || w.role[i] != SP_POOL_PREFILL;
    if (!decodes) return SP_FAIL(err, SP_E_INVALID, "no group would be left that decodes");
    return grant(e, &w, err);
}
