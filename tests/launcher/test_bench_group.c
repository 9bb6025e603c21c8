/* Covers launcher/bench_group.c: one line of JSON a run, options that make no sense refused. */
#include "launcher/bench_group.h"

#include "runtime/base/json.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define TEXT_MAX 4096

/* Runs the command with stdout in `text`; stderr goes nowhere. */
static int run(int argc, const char **argv, char text[TEXT_MAX]) {
    int ends[2], out = dup(STDOUT_FILENO), errs = dup(STDERR_FILENO);
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
    fflush(NULL);
    dup2(ends[1], STDOUT_FILENO);
    dup2(nowhere, STDERR_FILENO);
    close(ends[1]);
    int rc = sp_bench_group(argc, (char **)(uintptr_t)argv);
    fflush(NULL);
    dup2(out, STDOUT_FILENO);
    dup2(errs, STDERR_FILENO);
    ssize_t n = read(ends[0], text, TEXT_MAX - 1);
    text[n > 0 ? n : 0] = 0;
    close(ends[0]);
    close(out);
    close(errs);
    close(nowhere);
    return rc;
}

static void a_run_prints_its_figures_as_one_line_of_json(void) {
    static const char *const ranks[] = {"1", "2", "3"};
    for (size_t i = 0; i < SP_LEN(ranks); i++) {
        const char *argv[] = {"allreduce",    "--ranks", ranks[i],      "--bytes", "4k",
                              "--iterations", "50",      "--transport", "shm"};
        char text[TEXT_MAX];
        sp_json *doc = NULL;
        int64_t bytes = 0;
        double median = -1, p99 = -1, least = -1;
        CU_ASSERT_EQUAL(run((int)SP_LEN(argv), argv, text), SP_EXIT_OK);
        CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(text), 0, NULL), SP_OK);
        const sp_json_node *root = sp_json_root(doc);
        CU_ASSERT_EQUAL(sp_json_get_int(root, "bytes", 0, 1 << 20, &bytes, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_json_get_number(root, "median_us", &median, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_json_get_number(root, "p99_us", &p99, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_json_get_number(root, "min_us", &least, NULL), SP_OK);
        CU_ASSERT_EQUAL(bytes, 4096);
        CU_ASSERT(0 <= least && least <= median && median <= p99);
        CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(root, "transport")), "shm"));
        sp_json_free(doc);
    }
}

static void options_that_make_no_sense_are_a_usage_error(void) {
    static const char *const wrong[][2] = {
        {"--ranks", "0"},       {"--ranks", "65"},    {"--ranks", "two"}, {"--bytes", "0"},
        {"--bytes", "6"},       {"--bytes", "2G"},    {"--bytes", "-4"},  {"--iterations", "0"},
        {"--transport", "tin"}, {"--colour", "green"}};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        const char *argv[] = {"allreduce", wrong[i][0], wrong[i][1]};
        char text[TEXT_MAX];
        CU_ASSERT_EQUAL(run(3, argv, text), SP_EXIT_USAGE);
        CU_ASSERT_STRING_EQUAL(text, "");
        CU_ASSERT_EQUAL(run(2, argv, text), SP_EXIT_USAGE); /* no value */
    }
}

static void help_is_printed_when_asked_for(void) {
    const char *argv[] = {"allreduce", "--help"};
    char text[TEXT_MAX];
    CU_ASSERT_EQUAL(run(2, argv, text), SP_EXIT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "--iterations"));
}

SP_TEST_MAIN("launcher/bench_group", SP_TEST(a_run_prints_its_figures_as_one_line_of_json),
             SP_TEST(options_that_make_no_sense_are_a_usage_error),
             SP_TEST(help_is_printed_when_asked_for))
