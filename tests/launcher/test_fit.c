/* Covers launcher/fit.c: where ranks lie, which pools fit, and which others are proposed. Sizes are
 * those of a made-up model of 64 layers, about 1 GiB each. */
#include "launcher/fit.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

#define GIB ((uint64_t)1 << 30)

static sp_model_desc desc;
static sp_fit fit;
static sp_pools pools;
static sp_err err;
static sp_fit_pool planned[SP_POOLS_MAX];

static void read_model(void) {
    char dir[64];
    snprintf(dir, sizeof dir, "%s", "configs/podling");
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&desc, dir, &err), SP_OK);
    desc.n_layers = 64;
    desc.hidden = 8192;
    desc.intermediate = 28672;
    desc.n_heads = 64;
    desc.n_kv_heads = 8;
    desc.head_dim = 128;
    desc.vocab = 32768;
    desc.max_positions = 8192;
}
/* Nodes of `n_devices` with so much memory, each device's own or shared. */
static void nodes(int32_t n_nodes, int32_t n_devices, uint64_t gib, bool shared) {
    const sp_arch *arch;
    sp_config c = {.max_num_seqs = 4,
                   .block_size = 16,
                   .max_num_batched_tokens = 512,
                   .kv_cache_dtype = "f16"};
    read_model();
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&arch, &desc, &err), SP_OK);
    fit = (sp_fit){.memory = {gib * GIB, UINT64_MAX, UINT64_MAX},
                   .shared = shared,
                   .n_nodes = n_nodes,
                   .n_devices = n_devices};
    CU_ASSERT_EQUAL_FATAL(sp_fit_wish(&fit.wish, &c, &desc, arch, NULL, &err), SP_OK);
}
static void want(const char *first, const char *second) {
    sp_config c = {.command = SP_CMD_PLAN, .pool = {.at = {first, second}, .n = second ? 2 : 1}};
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&pools, &c, &err), SP_OK);
}
static sp_status plan(void) {
    err = (sp_err){0};
    return sp_fit_pools(&fit, &pools, planned, &err);
}
static void refused(int line, sp_status code, const char *why, const char *instead) {
    sp_status st = plan();
    bool ok = st == code && strstr(err.text, why);
    if (ok && instead) {
        sp_fit_say_other(&fit, &pools, &err);
        ok = strstr(err.text, why) && strstr(err.text, instead);
    }
    if (!ok) fprintf(stderr, "    line %d: %s: %s\n", line, sp_status_name(st), err.text);
    CU_ASSERT(ok);
}
#define REFUSED(...) refused(__LINE__, __VA_ARGS__)

