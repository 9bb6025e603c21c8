/* launcher/bench_trace.h - the requests of a recorded load, to be sent again at another scale.
 *
 * Reads the format of Mooncake's traces: a line of JSON for each request, with `timestamp` (ms, never
 * falling), `input_length`, `output_length` and `hash_ids`, one id for each SP_TRACE_BLOCK_TOKENS of
 * the prompt. Equal ids mean equal tokens: what one prompt shares with another is shared here too.
 * The scale keeps that: each id stands for fewer tokens, and all lengths shrink alike. Arrivals keep
 * their pattern; only the clock runs faster or slower.
 *
 * Limits: the defines. A line that is not such a request is refused with its number.
 * Thread: main. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_TRACE_BLOCK_TOKENS 512
#define SP_TRACE_FILE_MAX ((size_t)1 << 30)
#define SP_TRACE_LINE_MAX ((size_t)1 << 20)
#define SP_TRACE_ROWS_MAX (1 << 20)
#define SP_TRACE_IDS_MAX (1 << 26) /* hash ids in all */
#define SP_TRACE_TOKENS_MAX (1 << 24)

typedef struct sp_trace_config {
    const char *path;
    int32_t n_rows;       /* the first so many lines; fewer when the file ends before */
    int32_t block_tokens; /* tokens that an id stands for, 1..SP_TRACE_BLOCK_TOKENS */
    double output_scale;  /* of output lengths; 0: as that of prompts */
    double rate;          /* requests a second over the whole; 0: as recorded */
    int32_t max_tokens;   /* prompt and output of a request: longer prompts are cut. 0: any */
} sp_trace_config;

typedef struct sp_trace_row {
    int64_t at_ns; /* after the first one */
    int32_t n_prompt, n_output;
    int32_t first_id; /* in sp_trace.ids */
} sp_trace_row;

typedef struct sp_trace {
    int32_t n, block_tokens;
    sp_trace_row *rows; /* [n] */
    int64_t *ids;
    int32_t n_ids;
} sp_trace;

/** Owner: caller, sp_trace_free().
 * Errors: SP_E_NOTFOUND, SP_E_IO, SP_E_FORMAT a line that is no request; SP_E_TOOLONG; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_trace_open(sp_trace **out, const sp_trace_config *config, sp_err *err);
void sp_trace_free(sp_trace *t);

/** The hash id that token `at` of a row's prompt belongs to. */
static inline int64_t sp_trace_id(const sp_trace *t, const sp_trace_row *row, int32_t at) {
    return t->ids[row->first_id + at / t->block_tokens];
}
