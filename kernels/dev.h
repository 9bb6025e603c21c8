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
 * A GPU is a plugin: a shared object beside the binary that is opened only when it is asked for, so
 * that nobody else needs its libraries. Its memory is not the host's (`host_memory` false): what
 * alloc() gives is filled by upload() and read by download(), and host arrays that an operation takes
 * (ids, rows, seqs and their block tables) do not change before the next submit().
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "kernels/args.h"

typedef struct sp_dev sp_dev;
typedef struct sp_weight sp_weight; /* a packed matrix [rows, cols]; the backend's own layout */
typedef uint64_t sp_ticket;

typedef struct sp_dev_config {
    /* "auto", "ref", "cpu", "cpu-avx2", "cpu-avx512", "cpu-generic", "cuda", "emu" */
    const char *backend;
    int index;        /* which of the machine's GPUs: one a rank */
    int n_threads;    /* 0: as many as cores this process may use */
    bool pin_threads; /* hwloc: one core a thread */
    bool fast;        /* cuda, emu: sums in any order, by the vendor's libraries where they are */
} sp_dev_config;

/** The largest step to come: what a device takes for itself is taken before the first one. */
typedef struct sp_dev_sizes {
    int32_t max_tokens, max_positions;
    int32_t n_heads, n_kv_heads, head_dim; /* here */
    int32_t max_cols;                      /* of a weight here: the longest K of a product */
    int32_t max_draws, vocab;              /* of one step, where tokens are drawn here; else 0 */
    bool fast; /* for reserve_bytes() alone: what open() has taken in this mode is counted too */
} sp_dev_sizes;

/** A decode step: every sequence has one row, and the logits of every row are wanted. */
typedef struct sp_dev_decode {
    const void *owner;       /* whose buffers the operations are given: the same ones every time */
    const int32_t *ids;      /* [n]; as for embed_fed() */
    const sp_seq_rows *seqs; /* [n], a row each */
    int32_t n, block_tokens;
    int32_t max_rows, max_positions; /* room in every buffer of the step; of the rope table */
} sp_dev_decode;

/** Which rows of a vocabulary a weight has, and the tokens that only the device knows. */
typedef struct sp_embed_part {
    const int32_t *last; /* device [n_last]; as for embed_fed() */
    int32_t n_last;
    int32_t first, vocab; /* the id of row 0; of all ranks together */
} sp_embed_part;

/** What the device did since it was opened, by its own clock. */
typedef struct sp_dev_times {
    uint64_t steps;
    uint64_t busy_ns; /* first operation of a step to its end */
    uint64_t idle_ns; /* end of a step to the begin of the next, where work was pending (rest()) */
} sp_dev_times;

typedef struct sp_dev_ops {
    const char *name;
    bool host_memory; /* alloc() gives memory of the host: nothing is ever copied */
    sp_status (*open)(sp_dev *dev, const sp_dev_config *config, sp_err *err);
    void (*close)(sp_dev *dev);

    /** Zeroed device memory, 64-byte aligned. NULL when short. */
    void *(*alloc)(sp_dev *dev, size_t bytes);
    void (*free)(sp_dev *dev, void *p, size_t bytes);

    /** Bytes pack() will take for so many rows, cut by `seg`: the plan asks before anything is
     * loaded. */
    size_t (*packed_bytes)(int32_t rows, const sp_segments *seg, sp_dtype dtype);
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

    /** Queues a copy to device memory; src is read during the call, unless it is of host_pin(). */
    void (*upload)(sp_dev *dev, void *dst, const void *src, size_t bytes);
    /** Queues a copy from device memory; dst, of host_alloc() or host_pin(), is valid after poll(). */
    void (*download)(sp_dev *dev, void *dst, const void *src, size_t bytes);
    /** Zeroed memory of the host that the device copies to and from. NULL when short. */
    void *(*host_alloc)(sp_dev *dev, size_t bytes);
    void (*host_free)(sp_dev *dev, void *p, size_t bytes);

    /* ---- only where host_memory is false; else NULL ---- */

    /** Draws tokens from logits that are on the device: the bits of runtime/gen/sampler.h. */
    void (*draw)(sp_dev *dev, const sp_draw_args *a);

    /** Bytes of device memory that nobody has taken. Errors: SP_E_DEVICE. */
    sp_status (*memory)(sp_dev *dev, uint64_t *free_bytes, uint64_t *total_bytes, sp_err *err);
    /** Device memory that reserve() will take: arithmetic alone, for the plan. */
    size_t (*reserve_bytes)(const sp_dev_sizes *sizes);
    /** Takes the device's own scratch, once the weights are packed, so that no step allocates.
     * Without it operations take it as they go. Errors: SP_E_NOMEM; SP_E_DEVICE. */
    sp_status (*reserve)(sp_dev *dev, const sp_dev_sizes *sizes, sp_err *err);

    /** Locks the pages of memory of the caller's, one piece at a time: download() may write there, and
     * upload() reads it until poll(), without a copy in between. False: this machine does not let
     * us, and the device works on. Undone before the memory goes. Optional. */
    bool (*host_pin)(sp_dev *dev, void *p, size_t bytes);
    void (*host_unpin)(sp_dev *dev, void *p);
    /** As embed(), but an id of -1 - slot is last[slot], device memory [n_last], as a draw of a step
     * before has left it there: the host need not know the token. */
    void (*embed_fed)(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids,
                      const int32_t *last, int32_t n_last);
    /** As embed_fed(), where w is a part of the vocabulary: rows of ids that are another rank's become
     * -0, to which a sum adds nothing: the sum over all ranks is what the whole would give, -0 too. */
    void (*embed_part)(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids,
                       const sp_embed_part *part);

    /** Optional. A decode step is about to be queued. True: it is queued already, as a recording of
     * an earlier one like it with this one's ids and sequences. False: the caller queues it (embed_fed()
     * to the product that gives logits) and calls decode_end(). What it queues is the same for every
     * step of an owner but for ids, sequences and rows; rows are 0, 1, ... n - 1.
     * Recorded steps have the bits of others. free() and weight_free() forget all recordings. */
    bool (*decode_begin)(sp_dev *dev, const sp_dev_decode *d);
    /** False: the recording failed, nothing has been queued: the caller queues all of it once more. */
    bool (*decode_end)(sp_dev *dev);

    /** Optional. Nothing is to be done until the next step: the time until then is not idleness. */
    void (*rest)(sp_dev *dev);
    void (*times)(sp_dev *dev, sp_dev_times *out);
} sp_dev_ops;

