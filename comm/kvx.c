#include "comm/kvx.h"

#include "comm/kvx_part.h"
#include "comm/secret.h"
#include "runtime/base/mem.h"

#if defined(__x86_64__)
#include <xxh_x86dispatch.h> /* the widest instructions that this machine has; equal sums on all */
#else
#include <xxhash.h>
#endif

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>

const char *sp_kvx_fault_name(sp_kvx_fault f) {
    static const char *const names[SP_KVX_FAULT_COUNT] = {"ok",   "stale",   "checksum", "identity",
                                                          "peer", "timeout", "range",    "foreign"};
    return (unsigned)f < SP_KVX_FAULT_COUNT ? names[f] : "unknown";
}

/* ---- shapes ---- */

size_t sp_kvx_piece_bytes(const sp_kvx_shape *s) {
    return (size_t)s->block_tokens * (size_t)s->head_dim * (size_t)sp_dtype_bits(s->dtype) / 8;
}

static bool is_side(int32_t n) {
    return n >= 1 && n <= SP_KVX_SIDE_MAX;
}

static bool is_shape(const sp_kvx_shape *s) {
    size_t pieces, bytes;
    return s->n_blocks >= 1 && s->n_blocks <= SP_KVX_BLOCKS_MAX && is_side(s->block_tokens) &&
           is_side(s->head_dim) && is_side(s->n_layers) && is_side(s->n_heads) &&
           (unsigned)s->dtype < SP_DTYPE_COUNT && sp_dtype_bits(s->dtype) >= 8 &&
           s->layer_first >= 0 && s->layer_first <= SP_KVX_SIDE_MAX && s->head_first >= 0 &&
           s->head_first <= SP_KVX_SIDE_MAX &&
           !__builtin_mul_overflow((size_t)s->n_layers * 2, (size_t)s->n_heads, &pieces) &&
           !__builtin_mul_overflow(pieces, sp_kvx_piece_bytes(s), &bytes) &&
           bytes <= s->block_bytes && pieces <= UINT32_MAX && s->block_bytes <= (size_t)1 << 40;
}

