/* Covers runtime/engine/stage_ahead.c: a rank that submits steps before it knows all their tokens says,
 * frame by frame, what a rank says that waits for each; and what it waits for all the same. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "tests/fake_ahead.h"
#include "tests/fake_group.h"
#include "tests/fake_rank.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    VOCAB = 61,
    B = 8,
    BLOCKS = 64,
    SLOTS = 4,
    MAX_LEN = 96
};
static const int32_t EOS[] = {5, 9};

typedef struct side {
    sp_link *head, *rank;
    sp_null_model *null;
    sp_stage *stage;
} side;

/* A rank of the same stage that does not sample: what its device is asked for. */
typedef struct other {
    uint64_t digest;
    int n_pending, n_waits;
} other;

/* The same frames to a rank that waits, to one that does not, and to another one of the latter's stage. */
typedef struct twins {
    side wait, ahead, beside;
    sp_fake_ahead fake;
    sp_fake_hub *hub;
    other other;
    uint64_t step;
    sp_stage_kvx kvx;
    int pending_at_seal; /* steps that were not finished when blocks were sealed; -1: none were */
} twins;

static sp_wire_ready offer(void) {
    sp_wire_ready o = sp_fake_offer(VOCAB, BLOCKS, B);
    o.max_model_len = MAX_LEN;
    o.max_num_seqs = SLOTS;
    o.max_batched_tokens = 64;
    o.max_step_rows = 64;
    return o;
}

static sp_status seal(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    twins *t = ctx;
    (void)blocks, (void)n, (void)err;
    t->pending_at_seal = t->fake.n_pending;
    return SP_OK;
}

static sp_status other_forward(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    other *o = ctx;
    (void)err;
    CU_ASSERT_EQUAL(o->n_pending, 0);
    o->digest = sp_fake_ahead_digest(o->digest, false, b, 0);
    *logits = NULL;
    return SP_OK;
}
static sp_status other_submit(void *ctx, const sp_batch *b, const sp_draw_args *d, sp_err *err) {
    other *o = ctx;
    (void)err;
    CU_ASSERT_FATAL(o->n_pending < SP_STAGE_AHEAD);
    o->digest = sp_fake_ahead_digest(o->digest, true, b, d->n);
    o->n_pending++;
    return SP_OK;
}
static sp_status other_finish(void *ctx, int64_t deadline_ns, const sp_drawn **drawn, sp_err *err) {
    other *o = ctx;
    (void)err;
    CU_ASSERT_FATAL(o->n_pending > 0);
    if (o->n_waits > 0 && deadline_ns != INT64_MAX) {
        o->n_waits--;
        return SP_AGAIN;
    }
    o->n_pending--;
    *drawn = NULL;
    return SP_OK;
}

static void side_init(side *x, twins *t) {
    const sp_wire_ready o = offer();
    sp_err err = {0};
    int fd = -1;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&x->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&x->rank, fd, 1, &err), SP_OK);
    close(fd);
    const sp_null_model_config nc = {VOCAB, BLOCKS, B, o.max_step_rows, 0};
    CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&x->null, &nc, &err), SP_OK);
    sp_stage_model m = sp_null_model_callbacks(x->null);
    sp_stage_role role = {.embeds = true, .samples = x != &t->beside, .steps_in_flight = 2};
    if (x == &t->ahead) {
        sp_fake_ahead_init(&t->fake, &m, &o);
        m = sp_fake_ahead_callbacks(&t->fake);
        role.feedback = sp_fake_hub_member(t->hub, 0);
    } else if (x == &t->beside) {
        m = (sp_stage_model){.forward = other_forward,
                             .submit = other_submit,
                             .finish = other_finish,
                             .ctx = &t->other};
        role.feedback = sp_fake_hub_member(t->hub, 1);
    }
    const sp_stage_config sc = {
        .offer = o, .eos_ids = EOS, .n_eos_ids = SP_LEN(EOS), .role = role, .kvx = &t->kvx};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&x->stage, &sc, x->rank, &m, &err), SP_OK);
}

