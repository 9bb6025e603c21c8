/* Covers frontend/generate.c: a request's way through the threads, and every way it can end. */
#include "tests/frontend/site.h"

#define TEXT "/v1/completions"
#define CHAT "/v1/chat/completions"

static int ask(const site *s, const char *json) {
    int fd = site_connect(s);
    char *text = site_request("POST", TEXT, "", json);
    site_send(fd, text);
    sp_free(text);
    return fd;
}

static void a_client_that_leaves_while_waiting_is_cancelled(void) {
    static const char *const bodies[] = {"{\"prompt\":\"a\"}", "{\"prompt\":\"a\",\"stream\":true}",
                                         "{\"prompt\":[\"a\",\"b\"],\"n\":2}"};
    static const int choices[] = {1, 1, 4};
    sp_fake_engine_config f = {.paused = true};
    for (size_t i = 0; i < SP_LEN(bodies); i++)
        for (int how = 0; how < 3; how++) {
            site *s = site_open(NULL, &f);
            int fd = ask(s, bodies[i]);
            CU_ASSERT(sp_fake_engine_wait_inside(s->engine, i == 2 ? 2 : 1));
            struct linger reset = {.l_onoff = 1, .l_linger = 0};
            if (how == 1) shutdown(fd, SHUT_WR);
            if (how == 2) setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            if (how != 1) close(fd);
            CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
            CU_ASSERT(sp_fake_engine_wait_aborted(s->engine, choices[i]));
            if (how == 1) close(fd);
            site_close(s);
        }
}

static void a_client_that_leaves_a_stream_is_cancelled(void) {
    sp_fake_engine_config f = {.paused = true, .script = "0123456789"};
    for (int how = 0; how < 2; how++) {
        site *s = site_open(NULL, &f);
        sp_buf raw;
        sp_buf_init(&raw, 0);
        int fd =
            ask(s, "{\"prompt\":\"a\",\"stream\":true,\"ignore_eos\":true,\"max_tokens\":1000}");
        sp_fake_engine_allow(s->engine, 3);
        CU_ASSERT(site_read_until(fd, &raw, "\"text\":\"2\""));
        if (how == 1)
            shutdown(fd, SHUT_WR);
        else
            close(fd);
        CU_ASSERT(sp_fake_engine_wait_aborted(s->engine, 1));
        if (how == 1) close(fd);
        sp_buf_fini(&raw);
        site_close(s);
    }
}

static void clients_that_leave_at_any_moment_leave_nothing_behind(void) {
    site *s = site_open(NULL, NULL);
    sp_buf big;
    sp_buf_init(&big, 0);
    sp_buf_puts(&big, "{\"stream\":true,\"prompt\":\"");
    for (int i = 0; i < 2000; i++) sp_buf_putc(&big, 'a');
    sp_buf_puts(&big, "\"}");
    for (int i = 0; i < 300; i++) {
        int fd = ask(s, i % 2 ? big.ptr : "{\"prompt\":\"a\",\"n\":5}");
        char piece[64];
        if (i % 5 == 0) (void)!recv(fd, piece, sizeof piece, 0);
        close(fd);
    }
    /* All that was begun ends: the last one asked is served after them. */
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    do {
        reply_fini(&r);
        r = site_get(s, "/load");
    } while (r.status == 200 && !strstr(r.body, "\"server_load\":0"));
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    sp_buf_fini(&big);
    site_close(s);
}

