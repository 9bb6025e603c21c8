#include "runtime/model/forward_ahead.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

typedef struct sp_forward_ahead {
    int32_t *last; /* device [n_slots] */
    /* TP rank 0 */
    sp_drawn *drawn;   /* device [n_slots], of the step that runs */
    sp_drawn *results; /* pinned [SP_FORWARD_STEPS, n_slots] */
    sp_ticket tickets[SP_FORWARD_STEPS];
    uint64_t submitted, finished; /* steps, counted */
} sp_forward_ahead;

static size_t slots_of(const sp_forward *s) {
    return (size_t)s->config.n_slots;
}

bool sp_forward_may_run_ahead(const sp_forward *s) {
    const sp_part *p = &s->config.part;
    const sp_dev_ops *ops = s->dev->ops;
    return !ops->host_memory && ops->draw && ops->embed_fed && s->config.n_slots > 0 &&
           p->pp == 1 && (p->tp == 1 || (ops->embed_part && s->config.tp->ops->came));
}

static bool draws_here(const sp_forward *s) {
    return s->config.part.tp_rank == 0;
}

size_t sp_forward_ahead_bytes(const sp_forward *s) {
    const size_t each = sizeof(int32_t) + (draws_here(s) ? sizeof(sp_drawn) : 0);
    return sp_forward_may_run_ahead(s) ? slots_of(s) * each : 0;
}

sp_status sp_forward_ahead_open(sp_forward *s, sp_err *err) {
    const sp_dev_ops *ops = s->dev->ops;
    const size_t n = slots_of(s);
    if (!sp_forward_may_run_ahead(s)) return SP_OK;
    sp_forward_ahead *a = sp_try_alloc(sizeof *a);
    if (!a) return SP_FAIL(err, SP_E_NOMEM, "no memory to run ahead");
    s->ahead = a;
    a->last = ops->alloc(s->dev, n * sizeof *a->last);
    if (draws_here(s)) {
        a->drawn = ops->alloc(s->dev, n * sizeof *a->drawn);
        a->results = ops->host_alloc(s->dev, SP_FORWARD_STEPS * n * sizeof *a->results);
    }
    if (a->last && (!draws_here(s) || (a->drawn && a->results))) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no device memory for what %d sequences draw",
                   s->config.n_slots);
}

void sp_forward_ahead_close(sp_forward *s) {
    const sp_dev_ops *ops = s->dev->ops;
    const size_t n = slots_of(s);
    sp_forward_ahead *a = s->ahead;
    if (!a) return;
    if (a->results) ops->host_free(s->dev, a->results, SP_FORWARD_STEPS * n * sizeof *a->results);
    if (a->drawn) ops->free(s->dev, a->drawn, n * sizeof *a->drawn);
    if (a->last) ops->free(s->dev, a->last, n * sizeof *a->last);
    sp_free(a);
    s->ahead = NULL;
}

static bool has_fed(const sp_batch *b) {
    for (int32_t t = 0; t < b->n_tokens; t++)
        if (b->ids[t] < 0) return true;
    return false;
}

bool sp_forward_embed_fed(sp_forward *s, const sp_batch *b, sp_mat x) {
    const sp_dev_ops *ops = s->dev->ops;
    const sp_part *p = &s->config.part;
    const int32_t *last = s->ahead->last;
    if (p->tp == 1) {
        ops->embed_fed(s->dev, x, s->weights.embed, b->ids, last, s->config.n_slots);
        return true;
    }
    if (!has_fed(b)) return false;
    const sp_embed_part part = {last, s->config.n_slots, p->slice.vocab_first, s->vocab};
    ops->embed_part(s->dev, x, s->weights.embed, b->ids, &part);
    sp_tp_sum(s, s->x, b->n_tokens);
    return true;
}

static void draw(sp_forward *s, const sp_draw_args *draws, sp_drawn *results) {
    sp_forward_ahead *a = s->ahead;
    const sp_dev_ops *ops = s->dev->ops;
    sp_draw_args d = *draws;
    d.logits = s->logits;
    d.ld = d.V = s->vocab;
    d.last = a->last;
    d.drawn = a->drawn;
    ops->draw(s->dev, &d);
    ops->download(s->dev, results, a->drawn, (size_t)d.n * sizeof *a->drawn);
}

/* One row of which member 0 is the owner: bits are copied, whatever they mean. */
static void share_last(sp_forward *s) {
    static const int32_t owner = 0;
    sp_group *g = s->config.tp;
    if (s->config.part.tp > 1)
        g->ops->pick_rows(g, (float *)(void *)s->ahead->last, 1, slots_of(s), &owner);
}
_Static_assert(sizeof(float) == sizeof(int32_t), "tokens travel as rows");

sp_status sp_forward_submit(sp_forward *s, const sp_batch *b, const sp_draw_args *draws,
                            sp_err *err) {
    sp_forward_ahead *a = s->ahead;
    SP_ASSERT(a && a->submitted - a->finished < SP_FORWARD_STEPS);
    SP_ASSERT(draws->n >= 0 && draws->n <= s->config.n_slots);
    SP_TRY(sp_forward_queue(s, b, err));
    const size_t at = a->submitted % SP_FORWARD_STEPS;
    if (draws->n > 0) {
        if (draws_here(s)) draw(s, draws, a->results + at * slots_of(s));
        share_last(s);
    }
    a->tickets[at] = s->dev->ops->submit(s->dev);
    a->submitted++;
    return SP_OK;
}

/* A fault of the group, which its operations keep to themselves. What has been waited for so far has
 * come or has not: that steps follow each other without a pause is no wait. */
static sp_status ask_group(sp_forward *s, bool came, sp_err *err) {
    sp_group *g = s->config.tp;
    if (s->config.part.tp == 1) return SP_OK;
    if (came) g->ops->came(g);
    const sp_status st = g->ops->poll(g, 0, err);
    if (came) g->ops->came(g);
    return st == SP_AGAIN ? SP_OK : st;
}

#define ASK_NS (20 * SP_NS_PER_MS)

/* A device whose stream waits for a member that is gone never gets there: only the group can tell. */
static sp_status wait_for(sp_forward *s, sp_ticket ticket, int64_t deadline_ns, sp_err *err) {
    for (;;) {
        const int64_t soon = sp_now_ns() + ASK_NS;
        const bool last = deadline_ns <= soon;
        const sp_status st = s->dev->ops->poll(s->dev, ticket, last ? deadline_ns : soon, err);
        if (st != SP_OK && st != SP_AGAIN) return st;
        SP_TRY(ask_group(s, st == SP_OK, err));
        if (st == SP_OK || last) return st;
    }
}

sp_status sp_forward_finish(sp_forward *s, int64_t deadline_ns, const sp_drawn **drawn,
                            sp_err *err) {
    sp_forward_ahead *a = s->ahead;
    SP_ASSERT(a && a->finished < a->submitted);
    const size_t at = a->finished % SP_FORWARD_STEPS;
    SP_TRY(wait_for(s, a->tickets[at], deadline_ns, err));
    *drawn = a->results ? a->results + at * slots_of(s) : NULL;
    a->finished++;
    return SP_OK;
}
