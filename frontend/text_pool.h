/* frontend/text_pool.h - the threads that parse, render and tokenise, so that the loop never does.
 *
 * A job goes to a text thread and comes back to the loop; in between only the text thread may look
 * at it. The number of jobs inside is bounded: beyond it submit refuses. A job whose client left can
 * be told to skip its work; it still comes back.
 *
 * Thread: loop, but for `work`. */
#pragma once

#include "frontend/loop.h"

typedef struct sp_text_pool sp_text_pool;

typedef struct sp_text_job {
    void (*work)(struct sp_text_job *job); /* on a text thread */
    void (*done)(struct sp_text_job *job); /* back on the loop; also after a skip */
    void (*drop)(struct sp_text_job *job); /* instead of done, when the pool ends */
    struct sp_text_job *prev, *next;       /* the pool's */
    bool skip;                             /* the pool's */
} sp_text_job;

/** Errors: SP_E_IO, SP_E_NOMEM the system gives no descriptor or thread. */
SP_NODISCARD sp_status sp_text_pool_create(sp_text_pool **out, sp_loop *loop, int n_threads,
                                           int max_jobs, sp_err *err);
/** Waits for the threads; jobs inside are dropped. */
void sp_text_pool_destroy(sp_text_pool *p);
/** Errors: SP_E_LIMIT as many jobs are inside as may be. */
SP_NODISCARD sp_status sp_text_pool_submit(sp_text_pool *p, sp_text_job *job, sp_err *err);
void sp_text_pool_skip(sp_text_pool *p, sp_text_job *job); /* its work is no longer wanted */
int sp_text_pool_count(const sp_text_pool *p);             /* jobs inside */
