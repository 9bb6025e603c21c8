// The emulated device runs kernels: right ones in every order of threads, and finds the mistakes.
#include "kernels/cuda/emu/half.h"
#include "tests/kernels/cuda/emu_env.h"

static float *device_floats(const float *host, size_t n) {
    float *p = NULL;
    EMU_OK(cudaMalloc((void **)&p, n * sizeof *p));
    if (host) EMU_OK(cudaMemcpy(p, host, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

static void vectors_are_added_in_every_order(void) {
    EMU_NEEDS_FIBRES();
    enum {
        N = 1000
    };
    static float a[N], b[N], y[N];
    for (int i = 0; i < N; i++) {
        a[i] = (float)i;
        b[i] = (float)(2 * i + 1);
    }
    for (int order = 0; order < 3; order++) {
        emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
        float *da = device_floats(a, N), *db = device_floats(b, N), *dy = device_floats(NULL, N);
        EMU_OK(emu_add(NULL, dy, da, db, N));
        EMU_OK(cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost));
        for (int i = 0; i < N; i++) CU_ASSERT_EQUAL_FATAL(y[i], (float)(3 * i + 1));
    }
}

static void sums_have_the_same_bits_by_hand_and_by_the_wrapper(void) {
    EMU_NEEDS_FIBRES();
    enum {
        ROWS = 3,
        N = 777
    };
    static float x[ROWS * N], y[2 * ROWS], first[2 * ROWS];
    for (int i = 0; i < ROWS * N; i++) x[i] = (float)((i * 7919) % 1009) / 64 - 7;
    for (int order = 0; order < 3; order++) {
        emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
        float *dx = device_floats(x, ROWS * N), *dy = device_floats(NULL, 2 * ROWS);
        EMU_OK(emu_sum(NULL, dy, dx, ROWS, N));
        EMU_OK(cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost));
        for (int r = 0; r < ROWS; r++) {
            double sum = 0;
            for (int i = 0; i < N; i++) sum += x[r * N + i];
            CU_ASSERT(fabs(y[2 * r] - sum) < 1e-2);
            CU_ASSERT(fabs(y[2 * r + 1] - sum) < 1e-2);
        }
        if (order == 0) memcpy(first, y, sizeof y);
        CU_ASSERT_EQUAL(memcmp(first, y, sizeof y), 0);
    }
}

static void one_gemm(int f16, int m, int n, int k) {
    uint16_t *a = malloc((size_t)m * k * 2), *b = malloc((size_t)n * k * 2), *da = NULL, *db = NULL;
    float *c = malloc((size_t)m * n * 4), *dc = NULL;
    float (*wide)(uint16_t) = f16 ? cu_f16_to_float : cu_bf16_to_float;
    uint16_t (*narrow)(float) = f16 ? cu_f16_from_float : cu_bf16_from_float;
    for (int i = 0; i < m * k; i++) a[i] = narrow((float)((i * 37) % 101) / 50 - 1);
    for (int i = 0; i < n * k; i++) b[i] = narrow((float)((i * 53) % 97) / 48 - 1);
    EMU_OK(cudaMalloc((void **)&da, (size_t)m * k * 2));
    EMU_OK(cudaMalloc((void **)&db, (size_t)n * k * 2));
    EMU_OK(cudaMalloc((void **)&dc, (size_t)m * n * 4));
    EMU_OK(cudaMemcpy(da, a, (size_t)m * k * 2, cudaMemcpyHostToDevice));
    EMU_OK(cudaMemcpy(db, b, (size_t)n * k * 2, cudaMemcpyHostToDevice));
    EMU_OK(emu_gemm(NULL, dc, da, db, m, n, k, f16));
    EMU_OK(cudaMemcpy(c, dc, (size_t)m * n * 4, cudaMemcpyDeviceToHost));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += (double)wide(a[i * k + l]) * (double)wide(b[j * k + l]);
            CU_ASSERT_FATAL(fabs(sum - (double)c[i * n + j]) < 1e-4);
        }
    free(a);
    free(b);
    free(c);
}

