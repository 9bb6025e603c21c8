#include "comm/group.h"

#include "comm/group_tree.h"
#include "comm/ucx_exchange.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#ifndef SP_HAVE_UCX

sp_status sp_group_open_ucx(sp_group **out, sp_ucx *u, const sp_ucx_peer *peers, uint32_t group_id,
                            const sp_group_config *config, sp_err *err) {
    (void)out, (void)u, (void)peers, (void)group_id, (void)config;
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "this build has no ucx: its headers were not there when it was compiled");
}

#else

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PIECE_MIN ((size_t)4096)
#define PIECE_MAX ((size_t)1 << 18) /* floats; 1 MB: below it the pauses between pieces show */
/* Up to here every member gets everything and sums it itself: one hop instead of two. */
#define DIRECT_MAX ((size_t)8192)
#define PUSH_NS (20 * SP_NS_PER_MS)
#define CLOSE_NS SP_NS_PER_S
#define OPEN_NS (30 * SP_NS_PER_S) /* others may still be starting */

#define FENCE_AT (64 - SP_UCX_FENCE_BITS)

static sp_ucx_group *of(sp_group *g) {
    return (sp_ucx_group *)g;
}

/* The other members in an order that is another at each: nobody is everybody's first. */
static int other(const sp_ucx_group *g, int i) {
    return (g->base.me + 1 + i) % g->base.n;
}

/* ---- all_reduce ---- */

static void reduce_direct(sp_ucx_group *g, float *buf, size_t n, uint64_t check) {
    const float *parts[SP_GROUP_MEMBERS_MAX];
    const int others = g->base.n - 1, me = g->base.me;
    uint32_t seq = g->n_done++;
    parts[me] = buf;
    for (int i = 0; i < others; i++) {
        int m = other(g, i);
        float *to = g->scratch + (size_t)i * n;
        parts[m] = to;
        sp_ucx_post_recv(g, m, sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 0, m, seq, check), to,
                         n * sizeof *buf);
    }
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 0, me, seq, check);
    for (int i = 0; i < others; i++)
        sp_ucx_post_send(g, other(g, i), tag, buf, n * sizeof *buf, false);
    if (sp_ucx_complete(g)) sp_group_tree(buf, parts, g->base.n, n);
}

/* Slice m of n floats begins here; whole cache lines, so that no two members write one. */
static size_t slice_at(const sp_ucx_group *g, size_t n, int m) {
    size_t lines = (n + 15) / 16, at = lines * (size_t)m / (size_t)g->base.n * 16;
    return at < n ? at : n;
}

/* Slice m goes to member m, is summed there and comes back to everybody. */
static void reduce_sliced(sp_ucx_group *g, float *buf, size_t n, uint64_t check) {
    const float *parts[SP_GROUP_MEMBERS_MAX];
    const int others = g->base.n - 1, me = g->base.me;
    const size_t mine = slice_at(g, n, me), n_mine = slice_at(g, n, me + 1) - mine;
    uint32_t seq = g->n_done++;
    parts[me] = buf + mine;
    for (int i = 0; i < others; i++) {
        int m = other(g, i);
        float *to = g->scratch + (size_t)i * n_mine;
        parts[m] = to;
        sp_ucx_post_recv(g, m, sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 0, m, seq, check), to,
                         n_mine * sizeof *buf);
    }
    for (int i = 0; i < others; i++) {
        int m = other(g, i);
        size_t at = slice_at(g, n, m), end = slice_at(g, n, m + 1);
        sp_ucx_post_send(g, m, sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 0, me, seq, check), buf + at,
                         (end - at) * sizeof *buf, false);
    }
    if (!sp_ucx_complete(g)) return;
    sp_group_tree(buf + mine, parts, g->base.n, n_mine);

    for (int i = 0; i < others; i++) {
        int m = other(g, i);
        size_t at = slice_at(g, n, m), end = slice_at(g, n, m + 1);
        sp_ucx_post_recv(g, m, sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 1, m, seq, check), buf + at,
                         (end - at) * sizeof *buf);
    }
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_REDUCE, 1, me, seq, check);
    for (int i = 0; i < others; i++)
        sp_ucx_post_send(g, other(g, i), tag, buf + mine, n_mine * sizeof *buf, false);
    (void)sp_ucx_complete(g);
}

