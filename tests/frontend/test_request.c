/* Covers frontend/request.c: every shared field, its default, its range, its refusal. */
#include "frontend/request.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const names[] = {"tiny", "alias"};

typedef struct desk {
    sp_tokenizer *tokenizer;
    sp_server_config config;
    sp_request_env env;
    sp_arena arena;
    sp_fields f;
    sp_gen_options o;
    char message[4096];
} desk;

static void desk_open(desk *d) {
    sp_err err = {0};
    *d = (desk){.config = SP_SERVER_CONFIG_DEFAULT};
    if (sp_tokenizer_load(&d->tokenizer, "tests/data/frontend", &err) != SP_OK)
        fprintf(stderr, "%s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(d->tokenizer);
    d->config.model_names = names;
    d->config.n_model_names = 2;
    d->env = (sp_request_env){
        .config = &d->config, .tokenizer = d->tokenizer, .n_vocab = 264, .max_model_len = 1000};
    sp_arena_init(&d->arena, 0);
}

static void desk_close(desk *d) {
    sp_arena_fini(&d->arena);
    sp_tokenizer_free(d->tokenizer);
}

/* Reads one body; what is wrong with it is left in d->message and d->f. */
static void take(desk *d, const char *json, bool chat) {
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_request_parse(&doc, sp_slice_of(json), 64, &err), SP_OK);
    sp_arena_fini(&d->arena);
    sp_fields_init(&d->f, &d->arena);
    sp_request_options(&d->f, sp_json_root(doc), &d->env, chat, &d->o);
    const char *text = sp_fields_message(&d->f);
    snprintf(d->message, sizeof d->message, "%s", text ? text : "");
    sp_fields_fini(&d->f);
    sp_json_free(doc);
}

static void absent_and_null_fields_have_their_defaults(void) {
    desk d;
    desk_open(&d);
    static const char *const bodies[] = {
        "{}",
        "{\"model\":null,\"stream\":null,\"temperature\":null,\"top_p\":null,\"n\":null,\"stop\":"
        "null,"
        "\"max_tokens\":null,\"seed\":null,\"logprobs\":null,\"logit_bias\":null,\"stream_"
        "options\":"
        "null,\"response_format\":null,\"best_of\":null,\"min_p\":null,\"top_k\":null,\"user\":"
        "null,"
        "\"structured_outputs\":null,\"use_beam_search\":null,\"bad_words\":null,\"priority\":null,"
        "\"allowed_token_ids\":null,\"cache_salt\":null,\"truncate_prompt_tokens\":null}",
    };
    for (size_t i = 0; i < SP_LEN(bodies); i++) {
        take(&d, bodies[i], false);
        CU_ASSERT_STRING_EQUAL(d.message, "");
        const sp_gen_params *p = &d.o.params;
        CU_ASSERT_STRING_EQUAL(d.o.model, "tiny");
        CU_ASSERT(p->temperature == 1 && p->top_p == 1 && p->min_p == 0 && p->top_k == 0);
        CU_ASSERT(p->repetition_penalty == 1 && p->presence_penalty == 0 && p->n == 1);
        CU_ASSERT(p->max_tokens == 16 && !d.o.has_max_tokens && p->n_logprobs == -1);
        CU_ASSERT(!d.o.stream && d.o.skip_special && d.o.add_special && d.o.n_stops == 0);
    }
    uint64_t seed = d.o.params.seed;
    take(&d, "{}", true);
    CU_ASSERT_NOT_EQUAL(seed, d.o.params.seed);
    CU_ASSERT_FALSE(d.o.add_special);
    CU_ASSERT_EQUAL(d.o.params.max_tokens, 0);
    desk_close(&d);
}

