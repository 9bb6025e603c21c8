/* Covers runtime/engine/stage.c with the null model: what a rank answers, and what it refuses. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "runtime/gen/sampler.h"
#include "tests/fake_group.h"
#include "tests/fake_rank.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    VOCAB = 61,
    B = 8,
    BLOCKS = 32
};

typedef struct bench {
    sp_link *head, *rank;
    sp_null_model *null;
    sp_stage *stage;
    uint64_t step;
} bench;

static sp_wire_ready offer(void) {
    sp_wire_ready o = sp_fake_offer(VOCAB, BLOCKS, B);
    o.max_model_len = 128;
    o.max_num_seqs = 4;
    o.max_batched_tokens = 64;
    o.max_step_rows = 64;
    return o;
}

static void bench_init_as(bench *b, sp_wire_ready o) {
    sp_err err = {0};
    int fd = -1;
    *b = (bench){0};
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->rank, fd, 1, &err), SP_OK);
    close(fd);
    sp_null_model_config nc = {.n_vocab = o.n_vocab,
                               .n_blocks = o.n_blocks,
                               .block_tokens = B,
                               .max_step_rows = o.max_step_rows};
    CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&b->null, &nc, &err), SP_OK);
    sp_stage_model m = sp_null_model_callbacks(b->null);
    sp_stage_config sc = {.offer = o, .role = {.embeds = true, .samples = true}};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&b->stage, &sc, b->rank, &m, &err), SP_OK);
}

static void bench_init(bench *b) {
    bench_init_as(b, offer());
}

static void bench_fini(bench *b) {
    CU_ASSERT(sp_stage_check(b->stage));
    sp_stage_destroy(b->stage);
    sp_null_model_destroy(b->null);
    sp_link_close(b->head);
    sp_link_close(b->rank);
}

static _Alignas(8) unsigned char payload[8192];

static sp_status give(bench *b, sp_frame_type type, const sp_piece *pieces, int n, sp_err *err) {
    uint32_t len = 0;
    for (int i = 0; i < n; i++) {
        if (pieces[i].len) memcpy(payload + len, pieces[i].ptr, pieces[i].len);
        len += pieces[i].len;
    }
    sp_frame f = {.type = type, .payload = payload, .length = len};
    return sp_stage_take(b->stage, &f, err);
}

static sp_status add_part(bench *b, uint32_t slot, uint32_t gen, sp_wire_part part,
                          const void *data, uint32_t offset, uint32_t count, sp_err *err) {
    sp_wire_add_head h = {
        .slot = slot, .generation = gen, .part = (uint16_t)part, .offset = offset, .count = count};
    sp_piece pieces[] = {{&h, sizeof h}, {data, count * sp_wire_part_item(part)}};
    return give(b, SP_FRAME_SEQ_ADD, pieces, 2, err);
}

static sp_wire_params greedy(int32_t n_prompt, int32_t tokens_max) {
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.temperature = 0;
    g.max_tokens = tokens_max - n_prompt;
    sp_wire_params w = sp_wire_params_of(&g, 0);
    w.n_prompt = n_prompt;
    w.tokens_max = tokens_max;
    return w;
}

static void add_seq(bench *b, uint32_t slot, uint32_t gen, const int32_t *prompt, int32_t n,
                    int32_t tokens_max) {
    sp_err err = {0};
    sp_wire_params w = greedy(n, tokens_max);
    CU_ASSERT_EQUAL_FATAL(add_part(b, slot, gen, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    /* In two pieces, as a long one comes. */
    uint32_t half = (uint32_t)n / 2;
    if (half)
        CU_ASSERT_EQUAL_FATAL(add_part(b, slot, gen, SP_PART_PROMPT, prompt, 0, half, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(
        add_part(b, slot, gen, SP_PART_PROMPT, prompt + half, half, (uint32_t)n - half, &err),
        SP_OK);
}

static sp_status drop_seq(bench *b, uint32_t slot, uint32_t gen, sp_err *err) {
    sp_wire_drop_head h = {.count = 1};
    sp_wire_seq id = {slot, gen};
    sp_piece pieces[] = {{&h, sizeof h}, {&id, sizeof id}};
    return give(b, SP_FRAME_SEQ_DROP, pieces, 2, err);
}

static sp_status step_one(bench *b, sp_wire_entry e, int32_t first, const int32_t *blocks,
                          int32_t n_blocks, sp_err *err) {
    sp_wire_delta d = {.first = first, .count = n_blocks};
    sp_wire_step st = {.number = ++b->step,
                       .n_entries = 1,
                       .n_deltas = n_blocks > 0,
                       .n_blocks = n_blocks,
                       .n_tokens = e.n,
                       .entries = &e,
                       .deltas = &d,
                       .blocks = blocks};
    sp_wire_step_head head;
    sp_piece pieces[4];
    return give(b, SP_FRAME_STEP, pieces, sp_wire_step_pieces(&st, &head, pieces), err);
}

/* The next answer; its records stay valid until the next one. */
static sp_wire_tokens answer(bench *b) {
    sp_frame f;
    sp_err err = {0};
    sp_wire_tokens t = {0};
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(b->head, &f, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_TOKENS);
    CU_ASSERT_EQUAL_FATAL(sp_wire_tokens_decode(f.payload, f.length, &t, &err), SP_OK);
    CU_ASSERT_EQUAL(t.number, b->step);
    return t;
}

static int32_t best_after(const int32_t *tokens, int32_t n) {
    float row[VOCAB];
    sp_null_model_logits(tokens, n, row, VOCAB);
    int32_t best = 0;
    for (int32_t v = 1; v < VOCAB; v++)
        if (row[v] > row[best]) best = v;
    return best;
}

static const int32_t PROMPT[20] = {4, 8,  15, 16, 23, 42, 1,  2,  3,  5,
                                   7, 11, 13, 17, 19, 29, 31, 37, 41, 43};

static void a_rank_feeds_its_own_token_back(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    add_seq(&b, 2, 7, PROMPT, 20, 60);
    int32_t tokens[60], n = 20;
    memcpy(tokens, PROMPT, sizeof PROMPT);
    const int32_t blocks[] = {9, 3, 30, 0, 1, 2, 4, 5};
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){2, 7, 0, 13, 0, 0}, 0, blocks, 3, &err), SP_OK);
    CU_ASSERT_EQUAL(answer(&b).n_records, 0); /* nothing was asked */
    CU_ASSERT_EQUAL(
        step_one(&b, (sp_wire_entry){2, 7, 13, 7, SP_ENTRY_SAMPLE, 0}, 0, NULL, 0, &err), SP_OK);
    for (int32_t k = 3; n < 59;) {
        sp_wire_tokens t = answer(&b);
        const sp_wire_record *r = sp_wire_tokens_next(&t);
        CU_ASSERT_PTR_NOT_NULL_FATAL(r);
        CU_ASSERT(r->slot == 2 && r->generation == 7 && r->position == n);
        CU_ASSERT_EQUAL(r->token, best_after(tokens, n));
        tokens[n++] = r->token;
        bool full = n - 1 == k * B;
        CU_ASSERT_EQUAL_FATAL(step_one(&b, (sp_wire_entry){2, 7, n - 1, 1, SP_ENTRY_SAMPLE, 0}, k,
                                       blocks + k, full, &err),
                              SP_OK);
        k += full;
    }
    CU_ASSERT_EQUAL(sp_stage_seq_count(b.stage), 1);
    CU_ASSERT_EQUAL(drop_seq(&b, 2, 7, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_stage_seq_count(b.stage), 0);
    bench_fini(&b);
}

