/* Two pods: one computes prompts and lends their blocks, the other takes them. Whatever is wrong with
 * what is lent, tokens are those that a plain run gives, and nothing stays held on either side. */
#include "runtime/base/chaos.h"
#include "runtime/base/mem.h"
#include "runtime/engine/sources.h"
#include "tests/kv_world.h"

#include <stdlib.h>
#include <string.h>

static const sp_pool_role PD[] = {SP_POOL_DECODE, SP_POOL_PREFILL, SP_POOL_MIXED};

static kv_world *world(int n, int n_blocks, kv_faults faults, const sp_engine_config *config) {
    static uint64_t seed = 1000;
    return kv_world_start(++seed, n, PD, n_blocks, faults, config);
}

/* The first leg: one token, and the prompt's blocks. */
static void lend(kv_world *w, ask *a, int32_t n_prompt, int32_t seed) {
    ask_init(a, n_prompt, seed);
    a->keep_kv = true;
    a->params.max_tokens = 1;
    ask_must_submit(&w->p, a);
    pod_finish(&w->p, a, 1);
    ask_check(a, 200);
    CU_ASSERT_PTR_NOT_NULL_FATAL(a->kv);
}

/* The second leg: the same prompt, with what was lent. */
static void take(kv_world *w, ask *a, const ask *lent, const sp_kv_import *from) {
    ask_init(a, lent->n_prompt, 0);
    memcpy(a->prompt, lent->prompt, sizeof a->prompt);
    a->from = from;
    ask_must_submit(&w->p, a);
    pod_finish(&w->p, a, 1);
    ask_check(a, 200);
}

/* Until every lease of `lender` has ended; leases of `w`, which waits for nobody, have by then. */
static void end_both(kv_world *lender, kv_world *w) {
    kv_world_settle(w);
    kv_world_settle(lender);
    kv_world_end(w);
    kv_world_end(lender);
}

static void what_one_pod_computed_another_one_takes(void) {
    kv_world *e = world(1, 64, (kv_faults){0}, NULL), *w = world(1, 64, (kv_faults){0}, NULL);
    kv_world_link(w, e);
    ask a, b;
    lend(e, &a, 150, 3);
    CU_ASSERT_EQUAL_FATAL(a.kv->n_blocks, 9);
    CU_ASSERT_EQUAL(a.kv->n_tokens, 144);
    CU_ASSERT(a.kv->lease != 0 && a.kv->expires_unix_ms > sp_unix_ms() + 20000);
    CU_ASSERT_EQUAL(GAUGE(&e->p, kv_lent), 9);
    sp_kv_import from = kv_world_import(e, a.kv);
    from.must = true;
    take(w, &b, &a, &from);
    CU_ASSERT_EQUAL(b.finish[0], SP_FINISH_LENGTH);
    CU_ASSERT_EQUAL(b.n_cached, 0);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_blocks_pulled), 9);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_bytes_pulled), 9 * 4096);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_queries), 144);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_hits), 144);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_prompt_tokens), 144);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_failed_xfers), 0);
    const sp_engine_metrics *m = sp_engine_get_metrics(w->p.engine);
    CU_ASSERT_EQUAL(pod_observed(&m->kv_xfer_s), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->kv_post_s), 1);
    CU_ASSERT_EQUAL(pod_observed(&m->kv_xfer_blocks), 1);
    CU_ASSERT(sp_histogram_sum(&m->kv_xfer_bytes) == 9 * 4096);
    kv_world_settle(e); /* it was given back: nothing has run out */
    CU_ASSERT_EQUAL(COUNTER(&e->p, kv_expired), 0);
    kv_world_wait_leaves(w, 1);
    ask_fini(&a);
    end_both(e, w);
}

static void what_is_cached_already_is_not_pulled(void) {
    kv_world *e = world(1, 64, (kv_faults){0}, NULL), *w = world(1, 64, (kv_faults){0}, NULL);
    kv_world_link(w, e);
    ask a, b, c;
    lend(e, &a, 150, 3);
    ask_init(&c, 70, 3);
    ask_must_submit(&w->p, &c);
    pod_finish(&w->p, &c, 1);
    sp_kv_import from = kv_world_import(e, a.kv);
    take(w, &b, &a, &from);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_blocks_pulled), 5);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_queries), 80);
    CU_ASSERT_EQUAL(b.n_cached, 64);
    ask d; /* all of it is there by now: the lease is given back, and that is all */
    take(w, &d, &a, &from);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_blocks_pulled), 5);
    CU_ASSERT_EQUAL(d.n_cached, 144);
    kv_world_settle(w);
    ask_fini(&a);
    end_both(e, w);
}

