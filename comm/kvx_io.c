#include "comm/kvx_io.h"

#include "runtime/base/clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#define LOOK_MS 100
#define ONCE_MS 1000000 /* when nobody asks for a stop */
#define SILENCE_MS 3000

sp_status sp_kvx_wait(const sp_kvx_io *io, short events) {
    for (;;) {
        if (io->stop && atomic_load_explicit(io->stop, memory_order_relaxed)) return SP_E_CANCELED;
        int64_t left = io->deadline_ns - sp_now_ns();
        if (left <= 0) return SP_E_TIMEOUT;
        int64_t ms = (left + SP_NS_PER_MS - 1) / SP_NS_PER_MS;
        const int64_t most = io->stop ? LOOK_MS : ONCE_MS;
        struct pollfd p = {.fd = io->fd, .events = events};
        if (poll(&p, 1, (int)(ms < most ? ms : most)) > 0) return SP_OK;
    }
}

/* Leaves out the first `done` bytes. */
static void advance(struct iovec **iov, int *n, size_t done) {
    while (*n > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        ++*iov;
        --*n;
    }
    if (*n == 0) return;
    (*iov)->iov_base = (char *)(*iov)->iov_base + done;
    (*iov)->iov_len -= done;
}

static sp_status move(const sp_kvx_io *io, struct iovec *iov, int n, bool out) {
    advance(&iov, &n, 0);
    while (n > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t done = out ? sendmsg(io->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT)
                           : recvmsg(io->fd, &m, MSG_DONTWAIT);
        if (done > 0)
            advance(&iov, &n, (size_t)done);
        else if (done == 0)
            return SP_E_CLOSED;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            SP_TRY(sp_kvx_wait(io, out ? POLLOUT : POLLIN));
        else if (errno != EINTR)
            return SP_E_CLOSED;
    }
    return SP_OK;
}

sp_status sp_kvx_send(const sp_kvx_io *io, struct iovec *iov, int n) {
    return move(io, iov, n, true);
}

sp_status sp_kvx_recv(const sp_kvx_io *io, struct iovec *iov, int n) {
    return move(io, iov, n, false);
}

sp_status sp_kvx_send_bytes(const sp_kvx_io *io, const void *p, size_t n) {
    struct iovec v = {(void *)(uintptr_t)p, n};
    return move(io, &v, 1, true);
}

sp_status sp_kvx_recv_bytes(const sp_kvx_io *io, void *p, size_t n) {
    struct iovec v = {p, n};
    return move(io, &v, 1, false);
}

static sp_status say(const sp_kvx_io *io, sp_shake *s) {
    size_t n;
    const uint8_t *p = sp_shake_outgoing(s, &n);
    if (n == 0) return SP_OK;
    SP_TRY(sp_kvx_send_bytes(io, p, n));
    sp_shake_sent(s, n);
    return SP_OK;
}

sp_status sp_kvx_shake_hands(const sp_kvx_io *io, sp_shake *s) {
    uint8_t bytes[256];
    for (;;) {
        SP_TRY(say(io, s));
        if (s->state != SP_SHAKE_TALKING) break;
        size_t n = sp_shake_wants(s);
        if (n > sizeof bytes) n = sizeof bytes;
        SP_TRY(sp_kvx_recv_bytes(io, bytes, n));
        sp_shake_take(s, bytes, n);
    }
    return s->state == SP_SHAKE_DONE ? SP_OK : SP_E_DENIED;
}

static bool set_int(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) == 0;
}

sp_status sp_kvx_set_options(int fd) {
    bool ok =
        set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1) &&
        set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, SILENCE_MS) &&
        set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1) && set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1) &&
        set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1) && set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    return ok ? SP_OK : SP_E_IO;
}
