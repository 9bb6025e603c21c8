#define SP_LOG "engine"
#include "runtime/engine/moves.h"

#include "comm/kvx.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/moves_core.h"

#include <stdio.h>
#include <string.h>

_Static_assert((int)SP_KV_STALE == (int)SP_KVX_STALE && (int)SP_KV_RANGE == (int)SP_KVX_RANGE &&
                   (int)SP_KV_FOREIGN == (int)SP_KVX_FOREIGN &&
                   (int)SP_KV_NO_ROOM == (int)SP_KVX_FAULT_COUNT,
               "causes begin with what ranks say");

/* ---- creation ---- */

sp_status sp_moves_create(sp_moves **out, const sp_moves_config *config, sp_err *err) {
    sp_moves *x = sp_try_alloc(sizeof *x);
    if (!x)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for moves between %d groups", config->n_groups);
    sp_status st = sp_sources_create(&x->sources, err);
    if (st != SP_OK) {
        sp_free(x);
        return st;
    }
    x->config = *config;
    x->next_ns = SP_NEVER;
    for (int32_t i = SP_MOVES_MAX - 1; i >= 0; i--) x->free_slots[x->n_free++] = i;
    *out = x;
    return SP_OK;
}

void sp_moves_destroy(sp_moves *x) {
    if (!x) return;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) sp_move_free(x->slots[i]);
    sp_sources_destroy(x->sources);
    sp_free(x);
}

void sp_moves_look_at(sp_moves *x, sp_move *m) {
    if (m->listed) return;
    m->listed = true;
    m->todo_next = NULL;
    if (x->todo)
        x->todo_last->todo_next = m;
    else
        x->todo = m;
    x->todo_last = m;
}

void sp_moves_failed(sp_moves *x, sp_kv_cause cause) {
    sp_counter_add(&x->config.metrics->kv_failures[cause], 1);
}

/* ---- what comes in ---- */

void sp_moves_computed(sp_moves *x, sp_request *shadow, int32_t end, const sp_block *blocks) {
    sp_move *m = shadow->move;
    sp_sched *sched = sp_moves_sched(x, m->source);
    int32_t to = end / x->config.block_tokens;
    int32_t from = sp_handoff_computed(&m->core, to);
    for (int32_t i = from; i < m->core.n_computed; i++) {
        m->src[i] = blocks[i];
        m->names[i] = sp_seals_name(sp_sched_prompt_name(sched, shadow, i));
        sp_sched_share(sched, blocks[i]);
    }
    if (m->req && shadow->n_cached >= 0) {
        int32_t here = m->core.first * x->config.block_tokens;
        m->req->moved_cached = shadow->n_cached > here ? shadow->n_cached : here;
    }
    sp_moves_look_at(x, m);
}

void sp_moves_ended(sp_moves *x, sp_request *r) {
    sp_move *m = r->move;
    if (!r->shadow) {
        m->req = NULL;
        sp_handoff_gone(&m->core);
    } else {
        m->shadow = NULL;
        sp_request_destroy(r);
        if (!m->req && x->slots[m->slot] != m) return; /* it had not begun */
        sp_handoff_prefill_ended(&m->core);
    }
    sp_moves_look_at(x, m);
}

static void note_ready(sp_move *m) {
    bool can = m->core.n_sealed > m->core.n_pulling;
    if (can && m->ready_ns == 0) m->ready_ns = sp_now_ns();
}

void sp_moves_sealed(sp_moves *x, int32_t group) {
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
        sp_move *m = x->slots[i];
        if (!m || m->imported || m->source != group || !sp_handoff_seals(&m->core)) continue;
        sp_handoff_sealed(&m->core, sp_seals_answered(x->config.seals[group]));
        note_ready(m);
        sp_moves_look_at(x, m);
    }
}

static void count_failed_pull(sp_moves *x, sp_move *m) {
    if (!m->failure_counted) sp_counter_add(&x->config.metrics->kv_failed_xfers, 1);
    m->failure_counted = true;
}

