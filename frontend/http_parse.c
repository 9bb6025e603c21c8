#include "frontend/http_parse.h"

#include <strings.h>

static const char *const method_names[SP_HTTP_METHOD_COUNT] = {
    "GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"};

const char *sp_http_method_name(sp_http_method m) {
    return method_names[m];
}

static sp_status refuse(sp_http_fault *fault, int http, const char *text) {
    *fault = (sp_http_fault){http, text};
    return SP_E_FORMAT;
}

static bool is_token_char(unsigned char c) {
    if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z')) return true;
    return c && strchr("!#$%&'*+-.^_`|~", c);
}

static bool is_token(sp_slice s) {
    for (size_t i = 0; i < s.len; i++)
        if (!is_token_char((unsigned char)s.ptr[i])) return false;
    return s.len > 0;
}

bool sp_http_token_eq(sp_slice a, const char *b) {
    return a.len == strlen(b) && (a.len == 0 || strncasecmp(a.ptr, b, a.len) == 0);
}

/* A byte that may stand in a head at all; line ends are looked at apart. */
static bool is_head_byte(unsigned char c) {
    return (c >= 0x20 && c != 0x7f) || c == '\t';
}

/* Called at each LF. Answers whether the head ends here. */
static bool scan_line_end(sp_http_scan *s) {
    bool empty = s->at - 1 == s->line; /* only the CR before this LF */
    s->line = s->at + 1;
    /* An empty line before the request line is allowed (RFC 9112 2.2). */
    if (empty && s->n_lines == 0) return false;
    s->n_lines++;
    return empty;
}

ptrdiff_t sp_http_scan_head(sp_http_scan *s, sp_slice bytes, size_t max_bytes,
                            sp_http_fault *fault) {
    for (; s->at < bytes.len; s->at++) {
        unsigned char c = (unsigned char)bytes.ptr[s->at];
        bool after_cr = s->at > 0 && bytes.ptr[s->at - 1] == '\r';
        if (s->at >= max_bytes) {
            (void)refuse(fault, 431, "the request's headers are too long");
            return -1;
        }
        if (s->n_lines == 0 && s->at - s->line > SP_HTTP_LINE_MAX) {
            (void)refuse(fault, 414, "the request line is longer than 8192 bytes");
            return -1;
        }
        if (c == '\n' && after_cr) {
            if (scan_line_end(s)) return (ptrdiff_t)++s->at;
        } else if (c == '\n' || after_cr || (c != '\r' && !is_head_byte(c))) {
            (void)refuse(fault, 400,
                         "a line of the head does not end in CR LF, or holds a byte "
                         "that may not stand there");
            return -1;
        }
        if (s->n_lines == 0 && s->line > 4)
            return refuse(fault, 400, "empty lines before the request line"), -1;
        if (s->n_lines > SP_HTTP_HEADERS_MAX + 1)
            return refuse(fault, 431, "the request has more than 64 headers"), -1;
    }
    return 0;
}

/* Cuts the next line, without its CRLF, from `rest`. The scan has proven that there is one. */
static sp_slice cut_line(sp_slice *rest) {
    const char *lf = memchr(rest->ptr, '\n', rest->len);
    SP_ASSERT(lf && lf > rest->ptr);
    sp_slice line = {rest->ptr, (size_t)(lf - rest->ptr) - 1};
    rest->ptr = lf + 1;
    rest->len -= line.len + 2;
    return line;
}

static sp_slice cut_word(sp_slice *rest) {
    const char *sp = rest->len ? memchr(rest->ptr, ' ', rest->len) : NULL;
    size_t len = sp ? (size_t)(sp - rest->ptr) : rest->len;
    sp_slice word = {rest->ptr, len};
    size_t used = sp ? len + 1 : len;
    rest->ptr += used;
    rest->len -= used;
    return word;
}

