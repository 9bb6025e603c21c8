/* runtime/engine/engine.h - the only header a front end sees: submit, cancel, events, figures.
 *
 * The engine thread owns sequences, KV block tables and the scheduler; it talks to ranks by frames.
 * A front end submits token ids and parameters, gets events back through a queue with a wake-up
 * descriptor, and never blocks. One event carries what one step gave one choice of one request.
 * The last event of every choice has `finish` set (or `error`); after the last choice's last event
 * the request is gone and `user` is never named again.
 *
 * Thread: submit, cancel and stats from any thread; events from one consumer thread. */
#pragma once

#include "runtime/base/metric.h"
#include "runtime/engine/kv_handle.h"
#include "runtime/gen/params.h"

typedef struct sp_engine sp_engine;

typedef enum sp_finish {
    SP_FINISH_NONE,   /* goes on */
    SP_FINISH_STOP,   /* EOS or a stop id; stop_id says which (EOS: -1) */
    SP_FINISH_LENGTH, /* max_tokens or the context is full */
    SP_FINISH_ABORT,  /* cancelled */
    SP_FINISH_ERROR,  /* `error` says why */
} sp_finish;

typedef struct sp_token_logprobs { /* of one position */
    int32_t id;
    float logprob;
    int32_t rank;
    int32_t n_top;
    struct {
        int32_t id;
        float logprob;
    } top[]; /* n_top of them */
} sp_token_logprobs;

#define SP_EVENT_TOKENS_MAX 8
typedef struct sp_event {
    void *user;     /* as submitted */
    uint64_t id;    /* as sp_engine_submit() gave it */
    int32_t choice; /* 0..n-1 */
    int32_t n_tokens;
    int32_t tokens[SP_EVENT_TOKENS_MAX];
    /* One a token when asked for, else NULL. Owned by the event: sp_event_release(). */
    sp_token_logprobs *logprobs[SP_EVENT_TOKENS_MAX];
    /* On the first event of choice 0 when asked for: [n_prompt], entry 0 is NULL. Owned likewise. */
    sp_token_logprobs **prompt_logprobs;
    int32_t n_prompt_logprobs;
    /* inspect logits: one row [n_vocab] of position `logits_position`, or NULL. Owned likewise. */
    float *logits;
    int32_t n_vocab, logits_position;
    int32_t n_cached; /* prompt tokens found in the prefix cache; on the first event */
    sp_finish finish;
    int32_t stop_id; /* with SP_FINISH_STOP: the stop id, -1 for EOS */
    /* With keep_kv, on the request's very last event when it did not fail. Owned by the event. */
    sp_kv_handle *kv;
    sp_status error; /* with SP_FINISH_ERROR */
    char error_text[120];
} sp_event;

void sp_event_release(sp_event *ev); /* frees what the event owns */

typedef struct sp_engine_request {
    void *user;
    const int32_t *prompt;       /* copied */
    int32_t n_prompt;            /* >= 1 */
    const sp_gen_params *params; /* deep-copied */
    int64_t deadline_ns;         /* sp_now_ns() clock; SP_NEVER for none */
    int32_t priority;            /* lower first; 0 */
    const char *cache_salt;      /* NULL: shared prefix cache */
    bool keep_kv;                /* its prompt's blocks are lent to another pod when it has ended */
    const sp_kv_import *kv_from; /* copied; NULL: nothing comes from another pod */
} sp_engine_request;

/** Queues a request. params->max_tokens is cut so that prompt and output fit max_model_len.
 * Errors: SP_E_LIMIT the queue is full; SP_E_INVALID prompt empty, an id outside the vocabulary, or
 *         prompt longer than max_model_len - 1 (max_model_len with max_tokens 0);
 *         SP_E_UNAVAILABLE draining or a rank was lost; SP_E_UNSUPPORTED keep_kv or kv_from, and
 *         blocks are not shared with other pods here (sp_engine_config.kv_shared). */
SP_NODISCARD sp_status sp_engine_submit(sp_engine *e, const sp_engine_request *req, uint64_t *id,
                                        sp_err *err);

/** Ends a request or one choice of it (choice -1: all). A choice that ended already is left alone.
 * With SP_FINISH_ABORT (the client left) no more events come for it. With SP_FINISH_STOP (a stop
 * string was found) it is counted as stopped, and no more events come for it either. Never blocks. */
void sp_engine_cancel(sp_engine *e, uint64_t id, int32_t choice, sp_finish as);

/** Readable when events wait. */
int sp_engine_event_fd(const sp_engine *e);
/** Moves at most `max` events out; 0 when none wait (the descriptor is drained then). */
int sp_engine_events(sp_engine *e, sp_event *out, int max);

typedef enum sp_engine_state {
    SP_ENGINE_STARTING,
    SP_ENGINE_READY,
    SP_ENGINE_DRAINING, /* refuses new requests, finishes those it has */
    SP_ENGINE_DRAINED,  /* nothing is left */
    SP_ENGINE_FAILED,   /* a rank was lost */
} sp_engine_state;
sp_engine_state sp_engine_get_state(const sp_engine *e);
void sp_engine_drain(sp_engine *e);

