#include "comm/ring.h"

#include "comm/link.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Why sleeping loses no wake-up: whoever waits says so (ASLEEP) and then looks again; whoever has
 * news publishes it and then looks whether somebody waits. All four are sequentially consistent, so
 * at least one of the two sees the other. The futex compares the bell with what it was before the
 * second look. Stand-alone fences would do the same, but the thread sanitizer cannot see them. */

#define MARKED_BY_THIRD 4u
#define FAILS_MAX 4    /* short spins in vain before only probes are left */
#define PROBE_NS 60000 /* about two wake-ups of a sleeping process, see sp_spin_budget() */
#define PROBE_GAP_LOG2_MAX 7

enum {
    AWAKE,
    ASLEEP, /* in the futex */
    SPINNING,
    BY_BELL /* asleep by its eventfd; readers only */
};          /* values of reader_waits and writer_waits */

typedef struct bell {
    _Atomic uint32_t *word, *waits;
    int own; /* the eventfd to sleep by, or -1 */
    sp_spin spin;
} bell;

struct sp_ring {
    sp_ring_control *control;
    size_t bytes, mask;
    int side;
    /* Writing: the private head is the truth, the shared one its copy. */
    sp_ring_way *out;
    unsigned char *out_bytes;
    uint64_t head;
    bell space;
    /* Reading. */
    sp_ring_way *in;
    const unsigned char *in_bytes;
    uint64_t tail;
    bell data;
    int peer_bell; /* what wakes a reader over there that sleeps by its bell, or -1 */
    _Atomic uint32_t wake;
    _Atomic bool peer_spun; /* when we last published */
};

void sp_spin_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t ns) {
    struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    /* Not the private kind: the other side is another process. Early returns are looked at by the
     * caller, who checks everything again. */
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &ts, NULL, 0);
}

