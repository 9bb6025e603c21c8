/* Arithmetic, attributes, subscripts and slices, as Python does them and as the sandbox of Jinja2
 * lets them through. Integers have 64 bits; what does not fit is an error, never a wrong number. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

#include <math.h>
#include <string.h>

/* --- arithmetic --- */

static sp_status too_large(sp_jrun *r) {
    return sp_jrun_fail(r, "an integer beyond 64 bits is not computed with");
}

static sp_status by_zero(sp_jrun *r) {
    return sp_jrun_fail(r, "division by zero");
}

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static sp_status int_pow(sp_jrun *r, int64_t base, int64_t exponent, sp_jval *out) {
    int64_t v = 1;
    if (exponent < 0) {
        if (base == 0) return by_zero(r);
        *out = sp_jval_float(pow((double)base, (double)exponent));
        return SP_OK;
    }
    if (base == 0 || base == 1 || base == -1) {
        *out = sp_jval_int(exponent == 0 ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base);
        return SP_OK;
    }
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(v, base, &v)) return too_large(r);
    *out = sp_jval_int(v);
    return SP_OK;
}

static sp_status int_op(sp_jrun *r, sp_jtok op, int64_t a, int64_t b, sp_jval *out) {
    int64_t v = 0;
    bool over = false;
    switch (op) {
    case SP_JT_ADD:
        over = __builtin_add_overflow(a, b, &v);
        break;
    case SP_JT_SUB:
        over = __builtin_sub_overflow(a, b, &v);
        break;
    case SP_JT_MUL:
        over = __builtin_mul_overflow(a, b, &v);
        break;
    case SP_JT_POW:
        return int_pow(r, a, b, out);
    case SP_JT_DIV:
        if (b == 0) return by_zero(r);
        *out = sp_jval_float((double)((long double)a / (long double)b));
        return SP_OK;
    default:
        if (b == 0) return by_zero(r);
        over = op == SP_JT_FLOORDIV && a == INT64_MIN && b == -1;
        if (over) break;
        if (b == -1)
            v = op == SP_JT_FLOORDIV ? -a : 0;
        else
            v = op == SP_JT_FLOORDIV ? floor_div(a, b) : a - floor_div(a, b) * b;
    }
    if (over) return too_large(r);
    *out = sp_jval_int(v);
    return SP_OK;
}

/* Python's remainder has the sign of the divisor, and the quotient fits it. */
static double float_mod(double a, double b) {
    double m = fmod(a, b);
    if (m == 0) return copysign(0, b);
    return (m < 0) != (b < 0) ? m + b : m;
}

static double float_floor_div(double a, double b) {
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0 && (m < 0) != (b < 0)) q -= 1;
    if (q == 0) return copysign(0, a / b);
    double f = floor(q);
    return q - f > 0.5 ? f + 1 : f;
}

static sp_status float_op(sp_jrun *r, sp_jtok op, double a, double b, sp_jval *out) {
    double v;
    if (b == 0 && (op == SP_JT_DIV || op == SP_JT_FLOORDIV || op == SP_JT_MOD)) return by_zero(r);
    switch (op) {
    case SP_JT_ADD:
        v = a + b;
        break;
    case SP_JT_SUB:
        v = a - b;
        break;
    case SP_JT_MUL:
        v = a * b;
        break;
    case SP_JT_DIV:
        v = a / b;
        break;
    case SP_JT_MOD:
        v = float_mod(a, b);
        break;
    case SP_JT_FLOORDIV:
        v = float_floor_div(a, b);
        break;
    default:
        if (a == 0 && b < 0) return by_zero(r);
        if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
            return sp_jrun_fail(r, "a power that is not a real number");
        v = pow(a, b);
        if (isinf(v) && isfinite(a) && isfinite(b)) return sp_jrun_fail(r, "a power too large");
    }
    *out = sp_jval_float(v);
    return SP_OK;
}

