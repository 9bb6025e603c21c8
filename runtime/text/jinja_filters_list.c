/* Filters that look at all items of a value at once. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

/* --- attribute= --- */

static bool all_digits(sp_slice s) {
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] < '0' || s.ptr[i] > '9') return false;
    return s.len > 0;
}

static sp_status path_parts(sp_jrun *r, sp_slice path, sp_jlist *parts) {
    for (size_t from = 0;;) {
        ptrdiff_t dot = sp_slice_find(path, SP_SLICE("."), from);
        size_t to = dot < 0 ? path.len : (size_t)dot;
        sp_slice word = {path.ptr + from, to - from};
        sp_jval part;
        SP_TRY(sp_jval_str(r, word, &part));
        if (all_digits(word) && sp_parse_i64(word, &part.i) == SP_OK) part = sp_jval_int(part.i);
        SP_TRY(sp_jlist_push(r, parts, part));
        if (dot < 0) return SP_OK;
        from = to + 1;
    }
}

sp_status sp_jgetter_init(sp_jrun *r, sp_jgetter *g, sp_jval attribute) {
    g->otherwise = sp_jval_none();
    g->ignore_case = false;
    SP_TRY(sp_jlist_create(r, 0, &g->parts));
    if (!sp_jarg_given_some(attribute)) return SP_OK;
    if (attribute.type == SP_J_STR) return path_parts(r, sp_jval_slice(attribute), g->parts);
    return sp_jlist_push(r, g->parts, attribute);
}

sp_status sp_jgetter_get(sp_jrun *r, const sp_jgetter *g, sp_jval item, sp_jval *out) {
    for (size_t i = 0; i < g->parts->n; i++) {
        SP_TRY(sp_jval_getitem(r, item, g->parts->at[i], &item));
        if (item.type == SP_J_UNDEFINED && sp_jarg_given_some(g->otherwise)) item = g->otherwise;
    }
    *out = item;
    if (!g->ignore_case || item.type != SP_J_STR) return SP_OK;
    sp_jtext t = {0};
    SP_TRY(sp_jtext_case(r, &t, sp_jval_slice(item), SP_CASE_LOWER));
    return sp_jtext_done(r, &t, out);
}

/* `sort` takes several paths with commas between; a key is then the list of what they give. */
static sp_status sort_keys(sp_jrun *r, const sp_jlist *items, sp_jval attribute, bool ignore_case,
                           sp_jlist **out) {
    sp_jlist *paths, *keys;
    sp_slice comma = SP_SLICE(",");
    SP_TRY(sp_jlist_create(r, items->n, &keys));
    SP_TRY(sp_jlist_create(r, 1, &paths));
    if (attribute.type == SP_J_STR)
        SP_TRY(sp_jval_split(r, attribute, &comma, -1, false, &paths));
    else
        SP_TRY(sp_jlist_push(r, paths, attribute));
    for (size_t i = 0; i < items->n; i++) {
        sp_jlist *key;
        SP_TRY(sp_jlist_create(r, paths->n, &key));
        SP_TRY(sp_jlist_push(r, keys, sp_jval_list(key)));
    }
    for (size_t p = 0; p < paths->n; p++) {
        sp_jgetter g;
        SP_TRY(sp_jgetter_init(r, &g, paths->at[p]));
        g.ignore_case = ignore_case;
        for (size_t i = 0; i < items->n; i++) {
            sp_jval v;
            SP_TRY(sp_jgetter_get(r, &g, items->at[i], &v));
            SP_TRY(sp_jlist_push(r, keys->at[i].list, v));
        }
    }
    *out = keys;
    return SP_OK;
}

/* `reverse` is handed to sorted(), which takes numbers only. */
static sp_status reverse_arg(sp_jrun *r, sp_jval v, bool *out) {
    int64_t n;
    SP_TRY(sp_jarg_int(r, v, 0, &n));
    *out = n != 0;
    return SP_OK;
}

static sp_status f_sort(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)c;
    sp_jlist *items = NULL, *keys = NULL;
    bool reverse = false;
    SP_TRY(reverse_arg(r, v[0], &reverse));
    SP_TRY(sp_jiter_collect(r, self, &items));
    SP_TRY(sort_keys(r, items, v[2], !sp_jval_truth(v[1]), &keys));
    SP_TRY(sp_jlist_sort(r, items, keys, reverse));
    *out = sp_jval_list(items);
    return SP_OK;
}

