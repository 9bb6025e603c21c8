/* Covers runtime/model/forward_ahead.c and kernels/cuda/cuda_graph.c on the emulated device: recorded
 * steps and steps that run ahead of the host give the bits and tokens of those that do neither. */
#include "runtime/model/forward_ahead.h"

#include "kernels/cuda/cuda_dev.h"
#include "kernels/cuda/emu/emu.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/fake_draw.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const sp_dev_plugin *superpod_device_plugin(int abi);

#define MAX_LEN 1024
#define BLOCK 16
#define SEQS 9
#define SEQ_BLOCKS (MAX_LEN / BLOCK)
#define N_BLOCKS (SEQS * SEQ_BLOCKS)
#define MAX_TOKENS 32
#define VOCAB SP_TINY_VOCAB_MIN

#if defined(__SANITIZE_THREAD__)
#define NEEDS_FIBRES() SP_SKIP("fibres under the thread sanitizer")
#else
#define NEEDS_FIBRES() (void)0
#endif

/* Under the address sanitizer a fibre's steps take ten times as long. */
#if defined(__SANITIZE_ADDRESS__)
#define SLOW 1
#else
#define SLOW 0
#endif

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static uint32_t random_below(uint64_t *state, uint32_t n) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33) % n;
}

/* ---- a device that draws: the host's sampler, run where the kernels run ---- */

typedef struct draw_work {
    sp_sampler *sampler;
    sp_draw_args args;
} draw_work;

