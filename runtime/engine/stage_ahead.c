/* Which steps are submitted is decided by the STEP, the sequences and their parameters alone, so that all
 * ranks of a super pod decide alike: what one of them happens to know by now only makes it wait. Of a
 * step that is submitted no rank tells the others what was drawn: the device of the one that samples
 * gave it to theirs, where it lies in the sequence's slot until it is embedded; and each position is
 * embedded once, so nobody needs the token on the host but the rank that samples. A step that is not
 * submitted feeds the tokens that it draws, as ever (stage_feed.c). */
#include "runtime/engine/stage_core.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <string.h>

#define BIAS_MAX 100.0f /* as the sampler bounds a logit bias */

/* ---- memory ---- */

static int32_t least(int64_t a, int32_t b) {
    return a < b ? (int32_t)a : b;
}

sp_status sp_stage_ahead_open(sp_stage *s, sp_err *err) {
    const sp_wire_ready *o = &s->offer;
    sp_stage_ahead *a = &s->ahead;
    if (!s->model.submit) return SP_OK;
    if (!s->role.embeds)
        return SP_FAIL(err, SP_E_INVALID, "steps run ahead on a rank that does not embed");
    const size_t n = (size_t)o->max_num_seqs;
    const int64_t each = (int64_t)o->max_model_len + SP_ALLOWED_IDS_MAX;
    a->cap_tokens = least(each * o->max_num_seqs, SP_STAGE_TOKENS_MAX);
    a->cap_bias = least(SP_STAGE_BIAS_EACH * (int64_t)o->max_num_seqs, SP_STAGE_BIAS_MAX);
    a->place = sp_try_alloc_array((size_t)o->n_vocab, sizeof *a->place);
    if (!a->place) goto no_memory;
    if (!s->role.samples) return SP_OK;
    for (int i = 0; i < SP_STAGE_AHEAD; i++) {
        a->steps[i].draws = sp_try_alloc_array(n, sizeof *a->steps[i].draws);
        if (!a->steps[i].draws) goto no_memory;
    }
    a->draws = sp_try_alloc_array(n, sizeof *a->draws);
    a->tokens = sp_try_alloc_array((size_t)a->cap_tokens, sizeof *a->tokens);
    a->bias = sp_try_alloc_array((size_t)a->cap_bias, sizeof *a->bias);
    if (a->draws && a->tokens && a->bias) return SP_OK;
no_memory:
    return SP_FAIL(err, SP_E_NOMEM, "no memory for the draws of %zu sequences", n);
}

void sp_stage_ahead_close(sp_stage *s) {
    sp_stage_ahead *a = &s->ahead;
    for (int i = 0; i < SP_STAGE_AHEAD; i++) sp_free(a->steps[i].draws);
    sp_free(a->place);
    sp_free(a->bias);
    sp_free(a->tokens);
    sp_free(a->draws);
}

/* ---- which steps may ---- */

static bool has_penalties(const sp_gen_params *p) {
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f;
}

/* A run of one bans its id whatever came before. */
static bool has_long_words(const sp_gen_params *p) {
    for (int32_t at = 0; at < p->n_bad_words_ints; at += 1 + p->bad_words[at])
        if (p->bad_words[at] > 1) return true;
    return false;
}

/* Two of a kind are added one after the other by the host: no single bias has those bits. */
static bool has_bias_twice(const sp_stage *s, const sp_gen_params *p) {
    bool twice = false;
    for (int32_t i = 0; i < p->n_logit_bias; i++)
        twice = s->ahead.place[p->logit_bias[i].id]++ > 0 || twice;
    for (int32_t i = 0; i < p->n_logit_bias; i++) s->ahead.place[p->logit_bias[i].id] = 0;
    return twice;
}

void sp_stage_ahead_note(const sp_stage *s, sp_stage_seq *q) {
    if (!s->model.submit) return;
    q->looks_back = has_penalties(&q->params) || has_long_words(&q->params);
    q->on_host = has_bias_twice(s, &q->params);
}

/* What draws of this step need at most. */
typedef struct need {
    int64_t tokens, bias;
    bool logits, history;
} need;

static void add_need(const sp_stage *s, const sp_wire_entry *e, need *all) {
    if (e->slot >= (uint32_t)s->offer.max_num_seqs) return;
    const sp_stage_seq *q = s->slots[e->slot];
    if (!q || !q->complete) return; /* refused when it is laid out */
    const sp_gen_params *p = &q->params;
    if (sp_stage_wanted_of(q, e).n > 0) all->logits = true;
    if (!(e->flags & SP_ENTRY_SAMPLE)) return;
    all->logits |= q->on_host;
    all->history |= q->looks_back && q->n_here < q->n_known;
    all->tokens += p->n_allowed_ids + (has_penalties(p) ? q->n_known : 0);
    all->bias += p->n_logit_bias + p->n_bad_words_ints + p->n_stop_ids + s->n_eos;
}

