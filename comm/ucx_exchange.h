/* comm/ucx_exchange.h - the inside of a ucx group: tags, posting, waiting, giving up.
 *
 * An operation posts receives and sends and then completes them all. Every post is also an entry of
 * `waits`; completing takes entries away as they end, checks what has come against what was
 * expected, and turns a lost, silent or disagreeing member into the group's fault, the first of
 * which stays. After a fault nothing is left that reads or writes the caller's memory.
 *
 * A message's tag, from the high bits:
 *
 *   fence 27 | class 2 | kind 3 | phase 1 | sender 6 | sequence 13 | check 12
 *
 * fence     hash of the group's id, its members' addresses and how often this worker has opened it:
 *           what an earlier group left behind on the worker is never matched
 * class     send(), its credit (the receiver has it), or an operation of all members
 * kind      which operation, check its size: not matched but compared afterwards, so that members
 *           that disagree hear it instead of waiting for each other
 * sequence  nobody runs ahead by more than one operation or config.sends messages
 *
 * Used by comm/group_ucx.c alone.
 * Limits: 3 open requests a member.
 * Thread: the group's one caller; `aborted` from any. */
#pragma once

#include "comm/group.h"
#include "comm/ucx_api.h"

#include <stdatomic.h>

#ifdef SP_HAVE_UCX

#define SP_UCX_SENDS_MAX 64
#define SP_UCX_FENCE_BITS 27

typedef enum sp_ucx_kind {
    SP_UCX_KIND_MESSAGE,
    SP_UCX_KIND_CREDIT,
    SP_UCX_KIND_REDUCE,
    SP_UCX_KIND_PICK,
    SP_UCX_KIND_GATHER,
    SP_UCX_KIND_OPEN
} sp_ucx_kind;
extern const char *const sp_ucx_kind_names[SP_UCX_KIND_OPEN + 1];

typedef struct sp_ucx_slot {
    sp_ucx_req req;
    unsigned char *data; /* max_message bytes, taken when first used */
} sp_ucx_slot;

typedef struct sp_ucx_lane { /* to and from one member */
    sp_ucx_peer_link *peer;
    sp_ucx_req in, out, credit;
    sp_ucx_slot slots[SP_UCX_SENDS_MAX];
    uint32_t n_sent, n_received;
    uint32_t n_credited; /* of those sent */
} sp_ucx_lane;

typedef struct sp_ucx_wait {
    sp_ucx_req *req;
    int member;
    bool is_recv;
    uint64_t tag; /* of a receive: what it has to be */
    size_t bytes;
} sp_ucx_wait;

typedef struct sp_ucx_group {
    sp_group base;
    sp_ucx *ucx;
    sp_group_config config;
    uint64_t fence;
    int wake_fd;
    _Atomic bool aborted; /* relaxed is enough: the eventfd orders, and nothing hangs on it */
    sp_err fault;
    sp_ucx_kind doing;
    uint32_t n_done; /* operations of all members */
    size_t piece;    /* floats handled at a time */
    float *scratch;
    int n_waits;
    bool leaked; /* UCX still points into this group */
    sp_ucx_wait waits[3 * SP_GROUP_MEMBERS_MAX];
    sp_ucx_lane lanes[];
} sp_ucx_group;

/* The first one stays. */
#define SP_UCX_FAULT(g, status, ...) \
    ((g)->fault.code ? (void)0 : (void)SP_FAIL(&(g)->fault, (status), __VA_ARGS__))

/** Whether the group has a fault; an abort becomes one here. */
bool sp_ucx_failed(sp_ucx_group *g);

uint64_t sp_ucx_tag(const sp_ucx_group *g, sp_ucx_kind k, int phase, int sender, uint32_t seq,
                    uint64_t check);
/** FNV-1a over some more bytes; starts from SP_UCX_MIX. */
uint64_t sp_ucx_mix(uint64_t h, const void *data, size_t n);
#define SP_UCX_MIX UINT64_C(0xcbf29ce484222325)
/** A tag's check of two sizes; their sum would hide that rows and columns changed places. */
uint64_t sp_ucx_check_of(size_t a, size_t b);

/** Posts to a member on its `out`; see sp_ucx_send(). */
void sp_ucx_post_send(sp_ucx_group *g, int to, uint64_t tag, const void *data, size_t bytes,
                      bool sync);
/** Posts a receive on a member's `in`. */
void sp_ucx_post_recv(sp_ucx_group *g, int from, uint64_t tag, void *data, size_t bytes);
/** The same on another request. */
void sp_ucx_post_recv_as(sp_ucx_group *g, sp_ucx_req *r, int from, uint64_t tag, void *data,
                         size_t bytes);
/** Waits for a request that was posted before. */
void sp_ucx_wait_for(sp_ucx_group *g, sp_ucx_req *r, int member);
/** Ends the exchange: true, or false when the group has failed and nothing is open any more. */
bool sp_ucx_complete(sp_ucx_group *g);
/** Until all that is waited for is done. The time a member may take starts anew with whatever
 * arrives. SP_AGAIN: not by the deadline. For requests without memory of the caller's. */
sp_status sp_ucx_wait_all(sp_ucx_group *g, int64_t deadline_ns);

#endif
