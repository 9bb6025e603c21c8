/* Covers launcher/http_client.c: responses and event streams, split at every byte. */
#include "launcher/http_client.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sp_response r;

static void append(void *ctx, sp_slice piece) {
    sp_buf_put_slice(ctx, piece);
}

/* Feeds `text` in pieces of at most `step` bytes, as long as more is wanted. Answers the bytes that
 * were used and the last status. */
static size_t feed(const char *text, size_t n, size_t step, sp_buf *body, sp_status *st,
                   sp_err *err) {
    size_t at = 0, used = 0;
    sp_response_init(&r);
    sp_buf_clear(body);
    *st = SP_AGAIN;
    while (at < n && *st == SP_AGAIN) {
        size_t len = n - at < step ? n - at : step;
        /* A copy of its own, so that a sanitizer sees a read beyond it. */
        char *piece = malloc(len);
        memcpy(piece, text + at, len);
        *st = sp_response_feed(&r, (sp_slice){piece, len}, &used, append, body, err);
        free(piece);
        at += used;
        if (*st < 0) break;
    }
    return at;
}

static const char chunked[] =
    "HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n"
    "Content-Type: text/event-stream; charset=utf-8\r\n\r\n"
    "5\r\nhello\r\n1;ext=1\r\n \r\nA\r\n0123456789\r\n000\r\nTrailer: 1\r\n\r\n";

static void a_chunked_body_is_the_same_however_it_is_cut(void) {
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t step = 1; step <= sizeof chunked; step++) {
        sp_status st;
        CU_ASSERT_EQUAL(feed(chunked, sizeof chunked - 1, step, &body, &st, NULL),
                        sizeof chunked - 1);
        CU_ASSERT_EQUAL(st, SP_OK);
        CU_ASSERT(sp_slice_is(sp_buf_slice(&body), "hello 0123456789"));
        CU_ASSERT_EQUAL(r.status, 200);
        CU_ASSERT(r.is_events && r.keeps_alive);
        CU_ASSERT_EQUAL(sp_response_end(&r, NULL), SP_OK);
    }
    sp_buf_fini(&body);
}

static void a_body_cut_in_two_at_every_byte_is_the_same(void) {
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t cut = 0; cut < sizeof chunked - 1; cut++) {
        size_t used;
        sp_response_init(&r);
        sp_buf_clear(&body);
        CU_ASSERT_EQUAL(sp_response_feed(&r, (sp_slice){chunked, cut}, &used, append, &body, NULL),
                        SP_AGAIN);
        CU_ASSERT_EQUAL(used, cut);
        CU_ASSERT_EQUAL(sp_response_feed(&r, (sp_slice){chunked + cut, sizeof chunked - 1 - cut},
                                         &used, append, &body, NULL),
                        SP_OK);
        CU_ASSERT(sp_slice_is(sp_buf_slice(&body), "hello 0123456789"));
    }
    sp_buf_fini(&body);
}

static void a_body_by_length_leaves_what_follows(void) {
    static const char two[] =
        "HTTP/1.1 429 Too Many\r\ncontent-LENGTH:  7 \r\n\r\n{\"a\":1}HTTP/1.1 200";
    sp_buf body;
    sp_status st;
    sp_buf_init(&body, 0);
    CU_ASSERT_EQUAL(feed(two, sizeof two - 1, 1000, &body, &st, NULL), sizeof two - 1 - 12);
    CU_ASSERT_EQUAL(st, SP_OK);
    CU_ASSERT_EQUAL(r.status, 429);
    CU_ASSERT(sp_slice_is(sp_buf_slice(&body), "{\"a\":1}"));
    sp_buf_fini(&body);
}

static void a_body_without_length_goes_on_until_the_end(void) {
    static const char text[] = "HTTP/1.0 200 OK\nX: y\n\nabc\r\ndef";
    sp_buf body;
    sp_status st;
    sp_buf_init(&body, 0);
    feed(text, sizeof text - 1, 3, &body, &st, NULL);
    CU_ASSERT_EQUAL(st, SP_AGAIN);
    CU_ASSERT(!r.keeps_alive);
    CU_ASSERT_EQUAL(sp_response_end(&r, NULL), SP_OK);
    CU_ASSERT(sp_slice_is(sp_buf_slice(&body), "abc\r\ndef"));
    sp_buf_fini(&body);
}

static void responses_without_a_body_end_with_their_headers(void) {
    static const char *const texts[] = {
        "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 204 x\r\n\r\n"};
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t i = 0; i < SP_LEN(texts); i++) {
        sp_status st;
        CU_ASSERT_EQUAL(feed(texts[i], strlen(texts[i]), 1, &body, &st, NULL), strlen(texts[i]));
        CU_ASSERT_EQUAL(st, SP_OK);
        CU_ASSERT_EQUAL(body.len, 0);
        CU_ASSERT(r.status >= 200);
    }
    sp_buf_fini(&body);
}

