/* runtime/text/chat_input.h - what a user gave, made ready for a chat template.
 *
 * Two passes over JSON, each giving a new document: messages are normalised as vLLM does, and
 * spellings of special tokens in strings are broken by a marker. The marker is a Unicode
 * noncharacter that the texts do not hold; it goes behind the first character of every spelling,
 * and of what may become one when other text follows (a string that ends in "<|im_"), so that
 * removing it gives the text back byte for byte.
 *
 * Source: vLLM chat_utils; Unicode noncharacters U+FDD0..U+FDEF.
 * Thread: sp_spellings is const after building. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

/* A trie over bytes of all spellings. */
typedef struct sp_spellings {
    struct sp_spelling_node *at; /* 0 is the root */
    uint32_t n, cap;
} sp_spellings;

/** Errors: SP_E_NOMEM. A spelling of one character cannot be broken and is left out. */
SP_NODISCARD sp_status sp_spellings_add(sp_spellings *s, sp_slice spelling, sp_err *err);
void sp_spellings_fini(sp_spellings *s);

/** Appends `text` with `marker` in every spelling. */
void sp_spellings_break(const sp_spellings *s, sp_slice text, sp_slice marker, sp_buf *out);

/** Chooses the marker for a document: empty when nothing in it needs breaking.
 * Errors: SP_E_INVALID the document holds all 32 noncharacters. */
SP_NODISCARD sp_status sp_spellings_choose(const sp_spellings *s, const sp_json_node *node,
                                           sp_slice *marker, sp_err *err);

/** Appends the object `node` as JSON with its strings and keys broken, but for the "role" of each
 * of its "messages". */
void sp_spellings_write(const sp_spellings *s, const sp_json_node *node, sp_slice marker,
                        sp_buf *out);

/** Appends the messages as a template wants them: content as one string, or as a list of parts;
 * arguments of tool calls as objects; `reasoning` under both its names.
 * Errors: SP_E_INVALID names the message and what is wrong with it. */
SP_NODISCARD sp_status sp_chat_normalize(const sp_json_node *messages, bool parts, sp_buf *out,
                                         sp_err *err);