static void a_stop_string_ends_the_engines_work_too(void) {
    sp_fake_engine_config f = {.paused = true, .script = "abcdefgh"};
    site *s = site_open(NULL, &f);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    int fd = ask(s, "{\"prompt\":\"x\",\"stop\":\"cd\",\"n\":2}");
    sp_fake_engine_allow(s->engine, 4);
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"text\":\"ab\""));
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    CU_ASSERT_EQUAL(sp_fake_engine_count_stopped(s->engine), 2);
    reply_fini(&r);
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void a_failure_before_the_first_byte_is_a_status(void) {
    sp_fake_engine_config f = {.fail_at_once = true};
    site *s = site_open(NULL, &f);
    for (int streamed = 0; streamed < 2; streamed++) {
        reply r = site_post(s, TEXT,
                            streamed ? "{\"prompt\":\"a\",\"stream\":true}" : "{\"prompt\":\"a\"}");
        CU_ASSERT_EQUAL(r.status, 500);
        sp_json *doc = site_json(r.body);
        CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), "error.type"), "InternalServerError");
        CU_ASSERT_PTR_NOT_NULL(
            strstr(json_str(sp_json_root(doc), "error.message"), "rank 1 was lost"));
        sp_json_free(doc);
        reply_fini(&r);
    }
    site_close(s);
}

static void a_failure_in_a_stream_is_an_error_chunk_and_done(void) {
    sp_fake_engine_config f = {.fail_after = 2};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\",\"stream\":true,\"n\":2}");
    CU_ASSERT_EQUAL(r.status, 200);
    stream *st = stream_of(r.body);
    CU_ASSERT(st->done && r.whole);
    sp_json *doc = site_json(st->data[st->n - 1]);
    CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "error.code")), 500);
    for (int i = 0; i < st->n - 1; i++) CU_ASSERT_PTR_NULL(strstr(st->data[i], "error"));
    sp_json_free(doc);
    stream_free(st);
    reply_fini(&r);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    site_close(s);
}

static void a_full_engine_is_429_with_a_time_to_come_back(void) {
    sp_fake_engine_config f = {.paused = true, .queue_max = 2};
    site *s = site_open(NULL, &f);
    int fd = ask(s, "{\"prompt\":\"a\"}");
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 1));
    /* The second of two prompts finds no room: the first is taken back. */
    reply r = site_post(s, TEXT, "{\"prompt\":[\"a\",\"b\"]}");
    CU_ASSERT_EQUAL(r.status, 429);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "RateLimitError"));
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Retry-After"), "1");
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "x-should-retry"), "true");
    reply_fini(&r);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 1));
    close(fd);
    site_close(s);
}

static void the_servers_own_caps_are_429_too(void) {
    sp_fake_engine_config f = {.paused = true};
    sp_server_config c = site_config();
    c.max_requests = 1;
    site *s = site_open(&c, &f);
    int fd = ask(s, "{\"prompt\":\"a\"}");
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 1));
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 429);
    reply_fini(&r);
    close(fd);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    sp_fake_engine_pause(s->engine, false);
    do {
        reply_fini(&r);
        r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    } while (r.status == 429);
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    site_close(s);
}

static void an_unavailable_engine_is_503(void) {
    site *s = site_open(NULL, NULL);
    sp_fake_engine_set_state(s->engine, SP_ENGINE_DRAINING);
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(reply_header(&r, "Retry-After"));
    reply_fini(&r);
    site_close(s);
}

static void an_unknown_model_is_404_in_known_words(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, TEXT, "{\"model\":\"gpt-5\",\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 404);
    CU_ASSERT_STRING_EQUAL(r.body, "{\"error\":{\"message\":\"The model `gpt-5` does not exist.\","
                                   "\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}");
    reply_fini(&r);
    site_close(s);
}

