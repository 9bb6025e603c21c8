#include "frontend/http.h"

#include "frontend/http_conn.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_A_TURN 64   /* then the other connections get their turn */
#define BODY_GRACE_MS 5000  /* before the rate of a body counts */
#define BODY_BYTES_PER_MS 1 /* about 1 KiB/s */

static void set_option(int fd, int level, int name, int value) {
    /* A refused option costs speed or a late notice, never a connection. */
    (void)setsockopt(fd, level, name, &value, sizeof value);
}

static bool address_is_loopback(const struct sockaddr *sa) {
    if (sa->sa_family == AF_INET) {
        uint32_t a = ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr);
        return a >> 24 == 127;
    }
    const struct in6_addr *a = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    return sa->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(a);
}

static sp_status bind_to(sp_http *h, const struct addrinfo *ai, sp_err *err) {
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return SP_FAIL(err, SP_E_IO, "socket: %s", strerror(errno));
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    /* Accepted sockets inherit these. */
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, h->config.stall_ms);
    if (ai->ai_family == AF_INET6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);

    if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, h->config.backlog) != 0) {
        int why = errno;
        close(fd);
        if (why == EADDRINUSE)
            return SP_FAIL(err, SP_E_IO,
                           "port %d on '%s' is in use by another program; give another --port",
                           h->config.port, h->config.host);
        return SP_FAIL(err, SP_E_IO, "cannot listen on '%s' port %d: %s", h->config.host,
                       h->config.port, strerror(why));
    }
    h->listen_fd = fd;
    h->loopback = address_is_loopback(ai->ai_addr);
    return SP_OK;
}

static int port_of(int fd) {
    struct sockaddr_storage sa;
    socklen_t len = sizeof sa;
    memset(&sa, 0, sizeof sa);
    if (getsockname(fd, (struct sockaddr *)&sa, &len) != 0) return 0;
    if (sa.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&sa)->sin_port);
    return ntohs(((struct sockaddr_in6 *)&sa)->sin6_port);
}

