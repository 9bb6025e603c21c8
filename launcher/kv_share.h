/* launcher/kv_share.h - what pods have in common that lend one another KV blocks: keys out of one
 * secret, and who they are.
 *
 *   --kv-secret-file   HKDF-SHA256, one info a use:   region   what readers of ranks' blocks prove
 *                                                     chain    names of blocks: equal tokens, equal
 *                                                              names, in every pod that has it
 *                                                     handle   the proof under what is lent
 *
 * A block is another pod's when its chain says so, and that begins with the model's fingerprint and
 * the numerics: what changes the bits of a block and nothing else, so no path, no host, no degree
 * that gives the same bits. Without a secret nothing leaves the pod.
 *
 * Limits: a secret of SP_KV_SECRET_MIN to SP_KV_SECRET_MAX bytes, line ends after it not counted.
 * Source: RFC 5869 (HKDF), RFC 2104 (HMAC). Thread: plain data; load from main. */
#pragma once

#include "launcher/fingerprint.h"
#include "runtime/base/dtype.h"
#include "runtime/base/str.h"

#define SP_KV_SECRET_MIN 16
#define SP_KV_SECRET_MAX 4096
#define SP_KV_SHARE_KEY_BYTES 32
#define SP_NUMERICS_BYTES 32 /* as READY has it */
#define SP_KV_POD_BYTES 33   /* text, NUL included */

typedef struct sp_kv_share {
    bool on; /* there is a secret */
    uint8_t region_key[SP_KV_SHARE_KEY_BYTES];
    uint8_t chain_key[SP_KV_SHARE_KEY_BYTES];
    uint8_t handle_key[SP_KV_SHARE_KEY_BYTES];
    char pod[SP_KV_POD_BYTES]; /* fresh in each life */
} sp_kv_share;

/** Reads --kv-secret-file, which must be ours alone as --token-file must (mode 0600 or stricter, or a
 * Kubernetes secret's 0440). `path` NULL or "": off.
 * Errors: SP_E_INVALID too short or long; SP_E_DENIED others may read it; SP_E_IO. */
SP_NODISCARD sp_status sp_kv_share_load(sp_kv_share *out, const char *path, sp_err *err);
void sp_kv_share_wipe(sp_kv_share *s);
/** The proof of a text. */
void sp_kv_share_mac(const sp_kv_share *s, sp_slice text, uint8_t out[32]);

/** What decides the bits of a KV block besides the model. */
typedef struct sp_numerics_of {
    bool null_model, fast;
    sp_dtype kv_dtype;
    const char *backend; /* never "auto" */
    int32_t tp;
} sp_numerics_of;

/** "1 exact BF16 cpu": contract version, mode, KV type, backend class, and behind them a degree that
 * does not give the bits of one rank. Classes: cpu (ref and all of cpu's), cuda, emu (whose tensor core
 * adds in another order than a real one). Mode fast promises no bits, so there a degree is no other
 * numerics: blocks of one rank stand for those of another as its own computed again would. */
void sp_numerics(char out[SP_NUMERICS_BYTES], const sp_numerics_of *of);
/** Model and numerics, of ranks' regions: a block of another must not be taken for ours. */
void sp_kv_identity(uint8_t out[SP_FINGERPRINT_BYTES], const char *fingerprint,
                    const char *numerics);
/** The same with the block size, in hexadecimal: what pods compare before one byte is read. */
void sp_kv_pod_identity(char out[SP_FINGERPRINT_TEXT], const char *fingerprint,
                        const char *numerics, int32_t block_tokens);
