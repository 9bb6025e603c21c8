#include "launcher/bench_http.h"

#include "launcher/bench_load.h"
#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>

static const char help_text[] =
    "usage: superpod bench http --url http://HOST:PORT [options]\n\n"
    "Loads an OpenAI-compatible server: each of N streams sends its next request when the last "
    "one\n"
    "has ended; with --trace each request is sent when its time has come.\n\n"
    "  --url URL            the server; http only\n"
    "  --model NAME         default: the first of /v1/models\n"
    "  --endpoint WORD      completions (default) or chat\n"
    "  --streams N          requests at a time, 1..4096 (8)\n"
    "  --requests N         requests in all (64)\n"
    "  --warmup N           requests before, not measured (0)\n"
    "  --prompt TEXT        the same text for all\n"
    "  --prompt-tokens N    that many synthetic words, different for each request (128)\n"
    "  --same-prompt        the same synthetic words for all\n"
    "  --ids A-B            prompts of random token ids of A to B instead of words: exact lengths\n"
    "  --seed N             other numbers: other prompts (0)\n"
    "  --max-tokens N       (128)\n"
    "  --temperature X      (0)\n"
    "  --ignore-eos on|off  run to max-tokens (on)\n"
    "  --stream on|off      (on)\n"
    "  --api-key KEY        default: the variable SUPERPOD_API_KEY\n"
    "  --extra-body JSON    an object whose members each request gets\n"
    "  --goodput LIMITS     ttft:MS,tpot:MS,e2el:MS, any of them: count the requests that keep "
    "all;\n"
    "                       may be given up to 8 times\n"
    "  --timeout-s N        for one request (600)\n"
    "  --json               one JSON object instead of text\n\n"
    "Replaying a recorded load (JSON lines: timestamp in ms, input_length, output_length, "
    "hash_ids):\n\n"
    "  --trace FILE         the first --requests of it; wants --ids\n"
    "  --trace-block N      tokens that a hash id stands for, of 512: scales all lengths (512)\n"
    "  --trace-output X     scale of output lengths (that of prompts)\n"
    "  --rate R             requests a second over the whole (as recorded)\n"
    "  --max-model-len N    tokens of prompt and output: longer prompts are cut (no limit)\n";

typedef struct options {
    sp_load_config load;
    sp_trace_config trace;
    sp_trace *rows;
    char *extra; /* owned */
    bool has_url, has_streams, json, help;
} options;

typedef struct option {
    const char *name;
    bool takes_value;
    sp_status (*read)(options *o, const char *value, sp_err *err);
} option;

static sp_status read_count(const char *value, int64_t min, int64_t max, int *out, sp_err *err) {
    int64_t n;
    if (sp_parse_i64(sp_slice_of(value), &n) != SP_OK || n < min || n > max)
        return SP_FAIL(err, SP_E_INVALID, "want a number from %lld to %lld, got '%.40s'",
                       (long long)min, (long long)max, value);
    *out = (int)n;
    return SP_OK;
}

static sp_status read_choice(const char *value, const char *no, const char *yes, bool *out,
                             sp_err *err) {
    bool is_yes = strcmp(value, yes) == 0;
    if (!is_yes && strcmp(value, no) != 0)
        return SP_FAIL(err, SP_E_INVALID, "want '%s' or '%s', got '%.40s'", yes, no, value);
    *out = is_yes;
    return SP_OK;
}

