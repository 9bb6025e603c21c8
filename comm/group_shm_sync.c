#include "comm/group_shm_sync.h"

#include "runtime/base/clock.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Why sleeping loses no wake-up: a sleeper stores `asleep` and then looks again; whoever has news
 * stores them and then looks at `asleep`. All four are sequentially consistent, so that one of the
 * two sees the other. Of two members that publish last at the same time at least one sees both. */

#define SPIN_NS 100000     /* about the skew between ranks that compute equal shares */
#define SPIN_SHORT_NS 8000 /* after spins in vain */
#define FAILS_MAX 4
#define PROBE_EVERY 16 /* so that short spins find out when long ones would pay again */
#define CROWDED_PAUSES 16
#define CROWDED_YIELDS 2

typedef struct want {
    uint64_t phase;               /* all members have published this one, ... */
    int next;                     /* (those below have) */
    const _Atomic uint64_t *word; /* ... or, if not NULL, this differs from `old` */
    uint64_t old;
    int peer;
} want;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set);
}

void sp_shm_sync_init(sp_shm_sync *s, const sp_group_config *config) {
    s->timeout_ns = config->timeout_ns;
    s->spin_ns = config->crowded || config->n > cores() ? 0 : SPIN_NS;
    s->op = "opening";
}

static void ring(sp_shm_line *line) {
    atomic_fetch_add(&line->bell, 1);
    syscall(SYS_futex, &line->bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void sp_shm_wake(sp_shm_sync *s, int member) {
    sp_shm_line *line = &s->area.lines[member];
    /* The exchange comes before the bell changes: the other order could wipe out the flag that the
     * woken member has just set for its next wait. */
    if (atomic_load(&line->asleep) && atomic_exchange(&line->asleep, 0)) ring(line);
}

static void wake_others(sp_shm_sync *s) {
    for (int m = 0; m < s->area.sizes.n; m++)
        if (m != s->area.me) sp_shm_wake(s, m);
}

/* ---- giving up ---- */

static void tell_gone(sp_shm_sync *s, int blamed) {
    uint32_t nobody = 0;
    atomic_compare_exchange_strong(&s->area.lines[s->area.me].gone, &nobody, (uint32_t)blamed + 1);
    wake_others(s);
}

void sp_shm_fail(sp_shm_sync *s, sp_status code, int blamed, const char *fmt, ...) {
    if (s->fault != SP_OK) return;
    char text[sizeof s->why.text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    s->fault = SP_FAIL(&s->why, code, "%s", text);
    tell_gone(s, blamed);
}

void sp_shm_abort(sp_shm_sync *s) {
    atomic_store(&s->aborted, 1);
    tell_gone(s, s->area.me);
    sp_shm_wake(s, s->area.me);
}

void sp_shm_leave(sp_shm_sync *s) {
    tell_gone(s, s->area.me);
}

static void fail_gone(sp_shm_sync *s, int member, uint32_t gone) {
    int n = s->area.sizes.n, blamed = (int)(gone - 1);
    if (gone == 0 || gone > (uint32_t)n || blamed == member)
        sp_shm_fail(s, SP_E_PEER_LOST, member, "member %d of %d has left the group, seen in %s",
                    member, n, s->op);
    else if (blamed == s->area.me)
        sp_shm_fail(s, SP_E_PEER_LOST, member,
                    "member %d of %d has given this member %d up, seen in %s", member, n, blamed,
                    s->op);
    else
        sp_shm_fail(s, SP_E_PEER_LOST, blamed,
                    "member %d of %d is lost, says member %d, seen in %s", blamed, n, member,
                    s->op);
}

/* ---- waiting ---- */

static bool ready(const sp_shm_sync *s, want *w) {
    if (w->word) return atomic_load(w->word) != w->old;
    for (; w->next < s->area.sizes.n; w->next++)
        if ((int64_t)(atomic_load(&s->area.lines[w->next].published) - w->phase) < 0) return false;
    return true;
}

/* Whether `m` is one that we still wait for. */
static bool owes(const sp_shm_sync *s, const want *w, int m) {
    if (w->word) return m == w->peer;
    return (int64_t)(atomic_load(&s->area.lines[m].published) - w->phase) < 0;
}

/* True: there is a fault now. Looks at `gone` first and at what was published after it, since a
 * member that leaves has published before. */
static bool given_up(sp_shm_sync *s, want *w) {
    if (atomic_load(&s->aborted)) {
        sp_shm_fail(s, SP_E_CANCELED, s->area.me, "member %d was aborted in %s", s->area.me, s->op);
        return true;
    }
    for (int m = 0; m < s->area.sizes.n; m++) {
        uint32_t gone = atomic_load(&s->area.lines[m].gone);
        if (!gone || m == s->area.me || !owes(s, w, m) || ready(s, w)) continue;
        fail_gone(s, m, gone);
        return true;
    }
    return false;
}

static void time_out(sp_shm_sync *s, const want *w) {
    int m = w->word ? w->peer : w->next, n = s->area.sizes.n;
    bool joined = atomic_load(&s->area.lines[m].joined);
    sp_shm_fail(s, SP_E_PEER_LOST, m, "member %d of %d %s within %.3f s, in %s (operation %llu)", m,
                n, joined ? "has not come" : "has not joined",
                (double)s->timeout_ns / (double)SP_NS_PER_S, s->op, (unsigned long long)s->seq);
}

/* Ranks outnumber cores: the one that we wait for may need this core, so let it have it. */
static bool crowded_spin(sp_shm_sync *s, want *w) {
    for (int i = 0; i < CROWDED_PAUSES; i++) {
        relax();
        if (ready(s, w)) return true;
    }
    for (int i = 0; i < CROWDED_YIELDS; i++) {
        sched_yield();
        if (ready(s, w)) return true;
    }
    return false;
}

static int64_t spin_budget(sp_shm_sync *s) {
    if (s->fails < FAILS_MAX) return s->spin_ns;
    if (++s->unspun < PROBE_EVERY) return SPIN_SHORT_NS;
    s->unspun = 0;
    return s->spin_ns;
}

static bool spin(sp_shm_sync *s, want *w, int64_t now, int64_t deadline_ns) {
    if (s->spin_ns == 0) return crowded_spin(s, w);
    int64_t end = now + spin_budget(s);
    if (end > deadline_ns) end = deadline_ns;
    while (sp_now_ns() < end) {
        for (int i = 0; i < 16; i++) {
            relax();
            if (!ready(s, w)) continue;
            s->fails = 0;
            return true;
        }
    }
    s->fails++;
    return false;
}

enum {
    COME, /* ready() */
    GIVEN_UP,
    LATE,
    WOKEN /* look again */
};

/* One sleep. All that ends a wait is looked at after `asleep` is set: see the top of this file. */
static int doze(sp_shm_sync *s, want *w, int64_t deadline_ns) {
    sp_shm_line *line = &s->area.lines[s->area.me];
    uint32_t seen = atomic_load(&line->bell);
    atomic_store(&line->asleep, 1);
    int is = WOKEN;
    int64_t ns = deadline_ns - sp_now_ns();
    if (ready(s, w)) {
        is = COME;
    } else if (given_up(s, w)) {
        is = GIVEN_UP;
    } else if (ns <= 0) {
        is = LATE;
    } else {
        if (ns > SP_SHM_SLICE_NS) ns = SP_SHM_SLICE_NS;
        struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
        /* Not the private kind: members are processes. */
        syscall(SYS_futex, &line->bell, FUTEX_WAIT, seen, &ts, NULL, 0);
    }
    atomic_store(&line->asleep, 0);
    return is;
}

static bool wait_for(sp_shm_sync *s, want *w) {
    if (ready(s, w)) return true;
    int64_t now = sp_now_ns(), deadline_ns = SP_NEVER;
    if (s->timeout_ns > 0 && s->timeout_ns < SP_NEVER - now) deadline_ns = now + s->timeout_ns;
    if (spin(s, w, now, deadline_ns)) return true;
    int is;
    do {
        is = doze(s, w, deadline_ns);
        if (is == WOKEN && ready(s, w)) is = COME;
    } while (is == WOKEN);
    if (is == LATE) time_out(s, w);
    return is == COME;
}

bool sp_shm_wait_word(sp_shm_sync *s, int peer, const _Atomic uint64_t *word, uint64_t old) {
    want w = {.word = word, .old = old, .peer = peer};
    return wait_for(s, &w);
}

/* ---- phases ---- */

bool sp_shm_begin(sp_shm_sync *s, const char *op) {
    s->op = op;
    if (s->fault != SP_OK) return false;
    if (!atomic_load_explicit(&s->aborted, memory_order_relaxed)) return true;
    sp_shm_fail(s, SP_E_CANCELED, s->area.me, "member %d was aborted before %s", s->area.me, op);
    return false;
}

static bool all_have(sp_shm_sync *s, uint64_t phase) {
    want w = {.phase = phase};
    if (!wait_for(s, &w)) return false;
    for (int m = 0; m < s->area.sizes.n; m++) {
        uint64_t published = atomic_load(&s->area.lines[m].published);
        if (published - phase <= 1) continue;
        sp_shm_fail(s, SP_E_INTERNAL, m,
                    "member %d says it is in phase %llu while this one is in %llu", m,
                    (unsigned long long)published, (unsigned long long)phase);
        return false;
    }
    return true;
}

static const char *kind_name(uint64_t what) {
    static const char *const names[] = {"nothing", "all_reduce", "pick_rows", "gather_cols"};
    uint64_t kind = what >> 56;
    return kind < SP_LEN(names) ? names[kind] : "no known operation";
}

/* All have published `phase`: do they mean the same? */
static bool agree(sp_shm_sync *s, uint64_t phase) {
    const sp_shm_desc *mine = &s->area.lines[s->area.me].desc[phase & 1];
    for (int m = 0; m < s->area.sizes.n; m++) {
        sp_shm_desc theirs = s->area.lines[m].desc[phase & 1];
        if (theirs.what == mine->what && theirs.detail == mine->detail && theirs.seq == mine->seq)
            continue;
        uint64_t size = UINT64_MAX >> 8;
        sp_shm_fail(s, SP_E_INTERNAL, m,
                    "members disagree: %s of %llu (operation %llu) here, %s of %llu (operation "
                    "%llu) at member %d%s",
                    kind_name(mine->what), (unsigned long long)(mine->what & size),
                    (unsigned long long)mine->seq, kind_name(theirs.what),
                    (unsigned long long)(theirs.what & size), (unsigned long long)theirs.seq, m,
                    theirs.what == mine->what ? ", with other arguments" : "");
        return false;
    }
    return true;
}

bool sp_shm_meet(sp_shm_sync *s) {
    if (s->met == s->phase) return true;
    if (!all_have(s, s->phase) || !agree(s, s->phase)) return false;
    s->met = s->phase;
    return true;
}

void sp_shm_publish(sp_shm_sync *s, const sp_shm_desc *desc) {
    sp_shm_line *line = &s->area.lines[s->area.me];
    s->phase++;
    line->desc[s->phase & 1] = *desc;
    atomic_store(&line->published, s->phase);
    /* Whoever finds a phase complete wakes those that wait for it. */
    want w = {.phase = s->phase};
    if (ready(s, &w)) wake_others(s);
}
