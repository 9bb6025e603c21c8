/* Covers launcher/plan.c: the plan of a model on named devices, and what does not fit. */
#include "launcher/plan.h"

#include "kernels/dev.h"
#include "runtime/base/json.h"
#include "tests/harness.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char out[1 << 20], words[4096];

static void keep(FILE *from, char *to, size_t n) {
    rewind(from);
    size_t got = fread(to, 1, n - 1, from);
    to[got] = 0;
    fclose(from);
}
static int run(const char *const *argv) {
    int argc = 0, saved[2] = {dup(1), dup(2)};
    while (argv[argc]) argc++;
    fflush(NULL);
    FILE *files[2] = {tmpfile(), tmpfile()};
    CU_ASSERT_FATAL(files[0] && files[1]);
    for (int i = 0; i < 2; i++) dup2(fileno(files[i]), i + 1);
    int code = sp_plan_command(argc, (char **)(uintptr_t)argv);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    keep(files[0], out, sizeof out);
    keep(files[1], words, sizeof words);
    return code;
}
#define MODEL "configs/podling" /* 6 layers, 8 heads */
#define RUN(...) run((const char *const[]){"plan", "--model", MODEL, __VA_ARGS__, NULL})

static int64_t number(const sp_json_node *o, const char *key) {
    const sp_json_node *v = sp_json_find(o, key);
    CU_ASSERT_EQUAL_FATAL(sp_json_type_of(v), SP_JSON_INT);
    return sp_json_int(v);
}
static sp_json *json(void) {
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(out), 0, &err), SP_OK);
    return doc;
}

static void devices_and_nodes_give_the_degrees(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "3x4xA100-40G", "--json"), 0);
    sp_json *doc = json();
    const sp_json_node *root = sp_json_root(doc);
    CU_ASSERT(number(root, "tp") == 4 && number(root, "pp") == 3);
    CU_ASSERT(sp_json_bool(sp_json_find(root, "fits")));
    sp_json_free(doc);
}
static void every_layer_head_and_parameter_is_somewhere(void) {
    int64_t params[2];
    for (int i = 0; i < 2; i++) {
        int code = i ? RUN("--nodes", "2x4xCPU-16G", "--tp", "2", "--pp", "3", "--json")
                     : RUN("--nodes", "CPU-16G", "--json");
        CU_ASSERT_EQUAL_FATAL(code, 0);
        sp_json *doc = json();
        const sp_json_node *ranks = sp_json_find(sp_json_root(doc), "ranks");
        int64_t layers = 0, heads = 0, all = 0, largest = 0;
        int n = sp_json_count(ranks);
        CU_ASSERT_EQUAL(n, i ? 6 : 1);
        for (const sp_json_node *r = sp_json_first(ranks); r; r = sp_json_next(r)) {
            if (number(r, "tp_rank") == 0) {
                CU_ASSERT_EQUAL(number(r, "layer_first"), layers);
                layers += number(r, "n_layers");
            }
            if (number(r, "stage") == 0) {
                CU_ASSERT_EQUAL(number(r, "head_first"), heads);
                heads += number(r, "n_heads");
            }
            all += number(r, "n_params");
            if (number(r, "total_bytes") > largest) largest = number(r, "total_bytes");
            /* Evenly, since they share what the nodes have. */
            CU_ASSERT_EQUAL(number(r, "node"), number(r, "rank") / (i ? 3 : 1));
        }
        CU_ASSERT(layers == 6 && heads == 8);
        CU_ASSERT_EQUAL(largest, number(sp_json_root(doc), "total_bytes"));
        params[i] = all;
        sp_json_free(doc);
    }
    /* Norms are held by every rank of a stage, the tied embedding by first and last stage. */
    CU_ASSERT(params[1] >= params[0]);
    CU_ASSERT(params[1] < 2 * params[0]);
}
static void the_table_has_a_line_for_each_rank(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "2x2xL4-24G", "--pp-layers", "1,5"), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "tp 2 x pp 2"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, " 0-0 "));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, " 1-5 "));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "fits: "));
    CU_ASSERT_STRING_EQUAL(words, "");
}

