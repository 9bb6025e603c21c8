/* launcher/bench_load.h - a load on an OpenAI-compatible server.
 *
 * Closed loop: `n_streams` connections each send the next request as soon as the last one ended. Open
 * loop, with a trace: each request is sent when its time has come, and all its times are counted
 * from then, also where no connection was free. One thread, one epoll, our own HTTP reader: the load
 * shares its cores with the server that it measures, so what it costs itself is part of the result.
 * Times are kept as histograms of 1 % steps, so memory does not grow with the load. An event is a
 * streamed piece with text in it; a time to first token (TTFT) and the gaps between tokens are those
 * of events as they arrive, several in one read count as one moment. The time per output token
 * (TPOT) is that of the whole request after its first token, by the tokens that followed it.
 *
 * Thread: main. */
#pragma once

#include "launcher/bench_trace.h"
#include "launcher/http_client.h"

#define SP_LOAD_STREAMS_MAX 4096
#define SP_LOAD_REQUESTS_MAX 10000000
#define SP_LOAD_PROMPT_TOKENS_MAX 1000000
#define SP_LOAD_KINDS_MAX 16
#define SP_LOAD_BODY_MAX ((size_t)64 << 20) /* of an answer that is not streamed */
#define SP_LOAD_IDS_MAX (1 << 24)
#define SP_LOAD_LIMITS_MAX 8

/** What a request must keep to be a good one. 0: no limit. */
typedef struct sp_load_limits {
    int64_t ttft_ns, tpot_ns, e2e_ns;
} sp_load_limits;

typedef struct sp_load_config {
    sp_url url;
    const char *model, *api_key; /* NULL: the first one served; no key */
    const char *prompt;          /* NULL: `prompt_tokens` synthetic words */
    int prompt_tokens;
    bool same_prompt;
    int32_t ids_first, ids_last; /* prompts of random token ids of this range; last 0: of words */
    uint64_t seed;               /* other numbers: other prompts */
    const sp_trace *trace;       /* NULL: none. It says when, and how long; prompts are ids */
    const char *extra;           /* members of a JSON object that each request gets; NULL: none */
    sp_load_limits limits[SP_LOAD_LIMITS_MAX];
    int n_limits;
    bool is_chat, streams, ignores_eos;
    int n_streams, n_requests, n_warmup;
    int max_tokens;
    double temperature;
    int64_t timeout_ns; /* of one request */
} sp_load_config;

#define SP_LOAD_BUCKETS 2800 /* 1 us to about 15 days */
typedef struct sp_load_times {
    uint64_t n;
    int64_t max_ns;
    uint32_t buckets[SP_LOAD_BUCKETS];
} sp_load_times;

typedef struct sp_load_kind { /* of failure */
    char name[48];
    char example[240]; /* of the first one */
    int64_t n;
} sp_load_kind;

typedef struct sp_load_result {
    int64_t n_completed, n_failed;
    int64_t wall_ns, cpu_ns; /* cpu: this process, user and system */
    int64_t n_output_tokens; /* by usage; where it is missing, events */
    int64_t n_prompt_tokens; /* by usage */
    int64_t n_events;
    int64_t n_without_usage; /* completed requests whose answer had no usage */
    uint64_t n_bytes_in, n_bytes_out;
    sp_load_times first, gap, whole;    /* time to first token, between tokens, of a request */
    sp_load_times each;                 /* per output token after the first: of requests with two */
    int64_t n_good[SP_LOAD_LIMITS_MAX]; /* completed within those limits */
    int n_kinds;
    sp_load_kind kinds[SP_LOAD_KINDS_MAX];
    char model[256];
} sp_load_result;

/** The time below which a share `q` (0..1) of all lies, to 1 %; 0 when there is none. */
int64_t sp_load_quantile(const sp_load_times *t, double q);

/** The value of the first member `key` anywhere in a JSON text: what follows its colon, to the end
 * of the text; empty when there is none. A scan, not a parse: a quoted key cannot stand unescaped
 * inside a JSON string. */
sp_slice sp_load_value_of(sp_slice json, const char *key);

/** Runs the load. Failed requests are counted in the result; only what prevents a load is an error.
 * Errors: SP_E_UNAVAILABLE no connection, or no model told; SP_E_NOMEM, SP_E_IO. */
SP_NODISCARD sp_status sp_load_run(const sp_load_config *config, sp_load_result *out, sp_err *err);
