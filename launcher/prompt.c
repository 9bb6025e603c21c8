#include "launcher/prompt.h"

#define HISTORY_BYTES_MAX ((size_t)64 << 20)

sp_status sp_prompt_parse_ids(const char *text, sp_ids *out, sp_err *err) {
    for (const char *s = text;;) {
        const char *end = strchrnul(s, ',');
        int64_t id;
        sp_slice word = {s, (size_t)(end - s)};
        while (word.len && *word.ptr == ' ') word.ptr++, word.len--;
        if (sp_parse_i64(word, &id) != SP_OK || id < 0 || id > INT32_MAX)
            return SP_FAIL(err, SP_E_INVALID, "want token ids as 1,2,3, got '%.60s'", text);
        if (sp_ids_push(out, (int32_t)id) != SP_OK)
            return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu token ids", out->len);
        if (!*end) return SP_OK;
        s = end + 1;
    }
}

void sp_history_init(sp_history *h, const char *system) {
    sp_buf_init(&h->json, HISTORY_BYTES_MAX);
    if (system) sp_history_add(h, "system", sp_slice_of(system));
}

void sp_history_fini(sp_history *h) {
    sp_buf_fini(&h->json);
}

void sp_history_add(sp_history *h, const char *role, sp_slice text) {
    sp_jw w = {.out = &h->json, .comma = h->json.len > 0};
    sp_jw_object(&w);
    sp_jw_key(&w, "role");
    sp_jw_str(&w, role);
    sp_jw_key(&w, "content");
    sp_jw_string(&w, text);
    sp_jw_object_end(&w);
}

static sp_status render_ids(const sp_front *f, const sp_json *messages, sp_ids *out, sp_err *err) {
    sp_chat_request req = {.messages = sp_json_root(messages),
                           .add_generation_prompt = true,
                           .trust_special_text = f->config->trust_special_text};
    sp_buf text;
    sp_slice marker = {0};
    sp_buf_init(&text, HISTORY_BYTES_MAX);
    sp_status st = sp_chat_render(f->chat, &req, &text, &marker, err);
    if (st == SP_OK)
        st = sp_tokenizer_encode(f->tokenizer, sp_buf_slice(&text), SP_ENCODE_SPECIAL, marker, out,
                                 err);
    sp_buf_fini(&text);
    return st;
}

sp_status sp_history_ids(const sp_front *f, const sp_history *h, sp_ids *out, sp_err *err) {
    if (!f->chat)
        return SP_FAIL(err, SP_E_NOTFOUND,
                       "'%s' has no chat template: use --raw, or give one by "
                       "--chat-template FILE",
                       f->config->model);
    sp_buf text;
    sp_buf_init(&text, HISTORY_BYTES_MAX);
    sp_buf_putc(&text, '[');
    sp_buf_put_slice(&text, sp_buf_slice(&h->json));
    sp_buf_putc(&text, ']');
    if (text.failed || h->json.failed) {
        sp_buf_fini(&text);
        return SP_FAIL(err, SP_E_TOOLONG, "the chat is longer than %zu bytes", HISTORY_BYTES_MAX);
    }
    sp_json *messages = NULL;
    sp_status st = sp_json_parse(&messages, sp_buf_slice(&text), 0, err);
    if (st == SP_OK) st = render_ids(f, messages, out, err);
    sp_json_free(messages);
    sp_buf_fini(&text);
    return st;
}

sp_status sp_prompt_ids(const sp_front *f, const char *text, sp_ids *out, sp_err *err) {
    if (f->config->tokens) return sp_prompt_parse_ids(f->config->tokens, out, err);
    if (f->config->raw)
        return sp_tokenizer_encode(f->tokenizer, sp_slice_of(text),
                                   SP_ENCODE_SPECIAL | SP_ENCODE_BOS, (sp_slice){0}, out, err);
    sp_history h;
    sp_history_init(&h, f->config->system);
    sp_history_add(&h, "user", sp_slice_of(text));
    sp_status st = sp_history_ids(f, &h, out, err);
    sp_history_fini(&h);
    return st;
}
