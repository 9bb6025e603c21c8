/* runtime/text/jinja_format.h - how one value is put into a field.
 *
 * Filled from a format specification (jinja_format.c) or from a % conversion
 * (jinja_interpolate.c). Widths are counted in code points; a precision has a maximum of 300 digits
 * for floats.
 *
 * Source: Python's format specification mini-language and printf-style formatting.
 * Thread: a render's own. */
#pragma once

#include "runtime/text/jinja_eval.h"

typedef struct sp_jspecifier {
    sp_slice fill; /* empty: a blank */
    char align;    /* '<', '>', '^', '=' (after the sign); 0: as the type wants it */
    char sign;     /* '+', ' ', '-' or 0 */
    char group;    /* ',' or '_' between digits, or 0 */
    char type;     /* 0: none given */
    bool alternate, zero;
    int64_t width;
    int precision; /* -1: none */
} sp_jspecifier;

/** A text, cut to the precision, in its field. */
SP_NODISCARD sp_status sp_jspecifier_put_str(sp_jrun *r, const sp_jspecifier *f, sp_slice s,
                                             char align, sp_jtext *t);
/** A number. Errors: SP_E_FORMAT the type does not fit it. */
SP_NODISCARD sp_status sp_jspecifier_put_number(sp_jrun *r, const sp_jspecifier *f, sp_jval v,
                                                sp_jtext *t);
