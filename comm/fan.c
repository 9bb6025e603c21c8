#include "comm/fan.h"

#include "comm/frame.h"
#include "comm/link_fan.h"
#include "comm/ring.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BELL_EVENT UINT32_MAX /* what epoll says of the bell; sockets say their index */
#define EVENTS_MAX 64
#define STREAMS_EVERY 16 /* frames at least between two looks at the sockets while frames flow */

typedef struct round { /* a frame to several that was not given to all of them yet */
    bool open;
    int first, end;
    uint64_t hash;
    bool given[SP_FAN_LINKS_MAX];
} round;

struct sp_fan {
    int bell, epoll;
    sp_link *links[SP_FAN_LINKS_MAX];
    int n, n_rings, n_streams;
    /* Receiving. */
    int next;     /* whose turn it is */
    int lent;     /* whose frame the last receive gave out, or -1 */
    int unpolled; /* frames since we last looked at the sockets */
    bool gone[SP_FAN_LINKS_MAX];
    bool readable
        [SP_FAN_LINKS_MAX]; /* a stream that epoll named and that did not say SP_AGAIN since */
    sp_spin spin;
    _Atomic uint32_t wake, sleeping;
    /* Sending. */
    round to_all;
    /* Which sockets epoll is to name when they take bytes again: those with a rest, and never
     * others, or an idle fan would spin. Both threads change it. */
    pthread_mutex_t arm_lock;
    bool armed[SP_FAN_LINKS_MAX];
};

static sp_status watch(sp_fan *f, int op, int fd, uint32_t events, uint32_t tag, sp_err *err) {
    struct epoll_event e = {.events = events, .data.u32 = tag};
    if (epoll_ctl(f->epoll, op, fd, &e) != 0)
        return SP_FAIL(err, SP_E_IO, "watching descriptor %d: %s", fd, strerror(errno));
    return SP_OK;
}

sp_status sp_fan_open(sp_fan **out, int bell, sp_err *err) {
    sp_fan *f = sp_alloc(sizeof *f);
    f->lent = -1;
    f->epoll = -1;
    f->bell = bell < 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : fcntl(bell, F_DUPFD_CLOEXEC, 3);
    sp_status st = SP_E_IO;
    if (f->bell < 0) {
        st = SP_FAIL(err, SP_E_IO, "the bell of a fan: %s", strerror(errno));
        goto free_fan;
    }
    f->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (f->epoll < 0) {
        st = SP_FAIL(err, SP_E_IO, "epoll: %s", strerror(errno));
        goto close_bell;
    }
    /* Edge-triggered: each ring is one event, and the count never has to be read. */
    st = watch(f, EPOLL_CTL_ADD, f->bell, EPOLLIN | EPOLLET, BELL_EVENT, err);
    if (st != SP_OK) goto close_epoll;
    pthread_mutex_init(&f->arm_lock, NULL);
    *out = f;
    return SP_OK;

close_epoll:
    close(f->epoll);
close_bell:
    close(f->bell);
free_fan:
    sp_free(f);
    return st;
}

void sp_fan_close(sp_fan *f) {
    if (!f) return;
    for (int i = 0; i < f->n; i++) sp_link_close(f->links[i]);
    close(f->epoll);
    close(f->bell);
    pthread_mutex_destroy(&f->arm_lock);
    sp_free(f);
}

int sp_fan_bell(const sp_fan *f) {
    return f->bell;
}

sp_status sp_fan_add(sp_fan *f, sp_link *link, sp_err *err) {
    if (f->n == SP_FAN_LINKS_MAX)
        return SP_FAIL(err, SP_E_LIMIT, "a fan has at most %d links", SP_FAN_LINKS_MAX);
    int i = f->n;
    if (sp_link_is_stream(link)) {
        SP_TRY(watch(f, EPOLL_CTL_ADD, sp_link_fd(link), EPOLLIN, (uint32_t)i, err));
        /* It may have read ahead while it was used alone: epoll would not know. */
        f->readable[i] = true;
        f->n_streams++;
    } else {
        sp_link_set_own_bell(link, f->bell);
        f->n_rings++;
    }
    f->links[i] = link;
    f->n++;
    return SP_OK;
}

int sp_fan_count(const sp_fan *f) {
    return f->n;
}

sp_link *sp_fan_link(const sp_fan *f, int index) {
    SP_ASSERT(index >= 0 && index < f->n);
    return f->links[index];
}

