#include "comm/door.h"

#include "comm/address.h"
#include "comm/handshake.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#define SP_LOG "door"
#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define HANDSHAKE_NS (5 * SP_NS_PER_S)
#define LEAVE_NS SP_NS_PER_S /* for a refusal to be read by who is refused */
#define BYTES_MAX 8192u
/* How old one must be before a newcomer may take its place: a guest speaks at once, and a round trip
 * later it has answered. Younger ones are not worth losing: who joins with a thousand others waits
 * in the listening socket's queue meanwhile. */
#define GRACE_SILENT_NS (250 * SP_NS_PER_MS)
#define GRACE_HEARD_NS SP_NS_PER_S
#define PAUSE_NS (100 * SP_NS_PER_MS) /* out of descriptors */
#define ACCEPTS_A_TURN 16
#define EVENTS_A_TURN 32
#define LINES_A_SECOND 10

enum {
    KEY_LISTEN = SP_DOOR_PENDING,
    KEY_TIMER
};

_Static_assert(sizeof((sp_guest){0}.address) == SP_ADDRESS_MAX, "copied whole");

typedef struct visitor {
    int fd; /* -1: a free place */
    int64_t born_ns, end_ns;
    bool leaving;    /* refused; the refusal goes out, what still comes in is thrown away */
    uint32_t events; /* what epoll watches it for */
    size_t thrown;   /* bytes */
    char address[SP_ADDRESS_MAX];
    sp_shake shake;
} visitor;

struct sp_door {
    int listen_fd, epoll_fd, timer_fd;
    sp_token token;
    char build[SP_SHAKE_BUILD];
    int64_t paused_until_ns; /* nobody is let in before; 0: not paused */
    bool is_full;            /* why it is paused; else for want of descriptors */
    int64_t armed_ns;        /* when the timer rings; 0: it does not */
    uint64_t refused[SP_REFUSE_COUNT];
    int64_t window_ns; /* start of the second that lines are counted in */
    uint64_t n_lines, n_unsaid;
    visitor visitors[SP_DOOR_PENDING];
};

typedef enum outcome {
    WAITING,
    GONE,
    PROVEN,
} outcome;

/* ---- lines of the log ------------------------------------------------------------------------- */

/* One line a refusal, but no flood of them: a stranger must not fill our disk. */
static void turn_window(sp_door *d, int64_t now) {
    if (now - d->window_ns < SP_NS_PER_S) return;
    if (d->n_unsaid) sp_warn("refused %llu more within a second", (unsigned long long)d->n_unsaid);
    d->window_ns = now;
    d->n_lines = d->n_unsaid = 0;
}

static void report(sp_door *d, const visitor *v) {
    turn_window(d, sp_now_ns());
    if (d->n_lines >= LINES_A_SECOND) {
        d->n_unsaid++;
        return;
    }
    d->n_lines++;
    char why[200];
    sp_warn("refused '%s': %s: %s", v->address, sp_refusal_name(v->shake.reason),
            sp_shake_explain(&v->shake, why, sizeof why));
}

/* ---- one visitor ------------------------------------------------------------------------------ */

static void watch(sp_door *d, visitor *v, uint32_t events) {
    if (v->events == events) return;
    struct epoll_event e = {.events = events, .data.u32 = (uint32_t)(v - d->visitors)};
    epoll_ctl(d->epoll_fd, v->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, v->fd, &e);
    v->events = events;
}

static void clear_place(visitor *v) {
    v->fd = -1;
    v->events = 0;
    v->leaving = false;
    sp_shake_wipe(&v->shake);
}

static outcome drop(visitor *v) {
    close(v->fd); /* leaves the epoll set by that */
    clear_place(v);
    return GONE;
}

/* It went away, or its connection broke, before it was refused or proven. */
static outcome lose(sp_door *d, visitor *v) {
    bool spoke = v->shake.received > 0;
    if (spoke && !v->leaving) d->refused[SP_REFUSE_GARBAGE]++;
    if (!v->leaving)
        sp_debug("'%s' left after %zu bytes of a handshake", v->address, v->shake.received);
    return drop(v);
}

