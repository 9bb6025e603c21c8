/* The methods of lists, tuples, dicts, loops, cyclers and numbers. The sandbox that templates run
 * in refuses all that change a list or a dict. */
#include "runtime/text/jinja_eval.h"

#include <math.h>

#define METHOD(name) \
    static sp_status name(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c, \
                          sp_jval *out)

/* --- lists, tuples, ranges --- */

METHOD(m_count) {
    (void)c;
    sp_jlist *l;
    int64_t n = 0;
    SP_TRY(sp_jiter_collect(r, self, &l));
    for (size_t i = 0; i < l->n; i++) {
        bool same;
        SP_TRY(sp_jval_eq(r, l->at[i], v[0], &same));
        n += same;
    }
    *out = sp_jval_int(n);
    return SP_OK;
}

METHOD(m_index) {
    (void)c;
    sp_jlist *l;
    SP_TRY(sp_jiter_collect(r, self, &l));
    int64_t n = (int64_t)l->n, from, to;
    SP_TRY(sp_jarg_int(r, v[1], 0, &from));
    SP_TRY(sp_jarg_int(r, v[2], n, &to));
    if (from < 0) from = from + n < 0 ? 0 : from + n;
    if (to < 0) to = to + n < 0 ? 0 : to + n;
    for (int64_t i = from; i < to && i < n; i++) {
        bool same;
        SP_TRY(sp_jval_eq(r, l->at[i], v[0], &same));
        if (!same) continue;
        *out = sp_jval_int(i);
        return SP_OK;
    }
    return sp_jrun_fail(r, "the value is not in the %s", sp_jval_type_name(self));
}

METHOD(m_list_copy) {
    (void)v, (void)c;
    sp_jlist *l;
    SP_TRY(sp_jiter_collect(r, self, &l));
    *out = sp_jval_list(l);
    return SP_OK;
}

/* --- dicts --- */

static sp_status view_of(sp_jrun *r, sp_jval self, sp_jview_kind kind, sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jview), &p));
    sp_jview *w = p;
    *w = (sp_jview){self.dict, kind};
    *out = (sp_jval){.type = SP_J_VIEW, .view = w};
    return SP_OK;
}

METHOD(m_keys) {
    (void)v, (void)c;
    return view_of(r, self, SP_J_KEYS, out);
}
METHOD(m_values) {
    (void)v, (void)c;
    return view_of(r, self, SP_J_VALUES, out);
}
METHOD(m_items) {
    (void)v, (void)c;
    return view_of(r, self, SP_J_ITEMS, out);
}

METHOD(m_get) {
    (void)c;
    SP_TRY(sp_jdict_get(r, self.dict, v[0], out));
    if (out->type == SP_J_MISSING) *out = sp_jarg_given(v[1]) ? v[1] : sp_jval_none();
    return SP_OK;
}

METHOD(m_dict_copy) {
    (void)v, (void)c;
    sp_jdict *d;
    SP_TRY(sp_jdict_create(r, self.dict->n, &d));
    for (size_t i = 0; i < self.dict->n; i++)
        SP_TRY(sp_jdict_put(r, d, self.dict->at[i].key, self.dict->at[i].value));
    *out = (sp_jval){.type = SP_J_DICT, .dict = d};
    return SP_OK;
}

METHOD(m_fromkeys) {
    (void)self, (void)c;
    sp_jdict *d;
    sp_jlist *keys;
    SP_TRY(sp_jiter_collect(r, v[0], &keys));
    SP_TRY(sp_jdict_create(r, keys->n, &d));
    for (size_t i = 0; i < keys->n; i++)
        SP_TRY(sp_jdict_put(r, d, keys->at[i], sp_jarg_given(v[1]) ? v[1] : sp_jval_none()));
    *out = (sp_jval){.type = SP_J_DICT, .dict = d};
    return SP_OK;
}

/* --- loops and cyclers --- */

METHOD(m_cycle) {
    (void)v;
    if (c->n == 0 || c->n_named) return sp_jrun_fail(r, "no items for cycling given");
    *out = c->pos[self.loop->index0 % c->n];
    return SP_OK;
}

METHOD(m_changed) {
    (void)v;
    bool same = false;
    sp_jlist *now;
    SP_TRY(sp_jlist_create(r, (size_t)c->n, &now));
    for (int i = 0; i < c->n; i++) SP_TRY(sp_jlist_push(r, now, c->pos[i]));
    if (self.loop->changed)
        SP_TRY(sp_jval_eq(r, sp_jval_list(self.loop->changed), sp_jval_list(now), &same));
    if (!same) self.loop->changed = now;
    *out = sp_jval_bool(!same);
    return SP_OK;
}

