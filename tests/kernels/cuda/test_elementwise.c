/* Activations, gathered rows and members' sums on the device: the host's bits. */
#include "tests/kernels/cuda/rows_env.h"

static void activations_give_the_bits_of_ref(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(51);
    for (int round = 0; round < ROUNDS(36); round++) {
        device_fresh(round);
        const int32_t T = between(1, 4), F = PICK(1, 3, 31, 256, 257, 1025);
        const int32_t ldy = F + between(0, 2), ldg = 2 * F + between(0, 2);
        const size_t n = (size_t)T * (size_t)ldy, m = (size_t)T * (size_t)ldg;
        const sp_act act = (sp_act)(round / 3 % 3);
        float *gate_up = values(m), *want = canaries(n);
        for (size_t i = 0; i < m; i++) gate_up[i] *= 8;
        gate_up[0] = round % 5 ? -200.0f : INFINITY;
        float *dy = upload_floats(want, n);
        CUDA_OK(cu_act_mul(NULL, dy, ldy, upload_floats(gate_up, m), ldg, act, T, F));
        ref.ops->act_mul(&ref, mat(want, T, F, ldy), mat(gate_up, T, 2 * F, ldg), act);
        float *y = download(dy, n);
        CU_ASSERT(same(y, want, n));
        free(y);
        free(want);
        free(gate_up);
    }
    CU_ASSERT_EQUAL(cu_act_mul(NULL, NULL, 1, NULL, 2, (sp_act)9, 1, 1), cudaErrorInvalidValue);
    sp_dev_close(&ref);
}

static void gathered_rows_are_copies(void) {
    NEEDS_FIBRES();
    rng_state = 52;
    for (int round = 0; round < ROUNDS(18); round++) {
        device_fresh(round);
        const int32_t T = between(1, 20), n = between(1, 9), cols = PICK(1, 5, 300, 1100);
        const int32_t ldx = cols + between(0, 2), ldy = cols + between(0, 2);
        float *x = values((size_t)T * (size_t)ldx), *fill = canaries((size_t)n * (size_t)ldy);
        int32_t rows[9];
        for (int32_t i = 0; i < n; i++) rows[i] = between(0, T - 1);
        float *dy = upload_floats(fill, (size_t)n * (size_t)ldy);
        CUDA_OK(cu_gather_rows(NULL, dy, ldy, upload_floats(x, (size_t)T * (size_t)ldx), ldx,
                               upload(rows, sizeof rows), n, cols));
        float *y = download(dy, (size_t)n * (size_t)ldy);
        for (int32_t i = 0; i < n; i++)
            CU_ASSERT(same(y + (ptrdiff_t)i * ldy, x + (ptrdiff_t)rows[i] * ldx, (size_t)cols));
        expect_gaps_untouched(y, n, cols, ldy);
        free(y);
        free(x);
        free(fill);
    }
    CUDA_OK(cu_gather_rows(NULL, NULL, 1, NULL, 1, NULL, 0, 5));
}

static void any_number_of_members_is_added_as_the_group_adds_them(void) {
    NEEDS_FIBRES();
    rng_state = 53;
    for (int n = 1; n <= 64; n = n < 20 ? n + 1 : n + 11) {
        device_fresh(n);
        const size_t count = (size_t)between(1, 700);
        float *all = values((size_t)n * count), *want = malloc(count * sizeof *want);
        const float *parts[64];
        for (int m = 0; m < n; m++) parts[m] = all + (size_t)m * count;
        all[0] = -0.0f; /* a missing leaf is no zero */
        for (int m = 0; m < n; m++) all[(size_t)m * count] = -0.0f;
        sp_group_tree(want, parts, n, count);
        float *da = upload_floats(all, (size_t)n * count), *out = upload(NULL, count * sizeof *out);
        CUDA_OK(cu_tree_sum(NULL, out, da, n, count));
        float *y = download(out, count);
        CU_ASSERT(same(y, want, count));
        free(y);
        /* In place, over the last member's part. */
        CUDA_OK(cu_tree_sum(NULL, da + (size_t)(n - 1) * count, da, n, count));
        y = download(da + (size_t)(n - 1) * count, count);
        CU_ASSERT(same(y, want, count));
        free(y);
        free(all);
        free(want);
    }
    CU_ASSERT_EQUAL(cu_tree_sum(NULL, NULL, NULL, 0, 5), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_tree_sum(NULL, NULL, NULL, 128, 5), cudaErrorInvalidValue);
    CUDA_OK(cu_tree_sum(NULL, NULL, NULL, 3, 0));
}

SP_TEST_MAIN("cuda elementwise", SP_TEST(activations_give_the_bits_of_ref),
             SP_TEST(gathered_rows_are_copies),
             SP_TEST(any_number_of_members_is_added_as_the_group_adds_them))
