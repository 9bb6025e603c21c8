/* Covers runtime/engine/sched.c without threads: a simulated rank does the steps late and in order,
 * and checks that every position it is asked to build on holds what that sequence put there. */
#include "runtime/base/mem.h"
#include "runtime/engine/sched.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

/* ---- a simulated rank ---- */

enum {
    BLOCKS_MAX = 256,
    B_MAX = 32,
    FLIGHT_MAX = 5,
    SLOTS_MAX = 8,
    LEN_MAX = 512,
    REQS = 40
};

/* What a rank keeps: what ended or was preempted on the head still runs there until dropped. */
typedef struct sim_seq {
    uint32_t generation;
    int32_t n_prompt, choice, n_known, n_blocks;
    int32_t tokens[LEN_MAX], blocks[LEN_MAX];
} sim_seq;

/* What was known of a sequence before a step was planned. */
typedef struct before {
    uint32_t generation;
    bool decodes;
    int32_t to_come; /* tokens of steps on their way */
    uint64_t last_step;
} before;

typedef struct sim {
    sp_sched *sched;
    before before[SLOTS_MAX];
    int32_t n_decoding;
    int n_forced; /* entries that were planned sooner than n_stages steps after the last */
    sp_sched_config config;
    sp_step ring[FLIGHT_MAX];
    uint64_t sent, retired;
    /* What is in each place: the token and the position, as one number; and who wrote the block. */
    int64_t cells[BLOCKS_MAX][B_MAX];
    uint64_t named[BLOCKS_MAX]; /* last step that names the block */
    sim_seq seqs[SLOTS_MAX]
                [8]; /* by slot, by generation modulo: those of steps on their way differ */
    sp_request *reqs[REQS];
    int n_tokens_told;
} sim;

static sp_sched_config small(void) {
    return (sp_sched_config){.max_num_seqs = 4,
                             .max_batched_tokens = 32,
                             .max_step_rows = 8,
                             .block_tokens = 8,
                             .n_blocks = 32,
                             .max_model_len = 128,
                             .steps_in_flight = 2,
                             .enable_prefix_cache = true,
                             .identity = "m",
                             .identity_bytes = 1};
}

static void sim_init(sim *s, sp_sched_config c) {
    sp_err err = {0};
    memset(s, 0, sizeof *s);
    s->config = c;
    CU_ASSERT_EQUAL_FATAL(sp_sched_create(&s->sched, &c, &err), SP_OK);
    for (int i = 0; i < c.steps_in_flight; i++)
        CU_ASSERT_EQUAL_FATAL(sp_step_init(&s->ring[i], s->sched, &err), SP_OK);
}

static void sim_fini(sim *s) {
    for (int i = 0; i < REQS; i++) sp_request_destroy(s->reqs[i]);
    for (int i = 0; i < s->config.steps_in_flight; i++) sp_step_fini(&s->ring[i]);
    sp_sched_destroy(s->sched);
}

