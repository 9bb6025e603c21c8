#include "runtime/engine/desk.h"

#include "runtime/base/mem.h"

#include <stddef.h>

#define NODES_A_SLAB 64

typedef struct node {
    struct node *next;
    sp_seq *seq;
    sp_event ev;
} node;

typedef struct slab {
    struct slab *next;
    node nodes[NODES_A_SLAB];
} slab;

typedef struct node_list {
    node *head, *tail;
} node_list;

typedef struct ticket {
    sp_request *req; /* NULL: free */
    uint32_t generation;
} ticket;

struct sp_desk {
    sp_desk_config config;
    sp_wake wake;
    pthread_mutex_t lock;

    /* Under the lock. */
    sp_engine_state state;
    ticket *tickets;
    int32_t *free_tickets;
    int32_t n_free, n_queued, n_waiting; /* requests; n_waiting: events */
    sp_request *fresh_head, *fresh_tail, *cancels;
    sp_seq *paused;
    bool resume, drain, stop;
    node_list waiting, returned;

    /* The engine's. */
    slab *slabs;
    node *blank;
    node_list batch;
    sp_request *closing; /* by mail_next */
    int32_t n_started;
};

/* ---- small parts ---- */

static void nodes_push(node_list *l, node *n) {
    n->next = NULL;
    if (l->tail)
        l->tail->next = n;
    else
        l->head = n;
    l->tail = n;
}

static node *nodes_pop(node_list *l) {
    node *n = l->head;
    if (!n) return NULL;
    l->head = n->next;
    if (!l->head) l->tail = NULL;
    return n;
}

static void nodes_join(node_list *to, node_list *from) {
    if (!from->head) return;
    if (to->tail)
        to->tail->next = from->head;
    else
        to->head = from->head;
    to->tail = from->tail;
    *from = (node_list){0};
}

void sp_event_release(sp_event *ev) {
    for (int i = 0; i < SP_EVENT_TOKENS_MAX; i++) sp_free(ev->logprobs[i]);
    for (int32_t i = 0; ev->prompt_logprobs && i < ev->n_prompt_logprobs; i++)
        sp_free(ev->prompt_logprobs[i]);
    sp_free(ev->prompt_logprobs);
    sp_free(ev->logits);
    sp_free(ev->kv);
    *ev = (sp_event){0};
}

static bool bit(const uint64_t set[2], int32_t i) {
    return set[i / 64] >> (i % 64) & 1;
}

static void set_bit(uint64_t set[2], int32_t i) {
    set[i / 64] |= UINT64_C(1) << (i % 64);
}

/* Ids are generation and ticket, so that an id of a request that is gone finds nothing. */
static uint64_t id_of(const sp_desk *d, int32_t t) {
    return (uint64_t)d->tickets[t].generation << 32 | (uint32_t)(t + 1);
}

static sp_request *find(const sp_desk *d, uint64_t id) {
    uint64_t t = (id & UINT32_MAX) - 1;
    if (t >= (uint64_t)d->config.live_max || id_of(d, (int32_t)t) != id) return NULL;
    return d->tickets[t].req;
}

/* Gives the ticket back when nothing names the request any more; the caller frees it unlocked. */
static bool try_retire(sp_desk *d, sp_request *r) {
    if (!r->ended || r->n_pending > 0 || r->cancel_listed) return false;
    d->tickets[r->ticket].req = NULL;
    d->tickets[r->ticket].generation++;
    d->free_tickets[d->n_free++] = r->ticket;
    return true;
}

static void destroy_all(sp_request *list) {
    for (sp_request *next; list; list = next) {
        next = list->mail_next;
        sp_request_destroy(list);
    }
}

/* ---- creation ---- */

sp_status sp_desk_create(sp_desk **out, const sp_desk_config *config, sp_err *err) {
    if (config->queue_max < 1 || config->live_max < config->queue_max || config->live_max > 1 << 24)
        return SP_FAIL(err, SP_E_INVALID, "'queue_max' is %d of %d requests in all, want 1..%d",
                       config->queue_max, config->live_max, 1 << 24);
    sp_desk *d = sp_alloc(sizeof *d);
    d->config = *config;
    d->wake.fd = -1;
    size_t n = (size_t)config->live_max;
    d->tickets = sp_try_alloc_array(n, sizeof *d->tickets);
    d->free_tickets = sp_try_alloc_array(n, sizeof *d->free_tickets);
    sp_status st = SP_OK;
    if (!d->tickets || !d->free_tickets)
        st = SP_FAIL(err, SP_E_NOMEM, "no memory for %zu requests", n);
    else
        st = sp_wake_open(&d->wake, err);
    if (st != SP_OK) {
        sp_free(d->free_tickets);
        sp_free(d->tickets);
        sp_free(d);
        return st;
    }
    for (int32_t i = config->live_max - 1; i >= 0; i--) d->free_tickets[d->n_free++] = i;
    pthread_mutex_init(&d->lock, NULL);
    *out = d;
    return SP_OK;
}