static void the_models_own_defaults_apply_where_a_request_is_silent(void) {
    desk d;
    desk_open(&d);
    d.config.defaults = (sp_sampling_defaults){.temperature = 0.6,
                                               .top_p = 0.9,
                                               .min_p = 0.1,
                                               .repetition_penalty = 1.1,
                                               .top_k = 20,
                                               .max_new_tokens = -1};
    take(&d, "{}", true);
    const sp_gen_params *p = &d.o.params;
    CU_ASSERT(p->temperature == 0.6f && p->top_p == 0.9f && p->min_p == 0.1f && p->top_k == 20);
    CU_ASSERT_EQUAL(p->repetition_penalty, 1.1f);
    take(&d, "{\"temperature\":1,\"top_p\":1,\"top_k\":-1,\"min_p\":0,\"repetition_penalty\":1}",
         true);
    CU_ASSERT(p->temperature == 1 && p->top_p == 1 && p->min_p == 0 && p->top_k == 0);
    desk_close(&d);
}

static void low_temperatures_are_greedy_or_raised(void) {
    desk d;
    desk_open(&d);
    take(&d, "{\"temperature\":0,\"top_p\":0.5,\"top_k\":3,\"min_p\":0.5}", true);
    const sp_gen_params *p = &d.o.params;
    CU_ASSERT(p->temperature == 0 && p->top_p == 1 && p->top_k == 0 && p->min_p == 0);
    take(&d, "{\"temperature\":0.000001}", true);
    CU_ASSERT_EQUAL(p->temperature, 0);
    take(&d, "{\"temperature\":0.001}", true);
    CU_ASSERT_EQUAL(p->temperature, 0.01f);
    desk_close(&d);
}

static void good_values_arrive_as_they_were_given(void) {
    desk d;
    desk_open(&d);
    take(&d,
         "{\"model\":\"alias\",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
         "\"continuous_usage_stats\":true},\"temperature\":2,\"top_p\":0.1,\"top_k\":7,\"min_p\":1,"
         "\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_penalty\":0.5,\"seed\":-7,"
         "\"n\":128,\"max_tokens\":9,\"max_completion_tokens\":8,\"min_tokens\":2,\"ignore_eos\":"
         "true,"
         "\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[0,263],\"include_stop_str_in_output\":true,"
         "\"logit_bias\":{\"5\":-200,\"6\":1.5},\"allowed_token_ids\":[1,2,3],\"logprobs\":true,"
         "\"top_logprobs\":20,\"skip_special_tokens\":false,\"echo\":true,\"priority\":-3,"
         "\"cache_salt\":\"s\",\"return_token_ids\":true,\"return_tokens_as_token_ids\":true,"
         "\"truncate_prompt_tokens\":-1,\"truncation_side\":\"right\",\"stream_interval\":4,"
         "\"add_special_tokens\":true,\"response_format\":{\"type\":\"text\"},\"user\":\"u\","
         "\"metadata\":"
         "{},\"store\":false,\"unheard_of\":[1]}",
         true);
    CU_ASSERT_STRING_EQUAL(d.message, "");
    const sp_gen_params *p = &d.o.params;
    CU_ASSERT_STRING_EQUAL(d.o.model, "alias");
    CU_ASSERT(d.o.stream && d.o.include_usage && d.o.continuous_usage && d.o.stream_interval == 4);
    CU_ASSERT(p->temperature == 2 && p->top_p == 0.1f && p->top_k == 7 && p->min_p == 1);
    CU_ASSERT(p->presence_penalty == -2 && p->frequency_penalty == 2);
    CU_ASSERT(p->seed == (uint64_t)-7 && p->n == 128 && p->max_tokens == 8 && p->min_tokens == 2);
    CU_ASSERT(d.o.n_stops == 2 && sp_slice_is(d.o.stops[1], "bc"));
    CU_ASSERT(p->n_stop_ids == 2 && p->stop_ids[1] == 263 && d.o.include_stop);
    CU_ASSERT_EQUAL_FATAL(p->n_logit_bias, 2);
    CU_ASSERT(p->logit_bias[0].id == 5 && p->logit_bias[0].bias == -100);
    CU_ASSERT(p->logit_bias[1].id == 6 && p->logit_bias[1].bias == 1.5f);
    CU_ASSERT(p->n_allowed_ids == 3 && p->n_logprobs == 20 && !d.o.skip_special && d.o.echo);
    CU_ASSERT(d.o.priority == -3 && d.o.has_priority && d.o.truncate_prompt == -1);
    CU_ASSERT(d.o.truncate_right && d.o.add_special && p->ignore_eos);
    CU_ASSERT_STRING_EQUAL(d.o.cache_salt, "s");
    desk_close(&d);
}