static void a_prompt_too_long_is_told_in_words_that_clients_match(void) {
    sp_fake_engine_config f = {.max_model_len = 20};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, TEXT, "{\"prompt\":\"01234567890123456789\"}");
    sp_json *doc = site_json(r.body);
    const char *text = json_str(sp_json_root(doc), "error.message");
    const char *begins = "This model's maximum context length is 20 tokens";
    const char *ends = "(context_length_exceeded)";
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_EQUAL(strncmp(text, begins, strlen(begins)), 0);
    CU_ASSERT_STRING_EQUAL(text + strlen(text) - strlen(ends), ends);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "21 input tokens"));
    CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), "error.code"), "context_length_exceeded");
    sp_json_free(doc);
    reply_fini(&r);
    /* An answer longer than the whole context is refused; one that merely does not fit is cut. */
    r = site_post(s, TEXT, "{\"prompt\":\"a\",\"max_tokens\":21}");
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "maximum context length is 20"));
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":\"a\",\"max_tokens\":20,\"ignore_eos\":true}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"completion_tokens\":18"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"finish_reason\":\"length\""));
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":\"01234567890123456789\",\"truncate_prompt_tokens\":5}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"prompt_tokens\":5"));
    reply_fini(&r);
    r = site_post(
        s, TEXT,
        "{\"prompt\":\"01234567890123456789\",\"truncate_prompt_tokens\":-1,\"max_tokens\":3}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"prompt_tokens\":17"));
    reply_fini(&r);
    site_close(s);
}

static void a_chat_without_a_limit_may_use_what_is_left_of_the_context(void) {
    sp_fake_engine_config f = {.max_model_len = 30};
    sp_server_config c = site_config();
    for (int capped = 0; capped < 2; capped++) {
        c.defaults.max_new_tokens = capped ? 7 : -1;
        site *s = site_open(&c, &f);
        reply r = site_post(
            s, CHAT, "{\"ignore_eos\":true,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
        CU_ASSERT_EQUAL(r.status, 200);
        CU_ASSERT_PTR_NOT_NULL(
            strstr(r.body, capped ? "\"completion_tokens\":7," : "\"completion_tokens\":26,"));
        reply_fini(&r);
        site_close(s);
    }
}

static void parameters_reach_the_engine(void) {
    site *s = site_open(NULL, NULL);
    reply r =
        site_ask(s, "POST", TEXT, "X-Vllm-Priority: 4\r\n",
                 "{\"prompt\":[1,2,3],\"max_tokens\":9,\"temperature\":0.5,\"top_k\":4,\"seed\":42,"
                 "\"min_tokens\":2,\"logit_bias\":{\"7\":1},\"bad_words\":[\"no\"],"
                 "\"cache_salt\":\"pepper\",\"stop_token_ids\":[9],\"n\":2}");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    const fake_request *q = &s->engine->last;
    CU_ASSERT(q->n_prompt == 3 && s->engine->last_prompt[2] == 3);
    CU_ASSERT(q->params.max_tokens == 9 && q->params.temperature == 0.5f && q->params.top_k == 4);
    CU_ASSERT(q->params.seed == 42 && q->params.min_tokens == 2 && q->params.n == 2);
    CU_ASSERT(s->engine->last_bias[0].id == 7 && s->engine->last_bad[1] == 'n');
    CU_ASSERT(q->stop_ids[0] == 9 && q->priority == 4 && q->deadline_ns == SP_NEVER);
    CU_ASSERT_STRING_EQUAL(q->cache_salt, "pepper");
    r = site_ask(s, "POST", TEXT, "X-Vllm-Priority: 4\r\n", "{\"prompt\":\"a\",\"priority\":-1}");
    CU_ASSERT_EQUAL(s->engine->last.priority, -1);
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":\"a\",\"request_id\":\"from<body\"}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"id\":\"cmpl-frombody\""));
    reply_fini(&r);
    site_close(s);
}

/* ---- blocks of the prompt, from pod to pod ---- */

#define LEND "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_block_ids\":null}"

static char secret[] = "one", other_secret[] = "two";

static site *site_of(sp_server_kv *kv, char *key, bool recompute, int lent) {
    sp_server_config c = site_config();
    sp_fake_engine_config f = {.kv_blocks = lent};
    *kv = sp_fake_kv(key);
    kv->recompute = recompute;
    c.kv = kv;
    return site_open(&c, &f);
}

static reply ask_with(const site *s, const char *more, const char *params) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_printf(&b, "{\"prompt\":\"a\"%s,\"kv_transfer_params\":%s}", more, params);
    reply r = site_ask(s, "POST", TEXT, "X-Request-Id: leg\r\n", b.ptr);
    sp_buf_fini(&b);
    return r;
}