/* Closing a socket with unread bytes resets the connection, and a reset may overtake the refusal:
 * so it is read, within bounds, until the peer closes. */
static outcome throw_away(sp_door *d, visitor *v) {
    uint8_t bytes[1024];
    while (v->shake.received + v->thrown < BYTES_MAX) {
        ssize_t n = recv(v->fd, bytes, sizeof bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            watch(d, v, EPOLLIN);
            return WAITING;
        }
        if (n <= 0) break;
        v->thrown += (size_t)n;
    }
    return drop(v);
}

/* The handshake is refused; its answer, where there is one, has gone out. */
static outcome send_off(sp_door *d, visitor *v, bool answered) {
    if (!answered || v->shake.by_peer) return drop(v);
    shutdown(v->fd, SHUT_WR);
    v->leaving = true;
    int64_t end = sp_now_ns() + LEAVE_NS;
    if (end < v->end_ns) v->end_ns = end;
    return throw_away(d, v);
}

/* Sends what is to be sent. WAITING: the socket takes no more now; PROVEN: all of it is out. */
static outcome flush(sp_door *d, visitor *v) {
    size_t n;
    const uint8_t *p = sp_shake_outgoing(&v->shake, &n);
    while (n > 0) {
        ssize_t sent = send(v->fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) {
            watch(d, v, EPOLLOUT);
            return WAITING;
        }
        if (sent < 0) return lose(d, v);
        sp_shake_sent(&v->shake, (size_t)sent);
        p = sp_shake_outgoing(&v->shake, &n);
    }
    return PROVEN;
}

/* Takes the next bytes that the handshake can use. PROVEN: some came. */
static outcome hear(sp_door *d, visitor *v) {
    uint8_t bytes[SP_SHAKE_HELLO_MAX];
    size_t want = sp_shake_wants(&v->shake);
    SP_ASSERT(want > 0 && want <= sizeof bytes);
    ssize_t n = recv(v->fd, bytes, want, 0);
    if (n < 0 && errno == EINTR) return PROVEN;
    if (n < 0 && errno == EAGAIN) {
        watch(d, v, EPOLLIN);
        return WAITING;
    }
    if (n <= 0) return lose(d, v);
    sp_shake_take(&v->shake, bytes, (size_t)n);
    return PROVEN;
}

/* Counts and logs a refusal at the moment it is one. */
static void note_refusal(sp_door *d, const visitor *v) {
    d->refused[v->shake.reason]++;
    report(d, v);
}

/* Takes a handshake as far as it goes without waiting. */
static outcome drive(sp_door *d, visitor *v) {
    if (v->leaving) return throw_away(d, v);
    for (;;) {
        outcome o = flush(d, v);
        if (o != PROVEN) return o;
        if (v->shake.state == SP_SHAKE_DONE) return PROVEN;
        if (v->shake.state == SP_SHAKE_REFUSED) return send_off(d, v, true);
        o = hear(d, v);
        if (o != PROVEN) return o;
        if (v->shake.state != SP_SHAKE_REFUSED) continue;
        note_refusal(d, v);
        if (v->shake.reason == SP_REFUSE_GARBAGE) return send_off(d, v, false);
    }
}

