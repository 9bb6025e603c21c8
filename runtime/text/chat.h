/* runtime/text/chat.h - messages and tools to the prompt text, by the model's own template.
 *
 * The template is chat_template.jinja, chat_template.json, or the chat_template of
 * tokenizer_config.json (a string, or a list of named ones: "default", and "tool_use" with tools).
 * Messages are normalised as vLLM does: text parts joined by a newline unless the template reads
 * parts, tool-call arguments parsed to objects, empty tool_calls dropped.
 * Special-token spellings inside user-given strings (contents, names, tool texts) are broken by a
 * marker that the tokenizer drops, so that only the template makes control tokens.
 *
 * Thread: a loaded chat is const; any thread may render. */
#pragma once

#include "runtime/text/jinja.h"
#include "runtime/text/tokenizer.h"

typedef struct sp_chat sp_chat;

/** Errors: SP_E_NOTFOUND the model has no template (requests are then refused with these words);
 * otherwise as sp_jinja_parse(). `t` is borrowed until sp_chat_free() and may be NULL (then
 * bos_token and friends come from tokenizer_config.json in DIR alone and nothing is broken). */
SP_NODISCARD sp_status sp_chat_load(sp_chat **out, const char *dir, const sp_tokenizer *t,
                                    sp_err *err);
/** From a template file (--chat-template). */
SP_NODISCARD sp_status sp_chat_load_file(sp_chat **out, const char *path, const sp_tokenizer *t,
                                         sp_err *err);
/** From a template's text; `where` names it in errors. */
SP_NODISCARD sp_status sp_chat_parse(sp_chat **out, sp_slice text, const char *where,
                                     const sp_tokenizer *t, sp_err *err);
void sp_chat_free(sp_chat *c);

typedef struct sp_chat_request {
    const sp_json_node *messages; /* array of objects, already checked by the front end */
    const sp_json_node *tools;    /* NULL: none */
    const sp_json_node *documents;
    const sp_json_node *kwargs; /* chat_template_kwargs: an object, or NULL */
    bool add_generation_prompt;
    bool continue_final_message;
    bool trust_special_text;   /* do not break special spellings */
    sp_slice reasoning_effort; /* passed on when not empty */
    int64_t now_unix_s;        /* what strftime_now() tells; 0: the local time at render */
} sp_chat_request;

/** Renders. `marker` receives the byte string to give to sp_tokenizer_encode(): empty when nothing
 * was broken; it points to static memory.
 * Errors: SP_E_INVALID the template refused (its words) or the data does not fit it. */
SP_NODISCARD sp_status sp_chat_render(const sp_chat *c, const sp_chat_request *req, sp_buf *out,
                                      sp_slice *marker, sp_err *err);

/* For tools that give a template its variables themselves. */

#define SP_CHAT_SPECIAL_VARS_MAX 8
/** bos_token and its kin, where the model has them; returns how many. Borrowed from `c`. */
int sp_chat_special_vars(const sp_chat *c, sp_jinja_var out[SP_CHAT_SPECIAL_VARS_MAX]);
/** The template itself, "tool_use" when there is one and `tools`. */
const sp_jinja *sp_chat_template(const sp_chat *c, bool tools);
