/* Covers launcher/inspect_model.c: what `inspect tensors`, `model` and `config` write, and when they
 * refuse. */
#include "launcher/inspect_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef int command(int argc, char **argv);

typedef struct outcome {
    int code;
    char *out, *err; /* owned */
} outcome;

/* Points a stream's descriptor at a new file; returns the old one. */
static int capture(FILE *stream, FILE *to) {
    fflush(stream);
    int old = dup(fileno(stream));
    dup2(fileno(to), fileno(stream));
    return old;
}

static char *release(FILE *stream, FILE *from, int old) {
    fflush(stream);
    dup2(old, fileno(stream));
    close(old);
    long n = lseek(fileno(from), 0, SEEK_END);
    char *text = sp_alloc((size_t)n + 1);
    CU_ASSERT_EQUAL(pread(fileno(from), text, (size_t)n, 0), n);
    fclose(from);
    return text;
}

static outcome call(command *fn, const char *const *args, int n) {
    char *argv[8] = {0};
    for (int i = 0; i < n; i++) argv[i] = sp_strdup(args[i]);
    FILE *out = tmpfile(), *err = tmpfile();
    CU_ASSERT_FATAL(out && err);
    int old_out = capture(stdout, out), old_err = capture(stderr, err);
    outcome o = {.code = fn(n, argv)};
    o.out = release(stdout, out, old_out);
    o.err = release(stderr, err, old_err);
    for (int i = 0; i < n; i++) sp_free(argv[i]);
    return o;
}
#define CALL(fn, ...) \
    call(fn, (const char *const[]){__VA_ARGS__}, \
         (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void outcome_fini(outcome *o) {
    sp_free(o->out);
    sp_free(o->err);
}

static int lines_of(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* The code, and of standard error one line with `words` and nothing on standard output. */
static void expect_refusal(outcome o, int code, const char *words) {
    CU_ASSERT_EQUAL(o.code, code);
    CU_ASSERT_STRING_EQUAL(o.out, "");
    CU_ASSERT_EQUAL(lines_of(o.err), 1);
    if (!strstr(o.err, words)) fprintf(stderr, "    want '%s', got: %s", words, o.err);
    CU_ASSERT_PTR_NOT_NULL(strstr(o.err, words));
    outcome_fini(&o);
}

static sp_json *parsed(const outcome *o) {
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(o->code, 0);
    CU_ASSERT_STRING_EQUAL(o->err, "");
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(o->out), 0, &err), SP_OK);
    return doc;
}

static int64_t int_at(const sp_json *doc, const char *key) {
    return sp_json_int(sp_json_find(sp_json_root(doc), key));
}

static char *file_of(const char *dir, const char *name) {
    char *path = sp_alloc(strlen(dir) + strlen(name) + 2);
    sprintf(path, "%s/%s", dir, name);
    return path;
}

static void tensors_are_one_object_a_line(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t), *file = file_of(dir, "model.safetensors");
    outcome o = CALL(sp_inspect_tensors, "tensors", file);
    CU_ASSERT_EQUAL(o.code, 0);
    CU_ASSERT_STRING_EQUAL(o.err, "");
    CU_ASSERT_EQUAL(lines_of(o.out), 3 + 9 * t.n_layers);
    static const char first[] =
        "{\"name\":\"model.embed_tokens.weight\",\"dtype\":\"BF16\",\"shape\":[317,112]}\n";
    CU_ASSERT(strncmp(o.out, first, sizeof first - 1) == 0);
    outcome_fini(&o);
    sp_free(file);
    sp_tiny_remove(dir);
}

static void a_bad_tensor_file_is_one_line_and_exit_10(void) {
    char *dir = sp_tiny_folder(), *file = file_of(dir, "x.safetensors");
    sp_tiny_put(dir, "x.safetensors", "\x0c\0\0\0\0\0\0\0{\"a\\nb\":[]} ", 20);
    expect_refusal(CALL(sp_inspect_tensors, "tensors", file), 10,
                   "tensor 'a?b': is an array, want an object");
    sp_tiny_put(dir, "x.safetensors", "\x14\0\0\0\0\0\0\0{\"\\n\":1,\"\\n\":2}      ", 28);
    expect_refusal(CALL(sp_inspect_tensors, "tensors", file), 10, "key '?' comes twice");
    expect_refusal(CALL(sp_inspect_tensors, "tensors", "/nowhere/x"), 10, "/nowhere/x");
    sp_free(file);
    sp_tiny_remove(dir);
}

static void wrong_usage_is_one_line_and_exit_2(void) {
    expect_refusal(CALL(sp_inspect_tensors, "tensors"), 2, "FILE is missing");
    expect_refusal(CALL(sp_inspect_tensors, "tensors", "a", "b"), 2, "unknown argument");
    expect_refusal(CALL(sp_inspect_tensors, "tensors", "--all"), 2, "--all");
    expect_refusal(CALL(sp_inspect_model, "model"), 2, "--model is missing");
    expect_refusal(CALL(sp_inspect_model, "model", "--model"), 2, "without its value: --model");
    expect_refusal(CALL(sp_inspect_model, "model", "DIR"), 2, "unknown argument");
    expect_refusal(CALL(sp_inspect_config, "config", "--modelx", "d"), 2, "--modelx");
    command *const all[] = {sp_inspect_tensors, sp_inspect_model, sp_inspect_config};
    for (size_t i = 0; i < SP_LEN(all); i++) {
        outcome o = CALL(all[i], "word", "--help");
        CU_ASSERT_EQUAL(o.code, 0);
        CU_ASSERT(strncmp(o.out, "usage: superpod inspect", 23) == 0);
        CU_ASSERT_STRING_EQUAL(o.err, "");
        outcome_fini(&o);
    }
}

