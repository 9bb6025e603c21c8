#define SP_LOG "engine"
#include "runtime/engine/stepper.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_metrics.h"

#include <stdio.h>
#include <string.h>

/* How long a frame waits for room before what comes in is looked at. */
#define SEND_PATIENCE_NS (2 * SP_NS_PER_MS)

struct sp_stepper {
    sp_stepper_config config;
    sp_sched *sched;
    int32_t *eos;
    sp_step *ring; /* [steps_in_flight], by number modulo */
    uint64_t sent, retired;
    int64_t retired_ns;
    sp_request *live; /* by prev, next */
    int32_t n_live;
    int64_t next_deadline_ns;
    bool received;
    uint64_t n_fresh;    /* tokens of the answer at hand */
    sp_sched_stats told; /* what the counters have of the scheduler's */
    sp_stepper_figures shown;
    int64_t load, prompt_tokens, generated_tokens;
};

static sp_step *step_of(const sp_stepper *p, uint64_t number) {
    return &p->ring[number % (uint64_t)p->config.sched.steps_in_flight];
}

/* ---- creation ---- */

static sp_status take_memory(sp_stepper *p, sp_err *err) {
    const sp_stepper_config *c = &p->config;
    SP_TRY(sp_sched_create(&p->sched, &c->sched, err));
    p->eos = sp_try_alloc_array((size_t)c->n_eos_ids, sizeof *p->eos);
    p->ring = sp_try_alloc_array((size_t)c->sched.steps_in_flight, sizeof *p->ring);
    if (!p->eos || !p->ring) return SP_FAIL(err, SP_E_NOMEM, "no memory for steps");
    if (c->n_eos_ids) memcpy(p->eos, c->eos_ids, (size_t)c->n_eos_ids * sizeof *p->eos);
    for (int32_t i = 0; i < c->sched.steps_in_flight; i++)
        SP_TRY(sp_step_init(&p->ring[i], p->sched, err));
    return SP_OK;
}

sp_status sp_stepper_create(sp_stepper **out, const sp_stepper_config *config, sp_err *err) {
    sp_stepper *p = sp_alloc(sizeof *p);
    p->config = *config;
    if (p->config.n_links == 0) p->config.n_links = sp_fan_count(config->fan);
    p->next_deadline_ns = SP_NEVER;
    sp_status st = take_memory(p, err);
    if (st != SP_OK) {
        sp_stepper_destroy(p);
        return st;
    }
    p->config.eos_ids = NULL;
    *out = p;
    return SP_OK;
}

void sp_stepper_destroy(sp_stepper *p) {
    if (!p) return;
    for (int32_t i = 0; p->ring && i < p->config.sched.steps_in_flight; i++)
        sp_step_fini(&p->ring[i]);
    sp_free(p->ring);
    sp_free(p->eos);
    sp_sched_destroy(p->sched);
    sp_free(p);
}

/* ---- the ends of things ---- */

static void list_live(sp_stepper *p, sp_request *r) {
    r->prev = NULL;
    r->next = p->live;
    if (r->next) r->next->prev = r;
    p->live = r;
    p->n_live++;
    p->load += r->n_prompt;
}

static void unlist_live(sp_stepper *p, sp_request *r) {
    if (r->prev)
        r->prev->next = r->next;
    else
        p->live = r->next;
    if (r->next) r->next->prev = r->prev;
    p->n_live--;
    p->load -= r->n_prompt;
}

static bool hand_over_prompt_logprobs(sp_event *ev, sp_request *r) {
    if (r->params.n_prompt_logprobs < 0) return true;
    if (!r->prompt_logprobs) /* a prompt of one token has none to wait for */
        r->prompt_logprobs = sp_try_alloc_array((size_t)r->n_prompt, sizeof(sp_token_logprobs *));
    if (!r->prompt_logprobs) return false;
    ev->prompt_logprobs = r->prompt_logprobs;
    ev->n_prompt_logprobs = r->n_prompt;
    r->prompt_logprobs = NULL;
    return true;
}

static sp_event *new_event(sp_stepper *p, sp_seq *q) {
    sp_event *ev = sp_desk_event(p->config.desk, q);
    ev->n_cached = q->req->n_cached > 0 ? q->req->n_cached : 0;
    return ev;
}