static void sequences_of_one_step_do_not_disturb_each_other(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    for (uint32_t i = 0; i < 3; i++) add_seq(&b, i, 1, PROMPT + i, 10 + (int32_t)i, 40);
    sp_wire_entry e[] = {
        {2, 1, 0, 12, SP_ENTRY_SAMPLE, 0}, {0, 1, 0, 10, SP_ENTRY_SAMPLE, 0}, {1, 1, 0, 5, 0, 0}};
    sp_wire_delta d[] = {
        {.entry = 0, .count = 2}, {.entry = 1, .count = 2}, {.entry = 2, .count = 1}};
    const int32_t blocks[] = {7, 6, 5, 4, 3};
    sp_wire_step st = {.number = ++b.step,
                       .n_entries = 3,
                       .n_deltas = 3,
                       .n_blocks = 5,
                       .n_tokens = 27,
                       .entries = e,
                       .deltas = d,
                       .blocks = blocks};
    sp_wire_step_head head;
    sp_piece pieces[4];
    CU_ASSERT_EQUAL_FATAL(
        give(&b, SP_FRAME_STEP, pieces, sp_wire_step_pieces(&st, &head, pieces), &err), SP_OK);
    sp_wire_tokens t = answer(&b);
    CU_ASSERT_EQUAL_FATAL(t.n_records, 2);
    CU_ASSERT_EQUAL(sp_wire_tokens_next(&t)->token, best_after(PROMPT + 2, 12));
    CU_ASSERT_EQUAL(sp_wire_tokens_next(&t)->token, best_after(PROMPT, 10));
    bench_fini(&b);
}

