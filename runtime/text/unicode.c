#include "runtime/text/unicode.h"

#include "runtime/base/mem.h"

#include <utf8proc.h>

typedef struct span {
    uint32_t first, last;
} span;

static bool in_spans(const span *spans, size_t n, uint32_t cp) {
    for (size_t i = 0; i < n; i++)
        if (cp >= spans[i].first && cp <= spans[i].last) return true;
    return false;
}

bool sp_unicode_is_space(uint32_t cp) {
    static const span others[] = {{0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
                                  {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f},
                                  {0x205f, 0x205f}, {0x3000, 0x3000}};
    if (cp < 0x80) return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return in_spans(others, SP_LEN(others), cp);
}

bool sp_unicode_is_word(uint32_t cp) {
    /* Alphabetic symbols (circled and squared letters) and the two joiners. */
    static const span others[] = {{0x200c, 0x200d},
                                  {0x24b6, 0x24e9},
                                  {0x1f130, 0x1f149},
                                  {0x1f150, 0x1f169},
                                  {0x1f170, 0x1f189}};
    if (cp < 0x80)
        return cp == '_' || (cp >= '0' && cp <= '9') || ((cp | 32) >= 'a' && (cp | 32) <= 'z');
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return in_spans(others, SP_LEN(others), cp);
    }
}

bool sp_unicode_is_punct(uint32_t cp) {
    if (cp < 0x80) return cp > ' ' && cp != 0x7f && (cp == '_' || !sp_unicode_is_word(cp));
    int c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool sp_unicode_is_numeric(uint32_t cp) {
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    int c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

bool sp_unicode_is_mark(uint32_t cp) {
    if (cp < 0x80) return false;
    int c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

/* Marks that Unicode 10 and later have added. The library that tokenizer.json was written for
 * normalizes by Unicode 9, where they are not marks, and so do we: ids come before elegance. */
static bool is_young_mark(int32_t cp) {
    static const span young[] = {
        {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
        {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0xece, 0xece},
        {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},
        {0x10d24, 0x10d27}, {0x10d69, 0x10d6d}, {0x10eab, 0x10eac}, {0x10efc, 0x10eff},
        {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b},
        {0x113ce, 0x113d0}, {0x113e1, 0x113e2}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
        {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
        {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d45}, {0x11d97, 0x11d97},
        {0x11f41, 0x11f42}, {0x1612f, 0x1612f}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
        {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
        {0x1e5ee, 0x1e5ef}};
    return in_spans(young, SP_LEN(young), (uint32_t)cp);
}

static int combining_class(int32_t cp) {
    if (cp < 0x300) return 0;
    int class = utf8proc_get_property(cp)->combining_class;
    return class && is_young_mark(cp) ? 0 : class;
}

/* Merge sort, because a stable sort in n log n is what canonical order asks for. */
static void sort_marks(int32_t *cps, int32_t *tmp, size_t n) {
    if (n < 2) return;
    size_t half = n / 2;
    sort_marks(cps, tmp, half);
    sort_marks(cps + half, tmp, n - half);
    memcpy(tmp, cps, half * sizeof *cps);
    size_t a = 0, b = half, to = 0;
    while (a < half && b < n)
        cps[to++] = combining_class(cps[b]) < combining_class(tmp[a]) ? cps[b++] : tmp[a++];
    memcpy(cps + to, tmp + a, (half - a) * sizeof *cps);
}

static void order_canonically(int32_t *cps, int32_t *tmp, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(cps[end])) end++;
        sort_marks(cps + i, tmp, end - i);
        i = end + 1;
    }
}

/* Nothing below this changes in the form, and nothing below it combines. */
static uint32_t stable_below(sp_unicode_form form) {
    return form == SP_UNICODE_NFC ? 0x300 : form == SP_UNICODE_NFD ? 0xc0 : 0xa0;
}

static bool is_plain(sp_unicode_form form, sp_slice text) {
    uint32_t below = stable_below(form);
    /* First bytes of UTF-8 order as characters do. */
    unsigned char lead = below >= 0x300 ? 0xcc : below >= 0xc0 ? 0xc3 : 0xc2;
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] >= lead) return false;
    return true;
}

static size_t decompose(sp_unicode_form form, sp_slice text, int32_t *out, size_t cap) {
    int options = UTF8PROC_DECOMPOSE | UTF8PROC_STABLE;
    if (form >= SP_UNICODE_NFKC) options |= UTF8PROC_COMPAT;
    size_t n = 0;
    for (size_t i = 0; i < text.len;) {
        int len, last_boundclass = 0;
        uint32_t cp = sp_utf8_get(text.ptr + i, text.len - i, &len);
        i += (size_t)len;
        int32_t *to = n < cap ? out + n : NULL;
        utf8proc_ssize_t got =
            utf8proc_decompose_char((utf8proc_int32_t)cp, to, to ? (utf8proc_ssize_t)(cap - n) : 0,
                                    (utf8proc_option_t)options, &last_boundclass);
        if (got > 0) n += (size_t)got;
    }
    return n;
}

/* Composes what lies between young marks, which keep their neighbours apart. */
static size_t compose(int32_t *cps, size_t n) {
    int options = UTF8PROC_COMPOSE | UTF8PROC_STABLE;
    size_t to = 0;
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n &&
               !(utf8proc_get_property(cps[end])->combining_class && is_young_mark(cps[end])))
            end++;
        utf8proc_ssize_t got = utf8proc_normalize_utf32(cps + i, (utf8proc_ssize_t)(end - i),
                                                        (utf8proc_option_t)options);
        size_t len = got >= 0 ? (size_t)got : end - i;
        memmove(cps + to, cps + i, len * sizeof *cps);
        to += len;
        if (end < n) cps[to++] = cps[end++];
        i = end;
    }
    return to;
}

