/* Covers frontend/api_tokens.c: /tokenize and /detokenize. */
#include "tests/frontend/site.h"

static void a_prompt_is_tokenised_with_and_without_what_the_tokenizer_adds(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, "/tokenize", "{\"model\":\"tiny\",\"prompt\":\"hi\"}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(
        r.body,
        "{\"count\":3,\"max_model_len\":4096,\"tokens\":[256,104,105],\"token_strs\":null}");
    reply_fini(&r);
    r = site_post(
        s, "/tokenize",
        "{\"prompt\":\"<|end|> \",\"add_special_tokens\":false,\"return_token_strs\":true}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"tokens\":[261,32]"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "[\"<|end|>\",\"\xc4\xa0\"]"));
    reply_fini(&r);
    r = site_post(s, "/openai/tokenize", "{\"prompt\":\"\",\"add_special_tokens\":false}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"count\":0"));
    reply_fini(&r);
    site_close(s);
}

static void a_conversation_is_tokenised_by_the_template(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"tokens\":[258,120,261,259]"));
    reply_fini(&r);
    r = site_post(
        s, "/tokenize",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"add_generation_prompt\":false,"
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"tokens\":[263,"));
    reply_fini(&r);
    site_close(s);
}

static void ids_become_text_again(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, "/detokenize", "{\"tokens\":[256,104,195,182,261]}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(r.body, "{\"prompt\":\"<|bos|>h\xc3\xb6<|end|>\"}");
    reply_fini(&r);
    r = site_post(s, "/detokenize", "{\"tokens\":[]}");
    CU_ASSERT_STRING_EQUAL(r.body, "{\"prompt\":\"\"}");
    reply_fini(&r);
    site_close(s);
}

static void bad_requests_are_refused_by_name(void) {
    static const struct {
        const char *path, *body, *param;
        int status;
    } rows[] = {{"/tokenize", "{}", "messages", 400},
                {"/tokenize", "{\"prompt\":5}", "prompt", 400},
                {"/tokenize", "{\"prompt\":\"a\",\"add_special_tokens\":\"no\"}",
                 "add_special_tokens", 400},
                {"/tokenize", "{\"prompt\":\"a\",\"model\":\"other\"}", "model", 404},
                {"/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"refuse me\"}]}",
                 "messages", 400},
                {"/detokenize", "{}", "tokens", 400},
                {"/detokenize", "{\"tokens\":\"a\"}", "tokens", 400},
                {"/detokenize", "{\"tokens\":[1,264]}", "tokens.1", 400},
                {"/detokenize", "{\"tokens\":[1,\"2\"]}", "tokens.1", 400}};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_post(s, rows[i].path, rows[i].body);
        sp_json *doc = site_json(r.body);
        if (r.status != rows[i].status) fprintf(stderr, "%s: %s\n", rows[i].body, r.body);
        CU_ASSERT_EQUAL(r.status, rows[i].status);
        CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), "error.param"), rows[i].param);
        sp_json_free(doc);
        reply_fini(&r);
    }
    site_close(s);
}

SP_TEST_MAIN("frontend/api_tokens",
             SP_TEST(a_prompt_is_tokenised_with_and_without_what_the_tokenizer_adds),
             SP_TEST(a_conversation_is_tokenised_by_the_template), SP_TEST(ids_become_text_again),
             SP_TEST(bad_requests_are_refused_by_name))
