/* Filters on text. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- case --- */

static sp_status change_case(sp_jrun *r, sp_jval self, sp_case how, sp_jval *out) {
    sp_jtext t = {0};
    SP_TRY(sp_jval_to_str(r, self, &self));
    SP_TRY(sp_jtext_case(r, &t, sp_jval_slice(self), how));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

static sp_status f_upper(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    return change_case(r, self, SP_CASE_UPPER, out);
}
static sp_status f_lower(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    return change_case(r, self, SP_CASE_LOWER, out);
}
static sp_status f_capitalize(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                              sp_jval *out) {
    (void)v, (void)c;
    return change_case(r, self, SP_CASE_CAPITALIZE, out);
}

/* Where the title filter, unlike str.title(), begins a word. */
static bool before_word(uint32_t cp) {
    return sp_char_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
}

/* Each piece between separators: first character upper, the rest lower. */
static sp_status f_title(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)v, (void)c;
    sp_jtext t = {0};
    SP_TRY(sp_jval_to_str(r, self, &self));
    sp_slice s = sp_jval_slice(self);
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        size_t first = (size_t)sp_utf8_first((sp_slice){s.ptr + i, s.len - i}, &cp), end = i;
        bool gap = before_word(cp);
        for (size_t n = first; end < s.len && before_word(cp) == gap;
             n = (size_t)sp_utf8_first((sp_slice){s.ptr + end, s.len - end}, &cp))
            end += n;
        sp_slice head = {s.ptr + i, first}, tail = {s.ptr + i + first, end - i - first};
        SP_TRY(sp_jtext_case(r, &t, head, SP_CASE_UPPER));
        SP_TRY(sp_jtext_case(r, &t, tail, SP_CASE_LOWER));
        i = end;
    }
    return sp_jtext_done(r, &t, out);
}

/* --- cutting and padding --- */

static sp_status f_trim(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                        sp_jval *out) {
    (void)c;
    sp_slice chars = {0};
    bool given = sp_jarg_given_some(v[0]);
    SP_TRY(sp_jval_to_str(r, self, &self));
    if (given) SP_TRY(sp_jarg_str(r, v[0], "", &chars));
    SP_TRY(sp_jrun_charge_strip(r, sp_jval_slice(self), chars));
    sp_slice s = sp_slice_strip(sp_jval_slice(self), given ? &chars : NULL, SP_STRIP_BOTH);
    SP_TRY(sp_jval_str(r, s, out));
    out->mark = self.mark;
    return SP_OK;
}

static sp_status f_replace(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)c;
    int64_t max = -1;
    sp_jval old, with;
    SP_TRY(sp_jval_to_str(r, self, &self));
    SP_TRY(sp_jval_to_str(r, v[0], &old));
    SP_TRY(sp_jval_to_str(r, v[1], &with));
    if (sp_jarg_given_some(v[2])) SP_TRY(sp_jarg_int(r, v[2], -1, &max));
    return sp_jval_replace(r, self, sp_jval_slice(old), sp_jval_slice(with), max, out);
}

static sp_status f_center(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)c;
    int64_t width;
    SP_TRY(sp_jarg_int(r, v[0], 80, &width));
    SP_TRY(sp_jval_to_str(r, self, &self));
    return sp_jval_pad(r, self, width, SP_SLICE(" "), SP_STRIP_BOTH, out);
}

/* A last newline is added before the text is cut into lines, so that one at its end shows. */
static sp_status f_indent(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)c;
    sp_jtext pad = {0}, t = {0};
    sp_jlist *lines;
    int64_t width = 4;
    sp_slice with;
    if (self.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, self);
    if (self.type != SP_J_STR)
        return sp_jrun_fail(r, "'%s' cannot be indented", sp_jval_type_name(self));
    if (v[0].type != SP_J_STR) {
        SP_TRY(sp_jarg_int(r, v[0], 4, &width));
        SP_TRY(sp_jtext_fill(r, &pad, SP_SLICE(" "), width));
        with = (sp_slice){pad.ptr, pad.len};
    } else {
        with = sp_jval_slice(v[0]);
    }
    sp_jval whole;
    SP_TRY(sp_jval_concat(r, self, SP_SLICE("\n"), &whole));
    SP_TRY(sp_jval_splitlines(r, whole, false, &lines));
    for (size_t i = 0; i < lines->n; i++) {
        sp_slice line = sp_jval_slice(lines->at[i]);
        bool indent = i == 0 ? sp_jval_truth(v[1]) : line.len || sp_jval_truth(v[2]);
        if (i) SP_TRY(sp_jtext_puts(r, &t, "\n"));
        if (indent) SP_TRY(sp_jtext_put(r, &t, with));
        SP_TRY(sp_jtext_put(r, &t, line));
    }
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = self.mark;
    return SP_OK;
}

