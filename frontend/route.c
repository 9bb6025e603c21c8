#include "frontend/route.h"

#include "frontend/api_admin.h"
#include "frontend/api_chat.h"
#include "frontend/api_text.h"
#include "frontend/api_tokens.h"
#include "frontend/reply.h"

#include <stdio.h>

#define GET (1u << SP_HTTP_GET)
#define POST (1u << SP_HTTP_POST)
enum {
    JSON = 1,
    PREFIX = 2,
    ADMIN = 4
}; /* flags: wants a JSON body; the path goes on; POST changes the pod */

typedef struct route {
    unsigned methods;
    const char *path;
    void (*handler)(sp_front *front, sp_http_call *call);
    unsigned flags;
} route;

static const route routes[] = {
    {POST, "/v1/chat/completions", sp_api_chat, JSON},
    {POST, "/v1/completions", sp_api_text, JSON},
    {POST, "/tokenize", sp_api_tokenize, JSON},
    {POST, "/detokenize", sp_api_detokenize, JSON},
    {GET, "/v1/models", sp_api_models, 0},
    {GET, "/v1/models/", sp_api_model, PREFIX},
    {GET, "/health", sp_api_health, 0},
    {GET | POST, "/ping", sp_api_health, 0},
    {GET, "/ready", sp_api_health, 0},
    {GET, "/load", sp_api_load, 0},
    {GET, "/version", sp_api_version, 0},
    {GET, "/metrics", sp_api_metrics, 0},
    {GET, "/superpod/status", sp_api_status, 0},
    {GET | POST, "/superpod/pools", sp_api_pools, JSON | ADMIN},
    /* Routes of the API that are not here yet: said by name, not "not found". */
    {POST, "/v1/embeddings", sp_api_absent, 0},
    {POST, "/v1/responses", sp_api_absent, 0},
    {GET | POST, "/v1/responses/", sp_api_absent, PREFIX},
    {POST, "/v1/messages", sp_api_absent, 0},
    {POST, "/v1/messages/count_tokens", sp_api_absent, 0},
    {POST, "/rerank", sp_api_absent, 0},
    {POST, "/v1/rerank", sp_api_absent, 0},
    {POST, "/v2/rerank", sp_api_absent, 0},
    {POST, "/score", sp_api_absent, 0},
    {POST, "/v1/score", sp_api_absent, 0},
    {POST, "/classify", sp_api_absent, 0},
    {POST, "/pooling", sp_api_absent, 0},
    {POST, "/v2/embed", sp_api_absent, 0},
    {GET, "/tokenizer_info", sp_api_absent, 0},
    {POST, "/v1/chat/completions/render", sp_api_absent, 0},
    {POST, "/v1/completions/render", sp_api_absent, 0},
    {POST, "/inference/v1/generate", sp_api_absent, 0},
    {POST, "/v1/load_lora_adapter", sp_api_absent, 0},
    {POST, "/v1/unload_lora_adapter", sp_api_absent, 0},
    {POST, "/v1/audio/transcriptions", sp_api_absent, 0},
    {POST, "/v1/audio/translations", sp_api_absent, 0},
    {POST, "/invocations", sp_api_absent, 0},
};
#define N_ROUTES ((int)SP_LEN(routes))
_Static_assert(SP_LEN(routes) <= SP_ROUTES_MAX, "figures have room for every route");

const double sp_route_bounds[3] = {0.1, 0.5, 1};

const char *sp_route_path(int i) {
    if (i == N_ROUTES) return "none";
    return i < N_ROUTES ? routes[i].path : NULL;
}

static sp_slice without_prefix(sp_slice path) {
    const sp_slice prefix = SP_SLICE("/openai/");
    if (!sp_slice_starts(path, prefix)) return path;
    return (sp_slice){path.ptr + prefix.len - 1, path.len - prefix.len + 1};
}

sp_slice sp_route_rest(sp_slice path, const char *prefix) {
    path = without_prefix(path);
    sp_slice p = sp_slice_of(prefix);
    if (!sp_slice_starts(path, p)) return (sp_slice){"", 0};
    return (sp_slice){path.ptr + p.len, path.len - p.len};
}

/* N_ROUTES: none. */
static int find(sp_slice path) {
    path = without_prefix(path);
    for (int i = 0; i < N_ROUTES; i++) {
        sp_slice p = sp_slice_of(routes[i].path);
        if (sp_slice_eq(path, p) && !(routes[i].flags & PREFIX)) return i;
        if ((routes[i].flags & PREFIX) && path.len > p.len && sp_slice_starts(path, p)) return i;
    }
    return N_ROUTES;
}

/* Whether it asks to change the pod itself. */
static bool is_admin(const sp_http_call *call) {
    int i = sp_http_call_tag(call) - 1;
    return i < N_ROUTES && (routes[i].flags & ADMIN) &&
           sp_http_call_head(call)->method == SP_HTTP_POST;
}

