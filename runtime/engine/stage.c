#define SP_LOG "stage"
#include "runtime/engine/stage.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/gen/sampler.h"

#include <string.h>

/* The head always takes what we send (it never waits with its own hands full), so a send that
 * takes this long means that it is gone. */
#define SEND_TIMEOUT_NS (60 * SP_NS_PER_S)

/* What a rank keeps of one sequence; one piece of memory, arrays behind the struct. */
typedef struct rank_seq {
    uint32_t generation;
    sp_wire_params wire;
    sp_gen_params params;
    uint32_t have[SP_PART_COUNT]; /* items of each part so far */
    bool complete;                /* every part is there */
    int32_t n_known;              /* tokens that are known here, or will be */
    int32_t n_here;               /* of those, the first that are known here */
    int32_t n_done;               /* positions whose keys and values are there; -1: no step yet */
    int32_t n_blocks, cap_blocks;
    int32_t *tokens; /* [tokens_max] */
    int32_t *blocks; /* [cap_blocks] */
    void *parts[SP_PART_COUNT];
} rank_seq;

/* A token that is drawn elsewhere and has not come. */
typedef struct awaited {
    uint32_t slot, generation;
    int32_t position;
} awaited;

/* Steps whose tokens have not come, oldest first: a ring, as is its list of tokens. */
typedef struct feed {
    struct {
        uint64_t number;
        int32_t n;
    } steps[SP_STAGE_STEPS_MAX];
    uint64_t first, next;          /* steps, counted */
    awaited *tokens;               /* [cap] */
    size_t cap, token, token_next; /* counted */
    int32_t *message;              /* [max_num_seqs] */
} feed;

struct sp_stage {
    sp_wire_ready offer;
    sp_link *link;
    sp_stage_model model;
    sp_stage_role role;
    const sp_stage_kvx *kvx;
    feed feed;
    float *flat; /* [n_vocab] zeros, when the model gives tokens and no logits */
    sp_sampler *sampler;
    int32_t *eos;
    int32_t n_eos;
    rank_seq **slots; /* [max_num_seqs] */
    uint64_t step;    /* last one done */
    /* Of the step at hand. */
    int32_t *tokens;   /* [max_batched_tokens] */
    sp_seq_rows *seqs; /* [max_num_seqs] */
    int32_t *rows;     /* [max_step_rows] */
    rank_seq **at;     /* [max_num_seqs] */
    int32_t *drawn;    /* [max_num_seqs] tokens for the feedback */
    int32_t n_drawn;
    sp_wire_tokens_head head;
    unsigned char *out; /* records of the TOKENS frame that is being filled */
    uint32_t n_out;
};
#define OUT_BYTES (SP_FRAME_MAX - (uint32_t)sizeof(sp_wire_tokens_head))

/* ---- creation ---- */

static sp_status check_offer(const sp_wire_ready *o, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, max;
    } rows[] = {
        {"n_vocab", o->n_vocab, 1 << 24},
        {"max_model_len", o->max_model_len, 1 << 30},
        {"max_num_seqs", o->max_num_seqs, SP_STEP_ENTRIES_MAX},
        {"max_batched_tokens", o->max_batched_tokens, 1 << 20},
        {"max_step_rows", o->max_step_rows, 1 << 20},
        {"block_tokens", o->block_tokens, 4096},
        {"n_blocks", o->n_blocks, 1 << 26},
        {"n_groups", o->n_groups, 1},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < 1 || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %d, want 1..%d", rows[i].name, rows[i].value,
                           rows[i].max);
    return SP_OK;
}

static sp_status check_role(sp_stage_role *r, sp_err *err) {
    if (r->steps_in_flight == 0) r->steps_in_flight = SP_STAGE_STEPS_MAX;
    if (r->steps_in_flight < 1 || r->steps_in_flight > SP_STAGE_STEPS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "'steps_in_flight' is %d, want 1..%d", r->steps_in_flight,
                       SP_STAGE_STEPS_MAX);
    if (r->embeds && !r->samples && (!r->feedback || r->feedback->me == 0))
        return SP_FAIL(err, SP_E_INVALID,
                       "a rank that embeds and does not sample is fed by nobody");
    if (r->samples && r->feedback && r->feedback->me != 0)
        return SP_FAIL(err, SP_E_INVALID, "the sampler is member %d of the feedback, want 0",
                       r->feedback->me);
    return SP_OK;
}

