#include "runtime/base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Counters only: relaxed order is enough, nobody reads other data through them. */
static _Atomic uint64_t n_allocs;
static _Atomic int64_t fail_in;

static bool should_fail(void) {
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) <= 0) return false;
    return atomic_fetch_sub_explicit(&fail_in, 1, memory_order_relaxed) == 1;
}

SP_NORETURN static void out_of_memory(size_t size) {
    fprintf(stderr, "superpod: out of memory: %zu bytes wanted\n", size);
    abort();
}

static void *zeroed(size_t size) {
    atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed);
    return calloc(1, size ? size : 1);
}

void *sp_alloc(size_t size) {
    void *p = zeroed(size);
    if (!p) out_of_memory(size);
    return p;
}

void *sp_try_alloc(size_t size) {
    return should_fail() ? NULL : zeroed(size);
}

void *sp_try_alloc_array(size_t count, size_t size) {
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) return NULL;
    return sp_try_alloc(total);
}

void *sp_try_realloc(void *p, size_t size) {
    if (should_fail()) return NULL;
    atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed);
    return realloc(p, size ? size : 1);
}

static void *zeroed_aligned(size_t align, size_t size) {
    atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed);
    void *p = NULL;
    if (posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1))
        return NULL;
    memset(p, 0, size);
    return p;
}

void *sp_try_alloc_aligned(size_t align, size_t size) {
    return should_fail() ? NULL : zeroed_aligned(align, size);
}

void *sp_alloc_aligned(size_t align, size_t size) {
    void *p = zeroed_aligned(align, size);
    if (!p) out_of_memory(size);
    return p;
}

void sp_free(void *p) {
    free(p);
}

char *sp_strndup(const char *s, size_t n) {
    char *copy = sp_alloc(n + 1);
    if (n) memcpy(copy, s, n);
    return copy;
}

char *sp_strdup(const char *s) {
    return sp_strndup(s, strlen(s));
}

void sp_mem_fail_at(int64_t n) {
    atomic_store_explicit(&fail_in, n, memory_order_relaxed);
}
uint64_t sp_mem_count(void) {
    return atomic_load_explicit(&n_allocs, memory_order_relaxed);
}

/* An arena is a list of chunks, newest first; a request larger than a chunk gets its own. */
#define CHUNK_BYTES ((size_t)16 * 1024)
struct sp_arena_chunk {
    sp_arena_chunk *next;
    size_t size, used;
    _Alignas(16) unsigned char bytes[];
};

void sp_arena_init(sp_arena *a, size_t limit_bytes) {
    *a = (sp_arena){.limit_bytes = limit_bytes};
}

void sp_arena_fini(sp_arena *a) {
    for (sp_arena_chunk *c = a->head; c;) {
        sp_arena_chunk *next = c->next;
        sp_free(c);
        c = next;
    }
    a->head = NULL;
    a->used_bytes = 0;
}

static void *arena_take(sp_arena *a, size_t size) {
    size_t rounded = (size + 15) & ~(size_t)15;
    if (rounded < size || rounded > SIZE_MAX / 2) return NULL;
    if (a->limit_bytes && rounded > a->limit_bytes - a->used_bytes) return NULL;
    sp_arena_chunk *c = a->head;
    if (!c || c->size - c->used < rounded) {
        size_t want = rounded > CHUNK_BYTES ? rounded : CHUNK_BYTES;
        c = zeroed(sizeof *c + want);
        if (!c) return NULL;
        c->size = want;
        /* A large piece goes behind a chunk that still has room, so that room is not lost. */
        if (a->head && rounded > CHUNK_BYTES) {
            c->next = a->head->next;
            a->head->next = c;
        } else {
            c->next = a->head;
            a->head = c;
        }
    }
    void *p = c->bytes + c->used;
    c->used += rounded;
    a->used_bytes += rounded;
    return p;
}

void *sp_arena_try(sp_arena *a, size_t size) {
    return should_fail() ? NULL : arena_take(a, size);
}

void *sp_arena_alloc(sp_arena *a, size_t size) {
    void *p = arena_take(a, size);
    if (!p) out_of_memory(size);
    return p;
}

char *sp_arena_strndup(sp_arena *a, const char *s, size_t n) {
    char *copy = sp_arena_alloc(a, n + 1);
    if (n) memcpy(copy, s, n);
    return copy;
}
