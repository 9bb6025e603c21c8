#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sp_err_set(sp_err *err, sp_status code, const char *file, int line, const char *fmt, ...) {
    if (!err) return;
    err->code = code;
    err->file = file;
    err->line = line;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
}

void sp_err_context(sp_err *err, const char *fmt, ...) {
    if (!err) return;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 2 >= sizeof err->text) return;
    char *at = err->text + n;
    size_t room = sizeof err->text - (size_t)n - 3; /* ": " and the NUL */
    size_t len = strnlen(old, sizeof old);
    if (len > room) len = room;
    memcpy(at, ": ", 2);
    memcpy(at + 2, old, len);
    at[2 + len] = 0;
}

const char *sp_status_name(sp_status st) {
    switch (st) {
#define X(name, value, text, http) \
    case name: \
        return #name;
        SP_STATUS_LIST(X)
#undef X
    }
    return "?";
}

const char *sp_status_text(sp_status st) {
    switch (st) {
#define X(name, value, text, http) \
    case name: \
        return text;
        SP_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

int sp_status_http(sp_status st) {
    switch (st) {
#define X(name, value, text, http) \
    case name: \
        return http;
        SP_STATUS_LIST(X)
#undef X
    }
    return 500;
}

void sp_assert_failed(const char *cond, const char *file, int line) {
    fprintf(stderr, "superpod: %s:%d: our mistake: '%s' does not hold\n", file, line, cond);
    abort();
}
