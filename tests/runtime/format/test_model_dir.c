/* Covers runtime/format/model_dir.c: names to directories, shards to one set of tensors, and an
 * index that cannot be trusted. */
#include "runtime/format/model_dir.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const char *const CACHE_VARIABLES[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME",
                                              "XDG_CACHE_HOME"};

static void forget_cache_variables(void) {
    for (size_t i = 0; i < SP_LEN(CACHE_VARIABLES); i++) unsetenv(CACHE_VARIABLES[i]);
}

static char *path_of(const char *a, const char *b) {
    char *out = sp_alloc(strlen(a) + strlen(b) + 2);
    sprintf(out, "%s/%s", a, b);
    return out;
}

static void make_dirs(const char *base, const char *below) {
    char *path = path_of(base, below);
    for (char *p = path + strlen(base) + 1;; p++) {
        if (*p && *p != '/') continue;
        char was = *p;
        *p = 0;
        mkdir(path, 0755);
        *p = was;
        if (!was) break;
    }
    sp_free(path);
}

/* One U8 tensor a name, of one byte each. */
static void put_shard(const char *dir, const char *file, const char *const *names, int n) {
    sp_buf header, b;
    sp_buf_init(&header, 0);
    sp_buf_init(&b, 0);
    sp_buf_putc(&header, '{');
    for (int i = 0; i < n; i++)
        sp_buf_printf(&header, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                      i ? "," : "", names[i], i, i + 1);
    sp_buf_putc(&header, '}');
    for (int i = 0; i < 8; i++) sp_buf_putc(&b, (char)(header.len >> (8 * i)));
    sp_buf_put_slice(&b, sp_buf_slice(&header));
    for (int i = 0; i < n; i++) sp_buf_putc(&b, (char)i);
    sp_tiny_put(dir, file, b.ptr, b.len);
    sp_buf_fini(&header);
    sp_buf_fini(&b);
}

static void put_index(const char *dir, const char *json) {
    sp_tiny_put(dir, "model.safetensors.index.json", json, strlen(json));
}

static char *two_shards(const char *index) {
    char *dir = sp_tiny_folder();
    put_shard(dir, "s1.safetensors", (const char *[]){"a", "b"}, 2);
    put_shard(dir, "s2.safetensors", (const char *[]){"c"}, 1);
    put_index(dir, index);
    return dir;
}

static void expect_refusal(char *dir, sp_status want, const char *words) {
    sp_model_dir *d = NULL;
    sp_err err = {0};
    sp_status st = sp_model_dir_open(&d, dir, &err);
    if (st != want || !strstr(err.text, words))
        fprintf(stderr, "    want '%s', got %s: %s\n", words, sp_status_name(st), err.text);
    CU_ASSERT_EQUAL(st, want);
    CU_ASSERT_EQUAL(err.code, want);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_PTR_NULL(d);
    sp_model_dir_close(d);
    sp_tiny_remove(dir);
}

#define GOOD_INDEX \
    "{\"metadata\":{},\"weight_map\":{\"a\":\"s1.safetensors\",\"c\":\"s2.safetensors\"," \
    "\"b\":\"s1.safetensors\"}}"

static void shards_are_one_sorted_set_of_tensors(void) {
    char *dir = two_shards(GOOD_INDEX);
    sp_model_dir *d = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&d, dir, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_count(d), 3);
    CU_ASSERT_EQUAL(sp_model_dir_bytes(d), 3);
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(sp_model_dir_at(d, i)->name[0], 'a' + i);
        CU_ASSERT_PTR_EQUAL(sp_model_dir_find(d, (char[]){(char)('a' + i), 0}),
                            sp_model_dir_at(d, i));
    }
    CU_ASSERT_PTR_NULL(sp_model_dir_find(d, "d"));
    sp_model_dir_close(d);
    sp_tiny_remove(dir);
}

static void a_sharded_model_has_the_tensors_of_the_whole_one(void) {
    sp_tiny t = sp_tiny_default();
    char *whole = sp_tiny_create(&t);
    t.n_shards = 4;
    t.unaligned = true;
    char *parts = sp_tiny_create(&t);
    sp_model_dir *a = NULL, *b = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&a, whole, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&b, parts, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_count(a), 3 + 9 * t.n_layers);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_count(a), sp_model_dir_count(b));
    CU_ASSERT_EQUAL(sp_model_dir_bytes(a), sp_model_dir_bytes(b));
    for (int i = 0; i < sp_model_dir_count(a); i++) {
        const sp_tensor *x = sp_model_dir_at(a, i), *y = sp_model_dir_at(b, i);
        CU_ASSERT_STRING_EQUAL(x->name, y->name);
        CU_ASSERT_EQUAL(x->bytes, y->bytes);
        CU_ASSERT_EQUAL(memcmp(x->data, y->data, x->bytes), 0);
    }
    sp_model_dir_close(a);
    sp_model_dir_close(b);
    sp_tiny_remove(whole);
    sp_tiny_remove(parts);
}