static const struct {
    const char *body, *param;
    int on; /* 1 chat, 2 completions, 3 both */
} BAD_VALUES[] = {
    {"{\"model\":5}", "model", 3},
    {"{\"stream\":\"true\"}", "stream", 3},
    {"{\"stream\":1}", "stream", 3},
    {"{\"stream_options\":{\"include_usage\":true}}", "stream_options", 3},
    {"{\"stream\":true,\"stream_options\":[]}", "stream_options", 3},
    {"{\"stream\":true,\"stream_options\":{\"include_usage\":1}}", "stream_options.include_usage",
     3},
    {"{\"temperature\":-0.1}", "temperature", 3},
    {"{\"temperature\":2.1}", "temperature", 3},
    {"{\"temperature\":\"1\"}", "temperature", 3},
    {"{\"temperature\":true}", "temperature", 3},
    {"{\"temperature\":1e999}", "temperature", 3},
    {"{\"top_p\":0}", "top_p", 3},
    {"{\"top_p\":1.01}", "top_p", 3},
    {"{\"top_k\":-2}", "top_k", 3},
    {"{\"top_k\":1.5}", "top_k", 3},
    {"{\"min_p\":1.5}", "min_p", 3},
    {"{\"repetition_penalty\":0}", "repetition_penalty", 3},
    {"{\"presence_penalty\":2.5}", "presence_penalty", 3},
    {"{\"frequency_penalty\":-3}", "frequency_penalty", 3},
    {"{\"seed\":1.5}", "seed", 3},
    {"{\"seed\":99999999999999999999}", "seed", 3},
    {"{\"n\":0}", "n", 3},
    {"{\"n\":129}", "n", 3},
    {"{\"n\":2,\"best_of\":3}", "best_of", 3},
    {"{\"use_beam_search\":true}", "use_beam_search", 3},
    {"{\"max_tokens\":0}", "max_tokens", 3},
    {"{\"max_tokens\":-1}", "max_tokens", 3},
    {"{\"max_tokens\":\"5\"}", "max_tokens", 3},
    {"{\"max_completion_tokens\":0}", "max_completion_tokens", 1},
    {"{\"max_tokens\":2,\"min_tokens\":3}", "min_tokens", 3},
    {"{\"min_tokens\":-1}", "min_tokens", 3},
    {"{\"ignore_eos\":0}", "ignore_eos", 3},
    {"{\"stop\":\"\"}", "stop", 3},
    {"{\"stop\":5}", "stop", 3},
    {"{\"stop\":[\"a\",\"\"]}", "stop.1", 3},
    {"{\"stop\":[\"a\",5]}", "stop.1", 3},
    {"{\"stop\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "stop", 3},
    {"{\"stop_token_ids\":[264]}", "stop_token_ids.0", 3},
    {"{\"stop_token_ids\":[1,-1]}", "stop_token_ids.1", 3},
    {"{\"stop_token_ids\":5}", "stop_token_ids", 3},
    {"{\"logit_bias\":[]}", "logit_bias", 3},
    {"{\"logit_bias\":{\"264\":1}}", "logit_bias.264", 3},
    {"{\"logit_bias\":{\"x\":1}}", "logit_bias.x", 3},
    {"{\"logit_bias\":{\"1\":\"2\"}}", "logit_bias.1", 3},
    {"{\"logit_bias\":{\"1\":null}}", "logit_bias.1", 3},
    {"{\"allowed_token_ids\":[]}", "allowed_token_ids", 3},
    {"{\"allowed_token_ids\":[264]}", "allowed_token_ids.0", 3},
    {"{\"bad_words\":[\"\"]}", "bad_words.0", 3},
    {"{\"bad_words\":\"x\"}", "bad_words", 3},
    {"{\"logprobs\":5}", "logprobs", 1},
    {"{\"top_logprobs\":2}", "top_logprobs", 1},
    {"{\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", 1},
    {"{\"logprobs\":true,\"top_logprobs\":-1}", "top_logprobs", 1},
    {"{\"logprobs\":true}", "logprobs", 2},
    {"{\"logprobs\":21}", "logprobs", 2},
    {"{\"stream\":true,\"prompt_logprobs\":1}", "prompt_logprobs", 3},
    {"{\"prompt_logprobs\":-1}", "prompt_logprobs", 3},
    {"{\"truncate_prompt_tokens\":-2}", "truncate_prompt_tokens", 3},
    {"{\"truncate_prompt_tokens\":1001}", "truncate_prompt_tokens", 3},
    {"{\"truncation_side\":\"middle\"}", "truncation_side", 3},
    {"{\"priority\":\"high\"}", "priority", 3},
    {"{\"cache_salt\":\"\"}", "cache_salt", 3},
    {"{\"response_format\":\"json\"}", "response_format", 3},
    {"{\"response_format\":{}}", "response_format.type", 3},
    {"{\"response_format\":{\"type\":\"json_object\"}}", "response_format.type", 3},
    {"{\"response_format\":{\"type\":\"json_schema\"}}", "response_format.type", 3},
    {"{\"structured_outputs\":{\"regex\":\"a\"}}", "structured_outputs", 3},
    {"{\"guided_json\":{}}", "guided_json", 3},
    {"{\"kv_transfer_params\":7}", "kv_transfer_params", 3},
    {"{\"prompt_embeds\":\"x\"}", "prompt_embeds", 3},
    {"{\"thinking_token_budget\":5}", "thinking_token_budget", 3},
    {"{\"stream_interval\":0}", "stream_interval", 3},
};

static void bad_values_are_refused_by_their_name(void) {
    desk d;
    desk_open(&d);
    for (size_t i = 0; i < SP_LEN(BAD_VALUES); i++)
        for (int on = 1; on <= 2; on++) {
            if (!(BAD_VALUES[i].on & on)) continue;
            take(&d, BAD_VALUES[i].body, on == 1);
            if (d.f.n != 1 || strcmp(d.f.first, BAD_VALUES[i].param) != 0)
                fprintf(stderr, "%s: %d errors, first '%s': %s\n", BAD_VALUES[i].body, d.f.n,
                        d.f.first, d.message);
            CU_ASSERT_EQUAL(d.f.n, 1);
            CU_ASSERT_STRING_EQUAL(d.f.first, BAD_VALUES[i].param);
            CU_ASSERT_EQUAL(strncmp(d.message, BAD_VALUES[i].param, strlen(BAD_VALUES[i].param)),
                            0);
        }
    desk_close(&d);
}

static void completions_take_zero_tokens_only_to_echo(void) {
    desk d;
    desk_open(&d);
    take(&d, "{\"max_tokens\":0,\"echo\":true}", false);
    CU_ASSERT_EQUAL(d.f.n, 0);
    take(&d, "{\"max_tokens\":0,\"echo\":true}", true);
    CU_ASSERT_EQUAL(d.f.n, 1);
    desk_close(&d);
}

static void bad_words_become_runs_of_tokens_with_and_without_a_space(void) {
    desk d;
    desk_open(&d);
    take(&d, "{\"bad_words\":[\"ab\",\" c\"]}", true);
    CU_ASSERT_EQUAL(d.f.n, 0);
    const sp_gen_params *p = &d.o.params;
    /* One token a byte here: the spaced form is one longer and is left out, as vLLM does. */
    static const int32_t want[] = {2, 'a', 'b', 1, 'c'};
    CU_ASSERT_EQUAL_FATAL(p->n_bad_words_ints, (int32_t)SP_LEN(want));
    for (size_t i = 0; i < SP_LEN(want); i++) CU_ASSERT_EQUAL(p->bad_words[i], want[i]);
    desk_close(&d);
}

static void names_and_ids_have_a_longest(void) {
    desk d;
    desk_open(&d);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "{\"model\":\"");
    for (int i = 0; i < 5000; i++) sp_buf_putc(&b, 'm');
    sp_buf_puts(&b, "\",\"stop\":\"");
    for (int i = 0; i < 300; i++) sp_buf_putc(&b, 's');
    sp_buf_puts(&b, "\"}");
    take(&d, b.ptr, true);
    CU_ASSERT_EQUAL(d.f.n, 2);
    CU_ASSERT_PTR_NOT_NULL(strstr(d.message, "4096"));
    CU_ASSERT_PTR_NOT_NULL(strstr(d.message, "256"));
    sp_buf_fini(&b);
    desk_close(&d);
}

