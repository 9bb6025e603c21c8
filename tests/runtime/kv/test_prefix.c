/* Covers runtime/kv/prefix.c: names, hits, what is forgotten when a block is given up. */
#include "runtime/base/mem.h"
#include "runtime/kv/prefix.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

enum {
    B = 4
};
static const int32_t T0[B] = {1, 2, 3, 4}, T1[B] = {5, 6, 7, 8};

static void make(sp_kv_pool **p, sp_kv_prefix **x, int32_t n_blocks, uint8_t key,
                 const char *identity) {
    sp_err err = {0};
    sp_kv_prefix_config c = {
        .block_tokens = B, .identity = identity, .identity_bytes = strlen(identity)};
    c.key[0] = key;
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(p, n_blocks, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_kv_prefix_create(x, *p, &c, &err), SP_OK);
}

static void end(sp_kv_pool *p, sp_kv_prefix *x) {
    sp_kv_prefix_destroy(x);
    sp_kv_pool_destroy(p);
}

static void a_block_is_found_by_its_whole_past(void) {
    sp_kv_pool *p;
    sp_kv_prefix *x;
    make(&p, &x, 4, 1, "model");
    sp_kv_hash root, a, ab, b;
    sp_kv_prefix_root(x, NULL, 0, &root);
    sp_kv_prefix_next(x, &root, T0, &a);
    sp_kv_prefix_next(x, &a, T1, &ab);
    sp_kv_prefix_next(x, &root, T1, &b);
    CU_ASSERT(memcmp(&ab, &b, sizeof b) != 0); /* same tokens, another past */
    sp_block b0 = sp_kv_pool_take(p), b1 = sp_kv_pool_take(p);
    CU_ASSERT(sp_kv_prefix_add(x, b0, &a, T0));
    CU_ASSERT(sp_kv_prefix_add(x, b1, &ab, T1));
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T0), b0);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &ab, T1), b1);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &b, T1), SP_BLOCK_NONE);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T1), SP_BLOCK_NONE); /* a colliding name */
    CU_ASSERT(sp_kv_prefix_check(x));
    end(p, x);
}

static void key_identity_and_salt_keep_names_apart(void) {
    sp_kv_pool *p[3];
    sp_kv_prefix *x[3];
    make(&p[0], &x[0], 1, 1, "model");
    make(&p[1], &x[1], 1, 2, "model");
    make(&p[2], &x[2], 1, 1, "model, other numerics");
    sp_kv_hash roots[6];
    for (int i = 0; i < 3; i++) sp_kv_prefix_root(x[i], NULL, 0, &roots[i]);
    sp_kv_prefix_root(x[0], "alice", 5, &roots[3]);
    sp_kv_prefix_root(x[0], "bob", 3, &roots[4]);
    sp_kv_prefix_root(x[0], "", 0, &roots[5]);
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < i; k++) CU_ASSERT(memcmp(&roots[i], &roots[k], sizeof *roots) != 0);
    sp_kv_hash again;
    sp_kv_prefix_root(x[0], "bob", 3, &again);
    CU_ASSERT(memcmp(&again, &roots[4], sizeof again) == 0);
    for (int i = 0; i < 3; i++) end(p[i], x[i]);
}

static void a_block_stays_findable_after_release_until_it_is_taken_again(void) {
    sp_kv_pool *p;
    sp_kv_prefix *x;
    make(&p, &x, 2, 1, "m");
    sp_kv_hash root, a;
    sp_kv_prefix_root(x, NULL, 0, &root);
    sp_kv_prefix_next(x, &root, T0, &a);
    sp_block b0 = sp_kv_pool_take(p);
    CU_ASSERT(sp_kv_prefix_add(x, b0, &a, T0));
    sp_kv_pool_drop(p, b0, 0);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T0), b0);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), 1);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T0), b0);
    CU_ASSERT_EQUAL(sp_kv_pool_take(p), b0);
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T0), SP_BLOCK_NONE);
    CU_ASSERT_EQUAL(sp_kv_prefix_count(x), 0);
    CU_ASSERT(sp_kv_prefix_check(x) && sp_kv_pool_check(p));
    end(p, x);
}

static void the_first_block_of_a_name_keeps_it(void) {
    sp_kv_pool *p;
    sp_kv_prefix *x;
    make(&p, &x, 2, 1, "m");
    sp_kv_hash root, a, other;
    sp_kv_prefix_root(x, NULL, 0, &root);
    sp_kv_prefix_next(x, &root, T0, &a);
    sp_kv_prefix_next(x, &root, T1, &other);
    sp_block b0 = sp_kv_pool_take(p), b1 = sp_kv_pool_take(p);
    CU_ASSERT(sp_kv_prefix_add(x, b0, &a, T0));
    CU_ASSERT_FALSE(sp_kv_prefix_add(x, b1, &a, T0));
    CU_ASSERT_FALSE(sp_kv_prefix_add(x, b0, &other, T1));
    CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &a, T0), b0);
    sp_kv_pool_drop(p, b1, 0);
    CU_ASSERT_EQUAL(sp_kv_pool_idle(p), 0); /* it was never findable */
    end(p, x);
}

static void many_names_come_and_go(void) {
    enum {
        N = 37
    };
    sp_kv_pool *p;
    sp_kv_prefix *x;
    make(&p, &x, N, 9, "m");
    sp_kv_hash root, name;
    sp_kv_prefix_root(x, NULL, 0, &root);
    srand(3);
    for (int i = 0; i < 5000; i++) {
        int32_t tokens[B] = {rand() % 60, 1, 2, 3};
        sp_kv_prefix_next(x, &root, tokens, &name);
        sp_block b = sp_kv_prefix_find(x, &name, tokens);
        if (b != SP_BLOCK_NONE)
            sp_kv_pool_share(p, b);
        else {
            b = sp_kv_pool_take(p);
            CU_ASSERT_FATAL(b != SP_BLOCK_NONE);
            CU_ASSERT(sp_kv_prefix_add(x, b, &name, tokens));
        }
        CU_ASSERT_EQUAL(sp_kv_prefix_find(x, &name, tokens), b);
        sp_kv_pool_drop(p, b, 0);
        CU_ASSERT_FATAL(sp_kv_prefix_check(x) && sp_kv_pool_check(p));
    }
    CU_ASSERT_EQUAL(sp_kv_prefix_count(x), N);
    end(p, x);
}

static void create_survives_short_memory(void) {
    sp_kv_pool *p = NULL;
    sp_kv_prefix *x = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_kv_pool_create(&p, 4, &err), SP_OK);
    sp_kv_prefix_config c = {.block_tokens = 0};
    CU_ASSERT_EQUAL(sp_kv_prefix_create(&x, p, &c, &err), SP_E_INVALID);
    c.block_tokens = B;
    for (int64_t n = 1; n <= 5; n++) {
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(sp_kv_prefix_create(&x, p, &c, &err), SP_E_NOMEM);
    }
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(x);
    sp_kv_pool_destroy(p);
}

SP_TEST_MAIN("runtime/kv/prefix", SP_TEST(a_block_is_found_by_its_whole_past),
             SP_TEST(key_identity_and_salt_keep_names_apart),
             SP_TEST(a_block_stays_findable_after_release_until_it_is_taken_again),
             SP_TEST(the_first_block_of_a_name_keeps_it), SP_TEST(many_names_come_and_go),
             SP_TEST(create_survives_short_memory))
