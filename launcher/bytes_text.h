/* launcher/bytes_text.h - a tokenizer and a chat template for a rehearsal of a model that comes
 * without: one token a byte, its id the byte; messages line by line.
 *
 * Thread: main, at start. */
#pragma once

#include "runtime/text/chat.h"
#include "runtime/text/tokenizer.h"

/** Errors: SP_E_NOMEM. Owner: caller. */
SP_NODISCARD sp_status sp_bytes_tokenizer(sp_tokenizer **out, sp_err *err);
SP_NODISCARD sp_status sp_bytes_chat(sp_chat **out, const sp_tokenizer *t, sp_err *err);

/* Ids that can be read: what a rehearsal draws from. */
#define SP_BYTES_TOKEN_LO 33
#define SP_BYTES_TOKEN_HI 126
