/* Covers launcher/bench_trace.c: what is read of a recorded load, how it is scaled, what is refused. */
#include "launcher/bench_trace.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static void put(const char *text) {
    snprintf(path, sizeof path, "/tmp/sp-trace-XXXXXX");
    int fd = mkstemp(path);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static sp_status open_text(sp_trace **out, const char *text, sp_trace_config c, sp_err *err) {
    put(text);
    c.path = path;
    if (c.n_rows == 0) c.n_rows = 1000;
    if (c.block_tokens == 0) c.block_tokens = SP_TRACE_BLOCK_TOKENS;
    sp_status st = sp_trace_open(out, &c, err);
    unlink(path);
    return st;
}

static sp_trace *must_open(const char *text, sp_trace_config c) {
    sp_trace *t = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(open_text(&t, text, c, &err), SP_OK);
    return t;
}

static const char three[] =
    "{\"timestamp\": 1000, \"input_length\": 1100, \"output_length\": 64, \"hash_ids\": [7, 8, "
    "9]}\n"
    "{\"timestamp\": 1000, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": [7]}\r\n"
    "\n"
    "{\"timestamp\": 4000, \"input_length\": 1, \"output_length\": 0, \"hash_ids\": [10]}";

static void requests_are_read_as_they_were_recorded(void) {
    sp_trace *t = must_open(three, (sp_trace_config){0});
    CU_ASSERT_EQUAL_FATAL(t->n, 3);
    CU_ASSERT_EQUAL(t->rows[0].at_ns, 0);
    CU_ASSERT_EQUAL(t->rows[1].at_ns, 0);
    CU_ASSERT_EQUAL(t->rows[2].at_ns, 3 * SP_NS_PER_S);
    CU_ASSERT_EQUAL(t->rows[0].n_prompt, 1100);
    CU_ASSERT_EQUAL(t->rows[0].n_output, 64);
    CU_ASSERT_EQUAL(t->rows[2].n_output, 1); /* a request without any output is none */
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[0], 511), 7);
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[0], 512), 8);
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[0], 1099), 9);
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[1], 511), 7);
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[2], 0), 10);
    sp_trace_free(t);
}

static void a_scale_shrinks_all_lengths_and_keeps_what_is_shared(void) {
    sp_trace *t = must_open(three, (sp_trace_config){.block_tokens = 16});
    CU_ASSERT_EQUAL(t->rows[0].n_prompt, 35); /* 1100 / 32, upwards */
    CU_ASSERT_EQUAL(t->rows[0].n_output, 2);
    CU_ASSERT_EQUAL(t->rows[1].n_prompt, 16);
    CU_ASSERT_EQUAL(t->rows[2].n_prompt, 1);
    for (int32_t i = 0; i < 16; i++)
        CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[0], i), sp_trace_id(t, &t->rows[1], i));
    CU_ASSERT_EQUAL(sp_trace_id(t, &t->rows[0], 34), 9);
    sp_trace_free(t);
    t = must_open(three, (sp_trace_config){.block_tokens = 16, .output_scale = 0.5});
    CU_ASSERT_EQUAL(t->rows[0].n_output, 32);
    CU_ASSERT_EQUAL(t->rows[1].n_output, 1);
    sp_trace_free(t);
}

static void what_does_not_fit_the_model_is_cut_from_the_prompt(void) {
    sp_trace *t = must_open(three, (sp_trace_config){.max_tokens = 600});
    CU_ASSERT_EQUAL(t->rows[0].n_prompt, 536);
    CU_ASSERT_EQUAL(t->rows[0].n_output, 64);
    CU_ASSERT_EQUAL(t->rows[1].n_prompt, 512);
    sp_trace_free(t);
    t = must_open(three, (sp_trace_config){.max_tokens = 2});
    for (int i = 0; i < 3; i++) CU_ASSERT(t->rows[i].n_prompt == 1 && t->rows[i].n_output == 1);
    sp_trace_free(t);
}

static void a_rate_stretches_the_pattern_of_arrivals(void) {
    sp_trace *t = must_open(three, (sp_trace_config){.rate = 6});
    CU_ASSERT_EQUAL(t->rows[1].at_ns, 0);
    CU_ASSERT_EQUAL(t->rows[2].at_ns, SP_NS_PER_S / 2); /* three at 6 a second */
    sp_trace_free(t);
    /* All at once stay so. */
    t = must_open("{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\n",
                  (sp_trace_config){.rate = 6});
    CU_ASSERT_EQUAL(t->rows[0].at_ns, 0);
    sp_trace_free(t);
}