static sp_request *sim_add(sim *s, int at, int32_t n_prompt, int32_t max_tokens, int32_t n,
                           int32_t seed, int32_t priority) {
    sp_err err = {0};
    int32_t prompt[LEN_MAX];
    for (int32_t i = 0; i < n_prompt; i++) prompt[i] = seed * 100 + i % 50;
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.n = n;
    g.max_tokens = max_tokens;
    sp_engine_request req = {
        .prompt = prompt, .n_prompt = n_prompt, .params = &g, .priority = priority};
    sp_request_destroy(s->reqs[at]);
    CU_ASSERT_EQUAL_FATAL(
        sp_request_create(&s->reqs[at], &req, max_tokens, s->config.block_tokens, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_sched_add(s->sched, s->reqs[at], &err), SP_OK);
    return s->reqs[at];
}

static sp_step *step_at(sim *s, uint64_t number) {
    return &s->ring[number % (uint64_t)s->config.steps_in_flight];
}

/* Nobody takes a block that a step on its way still names, unless it is shared with its content. */
static void check_fences(sim *s, const sp_step *st) {
    for (int32_t d = 0, at = 0; d < st->wire.n_deltas; at += st->deltas[d++].count) {
        const sp_wire_entry *e = &st->entries[st->deltas[d].entry];
        for (int32_t i = 0; i < st->deltas[d].count; i++) {
            sp_block b = st->blocks[at + i];
            int32_t first = (st->deltas[d].first + i) * s->config.block_tokens;
            if (first < e->start) continue; /* a shared block of a cached prefix */
            CU_ASSERT_FATAL(s->named[b] <= s->retired);
        }
    }
    for (int32_t i = 0; i < st->wire.n_entries; i++) {
        const sp_seq *q = sp_sched_find(s->sched, st->entries[i].slot, st->entries[i].generation);
        CU_ASSERT_PTR_NOT_NULL_FATAL(q);
        for (int32_t k = 0; k < q->blocks.n; k++) s->named[q->blocks.ids[k]] = st->wire.number;
    }
}

/* As SEQ_ADD and the step's deltas tell it. */
static void tell_rank(sim *s, const sp_step *st) {
    for (int32_t i = 0; i < st->n_admitted; i++) {
        const sp_seq *h = st->admitted[i];
        sim_seq *q = &s->seqs[h->slot][h->generation % 8];
        *q = (sim_seq){.generation = h->generation,
                       .n_prompt = h->req->n_prompt,
                       .choice = h->choice,
                       .n_known = sp_seq_known(h)};
        memcpy(q->tokens, h->req->prompt, (size_t)q->n_prompt * sizeof q->tokens[0]);
        memcpy(q->tokens + q->n_prompt, h->output, (size_t)h->n_output * sizeof q->tokens[0]);
    }
    for (int32_t d = 0, at = 0; d < st->wire.n_deltas; at += st->deltas[d++].count) {
        const sp_wire_entry *e = &st->entries[st->deltas[d].entry];
        sim_seq *q = &s->seqs[e->slot][e->generation % 8];
        CU_ASSERT_FATAL(st->deltas[d].first == q->n_blocks);
        for (int32_t i = 0; i < st->deltas[d].count; i++)
            q->blocks[q->n_blocks++] = st->blocks[at + i];
    }
}

static void note_before(sim *s) {
    memset(s->before, 0, sizeof s->before);
    s->n_decoding = 0;
    for (int i = 0; i < REQS; i++)
        for (int32_t k = 0; s->reqs[i] && k < s->reqs[i]->params.n; k++) {
            const sp_seq *q = &s->reqs[i]->seqs[k];
            if (!sp_seq_runs(q)) continue;
            s->before[q->slot] = (before){.generation = q->generation,
                                          .decodes = q->state == SP_SEQ_DECODE,
                                          .to_come = q->n_planned - q->n_output,
                                          .last_step = q->last_step};
            s->n_decoding += q->state == SP_SEQ_DECODE;
        }
}

/* The promises of a pipeline: its share of the decodes, and nobody whose token is still drawn when
 * the step could begin, unless there is nothing else to do. */
static void check_stages(sim *s, const sp_step *st) {
    int32_t stages = s->config.n_stages, n_decodes = 0, n_forced = 0;
    for (int32_t i = 0; i < st->wire.n_entries; i++) {
        const sp_wire_entry *e = &st->entries[i];
        const before *b = &s->before[e->slot];
        if (b->generation != e->generation || !b->decodes) continue;
        n_decodes++;
        if (b->to_come == 0 || st->wire.number - b->last_step >= (uint64_t)stages) continue;
        n_forced++;
        CU_ASSERT_FATAL(b->to_come < 2);
    }
    CU_ASSERT_FATAL(n_decodes <= (s->n_decoding + stages - 1) / stages);
    CU_ASSERT_FATAL(n_forced == 0 || n_forced == st->wire.n_entries);
    s->n_forced += n_forced;
}

static bool sim_plan(sim *s) {
    int32_t n;
    if (s->sent - s->retired == (uint64_t)s->config.steps_in_flight) return false;
    for (;;) {
        (void)sp_sched_drops(s->sched, &n);
        sp_step *st = step_at(s, s->sent + 1);
        note_before(s);
        bool planned = sp_sched_plan(s->sched, s->sent + 1, 1000, st);
        CU_ASSERT_FATAL(sp_sched_check(s->sched));
        CU_ASSERT(st->wire.n_tokens <= s->config.max_batched_tokens);
        CU_ASSERT(st->n_rows <= s->config.max_step_rows);
        if (planned) {
            if (s->config.n_stages > 1) check_stages(s, st);
            check_fences(s, st);
            tell_rank(s, st);
            s->sent++;
            return true;
        }
        if (!sp_sched_has_drops(s->sched)) return false;
    }
}

static int64_t *cell(sim *s, const sim_seq *q, int32_t position) {
    int32_t B = s->config.block_tokens;
    CU_ASSERT_FATAL(position / B < q->n_blocks);
    return &s->cells[q->blocks[position / B]][position % B];
}

static int64_t content(const sim_seq *q, int32_t position) {
    return (int64_t)position << 32 | q->tokens[position];
}

static void run_entry(sim *s, const sp_wire_entry *e) {
    sim_seq *q = &s->seqs[e->slot][e->generation % 8];
    int32_t end = e->start + e->n;
    CU_ASSERT_FATAL(q->generation == e->generation && end <= q->n_known);
    for (int32_t p = e->start; p < end; p++) *cell(s, q, p) = content(q, p);
    for (int32_t p = 0; p < end; p++) CU_ASSERT_FATAL(*cell(s, q, p) == content(q, p));
    if (!(e->flags & SP_ENTRY_SAMPLE)) return;
    CU_ASSERT_FATAL(end == q->n_known);
    int32_t token = q->tokens[0] + q->choice * 7 + q->n_known;
    q->tokens[q->n_known++] = token;
    sp_seq *h = sp_sched_find(s->sched, e->slot, e->generation);
    if (!h) return; /* ended or preempted meanwhile: what it gives is dropped */
    h->output[h->n_output++] = token;
    s->n_tokens_told++;
    sp_sched_grown(s->sched, h);
    if (h->n_output == h->req->params.max_tokens) sp_sched_end(s->sched, h);
    CU_ASSERT_FATAL(sp_sched_check(s->sched));
}

/* Runs the oldest step: writes its positions, reads everything before them, draws tokens. */
static void sim_retire(sim *s) {
    const sp_step *st = step_at(s, s->retired + 1);
    for (int32_t i = 0; i < st->wire.n_entries; i++) run_entry(s, &st->entries[i]);
    sp_sched_retire(s->sched, ++s->retired);
    CU_ASSERT_FATAL(sp_sched_check(s->sched));
}

/* Until nothing is left; false: nothing moves any more. */
static bool sim_run(sim *s) {
    for (int i = 0; i < 100000; i++) {
        while (sim_plan(s)) continue;
        if (s->sent == s->retired)
            return sp_sched_running(s->sched) + sp_sched_waiting(s->sched) == 0;
        sim_retire(s);
    }
    return false;
}

static const sp_wire_entry *entry_of(const sp_step *st, const sp_seq *q) {
    for (int32_t i = 0; i < st->wire.n_entries; i++)
        if ((int32_t)st->entries[i].slot == q->slot && st->entries[i].generation == q->generation)
            return &st->entries[i];
    return NULL;
}

/* ---- the order of things ---- */

static void decodes_come_first_and_prompts_take_what_is_left(void) {
    static sim s;
    sim_init(&s, small());
    sp_seq *a = sim_add(&s, 0, 10, 50, 1, 1, 0)->seqs;
    CU_ASSERT(sim_plan(&s));
    sp_seq *b = sim_add(&s, 1, 100, 5, 1, 2, 0)->seqs;
    CU_ASSERT(sim_plan(&s));
    const sp_step *st = step_at(&s, 2);
    CU_ASSERT_EQUAL(entry_of(st, a)->n, 1);
    CU_ASSERT_EQUAL(entry_of(st, a)->start, 10); /* its token is not known yet */
    CU_ASSERT_EQUAL(entry_of(st, b)->n, 31);
    CU_ASSERT_EQUAL(entry_of(st, b)->flags, 0);
    CU_ASSERT_FALSE(sim_plan(&s)); /* two are on their way */
    CU_ASSERT(sim_run(&s));
    CU_ASSERT_EQUAL(a->n_output, 50);
    CU_ASSERT_EQUAL(b->n_output, 5);
    sim_fini(&s);
}

static void at_any_budget_neither_decodes_nor_prompts_starve(void) {
    static const int32_t budgets[] = {1, 2, 3, 5};
    for (size_t k = 0; k < SP_LEN(budgets); k++) {
        static sim s;
        sp_sched_config c = small();
        c.max_batched_tokens = budgets[k];
        c.n_blocks = 64;
        sim_init(&s, c);
        for (int i = 0; i < 3; i++) sim_add(&s, i, 4, 100, 1, i, 0);
        for (int i = 0; i < 60; i++) {
            (void)sim_plan(&s);
            if (s.sent > s.retired) sim_retire(&s);
        }
        /* Three decodes want every token; a prompt of 40 comes and must get through. */
        sp_seq *late = sim_add(&s, 3, 40, 3, 1, 9, 0)->seqs;
        int told = s.n_tokens_told, steps = 0;
        for (; late->n_output == 0 && steps < 1000; steps++) {
            (void)sim_plan(&s);
            if (s.sent > s.retired) sim_retire(&s);
        }
        CU_ASSERT(late->n_output > 0);
        CU_ASSERT(steps <= 40 * 4 / budgets[k] + 16);
        CU_ASSERT(s.n_tokens_told - told > 10 || budgets[k] > 3);
        CU_ASSERT(sim_run(&s));
        sim_fini(&s);
    }
}

static void when_the_budget_is_short_decodes_take_turns(void) {
    static sim s;
    sp_sched_config c = small();
    c.max_batched_tokens = 2;
    sim_init(&s, c);
    sp_request *r[4];
    for (int i = 0; i < 4; i++) r[i] = sim_add(&s, i, 2, 100, 1, i, 0);
    int32_t from[4];
    for (int i = 0; i < 120; i++) {
        (void)sim_plan(&s);
        if (s.sent > s.retired) sim_retire(&s);
        if (i == 39) /* all of them decode by now */
            for (int k = 0; k < 4; k++) from[k] = r[k]->seqs->n_output;
    }
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(r[i]->seqs->n_output - from[i], 80 * 2 / 4);
    CU_ASSERT(sim_run(&s));
    sim_fini(&s);
}

static void who_waits_is_admitted_by_priority_and_then_by_arrival(void) {
    static sim s;
    sp_sched_config c = small();
    c.max_num_seqs = 1;
    sim_init(&s, c);
    static const int32_t priority[] = {0, 1, 0, -1, 0};
    sp_seq *q[5];
    for (int i = 0; i < 5; i++) q[i] = sim_add(&s, i, 8, 2, 1, i, priority[i])->seqs;
    static const int want[] = {3, 0, 2, 4, 1};
    for (int i = 0; i < 5; i++) {
        while (q[want[i]]->state != SP_SEQ_DONE) {
            (void)sim_plan(&s);
            for (int k = i + 1; k < 5; k++) CU_ASSERT(q[want[k]]->n_output == 0);
            if (s.sent > s.retired) sim_retire(&s);
        }
    }
    CU_ASSERT(sim_run(&s));
    sim_fini(&s);
}

/* ---- a pipeline ---- */

static sp_sched_config piped(int32_t stages) {
    sp_sched_config c = small();
    c.max_num_seqs = c.max_step_rows = 8;
    c.n_blocks = 128;
    c.n_stages = stages;
    c.steps_in_flight = stages + 1;
    return c;
}

static void every_stage_has_its_share_of_the_decodes(void) {
    for (int32_t stages = 2; stages <= 4; stages++) {
        static sim s;
        sim_init(&s, piped(stages));
        for (int i = 0; i < 8; i++) sim_add(&s, i, 4, 100, 1, i, 0);
        for (int i = 0; i < 30; i++) { /* until all of them decode, and in turn */
            while (sim_plan(&s)) continue;
            sim_retire(&s);
        }
        s.n_forced = 0;
        uint64_t last[8] = {0};
        for (int i = 0; i < 60; i++) {
            while (sim_plan(&s)) {
                const sp_step *st = step_at(&s, s.sent);
                CU_ASSERT(st->wire.n_entries <= (8 + stages - 1) / stages);
                CU_ASSERT(st->wire.n_entries >= 8 / stages - (8 % stages > 0));
                for (int32_t k = 0; k < st->wire.n_entries; k++) {
                    uint64_t *at = &last[st->entries[k].slot];
                    CU_ASSERT(*at == 0 || st->wire.number - *at <= (uint64_t)stages + 1);
                    *at = st->wire.number;
                }
            }
            CU_ASSERT_EQUAL(s.sent - s.retired, (uint64_t)stages + 1); /* always full */
            sim_retire(&s);
        }
        CU_ASSERT_EQUAL(s.n_forced, 0); /* nobody waits for a token that is being drawn */
        CU_ASSERT(sim_run(&s));
        sim_fini(&s);
    }
}

static void a_single_stream_is_one_step_ahead_and_no_more(void) {
    for (int32_t stages = 1; stages <= 4; stages++) {
        static sim s;
        sim_init(&s, piped(stages));
        sp_seq *q = sim_add(&s, 0, 4, 40, 1, 1, 0)->seqs;
        for (int i = 0; i < 30; i++) {
            while (sim_plan(&s)) continue;
            CU_ASSERT_EQUAL(s.sent - s.retired, 2);
            CU_ASSERT_EQUAL(q->n_planned - q->n_output, 2);
            sim_retire(&s);
        }
        CU_ASSERT(sim_run(&s));
        CU_ASSERT_EQUAL(s.sent, 40);
        sim_fini(&s);
    }
}

static void pieces_of_one_prompt_follow_each_other_through_the_stages(void) {
    static sim s;
    sp_sched_config c = piped(4);
    c.max_batched_tokens = 16;
    sim_init(&s, c);
    sp_seq *q = sim_add(&s, 0, 100, 10, 1, 1, 0)->seqs;
    while (sim_plan(&s)) continue;
    CU_ASSERT_EQUAL(s.sent, 5);
    CU_ASSERT_EQUAL(q->n_sent, 80);
    CU_ASSERT(sim_run(&s));
    CU_ASSERT_EQUAL(q->n_output, 10);
    sim_fini(&s);
}

static void a_prompt_is_not_kept_out_by_the_decodes_of_a_pipeline_nor_they_by_it(void) {
    static const int32_t budgets[] = {1, 2, 5};
    for (size_t k = 0; k < SP_LEN(budgets); k++) {
        static sim s;
        sp_sched_config c = piped(3);
        c.max_batched_tokens = budgets[k];
        sim_init(&s, c);
        for (int i = 0; i < 6; i++) sim_add(&s, i, 4, 100, 1, i, 0);
        for (int i = 0; i < 100; i++) {
            while (sim_plan(&s)) continue;
            sim_retire(&s);
        }
        sp_seq *late = sim_add(&s, 7, 40, 3, 1, 9, 0)->seqs;
        int told = s.n_tokens_told, steps = 0;
        for (; late->n_output == 0 && steps < 1000; steps++) {
            while (sim_plan(&s)) continue;
            sim_retire(&s);
        }
        CU_ASSERT(steps <= 40 * 4 / budgets[k] + 20);
        CU_ASSERT(s.n_tokens_told - told >= steps / 2);
        CU_ASSERT(sim_run(&s));
        sim_fini(&s);
    }
}

/* ---- blocks ---- */

static void when_blocks_run_out_the_last_in_order_is_preempted_and_finishes_all_the_same(void) {
    static sim s;
    sp_sched_config c = small();
    c.n_blocks = 16; /* two sequences of 64 fill it; three start */
    sim_init(&s, c);
    sp_request *r[3];
    for (int i = 0; i < 3; i++) r[i] = sim_add(&s, i, 8, 100, 1, i + 1, i == 0 ? 5 : 0);
    CU_ASSERT(sim_run(&s));
    CU_ASSERT(sp_sched_get_stats(s.sched).preemptions > 0);
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(r[i]->seqs->state, SP_SEQ_DONE);
        CU_ASSERT_EQUAL(r[i]->seqs->n_output, 100);
    }
    const sp_kv_pool *pool = sp_sched_pool(s.sched);
    CU_ASSERT_EQUAL(sp_kv_pool_available(pool), 16);
    sim_fini(&s);
}