static void twins_init(twins *t) {
    *t = (twins){.kvx = {.seal = seal, .ctx = t}, .pending_at_seal = -1};
    t->hub = sp_fake_hub_open(2, 3);
    side_init(&t->wait, t);
    side_init(&t->ahead, t);
    side_init(&t->beside, t);
}

static void side_fini(side *x) {
    CU_ASSERT(sp_stage_check(x->stage));
    sp_stage_destroy(x->stage);
    sp_null_model_destroy(x->null);
    sp_link_close(x->head);
    sp_link_close(x->rank);
}

static void twins_fini(twins *t) {
    side_fini(&t->wait);
    side_fini(&t->ahead);
    side_fini(&t->beside);
    sp_fake_ahead_fini(&t->fake);
    sp_fake_hub_close(t->hub);
}

static _Alignas(8) unsigned char payload[65536];

/* Both must take it, or refuse it alike. */
static sp_status give(twins *t, sp_frame_type type, const sp_piece *pieces, int n) {
    sp_err err = {0};
    uint32_t len = 0;
    for (int i = 0; i < n; i++) {
        if (pieces[i].len) memcpy(payload + len, pieces[i].ptr, pieces[i].len);
        len += pieces[i].len;
    }
    const sp_frame f = {.type = type, .payload = payload, .length = len};
    const sp_status st = sp_stage_take(t->wait.stage, &f, &err);
    CU_ASSERT_EQUAL(sp_stage_take(t->ahead.stage, &f, &err), st);
    CU_ASSERT_EQUAL(sp_stage_take(t->beside.stage, &f, &err), st);
    CU_ASSERT(sp_stage_check(t->ahead.stage));
    CU_ASSERT(sp_stage_check(t->beside.stage));
    /* The same steps in the same way, whatever either has heard of by now. */
    CU_ASSERT_EQUAL(t->other.digest, t->fake.digest);
    return st;
}

static void must_give(twins *t, sp_frame_type type, const sp_piece *pieces, int n) {
    CU_ASSERT_EQUAL_FATAL(give(t, type, pieces, n), SP_OK);
}

static void add_part(twins *t, uint32_t slot, uint32_t gen, sp_wire_part part, const void *data,
                     int32_t n) {
    const sp_wire_add_head h = {
        .slot = slot, .generation = gen, .part = (uint16_t)part, .count = (uint32_t)n};
    const sp_piece pieces[] = {{&h, sizeof h}, {data, (uint32_t)n * sp_wire_part_item(part)}};
    if (n) must_give(t, SP_FRAME_SEQ_ADD, pieces, 2);
}

static void add(twins *t, uint32_t slot, uint32_t gen, const sp_gen_params *g,
                const int32_t *prompt, int32_t n_prompt) {
    sp_wire_params w = sp_wire_params_of(g, 0);
    w.n_prompt = n_prompt;
    w.tokens_max = MAX_LEN;
    add_part(t, slot, gen, SP_PART_PARAMS, &w, 1);
    add_part(t, slot, gen, SP_PART_PROMPT, prompt, n_prompt);
    add_part(t, slot, gen, SP_PART_STOP_IDS, g->stop_ids, g->n_stop_ids);
    add_part(t, slot, gen, SP_PART_LOGIT_BIAS, g->logit_bias, g->n_logit_bias);
    add_part(t, slot, gen, SP_PART_ALLOWED, g->allowed_ids, g->allowed_ids ? g->n_allowed_ids : 0);
    add_part(t, slot, gen, SP_PART_BAD_WORDS, g->bad_words, g->n_bad_words_ints);
}

static void drop(twins *t, uint32_t slot, uint32_t gen) {
    const sp_wire_drop_head h = {.count = 1};
    const sp_wire_seq id = {slot, gen};
    const sp_piece pieces[] = {{&h, sizeof h}, {&id, sizeof id}};
    must_give(t, SP_FRAME_SEQ_DROP, pieces, 2);
}

