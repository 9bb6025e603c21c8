/* frontend/messages.h - the conversation part of a request: checked, rendered, tokenised.
 *
 * Messages, tools and template options are checked here field by field; how a template sees them is
 * chat.h's business. Content this server cannot read (images, audio, files) is refused by its type.
 * Shared by /v1/chat/completions and /tokenize.
 *
 * Source: OpenAI API reference; vLLM for the extensions. Thread: text. */
#pragma once

#include "frontend/request.h"

#define SP_MESSAGES_MAX 4096
#define SP_PARTS_MAX 64
#define SP_TOOLS_MAX 128

typedef struct sp_conversation {
    sp_chat_request chat; /* borrows from the document */
    const sp_json_node *last_message;
} sp_conversation;

/** Checks all fields of a conversation. */
void sp_messages_check(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                       sp_conversation *out);

/** Checks tool_choice, for what generates. */
void sp_messages_check_tool_choice(sp_fields *f, const sp_json_node *root);

/** Renders and encodes; appends to `ids`. Errors: SP_E_INVALID with words: no template, the
 * template refused or failed; SP_E_NOMEM; SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_messages_encode(const sp_conversation *c, const sp_request_env *env,
                                          bool add_special, sp_ids *ids, sp_err *err);

/** The text of a message's content: the string, or its text parts joined by newlines. */
void sp_messages_text(const sp_json_node *message, sp_buf *out);
