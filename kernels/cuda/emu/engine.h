/* kernels/cuda/emu/engine.h - one block of threads on one host thread.
 *
 * Threads of the block are fibres: exactly one runs, until it meets others (barrier, warp operation)
 * or ends; then it switches straight to the next ready one. A fibre that ends lends its stack to the
 * next thread that has not begun, so that a kernel without barriers runs on one stack.
 *
 * Thread: each host thread has its own engine; nothing here is shared. */
#pragma once

#include "kernels/cuda/emu/device.h"
#include "kernels/cuda/emu/inside.h"

#define CU_WARP 32
#define CU_MAX_STATIC_SHARED (48 * 1024)
#define CU_MAX_SHARED_OBJECTS 64

enum {
    CU_RUNS,
    CU_AT_BARRIER,
    CU_IN_WARP,
    CU_ENDED
};

typedef struct cu_copy { /* one cp.async that has not happened yet */
    void *dst;
    const void *src;
    uint32_t bytes, from_src; /* the rest is zeros */
    uint32_t group;           /* 0: not committed */
    const char *file;
    int line;
} cu_copy;

typedef struct cu_thread {
    uint3 idx;
    uint16_t id;
    uint8_t state;
    cu_stack *stack;
    /* What it waits for. */
    const void *op;
    uint32_t mask;
    void *slot;
    const char *file;
    int line;
    /* cp.async */
    cu_copy *copies;
    uint32_t n_copies, cap_copies, groups;
} cu_thread;

typedef struct cu_shared_object {
    const void *key;
    char *at;
    size_t size;
    const char *name;
} cu_shared_object;

typedef struct cu_engine {
    bool running;
    const cu_call *call;
    cu_thread *current, *threads;
    int n_threads, ended, at_barrier, error;
    const cu_thread *first_there;               /* at the barrier */
    uint32_t in_warp[CU_MAX_THREADS / CU_WARP]; /* lanes that wait for others of their warp */
    uint32_t gone[CU_MAX_THREADS / CU_WARP];    /* lanes that ended or never were */
    uint64_t block;
    uint64_t random;
    cu_emu_order order;
    cu_stack home, *free_stacks, *stacks;
    char *arena;
    size_t arena_size;
    uint16_t ready[CU_MAX_THREADS];
    int ready_head, n_ready;
    /* Shared memory of the block that runs. */
    char *shared;
    size_t shared_used, shared_limit;
    char *dynamic;
    int n_objects;
    cu_shared_object objects[CU_MAX_SHARED_OBJECTS];
    /* A fault that a signal found. */
    const void *fault_at, *fault_pc;
    bool fault_wild, fault_trap;
    char who[400];
} cu_engine;

extern CU_HIDDEN __thread cu_engine *cu_now __attribute__((tls_model("initial-exec")));

/* Makes a waiting thread ready; and gives the processor away until somebody does so for us. */
CU_HIDDEN void cu_engine_wake(cu_engine *e, cu_thread *t);
CU_HIDDEN void cu_engine_sleep(cu_engine *e);
/* Reports a fault of the kernel and leaves it. */
__attribute__((noreturn)) CU_HIDDEN void cu_engine_fault(cu_emu_kind kind, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Nobody can run: says who waits where. */
__attribute__((noreturn)) CU_HIDDEN void cu_engine_stuck(cu_engine *e);

/* ---- shared.cc ---- */
CU_HIDDEN bool cu_shared_make(cu_engine *e);
CU_HIDDEN void cu_shared_free(cu_engine *e);
CU_HIDDEN void cu_shared_begin(cu_engine *e, size_t dynamic);
CU_HIDDEN void cu_shared_end(cu_engine *e); /* looks at the bytes beside each object */

/* ---- fault.cc ---- */
CU_HIDDEN void cu_fault_watch(void); /* this host thread's signals */
CU_HIDDEN void cu_fault_unwatch(void);