static void refused(int line, int code, int want, const char *word) {
    bool ok = code == want && strstr(words, word) && out[0] == 0 &&
              strchr(words, '\n') == words + strlen(words) - 1;
    if (!ok) fprintf(stderr, "    line %d: code %d, '%s'\n", line, code, words);
    CU_ASSERT(ok);
}
#define REFUSED(code, want, word) refused(__LINE__, code, want, word)
static void what_does_not_fit_is_told_with_what_would(void) {
    REFUSED(RUN("--nodes", "CPU-300M", "--max-num-seqs", "4096", "--num-gpu-blocks-override",
                "67108864"),
            10, "CPU-300M");
    REFUSED(RUN("--nodes", "2xL4-24G", "--tp", "4"), 10, "4 ranks, 1 nodes of 2 devices have 2");
    REFUSED(RUN("--nodes", "8xL4-24G", "--tp", "3", "--pp", "1"), 10, "does not divide the 8");
    REFUSED(RUN("--nodes", "8xL4-24G", "--tp", "1", "--pp", "7"), 10, "want 1 to 6");
    REFUSED(RUN("--nodes", "2x1xL4-24G", "--pp-layers", "3,4"), 10, "add up to 7 layers");
}
static void what_is_not_understood_is_told(void) {
    REFUSED(RUN("--json"), 2, "--nodes");
    REFUSED(RUN("--nodes", "2xABACUS"), 10, "ABACUS");
    REFUSED(RUN("--nodes", "L4-24G", "--kv-cache-dtype", "q3"), 10, "q3");
    REFUSED(RUN("--nodes", "L4-24G", "--frob"), 2, "frob");
    REFUSED(run((const char *const[]){"plan", "--model", "no/such-model-here", "--nodes", "L4-24G",
                                      NULL}),
            10, "such-model-here");
}

/* ---- pools ---- */

#define SPLIT "--pool", "name=p,role=prefill,replicas=2,tp=2", "--pool", "name=d,role=decode,pp=2"

