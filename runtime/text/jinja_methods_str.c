/* The methods of str. On Markup they give Markup, and what they put in is escaped. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

#include <string.h>

#define METHOD(name) \
    static sp_status name(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c, \
                          sp_jval *out)

static sp_status answer(sp_jval *out, bool b) {
    *out = sp_jval_bool(b);
    return SP_OK;
}

/* An argument that a Markup escapes. */
static sp_status added_text(sp_jrun *r, sp_jval self, sp_jval v, const char *otherwise,
                            sp_slice *out) {
    SP_TRY(sp_jarg_str(r, v, otherwise, out));
    if (!self.mark || v.type != SP_J_STR) return SP_OK;
    SP_TRY(sp_jval_escape(r, v, &v));
    *out = sp_jval_slice(v);
    return SP_OK;
}

/* --- case --- */

static sp_status with_case(sp_jrun *r, sp_jval self, sp_case how, sp_jval *out) {
    sp_jtext t = {0};
    SP_TRY(sp_jtext_case(r, &t, sp_jval_slice(self), how));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

#define CASE_METHOD(name, how) \
    METHOD(name) { \
        (void)v, (void)c; \
        return with_case(r, self, how, out); \
    }
CASE_METHOD(m_upper, SP_CASE_UPPER)
CASE_METHOD(m_lower, SP_CASE_LOWER)
CASE_METHOD(m_title, SP_CASE_TITLE)
CASE_METHOD(m_capitalize, SP_CASE_CAPITALIZE)
CASE_METHOD(m_swapcase, SP_CASE_SWAP)
CASE_METHOD(m_casefold, SP_CASE_FOLD)

/* --- ends --- */

static sp_status strip(sp_jrun *r, sp_jval self, sp_jval arg, int sides, sp_jval *out) {
    sp_slice chars = {0};
    bool given = sp_jarg_given_some(arg);
    if (given) SP_TRY(sp_jarg_str(r, arg, "", &chars));
    SP_TRY(sp_jrun_charge_strip(r, sp_jval_slice(self), chars));
    sp_slice s = sp_slice_strip(sp_jval_slice(self), given ? &chars : NULL, sides);
    SP_TRY(sp_jval_str(r, s, out));
    out->mark = self.mark;
    return SP_OK;
}

METHOD(m_strip) {
    (void)c;
    return strip(r, self, v[0], SP_STRIP_BOTH, out);
}
METHOD(m_lstrip) {
    (void)c;
    return strip(r, self, v[0], SP_STRIP_LEFT, out);
}
METHOD(m_rstrip) {
    (void)c;
    return strip(r, self, v[0], SP_STRIP_RIGHT, out);
}

static sp_status remove_end(sp_jrun *r, sp_jval self, sp_jval arg, bool front, sp_jval *out) {
    sp_slice s = sp_jval_slice(self), end;
    SP_TRY(sp_jarg_str(r, arg, "", &end));
    bool there = front ? sp_slice_starts(s, end) : sp_slice_ends(s, end);
    if (there) s = (sp_slice){s.ptr + (front ? end.len : 0), s.len - end.len};
    SP_TRY(sp_jval_str(r, s, out));
    out->mark = self.mark;
    return SP_OK;
}

METHOD(m_removeprefix) {
    (void)c;
    return remove_end(r, self, v[0], true, out);
}
METHOD(m_removesuffix) {
    (void)c;
    return remove_end(r, self, v[0], false, out);
}

/* --- searching --- */

/* self[start:end], as find and its kin read it; `*first` is the code point it begins at, -1: the
 * start lies behind the end. */
static sp_status window(sp_jrun *r, sp_jval self, const sp_jval *bounds, sp_slice *out,
                        int64_t *first) {
    int64_t n = (int64_t)sp_jstr_chars(self.s), at[2] = {0, n};
    for (int i = 0; i < 2; i++) {
        if (sp_jarg_given_some(bounds[i])) SP_TRY(sp_jarg_int(r, bounds[i], 0, &at[i]));
        if (at[i] < 0) at[i] = at[i] + n < 0 ? 0 : at[i] + n;
    }
    if (at[1] > n) at[1] = n;
    *first = at[0] <= at[1] ? at[0] : -1;
    if (*first < 0) return SP_OK;
    size_t from = sp_jstr_byte(self.s, (size_t)at[0]), to = sp_jstr_byte(self.s, (size_t)at[1]);
    *out = (sp_slice){self.s->ptr + from, to - from};
    return sp_jrun_charge(r, self.s->len / 128);
}

static ptrdiff_t find_last(sp_slice s, sp_slice sub) {
    for (size_t i = s.len; i >= sub.len; i--) {
        if (memcmp(s.ptr + i - sub.len, sub.ptr, sub.len) == 0) return (ptrdiff_t)(i - sub.len);
        if (i == 0) break;
    }
    return -1;
}

static sp_status find(sp_jrun *r, sp_jval self, const sp_jval *v, bool last, sp_jval *out) {
    sp_slice sub, s = {0};
    int64_t first;
    SP_TRY(sp_jarg_str(r, v[0], "", &sub));
    SP_TRY(window(r, self, v + 1, &s, &first));
    ptrdiff_t at = first < 0 ? -1 : last ? find_last(s, sub) : sp_slice_find(s, sub, 0);
    *out = sp_jval_int(-1);
    if (at < 0) return SP_OK;
    sp_jstr before = {.ptr = s.ptr, .len = (size_t)at, .n_chars = SIZE_MAX};
    *out = sp_jval_int(first + (int64_t)sp_jstr_chars(&before));
    return SP_OK;
}

METHOD(m_find) {
    (void)c;
    return find(r, self, v, false, out);
}
METHOD(m_rfind) {
    (void)c;
    return find(r, self, v, true, out);
}
METHOD(m_index) {
    (void)c;
    SP_TRY(find(r, self, v, false, out));
    return out->i < 0 ? sp_jrun_fail(r, "substring not found") : SP_OK;
}
METHOD(m_rindex) {
    (void)c;
    SP_TRY(find(r, self, v, true, out));
    return out->i < 0 ? sp_jrun_fail(r, "substring not found") : SP_OK;
}

METHOD(m_count) {
    (void)c;
    sp_slice sub, s = {0};
    int64_t first, n = 0;
    SP_TRY(sp_jarg_str(r, v[0], "", &sub));
    SP_TRY(window(r, self, v + 1, &s, &first));
    sp_jstr all = {.ptr = s.ptr, .len = s.len, .n_chars = SIZE_MAX};
    if (first >= 0 && sub.len == 0) n = (int64_t)sp_jstr_chars(&all) + 1;
    for (ptrdiff_t at = 0; first >= 0 && sub.len && at >= 0; n++) {
        at = sp_slice_find(s, sub, (size_t)at);
        if (at < 0) break;
        at += (ptrdiff_t)sub.len;
    }
    *out = sp_jval_int(n);
    return SP_OK;
}

/* startswith and endswith take one string or a tuple of them. */
static sp_status has_end(sp_jrun *r, sp_jval self, const sp_jval *v, bool front, sp_jval *out) {
    sp_slice s = {0}, end;
    int64_t first;
    const sp_jval *ends = v[0].type == SP_J_TUPLE ? v[0].list->at : v;
    size_t n = v[0].type == SP_J_TUPLE ? v[0].list->n : 1;
    SP_TRY(window(r, self, v + 1, &s, &first));
    bool found = false;
    for (size_t i = 0; i < n && !found; i++) {
        SP_TRY(sp_jarg_str(r, ends[i], "", &end));
        found = first >= 0 && (front ? sp_slice_starts(s, end) : sp_slice_ends(s, end));
    }
    return answer(out, found);
}

METHOD(m_startswith) {
    (void)c;
    return has_end(r, self, v, true, out);
}
METHOD(m_endswith) {
    (void)c;
    return has_end(r, self, v, false, out);
}

/* --- cutting --- */

static sp_status split(sp_jrun *r, sp_jval self, const sp_jval *v, bool right, sp_jval *out) {
    sp_slice sep;
    int64_t max;
    sp_jlist *l;
    bool given = sp_jarg_given_some(v[0]);
    if (given) SP_TRY(sp_jarg_str(r, v[0], "", &sep));
    SP_TRY(sp_jarg_int(r, v[1], -1, &max));
    SP_TRY(sp_jval_split(r, self, given ? &sep : NULL, max, right, &l));
    *out = sp_jval_list(l);
    return SP_OK;
}

METHOD(m_split) {
    (void)c;
    return split(r, self, v, false, out);
}
METHOD(m_rsplit) {
    (void)c;
    return split(r, self, v, true, out);
}
METHOD(m_splitlines) {
    (void)c;
    sp_jlist *l;
    SP_TRY(sp_jval_splitlines(r, self, sp_jval_truth(v[0]), &l));
    *out = sp_jval_list(l);
    return SP_OK;
}

/* (before, sep, after); without one, the whole string stands at the side that is searched last. */
static sp_status partition(sp_jrun *r, sp_jval self, const sp_jval *v, bool last, sp_jval *out) {
    sp_slice s = sp_jval_slice(self), sep;
    sp_jlist *l;
    SP_TRY(sp_jarg_str(r, v[0], "", &sep));
    if (sep.len == 0) return sp_jrun_fail(r, "empty separator");
    ptrdiff_t at = last ? find_last(s, sep) : sp_slice_find(s, sep, 0);
    size_t from = at < 0 ? (last ? 0 : s.len) : (size_t)at;
    size_t to = at < 0 ? from : from + sep.len;
    sp_slice parts[] = {{s.ptr, from}, {s.ptr + from, to - from}, {s.ptr + to, s.len - to}};
    SP_TRY(sp_jlist_create(r, 3, &l));
    for (int i = 0; i < 3; i++) {
        sp_jval part;
        SP_TRY(sp_jval_str(r, parts[i], &part));
        part.mark = self.mark;
        SP_TRY(sp_jlist_push(r, l, part));
    }
    *out = sp_jval_tuple(l);
    return SP_OK;
}

METHOD(m_partition) {
    (void)c;
    return partition(r, self, v, false, out);
}
METHOD(m_rpartition) {
    (void)c;
    return partition(r, self, v, true, out);
}

METHOD(m_join) {
    (void)c;
    sp_jlist *l;
    sp_jtext t = {0};
    SP_TRY(sp_jiter_collect(r, v[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        sp_slice word;
        SP_TRY(added_text(r, self, l->at[i], "", &word));
        if (i) SP_TRY(sp_jtext_put(r, &t, sp_jval_slice(self)));
        SP_TRY(sp_jtext_put(r, &t, word));
    }
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

METHOD(m_replace) {
    (void)c;
    sp_slice old, with;
    int64_t max;
    SP_TRY(sp_jarg_str(r, v[0], "", &old));
    SP_TRY(added_text(r, self, v[1], "", &with));
    SP_TRY(sp_jarg_int(r, v[2], -1, &max));
    SP_TRY(sp_jval_replace(r, self, old, with, max, out));
    out->mark = self.mark;
    return SP_OK;
}

/* --- padding --- */

static sp_status pad(sp_jrun *r, sp_jval self, const sp_jval *v, int sides, sp_jval *out) {
    int64_t width;
    sp_jval fill;
    SP_TRY(sp_jarg_int(r, v[0], 0, &width));
    SP_TRY(sp_jval_str(r, SP_SLICE(" "), &fill));
    if (sp_jarg_given(v[1])) fill = v[1];
    if (fill.type != SP_J_STR || sp_jstr_chars(fill.s) != 1)
        return sp_jrun_fail(r, "the fill character must be exactly one character long");
    sp_slice with;
    SP_TRY(added_text(r, self, fill, "", &with));
    return sp_jval_pad(r, self, width, with, sides, out);
}

METHOD(m_center) {
    (void)c;
    return pad(r, self, v, SP_STRIP_BOTH, out);
}
METHOD(m_ljust) {
    (void)c;
    return pad(r, self, v, SP_STRIP_RIGHT, out);
}
METHOD(m_rjust) {
    (void)c;
    return pad(r, self, v, SP_STRIP_LEFT, out);
}

METHOD(m_zfill) {
    (void)c;
    int64_t width;
    sp_jtext t = {0};
    sp_slice s = sp_jval_slice(self);
    size_t sign = s.len && (s.ptr[0] == '-' || s.ptr[0] == '+');
    SP_TRY(sp_jarg_int(r, v[0], 0, &width));
    SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr, sign}));
    SP_TRY(sp_jtext_fill(r, &t, SP_SLICE("0"), width - (int64_t)sp_jstr_chars(self.s)));
    SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr + sign, s.len - sign}));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

