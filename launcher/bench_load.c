#include "launcher/bench_load.h"

#include "launcher/bench_body.h"
#include "launcher/bench_target.h"
#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXAMPLE_MAX ((size_t)2048) /* kept of the body of a refusal */
#define READ_BYTES ((size_t)64 * 1024)
#define TICK_MS 100
#define EPOLL_MAX 256

typedef struct load load;

typedef struct conn {
    load *owner;
    int fd;       /* -1: none */
    bool is_busy; /* a request is under way */
    bool is_old;  /* the connection has answered before */
    bool wants_out;
    int64_t index; /* of the request */
    sp_buf out;
    size_t n_sent;
    sp_response response;
    sp_events events;
    sp_buf body; /* not streamed, or refused */
    int64_t begin_ns, first_ns, last_ns;
    int64_t n_events, n_usage_out, n_usage_in; /* usage: -1 not told */
    bool has_done, has_error;
} conn;

struct load {
    const sp_load_config *config;
    sp_load_result *result; /* NULL while warming up */
    sp_target target;
    int epoll, n_conns;
    conn *conns;
    int64_t n_started, n_ended, n_wanted;
    int64_t began_ns; /* this phase */
    int64_t now_ns;   /* of the read that is being worked on */
    char *bytes;      /* READ_BYTES */
};

/* Bucket b holds times up to 1.01^(b+1) us. */
static void add_time(sp_load_times *t, int64_t ns) {
    double us = (double)ns / 1e3;
    int b = us > 1 ? (int)(log(us) / log(1.01)) : 0;
    t->buckets[b < SP_LOAD_BUCKETS ? b : SP_LOAD_BUCKETS - 1]++;
    t->n++;
    if (ns > t->max_ns) t->max_ns = ns;
}

int64_t sp_load_quantile(const sp_load_times *t, double q) {
    uint64_t below = (uint64_t)ceil(q * (double)t->n), seen = 0;
    if (t->n == 0) return 0;
    for (int b = 0; b < SP_LOAD_BUCKETS; b++) {
        seen += t->buckets[b];
        if (seen < below || seen == 0) continue;
        int64_t ns = (int64_t)(pow(1.01, b + 0.5) * 1e3);
        return ns < t->max_ns ? ns : t->max_ns;
    }
    return t->max_ns;
}

sp_slice sp_load_value_of(sp_slice json, const char *key) {
    char quoted[64];
    int n = snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (size_t from = 0; json.len > 0;) {
        ptrdiff_t at = sp_slice_find(json, (sp_slice){quoted, (size_t)n}, from);
        if (at < 0) break;
        size_t i = from = (size_t)at + (size_t)n;
        while (i < json.len && (json.ptr[i] == ' ' || json.ptr[i] == '\t')) i++;
        if (i >= json.len || json.ptr[i] != ':') continue; /* a value that is spelled so */
        for (i++; i < json.len && (json.ptr[i] == ' ' || json.ptr[i] == '\t');) i++;
        return (sp_slice){json.ptr + i, json.len - i};
    }
    return (sp_slice){json.ptr, 0};
}

static int64_t number_of(sp_slice json, const char *key) {
    sp_slice v = sp_load_value_of(json, key);
    size_t n = 0;
    int64_t out = -1;
    while (n < v.len && n < 18 && v.ptr[n] >= '0' && v.ptr[n] <= '9') n++;
    if (sp_parse_i64((sp_slice){v.ptr, n}, &out) != SP_OK) return -1;
    return out;
}

static void read_usage(conn *c, sp_slice json) {
    sp_slice usage = sp_load_value_of(json, "usage");
    if (usage.len == 0 || usage.ptr[0] != '{') return;
    c->n_usage_out = number_of(usage, "completion_tokens");
    c->n_usage_in = number_of(usage, "prompt_tokens");
}

/* Text, or what stands for it: thoughts and the arguments of a tool call are tokens too. */
static bool has_text(const conn *c, sp_slice event) {
    static const char *const keys[] = {"text", "content", "reasoning_content", "reasoning",
                                       "arguments"};
    const bool is_chat = c->owner->config->is_chat;
    for (size_t i = is_chat ? 1 : 0; i < (is_chat ? SP_LEN(keys) : 1); i++) {
        sp_slice v = sp_load_value_of(event, keys[i]);
        if (v.len >= 2 && v.ptr[0] == '"' && v.ptr[1] != '"') return true;
    }
    return false;
}

