/* Covers launcher/bench_kvx.c: its command line, and that a run reads what was exported. */
#include "launcher/bench_kvx.h"

#include "runtime/base/json.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
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
    int rc = sp_bench_kvx(argc, (char **)(uintptr_t)argv);
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

static void check_run(const char *way, const char *bytes, const char *blocks) {
    const char *argv[] = {"kvx",  "--way",    way, "--block-bytes", bytes, "--blocks",
                          blocks, "--rounds", "3"};
    char text[TEXT_MAX];
    sp_json *doc = NULL;
    CU_ASSERT_EQUAL(run((int)SP_LEN(argv), argv, text), SP_EXIT_OK);
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(text), 0, NULL), SP_OK);
    const sp_json_node *root = sp_json_root(doc);
    double rate = -1, probe = -1, ratio = -1;
    CU_ASSERT(sp_slice_is(sp_json_string(sp_json_find(root, "way")), way));
    CU_ASSERT_EQUAL(sp_json_get_number(root, "gb_per_s", &rate, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_json_get_number(root, "probe_gb_per_s", &probe, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_json_get_number(root, "ratio", &ratio, NULL), SP_OK);
    CU_ASSERT(rate > 0 && probe > 0);
    CU_ASSERT_DOUBLE_EQUAL(ratio, rate / probe, 1e-9);
    sp_json_free(doc);
}

static void a_run_prints_its_figures_as_one_line_of_json(void) {
    static const char *const ways[] = {"shm", "tcp"};
    for (size_t i = 0; i < SP_LEN(ways); i++) {
        check_run(ways[i], "1MiB", "5");
        check_run(ways[i], "64KiB", "100"); /* more than one batch of asks, the last one short */
        check_run(ways[i], "192k", "1");
    }
}

static void options_that_make_no_sense_are_a_usage_error(void) {
    static const char *const wrong[][2] = {
        {"--way", "pigeon"},      {"--way", ""},           {"--blocks", "0"},
        {"--blocks", "-1"},       {"--blocks", "65537"},   {"--rounds", "0"},
        {"--rounds", "many"},     {"--block-bytes", "0"},  {"--block-bytes", "1000"},
        {"--block-bytes", "65k"}, {"--block-bytes", "1G"}, {"--colour", "green"}};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        const char *argv[] = {"kvx", wrong[i][0], wrong[i][1]};
        char text[TEXT_MAX];
        CU_ASSERT_EQUAL(run(3, argv, text), SP_EXIT_USAGE);
        CU_ASSERT_STRING_EQUAL(text, "");
        CU_ASSERT_EQUAL(run(2, argv, text), SP_EXIT_USAGE); /* no value */
    }
    const char *much[] = {"kvx", "--block-bytes", "64MiB", "--blocks", "65536"};
    char text[TEXT_MAX];
    CU_ASSERT_EQUAL(run(5, much, text), SP_EXIT_USAGE);
}

static void help_is_printed_when_asked_for(void) {
    const char *argv[] = {"kvx", "--help"};
    char text[TEXT_MAX];
    CU_ASSERT_EQUAL(run(2, argv, text), SP_EXIT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "--block-bytes"));
}

SP_TEST_MAIN("launcher/bench_kvx", SP_TEST(a_run_prints_its_figures_as_one_line_of_json),
             SP_TEST(options_that_make_no_sense_are_a_usage_error),
             SP_TEST(help_is_printed_when_asked_for))
