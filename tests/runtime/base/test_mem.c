/* Covers runtime/base/mem.c: zeroing, failing on demand, counting, and arenas. */
#include "runtime/base/mem.h"

#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

static bool is_zero(const void *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (((const unsigned char *)p)[i]) return false;
    return true;
}

static void memory_comes_zeroed(void) {
    for (size_t n = 0; n < 5000; n += 777) {
        char *a = sp_alloc(n), *b = sp_try_alloc(n), *c = sp_try_alloc_array(n, 3);
        char *d = sp_alloc_aligned(64, n), *e = sp_try_alloc_aligned(4096, n);
        CU_ASSERT_FATAL(a && b && c && d && e);
        CU_ASSERT(is_zero(a, n) && is_zero(b, n) && is_zero(c, 3 * n) && is_zero(d, n) &&
                  is_zero(e, n));
        CU_ASSERT_EQUAL((uintptr_t)d % 64, 0);
        CU_ASSERT_EQUAL((uintptr_t)e % 4096, 0);
        memset(a, 1, n);
        char *grown = sp_try_realloc(a, n + 100);
        CU_ASSERT_PTR_NOT_NULL_FATAL(grown);
        if (n) CU_ASSERT(grown[0] == 1 && grown[n - 1] == 1);
        sp_free(grown);
        sp_free(b);
        sp_free(c);
        sp_free(d);
        sp_free(e);
    }
    sp_free(NULL);
}

static void an_array_that_overflows_is_null(void) {
    CU_ASSERT_PTR_NULL(sp_try_alloc_array(SIZE_MAX, 2));
    CU_ASSERT_PTR_NULL(sp_try_alloc_array(SIZE_MAX / 2 + 1, 2));
    CU_ASSERT_PTR_NULL(sp_try_alloc_array((size_t)1 << 33, (size_t)1 << 33));
    void *none = sp_try_alloc_array(0, 100);
    CU_ASSERT_PTR_NOT_NULL(none); /* nothing is not a failure */
    sp_free(none);
}

static void the_nth_try_fails_once(void) {
    for (int64_t n = 1; n <= 5; n++) {
        sp_mem_fail_at(n);
        for (int64_t i = 1; i <= 8; i++) {
            void *p = NULL, *old = sp_alloc(8); /* sp_alloc does not count */
            if (i % 4 == 0) p = sp_try_alloc(8);
            if (i % 4 == 1) p = sp_try_alloc_array(2, 8);
            if (i % 4 == 2) p = sp_try_alloc_aligned(64, 8);
            if (i % 4 == 3) p = sp_try_realloc(old, 16);
            CU_ASSERT_EQUAL(p == NULL, i == n);
            if (i % 4 != 3 || !p) sp_free(old); /* a failed realloc leaves its memory alone */
            sp_free(p);
        }
    }
    sp_mem_fail_at(0);
    void *p = sp_try_alloc(1);
    CU_ASSERT_PTR_NOT_NULL(p);
    sp_free(p);
}

static void allocations_are_counted(void) {
    uint64_t before = sp_mem_count();
    void *p = sp_alloc(1), *q = sp_try_alloc(1), *r = sp_try_alloc_aligned(64, 1);
    q = sp_try_realloc(q, 100);
    CU_ASSERT_EQUAL(sp_mem_count() - before, 4);
    sp_free(p);
    sp_free(q);
    sp_free(r);
    CU_ASSERT_EQUAL(sp_mem_count() - before, 4);
}

static void copies_of_strings_end(void) {
    char *a = sp_strdup("hello"), *b = sp_strndup("hello", 2), *c = sp_strndup("", 0);
    CU_ASSERT_STRING_EQUAL(a, "hello");
    CU_ASSERT_STRING_EQUAL(b, "he");
    CU_ASSERT_STRING_EQUAL(c, "");
    sp_free(a);
    sp_free(b);
    sp_free(c);
    char *d = sp_strndup("a\0b", 3);
    CU_ASSERT_EQUAL(memcmp(d, "a\0b", 4), 0);
    sp_free(d);
}

