/* Tests: what stands behind "is". */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

static sp_status answer(sp_jval *out, bool b) {
    *out = sp_jval_bool(b);
    return SP_OK;
}

/* A test that looks at the type or the value alone. */
#define SIMPLE(name, condition) \
    static sp_status name(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c, \
                          sp_jval *out) { \
        (void)r, (void)v, (void)c; \
        return answer(out, condition); \
    }

SIMPLE(is_defined, self.type != SP_J_UNDEFINED)
SIMPLE(is_undefined, self.type == SP_J_UNDEFINED)
SIMPLE(is_none, self.type == SP_J_NONE)
SIMPLE(is_boolean, self.type == SP_J_BOOL)
SIMPLE(is_true, self.type == SP_J_BOOL && self.b)
SIMPLE(is_false, self.type == SP_J_BOOL && !self.b)
SIMPLE(is_integer, self.type == SP_J_INT || self.type == SP_J_BIG)
SIMPLE(is_float, self.type == SP_J_FLOAT)
SIMPLE(is_number, sp_jval_is_number(self))
SIMPLE(is_string, self.type == SP_J_STR)
SIMPLE(is_mapping, self.type == SP_J_DICT)
SIMPLE(is_iterable, sp_jval_iterable(self))
SIMPLE(is_callable, sp_jval_callable(self))
SIMPLE(is_escaped, self.type == SP_J_STR && self.mark)

/* What has a length and items by number or key: an undefined value too, a view not. */
SIMPLE(is_sequence, self.type == SP_J_UNDEFINED || self.type == SP_J_STR ||
                        self.type == SP_J_LIST || self.type == SP_J_TUPLE ||
                        self.type == SP_J_DICT || self.type == SP_J_RANGE)

/* Whether a table has the name; asking needs something that can be a key. */
static sp_status named_in(sp_jrun *r, sp_jval self, const sp_jspec *(*find)(sp_slice),
                          sp_jval *out) {
    bool hashable;
    SP_TRY(sp_jval_hashable(r, self, &hashable));
    if (!hashable) return sp_jrun_fail(r, "unhashable type: '%s'", sp_jval_type_name(self));
    return answer(out, self.type == SP_J_STR && find(sp_jval_slice(self)));
}

static sp_status is_filter(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)v, (void)c;
    return named_in(r, self, sp_jfilter_find, out);
}
static sp_status is_test(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    return named_in(r, self, sp_jtest_find, out);
}

static sp_status letters_are(sp_jrun *r, sp_jval self, bool upper, sp_jval *out) {
    SP_TRY(sp_jval_to_str(r, self, &self));
    bool any = false;
    for (size_t i = 0; i < self.s->len;) {
        uint32_t cp;
        i += (size_t)sp_utf8_first((sp_slice){self.s->ptr + i, self.s->len - i}, &cp);
        bool right = upper ? sp_char_upper(cp) : sp_char_lower(cp);
        bool wrong = (upper ? sp_char_lower(cp) : sp_char_upper(cp)) || sp_char_title(cp);
        if (wrong) return answer(out, false);
        any = any || right;
    }
    return answer(out, any);
}

static sp_status is_upper(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v, (void)c;
    return letters_are(r, self, true, out);
}
static sp_status is_lower(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v, (void)c;
    return letters_are(r, self, false, out);
}

static sp_status remainder_is(sp_jrun *r, sp_jval self, sp_jval by, int64_t wanted, sp_jval *out) {
    sp_jval rest;
    bool same;
    SP_TRY(sp_jval_binary(r, SP_JT_MOD, self, by, &rest));
    SP_TRY(sp_jval_eq(r, rest, sp_jval_int(wanted), &same));
    return answer(out, same);
}

static sp_status is_odd(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)v, (void)c;
    return remainder_is(r, self, sp_jval_int(2), 1, out);
}
static sp_status is_even(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    return remainder_is(r, self, sp_jval_int(2), 0, out);
}
static sp_status is_divisibleby(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                                sp_jval *out) {
    (void)c;
    return remainder_is(r, self, v[0], 0, out);
}

static sp_status is_in(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    bool b;
    SP_TRY(sp_jval_in(r, self, v[0], &b));
    return answer(out, b);
}

static sp_status is_eq(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    bool b;
    SP_TRY(sp_jval_eq(r, self, v[0], &b));
    return answer(out, b);
}
static sp_status is_ne(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    SP_TRY(is_eq(r, self, v, c, out));
    return answer(out, !out->b);
}

static sp_status is_lt(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    bool b;
    SP_TRY(sp_jval_less(r, self, v[0], &b));
    return answer(out, b);
}
static sp_status is_gt(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    return is_lt(r, v[0], &self, c, out);
}
static sp_status is_le(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    bool b;
    SP_TRY(sp_jval_less_equal(r, self, v[0], &b));
    return answer(out, b);
}
static sp_status is_ge(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    return is_le(r, v[0], &self, c, out);
}

/* The same object: small values are, and what lies at the same place. */
static sp_status is_sameas(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)c;
    if (self.type != v[0].type) return answer(out, false);
    if (self.type == SP_J_NONE) return answer(out, true);
    if (self.type == SP_J_STR || self.type <= SP_J_FLOAT) return is_eq(r, self, v, c, out);
    return answer(out, self.list == v[0].list);
}

static const sp_jspec TESTS[] = {
    {"defined", is_defined, "", 0},    {"undefined", is_undefined, "", 0},
    {"none", is_none, "", 0},          {"boolean", is_boolean, "", 0},
    {"true", is_true, "", 0},          {"false", is_false, "", 0},
    {"integer", is_integer, "", 0},    {"float", is_float, "", 0},
    {"number", is_number, "", 0},      {"string", is_string, "", 0},
    {"mapping", is_mapping, "", 0},    {"iterable", is_iterable, "", 0},
    {"sequence", is_sequence, "", 0},  {"callable", is_callable, "", 0},
    {"escaped", is_escaped, "", 0},    {"filter", is_filter, "", 0},
    {"test", is_test, "", 0},          {"upper", is_upper, "", 0},
    {"lower", is_lower, "", 0},        {"odd", is_odd, "", 0},
    {"even", is_even, "", 0},          {"divisibleby", is_divisibleby, "num", 1},
    {"sameas", is_sameas, "other", 1}, {"in", is_in, "seq", 1},
    {"eq", is_eq, "other", 1},         {"equalto", is_eq, "other", 1},
    {"==", is_eq, "other", 1},         {"ne", is_ne, "other", 1},
    {"!=", is_ne, "other", 1},         {"lt", is_lt, "other", 1},
    {"lessthan", is_lt, "other", 1},   {"<", is_lt, "other", 1},
    {"gt", is_gt, "other", 1},         {"greaterthan", is_gt, "other", 1},
    {">", is_gt, "other", 1},          {"le", is_le, "other", 1},
    {"<=", is_le, "other", 1},         {"ge", is_ge, "other", 1},
    {">=", is_ge, "other", 1},
};

const sp_jspec *sp_jtest_find(sp_slice name) {
    return sp_jspec_find(TESTS, SP_LEN(TESTS), name);
}
