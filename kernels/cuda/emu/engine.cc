// Blocks of a grid, one after the other; threads of a block as fibres.
#include "kernels/cuda/emu/engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u
// asan's frames are about three times as large.
#define STACK_BYTES ((size_t)(CU_ASAN ? 384 : 128) * 1024)

CU_TLS uint3 threadIdx, blockIdx, blockDim, gridDim;
__thread cu_engine *cu_now __attribute__((tls_model("initial-exec")));

static pthread_key_t end_of_thread;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void engine_free(void *p) {
    cu_engine *e = (cu_engine *)p;
    if (!e) return;
    if (e->arena) munmap(e->arena, e->arena_size);
    for (int i = 0; e->threads && i < CU_MAX_THREADS; i++) free(e->threads[i].copies);
    for (int i = 0; e->stacks && i < CU_MAX_THREADS; i++) free(e->stacks[i].uc);
    free(e->home.uc);
    free(e->threads);
    free(e->stacks);
    cu_shared_free(e);
    cu_fault_unwatch();
    free(e);
    cu_now = NULL;
}

static void key_make(void) {
    pthread_key_create(&end_of_thread, engine_free);
}
// The main thread's keys are not run at exit, and a library may go before its threads.
__attribute__((destructor)) static void engine_exit(void) {
    engine_free(cu_now);
    pthread_once(&key_once, key_make);
    pthread_setspecific(end_of_thread, NULL);
}

