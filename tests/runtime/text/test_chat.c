/* Covers runtime/text/chat.c and chat_input.c: where templates come from, what becomes of messages,
 * and that users cannot write control tokens. */
#include "runtime/text/chat.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PODLING "configs/podling"
#define SIMPLE \
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" \
    "{% if add_generation_prompt %}[assistant]{% endif %}"

/* --- folders with templates --- */

typedef struct folder {
    char path[64];
    char *files[4];
    int n;
} folder;

static folder make_folder(void) {
    folder f = {.path = "/tmp/sp_chat_XXXXXX"};
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(f.path));
    return f;
}

static const char *put_file(folder *f, const char *name, const char *text) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    FILE *file = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    fputs(text, file);
    fclose(file);
    f->files[f->n] = sp_strdup(path);
    return f->files[f->n++];
}

static void remove_folder(folder *f) {
    for (int i = 0; i < f->n; i++) {
        unlink(f->files[i]);
        sp_free(f->files[i]);
    }
    rmdir(f->path);
}

/* --- rendering --- */

typedef struct prompt {
    sp_status st;
    sp_buf text;
    sp_slice marker;
    sp_err err;
} prompt;

static sp_json *parse(const char *json) {
    sp_json *doc = NULL;
    sp_err err = {0};
    if (!json) return NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 0, &err), SP_OK);
    return doc;
}

static prompt render(const sp_chat *c, const char *messages, const char *tools,
                     sp_chat_request req) {
    prompt p = {.st = SP_OK};
    sp_json *m = parse(messages), *t = parse(tools);
    req.messages = sp_json_root(m);
    req.tools = sp_json_root(t);
    sp_buf_init(&p.text, 0);
    p.st = sp_chat_render(c, &req, &p.text, &p.marker, &p.err);
    sp_json_free(m);
    sp_json_free(t);
    return p;
}

static void must_be(prompt p, const char *want) {
    if (p.st != SP_OK || !sp_slice_is(sp_buf_slice(&p.text), want)) {
        fprintf(stderr, "want '%s', got '%s'\n", want, p.st == SP_OK ? p.text.ptr : p.err.text);
        CU_FAIL("wrong prompt");
    }
    sp_buf_fini(&p.text);
}

static void must_fail(prompt p, sp_status want, const char *words) {
    if (p.st != want || !strstr(p.err.text, words)) {
        fprintf(stderr, "want '%s', got '%s'\n", words, p.st == SP_OK ? p.text.ptr : p.err.text);
        CU_FAIL("wrong error");
    }
    CU_ASSERT_EQUAL(p.text.len, 0);
    sp_buf_fini(&p.text);
}

/* A chat from one template text. */
static sp_chat *chat_of(const char *template) {
    folder f = make_folder();
    sp_chat *c = NULL;
    sp_err err = {0};
    sp_status st = sp_chat_load_file(&c, put_file(&f, "t.jinja", template), NULL, &err);
    remove_folder(&f);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    return c;
}

static void gives(const char *template, const char *messages, const char *want) {
    sp_chat *c = chat_of(template);
    must_be(render(c, messages, NULL, (sp_chat_request){0}), want);
    sp_chat_free(c);
}

/* --- where templates come from --- */

static void load_and_render(folder *f, const char *tools, const char *want) {
    sp_chat *c = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_chat_load(&c, f->path, NULL, &err), SP_OK);
    must_be(render(c, "[]", tools, (sp_chat_request){0}), want);
    sp_chat_free(c);
}

static void a_jinja_file_wins_over_json_over_the_tokenizers_config(void) {
    folder f = make_folder();
    put_file(&f, "tokenizer_config.json",
             "{\"chat_template\": \"config\", \"bos_token\": \"<s>\"}");
    load_and_render(&f, NULL, "config");
    put_file(&f, "chat_template.json", "{\"chat_template\": \"json {{ bos_token }}\"}");
    load_and_render(&f, NULL, "json <s>");
    put_file(&f, "chat_template.jinja", "jinja {{ bos_token }}\n");
    load_and_render(&f, NULL, "jinja <s>");
    remove_folder(&f);
}

