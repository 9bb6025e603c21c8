#include "launcher/remote.h"

#include "launcher/bench_target.h"
#include "launcher/http_client.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define URL_DEFAULT "http://127.0.0.1:8000"
#define ANSWER_MAX ((size_t)16 << 20)

typedef struct ask {
    const char *url, *key;
    int64_t timeout_s;
    bool json, startup, live, ready;
} ask;

/* ---- one request ---- */

static void keep(void *ctx, sp_slice piece) {
    sp_buf_put_slice(ctx, piece);
}

static int connect_to(const sp_url *url, int64_t timeout_s, sp_err *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int rc = getaddrinfo(url->host, url->port, &hints, &list), fd = -1;
    if (rc != 0) {
        sp_err_set(err, SP_E_UNAVAILABLE, __FILE__, __LINE__, "'%.100s': %s", url->host,
                   gai_strerror(rc));
        return -1;
    }
    struct timeval limit = {.tv_sec = timeout_s};
    int why = 0;
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) continue;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
        why = errno;
        close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    if (fd < 0)
        sp_err_set(err, SP_E_UNAVAILABLE, __FILE__, __LINE__, "nobody answers at %.100s:%s: %s",
                   url->host, url->port, strerror(why));
    return fd;
}

static sp_status exchange(int fd, const sp_buf *head, sp_response *r, sp_buf *body, sp_err *err) {
    char bytes[4096];
    if (send(fd, head->ptr, head->len, MSG_NOSIGNAL) != (ssize_t)head->len)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "asking: %s", strerror(errno));
    sp_response_init(r);
    for (sp_status st = SP_AGAIN; st != SP_OK;) {
        size_t used;
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n < 0)
            return SP_FAIL(err, SP_E_TIMEOUT, "no answer: %s",
                           errno == EAGAIN ? "timed out" : strerror(errno));
        st = n == 0 ? sp_response_end(r, err)
                    : sp_response_feed(r, (sp_slice){bytes, (size_t)n}, &used, keep, body, err);
        if (st != SP_OK && st != SP_AGAIN) return st;
        if (n == 0) return SP_OK;
    }
    return SP_OK;
}

