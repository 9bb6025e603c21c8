/* Covers kernels/cpu/cpu_pool.c and cpu_topo.c: every task once, nobody waits for a thread without
 * one, an idle pool sleeps, and one that slept wakes. */
#include "kernels/cpu/cpu_pool.h"
#include "kernels/cpu/cpu_topo.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define TASKS_MAX 300

typedef struct tally {
    _Atomic int32_t ran[TASKS_MAX];
    int32_t plain[TASKS_MAX]; /* not atomic: a race here is one of the pool's */
    _Atomic int bad_thread;
    int n_threads;
} tally;

static void count(void *ctx, int thread, int32_t task) {
    tally *t = ctx;
    if (thread < 0 || thread >= t->n_threads) t->bad_thread = 1;
    atomic_fetch_add(&t->ran[task], 1);
    t->plain[task]++;
}

static sp_cpu_pool *open_pool(int n_threads, bool pin) {
    sp_err err = {0};
    sp_cpu_pool *p = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_cpu_pool_create(&p, n_threads, pin, &err), SP_OK);
    return p;
}

static void run_and_check(sp_cpu_pool *p, tally *t, int rounds) {
    bool ok = true;
    for (int r = 0; r < rounds; r++) {
        const int32_t n = 1 + r * 7 % TASKS_MAX;
        memset(t, 0, sizeof *t);
        t->n_threads = sp_cpu_pool_threads(p);
        sp_cpu_pool_run(p, count, t, n);
        for (int32_t i = 0; i < TASKS_MAX; i++)
            ok = ok && t->ran[i] == (i < n) && t->plain[i] == (i < n);
        ok = ok && !t->bad_thread;
    }
    CU_ASSERT(ok);
}

static void every_task_runs_exactly_once(void) {
    static tally t;
    for (int n = 1; n <= 5; n++) {
        sp_cpu_pool *p = open_pool(n, false);
        CU_ASSERT_EQUAL(sp_cpu_pool_threads(p), n);
        run_and_check(p, &t, 2000);
        sp_cpu_pool_destroy(p);
    }
}

/* The shape of a decode step: two tasks, thousands of times, with plain data handed over. */
static void double_it(void *ctx, int thread, int32_t task) {
    (void)thread;
    ((int64_t *)ctx)[task * 16] = ((int64_t *)ctx)[(1 - task) * 16 + 1] + 1;
}

static void results_of_one_run_are_seen_by_the_next(void) {
    sp_cpu_pool *p = open_pool(2, false);
    int64_t data[32] = {0};
    for (int64_t i = 0; i < 20000; i++) {
        sp_cpu_pool_run(p, double_it, data, 2);
        CU_ASSERT_FATAL(data[0] == i + 1 && data[16] == i + 1);
        data[1] = data[17] = i + 1;
    }
    sp_cpu_pool_destroy(p);
}

static void an_idle_pool_sleeps_and_wakes_again(void) {
    static tally t;
    sp_cpu_pool *p = open_pool(3, false);
    for (int round = 0; round < 20; round++) {
        const int64_t limit = sp_now_ns() + 10 * SP_NS_PER_S;
        while (sp_cpu_pool_asleep(p) < 2 && sp_now_ns() < limit) sched_yield();
        CU_ASSERT_EQUAL(sp_cpu_pool_asleep(p), 2);
        run_and_check(p, &t, 3);
    }
    sp_cpu_pool_destroy(p);
}

typedef struct meeting {
    _Atomic int here;
} meeting;

/* Ends only when as many threads are inside at once. */
static void meet(void *ctx, int thread, int32_t task) {
    (void)thread;
    (void)task;
    meeting *m = ctx;
    atomic_fetch_add(&m->here, 1);
    while (atomic_load(&m->here) < 3) sched_yield();
}

static void tasks_run_on_all_threads_at_once(void) {
    sp_cpu_pool *p = open_pool(3, false);
    for (int round = 0; round < 50; round++) {
        meeting m = {0};
        sp_cpu_pool_run(p, meet, &m, 3);
        CU_ASSERT_EQUAL(m.here, 3);
    }
    sp_cpu_pool_destroy(p);
}

