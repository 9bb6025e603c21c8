#include "frontend/auth.h"

#include "runtime/base/mem.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <strings.h>

#define DIGEST_BYTES 32

struct sp_auth {
    unsigned char (*digests)[DIGEST_BYTES];
    int n_digests;
    char **hosts;
    int n_hosts;
};

static void digest_of(sp_slice key, unsigned char out[DIGEST_BYTES]) {
    unsigned int n = 0;
    int ok = EVP_Digest(key.ptr, key.len, out, &n, EVP_sha256(), NULL);
    SP_ASSERT(ok == 1);
}

sp_status sp_auth_create(sp_auth **out, const char *const *keys, int n_keys,
                         const char *const *hosts, int n_hosts, sp_err *err) {
    if (n_keys > SP_API_KEYS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "want at most %d API keys, got %d", SP_API_KEYS_MAX,
                       n_keys);
    for (int i = 0; i < n_keys; i++)
        if (!keys[i] || !keys[i][0])
            return SP_FAIL(err, SP_E_INVALID, "API key %d is empty", i + 1);
    sp_auth *a = sp_alloc(sizeof *a);
    a->digests = sp_alloc((size_t)n_keys * sizeof *a->digests);
    for (int i = 0; i < n_keys; i++) digest_of(sp_slice_of(keys[i]), a->digests[i]);
    a->n_digests = n_keys;
    a->hosts = sp_alloc((size_t)n_hosts * sizeof *a->hosts);
    for (int i = 0; i < n_hosts; i++) a->hosts[i] = sp_strdup(hosts[i]);
    a->n_hosts = n_hosts;
    *out = a;
    return SP_OK;
}

void sp_auth_destroy(sp_auth *a) {
    if (!a) return;
    for (int i = 0; i < a->n_hosts; i++) sp_free(a->hosts[i]);
    sp_free(a->hosts);
    sp_free(a->digests);
    sp_free(a);
}

static bool is_under(sp_slice path, const char *prefix) {
    size_t n = strlen(prefix);
    return path.len >= n && memcmp(path.ptr, prefix, n) == 0 &&
           (path.len == n || path.ptr[n] == '/');
}

bool sp_auth_guards(sp_slice path) {
    static const char *const prefixes[] = {"/v1", "/v2", "/inference", "/cohere", "/superpod"};
    if (is_under(path, "/openai")) {
        path.ptr += 7;
        path.len -= 7;
    }
    for (size_t i = 0; i < SP_LEN(prefixes); i++)
        if (is_under(path, prefixes[i])) return true;
    return false;
}

/* Every digest is compared, so that the time does not tell which key was near. */
static bool is_known(const sp_auth *a, sp_slice key) {
    unsigned char digest[DIGEST_BYTES];
    digest_of(key, digest);
    int found = 0;
    for (int i = 0; i < a->n_digests; i++)
        found |= CRYPTO_memcmp(digest, a->digests[i], DIGEST_BYTES) == 0;
    return found;
}

bool sp_auth_has_keys(const sp_auth *a) {
    return a->n_digests > 0;
}

bool sp_auth_allows(const sp_auth *a, const sp_http_head *head) {
    if (a->n_digests == 0) return true;
    sp_slice bearer = sp_http_header_get(head, "authorization");
    if (bearer.len > 7 && strncasecmp(bearer.ptr, "Bearer ", 7) == 0) {
        sp_slice key = {bearer.ptr + 7, bearer.len - 7};
        while (key.len && key.ptr[0] == ' ') key.ptr++, key.len--;
        if (is_known(a, key)) return true;
    }
    sp_slice key = sp_http_header_get(head, "x-api-key");
    return key.len > 0 && is_known(a, key);
}

/* "name:port", "[::1]:port", with or without the port -> the name; empty when it is neither. */
static sp_slice host_name(sp_slice host) {
    sp_slice name = host;
    size_t from = 0;
    if (host.len && host.ptr[0] == '[') {
        const char *shut = memchr(host.ptr, ']', host.len);
        if (!shut) return (sp_slice){0};
        from = (size_t)(shut - host.ptr) + 1;
    }
    for (size_t i = from; i < host.len; i++) {
        if (host.ptr[i] != ':') continue;
        for (size_t k = i + 1; k < host.len; k++)
            if (host.ptr[k] < '0' || host.ptr[k] > '9') return (sp_slice){0};
        name.len = i;
        break;
    }
    if (from && name.len != from) return (sp_slice){0};
    if (name.len > 1 && name.ptr[name.len - 1] == '.') name.len--;
    return name;
}

/* 127.a.b.c: digits and dots are enough, since no host name ends in a number. */
static bool is_loopback_v4(sp_slice name) {
    if (name.len < 9 || memcmp(name.ptr, "127.", 4) != 0) return false;
    for (size_t i = 0; i < name.len; i++)
        if (name.ptr[i] != '.' && (name.ptr[i] < '0' || name.ptr[i] > '9')) return false;
    return true;
}

bool sp_auth_allows_host(const sp_auth *a, sp_slice host) {
    static const char suffix[] = ".localhost";
    sp_slice name = host_name(host);
    if (name.len == 0) return false;
    if (is_loopback_v4(name) || sp_slice_is(name, "[::1]") || sp_http_token_eq(name, "localhost"))
        return true;
    size_t n = sizeof suffix - 1;
    if (name.len > n && strncasecmp(name.ptr + name.len - n, suffix, n) == 0) return true;
    for (int i = 0; i < a->n_hosts; i++)
        if (sp_http_token_eq(name, a->hosts[i]) || sp_http_token_eq(host, a->hosts[i])) return true;
    return false;
}
