/* kernels/args.h - plain arguments of device operations, and the letters of every shape comment.
 *
 * Letters ("here" means on this rank):
 *   T tokens in this step   S sequences (or rows to sample)   E model dimension
 *   H query heads here      K key/value heads here            D head dimension
 *   F feed-forward columns here   V vocabulary   L layers here   N blocks   B tokens a block
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/dtype.h"

#include <stdint.h>

/** A row-major matrix; `stride` is in elements. Borrowed memory. */
typedef struct sp_mat {
    void *data;
    int32_t rows, cols, stride;
    sp_dtype dtype; /* activations are f32 on CPU */
} sp_mat;

/** The 8-segment rule (same bits: contract 2): where this rank's segments of K begin and end.
 * edge[0] = 0, edge[n] = K here, ascending, n a power of two up to 8. An output element is the tree
 * sum of its n segment sums: ((0+1)+(2+3))+((4+5)+(6+7)) cut to n. Empty segments count as +0. */
#define SP_SEGMENTS 8
typedef struct sp_segments {
    int32_t n;
    int32_t edge[SP_SEGMENTS + 1];
} sp_segments;

/** Segments of a whole K of `units` units of `unit_size` elements each (TP 1): edge i is
 * floor(i * units / 8) * unit_size. A unit is a head for attention output, else 1 element. */
sp_segments sp_segments_of(int32_t units, int32_t unit_size);

/** The part that rank `tp_rank` of `tp` (1, 2, 4, 8) holds: 8/tp neighbouring segments, edges
 * relative to its first. `first` (may be NULL) receives the offset of its K in the whole. */
sp_segments sp_segments_slice(sp_segments whole, int tp, int tp_rank, int32_t *first);

/** Rows to pack: `rows` x `cols` of `dtype`, row-major, `stride` elements from row to row. */
typedef struct sp_weight_part {
    const void *data;
    sp_dtype dtype; /* F32, F16 or BF16; the parts of one weight agree */
    int32_t rows, cols;
    int64_t stride;
} sp_weight_part;

typedef enum sp_act {
    SP_ACT_SILU,
    SP_ACT_GELU,      /* erf */
    SP_ACT_GELU_TANH, /* tanh approximation */
} sp_act;

/** One layer's part of a paged cache of one group.
 * A block is one contiguous piece: [layer][K|V][kv head][token][dim] + trailer. */
typedef struct sp_kv_view {
    unsigned char *base;  /* of block 0 */
    size_t block_bytes;   /* from block to block, trailer included */
    size_t layer_offset;  /* bytes from a block's start to this layer's K; V follows its K */
    int32_t block_tokens; /* B */
    int32_t n_kv_heads;   /* K */
    int32_t head_dim;     /* D */
    sp_dtype dtype;       /* F32, F16 or BF16 */
} sp_kv_view;

/** Bytes of one key or value row of one head, and from a key row to its value row. */
static inline size_t sp_kv_row_bytes(const sp_kv_view *kv) {
    return (size_t)kv->head_dim * (size_t)sp_dtype_bits(kv->dtype) / 8;
}
static inline size_t sp_kv_v_offset(const sp_kv_view *kv) {
    return (size_t)kv->n_kv_heads * (size_t)kv->block_tokens * sp_kv_row_bytes(kv);
}
/** The key row of position `pos` and kv head `head` of a sequence with block table `blocks`. */
static inline unsigned char *sp_kv_k_row(const sp_kv_view *kv, const int32_t *blocks, int32_t head,
                                         int32_t pos) {
    const size_t block = (size_t)blocks[pos / kv->block_tokens];
    const size_t row = (size_t)head * (size_t)kv->block_tokens + (size_t)(pos % kv->block_tokens);
    return kv->base + block * kv->block_bytes + kv->layer_offset + row * sp_kv_row_bytes(kv);
}

/** The rows of one sequence in a step: rows row0..row0+n_rows-1 of the activations are its
 * positions pos0..pos0+n_rows-1. blocks[p / B] is the block of position p. */
