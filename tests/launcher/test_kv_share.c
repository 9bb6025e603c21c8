/* Covers launcher/kv_share.c: keys follow from the secret alone, a secret that others may read is
 * refused, and identities are equal exactly where blocks may be shared. */
#include "launcher/kv_share.h"

#include "comm/secret.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static sp_err err;

/* A file of `n` bytes; the caller unlinks. */
static void put_file(char path[32], const void *bytes, size_t n, mode_t mode) {
    snprintf(path, 32, "/tmp/sp_kv_share_XXXXXX");
    int fd = mkstemp(path);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT_EQUAL_FATAL(write(fd, bytes, n), (ssize_t)n);
    CU_ASSERT_EQUAL_FATAL(fchmod(fd, mode), 0);
    close(fd);
}

static sp_status load(sp_kv_share *out, const void *bytes, size_t n, mode_t mode) {
    char path[32];
    err = (sp_err){0};
    put_file(path, bytes, n, mode);
    sp_status st = sp_kv_share_load(out, path, &err);
    unlink(path);
    return st;
}

static void without_a_file_nothing_is_shared(void) {
    sp_kv_share s = {.on = true};
    CU_ASSERT_EQUAL(sp_kv_share_load(&s, NULL, &err), SP_OK);
    CU_ASSERT_FALSE(s.on);
    s.on = true;
    CU_ASSERT_EQUAL(sp_kv_share_load(&s, "", &err), SP_OK);
    CU_ASSERT_FALSE(s.on);
}

static void keys_follow_from_the_secret_and_the_pod_is_a_new_one(void) {
    sp_kv_share a, b, c;
    CU_ASSERT_EQUAL_FATAL(load(&a, "0123456789abcdef", 16, 0600), SP_OK);
    CU_ASSERT_EQUAL_FATAL(load(&b, "0123456789abcdef\r\n\n", 19, 0400), SP_OK);
    CU_ASSERT_EQUAL_FATAL(load(&c, "0123456789abcdeg", 16, 0440), SP_OK);
    CU_ASSERT(a.on && b.on && c.on);
    CU_ASSERT_EQUAL(memcmp(a.region_key, b.region_key, sizeof a.region_key), 0);
    CU_ASSERT_EQUAL(memcmp(a.chain_key, b.chain_key, sizeof a.chain_key), 0);
    CU_ASSERT_EQUAL(memcmp(a.handle_key, b.handle_key, sizeof a.handle_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.region_key, c.region_key, sizeof a.region_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.chain_key, c.chain_key, sizeof a.chain_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.handle_key, c.handle_key, sizeof a.handle_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.region_key, a.chain_key, sizeof a.region_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.chain_key, a.handle_key, sizeof a.chain_key), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.region_key, a.handle_key, sizeof a.region_key), 0);
    CU_ASSERT_EQUAL(strlen(a.pod), 32);
    CU_ASSERT_EQUAL(strspn(a.pod, "0123456789abcdef"), 32);
    CU_ASSERT_STRING_NOT_EQUAL(a.pod, b.pod);
    sp_kv_share_wipe(&a);
    CU_ASSERT(!a.on && a.chain_key[0] == 0 && a.chain_key[31] == 0);
}

static void every_byte_of_a_secret_counts(void) {
    sp_kv_share a, b;
    char bytes[SP_KV_SECRET_MAX] = {0}; /* binary: NULs and all */
    CU_ASSERT_EQUAL_FATAL(load(&a, bytes, sizeof bytes, 0600), SP_OK);
    bytes[SP_KV_SECRET_MAX - 1] = 1;
    CU_ASSERT_EQUAL_FATAL(load(&b, bytes, sizeof bytes, 0600), SP_OK);
    CU_ASSERT_NOT_EQUAL(memcmp(a.region_key, b.region_key, sizeof a.region_key), 0);
    CU_ASSERT_EQUAL_FATAL(load(&a, bytes, sizeof bytes - 1, 0600), SP_OK);
    CU_ASSERT_NOT_EQUAL(memcmp(a.region_key, b.region_key, sizeof a.region_key), 0);
}

