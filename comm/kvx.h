/* comm/kvx.h - blocks of the KV cache, from the rank that computed them to ranks that go on with them.
 *
 * Pull only: an exporter offers one region, its KV memory and a table, and writes nothing elsewhere;
 * a reader copies what it needs and believes it only when it is proven. The smallest part of a block
 * is a piece: K or V of one KV head of one layer, block_tokens x head_dim. The table has for each
 * block its generation, its name (of the tokens it holds, and of all before them: the first 8 bytes of
 * the hash chain), and a 64-bit checksum of each piece:
 *
 *   seal    checksums of all pieces, the name, then the generation    (it is full and stays as it is)
 *   free    the generation becomes 0, then the block may be written to
 *   read    generation and name, copy, generation again, checksums of the bytes that were copied
 *
 * A checksum is XXH3 with a seed of (key, identity, generation, name, block, layer, K|V, head): the
 * right bytes in the wrong place, of another model or of another pod do not pass. What does not pass
 * is a fault of that block; its destination then holds anything and must not be used.
 *
 * Ways (sp_kvx.ops): shm, the region mapped read-only, on one node; tcp, asked of a thread of the
 * exporter; ucx, the same with the bytes by UCX (comm/kvx_ucx.h), and tcp whenever that cannot be.
 * Over TCP both sides prove the pod's key first (comm/handshake.h); the data then goes in the clear,
 * as that of collectives does: a network that is not ours alone is kept out by its owner.
 *
 * Limits: those of the defines; a read over TCP has 1 s and its bytes at 10 MB/s, with at most
 * SP_KVX_CREDIT_BYTES asked for and not yet here. A peer that breaks the rules loses its connection.
 * Source: RELIABILITY 3.2; Boehm, "Can seqlocks get along with programming language memory models?"
 * Thread: a region's seal and free from one thread (readers run meanwhile); a reader is one
 * thread's; sp_kvx_cancel() from any. */
#pragma once

#include "runtime/base/dtype.h"

#define SP_KVX_KEY_BYTES 32
#define SP_KVX_IDENTITY_BYTES 32
#define SP_KVX_ADDRESS_BYTES 768 /* text, NUL included */
#define SP_KVX_CREDIT_BYTES ((size_t)8 << 20)
#define SP_KVX_CONNS_MAX 256
#define SP_KVX_BLOCKS_MAX (1 << 26)
#define SP_KVX_SIDE_MAX (1 << 20) /* layers, heads, tokens, dim: no overflow below */

/** What became of one block. Travels in KV_PULLED: values stay. */
typedef enum sp_kvx_fault {
    SP_KVX_OK,
    SP_KVX_STALE,    /* another generation than asked for: freed, or used anew */
    SP_KVX_CHECKSUM, /* not the bytes that were sealed */
    SP_KVX_IDENTITY, /* another model, numerics, KV type or block size */
    SP_KVX_PEER,     /* nobody there, or no longer the same, or it breaks the rules */
    SP_KVX_TIMEOUT,
    SP_KVX_RANGE,   /* no such block, layer or head there */
    SP_KVX_FOREIGN, /* it holds other tokens than those asked for */
    SP_KVX_FAULT_COUNT
} sp_kvx_fault;
const char *sp_kvx_fault_name(sp_kvx_fault f); /* "stale" */

/** What the blocks of one rank hold. In memory: [block][layer][K|V][kv head][token][dim]. */
typedef struct sp_kvx_shape {
    int32_t n_blocks, block_tokens, head_dim;
    sp_dtype dtype;
    int32_t layer_first, n_layers; /* of the model */
    int32_t head_first, n_heads;   /* KV heads, of the model */
    size_t block_bytes;            /* from one block to the next; pieces need not fill it */
} sp_kvx_shape;
size_t sp_kvx_piece_bytes(const sp_kvx_shape *s);

/* ---- exporting ---- */

typedef struct sp_kvx_config {
    sp_kvx_shape shape;
    uint8_t key[SP_KVX_KEY_BYTES];           /* the pod's: whoever reads must know it */
    uint8_t identity[SP_KVX_IDENTITY_BYTES]; /* model and numerics: equal, or nothing is read */
    bool serve_shm, serve_tcp;
    bool serve_ucx;   /* beside TCP, to readers that want it; where there is no UCX: TCP alone */
    const char *host; /* where to listen; NULL or "": all addresses, a free port */
    /* A reader of another pod says that it still needs what it was lent, or not any more. From a
     * thread of the server; may be NULL. */
    void (*on_lease)(void *ctx, uint64_t lease, bool renew);
    void *lease_ctx;
} sp_kvx_config;

