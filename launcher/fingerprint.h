/* launcher/fingerprint.h - which model this is: a hash that differs between any two of them.
 *
 * SHA-256 over config.json, and over every tensor's name, type, shape and first bytes. Reading all
 * weights would take as long as loading them; a fine-tune changes the first bytes of its matrices.
 *
 * Thread: any. */
#pragma once

#include "runtime/format/model_dir.h"

#define SP_FINGERPRINT_BYTES 32
#define SP_FINGERPRINT_TEXT 65

/** `tensors` NULL: config.json alone (a rehearsal).
 * Errors: SP_E_NOTFOUND, SP_E_IO of config.json. */
SP_NODISCARD sp_status sp_fingerprint_of(uint8_t out[SP_FINGERPRINT_BYTES], const char *dir,
                                         const sp_model_dir *tensors, sp_err *err);
/** Of some bytes. */
void sp_fingerprint_bytes(uint8_t out[SP_FINGERPRINT_BYTES], const void *bytes, size_t n);
void sp_fingerprint_text(const uint8_t id[SP_FINGERPRINT_BYTES], char out[SP_FINGERPRINT_TEXT]);
