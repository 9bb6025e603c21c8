/* Covers launcher/form.c: a FORM goes round, a wrong one is refused by key, its hash is that of what
 * all ranks share. */
#include "launcher/form.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static const sp_form FORM = {.model_dir = "/models/\"a\" b",
                             .backend = "cpu",
                             .kv_dtype = "F32",
                             .log_level = "info",
                             .collectives = "auto",
                             .shapes = "1,2,2,3,3",
                             .nodes = "0,0,1,1",
                             .group_key = "00ff",
                             .fingerprint = "abcd",
                             .ranks = 4,
                             .tp = 2,
                             .pp = 2,
                             .threads = 2,
                             .block_tokens = 16,
                             .n_blocks = 100,
                             .max_model_len = 2048,
                             .max_num_seqs = 64,
                             .max_batched_tokens = 512,
                             .max_step_rows = 64,
                             .timeout_ms = 60000,
                             .pin = true,
                             .fast = true,
                             .kv_key = "0123",
                             .rank = 3,
                             .local_rank = 1,
                             .local_ranks = 2};

static void a_form_comes_back_as_it_was_written(void) {
    static sp_form got; /* large */
    sp_buf b, again;
    sp_buf_init(&b, 0);
    sp_buf_init(&again, 0);
    sp_form_write(&FORM, &b);
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_form_read(&got, sp_buf_slice(&b), &err), SP_OK);
    CU_ASSERT_EQUAL(memcmp(&got, &FORM, sizeof got), 0);
    sp_form_write(&got, &again);
    CU_ASSERT_STRING_EQUAL(again.ptr, b.ptr);
    sp_buf_fini(&again);
    sp_buf_fini(&b);
}

