/* Covers launcher/remote.c: `status`, `pools` and `probe` against a server that says what it is told to,
 * sense or not; exit codes and words. */
#include "launcher/remote.h"
#include "runtime/base/status.h"
#include "tests/harness.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- a server for one request ---- */

typedef struct server {
    int fd, port;
    const char *answer; /* NULL: none, it waits for the client to go */
    char request[2048];
    pthread_t thread;
} server;

static void *serve(void *arg) {
    server *s = arg;
    size_t n = 0;
    int c = accept(s->fd, NULL, NULL);
    while (c >= 0 && n < sizeof s->request - 1 && !strstr(s->request, "\r\n\r\n")) {
        ssize_t got = recv(c, s->request + n, sizeof s->request - 1 - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
    }
    char byte;
    if (s->answer) {
        if (send(c, s->answer, strlen(s->answer), MSG_NOSIGNAL) < 0) perror("send");
    } else {
        while (recv(c, &byte, 1, 0) > 0) continue;
    }
    if (c >= 0) close(c);
    return NULL;
}
static void open_server(server *s, const char *answer) {
    *s = (server){.answer = answer};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_FATAL(bind(s->fd, (struct sockaddr *)&at, len) == 0 && listen(s->fd, 4) == 0);
    CU_ASSERT_FATAL(getsockname(s->fd, (struct sockaddr *)&at, &len) == 0);
    s->port = ntohs(at.sin_port);
    CU_ASSERT_FATAL(pthread_create(&s->thread, NULL, serve, s) == 0);
}
static void close_server(server *s) {
    pthread_join(s->thread, NULL);
    close(s->fd);
}

/* ---- what the commands say ---- */

static char out[65536], words[4096];

static void keep(FILE *from, char *to, size_t n) {
    rewind(from);
    size_t got = fread(to, 1, n - 1, from);
    to[got] = 0;
    fclose(from);
}
/* Runs it with both outputs kept. */
static int run(int (*command)(int, char **), const char *const *argv) {
    int argc = 0, saved[2] = {dup(1), dup(2)};
    while (argv[argc]) argc++;
    fflush(NULL);
    FILE *files[2] = {tmpfile(), tmpfile()};
    CU_ASSERT_FATAL(files[0] && files[1]);
    for (int i = 0; i < 2; i++) dup2(fileno(files[i]), i + 1);
    int code = command(argc, (char **)(uintptr_t)argv);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    keep(files[0], out, sizeof out);
    keep(files[1], words, sizeof words);
    return code;
}
/* The command against a server that answers so. */
static int ask(int (*command)(int, char **), const char *answer, const char *word, server *s) {
    char url[64];
    open_server(s, answer);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s->port);
    int code = run(command, (const char *const[]){"x", word, "--url", url, "--timeout", "2", NULL});
    close_server(s);
    return code;
}
static int probe(const char *answer, const char *word) {
    server s;
    int code = ask(sp_probe_command, answer, word, &s);
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "GET /health HTTP/1.1\r\n"));
    return code;
}
static int status(const char *answer) {
    server s;
    int code = ask(sp_status_command, answer, "--json", &s);
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "GET /superpod/status HTTP/1.1\r\n"));
    return code;
}

#define OK200 "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
#define HEALTHY OK200 "Content-Length: 0\r\n\r\n"
#define UNREADY "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\nstarting"

static void a_healthy_server_is_started_ready_and_alive(void) {
    CU_ASSERT_EQUAL(probe(HEALTHY, "--startup"), 0);
    CU_ASSERT_EQUAL(probe(HEALTHY, "--ready"), 0);
    CU_ASSERT_EQUAL(probe(HEALTHY, "--live"), 0);
    CU_ASSERT_STRING_EQUAL(out, "");
    CU_ASSERT_STRING_EQUAL(words, "");
}
static void one_that_answers_503_is_only_alive(void) {
    CU_ASSERT_EQUAL(probe(UNREADY, "--startup"), 1);
    CU_ASSERT_EQUAL(probe(UNREADY, "--ready"), 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "answers 503: starting"));
    CU_ASSERT_EQUAL(probe(UNREADY, "--live"), 0);
}
static void one_that_talks_nonsense_or_not_at_all_is_not_alive(void) {
    CU_ASSERT_EQUAL(probe("SSH-2.0-OpenSSH\r\n\r\n", "--live"), 1);
    CU_ASSERT_EQUAL(probe("", "--live"), 1);
    CU_ASSERT_EQUAL(probe(OK200 "Content-Length: 10\r\n\r\nabc", "--live"), 1);
    CU_ASSERT_EQUAL(probe(NULL, "--live"), 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "timed out"));
}

