/* tests/frontend/site.h - a front end on a thread of the test, with the fake engine behind it and a
 * small HTTP client before it.
 *
 * Include it from one file of a program (see tests/fake_engine.h). */
#pragma once

#include "frontend/server.h"
#include "runtime/base/json.h"
#include "tests/fake_engine.h"
#include "tests/harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define SITE_DATA "tests/data/frontend"

typedef struct site {
    sp_engine *engine;
    sp_tokenizer *tokenizer;
    sp_chat *chat;
    sp_server *server;
    sp_thread thread;
    int port;
} site;

typedef struct reply {
    int status; /* 0: the connection ended without one */
    char *head; /* status line and headers */
    char *body; /* chunks joined */
    size_t n_body;
    bool whole; /* it ended as it should */
} reply;

static inline void *site_main(void *arg) {
    sp_server_run(((site *)arg)->server);
    return NULL;
}

static const char *const site_names[] = {"tiny", "alias"};

static inline sp_server_config site_config(void) {
    sp_server_config c = SP_SERVER_CONFIG_DEFAULT;
    c.port = 0;
    c.model_names = site_names;
    c.n_model_names = 2;
    c.model_root = "/models/tiny";
    c.version = "1.2.3";
    return c;
}

/** Opens a site; `config` NULL: site_config(); `engine` NULL: a fake one that says "hello". */
static inline site *site_open(const sp_server_config *config, const sp_fake_engine_config *engine) {
    site *s = sp_alloc(sizeof *s);
    sp_err err = {0};
    sp_server_config plain = site_config();
    sp_fake_engine_config says_hello = {0};
    s->engine = sp_fake_engine_create(engine ? engine : &says_hello);
    sp_status st = sp_tokenizer_load(&s->tokenizer, SITE_DATA, &err);
    if (st == SP_OK) st = sp_chat_load(&s->chat, SITE_DATA, s->tokenizer, &err);
    if (st == SP_OK)
        st = sp_server_create(&s->server, config ? config : &plain, s->engine, s->tokenizer,
                              s->chat, &err);
    if (st == SP_OK) st = sp_thread_start(&s->thread, "loop", site_main, s, &err);
    if (st != SP_OK) fprintf(stderr, "site: %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    s->port = sp_server_bound_port(s->server);
    return s;
}

static inline void site_close(site *s) {
    sp_server_drain(s->server, 0);
    sp_thread_join(&s->thread);
    sp_server_destroy(s->server);
    sp_fake_engine_destroy(s->engine);
    sp_chat_free(s->chat);
    sp_tokenizer_free(s->tokenizer);
    sp_free(s);
}

static inline int site_connect(const site *s) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static inline bool site_send_n(int fd, const void *p, size_t n) {
    const char *at = p;
    while (n > 0) {
        ssize_t k = send(fd, at, n, MSG_NOSIGNAL);
        if (k <= 0) return false;
        at += k;
        n -= (size_t)k;
    }
    return true;
}
static inline bool site_send(int fd, const char *text) {
    return site_send_n(fd, text, strlen(text));
}

/* Reads one more piece; false at the end. */
static inline bool site_more(int fd, sp_buf *b) {
    char piece[16384];
    ssize_t n = recv(fd, piece, sizeof piece, 0);
    if (n <= 0) return false;
    sp_buf_put(b, piece, (size_t)n);
    return true;
}

/** Reads until `b` holds `text`. */
static inline bool site_read_until(int fd, sp_buf *b, const char *text) {
    while (!b->ptr || !strstr(b->ptr, text))
        if (!site_more(fd, b)) return false;
    return true;
}

static inline void site_take_chunks(int fd, sp_buf *raw, size_t at, reply *r, sp_buf *body) {
    for (;;) {
        char *line_end;
        while (!(line_end = raw->len > at ? strstr(raw->ptr + at, "\r\n") : NULL))
            if (!site_more(fd, raw)) return;
        size_t n = strtoul(raw->ptr + at, NULL, 16);
        at = (size_t)(line_end - raw->ptr) + 2;
        while (raw->len < at + n + 2)
            if (!site_more(fd, raw)) return;
        sp_buf_put(body, raw->ptr + at, n);
        at += n + 2;
        if (n == 0) {
            r->whole = true;
            sp_buf_put(body, "", 0);
            /* What is left belongs to the next reply. */
            memmove(raw->ptr, raw->ptr + at, raw->len - at);
            raw->len -= at;
            raw->ptr[raw->len] = 0;
            return;
        }
    }
}

/** Reads one reply; `raw` holds what was read already and keeps what belongs to the next one. */
static inline reply site_read_reply(int fd, sp_buf *raw, bool no_body) {
    reply r = {0};
    sp_buf body;
    sp_buf_init(&body, 0);
    if (!site_read_until(fd, raw, "\r\n\r\n")) return r;
    size_t n_head = (size_t)(strstr(raw->ptr, "\r\n\r\n") - raw->ptr) + 4;
    r.head = sp_strndup(raw->ptr, n_head);
    r.status = atoi(raw->ptr + 9);
    const char *length = strcasestr(r.head, "\r\nContent-Length:");
    if (no_body || length) {
        size_t n = no_body ? 0 : strtoul(length + 17, NULL, 10);
        while (raw->len < n_head + n && site_more(fd, raw)) continue;
        r.whole = raw->len >= n_head + n;
        if (r.whole) {
            sp_buf_put(&body, raw->ptr + n_head, n);
            memmove(raw->ptr, raw->ptr + n_head + n, raw->len - n_head - n);
            raw->len -= n_head + n;
            raw->ptr[raw->len] = 0;
        }
    } else if (strcasestr(r.head, "Transfer-Encoding: chunked")) {
        site_take_chunks(fd, raw, n_head, &r, &body);
    } else {
        while (site_more(fd, raw)) continue;
        sp_buf_put(&body, raw->ptr + n_head, raw->len - n_head);
        raw->len = 0;
        r.whole = true;
    }
    sp_buf_put(&body, "", 0);
    r.body = body.ptr;
    r.n_body = body.len;
    return r;
}

static inline void reply_fini(reply *r) {
    sp_free(r->head);
    sp_free(r->body);
    *r = (reply){0};
}

/** Sends raw bytes on a connection of its own and reads one reply. */
static inline reply site_raw_n(const site *s, const void *bytes, size_t n) {
    int fd = site_connect(s);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    site_send_n(fd, bytes, n);
    reply r = site_read_reply(fd, &raw, n > 4 && memcmp(bytes, "HEAD", 4) == 0);
    sp_buf_fini(&raw);
    close(fd);
    return r;
}
static inline reply site_raw(const site *s, const char *text) {
    return site_raw_n(s, text, strlen(text));
}

static inline char *site_request(const char *method, const char *path, const char *headers,
                                 const char *json) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_printf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path, headers);
    if (json)
        sp_buf_printf(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                      strlen(json));
    sp_buf_printf(&b, "\r\n%s", json ? json : "");
    return b.ptr;
}

