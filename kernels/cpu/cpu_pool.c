#include "kernels/cpu/cpu_pool.h"

#include "kernels/cpu/cpu_topo.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 20000 /* a decode step's operations follow each other much faster than this */
#define PAUSES 16     /* between two looks at the clock */
#define LINE 64
#define CLOSED UINT32_MAX

typedef struct worker {
    sp_thread thread;
    sp_cpu_pool *pool;
    int index;
} worker;

/* The job in `task`, `ctx`, `n_tasks` belongs to the epoch in the high half of `word`; the low half
 * is the next task to hand out, or CLOSED while the fields are rewritten, which happens only after
 * all tasks of the epoch before are done. A thread takes a task by compare-and-swap of `word`, with
 * fields that it read before. Had it read a later epoch's n_tasks (stored with release after
 * CLOSED), it would see at least CLOSED in `word`, and the swap fails; a task that is still to be
 * had proves that its epoch's fields are in place. */
struct sp_cpu_pool {
    _Alignas(LINE) _Atomic uint64_t word;
    _Atomic(sp_cpu_task *) task;
    _Atomic(void *) ctx;
    _Atomic int32_t n_tasks;
    _Atomic uint32_t gate; /* the epoch again, as a futex; stop bumps it too */
    _Atomic int32_t asleep;
    _Alignas(LINE) _Atomic uint32_t done; /* tasks of this epoch that are done; a futex */
    _Atomic int32_t caller_sleeps;
    _Alignas(LINE) _Atomic bool stop;
    int n_threads;
    int64_t spin_ns;
    sp_cpu_topo *topo; /* while threads start; NULL: do not bind */
    worker *workers;   /* owned, n_threads - 1 */
};

static void futex_wait(_Atomic uint32_t *at, uint32_t seen) {
    (void)syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at, int n) {
    (void)syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Not sp_now_ns(): a test's stopped clock would make a spin endless. */
static int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spins until *at differs from `seen`; false when the time is up. */
static bool spin_while(_Atomic uint32_t *at, uint32_t seen, int64_t spin_ns) {
    if (spin_ns <= 0) return atomic_load_explicit(at, memory_order_acquire) != seen;
    const int64_t end = clock_ns() + spin_ns;
    do {
        for (int i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(at, memory_order_acquire) != seen) return true;
            relax();
        }
    } while (clock_ns() < end);
    return false;
}

/* Does tasks until there is none left. */
static void work(sp_cpu_pool *p, int thread) {
    uint64_t w = atomic_load_explicit(&p->word, memory_order_acquire);
    for (;;) {
        sp_cpu_task *task = atomic_load_explicit(&p->task, memory_order_relaxed);
        void *ctx = atomic_load_explicit(&p->ctx, memory_order_relaxed);
        const int32_t n = atomic_load_explicit(&p->n_tasks, memory_order_acquire);
        const uint32_t next = (uint32_t)w;
        if (next >= (uint32_t)n) return;
        if (!atomic_compare_exchange_strong_explicit(&p->word, &w, w + 1, memory_order_acq_rel,
                                                     memory_order_acquire))
            continue;
        task(ctx, thread, (int32_t)next);
        /* seq_cst pairs with the caller's "I sleep, then look again". */
        const uint32_t done = atomic_fetch_add(&p->done, 1) + 1;
        if (done == (uint32_t)n) {
            if (atomic_load(&p->caller_sleeps)) futex_wake(&p->done, 1);
            return;
        }
        w = atomic_load_explicit(&p->word, memory_order_acquire);
    }
}

static void sleep_at_gate(sp_cpu_pool *p, uint32_t seen) {
    atomic_fetch_add(&p->asleep, 1);
    while (atomic_load(&p->gate) == seen) futex_wait(&p->gate, seen);
    atomic_fetch_sub(&p->asleep, 1);
}

static void *worker_main(void *arg) {
    worker *me = arg;
    sp_cpu_pool *p = me->pool;
    if (p->topo) (void)sp_cpu_topo_bind(p->topo, me->index);
    uint32_t seen = 0; /* the gate's value before the first job */
    for (;;) {
        if (!spin_while(&p->gate, seen, p->spin_ns)) sleep_at_gate(p, seen);
        seen = atomic_load_explicit(&p->gate, memory_order_acquire);
        if (atomic_load_explicit(&p->stop, memory_order_acquire)) return NULL;
        work(p, me->index);
    }
}

