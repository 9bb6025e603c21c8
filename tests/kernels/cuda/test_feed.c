/* Covers kernels/cuda/feed.cu: tokens drawn before are put in where the host could only name a slot. */
#include "tests/kernels/cuda/rows_env.h"

static void slots_become_their_tokens_and_ids_stay(void) {
    NEEDS_FIBRES();
    rng_state = 7;
    for (int round = 0; round < 9; round++) {
        enum {
            T_MAX = 700,
            SLOTS = 300
        };
        device_fresh(round);
        const int32_t T = round ? between(1, T_MAX) : T_MAX;
        int32_t ids[T_MAX], want[T_MAX], last[SLOTS];
        for (int32_t s = 0; s < SLOTS; s++) last[s] = 1000 + s;
        for (int32_t t = 0; t < T; t++) {
            const int32_t slot = between(0, SLOTS - 1);
            ids[t] = t % 3 == 0 ? -1 - slot : t % 3 == 1 ? between(0, 99) : 0;
            want[t] = ids[t] < 0 ? last[slot] : ids[t];
        }
        int32_t *there = upload(ids, (size_t)T * sizeof *ids);
        const int32_t *known = upload(last, sizeof last);
        CUDA_OK(cu_feed(NULL, there, known, SLOTS, T));
        CUDA_OK(cudaMemcpy(ids, there, (size_t)T * sizeof *ids, cudaMemcpyDeviceToHost));
        CU_ASSERT_EQUAL(memcmp(ids, want, (size_t)T * sizeof *ids), 0);
    }
}

static void a_slot_that_there_is_not_stays_for_the_embedding_to_refuse(void) {
    NEEDS_FIBRES();
    device_fresh(0);
    int32_t ids[] = {-1, -2, -3, INT32_MIN, 5}, last[] = {7, 8, 9};
    int32_t *there = upload(ids, sizeof ids);
    CUDA_OK(cu_feed(NULL, there, upload(last, sizeof last), 2, 5));
    CUDA_OK(cudaMemcpy(ids, there, sizeof ids, cudaMemcpyDeviceToHost));
    CU_ASSERT(ids[0] == 7 && ids[1] == 8 && ids[2] == -3 && ids[3] == INT32_MIN && ids[4] == 5);
    CUDA_OK(cu_feed(NULL, there, NULL, 0, 0));
    CU_ASSERT_EQUAL(cu_feed(NULL, there, NULL, -1, 1), cudaErrorInvalidValue);
}

SP_TEST_MAIN("cuda feed", SP_TEST(slots_become_their_tokens_and_ids_stay),
             SP_TEST(a_slot_that_there_is_not_stays_for_the_embedding_to_refuse))
