/* Covers runtime/format/safetensors.c: what the format allows, everything it forbids, mutated
 * headers, and memory running out at every point. */
#include "runtime/format/safetensors.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* A file in memory with a path: /proc/self/fd/N. */
typedef struct memory_file {
    int fd;
    char path[40];
} memory_file;

static memory_file memory_file_open(void) {
    memory_file f = {.fd = memfd_create("safetensors", MFD_CLOEXEC)};
    CU_ASSERT_FATAL(f.fd >= 0);
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", f.fd);
    return f;
}

static void memory_file_write(memory_file *f, const void *bytes, size_t n) {
    CU_ASSERT_EQUAL_FATAL(ftruncate(f->fd, 0), 0);
    CU_ASSERT_EQUAL_FATAL(pwrite(f->fd, bytes, n, 0), (ssize_t)n);
}

static void put_file(sp_buf *b, sp_slice header, size_t n_data) {
    sp_buf_clear(b);
    for (int i = 0; i < 8; i++) sp_buf_putc(b, (char)(header.len >> (8 * i)));
    sp_buf_put_slice(b, header);
    for (size_t i = 0; i < n_data; i++) sp_buf_putc(b, (char)i);
}

/* Opens a file of this header and so many bytes of data. */
static sp_status open_header(sp_safetensors **out, const char *header, size_t n_data, sp_err *err) {
    memory_file f = memory_file_open();
    sp_buf b;
    sp_buf_init(&b, 0);
    put_file(&b, sp_slice_of(header), n_data);
    memory_file_write(&f, b.ptr, b.len);
    sp_status st = sp_safetensors_open(out, f.path, err);
    sp_buf_fini(&b);
    close(f.fd);
    return st;
}

static void expect_refusal(const char *header, size_t n_data, sp_status want, const char *words) {
    sp_safetensors *s = NULL;
    sp_err err = {0};
    sp_status st = open_header(&s, header, n_data, &err);
    if (st != want || !strstr(err.text, words) || strchr(err.text, '\n'))
        fprintf(stderr, "    %.200s\n    gave %s: %s\n", header, sp_status_name(st), err.text);
    CU_ASSERT_EQUAL(st, want);
    CU_ASSERT_EQUAL(err.code, want);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_PTR_NULL(strchr(err.text, '\n'));
    CU_ASSERT_PTR_NULL(s);
    sp_safetensors_close(s);
}

