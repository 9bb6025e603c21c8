#include "comm/share.h"

#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* Packets (SOCK_SEQPACKET keeps them whole), each of one fixed size:
 *   taker    HELLO      magic, number, nonce
 *   listener CHALLENGE  nonce, HMAC(key, "listener" | name | HELLO | nonce)
 *   taker    PROOF      HMAC(key, "taker" | name | HELLO | CHALLENGE)
 *   listener ANSWER     status, HMAC(key, "answer" | PROOF | status); the descriptor when SP_OK
 * Both nonces are in both proofs, so that none can be used twice; the words differ, so that none can
 * be sent back. A wrong proof gets an answer without a valid HMAC: it says nothing but "no". */

#define MAGIC UINT64_C(0x3145524148535053) /* "SPSHARE1" */
#define NONCE_BYTES 32
#define CONNS_MAX 32
#define SILENT_NS (2 * SP_NS_PER_S)
#define ACCEPT_REST_NS (100 * SP_NS_PER_MS) /* after accept() failed for want of descriptors */
#define RANDOM_ID_BYTES 16

typedef struct hello {
    uint64_t magic;
    uint32_t number, zero;
    uint8_t nonce[NONCE_BYTES];
} hello;

typedef struct challenge {
    uint8_t nonce[NONCE_BYTES];
    uint8_t mac[SP_MAC_BYTES];
} challenge;

typedef struct answer {
    int32_t status;
    uint8_t mac[SP_MAC_BYTES];
} answer;

typedef struct conn {
    int fd;
    int64_t deadline_ns;
    bool challenged;
    uint32_t number;
    uint8_t want[SP_MAC_BYTES]; /* the only right PROOF */
} conn;

struct sp_share {
    int fd;
    sp_wake wake;
    sp_thread thread;
    _Atomic bool closing;
    _Atomic uint64_t refused;
    char name[SP_SHARE_NAME_BYTES];
    uint8_t key[SP_SHARE_KEY_BYTES];

    pthread_mutex_t lock; /* of the table */
    int n_fds;
    uint32_t numbers[SP_SHARE_FDS_MAX];
    int fds[SP_SHARE_FDS_MAX];

    /* of the serving thread */
    int n_conns;
    conn conns[CONNS_MAX];
    int64_t rest_until_ns;
};

/* ---- the three proofs ---- */

static sp_slice bytes_of(const void *p, size_t n) {
    return (sp_slice){p, n};
}

static void listener_mac(uint8_t out[SP_MAC_BYTES], const uint8_t *key, const char *name,
                         const hello *h, const uint8_t nonce[NONCE_BYTES]) {
    sp_slice pieces[] = {SP_SLICE("superpod share listener"), sp_slice_of(name),
                         bytes_of(h, sizeof *h), bytes_of(nonce, NONCE_BYTES)};
    sp_hmac_sha256(out, bytes_of(key, SP_SHARE_KEY_BYTES), pieces, (int)SP_LEN(pieces));
}

static void taker_mac(uint8_t out[SP_MAC_BYTES], const uint8_t *key, const char *name,
                      const hello *h, const challenge *c) {
    sp_slice pieces[] = {SP_SLICE("superpod share taker"), sp_slice_of(name),
                         bytes_of(h, sizeof *h), bytes_of(c, sizeof *c)};
    sp_hmac_sha256(out, bytes_of(key, SP_SHARE_KEY_BYTES), pieces, (int)SP_LEN(pieces));
}

static void answer_mac(uint8_t out[SP_MAC_BYTES], const uint8_t *key,
                       const uint8_t proof[SP_MAC_BYTES], int32_t status) {
    sp_slice pieces[] = {SP_SLICE("superpod share answer"), bytes_of(proof, SP_MAC_BYTES),
                         bytes_of(&status, sizeof status)};
    sp_hmac_sha256(out, bytes_of(key, SP_SHARE_KEY_BYTES), pieces, (int)SP_LEN(pieces));
}

/* ---- sockets ---- */

