/* Several groups of ranks in one engine: prompts computed by one group for another, with everything
 * that can go wrong on the way; the oracle sees any token that is not what it would be alone. */
#include "runtime/base/mem.h"
#include "tests/kv_world.h"

#include <stdlib.h>
#include <string.h>

enum {
    ASKS = 12
};

static const sp_pool_role PD[] = {SP_POOL_DECODE, SP_POOL_PREFILL, SP_POOL_PREFILL, SP_POOL_MIXED};

static void a_prompt_is_computed_by_another_group(void) {
    kv_world *c = kv_world_start(1, 2, PD, 64, (kv_faults){0}, NULL);
    ask a;
    ask_init(&a, 150, 3);
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(a.n_cached, 0);
    CU_ASSERT_EQUAL(COUNTER(&c->p, kv_blocks_pulled), 9);
    CU_ASSERT_EQUAL(COUNTER(&c->p, prefilled_elsewhere), 1);
    CU_ASSERT_EQUAL(COUNTER(&c->p, prefilled_here), 0);
    CU_ASSERT_EQUAL(COUNTER(&c->p, prompt_tokens), 150);
    kv_world_end(c);
}

static void what_did_not_really_arrive_is_seen_by_the_oracle(void) {
    kv_world *c = kv_world_start(1, 2, PD, 64, (kv_faults){.pretends = true}, NULL);
    ask a;
    ask_init(&a, 150, 3);
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    expectation x = expect(&a, 0, 200);
    CU_ASSERT(memcmp(a.out[0], x.out, (size_t)x.n * sizeof x.out[0]) != 0);
    kv_world_end(c);
}

static void choices_share_what_was_moved_once(void) {
    kv_world *c = kv_world_start(1, 2, PD, 96, (kv_faults){0}, NULL);
    ask a;
    ask_init(&a, 100, 4);
    a.params.n = 4;
    a.params.temperature = 1;
    a.params.seed = 7;
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(COUNTER(&c->p, kv_blocks_pulled), 6);
    kv_world_end(c);
}

static void asked_for_prompt_logprobs_it_is_not_split(void) {
    kv_world *c = kv_world_start(1, 2, PD, 64, (kv_faults){0}, NULL);
    ask a;
    ask_init(&a, 100, 4);
    a.params.n_prompt_logprobs = 1;
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(a.n_prompt_logprobs, 100);
    CU_ASSERT_EQUAL(COUNTER(&c->p, kv_blocks_pulled), 0);
    kv_world_end(c);
}

static void the_last_group_that_decodes_cannot_be_taken_away(void) {
    kv_world *c = kv_world_start(1, 2, PD, 64, (kv_faults){0}, NULL);
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 0, SP_POOL_PREFILL, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 1, SP_POOL_MIXED, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 0, SP_POOL_PREFILL, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 2, SP_POOL_MIXED, &err), SP_E_INVALID);
    sp_engine_group_status st;
    CU_ASSERT(sp_engine_group_info(c->p.engine, 0, &st) && st.role == SP_POOL_PREFILL);
    CU_ASSERT_FALSE(sp_engine_group_info(c->p.engine, 2, &st));
    kv_world_end(c);
}

/* What happened over all seeds: everything that can happen has to. */
typedef struct tally {
    uint64_t causes[SP_KV_CAUSE_COUNT];
    uint64_t pulled, failed, expired, elsewhere, here, lent, came, tokens;
} tally;

static void count(tally *t, kv_world *c) {
    const sp_engine_metrics *m = sp_engine_get_metrics(c->p.engine);
    for (int i = 0; i < SP_KV_CAUSE_COUNT; i++) t->causes[i] += sp_counter_get(&m->kv_failures[i]);
    t->pulled += COUNTER(&c->p, kv_blocks_pulled);
    t->failed += COUNTER(&c->p, kv_failed_xfers);
    t->expired += COUNTER(&c->p, kv_expired);
    t->elsewhere += COUNTER(&c->p, prefilled_elsewhere);
    t->here += COUNTER(&c->p, prefilled_here);
    t->came += COUNTER(&c->p, kv_hits);
    t->tokens += COUNTER(&c->p, kv_prompt_tokens);
    CU_ASSERT(COUNTER(&c->p, kv_hits) <= COUNTER(&c->p, kv_queries));
}

static kv_faults draw_faults(uint64_t *s) {
    static const int fails[] = {0, 5, 30, 100};
    kv_faults f = {.block = fails[kv_chance(s, 4)]};
    if (kv_chance(s, 4) == 0) f.truncated = 30;
    if (kv_chance(s, 8) == 0) f.slow = 30;
    if (kv_chance(s, 8) == 0) f.lost = 20;
    return f;
}

/* Answers that are lost are waited for no longer than this. */
static sp_engine_config impatient(kv_faults f) {
    sp_engine_config config = kv_world_config();
    if (f.lost) config.kv_timeout_ns = 3 * SP_NS_PER_MS;
    if (f.lost) config.kv_lease_ns = 6 * SP_NS_PER_MS;
    return config;
}