/* What an answer says for the other pod, as a sidecar copies it. Owner: caller, sp_free(). */
static char *params_of(const char *answer) {
    sp_json *doc = site_json(answer);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_node(&w, json_path(sp_json_root(doc), "kv_transfer_params"));
    sp_json_free(doc);
    return b.ptr;
}

static void blocks_that_one_server_lends_reach_the_other_s_engine(void) {
    sp_server_kv kp, kd;
    site *p = site_of(&kp, secret, false, 3), *d = site_of(&kd, secret, false, 0);
    reply r = ask_with(p, ",\"max_tokens\":1", LEND);
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT(p->engine->last.keep_kv && !p->engine->last_import.there);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"id\":\"cmpl-leg\""));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"remote_request_id\":\"cmpl-leg\""));
    char *params = params_of(r.body), port[40];
    snprintf(port, sizeof port, "\"remote_port\":%d,", p->port);
    CU_ASSERT_PTR_NOT_NULL(strstr(params, port));
    reply_fini(&r);

    r = ask_with(d, ",\"stream\":true", params);
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"id\":\"cmpl-leg\""));
    CU_ASSERT_PTR_NULL(strstr(r.body, "kv_transfer_params"));
    const fake_import *got = &d->engine->last_import;
    CU_ASSERT_FALSE(d->engine->last.keep_kv);
    CU_ASSERT_FATAL(got->there && got->handle);
    CU_ASSERT_STRING_EQUAL(got->engine, "00112233445566778899aabbccddeeff-1");
    CU_ASSERT_PTR_NOT_NULL(strstr(got->source, "\"g1\""));
    CU_ASSERT(got->must && got->handle->lease == 0xfedcba9876543210u && got->handle->group == 1);
    CU_ASSERT(got->handle->n_blocks == 3 && got->handle->n_tokens == 48);
    CU_ASSERT(got->handle->blocks[2].block == 2 && got->handle->blocks[2].generation == 1002 &&
              got->handle->blocks[2].name == 0x8000000000000003u);
    reply_fini(&r);
    /* The next one brings nothing, and so has nothing. */
    r = ask_with(d, "", "null");
    CU_ASSERT(r.status == 200 && !d->engine->last_import.there);
    reply_fini(&r);
    sp_free(params);
    site_close(p);
    site_close(d);
}

/* A handle comes with the very last event, whatever ended the choices before it. */
static void what_is_lent_is_told_once_however_the_answer_ends(void) {
    static const struct {
        const char *more;
        bool lent;
    } rows[] = {
        {"", true},
        {",\"max_tokens\":0,\"echo\":true", true},
        {",\"n\":3", true},
        {",\"stop\":\"o\",\"max_tokens\":5", true},      /* found in the engine's last event */
        {",\"stop\":\"ll\",\"ignore_eos\":true", false}, /* the engine is stopped by us */
        {",\"stream\":true", true},
        {",\"stream\":true,\"n\":3", true},
        {",\"stream\":true,\"stream_options\":{\"include_usage\":true}", true},
        {",\"stream\":true,\"echo\":true,\"logprobs\":1,\"max_tokens\":0,\"n\":2", true},
    };
    sp_server_kv kv;
    site *s = site_of(&kv, secret, false, 2);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = ask_with(s, rows[i].more, LEND);
        CU_ASSERT_EQUAL(r.status, 200);
        const char *at = r.body ? strstr(r.body, "\"kv_transfer_params\":{") : NULL;
        if (!at) fprintf(stderr, "%s: %s\n", rows[i].more, r.body);
        CU_ASSERT_PTR_NOT_NULL_FATAL(at);
        CU_ASSERT_PTR_NULL(strstr(at + 2, "\"kv_transfer_params"));
        const char *want = rows[i].lent ? "\"remote_block_ids\":[0,1]" : "\"remote_block_ids\":[]";
        /* Cancelled too late, the engine may have ended it itself. */
        CU_ASSERT(strstr(at, want) || !rows[i].lent);
        reply_fini(&r);
    }
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    site_close(s);
}

