/* Covers launcher/form.c: a FORM goes round, and a wrong one is refused by key. */
#include "launcher/form.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static const sp_form FORM = {.model_dir = "/models/\"a\" b",
                             .backend = "cpu",
                             .kv_dtype = "F32",
                             .log_level = "info",
                             .threads = 2,
                             .block_tokens = 16,
                             .n_blocks = 100,
                             .max_model_len = 2048,
                             .max_num_seqs = 64,
                             .max_batched_tokens = 512,
                             .max_step_rows = 64,
                             .pin = true};

static void a_form_comes_back_as_it_was_written(void) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_form_write(&FORM, &b);
    sp_form got;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_form_read(&got, sp_buf_slice(&b), &err), SP_OK);
    CU_ASSERT_EQUAL(memcmp(&got, &FORM, sizeof got), 0);
    sp_buf_fini(&b);
}

/* Replaces `from` by `to` in a good form and wants `words`. */
static void refuse(const char *from, const char *to, const char *words) {
    sp_buf good, bad;
    sp_buf_init(&good, 0);
    sp_buf_init(&bad, 0);
    sp_form_write(&FORM, &good);
    const char *at = strstr(good.ptr, from);
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    sp_buf_put(&bad, good.ptr, (size_t)(at - good.ptr));
    sp_buf_puts(&bad, to);
    sp_buf_puts(&bad, at + strlen(from));
    sp_form got;
    sp_err err = {0};
    CU_ASSERT_NOT_EQUAL(sp_form_read(&got, sp_buf_slice(&bad), &err), SP_OK);
    if (!strstr(err.text, words)) fprintf(stderr, "got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    sp_buf_fini(&good);
    sp_buf_fini(&bad);
}

static void a_wrong_form_is_refused_by_its_key(void) {
    refuse("\"threads\":2", "\"threads\":\"2\"", "threads: want an integer");
    refuse("\"threads\":2", "\"threads\":-1", "threads: want an integer from 0");
    refuse("\"threads\":2", "\"thread\":2", "threads: missing");
    refuse("\"threads\":2", "\"threads\":2,\"more\":1", "want an object of");
    refuse("\"backend\":\"cpu\"", "\"backend\":\"0123456789012345678901234567890123456789\"",
           "backend: want at most 31 bytes");
    refuse("\"pin\":true", "\"pin\":1", "pin: want a boolean");
    refuse("}", "", "JSON ends");
}

SP_TEST_MAIN("launcher/form", SP_TEST(a_form_comes_back_as_it_was_written),
             SP_TEST(a_wrong_form_is_refused_by_its_key))