static void a_sequence_continues_from_shared_blocks_and_earlier_output(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    const int32_t blocks[] = {1, 2, 3, 4};
    add_seq(&b, 0, 1, PROMPT, 16, 40);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 0, 16, 0, 0}, 0, blocks, 2, &err), SP_OK);
    (void)answer(&b);
    /* Another one: the same 16 tokens in the same blocks, then two of its own and two of output. */
    sp_wire_params w = greedy(18, 40);
    w.n_output = 2;
    const int32_t out[] = {9, 10};
    CU_ASSERT_EQUAL(add_part(&b, 1, 5, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(add_part(&b, 1, 5, SP_PART_PROMPT, PROMPT, 0, 18, &err), SP_OK);
    CU_ASSERT_EQUAL(add_part(&b, 1, 5, SP_PART_OUTPUT, out, 0, 2, &err), SP_OK);
    CU_ASSERT_EQUAL(
        step_one(&b, (sp_wire_entry){1, 5, 16, 4, SP_ENTRY_SAMPLE, 0}, 0, blocks, 3, &err), SP_OK);
    int32_t tokens[20];
    memcpy(tokens, PROMPT, 18 * sizeof *tokens);
    memcpy(tokens + 18, out, sizeof out);
    sp_wire_tokens t = answer(&b);
    const sp_wire_record *r = sp_wire_tokens_next(&t);
    CU_ASSERT_EQUAL(r->position, 20);
    CU_ASSERT_EQUAL(r->token, best_after(tokens, 20));
    bench_fini(&b);
}

static void prompt_logprobs_and_rows_are_told_for_every_position_asked(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    sp_wire_params w = greedy(20, 40);
    w.n_prompt_logprobs = 2;
    const int32_t blocks[] = {1, 2, 3};
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, PROMPT, 0, 20, &err), SP_OK);
    uint32_t all = SP_ENTRY_PROMPT_LOGPROBS | SP_ENTRY_ROWS | SP_ENTRY_SAMPLE;
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 0, 20, all, 0}, 0, blocks, 3, &err), SP_OK);
    float want[VOCAB];
    for (int32_t p = 0; p < 20; p++) {
        sp_frame f;
        sp_wire_row row;
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(b.head, &f, 0, &err), SP_OK);
        CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_ROW);
        CU_ASSERT_EQUAL_FATAL(sp_wire_row_decode(f.payload, f.length, &row, &err), SP_OK);
        sp_null_model_logits(PROMPT, p + 1, want, VOCAB);
        CU_ASSERT(row.position == p && row.count == VOCAB);
        CU_ASSERT(memcmp(row.values, want, sizeof want) == 0);
    }
    sp_wire_tokens t = answer(&b);
    CU_ASSERT_EQUAL_FATAL(t.n_records, 20);
    sp_sampler *sampler = sp_sampler_create(VOCAB);
    for (int32_t p = 1; p < 20; p++) {
        const sp_wire_record *r = sp_wire_tokens_next(&t);
        sp_sample lp = {0};
        sp_null_model_logits(PROMPT, p, want, VOCAB);
        sp_sampler_logprobs(sampler, want, VOCAB, PROMPT[p], 2, &lp);
        CU_ASSERT(r->kind == SP_RECORD_PROMPT && r->position == p && r->token == PROMPT[p]);
        CU_ASSERT(r->logprob == lp.logprob && r->rank == lp.rank && r->n_top == 2);
        CU_ASSERT(r->top[0].id == lp.top[0].id && r->top[1].logprob == lp.top[1].logprob);
    }
    CU_ASSERT_EQUAL(sp_wire_tokens_next(&t)->token, best_after(PROMPT, 20));
    sp_sampler_destroy(sampler);
    bench_fini(&b);
}