static void drop_events(node_list *l) {
    for (node *n; (n = nodes_pop(l));) sp_event_release(&n->ev);
}

void sp_desk_destroy(sp_desk *d) {
    if (!d) return;
    sp_desk_publish(d);
    drop_events(&d->waiting);
    for (int32_t i = 0; i < d->config.live_max; i++) sp_request_destroy(d->tickets[i].req);
    for (slab *s = d->slabs, *next; s; s = next) {
        next = s->next;
        sp_free(s);
    }
    pthread_mutex_destroy(&d->lock);
    sp_wake_close(&d->wake);
    sp_free(d->free_tickets);
    sp_free(d->tickets);
    sp_free(d);
}

/* ---- any thread ---- */

static sp_status refuse(sp_engine_state state, sp_err *err) {
    static const char *const why[] = {
        [SP_ENGINE_STARTING] = "the engine is starting",
        [SP_ENGINE_DRAINING] = "the engine is draining and takes no new requests",
        [SP_ENGINE_DRAINED] = "the engine has drained",
        [SP_ENGINE_FAILED] = "a rank was lost",
    };
    return SP_FAIL(err, SP_E_UNAVAILABLE, "%s", why[state]);
}

static sp_status hand_in(sp_desk *d, sp_request *r, uint64_t *id, sp_err *err) {
    if (d->state != SP_ENGINE_READY) return refuse(d->state, err);
    if (d->drain || d->stop) return refuse(SP_ENGINE_DRAINING, err);
    if (d->n_queued >= d->config.queue_max)
        return SP_FAIL(err, SP_E_LIMIT, "%d requests wait already, the queue takes %d", d->n_queued,
                       d->config.queue_max);
    if (d->n_free == 0)
        return SP_FAIL(err, SP_E_LIMIT, "%d requests are not done with, the most there may be",
                       d->config.live_max);
    r->ticket = d->free_tickets[--d->n_free];
    d->tickets[r->ticket].req = r;
    *id = r->id = id_of(d, r->ticket);
    r->mail_next = NULL;
    if (d->fresh_tail)
        d->fresh_tail->mail_next = r;
    else
        d->fresh_head = r;
    d->fresh_tail = r;
    d->n_queued++;
    return SP_OK;
}

sp_status sp_desk_submit(sp_desk *d, sp_request *r, uint64_t *id, sp_err *err) {
    pthread_mutex_lock(&d->lock);
    sp_status st = hand_in(d, r, id, err);
    pthread_mutex_unlock(&d->lock);
    if (st == SP_OK) d->config.wake(d->config.ctx);
    return st;
}

/* What ended before stays as it is: the first word counts. */
static bool note_cancel(sp_request *r, int32_t choice, sp_finish as) {
    bool any = false;
    for (int32_t i = 0; i < r->params.n; i++) {
        if (choice >= 0 && i != choice) continue;
        if (bit(r->aborted, i) || bit(r->stopped, i)) continue;
        set_bit(as == SP_FINISH_STOP ? r->stopped : r->aborted, i);
        any = true;
    }
    return any;
}

void sp_desk_cancel(sp_desk *d, uint64_t id, int32_t choice, sp_finish as) {
    SP_ASSERT(as == SP_FINISH_ABORT || as == SP_FINISH_STOP);
    pthread_mutex_lock(&d->lock);
    sp_request *r = find(d, id);
    bool wake = r && note_cancel(r, choice, as);
    if (wake && !r->cancel_listed && !r->ended) {
        r->cancel_listed = true;
        r->cancel_next = d->cancels;
        d->cancels = r;
    }
    pthread_mutex_unlock(&d->lock);
    if (wake) d->config.wake(d->config.ctx);
}

void sp_desk_ask(sp_desk *d, bool drain, bool stop) {
    pthread_mutex_lock(&d->lock);
    d->drain |= drain;
    d->stop |= stop;
    pthread_mutex_unlock(&d->lock);
    d->config.wake(d->config.ctx);
}

