/* comm/kvx_part.h - what the parts of comm/kvx.h share: the region's layout, the checksum, the bytes
 * over TCP.
 *
 *   region   0     sp_kvx_head, 4 KiB
 *            4096  table: n_blocks slots of slot_bytes
 *            kv    n_blocks of shape.block_bytes, at a multiple of 2 MiB (4 KiB when small)
 *   slot     0 generation u32 (atomic) | 4 zero u32 | 8 name u64 | 16 a checksum for each piece, in the
 *            order of the block's memory
 *
 * Over TCP, little-endian, after the handshake (role peer, build "superpod-kvx-2"):
 *   reader    OPEN    sp_kvx_hello                            once
 *   exporter  MEET    sp_kvx_meet                             its answer; a fault ends the connection
 *   reader    ASK     sp_kvx_want                             many may be on their way
 *   exporter  GIVE    sp_kvx_give; when its fault is 0: n_pieces checksums | the pieces' bytes, [layer]
 *                     [K|V][head] | sp_kvx_last               in the order of the asks
 * When both would by UCX, MEET is followed by what comm/kvx_ucx.h draws; of a GIVE the pieces' bytes
 * then come there, in messages of ASK's runs with ASK's tag and those after it.
 *   reader    NOTICE  sp_kvx_notice                           when none of its asks is on its way
 *   exporter  GIVE    sp_kvx_give without pieces              its answer
 *
 * Thread: any. */
#pragma once

#include "comm/door.h"
#include "comm/kvx.h"

#include <stdatomic.h>

#define SP_KVX_MAGIC UINT64_C(0x3258564b50533131)
#define SP_KVX_HEAD_BYTES 4096
#define SP_KVX_BUILD "superpod-kvx-2"

typedef struct sp_kvx_head {
    uint64_t magic;
    uint64_t incarnation[2];
    uint8_t identity[SP_KVX_IDENTITY_BYTES];
    int32_t n_blocks, block_tokens, head_dim, dtype, layer_first, n_layers, head_first, n_heads;
    uint64_t block_bytes, slot_bytes, kv_offset, total_bytes;
} sp_kvx_head;
_Static_assert(sizeof(sp_kvx_head) <= SP_KVX_HEAD_BYTES, "one page");

typedef struct sp_kvx_slot {
    _Atomic uint32_t generation;
    uint32_t zero;
    _Atomic uint64_t name, sums[];
} sp_kvx_slot;

/** All of it follows from a shape. Errors: SP_E_INVALID a shape that cannot be. */
SP_NODISCARD sp_status sp_kvx_head_of(sp_kvx_head *out, const sp_kvx_shape *s, sp_err *err);
void sp_kvx_head_shape(const sp_kvx_head *h, sp_kvx_shape *out);

static inline size_t sp_kvx_slot_offset(const sp_kvx_head *h, uint32_t block) {
    return SP_KVX_HEAD_BYTES + (size_t)block * h->slot_bytes;
}

/** Keeps what is before it in the program before what is after it. ThreadSanitizer does not know
 * fences; it does not see two mappings of one memory as the same either. */
