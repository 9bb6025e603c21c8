#include "comm/ucx_exchange.h"

#ifdef SP_HAVE_UCX

#include "runtime/base/clock.h"

enum {
    CHECK_BITS = 12,
    SEQUENCE_BITS = 13,
    SEQUENCE_AT = CHECK_BITS,
    SENDER_AT = SEQUENCE_AT + SEQUENCE_BITS,
    PHASE_AT = SENDER_AT + 6,
    KIND_AT = PHASE_AT + 1,
    CLASS_AT = KIND_AT + 3,
    FENCE_AT = CLASS_AT + 2
};
_Static_assert(FENCE_AT + SP_UCX_FENCE_BITS == 64, "a tag has 64 bits");
#define BITS(n) ((UINT64_C(1) << (n)) - 1)
#define COMPARED ((BITS(3) << KIND_AT) | BITS(CHECK_BITS))

const char *const sp_ucx_kind_names[] = {"send",      "credit",      "all_reduce",
                                         "pick_rows", "gather_cols", "open"};

#define SPIN_NS (20 * SP_NS_PER_US)
#define SLEEP_NS (100 * SP_NS_PER_MS) /* an upper bound: whatever we wait for wakes us */
#define GIVE_UP_NS (20 * SP_NS_PER_MS)

bool sp_ucx_failed(sp_ucx_group *g) {
    if (!g->fault.code && atomic_load_explicit(&g->aborted, memory_order_relaxed))
        SP_UCX_FAULT(g, SP_E_CANCELED, "the group was aborted");
    return g->fault.code != SP_OK;
}

/* ---- tags ---- */

uint64_t sp_ucx_tag(const sp_ucx_group *g, sp_ucx_kind k, int phase, int sender, uint32_t seq,
                    uint64_t check) {
    return g->fence | (uint64_t)(k < SP_UCX_KIND_REDUCE ? k : SP_UCX_KIND_REDUCE) << CLASS_AT |
           (uint64_t)k << KIND_AT | (uint64_t)phase << PHASE_AT | (uint64_t)sender << SENDER_AT |
           (seq & BITS(SEQUENCE_BITS)) << SEQUENCE_AT | (check & BITS(CHECK_BITS));
}

/* FNV-1a. */
uint64_t sp_ucx_mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* 12 bits of several sizes; plain sums of sizes would hide an exchange of rows and columns. */
uint64_t sp_ucx_check_of(size_t a, size_t b) {
    uint64_t h = sp_ucx_mix(sp_ucx_mix(SP_UCX_MIX, &a, sizeof a), &b, sizeof b);
    return h ^ h >> 24 ^ h >> 48;
}

/* ---- waiting ---- */

void sp_ucx_wait_for(sp_ucx_group *g, sp_ucx_req *r, int member) {
    SP_ASSERT(g->n_waits < (int)SP_LEN(g->waits));
    g->waits[g->n_waits++] = (sp_ucx_wait){.req = r, .member = member};
}

static void check_received(sp_ucx_group *g, const sp_ucx_wait *w) {
    uint64_t differ = (w->req->tag ^ w->tag) & COMPARED;
    unsigned theirs = (unsigned)(w->req->tag >> KIND_AT) & 7;
    if (differ >> KIND_AT)
        SP_UCX_FAULT(g, SP_E_INTERNAL, "member %d is at '%s' where this one is at '%s'", w->member,
                     theirs < SP_LEN(sp_ucx_kind_names) ? sp_ucx_kind_names[theirs]
                                                        : "nothing known",
                     sp_ucx_kind_names[g->doing]);
    else if (w->req->bytes != w->bytes)
        SP_UCX_FAULT(g, SP_E_INTERNAL, "member %d sent %zu bytes in '%s', want %zu", w->member,
                     w->req->bytes, sp_ucx_kind_names[g->doing], w->bytes);
    else if (differ)
        SP_UCX_FAULT(g, SP_E_INTERNAL, "member %d does '%s' of another size than this one",
                     w->member, sp_ucx_kind_names[g->doing]);
}

/* Looks at one: true when it needs no more waiting. */
static bool look(sp_ucx_group *g, const sp_ucx_wait *w) {
    const char *lost;
    switch (w->req->state) {
    case SP_UCX_OPEN:
        lost = sp_ucx_peer_lost(g->lanes[w->member].peer);
        if (lost)
            SP_UCX_FAULT(g, SP_E_PEER_LOST, "member %d was lost in '%s': %s", w->member,
                         sp_ucx_kind_names[g->doing], lost);
        return false;
    case SP_UCX_TOOBIG:
        SP_UCX_FAULT(g, SP_E_INTERNAL, "member %d sent more in '%s' than the %zu bytes wanted",
                     w->member, sp_ucx_kind_names[g->doing], w->bytes);
        return true;
    case SP_UCX_FAILED:
        SP_UCX_FAULT(g, SP_E_PEER_LOST, "member %d was lost in '%s': %s", w->member,
                     sp_ucx_kind_names[g->doing], w->req->why);
        return true;
    default:
        if (w->is_recv) check_received(g, w);
        return true;
    }
}

