/* runtime/gen/philox.h - random words that are a function of a key and a counter.
 *
 * Philox4x32-10: ten rounds of a keyed bijection on four 32-bit words. Nothing is stored between
 * calls, so the word for a token can be had again after a fault, in another process, in any order.
 * The sampler's use: key = the request's seed (low word first), counter = (choice, position, token
 * id, 0), and only the first of the four output words.
 *
 * Source: Salmon et al., SC 2011, section 3.3; known answers in tests/runtime/gen/test_philox.c.
 * Thread: any. */
#pragma once

#include <stdint.h>

void sp_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/** The first output word for `n` neighbouring token ids from `first_id` on. */
void sp_philox_words(uint64_t seed, int32_t choice, int32_t position, int32_t first_id, int32_t n,
                     uint32_t *out);
