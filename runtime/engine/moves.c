#define SP_LOG "engine"
#include "runtime/engine/moves.h"

#include "comm/kvx.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <string.h>

_Static_assert((int)SP_KV_STALE == (int)SP_KVX_STALE && (int)SP_KV_RANGE == (int)SP_KVX_RANGE &&
                   (int)SP_KV_NO_ROOM == (int)SP_KVX_FAULT_COUNT,
               "causes begin with what ranks say");

#define SLOT_BITS 12
_Static_assert(SP_MOVES_MAX <= 1 << SLOT_BITS, "a slot fits its bits");

typedef struct move {
    sp_handoff core;
    sp_request *req;    /* held at the target; NULL: given, or ended */
    sp_request *shadow; /* at the source; NULL: ended */
    int32_t source, target, slot;
    sp_block *src, *dst;  /* [core.n] */
    uint32_t *generation; /* [core.n], of the source blocks; 0: not sealed for us yet */
    uint32_t *outcome;    /* [core.n] of the pull on its way: the first that was not good */
    bool *answered;       /* [links of the target] of that pull */
    int32_t n_answered;
    uint64_t transfer; /* of the last pull */
    int64_t begun_ns, asked_ns;
    bool listed; /* among those to be looked at */
    struct move *todo_next;
} move;

typedef struct sealed_block {
    uint64_t ticket; /* the seal that covers it */
    uint32_t generation, holders;
} sealed_block;

typedef struct group {
    sp_moves_group g;
    sealed_block *blocks; /* [n_blocks] */
    uint64_t *answered;   /* [n_links] last ticket that each answered: in order */
    uint64_t asked, sealed;
    uint32_t generation;
} group;

struct sp_moves {
    sp_moves_config config;
    group *groups;
    move *slots[SP_MOVES_MAX];
    int32_t free_slots[SP_MOVES_MAX], n_free;
    uint64_t serial;
    int64_t next_ns;
    move *todo, *todo_last;
    union { /* of the frame at hand */
        sp_wire_kv_block blocks[SP_KV_FRAME_BLOCKS_MAX];
        sp_wire_kv_move moves[SP_KV_FRAME_BLOCKS_MAX];
    } frame;
};

static const char *const cause_names[SP_KV_CAUSE_COUNT] = {
    [SP_KV_OK] = "ok",
    [SP_KV_STALE] = "stale",
    [SP_KV_CHECKSUM] = "checksum",
    [SP_KV_IDENTITY] = "identity",
    [SP_KV_PEER] = "peer",
    [SP_KV_TIMEOUT] = "timeout",
    [SP_KV_RANGE] = "range",
    [SP_KV_NO_ROOM] = "no_room",
    [SP_KV_LATE] = "late",
    [SP_KV_PREFILL_ENDED] = "prefill_ended",
    [SP_KV_LOST] = "lost",
};

const char *sp_kv_cause_name(sp_kv_cause cause) {
    return cause < SP_KV_CAUSE_COUNT ? cause_names[cause] : "unknown";
}

/* ---- creation ---- */

sp_status sp_moves_create(sp_moves **out, const sp_moves_config *config, sp_err *err) {
    sp_moves *x = sp_try_alloc(sizeof *x);
    group *groups = sp_try_alloc_array((size_t)config->n_groups, sizeof *groups);
    if (!x || !groups) {
        sp_free(groups);
        sp_free(x);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for moves between %d groups", config->n_groups);
    }
    x->config = *config;
    x->groups = groups;
    x->next_ns = SP_NEVER;
    for (int32_t i = SP_MOVES_MAX - 1; i >= 0; i--) x->free_slots[x->n_free++] = i;
    *out = x;
    return SP_OK;
}

sp_status sp_moves_set_group(sp_moves *x, int32_t i, const sp_moves_group *g, sp_err *err) {
    group *t = &x->groups[i];
    t->g = *g;
    t->blocks = sp_try_alloc_array((size_t)g->n_blocks, sizeof *t->blocks);
    t->answered = sp_try_alloc_array((size_t)g->n_links, sizeof *t->answered);
    if (t->blocks && t->answered) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for the seals of %d blocks", g->n_blocks);
}

static void free_move(move *m) {
    if (!m) return;
    sp_free(m->answered);
    sp_free(m->outcome);
    sp_free(m->generation);
    sp_free(m->dst);
    sp_free(m->src);
    sp_free(m);
}

