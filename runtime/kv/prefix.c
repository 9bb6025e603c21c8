#include "runtime/kv/prefix.h"

#include "runtime/base/mem.h"

#include <openssl/evp.h>

#include <string.h>

/* Token ids go into the hash as they lie in memory; names travel between machines. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "block names are little-endian");

enum {
    KIND_IDENTITY = 1,
    KIND_ROOT_SHARED,
    KIND_ROOT_SALTED,
    KIND_BLOCK
};

struct sp_kv_prefix {
    sp_kv_pool *pool;
    int32_t block_tokens, n_blocks, count;
    uint32_t bucket_mask;
    sp_block *bucket; /* [mask + 1] first block of the bucket, or NONE */
    sp_block *chain;  /* [N] next block of the same bucket, or NONE */
    bool *has;        /* [N] this block has a name */
    sp_kv_hash *name; /* [N] */
    int32_t *tokens;  /* [N, block_tokens] */
    sp_kv_hash seed;  /* H(key, identity): every root starts from it */
    EVP_MD *sha256;
    EVP_MD_CTX *ctx;
};

/* One digest of a kind byte and two pieces. The context is kept: fetching the algorithm anew costs
 * more than hashing a block. */
static void digest(sp_kv_prefix *x, uint8_t kind, const void *a, size_t a_bytes, const void *b,
                   size_t b_bytes, sp_kv_hash *out) {
    int ok = EVP_DigestInit_ex2(x->ctx, x->sha256, NULL);
    ok &= EVP_DigestUpdate(x->ctx, &kind, 1);
    ok &= EVP_DigestUpdate(x->ctx, a, a_bytes);
    if (b_bytes) ok &= EVP_DigestUpdate(x->ctx, b, b_bytes);
    ok &= EVP_DigestFinal_ex(x->ctx, out->bytes, NULL);
    SP_ASSERT(ok == 1);
}

static uint32_t bucket_of(const sp_kv_prefix *x, const sp_kv_hash *hash) {
    uint32_t u;
    memcpy(&u, hash->bytes, sizeof u);
    return u & x->bucket_mask;
}

static int32_t *tokens_of(const sp_kv_prefix *x, sp_block b) {
    return x->tokens + (size_t)b * (size_t)x->block_tokens;
}

static void forget(void *ctx, sp_block b) {
    sp_kv_prefix *x = ctx;
    if (!x->has[b]) return;
    sp_block *link = &x->bucket[bucket_of(x, &x->name[b])];
    while (*link != b) {
        SP_ASSERT(*link != SP_BLOCK_NONE);
        link = &x->chain[*link];
    }
    *link = x->chain[b];
    x->has[b] = false;
    x->count--;
}

static sp_status take_memory(sp_kv_prefix *x, sp_err *err) {
    size_t n = (size_t)x->n_blocks, buckets = (size_t)x->bucket_mask + 1;
    x->bucket = sp_try_alloc_array(buckets, sizeof *x->bucket);
    x->chain = sp_try_alloc_array(n, sizeof *x->chain);
    x->has = sp_try_alloc_array(n, sizeof *x->has);
    x->name = sp_try_alloc_array(n, sizeof *x->name);
    x->tokens = sp_try_alloc_array(n, (size_t)x->block_tokens * sizeof *x->tokens);
    x->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    x->ctx = EVP_MD_CTX_new();
    if (!x->bucket || !x->chain || !x->has || !x->name || !x->tokens || !x->sha256 || !x->ctx)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for the prefix index of %d blocks", x->n_blocks);
    memset(x->bucket, 0xff, buckets * sizeof *x->bucket); /* SP_BLOCK_NONE */
    return SP_OK;
}

