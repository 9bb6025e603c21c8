#include "comm/stream.h"

#include "comm/frame.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <openssl/evp.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TAG_BYTES 16
#define NONCE_BYTES 12
#define HEADER_BYTES sizeof(sp_frame_header)
#define FRAME_BYTES_MAX (HEADER_BYTES + SP_FRAME_MAX + TAG_BYTES)
#define BUFFER_BYTES_MIN \
    ((size_t)64 * 1024) /* what one read may take before a buffer has to grow */
#define SILENCE_MS 3000 /* data on its way that nobody acknowledges */
#define KEEPALIVE_S 1
#define KEEPALIVE_PROBES 3

typedef struct buffer {
    unsigned char *ptr;
    size_t size;        /* allocated */
    size_t begin, used; /* bytes [begin, used) are there */
} buffer;

struct sp_stream {
    int fd;
    size_t tag_bytes; /* 0: in the clear */
    /* Writing: the sending thread, or whoever flushes. */
    pthread_mutex_t out_lock;
    EVP_CIPHER_CTX *seal;
    buffer out;         /* the frame that is being written */
    _Atomic int dead;   /* errno of the write that failed; all later ones fail too */
    _Atomic bool rest;  /* `out` is not empty though no send is going on */
    _Atomic bool waits; /* the receiving thread sleeps, and does not look at `rest` */
    /* Reading: the receiving thread. */
    EVP_CIPHER_CTX *unseal;
    buffer in;
    buffer plain; /* the payload lent out */
    _Atomic bool wake;
    sp_wake bell;
};

static sp_status buffer_grow(buffer *b, size_t size, sp_err *err) {
    if (size <= b->size) return SP_OK;
    if (size < BUFFER_BYTES_MIN) size = BUFFER_BYTES_MIN;
    unsigned char *p = sp_try_realloc(b->ptr, size);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "a frame buffer of %zu bytes", size);
    b->ptr = p;
    b->size = size;
    return SP_OK;
}

static bool set_int(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) == 0;
}

static int get_int(int fd, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &len) == 0 ? value : -1;
}

static sp_status set_options(int fd, bool has_keys, sp_err *err) {
    if (get_int(fd, SO_TYPE) != SOCK_STREAM)
        return SP_FAIL(err, SP_E_IO, "descriptor %d is no stream socket", fd);
    int family = get_int(fd, SO_DOMAIN);
    bool is_tcp = family == AF_INET || family == AF_INET6;
    if (is_tcp && !has_keys)
        return SP_FAIL(err, SP_E_INVALID, "a link over TCP needs keys, descriptor %d", fd);
    int flags = fcntl(fd, F_GETFL);
    bool ok = flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
    if (ok && is_tcp)
        ok = set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1) &&
             set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, SILENCE_MS) &&
             set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1) &&
             set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S) &&
             set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S) &&
             set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
    if (!ok) return SP_FAIL(err, SP_E_IO, "options of socket %d: %s", fd, strerror(errno));
    return SP_OK;
}

static EVP_CIPHER_CTX *new_cipher(const uint8_t *key, bool encrypt) {
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    if (!c) return NULL;
    /* The nonce's length is GCM's own, 12 bytes; the nonce itself comes with each frame. */
    if (EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, key, NULL, encrypt) == 1) return c;
    EVP_CIPHER_CTX_free(c);
    return NULL;
}

static void free_stream(sp_stream *s) {
    EVP_CIPHER_CTX_free(s->seal);
    EVP_CIPHER_CTX_free(s->unseal);
    sp_wake_close(&s->bell);
    sp_free(s->out.ptr);
    sp_free(s->in.ptr);
    sp_free(s->plain.ptr);
    pthread_mutex_destroy(&s->out_lock);
    sp_free(s);
}

