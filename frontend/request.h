/* frontend/request.h - a generation request's JSON to plain parameters.
 *
 * Fields that chat and completions share are read here, each with its range; what this server does
 * not do is refused by name rather than ignored; fields nobody knows are ignored. All violations
 * are gathered (fields.h). Everything is copied into the request's arena, so the document can go.
 *
 * Source: OpenAI API reference; vLLM's extensions. Thread: text; all state is the caller's. */
#pragma once

#include "frontend/fields.h"
#include "frontend/kv_transfer.h"
#include "frontend/server.h"

#define SP_STOPS_MAX 16
#define SP_STOP_BYTES_MAX 256
#define SP_BAD_WORDS_MAX 128
#define SP_JSON_NODES_MAX 1000000

/** What a text thread knows of the server; const while the request lives. */
typedef struct sp_request_env {
    const sp_server_config *config;
    const sp_tokenizer *tokenizer;
    const sp_chat *chat;
    int32_t n_vocab, max_model_len;
} sp_request_env;

typedef struct sp_gen_options {
    const char *model;      /* as asked, or the first served name */
    const char *request_id; /* of the body; NULL: none */
    sp_gen_params params;   /* max_tokens 0 and not has_max_tokens: what fits */
    bool has_max_tokens, has_priority;
    bool stream, include_usage, continuous_usage;
    int stream_interval; /* tokens a chunk */
    sp_slice *stops;
    int n_stops;
    bool include_stop, skip_special, add_special, echo;
    bool return_token_ids, return_tokens_as_ids;
    int32_t truncate_prompt; /* 0: no; -1: to what fits; else tokens kept */
    bool truncate_right;     /* keep the beginning */
    int32_t priority;
    const char *cache_salt; /* NULL: none */
    sp_kv_transfer kv;      /* blocks of the prompt, from or for another pod */
} sp_gen_options;

/** Parses a body and counts its values first. `message` is in the arena.
 * Errors: as sp_json_parse(); SP_E_TOOLONG more than SP_JSON_NODES_MAX values. */
SP_NODISCARD sp_status sp_request_parse(sp_json **out, sp_slice body, int depth_max, sp_err *err);

/** Reads the shared fields. `chat`: as /v1/chat/completions spells them. */
void sp_request_options(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                        bool chat, sp_gen_options *out);

/** Whether `name` is served. */
bool sp_request_model_is_served(const sp_request_env *env, const char *name);
