/* What methods and filters share on strings: cutting, replacing, padding, escaping nothing. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_text.h"

#include <string.h>

/* A piece of `s` that is Markup when `s` is. */
static sp_status push_piece(sp_jrun *r, sp_jlist *l, sp_jval s, size_t from, size_t to) {
    sp_jval piece;
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jval_str(r, (sp_slice){s.s->ptr + from, to - from}, &piece));
    piece.mark = s.mark;
    return sp_jlist_push(r, l, piece);
}

static void turn_around(sp_jlist *l) {
    for (size_t i = 0; i < l->n / 2; i++) {
        sp_jval swap = l->at[i];
        l->at[i] = l->at[l->n - 1 - i];
        l->at[l->n - 1 - i] = swap;
    }
}

/* Runs of whitespace are one separator, and the ends are not. */
static sp_status split_blank(sp_jrun *r, sp_jval v, int64_t max, sp_jlist *l) {
    sp_slice s = sp_jval_slice(v), rest = s;
    for (;;) {
        uint32_t cp;
        rest = sp_slice_strip(rest, NULL, SP_STRIP_LEFT);
        if (rest.len == 0) return SP_OK;
        size_t from = (size_t)(rest.ptr - s.ptr);
        if (max >= 0 && (int64_t)l->n >= max) return push_piece(r, l, v, from, s.len);
        for (int n; (n = sp_utf8_first(rest, &cp)) && !sp_char_space(cp); rest.ptr += n)
            rest.len -= (size_t)n;
        SP_TRY(push_piece(r, l, v, from, (size_t)(rest.ptr - s.ptr)));
    }
}

static sp_status rsplit_blank(sp_jrun *r, sp_jval v, int64_t max, sp_jlist *l) {
    sp_slice s = sp_jval_slice(v), rest = s;
    for (;;) {
        uint32_t cp;
        rest = sp_slice_strip(rest, NULL, SP_STRIP_RIGHT);
        if (rest.len == 0) break;
        size_t to = rest.len;
        if (max >= 0 && (int64_t)l->n >= max) {
            SP_TRY(push_piece(r, l, v, 0, to));
            break;
        }
        for (int n; (n = sp_utf8_last(rest, &cp)) && !sp_char_space(cp);) rest.len -= (size_t)n;
        SP_TRY(push_piece(r, l, v, rest.len, to));
    }
    turn_around(l);
    return SP_OK;
}

static sp_status split_at(sp_jrun *r, sp_jval v, sp_slice sep, int64_t max, sp_jlist *l) {
    sp_slice s = sp_jval_slice(v);
    size_t at = 0;
    while (max < 0 || (int64_t)l->n < max) {
        ptrdiff_t to = sp_slice_find(s, sep, at);
        if (to < 0) break;
        SP_TRY(push_piece(r, l, v, at, (size_t)to));
        at = (size_t)to + sep.len;
    }
    return push_piece(r, l, v, at, s.len);
}

static sp_status rsplit_at(sp_jrun *r, sp_jval v, sp_slice sep, int64_t max, sp_jlist *l) {
    const char *p = v.s->ptr;
    size_t end = v.s->len;
    for (size_t i = end; i >= sep.len && (max < 0 || (int64_t)l->n < max);) {
        if (memcmp(p + i - sep.len, sep.ptr, sep.len) != 0) {
            i--;
            continue;
        }
        SP_TRY(push_piece(r, l, v, i, end));
        end = i -= sep.len;
    }
    SP_TRY(push_piece(r, l, v, 0, end));
    turn_around(l);
    return SP_OK;
}

sp_status sp_jval_split(sp_jrun *r, sp_jval s, const sp_slice *sep, int64_t max, bool from_right,
                        sp_jlist **out) {
    SP_TRY(sp_jlist_create(r, 0, out));
    SP_TRY(sp_jrun_charge(r, s.s->len / 64));
    if (sep && sep->len == 0) return sp_jrun_fail(r, "empty separator");
    if (!sep) return from_right ? rsplit_blank(r, s, max, *out) : split_blank(r, s, max, *out);
    return from_right ? rsplit_at(r, s, *sep, max, *out) : split_at(r, s, *sep, max, *out);
}