static void ucx_all_reduce(sp_group *base, float *buf, size_t n) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_REDUCE;
    uint64_t check = sp_ucx_check_of(n, 0);
    size_t done = 0;
    do { /* also for nothing at all: who wants more has to hear it */
        if (sp_ucx_failed(g)) return;
        if (base->n == 1) return;
        size_t now = n - done < g->piece ? n - done : g->piece;
        /* Between two members slices save nothing. */
        if (now <= DIRECT_MAX || base->n == 2)
            reduce_direct(g, buf + done, now, check);
        else
            reduce_sliced(g, buf + done, now, check);
        done += now;
    } while (done < n);
}

/* ---- pick_rows ---- */

typedef struct tile { /* of rows [n_rows, cols] */
    float *rows;
    size_t cols, row, n_rows, col, n_cols;
    const int32_t *owner;
} tile;

/* Copies a member's rows of the tile side by side to `packed`, or back. Gives their floats. */
static size_t move_rows(const tile *t, int member, float *packed, bool pack) {
    size_t at = 0;
    for (size_t i = t->row; i < t->row + t->n_rows; i++) {
        if (t->owner[i] != member) continue;
        float *row = t->rows + i * t->cols + t->col;
        if (packed)
            memcpy(pack ? packed + at : row, pack ? row : packed + at, t->n_cols * sizeof *row);
        at += t->n_cols;
    }
    return at;
}

/* Also members that own nothing send: then nobody runs ahead. */
static void pick_tile(sp_ucx_group *g, const tile *t, uint64_t check) {
    const int others = g->base.n - 1, me = g->base.me;
    uint32_t seq = g->n_done++;
    size_t mine = move_rows(t, me, g->scratch, true), at = mine;
    for (int i = 0; i < others; i++) {
        int m = other(g, i);
        size_t theirs = move_rows(t, m, NULL, false);
        sp_ucx_post_recv(g, m, sp_ucx_tag(g, SP_UCX_KIND_PICK, 0, m, seq, check), g->scratch + at,
                         theirs * sizeof *t->rows);
        at += theirs;
    }
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_PICK, 0, me, seq, check);
    for (int i = 0; i < others; i++)
        sp_ucx_post_send(g, other(g, i), tag, g->scratch, mine * sizeof *t->rows, false);
    if (!sp_ucx_complete(g)) return;
    at = mine;
    for (int i = 0; i < others; i++) at += move_rows(t, other(g, i), g->scratch + at, false);
}

static bool owners_exist(sp_ucx_group *g, size_t n_rows, const int32_t *owner) {
    for (size_t i = 0; i < n_rows; i++)
        if (owner[i] < 0 || owner[i] >= g->base.n) {
            SP_UCX_FAULT(g, SP_E_INTERNAL, "row %zu of 'pick_rows' belongs to member %d of %d", i,
                         owner[i], g->base.n);
            return false;
        }
    return true;
}

static void ucx_pick_rows(sp_group *base, float *rows, size_t n_rows, size_t cols,
                          const int32_t *owner) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_PICK;
    if (sp_ucx_failed(g) || !owners_exist(g, n_rows, owner) || base->n == 1) return;
    uint64_t check = sp_ucx_check_of(n_rows, cols);
    size_t wide = cols < g->piece ? cols : g->piece;
    size_t high = wide ? g->piece / wide : n_rows;
    size_t row = 0;
    do {
        size_t col = 0, n = n_rows - row < high ? n_rows - row : high;
        do {
            tile t = {
                .rows = rows, .cols = cols, .row = row, .n_rows = n, .col = col, .owner = owner};
            t.n_cols = cols - col < wide ? cols - col : wide;
            pick_tile(g, &t, check);
            if (sp_ucx_failed(g)) return;
            col += t.n_cols;
        } while (col < cols);
        row += n;
    } while (row < n_rows);
}

/* ---- gather_cols ---- */

typedef struct gather {
    int root;
    const float *mine;
    float *out;
    const int32_t *cols;
    size_t total; /* columns of all */
    uint64_t check;
} gather;

