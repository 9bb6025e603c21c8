// The race checker: linked only into builds whose kernels were compiled with -fsanitize=thread, whose
// calls land here instead of in a thread sanitizer, which knows nothing of barriers between fibres.
//
// Fibres run one at a time, so that a lost update never happens here; what is looked for is the
// missing order. Two accesses to a byte, one of them a write, not both atomic, are a race unless
//   - one thread made both, or
//   - a block barrier lies between them, or
//   - both lanes of one warp met in __syncwarp between them (shuffles and votes order no memory).
// Nothing orders two blocks of one launch: the "last block finishes" pattern is reported, and has to
// be two launches. Transitive order through __syncwarp of different masks is not seen.
//
// Each byte keeps its last write and its last two reads. A page of cells is void when its stamp is
// not the launch's (device memory) or the block's (shared memory).
#include "kernels/cuda/emu/engine.h"

#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE ((uintptr_t)4096)
#define MAX_PAGES 16384 /* 2.4 GiB of cells; memory beyond is not watched, and that is said */
#define MAX_PAIRS 64

typedef struct cells {
    uintptr_t page;
    uint64_t stamp;
    uint64_t who[3][PAGE]; /* write, read, read before; 0: nobody */
    int32_t pc[3][PAGE];
} cells;

typedef struct race_state {
    cells **slot; /* open addressing, 2 * MAX_PAGES */
    int n_pages;
    bool full;
    cells *last;
    uint64_t stamp, launch_stamp, block_stamp, block;
    const char *shared;
    size_t shared_size;
    uint16_t epoch;
    uint16_t time[32];
    uint16_t met[32][32][32]; /* warp, lane, lane: when they last met */
    int pairs, found;
    int32_t pair[MAX_PAIRS][2];
    const char *fine_lo, *fine_hi; /* the last address range that was found harmless */
} race_state;

static __thread race_state *state;
static const char anchor = 0;

static race_state *mine(void) {
    if (!state) {
        state = (race_state *)calloc(1, sizeof *state);
        if (state) state->slot = (cells **)calloc(2 * MAX_PAGES, sizeof(cells *));
        if (!state || !state->slot) abort();
    }
    return state;
}

/* ---- who: |1|block 21|thread 10|atomic 1|epoch 16|time 15| ---- */

static uint64_t who_am_i(const race_state *r, const cu_thread *t, bool atomic) {
    return (uint64_t)1 << 63 | (r->block & 0x1fffff) << 42 | (uint64_t)t->id << 32 |
           (uint64_t)atomic << 31 | (uint64_t)r->epoch << 15 | (r->time[t->id / 32] & 0x7fff);
}

static bool ordered(const race_state *r, uint64_t before, uint64_t now) {
    if (!before || ((before & now) >> 31 & 1)) return true;
    if ((before ^ now) >> 42) return false; // another block
    unsigned a = before >> 32 & 1023, b = now >> 32 & 1023;
    if (a == b) return true;
    if ((before ^ now) >> 15 & 0xffff) return true; // another epoch
    if (a / 32 != b / 32) return false;
    return (r->met[a / 32][a % 32][b % 32] & 0x7fff) > (before & 0x7fff);
}

/* ---- cells ---- */

static cells *find(race_state *r, uintptr_t page, uint64_t stamp) {
    cells *c = r->last;
    if (!c || c->page != page) {
        size_t at = (size_t)(page >> 12) * 0x9e3779b97f4a7c15u >> 49;
        while (r->slot[at] && r->slot[at]->page != page) at = (at + 1) % (2 * MAX_PAGES);
        c = r->slot[at];
        if (!c && r->n_pages == MAX_PAGES) {
            if (!r->full)
                fprintf(stderr, "emulated device: race cells are full; not all is watched\n");
            r->full = true;
            return NULL;
        }
        if (!c) {
            c = (cells *)calloc(1, sizeof *c);
            if (!c) return NULL;
            c->page = page;
            r->slot[at] = c;
            r->n_pages++;
        }
        r->last = c;
    }
    if (c->stamp != stamp) {
        memset(c->who, 0, sizeof c->who);
        c->stamp = stamp;
    }
    return c;
}

static void describe(uint64_t who, bool write, int32_t pc, char *out, size_t size) {
    char place[400];
    cu_place_of(&anchor + pc, place, sizeof place);
    snprintf(out, size, "%s%s by thread %u of block %u at %s", who >> 31 & 1 ? "atomic " : "",
             write ? "write" : "read", (unsigned)(who >> 32 & 1023),
             (unsigned)(who >> 42 & 0x1fffff), place);
}

