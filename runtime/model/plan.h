/* runtime/model/plan.h - what goes where and how many bytes it takes, before anything is loaded.
 *
 * One function of plain numbers, used by `plan`, `serve` and `inspect`: the description and the
 * wishes go in; the partition (layers by stage, heads, feed-forward columns and vocabulary rows by
 * tensor-parallel rank) and the bytes of one rank come out, or one line that says what does not fit
 * and what would. Memory is asked for once and passed in, so that tests choose it.
 *
 *   limit = min(available, cgroup left) / ranks on the node, less 1/32 for the process itself
 *   total = packed + mapped + vectors + scratch + KV   must be at most limit
 *   KV    = min(max_num_seqs * max_model_len tokens, 40 % of limit - the rest), but at least one
 *           sequence of max_model_len
 *
 * A block of the cache is one contiguous piece, so that it moves in one transfer:
 *
 *   | layer 0: K [kv head][token][dim] | V the same | layer 1 ... | pad to 64 | trailer 64 |
 *
 * The partition is part.h's. Every rank has the same number of blocks (they share one block table),
 * so the rank with the least room decides it; the plan's bytes are those of the rank that needs
 * most, and sp_plan_rank_of() tells any other's.
 *
 * Shapes: letters of kernels/args.h. Thread: plain data. */
#pragma once

#include "runtime/format/model_dir.h"
#include "runtime/model/part.h"

#define SP_PLAN_SEQS_MAX 65536
#define SP_PLAN_BATCH_TOKENS_MAX (1 << 20)
#define SP_PLAN_BLOCK_TOKENS_MIN 8
#define SP_PLAN_BLOCK_TOKENS_MAX 128
#define SP_PLAN_BLOCKS_MAX ((int32_t)1 << 26)

/** Ends a block of the cache. */
typedef struct sp_kv_trailer {
    uint32_t generation;
    uint32_t unused;
    uint64_t checksum;
    unsigned char scales[48]; /* of quantised types; unused so far */
} sp_kv_trailer;

/** Where things lie in one block of one rank and cache group. */
typedef struct sp_kv_layout {
    int32_t n_layers, n_kv_heads, head_dim, block_tokens;
    sp_dtype dtype;
    size_t layer_bytes;    /* K and V of one layer */
    size_t trailer_offset; /* a multiple of 64 */
    size_t block_bytes;    /* a multiple of 64, trailer included */
    size_t token_bytes;    /* of one position, all layers, trailer not counted */
} sp_kv_layout;

sp_kv_layout sp_kv_layout_of(int32_t n_layers, int32_t n_kv_heads, int32_t head_dim,
                             int32_t block_tokens, sp_dtype dtype);
/** Bytes from a block's start to the K of `layer`; V follows its K. */
size_t sp_kv_layer_offset(const sp_kv_layout *l, int32_t layer);

/** Reads --kv-cache-dtype: "auto" (f32 on CPU), "f32"/"float32", "f16"/"float16", "bf16"/"bfloat16".
 * Errors: SP_E_UNSUPPORTED (fp8 and int8, by name), SP_E_INVALID (any other word). */
SP_NODISCARD sp_status sp_kv_dtype_parse(const char *word, sp_dtype *out, sp_err *err);

/** What this machine can give. A limit of UINT64_MAX is none. */
typedef struct sp_memory {
    uint64_t available_bytes; /* MemAvailable of /proc/meminfo */
    uint64_t cgroup_limit_bytes;
    uint64_t cgroup_left_bytes; /* limit less use; page cache that can be dropped is not use */
} sp_memory;

/** Reads /proc/meminfo and the memory limits of this process's cgroups (v1, v2 and both), beneath
 * `root` ("" for the machine; tests give a folder).
 * Errors: SP_E_IO no MemAvailable to be read. Limits that cannot be read count as none. */
SP_NODISCARD sp_status sp_memory_read(sp_memory *out, const char *root, sp_err *err);

/** As sp_dev_ops.packed_bytes. */
typedef size_t sp_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype);

