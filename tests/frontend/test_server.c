/* Covers frontend/server.c: create, readiness, guards, drain. */
#include "tests/frontend/site.h"

static void health_is_503_until_the_engine_is_ready_and_200_then(void) {
    sp_fake_engine_config starting = {.starting = true};
    site *s = site_open(NULL, &starting);
    reply r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(reply_header(&r, "Retry-After"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "ServiceUnavailableError"));
    reply_fini(&r);
    r = site_post(s, "/v1/completions", "{\"prompt\":\"x\"}");
    CU_ASSERT_EQUAL(r.status, 503);
    reply_fini(&r);
    sp_fake_engine_set_state(s->engine, SP_ENGINE_READY);
    r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_EQUAL(r.n_body, 0);
    reply_fini(&r);
    sp_fake_engine_set_state(s->engine, SP_ENGINE_FAILED);
    r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "rank"));
    reply_fini(&r);
    site_close(s);
}

SP_TEST_MAIN("frontend/server", SP_TEST(health_is_503_until_the_engine_is_ready_and_200_then))
