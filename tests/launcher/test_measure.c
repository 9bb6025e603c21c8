/* Covers launcher/measure.c over loopback: both sides of a measurement, the words about it, and those
 * who are not meant, do not answer, or leave in the middle. */
#include "launcher/build_id.h"
#include "launcher/measure.h"
#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUDGET_NS (2 * SP_NS_PER_S)
#define BULK_NS (20 * SP_NS_PER_MS)

static sp_err err;
static sp_token token;

typedef struct listener {
    sp_measure *m;
    char all[256], here[64]; /* its list, and the loopback one */
    _Atomic bool stop;
    sp_thread thread;
} listener;

static void *listen_main(void *arg) {
    listener *l = arg;
    while (!atomic_load(&l->stop)) {
        struct pollfd p = {.fd = sp_measure_fd(l->m), .events = POLLIN};
        poll(&p, 1, 5);
        sp_measure_look(l->m);
    }
    return NULL;
}
static void start(listener *l) {
    err = (sp_err){0};
    memset(token.bytes, 42, sizeof token.bytes);
    memset(l, 0, sizeof *l);
    CU_ASSERT_EQUAL_FATAL(sp_measure_open(&l->m, &token, l->all, sizeof l->all, &err), SP_OK);
    snprintf(l->here, sizeof l->here, "127.0.0.1%s", strrchr(l->all, ':'));
    CU_ASSERT(sp_measure_fd(l->m) >= 0);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&l->thread, "listener", listen_main, l, &err), SP_OK);
}
static void stop(listener *l) {
    atomic_store(&l->stop, true);
    sp_thread_join(&l->thread);
    sp_measure_close(l->m);
}
static const char *this_node(void) {
    static char node[SP_NODE_BYTES];
    sp_node_id(node);
    return node;
}

