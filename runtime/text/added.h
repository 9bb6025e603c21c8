/* runtime/text/added.h - added tokens, and where they stand in a text.
 *
 * Two sets: tokens with normalized:false are looked for in the raw text, the others, in their own
 * normalized spelling, in the normalized text. A search goes from left to right and takes the
 * longest token at each place; single_word, lstrip and rstrip are then looked at as the file says.
 * A token that is passed over (special ones when special text is off, or not a single word) hides
 * what begins inside it, as in the library the files were made for.
 *
 * Limits: SP_ADDED_MAX tokens, SP_ADDED_BYTES_MAX each.
 * Source: huggingface tokenizers, AddedVocabulary. Thread: const after the last add. */
#pragma once

#include "runtime/text/normalizer.h"

#define SP_ADDED_MAX (1 << 20)
#define SP_ADDED_BYTES_MAX ((size_t)4096)

typedef struct sp_added_token {
    int32_t id;
    sp_slice content; /* as in the file; owned by the set */
    sp_slice written; /* what decoders see: the normalized spelling, or content */
    bool single_word, lstrip, rstrip, normalized, special;
} sp_added_token;

typedef struct sp_added sp_added;

SP_NODISCARD sp_status sp_added_create(sp_added **out, sp_err *err);
void sp_added_free(sp_added *a);

/** Adds a copy of `token`; `written` is computed with `n`. A content that is already there keeps
 * its place and takes the new flags.
 * Errors: SP_E_FORMAT another token has the id; SP_E_TOOLONG; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_added_put(sp_added *a, const sp_added_token *token,
                                    const sp_normalizer *n, sp_err *err);
/** Makes the sets searchable; call once after the last put. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_added_finish(sp_added *a, sp_err *err);

int sp_added_count(const sp_added *a);
const sp_added_token *sp_added_at(const sp_added *a, int i);              /* in order of adding */
const sp_added_token *sp_added_find(const sp_added *a, sp_slice content); /* or NULL */
const sp_added_token *sp_added_get(const sp_added *a, int32_t id);        /* or NULL */

/** Appends the pieces of `piece` (text) to `out`: tokens of one set, and the text between them.
 * Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_added_split(const sp_added *a, bool normalized, bool with_special,
                                      sp_piece piece, sp_pieces *out);
