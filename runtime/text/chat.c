#include "runtime/text/chat.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/text/chat_input.h"

#include <stdio.h>
#include <time.h>

#define CONFIG_BYTES_MAX ((size_t)64 << 20)
#define TEMPLATE_BYTES_MAX ((size_t)1 << 20)
#define DEPTH_MAX 300 /* of the document we make: what two parsed texts inside one another can be */
#define VARS_MAX 64

struct sp_chat {
    sp_jinja *plain;      /* "default" */
    sp_jinja *with_tools; /* "tool_use", or NULL */
    const sp_tokenizer *t;
    sp_json *config; /* tokenizer_config.json, read by us when there is no tokenizer; or NULL */
    sp_spellings spellings;
};

/* --- loading --- */

static sp_status parse_template(sp_jinja **out, sp_slice source, const char *where, sp_err *err) {
    sp_jinja_options options = {.trim_blocks = true, .lstrip_blocks = true};
    sp_status st = sp_jinja_parse(out, source, options, err);
    if (st != SP_OK) sp_err_context(err, "'%s'", where);
    return st;
}

static sp_status load_spellings(sp_chat *c, sp_err *err) {
    for (int i = 0; c->t && i < sp_tokenizer_n_special(c->t); i++)
        SP_TRY(sp_spellings_add(&c->spellings, sp_tokenizer_special(c->t, i), err));
    return SP_OK;
}

static sp_status read_template_file(sp_jinja **out, const char *path, sp_err *err) {
    char *text;
    size_t len;
    SP_TRY(sp_file_read(path, TEMPLATE_BYTES_MAX, &text, &len, err));
    sp_status st = parse_template(out, (sp_slice){text, len}, path, err);
    sp_free(text);
    return st;
}

static sp_status read_json(sp_json **out, const char *path, sp_err *err) {
    char *text;
    size_t len;
    SP_TRY(sp_file_read(path, CONFIG_BYTES_MAX, &text, &len, err));
    sp_status st = sp_json_parse(out, (sp_slice){text, len}, 0, err);
    sp_free(text);
    if (st != SP_OK) sp_err_context(err, "'%s'", path);
    return st;
}

/* "chat_template": one text, or a list of named ones. */
static sp_status take_templates(sp_chat *c, const sp_json_node *v, const char *where, sp_err *err) {
    if (sp_json_type_of(v) == SP_JSON_STRING)
        return parse_template(&c->plain, sp_json_string(v), where, err);
    if (sp_json_type_of(v) != SP_JSON_ARRAY)
        return SP_FAIL(err, SP_E_FORMAT, "'%s': chat_template: want a string or a list, got %s",
                       where, sp_json_type_name(sp_json_type_of(v)));
    for (const sp_json_node *e = sp_json_first(v); e; e = sp_json_next(e)) {
        sp_slice name = sp_json_string(sp_json_find(e, "name"));
        sp_slice text = sp_json_string(sp_json_find(e, "template"));
        sp_jinja **to = sp_slice_is(name, "default")    ? &c->plain
                        : sp_slice_is(name, "tool_use") ? &c->with_tools
                                                        : NULL;
        if (to && !*to && text.ptr) SP_TRY(parse_template(to, text, where, err));
    }
    return SP_OK;
}

static const sp_json_node *config_of(const sp_chat *c) {
    return c->t ? sp_tokenizer_config(c->t) : sp_json_root(c->config);
}

static bool join_path(char out[4096], const char *dir, const char *name) {
    int n = snprintf(out, 4096, "%s/%s", dir, name);
    return n > 0 && n < 4096 && sp_file_exists(out);
}

