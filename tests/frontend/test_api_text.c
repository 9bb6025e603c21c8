/* Covers frontend/api_text.c: prompts of every form, echo, the lists of log probabilities. */
#include "tests/frontend/site.h"

#define TEXT "/v1/completions"

static void every_form_of_prompt_is_taken(void) {
    static const struct {
        const char *prompt;
        int choices, tokens;
    } rows[] = {{"\"ab\"", 1, 3},         {"[\"ab\",\"c\"]", 2, 5}, {"[97,98]", 1, 2},
                {"[[97,98],[99]]", 2, 3}, {"[\"ab\"]", 1, 3},       {"\"<|eos|>\"", 1, 2}};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char json[200];
        snprintf(json, sizeof json, "{\"prompt\":%s,\"max_tokens\":3}", rows[i].prompt);
        reply r = site_post(s, TEXT, json);
        CU_ASSERT_EQUAL(r.status, 200);
        sp_json *doc = site_json(r.body);
        const sp_json_node *o = sp_json_root(doc);
        CU_ASSERT_STRING_EQUAL(json_str(o, "object"), "text_completion");
        CU_ASSERT_EQUAL(strncmp(json_str(o, "id"), "cmpl-", 5), 0);
        CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices")), rows[i].choices);
        CU_ASSERT_EQUAL(sp_json_int(json_path(o, "usage.prompt_tokens")), rows[i].tokens);
        CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.text"), "hel");
        CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.finish_reason"), "length");
        sp_json_free(doc);
        reply_fini(&r);
    }
    site_close(s);
}

static void bad_prompts_are_refused_by_path(void) {
    static const struct {
        const char *body, *param;
    } rows[] = {{"{}", "prompt"},
                {"{\"prompt\":null}", "prompt"},
                {"{\"prompt\":\"\"}", "prompt"},
                {"{\"prompt\":[]}", "prompt"},
                {"{\"prompt\":[[]]}", "prompt.0"},
                {"{\"prompt\":5}", "prompt"},
                {"{\"prompt\":{\"a\":1}}", "prompt"},
                {"{\"prompt\":[\"a\",5]}", "prompt.1"},
                {"{\"prompt\":[[1],\"a\"]}", "prompt.1"},
                {"{\"prompt\":[1,\"a\"]}", "prompt"},
                {"{\"prompt\":[1,264]}", "prompt"},
                {"{\"prompt\":[1,-1]}", "prompt"},
                {"{\"prompt\":[true]}", "prompt.0"},
                {"{\"prompt\":\"a\",\"suffix\":\"b\"}", "suffix"},
                {"{\"prompt\":\"a\",\"suffix\":5}", "suffix"},
                {"{\"prompt\":\"a\",\"best_of\":2}", "best_of"}};
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_post(s, TEXT, rows[i].body);
        sp_json *doc = site_json(r.body);
        const char *param = json_str(sp_json_root(doc), "error.param");
        if (r.status != 400 || strcmp(param, rows[i].param) != 0)
            fprintf(stderr, "%s -> %d %s\n", rows[i].body, r.status, r.body);
        CU_ASSERT_EQUAL(r.status, 400);
        CU_ASSERT_STRING_EQUAL(param, rows[i].param);
        sp_json_free(doc);
        reply_fini(&r);
    }
    site_close(s);
}