static void gather_at_root(sp_ucx_group *g, const gather *a, size_t row, size_t n) {
    const int me = g->base.me;
    uint32_t seq = g->n_done++;
    float *rows = a->out + row * a->total, *packed = g->scratch;
    size_t col = 0;
    for (int m = 0; m < g->base.n; m++) {
        size_t wide = (size_t)a->cols[m];
        /* One row is contiguous where it has to go. */
        float *to = n == 1 ? rows + col : packed;
        if (m != me)
            sp_ucx_post_recv(g, m, sp_ucx_tag(g, SP_UCX_KIND_GATHER, 0, m, seq, a->check), to,
                             n * wide * sizeof *to);
        if (m != me && n > 1) packed += n * wide;
        col += wide;
    }
    if (!sp_ucx_complete(g)) return;
    packed = g->scratch;
    col = 0;
    for (int m = 0; m < g->base.n; m++) {
        size_t wide = (size_t)a->cols[m];
        const float *from = m == me ? a->mine + row * wide : packed;
        for (size_t i = 0; i < n && wide && (m == me || n > 1); i++)
            memcpy(rows + i * a->total + col, from + i * wide, wide * sizeof *from);
        if (m != me && n > 1) packed += n * wide;
        col += wide;
    }
}

/* Sync: a member whose share is always taken from it without an answer could run ahead. */
static void gather_to_root(sp_ucx_group *g, const gather *a, size_t row, size_t n) {
    size_t wide = (size_t)a->cols[g->base.me];
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_GATHER, 0, g->base.me, g->n_done++, a->check);
    sp_ucx_post_send(g, a->root, tag, wide ? a->mine + row * wide : NULL,
                     n * wide * sizeof *a->mine, true);
    (void)sp_ucx_complete(g);
}

static void ucx_gather_cols(sp_group *base, int root, const float *mine, float *out, size_t n_rows,
                            const int32_t *cols) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_GATHER;
    if (sp_ucx_failed(g)) return;
    if (root < 0 || root >= base->n) {
        SP_UCX_FAULT(g, SP_E_INTERNAL, "root of 'gather_cols' is %d of %d members", root, base->n);
        return;
    }
    gather a = {.root = root, .mine = mine, .out = out, .cols = cols};
    for (int m = 0; m < base->n; m++) a.total += (size_t)cols[m];
    a.check = sp_ucx_check_of(n_rows, a.total + (size_t)root);
    size_t high = a.total ? g->piece / a.total : n_rows;
    if (high < 1) high = 1;
    size_t row = 0;
    do {
        size_t n = n_rows - row < high ? n_rows - row : high;
        if (base->me == root)
            gather_at_root(g, &a, row, n);
        else
            gather_to_root(g, &a, row, n);
        if (sp_ucx_failed(g)) return;
        row += n;
    } while (row < n_rows);
}

/* ---- send and recv ---- */

static bool is_other(sp_ucx_group *g, int m, const char *what) {
    if (m >= 0 && m < g->base.n && m != g->base.me) return true;
    SP_UCX_FAULT(g, SP_E_INTERNAL, "'%s' with member %d at member %d of %d", what, m, g->base.me,
                 g->base.n);
    return false;
}

/* Waits until at most `n` messages to a member are without their receiver's credit. */
static sp_status wait_for_credits(sp_ucx_group *g, int to, uint32_t n, int64_t deadline_ns) {
    sp_ucx_lane *l = &g->lanes[to];
    while (l->n_sent - l->n_credited > n) {
        if (l->credit.state == SP_UCX_IDLE) { /* else posted by an earlier try */
            uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_CREDIT, 0, to, l->n_credited, 0);
            sp_ucx_post_recv_as(g, &l->credit, to, tag, NULL, 0);
        } else
            sp_ucx_wait_for(g, &l->credit, to);
        sp_status st = sp_ucx_wait_all(g, deadline_ns);
        g->n_waits = 0;
        if (st != SP_OK) return st;
        l->credit.state = SP_UCX_IDLE;
        l->n_credited++;
    }
    return SP_OK;
}

/* Until the transport has taken what was sent: then it leaves without our help. */
static sp_status push(sp_ucx_group *g, int from, int to, int64_t deadline_ns) {
    for (int m = from; m < to; m++)
        for (int i = 0; i < g->config.sends; i++) {
            sp_ucx_slot *s = &g->lanes[m].slots[i];
            if (s->req.state == SP_UCX_IDLE) continue;
            sp_ucx_wait_for(g, &s->req, m);
            sp_status st = sp_ucx_wait_all(g, deadline_ns);
            g->n_waits = 0; /* a slot is ours: nothing has to be given up */
            if (st != SP_OK) return st;
            s->req.state = SP_UCX_IDLE;
        }
    return SP_OK;
}