static void step(twins *t, const sp_wire_entry *entries, int32_t n, const sp_wire_delta *deltas,
                 int32_t n_deltas, const int32_t *blocks, int32_t n_blocks) {
    sp_wire_step st = {.number = ++t->step,
                       .n_entries = n,
                       .n_deltas = n_deltas,
                       .n_blocks = n_blocks,
                       .entries = entries,
                       .deltas = deltas,
                       .blocks = blocks};
    for (int32_t i = 0; i < n; i++) st.n_tokens += entries[i].n;
    sp_wire_step_head head;
    sp_piece pieces[4];
    must_give(t, SP_FRAME_STEP, pieces, sp_wire_step_pieces(&st, &head, pieces));
}

/* All blocks that a sequence may ever need: slot s has s * MAX_LEN / B and up. */
static void step_one(twins *t, sp_wire_entry e) {
    const sp_wire_delta d = {.count = MAX_LEN / B};
    int32_t blocks[MAX_LEN / B];
    for (int32_t i = 0; i < MAX_LEN / B; i++) blocks[i] = (int32_t)e.slot * (MAX_LEN / B) + i;
    const bool fresh = e.start == 0;
    step(t, &e, 1, &d, fresh, blocks, fresh ? MAX_LEN / B : 0);
}

static void same_frame(const sp_frame *a, const sp_frame *b) {
    CU_ASSERT_EQUAL_FATAL(a->type, b->type);
    CU_ASSERT_EQUAL_FATAL(a->length, b->length);
    CU_ASSERT_EQUAL_FATAL(memcmp(a->payload, b->payload, a->length), 0);
}

/* What both have said, once nothing is pending; returns how many frames. */
static int compare(twins *t) {
    sp_err err = {0};
    int n = 0;
    sp_frame said;
    CU_ASSERT_EQUAL_FATAL(sp_stage_settle(t->ahead.stage, &err), SP_OK);
    while (sp_link_recv(t->beside.head, &said, 0, &err) == SP_OK)
        CU_ASSERT(said.type != SP_FRAME_TOKENS && said.type != SP_FRAME_ROW);
    for (;; n++) {
        sp_frame a, b;
        const sp_status st = sp_link_recv(t->wait.head, &a, 0, &err);
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(t->ahead.head, &b, 0, &err), st);
        if (st != SP_OK) return n;
        same_frame(&a, &b);
    }
}

/* ---- everything at once ---- */

static uint64_t rng_state;
static int32_t rnd(int32_t n) {
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int32_t)((rng_state >> 33) % (uint64_t)n);
}

static sp_gen_params random_params(void) {
    static const int32_t stops[] = {11, 12, 60}, allowed[] = {3, 7, 8, 20, 21},
                         words[] = {1, 7, 2, 8, 9, 3, 20, 21, 22}, one[] = {1, 20};
    static const sp_logit_bias bias[] = {{3, 2.5f}, {7, -100.0f}, {20, 1.0f}, {3, 0.25f}};
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.max_tokens = MAX_LEN / 2;
    g.temperature = (float)rnd(3) * 0.6f;
    g.top_k = rnd(2) ? 0 : 5;
    g.top_p = rnd(2) ? 1.0f : 0.8f;
    g.min_p = rnd(3) ? 0 : 0.05f;
    g.repetition_penalty = rnd(5) ? 1.0f : 1.3f;
    g.presence_penalty = rnd(5) ? 0 : 0.5f;
    g.frequency_penalty = rnd(5) ? 0 : -0.5f;
    g.seed = (uint64_t)rnd(1000);
    g.min_tokens = rnd(3) ? 0 : rnd(20);
    g.n_logprobs = rnd(3) ? -1 : rnd(SP_LOGPROBS_MAX + 1);
    if (rnd(4) == 0) g.n_prompt_logprobs = rnd(3);
    if (rnd(3) == 0) g.stop_ids = stops, g.n_stop_ids = 3;
    if (rnd(3) == 0) g.logit_bias = bias, g.n_logit_bias = rnd(2) ? 4 : 3;
    if (rnd(4) == 0) g.allowed_ids = allowed, g.n_allowed_ids = rnd(6);
    if (rnd(4) == 0) g.bad_words = words, g.n_bad_words_ints = 9;
    if (rnd(6) == 0) g.bad_words = one, g.n_bad_words_ints = 2;
    return g;
}