static void race(race_state *r, const void *ptr, const cells *c, size_t i, int side, uint64_t now,
                 bool write, int32_t pc) {
    r->found++;
    for (int k = 0; k < r->pairs; k++)
        if (r->pair[k][0] == c->pc[side][i] && r->pair[k][1] == pc) return;
    if (r->pairs == MAX_PAIRS) return;
    r->pair[r->pairs][0] = c->pc[side][i];
    r->pair[r->pairs++][1] = pc;
    char first[500], second[500], where[200];
    describe(c->who[side][i], side == 0, c->pc[side][i], first, sizeof first);
    describe(now, write, pc, second, sizeof second);
    if (cu_mem_inside(ptr))
        cu_mem_describe(ptr, where, sizeof where);
    else
        snprintf(where, sizeof where, "byte %zu of shared memory",
                 (size_t)((const char *)ptr - r->shared));
    cu_emu_report(CU_EMU_RACE, "%s and %s, nothing between them; %s", first, second, where);
}

static void touch_cell(race_state *r, cells *c, size_t i, const void *ptr, uint64_t now, bool write,
                       int32_t pc) {
    if (c->who[0][i] && !ordered(r, c->who[0][i], now)) race(r, ptr, c, i, 0, now, write, pc);
    if (write) {
        for (int side = 1; side < 3; side++)
            if (c->who[side][i] && !ordered(r, c->who[side][i], now))
                race(r, ptr, c, i, side, now, write, pc);
        c->who[0][i] = now;
        c->pc[0][i] = pc;
        c->who[1][i] = c->who[2][i] = 0;
        return;
    }
    if (c->who[1][i] && (c->who[1][i] ^ now) >> 32) {
        c->who[2][i] = c->who[1][i];
        c->pc[2][i] = c->pc[1][i];
    }
    c->who[1][i] = now;
    c->pc[1][i] = pc;
}

/* ---- which memory ---- */

typedef struct range {
    const char *at, *lo, *hi;
} range;

static int find_module(struct dl_phdr_info *info, size_t size, void *out) {
    (void)size;
    range *r = (range *)out;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const char *lo = (const char *)info->dlpi_addr + p->p_vaddr;
        bool constant = p->p_type == PT_GNU_RELRO || (p->p_type == PT_LOAD && !(p->p_flags & PF_W));
        if (!constant || r->at < lo || r->at >= lo + p->p_memsz) continue;
        r->lo = lo;
        r->hi = lo + p->p_memsz;
        return 1;
    }
    return 0;
}

// Constants of the program and thread-local variables are no memory of kernels; pinned memory is.
static bool harmless(race_state *r, const char *p) {
    if (p >= r->fine_lo && p < r->fine_hi) return true;
    range found = {p, NULL, NULL};
    uintptr_t tls = (uintptr_t)&threadIdx;
    if ((uintptr_t)p > tls - PAGE && (uintptr_t)p < tls + PAGE) {
        found.lo = (const char *)(tls - PAGE);
        found.hi = (const char *)(tls + PAGE);
    } else if (!dl_iterate_phdr(find_module, &found)) {
        void *base;
        size_t size;
        cu_lock();
        bool pinned = cu_pin_find(p, &base, &size);
        cu_unlock();
        if (!pinned) return false;
        found.lo = (const char *)base;
        found.hi = found.lo + size;
    }
    r->fine_lo = found.lo;
    r->fine_hi = found.hi;
    return true;
}

static void access(const void *ptr, size_t bytes, bool write, bool atomic, const void *pc) {
    if (!cu_engine_busy()) return;
    race_state *r = mine();
    const char *p = (const char *)ptr;
    uint64_t stamp = r->launch_stamp;
    if (p >= r->shared && p < r->shared + r->shared_size) {
        stamp = r->block_stamp;
    } else if (!cu_mem_inside(p)) {
        if (cu_engine_own(p) || harmless(r, p)) return;
        char place[400];
        cu_place_of(pc, place, sizeof place);
        cu_engine_fault(CU_EMU_ADDRESS, "%p is host memory, touched at %s", ptr, place);
    }
    uint64_t now = who_am_i(r, cu_now->current, atomic);
    int32_t offset = (int32_t)((const char *)pc - &anchor);
    while (bytes) {
        size_t i = (uintptr_t)p % PAGE, n = PAGE - i < bytes ? PAGE - i : bytes;
        cells *c = find(r, (uintptr_t)p / PAGE, stamp);
        for (size_t k = 0; c && k < n; k++) touch_cell(r, c, i + k, p + k, now, write, offset);
        p += n;
        bytes -= n;
    }
}

