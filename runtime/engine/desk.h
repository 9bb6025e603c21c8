/* runtime/engine/desk.h - where other threads hand in requests and take events away: the one lock.
 *
 * A request lives under a ticket from submit until its last event is taken, so that a cancel can
 * hold back events that already wait, and an id of the past is recognised (ids carry the ticket's
 * generation). The lock covers list moves and counts only; events are built, copied and freed
 * outside it. The engine is woken by `wake`, the consumer by a descriptor, once a step.
 *
 * Limits: `queue_max` requests not yet started, `live_max` in all; at most SP_EVENTS_MAX events of
 * a sequence wait: at SP_EVENTS_PAUSE its scheduling is paused, and what was on its way by then (the
 * rows of SP_EVENTS_MAX / 2 positions at most) still finds room. Event memory is reused.
 *
 * Thread: stated per function. */
#pragma once

#include "runtime/base/thread.h"
#include "runtime/engine/seq.h"

#define SP_EVENTS_MAX 256
#define SP_EVENTS_PAUSE 100
#define SP_EVENTS_RESUME 50

typedef struct sp_desk sp_desk;

typedef struct sp_desk_config {
    int32_t queue_max, live_max;
    void (*wake)(void *ctx);                            /* any thread */
    void (*pause)(void *ctx, sp_seq *seq, bool paused); /* engine thread, under the lock */
    void *ctx;
} sp_desk_config;

typedef struct sp_desk_mail {
    sp_request *fresh;     /* by mail_next, oldest first */
    sp_request *cancelled; /* by cancel_next; what for: seen_aborted, seen_stopped */
    bool drain, stop;
} sp_desk_mail;

/** Owner: caller; sp_desk_destroy() frees requests and events that are left.
 * Errors: SP_E_INVALID a limit; SP_E_NOMEM; SP_E_IO no descriptor. */
SP_NODISCARD sp_status sp_desk_create(sp_desk **out, const sp_desk_config *config, sp_err *err);
void sp_desk_destroy(sp_desk *d);

/* ---- any thread ---- */

/** Hands in a request (moved on success). Errors: SP_E_LIMIT, SP_E_UNAVAILABLE. */
SP_NODISCARD sp_status sp_desk_submit(sp_desk *d, sp_request *r, uint64_t *id, sp_err *err);
void sp_desk_cancel(sp_desk *d, uint64_t id, int32_t choice, sp_finish as);
void sp_desk_ask(sp_desk *d, bool drain, bool stop);
sp_engine_state sp_desk_state(sp_desk *d);

/* ---- the consumer ---- */

int sp_desk_fd(const sp_desk *d);
int sp_desk_take(sp_desk *d, sp_event *out, int max);

/* ---- the engine ---- */

/** Takes what was handed in since the last call. */
sp_desk_mail sp_desk_collect(sp_desk *d);
/** A blank event of this step for a sequence; given to the consumer by the next publish. */
sp_event *sp_desk_event(sp_desk *d, sp_seq *seq);
/** Takes an event of this step back, to be given out by a later publish (sp_desk_give()), or not at
 * all (sp_desk_forget()). */
void sp_desk_hold(sp_desk *d, sp_event *ev);
void sp_desk_give(sp_desk *d, sp_event *ev);
void sp_desk_forget(sp_desk *d, sp_event *ev);
/** Gives out the events made since the last call, with one wake, and lets go what was closed. */
void sp_desk_publish(sp_desk *d);
/** The request does not count as queued any more: it was scheduled, or ended before. */
void sp_desk_started(sp_desk *d, sp_request *r);
/** Every choice has ended; the request goes after the next publish, with its last event. Moved. */
void sp_desk_close(sp_desk *d, sp_request *r);
/** Sets the state and wakes the consumer, who may want to know. With SP_ENGINE_FAILED or DRAINED
 * the next collect is the last one that finds anything. */
void sp_desk_set_state(sp_desk *d, sp_engine_state state);

bool sp_desk_check(sp_desk *d);
