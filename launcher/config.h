/* launcher/config.h - every option of every command, from one table.
 *
 * A row gives the flag (--block-size, also --block_size and --block-size=16), the YAML key of the
 * same name (in --config FILE), the variable SUPERPOD_BLOCK_SIZE, the help and
 * configs/reference.yaml. Order of strength: flag, variable, file, default.
 * After parsing the struct is const; modules get their own part of it.
 *
 * Thread: main, at start. */
#pragma once

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

#include <stdint.h>
#include <stdio.h>

#define SP_LIST_MAX 16
typedef struct sp_list {
    const char *at[SP_LIST_MAX];
    int n;
} sp_list;

typedef enum sp_command {
    SP_CMD_SERVE = 1,
    SP_CMD_RUN = 2,
    SP_CMD_LOGITS = 4, /* inspect logits */
    SP_CMD_STEP = 8,   /* bench step */
    SP_CMD_PLAN = 16,
} sp_command;

typedef struct sp_config {
    sp_command command;
    /* model */
    const char *model, *config, *chat_template, *generation_config;
    sp_list served_model_name;
    int64_t max_model_len;
    bool trust_special_text;
    /* partition and step */
    int64_t tp, pp;
    const char *pp_layers;
    sp_list pool; /* launcher/pools.h reads them */
    int64_t prefill_threshold;
    const char *kv_secret_file, *kv_load_failure_policy; /* launcher/kv_share.h */
    int64_t kv_lease_s;
    const char *backend, *numerics, *collectives;
    bool null_model;
    int64_t threads;
    bool pin;
    int64_t block_size, max_num_seqs, max_num_batched_tokens, num_blocks;
    const char *kv_cache_dtype;
    bool prefix_caching;
    /* HTTP */
    const char *host;
    int64_t port;
    sp_list api_key, allowed_host;
    int64_t max_queue, max_connections, max_body_bytes, max_header_bytes, max_json_depth;
    int64_t max_logprobs, text_threads, request_timeout_s, shutdown_timeout_s;
    bool access_log;
    /* the super pod */
    const char *role, *head, *token_file, *preflight, *endpoint_file, *pid_file;
    int64_t rank, nnodes, slots, head_port, join_timeout_s;
    int ranks_on_node; /* no option: as the launcher's place says; 0 counts as all of them */
    int ranks_here;    /* likewise: of this agent; 0: not known */
    const char *nodes; /* plan */
    bool json;
    /* words */
    const char *log_level, *log_format;
    bool quiet;
    /* run, inspect logits, bench step */
    const char *prompt, *system, *tokens, *out;
    bool raw, ids, ignore_eos;
    int64_t max_tokens, seed, steps, batch;
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k;
    sp_arena strings; /* of variables and files */
} sp_config;

/** Parses the options of `command` out of argv (argv[0] is the command's word). `*help` is set, and
 * nothing is checked, when --help was among them.
 * Owner:  caller, sp_config_fini(); argv is borrowed until then.
 * Errors: SP_E_INVALID, with words for the user: exit with SP_EXIT_USAGE. */
SP_NODISCARD sp_status sp_config_parse(sp_config *out, sp_command command, int argc, char **argv,
                                       bool *help, sp_err *err);

void sp_config_fini(sp_config *c);

/** The options of `command` with their help, to `to`. */
void sp_config_help(sp_command command, FILE *to);

/** configs/reference.yaml: every key of `serve` with its default and help. */
void sp_config_reference(FILE *to);