static sp_status read_url(options *o, const char *v, sp_err *err) {
    o->has_url = true;
    return sp_url_parse(&o->load.url, sp_slice_of(v), err);
}
static sp_status read_model(options *o, const char *v, sp_err *err) {
    if (!v[0] || strlen(v) > 255) return SP_FAIL(err, SP_E_INVALID, "want 1 to 255 bytes");
    o->load.model = v;
    return SP_OK;
}
static sp_status read_endpoint(options *o, const char *v, sp_err *err) {
    return read_choice(v, "completions", "chat", &o->load.is_chat, err);
}
static sp_status read_streams(options *o, const char *v, sp_err *err) {
    o->has_streams = true;
    return read_count(v, 1, SP_LOAD_STREAMS_MAX, &o->load.n_streams, err);
}
static sp_status read_requests(options *o, const char *v, sp_err *err) {
    return read_count(v, 1, SP_LOAD_REQUESTS_MAX, &o->load.n_requests, err);
}
static sp_status read_warmup(options *o, const char *v, sp_err *err) {
    return read_count(v, 0, SP_LOAD_REQUESTS_MAX, &o->load.n_warmup, err);
}
static sp_status read_prompt(options *o, const char *v, sp_err *err) {
    (void)err;
    o->load.prompt = v;
    return SP_OK;
}
static sp_status read_prompt_tokens(options *o, const char *v, sp_err *err) {
    return read_count(v, 1, SP_LOAD_PROMPT_TOKENS_MAX, &o->load.prompt_tokens, err);
}
static sp_status read_same_prompt(options *o, const char *v, sp_err *err) {
    (void)v, (void)err;
    o->load.same_prompt = true;
    return SP_OK;
}
static sp_status read_max_tokens(options *o, const char *v, sp_err *err) {
    return read_count(v, 1, INT32_MAX, &o->load.max_tokens, err);
}
static sp_status read_temperature(options *o, const char *v, sp_err *err) {
    double t;
    if (sp_parse_f64(sp_slice_of(v), &t) != SP_OK || t < 0 || t > 2)
        return SP_FAIL(err, SP_E_INVALID, "want a number from 0 to 2, got '%.40s'", v);
    o->load.temperature = t;
    return SP_OK;
}
static sp_status read_ignore_eos(options *o, const char *v, sp_err *err) {
    return read_choice(v, "off", "on", &o->load.ignores_eos, err);
}
static sp_status read_stream(options *o, const char *v, sp_err *err) {
    return read_choice(v, "off", "on", &o->load.streams, err);
}
static sp_status read_api_key(options *o, const char *v, sp_err *err) {
    for (const char *p = v; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == 127)
            return SP_FAIL(err, SP_E_INVALID, "the key has a space or control character");
    o->load.api_key = v;
    return SP_OK;
}
static sp_status read_timeout(options *o, const char *v, sp_err *err) {
    int s = 0;
    SP_TRY(read_count(v, 1, 1000000, &s, err));
    o->load.timeout_ns = s * SP_NS_PER_S;
    return SP_OK;
}
static sp_status read_ids(options *o, const char *v, sp_err *err) {
    const char *dash = strchr(v, '-');
    int64_t first = -1, last = -1;
    if (!dash || sp_parse_i64((sp_slice){v, (size_t)(dash - v)}, &first) != SP_OK ||
        sp_parse_i64(sp_slice_of(dash + 1), &last) != SP_OK || first < 0 || last < 1 ||
        last < first || last > SP_LOAD_IDS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "want two ids like 16-2047, got '%.40s'", v);
    o->load.ids_first = (int32_t)first;
    o->load.ids_last = (int32_t)last;
    return SP_OK;
}
static sp_status read_seed(options *o, const char *v, sp_err *err) {
    int n = 0;
    SP_TRY(read_count(v, 0, INT32_MAX, &n, err));
    o->load.seed = (uint64_t)n;
    return SP_OK;
}
static sp_status read_positive(const char *v, double most, double *out, sp_err *err) {
    double x;
    if (sp_parse_f64(sp_slice_of(v), &x) != SP_OK || !(x > 0 && x <= most))
        return SP_FAIL(err, SP_E_INVALID, "want a number above 0, at most %g, got '%.40s'", most,
                       v);
    *out = x;
    return SP_OK;
}
static sp_status read_trace(options *o, const char *v, sp_err *err) {
    if (!v[0]) return SP_FAIL(err, SP_E_INVALID, "want a file");
    o->trace.path = v;
    return SP_OK;
}
static sp_status read_trace_block(options *o, const char *v, sp_err *err) {
    return read_count(v, 1, SP_TRACE_BLOCK_TOKENS, &o->trace.block_tokens, err);
}
static sp_status read_trace_output(options *o, const char *v, sp_err *err) {
    return read_positive(v, 1000, &o->trace.output_scale, err);
}
static sp_status read_rate(options *o, const char *v, sp_err *err) {
    return read_positive(v, 1e6, &o->trace.rate, err);
}
static sp_status read_max_model_len(options *o, const char *v, sp_err *err) {
    return read_count(v, 2, SP_TRACE_TOKENS_MAX, &o->trace.max_tokens, err);
}
/* What is between the braces: it is put among the members of ours. */
static sp_status read_extra(options *o, const char *v, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, sp_slice_of(v), 0, err));
    const sp_json_node *root = sp_json_root(doc);
    const bool is_object = sp_json_type_of(root) == SP_JSON_OBJECT, is_empty = !sp_json_first(root);
    sp_json_free(doc);
    if (!is_object) return SP_FAIL(err, SP_E_INVALID, "want a JSON object, got '%.40s'", v);
    const char *from = strchr(v, '{') + 1;
    sp_free(o->extra);
    o->extra = is_empty ? NULL : sp_strndup(from, (size_t)(strrchr(v, '}') - from));
    o->load.extra = o->extra;
    return SP_OK;
}
static sp_status read_goodput(options *o, const char *v, sp_err *err) {
    if (o->load.n_limits == SP_LOAD_LIMITS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "given more than %d times", SP_LOAD_LIMITS_MAX);
    sp_load_limits limits = {0};
    const struct {
        const char *name;
        int64_t *to;
    } kinds[] = {{"ttft:", &limits.ttft_ns}, {"tpot:", &limits.tpot_ns}, {"e2el:", &limits.e2e_ns}};
    for (const char *at = v, *end; at; at = *end ? end + 1 : NULL) {
        end = strchrnul(at, ',');
        size_t k = 0;
        double ms = 0;
        while (k < SP_LEN(kinds) && strncmp(at, kinds[k].name, 5) != 0) k++;
        if (k == SP_LEN(kinds) ||
            sp_parse_f64((sp_slice){at + 5, (size_t)(end - at) - 5}, &ms) != SP_OK ||
            !(ms > 0 && ms <= 1e9))
            return SP_FAIL(err, SP_E_INVALID, "want ttft:MS,tpot:MS,e2el:MS, got '%.60s'", v);
        *kinds[k].to = (int64_t)(ms * (double)SP_NS_PER_MS);
    }
    o->load.limits[o->load.n_limits++] = limits;
    return SP_OK;
}
static sp_status read_json(options *o, const char *v, sp_err *err) {
    (void)v, (void)err;
    o->json = true;
    return SP_OK;
}
static sp_status read_help(options *o, const char *v, sp_err *err) {
    (void)v, (void)err;
    o->help = true;
    return SP_OK;
}