sp_status sp_stage_prepare(sp_stage *s, const sp_wire_step *w, bool *ahead, sp_err *err) {
    need all = {0};
    *ahead = false;
    if (!s->model.submit) return SP_OK;
    for (int32_t i = 0; i < w->n_entries; i++) add_need(s, &w->entries[i], &all);
    *ahead = !all.logits && all.tokens <= s->ahead.cap_tokens && all.bias <= s->ahead.cap_bias;
    return *ahead && !all.history ? SP_OK : sp_stage_settle(s, err);
}

/* ---- a draw, laid out: runtime/gen/sampler.h says what acts when ---- */

/* A ban outlives whatever is added to it, and an id is there once. */
static void put_bias(sp_stage_ahead *a, int32_t id, float value) {
    int32_t *place = &a->place[id];
    if (*place == 0) {
        a->bias[a->n_bias++] = (sp_draw_bias){id, value};
        *place = a->n_bias;
    } else if (value == -INFINITY) {
        a->bias[*place - 1].value = value;
    }
}

static void put_ban(const sp_stage *s, sp_stage_ahead *a, int32_t id) {
    if (id >= 0 && id < s->offer.n_vocab) put_bias(a, id, -INFINITY);
}

static void put_bad_words(sp_stage *s, const sp_stage_seq *q) {
    const int32_t *w = q->params.bad_words, n_output = q->n_known - q->wire.n_prompt;
    for (int32_t at = 0; at < q->params.n_bad_words_ints; at += 1 + w[at]) {
        const int32_t before = w[at] - 1, *run = w + at + 1;
        if (before > n_output) continue;
        if (before == 0 ||
            memcmp(run, q->tokens + q->n_known - before, (size_t)before * sizeof *run) == 0)
            put_ban(s, &s->ahead, run[before]);
    }
}

static void put_biases(sp_stage *s, const sp_stage_seq *q, sp_draw *d) {
    sp_stage_ahead *a = &s->ahead;
    const sp_gen_params *p = &q->params;
    d->bias0 = a->n_bias;
    put_bad_words(s, q);
    if (q->n_known - q->wire.n_prompt < p->min_tokens) {
        for (int32_t i = 0; i < s->n_eos; i++) put_ban(s, a, s->eos[i]);
        for (int32_t i = 0; i < p->n_stop_ids; i++) put_ban(s, a, p->stop_ids[i]);
    }
    for (int32_t i = 0; i < p->n_logit_bias; i++) {
        const float b = p->logit_bias[i].bias;
        if (b != b) continue;
        put_bias(a, p->logit_bias[i].id, b < -BIAS_MAX ? -BIAS_MAX : b > BIAS_MAX ? BIAS_MAX : b);
    }
    d->n_bias = a->n_bias - d->bias0;
    for (int32_t i = d->bias0; i < a->n_bias; i++) a->place[a->bias[i].id] = 0;
}

static int32_t put_tokens(sp_stage_ahead *a, const int32_t *ids, int32_t n) {
    const int32_t at = a->n_tokens;
    if (n) memcpy(a->tokens + at, ids, (size_t)n * sizeof *ids);
    a->n_tokens += n;
    return at;
}

static void put_history(sp_stage_ahead *a, const sp_stage_seq *q, sp_draw *d) {
    if (!has_penalties(&q->params)) return;
    /* Without a repetition penalty the prompt does not matter, and it may be long. */
    d->n_prompt = q->params.repetition_penalty != 1.0f ? q->wire.n_prompt : 0;
    d->n_output = q->n_known - q->wire.n_prompt;
    d->prompt0 = put_tokens(a, q->tokens, d->n_prompt);
    d->output0 = put_tokens(a, q->tokens + q->wire.n_prompt, d->n_output);
}

static void put_draw(sp_stage *s, const sp_wire_entry *e, const sp_stage_seq *q, int32_t row) {
    sp_stage_ahead *a = &s->ahead;
    const sp_gen_params *p = &q->params;
    sp_draw *d = &a->draws[a->n_draws++];
    *d = (sp_draw){.row = row,
                   .slot = (int32_t)e->slot,
                   .temperature = p->temperature,
                   .top_p = p->top_p,
                   .min_p = p->min_p,
                   .repetition_penalty = p->repetition_penalty,
                   .presence_penalty = p->presence_penalty,
                   .frequency_penalty = p->frequency_penalty,
                   .top_k = p->top_k,
                   .choice = q->wire.choice,
                   .position = q->n_known,
                   .seed = p->seed,
                   .n_logprobs = p->n_logprobs,
                   .n_allowed = -1};
    put_history(a, q, d);
    put_biases(s, q, d);
    if (!p->allowed_ids) return;
    d->allowed0 = put_tokens(a, p->allowed_ids, p->n_allowed_ids);
    d->n_allowed = p->n_allowed_ids;
}

