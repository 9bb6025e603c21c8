/* Truth, equality, order, length and membership: what Python does for the types of a template. */
#include "runtime/text/jinja_iter.h"
#include "runtime/text/jinja_value.h"

#include <string.h>

const char *sp_jval_type_name(sp_jval v) {
    switch ((sp_jtype)v.type) {
    case SP_J_MISSING:
    case SP_J_UNDEFINED:
        return "Undefined";
    case SP_J_NONE:
        return "NoneType";
    case SP_J_BOOL:
        return "bool";
    case SP_J_INT:
    case SP_J_BIG:
        return "int";
    case SP_J_FLOAT:
        return "float";
    case SP_J_STR:
        return v.mark ? "Markup" : "str";
    case SP_J_LIST:
        return "list";
    case SP_J_TUPLE:
        return "tuple";
    case SP_J_DICT:
        return "dict";
    case SP_J_VIEW:
        return v.view->kind == SP_J_KEYS     ? "dict_keys"
               : v.view->kind == SP_J_VALUES ? "dict_values"
                                             : "dict_items";
    case SP_J_RANGE:
        return "range";
    case SP_J_NAMESPACE:
        return "Namespace";
    case SP_J_ITER:
        return "generator";
    case SP_J_FN:
        return "function";
    case SP_J_METHOD:
        return "method";
    case SP_J_MACRO:
        return "Macro";
    case SP_J_LOOP:
        return "LoopContext";
    case SP_J_CYCLER:
        return "Cycler";
    case SP_J_JOINER:
        return "Joiner";
    }
    return "?";
}

sp_status sp_jval_hashable(sp_jrun *r, sp_jval v, bool *out) {
    *out = v.type != SP_J_LIST && v.type != SP_J_DICT && v.type != SP_J_VIEW;
    if (v.type != SP_J_TUPLE) return SP_OK;
    SP_TRY(sp_jrun_charge(r, v.list->n));
    SP_TRY(sp_jrun_enter(r));
    for (size_t i = 0; i < v.list->n && *out; i++) SP_TRY(sp_jval_hashable(r, v.list->at[i], out));
    sp_jrun_leave(r);
    return SP_OK;
}

bool sp_jval_truth(sp_jval v) {
    size_t n;
    switch ((sp_jtype)v.type) {
    case SP_J_MISSING:
    case SP_J_UNDEFINED:
    case SP_J_NONE:
        return false;
    case SP_J_BOOL:
        return v.b;
    case SP_J_INT:
        return v.i != 0;
    case SP_J_FLOAT:
        return v.f != 0;
    case SP_J_BIG:
        return true;
    case SP_J_LOOP:
        return true; /* it has begun, so its length is not 0 */
    default:
        return sp_jval_len(v, &n) ? n != 0 : true;
    }
}

bool sp_jval_len(sp_jval v, size_t *out) {
    switch ((sp_jtype)v.type) {
    case SP_J_UNDEFINED:
        *out = 0;
        return true;
    case SP_J_STR:
        *out = sp_jstr_chars(v.s);
        return true;
    case SP_J_LIST:
    case SP_J_TUPLE:
        *out = v.list->n;
        return true;
    case SP_J_DICT:
        *out = v.dict->n;
        return true;
    case SP_J_VIEW:
        *out = v.view->dict->n;
        return true;
    case SP_J_RANGE:
        *out = (size_t)v.range->n;
        return true;
    default:
        return false;
    }
}

/* -1, 0, 1; 2 when not ordered (NaN). A 64-bit mantissa holds every int64 and every double. */
static int compare_numbers(sp_jval a, sp_jval b) {
    if (a.type == SP_J_BIG && b.type == SP_J_BIG) {
        bool na = a.s->ptr[0] == '-', nb = b.s->ptr[0] == '-';
        if (na != nb) return na ? -1 : 1;
        int c = a.s->len != b.s->len ? (a.s->len < b.s->len ? -1 : 1)
                                     : memcmp(a.s->ptr, b.s->ptr, a.s->len);
        c = (c > 0) - (c < 0);
        return na ? -c : c;
    }
    if (sp_jval_is_int(a) && sp_jval_is_int(b)) {
        int64_t x = sp_jval_as_int(a), y = sp_jval_as_int(b);
        return (x > y) - (x < y);
    }
    long double x = sp_jval_is_int(a) ? (long double)sp_jval_as_int(a) : sp_jval_as_float(a);
    long double y = sp_jval_is_int(b) ? (long double)sp_jval_as_int(b) : sp_jval_as_float(b);
    if (x != x || y != y) return 2;
    return (x > y) - (x < y);
}