static const option table[] = {{"--url", true, read_url},
                               {"--model", true, read_model},
                               {"--endpoint", true, read_endpoint},
                               {"--streams", true, read_streams},
                               {"--requests", true, read_requests},
                               {"--warmup", true, read_warmup},
                               {"--prompt", true, read_prompt},
                               {"--prompt-tokens", true, read_prompt_tokens},
                               {"--same-prompt", false, read_same_prompt},
                               {"--max-tokens", true, read_max_tokens},
                               {"--temperature", true, read_temperature},
                               {"--ignore-eos", true, read_ignore_eos},
                               {"--stream", true, read_stream},
                               {"--api-key", true, read_api_key},
                               {"--timeout-s", true, read_timeout},
                               {"--ids", true, read_ids},
                               {"--seed", true, read_seed},
                               {"--extra-body", true, read_extra},
                               {"--goodput", true, read_goodput},
                               {"--trace", true, read_trace},
                               {"--trace-block", true, read_trace_block},
                               {"--trace-output", true, read_trace_output},
                               {"--rate", true, read_rate},
                               {"--max-model-len", true, read_max_model_len},
                               {"--json", false, read_json},
                               {"--help", false, read_help},
                               {"-h", false, read_help}};

static const option *find_option(const char *word, size_t n) {
    for (size_t i = 0; i < SP_LEN(table); i++)
        if (strlen(table[i].name) == n && memcmp(table[i].name, word, n) == 0) return &table[i];
    return NULL;
}