typedef struct planned { /* a sequence as a head knows it: how long, never which tokens */
    bool live;
    uint32_t gen;
    int32_t known, done, n_prompt;
    bool logprobs, rows;
} planned;

static void plan_seq(twins *t, planned *q, uint32_t slot) {
    int32_t prompt[40];
    const sp_gen_params g = random_params();
    *q = (planned){.live = true,
                   .gen = q->gen + 1,
                   .known = 1 + rnd(40),
                   .logprobs = g.n_prompt_logprobs >= 0,
                   .rows = rnd(10) == 0};
    q->n_prompt = q->known;
    for (int32_t i = 0; i < q->known; i++) prompt[i] = rnd(VOCAB);
    add(t, slot, q->gen, &g, prompt, q->known);
}

static void plan_step(twins *t, planned *seqs) {
    sp_wire_entry e[SLOTS];
    sp_wire_delta d[SLOTS];
    int32_t blocks[SLOTS * MAX_LEN / B], n = 0, n_deltas = 0, n_blocks = 0, left = 60;
    for (uint32_t s = 0; s < SLOTS; s++) {
        planned *q = &seqs[s];
        int32_t todo = q->known - q->done;
        if (!q->live || rnd(5) == 0 || left == 0 || q->known >= MAX_LEN / 2) continue;
        if (todo > left) todo = left;
        if (todo > 1 && rnd(3) == 0) todo--;
        const bool sample = todo == q->known - q->done;
        const bool told = q->logprobs && q->done < q->n_prompt;
        const uint32_t flags = (sample ? SP_ENTRY_SAMPLE : 0u) |
                               (told ? SP_ENTRY_PROMPT_LOGPROBS : 0u) |
                               (q->rows ? SP_ENTRY_ROWS : 0u);
        if (q->done == 0) {
            d[n_deltas++] = (sp_wire_delta){.entry = (uint32_t)n, .count = MAX_LEN / B};
            for (int32_t i = 0; i < MAX_LEN / B; i++)
                blocks[n_blocks++] = (int32_t)s * (MAX_LEN / B) + i;
        }
        e[n++] = (sp_wire_entry){s, q->gen, q->done, todo, flags, 0};
        q->done += todo;
        left -= todo;
        q->known += sample;
    }
    t->fake.n_waits = rnd(3);
    t->other.n_waits = rnd(3);
    if (n) step(t, e, n, d, n_deltas, blocks, n_blocks);
}

static void what_it_says_is_what_a_rank_says_that_waits(void) {
    int deep = 0, waited = 0;
    for (int seed = 0; seed < 60; seed++) {
        twins t;
        planned seqs[SLOTS] = {0};
        rng_state = (uint64_t)seed * 7919 + 1;
        twins_init(&t);
        for (int i = 0; i < 60; i++) {
            const uint32_t slot = (uint32_t)rnd(SLOTS);
            planned *q = &seqs[slot];
            if (!q->live)
                plan_seq(&t, q, slot);
            else if (rnd(12) == 0) {
                drop(&t, slot, q->gen); /* of a step that has not ended, as like as not */
                q->live = false;
            }
            plan_step(&t, seqs);
            if (rnd(10) == 0) (void)compare(&t);
        }
        CU_ASSERT(compare(&t) >= 0);
        deep += t.fake.n_deep;
        waited += t.fake.n_forward;
        twins_fini(&t);
    }
    CU_ASSERT(deep > 300);
    CU_ASSERT(waited > 300);
}

/* ---- what waits ---- */

static const int32_t PROMPT[] = {4, 8, 15, 16, 23, 42};

static sp_gen_params greedy(void) {
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.temperature = 0;
    g.max_tokens = 60;
    return g;
}

#define SAMPLE(slot, gen, start, n) ((sp_wire_entry){slot, gen, start, n, SP_ENTRY_SAMPLE, 0})