static sp_status lists_eq(sp_jrun *r, const sp_jlist *a, const sp_jlist *b, bool *out) {
    bool same = a->n == b->n;
    for (size_t i = 0; i < a->n && same; i++) SP_TRY(sp_jval_eq(r, a->at[i], b->at[i], &same));
    *out = same;
    return SP_OK;
}

static sp_status dicts_eq(sp_jrun *r, const sp_jdict *a, const sp_jdict *b, bool *out) {
    bool same = a->n == b->n;
    for (size_t i = 0; i < a->n && same; i++) {
        sp_jval other;
        SP_TRY(sp_jdict_get(r, b, a->at[i].key, &other));
        same = other.type != SP_J_MISSING;
        if (same) SP_TRY(sp_jval_eq(r, a->at[i].value, other, &same));
    }
    *out = same;
    return SP_OK;
}

static bool ranges_eq(const sp_jrange *a, const sp_jrange *b) {
    if (a->n != b->n) return false;
    if (a->n == 0) return true;
    return a->start == b->start && (a->n == 1 || a->step == b->step);
}

/* Containers, which may be nested. */
static sp_status deep_eq(sp_jrun *r, sp_jval a, sp_jval b, bool *out) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r));
    if (a.type == SP_J_DICT)
        SP_TRY(dicts_eq(r, a.dict, b.dict, out));
    else
        SP_TRY(lists_eq(r, a.list, b.list, out));
    sp_jrun_leave(r);
    return SP_OK;
}

sp_status sp_jval_eq(sp_jrun *r, sp_jval a, sp_jval b, bool *out) {
    *out = false;
    if (sp_jval_is_number(a) && sp_jval_is_number(b)) {
        *out = compare_numbers(a, b) == 0;
        return SP_OK;
    }
    if (a.type != b.type) return SP_OK;
    switch ((sp_jtype)a.type) {
    case SP_J_STR:
        *out = sp_slice_eq(sp_jval_slice(a), sp_jval_slice(b));
        return *out ? sp_jrun_charge(r, a.s->len / 256) : SP_OK;
    case SP_J_LIST:
    case SP_J_TUPLE:
    case SP_J_DICT:
        return deep_eq(r, a, b, out);
    case SP_J_UNDEFINED:
    case SP_J_NONE:
        *out = true;
        return SP_OK;
    case SP_J_RANGE:
        *out = ranges_eq(a.range, b.range);
        return SP_OK;
    case SP_J_VIEW:
        *out = a.view->kind == b.view->kind && a.view->dict == b.view->dict;
        return SP_OK;
    default:
        *out = a.fn == b.fn;
        return SP_OK; /* the same object */
    }
}

/* As Python: the first pair that differs decides, otherwise the shorter is less. */
static sp_status lists_less(sp_jrun *r, const sp_jlist *a, const sp_jlist *b, bool *out) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r));
    size_t n = a->n < b->n ? a->n : b->n, i = 0;
    for (bool same = true; i < n; i++) {
        SP_TRY(sp_jval_eq(r, a->at[i], b->at[i], &same));
        if (!same) break;
    }
    if (i < n)
        SP_TRY(sp_jval_less(r, a->at[i], b->at[i], out));
    else
        *out = a->n < b->n;
    sp_jrun_leave(r);
    return SP_OK;
}

sp_status sp_jval_less(sp_jrun *r, sp_jval a, sp_jval b, bool *out) {
    if (a.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, a);
    if (b.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, b);
    if (sp_jval_is_number(a) && sp_jval_is_number(b)) {
        *out = compare_numbers(a, b) == -1;
        return SP_OK;
    }
    if (a.type == SP_J_STR && b.type == SP_J_STR) {
        size_t n = a.s->len < b.s->len ? a.s->len : b.s->len;
        int c = memcmp(a.s->ptr, b.s->ptr, n); /* UTF-8 sorts as its code points */
        *out = c ? c < 0 : a.s->len < b.s->len;
        return SP_OK;
    }
    if (a.type == b.type && (a.type == SP_J_LIST || a.type == SP_J_TUPLE))
        return lists_less(r, a.list, b.list, out);
    return sp_jrun_fail(r, "'<' not supported between instances of '%s' and '%s'",
                        sp_jval_type_name(a), sp_jval_type_name(b));
}

