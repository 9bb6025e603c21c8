/* Values as text: Python's str() and repr(), and json.dumps(). */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_iter.h"
#include "runtime/text/jinja_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The shortest digits that read back the same; "1e+16" and "1e-05" where Python writes so. */
void sp_jfloat_repr(double v, char out[32]) {
    if (isnan(v) || isinf(v)) {
        snprintf(out, 32, "%s", isnan(v) ? "nan" : v < 0 ? "-inf" : "inf");
        return;
    }
    char text[32];
    int digits = 1;
    do {
        snprintf(text, sizeof text, "%.*e", digits - 1, v);
    } while (strtod(text, NULL) != v && ++digits <= 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        /* C writes the exponent with two digits at least, as Python does. */
        memcpy(out, text, sizeof text);
        return;
    }
    int decimals = digits - 1 - exponent;
    snprintf(out, 32, "%.*f", decimals > 0 ? decimals : 1, v);
}

/* The second character of the pair whose first is `cp`, or 0. */
static char paired(const char *pairs, uint32_t cp) {
    for (; *pairs; pairs += 2)
        if ((unsigned char)*pairs == cp) return pairs[1];
    return 0;
}

/* --- repr --- */

static sp_status put_escape(sp_jrun *r, sp_jtext *t, uint32_t cp) {
    char text[12];
    if (cp < 0x100)
        snprintf(text, sizeof text, "\\x%02x", (unsigned)cp);
    else
        snprintf(text, sizeof text, cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
    return sp_jtext_puts(r, t, text);
}

static sp_status put_str_repr(sp_jrun *r, sp_slice s, sp_jtext *t) {
    bool single = s.len && memchr(s.ptr, '\'', s.len), twice = s.len && memchr(s.ptr, '"', s.len);
    char quote = single && !twice ? '"' : '\'';
    SP_TRY(sp_jtext_char(r, t, (unsigned char)quote));
    for (size_t i = 0; i < s.len;) {
        uint32_t cp = 0xfffd;
        int n = sp_utf8_decode(s.ptr + i, s.len - i, &cp);
        char letter = cp == (unsigned char)quote ? quote : paired("\\\\\nn\rr\tt", cp);
        if (letter)
            SP_TRY(sp_jtext_put(r, t, (sp_slice){(char[]){'\\', letter}, 2}));
        else if (!sp_char_printable(cp))
            SP_TRY(put_escape(r, t, cp));
        else
            SP_TRY(sp_jtext_char(r, t, cp));
        i += n ? (size_t)n : 1;
    }
    return sp_jtext_char(r, t, (unsigned char)quote);
}

static sp_status put_items(sp_jrun *r, const sp_jlist *l, char open, char shut, sp_jtext *t) {
    SP_TRY(sp_jtext_char(r, t, (unsigned char)open));
    for (size_t i = 0; i < l->n; i++) {
        if (i) SP_TRY(sp_jtext_puts(r, t, ", "));
        SP_TRY(sp_jval_put_repr(r, l->at[i], t));
    }
    if (open == '(' && l->n == 1) SP_TRY(sp_jtext_puts(r, t, ","));
    return sp_jtext_char(r, t, (unsigned char)shut);
}

static sp_status put_dict(sp_jrun *r, const sp_jdict *d, sp_jtext *t) {
    SP_TRY(sp_jtext_puts(r, t, "{"));
    for (size_t i = 0; i < d->n; i++) {
        if (i) SP_TRY(sp_jtext_puts(r, t, ", "));
        SP_TRY(sp_jval_put_repr(r, d->at[i].key, t));
        SP_TRY(sp_jtext_puts(r, t, ": "));
        SP_TRY(sp_jval_put_repr(r, d->at[i].value, t));
    }
    return sp_jtext_puts(r, t, "}");
}

static sp_status put_view(sp_jrun *r, sp_jval v, sp_jtext *t) {
    sp_jlist *l;
    SP_TRY(sp_jiter_collect(r, v, &l));
    SP_TRY(sp_jtext_puts(r, t, sp_jval_type_name(v)));
    SP_TRY(sp_jtext_puts(r, t, "("));
    SP_TRY(put_items(r, l, '[', ']', t));
    return sp_jtext_puts(r, t, ")");
}

static sp_status put_range(sp_jrun *r, const sp_jrange *g, sp_jtext *t) {
    char text[80];
    int n =
        snprintf(text, sizeof text, "range(%lld, %lld", (long long)g->start, (long long)g->stop);
    snprintf(text + n, sizeof text - (size_t)n, g->step == 1 ? ")" : ", %lld)", (long long)g->step);
    return sp_jtext_puts(r, t, text);
}

/* What has no text of its own in Python but an address. */
static sp_status put_object(sp_jrun *r, sp_jval v, sp_jtext *t) {
    SP_TRY(sp_jtext_puts(r, t, "<"));
    if (v.type == SP_J_MACRO) {
        SP_TRY(sp_jtext_puts(r, t, "Macro "));
        if (!sp_jmacro_name(v.macro).ptr)
            SP_TRY(sp_jtext_puts(r, t, "anonymous"));
        else
            SP_TRY(put_str_repr(r, sp_jmacro_name(v.macro), t));
    } else {
        SP_TRY(sp_jtext_puts(r, t, v.type == SP_J_ITER ? v.iter->name : sp_jval_type_name(v)));
        SP_TRY(sp_jtext_puts(r, t, " object"));
    }
    return sp_jtext_puts(r, t, ">");
}

static sp_status put_container(sp_jrun *r, sp_jval v, sp_jtext *t) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r));
    switch ((sp_jtype)v.type) {
    case SP_J_LIST:
        SP_TRY(put_items(r, v.list, '[', ']', t));
        break;
    case SP_J_TUPLE:
        SP_TRY(put_items(r, v.list, '(', ')', t));
        break;
    case SP_J_DICT:
        SP_TRY(put_dict(r, v.dict, t));
        break;
    case SP_J_VIEW:
        SP_TRY(put_view(r, v, t));
        break;
    case SP_J_NAMESPACE:
        SP_TRY(sp_jtext_puts(r, t, "<Namespace "));
        SP_TRY(put_dict(r, v.dict, t));
        SP_TRY(sp_jtext_puts(r, t, ">"));
        break;
    default:
        SP_TRY(put_object(r, v, t));
        break;
    }
    sp_jrun_leave(r);
    return SP_OK;
}

