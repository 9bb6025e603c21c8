/* Covers launcher/config.c and config_yaml.c: spellings, strength, ranges and words of refusal. */
#include "launcher/config.h"
#include "tests/harness.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sp_err err;
static bool help;

static sp_status parse(sp_config *c, sp_command command, const char *const *argv) {
    int n = 0;
    while (argv[n]) n++;
    err = (sp_err){0};
    /* The parser writes to none of them; main() gives it plain char pointers. */
    return sp_config_parse(c, command, n, (char **)(uintptr_t)argv, &help, &err);
}
#define PARSE(c, command, ...) parse((c), (command), (const char *const[]){__VA_ARGS__, NULL})

static void flags_may_be_spelled_in_every_usual_way(void) {
    sp_config c;
    CU_ASSERT_EQUAL(
        PARSE(&c, SP_CMD_SERVE, "serve", "--model", "m", "--block-size=32", "--max_num_seqs", "7"),
        SP_OK);
    CU_ASSERT_STRING_EQUAL(c.model, "m");
    CU_ASSERT_EQUAL(c.block_size, 32);
    CU_ASSERT_EQUAL(c.max_num_seqs, 7);
    CU_ASSERT_EQUAL(
        PARSE(&c, SP_CMD_RUN, "run", "-m", "m", "-t", "2", "-c", "64", "-n", "5", "hello there"),
        SP_OK);
    CU_ASSERT_EQUAL(c.threads, 2);
    CU_ASSERT_EQUAL(c.max_model_len, 64);
    CU_ASSERT_EQUAL(c.max_tokens, 5);
    CU_ASSERT_STRING_EQUAL(c.prompt, "hello there");
    CU_ASSERT_EQUAL(
        PARSE(&c, SP_CMD_SERVE, "serve", "m", "--no-access-log", "--enable-prefix-caching=false"),
        SP_OK);
    CU_ASSERT_FALSE(c.access_log);
    CU_ASSERT_FALSE(c.prefix_caching);
}

static void a_list_takes_repeats_and_neighbours_and_flags_replace_the_variable(void) {
    sp_config c;
    setenv("SUPERPOD_API_KEY", "a,b", 1);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m"), SP_OK);
    CU_ASSERT_EQUAL_FATAL(c.api_key.n, 2);
    CU_ASSERT_STRING_EQUAL(c.api_key.at[1], "b");
    sp_config_fini(&c);
    CU_ASSERT_EQUAL(
        PARSE(&c, SP_CMD_SERVE, "serve", "m", "--api-key", "x", "--served-model-name", "p", "q"),
        SP_OK);
    CU_ASSERT_EQUAL_FATAL(c.api_key.n, 1);
    CU_ASSERT_STRING_EQUAL(c.api_key.at[0], "x");
    CU_ASSERT_EQUAL_FATAL(c.served_model_name.n, 2);
    CU_ASSERT_STRING_EQUAL(c.served_model_name.at[1], "q");
    sp_config_fini(&c);
    unsetenv("SUPERPOD_API_KEY");
}

static void a_file_is_weaker_than_a_variable_and_a_variable_than_a_flag(void) {
    char path[] = "/tmp/sp_config_XXXXXX";
    int fd = mkstemp(path);
    FILE *f = fdopen(fd, "w");
    fputs("model: filed\nblock-size: 8\nmax_num_seqs: 8\nport: 8\nserved-model-name: [one, two]\n",
          f);
    fclose(f);
    setenv("SUPERPOD_MAX_NUM_SEQS", "9", 1);
    setenv("SUPERPOD_PORT", "9", 1);
    sp_config c;
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "--config", path, "--port", "10"), SP_OK);
    CU_ASSERT_STRING_EQUAL(c.model, "filed");
    CU_ASSERT_EQUAL(c.block_size, 8);
    CU_ASSERT_EQUAL(c.max_num_seqs, 9);
    CU_ASSERT_EQUAL(c.port, 10);
    CU_ASSERT_EQUAL(c.served_model_name.n, 2);
    sp_config_fini(&c);
    unsetenv("SUPERPOD_MAX_NUM_SEQS");
    unsetenv("SUPERPOD_PORT");
    unlink(path);
}

