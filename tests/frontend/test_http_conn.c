/* Covers frontend/http_conn.c: one connection's life, as a client sees it. */
#include "tests/frontend/site.h"

#define POST_HEAD \
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

static void malformed_requests_get_their_status_and_the_connection_closes(void) {
    static const struct {
        const char *text;
        int status;
    } rows[] = {
        {"GET /health HTTP/1.1\r\n\r\n", 400},
        {"GET /health HTTP/1.1\nHost: localhost\n\n", 400},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
        {"GET /health HTTP/3.0\r\nHost: localhost\r\n\r\n", 505},
        {"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 501},
        {"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
        {POST_HEAD "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400},
        {POST_HEAD "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {POST_HEAD "Transfer-Encoding: gzip\r\n\r\n", 400},
        {POST_HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
        {POST_HEAD "Content-Length: -5\r\n\r\n", 400},
        {POST_HEAD "Content-Length: 999999999999\r\n\r\n", 413},
        {POST_HEAD "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415},
    };
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        int fd = site_connect(s);
        sp_buf raw;
        sp_buf_init(&raw, 0);
        site_send(fd, rows[i].text);
        reply r = site_read_reply(fd, &raw, false);
        if (r.status != rows[i].status) fprintf(stderr, "row %zu: got %d\n", i, r.status);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        sp_json *doc = site_json(r.body);
        CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "error.code")), rows[i].status);
        sp_json_free(doc);
        if (rows[i].status != 415) {
            CU_ASSERT_STRING_EQUAL(reply_header(&r, "Connection"), "close");
            CU_ASSERT_FALSE(site_more(fd, &raw));
        }
        reply_fini(&r);
        sp_buf_fini(&raw);
        close(fd);
    }
    site_close(s);
}

static void a_connection_serves_many_requests_one_after_another(void) {
    site *s = site_open(NULL, NULL);
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    for (int i = 0; i < 50; i++) {
        char *text = i % 2 ? site_request("POST", "/v1/completions", "", "{\"prompt\":\"a\"}")
                           : site_request("GET", "/version", "", NULL);
        site_send(fd, text);
        sp_free(text);
        reply r = site_read_reply(fd, &raw, false);
        CU_ASSERT_EQUAL(r.status, 200);
        CU_ASSERT(r.whole);
        CU_ASSERT_PTR_NULL(reply_header(&r, "Connection"));
        reply_fini(&r);
    }
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void http_1_0_closes_unless_asked_and_streams_until_the_close(void) {
    site *s = site_open(NULL, NULL);
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    site_send(fd, "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Connection"), "keep-alive");
    reply_fini(&r);
    const char *json = "{\"prompt\":\"a\",\"stream\":true}";
    char text[300];
    snprintf(text, sizeof text,
             "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nConnection: "
             "keep-alive\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(json), json);
    site_send(fd, text);
    r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NULL(reply_header(&r, "Transfer-Encoding"));
    stream *st = stream_of(r.body);
    CU_ASSERT(st->done);
    char *said = stream_text(st, 0, "text");
    CU_ASSERT_STRING_EQUAL(said, "hello");
    sp_free(said);
    stream_free(st);
    reply_fini(&r);
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void head_has_the_headers_of_get_and_no_body(void) {
    site *s = site_open(NULL, NULL);
    reply get = site_get(s, "/version"), head = site_ask(s, "HEAD", "/version", "", NULL);
    CU_ASSERT_EQUAL(head.status, 200);
    CU_ASSERT_EQUAL(head.n_body, 0);
    char want[32];
    snprintf(want, sizeof want, "%zu", get.n_body);
    CU_ASSERT_STRING_EQUAL(reply_header(&head, "Content-Length"), want);
    reply_fini(&get);
    reply_fini(&head);
    site_close(s);
}

static void a_body_may_come_chunked_and_in_pieces(void) {
    site *s = site_open(NULL, NULL);
    static const char text[] =
        POST_HEAD "Transfer-Encoding: chunked\r\n\r\n"
                  "5\r\n{\"pro\r\nA;x=y\r\nmpt\": \"ab\"\r\n1\r\n}\r\n0\r\n\r\n";
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    for (size_t i = 0; i < sizeof text - 1; i++) site_send_n(fd, text + i, 1);
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void a_client_that_asks_before_sending_is_told_to_go_on(void) {
    site *s = site_open(NULL, NULL);
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    site_send(fd, POST_HEAD "Content-Length: 14\r\nExpect: 100-continue\r\n\r\n");
    CU_ASSERT(site_read_until(fd, &raw, "HTTP/1.1 100 Continue\r\n\r\n"));
    sp_buf_clear(&raw);
    site_send(fd, "{\"prompt\":\"a\"}");
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    sp_buf_fini(&raw);
    close(fd);
    site_close(s);
}

static void a_body_over_the_limit_is_413_and_the_client_can_read_that(void) {
    site *s = site_open(NULL, NULL);
    size_t n = (size_t)10 << 20;
    char *body = sp_alloc(n);
    memset(body, ' ', n);
    char head[300];
    for (int chunked = 0; chunked < 2; chunked++) {
        int fd = site_connect(s);
        sp_buf raw;
        sp_buf_init(&raw, 0);
        if (chunked)
            snprintf(head, sizeof head, POST_HEAD "Transfer-Encoding: chunked\r\n\r\n%zx\r\n", n);
        else
            snprintf(head, sizeof head, POST_HEAD "Content-Length: %zu\r\n\r\n", n);
        site_send(fd, head);
        /* All of it is sent before the answer is read: the server must not reset meanwhile. */
        CU_ASSERT(site_send_n(fd, body, n));
        reply r = site_read_reply(fd, &raw, false);
        CU_ASSERT_EQUAL(r.status, 413);
        reply_fini(&r);
        sp_buf_fini(&raw);
        close(fd);
    }
    sp_free(body);
    site_close(s);
}

static void requests_pipelined_behind_a_waiting_one_are_served_after_it(void) {
    sp_fake_engine_config paused = {.paused = true};
    site *s = site_open(NULL, &paused);
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    char *post = site_request("POST", "/v1/completions", "", "{\"prompt\":\"a\"}");
    site_send(fd, post);
    CU_ASSERT(sp_fake_engine_wait_submitted(s->engine, 1));
    /* Far more than is kept while an answer is pending. */
    const char *get = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    sp_buf many;
    sp_buf_init(&many, 0);
    for (int i = 0; i < 3000; i++) sp_buf_puts(&many, get);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    size_t sent = 0;
    while (sent < many.len) {
        ssize_t n = send(fd, many.ptr + sent, many.len - sent, MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += (size_t)n;
    }
    fcntl(fd, F_SETFL, 0);
    CU_ASSERT(sent > 64 * 1024);
    reply other = site_get(s, "/health");
    CU_ASSERT_EQUAL(other.status, 200);
    reply_fini(&other);
    sp_fake_engine_pause(s->engine, false);
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "text_completion"));
    reply_fini(&r);
    for (size_t i = 0; i < sent / strlen(get); i++) {
        r = site_read_reply(fd, &raw, false);
        CU_ASSERT_EQUAL_FATAL(r.status, 200);
        reply_fini(&r);
    }
    sp_buf_fini(&many);
    sp_buf_fini(&raw);
    sp_free(post);
    close(fd);
    site_close(s);
}

static void slow_heads_and_slow_bodies_are_408_and_idle_connections_are_closed(void) {
    sp_server_config c = site_config();
    c.header_timeout_ms = 150;
    c.idle_timeout_ms = 300;
    site *s = site_open(&c, NULL);
    int fd = site_connect(s), idle = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    site_send(fd, "GET /health HT");
    reply r = site_read_reply(fd, &raw, false);
    CU_ASSERT_EQUAL(r.status, 408);
    reply_fini(&r);
    CU_ASSERT_FALSE(site_more(idle, &raw));
    close(fd);
    close(idle);
    sp_buf_fini(&raw);
    site_close(s);
}

static void a_reader_that_takes_nothing_is_cut_and_neighbours_feel_nothing(void) {
    sp_server_config c = site_config();
    c.max_unsent_bytes = 64 * 1024;
    sp_fake_engine_config endless = {.script = "0123456789abcdef", .max_model_len = 1 << 30};
    site *s = site_open(&c, &endless);
    int fd = site_connect(s);
    int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    char *text =
        site_request("POST", "/v1/completions", "",
                     "{\"prompt\":\"a\",\"stream\":true,\"ignore_eos\":true,\"max_tokens\":"
                     "1000000000}");
    site_send(fd, text);
    /* Never read: the engine must see the request cancelled. */
    CU_ASSERT(sp_fake_engine_wait_aborted(s->engine, 1));
    reply r = site_get(s, "/metrics");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "superpod:http_slow_readers_cut_total{engine=\"0\","
                                          "model_name=\"tiny\"} 1\n"));
    reply_fini(&r);
    sp_free(text);
    close(fd);
    site_close(s);
}

static void a_stalled_reader_of_little_is_cut_in_time(void) {
    sp_server_config c = site_config();
    c.stall_timeout_ms = 200;
    c.max_unsent_bytes = (size_t)1 << 30;
    sp_fake_engine_config endless = {.script = "0123456789abcdef", .max_model_len = 1 << 30};
    site *s = site_open(&c, &endless);
    int fd = site_connect(s);
    char *text =
        site_request("POST", "/v1/completions", "",
                     "{\"prompt\":\"a\",\"stream\":true,\"ignore_eos\":true,\"max_tokens\":"
                     "1000000000}");
    site_send(fd, text);
    CU_ASSERT(sp_fake_engine_wait_aborted(s->engine, 1));
    sp_free(text);
    close(fd);
    site_close(s);
}

static void random_garbage_never_harms_the_server(void) {
    static const char *const seeds[] = {
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST_HEAD "Content-Length: 14\r\n\r\n{\"prompt\":\"a\"}",
        POST_HEAD "Transfer-Encoding: chunked\r\n\r\nE\r\n{\"prompt\":\"a\"}\r\n0\r\n\r\n",
    };
    site *s = site_open(NULL, NULL);
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (int round = 0; round < 600; round++) {
        char bytes[1024];
        const char *seed = seeds[round % 3];
        size_t n = strlen(seed);
        memcpy(bytes, seed, n);
        for (int k = 0; k < 1 + round % 7; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            bytes[(x >> 8) % n] = (char)x;
        }
        int fd = site_connect(s);
        /* In two pieces, then gone, half of the times with something unread. */
        site_send_n(fd, bytes, n / 2);
        site_send_n(fd, bytes + n / 2, n - n / 2);
        if (round % 2) shutdown(fd, SHUT_WR);
        char sink[512];
        if (round % 3 == 0) (void)!recv(fd, sink, sizeof sink, MSG_DONTWAIT);
        close(fd);
    }
    reply r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    site_close(s);
}

static void the_request_id_is_cleaned_and_sent_back(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_ask(s, "GET", "/version", "X-Request-Id: a<b>\"c d\\e-1\r\n", NULL);
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "X-Request-Id"), "abcde-1");
    reply_fini(&r);
    r = site_get(s, "/version");
    CU_ASSERT_EQUAL(strlen(reply_header(&r, "X-Request-Id")), 32);
    reply_fini(&r);
    site_close(s);
}

SP_TEST_MAIN("frontend/http_conn",
             SP_TEST(malformed_requests_get_their_status_and_the_connection_closes),
             SP_TEST(a_connection_serves_many_requests_one_after_another),
             SP_TEST(http_1_0_closes_unless_asked_and_streams_until_the_close),
             SP_TEST(head_has_the_headers_of_get_and_no_body),
             SP_TEST(a_body_may_come_chunked_and_in_pieces),
             SP_TEST(a_client_that_asks_before_sending_is_told_to_go_on),
             SP_TEST(a_body_over_the_limit_is_413_and_the_client_can_read_that),
             SP_TEST(requests_pipelined_behind_a_waiting_one_are_served_after_it),
             SP_TEST(slow_heads_and_slow_bodies_are_408_and_idle_connections_are_closed),
             SP_TEST(a_reader_that_takes_nothing_is_cut_and_neighbours_feel_nothing),
             SP_TEST(a_stalled_reader_of_little_is_cut_in_time),
             SP_TEST(random_garbage_never_harms_the_server),
             SP_TEST(the_request_id_is_cleaned_and_sent_back))