static sp_status listen_at(sp_http *h, sp_err *err) {
    char port[16];
    snprintf(port, sizeof port, "%d", h->config.port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *list;
    int rc = getaddrinfo(h->config.host, port, &hints, &list);
    if (rc != 0)
        return SP_FAIL(err, SP_E_INVALID, "host '%s' has no address to listen on: %s",
                       h->config.host, gai_strerror(rc));
    sp_status st = SP_E_IO;
    /* IPv4 first: "localhost" is often both, and most clients then try 127.0.0.1. */
    for (int pass = 0; pass < 2 && st != SP_OK; pass++)
        for (const struct addrinfo *ai = list; ai && st != SP_OK; ai = ai->ai_next)
            if ((ai->ai_family == AF_INET) == (pass == 0)) st = bind_to(h, ai, err);
    freeaddrinfo(list);
    if (st == SP_OK) h->port = port_of(h->listen_fd);
    return st;
}

/* Without a free descriptor the waiting connection would wake the loop for ever: one is kept spare,
 * given up to accept and close it. */
static void shed_one(sp_http *h) {
    close(h->spare_fd);
    int fd = accept4(h->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) close(fd);
    h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    h->stats.over_cap++;
}

static void turn_away(sp_http *h, int fd) {
    static const char words[] =
        "{\"error\":{\"message\":\"too many connections\",\"type\":\"ServiceUnavailableError\","
        "\"param\":null,\"code\":503}}";
    char text[400];
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                     "Retry-After: 1\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                     sizeof words - 1, words);
    (void)send(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
    close(fd);
    h->stats.over_cap++;
}

static void on_accept(void *ctx, unsigned ready) {
    sp_http *h = ctx;
    (void)ready;
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(h->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) shed_one(h);
        if (fd < 0) return;
        if (h->stats.connections >= h->config.max_connections)
            turn_away(h, fd);
        else
            sp_http_conn_open(h, fd);
    }
}

static void bury(sp_http *h) {
    while (h->graves) {
        sp_http_call *c = h->graves;
        h->graves = c->next;
        sp_free(c);
    }
}

void sp_http_flush(sp_http *h) {
    while (h->dirty) {
        sp_http_call *c = h->dirty;
        h->dirty = c->next_dirty;
        c->dirty = false;
        sp_http_conn_flush(c);
    }
}

static void after_turn(void *ctx) {
    sp_http_flush(ctx);
    bury(ctx);
}

static bool body_is_slow(const sp_http_call *c, int64_t age_ms) {
    int64_t counted = age_ms - BODY_GRACE_MS;
    return counted > 0 && (int64_t)c->req->body_received < counted * BODY_BYTES_PER_MS;
}

/* Which limit of time a connection has passed: 0 none, -1 cut it, else a status to refuse with. */
static int overdue(const sp_http *h, const sp_http_call *c, int64_t now) {
    int64_t age_ms = (now - c->state_ns) / SP_NS_PER_MS;
    bool stalled =
        sp_http_conn_unsent(c) > 0 && (now - c->progress_ns) / SP_NS_PER_MS > h->config.stall_ms;
    if (stalled) return -1;
    switch (c->state) {
    case SP_HTTP_STATE_HEAD:
        if (c->scan.at > 0) return age_ms > h->config.head_ms ? 408 : 0;
        return age_ms > h->config.idle_ms ? -1 : 0;
    case SP_HTTP_STATE_BODY:
        return body_is_slow(c, age_ms) ? 408 : 0;
    case SP_HTTP_STATE_LINGER:
        return age_ms > h->config.linger_ms ? -1 : 0;
    case SP_HTTP_STATE_ANSWER:
    case SP_HTTP_STATE_CLOSING:
    case SP_HTTP_STATE_DEAD:
        break;
    }
    return 0;
}

/* A full input buffer is not read on, so the close behind it has to be asked for. (libevent's
 * EV_CLOSED alone would spin on a reset: epoll then reports an error, which it does not match.) */
static bool left_unread(const sp_http_call *c) {
    if (c->in.len - c->in_at < SP_HTTP_IN_MAX) return false;
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static void sweep(void *ctx) {
    sp_http *h = ctx;
    int64_t now = sp_now_ns();
    for (sp_http_call *c = h->calls, *next; c; c = next) {
        next = c->next;
        int late = overdue(h, c, now);
        if (late == 0 && left_unread(c)) late = -1;
        if (late == 0) continue;
        bool slow_reader = sp_http_conn_unsent(c) > 0;
        if (late > 0) {
            h->stats.timed_out++;
            sp_http_conn_refuse(c, (sp_http_fault){late, "the request did not come in time"});
        } else {
            if (slow_reader) h->stats.cut_slow++;
            sp_http_conn_kill(c);
        }
        /* A watcher told by kill may have closed other connections, the next one among them. */
        if (next && next->state == SP_HTTP_STATE_DEAD) return;
    }
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

sp_status sp_http_create(sp_http **out, sp_loop *loop, const sp_http_config *config,
                         const sp_http_handler *handler, sp_err *err) {
    sp_status st = SP_E_NOMEM;
    sp_http *h = sp_alloc(sizeof *h);
    h->loop = loop;
    h->config = *config;
    h->handler = *handler;
    h->listen_fd = -1;
    h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    st = listen_at(h, err);
    if (st != SP_OK) goto free_http;
    h->config.host = NULL;

    st = sp_loop_io_open(&h->listener, loop, h->listen_fd, on_accept, h);
    if (st != SP_OK) goto close_listener;
    int shortest = smaller(smaller(config->head_ms, config->idle_ms),
                           smaller(config->stall_ms, config->linger_ms));
    int period = shortest / 4 < 20 ? 20 : smaller(shortest / 4, 500);
    st = sp_loop_every(&h->sweeper, loop, period, sweep, h);
    if (st != SP_OK) goto close_listener;
    sp_loop_io_want(h->listener, SP_LOOP_READ);
    sp_loop_set_after(loop, after_turn, h);
    *out = h;
    return SP_OK;

close_listener:
    (void)SP_FAIL(err, st, "no memory for the listener");
    sp_loop_io_close(h->listener);
    close(h->listen_fd);
free_http:
    if (h->spare_fd >= 0) close(h->spare_fd);
    sp_free(h);
    return st;
}

void sp_http_destroy(sp_http *h) {
    if (!h) return;
    while (h->calls) sp_http_conn_kill(h->calls);
    bury(h);
    sp_loop_set_after(h->loop, NULL, NULL);
    sp_loop_timer_close(h->sweeper);
    sp_loop_io_close(h->listener);
    close(h->listen_fd);
    if (h->spare_fd >= 0) close(h->spare_fd);
    sp_free(h);
}

int sp_http_port(const sp_http *h) {
    return h->port;
}
bool sp_http_on_loopback(const sp_http *h) {
    return h->loopback;
}
const sp_http_stats *sp_http_get_stats(const sp_http *h) {
    return &h->stats;
}
void sp_http_set_closing(sp_http *h) {
    h->closing = true;
}

int sp_http_count_busy(const sp_http *h) {
    int n = 0;
    for (const sp_http_call *c = h->calls; c; c = c->next)
        n += c->req != NULL || sp_http_conn_unsent(c) > 0;
    return n;
}

bool sp_http_call_is_local(const sp_http_call *c) {
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof sa;
    if (getpeername(c->fd, (struct sockaddr *)&sa, &len) != 0) return false;
    if (sa.ss_family == AF_INET)
        return ntohl(((struct sockaddr_in *)&sa)->sin_addr.s_addr) >> 24 == 127;
    if (sa.ss_family != AF_INET6) return false;
    const struct in6_addr *a = &((struct sockaddr_in6 *)&sa)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
}

void sp_http_call_peer(const sp_http_call *c, char *out, size_t n) {
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof sa;
    char host[INET6_ADDRSTRLEN] = "?";
    int port = 0;
    if (getpeername(c->fd, (struct sockaddr *)&sa, &len) != 0) {
        snprintf(out, n, "?");
        return;
    }
    if (sa.ss_family == AF_INET) {
        const struct sockaddr_in *in = (struct sockaddr_in *)&sa;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        port = ntohs(in->sin_port);
    } else if (sa.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&sa;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        port = ntohs(in6->sin6_port);
    }
    snprintf(out, n, "%s:%d", host, port);
}