static void refused(const void *bytes, size_t n, mode_t mode, sp_status want, const char *words) {
    sp_kv_share s = {.pod = "untouched"};
    CU_ASSERT_EQUAL(load(&s, bytes, n, mode), want);
    if (!strstr(err.text, words)) fprintf(stderr, "    got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_PTR_NULL(strstr(err.text, "0123456789")); /* never the secret itself */
    CU_ASSERT_STRING_EQUAL(s.pod, "untouched");
}

static void a_secret_that_is_none_or_not_ours_alone_is_refused(void) {
    static char large[SP_KV_SECRET_MAX + 100];
    memset(large, 'x', sizeof large);
    refused("0123456789abcde", 15, 0600, SP_E_INVALID, "has 15 bytes, want 16 to 4096");
    refused("0123456789abcde\n", 16, 0600, SP_E_INVALID, "has 15 bytes");
    refused("", 0, 0600, SP_E_INVALID, "has 0 bytes");
    refused(large, sizeof large, 0600, SP_E_INVALID, "want 16 to 4096");
    refused("0123456789abcdef", 16, 0644, SP_E_DENIED, "mode 0644, want 0600");
    refused("0123456789abcdef", 16, 0620, SP_E_DENIED, "mode 0620");
    refused("0123456789abcdef", 16, 0444, SP_E_DENIED, "mode 0444");
    sp_kv_share s;
    CU_ASSERT_EQUAL(sp_kv_share_load(&s, "/nowhere/at/all", &err), SP_E_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "/nowhere/at/all"));
    CU_ASSERT_EQUAL(sp_kv_share_load(&s, "/tmp", &err), SP_E_INVALID);
}

static void a_proof_is_an_hmac_by_its_own_key(void) {
    sp_kv_share a, b;
    uint8_t got[32], want[32], other[32];
    CU_ASSERT_EQUAL_FATAL(load(&a, "0123456789abcdef", 16, 0600), SP_OK);
    CU_ASSERT_EQUAL_FATAL(load(&b, "0123456789abcdef", 16, 0600), SP_OK);
    const sp_slice text = SP_SLICE("a handle");
    sp_kv_share_mac(&a, text, got);
    sp_hmac_sha256(want, (sp_slice){(const char *)a.handle_key, sizeof a.handle_key}, &text, 1);
    CU_ASSERT_EQUAL(memcmp(got, want, sizeof got), 0);
    sp_kv_share_mac(&b, text, other); /* another pod of the same secret */
    CU_ASSERT_EQUAL(memcmp(got, other, sizeof got), 0);
    sp_kv_share_mac(&a, SP_SLICE("a handlf"), other);
    CU_ASSERT_NOT_EQUAL(memcmp(got, other, sizeof got), 0);
}

static void numerics(char out[SP_NUMERICS_BYTES], bool null_model, sp_dtype kv_dtype, int32_t tp) {
    const sp_numerics_of of = {
        .null_model = null_model, .kv_dtype = kv_dtype, .backend = "cpu", .tp = tp};
    sp_numerics(out, &of);
}

