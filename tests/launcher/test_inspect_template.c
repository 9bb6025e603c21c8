/* Covers launcher/inspect_template.c: what it writes where, and its exit codes. */
#include "launcher/inspect_template.h"

#include "runtime/base/mem.h"
#include "runtime/base/status.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES_MAX 8

/* A folder with the files of one test, and what the last run wrote. */
typedef struct scene {
    char dir[40], paths[FILES_MAX][120];
    int n;
    char out[2048], err[1024];
} scene;

static scene *make_scene(void) {
    scene *s = sp_alloc(sizeof *s);
    snprintf(s->dir, sizeof s->dir, "/tmp/sp_inspect_XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(s->dir));
    return s;
}

static const char *put(scene *s, const char *name, const char *text) {
    char path[120];
    CU_ASSERT_FATAL(s->n < FILES_MAX);
    snprintf(path, sizeof path, "%s/%s", s->dir, name);
    FILE *f = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    fputs(text, f);
    fclose(f);
    memcpy(s->paths[s->n], path, sizeof path);
    return s->paths[s->n++];
}

static void end_scene(scene *s) {
    for (int i = 0; i < s->n; i++) unlink(s->paths[i]);
    rmdir(s->dir);
    sp_free(s);
}

static int redirect(int fd, const char *path, int flags) {
    int saved = dup(fd), file = open(path, flags, 0600);
    CU_ASSERT_FATAL(saved >= 0 && file >= 0);
    dup2(file, fd);
    close(file);
    return saved;
}

static void restore(int fd, int saved) {
    dup2(saved, fd);
    close(saved);
}

static void read_back(const char *path, char *out, size_t size) {
    FILE *f = fopen(path, "rb");
    out[f ? fread(out, 1, size - 1, f) : 0] = 0;
    if (f) fclose(f);
    unlink(path);
}

/* Runs the command; `args` ends with NULL. */
static int run(scene *s, const char *input, const char *const *args) {
    char in[80], out[80], err[80], *argv[12] = {(char[]){"template"}};
    int argc = 1;
    for (; args[argc - 1]; argc++) argv[argc] = sp_strdup(args[argc - 1]);
    snprintf(in, sizeof in, "%s/in", s->dir);
    snprintf(out, sizeof out, "%s/out", s->dir);
    snprintf(err, sizeof err, "%s/err", s->dir);
    FILE *f = fopen(in, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    fputs(input, f);
    fclose(f);
    fflush(stdout);
    int saved[] = {redirect(0, in, O_RDONLY), redirect(1, out, O_WRONLY | O_CREAT | O_TRUNC),
                   redirect(2, err, O_WRONLY | O_CREAT | O_TRUNC)};
    clearerr(stdin);
    rewind(stdin);
    int code = sp_inspect_template(argc, argv);
    fflush(stdout);
    for (int i = 0; i < 3; i++) restore(i, saved[i]);
    for (int i = 1; i < argc; i++) sp_free(argv[i]);
    read_back(out, s->out, sizeof s->out);
    read_back(err, s->err, sizeof s->err);
    unlink(in);
    return code;
}

#define RUN(s, input, ...) run((s), (input), (const char *const[]){__VA_ARGS__, NULL})

static void lines_of_variables_give_lines_of_text_or_error(void) {
    scene *s = make_scene();
    const char *t = put(s, "t.jinja",
                        "{% if x is none %}\n{{ raise_exception('x is ' ~ x) }}\n{% endif %}\n"
                        "<{{ x }}|{{ messages | length }}>\n\n");
    CU_ASSERT_EQUAL(RUN(s,
                        "{\"x\": \"\\u00e9<|im_end|>\", \"messages\": [1, 2]}\n"
                        "\n"
                        "{\"x\": null}\n"
                        "[1]\n"
                        "{broken\n"
                        "{\"x\": 1.0, \"messages\": {}}\n",
                        "--template", t, "--stdin"),
                    SP_EXIT_OK);
    char *save = NULL;
    CU_ASSERT_STRING_EQUAL(strtok_r(s->out, "\n", &save),
                           "{\"text\":\"<\xc3\xa9<|im_end|>|2>\\n\"}");
    CU_ASSERT_STRING_EQUAL(strtok_r(NULL, "\n", &save), "{\"error\":\"x is None\"}");
    CU_ASSERT_PTR_NOT_NULL(strstr(strtok_r(NULL, "\n", &save), "want an object of variables"));
    CU_ASSERT_PTR_NOT_NULL(strstr(strtok_r(NULL, "\n", &save), "{\"error\":"));
    CU_ASSERT_STRING_EQUAL(strtok_r(NULL, "\n", &save), "{\"text\":\"<1.0|0>\\n\"}");
    CU_ASSERT_PTR_NULL(strtok_r(NULL, "\n", &save));
    CU_ASSERT_STRING_EQUAL(s->err, "");
    end_scene(s);
}

static void messages_give_the_prompt_and_nothing_else(void) {
    scene *s = make_scene();
    const char *t =
        put(s, "t.jinja",
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{{ tools | tojson if tools }}{{ '[assistant]' if add_generation_prompt }}");
    const char *m = put(s, "m.json", "[{\"role\": \"user\", \"content\": \"hi\"}]\n");
    const char *tools = put(s, "tools.json", "[{\"type\": \"function\"}]");
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--messages", m), SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(s->out, "[user]hi[assistant]");
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--messages", m, "--tools", tools), SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(s->out, "[user]hi[{\"type\": \"function\"}][assistant]");
    end_scene(s);
}

static void a_model_gives_template_and_tokens_and_a_line_may_change_them(void) {
    scene *s = make_scene();
    put(s, "tokenizer_config.json",
        "{\"chat_template\": \"{{ bos_token }}{{ strftime_now('%d %b %Y') }}\","
        " \"bos_token\": \"<s>\"}");
    CU_ASSERT_EQUAL(RUN(s, "{}\n{\"bos_token\": \"<t>\"}\n", "--model", s->dir, "--stdin",
                        "--now=2025-07-10T12:00:00"),
                    SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(s->out,
                           "{\"text\":\"<s>10 Jul 2025\"}\n{\"text\":\"<t>10 Jul 2025\"}\n");
    const char *m = put(s, "m.json", "[]");
    CU_ASSERT_EQUAL(RUN(s, "", "--model", s->dir, "--messages", m, "--now", "2024-01-02T00:00:00"),
                    SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(s->out, "<s>02 Jan 2024");
    end_scene(s);
}

static void bad_templates_models_and_messages_exit_10(void) {
    scene *s = make_scene();
    const char *bad = put(s, "bad.jinja", "{{ (");
    const char *good = put(s, "good.jinja", "{{ raise_exception('no') }}");
    const char *m = put(s, "m.json", "[]"), *broken = put(s, "broken.json", "[");
    CU_ASSERT_EQUAL(RUN(s, "", "--template", bad, "--stdin"), SP_EXIT_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(s->err, "template line 1"));
    CU_ASSERT_EQUAL(RUN(s, "", "--template", "/nowhere/t.jinja", "--stdin"), SP_EXIT_CONFIG);
    CU_ASSERT_EQUAL(RUN(s, "", "--model", "/nowhere", "--stdin"), SP_EXIT_CONFIG);
    CU_ASSERT_EQUAL(RUN(s, "", "--model", s->dir, "--stdin"), SP_EXIT_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(s->err, "no chat template"));
    CU_ASSERT_EQUAL(RUN(s, "", "--template", good, "--messages", m), SP_EXIT_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(s->err, ": no\n"));
    CU_ASSERT_EQUAL(RUN(s, "", "--template", good, "--messages", broken), SP_EXIT_CONFIG);
    CU_ASSERT_STRING_EQUAL(s->out, "");
    end_scene(s);
}

static void a_wrong_command_line_exits_2(void) {
    scene *s = make_scene();
    const char *t = put(s, "t.jinja", "x");
    CU_ASSERT_EQUAL(RUN(s, "", "--stdin"), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--model", s->dir, "--stdin"), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--stdin", "--tools", t), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--stdin", "--now", "noon"), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN(s, "", "--template", t, "--stdin", "--frob"), SP_EXIT_USAGE);
    CU_ASSERT_STRING_EQUAL(s->out, "");
    CU_ASSERT_EQUAL(RUN(s, "", "--help"), SP_EXIT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(s->out, "usage: superpod inspect template"));
    end_scene(s);
}

SP_TEST_MAIN("launcher/inspect_template", SP_TEST(lines_of_variables_give_lines_of_text_or_error),
             SP_TEST(messages_give_the_prompt_and_nothing_else),
             SP_TEST(a_model_gives_template_and_tokens_and_a_line_may_change_them),
             SP_TEST(bad_templates_models_and_messages_exit_10),
             SP_TEST(a_wrong_command_line_exits_2))