static void choices_are_numbered_by_prompt_and_then_by_choice(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, TEXT, "{\"prompt\":[\"a\",\"b\",\"c\"],\"n\":2,\"echo\":true}");
    sp_json *doc = site_json(r.body);
    static const char *const want[] = {"ahello", "ahello", "bhello", "bhello", "chello", "chello"};
    for (int i = 0; i < 6; i++) {
        char path[40];
        snprintf(path, sizeof path, "choices.%d.text", i);
        CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), path), want[i]);
        snprintf(path, sizeof path, "choices.%d.index", i);
        CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), path)), i);
    }
    sp_json_free(doc);
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"echo\":true,\"stream\":true}");
    stream *st = stream_of(r.body);
    CU_ASSERT(st->done);
    for (int i = 0; i < 4; i++) {
        char *text = stream_text(st, i, "text");
        CU_ASSERT_STRING_EQUAL(text, want[i]);
        sp_free(text);
    }
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void log_probabilities_are_four_lists_of_one_length(void) {
    sp_fake_engine_config f = {.script = "x\xc3\xb6y"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, TEXT, "{\"prompt\":[97,98],\"logprobs\":2}");
    sp_json *doc = site_json(r.body);
    const sp_json_node *lp = json_path(sp_json_root(doc), "choices.0.logprobs");
    static const char *const lists[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(sp_json_count(sp_json_find(lp, lists[i])), 5);
    CU_ASSERT_STRING_EQUAL(json_str(lp, "tokens.0"), "x");
    CU_ASSERT_EQUAL(sp_json_number(json_path(lp, "top_logprobs.0.y")), -1.25);
    CU_ASSERT_EQUAL(sp_json_count(json_path(lp, "top_logprobs.0")), 2);
    CU_ASSERT_EQUAL(sp_json_int(json_path(lp, "text_offset.0")), 0);
    CU_ASSERT_EQUAL(sp_json_int(json_path(lp, "text_offset.1")), 1);
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void an_echo_has_the_prompts_log_probabilities_too(void) {
    site *s = site_open(NULL, NULL);
    for (int streamed = 0; streamed < 2; streamed++) {
        char json[200];
        snprintf(json, sizeof json,
                 "{\"prompt\":[97,98],\"logprobs\":0,\"echo\":true,\"max_tokens\":2,\"stream\":%s}",
                 streamed ? "true" : "false");
        reply r = site_post(s, TEXT, json);
        stream *st = stream_of(r.body);
        const char *body = streamed ? st->data[0] : r.body;
        sp_json *doc = site_json(body);
        const sp_json_node *c = json_path(sp_json_root(doc), "choices.0");
        const char *want = streamed ? "ab" : "abhe";
        CU_ASSERT_EQUAL(strcmp(json_str(c, "text"), want), 0);
        CU_ASSERT_STRING_EQUAL(json_str(c, "logprobs.tokens.0"), "a");
        CU_ASSERT(sp_json_is_null(json_path(c, "logprobs.token_logprobs.0")));
        CU_ASSERT(sp_json_is_null(json_path(c, "logprobs.top_logprobs.0")));
        CU_ASSERT_EQUAL(sp_json_number(json_path(c, "logprobs.token_logprobs.1")), -0.25);
        CU_ASSERT_EQUAL(sp_json_count(json_path(c, "logprobs.tokens")), streamed ? 2 : 4);
        CU_ASSERT_PTR_NULL(json_path(c, "prompt_logprobs"));
        sp_json_free(doc);
        if (streamed) CU_ASSERT_PTR_NOT_NULL(strstr(st->data[1], "\"text_offset\":[2]"));
        stream_free(st);
        reply_fini(&r);
    }
    reply r =
        site_post(s, TEXT, "{\"prompt\":\"ab\",\"echo\":true,\"max_tokens\":0,\"logprobs\":1}");
    sp_json *doc = site_json(r.body);
    CU_ASSERT_STRING_EQUAL(json_str(sp_json_root(doc), "choices.0.text"), "ab");
    CU_ASSERT_EQUAL(sp_json_count(json_path(sp_json_root(doc), "choices.0.logprobs.tokens")), 3);
    CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "usage.completion_tokens")), 0);
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void prompt_log_probabilities_and_ids_stand_with_their_choice(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(
        s, TEXT, "{\"prompt\":[[97],[98,99]],\"prompt_logprobs\":1,\"return_token_ids\":true}");
    sp_json *doc = site_json(r.body);
    const sp_json_node *o = sp_json_root(doc);
    CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices.0.prompt_logprobs")), 1);
    CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices.1.prompt_logprobs")), 2);
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "choices.1.prompt_logprobs.1.99.rank")), 1);
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "choices.1.prompt_token_ids.1")), 99);
    CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices.0.token_ids")), 6);
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void too_many_prompts_are_refused(void) {
    site *s = site_open(NULL, NULL);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "{\"prompt\":[\"a\"");
    for (int i = 0; i < 256; i++) sp_buf_puts(&b, ",\"a\"");
    sp_buf_puts(&b, "]}");
    reply r = site_post(s, TEXT, b.ptr);
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "256 prompts"));
    reply_fini(&r);
    r = site_post(s, TEXT,
                  "{\"n\":128,\"prompt\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]}");
    CU_ASSERT_EQUAL(r.status, 400);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "1024"));
    reply_fini(&r);
    sp_buf_fini(&b);
    site_close(s);
}

static void one_prompt_goes_from_pod_to_pod_and_not_several(void) {
    static char secret[] = "one";
    static const struct {
        const char *prompt;
        int status;
    } rows[] = {{"\"a\"", 200},   {"[\"a\"]", 200},       {"[1,2]", 200},
                {"[[1,2]]", 200}, {"[\"a\",\"b\"]", 400}, {"[[1],[2]]", 400}};
    static const char *const flags[] = {"do_remote_decode", "do_remote_prefill"};
    sp_server_config c = site_config();
    sp_server_kv kv = sp_fake_kv(secret);
    kv.recompute = true;
    c.kv = &kv;
    site *s = site_open(&c, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++)
        for (size_t k = 0; k < SP_LEN(flags); k++) {
            char json[200];
            snprintf(json, sizeof json, "{\"prompt\":%s,\"kv_transfer_params\":{\"%s\":true}}",
                     rows[i].prompt, flags[k]);
            reply r = site_post(s, TEXT, json);
            CU_ASSERT_EQUAL(r.status, rows[i].status);
            if (r.status == 400) CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"param\":\"prompt\""));
            if (r.status == 400) CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "want one prompt, got 2"));
            bool told = strstr(r.body, "\"remote_block_ids\":[]") != NULL;
            CU_ASSERT_EQUAL(told, r.status == 200 && k == 0);
            reply_fini(&r);
        }
    site_close(s);
}

SP_TEST_MAIN("frontend/api_text", SP_TEST(one_prompt_goes_from_pod_to_pod_and_not_several),
             SP_TEST(every_form_of_prompt_is_taken), SP_TEST(bad_prompts_are_refused_by_path),
             SP_TEST(choices_are_numbered_by_prompt_and_then_by_choice),
             SP_TEST(log_probabilities_are_four_lists_of_one_length),
             SP_TEST(an_echo_has_the_prompts_log_probabilities_too),
             SP_TEST(prompt_log_probabilities_and_ids_stand_with_their_choice),
             SP_TEST(too_many_prompts_are_refused))