void sp_moves_destroy(sp_moves *x) {
    if (!x) return;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) free_move(x->slots[i]);
    for (int32_t i = 0; i < x->config.n_groups; i++) {
        sp_free(x->groups[i].answered);
        sp_free(x->groups[i].blocks);
    }
    sp_free(x->groups);
    sp_free(x);
}

static void look_at(sp_moves *x, move *m) {
    if (m->listed) return;
    m->listed = true;
    m->todo_next = NULL;
    if (x->todo)
        x->todo_last->todo_next = m;
    else
        x->todo = m;
    x->todo_last = m;
}

static sp_sched *sched_of(const sp_moves *x, int32_t at) {
    return sp_stepper_sched(x->groups[at].g.stepper);
}

/* ---- the beginning ---- */

int32_t sp_moves_blocks(const sp_request *r, int32_t block_tokens) {
    if (r->params.n_prompt_logprobs >= 0 || r->params.all_logits) return 0;
    return (r->n_prompt - 1) / block_tokens;
}

static move *new_move(const sp_moves *x, int32_t n, int32_t target) {
    move *m = sp_try_alloc(sizeof *m);
    if (!m) return NULL;
    m->src = sp_try_alloc_array((size_t)n, sizeof *m->src);
    m->dst = sp_try_alloc_array((size_t)n, sizeof *m->dst);
    m->generation = sp_try_alloc_array((size_t)n, sizeof *m->generation);
    m->outcome = sp_try_alloc_array((size_t)n, sizeof *m->outcome);
    m->answered = sp_try_alloc_array((size_t)x->groups[target].g.n_links, sizeof *m->answered);
    if (m->src && m->dst && m->generation && m->outcome && m->answered) return m;
    free_move(m);
    return NULL;
}

/* The same prompt as far as it moves, with the names that are known. */
static sp_status make_shadow(sp_request **out, const sp_request *r, int32_t n_blocks, int32_t B,
                             sp_err *err) {
    sp_gen_params params = SP_GEN_PARAMS_DEFAULT;
    params.max_tokens = 0;
    sp_engine_request req = {.prompt = r->prompt,
                             .n_prompt = n_blocks * B,
                             .params = &params,
                             .deadline_ns = SP_NEVER,
                             .priority = r->priority,
                             .cache_salt = r->salt};
    sp_request *s;
    SP_TRY(sp_request_create(&s, &req, 0, B, err));
    s->shadow = true;
    s->id = r->id;
    s->arrival_ns = r->arrival_ns;
    s->has_root = r->has_root;
    s->root = r->root;
    s->n_named = r->n_named < n_blocks ? r->n_named : n_blocks;
    memcpy(s->names, r->names, (size_t)s->n_named * sizeof *s->names);
    *out = s;
    return SP_OK;
}

sp_status sp_moves_begin(sp_moves *x, sp_request *r, int32_t source, int32_t target, int32_t cached,
                         sp_err *err) {
    int32_t n = sp_moves_blocks(r, x->config.block_tokens);
    if (x->n_free == 0) return SP_FAIL(err, SP_E_LIMIT, "%d prompts move already", SP_MOVES_MAX);
    move *m = new_move(x, n, target);
    if (!m) return SP_FAIL(err, SP_E_NOMEM, "no memory to move %d blocks", n);
    sp_request *shadow = NULL;
    sp_status st = make_shadow(&shadow, r, n, x->config.block_tokens, err);
    if (st == SP_OK) st = sp_stepper_add_shadow(x->groups[source].g.stepper, shadow, err);
    if (st != SP_OK) goto free_shadow;
    shadow->move = m;
    m->shadow = shadow;
    st = sp_stepper_hold(x->groups[target].g.stepper, r, err);
    if (st != SP_OK) goto end_shadow;
    sp_handoff_init(&m->core, cached, n);
    r->moved_cached = cached * x->config.block_tokens;
    r->group = target;
    shadow->group = source;
    r->move = m;
    m->req = r;
    m->source = source;
    m->target = target;
    m->begun_ns = sp_now_ns();
    m->slot = x->free_slots[--x->n_free];
    x->slots[m->slot] = m;
    return SP_OK;

end_shadow: /* sp_moves_ended() frees it */
    sp_stepper_end_shadow(x->groups[source].g.stepper, shadow);
    shadow = NULL;
free_shadow:
    sp_request_destroy(shadow);
    free_move(m);
    return st;
}

/* ---- what comes in ---- */