sp_status sp_unicode_normalize(sp_unicode_form form, sp_slice text, sp_buf *out, sp_err *err) {
    if (is_plain(form, text)) {
        sp_buf_put_slice(out, text);
        return SP_OK;
    }
    size_t n = decompose(form, text, NULL, 0);
    int32_t *cps = sp_try_alloc_array(n + 1, 2 * sizeof *cps);
    if (!cps) return SP_FAIL(err, SP_E_NOMEM, "no memory to normalize %zu bytes", text.len);
    n = decompose(form, text, cps, n);
    order_canonically(cps, cps + n + 1, n);
    if (form == SP_UNICODE_NFC || form == SP_UNICODE_NFKC) n = compose(cps, n);
    for (size_t i = 0; i < n; i++) {
        char utf8[4];
        sp_buf_put(out, utf8, (size_t)sp_utf8_encode((uint32_t)cps[i], utf8));
    }
    sp_free(cps);
    return SP_OK;
}

void sp_unicode_lower(sp_slice text, sp_buf *out) {
    for (size_t i = 0; i < text.len;) {
        int len;
        uint32_t cp = sp_utf8_get(text.ptr + i, text.len - i, &len);
        char utf8[4];
        if (cp == 0x130) { /* the one character whose lower case is two */
            sp_buf_put(out, "i\xcc\x87", 3);
        } else {
            uint32_t low = cp < 0x80 ? cp | (cp >= 'A' && cp <= 'Z' ? 32 : 0)
                                     : (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
            sp_buf_put(out, utf8, (size_t)sp_utf8_encode(low, utf8));
        }
        i += (size_t)len;
    }
}

uint32_t sp_bytelevel_char(unsigned char byte) {
    if (byte <= 32) return 256u + byte;
    if (byte <= 126) return byte;
    if (byte <= 160) return 256u + 33 + (byte - 127u);
    return byte == 173 ? 256 + 67 : byte;
}

int sp_bytelevel_byte(uint32_t cp) {
    if (cp >= 256 + 68) return -1;
    if (cp >= 256) {
        int n = (int)cp - 256;
        return n < 33 ? n : n < 67 ? 127 + n - 33 : 173;
    }
    return sp_bytelevel_char((unsigned char)cp) == cp ? (int)cp : -1;
}

int sp_utf8_next(const char *s, size_t n) {
    uint32_t cp;
    int len = sp_utf8_decode(s, n, &cp);
    if (len) return len;
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0xc2 || u[0] > 0xf4) return -1;
    size_t want = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    /* The second byte has a narrower range after E0, ED, F0 and F4. */
    unsigned char low = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf;
    size_t i = 1;
    for (; i < want && i < n && u[i] >= low && u[i] <= high; i++) {
        low = 0x80;
        high = 0xbf;
    }
    return i == n ? 0 : -(int)i;
}

void sp_utf8_repair(sp_slice bytes, sp_buf *out) {
    size_t good = 0; /* start of what is not yet copied */
    for (size_t i = 0; i < bytes.len;) {
        int step = sp_utf8_next(bytes.ptr + i, bytes.len - i);
        if (step > 0) {
            i += (size_t)step;
            continue;
        }
        sp_buf_put(out, bytes.ptr + good, i - good);
        sp_buf_puts(out, SP_UTF8_REPLACEMENT);
        i += step ? (size_t)-step : bytes.len - i;
        good = i;
    }
    sp_buf_put(out, bytes.ptr + good, bytes.len - good);
}

uint32_t sp_utf8_get(const char *s, size_t n, int *len) {
    uint32_t cp = 0;
    *len = sp_utf8_decode(s, n, &cp);
    SP_DASSERT(*len > 0);
    if (*len == 0) *len = 1; /* never loops, even where the text is not what it should be */
    return cp;
}

uint32_t sp_utf8_before(const char *s, size_t end, int *len) {
    size_t at = end - 1;
    while (at > 0 && end - at < 4 && ((unsigned char)s[at] & 0xc0) == 0x80) at--;
    uint32_t cp = sp_utf8_get(s + at, end - at, len);
    *len = (int)(end - at);
    return cp;
}
