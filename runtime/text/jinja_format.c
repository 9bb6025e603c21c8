/* Formatting of one value: what a format specification ("{:>8.2f}") and a conversion ("%08.2f")
 * have in common, and the specifications themselves. */
#include "runtime/text/jinja_format.h"

#include "runtime/text/jinja_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PRECISION_MAX 300

/* --- one number as text --- */

/* Digits of `v` in `base`, without sign; at least 65 bytes. */
static sp_slice digits_of(uint64_t v, int base, bool upper, char text[72]) {
    const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char *p = text + 71;
    *p = 0;
    do {
        *--p = digits[v % (unsigned)base];
        v /= (unsigned)base;
    } while (v);
    return (sp_slice){p, (size_t)(text + 71 - p)};
}

static char sign_of(const sp_jspecifier *f, bool negative) {
    return negative ? '-' : f->sign == '+' || f->sign == ' ' ? f->sign : 0;
}

/* Puts separators between groups of digits; what stands before the first other character counts
 * as digits. */
static sp_status group_digits(sp_jrun *r, const sp_jspecifier *f, sp_slice *body) {
    size_t whole = 0, size = f->type && strchr("xXbo", f->type) ? 4 : 3;
    if (!f->group) return SP_OK;
    while (whole < body->len && strchr("0123456789abcdefABCDEF", body->ptr[whole]) &&
           !(size == 3 && body->ptr[whole] > '9'))
        whole++;
    sp_jtext t = {0};
    for (size_t i = 0; i < body->len; i++) {
        if (i && i < whole && (whole - i) % size == 0)
            SP_TRY(sp_jtext_char(r, &t, (unsigned char)f->group));
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){body->ptr + i, 1}));
    }
    *body = (sp_slice){t.ptr, t.len};
    return SP_OK;
}

/* Sign and prefix, then the body, in the field. */
static sp_status put_field(sp_jrun *r, const sp_jspecifier *f, char sign, const char *prefix,
                           sp_slice body, char align, sp_jtext *t) {
    sp_jstr counted = {.ptr = body.ptr, .len = body.len, .n_chars = SIZE_MAX};
    int64_t used = (sign != 0) + (int64_t)strlen(prefix) + (int64_t)sp_jstr_chars(&counted);
    int64_t room = f->width > used ? f->width - used : 0, before = 0, inside = 0;
    if (f->align) align = f->align;
    if (align == '>') before = room;
    if (align == '=') inside = room;
    if (align == '^') before = room / 2;
    sp_slice fill = f->fill.len ? f->fill : SP_SLICE(" ");
    SP_TRY(sp_jtext_fill(r, t, fill, before));
    if (sign) SP_TRY(sp_jtext_char(r, t, (unsigned char)sign));
    SP_TRY(sp_jtext_puts(r, t, prefix));
    SP_TRY(sp_jtext_fill(r, t, fill, inside));
    SP_TRY(sp_jtext_put(r, t, body));
    return sp_jtext_fill(r, t, fill, room - before - inside);
}

static int base_of(char type) {
    return type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
}

static sp_status put_int(sp_jrun *r, sp_jval v, const sp_jspecifier *f, sp_jtext *t) {
    char text[72], prefix[3] = "";
    int base = base_of(f->type);
    bool negative;
    sp_slice body;
    if (v.type == SP_J_BIG) {
        negative = v.s->ptr[0] == '-';
        body = (sp_slice){v.s->ptr + negative, v.s->len - negative};
        if (base != 10) return sp_jrun_fail(r, "an integer beyond 64 bits in base %d", base);
    } else {
        int64_t i = sp_jval_as_int(v);
        negative = i < 0;
        body = digits_of(negative ? 0 - (uint64_t)i : (uint64_t)i, base, f->type == 'X', text);
    }
    if (f->alternate && base != 10) memcpy(prefix, (char[]){'0', f->type, 0}, 3);
    if (f->precision > (int)body.len) { /* of % only: leading zeros */
        sp_jtext zeros = {0};
        SP_TRY(sp_jtext_fill(r, &zeros, SP_SLICE("0"), f->precision - (int)body.len));
        SP_TRY(sp_jtext_put(r, &zeros, body));
        body = (sp_slice){zeros.ptr, zeros.len};
    }
    SP_TRY(group_digits(r, f, &body));
    return put_field(r, f, sign_of(f, negative), prefix, body, '>', t);
}

static sp_status put_float(sp_jrun *r, double v, const sp_jspecifier *f, sp_jtext *t) {
    char text[PRECISION_MAX + 400], how[8];
    char type = f->type == '%' ? 'f' : f->type == 'n' ? 'g' : f->type ? f->type : 'g';
    int precision = f->precision < 0 ? 6 : f->precision;
    if (f->type == '%') v *= 100;
    bool negative = signbit(v) && !isnan(v);
    if (precision > PRECISION_MAX)
        return sp_jrun_fail(r, "a precision of more than %d digits", PRECISION_MAX);
    snprintf(how, sizeof how, f->alternate ? "%%#.*%c" : "%%.*%c", type);
    if (!f->type && f->precision < 0)
        sp_jfloat_repr(fabs(v), text);
    else
        snprintf(text, sizeof text, how, precision, fabs(v));
    size_t n = strlen(text); /* below the size of `text` by more than what follows */
    if (!f->type && isfinite(v) && !strpbrk(text, ".e")) {
        text[n++] = '.';
        text[n++] = '0';
    }
    if (f->type == '%') text[n++] = '%';
    sp_slice body = {text, n};
    SP_TRY(group_digits(r, f, &body));
    return put_field(r, f, sign_of(f, negative), "", body, '>', t);
}

