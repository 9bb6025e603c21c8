#define SP_LOG "stage"
#include "runtime/engine/stage.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/stage_core.h"

#include <string.h>

/* How long a running step is waited for before frames are looked at again. */
#define LOOK_NS (SP_NS_PER_MS / 2)

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
    s->slots = sp_try_alloc_array(n, sizeof(sp_stage_seq *));
    s->at = sp_try_alloc_array(n, sizeof(sp_stage_seq *));
    s->seqs = sp_try_alloc_array(n, sizeof *s->seqs);
    s->tokens = sp_try_alloc_array((size_t)o->max_batched_tokens, sizeof *s->tokens);
    s->rows = sp_try_alloc_array((size_t)o->max_step_rows, sizeof *s->rows);
    s->eos = sp_try_alloc_array((size_t)c->n_eos_ids, sizeof *s->eos);
    s->out = sp_try_alloc(SP_STAGE_OUT_BYTES);
    if (!s->slots || !s->at || !s->seqs || !s->tokens || !s->rows || !s->eos || !s->out)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for steps of %d tokens", o->max_batched_tokens);
    if (c->n_eos_ids) memcpy(s->eos, c->eos_ids, (size_t)c->n_eos_ids * sizeof *s->eos);
    s->n_eos = c->n_eos_ids;
    s->sampler = sp_sampler_create(o->n_vocab);
    if (!s->sampler) return SP_FAIL(err, SP_E_NOMEM, "no memory for a sampler");
    SP_TRY(sp_stage_ahead_open(s, err));
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

void sp_stage_destroy(sp_stage *s) {
    if (!s) return;
    for (int32_t i = 0; s->slots && i < s->offer.max_num_seqs; i++) sp_stage_seq_free(s->slots[i]);
    sp_stage_ahead_close(s);
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

/* ---- a step ---- */

static sp_status take_step(sp_stage *s, const sp_frame *f, sp_err *err) {
    sp_wire_step w;
    sp_batch b;
    const float *logits = NULL;
    bool ahead;
    SP_TRY(sp_wire_step_decode(f->payload, f->length, &w, err));
    SP_TRY(sp_stage_prepare(s, &w, &ahead, err));
    SP_TRY(sp_stage_lay_out(s, &w, &b, err));
    s->step = w.number;
    if (ahead) return sp_stage_submit(s, &w, &b, err);
    SP_TRY(s->model.forward(s->model.ctx, &b, &logits, err));
    if (s->role.samples) return sp_stage_answer(s, &w, b.n_rows, logits, err);
    sp_stage_expect_tokens(s, &w);
    return SP_OK;
}

/* ---- the loop ---- */

sp_status sp_stage_take(sp_stage *s, const sp_frame *frame, sp_err *err) {
    switch (frame->type) {
    case SP_FRAME_SEQ_ADD:
        return sp_stage_take_add(s, frame, err);
    case SP_FRAME_SEQ_DROP:
        return sp_stage_take_drop(s, frame, err);
    case SP_FRAME_STEP:
        return take_step(s, frame, err);
    default:
        if (!s->kvx) return SP_AGAIN;
        /* What reads or writes blocks finds them as the steps before have left them. */
        SP_TRY(sp_stage_settle(s, err));
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

/* Once a second, and when the last sequence has gone. */
static sp_status tell_times(sp_stage *s, sp_err *err) {
    sp_wire_times now;
    const int64_t now_ns = sp_now_ns();
    if (!s->model.times || (s->n_seqs > 0 && now_ns - s->times_ns < SP_NS_PER_S)) return SP_OK;
    s->model.times(s->model.ctx, &now);
    const sp_wire_times more = {now.busy_ns - s->times.busy_ns, now.idle_ns - s->times.idle_ns};
    if (more.busy_ns == 0 && more.idle_ns == 0) return SP_OK;
    const sp_piece piece = {&more, sizeof more};
    s->times = now;
    s->times_ns = now_ns;
    return sp_link_send(s->link, SP_FRAME_TIMES, &piece, 1, now_ns + SP_STAGE_SEND_NS, err);
}

/* No frame is there: a step that runs is looked at, for a while, and answered when it has ended. */
static sp_status look(sp_stage *s, sp_err *err) {
    if (!sp_stage_is_pending(s)) return SP_OK;
    const sp_status st = sp_stage_finish(s, sp_now_ns() + LOOK_NS, err);
    return st == SP_AGAIN ? SP_OK : st;
}

/* Takes what comes next: a frame, or the end of a step that runs. *over: the head said BYE. */
static sp_status turn(sp_stage *s, bool *over, sp_err *err) {
    sp_frame f;
    sp_status st = sp_link_recv(s->link, &f, sp_stage_is_pending(s) ? 0 : SP_NEVER, err);
    if (st == SP_AGAIN) {
        if (s->kvx) SP_TRY(sp_stage_kv_tell(s->kvx, s->link, err));
        SP_TRY(look(s, err));
        return tell_times(s, err);
    }
    SP_TRY(st);
    if (f.type == SP_FRAME_BYE) {
        *over = true;
        return SP_OK;
    }
    st = sp_stage_take(s, &f, err);
    if (st == SP_AGAIN)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame of type %d to a rank", (int)f.type);
    SP_TRY(st);
    return tell_times(s, err);
}

sp_status sp_stage_run(sp_stage *s, sp_err *err) {
    sp_err own = {0};
    bool over = false;
    if (!err) err = &own;
    sp_piece ready = {&s->offer, sizeof s->offer};
    SP_TRY(sp_link_send(s->link, SP_FRAME_READY, &ready, 1, sp_now_ns() + SP_STAGE_SEND_NS, err));
    while (!over) {
        const sp_status st = turn(s, &over, err);
        if (st == SP_OK) continue;
        if (st != SP_E_CLOSED) tell_fault(s, st, err);
        return st;
    }
    return SP_OK;
}

int32_t sp_stage_seq_count(const sp_stage *s) {
    return s->n_seqs;
}

bool sp_stage_check(const sp_stage *s) {
    const sp_stage_feed *f = &s->feed;
    /* Tokens that only the device knows: one of each step that runs. */
    const int32_t unknown = (int32_t)(s->ahead.next - s->ahead.first);
    int32_t n = 0;
    if (s->ahead.next - s->ahead.first > SP_STAGE_AHEAD) return false;
    if (f->next - f->first > SP_STAGE_STEPS_MAX || f->token_next - f->token > f->cap) return false;
    for (int32_t i = 0; i < s->offer.max_num_seqs; i++) {
        const sp_stage_seq *q = s->slots[i];
        if (!q) continue;
        n++;
        if (q->n_known > q->wire.tokens_max || q->n_done > q->n_known) return false;
        if (q->complete &&
            (q->n_here > q->n_known || (s->role.samples && q->n_here + unknown < q->n_known)))
            return false;
        if (q->n_blocks < 0 || q->n_blocks > q->cap_blocks) return false;
        if ((int64_t)q->n_blocks * s->offer.block_tokens < q->n_done) return false;
    }
    return n == s->n_seqs;
}
