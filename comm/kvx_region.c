/* The exporter's side of comm/kvx.h: memory, table, seal and free. */
#include "comm/kvx_part.h"
#include "comm/secret.h"
#include "comm/share.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* linux/fcntl.h, since 5.1 */
#endif

struct sp_kvx_region {
    int fd;
    unsigned char *base;
    sp_kvx_head head;
    sp_kvx_shape shape;
    uint64_t seed_base;
    sp_share *share;
    sp_kvx_server *server;
};

static sp_kvx_slot *slot_of(const sp_kvx_region *r, uint32_t block) {
    return (sp_kvx_slot *)(void *)(r->base + sp_kvx_slot_offset(&r->head, block));
}

/* Nobody else may write to it, and its size stays: a reader's access cannot end in SIGBUS. */
static sp_status take_memory(sp_kvx_region *r, sp_err *err) {
    size_t n = r->head.total_bytes;
    r->fd = memfd_create("superpod-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (r->fd < 0 || ftruncate(r->fd, (off_t)n) != 0)
        return SP_FAIL(err, SP_E_NOMEM, "%zu bytes of KV memory: %s", n, strerror(errno));
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd, 0);
    if (p == MAP_FAILED)
        return SP_FAIL(err, SP_E_NOMEM, "mapping %zu bytes of KV memory: %s", n, strerror(errno));
    r->base = p;
    (void)madvise(p, n, MADV_HUGEPAGE); /* where it is not to be had, small pages do */
    if (fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        return SP_FAIL(err, SP_E_IO, "sealing KV memory: %s", strerror(errno));
    /* Kernels before 5.1 cannot refuse writable mappings of others; all readers map read-only. */
    (void)fcntl(r->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
    memcpy(r->base, &r->head, sizeof r->head);
    return SP_OK;
}

static sp_status serve(sp_kvx_region *r, const sp_kvx_config *c, sp_err *err) {
    if (c->serve_shm) {
        SP_TRY(sp_share_open(&r->share, c->key, err));
        SP_TRY(sp_share_add(r->share, 0, r->fd, err));
    }
    if (c->serve_tcp) SP_TRY(sp_kvx_server_open(&r->server, c, r->fd, &r->head, err));
    return SP_OK;
}

sp_status sp_kvx_region_open(sp_kvx_region **out, const sp_kvx_config *c, sp_err *err) {
    sp_kvx_head head;
    SP_TRY(sp_kvx_head_of(&head, &c->shape, err));
    memcpy(head.identity, c->identity, sizeof head.identity);
    SP_TRY(sp_random_bytes(head.incarnation, sizeof head.incarnation, err));
    sp_kvx_region *r = sp_try_alloc(sizeof *r);
    if (!r) return SP_FAIL(err, SP_E_NOMEM, "no memory for a KV region");
    *r = (sp_kvx_region){.fd = -1,
                         .head = head,
                         .shape = c->shape,
                         .seed_base = sp_kvx_seed_base(c->key, c->identity, &c->shape)};
    sp_status st = take_memory(r, err);
    if (st == SP_OK) st = serve(r, c, err);
    if (st != SP_OK) {
        sp_kvx_region_close(r);
        return st;
    }
    *out = r;
    return SP_OK;
}

/* The generation first, and nothing of what comes after it before it. */
static void unseal(sp_kvx_slot *s) {
    atomic_store_explicit(&s->generation, 0, memory_order_relaxed);
    sp_kvx_fence();
}

void sp_kvx_region_close(sp_kvx_region *r) {
    if (!r) return;
    /* Readers that have mapped it keep it: what they see from now on is not for them. */
    for (int32_t i = 0; r->base && i < r->shape.n_blocks; i++) {
        sp_kvx_slot *s = slot_of(r, (uint32_t)i);
        if (atomic_load_explicit(&s->generation, memory_order_relaxed)) unseal(s);
    }
    sp_kvx_server_close(r->server);
    sp_share_close(r->share);
    if (r->base) munmap(r->base, r->head.total_bytes);
    if (r->fd >= 0) close(r->fd);
    sp_free(r);
}

void *sp_kvx_region_memory(const sp_kvx_region *r, size_t *bytes) {
    *bytes = r->head.total_bytes - r->head.kv_offset;
    return r->base + r->head.kv_offset;
}

int sp_kvx_region_port(const sp_kvx_region *r) {
    return r->server ? sp_kvx_server_port(r->server) : 0;
}

uint64_t sp_kvx_region_refused(const sp_kvx_region *r) {
    return (r->server ? sp_kvx_server_refused(r->server) : 0) +
           (r->share ? sp_share_refused(r->share) : 0);
}

sp_status sp_kvx_region_address(const sp_kvx_region *r, const char *tcp,
                                char out[SP_KVX_ADDRESS_BYTES], sp_err *err) {
    const char *share = r->share ? sp_share_name(r->share) : "-";
    if (!r->server || !tcp[0]) tcp = "-";
    int n = snprintf(out, SP_KVX_ADDRESS_BYTES, "kvx1 %016" PRIx64 "%016" PRIx64 " %s %s",
                     r->head.incarnation[0], r->head.incarnation[1], share, tcp);
    if (n < 0 || n >= SP_KVX_ADDRESS_BYTES)
        return SP_FAIL(err, SP_E_TOOLONG, "an address of KV blocks of %d bytes, at most %d", n,
                       SP_KVX_ADDRESS_BYTES - 1);
    return SP_OK;
}

static sp_status check_block(const sp_kvx_region *r, uint32_t block, sp_err *err) {
    if (block < (uint32_t)r->shape.n_blocks) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "KV block %u, want below %d", block, r->shape.n_blocks);
}

static void sum_pieces(const sp_kvx_region *r, sp_kvx_slot *s, uint32_t block, uint32_t generation,
                       uint64_t name) {
    const sp_kvx_shape *h = &r->shape;
    const size_t bytes = sp_kvx_piece_bytes(h);
    const unsigned char *p = r->base + r->head.kv_offset + (size_t)block * h->block_bytes;
    uint64_t seed = sp_kvx_seed_block(r->seed_base, block, generation, name);
    size_t i = 0;
    for (int32_t l = 0; l < h->n_layers; l++)
        for (int is_value = 0; is_value < 2; is_value++)
            for (int32_t k = 0; k < h->n_heads; k++, i++, p += bytes)
                atomic_store_explicit(
                    &s->sums[i],
                    sp_kvx_sum(seed, h->layer_first + l, is_value, h->head_first + k, p, bytes),
                    memory_order_relaxed);
}

sp_status sp_kvx_seal(sp_kvx_region *r, uint32_t block, uint32_t generation, uint64_t name,
                      sp_err *err) {
    SP_TRY(check_block(r, block, err));
    if (generation == 0)
        return SP_FAIL(err, SP_E_INVALID, "KV block %u cannot be sealed as generation 0", block);
    sp_kvx_slot *s = slot_of(r, block);
    unseal(s);
    sum_pieces(r, s, block, generation, name);
    atomic_store_explicit(&s->name, name, memory_order_relaxed);
    atomic_store_explicit(&s->generation, generation, memory_order_release);
    return SP_OK;
}

sp_status sp_kvx_free(sp_kvx_region *r, uint32_t block, uint32_t generation, sp_err *err) {
    SP_TRY(check_block(r, block, err));
    sp_kvx_slot *s = slot_of(r, block);
    if (atomic_load_explicit(&s->generation, memory_order_relaxed) == generation) unseal(s);
    return SP_OK;
}
