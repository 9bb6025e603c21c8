/* Several groups of ranks in one engine: prompts computed by one group for another, with everything
 * that can go wrong on the way. The ranks' side of the blocks is a copy of hashes between the null
 * models: a block that is missing, late or another one's changes the tokens. */
#include "runtime/base/mem.h"
#include "runtime/engine/dispatch.h"
#include "runtime/engine/handoff.h"
#include "tests/engine_pod.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
    GROUPS_MAX = 4,
    DONE_MAX = 256,
    BLOCKS_MAX = 512,
    ASKS = 12
};

typedef struct cluster cluster;
typedef struct node {
    cluster *c;
    sp_fake_rank rank;
    int index;
    sp_stage_kvx kvx;
    pthread_mutex_t lock; /* of the table, which other nodes read */
    uint32_t generation[BLOCKS_MAX];
    sp_wire_kv_pulled done[DONE_MAX];
    uint32_t *outcomes[DONE_MAX];
    int n_done, n_told;
    uint64_t seed;
} node;

struct cluster {
    pod p; /* engine and configuration */
    sp_fan *fan;
    node nodes[GROUPS_MAX];
    sp_engine_group groups[GROUPS_MAX];
    int n, n_blocks;
    int fail_percent;
    bool copies; /* false: says it did, and did not: the oracle must see that */
};

static uint32_t chance(uint64_t *s, uint32_t n) {
    *s = *s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*s >> 33) % n;
}

static sp_status node_seal(void *ctx, const sp_wire_kv_block *b, int32_t n, sp_err *err) {
    node *d = ctx;
    (void)err;
    pthread_mutex_lock(&d->lock);
    for (int32_t i = 0; i < n; i++) d->generation[b[i].block] = b[i].generation;
    pthread_mutex_unlock(&d->lock);
    return SP_OK;
}

static sp_status node_free(void *ctx, const sp_wire_kv_block *b, int32_t n, sp_err *err) {
    node *d = ctx;
    pthread_mutex_lock(&d->lock);
    bool same = true;
    for (int32_t i = 0; i < n; i++) {
        same = same && d->generation[b[i].block] == b[i].generation;
        d->generation[b[i].block] = 0;
    }
    pthread_mutex_unlock(&d->lock);
    return same ? SP_OK : SP_FAIL(err, SP_E_PROTOCOL, "freed what was not sealed");
}

/* Under the lock of the source: a block that is freed meanwhile is not read. */
static uint32_t copy_block(node *d, node *from, const sp_wire_kv_move *m) {
    uint32_t outcome = 0;
    size_t bytes = (size_t)d->c->p.config.block_tokens * sizeof(uint64_t);
    pthread_mutex_lock(&from->lock);
    if (from->generation[m->src_block] != m->generation)
        outcome = SP_KV_STALE;
    else if (d->c->copies)
        memcpy(sp_null_model_block(d->rank.null, (int32_t)m->dst_block),
               sp_null_model_block(from->rank.null, (int32_t)m->src_block), bytes);
    pthread_mutex_unlock(&from->lock);
    CU_ASSERT_EQUAL(outcome, 0); /* the head holds it until we have answered */
    if ((int)chance(&d->seed, 100) >= d->c->fail_percent) return outcome;
    memset(sp_null_model_block(d->rank.null, (int32_t)m->dst_block), 0xa5, bytes);
    return 1 + chance(&d->seed, SP_KV_NO_ROOM - 1);
}

static sp_status node_pull(void *ctx, const sp_wire_kv_pull *pull, sp_err *err) {
    node *d = ctx;
    (void)err;
    int at = d->n_done++ % DONE_MAX;
    uint32_t *o = sp_alloc((size_t)pull->n * sizeof *o);
    for (int32_t i = 0; i < pull->n; i++)
        o[i] = copy_block(d, &d->c->nodes[pull->source_group], &pull->moves[i]);
    sp_free(d->outcomes[at]);
    d->outcomes[at] = o;
    d->done[at] = (sp_wire_kv_pulled){.transfer = pull->transfer, .n = pull->n, .outcomes = o};
    sp_link_wake(d->rank.rank);
    return SP_OK;
}