static sp_status check_together(const options *o, sp_err *err) {
    const sp_trace_config *t = &o->trace;
    const bool scales =
        t->block_tokens < SP_TRACE_BLOCK_TOKENS || t->output_scale > 0 || t->rate > 0;
    if (!t->path && (scales || t->max_tokens > 0))
        return SP_FAIL(err, SP_E_INVALID,
                       "'--trace-block', '--trace-output', '--rate' and '--max-model-len' scale a "
                       "'--trace'");
    if (t->path && (o->load.ids_last == 0 || o->load.is_chat || o->load.n_warmup > 0))
        return SP_FAIL(err, SP_E_INVALID,
                       "'--trace' wants '--ids', '--endpoint completions' and no '--warmup'");
    if (o->load.ids_last > 0 && (o->load.is_chat || o->load.prompt))
        return SP_FAIL(err, SP_E_INVALID,
                       "'--ids' wants '--endpoint completions' and no '--prompt'");
    return SP_OK;
}

/* "--name value" and "--name=value". */
static sp_status read_options(options *o, int argc, char **argv, sp_err *err) {
    for (int i = 1; i < argc; i++) {
        const char *equals = strchr(argv[i], '=');
        size_t n = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        const option *opt = find_option(argv[i], n);
        if (!opt) return SP_FAIL(err, SP_E_INVALID, "no option '%.60s'", argv[i]);
        const char *value = equals ? equals + 1 : NULL;
        if (!opt->takes_value && value)
            return SP_FAIL(err, SP_E_INVALID, "'%s' takes no value", opt->name);
        if (opt->takes_value && !value) {
            if (i + 1 == argc) return SP_FAIL(err, SP_E_INVALID, "'%s' wants a value", opt->name);
            value = argv[++i];
        }
        if (opt->read(o, value, err) != SP_OK) {
            sp_err_context(err, "'%s'", opt->name);
            return SP_E_INVALID;
        }
    }
    if (o->help) return SP_OK;
    if (!o->has_url) return SP_FAIL(err, SP_E_INVALID, "want --url http://host:port");
    return check_together(o, err);
}

/* A trace is an open loop: there is always a connection for who is due. */
static sp_status open_trace(options *o, sp_err *err) {
    if (!o->trace.path) return SP_OK;
    o->trace.n_rows = o->load.n_requests;
    SP_TRY(sp_trace_open(&o->rows, &o->trace, err));
    o->load.trace = o->rows;
    o->load.n_requests = o->rows->n;
    if (!o->has_streams)
        o->load.n_streams = o->rows->n < SP_LOAD_STREAMS_MAX ? o->rows->n : SP_LOAD_STREAMS_MAX;
    return SP_OK;
}

static double seconds(int64_t ns) {
    return (double)ns / (double)SP_NS_PER_S;
}
static double per_second(int64_t n, int64_t ns) {
    return ns > 0 ? (double)n / seconds(ns) : 0;
}
static double ms(int64_t ns) {
    return (double)ns / (double)SP_NS_PER_MS;
}

static void print_times(const char *name, const sp_load_times *t) {
    if (t->n == 0) return;
    printf("%-22s p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, most %.2f ms\n", name,
           ms(sp_load_quantile(t, 0.5)), ms(sp_load_quantile(t, 0.9)),
           ms(sp_load_quantile(t, 0.99)), ms(t->max_ns));
}

