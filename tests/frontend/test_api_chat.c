/* Covers frontend/api_chat.c: shapes of answers and streams of /v1/chat/completions. */
#include "tests/frontend/site.h"

#define CHAT "/v1/chat/completions"
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void an_answer_has_the_members_of_the_api(void) {
    sp_fake_engine_config f = {.script = "Hello w\xc3\xb6rld", .n_cached = 2};
    site *s = site_open(NULL, &f);
    reply r = site_ask(s, "POST", CHAT, "X-Request-Id: my-id\r\n", "{\"model\":\"alias\"," HI "}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Content-Type"), "application/json");
    sp_json *doc = site_json(r.body);
    const sp_json_node *o = sp_json_root(doc);
    CU_ASSERT_STRING_EQUAL(json_str(o, "id"), "chatcmpl-my-id");
    CU_ASSERT_STRING_EQUAL(json_str(o, "object"), "chat.completion");
    CU_ASSERT(sp_json_int(json_path(o, "created")) > 1600000000);
    CU_ASSERT_STRING_EQUAL(json_str(o, "model"), "alias");
    CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices")), 1);
    CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.message.role"), "assistant");
    CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.message.content"), "Hello w\xc3\xb6rld");
    CU_ASSERT(json_path(o, "choices.0.message.refusal") != NULL);
    CU_ASSERT_PTR_NULL(json_path(o, "choices.0.message.tool_calls"));
    CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.finish_reason"), "stop");
    CU_ASSERT(sp_json_is_null(json_path(o, "choices.0.stop_reason")));
    CU_ASSERT(sp_json_is_null(json_path(o, "choices.0.logprobs")));
    /* <|user|> h i <|end|> <|assistant|>; twelve bytes and EOS. */
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "usage.prompt_tokens")), 5);
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "usage.completion_tokens")), 13);
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "usage.total_tokens")), 18);
    CU_ASSERT_EQUAL(sp_json_int(json_path(o, "usage.prompt_tokens_details.cached_tokens")), 2);
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void a_stream_opens_with_the_role_and_ends_with_done(void) {
    sp_fake_engine_config f = {.script = "Hello w\xc3\xb6rld \xf0\x9f\x98\x80!"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, CHAT, "{\"stream\":true," HI "}");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Content-Type"), "text/event-stream; charset=utf-8");
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Cache-Control"), "no-cache");
    stream *st = stream_of(r.body);
    CU_ASSERT(st->done && r.whole);
    char id[200] = "";
    for (int i = 0; i < st->n; i++) {
        sp_json *doc = site_json(st->data[i]);
        const sp_json_node *o = sp_json_root(doc);
        CU_ASSERT_STRING_EQUAL(json_str(o, "object"), "chat.completion.chunk");
        if (i == 0) snprintf(id, sizeof id, "%s", json_str(o, "id"));
        CU_ASSERT_STRING_EQUAL(json_str(o, "id"), id);
        CU_ASSERT_PTR_NULL(json_path(o, "usage"));
        CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices")), 1);
        const sp_json_node *finish = json_path(o, "choices.0.finish_reason");
        CU_ASSERT_PTR_NOT_NULL(finish);
        CU_ASSERT_EQUAL(sp_json_is_null(finish), i < st->n - 1);
        if (i == 0) CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.delta.role"), "assistant");
        if (i == 0) CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.delta.content"), "");
        if (i > 0) CU_ASSERT_PTR_NULL(json_path(o, "choices.0.delta.role"));
        if (i == st->n - 1) CU_ASSERT_EQUAL(sp_json_count(json_path(o, "choices.0.delta")), 0);
        sp_json_free(doc);
    }
    char *text = stream_text(st, 0, "delta.content");
    CU_ASSERT_STRING_EQUAL(text, f.script);
    /* Four bytes of one character are one chunk. */
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "{\"content\":\"\xf0\x9f\x98\x80\"}"));
    CU_ASSERT_PTR_NULL(strstr(r.body, "\xef\xbf\xbd"));
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void usage_is_streamed_as_asked(void) {
    site *s = site_open(NULL, NULL);
    reply r =
        site_post(s, CHAT, "{\"stream\":true,\"stream_options\":{\"include_usage\":true}," HI "}");
    stream *st = stream_of(r.body);
    for (int i = 0; i < st->n; i++) {
        sp_json *doc = site_json(st->data[i]);
        const sp_json_node *usage = json_path(sp_json_root(doc), "usage");
        CU_ASSERT_PTR_NOT_NULL(usage);
        bool last = i == st->n - 1;
        CU_ASSERT_EQUAL(sp_json_is_null(usage), !last);
        CU_ASSERT_EQUAL(sp_json_count(json_path(sp_json_root(doc), "choices")), !last);
        if (last) CU_ASSERT_EQUAL(sp_json_int(json_path(usage, "completion_tokens")), 6);
        sp_json_free(doc);
    }
    stream_free(st);
    reply_fini(&r);
    r = site_post(s, CHAT,
                  "{\"stream\":true,\"stream_options\":{\"include_usage\":true,"
                  "\"continuous_usage_stats\":true}," HI "}");
    st = stream_of(r.body);
    for (int i = 0; i < st->n; i++) {
        sp_json *doc = site_json(st->data[i]);
        CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "usage.prompt_tokens")), 5);
        sp_json_free(doc);
    }
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void several_choices_are_told_apart_by_index(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, CHAT, "{\"n\":3,\"stream\":true," HI "}");
    stream *st = stream_of(r.body);
    for (int c = 0; c < 3; c++) {
        char *text = stream_text(st, c, "delta.content");
        CU_ASSERT_STRING_EQUAL(text, "hello");
        sp_free(text);
    }
    stream_free(st);
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"n\":3," HI "}");
    sp_json *doc = site_json(r.body);
    CU_ASSERT_EQUAL(sp_json_count(json_path(sp_json_root(doc), "choices")), 3);
    CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "choices.2.index")), 2);
    CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "usage.completion_tokens")), 18);
    CU_ASSERT_EQUAL(sp_json_int(json_path(sp_json_root(doc), "usage.prompt_tokens")), 5);
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void log_probabilities_carry_bytes_and_alternatives(void) {
    sp_fake_engine_config f = {.script = "\xc3\xb6!"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, CHAT, "{\"logprobs\":true,\"top_logprobs\":3," HI "}");
    sp_json *doc = site_json(r.body);
    const sp_json_node *list = json_path(sp_json_root(doc), "choices.0.logprobs.content");
    CU_ASSERT_EQUAL_FATAL(sp_json_count(list), 4); /* two bytes, one, EOS */
    CU_ASSERT_EQUAL(sp_json_int(json_path(list, "0.bytes.0")), 0xc3);
    CU_ASSERT_EQUAL(sp_json_int(json_path(list, "1.bytes.0")), 0xb6);
    CU_ASSERT_STRING_EQUAL(json_str(list, "2.token"), "!");
    CU_ASSERT_EQUAL(sp_json_number(json_path(list, "2.logprob")), -0.25);
    CU_ASSERT_EQUAL(sp_json_count(json_path(list, "2.top_logprobs")), 3);
    CU_ASSERT_STRING_EQUAL(json_str(list, "2.top_logprobs.0.token"), "!");
    CU_ASSERT_STRING_EQUAL(json_str(list, "2.top_logprobs.1.token"), "\"");
    sp_json_free(doc);
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"logprobs\":true,\"return_tokens_as_token_ids\":true," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"token_id:33\""));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"top_logprobs\":[]"));
    reply_fini(&r);
    /* Streamed: every token's entry, once, with the chunk that its text is in. */
    r = site_post(s, CHAT, "{\"logprobs\":true,\"stream\":true," HI "}");
    stream *st = stream_of(r.body);
    int n = 0;
    for (int i = 0; i < st->n; i++) {
        doc = site_json(st->data[i]);
        n += sp_json_count(json_path(sp_json_root(doc), "choices.0.logprobs.content"));
        sp_json_free(doc);
    }
    CU_ASSERT_EQUAL(n, 4);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void a_stop_string_cuts_the_answer_and_is_named(void) {
    sp_fake_engine_config f = {.script = "one two three"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, CHAT, "{\"stop\":[\"zzz\",\" three\"]," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"content\":\"one two\""));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"stop_reason\":\" three\""));
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"stop\":\"two\",\"include_stop_str_in_output\":true," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"content\":\"one two\""));
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"stop\":\"two\",\"stream\":true," HI "}");
    CU_ASSERT_PTR_NULL(strstr(r.body, "\"t\""));
    stream *st = stream_of(r.body);
    char *text = stream_text(st, 0, "delta.content");
    CU_ASSERT_STRING_EQUAL(text, "one ");
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"stop_token_ids\":[116]," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"content\":\"one \""));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"stop_reason\":116"));
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"stop\":\"one\",\"min_tokens\":5," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"content\":\"one two three\""));
    reply_fini(&r);
    site_close(s);
}

