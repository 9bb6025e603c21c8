#include "frontend/api_admin.h"

#include "frontend/export.h"
#include "frontend/generate.h"
#include "frontend/reply.h"
#include "frontend/route.h"

#include <stdio.h>

#define POOLS_BODY_MAX 65536

void sp_api_health(sp_front *front, sp_http_call *call) {
    const char *why = NULL;
    if (sp_front_is_ready(front, &why))
        sp_http_reply(call, 200, NULL, "", SP_SLICE(""));
    else
        sp_reply_fault(call, &(sp_fault){503, why, NULL, NULL, 1});
}

void sp_api_load(sp_front *front, sp_http_call *call) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_printf(&b, "{\"server_load\":%d}", front->limit.requests);
    sp_reply_json(call, "", &b);
    sp_buf_fini(&b);
}

void sp_api_version(sp_front *front, sp_http_call *call) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "version"), sp_jw_str(&w, front->config.version);
    sp_jw_object_end(&w);
    sp_reply_json(call, "", &b);
    sp_buf_fini(&b);
}

void sp_api_status(sp_front *front, sp_http_call *call) {
    if (!front->config.status) {
        sp_reply_fault(call, &(sp_fault){404, "this server has no status", NULL, NULL, 0});
        return;
    }
    sp_buf b;
    sp_buf_init(&b, 0);
    front->config.status(front->config.status_ctx, &b);
    sp_reply_json(call, "", &b);
    sp_buf_fini(&b);
}

/* Read on the loop: it is a person's, and small. */
static sp_status change_pools(sp_front *front, sp_slice body, sp_err *err) {
    if (body.len > POOLS_BODY_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a body of %zu bytes, at most %d", body.len,
                       POOLS_BODY_MAX);
    sp_json *doc = NULL;
    SP_TRY(sp_request_parse(&doc, body, front->config.json_depth, err));
    sp_status st = front->config.set_pools(front->config.status_ctx, sp_json_root(doc), err);
    sp_json_free(doc);
    return st;
}

void sp_api_pools(sp_front *front, sp_http_call *call) {
    if (!front->config.pools || !front->config.set_pools) {
        sp_reply_fault(call, &(sp_fault){404, "this server has no pools", NULL, NULL, 0});
        return;
    }
    sp_err err = {0};
    bool post = sp_http_call_head(call)->method == SP_HTTP_POST;
    if (post && change_pools(front, sp_http_call_body(call), &err) != SP_OK) {
        int http = err.code == SP_E_NOMEM ? 503 : err.code == SP_E_INTERNAL ? 500 : 400;
        sp_reply_fault(call, &(sp_fault){http, err.text, NULL, NULL, 0});
        return;
    }
    sp_buf b;
    sp_buf_init(&b, 0);
    front->config.pools(front->config.status_ctx, &b);
    sp_reply_json(call, "", &b);
    sp_buf_fini(&b);
}

static void put_permission(sp_jw *w, const sp_server_config *config, const char *name) {
    static const struct {
        const char *key;
        bool value;
    } rights[] = {{"allow_create_engine", false}, {"allow_sampling", true},
                  {"allow_logprobs", true},       {"allow_search_indices", false},
                  {"allow_view", true},           {"allow_fine_tuning", false},
                  {"is_blocking", false}};
    char id[64];
    /* Stable for a model, so that two answers of one server are equal. */
    snprintf(id, sizeof id, "modelperm-%016llx",
             (unsigned long long)sp_hash_bytes(name, strlen(name)));
    sp_jw_object(w);
    sp_jw_key(w, "id"), sp_jw_str(w, id);
    sp_jw_key(w, "object"), sp_jw_str(w, "model_permission");
    sp_jw_key(w, "created"), sp_jw_int(w, config->created_s);
    for (size_t i = 0; i < SP_LEN(rights); i++)
        sp_jw_key(w, rights[i].key), sp_jw_bool(w, rights[i].value);
    sp_jw_key(w, "organization"), sp_jw_str(w, "*");
    sp_jw_key(w, "group"), sp_jw_null(w);
    sp_jw_object_end(w);
}