sp_engine_state sp_desk_state(sp_desk *d) {
    pthread_mutex_lock(&d->lock);
    sp_engine_state st = d->state;
    if (st == SP_ENGINE_READY && d->drain) st = SP_ENGINE_DRAINING;
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* ---- the consumer ---- */

int sp_desk_fd(const sp_desk *d) {
    return d->wake.fd;
}

typedef struct haul { /* what one look at the queue gave */
    node_list taken, dropped;
    sp_request *gone; /* by mail_next */
    int n_taken;
    bool wake_engine, more;
} haul;

/* The lock is held. */
static void haul_one(sp_desk *d, node *n, haul *h) {
    sp_seq *q = n->seq;
    sp_request *r = q->req;
    bool unwanted = bit(r->aborted, q->choice) || bit(r->stopped, q->choice);
    nodes_push(unwanted ? &h->dropped : &h->taken, n);
    h->n_taken += !unwanted;
    d->n_waiting--;
    if (--q->undelivered == SP_EVENTS_RESUME && q->pause_listed) d->resume = h->wake_engine = true;
    r->n_pending--;
    if (!try_retire(d, r)) return;
    r->mail_next = h->gone;
    h->gone = r;
}

static haul haul_in(sp_desk *d, int max) {
    haul h = {0};
    pthread_mutex_lock(&d->lock);
    for (node *n; h.n_taken < max && (n = nodes_pop(&d->waiting));) haul_one(d, n, &h);
    h.more = d->waiting.head != NULL;
    pthread_mutex_unlock(&d->lock);
    return h;
}

int sp_desk_take(sp_desk *d, sp_event *out, int max) {
    if (max < 1) return 0;
    haul h = haul_in(d, max);
    if (!h.taken.head && !h.dropped.head) {
        /* Drained before the second look: an event that comes in between is seen by it, and one
         * that comes later signals anew. */
        sp_wake_drain(&d->wake);
        h = haul_in(d, max);
        if (h.more || h.taken.head) sp_wake_signal(&d->wake);
    }
    int n_out = 0;
    for (node *n = h.taken.head; n; n = n->next) out[n_out++] = n->ev;
    for (node *n = h.dropped.head; n; n = n->next) sp_event_release(&n->ev);
    destroy_all(h.gone);
    if (h.wake_engine) d->config.wake(d->config.ctx);
    if (!h.taken.head && !h.dropped.head) return 0;
    pthread_mutex_lock(&d->lock);
    nodes_join(&d->returned, &h.taken);
    nodes_join(&d->returned, &h.dropped);
    pthread_mutex_unlock(&d->lock);
    return n_out;
}

/* ---- the engine ---- */

/* The lock is held. Those whose consumer took enough run on. */
static void resume_paused(sp_desk *d) {
    d->resume = false;
    for (sp_seq **at = &d->paused; *at;) {
        sp_seq *q = *at;
        if (q->undelivered > SP_EVENTS_RESUME) {
            at = &q->pause_next;
            continue;
        }
        *at = q->pause_next;
        q->pause_listed = false;
        d->config.pause(d->config.ctx, q, false);
    }
}

/* The lock is held. Leaves those that live in mail->cancelled, with a copy of what is asked. */
static sp_request *sort_cancels(sp_desk *d, sp_desk_mail *mail) {
    sp_request *gone = NULL;
    for (sp_request *r = d->cancels, *next; r; r = next) {
        next = r->cancel_next;
        r->cancel_listed = false;
        if (try_retire(d, r)) {
            r->mail_next = gone;
            gone = r;
            continue;
        }
        if (r->ended) continue;
        for (int i = 0; i < 2; i++) {
            r->seen_aborted[i] = r->aborted[i];
            r->seen_stopped[i] = r->stopped[i];
        }
        r->cancel_next = mail->cancelled;
        mail->cancelled = r;
    }
    d->cancels = NULL;
    return gone;
}

sp_desk_mail sp_desk_collect(sp_desk *d) {
    pthread_mutex_lock(&d->lock);
    d->n_queued -= d->n_started;
    d->n_started = 0;
    sp_desk_mail mail = {.fresh = d->fresh_head, .drain = d->drain, .stop = d->stop};
    d->fresh_head = d->fresh_tail = NULL;
    sp_request *gone = sort_cancels(d, &mail);
    if (d->resume) resume_paused(d);
    pthread_mutex_unlock(&d->lock);
    destroy_all(gone);
    return mail;
}

static void more_blanks(sp_desk *d) {
    pthread_mutex_lock(&d->lock);
    d->blank = d->returned.head;
    d->returned = (node_list){0};
    pthread_mutex_unlock(&d->lock);
    if (d->blank) return;
    slab *s = sp_alloc(sizeof *s);
    s->next = d->slabs;
    d->slabs = s;
    for (int i = 0; i < NODES_A_SLAB; i++) {
        s->nodes[i].next = d->blank;
        d->blank = &s->nodes[i];
    }
}

sp_event *sp_desk_event(sp_desk *d, sp_seq *seq) {
    if (!d->blank) more_blanks(d);
    node *n = d->blank;
    d->blank = n->next;
    n->seq = seq;
    n->ev = (sp_event){.user = seq->req->user, .id = seq->req->id, .choice = seq->choice};
    seq->n_events++;
    nodes_push(&d->batch, n);
    return &n->ev;
}

static node *node_of(sp_event *ev) {
    return (node *)(void *)((char *)ev - offsetof(node, ev));
}

void sp_desk_hold(sp_desk *d, sp_event *ev) {
    node *n = node_of(ev), *before = NULL;
    for (node *at = d->batch.head; at != n; at = at->next) {
        SP_ASSERT(at);
        before = at;
    }
    if (before)
        before->next = n->next;
    else
        d->batch.head = n->next;
    if (d->batch.tail == n) d->batch.tail = before;
    n->next = NULL;
}

void sp_desk_give(sp_desk *d, sp_event *ev) {
    nodes_push(&d->batch, node_of(ev));
}

void sp_desk_forget(sp_desk *d, sp_event *ev) {
    node *n = node_of(ev);
    sp_event_release(ev);
    n->next = d->blank;
    d->blank = n;
}

/* The lock is held. */
static void count_in(sp_desk *d, sp_seq *q) {
    d->n_waiting++;
    q->req->n_pending++;
    if (++q->undelivered < SP_EVENTS_PAUSE || q->pause_listed || q->state == SP_SEQ_DONE) return;
    q->pause_listed = true;
    q->pause_next = d->paused;
    d->paused = q;
    d->config.pause(d->config.ctx, q, true);
}

/* The lock is held. True: nothing names it any more. */
static bool close_one(sp_desk *d, sp_request *r) {
    for (sp_seq **at = &d->paused; *at;) {
        if ((*at)->req == r)
            *at = (*at)->pause_next;
        else
            at = &(*at)->pause_next;
    }
    r->ended = true;
    return try_retire(d, r);
}

void sp_desk_publish(sp_desk *d) {
    if (!d->batch.head && !d->closing) return;
    bool any = d->batch.head != NULL;
    sp_request *gone = NULL;
    pthread_mutex_lock(&d->lock);
    for (node *n = d->batch.head; n; n = n->next) count_in(d, n->seq);
    nodes_join(&d->waiting, &d->batch);
    /* After their last events were counted, else the ticket would go too early. */
    for (sp_request *r = d->closing, *next; r; r = next) {
        next = r->mail_next;
        if (!close_one(d, r)) continue;
        r->mail_next = gone;
        gone = r;
    }
    d->closing = NULL;
    pthread_mutex_unlock(&d->lock);
    destroy_all(gone);
    if (any) sp_wake_signal(&d->wake);
}

void sp_desk_started(sp_desk *d, sp_request *r) {
    if (r->started) return;
    r->started = true;
    d->n_started++;
}

void sp_desk_close(sp_desk *d, sp_request *r) {
    sp_desk_started(d, r);
    r->mail_next = d->closing;
    d->closing = r;
}

void sp_desk_set_state(sp_desk *d, sp_engine_state state) {
    pthread_mutex_lock(&d->lock);
    d->state = state;
    pthread_mutex_unlock(&d->lock);
    sp_wake_signal(&d->wake);
}

bool sp_desk_check(sp_desk *d) {
    pthread_mutex_lock(&d->lock);
    int32_t used = 0, pending = 0, waiting = 0;
    for (int32_t i = 0; i < d->config.live_max; i++) {
        if (!d->tickets[i].req) continue;
        used++;
        pending += d->tickets[i].req->n_pending;
    }
    for (node *n = d->waiting.head; n; n = n->next) waiting++;
    bool ok = used + d->n_free == d->config.live_max && waiting == d->n_waiting &&
              pending == waiting && d->n_queued >= 0;
    for (sp_seq *q = d->paused; q; q = q->pause_next) ok = ok && q->pause_listed;
    pthread_mutex_unlock(&d->lock);
    return ok;
}
