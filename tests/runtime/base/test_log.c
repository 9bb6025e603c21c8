/* Covers runtime/base/log.c: levels, the two line formats, and one write a line. */
#define SP_LOG "part"
#include "runtime/base/log.h"

#include "runtime/base/json.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char out[1 << 20];

/* What `fn` writes to standard error. Through a file: it takes any amount. */
static const char *capture(void (*fn)(void)) {
    char name[] = "/tmp/sp_test_log_XXXXXX";
    int file = mkstemp(name), old = dup(STDERR_FILENO);
    unlink(name);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    fn();
    dup2(old, STDERR_FILENO);
    close(old);
    ssize_t n = pread(file, out, sizeof out - 1, 0);
    close(file);
    out[n > 0 ? n : 0] = 0;
    return out;
}

static int evaluated;
static int costly(void) {
    return ++evaluated;
}

static void log_all_levels(void) {
    sp_error("e %d", 1);
    sp_warn("w");
    sp_info("i");
    sp_debug("d %d", costly());
    sp_trace("t");
}

static void lines_below_the_level_are_not_even_formed(void) {
    sp_log_setup("head", SP_LOG_INFO, false);
    CU_ASSERT_EQUAL(sp_log_get_level(), SP_LOG_INFO);
    const char *text = capture(log_all_levels);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "error head part: e 1\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "warn  head part: w\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "info  head part: i\n"));
    CU_ASSERT_PTR_NULL(strstr(text, "part: d"));
    CU_ASSERT_EQUAL(evaluated, 0);
    sp_log_setup("head", SP_LOG_TRACE, false);
    text = capture(log_all_levels);
    CU_ASSERT(strstr(text, "debug head part: d 1\n") && strstr(text, "trace head part: t\n"));
    sp_log_setup("head", SP_LOG_ERROR, false);
    CU_ASSERT_PTR_NULL(strstr(capture(log_all_levels), "part: w"));
}

static void log_with_request(void) {
    sp_log_request("req-1");
    sp_error("inside");
    sp_log_request(NULL);
    sp_error("outside");
}

static void a_text_line_has_time_level_role_part_and_request(void) {
    sp_log_setup("rank 3", SP_LOG_INFO, false);
    const char *text = capture(log_with_request);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "error rank 3 part req-1: inside\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "error rank 3 part: outside\n"));
    /* 2025-01-31T12:34:56.789Z */
    static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ ";
    for (size_t i = 0; i + 1 < sizeof shape; i++)
        CU_ASSERT(shape[i] == 'd' ? text[i] >= '0' && text[i] <= '9' : text[i] == shape[i]);
    sp_log_setup(NULL, SP_LOG_INFO, false);
    CU_ASSERT_PTR_NOT_NULL(strstr(capture(log_with_request), "error part: outside\n"));
}

static void log_hard_words(void) {
    sp_log_request("r\"1");
    sp_error("say \"%s\" \\ and \n\t", "x");
    sp_log_request(NULL);
}

static void a_json_line_is_one_object_whatever_the_words(void) {
    sp_log_setup("head", SP_LOG_INFO, true);
    const char *text = capture(log_hard_words);
    sp_json *doc = NULL;
    size_t n = strlen(text);
    CU_ASSERT_EQUAL(text[n - 1], '\n');
    CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + n - 1);
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, (sp_slice){text, n}, 0, NULL), SP_OK);
    static const char *const want[][2] = {{"level", "error"},
                                          {"role", "head"},
                                          {"part", "part"},
                                          {"request", "r\"1"},
                                          {"text", "say \"x\" \\ and \n\t"}};
    for (size_t i = 0; i < SP_LEN(want); i++) {
        sp_slice v = {0};
        CU_ASSERT_EQUAL(sp_json_get_string(sp_json_root(doc), want[i][0], &v, NULL), SP_OK);
        CU_ASSERT(sp_slice_is(v, want[i][1]));
    }
    sp_json_free(doc);
    sp_log_setup("", SP_LOG_INFO, false);
}

static void log_long_words(void) {
    char words[5000];
    memset(words, 'x', sizeof words - 1);
    words[sizeof words - 1] = 0;
    sp_error("%s", words);
}

static void long_words_are_cut(void) {
    const char *text = capture(log_long_words);
    CU_ASSERT(strlen(text) > 900 && strlen(text) < 1300);
    CU_ASSERT_EQUAL(text[strlen(text) - 1], '\n');
}

static void *log_many(void *arg) {
    for (int i = 0; i < 200; i++) sp_error("%s", (const char *)arg);
    return NULL;
}

static void log_from_threads(void) {
    static char words[2][201];
    pthread_t t[2];
    for (int i = 0; i < 2; i++) {
        memset(words[i], 'a' + i, 200);
        pthread_create(&t[i], NULL, log_many, words[i]);
    }
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
}

static void lines_of_threads_do_not_mix(void) {
    const char *text = capture(log_from_threads);
    int lines = 0;
    for (const char *end; (end = strchr(text, '\n')); text = end + 1, lines++) {
        char last = end[-1];
        int same = 0;
        while (end[-1 - same] == last) same++;
        CU_ASSERT_EQUAL(same, 200);
    }
    CU_ASSERT_EQUAL(lines, 400);
}

static void levels_are_read_in_any_case(void) {
    static const struct {
        const char *word;
        sp_log_level want;
    } good[] = {{"error", SP_LOG_ERROR}, {"WARN", SP_LOG_WARN},   {"Warning", SP_LOG_WARN},
                {"info", SP_LOG_INFO},   {"debug", SP_LOG_DEBUG}, {"TRACE", SP_LOG_TRACE}};
    static const char *const bad[] = {"", "err", "information", "warn ", "3"};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        sp_log_level level = SP_LOG_ERROR;
        CU_ASSERT_EQUAL(sp_log_parse_level(good[i].word, &level), SP_OK);
        CU_ASSERT_EQUAL(level, good[i].want);
    }
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_log_level level = SP_LOG_DEBUG;
        CU_ASSERT_EQUAL(sp_log_parse_level(bad[i], &level), SP_E_INVALID);
        CU_ASSERT_EQUAL(level, SP_LOG_DEBUG);
    }
}

SP_TEST_MAIN("runtime/base/log", SP_TEST(lines_below_the_level_are_not_even_formed),
             SP_TEST(a_text_line_has_time_level_role_part_and_request),
             SP_TEST(a_json_line_is_one_object_whatever_the_words), SP_TEST(long_words_are_cut),
             SP_TEST(lines_of_threads_do_not_mix), SP_TEST(levels_are_read_in_any_case))
