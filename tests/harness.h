/* tests/harness.h - one CUnit program per source file; the names of tests are sentences.
 *
 * SP_TEST_MAIN runs the listed tests and prints "N passed, N failed, N skipped" last. A test that
 * needs something this machine lacks calls SP_SKIP("why") and is counted as skipped by name.
 * An argument runs only the tests whose name contains it. */
#pragma once

#include <CUnit/CUnit.h>

#include <stdbool.h>

typedef struct sp_test {
    const char *name;
    void (*fn)(void);
} sp_test;

#define SP_TEST(fn) \
    (sp_test) { \
#fn, fn \
    }

/** Marks the running test as skipped and says why. The test must return after it. */
void sp_test_skip(const char *why);
#define SP_SKIP(why) \
    do { \
        sp_test_skip(why); \
        return; \
    } while (0)

/** The folder of third-party vectors beside the checkout, or NULL: then skip by name.
 * SUPERPOD_FIXTURES overrides it. */
const char *sp_test_fixtures(void);

/** Reads a whole file or fails the test. Owner: caller, free(). */
char *sp_test_read(const char *path, size_t *len);

int sp_test_main(const char *suite, const sp_test *tests, int n, int argc, char **argv);
#define SP_TEST_MAIN(suite, ...) \
    int main(int argc, char **argv) { \
        static const sp_test tests[] = {__VA_ARGS__}; \
        return sp_test_main(suite, tests, (int)(sizeof tests / sizeof tests[0]), argc, argv); \
    }
