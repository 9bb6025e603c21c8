/* The guest's side of comm/door.h: names to addresses, one after the other, each with its share of
 * the time. */
#include "comm/door.h"

#include "comm/address.h"
#include "comm/handshake.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#define SP_LOG "door"
#include "runtime/base/log.h"

#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct knock {
    const sp_token *token;
    const char *build, *words;
    sp_role role;
    sp_shake shake;
    char story[200]; /* what became of each try, for the last word */
    int n_tries, n_late;
} knock;

/* SP_OK, or SP_E_TIMEOUT. */
static sp_status wait_for(int fd, short events, int64_t end_ns) {
    for (;;) {
        int64_t left = end_ns - sp_now_ns();
        if (left <= 0) return SP_E_TIMEOUT;
        int ms = left > INT_MAX ? INT_MAX : (int)((left + SP_NS_PER_MS - 1) / SP_NS_PER_MS);
        struct pollfd p = {.fd = fd, .events = events};
        if (poll(&p, 1, ms) > 0) return SP_OK;
    }
}

/* A connected, non-blocking socket. */
static sp_status connect_to(int *out, const struct addrinfo *a, int64_t end_ns, sp_err *err) {
    int e = 0;
    socklen_t n = sizeof e;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return SP_FAIL(err, SP_E_UNAVAILABLE, "%s", strerror(errno));
    sp_status st = SP_OK;
    if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        /* Interrupted, the connection goes on being made, as if it were in progress. */
        if (errno == EINPROGRESS || errno == EINTR)
            st = wait_for(fd, POLLOUT, end_ns);
        else
            e = errno;
        if (st == SP_OK && e == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0) e = errno;
    }
    if (st == SP_OK && e == 0) {
        *out = fd;
        return SP_OK;
    }
    close(fd);
    if (st != SP_OK) return SP_FAIL(err, SP_E_TIMEOUT, "no connection in time");
    return SP_FAIL(err, SP_E_UNAVAILABLE, "%s", strerror(e));
}

static sp_status send_all(sp_shake *s, int fd, int64_t end_ns, sp_err *err) {
    size_t n;
    const uint8_t *p = sp_shake_outgoing(s, &n);
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            if (wait_for(fd, POLLOUT, end_ns) != SP_OK)
                return SP_FAIL(err, SP_E_TIMEOUT, "does not listen to us");
        } else if (sent < 0 && errno != EINTR) {
            return SP_FAIL(err, SP_E_UNAVAILABLE, "closed the connection: %s", strerror(errno));
        }
        if (sent > 0) sp_shake_sent(s, (size_t)sent);
        p = sp_shake_outgoing(s, &n);
    }
    return SP_OK;
}

/* Takes some bytes of the head. */
static sp_status hear_some(sp_shake *s, int fd, int64_t end_ns, sp_err *err) {
    uint8_t bytes[256];
    size_t want = sp_shake_wants(s);
    if (want > sizeof bytes) want = sizeof bytes;
    for (;;) {
        ssize_t n = recv(fd, bytes, want, 0);
        if (n > 0) {
            sp_shake_take(s, bytes, (size_t)n);
            return SP_OK;
        }
        if (n == 0)
            return SP_FAIL(err, SP_E_UNAVAILABLE, "closed the connection %s",
                           s->received ? "in the middle of the handshake" : "without an answer");
        if (errno == EAGAIN) {
            if (wait_for(fd, POLLIN, end_ns) != SP_OK)
                return SP_FAIL(err, SP_E_TIMEOUT, "connected, but no answer in time");
        } else if (errno != EINTR) {
            return SP_FAIL(err, SP_E_UNAVAILABLE, "broke the connection: %s", strerror(errno));
        }
    }
}

/* What a refusal means for us: some will be the same at every try. */
static sp_status refused(const sp_shake *s, sp_err *err) {
    char why[200];
    sp_shake_explain(s, why, sizeof why);
    switch (s->reason) {
    case SP_REFUSE_VERSION:
    case SP_REFUSE_BUILD:
    case SP_REFUSE_TOKEN:
    case SP_REFUSE_ROLE:
        return SP_FAIL(err, SP_E_DENIED, "%s (%s): %s", s->by_peer ? "refused us" : "is refused",
                       sp_refusal_name(s->reason), why);
    case SP_REFUSE_GARBAGE:
        return SP_FAIL(err, SP_E_UNAVAILABLE, "answers, but is no head of a pod: %s", why);
    default:
        return SP_FAIL(err, SP_E_UNAVAILABLE, "refused us for now (%s): %s",
                       sp_refusal_name(s->reason), why);
    }
}

