/* runtime/text/unicode.h - character classes, normal forms and UTF-8 repair for the tokenizer.
 *
 * The classes are those that the Rust standard library and its regex crate use, because
 * tokenizer.json was written for them: is_space is White_Space, is_numeric is the category N,
 * is_word is the regex class \w. Only unicode.c knows utf8proc.
 * Normal forms are linear: combining marks are sorted by us, since utf8proc's own sort is quadratic
 * and a request may hold a million of them.
 *
 * Source: Unicode 15, UAX #15 and #44; W3C's advice on U+FFFD (maximal subparts).
 * Thread: any. */
#pragma once

#include "runtime/base/str.h"

#define SP_UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

typedef enum sp_unicode_form {
    SP_UNICODE_NFC,
    SP_UNICODE_NFD,
    SP_UNICODE_NFKC,
    SP_UNICODE_NFKD,
} sp_unicode_form;

bool sp_unicode_is_space(uint32_t cp);
bool sp_unicode_is_word(uint32_t cp);
bool sp_unicode_is_punct(uint32_t cp);   /* ASCII punctuation or category P */
bool sp_unicode_is_numeric(uint32_t cp); /* category N */
bool sp_unicode_is_mark(uint32_t cp);    /* category M */

/** Appends `text` (valid UTF-8) in a normal form. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_unicode_normalize(sp_unicode_form form, sp_slice text, sp_buf *out,
                                            sp_err *err);
/** Appends `text` (valid UTF-8) in lower case, each character alone (no final sigma). */
void sp_unicode_lower(sp_slice text, sp_buf *out);

/** The character that byte-level tokenizers write for a byte, and back (-1: for none). Printable
 * Latin-1 stands for itself, the other 68 bytes are U+0100 and up. Source: GPT-2's encoder. */
uint32_t sp_bytelevel_char(unsigned char byte);
int sp_bytelevel_byte(uint32_t cp);

/** What begins at `s`: the length of a whole character; 0 when all `n` bytes (at most 3) are the
 * beginning of one; or minus the number of bytes that one U+FFFD stands for. n must not be 0. */
int sp_utf8_next(const char *s, size_t n);

/** Appends `bytes` with U+FFFD for each maximal part that is not UTF-8. */
void sp_utf8_repair(sp_slice bytes, sp_buf *out);

/** The character at `s` of valid UTF-8; *len receives its length. n must not be 0. */
uint32_t sp_utf8_get(const char *s, size_t n, int *len);
/** The character that ends at `end` of valid UTF-8. end must not be 0. */
uint32_t sp_utf8_before(const char *s, size_t end, int *len);
