/* Covers launcher/faults.c: what the variable arms, and what is said of it on standard error. */
#include "launcher/faults.h"

#include "runtime/base/chaos.h"
#include "runtime/base/log.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What `say` writes to standard error. */
static void heard(void (*say)(void), char *out, size_t n) {
    FILE *f = tmpfile();
    fflush(stderr);
    const int kept = dup(STDERR_FILENO);
    CU_ASSERT_FATAL(f && kept >= 0 && dup2(fileno(f), STDERR_FILENO) >= 0);
    say();
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    rewind(f);
    out[fread(out, 1, n - 1, f)] = 0;
    fclose(f);
}

static sp_status arm(const char *text, sp_err *err) {
    *err = (sp_err){0};
    if (text)
        setenv(SP_FAULTS_VARIABLE, text, 1);
    else
        unsetenv(SP_FAULTS_VARIABLE);
    return sp_faults_arm(err);
}

static void without_the_variable_nothing_is_armed_or_said(void) {
    char text[1024];
    sp_err err;
    CU_ASSERT_EQUAL(arm(NULL, &err), SP_OK);
    CU_ASSERT_FALSE(sp_chaos_armed());
    heard(sp_faults_warn, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "");
    heard(sp_faults_tell, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "");
}

static void who_arms_is_warned_and_told_what_fired(void) {
    char text[1024];
    sp_err err;
    sp_log_setup("test", SP_LOG_WARN, false);
    CU_ASSERT_EQUAL(arm("kv.slow=1,kvx.stale=1", &err), SP_OK);
    CU_ASSERT(sp_chaos_armed());
    heard(sp_faults_warn, text, sizeof text);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "kv.slow=1,kvx.stale=1"));
    heard(sp_faults_tell, text, sizeof text);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "nothing"));
    for (int i = 0; i < 3; i++) CU_ASSERT(sp_chaos_hit(SP_CHAOS_KV_SLOW));
    heard(sp_faults_tell, text, sizeof text);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "kv.slow 3"));
    CU_ASSERT_PTR_NULL(strstr(text, "kvx.stale"));
    CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + strlen(text) - 1); /* one line */
    CU_ASSERT_EQUAL(arm(NULL, &err), SP_OK);
}

static void a_wrong_text_is_refused_by_the_name_of_the_variable(void) {
    sp_err err;
    CU_ASSERT_EQUAL(arm("no.such=1", &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, SP_FAULTS_VARIABLE));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "no.such"));
    CU_ASSERT_FALSE(sp_chaos_armed());
    CU_ASSERT_EQUAL(arm("kv.slow=2", &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(arm(NULL, &err), SP_OK);
}

SP_TEST_MAIN("launcher/faults", SP_TEST(without_the_variable_nothing_is_armed_or_said),
             SP_TEST(who_arms_is_warned_and_told_what_fired),
             SP_TEST(a_wrong_text_is_refused_by_the_name_of_the_variable))
