/* Covers launcher/bench_gpu.c, bench_gpu_ops.c and bench_gpu_time.c on the emulated device: what is
 * measured, that floors are the bytes and operations they claim, and its command line. */
#include "launcher/bench_gpu.h"
#include "launcher/bench_gpu_impl.h"
#include "runtime/base/json.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char text[1 << 17], words[4096];

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
    int code = sp_bench_gpu(argc, (char **)(uintptr_t)argv);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    keep(files[0], text, sizeof text);
    keep(files[1], words, sizeof words);
    return code;
}
#define RUN(...) run((const char *const[]){"gpu", __VA_ARGS__, NULL})

static bool has_plugin(void) {
    const sp_dev_plugin *p;
    return sp_dev_plugin_open(&p, "emu", NULL) == SP_OK;
}

static double number(const sp_json_node *o, const char *key) {
    double v = -1;
    CU_ASSERT_EQUAL(sp_json_get_number(o, key, &v, NULL), SP_OK);
    return v;
}

/* The row of an operation whose shape begins with these words. */
static const sp_json_node *find(const sp_json_node *root, const char *op, const char *shape) {
    const sp_json_node *rows = sp_json_find(root, "operations");
    for (const sp_json_node *r = sp_json_first(rows); r; r = sp_json_next(r)) {
        sp_slice s = sp_json_string(sp_json_find(r, "shape"));
        if (sp_slice_is(sp_json_string(sp_json_find(r, "op")), op) &&
            sp_slice_starts(s, sp_slice_of(shape)))
            return r;
    }
    return NULL;
}

static void every_operation_is_timed_against_its_floor(void) {
    if (!has_plugin()) SP_SKIP("no superpod_cuda_emu.so");
    CU_ASSERT_EQUAL_FATAL(RUN("--device", "emu", "--json"), SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(words, "");
    sp_json *doc = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(text), 0, NULL), SP_OK);
    const sp_json_node *root = sp_json_root(doc);
    static const char *const ops[] = {"add_rmsnorm", "embed",      "gather_rows", "act_mul",
                                      "gemm",        "rope_store", "attend"};
    for (size_t i = 0; i < SP_LEN(ops); i++) CU_ASSERT_PTR_NOT_NULL(find(root, ops[i], ""));
    CU_ASSERT(number(root, "copy_gb_per_s") > 0 && number(root, "launch_us") > 0);
    const double tflops = number(root, "gemm_tflop_per_s");
    CU_ASSERT(tflops > 0);
    for (const sp_json_node *r = sp_json_first(sp_json_find(root, "operations")); r;
         r = sp_json_next(r)) {
        CU_ASSERT(number(r, "us") > 0 && number(r, "bytes") > 0 && number(r, "floor_us") > 0);
        CU_ASSERT_DOUBLE_EQUAL(number(r, "ratio"), number(r, "us") / number(r, "floor_us"), 1e-9);
    }
    /* bf16 weights [N,K], f32 rows in and out; a multiply-add is two operations. */
    const sp_json_node *o = find(root, "gemm", "o T 8 N 64 K 64");
    CU_ASSERT_PTR_NOT_NULL_FATAL(o);
    CU_ASSERT_EQUAL(number(o, "bytes"), 2 * 64 * 64 + 4 * 8 * (64 + 64));
    CU_ASSERT_EQUAL(number(o, "flops"), 2.0 * 8 * 64 * 64);
    CU_ASSERT_DOUBLE_EQUAL(number(o, "floor_us"), number(o, "flops") / tflops / 1e6, 1e-3);
    /* One query sees 32 keys of 2 heads of 16 in bf16; 4 heads ask. */
    const sp_json_node *a = find(root, "attend", "decode S 1 context 32");
    CU_ASSERT_PTR_NOT_NULL_FATAL(a);
    CU_ASSERT_EQUAL(number(a, "bytes"), 32 * 2 * 2 * 16 * 2 + 8 * 4 * 16);
    CU_ASSERT_EQUAL(number(a, "flops"), 4.0 * 32 * 4 * 16);
    /* A prompt's rows see 1, 2, ... 32 keys. */
    const sp_json_node *p = find(root, "attend", "prompt S 1 T 32 of 32");
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    CU_ASSERT_EQUAL(number(p, "flops"), 4.0 * (32 * 33 / 2) * 4 * 16);
    CU_ASSERT_EQUAL(sp_json_count(sp_json_find(root, "decode")), 0); /* no model */
    sp_json_free(doc);
}

static void a_model_gives_its_shapes_and_decode_steps(void) {
    if (!has_plugin()) SP_SKIP("no superpod_cuda_emu.so");
    sp_tiny t = sp_tiny_default();
    t.n_layers = 1;
    t.n_heads = 4;
    t.hidden = 64;
    t.head_dim = 16;
    t.intermediate = 96;
    char *dir = sp_tiny_create(&t);
    CU_ASSERT_EQUAL(
        RUN("--device", "emu", "--model", dir, "--steps", "1", "--kv-cache-dtype", "f32"),
        SP_EXIT_OK);
    sp_tiny_remove(dir);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "these times say nothing about a GPU"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "E 64 H 4 K 2 D 16 F 96 V 317, weights BF16, KV F32"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "gate_up T 1 N 192 K 64"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "decode, batch    1: "));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "decode, batch    4: "));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, " tok/s"));
}

static void the_floor_is_the_slower_of_memory_and_products(void) {
    const sp_gpu_ceilings c = {.copy_bytes_s = 1e9, .gemm_flops_s = 1e12};
    sp_gpu_row r = {.bytes = 5000, .flops = 1e6};
    bool by_memory;
    CU_ASSERT_DOUBLE_EQUAL(sp_gpu_floor_us(&c, &r, &by_memory), 5, 1e-9);
    CU_ASSERT(by_memory);
    r.flops = 1e7;
    CU_ASSERT_DOUBLE_EQUAL(sp_gpu_floor_us(&c, &r, &by_memory), 10, 1e-9);
    CU_ASSERT_FALSE(by_memory);
}

static void what_cannot_be_measured_is_one_line(void) {
    static const char *const wrong[][2] = {
        {"--device", "cpu"}, {"--device", "auto"},        {"--steps", "0"},
        {"--steps", "many"}, {"--kv-cache-dtype", "fp8"}, {"--colour", "green"}};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        CU_ASSERT_EQUAL(RUN(wrong[i][0], wrong[i][1]), SP_EXIT_USAGE);
        CU_ASSERT_EQUAL(RUN(wrong[i][0]), SP_EXIT_USAGE);
        CU_ASSERT_STRING_EQUAL(text, "");
        CU_ASSERT_PTR_NOT_NULL(strstr(words, wrong[i][0]));
    }
    if (!has_plugin()) SP_SKIP("no superpod_cuda_emu.so");
    CU_ASSERT_EQUAL(RUN("--device", "emu", "--model", "no/such-model"), SP_EXIT_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(words, "no/such-model"));
    CU_ASSERT_EQUAL(strchr(words, '\n') - words, (long)strlen(words) - 1);
}

static void help_is_printed_when_asked_for(void) {
    CU_ASSERT_EQUAL(RUN("--help"), SP_EXIT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "--device"));
}

SP_TEST_MAIN("launcher/bench_gpu", SP_TEST(every_operation_is_timed_against_its_floor),
             SP_TEST(a_model_gives_its_shapes_and_decode_steps),
             SP_TEST(the_floor_is_the_slower_of_memory_and_products),
             SP_TEST(what_cannot_be_measured_is_one_line), SP_TEST(help_is_printed_when_asked_for))
