#include "frontend/messages.h"

static const char *type_of(const sp_json_node *v) {
    return sp_json_type_name(sp_json_type_of(v));
}

/* The member that holds a part's text, by type; NULL: a type that is not text. */
static const char *text_key(sp_slice type) {
    static const struct {
        const char *type, *key;
    } table[] = {{"text", "text"},       {"input_text", "text"},   {"output_text", "text"},
                 {"refusal", "refusal"}, {"thinking", "thinking"}, {"reasoning", "reasoning"}};
    for (size_t i = 0; i < SP_LEN(table); i++)
        if (sp_slice_is(type, table[i].type)) return table[i].key;
    return NULL;
}

static bool is_media(sp_slice type) {
    static const char *const names[] = {
        "image_url", "input_image", "image", "image_pil",  "input_audio",  "audio_url",   "audio",
        "video_url", "video",       "file",  "input_file", "image_embeds", "audio_embeds"};
    for (size_t i = 0; i < SP_LEN(names); i++)
        if (sp_slice_is(type, names[i])) return true;
    return false;
}

/* A part without a type is told by the member that names what it is. */
static sp_slice part_type(const sp_json_node *part) {
    const sp_json_node *type = sp_json_find(part, "type");
    if (sp_json_type_of(type) == SP_JSON_STRING) return sp_json_string(type);
    if (!sp_json_is_null(type)) return (sp_slice){0};
    for (const sp_json_node *m = sp_json_first(part); m; m = sp_json_next(m))
        if (is_media(sp_json_key(m))) return sp_json_key(m);
    return (sp_slice){0};
}

static void check_part(sp_fields *f, const sp_json_node *part) {
    if (sp_json_type_of(part) != SP_JSON_OBJECT) {
        sp_fields_bad(f, NULL, "want an object, got %s", type_of(part));
        return;
    }
    sp_slice type = part_type(part);
    const char *key = text_key(type);
    if (!type.ptr) {
        sp_fields_bad(f, "type", "want the type of the content part, got %s",
                      type_of(sp_json_find(part, "type")));
    } else if (is_media(type)) {
        sp_fields_bad(f, NULL,
                      "content of type '%.*s' is not supported: this model reads text only",
                      (int)type.len, type.ptr);
    } else if (!key) {
        sp_fields_bad(f, "type", "'%.*s' is not a type of content",
                      (int)(type.len < 40 ? type.len : 40), type.ptr);
    } else if (sp_json_type_of(sp_json_find(part, key)) != SP_JSON_STRING) {
        sp_fields_bad(f, key, "want a string, got %s", type_of(sp_json_find(part, key)));
    }
}

static void check_content(sp_fields *f, const sp_json_node *message, bool may_be_absent) {
    const sp_json_node *content = sp_json_find(message, "content");
    sp_json_type t = sp_json_type_of(content);
    if (t == SP_JSON_NULL) {
        if (!may_be_absent)
            sp_fields_bad(f, "content", "want a string or an array of parts, got null");
        return;
    }
    if (t == SP_JSON_STRING) return;
    if (t != SP_JSON_ARRAY) {
        sp_fields_bad(f, "content", "want a string or an array of parts, got %s", type_of(content));
        return;
    }
    if (!sp_field_array(f, message, "content", SP_PARTS_MAX)) return;
    int i = 0;
    for (const sp_json_node *part = sp_json_first(content); part; part = sp_json_next(part)) {
        size_t mark = sp_fields_enter(f, "content", i++);
        check_part(f, part);
        sp_fields_leave(f, mark);
    }
}

static void check_tool_call(sp_fields *f, const sp_json_node *call) {
    sp_slice name;
    if (sp_json_type_of(call) != SP_JSON_OBJECT) {
        sp_fields_bad(f, NULL, "want an object, got %s", type_of(call));
        return;
    }
    (void)sp_field_string(f, call, "id", &name);
    const sp_json_node *fn = sp_field_object(f, call, "function");
    if (!fn) {
        if (sp_json_is_null(sp_json_find(call, "function")))
            sp_fields_bad(f, "function", "is missing");
        return;
    }
    size_t mark = sp_fields_enter(f, "function", -1);
    if (!sp_field_string(f, fn, "name", &name) && sp_json_is_null(sp_json_find(fn, "name")))
        sp_fields_bad(f, "name", "is missing");
    sp_json_type t = sp_json_type_of(sp_json_find(fn, "arguments"));
    if (t != SP_JSON_STRING && t != SP_JSON_OBJECT && t != SP_JSON_NULL)
        sp_fields_bad(f, "arguments", "want a string of JSON, got %s", sp_json_type_name(t));
    sp_fields_leave(f, mark);
}

static void check_tool_calls(sp_fields *f, const sp_json_node *message) {
    const sp_json_node *calls = sp_field_array(f, message, "tool_calls", SP_TOOLS_MAX);
    int i = 0;
    for (const sp_json_node *c = sp_json_first(calls); c; c = sp_json_next(c)) {
        size_t mark = sp_fields_enter(f, "tool_calls", i++);
        check_tool_call(f, c);
        sp_fields_leave(f, mark);
    }
}

