/* Filters on any value: defaults, numbers, JSON, escaping. The others are in jinja_filters_list.c,
 * jinja_filters_lazy.c and jinja_filters_text.c. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sp_status f_default(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)c;
    *out = self;
    if (self.type != SP_J_UNDEFINED && !(sp_jval_truth(v[1]) && !sp_jval_truth(self))) return SP_OK;
    *out = v[0];
    return sp_jarg_given(v[0]) ? SP_OK : sp_jval_str(r, (sp_slice){0}, out);
}

static sp_status f_length(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v, (void)c;
    size_t n;
    if (!sp_jval_len(self, &n))
        return sp_jrun_fail(r, "object of type '%s' has no length", sp_jval_type_name(self));
    *out = sp_jval_int((int64_t)n);
    return SP_OK;
}

static sp_status f_string(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v, (void)c;
    return sp_jval_to_str(r, self, out);
}

static sp_status f_safe(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)v, (void)c;
    SP_TRY(sp_jval_to_str(r, self, out));
    out->mark = true;
    return SP_OK;
}

sp_status sp_jval_escape(sp_jrun *r, sp_jval v, sp_jval *out) {
    SP_TRY(sp_jval_to_str(r, v, out));
    if (out->mark) return SP_OK;
    sp_slice s = sp_jval_slice(*out);
    sp_jtext t = {0};
    SP_TRY(sp_jrun_charge(r, s.len / 64));
    for (size_t i = 0; i < s.len; i++) {
        static const char *const words[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
        const char *at = s.ptr[i] ? strchr("&<>'\"", s.ptr[i]) : NULL;
        SP_TRY(at ? sp_jtext_puts(r, &t, words[at - strchr("&<>'\"", '&')])
                  : sp_jtext_put(r, &t, (sp_slice){s.ptr + i, 1}));
    }
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = true;
    return SP_OK;
}

static sp_status f_escape(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v, (void)c;
    return sp_jval_escape(r, self, out);
}

static sp_status f_forceescape(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                               sp_jval *out) {
    (void)v, (void)c;
    self.mark = false;
    return sp_jval_escape(r, self, out);
}

static sp_status f_attr(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)c;
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (v[0].type != SP_J_STR) return sp_jrun_fail(r, "attribute name must be a string");
    SP_TRY(sp_jval_attr(r, self, sp_jval_slice(v[0]), out));
    if (out->type != SP_J_MISSING) return SP_OK;
    return sp_jval_undefined(r, NULL, sp_jval_type_name(self), v[0], out);
}

/* --- numbers --- */

/* Digits of `base`, with single underscores between; false: something else is there. */
static bool scan_digits(sp_slice s, int64_t base, int64_t *v, bool *fits) {
    bool digit = false;
    *v = 0;
    *fits = true;
    for (size_t i = 0; i < s.len; i++) {
        char ch = s.ptr[i];
        if (ch == '_' && digit) {
            digit = false;
            continue;
        }
        int d = ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) >= 'a' ? (ch | 32) - 'a' + 10 : 99;
        if (ch == '_' || d >= base) return false;
        digit = true;
        if (__builtin_mul_overflow(*v, base, v) || __builtin_add_overflow(*v, d, v)) *fits = false;
    }
    return digit;
}

/* An integer of more than 64 bits, kept as its digits. */
static sp_status big_of_digits(sp_jrun *r, sp_slice digits, bool negative, sp_jval *out) {
    sp_jtext t = {0};
    size_t i = 0;
    while (i + 1 < digits.len && (digits.ptr[i] == '0' || digits.ptr[i] == '_')) i++;
    if (negative) SP_TRY(sp_jtext_puts(r, &t, "-"));
    for (; i < digits.len; i++)
        if (digits.ptr[i] != '_') SP_TRY(sp_jtext_put(r, &t, (sp_slice){digits.ptr + i, 1}));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->type = SP_J_BIG;
    return SP_OK;
}

static sp_status parse_int_text(sp_jrun *r, sp_slice s, int64_t base, sp_jval *out, bool *ok) {
    s = sp_slice_strip(s, NULL, SP_STRIP_BOTH);
    bool negative = s.len && s.ptr[0] == '-', fits;
    if (s.len && (s.ptr[0] == '-' || s.ptr[0] == '+')) s = (sp_slice){s.ptr + 1, s.len - 1};
    int64_t v, marked = 0;
    if (s.len > 2 && s.ptr[0] == '0') {
        char x = (char)(s.ptr[1] | 32);
        marked = x == 'x' ? 16 : x == 'o' ? 8 : x == 'b' ? 2 : 0;
    }
    if (marked && (base == marked || base == 0)) {
        size_t skip = 2 + (s.ptr[2] == '_');
        s = (sp_slice){s.ptr + skip, s.len - skip};
        base = marked;
    }
    *ok = scan_digits(s, base ? base : 10, &v, &fits);
    /* Base 0 reads as Python source does, where 010 is nothing. */
    if (*ok && base == 0 && s.ptr[0] == '0' && v != 0) *ok = false;
    *out = sp_jval_int(negative ? -v : v);
    if (!*ok || fits) return SP_OK;
    if (base && base != 10)
        return sp_jrun_fail(r, "an integer beyond 64 bits in base %lld", (long long)base);
    return big_of_digits(r, s, negative, out);
}

