/* runtime/base/log.h - one line an event, to standard error.
 *
 * A file that logs defines SP_LOG (its part's word) before including this. Lines carry time,
 * level, rank, role, part and, when set, the request id; text on a terminal, one JSON object a line
 * with SP_LOG_JSON. Info is per event, never per token. Prompts and keys are never logged.
 *
 * Thread: any; a line is one write. */
#pragma once

#include "runtime/base/status.h"

typedef enum sp_log_level {
    SP_LOG_ERROR,
    SP_LOG_WARN,
    SP_LOG_INFO,
    SP_LOG_DEBUG,
    SP_LOG_TRACE,
} sp_log_level;

/** Says who this process is ("head", "rank 0"), the lowest level shown and the line format. */
void sp_log_setup(const char *role, sp_log_level level, bool json);
sp_log_level sp_log_get_level(void);
/** "error", "warn"/"warning", "info", "debug", "trace", in any case. Errors: SP_E_INVALID. */
SP_NODISCARD sp_status sp_log_parse_level(const char *word, sp_log_level *out);
/** Thread-local request id shown in lines until set to NULL; borrowed. */
void sp_log_request(const char *id);

void sp_log_write(sp_log_level level, const char *part, const char *fmt, ...) SP_PRINTF(3, 4);

#define sp_log_at(level, ...) \
    ((level) <= sp_log_get_level() ? sp_log_write((level), SP_LOG, __VA_ARGS__) : (void)0)
#define sp_error(...) sp_log_at(SP_LOG_ERROR, __VA_ARGS__)
#define sp_warn(...) sp_log_at(SP_LOG_WARN, __VA_ARGS__)
#define sp_info(...) sp_log_at(SP_LOG_INFO, __VA_ARGS__)
#define sp_debug(...) sp_log_at(SP_LOG_DEBUG, __VA_ARGS__)
#define sp_trace(...) sp_log_at(SP_LOG_TRACE, __VA_ARGS__)