/* `json` NULL: a GET, else the body of a POST. */
static sp_status request(const ask *a, const char *path, const char *json, int *status,
                         sp_buf *body, sp_err *err) {
    sp_url url;
    SP_TRY(sp_url_parse(&url, sp_slice_of(a->url), err));
    int fd = connect_to(&url, a->timeout_s, err);
    if (fd < 0) return err->code;
    sp_buf head;
    sp_buf_init(&head, 0);
    bool v6 = strchr(url.host, ':') != NULL;
    sp_buf_printf(&head, "%s %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nConnection: close\r\n",
                  json ? "POST" : "GET", url.path, path, v6 ? "[" : "", url.host, v6 ? "]" : "",
                  url.port);
    if (a->key) sp_buf_printf(&head, "Authorization: Bearer %s\r\n", a->key);
    sp_buf_puts(&head, "User-Agent: superpod\r\nAccept: */*\r\n");
    if (json)
        sp_buf_printf(&head, "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                      strlen(json));
    sp_buf_printf(&head, "\r\n%s", json ? json : "");
    sp_response *r = sp_alloc(sizeof *r);
    sp_status st = exchange(fd, &head, r, body, err);
    if (st == SP_OK) *status = r->status;
    sp_free(r);
    sp_buf_fini(&head);
    close(fd);
    return st;
}

/* ---- words ---- */

static bool take_option(ask *a, int argc, char **argv, int *at) {
    const char *word = argv[*at], *value = *at + 1 < argc ? argv[*at + 1] : NULL;
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {{"--json", &a->json},
                 {"--startup", &a->startup},
                 {"--live", &a->live},
                 {"--ready", &a->ready}};
    for (size_t i = 0; i < SP_LEN(flags); i++)
        if (strcmp(word, flags[i].name) == 0) return *flags[i].flag = true;
    if (!value) return false;
    ++*at;
    if (strcmp(word, "--url") == 0) return a->url = value, true;
    if (strcmp(word, "--api-key") == 0) return a->key = value, true;
    if (strcmp(word, "--timeout") == 0)
        return sp_parse_i64(sp_slice_of(value), &a->timeout_s) == SP_OK && a->timeout_s > 0 &&
               a->timeout_s <= 3600;
    return false;
}

static bool parse(ask *a, int argc, char **argv) {
    const char *url = getenv("SUPERPOD_URL"), *key = getenv("SUPERPOD_API_KEY");
    *a = (ask){.url = url ? url : URL_DEFAULT, .key = key, .timeout_s = 5};
    for (int i = 1; i < argc; i++)
        if (!take_option(a, argc, argv, &i)) return false;
    return true;
}

static const char *text_of(const sp_json_node *o, const char *key) {
    sp_slice s = sp_json_string(sp_json_find(o, key));
    return s.ptr ? s.ptr : "";
}

static long long int_of(const sp_json_node *o, const char *key) {
    const sp_json_node *v = sp_json_find(o, key);
    return sp_json_type_of(v) == SP_JSON_INT ? (long long)sp_json_int(v) : 0;
}

static double number_of(const sp_json_node *o, const char *key) {
    const sp_json_node *v = sp_json_find(o, key);
    sp_json_type t = sp_json_type_of(v);
    return t == SP_JSON_INT || t == SP_JSON_FLOAT ? sp_json_number(v) : 0;
}

/* As the preflight measured them; a pod on one node has none. */
static void print_links(const sp_json_node *list) {
    if (sp_json_count(list) == 0) return;
    printf("\n%-20s %-20s %10s %10s\n", "link", "", "rtt us", "GB/s tcp");
    for (const sp_json_node *n = sp_json_first(list); n; n = sp_json_next(n)) {
        printf("%-20s %-20s ", text_of(n, "from"), text_of(n, "to"));
        if (number_of(n, "rtt_us") > 0)
            printf("%10.1f %10.3f\n", number_of(n, "rtt_us"), number_of(n, "gb_per_s"));
        else
            printf("%s\n", text_of(n, "error"));
    }
}

static void print_table(const sp_json_node *root) {
    const sp_json_node *head = sp_json_find(root, "head");
    char shape[200];
    snprintf(shape, sizeof shape, "%s", text_of(root, "shape"));
    if (!shape[0])
        snprintf(shape, sizeof shape, "tp %lld x pp %lld", int_of(root, "tp"), int_of(root, "pp"));
    printf("model %s, %s, term %lld, epoch %lld, configuration %.12s\n", text_of(root, "model"),
           shape, int_of(head, "term"), int_of(root, "epoch"), text_of(root, "configuration"));
    printf("head  pid %lld on %s (started by %s, up %lld s)\n\n", int_of(head, "pid"),
           text_of(head, "host"), text_of(head, "launcher"), int_of(head, "uptime_s"));
    printf("%5s %5s %-20s %-22s %7s %6s %s\n", "agent", "node", "host", "address", "pid", "ranks",
           "state");
    const sp_json_node *list = sp_json_find(root, "nodes");
    for (const sp_json_node *n = sp_json_first(list); n; n = sp_json_next(n))
        printf("%5lld %5lld %-20s %-22s %7lld %6lld %s\n", int_of(n, "agent"), int_of(n, "node"),
               text_of(n, "host"), text_of(n, "address"), int_of(n, "pid"), int_of(n, "ranks"),
               text_of(n, "state"));
    print_links(sp_json_find(root, "links"));
    printf("\n%5s %5s %-8s %5s %3s %9s %6s %8s %10s %10s %7s %-20s %s\n", "rank", "group", "role",
           "stage", "tp", "layers", "heads", "kv_heads", "weights", "kv cache", "pid", "host",
           "state");
    list = sp_json_find(root, "ranks");
    for (const sp_json_node *n = sp_json_first(list); n; n = sp_json_next(n)) {
        const sp_json_node *layers = sp_json_find(n, "layers");
        char span[24], weights[24], kv[24];
        snprintf(span, sizeof span, "%lld-%lld", (long long)sp_json_int(sp_json_at(layers, 0)),
                 (long long)sp_json_int(sp_json_at(layers, 1)));
        printf("%5lld %5lld %-8s %5lld %3lld %9s %6lld %8lld %10s %10s %7lld %-20s %s\n",
               int_of(n, "rank"), int_of(n, "group"), text_of(n, "role"), int_of(n, "stage"),
               int_of(n, "tp_rank"), span, int_of(n, "heads"), int_of(n, "kv_heads"),
               sp_format_bytes(weights, sizeof weights, (uint64_t)int_of(n, "weight_bytes")),
               sp_format_bytes(kv, sizeof kv, (uint64_t)int_of(n, "kv_bytes")), int_of(n, "pid"),
               text_of(n, "host"), text_of(n, "state"));
    }
}

static sp_status show(const ask *a, const sp_buf *body, sp_err *err) {
    sp_json *doc;
    sp_status st = sp_json_parse(&doc, sp_buf_slice(body), 0, err);
    if (st != SP_OK) {
        sp_err_context(err, "%.100s tells no status", a->url);
        return st;
    }
    const sp_json_node *root = sp_json_root(doc);
    if (sp_json_type_of(root) != SP_JSON_OBJECT)
        st = SP_FAIL(err, SP_E_FORMAT, "%.100s tells no status: want an object, got %s", a->url,
                     sp_json_type_name(sp_json_type_of(root)));
    else if (a->json)
        printf("%s\n", body->ptr);
    else
        print_table(root);
    sp_json_free(doc);
    return st;
}

int sp_status_command(int argc, char **argv) {
    ask a;
    if (!parse(&a, argc, argv)) {
        fputs("usage: superpod status [--url http://HOST:PORT] [--json] [--api-key K] "
              "[--timeout S]\n",
              stderr);
        return SP_EXIT_USAGE;
    }
    sp_buf body;
    sp_err err = {0};
    int status = 0;
    sp_buf_init(&body, ANSWER_MAX);
    sp_status st = request(&a, "/superpod/status", NULL, &status, &body, &err);
    if (st == SP_OK && status != 200)
        st = SP_FAIL(&err, SP_E_UNAVAILABLE, "%s answers %d: %.120s", a.url, status,
                     body.len ? body.ptr : "");
    if (st == SP_OK) st = show(&a, &body, &err);
    sp_buf_fini(&body);
    if (st == SP_OK) return SP_EXIT_OK;
    fprintf(stderr, "superpod: %s\n", err.text);
    return SP_EXIT_PEER;
}

/* ---- pools ---- */

static void print_pools(const sp_json_node *root) {
    printf("%5s %-20s %-8s %3s %3s %5s %5s %7s %7s %8s %8s %8s %9s %9s\n", "group", "pool", "role",
           "tp", "pp", "first", "ranks", "running", "waiting", "blocks", "of", "load", "prompt/s",
           "output/s");
    const sp_json_node *list = sp_json_find(root, "pools");
    for (const sp_json_node *p = sp_json_first(list); p; p = sp_json_next(p)) {
        const sp_json_node *groups = sp_json_find(p, "groups");
        for (const sp_json_node *g = sp_json_first(groups); g; g = sp_json_next(g))
            printf("%5lld %-20s %-8s %3lld %3lld %5lld %5lld %7lld %7lld %8lld %8lld %8lld %9.0f "
                   "%9.0f\n",
                   int_of(g, "group"), text_of(p, "name"), text_of(g, "role"), int_of(p, "tp"),
                   int_of(p, "pp"), int_of(g, "first_rank"), int_of(g, "ranks"),
                   int_of(g, "running"), int_of(g, "waiting"), int_of(g, "blocks_used"),
                   int_of(g, "blocks_total"), int_of(g, "load_tokens"),
                   number_of(g, "prompt_tokens_per_s"), number_of(g, "generated_tokens_per_s"));
    }
}

static bool is_number(sp_slice s) {
    int64_t n;
    return sp_parse_i64(s, &n) == SP_OK;
}

/* NAME=ROLE... as {"pools":{...}}, ROLE=N... as {...}; not both. False: no such word. */
static bool put_wish(sp_buf *out, char *const *words, int n) {
    sp_jw w = sp_jw_on(out);
    bool counts = false;
    for (int i = 0; i < n; i++) {
        const char *eq = strchr(words[i], '=');
        if (!eq || eq == words[i] || !eq[1]) return false;
        bool number = is_number(sp_slice_of(eq + 1));
        if (i > 0 && number != counts) return false;
        counts = number;
    }
    sp_jw_object(&w);
    if (!counts) sp_jw_key(&w, "pools"), sp_jw_object(&w);
    for (int i = 0; i < n; i++) {
        char name[64];
        const char *eq = strchr(words[i], '=');
        int64_t number = 0;
        snprintf(name, sizeof name, "%.*s", (int)(eq - words[i]), words[i]);
        sp_jw_key(&w, name);
        if (counts && sp_parse_i64(sp_slice_of(eq + 1), &number) == SP_OK)
            sp_jw_int(&w, number);
        else
            sp_jw_str(&w, eq + 1);
    }
    if (!counts) sp_jw_object_end(&w);
    sp_jw_object_end(&w);
    return n > 0 && !out->failed;
}

static sp_status show_pools(const ask *a, const sp_buf *body, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, sp_buf_slice(body), 0, err));
    if (a->json)
        printf("%s\n", body->ptr);
    else
        print_pools(sp_json_root(doc));
    sp_json_free(doc);
    return SP_OK;
}