static void tensor_cores_ldmatrix_and_async_copies_multiply_matrices(void) {
    EMU_NEEDS_FIBRES();
    for (int order = 0; order < 3; order++)
        for (int f16 = 0; f16 < 2; f16++) {
            emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
            one_gemm(f16, 32, 24, 80);
        }
}

static void warp_and_block_words_mean_what_the_manual_says(void) {
    EMU_NEEDS_FIBRES();
    // Lane 6 of each warp; lane l of warp w holds 10 l + w.
    for (int order = 0; order < 3; order++) {
        emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
        float *dy = device_floats(NULL, EMU_WORDS), y[EMU_WORDS];
        EMU_OK(emu_words(NULL, dy));
        EMU_OK(cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost));
        for (int w = 0; w < 2; w++) {
            const float want[20] = {(float)(50 + w),
                                    (float)(40 + w),
                                    (float)(60 + w),
                                    (float)(250 + w),
                                    (float)(10 + w),
                                    536870910.0f,
                                    1,
                                    0,
                                    4,
                                    496,
                                    (float)(4960 + 32 * w),
                                    15,
                                    -31,
                                    311,
                                    64,
                                    2,
                                    1,
                                    496,
                                    1 + 31 + 4 + 1,
                                    10 + 1122867};
            for (int i = 0; i < 20; i++) {
                if (want[i] != y[w * 32 + i])
                    printf("word %d of warp %d: %g, wanted %g\n", i, w, y[w * 32 + i], want[i]);
                CU_ASSERT_EQUAL(want[i], y[w * 32 + i]);
            }
        }
    }
}

