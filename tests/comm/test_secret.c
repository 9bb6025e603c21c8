/* Covers comm/secret.c: the published vectors, pieces, equal-time compare, randomness, wiping. */
#include "comm/secret.h"

#include "tests/harness.h"

#include <stdio.h>

static size_t from_hex(const char *hex, uint8_t *out) {
    size_t n = 0;
    unsigned byte;
    for (; hex[0] && sscanf(hex, "%2x", &byte) == 1; hex += 2) out[n++] = (uint8_t)byte;
    return n;
}

static sp_slice repeat(uint8_t *room, int byte, size_t n) {
    memset(room, byte, n);
    return (sp_slice){(const char *)room, n};
}

static sp_slice count_up(uint8_t *room, int first, size_t n) {
    for (size_t i = 0; i < n; i++) room[i] = (uint8_t)(first + (int)i);
    return (sp_slice){(const char *)room, n};
}

static void check_mac(sp_slice key, sp_slice data, const char *want_hex) {
    uint8_t want[SP_MAC_BYTES], got[SP_MAC_BYTES] = {0};
    size_t n = from_hex(want_hex, want);
    sp_hmac_sha256(got, key, &data, 1);
    CU_ASSERT(n >= 16 && memcmp(got, want, n) == 0);
}

static void hmac_gives_the_vectors_of_rfc_4231(void) {
    uint8_t k[131], d[50];
    check_mac(repeat(k, 0x0b, 20), SP_SLICE("Hi There"),
              "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    check_mac(SP_SLICE("Jefe"), SP_SLICE("what do ya want for nothing?"),
              "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    check_mac(repeat(k, 0xaa, 20), repeat(d, 0xdd, 50),
              "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    check_mac(count_up(k, 1, 25), repeat(d, 0xcd, 50),
              "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
    check_mac(repeat(k, 0x0c, 20), SP_SLICE("Test With Truncation"),
              "a3b6167473100ee06e0c796c2955552b");
    check_mac(repeat(k, 0xaa, 131),
              SP_SLICE("Test Using Larger Than Block-Size Key - Hash Key First"),
              "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    check_mac(repeat(k, 0xaa, 131),
              SP_SLICE("This is a test using a larger than block-size key and a larger than "
                       "block-size data. The key needs to be hashed before being used by the HMAC "
                       "algorithm."),
              "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

static void hmac_over_pieces_is_hmac_over_the_whole(void) {
    const char text[] = "what do ya want for nothing?";
    uint8_t whole[SP_MAC_BYTES], parts[SP_MAC_BYTES];
    sp_slice all = {text, sizeof text - 1};
    sp_hmac_sha256(whole, SP_SLICE("Jefe"), &all, 1);
    for (size_t cut = 0; cut <= all.len; cut++) {
        const sp_slice pieces[] = {{text, cut}, {NULL, 0}, {text + cut, all.len - cut}};
        sp_hmac_sha256(parts, SP_SLICE("Jefe"), pieces, 3);
        CU_ASSERT(memcmp(whole, parts, sizeof whole) == 0);
    }
    sp_hmac_sha256(parts, SP_SLICE("Jeff"), &all, 1);
    CU_ASSERT(memcmp(whole, parts, sizeof whole) != 0);
}

static void check_hkdf(sp_slice secret, sp_slice salt, sp_slice info, const char *want_hex) {
    uint8_t want[128], got[128] = {0};
    size_t n = from_hex(want_hex, want);
    got[n] = 0x5a;
    sp_hkdf_sha256(got, n, secret, salt, info);
    CU_ASSERT(memcmp(got, want, n) == 0);
    CU_ASSERT_EQUAL(got[n], 0x5a); /* nothing is written behind */
}

static void hkdf_gives_the_vectors_of_rfc_5869(void) {
    uint8_t ikm[80], salt[80], info[80];
    check_hkdf(
        repeat(ikm, 0x0b, 22), count_up(salt, 0, 13), count_up(info, 0xf0, 10),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    check_hkdf(
        count_up(ikm, 0, 80), count_up(salt, 0x60, 80), count_up(info, 0xb0, 80),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb"
        "41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87");
    check_hkdf(
        repeat(ikm, 0x0b, 22), (sp_slice){0}, (sp_slice){0},
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
}

static void any_differing_bit_is_seen(void) {
    uint8_t a[SP_MAC_BYTES], b[SP_MAC_BYTES];
    CU_ASSERT_EQUAL_FATAL(sp_random_bytes(a, sizeof a, NULL), SP_OK);
    memcpy(b, a, sizeof a);
    CU_ASSERT(sp_secret_equal(a, b, sizeof a));
    for (size_t bit = 0; bit < 8 * sizeof a; bit++) {
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CU_ASSERT(!sp_secret_equal(a, b, sizeof a));
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void random_bytes_differ_and_wiped_ones_are_zero(void) {
    uint8_t a[64] = {0}, b[64] = {0}, zero[64] = {0};
    CU_ASSERT_EQUAL_FATAL(sp_random_bytes(a, sizeof a, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_random_bytes(b, sizeof b, NULL), SP_OK);
    CU_ASSERT(memcmp(a, b, sizeof a) != 0);
    CU_ASSERT(memcmp(a, zero, sizeof a) != 0);
    sp_wipe(a, sizeof a);
    CU_ASSERT(memcmp(a, zero, sizeof a) == 0);
}

SP_TEST_MAIN("comm/secret", SP_TEST(hmac_gives_the_vectors_of_rfc_4231),
             SP_TEST(hmac_over_pieces_is_hmac_over_the_whole),
             SP_TEST(hkdf_gives_the_vectors_of_rfc_5869), SP_TEST(any_differing_bit_is_seen),
             SP_TEST(random_bytes_differ_and_wiped_ones_are_zero))