/* The text up to its last blank; all of it when it has none. */
static sp_slice cut_at_blank(sp_slice s) {
    for (size_t i = s.len; i > 0; i--)
        if (s.ptr[i - 1] == ' ') return (sp_slice){s.ptr, i - 1};
    return s;
}

static sp_status f_truncate(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                            sp_jval *out) {
    (void)c;
    int64_t length, leeway = 5;
    sp_jval end;
    SP_TRY(sp_jarg_int(r, v[0], 255, &length));
    if (sp_jarg_given_some(v[3])) SP_TRY(sp_jarg_int(r, v[3], 5, &leeway));
    SP_TRY(sp_jval_str(r, SP_SLICE("..."), &end));
    if (sp_jarg_given(v[2])) end = v[2];
    size_t n;
    if (!sp_jval_len(self, &n) || end.type != SP_J_STR)
        return sp_jrun_fail(r, "truncate wants strings, got %s and %s", sp_jval_type_name(self),
                            sp_jval_type_name(end));
    int64_t n_end = (int64_t)sp_jstr_chars(end.s);
    if (length < n_end || leeway < 0)
        return sp_jrun_fail(r, "truncate wants a length of %lld or more and a leeway of 0 or more",
                            (long long)n_end);
    *out = self;
    if ((int64_t)n - leeway <= length) return SP_OK;
    if (self.type != SP_J_STR)
        return sp_jrun_fail(r, "'%s' cannot be truncated", sp_jval_type_name(self));
    sp_slice s = {self.s->ptr, sp_jstr_byte(self.s, (size_t)(length - n_end))};
    if (!sp_jval_truth(v[1])) s = cut_at_blank(s);
    SP_TRY(sp_jval_str(r, s, out));
    return sp_jval_concat(r, *out, sp_jval_slice(end), out);
}

static sp_status f_wordcount(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                             sp_jval *out) {
    (void)v, (void)c;
    int64_t n = 0;
    bool in_word = false;
    SP_TRY(sp_jval_to_str(r, self, &self));
    sp_slice s = sp_jval_slice(self);
    SP_TRY(sp_jrun_charge(r, s.len / 32));
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        i += (size_t)sp_utf8_first((sp_slice){s.ptr + i, s.len - i}, &cp);
        bool word = cp == '_' || sp_char_alnum(cp);
        n += word && !in_word;
        in_word = word;
    }
    *out = sp_jval_int(n);
    return SP_OK;
}

/* --- HTML and URLs --- */

/* Leaves out everything from `open` to the next `shut`; an opening without an end stays. */
static sp_status drop_between(sp_jrun *r, sp_slice s, sp_slice open, sp_slice shut, sp_slice *out) {
    sp_jtext t = {0};
    size_t at = 0;
    for (;;) {
        ptrdiff_t from = sp_slice_find(s, open, at);
        ptrdiff_t to = from < 0 ? -1 : sp_slice_find(s, shut, (size_t)from);
        if (to < 0) break;
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr + at, (size_t)from - at}));
        at = (size_t)to + shut.len;
    }
    SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr + at, s.len - at}));
    *out = (sp_slice){t.ptr, t.len};
    return SP_OK;
}

/* One character reference at the start of `s`: its length and character; 0: none we know. */
static size_t reference(sp_slice s, uint32_t *cp) {
    static const struct {
        const char *word;
        uint32_t cp;
    } words[] = {{"&amp;", '&'},   {"&lt;", '<'},     {"&gt;", '>'},
                 {"&quot;", '"'},  {"&apos;", '\''},  {"&nbsp;", 0xa0},
                 {"&copy;", 0xa9}, {"&raquo;", 0xbb}, {"&laquo;", 0xab}};
    for (size_t i = 0; i < SP_LEN(words); i++) {
        *cp = words[i].cp;
        if (sp_slice_starts(s, sp_slice_of(words[i].word))) return strlen(words[i].word);
    }
    if (!sp_slice_starts(s, SP_SLICE("&#"))) return 0;
    bool hex = s.len > 2 && (s.ptr[2] | 32) == 'x';
    size_t i = 2 + hex;
    uint32_t v = 0;
    for (; i < s.len && i < 10 &&
           (hex ? isxdigit((unsigned char)s.ptr[i]) : isdigit((unsigned char)s.ptr[i]));
         i++)
        v = v * (hex ? 16 : 10) +
            (uint32_t)(s.ptr[i] <= '9' ? s.ptr[i] - '0' : (s.ptr[i] | 32) - 'a' + 10);
    if (i == (hex ? 3u : 2u) || i == s.len || s.ptr[i] != ';') return 0;
    *cp = v == 0 || v > 0x10ffff || (v >= 0xd800 && v < 0xe000) ? 0xfffd : v;
    return i + 1;
}

