#include "runtime/engine/stage_core.h"

#include "runtime/base/clock.h"

#include <string.h>

void sp_stage_open_tokens(sp_stage *s, uint64_t number) {
    s->head = (sp_wire_tokens_head){.number = number};
    s->n_out = 0;
}

sp_status sp_stage_send_tokens(sp_stage *s, bool more, sp_err *err) {
    s->head.flags = more ? SP_TOKENS_MORE : 0;
    sp_piece pieces[] = {{&s->head, sizeof s->head}, {s->out, s->n_out}};
    SP_TRY(sp_link_send(s->link, SP_FRAME_TOKENS, pieces, 2, sp_now_ns() + SP_STAGE_SEND_NS, err));
    s->head.n_records = 0;
    s->n_out = 0;
    return SP_OK;
}

/* Room for one record, sending what is there when the frame is full. */
sp_status sp_stage_put_record(sp_stage *s, const sp_wire_record *rec, const sp_top_logprob *top,
                              sp_err *err) {
    uint32_t bytes = (uint32_t)(sizeof *rec + rec->n_top * sizeof rec->top[0]);
    if (SP_STAGE_OUT_BYTES - s->n_out < bytes) SP_TRY(sp_stage_send_tokens(s, true, err));
    memcpy(s->out + s->n_out, rec, sizeof *rec);
    _Static_assert(sizeof(sp_top_logprob) == sizeof(sp_wire_top), "same fields");
    memcpy(s->out + s->n_out + sizeof *rec, top, bytes - sizeof *rec);
    s->n_out += bytes;
    s->head.n_records++;
    return SP_OK;
}

static sp_status tell_prompt(sp_stage *s, const sp_wire_entry *e, const sp_stage_seq *q,
                             int32_t position, const float *logits, sp_err *err) {
    sp_sample got = {0};
    sp_sampler_logprobs(s->sampler, logits, s->offer.n_vocab, q->tokens[position],
                        q->params.n_prompt_logprobs, &got);
    sp_wire_record rec = {.slot = e->slot,
                          .generation = e->generation,
                          .position = position,
                          .token = q->tokens[position],
                          .kind = SP_RECORD_PROMPT,
                          .n_top = (uint16_t)got.n_top,
                          .rank = got.rank,
                          .logprob = got.logprob};
    return sp_stage_put_record(s, &rec, got.top, err);
}

static sp_status tell_row(sp_stage *s, const sp_wire_entry *e, int32_t position,
                          const float *logits, sp_err *err) {
    uint32_t total = (uint32_t)s->offer.n_vocab;
    uint32_t most = (SP_FRAME_MAX - (uint32_t)sizeof(sp_wire_row_head)) / (uint32_t)sizeof *logits;
    for (uint32_t at = 0; at < total;) {
        uint32_t n = total - at < most ? total - at : most;
        sp_wire_row_head head = {.number = s->step,
                                 .slot = e->slot,
                                 .generation = e->generation,
                                 .position = position,
                                 .offset = at,
                                 .count = n,
                                 .total = total};
        sp_piece pieces[] = {{&head, sizeof head}, {logits + at, n * (uint32_t)sizeof *logits}};
        SP_TRY(sp_link_send(s->link, SP_FRAME_ROW, pieces, 2, sp_now_ns() + SP_STAGE_SEND_NS, err));
        at += n;
    }
    return SP_OK;
}

static sp_status draw(sp_stage *s, const sp_stage_seq *q, const float *logits, int32_t row,
                      sp_sample *got) {
    if (s->model.token) {
        got->id = s->model.token(s->model.ctx, row);
        if (got->id < 0 || got->id >= s->offer.n_vocab) return SP_E_INTERNAL;
        if (q->params.n_logprobs >= 0)
            sp_sampler_logprobs(s->sampler, logits, s->offer.n_vocab, got->id, q->params.n_logprobs,
                                got);
        return SP_OK;
    }
    sp_sample_input in = {.logits = logits,
                          .n_vocab = s->offer.n_vocab,
                          .params = &q->params,
                          .prompt = q->tokens,
                          .n_prompt = q->wire.n_prompt,
                          .output = q->tokens + q->wire.n_prompt,
                          .n_output = q->n_known - q->wire.n_prompt,
                          .eos_ids = s->eos,
                          .n_eos_ids = s->n_eos,
                          .choice = q->wire.choice,
                          .position = q->n_known};
    return sp_sampler_draw(s->sampler, &in, got);
}

static sp_status tell_sample(sp_stage *s, const sp_wire_entry *e, sp_stage_seq *q,
                             const float *logits, int32_t row, sp_err *err) {
    sp_sample got = {0};
    sp_status st = draw(s, q, logits, row, &got);
    bool told = q->params.n_logprobs >= 0;
    sp_wire_record rec = {.slot = e->slot,
                          .generation = e->generation,
                          .position = q->n_known,
                          .token = st == SP_OK ? got.id : (int32_t)st,
                          .kind = st != SP_OK ? SP_RECORD_FAILED
                                  : told      ? SP_RECORD_SAMPLED_LOGPROBS
                                              : SP_RECORD_SAMPLED};
    if (st == SP_OK && told) {
        rec.n_top = (uint16_t)got.n_top;
        rec.rank = got.rank;
        rec.logprob = got.logprob;
    }
    /* A failed draw leaves a token too: a step that is on its way may count on one, and what comes
     * of it is dropped by the head. */
    s->drawn[s->n_drawn++] = q->tokens[q->n_known] = st == SP_OK ? got.id : 0;
    q->n_here = ++q->n_known;
    return sp_stage_put_record(s, &rec, got.top, err);
}

/* Row `row` of the step's logits, of those that there are. */
static const float *row_of(const sp_stage *s, const float *logits, int32_t row) {
    return logits ? logits + (size_t)row * (size_t)s->offer.n_vocab : s->flat;
}

/* Walks the rows of an entry in the order in which lay_out_entry() asked for them. */
static sp_status answer_entry(sp_stage *s, const sp_wire_entry *e, sp_stage_seq *q,
                              const float *logits, int32_t *row, sp_err *err) {
    sp_stage_wanted w = sp_stage_wanted_of(q, e);
    for (int32_t r = 0; r < w.n; r++, (*row)++) {
        int32_t position = e->start + r;
        const float *at = row_of(s, logits, *row);
        if (e->flags & SP_ENTRY_ROWS) SP_TRY(tell_row(s, e, position, at, err));
        if (e->flags & SP_ENTRY_PROMPT_LOGPROBS && position + 1 < q->wire.n_prompt)
            SP_TRY(tell_prompt(s, e, q, position + 1, at, err));
    }
    if (w.last) (*row)++;
    if (!(e->flags & SP_ENTRY_SAMPLE)) return SP_OK;
    return tell_sample(s, e, q, row_of(s, logits, *row - 1), *row - 1, err);
}

sp_status sp_stage_answer(sp_stage *s, const sp_wire_step *w, int32_t n_rows, const float *logits,
                          sp_err *err) {
    int32_t row = 0;
    if (!logits && n_rows > 0 && !s->flat)
        return SP_FAIL(err, SP_E_INTERNAL, "the model gave no logits for %d rows", n_rows);
    sp_stage_open_tokens(s, w->number);
    s->n_drawn = 0;
    for (int32_t i = 0; i < w->n_entries; i++)
        SP_TRY(answer_entry(s, &w->entries[i], s->at[i], logits, &row, err));
    SP_TRY(sp_stage_feed_others(s, err));
    return sp_stage_send_tokens(s, false, err);
}