static void a_plain_step_waits_for_nothing_and_the_third_for_the_first(void) {
    twins t;
    const sp_gen_params g = greedy();
    twins_init(&t);
    add(&t, 1, 1, &g, PROMPT, 6);
    step_one(&t, SAMPLE(1, 1, 0, 6));
    CU_ASSERT_EQUAL(t.fake.n_pending, 1);
    step_one(&t, SAMPLE(1, 1, 6, 1));
    CU_ASSERT_EQUAL(t.fake.n_pending, 2);
    CU_ASSERT_EQUAL(t.fake.n_finished, 0);
    step_one(&t, SAMPLE(1, 1, 7, 1));
    CU_ASSERT_EQUAL(t.fake.n_pending, 2);
    CU_ASSERT_EQUAL(t.fake.n_finished, 1);
    CU_ASSERT_EQUAL(compare(&t), 3);
    CU_ASSERT_EQUAL(t.fake.n_forward, 0);
    twins_fini(&t);
}

static void a_step_whose_draws_look_back_waits_for_the_tokens_they_look_at(void) {
    static const int32_t run[] = {2, 8, 9}, one[] = {1, 9};
    static const struct {
        float repetition, presence, frequency;
        const int32_t *words;
        int32_t n_words;
        bool waits;
    } rows[] = {{1.2f, 0, 0, NULL, 0, true}, {1, 0.5f, 0, NULL, 0, true},
                {1, 0, 0.5f, NULL, 0, true}, {1, 0, 0, run, 3, true},
                {1, 0, 0, one, 2, false},    {1, 0, 0, NULL, 0, false}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        twins t;
        sp_gen_params g = greedy();
        g.repetition_penalty = rows[i].repetition;
        g.presence_penalty = rows[i].presence;
        g.frequency_penalty = rows[i].frequency;
        g.bad_words = rows[i].words;
        g.n_bad_words_ints = rows[i].n_words;
        twins_init(&t);
        add(&t, 0, 1, &g, PROMPT, 6);
        step_one(&t, SAMPLE(0, 1, 0, 6)); /* all it looks at is known */
        CU_ASSERT_EQUAL(t.fake.n_pending, 1);
        step_one(&t, SAMPLE(0, 1, 6, 1));
        CU_ASSERT_EQUAL(t.fake.n_finished, rows[i].waits ? 1 : 0);
        CU_ASSERT_EQUAL(t.fake.n_forward, 0); /* and is drawn by the device all the same */
        CU_ASSERT_EQUAL(compare(&t), 2);
        twins_fini(&t);
    }
}

static void a_step_whose_logits_are_wanted_runs_alone_in_its_turn(void) {
    static const uint32_t flags[] = {SP_ENTRY_ROWS, SP_ENTRY_PROMPT_LOGPROBS};
    for (size_t i = 0; i < SP_LEN(flags); i++) {
        twins t;
        sp_gen_params g = greedy();
        twins_init(&t);
        add(&t, 0, 1, &g, PROMPT, 6);
        g.n_prompt_logprobs = 2;
        add(&t, 1, 1, &g, PROMPT, 6);
        step_one(&t, SAMPLE(0, 1, 0, 6));
        step_one(&t, (sp_wire_entry){1, 1, 0, 6, SP_ENTRY_SAMPLE | flags[i], 0});
        CU_ASSERT_EQUAL(t.fake.n_forward, 1);
        CU_ASSERT_EQUAL(t.fake.n_pending, 0);
        step_one(&t, SAMPLE(1, 1, 6, 1));
        CU_ASSERT_EQUAL(t.fake.n_pending, 1);
        CU_ASSERT(compare(&t) >= 3);
        twins_fini(&t);
    }
}

static void blocks_are_sealed_when_nothing_is_pending(void) {
    twins t;
    const sp_gen_params g = greedy();
    twins_init(&t);
    add(&t, 0, 1, &g, PROMPT, 6);
    step_one(&t, SAMPLE(0, 1, 0, 6));
    CU_ASSERT_EQUAL(t.fake.n_pending, 1);
    const sp_wire_kv_head h = {.ticket = 3, .n = 1};
    const sp_wire_kv_block block = {.name = 1, .block = 0, .generation = 1};
    const sp_piece pieces[] = {{&h, sizeof h}, {&block, sizeof block}};
    must_give(&t, SP_FRAME_KV_SEAL, pieces, 2);
    CU_ASSERT_EQUAL(t.pending_at_seal, 0);
    CU_ASSERT_EQUAL(compare(&t), 2);
    twins_fini(&t);
}