static int run_draw(void *arg) {
    draw_work *w = arg;
    sp_fake_draw(w->sampler, &w->args);
    return 0;
}
static void drop_draw(void *arg) {
    draw_work *w = arg;
    sp_sampler_destroy(w->sampler);
    free((void *)(uintptr_t)w->args.draws);
    free((void *)(uintptr_t)w->args.tokens);
    free((void *)(uintptr_t)w->args.bias);
    free(w);
}
static void *copy_of(const void *p, size_t bytes) {
    void *to = malloc(bytes + 1);
    if (bytes) memcpy(to, p, bytes);
    return to;
}
static void queue_draw(sp_dev *dev, const sp_draw_args *a) {
    draw_work *w = malloc(sizeof *w);
    *w = (draw_work){sp_sampler_create(a->V), *a};
    w->args.draws = copy_of(a->draws, (size_t)a->n * sizeof *a->draws);
    w->args.tokens = copy_of(a->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    w->args.bias = copy_of(a->bias, (size_t)a->n_bias * sizeof *a->bias);
    cu_dev *cu = dev->impl;
    cu_check(cu, cu_emu_enqueue(cu->stream, "draw", run_draw, w, drop_draw), "draw");
}

/* ---- a model ---- */

typedef struct fixture {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
    char *folder;
    sp_dev_ops ops;
    sp_dev dev;
    sp_forward *f;
    int32_t blocks[SEQS][SEQ_BLOCKS];
} fixture;

static void fresh(cu_emu_pace pace, cu_emu_order order) {
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.pace = pace;
    c.order = order;
    c.seed = 5;
    c.memory_bytes = (size_t)64 << 20;
    c.protect = 0;
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
}

/* Keys and values of every position are some numbers, so that a sequence may begin anywhere. */
static void fill_cache(fixture *x) {
    float *kv = malloc(x->f->kv_bytes);
    uint64_t state = 11;
    for (size_t i = 0; i < x->f->kv_bytes / sizeof *kv; i++)
        kv[i] = (float)random_below(&state, 2001) * 1e-3f - 1;
    x->dev.ops->upload(&x->dev, x->f->kv, kv, x->f->kv_bytes);
    free(kv);
}

static cu_graphs *graphs_of(fixture *x) {
    return &((cu_dev *)x->dev.impl)->graphs;
}

static void open_fixture(fixture *x, bool graphs) {
    sp_err err = {0};
    *x = (fixture){.ops = *superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
    if (!x->ops.draw) x->ops.draw = queue_draw;
    x->dev.ops = &x->ops;
    x->folder = sp_tiny_create(&(sp_tiny){.seed = 7,
                                          .hidden = 32,
                                          .n_layers = SLOW ? 1 : 2,
                                          .intermediate = 64,
                                          .vocab = VOCAB,
                                          .n_heads = 4,
                                          .n_kv_heads = 2,
                                          .max_positions = MAX_LEN,
                                          .dtype = SP_DTYPE_BF16,
                                          .n_shards = 1,
                                          .tied = true,
                                          .rope_theta = 10000});
    must(sp_model_desc_load(&x->desc, x->folder, &err), &err);
    must(sp_arch_find(&x->arch, &x->desc, &err), &err);
    must(sp_model_dir_open(&x->dir, x->folder, &err), &err);
    const sp_dev_config dc = {.backend = "emu"};
    must(x->ops.open(&x->dev, &dc, &err), &err);
    sp_forward_config c = {.max_tokens = MAX_TOKENS,
                           .max_rows = MAX_TOKENS,
                           .max_model_len = MAX_LEN,
                           .block_tokens = BLOCK,
                           .n_blocks = N_BLOCKS,
                           .kv_dtype = SP_DTYPE_F32,
                           .n_slots = SEQS};
    must(sp_part_of(&c.part, &x->desc, x->arch, 1, 1, NULL, 0, 0, &err), &err);
    must(sp_forward_open(&x->f, &x->dev, x->dir, &x->desc, x->arch, &c, NULL, NULL, &err), &err);
    for (int s = 0; s < SEQS; s++)
        for (int i = 0; i < SEQ_BLOCKS; i++) x->blocks[s][i] = N_BLOCKS - 1 - (i * SEQS + s);
    fill_cache(x);
    graphs_of(x)->off = !graphs;
}

static void close_fixture(fixture *x) {
    sp_forward_close(x->f);
    sp_dev_close(&x->dev);
    sp_model_dir_close(x->dir);
    sp_tiny_remove(x->folder);
}

/* ---- graphs ---- */

/* One token for each of `n` sequences; sequence s is at position at + 3 s. */
static void decode(fixture *x, int n, int32_t at, float *out) {
    int32_t ids[SEQS], rows[SEQS];
    sp_seq_rows seqs[SEQS];
    for (int s = 0; s < n; s++) {
        ids[s] = (at * 7 + s * 31) % VOCAB;
        rows[s] = s;
        seqs[s] = (sp_seq_rows){s, 1, at + 3 * s, x->blocks[s]};
    }
    const sp_batch b = {ids, n, seqs, n, rows, n};
    const float *logits;
    sp_err err = {0};
    must(sp_forward_run(x->f, &b, &logits, &err), &err);
    memcpy(out, logits, (size_t)n * VOCAB * sizeof *out);
}

/* Sizes 1..9 in turn, positions that grow past two splits, so that buckets begin, repeat and change. */
static void decode_all(fixture *x, float *out) {
    static const int32_t at[] = {1, 2, 254, 509, 512};
    for (size_t i = 0; i < SP_LEN(at); i++)
        for (int n = 1; n <= SEQS; n++, out += (size_t)SEQS * VOCAB) decode(x, n, at[i], out);
}
#define DECODES (5 * SEQS)

static void recorded_steps_have_the_bits_of_plain_ones(void) {
    NEEDS_FIBRES();
    static const struct {
        cu_emu_pace pace;
        cu_emu_order order;
    } ways[] = {{CU_EMU_EAGER, CU_EMU_FORWARD},
                {CU_EMU_LAZY, CU_EMU_BACKWARD},
                {CU_EMU_MIXED, CU_EMU_RANDOM}};
    const size_t bytes = (size_t)DECODES * SEQS * VOCAB * sizeof(float);
    float *want = calloc(1, bytes), *got = calloc(1, bytes);
    fixture x;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, false);
    decode_all(&x, want);
    CU_ASSERT_EQUAL(graphs_of(&x)->launched, 0);
    close_fixture(&x);
    for (size_t i = SLOW; i < SP_LEN(ways); i++) {
        memset(got, 0, bytes);
        fresh(ways[i].pace, ways[i].order);
        open_fixture(&x, true);
        decode_all(&x, got);
        CU_ASSERT_EQUAL(memcmp(got, want, bytes), 0);
        /* Rows 1, 2, 4, 8, 16 times positions 256, 512, 1024, each queued plainly once; four of them
         * (1 and 2 and 16 rows up to 512, 1 row up to 1024) do not come again. */
        CU_ASSERT_EQUAL(graphs_of(&x)->recorded, 11);
        CU_ASSERT_EQUAL(graphs_of(&x)->launched, DECODES - 15);
        CU_ASSERT_EQUAL(graphs_of(&x)->dropped, 0);
        CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
        close_fixture(&x);
    }
    free(want);
    free(got);
}

static void more_graphs_than_are_kept_drop_the_one_unused_for_longest(void) {
    NEEDS_FIBRES();
    fixture x;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, true);
    static const char owners[CU_GRAPHS_MAX + 1];
    const int32_t id = 3;
    const sp_seq_rows seq = {0, 1, 0, x.blocks[0]};
    for (int round = 0; round < 2; round++)
        for (int i = 0; i <= CU_GRAPHS_MAX - !round; i++) {
            const sp_dev_decode d = {&owners[i], &id, &seq, 1, BLOCK, 8, MAX_LEN};
            if (!x.ops.decode_begin(&x.dev, &d)) CU_ASSERT(x.ops.decode_end(&x.dev));
        }
    /* All were recorded; the one too many took the place of the oldest, and was new. */
    CU_ASSERT_EQUAL(graphs_of(&x)->recorded, CU_GRAPHS_MAX);
    CU_ASSERT_EQUAL(graphs_of(&x)->dropped, 1);
    const sp_dev_decode again = {&owners[0], &id, &seq, 1, BLOCK, 8, MAX_LEN};
    CU_ASSERT_FALSE(x.ops.decode_begin(&x.dev, &again)); /* this was the oldest */
    CU_ASSERT(x.ops.decode_end(&x.dev));
    const sp_dev_decode kept = {&owners[2], &id, &seq, 1, BLOCK, 8, MAX_LEN};
    CU_ASSERT(x.ops.decode_begin(&x.dev, &kept));
    close_fixture(&x);
}

