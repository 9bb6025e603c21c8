/* tests/fake_rank.h - a rank as a thread: a real link, a real stage, the null model behind a gate.
 *
 * The gate lets a test hold the model before a step, let through a number of steps, or make it fail
 * or vanish at one: so that what the head does meanwhile is not a matter of luck.
 *
 * Thread: start and stop from one thread; the gate from any. */
#pragma once

#include "comm/fan.h"
#include "runtime/base/thread.h"
#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "tests/fake_ahead.h"

typedef struct sp_fake_rank {
    sp_fan *fan;   /* the head's side, for an engine, when the rank is alone */
    sp_link *head; /* the link in it */
    sp_link *rank;
    int bell; /* our own copy: the fan may be gone before the rank is */
    sp_stage *stage;
    sp_null_model *null;
    sp_stage_model model; /* the null model's own callbacks, or those given */
    sp_fake_ahead ahead;  /* over the null model, where asked for */
    bool runs_ahead;
    void (*gone)(struct sp_fake_rank *r, void *ctx); /* called by the thread when it failed */
    void *gone_ctx;
    sp_thread thread;
    sp_status ended; /* what sp_stage_run() gave, after stop */
    sp_err err;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    int allowed;       /* steps that may pass; -1: all */
    int n_steps;       /* that came to the gate */
    int fail_at_step;  /* this one fails (0: none) with... */
    sp_status failure; /* SP_E_CLOSED: the rank vanishes without a word */
} sp_fake_rank;

sp_wire_ready sp_fake_offer(int32_t n_vocab, int32_t n_blocks, int32_t block_tokens);

/** A rank of a pod: its head's side is left to the caller, to be put into a fan, who closes it. */
typedef struct sp_fake_rank_config {
    sp_wire_ready offer;
    const int32_t *eos;
    int32_t n_eos;
    int64_t step_ns;
    int allowed;
    int bell; /* sp_fan_bell() of the fan; -1: none */
    sp_stage_role role;
    const sp_stage_kvx *kvx;     /* borrowed; NULL: none */
    const sp_stage_model *model; /* NULL: a null model of its own; no token() */
    bool ahead;                  /* the null model as a device that draws */
    void (*gone)(sp_fake_rank *r, void *ctx);
    void *gone_ctx;
} sp_fake_rank_config;
void sp_fake_rank_open(sp_fake_rank *r, const sp_fake_rank_config *c);

/** Starts a rank that is alone, with a fan; fails the test when it cannot. `eos` may be NULL. */
void sp_fake_rank_start(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos,
                        int32_t n_eos, int64_t step_ns, int allowed);
/** The same of a rank whose device draws, one step ahead of it. */
void sp_fake_rank_start_ahead(sp_fake_rank *r, const sp_wire_ready *offer, const int32_t *eos,
                              int32_t n_eos, int64_t step_ns, int allowed);
void sp_fake_rank_allow(sp_fake_rank *r, int steps); /* -1: all from now on */
void sp_fake_rank_fail_at(sp_fake_rank *r, int step, sp_status failure);
/** Waits until `n` steps have come to the gate. */
void sp_fake_rank_wait_steps(sp_fake_rank *r, int n);
void sp_fake_rank_join(sp_fake_rank *r); /* the engine has said BYE, or the rank has failed */
void sp_fake_rank_fini(
    sp_fake_rank *r); /* after the engine is destroyed, and the fan if not its own closed */