static void a_sequence_may_go_and_its_slot_be_taken_while_its_step_runs(void) {
    twins t;
    const sp_gen_params g = greedy();
    twins_init(&t);
    add(&t, 2, 1, &g, PROMPT, 6);
    step_one(&t, SAMPLE(2, 1, 0, 6));
    drop(&t, 2, 1);
    CU_ASSERT_EQUAL(t.fake.n_rests, 1); /* nobody is left */
    add(&t, 2, 2, &g, PROMPT, 3);
    step_one(&t, SAMPLE(2, 2, 0, 3));
    CU_ASSERT_EQUAL(t.fake.n_pending, 2);
    step_one(&t, SAMPLE(2, 2, 3, 1));
    CU_ASSERT_EQUAL(compare(&t), 3);
    drop(&t, 2, 2);
    CU_ASSERT_EQUAL(t.fake.n_rests, 2);
    twins_fini(&t);
}

static void a_request_that_leaves_no_token_is_told_as_by_the_sampler(void) {
    static const int32_t allowed[] = {7}, words[] = {1, 7};
    twins t;
    sp_gen_params g = greedy();
    g.allowed_ids = allowed;
    g.n_allowed_ids = 1;
    g.bad_words = words;
    g.n_bad_words_ints = 2;
    twins_init(&t);
    add(&t, 0, 1, &g, PROMPT, 6);
    step_one(&t, SAMPLE(0, 1, 0, 6));
    step_one(&t, SAMPLE(0, 1, 6, 1));
    CU_ASSERT_EQUAL(compare(&t), 2);
    twins_fini(&t);
}

static void a_step_ahead_takes_no_memory(void) {
    twins t;
    sp_gen_params g = greedy();
    twins_init(&t);
    add(&t, 0, 1, &g, PROMPT, 6);
    step_one(&t, SAMPLE(0, 1, 0, 6));
    CU_ASSERT_EQUAL(compare(&t), 1);
    int64_t extra = 0;
    for (int32_t p = 6; p < 40; p++) {
        /* The fake device copies a step and its parts, nine pieces; the stage takes none. */
        const uint64_t before = sp_mem_count();
        step_one(&t, SAMPLE(0, 1, p, 1));
        extra += (int64_t)(sp_mem_count() - before);
        CU_ASSERT_EQUAL(compare(&t), 1);
    }
    CU_ASSERT_EQUAL(extra, 34 * 9);
    twins_fini(&t);
}

static void short_memory_for_draws_is_said(void) {
    sp_err err = {0};
    twins t;
    twins_init(&t);
    const sp_stage_model m = sp_fake_ahead_callbacks(&t.fake);
    const sp_stage_config sc = {.offer = offer(), .role = {.embeds = true, .samples = true}};
    for (int64_t nth = 1;; nth++) {
        sp_stage *s = NULL;
        sp_mem_fail_at(nth);
        const sp_status st = sp_stage_create(&s, &sc, t.ahead.rank, &m, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) {
            sp_stage_destroy(s);
            CU_ASSERT(nth > 10);
            break;
        }
        CU_ASSERT_EQUAL_FATAL(st, SP_E_NOMEM);
    }
    twins_fini(&t);
}

static void a_rank_that_does_not_embed_does_not_run_ahead(void) {
    sp_err err = {0};
    twins t;
    sp_stage *s = NULL;
    twins_init(&t);
    const sp_stage_model m = sp_fake_ahead_callbacks(&t.fake);
    const sp_stage_config sc = {.offer = offer(), .role = {.samples = true}};
    CU_ASSERT_EQUAL(sp_stage_create(&s, &sc, t.ahead.rank, &m, &err), SP_E_INVALID);
    twins_fini(&t);
}