/* The buffer of the next message to a member, when fewer than config.sends are on their way. */
static sp_ucx_slot *take_slot(sp_ucx_group *g, int to) {
    sp_ucx_lane *l = &g->lanes[to];
    sp_ucx_slot *s = &l->slots[l->n_sent % (uint32_t)g->config.sends];
    if (wait_for_credits(g, to, (uint32_t)g->config.sends - 1, SP_NEVER) != SP_OK) return NULL;
    if (!s->data) s->data = sp_try_alloc(g->config.max_message + 1);
    if (!s->data)
        SP_UCX_FAULT(g, SP_E_NOMEM, "no memory for a message of %zu bytes", g->config.max_message);
    return s->data ? s : NULL;
}

static void ucx_send(sp_group *base, int to, const void *data, size_t bytes) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_MESSAGE;
    if (sp_ucx_failed(g) || !is_other(g, to, "send")) return;
    if (bytes > g->config.max_message) {
        SP_UCX_FAULT(g, SP_E_INTERNAL,
                     "a message of %zu bytes to member %d, at most %zu were planned", bytes, to,
                     g->config.max_message);
        return;
    }
    sp_ucx_slot *s = take_slot(g, to);
    if (!s) return;
    sp_ucx_lane *l = &g->lanes[to];
    if (bytes) memcpy(s->data, data, bytes);
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_MESSAGE, 0, base->me, l->n_sent++, 0);
    sp_ucx_send(g->ucx, l->peer, &s->req, tag, s->data, bytes, false);
    (void)push(g, to, to + 1, sp_now_ns() + PUSH_NS); /* poll() goes on where this ends */
}

static void ucx_recv(sp_group *base, int from, void *data, size_t bytes) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_MESSAGE;
    if (sp_ucx_failed(g) || !is_other(g, from, "recv")) return;
    uint32_t seq = g->lanes[from].n_received++;
    sp_ucx_post_recv(g, from, sp_ucx_tag(g, SP_UCX_KIND_MESSAGE, 0, from, seq, 0), data, bytes);
    if (!sp_ucx_complete(g)) return;
    sp_ucx_post_send(g, from, sp_ucx_tag(g, SP_UCX_KIND_CREDIT, 0, base->me, seq, 0), NULL, 0,
                     false);
    (void)sp_ucx_complete(g);
}

static bool ucx_can_recv(sp_group *base, int from) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_MESSAGE;
    if (sp_ucx_failed(g) || !is_other(g, from, "can_recv"))
        return true; /* recv() returns at once */
    sp_ucx_lane *l = &g->lanes[from];
    for (int i = 0; i < 64 && sp_ucx_progress(g->ucx); i++) {
    }
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_MESSAGE, 0, from, l->n_received, 0);
    return sp_ucx_probe(g->ucx, tag, UINT64_MAX) || sp_ucx_peer_lost(l->peer);
}

/* ---- poll, abort, close ---- */

static sp_status ucx_poll(sp_group *base, int64_t deadline_ns, sp_err *err) {
    sp_ucx_group *g = of(base);
    g->doing = SP_UCX_KIND_MESSAGE;
    if (!sp_ucx_failed(g) && base->n == 1) return SP_OK;
    if (!sp_ucx_failed(g)) {
        sp_ucx_progress(g->ucx);
        if (push(g, 0, base->n, deadline_ns) == SP_AGAIN) return SP_AGAIN;
    }
    if (!sp_ucx_failed(g)) return SP_OK;
    if (err) *err = g->fault;
    return g->fault.code;
}

static void ucx_abort(sp_group *base) {
    sp_ucx_group *g = of(base);
    atomic_store_explicit(&g->aborted, true, memory_order_relaxed);
    eventfd_write(g->wake_fd, 1); /* never read: stays awake */
}

/* Messages on their way are given time to be received: what a closed socket still gets resets it,
 * and the peer would lose what it has not read. */
static void wait_for_receivers(sp_ucx_group *g) {
    int64_t until = sp_now_ns() + CLOSE_NS;
    g->doing = SP_UCX_KIND_CREDIT;
    (void)push(g, 0, g->base.n, until);
    for (int m = 0; m < g->base.n && !sp_ucx_failed(g); m++) (void)wait_for_credits(g, m, 0, until);
    for (int m = 0; m < g->base.n; m++) sp_ucx_cancel(g->ucx, &g->lanes[m].credit);
    sp_ucx_progress(g->ucx);
}