static void a_beginning_of_a_stop_string_is_given_out_at_the_end(void) {
    sp_fake_engine_config f = {.script = "a END"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, CHAT, "{\"stop\":\"ENDING\",\"stream\":true," HI "}");
    stream *st = stream_of(r.body);
    char *text = stream_text(st, 0, "delta.content");
    CU_ASSERT_STRING_EQUAL(text, "a END");
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void token_ids_come_back_when_asked(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, CHAT, "{\"return_token_ids\":true," HI "}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"token_ids\":[104,101,108,108,111,257]"));
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"prompt_token_ids\":[258,104,105,261,259]"));
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"return_token_ids\":true,\"stream\":true," HI "}");
    stream *st = stream_of(r.body);
    sp_json *doc = site_json(st->data[0]);
    CU_ASSERT_EQUAL(sp_json_count(json_path(sp_json_root(doc), "prompt_token_ids")), 5);
    sp_json_free(doc);
    int n = 0;
    for (int i = 1; i < st->n; i++) {
        doc = site_json(st->data[i]);
        n += sp_json_count(json_path(sp_json_root(doc), "choices.0.token_ids"));
        sp_json_free(doc);
    }
    CU_ASSERT_EQUAL(n, 6);
    stream_free(st);
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"prompt_logprobs\":1," HI "}");
    doc = site_json(r.body);
    const sp_json_node *list = json_path(sp_json_root(doc), "prompt_logprobs");
    CU_ASSERT_EQUAL(sp_json_count(list), 5);
    CU_ASSERT(sp_json_is_null(sp_json_at(list, 0)));
    CU_ASSERT_STRING_EQUAL(json_str(list, "1.104.decoded_token"), "h");
    sp_json_free(doc);
    reply_fini(&r);
    site_close(s);
}

