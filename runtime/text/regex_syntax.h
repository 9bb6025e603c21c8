/* runtime/text/regex_syntax.h - a regex of tokenizer.json in the words of PCRE2.
 *
 * The patterns in tokenizer.json were written for Oniguruma (Ruby syntax), which the Hugging Face
 * library uses. Most of it means the same in PCRE2; this rewrites what does not:
 *   \s \S \w \W \b \B [:alpha:] …   explicit sets, since PCRE2's own differ (U+180E, marks)
 *   \h \H \v \O \uHHHH             hexadecimal digit, vertical tab, any character, code point
 *   \p{Han}, \p{Letter}, \p{^Lu}   script, long category name, negation
 *   X{2,3}+ X{2}? X{,3}            repeated, optional and from 0 (not possessive, not lazy)
 *   [a[bc]] [a-z&&[^x]]            sets inside sets and their intersection
 *   (?m:…)                         "dot matches newline", which is s in PCRE2
 * ^ and $ match at lines: the caller compiles with PCRE2_MULTILINE.
 *
 * Source: Oniguruma's doc/RE; pcre2pattern(3). Thread: any. */
#pragma once

#include "runtime/base/str.h"

#define SP_REGEX_PATTERN_BYTES_MAX ((size_t)64 * 1024)

/** Appends the rewritten pattern. A pattern that is not well formed may come out as it is: the
 * compiler then says what is wrong with it.
 * Errors: SP_E_TOOLONG; SP_E_UNSUPPORTED names an operator that PCRE2 does not have;
 *         SP_E_FORMAT a set without its end. */
SP_NODISCARD sp_status sp_regex_rewrite(sp_slice pattern, sp_buf *out, sp_err *err);
