#include "tests/harness.h"

#include <CUnit/Basic.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *skip_reason;

void sp_test_skip(const char *why) {
    skip_reason = why;
}

const char *sp_test_fixtures(void) {
    const char *dir = getenv("SUPERPOD_FIXTURES");
    if (!dir) dir = "../shared/fixtures";
    return access(dir, R_OK) == 0 ? dir : NULL;
}

char *sp_test_read(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "cannot read '%s'\n", path);
        CU_FAIL_FATAL("file of the test is missing");
        return NULL;
    }
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *bytes = malloc((size_t)n + 1);
    size_t got = fread(bytes, 1, (size_t)n, f);
    fclose(f);
    bytes[got] = 0;
    if (len) *len = got;
    return bytes;
}

static void print_failures(void) {
    for (CU_pFailureRecord r = CU_get_failure_list(); r; r = r->pNext)
        fprintf(stderr, "    %s:%u: %s\n", r->strFileName, r->uiLineNumber, r->strCondition);
}

int sp_test_main(const char *suite, const sp_test *tests, int n, int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    const char *only = argc > 1 ? argv[1] : "";
    for (int i = 0; i < n; i++) {
        if (!strstr(tests[i].name, only)) continue;
        skip_reason = NULL;
        /* One registry a test, so that the failure list is this test's alone. */
        if (CU_initialize_registry() != CUE_SUCCESS) return 1;
        CU_pSuite s = CU_add_suite(suite, NULL, NULL);
        CU_add_test(s, tests[i].name, tests[i].fn);
        CU_run_all_tests();
        if (CU_get_number_of_failures() > 0) {
            failed++;
            fprintf(stderr, "FAILED  %s: %s\n", suite, tests[i].name);
            print_failures();
        } else if (skip_reason) {
            skipped++;
            printf("skipped %s: %s (%s)\n", suite, tests[i].name, skip_reason);
        } else {
            passed++;
        }
        CU_cleanup_registry();
    }
    printf("%s: %d passed, %d failed, %d skipped\n", suite, passed, failed, skipped);
    return failed ? 1 : 0;
}
