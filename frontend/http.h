/* frontend/http.h - an HTTP/1.1 server: connections, limits, replies, streams.
 *
 * A connection serves one call at a time; what a client pipelines waits in a bounded buffer. The
 * handler sees a call twice: when its head is whole (it may refuse before a body is read) and when
 * its body is whole. It then owns the answer: at once or later, in one piece or as a stream. A peer
 * that leaves meanwhile, by reset, close or half-close, is noticed at once and told through `gone`,
 * after which the call must not be named again; the same holds after a complete reply.
 *
 *   HEAD -> BODY -> ANSWER -> HEAD          (keep-alive)
 *      \______\________\--> CLOSING -> LINGER -> gone
 *
 * Limits: head and body bytes, connections, unsent bytes of a stream, and times for head, body,
 * idling and a stalled reader. Output of one turn of the loop leaves in one write a connection.
 *
 * Source: RFC 9110, RFC 9112. Thread: loop, all of it. */
#pragma once

#include "frontend/http_parse.h"
#include "frontend/loop.h"

typedef struct sp_http sp_http;
typedef struct sp_http_call sp_http_call;

typedef struct sp_http_config {
    const char *host; /* name or address to listen on */
    int port;         /* 0: any free one */
    int backlog;
    int max_connections;
    size_t max_head_bytes, max_body_bytes;
    size_t max_unsent_bytes; /* of a stream, in our buffer; beyond it the reader is cut */
    int head_ms;             /* from a head's first byte to its last */
    int idle_ms;             /* between requests */
    int stall_ms;            /* output waits and the peer takes nothing */
    int linger_ms;           /* reading on after a refusal, so that the peer sees it */
} sp_http_config;

typedef struct sp_http_handler {
    void *ctx;
    /* The head is whole. May reply; the body is then not read. */
    void (*on_head)(void *ctx, sp_http_call *call);
    /* Head and body are whole. */
    void (*on_request)(void *ctx, sp_http_call *call);
    /* The request is bad: reply with these words. sp_http_call_head() may be NULL. */
    void (*on_refuse)(void *ctx, sp_http_call *call, sp_http_fault fault);
    /* The call ended; 499: the client left first. */
    void (*on_done)(void *ctx, sp_http_call *call, int status, int64_t took_ns);
} sp_http_handler;

typedef struct sp_http_stats {
    int connections;
    uint64_t accepted, over_cap, cut_slow, timed_out, refused;
} sp_http_stats;

/** Listens. `loop` is borrowed; `config` is copied but for `host`, which is used here only.
 * Errors: SP_E_INVALID the host has no address; SP_E_IO the port is taken (said so in words), or
 *         the system refuses. */
SP_NODISCARD sp_status sp_http_create(sp_http **out, sp_loop *loop, const sp_http_config *config,
                                      const sp_http_handler *handler, sp_err *err);
void sp_http_destroy(sp_http *h); /* cuts what is still open */
int sp_http_port(const sp_http *h);
bool sp_http_on_loopback(const sp_http *h); /* listens where only this machine can connect */
const sp_http_stats *sp_http_get_stats(const sp_http *h);
/** Sends what this turn has written so far; done by itself at the end of each turn. */
void sp_http_flush(sp_http *h);
/** From now on every reply closes its connection. */
void sp_http_set_closing(sp_http *h);
/** Connections with a request in work or output not yet taken. */
int sp_http_count_busy(const sp_http *h);

/* Of a call. */
const sp_http_head *sp_http_call_head(const sp_http_call *c); /* NULL: it never became whole */
sp_slice sp_http_call_body(const sp_http_call *c);
/** Moves the body out; `out` must be empty. */
void sp_http_call_take_body(sp_http_call *c, sp_buf *out);
/** The call's name, sent back as X-Request-Id and shown in the log; cleaned as below. */
void sp_http_call_set_id(sp_http_call *c, sp_slice id);
#define SP_HTTP_ID_MAX 128
/** Keeps letters, digits and "-_.:" of `id`, cut to SP_HTTP_ID_MAX: it goes into headers, bodies and
 * logs. False: nothing is left. */
bool sp_http_clean_id(sp_slice id, char out[SP_HTTP_ID_MAX + 1]);
const char *sp_http_call_id(const sp_http_call *c); /* "" before it was set */
/** A number of the handler's, e.g. the route; 0 at first. */
void sp_http_call_set_tag(sp_http_call *c, int tag);
int sp_http_call_tag(const sp_http_call *c);
/** Calls `gone` when the peer leaves before the answer is complete. */
void sp_http_call_watch(sp_http_call *c, void (*gone)(void *ctx), void *ctx);
void sp_http_call_peer(const sp_http_call *c, char *out, size_t n); /* "address:port" */
bool sp_http_call_is_local(const sp_http_call *c); /* it comes from a loopback address */

/** Answers in one piece. `headers` is "" or whole lines ending in CRLF. A HEAD request gets no
 * body. */
void sp_http_reply(sp_http_call *c, int status, const char *content_type, const char *headers,
                   sp_slice body);
/** Answers 200 in pieces: chunked, or until the close for HTTP/1.0. */
void sp_http_stream_begin(sp_http_call *c, const char *content_type, const char *headers);
/** Where to append bytes of the stream; they leave at the end of this turn of the loop. The buffer
 * must not be kept beyond it, nor shortened. A reader that then leaves more than max_unsent_bytes
 * untaken is cut, and `gone` told. */
sp_buf *sp_http_stream_buf(sp_http_call *c);
void sp_http_stream_end(sp_http_call *c);
