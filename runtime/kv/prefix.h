/* runtime/kv/prefix.h - which full blocks can be found again, and by what.
 *
 * A full block is named by a chain: hash(block) = H(hash(parent), its token ids), and the parent of
 * a first block is a root = H(key, identity, salt). The key is a secret of the pod; the identity is
 * the model's fingerprint and the numerics id (anything that changes the bits of a block); the salt
 * keeps tenants apart. Every H has input of one fixed length per kind and a kind byte, so no chain
 * can be taken for another. 256 bits make an accident impossible; the token ids are stored and
 * compared all the same, so that a hit is never wrong because of a hash.
 *
 * The index holds no references: a block whose last holder left idles in the pool, and the pool
 * tells this index before it hands it out for something else.
 * Limits: one entry a block; as many as the pool has blocks.
 *
 * Source: SHA-256, FIPS 180-4 (OpenSSL).
 * Thread: engine; roots and hashes may be computed by one thread at a time. */
#pragma once

#include "runtime/kv/pool.h"

typedef struct sp_kv_prefix sp_kv_prefix;

#define SP_KV_HASH_BYTES 32
typedef struct sp_kv_hash {
    uint8_t bytes[SP_KV_HASH_BYTES];
} sp_kv_hash;

typedef struct sp_kv_prefix_config {
    int32_t block_tokens;
    uint8_t key[SP_KV_HASH_BYTES];
    const void *identity; /* copied: hashed at once */
    size_t identity_bytes;
} sp_kv_prefix_config;

/** An empty index over `pool`, which it serves as on_evict.
 *
 * Owner:  caller; ends with sp_kv_prefix_destroy(), before the pool.
 * Errors: SP_E_INVALID block_tokens < 1; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_prefix_create(sp_kv_prefix **out, sp_kv_pool *pool,
                                           const sp_kv_prefix_config *config, sp_err *err);
void sp_kv_prefix_destroy(sp_kv_prefix *x);

/** The parent of the first block of everything under this salt; NULL is the shared one, and no
 * salt equals it. */
void sp_kv_prefix_root(sp_kv_prefix *x, const void *salt, size_t salt_bytes, sp_kv_hash *out);

/** The name of a full block: `tokens` is [block_tokens]. */
void sp_kv_prefix_next(sp_kv_prefix *x, const sp_kv_hash *parent, const int32_t *tokens,
                       sp_kv_hash *out);

/** The block of that name and those tokens, or SP_BLOCK_NONE. Takes no reference. */
sp_block sp_kv_prefix_find(const sp_kv_prefix *x, const sp_kv_hash *hash, const int32_t *tokens);

/** Makes a held, full block findable. False: another block has that name, or this one has one
 * already; nothing changes then. */
bool sp_kv_prefix_add(sp_kv_prefix *x, sp_block b, const sp_kv_hash *hash, const int32_t *tokens);

int32_t sp_kv_prefix_count(const sp_kv_prefix *x);
bool sp_kv_prefix_check(const sp_kv_prefix *x); /* O(N) */
