#include "runtime/engine/stage_core.h"

#include <string.h>

static sp_status apply_delta(const sp_stage *s, sp_stage_seq *q, const sp_wire_delta *d,
                             const int32_t *blocks, sp_err *err) {
    if (d->group >= s->offer.n_groups)
        return SP_FAIL(err, SP_E_PROTOCOL, "cache group %u, there are %d", d->group,
                       s->offer.n_groups);
    if (d->first != q->n_blocks || d->count > q->cap_blocks - q->n_blocks)
        return SP_FAIL(err, SP_E_PROTOCOL, "block table places %d+%d, want %d of %d", d->first,
                       d->count, q->n_blocks, q->cap_blocks);
    for (int32_t i = 0; i < d->count; i++) {
        if (blocks[i] < 0 || blocks[i] >= s->offer.n_blocks)
            return SP_FAIL(err, SP_E_PROTOCOL, "block %d, there are %d", blocks[i],
                           s->offer.n_blocks);
        q->blocks[q->n_blocks++] = blocks[i];
    }
    return SP_OK;
}

/* Positions follow each other; before the first step some may be in shared blocks already. */
static sp_status check_entry(const sp_stage *s, const sp_stage_seq *q, const sp_wire_entry *e,
                             sp_err *err) {
    int32_t end = e->start + e->n;
    if (!q->complete)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step names slot %u, which is not complete", e->slot);
    if ((q->n_done >= 0 && e->start != q->n_done) || end > q->n_known)
        return SP_FAIL(err, SP_E_PROTOCOL, "positions %d+%d, done are %d of %d", e->start, e->n,
                       q->n_done, q->n_known);
    if (end > (int64_t)q->n_blocks * s->offer.block_tokens)
        return SP_FAIL(err, SP_E_PROTOCOL, "positions up to %d in %d blocks of %d", end,
                       q->n_blocks, s->offer.block_tokens);
    if (e->flags & SP_ENTRY_SAMPLE && (end != q->n_known || end >= q->wire.tokens_max))
        return SP_FAIL(err, SP_E_PROTOCOL, "a token after position %d of %d, %d at most", end,
                       q->n_known, q->wire.tokens_max);
    return SP_OK;
}

sp_stage_wanted sp_stage_wanted_of(const sp_stage_seq *q, const sp_wire_entry *e) {
    int32_t told = q->wire.n_prompt - 1 - e->start; /* rows before a prompt token */
    told = told < 0 ? 0 : told > e->n ? e->n : told;
    sp_stage_wanted w = {.n = e->flags & SP_ENTRY_ROWS              ? e->n
                              : e->flags & SP_ENTRY_PROMPT_LOGPROBS ? told
                                                                    : 0};
    w.last = e->flags & SP_ENTRY_SAMPLE && w.n < e->n;
    return w;
}

static sp_status lay_out_entry(sp_stage *s, sp_batch *b, const sp_wire_entry *e, sp_err *err) {
    int32_t i = b->n_seqs;
    sp_stage_seq *q;
    SP_TRY(sp_stage_find(s, (sp_wire_seq){e->slot, e->generation}, &q, err));
    SP_TRY(check_entry(s, q, e, err));
    sp_stage_wanted w = sp_stage_wanted_of(q, e);
    if (e->n > s->offer.max_batched_tokens - b->n_tokens ||
        w.n + w.last > s->offer.max_step_rows - b->n_rows)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step of more than %d tokens or %d rows",
                       s->offer.max_batched_tokens, s->offer.max_step_rows);
    for (int32_t r = 0; r < w.n; r++) s->rows[b->n_rows++] = b->n_tokens + r;
    if (w.last) s->rows[b->n_rows++] = b->n_tokens + e->n - 1;
    s->at[i] = q;
    s->seqs[i] =
        (sp_seq_rows){.row0 = b->n_tokens, .n_rows = e->n, .pos0 = e->start, .blocks = q->blocks};
    if (s->role.embeds && !s->role.samples) SP_TRY(sp_stage_feed_until(s, q, e->start + e->n, err));
    memcpy(s->tokens + b->n_tokens, q->tokens + e->start, (size_t)e->n * sizeof *s->tokens);
    /* Drawn by the device, which knows it sooner: the same at all ranks, whatever they know. */
    if (q->there >= e->start && q->there < e->start + e->n)
        s->tokens[b->n_tokens + q->there - e->start] = -1 - (int32_t)e->slot;
    b->n_tokens += e->n;
    b->n_seqs++;
    q->n_done = e->start + e->n;
    return SP_OK;
}

sp_status sp_stage_lay_out(sp_stage *s, const sp_wire_step *w, sp_batch *b, sp_err *err) {
    if (w->number != s->step + 1)
        return SP_FAIL(err, SP_E_PROTOCOL, "step %llu after step %llu",
                       (unsigned long long)w->number, (unsigned long long)s->step);
    if (w->n_entries > s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step of %d sequences, %d at most", w->n_entries,
                       s->offer.max_num_seqs);
    const int32_t *blocks = w->blocks;
    if (s->role.embeds && !s->role.samples) SP_TRY(sp_stage_feed_drain(s, w->number, err));
    for (int32_t i = 0; i < w->n_deltas; i++) {
        const sp_wire_delta *d = &w->deltas[i];
        const sp_wire_entry *e = &w->entries[d->entry];
        sp_stage_seq *q;
        SP_TRY(sp_stage_find(s, (sp_wire_seq){e->slot, e->generation}, &q, err));
        SP_TRY(apply_delta(s, q, d, blocks, err));
        blocks += d->count;
    }
    *b = (sp_batch){.ids = s->tokens, .seqs = s->seqs, .rows = s->rows};
    for (int32_t i = 0; i < w->n_entries; i++) SP_TRY(lay_out_entry(s, b, &w->entries[i], err));
    return SP_OK;
}