static void a_rank_beside_the_sampler_is_fed_only_what_the_host_drew(void) {
    twins t;
    sp_gen_params g = greedy();
    twins_init(&t);
    g.n_prompt_logprobs = 2;
    add(&t, 1, 1, &g, PROMPT, 6);
    /* Its logits are wanted: drawn by the host, and the token is fed. */
    step_one(&t, (sp_wire_entry){1, 1, 0, 6, SP_ENTRY_SAMPLE | SP_ENTRY_PROMPT_LOGPROBS, 0});
    for (int32_t p = 6; p < 12; p++) step_one(&t, SAMPLE(1, 1, p, 1));
    CU_ASSERT_EQUAL(t.fake.n_submitted, 6);
    CU_ASSERT_EQUAL(t.fake.n_forward, 1);
    CU_ASSERT_EQUAL(sp_fake_hub_most_waiting(t.hub), 1);
    CU_ASSERT_EQUAL(t.other.n_pending, 2);
    CU_ASSERT_EQUAL(compare(&t), 7);
    twins_fini(&t);
}

/* ---- the loop ---- */

static void send(sp_fake_rank *r, sp_frame_type type, const sp_piece *pieces, int n) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(
        sp_link_send(r->head, type, pieces, n, sp_now_ns() + 10 * SP_NS_PER_S, &err), SP_OK);
}

static void send_seq(sp_fake_rank *r) {
    sp_gen_params g = greedy();
    sp_wire_params w = sp_wire_params_of(&g, 0);
    w.n_prompt = 6;
    w.tokens_max = MAX_LEN;
    sp_wire_add_head h = {.generation = 1, .part = SP_PART_PARAMS, .count = 1};
    const sp_piece params[] = {{&h, sizeof h}, {&w, sizeof w}};
    send(r, SP_FRAME_SEQ_ADD, params, 2);
    h.part = SP_PART_PROMPT;
    h.count = 6;
    const sp_piece prompt[] = {{&h, sizeof h}, {PROMPT, sizeof PROMPT}};
    send(r, SP_FRAME_SEQ_ADD, prompt, 2);
}

static void send_step(sp_fake_rank *r, uint64_t number, int32_t start, int32_t n) {
    static const int32_t blocks[] = {1, 2, 3};
    const sp_wire_entry e = SAMPLE(0, 1, start, n);
    const sp_wire_delta d = {.count = 3};
    const bool fresh = start == 0;
    const sp_wire_step st = {.number = number,
                             .n_entries = 1,
                             .n_deltas = fresh,
                             .n_blocks = fresh ? 3 : 0,
                             .n_tokens = n,
                             .entries = &e,
                             .deltas = &d,
                             .blocks = blocks};
    sp_wire_step_head head;
    sp_piece pieces[4];
    const int n_pieces = sp_wire_step_pieces(&st, &head, pieces);
    send(r, SP_FRAME_STEP, pieces, n_pieces);
}

static sp_frame receive(sp_fake_rank *r) {
    sp_err err = {0};
    sp_frame f = {0};
    int from;
    CU_ASSERT_EQUAL_FATAL(sp_fan_recv(r->fan, &f, &from, sp_now_ns() + 10 * SP_NS_PER_S, &err),
                          SP_OK);
    return f;
}

static void the_loop_answers_a_step_though_no_frame_follows(void) {
    sp_fake_rank r;
    const sp_wire_ready o = offer();
    sp_wire_tokens tokens;
    sp_err err = {0};
    sp_fake_rank_start_ahead(&r, &o, NULL, 0, 0, -1);
    CU_ASSERT_EQUAL_FATAL(receive(&r).type, SP_FRAME_READY);
    send_seq(&r);
    send_step(&r, 1, 0, 6);
    send_step(&r, 2, 6, 1);
    for (uint64_t i = 1; i <= 3; i++) {
        if (i == 3) send_step(&r, 3, 7, 1);
        const sp_frame f = receive(&r);
        CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_TOKENS);
        CU_ASSERT_EQUAL_FATAL(sp_wire_tokens_decode(f.payload, f.length, &tokens, &err), SP_OK);
        CU_ASSERT(tokens.number == i && tokens.n_records == 1);
    }
    send(&r, SP_FRAME_BYE, NULL, 0);
    sp_fake_rank_join(&r);
    CU_ASSERT_EQUAL(r.ended, SP_OK);
    sp_fake_rank_fini(&r);
}

