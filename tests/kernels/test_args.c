/* Covers kernels/args.c, the address functions of kernels/args.h, kernels/check.c and the registry
 * kernels/dev.c. */
#include "kernels/check.h"
#include "kernels/dev.h"
#include "tests/harness.h"

#include <string.h>

static void edges_are_floors_of_eighths_of_the_units(void) {
    const sp_segments s = sp_segments_of(12, 64);
    const int32_t want[] = {0, 1, 3, 4, 6, 7, 9, 10, 12};
    CU_ASSERT_EQUAL(s.n, 8);
    for (int i = 0; i <= 8; i++) CU_ASSERT_EQUAL(s.edge[i], want[i] * 64);
}

static void fewer_units_than_segments_leave_some_empty(void) {
    const sp_segments s = sp_segments_of(3, 2);
    const int32_t want[] = {0, 0, 0, 2, 2, 2, 4, 4, 6};
    for (int i = 0; i <= 8; i++) CU_ASSERT_EQUAL(s.edge[i], want[i]);
    const sp_segments none = sp_segments_of(0, 1);
    CU_ASSERT_EQUAL(none.edge[8], 0);
}

static void large_dimensions_do_not_overflow(void) {
    const sp_segments s = sp_segments_of(INT32_MAX, 1);
    CU_ASSERT_EQUAL(s.edge[8], INT32_MAX);
    CU_ASSERT_EQUAL(s.edge[7], (int32_t)(7LL * INT32_MAX / 8));
}

static void slices_of_all_ranks_join_to_the_whole(void) {
    const sp_segments whole = sp_segments_of(77, 3);
    for (int tp = 1; tp <= 8; tp *= 2) {
        int32_t end = 0;
        for (int r = 0; r < tp; r++) {
            int32_t first = -1;
            const sp_segments s = sp_segments_slice(whole, tp, r, &first);
            CU_ASSERT_EQUAL(s.n, 8 / tp);
            CU_ASSERT_EQUAL(first, end);
            CU_ASSERT_EQUAL(s.edge[0], 0);
            for (int i = 0; i <= s.n; i++)
                CU_ASSERT_EQUAL(first + s.edge[i], whole.edge[r * s.n + i]);
            end = first + s.edge[s.n];
        }
        CU_ASSERT_EQUAL(end, 77 * 3);
    }
    CU_ASSERT_EQUAL(sp_segments_slice(whole, 8, 7, NULL).n, 1);
}

static void a_key_row_is_found_through_the_block_table(void) {
    unsigned char memory[1];
    const int32_t blocks[] = {5, 2};
    const sp_kv_view kv = {.base = memory,
                           .block_bytes = 10000,
                           .layer_offset = 300,
                           .block_tokens = 8,
                           .n_kv_heads = 3,
                           .head_dim = 10,
                           .dtype = SP_DTYPE_F16};
    /* Position 9 is token 1 of the second block; head 2 comes after two heads of 8 tokens. */
    const uintptr_t at = (uintptr_t)sp_kv_k_row(&kv, blocks, 2, 9) - (uintptr_t)memory;
    CU_ASSERT_EQUAL(at, 2 * 10000 + 300 + (2 * 8 + 1) * 20);
    CU_ASSERT_EQUAL(sp_kv_v_offset(&kv), 3 * 8 * 20);
}

static void the_registry_opens_every_backend_it_lists(void) {
    int n = 0;
    for (const char *const *name = sp_dev_backends(); *name; name++, n++) {
        sp_err err = {0};
        sp_dev dev = {0};
        const sp_dev_config config = {.backend = *name, .n_threads = 2, .pin_threads = n == 0};
        CU_ASSERT_EQUAL_FATAL(sp_dev_open(&dev, &config, &err), SP_OK);
        CU_ASSERT_PTR_NOT_NULL(dev.detail);
        CU_ASSERT_EQUAL(dev.ops->poll(&dev, dev.ops->submit(&dev), 0, &err), SP_OK);
        sp_dev_close(&dev);
        CU_ASSERT_PTR_NULL(dev.ops);
    }
    CU_ASSERT(n >= 4);
}

static void an_unknown_backend_is_refused_with_the_list(void) {
    sp_err err = {0};
    sp_dev dev = {0};
    const sp_dev_config config = {.backend = "abacus"};
    CU_ASSERT_EQUAL(sp_dev_open(&dev, &config, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'abacus'"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "cpu-generic, ref, cpu, auto"));
    CU_ASSERT_PTR_NULL(dev.ops);
    const sp_dev_config fast = {.backend = "ref", .fast = true};
    CU_ASSERT_EQUAL(sp_dev_open(&dev, &fast, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "backend 'ref' computes exactly only"));
    CU_ASSERT_PTR_NULL(dev.ops);
    const sp_dev_config part = {.backend = "cpu-"};
    CU_ASSERT_EQUAL(sp_dev_open(&dev, &part, &err), SP_E_UNSUPPORTED);
}

static void a_bad_number_of_threads_is_refused(void) {
    sp_err err = {0};
    sp_dev dev = {0};
    const sp_dev_config config = {.backend = "cpu", .n_threads = -1};
    CU_ASSERT_EQUAL(sp_dev_open(&dev, &config, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'-1' threads"));
}

static void quantised_weights_are_refused_by_name(void) {
    const sp_weight_part part = {.dtype = SP_DTYPE_F8_E4M3, .rows = 1, .cols = 8, .stride = 8};
    const sp_segments seg = sp_segments_of(8, 1);
    for (const char *const *name = sp_dev_backends(); *name; name++) {
        sp_err err = {0};
        sp_dev dev = {0};
        const sp_dev_config config = {.backend = *name, .n_threads = 1};
        CU_ASSERT_EQUAL_FATAL(sp_dev_open(&dev, &config, &err), SP_OK);
        sp_weight *w = NULL;
        CU_ASSERT_EQUAL(dev.ops->pack(&dev, &w, &part, 1, &seg, &err), SP_E_UNSUPPORTED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "F8_E4M3"));
        CU_ASSERT_PTR_NULL(w);
        sp_dev_close(&dev);
    }
}

static void the_first_fault_stays(void) {
    sp_err fault = {0}, err = {0};
    const int32_t good[] = {0, 9}, bad[] = {3, 10}, worse[] = {-1, 0};
    CU_ASSERT(sp_check_ids(&fault, good, 2, 10));
    CU_ASSERT_EQUAL(sp_fault_status(&fault, &err), SP_OK);
    CU_ASSERT_FALSE(sp_check_ids(&fault, bad, 2, 10));
    CU_ASSERT_FALSE(sp_check_ids(&fault, worse, 2, 10));
    CU_ASSERT_EQUAL(sp_fault_status(&fault, &err), SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text, "token id 10 in row 1, vocabulary has 10");
}

SP_TEST_MAIN("kernels/args", SP_TEST(edges_are_floors_of_eighths_of_the_units),
             SP_TEST(fewer_units_than_segments_leave_some_empty),
             SP_TEST(large_dimensions_do_not_overflow),
             SP_TEST(slices_of_all_ranks_join_to_the_whole),
             SP_TEST(a_key_row_is_found_through_the_block_table),
             SP_TEST(the_registry_opens_every_backend_it_lists),
             SP_TEST(an_unknown_backend_is_refused_with_the_list),
             SP_TEST(a_bad_number_of_threads_is_refused),
             SP_TEST(quantised_weights_are_refused_by_name), SP_TEST(the_first_fault_stays))