static void latency_and_bandwidth_of_loopback_are_measured(void) {
    listener l;
    sp_measure_figure f;
    start(&l);
    for (int i = 0; i < 3; i++) { /* one after another */
        int64_t begin = sp_now_ns();
        CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &token, BUDGET_NS, BULK_NS, &err),
                        SP_OK);
        CU_ASSERT(sp_now_ns() - begin < BUDGET_NS);
        CU_ASSERT(f.rtt_ns > 1000 && f.rtt_ns < SP_NS_PER_S);
        CU_ASSERT(f.bytes_per_s > 1000000 && f.bytes_per_s < INT64_C(1000000000000));
    }
    stop(&l);
}
static void the_list_of_addresses_leads_here(void) {
    listener l;
    sp_measure_figure f;
    start(&l);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.all, this_node(), &token, BUDGET_NS, BULK_NS, &err),
                    SP_OK);
    stop(&l);
}
static void without_time_for_bytes_there_is_only_latency(void) {
    listener l;
    sp_measure_figure f = {.bytes_per_s = 5};
    start(&l);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &token, BUDGET_NS, 0, &err), SP_OK);
    CU_ASSERT(f.rtt_ns > 0);
    CU_ASSERT_EQUAL(f.bytes_per_s, 0);
    stop(&l);
}
static void another_node_at_the_address_is_not_measured(void) {
    listener l;
    sp_measure_figure f = {.rtt_ns = 5};
    start(&l);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, "another", &token, BUDGET_NS, BULK_NS, &err),
                    SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "another node"));
    CU_ASSERT_EQUAL(f.rtt_ns, 5); /* untouched */
    stop(&l);
}
static void a_wrong_token_measures_nothing(void) {
    listener l;
    sp_measure_figure f;
    sp_token other = {.bytes = {1}};
    start(&l);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &other, BUDGET_NS, BULK_NS, &err),
                    SP_E_DENIED);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &token, BUDGET_NS, BULK_NS, &err),
                    SP_OK);
    stop(&l);
}
static void a_closed_port_is_named_without_a_word_of_a_head(void) {
    listener l;
    sp_measure_figure f;
    start(&l);
    stop(&l);
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &token, BUDGET_NS, BULK_NS, &err),
                    SP_E_UNAVAILABLE);
    CU_ASSERT_EQUAL(err.text[0], '\'');
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "refused"));
    CU_ASSERT_PTR_NULL(strstr(err.text, "head"));
}
static void a_port_that_says_nothing_costs_the_budget_at_most(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CU_ASSERT_EQUAL_FATAL(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    CU_ASSERT_EQUAL_FATAL(listen(fd, 4), 0);
    getsockname(fd, (struct sockaddr *)&a, &n);
    char to[64];
    sp_measure_figure f;
    snprintf(to, sizeof to, "127.0.0.1:%d", ntohs(a.sin_port));
    int64_t begin = sp_now_ns();
    CU_ASSERT_EQUAL(sp_measure_way(&f, to, this_node(), &token, 100 * SP_NS_PER_MS, BULK_NS, &err),
                    SP_E_TIMEOUT);
    int64_t took = sp_now_ns() - begin;
    CU_ASSERT(took >= 90 * SP_NS_PER_MS && took < SP_NS_PER_S);
    close(fd);
}

/* A guest of our own: knocks as a peer and says one frame. */
static sp_link *knock(const listener *l, const void *word, uint32_t bytes) {
    sp_link *link = NULL;
    sp_piece piece = {word, bytes};
    CU_ASSERT_EQUAL_FATAL(sp_door_knock(&link, l->here, &token, sp_build_id(), SP_ROLE_PEER,
                                        this_node(), sp_now_ns() + BUDGET_NS, &err),
                          SP_OK);
    CU_ASSERT_EQUAL(sp_link_send(link, SP_FRAME_MEASURE, &piece, 1, sp_now_ns() + BUDGET_NS, &err),
                    SP_OK);
    return link;
}
static void a_peer_that_leaves_in_the_middle_or_babbles_hurts_nobody(void) {
    static const uint64_t bulk[4] = {3, 1000, 0, 0}, unknown[4] = {99, 0, 0, 0};
    static const uint64_t backwards[4] = {3, UINT64_MAX, 0, 0};
    listener l;
    sp_measure_figure f;
    sp_frame frame;
    start(&l);
    sp_link *link = knock(&l, bulk, sizeof bulk);
    CU_ASSERT_EQUAL(sp_link_recv(link, &frame, sp_now_ns() + BUDGET_NS, &err), SP_OK); /* READY */
    CU_ASSERT_EQUAL(send(sp_link_fd(link), "\1\1\1\1", 4, MSG_NOSIGNAL), 4);
    sp_link_close(link);
    const struct {
        const void *word;
        uint32_t bytes;
    } nonsense[] = {{unknown, sizeof unknown}, {backwards, sizeof backwards}, {"x", 1}};
    for (size_t i = 0; i < SP_LEN(nonsense); i++) {
        link = knock(&l, nonsense[i].word, nonsense[i].bytes);
        CU_ASSERT_EQUAL(sp_link_recv(link, &frame, sp_now_ns() + BUDGET_NS, &err), SP_E_CLOSED);
        sp_link_close(link);
    }
    CU_ASSERT_EQUAL(sp_measure_way(&f, l.here, this_node(), &token, BUDGET_NS, BULK_NS, &err),
                    SP_OK);
    stop(&l);
}

/* ---- words ---- */

static void questions_and_answers_go_round(void) {
    sp_buf text;
    sp_measure_ask ask = {.op = SP_MEASURE_WAY, .id = 7, .budget_us = 1000, .bulk_us = 20}, ask2;
    sp_measure_answer a = {.op = SP_MEASURE_WAY,
                           .id = 7,
                           .unix_us = INT64_C(1790000000123456),
                           .rtt_ns = 81000,
                           .bytes_per_s = INT64_C(12500000000),
                           .why = "\"quoted\""},
                      a2;
    snprintf(ask.to, sizeof ask.to, "10.0.0.1:4000,[::1]:2");
    snprintf(ask.node, sizeof ask.node, "n");
    sp_buf_init(&text, 0);
    sp_measure_ask_write(&ask, &text);
    CU_ASSERT_EQUAL_FATAL(sp_measure_ask_read(&ask2, sp_buf_slice(&text), &err), SP_OK);
    CU_ASSERT(memcmp(&ask, &ask2, sizeof ask) == 0);
    sp_buf_clear(&text);
    sp_measure_answer_write(&a, &text);
    CU_ASSERT_EQUAL_FATAL(sp_measure_answer_read(&a2, sp_buf_slice(&text), &err), SP_OK);
    CU_ASSERT(memcmp(&a, &a2, sizeof a) == 0);
    sp_buf_fini(&text);
}
static void words_out_of_range_are_refused_by_their_key(void) {
    static const char *const bad[][2] = {
        {"{\"op\":0,\"id\":0,\"budget_us\":0,\"bulk_us\":0,\"to\":\"\",\"node\":\"\"}", "op"},
        {"{\"op\":2,\"id\":0,\"budget_us\":1000001,\"bulk_us\":0,\"to\":\"\",\"node\":\"\"}",
         "budget_us"},
        {"{\"op\":2,\"id\":-1,\"budget_us\":0,\"bulk_us\":0,\"to\":\"\",\"node\":\"\"}", "id"},
        {"{\"op\":2,\"id\":1,\"budget_us\":0,\"bulk_us\":0,\"to\":1,\"node\":\"\"}", "to"}};
    sp_measure_ask ask = {.id = 9};
    sp_measure_answer a;
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        CU_ASSERT_EQUAL(sp_measure_ask_read(&ask, sp_slice_of(bad[i][0]), &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, bad[i][1]));
    }
    CU_ASSERT_EQUAL(ask.id, 9);
    CU_ASSERT_EQUAL(sp_measure_answer_read(&a, SP_SLICE("{}"), &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_measure_answer_read(&a, SP_SLICE("no"), &err), SP_E_FORMAT);
}

/* What an agent does with each question, over a link of our own. */
static sp_status take(sp_measure **m, const sp_measure_ask *ask, sp_measure_answer *answer) {
    int fds[2];
    sp_link *agent, *head;
    sp_buf text;
    sp_frame f;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&agent, fds[0], NULL, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&head, fds[1], NULL, &err), SP_OK);
    sp_buf_init(&text, 0);
    sp_measure_ask_write(ask, &text);
    sp_status st = sp_measure_take(m, agent, &token, sp_buf_slice(&text), &err);
    if (st == SP_OK) st = sp_link_recv(head, &f, sp_now_ns() + 10 * SP_NS_PER_MS, &err);
    if (st == SP_OK)
        CU_ASSERT_EQUAL(sp_measure_answer_read(answer, (sp_slice){f.payload, f.length}, &err),
                        SP_OK);
    sp_buf_fini(&text);
    sp_link_close(agent);
    sp_link_close(head);
    return st;
}
static void an_agent_tells_the_time_measures_and_stops_listening(void) {
    listener l;
    sp_measure *own;
    char list[256];
    sp_measure_answer a = {0};
    sp_measure_ask ask = {.op = SP_MEASURE_CLOCK, .id = 3};
    start(&l);
    CU_ASSERT_EQUAL_FATAL(sp_measure_open(&own, &token, list, sizeof list, &err), SP_OK);
    int64_t before = sp_unix_us();
    CU_ASSERT_EQUAL(take(&own, &ask, &a), SP_OK);
    CU_ASSERT(a.id == 3 && a.op == SP_MEASURE_CLOCK && a.why[0] == 0);
    CU_ASSERT(a.unix_us >= before && a.unix_us <= sp_unix_us());
    ask = (sp_measure_ask){.op = SP_MEASURE_WAY, .id = 4, .budget_us = 500000, .bulk_us = 5000};
    snprintf(ask.to, sizeof ask.to, "%s", l.here);
    snprintf(ask.node, sizeof ask.node, "%s", this_node());
    CU_ASSERT_EQUAL(take(&own, &ask, &a), SP_OK);
    CU_ASSERT(a.id == 4 && a.rtt_ns > 0 && a.bytes_per_s > 0 && a.why[0] == 0);
    snprintf(ask.node, sizeof ask.node, "elsewhere");
    CU_ASSERT_EQUAL(take(&own, &ask, &a), SP_OK);
    CU_ASSERT(a.rtt_ns == 0 && strstr(a.why, "another node"));
    ask.op = SP_MEASURE_END;
    CU_ASSERT_EQUAL(take(&own, &ask, &a), SP_AGAIN); /* no answer */
    CU_ASSERT_PTR_NULL(own);
    CU_ASSERT_EQUAL(sp_measure_fd(own), -1);
    sp_measure_look(own);
    CU_ASSERT_EQUAL(take(&own, &ask, &a), SP_AGAIN); /* told again: nothing more to close */
    stop(&l);
}

SP_TEST_MAIN("measure", SP_TEST(latency_and_bandwidth_of_loopback_are_measured),
             SP_TEST(the_list_of_addresses_leads_here),
             SP_TEST(without_time_for_bytes_there_is_only_latency),
             SP_TEST(another_node_at_the_address_is_not_measured),
             SP_TEST(a_wrong_token_measures_nothing),
             SP_TEST(a_closed_port_is_named_without_a_word_of_a_head),
             SP_TEST(a_port_that_says_nothing_costs_the_budget_at_most),
             SP_TEST(a_peer_that_leaves_in_the_middle_or_babbles_hurts_nobody),
             SP_TEST(questions_and_answers_go_round),
             SP_TEST(words_out_of_range_are_refused_by_their_key),
             SP_TEST(an_agent_tells_the_time_measures_and_stops_listening))
