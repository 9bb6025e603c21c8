/* kernels/cpu/cpu_pool.h - threads that share one loop and then wait for the next.
 *
 * run() hands out task numbers 0..n-1; the caller works too, and returns when every task is done,
 * whoever did it. A worker that the machine has not scheduled in time simply gets nothing: the
 * caller never waits for a thread that holds no task. Workers spin for about SPIN_NS after their
 * last task and then sleep on a futex; an idle pool uses no processor time. On a machine with fewer
 * free cores than threads they sleep at once.
 *
 * Who does a task must not change its result. Tasks may not call run().
 *
 * Thread: create, run and destroy from one thread; tasks on any of the pool's. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct sp_cpu_pool sp_cpu_pool;

/** Does task number `task`; `thread` is 0 (the caller of run) .. n_threads - 1. */
typedef void sp_cpu_task(void *ctx, int thread, int32_t task);

#define SP_CPU_THREADS_MAX 1024

/** Starts `n_threads` - 1 workers (0: as many threads as cores this process may use; the caller is
 * one of them). `pin` binds thread i to the i-th allowed core; what the system refuses is ignored.
 * Owner:  caller, sp_cpu_pool_destroy().
 * Errors: SP_E_INVALID  n_threads out of range
 *         SP_E_NOMEM    a thread did not start; nothing stays */
SP_NODISCARD sp_status sp_cpu_pool_create(sp_cpu_pool **out, int n_threads, bool pin, sp_err *err);
void sp_cpu_pool_destroy(sp_cpu_pool *pool);
int sp_cpu_pool_threads(const sp_cpu_pool *pool);

/** Runs all tasks and returns when the last is done. With one thread or one task: right here. */
void sp_cpu_pool_run(sp_cpu_pool *pool, sp_cpu_task *task, void *ctx, int32_t n_tasks);

/** Workers asleep now: an idle pool's are, soon after its last run. For tests. */
int sp_cpu_pool_asleep(const sp_cpu_pool *pool);