static void an_answer_beyond_one_frame_comes_in_several(void) {
    enum {
        LONG = 6000,
        PIECE = 1000
    };
    bench b;
    sp_err err = {0};
    sp_wire_ready o = offer();
    o.max_model_len = o.max_batched_tokens = o.max_step_rows = 8192;
    o.n_blocks = LONG / B;
    bench_init_as(&b, o);
    sp_wire_params w = greedy(LONG, LONG + 10);
    w.n_prompt_logprobs = SP_LOGPROBS_MAX;
    static int32_t prompt[LONG], blocks[LONG / B];
    for (int32_t i = 0; i < LONG; i++) prompt[i] = i * i % VOCAB;
    for (int32_t i = 0; i < LONG / B; i++) blocks[i] = LONG / B - 1 - i;
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    for (uint32_t at = 0; at < LONG; at += PIECE)
        CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, prompt + at, at, PIECE, &err), SP_OK);
    sp_wire_entry e = {0, 1, 0, LONG, SP_ENTRY_PROMPT_LOGPROBS | SP_ENTRY_SAMPLE, 0};
    CU_ASSERT_EQUAL_FATAL(step_one(&b, e, 0, blocks, LONG / B, &err), SP_OK);
    int32_t frames = 0, position = 1;
    for (bool more = true; more; frames++) {
        sp_wire_tokens t = answer(&b);
        more = t.more;
        for (const sp_wire_record *r; (r = sp_wire_tokens_next(&t)); position++)
            CU_ASSERT_EQUAL(r->position, position);
    }
    CU_ASSERT_EQUAL(frames, 2);
    CU_ASSERT_EQUAL(position, LONG + 1); /* the last one is the drawn token */
    bench_fini(&b);
}

static void a_step_allocates_nothing(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    int32_t blocks[16];
    for (int32_t i = 0; i < 16; i++) blocks[i] = i;
    add_seq(&b, 0, 1, PROMPT, 20, 128);
    CU_ASSERT_EQUAL(
        step_one(&b, (sp_wire_entry){0, 1, 0, 20, SP_ENTRY_SAMPLE, 0}, 0, blocks, 16, &err), SP_OK);
    (void)answer(&b);
    uint64_t before = sp_mem_count();
    for (int32_t p = 20; p < 120; p++) {
        CU_ASSERT_EQUAL_FATAL(
            step_one(&b, (sp_wire_entry){0, 1, p, 1, SP_ENTRY_SAMPLE, 0}, 0, NULL, 0, &err), SP_OK);
        (void)answer(&b);
    }
    CU_ASSERT_EQUAL(sp_mem_count(), before);
    bench_fini(&b);
}

/* ---- refusals ---- */

static void expect_refusal(sp_wire_entry e, int32_t first, const int32_t *blocks, int32_t n,
                           const char *word) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    add_seq(&b, 0, 3, PROMPT, 20, 30);
    CU_ASSERT_EQUAL(step_one(&b, e, first, blocks, n, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, word));
    bench_fini(&b);
}

static void a_step_that_cannot_be_is_refused_with_words(void) {
    const int32_t good[] = {1, 2, 3, 4, 5}, bad[] = {1, 2, BLOCKS}, negative[] = {1, -2, 3};
    expect_refusal((sp_wire_entry){0, 2, 0, 20, 1, 0}, 0, good, 3, "generation 3, not 2");
    expect_refusal((sp_wire_entry){4, 3, 0, 20, 1, 0}, 0, good, 3, "slot 4, there are 4");
    expect_refusal((sp_wire_entry){1, 3, 0, 20, 1, 0}, 0, good, 3, "slot 1 has generation 0");
    expect_refusal((sp_wire_entry){0, 3, 0, 21, 1, 0}, 0, good, 3, "positions 0+21");
    expect_refusal((sp_wire_entry){0, 3, 0, 20, 1, 0}, 0, good, 2, "up to 20 in 2 blocks");
    expect_refusal((sp_wire_entry){0, 3, 0, 19, 1, 0}, 0, good, 3, "a token after position 19");
    expect_refusal((sp_wire_entry){0, 3, 0, 20, 1, 0}, 0, bad, 3, "block 32, there are 32");
    expect_refusal((sp_wire_entry){0, 3, 0, 20, 1, 0}, 0, negative, 3, "block -2");
    expect_refusal((sp_wire_entry){0, 3, 0, 20, 1, 0}, 1, good, 3, "places 1+3, want 0");
    expect_refusal((sp_wire_entry){0, 3, 0, 20, 1, 0}, 0, good, 5, "places 0+5, want 0 of 4");
}

