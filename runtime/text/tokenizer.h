/* runtime/text/tokenizer.h - text to token ids and back, as tokenizer.json says.
 *
 * The whole pipeline of the file: added-token split, normalizer, pre-tokenizer (the file's own
 * regex, PCRE2 JIT with a match limit), BPE (byte-level or SentencePiece-style with byte fallback),
 * post-processor; and the decoder chain back. WordPiece, Unigram and WordLevel are refused by name.
 *
 * Source: huggingface tokenizers, tokenizer.json semantics.
 * Thread: a loaded tokenizer is const and may be used from any thread; encode keeps per-call
 * scratch. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/str.h"

#include <stdint.h>

typedef struct sp_tokenizer sp_tokenizer;

/** Growable list of ids. Owner: caller, sp_ids_fini(). */
typedef struct sp_ids {
    int32_t *ptr;
    size_t len, cap;
} sp_ids;
SP_NODISCARD sp_status sp_ids_push(sp_ids *ids, int32_t id); /* Errors: SP_E_NOMEM */
void sp_ids_fini(sp_ids *ids);

/** Loads DIR/tokenizer.json and, when there, tokenizer_config.json and special_tokens_map.json.
 * Errors: SP_E_NOTFOUND; SP_E_FORMAT or SP_E_UNSUPPORTED naming file, part and what was seen. */
SP_NODISCARD sp_status sp_tokenizer_load(sp_tokenizer **out, const char *dir, sp_err *err);
/** The same from the text of a tokenizer.json alone. Errors: as sp_tokenizer_load(). */
SP_NODISCARD sp_status sp_tokenizer_parse(sp_tokenizer **out, sp_slice json, sp_err *err);
void sp_tokenizer_free(sp_tokenizer *t);

enum {
    SP_ENCODE_SPECIAL = 1, /* special tokens spelled in the text become themselves */
    SP_ENCODE_BOS = 2,     /* add what the file's post-processor adds (BOS, EOS) */
};

/** Appends the ids of `text`. Bytes that are not UTF-8 are read as U+FFFD.
 * `marker` (may be empty): byte string that is dropped after added tokens were split off, so that a
 * spelling broken by it stays plain text (chat.h breaks user-given special spellings this way).
 * Without SP_ENCODE_SPECIAL, added tokens with special:true in the text are ordinary text; added
 * tokens with special:false are always matched.
 * Errors: SP_E_TOOLONG the regex gave up (match limit), or the text has more than 256 MiB;
 *         SP_E_INVALID a character needs the file's unk_token, which its vocabulary lacks;
 *         SP_E_NOMEM. */
SP_NODISCARD sp_status sp_tokenizer_encode(const sp_tokenizer *t, sp_slice text, int flags,
                                           sp_slice marker, sp_ids *out, sp_err *err);

/** Appends the text of `ids` as the file's decoder gives it; ids outside the vocabulary are
 * skipped; `skip_special` drops tokens with special:true. The result is valid UTF-8. */
void sp_tokenizer_decode(const sp_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                         sp_buf *out);

int32_t sp_tokenizer_size(const sp_tokenizer *t); /* highest id + 1 */
sp_slice sp_tokenizer_piece(const sp_tokenizer *t,
                            int32_t id); /* as in the file; empty: no such id */
int32_t sp_tokenizer_find(const sp_tokenizer *t, sp_slice piece); /* -1: none */
bool sp_tokenizer_is_special(const sp_tokenizer *t, int32_t id);
int32_t sp_tokenizer_bos(const sp_tokenizer *t); /* -1: none */
int32_t sp_tokenizer_eos(const sp_tokenizer *t); /* -1: none */

/** "bos_token", "eos_token", "pad_token", "unk_token" as spelled in tokenizer_config.json (or
 * special_tokens_map.json); empty when absent. For chat templates. */
sp_slice sp_tokenizer_named(const sp_tokenizer *t, const char *name);

/** Spellings of all added tokens with special:true, for breaking them in user text. */
int sp_tokenizer_n_special(const sp_tokenizer *t);
sp_slice sp_tokenizer_special(const sp_tokenizer *t, int i);

/** Bytes one token stands for (a logprob entry's `bytes`); may be part of a character. */
void sp_tokenizer_token_bytes(const sp_tokenizer *t, int32_t id, sp_buf *out);

/** tokenizer_config.json as parsed (NULL when absent); for the chat template inside. Borrowed. */
const sp_json_node *sp_tokenizer_config(const sp_tokenizer *t);