static void large_shared_memory_has_to_be_asked_for(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    float *dy = device_floats(NULL, 1), y = 0;
    EMU_OK(emu_dynamic(NULL, dy, 4096, 0));
    EMU_OK(cudaMemcpy(&y, dy, 4, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(y, 1024.0f);
    CU_ASSERT_EQUAL(emu_dynamic(NULL, dy, 100 * 1024, 0), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaSuccess);
    CU_ASSERT_EQUAL(emu_dynamic(NULL, dy, 1024, 200 * 1024), cudaErrorInvalidValue);
    EMU_OK(emu_dynamic(NULL, dy, 100 * 1024, 100 * 1024));
    EMU_OK(cudaMemcpy(&y, dy, 4, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(y, 25600.0f);
}

static void kernels_without_a_mistake_pass_in_every_order(void) {
    EMU_NEEDS_FIBRES();
    for (int which = 0; which < EMU_N_CASES; which++) {
        float want[EMU_OUT], got[EMU_OUT];
        emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
        CU_ASSERT_EQUAL_FATAL(emu_once((emu_case)which, 0, NULL, want), EMU_NOTHING);
        for (int order = 0; order < 3; order++)
            for (unsigned seed = 1; seed < (order == 2 ? 6 : 2); seed++) {
                cu_emu_config c;
                emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
                cu_emu_get_config(&c);
                c.seed = seed;
                cu_emu_configure(&c);
                int by = emu_once((emu_case)which, 0, want, got);
                if (by) printf("'%s': %d: %s\n", emu_case_names[which], by, cu_emu_last_report());
                CU_ASSERT_EQUAL(by, EMU_NOTHING);
            }
    }
}

typedef struct seeded {
    emu_case which;
    int forward, backward; /* what finds it in that order; 0: not asked */
} seeded;

static const seeded seeds[] = {
    {EMU_missing_barrier, EMU_VALUES, EMU_VALUES},
    {EMU_barrier_in_branch, CU_EMU_BARRIER, CU_EMU_BARRIER},
    {EMU_early_exit_before_barrier, CU_EMU_BARRIER, CU_EMU_BARRIER},
    {EMU_two_barriers, CU_EMU_BARRIER, CU_EMU_BARRIER},
    {EMU_divergent_shuffle, CU_EMU_DIVERGED, CU_EMU_DIVERGED},
    {EMU_shuffle_from_an_exited_lane, CU_EMU_DIVERGED, CU_EMU_OUTSIDE},
    {EMU_lane_outside_mask, CU_EMU_OUTSIDE, CU_EMU_OUTSIDE},
    {EMU_absent_lanes, CU_EMU_OUTSIDE, CU_EMU_OUTSIDE},
    {EMU_shared_off_by_one, CU_EMU_OVERRUN, CU_EMU_OVERRUN},
    {EMU_global_off_by_one, CU_EMU_OVERRUN, CU_EMU_OVERRUN},
    {EMU_global_far_out, CU_EMU_ADDRESS, CU_EMU_ADDRESS},
    {EMU_global_before, CU_EMU_OVERRUN, CU_EMU_OVERRUN},
    {EMU_copy_without_wait, EMU_VALUES, EMU_VALUES},
    {EMU_copy_wait_one_group_short, EMU_VALUES, EMU_VALUES},
    {EMU_ldmatrix_misaligned, CU_EMU_MISALIGNED, CU_EMU_MISALIGNED},
    {EMU_ldmatrix_outside, CU_EMU_ADDRESS, CU_EMU_ADDRESS},
    {EMU_shared_not_initialised, EMU_VALUES, EMU_VALUES},
    {EMU_block_reads_block, 0, EMU_VALUES},
    {EMU_missing_syncwarp, 0, EMU_VALUES},
    {EMU_tile_reused_too_early, EMU_VALUES, EMU_VALUES},
#if defined(__SANITIZE_ADDRESS__)
    {EMU_misaligned_vector, CU_EMU_MISALIGNED, CU_EMU_MISALIGNED},
#endif
    {EMU_trap, CU_EMU_TRAP, CU_EMU_TRAP},
};

static void each_seeded_mistake_is_found_by_its_mode(void) {
    EMU_NEEDS_FIBRES();
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        if (seeds[i].forward) emu_expect(seeds[i].which, CU_EMU_FORWARD, seeds[i].forward);
        emu_expect(seeds[i].which, CU_EMU_BACKWARD, seeds[i].backward);
    }
}

static void a_report_names_the_place_and_the_thread(void) {
    EMU_NEEDS_FIBRES();
    float got[EMU_OUT];
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    CU_ASSERT_EQUAL(emu_once(EMU_trap, 1, NULL, got), CU_EMU_TRAP);
    CU_ASSERT_PTR_NOT_NULL(strstr(cu_emu_last_report(), "emu_broken.cu"));
    CU_ASSERT_PTR_NOT_NULL(strstr(cu_emu_last_report(), "thread (5,0,0) of block (0,0,0)"));
    // The device is lost from then on, whatever is asked of it.
    void *p = NULL;
    CU_ASSERT_EQUAL(cudaMalloc(&p, 16), cudaErrorAssert);
    CU_ASSERT_EQUAL(cudaDeviceSynchronize(), cudaErrorAssert);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorAssert);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorAssert);
    cu_emu_reset();
    CU_ASSERT_EQUAL(cudaMalloc(&p, 16), cudaSuccess);
}

static void a_host_pointer_as_argument_is_refused_at_the_launch(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    float host[8] = {0}, *dy = device_floats(NULL, 8);
    CU_ASSERT_EQUAL(emu_add(NULL, dy, host, dy, 8), cudaErrorIllegalAddress);
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ADDRESS), 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(cu_emu_last_report(), "argument 2"));
    CU_ASSERT_EQUAL(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
}

SP_TEST_MAIN("emu_kernels", SP_TEST(vectors_are_added_in_every_order),
             SP_TEST(sums_have_the_same_bits_by_hand_and_by_the_wrapper),
             SP_TEST(tensor_cores_ldmatrix_and_async_copies_multiply_matrices),
             SP_TEST(warp_and_block_words_mean_what_the_manual_says),
             SP_TEST(large_shared_memory_has_to_be_asked_for),
             SP_TEST(kernels_without_a_mistake_pass_in_every_order),
             SP_TEST(each_seeded_mistake_is_found_by_its_mode),
             SP_TEST(a_report_names_the_place_and_the_thread),
             SP_TEST(a_host_pointer_as_argument_is_refused_at_the_launch))
