/* runtime/engine/stepper.h - steps out, tokens in: between the scheduler, the links and the desk.
 *
 * Out: whenever fewer than `steps_in_flight` steps are on their way, the scheduler is asked for one
 * more; SEQ_DROP, SEQ_ADD and STEP frames are sent in that order, which is the order in which the
 * ranks do them; every rank gets every frame. In: the sampler answers steps in order; a token is taken when it is the next of a
 * sequence that still has that slot and generation, is dropped without a word when it is late (the
 * sequence has ended or was preempted meanwhile), and is an error when it cannot be.
 *
 * A link that is full is no deadlock: while a frame waits to go out, frames that come in are taken.
 *
 * Thread: engine. */
#pragma once

#include "comm/fan.h"
#include "runtime/engine/desk.h"
#include "runtime/engine/sched.h"

typedef struct sp_stepper sp_stepper;

typedef struct sp_stepper_config {
    sp_sched_config sched;
    const int32_t *eos_ids; /* copied */
    int32_t n_eos_ids, n_vocab;
    int64_t send_timeout_ns, step_timeout_ns; /* the second: 0 none */
    int32_t first_link, n_links;              /* of the fan; n_links 0: all */
    sp_fan *fan;                              /* borrowed, as are the next two */
    sp_desk *desk;
    sp_engine_metrics *metrics;
    sp_status (*receive)(void *ctx,
                         sp_err *err); /* takes one frame if one is there: SP_AGAIN if not */
    /* Optional, for requests with a move. A shadow's prompt is computed, and retired, up to position
     * `end`; `blocks` is its table. */
    void (*computed)(void *ctx, sp_request *shadow, int32_t end, const sp_block *blocks);
    void (*ended)(void *ctx, sp_request *r); /* a shadow (to be destroyed), or one that is held */
    /* Optional: the last choice of a request with keep_kv ends well; its blocks are held until this
     * returns. True: taken over, sp_desk_close() included. */
    bool (*lend)(void *ctx, sp_seq *q, sp_event *last);
    void *ctx;
} sp_stepper_config;

typedef struct sp_stepper_figures {
    int32_t running, waiting, blocks_used, blocks_total;
    int64_t load;                            /* tokens of the requests it has */
    int64_t prompt_tokens, generated_tokens; /* computed since the start */
} sp_stepper_figures;

/** How a choice ends. */
typedef struct sp_ending {
    sp_finish finish;
    int32_t stop_id;
    sp_status error;
    const char *text; /* with SP_FINISH_ERROR */
    bool silent;      /* no event: its consumer asked for it */
} sp_ending;

/** Owner: caller, sp_stepper_destroy(). Errors: as sp_sched_create(). */
SP_NODISCARD sp_status sp_stepper_create(sp_stepper **out, const sp_stepper_config *config,
                                         sp_err *err);
void sp_stepper_destroy(sp_stepper *p);

/** Takes in a request from the desk (moved). */
void sp_stepper_add(sp_stepper *p, sp_request *r);
/** Takes in a request that is held (sp_sched_hold()); it runs from sp_stepper_let_in() on. A
 * shadow's end is told to `ended` alone. Errors: SP_E_NOMEM; it was not taken in. */
SP_NODISCARD sp_status sp_stepper_hold(sp_stepper *p, sp_request *r, sp_err *err);
void sp_stepper_let_in(sp_stepper *p, sp_request *r);
SP_NODISCARD sp_status sp_stepper_add_shadow(sp_stepper *p, sp_request *r, sp_err *err);
void sp_stepper_end_shadow(sp_stepper *p, sp_request *r);
/** Ends what its consumer asked to end (seen_aborted, seen_stopped). */
void sp_stepper_cancel(sp_stepper *p, sp_request *r);
/** Ends a request that it has. */
void sp_stepper_end(sp_stepper *p, sp_request *r, sp_ending how);
/** Ends a request (moved) that it has not got. */
void sp_stepper_refuse(sp_stepper *p, sp_request *r, sp_status error, const char *text);
void sp_stepper_end_all(sp_stepper *p, sp_ending how);

/** Ends requests whose deadline has come; the next one (SP_NEVER: none). */
int64_t sp_stepper_expire(sp_stepper *p, int64_t now_ns);
/** When the oldest step on its way is overdue; SP_NEVER: never. */
int64_t sp_stepper_overdue_ns(const sp_stepper *p);

/** Sends what can be sent now.
 * Errors: of the link; SP_E_PEER_LOST nothing was taken for too long. */
SP_NODISCARD sp_status sp_stepper_advance(sp_stepper *p, sp_err *err);
/** Sends a frame to the group's ranks, as those of steps are. Errors: as sp_stepper_advance(). */
SP_NODISCARD sp_status sp_stepper_send(sp_stepper *p, sp_frame_type type, const sp_piece *pieces,
                                       int n, sp_err *err);
/** Whether frames came in while the last advance waited: other things may have come unseen too. */
bool sp_stepper_received(const sp_stepper *p);

/** Takes a TOKENS or ROW frame. Errors: SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_stepper_tokens(sp_stepper *p, const void *payload, uint32_t length,
                                         sp_err *err);
SP_NODISCARD sp_status sp_stepper_row(sp_stepper *p, const void *payload, uint32_t length,
                                      sp_err *err);

bool sp_stepper_is_idle(const sp_stepper *p); /* no request lives, no step is on its way */
sp_sched *sp_stepper_sched(const sp_stepper *p);
sp_stepper_figures sp_stepper_get_figures(const sp_stepper *p);
/** For the desk: a slow consumer. */
void sp_stepper_pause(sp_stepper *p, sp_seq *q, bool paused);
/** Brings the gauges (sums over all groups) and the scheduler's counts up to date. */
void sp_stepper_account(sp_stepper *p);
bool sp_stepper_check(const sp_stepper *p);