static void an_arena_gives_zeroed_aligned_pieces_that_do_not_overlap(void) {
    sp_arena a;
    unsigned char *pieces[200];
    size_t sizes[200];
    sp_arena_init(&a, 0);
    for (int round = 0; round < 2; round++) { /* it may be used again after fini */
        uint32_t s = 1;
        for (int i = 0; i < 200; i++) {
            s = s * 1664525u + 1013904223u;
            sizes[i] = i % 40 == 39 ? 20000 + s % 50000 : (s >> 8) % 700;
            pieces[i] = sp_arena_try(&a, sizes[i]);
            CU_ASSERT_PTR_NOT_NULL_FATAL(pieces[i]);
            CU_ASSERT_EQUAL((uintptr_t)pieces[i] % 16, 0);
            CU_ASSERT(is_zero(pieces[i], sizes[i]));
            memset(pieces[i], i + 1, sizes[i]);
        }
        for (int i = 0; i < 200; i++)
            for (size_t k = 0; k < sizes[i]; k++)
                CU_ASSERT_FATAL(pieces[i][k] == (unsigned char)(i + 1));
        CU_ASSERT(a.used_bytes > 0);
        sp_arena_fini(&a);
        CU_ASSERT_EQUAL(a.used_bytes, 0);
    }
}

static void a_large_piece_does_not_waste_the_room_that_is_left(void) {
    sp_arena a;
    sp_arena_init(&a, 0);
    (void)sp_arena_alloc(&a, 100);
    (void)sp_arena_alloc(&a, 100000);
    uint64_t before = sp_mem_count();
    (void)sp_arena_alloc(&a, 100);
    CU_ASSERT_EQUAL(sp_mem_count(), before);
    sp_arena_fini(&a);
}

static void an_arena_keeps_to_its_limit(void) {
    sp_arena a;
    sp_arena_init(&a, 1000);
    CU_ASSERT_PTR_NOT_NULL(sp_arena_try(&a, 900));
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, 200));
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, SIZE_MAX));
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, SIZE_MAX - 15));
    CU_ASSERT_PTR_NOT_NULL(sp_arena_try(&a, 80));
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, 80));
    sp_arena_fini(&a);
    CU_ASSERT_PTR_NOT_NULL(sp_arena_try(&a, 900)); /* the limit stays, what was used does not */
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, 900));
    sp_arena_fini(&a);
}

static void a_failed_piece_leaves_the_arena_as_it_was(void) {
    sp_arena a;
    sp_arena_init(&a, 0);
    sp_mem_fail_at(1);
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, 10));
    CU_ASSERT_EQUAL(a.used_bytes, 0);
    char *s = sp_arena_strndup(&a, "text", 4);
    CU_ASSERT_STRING_EQUAL(s, "text");
    sp_mem_fail_at(1);
    CU_ASSERT_PTR_NULL(sp_arena_try(&a, 1 << 20));
    sp_mem_fail_at(0);
    CU_ASSERT_STRING_EQUAL(s, "text");
    CU_ASSERT_PTR_NOT_NULL(sp_arena_try(&a, 1 << 20));
    sp_arena_fini(&a);
    sp_arena_fini(&a); /* twice does no harm */
}

SP_TEST_MAIN("runtime/base/mem", SP_TEST(memory_comes_zeroed),
             SP_TEST(an_array_that_overflows_is_null), SP_TEST(the_nth_try_fails_once),
             SP_TEST(allocations_are_counted), SP_TEST(copies_of_strings_end),
             SP_TEST(an_arena_gives_zeroed_aligned_pieces_that_do_not_overlap),
             SP_TEST(a_large_piece_does_not_waste_the_room_that_is_left),
             SP_TEST(an_arena_keeps_to_its_limit),
             SP_TEST(a_failed_piece_leaves_the_arena_as_it_was))
