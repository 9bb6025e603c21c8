#include "frontend/http_conn.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NO_CHUNK SIZE_MAX
#define CHUNK_ROOM 10 /* up to 8 hex digits and CRLF, shortened when the chunk closes */
#define KEEP_BYTES ((size_t)16 * 1024)          /* a larger buffer is given back when it is empty */
#define LINGER_BYTES ((size_t)64 * 1024 * 1024) /* most that is read and dropped */

static void mark_dirty(sp_http_call *c) {
    if (c->dirty) return;
    c->dirty = true;
    c->next_dirty = c->http->dirty;
    c->http->dirty = c;
}

static void enter(sp_http_call *c, sp_http_state state) {
    c->state = state;
    c->state_ns = sp_now_ns();
}

static void drop_request(sp_http_call *c) {
    if (!c->req) return;
    sp_free(c->req->head_bytes);
    sp_buf_fini(&c->req->body);
    sp_free(c->req);
    c->req = NULL;
}

static void tell_done(sp_http_call *c, int status) {
    sp_http *h = c->http;
    int64_t began = c->req ? c->req->began_ns : c->state_ns;
    h->handler.on_done(h->handler.ctx, c, status, sp_now_ns() - began);
    c->tag = 0;
    c->status = 0;
}

void sp_http_conn_kill(sp_http_call *c) {
    if (c->state == SP_HTTP_STATE_DEAD) return;
    sp_http *h = c->http;
    bool in_work = c->req != NULL;
    void (*gone)(void *) = in_work ? c->req->gone : NULL;
    void *gone_ctx = in_work ? c->req->gone_ctx : NULL;
    if (in_work) tell_done(c, 499);
    c->state = SP_HTTP_STATE_DEAD;
    sp_loop_io_close(c->io);
    close(c->fd);
    if (c->prev)
        c->prev->next = c->next;
    else
        h->calls = c->next;
    if (c->next) c->next->prev = c->prev;
    c->next = h->graves;
    h->graves = c;
    h->stats.connections--;
    drop_request(c);
    sp_buf_fini(&c->in);
    sp_buf_fini(&c->out);
    if (gone) gone(gone_ctx);
}

/* Writing. */

static void open_chunk(sp_http_call *c) {
    c->chunk_at = c->out.len;
    sp_buf_put(&c->out, "00000000\r\n", CHUNK_ROOM);
}

/* Puts the size in front of what the open chunk gathered, and closes the gap before it. */
static void close_chunk(sp_http_call *c) {
    if (c->chunk_at == NO_CHUNK || c->out.failed) return;
    size_t n = c->out.len - c->chunk_at - CHUNK_ROOM;
    char size[CHUNK_ROOM + 1];
    int len = n ? snprintf(size, sizeof size, "%zx\r\n", n) : 0;
    char *at = c->out.ptr + c->chunk_at;
    memcpy(at, size, (size_t)len);
    memmove(at + len, at + CHUNK_ROOM, n);
    c->out.len = c->chunk_at + (size_t)len + n;
    c->out.ptr[c->out.len] = 0;
    c->chunk_at = NO_CHUNK;
    if (n) sp_buf_put(&c->out, "\r\n", 2);
}

static void end_or_linger(sp_http_call *c) {
    /* Closing with bytes unread makes the kernel send a reset, which may overtake our reply. */
    if (c->saw_eof || shutdown(c->fd, SHUT_WR) != 0) {
        sp_http_conn_kill(c);
        return;
    }
    enter(c, SP_HTTP_STATE_LINGER);
    c->in_at = c->in.len = 0;
}

static void all_sent(sp_http_call *c) {
    c->out_at = 0;
    if (c->out.cap > KEEP_BYTES || c->state == SP_HTTP_STATE_HEAD)
        sp_buf_fini(&c->out);
    else
        sp_buf_clear(&c->out);
    if (c->state == SP_HTTP_STATE_CLOSING) end_or_linger(c);
}

static void write_out(sp_http_call *c) {
    close_chunk(c);
    if (c->out.failed) {
        sp_http_conn_kill(c);
        return;
    }
    while (sp_http_conn_unsent(c) > 0) {
        ssize_t n = send(c->fd, c->out.ptr + c->out_at, sp_http_conn_unsent(c), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0) {
            sp_http_conn_kill(c);
            return;
        }
        c->out_at += (size_t)n;
        c->progress_ns = sp_now_ns();
    }
    if (sp_http_conn_unsent(c) == 0) {
        all_sent(c);
    } else if (c->out_at > KEEP_BYTES && c->out_at > c->out.len / 2) {
        c->out.len -= c->out_at;
        memmove(c->out.ptr, c->out.ptr + c->out_at, c->out.len);
        c->out_at = 0;
    }
}

