/* Covers runtime/base/status.c: names, words for errors, context and truncation. */
#include "runtime/base/status.h"

#include "tests/harness.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void every_status_has_a_name_a_text_and_an_http_code(void) {
    int n = 0;
#define X(name, value, words, http) \
    CU_ASSERT_EQUAL((int)name, value); \
    CU_ASSERT_STRING_EQUAL(sp_status_name(name), #name); \
    CU_ASSERT_STRING_EQUAL(sp_status_text(name), words); \
    CU_ASSERT_EQUAL(sp_status_http(name), http); \
    n++;
    SP_STATUS_LIST(X)
#undef X
    CU_ASSERT(n > 10);
}

static void an_unknown_status_is_answered_too(void) {
    CU_ASSERT_STRING_EQUAL(sp_status_name((sp_status)-999), "?");
    CU_ASSERT(strlen(sp_status_text((sp_status)-999)) > 0);
    CU_ASSERT_EQUAL(sp_status_http((sp_status)-999), 500);
}

static void the_range_of_an_error_tells_what_has_to_die(void) {
    static const sp_status request[] = {SP_E_INVALID, SP_E_UNAVAILABLE, SP_E_IO, SP_E_FORMAT};
    static const sp_status link[] = {SP_E_CLOSED, SP_E_PROTOCOL};
    static const sp_status rank[] = {SP_E_DEVICE, SP_E_INTERNAL};
    static const sp_status pod[] = {SP_E_PEER_LOST, SP_E_PLAN_STALE};
    for (size_t i = 0; i < SP_LEN(request); i++) CU_ASSERT(request[i] < 0 && request[i] > -40);
    for (size_t i = 0; i < SP_LEN(link); i++) CU_ASSERT(link[i] <= -40 && link[i] > -60);
    for (size_t i = 0; i < SP_LEN(rank); i++) CU_ASSERT(rank[i] <= -60 && rank[i] > -80);
    for (size_t i = 0; i < SP_LEN(pod); i++) CU_ASSERT(pod[i] <= -80 && pod[i] > -100);
    CU_ASSERT(SP_AGAIN > 0);
}

static void a_failure_keeps_code_place_and_words(void) {
    sp_err err = {0};
    int line = __LINE__ + 1;
    CU_ASSERT_EQUAL(SP_FAIL(&err, SP_E_LIMIT, "queue '%s' holds %d", "in", 7), SP_E_LIMIT);
    CU_ASSERT_EQUAL(err.code, SP_E_LIMIT);
    CU_ASSERT_EQUAL(err.line, line);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.file, "test_status.c"));
    CU_ASSERT_STRING_EQUAL(err.text, "queue 'in' holds 7");
    CU_ASSERT_EQUAL(SP_FAIL(NULL, SP_E_IO, "nobody %s", "listens"), SP_E_IO);
}

static void context_goes_before_the_words(void) {
    sp_err err = {0};
    (void)SP_FAIL(&err, SP_E_FORMAT, "inner");
    sp_err_context(&err, "middle %d", 2);
    sp_err_context(&err, "outer");
    CU_ASSERT_STRING_EQUAL(err.text, "outer: middle 2: inner");
    CU_ASSERT_EQUAL(err.code, SP_E_FORMAT);
    sp_err_context(NULL, "nothing happens");
}

/* The buffer is never overrun and always ends, whatever is put in. */
static void long_words_are_cut_not_overrun(void) {
    char words[2000];
    struct {
        sp_err err;
        char guard[64];
    } s;
    for (size_t n = 0; n < sizeof words - 1; n += n < 230 || n > 250 ? 37 : 1) {
        memset(words, 'w', n);
        words[n] = 0;
        memset(&s, 0x5a, sizeof s);
        (void)SP_FAIL(&s.err, SP_E_IO, "%s", words);
        size_t want = n < sizeof s.err.text ? n : sizeof s.err.text - 1;
        CU_ASSERT_EQUAL(strlen(s.err.text), want);
        sp_err_context(&s.err, "%s", words);
        CU_ASSERT(strlen(s.err.text) < sizeof s.err.text);
        CU_ASSERT_EQUAL(strncmp(s.err.text, words, want), 0);
        for (size_t i = 0; i < sizeof s.guard; i++) CU_ASSERT_EQUAL(s.guard[i], 0x5a);
    }
}

static sp_status pass_on(sp_status st, int *reached) {
    SP_TRY(st);
    *reached = 1;
    return SP_OK;
}

static void try_returns_everything_but_ok(void) {
    int reached = 0;
    CU_ASSERT_EQUAL(pass_on(SP_E_IO, &reached), SP_E_IO);
    CU_ASSERT_EQUAL(pass_on(SP_AGAIN, &reached), SP_AGAIN);
    CU_ASSERT_EQUAL(reached, 0);
    CU_ASSERT_EQUAL(pass_on(SP_OK, &reached), SP_OK);
    CU_ASSERT_EQUAL(reached, 1);
}

static void a_broken_assertion_aborts(void) {
    pid_t pid = fork();
    if (pid == 0) {
        close(STDERR_FILENO);
        SP_ASSERT(1 + 1 == 3);
        _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    CU_ASSERT(WIFSIGNALED(status));
}

SP_TEST_MAIN("runtime/base/status", SP_TEST(every_status_has_a_name_a_text_and_an_http_code),
             SP_TEST(an_unknown_status_is_answered_too),
             SP_TEST(the_range_of_an_error_tells_what_has_to_die),
             SP_TEST(a_failure_keeps_code_place_and_words), SP_TEST(context_goes_before_the_words),
             SP_TEST(long_words_are_cut_not_overrun), SP_TEST(try_returns_everything_but_ok),
             SP_TEST(a_broken_assertion_aborts))
