/* Covers comm/group_self.c: a group of one changes nothing and has nobody to talk to. */
#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <string.h>

static sp_group *open_self(void) {
    sp_group *g = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_group_open_self(&g, NULL), SP_OK);
    CU_ASSERT_EQUAL(g->n, 1);
    CU_ASSERT_EQUAL(g->me, 0);
    return g;
}

static void sums_and_picks_leave_all_bits_as_they_are(void) {
    sp_group *g = open_self();
    uint32_t bits[4] = {0x80000000u, 0x7fc12345u, 0x3f800000u, 1}, now[4];
    float buf[4];
    int32_t owner[2] = {0, 0};
    memcpy(buf, bits, sizeof buf);
    g->ops->all_reduce(g, buf, 4);
    g->ops->pick_rows(g, buf, 2, 2, owner);
    memcpy(now, buf, sizeof now);
    CU_ASSERT_EQUAL(memcmp(now, bits, sizeof now), 0);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, NULL), SP_OK);
    g->ops->close(g);
}

static void a_gather_is_a_copy(void) {
    sp_group *g = open_self();
    float in[6] = {1, 2, 3, 4, 5, 6}, out[6] = {0};
    int32_t cols = 3;
    g->ops->gather_cols(g, 0, in, out, 2, &cols);
    CU_ASSERT_EQUAL(memcmp(in, out, sizeof in), 0);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, NULL), SP_OK);
    g->ops->close(g);
}

static void sending_to_somebody_is_a_fault_that_sticks(void) {
    sp_group *g = open_self();
    sp_err err = {0};
    char data[4] = {0};
    CU_ASSERT(g->ops->can_recv(g, 1));
    g->ops->send(g, 1, data, sizeof data);
    g->ops->recv(g, 2, data, sizeof data);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, &err), SP_E_INTERNAL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "send"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "got 1"));
    g->ops->close(g);
}

static void a_row_of_another_member_is_a_fault(void) {
    sp_group *g = open_self();
    float rows[2] = {1, 2};
    int32_t owner[2] = {0, 1};
    g->ops->pick_rows(g, rows, 2, 1, owner);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, NULL), SP_E_INTERNAL);
    g->ops->close(g);
}

static void an_aborted_group_says_so(void) {
    sp_group *g = open_self();
    sp_err err = {0};
    g->ops->abort(g);
    CU_ASSERT_EQUAL(g->ops->poll(g, SP_NEVER, &err), SP_E_CANCELED);
    CU_ASSERT_EQUAL(g->ops->poll(g, SP_NEVER, NULL), SP_E_CANCELED);
    g->ops->close(g);
}

static void short_memory_is_told(void) {
    sp_group *g = NULL;
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_group_open_self(&g, NULL), SP_E_NOMEM);
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(g);
}

SP_TEST_MAIN("comm/group_self", SP_TEST(sums_and_picks_leave_all_bits_as_they_are),
             SP_TEST(a_gather_is_a_copy), SP_TEST(sending_to_somebody_is_a_fault_that_sticks),
             SP_TEST(a_row_of_another_member_is_a_fault), SP_TEST(an_aborted_group_says_so),
             SP_TEST(short_memory_is_told))