static sp_status number_op(sp_jrun *r, sp_jtok op, sp_jval a, sp_jval b, sp_jval *out) {
    if (a.type == SP_J_BIG || b.type == SP_J_BIG) return too_large(r);
    if (sp_jval_is_int(a) && sp_jval_is_int(b))
        return int_op(r, op, sp_jval_as_int(a), sp_jval_as_int(b), out);
    return float_op(r, op, sp_jval_as_float(a), sp_jval_as_float(b), out);
}

static sp_status add_strings(sp_jrun *r, sp_jval a, sp_jval b, sp_jval *out) {
    bool mark = a.mark || b.mark;
    if (mark) {
        SP_TRY(sp_jval_escape(r, a, &a));
        SP_TRY(sp_jval_escape(r, b, &b));
    }
    SP_TRY(sp_jrun_charge(r, b.s->len / 64));
    SP_TRY(sp_jval_concat(r, a, sp_jval_slice(b), out));
    out->mark = mark;
    return SP_OK;
}

static sp_status add_lists(sp_jrun *r, sp_jval a, sp_jval b, sp_jval *out) {
    sp_jlist *l;
    size_t n = a.list->n + b.list->n;
    SP_TRY(sp_jrun_charge(r, n / 4));
    SP_TRY(sp_jlist_create(r, n, &l));
    if (a.list->n) memcpy(l->at, a.list->at, a.list->n * sizeof(sp_jval));
    if (b.list->n) memcpy(l->at + a.list->n, b.list->at, b.list->n * sizeof(sp_jval));
    l->n = n;
    *out = (sp_jval){.type = a.type, .list = l};
    return SP_OK;
}

static sp_status repeat(sp_jrun *r, sp_jval v, int64_t times, sp_jval *out) {
    if (times < 0) times = 0;
    if (v.type == SP_J_STR) {
        sp_jtext t = {0};
        bool mark = v.mark;
        SP_TRY(sp_jtext_fill(r, &t, sp_jval_slice(v), times));
        SP_TRY(sp_jtext_done(r, &t, out));
        out->mark = mark;
        return SP_OK;
    }
    size_t n;
    if (__builtin_mul_overflow(v.list->n, (size_t)times, &n))
        return sp_jrun_fail(r, "a list repeated %lld times is too long", (long long)times);
    sp_jlist *l;
    SP_TRY(sp_jrun_charge(r, n));
    SP_TRY(sp_jlist_create(r, n, &l));
    for (; l->n < n; l->n++) l->at[l->n] = v.list->at[l->n % v.list->n];
    *out = (sp_jval){.type = v.type, .list = l};
    return SP_OK;
}

static bool is_sequence(sp_jval v) {
    return v.type == SP_J_STR || v.type == SP_J_LIST || v.type == SP_J_TUPLE;
}

sp_status sp_jval_binary(sp_jrun *r, sp_jtok op, sp_jval a, sp_jval b, sp_jval *out) {
    /* "%" of a string comes before what an undefined argument has to say. */
    if (op == SP_JT_MOD && a.type == SP_J_STR) return sp_jval_percent(r, a, b, out);
    if (a.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, a);
    if (b.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, b);
    if (sp_jval_is_number(a) && sp_jval_is_number(b)) return number_op(r, op, a, b, out);
    if (op == SP_JT_ADD && a.type == b.type && a.type == SP_J_STR) return add_strings(r, a, b, out);
    if (op == SP_JT_ADD && a.type == b.type && is_sequence(a)) return add_lists(r, a, b, out);
    if (op == SP_JT_MUL && is_sequence(a) && sp_jval_is_int(b))
        return repeat(r, a, sp_jval_as_int(b), out);
    if (op == SP_JT_MUL && is_sequence(b) && sp_jval_is_int(a))
        return repeat(r, b, sp_jval_as_int(a), out);
    return sp_jrun_fail(r, "unsupported operand types for %s: '%s' and '%s'", sp_jtok_text(op),
                        sp_jval_type_name(a), sp_jval_type_name(b));
}