static bool lane_is_open(const sp_ucx_group *g, const sp_ucx_lane *l) {
    bool is = l->credit.state == SP_UCX_OPEN;
    for (int i = 0; i < g->config.sends; i++) is = is || l->slots[i].req.state == SP_UCX_OPEN;
    return is;
}

static void free_group(sp_ucx_group *g) {
    for (int m = 0; m < g->base.n; m++) {
        sp_ucx_lane *l = &g->lanes[m];
        if (l->peer) sp_ucx_peer_drop(g->ucx, l->peer);
        g->leaked = g->leaked || lane_is_open(g, l);
    }
    void (*let_go)(sp_ucx *, void *) = g->leaked ? sp_ucx_keep : NULL;
    for (int m = 0; m < g->base.n; m++)
        for (int i = 0; i < g->config.sends; i++) {
            void *data = g->lanes[m].slots[i].data;
            if (data && let_go)
                let_go(g->ucx, data);
            else
                sp_free(data);
        }
    if (let_go) {
        let_go(g->ucx, g->scratch);
        let_go(g->ucx, g);
        return;
    }
    sp_free(g->scratch);
    sp_free(g);
}

static void ucx_close(sp_group *base) {
    if (!base) return;
    sp_ucx_group *g = of(base);
    wait_for_receivers(g);
    sp_ucx_discard(g->ucx, g->fence, UINT64_MAX << FENCE_AT);
    sp_ucx_group_remove(g->ucx, (uint32_t)(g->fence >> FENCE_AT));
    close(g->wake_fd);
    free_group(g);
}

static const sp_group_ops ucx_ops = {
    .name = "ucx",
    .close = ucx_close,
    .all_reduce = ucx_all_reduce,
    .pick_rows = ucx_pick_rows,
    .gather_cols = ucx_gather_cols,
    .send = ucx_send,
    .recv = ucx_recv,
    .can_recv = ucx_can_recv,
    .poll = ucx_poll,
    .abort = ucx_abort,
};

/* ---- opening ---- */

