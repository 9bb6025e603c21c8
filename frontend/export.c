#include "frontend/export.h"

#include "frontend/generate.h"
#include "frontend/route.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>

/* What every series of the engine carries: model_name and engine, escaped once. */
typedef struct text {
    sp_buf *out;
    const char *labels;
} text;

static void put_escaped(sp_buf *b, const char *s) {
    for (; *s; s++) {
        if (*s == '\\' || *s == '"') sp_buf_putc(b, '\\');
        if (*s == '\n')
            sp_buf_puts(b, "\\n");
        else
            sp_buf_putc(b, *s);
    }
}

static void put_number(sp_buf *b, double v) {
    char s[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v) break;
    }
    sp_buf_puts(b, s);
}

static void family(sp_buf *b, const char *name, const char *type, const char *help) {
    sp_buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* One series: `more` is further labels, "" or `reason="x",`. */
static void series(text *t, const char *name, const char *more, double v) {
    sp_buf_printf(t->out, "%s{%s%s} ", name, more, t->labels);
    put_number(t->out, v);
    sp_buf_putc(t->out, '\n');
}

static void one(text *t, const char *name, const char *type, const char *help, double v) {
    family(t->out, name, type, help);
    series(t, name, "", v);
}

/* Bounds as Python prints them (1.0, not 1): rules match on the label's text. */
static void put_bound(sp_buf *b, double v) {
    size_t from = b->len;
    put_number(b, v);
    if (b->ptr && !strpbrk(b->ptr + from, ".e")) sp_buf_puts(b, ".0");
}

static void histogram(text *t, const char *name, const char *help, const sp_histogram *h) {
    family(t->out, name, "histogram", help);
    uint64_t total = 0;
    for (int i = 0; i <= h->n_bounds; i++) {
        total += h->buckets[i];
        sp_buf_printf(t->out, "%s_bucket{le=\"", name);
        if (i < h->n_bounds)
            put_bound(t->out, h->bounds[i]);
        else
            sp_buf_puts(t->out, "+Inf");
        sp_buf_printf(t->out, "\",%s} %llu\n", t->labels, (unsigned long long)total);
    }
    sp_buf_printf(t->out, "%s_sum{%s} ", name, t->labels);
    put_number(t->out, sp_histogram_sum(h));
    sp_buf_printf(t->out, "\n%s_count{%s} %llu\n", name, t->labels, (unsigned long long)total);
}

static double cache_usage(const sp_engine_metrics *m) {
    double total = (double)sp_gauge_get(&m->blocks_total);
    return total > 0 ? (double)sp_gauge_get(&m->blocks_used) / total : 0;
}

static void put_gauges(text *t, const sp_engine_metrics *m) {
    double waiting = (double)sp_gauge_get(&m->waiting), used = cache_usage(m);
    one(t, "vllm:num_requests_running", "gauge", "Number of requests in model execution batches.",
        (double)sp_gauge_get(&m->running));
    one(t, "vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.",
        waiting);
    family(t->out, "vllm:num_requests_waiting_by_reason", "gauge",
           "Number of waiting requests by reason.");
    series(t, "vllm:num_requests_waiting_by_reason", "reason=\"capacity\",", waiting);
    series(t, "vllm:num_requests_waiting_by_reason", "reason=\"deferred\",", 0);
    family(t->out, "vllm:engine_sleep_state", "gauge",
           "Engine sleep state; awake = 0 means the engine sleeps.");
    series(t, "vllm:engine_sleep_state", "sleep_state=\"awake\",", 1);
    series(t, "vllm:engine_sleep_state", "sleep_state=\"weights_offloaded\",", 0);
    series(t, "vllm:engine_sleep_state", "sleep_state=\"discard_all\",", 0);
    one(t, "vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", used);
    one(t, "vllm:gpu_cache_usage_perc", "gauge", "Older name of vllm:kv_cache_usage_perc.", used);
}

static void put_cache_config(text *t, const sp_front *front) {
    sp_engine_info i = sp_engine_get_info(front->engine);
    family(t->out, "vllm:cache_config_info", "gauge", "Information of the KV cache configuration.");
    sp_buf_printf(t->out,
                  "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%d\",cache_dtype=\"",
                  i.block_tokens, i.n_blocks);
    put_escaped(t->out, i.kv_dtype ? i.kv_dtype : "auto");
    sp_buf_printf(t->out,
                  "\",enable_prefix_caching=\"%s\",num_cpu_blocks=\"None\",engine=\"0\"} 1\n",
                  front->config.prefix_caching ? "True" : "False");
}

/* The figures are read one after the other while they move, so the rest may seem less than none. */
static void put_sources(text *t, double prompt, double cached, double moved) {
    static const char name[] = "vllm:prompt_tokens_by_source_total";
    double computed = prompt - cached - moved;
    family(t->out, name, "counter", "Number of prompt tokens by where their KV came from.");
    series(t, name, "source=\"local_compute\",", computed > 0 ? computed : 0);
    series(t, name, "source=\"local_cache_hit\",", cached);
    series(t, name, "source=\"external_kv_transfer\",", moved);
}

static void put_counters(text *t, const sp_engine_metrics *m) {
    double prompt = (double)sp_counter_get(&m->prompt_tokens);
    double cached = (double)sp_counter_get(&m->prompt_tokens_cached);
    const struct {
        const char *name, *help;
        double v;
    } rows[] = {
        {"vllm:num_preemptions_total", "Number of preemptions.",
         (double)sp_counter_get(&m->preemptions)},
        {"vllm:prompt_tokens_total", "Number of prefill tokens processed.", prompt},
        {"vllm:prompt_tokens_cached_total", "Number of prompt tokens found in a cache.", cached},
        {"vllm:generation_tokens_total", "Number of generation tokens processed.",
         (double)sp_counter_get(&m->generation_tokens)},
        {"vllm:prefix_cache_queries_total", "Prefix cache queries, in tokens.",
         (double)sp_counter_get(&m->prefix_queries)},
        {"vllm:prefix_cache_hits_total", "Prefix cache hits, in tokens.",
         (double)sp_counter_get(&m->prefix_hits)},
        /* Another pod that lends its blocks is a cache outside this one. */
        {"vllm:external_prefix_cache_queries_total", "External prefix cache queries, in tokens.",
         (double)sp_counter_get(&m->kv_queries)},
        {"vllm:external_prefix_cache_hits_total", "External prefix cache hits, in tokens.",
         (double)sp_counter_get(&m->kv_hits)},
        /* There is no cache of media: never asked, never hit. */
        {"vllm:mm_cache_queries_total", "Multi-modal cache queries, in items.", 0},
        {"vllm:mm_cache_hits_total", "Multi-modal cache hits, in items.", 0},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        one(t, rows[i].name, "counter", rows[i].help, rows[i].v);
    put_sources(t, prompt, cached, (double)sp_counter_get(&m->kv_prompt_tokens));
}

static void put_finished(text *t, const sp_engine_metrics *m) {
    static const struct {
        const char *label;
        int finish;
    } rows[] = {{"stop", SP_FINISH_STOP},
                {"length", SP_FINISH_LENGTH},
                {"abort", SP_FINISH_ABORT},
                {"error", SP_FINISH_ERROR},
                {"repetition", -1}};
    family(t->out, "vllm:request_success_total", "counter",
           "Count of processed requests by how they ended.");
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char more[64];
        snprintf(more, sizeof more, "finished_reason=\"%s\",", rows[i].label);
        double v = rows[i].finish < 0 ? 0 : (double)sp_counter_get(&m->finished[rows[i].finish]);
        series(t, "vllm:request_success_total", more, v);
    }
}

static void put_histograms(text *t, const sp_engine_metrics *m) {
    const struct {
        const char *name, *help;
        const sp_histogram *h;
    } rows[] = {
        {"vllm:time_to_first_token_seconds", "Time to first token in seconds.", &m->ttft_s},
        {"vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", &m->itl_s},
        {"vllm:request_time_per_output_token_seconds",
         "Time per output token of a request in seconds.", &m->tpot_s},
        {"vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", &m->e2e_s},
        {"vllm:request_queue_time_seconds", "Time spent waiting in seconds.", &m->queue_s},
        {"vllm:request_inference_time_seconds", "Time spent running in seconds.", &m->inference_s},
        {"vllm:request_prefill_time_seconds", "Time spent in prefill in seconds.", &m->prefill_s},
        {"vllm:request_decode_time_seconds", "Time spent in decode in seconds.", &m->decode_s},
        {"vllm:request_prompt_tokens", "Number of prefill tokens of a request.",
         &m->req_prompt_tokens},
        {"vllm:request_generation_tokens", "Number of generation tokens of a request.",
         &m->req_generation_tokens},
        {"vllm:request_max_num_generation_tokens", "Most generation tokens of a request's choices.",
         &m->req_max_generation_tokens},
        {"vllm:request_params_max_tokens", "The max_tokens parameter of a request.",
         &m->req_max_tokens},
        {"vllm:request_params_n", "The n parameter of a request.", &m->req_n},
        {"vllm:request_prefill_kv_computed_tokens", "Prefill tokens computed, cached ones apart.",
         &m->req_prefill_computed_tokens},
        {"vllm:iteration_tokens_total", "Number of tokens of an engine step.",
         &m->iteration_tokens},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) histogram(t, rows[i].name, rows[i].help, rows[i].h);
}

static void put_own(text *t, const sp_front *front, const sp_engine_metrics *m) {
    const sp_http_stats *h = sp_http_get_stats(front->http);
    one(t, "superpod:engine_steps_total", "counter", "Engine steps.",
        (double)sp_counter_get(&m->steps));
    one(t, "superpod:engine_step_cpu_seconds_total", "counter",
        "CPU time of the engine thread spent on steps.",
        (double)sp_counter_get(&m->engine_cpu_ns) / 1e9);
    one(t, "superpod:device_busy_seconds_total", "counter",
        "Time that GPUs computed steps, of all ranks together, by their own clocks.",
        (double)sp_counter_get(&m->device_busy_ns) / 1e9);
    one(t, "superpod:device_idle_seconds_total", "counter",
        "Time that GPUs stood idle between two steps while sequences were running.",
        (double)sp_counter_get(&m->device_idle_ns) / 1e9);
    one(t, "superpod:http_events_total", "counter", "Engine events turned into output.",
        (double)front->n_events);
    one(t, "superpod:http_event_cpu_seconds_total", "counter",
        "CPU time of the loop spent on engine events, writes included.",
        (double)front->event_cpu_ns / 1e9);
    one(t, "superpod:http_connections", "gauge", "Open connections.", h->connections);
    one(t, "superpod:http_connections_total", "counter", "Accepted connections.",
        (double)h->accepted);
    one(t, "superpod:http_connections_refused_total", "counter",
        "Connections turned away at the limit.", (double)h->over_cap);
    one(t, "superpod:http_slow_readers_cut_total", "counter",
        "Connections cut because the client took no output.", (double)h->cut_slow);
    one(t, "superpod:http_timeouts_total", "counter", "Requests that did not come in time.",
        (double)h->timed_out);
    one(t, "superpod:http_malformed_total", "counter", "Requests refused as malformed.",
        (double)h->refused);
    one(t, "superpod:requests_in_work", "gauge", "Generation requests between body and reply.",
        front->limit.requests);
    one(t, "superpod:requests_refused_total", "counter", "Requests refused at a cap (429).",
        (double)front->limit.refused);
}

/* What goes between groups of ranks; all 0 with one group. */
static void put_kv(text *t, const sp_engine_metrics *m) {
    one(t, "superpod:kv_blocks_pulled_total", "counter", "KV blocks that came from another group.",
        (double)sp_counter_get(&m->kv_blocks_pulled));
    one(t, "superpod:kv_bytes_pulled_total", "counter", "Bytes of these blocks.",
        (double)sp_counter_get(&m->kv_bytes_pulled));
    one(t, "superpod:prefilled_elsewhere_total", "counter",
        "Requests whose prompt, or a part of it, a prefill group computed.",
        (double)sp_counter_get(&m->prefilled_elsewhere));
    one(t, "superpod:prefilled_here_total", "counter",
        "Requests whose prompt was computed where it is decoded.",
        (double)sp_counter_get(&m->prefilled_here));
    family(t->out, "superpod:kv_failures_total", "counter",
           "KV blocks (or requests) that did not come from another group, by why.");
    for (int i = SP_KV_OK + 1; i < SP_KV_CAUSE_COUNT; i++) {
        char more[64];
        snprintf(more, sizeof more, "cause=\"%s\",", sp_kv_cause_name((sp_kv_cause)i));
        series(t, "superpod:kv_failures_total", more, (double)sp_counter_get(&m->kv_failures[i]));
    }
    histogram(t, "superpod:handoff_seconds",
              "From the choice of groups to the request given to decode.", &m->handoff_s);
}

/* Under the names that dashboards of vLLM's NIXL connector have; ours move by ranks' own means. */
static void put_transfers(text *t, const sp_engine_metrics *m) {
    histogram(t, "vllm:nixl_xfer_time_seconds", "Duration of KV cache transfers in seconds.",
              &m->kv_xfer_s);
    histogram(t, "vllm:nixl_post_time_seconds",
              "Time from blocks that can be pulled to the pull's begin in seconds.", &m->kv_post_s);
    histogram(t, "vllm:nixl_bytes_transferred", "Bytes of a KV cache transfer.", &m->kv_xfer_bytes);
    histogram(t, "vllm:nixl_num_descriptors", "Blocks of a KV cache transfer.", &m->kv_xfer_blocks);
    one(t, "vllm:nixl_num_failed_transfers_total", "counter",
        "KV cache transfers of which a block did not come.",
        (double)sp_counter_get(&m->kv_failed_xfers));
    one(t, "vllm:nixl_num_failed_notifications_total", "counter",
        "Renewals and returns of leases that did not reach who lent the blocks.",
        (double)sp_counter_get(&m->kv_failed_notices));
    one(t, "vllm:nixl_num_kv_expired_reqs_total", "counter",
        "Requests whose lent blocks were not fetched within their lease.",
        (double)sp_counter_get(&m->kv_expired));
    one(t, "superpod:kv_lent_blocks", "gauge", "KV blocks kept for other pods now.",
        (double)sp_gauge_get(&m->kv_lent));
}

static void put_refusals(text *t, const sp_front *front) {
    family(t->out, "superpod:kv_handles_refused_total", "counter",
           "Lent KV blocks turned away with their request's arrival, by why.");
    for (int i = SP_KV_REFUSED_NOT + 1; i < SP_KV_REFUSAL_COUNT; i++) {
        char more[64];
        snprintf(more, sizeof more, "reason=\"%s\",", sp_kv_refusal_name((sp_kv_refusal)i));
        series(t, "superpod:kv_handles_refused_total", more, (double)front->kv_refused[i]);
    }
}

/* pool="…",role="…", */
static void put_pool_labels(sp_buf *b, const sp_engine_group_status *g) {
    sp_buf_puts(b, "pool=\"");
    put_escaped(b, g->pool);
    sp_buf_printf(b, "\",role=\"%s\",", sp_pool_role_name(g->role));
}

static bool same_pool(const sp_engine_group_status *a, const sp_engine_group_status *b) {
    return a->role == b->role && strcmp(a->pool, b->pool) == 0;
}

static void put_pool_sizes(text *t, const sp_engine_group_status *groups, int n, sp_buf *more) {
    family(t->out, "superpod:pool_groups", "gauge", "Groups of ranks of a pool, by role.");
    for (int i = 0; i < n; i++) {
        int alike = 0, before = 0;
        for (int k = 0; k < n; k++)
            if (same_pool(&groups[i], &groups[k])) alike++, before += k < i;
        if (before) continue; /* counted with the first of them */
        sp_buf_clear(more);
        put_pool_labels(more, &groups[i]);
        series(t, "superpod:pool_groups", more->ptr ? more->ptr : "", alike);
    }
}

static double figure_of(const sp_engine_group_status *g, int which) {
    const double figures[] = {g->running,
                              g->waiting,
                              g->blocks_used,
                              g->blocks_total,
                              (double)g->load_tokens,
                              (double)g->prompt_tokens,
                              (double)g->generated_tokens};
    return figures[which];
}

static void put_pool_figures(text *t, const sp_engine_group_status *groups, int n, sp_buf *more) {
    static const struct {
        const char *name, *help;
        bool is_counter;
    } rows[] = {
        {"superpod:pool_running", "Requests in model execution batches of a group of ranks.",
         false},
        {"superpod:pool_waiting", "Requests waiting at a group of ranks.", false},
        {"superpod:pool_blocks_used", "KV blocks of a group of ranks that are in use.", false},
        {"superpod:pool_blocks_total", "KV blocks of a group of ranks.", false},
        {"superpod:pool_load_tokens", "Tokens of all requests that a group of ranks has.", false},
        {"superpod:pool_prompt_tokens_total", "Prompt tokens that a group has computed.", true},
        {"superpod:pool_generated_tokens_total", "Tokens that a group has drawn.", true}};
    for (int k = 0; k < (int)SP_LEN(rows); k++) {
        family(t->out, rows[k].name, rows[k].is_counter ? "counter" : "gauge", rows[k].help);
        for (int i = 0; i < n; i++) {
            sp_buf_clear(more);
            sp_buf_printf(more, "group=\"%d\",", i);
            put_pool_labels(more, &groups[i]);
            series(t, rows[k].name, more->ptr ? more->ptr : "", figure_of(&groups[i], k));
        }
    }
}

static void put_pools(text *t, const sp_front *front) {
    int n = sp_engine_group_count(front->engine);
    sp_engine_group_status *groups = sp_try_alloc_array((size_t)n + 1, sizeof *groups);
    sp_buf more;
    sp_buf_init(&more, 0);
    if (!groups) t->out->failed = true;
    for (int i = 0; groups && i < n; i++)
        if (!sp_engine_group_info(front->engine, i, &groups[i])) n = i;
    if (groups) {
        put_pool_sizes(t, groups, n, &more);
        put_pool_figures(t, groups, n, &more);
    }
    if (more.failed) t->out->failed = true;
    sp_buf_fini(&more);
    sp_free(groups);
}

static void put_http_counts(sp_buf *b, const sp_route_stats *s) {
    static const char *const classes[SP_STATUS_CLASSES] = {"1xx", "2xx", "3xx", "4xx", "5xx"};
    family(b, "http_requests_total", "counter",
           "Total number of requests by method, status and "
           "handler.");
    for (int i = 0; sp_route_path(i); i++)
        for (int m = 0; m < SP_HTTP_METHOD_COUNT; m++)
            for (int k = 0; k < SP_STATUS_CLASSES; k++)
                if (s->requests[i][m][k])
                    sp_buf_printf(b,
                                  "http_requests_total{handler=\"%s\",method=\"%s\",status=\"%s\"} "
                                  "%llu\n",
                                  sp_route_path(i), sp_http_method_name((sp_http_method)m),
                                  classes[k], (unsigned long long)s->requests[i][m][k]);
}

static void put_http_durations_of(sp_buf *b, const sp_route_stats *s, int i, int m) {
    char labels[160];
    uint64_t total = 0;
    snprintf(labels, sizeof labels, "handler=\"%s\",method=\"%s\"", sp_route_path(i),
             sp_http_method_name((sp_http_method)m));
    for (size_t k = 0; k < SP_LEN(s->buckets[i][m]); k++) {
        total += s->buckets[i][m][k];
        sp_buf_printf(b, "http_request_duration_seconds_bucket{%s,le=\"", labels);
        if (k < SP_LEN(sp_route_bounds))
            put_bound(b, sp_route_bounds[k]);
        else
            sp_buf_puts(b, "+Inf");
        sp_buf_printf(b, "\"} %llu\n", (unsigned long long)total);
    }
    sp_buf_printf(b, "http_request_duration_seconds_sum{%s} ", labels);
    put_number(b, s->seconds[i][m]);
    sp_buf_printf(b, "\nhttp_request_duration_seconds_count{%s} %llu\n", labels,
                  (unsigned long long)total);
}

static void put_http_durations(sp_buf *b, const sp_route_stats *s) {
    family(b, "http_request_duration_seconds", "histogram",
           "Duration of requests by method and handler.");
    for (int i = 0; sp_route_path(i); i++)
        for (int m = 0; m < SP_HTTP_METHOD_COUNT; m++) {
            uint64_t seen = 0;
            for (size_t k = 0; k < SP_LEN(s->buckets[i][m]); k++) seen += s->buckets[i][m][k];
            if (seen) put_http_durations_of(b, s, i, m);
        }
}

void sp_export_metrics(sp_front *front, sp_buf *out) {
    sp_buf labels;
    sp_buf_init(&labels, 0);
    sp_buf_puts(&labels, "engine=\"0\",model_name=\"");
    put_escaped(&labels, front->config.model_names[0]);
    sp_buf_putc(&labels, '"');
    if (labels.failed) out->failed = true;
    text t = {out, labels.ptr ? labels.ptr : ""};
    const sp_engine_metrics *m = sp_engine_get_metrics(front->engine);
    put_gauges(&t, m);
    put_cache_config(&t, front);
    put_counters(&t, m);
    put_finished(&t, m);
    put_histograms(&t, m);
    put_own(&t, front, m);
    put_kv(&t, m);
    put_transfers(&t, m);
    put_refusals(&t, front);
    put_pools(&t, front);
    put_http_counts(out, front->routes);
    put_http_durations(out, front->routes);
    sp_buf_fini(&labels);
}

void sp_export_load_header(const sp_front *front, sp_slice format, char *out, size_t n) {
    const sp_engine_metrics *m = sp_engine_get_metrics(front->engine);
    double used = cache_usage(m);
    long long waiting = (long long)sp_gauge_get(&m->waiting);
    out[0] = 0;
    if (sp_http_token_eq(format, "TEXT"))
        snprintf(out, n,
                 "endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=%g,"
                 "named_metrics.num_requests_waiting=%lld\r\n",
                 used, waiting);
    else if (sp_http_token_eq(format, "JSON"))
        snprintf(out, n,
                 "endpoint-load-metrics: JSON {\"named_metrics\":{\"kv_cache_usage_perc\":%g,"
                 "\"num_requests_waiting\":%lld}}\r\n",
                 used, waiting);
}