static void positions_with_a_gap_are_refused(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    const int32_t blocks[] = {1, 2, 3};
    add_seq(&b, 0, 3, PROMPT, 20, 30);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 3, 0, 8, 0, 0}, 0, blocks, 3, &err), SP_OK);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 3, 9, 4, 0, 0}, 0, NULL, 0, &err),
                    SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "done are 8"));
    b.step = 5;
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 3, 8, 4, 0, 0}, 0, NULL, 0, &err),
                    SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "step 6 after step 1"));
    bench_fini(&b);
}

static void a_sequence_that_cannot_be_is_refused_with_words(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    sp_wire_params w = greedy(20, 129);
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'tokens_max' is 129"));
    w = greedy(20, 30);
    w.n_output = 11;
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, PROMPT, 0, 20, &err), SP_E_PROTOCOL);
    w = greedy(20, 30);
    w.n_bad_words = 2;
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "which is taken"));
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, PROMPT, 1, 2, &err), SP_E_PROTOCOL);
    int32_t ids[20] = {VOCAB};
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, ids, 0, 20, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "token 61"));
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, PROMPT, 0, 20, &err), SP_OK);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 0, 5, 0, 0}, 0, PROMPT, 1, &err),
                    SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "not complete"));
    const int32_t words[] = {2, 4};
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_BAD_WORDS, words, 0, 2, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "run of 2 bad ids"));
    CU_ASSERT_EQUAL(drop_seq(&b, 0, 2, &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(drop_seq(&b, 0, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(drop_seq(&b, 0, 1, &err), SP_E_PROTOCOL);
    bench_fini(&b);
}

static void short_memory_for_a_sequence_is_said_and_leaks_nothing(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b);
    sp_wire_params w = greedy(20, 30);
    for (int64_t n = 1; n <= 7; n++) {
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_E_NOMEM);
        CU_ASSERT_EQUAL(sp_stage_seq_count(b.stage), 0);
    }
    sp_mem_fail_at(0);
    bench_fini(&b);
}

static void damaged_frames_never_break_a_rank(void) {
    srand(5);
    for (int i = 0; i < 1000; i++) {
        bench b;
        sp_err err = {0};
        bench_init(&b);
        const int32_t blocks[] = {1, 2, 3};
        add_seq(&b, 0, 1, PROMPT, 20, 30);
        sp_wire_entry e = {0, 1, 0, 20, SP_ENTRY_SAMPLE, 0};
        sp_wire_delta d = {.count = 3};
        sp_wire_step_head h = {
            .number = 1, .n_entries = 1, .n_deltas = 1, .n_blocks = 3, .n_tokens = 20};
        sp_piece pieces[] = {
            {&h, sizeof h}, {&e, sizeof e}, {&d, sizeof d}, {blocks, sizeof blocks}};
        uint32_t len = 0;
        for (int k = 0; k < 4; len += pieces[k++].len)
            memcpy(payload + len, pieces[k].ptr, pieces[k].len);
        int32_t odd[] = {-1, 0, 1, 7, INT32_MAX, INT32_MIN};
        for (int k = rand() % 3; k >= 0; k--)
            memcpy(payload + (uint32_t)rand() % (len / 4) * 4, &odd[rand() % 6], 4);
        sp_frame f = {.type = SP_FRAME_STEP, .payload = payload, .length = len};
        sp_status st = sp_stage_take(b.stage, &f, &err);
        CU_ASSERT(st == SP_OK || (st == SP_E_PROTOCOL && err.text[0]));
        bench_fini(&b);
    }
}

/* ---- roles ---- */

static int32_t fixed_token(void *ctx, int32_t row) {
    return *(const int32_t *)ctx + row;
}
static int32_t given = 20; /* what fixed_token() starts from */

static sp_status no_logits(void *ctx, const sp_batch *batch, const float **logits, sp_err *err) {
    (void)ctx, (void)batch, (void)err;
    *logits = NULL;
    return SP_OK;
}

/* A bench whose rank has a part; its model computes nothing. */
static sp_status bench_part(bench *b, sp_stage_role role, bool gives_tokens, sp_err *err) {
    int fd = -1;
    *b = (bench){0};
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->head, fd, 0, err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->rank, fd, 1, err), SP_OK);
    close(fd);
    sp_stage_model m = {
        .forward = no_logits, .token = gives_tokens ? fixed_token : NULL, .ctx = &given};
    sp_stage_config sc = {.offer = offer(), .role = role};
    return sp_stage_create(&b->stage, &sc, b->rank, &m, err);
}

static void part_fini(bench *b) {
    if (b->stage) CU_ASSERT(sp_stage_check(b->stage));
    sp_stage_destroy(b->stage);
    sp_link_close(b->head);
    sp_link_close(b->rank);
}

