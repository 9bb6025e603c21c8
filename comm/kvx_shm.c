/* Reading a region of the same node: mapped read-only, copied piece by piece. */
#include "comm/kvx_part.h"
#include "comm/secret.h"
#include "comm/share.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAKE_NS SP_NS_PER_S
#define LINE 64
#define AHEAD_BYTES 4096
#define NEAR_BYTES 8192 /* with what is ahead in the nearest cache; 64 KiB were a quarter slower */

typedef struct shm_reader {
    sp_kvx k;
    const unsigned char *base; /* NULL: not mapped yet */
    size_t bytes;
    sp_kvx_head head; /* our own copy, checked: what is shared is not looked at again */
    sp_kvx_shape shape;
    sp_kvx_summer *summer;
    _Alignas(64) unsigned char near[NEAR_BYTES]; /* some of a piece, on its way */
} shm_reader;

typedef struct place { /* of a piece */
    uint64_t seed;
    int32_t layer, head;
    bool is_value;
} place;

static const sp_kvx_slot *slot_of(const shm_reader *s, uint32_t block) {
    return (const sp_kvx_slot *)(const void *)(s->base + sp_kvx_slot_offset(&s->head, block));
}

static void unmap(shm_reader *s) {
    if (s->base) munmap((void *)(uintptr_t)s->base, s->bytes);
    s->base = NULL;
}

static void close_shm(sp_kvx *k) {
    shm_reader *s = (shm_reader *)k;
    unmap(s);
    sp_kvx_summer_destroy(s->summer);
    sp_wipe(&s->k, sizeof s->k);
    sp_free(s);
}

/* Whether the head says what its own shape makes of it, and the memory has it all. */
static sp_kvx_fault check_head(shm_reader *s) {
    sp_kvx_head want;
    sp_err err;
    sp_kvx_head_shape(&s->head, &s->shape);
    if (s->head.magic != SP_KVX_MAGIC || sp_kvx_head_of(&want, &s->shape, &err) != SP_OK)
        return SP_KVX_PEER;
    if (s->head.slot_bytes != want.slot_bytes || s->head.kv_offset != want.kv_offset ||
        s->head.total_bytes != want.total_bytes || s->bytes != want.total_bytes)
        return SP_KVX_PEER;
    return sp_kvx_judge(&s->k, s->head.incarnation, s->head.identity, &s->shape);
}

static sp_kvx_fault map_fd(shm_reader *s, int fd) {
    const int fixed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & fixed) != fixed || fstat(fd, &st) != 0 ||
        st.st_size < SP_KVX_HEAD_BYTES)
        return SP_KVX_PEER;
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return SP_KVX_PEER;
    s->base = p;
    s->bytes = (size_t)st.st_size;
    memcpy(&s->head, s->base, sizeof s->head);
    sp_kvx_fault f = check_head(s);
    if (f != SP_KVX_OK) unmap(s);
    return f;
}

static sp_kvx_fault connect_shm(shm_reader *s) {
    if (s->base) return SP_KVX_OK;
    int fd = -1;
    sp_err err;
    sp_status st =
        sp_share_take(&fd, s->k.place.share, s->k.config.key, 0, sp_now_ns() + TAKE_NS, &err);
    if (st != SP_OK) return st == SP_E_TIMEOUT ? SP_KVX_TIMEOUT : SP_KVX_PEER;
    sp_kvx_fault f = map_fd(s, fd);
    close(fd);
    return f;
}

/* Writes past the caches: the block is not read again soon, and a line that is written whole need
 * not be fetched first. Both sides are multiples of 16 bytes. */
static void store_past(unsigned char *to, const unsigned char *from, size_t n) {
#if defined(__x86_64__)
    typedef long long lanes __attribute__((vector_size(16)));
    for (size_t i = 0; i < n; i += sizeof(lanes)) {
        lanes v;
        memcpy(&v, from + i, sizeof v);
#if defined(__clang__)
        __builtin_nontemporal_store(v, (lanes *)(void *)(to + i));
#else
        __builtin_ia32_movntdq((lanes *)(void *)(to + i), v);
#endif
    }
#else
    memcpy(to, from, n);
#endif
}

static void store_fence(void) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

/* A piece is copied to where it is near, a little at a time; that copy is summed and then written to its
 * place, and what comes next is asked for meanwhile. What is summed is what is written: the exporter's
 * bytes may change at any time and are read once. */
static bool take_piece(shm_reader *s, unsigned char *to, const unsigned char *from, uint64_t want,
                       const place *p) {
    const size_t n = s->k.piece_bytes;
    const bool past = n % 16 == 0 && (uintptr_t)to % 16 == 0;
    sp_kvx_summer_begin(s->summer, p->seed, p->layer, p->is_value, p->head);
    for (size_t at = 0; at < n; at += NEAR_BYTES) {
        const size_t k = n - at < NEAR_BYTES ? n - at : NEAR_BYTES;
        const unsigned char *next = from + at + k;
        memcpy(s->near, from + at, k);
        for (size_t i = 0; i < k && i < AHEAD_BYTES; i += LINE) __builtin_prefetch(next + i, 0, 3);
        sp_kvx_summer_more(s->summer, s->near, k);
        if (past)
            store_past(to + at, s->near, k);
        else
            memcpy(to + at, s->near, k);
    }
    return sp_kvx_summer_end(s->summer) == want;
}