static inline void sp_kvx_fence(void) {
#if defined(__SANITIZE_THREAD__)
    __sync_synchronize();
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/** What all seeds of a pod, model and block size begin with. */
uint64_t sp_kvx_seed_base(const uint8_t key[SP_KVX_KEY_BYTES],
                          const uint8_t identity[SP_KVX_IDENTITY_BYTES], const sp_kvx_shape *s);
/** The seed of one block's generation and name; a piece's is mixed from it. */
uint64_t sp_kvx_seed_block(uint64_t base, uint32_t block, uint32_t generation, uint64_t name);
/** The checksum of a piece: `layer` and `head` of the model; is_value: V. */
uint64_t sp_kvx_sum(uint64_t block_seed, int32_t layer, bool is_value, int32_t head, const void *p,
                    size_t n);
/** The same of a piece that comes bit by bit: begin, more as often as there is more, end. The end is
 * sp_kvx_sum() of all of it. Owner: caller, sp_kvx_summer_destroy(); NULL: no memory. */
typedef struct sp_kvx_summer sp_kvx_summer;
sp_kvx_summer *sp_kvx_summer_create(void);
void sp_kvx_summer_destroy(sp_kvx_summer *s);
void sp_kvx_summer_begin(sp_kvx_summer *s, uint64_t block_seed, int32_t layer, bool is_value,
                         int32_t head);
void sp_kvx_summer_more(sp_kvx_summer *s, const void *p, size_t n);
uint64_t sp_kvx_summer_end(const sp_kvx_summer *s);

/** Whether a shape holds all that is asked for. */
bool sp_kvx_has(const sp_kvx_shape *s, uint32_t block, int32_t layer_first, int32_t n_layers,
                int32_t head_first, int32_t n_heads);
/** Index of a piece in its block: its place in memory in pieces, and its checksum's in the slot. */
static inline size_t sp_kvx_piece_index(const sp_kvx_shape *s, int32_t layer, bool is_value,
                                        int32_t head) {
    return ((size_t)(layer - s->layer_first) * 2 + is_value) * (size_t)s->n_heads +
           (size_t)(head - s->head_first);
}

/** A reader's address, taken apart. */
typedef struct sp_kvx_place {
    char share[64]; /* "" none */
    char tcp[SP_KVX_ADDRESS_BYTES];
    uint64_t incarnation[2];
} sp_kvx_place;

struct sp_kvx {
    const sp_kvx_ops *ops;
    sp_kvx_reader_config config;
    sp_kvx_place place;
    uint64_t seed_base;
    size_t piece_bytes;
    _Atomic bool cancelled;
};
/** Readers by each way; `base` is copied. */
SP_NODISCARD sp_status sp_kvx_open_shm(sp_kvx **out, const sp_kvx *base, sp_err *err);
SP_NODISCARD sp_status sp_kvx_open_tcp(sp_kvx **out, const sp_kvx *base, sp_err *err);

/** A fault point: flips a bit of a piece that has come, and proves it again. False: as it must be. */
bool sp_kvx_spoiled(const sp_kvx *k, uint64_t block_seed, int32_t layer, int32_t head,
                    unsigned char *piece, uint64_t want);

/** Whether a region is the one that was told of and of our kind. */
sp_kvx_fault sp_kvx_judge(const sp_kvx *k, const uint64_t incarnation[2],
                          const uint8_t identity[SP_KVX_IDENTITY_BYTES],
                          const sp_kvx_shape *theirs);

/* ---- TCP ---- */

typedef struct sp_kvx_hello {
    uint64_t incarnation[2];
    uint8_t identity[SP_KVX_IDENTITY_BYTES];
    int32_t block_tokens, head_dim, dtype;
    int32_t ucx; /* 1: the reader would have the bytes by UCX */
} sp_kvx_hello;

typedef struct sp_kvx_meet {
    uint32_t fault;
    uint32_t ucx; /* 1: so would the exporter, and offers follow (comm/kvx_ucx.h) */
    sp_kvx_head head;
} sp_kvx_meet;

#define SP_KVX_WANT_MAGIC 0x4e41574bu
#define SP_KVX_GIVE_MAGIC 0x5649474bu
typedef struct sp_kvx_want {
    uint32_t magic, block, generation;
    uint32_t runs; /* of a message, by UCX; 0: over TCP */
    uint64_t name;
    uint64_t tag; /* of the first message, by UCX */
    int32_t layer_first, n_layers, head_first,
        n_heads; /* at most SP_KVX_CREDIT_BYTES, or a piece */
} sp_kvx_want;

#define SP_KVX_NOTICE_MAGIC 0x45534c4bu
typedef struct sp_kvx_notice { /* of a lease; as large as an ask, which it comes in place of */
    uint32_t magic, renew;
    uint64_t lease, zero[4];
} sp_kvx_notice;
_Static_assert(sizeof(sp_kvx_notice) == sizeof(sp_kvx_want), "read as one");

typedef struct sp_kvx_give {
    uint32_t magic, fault;
    uint32_t n_pieces, zero;
} sp_kvx_give;

typedef struct sp_kvx_last {
    uint32_t magic, generation; /* read after the data was */
} sp_kvx_last;

/** The token of the handshake, made of the pod's key. Owner: caller, sp_wipe(). */
void sp_kvx_token(sp_token *out, const uint8_t key[SP_KVX_KEY_BYTES]);
/* ---- serving over TCP (comm/kvx_serve.c) ---- */

typedef struct sp_kvx_server sp_kvx_server;
/** Serves the region of memory `fd` until closed, from a mapping of its own that it cannot write to. */
SP_NODISCARD sp_status sp_kvx_server_open(sp_kvx_server **out, const sp_kvx_config *c, int fd,
                                          const sp_kvx_head *head, sp_err *err);
void sp_kvx_server_close(sp_kvx_server *s); /* ends all connections */
int sp_kvx_server_port(const sp_kvx_server *s);
uint64_t sp_kvx_server_refused(const sp_kvx_server *s);
