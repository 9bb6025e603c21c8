/* runtime/base/status.h - what a function says when it cannot do its work.
 *
 * Every function that can fail returns an sp_status: 0 is done, a positive value is an answer
 * (SP_AGAIN), a negative one an error. The range of an error tells what has to die: the request,
 * the link, the rank or the pod. Words travel in an sp_err on the caller's stack; the first
 * function that knows fills it, those above may add what they were doing.
 * An error is returned or logged, never both: it is logged where it stops.
 *
 * Thread: any. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* name, value, text, HTTP status */
#define SP_STATUS_LIST(X) \
    X(SP_OK, 0, "ok", 200) \
    X(SP_AGAIN, 1, "try again", 200) \
    X(SP_E_INVALID, -1, "invalid value", 400) \
    X(SP_E_NOTFOUND, -2, "not found", 404) \
    X(SP_E_DENIED, -3, "denied", 401) \
    X(SP_E_LIMIT, -4, "limit reached", 429) \
    X(SP_E_TOOLONG, -5, "too long", 413) \
    X(SP_E_CANCELED, -6, "canceled", 499) \
    X(SP_E_TIMEOUT, -7, "timed out", 503) \
    X(SP_E_NOMEM, -8, "out of memory", 503) \
    X(SP_E_FORMAT, -9, "bad format", 400) \
    X(SP_E_UNSUPPORTED, -10, "not supported", 400) \
    X(SP_E_IO, -11, "input or output failed", 500) \
    X(SP_E_UNAVAILABLE, -12, "unavailable", 503) \
    X(SP_E_CLOSED, -40, "peer closed the link", 500) \
    X(SP_E_PROTOCOL, -41, "bad frame", 500) \
    X(SP_E_DEVICE, -60, "device failed", 500) \
    X(SP_E_INTERNAL, -61, "internal error", 500) \
    X(SP_E_PEER_LOST, -80, "peer lost", 500) \
    X(SP_E_PLAN_STALE, -81, "plan is stale", 500)

typedef enum sp_status {
#define X(name, value, text, http) name = value,
    SP_STATUS_LIST(X)
#undef X
} sp_status;

#define SP_NODISCARD __attribute__((warn_unused_result))
#define SP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define SP_NORETURN __attribute__((noreturn))
#define SP_LEN(array) (sizeof(array) / sizeof((array)[0]))

/** Words for an error. Lives on the caller's stack; NULL is allowed wherever one is taken. */
typedef struct sp_err {
    sp_status code;
    const char *file; /* origin */
    int line;
    char text[240];
} sp_err;

/** Fills `err` (when not NULL); its value is `code`, as a constant where that is one, so that the
 * compiler sees that a failing path has not written its outputs. */
#define SP_FAIL(err, code, ...) \
    __extension__({ \
        sp_status sp_fail_code_ = (code); \
        sp_err_set((err), sp_fail_code_, __FILE__, __LINE__, __VA_ARGS__); \
        sp_fail_code_; \
    })

/** Returns from the calling function when `expr` is not SP_OK. The only control-flow macro. */
#define SP_TRY(expr) \
    do { \
        sp_status sp_try_status_ = (expr); \
        if (sp_try_status_ != SP_OK) return sp_try_status_; \
    } while (0)

void sp_err_set(sp_err *err, sp_status code, const char *file, int line, const char *fmt, ...)
    SP_PRINTF(5, 6);

/** Puts "<words>: " before the text of `err`, to say what a caller was doing. */
void sp_err_context(sp_err *err, const char *fmt, ...) SP_PRINTF(2, 3);

const char *sp_status_name(sp_status st); /* "SP_E_LIMIT" */
const char *sp_status_text(sp_status st); /* "limit reached" */
int sp_status_http(sp_status st);         /* 429 */

/** Process exit codes (stable; scripts and controllers switch on them). */
enum {
    SP_EXIT_OK = 0,        /* done or drained */
    SP_EXIT_USAGE = 2,     /* wrong command line */
    SP_EXIT_CONFIG = 10,   /* configuration or model refused; do not retry */
    SP_EXIT_PEER = 20,     /* a peer was lost; retry */
    SP_EXIT_HARDWARE = 30, /* device failed */
};

/** Our own mistakes. The world's mistakes are statuses. SP_DASSERT is for debug builds. */
#define SP_ASSERT(cond) ((cond) ? (void)0 : sp_assert_failed(#cond, __FILE__, __LINE__))
#ifdef SP_DEBUG
#define SP_DASSERT(cond) SP_ASSERT(cond)
#else
#define SP_DASSERT(cond) ((void)sizeof(!(cond)))
#endif
SP_NORETURN void sp_assert_failed(const char *cond, const char *file, int line);
