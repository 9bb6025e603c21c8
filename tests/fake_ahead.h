/* tests/fake_ahead.h - the null model as a device that draws: steps are done when they are finished.
 *
 * What was submitted is kept and done later, in order, at the latest moment that is allowed: ids of
 * tokens that nobody knew are resolved then, block tables are those of the submit.
 *
 * Thread: one. */
#pragma once

#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "runtime/gen/sampler.h"

typedef struct sp_fake_ahead_step sp_fake_ahead_step;

typedef struct sp_fake_ahead {
    sp_stage_model null; /* borrowed: computes */
    sp_sampler *sampler;
    int32_t n_vocab, n_slots, block_tokens;
    int32_t *last;                             /* [n_slots] */
    sp_fake_ahead_step *steps[SP_STAGE_AHEAD]; /* oldest first */
    sp_drawn *drawn[SP_STAGE_AHEAD + 1];       /* [n_slots], taking turns */
    int n_pending, turn;
    int n_waits;                                 /* that it still says so; 0: none */
    int n_submitted, n_forward, n_rests, n_deep; /* n_deep: submitted while another was pending */
    _Atomic int fail_at;                         /* this finish (from 1) fails: SP_E_DEVICE */
    int n_finished;
    uint64_t digest;         /* of all steps: which way, ids as they were given, how many draws */
    _Atomic bool keeps_time; /* a finished step took 1 ms, and 250 us lay before it */
} sp_fake_ahead;

/** `digest` with one step more. */
uint64_t sp_fake_ahead_digest(uint64_t digest, bool submitted, const sp_batch *b, int32_t n_draws);
void sp_fake_ahead_init(sp_fake_ahead *a, const sp_stage_model *null, const sp_wire_ready *offer);
void sp_fake_ahead_fini(sp_fake_ahead *a);
sp_stage_model sp_fake_ahead_callbacks(sp_fake_ahead *a);
