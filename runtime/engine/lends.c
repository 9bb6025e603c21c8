#define SP_LOG "engine"
#include "runtime/engine/lends.h"

#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/sources.h"

#include <string.h>

#define SLOT_BITS 10
_Static_assert(SP_LENDS_MAX == 1 << SLOT_BITS, "a slot fits its bits");
#define LENT_PART 2 /* one block in so many may be lent */

typedef enum lend_state {
    LEND_NEW,
    LEND_SEALING,
    LEND_LENT
} lend_state;

typedef struct lend {
    uint64_t lease;
    int32_t slot, group, n;
    lend_state state;
    sp_block *blocks;     /* [n] */
    uint64_t *names;      /* [n] */
    uint32_t *generation; /* [n]; 0: not sealed */
    uint64_t ticket;
    sp_seq *parting; /* whose last event waits; NULL: it went out */
    sp_event *last;
    int64_t until_ns; /* SEALING: of our patience; LENT: of the lease */
    bool over;        /* nobody needs it any more */
} lend;

typedef struct group {
    uint32_t *lenders; /* [n_blocks] leases that a block is in */
    int32_t n_blocks, n_lent;
} group;

struct sp_lends {
    sp_lends_config config;
    group *groups;
    lend *slots[SP_LENDS_MAX];
    int32_t free_slots[SP_LENDS_MAX], n_free, n_parting;
    uint64_t serial;
    int64_t next_ns;
    bool news; /* something is to be done before next_ns */
};

/* ---- creation ---- */

sp_status sp_lends_create(sp_lends **out, const sp_lends_config *config, sp_err *err) {
    sp_lends *x = sp_try_alloc(sizeof *x);
    bool ok = x && (x->groups = sp_try_alloc_array((size_t)config->n_groups, sizeof *x->groups));
    if (x) x->config = *config;
    for (int32_t i = 0; ok && i < config->n_groups; i++) {
        group *g = &x->groups[i];
        g->n_blocks = sp_seals_get_config(config->seals[i])->n_blocks;
        g->lenders = sp_try_alloc_array((size_t)g->n_blocks, sizeof *g->lenders);
        ok = g->lenders;
    }
    if (!ok) {
        sp_lends_destroy(x);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for what %d groups lend", config->n_groups);
    }
    for (int32_t i = SP_LENDS_MAX - 1; i >= 0; i--) x->free_slots[x->n_free++] = i;
    x->next_ns = SP_NEVER;
    /* Leases of this pod's earlier lives should name nothing in this one. */
    x->serial = (uint64_t)sp_unix_ms();
    *out = x;
    return SP_OK;
}

static void free_lend(lend *l) {
    if (!l) return;
    sp_free(l->generation);
    sp_free(l->names);
    sp_free(l->blocks);
    sp_free(l);
}

void sp_lends_destroy(sp_lends *x) {
    if (!x) return;
    for (int32_t i = 0; i < SP_LENDS_MAX; i++) free_lend(x->slots[i]);
    for (int32_t i = 0; x->groups && i < x->config.n_groups; i++) sp_free(x->groups[i].lenders);
    sp_free(x->groups);
    sp_free(x);
}

/* ---- the end of a request ---- */

static sp_kv_handle *make_handle(const sp_lends *x, uint64_t lease, const lend *l) {
    int32_t n = l ? l->n : 0;
    sp_kv_handle *h = sp_try_alloc(sizeof *h + (size_t)n * sizeof h->blocks[0]);
    if (!h) return NULL;
    h->lease = lease;
    h->group = l ? l->group : 0;
    h->n_blocks = n;
    h->n_tokens = n * x->config.block_tokens;
    int64_t lease_ns = x->config.lease_ns;
    h->expires_unix_ms = lease_ns ? sp_unix_ms() + lease_ns / SP_NS_PER_MS : INT64_MAX;
    for (int32_t i = 0; i < n; i++)
        h->blocks[i] = (sp_kv_lent){(uint32_t)l->blocks[i], l->generation[i], l->names[i]};
    return h;
}

static uint64_t next_lease(sp_lends *x, int32_t slot) {
    return ++x->serial << SLOT_BITS | (uint64_t)slot;
}

/* A group lends no more than its part: the first blocks of the prompt, as far as that goes. */
static int32_t n_to_lend(const sp_lends *x, const sp_seq *q) {
    const group *g = &x->groups[q->req->group];
    int32_t n = (q->req->n_prompt - 1) / x->config.block_tokens, room;
    room = g->n_blocks / LENT_PART - g->n_lent;
    if (x->n_free == 0 || q->req->private_root) return 0;
    for (int32_t i = 0; i < n; i++) {
        if (g->lenders[q->blocks.ids[i]]) continue;
        if (room-- < 1) return i;
    }
    return n;
}

