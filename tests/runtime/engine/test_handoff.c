#include "runtime/engine/handoff.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <string.h>

/* A world around the core that keeps its own books of who holds what. */
typedef struct world {
    sp_handoff h;
    uint64_t s, ticket;
    bool src[64], dst[64], named[64];
    bool prefill_alive, source_gone, target_gone;
    int given;
    bool over, request_gone, expired;
    bool foreign; /* of another pod: nobody here holds the source */
} world;

static uint32_t chance(world *w, uint32_t n) {
    w->s = w->s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(w->s >> 33) % n;
}

static void pull(world *w, sp_handoff_act act) {
    int32_t n = act.to;
    if (chance(w, 6) == 0) n = act.from + (int32_t)chance(w, (uint32_t)(act.to - act.from) + 1);
    for (int32_t i = act.from; i < n; i++) {
        CU_ASSERT_FATAL((w->src[i] || w->foreign) && !w->dst[i]);
        w->dst[i] = true;
    }
    sp_handoff_pull_sent(&w->h, n);
}

static void settle(world *w, sp_handoff_act act) {
    for (int32_t i = act.from; i < act.to; i++) {
        CU_ASSERT_FATAL(w->dst[i]);
        w->dst[i] = false;
        if (i < act.good && !w->request_gone && !w->given) w->named[i] = true;
    }
}

static void act_on(world *w) {
    while (!w->over) {
        sp_handoff_act act = sp_handoff_next(&w->h);
        CU_ASSERT_FATAL(sp_handoff_check(&w->h));
        switch (act.what) {
        case SP_HANDOFF_NOTHING:
            return;
        case SP_HANDOFF_SEAL:
            CU_ASSERT_FALSE(w->given);
            sp_handoff_seal_sent(&w->h, act.to, ++w->ticket);
            break;
        case SP_HANDOFF_PULL:
            CU_ASSERT_FALSE(w->given);
            pull(w, act);
            break;
        case SP_HANDOFF_SETTLE:
            settle(w, act);
            break;
        case SP_HANDOFF_GIVE:
            CU_ASSERT_FALSE(w->request_gone);
            w->given++;
            break;
        case SP_HANDOFF_END_PREFILL:
            w->prefill_alive = false;
            sp_handoff_prefill_ended(&w->h);
            break;
        case SP_HANDOFF_RELEASE:
            for (int32_t i = act.from; i < act.to; i++) {
                CU_ASSERT_FATAL(w->src[i]);
                w->src[i] = false;
                /* Somebody still reads it. */
                CU_ASSERT_FATAL(!w->dst[i] || w->source_gone || w->expired);
            }
            break;
        case SP_HANDOFF_OVER:
            w->over = true;
            break;
        }
    }
}

static void compute(world *w, int32_t to) {
    int32_t from = sp_handoff_computed(&w->h, to);
    for (int32_t i = from; i < w->h.n_computed; i++) w->src[i] = true;
}

static void answer_pull(world *w, bool good) {
    int32_t from = w->h.n_pulled, to = w->h.n_pulling;
    if (!sp_handoff_pulls(&w->h)) return;
    int32_t good_to = good ? to : from + (int32_t)chance(w, (uint32_t)(to - from) + 1);
    sp_handoff_pulled(&w->h, good_to, SP_KV_CHECKSUM);
    sp_handoff_pulled(&w->h, to, SP_KV_OK); /* a duplicate changes nothing */
}

static void random_event(world *w) {
    int32_t done = w->h.n_computed;
    switch (chance(w, 40)) {
    case 0:
        if (!w->given) w->request_gone = true;
        sp_handoff_gone(&w->h);
        break;
    case 1:
        sp_handoff_fail(&w->h, SP_KV_LATE);
        break;
    case 2:
        w->prefill_alive = false;
        sp_handoff_prefill_ended(&w->h);
        break;
    case 3:
        w->source_gone = true;
        sp_handoff_source_lost(&w->h);
        break;
    case 4:
        w->expired = true;
        sp_handoff_expired(&w->h);
        break;
    default:
        if (w->prefill_alive && chance(w, 2)) {
            compute(w, (int32_t)chance(w, (uint32_t)w->h.n + 4)); /* backwards too */
        } else if (chance(w, 2)) {
            sp_handoff_sealed(&w->h, chance(w, (uint32_t)w->ticket + 2));
        } else {
            answer_pull(w, chance(w, 8) > 0);
        }
    }
    CU_ASSERT_FATAL(w->h.n_computed >= done);
}

/* The rest answers in good order, as ranks do that live. */
static void finish(world *w) {
    for (int i = 0; i < 200 && !w->over; i++) {
        if (w->prefill_alive) compute(w, w->h.n);
        sp_handoff_sealed(&w->h, w->ticket);
        answer_pull(w, true);
        act_on(w);
        if (w->h.n_computed == w->h.n && w->prefill_alive) {
            w->prefill_alive = false;
            sp_handoff_prefill_ended(&w->h);
        }
    }
}

