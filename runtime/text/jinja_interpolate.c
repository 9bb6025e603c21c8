/* Values into a text: "..." % values, and "...".format(values). */
#include "runtime/text/jinja_format.h"
#include "runtime/text/jinja_text.h"

#include <math.h>
#include <string.h>

typedef struct percent {
    sp_slice s;
    size_t at;
    sp_jval value; /* right of % */
    size_t next;   /* of a tuple; of one value 0 or 1 */
    bool mark;     /* the text is Markup: what is put in is escaped */
    sp_jtext *t;
} percent;

/* --- % --- */

static sp_status next_value(sp_jrun *r, percent *p, sp_jval *out) {
    bool tuple = p->value.type == SP_J_TUPLE;
    size_t n = tuple ? p->value.list->n : 1;
    if (p->next >= n) return sp_jrun_fail(r, "not enough arguments for format string");
    *out = tuple ? p->value.list->at[p->next] : p->value;
    p->next++;
    return SP_OK;
}

/* (name) after the %: the mapping's value. */
static sp_status keyed_value(sp_jrun *r, percent *p, sp_jval *out) {
    size_t from = ++p->at;
    int open = 1;
    for (; p->at < p->s.len && open; p->at++)
        open += p->s.ptr[p->at] == '(' ? 1 : p->s.ptr[p->at] == ')' ? -1 : 0;
    if (open) return sp_jrun_fail(r, "incomplete format key");
    if (p->value.type != SP_J_DICT) return sp_jrun_fail(r, "format requires a mapping");
    sp_slice key = {p->s.ptr + from, p->at - 1 - from};
    const sp_jval *v = sp_jdict_find(p->value.dict, key);
    if (!v) return sp_jrun_fail(r, "no value '%.*s' for the format", (int)key.len, key.ptr);
    *out = *v;
    return SP_OK;
}

/* A number in the text, or '*': the next value. */
static sp_status field_number(sp_jrun *r, percent *p, int64_t *out) {
    sp_jval v;
    if (p->at < p->s.len && p->s.ptr[p->at] == '*') {
        p->at++;
        SP_TRY(next_value(r, p, &v));
        return sp_jarg_int(r, v, 0, out);
    }
    *out = 0;
    for (; p->at < p->s.len && p->s.ptr[p->at] >= '0' && p->s.ptr[p->at] <= '9'; p->at++) {
        if (*out > INT32_MAX / 10 - 1) return sp_jrun_fail(r, "a field too wide");
        *out = *out * 10 + (p->s.ptr[p->at] - '0');
    }
    return SP_OK;
}

static void flags(percent *p, sp_jspecifier *f) {
    f->align = '>';
    for (; p->at < p->s.len && p->s.ptr[p->at] && strchr("#0- +", p->s.ptr[p->at]); p->at++) {
        char ch = p->s.ptr[p->at];
        if (ch == '#') f->alternate = true;
        if (ch == '0') f->zero = true;
        if (ch == '-') f->align = '<';
        if (ch == '+' || (ch == ' ' && f->sign != '+')) f->sign = ch;
    }
}

/* %s, %r, %a. */
static sp_status put_text(sp_jrun *r, percent *p, const sp_jspecifier *f, sp_jval v) {
    sp_jtext t = {0};
    sp_jval s;
    SP_TRY(f->type == 's' ? sp_jval_put_str(r, v, &t) : sp_jval_put_repr(r, v, &t));
    SP_TRY(sp_jtext_done(r, &t, &s));
    if (p->mark && !(v.type == SP_J_STR && v.mark && f->type == 's'))
        SP_TRY(sp_jval_escape(r, s, &s));
    return sp_jspecifier_put_str(r, f, sp_jval_slice(s), '>', p->t);
}

static sp_status put_conversion(sp_jrun *r, percent *p, sp_jspecifier *f, sp_jval v) {
    bool ok = true;
    if (f->type == 's' || f->type == 'r' || f->type == 'a') return put_text(r, p, f, v);
    if (f->type == 'c' && v.type == SP_J_STR) {
        if (sp_jstr_chars(v.s) != 1) return sp_jrun_fail(r, "%%c requires int or char");
        return sp_jspecifier_put_str(r, f, sp_jval_slice(v), '>', p->t);
    }
    if (v.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, v);
    if (!sp_jval_is_number(v) || (v.type == SP_J_FLOAT && strchr("xXoc", f->type)))
        return sp_jrun_fail(r, "%%%c format: a number is required, not %s", f->type,
                            sp_jval_type_name(v));
    if (f->type == 'i' || f->type == 'u') f->type = 'd';
    if (f->type == 'd') SP_TRY(sp_jval_parse_int(r, v, 10, &v, &ok));
    if (!ok) return sp_jrun_fail(r, "a number that is not finite is no integer");
    if (f->zero && f->align == '>') {
        f->fill = SP_SLICE("0");
        f->align = '=';
    }
    return sp_jspecifier_put_number(r, f, v, p->t);
}

