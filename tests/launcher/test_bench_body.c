/* Covers launcher/bench_body.c: bodies of requests, and which prompts begin alike. */
#include "launcher/bench_body.h"

#include "runtime/base/json.h"
#include "tests/harness.h"

#include <string.h>

#define TOKENS_MAX 64

static sp_json *body(const sp_load_config *c, int64_t index) {
    sp_buf b;
    sp_json *doc = NULL;
    sp_buf_init(&b, 0);
    sp_load_put_body(&b, c, "m", index);
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_buf_slice(&b), 0, NULL), SP_OK);
    sp_buf_fini(&b);
    return doc;
}

/* The ids of a prompt; their number. */
static int ids_of(const sp_load_config *c, int64_t index, int64_t out[TOKENS_MAX]) {
    sp_json *doc = body(c, index);
    const sp_json_node *prompt = sp_json_find(sp_json_root(doc), "prompt");
    const int n = sp_json_count(prompt);
    CU_ASSERT_FATAL(n <= TOKENS_MAX);
    for (int i = 0; i < n; i++) out[i] = sp_json_int(sp_json_at(prompt, i));
    sp_json_free(doc);
    return n;
}

static sp_load_config of_ids(void) {
    return (sp_load_config){
        .prompt_tokens = 50, .ids_first = 10, .ids_last = 19, .max_tokens = 4, .streams = true};
}

static void ids_are_of_the_range_and_as_many_as_asked_for(void) {
    const sp_load_config c = of_ids();
    int64_t ids[TOKENS_MAX], seen = 0;
    CU_ASSERT_EQUAL(ids_of(&c, 3, ids), 50);
    for (int i = 0; i < 50; i++) {
        CU_ASSERT(ids[i] >= 10 && ids[i] <= 19);
        seen |= 1 << (ids[i] - 10);
    }
    CU_ASSERT_EQUAL(seen, 1023); /* both ends too */
}

static void prompts_differ_by_request_and_by_seed_and_repeat_otherwise(void) {
    sp_load_config c = of_ids();
    int64_t a[TOKENS_MAX], b[TOKENS_MAX];
    ids_of(&c, 0, a);
    ids_of(&c, 0, b);
    CU_ASSERT_EQUAL(memcmp(a, b, 50 * sizeof *a), 0);
    ids_of(&c, 1, b);
    CU_ASSERT_NOT_EQUAL(memcmp(a, b, 16 * sizeof *a), 0); /* from the first block on */
    c.seed = 1;
    ids_of(&c, 0, b);
    CU_ASSERT_NOT_EQUAL(memcmp(a, b, 16 * sizeof *a), 0);
    c = of_ids();
    c.same_prompt = true;
    ids_of(&c, 0, a);
    ids_of(&c, 1, b);
    CU_ASSERT_EQUAL(memcmp(a, b, 50 * sizeof *a), 0);
}

static void words_differ_by_seed_too(void) {
    sp_load_config c = {.prompt_tokens = 40, .max_tokens = 1};
    sp_json *one = body(&c, 0);
    c.seed = 7;
    sp_json *two = body(&c, 0);
    CU_ASSERT(!sp_slice_eq(sp_json_string(sp_json_find(sp_json_root(one), "prompt")),
                           sp_json_string(sp_json_find(sp_json_root(two), "prompt"))));
    sp_json_free(one);
    sp_json_free(two);
}

static void prompts_of_a_trace_share_what_their_hash_ids_share(void) {
    int64_t ids[] = {5, 6, 7, 5, 6, 8, 9, 6};
    sp_trace_row rows[] = {{0, 12, 3, 0}, {0, 11, 4, 3}, {0, 8, 5, 6}};
    const sp_trace t = {.n = 3, .block_tokens = 4, .rows = rows, .ids = ids, .n_ids = 8};
    sp_load_config c = of_ids();
    int64_t a[TOKENS_MAX], b[TOKENS_MAX], other[TOKENS_MAX];
    c.trace = &t;
    CU_ASSERT_EQUAL(ids_of(&c, 0, a), 12);
    CU_ASSERT_EQUAL(ids_of(&c, 1, b), 11);
    CU_ASSERT_EQUAL(memcmp(a, b, 8 * sizeof *a), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a + 8, b + 8, 3 * sizeof *a), 0);
    CU_ASSERT_EQUAL(ids_of(&c, 2, other), 8);
    CU_ASSERT_NOT_EQUAL(memcmp(a, other, 4 * sizeof *a), 0);
    CU_ASSERT_EQUAL(memcmp(a + 4, other + 4, 4 * sizeof *a), 0); /* what an id stands for */
    sp_json *doc = body(&c, 2);
    int64_t max_tokens = 0;
    CU_ASSERT_EQUAL(sp_json_get_int(sp_json_root(doc), "max_tokens", 0, 100, &max_tokens, NULL),
                    SP_OK);
    CU_ASSERT_EQUAL(max_tokens, 5);
    sp_json_free(doc);
}

static void extra_members_stand_beside_ours(void) {
    sp_load_config c = of_ids();
    c.extra = "\"logit_bias\": {\"3\": 100}, \"n\": 2";
    sp_json *doc = body(&c, 0);
    int64_t n = 0;
    CU_ASSERT_EQUAL(sp_json_get_int(sp_json_root(doc), "n", 0, 9, &n, NULL), SP_OK);
    CU_ASSERT_EQUAL(n, 2);
    const sp_json_node *bias = sp_json_find(sp_json_root(doc), "logit_bias");
    CU_ASSERT_EQUAL(sp_json_int(sp_json_find(bias, "3")), 100);
    CU_ASSERT_PTR_NOT_NULL(sp_json_find(sp_json_root(doc), "stream_options"));
    sp_json_free(doc);
}

static void a_chat_says_its_prompt_as_a_message(void) {
    const sp_load_config c = {.prompt = "say \"hi\"", .is_chat = true, .max_tokens = 1};
    sp_json *doc = body(&c, 0);
    const sp_json_node *first = sp_json_at(sp_json_find(sp_json_root(doc), "messages"), 0);
    CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(first, "role")), "user"));
    CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(first, "content")), "say \"hi\""));
    CU_ASSERT_PTR_NULL(sp_json_find(sp_json_root(doc), "prompt"));
    sp_json_free(doc);
}

SP_TEST_MAIN("launcher/bench_body", SP_TEST(ids_are_of_the_range_and_as_many_as_asked_for),
             SP_TEST(prompts_differ_by_request_and_by_seed_and_repeat_otherwise),
             SP_TEST(words_differ_by_seed_too),
             SP_TEST(prompts_of_a_trace_share_what_their_hash_ids_share),
             SP_TEST(extra_members_stand_beside_ours), SP_TEST(a_chat_says_its_prompt_as_a_message))