static bool is_role(sp_slice role) {
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};
    for (size_t i = 0; i < SP_LEN(roles); i++)
        if (sp_slice_is(role, roles[i])) return true;
    return false;
}

/* An assistant may have said nothing but a call, a refusal or a thought. */
static bool may_lack_content(const sp_json_node *m, sp_slice role) {
    static const char *const instead[] = {"tool_calls", "function_call",     "refusal",
                                          "reasoning",  "reasoning_content", "audio"};
    if (!sp_slice_is(role, "assistant")) return false;
    for (size_t i = 0; i < SP_LEN(instead); i++)
        if (!sp_json_is_null(sp_json_find(m, instead[i]))) return true;
    return false;
}

static void check_message(sp_fields *f, const sp_json_node *m) {
    sp_slice role = {0}, text;
    if (sp_json_type_of(m) != SP_JSON_OBJECT) {
        sp_fields_bad(f, NULL, "want an object, got %s", type_of(m));
        return;
    }
    if (sp_json_is_null(sp_json_find(m, "role")))
        sp_fields_bad(f, "role", "is missing");
    else if (sp_field_string(f, m, "role", &role) && !is_role(role))
        sp_fields_bad(f, "role",
                      "'%.40s' is not a role: want system, developer, user, assistant or tool",
                      role.ptr);
    check_content(f, m, may_lack_content(m, role));
    (void)sp_field_string(f, m, "name", &text);
    (void)sp_field_string(f, m, "tool_call_id", &text);
    if (sp_slice_is(role, "assistant")) check_tool_calls(f, m);
}

static void check_messages(sp_fields *f, const sp_json_node *root, sp_conversation *out) {
    const sp_json_node *list = sp_field_array(f, root, "messages", SP_MESSAGES_MAX);
    if (!list) {
        if (sp_json_is_null(sp_json_find(root, "messages")))
            sp_fields_bad(f, "messages", "is missing");
        return;
    }
    if (sp_json_count(list) == 0) sp_fields_bad(f, "messages", "want at least one message");
    int i = 0;
    for (const sp_json_node *m = sp_json_first(list); m; m = sp_json_next(m)) {
        size_t mark = sp_fields_enter(f, "messages", i++);
        check_message(f, m);
        sp_fields_leave(f, mark);
        out->last_message = m;
    }
    out->chat.messages = list;
}

static void check_tool(sp_fields *f, const sp_json_node *tool) {
    sp_slice s;
    if (sp_json_type_of(tool) != SP_JSON_OBJECT) {
        sp_fields_bad(f, NULL, "want an object, got %s", type_of(tool));
        return;
    }
    if (sp_field_string(f, tool, "type", &s) && !sp_slice_is(s, "function"))
        sp_fields_bad(f, "type", "'%.40s' is not supported: only 'function' is", s.ptr);
    const sp_json_node *fn = sp_field_object(f, tool, "function");
    if (!fn) {
        if (sp_json_is_null(sp_json_find(tool, "function")))
            sp_fields_bad(f, "function", "is missing");
        return;
    }
    size_t mark = sp_fields_enter(f, "function", -1);
    if (sp_json_is_null(sp_json_find(fn, "name")))
        sp_fields_bad(f, "name", "is missing");
    else
        (void)sp_field_string(f, fn, "name", &s);
    if (!sp_json_is_null(sp_json_find(fn, "description")) &&
        sp_json_type_of(sp_json_find(fn, "description")) != SP_JSON_STRING)
        sp_fields_bad(f, "description", "want a string, got %s",
                      type_of(sp_json_find(fn, "description")));
    (void)sp_field_object(f, fn, "parameters");
    sp_fields_leave(f, mark);
}

static const sp_json_node *check_tools(sp_fields *f, const sp_json_node *root) {
    const sp_json_node *tools = sp_field_array(f, root, "tools", SP_TOOLS_MAX);
    if (!tools) return NULL;
    if (sp_json_count(tools) == 0) sp_fields_bad(f, "tools", "want at least one tool");
    int i = 0;
    for (const sp_json_node *t = sp_json_first(tools); t; t = sp_json_next(t)) {
        size_t mark = sp_fields_enter(f, "tools", i++);
        check_tool(f, t);
        sp_fields_leave(f, mark);
    }
    return tools;
}

/* Calling tools needs a parser of the model's own call syntax, which this server does not have:
 * said at once, before a client waits for calls that never come. */
