/* Filters that give generators: map, select and its kin, unique, batch, slice, items. What they do
 * to an item, they do when it is asked for. */
#include "runtime/text/jinja_eval.h"

typedef struct lazy {
    sp_jval over;
    bool opened;
    /* map and select */
    bool get; /* an attribute first */
    sp_jgetter getter;
    sp_jval name;         /* of a filter or test; MISSING: none */
    const sp_jspec *spec; /* what it names, from the first item on */
    sp_jcall call;
    bool reject;
    /* unique */
    sp_jdict *seen;
    /* batch and slice */
    int64_t size;
    sp_jval fill;
    sp_jlist *all;
} lazy;

static sp_status make_lazy(sp_jrun *r, sp_jval over, sp_jiter_fn *next, lazy **l, sp_jval *out) {
    void *p;
    sp_jiter *it;
    SP_TRY(sp_jrun_take(r, sizeof(lazy), &p));
    *l = p;
    (*l)->over = over;
    SP_TRY(sp_jiter_create(r, next, "generator", p, &it));
    *out = sp_jval_iter(it);
    return SP_OK;
}

/* The next item of the source, which is opened only now; one that is false has none. */
static sp_status pull(sp_jrun *r, sp_jiter *it, bool truth, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    *done = !l->opened && truth && !sp_jval_truth(l->over);
    if (*done) return SP_OK;
    if (!l->opened) SP_TRY(sp_jiter_open(r, l->over, &it->up));
    l->opened = true;
    return sp_jiter_next(r, it->up, out, done);
}

/* A name that names nothing fails when it is used, not before. */
static sp_status resolve(sp_jrun *r, lazy *l, const sp_jspec *(*find)(sp_slice), const char *what) {
    sp_slice name;
    if (l->spec) return SP_OK;
    SP_TRY(sp_jarg_str(r, l->name, "", &name));
    l->spec = find(name);
    return l->spec ? SP_OK : sp_jrun_fail(r, "no %s named '%.*s'", what, (int)name.len, name.ptr);
}

/* --- map --- */

static sp_status next_mapped(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    sp_jval item;
    SP_TRY(pull(r, it, true, &item, done));
    if (*done) return SP_OK;
    if (l->get) return sp_jgetter_get(r, &l->getter, item, out);
    SP_TRY(resolve(r, l, sp_jfilter_find, "filter"));
    return sp_jspec_call(r, l->spec, item, &l->call, out);
}

/* The arguments behind the first `skip`. */
static sp_jcall rest_of(const sp_jcall *c, int skip) {
    sp_jcall rest = *c;
    rest.pos += rest.pos ? skip : 0;
    rest.n -= skip;
    return rest;
}

static sp_status f_map(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)v;
    lazy *l;
    SP_TRY(make_lazy(r, self, next_mapped, &l, out));
    const sp_jval *attribute = sp_jcall_named(c, "attribute"), *otherwise;
    if (c->n == 0 && attribute) {
        otherwise = sp_jcall_named(c, "default");
        if (c->n_named != 1 + (otherwise != NULL))
            return sp_jrun_fail(r, "map() got an unexpected keyword argument");
        l->get = true;
        SP_TRY(sp_jgetter_init(r, &l->getter, *attribute));
        if (otherwise) l->getter.otherwise = *otherwise;
        return SP_OK;
    }
    if (c->n == 0) return sp_jrun_fail(r, "map() wants the name of a filter");
    l->name = c->pos[0];
    l->call = rest_of(c, 1);
    return SP_OK;
}

/* --- select, reject, selectattr, rejectattr --- */

static sp_status next_selected(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    for (;;) {
        sp_jval item, looked;
        SP_TRY(pull(r, it, true, &item, done));
        if (*done) return SP_OK;
        looked = item;
        if (l->get) SP_TRY(sp_jgetter_get(r, &l->getter, item, &looked));
        if (sp_jarg_given(l->name)) {
            SP_TRY(resolve(r, l, sp_jtest_find, "test"));
            SP_TRY(sp_jspec_call(r, l->spec, looked, &l->call, &looked));
        }
        if (sp_jval_truth(looked) == l->reject) continue;
        *out = item;
        return SP_OK;
    }
}

static sp_status select_items(sp_jrun *r, sp_jval self, const sp_jcall *c, bool attribute,
                              bool reject, sp_jval *out) {
    lazy *l;
    SP_TRY(make_lazy(r, self, next_selected, &l, out));
    l->reject = reject;
    l->get = attribute;
    if (attribute && c->n == 0) return sp_jrun_fail(r, "missing parameter for attribute name");
    if (attribute) SP_TRY(sp_jgetter_init(r, &l->getter, c->pos[0]));
    if (c->n <= attribute) return SP_OK;
    l->name = c->pos[attribute];
    l->call = rest_of(c, 1 + attribute);
    return SP_OK;
}