typedef struct sp_seq_rows {
    int32_t row0, n_rows, pos0;
    const int32_t *blocks;
} sp_seq_rows;

/** cos and sin by position: [n_positions][dims/2] f32, from kernels/math.h only. */
typedef struct sp_rope_table {
    const float *cos, *sin;
    int32_t n_positions;
    int32_t dims;     /* rotary dimensions, even, <= D; pair i is (i, i + dims/2), or */
    bool interleaved; /* (2i, 2i+1) when set */
} sp_rope_table;

/** Rotates q and k by position and writes k and v (as rounded) into the cache.
 * qkv [T, (H + 2K) * D]: rows q | k | v; q is rotated in place. */
typedef struct sp_rope_store_args {
    sp_mat qkv;
    int32_t n_heads; /* H */
    sp_rope_table rope;
    sp_kv_view kv;
    const sp_seq_rows *seqs;
    int32_t n_seqs;
} sp_rope_store_args;

/** out[t, h*D..] = softmax(scale * q K^T) V over positions 0..pos(t) of t's sequence, paged.
 * out [T, H*D]; q are the first H*D columns of qkv. Query head h reads kv head h / (H/K).
 * `window` > 0 keeps only the last `window` positions (the query's own included). */
typedef struct sp_attn_args {
    sp_mat out, qkv;
    int32_t n_heads;
    float scale;
    int32_t window; /* 0: full */
    sp_kv_view kv;
    const sp_seq_rows *seqs;
    int32_t n_seqs;
} sp_attn_args;

/** Absolute positions of one attention split (same bits: contract 5). */
#define SP_ATTN_SPLIT 256
/** Largest head dimension of attend(). */
#define SP_HEAD_DIM_MAX 512
/** Outputs of one packed tile, and virtual lanes of every reduction. */
#define SP_LANES 16

/** One draw of a step: the plain side of runtime/gen/params.h, whose order and bits it keeps
 * (runtime/gen/sampler.h is the specification). Spans are of the arrays in sp_draw_args. */
typedef struct sp_draw {
    int32_t row;  /* of the logits */
    int32_t slot; /* of sp_draw_args.last: where the token is kept for a step to come */
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    int32_t choice, position;
    uint64_t seed;
    int32_t n_logprobs; /* -1: none; how many most likely ones besides */
    int32_t prompt0,
        n_prompt; /* span of tokens: what penalties look at; 0 long when they are off */
    int32_t output0, n_output;   /* likewise */
    int32_t bias0, n_bias;       /* span of bias, an id at most once; bans (-inf) besides */
    int32_t allowed0, n_allowed; /* span of tokens; n_allowed -1: all are allowed */
} sp_draw;

typedef struct sp_draw_bias {
    int32_t id;
    float value;
} sp_draw_bias;

/** What a draw gave; ids and log-probabilities as sp_sample of runtime/gen/sampler.h. */
#define SP_DRAW_TOP_MAX 20
typedef struct sp_drawn {
    int32_t id; /* -1: no token; last[slot] is then 0 */
    float logprob;
    int32_t
        rank; /* without a token: 0 the row is broken (NaN, +inf, all -inf), 1 masks left nothing */
    int32_t n_top;
    int32_t top_id[SP_DRAW_TOP_MAX];
    float top_logprob[SP_DRAW_TOP_MAX];
} sp_drawn;

typedef struct sp_draw_args {
    const float *logits; /* device: [R, ld], V columns used, padding excluded */
    int32_t ld, V;
    int32_t n;            /* draws */
    const sp_draw *draws; /* host arrays, as they are until submit() */
    const int32_t *tokens;
    int32_t n_tokens;
    const sp_draw_bias *bias;
    int32_t n_bias;
    int32_t *last;   /* device: [slots] */
    sp_drawn *drawn; /* device: [n]; the caller downloads it */
} sp_draw_args;