sp_status sp_jval_splitlines(sp_jrun *r, sp_jval s, bool keep_ends, sp_jlist **out) {
    SP_TRY(sp_jlist_create(r, 0, out));
    SP_TRY(sp_jrun_charge(r, s.s->len / 64));
    size_t from = 0;
    for (size_t i = 0; i < s.s->len;) {
        uint32_t cp;
        size_t end = i;
        i += (size_t)sp_utf8_first((sp_slice){s.s->ptr + i, s.s->len - i}, &cp);
        if (!sp_char_newline(cp)) continue;
        if (cp == '\r' && i < s.s->len && s.s->ptr[i] == '\n') i++;
        SP_TRY(push_piece(r, *out, s, from, keep_ends ? i : end));
        from = i;
    }
    return from < s.s->len ? push_piece(r, *out, s, from, s.s->len) : SP_OK;
}

/* Between all characters, and at both ends. */
static sp_status replace_nothing(sp_jrun *r, sp_slice s, sp_slice with, int64_t max, sp_jtext *t) {
    int64_t n = 0;
    for (size_t i = 0; max < 0 || n < max; n++) {
        uint32_t cp;
        SP_TRY(sp_jtext_put(r, t, with));
        int len = sp_utf8_first((sp_slice){s.ptr, s.len}, &cp);
        if (len == 0) return SP_OK;
        SP_TRY(sp_jtext_put(r, t, (sp_slice){s.ptr, (size_t)len}));
        s = (sp_slice){s.ptr + len, s.len - (size_t)len};
        if (++i % 64 == 0) SP_TRY(sp_jrun_charge(r, 1));
    }
    return sp_jtext_put(r, t, s);
}

sp_status sp_jval_replace(sp_jrun *r, sp_jval v, sp_slice old, sp_slice with, int64_t max,
                          sp_jval *out) {
    sp_slice s = sp_jval_slice(v);
    sp_jtext t = {0};
    SP_TRY(sp_jrun_charge(r, s.len / 64));
    if (old.len == 0) {
        SP_TRY(replace_nothing(r, s, with, max, &t));
        return sp_jtext_done(r, &t, out);
    }
    size_t at = 0;
    for (int64_t n = 0; max < 0 || n < max; n++) {
        ptrdiff_t to = sp_slice_find(s, old, at);
        if (to < 0) break;
        SP_TRY(sp_jrun_charge(r, 1));
        SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr + at, (size_t)to - at}));
        SP_TRY(sp_jtext_put(r, &t, with));
        at = (size_t)to + old.len;
    }
    if (at == 0) {
        *out = v;
        out->mark = false;
        return SP_OK;
    }
    SP_TRY(sp_jtext_put(r, &t, (sp_slice){s.ptr + at, s.len - at}));
    return sp_jtext_done(r, &t, out);
}

sp_status sp_jval_pad(sp_jrun *r, sp_jval v, int64_t width, sp_slice fill, int sides,
                      sp_jval *out) {
    sp_jtext t = {0};
    int64_t n = (int64_t)sp_jstr_chars(v.s), room = width > n ? width - n : 0, left = 0;
    if (sides == SP_STRIP_LEFT) left = room;
    /* Of an odd room, the left gets more only when the width is odd too: as CPython. */
    if (sides == SP_STRIP_BOTH) left = room / 2 + (room & width & 1);
    SP_TRY(sp_jtext_fill(r, &t, fill, left));
    SP_TRY(sp_jtext_put(r, &t, sp_jval_slice(v)));
    SP_TRY(sp_jtext_fill(r, &t, fill, room - left));
    SP_TRY(sp_jtext_done(r, &t, out));
    out->mark = v.mark;
    return SP_OK;
}