static uint64_t round_to(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

sp_status sp_kvx_head_of(sp_kvx_head *out, const sp_kvx_shape *s, sp_err *err) {
    if (!is_shape(s))
        return SP_FAIL(err, SP_E_INVALID,
                       "KV blocks of %zu bytes cannot hold %d layers of %d heads of %d x %d",
                       s->block_bytes, s->n_layers, s->n_heads, s->block_tokens, s->head_dim);
    sp_kvx_head h = {.magic = SP_KVX_MAGIC,
                     .n_blocks = s->n_blocks,
                     .block_tokens = s->block_tokens,
                     .head_dim = s->head_dim,
                     .dtype = (int32_t)s->dtype,
                     .layer_first = s->layer_first,
                     .n_layers = s->n_layers,
                     .head_first = s->head_first,
                     .n_heads = s->n_heads,
                     .block_bytes = s->block_bytes};
    uint64_t n = (uint64_t)s->n_blocks, kv;
    h.slot_bytes = round_to(sizeof(sp_kvx_slot) +
                                (uint64_t)s->n_layers * 2 * (uint64_t)s->n_heads * sizeof(uint64_t),
                            64);
    uint64_t table = SP_KVX_HEAD_BYTES + n * h.slot_bytes;
    if (__builtin_mul_overflow(n, h.block_bytes, &kv) || kv > (uint64_t)1 << 62)
        return SP_FAIL(err, SP_E_INVALID, "%d KV blocks of %zu bytes", s->n_blocks, s->block_bytes);
    h.kv_offset = round_to(table, kv >= (4 << 20) ? 2 << 20 : 4096);
    h.total_bytes = h.kv_offset + kv;
    *out = h;
    return SP_OK;
}

void sp_kvx_head_shape(const sp_kvx_head *h, sp_kvx_shape *out) {
    *out = (sp_kvx_shape){.n_blocks = h->n_blocks,
                          .block_tokens = h->block_tokens,
                          .head_dim = h->head_dim,
                          .dtype = (sp_dtype)h->dtype,
                          .layer_first = h->layer_first,
                          .n_layers = h->n_layers,
                          .head_first = h->head_first,
                          .n_heads = h->n_heads,
                          .block_bytes = h->block_bytes};
}

static bool within(int32_t first, int32_t n, int32_t of_first, int32_t of_n) {
    return n >= 1 && n <= of_n && first >= of_first && first - of_first <= of_n - n;
}

bool sp_kvx_has(const sp_kvx_shape *s, uint32_t block, int32_t layer_first, int32_t n_layers,
                int32_t head_first, int32_t n_heads) {
    return block < (uint32_t)s->n_blocks &&
           within(layer_first, n_layers, s->layer_first, s->n_layers) &&
           within(head_first, n_heads, s->head_first, s->n_heads);
}

/* ---- checksums ---- */

uint64_t sp_kvx_seed_base(const uint8_t key[SP_KVX_KEY_BYTES],
                          const uint8_t identity[SP_KVX_IDENTITY_BYTES], const sp_kvx_shape *s) {
    int32_t kind[] = {s->block_tokens, s->head_dim, (int32_t)s->dtype};
    sp_slice pieces[] = {SP_SLICE("superpod kvx checksum"),
                         {(const char *)identity, SP_KVX_IDENTITY_BYTES},
                         {(const char *)kind, sizeof kind}};
    uint8_t mac[SP_MAC_BYTES];
    uint64_t base;
    sp_hmac_sha256(mac, (sp_slice){(const char *)key, SP_KVX_KEY_BYTES}, pieces,
                   (int)SP_LEN(pieces));
    memcpy(&base, mac, sizeof base);
    sp_wipe(mac, sizeof mac);
    return base;
}

/* All steps of the mix can be undone: for one name no two places, and for one place no two names, have
 * the same seed. */
static uint64_t mix(uint64_t h) {
    h = (h ^ h >> 32) * UINT64_C(0xd6e8feb86659fd93);
    h = (h ^ h >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

uint64_t sp_kvx_seed_block(uint64_t base, uint32_t block, uint32_t generation, uint64_t name) {
    return mix(mix(base ^ ((uint64_t)generation << 32 | block)) ^ name);
}

static uint64_t seed_piece(uint64_t block_seed, int32_t layer, bool is_value, int32_t head) {
    uint64_t place = (uint64_t)(uint32_t)(layer * 2 + is_value) << 32 | (uint32_t)head;
    return mix(block_seed ^ place);
}

uint64_t sp_kvx_sum(uint64_t block_seed, int32_t layer, bool is_value, int32_t head, const void *p,
                    size_t n) {
    return XXH3_64bits_withSeed(p, n, seed_piece(block_seed, layer, is_value, head));
}

/* The library's own, which knows its size: it may be another version than its header's. */
sp_kvx_summer *sp_kvx_summer_create(void) {
    return (sp_kvx_summer *)XXH3_createState();
}

void sp_kvx_summer_destroy(sp_kvx_summer *s) {
    (void)XXH3_freeState((XXH3_state_t *)s);
}

void sp_kvx_summer_begin(sp_kvx_summer *s, uint64_t block_seed, int32_t layer, bool is_value,
                         int32_t head) {
    (void)XXH3_64bits_reset_withSeed((XXH3_state_t *)s,
                                     seed_piece(block_seed, layer, is_value, head));
}

void sp_kvx_summer_more(sp_kvx_summer *s, const void *p, size_t n) {
    (void)XXH3_64bits_update((XXH3_state_t *)s, p, n);
}

uint64_t sp_kvx_summer_end(const sp_kvx_summer *s) {
    return XXH3_64bits_digest((const XXH3_state_t *)s);
}

bool sp_kvx_spoiled(const sp_kvx *k, uint64_t block_seed, int32_t layer, int32_t head,
                    unsigned char *piece, uint64_t want) {
    piece[k->piece_bytes / 2] ^= 4;
    return sp_kvx_sum(block_seed, layer, false, head, piece, k->piece_bytes) == want;
}

void sp_kvx_token(sp_token *out, const uint8_t key[SP_KVX_KEY_BYTES]) {
    sp_hkdf_sha256(out->bytes, sizeof out->bytes, (sp_slice){(const char *)key, SP_KVX_KEY_BYTES},
                   (sp_slice){NULL, 0}, SP_SLICE("superpod kvx connection"));
}

/* ---- readers ---- */

static bool take_word(const char **at, char *out, size_t n) {
    size_t len = strcspn(*at, " ");
    if (len == 0 || len >= n) return false;
    memcpy(out, *at, len);
    out[len] = 0;
    if (strcmp(out, "-") == 0) out[0] = 0;
    *at += len + ((*at)[len] == ' ');
    return true;
}

static sp_status take_place(sp_kvx_place *out, const char *address, sp_err *err) {
    sp_kvx_place p = {.share = ""};
    char word[40];
    const char *at = address;
    bool ok = strlen(address) < SP_KVX_ADDRESS_BYTES && take_word(&at, word, sizeof word) &&
              strcmp(word, "kvx1") == 0 && take_word(&at, word, sizeof word) &&
              strlen(word) == 32 && strspn(word, "0123456789abcdef") == 32 &&
              sscanf(word, "%16" SCNx64 "%16" SCNx64, &p.incarnation[0], &p.incarnation[1]) == 2 &&
              take_word(&at, p.share, sizeof p.share) && take_word(&at, p.tcp, sizeof p.tcp) &&
              *at == 0;
    if (!ok) return SP_FAIL(err, SP_E_INVALID, "'%.60s' is no address of KV blocks", address);
    *out = p;
    return SP_OK;
}

sp_status sp_kvx_open(sp_kvx **out, const char *address, const sp_kvx_reader_config *c,
                      sp_err *err) {
    sp_kvx base = {.config = *c,
                   .seed_base = sp_kvx_seed_base(c->key, c->identity, &c->shape),
                   .piece_bytes = sp_kvx_piece_bytes(&c->shape)};
    sp_status st = take_place(&base.place, address, err);
    if (st == SP_OK && c->same_node && base.place.share[0])
        st = sp_kvx_open_shm(out, &base, err);
    else if (st == SP_OK && base.place.tcp[0])
        st = sp_kvx_open_tcp(out, &base, err);
    else if (st == SP_OK)
        st = SP_FAIL(err, SP_E_INVALID, "the exporter offers no way that leads there: '%.60s'",
                     address);
    sp_wipe(&base, sizeof base);
    return st;
}

void sp_kvx_close(sp_kvx *k) {
    if (k) k->ops->close(k);
}

void sp_kvx_cancel(sp_kvx *k) {
    atomic_store(&k->cancelled, true);
}

const char *sp_kvx_way(const sp_kvx *k) {
    return k->ops->name;
}

void sp_kvx_read(sp_kvx *k, const sp_kvx_ask *asks, int n, sp_kvx_fault *faults) {
    k->ops->read(k, asks, n, faults);
}

sp_kvx_fault sp_kvx_lease(sp_kvx *k, uint64_t lease, bool renew) {
    return k->ops->lease ? k->ops->lease(k, lease, renew) : SP_KVX_RANGE;
}

sp_kvx_fault sp_kvx_judge(const sp_kvx *k, const uint64_t incarnation[2],
                          const uint8_t identity[SP_KVX_IDENTITY_BYTES],
                          const sp_kvx_shape *theirs) {
    const sp_kvx_shape *own = &k->config.shape;
    if (incarnation[0] != k->place.incarnation[0] || incarnation[1] != k->place.incarnation[1])
        return SP_KVX_PEER;
    if (memcmp(identity, k->config.identity, SP_KVX_IDENTITY_BYTES) != 0 ||
        theirs->dtype != own->dtype || theirs->block_tokens != own->block_tokens ||
        theirs->head_dim != own->head_dim)
        return SP_KVX_IDENTITY;
    return SP_KVX_OK;
}
