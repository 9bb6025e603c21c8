/* runtime/kv/pool.h - the books of one rank's key/value blocks: who holds which, which are free.
 *
 * The head owns no device memory: it hands out block numbers, and the rank's pool has a block of
 * that number. The books are carved once and never grow. A block is in exactly one place:
 *
 *     free --take--> held --drop to 0--> fenced --retire--> free
 *      ^                                   |  (kept)         idle --take (evicts)--> held
 *      +-----------------------------------+                  ^ share --> held
 *
 *   held    counted: a prefix shared by three sequences is one block with three references
 *   fenced  nobody holds it, but a step that was sent and has not retired still names it
 *   idle    nobody holds it, its content can still be found (kv/prefix.h); oldest given up first
 *   free    nobody holds it, nothing is known about its content
 *
 * A kept block goes to idle instead of free, and may be shared again while fenced, since its
 * content does not change. The order of giving up is the order of becoming idle.
 *
 * Source: paged attention, Kwon et al., SOSP 2023, section 4.
 * Thread: engine; nothing here locks. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct sp_kv_pool sp_kv_pool;
typedef int32_t sp_block; /* number of a block in the rank's pool */
#define SP_BLOCK_NONE ((sp_block)-1)

#define SP_KV_BLOCKS_MAX ((int32_t)1 << 26)
#define SP_KV_STEPS_MAX 16 /* steps in flight at a time, at most */

/** Told that the content of `b` is given up: forget where it can be found. */
typedef void (*sp_kv_evict_fn)(void *ctx, sp_block b);

/** Books for blocks 0..n_blocks-1, all free.
 *
 * Owner:  caller; ends with sp_kv_pool_destroy().
 * Errors: SP_E_INVALID n_blocks outside 1..SP_KV_BLOCKS_MAX; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_pool_create(sp_kv_pool **out, int32_t n_blocks, sp_err *err);
void sp_kv_pool_destroy(sp_kv_pool *p);
void sp_kv_pool_on_evict(sp_kv_pool *p, sp_kv_evict_fn fn, void *ctx);

/** A free block, else the block that is idle longest (after telling on_evict), with one reference.
 * SP_BLOCK_NONE: every block is held or fenced. */
sp_block sp_kv_pool_take(sp_kv_pool *p);

/** One reference more. The block must be held, or kept (idle or fenced). */
void sp_kv_pool_share(sp_kv_pool *p, sp_block b);

/** One reference less. `last_step` is the last step sent that names the block for this holder (0:
 * none); at zero references the block stays fenced until that of every past holder has retired. */
void sp_kv_pool_drop(sp_kv_pool *p, sp_block b, uint64_t last_step);

/** Marks a held block as one that can be found: at zero references it idles. */
void sp_kv_pool_keep(sp_kv_pool *p, sp_block b);

/** Every step up to `step` has retired: what it fenced becomes free or idle. */
void sp_kv_pool_retire(sp_kv_pool *p, uint64_t step);

int32_t sp_kv_pool_count(const sp_kv_pool *p);     /* all blocks */
int32_t sp_kv_pool_available(const sp_kv_pool *p); /* free + idle: can be taken now */
int32_t sp_kv_pool_idle(const sp_kv_pool *p);
int32_t sp_kv_pool_fenced(const sp_kv_pool *p);
int32_t sp_kv_pool_held(const sp_kv_pool *p);
bool sp_kv_pool_is_held(const sp_kv_pool *p, sp_block b);

bool sp_kv_pool_check(const sp_kv_pool *p); /* O(N); tests and debug builds */