static void a_step_that_cannot_be_recorded_is_queued_plainly_with_the_same_bits(void) {
    NEEDS_FIBRES();
    static float want[3][SEQS * VOCAB], got[3][SEQS * VOCAB];
    fixture x;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, false);
    for (int i = 0; i < 3; i++) decode(&x, 3, 300 + i, want[i]);
    close_fixture(&x);
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, true);
    cu_dev *cu = x.dev.impl;
    decode(&x, 3, 300, got[0]);
    cu->scratch_bytes = 16; /* the recording has to take memory, which it must not */
    decode(&x, 3, 301, got[1]);
    decode(&x, 3, 302, got[2]);
    CU_ASSERT_EQUAL(memcmp(want, got, sizeof want), 0);
    CU_ASSERT_EQUAL(graphs_of(&x)->failed, 1);
    CU_ASSERT_EQUAL(graphs_of(&x)->recorded, 0);
    CU_ASSERT_EQUAL(cu->fault.code, SP_OK);
    close_fixture(&x);
}

static void memory_that_is_given_back_takes_its_graphs_along(void) {
    NEEDS_FIBRES();
    static float out[SEQS * VOCAB];
    fixture x;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, true);
    decode(&x, 2, 5, out);
    decode(&x, 2, 6, out);
    CU_ASSERT_EQUAL(graphs_of(&x)->recorded, 1);
    x.ops.free(&x.dev, x.ops.alloc(&x.dev, 100), 100);
    CU_ASSERT_EQUAL(graphs_of(&x)->dropped, 1);
    close_fixture(&x);
}