static void pools_are_placed_rank_by_rank(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "2x4xL4-24G", SPLIT, "--json"), 0);
    static const char *const pools[] = {"p", "p", "p", "p", "d", "d"};
    static const int64_t groups[] = {0, 0, 1, 1, 2, 2}, stages[] = {0, 0, 0, 0, 0, 1};
    sp_json *doc = json();
    const sp_json_node *root = sp_json_root(doc), *ranks = sp_json_find(root, "ranks");
    CU_ASSERT_EQUAL_FATAL(sp_json_count(ranks), 6);
    int64_t i = 0;
    for (const sp_json_node *r = sp_json_first(ranks); r; r = sp_json_next(r), i++) {
        CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(r, "pool")), pools[i]));
        CU_ASSERT(number(r, "group") == groups[i] && number(r, "stage") == stages[i]);
        CU_ASSERT_EQUAL(number(r, "node"), i / 4); /* a GPU node is filled first */
        CU_ASSERT_EQUAL(number(r, "n_heads"), i < 4 ? 4 : 8);
    }
    /* Only one pool has these. */
    CU_ASSERT(sp_json_find(root, "tp") == NULL && sp_json_find(root, "n_blocks") == NULL);
    sp_json_free(doc);
}
static void each_pool_tells_what_its_groups_have(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "2x4xCPU-16G", SPLIT, "--json"), 0);
    sp_json *doc = json();
    const sp_json_node *root = sp_json_root(doc), *pools = sp_json_find(root, "pools");
    CU_ASSERT_EQUAL_FATAL(sp_json_count(pools), 2);
    const sp_json_node *p = sp_json_first(pools), *d = sp_json_next(p);
    CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(p, "role")), "prefill"));
    CU_ASSERT(number(p, "replicas") == 2 && number(p, "tp") == 2 && number(p, "pp") == 1);
    CU_ASSERT(number(d, "replicas") == 1 && number(d, "tp") == 1 && number(d, "pp") == 2);
    CU_ASSERT(number(p, "n_blocks") > 0 && number(d, "n_blocks") > 0);
    CU_ASSERT(number(p, "total_bytes") <= number(p, "limit_bytes"));
    const sp_json_node *groups = sp_json_find(p, "groups");
    CU_ASSERT_EQUAL(sp_json_count(groups), 2);
    const sp_json_node *second = sp_json_next(sp_json_first(groups));
    CU_ASSERT(number(second, "first_rank") == 2 && number(second, "n_ranks") == 2);
    CU_ASSERT_EQUAL(sp_json_count(sp_json_find(second, "nodes")), 2); /* 3 ranks a node */
    CU_ASSERT(sp_json_number(sp_json_find(root, "balanced_prompt_per_answer")) > 0);
    sp_json_free(doc);
}
static void a_pool_has_the_blocks_that_it_has_alone(void) {
    int64_t alone = 0;
    for (int i = 0; i < 2; i++) {
        int code = i ? RUN("--nodes", "8xL4-24G", "--pool", "name=a,replicas=2,tp=4", "--json")
                     : RUN("--nodes", "8xL4-24G", "--tp", "4", "--pp", "1", "--json");
        CU_ASSERT_EQUAL_FATAL(code, 0);
        sp_json *doc = json();
        const sp_json_node *root = sp_json_root(doc);
        const sp_json_node *of = i ? sp_json_first(sp_json_find(root, "pools")) : root;
        if (i) CU_ASSERT_EQUAL(number(of, "n_blocks"), alone);
        alone = number(of, "n_blocks");
        sp_json_free(doc);
    }
}
static void the_table_says_where_groups_lie_and_when_they_are_balanced(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "2x4xCPU-16G", SPLIT), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "p: 2 of tp 2 x pp 1, d: 1 of tp 1 x pp 2"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "pool 'p' (prefill): 2 of tp 2 x pp 1, "));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "group 0: ranks 0-1 on node 0\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "group 1: ranks 2-3 on node 0,1 (a stage lies on more"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "tokens/s of prompts"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "equally busy at best when prompts are "));
    /* Mixed groups take whatever comes. */
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "2xCPU-16G", "--pool", "name=a", "--pool", "name=b"), 0);
    CU_ASSERT_PTR_NULL(strstr(out, "equally busy"));
}
static void a_file_of_pools_is_planned(void) {
    CU_ASSERT_EQUAL_FATAL(RUN("--nodes", "4xCPU-16G", "--config", "configs/split.yaml"), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "pool 'fill' (prefill)"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "pool 'speak' (decode)"));
}
static void pools_that_do_not_fit_are_told_with_what_would(void) {
    REFUSED(RUN("--nodes", "4xL4-24G", SPLIT), 10,
            "are 6 ranks, 1 nodes of 4 devices have 4; would fit: "
            "p: 1 of tp 2 x pp 1, d: 1 of tp 1 x pp 2");
    REFUSED(RUN("--nodes", "2xL4-24G", SPLIT), 10, "p: 1 of tp 1 x pp 1, d: 1 of tp 1 x pp 1");
    REFUSED(RUN("--nodes", "L4-24G", SPLIT), 10, "2 pools want at least 2");
    REFUSED(RUN("--nodes", "6xCPU-300M", "--max-num-batched-tokens", "8192", "--max-num-seqs",
                "512", SPLIT),
            10, "pool 'p': weights need");
    REFUSED(RUN("--nodes", "6xCPU-300M", "--max-num-batched-tokens", "8192", "--max-num-seqs",
                "512", SPLIT),
            10, "would fit: p: 1 of tp 1 x pp 1, d: 1 of tp 1 x pp 1");
    REFUSED(RUN("--nodes", "2xCPU-300M", "--num-gpu-blocks-override", "67108864", "--pool",
                "name=p,role=prefill", "--pool", "name=d,role=decode"),
            10, "no other shapes of these pools would fit");
}
static void pools_that_cannot_be_are_refused(void) {
    REFUSED(RUN("--nodes", "8xL4-24G", "--pool", "name=p,role=fill"), 10,
            "want mixed, prefill or decode, got 'fill'");
    REFUSED(RUN("--nodes", "8xL4-24G", "--pool", "name=p,role=prefill"), 10, "no pool decodes");
    REFUSED(RUN("--nodes", "8xL4-24G", "--pool", "name=p", "--pool", "name=q,tp=3"), 10,
            "pool 'q': --tensor-parallel-size 3 does not divide the 8 attention heads; this model "
            "works with 1, 2, 4, 8");
    REFUSED(RUN("--nodes", "8xL4-24G", "--pool", "name=p", "--pool", "name=q,pp=7"), 10,
            "pool 'q'");
    REFUSED(RUN("--nodes", "8xL4-24G", "--pool", "name=p,pp=2,pp_layers=3/4"), 10,
            "pool 'p': --pp-layers add up to 7 layers");
}

