/* runtime/base/json_scan.h - proves that bytes are one JSON text before anything is built.
 *
 * cJSON is lenient (leading zeros, control characters, trailing bytes, bad UTF-8); this scan is not.
 * Used by json.c only. Source: RFC 8259. Thread: any. */
#pragma once

#include "runtime/base/str.h"

typedef struct sp_json_facts {
    int n_lexemes; /* numbers that a double would not give back as written */
    int n_nul;     /* escaped NULs inside strings */
} sp_json_facts;

/** Errors: SP_E_FORMAT (what was seen, at which byte), SP_E_TOOLONG (nested deeper). */
SP_NODISCARD sp_status sp_json_scan(sp_slice text, int depth_max, sp_json_facts *facts,
                                    sp_err *err);

/** The number at `s`: its length, and whether its text must be kept beside the double. */
size_t sp_json_scan_number(const char *s, size_t n, bool *keep_text);
