/* Covers launcher/bench_load.c and bench_target.c against a server that answers from a script. */
#include "launcher/bench_load.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Events. */
#define END "data: [DONE]\n\n"
#define ONE "data: {\"choices\":[{\"text\":\"ab\"}]}\n\n"
#define USAGE "data: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\n"
#define CHAT_ROLE "data: {\"choices\":[{\"delta\":{\"role\":\"x\",\"content\":\"\"}}]}\n\n"
#define CHAT_ONE "data: {\"choices\":[{\"delta\":{\"content\": \"hi\"}}]}\n\n"

#define ANSWERS_MAX 8
#define BODIES_MAX 64

/* Takes connections one after the other, each in a thread; answer k goes to request k. */
typedef struct server {
    int fd, port;
    char *answers[ANSWERS_MAX]; /* NULL: says nothing, until the client gives up */
    bool closes[ANSWERS_MAX];   /* the connection, after the answer */
    int n_answers;
    pthread_mutex_t lock;
    int n_requests, n_connections;
    char *bodies[BODIES_MAX];
    pthread_t accepter, threads[BODIES_MAX];
} server;

typedef struct visitor {
    server *s;
    int fd;
} visitor;

/* Reads one request whole; its number, or -1 when the client has gone. */
static int read_request(server *s, int fd) {
    static const size_t most = 1 << 20;
    char *text = malloc(most), *end = NULL;
    size_t n = 0, want = 0;
    for (;;) {
        ssize_t got = recv(fd, text + n, most - 1 - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
        text[n] = 0;
        end = strstr(text, "\r\n\r\n");
        if (!end) continue;
        char *length = strstr(text, "Content-Length: ");
        want = (size_t)(end - text) + 4 + (length ? (size_t)atol(length + 16) : 0);
        if (n >= want) break;
    }
    int k = -1;
    if (end && n >= want) {
        pthread_mutex_lock(&s->lock);
        k = s->n_requests++;
        if (k < BODIES_MAX) s->bodies[k] = strdup(text);
        pthread_mutex_unlock(&s->lock);
    }
    free(text);
    return k;
}

static void *visit(void *arg) {
    visitor v = *(visitor *)arg;
    free(arg);
    for (int k; (k = read_request(v.s, v.fd)) >= 0;) {
        k %= v.s->n_answers;
        if (!v.s->answers[k]) continue; /* waits until the client closes */
        send(v.fd, v.s->answers[k], strlen(v.s->answers[k]), MSG_NOSIGNAL);
        if (v.s->closes[k]) break;
    }
    close(v.fd);
    return NULL;
}

static void *accept_all(void *arg) {
    server *s = arg;
    for (int fd; (fd = accept(s->fd, NULL, NULL)) >= 0 && s->n_connections < BODIES_MAX;) {
        visitor *v = malloc(sizeof *v);
        *v = (visitor){s, fd};
        pthread_create(&s->threads[s->n_connections++], NULL, visit, v);
    }
    return NULL;
}

static server *start_server(void) {
    server *s = calloc(1, sizeof *s);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    s->fd = socket(AF_INET, SOCK_STREAM, 0);
    CU_ASSERT_FATAL(bind(s->fd, (struct sockaddr *)&a, n) == 0 && listen(s->fd, 50) == 0);
    getsockname(s->fd, (struct sockaddr *)&a, &n);
    s->port = ntohs(a.sin_port);
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

static void script(server *s, const char *answer, bool closes) {
    s->answers[s->n_answers] = answer ? strdup(answer) : NULL;
    s->closes[s->n_answers++] = closes;
}

/* A chunked event stream, cut anywhere; `is_whole`: with its last chunk. */
static void script_events(server *s, const char *events, bool is_whole, bool closes) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n");
    for (size_t n = strlen(events), at = 0; at < n; at += 23) {
        int len = n - at < 23 ? (int)(n - at) : 23;
        sp_buf_printf(&b, "%x\r\n%.*s\r\n", len, len, events + at);
    }
    if (is_whole) sp_buf_puts(&b, "0\r\n\r\n");
    script(s, b.ptr, closes);
    sp_buf_fini(&b);
}

static void script_body(server *s, const char *status, const char *body, bool closes) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_printf(&b, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
    script(s, b.ptr, closes);
    sp_buf_fini(&b);
}

static void serve(server *s) {
    pthread_create(&s->accepter, NULL, accept_all, s);
}

static void stop_server(server *s) {
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->accepter, NULL);
    for (int i = 0; i < s->n_connections; i++) pthread_join(s->threads[i], NULL);
    for (int i = 0; i < BODIES_MAX; i++) free(s->bodies[i]);
    for (int i = 0; i < ANSWERS_MAX; i++) free(s->answers[i]);
    close(s->fd);
    free(s);
}

