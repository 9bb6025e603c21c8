#include "launcher/http_client.h"

#include <stdio.h>
#include <strings.h>

static bool starts_with_word(sp_slice s, const char *word) {
    size_t n = strlen(word);
    return s.len >= n && strncasecmp(s.ptr, word, n) == 0;
}

static sp_slice skip(sp_slice s, size_t n) {
    return (sp_slice){s.ptr + n, s.len - n};
}

static sp_slice trim(sp_slice s) {
    while (s.len && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) s = skip(s, 1);
    while (s.len && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t')) s.len--;
    return s;
}

static sp_status copy_part(char *out, size_t n, sp_slice s, const char *what, sp_err *err) {
    if (s.len >= n)
        return SP_FAIL(err, SP_E_INVALID, "the %s of the url has %zu bytes, at most %zu are taken",
                       what, s.len, n - 1);
    memcpy(out, s.ptr, s.len);
    out[s.len] = 0;
    return SP_OK;
}

/* "host", "host:port", "[v6]", "[v6]:port" -> host, and port when there is one. */
static sp_status split_authority(sp_slice a, sp_slice *host, sp_slice *port, sp_err *err) {
    const char *end = a.len ? memchr(a.ptr, ']', a.len) : NULL;
    if (a.len && a.ptr[0] == '[') {
        if (!end) return SP_FAIL(err, SP_E_INVALID, "the url has '[' without ']'");
        *host = (sp_slice){a.ptr + 1, (size_t)(end - a.ptr) - 1};
        a = skip(a, (size_t)(end - a.ptr) + 1);
    } else {
        const char *colon = a.len ? memchr(a.ptr, ':', a.len) : NULL;
        *host = (sp_slice){a.ptr, colon ? (size_t)(colon - a.ptr) : a.len};
        a = skip(a, host->len);
    }
    if (a.len && a.ptr[0] != ':')
        return SP_FAIL(err, SP_E_INVALID, "want ':' and a port after ']' in the url");
    if (a.len) *port = skip(a, 1);
    return SP_OK;
}

sp_status sp_url_parse(sp_url *out, sp_slice text, sp_err *err) {
    if (starts_with_word(text, "https://"))
        return SP_FAIL(err, SP_E_UNSUPPORTED, "https is not spoken here; want http://host:port");
    if (!starts_with_word(text, "http://"))
        return SP_FAIL(err, SP_E_INVALID, "want http://host:port, got '%.*s'",
                       (int)(text.len < 100 ? text.len : 100), text.ptr);
    text = skip(text, 7);
    const char *slash = text.len ? memchr(text.ptr, '/', text.len) : NULL;
    sp_slice authority = {text.ptr, slash ? (size_t)(slash - text.ptr) : text.len};
    sp_slice path = skip(text, authority.len), host = {0}, port = SP_SLICE("80");
    SP_TRY(split_authority(authority, &host, &port, err));
    int64_t number = 0;
    if (host.len == 0) return SP_FAIL(err, SP_E_INVALID, "the url names no host");
    if (sp_parse_i64(port, &number) != SP_OK || number < 1 || number > 65535)
        return SP_FAIL(err, SP_E_INVALID, "want a port from 1 to 65535, got '%.*s'",
                       (int)(port.len < 20 ? port.len : 20), port.ptr);
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] <= ' ' || text.ptr[i] == 127)
            return SP_FAIL(err, SP_E_INVALID, "the url has byte 0x%02x", text.ptr[i]);
    while (path.len && path.ptr[path.len - 1] == '/') path.len--;
    if (sp_slice_ends(path, SP_SLICE("/v1"))) path.len -= 3;
    sp_url url;
    SP_TRY(copy_part(url.host, sizeof url.host, host, "host", err));
    SP_TRY(copy_part(url.path, sizeof url.path, path, "path", err));
    snprintf(url.port, sizeof url.port, "%d", (int)number);
    *out = url;
    return SP_OK;
}