static void a_freed_block_is_taken_only_after_the_steps_that_name_it(void) {
    static sim s;
    sp_sched_config c = small();
    c.n_blocks = 16;
    sim_init(&s, c);
    sp_seq *a = sim_add(&s, 0, 100, 20, 1, 1, 0)->seqs; /* 13 of 16 blocks */
    while (a->state != SP_SEQ_DECODE) {
        (void)sim_plan(&s);
        if (s.sent > s.retired && a->state != SP_SEQ_DECODE) sim_retire(&s);
    }
    sp_seq *b = sim_add(&s, 1, 100, 2, 1, 2, 0)->seqs;
    sp_sched_end(s.sched, a); /* cancelled while a step is on its way */
    CU_ASSERT(sp_kv_pool_fenced(sp_sched_pool(s.sched)) > 0);
    CU_ASSERT_FALSE(sim_plan(&s));
    CU_ASSERT_EQUAL(b->state, SP_SEQ_WAITING);
    while (s.sent > s.retired) sim_retire(&s);
    CU_ASSERT(sim_plan(&s));
    CU_ASSERT_EQUAL(b->state, SP_SEQ_PREFILL);
    CU_ASSERT(sim_run(&s));
    sim_fini(&s);
}

static void brothers_wait_for_the_prompt_and_then_share_its_full_blocks(void) {
    static sim s;
    sp_sched_config c = small();
    c.enable_prefix_cache = false; /* brothers share all the same */
    c.max_batched_tokens = 16;
    sim_init(&s, c);
    sp_request *r = sim_add(&s, 0, 44, 6, 3, 4, 0);
    CU_ASSERT(sim_plan(&s));
    CU_ASSERT_EQUAL(r->seqs[1].state, SP_SEQ_HELD);
    while (!r->forked) {
        sim_retire(&s);
        (void)sim_plan(&s);
    }
    sim_retire(&s);
    (void)sim_plan(&s);
    CU_ASSERT_EQUAL(r->seqs[1].n_computed, 44 - 40);
    CU_ASSERT_EQUAL(r->seqs[1].blocks.ids[0], r->seqs[0].blocks.ids[0]);
    CU_ASSERT(r->seqs[1].blocks.ids[5] != r->seqs[0].blocks.ids[5]); /* the tail is one's own */
    CU_ASSERT(sim_run(&s));
    CU_ASSERT_EQUAL(sp_sched_get_stats(s.sched).prefix_queries, 0);
    sim_fini(&s);
}

