/* kernels/cuda/attend_rows.cuh - which rows a block of attention works on, and where keys lie.
 *
 * A tile is up to M rows (token, head of the group) of one kv head, whose tokens stand side by side
 * in the step and share a block table: they read K and V once. Tiles are cut where the table
 * changes and at every multiple of `tokens` in t, so whether token t begins a tile is seen from
 * t - 1 alone. A row with a negative position is padding: it sees nothing and its output is 0.
 *
 * Thread: device code, one block. */
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.cuh"

/* sp_kv_view for device code. */
typedef struct cu_kv {
    unsigned char *base;
    size_t block_bytes, layer_offset, row_bytes, v_offset;
    int32_t B, K, D;
    sp_dtype dtype;
} cu_kv;

static inline bool cu_kv_is_known(const sp_kv_view *kv) {
    const bool type =
        kv->dtype == SP_DTYPE_F32 || kv->dtype == SP_DTYPE_F16 || kv->dtype == SP_DTYPE_BF16;
    return type && kv->head_dim >= 1 && kv->head_dim <= SP_HEAD_DIM_MAX && kv->block_tokens >= 1 &&
           kv->n_kv_heads >= 1;
}

static inline cu_kv cu_kv_of(const sp_kv_view *kv) {
    cu_kv c = {};
    c.base = kv->base;
    c.block_bytes = kv->block_bytes;
    c.layer_offset = kv->layer_offset;
    c.row_bytes = (size_t)kv->head_dim * (kv->dtype == SP_DTYPE_F32 ? 4 : 2);
    c.v_offset = (size_t)kv->n_kv_heads * (size_t)kv->block_tokens * c.row_bytes;
    c.B = kv->block_tokens;
    c.K = kv->n_kv_heads;
    c.D = kv->head_dim;
    c.dtype = kv->dtype;
    return c;
}

/** The key or value row of a position: sp_kv_k_row() on the device. */
static __device__ __forceinline__ unsigned char *cu_kv_row(const cu_kv &kv, const int32_t *blocks,
                                                           int32_t head, int32_t pos, bool value) {
    const size_t row = (size_t)head * (size_t)kv.B + (size_t)(pos % kv.B);
    return kv.base + (size_t)blocks[pos / kv.B] * kv.block_bytes + kv.layer_offset +
           row * kv.row_bytes + (value ? kv.v_offset : 0);
}

/* The argument of every kernel of attention. */
typedef struct cu_attend_step {
    float *out;
    const float *qkv;
    int32_t ldo, ld, H, window;
    float scale;
    cu_kv kv;
    cu_rows rows;
    int32_t group;       /* H / K */
    int32_t heads;       /* heads of a group in one tile: min(group, M) */
    int32_t tokens;      /* of a tile at most: M / heads */
    int32_t chunks;      /* tiles side by side that a group takes: ceil(group / heads) */
    int32_t step;        /* tokens that one block looks over: 1, or `tokens` */
    int32_t n_splits;    /* of the longest row: the grid's z where `part` is given */
    float *part, *stats; /* [T, H, n_splits, D] and [T, H, n_splits, 2]: NULL, one block merges */
    bool whole;          /* rows of the cache are aligned 16 bytes and whole multiples of them */
} cu_attend_step;

/** Positions lo..hi-1 that a token sees. */
typedef struct cu_span {
    int32_t lo, hi;
} cu_span;

static __device__ __forceinline__ cu_span cu_span_of(const cu_attend_step &a, int32_t t) {
    cu_span s = {0, max(a.rows.pos[t] + 1, 0)};
    if (a.window > 0 && s.hi > a.window) s.lo = s.hi - a.window;
    return s;
}
static __device__ __forceinline__ cu_span cu_cut(cu_span s, int32_t lo, int32_t hi) {
    cu_span c = {max(s.lo, lo), min(s.hi, hi)};
    return c;
}
/** Split `s` is the first one that this span reaches. */
static __device__ __forceinline__ bool cu_is_first(cu_span s, int32_t split) {
    return s.lo / SP_ATTN_SPLIT == split;
}

/* One tile. `seen`: what any token of it sees; `common`: what every token sees. */
typedef struct cu_tile {
    int32_t t0, n_tokens, kv_head, head0, n_heads, n_rows;
    const int32_t *blocks;
    cu_span seen, common;
} cu_tile;

static __device__ __forceinline__ bool cu_begins_tile(const cu_attend_step &a, int32_t t) {
    return t % a.tokens == 0 || a.rows.table[t] != a.rows.table[t - 1];
}

/** The tile that begins at t; `y` is the block's: kv head and piece of the group. */
static __device__ __forceinline__ cu_tile cu_tile_at(const cu_attend_step &a, int32_t t,
                                                     int32_t y) {
    cu_tile w = {};
    w.t0 = t;
    w.blocks = a.rows.blocks + a.rows.table[t];
    w.kv_head = y / a.chunks;
    w.head0 = w.kv_head * a.group + y % a.chunks * a.heads;
    w.n_heads = min(a.heads, a.group - y % a.chunks * a.heads);
    w.seen = w.common = cu_span_of(a, t);
    w.n_tokens = 1;
    for (int32_t i = t + 1; i < a.rows.T && !cu_begins_tile(a, i); i++) {
        const cu_span s = cu_span_of(a, i);
        w.seen.lo = min(w.seen.lo, s.lo);
        w.seen.hi = max(w.seen.hi, s.hi);
        w.common.lo = max(w.common.lo, s.lo);
        w.common.hi = min(w.common.hi, s.hi);
        w.n_tokens++;
    }
    w.n_rows = w.n_tokens * w.n_heads;
    return w;
}
static __device__ __forceinline__ int32_t cu_row_token(const cu_tile &w, int32_t r) {
    return w.t0 + r / w.n_heads;
}
static __device__ __forceinline__ int32_t cu_row_head(const cu_tile &w, int32_t r) {
    return w.head0 + r % w.n_heads;
}
/** What row r sees; nothing for the rows that only fill the tile. */
static __device__ __forceinline__ cu_span cu_row_span(const cu_attend_step &a, const cu_tile &w,
                                                      int32_t r) {
    cu_span none = {0, 0};
    return r < w.n_rows ? cu_span_of(a, cu_row_token(w, r)) : none;
}
static __device__ __forceinline__ const float *cu_row_q(const cu_attend_step &a, const cu_tile &w,
                                                        int32_t r) {
    return a.qkv + (int64_t)cu_row_token(w, r) * a.ld + (int64_t)cu_row_head(w, r) * a.kv.D;
}
static __device__ __forceinline__ float *cu_row_out(const cu_attend_step &a, const cu_tile &w,
                                                    int32_t r) {
    return a.out + (int64_t)cu_row_token(w, r) * a.ldo + (int64_t)cu_row_head(w, r) * a.kv.D;
}
/** Number of a row's partial result of one split. */
static __device__ __forceinline__ int64_t cu_row_part(const cu_attend_step &a, int32_t t, int32_t h,
                                                      int32_t split) {
    return ((int64_t)t * a.H + h) * a.n_splits + split;
}