static void an_echo_begins_with_the_message_it_goes_on_from(void) {
    site *s = site_open(NULL, NULL);
    static const char *const body =
        "{\"echo\":true,\"continue_final_message\":true,\"stream\":%s,\"messages\":[{\"role\":"
        "\"user\","
        "\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"Well, \"}]}";
    char json[400];
    snprintf(json, sizeof json, body, "false");
    reply r = site_post(s, CHAT, json);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"content\":\"Well, hello\""));
    reply_fini(&r);
    snprintf(json, sizeof json, body, "true");
    r = site_post(s, CHAT, json);
    stream *st = stream_of(r.body);
    char *text = stream_text(st, 0, "delta.content");
    CU_ASSERT_STRING_EQUAL(text, "Well, hello");
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void chunks_may_be_made_of_several_tokens(void) {
    sp_fake_engine_config f = {.script = "abcdefghij"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, CHAT, "{\"stream\":true,\"stream_interval\":4," HI "}");
    stream *st = stream_of(r.body);
    /* role, a, bcde, fghi, j, finish */
    CU_ASSERT_EQUAL(st->n, 6);
    char *text = stream_text(st, 0, "delta.content");
    CU_ASSERT_STRING_EQUAL(text, "abcdefghij");
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

/* All keys of `want` that a client of the recorded service reads are in `got`, level by level. */
static void has_keys_of(const sp_json_node *got, const sp_json_node *want, const char *where) {
    static const char *const theirs[] = {"service_tier",
                                         "system_fingerprint",
                                         "obfuscation",
                                         "annotations",
                                         "refusal",
                                         "audio_tokens",
                                         "accepted_prediction_tokens",
                                         "rejected_prediction_tokens"};
    for (const sp_json_node *m = sp_json_first(want); m; m = sp_json_next(m)) {
        const char *key = sp_json_key(m).ptr;
        bool extra = false;
        for (size_t i = 0; key && i < SP_LEN(theirs); i++) extra |= strcmp(key, theirs[i]) == 0;
        if (extra) continue;
        const sp_json_node *mine = key ? sp_json_find(got, key) : sp_json_first(got);
        if (!mine) fprintf(stderr, "%s: no '%s'\n", where, key ? key : "[0]");
        CU_ASSERT_PTR_NOT_NULL(mine);
        sp_json_type t = sp_json_type_of(m);
        if (mine && t != SP_JSON_NULL && !sp_json_is_null(mine))
            CU_ASSERT_EQUAL(sp_json_type_of(mine), t);
        if (mine && (t == SP_JSON_OBJECT || t == SP_JSON_ARRAY)) has_keys_of(mine, m, where);
        if (!key) break; /* of lists the first item */
    }
}

static void our_shapes_have_the_keys_of_recorded_ones(void) {
    const char *dir = sp_test_fixtures();
    if (!dir) SP_SKIP("no fixtures beside the checkout");
    char path[500];
    snprintf(path, sizeof path, "%s/openai/streams/openai/openai-text.json", dir);
    char *whole = sp_test_read(path, NULL);
    snprintf(path, sizeof path, "%s/openai/streams/openai/openai-text.chunks.txt", dir);
    char *chunks = sp_test_read(path, NULL);
    site *s = site_open(NULL, NULL);
    sp_json *want = site_json(whole);
    reply r = site_post(s, CHAT, "{" HI "}");
    sp_json *got = site_json(r.body);
    has_keys_of(sp_json_root(got), sp_json_root(want), "answer");
    sp_json_free(want);
    sp_json_free(got);
    reply_fini(&r);

    r = site_post(s, CHAT, "{\"stream\":true,\"stream_options\":{\"include_usage\":true}," HI "}");
    stream *st = stream_of(r.body);
    int n = 0;
    char *save = NULL, *lines[4096];
    for (char *l = strtok_r(chunks, "\n", &save); l && n < 4096; l = strtok_r(NULL, "\n", &save))
        lines[n++] = l;
    while (n > 0 && lines[n - 1][0] != '{') n--;
    /* First, second, last but one and last of both are alike. */
    const int theirs[] = {0, 1, n - 2, n - 1}, ours[] = {0, 1, st->n - 2, st->n - 1};
    for (size_t i = 0; i < SP_LEN(ours); i++) {
        want = site_json(lines[theirs[i]]);
        got = site_json(st->data[ours[i]]);
        has_keys_of(sp_json_root(got), sp_json_root(want), lines[theirs[i]]);
        sp_json_free(want);
        sp_json_free(got);
    }
    stream_free(st);
    reply_fini(&r);
    free(whole);
    free(chunks);
    site_close(s);
}

/* Every required member of a schema of the API's own description is there. */
static void has_required(const sp_json_node *schemas, const char *name, const sp_json_node *got) {
    const sp_json_node *schema = sp_json_find(schemas, name);
    CU_ASSERT_PTR_NOT_NULL_FATAL(schema);
    const sp_json_node *required = sp_json_find(schema, "required");
    CU_ASSERT(sp_json_count(required) > 0);
    for (const sp_json_node *k = sp_json_first(required); k; k = sp_json_next(k)) {
        const char *key = sp_json_string(k).ptr;
        if (!sp_json_find(got, key)) fprintf(stderr, "%s: no '%s'\n", name, key);
        CU_ASSERT_PTR_NOT_NULL(sp_json_find(got, key));
    }
}

static void answers_have_what_the_published_schemas_require(void) {
    const char *dir = sp_test_fixtures();
    if (!dir) SP_SKIP("no fixtures beside the checkout");
    char path[500];
    snprintf(path, sizeof path, "%s/openai/openapi.json", dir);
    char *text = sp_test_read(path, NULL);
    sp_json *api = site_json(text);
    const sp_json_node *schemas = json_path(sp_json_root(api), "components.schemas");
    static const struct {
        const char *path, *body, *schema, *inner, *inner_schema;
    } rows[] = {
        {CHAT, "{" HI "}", "CreateChatCompletionResponse", "choices.0.message",
         "ChatCompletionResponseMessage"},
        {CHAT, "{\"logprobs\":true,\"top_logprobs\":1," HI "}", "CreateChatCompletionResponse",
         "choices.0.logprobs.content.0", "ChatCompletionTokenLogprob"},
        {"/v1/completions", "{\"prompt\":\"a\"}", "CreateCompletionResponse", "usage",
         "CompletionUsage"},
    };
    site *s = site_open(NULL, NULL);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_post(s, rows[i].path, rows[i].body);
        sp_json *got = site_json(r.body);
        has_required(schemas, rows[i].schema, sp_json_root(got));
        has_required(schemas, rows[i].inner_schema, json_path(sp_json_root(got), rows[i].inner));
        sp_json_free(got);
        reply_fini(&r);
    }
    reply r = site_get(s, "/v1/models");
    sp_json *got = site_json(r.body);
    has_required(schemas, "ListModelsResponse", sp_json_root(got));
    has_required(schemas, "Model", json_path(sp_json_root(got), "data.0"));
    sp_json_free(got);
    reply_fini(&r);
    r = site_post(s, CHAT, "{\"stream\":true," HI "}");
    stream *st = stream_of(r.body);
    for (int i = 0; i < st->n; i++) {
        got = site_json(st->data[i]);
        has_required(schemas, "CreateChatCompletionStreamResponse", sp_json_root(got));
        sp_json_free(got);
    }
    stream_free(st);
    reply_fini(&r);
    sp_json_free(api);
    free(text);
    site_close(s);
}