static sp_load_config config_for(const server *s) {
    sp_load_config c = {.model = "m",
                        .prompt_tokens = 3,
                        .streams = true,
                        .ignores_eos = true,
                        .n_streams = 1,
                        .n_requests = 4,
                        .max_tokens = 9,
                        .timeout_ns = 20 * SP_NS_PER_S};
    snprintf(c.url.host, sizeof c.url.host, "127.0.0.1");
    snprintf(c.url.port, sizeof c.url.port, "%d", s->port);
    return c;
}

static sp_load_result result;
static sp_load_result *run(const sp_load_config *c) {
    sp_err err = {0};
    memset(&result, 0, sizeof result);
    CU_ASSERT_EQUAL(sp_load_run(c, &result, &err), SP_OK);
    if (err.text[0]) fprintf(stderr, "%s\n", err.text);
    return &result;
}

static void streams_complete_on_one_connection_and_are_counted(void) {
    server *s = start_server();
    script_events(s, ONE ONE ONE USAGE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.n_warmup = 2;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_completed, 4);
    CU_ASSERT_EQUAL(r->n_failed, 0);
    CU_ASSERT_EQUAL(r->n_events, 12);
    CU_ASSERT_EQUAL(r->n_output_tokens, 20); /* by usage */
    CU_ASSERT_EQUAL(r->n_prompt_tokens, 28);
    CU_ASSERT_EQUAL(r->n_without_usage, 0);
    CU_ASSERT_EQUAL(r->first.n, 4);
    CU_ASSERT_EQUAL(r->gap.n, 8);
    CU_ASSERT_EQUAL(r->whole.n, 4);
    CU_ASSERT_EQUAL(r->n_bytes_in, 4 * strlen(s->answers[0]));
    CU_ASSERT(r->n_bytes_out > 4 * 100);
    CU_ASSERT_EQUAL(s->n_requests, 6);
    CU_ASSERT_EQUAL(s->n_connections, 2); /* the first only finds the server */
    stop_server(s);
}

static void without_usage_events_are_counted_and_that_is_told(void) {
    server *s = start_server();
    script_events(s, ONE ONE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_completed, 4);
    CU_ASSERT_EQUAL(r->n_output_tokens, 8);
    CU_ASSERT_EQUAL(r->n_without_usage, 4);
    stop_server(s);
}

static void the_role_of_a_chat_is_not_its_first_token(void) {
    server *s = start_server();
    script_events(s, CHAT_ROLE CHAT_ONE CHAT_ONE USAGE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.is_chat = true;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_completed, 4);
    CU_ASSERT_EQUAL(r->n_events, 8);
    CU_ASSERT_EQUAL(r->gap.n, 4);
    stop_server(s);
}

static void answers_that_are_not_streamed_are_timed_as_a_whole(void) {
    server *s = start_server();
    script_body(
        s, "200 OK",
        "{\"choices\":[{\"text\":\"\\\"usage\\\":{\"}],\"usage\": {\"completion_tokens\" : 6}}",
        false);
    serve(s);
    sp_load_config c = config_for(s);
    c.streams = false;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_completed, 4);
    CU_ASSERT_EQUAL(r->n_output_tokens, 24);
    CU_ASSERT_EQUAL(r->first.n, 0);
    CU_ASSERT_EQUAL(r->whole.n, 4);
    stop_server(s);
}