/* ---- one step ahead ---- */

#define STEPS (SLOW ? 10 : 24)

/* A sequence as the host knows it; `known` tokens of `n`. */
typedef struct history {
    int32_t tokens[MAX_LEN], n, known, done, generation;
} history;

typedef struct plan { /* of one step: how many tokens of each sequence, and which draw */
    int32_t n[SEQS];
    bool draws[SEQS];
} plan;

/* Mixes of prompts, decodes and sequences that begin anew in a slot: the same for everyone. */
static void plan_step(plan *p, history *seqs, uint64_t *state) {
    int32_t left = MAX_TOKENS;
    const bool decode_only = random_below(state, 3) > 0;
    *p = (plan){0};
    for (int s = 0; s < SEQS; s++) {
        history *q = &seqs[s];
        if (random_below(state, 4) == 0) continue;
        if (q->n == 0 || (!decode_only && random_below(state, 12) == 0)) {
            const int32_t n = 1 + (int32_t)random_below(state, 30);
            *q = (history){.n = n, .known = n, .generation = q->generation + 1};
            for (int32_t i = 0; i < n; i++) q->tokens[i] = (int32_t)random_below(state, VOCAB);
        }
        const int32_t todo = q->n - q->done;
        p->n[s] = todo < left ? todo : left;
        if (p->n[s] > 1 && random_below(state, 3) == 0) p->n[s]--;
        left -= p->n[s];
        p->draws[s] = p->n[s] > 0 && p->n[s] == todo;
    }
}

typedef struct step {
    int32_t ids[MAX_TOKENS], rows[SEQS];
    sp_seq_rows seqs[SEQS];
    sp_draw draws[SEQS];
    int slots[SEQS], generations[SEQS]; /* of the draws */
    sp_batch b;
    int n_draws;
} step;

static void lay_out(step *t, const plan *p, fixture *x, history *seqs) {
    *t = (step){.b = {t->ids, 0, t->seqs, 0, t->rows, 0}};
    for (int s = 0; s < SEQS; s++) {
        history *q = &seqs[s];
        if (p->n[s] == 0) continue;
        t->seqs[t->b.n_seqs++] = (sp_seq_rows){t->b.n_tokens, p->n[s], q->done, x->blocks[s]};
        for (int32_t i = 0; i < p->n[s]; i++, q->done++)
            t->ids[t->b.n_tokens++] = q->done < q->known ? q->tokens[q->done] : -1 - s;
        if (!p->draws[s]) continue;
        t->rows[t->b.n_rows] = t->b.n_tokens - 1;
        t->draws[t->n_draws] = (sp_draw){.row = t->b.n_rows++,
                                         .slot = s,
                                         .temperature = s % 2 ? 0.8f : 0,
                                         .top_p = 0.95f,
                                         .repetition_penalty = 1,
                                         .top_k = s % 3 ? 40 : 0,
                                         .position = q->n,
                                         .seed = 77 + (uint64_t)s,
                                         .n_logprobs = s % 4 == 3 ? 3 : -1,
                                         .n_allowed = -1};
        t->generations[t->n_draws] = q->generation;
        t->slots[t->n_draws++] = s;
        q->n++;
    }
    if (t->b.n_tokens == 0) t->b.n_seqs = 0;
}

typedef struct record { /* of all draws, in order */
    sp_drawn drawn[STEPS * SEQS];
    int n;
} record;

static void keep(record *l, history *seqs, const step *t, const sp_drawn *drawn) {
    for (int i = 0; i < t->n_draws; i++) {
        history *q = &seqs[t->slots[i]];
        l->drawn[l->n++] = drawn[i];
        /* The slot may belong to another sequence by now. */
        if (t->generations[i] != q->generation) continue;
        q->tokens[t->draws[i].position] = drawn[i].id;
        q->known = t->draws[i].position + 1;
    }
}