static sp_status load_templates(sp_chat *c, const char *dir, sp_err *err) {
    char path[4096];
    if (!c->t && join_path(path, dir, "tokenizer_config.json"))
        SP_TRY(read_json(&c->config, path, err));
    if (join_path(path, dir, "chat_template.jinja"))
        return read_template_file(&c->plain, path, err);
    if (join_path(path, dir, "chat_template.json")) {
        sp_json *doc;
        SP_TRY(read_json(&doc, path, err));
        sp_status st =
            take_templates(c, sp_json_find(sp_json_root(doc), "chat_template"), path, err);
        sp_json_free(doc);
        return st;
    }
    const sp_json_node *v = sp_json_find(config_of(c), "chat_template");
    if (!sp_json_is_null(v)) SP_TRY(take_templates(c, v, "tokenizer_config.json", err));
    if (c->plain) return SP_OK;
    return SP_FAIL(
        err, SP_E_NOTFOUND,
        "the model has no chat template: neither chat_template.jinja, chat_template.json "
        "nor a default in tokenizer_config.json; give one with --chat-template");
}

/* `st`: how getting the templates went. */
static sp_status finish(sp_chat **out, sp_chat *c, sp_status st, sp_err *err) {
    if (st == SP_OK && !c->plain)
        st = SP_FAIL(err, SP_E_NOTFOUND, "the model's chat templates have no 'default'");
    if (st == SP_OK) st = load_spellings(c, err);
    if (st != SP_OK) {
        sp_chat_free(c);
        return st;
    }
    *out = c;
    return SP_OK;
}

sp_status sp_chat_load(sp_chat **out, const char *dir, const sp_tokenizer *t, sp_err *err) {
    sp_chat *c = sp_alloc(sizeof *c);
    c->t = t;
    return finish(out, c, load_templates(c, dir, err), err);
}

sp_status sp_chat_load_file(sp_chat **out, const char *path, const sp_tokenizer *t, sp_err *err) {
    sp_chat *c = sp_alloc(sizeof *c);
    c->t = t;
    return finish(out, c, read_template_file(&c->plain, path, err), err);
}

sp_status sp_chat_parse(sp_chat **out, sp_slice text, const char *where, const sp_tokenizer *t,
                        sp_err *err) {
    sp_chat *c = sp_alloc(sizeof *c);
    c->t = t;
    return finish(out, c, parse_template(&c->plain, text, where, err), err);
}

void sp_chat_free(sp_chat *c) {
    if (!c) return;
    sp_jinja_free(c->plain);
    sp_jinja_free(c->with_tools);
    sp_json_free(c->config);
    sp_spellings_fini(&c->spellings);
    sp_free(c);
}

/* --- the variables --- */

typedef struct variables {
    sp_jinja_var at[VARS_MAX];
    int n;
} variables;

static void add(variables *v, sp_jinja_var var) {
    SP_ASSERT(v->n < VARS_MAX);
    v->at[v->n++] = var;
}

/* "<s>", or {"content": "<s>", …}. */
static sp_slice token_text(const sp_json_node *v) {
    return sp_json_string(sp_json_type_of(v) == SP_JSON_OBJECT ? sp_json_find(v, "content") : v);
}

int sp_chat_special_vars(const sp_chat *c, sp_jinja_var out[SP_CHAT_SPECIAL_VARS_MAX]) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                        "sep_token", "cls_token", "mask_token"};
    int n = 0;
    for (size_t i = 0; i < SP_LEN(names); i++) {
        sp_slice text = c->t ? sp_tokenizer_named(c->t, names[i]) : (sp_slice){0};
        if (!text.len) text = token_text(sp_json_find(config_of(c), names[i]));
        if (text.ptr) out[n++] = (sp_jinja_var){.name = names[i], .text = text};
    }
    const sp_json_node *more = sp_json_find(config_of(c), "additional_special_tokens");
    if (sp_json_type_of(more) == SP_JSON_ARRAY)
        out[n++] = (sp_jinja_var){.name = "additional_special_tokens", .value = more};
    return n;
}

const sp_jinja *sp_chat_template(const sp_chat *c, bool tools) {
    return tools && c->with_tools ? c->with_tools : c->plain;
}

