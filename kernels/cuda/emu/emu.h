/* kernels/cuda/emu/emu.h - the emulated device's switches, reports and closures, as C functions.
 *
 * Who runs a program on the emulated device needs none of this: the environment sets the same things
 * (SUPERPOD_EMU_*, README.md). Tests use it to choose orders and to read what was found; fakes of
 * libraries that queue work on a stream (collectives, matrix products) use cu_emu_enqueue().
 *
 * A report is printed to stderr when it is made, counted by kind, and makes the launch fail with a
 * sticky error, as the fault would on a GPU.
 *
 * Thread: any; cu_emu_configure() and cu_emu_reset() only while no stream has work. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/** In which order the threads of a block, and the blocks of a grid, get the processor. */
typedef enum cu_emu_order {
    CU_EMU_FORWARD,
    CU_EMU_BACKWARD,
    CU_EMU_RANDOM,
} cu_emu_order;

/** When work on a stream happens: at once; when something waits for it; or whenever. */
typedef enum cu_emu_pace {
    CU_EMU_EAGER,
    CU_EMU_LAZY,
    CU_EMU_MIXED,
} cu_emu_pace;

typedef struct cu_emu_config {
    cu_emu_order order;
    cu_emu_pace pace;
    uint64_t seed;
    int protect;         /* device memory is unreadable for the host outside of device work */
    int quiet;           /* reports are counted and kept but not printed */
    int devices;         /* fixed by the first call of the runtime */
    int arch;            /* 80, 89, 90 or 100: what device properties say */
    size_t memory_bytes; /* of each device */
    int driver;          /* what cudaDriverGetVersion() says; 0: there is none */
    int peers;           /* 0: a device reaches another's memory only through the host */
} cu_emu_config;

void cu_emu_get_config(cu_emu_config *config);
void cu_emu_configure(const cu_emu_config *config);

typedef enum cu_emu_kind {
    CU_EMU_ANY,         /* all of the below, for counting */
    CU_EMU_BARRIER,     /* a barrier that some threads never reach, or two different ones */
    CU_EMU_DIVERGED,    /* lanes of one warp in different warp operations */
    CU_EMU_OUTSIDE,     /* a lane that its own mask does not name, or a mask of absent lanes */
    CU_EMU_MISALIGNED,  /* ldmatrix, cp.async or a vector access */
    CU_EMU_ADDRESS,     /* illegal address: guard page, freed or host memory */
    CU_EMU_OVERRUN,     /* the bytes beside an array were changed */
    CU_EMU_RACE,        /* two accesses that nothing orders */
    CU_EMU_HOST_ACCESS, /* the host dereferenced device memory */
    CU_EMU_TRAP,        /* __trap() or assert in a kernel */
    CU_EMU_MISUSE,      /* the runtime was called in a way that a GPU would punish later */
    CU_EMU_KINDS
} cu_emu_kind;

/** Reports of a kind since the last cu_emu_reset(). */
int cu_emu_reports(cu_emu_kind kind);
/** The words of the last report, or "". Owner: the emulator, until the next report. */
const char *cu_emu_last_report(void);
/** Forgets reports, errors, streams, device memory and injections: a process as new. */
void cu_emu_reset(void);

/** The n-th launch from now (1: the next) fails with this sticky error when it runs; 0: none. */
void cu_emu_fail_launch(int64_t n, cudaError_t error);
/** The n-th device allocation from now fails; 0: none. */
void cu_emu_fail_malloc(int64_t n);
/** Kernels run so far, those of graphs counted one by one. */
int64_t cu_emu_launches(void);

/** A closure is asked again later when it answers this: it has nothing to do yet. */
#define CU_EMU_AGAIN (-1)
/** Queues fn(arg) on a stream, as a kernel: lazy and random paces and graphs hold for it too. fn may
 * run many times (a graph), on any thread that drives the stream, and answers 0, CU_EMU_AGAIN or a
 * cudaError_t that becomes the device's sticky error. drop(arg) runs once, when nothing will call fn
 * any more. No runtime call may be made by fn.
 * Owner: arg is moved, also on failure. Errors: what a launch on this stream would say. */
cudaError_t cu_emu_enqueue(cudaStream_t stream, const char *name, int (*fn)(void *arg), void *arg,
                           void (*drop)(void *arg));
/** Whether [ptr, ptr+bytes) is inside one live allocation of device memory, or pinned memory: what
 * a kernel may touch. */
int cu_emu_is_device(const void *ptr, size_t bytes);
/** Makes a report of a fake library. Errors: the sticky error to answer for this kind. */
int cu_emu_report(cu_emu_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Of the emulated cuBLASLt: questions to its heuristic so far, and products queued. */
int64_t cu_emu_lt_heuristics(void);
int64_t cu_emu_lt_products(void);

#ifdef __cplusplus
}
#endif