static void draw_on_host(sp_sampler *sampler, const step *t, const float *logits, sp_drawn *out) {
    int32_t last[SEQS];
    const sp_draw_args a = {.logits = logits,
                            .ld = VOCAB,
                            .V = VOCAB,
                            .n = t->n_draws,
                            .draws = t->draws,
                            .last = last,
                            .drawn = out};
    sp_fake_draw(sampler, &a);
}

static void run_in_step(fixture *x, record *l) {
    static history seqs[SEQS];
    uint64_t state = 99;
    sp_sampler *sampler = sp_sampler_create(VOCAB);
    memset(seqs, 0, sizeof seqs);
    for (int i = 0; i < STEPS; i++) {
        static step t;
        plan p;
        sp_drawn drawn[SEQS];
        const float *logits;
        sp_err err = {0};
        plan_step(&p, seqs, &state);
        lay_out(&t, &p, x, seqs);
        t.b.ids = t.ids;
        if (t.b.n_tokens == 0) continue;
        must(sp_forward_run(x->f, &t.b, &logits, &err), &err);
        draw_on_host(sampler, &t, logits, drawn);
        keep(l, seqs, &t, drawn);
    }
    sp_sampler_destroy(sampler);
}

static void finish(fixture *x, record *l, history *seqs, const step *t) {
    const sp_drawn *drawn;
    sp_err err = {0};
    must(sp_forward_finish(x->f, SP_NEVER, &drawn, &err), &err);
    keep(l, seqs, t, drawn);
}

static void run_ahead(fixture *x, record *l) {
    static history seqs[SEQS];
    static step t[2];
    uint64_t state = 99;
    int n = 0;
    memset(seqs, 0, sizeof seqs);
    for (int i = 0; i < STEPS; i++) {
        plan p;
        sp_err err = {0};
        step *now = &t[n % 2];
        plan_step(&p, seqs, &state);
        lay_out(now, &p, x, seqs);
        if (now->b.n_tokens == 0) continue;
        const sp_draw_args a = {.n = now->n_draws, .draws = now->draws};
        must(sp_forward_submit(x->f, &now->b, &a, &err), &err);
        if (n++ > 0) finish(x, l, seqs, &t[n % 2]);
    }
    finish(x, l, seqs, &t[(n + 1) % 2]);
}

static void steps_that_run_ahead_draw_the_tokens_of_steps_that_wait(void) {
    NEEDS_FIBRES();
    static const cu_emu_pace paces[] = {CU_EMU_LAZY, CU_EMU_MIXED};
    static record want, got;
    fixture x;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, false);
    want.n = 0;
    run_in_step(&x, &want);
    close_fixture(&x);
    CU_ASSERT(want.n > 2 * STEPS);
    for (size_t i = SLOW; i < SP_LEN(paces); i++) {
        fresh(paces[i], CU_EMU_FORWARD);
        open_fixture(&x, true);
        CU_ASSERT_FATAL(sp_forward_runs_ahead(x.f));
        got.n = 0;
        run_ahead(&x, &got);
        CU_ASSERT_EQUAL(got.n, want.n);
        CU_ASSERT_EQUAL(memcmp(got.drawn, want.drawn, (size_t)want.n * sizeof *want.drawn), 0);
        CU_ASSERT(graphs_of(&x)->launched > 0);
        CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
        close_fixture(&x);
    }
}

