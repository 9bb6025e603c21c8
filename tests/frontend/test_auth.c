/* Covers frontend/auth.c: keys, guarded paths, Host names. */
#include "frontend/auth.h"
#include "tests/harness.h"

#include <stdio.h>

static sp_http_head head_with(const char *name, const char *value) {
    sp_http_head h = {0};
    h.headers[0] = (sp_http_header){sp_slice_of(name), sp_slice_of(value)};
    h.n_headers = 1;
    return h;
}

static void any_configured_key_opens_and_nothing_else_does(void) {
    static const char *const keys[] = {"first-key", "second-key"};
    static const struct {
        const char *name, *value;
        bool want;
    } rows[] = {{"Authorization", "Bearer first-key", true},
                {"authorization", "bearer second-key", true},
                {"Authorization", "Bearer   first-key", true},
                {"x-api-key", "second-key", true},
                {"Authorization", "Bearer first-ke", false},
                {"Authorization", "Bearer first-keyy", false},
                {"Authorization", "Bearer ", false},
                {"Authorization", "Bearer", false},
                {"Authorization", "Basic first-key", false},
                {"Authorization", "first-key", false},
                {"x-api-key", "", false},
                {"x-other", "first-key", false}};
    sp_auth *a = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_auth_create(&a, keys, 2, NULL, 0, &err), SP_OK);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_http_head h = head_with(rows[i].name, rows[i].value);
        CU_ASSERT_EQUAL(sp_auth_allows(a, &h), rows[i].want);
    }
    sp_auth_destroy(a);
}

static void without_keys_everybody_may_and_an_empty_key_is_refused(void) {
    static const char *const empty[] = {"good", ""};
    sp_auth *a = NULL;
    sp_err err = {0};
    sp_http_head h = {0};
    CU_ASSERT_EQUAL_FATAL(sp_auth_create(&a, NULL, 0, NULL, 0, &err), SP_OK);
    CU_ASSERT(sp_auth_allows(a, &h));
    sp_auth_destroy(a);
    a = NULL;
    CU_ASSERT_EQUAL(sp_auth_create(&a, empty, 2, NULL, 0, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(a);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "key 2"));
}

static void what_serves_the_model_is_guarded_and_what_watches_it_is_not(void) {
    static const char *const guarded[] = {"/v1",
                                          "/v1/models",
                                          "/v1/x/y",
                                          "/v2/rerank",
                                          "/inference/generate",
                                          "/cohere/embed",
                                          "/openai/v1",
                                          "/openai/v1/completions"};
    static const char *const open[] = {"/",        "/health",  "/metrics", "/ping",
                                       "/ready",   "/v10",     "/load",    "/openai",
                                       "/openai/", "/open/v1", "/version"};
    for (size_t i = 0; i < SP_LEN(guarded); i++) CU_ASSERT(sp_auth_guards(sp_slice_of(guarded[i])));
    for (size_t i = 0; i < SP_LEN(open); i++) CU_ASSERT_FALSE(sp_auth_guards(sp_slice_of(open[i])));
}

static void only_names_of_this_machine_pass_as_host(void) {
    static const char *const extra[] = {"my.box", "other:9000"};
    static const char *const good[] = {
        "localhost", "LocalHost:8000", "127.0.0.1",   "127.0.0.1:8000",  "127.1.2.3",
        "[::1]",     "[::1]:8000",     "a.localhost", "a.b.localhost:1", "localhost.",
        "my.box",    "MY.BOX:80",      "other:9000"};
    static const char *const bad[] = {"",
                                      "evil.example",
                                      "localhost.evil.example",
                                      "127.0.0.1.evil.example",
                                      "evillocalhost",
                                      "[::2]",
                                      "[::1",
                                      "[::1]x",
                                      "localhost:80x",
                                      "10.0.0.1",
                                      "other:9001",
                                      "127.evil"};
    sp_auth *a = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_auth_create(&a, NULL, 0, extra, 2, &err), SP_OK);
    for (size_t i = 0; i < SP_LEN(good); i++)
        CU_ASSERT(sp_auth_allows_host(a, sp_slice_of(good[i])));
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        bool allowed = sp_auth_allows_host(a, sp_slice_of(bad[i]));
        if (allowed) fprintf(stderr, "allowed '%s'\n", bad[i]);
        CU_ASSERT_FALSE(allowed);
    }
    sp_auth_destroy(a);
}

SP_TEST_MAIN("frontend/auth", SP_TEST(any_configured_key_opens_and_nothing_else_does),
             SP_TEST(without_keys_everybody_may_and_an_empty_key_is_refused),
             SP_TEST(what_serves_the_model_is_guarded_and_what_watches_it_is_not),
             SP_TEST(only_names_of_this_machine_pass_as_host))