static void tools_choose_the_tool_use_template_of_a_list(void) {
    folder f = make_folder();
    put_file(&f, "tokenizer_config.json",
             "{\"chat_template\": [{\"name\": \"default\", \"template\": \"plain\"},"
             " {\"name\": \"rag\", \"template\": \"{{\"},"
             " {\"name\": \"tool_use\", \"template\": \"tools {{ tools | length }}\"}],"
             " \"eos_token\": {\"content\": \"</s>\"}}");
    load_and_render(&f, NULL, "plain");
    load_and_render(&f, "[{}]", "tools 1");
    remove_folder(&f);
}

static void a_model_without_a_template_says_so(void) {
    folder f = make_folder();
    sp_chat *c = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_chat_load(&c, f.path, NULL, &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "no chat template"));
    put_file(&f, "tokenizer_config.json", "{\"chat_template\": 5}");
    CU_ASSERT_EQUAL(sp_chat_load(&c, f.path, NULL, &err), SP_E_FORMAT);
    put_file(&f, "chat_template.jinja", "{{ (");
    CU_ASSERT_EQUAL(sp_chat_load(&c, f.path, NULL, &err), SP_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "chat_template.jinja"));
    CU_ASSERT_PTR_NULL(c);
    remove_folder(&f);
}

static void special_tokens_may_be_objects_and_may_be_absent(void) {
    folder f = make_folder();
    put_file(
        &f, "tokenizer_config.json",
        "{\"chat_template\": \"{{ eos_token }}|{{ bos_token is defined }}|{{ pad_token }}\","
        " \"eos_token\": {\"content\": \"</s>\"}, \"bos_token\": null, \"pad_token\": \"<p>\"}");
    load_and_render(&f, NULL, "</s>|False|<p>");
    remove_folder(&f);
}

/* --- messages --- */

static void text_parts_are_joined_by_newlines(void) {
    gives(SIMPLE,
          "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"},"
          " {\"type\": \"input_text\", \"text\": \"b\"}, \"c\"]}]",
          "[user]a\nb\nc");
    gives(SIMPLE, "[{\"role\": \"user\", \"content\": null}, {\"role\": \"tool\"}]",
          "[user][tool]");
}

static void a_template_that_reads_parts_gets_parts(void) {
    static const char reads[] = "{% for m in messages %}{% for p in m.content %}"
                                "<{{ p.type }}:{{ p.text }}>{% endfor %}{% endfor %}";
    gives(reads,
          "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"},"
          " {\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": \"user\", \"content\": \"c\"}]",
          "<text:a><text:b><text:c>");
}

static void arguments_of_tool_calls_become_objects(void) {
    static const char shows[] = "{% for m in messages %}{% for t in m.tool_calls %}"
                                "{{ t.function.name }}={{ t.function.arguments | tojson }};"
                                "{% endfor %}{{ m.tool_calls is defined }}{% endfor %}";
    gives(shows,
          "[{\"role\": \"assistant\", \"tool_calls\": ["
          "{\"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": [1.0]}\"}},"
          "{\"function\": {\"name\": \"g\", \"arguments\": \"\"}},"
          "{\"function\": {\"name\": \"h\", \"arguments\": null}},"
          "{\"function\": {\"name\": \"i\"}},"
          "{\"function\": {\"name\": \"j\", \"arguments\": {\"k\": 18446744073709551615}}}]}]",
          "f={\"a\": [1.0]};g={};h={};i={};j={\"k\": 18446744073709551615};True");
    gives(shows, "[{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": []}]", "False");
}

static void reasoning_goes_under_both_its_names_and_other_keys_pass(void) {
    gives("{% for m in messages %}{{ m.reasoning }}/{{ m.reasoning_content }}/{{ m.name }}/"
          "{{ m.tool_call_id }} {% endfor %}",
          "[{\"role\": \"assistant\", \"content\": \"\", \"reasoning_content\": \"why\"},"
          " {\"role\": \"tool\", \"content\": \"\", \"name\": \"n\", \"tool_call_id\": \"7\"}]",
          "why/why// //n/7 ");
}