/* Replaces `from` by `to` in a good form and wants `words`. */
static void refuse(const char *from, const char *to, const char *words) {
    static sp_form got;
    sp_buf good, bad;
    sp_buf_init(&good, 0);
    sp_buf_init(&bad, 0);
    sp_form_write(&FORM, &good);
    const char *at = strstr(good.ptr, from);
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    sp_buf_put(&bad, good.ptr, (size_t)(at - good.ptr));
    sp_buf_puts(&bad, to);
    sp_buf_puts(&bad, at + strlen(from));
    sp_err err = {0};
    CU_ASSERT_NOT_EQUAL(sp_form_read(&got, sp_buf_slice(&bad), &err), SP_OK);
    if (!strstr(err.text, words)) fprintf(stderr, "got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    sp_buf_fini(&good);
    sp_buf_fini(&bad);
}

static void a_wrong_form_is_refused_by_its_key(void) {
    refuse("\"threads\":2", "\"threads\":\"2\"", "threads: want an integer");
    refuse("\"threads\":2", "\"threads\":-1", "threads: want an integer from 0");
    refuse("\"threads\":2", "\"thread\":2", "threads: missing");
    refuse("\"threads\":2", "\"threads\":2,\"more\":1", "want an object of");
    refuse("\"backend\":\"cpu\"", "\"backend\":\"0123456789012345678901234567890123456789\"",
           "backend: want at most 31 bytes");
    refuse("\"pin\":true", "\"pin\":1", "pin: want a boolean");
    refuse("}", "", "JSON ends");
}
static void a_rank_outside_the_pod_is_refused(void) {
    refuse("\"tp\":2", "\"tp\":0", "tp: want an integer from 1");
    refuse("\"pp\":2", "\"pp\":129", "pp: want an integer");
    refuse("\"rank\":3", "\"rank\":4", "rank: want below 4, got 4");
    refuse("\"rank\":3", "\"rank\":-1", "rank: want an integer");
    refuse("\"local_rank\":1", "\"local_rank\":2", "local_rank: want below 2, got 2");
    refuse("\"first\":0", "\"first\":1", "first: want at most 0, got 1");
    refuse("\"local_ranks\":2", "\"local_ranks\":0", "local_ranks: want an integer");
}

static void hash(const sp_form *f, char out[SP_CONFIG_HASH_BYTES]) {
    memset(out, 'x', SP_CONFIG_HASH_BYTES);
    sp_form_hash(f, out);
    CU_ASSERT_EQUAL(strspn(out, "0123456789abcdef"), SP_CONFIG_HASH_BYTES - 1);
    CU_ASSERT_EQUAL(out[SP_CONFIG_HASH_BYTES - 1], 0);
}
static void the_hash_is_that_of_what_all_ranks_share(void) {
    static sp_form other;
    char a[SP_CONFIG_HASH_BYTES], b[SP_CONFIG_HASH_BYTES];
    hash(&FORM, a);
    other = FORM;
    other.rank = 0;
    other.group = 1;
    other.first = 2;
    other.tp = 1;
    other.n_blocks = 7;
    other.local_rank = 0;
    other.local_ranks = 7;
    other.kv_key[0] = 0; /* a secret of other pods too: people see the hash */
    hash(&other, b);
    CU_ASSERT_STRING_EQUAL(a, b);
#define DIFFERS(change) \
    do { \
        other = FORM; \
        change; \
        hash(&other, b); \
        CU_ASSERT_STRING_NOT_EQUAL(a, b); \
    } while (0)
    DIFFERS(other.ranks = 8);
    DIFFERS(other.null_model = true);
    DIFFERS(other.timeout_ms = 1);
    DIFFERS(other.shapes[0] = '2');
    DIFFERS(other.fingerprint[0] = 'b');
    DIFFERS(other.nodes[0] = '1');
#undef DIFFERS
}

static sp_status groups_of(const char *shapes, int64_t ranks, sp_form_group *out, int32_t *n) {
    static sp_form f; /* large */
    sp_err err = {0};
    f = FORM;
    snprintf(f.shapes, sizeof f.shapes, "%s", shapes);
    f.ranks = ranks;
    return sp_form_groups(&f, out, n, &err);
}
static void shapes_are_read_as_they_were_put(void) {
    static sp_form_group g[SP_FORM_GROUPS_MAX];
    static sp_form f; /* large */
    int32_t n = 0;
    sp_form_put_pool(&f, 2, 2, 2, (const int32_t[]){1, 5});
    sp_form_put_pool(&f, 1, 1, 3, (const int32_t[]){1, 2, 3});
    CU_ASSERT_STRING_EQUAL(f.shapes, "2,2,2,1,5;1,1,3,1,2,3");
    CU_ASSERT_EQUAL_FATAL(groups_of(f.shapes, 11, g, &n), SP_OK);
    CU_ASSERT_EQUAL(n, 3);
    CU_ASSERT(g[0].first == 0 && g[1].first == 4 && g[2].first == 8);
    CU_ASSERT(g[1].tp == 2 && g[1].pp == 2 && g[1].pp_layers[1] == 5);
    CU_ASSERT(g[2].tp == 1 && g[2].pp == 3 && g[2].pp_layers[2] == 3);
    static const char *const wrong[] = {
        "",         "1",       "1,1,1",   "0,1,1,6",          "1,1,2,6",  "1,65,1,6",
        "65,1,1,6", "1,1,1,x", "1,1,1,0", "64,1,1,6;1,1,1,6", "1,1,1,6,", "1;1,1,1,6"};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        bool taken = groups_of(wrong[i], 1, g, &n) == SP_OK;
        if (taken) fprintf(stderr, "    taken: '%s'\n", wrong[i]);
        CU_ASSERT_FALSE(taken);
    }
    CU_ASSERT_NOT_EQUAL(groups_of("1,1,1,6", 2, g, &n), SP_OK);
}
static void a_key_is_32_bytes_in_hexadecimal(void) {
    static sp_form f; /* large */
    sp_err err = {0};
    uint8_t key[SP_FORM_KEY_BYTES];
    for (int i = 0; i < 32; i++) memcpy(f.group_key + 2 * i, i == 31 ? "a7" : "01", 3);
    CU_ASSERT_EQUAL_FATAL(sp_form_key(&f, key, &err), SP_OK);
    CU_ASSERT(key[0] == 1 && key[30] == 1 && key[31] == 0xa7);
    f.group_key[63] = 0;
    CU_ASSERT_EQUAL(sp_form_key(&f, key, &err), SP_E_INVALID);
    memcpy(f.group_key + 62, "zz", 3);
    CU_ASSERT_EQUAL(sp_form_key(&f, key, &err), SP_E_INVALID);
}

