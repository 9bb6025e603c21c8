/* launcher/prompt.h - what the user typed to prompt ids: plain text, ids, or a chat's history.
 * Thread: main of the head. */
#pragma once

#include "launcher/head.h"
#include "runtime/base/str.h"

/** The prompt that the options ask for: --tokens, --raw text (special tokens parsed, BOS as the
 * tokenizer adds it), else `text` as one user message through the chat template.
 * Errors: SP_E_INVALID, and as sp_chat_render() and sp_tokenizer_encode(). */
SP_NODISCARD sp_status sp_prompt_ids(const sp_front *f, const char *text, sp_ids *out, sp_err *err);

/** "1,2,3" to ids. Errors: SP_E_INVALID. */
SP_NODISCARD sp_status sp_prompt_parse_ids(const char *text, sp_ids *out, sp_err *err);

/** Messages of a chat so far, as JSON. */
typedef struct sp_history {
    sp_buf json; /* objects with commas between, no brackets */
} sp_history;
void sp_history_init(sp_history *h, const char *system); /* system may be NULL */
void sp_history_fini(sp_history *h);
void sp_history_add(sp_history *h, const char *role, sp_slice text);
SP_NODISCARD sp_status sp_history_ids(const sp_front *f, const sp_history *h, sp_ids *out,
                                      sp_err *err);