/* The words of a refusal, else all of the answer. */
static sp_status refused(const ask *a, int status, const sp_buf *body, sp_err *err) {
    sp_json *doc = NULL;
    sp_err none = {0};
    const char *why = "";
    if (body->len && sp_json_parse(&doc, sp_buf_slice(body), 0, &none) == SP_OK)
        why = text_of(sp_json_find(sp_json_root(doc), "error"), "message");
    sp_status st = SP_FAIL(err, status < 500 ? SP_E_INVALID : SP_E_UNAVAILABLE,
                           "%.100s answers %d: %.200s", a->url, status, why);
    sp_json_free(doc);
    return st;
}

static int ask_pools(const ask *a, const char *json) {
    sp_buf body;
    sp_err err = {0};
    int status = 0;
    sp_buf_init(&body, ANSWER_MAX);
    sp_status st = request(a, "/superpod/pools", json, &status, &body, &err);
    if (st == SP_OK && status != 200) st = refused(a, status, &body, &err);
    if (st == SP_OK) st = show_pools(a, &body, &err);
    sp_buf_fini(&body);
    if (st == SP_OK) return SP_EXIT_OK;
    fprintf(stderr, "superpod: %s\n", err.text);
    return st == SP_E_INVALID ? SP_EXIT_CONFIG : SP_EXIT_PEER;
}