static void step_must(bench *b, uint32_t slot, uint32_t gen, int32_t start, int32_t n) {
    static const int32_t blocks[] = {1, 2, 3, 4};
    sp_err err = {0};
    bool fresh = start == 0;
    CU_ASSERT_EQUAL_FATAL(step_one(b, (sp_wire_entry){slot, gen, start, n, SP_ENTRY_SAMPLE, 0}, 0,
                                   blocks, fresh ? 4 : 0, &err),
                          SP_OK);
}

static bool says_nothing(bench *b) {
    sp_frame f;
    sp_err err = {0};
    return sp_link_recv(b->head, &f, 0, &err) == SP_AGAIN;
}

static void the_sampler_feeds_the_others_one_message_a_step(void) {
    bench b;
    sp_err err = {0};
    sp_fake_hub *hub = sp_fake_hub_open(3, 4);
    sp_stage_role role = {.samples = true, .feedback = sp_fake_hub_member(hub, 0)};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, role, true, &err), SP_OK);
    add_seq(&b, 0, 1, PROMPT, 10, 30);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 0, 4, 0, 0}, 0, PROMPT, 2, &err), SP_OK);
    (void)answer(&b);
    sp_group *other = sp_fake_hub_member(hub, 2);
    CU_ASSERT_FALSE(other->ops->can_recv(other, 0)); /* nothing was sampled: no message */
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 4, 6, SP_ENTRY_SAMPLE, 0}, 0, NULL, 0, &err),
                    SP_OK);
    sp_wire_tokens t = answer(&b);
    CU_ASSERT_EQUAL(sp_wire_tokens_next(&t)->token, 20);
    for (int m = 1; m < 3; m++) {
        int32_t got = -1;
        other = sp_fake_hub_member(hub, m);
        CU_ASSERT_FATAL(other->ops->can_recv(other, 0));
        other->ops->recv(other, 0, &got, sizeof got);
        CU_ASSERT_EQUAL(got, 20);
        CU_ASSERT_FALSE(other->ops->can_recv(other, 0));
    }
    part_fini(&b);
    sp_fake_hub_close(hub);
}

/* What it is fed is seen through what its model is given. */
static int32_t seen[8];
static sp_status look(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    (void)ctx, (void)logits, (void)err;
    memcpy(seen, b->ids, (size_t)(b->n_tokens < 8 ? b->n_tokens : 8) * sizeof *seen);
    return SP_OK;
}

static void feed(sp_fake_hub *hub, int32_t token) {
    sp_group *sampler = sp_fake_hub_member(hub, 0);
    sampler->ops->send(sampler, 1, &token, sizeof token);
}

static void an_embedding_rank_takes_tokens_when_it_needs_them_and_answers_nothing(void) {
    bench b;
    sp_err err = {0};
    sp_fake_hub *hub = sp_fake_hub_open(2, 8);
    sp_stage_role role = {
        .embeds = true, .feedback = sp_fake_hub_member(hub, 1), .steps_in_flight = 3};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, role, false, &err), SP_OK);
    sp_stage_destroy(b.stage);
    sp_stage_model m = {.forward = look};
    sp_stage_config sc = {.offer = offer(), .role = role};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&b.stage, &sc, b.rank, &m, &err), SP_OK);
    add_seq(&b, 0, 1, PROMPT, 6, 30);
    add_seq(&b, 1, 1, PROMPT, 6, 30);
    step_must(&b, 0, 1, 0, 6); /* step 1 draws for slot 0, step 2 for slot 1 */
    step_must(&b, 1, 1, 0, 6); /* nothing has come, and nothing is needed */
    feed(hub, 31);
    feed(hub, 32);
    step_must(&b, 1, 1, 6, 1); /* both are taken, the second is used */
    CU_ASSERT_EQUAL(seen[0], 32);
    CU_ASSERT_EQUAL(drop_seq(&b, 0, 1, &err), SP_OK);
    add_seq(&b, 0, 2, PROMPT, 6, 30); /* the slot again */
    step_must(&b, 0, 2, 0, 6);
    CU_ASSERT_EQUAL(drop_seq(&b, 1, 1, &err), SP_OK); /* its token of step 3 is on its way */
    add_seq(&b, 1, 2, PROMPT, 9, 30);
    feed(hub, 33);
    step_must(&b, 1, 2, 0, 9);
    CU_ASSERT_EQUAL(seen[7], PROMPT[7]); /* not that of the one that is gone */
    feed(hub, 34);
    feed(hub, 35);
    step_must(&b, 1, 2, 9, 1);
    CU_ASSERT_EQUAL(seen[0], 35);
    step_must(&b, 0, 2, 6, 1);
    CU_ASSERT_EQUAL(seen[0], 34);
    CU_ASSERT(says_nothing(&b));
    /* What does not belong to the vocabulary is not looked up in it. */
    feed(hub, VOCAB);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){1, 2, 10, 1, 1, 0}, 0, NULL, 0, &err),
                    SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "the sampler sent token 61"));
    part_fini(&b);
    sp_fake_hub_close(hub);
}