sp_status sp_jval_put_repr(sp_jrun *r, sp_jval v, sp_jtext *t) {
    char text[32];
    switch ((sp_jtype)v.type) {
    case SP_J_MISSING:
    case SP_J_UNDEFINED:
        return sp_jtext_puts(r, t, "Undefined");
    case SP_J_NONE:
        return sp_jtext_puts(r, t, "None");
    case SP_J_BOOL:
        return sp_jtext_puts(r, t, v.b ? "True" : "False");
    case SP_J_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.i);
        return sp_jtext_puts(r, t, text);
    case SP_J_FLOAT:
        sp_jfloat_repr(v.f, text);
        return sp_jtext_puts(r, t, text);
    case SP_J_BIG:
        return sp_jtext_put(r, t, sp_jval_slice(v));
    case SP_J_STR:
        if (!v.mark) return put_str_repr(r, sp_jval_slice(v), t);
        SP_TRY(sp_jtext_puts(r, t, "Markup("));
        SP_TRY(put_str_repr(r, sp_jval_slice(v), t));
        return sp_jtext_puts(r, t, ")");
    case SP_J_RANGE:
        return put_range(r, v.range, t);
    default:
        return put_container(r, v, t);
    }
}

sp_status sp_jval_put_str(sp_jrun *r, sp_jval v, sp_jtext *t) {
    if (v.type == SP_J_STR) return sp_jtext_put(r, t, sp_jval_slice(v));
    if (v.type == SP_J_UNDEFINED) return SP_OK;
    return sp_jval_put_repr(r, v, t);
}

sp_status sp_jval_to_str(sp_jrun *r, sp_jval v, sp_jval *out) {
    if (v.type == SP_J_STR) {
        *out = v;
        return SP_OK;
    }
    sp_jtext t = {0};
    SP_TRY(sp_jval_put_str(r, v, &t));
    return sp_jtext_done(r, &t, out);
}

/* --- JSON --- */

static sp_status json_escape(sp_jrun *r, sp_jtext *t, uint32_t cp) {
    char text[16];
    if (cp < 0x10000)
        snprintf(text, sizeof text, "\\u%04x", (unsigned)cp);
    else
        snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xd7c0 + (cp >> 10)),
                 (unsigned)(0xdc00 | (cp & 0x3ff)));
    return sp_jtext_puts(r, t, text);
}

static sp_status json_string(sp_jrun *r, sp_slice s, bool ascii, sp_jtext *t) {
    SP_TRY(sp_jtext_puts(r, t, "\""));
    size_t plain = 0;
    for (size_t i = 0; i < s.len;) {
        uint32_t cp = 0xfffd;
        int n = sp_utf8_decode(s.ptr + i, s.len - i, &cp);
        char letter = paired("\"\"\\\\\bb\ff\nn\rr\tt", cp);
        size_t next = i + (n ? (size_t)n : 1);
        if (cp >= 0x20 && !letter && (!ascii || cp < 0x7f)) {
            i = next;
            continue;
        }
        SP_TRY(sp_jtext_put(r, t, (sp_slice){s.ptr + plain, i - plain}));
        if (letter)
            SP_TRY(sp_jtext_put(r, t, (sp_slice){(char[]){'\\', letter}, 2}));
        else
            SP_TRY(json_escape(r, t, cp));
        plain = i = next;
    }
    SP_TRY(sp_jtext_put(r, t, (sp_slice){s.ptr + plain, s.len - plain}));
    return sp_jtext_puts(r, t, "\"");
}