typedef struct sp_kvx_region sp_kvx_region;

/** Takes the KV memory (zeroed; pages that nobody touches cost nothing) and serves it.
 * Owner:  caller, sp_kvx_region_close(): readers then get SP_KVX_STALE or SP_KVX_PEER.
 * Errors: SP_E_INVALID a shape that cannot be; SP_E_NOMEM; SP_E_IO. */
SP_NODISCARD sp_status sp_kvx_region_open(sp_kvx_region **out, const sp_kvx_config *c, sp_err *err);
void sp_kvx_region_close(sp_kvx_region *r);

/** The blocks, 4096-byte aligned: for the forward pass to write to. */
void *sp_kvx_region_memory(const sp_kvx_region *r, size_t *bytes);
int sp_kvx_region_port(const sp_kvx_region *r); /* 0: not served over TCP */
/** What a reader needs, as one line of printable text. `tcp`: comma-separated addresses of this node
 * with that port, "" for none. Errors: SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_kvx_region_address(const sp_kvx_region *r, const char *tcp,
                                             char out[SP_KVX_ADDRESS_BYTES], sp_err *err);

/** Makes a full block readable under `generation` (not 0, never used before for it), as `name`.
 * Errors: SP_E_INVALID no such block, generation 0. */
SP_NODISCARD sp_status sp_kvx_seal(sp_kvx_region *r, uint32_t block, uint32_t generation,
                                   uint64_t name, sp_err *err);
/** Makes it unreadable, before anything is written to it. Another generation than the sealed one:
 * nothing is done. Errors: SP_E_INVALID no such block. */
SP_NODISCARD sp_status sp_kvx_free(sp_kvx_region *r, uint32_t block, uint32_t generation,
                                   sp_err *err);
uint64_t sp_kvx_region_refused(const sp_kvx_region *r); /* peers that were not ours. Any thread */

/* ---- reading ---- */

/** Some pieces of one block, named as the model names them, and where they go. */
typedef struct sp_kvx_ask {
    uint32_t block, generation;
    uint64_t name;
    int32_t layer_first, n_layers, head_first, n_heads;
    unsigned char *to;   /* K of the first layer and head; heads follow one another */
    size_t layer_stride; /* from a layer to the next */
    size_t value_offset; /* from K to V of a layer */
} sp_kvx_ask;

typedef struct sp_kvx sp_kvx;
typedef struct sp_kvx_ops {
    const char *name; /* "shm", "tcp", "ucx" */
    void (*close)(sp_kvx *k);
    /** Reads `n` asks; faults[i] says what became of each. Connects when it is not connected; after
     * a broken rule, a lost peer or a timeout the rest are that fault, and the next read begins
     * anew. Any fault means: that destination holds anything. */
    void (*read)(sp_kvx *k, const sp_kvx_ask *asks, int n, sp_kvx_fault *faults);
    /** Tells the exporter's on_lease; NULL: this way cannot. */
    sp_kvx_fault (*lease)(sp_kvx *k, uint64_t lease, bool renew);
} sp_kvx_ops;

typedef struct sp_kvx_reader_config {
    sp_kvx_shape shape; /* the reader's own: type, tokens and dim must be the exporter's */
    uint8_t key[SP_KVX_KEY_BYTES];
    uint8_t identity[SP_KVX_IDENTITY_BYTES];
    bool same_node; /* by shared memory, when the exporter offers it */
    bool ucx;       /* otherwise by UCX, when both sides can; else by TCP */
} sp_kvx_reader_config;

/** A reader of one region; `address` as sp_kvx_region_address() gave it. Connects at the first read.
 * Owner:  caller, sp_kvx_close().
 * Errors: SP_E_INVALID an address that is none, or no way there; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kvx_open(sp_kvx **out, const char *address, const sp_kvx_reader_config *c,
                                   sp_err *err);
void sp_kvx_close(sp_kvx *k);
/** Makes a read that is going on, and all later ones, give SP_KVX_PEER soon (100 ms). */
void sp_kvx_cancel(sp_kvx *k);
/** ops->name. Whether tcp has become ucx is known after the first read. */
const char *sp_kvx_way(const sp_kvx *k);

void sp_kvx_read(sp_kvx *k, const sp_kvx_ask *asks, int n, sp_kvx_fault *faults);
/** Renews what the exporter has lent (renew), or gives it back. Connects when it is not connected.
 * SP_KVX_OK: it was taken; SP_KVX_RANGE: this way cannot. */
sp_kvx_fault sp_kvx_lease(sp_kvx *k, uint64_t lease, bool renew);