void sp_moves_computed(sp_moves *x, sp_request *shadow, int32_t end, const sp_block *blocks) {
    move *m = shadow->move;
    int32_t to = end / x->config.block_tokens;
    int32_t from = sp_handoff_computed(&m->core, to);
    for (int32_t i = from; i < m->core.n_computed; i++) {
        m->src[i] = blocks[i];
        sp_sched_share(sched_of(x, m->source), blocks[i]);
    }
    if (m->req && shadow->n_cached >= 0) {
        int32_t here = m->core.first * x->config.block_tokens;
        m->req->moved_cached = shadow->n_cached > here ? shadow->n_cached : here;
    }
    look_at(x, m);
}

void sp_moves_ended(sp_moves *x, sp_request *r) {
    move *m = r->move;
    if (!r->shadow) {
        m->req = NULL;
        sp_handoff_gone(&m->core);
    } else {
        m->shadow = NULL;
        sp_request_destroy(r);
        if (!m->req && x->slots[m->slot] != m) return; /* it had not begun */
        sp_handoff_prefill_ended(&m->core);
    }
    look_at(x, m);
}

static sp_status take_sealed(sp_moves *x, int32_t group_at, int link, const sp_frame *f,
                             sp_err *err) {
    group *t = &x->groups[group_at];
    uint64_t ticket;
    SP_TRY(sp_wire_kv_sealed_decode(f->payload, f->length, &ticket, err));
    uint64_t *last = &t->answered[link - t->g.first_link];
    if (ticket != *last + 1 || ticket > t->asked)
        return SP_FAIL(err, SP_E_PROTOCOL, "it sealed ticket %llu, want %llu of %llu",
                       (unsigned long long)ticket, (unsigned long long)*last + 1,
                       (unsigned long long)t->asked);
    *last = ticket;
    uint64_t all = ticket;
    for (int32_t i = 0; i < t->g.n_links; i++)
        if (t->answered[i] < all) all = t->answered[i];
    if (all == t->sealed) return SP_OK;
    t->sealed = all;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
        move *m = x->slots[i];
        if (!m || m->source != group_at || !sp_handoff_seals(&m->core)) continue;
        sp_handoff_sealed(&m->core, all);
        look_at(x, m);
    }
    return SP_OK;
}

/* All ranks of the target have said what became of the pull. */
static void all_pulled(sp_moves *x, move *m) {
    sp_engine_metrics *figures = x->config.metrics;
    int32_t from = m->core.n_pulled, to = m->core.n_pulling, good = from, n_good = 0;
    while (good < to && m->outcome[good] == 0) good++;
    for (int32_t i = from; i < to; i++) {
        n_good += m->outcome[i] == 0;
        if (m->outcome[i]) sp_counter_add(&figures->kv_failures[m->outcome[i]], 1);
    }
    sp_counter_add(&figures->kv_blocks_pulled, (uint64_t)n_good);
    sp_counter_add(&figures->kv_bytes_pulled, (uint64_t)n_good * (uint64_t)x->config.block_bytes);
    sp_handoff_pulled(&m->core, good, good < to ? (sp_kv_cause)m->outcome[good] : SP_KV_OK);
    look_at(x, m);
}

static sp_status take_pulled(sp_moves *x, int32_t group_at, int link, const sp_frame *f,
                             sp_err *err) {
    sp_wire_kv_pulled w;
    SP_TRY(sp_wire_kv_pulled_decode(f->payload, f->length, &w, err));
    move *m = x->slots[w.transfer & (SP_MOVES_MAX - 1)];
    int32_t at = link - x->groups[group_at].g.first_link;
    if (!m || m->transfer != w.transfer || m->target != group_at || !sp_handoff_pulls(&m->core) ||
        m->answered[at] || w.n != m->core.n_pulling - m->core.n_pulled)
        return SP_FAIL(err, SP_E_PROTOCOL,
                       "it pulled %d blocks of transfer %llu, which it was not "
                       "asked for or has answered",
                       w.n, (unsigned long long)w.transfer);
    for (int32_t i = 0; i < w.n; i++) {
        if (w.outcomes[i] >= SP_KVX_FAULT_COUNT)
            return SP_FAIL(err, SP_E_PROTOCOL, "it pulled a block with outcome %u, want 0..%d",
                           w.outcomes[i], SP_KVX_FAULT_COUNT - 1);
        uint32_t *o = &m->outcome[m->core.n_pulled + i];
        if (*o == 0) *o = w.outcomes[i];
    }
    m->answered[at] = true;
    if (++m->n_answered == x->groups[group_at].g.n_links) all_pulled(x, m);
    return SP_OK;
}

sp_status sp_moves_take(sp_moves *x, int32_t group_at, int link, const sp_frame *f, sp_err *err) {
    return f->type == SP_FRAME_KV_SEALED ? take_sealed(x, group_at, link, f, err)
                                         : take_pulled(x, group_at, link, f, err);
}