static void a_connection_is_kept_when_both_want_it(void) {
    static const struct {
        const char *text;
        bool keeps;
    } cases[] = {{"HTTP/1.1 204 x\r\n\r\n", true},
                 {"HTTP/1.1 204 x\r\nConnection: close\r\n\r\n", false},
                 {"HTTP/1.0 204 x\r\n\r\n", false},
                 {"HTTP/1.0 204 x\r\nconnection: Keep-Alive\r\n\r\n", true}};
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_status st;
        feed(cases[i].text, strlen(cases[i].text), 7, &body, &st, NULL);
        CU_ASSERT_EQUAL(st, SP_OK);
        CU_ASSERT_EQUAL(r.keeps_alive, cases[i].keeps);
    }
    sp_buf_fini(&body);
}

static void what_is_no_response_is_refused(void) {
    static const struct {
        const char *text;
        sp_status want;
    } cases[] = {
        {"HTTP/2 200 OK\r\n", SP_E_FORMAT},
        {"HTTP/1.1 20 OK\r\n", SP_E_FORMAT},
        {"HTTP/1.1 2000 OK\r\n", SP_E_FORMAT},
        {"HTTP/1.1 099 OK\r\n", SP_E_FORMAT},
        {"ICY 200 OK\r\n\r\n", SP_E_FORMAT},
        {"\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nno colon\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\n: no name\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: \r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n", SP_E_UNSUPPORTED},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1 2\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", SP_E_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", SP_E_FORMAT}};
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t i = 0; i < SP_LEN(cases); i++)
        for (size_t step = 1; step < 100; step += 33) {
            sp_status st;
            sp_err err = {0};
            feed(cases[i].text, strlen(cases[i].text), step, &body, &st, &err);
            CU_ASSERT_EQUAL(st, cases[i].want);
            if (st != cases[i].want) fprintf(stderr, "case %zu: %s\n", i, cases[i].text);
            CU_ASSERT(err.text[0] != 0);
        }
    sp_buf_fini(&body);
}

static void lines_and_headers_have_a_maximum(void) {
    sp_buf text, body;
    sp_status st;
    sp_buf_init(&text, 0);
    sp_buf_init(&body, 0);
    sp_buf_puts(&text, "HTTP/1.1 200 OK\r\nA: ");
    for (int i = 0; i < SP_HTTP_LINE_MAX; i++) sp_buf_putc(&text, 'x');
    feed(text.ptr, text.len, 1000, &body, &st, NULL);
    CU_ASSERT_EQUAL(st, SP_E_TOOLONG);
    sp_buf_clear(&text);
    sp_buf_puts(&text, "HTTP/1.1 200 OK\r\n");
    while (text.len < SP_HTTP_HEAD_MAX) sp_buf_puts(&text, "Name: value\r\n");
    feed(text.ptr, text.len, 1000, &body, &st, NULL);
    CU_ASSERT_EQUAL(st, SP_E_TOOLONG);
    sp_buf_fini(&text);
    sp_buf_fini(&body);
}

static void an_end_in_the_middle_is_told(void) {
    sp_buf body;
    sp_buf_init(&body, 0);
    for (size_t n = 0; n < sizeof chunked - 1; n++) {
        sp_status st;
        sp_err err = {0};
        feed(chunked, n, 1000, &body, &st, NULL);
        CU_ASSERT_EQUAL(sp_response_end(&r, &err), SP_E_CLOSED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "closed"));
    }
    sp_buf_fini(&body);
}

static void append_event(void *ctx, sp_slice data) {
    sp_buf_putc(ctx, '[');
    sp_buf_put_slice(ctx, data);
    sp_buf_putc(ctx, ']');
}

static const char stream[] =
    "data: one\n\n: a comment\ndata:two\r\n\r\nevent: ping\nid: 7\n\ndata: a\ndata:  b\ndata\n\n"
    "data\rdata: cr\r\rdatum: no\n\ndata: {\"x\":\"\\n\"}\r\n\r\n\n\ndata: [DONE]\n\ndata: cut "
    "off\n";
static const char events[] = "[one][two][a\n b\n][\ncr][{\"x\":\"\\n\"}][[DONE]]";

