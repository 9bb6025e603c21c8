/* launcher/pools.h - which groups of ranks there are and what they are for, as the user says it.
 *
 *   --pool name=prefill,role=prefill,replicas=2,tp=2,pp=1      once a pool
 *   pools:                                                     in a file
 *     - {name: prefill, role: prefill, replicas: 2, tp: 2}
 * Without any: one mixed group of --tp x --pp. Every group holds the whole model once; a pool is
 * some groups of one shape. Ranks are numbered group by group, in the order of pools.
 *
 * Thread: plain data. */
#pragma once

#include "launcher/config.h"
#include "runtime/engine/engine.h"

#define SP_POOLS_MAX 8
#define SP_GROUPS_MAX 64

typedef struct sp_pool_spec {
    char name[32];
    sp_pool_role role;
    int32_t replicas, tp, pp;
    char pp_layers[256]; /* "" : balanced */
} sp_pool_spec;

typedef struct sp_pools {
    sp_pool_spec at[SP_POOLS_MAX];
    int32_t n;
    bool given; /* by --pool, not made of --tp and --pp */
} sp_pools;

/** Reads config->pool (of `serve` and `plan`), or --tp and --pp; these are also what a pool has that
 * does not say its own.
 * Errors: SP_E_INVALID a key or value by name; a name twice; no pool that decodes; too many groups
 * or ranks: seen and wanted. */
SP_NODISCARD sp_status sp_pools_of(sp_pools *out, const sp_config *config, sp_err *err);

/** Groups of different tp hand their blocks on only where each tp gives the bits of tp 1.
 * Errors: SP_E_INVALID a pool whose tp does not, beside one of another tp. */
SP_NODISCARD sp_status sp_pools_check_bits(const sp_pools *p, sp_err *err);

/** The next smaller pools: a group less, or else half a tp, or else a stage less, of the pool where
 * that saves the most ranks; every pool keeps a group. False: each is one rank. */
bool sp_pools_shrink(sp_pools *p);

int32_t sp_pools_groups(const sp_pools *p); /* of all pools */
int32_t sp_pools_ranks(const sp_pools *p);

/** Group `group`: its pool, and its first rank. */
const sp_pool_spec *sp_pools_group(const sp_pools *p, int32_t group, int32_t *first_rank);
/** What a rank is: its group, the pool of that, its place in the group. */
typedef struct sp_pools_place {
    int32_t group, pool, first, stage, tp_rank;
} sp_pools_place;
sp_pools_place sp_pools_place_of(const sp_pools *p, int32_t rank);

/** "tp 2 x pp 1", or "p: tp 1 x pp 1, d: 2 of tp 2 x pp 1". */
#define SP_POOLS_TEXT 160
void sp_pools_text(const sp_pools *p, char out[SP_POOLS_TEXT]);

/** The group of a rank. */
int32_t sp_pools_group_of(const sp_pools *p, int32_t rank);