static sp_status f_select(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v;
    return select_items(r, self, c, false, false, out);
}
static sp_status f_reject(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v;
    return select_items(r, self, c, false, true, out);
}
static sp_status f_selectattr(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                              sp_jval *out) {
    (void)v;
    return select_items(r, self, c, true, false, out);
}
static sp_status f_rejectattr(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                              sp_jval *out) {
    (void)v;
    return select_items(r, self, c, true, true, out);
}

/* --- unique --- */

static sp_status next_unique(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    for (;;) {
        sp_jval key, found;
        SP_TRY(pull(r, it, false, out, done));
        if (*done) return SP_OK;
        SP_TRY(sp_jgetter_get(r, &l->getter, *out, &key));
        SP_TRY(sp_jdict_get(r, l->seen, key, &found));
        if (found.type == SP_J_MISSING) return sp_jdict_put(r, l->seen, key, sp_jval_none());
    }
}

static sp_status f_unique(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)c;
    lazy *l;
    SP_TRY(make_lazy(r, self, next_unique, &l, out));
    SP_TRY(sp_jgetter_init(r, &l->getter, v[1]));
    l->getter.ignore_case = !sp_jval_truth(v[0]);
    return sp_jdict_create(r, 0, &l->seen);
}

/* --- batch and slice --- */

static sp_status next_batch(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    sp_jlist *row;
    SP_TRY(sp_jlist_create(r, 0, &row));
    /* A size below 1 never fills a row, so that all items end in one. */
    while (l->size < 1 || (int64_t)row->n < l->size) {
        sp_jval item;
        SP_TRY(pull(r, it, false, &item, done));
        if (*done) break;
        SP_TRY(sp_jlist_push(r, row, item));
    }
    *done = row->n == 0;
    while (row->n && sp_jarg_given_some(l->fill) && (int64_t)row->n < l->size)
        SP_TRY(sp_jlist_push(r, row, l->fill));
    *out = sp_jval_list(row);
    return SP_OK;
}

/* Slice number it->at: as even as can be, the longer ones first, filled up to their length. */
static sp_status next_slice(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    lazy *l = it->ctx;
    if (!l->all) SP_TRY(sp_jiter_collect(r, l->over, &l->all));
    if (l->size == 0) return sp_jrun_fail(r, "integer division or modulo by zero");
    *done = (int64_t)it->at >= l->size;
    if (*done) return SP_OK;
    size_t slices = (size_t)l->size, each = l->all->n / slices, extra = l->all->n % slices;
    size_t k = it->at++, from = k * each + (k < extra ? k : extra);
    size_t to = from + each + (k < extra);
    sp_jlist *row;
    SP_TRY(sp_jlist_create(r, to - from + 1, &row));
    for (size_t i = from; i < to; i++) SP_TRY(sp_jlist_push(r, row, l->all->at[i]));
    if (k >= extra && sp_jarg_given_some(l->fill)) SP_TRY(sp_jlist_push(r, row, l->fill));
    *out = sp_jval_list(row);
    return SP_OK;
}

static sp_status f_batch(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)c;
    lazy *l;
    SP_TRY(make_lazy(r, self, next_batch, &l, out));
    l->fill = v[1];
    return sp_jarg_int(r, v[0], 0, &l->size);
}

static sp_status f_slice(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)c;
    lazy *l;
    SP_TRY(make_lazy(r, self, next_slice, &l, out));
    l->fill = v[1];
    return sp_jarg_int(r, v[0], 0, &l->size);
}

/* --- items --- */

static sp_status next_pair(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    const lazy *l = it->ctx;
    *done = l->over.type == SP_J_UNDEFINED;
    if (*done) return SP_OK;
    if (l->over.type != SP_J_DICT) return sp_jrun_fail(r, "can only get item pairs from a mapping");
    *done = it->at >= l->over.dict->n;
    if (*done) return SP_OK;
    const sp_jentry *e = &l->over.dict->at[it->at++];
    return sp_jval_pair(r, e->key, e->value, out);
}

static sp_status f_items(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    lazy *l;
    return make_lazy(r, self, next_pair, &l, out);
}

static const sp_jspec FILTERS[] = {
    {"map", f_map, "*", 0},
    {"select", f_select, "*", 0},
    {"reject", f_reject, "*", 0},
    {"selectattr", f_selectattr, "*", 0},
    {"rejectattr", f_rejectattr, "*", 0},
    {"unique", f_unique, "case_sensitive attribute", 0},
    {"batch", f_batch, "linecount fill_with", 1},
    {"slice", f_slice, "slices fill_with", 1},
    {"items", f_items, "", 0},
};

const sp_jspec *sp_jfilter_find_lazy(sp_slice name) {
    return sp_jspec_find(FILTERS, SP_LEN(FILTERS), name);
}