static void want(sp_http_call *c) {
    bool room = c->in.len - c->in_at < SP_HTTP_IN_MAX;
    unsigned what = 0;
    switch (c->state) {
    case SP_HTTP_STATE_HEAD:
    case SP_HTTP_STATE_BODY:
    case SP_HTTP_STATE_ANSWER:
        what = room ? SP_LOOP_READ : 0;
        break;
    case SP_HTTP_STATE_LINGER:
        what = SP_LOOP_READ;
        break;
    case SP_HTTP_STATE_CLOSING:
        break;
    case SP_HTTP_STATE_DEAD:
        return;
    }
    if (sp_http_conn_unsent(c) > 0) what |= SP_LOOP_WRITE;
    sp_loop_io_want(c->io, what);
}

/* Reading. */

void sp_http_conn_refuse(sp_http_call *c, sp_http_fault fault) {
    sp_http *h = c->http;
    h->stats.refused++;
    c->keep = false;
    h->handler.on_refuse(h->handler.ctx, c, fault);
}

static bool has_body(const sp_http_head *head) {
    return head->chunked || head->content_length > 0;
}

/* The head is `n` bytes at the start of what is unread. */
static void begin_request(sp_http_call *c, size_t n) {
    sp_http *h = c->http;
    sp_http_fault fault = {0};
    sp_http_request *req = sp_try_alloc(sizeof *req);
    char *bytes = req ? sp_try_alloc(n + 1) : NULL;
    if (!bytes) {
        sp_free(req);
        sp_http_conn_kill(c);
        return;
    }
    memcpy(bytes, c->in.ptr + c->in_at, n);
    c->in_at += n;
    req->head_bytes = bytes;
    req->began_ns = sp_now_ns();
    sp_buf_init(&req->body, h->config.max_body_bytes);
    c->req = req;
    c->scan = (sp_http_scan){0};
    enter(c, SP_HTTP_STATE_BODY);

    const sp_http_head *head = &req->head;
    if (sp_http_parse_head((sp_slice){bytes, n}, &req->head, &fault) != SP_OK) {
        sp_http_conn_refuse(c, fault);
        return;
    }
    c->keep = head->keep_alive && !h->closing && !has_body(head);
    if (head->content_length > (int64_t)h->config.max_body_bytes) {
        sp_http_conn_refuse(c, (sp_http_fault){413, "the request body is too large"});
        return;
    }
    req->body_left = head->content_length > 0 ? (uint64_t)head->content_length : 0;
    h->handler.on_head(h->handler.ctx, c);
    if (c->state != SP_HTTP_STATE_BODY) return;
    if (head->expects_continue && has_body(head) && c->in_at == c->in.len) {
        c->progress_ns = sp_now_ns();
        sp_buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    }
}

static bool step_head(sp_http_call *c) {
    sp_http *h = c->http;
    /* The reply before goes out first, so that a client that never reads cannot pile up replies. */
    if (sp_http_conn_unsent(c) > 0) write_out(c);
    if (c->state != SP_HTTP_STATE_HEAD || sp_http_conn_unsent(c) > 0) return false;
    sp_slice bytes = {c->in.ptr + c->in_at, c->in.len - c->in_at};
    if (bytes.len == 0) return false;
    if (c->scan.at == 0) c->state_ns = sp_now_ns();
    sp_http_fault fault;
    ptrdiff_t n = sp_http_scan_head(&c->scan, bytes, h->config.max_head_bytes, &fault);
    if (n == 0) return false;
    if (n < 0) {
        sp_http_conn_refuse(c, fault);
        return false;
    }
    begin_request(c, (size_t)n);
    return true;
}

/* Takes body bytes; true when the body is whole. A fault is refused here. */
static bool take_body(sp_http_call *c) {
    sp_http_request *req = c->req;
    sp_slice bytes = {c->in.ptr + c->in_at, c->in.len - c->in_at};
    sp_http_fault fault = {413, "the request body is too large"};
    ptrdiff_t used;
    if (req->head.chunked) {
        used = sp_http_chunks_feed(&req->chunks, bytes, &req->body, &fault);
    } else {
        used = (ptrdiff_t)(bytes.len < req->body_left ? bytes.len : req->body_left);
        sp_buf_put(&req->body, bytes.ptr, (size_t)used);
        req->body_left -= (uint64_t)used;
    }
    if (used < 0 || req->body.failed) {
        sp_http_conn_refuse(c, fault);
        return false;
    }
    c->in_at += (size_t)used;
    req->body_received += (size_t)used;
    return req->head.chunked ? req->chunks.state == SP_HTTP_CHUNK_DONE : req->body_left == 0;
}

