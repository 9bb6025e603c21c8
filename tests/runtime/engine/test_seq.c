/* Covers runtime/engine/seq.c: copies, the state table, names of blocks, the order of waiting. */
#include "runtime/base/mem.h"
#include "runtime/engine/seq.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

static sp_request *make(int32_t n_prompt, int32_t max_tokens, int32_t n, int32_t priority) {
    int32_t prompt[64];
    for (int32_t i = 0; i < n_prompt; i++) prompt[i] = i;
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.n = n;
    g.max_tokens = max_tokens;
    sp_engine_request req = {
        .prompt = prompt, .n_prompt = n_prompt, .params = &g, .priority = priority};
    sp_request *r = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_request_create(&r, &req, max_tokens, 4, &err), SP_OK);
    return r;
}

static void a_request_is_a_deep_copy(void) {
    int32_t prompt[] = {1, 2, 3}, stops[] = {7}, allowed[] = {1, 2}, bad[] = {1, 9};
    sp_logit_bias bias[] = {{4, 0.5f}};
    char salt[] = "pepper";
    sp_gen_params g = SP_GEN_PARAMS_DEFAULT;
    g.n = 2;
    g.stop_ids = stops, g.n_stop_ids = 1;
    g.allowed_ids = allowed, g.n_allowed_ids = 2;
    g.bad_words = bad, g.n_bad_words_ints = 2;
    g.logit_bias = bias, g.n_logit_bias = 1;
    sp_engine_request req = {.prompt = prompt, .n_prompt = 3, .params = &g, .cache_salt = salt};
    sp_request *r = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_request_create(&r, &req, 5, 4, &err), SP_OK);
    prompt[1] = stops[0] = allowed[1] = bad[1] = bias[0].id = 99;
    salt[0] = 'x';
    CU_ASSERT(r->prompt[1] == 2 && r->params.stop_ids[0] == 7 && r->params.allowed_ids[1] == 2);
    CU_ASSERT(r->params.bad_words[1] == 9 && r->params.logit_bias[0].id == 4);
    CU_ASSERT_STRING_EQUAL(r->salt, "pepper");
    CU_ASSERT(r->params.max_tokens == 5 && r->n_live == 2 && r->seqs[1].choice == 1);
    CU_ASSERT(r->seqs[0].state == SP_SEQ_WAITING && r->seqs[1].state == SP_SEQ_HELD);
    sp_request_destroy(r);
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_request_create(&r, &req, 5, 4, &err), SP_E_NOMEM);
    sp_mem_fail_at(0);
    sp_request_destroy(NULL);
}

static void states_move_as_the_table_says(void) {
    sp_request *r = make(5, 5, 1, 0);
    sp_seq *q = r->seqs;
    static const struct {
        sp_seq_event ev;
        sp_seq_state to;
    } walk[] = {{SP_SEQ_ADMIT, SP_SEQ_PREFILL},    {SP_SEQ_PREEMPT, SP_SEQ_WAITING},
                {SP_SEQ_PARK, SP_SEQ_PARKED},      {SP_SEQ_RESUME, SP_SEQ_WAITING},
                {SP_SEQ_ADMIT, SP_SEQ_PREFILL},    {SP_SEQ_PREFILLED, SP_SEQ_DECODE},
                {SP_SEQ_PREEMPT, SP_SEQ_WAITING},  {SP_SEQ_ADMIT, SP_SEQ_PREFILL},
                {SP_SEQ_PREFILLED, SP_SEQ_DECODE}, {SP_SEQ_END, SP_SEQ_DONE}};
    for (size_t i = 0; i < SP_LEN(walk); i++) {
        sp_seq_move(q, walk[i].ev);
        CU_ASSERT_EQUAL(q->state, walk[i].to);
    }
    CU_ASSERT_STRING_EQUAL(sp_seq_state_name(q->state), "DONE");
    CU_ASSERT_STRING_EQUAL(sp_seq_state_name(SP_SEQ_PARKED), "PARKED");
    sp_request_destroy(r);
}