static void on_event(void *ctx, sp_slice data) {
    conn *c = ctx;
    if (sp_slice_is(data, "[DONE]")) {
        c->has_done = true;
        return;
    }
    if (sp_slice_starts(data, SP_SLICE("{\"error\"")) ||
        sp_slice_starts(data, SP_SLICE("{ \"error\""))) {
        c->has_error = true;
        sp_buf_put_slice(&c->body,
                         (sp_slice){data.ptr, data.len < EXAMPLE_MAX ? data.len : EXAMPLE_MAX});
        return;
    }
    read_usage(c, data);
    if (!has_text(c, data)) return;
    int64_t now = c->owner->now_ns;
    sp_load_result *r = c->owner->result;
    if (c->n_events++ == 0)
        c->first_ns = now;
    else if (r)
        add_time(&r->gap, now - c->last_ns);
    c->last_ns = now;
}

static void on_body(void *ctx, sp_slice piece) {
    conn *c = ctx;
    if (c->response.status == 200 && c->response.is_events) {
        if (sp_events_feed(&c->events, piece, on_event, c, NULL) != SP_OK) c->has_error = true;
    } else if (c->response.status == 200 || c->body.len < EXAMPLE_MAX) {
        sp_buf_put_slice(&c->body, piece);
    }
}

static void count_failure(load *l, const char *kind, sp_slice example) {
    sp_load_result *r = l->result;
    l->n_ended++;
    if (!r) return;
    r->n_failed++;
    int k = 0;
    while (k < r->n_kinds && strcmp(r->kinds[k].name, kind) != 0) k++;
    if (k == SP_LOAD_KINDS_MAX) k--; /* the last one takes in all that came later */
    if (k == r->n_kinds) {
        r->n_kinds++;
        snprintf(r->kinds[k].name, sizeof r->kinds[k].name, "%s", kind);
        char *to = r->kinds[k].example;
        size_t n =
            example.len < sizeof r->kinds[k].example ? example.len : sizeof r->kinds[k].example - 1;
        for (size_t i = 0; i < n; i++)
            to[i] = (unsigned char)example.ptr[i] < ' ' ? ' ' : example.ptr[i];
    }
    r->kinds[k].n++;
}

static void drop_connection(conn *c) {
    if (c->fd >= 0) {
        if (c->owner->result) c->owner->result->n_bytes_out += c->n_sent;
        close(c->fd);
    }
    c->fd = -1;
    c->n_sent = 0;
    c->is_old = false;
}

static void fail(conn *c, const char *kind, sp_slice example) {
    c->is_busy = false;
    drop_connection(c);
    count_failure(c->owner, kind, example);
}

static void fail_errno(conn *c, const char *kind) {
    fail(c, kind, sp_slice_of(strerror(errno)));
}

static bool is_within(int64_t ns, int64_t limit_ns) {
    return limit_ns == 0 || ns <= limit_ns;
}

/* What follows the first token, by how many that is; an answer of one token has no such time. */
static void count_against_limits(const conn *c, int64_t n_out, int64_t whole_ns) {
    const sp_load_config *config = c->owner->config;
    sp_load_result *r = c->owner->result;
    int64_t first_ns = c->n_events > 0 ? c->first_ns - c->begin_ns : whole_ns, each_ns = 0;
    if (n_out > 1 && c->n_events > 0) {
        each_ns = (whole_ns - first_ns) / (n_out - 1);
        add_time(&r->each, each_ns);
    }
    for (int i = 0; i < config->n_limits; i++) {
        const sp_load_limits *limits = &config->limits[i];
        r->n_good[i] += is_within(first_ns, limits->ttft_ns) &&
                        is_within(each_ns, limits->tpot_ns) && is_within(whole_ns, limits->e2e_ns);
    }
}

static void count_success(conn *c) {
    load *l = c->owner;
    sp_load_result *r = l->result;
    l->n_ended++;
    if (!r) return;
    const int64_t n_out = c->n_usage_out >= 0 ? c->n_usage_out : c->n_events;
    r->n_completed++;
    r->n_bytes_out += c->n_sent;
    r->n_events += c->n_events;
    r->n_output_tokens += n_out;
    r->n_prompt_tokens += c->n_usage_in >= 0 ? c->n_usage_in : 0;
    r->n_without_usage += c->n_usage_out < 0;
    if (c->n_events > 0) add_time(&r->first, c->first_ns - c->begin_ns);
    add_time(&r->whole, l->now_ns - c->begin_ns);
    count_against_limits(c, n_out, l->now_ns - c->begin_ns);
}