static void events_are_the_same_however_the_lines_are_cut(void) {
    sp_events e;
    sp_buf got;
    sp_events_init(&e);
    sp_buf_init(&got, 0);
    for (size_t step = 1; step <= sizeof stream; step++) {
        sp_events_clear(&e);
        sp_buf_clear(&got);
        for (size_t at = 0; at < sizeof stream - 1; at += step) {
            size_t n = sizeof stream - 1 - at < step ? sizeof stream - 1 - at : step;
            CU_ASSERT_EQUAL(
                sp_events_feed(&e, (sp_slice){stream + at, n}, append_event, &got, NULL), SP_OK);
        }
        CU_ASSERT(sp_slice_is(sp_buf_slice(&got), events));
    }
    for (size_t cut = 0; cut < sizeof stream; cut++) {
        sp_events_clear(&e);
        sp_buf_clear(&got);
        (void)!sp_events_feed(&e, (sp_slice){stream, cut}, append_event, &got, NULL);
        (void)!sp_events_feed(&e,
                              (sp_slice){stream + cut, sizeof stream - 1 - cut < sizeof stream
                                                           ? sizeof stream - 1 - cut
                                                           : 0},
                              append_event, &got, NULL);
        CU_ASSERT(sp_slice_is(sp_buf_slice(&got), events));
    }
    sp_events_fini(&e);
    sp_buf_fini(&got);
}

static void an_event_has_a_maximum(void) {
    sp_events e;
    sp_buf got;
    sp_events_init(&e);
    sp_buf_init(&got, 0);
    size_t n = (size_t)1 << 20;
    char *x = malloc(n);
    memset(x, 'x', n);
    sp_status st = SP_OK;
    int fed = 0;
    while (st == SP_OK && fed < 10) {
        st = sp_events_feed(&e, (sp_slice){x, n}, append_event, &got, NULL);
        fed++;
    }
    CU_ASSERT_EQUAL(st, SP_E_TOOLONG);
    CU_ASSERT(fed == 5 || fed == 4);
    free(x);
    sp_events_fini(&e);
    sp_buf_fini(&got);
}

static void urls_are_taken_apart(void) {
    static const struct {
        const char *text, *host, *port, *path;
    } good[] = {{"http://localhost:8000", "localhost", "8000", ""},
                {"HTTP://127.0.0.1", "127.0.0.1", "80", ""},
                {"http://[::1]:81/", "::1", "81", ""},
                {"http://[fe80::1]/v1/", "fe80::1", "80", ""},
                {"http://a.b:1/x/y//", "a.b", "1", "/x/y"},
                {"http://a.b:65535/x/v1", "a.b", "65535", "/x"}};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        sp_url u;
        CU_ASSERT_EQUAL_FATAL(sp_url_parse(&u, sp_slice_of(good[i].text), NULL), SP_OK);
        CU_ASSERT_STRING_EQUAL(u.host, good[i].host);
        CU_ASSERT_STRING_EQUAL(u.port, good[i].port);
        CU_ASSERT_STRING_EQUAL(u.path, good[i].path);
    }
    static const char *const bad[] = {"",
                                      "localhost:8000",
                                      "http://",
                                      "http://:80",
                                      "http://a:0",
                                      "http://a:65536",
                                      "http://a:x",
                                      "http://a:",
                                      "http://[::1",
                                      "http://[::1]8",
                                      "http://a b/",
                                      "http://a/\r\nX: y",
                                      "ftp://a",
                                      "http://a:-1"};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_url u;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_url_parse(&u, sp_slice_of(bad[i]), &err), SP_E_INVALID);
        CU_ASSERT(err.text[0] != 0);
    }
    sp_url u;
    CU_ASSERT_EQUAL(sp_url_parse(&u, SP_SLICE("https://a"), NULL), SP_E_UNSUPPORTED);
    static char longest[1000] = "http://";
    memset(longest + 7, 'a', sizeof longest - 8);
    CU_ASSERT_EQUAL(sp_url_parse(&u, sp_slice_of(longest), NULL), SP_E_INVALID);
    longest[8] = '/';
    CU_ASSERT_EQUAL(sp_url_parse(&u, sp_slice_of(longest), NULL), SP_E_INVALID);
}

SP_TEST_MAIN("launcher/http_client", SP_TEST(a_chunked_body_is_the_same_however_it_is_cut),
             SP_TEST(a_body_cut_in_two_at_every_byte_is_the_same),
             SP_TEST(a_body_by_length_leaves_what_follows),
             SP_TEST(a_body_without_length_goes_on_until_the_end),
             SP_TEST(responses_without_a_body_end_with_their_headers),
             SP_TEST(a_connection_is_kept_when_both_want_it),
             SP_TEST(what_is_no_response_is_refused), SP_TEST(lines_and_headers_have_a_maximum),
             SP_TEST(an_end_in_the_middle_is_told),
             SP_TEST(events_are_the_same_however_the_lines_are_cut),
             SP_TEST(an_event_has_a_maximum), SP_TEST(urls_are_taken_apart))