static bool step_body(sp_http_call *c) {
    if (!take_body(c)) return false;
    c->keep = c->req->head.keep_alive && !c->http->closing;
    enter(c, SP_HTTP_STATE_ANSWER);
    c->http->handler.on_request(c->http->handler.ctx, c);
    return true;
}

static void process(sp_http_call *c) {
    bool more = true;
    while (more) {
        if (c->state == SP_HTTP_STATE_HEAD)
            more = step_head(c);
        else if (c->state == SP_HTTP_STATE_BODY)
            more = step_body(c);
        else
            more = false;
    }
    if (c->state == SP_HTTP_STATE_DEAD || c->in_at == 0) return;
    c->in.len -= c->in_at;
    if (c->in.len == 0)
        sp_buf_fini(&c->in);
    else
        memmove(c->in.ptr, c->in.ptr + c->in_at, c->in.len);
    c->in_at = 0;
}

void sp_http_conn_peer_left(sp_http_call *c) {
    c->saw_eof = true;
    bool last_words = c->state == SP_HTTP_STATE_HEAD && sp_http_conn_unsent(c) > 0;
    if (last_words)
        enter(c, SP_HTTP_STATE_CLOSING);
    else if (c->state != SP_HTTP_STATE_CLOSING)
        sp_http_conn_kill(c);
}

static void read_in(sp_http_call *c) {
    sp_http *h = c->http;
    ssize_t n = recv(c->fd, h->scratch, sizeof h->scratch, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
        sp_http_conn_kill(c);
    } else if (n == 0) {
        sp_http_conn_peer_left(c);
    } else if (c->state == SP_HTTP_STATE_LINGER) {
        c->linger_bytes += (size_t)n;
        if (c->linger_bytes > LINGER_BYTES) sp_http_conn_kill(c);
    } else {
        sp_buf_put(&c->in, h->scratch, (size_t)n);
        if (c->in.failed)
            sp_http_conn_kill(c);
        else
            process(c);
    }
}

static void on_ready(void *ctx, unsigned ready) {
    sp_http_call *c = ctx;
    if (ready & SP_LOOP_WRITE) {
        write_out(c);
        if (c->state == SP_HTTP_STATE_HEAD) process(c);
    }
    if (c->state != SP_HTTP_STATE_DEAD && (ready & SP_LOOP_READ)) read_in(c);
    if (c->state != SP_HTTP_STATE_DEAD) mark_dirty(c);
}

void sp_http_conn_flush(sp_http_call *c) {
    if (c->state == SP_HTTP_STATE_DEAD) return;
    bool has_output = sp_http_conn_unsent(c) > 0 || c->out.failed;
    if (has_output || c->state == SP_HTTP_STATE_CLOSING) write_out(c);
    if (c->streaming && sp_http_conn_unsent(c) > c->http->config.max_unsent_bytes) {
        c->http->stats.cut_slow++;
        sp_http_conn_kill(c);
        return;
    }
    if (c->state == SP_HTTP_STATE_HEAD && c->in.len > c->in_at) process(c);
    want(c);
}

void sp_http_conn_open(sp_http *h, int fd) {
    sp_http_call *c = sp_try_alloc(sizeof *c);
    if (!c || sp_loop_io_open(&c->io, h->loop, fd, on_ready, c) != SP_OK) {
        sp_free(c);
        close(fd);
        return;
    }
    c->http = h;
    c->fd = fd;
    c->chunk_at = NO_CHUNK;
    c->next = h->calls;
    if (h->calls) h->calls->prev = c;
    h->calls = c;
    h->stats.connections++;
    h->stats.accepted++;
    enter(c, SP_HTTP_STATE_HEAD);
    want(c);
}

/* Replying. */

static const char *reason_of(int status) {
    static const struct {
        int status;
        const char *text;
    } table[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < SP_LEN(table); i++)
        if (table[i].status == status) return table[i].text;
    return "Status";
}