static void one_task_or_one_thread_runs_on_the_caller(void) {
    static tally t;
    sp_cpu_pool *p = open_pool(3, false);
    t.n_threads = 1; /* thread 0 only */
    sp_cpu_pool_run(p, count, &t, 1);
    sp_cpu_pool_run(p, count, &t, 0);
    sp_cpu_pool_destroy(p);
    p = open_pool(1, false);
    sp_cpu_pool_run(p, count, &t, 9);
    sp_cpu_pool_destroy(p);
    CU_ASSERT(!t.bad_thread && t.ran[0] == 2 && t.ran[8] == 1);
}

static void many_more_threads_than_cores_still_finish(void) {
    static tally t;
    sp_cpu_pool *p = open_pool(24, false);
    run_and_check(p, &t, 200);
    sp_cpu_pool_destroy(p);
}

static void pools_come_and_go_without_running_anything(void) {
    for (int i = 0; i < 50; i++) sp_cpu_pool_destroy(open_pool(3, false));
    sp_cpu_pool_destroy(NULL);
}

static void no_number_means_the_cores_of_this_process(void) {
    sp_cpu_pool *p = open_pool(0, false);
    CU_ASSERT_EQUAL(sp_cpu_pool_threads(p), sp_cpu_allowed());
    sp_cpu_pool_destroy(p);
}

static void impossible_numbers_are_refused(void) {
    sp_err err = {0};
    sp_cpu_pool *p = NULL;
    CU_ASSERT_EQUAL(sp_cpu_pool_create(&p, SP_CPU_THREADS_MAX + 1, false, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_cpu_pool_create(&p, -2, false, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(p);
}

static void note_core(void *ctx, int thread, int32_t task) {
    (void)task;
    cpu_set_t set;
    if (pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0)
        ((_Atomic int *)ctx)[thread] = CPU_COUNT(&set);
    sched_yield();
}

static void pinned_threads_keep_to_one_core_each(void) {
    cpu_set_t before;
    CU_ASSERT_EQUAL_FATAL(pthread_getaffinity_np(pthread_self(), sizeof before, &before), 0);
    sp_cpu_topo *topo = sp_cpu_topo_open();
    if (!topo) SP_SKIP("hwloc cannot read this machine");
    sp_cpu_topo_close(topo);
    const int n = sp_cpu_allowed() > 1 ? 2 : 1;
    _Atomic int cores[2] = {0};
    sp_cpu_pool *p = open_pool(n, true);
    sp_cpu_pool_run(p, note_core, cores, 200);
    sp_cpu_pool_destroy(p);
    (void)pthread_setaffinity_np(pthread_self(), sizeof before, &before);
    CU_ASSERT(cores[0] == 1 || n == 1); /* a worker may have come too late for a task */
    CU_ASSERT(cores[n - 1] <= 1);
}

static int64_t frozen(void) {
    return 1;
}
static void a_stopped_clock_does_not_keep_threads_spinning(void) {
    static tally t;
    sp_clock_set(frozen);
    sp_cpu_pool *p = open_pool(2, false);
    run_and_check(p, &t, 20);
    sp_clock_set(NULL);
    const int64_t limit = sp_now_ns() + 10 * SP_NS_PER_S;
    while (sp_cpu_pool_asleep(p) < 1 && sp_now_ns() < limit) sched_yield();
    CU_ASSERT_EQUAL(sp_cpu_pool_asleep(p), 1);
    sp_cpu_pool_destroy(p);
}

static void a_run_allocates_nothing(void) {
    static tally t;
    sp_cpu_pool *p = open_pool(2, false);
    const uint64_t before = sp_mem_count();
    run_and_check(p, &t, 50);
    CU_ASSERT_EQUAL(sp_mem_count(), before);
    sp_cpu_pool_destroy(p);
}

SP_TEST_MAIN("kernels/cpu/pool", SP_TEST(every_task_runs_exactly_once),
             SP_TEST(results_of_one_run_are_seen_by_the_next),
             SP_TEST(an_idle_pool_sleeps_and_wakes_again),
             SP_TEST(tasks_run_on_all_threads_at_once),
             SP_TEST(one_task_or_one_thread_runs_on_the_caller),
             SP_TEST(many_more_threads_than_cores_still_finish),
             SP_TEST(pools_come_and_go_without_running_anything),
             SP_TEST(no_number_means_the_cores_of_this_process),
             SP_TEST(impossible_numbers_are_refused), SP_TEST(pinned_threads_keep_to_one_core_each),
             SP_TEST(a_stopped_clock_does_not_keep_threads_spinning),
             SP_TEST(a_run_allocates_nothing))