static void print_goodput(const sp_load_config *c, const sp_load_result *r) {
    for (int i = 0; i < c->n_limits; i++) {
        printf("%-22s %lld requests, %.3f/s, within", i ? "" : "goodput", (long long)r->n_good[i],
               per_second(r->n_good[i], r->wall_ns));
        if (c->limits[i].ttft_ns) printf(" ttft %.6g ms", ms(c->limits[i].ttft_ns));
        if (c->limits[i].tpot_ns) printf(" tpot %.6g ms", ms(c->limits[i].tpot_ns));
        if (c->limits[i].e2e_ns) printf(" e2el %.6g ms", ms(c->limits[i].e2e_ns));
        putchar('\n');
    }
}

static void print_text(const sp_load_config *c, const sp_load_result *r) {
    printf("%-22s %s, %s, %d streams\n", "model", r->model, c->is_chat ? "chat" : "completions",
           c->n_streams);
    printf("%-22s %lld completed, %lld failed in %.3f s\n", "requests", (long long)r->n_completed,
           (long long)r->n_failed, seconds(r->wall_ns));
    printf("%-22s %.2f requests/s, %.1f output tokens/s (%lld tokens%s)\n", "rate",
           per_second(r->n_completed, r->wall_ns), per_second(r->n_output_tokens, r->wall_ns),
           (long long)r->n_output_tokens, r->n_without_usage ? ", counted as events" : "");
    print_times("time to first token", &r->first);
    print_times("between tokens", &r->gap);
    print_times("each token after it", &r->each);
    print_times("whole request", &r->whole);
    print_goodput(c, r);
    printf("%-22s %.3f s of processor time", "this client", seconds(r->cpu_ns));
    if (r->n_events > 0)
        printf(", %.2f us an event", (double)r->cpu_ns / 1e3 / (double)r->n_events);
    printf("; %llu bytes in, %llu out\n", (unsigned long long)r->n_bytes_in,
           (unsigned long long)r->n_bytes_out);
    for (int i = 0; i < r->n_kinds; i++)
        printf("%-22s %lld x %s, first: %s\n", i ? "" : "failures", (long long)r->kinds[i].n,
               r->kinds[i].name, r->kinds[i].example);
}

static void put_times(sp_jw *w, const char *name, const sp_load_times *t) {
    static const struct {
        const char *name;
        double q;
    } rows[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
    sp_jw_key(w, name), sp_jw_object(w);
    sp_jw_key(w, "n"), sp_jw_int(w, (int64_t)t->n);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_jw_key(w, rows[i].name);
        sp_jw_number(w, ms(sp_load_quantile(t, rows[i].q)));
    }
    sp_jw_key(w, "max"), sp_jw_number(w, ms(t->max_ns));
    sp_jw_object_end(w);
}