/* Nobody but the move it is for hears of it. */
static void end_shadow(sp_stepper *p, sp_seq *q) {
    sp_request *r = q->req;
    sp_sched_end(p->sched, q);
    r->n_live--;
    unlist_live(p, r);
    p->config.ended(p->config.ctx, r);
}

/* Of the last choice, if all that the request asked for was done. */
static bool lends(const sp_stepper *p, const sp_request *r, sp_ending how) {
    return r->keep_kv && r->n_live == 1 && !r->spoiled && !how.silent && p->config.lend;
}

/* Ends a choice; `ev` is its event of this step, or NULL. */
static void end_choice(sp_stepper *p, sp_seq *q, sp_ending how, sp_event *ev) {
    sp_request *r = q->req;
    if (r->shadow) {
        end_shadow(p, q);
        return;
    }
    p->load -= q->n_output;
    if (!how.silent) {
        if (!ev) ev = new_event(p, q);
        ev->finish = how.finish;
        ev->stop_id = how.stop_id;
        ev->error = how.error;
        if (how.text) snprintf(ev->error_text, sizeof ev->error_text, "%s", how.text);
    }
    sp_engine_metrics_end(p->config.metrics, q, how.finish, sp_now_ns());
    if (q->n_output > r->max_output) r->max_output = q->n_output;
    if (how.finish != SP_FINISH_STOP && how.finish != SP_FINISH_LENGTH) r->spoiled = true;
    r->parting = lends(p, r, how) && p->config.lend(p->config.ctx, q, ev);
    sp_sched_end(p->sched, q);
    if (--r->n_live > 0) return;
    if (r->held) p->config.ended(p->config.ctx, r);
    sp_engine_metrics_request(p->config.metrics, r);
    unlist_live(p, r);
    if (!r->parting) sp_desk_close(p->config.desk, r);
}

void sp_stepper_end(sp_stepper *p, sp_request *r, sp_ending how) {
    /* The last one frees the request, so it is not looked at after its last choice. */
    for (int32_t i = 0, left = r->n_live; left > 0; i++) {
        if (r->seqs[i].state == SP_SEQ_DONE) continue;
        left--;
        end_choice(p, &r->seqs[i], how, NULL);
    }
}

/* Not known to the scheduler: ended here, choice by choice. */
void sp_stepper_refuse(sp_stepper *p, sp_request *r, sp_status error, const char *text) {
    for (int32_t i = 0; i < r->params.n; i++) {
        sp_event *ev = new_event(p, &r->seqs[i]);
        ev->finish = SP_FINISH_ERROR;
        ev->error = error;
        snprintf(ev->error_text, sizeof ev->error_text, "%.100s", text);
        r->seqs[i].state = SP_SEQ_DONE;
        sp_counter_add(&p->config.metrics->finished[SP_FINISH_ERROR], 1);
    }
    r->n_live = 0;
    sp_desk_close(p->config.desk, r);
}

void sp_stepper_add(sp_stepper *p, sp_request *r) {
    sp_err err = {0};
    if (sp_sched_add(p->sched, r, &err) != SP_OK) {
        sp_stepper_refuse(p, r, err.code, err.text);
        return;
    }
    list_live(p, r);
    if (r->deadline_ns < p->next_deadline_ns) p->next_deadline_ns = r->deadline_ns;
    sp_debug("request of %d tokens, %d choices of %d", r->n_prompt, r->params.n,
             r->params.max_tokens);
}

sp_status sp_stepper_hold(sp_stepper *p, sp_request *r, sp_err *err) {
    SP_TRY(sp_sched_hold(p->sched, r, err));
    list_live(p, r);
    if (r->deadline_ns < p->next_deadline_ns) p->next_deadline_ns = r->deadline_ns;
    return SP_OK;
}

void sp_stepper_let_in(sp_stepper *p, sp_request *r) {
    sp_sched_let_in(p->sched, r);
}