/* p->at is behind a '%'. */
static sp_status conversion(sp_jrun *r, percent *p) {
    sp_jspecifier f = {.precision = -1};
    sp_jval v = sp_jval_missing();
    int64_t precision = -1;
    if (p->at < p->s.len && p->s.ptr[p->at] == '(') SP_TRY(keyed_value(r, p, &v));
    flags(p, &f);
    SP_TRY(field_number(r, p, &f.width));
    if (f.width < 0) {
        f.width = -f.width;
        f.align = '<';
    }
    if (p->at < p->s.len && p->s.ptr[p->at] == '.') {
        p->at++;
        SP_TRY(field_number(r, p, &precision));
        f.precision = precision < 0 ? 0 : precision > INT32_MAX ? INT32_MAX : (int)precision;
    }
    while (p->at < p->s.len && p->s.ptr[p->at] && strchr("hlL", p->s.ptr[p->at])) p->at++;
    if (p->at >= p->s.len) return sp_jrun_fail(r, "incomplete format");
    f.type = p->s.ptr[p->at++];
    if (f.type == '%') return sp_jtext_puts(r, p->t, "%");
    if (!f.type || !strchr("sradiuoxXeEfFgGc", f.type))
        return sp_jrun_fail(r, "unsupported format character '%c'", f.type);
    if (v.type == SP_J_MISSING) SP_TRY(next_value(r, p, &v));
    return put_conversion(r, p, &f, v);
}

sp_status sp_jval_percent(sp_jrun *r, sp_jval format, sp_jval value, sp_jval *out) {
    sp_jtext t = {0};
    percent p = {.s = sp_jval_slice(format), .value = value, .mark = format.mark, .t = &t};
    while (p.at < p.s.len) {
        const char *next = memchr(p.s.ptr + p.at, '%', p.s.len - p.at);
        size_t end = next ? (size_t)(next - p.s.ptr) : p.s.len;
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){p.s.ptr + p.at, end - p.at}));
        p.at = end + 1;
        if (next) SP_TRY(conversion(r, &p));
    }
    /* What can be asked by key need not be used up. */
    bool mapping = value.type == SP_J_DICT || value.type == SP_J_LIST ||
                   value.type == SP_J_UNDEFINED || value.type == SP_J_RANGE;
    if (!mapping && p.next < (value.type == SP_J_TUPLE ? value.list->n : 1))
        return sp_jrun_fail(r, "not all arguments converted during string formatting");
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = format.mark;
    return SP_OK;
}

/* --- format() --- */

typedef struct braces {
    const sp_jcall *c;
    int next; /* {} so far; -1: numbers are used */
    bool mark;
} braces;

static bool number_word(sp_slice s) {
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] < '0' || s.ptr[i] > '9') return false;
    return s.len > 0 && s.len < 10;
}

/* {} and {0}: which of the positional arguments, and not both in one text. A number with something
 * behind it ("0.name") is not counted, as in Python. */
static sp_status count_field(sp_jrun *r, braces *b, sp_slice field, int64_t *i) {
    if (field.len ? b->next > 0 : b->next < 0)
        return sp_jrun_fail(r, "automatic and manual field numbering cannot be mixed");
    *i = field.len ? 0 : b->next++;
    if (!field.len) return SP_OK;
    b->next = -1;
    return sp_parse_i64(field, i);
}

/* The argument a field begins with: nothing, a number or a keyword. */
static sp_status first_value(sp_jrun *r, braces *b, sp_slice field, sp_slice word, sp_jval *out) {
    int64_t i = -1;
    if (field.len == 0 || number_word(field))
        SP_TRY(count_field(r, b, field, &i));
    else if (number_word(word))
        SP_TRY(sp_parse_i64(word, &i));
    for (int k = 0; k < b->c->n_named && i < 0; k++)
        if (sp_slice_eq(b->c->names[k], word)) {
            *out = b->c->named[k];
            return SP_OK;
        }
    if (i < 0 || i >= b->c->n)
        return sp_jrun_fail(r, "no argument '%.*s' for the format", (int)field.len, field.ptr);
    *out = b->c->pos[i];
    return SP_OK;
}

