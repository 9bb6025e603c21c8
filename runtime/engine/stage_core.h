/* runtime/engine/stage_core.h - what the files of a stage share; nobody else includes it.
 *
 *   stage.c         creation, the loop, faults     stage_seq.c     sequences come and go
 *   stage_step.c    a STEP becomes a batch         stage_feed.c    tokens that another rank draws
 *   stage_answer.c  logits become TOKENS and ROW   stage_ahead.c   steps whose draws are the device's
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/engine/stage.h"
#include "runtime/gen/sampler.h"

/* The head always takes what we send (it never waits with its own hands full), so a send that
 * takes this long means that it is gone. */
#define SP_STAGE_SEND_NS (60 * INT64_C(1000000000))

/** What a rank keeps of one sequence; one piece of memory, arrays behind the struct. */
typedef struct sp_stage_seq {
    uint32_t generation;
    sp_wire_params wire;
    sp_gen_params params;
    uint32_t have[SP_PART_COUNT]; /* items of each part so far */
    bool complete;                /* every part is there */
    int32_t n_known;              /* tokens that are known here, or will be */
    int32_t n_here;               /* of those, the first that are known here */
    int32_t n_done;               /* positions whose keys and values are there; -1: no step yet */
    int32_t n_blocks, cap_blocks;
    int32_t there;   /* position of the token that the device drew last; -1: none yet */
    bool looks_back; /* a draw depends on tokens drawn before, beyond the last one's id */
    bool on_host;    /* its draws have no form for a device */
    int32_t *tokens; /* [tokens_max] */
    int32_t *blocks; /* [cap_blocks] */
    void *parts[SP_PART_COUNT];
} sp_stage_seq;

/** A token that is drawn elsewhere and has not come. */
typedef struct sp_stage_awaited {
    uint32_t slot, generation;
    int32_t position;
} sp_stage_awaited;

/** Steps whose tokens have not come, oldest first: a ring, as is its list of tokens. */
typedef struct sp_stage_feed {
    struct {
        uint64_t number;
        int32_t n;
    } steps[SP_STAGE_STEPS_MAX];
    uint64_t first, next;          /* steps, counted */
    sp_stage_awaited *tokens;      /* [cap] */
    size_t cap, token, token_next; /* counted */
    int32_t *message;              /* [max_num_seqs] */
} sp_stage_feed;

/** A token that the device draws: whose it is, and whether its log-probability is told. */
typedef struct sp_stage_drawn {
    uint32_t slot, generation;
    int32_t position;
    bool told;
} sp_stage_drawn;

/** A step that was submitted and not answered. */
typedef struct sp_stage_pending {
    uint64_t number;
    int32_t n;
    sp_stage_drawn *draws; /* [max_num_seqs] */
} sp_stage_pending;

/** Steps ahead of the host. Memory is there only when the model can submit. */
typedef struct sp_stage_ahead {
    sp_stage_pending steps[SP_STAGE_AHEAD];
    uint64_t first, next; /* counted */
    sp_draw *draws;       /* of the step at hand [max_num_seqs] */
    int32_t *tokens;      /* [cap_tokens] */
    sp_draw_bias *bias;   /* [cap_bias] */
    int32_t *place;       /* [n_vocab] of an id in `bias`, from 1; all 0 between draws */
    int32_t cap_tokens, cap_bias;
    int32_t n_draws, n_tokens, n_bias;
} sp_stage_ahead;
/* What draws of one step may take along; a step with more waits for its logits. */
#define SP_STAGE_TOKENS_MAX (1 << 20)
#define SP_STAGE_BIAS_MAX (1 << 16)
#define SP_STAGE_BIAS_EACH (SP_LOGIT_BIAS_MAX + SP_BAD_WORDS_TOKENS_MAX + SP_STOP_IDS_MAX + 64)

struct sp_stage {
    sp_wire_ready offer;
    sp_link *link;
    sp_stage_model model;
    sp_stage_role role;
    const sp_stage_kvx *kvx;
    sp_stage_feed feed;
    sp_stage_ahead ahead;
    float *flat; /* [n_vocab] zeros, when the model gives tokens and no logits */
    sp_sampler *sampler;
    int32_t *eos;
    int32_t n_eos;
    sp_stage_seq **slots; /* [max_num_seqs] */
    int32_t n_seqs;       /* of slots that are taken */
    uint64_t step;        /* last one taken */
    sp_wire_times times;  /* of the device, as they were told */
    int64_t times_ns;     /* when */
    /* Of the step at hand. */
    int32_t *tokens;   /* [max_batched_tokens] */
    sp_seq_rows *seqs; /* [max_num_seqs] */
    int32_t *rows;     /* [max_step_rows] */
    sp_stage_seq **at; /* [max_num_seqs] */
    int32_t *drawn;    /* [max_num_seqs] tokens for the feedback */
    int32_t n_drawn;
    sp_wire_tokens_head head;
    unsigned char *out; /* records of the TOKENS frame that is being filled */
    uint32_t n_out;
};
#define SP_STAGE_OUT_BYTES (SP_FRAME_MAX - (uint32_t)sizeof(sp_wire_tokens_head))