METHOD(m_next) {
    (void)r, (void)v, (void)c;
    struct sp_jcycler *y = self.cycler;
    *out = y->items->at[y->at];
    y->at = (y->at + 1) % y->items->n;
    return SP_OK;
}

METHOD(m_reset) {
    (void)r, (void)v, (void)c;
    self.cycler->at = 0;
    *out = sp_jval_none();
    return SP_OK;
}

/* --- numbers --- */

METHOD(m_is_integer) {
    (void)r, (void)v, (void)c;
    *out = sp_jval_bool(isfinite(self.f) && self.f == floor(self.f));
    return SP_OK;
}

METHOD(m_bit_length) {
    (void)r, (void)v, (void)c;
    int64_t i = sp_jval_as_int(self);
    uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    *out = sp_jval_int(u ? 64 - __builtin_clzll(u) : 0);
    return SP_OK;
}

METHOD(m_conjugate) {
    (void)r, (void)v, (void)c;
    *out = self.type == SP_J_BOOL ? sp_jval_int(self.b) : self;
    return SP_OK;
}

static const sp_jspec LIST[] = {
    {"count", m_count, "value", 1},
    {"index", m_index, "value start stop", 1},
    {"copy", m_list_copy, "", 0},
};
static const char *const LIST_MUTATES[] = {"append", "clear",  "extend",  "insert",
                                           "pop",    "remove", "reverse", "sort"};

static const sp_jspec DICT[] = {
    {"get", m_get, "key default", 1}, {"items", m_items, "", 0},
    {"keys", m_keys, "", 0},          {"values", m_values, "", 0},
    {"copy", m_dict_copy, "", 0},     {"fromkeys", m_fromkeys, "iterable value", 1},
};
static const char *const DICT_MUTATES[] = {"clear", "pop", "popitem", "setdefault", "update"};

static const sp_jspec LOOP[] = {{"cycle", m_cycle, "*", 0}, {"changed", m_changed, "*", 0}};
static const sp_jspec CYCLER[] = {{"next", m_next, "", 0}, {"reset", m_reset, "", 0}};

static const sp_jspec INT[] = {
    {"bit_length", m_bit_length, "", 0}, {"conjugate", m_conjugate, "", 0},
    {"as_integer_ratio", NULL, "*", 0},  {"bit_count", NULL, "*", 0},
    {"from_bytes", NULL, "*", 0},        {"to_bytes", NULL, "*", 0},
};
static const sp_jspec FLOAT[] = {
    {"is_integer", m_is_integer, "", 0},
    {"conjugate", m_conjugate, "", 0},
    {"as_integer_ratio", NULL, "*", 0},
    {"fromhex", NULL, "*", 0},
    {"hex", NULL, "*", 0},
};

static bool listed(const char *const *words, size_t n, sp_slice name) {
    for (size_t i = 0; i < n; i++)
        if (sp_slice_is(name, words[i])) return true;
    return false;
}

const sp_jspec *sp_jmethod_find(sp_jval self, sp_slice name, bool *mutates) {
    *mutates = false;
    switch ((sp_jtype)self.type) {
    case SP_J_STR:
        return sp_jstr_method_find(name);
    case SP_J_DICT:
        *mutates = listed(DICT_MUTATES, SP_LEN(DICT_MUTATES), name);
        return sp_jspec_find(DICT, SP_LEN(DICT), name);
    case SP_J_LIST:
        *mutates = listed(LIST_MUTATES, SP_LEN(LIST_MUTATES), name);
        return sp_jspec_find(LIST, SP_LEN(LIST), name);
    case SP_J_TUPLE:
    case SP_J_RANGE:
        return sp_jspec_find(LIST, 2, name); /* not copy */
    case SP_J_LOOP:
        return sp_jspec_find(LOOP, SP_LEN(LOOP), name);
    case SP_J_CYCLER:
        return sp_jspec_find(CYCLER, SP_LEN(CYCLER), name);
    case SP_J_INT:
    case SP_J_BOOL:
        return sp_jspec_find(INT, SP_LEN(INT), name);
    case SP_J_FLOAT:
        return sp_jspec_find(FLOAT, SP_LEN(FLOAT), name);
    default:
        return NULL;
    }
}