static void the_single_file_wins_over_an_index(void) {
    char *dir = two_shards(GOOD_INDEX);
    put_shard(dir, "model.safetensors", (const char *[]){"only"}, 1);
    sp_model_dir *d = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&d, dir, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_model_dir_count(d), 1);
    CU_ASSERT_PTR_NOT_NULL(sp_model_dir_find(d, "only"));
    sp_model_dir_close(d);
    sp_tiny_remove(dir);
}

#define MAP(entries) "{\"weight_map\":{" entries "}}"

static void shard_names_that_leave_the_directory_are_refused(void) {
    static const char *const names[] = {"../s1.safetensors",
                                        "/etc/passwd",
                                        "a/b.safetensors",
                                        "..",
                                        ".s1.safetensors",
                                        "",
                                        "s 1.safetensors",
                                        "s1\\u0000.safetensors",
                                        "s1.bin",
                                        "\\u00e4.safetensors"};
    for (size_t i = 0; i < SP_LEN(names); i++) {
        char index[200];
        snprintf(index, sizeof index, MAP("\"a\":\"%s\""), names[i]);
        expect_refusal(two_shards(index), SP_E_FORMAT, "want a plain file name");
    }
}

static void the_index_and_the_shards_must_agree_both_ways(void) {
    expect_refusal(two_shards(MAP("\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\","
                                  "\"c\":\"s1.safetensors\"")),
                   SP_E_FORMAT, "tensor 'c' is listed in 's1.safetensors' but is not there");
    expect_refusal(two_shards(MAP("\"a\":\"s1.safetensors\"")), SP_E_FORMAT,
                   "tensor 'b' is in 's1.safetensors' but is listed nowhere");
    char *dir = two_shards(GOOD_INDEX);
    put_shard(dir, "s2.safetensors", (const char *[]){"a", "c"}, 2);
    expect_refusal(dir, SP_E_FORMAT,
                   "tensor 'a' is in 's2.safetensors' but is listed in s1.safetensors");
    expect_refusal(two_shards(MAP("\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\","
                                  "\"c\":\"s3.safetensors\"")),
                   SP_E_NOTFOUND, "s3.safetensors");
}

static void a_bad_index_is_refused_in_words(void) {
    expect_refusal(two_shards("{"), SP_E_FORMAT, "model.safetensors.index.json: JSON ends");
    expect_refusal(two_shards("[]"), SP_E_FORMAT, "weight_map is null, want an object");
    expect_refusal(two_shards("{\"weight_map\":[]}"), SP_E_FORMAT, "weight_map is an array");
    expect_refusal(two_shards(MAP("\"a\":1")), SP_E_FORMAT, "'a' is an integer");
    expect_refusal(two_shards(MAP("\"a\":\"s1.safetensors\",\"a\":\"s2.safetensors\"")),
                   SP_E_FORMAT, "comes twice");
    char *dir = two_shards(GOOD_INDEX);
    sp_tiny_put(dir, "s2.safetensors", "short", 5);
    expect_refusal(dir, SP_E_FORMAT, "s2.safetensors': is 5 bytes");
}

static void what_is_there_instead_of_safetensors_is_named(void) {
    static const char *const cases[][2] = {
        {"pytorch_model.bin", "PyTorch weights ('pytorch_model.bin')"},
        {"pytorch_model-00001-of-00002.bin", "PyTorch weights"},
        {"m.Q4_K_M.gguf", "GGUF ('m.Q4_K_M.gguf')"},
        {"consolidated.00.pth", "native (consolidated) weights"},
        {"consolidated.safetensors", "native (consolidated) weights"},
        {"model-00001-of-00002.safetensors", "safetensors without their index"},
        {"tf_model.h5", "TensorFlow"},
        {"flax_model.msgpack", "Flax"},
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        char *dir = sp_tiny_folder();
        sp_tiny_put(dir, cases[i][0], "x", 1);
        sp_tiny_put(dir, "config.json", "{}", 2);
        expect_refusal(dir, SP_E_UNSUPPORTED, cases[i][1]);
    }
    expect_refusal(sp_tiny_folder(), SP_E_NOTFOUND, "holds neither model.safetensors nor");
    char *gone = sp_tiny_folder();
    rmdir(gone);
    expect_refusal(gone, SP_E_NOTFOUND, "no such directory");
}