static void draw_entry(sp_stage *s, sp_stage_pending *t, const sp_wire_entry *e, sp_stage_seq *q,
                       int32_t *row) {
    const sp_stage_wanted w = sp_stage_wanted_of(q, e);
    *row += w.n + w.last;
    if (!(e->flags & SP_ENTRY_SAMPLE)) return;
    if (s->role.samples) {
        put_draw(s, e, q, *row - 1);
        t->draws[t->n++] = (sp_stage_drawn){.slot = e->slot,
                                            .generation = e->generation,
                                            .position = q->n_known,
                                            .told = q->params.n_logprobs >= 0};
    } else {
        s->ahead.n_draws++;
        q->n_here++; /* nobody here looks at it */
    }
    q->there = q->n_known++;
}

/* ---- steps that are on their way ---- */

sp_status sp_stage_submit(sp_stage *s, const sp_wire_step *w, const sp_batch *b, sp_err *err) {
    sp_stage_ahead *a = &s->ahead;
    int32_t row = 0;
    while (a->next - a->first >= SP_STAGE_AHEAD) SP_TRY(sp_stage_finish(s, SP_NEVER, err));
    sp_stage_pending *t = &a->steps[a->next % SP_STAGE_AHEAD];
    t->number = w->number;
    t->n = a->n_draws = a->n_tokens = a->n_bias = 0;
    for (int32_t i = 0; i < w->n_entries; i++) draw_entry(s, t, &w->entries[i], s->at[i], &row);
    const sp_draw_args args = {.n = a->n_draws,
                               .draws = a->draws,
                               .tokens = a->tokens,
                               .n_tokens = a->n_tokens,
                               .bias = a->bias,
                               .n_bias = a->n_bias};
    SP_TRY(s->model.submit(s->model.ctx, b, &args, err));
    a->next++;
    return SP_OK;
}

static sp_status tell_drawn(sp_stage *s, const sp_stage_drawn *t, const sp_drawn *got,
                            sp_err *err) {
    sp_top_logprob top[SP_DRAW_TOP_MAX];
    /* As the sampler has it: the request's own masks left nothing, or the model did. */
    const sp_status st = got->id >= 0 ? SP_OK : got->rank ? SP_E_INVALID : SP_E_INTERNAL;
    sp_stage_seq *q = s->slots[t->slot];
    /* It may be gone by now; what it drew is told all the same, as if it had gone after. */
    if (q && q->generation == t->generation) {
        q->tokens[t->position] = st == SP_OK ? got->id : 0;
        q->n_here = t->position + 1;
    }
    sp_wire_record rec = {.slot = t->slot,
                          .generation = t->generation,
                          .position = t->position,
                          .token = st == SP_OK ? got->id : (int32_t)st,
                          .kind = st != SP_OK ? SP_RECORD_FAILED
                                  : t->told   ? SP_RECORD_SAMPLED_LOGPROBS
                                              : SP_RECORD_SAMPLED};
    if (st == SP_OK && t->told) {
        rec.n_top = (uint16_t)got->n_top;
        rec.rank = got->rank;
        rec.logprob = got->logprob;
        for (int32_t i = 0; i < got->n_top; i++)
            top[i] = (sp_top_logprob){got->top_id[i], got->top_logprob[i]};
    }
    return sp_stage_put_record(s, &rec, top, err);
}

static sp_status check_drawn(const sp_stage *s, const sp_drawn *got, sp_err *err) {
    if (got->id >= -1 && got->id < s->offer.n_vocab && got->n_top >= 0 &&
        got->n_top <= SP_LOGPROBS_MAX)
        return SP_OK;
    return SP_FAIL(err, SP_E_INTERNAL, "the device drew token %d, the vocabulary has %d", got->id,
                   s->offer.n_vocab);
}

sp_status sp_stage_finish(sp_stage *s, int64_t deadline_ns, sp_err *err) {
    sp_stage_ahead *a = &s->ahead;
    const sp_stage_pending *t = &a->steps[a->first % SP_STAGE_AHEAD];
    const sp_drawn *drawn;
    SP_ASSERT(sp_stage_is_pending(s));
    SP_TRY(s->model.finish(s->model.ctx, deadline_ns, &drawn, err));
    a->first++;
    if (!s->role.samples) return SP_OK;
    sp_stage_open_tokens(s, t->number);
    for (int32_t i = 0; i < t->n; i++) {
        SP_TRY(check_drawn(s, &drawn[i], err));
        SP_TRY(tell_drawn(s, &t->draws[i], &drawn[i], err));
    }
    return sp_stage_send_tokens(s, false, err);
}

sp_status sp_stage_settle(sp_stage *s, sp_err *err) {
    while (sp_stage_is_pending(s)) SP_TRY(sp_stage_finish(s, SP_NEVER, err));
    return SP_OK;
}