static void put_goodput(sp_jw *w, const sp_load_config *c, const sp_load_result *r) {
    sp_jw_key(w, "goodput"), sp_jw_array(w);
    for (int i = 0; i < c->n_limits; i++) {
        sp_jw_object(w);
        sp_jw_key(w, "ttft_ms"), sp_jw_number(w, ms(c->limits[i].ttft_ns));
        sp_jw_key(w, "tpot_ms"), sp_jw_number(w, ms(c->limits[i].tpot_ns));
        sp_jw_key(w, "e2el_ms"), sp_jw_number(w, ms(c->limits[i].e2e_ns));
        sp_jw_key(w, "good"), sp_jw_int(w, r->n_good[i]);
        sp_jw_key(w, "request_goodput"), sp_jw_number(w, per_second(r->n_good[i], r->wall_ns));
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void put_failures(sp_jw *w, const sp_load_result *r) {
    sp_jw_key(w, "failures"), sp_jw_array(w);
    for (int i = 0; i < r->n_kinds; i++) {
        sp_jw_object(w);
        sp_jw_key(w, "kind"), sp_jw_str(w, r->kinds[i].name);
        sp_jw_key(w, "n"), sp_jw_int(w, r->kinds[i].n);
        sp_jw_key(w, "first"), sp_jw_str(w, r->kinds[i].example);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void print_json(const sp_load_config *c, const sp_load_result *r) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw jw = sp_jw_on(&b), *w = &jw;
    sp_jw_object(w);
    sp_jw_key(w, "model"), sp_jw_str(w, r->model);
    sp_jw_key(w, "endpoint"), sp_jw_str(w, c->is_chat ? "chat" : "completions");
    sp_jw_key(w, "streams"), sp_jw_int(w, c->n_streams);
    sp_jw_key(w, "completed"), sp_jw_int(w, r->n_completed);
    sp_jw_key(w, "failed"), sp_jw_int(w, r->n_failed);
    sp_jw_key(w, "wall_s"), sp_jw_number(w, seconds(r->wall_ns));
    sp_jw_key(w, "requests_per_s"), sp_jw_number(w, per_second(r->n_completed, r->wall_ns));
    sp_jw_key(w, "output_tokens"), sp_jw_int(w, r->n_output_tokens);
    sp_jw_key(w, "output_tokens_per_s");
    sp_jw_number(w, per_second(r->n_output_tokens, r->wall_ns));
    sp_jw_key(w, "prompt_tokens"), sp_jw_int(w, r->n_prompt_tokens);
    sp_jw_key(w, "events"), sp_jw_int(w, r->n_events);
    sp_jw_key(w, "requests_without_usage"), sp_jw_int(w, r->n_without_usage);
    put_times(w, "ttft_ms", &r->first);
    put_times(w, "itl_ms", &r->gap);
    put_times(w, "tpot_ms", &r->each);
    put_times(w, "e2e_ms", &r->whole);
    sp_jw_key(w, "client_cpu_s"), sp_jw_number(w, seconds(r->cpu_ns));
    sp_jw_key(w, "bytes_in"), sp_jw_int(w, (int64_t)r->n_bytes_in);
    sp_jw_key(w, "bytes_out"), sp_jw_int(w, (int64_t)r->n_bytes_out);
    put_goodput(w, c, r);
    put_failures(w, r);
    sp_jw_object_end(w);
    puts(b.failed ? "{}" : b.ptr);
    sp_buf_fini(&b);
}

static int load(options *o) {
    sp_err err = {0};
    if (open_trace(o, &err) != SP_OK) {
        fprintf(stderr, "superpod: bench http: %s\n", err.text);
        return SP_EXIT_CONFIG;
    }
    sp_load_result *r = sp_alloc(sizeof *r);
    int code = SP_EXIT_PEER;
    if (sp_load_run(&o->load, r, &err) != SP_OK) {
        fprintf(stderr, "superpod: bench http: %s\n", err.text);
    } else {
        (o->json ? print_json : print_text)(&o->load, r);
        code = r->n_failed == 0 ? SP_EXIT_OK : SP_EXIT_PEER;
    }
    sp_free(r);
    sp_trace_free(o->rows);
    return code;
}

int sp_bench_http(int argc, char **argv) {
    options o = {.load = {.prompt_tokens = 128,
                          .streams = true,
                          .ignores_eos = true,
                          .n_streams = 8,
                          .n_requests = 64,
                          .max_tokens = 128,
                          .api_key = getenv("SUPERPOD_API_KEY"),
                          .timeout_ns = 600 * SP_NS_PER_S},
                 .trace = {.block_tokens = SP_TRACE_BLOCK_TOKENS}};
    sp_err err = {0};
    int code = SP_EXIT_USAGE;
    if (read_options(&o, argc, argv, &err) != SP_OK) {
        fprintf(stderr, "superpod: bench http: %s; see --help\n", err.text);
    } else if (o.help) {
        fputs(help_text, stdout);
        code = SP_EXIT_OK;
    } else {
        code = load(&o);
    }
    sp_free(o.extra);
    return code;
}