/* ---- stage_seq.c ---- */

SP_NODISCARD sp_status sp_stage_take_add(sp_stage *s, const sp_frame *f, sp_err *err);
SP_NODISCARD sp_status sp_stage_take_drop(sp_stage *s, const sp_frame *f, sp_err *err);
/** Errors: SP_E_PROTOCOL the slot is another's. */
SP_NODISCARD sp_status sp_stage_find(const sp_stage *s, sp_wire_seq id, sp_stage_seq **out,
                                     sp_err *err);
void sp_stage_seq_free(sp_stage_seq *q);

/* ---- stage_feed.c ---- */

/** Takes what is there, and what must be there when the head sends step `number`. */
SP_NODISCARD sp_status sp_stage_feed_drain(sp_stage *s, uint64_t number, sp_err *err);
/** Waits until the first `end` tokens of a sequence are known here. */
SP_NODISCARD sp_status sp_stage_feed_until(sp_stage *s, const sp_stage_seq *q, int32_t end,
                                           sp_err *err);
/** Counts the tokens that this step draws elsewhere. */
void sp_stage_expect_tokens(sp_stage *s, const sp_wire_step *w);
/** Tells the ranks that embed what this step drew. */
SP_NODISCARD sp_status sp_stage_feed_others(sp_stage *s, sp_err *err);

/* ---- stage_step.c ---- */

/** The step as a batch. A token that only the device knows is id -1 - slot. */
SP_NODISCARD sp_status sp_stage_lay_out(sp_stage *s, const sp_wire_step *w, sp_batch *b,
                                        sp_err *err);
/** Rows of an entry whose logits are wanted: from its first one `n`, and the last one if `last`. */
typedef struct sp_stage_wanted {
    int32_t n;
    bool last;
} sp_stage_wanted;
sp_stage_wanted sp_stage_wanted_of(const sp_stage_seq *q, const sp_wire_entry *e);

/* ---- stage_answer.c ---- */

/** Draws, keeps and tells what a step gave. */
SP_NODISCARD sp_status sp_stage_answer(sp_stage *s, const sp_wire_step *w, int32_t n_rows,
                                       const float *logits, sp_err *err);
/** Begins the TOKENS of a step; puts one record, sending what is there when the frame is full; ends
 * it, or says that more follows. */
void sp_stage_open_tokens(sp_stage *s, uint64_t number);
SP_NODISCARD sp_status sp_stage_put_record(sp_stage *s, const sp_wire_record *rec,
                                           const sp_top_logprob *top, sp_err *err);
SP_NODISCARD sp_status sp_stage_send_tokens(sp_stage *s, bool more, sp_err *err);

/* ---- stage_ahead.c ---- */

static inline bool sp_stage_is_pending(const sp_stage *s) {
    return s->ahead.first < s->ahead.next;
}
/** Errors: SP_E_INVALID a model that submits on a rank that does not embed; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_stage_ahead_open(sp_stage *s, sp_err *err);
void sp_stage_ahead_close(sp_stage *s);
/** Finds out what the draws of a new sequence will need. */
void sp_stage_ahead_note(const sp_stage *s, sp_stage_seq *q);
/** Finishes what has to be before this step is laid out: everything where its logits are wanted, or
 * where a draw looks at tokens that only the device knows. True in *ahead: it may be submitted. */
SP_NODISCARD sp_status sp_stage_prepare(sp_stage *s, const sp_wire_step *w, bool *ahead,
                                        sp_err *err);
/** Submits the step that was laid out; answers one before it only where too many are on their way. */
SP_NODISCARD sp_status sp_stage_submit(sp_stage *s, const sp_wire_step *w, const sp_batch *b,
                                       sp_err *err);
/** Answers the oldest step that is not, if it has ended. Errors: SP_AGAIN it has not. */
SP_NODISCARD sp_status sp_stage_finish(sp_stage *s, int64_t deadline_ns, sp_err *err);