static cu_engine *engine_make(void) {
    cu_engine *e = (cu_engine *)calloc(1, sizeof *e);
    if (!e) return NULL;
    e->threads = (cu_thread *)calloc(CU_MAX_THREADS, sizeof *e->threads);
    e->stacks = (cu_stack *)calloc(CU_MAX_THREADS, sizeof *e->stacks);
    e->arena_size = CU_MAX_THREADS * STACK_BYTES;
    void *arena = mmap(NULL, e->arena_size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    e->arena = arena == MAP_FAILED ? NULL : (char *)arena;
    if (!e->threads || !e->stacks || !e->arena || !cu_shared_make(e)) {
        engine_free(e);
        return NULL;
    }
    // The lowest page of a stack is a guard: a kernel with large local arrays stops there. Tops are
    // spread over the cache's sets: at equal offsets, 128 fibres push each other out at every switch
    // (a tenth of a barrier's cost).
    for (int i = CU_MAX_THREADS - 1; i >= 0; i--) {
        char *lo = e->arena + (size_t)i * STACK_BYTES;
        size_t spread = (size_t)(i * 5 % 64) * 64;
        cu_stack_make(&e->stacks[i], lo + PAGE, STACK_BYTES - PAGE - spread);
        mprotect(lo, PAGE, PROT_NONE);
        e->stacks[i].next = e->free_stacks;
        e->free_stacks = &e->stacks[i];
    }
    cu_stack_home(&e->home);
    cu_fault_watch();
    pthread_once(&key_once, key_make);
    pthread_setspecific(end_of_thread, e);
    return e;
}

bool cu_engine_busy(void) {
    return cu_now && cu_now->running && cu_now->current;
}

bool cu_engine_own(const void *ptr) {
    const cu_engine *e = cu_now;
    const char *p = (const char *)ptr;
    if (!e) return false;
    if (e->call && p >= (const char *)e->call->own &&
        p < (const char *)e->call->own + e->call->own_size)
        return true;
    return (p >= e->arena && p < e->arena + e->arena_size) ||
           (p >= e->shared && p < e->shared + e->shared_limit);
}

const char *cu_engine_who(void) {
    cu_engine *e = cu_now;
    snprintf(e->who, sizeof e->who, "thread (%u,%u,%u) of block (%u,%u,%u) of %s", threadIdx.x,
             threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
             cu_kernel_name(e->call->fn));
    return e->who;
}

/* ---- who is next ---- */

void cu_engine_wake(cu_engine *e, cu_thread *t) {
    t->state = CU_RUNS;
    t->op = NULL;
    e->ready[(e->ready_head + e->n_ready++) % CU_MAX_THREADS] = t->id;
}

static cu_thread *next_ready(cu_engine *e) {
    if (e->n_ready == 0) return NULL;
    if (e->order == CU_EMU_RANDOM) {
        int at =
            (e->ready_head + (int)(cu_random(&e->random) % (uint64_t)e->n_ready)) % CU_MAX_THREADS;
        uint16_t swap = e->ready[at];
        e->ready[at] = e->ready[e->ready_head];
        e->ready[e->ready_head] = swap;
    }
    cu_thread *t = &e->threads[e->ready[e->ready_head]];
    e->ready_head = (e->ready_head + 1) % CU_MAX_THREADS;
    e->n_ready--;
    return t;
}

static void become(cu_engine *e, cu_thread *t) {
    e->current = t;
    threadIdx = t->idx;
}

static void fibre(void);

static cu_stack *stack_for(cu_engine *e, cu_thread *t) {
    if (!t->stack) {
        t->stack = e->free_stacks; // as many as threads: never NULL
        e->free_stacks = t->stack->next;
        cu_stack_begin(t->stack, fibre);
    }
    return t->stack;
}

void cu_engine_sleep(cu_engine *e) {
    cu_thread *self = e->current, *t = next_ready(e);
    if (!t) cu_engine_stuck(e);
    if (t == self) return;
    become(e, t);
    cu_stack_switch(self->stack, stack_for(e, t), false);
}

// A fibre: threads one after the other, until the next one has a stack of its own.
static void fibre(void) {
    cu_stack_entered(NULL);
    cu_engine *e = cu_now;
    for (;;) {
        cu_thread *self = e->current;
        e->call->thunk(e->call->fn, e->call->args);
        e = cu_now;
        self->state = CU_ENDED;
        e->ended++;
        e->gone[self->id / CU_WARP] |= 1u << (self->id % CU_WARP);
        cu_thread *t = next_ready(e);
        if (!t && e->ended < e->n_threads) cu_engine_stuck(e);
        cu_stack *mine = self->stack;
        self->stack = NULL;
        if (t && !t->stack) {
            t->stack = mine;
            become(e, t);
            continue;
        }
        mine->next = e->free_stacks;
        e->free_stacks = mine;
        if (t) become(e, t);
        cu_stack_switch(mine, t ? t->stack : &e->home, true);
    }
}

void cu_engine_abandon(int error) {
    cu_engine *e = cu_now;
    e->error = error;
    cu_stack_switch(e->current->stack, &e->home, true);
    __builtin_unreachable();
}

void cu_engine_fault(cu_emu_kind kind, const char *format, ...) {
    char text[800];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cu_engine_abandon(cu_emu_report(kind, "%s", text));
}

/* ---- a block, a grid ---- */

static void block_threads(cu_engine *e) {
    dim3 b = e->call->block;
    e->n_threads = (int)(b.x * b.y * b.z);
    e->ended = e->at_barrier = e->ready_head = e->n_ready = 0;
    int i = 0;
    for (unsigned z = 0; z < b.z; z++)
        for (unsigned y = 0; y < b.y; y++)
            for (unsigned x = 0; x < b.x; x++, i++) {
                cu_thread *t = &e->threads[i];
                t->idx = uint3{x, y, z};
                t->id = (uint16_t)i;
                t->n_copies = t->groups = 0;
            }
    for (int w = 0; w < CU_MAX_THREADS / CU_WARP; w++) {
        int lanes = e->n_threads - w * CU_WARP;
        e->gone[w] = lanes >= CU_WARP ? 0 : lanes <= 0 ? ~0u : ~0u << lanes;
        e->in_warp[w] = 0;
    }
    for (int k = 0; k < e->n_threads; k++)
        cu_engine_wake(e, &e->threads[e->order == CU_EMU_BACKWARD ? e->n_threads - 1 - k : k]);
}

// After an abandoned kernel, stacks stand in the middle of frames that nobody will finish.
static void take_back_stacks(cu_engine *e) {
    for (int i = 0; i < e->n_threads; i++) {
        cu_stack *s = e->threads[i].stack;
        if (!s) continue;
        s->next = e->free_stacks;
        e->free_stacks = s;
        e->threads[i].stack = NULL;
    }
    e->current = NULL;
}

static int run_block(cu_engine *e) {
    cu_shared_begin(e, e->call->smem);
    block_threads(e);
    if (cu_race) cu_race->block(e->block, e->shared, e->shared_limit);
    cu_thread *first = next_ready(e);
    become(e, first);
    cu_stack_switch(&e->home, stack_for(e, first), false);
    // Outside of the kernel again; reports name its last thread.
    if (!e->error) cu_shared_end(e);
    take_back_stacks(e);
    return e->error;
}

// Visits 0..n-1 in the order asked for. Random: steps by a number that has no divisor in common with
// n, which needs no table for millions of blocks.
static uint64_t block_at(cu_engine *e, uint64_t i, uint64_t n, uint64_t step, uint64_t from) {
    switch (e->order) {
    case CU_EMU_BACKWARD:
        return n - 1 - i;
    case CU_EMU_RANDOM:
        return (from + i * step) % n;
    default:
        return i;
    }
}

static uint64_t odd_step(cu_engine *e, uint64_t n) {
    if (n < 3) return 1;
    for (;;) {
        uint64_t a = 1 + cu_random(&e->random) % (n - 1), b = n, s = a;
        while (b) {
            uint64_t r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) return s;
    }
}

static void run_grid(cu_engine *e) {
    dim3 g = e->call->grid;
    uint64_t n = (uint64_t)g.x * g.y * g.z;
    uint64_t step = odd_step(e, n), from = cu_random(&e->random) % n;
    for (uint64_t i = 0; i < n && !e->error; i++) {
        uint64_t b = block_at(e, i, n, step, from);
        blockIdx = uint3{(unsigned)(b % g.x), (unsigned)(b / g.x % g.y), (unsigned)(b / g.x / g.y)};
        e->block = b;
        run_block(e);
    }
}

int cu_engine_run(const cu_call *call) {
    if (!cu_now) cu_now = engine_make();
    cu_engine *e = cu_now;
    if (!e) return cudaErrorMemoryAllocation;
    cu_lock();
    e->order = cu_rt.config.order;
    e->random = cu_random(&cu_rt.random);
    cu_unlock();
    e->call = call;
    e->error = 0;
    blockDim = uint3{call->block.x, call->block.y, call->block.z};
    gridDim = uint3{call->grid.x, call->grid.y, call->grid.z};
    e->running = true;
    if (cu_race) cu_race->kernel(call);
    run_grid(e);
    if (cu_race && !e->error) e->error = cu_race->failed();
    e->running = false;
    return e->error;
}