/* Asks epoll to tell when a socket takes bytes again, exactly while a rest waits for that. */
static void arm(sp_fan *f, int i) {
    pthread_mutex_lock(&f->arm_lock);
    bool want = sp_link_has_rest(f->links[i]);
    uint32_t events = want ? EPOLLIN | EPOLLOUT : EPOLLIN;
    /* A socket that was left out is not watched any more, and has nothing to be told. */
    if (want != f->armed[i])
        (void)!watch(f, EPOLL_CTL_MOD, sp_link_fd(f->links[i]), events, (uint32_t)i, NULL);
    f->armed[i] = want;
    pthread_mutex_unlock(&f->arm_lock);
}

/* Sending. */

static sp_status send_one(sp_fan *f, int i, sp_frame_type type, const sp_piece *pieces, int n,
                          int64_t deadline_ns, sp_err *err) {
    sp_status st = sp_link_send(f->links[i], type, pieces, n, deadline_ns, err);
    if (st != SP_OK) sp_err_context(err, "rank %d", i);
    if (sp_link_has_rest(f->links[i])) arm(f, i);
    return st;
}

static uint64_t hash_frame(sp_frame_type type, const sp_piece *pieces, int n) {
    uint64_t h = UINT64_C(0xcbf29ce484222325) ^ (uint64_t)type; /* FNV-1a */
    for (int i = 0; i < n; i++) {
        const unsigned char *p = pieces[i].ptr;
        for (uint32_t k = 0; k < pieces[i].len; k++) h = (h ^ p[k]) * UINT64_C(0x100000001b3);
    }
    return h;
}

/* One of two passes over those that were not given the frame: the first waits for nobody, so that
 * one full link does not keep the others waiting. Keeps the first error, and one that ends a link
 * before one of patience. */
static sp_status send_pass(sp_fan *f, sp_frame_type type, const sp_piece *pieces, int n,
                           int64_t deadline_ns, sp_err *err) {
    sp_status worst = SP_OK;
    for (int i = f->to_all.first; i < f->to_all.end; i++) {
        if (f->to_all.given[i]) continue;
        sp_err e = {0};
        sp_status st = send_one(f, i, type, pieces, n, deadline_ns, &e);
        f->to_all.given[i] = st != SP_E_TIMEOUT;
        if (st == SP_OK) continue;
        if (worst != SP_OK && (worst != SP_E_TIMEOUT || st == SP_E_TIMEOUT)) continue;
        worst = st;
        if (err) *err = e;
    }
    return worst;
}

sp_status sp_fan_send_range(sp_fan *f, int first, int count, sp_frame_type type,
                            const sp_piece *pieces, int n, int64_t deadline_ns, sp_err *err) {
    SP_ASSERT(first >= 0 && count >= 0 && count <= f->n - first);
    uint32_t length;
    SP_TRY(sp_frame_length(&length, pieces, n, err));
    round *r = &f->to_all;
    if (!r->open || r->first != first || r->end != first + count ||
        r->hash != hash_frame(type, pieces, n))
        memset(r->given + first, 0, sizeof r->given[0] * (size_t)count);
    r->open = false;
    r->first = first;
    r->end = first + count;
    sp_status st = send_pass(f, type, pieces, n, 0, err);
    bool some_wait = false;
    for (int i = first; i < r->end; i++) some_wait |= !r->given[i];
    if (some_wait) {
        sp_err e = {0};
        sp_status late = send_pass(f, type, pieces, n, deadline_ns, &e);
        if (st == SP_E_TIMEOUT) {
            st = late;
            if (err) *err = e;
        }
    }
    if (st == SP_E_TIMEOUT) {
        r->open = true;
        r->hash = hash_frame(type, pieces, n);
    }
    return st;
}

sp_status sp_fan_send(sp_fan *f, int to, sp_frame_type type, const sp_piece *pieces, int n,
                      int64_t deadline_ns, sp_err *err) {
    if (to == SP_FAN_ALL) return sp_fan_send_range(f, 0, f->n, type, pieces, n, deadline_ns, err);
    SP_ASSERT(to >= 0 && to < f->n);
    return send_one(f, to, type, pieces, n, deadline_ns, err);
}

/* Receiving. */

static bool has_news(const sp_fan *f, int i) {
    if (f->gone[i]) return false;
    return sp_link_is_stream(f->links[i]) ? f->readable[i] : sp_link_can_recv(f->links[i]);
}

/* The first in turn that has something to say, or -1. */
static int find(const sp_fan *f) {
    for (int k = 0, i = f->next; k < f->n; k++, i++) {
        if (i >= f->n) i = 0;
        if (has_news(f, i)) return i;
    }
    return -1;
}

static bool woken_or_found(sp_fan *f) {
    return atomic_load(&f->wake) || find(f) >= 0;
}

