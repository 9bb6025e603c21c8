/* launcher/http_client.h - reads HTTP/1.1 responses and event streams, byte by byte if need be.
 *
 * For tools that call a server (`superpod bench http`). Two readers that are fed whatever recv()
 * gave, in any pieces, and hand on what they understood: sp_response the body of one response
 * (by length, chunked, or until the end), sp_events the data of server-sent events inside it.
 * Neither allocates for a body; every line and event has a named maximum.
 * A libcurl multi loop took 3.3 us of processor time an event with 64 streams and 29 us with one,
 * where the whole of bench_load.c takes 2.1 and 9.9: a load generator shares its cores with the
 * server that it measures.
 *
 * Source: RFC 9112; the WHATWG HTML standard, 9.2 (server-sent events).
 * Thread: any; a reader belongs to one thread at a time. */
#pragma once

#include "runtime/base/str.h"

#define SP_HTTP_LINE_MAX 8192
#define SP_HTTP_HEAD_MAX ((size_t)64 * 1024) /* status line and headers, or trailers */
#define SP_EVENT_MAX ((size_t)4 << 20)

typedef struct sp_url {
    char host[256]; /* without the brackets of an IPv6 literal */
    char port[6];
    char path[512]; /* "" or "/prefix", never with a '/' at its end */
} sp_url;

/** "http://host[:port][/prefix]"; a prefix of "/v1" is dropped, since callers add it.
 * Errors: SP_E_INVALID, SP_E_UNSUPPORTED (https). */
SP_NODISCARD sp_status sp_url_parse(sp_url *out, sp_slice text, sp_err *err);

/** Gets a piece of a body or the data of one event; borrowed for the call. */
typedef void (*sp_piece_fn)(void *ctx, sp_slice piece);

typedef enum sp_response_state {
    SP_RESPONSE_STATUS_LINE,
    SP_RESPONSE_HEADERS,
    SP_RESPONSE_BODY, /* `left` bytes, or until the end when negative */
    SP_RESPONSE_CHUNK_SIZE,
    SP_RESPONSE_CHUNK,
    SP_RESPONSE_CHUNK_END,
    SP_RESPONSE_TRAILERS,
    SP_RESPONSE_COMPLETE,
} sp_response_state;

typedef struct sp_response {
    sp_response_state state;
    int status;       /* 0 until the status line has come */
    bool is_events;   /* content type text/event-stream */
    bool keeps_alive; /* the connection may be used again */
    bool is_chunked;
    int64_t length; /* Content-Length, or -1 */
    int64_t left;
    size_t head_bytes, n_line;
    char line[SP_HTTP_LINE_MAX];
} sp_response;

void sp_response_init(sp_response *r);
/** Reads on. SP_OK: the response is complete and `*used` bytes belong to it; SP_AGAIN: all bytes
 * were taken and more are wanted. Errors: SP_E_FORMAT, SP_E_TOOLONG (a line or the headers),
 * SP_E_UNSUPPORTED (a transfer coding). */
SP_NODISCARD sp_status sp_response_feed(sp_response *r, sp_slice bytes, size_t *used,
                                        sp_piece_fn on_body, void *ctx, sp_err *err);
/** The peer has closed. Errors: SP_E_CLOSED in the middle of a response. */
SP_NODISCARD sp_status sp_response_end(sp_response *r, sp_err *err);

typedef struct sp_events {
    sp_buf line, data;
    bool after_cr; /* a LF that comes now belongs to the CR before it */
    bool has_data;
} sp_events;

void sp_events_init(sp_events *e);
void sp_events_fini(sp_events *e);
void sp_events_clear(sp_events *e); /* for the next stream; keeps the memory */
/** Hands the data of each complete event to `on_event`; comments and other fields are skipped.
 * Errors: SP_E_TOOLONG a line or an event above SP_EVENT_MAX, or memory is short. */
SP_NODISCARD sp_status sp_events_feed(sp_events *e, sp_slice bytes, sp_piece_fn on_event, void *ctx,
                                      sp_err *err);
