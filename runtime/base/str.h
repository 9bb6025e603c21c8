/* runtime/base/str.h - slices of bytes, a growable buffer, numbers and sizes with units.
 *
 * A slice borrows; it is not NUL-terminated. A buffer owns its bytes, is always NUL-terminated and
 * never grows past its limit: the first append that would sets `failed`, later ones do nothing, and
 * the caller looks once at the end.
 *
 * Thread: any; a buffer belongs to one thread at a time. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>
#include <string.h>

typedef struct sp_slice {
    const char *ptr;
    size_t len;
} sp_slice;

#define SP_SLICE(literal) ((sp_slice){(literal), sizeof(literal) - 1})

static inline sp_slice sp_slice_of(const char *s) {
    return (sp_slice){s, s ? strlen(s) : 0};
}
static inline bool sp_slice_eq(sp_slice a, sp_slice b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}
static inline bool sp_slice_is(sp_slice a, const char *s) {
    return sp_slice_eq(a, sp_slice_of(s));
}
bool sp_slice_starts(sp_slice a, sp_slice prefix);
bool sp_slice_ends(sp_slice a, sp_slice suffix);

/** First index of `needle` in `hay` at or after `from`, or -1. An empty needle is found at once. */
ptrdiff_t sp_slice_find(sp_slice hay, sp_slice needle, size_t from);

/** FNV-1a, 64 bits: for hash tables in memory, never for identity across processes. */
uint64_t sp_hash_bytes(const void *p, size_t n);

typedef struct sp_buf {
    char *ptr;
    size_t len, cap;
    size_t limit; /* 0 = none */
    bool failed;  /* an append did not fit or memory was short */
} sp_buf;

void sp_buf_init(sp_buf *b, size_t limit_bytes);
void sp_buf_fini(sp_buf *b);
void sp_buf_clear(sp_buf *b); /* keeps the memory, clears `failed` */
void sp_buf_put(sp_buf *b, const void *p, size_t n);
void sp_buf_puts(sp_buf *b, const char *s);
void sp_buf_put_slice(sp_buf *b, sp_slice s);
void sp_buf_putc(sp_buf *b, char c);
void sp_buf_printf(sp_buf *b, const char *fmt, ...) SP_PRINTF(2, 3);
static inline sp_slice sp_buf_slice(const sp_buf *b) {
    return (sp_slice){b->ptr, b->len};
}

/** Strict decimal integer of the whole string (optional '-'). Errors: SP_E_INVALID. */
SP_NODISCARD sp_status sp_parse_i64(sp_slice s, int64_t *out);
/** Strict C-locale number of the whole string. Errors: SP_E_INVALID. */
SP_NODISCARD sp_status sp_parse_f64(sp_slice s, double *out);
/** "4G", "512MiB", "10k" or bytes; 1024 steps. Errors: SP_E_INVALID. */
SP_NODISCARD sp_status sp_parse_bytes(sp_slice s, uint64_t *out);
/** "8.9 MiB"; writes at most `n` bytes and returns `out`. */
const char *sp_format_bytes(char *out, size_t n, uint64_t bytes);

/** 2 n small hexadecimal digits and a NUL. */
void sp_hex_write(char *out, const void *bytes, size_t n);
/** Exactly `n` bytes out of a text of 2 n digits. Errors: SP_E_INVALID; `out` may then be changed. */
SP_NODISCARD sp_status sp_hex_read(void *out, size_t n, const char *text);

/** Length in bytes of the UTF-8 sequence at `s` (1..4) and its code point; 0 when not valid UTF-8
 * (overlong, surrogate, cut short, above U+10FFFF). Source: Unicode 15, table 3-7. */
int sp_utf8_decode(const char *s, size_t n, uint32_t *cp);
int sp_utf8_encode(uint32_t cp, char out[4]); /* bytes written; cp must be a scalar value */
bool sp_utf8_valid(sp_slice s);