sp_status sp_stream_open(sp_stream **out, int fd, const sp_link_keys *keys, sp_err *err) {
    if (keys && memcmp(keys->send, keys->receive, sizeof keys->send) == 0)
        return SP_FAIL(err, SP_E_INVALID, "the keys of the two directions are the same");
    SP_TRY(set_options(fd, keys != NULL, err));
    sp_stream *s = sp_alloc(sizeof *s);
    s->fd = fd;
    s->bell.fd = -1;
    pthread_mutex_init(&s->out_lock, NULL);
    sp_status st = sp_wake_open(&s->bell, err);
    if (st == SP_OK) st = buffer_grow(&s->in, BUFFER_BYTES_MIN, err);
    if (st == SP_OK && keys) {
        s->tag_bytes = TAG_BYTES;
        s->seal = new_cipher(keys->send, true);
        s->unseal = new_cipher(keys->receive, false);
        if (!s->seal || !s->unseal) st = SP_FAIL(err, SP_E_NOMEM, "AES-256-GCM cannot be set up");
    }
    if (st != SP_OK) {
        free_stream(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_stream_close(sp_stream *s) {
    if (!s) return;
    /* The last words of a side that ends in good order (BYE) may be a rest still. */
    sp_stream_flush(s);
    close(s->fd);
    free_stream(s);
}

int sp_stream_fd(const sp_stream *s) {
    return s->fd;
}

/* A socket that is closed already has no time left to set. */
void sp_stream_set_patience(sp_stream *s, int ms) {
    int family = get_int(s->fd, SO_DOMAIN);
    if (family == AF_INET || family == AF_INET6) set_int(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, ms);
}

static void make_nonce(unsigned char nonce[NONCE_BYTES], uint64_t sequence) {
    memset(nonce, 0, NONCE_BYTES);
    for (int i = 0; i < 8; i++) nonce[4 + i] = (unsigned char)(sequence >> (8 * i));
}

/* Writing. All of it under out_lock. */

/* Lays the frame out in `out`, as it goes over the wire. */
static sp_status build(sp_stream *s, const sp_frame_header *h, const sp_piece *pieces, int n,
                       sp_err *err) {
    SP_TRY(buffer_grow(&s->out, HEADER_BYTES + h->length + s->tag_bytes, err));
    unsigned char *p = s->out.ptr;
    memcpy(p, h, HEADER_BYTES);
    p += HEADER_BYTES;
    if (!s->seal) {
        p = sp_frame_gather(p, pieces, n);
    } else {
        unsigned char nonce[NONCE_BYTES];
        int len = 0;
        make_nonce(nonce, h->sequence);
        bool ok = EVP_EncryptInit_ex(s->seal, NULL, NULL, NULL, nonce) == 1 &&
                  EVP_EncryptUpdate(s->seal, NULL, &len, s->out.ptr, HEADER_BYTES) == 1;
        for (int i = 0; i < n && ok; i++) {
            if (pieces[i].len == 0) continue;
            ok = EVP_EncryptUpdate(s->seal, p, &len, pieces[i].ptr, (int)pieces[i].len) == 1;
            p += pieces[i].len;
        }
        ok = ok && EVP_EncryptFinal_ex(s->seal, p, &len) == 1 &&
             EVP_CIPHER_CTX_ctrl(s->seal, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, p) == 1;
        if (!ok) return SP_FAIL(err, SP_E_INTERNAL, "encrypting a frame of %u bytes", h->length);
        p += TAG_BYTES;
    }
    s->out.begin = 0;
    s->out.used = (size_t)(p - s->out.ptr);
    return SP_OK;
}

/* Writes what the socket takes now. SP_AGAIN: it is full. */
static sp_status write_some(sp_stream *s, sp_err *err) {
    while (!s->dead && s->out.begin < s->out.used) {
        ssize_t n = send(s->fd, s->out.ptr + s->out.begin, s->out.used - s->out.begin,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            s->out.begin += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return SP_AGAIN;
        else if (errno != EINTR)
            s->dead = errno;
    }
    if (s->dead) return SP_FAIL(err, SP_E_CLOSED, "the stream was closed: %s", strerror(s->dead));
    return SP_OK;
}

static bool wait_fd(struct pollfd *p, nfds_t n, int64_t deadline_ns) {
    int64_t ns = deadline_ns - sp_now_ns();
    if (ns <= 0) return false;
    struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    ppoll(p, n, &ts, NULL); /* whatever it says: the caller looks again, and at the clock */
    return true;
}

static sp_status write_until(sp_stream *s, int64_t deadline_ns, sp_err *err) {
    for (;;) {
        sp_status st = write_some(s, err);
        if (st != SP_AGAIN) return st;
        struct pollfd p = {.fd = s->fd, .events = POLLOUT};
        if (!wait_fd(&p, 1, deadline_ns)) return SP_AGAIN;
    }
}

static sp_status send_locked(sp_stream *s, const sp_frame_header *h, const sp_piece *pieces, int n,
                             int64_t deadline_ns, sp_err *err) {
    sp_status st = write_until(s, deadline_ns, err); /* the rest of an earlier frame */
    if (st == SP_AGAIN) return SP_FAIL(err, SP_E_TIMEOUT, "the socket is full");
    if (st == SP_OK) st = build(s, h, pieces, n, err);
    if (st == SP_OK) st = write_until(s, deadline_ns, err);
    if (st == SP_AGAIN && s->out.begin == 0) {
        /* Never written, so its nonce is still unused. */
        s->out.used = 0;
        return SP_FAIL(err, SP_E_TIMEOUT, "the socket is full");
    }
    return st == SP_AGAIN ? SP_OK : st;
}

sp_status sp_stream_send(sp_stream *s, const sp_frame_header *h, const sp_piece *pieces, int n,
                         int64_t deadline_ns, sp_err *err) {
    pthread_mutex_lock(&s->out_lock);
    sp_status st = send_locked(s, h, pieces, n, deadline_ns, err);
    bool rest = !s->dead && s->out.begin < s->out.used;
    atomic_store(&s->rest, rest);
    pthread_mutex_unlock(&s->out_lock);
    /* A receiver that went to sleep before there was a rest has to wait for room from now on. */
    if (rest && atomic_load(&s->waits)) sp_wake_signal(&s->bell);
    return st;
}

bool sp_stream_has_rest(const sp_stream *s) {
    return atomic_load(&((sp_stream *)s)->rest);
}

void sp_stream_flush(sp_stream *s) {
    /* Taken: somebody writes already, and says so when something is left. */
    if (!sp_stream_has_rest(s) || pthread_mutex_trylock(&s->out_lock) != 0) return;
    if (write_some(s, NULL) != SP_AGAIN) atomic_store(&s->rest, false);
    pthread_mutex_unlock(&s->out_lock);
}

/* Reading. */

/* Reads what is there. SP_AGAIN: nothing is. */
static sp_status read_some(sp_stream *s, sp_err *err) {
    buffer *b = &s->in;
    if (b->begin > 0) { /* what is left is less than a frame, and mostly nothing */
        memmove(b->ptr, b->ptr + b->begin, b->used - b->begin);
        b->used -= b->begin;
        b->begin = 0;
    }
    ssize_t n;
    do n = recv(s->fd, b->ptr + b->used, b->size - b->used, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        b->used += (size_t)n;
        return SP_OK;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return SP_AGAIN;
    /* A write may have taken the socket's error away; then all that is left to read is its end. */
    int why = n < 0 ? errno : s->dead;
    return SP_FAIL(err, SP_E_CLOSED, "the stream was closed%s: %s",
                   b->used ? " in the middle of a frame" : "", why ? strerror(why) : "end");
}

/* The payload of the frame at `at` to `plain`; false: the tag is not that of these bytes. */
static bool unseal(sp_stream *s, const sp_frame_header *h, unsigned char *at) {
    unsigned char nonce[NONCE_BYTES], *payload = at + HEADER_BYTES;
    int len = 0;
    make_nonce(nonce, h->sequence);
    return EVP_DecryptInit_ex(s->unseal, NULL, NULL, NULL, nonce) == 1 &&
           EVP_DecryptUpdate(s->unseal, NULL, &len, at, HEADER_BYTES) == 1 &&
           (h->length == 0 ||
            EVP_DecryptUpdate(s->unseal, s->plain.ptr, &len, payload, (int)h->length) == 1) &&
           EVP_CIPHER_CTX_ctrl(s->unseal, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, payload + h->length) ==
               1 &&
           EVP_DecryptFinal_ex(s->unseal, s->plain.ptr + h->length, &len) == 1;
}

/* Takes one frame out of the bytes read.
 * SP_AGAIN: it is not whole yet, and there is room for it. */
static sp_status take_frame(sp_stream *s, uint64_t sequence, sp_frame_header *h, sp_err *err) {
    size_t there = s->in.used - s->in.begin;
    if (there < HEADER_BYTES) return SP_AGAIN;
    memcpy(h, s->in.ptr + s->in.begin, HEADER_BYTES);
    SP_TRY(sp_frame_check(h, sequence, err));
    size_t want = HEADER_BYTES + h->length + s->tag_bytes;
    if (there < want) {
        SP_TRY(buffer_grow(&s->in, want, err));
        return SP_AGAIN;
    }
    /* One byte more: the cipher's last word is of length 0, but it wants a place. */
    SP_TRY(buffer_grow(&s->plain, (size_t)h->length + 1, err));
    unsigned char *at = s->in.ptr + s->in.begin;
    if (!s->unseal)
        memcpy(s->plain.ptr, at + HEADER_BYTES, h->length);
    else if (!unseal(s, h, at))
        return SP_FAIL(err, SP_E_PROTOCOL, "the tag of frame %llu is wrong",
                       (unsigned long long)sequence);
    s->in.begin += want;
    if (s->in.begin == s->in.used) s->in.begin = s->in.used = 0;
    return SP_OK;
}

/* Sleeps until there may be something to read, room for the rest, or a wake. */
static bool wait_to_read(sp_stream *s, int64_t deadline_ns) {
    struct pollfd p[2] = {{.fd = s->fd, .events = POLLIN}, {.fd = s->bell.fd, .events = POLLIN}};
    atomic_store(&s->waits, true);
    /* Looked at after `waits` was said, as the writers look at `waits` after they changed these. */
    if (sp_stream_has_rest(s)) p[0].events |= POLLOUT;
    bool in_time = atomic_load(&s->wake) || wait_fd(p, 2, deadline_ns);
    atomic_store(&s->waits, false);
    if (p[1].revents) sp_wake_drain(&s->bell);
    return in_time;
}

sp_status sp_stream_recv(sp_stream *s, uint64_t sequence, sp_frame_header *h, const void **payload,
                         int64_t deadline_ns, sp_err *err) {
    for (;;) {
        if (atomic_load(&s->wake) && atomic_exchange(&s->wake, false)) return SP_AGAIN;
        sp_stream_flush(s);
        sp_status st = take_frame(s, sequence, h, err);
        if (st == SP_E_PROTOCOL) shutdown(s->fd, SHUT_RDWR);
        if (st == SP_OK) *payload = s->plain.ptr;
        if (st != SP_AGAIN) return st;
        st = read_some(s, err);
        if (st == SP_AGAIN && !wait_to_read(s, deadline_ns)) return SP_AGAIN;
        if (st < 0) return st;
    }
}

void sp_stream_wake(sp_stream *s) {
    atomic_store(&s->wake, true);
    if (atomic_load(&s->waits)) sp_wake_signal(&s->bell);
}