static void gpu_nodes_are_filled_and_cpu_nodes_share(void) {
    nodes(3, 4, 80, false);
    for (int32_t r = 0; r < 10; r++) CU_ASSERT_EQUAL(sp_fit_node(&fit, 10, r), r / 4);
    fit.shared = true;
    static const int32_t even[10] = {0, 0, 0, 0, 1, 1, 1, 2, 2, 2};
    for (int32_t r = 0; r < 10; r++) CU_ASSERT_EQUAL(sp_fit_node(&fit, 10, r), even[r]);
}
static void every_pool_is_planned_by_its_own_shape(void) {
    nodes(2, 8, 80, false);
    want("name=p,role=prefill,replicas=2,tp=4",
         "name=d,role=decode,tp=2,pp=4,pp_layers=10/18/18/18");
    CU_ASSERT_EQUAL_FATAL(plan(), SP_OK);
    CU_ASSERT(planned[0].plan.tp == 4 && planned[0].plan.pp == 1 && planned[0].req.tp == 4);
    CU_ASSERT(planned[1].plan.tp == 2 && planned[1].plan.stages[0].n_layers == 10);
    CU_ASSERT(planned[0].plan.n_blocks > 0 && planned[0].plan.limit_bytes < 80 * GIB);
}
static void memory_of_a_cpu_is_shared_by_the_ranks_on_its_node(void) {
    nodes(2, 8, 512, true);
    want("name=p,role=prefill", "name=d,role=decode");
    CU_ASSERT_EQUAL_FATAL(plan(), SP_OK); /* one a node */
    uint64_t alone = planned[0].plan.limit_bytes;
    want("name=p,role=prefill,replicas=2", "name=d,role=decode,replicas=2");
    CU_ASSERT_EQUAL_FATAL(plan(), SP_OK);
    CU_ASSERT_EQUAL(planned[0].plan.limit_bytes, alone / 2);
}
static void fewer_groups_are_proposed_first(void) {
    nodes(1, 8, 80, false);
    want("name=p,role=prefill,replicas=3,tp=4", "name=d,role=decode,tp=4");
    REFUSED(SP_E_LIMIT, "are 16 ranks, 1 nodes of 8 devices have 8",
            "; would fit: p: 1 of tp 4 x pp 1, d: 1 of tp 4 x pp 1");
    want("name=p,role=prefill,tp=8", "name=d,role=decode,tp=4");
    REFUSED(SP_E_LIMIT, "12 ranks", "would fit: p: 1 of tp 4 x pp 1, d: 1 of tp 4 x pp 1");
}
static void larger_groups_are_proposed_where_weights_are_too_large(void) {
    nodes(1, 8, 80, false);
    want("name=p,role=prefill,replicas=2", "name=d,role=decode");
    REFUSED(SP_E_LIMIT, "pool 'p': weights need",
            "would fit: p: 1 of tp 2 x pp 1, d: 1 of tp 2 x pp 1");
    nodes(4, 1, 80, false);
    want("name=p,role=prefill", "name=d,role=decode");
    REFUSED(SP_E_LIMIT, "pool 'p': weights need",
            "would fit: p: 1 of tp 1 x pp 2, d: 1 of tp 1 x pp 2");
}
static void nothing_is_proposed_that_does_not_fit(void) {
    nodes(1, 2, 24, false);
    want("name=p,role=prefill", "name=d,role=decode");
    REFUSED(SP_E_LIMIT, "weights need", "no other shapes of these pools would fit");
    CU_ASSERT_FALSE(sp_fit_other(&fit, &pools));
    CU_ASSERT(pools.at[0].tp == 1 && pools.at[0].pp == 1 && sp_pools_ranks(&pools) == 2);
    nodes(1, 1, 80, false);
    REFUSED(SP_E_LIMIT, "are 2 ranks", "2 pools want at least 2");
}
static void what_cannot_be_divided_or_has_other_bits_is_refused(void) {
    nodes(1, 8, 160, false);
    want("name=p,role=prefill", "name=d,role=decode,tp=3");
    REFUSED(SP_E_INVALID, "pool 'd': --tensor-parallel-size 3 does not divide the 64", NULL);
    desc.n_heads = 48;
    desc.n_kv_heads = 48;
    desc.hidden = 6144;
    REFUSED(SP_E_INVALID, "pool 'd': tp 3 does not give the bits of tp 1 of pool 'p'", NULL);
    want("name=p,role=prefill,tp=3", "name=d,role=decode,tp=3");
    CU_ASSERT_EQUAL(plan(), SP_OK);
}
static size_t reserved(const sp_dev_sizes *sizes) {
    return (size_t)sizes->n_heads << 29; /* half a GiB a head here */
}
static size_t packed(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    return (size_t)rows * (size_t)seg->edge[seg->n] * (size_t)sp_dtype_bits(dtype) / 8 * 2;
}
static void a_device_counts_by_its_own_packing_and_what_it_takes_for_itself(void) {
    static const sp_dev_ops ops = {.packed_bytes = packed, .reserve_bytes = reserved};
    const sp_device gpu = {
        .backend = "cuda", .ops = &ops, .own_memory = true, .memory_bytes = 80 * GIB};
    const sp_device plain = {.backend = "cuda", .own_memory = true, .memory_bytes = 80 * GIB};
    sp_config c = {.command = SP_CMD_PLAN, .tp = 1, .pp = 1};
    nodes(1, 8, 1, false); /* the memory of the node counts for nothing */
    /* About 100 GiB of weights: two cards as they are, four when packing doubles them and each card
     * keeps 16 GiB of a tp 2 rank's scratch. */
    fit.device = &plain;
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&pools, &c, &err), SP_OK);
    REFUSED(SP_E_LIMIT, "weights need", "; would fit: tp 2 x pp 1");
    fit.device = &gpu;
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&pools, &c, &err), SP_OK);
    REFUSED(SP_E_LIMIT, "weights need", "; would fit: tp 4 x pp 1");
    c.tp = 4;
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&pools, &c, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(plan(), SP_OK);
    /* 92 % of the card, less 8 GiB, less the plan's own reserve. */
    const uint64_t there = 80 * GIB / 100 * SP_DEVICE_USABLE_PERCENT - 8 * GIB;
    CU_ASSERT_EQUAL(planned[0].plan.limit_bytes, there - there / 32);
    fit.n_devices = 2;
    c.tp = 2;
    CU_ASSERT_EQUAL_FATAL(sp_pools_of(&pools, &c, &err), SP_OK);
    REFUSED(SP_E_LIMIT, "weights need", "; no other shape would fit");
}
static void long_words_make_room_for_the_proposal(void) {
    nodes(1, 8, 80, false);
    want("name=p,role=prefill,replicas=2", "name=d,role=decode");
    CU_ASSERT_EQUAL_FATAL(plan(), SP_E_LIMIT);
    memset(err.text, 'x', sizeof err.text - 1);
    err.text[sizeof err.text - 1] = 0;
    sp_fit_say_other(&fit, &pools, &err);
    CU_ASSERT(strlen(err.text) < sizeof err.text);
    CU_ASSERT_PTR_NOT_NULL(
        strstr(err.text, "x; would fit: p: 1 of tp 2 x pp 1, d: 1 of tp 2 x pp 1"));
}

SP_TEST_MAIN("launcher/fit", SP_TEST(gpu_nodes_are_filled_and_cpu_nodes_share),
             SP_TEST(every_pool_is_planned_by_its_own_shape),
             SP_TEST(memory_of_a_cpu_is_shared_by_the_ranks_on_its_node),
             SP_TEST(fewer_groups_are_proposed_first),
             SP_TEST(larger_groups_are_proposed_where_weights_are_too_large),
             SP_TEST(nothing_is_proposed_that_does_not_fit),
             SP_TEST(what_cannot_be_divided_or_has_other_bits_is_refused),
             SP_TEST(a_device_counts_by_its_own_packing_and_what_it_takes_for_itself),
             SP_TEST(long_words_make_room_for_the_proposal))