METHOD(m_expandtabs) {
    (void)c;
    int64_t size, column = 0;
    sp_jtext t = {0};
    SP_TRY(sp_jarg_int(r, v[0], 8, &size));
    for (size_t i = 0; i < self.s->len; i++) {
        char ch = self.s->ptr[i];
        if (ch == '\t') {
            int64_t n = size > 0 ? size - column % size : 0;
            SP_TRY(sp_jtext_fill(r, &t, SP_SLICE(" "), n));
            column += n;
            continue;
        }
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){&self.s->ptr[i], 1}));
        if (ch == '\n' || ch == '\r')
            column = 0;
        else
            column += ((unsigned char)ch & 0xc0) != 0x80;
    }
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

/* --- what kind of characters --- */

static sp_status all_are(sp_jval self, bool (*is)(uint32_t), bool empty, sp_jval *out) {
    bool all = self.s->len > 0 || empty;
    for (size_t i = 0; i < self.s->len && all;) {
        uint32_t cp;
        i += (size_t)sp_utf8_first((sp_slice){self.s->ptr + i, self.s->len - i}, &cp);
        all = is(cp);
    }
    return answer(out, all);
}

static bool is_ascii(uint32_t cp) {
    return cp < 0x80;
}

#define KIND_METHOD(name, is, empty) \
    METHOD(name) { \
        (void)r, (void)v, (void)c; \
        return all_are(self, is, empty, out); \
    }
