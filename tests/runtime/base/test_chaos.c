/* Covers runtime/base/chaos.c: what arms a fault point, and when one fires. */
#include "runtime/base/chaos.h"

#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

#define PASSES 4000

static void must_arm(const char *text) {
    sp_err err = {0};
    sp_status st = sp_chaos_setup(text, &err);
    if (st != SP_OK) fprintf(stderr, "'%s': %s\n", text ? text : "", err.text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static void pass(sp_chaos_point p, bool out[PASSES]) {
    for (int i = 0; i < PASSES; i++) out[i] = sp_chaos_hit(p);
}

static int count(const bool hits[PASSES]) {
    int n = 0;
    for (int i = 0; i < PASSES; i++) n += hits[i];
    return n;
}

static void nothing_fires_when_nothing_is_armed(void) {
    const char *const none[] = {NULL, ""};
    for (size_t t = 0; t < SP_LEN(none); t++) {
        must_arm("kvx.corrupt=1,kv.slow=1@3");
        CU_ASSERT(sp_chaos_armed());
        must_arm(none[t]);
        CU_ASSERT(!sp_chaos_armed());
        for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++) CU_ASSERT(!sp_chaos_hit((sp_chaos_point)p));
    }
}

static void every_point_can_be_armed_by_its_name_and_alone(void) {
    for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++) {
        char text[80];
        snprintf(text, sizeof text, "%s=1", sp_chaos_name((sp_chaos_point)p));
        must_arm(text);
        for (int q = 0; q < SP_CHAOS_POINT_COUNT; q++) {
            CU_ASSERT_EQUAL(sp_chaos_hit((sp_chaos_point)q), p == q);
            CU_ASSERT_EQUAL(sp_chaos_fired((sp_chaos_point)q), p == q);
        }
    }
    CU_ASSERT_STRING_EQUAL(sp_chaos_name(SP_CHAOS_KVX_PEER_GONE), "kvx.peer_gone");
    CU_ASSERT_STRING_EQUAL(sp_chaos_name(SP_CHAOS_POINT_COUNT), "unknown");
    must_arm(NULL);
}

static void probability_one_always_fires_zero_never_and_between_about_as_often(void) {
    static bool hits[PASSES];
    must_arm("kvx.corrupt=1,kvx.stale=0,kvx.foreign=0.25,kvx.truncate=1e-1@42");
    pass(SP_CHAOS_KVX_CORRUPT, hits);
    CU_ASSERT_EQUAL(count(hits), PASSES);
    pass(SP_CHAOS_KVX_STALE, hits);
    CU_ASSERT_EQUAL(count(hits), 0);
    pass(SP_CHAOS_KVX_FOREIGN, hits);
    CU_ASSERT(count(hits) > PASSES * 22 / 100 && count(hits) < PASSES * 28 / 100);
    CU_ASSERT_EQUAL(sp_chaos_fired(SP_CHAOS_KVX_FOREIGN), (uint64_t)count(hits));
    pass(SP_CHAOS_KVX_TRUNCATE, hits);
    CU_ASSERT(count(hits) > PASSES * 8 / 100 && count(hits) < PASSES * 12 / 100);
    must_arm(NULL);
}

static void a_seed_repeats_its_draws_and_another_has_others(void) {
    static bool first[PASSES], again[PASSES], other[PASSES], point[PASSES];
    must_arm("kvx.corrupt=0.5,kv.lease=0.5@7");
    pass(SP_CHAOS_KVX_CORRUPT, first);
    pass(SP_CHAOS_KV_LEASE, point);
    must_arm("kv.lease=0.5,kvx.corrupt=0.5@7");
    CU_ASSERT_EQUAL(sp_chaos_fired(SP_CHAOS_KVX_CORRUPT), 0);
    /* What other points do in between changes nothing. */
    for (int i = 0; i < PASSES; i++) {
        again[i] = sp_chaos_hit(SP_CHAOS_KVX_CORRUPT);
        if (i % 3 == 0) (void)sp_chaos_hit(SP_CHAOS_KV_LEASE);
    }
    must_arm("kvx.corrupt=0.5@8");
    pass(SP_CHAOS_KVX_CORRUPT, other);
    CU_ASSERT_EQUAL(memcmp(first, again, sizeof first), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(first, other, sizeof first), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(first, point, sizeof first), 0);
    must_arm("kvx.corrupt=0.5");
    pass(SP_CHAOS_KVX_CORRUPT, first);
    must_arm("kvx.corrupt=0.5@0");
    pass(SP_CHAOS_KVX_CORRUPT, again);
    CU_ASSERT_EQUAL(memcmp(first, again, sizeof first), 0);
    must_arm(NULL);
}