void sp_response_init(sp_response *r) {
    r->state = SP_RESPONSE_STATUS_LINE;
    r->status = 0;
    r->is_events = r->is_chunked = r->keeps_alive = false;
    r->length = -1;
    r->left = 0;
    r->head_bytes = r->n_line = 0;
}

/* Gathers a line. SP_OK: `*line` is whole, without CR LF; SP_AGAIN: the bytes end before it does. */
static sp_status take_line(sp_response *r, sp_slice *bytes, sp_slice *line, sp_err *err) {
    const char *lf = bytes->len ? memchr(bytes->ptr, '\n', bytes->len) : NULL;
    size_t n = lf ? (size_t)(lf - bytes->ptr) + 1 : bytes->len;
    r->head_bytes += n;
    if (r->n_line + n > sizeof r->line || r->head_bytes > SP_HTTP_HEAD_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "a header line above %d or headers above %zu bytes",
                       SP_HTTP_LINE_MAX, SP_HTTP_HEAD_MAX);
    if (n) memcpy(r->line + r->n_line, bytes->ptr, n);
    r->n_line += n;
    *bytes = skip(*bytes, n);
    if (!lf) return SP_AGAIN;
    size_t len = r->n_line - 1;
    if (len && r->line[len - 1] == '\r') len--;
    *line = (sp_slice){r->line, len};
    r->n_line = 0;
    return SP_OK;
}

static sp_status read_status_line(sp_response *r, sp_slice line, sp_err *err) {
    const char *s = line.ptr;
    bool well = line.len >= 12 && memcmp(s, "HTTP/1.", 7) == 0 && (s[7] == '0' || s[7] == '1') &&
                s[8] == ' ' && (line.len == 12 || s[12] == ' ');
    int64_t status = 0;
    if (!well || sp_parse_i64((sp_slice){s + 9, 3}, &status) != SP_OK || status < 100)
        return SP_FAIL(err, SP_E_FORMAT, "want a status line of HTTP/1.1, got '%.*s'",
                       (int)(line.len < 60 ? line.len : 60), s);
    r->status = (int)status;
    r->keeps_alive = s[7] == '1';
    r->state = SP_RESPONSE_HEADERS;
    return SP_OK;
}

static sp_status read_length(sp_response *r, sp_slice value, sp_err *err) {
    int64_t n;
    if (sp_parse_i64(value, &n) != SP_OK || n < 0 || value.ptr[0] == '-')
        return SP_FAIL(err, SP_E_FORMAT, "content-length is '%.*s'",
                       (int)(value.len < 40 ? value.len : 40), value.ptr);
    if (r->length >= 0 && r->length != n)
        return SP_FAIL(err, SP_E_FORMAT, "content-length is both %lld and %lld",
                       (long long)r->length, (long long)n);
    r->length = n;
    return SP_OK;
}

static sp_status read_header(sp_response *r, sp_slice line, sp_err *err) {
    const char *colon = memchr(line.ptr, ':', line.len);
    if (!colon || colon == line.ptr)
        return SP_FAIL(err, SP_E_FORMAT, "a header without a name: '%.*s'",
                       (int)(line.len < 60 ? line.len : 60), line.ptr);
    sp_slice name = {line.ptr, (size_t)(colon - line.ptr)}, value = trim(skip(line, name.len + 1));
    if (name.len == 14 && starts_with_word(name, "content-length"))
        return read_length(r, value, err);
    if (name.len == 12 && starts_with_word(name, "content-type")) {
        r->is_events = starts_with_word(value, "text/event-stream");
    } else if (name.len == 10 && starts_with_word(name, "connection")) {
        if (starts_with_word(value, "close")) r->keeps_alive = false;
        if (starts_with_word(value, "keep-alive")) r->keeps_alive = true;
    } else if (name.len == 17 && starts_with_word(name, "transfer-encoding")) {
        if (value.len != 7 || !starts_with_word(value, "chunked"))
            return SP_FAIL(err, SP_E_UNSUPPORTED, "transfer-encoding '%.*s', want chunked",
                           (int)(value.len < 40 ? value.len : 40), value.ptr);
        r->is_chunked = true;
    }
    return SP_OK;
}