static void an_embedding_rank_never_leaves_more_messages_than_steps_in_flight(void) {
    bench b;
    sp_err err = {0};
    sp_fake_hub *hub = sp_fake_hub_open(2, 4); /* a fifth one would wait for ever */
    sp_stage_role role = {
        .embeds = true, .feedback = sp_fake_hub_member(hub, 1), .steps_in_flight = 3};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, role, false, &err), SP_OK);
    for (uint32_t gen = 1; gen <= 40; gen++) { /* tokens that nobody ever needs */
        add_seq(&b, 0, gen, PROMPT, 6, 30);
        step_must(&b, 0, gen, 0, 6);
        CU_ASSERT_EQUAL(drop_seq(&b, 0, gen, &err), SP_OK);
        feed(hub, 7);
    }
    CU_ASSERT(sp_fake_hub_most_waiting(hub) <= 3);
    part_fini(&b);
    sp_fake_hub_close(hub);
}

static void a_rank_in_the_middle_counts_and_says_nothing(void) {
    bench b;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, (sp_stage_role){0}, false, &err), SP_OK);
    add_seq(&b, 0, 1, PROMPT, 6, 30);
    step_must(&b, 0, 1, 0, 6);
    for (int32_t p = 6; p < 29; p++) step_must(&b, 0, 1, p, 1);
    CU_ASSERT(says_nothing(&b));
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 29, 1, 1, 0}, 0, NULL, 0, &err),
                    SP_E_PROTOCOL); /* it counts as well as others */
    part_fini(&b);
}

static void a_model_that_gives_tokens_has_flat_log_probabilities(void) {
    bench b;
    sp_err err = {0};
    sp_stage_role role = {.embeds = true, .samples = true};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, role, true, &err), SP_OK);
    sp_wire_params w = greedy(6, 30);
    w.n_logprobs = w.n_prompt_logprobs = 1;
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PARAMS, &w, 0, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(add_part(&b, 0, 1, SP_PART_PROMPT, PROMPT, 0, 6, &err), SP_OK);
    uint32_t all = SP_ENTRY_PROMPT_LOGPROBS | SP_ENTRY_SAMPLE;
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 0, 6, all, 0}, 0, PROMPT, 1, &err), SP_OK);
    sp_wire_tokens t = answer(&b);
    CU_ASSERT_EQUAL_FATAL(t.n_records, 6);
    const sp_wire_record *r = NULL;
    for (int i = 0; i < 6; i++) {
        r = sp_wire_tokens_next(&t);
        CU_ASSERT(r->logprob < -4.1f && r->logprob > -4.2f); /* of 61 */
    }
    CU_ASSERT_EQUAL(r->token, 20 + 5); /* the sixth row */
    part_fini(&b);
}