static void only_the_first_rows_are_read_when_asked(void) {
    sp_trace *t = must_open(three, (sp_trace_config){.n_rows = 2});
    CU_ASSERT_EQUAL(t->n, 2);
    sp_trace_free(t);
    /* What stands after them is not looked at. */
    char text[512];
    snprintf(text, sizeof text, "%.*s\nnonsense\n", (int)(strchr(three, '\n') - three), three);
    t = must_open(text, (sp_trace_config){.n_rows = 1});
    CU_ASSERT_EQUAL(t->n, 1);
    sp_trace_free(t);
}

static void a_line_that_is_no_request_is_refused_with_its_number(void) {
    static const char good[] =
        "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\n";
    static const char *const wrong[] = {
        "nonsense",
        "[]",
        "{}",
        "{\"timestamp\":5}",
        "{\"timestamp\":5,\"input_length\":1,\"output_length\":1}",
        "{\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":4,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":5,\"input_length\":0,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":5,\"input_length\":-1,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":5,\"input_length\":513,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[\"a\"]}",
        "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1.5]}",
        "{\"timestamp\":5,\"input_length\":1e99,\"output_length\":1,\"hash_ids\":[1]}",
        "{\"timestamp\":5,\"input_length\":99999999,\"output_length\":1,\"hash_ids\":[1]}"};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        char text[512];
        sp_trace *t = NULL;
        sp_err err = {0};
        snprintf(text, sizeof text, "%s%s\n", good, wrong[i]);
        CU_ASSERT(open_text(&t, text, (sp_trace_config){0}, &err) < 0);
        CU_ASSERT_PTR_NULL(t);
        if (!strstr(err.text, "line 2")) fprintf(stderr, "%s: %s\n", wrong[i], err.text);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "line 2"));
    }
}

static void a_file_without_requests_or_none_at_all_is_refused(void) {
    static const char *const empty[] = {"", "\n\n"};
    sp_trace *t = NULL;
    sp_err err = {0};
    for (size_t i = 0; i < SP_LEN(empty); i++)
        CU_ASSERT_EQUAL(open_text(&t, empty[i], (sp_trace_config){0}, &err), SP_E_FORMAT);
    sp_trace_config c = {.path = "/nonexistent/trace", .n_rows = 1, .block_tokens = 1};
    CU_ASSERT_EQUAL(sp_trace_open(&t, &c, &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NULL(t);
}

static void short_memory_is_told_and_nothing_is_lost(void) {
    int64_t k = 1;
    for (;; k++) {
        sp_trace *t = NULL;
        sp_err err = {0};
        sp_mem_fail_at(k);
        sp_status st = open_text(&t, three, (sp_trace_config){0}, &err);
        sp_mem_fail_at(0);
        sp_trace_free(t);
        if (st == SP_OK) break;
        CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        CU_ASSERT_FATAL(k < 100);
    }
    CU_ASSERT(k > 2);
}

static void a_real_trace_shares_what_its_ids_share(void) {
    const char *fixtures = sp_test_fixtures();
    char at[512];
    if (!fixtures) SP_SKIP("no fixtures");
    snprintf(at, sizeof at, "%s/traces/mooncake/conversation_trace.jsonl", fixtures);
    sp_trace_config c = {.path = at, .n_rows = 200, .block_tokens = 32, .max_tokens = 2048};
    sp_trace *t;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_trace_open(&t, &c, &err), SP_OK);
    CU_ASSERT_EQUAL(t->n, 200);
    int n_same = 0;
    for (int32_t i = 0; i < t->n; i++) {
        const sp_trace_row *row = &t->rows[i];
        CU_ASSERT(row->n_prompt >= 1 && row->n_output >= 1 &&
                  row->n_prompt + row->n_output <= 2048);
        CU_ASSERT(i == 0 || row->at_ns >= t->rows[i - 1].at_ns);
        n_same += sp_trace_id(t, row, 0) == sp_trace_id(t, &t->rows[0], 0);
    }
    CU_ASSERT(n_same > 100); /* they all begin alike */
    sp_trace_free(t);
}

SP_TEST_MAIN("launcher/bench_trace", SP_TEST(requests_are_read_as_they_were_recorded),
             SP_TEST(a_scale_shrinks_all_lengths_and_keeps_what_is_shared),
             SP_TEST(what_does_not_fit_the_model_is_cut_from_the_prompt),
             SP_TEST(a_rate_stretches_the_pattern_of_arrivals),
             SP_TEST(only_the_first_rows_are_read_when_asked),
             SP_TEST(a_line_that_is_no_request_is_refused_with_its_number),
             SP_TEST(a_file_without_requests_or_none_at_all_is_refused),
             SP_TEST(short_memory_is_told_and_nothing_is_lost),
             SP_TEST(a_real_trace_shares_what_its_ids_share))