typedef enum harm {
    HARM_NAME,
    HARM_GENERATION,
    HARM_BLOCK,
    HARM_NO_GENERATION,
    HARM_EXPIRED,
    HARM_SOURCE,
    HARM_UNKNOWN_SOURCE,
    HARM_COUNT
} harm;

static const sp_kv_cause harm_causes[HARM_COUNT] = {
    [HARM_NAME] = SP_KV_FOREIGN,        [HARM_GENERATION] = SP_KV_STALE, [HARM_BLOCK] = SP_KV_RANGE,
    [HARM_NO_GENERATION] = SP_KV_RANGE, [HARM_EXPIRED] = SP_KV_EXPIRED,  [HARM_SOURCE] = SP_KV_PEER,
    [HARM_UNKNOWN_SOURCE] = SP_KV_PEER,
};

static void spoil(sp_kv_import *from, sp_kv_handle *h, harm what, int32_t at) {
    if (what == HARM_NAME) h->blocks[at].name ^= 1;
    if (what == HARM_GENERATION) h->blocks[at].generation += 1000;
    if (what == HARM_BLOCK) h->blocks[at].block = UINT32_MAX;
    if (what == HARM_NO_GENERATION) h->blocks[at].generation = 0;
    if (what == HARM_EXPIRED) h->expires_unix_ms = sp_unix_ms() - 1;
    if (what == HARM_SOURCE) from->source = (sp_slice){"{\"tp\":0}", 8};
    if (what == HARM_UNKNOWN_SOURCE)
        from->source =
            (sp_slice){"{\"tp\":1,\"pp\":1,\"pp_layers\":[1],\"ranks\":[\"nobody\"]}", 50};
}

static void a_wrong_handle_is_a_miss_or_the_end_of_who_must_have_it(void) {
    for (int what = 0; what < HARM_COUNT; what++)
        for (int must = 0; must < 2; must++) {
            sp_engine_config config = kv_world_config();
            config.kv_lease_ns = 40 * SP_NS_PER_MS; /* nobody who could is told sometimes */
            kv_world *e = world(1, 64, (kv_faults){0}, &config);
            kv_world *w = world(1, 64, (kv_faults){0}, NULL);
            kv_world_link(w, e);
            ask a, b;
            lend(e, &a, 150, 3);
            sp_kv_import from = kv_world_import(e, a.kv);
            from.must = must;
            spoil(&from, a.kv, (harm)what, 4);
            take(w, &b, &a, &from);
            CU_ASSERT_EQUAL(b.finish[0], must ? SP_FINISH_ERROR : SP_FINISH_LENGTH);
            CU_ASSERT_EQUAL(b.error[0], must ? SP_E_UNAVAILABLE : SP_OK);
            const char *name = sp_kv_cause_name(harm_causes[what]);
            if (must && what != HARM_GENERATION) CU_ASSERT_PTR_NOT_NULL(strstr(b.text, name));
            const sp_engine_metrics *m = sp_engine_get_metrics(w->p.engine);
            CU_ASSERT(sp_counter_get(&m->kv_failures[harm_causes[what]]) > 0 ||
                      what == HARM_UNKNOWN_SOURCE);
            CU_ASSERT_EQUAL(COUNTER(&w->p, kv_failed_notices), what == HARM_SOURCE);
            kv_world_settle(w);
            kv_world_wait_leaves(w, what != HARM_SOURCE);
            ask_fini(&a);
            end_both(e, w);
        }
}

static void a_lease_that_nobody_gives_back_runs_out(void) {
    sp_engine_config config = kv_world_config();
    config.kv_lease_ns = 5 * SP_NS_PER_MS;
    kv_world *e = world(1, 64, (kv_faults){0}, &config);
    ask a;
    lend(e, &a, 150, 3);
    kv_world_settle(e);
    CU_ASSERT_EQUAL(COUNTER(&e->p, kv_expired), 1);
    ask_fini(&a);
    kv_world_end(e);
}