/* All ranks of the target have said what became of the pull. */
static void all_pulled(sp_moves *x, sp_move *m) {
    sp_engine_metrics *figures = x->config.metrics;
    const sp_pull *p = &m->pull;
    int32_t from = m->core.n_pulled, good = sp_pull_good(p), n_good = 0;
    double bytes = (double)p->n * (double)x->config.block_bytes;
    for (int32_t i = 0; i < p->n; i++) {
        n_good += p->outcome[i] == 0;
        if (p->outcome[i]) sp_moves_failed(x, (sp_kv_cause)p->outcome[i]);
    }
    sp_counter_add(&figures->kv_blocks_pulled, (uint64_t)n_good);
    sp_counter_add(&figures->kv_bytes_pulled, (uint64_t)n_good * (uint64_t)x->config.block_bytes);
    sp_histogram_observe(&figures->kv_xfer_s, (double)(p->sign_ns - p->sent_ns) * 1e-9);
    sp_histogram_observe(&figures->kv_xfer_bytes, bytes);
    sp_histogram_observe(&figures->kv_xfer_blocks, p->n);
    if (n_good < p->n) count_failed_pull(x, m);
    sp_handoff_pulled(&m->core, from + good,
                      good < p->n ? (sp_kv_cause)p->outcome[good] : SP_KV_OK);
    sp_moves_look_at(x, m);
}

/* The move whose pull on its way that is; NULL: none. */
static sp_move *find(const sp_moves *x, uint64_t transfer, int32_t group) {
    sp_move *m = x->slots[transfer & (SP_MOVES_MAX - 1)];
    bool same = m && m->pull.transfer == transfer && m->target == group;
    return same && sp_handoff_pulls(&m->core) ? m : NULL;
}

static sp_status take_renew(sp_moves *x, int32_t group, const sp_frame *f, sp_err *err) {
    uint64_t transfer;
    SP_TRY(sp_wire_kv_renew_decode(f->payload, f->length, &transfer, err));
    sp_move *m = find(x, transfer, group);
    if (m) m->pull.sign_ns = sp_now_ns();
    return SP_OK;
}

sp_status sp_moves_take(sp_moves *x, int32_t group, int link, const sp_frame *f, sp_err *err) {
    if (f->type == SP_FRAME_KV_RENEW) return take_renew(x, group, f, err);
    sp_wire_kv_pulled w;
    SP_TRY(sp_wire_kv_pulled_decode(f->payload, f->length, &w, err));
    sp_move *m = find(x, w.transfer, group);
    if (!m)
        return SP_FAIL(err, SP_E_PROTOCOL, "it pulled transfer %llu, which it was not asked for",
                       (unsigned long long)w.transfer);
    int32_t at = link - sp_seals_get_config(x->config.seals[group])->first_link;
    SP_TRY(sp_pull_take(&m->pull, at, &w, sp_now_ns(), err));
    if (sp_pull_is_answered(&m->pull)) all_pulled(x, m);
    return SP_OK;
}

/* ---- what goes out ---- */

/* The source blocks are let go as soon as the core is asked again; whoever reads them finds that. */
static void expire(sp_moves *x, sp_move *m) {
    sp_counter_add(&x->config.metrics->kv_expired, 1);
    sp_moves_failed(x, SP_KV_EXPIRED);
    if (sp_handoff_pulls(&m->core)) count_failed_pull(x, m);
    sp_handoff_expired(&m->core);
    sp_moves_look_at(x, m);
}

static sp_status seal(sp_moves *x, sp_move *m, int32_t from, int32_t to, int64_t now_ns,
                      sp_err *err) {
    uint64_t ticket;
    m->sealing_ns = now_ns;
    sp_seals *s = x->config.seals[m->source];
    SP_TRY(sp_seals_add(s, m->src + from, m->names + from, to - from, m->generation + from, &ticket,
                        err));
    sp_handoff_seal_sent(&m->core, to, ticket);
    sp_handoff_sealed(&m->core, sp_seals_answered(s));
    note_ready(m);
    return SP_OK;
}

