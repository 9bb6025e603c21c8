#include "runtime/text/jinja_iter.h"

static sp_status view_at(sp_jrun *r, const sp_jview *w, size_t i, sp_jval *out) {
    const sp_jentry *e = &w->dict->at[i];
    if (w->kind == SP_J_ITEMS) return sp_jval_pair(r, e->key, e->value, out);
    *out = w->kind == SP_J_KEYS ? e->key : e->value;
    return SP_OK;
}

static sp_status char_at(sp_jrun *r, sp_jval v, size_t i, sp_jval *out) {
    size_t from = sp_jstr_byte(v.s, i), to = from + 1;
    if (sp_jstr_chars(v.s) != v.s->len) SP_TRY(sp_jrun_charge(r, from / 64));
    while (to < v.s->len && ((unsigned char)v.s->ptr[to] & 0xc0) == 0x80) to++;
    SP_TRY(sp_jval_str(r, (sp_slice){v.s->ptr + from, to - from}, out));
    out->mark = v.mark;
    return SP_OK;
}

sp_status sp_jval_at(sp_jrun *r, sp_jval v, size_t i, sp_jval *out) {
    switch ((sp_jtype)v.type) {
    case SP_J_LIST:
    case SP_J_TUPLE:
        *out = v.list->at[i];
        return SP_OK;
    case SP_J_STR:
        return char_at(r, v, i, out);
    case SP_J_DICT:
        *out = v.dict->at[i].key;
        return SP_OK;
    case SP_J_VIEW:
        return view_at(r, v.view, i, out);
    case SP_J_RANGE:
        *out = sp_jval_int(v.range->start + (int64_t)i * v.range->step);
        return SP_OK;
    default:
        return sp_jrun_fail(r, "'%s' object has no items", sp_jval_type_name(v));
    }
}

static sp_status next_forward(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    size_t n = 0;
    sp_jval_len(it->src, &n);
    *done = it->at >= n;
    return *done ? SP_OK : sp_jval_at(r, it->src, it->at++, out);
}

static sp_status next_backward(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    *done = it->at == 0;
    return *done ? SP_OK : sp_jval_at(r, it->src, --it->at, out);
}

/* A string is gone over by bytes: finding a code point by its number would be quadratic. */
static sp_status next_char(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    const sp_jstr *s = it->src.s;
    *done = it->at >= s->len;
    if (*done) return SP_OK;
    size_t from = it->at++;
    while (it->at < s->len && ((unsigned char)s->ptr[it->at] & 0xc0) == 0x80) it->at++;
    SP_TRY(sp_jval_str(r, (sp_slice){s->ptr + from, it->at - from}, out));
    return SP_OK;
}

static sp_status next_none(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    (void)r, (void)it, (void)out;
    *done = true;
    return SP_OK;
}

bool sp_jval_iterable(sp_jval v) {
    size_t n;
    return sp_jval_len(v, &n) || v.type == SP_J_ITER || v.type == SP_J_LOOP;
}

bool sp_jval_reversible(sp_jval v) {
    size_t n;
    return sp_jval_len(v, &n);
}

sp_status sp_jiter_create(sp_jrun *r, sp_jiter_fn *next, const char *name, void *ctx,
                          sp_jiter **out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jiter), &p));
    sp_jiter *it = p;
    it->next = next;
    it->name = name;
    it->ctx = ctx;
    *out = it;
    return SP_OK;
}

sp_status sp_jiter_open(sp_jrun *r, sp_jval v, sp_jiter **out) {
    if (v.type == SP_J_ITER) {
        *out = v.iter;
        return SP_OK;
    }
    size_t n;
    if (!sp_jval_len(v, &n))
        return sp_jrun_fail(r, "'%s' object is not iterable", sp_jval_type_name(v));
    sp_jiter_fn *next = v.type == SP_J_STR         ? next_char
                        : v.type == SP_J_UNDEFINED ? next_none
                                                   : next_forward;
    SP_TRY(sp_jiter_create(r, next, "iterator", NULL, out));
    (*out)->src = v;
    return SP_OK;
}

sp_status sp_jiter_open_reversed(sp_jrun *r, sp_jval v, sp_jiter **out) {
    size_t n;
    if (!sp_jval_len(v, &n))
        return sp_jrun_fail(r, "'%s' object is not reversible", sp_jval_type_name(v));
    SP_TRY(sp_jiter_create(r, next_backward, "reverse_iterator", NULL, out));
    (*out)->src = v;
    (*out)->at = n;
    return SP_OK;
}

sp_status sp_jiter_next(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r)); /* generators over generators recurse */
    *done = it->ended;
    if (!it->ended) SP_TRY(it->next(r, it, out, done));
    it->ended = *done;
    sp_jrun_leave(r);
    return SP_OK;
}

sp_status sp_jiter_collect(sp_jrun *r, sp_jval v, sp_jlist **out) {
    sp_jiter *it = NULL;
    sp_jlist *l;
    size_t n = 0;
    SP_TRY(sp_jiter_open(r, v, &it));
    if (v.type != SP_J_STR) sp_jval_len(v, &n);
    SP_TRY(sp_jlist_create(r, n, &l));
    for (;;) {
        sp_jval item;
        bool done;
        SP_TRY(sp_jiter_next(r, it, &item, &done));
        if (done) break;
        SP_TRY(sp_jlist_push(r, l, item));
    }
    *out = l;
    return SP_OK;
}