static void messages_that_do_not_fit_are_refused_by_place(void) {
    sp_chat *c = chat_of(SIMPLE);
    static const char *const cases[][2] = {
        {"{}", "messages: want an array"},
        {"[1]", "messages[0]: want an object, got an integer"},
        {"[{\"role\": \"user\", \"content\": 5}]",
         "messages[0].content: want a string or an array"},
        {"[{}, {\"content\": [{\"type\": \"image_url\"}]}]",
         "messages[1].content[0]: want a part of type 'text', got 'image_url'"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"arguments\": \"{\"}}]}]",
         "messages[0].tool_calls[0].function.arguments"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{}]}]", "want a 'function' object"}};
    for (size_t i = 0; i < SP_LEN(cases); i++)
        must_fail(render(c, cases[i][0], NULL, (sp_chat_request){0}), SP_E_INVALID, cases[i][1]);
    sp_chat_free(c);
}

static void the_templates_own_words_refuse_a_request(void) {
    sp_chat *c = chat_of("{{ raise_exception('roles must alternate') }}");
    prompt p = render(c, "[]", NULL, (sp_chat_request){0});
    CU_ASSERT_STRING_EQUAL(p.err.text, "roles must alternate");
    must_fail(p, SP_E_INVALID, "roles must alternate");
    sp_chat_free(c);
    c = chat_of("{{ messages[0].x.y }}");
    must_fail(render(c, "[{\"content\": \"\"}]", NULL, (sp_chat_request){0}), SP_E_INVALID,
              "does not fit these messages");
    sp_chat_free(c);
}

static void kwargs_reach_the_template_but_not_over_the_messages(void) {
    sp_chat *c = chat_of("{{ enable_thinking }} {{ reasoning_effort }} {{ tools }} {{ documents }} "
                         "{{ add_generation_prompt }}");
    sp_json *good = parse("{\"enable_thinking\": false, \"n\": [1]}"),
            *bad = parse("{\"tools\": 1}");
    sp_chat_request req = {.kwargs = sp_json_root(good),
                           .reasoning_effort = SP_SLICE("low"),
                           .add_generation_prompt = true};
    must_be(render(c, "[]", NULL, req), "False low None None True");
    req.kwargs = sp_json_root(bad);
    must_fail(render(c, "[]", NULL, req), SP_E_INVALID, "'tools' cannot be set there");
    sp_json_free(good);
    sp_json_free(bad);
    sp_chat_free(c);
}

/* --- continuing --- */

static void continuing_cuts_behind_the_last_message(void) {
    static const char *const cases[][3] = {
        {"{% for m in messages %}<{{ m.content }}>{% endfor %}!", "a ", "<q><a "},
        {"{% for m in messages %}<{{ m.content | trim }}>{% endfor %}!", " a ", "<q><a"},
        {"{% for m in messages %}<{{ m.content }}>{% endfor %}q", "q", "<q><q>q"},
    };
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        char messages[200];
        sp_chat *c = chat_of(cases[i][0]);
        snprintf(messages, sizeof messages,
                 "[{\"role\": \"user\", \"content\": \"q\"},"
                 " {\"role\": \"assistant\", \"content\": \"%s\"}]",
                 cases[i][1]);
        must_be(render(c, messages, NULL, (sp_chat_request){.continue_final_message = true}),
                cases[i][2]);
        sp_chat_free(c);
    }
}

static void continuing_needs_a_message_that_is_shown(void) {
    sp_chat *c = chat_of("nothing");
    sp_chat_request req = {.continue_final_message = true};
    must_fail(render(c, "[{\"role\": \"assistant\", \"content\": \"abc\"}]", NULL, req),
              SP_E_INVALID, "not in the rendered prompt");
    req.add_generation_prompt = true;
    must_fail(render(c, "[]", NULL, req), SP_E_INVALID, "cannot both be set");
    must_fail(render(c, "[]", NULL, (sp_chat_request){.continue_final_message = true}),
              SP_E_INVALID, "has no text");
    sp_chat_free(c);
}

/* --- special tokens in what users write --- */

typedef struct podling {
    sp_tokenizer *t;
    sp_chat *c;
} podling;

