/* frontend/server.h - the HTTP front end: the OpenAI API over one engine.
 *
 * One loop thread owns sockets, timers, engine events and detokenising; text threads parse bodies,
 * render templates and tokenise. It listens from create on, answers /health 503 until the engine is
 * ready and 200 from then on; while draining new work gets 503 and what was accepted is finished.
 * Limits are named in the config, each with what happens at it in README.md.
 *
 * Source: OpenAI API; vLLM for extensions and metric names.
 * Thread: create, run and destroy from one thread; drain from any thread or a signal handler. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/engine/engine.h"
#include "runtime/text/chat.h"
#include "runtime/text/tokenizer.h"

#include <math.h>

typedef struct sp_server sp_server;

/** What a request gets when it does not say; from generation_config.json. NAN or -1: absent. */
typedef struct sp_sampling_defaults {
    double temperature, top_p, min_p, repetition_penalty;
    int32_t top_k, max_new_tokens;
} sp_sampling_defaults;

/** What the pod says of itself when it lends KV blocks to another (frontend/kv_transfer.h). */
typedef struct sp_server_kv {
    const char *pod;      /* 32 hexadecimal digits: this pod, this life */
    const char *identity; /* hexadecimal: model, numerics, KV type, block size */
    const char *host;     /* where its HTTP server is reached, for people */
    int32_t block_tokens;
    bool
        recompute; /* what another pod lent and does not come is computed; else the request fails */
    /* Appends the text of a group's ranks (runtime/engine/kv_source.h); false: no such group. */
    bool (*source)(void *ctx, int32_t group, sp_buf *out);
    /** A proof that only pods with the same secret can make. */
    void (*mac)(void *ctx, sp_slice text, uint8_t out[32]);
    void *ctx;
} sp_server_kv;

typedef struct sp_server_config {
    const char *host; /* listened on; on loopback only Host names of this machine are let in */
    int port;         /* 0: any free one, see sp_server_bound_port() */
    int backlog;
    int n_text_threads;
    int max_connections;
    int max_requests;        /* in work at once, prompts of a list counted as one */
    int max_text_queue;      /* waiting for a text thread */
    size_t max_body_bytes;   /* of one request */
    size_t max_bodies_bytes; /* of all in work */
    size_t max_header_bytes;
    size_t max_unsent_bytes; /* of one stream */
    int json_depth;

    const char *const *api_keys; /* none: everybody may */
    int n_api_keys;
    const char *const *allowed_hosts; /* beside this machine's names, on loopback */
    int n_allowed_hosts;

    const char *const *model_names; /* at least one; the first is the one in metrics */
    int n_model_names;
    const char *model_root; /* path shown by /v1/models */
    const char *owned_by;
    int64_t created_s; /* 0: now */
    const char *version;
    sp_sampling_defaults defaults;
    int max_logprobs;        /* 0..SP_LOGPROBS_MAX */
    bool trust_special_text; /* special-token spellings in messages become tokens */
    bool prefix_caching;     /* shown by vllm:cache_config_info */

    int header_timeout_ms, idle_timeout_ms;
    int stall_timeout_ms;    /* a reader that takes nothing */
    int request_timeout_ms;  /* 0: none */
    int shutdown_timeout_ms; /* grace when sp_server_drain() is given none */
    int ping_ms;             /* SSE comment when nothing was sent for so long */
    bool access_log;

    /* Whether requests can be served; NULL: when the engine says READY. */
    bool (*is_ready)(void *ctx);
    void *ready_ctx;
    /* Appends the JSON that GET /superpod/status answers; NULL: that route is 404. */
    void (*status)(void *ctx, sp_buf *out);
    /* GET /superpod/pools likewise, and what its POST asks for (an object; the words of a refusal go
     * to the client); NULL: 404. Both on the loop, with status_ctx. */
    void (*pools)(void *ctx, sp_buf *out);
    sp_status (*set_pools)(void *ctx, const sp_json_node *body, sp_err *err);
    void *status_ctx;
    const sp_server_kv *kv; /* borrowed; NULL: kv_transfer_params are refused, by name */
} sp_server_config;

#define SP_SERVER_CONFIG_DEFAULT \
    ((sp_server_config){.host = "127.0.0.1", \
                        .port = 8000, \
                        .backlog = 4096, \
                        .n_text_threads = 2, \
                        .max_connections = 10000, \
                        .max_requests = 4096, \
                        .max_text_queue = 1024, \
                        .max_body_bytes = (size_t)8 << 20, \
                        .max_bodies_bytes = (size_t)512 << 20, \
                        .max_header_bytes = 32768, \
                        .max_unsent_bytes = (size_t)1 << 20, \
                        .json_depth = 64, \
                        .owned_by = "superpod", \
                        .version = "0", \
                        .defaults = {NAN, NAN, NAN, NAN, -1, -1}, \
                        .max_logprobs = SP_LOGPROBS_MAX, \
                        .prefix_caching = true, \
                        .header_timeout_ms = 10000, \
                        .idle_timeout_ms = 75000, \
                        .stall_timeout_ms = 60000, \
                        .shutdown_timeout_ms = 30000, \
                        .ping_ms = 15000})

/** Listens; nothing is answered before sp_server_run(). `config` and its strings are copied; engine,
 * tokenizer and chat are borrowed until sp_server_destroy(). `chat` NULL: chat requests are refused
 * with words.
 * Errors: SP_E_INVALID a config value (named); SP_E_IO the port is taken (said so). */
SP_NODISCARD sp_status sp_server_create(sp_server **out, const sp_server_config *config,
                                        sp_engine *engine, const sp_tokenizer *tokenizer,
                                        const sp_chat *chat, sp_err *err);
int sp_server_bound_port(const sp_server *s);

/** Serves until a drain has ended. The calling thread becomes the loop. */
void sp_server_run(sp_server *s);

/** Begins to drain: /health and new work are 503, running requests finish, then run returns; after
 * `grace_ms` what still runs is ended with an error (-1: shutdown_timeout_ms; 0: at once). Called
 * again, the shorter grace counts. Thread: any; may be called from a signal handler. */
void sp_server_drain(sp_server *s, int grace_ms);

void sp_server_destroy(sp_server *s); /* after run returned, or never ran; NULL is fine */
