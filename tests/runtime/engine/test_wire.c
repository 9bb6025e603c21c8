/* Covers runtime/engine/wire.c: what is sent is what is read, and what is broken is refused. */
#include "runtime/engine/wire.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Alignas(8) unsigned char frame[64 * 1024];

static uint32_t join(const sp_piece *pieces, int n) {
    uint32_t at = 0;
    for (int i = 0; i < n; i++) {
        if (pieces[i].len) memcpy(frame + at, pieces[i].ptr, pieces[i].len);
        at += pieces[i].len;
    }
    return at;
}

/* ---- good frames ---- */

static sp_wire_entry entries[] = {{.slot = 3, .generation = 9, .start = 16, .n = 5, .flags = 1},
                                  {.slot = 0, .generation = 1, .start = 0, .n = 32, .flags = 2},
                                  {.slot = 7, .generation = 2, .start = 99, .n = 1, .flags = 4}};
static sp_wire_delta deltas[] = {{.entry = 0, .first = 0, .count = 2},
                                 {.entry = 1, .first = 0, .count = 1}};
static int32_t blocks[] = {5, 6, 7};

static uint32_t good_step(void) {
    sp_wire_step st = {.number = 12,
                       .n_entries = 3,
                       .n_deltas = 2,
                       .n_blocks = 3,
                       .n_tokens = 38,
                       .entries = entries,
                       .deltas = deltas,
                       .blocks = blocks};
    sp_wire_step_head head;
    sp_piece pieces[4];
    return join(pieces, sp_wire_step_pieces(&st, &head, pieces));
}

static uint32_t good_tokens(void) {
    sp_wire_tokens_head head = {.number = 4, .n_records = 3, .flags = SP_TOKENS_MORE};
    sp_wire_record a = {.slot = 1, .generation = 2, .position = 30, .token = 77};
    sp_wire_record b = a, c = a;
    b.kind = SP_RECORD_SAMPLED_LOGPROBS;
    b.n_top = 2;
    b.rank = 1;
    b.logprob = -0.5f;
    sp_wire_top top[] = {{8, -0.25f}, {9, -1.0f}};
    c.kind = SP_RECORD_FAILED;
    c.token = SP_E_INTERNAL;
    sp_piece pieces[] = {
        {&head, sizeof head}, {&a, sizeof a}, {&b, sizeof b}, {top, sizeof top}, {&c, sizeof c}};
    return join(pieces, 5);
}

static uint32_t good_add(void) {
    sp_wire_add_head head = {
        .slot = 4, .generation = 8, .part = SP_PART_PROMPT, .offset = 10, .count = 3};
    int32_t ids[] = {1, 2, 3};
    sp_piece pieces[] = {{&head, sizeof head}, {ids, sizeof ids}};
    return join(pieces, 2);
}

static uint32_t good_params(void) {
    sp_wire_add_head head = {.slot = 4, .generation = 8, .part = SP_PART_PARAMS, .count = 1};
    sp_wire_params w = {.seed = 5, .tokens_max = 9, .n_prompt = 4};
    sp_piece pieces[] = {{&head, sizeof head}, {&w, sizeof w}};
    return join(pieces, 2);
}

static uint32_t good_drop(void) {
    sp_wire_drop_head head = {.count = 2};
    sp_wire_seq ids[] = {{1, 2}, {3, 4}};
    sp_piece pieces[] = {{&head, sizeof head}, {ids, sizeof ids}};
    return join(pieces, 2);
}

static uint32_t good_row(void) {
    sp_wire_row_head head = {.number = 3,
                             .slot = 1,
                             .generation = 1,
                             .position = 6,
                             .offset = 10,
                             .count = 2,
                             .total = 12};
    float values[] = {1.5f, -2.0f};
    sp_piece pieces[] = {{&head, sizeof head}, {values, sizeof values}};
    return join(pieces, 2);
}

static uint32_t good_ready(void) {
    sp_wire_ready r = {.n_vocab = 100,
                       .max_model_len = 50,
                       .max_num_seqs = 4,
                       .max_batched_tokens = 8,
                       .max_step_rows = 8,
                       .block_tokens = 16,
                       .n_blocks = 9,
                       .n_groups = 1,
                       .kv_dtype = "f16"};
    memcpy(frame, &r, sizeof r);
    return sizeof r;
}

