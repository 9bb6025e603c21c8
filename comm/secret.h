/* comm/secret.h - the few pieces of cryptography that the pod's door needs: HMAC, HKDF, a compare
 * that takes equal time, random bytes, wiping.
 *
 * Limits: fixed to SHA-256; an HKDF output is at most 255 * 32 bytes.
 * Sizes here are ours, never the world's: where OpenSSL cannot do the work (no memory, a broken
 * installation) these abort, as sp_alloc() does, so that no caller can forget to look and compare
 * with a buffer that nobody filled. Randomness is the exception: the kernel may refuse it.
 *
 * Source: RFC 2104 (HMAC), RFC 5869 (HKDF); both by OpenSSL 3.
 * Thread: any. */
#pragma once

#include "runtime/base/str.h"

#define SP_MAC_BYTES 32
#define SP_HKDF_BYTES_MAX (255 * SP_MAC_BYTES)

/** HMAC-SHA256 over `n` pieces one after another. The key is not empty. */
void sp_hmac_sha256(uint8_t out[SP_MAC_BYTES], sp_slice key, const sp_slice *pieces, int n);

/** HKDF-SHA256, extract and expand: fills `n_out` bytes. Salt and info may be empty. */
void sp_hkdf_sha256(uint8_t *out, size_t n_out, sp_slice secret, sp_slice salt, sp_slice info);

/** Are `n` bytes equal? Takes the same time whatever they are. */
bool sp_secret_equal(const void *a, const void *b, size_t n);

/** Bytes that nobody can foretell. Errors: SP_E_IO the generator has no seed. */
SP_NODISCARD sp_status sp_random_bytes(void *out, size_t n, sp_err *err);

/** Overwrites a secret; the compiler does not leave it out. */
void sp_wipe(void *p, size_t n);