/* An abstract address: its first byte is 0 and its length counts. */
static socklen_t address_of(struct sockaddr_un *a, const char *name) {
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t n = strlen(name);
    memcpy(a->sun_path + 1, name, n);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

static bool is_our_user(int fd) {
    struct ucred peer;
    socklen_t n = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0 && n == sizeof peer &&
           peer.uid == geteuid();
}

static bool send_answer(int to, const answer *a, int fd) {
    struct iovec io = {.iov_base = (void *)(uintptr_t)a, .iov_len = sizeof *a};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    return sendmsg(to, &m, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof *a;
}

/* ---- the serving thread ---- */

static void refuse(sp_share *s) {
    atomic_fetch_add(&s->refused, 1);
}

static bool take_hello(sp_share *s, conn *c, const void *packet, size_t n) {
    hello h;
    challenge ch;
    if (n != sizeof h) return false;
    memcpy(&h, packet, sizeof h);
    if (h.magic != MAGIC || h.zero != 0) return false;
    if (sp_random_bytes(ch.nonce, sizeof ch.nonce, NULL) != SP_OK) return false;
    listener_mac(ch.mac, s->key, s->name, &h, ch.nonce);
    taker_mac(c->want, s->key, s->name, &h, &ch);
    c->number = h.number;
    c->challenged = true;
    return send(c->fd, &ch, sizeof ch, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof ch;
}

/* Answers under the lock, so that the descriptor cannot be closed meanwhile; nothing here waits. */
static void give(sp_share *s, conn *c, const uint8_t proof[SP_MAC_BYTES]) {
    answer a = {.status = SP_E_NOTFOUND};
    int fd = -1;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_fds && fd < 0; i++)
        if (s->numbers[i] == c->number) fd = s->fds[i];
    if (fd >= 0) a.status = SP_OK;
    answer_mac(a.mac, s->key, proof, a.status);
    (void)send_answer(c->fd, &a, fd); /* a taker that is gone needs no answer */
    pthread_mutex_unlock(&s->lock);
}

/* False: the connection has ended, counted as refused if it has proved nothing. */
static bool hear(sp_share *s, conn *c) {
    uint8_t packet[128];
    ssize_t n = recv(c->fd, packet, sizeof packet, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n > 0 && !c->challenged && take_hello(s, c, packet, (size_t)n)) return true;
    if (c->challenged && n == SP_MAC_BYTES && sp_secret_equal(packet, c->want, SP_MAC_BYTES)) {
        give(s, c, packet);
        return false;
    }
    refuse(s);
    if (n > 0) {
        answer no = {.status = SP_E_DENIED};
        (void)send_answer(c->fd, &no, -1);
    }
    return false;
}

static void greet(sp_share *s, int64_t now) {
    int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* Without a rest a full descriptor table would turn poll into a busy loop. */
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            s->rest_until_ns = now + ACCEPT_REST_NS;
        return;
    }
    if (!is_our_user(fd)) {
        refuse(s);
        close(fd);
        return;
    }
    s->conns[s->n_conns++] = (conn){.fd = fd, .deadline_ns = now + SILENT_NS};
}

static void hang_up(sp_share *s, int i) {
    close(s->conns[i].fd);
    sp_wipe(s->conns[i].want, sizeof s->conns[i].want);
    s->conns[i] = s->conns[--s->n_conns];
}

static int until_ms(int64_t deadline_ns) {
    if (deadline_ns == SP_NEVER) return -1;
    int64_t now = sp_now_ns();
    if (now >= deadline_ns) return 0;
    int64_t ms = (deadline_ns - now - 1) / SP_NS_PER_MS + 1;
    return ms > 1000000 ? 1000000 : (int)ms;
}

/* Fills `p` and answers when something must be looked at even if no descriptor becomes ready. */
static int64_t list_descriptors(const sp_share *s, struct pollfd *p, int64_t now) {
    int64_t next = SP_NEVER;
    bool rests = now < s->rest_until_ns;
    p[0] = (struct pollfd){.fd = s->wake.fd, .events = POLLIN};
    p[1] = (struct pollfd){.fd = rests || s->n_conns == CONNS_MAX ? -1 : s->fd, .events = POLLIN};
    if (rests) next = s->rest_until_ns;
    for (int i = 0; i < s->n_conns; i++) {
        p[2 + i] = (struct pollfd){.fd = s->conns[i].fd, .events = POLLIN};
        if (s->conns[i].deadline_ns < next) next = s->conns[i].deadline_ns;
    }
    return next;
}

static void *serve(void *arg) {
    sp_share *s = arg;
    while (!atomic_load(&s->closing)) {
        struct pollfd p[2 + CONNS_MAX];
        int64_t next = list_descriptors(s, p, sp_now_ns());
        if (poll(p, 2 + (nfds_t)s->n_conns, until_ms(next)) < 0) continue; /* a signal */
        int64_t now = sp_now_ns();
        /* From the last: hanging up moves the last one, already looked at, to the free place. */
        for (int i = s->n_conns - 1; i >= 0; i--) {
            if (p[2 + i].revents) {
                if (!hear(s, &s->conns[i])) hang_up(s, i);
            } else if (now >= s->conns[i].deadline_ns) {
                refuse(s);
                hang_up(s, i);
            }
        }
        if (p[1].revents) greet(s, now);
    }
    while (s->n_conns) hang_up(s, 0);
    return NULL;
}

/* ---- the listener ---- */

static sp_status listen_as(sp_share *s, sp_err *err) {
    uint8_t id[RANDOM_ID_BYTES];
    SP_TRY(sp_random_bytes(id, sizeof id, err));
    int at = snprintf(s->name, sizeof s->name, "superpod-");
    for (size_t i = 0; i < sizeof id; i++, at += 2)
        snprintf(s->name + at, sizeof s->name - (size_t)at, "%02x", id[i]);
    s->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0) return SP_FAIL(err, SP_E_IO, "sharing socket: %s", strerror(errno));
    struct sockaddr_un a;
    socklen_t n = address_of(&a, s->name);
    if (bind(s->fd, (struct sockaddr *)&a, n) != 0 || listen(s->fd, SOMAXCONN) != 0)
        return SP_FAIL(err, SP_E_IO, "listening as '%s': %s", s->name, strerror(errno));
    return SP_OK;
}

