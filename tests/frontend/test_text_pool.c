/* Covers frontend/text_pool.c: there and back, the cap, skipping, dropping at the end. */
#include "frontend/text_pool.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

typedef struct counted {
    sp_text_job job;
    struct bench *bench;
    bool worked;
} counted;

typedef struct bench {
    sp_loop *loop;
    sp_text_pool *pool;
    sp_queue *gate; /* a worker waits here when `gated` */
    bool gated;
    int want, n_done, n_worked, n_dropped;
} bench;

static void work(sp_text_job *job) {
    counted *c = (counted *)job;
    if (c->bench->gated) (void)sp_queue_pop(c->bench->gate, SP_NEVER);
    c->worked = true;
}
static void done(sp_text_job *job) {
    counted *c = (counted *)job;
    c->bench->n_done++;
    c->bench->n_worked += c->worked;
    if (c->bench->n_done == c->bench->want) sp_loop_stop(c->bench->loop);
}
static void drop(sp_text_job *job) {
    ((counted *)job)->bench->n_dropped++;
}

static void bench_open(bench *b, int threads, int cap) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_loop_create(&b->loop, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_text_pool_create(&b->pool, b->loop, threads, cap, &err), SP_OK);
    b->gate = sp_queue_create(1000);
}
static void bench_close(bench *b) {
    sp_queue_close(b->gate);
    sp_text_pool_destroy(b->pool);
    sp_queue_destroy(b->gate);
    sp_loop_destroy(b->loop);
}

static counted *make(bench *b, int n) {
    counted *c = sp_alloc((size_t)n * sizeof *c);
    for (int i = 0; i < n; i++)
        c[i] = (counted){.job = {.work = work, .done = done, .drop = drop}, .bench = b};
    return c;
}

static void every_job_comes_back_to_the_loop_worked(void) {
    bench b = {.want = 500};
    bench_open(&b, 2, 500);
    counted *jobs = make(&b, 500);
    for (int i = 0; i < 500; i++)
        CU_ASSERT_EQUAL(sp_text_pool_submit(b.pool, &jobs[i].job, NULL), SP_OK);
    sp_loop_run(b.loop);
    CU_ASSERT_EQUAL(b.n_worked, 500);
    CU_ASSERT_EQUAL(sp_text_pool_count(b.pool), 0);
    bench_close(&b);
    sp_free(jobs);
}

static void a_full_pool_refuses_and_a_skipped_job_is_not_worked(void) {
    bench b = {.want = 3, .gated = true};
    bench_open(&b, 1, 3);
    counted *jobs = make(&b, 4);
    sp_err err = {0};
    for (int i = 0; i < 3; i++)
        CU_ASSERT_EQUAL(sp_text_pool_submit(b.pool, &jobs[i].job, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_text_pool_submit(b.pool, &jobs[3].job, &err), SP_E_LIMIT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "3 requests"));
    /* The first may be with the thread already; the last surely is not. */
    sp_text_pool_skip(b.pool, &jobs[2].job);
    for (int i = 0; i < 2; i++) CU_ASSERT_EQUAL(sp_queue_push(b.gate, jobs), SP_OK);
    sp_loop_run(b.loop);
    CU_ASSERT_EQUAL(b.n_done, 3);
    CU_ASSERT_EQUAL(b.n_worked, 2);
    CU_ASSERT_FALSE(jobs[2].worked);
    bench_close(&b);
    sp_free(jobs);
}

static void jobs_inside_at_the_end_are_dropped_each_once(void) {
    bench b = {0};
    bench_open(&b, 2, 100);
    counted *jobs = make(&b, 100);
    for (int i = 0; i < 100; i++)
        CU_ASSERT_EQUAL(sp_text_pool_submit(b.pool, &jobs[i].job, NULL), SP_OK);
    bench_close(&b);
    CU_ASSERT_EQUAL(b.n_dropped, 100);
    CU_ASSERT_EQUAL(b.n_done, 0);
    sp_free(jobs);
}

static void a_pool_without_threads_is_refused(void) {
    bench b = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_loop_create(&b.loop, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_text_pool_create(&b.pool, b.loop, 0, 10, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(b.pool);
    sp_loop_destroy(b.loop);
}

SP_TEST_MAIN("frontend/text_pool", SP_TEST(every_job_comes_back_to_the_loop_worked),
             SP_TEST(a_full_pool_refuses_and_a_skipped_job_is_not_worked),
             SP_TEST(jobs_inside_at_the_end_are_dropped_each_once),
             SP_TEST(a_pool_without_threads_is_refused))