static void open_gate(sp_cpu_pool *p, int wanted) {
    atomic_fetch_add(&p->gate, 1);
    const int asleep = atomic_load(&p->asleep);
    if (asleep > 0) futex_wake(&p->gate, asleep < wanted ? asleep : wanted);
}

void sp_cpu_pool_run(sp_cpu_pool *p, sp_cpu_task *task, void *ctx, int32_t n_tasks) {
    if (p->n_threads == 1 || n_tasks <= 1) {
        for (int32_t i = 0; i < n_tasks; i++) task(ctx, 0, i);
        return;
    }
    const uint64_t epoch = (atomic_load_explicit(&p->word, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&p->word, epoch << 32 | CLOSED, memory_order_relaxed);
    atomic_store_explicit(&p->task, task, memory_order_relaxed);
    atomic_store_explicit(&p->ctx, ctx, memory_order_relaxed);
    atomic_store_explicit(&p->n_tasks, n_tasks, memory_order_release);
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->caller_sleeps, 0, memory_order_relaxed);
    atomic_store_explicit(&p->word, epoch << 32, memory_order_release);
    open_gate(p, n_tasks - 1);

    work(p, 0);
    for (;;) {
        const uint32_t done = atomic_load_explicit(&p->done, memory_order_acquire);
        if (done == (uint32_t)n_tasks) return;
        if (spin_while(&p->done, done, p->spin_ns)) continue;
        atomic_store(&p->caller_sleeps, 1);
        if (atomic_load(&p->done) == done) futex_wait(&p->done, done);
    }
}

static void stop_workers(sp_cpu_pool *p) {
    atomic_store_explicit(&p->stop, true, memory_order_release);
    open_gate(p, SP_CPU_THREADS_MAX);
    for (int i = 0; i < p->n_threads - 1; i++) sp_thread_join(&p->workers[i].thread);
}

static sp_status start_workers(sp_cpu_pool *p, sp_err *err) {
    for (int i = 0; i < p->n_threads - 1; i++) {
        worker *w = &p->workers[i];
        *w = (worker){.pool = p, .index = i + 1};
        const sp_status st = sp_thread_start(&w->thread, "cpu-pool", worker_main, w, err);
        if (st == SP_OK) continue;
        stop_workers(p);
        return st;
    }
    return SP_OK;
}

sp_status sp_cpu_pool_create(sp_cpu_pool **out, int n_threads, bool pin, sp_err *err) {
    if (n_threads < 0 || n_threads > SP_CPU_THREADS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "'%d' threads, wanted 0 to %d", n_threads,
                       SP_CPU_THREADS_MAX);
    const int cores = sp_cpu_allowed();
    sp_cpu_pool *p = sp_alloc_aligned(LINE, sizeof *p);
    p->n_threads = n_threads ? n_threads : cores < SP_CPU_THREADS_MAX ? cores : SP_CPU_THREADS_MAX;
    /* More threads than cores: whoever spins keeps a working thread from its core. */
    p->spin_ns = p->n_threads > cores ? 0 : SPIN_NS;
    p->workers = sp_alloc((size_t)p->n_threads * sizeof *p->workers);
    p->topo = pin ? sp_cpu_topo_open() : NULL;
    const sp_status st = start_workers(p, err);
    if (st != SP_OK) {
        sp_cpu_topo_close(p->topo);
        sp_free(p->workers);
        sp_free(p);
        return st;
    }
    if (p->topo) (void)sp_cpu_topo_bind(p->topo, 0);
    *out = p;
    return SP_OK;
}

void sp_cpu_pool_destroy(sp_cpu_pool *p) {
    if (!p) return;
    stop_workers(p);
    sp_cpu_topo_close(p->topo);
    sp_free(p->workers);
    sp_free(p);
}

int sp_cpu_pool_threads(const sp_cpu_pool *p) {
    return p->n_threads;
}

int sp_cpu_pool_asleep(const sp_cpu_pool *p) {
    return atomic_load(&p->asleep);
}