/* Looks at the sockets and the bell, for at most `ms`. */
static bool poll_events(sp_fan *f, int ms) {
    struct epoll_event e[EVENTS_MAX];
    int n = epoll_wait(f->epoll, e, EVENTS_MAX, ms);
    for (int k = 0; k < n; k++) {
        uint32_t i = e[k].data.u32;
        if (i == BELL_EVENT) continue;
        if (e[k].events & EPOLLOUT) {
            sp_link_flush(f->links[i]);
            arm(f, (int)i);
        }
        if (e[k].events & ~(uint32_t)EPOLLOUT) f->readable[i] = true;
    }
    f->unpolled = 0;
    return n > 0;
}

static bool peers_spun(const sp_fan *f) {
    for (int i = 0; i < f->n; i++)
        if (sp_link_peer_spun(f->links[i])) return true;
    return false;
}

/* Only rings are worth it: a look at a socket is a system call. */
static bool spin(sp_fan *f, int64_t now, int64_t deadline_ns) {
    if (f->n_rings == 0) return false;
    int64_t budget = sp_spin_budget(&f->spin, f->spin.fails && peers_spun(f));
    if (budget == 0) return false;
    bool came = false;
    int64_t begin = now;
    while (!came && now - begin < budget && now < deadline_ns) {
        sp_spin_relax();
        came = woken_or_found(f);
        now = sp_now_ns();
    }
    sp_spin_note(&f->spin, came, now - begin);
    return came;
}

static void say_sleeping(sp_fan *f, bool is) {
    atomic_store(&f->sleeping, is);
    for (int i = 0; i < f->n; i++)
        if (!f->gone[i]) sp_link_say_sleeping(f->links[i], is);
}

static int ms_until(int64_t now, int64_t deadline_ns) {
    int64_t ms = (deadline_ns - now) / SP_NS_PER_MS;
    return ms >= INT32_MAX ? INT32_MAX
                           : (int)ms + 1; /* rounded up: never a busy last millisecond */
}

/* Nothing is there. Waits until something may be; false: the deadline has come and nothing was. */
static bool wait_for_news(sp_fan *f, int64_t deadline_ns) {
    int64_t now = sp_now_ns();
    if (now >= deadline_ns) return f->n_streams > 0 && poll_events(f, 0);
    if (spin(f, now, deadline_ns)) return true;
    say_sleeping(f, true);
    /* The second look of the protocol that ring.c describes; on the wake too. */
    if (!woken_or_found(f)) poll_events(f, ms_until(now, deadline_ns));
    say_sleeping(f, false);
    return true;
}

static void leave_out(sp_fan *f, int i) {
    f->gone[i] = true;
    if (!sp_link_is_stream(f->links[i])) return;
    pthread_mutex_lock(&f->arm_lock);
    (void)!watch(f, EPOLL_CTL_DEL, sp_link_fd(f->links[i]), 0, 0, NULL);
    pthread_mutex_unlock(&f->arm_lock);
}

static sp_status take(sp_fan *f, int i, sp_frame *out, sp_err *err) {
    sp_status st = sp_link_recv(f->links[i], out, 0, err);
    if (st == SP_OK) f->lent = i;
    if (st == SP_AGAIN) f->readable[i] = false;
    if (st < 0) {
        sp_err_context(err, "rank %d", i);
        leave_out(f, i);
    }
    f->next = i + 1 < f->n ? i + 1 : 0;
    return st;
}

sp_status sp_fan_recv(sp_fan *f, sp_frame *out, int *from, int64_t deadline_ns, sp_err *err) {
    /* Or the room of that frame would stay taken until this very rank speaks again. */
    if (f->lent >= 0) sp_link_give_back(f->links[f->lent]);
    f->lent = -1;
    /* Rings that are never empty must not keep the sockets from being looked at. */
    int every = f->n > STREAMS_EVERY ? f->n : STREAMS_EVERY;
    if (f->n_streams > 0 && ++f->unpolled >= every) poll_events(f, 0);
    for (;;) {
        if (atomic_load(&f->wake) && atomic_exchange(&f->wake, 0)) return SP_AGAIN;
        int i = find(f);
        if (i < 0) {
            if (!wait_for_news(f, deadline_ns)) return SP_AGAIN;
            continue;
        }
        sp_status st = take(f, i, out, err);
        if (st == SP_AGAIN) continue;
        *from = i;
        return st;
    }
}

void sp_fan_wake(sp_fan *f) {
    static const uint64_t one = 1;
    atomic_store(&f->wake, 1);
    /* A full counter is a rung bell. */
    if (atomic_load(&f->sleeping) && write(f->bell, &one, sizeof one) < 0) return;
}