void sp_messages_check_tool_choice(sp_fields *f, const sp_json_node *root) {
    bool has_tools = !sp_json_is_null(sp_json_find(root, "tools"));
    const sp_json_node *choice = sp_json_find(root, "tool_choice");
    sp_slice word = sp_json_string(choice);
    sp_json_type t = sp_json_type_of(choice);
    if (t == SP_JSON_NULL) {
        if (has_tools)
            word = SP_SLICE("auto");
        else
            return;
    } else if (t != SP_JSON_STRING && t != SP_JSON_OBJECT) {
        sp_fields_bad(f, "tool_choice", "want a string or an object, got %s", type_of(choice));
        return;
    }
    if (sp_slice_is(word, "none")) return;
    bool known = t == SP_JSON_OBJECT || sp_slice_is(word, "auto") || sp_slice_is(word, "required");
    if (!known)
        sp_fields_bad(f, "tool_choice", "'%.40s' is not one of none, auto, required", word.ptr);
    else if (!has_tools)
        sp_fields_bad(f, "tool_choice", "needs tools");
    else if (t == SP_JSON_OBJECT)
        sp_fields_bad(f, "tool_choice",
                      "a named tool is not supported yet by this server: give \"none\"");
    else
        sp_fields_bad(f, "tool_choice",
                      "\"%s\" tool choice requires a tool call parser, which this server does not "
                      "have yet: give \"none\"",
                      word.ptr);
}

static void check_template_options(sp_fields *f, const sp_json_node *root, sp_conversation *out) {
    static const char *const efforts[] = {"none", "minimal", "low", "medium",
                                          "high", "xhigh",   "max"};
    sp_chat_request *c = &out->chat;
    bool continues = false, ignored;
    sp_field_bool(f, root, "continue_final_message", &continues);
    c->add_generation_prompt = !continues;
    sp_field_bool(f, root, "add_generation_prompt", &c->add_generation_prompt);
    c->continue_final_message = continues;
    if (continues && c->add_generation_prompt)
        sp_fields_bad(f, "continue_final_message",
                      "cannot be true together with add_generation_prompt");
    if (!sp_json_is_null(sp_json_find(root, "chat_template")))
        sp_fields_bad(f, "chat_template", "a template in a request is not accepted by this server");
    c->kwargs = sp_field_object(f, root, "chat_template_kwargs");
    c->documents = sp_field_array(f, root, "documents", SP_MESSAGES_MAX);
    int i = 0;
    for (const sp_json_node *d = sp_json_first(c->documents); d; d = sp_json_next(d), i++) {
        size_t mark = sp_fields_enter(f, "documents", i);
        if (sp_json_type_of(d) != SP_JSON_OBJECT)
            sp_fields_bad(f, NULL, "want an object, got %s", type_of(d));
        sp_fields_leave(f, mark);
    }
    sp_field_bool(f, root, "parallel_tool_calls", &ignored);
    sp_field_bool(f, root, "include_reasoning", &ignored);
    if (!sp_field_string(f, root, "reasoning_effort", &c->reasoning_effort)) return;
    for (size_t k = 0; k < SP_LEN(efforts); k++)
        if (sp_slice_is(c->reasoning_effort, efforts[k])) return;
    sp_fields_bad(f, "reasoning_effort",
                  "'%.40s' is not one of none, minimal, low, medium, high, xhigh, max",
                  c->reasoning_effort.ptr);
}

void sp_messages_check(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                       sp_conversation *out) {
    *out = (sp_conversation){.chat = {.trust_special_text = env->config->trust_special_text}};
    check_messages(f, root, out);
    out->chat.tools = check_tools(f, root);
    check_template_options(f, root, out);
}

sp_status sp_messages_encode(const sp_conversation *c, const sp_request_env *env, bool add_special,
                             sp_ids *ids, sp_err *err) {
    if (!env->chat)
        return SP_FAIL(err, SP_E_INVALID,
                       "this model has no chat template: use /v1/completions, or start the server "
                       "with --chat-template");
    sp_buf text;
    sp_slice marker = {"", 0};
    sp_buf_init(&text, 0);
    int flags = SP_ENCODE_SPECIAL | (add_special ? SP_ENCODE_BOS : 0);
    sp_status st = sp_chat_render(env->chat, &c->chat, &text, &marker, err);
    if (st == SP_OK && text.failed)
        st = SP_FAIL(err, SP_E_NOMEM, "no memory for the rendered conversation");
    if (st == SP_OK)
        st = sp_tokenizer_encode(env->tokenizer, sp_buf_slice(&text), flags, marker, ids, err);
    sp_buf_fini(&text);
    return st;
}

void sp_messages_text(const sp_json_node *message, sp_buf *out) {
    const sp_json_node *content = sp_json_find(message, "content");
    if (sp_json_type_of(content) == SP_JSON_STRING) {
        sp_buf_put_slice(out, sp_json_string(content));
        return;
    }
    bool first = true;
    for (const sp_json_node *p = sp_json_first(content); p; p = sp_json_next(p)) {
        const char *key = text_key(part_type(p));
        if (!key) continue;
        if (!first) sp_buf_putc(out, '\n');
        sp_buf_put_slice(out, sp_json_string(sp_json_find(p, key)));
        first = false;
    }
}
