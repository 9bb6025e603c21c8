/* kernels/cuda/emu/inside.h - what the emulator's own files know of one another.
 *
 *   api_*.cc (CUDA's names) -> stream.cc (queues) -> engine.cc (blocks, warps) -> fibre.cc (stacks)
 *                                   memory.cc (device and pinned memory), report.cc (switches, words)
 *
 * One lock, cu_rt.lock, guards streams, events, graphs, allocations and reports; it is never held
 * while a kernel or a closure runs. Each host thread that runs kernels has its own engine.
 *
 * Thread: as each comment says. */
#pragma once

#include "kernels/cuda/emu/emu.h"

#include <pthread.h>
#include <stdbool.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1 /* clang's word for it */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define CU_ASAN 1
#else
#define CU_ASAN 0
#endif
#define CU_HIDDEN __attribute__((visibility("hidden")))

#define CU_MAX_DEVICES 16
#define CU_MAX_THREADS 1024 /* of a block */
#define CU_MAX_ARGS_BYTES 32764

typedef struct cu_device {
    size_t used;
    cudaError_t sticky;
    struct CUstream_st *legacy;
} cu_device;

typedef struct cu_rt {
    pthread_mutex_t lock; /* recursive: a report may be made with or without it */
    pthread_cond_t moved; /* a stream advanced */
    cu_emu_config config;
    bool started;
    cu_device device[CU_MAX_DEVICES];
    int64_t launches, fail_launch, fail_malloc;
    cudaError_t fail_error;
    uint64_t random;
} cu_rt_state;
extern CU_HIDDEN cu_rt_state cu_rt;

/* ---- report.cc ---- */
CU_HIDDEN void cu_rt_start(void); /* reads the environment once */
CU_HIDDEN void cu_lock(void);
CU_HIDDEN void cu_unlock(void);
CU_HIDDEN uint64_t cu_random(uint64_t *state);
CU_HIDDEN int cu_random_below(int n); /* lock held */
CU_HIDDEN void cu_reports_forget(void);
/* "file.cu:12 (kernel)" of a code address, by addr2line where there is one. */
CU_HIDDEN void cu_place_of(const void *pc, char *out, size_t size);

/* The same of a kernel's function. Owner: this host thread, until its next call. */
CU_HIDDEN const char *cu_kernel_name(const void *fn);

/* ---- memory.cc ---- */
CU_HIDDEN cudaError_t cu_mem_take(void **out, size_t size, int device);
CU_HIDDEN cudaError_t cu_mem_drop(void *ptr);
CU_HIDDEN bool cu_mem_find(const void *ptr, void **base, size_t *size, int *device);
CU_HIDDEN bool cu_mem_inside(const void *ptr); /* the arena, live or not; no lock */
CU_HIDDEN void cu_mem_describe(const void *ptr, char *out, size_t size);
CU_HIDDEN void cu_mem_open(void); /* device work begins: readable */
CU_HIDDEN void cu_mem_close(void);
CU_HIDDEN void cu_mem_check(const void *fn); /* the bytes beside allocations, after a kernel */
CU_HIDDEN void cu_mem_reset(void);
CU_HIDDEN cudaError_t cu_pin_take(void **out, size_t size);
CU_HIDDEN cudaError_t cu_pin_drop(void *ptr);
CU_HIDDEN cudaError_t cu_pin_add(void *ptr, size_t size, bool own);
CU_HIDDEN cudaError_t cu_pin_remove(void *ptr);
CU_HIDDEN bool cu_pin_find(const void *ptr, void **base, size_t *size);

/* ---- fibre.cc ---- */
typedef struct cu_stack {
    void *sp;   /* where it stands while it does not run */
    void *fake; /* asan's */
    char *lo;
    size_t size;
    void *uc; /* ucontext_t, where the switch is not written by hand */
    struct cu_stack *next;
} cu_stack;
CU_HIDDEN void cu_stack_make(cu_stack *s, char *lo, size_t size);
CU_HIDDEN void cu_stack_begin(cu_stack *s, void (*entry)(void));
CU_HIDDEN void cu_stack_switch(cu_stack *from, cu_stack *to, bool last);
CU_HIDDEN void cu_stack_entered(cu_stack *from); /* first thing that an entry does */
CU_HIDDEN void cu_stack_home(cu_stack *s);       /* describes the thread's own stack */

/* ---- engine.cc ---- */
typedef struct cu_call {
    void (*thunk)(void *fn, void **args);
    void *fn;
    void **args;
    dim3 grid, block;
    size_t smem;
    const void *own; /* where args and what they point to lie */
    size_t own_size;
} cu_call;
/** Runs a kernel to its end on this host thread. Errors: the sticky error. */
CU_HIDDEN int cu_engine_run(const cu_call *call);
/** Whether this host thread is inside a kernel right now. */
CU_HIDDEN bool cu_engine_busy(void);
/** Leaves the kernel for good: the fibre that called never returns. */
__attribute__((noreturn)) CU_HIDDEN void cu_engine_abandon(int error);
/** "thread (1,0,0) of block (0,0,0) of kernel_name". */
CU_HIDDEN const char *cu_engine_who(void);
CU_HIDDEN bool cu_engine_own(const void *ptr); /* shared memory, a fibre's stack, arguments */
CU_HIDDEN size_t cu_shared_most(void);         /* of a block, by architecture */

/* ---- race.cc; NULL where the kernels were not compiled for it ---- */
typedef struct cu_race_hooks {
    void (*kernel)(const cu_call *call); /* begins */
    void (*block)(uint64_t block, const void *shared, size_t size);
    void (*barrier)(void);
    void (*warp)(int warp, uint32_t mask);
    void (*access)(const void *ptr, size_t bytes, bool write, bool atomic, const void *pc);
    int (*failed)(void); /* after the last block: the sticky error, or 0 */
} cu_race_hooks;
extern CU_HIDDEN const cu_race_hooks *cu_race;