static void roles_that_cannot_be_are_refused(void) {
    sp_fake_hub *hub = sp_fake_hub_open(2, 4);
    const struct {
        sp_stage_role role;
        const char *word;
    } rows[] = {
        {{.embeds = true}, "fed by nobody"},
        {{.embeds = true, .feedback = sp_fake_hub_member(hub, 0)}, "fed by nobody"},
        {{.samples = true, .feedback = sp_fake_hub_member(hub, 1)}, "member 1 of the feedback"},
        {{.samples = true, .steps_in_flight = SP_STAGE_STEPS_MAX + 1}, "'steps_in_flight' is 17"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        bench b;
        sp_err err = {0};
        CU_ASSERT_EQUAL(bench_part(&b, rows[i].role, false, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
        part_fini(&b);
    }
    sp_fake_hub_close(hub);
}

static void a_group_that_broke_is_a_lost_peer(void) {
    bench b;
    sp_err err = {0};
    sp_fake_hub *hub = sp_fake_hub_open(2, 4);
    sp_stage_role role = {.embeds = true, .feedback = sp_fake_hub_member(hub, 1)};
    CU_ASSERT_EQUAL_FATAL(bench_part(&b, role, false, &err), SP_OK);
    add_seq(&b, 0, 1, PROMPT, 6, 30);
    step_must(&b, 0, 1, 0, 6);
    sp_fake_hub_leave(hub, 0);
    CU_ASSERT_EQUAL(step_one(&b, (sp_wire_entry){0, 1, 6, 1, 1, 0}, 0, NULL, 0, &err),
                    SP_E_PEER_LOST);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "member 0 is gone"));
    part_fini(&b);
    sp_fake_hub_close(hub);
}

/* ---- the loop ---- */

static void the_loop_offers_itself_and_ends_with_bye(void) {
    sp_fake_rank r;
    sp_wire_ready o = offer(), got;
    sp_frame f;
    sp_err err = {0};
    int from;
    sp_fake_rank_start(&r, &o, NULL, 0, 0, -1);
    int64_t soon = sp_now_ns() + 10 * SP_NS_PER_S;
    CU_ASSERT_EQUAL_FATAL(sp_fan_recv(r.fan, &f, &from, soon, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_READY);
    CU_ASSERT_EQUAL_FATAL(sp_wire_ready_decode(f.payload, f.length, &got, &err), SP_OK);
    CU_ASSERT(memcmp(&got, &o, sizeof o) == 0);
    CU_ASSERT_EQUAL(sp_link_send(r.head, SP_FRAME_BYE, NULL, 0, soon, &err), SP_OK);
    sp_fake_rank_join(&r);
    CU_ASSERT_EQUAL(r.ended, SP_OK);
    sp_fake_rank_fini(&r);
}

static void the_loop_tells_a_fault_and_ends_when_the_head_is_wrong(void) {
    sp_fake_rank r;
    sp_wire_ready o = offer();
    sp_frame f;
    sp_err err = {0};
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    int from;
    sp_fake_rank_start(&r, &o, NULL, 0, 0, -1);
    int64_t soon = sp_now_ns() + 10 * SP_NS_PER_S;
    CU_ASSERT_EQUAL_FATAL(sp_fan_recv(r.fan, &f, &from, soon, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_link_send(r.head, SP_FRAME_TOKENS, NULL, 0, soon, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_fan_recv(r.fan, &f, &from, soon, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_FAULT);
    CU_ASSERT_EQUAL_FATAL(sp_wire_fault_decode(f.payload, f.length, &reason, text, &err), SP_OK);
    CU_ASSERT_EQUAL(reason, SP_FAULT_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "frame of type 7 to a rank"));
    sp_fake_rank_join(&r);
    CU_ASSERT_EQUAL(r.ended, SP_E_PROTOCOL);
    sp_fake_rank_fini(&r);
}

SP_TEST_MAIN("runtime/engine/stage", SP_TEST(a_rank_feeds_its_own_token_back),
             SP_TEST(sequences_of_one_step_do_not_disturb_each_other),
             SP_TEST(a_sequence_continues_from_shared_blocks_and_earlier_output),
             SP_TEST(prompt_logprobs_and_rows_are_told_for_every_position_asked),
             SP_TEST(an_answer_beyond_one_frame_comes_in_several),
             SP_TEST(a_step_allocates_nothing),
             SP_TEST(a_step_that_cannot_be_is_refused_with_words),
             SP_TEST(positions_with_a_gap_are_refused),
             SP_TEST(a_sequence_that_cannot_be_is_refused_with_words),
             SP_TEST(short_memory_for_a_sequence_is_said_and_leaks_nothing),
             SP_TEST(damaged_frames_never_break_a_rank),
             SP_TEST(the_sampler_feeds_the_others_one_message_a_step),
             SP_TEST(an_embedding_rank_takes_tokens_when_it_needs_them_and_answers_nothing),
             SP_TEST(an_embedding_rank_never_leaves_more_messages_than_steps_in_flight),
             SP_TEST(a_rank_in_the_middle_counts_and_says_nothing),
             SP_TEST(a_model_that_gives_tokens_has_flat_log_probabilities),
             SP_TEST(roles_that_cannot_be_are_refused), SP_TEST(a_group_that_broke_is_a_lost_peer),
             SP_TEST(the_loop_offers_itself_and_ends_with_bye),
             SP_TEST(the_loop_tells_a_fault_and_ends_when_the_head_is_wrong))
