#include "runtime/engine/stage_core.h"

#include "runtime/base/clock.h"

static sp_status group_poll(sp_group *g, sp_err *err) {
    sp_status st = g->ops->poll(g, SP_NEVER, err);
    if (st != SP_E_CANCELED) return st;
    return SP_FAIL(err, SP_E_PEER_LOST, "the group was given up");
}

/* Waits for the oldest message that has not come. Those it was for may be gone by now. */
static sp_status feed_take(sp_stage *s, sp_err *err) {
    sp_stage_feed *f = &s->feed;
    sp_group *g = s->role.feedback;
    int32_t n = f->steps[f->first % SP_STAGE_STEPS_MAX].n;
    g->ops->recv(g, 0, f->message, (size_t)n * sizeof *f->message);
    SP_TRY(group_poll(g, err));
    f->first++;
    for (int32_t i = 0; i < n; i++) {
        const sp_stage_awaited *a = &f->tokens[f->token++ % f->cap];
        int32_t token = f->message[i];
        if (token < 0 || token >= s->offer.n_vocab)
            return SP_FAIL(err, SP_E_PROTOCOL, "the sampler sent token %d, the vocabulary has %d",
                           token, s->offer.n_vocab);
        sp_stage_seq *q = s->slots[a->slot];
        if (!q || q->generation != a->generation) continue;
        q->tokens[a->position] = token;
        q->n_here = a->position + 1;
    }
    return SP_OK;
}

/* Takes what is there, and what must be: when the head sends step `number`, the one that many steps
 * before it as may be in flight was answered, and its tokens sent before that. */
sp_status sp_stage_feed_drain(sp_stage *s, uint64_t number, sp_err *err) {
    sp_stage_feed *f = &s->feed;
    sp_group *g = s->role.feedback;
    while (f->first < f->next) {
        uint64_t oldest = f->steps[f->first % SP_STAGE_STEPS_MAX].number;
        if (oldest + (uint64_t)s->role.steps_in_flight > number && !g->ops->can_recv(g, 0)) break;
        SP_TRY(feed_take(s, err));
    }
    return SP_OK;
}

/* The first `end` tokens of a sequence are needed now. */
sp_status sp_stage_feed_until(sp_stage *s, const sp_stage_seq *q, int32_t end, sp_err *err) {
    while (q->n_here < end) {
        if (s->feed.first == s->feed.next)
            return SP_FAIL(err, SP_E_INTERNAL, "a token of position %d is awaited from nobody",
                           q->n_here);
        SP_TRY(feed_take(s, err));
    }
    return SP_OK;
}

/* Counts the tokens that this step draws elsewhere. */
void sp_stage_expect_tokens(sp_stage *s, const sp_wire_step *w) {
    sp_stage_feed *f = &s->feed;
    int32_t n = 0;
    for (int32_t i = 0; i < w->n_entries; i++) {
        const sp_wire_entry *e = &w->entries[i];
        if (!(e->flags & SP_ENTRY_SAMPLE)) continue;
        int32_t position = s->at[i]->n_known++;
        n++;
        if (s->role.embeds)
            f->tokens[f->token_next++ % f->cap] =
                (sp_stage_awaited){e->slot, e->generation, position};
        else
            s->at[i]->n_here++; /* nobody here looks at it */
    }
    if (n == 0 || !s->role.embeds) return;
    f->steps[f->next % SP_STAGE_STEPS_MAX].number = w->number;
    f->steps[f->next++ % SP_STAGE_STEPS_MAX].n = n;
}

/* The first stage can begin the next step with these, so they go before the answer. */
sp_status sp_stage_feed_others(sp_stage *s, sp_err *err) {
    sp_group *g = s->role.feedback;
    if (!g || s->n_drawn == 0) return SP_OK;
    for (int to = 1; to < g->n; to++)
        g->ops->send(g, to, s->drawn, (size_t)s->n_drawn * sizeof *s->drawn);
    return group_poll(g, err);
}
