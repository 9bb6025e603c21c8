/* Covers frontend/reply.c: error objects, numbers, log probabilities. */
#include "frontend/reply.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static sp_tokenizer *load(void) {
    sp_tokenizer *t = NULL;
    sp_err err = {0};
    if (sp_tokenizer_load(&t, "tests/data/frontend", &err) != SP_OK)
        fprintf(stderr, "%s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    return t;
}

static void an_error_object_has_its_four_members(void) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_put_fault(&b, &(sp_fault){404, "no \"x\"", "model", NULL, 0});
    CU_ASSERT_STRING_EQUAL(b.ptr,
                           "{\"error\":{\"message\":\"no \\\"x\\\"\",\"type\":\"NotFoundError\","
                           "\"param\":\"model\",\"code\":404}}");
    sp_buf_clear(&b);
    sp_put_fault(&b, &(sp_fault){400, "m", NULL, "too_long", 0});
    CU_ASSERT_STRING_EQUAL(b.ptr,
                           "{\"error\":{\"message\":\"m\",\"type\":\"BadRequestError\",\"param\":"
                           "null,\"code\":\"too_long\"}}");
    sp_buf_fini(&b);
}

static void every_status_has_its_type(void) {
    static const struct {
        int http;
        const char *type;
    } rows[] = {{400, "BadRequestError"},
                {401, "AuthenticationError"},
                {404, "NotFoundError"},
                {413, "BadRequestError"},
                {422, "UnprocessableEntityError"},
                {429, "RateLimitError"},
                {500, "InternalServerError"},
                {501, "NotImplementedError"},
                {503, "ServiceUnavailableError"},
                {505, "InternalServerError"}};
    for (size_t i = 0; i < SP_LEN(rows); i++)
        CU_ASSERT_STRING_EQUAL(sp_fault_type(rows[i].http), rows[i].type);
}

static void numbers_read_back_as_they_were(void) {
    static const struct {
        float v;
        const char *want;
    } rows[] = {{-0.25f, "-0.25"},
                {0, "0"},
                {-1.17549435e-38f, "-1.1754944e-38"},
                {0.1f, "0.1"},
                {-12345.678f, "-12345.678"}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_put_float(&w, rows[i].v);
        CU_ASSERT_EQUAL(strtof(b.ptr, NULL), rows[i].v);
        CU_ASSERT_STRING_EQUAL(b.ptr, rows[i].want);
        sp_buf_fini(&b);
    }
    static const float low[] = {-INFINITY, -10000.0f, NAN};
    for (size_t i = 0; i < SP_LEN(low); i++) {
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_put_logprob(&w, low[i]);
        CU_ASSERT_STRING_EQUAL(b.ptr, "-9999.0");
        sp_buf_fini(&b);
    }
}

static sp_token_logprobs *make(int32_t id, int n, const int32_t *top) {
    sp_token_logprobs *lp = sp_alloc(sizeof *lp + (size_t)n * sizeof lp->top[0]);
    lp->id = id;
    lp->logprob = -1;
    lp->rank = 7;
    lp->n_top = n;
    for (int i = 0; i < n; i++) {
        lp->top[i].id = top[i];
        lp->top[i].logprob = -2.0f - (float)i;
    }
    return lp;
}

static void the_chosen_token_comes_first_among_the_alternatives(void) {
    sp_tokenizer *t = load();
    sp_token_style style = {t, false};
    static const int32_t top[] = {'a', 'b', 'c'};
    sp_token_logprobs *outside = make('z', 3, top), *inside = make('b', 3, top);
    const struct {
        const sp_token_logprobs *lp;
        int n;
        const char *first, *last, *never;
    } rows[] = {{outside, 2, "{\"token\":\"z\"", "{\"token\":\"a\"", "{\"token\":\"b\""},
                {inside, 3, "{\"token\":\"b\"", "{\"token\":\"c\"", "{\"token\":\"d\""},
                {inside, 0, "\"top_logprobs\":[]", "\"top_logprobs\":[]", "{\"token\":\"a\""}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_put_chat_logprob(&w, &style, rows[i].lp, rows[i].n);
        const char *list = strstr(b.ptr, "\"top_logprobs\"");
        CU_ASSERT_PTR_NOT_NULL_FATAL(list);
        const char *first = strstr(list, rows[i].first), *last = strstr(list, rows[i].last);
        CU_ASSERT(first && last && first <= last);
        CU_ASSERT_PTR_NULL(strstr(list, rows[i].never));
        sp_buf_fini(&b);
    }
    sp_free(outside);
    sp_free(inside);
    sp_tokenizer_free(t);
}

static void no_key_of_an_object_comes_twice(void) {
    sp_tokenizer *t = load();
    sp_token_style style = {t, false};
    /* Three halves of characters look alike, and '"' and '\' need escapes. */
    static const int32_t top[] = {0xc3, 0xff, 0xc4, '"', '\\', 'a'};
    sp_token_logprobs *lp = make(0xfe, 6, top);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_put_text_top_logprobs(&w, &style, lp, 6);
    sp_json *doc = NULL;
    sp_err err = {0};
    /* The reader refuses a key that comes twice. */
    CU_ASSERT_EQUAL(sp_json_parse(&doc, sp_buf_slice(&b), 0, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_json_count(sp_json_root(doc)), 4);
    CU_ASSERT_EQUAL(sp_json_number(sp_json_find(sp_json_root(doc), "\xef\xbf\xbd")), -1);
    sp_json_free(doc);
    sp_buf_fini(&b);
    sp_free(lp);
    sp_tokenizer_free(t);
}

static void finishes_have_the_names_of_the_api(void) {
    CU_ASSERT_STRING_EQUAL(sp_finish_name(SP_FINISH_STOP), "stop");
    CU_ASSERT_STRING_EQUAL(sp_finish_name(SP_FINISH_LENGTH), "length");
    CU_ASSERT_PTR_NULL(sp_finish_name(SP_FINISH_NONE));
}

SP_TEST_MAIN("frontend/reply", SP_TEST(an_error_object_has_its_four_members),
             SP_TEST(every_status_has_its_type), SP_TEST(numbers_read_back_as_they_were),
             SP_TEST(the_chosen_token_comes_first_among_the_alternatives),
             SP_TEST(no_key_of_an_object_comes_twice), SP_TEST(finishes_have_the_names_of_the_api))