typedef struct sp_plan_request {
    const sp_model_desc *desc;
    const sp_arch *arch;
    const sp_model_dir *dir;  /* the tensors' own types; NULL: all are desc->dtype */
    sp_packed_bytes *packed;  /* NULL: packing takes what the matrix takes */
    uint64_t mapped_bytes;    /* of weights that stay mapped beside the packed ones; mostly 0 */
    int32_t tp, pp;           /* 0 counts as 1 */
    const int32_t *pp_layers; /* [pp] layers of each stage, NULL: balanced */
    int32_t block_tokens;
    int32_t max_model_len; /* 0: the model's own */
    int32_t max_num_seqs;
    int32_t max_num_batched_tokens;
    int32_t max_rows; /* logits rows of one step; 0: min(max_num_batched_tokens, max_num_seqs) */
    int32_t n_blocks; /* 0: as the memory allows */
    sp_dtype kv_dtype;
    sp_memory memory;
    int32_t ranks_on_node; /* 0 counts as 1 */
} sp_plan_request;

/** f32 activations of one step, in elements. R: logits rows. 0: not on this rank. */
typedef struct sp_plan_scratch {
    uint64_t x, normed, partial; /* [T,E] each */
    uint64_t qkv;                /* [T,(H+2K)D] */
    uint64_t attn;               /* [T,HD] */
    uint64_t gate_up;            /* [T,2F] */
    uint64_t act;                /* [T,F] */
    uint64_t last;               /* [2R,E]: the wanted rows of x and partial */
    uint64_t logits;             /* [R,V], whole rows: TP rank 0 of the last stage */
    uint64_t logits_part;        /* [R,V here] of the last stage when tp > 1 */
    uint64_t rope;               /* [2,max_model_len,dims/2] */
    uint64_t ids;                /* [2,T] int32: whose rows of the embedding, when tp > 1 */
} sp_plan_scratch;

typedef struct sp_plan {
    int32_t tp, pp;
    bool exact;                           /* the same bits as tp 1 */
    sp_plan_stage stages[SP_PLAN_PP_MAX]; /* pp of them */
    sp_plan_slice slices[SP_PLAN_TP_MAX]; /* tp of them */
    int32_t max_model_len, max_num_seqs, max_num_batched_tokens, max_rows;

    /* of the rank that needs most: */
    int32_t most_stage, most_tp_rank;
    uint64_t n_params;     /* elements of the weights it holds */
    uint64_t weight_bytes; /* as the checkpoint has them */
    uint64_t packed_bytes; /* matrices as the device has them */
    uint64_t vector_bytes; /* norms and biases, f32 */
    uint64_t mapped_bytes;
    sp_plan_scratch scratch;
    uint64_t scratch_bytes; /* every range of `scratch`, each rounded up to 64 bytes */
    sp_kv_layout kv;
    int32_t n_blocks, blocks_per_seq; /* of max_model_len */
    uint64_t kv_bytes;
    double max_concurrency; /* sequences of max_model_len that fit at a time */
    uint64_t total_bytes, limit_bytes;
} sp_plan;

/** Computes the plan.
 * Errors: SP_E_INVALID       a wish out of its range, by the option's name; as sp_part_of()
 *         SP_E_UNSUPPORTED   a KV type
 *         SP_E_LIMIT         it does not fit: bytes wanted, bytes there are, what would fit */
SP_NODISCARD sp_status sp_plan_make(sp_plan *out, const sp_plan_request *req, sp_err *err);

/** The bytes of one rank of a plan made from `req`. */
typedef struct sp_plan_rank {
    uint64_t n_params, weight_bytes, packed_bytes, vector_bytes, scratch_bytes, kv_bytes;
    uint64_t total_bytes; /* with req->mapped_bytes */
    sp_kv_layout kv;
    sp_plan_scratch scratch;
} sp_plan_rank;
void sp_plan_rank_of(sp_plan_rank *out, const sp_plan *p, const sp_plan_request *req, int32_t stage,
                     int32_t tp_rank);