/* One run: the heads of K or of V of a layer, neighbours on both sides. */
static bool take_run(shm_reader *s, const sp_kvx_ask *a, uint64_t seed, int32_t layer,
                     bool is_value) {
    const size_t n = s->k.piece_bytes;
    const sp_kvx_slot *slot = slot_of(s, a->block);
    size_t at = sp_kvx_piece_index(&s->shape, layer, is_value, a->head_first);
    const unsigned char *from =
        s->base + s->head.kv_offset + (size_t)a->block * s->shape.block_bytes + at * n;
    unsigned char *to = a->to + (size_t)(layer - a->layer_first) * a->layer_stride +
                        (is_value ? a->value_offset : 0);
    bool right = true;
    for (int32_t i = 0; i < a->n_heads; i++, from += n, to += n) {
        uint64_t want = atomic_load_explicit(&slot->sums[at + (size_t)i], memory_order_relaxed);
        const place p = {seed, layer, a->head_first + i, is_value};
        right &= take_piece(s, to, from, want, &p);
    }
    return right;
}

/* What was copied is from before this look. */
static bool still_sealed(const sp_kvx_slot *slot, const sp_kvx_ask *a) {
    sp_kvx_fence();
    return atomic_load_explicit(&slot->generation, memory_order_relaxed) == a->generation &&
           !sp_chaos_hit(SP_CHAOS_KVX_STALE);
}

static bool spoil(const shm_reader *s, const sp_kvx_ask *a, uint64_t seed) {
    size_t at = sp_kvx_piece_index(&s->shape, a->layer_first, false, a->head_first);
    uint64_t want = atomic_load_explicit(&slot_of(s, a->block)->sums[at], memory_order_relaxed);
    return sp_kvx_spoiled(&s->k, seed, a->layer_first, a->head_first, a->to, want);
}

static sp_kvx_fault take_block(shm_reader *s, const sp_kvx_ask *a) {
    if (a->generation == 0) return SP_KVX_STALE;
    if (!sp_kvx_has(&s->shape, a->block, a->layer_first, a->n_layers, a->head_first, a->n_heads))
        return SP_KVX_RANGE;
    const sp_kvx_slot *slot = slot_of(s, a->block);
    if (atomic_load_explicit(&slot->generation, memory_order_acquire) != a->generation)
        return SP_KVX_STALE;
    const uint64_t name = a->name ^ sp_chaos_hit(SP_CHAOS_KVX_FOREIGN);
    if (atomic_load_explicit(&slot->name, memory_order_relaxed) != name)
        return still_sealed(slot, a) ? SP_KVX_FOREIGN : SP_KVX_STALE;
    const int32_t all = 2 * a->n_layers;
    const int32_t runs = sp_chaos_hit(SP_CHAOS_KVX_TRUNCATE) ? all / 2 : all;
    uint64_t seed = sp_kvx_seed_block(s->k.seed_base, a->block, a->generation, name);
    bool right = true;
    for (int32_t r = 0; r < runs; r++) right &= take_run(s, a, seed, a->layer_first + r / 2, r & 1);
    store_fence();
    if (runs < all) return SP_KVX_PEER; /* as an exporter that dies would leave it */
    if (sp_chaos_hit(SP_CHAOS_KVX_CORRUPT)) right &= spoil(s, a, seed);
    if (!still_sealed(slot, a)) return SP_KVX_STALE;
    return right ? SP_KVX_OK : SP_KVX_CHECKSUM;
}

static sp_kvx_fault reach(shm_reader *s) {
    if (!sp_chaos_hit(SP_CHAOS_KVX_PEER_GONE)) return connect_shm(s);
    unmap(s);
    return SP_KVX_PEER;
}

static void read_shm(sp_kvx *k, const sp_kvx_ask *asks, int n, sp_kvx_fault *faults) {
    shm_reader *s = (shm_reader *)k;
    sp_kvx_fault f = reach(s);
    for (int i = 0; i < n; i++) {
        if (atomic_load(&k->cancelled)) f = SP_KVX_PEER;
        faults[i] = f == SP_KVX_OK ? take_block(s, &asks[i]) : f;
        if (faults[i] != SP_KVX_PEER || f != SP_KVX_OK) continue;
        f = SP_KVX_PEER; /* lost: so is the rest, and the next read begins anew */
        unmap(s);
    }
}

static const sp_kvx_ops shm_ops = {.name = "shm", .close = close_shm, .read = read_shm};

sp_status sp_kvx_open_shm(sp_kvx **out, const sp_kvx *base, sp_err *err) {
    shm_reader *s = sp_try_alloc_aligned(64, sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for a reader of KV blocks");
    s->summer = sp_kvx_summer_create();
    if (!s->summer) {
        sp_free(s);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for checksums of KV blocks");
    }
    memcpy(&s->k, base, sizeof s->k);
    s->k.ops = &shm_ops;
    *out = &s->k;
    return SP_OK;
}
