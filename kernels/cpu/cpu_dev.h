/* kernels/cpu/cpu_dev.h - the cpu backend's own state, shared by cpu_dev.c and cpu_attend.c.
 *
 * Operations run at once, spread over the pool in ranges of independent outputs; small ones stay on
 * the caller. Nothing is allocated after open() but weights: pack() grows the panel for the widest
 * one, so that gemm() finds it ready.
 *
 * Thread: the device's; the pool's threads see only what a task needs. */
#pragma once

#include "kernels/cpu/isa.h"

#define SP_CPU_UNITS 256                     /* most pieces of attention worked on split by split */
#define SP_CPU_PART_FLOATS ((size_t)2 << 20) /* their results before merging */

typedef struct sp_cpu {
    sp_cpu_pool *pool;
    const sp_cpu_isa *isa;
    int n_threads;
    sp_cpu_packer packer; /* its slab is held */
    float *panel;         /* owned */
    size_t panel_floats;
    float *scratch; /* owned: isa->attn->scratch_floats for each thread */
    size_t scratch_bytes;
    float *parts; /* owned: SP_CPU_PART_FLOATS of results, then the states; NULL with one thread */
    sp_cpu_attn *units; /* owned, SP_CPU_UNITS */
    sp_err fault;
    sp_ticket last;
    char detail[64];
} sp_cpu;

/** Work that is not worth a second thread: waking and waiting cost 1 to 2 us. */
#define SP_CPU_ALONE_NS 5000

/** A range of pieces, done by one thread. */
typedef void sp_cpu_range(void *ctx, int thread, int32_t i0, int32_t i1);

/** Runs pieces 0..n-1, each of about `ns` nanoseconds, in ranges of whole multiples of `grain`. */
void sp_cpu_spread(sp_cpu *cpu, sp_cpu_range *fn, void *ctx, int32_t n, int32_t grain, double ns);

void sp_cpu_attend(sp_cpu *cpu, const sp_attn_args *a);