static lend *new_lend(int32_t n) {
    lend *l = sp_try_alloc(sizeof *l);
    if (!l) return NULL;
    l->blocks = sp_try_alloc_array((size_t)n, sizeof *l->blocks);
    l->names = sp_try_alloc_array((size_t)n, sizeof *l->names);
    l->generation = sp_try_alloc_array((size_t)n, sizeof *l->generation);
    if (l->blocks && l->names && l->generation) return l;
    free_lend(l);
    return NULL;
}

static void hold_blocks(sp_lends *x, lend *l, sp_seq *q) {
    sp_sched *sched = sp_stepper_sched(sp_seals_stepper(x->config.seals[l->group]));
    group *g = &x->groups[l->group];
    for (int32_t i = 0; i < l->n; i++) {
        sp_block b = l->blocks[i] = q->blocks.ids[i];
        l->names[i] = sp_seals_name(sp_sched_prompt_name(sched, q->req, i));
        sp_sched_share(sched, b);
        if (g->lenders[b]++ == 0) g->n_lent++;
    }
}

bool sp_lends_begin(sp_lends *x, sp_seq *q, sp_event *last) {
    SP_ASSERT(sp_seq_runs(q));
    int32_t n = n_to_lend(x, q);
    lend *l = n > 0 ? new_lend(n) : NULL;
    if (!l) {
        last->kv = make_handle(x, next_lease(x, 0), NULL);
        return false;
    }
    l->n = n;
    l->group = q->req->group;
    l->slot = x->free_slots[--x->n_free];
    l->lease = next_lease(x, l->slot);
    hold_blocks(x, l, q);
    l->parting = q;
    l->last = last;
    sp_desk_hold(x->config.desk, last);
    x->slots[l->slot] = l;
    x->n_parting++;
    x->news = true;
    return true;
}

/* The request goes, with its last event or (aborted) without. */
static void part(sp_lends *x, lend *l, bool tell) {
    sp_request *r = l->parting->req;
    if (tell)
        sp_desk_give(x->config.desk, l->last);
    else
        sp_desk_forget(x->config.desk, l->last);
    l->parting = NULL;
    l->last = NULL;
    x->n_parting--;
    r->parting = false;
    sp_desk_close(x->config.desk, r);
}

static void part_without_blocks(sp_lends *x, lend *l) {
    l->over = x->news = true;
    l->last->kv = make_handle(x, next_lease(x, 0), NULL);
    part(x, l, true);
}

/* ---- what comes in ---- */

void sp_lends_cancel(sp_lends *x, sp_request *r) {
    for (int32_t i = 0; i < SP_LENDS_MAX; i++) {
        lend *l = x->slots[i];
        if (!l || !l->parting || l->parting->req != r) continue;
        int32_t c = l->parting->choice;
        if (!((r->seen_aborted[c / 64] | r->seen_stopped[c / 64]) >> (c % 64) & 1)) return;
        l->over = x->news = true;
        part(x, l, false);
        return;
    }
}

void sp_lends_part_all(sp_lends *x) {
    for (int32_t i = 0; i < SP_LENDS_MAX; i++)
        if (x->slots[i] && x->slots[i]->parting) part_without_blocks(x, x->slots[i]);
}

static void expire(sp_lends *x, lend *l) {
    sp_counter_add(&x->config.metrics->kv_expired, 1);
    sp_counter_add(&x->config.metrics->kv_failures[SP_KV_EXPIRED], 1);
    l->over = x->news = true;
    if (l->parting) part_without_blocks(x, l);
}

/* What is said of a lease that has ended is late, and no fault. */
sp_status sp_lends_take(sp_lends *x, int32_t at, const sp_frame *f, sp_err *err) {
    sp_wire_kv_lease w;
    SP_TRY(sp_wire_kv_lease_decode(f->payload, f->length, &w, err));
    lend *l = x->slots[w.lease & (SP_LENDS_MAX - 1)];
    if (!l || l->lease != w.lease || l->group != at || l->state != LEND_LENT || l->over)
        return SP_OK;
    if (!w.renewed)
        l->over = x->news = true;
    else if (sp_chaos_hit(SP_CHAOS_KV_LEASE))
        expire(x, l);
    else if (x->config.lease_ns)
        l->until_ns = sp_now_ns() + x->config.lease_ns;
    return SP_OK;
}

void sp_lends_sealed(sp_lends *x, int32_t at) {
    (void)at;
    if (x->n_parting) x->news = true;
}