static void a_tensor_points_into_the_file_with_its_shape(void) {
    sp_safetensors *s = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(
        open_header(&s,
                    "{\"b\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                    "\"__metadata__\":{\"format\":\"pt\"},"
                    "\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                    16, &err),
        SP_OK);
    CU_ASSERT_EQUAL(sp_safetensors_count(s), 2);
    const sp_tensor *a = sp_safetensors_at(s, 0), *b = sp_safetensors_at(s, 1);
    CU_ASSERT_STRING_EQUAL(a->name, "a");
    CU_ASSERT_EQUAL(a->dtype, SP_DTYPE_I8);
    CU_ASSERT_EQUAL(a->bytes, 4);
    CU_ASSERT_STRING_EQUAL(b->name, "b");
    CU_ASSERT_EQUAL(b->n_dims, 2);
    CU_ASSERT_EQUAL(b->shape[0], 2);
    CU_ASSERT_EQUAL(b->shape[1], 3);
    CU_ASSERT_EQUAL(b->bytes, 12);
    CU_ASSERT_EQUAL(((const unsigned char *)b->data)[0], 4);
    CU_ASSERT_EQUAL(((const unsigned char *)b->data)[11], 15);
    CU_ASSERT_PTR_EQUAL(sp_safetensors_find(s, "b"), b);
    CU_ASSERT_PTR_EQUAL(sp_safetensors_find(s, "a"), a);
    CU_ASSERT_PTR_NULL(sp_safetensors_find(s, "__metadata__"));
    CU_ASSERT_PTR_NULL(sp_safetensors_find(s, ""));
    sp_safetensors_close(s);
}

static void scalars_empty_tensors_and_unaligned_data_are_accepted(void) {
    sp_safetensors *s = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(
        open_header(&s,
                    "{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[1,9]},"
                    "\"e1\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[1,1]},"
                    "\"e2\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[1,1]},"
                    "\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                    "\"f4\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[9,12]}} \n ",
                    12, &err),
        SP_OK);
    CU_ASSERT_EQUAL(sp_safetensors_count(s), 5);
    CU_ASSERT_EQUAL(sp_safetensors_find(s, "s")->n_dims, 0);
    CU_ASSERT_EQUAL(((const unsigned char *)sp_safetensors_find(s, "s")->data)[0], 1);
    CU_ASSERT_PTR_NULL(sp_safetensors_find(s, "e1")->data);
    CU_ASSERT_EQUAL(sp_safetensors_find(s, "e2")->bytes, 0);
    CU_ASSERT_EQUAL(sp_safetensors_find(s, "f4")->bytes, 3);
    CU_ASSERT_STRING_EQUAL(sp_safetensors_at(s, 1)->name, "e1");
    CU_ASSERT_STRING_EQUAL(sp_safetensors_at(s, 2)->name, "e2");
    sp_safetensors_close(s);
}

static void an_empty_file_of_tensors_is_accepted(void) {
    static const char *const headers[] = {"{}", "{\"__metadata__\":null}", "{\"__metadata__\":{}}"};
    for (size_t i = 0; i < SP_LEN(headers); i++) {
        sp_safetensors *s = NULL;
        CU_ASSERT_EQUAL_FATAL(open_header(&s, headers[i], 0, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_safetensors_count(s), 0);
        CU_ASSERT_PTR_NULL(sp_safetensors_find(s, "x"));
        sp_safetensors_close(s);
    }
}

#define ONE(dtype, shape, offsets) \
    "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void a_bad_header_is_refused_in_words(void) {
    expect_refusal("", 0, SP_E_FORMAT, "header is empty");
    expect_refusal("[]", 0, SP_E_FORMAT, "want '{'");
    expect_refusal(" {}", 0, SP_E_FORMAT, "want '{'");
    expect_refusal("{} x", 0, SP_E_FORMAT, "header: JSON byte 3");
    expect_refusal("{\"a\":{}", 0, SP_E_FORMAT, "header: JSON ends");
    expect_refusal("{\"a\":[[[[[[[[[]]]]]]]]]}", 0, SP_E_FORMAT, "nested deeper");
    expect_refusal("{\"a\":1}", 0, SP_E_FORMAT, "tensor 'a': is an integer, want an object");
    expect_refusal("{\"__metadata__\":[]}", 0, SP_E_FORMAT, "__metadata__ is an array");
    expect_refusal("{\"__metadata__\":{\"k\":1}}", 0, SP_E_FORMAT, "value 'k' is an integer");
    expect_refusal("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, SP_E_FORMAT, "comes twice");
    expect_refusal("{\"a\\u0000\":{}}", 0, SP_E_FORMAT, "NUL");
    expect_refusal("{\"x\\ny\":{}}", 0, SP_E_FORMAT, "tensor 'x?y'");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                   2, SP_E_FORMAT, "'a' comes twice");
}

static void a_header_of_too_many_values_is_refused_before_it_is_parsed(void) {
    size_t n = 8 * 1000 * 1000 + 3;
    char *header = sp_alloc(n + 1);
    memset(header, ',', n);
    header[0] = '{';
    uint64_t before = sp_mem_count();
    expect_refusal(header, 0, SP_E_FORMAT, "8000002 commas, want at most 8000000");
    CU_ASSERT(sp_mem_count() - before < 100);
    sp_free(header);
}

static void a_bad_tensor_is_refused_in_words(void) {
    expect_refusal("{\"a\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, SP_E_FORMAT,
                   "dtype is null");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, SP_E_FORMAT,
                   "shape is null");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, SP_E_FORMAT, "data_offsets");
    expect_refusal(ONE("\"F33\"", "[1]", "[0,4]"), 4, SP_E_UNSUPPORTED, "dtype 'F33' is not known");
    expect_refusal(ONE("\"f32\"", "[1]", "[0,4]"), 4, SP_E_UNSUPPORTED, "'f32'");
    expect_refusal(ONE("7", "[1]", "[0,4]"), 4, SP_E_FORMAT, "dtype is an integer");
    expect_refusal(ONE("\"F32\"", "[-1]", "[0,4]"), 4, SP_E_FORMAT, "dimension 0");
    expect_refusal(ONE("\"F32\"", "[1,1.0]", "[0,4]"), 4, SP_E_FORMAT, "dimension 1");
    expect_refusal(ONE("\"F32\"", "[9223372036854775808]", "[0,4]"), 4, SP_E_FORMAT, "dimension 0");
    expect_refusal(ONE("\"F32\"", "{}", "[0,4]"), 4, SP_E_FORMAT, "shape is an object");
    expect_refusal(ONE("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, SP_E_UNSUPPORTED,
                   "9 dimensions");
    expect_refusal(ONE("\"F32\"", "[4611686018427387904]", "[0,4]"), 4, SP_E_FORMAT, "too large");
    expect_refusal(ONE("\"U8\"", "[4294967296,4294967296,0]", "[0,0]"), 0, SP_E_FORMAT,
                   "too large");
    expect_refusal(ONE("\"F4\"", "[3]", "[0,2]"), 2, SP_E_FORMAT, "not whole bytes");
    expect_refusal(ONE("\"F32\"", "[2]", "[0,4]"), 4, SP_E_FORMAT, "take 8 bytes");
    expect_refusal(ONE("\"F32\"", "[1]", "[4,0]"), 4, SP_E_FORMAT, "begin <= end");
    expect_refusal(ONE("\"F32\"", "[1]", "[-4,0]"), 4, SP_E_FORMAT, "begin <= end");
    expect_refusal(ONE("\"F32\"", "[1]", "[0,4,8]"), 4, SP_E_FORMAT, "two integers");
    expect_refusal(ONE("\"F32\"", "[1]", "[0,4.0]"), 4, SP_E_FORMAT, "two integers");
}