static void in_any_order_nothing_is_lost_and_the_request_is_given_once(void) {
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        world w = {.s = seed, .foreign = seed % 4 == 0};
        int32_t n = 1 + (int32_t)chance(&w, 60);
        int32_t first = (int32_t)chance(&w, (uint32_t)n + w.foreign);
        w.prefill_alive = !w.foreign;
        if (w.foreign)
            sp_handoff_init_sealed(&w.h, first, n);
        else
            sp_handoff_init(&w.h, first, n);
        for (uint32_t i = chance(&w, 80); i > 0 && !w.over; i--) {
            random_event(&w);
            act_on(&w);
        }
        finish(&w);
        CU_ASSERT_FATAL(w.over);
        CU_ASSERT_EQUAL(w.given, w.request_gone ? 0 : 1);
        for (int32_t i = 0; i < 64; i++) CU_ASSERT_FATAL(!w.src[i] && !w.dst[i]);
        for (int32_t i = first + 1; i < n; i++) CU_ASSERT(!w.named[i] || w.named[i - 1]);
    }
}

static void undisturbed_every_block_arrives(void) {
    world w = {.s = 1, .prefill_alive = true};
    sp_handoff_init(&w.h, 2, 40);
    compute(&w, 10);
    sp_handoff_act act = sp_handoff_next(&w.h);
    CU_ASSERT(act.what == SP_HANDOFF_SEAL && act.from == 2 && act.to == 10);
    sp_handoff_seal_sent(&w.h, 10, 7);
    compute(&w, 40);
    sp_handoff_sealed(&w.h, 6);
    CU_ASSERT_EQUAL(sp_handoff_next(&w.h).what, SP_HANDOFF_NOTHING);
    sp_handoff_sealed(&w.h, 7);
    /* The next ones are sealed while these are pulled. */
    act = sp_handoff_next(&w.h);
    CU_ASSERT(act.what == SP_HANDOFF_SEAL && act.from == 10 && act.to == 40);
    sp_handoff_seal_sent(&w.h, 40, 8);
    act = sp_handoff_next(&w.h);
    CU_ASSERT(act.what == SP_HANDOFF_PULL && act.from == 2 && act.to == 10);
    sp_handoff_pull_sent(&w.h, 10);
    sp_handoff_pulled(&w.h, 10, SP_KV_OK);
    sp_handoff_sealed(&w.h, 8);
    for (int i = 2; i < 10; i++) w.dst[i] = true;
    w.ticket = 8;
    w.s = 3;
    finish(&w);
    CU_ASSERT_FALSE(w.h.failed && w.h.cause != SP_KV_NO_ROOM);
    CU_ASSERT(w.over && w.given == 1);
}

static void a_lease_that_ends_lets_the_source_go_and_not_what_may_be_written(void) {
    world w = {.s = 1, .prefill_alive = true};
    sp_handoff_init(&w.h, 0, 8);
    compute(&w, 6);
    act_on(&w); /* sealing 0..6 */
    sp_handoff_sealed(&w.h, w.ticket);
    w.s = 5; /* there is room for all of them */
    act_on(&w);
    CU_ASSERT_FATAL(sp_handoff_pulls(&w.h));
    int32_t to = w.h.n_pulling;
    w.expired = true;
    sp_handoff_expired(&w.h);
    act_on(&w);
    CU_ASSERT_EQUAL(w.given, 1);
    CU_ASSERT_EQUAL(w.h.cause, SP_KV_EXPIRED);
    CU_ASSERT_FALSE(w.over);
    for (int i = 0; i < 8; i++) CU_ASSERT(!w.src[i] && w.dst[i] == (i < to));
    answer_pull(&w, true); /* it comes, late */
    act_on(&w);
    CU_ASSERT(w.over && !w.prefill_alive);
    for (int i = 0; i < 8; i++) CU_ASSERT(!w.dst[i] && !w.named[i]);
}

static void blocks_of_another_pod_are_only_pulled(void) {
    sp_handoff h;
    sp_handoff_init_sealed(&h, 2, 7);
    sp_handoff_act act = sp_handoff_next(&h);
    CU_ASSERT(act.what == SP_HANDOFF_PULL && act.from == 2 && act.to == 7);
    sp_handoff_pull_sent(&h, 7);
    CU_ASSERT_EQUAL(sp_handoff_next(&h).what, SP_HANDOFF_NOTHING);
    sp_handoff_pulled(&h, 5, SP_KV_FOREIGN);
    act = sp_handoff_next(&h);
    CU_ASSERT(act.what == SP_HANDOFF_SETTLE && act.from == 2 && act.to == 7 && act.good == 5);
    CU_ASSERT_EQUAL(sp_handoff_next(&h).what, SP_HANDOFF_GIVE);
    CU_ASSERT_EQUAL(sp_handoff_next(&h).what, SP_HANDOFF_OVER);
    CU_ASSERT(h.failed && h.cause == SP_KV_FOREIGN);
    sp_handoff_init_sealed(&h, 3, 3); /* nothing is needed */
    CU_ASSERT_EQUAL(sp_handoff_next(&h).what, SP_HANDOFF_GIVE);
    CU_ASSERT_EQUAL(sp_handoff_next(&h).what, SP_HANDOFF_OVER);
    CU_ASSERT_FALSE(h.failed);
}

SP_TEST_MAIN("runtime/engine/handoff",
             SP_TEST(in_any_order_nothing_is_lost_and_the_request_is_given_once),
             SP_TEST(undisturbed_every_block_arrives),
             SP_TEST(a_lease_that_ends_lets_the_source_go_and_not_what_may_be_written),
             SP_TEST(blocks_of_another_pod_are_only_pulled))