static void nothing_is_lent_of_what_failed(void) {
    sp_server_config c = site_config();
    sp_server_kv kv = sp_fake_kv(secret);
    sp_fake_engine_config f = {.kv_blocks = 2, .fail_after = 2};
    c.kv = &kv;
    site *s = site_open(&c, &f);
    for (int streamed = 0; streamed < 2; streamed++) {
        reply r = ask_with(s, streamed ? ",\"stream\":true" : "", LEND);
        CU_ASSERT_PTR_NULL(strstr(r.body, "kv_transfer_params"));
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"error\""));
        reply_fini(&r);
    }
    site_close(s);
}

static bool has_count(const site *s, const char *reason, int n) {
    char want[200];
    reply r = site_get(s, "/metrics");
    snprintf(
        want, sizeof want,
        "superpod:kv_handles_refused_total{reason=\"%s\",engine=\"0\",model_name=\"tiny\"} %d\n",
        reason, n);
    bool has = strstr(r.body, want) != NULL;
    if (!has) fprintf(stderr, "missing: %s", want);
    reply_fini(&r);
    return has;
}

static void blocks_of_a_stranger_are_refused_or_computed_and_counted(void) {
    sp_server_kv kp, kd;
    site *p = site_of(&kp, other_secret, false, 3);
    reply r = ask_with(p, "", LEND);
    char *params = params_of(r.body);
    reply_fini(&r);
    static const char vllm[] = "{\"do_remote_prefill\":true,\"remote_engine_id\":\"e\","
                               "\"remote_block_ids\":[1,2],\"remote_port\":5600}";
    static const char wrong[] = "{\"do_remote_prefill\":true,\"superpod\":[]}";
    for (int recompute = 0; recompute < 2; recompute++) {
        site *d = site_of(&kd, secret, recompute, 0);
        r = ask_with(d, "", params);
        CU_ASSERT_EQUAL(r.status, recompute ? 200 : 400);
        CU_ASSERT_PTR_NOT_NULL(
            strstr(r.body, recompute ? "\"text\":\"hello\"" : "--kv-secret-file"));
        reply_fini(&r);
        r = ask_with(d, "", vllm);
        CU_ASSERT_EQUAL(r.status, recompute ? 200 : 400);
        reply_fini(&r);
        r = ask_with(d, "", wrong);
        CU_ASSERT_EQUAL(r.status, 400);
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"param\":\"kv_transfer_params.superpod\""));
        reply_fini(&r);
        CU_ASSERT(!d->engine->last_import.there);
        CU_ASSERT_EQUAL(d->engine->n_submitted, recompute ? 2 : 0);
        CU_ASSERT(has_count(d, "mac", 1) && has_count(d, "foreign", 1));
        CU_ASSERT(has_count(d, "malformed", 1) && has_count(d, "expired", 0));
        site_close(d);
    }
    sp_free(params);
    site_close(p);
}

static void a_server_alone_says_what_it_lacks(void) {
    site *s = site_open(NULL, NULL);
    reply r = ask_with(s, "", LEND);
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "--kv-secret-file"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"param\":\"kv_transfer_params\""));
    reply_fini(&r);
    r = ask_with(s, "", "{\"do_remote_decode\":false}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NULL(strstr(r.body, "kv_transfer_params"));
    reply_fini(&r);
    site_close(s);
}