/* The whole response has come. */
static void end_request(conn *c) {
    const bool streams = c->owner->config->streams;
    sp_slice body = sp_buf_slice(&c->body);
    char kind[48];
    snprintf(kind, sizeof kind, "status %d", c->response.status);
    if (c->response.status != 200) {
        fail(c, kind, body);
    } else if (streams && !c->response.is_events) {
        fail(c, "not an event stream", body);
    } else if (c->has_error) {
        fail(c, "error in the stream", body);
    } else if (streams && !c->has_done) {
        fail(c, "stream without [DONE]", body);
    } else if (c->body.failed) {
        fail(c, "answer too long", SP_SLICE("above the most that is kept"));
    } else {
        if (!streams) read_usage(c, body);
        count_success(c);
        c->is_busy = false;
        c->is_old = true;
        c->n_sent = 0;
        if (!c->response.keeps_alive) drop_connection(c);
    }
}

static void build_request(conn *c) {
    const sp_load_config *config = c->owner->config;
    sp_buf body;
    sp_buf_init(&body, 0);
    sp_load_put_body(&body, config, c->owner->target.model, c->index);
    sp_buf_clear(&c->out);
    sp_target_put_head(&c->out, config, "POST",
                       config->is_chat ? "chat/completions" : "completions");
    sp_buf_printf(&c->out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                  body.len);
    sp_buf_put_slice(&c->out, sp_buf_slice(&body));
    sp_buf_fini(&body);
}

