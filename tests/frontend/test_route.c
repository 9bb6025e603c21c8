/* Covers frontend/route.c: paths, methods, guards, content types. */
#include "tests/frontend/site.h"

static void paths_and_methods_are_answered_as_the_table_says(void) {
    static const struct {
        const char *method, *path;
        int status;
        const char *allow;
    } rows[] = {
        {"GET", "/", 404, NULL},
        {"GET", "/v1", 404, NULL},
        {"GET", "/v1/chat/completionsx", 404, NULL},
        {"GET", "/v1/chat/completions/", 404, NULL},
        {"POST", "//v1/completions", 404, NULL},
        {"GET", "/openai", 404, NULL},
        {"GET", "/openai/openai/health", 404, NULL},
        {"GET", "/health?verbose=1", 200, NULL},
        {"GET", "/v1/chat/completions", 405, "POST, OPTIONS"},
        {"HEAD", "/v1/completions", 405, "POST, OPTIONS"},
        {"DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"},
        {"PUT", "/ping", 405, "GET, HEAD, POST, OPTIONS"},
        {"TRACE", "/health", 405, "GET, HEAD, OPTIONS"},
        {"PATCH", "/nothing", 404, NULL},
        {"OPTIONS", "/v1/completions", 200, "POST, OPTIONS"},
        {"OPTIONS", "*", 200, "GET, HEAD, POST, OPTIONS"},
        {"OPTIONS", "/nothing", 404, NULL},
        {"HEAD", "/v1/models", 200, NULL},
    };
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_ask(s, rows[i].method, rows[i].path, "", NULL);
        if (r.status != rows[i].status)
            fprintf(stderr, "%s %s -> %d\n", rows[i].method, rows[i].path, r.status);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        const char *allow = reply_header(&r, "Allow");
        if (rows[i].allow) CU_ASSERT(allow && strcmp(allow, rows[i].allow) == 0);
        if (r.status >= 400 && r.n_body) {
            sp_json *doc = site_json(r.body);
            CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "error.code")), r.status);
            sp_json_free(doc);
        }
        reply_fini(&r);
    }
    site_close(s);
}

static void a_json_route_wants_its_content_type(void) {
    static const struct {
        const char *header;
        int status;
    } rows[] = {{"", 400},
                {"Content-Type: text/plain\r\n", 400},
                {"Content-Type: application/x-www-form-urlencoded\r\n", 400},
                {"Content-Type: application/jsonx\r\n", 400},
                {"Content-Type: application/json\r\n", 200},
                {"Content-Type: Application/JSON; charset=utf-8\r\n", 200},
                {"Content-Type: application/json ;x=y\r\n", 200}};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char text[400];
        snprintf(text, sizeof text,
                 "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: "
                 "14\r\n\r\n{\"prompt\":\"a\"}",
                 rows[i].header);
        reply r = site_raw(s, text);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        if (r.status == 400) CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "Unsupported Media Type"));
        reply_fini(&r);
    }
    site_close(s);
}

static void with_keys_only_their_holders_reach_the_model(void) {
    static const char *const keys[] = {"k1", "k2"};
    static const struct {
        const char *method, *path, *header;
        int status;
    } rows[] = {{"GET", "/v1/models", "", 401},
                {"GET", "/v1/models", "Authorization: Bearer wrong\r\n", 401},
                {"GET", "/v1/models", "Authorization: Bearer k2\r\n", 200},
                {"GET", "/v1/models", "x-api-key: k1\r\n", 200},
                {"GET", "/openai/v1/models", "", 401},
                {"GET", "/v1/unknown", "", 401},
                {"GET", "/v1/unknown", "Authorization: Bearer k1\r\n", 404},
                {"OPTIONS", "/v1/models", "", 200},
                {"POST", "/superpod/pools", "", 401},
                {"POST", "/superpod/pools", "Authorization: Bearer k1\r\n", 400},
                {"GET", "/superpod/pools", "x-api-key: k1\r\n", 404},
                {"GET", "/health", "", 200},
                {"GET", "/metrics", "", 200},
                {"GET", "/ping", "", 200}};
    sp_server_config c = site_config();
    c.api_keys = keys;
    c.n_api_keys = 2;
    site *s = site_open(&c, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_ask(s, rows[i].method, rows[i].path, rows[i].header, NULL);
        if (r.status != rows[i].status) fprintf(stderr, "row %zu -> %d\n", i, r.status);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        if (r.status == 401) {
            CU_ASSERT_STRING_EQUAL(reply_header(&r, "WWW-Authenticate"), "Bearer");
            CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"type\":\"AuthenticationError\""));
        }
        reply_fini(&r);
    }
    /* A refused body is not read: its sender still gets the answer. */
    reply r = site_post(s, "/v1/completions", "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 401);
    reply_fini(&r);
    site_close(s);
}

static void on_loopback_foreign_hosts_are_403(void) {
    static const char *const extra[] = {"gateway.example"};
    sp_server_config c = site_config();
    c.allowed_hosts = extra;
    c.n_allowed_hosts = 1;
    site *s = site_open(&c, NULL);
    static const struct {
        const char *host;
        int status;
    } rows[] = {{"localhost", 200},       {"127.0.0.1:8000", 200}, {"evil.example", 403},
                {"gateway.example", 200}, {"x.localhost:1", 200},  {"127.0.0.1.nip.io", 403}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char text[200];
        snprintf(text, sizeof text, "GET /health HTTP/1.1\r\nHost: %s\r\n\r\n", rows[i].host);
        reply r = site_raw(s, text);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        if (r.status == 403) CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "Host"));
        reply_fini(&r);
    }
    site_close(s);
    /* Where everybody may connect, every name may be used. */
    c.host = "0.0.0.0";
    s = site_open(&c, NULL);
    reply r = site_raw(s, "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    site_close(s);
}

SP_TEST_MAIN("frontend/route", SP_TEST(paths_and_methods_are_answered_as_the_table_says),
             SP_TEST(a_json_route_wants_its_content_type),
             SP_TEST(with_keys_only_their_holders_reach_the_model),
             SP_TEST(on_loopback_foreign_hosts_are_403))