static void a_status_is_shown_as_it_came(void) {
    CU_ASSERT_EQUAL(status(OK200 "Content-Length: 16\r\n\r\n{\"tp\":1,\"pp\":22}"), 0);
    CU_ASSERT_STRING_EQUAL(out, "{\"tp\":1,\"pp\":22}\n");
    CU_ASSERT_EQUAL(
        status(OK200 "Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n"), 0);
    CU_ASSERT_STRING_EQUAL(out, "{\"a\":1}\n");
}
#define POOLS \
    "{\"pools\":[{\"name\":\"p\",\"tp\":2,\"pp\":3,\"groups\":[{\"group\":0,\"role\":\"prefill\"}" \
    "]}]}"
static int pools(const char *answer, server *s, const char *const *words_of) {
    char url[64];
    const char *argv[12] = {"pools"};
    int n = 1;
    open_server(s, answer);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s->port);
    while (*words_of) argv[n++] = *words_of++;
    argv[n++] = "--url";
    argv[n++] = url;
    argv[n] = NULL;
    int code = run(sp_pools_command, argv);
    close_server(s);
    return code;
}
#define ASK_POOLS(answer, s, ...) pools(answer, s, (const char *const[]){__VA_ARGS__, NULL})
static void pools_are_shown_and_set(void) {
    char answer[400];
    server s;
    snprintf(answer, sizeof answer, OK200 "Content-Length: %zu\r\n\r\n" POOLS, strlen(POOLS));
    CU_ASSERT_EQUAL(ASK_POOLS(answer, &s, "--json"), 0);
    CU_ASSERT_STRING_EQUAL(out, POOLS "\n");
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "GET /superpod/pools HTTP/1.1\r\n"));
    CU_ASSERT_EQUAL(ASK_POOLS(answer, &s, "set", "p=decode", "q=mixed"), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "POST /superpod/pools HTTP/1.1\r\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "Content-Type: application/json\r\n"));
    CU_ASSERT_PTR_NOT_NULL(
        strstr(s.request, "\r\n\r\n{\"pools\":{\"p\":\"decode\",\"q\":\"mixed\"}}"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "prefill"));
    CU_ASSERT_EQUAL(ASK_POOLS(answer, &s, "set", "prefill=1", "decode=2"), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "\r\n\r\n{\"prefill\":1,\"decode\":2}"));
}
static void pools_that_are_refused_are_10_and_bad_words_2(void) {
    server s;
    CU_ASSERT_EQUAL(ASK_POOLS("HTTP/1.1 400 Bad Request\r\nContent-Length: 30\r\n\r\n"
                              "{\"error\":{\"message\":\"so not\"}}",
                              &s, "set", "p=x"),
                    10);
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "answers 400: so not"));
    CU_ASSERT_EQUAL(ASK_POOLS("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", &s, "--json"),
                    10);
    CU_ASSERT_EQUAL(ASK_POOLS(OK200 "Content-Length: 1\r\n\r\nx", &s, "--json"), 20);
    CU_ASSERT_STRING_EQUAL(out, "");
    static const char *const wrong[][5] = {{"pools", "set", NULL},
                                           {"pools", "set", "p", NULL},
                                           {"pools", "set", "=p", NULL},
                                           {"pools", "set", "p=", NULL},
                                           {"pools", "set", "p=decode", "prefill=1", NULL},
                                           {"pools", "get", NULL}};
    for (size_t i = 0; i < SP_LEN(wrong); i++)
        CU_ASSERT_EQUAL(run(sp_pools_command, wrong[i]), SP_EXIT_USAGE);
}
static void what_is_no_status_is_20_and_nothing_is_printed(void) {
    static const char *const wrong[] = {
        HEALTHY,
        OK200 "Content-Length: 4\r\n\r\nhtml",
        OK200 "Content-Length: 2\r\n\r\n[]",
        OK200 "Content-Length: 9\r\n\r\n{\"tp\":1",
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\n\r\nno key",
        UNREADY,
        "",
    };
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        CU_ASSERT_EQUAL(status(wrong[i]), SP_EXIT_PEER);
        if (out[0]) fprintf(stderr, "    answer %zu: printed '%s'\n", i, out);
        CU_ASSERT_STRING_EQUAL(out, "");
        CU_ASSERT(strncmp(words, "superpod: ", 10) == 0);
        CU_ASSERT_PTR_EQUAL(strchr(words, '\n'), words + strlen(words) - 1); /* one line */
    }
}
static int table(const char *answer) {
    char url[64];
    server s;
    open_server(&s, answer);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s.port);
    int code = run(sp_status_command, (const char *const[]){"x", "--url", url, NULL});
    close_server(&s);
    return code;
}
static void a_table_is_made_of_whatever_is_there(void) {
    CU_ASSERT_EQUAL(table(OK200
                          "\r\n{\"model\":\"m\",\"tp\":2,\"ranks\":[{\"rank\":7,\"layers\":[3,5],"
                          "\"state\":\"lost\"}]}"),
                    0);
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "model m, tp 2"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "3-5"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "lost"));
    CU_ASSERT_EQUAL(table(OK200 "\r\n{}"), 0);
    CU_ASSERT_EQUAL(table(OK200 "\r\n{\"ranks\":[{},{\"layers\":[]},{\"layers\":[\"a\",null]},3],"
                                "\"nodes\":[null,\"x\"],\"head\":[1],\"model\":{}}"),
                    0);
    CU_ASSERT_EQUAL(table(OK200 "\r\n{\"ranks\":7,\"nodes\":\"x\"}"), 0);
}