static sp_status json_break(sp_jrun *r, const sp_jjson_options *o, int depth, sp_jtext *t) {
    if (!o->pretty) return SP_OK;
    SP_TRY(sp_jtext_puts(r, t, "\n"));
    return sp_jtext_fill(r, t, o->indent, depth);
}

static sp_status json_float(sp_jrun *r, double f, sp_jtext *t) {
    char text[32];
    if (isnan(f) || isinf(f))
        return sp_jtext_puts(r, t, isnan(f) ? "NaN" : f < 0 ? "-Infinity" : "Infinity");
    sp_jfloat_repr(f, text);
    return sp_jtext_puts(r, t, text);
}

/* A key that is not a string is written as the string of its JSON. */
static sp_status json_key(sp_jrun *r, sp_jval k, const sp_jjson_options *o, sp_jtext *t) {
    if (k.type == SP_J_STR) return json_string(r, sp_jval_slice(k), o->ascii, t);
    if (k.type != SP_J_NONE && !sp_jval_is_number(k))
        return sp_jrun_fail(r, "keys must be str, int, float, bool or None, not %s",
                            sp_jval_type_name(k));
    SP_TRY(sp_jtext_puts(r, t, "\""));
    SP_TRY(sp_jval_put_json(r, k, o, t));
    return sp_jtext_puts(r, t, "\"");
}

static sp_status json_value(sp_jrun *r, sp_jval v, const sp_jjson_options *o, int depth,
                            sp_jtext *t);

static sp_status json_list(sp_jrun *r, const sp_jlist *l, const sp_jjson_options *o, int depth,
                           sp_jtext *t) {
    SP_TRY(sp_jtext_puts(r, t, "["));
    for (size_t i = 0; i < l->n; i++) {
        if (i) SP_TRY(sp_jtext_put(r, t, o->item));
        SP_TRY(json_break(r, o, depth + 1, t));
        SP_TRY(json_value(r, l->at[i], o, depth + 1, t));
    }
    if (l->n) SP_TRY(json_break(r, o, depth, t));
    return sp_jtext_puts(r, t, "]");
}

static sp_status sorted_items(sp_jrun *r, sp_jdict *d, sp_jlist **out) {
    sp_jview w = {d, SP_J_ITEMS};
    SP_TRY(sp_jiter_collect(r, (sp_jval){.type = SP_J_VIEW, .view = &w}, out));
    sp_jlist *keys;
    SP_TRY(sp_jlist_create(r, d->n, &keys));
    for (size_t i = 0; i < d->n; i++) SP_TRY(sp_jlist_push(r, keys, d->at[i].key));
    return sp_jlist_sort(r, *out, keys, false);
}

static sp_status json_dict(sp_jrun *r, sp_jdict *d, const sp_jjson_options *o, int depth,
                           sp_jtext *t) {
    sp_jlist *sorted = NULL;
    if (o->sort_keys) SP_TRY(sorted_items(r, d, &sorted));
    SP_TRY(sp_jtext_puts(r, t, "{"));
    for (size_t i = 0; i < d->n; i++) {
        const sp_jval *pair = sorted ? sorted->at[i].list->at : NULL;
        if (i) SP_TRY(sp_jtext_put(r, t, o->item));
        SP_TRY(json_break(r, o, depth + 1, t));
        SP_TRY(json_key(r, pair ? pair[0] : d->at[i].key, o, t));
        SP_TRY(sp_jtext_put(r, t, o->colon));
        SP_TRY(json_value(r, pair ? pair[1] : d->at[i].value, o, depth + 1, t));
    }
    if (d->n) SP_TRY(json_break(r, o, depth, t));
    return sp_jtext_puts(r, t, "}");
}

static sp_status json_value(sp_jrun *r, sp_jval v, const sp_jjson_options *o, int depth,
                            sp_jtext *t) {
    SP_TRY(sp_jrun_charge(r, 1));
    switch ((sp_jtype)v.type) {
    case SP_J_NONE:
        return sp_jtext_puts(r, t, "null");
    case SP_J_BOOL:
        return sp_jtext_puts(r, t, v.b ? "true" : "false");
    case SP_J_INT:
    case SP_J_BIG:
        return sp_jval_put_repr(r, v, t);
    case SP_J_FLOAT:
        return json_float(r, v.f, t);
    case SP_J_STR:
        return json_string(r, sp_jval_slice(v), o->ascii, t);
    case SP_J_LIST:
    case SP_J_TUPLE:
    case SP_J_DICT:
        break;
    default:
        return sp_jrun_fail(r, "object of type %s is not JSON serializable", sp_jval_type_name(v));
    }
    SP_TRY(sp_jrun_enter(r));
    if (v.type == SP_J_DICT)
        SP_TRY(json_dict(r, v.dict, o, depth, t));
    else
        SP_TRY(json_list(r, v.list, o, depth, t));
    sp_jrun_leave(r);
    return SP_OK;
}

sp_status sp_jval_put_json(sp_jrun *r, sp_jval v, const sp_jjson_options *o, sp_jtext *t) {
    return json_value(r, v, o, 0, t);
}
