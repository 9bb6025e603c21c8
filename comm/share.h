/* comm/share.h - hands descriptors (memfd) to other processes of the same pod on the same node.
 *
 * One process listens on an abstract socket whose name is a 128-bit random id; others connect, prove
 * by HMAC that they know the pod's `key` (and the listener proves it to them), are of the same user
 * (SO_PEERCRED), and get the descriptor that they ask for by number. Nothing has a path, so a
 * kill -9 leaves nothing behind.
 *
 * Limits: SP_SHARE_FDS_MAX descriptors; a peer that says nothing is dropped after 2 s; others are
 * served meanwhile.
 * Source: unix(7) abstract names, SCM_RIGHTS.
 * Thread: create, add and close from one thread; serving is a thread of its own; take from any. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_SHARE_FDS_MAX 64
#define SP_SHARE_KEY_BYTES 32
#define SP_SHARE_NAME_BYTES 48 /* text, NUL included */

typedef struct sp_share sp_share;

/** Listens under a fresh name. Owner: caller, sp_share_close().
 * Errors: SP_E_IO, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_share_open(sp_share **out, const uint8_t key[SP_SHARE_KEY_BYTES],
                                     sp_err *err);
void sp_share_close(sp_share *s);
const char *sp_share_name(const sp_share *s); /* to be told to the others */
/** Offers a descriptor (duplicated) as `number`. Errors: SP_E_LIMIT, SP_E_INVALID taken number. */
SP_NODISCARD sp_status sp_share_add(sp_share *s, uint32_t number, int fd, sp_err *err);
uint64_t sp_share_refused(const sp_share *s); /* peers that were not ours */

/** Takes descriptor `number` from the process that listens as `name`.
 * Owner: caller, close(). Errors: SP_E_DENIED it is not of our pod or says we are not;
 * SP_E_NOTFOUND nobody listens, or has no such number; SP_E_TIMEOUT; SP_E_IO. */
SP_NODISCARD sp_status sp_share_take(int *fd, const char *name,
                                     const uint8_t key[SP_SHARE_KEY_BYTES], uint32_t number,
                                     int64_t deadline_ns, sp_err *err);