static void bodies_are_parsed_within_limits(void) {
    sp_json *doc = NULL;
    sp_err err = {0};
    sp_buf b;
    sp_buf_init(&b, 0);
    CU_ASSERT_EQUAL(sp_request_parse(&doc, SP_SLICE(""), 64, &err), SP_E_FORMAT);
    CU_ASSERT_EQUAL(sp_request_parse(&doc, SP_SLICE("{\"a\":1,\"a\":2}"), 64, &err), SP_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'a'"));
    CU_ASSERT_EQUAL(sp_request_parse(&doc, SP_SLICE("{\"a\":\"\xff\"}"), 64, &err), SP_E_FORMAT);
    CU_ASSERT_EQUAL(sp_request_parse(&doc, SP_SLICE("{\"a\":1}x"), 64, &err), SP_E_FORMAT);
    for (int i = 0; i < 100000; i++) sp_buf_putc(&b, '[');
    CU_ASSERT_EQUAL(sp_request_parse(&doc, sp_buf_slice(&b), 64, &err), SP_E_TOOLONG);
    sp_buf_clear(&b);
    sp_buf_putc(&b, '[');
    for (int i = 0; i < SP_JSON_NODES_MAX; i++) sp_buf_puts(&b, "0,");
    sp_buf_puts(&b, "0]");
    CU_ASSERT_EQUAL(sp_request_parse(&doc, sp_buf_slice(&b), 64, &err), SP_E_TOOLONG);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "1000000"));
    /* Commas inside strings are no values. */
    sp_buf_clear(&b);
    sp_buf_puts(&b, "[\"\\\"");
    for (int i = 0; i < SP_JSON_NODES_MAX + 10; i++) sp_buf_putc(&b, ',');
    sp_buf_puts(&b, "\"]");
    CU_ASSERT_EQUAL(sp_request_parse(&doc, sp_buf_slice(&b), 64, &err), SP_OK);
    sp_json_free(doc);
    sp_buf_fini(&b);
}

SP_TEST_MAIN("frontend/request", SP_TEST(absent_and_null_fields_have_their_defaults),
             SP_TEST(the_models_own_defaults_apply_where_a_request_is_silent),
             SP_TEST(low_temperatures_are_greedy_or_raised),
             SP_TEST(good_values_arrive_as_they_were_given),
             SP_TEST(bad_values_are_refused_by_their_name),
             SP_TEST(completions_take_zero_tokens_only_to_echo),
             SP_TEST(bad_words_become_runs_of_tokens_with_and_without_a_space),
             SP_TEST(names_and_ids_have_a_longest), SP_TEST(bodies_are_parsed_within_limits))