static sp_status check_config(const sp_group_config *c, const sp_ucx_peer *peers, uint32_t id,
                              sp_err *err) {
    if (c->n < 1 || c->n > SP_GROUP_MEMBERS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a group of %d members, want 1 to %d", c->n,
                       SP_GROUP_MEMBERS_MAX);
    if (c->me < 0 || c->me >= c->n)
        return SP_FAIL(err, SP_E_INVALID, "member %d of a group of %d", c->me, c->n);
    if (id >= 1u << 16) return SP_FAIL(err, SP_E_INVALID, "group id is %u, want below 65536", id);
    if (c->sends < 0 || c->sends > SP_UCX_SENDS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d messages on their way, want at most %d", c->sends,
                       SP_UCX_SENDS_MAX);
    if (c->max_message == SIZE_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a message of %zu bytes", c->max_message);
    for (int m = 0; m < c->n; m++)
        if (m != c->me &&
            (!peers[m].address || peers[m].bytes == 0 || peers[m].bytes > SP_UCX_ADDRESS_MAX))
            return SP_FAIL(err, SP_E_INVALID, "address of member %d has %zu bytes, want 1 to %zu",
                           m, peers[m].bytes, SP_UCX_ADDRESS_MAX);
    return SP_OK;
}

/* The same at all members as long as the same workers open the group. */
static sp_status make_fence(sp_ucx_group *g, const sp_ucx_peer *peers, uint32_t id, sp_err *err) {
    uint64_t h = sp_ucx_mix(SP_UCX_MIX, &id, sizeof id);
    for (int m = 0; m < g->base.n; m++) {
        sp_ucx_peer own;
        own.address = sp_ucx_address(g->ucx, &own.bytes);
        const sp_ucx_peer *p = m == g->base.me ? &own : &peers[m];
        uint64_t bytes = p->bytes;
        h = sp_ucx_mix(sp_ucx_mix(h, &bytes, sizeof bytes), p->address, p->bytes);
    }
    uint32_t again;
    SP_TRY(sp_ucx_generation(g->ucx, (uint32_t)(h ^ h >> 32), &again, err));
    h = sp_ucx_mix(h, &again, sizeof again);
    g->fence = ((h ^ h >> 32) & ((UINT64_C(1) << SP_UCX_FENCE_BITS) - 1)) << FENCE_AT;
    return sp_ucx_group_add(g->ucx, (uint32_t)(g->fence >> FENCE_AT), err);
}

/* Room for what the others send at a time, whichever way it is done. */
static size_t scratch_floats(const sp_ucx_group *g) {
    size_t others = (size_t)g->base.n - 1, direct = others * DIRECT_MAX;
    size_t sliced = g->piece + 16 * others;
    return direct > sliced ? direct : sliced;
}

static sp_status connect_members(sp_ucx_group *g, const sp_ucx_peer *peers, sp_err *err) {
    for (int m = 0; m < g->base.n; m++) {
        if (m == g->base.me) continue;
        sp_status st =
            sp_ucx_peer_take(&g->lanes[m].peer, g->ucx, peers[m].address, peers[m].bytes, err);
        if (st != SP_OK) {
            sp_err_context(err, "member %d", m);
            return st;
        }
    }
    return SP_OK;
}

/* Two workers become connected only while both make progress. A member that sends its first message
 * and then waits for something else would wait for ever, so nobody leaves here before all are
 * connected. They also hear whether they were opened with the same sizes. */
static sp_status greet(sp_ucx_group *g, sp_err *err) {
    const int others = g->base.n - 1;
    const int64_t timeout = g->config.timeout_ns;
    uint64_t check = sp_ucx_check_of(g->piece, g->config.max_message);
    uint32_t seq = g->n_done++;
    g->doing = SP_UCX_KIND_OPEN;
    if (timeout > 0 && timeout < OPEN_NS) g->config.timeout_ns = OPEN_NS;
    for (int i = 0; i < others; i++)
        sp_ucx_post_recv(g, other(g, i),
                         sp_ucx_tag(g, SP_UCX_KIND_OPEN, 0, other(g, i), seq, check), NULL, 0);
    uint64_t tag = sp_ucx_tag(g, SP_UCX_KIND_OPEN, 0, g->base.me, seq, check);
    for (int i = 0; i < others; i++) sp_ucx_post_send(g, other(g, i), tag, NULL, 0, true);
    bool good = sp_ucx_complete(g);
    g->config.timeout_ns = timeout;
    if (good) return SP_OK;
    if (g->fault.code == SP_E_INTERNAL)
        g->fault.code = SP_E_INVALID; /* what they were opened with */
    if (err) *err = g->fault;
    return g->fault.code;
}

sp_status sp_group_open_ucx(sp_group **out, sp_ucx *u, const sp_ucx_peer *peers, uint32_t group_id,
                            const sp_group_config *config, sp_err *err) {
    SP_TRY(check_config(config, peers, group_id, err));
    sp_ucx_group *g = sp_try_alloc(sizeof *g + (size_t)config->n * sizeof *g->lanes);
    if (!g) return SP_FAIL(err, SP_E_NOMEM, "no memory for a group of %d", config->n);
    g->base = (sp_group){.ops = &ucx_ops, .n = config->n, .me = config->me};
    g->ucx = u;
    g->config = *config;
    if (g->config.sends == 0) g->config.sends = SP_GROUP_SENDS;
    g->piece = config->max_reduce < PIECE_MIN ? PIECE_MIN : config->max_reduce;
    if (g->piece > PIECE_MAX) g->piece = PIECE_MAX;

    sp_status st = SP_E_NOMEM;
    g->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (g->wake_fd < 0) {
        st = SP_FAIL(err, SP_E_NOMEM, "no descriptor for a group: %m");
        goto free_g;
    }
    g->scratch = sp_try_alloc_array(scratch_floats(g), sizeof *g->scratch);
    if (!g->scratch) {
        st = SP_FAIL(err, SP_E_NOMEM, "no memory for a group of %d", config->n);
        goto close_fd;
    }
    st = make_fence(g, peers, group_id, err);
    if (st != SP_OK) goto close_fd;
    st = connect_members(g, peers, err);
    if (st == SP_OK) st = greet(g, err);
    if (st != SP_OK) goto remove;
    *out = &g->base;
    return SP_OK;

remove:
    sp_ucx_group_remove(u, (uint32_t)(g->fence >> FENCE_AT));
close_fd:
    close(g->wake_fd);
free_g:
    free_group(g);
    return st;
}

#endif
