/* Covers frontend/http_parse.c: heads and chunked bodies, good, bad and in pieces. */
#include "frontend/http_parse.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

/* Scans and parses; the status that a refusal has, 0: good, -1: wants more. */
static int head_status(const char *bytes, size_t n, sp_http_head *head) {
    sp_http_scan scan = {0};
    sp_http_fault fault = {0};
    ptrdiff_t len = sp_http_scan_head(&scan, (sp_slice){bytes, n}, 32768, &fault);
    if (len == 0) return -1;
    if (len < 0) return fault.http;
    sp_status st = sp_http_parse_head((sp_slice){bytes, (size_t)len}, head, &fault);
    return st == SP_OK ? 0 : fault.http;
}

static void heads_are_taken_or_refused_as_the_table_says(void) {
    static const struct {
        const char *text;
        int want;
    } rows[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"GET / HTTP/1.0\r\n\r\n", 0},
        {"GET /?q=%20 HTTP/1.1\r\nHost: a:80\r\nX: \t y \r\n\r\n", 0},
        {"GET http://a/p HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\n", 0},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", 0},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xb6\r\n\r\n", 0},
        {"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", 0},
        {"GET / HTTP/1.1\r\nHost: a\r\n", -1},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\nHost: a\n\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\n: v\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nX(: v\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01\r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400},
        {"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /\xc3\xb6 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /\r\nHost: a\r\n\r\n", 400},
        {"GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400},
        {"GET / http/1.1\r\nHost: a\r\n\r\n", 400},
        {"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501},
        {"PRI * HTTP/2.0\r\n\r\n", 501},
        {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
        {"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
         400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
         "chunked\r\n\r\n",
         400},
        {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n", 417},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_http_head head;
        int got = head_status(rows[i].text, strlen(rows[i].text), &head);
        if (got != rows[i].want) fprintf(stderr, "row %zu: got %d\n", i, got);
        CU_ASSERT_EQUAL(got, rows[i].want);
    }
}

static void a_head_tells_what_it_says(void) {
    static const char text[] = "POST /v1/x?a=b HTTP/1.1\r\nHost: h:1\r\nContent-Length: 7\r\n"
                               "X-One:  two \r\nConnection: foo, CLOSE\r\n\r\nbody";
    sp_http_head h;
    CU_ASSERT_EQUAL_FATAL(head_status(text, sizeof text - 1, &h), 0);
    CU_ASSERT_EQUAL(h.method, SP_HTTP_POST);
    CU_ASSERT(sp_slice_is(h.path, "/v1/x"));
    CU_ASSERT(sp_slice_is(h.query, "a=b"));
    CU_ASSERT(sp_slice_is(h.host, "h:1"));
    CU_ASSERT_EQUAL(h.content_length, 7);
    CU_ASSERT_FALSE(h.keep_alive);
    CU_ASSERT(sp_slice_is(sp_http_header_get(&h, "x-ONE"), "two"));
    CU_ASSERT_PTR_NULL(sp_http_header_get(&h, "x-on").ptr);
    CU_ASSERT_EQUAL(head_status("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 42, &h), 0);
    CU_ASSERT(h.keep_alive);
}

static void a_head_beyond_a_limit_is_refused_before_it_ends(void) {
    sp_buf b;
    sp_http_head head;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "GET /");
    for (int i = 0; i < 9000; i++) sp_buf_putc(&b, 'a');
    CU_ASSERT_EQUAL(head_status(b.ptr, b.len, &head), 414);
    sp_buf_clear(&b);
    sp_buf_puts(&b, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    for (int i = 0; i < 40000; i++) sp_buf_putc(&b, 'a');
    CU_ASSERT_EQUAL(head_status(b.ptr, b.len, &head), 431);
    sp_buf_clear(&b);
    sp_buf_puts(&b, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < 63; i++) sp_buf_puts(&b, "a: b\r\n");
    sp_buf_puts(&b, "\r\n");
    CU_ASSERT_EQUAL(head_status(b.ptr, b.len, &head), 0);
    CU_ASSERT_EQUAL(head.n_headers, 64);
    b.len -= 2;
    sp_buf_puts(&b, "a: b\r\n\r\n");
    CU_ASSERT_EQUAL(head_status(b.ptr, b.len, &head), 431);
    sp_buf_fini(&b);
}

static void a_head_scanned_byte_by_byte_ends_where_it_does_in_one_piece(void) {
    static const char text[] = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
    sp_http_scan scan = {0};
    sp_http_fault fault;
    ptrdiff_t n = 0;
    size_t i = 0;
    while (n == 0 && i < sizeof text - 1)
        n = sp_http_scan_head(&scan, (sp_slice){text, ++i}, 1000, &fault);
    CU_ASSERT_EQUAL(n, (ptrdiff_t)sizeof text - 1 - 3);
    CU_ASSERT_EQUAL(i, (size_t)n);
}

/* Feeds `step` bytes at a time. Returns the bytes used, -1 bad, -2 wants more. */
static ptrdiff_t chunks_of(const char *text, size_t n, size_t step, sp_buf *body) {
    sp_http_chunks c = {0};
    sp_http_fault fault;
    size_t at = 0;
    while (at < n && c.state != SP_HTTP_CHUNK_DONE) {
        size_t piece = n - at < step ? n - at : step;
        ptrdiff_t used = sp_http_chunks_feed(&c, (sp_slice){text + at, piece}, body, &fault);
        if (used < 0) return -1;
        at += (size_t)used;
    }
    return c.state == SP_HTTP_CHUNK_DONE ? (ptrdiff_t)at : -2;
}

static void chunked_bodies_are_decoded_or_refused_as_the_table_says(void) {
    static const struct {
        const char *text, *body; /* NULL: refused; "more": does not end */
    } rows[] = {
        {"0\r\n\r\n", ""},
        {"5\r\nhello\r\n0\r\n\r\n", "hello"},
        {"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world"},
        {"00000005\r\nhello\r\n0\r\n\r\n", "hello"},
        {"A\r\n0123456789\r\n0\r\n\r\n", "0123456789"},
        {"a;x;y=z;q=\"a\\\"\"\r\n0123456789\r\n0\r\n\r\n", "0123456789"},
        {"5\r\nhello\r\n0\r\nTrailer: a\r\nB: c\r\n\r\n", "hello"},
        {"5\r\nhello\r\n", "more"},
        {"5\r\nhello\r\n0\r\n", "more"},
        {"000000005\r\nhello\r\n0\r\n\r\n", NULL},
        {"ffffffffff\r\n", NULL},
        {"\r\nhello", NULL},
        {"5 \r\nhello\r\n0\r\n\r\n", NULL},
        {" 5\r\nhello\r\n0\r\n\r\n", NULL},
        {"0x5\r\nhello\r\n0\r\n\r\n", NULL},
        {"-5\r\nhello\r\n0\r\n\r\n", NULL},
        {"5;\r\nhello\r\n0\r\n\r\n", NULL},
        {"5;a b\r\nhello\r\n0\r\n\r\n", NULL},
        {"5;a=\"b\r\nhello\r\n0\r\n\r\n", NULL},
        {"5\nhello\r\n0\r\n\r\n", NULL},
        {"5\rhello\r\n0\r\n\r\n", NULL},
        {"5\r\nhello0\r\n\r\n", NULL},
        {"5\r\nhello\n0\r\n\r\n", NULL},
        {"5\r\nhello\r\n0\r\nA\n\r\n", NULL},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        for (size_t step = 1; step <= 64; step *= 4) {
            sp_buf body;
            sp_buf_init(&body, 0);
            sp_buf_put(&body, "", 0);
            size_t n = strlen(rows[i].text);
            ptrdiff_t got = chunks_of(rows[i].text, n, step, &body);
            ptrdiff_t want = !rows[i].body                       ? -1
                             : strcmp(rows[i].body, "more") == 0 ? -2
                                                                 : (ptrdiff_t)n;
            if (got != want) fprintf(stderr, "row %zu step %zu: got %td\n", i, step, got);
            CU_ASSERT_EQUAL(got, want);
            if (want > 0) CU_ASSERT_STRING_EQUAL(body.ptr, rows[i].body);
            sp_buf_fini(&body);
        }
}

static void a_long_extension_or_trailer_is_refused(void) {
    sp_buf b, body;
    sp_buf_init(&b, 0);
    sp_buf_init(&body, 0);
    sp_buf_puts(&b, "5;");
    for (int i = 0; i < 300; i++) sp_buf_putc(&b, 'a');
    CU_ASSERT_EQUAL(chunks_of(b.ptr, b.len, 64, &body), -1);
    sp_buf_clear(&b);
    sp_buf_puts(&b, "0\r\n");
    for (int i = 0; i < 2000; i++) sp_buf_puts(&b, "A: b\r\n");
    CU_ASSERT_EQUAL(chunks_of(b.ptr, b.len, 64, &body), -1);
    sp_buf_fini(&b);
    sp_buf_fini(&body);
}

/* One ```http block of the fixture pages, with line ends as on the wire: `\r` and `\n` written out
 * stand for themselves, and a line's end is CRLF unless it was written out. */
static void wire_of(sp_slice block, sp_buf *out) {
    for (size_t i = 0; i < block.len; i++) {
        char c = block.ptr[i], d = i + 1 < block.len ? block.ptr[i + 1] : 0;
        if (c == '\\' && (d == 'r' || d == 'n' || d == 't' || d == 'f')) {
            sp_buf_putc(out, d == 'r' ? '\r' : d == 'n' ? '\n' : d == 't' ? '\t' : '\f');
            i++;
            /* "\n" at a line's end is that line's end. */
            if ((d == 'n' || d == 'r') && i + 1 < block.len && block.ptr[i + 1] == '\n') i++;
        } else if (c == '\\' && d == 'x' && i + 3 < block.len) {
            char hex[3] = {block.ptr[i + 2], block.ptr[i + 3], 0};
            sp_buf_putc(out, (char)strtol(hex, NULL, 16));
            i += 3;
        } else if (c == '\n') {
            sp_buf_puts(out, "\r\n");
        } else {
            sp_buf_putc(out, c);
        }
    }
}

/* A Host, where the example has none: that it is wanted is tested above. */
static void add_host(sp_buf *wire) {
    const char *line = wire->ptr ? strstr(wire->ptr, " HTTP/1.") : NULL;
    const char *end = line ? strstr(line, "\r\n") : NULL;
    if (!end || strcasestr(wire->ptr, "\r\nHost:")) return;
    size_t at = (size_t)(end - wire->ptr) + 2;
    sp_buf all;
    sp_buf_init(&all, 0);
    sp_buf_put(&all, wire->ptr, at);
    sp_buf_puts(&all, "Host: example\r\n");
    sp_buf_put(&all, wire->ptr + at, wire->len - at);
    sp_buf_fini(wire);
    *wire = all;
}

/* 0 good, else a status; a body that is malformed is 400, one that does not end is good so far. */
static int request_status(const sp_buf *wire) {
    sp_http_head head;
    int st = head_status(wire->ptr, wire->len, &head);
    if (st != 0 || !head.chunked) return st < 0 ? 0 : st;
    const char *body = strstr(wire->ptr, "\r\n\r\n");
    sp_buf out;
    sp_buf_init(&out, 0);
    size_t n = body ? wire->len - (size_t)(body + 4 - wire->ptr) : 0;
    ptrdiff_t got = n ? chunks_of(body + 4, n, 3, &out) : 0;
    sp_buf_fini(&out);
    return got == -1 ? 400 : 0;
}

/* Runs one page; counts examples seen, and those that we take though they are errors. */
static void run_page(const char *path, int *n_bad, int *n_good, int *n_wrong) {
    size_t len;
    char *text = sp_test_read(path, &len);
    for (char *at = text; (at = strstr(at, "<!-- meta=")) != NULL;) {
        char *begin = strstr(at, "```http\n"), *end = begin ? strstr(begin + 8, "\n```") : NULL;
        char *log = end ? strstr(end, "```log\n") : NULL,
             *log_end = log ? strstr(log + 7, "```") : NULL;
        if (!log_end) break;
        bool strict = strncmp(at, "<!-- meta={\"type\": \"request\"", 28) == 0 ||
                      strncmp(at, "<!-- meta={\"type\":\"request\"", 27) == 0;
        *log_end = 0;
        const char *error = strstr(log, "error code=");
        bool pause = error && (strstr(error, "Pause on") != NULL);
        sp_buf wire;
        sp_buf_init(&wire, 0);
        wire_of((sp_slice){begin + 8, (size_t)(end - begin) - 7}, &wire);
        add_host(&wire);
        if (strict && wire.len) {
            int got = request_status(&wire);
            bool bad = error && !pause;
            *(bad ? n_bad : n_good) += 1;
            /* A good one may still be refused for what we do not serve: a method, an old version, a
             * coding; never as malformed. */
            if (bad && got == 0) {
                fprintf(stderr, "taken: %.300s\n", wire.ptr);
                (*n_wrong)++;
            }
        }
        sp_buf_fini(&wire);
        at = log_end + 1;
    }
    free(text);
}

static void what_llhttp_refuses_is_refused(void) {
    const char *dir = sp_test_fixtures();
    if (!dir) SP_SKIP("no fixtures beside the checkout");
    static const char *const pages[] = {"content-length", "transfer-encoding", "sample", "method",
                                        "uri"};
    int n_bad = 0, n_good = 0, n_wrong = 0;
    for (size_t i = 0; i < SP_LEN(pages); i++) {
        char path[500];
        snprintf(path, sizeof path, "%s/http/llhttp/request/%s.md", dir, pages[i]);
        run_page(path, &n_bad, &n_good, &n_wrong);
    }
    printf("llhttp: %d that must be refused, %d others\n", n_bad, n_good);
    CU_ASSERT(n_bad >= 20);
    CU_ASSERT_EQUAL(n_wrong, 0);
}

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void random_bytes_and_mutations_never_leave_the_buffer(void) {
    static const char good[] = "POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
                               "chunked\r\nX: y\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nT: u\r\n\r\n";
    uint64_t x = 88172645463325252u;
    for (int round = 0; round < 20000; round++) {
        /* An exact allocation, so that the sanitizer sees one byte too far. */
        size_t n = round % 4 ? sizeof good - 1 : (size_t)(next_random(&x) % 200);
        char *bytes = malloc(n ? n : 1);
        for (size_t i = 0; i < n; i++) bytes[i] = round % 4 ? good[i] : (char)next_random(&x);
        for (int k = 0; k < round % 4 && n; k++)
            bytes[next_random(&x) % n] = "\r\n:; \t\0a0"[next_random(&x) % 9];
        sp_http_head head;
        (void)head_status(bytes, n, &head);
        sp_buf body;
        sp_buf_init(&body, 4096);
        (void)chunks_of(bytes, n, 1 + (size_t)(next_random(&x) % 40), &body);
        sp_buf_fini(&body);
        free(bytes);
    }
    CU_PASS("no sanitizer report");
}

static size_t from_base64(const char *text, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    unsigned bits = 0, have = 0;
    for (; *text && *text != '"' && *text != '='; text++) {
        const char *at = strchr(digits, *text);
        if (!at) return n;
        bits = bits << 6 | (unsigned)(at - digits);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        out[n++] = (char)(bits >> have);
    }
    return n;
}

static void inputs_found_by_fuzzing_others_are_survived(void) {
    const char *dir = sp_test_fixtures();
    if (!dir) SP_SKIP("no fixtures beside the checkout");
    char path[500];
    snprintf(path, sizeof path, "%s/http/go-fuzz-httpreq-dev.jsonl", dir);
    size_t len;
    char *text = sp_test_read(path, &len), *bytes = malloc(len);
    int n = 0;
    for (char *at = text; (at = strstr(at, "\"b64\": \"")) != NULL; at += 8, n++) {
        size_t size = from_base64(at + 8, bytes);
        char *exact = malloc(size + 1);
        memcpy(exact, bytes, size);
        sp_http_head head;
        (void)head_status(exact, size, &head);
        sp_buf body;
        sp_buf_init(&body, 0);
        (void)chunks_of(exact, size, 7, &body);
        sp_buf_fini(&body);
        free(exact);
    }
    printf("%d inputs\n", n);
    CU_ASSERT(n > 10);
    free(bytes);
    free(text);
}

SP_TEST_MAIN("frontend/http_parse", SP_TEST(inputs_found_by_fuzzing_others_are_survived),
             SP_TEST(heads_are_taken_or_refused_as_the_table_says),
             SP_TEST(a_head_tells_what_it_says),
             SP_TEST(a_head_beyond_a_limit_is_refused_before_it_ends),
             SP_TEST(a_head_scanned_byte_by_byte_ends_where_it_does_in_one_piece),
             SP_TEST(chunked_bodies_are_decoded_or_refused_as_the_table_says),
             SP_TEST(a_long_extension_or_trailer_is_refused),
             SP_TEST(what_llhttp_refuses_is_refused),
             SP_TEST(random_bytes_and_mutations_never_leave_the_buffer))