static void watch(conn *c, bool out, int op) {
    struct epoll_event e = {.events = out ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    c->wants_out = out;
    epoll_ctl(c->owner->epoll, op, c->fd, &e);
}

static bool connect_again(conn *c) {
    load *l = c->owner;
    c->fd = sp_target_socket(&l->target, SOCK_NONBLOCK);
    if (c->fd < 0 ||
        (connect(c->fd, (struct sockaddr *)&l->target.address, l->target.address_len) != 0 &&
         errno != EINPROGRESS))
        return false;
    watch(c, true, EPOLL_CTL_ADD);
    return true;
}

static void send_more(conn *c) {
    while (c->n_sent < c->out.len) {
        ssize_t n = send(c->fd, c->out.ptr + c->n_sent, c->out.len - c->n_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        /* What the server has to say about it may be there to read; so only stop writing. */
        if (n < 0) break;
        c->n_sent += (size_t)n;
    }
    bool out = c->n_sent < c->out.len;
    if (out != c->wants_out) watch(c, out, EPOLL_CTL_MOD);
}

static void reset_answer(conn *c) {
    sp_response_init(&c->response);
    sp_events_clear(&c->events);
    sp_buf_clear(&c->body);
    c->n_events = 0;
    c->n_usage_out = c->n_usage_in = -1;
    c->has_done = c->has_error = false;
}

/* When a request of the trace is to be sent. */
static int64_t due_ns(const load *l, int64_t index) {
    return l->began_ns + l->config->trace->rows[index].at_ns;
}

static void begin_request(conn *c) {
    load *l = c->owner;
    c->index = l->n_started++;
    build_request(c);
    reset_answer(c);
    c->is_busy = true;
    c->n_sent = 0;
    c->begin_ns = l->config->trace ? due_ns(l, c->index) : sp_now_ns();
    if (c->out.failed)
        fail(c, "out of memory", SP_SLICE("building a request"));
    else if (c->fd >= 0)
        send_more(c);
    else if (!connect_again(c))
        fail_errno(c, "connect");
}

/* A server may close an idle connection at the moment in which we use it: then, and only when not
 * a byte of an answer has come, the request is sent once more. */
static void peer_closed(conn *c, bool is_reset) {
    sp_err err = {0};
    bool is_fresh = c->response.state == SP_RESPONSE_STATUS_LINE && c->response.n_line == 0;
    if (c->is_old && is_fresh) {
        drop_connection(c);
        if (!connect_again(c)) fail_errno(c, "connect");
    } else if (is_reset) {
        fail_errno(c, is_fresh && c->n_sent == 0 ? "connect" : "connection lost");
    } else if (sp_response_end(&c->response, &err) == SP_OK) {
        end_request(c);
    } else {
        fail(c, "closed early", sp_slice_of(err.text));
    }
}

static void read_more(conn *c) {
    load *l = c->owner;
    ssize_t n = recv(c->fd, l->bytes, READ_BYTES, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return;
    l->now_ns = sp_now_ns();
    if (!c->is_busy) { /* closed, or talks, while idle */
        drop_connection(c);
        return;
    }
    if (n <= 0) {
        peer_closed(c, n < 0);
        return;
    }
    if (l->result) l->result->n_bytes_in += (uint64_t)n;
    sp_err err = {0};
    size_t used;
    sp_status st =
        sp_response_feed(&c->response, (sp_slice){l->bytes, (size_t)n}, &used, on_body, c, &err);
    if (st == SP_OK) {
        if (used < (size_t)n) c->response.keeps_alive = false;
        end_request(c);
    } else if (st != SP_AGAIN) {
        fail(c, "bad response", sp_slice_of(err.text));
    }
}

static void expire(load *l) {
    int64_t now = sp_now_ns();
    for (int i = 0; i < l->n_conns; i++) {
        conn *c = &l->conns[i];
        if (c->is_busy && now - c->begin_ns > l->config->timeout_ns)
            fail(c, "timed out", SP_SLICE("no complete answer in time"));
    }
}

/* How long until the next request of the trace is due: 0 when it is. Without one all are. */
static int64_t pause_ns(const load *l, int64_t last) {
    if (!l->config->trace || l->n_started >= last) return 0;
    int64_t left = due_ns(l, l->n_started) - sp_now_ns();
    return left > 0 ? left : 0;
}

/* Those that are due, as far as there are idle connections; how long to wait for events at most. */
static int begin_requests(load *l, int64_t last) {
    int64_t left = 0;
    for (int i = 0; i < l->n_conns && l->n_started < last; i++) {
        if (l->conns[i].is_busy) continue;
        left = pause_ns(l, last);
        if (left > 0) break;
        begin_request(&l->conns[i]);
    }
    int64_t ms = (left + SP_NS_PER_MS - 1) / SP_NS_PER_MS;
    return left > 0 && ms < TICK_MS ? (int)ms : TICK_MS;
}

static sp_status run_phase(load *l, int64_t n_wanted, sp_err *err) {
    struct epoll_event events[EPOLL_MAX];
    l->began_ns = sp_now_ns();
    int64_t next_tick = l->began_ns + TICK_MS * SP_NS_PER_MS;
    l->n_ended = 0;
    l->n_wanted = n_wanted;
    const int64_t last = l->n_started + n_wanted;
    while (l->n_ended < l->n_wanted) {
        int wait_ms = begin_requests(l, last);
        if (l->n_ended >= l->n_wanted) break;
        int n = epoll_wait(l->epoll, events, EPOLL_MAX, wait_ms);
        if (n < 0 && errno != EINTR) return SP_FAIL(err, SP_E_IO, "epoll: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            /* Reading first: an error is told once, and sending would swallow it. */
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) read_more(c);
            if ((events[i].events & EPOLLOUT) && c->is_busy && c->fd >= 0) send_more(c);
        }
        if (sp_now_ns() < next_tick) continue;
        expire(l);
        next_tick = sp_now_ns() + TICK_MS * SP_NS_PER_MS;
    }
    return SP_OK;
}

static int64_t cpu_ns(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * SP_NS_PER_S +
           (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * SP_NS_PER_US;
}

static void open_conns(load *l) {
    l->conns = sp_alloc((size_t)l->n_conns * sizeof *l->conns);
    for (int i = 0; i < l->n_conns; i++) {
        conn *c = &l->conns[i];
        c->owner = l;
        c->fd = -1;
        sp_buf_init(&c->out, 0);
        sp_buf_init(&c->body, SP_LOAD_BODY_MAX);
        sp_events_init(&c->events);
    }
}

static void close_conns(load *l) {
    l->result = NULL;
    for (int i = 0; i < l->n_conns; i++) {
        drop_connection(&l->conns[i]);
        sp_buf_fini(&l->conns[i].out);
        sp_buf_fini(&l->conns[i].body);
        sp_events_fini(&l->conns[i].events);
    }
    sp_free(l->conns);
}

sp_status sp_load_run(const sp_load_config *config, sp_load_result *out, sp_err *err) {
    load l = {.config = config, .n_conns = config->n_streams};
    SP_ASSERT(!config->trace || (config->n_warmup == 0 && config->n_requests <= config->trace->n));
    SP_TRY(sp_target_find(&l.target, config, err));
    l.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l.epoll < 0) return SP_FAIL(err, SP_E_IO, "epoll: %s", strerror(errno));
    l.bytes = sp_alloc(READ_BYTES);
    open_conns(&l);
    sp_load_result *r = sp_alloc(sizeof *r);
    sp_status st = config->n_warmup ? run_phase(&l, config->n_warmup, err) : SP_OK;
    if (st == SP_OK) {
        l.result = r;
        int64_t begin = sp_now_ns(), cpu = cpu_ns();
        st = run_phase(&l, config->n_requests, err);
        r->wall_ns = sp_now_ns() - begin;
        r->cpu_ns = cpu_ns() - cpu;
        snprintf(r->model, sizeof r->model, "%s", l.target.model);
        if (st == SP_OK) *out = *r;
    }
    sp_free(r);
    close_conns(&l);
    sp_free(l.bytes);
    close(l.epoll);
    return st;
}