static void ring_always(_Atomic uint32_t *word) {
    atomic_fetch_add(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void ring_fd(int fd) {
    static const uint64_t one = 1;
    /* It can only fail when it has been rung 2^64 - 2 times and nobody looked: then it is rung. */
    if (fd >= 0 && write(fd, &one, sizeof one) < 0) return;
}

/* Waits until the bell is rung and silences it. Nobody misses a ring that was for another ring of
 * the same bell: whoever goes to sleep by it looks at all its rings first. */
static void bell_wait(int fd, int64_t ns) {
    struct timespec ts = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t rings;
    if (ppoll(&p, 1, &ts, NULL) == 1 && read(fd, &rings, sizeof rings) < 0) return;
}

/* Wakes a sleeper. The exchange comes before the bell changes: the other order could wipe out the
 * flag that the woken side has just set for its next wait. It also makes one wake-up serve a burst
 * of frames. Answers what the other side was doing. */
static uint32_t ring_if_asleep(_Atomic uint32_t *word, _Atomic uint32_t *waits, int fd) {
    uint32_t was = atomic_load(waits);
    if (was != ASLEEP && was != BY_BELL) return was;
    was = atomic_exchange(waits, AWAKE);
    if (was == ASLEEP) ring_always(word);
    if (was == BY_BELL) ring_fd(fd);
    return was;
}

typedef bool (*ready_fn)(sp_ring *r, size_t n);

/* Spinning pays while the peer answers at once; with fewer cores than processes, or long pauses, it
 * only burns. But two sides that both sleep answer slowly because waking takes 20 to 50 us, so
 * short spins alone would never find out that they could be fast: hence a long probe, at intervals
 * that double up to 128 waits, and a short spin whenever the peer was spinning when we sent: its
 * probe must not be in vain. ("Awake" would be too weak: on one core the peer may only have been
 * preempted, and each message would cost a spin in vain.) */
int64_t sp_spin_budget(sp_spin *s, bool peer_is_fast) {
    int64_t budget = SP_RING_SPIN_MAX_NS;
    if (s->fails >= FAILS_MAX && !peer_is_fast) {
        int gap_log2 = s->fails - FAILS_MAX;
        if (gap_log2 > PROBE_GAP_LOG2_MAX) gap_log2 = PROBE_GAP_LOG2_MAX;
        budget = ++s->unspun < 1 << gap_log2 ? 0 : PROBE_NS;
    }
    if (budget) s->unspun = 0;
    return budget;
}

void sp_spin_note(sp_spin *s, bool came, int64_t took_ns) {
    if (came && took_ns < SP_RING_SPIN_MAX_NS)
        s->fails = 0;
    else if (s->fails < FAILS_MAX + PROBE_GAP_LOG2_MAX)
        s->fails++;
}

static bool spin(sp_ring *r, bell *b, ready_fn ready, size_t n, int64_t deadline_ns) {
    int64_t budget = sp_spin_budget(&b->spin, b == &r->data && sp_ring_peer_spun(r));
    if (budget == 0) return false;
    bool came = false;
    int64_t begin = sp_now_ns(), now = begin;
    atomic_store_explicit(b->waits, SPINNING, memory_order_relaxed);
    while (!came && now - begin < budget && now < deadline_ns) {
        for (int i = 0; i < 8 && !came; i++) {
            sp_spin_relax();
            came = ready(r, n);
        }
        now = sp_now_ns();
    }
    atomic_store_explicit(b->waits, AWAKE, memory_order_relaxed);
    sp_spin_note(&b->spin, came, now - begin);
    return came;
}

static bool wait_for(sp_ring *r, bell *b, ready_fn ready, size_t n, int64_t deadline_ns) {
    if (ready(r, n)) return true;
    int64_t now = sp_now_ns();
    if (now >= deadline_ns) return false;
    if (spin(r, b, ready, n, deadline_ns)) return true;
    for (; now < deadline_ns; now = sp_now_ns()) {
        uint32_t seen = atomic_load(b->word);
        atomic_store(b->waits, b->own < 0 ? ASLEEP : BY_BELL);
        bool is_ready = ready(r, n);
        if (!is_ready && b->own < 0) futex_wait(b->word, seen, deadline_ns - now);
        if (!is_ready && b->own >= 0) bell_wait(b->own, deadline_ns - now);
        atomic_store(b->waits, AWAKE);
        if (is_ready || ready(r, n)) return true;
    }
    return false;
}

/* Readiness is anything that ends the wait, nonsense from the peer too: the caller looks closer. */
static bool can_read(sp_ring *r, size_t n) {
    (void)n;
    return atomic_load(&r->wake) || atomic_load(&r->control->closed) ||
           atomic_load(&r->in->head) != r->tail;
}

static bool can_write(sp_ring *r, size_t n) {
    uint64_t used = r->head - atomic_load(&r->out->tail);
    return used + n <= r->bytes || used > r->bytes || atomic_load(&r->control->closed);
}

sp_status sp_ring_create(int *fd, uint32_t bytes_each, sp_err *err) {
    if (bytes_each < 4 * SP_FRAME_MAX || (bytes_each & (bytes_each - 1)))
        return SP_FAIL(err, SP_E_INVALID, "a ring is a power of two of at least %u bytes, got %u",
                       4 * SP_FRAME_MAX, bytes_each);
    int f;
    SP_TRY(
        sp_memfd_create(&f, "superpod-ring", SP_RING_DATA_AT + 2 * (size_t)bytes_each, true, err));
    sp_status st = SP_E_NOMEM;
    /* A file that somebody could shrink would turn our reads into bus errors. */
    if (fcntl(f, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        st = SP_FAIL(err, SP_E_IO, "sealing a ring: %s", strerror(errno));
        goto close_fd;
    }
    sp_ring_control *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    if (c == MAP_FAILED) {
        st = SP_FAIL(err, SP_E_NOMEM, "mapping a ring: %s", strerror(errno));
        goto close_fd;
    }
    c->magic = SP_RING_MAGIC;
    c->bytes_each = bytes_each;
    munmap(c, sizeof *c);
    *fd = f;
    return SP_OK;

close_fd:
    close(f);
    return st;
}

/* Maps the control block when the file is one of ours, as long as it says, and cannot shrink. */
static sp_status map_control(sp_ring_control **out, int fd, sp_err *err) {
    struct stat sb;
    if (fstat(fd, &sb) != 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no ring: %s", fd, strerror(errno));
    if ((size_t)sb.st_size < SP_RING_DATA_AT)
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no ring: %lld bytes", fd,
                       (long long)sb.st_size);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no ring: it can shrink", fd);
    sp_ring_control *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (c == MAP_FAILED) return SP_FAIL(err, SP_E_NOMEM, "mapping a ring: %s", strerror(errno));
    uint32_t bytes = c->bytes_each;
    if (c->magic != SP_RING_MAGIC || bytes < 4 * SP_FRAME_MAX || (bytes & (bytes - 1)) ||
        (size_t)sb.st_size != SP_RING_DATA_AT + 2 * (size_t)bytes) {
        munmap(c, sizeof *c);
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no ring of this version", fd);
    }
    *out = c;
    return SP_OK;
}

/* Maps a data area twice in a row. The reading side cannot write to it. */
static unsigned char *map_twice(int fd, int way, size_t bytes, int prot) {
    void *at = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    off_t from = (off_t)(SP_RING_DATA_AT + (size_t)way * bytes);
    for (size_t i = 0; i < 2; i++) {
        void *half = (unsigned char *)at + i * bytes;
        if (mmap(half, bytes, prot, MAP_SHARED | MAP_FIXED, fd, from) == MAP_FAILED) {
            munmap(at, 2 * bytes);
            return NULL;
        }
    }
    return at;
}

sp_status sp_ring_open(sp_ring **out, int fd, int side, sp_err *err) {
    if (side != 0 && side != 1)
        return SP_FAIL(err, SP_E_INVALID, "a ring has sides 0 and 1, got %d", side);
    sp_ring_control *c;
    SP_TRY(map_control(&c, fd, err));
    size_t bytes = c->bytes_each;
    sp_status st = SP_E_NOMEM;
    sp_ring *r = sp_alloc(sizeof *r);
    sp_ring_way *to = &c->ways[side], *from = &c->ways[1 - side];
    *r = (sp_ring){
        .control = c, .bytes = bytes, .mask = bytes - 1, .side = side, .out = to, .in = from};
    r->space = (bell){.word = &to->space_bell, .waits = &to->writer_waits, .own = -1};
    r->data = (bell){.word = &from->data_bell, .waits = &from->reader_waits, .own = -1};
    r->peer_bell = -1;
    r->out_bytes = map_twice(fd, side, bytes, PROT_READ | PROT_WRITE);
    r->in_bytes = map_twice(fd, 1 - side, bytes, PROT_READ);
    if (!r->out_bytes || !r->in_bytes) {
        st =
            SP_FAIL(err, SP_E_NOMEM, "mapping a ring of 2 x %zu bytes: %s", bytes, strerror(errno));
        goto unmap;
    }
    if (atomic_exchange(&c->taken[side], 1)) {
        st = SP_FAIL(err, SP_E_PROTOCOL, "side %d of this ring was opened before", side);
        goto unmap;
    }
    *out = r;
    return SP_OK;

unmap:
    if (r->in_bytes) munmap((void *)r->in_bytes, 2 * bytes);
    if (r->out_bytes) munmap(r->out_bytes, 2 * bytes);
    sp_free(r);
    munmap(c, sizeof *c);
    return st;
}

static void mark(sp_ring_control *c, uint32_t bit) {
    atomic_fetch_or(&c->closed, bit);
    for (int i = 0; i < 2; i++) {
        ring_always(&c->ways[i].data_bell);
        ring_always(&c->ways[i].space_bell);
    }
}

void sp_ring_close(sp_ring *r) {
    if (!r) return;
    mark(r->control, 1u << r->side);
    ring_fd(r->peer_bell);
    munmap((void *)r->in_bytes, 2 * r->bytes);
    munmap(r->out_bytes, 2 * r->bytes);
    munmap(r->control, sizeof *r->control);
    sp_free(r);
}

bool sp_ring_is_closed(const sp_ring *r) {
    return atomic_load(&r->control->closed) != 0;
}

void sp_ring_mark_closed(int fd) {
    sp_ring_control *c;
    if (map_control(&c, fd, NULL) != SP_OK) return;
    mark(c, MARKED_BY_THIRD);
    munmap(c, sizeof *c);
}

sp_status sp_ring_reserve(sp_ring *r, size_t n, int64_t deadline_ns, void **at, sp_err *err) {
    SP_ASSERT(n > 0 && n % 8 == 0 && n <= r->bytes);
    bool came = wait_for(r, &r->space, can_write, n, deadline_ns);
    if (atomic_load(&r->control->closed)) return SP_FAIL(err, SP_E_CLOSED, "the ring was closed");
    uint64_t used = r->head - atomic_load(&r->out->tail);
    if (used > r->bytes)
        return SP_FAIL(err, SP_E_PROTOCOL, "the peer has read %llu bytes that were never written",
                       (unsigned long long)(0 - used));
    if (!came || used + n > r->bytes)
        return SP_FAIL(err, SP_E_TIMEOUT, "the ring is full: %zu of %zu bytes, %zu wanted",
                       (size_t)used, r->bytes, n);
    *at = r->out_bytes + (r->head & r->mask);
    return SP_OK;
}

void sp_ring_publish(sp_ring *r, size_t n) {
    r->head += n;
    atomic_store(&r->out->head, r->head);
    uint32_t was = ring_if_asleep(&r->out->data_bell, &r->out->reader_waits, r->peer_bell);
    atomic_store_explicit(&r->peer_spun, was == SPINNING, memory_order_relaxed);
}

sp_status sp_ring_peek(sp_ring *r, int64_t deadline_ns, const void **at, size_t *n, sp_err *err) {
    bool came = wait_for(r, &r->data, can_read, 0, deadline_ns);
    if (!came || atomic_exchange(&r->wake, 0)) return SP_AGAIN;
    /* Closed is read before head: what was published before the closing is still given out. */
    uint32_t closed = atomic_load(&r->control->closed);
    uint64_t ready = atomic_load(&r->in->head) - r->tail;
    if (ready == 0 && closed) return SP_FAIL(err, SP_E_CLOSED, "the ring was closed");
    if (ready > r->bytes || ready % 8 != 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "the peer says %llu bytes are in a ring of %zu",
                       (unsigned long long)ready, r->bytes);
    if (ready == 0) return SP_AGAIN;
    *at = r->in_bytes + (r->tail & r->mask);
    *n = (size_t)ready;
    return SP_OK;
}

void sp_ring_consume(sp_ring *r, size_t n) {
    r->tail += n;
    atomic_store(&r->in->tail, r->tail);
    ring_if_asleep(&r->in->space_bell, &r->in->writer_waits, -1);
}

void sp_ring_wake(sp_ring *r) {
    atomic_store(&r->wake, 1);
    ring_if_asleep(r->data.word, r->data.waits, r->data.own);
}

void sp_ring_set_own_bell(sp_ring *r, int own) {
    if (own >= 0) fcntl(own, F_SETFL, fcntl(own, F_GETFL) | O_NONBLOCK);
    r->data.own = own;
}

void sp_ring_set_peer_bell(sp_ring *r, int peer) {
    r->peer_bell = peer;
}

bool sp_ring_can_peek(const sp_ring *r) {
    return can_read((sp_ring *)r, 0);
}

void sp_ring_say_sleeping(sp_ring *r, bool is) {
    atomic_store(r->data.waits, is ? BY_BELL : AWAKE);
}

bool sp_ring_peer_spun(const sp_ring *r) {
    return atomic_load_explicit(&((sp_ring *)r)->peer_spun, memory_order_relaxed);
}