sp_status sp_stepper_add_shadow(sp_stepper *p, sp_request *r, sp_err *err) {
    SP_ASSERT(r->shadow && r->params.n == 1);
    SP_TRY(sp_sched_add(p->sched, r, err));
    list_live(p, r);
    return SP_OK;
}

void sp_stepper_end_shadow(sp_stepper *p, sp_request *r) {
    end_shadow(p, &r->seqs[0]);
}

void sp_stepper_cancel(sp_stepper *p, sp_request *r) {
    for (int32_t i = 0, n = r->params.n, left = r->n_live; i < n && left > 0; i++) {
        sp_seq *q = &r->seqs[i];
        if (q->state == SP_SEQ_DONE) continue;
        bool stop = r->seen_stopped[i / 64] >> (i % 64) & 1;
        bool abort = r->seen_aborted[i / 64] >> (i % 64) & 1;
        if (!stop && !abort) continue;
        left--;
        end_choice(p, q,
                   (sp_ending){.finish = stop ? SP_FINISH_STOP : SP_FINISH_ABORT, .silent = true},
                   NULL);
    }
}

void sp_stepper_end_all(sp_stepper *p, sp_ending how) {
    while (p->live) sp_stepper_end(p, p->live, how);
}

int64_t sp_stepper_expire(sp_stepper *p, int64_t now_ns) {
    if (now_ns < p->next_deadline_ns) return p->next_deadline_ns;
    int64_t soonest = SP_NEVER;
    for (sp_request *r = p->live, *next; r; r = next) {
        next = r->next;
        if (r->deadline_ns <= now_ns) {
            sp_stepper_end(p, r,
                           (sp_ending){.finish = SP_FINISH_ERROR,
                                       .error = SP_E_TIMEOUT,
                                       .text = "the request's deadline has passed"});
        } else if (r->deadline_ns < soonest) {
            soonest = r->deadline_ns;
        }
    }
    return p->next_deadline_ns = soonest;
}

int64_t sp_stepper_overdue_ns(const sp_stepper *p) {
    if (p->config.step_timeout_ns == 0 || p->sent == p->retired) return SP_NEVER;
    /* A step begins when it was sent or when the one before it ended, whichever is later. */
    int64_t from = step_of(p, p->retired + 1)->sent_ns;
    if (p->retired_ns > from) from = p->retired_ns;
    return from + p->config.step_timeout_ns;
}

/* ---- out ---- */

sp_status sp_stepper_send(sp_stepper *p, sp_frame_type type, const sp_piece *pieces, int n,
                          sp_err *err) {
    int64_t now = sp_now_ns(), until = now + p->config.send_timeout_ns;
    for (;;) {
        sp_err full = {0};
        sp_status st = sp_fan_send_range(p->config.fan, p->config.first_link, p->config.n_links,
                                         type, pieces, n, now + SEND_PATIENCE_NS, &full);
        if (st != SP_E_TIMEOUT) {
            if (st != SP_OK && err) *err = full;
            return st;
        }
        /* A rank may be waiting for us to take what it sends: take it, then try again with the same
         * frame, which goes to those that have not got it. Nothing else is sent in between. */
        st = p->config.receive(p->config.ctx, err);
        p->received = true;
        if (st != SP_OK && st != SP_AGAIN) return st;
        now = sp_now_ns();
        if (now >= until)
            return SP_FAIL(err, SP_E_PEER_LOST, "a rank took no frame for %lld ms: %.120s",
                           (long long)(p->config.send_timeout_ns / SP_NS_PER_MS), full.text);
    }
}

static sp_status send_drops(sp_stepper *p, sp_err *err) {
    if (!sp_sched_has_drops(p->sched)) return SP_OK;
    int32_t n;
    const sp_wire_seq *drops = sp_sched_drops(p->sched, &n);
    sp_wire_drop_head head = {.count = (uint32_t)n};
    sp_piece pieces[] = {{&head, sizeof head}, {drops, (uint32_t)n * (uint32_t)sizeof *drops}};
    return sp_stepper_send(p, SP_FRAME_SEQ_DROP, pieces, 2, err);
}

