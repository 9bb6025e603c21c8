#include "launcher/bench_trace.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <string.h>

#define TIMESTAMP_MAX ((int64_t)1 << 40) /* ms: 34 years */

typedef struct reader {
    const sp_trace_config *config;
    sp_trace *t;
    int32_t rows_room, ids_room;
    int64_t first_ms, last_ms;
} reader;

/* Room for `want` elements; doubles, so that a file of any length is read in linear time. */
static sp_status grow(void **p, int32_t *room, int32_t want, int32_t most, size_t size,
                      const char *what, sp_err *err) {
    if (want <= *room) return SP_OK;
    if (want > most) return SP_FAIL(err, SP_E_TOOLONG, "more than %d %s", most, what);
    int32_t n = *room ? *room : 1024;
    while (n < want) n *= 2;
    void *larger = sp_try_realloc(*p, (size_t)n * size);
    if (!larger) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d %s", n, what);
    *p = larger;
    *room = n;
    return SP_OK;
}

static sp_status take_ids(reader *r, const sp_json_node *ids, int32_t n, sp_err *err) {
    sp_trace *t = r->t;
    if (sp_json_count(ids) < n)
        return SP_FAIL(err, SP_E_FORMAT, "hash_ids: want %d for the prompt, got %d", n,
                       sp_json_count(ids));
    void *room = t->ids;
    sp_status st =
        grow(&room, &r->ids_room, t->n_ids + n, SP_TRACE_IDS_MAX, sizeof *t->ids, "hash ids", err);
    t->ids = room;
    if (st != SP_OK) return st;
    const sp_json_node *v = sp_json_first(ids);
    for (int32_t i = 0; i < n; i++, v = sp_json_next(v)) {
        if (sp_json_type_of(v) != SP_JSON_INT)
            return SP_FAIL(err, SP_E_FORMAT, "hash_ids: want whole numbers");
        t->ids[t->n_ids + i] = sp_json_int(v);
    }
    t->n_ids += n;
    return SP_OK;
}

/* At least one token of each: a request without any is none. */
static int32_t scaled(int64_t n, double by) {
    double x = ceil((double)n * by);
    return x < 1 ? 1 : x > SP_TRACE_TOKENS_MAX ? SP_TRACE_TOKENS_MAX : (int32_t)x;
}

static void scale(const sp_trace_config *c, sp_trace_row *row, int64_t input, int64_t output) {
    const double by = (double)c->block_tokens / SP_TRACE_BLOCK_TOKENS;
    row->n_prompt = scaled(input, by);
    row->n_output = scaled(output, c->output_scale > 0 ? c->output_scale : by);
    if (c->max_tokens == 0) return;
    if (row->n_output > c->max_tokens - 1) row->n_output = c->max_tokens - 1;
    if (row->n_prompt > c->max_tokens - row->n_output)
        row->n_prompt = c->max_tokens - row->n_output;
}

static sp_status take_request(reader *r, const sp_json_node *o, sp_err *err) {
    sp_trace *t = r->t;
    int64_t at = -1, input = 0, output = 0;
    const sp_json_node *ids = NULL;
    SP_TRY(sp_json_get_int(o, "timestamp", 0, TIMESTAMP_MAX, &at, err));
    SP_TRY(sp_json_get_int(o, "input_length", 1, SP_TRACE_TOKENS_MAX, &input, err));
    SP_TRY(sp_json_get_int(o, "output_length", 0, SP_TRACE_TOKENS_MAX, &output, err));
    SP_TRY(sp_json_get_array(o, "hash_ids", &ids, err));
    if (at < 0 || input == 0 || !ids)
        return SP_FAIL(err, SP_E_FORMAT, "want timestamp, input_length and hash_ids");
    if (t->n == 0) r->first_ms = r->last_ms = at;
    if (at < r->last_ms)
        return SP_FAIL(err, SP_E_FORMAT, "timestamp: %lld is before %lld of the line above",
                       (long long)at, (long long)r->last_ms);
    r->last_ms = at;
    void *room = t->rows;
    sp_status st =
        grow(&room, &r->rows_room, t->n + 1, SP_TRACE_ROWS_MAX, sizeof *t->rows, "requests", err);
    t->rows = room;
    if (st != SP_OK) return st;
    sp_trace_row *row = &t->rows[t->n];
    *row = (sp_trace_row){.at_ns = (at - r->first_ms) * SP_NS_PER_MS, .first_id = t->n_ids};
    scale(r->config, row, input, output);
    SP_TRY(take_ids(r, ids, (row->n_prompt - 1) / t->block_tokens + 1, err));
    t->n++;
    return SP_OK;
}

static sp_status take_line(reader *r, sp_slice line, sp_err *err) {
    if (line.len > SP_TRACE_LINE_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "%zu bytes, at most %zu", line.len, SP_TRACE_LINE_MAX);
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, line, 8, err));
    sp_status st = SP_OK;
    if (sp_json_type_of(sp_json_root(doc)) != SP_JSON_OBJECT)
        st = SP_FAIL(err, SP_E_FORMAT, "want an object");
    if (st == SP_OK) st = take_request(r, sp_json_root(doc), err);
    sp_json_free(doc);
    return st;
}

static sp_status take_lines(reader *r, sp_slice text, sp_err *err) {
    for (int number = 1; text.len > 0 && r->t->n < r->config->n_rows; number++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t n = end ? (size_t)(end - text.ptr) : text.len;
        size_t used = n + (end != NULL);
        if (n > 0 && text.ptr[n - 1] == '\r') n--;
        sp_status st = n ? take_line(r, (sp_slice){text.ptr, n}, err) : SP_OK;
        if (st != SP_OK) {
            sp_err_context(err, "'%s' line %d", r->config->path, number);
            return st;
        }
        text = (sp_slice){text.ptr + used, text.len - used};
    }
    if (r->t->n == 0) return SP_FAIL(err, SP_E_FORMAT, "'%s': no request in it", r->config->path);
    return SP_OK;
}

/* n requests at R a second take n / R seconds, whatever the gaps between them. */
static void set_rate(sp_trace *t, double rate) {
    const int64_t whole = t->rows[t->n - 1].at_ns;
    if (rate <= 0 || whole == 0) return;
    const double by = (double)t->n / rate * (double)SP_NS_PER_S / (double)whole;
    for (int32_t i = 0; i < t->n; i++) t->rows[i].at_ns = (int64_t)((double)t->rows[i].at_ns * by);
}

sp_status sp_trace_open(sp_trace **out, const sp_trace_config *config, sp_err *err) {
    SP_ASSERT(config->block_tokens >= 1 && config->block_tokens <= SP_TRACE_BLOCK_TOKENS &&
              (config->max_tokens == 0 || config->max_tokens >= 2));
    sp_map file;
    SP_TRY(sp_map_open(&file, config->path, err));
    reader r = {.config = config, .t = sp_alloc(sizeof *r.t)};
    r.t->block_tokens = config->block_tokens;
    sp_status st = file.len > SP_TRACE_FILE_MAX
                       ? SP_FAIL(err, SP_E_TOOLONG, "'%s': %zu bytes, at most %zu", config->path,
                                 file.len, SP_TRACE_FILE_MAX)
                       : take_lines(&r, (sp_slice){(const char *)file.ptr, file.len}, err);
    sp_map_close(&file);
    if (st != SP_OK) {
        sp_trace_free(r.t);
        return st;
    }
    set_rate(r.t, config->rate);
    *out = r.t;
    return SP_OK;
}

void sp_trace_free(sp_trace *t) {
    if (!t) return;
    sp_free(t->rows);
    sp_free(t->ids);
    sp_free(t);
}
