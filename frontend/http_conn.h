/* frontend/http_conn.h - one connection, shared by http.c (who listens) and http_conn.c (who talks).
 *
 * Memory of a connection follows its state: idle it holds this struct alone; a request's head, body
 * and unsent output live only while they are needed.
 *
 * Thread: loop. */
#pragma once

#include "frontend/http.h"

#define SP_HTTP_IN_MAX ((size_t)64 * 1024) /* unread bytes kept while an answer is pending */

typedef enum sp_http_state {
    SP_HTTP_STATE_HEAD,    /* idle, or in the middle of a head */
    SP_HTTP_STATE_BODY,    /* a body is coming */
    SP_HTTP_STATE_ANSWER,  /* the handler has it */
    SP_HTTP_STATE_CLOSING, /* the last bytes go out, then it is closed */
    SP_HTTP_STATE_LINGER,  /* our side is shut; what still comes is dropped */
    SP_HTTP_STATE_DEAD,    /* closed; freed at the end of this turn */
} sp_http_state;

/* What lives from a head's end to the reply's end. */
typedef struct sp_http_request {
    sp_http_head head;
    char *head_bytes; /* what `head` points into */
    sp_http_chunks chunks;
    sp_buf body;
    uint64_t body_left; /* with Content-Length */
    size_t body_received;
    int64_t began_ns;
    void (*gone)(void *ctx);
    void *gone_ctx;
    char id[SP_HTTP_ID_MAX + 1]; /* empty: none */
} sp_http_request;

struct sp_http_call {
    sp_http *http;
    sp_http_call *prev, *next; /* all connections */
    sp_http_call *next_dirty;
    sp_loop_io *io;
    int fd;
    sp_http_state state;
    bool dirty, keep, streaming, chunked, saw_eof;
    int status; /* replied; 0 not yet */
    int tag;
    sp_http_scan scan;
    sp_http_request *req; /* NULL: none */
    sp_buf in;
    size_t in_at;
    sp_buf out;
    size_t out_at;       /* sent so far */
    size_t chunk_at;     /* where the open chunk's size goes; SIZE_MAX none is open */
    int64_t state_ns;    /* of the last change of state, or the first byte of a head */
    int64_t progress_ns; /* output last moved */
    size_t linger_bytes; /* dropped so far */
};

struct sp_http {
    sp_loop *loop;
    sp_http_config config;
    sp_http_handler handler;
    sp_http_stats stats;
    sp_loop_io *listener;
    sp_loop_timer *sweeper;
    int listen_fd, spare_fd, port;
    bool loopback, closing;
    sp_http_call *calls, *dirty, *graves;
    int64_t date_s;
    char date[40];
    char scratch[64 * 1024];
};

/** Takes a connected descriptor (moved). */
void sp_http_conn_open(sp_http *h, int fd);
void sp_http_conn_kill(sp_http_call *c);      /* closes at once; tells a watcher */
void sp_http_conn_peer_left(sp_http_call *c); /* it sends no more */
void sp_http_conn_flush(sp_http_call *c);
void sp_http_conn_refuse(sp_http_call *c, sp_http_fault fault);
static inline size_t sp_http_conn_unsent(const sp_http_call *c) {
    return c->out.len - c->out_at;
}
