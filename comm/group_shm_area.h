/* comm/group_shm_area.h - the memory that the members of a shm group share, and its mapping.
 *
 * One memfd, all offsets a multiple of 64 KiB unless said otherwise:
 *
 *   0        header: magic and the sizes that all members must agree on
 *   4 KiB    a line for each of 64 members: what it has published, and how to wake it
 *   20 KiB   a post for each ordered pair, [from][to]: messages sent and taken
 *   data     for each member: two slots (phases of even and odd number), then for each receiver
 *            `sends` places of a 64-byte header and a message
 *
 * Pages that nobody touches are never there, so generous sizes and 64 members cost nothing.
 *
 * What a broken member can do: a member's data are written by itself only (the others map them
 * read-only), and no offset or length is ever read from shared memory, so that a wild store spoils
 * values and makes us give up, but never makes us touch a byte outside the mapping. The file is
 * sealed against shrinking, which would be a bus error.
 *
 * Limits: SP_GROUP_MEMBERS_MAX members; 2^46 bytes in all.
 * Source: memfd_create(2), RELIABILITY 3.1.
 * Thread: one a member; what is atomic, any. */
#pragma once

#include "comm/group.h"

#include <stdatomic.h>
#include <stdint.h>

/* Bytes; a larger tensor goes in pieces of this. Smaller pieces would stay in the caches, but meet
 * more often: measured, 256 KiB is no faster, and slower when the cores are busy. */
#define SP_SHM_SLOT_MAX ((size_t)1 << 20)
#define SP_SHM_SENDS_MAX 4096

/** What a member is about to do in one phase. Members that disagree must notice. */
typedef struct sp_shm_desc {
    uint64_t seq;    /* number of the operation */
    uint64_t what;   /* its kind in the top 8 bits, its size in elements below */
    uint64_t detail; /* a hash of everything else that must agree */
} sp_shm_desc;

typedef struct sp_shm_line {
    /* Written by its member only. desc[p & 1] stands until all have published p + 1. */
    _Alignas(128) _Atomic uint64_t published; /* phases so far */
    sp_shm_desc desc[2];
    /* Written by others too. */
    _Alignas(128) _Atomic uint32_t bell; /* futex word: changes when the member must look again */
    _Atomic uint32_t asleep;
    _Atomic uint32_t joined;
    _Atomic uint32_t gone; /* 0, or 1 + the member that is to blame: itself, when it left */
} sp_shm_line;

typedef struct sp_shm_post {
    _Alignas(64) _Atomic uint64_t sent;  /* written by the sender */
    _Alignas(64) _Atomic uint64_t taken; /* written by the receiver */
} sp_shm_post;

/** Before each message. */
typedef struct sp_shm_mail {
    uint64_t number, bytes;
    unsigned char pad[48];
} sp_shm_mail;

typedef struct sp_shm_header {
    uint64_t magic, version;
    uint64_t n, sends, slot_bytes, message_bytes;
} sp_shm_header;

/** Sizes that follow from a configuration; the same at all members. */
typedef struct sp_shm_sizes {
    size_t slot, place;  /* bytes of a slot; of a header and a message */
    size_t mail;         /* data of a member: offset of its mail */
    size_t member, data; /* bytes of a member's data; offset of the first */
    size_t total;
    int n, sends;
    size_t message; /* config->max_message */
} sp_shm_sizes;

typedef struct sp_shm_area {
    sp_shm_sizes sizes;
    sp_shm_header *header;
    sp_shm_line *lines;         /* [n] */
    sp_shm_post *posts;         /* [n][n] */
    unsigned char *mine;        /* data of this member, to write */
    const unsigned char *every; /* data of all members, to read */
    int me;
} sp_shm_area;

/** Maps the file for member `config->me` and marks it as joined.
 * Errors: SP_E_INVALID the configuration; SP_E_PROTOCOL not such memory, other sizes, or the member
 * has joined before; SP_E_NOMEM. Owner: caller, sp_shm_area_close(). */
SP_NODISCARD sp_status sp_shm_area_open(sp_shm_area *a, int fd, const sp_group_config *config,
                                        sp_err *err);
void sp_shm_area_close(sp_shm_area *a);

/** The slot that member `m` fills in phase `p`. */
static inline const float *sp_shm_slot(const sp_shm_area *a, int m, uint64_t p) {
    return (const float *)(const void *)(a->every + (size_t)m * a->sizes.member +
                                         (p & 1) * a->sizes.slot);
}
static inline float *sp_shm_my_slot(const sp_shm_area *a, uint64_t p) {
    return (float *)(void *)(a->mine + (p & 1) * a->sizes.slot);
}
static inline sp_shm_post *sp_shm_post_of(const sp_shm_area *a, int from, int to) {
    return &a->posts[(size_t)from * (size_t)a->sizes.n + (size_t)to];
}
/** Offset, in the data of a sender, of the place of message `number` to `to`. */
static inline size_t sp_shm_place(const sp_shm_area *a, int to, uint64_t number) {
    size_t sends = (size_t)a->sizes.sends;
    return a->sizes.mail + ((size_t)to * sends + (size_t)(number % sends)) * a->sizes.place;
}