static void bytes_must_belong_to_exactly_one_tensor(void) {
    expect_refusal(ONE("\"F32\"", "[1]", "[0,4]"), 5, SP_E_FORMAT, "1 bytes follow the last");
    expect_refusal(ONE("\"F32\"", "[1]", "[0,4]"), 3, SP_E_FORMAT, "ends at byte 4 of 3");
    expect_refusal(ONE("\"F32\"", "[1]", "[4,8]"), 8, SP_E_FORMAT, "a hole");
    expect_refusal(ONE("\"U8\"", "[9223372036854775807]", "[0,9223372036854775807]"), 8,
                   SP_E_FORMAT, "too large");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                   "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
                   3, SP_E_FORMAT, "overlap");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                   "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}",
                   2, SP_E_FORMAT, "overlap");
    expect_refusal("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[7,7]}}", 0,
                   SP_E_FORMAT, "a hole");
}

static void raw_bytes_are_refused(const char *bytes, size_t n, sp_status want, const char *words) {
    memory_file f = memory_file_open();
    memory_file_write(&f, bytes, n);
    sp_safetensors *s = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_safetensors_open(&s, f.path, &err), want);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_PTR_NULL(s);
    close(f.fd);
}

static void a_file_of_another_format_is_named(void) {
    raw_bytes_are_refused("", 0, SP_E_FORMAT, "is 0 bytes");
    raw_bytes_are_refused("1234567", 7, SP_E_FORMAT, "is 7 bytes");
    raw_bytes_are_refused("\1\0\0\0\0\0\0\0", 8, SP_E_FORMAT, "ends beyond the file of 8");
    raw_bytes_are_refused("\1\0\0\0\0\0\0\x80{}", 10, SP_E_FORMAT, "want at most 100000000");
    raw_bytes_are_refused("\0\xe1\xf5\x05\0\0\0\0{}", 10, SP_E_FORMAT, "ends beyond");
    raw_bytes_are_refused("\1\xe1\xf5\x05\0\0\0\0{}", 10, SP_E_FORMAT, "want at most 100000000");
    raw_bytes_are_refused("version https://git-lfs.github.com/spec/v1\noid", 46, SP_E_FORMAT,
                          "git lfs pull");
    raw_bytes_are_refused("GGUF\3\0\0\0\0\0\0\0", 12, SP_E_UNSUPPORTED, "GGUF");
    raw_bytes_are_refused("PK\3\4\0\0\0\1\0\0\0\0", 12, SP_E_UNSUPPORTED, "PyTorch");
}