/* ---- the engine's news ---- */

static void kernel_begins(const cu_call *call) {
    (void)call;
    race_state *r = mine();
    r->launch_stamp = ++r->stamp;
    r->pairs = r->found = 0;
    r->fine_lo = r->fine_hi = NULL;
}

static void block_begins(uint64_t block, const void *shared, size_t size) {
    race_state *r = mine();
    r->block = block;
    r->block_stamp = ++r->stamp;
    r->shared = (const char *)shared;
    r->shared_size = size;
    r->epoch = 0;
    memset(r->time, 0, sizeof r->time);
    memset(r->met, 0, sizeof r->met);
}

static void barrier_passed(void) {
    mine()->epoch++;
}

static void warp_met(int warp, uint32_t mask) {
    race_state *r = mine();
    uint16_t time = ++r->time[warp];
    for (int a = 0; a < 32; a++)
        for (int b = 0; b < 32; b++)
            if ((mask >> a & 1) && (mask >> b & 1)) r->met[warp][a][b] = time;
}

static int failed(void) {
    return mine()->found ? cudaErrorLaunchFailure : 0;
}

static const cu_race_hooks hooks = {kernel_begins, block_begins, barrier_passed,
                                    warp_met,      access,       failed};
const cu_race_hooks *cu_race = &hooks;

/* ---- what -fsanitize=thread calls ---- */

#define HERE __builtin_return_address(0)

// An access of n bytes by a type that is aligned to n: what a GPU refuses and x86 forgives.
static void aligned(const void *ptr, size_t n, bool write, const void *pc) {
    if ((uintptr_t)ptr % n && cu_engine_busy()) {
        char place[400];
        cu_place_of(pc, place, sizeof place);
        cu_engine_fault(CU_EMU_MISALIGNED, "%zu bytes at %p, touched at %s", n, ptr, place);
    }
    access(ptr, n, write, false, pc);
}

#define CU_PLAIN(n) \
    void __tsan_read##n(void *p) { \
        aligned(p, n, false, HERE); \
    } \
    void __tsan_write##n(void *p) { \
        aligned(p, n, true, HERE); \
    } \
    void __tsan_unaligned_read##n(void *p) { \
        access(p, n, false, false, HERE); \
    } \
    void __tsan_unaligned_write##n(void *p) { \
        access(p, n, true, false, HERE); \
    } \
    void __tsan_volatile_read##n(void *p) { \
        access(p, n, false, false, HERE); \
    } \
    void __tsan_volatile_write##n(void *p) { \
        access(p, n, true, false, HERE); \
    }
#define CU_ATOMICS(bits, T) \
    T __tsan_atomic##bits##_load(const volatile T *p, int) { \
        access((const void *)p, sizeof *p, false, true, HERE); \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST); \
    } \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int) { \
        access((const void *)p, sizeof *p, true, true, HERE); \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST); \
    } \
    T __tsan_atomic##bits##_exchange(volatile T *p, T v, int) { \
        access((const void *)p, sizeof *p, true, true, HERE); \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); \
    } \
    T __tsan_atomic##bits##_fetch_add(volatile T *p, T v, int) { \
        access((const void *)p, sizeof *p, true, true, HERE); \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); \
    } \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T *p, T *want, T v, int, int) { \
        access((const void *)p, sizeof *p, true, true, HERE); \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    } \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T *p, T *want, T v, int, int) { \
        access((const void *)p, sizeof *p, true, true, HERE); \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }

extern "C" {
void __tsan_init(void) {}
void __tsan_func_entry(void *pc) {
    (void)pc;
}
void __tsan_func_exit(void) {}
CU_PLAIN(1)
CU_PLAIN(2)
CU_PLAIN(4)
CU_PLAIN(8)
CU_PLAIN(16)
CU_ATOMICS(8, uint8_t)
CU_ATOMICS(16, uint16_t)
CU_ATOMICS(32, uint32_t)
CU_ATOMICS(64, uint64_t)
void __tsan_read_range(void *p, size_t n) {
    access(p, n, false, false, HERE);
}
void __tsan_write_range(void *p, size_t n) {
    access(p, n, true, false, HERE);
}
void __tsan_vptr_update(void **p, void *v) {
    (void)p, (void)v;
}
void __tsan_vptr_read(void **p) {
    (void)p;
}
void __tsan_atomic_thread_fence(int order) {
    (void)order;
}
void __tsan_atomic_signal_fence(int order) {
    (void)order;
}
}