static void bodies_that_are_not_requests_are_400(void) {
    static const char *const rows[] = {"",
                                       "{",
                                       "[]",
                                       "5",
                                       "\"x\"",
                                       "{\"prompt\":\"a\",}",
                                       "{\"prompt\":\"a\",\"prompt\":\"b\"}",
                                       "{\"prompt\":\"\\ud800\"}",
                                       "{\"prompt\":\"\xff\"}",
                                       "nul",
                                       "{\"prompt\":\"a\"} x"};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_post(s, TEXT, rows[i]);
        if (r.status != 400) fprintf(stderr, "%s -> %d\n", rows[i], r.status);
        CU_ASSERT_EQUAL(r.status, 400);
        sp_json *doc = site_json(r.body);
        CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), "error.type"), "BadRequestError");
        sp_json_free(doc);
        reply_fini(&r);
    }
    sp_buf bomb;
    sp_buf_init(&bomb, 0);
    sp_buf_puts(&bomb, "{\"prompt\":");
    for (int i = 0; i < 200000; i++) sp_buf_putc(&bomb, '[');
    reply r = site_post(s, TEXT, bomb.ptr);
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "deeper than 64"));
    reply_fini(&r);
    sp_buf_fini(&bomb);
    site_close(s);
}

static void a_quiet_stream_is_pinged_and_still_complete(void) {
    sp_fake_engine_config f = {.paused = true};
    sp_server_config c = site_config();
    c.ping_ms = 50;
    site *s = site_open(&c, &f);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    int fd = ask(s, "{\"prompt\":\"a\",\"stream\":true}");
    CU_ASSERT(site_read_until(fd, &raw, ": ping\n\n"));
    sp_fake_engine_pause(s->engine, false);
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT(r.whole);
    stream *st = stream_of(r.body);
    CU_ASSERT(st->done && st->pings >= 1);
    char *text = stream_text(st, 0, "text");
    CU_ASSERT_STRING_EQUAL(text, "hello");
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void a_request_that_takes_too_long_is_ended(void) {
    sp_fake_engine_config f = {.paused = true};
    sp_server_config c = site_config();
    c.request_timeout_ms = 100;
    site *s = site_open(&c, &f);
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "time limit"));
    reply_fini(&r);
    CU_ASSERT(sp_fake_engine_wait_aborted(s->engine, 1));
    site_close(s);
}

static void many_streams_at_once_are_all_whole(void) {
    enum {
        N = 200
    };
    sp_fake_engine_config f = {.script = "The quick brown fox jumps over the lazy dog"};
    site *s = site_open(NULL, &f);
    int fds[N];
    for (int i = 0; i < N; i++)
        fds[i] = ask(s, "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":100}");
    for (int i = 0; i < N; i++) {
        sp_buf raw;
        sp_buf_init(&raw, 0);
        reply r = site_read_reply(fds[i], &raw, false);
        CU_ASSERT_EQUAL(r.status, 200);
        stream *st = stream_of(r.body);
        CU_ASSERT(st->done);
        if (i % 40 == 0) {
            char *text = stream_text(st, 0, "text");
            CU_ASSERT_STRING_EQUAL(text, f.script);
            sp_free(text);
        }
        stream_free(st);
        reply_fini(&r);
        sp_buf_fini(&raw);
        close(fds[i]);
    }
    site_close(s);
}

static void mutated_bodies_are_answered_one_by_one(void) {
    static const char *const seeds[] = {
        "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"max_tokens\":3,\"logprobs\":2,\"echo\":true,\"stop\":["
        "\"x\"]}",
        "{\"prompt\":[[1,2],[3]],\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"seed\":1}",
        "{\"prompt\":\"a\",\"logit_bias\":{\"5\":1.5},\"bad_words\":[\"b\"],\"allowed_token_ids\":["
        "1,2],"
        "\"temperature\":0.5,\"truncate_prompt_tokens\":1}",
    };
    static const char spice[] = "{}[]\",:0159-.eE\\ntfu\x80\xc3";
    site *s = site_open(NULL, NULL);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    int fd = site_connect(s);
    uint64_t x = 0x2545f4914f6cdd1du;
    for (int round = 0; round < 1500; round++) {
        char body[400];
        snprintf(body, sizeof body, "%s", seeds[round % 3]);
        size_t n = strlen(body);
        for (int k = 0; k < 1 + round % 3; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            body[(x >> 16) % n] = spice[x % (sizeof spice - 1)];
        }
        char *text = site_request("POST", TEXT, "", body);
        CU_ASSERT_FATAL(site_send(fd, text));
        sp_free(text);
        reply r = site_read_reply(fd, &raw, false);
        if (r.status != 200 && r.status != 400) fprintf(stderr, "%d: %s\n", r.status, body);
        CU_ASSERT(r.whole && (r.status == 200 || r.status == 400));
        reply_fini(&r);
    }
    close(fd);
    sp_buf_fini(&raw);
    site_close(s);
}