KIND_METHOD(m_isalnum, sp_char_alnum, false)
KIND_METHOD(m_isalpha, sp_char_alpha, false)
KIND_METHOD(m_isascii, is_ascii, true)
KIND_METHOD(m_isdecimal, sp_char_decimal, false)
KIND_METHOD(m_isdigit, sp_char_digit, false)
KIND_METHOD(m_isnumeric, sp_char_numeric, false)
KIND_METHOD(m_isprintable, sp_char_printable, true)
KIND_METHOD(m_isspace, sp_char_space, false)

METHOD(m_isidentifier) {
    (void)v, (void)c, (void)r;
    uint32_t cp;
    SP_TRY(all_are(self, sp_char_name, false, out));
    if (out->b) sp_utf8_first(sp_jval_slice(self), &cp);
    return answer(out, out->b && sp_char_name_start(cp));
}

METHOD(m_islower) {
    (void)v;
    return sp_jspec_call(r, sp_jtest_find(SP_SLICE("lower")), self, c, out);
}
METHOD(m_isupper) {
    (void)v;
    return sp_jspec_call(r, sp_jtest_find(SP_SLICE("upper")), self, c, out);
}

/* Capitals only where a word begins, small letters only inside. */
METHOD(m_istitle) {
    (void)r, (void)v, (void)c;
    bool in_word = false, any = false;
    for (size_t i = 0; i < self.s->len;) {
        uint32_t cp;
        i += (size_t)sp_utf8_first((sp_slice){self.s->ptr + i, self.s->len - i}, &cp);
        bool capital = sp_char_upper(cp) || sp_char_title(cp), small = sp_char_lower(cp);
        if (capital ? in_word : small && !in_word) return answer(out, false);
        in_word = capital || small;
        any = any || in_word;
    }
    return answer(out, any);
}

