/* runtime/engine/seq.h - one request and its sequences: states, tokens, blocks; who waits in order.
 *
 * A request has `n` choices; each is a sequence of its own: the same prompt, another draw. Choice
 * by choice they live through this table (anything absent is a bug of ours):
 *
 *              ADMIT       PREFILLED   PREEMPT     PARK      RESUME     FORK       END
 *   HELD         -           -           -          -          -        WAITING    DONE
 *   WAITING    PREFILL       -           -         PARKED      -          -        DONE
 *   PARKED       -           -           -          -        WAITING      -        DONE
 *   PREFILL      -         DECODE      WAITING      -          -          -        DONE
 *   DECODE       -           -         WAITING      -          -          -        DONE
 *
 *   HELD     waits until a brother (the leader) has computed the prompt, whose blocks it then finds
 *   WAITING  has no slot and no blocks; a preempted one keeps its tokens, to be computed again
 *   PARKED   waits for its consumer to take events away, holding nothing
 *   PREFILL  has a slot and blocks for all its tokens; some are not sent yet
 *   DECODE   every known token was sent, or is being drawn by a step on its way
 *
 * Positions: [0, n_prompt) prompt, then output. `n_sent` positions are in sent steps (their keys
 * and values are there when later steps run); `n_planned` outputs were asked for, `n_output` came.
 *
 * Thread: requests are made by any; from then on engine, but for what desk.h says. */
#pragma once

#include "runtime/engine/engine.h"
#include "runtime/kv/blocks.h"
#include "runtime/kv/prefix.h"

#define SP_SEQ_STATES(X) X(HELD) X(WAITING) X(PARKED) X(PREFILL) X(DECODE) X(DONE)
typedef enum sp_seq_state {
#define X(name) SP_SEQ_##name,
    SP_SEQ_STATES(X)
#undef X
    SP_SEQ_STATE_COUNT
} sp_seq_state;

typedef enum sp_seq_event {
    SP_SEQ_ADMIT,
    SP_SEQ_PREFILLED,
    SP_SEQ_PREEMPT,
    SP_SEQ_PARK,
    SP_SEQ_RESUME,
    SP_SEQ_FORK,
    SP_SEQ_END,
    SP_SEQ_EVENT_COUNT
} sp_seq_event;

typedef struct sp_request sp_request;
typedef struct sp_seq sp_seq;

struct sp_seq {
    sp_request *req;
    int32_t choice;
    sp_seq_state state;

    int32_t *output; /* [max_tokens], from the first admission to the end */
    int32_t n_output, n_planned, n_sent;
    int32_t rows_done;  /* positions whose logits (or prompt log-probabilities) have come */
    int32_t n_computed; /* prompt tokens not found in the cache, at the first admission */

    int32_t slot; /* -1: none */
    uint32_t generation;
    sp_kv_blocks blocks;
    int32_t n_blocks_sent; /* of blocks, those the rank was told */
    uint64_t last_step;    /* last step sent that names it; 0 since admission: none */
    uint64_t chosen_step;  /* last step it was chosen for as a decode */
    sp_kv_hash *names;     /* of the full blocks from n_prompt_full on */
    int32_t n_named;       /* blocks whose names are known, from block 0 */
    int32_t n_indexed;     /* blocks offered to the prefix index */
    int32_t blocks_short;  /* blocks that must be available before another try to admit it */

    sp_seq *prev, *next; /* in the scheduler's list of its state */
    int32_t heap_at;     /* place among those waiting; -1: not there */

    int32_t n_events;    /* given to the consumer so far */
    int32_t undelivered; /* events not yet taken: under the desk's lock, */
    bool pause_listed;   /* as are these two */
    sp_seq *pause_next;
    bool paused; /* too many of those: not scheduled */
    float *row;  /* a row of logits that is coming in pieces */
    uint32_t row_have;
    sp_status doom; /* with SP_E_NOMEM at admission: to be ended */
    int64_t scheduled_ns, first_token_ns, last_token_ns;
};

struct sp_request {
    uint64_t id, order; /* order: of arrival */
    void *user;
    int32_t *prompt;
    int32_t n_prompt, n_prompt_full; /* full: whole blocks of prompt */
    sp_gen_params params;
    int32_t priority;
    int64_t deadline_ns, arrival_ns;
    char *salt;
    sp_kv_hash root;
    sp_kv_hash *names; /* [n_prompt_full] of the prompt's full blocks, shared by the choices */
    int32_t n_named;   /* of those, the first that are known */
    bool private_root; /* no sharing between requests: only between its own choices */
    bool has_root;

