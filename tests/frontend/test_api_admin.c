/* Covers frontend/api_admin.c: models, version, load, and routes that are named but absent. */
#include "tests/frontend/site.h"

static void models_are_listed_one_entry_a_served_name(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_get(s, "/v1/models");
    CU_ASSERT_EQUAL(r.status, 200);
    sp_json *doc = site_json(r.body);
    const sp_json_node *o = sp_json_root(doc);
    CU_ASSERT_STRING_EQUAL(json_str(o, "object"), "list");
    CU_ASSERT_EQUAL(sp_json_count(json_path(o, "data")), 2);
    CU_ASSERT_STRING_EQUAL(json_str(o, "data.1.id"), "alias");
    CU_ASSERT_STRING_EQUAL(json_str(o, "data.0.object"), "model");
    CU_ASSERT_STRING_EQUAL(json_str(o, "data.0.owned_by"), "superpod");
    CU_ASSERT_STRING_EQUAL(json_str(o, "data.0.root"), "/models/tiny");
    CU_ASSERT(sp_json_is_null(json_path(o, "data.0.parent")));
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "data.0.max_model_len")), 4096);
    CU_ASSERT(sp_json_int(json_path(o, "data.0.created")) > 1600000000);
    CU_ASSERT_STRING_EQUAL(json_str(o, "data.0.permission.0.object"), "model_permission");
    CU_ASSERT(sp_json_bool(json_path(o, "data.0.permission.0.allow_sampling")));
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void one_model_is_found_by_its_name_escaped_or_not(void) {
    static const char *const names[] = {"org/model name"};
    sp_server_config c = site_config();
    c.model_names = names;
    c.n_model_names = 1;
    site *s = site_open(&c, NULL);
    static const struct {
        const char *path;
        int status;
    } rows[] = {{"/v1/models/org/model%20name", 200},
                {"/v1/models/org%2Fmodel%20name", 200},
                {"/openai/v1/models/org%2fmodel%20name", 200},
                {"/v1/models/org", 404},
                {"/v1/models/org/model%2", 404},
                {"/v1/models/%00", 404},
                {"/v1/models/", 404}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_get(s, rows[i].path);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        if (r.status == 200) CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"id\":\"org/model name\""));
        reply_fini(&r);
    }
    site_close(s);
}

static void small_routes_answer_in_their_words(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_get(s, "/version");
    CU_ASSERT_STRING_EQUAL(r.body, "{\"version\":\"1.2.3\"}");
    reply_fini(&r);
    r = site_get(s, "/load");
    CU_ASSERT_STRING_EQUAL(r.body, "{\"server_load\":0}");
    reply_fini(&r);
    static const char *const alive[] = {"/health", "/ping", "/ready", "/openai/health"};
    for (size_t i = 0; i < SP_LEN(alive); i++) {
        r = site_get(s, alive[i]);
        CU_ASSERT(r.status == 200 && r.n_body == 0);
        reply_fini(&r);
    }
    r = site_ask(s, "POST", "/ping", "Content-Length: 0\r\n", NULL);
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    site_close(s);
}

static void routes_that_are_not_here_yet_are_501_by_name(void) {
    static const char *const paths[] = {"/v1/embeddings",
                                        "/v1/responses",
                                        "/v1/messages",
                                        "/v1/messages/count_tokens",
                                        "/rerank",
                                        "/v2/rerank",
                                        "/score",
                                        "/classify",
                                        "/pooling",
                                        "/openai/v1/embeddings",
                                        "/v1/responses/x/cancel"};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(paths); i++) {
        reply r = site_post(s, paths[i], "{}");
        CU_ASSERT_EQUAL(r.status, 501);
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "NotImplementedError"));
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, paths[i]));
        reply_fini(&r);
    }
    site_close(s);
}

SP_TEST_MAIN("frontend/api_admin", SP_TEST(models_are_listed_one_entry_a_served_name),
             SP_TEST(one_model_is_found_by_its_name_escaped_or_not),
             SP_TEST(small_routes_answer_in_their_words),
             SP_TEST(routes_that_are_not_here_yet_are_501_by_name))