static void refuse(const char *const *argv, const char *words) {
    sp_config c;
    CU_ASSERT_EQUAL(parse(&c, SP_CMD_SERVE, argv), SP_E_INVALID);
    if (!strstr(err.text, words)) fprintf(stderr, "got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
}

static void what_is_refused_is_named_with_what_was_wanted(void) {
    refuse((const char *const[]){"serve", NULL}, "no model");
    refuse((const char *const[]){"serve", "m", "--blok-size", "8", NULL},
           "did you mean '--block-size'");
    refuse((const char *const[]){"serve", "m", "--block-size", "x", NULL},
           "want an integer, got 'x'");
    refuse((const char *const[]){"serve", "m", "--block-size", "7", NULL}, "want 8 to 128, got 7");
    refuse((const char *const[]){"serve", "m", "--port", NULL}, "wants a value");
    refuse((const char *const[]){"serve", "m", "--access-log=maybe", NULL}, "want true or false");
    refuse((const char *const[]){"serve", "m", "second", NULL}, "'second'");
    refuse((const char *const[]){"serve", "m", "--prompt", "hi", NULL},
           "unknown option '--prompt'");
    refuse((const char *const[]){"serve", "m", "--max-body-bytes", "4X", NULL}, "want bytes");
}

static void refuse_file(const char *text, const char *words) {
    char path[] = "/tmp/sp_config_XXXXXX";
    int fd = mkstemp(path);
    CU_ASSERT_EQUAL(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    sp_config c;
    CU_ASSERT_NOT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--config", path), SP_OK);
    if (!strstr(err.text, words)) fprintf(stderr, "got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    unlink(path);
}

static void a_bad_file_is_refused_with_its_line(void) {
    refuse_file("model: m\nbogus: 1\n", "line 2: unknown option 'bogus'");
    refuse_file("a: [1\n", "line 2");
    refuse_file("- 1\n- 2\n", "want a mapping");
    refuse_file("port: {a: 1}\n", "want a plain value");
    refuse_file("port: [1, 2]\n", "want one value");
    refuse_file("port: 99999\n", "want 0 to 65535");
}

static void help_is_seen_before_anything_is_wanted(void) {
    sp_config c;
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "--help"), SP_OK);
    CU_ASSERT(help);
}

static void the_reference_file_in_the_tree_is_what_the_table_gives(void) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    sp_config_reference(f);
    fclose(f);
    char *kept = sp_test_read("configs/reference.yaml", NULL);
    CU_ASSERT_STRING_EQUAL(text, kept);
    free(kept);
    free(text);
}

static void sharing_with_other_pods_is_off_and_its_options_are_checked(void) {
    sp_config c;
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m"), SP_OK);
    CU_ASSERT_PTR_NULL(c.kv_secret_file);
    CU_ASSERT_STRING_EQUAL(c.kv_load_failure_policy, "recompute");
    CU_ASSERT_EQUAL(c.kv_lease_s, 30);
    sp_config_fini(&c);
    setenv("SUPERPOD_KV_SECRET_FILE", "/run/secret", 1);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--kv-load-failure-policy", "fail",
                          "--kv-lease-seconds=3600"),
                    SP_OK);
    unsetenv("SUPERPOD_KV_SECRET_FILE");
    CU_ASSERT_STRING_EQUAL(c.kv_secret_file, "/run/secret");
    CU_ASSERT_STRING_EQUAL(c.kv_load_failure_policy, "fail");
    CU_ASSERT_EQUAL(c.kv_lease_s, 3600);
    sp_config_fini(&c);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--kv-load-failure-policy", "retry"),
                    SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text,
                           "option 'kv-load-failure-policy': want recompute or fail, got 'retry'");
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--kv-lease-seconds", "0"), SP_E_INVALID);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--kv-lease-seconds", "3601"),
                    SP_E_INVALID);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_RUN, "run", "m", "--kv-secret-file", "x"), SP_E_INVALID);
}

static void numerics_are_exact_unless_said_and_have_two_words(void) {
    sp_config c;
    char path[] = "/tmp/sp_config_XXXXXX";
    int fd = mkstemp(path);
    CU_ASSERT_EQUAL(write(fd, "numerics: fast\n", 15), 15);
    close(fd);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_RUN, "run", "-m", "m"), SP_OK);
    CU_ASSERT_STRING_EQUAL(c.numerics, "exact");
    sp_config_fini(&c);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--config", path), SP_OK);
    CU_ASSERT_STRING_EQUAL(c.numerics, "fast");
    sp_config_fini(&c);
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_PLAN, "plan", "-m", "m", "--config", path), SP_OK);
    sp_config_fini(&c); /* one file for both */
    CU_ASSERT_EQUAL(PARSE(&c, SP_CMD_SERVE, "serve", "m", "--config", path, "--numerics=quick"),
                    SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.text, "option 'numerics': want exact or fast, got 'quick'");
    unlink(path);
}

SP_TEST_MAIN("launcher/config", SP_TEST(flags_may_be_spelled_in_every_usual_way),
             SP_TEST(numerics_are_exact_unless_said_and_have_two_words),
             SP_TEST(a_list_takes_repeats_and_neighbours_and_flags_replace_the_variable),
             SP_TEST(a_file_is_weaker_than_a_variable_and_a_variable_than_a_flag),
             SP_TEST(what_is_refused_is_named_with_what_was_wanted),
             SP_TEST(a_bad_file_is_refused_with_its_line),
             SP_TEST(sharing_with_other_pods_is_off_and_its_options_are_checked),
             SP_TEST(help_is_seen_before_anything_is_wanted),
             SP_TEST(the_reference_file_in_the_tree_is_what_the_table_gives))
