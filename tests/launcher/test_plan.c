/* Covers launcher/plan.c: the plan of a model on named devices, and what does not fit. */
#include "launcher/plan.h"
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
            CU_ASSERT_EQUAL(number(r, "node"), number(r, "rank") / (i ? 4 : 1));
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

SP_TEST_MAIN("launcher/plan", SP_TEST(devices_and_nodes_give_the_degrees),
             SP_TEST(every_layer_head_and_parameter_is_somewhere),
             SP_TEST(the_table_has_a_line_for_each_rank),
             SP_TEST(what_does_not_fit_is_told_with_what_would),
             SP_TEST(what_is_not_understood_is_told))
