/* runtime/engine/engine_core.h - how an engine is made, started and ended: for launcher and tests.
 *
 * Front ends see engine.h only. The engine owns its thread and, while that runs, the head's side of
 * the links to all ranks. It starts in SP_ENGINE_STARTING: it takes PROGRESS frames until every rank
 * has said READY, compares what they offer with the configuration and with one another, and serves.
 * Whoever makes it has sent FORM (and PEERS) before sp_engine_start().
 * Ranks form groups. Every rank of a group gets its SEQ_ADD, SEQ_DROP and STEP; the one at link
 * `sampler` answers. A link that closes,
 * or a FAULT of any rank, is the engine's failure, which names the rank.
 *
 * Thread: create, start, stop and destroy from one thread. */
#pragma once

#include "comm/fan.h"
#include "runtime/engine/engine.h"

/** A group of ranks: TP x PP of them, with sequences, blocks and steps of its own. */
typedef struct sp_engine_group {
    int32_t first_link, n_links; /* its ranks' links in the fan */
    int32_t n_stages, sampler;   /* as in the configuration; sampler: link index in the fan */
    int32_t n_blocks;            /* 0: as its ranks offer */
    sp_pool_role role;
    char pool[32];
} sp_engine_group;
#define SP_ENGINE_GROUPS_MAX 64

typedef struct sp_engine_config {
    int32_t max_num_seqs;       /* sequences that run at a time */
    int32_t max_batched_tokens; /* of one step */
    int32_t max_step_rows;      /* rows of logits of one step; 0: max(max_num_seqs, 256) */
    int32_t block_tokens;
    int32_t n_blocks;      /* 0: as many as the rank offers; never more than that */
    int32_t max_model_len; /* cut to what the blocks hold */
    int32_t n_vocab;
    const int32_t *eos_ids; /* copied */
    int32_t n_eos_ids;
    int32_t queue_max;        /* requests that have not started */
    int32_t n_stages;         /* pp; steps in flight are one more. 0 counts as 1 */
    int32_t sampler;          /* link of TP rank 0 of the last stage */
    bool enable_prefix_cache; /* false: prompts are not computed by another group */
    uint8_t cache_key[32];    /* secret of the pod */
    uint8_t fingerprint[32];  /* of the model; the numerics id comes with READY */
    int64_t ready_timeout_ns; /* from start to READY; 0: none */
    int64_t send_timeout_ns;  /* the rank takes no frames for so long: lost */
    int64_t step_timeout_ns;  /* a step takes so long: the rank is lost; 0: none */
    /* Groups of ranks: every link in exactly one, in order of links. NULL: one, mixed, of all links,
     * with n_stages, sampler and n_blocks from above. Copied. */
    const sp_engine_group *groups;
    int32_t n_groups;
    int32_t prefill_threshold_tokens; /* more tokens than these are computed by a prefill group */
    int64_t kv_timeout_ns; /* no sign of ranks that seal or pull for so long: a miss; 0: for ever */
    /* Blocks that are pulled or lent stay as they are for so long after the last sign of who reads
     * them; then they may be used anew, and what is still read of them is stale. */
    int64_t kv_lease_ns;
    bool kv_shared;         /* ranks share blocks with other pods: keep_kv and kv_from are served */
    int64_t kv_block_bytes; /* of all ranks of a group, for the figures; 0: unknown */
} sp_engine_config;

#define SP_ENGINE_CONFIG_DEFAULT \
    ((sp_engine_config){.max_num_seqs = 64, \
                        .max_batched_tokens = 2048, \
                        .block_tokens = 16, \
                        .queue_max = 1024, \
                        .n_stages = 1, \
                        .prefill_threshold_tokens = 256, \
                        .kv_timeout_ns = (int64_t)5 * 1000 * 1000 * 1000, \
                        .kv_lease_ns = (int64_t)30 * 1000 * 1000 * 1000, \
                        .enable_prefix_cache = true, \
                        .send_timeout_ns = (int64_t)30 * 1000 * 1000 * 1000})

/** An engine over the head's links, not yet started.
 *
 * Owner:  caller, sp_engine_destroy(); `fan` is borrowed until then.
 * Errors: SP_E_INVALID a value out of range, by name; SP_E_NOMEM; SP_E_IO. */
SP_NODISCARD sp_status sp_engine_create(sp_engine **out, const sp_engine_config *config,
                                        sp_fan *fan, sp_err *err);

/** Starts the thread. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_engine_start(sp_engine *e, sp_err *err);

/** Ends every request that is left (SP_FINISH_ERROR, SP_E_UNAVAILABLE), says BYE and joins the
 * thread. Events that wait can still be taken. */
void sp_engine_stop(sp_engine *e);
void sp_engine_destroy(sp_engine *e); /* stops it first */

/** Why the state is SP_ENGINE_FAILED, or "". Writes at most `n` bytes and returns `out`. */
const char *sp_engine_why(sp_engine *e, char *out, size_t n);

/** Bytes the rank has loaded and will load, as it last said. */
void sp_engine_progress(const sp_engine *e, uint64_t *done_bytes, uint64_t *all_bytes);

/** Invariants of everything; only while the thread does not run. */
bool sp_engine_check(sp_engine *e);