bool sp_lends_relieve(sp_lends *x, int32_t at) {
    lend *oldest = NULL;
    for (int32_t i = 0; i < SP_LENDS_MAX; i++) {
        lend *l = x->slots[i];
        if (!l || l->group != at || l->over) continue;
        if (!oldest || l->lease >> SLOT_BITS < oldest->lease >> SLOT_BITS) oldest = l;
    }
    if (!oldest) return false;
    sp_debug("a lease of %d blocks ends: nothing runs for want of blocks", oldest->n);
    expire(x, oldest);
    return true;
}

/* ---- what goes out ---- */

static int64_t later(int64_t from, int64_t patience) {
    return patience > 0 ? from + patience : SP_NEVER;
}

static sp_status begin_seal(sp_lends *x, lend *l, int64_t now_ns, sp_err *err) {
    l->state = LEND_SEALING;
    l->until_ns = later(now_ns, x->config.timeout_ns);
    l->ticket = UINT64_MAX; /* until it is known: answers may come while the frame goes out */
    uint64_t ticket;
    SP_TRY(sp_seals_add(x->config.seals[l->group], l->blocks, l->names, l->n, l->generation,
                        &ticket, err));
    l->ticket = ticket;
    return SP_OK;
}

static void hand_out(sp_lends *x, lend *l, int64_t now_ns) {
    l->state = LEND_LENT;
    l->until_ns = later(now_ns, x->config.lease_ns);
    sp_kv_handle *h = make_handle(x, l->lease, l);
    if (!h) {
        part_without_blocks(x, l);
        return;
    }
    l->last->kv = h;
    part(x, l, true);
}

static sp_status take_back(sp_lends *x, lend *l, sp_err *err) {
    group *g = &x->groups[l->group];
    SP_TRY(sp_seals_drop(x->config.seals[l->group], l->blocks, l->generation, l->n, err));
    for (int32_t i = 0; i < l->n; i++)
        if (--g->lenders[l->blocks[i]] == 0) g->n_lent--;
    x->slots[l->slot] = NULL;
    x->free_slots[x->n_free++] = l->slot;
    free_lend(l);
    return SP_OK;
}

static void lose_patience(sp_lends *x, lend *l) {
    if (l->state == LEND_LENT) {
        expire(x, l);
        return;
    }
    sp_counter_add(&x->config.metrics->kv_failures[SP_KV_LATE], 1);
    part_without_blocks(x, l);
}

/* Everything that one can do now. */
static sp_status turn_one(sp_lends *x, lend *l, int64_t now_ns, sp_err *err) {
    if (l->state == LEND_NEW && !l->over) SP_TRY(begin_seal(x, l, now_ns, err));
    if (l->state == LEND_SEALING && !l->over && sp_seals_done(x->config.seals[l->group], l->ticket))
        hand_out(x, l, now_ns);
    if (!l->over && now_ns >= l->until_ns) lose_patience(x, l);
    if (l->over) return take_back(x, l, err);
    if (l->until_ns < x->next_ns) x->next_ns = l->until_ns;
    return SP_OK;
}

sp_status sp_lends_turn(sp_lends *x, int64_t now_ns, int64_t *next_ns, sp_err *err) {
    while (x->news || now_ns >= x->next_ns) {
        x->news = false;
        x->next_ns = SP_NEVER;
        for (int32_t i = 0; i < SP_LENDS_MAX; i++)
            if (x->slots[i]) SP_TRY(turn_one(x, x->slots[i], now_ns, err));
    }
    int32_t n_lent = 0;
    for (int32_t i = 0; i < x->config.n_groups; i++) n_lent += x->groups[i].n_lent;
    sp_gauge_set(&x->config.metrics->kv_lent, n_lent);
    *next_ns = x->next_ns;
    return SP_OK;
}

/* ---- what it says of itself ---- */

int32_t sp_lends_parting(const sp_lends *x) {
    return x->n_parting;
}
int32_t sp_lends_count(const sp_lends *x) {
    return SP_LENDS_MAX - x->n_free;
}

bool sp_lends_check(const sp_lends *x) {
    int32_t n = 0, parting = 0;
    int64_t lent = 0, listed = 0;
    for (int32_t i = 0; i < SP_LENDS_MAX; i++) {
        const lend *l = x->slots[i];
        if (!l) continue;
        n++;
        parting += l->parting != NULL;
        listed += l->n;
        if (l->slot != i || (l->parting && !l->parting->req->parting)) return false;
    }
    for (int32_t i = 0; i < x->config.n_groups; i++) {
        const group *g = &x->groups[i];
        int32_t here = 0;
        for (int32_t b = 0; b < g->n_blocks; b++) {
            here += g->lenders[b] > 0;
            lent += g->lenders[b];
        }
        if (here != g->n_lent || here > g->n_blocks / LENT_PART) return false;
    }
    return n == sp_lends_count(x) && parting == x->n_parting && lent == listed;
}
