/* runtime/text/bpe_impl.h - what bpe.c and bpe_load.c share.
 *
 * Two tables of open addressing (pieces by hash, merges by pair) and a table of single characters.
 * `seams` is a Bloom filter of the pairs of first symbols that some merge brings together: two
 * neighbours that are not in it never end up in one token, so that a long text without a
 * pre-tokenizer (Llama 2) is merged in short stretches that stay in the cache.
 *
 * Thread: const after load. */
#pragma once

#include "runtime/text/bpe.h"

#define SP_BPE_CHARS 0x10000 /* characters whose token is in a table; the others go by hash */
#define SP_BPE_FREE UINT64_MAX
#define SP_BPE_SEAM_BITS 21

typedef struct sp_bpe_slot {
    uint32_t hash;
    int32_t id; /* -1: free */
} sp_bpe_slot;

typedef struct sp_bpe_merge {
    uint64_t pair; /* left << 32 | right; SP_BPE_FREE: none */
    uint32_t rank;
    int32_t id;
} sp_bpe_merge;

struct sp_bpe {
    char *text; /* all pieces, one after the other */
    uint32_t *offsets, *lens;
    bool *present;
    int32_t n_ids;
    sp_bpe_slot *slots;
    size_t n_slots;
    sp_bpe_merge *merges;
    size_t n_merge_slots;
    int32_t *chars; /* [SP_BPE_CHARS]: token of a character, -1: none; NULL with prefix or suffix */
    uint64_t *seams;    /* [2^SP_BPE_SEAM_BITS bits]; NULL: any two may meet */
    int32_t bytes[256]; /* token "<0x..>" of a byte, -1: none */
    bool byte_fallback, fuse_unk, ignore_merges, has_unk;
    int32_t unk;
    sp_slice prefix, suffix; /* owned */
};

static inline uint64_t sp_bpe_pair(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline uint64_t sp_bpe_mix(uint64_t pair) {
    return pair * 0x9e3779b97f4a7c15u;
}

static inline uint32_t sp_bpe_seam_bit(int32_t left, int32_t right) {
    return (uint32_t)(sp_bpe_mix(sp_bpe_pair(left, right)) >> (64 - SP_BPE_SEAM_BITS));
}

/** Where the pair is, or where it would go. */
static inline sp_bpe_merge *sp_bpe_merge_slot(const sp_bpe *m, uint64_t pair) {
    size_t i = (size_t)(sp_bpe_mix(pair) >> 32) & (m->n_merge_slots - 1);
    while (m->merges[i].pair != SP_BPE_FREE && m->merges[i].pair != pair)
        i = (i + 1) & (m->n_merge_slots - 1);
    return &m->merges[i];
}

/* FNV's low bits are weak for short keys that differ in few bits, so they are stirred once more. */
static inline uint32_t sp_bpe_hash(const char *p, size_t n) {
    uint64_t h = sp_hash_bytes(p, n);
    return (uint32_t)(h ^ (h >> 32));
}