static void put_model(sp_jw *w, const sp_front *front, const char *name) {
    const sp_server_config *config = &front->config;
    int32_t len = front->engine ? sp_engine_get_info(front->engine).max_model_len : 0;
    sp_jw_object(w);
    sp_jw_key(w, "id"), sp_jw_str(w, name);
    sp_jw_key(w, "object"), sp_jw_str(w, "model");
    sp_jw_key(w, "created"), sp_jw_int(w, config->created_s);
    sp_jw_key(w, "owned_by"), sp_jw_str(w, config->owned_by);
    sp_jw_key(w, "root"), sp_jw_str(w, config->model_root ? config->model_root : name);
    sp_jw_key(w, "parent"), sp_jw_null(w);
    sp_jw_key(w, "max_model_len");
    if (len > 0)
        sp_jw_int(w, len);
    else
        sp_jw_null(w);
    sp_jw_key(w, "permission");
    sp_jw_array(w);
    put_permission(w, config, name);
    sp_jw_array_end(w);
    sp_jw_object_end(w);
}

void sp_api_models(sp_front *front, sp_http_call *call) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "object"), sp_jw_str(&w, "list");
    sp_jw_key(&w, "data");
    sp_jw_array(&w);
    for (int i = 0; i < front->config.n_model_names; i++)
        put_model(&w, front, front->config.model_names[i]);
    sp_jw_array_end(&w);
    sp_jw_object_end(&w);
    sp_reply_json(call, "", &b);
    sp_buf_fini(&b);
}

static int hex_of(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "%2F" and friends; names like org/model are sent escaped by some clients and bare by others. */
static void unescape(sp_slice s, sp_buf *out) {
    for (size_t i = 0; i < s.len; i++) {
        int hi = s.ptr[i] == '%' && i + 2 < s.len ? hex_of(s.ptr[i + 1]) : -1;
        int lo = hi >= 0 ? hex_of(s.ptr[i + 2]) : -1;
        if (lo >= 0) i += 2;
        sp_buf_putc(out, lo >= 0 ? (char)(hi * 16 + lo) : s.ptr[i]);
    }
}

void sp_api_model(sp_front *front, sp_http_call *call) {
    sp_buf name, b;
    sp_buf_init(&name, 0);
    sp_buf_init(&b, 0);
    unescape(sp_route_rest(sp_http_call_head(call)->path, "/v1/models/"), &name);
    bool found = false;
    for (int i = 0; i < front->config.n_model_names && !found; i++)
        found = name.ptr && sp_slice_is(sp_buf_slice(&name), front->config.model_names[i]);
    if (found) {
        sp_jw w = sp_jw_on(&b);
        put_model(&w, front, name.ptr);
        sp_reply_json(call, "", &b);
    } else {
        sp_buf_printf(&b, "The model `%.120s` does not exist.", name.ptr ? name.ptr : "");
        sp_reply_fault(call, &(sp_fault){404, b.ptr, "model", NULL, 0});
    }
    sp_buf_fini(&b);
    sp_buf_fini(&name);
}

void sp_api_metrics(sp_front *front, sp_http_call *call) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_export_metrics(front, &b);
    sp_http_reply(call, b.failed ? 500 : 200, "text/plain; version=1.0.0; charset=utf-8", "",
                  sp_buf_slice(&b));
    sp_buf_fini(&b);
}

void sp_api_absent(sp_front *front, sp_http_call *call) {
    (void)front;
    char text[160];
    sp_slice path = sp_http_call_head(call)->path;
    snprintf(text, sizeof text, "%.*s is not implemented by this server",
             (int)(path.len < 100 ? path.len : 100), path.ptr);
    sp_reply_fault(call, &(sp_fault){501, text, NULL, NULL, 0});
}
