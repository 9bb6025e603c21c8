/* comm/kvx_io.h - whole messages over a non-blocking socket, and the handshake before them: what both
 * ends of comm/kvx.h over TCP have in common.
 *
 * Limits: SP_KVX_IOV_MAX pieces a call. A wait looks at `stop`, if any, every 100 ms.
 * Thread: one a socket. */
#pragma once

#include "comm/handshake.h"
#include "comm/kvx_part.h"

#include <sys/uio.h>

#define SP_KVX_IOV_MAX 64

typedef struct sp_kvx_io {
    int fd;
    int64_t deadline_ns;
    const _Atomic bool *stop; /* true: SP_E_CANCELED; NULL: nobody asks for it */
} sp_kvx_io;

/** All bytes of `iov`, which is changed on the way.
 * Errors: SP_E_TIMEOUT, SP_E_CLOSED, SP_E_CANCELED. */
SP_NODISCARD sp_status sp_kvx_send(const sp_kvx_io *io, struct iovec *iov, int n);
SP_NODISCARD sp_status sp_kvx_recv(const sp_kvx_io *io, struct iovec *iov, int n);
SP_NODISCARD sp_status sp_kvx_send_bytes(const sp_kvx_io *io, const void *p, size_t n);
SP_NODISCARD sp_status sp_kvx_recv_bytes(const sp_kvx_io *io, void *p, size_t n);

/** Waits for `events`. Errors: as above. */
SP_NODISCARD sp_status sp_kvx_wait(const sp_kvx_io *io, short events);

/** Drives a handshake that has been begun. Errors: SP_E_DENIED it is not of our pod; as above. */
SP_NODISCARD sp_status sp_kvx_shake_hands(const sp_kvx_io *io, sp_shake *s);

/** Options of both sides' sockets: no delay, and the end of a silent cut within seconds.
 * Errors: SP_E_IO. */
SP_NODISCARD sp_status sp_kvx_set_options(int fd);

/** How long so many bytes may take: 1 s, and 10 MB a second. */
static inline int64_t sp_kvx_time_for(size_t bytes) {
    return INT64_C(1000000000) + (int64_t)bytes * 100;
}
