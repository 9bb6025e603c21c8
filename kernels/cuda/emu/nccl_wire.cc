// The shared memory of an emulated NCCL communicator: joining, rings, who is alive.
#include "kernels/cuda/emu/nccl_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x6c63636e2d756d65)
#define LOCKS_AT ((off_t)1 << 40) /* far behind the bytes: locks only */
#define MADE_MAX 256

struct nccl_ring {
    alignas(64) uint64_t written;
    alignas(64) uint64_t read;
    alignas(64) unsigned char data[NCCL_RING];
};

struct nccl_shared {
    uint64_t magic, cookie;
    int32_t n;       // 0: nobody has joined
    int32_t claimed; // somebody writes the error
    int32_t error;   // a cu_nccl_result; its words are complete when it is set
    char words[NCCL_WORDS];
    int32_t presence[NCCL_MEMBERS_MAX];
};

// What the 128 bytes of an id hold.
struct nccl_id {
    uint64_t magic, cookie;
    int32_t pid, fd;
};

#define HEAD_BYTES ((sizeof(struct nccl_shared) + 4095) / 4096 * 4096)

// Descriptors of ids made by this process and not yet joined by all.
static struct {
    pthread_mutex_t lock;
    uint64_t cookie[MADE_MAX];
    int fd[MADE_MAX];
    int n;
} made = {PTHREAD_MUTEX_INITIALIZER, {}, {}, 0};

static bool made_keep(uint64_t cookie, int fd) {
    pthread_mutex_lock(&made.lock);
    bool fits = made.n < MADE_MAX;
    if (fits) {
        made.cookie[made.n] = cookie;
        made.fd[made.n++] = fd;
    }
    pthread_mutex_unlock(&made.lock);
    return fits;
}

static void made_forget(uint64_t cookie) {
    pthread_mutex_lock(&made.lock);
    for (int i = 0; i < made.n; i++) {
        if (made.cookie[i] != cookie) continue;
        close(made.fd[i]);
        made.cookie[i] = made.cookie[--made.n];
        made.fd[i] = made.fd[made.n];
        break;
    }
    pthread_mutex_unlock(&made.lock);
}

cu_nccl_result nccl_wire_make(cu_nccl_id *id, char *why) {
    struct nccl_shared head = {};
    head.magic = MAGIC;
    int fd = memfd_create("superpod-nccl-emu", MFD_CLOEXEC);
    if (fd < 0 || getrandom(&head.cookie, sizeof head.cookie, 0) != sizeof head.cookie ||
        ftruncate(fd, (off_t)HEAD_BYTES) || pwrite(fd, &head, sizeof head, 0) != sizeof head) {
        snprintf(why, NCCL_WORDS, "no memory for a unique id: %s", strerror(errno));
        if (fd >= 0) close(fd);
        return CU_NCCL_SYSTEM_ERROR;
    }
    if (!made_keep(head.cookie, fd)) {
        close(fd);
        snprintf(why, NCCL_WORDS, "%d unique ids are waiting for their members", MADE_MAX);
        return CU_NCCL_SYSTEM_ERROR;
    }
    struct nccl_id words = {MAGIC, head.cookie, getpid(), fd};
    memset(id, 0, sizeof *id);
    memcpy(id, &words, sizeof words);
    return CU_NCCL_OK;
}

static struct nccl_ring *ring(const nccl_wire *w, int from, int to) {
    return (struct nccl_ring *)((char *)w->shared + HEAD_BYTES) + (size_t)from * (size_t)w->n + to;
}

static bool lock_own(const nccl_wire *w) {
    struct flock l = {};
    l.l_type = F_WRLCK;
    l.l_whence = SEEK_SET;
    l.l_start = LOCKS_AT + w->rank;
    l.l_len = 1;
    return fcntl(w->fd, F_OFD_SETLK, &l) == 0;
}