int sp_pools_command(int argc, char **argv) {
    ask a;
    int words = 0; /* of `set`: they come first */
    bool set = argc > 1 && strcmp(argv[1], "set") == 0;
    while (set && 2 + words < argc && argv[2 + words][0] != '-') words++;
    int skip = set ? 1 + words : 0;
    sp_buf wish;
    sp_buf_init(&wish, 65536);
    bool good = parse(&a, argc - skip, argv + skip);
    if (good && set) good = put_wish(&wish, argv + 2, words);
    if (!good)
        fputs(
            "usage: superpod pools [--url http://HOST:PORT] [--json] [--api-key K] [--timeout S]\n"
            "       superpod pools set NAME=ROLE... [the same]     roles: mixed, prefill, decode\n"
            "       superpod pools set ROLE=GROUPS... [the same]   for all groups\n",
            stderr);
    int code = good ? ask_pools(&a, set ? wish.ptr : NULL) : SP_EXIT_USAGE;
    sp_buf_fini(&wish);
    return code;
}

int sp_probe_command(int argc, char **argv) {
    ask a;
    if (!parse(&a, argc, argv) || a.startup + a.live + a.ready != 1) {
        fputs("usage: superpod probe --startup|--live|--ready [--url http://HOST:PORT] "
              "[--timeout S]\n",
              stderr);
        return SP_EXIT_USAGE;
    }
    sp_buf body;
    sp_err err = {0};
    int status = 0;
    sp_buf_init(&body, ANSWER_MAX);
    sp_status st = request(&a, "/health", NULL, &status, &body, &err);
    bool ok = st == SP_OK && (a.live || status == 200);
    if (st != SP_OK)
        fprintf(stderr, "superpod: %s\n", err.text);
    else if (!ok)
        fprintf(stderr, "superpod: %s/health answers %d: %.120s\n", a.url, status,
                body.len ? body.ptr : "");
    sp_buf_fini(&body);
    return ok ? 0 : 1;
}
