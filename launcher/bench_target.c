#include "launcher/bench_target.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/time.h>
#include <unistd.h>

void sp_target_put_head(sp_buf *b, const sp_load_config *config, const char *verb,
                        const char *path) {
    const bool v6 = strchr(config->url.host, ':') != NULL;
    sp_buf_printf(b, "%s %s/v1/%s HTTP/1.1\r\nHost: %s%s%s:%s\r\n", verb, config->url.path, path,
                  v6 ? "[" : "", config->url.host, v6 ? "]" : "", config->url.port);
    sp_buf_puts(b, "User-Agent: superpod-bench\r\nAccept: */*\r\n");
    if (config->api_key) sp_buf_printf(b, "Authorization: Bearer %s\r\n", config->api_key);
}

int sp_target_socket(const sp_target *t, int flags) {
    int fd = socket(t->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), one = 1;
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void keep_body(void *ctx, sp_slice piece) {
    sp_buf_put_slice(ctx, piece);
}

/* GET /v1/models on a connection of its own, blocking. */
static sp_status ask_models(int fd, const sp_load_config *config, sp_buf *body, sp_err *err) {
    char bytes[4096];
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_target_put_head(&out, config, "GET", "models");
    sp_buf_puts(&out, "\r\n");
    ssize_t n = send(fd, out.ptr, out.len, MSG_NOSIGNAL);
    bool sent = n >= 0 && (size_t)n == out.len;
    sp_buf_fini(&out);
    if (!sent) return SP_FAIL(err, SP_E_UNAVAILABLE, "asking for models: %s", strerror(errno));
    sp_response *r = sp_alloc(sizeof *r);
    sp_response_init(r);
    sp_status st = SP_AGAIN;
    while (st == SP_AGAIN) {
        size_t used;
        n = recv(fd, bytes, sizeof bytes, 0);
        if (n < 0)
            st = SP_FAIL(err, SP_E_UNAVAILABLE, "asking for models: %s", strerror(errno));
        else if (n == 0)
            st = sp_response_end(r, err);
        else
            st = sp_response_feed(r, (sp_slice){bytes, (size_t)n}, &used, keep_body, body, err);
    }
    if (st == SP_OK && r->status != 200)
        st = SP_FAIL(err, SP_E_UNAVAILABLE, "asking for models: status %d: %.100s", r->status,
                     body->len ? body->ptr : "");
    sp_free(r);
    return st;
}

static sp_status first_model(int fd, sp_target *t, const sp_load_config *config, sp_err *err) {
    sp_buf body;
    sp_json *doc = NULL;
    sp_slice id = {0};
    sp_buf_init(&body, (size_t)1 << 20);
    sp_status st = ask_models(fd, config, &body, err);
    if (st == SP_OK) st = sp_json_parse(&doc, sp_buf_slice(&body), 0, err);
    if (st == SP_OK) {
        const sp_json_node *data = sp_json_find(sp_json_root(doc), "data");
        st = sp_json_get_string(sp_json_at(data, 0), "id", &id, err);
        if (st == SP_OK && (id.len == 0 || id.len >= sizeof t->model))
            st = SP_FAIL(err, SP_E_UNAVAILABLE, "the server tells no model; want --model");
    }
    if (st == SP_OK) snprintf(t->model, sizeof t->model, "%.*s", (int)id.len, id.ptr);
    sp_json_free(doc);
    sp_buf_fini(&body);
    return st;
}

sp_status sp_target_find(sp_target *t, const sp_load_config *config, sp_err *err) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
    struct timeval limit = {.tv_sec = config->timeout_ns / SP_NS_PER_S + 1};
    int rc = getaddrinfo(config->url.host, config->url.port, &hints, &list);
    if (rc != 0)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "host '%s': %s", config->url.host, gai_strerror(rc));
    int fd = -1, saved = 0;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        memcpy(&t->address, a->ai_addr, a->ai_addrlen);
        t->address_len = a->ai_addrlen;
        fd = sp_target_socket(t, 0);
        if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
        saved = errno;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    if (fd < 0)
        return SP_FAIL(err, SP_E_UNAVAILABLE, "connecting to '%s' port %s: %s", config->url.host,
                       config->url.port, strerror(saved));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sp_status st = SP_OK;
    if (config->model)
        snprintf(t->model, sizeof t->model, "%s", config->model);
    else
        st = first_model(fd, t, config, err);
    close(fd);
    return st;
}
