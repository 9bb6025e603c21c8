#include "runtime/base/str.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool sp_slice_starts(sp_slice a, sp_slice prefix) {
    return a.len >= prefix.len && (!prefix.len || memcmp(a.ptr, prefix.ptr, prefix.len) == 0);
}

bool sp_slice_ends(sp_slice a, sp_slice suffix) {
    return a.len >= suffix.len &&
           (!suffix.len || memcmp(a.ptr + a.len - suffix.len, suffix.ptr, suffix.len) == 0);
}

ptrdiff_t sp_slice_find(sp_slice hay, sp_slice needle, size_t from) {
    if (from > hay.len) return -1;
    if (needle.len == 0) return (ptrdiff_t)from;
    if (hay.len == 0) return -1; /* a slice of nothing may be NULL */
    const char *p = memmem(hay.ptr + from, hay.len - from, needle.ptr, needle.len);
    return p ? p - hay.ptr : -1;
}

uint64_t sp_hash_bytes(const void *p, size_t n) {
    const unsigned char *s = p;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}

void sp_buf_init(sp_buf *b, size_t limit_bytes) {
    *b = (sp_buf){.limit = limit_bytes};
}

void sp_buf_fini(sp_buf *b) {
    sp_free(b->ptr);
    *b = (sp_buf){.limit = b->limit};
}

void sp_buf_clear(sp_buf *b) {
    b->len = 0;
    b->failed = false;
    if (b->ptr) b->ptr[0] = 0;
}

/* Makes room for n more bytes and a NUL. */
static bool reserve(sp_buf *b, size_t n) {
    if (b->failed) return false;
    if (n > SIZE_MAX / 4 || (b->limit && n > b->limit - b->len)) {
        b->failed = true;
        return false;
    }
    if (b->cap - b->len > n && b->ptr) return true;
    size_t cap = b->cap ? b->cap : 64;
    while (cap - b->len <= n) cap *= 2;
    char *p = sp_try_realloc(b->ptr, cap);
    if (!p) {
        b->failed = true;
        return false;
    }
    b->ptr = p;
    b->cap = cap;
    return true;
}

void sp_buf_put(sp_buf *b, const void *p, size_t n) {
    if (!reserve(b, n)) return;
    if (n) memcpy(b->ptr + b->len, p, n);
    b->len += n;
    b->ptr[b->len] = 0;
}

void sp_buf_puts(sp_buf *b, const char *s) {
    sp_buf_put(b, s, strlen(s));
}
void sp_buf_put_slice(sp_buf *b, sp_slice s) {
    sp_buf_put(b, s.ptr, s.len);
}
void sp_buf_putc(sp_buf *b, char c) {
    sp_buf_put(b, &c, 1);
}

void sp_buf_printf(sp_buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && reserve(b, (size_t)n)) {
        vsnprintf(b->ptr + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

sp_status sp_parse_i64(sp_slice s, int64_t *out) {
    bool neg = s.len && s.ptr[0] == '-';
    size_t i = neg;
    if (i == s.len) return SP_E_INVALID;
    int64_t v = 0;
    for (; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9') return SP_E_INVALID;
        int digit = s.ptr[i] - '0';
        if (__builtin_mul_overflow(v, 10, &v)) return SP_E_INVALID;
        /* Downwards, so that the smallest value fits. */
        if (__builtin_sub_overflow(v, digit, &v)) return SP_E_INVALID;
    }
    if (!neg && v == INT64_MIN) return SP_E_INVALID;
    *out = neg ? v : -v;
    return SP_OK;
}

sp_status sp_parse_f64(sp_slice s, double *out) {
    char text[64];
    if (s.len == 0 || s.len >= sizeof text) return SP_E_INVALID;
    for (size_t i = 0; i < s.len; i++)
        if (!strchr("0123456789+-.eE", s.ptr[i])) return SP_E_INVALID;
    memcpy(text, s.ptr, s.len);
    text[s.len] = 0;
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end != text + s.len) return SP_E_INVALID;
    if (errno == ERANGE && (v > 1 || v < -1)) return SP_E_INVALID;
    *out = v;
    return SP_OK;
}

sp_status sp_parse_bytes(sp_slice s, uint64_t *out) {
    static const char units[] = "kmgt";
    size_t n = 0;
    while (n < s.len && ((s.ptr[n] >= '0' && s.ptr[n] <= '9') || s.ptr[n] == '.')) n++;
    double v;
    SP_TRY(sp_parse_f64((sp_slice){s.ptr, n}, &v));
    sp_slice unit = {s.ptr + n, s.len - n};
    uint64_t scale = 1;
    if (unit.len && unit.ptr[0] != 'B') {
        const char *at = strchr(units, unit.ptr[0] | 32);
        if (!at) return SP_E_INVALID;
        scale = (uint64_t)1 << (10 * (at - units + 1));
        unit.ptr++;
        unit.len--;
    }
    if (unit.len && !sp_slice_is(unit, "B") && !sp_slice_is(unit, "iB")) return SP_E_INVALID;
    if (v < 0 || v * (double)scale > 9e18) return SP_E_INVALID;
    *out = (uint64_t)(v * (double)scale);
    return SP_OK;
}

const char *sp_format_bytes(char *out, size_t n, uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < SP_LEN(units)) {
        v /= 1024;
        u++;
    }
    snprintf(out, n, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}

void sp_hex_write(char *out, const void *bytes, size_t n) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *from = bytes;
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[from[i] >> 4];
        out[2 * i + 1] = digits[from[i] & 15];
    }
    out[2 * n] = 0;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

sp_status sp_hex_read(void *out, size_t n, const char *text) {
    unsigned char *to = out;
    if (strlen(text) != 2 * n) return SP_E_INVALID;
    for (size_t i = 0; i < n; i++) {
        const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return SP_E_INVALID;
        to[i] = (unsigned char)(high << 4 | low);
    }
    return SP_OK;
}

int sp_utf8_decode(const char *text, size_t n, uint32_t *cp) {
    const unsigned char *s = (const unsigned char *)text;
    if (n == 0) return 0;
    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    int len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)len > n) return 0;
    uint32_t v = s[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        v = v << 6 | (s[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (v < least[len] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return 0;
    *cp = v;
    return len;
}

int sp_utf8_encode(uint32_t cp, char out[4]) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)((0xf00 >> len & 0xff) | cp);
    return len;
}

bool sp_utf8_valid(sp_slice s) {
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        int n = sp_utf8_decode(s.ptr + i, s.len - i, &cp);
        if (n == 0) return false;
        i += (size_t)n;
    }
    return true;
}
