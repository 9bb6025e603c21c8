/* Covers launcher/bench_http.c: the command line and its exit codes. */
#include "launcher/bench_http.h"

#include "runtime/base/status.h"
#include "tests/harness.h"

#include <stdio.h>

/* Runs the command with up to three more words. */
static int run(const char *a, const char *b, const char *c, const char *d) {
    char *argv[6] = {(char *)"http"};
    const char *words[] = {a, b, c, d};
    int n = 1;
    for (int i = 0; i < 4 && words[i]; i++) argv[n++] = (char *)words[i];
    return sp_bench_http(n, argv);
}

static void help_is_no_error_and_needs_no_url(void) {
    CU_ASSERT_EQUAL(run("--help", NULL, NULL, NULL), SP_EXIT_OK);
    CU_ASSERT_EQUAL(run("-h", NULL, NULL, NULL), SP_EXIT_OK);
}

static void a_wrong_command_line_is_two(void) {
    static const char *const wrong[][2] = {
        {"--streams", "0"},       {"--streams", "4097"},     {"--streams", "x"},
        {"--streams", NULL},      {"--requests", "0"},       {"--requests", "-1"},
        {"--max-tokens", "0"},    {"--temperature", "3"},    {"--temperature", "nan"},
        {"--endpoint", "other"},  {"--stream", "yes"},       {"--ignore-eos", "1"},
        {"--prompt-tokens", "0"}, {"--timeout-s", "0"},      {"--model", ""},
        {"--json=1", NULL},       {"--same-prompt=x", NULL}, {"--unknown", "1"},
        {"word", NULL},           {"--api-key", "a b"},      {"--warmup", "-1"},
        {"--ids", "5"},           {"--ids", "9-5"},          {"--ids", "-1-5"},
        {"--ids", "0-0"},         {"--ids", "1-99999999"},   {"--seed", "-1"},
        {"--goodput", ""},        {"--goodput", "ttft"},     {"--goodput", "ttft:0"},
        {"--goodput", "ttft:1,"}, {"--goodput", "itl:1"},    {"--extra-body", "[]"},
        {"--extra-body", "{"},    {"--trace", ""},           {"--trace", "x"},
        {"--trace-block", "8"},   {"--trace-output", "0.5"}, {"--rate", "1"},
        {"--max-model-len", "9"}, {"--trace-block", "513"},  {"--rate", "0"}};
    CU_ASSERT_EQUAL(run(NULL, NULL, NULL, NULL), SP_EXIT_USAGE); /* no url */
    CU_ASSERT_EQUAL(run("--url", "https://localhost", NULL, NULL), SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(run("--url", "localhost:1", NULL, NULL), SP_EXIT_USAGE);
    for (size_t i = 0; i < SP_LEN(wrong); i++)
        CU_ASSERT_EQUAL(run("--url", "http://127.0.0.1:1", wrong[i][0], wrong[i][1]),
                        SP_EXIT_USAGE);
}

/* Nothing listens on port 1 of the loopback, here and on every machine we know. */
static void a_server_that_is_not_there_is_twenty(void) {
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--requests=1", NULL, NULL), SP_EXIT_PEER);
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--model=m", "--json", NULL), SP_EXIT_PEER);
}

static void a_trace_that_cannot_be_read_is_ten(void) {
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--ids=1-9", "--trace=/nonexistent/x", NULL),
                    SP_EXIT_CONFIG);
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--ids=1-9", "--trace=/dev/null", NULL),
                    SP_EXIT_CONFIG);
}

static void ids_are_for_prompts_of_completions(void) {
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--ids=1-9", "--endpoint=chat", NULL),
                    SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--ids=1-9", "--prompt=x", NULL),
                    SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(run("--url=http://127.0.0.1:1", "--ids=1-9", "--trace=x", "--warmup=1"),
                    SP_EXIT_USAGE);
}

SP_TEST_MAIN("launcher/bench_http", SP_TEST(help_is_no_error_and_needs_no_url),
             SP_TEST(a_wrong_command_line_is_two), SP_TEST(a_server_that_is_not_there_is_twenty),
             SP_TEST(a_trace_that_cannot_be_read_is_ten),
             SP_TEST(ids_are_for_prompts_of_completions))
