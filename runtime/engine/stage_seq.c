#include "runtime/engine/stage_core.h"

#include "runtime/base/mem.h"

#include <string.h>

void sp_stage_seq_free(sp_stage_seq *q) {
    if (!q) return;
    for (int i = 0; i < SP_PART_COUNT; i++) sp_free(q->parts[i]);
    sp_free(q->blocks);
    sp_free(q->tokens);
    sp_free(q);
}

static uint32_t part_total(const sp_stage_seq *q, sp_wire_part part) {
    const sp_wire_params *w = &q->wire;
    const int32_t totals[SP_PART_COUNT] = {
        [SP_PART_PARAMS] = 1,
        [SP_PART_PROMPT] = w->n_prompt,
        [SP_PART_OUTPUT] = w->n_output,
        [SP_PART_STOP_IDS] = w->n_stop_ids,
        [SP_PART_LOGIT_BIAS] = w->n_logit_bias,
        [SP_PART_ALLOWED] = w->n_allowed_ids,
        [SP_PART_BAD_WORDS] = w->n_bad_words,
    };
    return (uint32_t)totals[part];
}

static sp_status check_params(const sp_stage *s, const sp_wire_params *w, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, min, max;
    } rows[] = {
        {"tokens_max", w->tokens_max, 1, s->offer.max_model_len},
        {"n_prompt", w->n_prompt, 1, w->tokens_max},
        {"max_tokens", w->max_tokens, 0, w->tokens_max - w->n_prompt},
        {"n_output", w->n_output, 0, w->max_tokens},
        {"choice", w->choice, 0, SP_N_MAX - 1},
        {"n_logprobs", w->n_logprobs, -1, SP_LOGPROBS_MAX},
        {"n_prompt_logprobs", w->n_prompt_logprobs, -1, SP_LOGPROBS_MAX},
        {"n_stop_ids", w->n_stop_ids, 0, SP_STOP_IDS_MAX},
        {"n_logit_bias", w->n_logit_bias, 0, SP_LOGIT_BIAS_MAX},
        {"n_allowed_ids", w->n_allowed_ids, 0, SP_ALLOWED_IDS_MAX},
        {"n_bad_words", w->n_bad_words, 0, SP_BAD_WORDS_TOKENS_MAX},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' says '%s' is %d, want %d..%d",
                           rows[i].name, rows[i].value, rows[i].min, rows[i].max);
    if (w->flags & ~(uint32_t)SP_PARAMS_FLAGS)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' has flags %#x", w->flags);
    return SP_OK;
}

static sp_status new_seq(sp_stage *s, const sp_wire_add *add, sp_err *err) {
    const sp_wire_params *w = add->data;
    SP_TRY(check_params(s, w, err));
    sp_stage_seq **slot = &s->slots[add->seq.slot];
    if (*slot)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' to slot %u, which is taken", add->seq.slot);
    sp_stage_seq *q = sp_try_alloc(sizeof *q);
    if (!q) goto no_memory;
    q->generation = add->seq.generation;
    q->wire = *w;
    q->params = sp_wire_params_to(w);
    q->n_done = -1;
    q->there = -1;
    q->cap_blocks = (w->tokens_max + s->offer.block_tokens - 1) / s->offer.block_tokens;
    q->tokens = sp_try_alloc_array((size_t)w->tokens_max, sizeof *q->tokens);
    q->blocks = sp_try_alloc_array((size_t)q->cap_blocks, sizeof *q->blocks);
    if (!q->tokens || !q->blocks) goto no_memory;
    for (int i = SP_PART_STOP_IDS; i < SP_PART_COUNT; i++) {
        q->parts[i] =
            sp_try_alloc_array(part_total(q, (sp_wire_part)i), sp_wire_part_item((sp_wire_part)i));
        if (!q->parts[i]) goto no_memory;
    }
    q->params.stop_ids = q->parts[SP_PART_STOP_IDS];
    q->params.logit_bias = q->parts[SP_PART_LOGIT_BIAS];
    q->params.allowed_ids = w->flags & SP_PARAMS_ALLOWED ? q->parts[SP_PART_ALLOWED] : NULL;
    q->params.bad_words = q->parts[SP_PART_BAD_WORDS];
    *slot = q;
    s->n_seqs++;
    return SP_OK;
no_memory:
    sp_stage_seq_free(q);
    return SP_FAIL(err, SP_E_NOMEM, "no memory for a sequence of %d tokens", w->tokens_max);
}

