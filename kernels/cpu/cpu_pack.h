/* kernels/cpu/cpu_pack.h - weights as the cpu kernels read them: one layout for every instruction
 * set.
 *
 * A tile is 16 neighbouring outputs (the last one is filled up with zero rows); lane = output.
 * Inside a tile the segments of K run side by side, so that a single stream of memory feeds as many
 * independent fma chains as there are segments:
 *
 *   tile: | phase 0 | phase 1 | ...                 (segments differ in length by few elements)
 *   phase, F32 F16:  | j 0: seg a, seg b, ... | j 1: seg a, seg b, ... | ...     each 16 values
 *   phase, BF16:     | j 0,1: seg a, seg b, ... | j 2,3: ... | odd last j: seg a, seg b, ... |
 *                      each 16 pairs (value of j, value of j+1): one 64-byte load is widened by a
 *                      shift and a mask, with no shuffle
 *
 * A phase is a run of j for which the same segments are still active (not yet at their end). With
 * equal segments there is one phase. Nothing is padded inside a tile: it holds 16 K elements.
 *
 * Measured (K 2048, N 8192, one thread, of the plain read rate): 8 separate segment streams 0.78,
 * side by side 0.91-0.97.
 *
 * Thread: immutable once packed. */
#pragma once

#include "kernels/args.h"
#include "kernels/cpu/cpu_pool.h"
#include "kernels/dev.h"

typedef struct sp_cpu_phase {
    int32_t len;              /* j in this phase */
    int32_t n_active;         /* segments in it */
    int32_t seg[SP_SEGMENTS]; /* which */
    int32_t k0[SP_SEGMENTS];  /* element of K where each begins here */
    int32_t before;           /* elements of the tile (a lane's) before this phase */
} sp_cpu_phase;

/** Memory of several weights: small ones share huge pages too, since a page walk for every 64 lines
 * is dear inside a virtual machine (the demo model's products: 3 % faster). */
typedef struct sp_cpu_slab {
    unsigned char *base; /* owned */
    size_t bytes, used;
    int n_weights;
} sp_cpu_slab;
#define SP_CPU_SLAB_BYTES ((size_t)8 << 20)

struct sp_weight {
    sp_dtype dtype;
    int32_t rows, cols, n_tiles;
    int32_t elt; /* bytes of an element */
    size_t tile_bytes;
    sp_segments seg;
    int32_t n_phases;
    sp_cpu_phase phase[SP_SEGMENTS];
    unsigned char *tiles; /* in `slab` */
    sp_cpu_slab *slab;
};

/** Zeroed memory, 64-byte aligned; big pieces are mapped and ask for huge pages. NULL when short.
 * Owner: caller, sp_cpu_mem_free() with the same size. */
void *sp_cpu_mem_take(size_t bytes);
void sp_cpu_mem_free(void *p, size_t bytes);

size_t sp_cpu_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype);

/** Turns 16 rows of `n` 32-bit values: value j of every row goes to the 64 bytes at to + j * step.
 * A row that is NULL counts as zeros; rows need no alignment. */
typedef void sp_cpu_turn(unsigned char *to, size_t step, const unsigned char *const *rows,
                         int32_t n);

typedef struct sp_cpu_packer {
    sp_cpu_pool *pool;
    sp_cpu_turn *turn;
    sp_cpu_slab *slab; /* being filled; NULL at first, replaced when full; held */
} sp_cpu_packer;

/** Lays `parts` out, the tiles spread over the pool.
 * Owner:  caller, sp_cpu_weight_free(). `parts` are read during the call only.
 * Errors: SP_E_UNSUPPORTED dtype; SP_E_NOMEM */
SP_NODISCARD sp_status sp_cpu_weight_pack(sp_weight **out, sp_cpu_packer *packer,
                                          const sp_weight_part *parts, int n_parts,
                                          const sp_segments *seg, sp_err *err);
void sp_cpu_weight_free(sp_weight *w);
/** Lets go of the slab that is being filled (it lives on while a weight is in it). */
void sp_cpu_slab_close(sp_cpu_slab *slab);

/** Where in a tile (in elements) value `j` of the phase's a-th segment lies, of output `lane`. */
static inline size_t sp_cpu_phase_at(const sp_weight *w, const sp_cpu_phase *p, int a, int32_t j,
                                     size_t lane) {
    const size_t first = (size_t)p->before, n = (size_t)p->n_active;
    if (w->dtype == SP_DTYPE_BF16 && j < p->len / 2 * 2)
        return (first + ((size_t)(j / 2) * n + (size_t)a) * 2) * SP_LANES + 2 * lane +
               (size_t)(j % 2);
    return (first + (size_t)j * n + (size_t)a) * SP_LANES + lane;
}
