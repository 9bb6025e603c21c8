/* kernels/cpu/isa.h - what cpu_dev.c asks of a file compiled once per instruction set.
 *
 * isa_gemm.c, isa_attn.c and isa_ops.c export one const table each and per instruction set
 * (sp_isa_gemm_avx2, ...). A table's functions work on a range of independent pieces (tiles, rows,
 * queries), so that cpu_dev.c may give the ranges to any threads without changing a bit. They take
 * no lock, allocate nothing and cannot fail.
 *
 * Thread: any number at once, on ranges that do not overlap. */
#pragma once

#include "kernels/cpu/cpu_pack.h"

/** One matrix product of up to `group_rows` rows. */
typedef struct sp_cpu_gemm {
    const sp_weight *w;
    const float *x; /* [n_rows, K] */
    float *y;       /* [n_rows, N] */
    ptrdiff_t x_stride, y_stride;
    const float *bias; /* [N] or NULL */
    int32_t n_rows;
    float *panel; /* x as the kernels read it: group_rows * K floats */
} sp_cpu_gemm;

typedef struct sp_isa_gemm {
    int32_t group_rows; /* most rows of one sp_cpu_gemm */
    /** Pieces that the panel is made in. */
    int32_t (*n_blocks)(const sp_cpu_gemm *g);
    void (*pack)(const sp_cpu_gemm *g, int32_t block0, int32_t block1);
    /** Computes the outputs of tiles tile0..tile1-1 from the whole panel. */
    void (*tiles)(const sp_cpu_gemm *g, int32_t tile0, int32_t tile1);
} sp_isa_gemm;

/** Queries of one sequence that read the same kv head. A query is (row, head of the group): number
 * i is row i / group, head kv_head * group + i % group. */
typedef struct sp_cpu_attn {
    const sp_attn_args *a;
    const sp_seq_rows *seq;
    int32_t kv_head, group;
    int32_t query0, n_queries; /* at most SP_ATTN_QUERIES */
} sp_cpu_attn;
#define SP_ATTN_QUERIES 64

/** Floats of the result of one query over one split: D unscaled outputs, filled up to 16, then the
 * greatest score and the sum of p. */
#define SP_ATTN_PART(head_dim) (((size_t)(head_dim) + 15) / 16 * 16 + 16)

typedef struct sp_isa_attn {
    size_t scratch_floats; /* of run() and split(), for any head dimension */
    /** All splits of these queries, merged, written to `out`. */
    void (*run)(const sp_cpu_attn *t, float *scratch);
    /** One split: parts[i * SP_ATTN_PART(D)] of query i. A query without a position in the split
     * gets no part. */
    void (*split)(const sp_cpu_attn *t, int32_t split, float *parts, float *scratch);
    /** Merges splits split0..split1-1, in this order, into the queries' states (both are n_queries
     * parts; the first split of a query begins its state) and writes `out` at a query's last. */
    void (*merge)(const sp_cpu_attn *t, int32_t split0, int32_t split1, const float *parts,
                  float *states);
} sp_isa_attn;

#define SP_ACT_COLS 2048

typedef enum sp_isa_fn {
    SP_FN_EXP,
    SP_FN_LOG,
    SP_FN_TANH,
    SP_FN_ERF
} sp_isa_fn;

typedef struct sp_isa_ops {
    void (*embed)(sp_mat y, const sp_weight *w, const int32_t *ids, int32_t row0, int32_t row1);
    void (*add_rmsnorm)(sp_mat y, sp_mat x, sp_mat partial, const float *bias, const float *weight,
                        float eps, int32_t row0, int32_t row1);
    void (*add)(sp_mat x, sp_mat partial, const float *bias, int32_t row0, int32_t row1);
    /** Piece i is SP_ACT_COLS columns (the last ones of a row: fewer) of row i / pieces a row. */
    void (*act_mul)(sp_mat y, sp_mat gate_up, sp_act act, int32_t piece0, int32_t piece1);
    /** Rows row0..row1-1 of sequence `seq`. */
    void (*rope_store)(const sp_rope_store_args *a, const sp_seq_rows *seq, int32_t row0,
                       int32_t row1);
    sp_cpu_turn *turn;
    /** The vector functions themselves: the window of tests/kernels/test_math.c. */
    void (*math)(sp_isa_fn fn, float *y, const float *x, int32_t n);
} sp_isa_ops;

typedef struct sp_cpu_isa {
    const char *name; /* "avx512", "avx2", "generic" */
    const sp_isa_gemm *gemm;
    const sp_isa_attn *attn;
    const sp_isa_ops *ops;
} sp_cpu_isa;

/** The instruction sets that this machine runs, the fastest first, generic last, then NULL. */
const sp_cpu_isa *const *sp_cpu_isas(void);

#if defined(__x86_64__)
extern const sp_isa_gemm sp_isa_gemm_avx512, sp_isa_gemm_avx2;
extern const sp_isa_attn sp_isa_attn_avx512, sp_isa_attn_avx2;
extern const sp_isa_ops sp_isa_ops_avx512, sp_isa_ops_avx2;
#endif
extern const sp_isa_gemm sp_isa_gemm_generic;
extern const sp_isa_attn sp_isa_attn_generic;
extern const sp_isa_ops sp_isa_ops_generic;
