/* Covers launcher/words.c: what agents, ranks and the head tell one another comes back as it was
 * said; what makes no sense is refused by its key. */
#include "launcher/words.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sp_err err;
static sp_buf text;

static sp_slice said(void) {
    return sp_buf_slice(&text);
}
static void fresh(void) {
    sp_buf_fini(&text);
    sp_buf_init(&text, 0);
    err = (sp_err){0};
}

static void an_agent_says_what_is_here(void) {
    sp_agent_words in, got;
    sp_agent_words_here(&in);
    CU_ASSERT_EQUAL(in.pid, getpid());
    CU_ASSERT_EQUAL(in.rank, -1);
    CU_ASSERT(in.cores >= 1);
    CU_ASSERT(in.open_files == -1 || in.open_files > 0);
    CU_ASSERT(in.host[0] != 0);
    fresh();
    sp_agent_words_write(&in, &text);
    CU_ASSERT_EQUAL_FATAL(sp_agent_words_read(&got, said(), &err), SP_OK);
    CU_ASSERT_STRING_EQUAL(got.host, in.host);
    CU_ASSERT_STRING_EQUAL(got.node, in.node);
    CU_ASSERT_EQUAL(got.memlock_bytes, in.memlock_bytes);
    CU_ASSERT_EQUAL(got.shm_bytes, in.shm_bytes);
    fresh();
}
static void the_node_is_the_same_text_each_time(void) {
    char a[SP_NODE_BYTES], b[SP_NODE_BYTES];
    sp_node_id(a);
    sp_node_id(b);
    CU_ASSERT_STRING_EQUAL(a, b);
    CU_ASSERT(strlen(a) > 8);
    CU_ASSERT_PTR_NULL(strchr(a, '\n'));
}

static void short_words_go_round(void) {
    fresh();
    sp_rank_words_write(&(sp_rank_words){.agent = 3, .local = 2, .pid = 77}, &text);
    sp_rank_words rank;
    CU_ASSERT_EQUAL(sp_rank_words_read(&rank, said(), &err), SP_OK);
    CU_ASSERT(rank.agent == 3 && rank.local == 2 && rank.pid == 77);
    fresh();
    sp_welcome_write(&(sp_welcome){.agent = 1, .log_level = "debug", .log_json = true}, &text);
    sp_welcome w;
    CU_ASSERT_EQUAL(sp_welcome_read(&w, said(), &err), SP_OK);
    CU_ASSERT(w.agent == 1 && w.ranks == 0 && w.log_json && strcmp(w.log_level, "debug") == 0);
    fresh();
    sp_rank_end_write(&(sp_rank_end){.local = 1, .code = -9}, &text);
    sp_rank_end end;
    CU_ASSERT_EQUAL(sp_rank_end_read(&end, said(), &err), SP_OK);
    CU_ASSERT(end.local == 1 && end.code == -9);
    fresh();
    sp_pod_end_write(&(sp_pod_end){.code = 20, .why = "rank 1: \"gone\"\n"}, &text);
    sp_pod_end pod;
    CU_ASSERT_EQUAL(sp_pod_end_read(&pod, said(), &err), SP_OK);
    CU_ASSERT(pod.code == 20 && strcmp(pod.why, "rank 1: \"gone\"\n") == 0);
    fresh();
}

static void a_wrong_word_is_refused_by_its_key(void) {
    sp_rank_words rank = {.agent = 9};
    sp_welcome w;
    sp_rank_end end;
    sp_pod_end pod;
    fresh();
    CU_ASSERT_EQUAL(
        sp_rank_words_read(&rank, SP_SLICE("{\"agent\":-1,\"local\":0,\"pid\":1}"), &err),
        SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "agent"));
    CU_ASSERT_EQUAL(rank.agent, 9); /* untouched */
    CU_ASSERT_EQUAL(
        sp_rank_words_read(&rank, SP_SLICE("{\"agent\":1,\"local\":0,\"pid\":0}"), &err),
        SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "pid"));
    CU_ASSERT_EQUAL(sp_welcome_read(&w,
                                    SP_SLICE("{\"agent\":1,\"ranks\":513,\"log_level\":\"info\","
                                             "\"log_json\":false}"),
                                    &err),
                    SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "ranks"));
    CU_ASSERT_EQUAL(sp_rank_end_read(&end, SP_SLICE("{\"local\":0,\"code\":256}"), &err),
                    SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_pod_end_read(&pod, SP_SLICE("{\"code\":\"0\",\"why\":\"\"}"), &err),
                    SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_pod_end_read(&pod, SP_SLICE("BYE"), &err), SP_E_FORMAT);
}