/* The headers have ended: what body follows? (RFC 9112, 6.3) */
static void begin_body(sp_response *r) {
    if (r->status < 200) { /* an interim response: the real one follows */
        sp_response_init(r);
        return;
    }
    if (r->status == 204 || r->status == 304 || (!r->is_chunked && r->length == 0)) {
        r->state = SP_RESPONSE_COMPLETE;
    } else if (r->is_chunked) {
        r->state = SP_RESPONSE_CHUNK_SIZE;
    } else {
        r->state = SP_RESPONSE_BODY;
        r->left = r->length;
        if (r->length < 0) r->keeps_alive = false;
    }
    r->head_bytes = 0;
}

static sp_status read_chunk_size(sp_response *r, sp_slice line, sp_err *err) {
    int64_t size = 0;
    size_t n = 0;
    for (; n < line.len; n++) {
        char ch = (char)(line.ptr[n] | 32);
        int digit = ch >= '0' && ch <= '9' && line.ptr[n] == ch ? ch - '0'
                    : ch >= 'a' && ch <= 'f'                    ? ch - 'a' + 10
                                                                : -1;
        if (digit < 0) break;
        if (n >= 15) return SP_FAIL(err, SP_E_FORMAT, "a chunk size of more than 15 digits");
        size = size * 16 + digit;
    }
    sp_slice rest = trim(skip(line, n));
    if (n == 0 || (rest.len && rest.ptr[0] != ';'))
        return SP_FAIL(err, SP_E_FORMAT, "want a chunk size, got '%.*s'",
                       (int)(line.len < 40 ? line.len : 40), line.ptr);
    r->left = size;
    r->state = size ? SP_RESPONSE_CHUNK : SP_RESPONSE_TRAILERS;
    r->head_bytes = 0;
    return SP_OK;
}

static sp_status read_line(sp_response *r, sp_slice line, sp_err *err) {
    switch (r->state) {
    case SP_RESPONSE_STATUS_LINE:
        return read_status_line(r, line, err);
    case SP_RESPONSE_HEADERS:
        if (line.len) return read_header(r, line, err);
        begin_body(r);
        return SP_OK;
    case SP_RESPONSE_CHUNK_SIZE:
        return read_chunk_size(r, line, err);
    case SP_RESPONSE_CHUNK_END:
        if (line.len) return SP_FAIL(err, SP_E_FORMAT, "a chunk is longer than its size says");
        r->state = SP_RESPONSE_CHUNK_SIZE;
        return SP_OK;
    case SP_RESPONSE_TRAILERS:
        if (!line.len) r->state = SP_RESPONSE_COMPLETE;
        return SP_OK;
    case SP_RESPONSE_BODY:
    case SP_RESPONSE_CHUNK:
    case SP_RESPONSE_COMPLETE:
        break;
    }
    return SP_FAIL(err, SP_E_INTERNAL, "no line belongs here");
}

static void take_body(sp_response *r, sp_slice *bytes, sp_piece_fn on_body, void *ctx) {
    size_t n = bytes->len;
    if (r->left >= 0 && (uint64_t)r->left < n) n = (size_t)r->left;
    if (n) on_body(ctx, (sp_slice){bytes->ptr, n});
    *bytes = skip(*bytes, n);
    if (r->left < 0) return;
    r->left -= (int64_t)n;
    if (r->left == 0)
        r->state = r->state == SP_RESPONSE_CHUNK ? SP_RESPONSE_CHUNK_END : SP_RESPONSE_COMPLETE;
}