static void a_missing_file_and_a_folder_are_told_apart(void) {
    sp_safetensors *s = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_safetensors_open(&s, "/nowhere/x.safetensors", &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "/nowhere/x.safetensors"));
    CU_ASSERT_EQUAL(sp_safetensors_open(&s, "/", &err), SP_E_IO);
    CU_ASSERT_PTR_NULL(s);
}

static void every_listed_malformed_file_is_judged_as_listed(void) {
    const char *root = sp_test_fixtures();
    if (!root) SP_SKIP("no fixtures beside the checkout");
    char path[512];
    snprintf(path, sizeof path, "%s/malformed/safetensors/manifest.json", root);
    size_t len = 0;
    char *text = sp_test_read(path, &len);
    sp_json *doc = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, (sp_slice){text, len}, 0, NULL), SP_OK);
    int n = 0;
    for (const sp_json_node *v = sp_json_first(sp_json_root(doc)); v; v = sp_json_next(v), n++) {
        sp_slice file = sp_json_string(sp_json_find(v, "file"));
        bool accept = sp_slice_is(sp_json_string(sp_json_find(v, "expect")), "accept");
        snprintf(path, sizeof path, "%s/malformed/safetensors/%.*s", root, (int)file.len, file.ptr);
        sp_safetensors *s = NULL;
        sp_err err = {0};
        sp_status st = sp_safetensors_open(&s, path, &err);
        if ((st == SP_OK) != accept) fprintf(stderr, "    %s: %s\n", path, err.text);
        CU_ASSERT_EQUAL(st == SP_OK, accept);
        CU_ASSERT(accept || st == SP_E_FORMAT || st == SP_E_UNSUPPORTED);
        if (st == SP_OK) sp_safetensors_close(s);
    }
    CU_ASSERT(n > 20);
    sp_json_free(doc);
    free(text);
}

/* Opens every *.safetensors beneath `dir` and counts them. */
static int open_all(const char *dir, int depth) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[768];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        sp_slice name = sp_slice_of(e->d_name);
        if (e->d_type == DT_DIR && e->d_name[0] != '.' && depth < 4) n += open_all(path, depth + 1);
        if (!sp_slice_ends(name, SP_SLICE(".safetensors"))) continue;
        sp_safetensors *s = NULL;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_safetensors_open(&s, path, &err), SP_OK);
        if (err.code != SP_OK) fprintf(stderr, "    %s\n", err.text);
        sp_safetensors_close(s);
        n++;
    }
    if (d) closedir(d);
    return n;
}