/* ---- devices ---- */

static bool has_emulated(void) {
    const sp_dev_plugin *p;
    return sp_dev_plugin_open(&p, "emu", NULL) == SP_OK;
}
static void the_gpus_of_this_machine_are_planned_without_nodes(void) {
    if (!has_emulated()) SP_SKIP("no superpod_cuda_emu.so");
    CU_ASSERT_EQUAL_FATAL(RUN("--device", "emu"), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "on 1 x 1 emulated device sm_80: tp 1 x pp 1"));
    CU_ASSERT_PTR_NOT_NULL(strstr(out, "no times are predicted"));
    CU_ASSERT_EQUAL_FATAL(RUN("--device", "emu", "--json"), 0);
    sp_json *doc = json();
    const sp_json_node *root = sp_json_root(doc);
    CU_ASSERT(sp_json_bool(sp_json_find(root, "packing_known")));
    CU_ASSERT_EQUAL(sp_json_count(sp_json_find(root, "predicted")), 0);
    /* What a rank would take for itself is not offered. */
    CU_ASSERT(number(root, "limit_bytes") < (INT64_C(4) << 30) / 100 * 92);
    sp_json_free(doc);
}
static void cards_that_are_not_here_are_counted_by_the_plugin_s_packing(void) {
    if (!has_emulated()) SP_SKIP("no superpod_cuda_emu.so");
    int64_t limit[2];
    for (int i = 0; i < 2; i++) {
        int code = i ? RUN("--nodes", "L4-24G", "--device", "emu", "--json")
                     : RUN("--nodes", "L4-24G", "--json");
        CU_ASSERT_EQUAL_FATAL(code, 0);
        sp_json *doc = json();
        limit[i] = number(sp_json_root(doc), "limit_bytes");
        CU_ASSERT(sp_json_count(sp_json_find(sp_json_root(doc), "predicted")) == 2);
        sp_json_free(doc);
    }
    CU_ASSERT_EQUAL(limit[0], limit[1]); /* every plugin packs alike */
}
static void a_device_and_nodes_that_contradict_are_refused(void) {
    REFUSED(RUN("--nodes", "CPU-16G", "--device", "emu"), 10,
            "'CPU-16G' of option 'nodes' is no GPU");
    REFUSED(RUN("--nodes", "L4-24G", "--device", "cpu"), 10, "'L4-24G' of option 'nodes' is a GPU");
    REFUSED(RUN("--nodes", "CPU-16G", "--device", "banana"), 10, "got 'banana'");
    REFUSED(RUN("--device", "cpu"), 2, "--nodes");
    CU_ASSERT_EQUAL(RUN("--nodes", "CPU-16G", "--device", "cpu"), 0);
}

SP_TEST_MAIN("launcher/plan", SP_TEST(devices_and_nodes_give_the_degrees),
             SP_TEST(every_layer_head_and_parameter_is_somewhere),
             SP_TEST(the_table_has_a_line_for_each_rank),
             SP_TEST(what_does_not_fit_is_told_with_what_would),
             SP_TEST(what_is_not_understood_is_told), SP_TEST(pools_are_placed_rank_by_rank),
             SP_TEST(each_pool_tells_what_its_groups_have),
             SP_TEST(a_pool_has_the_blocks_that_it_has_alone),
             SP_TEST(the_table_says_where_groups_lie_and_when_they_are_balanced),
             SP_TEST(a_file_of_pools_is_planned),
             SP_TEST(pools_that_do_not_fit_are_told_with_what_would),
             SP_TEST(pools_that_cannot_be_are_refused),
             SP_TEST(the_gpus_of_this_machine_are_planned_without_nodes),
             SP_TEST(cards_that_are_not_here_are_counted_by_the_plugin_s_packing),
             SP_TEST(a_device_and_nodes_that_contradict_are_refused))