static sp_status parse_method(sp_slice word, sp_http_method *out, sp_http_fault *fault) {
    if (!is_token(word)) return refuse(fault, 400, "the request line has no method");
    for (int m = 0; m < SP_HTTP_METHOD_COUNT; m++)
        if (sp_slice_is(word, method_names[m])) {
            *out = (sp_http_method)m;
            return SP_OK;
        }
    return refuse(fault, 501, "the method is not known here");
}

static sp_status parse_version(sp_slice word, int *minor, sp_http_fault *fault) {
    if (sp_slice_is(word, "HTTP/1.1") || sp_slice_is(word, "HTTP/1.0")) {
        *minor = word.ptr[7] - '0';
        return SP_OK;
    }
    bool shaped = word.len == 8 && memcmp(word.ptr, "HTTP/", 5) == 0 && word.ptr[5] >= '0' &&
                  word.ptr[5] <= '9' && word.ptr[6] == '.' && word.ptr[7] >= '0' &&
                  word.ptr[7] <= '9';
    if (shaped) return refuse(fault, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    return refuse(fault, 400, "the request line does not end in an HTTP version");
}

/* Splits origin-form; absolute-form keeps its authority in `host_in_target`. */
static sp_status parse_target(sp_http_head *h, sp_slice *host_in_target, sp_http_fault *fault) {
    sp_slice t = h->target;
    for (size_t i = 0; i < t.len; i++) {
        unsigned char c = (unsigned char)t.ptr[i];
        if (c <= 0x20 || c >= 0x7f || c == '#')
            return refuse(fault, 400, "the request target holds a byte that must be escaped");
    }
    if (h->method == SP_HTTP_CONNECT) return refuse(fault, 405, "CONNECT is not served here");
    if (sp_slice_is(t, "*") && h->method == SP_HTTP_OPTIONS) {
        h->path = t;
        return SP_OK;
    }
    if (t.len > 7 && strncasecmp(t.ptr, "http://", 7) == 0) {
        size_t end = 7;
        while (end < t.len && t.ptr[end] != '/' && t.ptr[end] != '?') end++;
        *host_in_target = (sp_slice){t.ptr + 7, end - 7};
        t = (sp_slice){t.ptr + end, t.len - end};
        if (t.len == 0) t = SP_SLICE("/");
    }
    if (t.len == 0 || t.ptr[0] != '/')
        return refuse(fault, 400, "the request target is not a path");
    const char *mark = memchr(t.ptr, '?', t.len);
    h->path = (sp_slice){t.ptr, mark ? (size_t)(mark - t.ptr) : t.len};
    if (mark) h->query = (sp_slice){mark + 1, t.len - h->path.len - 1};
    return SP_OK;
}

static sp_slice trim(sp_slice s) {
    while (s.len && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) s.ptr++, s.len--;
    while (s.len && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t')) s.len--;
    return s;
}

static sp_status parse_header_line(sp_slice line, sp_http_header *out, sp_http_fault *fault) {
    if (line.ptr[0] == ' ' || line.ptr[0] == '\t')
        return refuse(fault, 400, "a header is folded over two lines");
    const char *colon = memchr(line.ptr, ':', line.len);
    if (!colon) return refuse(fault, 400, "a header has no colon");
    out->name = (sp_slice){line.ptr, (size_t)(colon - line.ptr)};
    if (!is_token(out->name)) return refuse(fault, 400, "a header's name is not a token");
    out->value = trim((sp_slice){colon + 1, line.len - out->name.len - 1});
    return SP_OK;
}

static sp_status take_length(sp_http_head *h, sp_slice value, sp_http_fault *fault) {
    if (h->content_length >= 0) return refuse(fault, 400, "Content-Length comes twice");
    /* 18 digits always fit; sp_parse_i64 alone would take a sign. */
    for (size_t i = 0; i < value.len; i++)
        if (value.ptr[i] < '0' || value.ptr[i] > '9')
            return refuse(fault, 400, "Content-Length is not a number");
    if (value.len == 0 || value.len > 18 || sp_parse_i64(value, &h->content_length) != SP_OK)
        return refuse(fault, 400, "Content-Length is not a number that can be");
    return SP_OK;
}

static sp_status take_host(sp_http_head *h, sp_slice value, sp_http_fault *fault) {
    if (h->host.ptr) return refuse(fault, 400, "Host comes twice");
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        if (c <= 0x20 || c >= 0x7f || strchr("/?#@\\,\"<>", c))
            return refuse(fault, 400, "Host is not a host name");
    }
    h->host = value;
    return SP_OK;
}

static void take_connection(sp_http_head *h, sp_slice value) {
    while (value.len) {
        const char *comma = memchr(value.ptr, ',', value.len);
        size_t len = comma ? (size_t)(comma - value.ptr) : value.len;
        sp_slice word = trim((sp_slice){value.ptr, len});
        if (sp_http_token_eq(word, "close")) h->keep_alive = false;
        if (sp_http_token_eq(word, "keep-alive") && h->minor == 0) h->keep_alive = true;
        size_t used = comma ? len + 1 : len;
        value.ptr += used;
        value.len -= used;
    }
}

/* Acts on the headers that decide where the request ends. */
static sp_status take_header(sp_http_head *h, const sp_http_header *x, sp_http_fault *fault) {
    if (sp_http_token_eq(x->name, "content-length")) return take_length(h, x->value, fault);
    if (sp_http_token_eq(x->name, "host")) return take_host(h, x->value, fault);
    if (sp_http_token_eq(x->name, "connection")) take_connection(h, x->value);
    if (sp_http_token_eq(x->name, "transfer-encoding")) {
        if (h->chunked || !sp_http_token_eq(x->value, "chunked") || h->minor == 0)
            return refuse(fault, 400, "Transfer-Encoding may only be 'chunked', once");
        h->chunked = true;
    }
    if (sp_http_token_eq(x->name, "expect")) {
        if (!sp_http_token_eq(x->value, "100-continue"))
            return refuse(fault, 417, "only '100-continue' may be expected");
        h->expects_continue = h->minor > 0;
    }
    return SP_OK;
}

sp_status sp_http_parse_head(sp_slice bytes, sp_http_head *h, sp_http_fault *fault) {
    *h = (sp_http_head){.content_length = -1};
    sp_slice rest = bytes, line = cut_line(&rest), host_in_target = {0};
    while (line.len == 0) line = cut_line(&rest);

    sp_slice method = cut_word(&line);
    SP_TRY(parse_method(method, &h->method, fault));
    h->target = cut_word(&line);
    SP_TRY(parse_version(line, &h->minor, fault));
    SP_TRY(parse_target(h, &host_in_target, fault));
    h->keep_alive = h->minor > 0;

    while ((line = cut_line(&rest)).len > 0) {
        if (h->n_headers == SP_HTTP_HEADERS_MAX)
            return refuse(fault, 431, "the request has more than 64 headers");
        sp_http_header *x = &h->headers[h->n_headers];
        SP_TRY(parse_header_line(line, x, fault));
        SP_TRY(take_header(h, x, fault));
        h->n_headers++;
    }
    if (h->chunked && h->content_length >= 0)
        return refuse(fault, 400, "Content-Length stands beside Transfer-Encoding");
    if (!h->host.ptr && h->minor > 0) return refuse(fault, 400, "the Host header is missing");
    if (host_in_target.ptr && h->host.ptr &&
        (host_in_target.len != h->host.len ||
         strncasecmp(host_in_target.ptr, h->host.ptr, h->host.len) != 0))
        return refuse(fault, 400, "the request target names another host than Host");
    return SP_OK;
}

sp_slice sp_http_header_get(const sp_http_head *head, const char *name) {
    for (int i = 0; i < head->n_headers; i++)
        if (sp_http_token_eq(head->headers[i].name, name)) return head->headers[i].value;
    return (sp_slice){0};
}

/* Skips a quoted string; NULL when it does not end. */
static const char *skip_quoted(const char *p, const char *end) {
    for (p++; p < end; p++) {
        if (*p == '"') return p + 1;
        if (*p == '\\') p++;
    }
    return NULL;
}

/* *( ";" token [ "=" ( token / quoted-string ) ] ): they mean nothing to us, but what has another
 * shape may be read differently by a proxy before us. */
static bool are_extensions(const char *p, const char *end) {
    while (p < end) {
        if (*p++ != ';') return false;
        const char *start = p;
        while (p < end && is_token_char((unsigned char)*p)) p++;
        if (p == start) return false;
        if (p == end || *p != '=') continue;
        start = ++p;
        if (p < end && *p == '"') {
            p = skip_quoted(p, end);
            if (!p) return false;
            continue;
        }
        while (p < end && is_token_char((unsigned char)*p)) p++;
        if (p == start) return false;
    }
    return true;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_size_line(sp_http_chunks *c) {
    size_t n = 0;
    c->left = 0;
    while (n < c->n_line && hex_digit(c->line[n]) >= 0)
        c->left = c->left * 16 + (unsigned)hex_digit(c->line[n++]);
    return n > 0 && n <= 8 && are_extensions(c->line + n, c->line + c->n_line);
}

/* Gathers one byte of a size or trailer line. 1: the line is whole, 0: goes on, -1: bad. */
static int gather_line(sp_http_chunks *c, char ch) {
    bool after_cr = c->n_line > 0 && c->line[c->n_line - 1] == '\r';
    if (after_cr) {
        c->n_line--;
        return ch == '\n' ? 1 : -1;
    }
    if (ch != '\r' && !is_head_byte((unsigned char)ch)) return -1;
    /* Of a trailer only its beginning matters: that it is not empty. */
    if (c->state == SP_HTTP_CHUNK_TRAILER && c->n_line >= 2) {
        c->line[1] = ch;
        return 0;
    }
    if (c->n_line == SP_HTTP_CHUNK_LINE_MAX) return -1;
    c->line[c->n_line++] = ch;
    return 0;
}

static bool feed_line_byte(sp_http_chunks *c, char ch) {
    if (c->state == SP_HTTP_CHUNK_TRAILER && ++c->n_trailer > SP_HTTP_TRAILER_MAX) return false;
    /* Wrong first bytes are refused at once: the line may never end. */
    if (c->n_line == 0 && c->state == SP_HTTP_CHUNK_SIZE && hex_digit(ch) < 0) return false;
    if (c->n_line == 0 && c->state == SP_HTTP_CHUNK_DATA_END && ch != '\r') return false;
    int got = gather_line(c, ch);
    if (got <= 0) return got == 0;
    if (c->state == SP_HTTP_CHUNK_SIZE) {
        if (!parse_size_line(c)) return false;
        c->state = c->left ? SP_HTTP_CHUNK_DATA : SP_HTTP_CHUNK_TRAILER;
    } else if (c->n_line == 0) {
        c->state = c->state == SP_HTTP_CHUNK_TRAILER ? SP_HTTP_CHUNK_DONE : SP_HTTP_CHUNK_SIZE;
    } else if (c->state == SP_HTTP_CHUNK_DATA_END) {
        return false;
    }
    c->n_line = 0;
    return true;
}

ptrdiff_t sp_http_chunks_feed(sp_http_chunks *c, sp_slice bytes, sp_buf *body,
                              sp_http_fault *fault) {
    size_t at = 0;
    while (at < bytes.len && c->state != SP_HTTP_CHUNK_DONE) {
        if (c->state == SP_HTTP_CHUNK_DATA) {
            size_t n = bytes.len - at < c->left ? bytes.len - at : (size_t)c->left;
            sp_buf_put(body, bytes.ptr + at, n);
            at += n;
            c->left -= n;
            if (c->left == 0) c->state = SP_HTTP_CHUNK_DATA_END;
        } else if (!feed_line_byte(c, bytes.ptr[at++])) {
            (void)refuse(fault, 400, "the chunked body is malformed");
            return -1;
        }
    }
    return (ptrdiff_t)at;
}