static void what_cannot_be_read_is_named_and_arms_nothing(void) {
    static const struct {
        const char *text, *says;
    } bad[] = {{"kvx.corupt=0.5", "'kvx.corupt' is no fault point"},
               {"=0.5", "'' is no fault point"},
               {"@7", "'' is no fault point"},
               {"kv.slow=1,", "'' is no fault point"},
               {",kv.slow=1", "'' is no fault point"},
               {" kv.slow=1", "' kv.slow' is no fault point"},
               {"kv.slow", "'kv.slow' has probability ''"},
               {"kv.slow=", "'kv.slow' has probability ''"},
               {"kv.slow=often", "'often', want 0 to 1"},
               {"kv.slow=1.01", "'1.01', want 0 to 1"},
               {"kv.slow=-0.1", "'-0.1', want 0 to 1"},
               {"kv.slow=nan", "'nan', want 0 to 1"},
               {"kv.slow=0.5=1", "'0.5=1', want 0 to 1"},
               {"kv.slow=1,kv.slow=1", "'kv.slow' is there twice"},
               {"kv.slow=1@", "seed of fault points is ''"},
               {"kv.slow=1@-1", "seed of fault points is '-1'"},
               {"kv.slow=1@x7", "seed of fault points is 'x7'"},
               {"kv.slow=1@7@8", "seed of fault points is '7@8'"},
               {"kv.slow=1@9223372036854775808", "seed of fault points is '9223372036854775808'"},
               {"kv.slow=1,kvx.corrupt=1,kv.lease=2", "'kv.lease' has probability '2'"}};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_err err = {0};
        must_arm("kv.slow=1");
        CU_ASSERT_EQUAL(sp_chaos_setup(bad[i].text, &err), SP_E_INVALID);
        if (!strstr(err.text, bad[i].says))
            fprintf(stderr, "'%s': '%s', want '%s'\n", bad[i].text, err.text, bad[i].says);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, bad[i].says));
        CU_ASSERT(!sp_chaos_armed() && !sp_chaos_hit(SP_CHAOS_KV_SLOW));
    }
    CU_ASSERT_EQUAL(sp_chaos_setup("x", NULL), SP_E_INVALID);
}

static void *pass_all(void *arg) {
    (void)arg;
    for (int i = 0; i < PASSES; i++) (void)sp_chaos_hit(SP_CHAOS_KVX_FOREIGN);
    return NULL;
}

/* Which thread gets which pass is open; that each pass is counted and drawn once is not. */
static void passes_of_several_threads_are_the_same_draws(void) {
    sp_thread t[4] = {0};
    uint64_t alone = 0;
    must_arm("kvx.foreign=0.3@11");
    for (int i = 0; i < 4 * PASSES; i++) alone += sp_chaos_hit(SP_CHAOS_KVX_FOREIGN);
    must_arm("kvx.foreign=0.3@11");
    for (size_t i = 0; i < SP_LEN(t); i++)
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&t[i], "passer", pass_all, NULL, NULL), SP_OK);
    for (size_t i = 0; i < SP_LEN(t); i++) sp_thread_join(&t[i]);
    CU_ASSERT_EQUAL(sp_chaos_fired(SP_CHAOS_KVX_FOREIGN), alone);
    must_arm(NULL);
}

SP_TEST_MAIN("base/chaos", SP_TEST(nothing_fires_when_nothing_is_armed),
             SP_TEST(every_point_can_be_armed_by_its_name_and_alone),
             SP_TEST(probability_one_always_fires_zero_never_and_between_about_as_often),
             SP_TEST(a_seed_repeats_its_draws_and_another_has_others),
             SP_TEST(what_cannot_be_read_is_named_and_arms_nothing),
             SP_TEST(passes_of_several_threads_are_the_same_draws))