static void draw_ask(ask *a, uint64_t *s) {
    ask_init(a, 1 + (int32_t)kv_chance(s, 180), 1 + (int32_t)kv_chance(s, 4));
    a->params.n = 1 + (int32_t)(kv_chance(s, 4) == 0) * 2;
    a->params.max_tokens = 1 + (int32_t)kv_chance(s, 12);
    if (kv_chance(s, 8) == 0) a->params.n_prompt_logprobs = 0;
    a->keep_kv = kv_chance(s, 6) == 0;
}

static void disturb(kv_world *c, ask *asks, int i, uint64_t *s) {
    if (kv_chance(s, 3) == 0) {
        int k = (int)kv_chance(s, (uint32_t)i + 1);
        for (int32_t q = 0; q < asks[k].params.n; q++) asks[k].cancelled[q] = true;
        sp_engine_cancel(c->p.engine, asks[k].id, -1, SP_FINISH_ABORT);
    }
    sp_err err = {0};
    if (kv_chance(s, 4) == 0)
        (void)!sp_engine_set_role(c->p.engine, (int)kv_chance(s, (uint32_t)c->n),
                                  (sp_pool_role)kv_chance(s, 3), &err);
    if (kv_chance(s, 2)) (void)pod_pump(&c->p, 1);
}

/* Random prompts with common beginnings, cancels, failures of pulls, roles that change. */
static void storm(uint64_t seed, tally *t) {
    uint64_t s = seed * 7919 + 1;
    kv_faults faults = draw_faults(&s);
    sp_engine_config config = impatient(faults);
    config.kv_shared = kv_chance(&s, 2);
    int n = 2 + (int)kv_chance(&s, 3), blocks = 16 + (int)kv_chance(&s, 40);
    bool lends = config.kv_shared;
    if (lends) config.kv_lease_ns = 6 * SP_NS_PER_MS; /* nobody gives anything back */
    kv_world *c = kv_world_start(seed, n, PD, blocks, faults, &config);
    ask *asks = sp_alloc(ASKS * sizeof *asks);
    for (int i = 0; i < ASKS; i++) {
        draw_ask(&asks[i], &s);
        asks[i].keep_kv &= lends;
        ask_must_submit(&c->p, &asks[i]);
        disturb(c, asks, i, &s);
    }
    pod_finish(&c->p, asks, ASKS);
    for (int i = 0; i < ASKS; i++) {
        if (!asks[i].cancelled[0]) CU_ASSERT_EQUAL(asks[i].kv != NULL, asks[i].keep_kv);
        if (asks[i].kv) t->lent += (uint64_t)asks[i].kv->n_blocks;
        ask_check(&asks[i], c->p.config.max_model_len);
        ask_fini(&asks[i]);
    }
    kv_world_settle(c);
    count(t, c);
    sp_free(asks);
    kv_world_end(c);
}

static void whatever_happens_the_tokens_are_the_same(void) {
    const char *more = getenv("SP_TEST_SEEDS");
    int seeds = more ? atoi(more) : 100;
    tally t = {0};
    for (int i = 0; i < seeds; i++) storm((uint64_t)i + 1, &t);
    for (int i = SP_KV_STALE; i < SP_KV_CAUSE_COUNT; i++)
        if (seeds >= 100 && i != SP_KV_LOST && i != SP_KV_PREFILL_ENDED)
            CU_ASSERT(t.causes[i] > 0); /* a lost group is the end of the engine */
    CU_ASSERT(t.pulled && t.failed && t.expired && t.elsewhere && t.here && t.lent && t.tokens);
}

static void a_lost_rank_of_any_group_is_named(void) {
    kv_world *c = kv_world_start(1, 2, PD, 64, (kv_faults){0}, NULL);
    sp_fake_rank_fail_at(&c->nodes[1].rank, 2, SP_E_CLOSED);
    ask a;
    ask_init(&a, 150, 3);
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    CU_ASSERT_EQUAL(a.error[0], SP_E_PEER_LOST);
    char why[160];
    sp_engine_why(c->p.engine, why, sizeof why);
    CU_ASSERT_PTR_NOT_NULL(strstr(why, "rank 1 (group 1, pool 'prefill')"));
    CU_ASSERT_PTR_NOT_NULL(strstr(why, "): ")); /* and what became of it */
    kv_world_end(c);
}

SP_TEST_MAIN("runtime/engine/engine groups",
             {"a prompt is computed by another group", a_prompt_is_computed_by_another_group},
             {"what did not really arrive is seen by the oracle",
              what_did_not_really_arrive_is_seen_by_the_oracle},
             {"choices share what was moved once", choices_share_what_was_moved_once},
             {"asked for prompt log-probabilities it is not split",
              asked_for_prompt_logprobs_it_is_not_split},
             {"the last group that decodes cannot be taken away",
              the_last_group_that_decodes_cannot_be_taken_away},
             {"whatever happens, the tokens are the same",
              whatever_happens_the_tokens_are_the_same},
             {"a lost rank of any group is named", a_lost_rank_of_any_group_is_named})