void sp_route_head(sp_front *front, sp_http_call *call) {
    const sp_http_head *head = sp_http_call_head(call);
    sp_http_call_set_tag(call, find(head->path) + 1);
    bool named = head->host.ptr != NULL;
    if (sp_http_on_loopback(front->http) && named &&
        !sp_auth_allows_host(front->auth, head->host)) {
        sp_reply_fault(call, &(sp_fault){403,
                                         "the Host header names another machine; this server "
                                         "listens on loopback only (allow more with "
                                         "--allowed-hosts)",
                                         NULL, NULL, 0});
        return;
    }
    bool admin = is_admin(call);
    bool guarded = head->method != SP_HTTP_OPTIONS && sp_auth_guards(head->path);
    if (guarded && !sp_auth_allows(front->auth, head))
        sp_reply_fault(call, &(sp_fault){401, "the API key is missing or wrong", NULL, NULL, 0});
    else if (admin && !sp_auth_has_keys(front->auth) && !sp_http_call_is_local(call))
        sp_reply_fault(call, &(sp_fault){403,
                                         "without API keys the pod is changed from its own machine "
                                         "only",
                                         NULL, NULL, 0});
}

static void allow_of(const route *r, char *out, size_t n) {
    snprintf(out, n, "Allow: %s%s%sOPTIONS\r\n", r->methods & GET ? "GET, HEAD, " : "",
             r->methods & POST ? "POST" : "", r->methods & POST ? ", " : "");
}

/* "application/json", with or without parameters. */
static bool says_json(const sp_http_head *head) {
    sp_slice v = sp_http_header_get(head, "content-type");
    const char *end = v.len ? memchr(v.ptr, ';', v.len) : NULL;
    if (end) v.len = (size_t)(end - v.ptr);
    while (v.len && (v.ptr[v.len - 1] == ' ' || v.ptr[v.len - 1] == '\t')) v.len--;
    return sp_http_token_eq(v, "application/json");
}

static void refuse_method(sp_http_call *call, const route *r) {
    char allow[80];
    allow_of(r, allow, sizeof allow);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_put_fault(&b, &(sp_fault){405, "Method Not Allowed", NULL, NULL, 0});
    sp_http_reply(call, 405, "application/json", allow, sp_buf_slice(&b));
    sp_buf_fini(&b);
}

static void answer_options(sp_http_call *call, const route *r) {
    char allow[80] = "Allow: GET, HEAD, POST, OPTIONS\r\n";
    if (r) allow_of(r, allow, sizeof allow);
    sp_http_reply(call, 200, NULL, allow, SP_SLICE(""));
}

void sp_route_request(sp_front *front, sp_http_call *call) {
    const sp_http_head *head = sp_http_call_head(call);
    int i = sp_http_call_tag(call) - 1;
    const route *r = i >= 0 && i < N_ROUTES ? &routes[i] : NULL;
    bool everything = sp_slice_is(head->path, "*");
    if (!r && !everything) {
        sp_reply_fault(call, &(sp_fault){404, "Not Found", NULL, NULL, 0});
        return;
    }
    sp_http_method method = head->method == SP_HTTP_HEAD ? SP_HTTP_GET : head->method;
    if (method == SP_HTTP_OPTIONS) {
        answer_options(call, r);
        return;
    }
    if (!(r->methods & 1u << method)) {
        refuse_method(call, r);
        return;
    }
    sp_slice coding = sp_http_header_get(head, "content-encoding");
    if (coding.len && !sp_http_token_eq(coding, "identity")) {
        sp_reply_fault(call, &(sp_fault){415, "an encoded body is not accepted", NULL, NULL, 0});
        return;
    }
    if ((r->flags & JSON) && method == SP_HTTP_POST && !says_json(head)) {
        sp_reply_fault(call, &(sp_fault){400,
                                         "Unsupported Media Type: Only 'application/json' is "
                                         "allowed",
                                         NULL, NULL, 0});
        return;
    }
    r->handler(front, call);
}

void sp_route_done(sp_front *front, const sp_http_call *call, int status, double seconds) {
    const sp_http_head *head = sp_http_call_head(call);
    int i = sp_http_call_tag(call) - 1;
    if (i < 0 || i > N_ROUTES) i = N_ROUTES;
    int m = head ? (int)head->method : SP_HTTP_GET;
    int class = status / 100 - 1;
    if (class < 0 || class >= SP_STATUS_CLASSES) class = SP_STATUS_CLASSES - 1;
    sp_route_stats *s = front->routes;
    s->requests[i][m][class]++;
    s->seconds[i][m] += seconds;
    int b = 0;
    while (b < (int)SP_LEN(sp_route_bounds) && seconds > sp_route_bounds[b]) b++;
    s->buckets[i][m][b]++;
}