static void numerics_name_contract_mode_type_and_class(void) {
    static const struct {
        sp_numerics_of of;
        const char *want;
    } rows[] = {
        {{.kv_dtype = SP_DTYPE_BF16, .backend = "cpu", .tp = 1}, "1 exact BF16 cpu"},
        {{.kv_dtype = SP_DTYPE_BF16, .backend = "cpu-avx2", .tp = 8}, "1 exact BF16 cpu"},
        {{.kv_dtype = SP_DTYPE_F32, .backend = "ref", .tp = 1}, "1 exact F32 cpu"},
        {{.kv_dtype = SP_DTYPE_BF16, .backend = "cuda", .tp = 4}, "1 exact BF16 cuda"},
        {{.kv_dtype = SP_DTYPE_BF16, .backend = "emu", .tp = 1}, "1 exact BF16 emu"},
        {{.kv_dtype = SP_DTYPE_BF16, .backend = "cuda", .tp = 6}, "1 exact BF16 cuda tp 6"},
        {{.fast = true, .kv_dtype = SP_DTYPE_F16, .backend = "cuda", .tp = 1}, "1 fast F16 cuda"},
        {{.fast = true, .kv_dtype = SP_DTYPE_F16, .backend = "cuda", .tp = 6}, "1 fast F16 cuda"},
        {{.fast = true, .kv_dtype = SP_DTYPE_F16, .backend = "emu", .tp = 2}, "1 fast F16 emu"},
        {{.null_model = true, .kv_dtype = SP_DTYPE_F32, .backend = "cpu", .tp = 2},
         "1 null F32 cpu"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char id[SP_NUMERICS_BYTES];
        memset(id, 'x', sizeof id);
        sp_numerics(id, &rows[i].of);
        CU_ASSERT_STRING_EQUAL(id, rows[i].want);
        for (size_t k = strlen(id); k < sizeof id; k++) CU_ASSERT_EQUAL(id[k], 0);
    }
}

static void numerics_name_a_degree_only_where_it_changes_bits(void) {
    char one[SP_NUMERICS_BYTES], other[SP_NUMERICS_BYTES];
    numerics(one, false, SP_DTYPE_BF16, 1);
    static const int32_t exact[] = {2, 4, 8};
    for (size_t i = 0; i < SP_LEN(exact); i++) {
        numerics(other, false, SP_DTYPE_BF16, exact[i]);
        CU_ASSERT_STRING_EQUAL(one, other);
    }
    static const int32_t inexact[] = {3, 5, 6, 7, 12, 16, 64};
    for (size_t i = 0; i < SP_LEN(inexact); i++) {
        char again[SP_NUMERICS_BYTES];
        numerics(other, false, SP_DTYPE_BF16, inexact[i]);
        CU_ASSERT_STRING_NOT_EQUAL(one, other);
        numerics(again, false, SP_DTYPE_BF16, inexact[i] + 9); /* another such degree */
        CU_ASSERT_STRING_NOT_EQUAL(other, again);
        snprintf(again, sizeof again, "tp %d", (int)inexact[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(other, again)); /* whole, not cut off */
    }
    numerics(other, false, SP_DTYPE_F16, 1);
    CU_ASSERT_STRING_NOT_EQUAL(one, other);
    numerics(other, true, SP_DTYPE_BF16, 1);
    CU_ASSERT_STRING_NOT_EQUAL(one, other);
}

static void identities_differ_by_model_numerics_and_block_size(void) {
    char print[SP_FINGERPRINT_TEXT], id[SP_FINGERPRINT_TEXT], other[SP_FINGERPRINT_TEXT];
    uint8_t a[SP_FINGERPRINT_BYTES], b[SP_FINGERPRINT_BYTES];
    memset(print, 'a', sizeof print - 1);
    print[sizeof print - 1] = 0;
    sp_kv_identity(a, print, "1 exact F32 cpu");
    sp_kv_identity(b, print, "1 exact F32 cpu");
    CU_ASSERT_EQUAL(memcmp(a, b, sizeof a), 0);
    sp_kv_identity(b, print, "1 exact F32 cpu tp 3");
    CU_ASSERT_NOT_EQUAL(memcmp(a, b, sizeof a), 0);
    sp_kv_pod_identity(id, print, "1 exact F32 cpu", 16);
    CU_ASSERT_EQUAL(strspn(id, "0123456789abcdef"), 64);
    sp_kv_pod_identity(other, print, "1 exact F32 cpu", 16);
    CU_ASSERT_STRING_EQUAL(id, other);
    sp_kv_pod_identity(other, print, "1 exact F32 cpu", 32);
    CU_ASSERT_STRING_NOT_EQUAL(id, other);
    sp_kv_pod_identity(other, print, "1 exact BF16 cpu", 16);
    CU_ASSERT_STRING_NOT_EQUAL(id, other);
    print[63] = 'b'; /* the last digit of the model's hash */
    sp_kv_pod_identity(other, print, "1 exact F32 cpu", 16);
    CU_ASSERT_STRING_NOT_EQUAL(id, other);
    sp_kv_identity(b, print, "1 exact F32 cpu");
    CU_ASSERT_NOT_EQUAL(memcmp(a, b, sizeof a), 0);
}

SP_TEST_MAIN("launcher/kv_share", SP_TEST(without_a_file_nothing_is_shared),
             SP_TEST(keys_follow_from_the_secret_and_the_pod_is_a_new_one),
             SP_TEST(every_byte_of_a_secret_counts),
             SP_TEST(a_secret_that_is_none_or_not_ours_alone_is_refused),
             SP_TEST(a_proof_is_an_hmac_by_its_own_key),
             SP_TEST(numerics_name_contract_mode_type_and_class),
             SP_TEST(numerics_name_a_degree_only_where_it_changes_bits),
             SP_TEST(identities_differ_by_model_numerics_and_block_size))
