/* Covers runtime/engine/stepper.c with the test as the rank: what goes out in which order, and what
 * becomes of answers that are late, doubled or impossible. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_metrics.h"
#include "runtime/engine/stepper.h"
#include "tests/harness.h"

#include <string.h>
#include <unistd.h>

enum {
    VOCAB = 50,
    B = 8
};

typedef struct bench {
    sp_fan *fan;
    sp_link *head, *rank;
    sp_desk *desk;
    sp_stepper *stepper;
    sp_engine_metrics metrics;
    int n_received; /* frames taken while one waited to go out */
} bench;

static void no_wake(void *ctx) {
    (void)ctx;
}
static void no_pause(void *ctx, sp_seq *q, bool paused) {
    (void)ctx, (void)q, (void)paused;
}

static sp_status receive(void *ctx, sp_err *err) {
    bench *b = ctx;
    sp_frame f;
    int from;
    SP_TRY(sp_fan_recv(b->fan, &f, &from, 0, err));
    b->n_received++;
    return sp_stepper_tokens(b->stepper, f.payload, f.length, err);
}

static void bench_init(bench *b, int64_t send_timeout_ns) {
    sp_err err = {0};
    int fd = -1;
    memset(b, 0, sizeof *b);
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->rank, fd, 1, &err), SP_OK);
    close(fd);
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&b->fan, -1, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_fan_add(b->fan, b->head, &err), SP_OK);
    sp_desk_config dc = {
        .queue_max = 64, .live_max = 64, .wake = no_wake, .pause = no_pause, .ctx = b};
    CU_ASSERT_EQUAL_FATAL(sp_desk_create(&b->desk, &dc, &err), SP_OK);
    sp_desk_set_state(b->desk, SP_ENGINE_READY);
    sp_engine_metrics_init(&b->metrics, 4096);
    sp_stepper_config c = {.sched = {.max_num_seqs = 4,
                                     .max_batched_tokens = 64,
                                     .max_step_rows = 64,
                                     .block_tokens = B,
                                     .n_blocks = 131072,
                                     .max_model_len = 1 << 20,
                                     .steps_in_flight = 2,
                                     .enable_prefix_cache = true},
                           .n_vocab = VOCAB,
                           .send_timeout_ns = send_timeout_ns,
                           .fan = b->fan,
                           .desk = b->desk,
                           .metrics = &b->metrics,
                           .receive = receive,
                           .ctx = b};
    CU_ASSERT_EQUAL_FATAL(sp_stepper_create(&b->stepper, &c, &err), SP_OK);
}

static void bench_fini(bench *b) {
    sp_stepper_end_all(b->stepper, (sp_ending){.finish = SP_FINISH_ABORT, .silent = true});
    sp_desk_publish(b->desk);
    CU_ASSERT(sp_stepper_check(b->stepper));
    CU_ASSERT(sp_desk_check(b->desk));
    sp_desk_destroy(b->desk);
    sp_stepper_destroy(b->stepper);
    sp_fan_close(b->fan);
    sp_link_close(b->rank);
}

static uint64_t submit(bench *b, int32_t n_prompt, const sp_gen_params *g) {
    sp_err err = {0};
    uint64_t id = 0;
    int32_t *prompt = sp_alloc((size_t)n_prompt * sizeof *prompt);
    sp_engine_request req = {
        .prompt = prompt, .n_prompt = n_prompt, .params = g, .deadline_ns = SP_NEVER};
    sp_request *r = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_request_create(&r, &req, g->max_tokens, B, &err), SP_OK);
    sp_free(prompt);
    CU_ASSERT_EQUAL_FATAL(sp_desk_submit(b->desk, r, &id, &err), SP_OK);
    sp_stepper_add(b->stepper, sp_desk_collect(b->desk).fresh);
    return id;
}

static void advance(bench *b) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_stepper_advance(b->stepper, &err), SP_OK);
    sp_desk_publish(b->desk);
    CU_ASSERT_FATAL(sp_stepper_check(b->stepper));
}

/* The next frame the rank sees. */
static sp_frame_type next_frame(bench *b, sp_frame *f) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(b->rank, f, 0, &err), SP_OK);
    return f->type;
}

static sp_wire_step next_step(bench *b) {
    sp_frame f;
    sp_err err = {0};
    sp_wire_step st = {0};
    while (next_frame(b, &f) != SP_FRAME_STEP) continue;
    CU_ASSERT_EQUAL_FATAL(sp_wire_step_decode(f.payload, f.length, &st, &err), SP_OK);
    return st;
}

static sp_status answer(bench *b, uint64_t number, const sp_wire_record *rec, uint32_t n,
                        sp_err *err) {
    struct {
        sp_wire_tokens_head head;
        sp_wire_record rec[4];
    } p = {.head = {.number = number, .n_records = n}};
    memcpy(p.rec, rec, n * sizeof *rec);
    sp_status st =
        sp_stepper_tokens(b->stepper, &p, (uint32_t)(sizeof p.head + n * sizeof *rec), err);
    sp_desk_publish(b->desk);
    return st;
}