METHOD(m_format) {
    (void)v;
    return sp_jval_format(r, self, c, out);
}

static const sp_jspec METHODS[] = {
    {"strip", m_strip, "chars", 0},
    {"lstrip", m_lstrip, "chars", 0},
    {"rstrip", m_rstrip, "chars", 0},
    {"split", m_split, "sep maxsplit", 0},
    {"rsplit", m_rsplit, "sep maxsplit", 0},
    {"splitlines", m_splitlines, "keepends", 0},
    {"startswith", m_startswith, "prefix start end", 1},
    {"endswith", m_endswith, "suffix start end", 1},
    {"replace", m_replace, "old new count", 2},
    {"upper", m_upper, "", 0},
    {"lower", m_lower, "", 0},
    {"title", m_title, "", 0},
    {"capitalize", m_capitalize, "", 0},
    {"swapcase", m_swapcase, "", 0},
    {"casefold", m_casefold, "", 0},
    {"find", m_find, "sub start end", 1},
    {"rfind", m_rfind, "sub start end", 1},
    {"index", m_index, "sub start end", 1},
    {"rindex", m_rindex, "sub start end", 1},
    {"count", m_count, "sub start end", 1},
    {"join", m_join, "iterable", 1},
    {"partition", m_partition, "sep", 1},
    {"rpartition", m_rpartition, "sep", 1},
    {"removeprefix", m_removeprefix, "prefix", 1},
    {"removesuffix", m_removesuffix, "suffix", 1},
    {"center", m_center, "width fillchar", 1},
    {"ljust", m_ljust, "width fillchar", 1},
    {"rjust", m_rjust, "width fillchar", 1},
    {"zfill", m_zfill, "width", 1},
    {"expandtabs", m_expandtabs, "tabsize", 0},
    {"isalnum", m_isalnum, "", 0},
    {"isalpha", m_isalpha, "", 0},
    {"isascii", m_isascii, "", 0},
    {"isdecimal", m_isdecimal, "", 0},
    {"isdigit", m_isdigit, "", 0},
    {"isidentifier", m_isidentifier, "", 0},
    {"islower", m_islower, "", 0},
    {"isnumeric", m_isnumeric, "", 0},
    {"isprintable", m_isprintable, "", 0},
    {"isspace", m_isspace, "", 0},
    {"istitle", m_istitle, "", 0},
    {"isupper", m_isupper, "", 0},
    {"format", m_format, "*", 0},
    {"format_map", NULL, "*", 0},
    {"encode", NULL, "*", 0},
    {"maketrans", NULL, "*", 0},
    {"translate", NULL, "*", 0},
};

const sp_jspec *sp_jstr_method_find(sp_slice name) {
    return sp_jspec_find(METHODS, SP_LEN(METHODS), name);
}
