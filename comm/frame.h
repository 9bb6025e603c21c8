/* comm/frame.h - the rules of a frame's header, the same for every kind of link.
 *
 * The layout is drawn in link.h. A receiver checks a header before it looks at anything that the
 * header speaks of: nothing is allocated, decrypted or handed out for a header that breaks a rule.
 *
 * Thread: any. */
#pragma once

#include "comm/link.h"

#define SP_FRAME_MAGIC 0x31465053u /* "SPF1" */

/** Checks every field of a header that a receiver whose next frame is number `sequence` can judge.
 * Errors: SP_E_PROTOCOL names the field, what it says and what was wanted. */
SP_NODISCARD sp_status sp_frame_check(const sp_frame_header *h, uint64_t sequence, sp_err *err);

/** The sum of the pieces' lengths. Errors: SP_E_TOOLONG above SP_FRAME_MAX. */
SP_NODISCARD sp_status sp_frame_length(uint32_t *out, const sp_piece *pieces, int n, sp_err *err);

/** Puts the pieces one after the other at `to`, and answers where they end. */
unsigned char *sp_frame_gather(unsigned char *to, const sp_piece *pieces, int n);
