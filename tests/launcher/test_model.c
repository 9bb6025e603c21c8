/* Covers launcher/model.c: what is refused of pools and of sharing before the model is looked at, and
 * what of it is let through (everything else of it is proven end to end). */
#include "launcher/model.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sp_err err;

static sp_status prove(const char *const *argv, sp_model *m) {
    static sp_config c; /* borrowed by nothing afterwards */
    bool help;
    int n = 0;
    while (argv[n]) n++;
    err = (sp_err){0};
    sp_status st = sp_config_parse(&c, SP_CMD_SERVE, n, (char **)(uintptr_t)argv, &help, &err);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    st = sp_model_prove(m, &c, &err);
    sp_config_fini(&c);
    return st;
}
#define PROVE(m, ...) prove((const char *const[]){"serve", __VA_ARGS__, NULL}, (m))

static void expect(sp_status got, sp_status want, const char *words) {
    CU_ASSERT_EQUAL(got, want);
    if (!strstr(err.text, words)) fprintf(stderr, "    got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
}

static void pools_share_blocks_only_where_their_bits_are_equal(void) {
    sp_model m;
    sp_tiny t = sp_tiny_default();
    t.n_heads = 12;
    t.n_kv_heads = 6;
    t.hidden = 96;
    char *dir = sp_tiny_create(&t);
    const char *const pools[][2] = {{"name=a,tp=1", "name=b,tp=2"},
                                    {"name=a,tp=3", "name=b,tp=3,pp=2"}};
    for (size_t i = 0; i < SP_LEN(pools); i++) {
        const sp_status st = PROVE(&m, dir, "--pool", pools[i][0], "--pool", pools[i][1]);
        if (st != SP_OK) fprintf(stderr, "    got: %s\n", err.text);
        CU_ASSERT_EQUAL(st, SP_OK);
        if (st == SP_OK) sp_model_fini(&m);
    }
    sp_model m2;
    expect(PROVE(&m2, dir, "--pool", "name=a,tp=3", "--pool", "name=b,tp=1"), SP_E_INVALID,
           "pool 'a': tp 3");
    sp_tiny_remove(dir);
}

static void blocks_that_could_not_be_found_are_not_shared(void) {
    sp_model m;
    expect(PROVE(&m, "/none", "--kv-secret-file", "f", "--null-model"), SP_E_UNSUPPORTED,
           "'kv-secret-file': a rehearsal");
    expect(PROVE(&m, "/none", "--kv-secret-file", "f", "--no-enable-prefix-caching"),
           SP_E_UNSUPPORTED, "'enable-prefix-caching'");
    /* Without the secret both are let through: it is the directory that is not there. */
    expect(PROVE(&m, "/none", "--no-enable-prefix-caching"), SP_E_NOTFOUND, "/none");
}

static void the_fingerprint_is_of_the_model_and_not_of_its_place(void) {
    sp_model a, b, c;
    sp_tiny t = sp_tiny_default();
    char *one = sp_tiny_create(&t), *same = sp_tiny_create(&t);
    t.seed++;
    char *other = sp_tiny_create(&t);
    CU_ASSERT_EQUAL_FATAL(PROVE(&a, one), SP_OK);
    CU_ASSERT_EQUAL_FATAL(PROVE(&b, same), SP_OK);
    CU_ASSERT_EQUAL_FATAL(PROVE(&c, other), SP_OK);
    CU_ASSERT_EQUAL(memcmp(a.fingerprint, b.fingerprint, sizeof a.fingerprint), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(a.fingerprint, c.fingerprint, sizeof a.fingerprint), 0);
    sp_model_fini(&a);
    sp_model_fini(&b);
    sp_model_fini(&c);
    sp_tiny_remove(one);
    sp_tiny_remove(same);
    sp_tiny_remove(other);
}

SP_TEST_MAIN("launcher/model", SP_TEST(pools_share_blocks_only_where_their_bits_are_equal),
             SP_TEST(blocks_that_could_not_be_found_are_not_shared),
             SP_TEST(the_fingerprint_is_of_the_model_and_not_of_its_place))