static void a_device_that_fails_ahead_tells_it_at_the_next_end_and_nothing_hangs(void) {
    NEEDS_FIBRES();
    for (int64_t nth = 1; nth < 140;
         nth += SLOW ? 46 : 23) { /* of a plain step, a recorded one, and draws */
        fixture x;
        sp_err err = {0};
        const sp_drawn *drawn;
        fresh(nth % 2 ? CU_EMU_LAZY : CU_EMU_EAGER, CU_EMU_FORWARD);
        open_fixture(&x, true);
        const int32_t id = 4, row = 0;
        sp_status st = SP_OK;
        cu_emu_fail_launch(nth, cudaErrorIllegalAddress);
        int n = 0;
        for (int32_t pos = 0; pos < 16 && st == SP_OK; pos++) {
            const sp_seq_rows seq = {0, 1, pos, x.blocks[0]};
            const int32_t fed = pos ? -1 : id;
            const sp_batch b = {&fed, 1, &seq, 1, &row, 1};
            const sp_draw d = {.position = pos + 1,
                               .repetition_penalty = 1,
                               .n_allowed = -1,
                               .n_logprobs = -1,
                               .top_p = 1};
            const sp_draw_args a = {.n = 1, .draws = &d};
            st = sp_forward_submit(x.f, &b, &a, &err);
            if (st == SP_OK && n++ > 0) st = sp_forward_finish(x.f, SP_NEVER, &drawn, &err);
        }
        CU_ASSERT_EQUAL(st, SP_E_DEVICE);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "cudaErrorIllegalAddress"));
        CU_ASSERT_EQUAL(sp_forward_finish(x.f, SP_NEVER, &drawn, &err), SP_E_DEVICE);
        close_fixture(&x);
    }
}

static void a_step_that_has_not_ended_is_told_at_the_deadline(void) {
    NEEDS_FIBRES();
    fixture x;
    sp_err err = {0};
    const sp_drawn *drawn;
    fresh(CU_EMU_LAZY, CU_EMU_FORWARD);
    open_fixture(&x, true);
    const int32_t id = 4, row = 0;
    const sp_seq_rows seq = {0, 1, 0, x.blocks[0]};
    const sp_batch b = {&id, 1, &seq, 1, &row, 1};
    const sp_draw_args none = {.n = 0};
    must(sp_forward_submit(x.f, &b, &none, &err), &err);
    CU_ASSERT_EQUAL(sp_forward_finish(x.f, 0, &drawn, &err), SP_AGAIN);
    must(sp_forward_finish(x.f, SP_NEVER, &drawn, &err), &err);
    close_fixture(&x);
}

/* ---- times ---- */

static void time_between_steps_is_idle_only_where_work_was_pending(void) {
    NEEDS_FIBRES();
    static float out[SEQS * VOCAB];
    fixture x;
    sp_dev_times a, b, c;
    fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
    open_fixture(&x, true);
    decode(&x, 1, 0, out);
    x.ops.times(&x.dev, &a);
    CU_ASSERT_EQUAL(a.steps, 1);
    CU_ASSERT(a.busy_ns > 0);
    CU_ASSERT_EQUAL(a.idle_ns, 0);
    const int64_t until = sp_now_ns() + 2 * SP_NS_PER_MS;
    while (sp_now_ns() < until) {
    }
    decode(&x, 1, 1, out);
    x.ops.times(&x.dev, &b);
    CU_ASSERT_EQUAL(b.steps, 2);
    CU_ASSERT(b.busy_ns > a.busy_ns);
    CU_ASSERT(b.idle_ns >= 2 * SP_NS_PER_MS);
    x.ops.rest(&x.dev);
    decode(&x, 1, 2, out);
    x.ops.times(&x.dev, &c);
    CU_ASSERT_EQUAL(c.steps, 3);
    CU_ASSERT_EQUAL(c.idle_ns, b.idle_ns);
    close_fixture(&x);
}

SP_TEST_MAIN("runtime/model/forward_ahead", SP_TEST(recorded_steps_have_the_bits_of_plain_ones),
             SP_TEST(more_graphs_than_are_kept_drop_the_one_unused_for_longest),
             SP_TEST(a_step_that_cannot_be_recorded_is_queued_plainly_with_the_same_bits),
             SP_TEST(memory_that_is_given_back_takes_its_graphs_along),
             SP_TEST(steps_that_run_ahead_draw_the_tokens_of_steps_that_wait),
             SP_TEST(a_device_that_fails_ahead_tells_it_at_the_next_end_and_nothing_hangs),
             SP_TEST(a_step_that_has_not_ended_is_told_at_the_deadline),
             SP_TEST(time_between_steps_is_idle_only_where_work_was_pending))