/* ---- what goes out ---- */

/* A block that another move had sealed is sealed: its answer is waited for, not asked again. */
static sp_status seal(sp_moves *x, move *m, int32_t from, int32_t to, int64_t now_ns, sp_err *err) {
    group *t = &x->groups[m->source];
    uint64_t wait_for = 0;
    int32_t n = 0;
    for (int32_t i = from; i < to; i++) {
        sealed_block *b = &t->blocks[m->src[i]];
        if (b->holders++ == 0) {
            if (++t->generation == 0) t->generation = 1;
            b->generation = t->generation;
            b->ticket = t->asked + 1;
            x->frame.blocks[n++] = (sp_wire_kv_block){(uint32_t)m->src[i], b->generation};
        }
        m->generation[i] = b->generation;
        if (b->ticket > wait_for) wait_for = b->ticket;
    }
    if (n > 0) t->asked++;
    m->asked_ns = now_ns;
    sp_handoff_seal_sent(&m->core, to, wait_for);
    sp_handoff_sealed(&m->core, t->sealed);
    if (n == 0) return SP_OK;
    sp_wire_kv_list list = {.ticket = t->asked, .n = n, .blocks = x->frame.blocks};
    sp_wire_kv_head head;
    sp_piece pieces[2];
    int n_pieces = sp_wire_kv_list_pieces(&list, &head, pieces);
    return sp_stepper_send(t->g.stepper, SP_FRAME_KV_SEAL, pieces, n_pieces, err);
}

static sp_status pull(sp_moves *x, move *m, int32_t from, int32_t to, int64_t now_ns, sp_err *err) {
    group *t = &x->groups[m->target];
    int32_t n = 0;
    for (; from + n < to; n++) {
        int32_t i = from + n;
        m->dst[i] = sp_sched_lend(sched_of(x, m->target));
        if (m->dst[i] == SP_BLOCK_NONE) break;
        m->outcome[i] = 0;
        x->frame.moves[n] =
            (sp_wire_kv_move){(uint32_t)m->src[i], m->generation[i], (uint32_t)m->dst[i]};
    }
    sp_handoff_pull_sent(&m->core, from + n);
    if (n == 0) return SP_OK;
    m->transfer = ++x->serial << SLOT_BITS | (uint64_t)m->slot;
    m->n_answered = 0;
    memset(m->answered, 0, (size_t)t->g.n_links * sizeof *m->answered);
    m->asked_ns = now_ns;
    sp_wire_kv_pull w = {.transfer = m->transfer,
                         .source_group = (uint32_t)m->source,
                         .n = n,
                         .moves = x->frame.moves};
    sp_wire_kv_pull_head head;
    sp_piece pieces[2];
    int n_pieces = sp_wire_kv_pull_pieces(&w, &head, pieces);
    return sp_stepper_send(t->g.stepper, SP_FRAME_KV_PULL, pieces, n_pieces, err);
}

static void settle(sp_moves *x, move *m, sp_handoff_act act) {
    sp_sched *s = sched_of(x, m->target);
    for (int32_t i = act.from; i < act.to; i++) {
        /* Somebody else's block may have that name by now: then that one is found. */
        if (i < act.good && m->req) (void)sp_sched_name(s, m->req, i, m->dst[i]);
        sp_sched_drop(s, m->dst[i]);
    }
}

static sp_status send_free(sp_moves *x, group *t, int32_t n, sp_err *err) {
    if (n == 0) return SP_OK;
    sp_wire_kv_list list = {.n = n, .blocks = x->frame.blocks};
    sp_wire_kv_head head;
    sp_piece pieces[2];
    int n_pieces = sp_wire_kv_list_pieces(&list, &head, pieces);
    return sp_stepper_send(t->g.stepper, SP_FRAME_KV_FREE, pieces, n_pieces, err);
}

/* The frame goes first: from the drop on, a step may name the block. */
static sp_status release(sp_moves *x, move *m, int32_t from, int32_t to, sp_err *err) {
    group *t = &x->groups[m->source];
    while (from < to) {
        int32_t end = to - from < SP_KV_FRAME_BLOCKS_MAX ? to : from + SP_KV_FRAME_BLOCKS_MAX;
        int32_t n = 0;
        for (int32_t i = from; i < end; i++) {
            sealed_block *b = &t->blocks[m->src[i]];
            if (m->generation[i] == 0 || --b->holders > 0) continue;
            x->frame.blocks[n++] = (sp_wire_kv_block){(uint32_t)m->src[i], b->generation};
        }
        SP_TRY(send_free(x, t, n, err));
        for (; from < end; from++) sp_sched_drop(sched_of(x, m->source), m->src[from]);
    }
    return SP_OK;
}