static bool node_done(void *ctx, sp_wire_kv_pulled *out) {
    node *d = ctx;
    if (d->n_told == d->n_done) return false;
    *out = d->done[d->n_told++ % DONE_MAX];
    return true;
}

static void cluster_start(cluster *c, int n, const sp_pool_role *roles, int n_blocks, int fails) {
    sp_err err = {0};
    c->p.shape = NULL;
    c->p.config = pod_config();
    c->p.config.prefill_threshold_tokens = 16;
    c->n = n;
    c->n_blocks = n_blocks;
    c->fail_percent = fails;
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&c->fan, -1, &err), SP_OK);
    for (int i = 0; i < n; i++) pthread_mutex_init(&c->nodes[i].lock, NULL); /* before any thread */
    for (int i = 0; i < n; i++) {
        node *d = &c->nodes[i];
        d->c = c;
        d->index = i;
        d->seed = d->seed * 31 + (uint64_t)i + 1;
        d->kvx = (sp_stage_kvx){.seal = node_seal,
                                .free_blocks = node_free,
                                .pull = node_pull,
                                .poll_done = node_done,
                                .ctx = d};
        sp_fake_rank_config rc = {.offer = sp_fake_offer(VOCAB, n_blocks, 16),
                                  .eos = c->p.config.eos_ids,
                                  .n_eos = 1,
                                  .allowed = -1,
                                  .bell = sp_fan_bell(c->fan),
                                  .role = {.embeds = true, .samples = true},
                                  .kvx = &d->kvx};
        sp_fake_rank_open(&d->rank, &rc);
        CU_ASSERT_EQUAL_FATAL(sp_fan_add(c->fan, d->rank.head, &err), SP_OK);
        c->groups[i] = (sp_engine_group){
            .first_link = i, .n_links = 1, .n_stages = 1, .sampler = i, .role = roles[i]};
    }
    c->p.config.groups = c->groups;
    c->p.config.n_groups = n;
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&c->p.engine, &c->p.config, c->fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(c->p.engine, &err), SP_OK);
    pod_wait_state(&c->p, SP_ENGINE_READY);
}

static void cluster_end(cluster *c) {
    sp_engine_stop(c->p.engine);
    CU_ASSERT(sp_engine_check(c->p.engine));
    sp_engine_destroy(c->p.engine);
    sp_fan_close(c->fan);
    for (int i = 0; i < c->n; i++) {
        node *d = &c->nodes[i];
        sp_fake_rank_fini(&d->rank);
        for (int k = 0; k < DONE_MAX; k++) sp_free(d->outcomes[k]);
        pthread_mutex_destroy(&d->lock);
    }
    sp_free(c);
}

static cluster *new_cluster(uint64_t seed) {
    cluster *c = sp_alloc(sizeof *c);
    c->copies = true;
    for (int i = 0; i < GROUPS_MAX; i++) c->nodes[i].seed = seed;
    return c;
}

static const sp_pool_role PD[] = {SP_POOL_DECODE, SP_POOL_PREFILL, SP_POOL_PREFILL, SP_POOL_MIXED};

static void a_prompt_is_computed_by_another_group(void) {
    cluster *c = new_cluster(1);
    cluster_start(c, 2, PD, 64, 0);
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
    cluster_end(c);
}

static void what_did_not_really_arrive_is_seen_by_the_oracle(void) {
    cluster *c = new_cluster(1);
    c->copies = false;
    cluster_start(c, 2, PD, 64, 0);
    ask a;
    ask_init(&a, 150, 3);
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    expectation x = expect(&a, 0, 200);
    CU_ASSERT(memcmp(a.out[0], x.out, (size_t)x.n * sizeof x.out[0]) != 0);
    cluster_end(c);
}

static void choices_share_what_was_moved_once(void) {
    cluster *c = new_cluster(1);
    cluster_start(c, 2, PD, 96, 0);
    ask a;
    ask_init(&a, 100, 4);
    a.params.n = 4;
    a.params.temperature = 1;
    a.params.seed = 7;
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(COUNTER(&c->p, kv_blocks_pulled), 6);
    cluster_end(c);
}

