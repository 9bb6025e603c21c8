/* frontend/loop.h - one thread's event loop: descriptors and timers.
 *
 * The only file of the tree that knows libevent. A callback may do anything to any descriptor of
 * the loop, closing included; what it closes is gone at once. After each callback the loop calls
 * the `after` hook once, which is where a turn's output is flushed.
 *
 * Thread: create and destroy from any one thread; everything else from the thread that runs it. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct sp_loop sp_loop;
typedef struct sp_loop_io sp_loop_io;
typedef struct sp_loop_timer sp_loop_timer;

enum {
    SP_LOOP_READ = 1,
    SP_LOOP_WRITE = 2,
};

/** Errors: SP_E_IO the system gives no event loop. */
SP_NODISCARD sp_status sp_loop_create(sp_loop **out, sp_err *err);
void sp_loop_destroy(sp_loop *l); /* after every io and timer was closed */
void sp_loop_run(sp_loop *l);     /* until sp_loop_stop() */
void sp_loop_stop(sp_loop *l);
void sp_loop_set_after(sp_loop *l, void (*fn)(void *ctx), void *ctx);

/** Watches `fd` (borrowed) for nothing yet. Errors: SP_E_NOMEM. Owner: caller, sp_loop_io_close(). */
SP_NODISCARD sp_status sp_loop_io_open(sp_loop_io **out, sp_loop *l, int fd,
                                       void (*fn)(void *ctx, unsigned ready), void *ctx);
/** Says what to wait for: a set of SP_LOOP_*. */
void sp_loop_io_want(sp_loop_io *io, unsigned what);
void sp_loop_io_close(sp_loop_io *io); /* the descriptor stays open; NULL is fine */

/** Calls `fn` every `period_ms`. Errors: SP_E_NOMEM. Owner: caller, sp_loop_timer_close(). */
SP_NODISCARD sp_status sp_loop_every(sp_loop_timer **out, sp_loop *l, int period_ms,
                                     void (*fn)(void *ctx), void *ctx);
void sp_loop_timer_close(sp_loop_timer *t); /* NULL is fine */