static void every_published_file_opens(void) {
    const char *root = sp_test_fixtures();
    if (!root) SP_SKIP("no fixtures beside the checkout");
    char path[512];
    snprintf(path, sizeof path, "%s/models", root);
    CU_ASSERT(open_all(path, 0) >= 8);
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static const char SEED_HEADER[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[8],\"data_offsets\":[0,16]},"
    "\"h.0.w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[16,40]},"
    "\"e\":{\"dtype\":\"I8\",\"shape\":[0,4],\"data_offsets\":[40,40]},"
    "\"q\":{\"dtype\":\"F4\",\"shape\":[4,6],\"data_offsets\":[40,52]}}  ";

/* A few random edits; most keep the file close enough to valid to reach deep checks. */
static void mutate(sp_buf *b, uint64_t *rng) {
    static const char alphabet[] = "0123456789,:[]{}\"\\ -.eEnu\xff\x01";
    for (int edits = 1 + (int)(next_random(rng) % 3); edits > 0; edits--) {
        size_t at = next_random(rng) % b->len;
        switch (next_random(rng) % 5) {
        case 0:
            b->ptr[at] ^= (char)(1 << next_random(rng) % 8);
            break;
        case 1:
            b->ptr[at] = alphabet[next_random(rng) % (sizeof alphabet - 1)];
            break;
        case 2: /* a digit becomes another one */
            if (b->ptr[at] >= '0' && b->ptr[at] <= '9')
                b->ptr[at] = (char)('0' + next_random(rng) % 10);
            break;
        case 3:
            b->len = at ? at : 1;
            break;
        default: {
            size_t from = next_random(rng) % b->len, n = next_random(rng) % 24;
            if (n > b->len - from) n = b->len - from;
            if (n > b->len - at) n = b->len - at;
            memmove(b->ptr + at, b->ptr + from, n);
        }
        }
    }
}

/* What was accepted must be readable to its last byte: asan watches. */
static unsigned read_everything(const sp_safetensors *s) {
    unsigned sum = 0;
    for (int i = 0; i < sp_safetensors_count(s); i++) {
        const sp_tensor *t = sp_safetensors_at(s, i);
        const unsigned char *bytes = t->data;
        CU_ASSERT_PTR_EQUAL(sp_safetensors_find(s, t->name), t);
        if (t->bytes) sum += bytes[0] + bytes[t->bytes - 1];
    }
    return sum;
}

static void twenty_thousand_mutated_files_never_do_harm(void) {
    uint64_t rng = 0x5eed5eed5eedull;
    memory_file f = memory_file_open();
    sp_buf b;
    sp_buf_init(&b, 0);
    int accepted = 0, refused = 0;
    unsigned sum = 0;
    for (int i = 0; i < 20000; i++) {
        put_file(&b, SP_SLICE(SEED_HEADER), 52);
        if (i > 0) mutate(&b, &rng);
        memory_file_write(&f, b.ptr, b.len);
        sp_safetensors *s = NULL;
        sp_err err = {0};
        sp_status st = sp_safetensors_open(&s, f.path, &err);
        if (st == SP_OK) {
            sum += read_everything(s);
            accepted++;
        } else {
            CU_ASSERT(st == SP_E_FORMAT || st == SP_E_UNSUPPORTED);
            CU_ASSERT(err.text[0] != 0);
            CU_ASSERT_PTR_NULL(s);
            refused++;
        }
        sp_safetensors_close(s);
    }
    CU_ASSERT(accepted > 100);
    CU_ASSERT(refused > 10000);
    CU_ASSERT(sum > 0);
    sp_buf_fini(&b);
    close(f.fd);
}

static void every_failing_allocation_is_told_and_leaks_nothing(void) {
    sp_safetensors *s = NULL;
    int n = 1;
    for (;; n++) {
        sp_err err = {0};
        memory_file f = memory_file_open();
        sp_buf b;
        sp_buf_init(&b, 0);
        put_file(&b, SP_SLICE(SEED_HEADER), 52);
        memory_file_write(&f, b.ptr, b.len);
        sp_buf_fini(&b);
        sp_mem_fail_at(n);
        sp_status st = sp_safetensors_open(&s, f.path, &err);
        sp_mem_fail_at(0);
        close(f.fd);
        if (st == SP_OK) break;
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "memory"));
        CU_ASSERT_PTR_NULL_FATAL(s);
        CU_ASSERT_FATAL(n < 100);
    }
    CU_ASSERT(n >= 5);
    CU_ASSERT_EQUAL(sp_safetensors_count(s), 4);
    sp_safetensors_close(s);
    sp_safetensors_close(NULL);
}

SP_TEST_MAIN(
    "safetensors", SP_TEST(a_tensor_points_into_the_file_with_its_shape),
    SP_TEST(scalars_empty_tensors_and_unaligned_data_are_accepted),
    SP_TEST(an_empty_file_of_tensors_is_accepted), SP_TEST(a_bad_header_is_refused_in_words),
    SP_TEST(a_header_of_too_many_values_is_refused_before_it_is_parsed),
    SP_TEST(a_bad_tensor_is_refused_in_words), SP_TEST(bytes_must_belong_to_exactly_one_tensor),
    SP_TEST(a_file_of_another_format_is_named), SP_TEST(a_missing_file_and_a_folder_are_told_apart),
    SP_TEST(every_listed_malformed_file_is_judged_as_listed), SP_TEST(every_published_file_opens),
    SP_TEST(twenty_thousand_mutated_files_never_do_harm),
    SP_TEST(every_failing_allocation_is_told_and_leaks_nothing))