/* Refused by the door itself: it says so if that can be said at once, and closes. */
static void throw_out(sp_door *d, visitor *v, sp_refusal reason) {
    if (v->shake.state != SP_SHAKE_REFUSED) {
        sp_shake_refuse(&v->shake, reason);
        note_refusal(d, v);
        size_t n;
        const uint8_t *p = sp_shake_outgoing(&v->shake, &n);
        if (n) (void)!send(v->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    drop(v);
}

/* A proven guest leaves the door with its link. */
static sp_status hand_over(sp_door *d, visitor *v, sp_guest *out, sp_err *err) {
    sp_link_keys keys;
    sp_link *link;
    sp_shake_keys(&v->shake, &keys);
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, v->fd, NULL);
    sp_status st = sp_link_open_stream(&link, v->fd, &keys, err);
    sp_wipe(&keys, sizeof keys);
    if (st != SP_OK) {
        sp_warn("'%s' has proven itself, but there is no link: %s", v->address,
                err ? err->text : sp_status_text(st));
        drop(v);
        return SP_AGAIN;
    }
    sp_slice words = sp_shake_words(&v->shake);
    out->role = sp_shake_role(&v->shake);
    out->link = link;
    memcpy(out->words, words.ptr, words.len);
    out->words[words.len] = 0;
    memcpy(out->address, v->address, sizeof out->address);
    clear_place(v);
    return SP_OK;
}

/* ---- letting in ------------------------------------------------------------------------------- */

static int64_t grace_end(const visitor *v) {
    if (v->leaving) return 0;
    return v->born_ns + (v->shake.greeted ? GRACE_HEARD_NS : GRACE_SILENT_NS);
}

/* Which of two is the smaller loss: who is refused already, who has not said HELLO, the oldest. */
static bool is_rather(const visitor *a, const visitor *b) {
    int a_rank = a->leaving ? 0 : a->shake.greeted ? 2 : 1;
    int b_rank = b->leaving ? 0 : b->shake.greeted ? 2 : 1;
    return a_rank != b_rank ? a_rank < b_rank : a->born_ns < b->born_ns;
}

/* A place for a newcomer: a free one, or one whose holder has had its time. NULL: none yet, and
 * `*when` is the first moment at which there will be. */
static visitor *find_place(sp_door *d, int64_t now, int64_t *when) {
    visitor *best = NULL;
    *when = SP_NEVER;
    for (int i = 0; i < SP_DOOR_PENDING; i++) {
        visitor *v = &d->visitors[i];
        if (v->fd < 0) return v;
        int64_t end = grace_end(v);
        if (end < *when) *when = end;
        if (end <= now && (!best || is_rather(v, best))) best = v;
    }
    return best;
}

static void watch_listener(sp_door *d, bool on) {
    struct epoll_event e = {.events = on ? EPOLLIN : 0, .data.u32 = KEY_LISTEN};
    epoll_ctl(d->epoll_fd, EPOLL_CTL_MOD, d->listen_fd, &e);
}

static void pause_until(sp_door *d, int64_t when_ns) {
    if (!d->paused_until_ns) watch_listener(d, false);
    d->paused_until_ns = when_ns;
}

static void resume(sp_door *d) {
    if (d->paused_until_ns) watch_listener(d, true);
    d->paused_until_ns = 0;
    d->is_full = false;
}

/* Errors of accept() that belong to one connection or to a short lack, not to the socket. */
static bool is_passing(int e) {
    switch (e) {
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case ENONET:
    case EPERM:
    case ETIMEDOUT:
    case EINTR:
        return true;
    default:
        return false;
    }
}

static sp_status seat(sp_door *d, visitor *v, int fd, const struct sockaddr *from, int64_t now,
                      sp_err *err) {
    uint8_t nonce[SP_SHAKE_NONCE];
    sp_status st = sp_random_bytes(nonce, sizeof nonce, err);
    if (st == SP_OK) st = sp_shake_begin_head(&v->shake, &d->token, d->build, nonce, err);
    if (st != SP_OK) {
        close(fd);
        return st;
    }
    v->fd = fd;
    v->born_ns = now;
    v->end_ns = now + HANDSHAKE_NS;
    v->thrown = 0;
    sp_address_print(v->address, sizeof v->address, from);
    watch(d, v, EPOLLIN);
    return SP_OK;
}

/* Lets in one that waits. SP_AGAIN: nobody, or no place. */
static sp_status let_in(sp_door *d, sp_err *err) {
    int64_t now = sp_now_ns(), when;
    visitor *v = find_place(d, now, &when);
    if (!v) {
        pause_until(d, when);
        d->is_full = true;
        return SP_AGAIN;
    }
    struct sockaddr_storage from = {0};
    socklen_t n = sizeof from;
    int fd = accept4(d->listen_fd, (struct sockaddr *)&from, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && errno == EAGAIN) return SP_AGAIN;
    if (fd < 0 && is_passing(errno)) return SP_OK;
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
        sp_debug("nobody can be let in for now: %s", strerror(errno));
        pause_until(d, now + PAUSE_NS);
        return SP_AGAIN;
    }
    if (fd < 0) return SP_FAIL(err, SP_E_IO, "cannot accept connections: %m");
    if (v->fd >= 0) throw_out(d, v, SP_REFUSE_FULL);
    return seat(d, v, fd, (struct sockaddr *)&from, now, err);
}

