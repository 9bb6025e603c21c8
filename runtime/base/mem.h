/* runtime/base/mem.h - memory by lifetime: the process's, the request's, the step's.
 *
 * sp_alloc() is for sizes we choose and aborts when memory is short; sp_try_alloc() is for sizes
 * the world chooses (bodies, files, a model's tables) and may return NULL. An arena serves one
 * request: taken in pieces, dropped in one call.
 *
 * sp_mem_fail_at(n) lets the n-th sp_try_alloc from now fail, so that tests walk every failure
 * path; sp_mem_count() counts allocations, so that a test proves a loop allocates nothing.
 *
 * Thread: any for alloc/free; an arena belongs to one thread at a time. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

/** Zeroed memory; aborts when there is none. Owner: caller, sp_free(). */
void *sp_alloc(size_t size) __attribute__((malloc, returns_nonnull));

/** Zeroed memory for a size the world chose, or NULL. Owner: caller, sp_free(). */
void *sp_try_alloc(size_t size) SP_NODISCARD;

/** Zeroed `count * size` bytes, NULL on overflow or when memory is short. */
void *sp_try_alloc_array(size_t count, size_t size) SP_NODISCARD;

/** Grows or shrinks; NULL leaves `p` as it was. New bytes are not zeroed. */
void *sp_try_realloc(void *p, size_t size) SP_NODISCARD;

/** Zeroed memory at a multiple of `align` (a power of two); aborts when there is none. */
void *sp_alloc_aligned(size_t align, size_t size);
void *sp_try_alloc_aligned(size_t align, size_t size) SP_NODISCARD;

void sp_free(void *p);
char *sp_strdup(const char *s);            /* aborts when memory is short */
char *sp_strndup(const char *s, size_t n); /* the same, `n` bytes and a NUL */

void sp_mem_fail_at(int64_t n); /* the n-th (1-based) try_alloc fails; 0 turns it off. Tests only */
uint64_t sp_mem_count(void);    /* allocations since start */

typedef struct sp_arena_chunk sp_arena_chunk;
typedef struct sp_arena {
    sp_arena_chunk *head;
    size_t used_bytes;  /* handed out */
    size_t limit_bytes; /* 0 = none */
} sp_arena;

/** An empty arena; `limit_bytes` bounds what sp_arena_try hands out (0: no bound). */
void sp_arena_init(sp_arena *a, size_t limit_bytes);
void sp_arena_fini(sp_arena *a); /* frees all at once; the arena may be used again */

/** Zeroed, 16-byte aligned memory that lives as long as the arena. NULL: short, or over limit. */
void *sp_arena_try(sp_arena *a, size_t size) SP_NODISCARD;
void *sp_arena_alloc(sp_arena *a, size_t size); /* aborts instead */
char *sp_arena_strndup(sp_arena *a, const char *s, size_t n);