/* Ranks are told once whom a number names. */
static sp_status introduce(sp_moves *x, const sp_move *m, sp_err *err) {
    sp_source_news news = sp_sources_news(x->sources, m->source, m->target);
    sp_stepper *p = sp_moves_stepper(x, m->target);
    sp_wire_kv_source_head head = {.source = (uint32_t)m->source};
    sp_piece pieces[] = {{&head, sizeof head}, {news.text.ptr, (uint32_t)news.text.len}};
    if (news.forget) SP_TRY(sp_stepper_send(p, SP_FRAME_KV_SOURCE, pieces, 1, err));
    head.text_bytes = (uint32_t)news.text.len;
    return news.tell ? sp_stepper_send(p, SP_FRAME_KV_SOURCE, pieces, 2, err) : SP_OK;
}

/* Says what goes where, as far as there is room; by the names that the reader makes of the prompt. */
static int32_t fill_frame(sp_moves *x, sp_move *m, int32_t from, int32_t to) {
    sp_sched *sched = sp_moves_sched(x, m->target);
    int32_t n = 0;
    for (; from + n < to; n++) {
        int32_t i = from + n;
        m->dst[i] = sp_sched_lend(sched);
        if (m->dst[i] == SP_BLOCK_NONE) break;
        x->frame[n] =
            (sp_wire_kv_move){.name = sp_seals_name(sp_sched_prompt_name(sched, m->req, i)),
                              .src_block = (uint32_t)m->src[i],
                              .generation = m->generation[i],
                              .dst_block = (uint32_t)m->dst[i]};
    }
    return n;
}

static sp_status pull(sp_moves *x, sp_move *m, int32_t from, int32_t to, int64_t now_ns,
                      sp_err *err) {
    int32_t n = fill_frame(x, m, from, to);
    sp_handoff_pull_sent(&m->core, from + n);
    if (n == 0) return SP_OK;
    sp_histogram_observe(&x->config.metrics->kv_post_s, (double)(now_ns - m->ready_ns) * 1e-9);
    m->ready_ns = 0;
    m->failure_counted = false;
    note_ready(m);
    sp_pull_begin(&m->pull, ++x->serial << SP_MOVES_SLOT_BITS | (uint64_t)m->slot, n, now_ns);
    sp_wire_kv_pull w = {.transfer = m->pull.transfer,
                         .source = (uint32_t)m->source,
                         .lease = m->imported ? m->lease : m->pull.transfer,
                         .n = n,
                         .moves = x->frame};
    sp_wire_kv_pull_head head;
    sp_piece pieces[2];
    int n_pieces = sp_wire_kv_pull_pieces(&w, &head, pieces);
    if (m->imported) SP_TRY(introduce(x, m, err));
    SP_TRY(
        sp_stepper_send(sp_moves_stepper(x, m->target), SP_FRAME_KV_PULL, pieces, n_pieces, err));
    if (sp_chaos_hit(SP_CHAOS_KV_LEASE)) expire(x, m);
    return SP_OK;
}

/* Once nobody reads what was lent, or nobody who is heard of. */
static sp_status leave(sp_moves *x, sp_move *m, sp_err *err) {
    sp_wire_kv_leave w = {.lease = m->lease, .source = (uint32_t)m->source};
    m->lease = 0;
    if (m->source == SP_MOVES_NO_SOURCE) {
        sp_counter_add(&x->config.metrics->kv_failed_notices, 1);
        return SP_OK;
    }
    SP_TRY(introduce(x, m, err));
    sp_piece piece = {&w, sizeof w};
    return sp_stepper_send(sp_moves_stepper(x, m->target), SP_FRAME_KV_LEAVE, &piece, 1, err);
}