/* A bounded number, so that those inside are heard between two crowds. */
static sp_status let_some_in(sp_door *d, sp_err *err) {
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        sp_status st = let_in(d, err);
        if (st == SP_AGAIN) break;
        if (st != SP_OK) return st;
    }
    return SP_OK;
}

/* ---- time ------------------------------------------------------------------------------------- */

static void expire(sp_door *d, int64_t now) {
    for (int i = 0; i < SP_DOOR_PENDING; i++) {
        visitor *v = &d->visitors[i];
        if (v->fd >= 0 && now >= v->end_ns) throw_out(d, v, SP_REFUSE_SLOW);
    }
    if (d->paused_until_ns && now >= d->paused_until_ns) resume(d);
    if (d->n_unsaid) turn_window(d, now);
}

/* Lets the timer ring at `next`, so that sp_door_fd() is readable then; 0: never. */
static void arm(sp_door *d, int64_t next) {
    if (next == d->armed_ns) return;
    d->armed_ns = next;
    struct itimerspec when = {0};
    if (next) {
        int64_t left = next - sp_now_ns();
        if (left < 1) left = 1; /* 0 would turn it off */
        when.it_value.tv_sec = left / SP_NS_PER_S;
        when.it_value.tv_nsec = left % SP_NS_PER_S;
    }
    timerfd_settime(d->timer_fd, 0, &when, NULL);
}

/* At the end of a turn: what has to happen next, and when. */
static void settle(sp_door *d) {
    int64_t next = SP_NEVER;
    for (int i = 0; i < SP_DOOR_PENDING; i++) {
        const visitor *v = &d->visitors[i];
        if (v->fd < 0 && d->is_full) resume(d);
        if (v->fd >= 0 && v->end_ns < next) next = v->end_ns;
    }
    if (d->paused_until_ns && d->paused_until_ns < next) next = d->paused_until_ns;
    if (d->n_unsaid && d->window_ns + SP_NS_PER_S < next) next = d->window_ns + SP_NS_PER_S;
    arm(d, next == SP_NEVER ? 0 : next);
}

/* ---- the door --------------------------------------------------------------------------------- */

static sp_status handle(sp_door *d, uint32_t key, sp_guest *out, sp_err *err) {
    if (key == KEY_LISTEN) {
        SP_TRY(let_some_in(d, err));
        return SP_AGAIN;
    }
    if (key == KEY_TIMER) {
        uint64_t rings;
        (void)!read(d->timer_fd, &rings, sizeof rings);
        d->armed_ns = 0;
        return SP_AGAIN;
    }
    visitor *v = &d->visitors[key];
    /* Another event of the same turn may have emptied the place. */
    if (v->fd < 0 || drive(d, v) != PROVEN) return SP_AGAIN;
    return hand_over(d, v, out, err);
}

/* Until `deadline_ns`, as epoll counts. */
static int wait_ms(int64_t deadline_ns) {
    int64_t left = deadline_ns - sp_now_ns();
    if (left <= 0) return 0;
    return left > INT_MAX ? INT_MAX : (int)((left + SP_NS_PER_MS - 1) / SP_NS_PER_MS);
}