static void a_key_goes_along(void) {
    char url[64];
    server s;
    open_server(&s, OK200 "\r\n{}");
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s.port);
    CU_ASSERT_EQUAL(run(sp_status_command, (const char *const[]){"status", "--json", "--url", url,
                                                                 "--api-key", "k1", NULL}),
                    0);
    close_server(&s);
    CU_ASSERT_PTR_NOT_NULL(strstr(s.request, "\r\nAuthorization: Bearer k1\r\n"));
}
static void wrong_words_are_usage_errors(void) {
#define USAGE(command, ...) \
    CU_ASSERT_EQUAL(run(command, (const char *const[]){"x", __VA_ARGS__, NULL}), SP_EXIT_USAGE)
    USAGE(sp_probe_command, "--live", "--ready");
    USAGE(sp_probe_command, "--url", "http://h");
    USAGE(sp_probe_command, "--live", "--timeout", "0");
    USAGE(sp_probe_command, "--live", "--timeout", "1s");
    USAGE(sp_probe_command, "--live", "--timeout");
    USAGE(sp_status_command, "--frob");
    USAGE(sp_status_command, "extra", "words");
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "usage: superpod status"));
#undef USAGE
    CU_ASSERT_EQUAL(
        run(sp_probe_command, (const char *const[]){"x", "--live", "--url", "ftp://h", NULL}), 1);
}
static void nobody_there_is_told(void) {
    server s;
    char url[64];
    open_server(&s, HEALTHY);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s.port);
    const char *const argv[] = {"x", "--live", "--url", url, NULL};
    CU_ASSERT_EQUAL(run(sp_probe_command, argv), 0);
    close_server(&s);
    CU_ASSERT_EQUAL(run(sp_probe_command, argv), 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "nobody answers at 127.0.0.1"));
}

SP_TEST_MAIN("launcher/remote", SP_TEST(a_healthy_server_is_started_ready_and_alive),
             SP_TEST(one_that_answers_503_is_only_alive),
             SP_TEST(one_that_talks_nonsense_or_not_at_all_is_not_alive),
             SP_TEST(a_status_is_shown_as_it_came), SP_TEST(pools_are_shown_and_set),
             SP_TEST(pools_that_are_refused_are_10_and_bad_words_2),
             SP_TEST(what_is_no_status_is_20_and_nothing_is_printed),
             SP_TEST(a_table_is_made_of_whatever_is_there), SP_TEST(a_key_goes_along),
             SP_TEST(wrong_words_are_usage_errors), SP_TEST(nobody_there_is_told))
