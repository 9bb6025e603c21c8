/* runtime/base/thread.h - named threads, a bounded queue between two of them, a wake-up descriptor.
 *
 * Each thread owns its data; they talk through queues. sp_queue holds pointers, has a fixed
 * capacity, and any number of producers and consumers: a full queue is backpressure, not growth.
 * sp_wake is an eventfd for a poll loop.
 *
 * Thread: stated per function. */
#pragma once

#include "runtime/base/status.h"

#include <pthread.h>
#include <stdint.h>

typedef struct sp_thread {
    pthread_t id;
    bool started;
} sp_thread;

/** Starts `fn(arg)` under `name` (15 characters shown by ps and gdb). Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_thread_start(sp_thread *t, const char *name, void *(*fn)(void *),
                                       void *arg, sp_err *err);
void sp_thread_join(sp_thread *t); /* does nothing when not started */
/** The name given at start of the calling thread, "main" for the first one. */
const char *sp_thread_name(void);
/** Debug builds: aborts when the calling thread is not called `name`. */
#define SP_ON_THREAD(name) SP_DASSERT(sp_thread_is(name))
bool sp_thread_is(const char *name);

typedef struct sp_queue sp_queue;
/** Owner: caller; sp_queue_destroy() drops what is still inside without freeing it. */
sp_queue *sp_queue_create(int capacity);
void sp_queue_destroy(sp_queue *q);
/** Errors: SP_E_LIMIT the queue is full; SP_E_CLOSED it was closed. Thread: any. */
SP_NODISCARD sp_status sp_queue_push(sp_queue *q, void *item);
/** The oldest item, or NULL at once when there is none. Thread: any. */
void *sp_queue_try_pop(sp_queue *q);
/** Waits until there is an item or the deadline (sp_now_ns) has come; NULL: none came, or the queue
 * is closed and empty. Thread: any. */
void *sp_queue_pop(sp_queue *q, int64_t deadline_ns);
void sp_queue_close(sp_queue *q); /* wakes all waiters; what is inside can still be popped */
int sp_queue_count(sp_queue *q);

typedef struct sp_wake {
    int fd; /* readable after sp_wake_signal(); for poll and event loops */
} sp_wake;
SP_NODISCARD sp_status sp_wake_open(sp_wake *w, sp_err *err);
void sp_wake_close(sp_wake *w);
void sp_wake_signal(sp_wake *w); /* any thread */
void sp_wake_drain(sp_wake *w);  /* the owner, after it woke */