static sp_status turn(sp_door *d, sp_guest *out, int64_t deadline_ns, sp_err *err) {
    struct epoll_event events[EVENTS_A_TURN];
    expire(d, sp_now_ns());
    int n = epoll_wait(d->epoll_fd, events, EVENTS_A_TURN, wait_ms(deadline_ns));
    if (n < 0 && errno != EINTR) return SP_FAIL(err, SP_E_IO, "cannot wait for guests: %m");
    for (int i = 0; i < n; i++) {
        sp_status st = handle(d, events[i].data.u32, out, err);
        if (st != SP_AGAIN) return st; /* the rest stays ready for the next turn */
    }
    return SP_AGAIN;
}

sp_status sp_door_next(sp_door *d, sp_guest *out, int64_t deadline_ns, sp_err *err) {
    for (;;) {
        sp_status st = turn(d, out, deadline_ns, err);
        settle(d);
        if (st != SP_AGAIN) return st;
        if (sp_now_ns() >= deadline_ns) return SP_AGAIN;
    }
}

static sp_status watch_own(sp_door *d, int fd, uint32_t key, sp_err *err) {
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = key};
    if (epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0)
        return SP_FAIL(err, SP_E_IO, "cannot watch the listening socket: %m");
    return SP_OK;
}

static sp_status set_up(sp_door *d, sp_err *err) {
    sp_shake probe; /* says what is wrong with the build id before a guest could */
    uint8_t nonce[SP_SHAKE_NONCE] = {0};
    SP_TRY(sp_shake_begin_head(&probe, &d->token, d->build, nonce, err));
    int flags = fcntl(d->listen_fd, F_GETFL);
    if (flags < 0 || fcntl(d->listen_fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return SP_FAIL(err, SP_E_IO, "descriptor %d is no listening socket: %m", d->listen_fd);
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (d->epoll_fd < 0 || d->timer_fd < 0)
        return SP_FAIL(err, SP_E_IO, "no descriptors for the door: %m");
    SP_TRY(watch_own(d, d->listen_fd, KEY_LISTEN, err));
    return watch_own(d, d->timer_fd, KEY_TIMER, err);
}

sp_status sp_door_open(sp_door **out, int listen_fd, const sp_token *token, const char *build,
                       sp_err *err) {
    if (strlen(build) >= SP_SHAKE_BUILD)
        return SP_FAIL(err, SP_E_INVALID, "build id has %zu characters, want at most %d",
                       strlen(build), SP_SHAKE_BUILD - 1);
    sp_door *d = sp_alloc(sizeof *d);
    d->listen_fd = listen_fd;
    d->epoll_fd = d->timer_fd = -1;
    d->token = *token;
    memcpy(d->build, build, strlen(build));
    for (int i = 0; i < SP_DOOR_PENDING; i++) d->visitors[i].fd = -1;
    sp_status st = set_up(d, err);
    if (st != SP_OK) {
        sp_door_close(d);
        return st;
    }
    *out = d;
    return SP_OK;
}

void sp_door_close(sp_door *d) {
    if (!d) return;
    for (int i = 0; i < SP_DOOR_PENDING; i++)
        if (d->visitors[i].fd >= 0) drop(&d->visitors[i]);
    if (d->timer_fd >= 0) close(d->timer_fd);
    if (d->epoll_fd >= 0) close(d->epoll_fd);
    sp_wipe(d, sizeof *d);
    sp_free(d);
}

int sp_door_fd(const sp_door *d) {
    return d->epoll_fd;
}

uint64_t sp_door_refused(const sp_door *d, sp_refusal reason) {
    return (unsigned)reason < SP_REFUSE_COUNT ? d->refused[reason] : 0;
}

sp_status sp_door_listen(int *fd, int *port, const char *host, int port_wanted, sp_err *err) {
    return sp_address_listen(fd, port, host, port_wanted, err);
}