static void what_the_device_did_is_told_when_the_last_sequence_has_gone(void) {
    sp_fake_rank r;
    const sp_wire_ready o = offer();
    sp_wire_times times;
    sp_err err = {0};
    sp_fake_rank_start_ahead(&r, &o, NULL, 0, 0, -1);
    r.ahead.keeps_time = true;
    CU_ASSERT_EQUAL_FATAL(receive(&r).type, SP_FRAME_READY);
    send_seq(&r);
    send_step(&r, 1, 0, 6);
    send_step(&r, 2, 6, 1);
    uint64_t busy = 0, idle = 0;
    for (int answers = 0; answers < 2 || busy < 2000000;) {
        const sp_frame f = receive(&r);
        if (f.type == SP_FRAME_TOKENS) {
            if (++answers < 2) continue;
            const sp_wire_drop_head h = {.count = 1};
            const sp_wire_seq id = {0, 1};
            const sp_piece pieces[] = {{&h, sizeof h}, {&id, sizeof id}};
            send(&r, SP_FRAME_SEQ_DROP, pieces, 2);
            continue;
        }
        CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_TIMES);
        CU_ASSERT_EQUAL_FATAL(sp_wire_times_decode(f.payload, f.length, &times, &err), SP_OK);
        busy += times.busy_ns;
        idle += times.idle_ns;
    }
    CU_ASSERT(busy == 2000000 && idle == 500000);
    send(&r, SP_FRAME_BYE, NULL, 0);
    sp_fake_rank_join(&r);
    CU_ASSERT_EQUAL(r.ended, SP_OK);
    sp_fake_rank_fini(&r);
}

static void a_step_that_fails_is_one_fault_and_the_end(void) {
    sp_fake_rank r;
    const sp_wire_ready o = offer();
    sp_err err = {0};
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    int from;
    sp_frame f;
    sp_fake_rank_start_ahead(&r, &o, NULL, 0, 0, -1);
    r.ahead.fail_at = 2;
    CU_ASSERT_EQUAL_FATAL(receive(&r).type, SP_FRAME_READY);
    send_seq(&r);
    send_step(&r, 1, 0, 6);
    send_step(&r, 2, 6, 1);
    f = receive(&r);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_TOKENS);
    f = receive(&r);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_FAULT);
    CU_ASSERT_EQUAL_FATAL(sp_wire_fault_decode(f.payload, f.length, &reason, text, &err), SP_OK);
    CU_ASSERT_EQUAL(reason, SP_FAULT_DEVICE);
    sp_fake_rank_join(&r);
    CU_ASSERT_EQUAL(r.ended, SP_E_DEVICE);
    CU_ASSERT_EQUAL(sp_fan_recv(r.fan, &f, &from, sp_now_ns() + 10 * SP_NS_PER_S, &err),
                    SP_E_CLOSED);
    sp_fake_rank_fini(&r);
}

SP_TEST_MAIN("runtime/engine/stage_ahead", SP_TEST(what_it_says_is_what_a_rank_says_that_waits),
             SP_TEST(a_plain_step_waits_for_nothing_and_the_third_for_the_first),
             SP_TEST(a_step_whose_draws_look_back_waits_for_the_tokens_they_look_at),
             SP_TEST(a_step_whose_logits_are_wanted_runs_alone_in_its_turn),
             SP_TEST(blocks_are_sealed_when_nothing_is_pending),
             SP_TEST(a_sequence_may_go_and_its_slot_be_taken_while_its_step_runs),
             SP_TEST(a_request_that_leaves_no_token_is_told_as_by_the_sampler),
             SP_TEST(a_step_ahead_takes_no_memory), SP_TEST(short_memory_for_draws_is_said),
             SP_TEST(a_rank_that_does_not_embed_does_not_run_ahead),
             SP_TEST(a_rank_beside_the_sampler_is_fed_only_what_the_host_drew),
             SP_TEST(the_loop_answers_a_step_though_no_frame_follows),
             SP_TEST(what_the_device_did_is_told_when_the_last_sequence_has_gone),
             SP_TEST(a_step_that_fails_is_one_fault_and_the_end))