sp_status sp_stage_find(const sp_stage *s, sp_wire_seq id, sp_stage_seq **out, sp_err *err) {
    if (id.slot >= (uint32_t)s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "slot %u, there are %d", id.slot, s->offer.max_num_seqs);
    sp_stage_seq *q = s->slots[id.slot];
    if (!q || q->generation != id.generation)
        return SP_FAIL(err, SP_E_PROTOCOL, "slot %u has generation %u, not %u", id.slot,
                       q ? q->generation : 0, id.generation);
    *out = q;
    return SP_OK;
}

static sp_status check_ids(const sp_stage *s, const int32_t *ids, uint32_t n, uint32_t stride,
                           sp_err *err) {
    for (uint32_t i = 0; i < n; i++)
        if (ids[i * stride] < 0 || ids[i * stride] >= s->offer.n_vocab)
            return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' has token %d, the vocabulary has %d",
                           ids[i * stride], s->offer.n_vocab);
    return SP_OK;
}

/* Runs of bad words: a count, then ids. Only whole ones can be checked, so at the end. */
static sp_status check_bad_words(const sp_stage *s, const sp_stage_seq *q, sp_err *err) {
    const int32_t *words = q->parts[SP_PART_BAD_WORDS];
    for (int32_t at = 0; at < q->wire.n_bad_words;) {
        int32_t n = words[at++];
        if (n < 1 || n > q->wire.n_bad_words - at)
            return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' has a run of %d bad ids, %d are left", n,
                           q->wire.n_bad_words - at);
        SP_TRY(check_ids(s, words + at, (uint32_t)n, 1, err));
        at += n;
    }
    return SP_OK;
}

static sp_status fill_part(sp_stage *s, sp_stage_seq *q, const sp_wire_add *add, sp_err *err) {
    sp_wire_part part = add->part;
    if (add->offset != q->have[part] || add->count > part_total(q, part) - q->have[part])
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' part %d has items %u+%u, want %u of %u",
                       (int)part, add->offset, add->count, q->have[part], part_total(q, part));
    if (part == SP_PART_LOGIT_BIAS)
        SP_TRY(check_ids(s, add->data, add->count, sizeof(sp_logit_bias) / sizeof(int32_t), err));
    else if (part != SP_PART_BAD_WORDS && part != SP_PART_STOP_IDS)
        SP_TRY(check_ids(s, add->data, add->count, 1, err));
    uint32_t item = sp_wire_part_item(part);
    unsigned char *to = part == SP_PART_PROMPT   ? (unsigned char *)q->tokens
                        : part == SP_PART_OUTPUT ? (unsigned char *)(q->tokens + q->wire.n_prompt)
                                                 : q->parts[part];
    memcpy(to + (size_t)add->offset * item, add->data, (size_t)add->count * item);
    q->have[part] += add->count;
    return SP_OK;
}

sp_status sp_stage_take_add(sp_stage *s, const sp_frame *f, sp_err *err) {
    sp_wire_add add;
    SP_TRY(sp_wire_add_decode(f->payload, f->length, &add, err));
    if (add.seq.slot >= (uint32_t)s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' to slot %u, there are %d", add.seq.slot,
                       s->offer.max_num_seqs);
    if (add.part == SP_PART_PARAMS) SP_TRY(new_seq(s, &add, err));
    sp_stage_seq *q;
    SP_TRY(sp_stage_find(s, add.seq, &q, err));
    if (add.part == SP_PART_PARAMS)
        q->have[SP_PART_PARAMS] = 1;
    else
        SP_TRY(fill_part(s, q, &add, err));
    for (int i = 0; i < SP_PART_COUNT; i++)
        if (q->have[i] != part_total(q, (sp_wire_part)i)) return SP_OK;
    SP_TRY(check_bad_words(s, q, err));
    q->n_known = q->n_here = q->wire.n_prompt + q->wire.n_output;
    q->complete = true;
    sp_stage_ahead_note(s, q);
    return SP_OK;
}

sp_status sp_stage_take_drop(sp_stage *s, const sp_frame *f, sp_err *err) {
    const sp_wire_seq *ids;
    int32_t n;
    SP_TRY(sp_wire_drop_decode(f->payload, f->length, &ids, &n, err));
    for (int32_t i = 0; i < n; i++) {
        sp_stage_seq *q;
        SP_TRY(sp_stage_find(s, ids[i], &q, err));
        s->slots[ids[i].slot] = NULL;
        sp_stage_seq_free(q);
        s->n_seqs--;
    }
    if (s->n_seqs == 0 && s->model.rest) s->model.rest(s->model.ctx);
    return SP_OK;
}
