/* runtime/text/decoder.h - the decoders of tokenizer.json: tokens to text, as a stream.
 *
 * A decoder turns a list of token strings into another list; at the end they are joined. Here each
 * one is a stage that takes tokens as they come, in one or more chunks, and passes on what can no
 * longer change. So a whole decode and a streamed one are the same code, and equal by construction.
 *
 *   token ──> Replace ──> ByteFallback ──> Fuse ──> Strip ──> text
 *             (chunk, chunk, end of token) ...      end of stream
 *
 * What a stage holds back is bounded by a token, a pattern, or (ByteFallback) a run of byte tokens,
 * since one bad byte makes the library write U+FFFD for every byte of its run.
 *
 * Source: huggingface tokenizers, decoders.
 * Thread: a loaded decoder is const; a stream belongs to one thread at a time. */
#pragma once

#include "runtime/text/pretok.h"

typedef struct sp_decoder sp_decoder;
#define SP_DECODER_STEPS_MAX 32

/** `node` is the "decoder" of the file; null joins tokens with a space, as the library does.
 * Errors: SP_E_UNSUPPORTED names a type we do not have; SP_E_FORMAT, SP_E_TOOLONG, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_decoder_load(sp_decoder **out, const sp_json_node *node, sp_err *err);
void sp_decoder_free(sp_decoder *d);

typedef struct sp_decode_stream sp_decode_stream;
/** `raw`: bytes are passed on as they are, not as valid UTF-8, and no token is the first one (what
 * one token stands for). `d` is borrowed until close. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_decode_open(sp_decode_stream **out, const sp_decoder *d, bool raw);
void sp_decode_close(sp_decode_stream *s);

/** Appends what became certain; whole characters only (unless raw). */
void sp_decode_token(sp_decode_stream *s, sp_slice token, sp_buf *out);
void sp_decode_end(sp_decode_stream *s, sp_buf *out);

/** Forgets what is held back of the tokens so far, but for the beginning of a character, and keeps
 * what the stages know of their place in the text. Bytes kept are never written as U+FFFD. */
void sp_decode_settle(sp_decode_stream *s);
