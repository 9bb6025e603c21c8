// Kernels compiled for the race checker: what no order of whole threads can show.
#include "tests/kernels/cuda/emu_env.h"

static void kernels_without_a_mistake_have_no_race(void) {
    EMU_NEEDS_FIBRES();
    for (int which = 0; which < EMU_N_CASES; which++)
        for (int order = 0; order < 3; order++) {
            float got[EMU_OUT];
            emu_fresh((cu_emu_order)order, CU_EMU_EAGER);
            int by = emu_once((emu_case)which, 0, NULL, got);
            if (by) printf("'%s': %d: %s\n", emu_case_names[which], by, cu_emu_last_report());
            CU_ASSERT_EQUAL(by, EMU_NOTHING);
        }
}

static const emu_case races[] = {
    EMU_missing_barrier, EMU_block_reads_block,   EMU_missing_syncwarp,  EMU_tile_reused_too_early,
    EMU_lost_update,     EMU_two_blocks_one_word, EMU_unordered_in_warp,
};

static void unordered_accesses_are_found_in_every_order(void) {
    EMU_NEEDS_FIBRES();
    for (size_t i = 0; i < sizeof races / sizeof *races; i++)
        for (int order = 0; order < 3; order++)
            emu_expect(races[i], (cu_emu_order)order, CU_EMU_RACE);
}

static void host_memory_and_odd_addresses_are_found(void) {
    EMU_NEEDS_FIBRES();
    emu_expect(EMU_host_pointer_inside, CU_EMU_FORWARD, CU_EMU_ADDRESS);
    emu_expect(EMU_misaligned_vector, CU_EMU_FORWARD, CU_EMU_MISALIGNED);
}

static void a_race_names_both_places(void) {
    EMU_NEEDS_FIBRES();
    float got[EMU_OUT];
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    CU_ASSERT_EQUAL(emu_once(EMU_lost_update, 1, NULL, got), CU_EMU_RACE);
    const char *said = cu_emu_last_report(), *first = strstr(said, "emu_broken.cu:");
    CU_ASSERT_PTR_NOT_NULL_FATAL(first);
    CU_ASSERT_PTR_NOT_NULL(strstr(first + 1, "emu_broken.cu:"));
    CU_ASSERT_PTR_NOT_NULL(strstr(said, "of shared memory"));
    cu_emu_reset();
}

SP_TEST_MAIN("emu_race", SP_TEST(kernels_without_a_mistake_have_no_race),
             SP_TEST(unordered_accesses_are_found_in_every_order),
             SP_TEST(host_memory_and_odd_addresses_are_found), SP_TEST(a_race_names_both_places))
