/* Covers frontend/limit.c: both caps, and that what is dropped can be taken again. */
#include "frontend/limit.h"
#include "tests/harness.h"

#include <string.h>

static void a_cap_refuses_with_words_and_opens_again(void) {
    sp_limit l;
    sp_err err = {0};
    sp_limit_init(&l, 2, 100);
    CU_ASSERT_EQUAL(sp_limit_take(&l, 60, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_limit_take(&l, 41, &err), SP_E_LIMIT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "60 bytes"));
    CU_ASSERT_EQUAL(sp_limit_take(&l, 40, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_limit_take(&l, 0, &err), SP_E_LIMIT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "2 requests"));
    CU_ASSERT_EQUAL(l.refused, 2);
    sp_limit_drop(&l, 60);
    CU_ASSERT_EQUAL(sp_limit_take(&l, 60, &err), SP_OK);
    sp_limit_drop(&l, 60);
    sp_limit_drop(&l, 40);
    CU_ASSERT_EQUAL(l.requests, 0);
    CU_ASSERT_EQUAL(l.bytes, 0);
}

static void the_time_to_come_back_grows_with_the_line_and_is_bounded(void) {
    sp_limit l = {.requests = 0};
    CU_ASSERT_EQUAL(sp_limit_retry_after_s(&l), 1);
    l.requests = 5000;
    CU_ASSERT_EQUAL(sp_limit_retry_after_s(&l), 6);
    l.requests = 1000000;
    CU_ASSERT_EQUAL(sp_limit_retry_after_s(&l), 10);
}

SP_TEST_MAIN("frontend/limit", SP_TEST(a_cap_refuses_with_words_and_opens_again),
             SP_TEST(the_time_to_come_back_grows_with_the_line_and_is_bounded))
