/* runtime/kv/blocks.h - the block table of one sequence and one cache group.
 *
 * ids[p / block_tokens] holds position p. The table only grows while the sequence runs: shared
 * blocks of a cached prefix first, then blocks of its own; it is given back whole. Only blocks of
 * its own are ever written to, and a shared one is always full: so nobody copies blocks.
 *
 * Thread: engine. */
#pragma once

#include "runtime/kv/pool.h"

typedef struct sp_kv_blocks {
    sp_block *ids; /* owned */
    int32_t n;     /* blocks held */
    int32_t cap;
} sp_kv_blocks;

/** Blocks that `tokens` positions need. */
static inline int32_t sp_kv_blocks_for(int32_t tokens, int32_t block_tokens) {
    return (int32_t)(((int64_t)tokens + block_tokens - 1) / block_tokens);
}

/** Makes room for `cap` blocks; holds none yet. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_blocks_init(sp_kv_blocks *t, int32_t cap, sp_err *err);
void sp_kv_blocks_fini(sp_kv_blocks *t); /* the table must hold none; a zeroed one is fine */

/** Appends a block that can be found, sharing it. */
void sp_kv_blocks_adopt(sp_kv_blocks *t, sp_kv_pool *pool, sp_block b);

/** Takes `n` blocks more, or none at all. False: the pool has not got so many. */
bool sp_kv_blocks_grow(sp_kv_blocks *t, sp_kv_pool *pool, int32_t n);

/** Drops every block, the last one first: a prefix's end is given up before its beginning. */
void sp_kv_blocks_release(sp_kv_blocks *t, sp_kv_pool *pool, uint64_t last_step);

bool sp_kv_blocks_check(const sp_kv_blocks *t, const sp_kv_pool *pool);