static void a_model_is_described_with_its_bytes(void) {
    sp_tiny t = sp_tiny_default();
    t.n_shards = 2;
    t.rope = SP_TINY_ROPE_LLAMA3;
    char *dir = sp_tiny_create(&t);
    outcome o = CALL(sp_inspect_model, "model", "--json", "--model", dir);
    sp_json *doc = parsed(&o);
    const sp_json_node *root = sp_json_root(doc);
    CU_ASSERT_EQUAL(int_at(doc, "tensors"), 3 + 9 * t.n_layers);
    int64_t layer = 2 * 112 + 2 * 112 * 112 + 2 * 16 * 112 + 3 * 112 * 344;
    CU_ASSERT_EQUAL(int_at(doc, "parameters"), 2 * 317 * 112 + 112 + t.n_layers * layer);
    CU_ASSERT_EQUAL(int_at(doc, "weight_bytes"), 2 * int_at(doc, "parameters"));
    CU_ASSERT(sp_json_bool(sp_json_find(root, "supported")));
    CU_ASSERT(sp_json_is_null(sp_json_find(root, "no_weights")));
    const sp_json_node *kv = sp_json_find(root, "kv_bytes_per_token");
    CU_ASSERT_EQUAL(sp_json_int(sp_json_find(kv, "f32")), 2 * 3 * 2 * 8 * 4);
    CU_ASSERT_EQUAL(sp_json_int(sp_json_find(kv, "bf16")), 2 * 3 * 2 * 8 * 2);
    const sp_json_node *rope = sp_json_find(root, "rope");
    CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(rope, "type")), "llama3"));
    sp_json_free(doc);
    outcome_fini(&o);

    o = CALL(sp_inspect_model, "model", "--model", dir);
    CU_ASSERT_EQUAL(o.code, 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(o.out, "LlamaForCausalLM, can be served"));
    CU_ASSERT_PTR_NOT_NULL(strstr(o.out, "14 over 2 KV heads of 8"));
    outcome_fini(&o);
    sp_tiny_remove(dir);
}

static void a_model_without_weights_is_counted_by_its_config(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t), *file = file_of(dir, "model.safetensors");
    outcome with = CALL(sp_inspect_model, "model", "--model", dir, "--json");
    CU_ASSERT_EQUAL(unlink(file), 0);
    outcome without = CALL(sp_inspect_model, "model", "--model", dir, "--json");
    sp_json *a = parsed(&with), *b = parsed(&without);
    CU_ASSERT_EQUAL(int_at(a, "parameters"), int_at(b, "parameters"));
    CU_ASSERT_EQUAL(int_at(a, "weight_bytes"), int_at(b, "weight_bytes"));
    CU_ASSERT(sp_json_is_null(sp_json_find(sp_json_root(b), "tensors")));
    CU_ASSERT(!sp_json_is_null(sp_json_find(sp_json_root(b), "no_weights")));
    sp_json_free(a);
    sp_json_free(b);
    outcome_fini(&with);
    outcome_fini(&without);
    sp_free(file);
    sp_tiny_remove(dir);
}

static void a_broken_model_is_refused_with_exit_10(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t);
    sp_tiny_put(dir, "model.safetensors", "x", 1);
    expect_refusal(CALL(sp_inspect_model, "model", "--model", dir), 10, "is 1 bytes");
    outcome o = CALL(sp_inspect_config, "config", "--model", dir); /* reads no weights */
    CU_ASSERT_EQUAL(o.code, 0);
    outcome_fini(&o);
    sp_tiny_put(dir, "config.json", "{\"hidden_size\":0}", 17);
    expect_refusal(CALL(sp_inspect_config, "config", "--model", dir), 10, "hidden_size is 0");
    expect_refusal(CALL(sp_inspect_config, "config", "--model=/no/such"), 10, "no such directory");
    sp_tiny_remove(dir);
}

static void what_would_be_refused_is_listed_with_exit_0(void) {
    static const char config[] =
        "{\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,"
        "\"intermediate_size\":128,\"vocab_size\":320,\"num_attention_heads\":8,\"hidden_act\":"
        "\"silu\",\"rms_norm_eps\":1e-5,\"max_position_embeddings\":512,\"sliding_window\":24}";
    char *dir = sp_tiny_folder();
    sp_tiny_put(dir, "config.json", config, sizeof config - 1);
    outcome o = CALL(sp_inspect_config, "config", "--model", dir);
    sp_json *doc = parsed(&o);
    const sp_json_node *list = sp_json_find(sp_json_root(doc), "refused");
    CU_ASSERT_EQUAL(sp_json_count(list), 2);
    CU_ASSERT(!sp_json_bool(sp_json_find(sp_json_root(doc), "supported")));
    CU_ASSERT_EQUAL(int_at(doc, "sliding_window"), 24);
    CU_ASSERT_PTR_NOT_NULL(strstr(o.out, "architecture 'MistralForCausalLM' is not supported"));
    sp_json_free(doc);
    outcome_fini(&o);
    o = CALL(sp_inspect_model, "model", "--model", dir);
    CU_ASSERT_EQUAL(o.code, 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(o.out, "sliding window 24"));
    outcome_fini(&o);
    sp_tiny_remove(dir);
}

SP_TEST_MAIN("inspect_model", SP_TEST(tensors_are_one_object_a_line),
             SP_TEST(a_bad_tensor_file_is_one_line_and_exit_10),
             SP_TEST(wrong_usage_is_one_line_and_exit_2),
             SP_TEST(a_model_is_described_with_its_bytes),
             SP_TEST(a_model_without_weights_is_counted_by_its_config),
             SP_TEST(a_broken_model_is_refused_with_exit_10),
             SP_TEST(what_would_be_refused_is_listed_with_exit_0))