static const char *date_of(sp_http *h) {
    int64_t now = sp_unix_s();
    if (now == h->date_s) return h->date;
    static const char days[] = "SunMonTueWedThuFriSat",
                      months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm tm;
    time_t t = (time_t)now;
    gmtime_r(&t, &tm);
    /* By hand: strftime would write the names of the locale. */
    snprintf(h->date, sizeof h->date, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT",
             days + 3 * (tm.tm_wday % 7), tm.tm_mday, months + 3 * (tm.tm_mon % 12),
             tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
    h->date_s = now;
    return h->date;
}

static void put_head(sp_http_call *c, int status, const char *content_type, const char *headers) {
    sp_buf *b = &c->out;
    if (sp_http_conn_unsent(c) == 0) c->progress_ns = sp_now_ns();
    sp_buf_printf(b, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, reason_of(status), date_of(c->http));
    if (content_type) sp_buf_printf(b, "Content-Type: %s\r\n", content_type);
    if (!c->keep)
        sp_buf_puts(b, "Connection: close\r\n");
    else if (c->req && c->req->head.minor == 0)
        sp_buf_puts(b, "Connection: keep-alive\r\n");
    sp_buf_puts(b, headers);
    if (c->req && c->req->id[0]) sp_buf_printf(b, "X-Request-Id: %s\r\n", c->req->id);
}

static void finish(sp_http_call *c) {
    tell_done(c, c->status);
    drop_request(c);
    c->streaming = false;
    enter(c, c->keep ? SP_HTTP_STATE_HEAD : SP_HTTP_STATE_CLOSING);
    mark_dirty(c);
}

void sp_http_reply(sp_http_call *c, int status, const char *content_type, const char *headers,
                   sp_slice body) {
    if (c->state == SP_HTTP_STATE_DEAD) return;
    put_head(c, status, content_type, headers);
    sp_buf_printf(&c->out, "Content-Length: %zu\r\n\r\n", body.len);
    bool head_only = c->req && c->req->head.method == SP_HTTP_HEAD;
    if (!head_only) sp_buf_put_slice(&c->out, body);
    c->status = status;
    finish(c);
}

void sp_http_stream_begin(sp_http_call *c, const char *content_type, const char *headers) {
    c->chunked = c->req->head.minor > 0;
    if (!c->chunked) c->keep = false;
    put_head(c, 200, content_type, headers);
    if (c->chunked) sp_buf_puts(&c->out, "Transfer-Encoding: chunked\r\n");
    sp_buf_puts(&c->out, "\r\n");
    c->status = 200;
    c->streaming = true;
    mark_dirty(c);
}

sp_buf *sp_http_stream_buf(sp_http_call *c) {
    if (sp_http_conn_unsent(c) == 0) c->progress_ns = sp_now_ns();
    if (c->chunked && c->chunk_at == NO_CHUNK) open_chunk(c);
    mark_dirty(c);
    return &c->out;
}

void sp_http_stream_end(sp_http_call *c) {
    close_chunk(c);
    if (c->chunked) sp_buf_puts(&c->out, "0\r\n\r\n");
    finish(c);
}

/* The call as its handler sees it. */

const sp_http_head *sp_http_call_head(const sp_http_call *c) {
    return c->req && c->req->head.path.ptr ? &c->req->head : NULL;
}
sp_slice sp_http_call_body(const sp_http_call *c) {
    return c->req ? sp_buf_slice(&c->req->body) : (sp_slice){0};
}
void sp_http_call_take_body(sp_http_call *c, sp_buf *out) {
    *out = c->req->body;
    sp_buf_init(&c->req->body, 0);
}
void sp_http_call_set_tag(sp_http_call *c, int tag) {
    c->tag = tag;
}
int sp_http_call_tag(const sp_http_call *c) {
    return c->tag;
}

bool sp_http_clean_id(sp_slice id, char out[SP_HTTP_ID_MAX + 1]) {
    size_t n = 0;
    for (size_t i = 0; i < id.len && n < SP_HTTP_ID_MAX; i++) {
        char c = id.ptr[i];
        bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (plain || (c && strchr("-_.:", c))) out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

void sp_http_call_set_id(sp_http_call *c, sp_slice id) {
    (void)sp_http_clean_id(id, c->req->id);
}
const char *sp_http_call_id(const sp_http_call *c) {
    return c->req ? c->req->id : "";
}

void sp_http_call_watch(sp_http_call *c, void (*gone)(void *ctx), void *ctx) {
    c->req->gone = gone;
    c->req->gone_ctx = ctx;
}
