#include "frontend/text_pool.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#define THREADS_MAX 16

struct sp_text_pool {
    sp_queue *todo, *finished;
    sp_wake wake;
    sp_loop_io *io;
    sp_thread threads[THREADS_MAX];
    int n_threads, max_jobs, n_jobs;
    sp_text_job *jobs;    /* all that are inside */
    pthread_mutex_t lock; /* of every job's `skip` */
};

static bool is_wanted(sp_text_pool *p, const sp_text_job *job) {
    pthread_mutex_lock(&p->lock);
    bool wanted = !job->skip;
    pthread_mutex_unlock(&p->lock);
    return wanted;
}

static void *thread_main(void *arg) {
    sp_text_pool *p = arg;
    sp_text_job *job;
    while ((job = sp_queue_pop(p->todo, SP_NEVER)) != NULL) {
        if (is_wanted(p, job)) job->work(job);
        /* Never full: it has room for every job that may be inside. */
        sp_status st = sp_queue_push(p->finished, job);
        SP_ASSERT(st == SP_OK);
        sp_wake_signal(&p->wake);
    }
    return NULL;
}

static void unlink_job(sp_text_pool *p, sp_text_job *job) {
    if (job->prev)
        job->prev->next = job->next;
    else
        p->jobs = job->next;
    if (job->next) job->next->prev = job->prev;
    job->prev = job->next = NULL;
    p->n_jobs--;
}

static void on_wake(void *ctx, unsigned ready) {
    sp_text_pool *p = ctx;
    (void)ready;
    sp_wake_drain(&p->wake);
    sp_text_job *job;
    while ((job = sp_queue_try_pop(p->finished)) != NULL) {
        unlink_job(p, job);
        job->done(job);
    }
}

sp_status sp_text_pool_create(sp_text_pool **out, sp_loop *loop, int n_threads, int max_jobs,
                              sp_err *err) {
    if (n_threads < 1 || n_threads > THREADS_MAX || max_jobs < 1)
        return SP_FAIL(err, SP_E_INVALID, "text threads: want 1 to %d, got %d", THREADS_MAX,
                       n_threads);
    sp_text_pool *p = sp_alloc(sizeof *p);
    p->max_jobs = max_jobs;
    sp_status st = sp_wake_open(&p->wake, err);
    if (st != SP_OK) goto free_pool;
    st = sp_loop_io_open(&p->io, loop, p->wake.fd, on_wake, p);
    if (st != SP_OK) {
        (void)SP_FAIL(err, st, "no memory for the text threads");
        goto close_wake;
    }
    p->todo = sp_queue_create(max_jobs);
    p->finished = sp_queue_create(max_jobs);
    pthread_mutex_init(&p->lock, NULL);
    for (; p->n_threads < n_threads; p->n_threads++) {
        st = sp_thread_start(&p->threads[p->n_threads], "text", thread_main, p, err);
        if (st != SP_OK) {
            sp_text_pool_destroy(p);
            return st;
        }
    }
    sp_loop_io_want(p->io, SP_LOOP_READ);
    *out = p;
    return SP_OK;

close_wake:
    sp_wake_close(&p->wake);
free_pool:
    sp_free(p);
    return st;
}

void sp_text_pool_destroy(sp_text_pool *p) {
    if (!p) return;
    for (sp_text_job *job = p->jobs; job; job = job->next) sp_text_pool_skip(p, job);
    sp_queue_close(p->todo);
    for (int i = 0; i < p->n_threads; i++) sp_thread_join(&p->threads[i]);
    while (p->jobs) {
        sp_text_job *job = p->jobs;
        unlink_job(p, job);
        job->drop(job);
    }
    sp_queue_destroy(p->todo);
    sp_queue_destroy(p->finished);
    pthread_mutex_destroy(&p->lock);
    sp_loop_io_close(p->io);
    sp_wake_close(&p->wake);
    sp_free(p);
}

sp_status sp_text_pool_submit(sp_text_pool *p, sp_text_job *job, sp_err *err) {
    if (p->n_jobs >= p->max_jobs)
        return SP_FAIL(err, SP_E_LIMIT, "the server is busy: %d requests wait for a text thread",
                       p->n_jobs);
    job->skip = false;
    job->prev = NULL;
    job->next = p->jobs;
    if (p->jobs) p->jobs->prev = job;
    p->jobs = job;
    p->n_jobs++;
    sp_status st = sp_queue_push(p->todo, job);
    SP_ASSERT(st == SP_OK);
    return SP_OK;
}

void sp_text_pool_skip(sp_text_pool *p, sp_text_job *job) {
    pthread_mutex_lock(&p->lock);
    job->skip = true;
    pthread_mutex_unlock(&p->lock);
}

int sp_text_pool_count(const sp_text_pool *p) {
    return p->n_jobs;
}