sp_status sp_jval_less_equal(sp_jrun *r, sp_jval a, sp_jval b, bool *out) {
    SP_TRY(sp_jval_less(r, a, b, out));
    return *out ? SP_OK : sp_jval_eq(r, a, b, out);
}

static sp_status in_iterable(sp_jrun *r, sp_jval needle, sp_jval hay, bool *out) {
    sp_jiter *it;
    SP_TRY(sp_jiter_open(r, hay, &it));
    for (*out = false; !*out;) {
        sp_jval v;
        bool done;
        SP_TRY(sp_jiter_next(r, it, &v, &done));
        if (done) break;
        SP_TRY(sp_jval_eq(r, v, needle, out));
    }
    return SP_OK;
}

sp_status sp_jval_in(sp_jrun *r, sp_jval needle, sp_jval hay, bool *out) {
    sp_jval found;
    switch ((sp_jtype)hay.type) {
    case SP_J_STR:
        if (needle.type != SP_J_STR)
            return sp_jrun_fail(r, "'in <string>' requires string as left operand, not %s",
                                sp_jval_type_name(needle));
        SP_TRY(sp_jrun_charge(r, hay.s->len / 256));
        *out = sp_slice_find(sp_jval_slice(hay), sp_jval_slice(needle), 0) >= 0;
        return SP_OK;
    case SP_J_DICT:
        SP_TRY(sp_jdict_get(r, hay.dict, needle, &found));
        *out = found.type != SP_J_MISSING;
        return SP_OK;
    case SP_J_VIEW:
        if (hay.view->kind != SP_J_KEYS) break;
        SP_TRY(sp_jdict_get(r, hay.view->dict, needle, &found));
        *out = found.type != SP_J_MISSING;
        return SP_OK;
    case SP_J_UNDEFINED:
    case SP_J_LIST:
    case SP_J_TUPLE:
    case SP_J_RANGE:
    case SP_J_ITER:
        break;
    default:
        return sp_jrun_fail(r, "argument of type '%s' is not iterable", sp_jval_type_name(hay));
    }
    return in_iterable(r, needle, hay, out);
}

/* Which of two neighbouring runs gives its item first: the right one only when it must. */
static sp_status right_first(sp_jrun *r, sp_jval left, sp_jval right, bool reverse, bool *out) {
    return reverse ? sp_jval_less(r, left, right, out) : sp_jval_less(r, right, left, out);
}

/* Merges from[lo..mid) and from[mid..hi) into to[lo..hi). */
static sp_status merge(sp_jrun *r, const sp_jlist *keys, const size_t *from, size_t *to,
                       const size_t span[3], bool reverse) {
    size_t i = span[0], j = span[1];
    for (size_t k = span[0]; k < span[2]; k++) {
        bool right = i == span[1];
        if (!right && j < span[2])
            SP_TRY(right_first(r, keys->at[from[i]], keys->at[from[j]], reverse, &right));
        to[k] = from[right ? j++ : i++];
    }
    return SP_OK;
}

sp_status sp_jlist_sort(sp_jrun *r, sp_jlist *items, const sp_jlist *keys, bool reverse) {
    size_t n = items->n;
    void *p;
    if (n < 2) return SP_OK;
    SP_TRY(sp_jrun_take(r, 2 * n * sizeof(size_t) + n * sizeof(sp_jval), &p));
    sp_jval *sorted = p;
    size_t *from = (size_t *)(sorted + n), *to = from + n;
    for (size_t i = 0; i < n; i++) from[i] = i;
    for (size_t width = 1; width < n; width *= 2) {
        SP_TRY(sp_jrun_charge(r, n));
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
            SP_TRY(merge(r, keys, from, to, (size_t[]){lo, mid, hi}, reverse));
        }
        size_t *swap = from;
        from = to;
        to = swap;
    }
    for (size_t i = 0; i < n; i++) sorted[i] = items->at[from[i]];
    memcpy(items->at, sorted, n * sizeof(sp_jval));
    return SP_OK;
}