static sp_status put_char(sp_jrun *r, sp_jval v, const sp_jspecifier *f, sp_jtext *t) {
    int64_t cp = v.type == SP_J_BIG ? -1 : sp_jval_as_int(v);
    char bytes[4];
    if (cp < 0 || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
        return sp_jrun_fail(r, "a number that is no character");
    int n = sp_utf8_encode((uint32_t)cp, bytes);
    return put_field(r, f, 0, "", (sp_slice){bytes, (size_t)n}, '>', t);
}

sp_status sp_jspecifier_put_str(sp_jrun *r, const sp_jspecifier *f, sp_slice s, char align,
                                sp_jtext *t) {
    sp_jstr str = {.ptr = s.ptr, .len = s.len, .n_chars = SIZE_MAX};
    if (f->precision >= 0 && (size_t)f->precision < sp_jstr_chars(&str))
        s.len = sp_jstr_byte(&str, (size_t)f->precision);
    return put_field(r, f, 0, "", s, align, t);
}

sp_status sp_jspecifier_put_number(sp_jrun *r, const sp_jspecifier *f, sp_jval v, sp_jtext *t) {
    if (f->type == 'c') return put_char(r, v, f, t);
    if (v.type != SP_J_FLOAT && (!f->type || strchr("dnxXob", f->type))) return put_int(r, v, f, t);
    if (f->type && !strchr("eEfFgGn%", f->type))
        return sp_jrun_fail(r, "unknown format code '%c' for '%s'", f->type, sp_jval_type_name(v));
    return put_float(r, sp_jval_as_float(v), f, t);
}

/* --- specifications --- */

static bool is_align(char c) {
    return c && strchr("<>=^", c);
}

static int64_t scan_number(sp_slice s, size_t *i) {
    int64_t n = 0;
    for (; *i < s.len && s.ptr[*i] >= '0' && s.ptr[*i] <= '9' && n < INT32_MAX / 10; ++*i)
        n = n * 10 + (s.ptr[*i] - '0');
    return n;
}

/* [[fill]align][sign][#][0][width][,][.precision][type] */
static sp_status parse_specification(sp_jrun *r, sp_slice s, sp_jspecifier *f) {
    uint32_t cp;
    size_t n = (size_t)sp_utf8_first(s, &cp), i = 0;
    *f = (sp_jspecifier){.precision = -1};
    if (s.len > n && is_align(s.ptr[n])) {
        f->fill = (sp_slice){s.ptr, n};
        f->align = s.ptr[n];
        i = n + 1;
    } else if (s.len && is_align(s.ptr[0])) {
        f->align = s.ptr[i++];
    }
    if (i < s.len && strchr("+- ", s.ptr[i]) && s.ptr[i]) f->sign = s.ptr[i++];
    if (i < s.len && s.ptr[i] == '#') f->alternate = s.ptr[i++] == '#';
    if (i < s.len && s.ptr[i] == '0') {
        f->zero = true;
        if (!f->fill.len) f->fill = SP_SLICE("0");
        i++;
    }
    f->width = scan_number(s, &i);
    if (i < s.len && (s.ptr[i] == ',' || s.ptr[i] == '_')) f->group = s.ptr[i++];
    if (i < s.len && s.ptr[i] == '.') {
        size_t from = ++i;
        f->precision = (int)scan_number(s, &i);
        if (i == from) return sp_jrun_fail(r, "format specifier lacks its precision");
    }
    if (i < s.len) f->type = s.ptr[i++];
    if (i < s.len) return sp_jrun_fail(r, "invalid format specifier '%.*s'", (int)s.len, s.ptr);
    return SP_OK;
}

sp_status sp_jval_put_format(sp_jrun *r, sp_jval v, sp_slice spec, sp_jtext *t) {
    sp_jspecifier f;
    if (spec.len == 0) return sp_jval_put_str(r, v, t);
    SP_TRY(parse_specification(r, spec, &f));
    if (v.type == SP_J_STR) {
        if ((f.type && f.type != 's') || f.sign || f.alternate || f.align == '=' || f.group)
            return sp_jrun_fail(r, "invalid format specifier '%.*s' for a string", (int)spec.len,
                                spec.ptr);
        return sp_jspecifier_put_str(r, &f, sp_jval_slice(v), '<', t);
    }
    if (!sp_jval_is_number(v))
        return sp_jrun_fail(r, "unsupported format string passed to %s", sp_jval_type_name(v));
    if (f.zero && !f.align) f.align = '=';
    bool integer = v.type != SP_J_FLOAT && (!f.type || strchr("dnxXobc", f.type));
    if (integer && f.precision >= 0)
        return sp_jrun_fail(r, "precision not allowed in integer format specifier");
    return sp_jspecifier_put_number(r, &f, v, t);
}