sp_status sp_share_open(sp_share **out, const uint8_t key[SP_SHARE_KEY_BYTES], sp_err *err) {
    sp_share *s = sp_try_alloc(sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory to share descriptors");
    s->fd = s->wake.fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    memcpy(s->key, key, sizeof s->key);
    sp_status st = listen_as(s, err);
    if (st == SP_OK) st = sp_wake_open(&s->wake, err);
    if (st == SP_OK) st = sp_thread_start(&s->thread, "share", serve, s, err);
    if (st != SP_OK) {
        sp_share_close(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_share_close(sp_share *s) {
    if (!s) return;
    atomic_store(&s->closing, true);
    if (s->thread.started) sp_wake_signal(&s->wake);
    sp_thread_join(&s->thread);
    for (int i = 0; i < s->n_fds; i++) close(s->fds[i]);
    if (s->wake.fd >= 0) sp_wake_close(&s->wake);
    if (s->fd >= 0) close(s->fd);
    pthread_mutex_destroy(&s->lock);
    sp_wipe(s->key, sizeof s->key);
    sp_free(s);
}

const char *sp_share_name(const sp_share *s) {
    return s->name;
}

uint64_t sp_share_refused(const sp_share *s) {
    return atomic_load(&s->refused);
}

sp_status sp_share_add(sp_share *s, uint32_t number, int fd, sp_err *err) {
    /* Only this thread adds, so reading needs no lock. */
    for (int i = 0; i < s->n_fds; i++)
        if (s->numbers[i] == number)
            return SP_FAIL(err, SP_E_INVALID, "number %u is shared already", number);
    if (s->n_fds == SP_SHARE_FDS_MAX)
        return SP_FAIL(err, SP_E_LIMIT, "at most %d descriptors are shared", SP_SHARE_FDS_MAX);
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return SP_FAIL(err, errno == EBADF ? SP_E_INVALID : SP_E_LIMIT, "sharing descriptor %d: %s",
                       fd, strerror(errno));
    pthread_mutex_lock(&s->lock);
    s->numbers[s->n_fds] = number;
    s->fds[s->n_fds++] = copy;
    pthread_mutex_unlock(&s->lock);
    return SP_OK;
}

/* ---- the taker ---- */

static sp_status reach(int *fd, const char *name, int64_t deadline_ns, sp_err *err) {
    if (strlen(name) == 0 || strlen(name) >= SP_SHARE_NAME_BYTES)
        return SP_FAIL(err, SP_E_NOTFOUND, "nobody can share under a name of %zu bytes",
                       strlen(name));
    int64_t now = sp_now_ns();
    if (now >= deadline_ns) return SP_FAIL(err, SP_E_TIMEOUT, "no time to reach '%s'", name);
    int f = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (f < 0) return SP_FAIL(err, SP_E_IO, "socket: %s", strerror(errno));
    sp_status st;
    /* A full queue of the listener makes connect() wait: no longer than this. */
    int64_t left = deadline_ns - now;
    struct timeval tv = {.tv_sec = left / SP_NS_PER_S,
                         .tv_usec = left % SP_NS_PER_S / SP_NS_PER_US + 1};
    if (tv.tv_usec >= 1000000) tv.tv_usec = 999999;
    struct sockaddr_un a;
    socklen_t n = address_of(&a, name);
    if ((deadline_ns != SP_NEVER && setsockopt(f, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) != 0) ||
        connect(f, (struct sockaddr *)&a, n) != 0) {
        st = errno == ECONNREFUSED ? SP_E_NOTFOUND : errno == EAGAIN ? SP_E_TIMEOUT : SP_E_IO;
        st = SP_FAIL(err, st, "reaching '%s': %s", name, strerror(errno));
        goto close_fd;
    }
    if (!is_our_user(f)) {
        st = SP_FAIL(err, SP_E_DENIED, "'%s' is of another user", name);
        goto close_fd;
    }
    *fd = f;
    return SP_OK;

close_fd:
    close(f);
    return st;
}

/* The next packet, of `bytes`, and the descriptor with it in `*got` (unless `got` is NULL), -1 for
 * none. */
static sp_status next_packet(int fd, void *packet, size_t bytes, int *got, int64_t deadline_ns,
                             sp_err *err) {
    int ready;
    do {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ready = poll(&p, 1, until_ms(deadline_ns));
    } while (ready <= 0 && (ready == 0 || errno == EINTR) && sp_now_ns() < deadline_ns);
    if (ready == 0) return SP_FAIL(err, SP_E_TIMEOUT, "the sharing process does not answer");
    struct iovec io = {.iov_base = packet, .iov_len = bytes};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (got) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_LEN(sizeof(int)); /* room for one: the kernel closes others */
    }
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return SP_FAIL(err, SP_E_IO, "hearing the sharing process: %s", strerror(errno));
    struct cmsghdr *c = got ? CMSG_FIRSTHDR(&m) : NULL;
    int with = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof with))
        memcpy(&with, CMSG_DATA(c), sizeof with);
    if (n == 0) return SP_FAIL(err, SP_E_IO, "the sharing process hung up");
    if ((size_t)n != bytes || (m.msg_flags & (MSG_TRUNC | (got ? MSG_CTRUNC : 0)))) {
        if (with >= 0) close(with);
        return SP_FAIL(err, SP_E_DENIED, "the sharing process says %zd bytes, want %zu", n, bytes);
    }
    if (got) *got = with;
    return SP_OK;
}

static sp_status say(int fd, const void *packet, size_t bytes, sp_err *err) {
    if (send(fd, packet, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)bytes) return SP_OK;
    return SP_FAIL(err, SP_E_IO, "telling the sharing process: %s", strerror(errno));
}

static sp_status ask(int sock, int *fd, const char *name, const uint8_t *key, uint32_t number,
                     int64_t deadline_ns, sp_err *err) {
    hello h = {.magic = MAGIC, .number = number};
    challenge c;
    answer a;
    uint8_t want[SP_MAC_BYTES], proof[SP_MAC_BYTES];
    int got;
    SP_TRY(sp_random_bytes(h.nonce, sizeof h.nonce, err));
    SP_TRY(say(sock, &h, sizeof h, err));
    SP_TRY(next_packet(sock, &c, sizeof c, NULL, deadline_ns, err));
    listener_mac(want, key, name, &h, c.nonce);
    if (!sp_secret_equal(c.mac, want, sizeof want))
        return SP_FAIL(err, SP_E_DENIED, "'%s' is not of our pod", name);
    taker_mac(proof, key, name, &h, &c);
    SP_TRY(say(sock, proof, sizeof proof, err));
    SP_TRY(next_packet(sock, &a, sizeof a, &got, deadline_ns, err));
    answer_mac(want, key, proof, a.status);
    if (sp_secret_equal(a.mac, want, sizeof want) && a.status == SP_OK && got >= 0) {
        *fd = got;
        return SP_OK;
    }
    if (got >= 0) close(got);
    if (sp_secret_equal(a.mac, want, sizeof want) && a.status == SP_E_NOTFOUND)
        return SP_FAIL(err, SP_E_NOTFOUND, "'%s' shares no number %u", name, number);
    return SP_FAIL(err, SP_E_DENIED, "'%s' says we are not of its pod", name);
}

sp_status sp_share_take(int *fd, const char *name, const uint8_t key[SP_SHARE_KEY_BYTES],
                        uint32_t number, int64_t deadline_ns, sp_err *err) {
    int sock;
    SP_TRY(reach(&sock, name, deadline_ns, err));
    sp_status st = ask(sock, fd, name, key, number, deadline_ns, err);
    close(sock);
    return st;
}
