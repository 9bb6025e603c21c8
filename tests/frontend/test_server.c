/* Covers frontend/server.c: create, readiness, draining. */
#include "tests/frontend/site.h"

#define TEXT "/v1/completions"

static void health_is_503_until_the_engine_is_ready_and_200_then(void) {
    sp_fake_engine_config starting = {.starting = true};
    site *s = site_open(NULL, &starting);
    reply r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(reply_header(&r, "Retry-After"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "ServiceUnavailableError"));
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":\"x\"}");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "not ready"));
    reply_fini(&r);
    r = site_post(s, "/tokenize", "{\"prompt\":\"x\"}");
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

static bool never(void *ctx) {
    (void)ctx;
    return false;
}

static void the_launchers_own_word_on_readiness_counts(void) {
    sp_server_config c = site_config();
    c.is_ready = never;
    site *s = site_open(&c, NULL);
    reply r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 503);
    reply_fini(&r);
    site_close(s);
}

static void a_drain_finishes_what_runs_and_refuses_what_is_new(void) {
    sp_fake_engine_config f = {.paused = true};
    site *s = site_open(NULL, &f);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    int fd = site_connect(s), kept = site_connect(s);
    char *text = site_request("POST", TEXT, "", "{\"prompt\":\"a\",\"stream\":true}");
    site_send(fd, text);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 1));
    sp_server_drain(s->server, 60000);
    reply r = site_get(s, "/health");
    while (r.status == 200) { /* the wake-up may come a moment later */
        reply_fini(&r);
        r = site_get(s, "/health");
    }
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "draining"));
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Connection"), "close");
    reply_fini(&r);
    /* Also on a connection from before. */
    site_send(kept, text);
    r = site_read_reply(kept, &raw, false);
    CU_ASSERT_EQUAL(r.status, 503);
    reply_fini(&r);
    sp_buf_clear(&raw);
    sp_fake_engine_pause(s->engine, false);
    r = site_read_reply(fd, &raw, false);
    stream *st = stream_of(r.body);
    CU_ASSERT(r.whole && st->done);
    char *said = stream_text(st, 0, "text");
    CU_ASSERT_STRING_EQUAL(said, "hello");
    sp_free(said);
    stream_free(st);
    reply_fini(&r);
    sp_thread_join(&s->thread); /* run returns by itself */
    sp_buf_fini(&raw);
    sp_free(text);
    close(fd);
    close(kept);
    site_close(s);
}

static void when_the_grace_is_over_what_still_runs_is_ended_with_words(void) {
    sp_fake_engine_config f = {.paused = true};
    site *s = site_open(NULL, &f);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    int plain = site_connect(s), streamed = site_connect(s);
    char *text = site_request("POST", TEXT, "", "{\"prompt\":\"a\"}");
    site_send(plain, text);
    sp_free(text);
    text = site_request("POST", TEXT, "", "{\"prompt\":\"a\",\"stream\":true}");
    site_send(streamed, text);
    sp_free(text);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 2));
    sp_fake_engine_allow(s->engine, 1);
    CU_ASSERT(site_read_until(streamed, &raw, "\"text\":\"h\""));
    sp_server_drain(s->server, 60000);
    sp_server_drain(s->server, 50); /* the shorter one counts */
    reply r = site_read_reply(streamed, &raw, false);
    stream *st = stream_of(r.body);
    CU_ASSERT(r.whole && st->done);
    CU_ASSERT_PTR_NOT_NULL(strstr(st->data[st->n - 1], "shutting down"));
    stream_free(st);
    reply_fini(&r);
    sp_buf_clear(&raw);
    r = site_read_reply(plain, &raw, false);
    CU_ASSERT_EQUAL(r.status, 503);
    reply_fini(&r);
    sp_thread_join(&s->thread);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    sp_buf_fini(&raw);
    close(plain);
    close(streamed);
    site_close(s);
}

static void a_server_may_be_destroyed_while_requests_run(void) {
    sp_fake_engine_config f = {.paused = true};
    site *s = site_open(NULL, &f);
    int fds[20];
    char *text = site_request("POST", TEXT, "", "{\"prompt\":\"a\",\"stream\":true}");
    for (int i = 0; i < 20; i++) {
        fds[i] = site_connect(s);
        site_send(fds[i], text);
    }
    site_close(s);
    for (int i = 0; i < 20; i++) close(fds[i]);
    sp_free(text);
}

static void a_config_that_cannot_be_is_refused_by_name(void) {
    sp_fake_engine_config f = {0};
    sp_engine *e = sp_fake_engine_create(&f);
    sp_tokenizer *t = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_tokenizer_load(&t, SITE_DATA, &err), SP_OK);
    static const char *const empty_key[] = {""};
    sp_server_config rows[5];
    for (size_t i = 0; i < SP_LEN(rows); i++) rows[i] = site_config();
    rows[0].n_model_names = 0;
    rows[1].port = 70000;
    rows[2].max_logprobs = 21;
    rows[3].n_text_threads = 0;
    rows[4].api_keys = empty_key;
    rows[4].n_api_keys = 1;
    static const char *const words[] = {"model names", "port", "max logprobs", "text threads",
                                        "API key"};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_server *server = NULL;
        CU_ASSERT_EQUAL(sp_server_create(&server, &rows[i], e, t, NULL, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NULL(server);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words[i]));
    }
    sp_server_destroy(NULL);
    sp_tokenizer_free(t);
    sp_fake_engine_destroy(e);
}

SP_TEST_MAIN("frontend/server", SP_TEST(health_is_503_until_the_engine_is_ready_and_200_then),
             SP_TEST(the_launchers_own_word_on_readiness_counts),
             SP_TEST(a_drain_finishes_what_runs_and_refuses_what_is_new),
             SP_TEST(when_the_grace_is_over_what_still_runs_is_ended_with_words),
             SP_TEST(a_server_may_be_destroyed_while_requests_run),
             SP_TEST(a_config_that_cannot_be_is_refused_by_name))
