/* kernels/dev.h - one device, and the table of what every backend can do on it.
 *
 * Operations queue work and return nothing; the first fault sticks to the device and comes out of
 * poll(), so a forward pass reads as the model's equations and fails in one place. The CPU backends
 * do the work at once. Weights are opaque: pack() lays a matrix out as the backend likes, and gemm
 * never sees a row-major one.
 *
 * Same bits: every CPU backend (ref, and cpu on AVX2, AVX-512 or generic) gives the same bytes for
 * every operation, whatever the number of rows, threads or blocks. `ref` is the specification: its
 * source is the plain reading of the contract, and tests compare bytes.
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "kernels/args.h"

typedef struct sp_dev sp_dev;
typedef struct sp_weight sp_weight; /* a packed matrix [rows, cols]; the backend's own layout */
typedef uint64_t sp_ticket;

typedef struct sp_dev_config {
    const char *backend; /* "auto", "ref", "cpu", "cpu-avx2", "cpu-avx512", "cpu-generic" */
    int n_threads;       /* 0: as many as cores this process may use */
    bool pin_threads;    /* hwloc: one core a thread */
} sp_dev_config;

typedef struct sp_dev_ops {
    const char *name;
    sp_status (*open)(sp_dev *dev, const sp_dev_config *config, sp_err *err);
    void (*close)(sp_dev *dev);

    /** Zeroed device memory, 64-byte aligned. NULL when short. */
    void *(*alloc)(sp_dev *dev, size_t bytes);
    void (*free)(sp_dev *dev, void *p, size_t bytes);

    /** Bytes pack() will take for these parts: used by the plan before anything is loaded. */
    size_t (*packed_bytes)(int32_t rows, int32_t cols, sp_dtype dtype);
    /** Concatenates the rows of `parts` into one weight and lays it out. Parts are read during the
     * call only. `seg` cuts its columns (edge[n] == cols).
     * Errors: SP_E_UNSUPPORTED dtype; SP_E_NOMEM. */
    sp_status (*pack)(sp_dev *dev, sp_weight **out, const sp_weight_part *parts, int n_parts,
                      const sp_segments *seg, sp_err *err);
    void (*weight_free)(sp_dev *dev, sp_weight *w);

    /** y[t,:] = row ids[t] of w, as f32. y [T,E], w [V,E]. */
    void (*embed)(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids);
    /** x[t,:] += (partial[t,:] + bias), then y[t,:] = x[t,:] * weight / rms(x[t,:]).
     * partial.data NULL: nothing is added; bias NULL: none. y may not be x. weight, bias f32 [E]. */
    void (*add_rmsnorm)(sp_dev *dev, sp_mat y, sp_mat x, sp_mat partial, const float *bias,
                        const float *weight, float eps);
    /** x[t,:] += (partial[t,:] + bias): the first half of add_rmsnorm, to the bit, for an x that
     * travels on before its next norm. bias NULL: none. */
    void (*add)(sp_dev *dev, sp_mat x, sp_mat partial, const float *bias);
    /** y[t,n] = tree over segments of sum_k x[t,k] w[n,k], plus bias[n] (f32, may be NULL).
     * y [T,N] f32, x [T,K] f32, w [N,K]. */
    void (*gemm)(sp_dev *dev, sp_mat y, sp_mat x, const sp_weight *w, const float *bias);
    void (*rope_store)(sp_dev *dev, const sp_rope_store_args *a);
    void (*attend)(sp_dev *dev, const sp_attn_args *a);
    /** y[t,f] = act(gate_up[t,f]) * gate_up[t,F+f]. y [T,F], gate_up [T,2F]. */
    void (*act_mul)(sp_dev *dev, sp_mat y, sp_mat gate_up, sp_act act);
    /** y[s,:] = x[rows[s],:]. */
    void (*gather_rows)(sp_dev *dev, sp_mat y, sp_mat x, const int32_t *rows);

    /** Ends what was queued since the last submit. */
    sp_ticket (*submit)(sp_dev *dev);
    /** SP_OK done; SP_AGAIN not yet at the deadline; an error: the first fault. */
    sp_status (*poll)(sp_dev *dev, sp_ticket ticket, int64_t deadline_ns, sp_err *err);
} sp_dev_ops;

struct sp_dev {
    const sp_dev_ops *ops;
    void *impl;         /* the backend's own */
    const char *detail; /* "avx512, 2 threads": for logs */
};

/** Opens a backend by name; "auto" takes the fastest this machine runs and logs which.
 * Errors: SP_E_UNSUPPORTED names the backend and what there is; SP_E_NOMEM; SP_E_DEVICE. */
SP_NODISCARD sp_status sp_dev_open(sp_dev *dev, const sp_dev_config *config, sp_err *err);
void sp_dev_close(sp_dev *dev);

/** Names that sp_dev_open() takes on this machine, NULL-terminated. */
const char *const *sp_dev_backends(void);

/* The backends compiled in (kernels/dev.c is the one registry). */
extern const sp_dev_ops sp_dev_ref;
extern const sp_dev_ops sp_dev_cpu;