static void a_failure_of_each_kind_is_listed_with_its_first_example(void) {
    enum {
        RAW,
        EVENTS,
        CUT_EVENTS,
        BODY
    };
    static const struct {
        int how;
        bool closes;
        const char *answer, *kind, *example;
    } cases[] = {{RAW, false, "HTTP/1.1 429 Busy\r\nContent-Length: 9\r\n\r\nslow\ndown",
                  "status 429", "slow down"},
                 {EVENTS, false, "data: {\"error\":{\"code\":500}}\n\n" END, "error in the stream",
                  "{\"error\":{\"code\":500}}"},
                 {EVENTS, false, ONE, "stream without [DONE]", ""},
                 {CUT_EVENTS, true, ONE ONE, "closed early", "middle of a body"},
                 {RAW, true, "HTTP/1.1 200", "closed early", "no response came"},
                 {BODY, false, "{}", "not an event stream", "{}"},
                 {RAW, true, "SSH-2.0-x\r\n", "bad response", "want a status line"},
                 {RAW, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                  "bad response", "want a chunk size"}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        server *s = start_server();
        if (cases[i].how == RAW)
            script(s, cases[i].answer, cases[i].closes);
        else if (cases[i].how == BODY)
            script_body(s, "200 OK", cases[i].answer, cases[i].closes);
        else
            script_events(s, cases[i].answer, cases[i].how == EVENTS, cases[i].closes);
        script_events(s, ONE USAGE END, true, false);
        serve(s);
        sp_load_config c = config_for(s);
        sp_load_result *r = run(&c);
        CU_ASSERT_EQUAL(r->n_completed, 2);
        CU_ASSERT_EQUAL(r->n_failed, 2);
        CU_ASSERT_EQUAL_FATAL(r->n_kinds, 1);
        CU_ASSERT_STRING_EQUAL(r->kinds[0].name, cases[i].kind);
        CU_ASSERT_EQUAL(r->kinds[0].n, 2);
        CU_ASSERT_PTR_NOT_NULL(strstr(r->kinds[0].example, cases[i].example));
        if (strcmp(r->kinds[0].name, cases[i].kind) != 0)
            fprintf(stderr, "%s: %s\n", r->kinds[0].name, r->kinds[0].example);
        stop_server(s);
    }
}

static void a_request_without_an_answer_times_out(void) {
    server *s = start_server();
    script(s, NULL, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.n_streams = 3;
    c.n_requests = 3;
    c.timeout_ns = 150 * SP_NS_PER_MS;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_failed, 3);
    CU_ASSERT_STRING_EQUAL(r->kinds[0].name, "timed out");
    stop_server(s);
}

/* The server closes each connection after its answer without saying so before: the next request may
 * meet the closed connection, and is sent again on a new one. */
static void a_connection_closed_while_idle_is_opened_again(void) {
    server *s = start_server();
    script_events(s, ONE USAGE END, true, true);
    serve(s);
    sp_load_config c = config_for(s);
    c.n_requests = 10;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_completed, 10);
    CU_ASSERT_EQUAL(r->n_failed, 0);
    stop_server(s);
}

static void a_server_that_is_not_there_is_no_load(void) {
    server *s = start_server();
    script_events(s, ONE USAGE END, true, true);
    sp_load_config c = config_for(s);
    sp_err err = {0};
    close(s->fd);
    CU_ASSERT_EQUAL(sp_load_run(&c, &result, &err), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "connecting"));
    free(s->answers[0]);
    free(s);
}

/* Parses the body of request k. */
static sp_json *body_of(server *s, int k, int64_t *max_tokens, sp_slice *prompt) {
    sp_json *doc = NULL;
    const char *body = strstr(s->bodies[k], "\r\n\r\n");
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(body + 4), 0, NULL), SP_OK);
    const sp_json_node *root = sp_json_root(doc);
    CU_ASSERT_EQUAL(sp_json_get_int(root, "max_tokens", 0, 1000, max_tokens, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_json_get_string(root, "prompt", prompt, NULL), SP_OK);
    return doc;
}