static void a_lease_that_is_renewed_does_not_run_out(void) {
    sp_engine_config config = kv_world_config();
    config.kv_lease_ns = 250 * SP_NS_PER_MS;
    kv_world *e = world(1, 64, (kv_faults){0}, &config);
    kv_world *w = world(1, 64, (kv_faults){.slow = 100, .slow_ticks = 600}, NULL);
    kv_world_link(w, e);
    ask a, b;
    lend(e, &a, 150, 3);
    sp_kv_import from = kv_world_import(e, a.kv);
    from.must = true;
    take(w, &b, &a, &from);
    CU_ASSERT_EQUAL(b.finish[0], SP_FINISH_LENGTH);
    CU_ASSERT_EQUAL(COUNTER(&w->p, kv_blocks_pulled), 9);
    kv_world_settle(e);
    CU_ASSERT_EQUAL(COUNTER(&e->p, kv_expired), 0);
    ask_fini(&a);
    end_both(e, w);
}

static void nobody_starves_for_what_is_lent(void) {
    kv_world *e = world(1, 16, (kv_faults){0}, NULL);
    ask a[3], b;
    int32_t n = 0;
    for (int i = 0; i < 3; i++) {
        lend(e, &a[i], 100, 3 + i);
        n += a[i].kv->n_blocks;
    }
    CU_ASSERT_EQUAL(a[0].kv->n_blocks, 6);
    CU_ASSERT_EQUAL(a[1].kv->n_blocks, 2); /* half of 16, and no more */
    CU_ASSERT_EQUAL(a[2].kv->n_blocks, 0);
    CU_ASSERT(a[2].kv->lease != 0);
    CU_ASSERT_EQUAL(n, 8);
    CU_ASSERT_EQUAL(GAUGE(&e->p, kv_lent), 8);
    /* It needs nearly all that there is. */
    ask_init(&b, 180, 9);
    b.params.max_tokens = 20;
    ask_must_submit(&e->p, &b);
    pod_finish(&e->p, &b, 1);
    ask_check(&b, 200);
    CU_ASSERT_EQUAL(b.finish[0], SP_FINISH_LENGTH);
    CU_ASSERT(COUNTER(&e->p, kv_expired) >= 1);
    for (int i = 0; i < 3; i++) ask_fini(&a[i]);
    kv_world_end(e);
}

static void one_prompt_lent_twice_is_held_once(void) {
    sp_engine_config config = kv_world_config();
    config.kv_lease_ns = 300 * SP_NS_PER_MS;
    kv_world *e = world(1, 64, (kv_faults){0}, &config);
    ask a, b;
    lend(e, &a, 100, 3);
    lend(e, &b, 100, 3);
    CU_ASSERT_EQUAL(a.kv->n_blocks, 6);
    CU_ASSERT_EQUAL(b.kv->n_blocks, 6);
    CU_ASSERT_NOT_EQUAL(a.kv->lease, b.kv->lease);
    CU_ASSERT_EQUAL(GAUGE(&e->p, kv_lent), 6);
    for (int i = 0; i < 6; i++) {
        CU_ASSERT_EQUAL(a.kv->blocks[i].block, b.kv->blocks[i].block);
        CU_ASSERT_EQUAL(a.kv->blocks[i].generation, b.kv->blocks[i].generation);
    }
    ask_fini(&a);
    ask_fini(&b);
    kv_world_settle(e);
    CU_ASSERT_EQUAL(COUNTER(&e->p, kv_expired), 2);
    kv_world_end(e);
}