static uint32_t good_fault(void) {
    static const char text[] = "it broke\nbadly";
    sp_wire_fault_head head = {.reason = SP_FAULT_DEVICE, .text_bytes = sizeof text - 1};
    sp_piece pieces[] = {{&head, sizeof head}, {text, sizeof text - 1}};
    return join(pieces, 2);
}

static uint32_t good_progress(void) {
    sp_wire_progress p = {7, 9};
    memcpy(frame, &p, sizeof p);
    return sizeof p;
}

static void a_step_is_read_as_it_was_sent(void) {
    sp_err err = {0};
    sp_wire_step st;
    CU_ASSERT_EQUAL_FATAL(sp_wire_step_decode(frame, good_step(), &st, &err), SP_OK);
    CU_ASSERT(st.number == 12 && st.n_entries == 3 && st.n_deltas == 2 && st.n_blocks == 3);
    CU_ASSERT(memcmp(st.entries, entries, sizeof entries) == 0);
    CU_ASSERT(memcmp(st.deltas, deltas, sizeof deltas) == 0);
    CU_ASSERT(memcmp(st.blocks, blocks, sizeof blocks) == 0);
}

static void tokens_are_read_record_by_record(void) {
    sp_err err = {0};
    sp_wire_tokens t;
    CU_ASSERT_EQUAL_FATAL(sp_wire_tokens_decode(frame, good_tokens(), &t, &err), SP_OK);
    CU_ASSERT(t.number == 4 && t.more);
    const sp_wire_record *r = sp_wire_tokens_next(&t);
    CU_ASSERT(r->slot == 1 && r->position == 30 && r->token == 77);
    r = sp_wire_tokens_next(&t);
    CU_ASSERT(r->n_top == 2 && r->top[1].id == 9 && r->top[1].logprob == -1.0f);
    r = sp_wire_tokens_next(&t);
    CU_ASSERT(r->kind == SP_RECORD_FAILED && r->token == SP_E_INTERNAL);
    CU_ASSERT_PTR_NULL(sp_wire_tokens_next(&t));
    CU_ASSERT_PTR_NULL(sp_wire_tokens_next(&t));
}