sp_status sp_jval_negate(sp_jrun *r, sp_jval v, sp_jval *out) {
    if (v.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, v);
    if (v.type == SP_J_FLOAT) {
        *out = sp_jval_float(-v.f);
        return SP_OK;
    }
    if (!sp_jval_is_int(v))
        return v.type == SP_J_BIG
                   ? too_large(r)
                   : sp_jrun_fail(r, "bad operand type for unary -: '%s'", sp_jval_type_name(v));
    return int_op(r, SP_JT_SUB, 0, sp_jval_as_int(v), out);
}

/* --- attributes and items --- */

static sp_status bind_method(sp_jrun *r, sp_jval self, const sp_jspec *spec, sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jbound), &p));
    sp_jbound *b = p;
    *b = (sp_jbound){self, spec};
    *out = (sp_jval){.type = SP_J_METHOD, .bound = b};
    return SP_OK;
}

static sp_status macro_attr(sp_jrun *r, const sp_jmacro *m, sp_slice name, sp_jval *out) {
    const sp_jnode *n = m->node;
    if (sp_slice_is(name, "catch_kwargs")) *out = sp_jval_bool(n->op & SP_JM_KWARGS);
    if (sp_slice_is(name, "catch_varargs")) *out = sp_jval_bool(n->op & SP_JM_VARARGS);
    if (sp_slice_is(name, "caller")) *out = sp_jval_bool(n->op & SP_JM_CALLER);
    if (sp_slice_is(name, "name") && n->kind == SP_JN_MACRO) return sp_jval_str(r, n->text, out);
    if (sp_slice_is(name, "name")) *out = sp_jval_none();
    if (!sp_slice_is(name, "arguments")) return SP_OK;
    sp_jlist *l;
    SP_TRY(sp_jlist_create(r, (size_t)n->args.n, &l));
    for (int i = 0; i < n->args.n; i++) {
        sp_jval word;
        SP_TRY(sp_jval_str(r, n->args.at[i]->text, &word));
        SP_TRY(sp_jlist_push(r, l, word));
    }
    *out = sp_jval_tuple(l);
    return SP_OK;
}

/* What is not a method. */
static sp_status data_attr(sp_jrun *r, sp_jval obj, sp_slice name, sp_jval *out) {
    switch ((sp_jtype)obj.type) {
    case SP_J_NAMESPACE: {
        const sp_jval *v = sp_jdict_find(obj.dict, name);
        if (v) *out = *v;
        return SP_OK;
    }
    case SP_J_LOOP:
        return sp_jloop_attr(r, obj.loop, name, out);
    case SP_J_MACRO:
        return macro_attr(r, obj.macro, name, out);
    case SP_J_CYCLER:
        if (sp_slice_is(name, "current")) *out = obj.cycler->items->at[obj.cycler->at];
        return SP_OK;
    case SP_J_TUPLE:
        if (obj.mark && sp_slice_is(name, "grouper")) *out = obj.list->at[0];
        if (obj.mark && sp_slice_is(name, "list")) *out = obj.list->at[1];
        return SP_OK;
    case SP_J_RANGE:
        if (sp_slice_is(name, "start")) *out = sp_jval_int(obj.range->start);
        if (sp_slice_is(name, "stop")) *out = sp_jval_int(obj.range->stop);
        if (sp_slice_is(name, "step")) *out = sp_jval_int(obj.range->step);
        return SP_OK;
    case SP_J_INT:
    case SP_J_BOOL:
    case SP_J_FLOAT:
        if (sp_slice_is(name, "real")) *out = obj.type == SP_J_BOOL ? sp_jval_int(obj.b) : obj;
        if (sp_slice_is(name, "imag"))
            *out = obj.type == SP_J_FLOAT ? sp_jval_float(0) : sp_jval_int(0);
        if (obj.type != SP_J_FLOAT && sp_slice_is(name, "numerator"))
            *out = sp_jval_int(sp_jval_as_int(obj));
        if (obj.type != SP_J_FLOAT && sp_slice_is(name, "denominator")) *out = sp_jval_int(1);
        return SP_OK;
    default:
        return SP_OK;
    }
}

