#include "launcher/fingerprint.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_MAX ((size_t)16 << 20)
#define SAMPLE_BYTES 256

static void add_tensor(EVP_MD_CTX *hash, const sp_tensor *t) {
    char head[512];
    int n = snprintf(head, sizeof head, "%s|%d|%llu", t->name, (int)t->dtype,
                     (unsigned long long)t->bytes);
    EVP_DigestUpdate(hash, head, n > 0 && (size_t)n < sizeof head ? (size_t)n : sizeof head - 1);
    EVP_DigestUpdate(hash, t->shape, (size_t)t->n_dims * sizeof t->shape[0]);
    if (t->bytes)
        EVP_DigestUpdate(hash, t->data, t->bytes < SAMPLE_BYTES ? t->bytes : SAMPLE_BYTES);
}

sp_status sp_fingerprint_of(uint8_t out[SP_FINGERPRINT_BYTES], const char *dir,
                            const sp_model_dir *tensors, sp_err *err) {
    char path[4200];
    char *text;
    size_t len;
    snprintf(path, sizeof path, "%s/config.json", dir);
    SP_TRY(sp_file_read(path, CONFIG_MAX, &text, &len, err));
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    unsigned n = 0;
    bool ok = hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1;
    if (ok) {
        EVP_DigestUpdate(hash, text, len);
        for (int i = 0; tensors && i < sp_model_dir_count(tensors); i++)
            add_tensor(hash, sp_model_dir_at(tensors, i));
        ok = EVP_DigestFinal_ex(hash, out, &n) == 1;
    }
    EVP_MD_CTX_free(hash);
    sp_free(text);
    return ok ? SP_OK : SP_FAIL(err, SP_E_NOMEM, "no SHA-256 to be had");
}

void sp_fingerprint_bytes(uint8_t out[SP_FINGERPRINT_BYTES], const void *bytes, size_t n) {
    SP_ASSERT(EVP_Digest(bytes, n, out, NULL, EVP_sha256(), NULL) == 1);
}

void sp_fingerprint_text(const uint8_t id[SP_FINGERPRINT_BYTES], char out[SP_FINGERPRINT_TEXT]) {
    for (size_t i = 0; i < SP_FINGERPRINT_BYTES; i++) snprintf(out + 2 * i, 3, "%02x", id[i]);
}
