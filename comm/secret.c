#include "comm/secret.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>

#include <limits.h>

/* OpenSSL takes names and inputs as non-const pointers but only reads them. */
static OSSL_PARAM text_param(const char *key, const char *value) {
    return OSSL_PARAM_construct_utf8_string(key, (char *)(uintptr_t)value, 0);
}

static OSSL_PARAM bytes_param(const char *key, sp_slice value) {
    return OSSL_PARAM_construct_octet_string(key, (void *)(uintptr_t)value.ptr, value.len);
}

void sp_hmac_sha256(uint8_t out[SP_MAC_BYTES], sp_slice key, const sp_slice *pieces, int n) {
    SP_ASSERT(key.len > 0);
    const OSSL_PARAM params[] = {text_param(OSSL_MAC_PARAM_DIGEST, "SHA256"),
                                 OSSL_PARAM_construct_end()};
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *ctx = mac ? EVP_MAC_CTX_new(mac) : NULL;
    SP_ASSERT(ctx);
    int ok = EVP_MAC_init(ctx, (const unsigned char *)key.ptr, key.len, params);
    for (int i = 0; ok == 1 && i < n; i++)
        if (pieces[i].len)
            ok = EVP_MAC_update(ctx, (const unsigned char *)pieces[i].ptr, pieces[i].len);
    size_t len = 0;
    ok = ok == 1 && EVP_MAC_final(ctx, out, &len, SP_MAC_BYTES) == 1;
    SP_ASSERT(ok && len == SP_MAC_BYTES);
    EVP_MAC_CTX_free(ctx); /* wipes its copy of the key */
    EVP_MAC_free(mac);
}

void sp_hkdf_sha256(uint8_t *out, size_t n_out, sp_slice secret, sp_slice salt, sp_slice info) {
    SP_ASSERT(secret.len > 0 && n_out > 0 && n_out <= SP_HKDF_BYTES_MAX);
    OSSL_PARAM params[5];
    int n = 0;
    params[n++] = text_param(OSSL_KDF_PARAM_DIGEST, "SHA256");
    params[n++] = bytes_param(OSSL_KDF_PARAM_KEY, secret);
    if (salt.len) params[n++] = bytes_param(OSSL_KDF_PARAM_SALT, salt);
    if (info.len) params[n++] = bytes_param(OSSL_KDF_PARAM_INFO, info);
    params[n] = OSSL_PARAM_construct_end();
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    SP_ASSERT(ctx);
    int ok = EVP_KDF_derive(ctx, out, n_out, params);
    SP_ASSERT(ok == 1);
    EVP_KDF_CTX_free(ctx); /* wipes its copy of the secret */
    EVP_KDF_free(kdf);
}

bool sp_secret_equal(const void *a, const void *b, size_t n) {
    return CRYPTO_memcmp(a, b, n) == 0;
}

sp_status sp_random_bytes(void *out, size_t n, sp_err *err) {
    SP_ASSERT(n <= INT_MAX);
    if (RAND_bytes(out, (int)n) != 1)
        return SP_FAIL(err, SP_E_IO, "no random bytes: the generator has no seed");
    return SP_OK;
}

void sp_wipe(void *p, size_t n) {
    OPENSSL_cleanse(p, n);
}