static void settle(sp_moves *x, sp_move *m, sp_handoff_act act) {
    sp_sched *s = sp_moves_sched(x, m->target);
    for (int32_t i = act.from; i < act.to; i++) {
        /* Somebody else's block may have that name by now: then that one is found. */
        if (i < act.good && m->req) (void)sp_sched_name(s, m->req, i, m->dst[i]);
        sp_sched_drop(s, m->dst[i]);
    }
}

static void count_given(sp_moves *x, const sp_move *m, int64_t now_ns) {
    sp_engine_metrics *figures = x->config.metrics;
    const sp_handoff *h = &m->core;
    int32_t n_came = h->n_good - h->first;
    uint64_t tokens = (uint64_t)n_came * (uint64_t)x->config.block_tokens;
    /* What ranks said was counted block by block, and what expired when it did. */
    if (h->failed && h->cause >= SP_KV_NO_ROOM && h->cause != SP_KV_EXPIRED)
        sp_moves_failed(x, h->cause);
    sp_counter_add(n_came ? &figures->prefilled_elsewhere : &figures->prefilled_here, 1);
    sp_counter_add(&figures->kv_prompt_tokens, tokens);
    if (m->imported) sp_counter_add(&figures->kv_hits, tokens);
    sp_histogram_observe(&figures->handoff_s, (double)(now_ns - m->begun_ns) * 1e-9);
    if (h->failed)
        sp_debug("%d of %d blocks came from %s %d: %s", n_came, h->n - h->first,
                 m->imported ? "source" : "group", m->source, sp_kv_cause_name(h->cause));
}

/* A request that must have what it was promised, and has not got it. */
static bool end_for_want(sp_moves *x, sp_move *m) {
    sp_kv_cause why = m->core.failed ? m->core.cause : m->refused;
    if (!m->imported || !m->req->import->must || why == SP_KV_OK) return false;
    if (m->core.n_good >= sp_moves_offered(m->req, sp_moves_blocks(m->req, x->config.block_tokens)))
        return false;
    char text[100];
    snprintf(text, sizeof text, "block %d of the prompt did not come from the other pod: %s",
             m->core.n_good, sp_kv_cause_name(why));
    sp_stepper_end(sp_moves_stepper(x, m->target), m->req,
                   (sp_ending){.finish = SP_FINISH_ERROR, .error = SP_E_UNAVAILABLE, .text = text});
    return true;
}

static void give(sp_moves *x, sp_move *m, int64_t now_ns) {
    sp_request *r = m->req;
    int32_t B = x->config.block_tokens;
    count_given(x, m, now_ns);
    if (end_for_want(x, m)) return; /* sp_moves_ended() knows */
    r->moved = true;
    if (m->core.n_good == m->core.first && r->moved_cached > m->core.first * B)
        r->moved_cached = m->core.first * B;
    m->req = NULL;
    r->move = NULL;
    sp_stepper_let_in(sp_moves_stepper(x, m->target), r);
}

static void forget(sp_moves *x, sp_move *m) {
    SP_ASSERT(!m->req && !m->shadow && !m->lease);
    if (m->imported && m->source != SP_MOVES_NO_SOURCE) sp_sources_give(x->sources, m->source);
    x->slots[m->slot] = NULL;
    x->free_slots[x->n_free++] = m->slot;
    sp_move_free(m);
}

static sp_status do_one(sp_moves *x, sp_move *m, sp_handoff_act act, int64_t now_ns, sp_err *err) {
    switch (act.what) {
    case SP_HANDOFF_SEAL:
        return seal(x, m, act.from, act.to, now_ns, err);
    case SP_HANDOFF_PULL:
        return pull(x, m, act.from, act.to, now_ns, err);
    case SP_HANDOFF_SETTLE:
        settle(x, m, act);
        return SP_OK;
    case SP_HANDOFF_GIVE:
        give(x, m, now_ns);
        return SP_OK;
    case SP_HANDOFF_END_PREFILL:
        sp_stepper_end_shadow(sp_moves_stepper(x, m->source), m->shadow);
        return SP_OK;
    case SP_HANDOFF_RELEASE:
        return sp_seals_drop(x->config.seals[m->source], m->src + act.from,
                             m->generation + act.from, act.to - act.from, err);
    default:
        return SP_OK;
    }
}