static void blocks_have_a_key_of_their_own_where_other_pods_read_them(void) {
    static sp_form f; /* large */
    sp_err err = {0};
    uint8_t own[SP_FORM_KEY_BYTES], kv[SP_FORM_KEY_BYTES];
    f.kv_key[0] = 0;
    for (int i = 0; i < 32; i++) memcpy(f.group_key + 2 * i, "4e", 3);
    CU_ASSERT_EQUAL_FATAL(sp_form_key(&f, own, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_form_kv_key(&f, kv, &err), SP_OK);
    CU_ASSERT_EQUAL(memcmp(own, kv, sizeof own), 0);
    for (int i = 0; i < 32; i++) memcpy(f.kv_key + 2 * i, "A5", 3);
    CU_ASSERT_EQUAL_FATAL(sp_form_kv_key(&f, kv, &err), SP_OK);
    CU_ASSERT(kv[0] == 0xa5 && kv[31] == 0xa5);
    CU_ASSERT_EQUAL_FATAL(sp_form_key(&f, kv, &err), SP_OK);
    CU_ASSERT_EQUAL(memcmp(own, kv, sizeof own), 0);
    static const char *const wrong[] = {
        "a5", "A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A",
        " 5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5"};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        snprintf(f.kv_key, sizeof f.kv_key, "%s", wrong[i]);
        err = (sp_err){0};
        CU_ASSERT_EQUAL(sp_form_kv_key(&f, kv, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "kv_key"));
        CU_ASSERT_PTR_NULL(strstr(err.text, "5A5A")); /* never the key itself */
    }
}

static bool numbers(const char *text, int n, int32_t *out) {
    sp_err err = {0};
    return sp_form_numbers(text, n, 0, 511, out, &err) == SP_OK;
}
static void lists_of_numbers_are_exactly_as_long_as_wanted(void) {
    int32_t v[4] = {9, 9, 9, 9};
    CU_ASSERT(numbers("0,7,511", 3, v));
    CU_ASSERT(v[0] == 0 && v[1] == 7 && v[2] == 511 && v[3] == 9);
    static const char *const wrong[] = {
        "",        "0,7",   "0,7,5,1", "0,7,512",         "0,7,-1",
        "0,,7",    "0,7,",  ",0,7",    "0,7,x",           "0, 7,1",
        "+0,+7,1", "0;7;1", "0,7,1 ",  "0,7,99999999999", "0x1,7,1"};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        bool taken = numbers(wrong[i], 3, v);
        if (taken) fprintf(stderr, "    taken: '%s'\n", wrong[i]);
        CU_ASSERT_FALSE(taken);
    }
}

SP_TEST_MAIN("launcher/form", SP_TEST(a_form_comes_back_as_it_was_written),
             SP_TEST(a_wrong_form_is_refused_by_its_key),
             SP_TEST(a_rank_outside_the_pod_is_refused), SP_TEST(shapes_are_read_as_they_were_put),
             SP_TEST(a_key_is_32_bytes_in_hexadecimal),
             SP_TEST(blocks_have_a_key_of_their_own_where_other_pods_read_them),
             SP_TEST(the_hash_is_that_of_what_all_ranks_share),
             SP_TEST(lists_of_numbers_are_exactly_as_long_as_wanted))