static void when_the_leader_ends_early_the_next_brother_leads(void) {
    static sim s;
    sim_init(&s, small());
    sp_request *r = sim_add(&s, 0, 100, 3, 3, 4, 0);
    CU_ASSERT(sim_plan(&s));
    sp_sched_end(s.sched, &r->seqs[0]);
    CU_ASSERT_EQUAL(r->leader, 1);
    CU_ASSERT_EQUAL(r->seqs[1].state, SP_SEQ_WAITING);
    sp_sched_end(s.sched, &r->seqs[2]); /* held: nothing to free */
    CU_ASSERT(sim_run(&s));
    CU_ASSERT_EQUAL(r->seqs[1].n_output, 3);
    sim_fini(&s);
}

static void a_paused_sequence_gives_way_and_comes_back(void) {
    static sim s;
    sp_sched_config c = small();
    c.max_num_seqs = 1;
    sim_init(&s, c);
    sp_seq *a = sim_add(&s, 0, 10, 30, 1, 1, 0)->seqs;
    for (int i = 0; i < 5; i++) {
        (void)sim_plan(&s);
        sim_retire(&s);
    }
    sp_sched_pause(s.sched, a, true);
    while (s.sent > s.retired) sim_retire(&s);
    CU_ASSERT_FALSE(sim_plan(&s));
    CU_ASSERT_EQUAL(a->state, SP_SEQ_DECODE); /* nobody wants its place */
    sp_seq *b = sim_add(&s, 1, 10, 5, 1, 2, 0)->seqs;
    while (b->state != SP_SEQ_DONE) {
        (void)sim_plan(&s);
        if (s.sent > s.retired) sim_retire(&s);
    }
    CU_ASSERT_EQUAL(a->state, SP_SEQ_PARKED);
    sp_sched_pause(s.sched, a, false);
    CU_ASSERT(sim_run(&s));
    CU_ASSERT_EQUAL(a->n_output, 30);
    sim_fini(&s);
}