static inline reply site_ask(const site *s, const char *method, const char *path,
                             const char *headers, const char *json) {
    char *text = site_request(method, path, headers, json);
    reply r = site_raw(s, text);
    sp_free(text);
    return r;
}
static inline reply site_get(const site *s, const char *path) {
    return site_ask(s, "GET", path, "", NULL);
}
static inline reply site_post(const site *s, const char *path, const char *json) {
    return site_ask(s, "POST", path, "", json);
}

/** The value of a header of a reply (static memory), or NULL. */
static inline const char *reply_header(const reply *r, const char *name) {
    static char value[512];
    char key[100];
    snprintf(key, sizeof key, "\r\n%s: ", name);
    const char *at = r->head ? strcasestr(r->head, key) : NULL;
    if (!at) return NULL;
    at += strlen(key);
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\r"), at);
    return value;
}

static inline sp_json *site_json(const char *text) {
    sp_json *doc = NULL;
    sp_err err = {0};
    if (sp_json_parse(&doc, sp_slice_of(text ? text : ""), 0, &err) != SP_OK)
        fprintf(stderr, "not JSON: %s: %.200s\n", err.text, text ? text : "(nothing)");
    CU_ASSERT_PTR_NOT_NULL_FATAL(doc);
    return doc;
}

/** Follows "a.0.b" from `v`. */
static inline const sp_json_node *json_path(const sp_json_node *v, const char *path) {
    char key[64];
    while (v && *path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        v = sp_json_type_of(v) == SP_JSON_ARRAY ? sp_json_at(v, atoi(key)) : sp_json_find(v, key);
        path += path[n] ? n + 1 : n;
    }
    return v;
}
/* Not inlined: the compiler would compare the words for "none" with a test's own. */
static __attribute__((unused, noinline)) const char *json_str(const sp_json_node *v,
                                                              const char *path) {
    const char *s = sp_json_string(json_path(v, path)).ptr;
    return s ? s : "(no string)";
}

/** The `data:` payloads of an event stream. */
typedef struct stream {
    char *text;
    char *data[4096];
    int n;
    bool done; /* the last one was [DONE] */
    int pings;
} stream;

static inline stream *stream_of(const char *body) {
    stream *st = sp_alloc(sizeof *st);
    st->text = sp_strdup(body ? body : "");
    for (char *save = NULL, *line = strtok_r(st->text, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        if (line[0] == ':') st->pings++;
        if (strncmp(line, "data: ", 6) != 0) continue;
        st->done = strcmp(line + 6, "[DONE]") == 0;
        if (!st->done && st->n < (int)SP_LEN(st->data)) st->data[st->n++] = line + 6;
    }
    return st;
}
static inline void stream_free(stream *st) {
    sp_free(st->text);
    sp_free(st);
}

/** The concatenated content of one choice of a stream: path "delta.content" or "text". */
static inline char *stream_text(const stream *st, int choice, const char *path) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_put(&b, "", 0);
    for (int i = 0; i < st->n; i++) {
        sp_json *doc = site_json(st->data[i]);
        const sp_json_node *c = json_path(sp_json_root(doc), "choices.0");
        if (c && sp_json_int(sp_json_find(c, "index")) == choice)
            sp_buf_put_slice(&b, sp_json_string(json_path(c, path)));
        sp_json_free(doc);
    }
    return b.ptr;
}
