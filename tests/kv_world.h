/* tests/kv_world.h - an engine with several groups of one fake rank each, whose KV blocks really cross:
 * copies of hashes between the null models, so that a block that is missing, late or another one's
 * changes the tokens. A world can be the other pod of another one.
 *
 * What can go wrong on the way is drawn from a seed: any outcome of any block, a transfer that ends
 * in its middle, answers that are slow (with signs of life), or lost, which come when nobody waits.
 *
 * Thread: one, the test's; ranks and the keeper of slow answers are inside. */
#pragma once

#include "runtime/base/str.h"
#include "tests/engine_pod.h"

enum {
    KV_NODES_MAX = 4,
    KV_BLOCKS_MAX = 512,
    KV_NOTES_MAX = 512
};

typedef struct kv_job kv_job;
typedef struct kv_world kv_world;

typedef struct kv_faults { /* in percent */
    int block;             /* of blocks: any outcome */
    int truncated;         /* of pulls: it ends in its middle */
    int slow, lost;        /* of pulls */
    int slow_ticks;        /* how many milliseconds slow is; 0: some */
    int leave_lost;        /* of leases given back */
    bool pretends;         /* says it copied, and did not: the oracle must see that */
} kv_faults;

typedef struct kv_node {
    kv_world *w;
    sp_fake_rank rank;
    sp_stage_kvx kvx;
    pthread_mutex_t lock; /* of all below, which other nodes and the keeper reach too */
    uint32_t generation[KV_BLOCKS_MAX];
    uint64_t name[KV_BLOCKS_MAX];
    sp_buf sources[SP_KV_SOURCES_MAX];
    kv_job *waiting, *done, *told;
    sp_stage_kv_note notes[KV_NOTES_MAX];
    int n_notes, n_noted;
    int n_sources, n_leaves;
    bool gone;
    uint64_t seed;
} kv_node;

struct kv_world {
    pod p; /* engine and configuration */
    sp_fan *fan;
    kv_node nodes[KV_NODES_MAX];
    sp_engine_group groups[KV_NODES_MAX];
    int n;
    kv_faults faults;
    kv_world *other; /* whose blocks a source is, by its text; under every node's lock */
    sp_buf text;     /* names group 0 */
    sp_thread keeper;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop, find_lost;
};

uint32_t kv_chance(uint64_t *s, uint32_t n);

/** Of one group when roles is NULL. `config` NULL: pod_config(), with prompts above 16 tokens split. */
kv_world *kv_world_start(uint64_t seed, int n, const sp_pool_role *roles, int n_blocks,
                         kv_faults faults, const sp_engine_config *config);
sp_engine_config kv_world_config(void);
/** Waits until nothing is held on either side of anything; every lost answer is found. */
void kv_world_settle(kv_world *w);
void kv_world_end(kv_world *w);

/** From now on what `w` takes is what `lender` lends. */
void kv_world_link(kv_world *w, kv_world *lender);
/** Waits until the ranks have been told to give `n` leases back. */
void kv_world_wait_leaves(kv_world *w, int n);
/** What an ask brings from the world that lent it `from->kv`; `handle` is borrowed. */
sp_kv_import kv_world_import(const kv_world *lender, const sp_kv_handle *handle);