static sp_gen_params params(int32_t max_tokens) {
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.max_tokens = max_tokens;
    return g;
}

static void a_sequence_is_told_before_the_first_step_that_names_it(void) {
    static bench b;
    sp_frame f;
    sp_err err = {0};
    bench_init(&b, SP_NS_PER_S);
    int32_t stops[] = {3, 4};
    sp_gen_params g = params(5);
    g.stop_ids = stops;
    g.n_stop_ids = 2;
    submit(&b, 10, &g);
    advance(&b);
    static const sp_wire_part parts[] = {SP_PART_PARAMS, SP_PART_PROMPT, SP_PART_STOP_IDS};
    for (size_t i = 0; i < SP_LEN(parts); i++) {
        sp_wire_add add;
        CU_ASSERT_EQUAL_FATAL(next_frame(&b, &f), SP_FRAME_SEQ_ADD);
        CU_ASSERT_EQUAL_FATAL(sp_wire_add_decode(f.payload, f.length, &add, &err), SP_OK);
        CU_ASSERT_EQUAL(add.part, parts[i]);
    }
    sp_wire_step st = next_step(&b);
    CU_ASSERT(st.number == 1 && st.n_entries == 1 && st.n_tokens == 10 && st.n_blocks == 2);
    st = next_step(&b); /* ahead of the first answer */
    CU_ASSERT(st.number == 2 && st.n_tokens == 1 && st.entries[0].start == 10);
    CU_ASSERT_EQUAL(sp_link_recv(b.rank, &f, 0, &err), SP_AGAIN);
    bench_fini(&b);
}

static void late_and_doubled_tokens_are_dropped_and_a_drop_is_told(void) {
    static bench b;
    sp_err err = {0};
    sp_frame f;
    sp_event ev;
    bench_init(&b, SP_NS_PER_S);
    sp_gen_params g = params(10);
    uint64_t id = submit(&b, 4, &g);
    advance(&b);
    sp_wire_step st = next_step(&b);
    sp_wire_record rec = {.slot = st.entries[0].slot,
                          .generation = st.entries[0].generation,
                          .position = 4,
                          .token = 7};
    (void)next_step(&b);
    CU_ASSERT_EQUAL(answer(&b, 1, &rec, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 1);
    CU_ASSERT(ev.tokens[0] == 7 && ev.id == id);
    advance(&b);
    (void)next_step(&b);
    sp_wire_record two[] = {rec, rec};
    two[1].position = 5; /* the first one is a duplicate of what came before */
    CU_ASSERT_EQUAL(answer(&b, 2, two, 2, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 1);
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 0);
    sp_desk_cancel(b.desk, id, -1, SP_FINISH_ABORT);
    sp_stepper_cancel(b.stepper, sp_desk_collect(b.desk).cancelled);
    CU_ASSERT_FALSE(sp_stepper_is_idle(b.stepper)); /* a step is on its way */
    advance(&b);
    const sp_wire_seq *ids;
    int32_t n;
    CU_ASSERT_EQUAL_FATAL(next_frame(&b, &f), SP_FRAME_SEQ_DROP);
    CU_ASSERT_EQUAL_FATAL(sp_wire_drop_decode(f.payload, f.length, &ids, &n, &err), SP_OK);
    CU_ASSERT(n == 1 && ids[0].slot == rec.slot && ids[0].generation == rec.generation);
    rec.position = 6;
    CU_ASSERT_EQUAL(answer(&b, 3, &rec, 1, &err), SP_OK); /* late: nobody hears of it */
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 0);
    CU_ASSERT(sp_stepper_is_idle(b.stepper));
    CU_ASSERT_EQUAL(sp_counter_get(&b.metrics.generation_tokens), 2);
    bench_fini(&b);
}