static sp_status take_feed_memory(sp_stage *s, sp_err *err) {
    size_t n = (size_t)s->offer.max_num_seqs;
    if (s->role.samples) {
        s->drawn = sp_try_alloc_array(n, sizeof *s->drawn);
        if (!s->drawn) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu tokens", n);
    } else if (s->role.embeds) {
        s->feed.cap = n * (size_t)s->role.steps_in_flight;
        s->feed.tokens = sp_try_alloc_array(s->feed.cap, sizeof *s->feed.tokens);
        s->feed.message = sp_try_alloc_array(n, sizeof *s->feed.message);
        if (!s->feed.tokens || !s->feed.message)
            return SP_FAIL(err, SP_E_NOMEM, "no memory to await %zu tokens", s->feed.cap);
    }
    if (!s->model.token || !s->role.samples) return SP_OK;
    s->flat = sp_try_alloc_array((size_t)s->offer.n_vocab, sizeof *s->flat);
    if (!s->flat)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for a row of %d logits", s->offer.n_vocab);
    return SP_OK;
}

static sp_status take_memory(sp_stage *s, const sp_stage_config *c, sp_err *err) {
    const sp_wire_ready *o = &s->offer;
    size_t n = (size_t)o->max_num_seqs;
    s->slots = sp_try_alloc_array(n, sizeof(rank_seq *));
    s->at = sp_try_alloc_array(n, sizeof(rank_seq *));
    s->seqs = sp_try_alloc_array(n, sizeof *s->seqs);
    s->tokens = sp_try_alloc_array((size_t)o->max_batched_tokens, sizeof *s->tokens);
    s->rows = sp_try_alloc_array((size_t)o->max_step_rows, sizeof *s->rows);
    s->eos = sp_try_alloc_array((size_t)c->n_eos_ids, sizeof *s->eos);
    s->out = sp_try_alloc(OUT_BYTES);
    if (!s->slots || !s->at || !s->seqs || !s->tokens || !s->rows || !s->eos || !s->out)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for steps of %d tokens", o->max_batched_tokens);
    if (c->n_eos_ids) memcpy(s->eos, c->eos_ids, (size_t)c->n_eos_ids * sizeof *s->eos);
    s->n_eos = c->n_eos_ids;
    s->sampler = sp_sampler_create(o->n_vocab);
    if (!s->sampler) return SP_FAIL(err, SP_E_NOMEM, "no memory for a sampler");
    return take_feed_memory(s, err);
}