static sp_status int_of_float(sp_jrun *r, double f, sp_jval *out, bool *ok) {
    *ok = isfinite(f);
    if (!*ok) return SP_OK;
    f = trunc(f);
    if (f >= -9223372036854775808.0 && f < 9223372036854775808.0) {
        *out = sp_jval_int((int64_t)f);
        return SP_OK;
    }
    char text[330];
    snprintf(text, sizeof text, "%.0f", fabs(f));
    return big_of_digits(r, sp_slice_of(text), f < 0, out);
}

sp_status sp_jval_parse_int(sp_jrun *r, sp_jval v, int64_t base, sp_jval *out, bool *ok) {
    *ok = true;
    if (v.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, v);
    if (v.type == SP_J_STR) return parse_int_text(r, sp_jval_slice(v), base, out, ok);
    if (v.type == SP_J_FLOAT) return int_of_float(r, v.f, out, ok);
    *ok = sp_jval_is_number(v);
    *out = v.type == SP_J_BOOL ? sp_jval_int(v.b) : v;
    return SP_OK;
}

/* Digits with underscores removed that C reads as Python does; no hexadecimal floats. */
static bool parse_float_text(sp_slice s, double *out) {
    char text[400];
    size_t n = 0;
    s = sp_slice_strip(s, NULL, SP_STRIP_BOTH);
    for (size_t i = 0; i < s.len; i++) {
        char ch = s.ptr[i];
        bool between = i > 0 && i + 1 < s.len && s.ptr[i - 1] >= '0' && s.ptr[i - 1] <= '9' &&
                       s.ptr[i + 1] >= '0' && s.ptr[i + 1] <= '9';
        if (ch == '_' && between) continue;
        if (!ch || !strchr("0123456789+-.eEinfatyINFATY", ch) || n + 1 >= sizeof text) return false;
        text[n++] = ch;
    }
    text[n] = 0;
    if (n == 0) return false;
    char *end;
    *out = strtod(text, &end);
    return *end == 0;
}

bool sp_jval_parse_float(sp_jval v, double *out) {
    if (v.type == SP_J_STR) return parse_float_text(sp_jval_slice(v), out);
    if (!sp_jval_is_number(v)) return false;
    *out = sp_jval_as_float(v);
    return true;
}

static sp_status f_int(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)c;
    int64_t base;
    bool ok;
    double f;
    SP_TRY(sp_jarg_int(r, v[1], 10, &base));
    SP_TRY(sp_jval_parse_int(r, self, base, out, &ok));
    if (!ok && sp_jval_parse_float(self, &f)) SP_TRY(int_of_float(r, f, out, &ok));
    if (!ok) *out = sp_jarg_given(v[0]) ? v[0] : sp_jval_int(0);
    return SP_OK;
}

static sp_status f_float(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)c;
    double f;
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (sp_jval_parse_float(self, &f))
        *out = sp_jval_float(f);
    else
        *out = sp_jarg_given(v[0]) ? v[0] : sp_jval_float(0);
    return SP_OK;
}

static sp_status f_abs(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                       sp_jval *out) {
    (void)v, (void)c;
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (!sp_jval_is_number(self))
        return sp_jrun_fail(r, "bad operand type for abs(): '%s'", sp_jval_type_name(self));
    *out = self;
    if (self.type == SP_J_FLOAT) out->f = fabs(self.f);
    if (self.type == SP_J_BIG && self.s->ptr[0] == '-')
        return big_of_digits(r, (sp_slice){self.s->ptr + 1, self.s->len - 1}, false, out);
    if (!sp_jval_is_int(self)) return SP_OK;
    *out = sp_jval_int(sp_jval_as_int(self));
    return out->i < 0 ? sp_jval_negate(r, *out, out) : SP_OK;
}

/* round(f, digits): half to even on the exact value, which is what printf does. */
static double round_float(double f, int64_t digits) {
    if (!isfinite(f) || digits > 308) return f;
    if (digits < -308) return copysign(0, f);
    if (digits < 0) {
        long double scale = powl(10, (long double)-digits);
        return (double)(rintl((long double)f / scale) * scale);
    }
    char text[700];
    snprintf(text, sizeof text, "%.*f", (int)digits, f);
    return strtod(text, NULL);
}