static void there_is_always_a_handle_and_only_on_the_very_last_event(void) {
    sp_engine_config config = kv_world_config();
    config.kv_lease_ns = 5 * SP_NS_PER_MS;
    kv_world *e = world(2, 64, (kv_faults){0}, &config);
    ask a;
    lend(e, &a, 16, 3); /* its only block has the last token: none to lend */
    CU_ASSERT_EQUAL(a.kv->n_blocks, 0);
    ask_fini(&a);
    ask_init(&a, 100, 4); /* ask_take() sees to it that one event has it, the last */
    a.keep_kv = true;
    a.params.n = 4;
    a.params.temperature = 1;
    a.params.seed = 7;
    a.params.max_tokens = 5;
    ask_must_submit(&e->p, &a);
    pod_finish(&e->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_PTR_NOT_NULL_FATAL(a.kv);
    CU_ASSERT_EQUAL(a.kv->n_blocks, 6);
    CU_ASSERT_EQUAL(COUNTER(&e->p, prefilled_elsewhere), 0); /* it stays where it decodes */
    ask_fini(&a);
    kv_world_settle(e);
    kv_world_end(e);
}

static void sharing_that_was_not_set_up_is_refused(void) {
    for (int k = 0; k < 2; k++) {
        sp_engine_config config = kv_world_config();
        config.kv_shared = k == 1;
        config.enable_prefix_cache = k == 0;
        kv_world *e = world(2, 64, (kv_faults){0}, &config);
        ask a;
        sp_err err = {0};
        ask_init(&a, 100, 3);
        a.keep_kv = true;
        CU_ASSERT_EQUAL(ask_submit(&e->p, &a, SP_NEVER, &err), SP_E_UNSUPPORTED);
        sp_kv_handle none = {.lease = 1};
        sp_kv_import from = kv_world_import(e, &none);
        a.keep_kv = false;
        a.from = &from;
        CU_ASSERT_EQUAL(ask_submit(&e->p, &a, SP_NEVER, &err), SP_E_UNSUPPORTED);
        kv_world_end(e);
    }
}

static void a_cancelled_request_gives_the_lease_back(void) {
    kv_world *e = world(1, 64, (kv_faults){0}, NULL);
    kv_world *w = world(1, 64, (kv_faults){.slow = 100, .slow_ticks = 20}, NULL);
    kv_world_link(w, e);
    ask a, b;
    lend(e, &a, 150, 3);
    sp_kv_import from = kv_world_import(e, a.kv);
    ask_init(&b, 150, 3);
    b.from = &from;
    ask_must_submit(&w->p, &b);
    b.cancelled[0] = true;
    sp_engine_cancel(w->p.engine, b.id, -1, SP_FINISH_ABORT);
    kv_world_settle(e);
    CU_ASSERT_EQUAL(COUNTER(&e->p, kv_expired), 0);
    ask_fini(&a);
    end_both(e, w);
}

static void more_pods_than_there_are_numbers_take_turns(void) {
    kv_world *e = world(1, 512, (kv_faults){0}, NULL), *w = world(2, 512, (kv_faults){0}, NULL);
    kv_world_link(w, e);
    for (int i = 0; i < 2 * SP_KV_SOURCES_MAX + 5; i++) {
        ask a, b;
        lend(e, &a, 20, 100 + i);
        sp_kv_import from = kv_world_import(e, a.kv);
        snprintf(from.engine, sizeof from.engine, "pod %d", i);
        from.must = true;
        take(w, &b, &a, &from);
        CU_ASSERT_EQUAL(b.finish[0], SP_FINISH_LENGTH);
        ask_fini(&a);
    }
    end_both(e, w);
}

static void a_lease_that_ends_under_the_reader_costs_time_and_no_token(void) {
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_chaos_setup("kv.lease=1@7", &err), SP_OK);
    kv_world *w = world(2, 64, (kv_faults){0}, NULL);
    for (int i = 0; i < 20; i++) {
        ask a;
        ask_init(&a, 150, 3 + i);
        ask_must_submit(&w->p, &a);
        pod_finish(&w->p, &a, 1);
        ask_check(&a, 200);
    }
    CU_ASSERT(COUNTER(&w->p, kv_expired) >= 20);
    CU_ASSERT_EQUAL(COUNTER(&w->p, prefilled_elsewhere), 0);
    kv_world_settle(w);
    kv_world_end(w);
    CU_ASSERT_EQUAL(sp_chaos_setup("", &err), SP_OK);
}

/* ---- whatever happens ---- */

typedef struct tally {
    uint64_t causes[SP_KV_CAUSE_COUNT], hits, misses, expired, errors, notices;
} tally;

static void count(tally *t, kv_world *e, kv_world *w) {
    const sp_engine_metrics *m = sp_engine_get_metrics(w->p.engine);
    for (int i = 0; i < SP_KV_CAUSE_COUNT; i++) t->causes[i] += sp_counter_get(&m->kv_failures[i]);
    uint64_t hits = COUNTER(&w->p, kv_hits), queries = COUNTER(&w->p, kv_queries);
    CU_ASSERT(hits <= queries);
    t->hits += hits;
    t->misses += queries - hits;
    t->expired += COUNTER(&e->p, kv_expired);
    t->notices += COUNTER(&w->p, kv_failed_notices);
}

