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
    "has ended.\n\n"
    "  --url URL            the server; http only\n"
    "  --model NAME         default: the first of /v1/models\n"
    "  --endpoint WORD      completions (default) or chat\n"
    "  --streams N          requests at a time, 1..4096 (8)\n"
    "  --requests N         requests in all (64)\n"
    "  --warmup N           requests before, not measured (0)\n"
    "  --prompt TEXT        the same text for all\n"
    "  --prompt-tokens N    that many synthetic words, different for each request (128)\n"
    "  --same-prompt        the same synthetic words for all\n"
    "  --max-tokens N       (128)\n"
    "  --temperature X      (0)\n"
    "  --ignore-eos on|off  run to max-tokens (on)\n"
    "  --stream on|off      (on)\n"
    "  --api-key KEY        default: the variable SUPERPOD_API_KEY\n"
    "  --timeout-s N        for one request (600)\n"
    "  --json               one JSON object instead of text\n";

typedef struct options {
    sp_load_config load;
    bool has_url, json, help;
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
                               {"--json", false, read_json},
                               {"--help", false, read_help},
                               {"-h", false, read_help}};

static const option *find_option(const char *word, size_t n) {
    for (size_t i = 0; i < SP_LEN(table); i++)
        if (strlen(table[i].name) == n && memcmp(table[i].name, word, n) == 0) return &table[i];
    return NULL;
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
    if (!o->has_url && !o->help) return SP_FAIL(err, SP_E_INVALID, "want --url http://host:port");
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
    print_times("whole request", &r->whole);
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
    put_times(w, "e2e_ms", &r->whole);
    sp_jw_key(w, "client_cpu_s"), sp_jw_number(w, seconds(r->cpu_ns));
    sp_jw_key(w, "bytes_in"), sp_jw_int(w, (int64_t)r->n_bytes_in);
    sp_jw_key(w, "bytes_out"), sp_jw_int(w, (int64_t)r->n_bytes_out);
    put_failures(w, r);
    sp_jw_object_end(w);
    puts(b.failed ? "{}" : b.ptr);
    sp_buf_fini(&b);
}

int sp_bench_http(int argc, char **argv) {
    options o = {.load = {.prompt_tokens = 128,
                          .streams = true,
                          .ignores_eos = true,
                          .n_streams = 8,
                          .n_requests = 64,
                          .max_tokens = 128,
                          .api_key = getenv("SUPERPOD_API_KEY"),
                          .timeout_ns = 600 * SP_NS_PER_S}};
    sp_err err = {0};
    if (read_options(&o, argc, argv, &err) != SP_OK) {
        fprintf(stderr, "superpod: bench http: %s; see --help\n", err.text);
        return SP_EXIT_USAGE;
    }
    if (o.help) {
        fputs(help_text, stdout);
        return SP_EXIT_OK;
    }
    sp_load_result *r = sp_alloc(sizeof *r);
    int code = SP_EXIT_PEER;
    if (sp_load_run(&o.load, r, &err) != SP_OK) {
        fprintf(stderr, "superpod: bench http: %s\n", err.text);
    } else {
        (o.json ? print_json : print_text)(&o.load, r);
        code = r->n_failed == 0 ? SP_EXIT_OK : SP_EXIT_PEER;
    }
    sp_free(r);
    return code;
}