/* Drops what is done from the list; true when something was. */
static bool look_at_all(sp_ucx_group *g) {
    int n = 0, before = g->n_waits;
    for (int i = 0; i < before; i++)
        if (!look(g, &g->waits[i])) g->waits[n++] = g->waits[i];
    g->n_waits = n;
    return n < before;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Until all that is waited for is done. The time a member may take starts anew with whatever
 * arrives. SP_AGAIN: not by the deadline. */
sp_status sp_ucx_wait_all(sp_ucx_group *g, int64_t deadline_ns) {
    int64_t began = sp_now_ns();
    const int64_t spin_until = g->config.crowded ? began : began + SPIN_NS;
    const int64_t timeout = g->config.timeout_ns > 0 ? g->config.timeout_ns : SP_NEVER;
    for (;;) {
        bool moved = sp_ucx_progress(g->ucx);
        if (look_at_all(g)) began = sp_now_ns();
        if (sp_ucx_failed(g)) return g->fault.code;
        if (g->n_waits == 0) return SP_OK;
        int64_t now = sp_now_ns();
        if (now - began >= timeout) {
            SP_UCX_FAULT(g, SP_E_PEER_LOST, "member %d has not answered '%s' for %lld ms",
                         g->waits[0].member, sp_ucx_kind_names[g->doing],
                         (long long)(timeout / SP_NS_PER_MS));
            return g->fault.code;
        }
        if (now >= deadline_ns) return SP_AGAIN;
        if (moved || now < spin_until) continue;
        int64_t ns = least(SLEEP_NS, deadline_ns - now);
        sp_ucx_sleep(g->ucx, g->wake_fd, least(ns, timeout - (now - began)));
    }
}

static bool any_open(const sp_ucx_group *g) {
    for (int i = 0; i < g->n_waits; i++)
        if (g->waits[i].req->state == SP_UCX_OPEN) return true;
    return false;
}

static void drain(sp_ucx_group *g, int64_t ns) {
    int64_t until = sp_now_ns() + ns;
    while (any_open(g) && sp_now_ns() < until)
        if (!sp_ucx_progress(g->ucx)) sp_ucx_sleep(g->ucx, g->wake_fd, SP_NS_PER_MS);
}

/* After a fault nothing may be left that reads or writes the caller's memory. What has begun to
 * move and does not end is cut off with its member, at the cost of the other groups with it: a
 * member that stalls in the middle of a message is lost to them too. */
static void give_up(sp_ucx_group *g) {
    for (int i = 0; i < g->n_waits; i++)
        if (g->waits[i].is_recv) sp_ucx_cancel(g->ucx, g->waits[i].req);
    drain(g, GIVE_UP_NS);
    for (int i = 0; i < g->n_waits; i++)
        if (g->waits[i].req->state == SP_UCX_OPEN)
            sp_ucx_peer_cut(g->ucx, g->lanes[g->waits[i].member].peer);
    drain(g, GIVE_UP_NS);
    if (any_open(g)) g->leaked = true;
    g->n_waits = 0;
}

/* ---- exchanging ---- */

/* Ends an exchange; false when the group has failed. */
bool sp_ucx_complete(sp_ucx_group *g) {
    if (sp_ucx_wait_all(g, SP_NEVER) == SP_OK) return true;
    give_up(g);
    return false;
}

void sp_ucx_post_send(sp_ucx_group *g, int to, uint64_t tag, const void *data, size_t bytes,
                      bool sync) {
    sp_ucx_lane *l = &g->lanes[to];
    sp_ucx_send(g->ucx, l->peer, &l->out, tag, data, bytes, sync);
    sp_ucx_wait_for(g, &l->out, to);
}

void sp_ucx_post_recv_as(sp_ucx_group *g, sp_ucx_req *r, int from, uint64_t tag, void *data,
                         size_t bytes) {
    sp_ucx_recv(g->ucx, r, tag, ~COMPARED, data, bytes);
    g->waits[g->n_waits++] =
        (sp_ucx_wait){.req = r, .member = from, .is_recv = true, .tag = tag, .bytes = bytes};
}

void sp_ucx_post_recv(sp_ucx_group *g, int from, uint64_t tag, void *data, size_t bytes) {
    sp_ucx_post_recv_as(g, &g->lanes[from].in, from, tag, data, bytes);
}

#endif