/* The whole handshake over a connected socket. */
static sp_status talk(knock *k, int fd, int64_t end_ns, sp_err *err) {
    sp_shake *s = &k->shake;
    uint8_t nonce[SP_SHAKE_NONCE];
    SP_TRY(sp_random_bytes(nonce, sizeof nonce, err));
    SP_TRY(sp_shake_begin_guest(s, k->token, k->build, k->role, k->words, nonce, err));
    while (s->state == SP_SHAKE_TALKING) {
        SP_TRY(send_all(s, fd, end_ns, err));
        SP_TRY(hear_some(s, fd, end_ns, err));
    }
    if (s->state == SP_SHAKE_DONE) return SP_OK;
    /* Our own refusal lets the head count and name us; it matters to nobody when it is lost. */
    size_t n;
    const uint8_t *p = sp_shake_outgoing(s, &n);
    if (n) (void)!send(fd, p, n, MSG_NOSIGNAL);
    return refused(s, err);
}

static sp_status try_one(knock *k, sp_link **out, const struct addrinfo *a, int64_t end_ns,
                         sp_err *err) {
    int fd = -1;
    sp_link_keys keys;
    SP_TRY(connect_to(&fd, a, end_ns, err));
    sp_status st = talk(k, fd, end_ns, err);
    if (st == SP_OK) {
        sp_shake_keys(&k->shake, &keys);
        st = sp_link_open_stream(out, fd, &keys, err);
        sp_wipe(&keys, sizeof keys);
    }
    sp_shake_wipe(&k->shake);
    if (st != SP_OK) close(fd);
    return st;
}

/* Adds one try to what the caller will read when none succeeds. */
static void tell(knock *k, const char *where, const char *what, sp_status st) {
    size_t at = strlen(k->story);
    snprintf(k->story + at, sizeof k->story - at, "%s'%s' %s", at ? "; " : "", where, what);
    k->n_tries++;
    if (st == SP_E_TIMEOUT) k->n_late++;
}

/* May the next address do what this one did not? */
static bool is_next(sp_status st) {
    return st == SP_E_UNAVAILABLE || st == SP_E_TIMEOUT;
}

/* All that one item of the list resolves to. SP_AGAIN: none of them is the head. */
static sp_status try_item(knock *k, sp_link **out, const sp_address *item, int64_t end_ns,
                          sp_err *err) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    int rc = getaddrinfo(item->host, item->port, &want, &found);
    char where[SP_ADDRESS_MAX];
    if (rc != 0) {
        snprintf(where, sizeof where, "%.*s", (int)item->text.len, item->text.ptr);
        tell(k, where, rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc), SP_E_UNAVAILABLE);
        return SP_AGAIN;
    }
    int left = 0;
    for (struct addrinfo *a = found; a; a = a->ai_next) left++;
    sp_status st = SP_AGAIN;
    for (struct addrinfo *a = found; a && st == SP_AGAIN; a = a->ai_next, left--) {
        sp_err why = {0};
        int64_t now = sp_now_ns();
        sp_address_print(where, sizeof where, a->ai_addr);
        st = try_one(k, out, a, now + (end_ns - now) / left, &why);
        if (st == SP_OK) break;
        sp_debug("'%s' %s", where, why.text);
        if (is_next(st)) {
            tell(k, where, why.text, st);
            st = SP_AGAIN;
        } else {
            st = SP_FAIL(err, st, "'%s' %s", where, why.text);
        }
    }
    freeaddrinfo(found);
    return st;
}

sp_status sp_door_knock(sp_link **out, const char *addresses, const sp_token *token,
                        const char *build, sp_role role, const char *words, int64_t deadline_ns,
                        sp_err *err) {
    knock k = {.token = token, .build = build, .words = words, .role = role};
    uint8_t nonce[SP_SHAKE_NONCE] = {0};
    sp_slice list = sp_slice_of(addresses);
    int left = 0;
    /* What is our own mistake is said before anybody is disturbed. */
    SP_TRY(sp_shake_begin_guest(&k.shake, token, build, role, words, nonce, err));
    SP_TRY(sp_address_count(list, &left, err));
    for (; left > 0; left--) {
        sp_address item;
        SP_TRY(sp_address_next(&list, &item, err));
        int64_t now = sp_now_ns();
        if (now >= deadline_ns) break;
        sp_status st = try_item(&k, out, &item, now + (deadline_ns - now) / left, err);
        if (st != SP_AGAIN) return st;
    }
    if (k.n_tries == k.n_late)
        return SP_FAIL(err, SP_E_TIMEOUT, "no answer in time: %s",
                       k.n_tries ? k.story : "the deadline had passed");
    return SP_FAIL(err, SP_E_UNAVAILABLE, "the head is not to be reached: %s", k.story);
}