static void impossible_answers_are_refused_with_words(void) {
    static const struct {
        uint64_t number;
        int32_t position, token;
        uint16_t kind;
        uint32_t n;
        const char *word;
    } rows[] = {
        {2, 4, 7, 0, 1, "tokens of step 2"},
        {0, 4, 7, 0, 1, "tokens of step 0"},
        {1, 5, 7, 0, 1, "a token of position 5, the next is 4"},
        {1, 4, VOCAB, 0, 1, "token 50, the vocabulary has 50"},
        {1, 4, 7, 0, 0, "no token for position 4"},
        {1, 2, 7, SP_RECORD_PROMPT, 1, "position 2 were not asked for"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        static bench b;
        sp_err err = {0};
        bench_init(&b, SP_NS_PER_S);
        sp_gen_params g = params(10);
        submit(&b, 4, &g);
        advance(&b);
        sp_wire_step st = next_step(&b);
        sp_wire_record rec = {.slot = st.entries[0].slot,
                              .generation = st.entries[0].generation,
                              .position = rows[i].position,
                              .token = rows[i].token,
                              .kind = rows[i].kind};
        CU_ASSERT_EQUAL(answer(&b, rows[i].number, &rec, rows[i].n, &err), SP_E_PROTOCOL);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
        bench_fini(&b);
    }
}

static void a_row_that_was_not_asked_for_is_refused(void) {
    static bench b;
    sp_err err = {0};
    bench_init(&b, SP_NS_PER_S);
    sp_gen_params g = params(0);
    g.all_logits = true;
    submit(&b, 4, &g);
    advance(&b);
    sp_wire_step st = next_step(&b);
    struct {
        sp_wire_row_head head;
        float values[VOCAB];
    } row = {.head = {.number = 1,
                      .slot = st.entries[0].slot,
                      .generation = st.entries[0].generation,
                      .count = VOCAB,
                      .total = VOCAB}};
    CU_ASSERT_EQUAL(sp_stepper_row(b.stepper, &row, sizeof row, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_stepper_row(b.stepper, &row, sizeof row, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "want position 1"));
    sp_wire_record none = {0};
    CU_ASSERT_EQUAL(answer(&b, 1, &none, 0, &err), SP_E_PROTOCOL); /* three rows are missing */
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rows up to position 1, want 4"));
    bench_fini(&b);
}

static void a_failed_draw_ends_its_own_choice_only(void) {
    static bench b;
    sp_err err = {0};
    sp_event ev;
    bench_init(&b, SP_NS_PER_S);
    sp_gen_params g = params(10);
    submit(&b, 4, &g);
    submit(&b, 5, &g);
    advance(&b);
    sp_wire_step st = next_step(&b);
    CU_ASSERT_EQUAL_FATAL(st.n_entries, 2);
    sp_wire_record rec[2];
    for (int i = 0; i < 2; i++)
        rec[i] = (sp_wire_record){.slot = st.entries[i].slot,
                                  .generation = st.entries[i].generation,
                                  .position = st.entries[i].n,
                                  .token = 1};
    rec[0].kind = SP_RECORD_FAILED;
    rec[0].token = SP_E_INTERNAL;
    CU_ASSERT_EQUAL(answer(&b, 1, rec, 2, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 1);
    CU_ASSERT(ev.finish == SP_FINISH_ERROR && ev.error == SP_E_INTERNAL && ev.error_text[0]);
    CU_ASSERT_EQUAL(sp_desk_take(b.desk, &ev, 1), 1);
    CU_ASSERT(ev.finish == SP_FINISH_NONE && ev.n_tokens == 1);
    bench_fini(&b);
}

static void while_a_frame_waits_to_go_out_answers_are_taken(void) {
    static bench b;
    sp_err err = {0};
    bench_init(&b, 20 * SP_NS_PER_MS);
    sp_gen_params g = params(10);
    submit(&b, 4, &g);
    advance(&b);
    /* The rank has answered step 1 and reads nothing more; a prompt of 4 MB fills the ring. */
    sp_wire_tokens_head head = {.number = 1, .n_records = 1};
    sp_wire_record rec = {.generation = 1, .position = 4, .token = 2};
    sp_piece pieces[] = {{&head, sizeof head}, {&rec, sizeof rec}};
    CU_ASSERT_EQUAL(sp_link_send(b.rank, SP_FRAME_TOKENS, pieces, 2, SP_NEVER, &err), SP_OK);
    CU_ASSERT_EQUAL(receive(&b, &err), SP_OK);
    b.n_received = 0;
    submit(&b, 1040000, &g);
    head.number = 2;
    rec.position = 5;
    CU_ASSERT_EQUAL(sp_link_send(b.rank, SP_FRAME_TOKENS, pieces, 2, SP_NEVER, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_stepper_advance(b.stepper, &err), SP_E_PEER_LOST);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "took no frame for 20 ms"));
    CU_ASSERT_EQUAL(b.n_received, 1);
    CU_ASSERT(sp_stepper_received(b.stepper));
    bench_fini(&b);
}

static void a_step_is_overdue_only_when_it_was_its_turn(void) {
    static bench b;
    bench_init(&b, SP_NS_PER_S);
    CU_ASSERT_EQUAL(sp_stepper_overdue_ns(b.stepper), SP_NEVER);
    sp_gen_params g = params(10);
    submit(&b, 4, &g);
    advance(&b);
    CU_ASSERT_EQUAL(sp_stepper_overdue_ns(b.stepper), SP_NEVER); /* no timeout was set */
    bench_fini(&b);
}

SP_TEST_MAIN("runtime/engine/stepper",
             SP_TEST(a_sequence_is_told_before_the_first_step_that_names_it),
             SP_TEST(late_and_doubled_tokens_are_dropped_and_a_drop_is_told),
             SP_TEST(impossible_answers_are_refused_with_words),
             SP_TEST(a_row_that_was_not_asked_for_is_refused),
             SP_TEST(a_failed_draw_ends_its_own_choice_only),
             SP_TEST(while_a_frame_waits_to_go_out_answers_are_taken),
             SP_TEST(a_step_is_overdue_only_when_it_was_its_turn))