static void a_tensor_of_another_shape_or_type_is_told(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t), *other = sp_tiny_folder();
    put_shard(other, "model.safetensors", (const char *[]){"q"}, 1);
    sp_model_dir *d = NULL;
    sp_err err = {0};
    const sp_tensor *x = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&d, dir, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_model_dir_get(d, "lm_head.weight", 2, (int64_t[]){317, 112}, &x, &err),
                    SP_OK);
    CU_ASSERT_PTR_EQUAL(x, sp_model_dir_find(d, "lm_head.weight"));
    x = NULL;
    CU_ASSERT_EQUAL(sp_model_dir_get(d, "lm_head.weight", 2, (int64_t[]){317, 64}, &x, &err),
                    SP_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.text, "'lm_head.weight' is BF16 [317,112], want [317,64]");
    CU_ASSERT_EQUAL(sp_model_dir_get(d, "lm_head.weight", 1, (int64_t[]){317}, &x, &err),
                    SP_E_FORMAT);
    CU_ASSERT_EQUAL(sp_model_dir_get(d, "lm_head.bias", 1, (int64_t[]){317}, &x, &err),
                    SP_E_NOTFOUND);
    CU_ASSERT_STRING_EQUAL(err.text, "tensor 'lm_head.bias' is not in the model");
    sp_model_dir_close(d);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&d, other, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_model_dir_get(d, "q", 1, (int64_t[]){1}, &x, &err), SP_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.text, "'q' is U8, want F32, F16 or BF16");
    CU_ASSERT_PTR_NULL(x);
    sp_model_dir_close(d);
    sp_tiny_remove(dir);
    sp_tiny_remove(other);
}

/* ---- names ---- */

static void expect_resolved(const char *model, const char *want_end) {
    char *got = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_model_resolve(&got, model, &err), SP_OK);
    if (!got) {
        fprintf(stderr, "    %s: %s\n", model, err.text);
        return;
    }
    CU_ASSERT(sp_slice_ends(sp_slice_of(got), sp_slice_of(want_end)));
    sp_free(got);
}