sp_status sp_response_feed(sp_response *r, sp_slice bytes, size_t *used, sp_piece_fn on_body,
                           void *ctx, sp_err *err) {
    const size_t n = bytes.len;
    *used = 0;
    while (r->state != SP_RESPONSE_COMPLETE && bytes.len > 0) {
        if (r->state == SP_RESPONSE_BODY || r->state == SP_RESPONSE_CHUNK) {
            take_body(r, &bytes, on_body, ctx);
            continue;
        }
        sp_slice line = {0};
        sp_status st = take_line(r, &bytes, &line, err);
        if (st == SP_OK) st = read_line(r, line, err);
        if (st < 0) return st;
    }
    *used = n - bytes.len;
    return r->state == SP_RESPONSE_COMPLETE ? SP_OK : SP_AGAIN;
}

sp_status sp_response_end(sp_response *r, sp_err *err) {
    if (r->state == SP_RESPONSE_COMPLETE) return SP_OK;
    if (r->state == SP_RESPONSE_BODY && r->left < 0) {
        r->state = SP_RESPONSE_COMPLETE;
        return SP_OK;
    }
    return SP_FAIL(err, SP_E_CLOSED, "the server closed in the middle of %s",
                   r->state == SP_RESPONSE_STATUS_LINE ? "nothing: no response came"
                   : r->state == SP_RESPONSE_HEADERS   ? "the headers"
                                                       : "a body");
}

void sp_events_init(sp_events *e) {
    *e = (sp_events){0};
    sp_buf_init(&e->line, SP_EVENT_MAX);
    sp_buf_init(&e->data, SP_EVENT_MAX);
}

void sp_events_fini(sp_events *e) {
    sp_buf_fini(&e->line);
    sp_buf_fini(&e->data);
}

void sp_events_clear(sp_events *e) {
    sp_buf_clear(&e->line);
    sp_buf_clear(&e->data);
    e->after_cr = e->has_data = false;
}

static void read_event_line(sp_events *e, sp_slice line, sp_piece_fn on_event, void *ctx) {
    if (line.len == 0) {
        if (e->has_data) on_event(ctx, sp_buf_slice(&e->data));
        sp_buf_clear(&e->data);
        e->has_data = false;
        return;
    }
    if (!sp_slice_starts(line, SP_SLICE("data")) || (line.len > 4 && line.ptr[4] != ':')) return;
    line = skip(line, line.len > 4 ? 5 : 4);
    if (line.len && line.ptr[0] == ' ') line = skip(line, 1);
    if (e->has_data) sp_buf_putc(&e->data, '\n');
    sp_buf_put_slice(&e->data, line);
    e->has_data = true;
}

/* Where the line ends: the first CR or LF, or n. */
static size_t line_length(sp_slice s) {
    const char *lf = memchr(s.ptr, '\n', s.len);
    size_t n = lf ? (size_t)(lf - s.ptr) : s.len;
    const char *cr = memchr(s.ptr, '\r', n);
    return cr ? (size_t)(cr - s.ptr) : n;
}

sp_status sp_events_feed(sp_events *e, sp_slice bytes, sp_piece_fn on_event, void *ctx,
                         sp_err *err) {
    while (bytes.len > 0) {
        if (e->after_cr && bytes.ptr[0] == '\n') bytes = skip(bytes, 1);
        e->after_cr = false;
        if (bytes.len == 0) break;
        size_t n = line_length(bytes);
        sp_slice line = {bytes.ptr, n};
        bool is_whole = n < bytes.len;
        /* Only lines that are cut by the end of the bytes are copied. */
        if (!is_whole || e->line.len) {
            sp_buf_put_slice(&e->line, line);
            line = sp_buf_slice(&e->line);
        }
        if (is_whole) {
            read_event_line(e, line, on_event, ctx);
            sp_buf_clear(&e->line);
            e->after_cr = bytes.ptr[n++] == '\r';
        }
        if (e->line.failed || e->data.failed)
            return SP_FAIL(err, SP_E_TOOLONG, "an event above %zu bytes", SP_EVENT_MAX);
        bytes = skip(bytes, n);
    }
    return SP_OK;
}
