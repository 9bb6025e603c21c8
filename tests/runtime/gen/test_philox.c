/* Covers runtime/gen/philox.c: the published known answers, and many words at once. */
#include "runtime/gen/philox.h"

#include "runtime/base/status.h"
#include "tests/harness.h"

#include <string.h>

static void the_known_answers_of_the_authors_come_out(void) {
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } known[] = {{{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                 {{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
                  {UINT32_MAX, UINT32_MAX},
                  {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                 {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                  {0xa4093822, 0x299f31d0},
                  {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    for (size_t i = 0; i < SP_LEN(known); i++) {
        uint32_t out[4];
        sp_philox(known[i].counter, known[i].key, out);
        CU_ASSERT_EQUAL(memcmp(out, known[i].want, sizeof out), 0);
    }
}

/* Every length, so that vector and rest are both met; also where the id wraps its 32 bits. */
static void many_words_are_the_same_as_one_by_one(void) {
    static const int32_t firsts[] = {0, 1, 63, 128255, INT32_MAX - 100};
    const uint64_t seed = 0x0123456789abcdef;
    const uint32_t key[2] = {0x89abcdef, 0x01234567};
    for (size_t f = 0; f < SP_LEN(firsts); f++)
        for (int32_t n = 0; n <= 70; n++) {
            uint32_t words[72], one[4];
            memset(words, 0xee, sizeof words);
            sp_philox_words(seed, 5, 1000000, firsts[f], n, words);
            for (int32_t i = 0; i < n; i++) {
                const uint32_t counter[4] = {5, 1000000, (uint32_t)firsts[f] + (uint32_t)i, 0};
                sp_philox(counter, key, one);
                CU_ASSERT_EQUAL(words[i], one[0]);
            }
            CU_ASSERT_EQUAL(words[n], 0xeeeeeeee); /* not one word too many */
        }
}

static void every_part_of_the_counter_and_the_key_changes_the_word(void) {
    uint32_t base, other;
    sp_philox_words(7, 0, 3, 9, 1, &base);
    sp_philox_words(8, 0, 3, 9, 1, &other);
    CU_ASSERT_NOT_EQUAL(base, other);
    sp_philox_words(7 + ((uint64_t)1 << 32), 0, 3, 9, 1, &other);
    CU_ASSERT_NOT_EQUAL(base, other);
    sp_philox_words(7, 1, 3, 9, 1, &other);
    CU_ASSERT_NOT_EQUAL(base, other);
    sp_philox_words(7, 0, 4, 9, 1, &other);
    CU_ASSERT_NOT_EQUAL(base, other);
    sp_philox_words(7, 0, 3, 10, 1, &other);
    CU_ASSERT_NOT_EQUAL(base, other);
}

SP_TEST_MAIN("runtime/gen/philox", SP_TEST(the_known_answers_of_the_authors_come_out),
             SP_TEST(many_words_are_the_same_as_one_by_one),
             SP_TEST(every_part_of_the_counter_and_the_key_changes_the_word))