static sp_status round_int(sp_jrun *r, int64_t i, int64_t digits, sp_jval *out) {
    *out = sp_jval_int(i);
    if (digits >= 0) return SP_OK;
    if (digits < -18) {
        *out = sp_jval_int(0);
        return SP_OK;
    }
    int64_t scale = 1;
    for (; digits < 0; digits++) scale *= 10;
    int64_t down = i / scale - (i % scale < 0), rest = i - down * scale;
    if (rest > scale - rest || (rest == scale - rest && down % 2 != 0)) down++;
    if (__builtin_mul_overflow(down, scale, &i))
        return sp_jrun_fail(r, "an integer beyond 64 bits");
    *out = sp_jval_int(i);
    return SP_OK;
}

static sp_status f_round(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)c;
    int64_t digits = 0;
    sp_slice method;
    bool ok;
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (v[0].type != SP_J_NONE) SP_TRY(sp_jarg_int(r, v[0], 0, &digits));
    SP_TRY(sp_jarg_str(r, v[1], "common", &method));
    bool up = sp_slice_is(method, "ceil"), down = sp_slice_is(method, "floor");
    if (!up && !down && !sp_slice_is(method, "common"))
        return sp_jrun_fail(r, "method must be common, ceil or floor");
    if (!sp_jval_is_number(self) || (self.type == SP_J_BIG && digits < 0))
        return sp_jrun_fail(r, "'%s' cannot be rounded", sp_jval_type_name(self));
    if (up || down) {
        double scale = pow(10, (double)digits), f = sp_jval_as_float(self) * scale;
        *out = sp_jval_float((up ? ceil(f) : floor(f)) / scale);
        return SP_OK;
    }
    *out = self;
    if (self.type == SP_J_BIG) return SP_OK;
    if (sp_jval_is_int(self)) return round_int(r, sp_jval_as_int(self), digits, out);
    *out = sp_jval_float(round_float(self.f, digits));
    return v[0].type == SP_J_NONE ? int_of_float(r, out->f, out, &ok) : SP_OK;
}

/* --- JSON --- */

static sp_status json_indent(sp_jrun *r, sp_jval v, sp_jjson_options *o) {
    if (!sp_jarg_given_some(v)) return SP_OK;
    o->pretty = true;
    o->item = SP_SLICE(",");
    if (v.type == SP_J_STR) {
        o->indent = sp_jval_slice(v);
        return SP_OK;
    }
    int64_t n;
    sp_jtext t = {0};
    SP_TRY(sp_jarg_int(r, v, 0, &n));
    SP_TRY(sp_jtext_fill(r, &t, SP_SLICE(" "), n));
    o->indent = (sp_slice){t.ptr, t.len};
    return SP_OK;
}

static sp_status json_separators(sp_jrun *r, sp_jval v, sp_jjson_options *o) {
    sp_jlist *l;
    if (!sp_jarg_given_some(v)) return SP_OK;
    SP_TRY(sp_jiter_collect(r, v, &l));
    if (l->n != 2 || l->at[0].type != SP_J_STR || l->at[1].type != SP_J_STR)
        return sp_jrun_fail(r, "separators must be two strings");
    o->item = sp_jval_slice(l->at[0]);
    o->colon = sp_jval_slice(l->at[1]);
    return SP_OK;
}

/* The parameters in the order transformers gives them. */
static sp_status f_tojson(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)c;
    sp_jtext t = {0};
    sp_jjson_options o = {.ascii = sp_jval_truth(v[0]),
                          .sort_keys = sp_jval_truth(v[3]),
                          .item = SP_SLICE(", "),
                          .colon = SP_SLICE(": ")};
    SP_TRY(json_indent(r, v[1], &o));
    SP_TRY(json_separators(r, v[2], &o));
    SP_TRY(sp_jval_put_json(r, self, &o, &t));
    return sp_jtext_done(r, &t, out);
}

static const sp_jspec FILTERS[] = {
    {"default", f_default, "default_value boolean", 0},
    {"d", f_default, "default_value boolean", 0},
    {"length", f_length, "", 0},
    {"count", f_length, "", 0},
    {"string", f_string, "", 0},
    {"safe", f_safe, "", 0},
    {"escape", f_escape, "", 0},
    {"e", f_escape, "", 0},
    {"forceescape", f_forceescape, "", 0},
    {"attr", f_attr, "name", 1},
    {"int", f_int, "default base", 0},
    {"float", f_float, "default", 0},
    {"abs", f_abs, "", 0},
    {"round", f_round, "precision method", 0},
    {"tojson", f_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"random", NULL, "*", 0},
    {"pprint", NULL, "*", 0},
    {"urlize", NULL, "*", 0},
    {"wordwrap", NULL, "*", 0},
};

const sp_jspec *sp_jfilter_find(sp_slice name) {
    const sp_jspec *f = sp_jspec_find(FILTERS, SP_LEN(FILTERS), name);
    if (!f) f = sp_jfilter_find_list(name);
    if (!f) f = sp_jfilter_find_lazy(name);
    return f ? f : sp_jfilter_find_text(name);
}