static sp_status send_part(sp_stepper *p, const sp_seq *q, sp_wire_part part, const void *data,
                           int32_t count, sp_err *err) {
    uint32_t item = sp_wire_part_item(part);
    uint32_t most = (SP_FRAME_MAX - (uint32_t)sizeof(sp_wire_add_head)) / item;
    for (uint32_t at = 0, left = (uint32_t)count; left > 0;) {
        uint32_t n = left < most ? left : most;
        sp_wire_add_head head = {.slot = (uint32_t)q->slot,
                                 .generation = q->generation,
                                 .part = (uint16_t)part,
                                 .offset = at,
                                 .count = n};
        sp_piece pieces[] = {{&head, sizeof head},
                             {(const unsigned char *)data + (size_t)at * item, n * item}};
        SP_TRY(sp_stepper_send(p, SP_FRAME_SEQ_ADD, pieces, 2, err));
        at += n;
        left -= n;
    }
    return SP_OK;
}

static sp_status send_sequence(sp_stepper *p, const sp_seq *q, sp_err *err) {
    const sp_request *r = q->req;
    const sp_gen_params *g = &r->params;
    sp_wire_params w = sp_wire_params_of(g, q->choice);
    w.n_prompt = r->n_prompt;
    w.n_output = q->n_output;
    w.tokens_max = r->n_prompt + g->max_tokens;
    SP_TRY(send_part(p, q, SP_PART_PARAMS, &w, 1, err));
    SP_TRY(send_part(p, q, SP_PART_PROMPT, r->prompt, r->n_prompt, err));
    SP_TRY(send_part(p, q, SP_PART_OUTPUT, q->output, q->n_output, err));
    SP_TRY(send_part(p, q, SP_PART_STOP_IDS, g->stop_ids, g->n_stop_ids, err));
    SP_TRY(send_part(p, q, SP_PART_LOGIT_BIAS, g->logit_bias, g->n_logit_bias, err));
    SP_TRY(send_part(p, q, SP_PART_ALLOWED, g->allowed_ids, g->n_allowed_ids, err));
    return send_part(p, q, SP_PART_BAD_WORDS, g->bad_words, g->n_bad_words_ints, err);
}

static sp_status send_step(sp_stepper *p, sp_step *st, sp_err *err) {
    for (int32_t i = 0; i < st->n_admitted; i++) {
        if (!st->admitted[i]->req->shadow) sp_desk_started(p->config.desk, st->admitted[i]->req);
        SP_TRY(send_sequence(p, st->admitted[i], err));
    }
    sp_wire_step_head head;
    sp_piece pieces[4];
    int n = sp_wire_step_pieces(&st->wire, &head, pieces);
    st->sent_ns = sp_now_ns();
    p->sent = st->wire.number;
    return sp_stepper_send(p, SP_FRAME_STEP, pieces, n, err);
}

/* Whether planning changed anything that makes another try worthwhile. */
static bool settle(sp_stepper *p) {
    sp_seq *q = sp_sched_doomed(p->sched);
    if (q)
        end_choice(p, q,
                   (sp_ending){.finish = SP_FINISH_ERROR,
                               .error = q->doom,
                               .text = "the head has no memory for the sequence"},
                   NULL);
    return q || sp_sched_has_drops(p->sched);
}

sp_status sp_stepper_advance(sp_stepper *p, sp_err *err) {
    p->received = false;
    for (;;) {
        SP_TRY(send_drops(p, err));
        if (p->sent - p->retired >= (uint64_t)p->config.sched.steps_in_flight) return SP_OK;
        sp_step *st = step_of(p, p->sent + 1);
        bool planned = sp_sched_plan(p->sched, p->sent + 1, sp_now_ns(), st);
        if (planned) SP_TRY(send_step(p, st, err));
        if (!settle(p) && !planned) return SP_OK;
    }
}

bool sp_stepper_received(const sp_stepper *p) {
    return p->received;
}

/* ---- in ---- */

static sp_token_logprobs *copy_logprobs(const sp_wire_record *rec) {
    sp_token_logprobs *lp = sp_alloc(sizeof *lp + rec->n_top * sizeof lp->top[0]);
    lp->id = rec->token;
    lp->logprob = rec->logprob;
    lp->rank = rec->rank;
    lp->n_top = rec->n_top;
    for (int i = 0; i < rec->n_top; i++) {
        lp->top[i].id = rec->top[i].id;
        lp->top[i].logprob = rec->top[i].logprob;
    }
    return lp;
}