static void storm_of_one(kv_world *e, kv_world *w, uint64_t *s, tally *t) {
    ask a, b;
    lend(e, &a, 1 + (int32_t)kv_chance(s, 180), (int32_t)kv_chance(s, 5));
    sp_kv_import from = kv_world_import(e, a.kv);
    from.must = kv_chance(s, 3) == 0;
    harm what = (harm)kv_chance(s, 3 * HARM_COUNT);
    if (a.kv->n_blocks > 0 && what < HARM_COUNT)
        spoil(&from, a.kv, what, (int32_t)kv_chance(s, (uint32_t)a.kv->n_blocks));
    ask_init(&b, a.n_prompt, 0);
    memcpy(b.prompt, a.prompt, sizeof b.prompt);
    int32_t other = (int32_t)kv_chance(s, (uint32_t)b.n_prompt);
    if (kv_chance(s, 10) == 0) b.prompt[other] = (b.prompt[other] + 1) % VOCAB; /* not the same */
    b.from = &from;
    b.keep_kv = kv_chance(s, 8) == 0;
    b.params.n = 1 + (int32_t)(kv_chance(s, 5) == 0);
    b.params.max_tokens = 1 + (int32_t)kv_chance(s, 6);
    if (kv_chance(s, 10) == 0) b.params.n_prompt_logprobs = 0;
    ask_must_submit(&w->p, &b);
    if (kv_chance(s, 6) == 0) {
        for (int32_t c = 0; c < b.params.n; c++) b.cancelled[c] = true;
        sp_engine_cancel(w->p.engine, b.id, -1, SP_FINISH_ABORT);
    }
    pod_finish(&w->p, &b, 1);
    ask_check(&b, 200);
    bool failed = !b.cancelled[0] && b.finish[0] == SP_FINISH_ERROR;
    if (failed) CU_ASSERT(from.must && b.error[0] == SP_E_UNAVAILABLE);
    t->errors += failed;
    ask_fini(&a);
    ask_fini(&b);
}

static void storm(uint64_t seed, tally *t) {
    uint64_t s = seed * 104729 + 7;
    static const int fails[] = {0, 5, 30, 100};
    kv_faults f = {.block = fails[kv_chance(&s, 4)], .leave_lost = 20};
    if (kv_chance(&s, 4) == 0) f.truncated = 40;
    if (kv_chance(&s, 8) == 0) f.slow = 30;
    if (kv_chance(&s, 12) == 0) f.lost = 30;
    sp_engine_config lends = kv_world_config(), takes = kv_world_config();
    lends.kv_lease_ns = (kv_chance(&s, 6) == 0 ? 1 : 8) * SP_NS_PER_MS;
    takes.kv_lease_ns = 6 * SP_NS_PER_MS; /* of what it lends itself; and of lost answers */
    takes.kv_timeout_ns = 3 * SP_NS_PER_MS;
    kv_world *e =
        world(1 + (int)kv_chance(&s, 2), 14 + (int)kv_chance(&s, 40), (kv_faults){0}, &lends);
    kv_world *w = world(1 + (int)kv_chance(&s, 3), 14 + (int)kv_chance(&s, 40), f, &takes);
    kv_world_link(w, e);
    for (int i = 0; i < 8; i++) storm_of_one(e, w, &s, t);
    kv_world_settle(w);
    kv_world_settle(e);
    count(t, e, w);
    kv_world_end(w);
    kv_world_end(e);
}

static void whatever_happens_the_tokens_are_the_same(void) {
    const char *more = getenv("SP_TEST_SEEDS");
    int seeds = more ? atoi(more) : 100;
    tally t = {0};
    for (int i = 0; i < seeds; i++) storm((uint64_t)i + 1, &t);
    for (int i = SP_KV_STALE; seeds >= 100 && i < SP_KV_CAUSE_COUNT; i++)
        if (i != SP_KV_LOST && i != SP_KV_PREFILL_ENDED && i != SP_KV_NO_ROOM)
            CU_ASSERT(t.causes[i] > 0);
    CU_ASSERT(t.hits && t.misses && t.expired && t.errors && t.notices);
}

SP_TEST_MAIN("runtime/engine/engine lends", SP_TEST(what_one_pod_computed_another_one_takes),
             SP_TEST(what_is_cached_already_is_not_pulled),
             SP_TEST(a_wrong_handle_is_a_miss_or_the_end_of_who_must_have_it),
             SP_TEST(a_lease_that_nobody_gives_back_runs_out),
             SP_TEST(a_lease_that_is_renewed_does_not_run_out),
             SP_TEST(nobody_starves_for_what_is_lent), SP_TEST(one_prompt_lent_twice_is_held_once),
             SP_TEST(there_is_always_a_handle_and_only_on_the_very_last_event),
             SP_TEST(sharing_that_was_not_set_up_is_refused),
             SP_TEST(a_cancelled_request_gives_the_lease_back),
             SP_TEST(more_pods_than_there_are_numbers_take_turns),
             SP_TEST(a_lease_that_ends_under_the_reader_costs_time_and_no_token),
             SP_TEST(whatever_happens_the_tokens_are_the_same))