static void give(sp_moves *x, move *m, int64_t now_ns) {
    sp_request *r = m->req;
    sp_engine_metrics *figures = x->config.metrics;
    /* What ranks said was counted block by block. */
    if (m->core.failed && m->core.cause >= SP_KV_NO_ROOM)
        sp_counter_add(&figures->kv_failures[m->core.cause], 1);
    bool some = m->core.n_good > m->core.first;
    sp_counter_add(some ? &figures->prefilled_elsewhere : &figures->prefilled_here, 1);
    sp_histogram_observe(&figures->handoff_s, (double)(now_ns - m->begun_ns) * 1e-9);
    if (m->core.failed)
        sp_debug("%d of %d blocks came from group %d: %s", m->core.n_good - m->core.first,
                 m->core.n - m->core.first, m->source, sp_kv_cause_name(m->core.cause));
    r->moved = true;
    if (!some && r->moved_cached > m->core.first * x->config.block_tokens)
        r->moved_cached = m->core.first * x->config.block_tokens;
    m->req = NULL;
    r->move = NULL;
    sp_stepper_let_in(x->groups[m->target].g.stepper, r);
}

static void forget(sp_moves *x, move *m) {
    SP_ASSERT(!m->req && !m->shadow);
    x->slots[m->slot] = NULL;
    x->free_slots[x->n_free++] = m->slot;
    free_move(m);
}

static sp_status do_all(sp_moves *x, move *m, int64_t now_ns, sp_err *err) {
    for (;;) {
        sp_handoff_act act = sp_handoff_next(&m->core);
        switch (act.what) {
        case SP_HANDOFF_NOTHING:
            return SP_OK;
        case SP_HANDOFF_SEAL:
            SP_TRY(seal(x, m, act.from, act.to, now_ns, err));
            break;
        case SP_HANDOFF_PULL:
            SP_TRY(pull(x, m, act.from, act.to, now_ns, err));
            break;
        case SP_HANDOFF_SETTLE:
            settle(x, m, act);
            break;
        case SP_HANDOFF_GIVE:
            give(x, m, now_ns);
            break;
        case SP_HANDOFF_END_PREFILL:
            sp_stepper_end_shadow(x->groups[m->source].g.stepper, m->shadow);
            break;
        case SP_HANDOFF_RELEASE:
            SP_TRY(release(x, m, act.from, act.to, err));
            break;
        case SP_HANDOFF_OVER:
            /* An event may have come while a frame waited for room. */
            if (!m->listed) forget(x, m);
            return SP_OK;
        }
    }
}

static bool waits(const move *m) {
    return !m->core.given && (sp_handoff_seals(&m->core) || sp_handoff_pulls(&m->core));
}

static void give_up_late(sp_moves *x, int64_t now_ns) {
    x->next_ns = SP_NEVER;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
        move *m = x->slots[i];
        if (!m || !waits(m)) continue;
        int64_t until = m->asked_ns + x->config.timeout_ns;
        if (now_ns >= until) {
            sp_handoff_fail(&m->core, SP_KV_LATE);
            look_at(x, m);
        } else if (until < x->next_ns) {
            x->next_ns = until;
        }
    }
}

sp_status sp_moves_turn(sp_moves *x, int64_t now_ns, int64_t *next_ns, sp_err *err) {
    if (now_ns >= x->next_ns) give_up_late(x, now_ns);
    for (move *m; (m = x->todo);) {
        x->todo = m->todo_next;
        m->listed = false;
        SP_TRY(do_all(x, m, now_ns, err));
        if (x->config.timeout_ns && x->next_ns == SP_NEVER && x->n_free < SP_MOVES_MAX)
            x->next_ns = now_ns + x->config.timeout_ns;
    }
    *next_ns = x->next_ns;
    return SP_OK;
}

int32_t sp_moves_count(const sp_moves *x) {
    return SP_MOVES_MAX - x->n_free;
}

bool sp_moves_check(const sp_moves *x) {
    int32_t n = 0;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
        const move *m = x->slots[i];
        if (!m) continue;
        n++;
        if (m->slot != i || !sp_handoff_check(&m->core)) return false;
        if (m->shadow && m->shadow->move != m) return false;
        if (m->req && (m->req->move != m || !m->req->held)) return false;
    }
    return n == sp_moves_count(x);
}