static void expect_unresolved(const char *model, const char *words) {
    char *got = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_model_resolve(&got, model, &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NULL(got);
    if (!strstr(err.text, words)) fprintf(stderr, "    %s: %s\n", model, err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    sp_free(got);
}

#define REPO "models--org--name"

static void a_name_is_found_by_the_main_reference_of_the_cache(void) {
    char *cache = sp_tiny_folder();
    forget_cache_variables();
    setenv("HF_HUB_CACHE", cache, 1);
    make_dirs(cache, REPO "/refs");
    make_dirs(cache, REPO "/snapshots/0ld");
    make_dirs(cache, REPO "/snapshots/abc123");
    make_dirs(cache, "models--gpt2/snapshots/f00");
    char *repo = path_of(cache, REPO);
    sp_tiny_put(repo, "refs/main", "0ld\n", 4);
    expect_resolved("org/name", REPO "/snapshots/0ld");
    expect_resolved("gpt2", "models--gpt2/snapshots/f00");
    expect_resolved(repo, REPO); /* a directory as it is */

    /* A reference to what is not there, or out of the cache: the newest snapshot. */
    char *newest = path_of(repo, "snapshots/abc123"), *old = path_of(repo, "snapshots/0ld");
    struct timeval past[2] = {{1000, 0}, {1000, 0}};
    CU_ASSERT_EQUAL(utimes(old, past), 0);
    sp_tiny_put(repo, "refs/main", "gone", 4);
    expect_resolved("org/name", REPO "/snapshots/abc123");
    sp_tiny_put(repo, "refs/main", "../..", 5);
    expect_resolved("org/name", REPO "/snapshots/abc123");
    struct timeval later[2] = {{2000, 0}, {2000, 0}};
    CU_ASSERT_EQUAL(utimes(newest, past), 0);
    CU_ASSERT_EQUAL(utimes(old, later), 0);
    expect_resolved("org/name", REPO "/snapshots/0ld");
    sp_free(newest);
    sp_free(old);
    sp_free(repo);
    sp_tiny_remove(cache);
    forget_cache_variables();
}

static void the_cache_is_where_the_first_set_variable_says(void) {
    char *base = sp_tiny_folder(), home[512];
    snprintf(home, sizeof home, "%s", getenv("HOME") ? getenv("HOME") : "/");
    make_dirs(base, "a/" REPO "/snapshots/by-hub-cache");
    make_dirs(base, "b/hub/" REPO "/snapshots/by-home");
    make_dirs(base, "c/huggingface/hub/" REPO "/snapshots/by-xdg");
    make_dirs(base, "d/.cache/huggingface/hub/" REPO "/snapshots/by-default");
    char *a = path_of(base, "a"), *b = path_of(base, "b"), *c = path_of(base, "c"),
         *d = path_of(base, "d");
    forget_cache_variables();
    setenv("HOME", d, 1);
    expect_resolved("org/name", "by-default");
    setenv("XDG_CACHE_HOME", c, 1);
    expect_resolved("org/name", "by-xdg");
    setenv("HF_HOME", b, 1);
    expect_resolved("org/name", "by-home");
    setenv("HF_HUB_CACHE", a, 1);
    expect_resolved("org/name", "by-hub-cache");
    setenv("HF_HUB_CACHE", "", 1);
    expect_resolved("org/name", "by-home");
    setenv("HOME", home, 1);
    forget_cache_variables();
    sp_free(a);
    sp_free(b);
    sp_free(c);
    sp_free(d);
    sp_tiny_remove(base);
}

static void a_name_that_is_nowhere_is_told_with_the_way_to_get_it(void) {
    char *cache = sp_tiny_folder();
    forget_cache_variables();
    setenv("HF_HUB_CACHE", cache, 1);
    expect_unresolved("org/name", "get it with 'hf download org/name'");
    expect_unresolved("org/name", cache);
    expect_unresolved("/no/such/dir", "'/no/such/dir': no such directory");
    expect_unresolved("../name", "no such directory");
    expect_unresolved("org/..", "no such directory");
    expect_unresolved("a/b/c", "no such directory");
    expect_unresolved("", "is empty");
    sp_tiny_put(cache, "x.gguf", "GGUF", 4);
    char *file = path_of(cache, "x.gguf");
    expect_unresolved(file, "is a file, want a directory");
    sp_free(file);
    sp_tiny_remove(cache);
    forget_cache_variables();
}

static void a_snapshot_of_links_into_the_blobs_opens(void) {
    char *cache = sp_tiny_folder();
    make_dirs(cache, "blobs");
    make_dirs(cache, "snapshots/x");
    char *blobs = path_of(cache, "blobs"), *snapshot = path_of(cache, "snapshots/x");
    put_shard(blobs, "b10b", (const char *[]){"t"}, 1);
    char *link = path_of(snapshot, "model.safetensors");
    CU_ASSERT_EQUAL_FATAL(symlink("../../blobs/b10b", link), 0);
    sp_model_dir *d = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&d, snapshot, NULL), SP_OK);
    CU_ASSERT_PTR_NOT_NULL(sp_model_dir_find(d, "t"));
    sp_model_dir_close(d);
    sp_free(link);
    sp_free(blobs);
    sp_free(snapshot);
    sp_tiny_remove(cache);
}

static void every_failing_allocation_of_open_is_told(void) {
    char *dir = two_shards(GOOD_INDEX);
    sp_model_dir *d = NULL;
    int n = 1;
    for (;; n++) {
        sp_err err = {0};
        sp_mem_fail_at(n);
        sp_status st = sp_model_dir_open(&d, dir, &err);
        sp_mem_fail_at(0);
        if (st == SP_OK) break;
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        CU_ASSERT_EQUAL(err.code, SP_E_NOMEM);
        CU_ASSERT_PTR_NULL_FATAL(d);
        CU_ASSERT_FATAL(n < 200);
    }
    CU_ASSERT(n > 10);
    sp_model_dir_close(d);
    sp_model_dir_close(NULL);
    sp_tiny_remove(dir);
}

SP_TEST_MAIN("model_dir", SP_TEST(shards_are_one_sorted_set_of_tensors),
             SP_TEST(a_sharded_model_has_the_tensors_of_the_whole_one),
             SP_TEST(the_single_file_wins_over_an_index),
             SP_TEST(shard_names_that_leave_the_directory_are_refused),
             SP_TEST(the_index_and_the_shards_must_agree_both_ways),
             SP_TEST(a_bad_index_is_refused_in_words),
             SP_TEST(what_is_there_instead_of_safetensors_is_named),
             SP_TEST(a_tensor_of_another_shape_or_type_is_told),
             SP_TEST(a_name_is_found_by_the_main_reference_of_the_cache),
             SP_TEST(the_cache_is_where_the_first_set_variable_says),
             SP_TEST(a_name_that_is_nowhere_is_told_with_the_way_to_get_it),
             SP_TEST(a_snapshot_of_links_into_the_blobs_opens),
             SP_TEST(every_failing_allocation_of_open_is_told))