    /* Several groups of ranks (runtime/engine/moves.h). */
    int32_t group;        /* whose scheduler has it */
    bool held;            /* its prompt is computed elsewhere first: all its choices are HELD */
    bool shadow;          /* computes the prompt of another one: no events, no figures */
    bool moved;           /* blocks came from elsewhere; of its tokens, so many were cached */
    int32_t moved_cached; /* before that */
    void *move;           /* the move it is a part of; NULL: none */
    const sp_kv_import *import; /* what it brings from another pod; NULL: nothing */
    bool keep_kv;               /* what was computed of its prompt is lent when it has ended */
    bool spoiled;               /* a choice of it failed or was aborted */
    bool parting;               /* it has ended, its last event waits (runtime/engine/lends.h) */

    int32_t leader;   /* the choice that computes the prompt */
    bool forked;      /* the prompt was computed once, and the others were let go */
    bool started;     /* some choice was scheduled */
    bool counted;     /* its prompt is in the figures */
    int32_t n_live;   /* choices that have not ended */
    int32_t n_cached; /* prompt tokens found in the cache by the first choice admitted; -1 before */
    int32_t max_output;                  /* tokens of the longest choice */
    sp_token_logprobs **prompt_logprobs; /* [n_prompt], of choice 0, until its first event */

    sp_request *prev, *next; /* of all that live in the engine */

    /* Under the desk's lock. */
    int32_t ticket;
    int32_t n_pending; /* events that wait for the consumer */
    bool ended, cancel_listed;
    sp_request *mail_next, *cancel_next;
    uint64_t aborted[2], stopped[2];           /* bit sets of choices */
    uint64_t seen_aborted[2], seen_stopped[2]; /* the engine's copy */

    sp_seq seqs[]; /* [params.n] */
};

/** A copy of a request, in one piece of memory, all sequences HELD but the first (WAITING).
 * `block_tokens` only sizes the room for block names. The caller has checked the values.
 *
 * Owner:  caller; ends with sp_request_destroy().
 * Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_request_create(sp_request **out, const sp_engine_request *req,
                                         int32_t max_tokens, int32_t block_tokens, sp_err *err);
/** The sequences must hold no blocks. */
void sp_request_destroy(sp_request *r);

void sp_seq_move(sp_seq *s, sp_seq_event ev);
const char *sp_seq_state_name(sp_seq_state st); /* "PREFILL" */

/** Memory for output, block table and names. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_seq_reserve(sp_seq *s, int32_t block_tokens, sp_err *err);
/** Drops table and names, and the output too when `all`; the table must hold no blocks. */
void sp_seq_unreserve(sp_seq *s, bool all);

static inline int32_t sp_seq_known(const sp_seq *s) {
    return s->req->n_prompt + s->n_output;
}
static inline bool sp_seq_runs(const sp_seq *s) {
    return s->state == SP_SEQ_PREFILL || s->state == SP_SEQ_DECODE;
}
/** Positions that are ever processed: the last token drawn is not. */
static inline int32_t sp_seq_positions_max(const sp_seq *s) {
    int32_t out = s->req->params.max_tokens;
    return s->req->n_prompt + (out > 0 ? out - 1 : 0);
}
/** Rows of logits are wanted for positions below this. */
int32_t sp_seq_rows_limit(const sp_seq *s);
/** Tokens [from, from + n) in one piece: where they lie, or copied to `scratch` [n]. */
const int32_t *sp_seq_tokens(const sp_seq *s, int32_t from, int32_t n, int32_t *scratch);

/** The name of full block `i`, computed at most once; every token of it must be known.
 * `scratch` is [block_tokens]. */
const sp_kv_hash *sp_seq_name(sp_seq *s, sp_kv_prefix *x, int32_t i, int32_t block_tokens,
                              int32_t *scratch);

/** Who goes first: lower priority value, then earlier arrival, then lower choice. */
bool sp_seq_before(const sp_seq *a, const sp_seq *b);

bool sp_seq_check(const sp_seq *s, int32_t block_tokens);

/* ---- those that wait, first one on top (binary heap) ---- */

typedef struct sp_waitq {
    sp_seq **items;
    int32_t n, cap;
} sp_waitq;

/** Room for `n` waiting at a time, so that a push cannot fail. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_waitq_reserve(sp_waitq *q, int32_t n, sp_err *err);
void sp_waitq_fini(sp_waitq *q);
void sp_waitq_push(sp_waitq *q, sp_seq *s);
void sp_waitq_remove(sp_waitq *q, sp_seq *s);
sp_seq *sp_waitq_top(const sp_waitq *q); /* NULL: nobody waits */
bool sp_waitq_check(const sp_waitq *q);
