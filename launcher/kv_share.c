#include "launcher/kv_share.h"

#include "comm/secret.h"
#include "kernels/dev.h"
#include "runtime/model/part.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the secret ---- */

/* As the pod's token: group may read where nobody may write (a Kubernetes secret with an fsGroup). */
static sp_status check_file(int fd, const char *path, sp_err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return SP_FAIL(err, SP_E_IO, "KV secret file '%s': %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return SP_FAIL(err, SP_E_INVALID, "KV secret file '%s' is not a regular file", path);
    unsigned mode = st.st_mode & 0777;
    if ((mode & 077) != 0 && mode != 0440)
        return SP_FAIL(err, SP_E_DENIED, "KV secret file '%s' has mode %04o, want 0600 or stricter",
                       path, mode);
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return SP_FAIL(err, SP_E_DENIED, "KV secret file '%s' belongs to user %u, want %u or root",
                       path, (unsigned)st.st_uid, (unsigned)geteuid());
    return SP_OK;
}

/* At most `n` bytes; a file may come in parts. */
static sp_status read_all(int fd, char *out, size_t n, size_t *len, const char *path, sp_err *err) {
    size_t at = 0;
    while (at < n) {
        ssize_t got = read(fd, out + at, n - at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return SP_FAIL(err, SP_E_IO, "KV secret file '%s': %s", path, strerror(errno));
        if (got == 0) break;
        at += (size_t)got;
    }
    *len = at;
    return SP_OK;
}

/* Editors end a file with a line end, other tools do not: both mean the same secret. */
static sp_status measure(const char *text, size_t *len, const char *path, sp_err *err) {
    size_t n = *len;
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--;
    if (n < SP_KV_SECRET_MIN || n > SP_KV_SECRET_MAX)
        return SP_FAIL(err, SP_E_INVALID, "KV secret file '%s' has %s%zu bytes, want %d to %d",
                       path, n > SP_KV_SECRET_MAX ? "at least " : "", n, SP_KV_SECRET_MIN,
                       SP_KV_SECRET_MAX);
    *len = n;
    return SP_OK;
}

static void derive(uint8_t out[SP_KV_SHARE_KEY_BYTES], sp_slice secret, const char *info) {
    sp_hkdf_sha256(out, SP_KV_SHARE_KEY_BYTES, secret, (sp_slice){NULL, 0}, sp_slice_of(info));
}

static sp_status make_name(char out[SP_KV_POD_BYTES], sp_err *err) {
    uint8_t bytes[(SP_KV_POD_BYTES - 1) / 2];
    SP_TRY(sp_random_bytes(bytes, sizeof bytes, err));
    for (size_t i = 0; i < sizeof bytes; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    return SP_OK;
}

sp_status sp_kv_share_load(sp_kv_share *out, const char *path, sp_err *err) {
    char text[SP_KV_SECRET_MAX + 3];
    size_t len = 0;
    sp_kv_share s = {.on = path && *path};
    if (!s.on) {
        *out = s;
        return SP_OK;
    }
    SP_TRY(make_name(s.pod, err));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return SP_FAIL(err, SP_E_IO, "KV secret file '%s': %s", path, strerror(errno));
    sp_status st = check_file(fd, path, err);
    if (st == SP_OK) st = read_all(fd, text, sizeof text, &len, path, err);
    if (st == SP_OK) st = measure(text, &len, path, err);
    close(fd);
    if (st == SP_OK) {
        const sp_slice secret = {text, len};
        derive(s.region_key, secret, "superpod kv region 1");
        derive(s.chain_key, secret, "superpod kv chain 1");
        derive(s.handle_key, secret, "superpod kv handle 1");
        *out = s;
    }
    sp_wipe(text, sizeof text);
    sp_kv_share_wipe(&s);
    return st;
}

void sp_kv_share_wipe(sp_kv_share *s) {
    sp_wipe(s, sizeof *s);
}

void sp_kv_share_mac(const sp_kv_share *s, sp_slice text, uint8_t out[32]) {
    sp_hmac_sha256(out, (sp_slice){(const char *)s->handle_key, sizeof s->handle_key}, &text, 1);
}

/* ---- who we are ---- */

#define CONTRACT 1 /* another number is other bits of the same mode */

void sp_numerics(char out[SP_NUMERICS_BYTES], const sp_numerics_of *of) {
    char cut[16] = "";
    if (!of->fast && !sp_part_is_exact(of->tp)) snprintf(cut, sizeof cut, " tp %d", of->tp);
    /* READY compares all bytes. */
    memset(out, 0, SP_NUMERICS_BYTES);
    snprintf(out, SP_NUMERICS_BYTES, "%d %s %s %s%s", CONTRACT,
             of->null_model ? "null"
             : of->fast     ? "fast"
                            : "exact",
             sp_dtype_name(of->kv_dtype), sp_dev_is_plugin(of->backend) ? of->backend : "cpu", cut);
}

void sp_kv_identity(uint8_t out[SP_FINGERPRINT_BYTES], const char *fingerprint,
                    const char *numerics) {
    char text[SP_FINGERPRINT_TEXT + SP_NUMERICS_BYTES + 16];
    const int n = snprintf(text, sizeof text, "%.*s | %.*s", SP_FINGERPRINT_TEXT - 1, fingerprint,
                           SP_NUMERICS_BYTES, numerics);
    sp_fingerprint_bytes(out, text, (size_t)n);
}

void sp_kv_pod_identity(char out[SP_FINGERPRINT_TEXT], const char *fingerprint,
                        const char *numerics, int32_t block_tokens) {
    char text[SP_FINGERPRINT_TEXT + SP_NUMERICS_BYTES + 32];
    uint8_t id[SP_FINGERPRINT_BYTES];
    const int n = snprintf(text, sizeof text, "%.*s | %.*s | block %d", SP_FINGERPRINT_TEXT - 1,
                           fingerprint, SP_NUMERICS_BYTES, numerics, (int)block_tokens);
    sp_fingerprint_bytes(id, text, (size_t)n);
    sp_fingerprint_text(id, out);
}