/* Attributes that every Python object has and that the sandbox hides. */
static bool is_hidden(sp_slice name) {
    static const char *const words[] = {
        "__class__",   "__doc__",       "__dir__",           "__eq__",          "__ne__",
        "__hash__",    "__init__",      "__new__",           "__repr__",        "__str__",
        "__reduce__",  "__reduce_ex__", "__format__",        "__sizeof__",      "__getattribute__",
        "__setattr__", "__delattr__",   "__init_subclass__", "__subclasshook__"};
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (sp_slice_is(name, words[i])) return true;
    return false;
}

sp_status sp_jval_attr(sp_jrun *r, sp_jval obj, sp_slice name, sp_jval *out) {
    bool mutates = false;
    *out = sp_jval_missing();
    const sp_jspec *m = sp_jmethod_find(obj, name, &mutates);
    if (mutates || is_hidden(name)) {
        sp_jval word;
        SP_TRY(sp_jval_str(r, name, &word));
        return sp_jval_undefined(r, "access to this attribute is unsafe: the sandbox refuses it",
                                 sp_jval_type_name(obj), word, out);
    }
    return m ? bind_method(r, obj, m, out) : data_attr(r, obj, name, out);
}

/* Item `key`; MISSING where Python raises TypeError or LookupError. */
static sp_status item(sp_jrun *r, sp_jval obj, sp_jval key, sp_jval *out) {
    *out = sp_jval_missing();
    if (obj.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, obj);
    if (obj.type == SP_J_DICT) {
        bool hashable;
        SP_TRY(sp_jval_hashable(r, key, &hashable));
        return hashable ? sp_jdict_get(r, obj.dict, key, out) : SP_OK;
    }
    if (!is_sequence(obj) && obj.type != SP_J_RANGE) return SP_OK;
    size_t n;
    if (!sp_jval_is_int(key) || !sp_jval_len(obj, &n)) return SP_OK;
    int64_t i = sp_jval_as_int(key);
    if (i < 0) i += (int64_t)n;
    return i >= 0 && i < (int64_t)n ? sp_jval_at(r, obj, (size_t)i, out) : SP_OK;
}

static sp_status not_there(sp_jrun *r, sp_jval obj, sp_jval key, sp_jval *out) {
    if (out->type != SP_J_MISSING) return SP_OK;
    return sp_jval_undefined(r, NULL, sp_jval_type_name(obj), key, out);
}

sp_status sp_jval_getattr(sp_jrun *r, sp_jval obj, sp_jval name, sp_jval *out) {
    if (obj.type == SP_J_UNDEFINED && !is_hidden(sp_jval_slice(name)))
        return sp_jval_fail_undefined(r, obj);
    SP_TRY(sp_jval_attr(r, obj, sp_jval_slice(name), out));
    if (out->type == SP_J_MISSING) SP_TRY(item(r, obj, name, out));
    return not_there(r, obj, name, out);
}

sp_status sp_jval_getitem(sp_jrun *r, sp_jval obj, sp_jval key, sp_jval *out) {
    SP_TRY(item(r, obj, key, out));
    if (out->type == SP_J_MISSING && key.type == SP_J_STR)
        SP_TRY(sp_jval_attr(r, obj, sp_jval_slice(key), out));
    return not_there(r, obj, key, out);
}

/* --- slices --- */

/* Python's rules: a missing end is the far end in the direction of the step, a negative one counts
 * from the end, and both are clamped. */
static void slice_bounds(const sp_jval part[3], int64_t n, int64_t step, int64_t ends[2]) {
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    ends[0] = step > 0 ? low : high;
    ends[1] = step > 0 ? high : low;
    for (int i = 0; i < 2; i++) {
        if (part[i].type == SP_J_NONE) continue;
        int64_t v = sp_jval_as_int(part[i]);
        if (v < 0) v += n;
        ends[i] = v < low ? low : v > high ? high : v;
    }
}

