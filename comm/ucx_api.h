/* comm/ucx_api.h - what our transports need of UCX: a worker, its peers, tagged messages.
 *
 * UCX is found at run time (dlopen, a table of functions): the binary starts in the same time
 * and runs without it. It is compiled in where its headers are there; else sp_ucx_open() says no
 * and nothing below it exists. No type of UCX passes this header.
 *
 * Settings, unless the user's UCX_* say otherwise: transports tcp, self, cma and RDMA (segments of
 * posix and sysv outlive a killed process); PEER error mode; every message eager. A rendezvous
 * over tcp needs the sender to make progress until the receiver has come; a stage that has sent
 * and waits for something else makes none, and both would wait for ever. Over loopback eager was as
 * fast (1 GB/s at 4 MB either way). From 4 KB on without a copy, because UCX calls a copied message
 * done while its end still waits in a buffer for the next progress (a flush is no way out: over tcp
 * it asks the peer, who may be busy elsewhere). No handlers of signals, no words on stderr.
 * A home (KV blocks, comm/kvx_ucx.h) copies all it sends. UCX 1.13 aborts the process when a peer
 * goes away while a message to it is sent without a copy over tcp (an assertion in the completion of
 * its parts; seen at any point of a 4 MB message, eager or rendezvous, never with copies). Members of a
 * group fall together; an exporter must not fall with its reader. Over loopback a copy more cost
 * nothing that could be measured. Whoever uses a home moves its worker while he waits, so that no end
 * of a message stays behind.
 *
 * A request lives with its caller and must not move while it is open. UCX does not complete a
 * receive from a dead peer: cancel it. One that has begun to arrive cannot be canceled: drop the
 * peer, then nothing writes to the buffer any more.
 *
 * Peers are kept while the worker lives, whoever uses them: closing a connection would be a fault
 * at the other side, whose groups may still need it. Lost ones that nobody uses are recycled.
 *
 * Limits: SP_UCX_PEERS_MAX peers a worker.
 * Source: OpenUCX 1.13 ucp.h; 1.10 or later has all that is used here.
 * Thread: one at a time for a worker and everything on it. */
#pragma once

#include "comm/group.h"

#include <sys/uio.h>

#define SP_UCX_PEERS_MAX 256
#define SP_UCX_ADDRESS_MAX ((size_t)64 * 1024)
#define SP_UCX_GROUPS_MAX 4

#if defined(__has_include)
#if __has_include(<ucp/api/ucp.h>)
#define SP_HAVE_UCX 1
#endif
#endif

/** A context that workers of several threads share. */
typedef struct sp_ucx_home sp_ucx_home;
/** Owner: caller, sp_ucx_home_close() after its workers. Errors: as sp_ucx_open(). Thread: any, until
 * it is open; then sp_ucx_open_at() from any. */
SP_NODISCARD sp_status sp_ucx_home_open(sp_ucx_home **out, sp_err *err);
void sp_ucx_home_close(sp_ucx_home *h);
/** A worker of a home; sp_ucx_close() ends it. Errors: SP_E_DEVICE, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_ucx_open_at(sp_ucx **out, sp_ucx_home *h, sp_err *err);

/** The release of UCX that was found, "1.13.1"; for logs. Borrowed until close. */
const char *sp_ucx_version(const sp_ucx *u);

#ifdef SP_HAVE_UCX

typedef struct sp_ucx_peer_link sp_ucx_peer_link;

typedef enum sp_ucx_state {
    SP_UCX_IDLE,
    SP_UCX_OPEN,
    SP_UCX_DONE,   /* `bytes` and `tag` of a receive are there */
    SP_UCX_TOOBIG, /* a receive: the message was longer than its buffer */
    SP_UCX_FAILED  /* `why` */
} sp_ucx_state;

typedef struct sp_ucx_req {
    sp_ucx_state state;
    const char *why; /* static */
    sp_ucx *ucx;     /* the worker it was posted on */
    void *handle;    /* UCX's own, while open */
    uint64_t tag;
    size_t bytes;
} sp_ucx_req;

/** Counts one more user of the worker whose address this is, connecting when it is new.
 * Owner: caller, sp_ucx_peer_drop(). Errors: SP_E_PEER_LOST, SP_E_LIMIT, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_ucx_peer_take(sp_ucx_peer_link **out, sp_ucx *u, const void *address,
                                        size_t bytes, sp_err *err);
void sp_ucx_peer_drop(sp_ucx *u, sp_ucx_peer_link *p);
/** Why the peer is lost (static words), or NULL. */
const char *sp_ucx_peer_lost(const sp_ucx_peer_link *p);
/** Cuts the connection now: what is open on it ends. The peer counts as lost. */
void sp_ucx_peer_cut(sp_ucx *u, sp_ucx_peer_link *p);

/** Posts a message. Done when the transport has taken it whole (all but 4 KB of it, in the worst
 * case); `sync`: only when the receiver has matched it. */
void sp_ucx_send(sp_ucx *u, sp_ucx_peer_link *p, sp_ucx_req *r, uint64_t tag, const void *data,
                 size_t bytes, bool sync);
void sp_ucx_recv(sp_ucx *u, sp_ucx_req *r, uint64_t tag, uint64_t mask, void *data, size_t bytes);
/** The same, of and to several places; `v` must stay as it is while the request is open. */
void sp_ucx_send_all(sp_ucx *u, sp_ucx_peer_link *p, sp_ucx_req *r, uint64_t tag,
                     const struct iovec *v, size_t n);
void sp_ucx_recv_all(sp_ucx *u, sp_ucx_req *r, uint64_t tag, uint64_t mask, const struct iovec *v,
                     size_t n);
/** Ends a receive that has not begun. */
void sp_ucx_cancel(sp_ucx *u, sp_ucx_req *r);
bool sp_ucx_probe(sp_ucx *u, uint64_t tag, uint64_t mask);
/** Throws away messages that have come and that nobody will receive. */
void sp_ucx_discard(sp_ucx *u, uint64_t tag, uint64_t mask);

/** Moves what can be moved; false when nothing could. */
bool sp_ucx_progress(sp_ucx *u);
/** Sleeps until something comes, `wake_fd` is readable or `ns` have passed. */
void sp_ucx_sleep(sp_ucx *u, int wake_fd, int64_t ns);
/** The same for any `events` of a descriptor; gives what of it was there (poll's revents). */
short sp_ucx_sleep_on(sp_ucx *u, int fd, short events, int64_t ns);

/** Registers an open group by its fence. Errors: SP_E_INVALID it is there already, SP_E_LIMIT. */
SP_NODISCARD sp_status sp_ucx_group_add(sp_ucx *u, uint32_t fence, sp_err *err);
void sp_ucx_group_remove(sp_ucx *u, uint32_t fence);
/** How many groups of this kind were opened on the worker before. Errors: SP_E_LIMIT. */
SP_NODISCARD sp_status sp_ucx_generation(sp_ucx *u, uint32_t base, uint32_t *n, sp_err *err);
/** Frees `memory` (sp_free) only when the worker is gone: a forgotten request points into it. */
void sp_ucx_keep(sp_ucx *u, void *memory);

#endif