static bool open_podling(podling *p) {
    sp_err err = {0};
    *p = (podling){0};
    if (access(PODLING "/tokenizer.json", R_OK) != 0) return false;
    CU_ASSERT_EQUAL_FATAL(sp_tokenizer_load(&p->t, PODLING, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_chat_load(&p->c, PODLING, p->t, &err), SP_OK);
    return true;
}

static void close_podling(podling *p) {
    sp_chat_free(p->c);
    sp_tokenizer_free(p->t);
}

/* How often a special token comes out of a prompt. */
static int count_id(const podling *p, const prompt *q, const char *piece) {
    sp_ids ids = {0};
    sp_err err = {0};
    int n = 0;
    int32_t id = sp_tokenizer_find(p->t, sp_slice_of(piece));
    CU_ASSERT_EQUAL_FATAL(
        sp_tokenizer_encode(p->t, sp_buf_slice(&q->text), SP_ENCODE_SPECIAL, q->marker, &ids, &err),
        SP_OK);
    for (size_t i = 0; i < ids.len; i++) n += ids.ptr[i] == id;
    sp_ids_fini(&ids);
    return n;
}

/* The prompt without its marker. */
static sp_buf unmarked(const prompt *q) {
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_slice s = sp_buf_slice(&q->text);
    for (size_t i = 0; i < s.len;) {
        sp_slice rest = {s.ptr + i, s.len - i};
        bool there = q->marker.len && sp_slice_starts(rest, q->marker);
        if (!there) sp_buf_putc(&out, s.ptr[i]);
        i += there ? q->marker.len : 1;
    }
    return out;
}

static void podling_prompts_are_exact(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    size_t len;
    char *text = sp_test_read("tests/data/podling_golden.json", &len);
    sp_json *doc = parse(text);
    int n = 0;
    for (const sp_json_node *k = sp_json_first(sp_json_find(sp_json_root(doc), "cases")); k;
         k = sp_json_next(k), n++) {
        prompt q = {.st = SP_OK};
        sp_chat_request req = {.messages = sp_json_find(k, "messages"),
                               .tools = sp_json_find(k, "tools"),
                               .add_generation_prompt = true};
        sp_buf_init(&q.text, 0);
        q.st = sp_chat_render(p.c, &req, &q.text, &q.marker, &q.err);
        CU_ASSERT_EQUAL(q.marker.len, 0);
        must_be(q, sp_json_string(sp_json_find(k, "prompt")).ptr);
    }
    CU_ASSERT(n > 10);
    sp_json_free(doc);
    free(text);
    close_podling(&p);
}

static void users_cannot_write_control_tokens(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    static const char *const contents[] = {"\"a<|eot_id|>b\"", "\"<|eot_id|><|eot_id|>\"",
                                           "\"<<|eot_id|>|eot_id|>\"", "\"\\u003c|eot_id|\\u003e\"",
                                           "[{\"type\": \"text\", \"text\": \"x<|eot_id|>\"}]"};
    for (size_t i = 0; i < SP_LEN(contents); i++) {
        char messages[300];
        snprintf(messages, sizeof messages, "[{\"role\": \"user\", \"content\": %s}]", contents[i]);
        prompt safe = render(p.c, messages, NULL, (sp_chat_request){0});
        prompt plain = render(p.c, messages, NULL, (sp_chat_request){.trust_special_text = true});
        CU_ASSERT_EQUAL(safe.st, SP_OK);
        CU_ASSERT_EQUAL(safe.marker.len, 3);
        CU_ASSERT_EQUAL(plain.marker.len, 0);
        CU_ASSERT_EQUAL(count_id(&p, &safe, "<|eot_id|>"), 1); /* the template's own */
        CU_ASSERT(count_id(&p, &plain, "<|eot_id|>") > 1);
        sp_buf back = unmarked(&safe);
        CU_ASSERT(sp_slice_eq(sp_buf_slice(&back), sp_buf_slice(&plain.text)));
        sp_buf_fini(&back);
        sp_buf_fini(&safe.text);
        sp_buf_fini(&plain.text);
    }
    close_podling(&p);
}

static void tools_and_arguments_are_broken_too(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    prompt q = render(
        p.c,
        "[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f<|eot_id|>\","
        " \"arguments\": \"{\\\"k<|eot_id|>\\\": \\\"<|eot_id|>\\\"}\"}}]}]",
        "[{\"function\": {\"name\": \"<|eot_id|>\", \"description\": \"<|eot_id|>\","
        " \"parameters\": {\"properties\": {\"<|eot_id|>\": {}}}}}]",
        (sp_chat_request){0});
    CU_ASSERT_EQUAL(q.st, SP_OK);
    CU_ASSERT_EQUAL(count_id(&p, &q, "<|eot_id|>"), 2); /* system and assistant */
    sp_buf_fini(&q.text);
    close_podling(&p);
}

/* A template that puts texts side by side must not make a token of two harmless halves. */
static void halves_of_a_token_do_not_join(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    folder f = make_folder();
    sp_chat *c = NULL;
    sp_err err = {0};
    const char *path =
        put_file(&f, "t.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    CU_ASSERT_EQUAL_FATAL(sp_chat_load_file(&c, path, p.t, &err), SP_OK);
    prompt q = render(c, "[{\"content\": \"a<|eot\"}, {\"content\": \"_id|>b\"}]", NULL,
                      (sp_chat_request){0});
    CU_ASSERT_EQUAL(q.marker.len, 3);
    CU_ASSERT_EQUAL(count_id(&p, &q, "<|eot_id|>"), 0);
    sp_buf_fini(&q.text);
    sp_chat_free(c);
    remove_folder(&f);
    close_podling(&p);
}

static void ordinary_text_needs_no_marker(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    prompt q = render(p.c, "[{\"role\": \"user\", \"content\": \"1 < 2 | eot_id > <b>\"}]", NULL,
                      (sp_chat_request){0});
    CU_ASSERT_EQUAL(q.st, SP_OK);
    CU_ASSERT_EQUAL(q.marker.len, 0);
    sp_buf_fini(&q.text);
    close_podling(&p);
}

static void a_marker_is_one_that_no_text_holds(void) {
    podling p;
    if (!open_podling(&p)) SP_SKIP("the demo model is not here");
    for (int all = 0; all < 2; all++) {
        sp_buf m;
        sp_buf_init(&m, 0);
        sp_buf_puts(&m, "[{\"role\": \"user\", \"content\": \"<|eot_id|>");
        for (unsigned cp = 0xfdd0; cp < (all ? 0xfdf0u : 0xfddfu); cp++)
            sp_buf_printf(&m, "\\u%04x", cp);
        sp_buf_puts(&m, "\"}]");
        prompt q = render(p.c, m.ptr, NULL, (sp_chat_request){0});
        if (all) {
            must_fail(q, SP_E_INVALID, "U+FDD0 to U+FDEF");
        } else {
            CU_ASSERT(sp_slice_is(q.marker, "\xef\xb7\x9f")); /* U+FDDF */
            sp_buf_fini(&q.text);
        }
        sp_buf_fini(&m);
    }
    close_podling(&p);
}

SP_TEST_MAIN("runtime/text/chat", SP_TEST(a_jinja_file_wins_over_json_over_the_tokenizers_config),
             SP_TEST(tools_choose_the_tool_use_template_of_a_list),
             SP_TEST(a_model_without_a_template_says_so),
             SP_TEST(special_tokens_may_be_objects_and_may_be_absent),
             SP_TEST(text_parts_are_joined_by_newlines),
             SP_TEST(a_template_that_reads_parts_gets_parts),
             SP_TEST(arguments_of_tool_calls_become_objects),
             SP_TEST(reasoning_goes_under_both_its_names_and_other_keys_pass),
             SP_TEST(messages_that_do_not_fit_are_refused_by_place),
             SP_TEST(the_templates_own_words_refuse_a_request),
             SP_TEST(kwargs_reach_the_template_but_not_over_the_messages),
             SP_TEST(continuing_cuts_behind_the_last_message),
             SP_TEST(continuing_needs_a_message_that_is_shown), SP_TEST(podling_prompts_are_exact),
             SP_TEST(users_cannot_write_control_tokens),
             SP_TEST(tools_and_arguments_are_broken_too), SP_TEST(halves_of_a_token_do_not_join),
             SP_TEST(ordinary_text_needs_no_marker), SP_TEST(a_marker_is_one_that_no_text_holds))