static bool map(nccl_wire *w, const struct nccl_id *id, int n) {
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", id->pid, id->fd);
    w->fd = open(path, O_RDWR | O_CLOEXEC);
    if (w->fd < 0 || fstat(w->fd, &st) || !S_ISREG(st.st_mode) || st.st_size < (off_t)HEAD_BYTES)
        return false;
    w->bytes = HEAD_BYTES + (size_t)n * (size_t)n * sizeof(struct nccl_ring);
    struct nccl_shared head;
    if (pread(w->fd, &head, sizeof head, 0) != sizeof head || head.magic != MAGIC ||
        head.cookie != id->cookie)
        return false;
    // All who get this far with the same n make it equally long; another n is found below.
    if ((size_t)st.st_size < w->bytes && ftruncate(w->fd, (off_t)w->bytes)) return false;
    void *p = mmap(NULL, w->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    if (p == MAP_FAILED) return false;
    w->shared = (struct nccl_shared *)p;
    return true;
}

cu_nccl_result nccl_wire_join(nccl_wire *out, const cu_nccl_id *id, int n, int rank, char *why) {
    struct nccl_id words;
    memcpy(&words, id, sizeof words);
    nccl_wire w = {NULL, 0, -1, n, rank};
    cu_nccl_result r = CU_NCCL_OK;
    int32_t seen = 0, absent = NCCL_ABSENT;
    if (words.magic != MAGIC) {
        snprintf(why, NCCL_WORDS, "the unique id is not of the emulated NCCL");
        return CU_NCCL_INVALID_ARGUMENT;
    }
    if (!map(&w, &words, n)) {
        snprintf(why, NCCL_WORDS, "the maker of the unique id, process %d, is gone", words.pid);
        r = CU_NCCL_REMOTE_ERROR;
    } else if (!__atomic_compare_exchange_n(&w.shared->n, &seen, n, false, __ATOMIC_SEQ_CST,
                                            __ATOMIC_SEQ_CST) &&
               seen != n) {
        snprintf(why, NCCL_WORDS, "member %d wants %d members, the first one wanted %d", rank, n,
                 (int)seen);
        r = CU_NCCL_INVALID_ARGUMENT;
    } else if (!lock_own(&w) || !__atomic_compare_exchange_n(&w.shared->presence[rank], &absent,
                                                             (int32_t)NCCL_JOINED, false,
                                                             __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        snprintf(why, NCCL_WORDS, "member %d has joined twice", rank);
        r = CU_NCCL_INVALID_USAGE;
    }
    if (r == CU_NCCL_OK)
        *out = w;
    else
        nccl_wire_leave(&w);
    return r;
}

void nccl_wire_leave(nccl_wire *w) {
    if (w->shared) {
        if (nccl_wire_complete(w)) made_forget(w->shared->cookie);
        munmap(w->shared, w->bytes);
    }
    if (w->fd >= 0) close(w->fd);
    w->shared = NULL;
    w->fd = -1;
}

bool nccl_wire_complete(const nccl_wire *w) {
    for (int i = 0; i < w->n; i++)
        if (__atomic_load_n(&w->shared->presence[i], __ATOMIC_SEQ_CST) == NCCL_ABSENT) return false;
    made_forget(w->shared->cookie);
    return true;
}

void nccl_wire_say(nccl_wire *w, nccl_presence presence) {
    __atomic_store_n(&w->shared->presence[w->rank], (int32_t)presence, __ATOMIC_SEQ_CST);
    // Who gives up before all have come does not keep the memory for those who never will.
    if (presence == NCCL_ABORTED) made_forget(w->shared->cookie);
}

bool nccl_wire_all(const nccl_wire *w, nccl_presence presence) {
    for (int i = 0; i < w->n; i++)
        if (__atomic_load_n(&w->shared->presence[i], __ATOMIC_SEQ_CST) != presence) return false;
    return true;
}

bool nccl_wire_gone(const nccl_wire *w, int member) {
    int32_t p = __atomic_load_n(&w->shared->presence[member], __ATOMIC_SEQ_CST);
    if (p == NCCL_ABORTED) return true;
    if (p == NCCL_ABSENT || member == w->rank) return false;
    struct flock l = {};
    l.l_type = F_WRLCK;
    l.l_whence = SEEK_SET;
    l.l_start = LOCKS_AT + member;
    l.l_len = 1;
    return fcntl(w->fd, F_OFD_GETLK, &l) == 0 && l.l_type == F_UNLCK;
}

cu_nccl_result nccl_wire_error(const nccl_wire *w, const char **words) {
    int32_t e = __atomic_load_n(&w->shared->error, __ATOMIC_SEQ_CST);
    if (e && words) *words = w->shared->words;
    return (cu_nccl_result)e;
}

/* ---- frames ---- */

static const char *const kinds[] = {"send or receive", "all-gather", "all-reduce", "broadcast"};
static const char *const types[CU_NCCL_TYPES] = {"int8",  "uint8",  "int32",  "uint32",
                                                 "int64", "uint64", "f16",    "f32",
                                                 "f64",   "bf16",   "f8e4m3", "f8e5m2"};

static void describe(const nccl_frame *f, char *out, size_t size) {
    int n = snprintf(out, size, "%s of %llu %s", kinds[f->kind & 3], (unsigned long long)f->count,
                     f->type < CU_NCCL_TYPES ? types[f->type] : "?");
    if (n < 0 || (size_t)n >= size) return;
    if (f->kind == NCCL_BROADCAST) snprintf(out + n, size - (size_t)n, " from %d", (int)f->root);
    if (f->kind == NCCL_ALL_REDUCE) snprintf(out + n, size - (size_t)n, ", operation %u", f->op);
}

static nccl_moved mismatch(nccl_wire *w, const nccl_flow *f, const nccl_frame *theirs) {
    char a[64], b[64], words[NCCL_WORDS];
    describe(&f->frame, a, sizeof a);
    describe(theirs, b, sizeof b);
    snprintf(words, sizeof words, "member %d is in %s (collective %llu), member %d in %s (%llu)",
             w->rank, a, (unsigned long long)f->frame.seq, f->peer, b,
             (unsigned long long)theirs->seq);
    if (__atomic_exchange_n(&w->shared->claimed, 1, __ATOMIC_SEQ_CST) == 0) {
        memcpy(w->shared->words, words, sizeof words);
        __atomic_store_n(&w->shared->error, (int32_t)CU_NCCL_INVALID_USAGE, __ATOMIC_SEQ_CST);
    }
    return NCCL_MISMATCH;
}

static void copy_in(struct nccl_ring *r, uint64_t at, const void *from, size_t n) {
    size_t place = (size_t)(at % NCCL_RING), first = NCCL_RING - place < n ? NCCL_RING - place : n;
    memcpy(r->data + place, from, first);
    memcpy(r->data, (const char *)from + first, n - first);
}

static void copy_out(const struct nccl_ring *r, uint64_t at, void *to, size_t n) {
    size_t place = (size_t)(at % NCCL_RING), first = NCCL_RING - place < n ? NCCL_RING - place : n;
    memcpy(to, r->data + place, first);
    memcpy((char *)to + first, r->data, n - first);
}

static nccl_moved move_out(struct nccl_ring *r, nccl_flow *f) {
    uint64_t written = __atomic_load_n(&r->written, __ATOMIC_RELAXED);
    uint64_t read = __atomic_load_n(&r->read, __ATOMIC_ACQUIRE);
    size_t room = (size_t)(NCCL_RING - (written - read));
    const uint64_t before = written;
    if (!f->begun && room >= sizeof f->frame) {
        copy_in(r, written, &f->frame, sizeof f->frame);
        written += sizeof f->frame;
        room -= sizeof f->frame;
        f->begun = true;
    }
    if (f->begun) {
        size_t now = f->bytes - f->done < room ? f->bytes - f->done : room;
        if (now) copy_in(r, written, f->from + f->done, now);
        f->done += now;
        written += now;
        if (f->done == f->bytes && !f->end) f->end = written;
    }
    __atomic_store_n(&r->written, written, __ATOMIC_RELEASE);
    if (f->end && (!f->taken || read >= f->end)) return NCCL_DONE;
    return written != before ? NCCL_MOVED : NCCL_STILL;
}

static bool matches(const nccl_frame *a, const nccl_frame *b) {
    return a->kind == b->kind && a->type == b->type && a->op == b->op && a->root == b->root &&
           a->count == b->count && a->seq == b->seq;
}

static nccl_moved move_in(nccl_wire *w, struct nccl_ring *r, nccl_flow *f) {
    uint64_t read = __atomic_load_n(&r->read, __ATOMIC_RELAXED);
    uint64_t written = __atomic_load_n(&r->written, __ATOMIC_ACQUIRE);
    const uint64_t before = read;
    if (!f->begun && written - read >= sizeof f->frame) {
        nccl_frame theirs;
        copy_out(r, read, &theirs, sizeof theirs);
        if (!matches(&f->frame, &theirs)) return mismatch(w, f, &theirs);
        read += sizeof theirs;
        f->begun = true;
    }
    if (f->begun) {
        size_t there = (size_t)(written - read);
        size_t now = f->bytes - f->done < there ? f->bytes - f->done : there;
        if (now) copy_out(r, read, f->to + f->done, now);
        f->done += now;
        read += now;
    }
    __atomic_store_n(&r->read, read, __ATOMIC_RELEASE);
    if (f->begun && f->done == f->bytes) return NCCL_DONE;
    return read != before ? NCCL_MOVED : NCCL_STILL;
}

nccl_moved nccl_wire_move(nccl_wire *w, nccl_flow *f) {
    return f->out ? move_out(ring(w, w->rank, f->peer), f)
                  : move_in(w, ring(w, f->peer, w->rank), f);
}