static void tokens_are_seen_in_one_piece_across_prompt_and_output(void) {
    sp_request *r = make(6, 8, 1, 0);
    sp_seq *q = r->seqs;
    sp_err err = {0};
    int32_t scratch[8];
    CU_ASSERT_EQUAL_FATAL(sp_seq_reserve(q, 4, &err), SP_OK);
    for (int32_t i = 0; i < 8; i++) q->output[q->n_output++] = 100 + i;
    CU_ASSERT_PTR_EQUAL(sp_seq_tokens(q, 2, 4, scratch), r->prompt + 2);
    CU_ASSERT_PTR_EQUAL(sp_seq_tokens(q, 6, 8, scratch), q->output);
    const int32_t *t = sp_seq_tokens(q, 4, 4, scratch);
    CU_ASSERT(t == scratch && t[0] == 4 && t[1] == 5 && t[2] == 100 && t[3] == 101);
    CU_ASSERT_EQUAL(sp_seq_positions_max(q), 13);
    CU_ASSERT_EQUAL(q->blocks.cap, 4);
    sp_request_destroy(r);
}

static void names_are_those_of_the_chain_however_they_are_asked(void) {
    sp_kv_pool *pool = NULL;
    sp_kv_prefix *x = NULL;
    sp_err err = {0};
    sp_kv_prefix_config pc = {.block_tokens = 4, .identity = "m", .identity_bytes = 1};
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(&pool, 8, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_kv_prefix_create(&x, pool, &pc, &err), SP_OK);
    sp_request *r = make(10, 10, 2, 0);
    sp_kv_hash want[3], root;
    int32_t scratch[4], third[4] = {8, 9, 50, 51};
    sp_kv_prefix_root(x, NULL, 0, &root);
    sp_kv_prefix_next(x, &root, r->prompt, &want[0]);
    sp_kv_prefix_next(x, &want[0], r->prompt + 4, &want[1]);
    sp_kv_prefix_next(x, &want[1], third, &want[2]);
    for (int c = 0; c < 2; c++) {
        sp_seq *q = &r->seqs[c];
        CU_ASSERT_EQUAL_FATAL(sp_seq_reserve(q, 4, &err), SP_OK);
        q->output[0] = 50;
        q->output[1] = 51;
        q->n_output = 2;
        CU_ASSERT(memcmp(sp_seq_name(q, x, 2, 4, scratch), &want[2], sizeof root) == 0);
        CU_ASSERT(memcmp(sp_seq_name(q, x, 0, 4, scratch), &want[0], sizeof root) == 0);
        CU_ASSERT(memcmp(sp_seq_name(q, x, 1, 4, scratch), &want[1], sizeof root) == 0);
    }
    CU_ASSERT_EQUAL(r->n_named, 2);
    sp_request *own = make(10, 10, 1, 0);
    own->private_root = true;
    own->id = 77;
    CU_ASSERT(memcmp(sp_seq_name(own->seqs, x, 0, 4, scratch), &want[0], sizeof root) != 0);
    sp_request_destroy(own);
    sp_request_destroy(r);
    sp_kv_prefix_destroy(x);
    sp_kv_pool_destroy(pool);
}

static void the_first_in_order_is_always_on_top(void) {
    enum {
        N = 60
    };
    sp_request *r[N];
    sp_waitq w = {0};
    sp_err err = {0};
    srand(2);
    CU_ASSERT_EQUAL_FATAL(sp_waitq_reserve(&w, N, &err), SP_OK);
    for (int i = 0; i < N; i++) {
        r[i] = make(2, 2, 1, rand() % 3);
        r[i]->order = (uint64_t)(i + 1);
    }
    for (int i = 0; i < 20000; i++) {
        sp_seq *q = r[rand() % N]->seqs;
        if (q->heap_at < 0)
            sp_waitq_push(&w, q);
        else
            sp_waitq_remove(&w, q);
        const sp_seq *top = sp_waitq_top(&w), *first = NULL;
        for (int k = 0; k < N; k++)
            if (r[k]->seqs->heap_at >= 0 && (!first || sp_seq_before(r[k]->seqs, first)))
                first = r[k]->seqs;
        CU_ASSERT_PTR_EQUAL_FATAL(top, first);
        CU_ASSERT_FATAL(sp_waitq_check(&w));
    }
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_waitq_reserve(&w, 1000, &err), SP_E_NOMEM);
    sp_mem_fail_at(0);
    sp_waitq_fini(&w);
    for (int i = 0; i < N; i++) sp_request_destroy(r[i]);
}

SP_TEST_MAIN("runtime/engine/seq", SP_TEST(a_request_is_a_deep_copy),
             SP_TEST(states_move_as_the_table_says),
             SP_TEST(tokens_are_seen_in_one_piece_across_prompt_and_output),
             SP_TEST(names_are_those_of_the_chain_however_they_are_asked),
             SP_TEST(the_first_in_order_is_always_on_top))
