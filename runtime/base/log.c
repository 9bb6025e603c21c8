#include "runtime/base/log.h"

#include "runtime/base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
static sp_log_level shown = SP_LOG_INFO;
static bool as_json;
static char process_role[24] = "";
static _Thread_local const char *request_id;

void sp_log_setup(const char *role, sp_log_level level, bool json) {
    snprintf(process_role, sizeof process_role, "%s", role ? role : "");
    shown = level;
    as_json = json;
}

sp_log_level sp_log_get_level(void) {
    return shown;
}

sp_status sp_log_parse_level(const char *word, sp_log_level *out) {
    if (strcasecmp(word, "warning") == 0) word = "warn";
    for (size_t i = 0; i < SP_LEN(level_names); i++)
        if (strcasecmp(word, level_names[i]) == 0) {
            *out = (sp_log_level)i;
            return SP_OK;
        }
    return SP_E_INVALID;
}

void sp_log_request(const char *id) {
    request_id = id;
}

static void write_line(const char *line, size_t n) {
    /* One write a line, so that lines of several threads and processes do not mix. */
    ssize_t rc = write(STDERR_FILENO, line, n);
    (void)rc;
}

static void write_json(sp_log_level level, const char *part, const char *when, const char *text) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "time"), sp_jw_str(&w, when);
    sp_jw_key(&w, "level"), sp_jw_str(&w, level_names[level]);
    sp_jw_key(&w, "role"), sp_jw_str(&w, process_role);
    sp_jw_key(&w, "part"), sp_jw_str(&w, part);
    if (request_id) sp_jw_key(&w, "request"), sp_jw_str(&w, request_id);
    sp_jw_key(&w, "text"), sp_jw_str(&w, text);
    sp_jw_object_end(&w);
    sp_buf_putc(&b, '\n');
    if (!b.failed) write_line(b.ptr, b.len);
    sp_buf_fini(&b);
}

/* A line stays one line, whatever a peer or a user put into it. */
static void write_text(sp_log_level level, const char *part, const char *when, const char *text) {
    char line[1400];
    int len = snprintf(line, sizeof line, "%s %-5s %s%s%s%s%.128s: %s", when, level_names[level],
                       process_role, process_role[0] ? " " : "", part, request_id ? " " : "",
                       request_id ? request_id : "", text);
    size_t n = len < 0 ? 0 : (size_t)len < sizeof line ? (size_t)len : sizeof line - 1;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    if (n == sizeof line - 1) n--;
    line[n++] = '\n';
    write_line(line, n);
}

void sp_log_write(sp_log_level level, const char *part, const char *fmt, ...) {
    char text[1024], when[40];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);

    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + n, sizeof when - n, ".%03dZ", (int)(ts.tv_nsec / 1000000));
    if (as_json)
        write_json(level, part, when, text);
    else
        write_text(level, part, when, text);
}