static void asked_for_prompt_logprobs_it_is_not_split(void) {
    cluster *c = new_cluster(1);
    cluster_start(c, 2, PD, 64, 0);
    ask a;
    ask_init(&a, 100, 4);
    a.params.n_prompt_logprobs = 1;
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    ask_check(&a, 200);
    CU_ASSERT_EQUAL(a.n_prompt_logprobs, 100);
    CU_ASSERT_EQUAL(COUNTER(&c->p, kv_blocks_pulled), 0);
    cluster_end(c);
}

static void the_last_group_that_decodes_cannot_be_taken_away(void) {
    cluster *c = new_cluster(1);
    cluster_start(c, 2, PD, 64, 0);
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 0, SP_POOL_PREFILL, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 1, SP_POOL_MIXED, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 0, SP_POOL_PREFILL, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_engine_set_role(c->p.engine, 2, SP_POOL_MIXED, &err), SP_E_INVALID);
    sp_engine_group_status st;
    CU_ASSERT(sp_engine_group_info(c->p.engine, 0, &st) && st.role == SP_POOL_PREFILL);
    CU_ASSERT_FALSE(sp_engine_group_info(c->p.engine, 2, &st));
    cluster_end(c);
}

/* Random prompts with common beginnings, cancels, failures of pulls, roles that change. */
static void storm(uint64_t seed) {
    uint64_t s = seed * 7919 + 1;
    cluster *c = new_cluster(seed);
    int n = 2 + (int)chance(&s, 3), blocks = 16 + (int)chance(&s, 40);
    static const int fails[] = {0, 10, 50, 100};
    cluster_start(c, n, PD, blocks, fails[chance(&s, 4)]);
    ask *asks = sp_alloc(ASKS * sizeof *asks);
    for (int i = 0; i < ASKS; i++) {
        ask *a = &asks[i];
        ask_init(a, 1 + (int32_t)chance(&s, 180), 1 + (int32_t)chance(&s, 4));
        a->params.n = 1 + (int32_t)(chance(&s, 4) == 0) * 2;
        a->params.max_tokens = 1 + (int32_t)chance(&s, 12);
        if (chance(&s, 8) == 0) a->params.n_prompt_logprobs = 0;
        ask_must_submit(&c->p, a);
        if (chance(&s, 3) == 0) {
            int k = (int)chance(&s, (uint32_t)i + 1);
            for (int32_t q = 0; q < asks[k].params.n; q++) asks[k].cancelled[q] = true;
            sp_engine_cancel(c->p.engine, asks[k].id, -1, SP_FINISH_ABORT);
        }
        sp_err err = {0};
        if (chance(&s, 4) == 0)
            (void)!sp_engine_set_role(c->p.engine, (int)chance(&s, (uint32_t)n),
                                      (sp_pool_role)chance(&s, 3), &err);
        if (chance(&s, 2)) (void)pod_pump(&c->p, 1);
    }
    pod_finish(&c->p, asks, ASKS);
    for (int i = 0; i < ASKS; i++) ask_check(&asks[i], c->p.config.max_model_len);
    sp_free(asks);
    cluster_end(c);
}

static void whatever_happens_the_tokens_are_the_same(void) {
    const char *more = getenv("SP_TEST_SEEDS");
    int seeds = more ? atoi(more) : 100;
    for (int i = 0; i < seeds; i++) storm((uint64_t)i + 1);
}

static void a_lost_rank_of_any_group_is_named(void) {
    cluster *c = new_cluster(1);
    cluster_start(c, 2, PD, 64, 0);
    sp_fake_rank_fail_at(&c->nodes[1].rank, 2, SP_E_CLOSED);
    ask a;
    ask_init(&a, 150, 3);
    ask_must_submit(&c->p, &a);
    pod_finish(&c->p, &a, 1);
    CU_ASSERT_EQUAL(a.error[0], SP_E_PEER_LOST);
    char why[160];
    CU_ASSERT_PTR_NOT_NULL(strstr(sp_engine_why(c->p.engine, why, sizeof why), "rank 1"));
    cluster_end(c);
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
