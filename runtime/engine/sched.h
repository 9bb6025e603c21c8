/* runtime/engine/sched.h - who runs in the next step, with which tokens and which blocks.
 *
 * A pure core: no thread, no clock, no link. It owns slots, block tables and the prefix index; it
 * is told what has come and gives out steps. The order of things in a step:
 *   1. decodes, one token each; when the budget is short they take turns
 *   2. prompts that are being computed, first come first, as many tokens as the budget leaves
 *   3. those that wait, first come first (lower priority value before), nobody overtaken
 * While prompts wait a quarter of the budget is kept for them over time, so that a flood of decodes
 * does not starve them at any budget, 1 included; and decodes go first, so that no prompt starves
 * them.
 *
 * Blocks: a sequence is admitted when all its known tokens fit beside a small reserve for those
 * that run, and then has those blocks; a decode takes one more as it grows. When none is left, the
 * last in order (a paused one first) is preempted: its blocks go, its tokens stay, it waits at its
 * old place and is computed again. A block that a sent step names cannot be taken until that step
 * retires; who needs one meanwhile sits out a step. The first in order is never preempted while
 * others run, and alone it always fits (nothing longer than the pool is admitted): no deadlock.
 *
 * Steps are planned ahead: positions are known before tokens are, the rank feeds its own draw back.
 *
 * Pipeline (n_stages > 1): steps follow each other through the stages, so a step must not need a
 * token that the step before it is still drawing. Each takes its share of the decodes (one part in
 * n_stages, those first that were stepped longest ago), and a sequence whose token is not known yet
 * comes again n_stages steps later, not sooner. Only a step that would be empty takes one sooner,
 * and then at most one step ahead of its token, as on one stage. Prompt pieces need no token: those
 * of one sequence follow each other step by step.
 *
 * Thread: engine. */
#pragma once

#include "runtime/engine/seq.h"
#include "runtime/engine/wire.h"

typedef struct sp_sched_config {
    int32_t max_num_seqs;       /* slots: sequences on the rank at a time */
    int32_t max_batched_tokens; /* of a step; 1 is legal */
    int32_t max_step_rows;      /* rows of logits of a step; >= max_num_seqs */
    int32_t block_tokens, n_blocks;
    int32_t max_model_len; /* n_blocks must hold so many */
    int32_t steps_in_flight;
    int32_t n_stages; /* of the pipeline; 0 counts as 1. Steps in flight should be one more */
    bool enable_prefix_cache;
    uint8_t cache_key[SP_KV_HASH_BYTES];
    const void *identity; /* borrowed during create */
    size_t identity_bytes;
} sp_sched_config;

/** A planned step: what goes over the wire, and what is remembered until it retires. */
typedef struct sp_step {
    sp_wire_step wire;      /* borrowed from the arrays below */
    sp_wire_entry *entries; /* [max_num_seqs] */
    sp_wire_delta *deltas;  /* [max_num_seqs] */
    int32_t *blocks;        /* [blocks_cap] */
    int32_t blocks_cap;
    sp_seq **admitted; /* [max_num_seqs]: the rank must learn of these first */
    int32_t n_admitted;
    int32_t n_rows;
    int32_t n_prompt_tokens; /* of the tokens, those of prompts (and of tokens computed again) */
    int64_t sent_ns;
} sp_step;

typedef struct sp_sched_stats {
    uint64_t preemptions, prefix_queries, prefix_hits; /* the last two in tokens */
} sp_sched_stats;

typedef struct sp_sched sp_sched;

/** Owner:  caller; sp_sched_destroy(), when every sequence has ended.
 * Errors: SP_E_INVALID a value out of range, by name; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_sched_create(sp_sched **out, const sp_sched_config *config, sp_err *err);
void sp_sched_destroy(sp_sched *s);

/** Arrays for a step of this scheduler. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_step_init(sp_step *st, const sp_sched *s, sp_err *err);
void sp_step_fini(sp_step *st);

/** Takes in a request, whose sequences it borrows until they end. `order` numbers arrivals.
 * Errors: SP_E_NOMEM; nothing was taken in. */
SP_NODISCARD sp_status sp_sched_add(sp_sched *s, sp_request *r, sp_err *err);

/** Takes in a request whose prompt is being computed elsewhere: it waits, holding nothing, until
 * sp_sched_let_in(); it may end meanwhile. Errors: as sp_sched_add(). */
SP_NODISCARD sp_status sp_sched_hold(sp_sched *s, sp_request *r, sp_err *err);
void sp_sched_let_in(sp_sched *s, sp_request *r);

/** Blocks of the request's prompt, from the first on, that are found here now; at most `most`. */
int32_t sp_sched_cached(sp_sched *s, sp_request *r, int32_t most);

/** The name of full block `i` of the request's prompt. */
const sp_kv_hash *sp_sched_prompt_name(sp_sched *s, sp_request *r, int32_t i);

/** A block for content that comes from elsewhere, with one reference; SP_BLOCK_NONE: those that run
 * here may need what is left. */
sp_block sp_sched_lend(sp_sched *s);
/** Makes such a block findable as full block `i` of the request's prompt. False: another one is. */
bool sp_sched_name(sp_sched *s, sp_request *r, int32_t i, sp_block b);
void sp_sched_share(sp_sched *s, sp_block b); /* one reference more on a held block */
void sp_sched_drop(sp_sched *s, sp_block b);  /* one less, of sp_sched_lend() or _share() */

/** Plans step `number` (the last one plus 1) and does its bookkeeping: the caller must send it,
 * after the drops and the admitted. False: there is nothing to plan now, or not before the drops
 * that it left are sent. */
bool sp_sched_plan(sp_sched *s, uint64_t number, int64_t now_ns, sp_step *st);

/** A token drawn for `q` has come; its block may be complete now. The caller appended it. */
void sp_sched_grown(sp_sched *s, sp_seq *q);

/** Step `number` has retired, and all before it. */
void sp_sched_retire(sp_sched *s, uint64_t number);

/** Ends a sequence in any state but DONE: blocks go once the steps that name them have retired; its
 * brothers go on, the next one leading if it led. */
void sp_sched_end(sp_sched *s, sp_seq *q);

/** Its consumer is slow (true), or took enough (false): not planned then, first to lose blocks. */
void sp_sched_pause(sp_sched *s, sp_seq *q, bool paused);

/** The sequence in a slot if it is still of that generation, else NULL: what came is late. */
sp_seq *sp_sched_find(const sp_sched *s, uint32_t slot, uint32_t generation);

/** Sequences the rank must forget; their slots are free again after this call, so they must be sent
 * before the next plan. Valid until then. */
const sp_wire_seq *sp_sched_drops(sp_sched *s, int32_t *n);

bool sp_sched_has_drops(const sp_sched *s);

/** One that could not be given memory (q->doom says why), or NULL; the caller ends it. */
sp_seq *sp_sched_doomed(sp_sched *s);

/** Nothing runs, and the first of those who wait does not find blocks: they are held elsewhere. */
bool sp_sched_is_starved(const sp_sched *s);

int32_t sp_sched_running(const sp_sched *s); /* hold a slot */
int32_t sp_sched_waiting(const sp_sched *s); /* do not */
const sp_kv_pool *sp_sched_pool(const sp_sched *s);
sp_sched_stats sp_sched_get_stats(const sp_sched *s);
const sp_sched_config *sp_sched_get_config(const sp_sched *s);
bool sp_sched_check(const sp_sched *s); /* O(everything) */
