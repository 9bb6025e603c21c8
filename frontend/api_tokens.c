#include "frontend/api_tokens.h"

#include "frontend/messages.h"
#include "frontend/reply.h"

#include <stdio.h>

typedef struct tokens_job tokens_job;
struct tokens_job {
    sp_text_job job; /* first: the pool hands it back */
    sp_front *front;
    sp_http_call *call; /* NULL: the client left */
    void (*run)(tokens_job *t, sp_fields *f, const sp_json_node *root);
    size_t n_body;
    sp_buf body;
    sp_arena arena;
    sp_request_env env;
    sp_fault fault;
    sp_buf answer;
};

static void set_fault(tokens_job *t, int http, const char *param, const char *message) {
    t->fault = (sp_fault){.http = http,
                          .param = param,
                          .message = sp_arena_strndup(&t->arena, message, strlen(message))};
}

static void put_ids(sp_jw *w, const sp_ids *ids) {
    sp_jw_array(w);
    for (size_t i = 0; i < ids->len; i++) sp_jw_int(w, ids->ptr[i]);
    sp_jw_array_end(w);
}

static void put_tokens(tokens_job *t, const sp_ids *ids, bool with_strings) {
    sp_jw w = sp_jw_on(&t->answer);
    sp_jw_object(&w);
    sp_jw_key(&w, "count"), sp_jw_int(&w, (int64_t)ids->len);
    sp_jw_key(&w, "max_model_len"), sp_jw_int(&w, t->env.max_model_len);
    sp_jw_key(&w, "tokens"), put_ids(&w, ids);
    sp_jw_key(&w, "token_strs");
    if (with_strings) {
        sp_jw_array(&w);
        for (size_t i = 0; i < ids->len; i++)
            sp_jw_string(&w, sp_tokenizer_piece(t->env.tokenizer, ids->ptr[i]));
        sp_jw_array_end(&w);
    } else {
        sp_jw_null(&w);
    }
    sp_jw_object_end(&w);
}

static void tokenize(tokens_job *t, sp_fields *f, const sp_json_node *root) {
    const sp_json_node *prompt = sp_json_find(root, "prompt");
    bool chat = sp_json_is_null(prompt), strings = false, add_special = !chat;
    sp_conversation c;
    if (chat)
        sp_messages_check(f, root, &t->env, &c);
    else if (sp_json_type_of(prompt) != SP_JSON_STRING)
        sp_fields_bad(f, "prompt", "want a string, got %s",
                      sp_json_type_name(sp_json_type_of(prompt)));
    sp_field_bool(f, root, "add_special_tokens", &add_special);
    sp_field_bool(f, root, "return_token_strs", &strings);
    if (f->n > 0) return;

    sp_ids ids = {0};
    sp_err err = {0};
    const sp_slice no_marker = {"", 0};
    int flags = SP_ENCODE_SPECIAL | (add_special ? SP_ENCODE_BOS : 0);
    sp_status st = chat ? sp_messages_encode(&c, &t->env, add_special, &ids, &err)
                        : sp_tokenizer_encode(t->env.tokenizer, sp_json_string(prompt), flags,
                                              no_marker, &ids, &err);
    if (st == SP_OK)
        put_tokens(t, &ids, strings);
    else
        set_fault(t, sp_status_http(st) == 503 ? 503 : 400, chat ? "messages" : "prompt", err.text);
    sp_ids_fini(&ids);
}

static void detokenize(tokens_job *t, sp_fields *f, const sp_json_node *root) {
    const int32_t *ids = NULL;
    int32_t n = 0;
    if (sp_json_is_null(sp_json_find(root, "tokens"))) sp_fields_bad(f, "tokens", "is missing");
    sp_field_ids(f, root, "tokens", SP_JSON_NODES_MAX, t->env.n_vocab, &ids, &n);
    if (f->n > 0) return;
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_tokenizer_decode(t->env.tokenizer, ids, (size_t)n, false, &text);
    sp_jw w = sp_jw_on(&t->answer);
    sp_jw_object(&w);
    sp_jw_key(&w, "prompt"), sp_jw_string(&w, sp_buf_slice(&text));
    sp_jw_object_end(&w);
    if (text.failed) t->answer.failed = true;
    sp_buf_fini(&text);
}

