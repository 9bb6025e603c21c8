/* frontend/http_parse.h - bytes of a request to its head and body, strictly.
 *
 * Two pure pieces: a head (request line and headers) is first scanned as it arrives, so that a bad
 * byte is answered at once, and parsed when it is whole; a chunked body is decoded as it arrives.
 * Whatever two servers could read in two ways is refused: bare LF or CR, folded lines, a space
 * before the colon, a repeated Content-Length or Host, Content-Length beside Transfer-Encoding, a
 * coding other than exactly "chunked". A stock parser that is lenient here was refused for that
 * reason (README.md).
 *
 * Source: RFC 9110, RFC 9112. Thread: any; no state but the caller's. */
#pragma once

#include "runtime/base/str.h"

#define SP_HTTP_HEADERS_MAX 64
#define SP_HTTP_LINE_MAX ((size_t)8192) /* request line, bytes */
#define SP_HTTP_CHUNK_LINE_MAX 270      /* 8 digits, 256 bytes of extension, CRLF */
#define SP_HTTP_TRAILER_MAX ((size_t)8192)

typedef enum sp_http_method {
    SP_HTTP_GET,
    SP_HTTP_HEAD,
    SP_HTTP_POST,
    SP_HTTP_OPTIONS,
    SP_HTTP_PUT,
    SP_HTTP_DELETE,
    SP_HTTP_PATCH,
    SP_HTTP_CONNECT,
    SP_HTTP_TRACE,
    SP_HTTP_METHOD_COUNT
} sp_http_method;
const char *sp_http_method_name(sp_http_method m);

typedef struct sp_http_header {
    sp_slice name, value; /* value without the white space around it */
} sp_http_header;

typedef struct sp_http_head {
    sp_http_method method;
    sp_slice target;      /* as written */
    sp_slice path, query; /* of the target; the query without its '?' */
    int minor;            /* HTTP/1.minor */
    sp_http_header headers[SP_HTTP_HEADERS_MAX];
    int n_headers;
    sp_slice host;          /* empty: none (HTTP/1.0 only) */
    int64_t content_length; /* -1: not given */
    bool chunked;
    bool keep_alive;
    bool expects_continue;
} sp_http_head;

/** Why bytes were refused: a status and words for the error body. Both static. */
typedef struct sp_http_fault {
    int http; /* 0: none */
    const char *text;
} sp_http_fault;

typedef struct sp_http_scan {
    size_t at;   /* bytes looked at so far */
    size_t line; /* start of the current line */
    int n_lines; /* whole lines so far, the request line included */
} sp_http_scan;

/** Looks at the bytes that came since the last call. Returns the length of the head, with its empty
 * line, 0 when more is needed, or -1 with `fault` set. Start with a zeroed scan; `bytes` always
 * starts at the first byte of the request. */
ptrdiff_t sp_http_scan_head(sp_http_scan *s, sp_slice bytes, size_t max_bytes,
                            sp_http_fault *fault);

/** Parses a whole head as sp_http_scan_head() delimited it. Slices of `out` point into `bytes`.
 * Errors: SP_E_FORMAT with `fault` set. */
SP_NODISCARD sp_status sp_http_parse_head(sp_slice bytes, sp_http_head *out, sp_http_fault *fault);

/** Value of a header, by name without regard to case; empty (ptr NULL) when absent. */
sp_slice sp_http_header_get(const sp_http_head *head, const char *name);
bool sp_http_token_eq(sp_slice a, const char *b); /* ASCII, without regard to case */

typedef enum sp_http_chunk_state {
    SP_HTTP_CHUNK_SIZE, /* in a line with a size */
    SP_HTTP_CHUNK_DATA,
    SP_HTTP_CHUNK_DATA_END, /* the CRLF after data */
    SP_HTTP_CHUNK_TRAILER,
    SP_HTTP_CHUNK_DONE,
} sp_http_chunk_state;

typedef struct sp_http_chunks {
    sp_http_chunk_state state;
    uint64_t left; /* data bytes of this chunk still to come */
    size_t n_line, n_trailer;
    char line[SP_HTTP_CHUNK_LINE_MAX];
} sp_http_chunks;

/** Decodes what arrived, appending data to `body` (whose limit is the caller's: look at
 * body->failed). Returns the bytes used, or -1 with `fault` set. Done when the state says so. */
ptrdiff_t sp_http_chunks_feed(sp_http_chunks *c, sp_slice bytes, sp_buf *body,
                              sp_http_fault *fault);