static sp_status f_dictsort(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                            sp_jval *out) {
    (void)c;
    sp_slice by;
    sp_jlist *pairs, *keys;
    sp_jgetter g;
    bool reverse;
    SP_TRY(reverse_arg(r, v[2], &reverse));
    SP_TRY(sp_jarg_str(r, v[1], "key", &by));
    bool value = sp_slice_is(by, "value");
    if (!value && !sp_slice_is(by, "key"))
        return sp_jrun_fail(r, "dictsort sorts by \"key\" or \"value\"");
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (self.type != SP_J_DICT)
        return sp_jrun_fail(r, "'%s' object has no items", sp_jval_type_name(self));
    sp_jview w = {self.dict, SP_J_ITEMS};
    SP_TRY(sp_jiter_collect(r, (sp_jval){.type = SP_J_VIEW, .view = &w}, &pairs));
    SP_TRY(sp_jlist_create(r, pairs->n, &keys));
    SP_TRY(sp_jgetter_init(r, &g, sp_jval_missing()));
    g.ignore_case = !sp_jval_truth(v[0]);
    for (size_t i = 0; i < pairs->n; i++) {
        sp_jval key;
        SP_TRY(sp_jgetter_get(r, &g, pairs->at[i].list->at[value], &key));
        SP_TRY(sp_jlist_push(r, keys, key));
    }
    SP_TRY(sp_jlist_sort(r, pairs, keys, reverse));
    *out = sp_jval_list(pairs);
    return SP_OK;
}

static sp_status getter_keys(sp_jrun *r, const sp_jgetter *g, const sp_jlist *items,
                             sp_jlist **out) {
    SP_TRY(sp_jlist_create(r, items->n, out));
    for (size_t i = 0; i < items->n; i++) {
        sp_jval key;
        SP_TRY(sp_jgetter_get(r, g, items->at[i], &key));
        SP_TRY(sp_jlist_push(r, *out, key));
    }
    return SP_OK;
}

/* A group is named by its first item's key, spelled as there. */
static sp_status f_groupby(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)c;
    sp_jgetter g;
    sp_jlist *items, *keys, *groups, *group = NULL;
    sp_jval before = sp_jval_missing();
    SP_TRY(sp_jgetter_init(r, &g, v[0]));
    g.otherwise = v[1];
    g.ignore_case = !sp_jval_truth(v[2]);
    SP_TRY(sp_jiter_collect(r, self, &items));
    SP_TRY(getter_keys(r, &g, items, &keys));
    SP_TRY(sp_jlist_sort(r, items, keys, false));
    SP_TRY(getter_keys(r, &g, items, &keys));
    SP_TRY(sp_jlist_create(r, 0, &groups));
    g.ignore_case = false;
    for (size_t i = 0; i < items->n; i++) {
        bool same = false;
        sp_jval name, pair;
        if (group) SP_TRY(sp_jval_eq(r, before, keys->at[i], &same));
        before = keys->at[i];
        if (!same) {
            SP_TRY(sp_jlist_create(r, 0, &group));
            SP_TRY(sp_jgetter_get(r, &g, items->at[i], &name));
            SP_TRY(sp_jval_pair(r, name, sp_jval_list(group), &pair));
            pair.mark = true;
            SP_TRY(sp_jlist_push(r, groups, pair));
        }
        SP_TRY(sp_jlist_push(r, group, items->at[i]));
    }
    *out = sp_jval_list(groups);
    return SP_OK;
}

/* --- one out of many --- */

static sp_status min_or_max(sp_jrun *r, sp_jval self, const sp_jval *v, bool max, sp_jval *out) {
    sp_jlist *items;
    sp_jgetter g;
    SP_TRY(sp_jiter_collect(r, self, &items));
    if (items->n == 0)
        return sp_jval_undefined(r, "no aggregated item, sequence was empty", NULL, sp_jval_none(),
                                 out);
    SP_TRY(sp_jgetter_init(r, &g, v[1]));
    g.ignore_case = !sp_jval_truth(v[0]);
    sp_jval best = sp_jval_missing();
    for (size_t i = 0; i < items->n; i++) {
        sp_jval key;
        bool better = i == 0;
        SP_TRY(sp_jgetter_get(r, &g, items->at[i], &key));
        if (i) SP_TRY(sp_jval_less(r, max ? best : key, max ? key : best, &better));
        if (!better) continue;
        best = key;
        *out = items->at[i];
    }
    return SP_OK;
}

