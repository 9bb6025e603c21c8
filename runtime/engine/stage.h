/* runtime/engine/stage.h - the loop of a rank: frames in, steps through the model, tokens back.
 *
 * A rank decides nothing. It keeps what each sequence needs (tokens, parameters, block table) under
 * the slot that the head gave it, lays a step out as one batch, runs the model by one callback,
 * draws tokens, keeps each as the next input of its sequence (so the head may send the next step
 * before it has seen this one's tokens) and tells them. In a super pod every rank is given every
 * step; one draws and answers, and the ranks that embed get the tokens from that one (sp_stage_role):
 * they wait for a token only when a step needs it. What cannot be (a stale slot, a block
 * outside the pool, positions with a gap) is answered by a FAULT frame and the end of the loop:
 * then head and rank no longer agree, and nothing that comes later can be trusted.
 *
 * Memory: a sequence's is taken when it comes and freed when it goes; a step takes none.
 * Limits: those of sp_stage_config, which READY tells the head.
 *
 * Thread: one, the rank's engine thread. */
#pragma once

#include "comm/group.h"
#include "comm/link.h"
#include "runtime/engine/stage_kv.h"
#include "runtime/engine/wire.h"
#include "runtime/model/batch.h"

typedef struct sp_stage_model {
    /** Runs a step (`batch` is borrowed for the call): keys and values of every token into its
     * block, and logits [R, n_vocab] (f32, padding excluded, borrowed until the next call; anything
     * when R is 0; NULL when token() is set: then log-probabilities and rows are of a flat row).
     * Errors: any ends the rank: SP_E_DEVICE, SP_E_INTERNAL, SP_E_NOMEM; SP_E_PEER_LOST and
     * SP_E_CANCELED of a group. */
    sp_status (*forward)(void *ctx, const sp_batch *batch, const float **logits, sp_err *err);
    /** Optional: the token after row `row` of the last forward(), instead of a draw from logits. */
    int32_t (*token)(void *ctx, int32_t row);
    /* Optional: a model on a device that draws, where one stage is all there is. Steps whose logits nobody
     * has to see go this way: submitted while the one before runs, answered when they have ended. Of
     * a sequence in slot i, the last token that such a step drew is id -1 - i, also for forward().
     * Every rank of the stage submits the same steps; one that does not sample says how many draws
     * there are and is told nothing. */
    /** Begins a step; `batch` and `draws` are borrowed for the call. At most SP_STAGE_AHEAD have
     * begun and are not finished. Errors: as forward(). */
    sp_status (*submit)(void *ctx, const sp_batch *batch, const sp_draw_args *draws, sp_err *err);
    /** What the oldest one drew, borrowed until the second submit() after. SP_AGAIN: not yet at the
     * deadline. Errors: as forward(). */
    sp_status (*finish)(void *ctx, int64_t deadline_ns, const sp_drawn **drawn, sp_err *err);
    /** Optional: the last sequence has gone, nothing is to be done. */
    void (*rest)(void *ctx);
    /** Optional: how long the device computed steps, and stood idle between two while sequences were
     * here, so far. */
    void (*times)(void *ctx, sp_wire_times *out);
    void *ctx;
} sp_stage_model;

/** Steps that may have begun and are not finished. */
#define SP_STAGE_AHEAD 2

/** Steps whose tokens an embedding rank may await at a time. */
#define SP_STAGE_STEPS_MAX 16

/** What this rank is to the others. Alone: {.embeds = true, .samples = true}. */
typedef struct sp_stage_role {
    bool embeds;  /* first stage: needs every token */
    bool samples; /* TP rank 0 of the last stage: draws, and alone answers the head */
    /* Borrowed: member 0 samples, the others embed; NULL: nobody to tell. After each step member 0
     * sends every other member one message: an i32 token a sampled entry, in order of entries; none
     * when there are none, or when the step was submitted. An embedding rank takes them when it needs them, at the latest when as
     * many steps came as may be in flight. config.sends >= steps in flight + 1. */
    sp_group *feedback;
    int32_t steps_in_flight; /* as the head's, n_stages + 1; 0: SP_STAGE_STEPS_MAX */
} sp_stage_role;

typedef struct sp_stage_config {
    sp_wire_ready offer;    /* what this rank can do; all of it is checked against every step */
    const int32_t *eos_ids; /* of the model; copied */
    int32_t n_eos_ids;
    sp_stage_role role;
    const sp_stage_kvx *kvx; /* borrowed; NULL: a frame of KV blocks is a protocol error */
} sp_stage_config;

typedef struct sp_stage sp_stage;

/** A stage over the rank's side of a link (borrowed).
 *
 * Owner:  caller, sp_stage_destroy().
 * Errors: SP_E_INVALID an offer out of range, by name, or a role that cannot be; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_stage_create(sp_stage **out, const sp_stage_config *config, sp_link *link,
                                       const sp_stage_model *model, sp_err *err);
void sp_stage_destroy(sp_stage *s);

/** Says READY and works until the head says BYE (SP_OK).
 * Errors: SP_E_CLOSED the link ended; SP_E_PEER_LOST a group broke (told by FAULT); SP_E_PROTOCOL the head said what cannot be (told by FAULT);
 *         what the model said (told by FAULT). */
SP_NODISCARD sp_status sp_stage_run(sp_stage *s, sp_err *err);

/** Takes one frame; for tests, and for a rank that has other frames to look at in between.
 * SP_AGAIN: it was not for a stage and nothing was done. */
SP_NODISCARD sp_status sp_stage_take(sp_stage *s, const sp_frame *frame, sp_err *err);

/** Finishes and answers all that was submitted; sp_stage_run() does so by itself. */
SP_NODISCARD sp_status sp_stage_settle(sp_stage *s, sp_err *err);

int32_t sp_stage_seq_count(const sp_stage *s); /* sequences it keeps */
bool sp_stage_check(const sp_stage *s);