static bool contains(const int32_t *ids, int32_t n, int32_t id) {
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

/* Whether the newest token is the last one, and why. */
static sp_ending ending_of(const sp_stepper *p, const sp_seq *q) {
    const sp_gen_params *g = &q->req->params;
    int32_t token = q->output[q->n_output - 1];
    if (!g->ignore_eos && contains(p->eos, p->config.n_eos_ids, token))
        return (sp_ending){.finish = SP_FINISH_STOP, .stop_id = -1};
    if (contains(g->stop_ids, g->n_stop_ids, token))
        return (sp_ending){.finish = SP_FINISH_STOP, .stop_id = token};
    if (q->n_output == g->max_tokens) return (sp_ending){.finish = SP_FINISH_LENGTH};
    return (sp_ending){.finish = SP_FINISH_NONE};
}

static void count_prompt(sp_stepper *p, sp_request *r) {
    if (r->counted) return;
    r->counted = true;
    sp_engine_metrics_prompt(p->config.metrics, r);
}

static const sp_ending no_memory = {.finish = SP_FINISH_ERROR,
                                    .error = SP_E_NOMEM,
                                    .text = "the head has no memory for what the step gave"};

static sp_status take_sample(sp_stepper *p, sp_seq *q, const sp_wire_record *rec, int64_t now_ns,
                             sp_err *err) {
    int32_t next = sp_seq_known(q);
    if (rec->position < next) return SP_OK; /* a duplicate */
    if (rec->position > next || q->n_output >= q->n_planned)
        return SP_FAIL(err, SP_E_PROTOCOL, "a token of position %d, the next is %d of %d planned",
                       rec->position, next, q->req->n_prompt + q->n_planned);
    if (rec->token >= p->config.n_vocab)
        return SP_FAIL(err, SP_E_PROTOCOL, "token %d, the vocabulary has %d", rec->token,
                       p->config.n_vocab);
    sp_event *ev = new_event(p, q);
    if (q->n_output == 0) count_prompt(p, q->req);
    q->output[q->n_output++] = rec->token;
    ev->tokens[ev->n_tokens++] = rec->token;
    if (rec->kind == SP_RECORD_SAMPLED_LOGPROBS && q->req->params.n_logprobs >= 0)
        ev->logprobs[0] = copy_logprobs(rec);
    p->n_fresh++;
    p->load++;
    sp_engine_metrics_token(p->config.metrics, q, now_ns);
    sp_sched_grown(p->sched, q);
    if (q->choice == 0 && q->n_output == 1 && !hand_over_prompt_logprobs(ev, q->req)) {
        end_choice(p, q, no_memory, ev);
        return SP_OK;
    }
    sp_ending how = ending_of(p, q);
    if (how.finish != SP_FINISH_NONE) end_choice(p, q, how, ev);
    return SP_OK;
}

static sp_status take_prompt(sp_stepper *p, sp_seq *q, const sp_wire_record *rec, sp_err *err) {
    sp_request *r = q->req;
    if (q->choice != 0 || r->params.n_prompt_logprobs < 0 || rec->position < 1 ||
        rec->position >= r->n_prompt)
        return SP_FAIL(err, SP_E_PROTOCOL, "log-probabilities of position %d were not asked for",
                       rec->position);
    if (!r->prompt_logprobs)
        r->prompt_logprobs = sp_try_alloc_array((size_t)r->n_prompt, sizeof(sp_token_logprobs *));
    if (!r->prompt_logprobs) {
        end_choice(p, q, no_memory, NULL);
        return SP_OK;
    }
    if (r->prompt_logprobs[rec->position]) return SP_OK; /* told before it was preempted */
    r->prompt_logprobs[rec->position] = copy_logprobs(rec);
    if (!r->params.all_logits && rec->position == q->rows_done + 1) q->rows_done++;
    return SP_OK;
}

static sp_status take_record(sp_stepper *p, const sp_wire_record *rec, int64_t now_ns,
                             sp_err *err) {
    sp_seq *q = sp_sched_find(p->sched, rec->slot, rec->generation);
    if (!q) return SP_OK; /* late */
    switch ((sp_record_kind)rec->kind) {
    case SP_RECORD_SAMPLED:
    case SP_RECORD_SAMPLED_LOGPROBS:
        return take_sample(p, q, rec, now_ns, err);
    case SP_RECORD_PROMPT:
        return take_prompt(p, q, rec, err);
    default:
        end_choice(p, q,
                   (sp_ending){.finish = SP_FINISH_ERROR,
                               .error = SP_E_INTERNAL,
                               .text = "no token could be drawn: the logits are not numbers"},
                   NULL);
        return SP_OK;
    }
}

/* What a retired step promised of one sequence has come. */
static sp_status check_entry(sp_stepper *p, const sp_wire_entry *e, sp_err *err) {
    sp_seq *q = sp_sched_find(p->sched, e->slot, e->generation);
    if (!q) return SP_OK;
    int32_t end = e->start + e->n;
    if (e->flags & SP_ENTRY_SAMPLE && sp_seq_known(q) <= end)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step has no token for position %d", end);
    int32_t limit = sp_seq_rows_limit(q), told = end < limit ? end : limit;
    if (e->flags & (SP_ENTRY_ROWS | SP_ENTRY_PROMPT_LOGPROBS) && q->rows_done < told)
        return SP_FAIL(err, SP_E_PROTOCOL, "a step told rows up to position %d, want %d",
                       q->rows_done, told);
    sp_request *r = q->req;
    if (e->start < r->n_prompt)
        p->prompt_tokens += (end < r->n_prompt ? end : r->n_prompt) - e->start;
    if (r->shadow) p->config.computed(p->config.ctx, r, end, q->blocks.ids);
    if (r->params.max_tokens > 0 || end < r->n_prompt) return SP_OK;
    if (r->shadow) {
        end_shadow(p, q);
        return SP_OK;
    }
    count_prompt(p, r);
    sp_event *ev = new_event(p, q);
    bool ok = q->choice != 0 || hand_over_prompt_logprobs(ev, r);
    end_choice(p, q, ok ? (sp_ending){.finish = SP_FINISH_LENGTH} : no_memory, ev);
    return SP_OK;
}

static sp_status retire(sp_stepper *p, sp_err *err) {
    const sp_step *st = step_of(p, ++p->retired);
    p->retired_ns = sp_now_ns();
    sp_sched_retire(p->sched, p->retired);
    sp_counter_add(&p->config.metrics->steps, 1);
    sp_histogram_observe(&p->config.metrics->iteration_tokens, st->wire.n_tokens);
    for (int32_t i = 0; i < st->wire.n_entries; i++) SP_TRY(check_entry(p, &st->entries[i], err));
    return SP_OK;
}

sp_status sp_stepper_tokens(sp_stepper *p, const void *payload, uint32_t length, sp_err *err) {
    sp_wire_tokens t;
    SP_TRY(sp_wire_tokens_decode(payload, length, &t, err));
    if (p->retired == p->sent || t.number != p->retired + 1)
        return SP_FAIL(err, SP_E_PROTOCOL, "tokens of step %llu, %llu of %llu have come",
                       (unsigned long long)t.number, (unsigned long long)p->retired,
                       (unsigned long long)p->sent);
    int64_t now_ns = sp_now_ns();
    sp_status st = SP_OK;
    p->n_fresh = 0;
    for (const sp_wire_record *rec; st == SP_OK && (rec = sp_wire_tokens_next(&t));)
        st = take_record(p, rec, now_ns, err);
    /* Once an answer: readers of the figures share the line. */
    if (p->n_fresh) sp_counter_add(&p->config.metrics->generation_tokens, p->n_fresh);
    p->generated_tokens += (int64_t)p->n_fresh;
    return st != SP_OK || t.more ? st : retire(p, err);
}

static void give_row(sp_stepper *p, sp_seq *q, int32_t position) {
    sp_event *ev = new_event(p, q);
    ev->logits = q->row;
    ev->n_vocab = p->config.n_vocab;
    ev->logits_position = position;
    q->row = NULL;
    q->row_have = 0;
    q->rows_done++;
}

sp_status sp_stepper_row(sp_stepper *p, const void *payload, uint32_t length, sp_err *err) {
    sp_wire_row row;
    SP_TRY(sp_wire_row_decode(payload, length, &row, err));
    sp_seq *q = sp_sched_find(p->sched, row.seq.slot, row.seq.generation);
    if (!q) return SP_OK;
    if (row.position != q->rows_done || row.offset != q->row_have ||
        row.total != (uint32_t)p->config.n_vocab || !q->req->params.all_logits)
        return SP_FAIL(err, SP_E_PROTOCOL,
                       "logits of position %d from %u of %u, want position %d from %u of %d",
                       row.position, row.offset, row.total, q->rows_done, q->row_have,
                       p->config.n_vocab);
    if (!q->row) q->row = sp_try_alloc_array(row.total, sizeof *q->row);
    if (!q->row) {
        end_choice(p, q, no_memory, NULL);
        return SP_OK;
    }
    memcpy(q->row + row.offset, row.values, (size_t)row.count * sizeof *q->row);
    q->row_have += row.count;
    if (q->row_have == row.total) give_row(p, q, row.position);
    return SP_OK;
}

/* ---- what it says of itself ---- */

bool sp_stepper_is_idle(const sp_stepper *p) {
    return p->n_live == 0 && p->sent == p->retired;
}
sp_sched *sp_stepper_sched(const sp_stepper *p) {
    return p->sched;
}

void sp_stepper_pause(sp_stepper *p, sp_seq *q, bool paused) {
    sp_sched_pause(p->sched, q, paused);
}

sp_stepper_figures sp_stepper_get_figures(const sp_stepper *p) {
    const sp_kv_pool *pool = sp_sched_pool(p->sched);
    return (sp_stepper_figures){.running = sp_sched_running(p->sched),
                                .waiting = sp_sched_waiting(p->sched),
                                .blocks_used = sp_kv_pool_held(pool) + sp_kv_pool_fenced(pool),
                                .blocks_total = sp_kv_pool_count(pool),
                                .load = p->load,
                                .prompt_tokens = p->prompt_tokens,
                                .generated_tokens = p->generated_tokens};
}

/* Gauges are sums over the groups, and the engine thread alone writes them. */
static void show(sp_gauge *g, int32_t now, int32_t before) {
    if (now != before) sp_gauge_set(g, sp_gauge_get(g) + now - before);
}

void sp_stepper_account(sp_stepper *p) {
    sp_engine_metrics *m = p->config.metrics;
    sp_stepper_figures f = sp_stepper_get_figures(p);
    show(&m->running, f.running, p->shown.running);
    show(&m->waiting, f.waiting, p->shown.waiting);
    show(&m->blocks_used, f.blocks_used, p->shown.blocks_used);
    show(&m->blocks_total, f.blocks_total, p->shown.blocks_total);
    p->shown = f;
    sp_sched_stats now = sp_sched_get_stats(p->sched);
    sp_counter_add(&m->preemptions, now.preemptions - p->told.preemptions);
    sp_counter_add(&m->prefix_queries, now.prefix_queries - p->told.prefix_queries);
    sp_counter_add(&m->prefix_hits, now.prefix_hits - p->told.prefix_hits);
    p->told = now;
}

bool sp_stepper_check(const sp_stepper *p) {
    if (p->sent - p->retired > (uint64_t)p->config.sched.steps_in_flight) return false;
    int32_t n = 0, live = 0;
    for (const sp_request *r = p->live; r; r = r->next) {
        int32_t here = 0;
        for (int32_t i = 0; i < r->params.n; i++) {
            if (r->seqs[i].state == SP_SEQ_DONE) continue;
            here++;
            if (!sp_seq_check(&r->seqs[i], p->config.sched.block_tokens)) return false;
        }
        if (here != r->n_live || here < 1) return false;
        live += here;
        n++;
    }
    return n == p->n_live && sp_sched_check(p->sched) &&
           live == sp_sched_running(p->sched) + sp_sched_waiting(p->sched);
}