static void settings_that_cannot_work_are_refused_by_name(void) {
    static const struct {
        size_t offset;
        int32_t value;
        const char *word;
    } rows[] = {
        {offsetof(sp_sched_config, max_num_seqs), 0, "max_num_seqs"},
        {offsetof(sp_sched_config, max_batched_tokens), 0, "max_batched_tokens"},
        {offsetof(sp_sched_config, max_step_rows), 3, "max_step_rows"},
        {offsetof(sp_sched_config, block_tokens), 0, "block_tokens"},
        {offsetof(sp_sched_config, n_blocks), 15, "needs 16 blocks"},
        {offsetof(sp_sched_config, steps_in_flight), SP_KV_STEPS_MAX + 1, "steps_in_flight"},
        {offsetof(sp_sched_config, n_stages), SP_KV_STEPS_MAX, "n_stages"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_sched_config c = small();
        sp_sched *s = NULL;
        sp_err err = {0};
        memcpy((char *)&c + rows[i].offset, &rows[i].value, sizeof rows[i].value);
        CU_ASSERT_EQUAL(sp_sched_create(&s, &c, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
    }
    for (int64_t n = 1; n <= 16; n++) {
        sp_sched_config c = small();
        sp_sched *s = NULL;
        sp_err err = {0};
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(sp_sched_create(&s, &c, &err), SP_E_NOMEM);
    }
    sp_mem_fail_at(0);
}

static void short_memory_at_admission_dooms_one_sequence_only(void) {
    for (int64_t n = 1; n <= 3; n++) {
        static sim s;
        sim_init(&s, small());
        sp_seq *a = sim_add(&s, 0, 20, 4, 1, 1, 0)->seqs;
        sp_seq *b = sim_add(&s, 1, 20, 4, 1, 2, 0)->seqs;
        sp_mem_fail_at(n);
        CU_ASSERT_FALSE(sim_plan(&s));
        sp_mem_fail_at(0);
        CU_ASSERT_PTR_EQUAL(sp_sched_doomed(s.sched), a);
        CU_ASSERT_EQUAL(a->doom, SP_E_NOMEM);
        sp_sched_end(s.sched, a);
        CU_ASSERT(sim_run(&s));
        CU_ASSERT_EQUAL(b->n_output, 4);
        sim_fini(&s);
    }
}

/* ---- everything at once ---- */

static void random_op(sim *s) {
    int at = rand() % REQS, what = rand() % 8;
    sp_request *r = s->reqs[at];
    bool live = false;
    for (int32_t i = 0; r && i < r->params.n; i++) live |= r->seqs[i].state != SP_SEQ_DONE;
    if (!live && what < 3) {
        int32_t len = s->config.max_model_len, n_prompt = 1 + rand() % (len - 1);
        sim_add(s, at, n_prompt, 1 + rand() % (len - n_prompt), 1 + rand() % 8 / 5, rand() % 3,
                rand() % 3);
    } else if (live && what == 3) {
        sp_seq *q = &r->seqs[rand() % r->params.n];
        if (q->state != SP_SEQ_DONE) sp_sched_end(s->sched, q);
    } else if (live && what == 4) {
        sp_seq *q = &r->seqs[rand() % r->params.n];
        sp_sched_pause(s->sched, q, !q->paused && rand() % 2);
    } else if (what < 7) {
        (void)sim_plan(s);
    } else if (s->sent > s->retired) {
        sim_retire(s);
    }
    CU_ASSERT_FATAL(sp_sched_check(s->sched));
}

static void random_use(int seed, int32_t stages) {
    static const int32_t budgets[] = {1, 7, 64}, sizes[] = {8, 16, 32};
    static sim s;
    srand((unsigned)seed);
    sp_sched_config c = small();
    c.max_batched_tokens = budgets[seed % 3];
    c.block_tokens = sizes[seed / 3 % 3];
    c.max_num_seqs = 1 + rand() % 6;
    c.max_step_rows = c.max_num_seqs;
    c.n_stages = stages;
    c.steps_in_flight = stages > 1 ? stages + 1 : 1 + rand() % 3;
    c.enable_prefix_cache = rand() % 4;
    c.max_model_len = 96;
    c.n_blocks = 96 / c.block_tokens + rand() % 8;
    sim_init(&s, c);
    for (int i = 0; i < 1500; i++) random_op(&s);
    for (int i = 0; i < REQS; i++)
        for (int32_t k = 0; s.reqs[i] && k < s.reqs[i]->params.n; k++)
            sp_sched_pause(s.sched, &s.reqs[i]->seqs[k], false);
    CU_ASSERT_FATAL(sim_run(&s));
    CU_ASSERT_EQUAL(sp_kv_pool_available(sp_sched_pool(s.sched)), c.n_blocks);
    sim_fini(&s);
}

static void random_use_never_breaks_an_invariant_and_never_stops(void) {
    for (int seed = 0; seed < 45; seed++) random_use(seed, 0);
}

static void random_use_of_a_pipeline_keeps_its_promises_too(void) {
    for (int seed = 0; seed < 54; seed++) random_use(seed, 2 + seed / 9 % 3);
}

SP_TEST_MAIN("runtime/engine/sched", SP_TEST(decodes_come_first_and_prompts_take_what_is_left),
             SP_TEST(at_any_budget_neither_decodes_nor_prompts_starve),
             SP_TEST(when_the_budget_is_short_decodes_take_turns),
             SP_TEST(who_waits_is_admitted_by_priority_and_then_by_arrival),
             SP_TEST(every_stage_has_its_share_of_the_decodes),
             SP_TEST(a_single_stream_is_one_step_ahead_and_no_more),
             SP_TEST(pieces_of_one_prompt_follow_each_other_through_the_stages),
             SP_TEST(a_prompt_is_not_kept_out_by_the_decodes_of_a_pipeline_nor_they_by_it),
             SP_TEST(when_blocks_run_out_the_last_in_order_is_preempted_and_finishes_all_the_same),
             SP_TEST(a_freed_block_is_taken_only_after_the_steps_that_name_it),
             SP_TEST(brothers_wait_for_the_prompt_and_then_share_its_full_blocks),
             SP_TEST(when_the_leader_ends_early_the_next_brother_leads),
             SP_TEST(a_paused_sequence_gives_way_and_comes_back),
             SP_TEST(settings_that_cannot_work_are_refused_by_name),
             SP_TEST(short_memory_at_admission_dooms_one_sequence_only),
             SP_TEST(random_use_never_breaks_an_invariant_and_never_stops),
             SP_TEST(random_use_of_a_pipeline_keeps_its_promises_too))
