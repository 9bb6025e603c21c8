// Device memory: every allocation between guard pages, begun as 0xFF, never given out twice.
//
//   | guard page | canary | [ptr, ptr+size) | canary up to 255 bytes | guard page |
//
// An allocation ends as near to its guard page as the 256-byte alignment of cudaMalloc lets it. Freed
// addresses stay unmapped for the life of the process: a use after free is an illegal address.
#include "kernels/cuda/emu/inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if CU_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define PAGE ((size_t)4096)
#define ALIGN ((size_t)256)
#define CANARY 0xA7
#define BEFORE ((size_t)64) /* bytes before an allocation that are looked at */
#define CHECK_MOST 256      /* allocations that are looked at after each launch */

typedef struct block {
    char *base, *lo; /* what the user has; the first page */
    size_t size, span;
    int device;
    bool live;
} block;

typedef struct pin {
    char *base;
    size_t size;
    bool own;
} pin;

static struct {
    char *lo, *next, *hi; /* addresses; blocks are in ascending order */
    block *blocks;
    size_t n, cap, live;
    pin *pins;
    size_t n_pins, cap_pins;
    int open;
} mem;

// Addresses only: nothing is committed. Less where a limit forbids a lot.
static bool arena_make(void) {
    for (size_t bytes = (size_t)1 << 40; !mem.lo && bytes >= (size_t)1 << 32; bytes >>= 2) {
        void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        mem.next = mem.lo = (char *)p;
        mem.hi = mem.lo + bytes;
    }
    return mem.lo != NULL;
}

static int rights(void) {
    return !cu_rt.config.protect || mem.open ? PROT_READ | PROT_WRITE : PROT_NONE;
}

// Freed blocks are remembered for the words of a report, but not for ever.
static void forget_old(void) {
    if (mem.n < mem.cap || mem.live > mem.n / 2) return;
    size_t kept = 0;
    for (size_t i = 0; i < mem.n; i++)
        if (mem.blocks[i].live || i >= mem.n - mem.n / 8) mem.blocks[kept++] = mem.blocks[i];
    mem.n = kept;
}

static bool grow(void **table, size_t n, size_t *cap, size_t each) {
    if (n < *cap) return true;
    size_t more = *cap ? *cap * 2 : 64;
    void *p = realloc(*table, more * each);
    if (!p) return false;
    *table = p;
    *cap = more;
    return true;
}

cudaError_t cu_mem_take(void **out, size_t size, int device) {
    cu_device *d = &cu_rt.device[device];
    if (cu_rt.fail_malloc && --cu_rt.fail_malloc == 0) return cudaErrorMemoryAllocation;
    if (size > cu_rt.config.memory_bytes || d->used > cu_rt.config.memory_bytes - size)
        return cudaErrorMemoryAllocation;
    if (!mem.lo && !arena_make()) return cudaErrorMemoryAllocation;
    // An empty allocation has an address too; the bound also tells the compiler that nothing wraps.
    if (size > (size_t)1 << 46) return cudaErrorMemoryAllocation;
    size_t padded = (size + ALIGN - 1) / ALIGN * ALIGN;
    size_t span = (padded + PAGE - 1) / PAGE * PAGE;
    if ((size_t)(mem.hi - mem.next) < span + 2 * PAGE) return cudaErrorMemoryAllocation;
    forget_old();
    if (!grow((void **)&mem.blocks, mem.n, &mem.cap, sizeof *mem.blocks))
        return cudaErrorMemoryAllocation;
    block b = {NULL, mem.next + PAGE, size, span, device, true};
    b.base = b.lo + span - padded;
    if (span && mprotect(b.lo, span, PROT_READ | PROT_WRITE)) return cudaErrorMemoryAllocation;
    memset(b.lo, CANARY, (size_t)(b.base - b.lo));
    memset(b.base, 0xff, size);
    memset(b.base + size, CANARY, padded - size);
    POISON(b.lo, (size_t)(b.base - b.lo));
    POISON(b.base + size, padded - size);
    if (span && rights() == PROT_NONE) mprotect(b.lo, span, PROT_NONE);
    mem.next = b.lo + span;
    mem.blocks[mem.n++] = b;
    mem.live++;
    d->used += size;
    *out = b.base;
    return cudaSuccess;
}