/* What another pod needs stands beside the choices; of a stream in the chunk that ends it. */
static void what_is_lent_stands_beside_the_choices(void) {
    static char secret[] = "one";
    sp_server_config c = site_config();
    sp_server_kv kv = sp_fake_kv(secret);
    sp_fake_engine_config f = {.kv_blocks = 2};
    c.kv = &kv;
    site *s = site_open(&c, &f);
    static const char *const more[] = {
        "", "\"stream\":true,", "\"stream\":true,\"n\":2,",
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},"};
    for (size_t i = 0; i < SP_LEN(more); i++) {
        char body[400];
        snprintf(body, sizeof body, "{%s\"kv_transfer_params\":{\"do_remote_decode\":true}," HI "}",
                 more[i]);
        reply r = site_post(s, CHAT, body);
        CU_ASSERT_EQUAL_FATAL(r.status, 200);
        stream *st = i ? stream_of(r.body) : NULL;
        int last = !st ? 0 : st->n - (i == 3 ? 2 : 1); /* usage has a chunk of its own */
        for (int k = 0; st && k < st->n; k++)
            CU_ASSERT_EQUAL(strstr(st->data[k], "kv_transfer_params") != NULL, k == last);
        sp_json *doc = site_json(st ? st->data[last] : r.body);
        const sp_json_node *o = sp_json_root(doc);
        CU_ASSERT_STRING_EQUAL(json_str(o, "choices.0.finish_reason"), "stop");
        CU_ASSERT(sp_json_bool(json_path(o, "kv_transfer_params.do_remote_prefill")));
        CU_ASSERT_EQUAL(sp_json_count(json_path(o, "kv_transfer_params.remote_block_ids")), 2);
        CU_ASSERT_STRING_EQUAL(json_str(o, "kv_transfer_params.remote_request_id"),
                               json_str(o, "id"));
        sp_json_free(doc);
        if (st) stream_free(st);
        reply_fini(&r);
    }
    site_close(s);
}

SP_TEST_MAIN("frontend/api_chat", SP_TEST(what_is_lent_stands_beside_the_choices),
             SP_TEST(an_answer_has_the_members_of_the_api),
             SP_TEST(a_stream_opens_with_the_role_and_ends_with_done),
             SP_TEST(usage_is_streamed_as_asked), SP_TEST(several_choices_are_told_apart_by_index),
             SP_TEST(log_probabilities_carry_bytes_and_alternatives),
             SP_TEST(a_stop_string_cuts_the_answer_and_is_named),
             SP_TEST(a_beginning_of_a_stop_string_is_given_out_at_the_end),
             SP_TEST(token_ids_come_back_when_asked),
             SP_TEST(an_echo_begins_with_the_message_it_goes_on_from),
             SP_TEST(chunks_may_be_made_of_several_tokens),
             SP_TEST(our_shapes_have_the_keys_of_recorded_ones),
             SP_TEST(answers_have_what_the_published_schemas_require))