static void the_small_frames_are_read_as_they_were_sent(void) {
    sp_err err = {0};
    sp_wire_add add;
    CU_ASSERT_EQUAL_FATAL(sp_wire_add_decode(frame, good_add(), &add, &err), SP_OK);
    CU_ASSERT(add.seq.slot == 4 && add.seq.generation == 8 && add.part == SP_PART_PROMPT);
    CU_ASSERT(add.offset == 10 && add.count == 3 && ((const int32_t *)add.data)[2] == 3);
    const sp_wire_seq *ids;
    int32_t n;
    CU_ASSERT_EQUAL_FATAL(sp_wire_drop_decode(frame, good_drop(), &ids, &n, &err), SP_OK);
    CU_ASSERT(n == 2 && ids[1].slot == 3 && ids[1].generation == 4);
    sp_wire_row row;
    CU_ASSERT_EQUAL_FATAL(sp_wire_row_decode(frame, good_row(), &row, &err), SP_OK);
    CU_ASSERT(row.position == 6 && row.offset == 10 && row.total == 12 && row.values[1] == -2.0f);
    sp_wire_ready ready;
    CU_ASSERT_EQUAL_FATAL(sp_wire_ready_decode(frame, good_ready(), &ready, &err), SP_OK);
    CU_ASSERT(ready.n_blocks == 9 && strcmp(ready.kv_dtype, "f16") == 0);
    sp_wire_progress progress;
    CU_ASSERT_EQUAL_FATAL(sp_wire_progress_decode(frame, good_progress(), &progress, &err), SP_OK);
    CU_ASSERT(progress.done_bytes == 7 && progress.all_bytes == 9);
    const sp_wire_times sent = {11, 13};
    sp_wire_times times;
    CU_ASSERT_EQUAL_FATAL(sp_wire_times_decode(&sent, sizeof sent, &times, &err), SP_OK);
    CU_ASSERT(times.busy_ns == 11 && times.idle_ns == 13);
    CU_ASSERT_EQUAL(sp_wire_times_decode(&sent, sizeof sent - 8, &times, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'times'"));
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    CU_ASSERT_EQUAL_FATAL(sp_wire_fault_decode(frame, good_fault(), &reason, text, &err), SP_OK);
    CU_ASSERT(reason == SP_FAULT_DEVICE && strcmp(text, "it broke badly") == 0);
    CU_ASSERT_STRING_EQUAL(sp_fault_name(reason), "device");
}

static void parameters_survive_the_way_there_and_back(void) {
    int32_t ids[] = {1, 2};
    sp_logit_bias bias[] = {{3, 1.5f}};
    sp_gen_params g = {.temperature = 0.7f,
                       .top_p = 0.9f,
                       .min_p = 0.1f,
                       .top_k = 40,
                       .repetition_penalty = 1.1f,
                       .presence_penalty = 0.2f,
                       .frequency_penalty = -0.3f,
                       .seed = UINT64_MAX - 1,
                       .n = 3,
                       .max_tokens = 77,
                       .min_tokens = 5,
                       .ignore_eos = true,
                       .n_logprobs = 2,
                       .n_prompt_logprobs = -1,
                       .stop_ids = ids,
                       .n_stop_ids = 2,
                       .logit_bias = bias,
                       .n_logit_bias = 1,
                       .allowed_ids = ids,
                       .n_allowed_ids = 2};
    sp_wire_params w = sp_wire_params_of(&g, 2);
    CU_ASSERT(w.choice == 2 && w.flags == (SP_PARAMS_IGNORE_EOS | SP_PARAMS_ALLOWED));
    sp_gen_params back = sp_wire_params_to(&w);
    CU_ASSERT(back.temperature == g.temperature && back.top_p == g.top_p && back.min_p == g.min_p &&
              back.top_k == g.top_k && back.repetition_penalty == g.repetition_penalty &&
              back.presence_penalty == g.presence_penalty &&
              back.frequency_penalty == g.frequency_penalty && back.seed == g.seed &&
              back.max_tokens == g.max_tokens && back.min_tokens == g.min_tokens &&
              back.ignore_eos && back.n_logprobs == 2 && back.n_prompt_logprobs == -1 &&
              back.n_stop_ids == 2 && back.n_logit_bias == 1 && back.n_allowed_ids == 2 &&
              back.n_bad_words_ints == 0);
}

/* ---- broken ones ---- */

static volatile uint32_t read_sum;
typedef enum kind {
    ADD,
    DROP,
    STEP,
    TOKENS,
    ROW,
    READY,
    FAULT,
    PROGRESS
} kind;

static sp_status decode(kind k, const void *p, uint32_t len, sp_err *err) {
    union {
        sp_wire_add add;
        sp_wire_step step;
        sp_wire_tokens tokens;
        sp_wire_row row;
        sp_wire_ready ready;
        sp_wire_progress progress;
    } out;
    const sp_wire_seq *ids;
    int32_t n;
    uint32_t sum = 0;
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    sp_status st = SP_OK;
    switch (k) {
    case ADD:
        return sp_wire_add_decode(p, len, &out.add, err);
    case DROP:
        st = sp_wire_drop_decode(p, len, &ids, &n, err);
        for (int32_t i = 0; st == SP_OK && i < n; i++) sum += ids[i].slot;
        break;
    case STEP:
        return sp_wire_step_decode(p, len, &out.step, err);
    case TOKENS:
        st = sp_wire_tokens_decode(p, len, &out.tokens, err);
        /* Every record a decoder lets through can be read to its end. */
        for (const sp_wire_record *r; st == SP_OK && (r = sp_wire_tokens_next(&out.tokens));)
            for (int i = 0; i < r->n_top; i++) sum += (uint32_t)r->top[i].id;
        break;
    case ROW:
        return sp_wire_row_decode(p, len, &out.row, err);
    case READY:
        return sp_wire_ready_decode(p, len, &out.ready, err);
    case FAULT:
        return sp_wire_fault_decode(p, len, &reason, text, err);
    case PROGRESS:
        return sp_wire_progress_decode(p, len, &out.progress, err);
    }
    read_sum = sum; /* used, so that no read is optimised away */
    return st;
}

static const struct {
    kind k;
    uint32_t (*make)(void);
} goods[] = {{ADD, good_add},     {ADD, good_params},    {DROP, good_drop},
             {STEP, good_step},   {TOKENS, good_tokens}, {ROW, good_row},
             {READY, good_ready}, {FAULT, good_fault},   {PROGRESS, good_progress}};

/* An exact-size copy, so that a sanitizer sees a read past the end. */
static sp_status decode_copy(kind k, uint32_t len, sp_err *err) {
    void *copy = malloc(len ? len : 1);
    memcpy(copy, frame, len);
    sp_status st = decode(k, copy, len, err);
    free(copy);
    return st;
}

static void a_frame_of_any_other_length_is_refused_with_words(void) {
    for (size_t g = 0; g < SP_LEN(goods); g++) {
        uint32_t len = goods[g].make();
        for (uint32_t cut = 0; cut <= len + 8; cut++) {
            sp_err err = {0};
            sp_status st = decode_copy(goods[g].k, cut, &err);
            CU_ASSERT_EQUAL(st, cut == len ? SP_OK : SP_E_PROTOCOL);
            CU_ASSERT(cut == len || err.text[0] != 0);
        }
    }
}

static void wrong_fields_are_refused_by_name(void) {
    static const struct {
        uint32_t (*make)(void);
        kind k;
        uint32_t offset, value;
        const char *word;
    } rows[] = {
        {good_step, STEP, 8, 0, "frame of"},
        {good_step, STEP, 8, UINT32_MAX, "frame of"},
        {good_step, STEP, 20, 39, "38 tokens, head says 39"},
        {good_step, STEP, 24 + 8, (uint32_t)-1, "positions -1+5"},
        {good_step, STEP, 24 + 12, 0, "positions 16+0"},
        {good_step, STEP, 24 + 16, 8, "flags 0x8"},
        {good_step, STEP, 24 + 72, 3, "of entry 3, there are 3"},
        {good_step, STEP, 24 + 72 + 12, 1, "2 blocks, head says 3"},
        {good_step, STEP, 24 + 72 + 8, (uint32_t)-5, "places -5+2"},
        {good_tokens, TOKENS, 12, 2, "flags 0x2"},
        {good_tokens, TOKENS, 8, 2, "bytes after its 2 records"},
        {good_tokens, TOKENS, 8, 4, "runs over the end"},
        {good_tokens, TOKENS, 16 + 12, (uint32_t)-1, "token -1"},
        {good_tokens, TOKENS, 16 + 16, 9, "kind 9"},
        {good_add, ADD, 8, 7, "part 7"},
        {good_add, ADD, 12, UINT32_MAX, "too many"},
        {good_params, ADD, 16, 2, "frame of"},
        {good_params, ADD, 12, 1, "sets of parameters"},
        {good_row, ROW, 20, 11, "11+2 of 12"},
        {good_row, ROW, 28, UINT32_MAX, "of 4294967295"},
        {good_ready, READY, 24, 0, "n_blocks is 0"},
        {good_ready, READY, 0, (uint32_t)-3, "n_vocab is -3"},
        {good_fault, FAULT, 0, SP_FAULT_COUNT, "reason 6"},
        {good_drop, DROP, 4, 1, "want 0"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_err err = {0};
        uint32_t len = rows[i].make();
        memcpy(frame + rows[i].offset, &rows[i].value, sizeof rows[i].value);
        CU_ASSERT_EQUAL(decode_copy(rows[i].k, len, &err), SP_E_PROTOCOL);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
        if (!strstr(err.text, rows[i].word)) fprintf(stderr, "row %zu: %s\n", i, err.text);
    }
}

static void random_damage_never_reads_past_the_end(void) {
    srand(11);
    for (int i = 0; i < 200000; i++) {
        size_t g = (size_t)rand() % SP_LEN(goods);
        uint32_t len = goods[g].make();
        for (int k = 1 + rand() % 4; k > 0; k--) {
            uint32_t at = (uint32_t)rand() % len;
            int how = rand() % 4;
            if (how == 0) frame[at] ^= (unsigned char)(1 << rand() % 8);
            if (how == 1) frame[at] = (unsigned char)rand();
            if (how == 2) memset(frame + (at & ~3u), rand() % 2 ? 0xff : 0, 4);
            if (how == 3) len = (uint32_t)rand() % (len + 1);
            if (len == 0) break;
        }
        sp_err err = {0};
        sp_status st = decode_copy(goods[g].k, len, &err);
        CU_ASSERT(st == SP_OK || (st == SP_E_PROTOCOL && err.text[0]));
    }
}

SP_TEST_MAIN("runtime/engine/wire", SP_TEST(a_step_is_read_as_it_was_sent),
             SP_TEST(tokens_are_read_record_by_record),
             SP_TEST(the_small_frames_are_read_as_they_were_sent),
             SP_TEST(parameters_survive_the_way_there_and_back),
             SP_TEST(a_frame_of_any_other_length_is_refused_with_words),
             SP_TEST(wrong_fields_are_refused_by_name),
             SP_TEST(random_damage_never_reads_past_the_end))