static void check_model(tokens_job *t, sp_fields *f, const sp_json_node *root) {
    sp_slice model;
    if (!sp_field_string(f, root, "model", &model) ||
        sp_request_model_is_served(&t->env, model.ptr))
        return;
    char text[200];
    snprintf(text, sizeof text, "The model `%.120s` does not exist.", model.ptr);
    set_fault(t, 404, "model", text);
}

static void work(sp_text_job *job) {
    tokens_job *t = (tokens_job *)job;
    sp_err err = {0};
    sp_json *doc = NULL;
    if (sp_request_parse(&doc, sp_buf_slice(&t->body), t->env.config->json_depth, &err) != SP_OK) {
        set_fault(t, err.code == SP_E_NOMEM ? 503 : 400, NULL, err.text);
        return;
    }
    sp_fields f;
    sp_fields_init(&f, &t->arena);
    const sp_json_node *root = sp_json_root(doc);
    if (sp_json_type_of(root) != SP_JSON_OBJECT)
        sp_fields_bad(&f, NULL, "the body: want an object");
    else
        check_model(t, &f, root);
    if (f.n == 0 && !t->fault.http) t->run(t, &f, root);
    if (f.n > 0) t->fault = sp_fault_of_fields(&f);
    sp_fields_fini(&f);
    sp_json_free(doc);
}

static void drop(sp_text_job *job) {
    tokens_job *t = (tokens_job *)job;
    sp_limit_drop(&t->front->limit, t->n_body);
    sp_buf_fini(&t->body);
    sp_buf_fini(&t->answer);
    sp_arena_fini(&t->arena);
    sp_free(t);
}

static void done(sp_text_job *job) {
    tokens_job *t = (tokens_job *)job;
    if (t->call && t->fault.http)
        sp_reply_fault(t->call, &t->fault);
    else if (t->call)
        sp_reply_json(t->call, "", &t->answer);
    drop(job);
}

static void client_left(void *ctx) {
    tokens_job *t = ctx;
    t->call = NULL;
    sp_text_pool_skip(t->front->text, &t->job);
}

static void start(sp_front *front, sp_http_call *call,
                  void (*run)(tokens_job *, sp_fields *, const sp_json_node *)) {
    sp_err err = {0};
    const char *why = NULL;
    size_t n_body = sp_http_call_body(call).len;
    if (!sp_front_is_ready(front, &why)) {
        sp_reply_fault(call, &(sp_fault){503, why, NULL, NULL, 1});
        return;
    }
    if (sp_limit_take(&front->limit, n_body, &err) != SP_OK) {
        sp_reply_fault(call, &(sp_fault){429, err.text, NULL, NULL, 1});
        return;
    }
    tokens_job *t = sp_alloc(sizeof *t);
    *t = (tokens_job){.job = {.work = work, .done = done, .drop = drop},
                      .front = front,
                      .call = call,
                      .run = run,
                      .n_body = n_body,
                      .env = sp_front_env(front)};
    sp_arena_init(&t->arena, 0);
    sp_buf_init(&t->answer, 0);
    sp_http_call_take_body(call, &t->body);
    if (sp_text_pool_submit(front->text, &t->job, &err) != SP_OK) {
        sp_reply_fault(call, &(sp_fault){429, err.text, NULL, NULL, 1});
        drop(&t->job);
        return;
    }
    sp_http_call_watch(call, client_left, t);
}

void sp_api_tokenize(sp_front *front, sp_http_call *call) {
    start(front, call, tokenize);
}
void sp_api_detokenize(sp_front *front, sp_http_call *call) {
    start(front, call, detokenize);
}