static sp_status unescape(sp_jrun *r, sp_slice s, sp_jval *out) {
    sp_jtext t = {0};
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        size_t n = s.ptr[i] == '&' ? reference((sp_slice){s.ptr + i, s.len - i}, &cp) : 0;
        SP_TRY(n ? sp_jtext_char(r, &t, cp) : sp_jtext_put(r, &t, (sp_slice){s.ptr + i, 1}));
        i += n ? n : 1;
    }
    return sp_jtext_done(r, &t, out);
}

static sp_status f_striptags(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                             sp_jval *out) {
    (void)v, (void)c;
    sp_slice s;
    sp_jtext t = {0};
    sp_jlist *words;
    sp_jval text;
    SP_TRY(sp_jval_to_str(r, self, &self));
    SP_TRY(sp_jrun_charge(r, self.s->len / 16));
    SP_TRY(drop_between(r, sp_jval_slice(self), SP_SLICE("<!--"), SP_SLICE("-->"), &s));
    SP_TRY(drop_between(r, s, SP_SLICE("<"), SP_SLICE(">"), &s));
    SP_TRY(sp_jval_str(r, s, &text));
    SP_TRY(sp_jval_split(r, text, NULL, -1, false, &words));
    for (size_t i = 0; i < words->n; i++) {
        if (i) SP_TRY(sp_jtext_puts(r, &t, " "));
        SP_TRY(sp_jtext_put(r, &t, sp_jval_slice(words->at[i])));
    }
    return unescape(r, (sp_slice){t.ptr, t.len}, out);
}

static sp_status put_quoted(sp_jrun *r, sp_jval v, bool query, sp_jtext *t) {
    SP_TRY(sp_jval_to_str(r, v, &v));
    for (size_t i = 0; i < v.s->len; i++) {
        unsigned char ch = (unsigned char)v.s->ptr[i];
        char hex[4];
        bool plain = isalnum(ch) || (ch && strchr("_.-~", ch)) || (ch == '/' && !query);
        if (query && ch == ' ') {
            SP_TRY(sp_jtext_puts(r, t, "+"));
            continue;
        }
        snprintf(hex, sizeof hex, plain ? "%c" : "%%%02X", ch);
        SP_TRY(sp_jtext_puts(r, t, hex));
    }
    return SP_OK;
}

static sp_status f_urlencode(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                             sp_jval *out) {
    (void)v, (void)c;
    sp_jtext t = {0};
    sp_jlist *pairs, *pair;
    if (self.type == SP_J_STR || !sp_jval_iterable(self)) {
        SP_TRY(put_quoted(r, self, false, &t));
        return sp_jtext_done(r, &t, out);
    }
    sp_jview w = {self.dict, SP_J_ITEMS};
    if (self.type == SP_J_DICT) self = (sp_jval){.type = SP_J_VIEW, .view = &w};
    SP_TRY(sp_jiter_collect(r, self, &pairs));
    for (size_t i = 0; i < pairs->n; i++) {
        SP_TRY(sp_jiter_collect(r, pairs->at[i], &pair));
        if (pair->n != 2)
            return sp_jrun_fail(r, "urlencode wants pairs, got a sequence of %zu items", pair->n);
        if (i) SP_TRY(sp_jtext_puts(r, &t, "&"));
        SP_TRY(put_quoted(r, pair->at[0], true, &t));
        SP_TRY(sp_jtext_puts(r, &t, "="));
        SP_TRY(put_quoted(r, pair->at[1], true, &t));
    }
    return sp_jtext_done(r, &t, out);
}