static void an_address_goes_round(void) {
    sp_address in = {.share = "superpod-1-ab", .ucx_bytes = SP_UCX_ADDRESS_MAX, .kv = "kvx 1"}, got;
    for (size_t i = 0; i < in.ucx_bytes; i++) in.ucx[i] = (unsigned char)(i * 37);
    in.tp.is = true;
    for (size_t i = 0; i < SP_DEV_GROUP_ID_BYTES; i++) in.tp.id.bytes[i] = (unsigned char)(i * 3);
    fresh();
    sp_address_write(&in, &text);
    CU_ASSERT_EQUAL_FATAL(sp_address_read(&got, said(), &err), SP_OK);
    CU_ASSERT_EQUAL(got.ucx_bytes, in.ucx_bytes);
    CU_ASSERT_EQUAL(memcmp(got.ucx, in.ucx, in.ucx_bytes), 0);
    CU_ASSERT_STRING_EQUAL(got.share, in.share);
    CU_ASSERT_STRING_EQUAL(got.kv, in.kv);
    CU_ASSERT(got.tp.is && !got.pp.is);
    CU_ASSERT_EQUAL(memcmp(&got.tp.id, &in.tp.id, sizeof in.tp.id), 0);
    fresh();
    sp_address_write(&(sp_address){.ucx_bytes = 0}, &text);
    CU_ASSERT_EQUAL_FATAL(sp_address_read(&got, said(), &err), SP_OK);
    CU_ASSERT_EQUAL(got.ucx_bytes, 0);
    CU_ASSERT_STRING_EQUAL(got.share, "");
    CU_ASSERT(!got.tp.is && !got.pp.is);
    fresh();
}
static void refused_address(const char *json, const char *word) {
    sp_address got;
    fresh();
    CU_ASSERT_EQUAL(sp_address_read(&got, sp_slice_of(json), &err), SP_E_INVALID);
    if (!strstr(err.text, word)) fprintf(stderr, "    got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, word));
}
static void an_address_of_other_digits_is_refused(void) {
    refused_address("{\"share\":\"\",\"ucx\":\"abc\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}",
                    "odd number");
    refused_address("{\"share\":\"\",\"ucx\":\"0g\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}",
                    "hexadecimal");
    refused_address("{\"share\":\"\",\"ucx\":\" 1\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}",
                    "hexadecimal");
    refused_address("{\"share\":\"\"}", "5 keys");
    refused_address("{\"share\":\"\",\"ucx\":\"\",\"kv\":\"\",\"tp_id\":\"00\",\"pp_id\":\"\"}",
                    "tp_id: want 256 digits or none, got 2");
    char id[2 * SP_DEV_GROUP_ID_BYTES + 1] = "", *json = NULL;
    memset(id, 'g', sizeof id - 1);
    CU_ASSERT_FATAL(asprintf(&json,
                             "{\"share\":\"\",\"ucx\":\"\",\"kv\":\"\",\"tp_id\":\"\","
                             "\"pp_id\":\"%s\"}",
                             id) > 0);
    refused_address(json, "pp_id: want hexadecimal digits");
    free(json);
    fresh();
    for (int i = 0; i < SP_UCX_ADDRESS_MAX + 1; i++) sp_buf_puts(&text, "00");
    json = NULL;
    CU_ASSERT_FATAL(
        asprintf(&json, "{\"share\":\"\",\"ucx\":\"%s\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}",
                 text.ptr) > 0);
    refused_address(json, "want at most 4096 bytes");
    free(json);
}

static void peers_are_as_many_as_ranks_and_in_order(void) {
    static sp_address got[3]; /* large */
    sp_slice in[3] = {
        SP_SLICE("{\"share\":\"a\",\"ucx\":\"\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}"),
        SP_SLICE("{\"share\":\"\",\"ucx\":\"0102ff\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}"),
        SP_SLICE("{\"share\":\"c\",\"ucx\":\"\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}")};
    fresh();
    sp_peers_write(in, 3, &text);
    CU_ASSERT_EQUAL_FATAL(sp_peers_read(got, 3, said(), &err), SP_OK);
    CU_ASSERT_STRING_EQUAL(got[0].share, "a");
    CU_ASSERT_EQUAL(got[1].ucx_bytes, 3);
    CU_ASSERT_EQUAL(got[1].ucx[2], 0xff);
    CU_ASSERT_STRING_EQUAL(got[2].share, "c");
    CU_ASSERT_EQUAL(sp_peers_read(got, 2, said(), &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "want 2 addresses, got 3"));
    CU_ASSERT_EQUAL(
        sp_peers_read(
            got, 1,
            SP_SLICE("{\"share\":\"\",\"ucx\":\"\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}"),
            &err),
        SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_peers_read(got, 1, SP_SLICE("[1]"), &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(
        sp_peers_read(
            got, 1,
            SP_SLICE("[{\"share\":\"\",\"ucx\":\"zz\",\"kv\":\"\",\"tp_id\":\"\",\"pp_id\":\"\"}]"),
            &err),
        SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_peers_read(got, 1, SP_SLICE("[[[[[[]]]]]]"), &err), SP_E_TOOLONG);
    sp_buf_fini(&text);
}

SP_TEST_MAIN("launcher/words", SP_TEST(an_agent_says_what_is_here),
             SP_TEST(the_node_is_the_same_text_each_time), SP_TEST(short_words_go_round),
             SP_TEST(a_wrong_word_is_refused_by_its_key), SP_TEST(an_address_goes_round),
             SP_TEST(an_address_of_other_digits_is_refused),
             SP_TEST(peers_are_as_many_as_ranks_and_in_order))