/* name.attr[item]… */
static sp_status field_value(sp_jrun *r, braces *b, sp_slice name, sp_jval *out) {
    size_t i = 0;
    while (i < name.len && name.ptr[i] != '.' && name.ptr[i] != '[') i++;
    SP_TRY(first_value(r, b, name, (sp_slice){name.ptr, i}, out));
    while (i < name.len) {
        bool item = name.ptr[i] == '[';
        size_t from = ++i;
        while (i < name.len &&
               (item ? name.ptr[i] != ']' : name.ptr[i] != '.' && name.ptr[i] != '['))
            i++;
        sp_slice word = {name.ptr + from, i - from};
        sp_jval key;
        int64_t number;
        if (word.len == 0 || (item && i == name.len))
            return sp_jrun_fail(r, "an empty or unfinished attribute in a format string");
        SP_TRY(sp_jval_str(r, word, &key));
        if (item && number_word(word) && sp_parse_i64(word, &number) == SP_OK)
            key = sp_jval_int(number);
        SP_TRY(item ? sp_jval_getitem(r, *out, key, out) : sp_jval_getattr(r, *out, key, out));
        i += item;
    }
    return SP_OK;
}

static sp_status put_braces(sp_jrun *r, braces *b, sp_slice s, int nested, sp_jtext *t);

/* name!conversion:specification, between braces. */
static sp_status put_replacement(sp_jrun *r, braces *b, sp_slice field, int nested, sp_jtext *t) {
    size_t end = 0;
    /* Inside [] a '!' or ':' is part of the key. */
    for (bool item = false; end < field.len; end++) {
        char ch = field.ptr[end];
        if (!item && (ch == '!' || ch == ':')) break;
        item = ch == '[' || (item && ch != ']');
    }
    sp_jval v;
    char conversion = 0;
    SP_TRY(field_value(r, b, (sp_slice){field.ptr, end}, &v));
    if (end < field.len && field.ptr[end] == '!') {
        conversion = end + 1 < field.len ? field.ptr[end + 1] : 0;
        end += 2;
        if (!conversion || !strchr("sra", conversion) || (end < field.len && field.ptr[end] != ':'))
            return sp_jrun_fail(r, "unknown conversion in a format string");
    }
    sp_jtext spec = {0}, text = {0};
    if (end < field.len)
        SP_TRY(put_braces(r, b, (sp_slice){field.ptr + end + 1, field.len - end - 1}, nested + 1,
                          &spec));
    if (conversion) {
        SP_TRY(conversion == 's' ? sp_jval_put_str(r, v, &text) : sp_jval_put_repr(r, v, &text));
        SP_TRY(sp_jtext_done(r, &text, &v));
    }
    if (b->mark && v.type == SP_J_STR) SP_TRY(sp_jval_escape(r, v, &v));
    return sp_jval_put_format(r, v, (sp_slice){spec.ptr, spec.len}, t);
}

static sp_status put_braces(sp_jrun *r, braces *b, sp_slice s, int nested, sp_jtext *t) {
    if (nested > 1) return sp_jrun_fail(r, "a format string nested too deep");
    for (size_t i = 0; i < s.len; i++) {
        char ch = s.ptr[i];
        bool twice = !nested && i + 1 < s.len && s.ptr[i + 1] == ch;
        if ((ch != '{' && ch != '}') || twice) {
            SP_TRY(sp_jtext_put(r, t, (sp_slice){&s.ptr[i], 1}));
            i += (ch == '{' || ch == '}');
            continue;
        }
        size_t from = i + 1, open = 1;
        if (ch == '}') return sp_jrun_fail(r, "single '}' encountered in format string");
        for (i++; i < s.len; i++) {
            open += s.ptr[i] == '{' ? 1 : 0;
            if (s.ptr[i] == '}' && --open == 0) break;
        }
        if (i >= s.len) return sp_jrun_fail(r, "single '{' encountered in format string");
        SP_TRY(put_replacement(r, b, (sp_slice){s.ptr + from, i - from}, nested, t));
    }
    return SP_OK;
}

sp_status sp_jval_format(sp_jrun *r, sp_jval format, const sp_jcall *c, sp_jval *out) {
    sp_jtext t = {0};
    braces b = {.c = c, .mark = format.mark};
    SP_TRY(put_braces(r, &b, sp_jval_slice(format), 0, &t));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = format.mark;
    return SP_OK;
}