struct sp_dev {
    const sp_dev_ops *ops;
    void *impl;         /* the backend's own */
    const char *detail; /* "avx512, 2 threads": for logs */
    const char *note;   /* what is not as it was asked for, for one warning; NULL: nothing */
};

/** The operations of a backend by name ("auto": of the CPU), without opening a device.
 * Errors: SP_E_UNSUPPORTED names it and what there is; SP_E_NOTFOUND no such plugin. */
SP_NODISCARD sp_status sp_dev_find(const sp_dev_ops **out, const char *backend, sp_err *err);

/** Opens a backend by name; "auto" is cuda where there is a device, else the fastest of the CPU.
 * Errors: SP_E_UNSUPPORTED names the backend and what there is, or one that has no mode fast;
 *         SP_E_NOMEM; SP_E_DEVICE. */
SP_NODISCARD sp_status sp_dev_open(sp_dev *dev, const sp_dev_config *config, sp_err *err);
void sp_dev_close(sp_dev *dev);

/** Names of the CPU's backends that sp_dev_open() takes on this machine, NULL-terminated. "cuda" and
 * "emu" are taken besides, where their plugins are. */
const char *const *sp_dev_backends(void);

/* The backends compiled in (kernels/dev.c is the one registry). */
extern const sp_dev_ops sp_dev_ref;
extern const sp_dev_ops sp_dev_cpu;

/* ---- plugins ---- */

/** Of the tables in this header: another number is another build's plugin. */
#define SP_DEV_PLUGIN_ABI 3
#define SP_DEV_PLUGIN_ENTRY "superpod_device_plugin"

/** What a GPU says of itself, without being opened. */
typedef struct sp_dev_info {
    int n_devices;    /* that this process sees */
    int major, minor; /* compute capability */
    int units;        /* multiprocessors */
    int driver;       /* the newest toolkit that it serves: 1000 * major + 10 * minor */
    int toolkit;      /* that the plugin was built with */
    uint64_t memory_bytes, cache_bytes;
    char name[64];
    char address[16]; /* on the PCI bus, as /sys spells it: "0000:3b:00.0"; "": on none */
} sp_dev_info;

/** How one GPU reaches another's memory, as far as the driver tells. */
typedef struct sp_dev_link {
    bool peer;    /* by itself; false: through the host */
    bool atomics; /* ... and its atomics work there: as a rule NVLink, not PCI */
    int rank;     /* of performance: 0 is the fastest kind of this machine */
} sp_dev_link;

/** What `superpod bench gpu` needs beyond the operations. */
typedef struct sp_dev_meter {
    /** Microseconds of the device between two marks around what `work` queues; waits for it.
     * Errors: the device's fault. */
    sp_status (*elapsed)(sp_dev *dev, void (*work)(void *ctx), void *ctx, double *us, sp_err *err);
    /** Queues a copy inside device memory. */
    void (*copy)(sp_dev *dev, void *dst, const void *src, size_t bytes);
} sp_dev_meter;

/* How the ranks' devices talk to one another: comm/group_dev.h, which stands above this folder. */
struct sp_dev_groups;

typedef struct sp_dev_plugin {
    int abi;
    const char *name; /* "cuda" or "emu" */
    const sp_dev_ops *ops;
    /** Errors: SP_E_UNAVAILABLE no driver or no device; SP_E_UNSUPPORTED a driver older than the
     * toolkit, a compute capability without kernels, an index that is not there; SP_E_DEVICE. */
    sp_status (*probe)(sp_dev_info *out, int index, sp_err *err);
    const struct sp_dev_groups *groups; /* optional; NULL: one rank alone */
    /** Errors: SP_E_UNSUPPORTED an index that is not there; SP_E_DEVICE. */
    sp_status (*link)(sp_dev_link *out, int from, int to, sp_err *err);
    const sp_dev_meter *meter;
} sp_dev_plugin;

/** What a plugin exports under SP_DEV_PLUGIN_ENTRY. NULL: not of this abi. */
typedef const sp_dev_plugin *sp_dev_plugin_entry(int abi);

/** Opens the plugin of "cuda" or "emu": beside the binary, in ../lib/superpod of it, else where the
 * loader looks. It stays open for the life of the process.
 * Errors: SP_E_NOTFOUND  there is none, or it needs a library that is not there: the loader's words
 *         SP_E_UNSUPPORTED  it belongs to another build */
SP_NODISCARD sp_status sp_dev_plugin_open(const sp_dev_plugin **out, const char *backend,
                                          sp_err *err);
/** "cuda" or "emu". */
bool sp_dev_is_plugin(const char *backend);

/** What "auto" is here: "cuda" or "cpu"; `why` (of `size` bytes) says it in words for one log line,
 * and is empty where nobody would ask: there is no plugin at all. */
const char *sp_dev_auto(char *why, size_t size);