static sp_status put_attribute(sp_jrun *r, const sp_jentry *e, bool space, sp_jtext *t) {
    sp_jval key, value;
    if (e->value.type == SP_J_NONE || e->value.type == SP_J_UNDEFINED) return SP_OK;
    if (e->key.type != SP_J_STR) return sp_jrun_fail(r, "attribute names must be strings");
    sp_slice name = sp_jval_slice(e->key);
    for (size_t i = 0; i < name.len; i++)
        if (name.ptr[i] && strchr(" \t\n\r\f\v/>=", name.ptr[i]))
            return sp_jrun_fail(r, "invalid character in attribute name '%.*s'", (int)name.len,
                                name.ptr);
    SP_TRY(sp_jval_escape(r, e->key, &key));
    SP_TRY(sp_jval_escape(r, e->value, &value));
    if (t->len || space) SP_TRY(sp_jtext_puts(r, t, " "));
    SP_TRY(sp_jtext_put(r, t, sp_jval_slice(key)));
    SP_TRY(sp_jtext_puts(r, t, "=\""));
    SP_TRY(sp_jtext_put(r, t, sp_jval_slice(value)));
    return sp_jtext_puts(r, t, "\"");
}

static sp_status f_xmlattr(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)c;
    sp_jtext t = {0};
    if (self.type != SP_J_DICT)
        return sp_jrun_fail(r, "'%s' object has no items", sp_jval_type_name(self));
    bool space = !sp_jarg_given(v[0]) || sp_jval_truth(v[0]);
    for (size_t i = 0; i < self.dict->n; i++)
        SP_TRY(put_attribute(r, &self.dict->at[i], space, &t));
    return sp_jtext_done(r, &t, out);
}

/* --- formats --- */

static sp_status f_format(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)v;
    sp_jdict *d;
    sp_jlist *l;
    if (c->n && c->n_named)
        return sp_jrun_fail(r, "format cannot handle positional and keyword arguments together");
    SP_TRY(sp_jval_to_str(r, self, &self));
    if (!c->n_named) {
        SP_TRY(sp_jlist_create(r, (size_t)c->n, &l));
        for (int i = 0; i < c->n; i++) SP_TRY(sp_jlist_push(r, l, c->pos[i]));
        return sp_jval_percent(r, self, sp_jval_tuple(l), out);
    }
    SP_TRY(sp_jdict_create(r, (size_t)c->n_named, &d));
    for (int i = 0; i < c->n_named; i++) {
        sp_jval name;
        SP_TRY(sp_jval_str(r, c->names[i], &name));
        SP_TRY(sp_jdict_put(r, d, name, c->named[i]));
    }
    return sp_jval_percent(r, self, (sp_jval){.type = SP_J_DICT, .dict = d}, out);
}

static sp_status f_filesizeformat(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                                  sp_jval *out) {
    (void)c;
    static const char prefixes[] = "kMGTPEZY";
    bool binary = sp_jval_truth(v[0]);
    double bytes, base = binary ? 1024 : 1000;
    char text[400];
    if (!sp_jval_parse_float(self, &bytes) || !isfinite(bytes))
        return sp_jrun_fail(r, "'%s' is no size", sp_jval_type_name(self));
    if (bytes == 1) return sp_jval_str(r, SP_SLICE("1 Byte"), out);
    if (bytes < base) {
        snprintf(text, sizeof text, "%.0f Bytes", trunc(bytes));
        return sp_jval_str_copy(r, sp_slice_of(text), out);
    }
    int i = 0;
    double unit = base * base;
    for (; i < 7 && bytes >= unit; i++) unit *= base;
    char prefix = binary ? (char)toupper((unsigned char)prefixes[i]) : prefixes[i];
    snprintf(text, sizeof text, binary ? "%.1f %ciB" : "%.1f %cB", base * bytes / unit, prefix);
    return sp_jval_str_copy(r, sp_slice_of(text), out);
}

static const sp_jspec FILTERS[] = {
    {"upper", f_upper, "", 0},
    {"lower", f_lower, "", 0},
    {"capitalize", f_capitalize, "", 0},
    {"title", f_title, "", 0},
    {"trim", f_trim, "chars", 0},
    {"replace", f_replace, "old new count", 2},
    {"center", f_center, "width", 0},
    {"indent", f_indent, "width first blank", 0},
    {"truncate", f_truncate, "length killwords end leeway", 0},
    {"wordcount", f_wordcount, "", 0},
    {"striptags", f_striptags, "", 0},
    {"urlencode", f_urlencode, "", 0},
    {"xmlattr", f_xmlattr, "autospace", 0},
    {"format", f_format, "*", 0},
    {"filesizeformat", f_filesizeformat, "binary", 0},
};

const sp_jspec *sp_jfilter_find_text(sp_slice name) {
    return sp_jspec_find(FILTERS, SP_LEN(FILTERS), name);
}