sp_status sp_stage_create(sp_stage **out, const sp_stage_config *config, sp_link *link,
                          const sp_stage_model *model, sp_err *err) {
    SP_ASSERT(out && config && link && model && model->forward);
    sp_stage_role role = config->role;
    SP_TRY(check_offer(&config->offer, err));
    SP_TRY(check_role(&role, err));
    sp_stage *s = sp_alloc(sizeof *s);
    s->role = role;
    s->offer = config->offer;
    s->link = link;
    s->kvx = config->kvx;
    s->model = *model;
    sp_status st = take_memory(s, config, err);
    if (st != SP_OK) {
        sp_stage_destroy(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

static void free_seq(rank_seq *q) {
    if (!q) return;
    for (int i = 0; i < SP_PART_COUNT; i++) sp_free(q->parts[i]);
    sp_free(q->blocks);
    sp_free(q->tokens);
    sp_free(q);
}

void sp_stage_destroy(sp_stage *s) {
    if (!s) return;
    for (int32_t i = 0; s->slots && i < s->offer.max_num_seqs; i++) free_seq(s->slots[i]);
    sp_sampler_destroy(s->sampler);
    sp_free(s->flat);
    sp_free(s->feed.message);
    sp_free(s->feed.tokens);
    sp_free(s->drawn);
    sp_free(s->out);
    sp_free(s->eos);
    sp_free(s->rows);
    sp_free(s->tokens);
    sp_free(s->seqs);
    sp_free(s->at);
    sp_free(s->slots);
    sp_free(s);
}

/* ---- sequences come and go ---- */

static uint32_t part_total(const rank_seq *q, sp_wire_part part) {
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
    rank_seq **slot = &s->slots[add->seq.slot];
    if (*slot)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' to slot %u, which is taken", add->seq.slot);
    rank_seq *q = sp_try_alloc(sizeof *q);
    if (!q) goto no_memory;
    q->generation = add->seq.generation;
    q->wire = *w;
    q->params = sp_wire_params_to(w);
    q->n_done = -1;
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
    return SP_OK;
no_memory:
    free_seq(q);
    return SP_FAIL(err, SP_E_NOMEM, "no memory for a sequence of %d tokens", w->tokens_max);
}

static sp_status find_seq(const sp_stage *s, sp_wire_seq id, rank_seq **out, sp_err *err) {
    if (id.slot >= (uint32_t)s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "slot %u, there are %d", id.slot, s->offer.max_num_seqs);
    rank_seq *q = s->slots[id.slot];
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
static sp_status check_bad_words(const sp_stage *s, const rank_seq *q, sp_err *err) {
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

static sp_status fill_part(sp_stage *s, rank_seq *q, const sp_wire_add *add, sp_err *err) {
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

static sp_status take_add(sp_stage *s, const sp_frame *f, sp_err *err) {
    sp_wire_add add;
    SP_TRY(sp_wire_add_decode(f->payload, f->length, &add, err));
    if (add.seq.slot >= (uint32_t)s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' to slot %u, there are %d", add.seq.slot,
                       s->offer.max_num_seqs);
    if (add.part == SP_PART_PARAMS) SP_TRY(new_seq(s, &add, err));
    rank_seq *q;
    SP_TRY(find_seq(s, add.seq, &q, err));
    if (add.part == SP_PART_PARAMS)
        q->have[SP_PART_PARAMS] = 1;
    else
        SP_TRY(fill_part(s, q, &add, err));
    for (int i = 0; i < SP_PART_COUNT; i++)
        if (q->have[i] != part_total(q, (sp_wire_part)i)) return SP_OK;
    SP_TRY(check_bad_words(s, q, err));
    q->n_known = q->n_here = q->wire.n_prompt + q->wire.n_output;
    q->complete = true;
    return SP_OK;
}

static sp_status take_drop(sp_stage *s, const sp_frame *f, sp_err *err) {
    const sp_wire_seq *ids;
    int32_t n;
    SP_TRY(sp_wire_drop_decode(f->payload, f->length, &ids, &n, err));
    for (int32_t i = 0; i < n; i++) {
        rank_seq *q;
        SP_TRY(find_seq(s, ids[i], &q, err));
        s->slots[ids[i].slot] = NULL;
        free_seq(q);
    }
    return SP_OK;
}

/* ---- tokens that another rank draws ---- */

static sp_status group_poll(sp_group *g, sp_err *err) {
    sp_status st = g->ops->poll(g, SP_NEVER, err);
    if (st != SP_E_CANCELED) return st;
    return SP_FAIL(err, SP_E_PEER_LOST, "the group was given up");
}

/* Waits for the oldest message that has not come. Those it was for may be gone by now. */
static sp_status feed_take(sp_stage *s, sp_err *err) {
    feed *f = &s->feed;
    sp_group *g = s->role.feedback;
    int32_t n = f->steps[f->first % SP_STAGE_STEPS_MAX].n;
    g->ops->recv(g, 0, f->message, (size_t)n * sizeof *f->message);
    SP_TRY(group_poll(g, err));
    f->first++;
    for (int32_t i = 0; i < n; i++) {
        const awaited *a = &f->tokens[f->token++ % f->cap];
        int32_t token = f->message[i];
        if (token < 0 || token >= s->offer.n_vocab)
            return SP_FAIL(err, SP_E_PROTOCOL, "the sampler sent token %d, the vocabulary has %d",
                           token, s->offer.n_vocab);
        rank_seq *q = s->slots[a->slot];
        if (!q || q->generation != a->generation) continue;
        q->tokens[a->position] = token;
        q->n_here = a->position + 1;
    }
    return SP_OK;
}

/* Takes what is there, and what must be: when the head sends step `number`, the one that many steps
 * before it as may be in flight was answered, and its tokens sent before that. */
static sp_status feed_drain(sp_stage *s, uint64_t number, sp_err *err) {
    feed *f = &s->feed;
    sp_group *g = s->role.feedback;
    while (f->first < f->next) {
        uint64_t oldest = f->steps[f->first % SP_STAGE_STEPS_MAX].number;
        if (oldest + (uint64_t)s->role.steps_in_flight > number && !g->ops->can_recv(g, 0)) break;
        SP_TRY(feed_take(s, err));
    }
    return SP_OK;
}

/* The first `end` tokens of a sequence are needed now. */
static sp_status feed_until(sp_stage *s, const rank_seq *q, int32_t end, sp_err *err) {
    while (q->n_here < end) {
        if (s->feed.first == s->feed.next)
            return SP_FAIL(err, SP_E_INTERNAL, "a token of position %d is awaited from nobody",
                           q->n_here);
        SP_TRY(feed_take(s, err));
    }
    return SP_OK;
}

/* Counts the tokens that this step draws elsewhere. */
static void expect_tokens(sp_stage *s, const sp_wire_step *w) {
    feed *f = &s->feed;
    int32_t n = 0;
    for (int32_t i = 0; i < w->n_entries; i++) {
        const sp_wire_entry *e = &w->entries[i];
        if (!(e->flags & SP_ENTRY_SAMPLE)) continue;
        int32_t position = s->at[i]->n_known++;
        n++;
        if (s->role.embeds)
            f->tokens[f->token_next++ % f->cap] = (awaited){e->slot, e->generation, position};
        else
            s->at[i]->n_here++; /* nobody here looks at it */
    }
    if (n == 0 || !s->role.embeds) return;
    f->steps[f->next % SP_STAGE_STEPS_MAX].number = w->number;
    f->steps[f->next++ % SP_STAGE_STEPS_MAX].n = n;
}

/* The first stage can begin the next step with these, so they go before the answer. */
static sp_status feed_others(sp_stage *s, sp_err *err) {
    sp_group *g = s->role.feedback;
    if (!g || s->n_drawn == 0) return SP_OK;
    for (int to = 1; to < g->n; to++)
        g->ops->send(g, to, s->drawn, (size_t)s->n_drawn * sizeof *s->drawn);
    return group_poll(g, err);
}

/* ---- a step is laid out ---- */

static sp_status apply_delta(const sp_stage *s, rank_seq *q, const sp_wire_delta *d,
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
static sp_status check_entry(const sp_stage *s, const rank_seq *q, const sp_wire_entry *e,
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

/* Rows of an entry whose logits are wanted: from its first one `n`, and the last one if `last`. */
typedef struct wanted {
    int32_t n;
    bool last;
} wanted;

static wanted wanted_of(const rank_seq *q, const sp_wire_entry *e) {
    int32_t told = q->wire.n_prompt - 1 - e->start; /* rows before a prompt token */
    told = told < 0 ? 0 : told > e->n ? e->n : told;
    wanted w = {.n = e->flags & SP_ENTRY_ROWS              ? e->n
                     : e->flags & SP_ENTRY_PROMPT_LOGPROBS ? told
                                                           : 0};
    w.last = e->flags & SP_ENTRY_SAMPLE && w.n < e->n;
    return w;
}

static sp_status lay_out_entry(sp_stage *s, sp_batch *b, const sp_wire_entry *e, sp_err *err) {
    int32_t i = b->n_seqs;
    rank_seq *q;
    SP_TRY(find_seq(s, (sp_wire_seq){e->slot, e->generation}, &q, err));
    SP_TRY(check_entry(s, q, e, err));
    wanted w = wanted_of(q, e);
    if (e->n > s->offer.max_batched_tokens - b->n_tokens ||
        w.n + w.last > s->offer.max_step_rows - b->n_rows)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step of more than %d tokens or %d rows",
                       s->offer.max_batched_tokens, s->offer.max_step_rows);
    for (int32_t r = 0; r < w.n; r++) s->rows[b->n_rows++] = b->n_tokens + r;
    if (w.last) s->rows[b->n_rows++] = b->n_tokens + e->n - 1;
    s->at[i] = q;
    s->seqs[i] =
        (sp_seq_rows){.row0 = b->n_tokens, .n_rows = e->n, .pos0 = e->start, .blocks = q->blocks};
    if (s->role.embeds) SP_TRY(feed_until(s, q, e->start + e->n, err));
    memcpy(s->tokens + b->n_tokens, q->tokens + e->start, (size_t)e->n * sizeof *s->tokens);
    b->n_tokens += e->n;
    b->n_seqs++;
    q->n_done = e->start + e->n;
    return SP_OK;
}

static sp_status lay_out(sp_stage *s, const sp_wire_step *w, sp_batch *b, sp_err *err) {
    if (w->number != s->step + 1)
        return SP_FAIL(err, SP_E_PROTOCOL, "step %llu after step %llu",
                       (unsigned long long)w->number, (unsigned long long)s->step);
    if (w->n_entries > s->offer.max_num_seqs)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step of %d sequences, %d at most", w->n_entries,
                       s->offer.max_num_seqs);
    const int32_t *blocks = w->blocks;
    if (s->role.embeds && !s->role.samples) SP_TRY(feed_drain(s, w->number, err));
    for (int32_t i = 0; i < w->n_deltas; i++) {
        const sp_wire_delta *d = &w->deltas[i];
        const sp_wire_entry *e = &w->entries[d->entry];
        rank_seq *q;
        SP_TRY(find_seq(s, (sp_wire_seq){e->slot, e->generation}, &q, err));
        SP_TRY(apply_delta(s, q, d, blocks, err));
        blocks += d->count;
    }
    *b = (sp_batch){.ids = s->tokens, .seqs = s->seqs, .rows = s->rows};
    for (int32_t i = 0; i < w->n_entries; i++) SP_TRY(lay_out_entry(s, b, &w->entries[i], err));
    return SP_OK;
}

/* ---- and answered ---- */

static sp_status send_tokens(sp_stage *s, bool more, sp_err *err) {
    s->head.flags = more ? SP_TOKENS_MORE : 0;
    sp_piece pieces[] = {{&s->head, sizeof s->head}, {s->out, s->n_out}};
    SP_TRY(sp_link_send(s->link, SP_FRAME_TOKENS, pieces, 2, sp_now_ns() + SEND_TIMEOUT_NS, err));
    s->head.n_records = 0;
    s->n_out = 0;
    return SP_OK;
}

/* Room for one record, sending what is there when the frame is full. */
static sp_status put_record(sp_stage *s, const sp_wire_record *rec, const sp_top_logprob *top,
                            sp_err *err) {
    uint32_t bytes = (uint32_t)(sizeof *rec + rec->n_top * sizeof rec->top[0]);
    if (OUT_BYTES - s->n_out < bytes) SP_TRY(send_tokens(s, true, err));
    memcpy(s->out + s->n_out, rec, sizeof *rec);
    _Static_assert(sizeof(sp_top_logprob) == sizeof(sp_wire_top), "same fields");
    memcpy(s->out + s->n_out + sizeof *rec, top, bytes - sizeof *rec);
    s->n_out += bytes;
    s->head.n_records++;
    return SP_OK;
}

static sp_status tell_prompt(sp_stage *s, const sp_wire_entry *e, const rank_seq *q,
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
    return put_record(s, &rec, got.top, err);
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
        SP_TRY(sp_link_send(s->link, SP_FRAME_ROW, pieces, 2, sp_now_ns() + SEND_TIMEOUT_NS, err));
        at += n;
    }
    return SP_OK;
}

static sp_status draw(sp_stage *s, const rank_seq *q, const float *logits, int32_t row,
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

static sp_status tell_sample(sp_stage *s, const sp_wire_entry *e, rank_seq *q, const float *logits,
                             int32_t row, sp_err *err) {
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
    return put_record(s, &rec, got.top, err);
}

/* Row `row` of the step's logits, of those that there are. */
static const float *row_of(const sp_stage *s, const float *logits, int32_t row) {
    return logits ? logits + (size_t)row * (size_t)s->offer.n_vocab : s->flat;
}

/* Walks the rows of an entry in the order in which lay_out_entry() asked for them. */
static sp_status answer_entry(sp_stage *s, const sp_wire_entry *e, rank_seq *q, const float *logits,
                              int32_t *row, sp_err *err) {
    wanted w = wanted_of(q, e);
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

static sp_status answer(sp_stage *s, const sp_wire_step *w, int32_t n_rows, const float *logits,
                        sp_err *err) {
    int32_t row = 0;
    if (!logits && n_rows > 0 && !s->flat)
        return SP_FAIL(err, SP_E_INTERNAL, "the model gave no logits for %d rows", n_rows);
    s->head = (sp_wire_tokens_head){.number = w->number};
    s->n_out = 0;
    s->n_drawn = 0;
    for (int32_t i = 0; i < w->n_entries; i++)
        SP_TRY(answer_entry(s, &w->entries[i], s->at[i], logits, &row, err));
    SP_TRY(feed_others(s, err));
    return send_tokens(s, false, err);
}

static sp_status take_step(sp_stage *s, const sp_frame *f, sp_err *err) {
    sp_wire_step w;
    sp_batch b;
    const float *logits = NULL;
    SP_TRY(sp_wire_step_decode(f->payload, f->length, &w, err));
    SP_TRY(lay_out(s, &w, &b, err));
    s->step = w.number;
    SP_TRY(s->model.forward(s->model.ctx, &b, &logits, err));
    if (s->role.samples) return answer(s, &w, b.n_rows, logits, err);
    expect_tokens(s, &w);
    return SP_OK;
}

/* ---- the loop ---- */

sp_status sp_stage_take(sp_stage *s, const sp_frame *frame, sp_err *err) {
    switch (frame->type) {
    case SP_FRAME_SEQ_ADD:
        return take_add(s, frame, err);
    case SP_FRAME_SEQ_DROP:
        return take_drop(s, frame, err);
    case SP_FRAME_STEP:
        return take_step(s, frame, err);
    default:
        if (!s->kvx) return SP_AGAIN;
        return sp_stage_kv_take(s->kvx, s->link, s->offer.n_blocks, frame, err);
    }
}

static sp_fault fault_of(sp_status st) {
    switch (st) {
    case SP_E_PROTOCOL:
        return SP_FAULT_PROTOCOL;
    case SP_E_DEVICE:
        return SP_FAULT_DEVICE;
    case SP_E_NOMEM:
        return SP_FAULT_MEMORY;
    case SP_E_PEER_LOST:
    case SP_E_CANCELED:
        return SP_FAULT_PEER;
    default:
        return SP_FAULT_INTERNAL;
    }
}

static void tell_fault(sp_stage *s, sp_status st, const sp_err *err) {
    sp_wire_fault_head head = {.reason = fault_of(st),
                               .text_bytes = (uint32_t)strnlen(err->text, SP_FAULT_TEXT_MAX)};
    sp_piece pieces[] = {{&head, sizeof head}, {err->text, head.text_bytes}};
    sp_err ignored = {0};
    if (sp_link_send(s->link, SP_FRAME_FAULT, pieces, 2, sp_now_ns() + SP_NS_PER_S, &ignored))
        sp_debug("the head was not told: %s", ignored.text);
}

sp_status sp_stage_run(sp_stage *s, sp_err *err) {
    sp_err own = {0};
    if (!err) err = &own;
    sp_piece ready = {&s->offer, sizeof s->offer};
    SP_TRY(sp_link_send(s->link, SP_FRAME_READY, &ready, 1, sp_now_ns() + SEND_TIMEOUT_NS, err));
    for (;;) {
        sp_frame f;
        sp_status st = sp_link_recv(s->link, &f, SP_NEVER, err);
        if (st == SP_AGAIN) {
            st = s->kvx ? sp_stage_kv_tell(s->kvx, s->link, err) : SP_OK;
            if (st == SP_OK) continue;
            return st;
        }
        if (st == SP_OK && f.type == SP_FRAME_BYE) return SP_OK;
        if (st == SP_OK) {
            st = sp_stage_take(s, &f, err);
            if (st == SP_AGAIN)
                st = SP_FAIL(err, SP_E_PROTOCOL, "frame of type %d to a rank", (int)f.type);
        }
        if (st == SP_OK) continue;
        if (st != SP_E_CLOSED) tell_fault(s, st, err);
        return st;
    }
}

int32_t sp_stage_seq_count(const sp_stage *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->offer.max_num_seqs; i++) n += s->slots[i] != NULL;
    return n;
}

bool sp_stage_check(const sp_stage *s) {
    const feed *f = &s->feed;
    if (f->next - f->first > SP_STAGE_STEPS_MAX || f->token_next - f->token > f->cap) return false;
    for (int32_t i = 0; i < s->offer.max_num_seqs; i++) {
        const rank_seq *q = s->slots[i];
        if (!q) continue;
        if (q->n_known > q->wire.tokens_max || q->n_done > q->n_known) return false;
        if (q->complete && (q->n_here > q->n_known || (s->role.samples && q->n_here < q->n_known)))
            return false;
        if (q->n_blocks < 0 || q->n_blocks > q->cap_blocks) return false;
        if ((int64_t)q->n_blocks * s->offer.block_tokens < q->n_done) return false;
    }
    return true;
}