static sp_status check_slice(sp_jrun *r, sp_jval obj, const sp_jval part[3]) {
    if (obj.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, obj);
    if (!is_sequence(obj) && obj.type != SP_J_RANGE)
        return sp_jrun_fail(r, "'%s' object cannot be sliced", sp_jval_type_name(obj));
    for (int i = 0; i < 3; i++)
        if (part[i].type != SP_J_NONE && !sp_jval_is_int(part[i]))
            return sp_jrun_fail(r, "slice indices must be integers or None, got %s",
                                sp_jval_type_name(part[i]));
    return SP_OK;
}

static sp_status slice_string(sp_jrun *r, sp_jval v, int64_t from, int64_t n, int64_t step,
                              sp_jval *out) {
    if (sp_jstr_chars(v.s) != v.s->len) SP_TRY(sp_jrun_charge(r, v.s->len / 64));
    if (step == 1 || n <= 1) {
        size_t a = sp_jstr_byte(v.s, (size_t)from), b = sp_jstr_byte(v.s, (size_t)(from + n));
        if (n == 0) a = b = 0;
        SP_TRY(sp_jval_str(r, (sp_slice){v.s->ptr + a, b - a}, out));
        return SP_OK;
    }
    /* Byte positions of all characters, so that any step is one look each. */
    size_t total = sp_jstr_chars(v.s);
    void *p;
    SP_TRY(sp_jrun_charge(r, (uint64_t)n));
    SP_TRY(sp_jrun_take(r, (total + 1) * sizeof(uint32_t), &p));
    uint32_t *starts = p;
    size_t k = 0;
    for (size_t i = 0; i < v.s->len; i++)
        if (((unsigned char)v.s->ptr[i] & 0xc0) != 0x80) starts[k++] = (uint32_t)i;
    starts[k] = (uint32_t)v.s->len;
    sp_jtext t = {0};
    for (int64_t i = 0; i < n; i++) {
        size_t c = (size_t)(from + i * step);
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){v.s->ptr + starts[c], starts[c + 1] - starts[c]}));
    }
    return sp_jtext_done(r, &t, out);
}

static sp_status slice_range(sp_jrun *r, const sp_jrange *g, int64_t from, int64_t to, int64_t n,
                             int64_t step, sp_jval *out) {
    void *p;
    int64_t stride; /* the rest cannot overflow: sp_jglobal's range bounds it */
    if (__builtin_mul_overflow(step, g->step, &stride)) return too_large(r);
    SP_TRY(sp_jrun_take(r, sizeof(sp_jrange), &p));
    sp_jrange *s = p;
    *s = (sp_jrange){g->start + from * g->step, stride, n, g->start + to * g->step};
    *out = (sp_jval){.type = SP_J_RANGE, .range = s};
    return SP_OK;
}

sp_status sp_jval_getslice(sp_jrun *r, sp_jval obj, const sp_jval part[3], sp_jval *out) {
    size_t len = 0;
    int64_t ends[2];
    SP_TRY(check_slice(r, obj, part));
    sp_jval_len(obj, &len);
    int64_t step = part[2].type == SP_J_NONE ? 1 : sp_jval_as_int(part[2]);
    if (step == 0) return sp_jrun_fail(r, "slice step cannot be zero");
    if (step < -INT64_MAX) step = -INT64_MAX;
    slice_bounds(part, (int64_t)len, step, ends);
    int64_t from = ends[0], span = step > 0 ? ends[1] - from : from - ends[1];
    int64_t n = span <= 0 ? 0 : (span - 1) / (step > 0 ? step : -step) + 1;
    if (obj.type == SP_J_RANGE) return slice_range(r, obj.range, from, ends[1], n, step, out);
    if (obj.type == SP_J_STR) {
        SP_TRY(slice_string(r, obj, from, n, step, out));
        out->mark = obj.mark;
        return SP_OK;
    }
    sp_jlist *l;
    SP_TRY(sp_jrun_charge(r, (uint64_t)n / 4));
    SP_TRY(sp_jlist_create(r, (size_t)n, &l));
    for (int64_t i = 0; i < n; i++) l->at[l->n++] = obj.list->at[from + i * step];
    *out = (sp_jval){.type = obj.type, .list = l};
    return SP_OK;
}