static sp_status add_kwargs(variables *v, const sp_json_node *kwargs, sp_err *err) {
    static const char *const reserved[] = {"messages", "tools"};
    for (const sp_json_node *k = sp_json_first(kwargs); k; k = sp_json_next(k)) {
        for (size_t i = 0; i < SP_LEN(reserved); i++)
            if (sp_slice_is(sp_json_key(k), reserved[i]))
                return SP_FAIL(err, SP_E_INVALID, "chat_template_kwargs: '%s' cannot be set there",
                               reserved[i]);
        if (v->n == VARS_MAX)
            return SP_FAIL(err, SP_E_INVALID, "chat_template_kwargs: more than %d values",
                           VARS_MAX / 2);
        add(v, (sp_jinja_var){.name = sp_json_key(k).ptr, .value = k});
    }
    return SP_OK;
}

/* --- what the user gave --- */

/* One document with all of it, so that one marker serves it all. */
static sp_status gather(const sp_chat_request *req, bool parts, sp_buf *out, sp_err *err) {
    const struct {
        const char *key;
        const sp_json_node *v;
    } rest[] = {{"tools", req->tools}, {"documents", req->documents}, {"kwargs", req->kwargs}};
    sp_buf_puts(out, "{\"messages\":");
    SP_TRY(sp_chat_normalize(req->messages, parts, out, err));
    for (size_t i = 0; i < SP_LEN(rest); i++) {
        if (sp_json_is_null(rest[i].v)) continue;
        sp_buf_printf(out, ",\"%s\":", rest[i].key);
        sp_jw w = sp_jw_on(out);
        sp_jw_node(&w, rest[i].v);
    }
    sp_buf_putc(out, '}');
    return SP_OK;
}

static sp_status reparse(sp_json **out, const sp_buf *text, sp_err *err) {
    if (text->failed) return SP_FAIL(err, SP_E_NOMEM, "no memory for the messages");
    sp_status st = sp_json_parse(out, sp_buf_slice(text), DEPTH_MAX, err);
    return st == SP_E_FORMAT ? SP_E_INVALID : st;
}

static sp_status prepare(const sp_chat *c, const sp_chat_request *req, bool parts, sp_json **out,
                         sp_slice *marker, sp_err *err) {
    sp_buf text;
    sp_json *doc = NULL;
    sp_buf_init(&text, 0);
    *marker = (sp_slice){0};
    sp_status st = gather(req, parts, &text, err);
    if (st == SP_OK) st = reparse(&doc, &text, err);
    if (st == SP_OK && !req->trust_special_text)
        st = sp_spellings_choose(&c->spellings, sp_json_root(doc), marker, err);
    if (st == SP_OK && marker->len) {
        sp_buf_clear(&text);
        sp_spellings_write(&c->spellings, sp_json_root(doc), *marker, &text);
        sp_json_free(doc);
        doc = NULL;
        st = reparse(&doc, &text, err);
    }
    sp_buf_fini(&text);
    if (st != SP_OK) {
        sp_json_free(doc);
        return st;
    }
    *out = doc;
    return SP_OK;
}

/* --- continuing the last message --- */

static bool is_space(char ch) {
    return ch == ' ' || (ch >= '\t' && ch <= '\r');
}

static sp_slice strip(sp_slice s, bool left, bool right) {
    while (left && s.len && is_space(s.ptr[0])) s = (sp_slice){s.ptr + 1, s.len - 1};
    while (right && s.len && is_space(s.ptr[s.len - 1])) s.len--;
    return s;
}

/* The text of the last message: its content, or the last part of it that has one. */
static sp_status final_text(const sp_json_node *messages, sp_slice *out, sp_err *err) {
    const sp_json_node *last = sp_json_at(messages, sp_json_count(messages) - 1);
    const sp_json_node *content = sp_json_find(last, "content"), *text = NULL;
    if (sp_json_type_of(content) == SP_JSON_STRING) text = content;
    for (const sp_json_node *p = sp_json_first(content); p; p = sp_json_next(p))
        if (sp_json_type_of(sp_json_find(p, "text")) == SP_JSON_STRING)
            text = sp_json_find(p, "text");
    if (!text)
        return SP_FAIL(err, SP_E_INVALID, "continue_final_message: the last message has no text");
    *out = sp_json_string(text);
    return SP_OK;
}