sp_status sp_kv_prefix_create(sp_kv_prefix **out, sp_kv_pool *pool,
                              const sp_kv_prefix_config *config, sp_err *err) {
    SP_ASSERT(out && pool && config);
    if (config->block_tokens < 1)
        return SP_FAIL(err, SP_E_INVALID, "prefix index with blocks of %d tokens, want 1 or more",
                       config->block_tokens);
    sp_kv_prefix *x = sp_alloc(sizeof *x);
    x->pool = pool;
    x->block_tokens = config->block_tokens;
    x->n_blocks = sp_kv_pool_count(pool);
    uint32_t buckets = 16;
    while (buckets < (uint32_t)x->n_blocks * 2) buckets *= 2;
    x->bucket_mask = buckets - 1;
    sp_status st = take_memory(x, err);
    if (st != SP_OK) {
        sp_kv_prefix_destroy(x);
        return st;
    }
    digest(x, KIND_IDENTITY, config->key, sizeof config->key, config->identity,
           config->identity_bytes, &x->seed);
    sp_kv_pool_on_evict(pool, forget, x);
    *out = x;
    return SP_OK;
}

void sp_kv_prefix_destroy(sp_kv_prefix *x) {
    if (!x) return;
    sp_kv_pool_on_evict(x->pool, NULL, NULL);
    EVP_MD_CTX_free(x->ctx);
    EVP_MD_free(x->sha256);
    sp_free(x->tokens);
    sp_free(x->name);
    sp_free(x->has);
    sp_free(x->chain);
    sp_free(x->bucket);
    sp_free(x);
}

void sp_kv_prefix_root(sp_kv_prefix *x, const void *salt, size_t salt_bytes, sp_kv_hash *out) {
    digest(x, salt ? KIND_ROOT_SALTED : KIND_ROOT_SHARED, x->seed.bytes, sizeof x->seed.bytes, salt,
           salt ? salt_bytes : 0, out);
}

void sp_kv_prefix_next(sp_kv_prefix *x, const sp_kv_hash *parent, const int32_t *tokens,
                       sp_kv_hash *out) {
    digest(x, KIND_BLOCK, parent->bytes, sizeof parent->bytes, tokens,
           (size_t)x->block_tokens * sizeof *tokens, out);
}

/* The block that bears the name, whatever its tokens. */
static sp_block named(const sp_kv_prefix *x, const sp_kv_hash *hash) {
    sp_block b = x->bucket[bucket_of(x, hash)];
    while (b != SP_BLOCK_NONE && memcmp(&x->name[b], hash, sizeof *hash) != 0) b = x->chain[b];
    return b;
}

static bool same_tokens(const sp_kv_prefix *x, sp_block b, const int32_t *tokens) {
    return memcmp(tokens_of(x, b), tokens, (size_t)x->block_tokens * sizeof *tokens) == 0;
}

sp_block sp_kv_prefix_find(const sp_kv_prefix *x, const sp_kv_hash *hash, const int32_t *tokens) {
    sp_block b = named(x, hash);
    return b != SP_BLOCK_NONE && same_tokens(x, b, tokens) ? b : SP_BLOCK_NONE;
}

bool sp_kv_prefix_add(sp_kv_prefix *x, sp_block b, const sp_kv_hash *hash, const int32_t *tokens) {
    SP_ASSERT(sp_kv_pool_is_held(x->pool, b));
    if (x->has[b] || named(x, hash) != SP_BLOCK_NONE) return false;
    x->name[b] = *hash;
    memcpy(tokens_of(x, b), tokens, (size_t)x->block_tokens * sizeof *tokens);
    x->has[b] = true;
    uint32_t i = bucket_of(x, hash);
    x->chain[b] = x->bucket[i];
    x->bucket[i] = b;
    x->count++;
    sp_kv_pool_keep(x->pool, b);
    return true;
}

int32_t sp_kv_prefix_count(const sp_kv_prefix *x) {
    return x->count;
}

bool sp_kv_prefix_check(const sp_kv_prefix *x) {
    int32_t chained = 0, has = 0;
    for (uint32_t i = 0; i <= x->bucket_mask; i++) {
        for (sp_block b = x->bucket[i]; b != SP_BLOCK_NONE; b = x->chain[b]) {
            if (b < 0 || b >= x->n_blocks || !x->has[b]) return false;
            if (bucket_of(x, &x->name[b]) != i || ++chained > x->n_blocks) return false;
        }
    }
    for (sp_block b = 0; b < x->n_blocks; b++) has += x->has[b];
    return chained == x->count && has == x->count;
}