/* What each of these asks may take 1..n allocations; any one of them may find no memory. */
static void a_lack_of_memory_at_any_place_is_survived(void) {
    static const char *const bodies[] = {
        "{\"prompt\":[\"a\",\"b\"],\"logprobs\":1,\"echo\":true,\"stop\":\"q\",\"max_tokens\":2}",
        "{\"prompt\":\"a\",\"stream\":true,\"logprobs\":1,\"max_tokens\":2,\"return_token_ids\":"
        "true}",
        "{\"prompt\":\"a\",\"kv_transfer_params\":" LEND "}",
        "{\"prompt\":\"a\",\"stream\":true,\"kv_transfer_params\":" LEND "}"};
    sp_server_kv kv;
    site *s = site_of(&kv, secret, false, 3);
    for (size_t k = 0; k < SP_LEN(bodies); k++)
        for (int n = 1; n < 120; n++) {
            char *text = site_request("POST", TEXT, "", bodies[k]);
            int fd = site_connect(s);
            sp_mem_fail_at(n);
            site_send(fd, text);
            char piece[4096];
            /* Any answer, or a close: never a hang. */
            ssize_t got = recv(fd, piece, sizeof piece, 0);
            if (got < 0 && errno == EAGAIN) fprintf(stderr, "allocation %d: no answer\n", n);
            CU_ASSERT(got >= 0 || errno != EAGAIN);
            sp_mem_fail_at(0);
            close(fd);
            sp_free(text);
        }
    reply r = site_post(s, TEXT, "{\"prompt\":\"a\"}");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, 0));
    site_close(s);
}

SP_TEST_MAIN("frontend/generate", SP_TEST(a_lack_of_memory_at_any_place_is_survived),
             SP_TEST(mutated_bodies_are_answered_one_by_one),
             SP_TEST(a_client_that_leaves_while_waiting_is_cancelled),
             SP_TEST(a_client_that_leaves_a_stream_is_cancelled),
             SP_TEST(clients_that_leave_at_any_moment_leave_nothing_behind),
             SP_TEST(a_stop_string_ends_the_engines_work_too),
             SP_TEST(a_failure_before_the_first_byte_is_a_status),
             SP_TEST(a_failure_in_a_stream_is_an_error_chunk_and_done),
             SP_TEST(a_full_engine_is_429_with_a_time_to_come_back),
             SP_TEST(the_servers_own_caps_are_429_too), SP_TEST(an_unavailable_engine_is_503),
             SP_TEST(an_unknown_model_is_404_in_known_words),
             SP_TEST(a_prompt_too_long_is_told_in_words_that_clients_match),
             SP_TEST(a_chat_without_a_limit_may_use_what_is_left_of_the_context),
             SP_TEST(blocks_that_one_server_lends_reach_the_other_s_engine),
             SP_TEST(what_is_lent_is_told_once_however_the_answer_ends),
             SP_TEST(nothing_is_lent_of_what_failed),
             SP_TEST(blocks_of_a_stranger_are_refused_or_computed_and_counted),
             SP_TEST(a_server_alone_says_what_it_lacks), SP_TEST(parameters_reach_the_engine),
             SP_TEST(bodies_that_are_not_requests_are_400),
             SP_TEST(a_quiet_stream_is_pinged_and_still_complete),
             SP_TEST(a_request_that_takes_too_long_is_ended),
             SP_TEST(many_streams_at_once_are_all_whole))