static sp_status f_min(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    return min_or_max(r, self, v, false, out);
}

static sp_status f_max(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    return min_or_max(r, self, v, true, out);
}

static sp_status take_one(sp_jrun *r, sp_jiter *it, const char *hint, sp_jval *out) {
    bool done;
    SP_TRY(sp_jiter_next(r, it, out, &done));
    return done ? sp_jval_undefined(r, hint, NULL, sp_jval_none(), out) : SP_OK;
}

static sp_status f_first(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    sp_jiter *it;
    SP_TRY(sp_jiter_open(r, self, &it));
    return take_one(r, it, "no first item, sequence was empty", out);
}

static sp_status f_last(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)v, (void)c;
    sp_jiter *it;
    SP_TRY(sp_jiter_open_reversed(r, self, &it));
    return take_one(r, it, "no last item, sequence was empty", out);
}

/* --- all of them --- */

static sp_status f_list(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)v, (void)c;
    sp_jlist *l;
    SP_TRY(sp_jiter_collect(r, self, &l));
    *out = sp_jval_list(l);
    return SP_OK;
}

static sp_status f_join(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)c;
    sp_jiter *it;
    sp_jgetter g;
    sp_jtext t = {0}, between = {0};
    SP_TRY(sp_jgetter_init(r, &g, v[1]));
    if (sp_jarg_given(v[0])) SP_TRY(sp_jval_put_str(r, v[0], &between));
    SP_TRY(sp_jiter_open(r, self, &it));
    for (bool first = true;; first = false) {
        sp_jval item;
        bool done;
        SP_TRY(sp_jiter_next(r, it, &item, &done));
        if (done) return sp_jtext_done(r, &t, out);
        if (!first) SP_TRY(sp_jtext_put(r, &t, (sp_slice){between.ptr, between.len}));
        SP_TRY(sp_jgetter_get(r, &g, item, &item));
        SP_TRY(sp_jval_put_str(r, item, &t));
    }
}

static sp_status f_sum(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    sp_jlist *items;
    sp_jgetter g;
    sp_jval total = sp_jarg_given(v[1]) ? v[1] : sp_jval_int(0);
    SP_TRY(sp_jgetter_init(r, &g, v[0]));
    if (total.type == SP_J_STR) return sp_jrun_fail(r, "sum() can't sum strings");
    SP_TRY(sp_jiter_collect(r, self, &items));
    for (size_t i = 0; i < items->n; i++) {
        sp_jval item;
        SP_TRY(sp_jgetter_get(r, &g, items->at[i], &item));
        SP_TRY(sp_jval_binary(r, SP_JT_ADD, total, item, &total));
    }
    *out = total;
    return SP_OK;
}

static sp_status f_reverse(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)v, (void)c;
    if (self.type == SP_J_STR) {
        sp_jval part[3] = {sp_jval_none(), sp_jval_none(), sp_jval_int(-1)};
        return sp_jval_getslice(r, self, part, out);
    }
    sp_jiter *it;
    if (sp_jval_reversible(self)) {
        SP_TRY(sp_jiter_open_reversed(r, self, &it));
        *out = sp_jval_iter(it);
        return SP_OK;
    }
    sp_jlist *l;
    SP_TRY(sp_jiter_collect(r, self, &l));
    for (size_t i = 0; i < l->n / 2; i++) {
        sp_jval swap = l->at[i];
        l->at[i] = l->at[l->n - 1 - i];
        l->at[l->n - 1 - i] = swap;
    }
    *out = sp_jval_list(l);
    return SP_OK;
}

static const sp_jspec FILTERS[] = {
    {"sort", f_sort, "reverse case_sensitive attribute", 0},
    {"dictsort", f_dictsort, "case_sensitive by reverse", 0},
    {"groupby", f_groupby, "attribute default case_sensitive", 1},
    {"min", f_min, "case_sensitive attribute", 0},
    {"max", f_max, "case_sensitive attribute", 0},
    {"first", f_first, "", 0},
    {"last", f_last, "", 0},
    {"list", f_list, "", 0},
    {"join", f_join, "d attribute", 0},
    {"sum", f_sum, "attribute start", 0},
    {"reverse", f_reverse, "", 0},
};

const sp_jspec *sp_jfilter_find_list(sp_slice name) {
    return sp_jspec_find(FILTERS, SP_LEN(FILTERS), name);
}