static sp_status do_all(sp_moves *x, sp_move *m, int64_t now_ns, sp_err *err) {
    sp_handoff_act act;
    do {
        act = sp_handoff_next(&m->core);
        SP_TRY(do_one(x, m, act, now_ns, err));
    } while (act.what != SP_HANDOFF_NOTHING && act.what != SP_HANDOFF_OVER);
    if (m->lease && (act.what == SP_HANDOFF_OVER || m->core.expired)) SP_TRY(leave(x, m, err));
    /* An event may have come while a frame waited for room. */
    if (act.what == SP_HANDOFF_OVER && !m->listed) forget(x, m);
    return SP_OK;
}

/* ---- patience ---- */

static int64_t later(int64_t from, int64_t patience) {
    return patience > 0 ? from + patience : SP_NEVER;
}

/* Since when nothing was heard of those who are to answer; SP_NEVER: nobody is. */
static int64_t silent_since(const sp_move *m) {
    int64_t at = SP_NEVER;
    if (sp_handoff_seals(&m->core)) at = m->sealing_ns;
    if (sp_handoff_pulls(&m->core) && m->pull.sign_ns < at) at = m->pull.sign_ns;
    return at;
}

/* When to look at it again, after what is due was done. */
static int64_t lose_patience(sp_moves *x, sp_move *m, int64_t now_ns) {
    int64_t since = silent_since(m);
    if (since == SP_NEVER || m->core.expired) return SP_NEVER;
    int64_t late = m->core.given ? SP_NEVER : later(since, x->config.timeout_ns);
    int64_t end = later(since, x->config.lease_ns);
    if (now_ns >= end) {
        expire(x, m);
        return SP_NEVER;
    }
    if (now_ns >= late) {
        sp_handoff_fail(&m->core, SP_KV_LATE);
        sp_moves_look_at(x, m);
        return end;
    }
    return late < end ? late : end;
}

sp_status sp_moves_turn(sp_moves *x, int64_t now_ns, int64_t *next_ns, sp_err *err) {
    if (now_ns >= x->next_ns) {
        x->next_ns = SP_NEVER;
        for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
            int64_t at = x->slots[i] ? lose_patience(x, x->slots[i], now_ns) : SP_NEVER;
            if (at < x->next_ns) x->next_ns = at;
        }
    }
    bool any = x->todo != NULL;
    for (sp_move *m; (m = x->todo);) {
        x->todo = m->todo_next;
        m->listed = false;
        SP_TRY(do_all(x, m, now_ns, err));
    }
    if (any) { /* what was asked just now may be late before what was asked long ago expires */
        int64_t late = later(now_ns, x->config.timeout_ns), end = later(now_ns, x->config.lease_ns);
        if (end < late) late = end;
        if (late < x->next_ns) x->next_ns = late;
    }
    *next_ns = x->next_ns;
    return SP_OK;
}

bool sp_moves_has_news(const sp_moves *x) {
    return x->todo != NULL;
}
int32_t sp_moves_count(const sp_moves *x) {
    return SP_MOVES_MAX - x->n_free;
}

bool sp_moves_check(const sp_moves *x) {
    int32_t n = 0, n_sources = 0;
    for (int32_t i = 0; i < SP_MOVES_MAX; i++) {
        const sp_move *m = x->slots[i];
        if (!m) continue;
        n++;
        n_sources += m->imported && m->source != SP_MOVES_NO_SOURCE;
        if (m->slot != i || !sp_handoff_check(&m->core)) return false;
        if (m->shadow && m->shadow->move != m) return false;
        if (m->req && (m->req->move != m || !m->req->held)) return false;
    }
    return n == sp_moves_count(x) && n_sources == sp_sources_users(x->sources);
}