static void each_request_says_what_was_asked_for(void) {
    for (int same = 0; same < 2; same++) {
        server *s = start_server();
        script_events(s, ONE USAGE END, true, false);
        serve(s);
        sp_load_config c = config_for(s);
        c.n_requests = 2;
        c.same_prompt = same;
        c.api_key = "secret";
        snprintf(c.url.path, sizeof c.url.path, "/base");
        run(&c);
        CU_ASSERT_EQUAL_FATAL(s->n_requests, 2);
        CU_ASSERT_EQUAL(strncmp(s->bodies[0], "POST /base/v1/completions HTTP/1.1\r\n", 35), 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(s->bodies[0], "\r\nAuthorization: Bearer secret\r\n"));
        sp_slice a = {0}, b = {0}, model = {0};
        int64_t max_tokens = 0;
        bool streams = false, ignore_eos = false;
        sp_json *one = body_of(s, 0, &max_tokens, &a), *two = body_of(s, 1, &max_tokens, &b);
        const sp_json_node *root = sp_json_root(one);
        CU_ASSERT_EQUAL(max_tokens, 9);
        CU_ASSERT_EQUAL(sp_json_get_bool(root, "stream", &streams, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_json_get_bool(root, "ignore_eos", &ignore_eos, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_json_get_string(root, "model", &model, NULL), SP_OK);
        CU_ASSERT(streams && ignore_eos && sp_slice_is(model, "m"));
        CU_ASSERT_EQUAL(sp_slice_eq(a, b), (bool)same);
        int spaces = 0;
        for (size_t i = 0; i < a.len; i++) spaces += a.ptr[i] == ' ';
        CU_ASSERT_EQUAL(spaces, 2); /* three words */
        sp_json_free(one);
        sp_json_free(two);
        stop_server(s);
    }
}

static void the_model_is_the_first_that_the_server_tells(void) {
    server *s = start_server();
    script_body(s, "200 OK", "{\"data\":[{\"id\":\"a/b\"},{\"id\":\"other\"}]}", false);
    script_events(s, ONE USAGE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.model = NULL;
    c.n_requests = 1;
    CU_ASSERT_STRING_EQUAL(run(&c)->model, "a/b");
    CU_ASSERT_PTR_NOT_NULL(strstr(s->bodies[1], "\"model\":\"a/b\""));
    stop_server(s);
    static const char *const useless[][2] = {
        {"200 OK", "{\"data\":[]}"}, {"200 OK", "{"}, {"401 No", ""}};
    for (size_t i = 0; i < SP_LEN(useless); i++) {
        s = start_server();
        script_body(s, useless[i][0], useless[i][1], true);
        serve(s);
        c = config_for(s);
        c.model = NULL;
        sp_err err = {0};
        CU_ASSERT(sp_load_run(&c, &result, &err) < 0);
        CU_ASSERT(err.text[0] != 0);
        stop_server(s);
    }
}

static void quantiles_are_right_to_one_percent(void) {
    static sp_load_times t;
    CU_ASSERT_EQUAL(sp_load_quantile(&t, 0.5), 0);
    server *s = start_server();
    script_events(s, ONE ONE USAGE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.n_requests = 40;
    sp_load_result *r = run(&c);
    int64_t low = sp_load_quantile(&r->whole, 0.5), high = sp_load_quantile(&r->whole, 0.99);
    CU_ASSERT(low > 0 && low <= high && high <= r->whole.max_ns);
    CU_ASSERT(sp_load_quantile(&r->first, 0.5) <= high);
    stop_server(s);
}

static void values_are_found_by_key_and_not_in_strings(void) {
    sp_slice json = SP_SLICE("{\"a\":\"\\\"usage\\\":1\",\"x\":\"usage\",\"usage\" : {\"n\":3}}");
    CU_ASSERT(sp_slice_is(sp_load_value_of(json, "usage"), "{\"n\":3}}"));
    CU_ASSERT_EQUAL(sp_load_value_of(json, "none").len, 0);
    CU_ASSERT_EQUAL(sp_load_value_of(SP_SLICE("{\"usage\""), "usage").len, 0);
    CU_ASSERT_EQUAL(sp_load_value_of(SP_SLICE("{\"usage\":"), "usage").len, 0);
    CU_ASSERT_EQUAL(sp_load_value_of((sp_slice){NULL, 0}, "usage").len, 0);
}

/* The script answers at once, so a limit of a minute is kept and one of a nanosecond is not. */
static void requests_within_all_their_limits_are_good_ones(void) {
    const int64_t minute = 60 * SP_NS_PER_S;
    server *s = start_server();
    script_events(s, ONE ONE USAGE END, true, false);
    serve(s);
    sp_load_config c = config_for(s);
    c.limits[0] = (sp_load_limits){minute, minute, minute};
    c.limits[1] = (sp_load_limits){.ttft_ns = 1};
    c.limits[2] = (sp_load_limits){.ttft_ns = minute, .tpot_ns = 1};
    c.limits[3] = (sp_load_limits){.e2e_ns = 1};
    c.limits[4] = (sp_load_limits){0};
    c.n_limits = 5;
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_good[0], 4);
    CU_ASSERT_EQUAL(r->n_good[1], 0);
    CU_ASSERT(r->n_good[2] < 4 || r->each.max_ns == 0); /* both events may come at one moment */
    CU_ASSERT_EQUAL(r->n_good[3], 0);
    CU_ASSERT_EQUAL(r->n_good[4], 4);
    CU_ASSERT_EQUAL(r->each.n, 4);
    stop_server(s);
}

static void failed_requests_are_never_good(void) {
    server *s = start_server();
    script(s, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", false);
    serve(s);
    sp_load_config c = config_for(s);
    c.n_limits = 1; /* no limits at all */
    sp_load_result *r = run(&c);
    CU_ASSERT_EQUAL(r->n_failed, 4);
    CU_ASSERT_EQUAL(r->n_good[0], 0);
    stop_server(s);
}

static void requests_of_a_trace_are_sent_when_they_are_due(void) {
    int64_t ids[] = {1, 2, 3};
    sp_trace_row rows[] = {{0, 2, 5, 0}, {0, 3, 6, 1}, {120 * SP_NS_PER_MS, 4, 7, 2}};
    const sp_trace t = {.n = 3, .block_tokens = 8, .rows = rows, .ids = ids, .n_ids = 3};
    for (int streams = 1; streams <= 3; streams += 2) {
        server *s = start_server();
        script_events(s, ONE USAGE END, true, false);
        serve(s);
        sp_load_config c = config_for(s);
        c.trace = &t;
        c.ids_first = 4;
        c.ids_last = 9;
        c.n_requests = 3;
        c.n_streams = streams;
        sp_load_result *r = run(&c);
        CU_ASSERT_EQUAL(r->n_completed, 3);
        CU_ASSERT(r->wall_ns >= 120 * SP_NS_PER_MS);
        CU_ASSERT_EQUAL_FATAL(s->n_requests, 3);
        int tokens = 0;
        for (int i = 0; i < 3; i++) {
            const char *at = strstr(s->bodies[i], "\"max_tokens\":");
            CU_ASSERT_PTR_NOT_NULL_FATAL(at);
            tokens += atoi(at + 13);
        }
        CU_ASSERT_EQUAL(tokens, 18);
        CU_ASSERT_PTR_NOT_NULL(strstr(s->bodies[2], "\"max_tokens\":7")); /* the late one, last */
        stop_server(s);
    }
}

SP_TEST_MAIN("launcher/bench_load", SP_TEST(streams_complete_on_one_connection_and_are_counted),
             SP_TEST(without_usage_events_are_counted_and_that_is_told),
             SP_TEST(the_role_of_a_chat_is_not_its_first_token),
             SP_TEST(answers_that_are_not_streamed_are_timed_as_a_whole),
             SP_TEST(a_failure_of_each_kind_is_listed_with_its_first_example),
             SP_TEST(a_request_without_an_answer_times_out),
             SP_TEST(a_connection_closed_while_idle_is_opened_again),
             SP_TEST(a_server_that_is_not_there_is_no_load),
             SP_TEST(each_request_says_what_was_asked_for),
             SP_TEST(the_model_is_the_first_that_the_server_tells),
             SP_TEST(quantiles_are_right_to_one_percent),
             SP_TEST(requests_within_all_their_limits_are_good_ones),
             SP_TEST(failed_requests_are_never_good),
             SP_TEST(requests_of_a_trace_are_sent_when_they_are_due),
             SP_TEST(values_are_found_by_key_and_not_in_strings))