/** What a front end must know about the model; constant once READY. */
typedef struct sp_engine_info {
    int32_t max_model_len, n_vocab, block_tokens, n_blocks, max_num_seqs, max_batched_tokens;
    const char *kv_dtype;
} sp_engine_info;
sp_engine_info sp_engine_get_info(const sp_engine *e);

/** What a group of ranks is for. Every group can do everything: roles only say who is given what. */
typedef enum sp_pool_role {
    SP_POOL_MIXED,
    SP_POOL_PREFILL,
    SP_POOL_DECODE
} sp_pool_role;
const char *sp_pool_role_name(sp_pool_role role); /* "prefill" */

/** Changes what a group is given from now on; what it has goes on. A pool may be drained so.
 * Errors: SP_E_INVALID no such group, or none would be left that decodes. Any thread. */
SP_NODISCARD sp_status sp_engine_set_role(sp_engine *e, int group, sp_pool_role role, sp_err *err);

typedef struct sp_engine_group_status {
    sp_pool_role role;
    char pool[32];
    int32_t first_link, n_links, n_stages;
    int32_t running, waiting, blocks_used, blocks_total;
    int64_t load_tokens;                                /* of all requests it has */
    int64_t prompt_tokens, generated_tokens;            /* it has computed, since the start */
    double prompt_tokens_per_s, generated_tokens_per_s; /* of the last 5 to 10 s */
} sp_engine_group_status;
int sp_engine_group_count(const sp_engine *e);
/** False: no such group. Any thread. */
bool sp_engine_group_info(const sp_engine *e, int group, sp_engine_group_status *out);

/** Why a block did not come from another group; the request was then computed where it decodes. The
 * first ones are what ranks say (comm/kvx.h). */
typedef enum sp_kv_cause {
    SP_KV_OK,
    SP_KV_STALE,
    SP_KV_CHECKSUM,
    SP_KV_IDENTITY,
    SP_KV_PEER,
    SP_KV_TIMEOUT,
    SP_KV_RANGE,
    SP_KV_FOREIGN,       /* other tokens than those of the prompt */
    SP_KV_NO_ROOM,       /* no block to be spared where it should go */
    SP_KV_LATE,          /* ranks took too long to answer */
    SP_KV_PREFILL_ENDED, /* it could not be computed there */
    SP_KV_LOST,          /* the group is gone */
    SP_KV_EXPIRED,       /* its lease had ended */
    SP_KV_CAUSE_COUNT
} sp_kv_cause;
const char *sp_kv_cause_name(sp_kv_cause cause); /* "no_room" */

/** Figures for /metrics; written by the engine thread, read by any. */
typedef struct sp_engine_metrics {
    sp_gauge running, waiting, blocks_used, blocks_total;
    sp_counter preemptions, prompt_tokens, prompt_tokens_cached, generation_tokens;
    sp_counter prefix_queries, prefix_hits;   /* in tokens */
    sp_counter finished[SP_FINISH_ERROR + 1]; /* by sp_finish, a choice each */
    sp_counter steps, engine_cpu_ns;          /* engine thread CPU time spent on steps */
    /* Of all ranks whose device keeps time: steps, and between two of them while work was pending. */
    sp_counter device_busy_ns, device_idle_ns;
    /* Between groups: */
    sp_counter kv_blocks_pulled,
        kv_bytes_pulled;                       /* bytes: 0 when nobody said how many a block has */
    sp_counter kv_failures[SP_KV_CAUSE_COUNT]; /* blocks; the last ones: requests */
    sp_counter prefilled_elsewhere, prefilled_here; /* requests; elsewhere: all or a part of it */
    sp_histogram handoff_s; /* from the choice of groups to the request given to decode */
    sp_histogram kv_xfer_s; /* a pull, from its frame to the last rank's answer */
    sp_histogram kv_post_s; /* from blocks that can be pulled to that frame */
    sp_histogram kv_xfer_bytes, kv_xfer_blocks; /* of a pull */
    sp_counter kv_failed_xfers;                 /* pulls of which a block did not come */
    sp_counter kv_expired;          /* leases that ended before their blocks were given back */
    sp_counter kv_failed_notices;   /* renewals and returns that did not reach the exporter */
    sp_counter kv_prompt_tokens;    /* of prompts, that came from elsewhere */
    sp_counter kv_queries, kv_hits; /* tokens wanted of another pod, tokens that came */
    sp_gauge kv_lent;               /* blocks kept for other pods now */
    sp_histogram ttft_s, itl_s, e2e_s, queue_s, inference_s, prefill_s, decode_s, tpot_s;
    sp_histogram req_prompt_tokens, req_generation_tokens, req_max_tokens, req_n, iteration_tokens;
    sp_histogram req_max_generation_tokens, req_prefill_computed_tokens;
} sp_engine_metrics;
const sp_engine_metrics *sp_engine_get_metrics(const sp_engine *e);