// The last block that begins at or below ptr.
static block *block_below(const void *ptr) {
    size_t lo = 0, hi = mem.n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (mem.blocks[mid].lo - PAGE <= (const char *)ptr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &mem.blocks[lo - 1] : NULL;
}

static void check_one(const block *b, const void *fn) {
    if (CU_ASAN || !b->live) return;
    const unsigned char *p = (const unsigned char *)b->base;
    size_t before = (size_t)(b->base - b->lo), behind = b->span - before - b->size;
    if (before > BEFORE) before = BEFORE;
    for (size_t i = 1; i <= before; i++)
        if (p[-(ptrdiff_t)i] != CANARY) {
            cu_emu_report(CU_EMU_OVERRUN,
                          "byte %zu before an allocation of %zu bytes, seen after %s", i, b->size,
                          fn ? cu_kernel_name(fn) : "other work");
            memset(b->base - before, CANARY, before);
            cu_rt.device[b->device].sticky = cudaErrorIllegalAddress;
            break;
        }
    for (size_t i = 0; i < behind; i++)
        if (p[b->size + i] != CANARY) {
            cu_emu_report(CU_EMU_OVERRUN,
                          "byte %zu after an allocation of %zu bytes, seen after %s", i, b->size,
                          fn ? cu_kernel_name(fn) : "other work");
            memset(b->base + b->size, CANARY, behind);
            cu_rt.device[b->device].sticky = cudaErrorIllegalAddress;
            break;
        }
}

void cu_mem_check(const void *fn) {
    if (CU_ASAN) return;
    cu_lock();
    if (mem.live <= CHECK_MOST && rights() != PROT_NONE)
        for (size_t i = 0; i < mem.n; i++) check_one(&mem.blocks[i], fn);
    cu_unlock();
}

static void block_free(block *b) {
    UNPOISON(b->lo, b->span);
    // A new mapping gives the pages back, and keeps the addresses.
    if (b->span)
        mmap(b->lo, b->span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
             0);
    b->live = false;
    mem.live--;
    cu_rt.device[b->device].used -= b->size;
}

cudaError_t cu_mem_drop(void *ptr) {
    block *b = block_below(ptr);
    if (!b || b->base != ptr) return cudaErrorInvalidValue;
    if (!b->live) {
        cu_emu_report(CU_EMU_MISUSE, "%p (%zu bytes) is freed twice", ptr, b->size);
        return cudaErrorInvalidValue;
    }
    if (rights() == PROT_NONE) mprotect(b->lo, b->span, PROT_READ | PROT_WRITE);
    check_one(b, NULL);
    block_free(b);
    return cudaSuccess;
}

bool cu_mem_find(const void *ptr, void **base, size_t *size, int *device) {
    const block *b = block_below(ptr);
    const char *p = (const char *)ptr;
    if (!b || !b->live || p < b->base || (p >= b->base + b->size && p != b->base)) return false;
    if (base) *base = b->base;
    if (size) *size = b->size;
    if (device) *device = b->device;
    return true;
}

bool cu_mem_inside(const void *ptr) {
    return mem.lo && (const char *)ptr >= mem.lo && (const char *)ptr < mem.hi;
}

void cu_mem_describe(const void *ptr, char *out, size_t size) {
    cu_lock();
    const block *b = cu_mem_inside(ptr) ? block_below(ptr) : NULL;
    const char *p = (const char *)ptr;
    if (!cu_mem_inside(ptr))
        snprintf(out, size, "%s", p < (char *)65536 ? "near NULL" : "not device memory");
    else if (!b || p > b->lo + b->span + PAGE)
        snprintf(out, size, "device memory that is not allocated");
    else if (!b->live)
        snprintf(out, size, "in a freed allocation of %zu bytes", b->size);
    else if (p >= b->base + b->size)
        snprintf(out, size, "%zu bytes after the end of an allocation of %zu bytes",
                 (size_t)(p - b->base) - b->size, b->size);
    else if (p < b->base)
        snprintf(out, size, "%zu bytes before an allocation of %zu bytes", (size_t)(b->base - p),
                 b->size);
    else
        snprintf(out, size, "at byte %zu of a device allocation of %zu bytes",
                 (size_t)(p - b->base), b->size);
    cu_unlock();
}

static void protect_all(int prot) {
    for (size_t i = 0; i < mem.n; i++)
        if (mem.blocks[i].live && mem.blocks[i].span)
            mprotect(mem.blocks[i].lo, mem.blocks[i].span, prot);
}

void cu_mem_open(void) {
    cu_lock();
    if (mem.open++ == 0 && cu_rt.config.protect) protect_all(PROT_READ | PROT_WRITE);
    cu_unlock();
}

void cu_mem_close(void) {
    cu_lock();
    if (--mem.open == 0 && cu_rt.config.protect) protect_all(PROT_NONE);
    cu_unlock();
}

void cu_mem_reset(void) {
    for (size_t i = 0; i < mem.n; i++)
        if (mem.blocks[i].live) block_free(&mem.blocks[i]);
    while (mem.n_pins) {
        pin *p = &mem.pins[--mem.n_pins];
        if (p->own) free(p->base);
    }
}

int cu_emu_is_device(const void *ptr, size_t bytes) {
    void *base;
    size_t size;
    cu_lock();
    bool found = cu_mem_find(ptr, &base, &size, NULL) || cu_pin_find(ptr, &base, &size);
    cu_unlock();
    return found && (size_t)((const char *)ptr - (char *)base) + bytes <= size;
}

/* ---- pinned memory ---- */

cudaError_t cu_pin_add(void *ptr, size_t size, bool own) {
    if (!ptr || !size) return cudaErrorInvalidValue;
    for (size_t i = 0; i < mem.n_pins; i++) {
        const pin *p = &mem.pins[i];
        if ((char *)ptr < p->base + p->size && p->base < (char *)ptr + size)
            return cudaErrorHostMemoryAlreadyRegistered;
    }
    if (!grow((void **)&mem.pins, mem.n_pins, &mem.cap_pins, sizeof *mem.pins))
        return cudaErrorMemoryAllocation;
    mem.pins[mem.n_pins++] = pin{(char *)ptr, size, own};
    return cudaSuccess;
}

cudaError_t cu_pin_take(void **out, size_t size) {
    void *p = NULL;
    if (posix_memalign(&p, PAGE, size ? size : 1)) return cudaErrorMemoryAllocation;
    memset(p, 0xff, size);
    cudaError_t err = cu_pin_add(p, size ? size : 1, true);
    if (err)
        free(p);
    else
        *out = p;
    return err;
}

static cudaError_t pin_remove(void *ptr, bool own, cudaError_t otherwise) {
    for (size_t i = 0; i < mem.n_pins; i++) {
        if (mem.pins[i].base != ptr || mem.pins[i].own != own) continue;
        mem.pins[i] = mem.pins[--mem.n_pins];
        if (own) free(ptr);
        return cudaSuccess;
    }
    return otherwise;
}

cudaError_t cu_pin_drop(void *ptr) {
    return pin_remove(ptr, true, cudaErrorInvalidValue);
}
cudaError_t cu_pin_remove(void *ptr) {
    return pin_remove(ptr, false, cudaErrorHostMemoryNotRegistered);
}

bool cu_pin_find(const void *ptr, void **base, size_t *size) {
    for (size_t i = 0; i < mem.n_pins; i++) {
        const pin *p = &mem.pins[i];
        if ((const char *)ptr < p->base || (const char *)ptr >= p->base + p->size) continue;
        if (base) *base = p->base;
        if (size) *size = p->size;
        return true;
    }
    return false;
}
