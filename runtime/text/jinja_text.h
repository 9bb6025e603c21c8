/* runtime/text/jinja_text.h - characters and strings as Python's str methods see them.
 *
 * Code points, never bytes: whitespace, letters, case. Case mapping is the full one (one character
 * may become three) with the final sigma of Greek.
 *
 * Source: Unicode 13 (utf8proc), SpecialCasing.txt, DerivedCoreProperties.txt; Python str.
 * Thread: any for the characters. */
#pragma once

#include "runtime/text/jinja_value.h"

bool sp_char_space(uint32_t cp);   /* str.isspace(), what strip() takes */
bool sp_char_newline(uint32_t cp); /* where str.splitlines() cuts */
bool sp_char_printable(uint32_t cp);
bool sp_char_alpha(uint32_t cp);
bool sp_char_decimal(uint32_t cp);
bool sp_char_digit(uint32_t cp);
bool sp_char_numeric(uint32_t cp);
bool sp_char_alnum(uint32_t cp);
bool sp_char_lower(uint32_t cp);
bool sp_char_upper(uint32_t cp);
bool sp_char_title(uint32_t cp);
bool sp_char_name_start(uint32_t cp); /* of an identifier */
bool sp_char_name(uint32_t cp);

/** The multi-character upper and title case of `cp` in UTF-8, or NULL (jinja_case.c). */
const char *sp_char_special_upper(uint32_t cp);
const char *sp_char_special_title(uint32_t cp);

typedef enum sp_case {
    SP_CASE_UPPER,
    SP_CASE_LOWER,
    SP_CASE_TITLE,      /* str.title(): a word begins after what has no case */
    SP_CASE_CAPITALIZE, /* the first character in title case, the others lower */
    SP_CASE_SWAP,
    SP_CASE_FOLD,
} sp_case;
SP_NODISCARD sp_status sp_jtext_case(sp_jrun *r, sp_jtext *t, sp_slice s, sp_case how);

enum {
    SP_STRIP_LEFT = 1,
    SP_STRIP_RIGHT = 2,
    SP_STRIP_BOTH = 3
};
/** Charges for sp_slice_strip() with characters of one's own, which are searched one by one. */
SP_NODISCARD sp_status sp_jrun_charge_strip(sp_jrun *r, sp_slice s, sp_slice chars);
/** Without the characters of `chars` (NULL: whitespace) at its ends. */
sp_slice sp_slice_strip(sp_slice s, const sp_slice *chars, int sides);
/** The last character of `s` and its length in bytes; 0: empty. */
int sp_utf8_last(sp_slice s, uint32_t *cp);
/** The first character; a byte that is not UTF-8 is U+FFFD. */
int sp_utf8_first(sp_slice s, uint32_t *cp);