static ptrdiff_t find_last(sp_slice hay, sp_slice needle) {
    ptrdiff_t last = -1;
    if (needle.len == 0) return (ptrdiff_t)hay.len;
    for (ptrdiff_t at = sp_slice_find(hay, needle, 0); at >= 0;
         at = sp_slice_find(hay, needle, (size_t)at + 1))
        last = at;
    return last;
}

/* Where the prompt ends: behind the last message's text, with the blanks at its end when the
 * template kept them. */
static sp_status cut_behind(sp_slice prompt, sp_slice text, size_t *end, sp_err *err) {
    sp_slice bare = strip(text, true, true), left = strip(text, true, false);
    ptrdiff_t at = find_last(prompt, bare);
    if (at < 0)
        return SP_FAIL(err, SP_E_INVALID,
                       "continue_final_message: the last message is not in the rendered prompt");
    sp_slice there = {prompt.ptr + at, prompt.len - (size_t)at};
    bool kept = left.len == text.len && sp_slice_starts(there, text);
    *end = (size_t)at + (kept ? text.len : bare.len);
    return SP_OK;
}

/* --- rendering --- */

/* strftime_now() tells the wall time of where we are. */
static int64_t local_now(void) {
    time_t now = (time_t)sp_unix_s();
    struct tm tm;
    return localtime_r(&now, &tm) ? (int64_t)timegm(&tm) : (int64_t)now;
}

static sp_status render(const sp_chat *c, const sp_chat_request *req, const sp_jinja *template,
                        const sp_json_node *given, sp_buf *out, sp_err *err) {
    variables v = {0};
    v.n = sp_chat_special_vars(c, v.at);
    add(&v, (sp_jinja_var){.name = "messages", .value = sp_json_find(given, "messages")});
    add(&v, (sp_jinja_var){.name = "tools", .value = sp_json_find(given, "tools")});
    add(&v, (sp_jinja_var){.name = "documents", .value = sp_json_find(given, "documents")});
    add(&v, (sp_jinja_var){.name = "add_generation_prompt",
                           .flag = req->add_generation_prompt ? 1 : 2});
    if (req->reasoning_effort.len)
        add(&v, (sp_jinja_var){.name = "reasoning_effort", .text = req->reasoning_effort});
    SP_TRY(add_kwargs(&v, sp_json_find(given, "kwargs"), err));
    bool refused = false;
    int64_t now = req->now_unix_s ? req->now_unix_s : local_now();
    sp_status st = sp_jinja_render(template, v.at, v.n, NULL, now, out, &refused, err);
    if (st == SP_OK || refused) return st;
    sp_err_context(err, "the chat template does not fit these messages");
    return st == SP_E_FORMAT || st == SP_E_UNSUPPORTED ? SP_E_INVALID : st;
}

sp_status sp_chat_render(const sp_chat *c, const sp_chat_request *req, sp_buf *out,
                         sp_slice *marker, sp_err *err) {
    if (req->add_generation_prompt && req->continue_final_message)
        return SP_FAIL(err, SP_E_INVALID,
                       "add_generation_prompt and continue_final_message cannot both be set");
    const sp_jinja *template = sp_chat_template(c, !sp_json_is_null(req->tools));
    sp_json *doc;
    sp_slice used, text;
    SP_TRY(prepare(c, req, sp_jinja_wants_parts(template), &doc, &used, err));
    sp_buf prompt;
    sp_buf_init(&prompt, 0);
    sp_status st = render(c, req, template, sp_json_root(doc), &prompt, err);
    size_t end = prompt.len;
    if (st == SP_OK && req->continue_final_message) {
        st = final_text(sp_json_find(sp_json_root(doc), "messages"), &text, err);
        if (st == SP_OK) st = cut_behind(sp_buf_slice(&prompt), text, &end, err);
    }
    if (st == SP_OK) {
        sp_buf_put(out, prompt.ptr, end);
        if (out->failed) st = SP_FAIL(err, SP_E_TOOLONG, "a prompt of %zu bytes does not fit", end);
        *marker = used;
    }
    sp_buf_fini(&prompt);
    sp_json_free(doc);
    return st;
}
