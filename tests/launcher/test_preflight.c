/* Covers launcher/preflight.c and preflight_judge.c: who is measured with whom, where a node is found,
 * what is said of made-up figures; and a whole preflight with agents that answer as they please. */
#include "launcher/measure.h"
#include "launcher/preflight.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static sp_err err;

/* ---- pairs ---- */

#define PAIRS_MAX (SP_POD_AGENTS_MAX * SP_PREFLIGHT_ROUNDS_MAX)

static sp_preflight_link *pairs_of(int32_t n_nodes, int32_t *n, int32_t *n_rounds) {
    sp_preflight_link *links = sp_alloc(PAIRS_MAX * sizeof *links);
    *n = sp_preflight_pairs(n_nodes, links, PAIRS_MAX, n_rounds);
    return links;
}

static void check_rounds(int32_t n_nodes) {
    int32_t n, n_rounds;
    sp_preflight_link *links = pairs_of(n_nodes, &n, &n_rounds);
    CU_ASSERT(n_rounds <= SP_PREFLIGHT_ROUNDS_MAX);
    bool *busy = sp_alloc((size_t)n_nodes * SP_PREFLIGHT_ROUNDS_MAX);
    bool *seen = sp_alloc((size_t)n_nodes * (size_t)n_nodes);
    for (int32_t i = 0; i < n; i++) {
        int32_t a = links[i].from, b = links[i].to, r = links[i].round;
        CU_ASSERT_FATAL(a >= 0 && a < b && b < n_nodes && r >= 0 && r < n_rounds);
        CU_ASSERT_FALSE(busy[r * n_nodes + a] || busy[r * n_nodes + b]);
        busy[r * n_nodes + a] = busy[r * n_nodes + b] = true;
        CU_ASSERT_FALSE(seen[a * n_nodes + b]);
        seen[a * n_nodes + b] = true;
    }
    for (int32_t a = 0; a < n_nodes; a++)
        for (int32_t b = a + 1; b < n_nodes; b++) {
            bool ring = b == a + 1 || (a == 0 && b == n_nodes - 1);
            if (n_nodes <= SP_PREFLIGHT_PAIRS_NODES_MAX || ring) CU_ASSERT(seen[a * n_nodes + b]);
        }
    sp_free(seen);
    sp_free(busy);
    sp_free(links);
}
static void no_node_is_in_two_pairs_of_a_round_and_all_are_measured(void) {
    for (int32_t n = 2; n <= 40; n++) check_rounds(n);
    check_rounds(127);
    check_rounds(SP_POD_AGENTS_MAX);
}
static void up_to_eight_nodes_every_pair_is_measured(void) {
    for (int32_t nodes = 2; nodes <= SP_PREFLIGHT_PAIRS_NODES_MAX; nodes++) {
        int32_t n, n_rounds;
        sp_free(pairs_of(nodes, &n, &n_rounds));
        CU_ASSERT_EQUAL(n, nodes * (nodes - 1) / 2);
        CU_ASSERT_EQUAL(n_rounds, nodes % 2 ? nodes : nodes - 1);
    }
}
static void one_node_has_no_pair_and_an_array_is_never_overrun(void) {
    sp_preflight_link two[3] = {{0}};
    int32_t n_rounds;
    CU_ASSERT_EQUAL(sp_preflight_pairs(1, two, 2, &n_rounds), 0);
    CU_ASSERT_EQUAL(n_rounds, 0);
    CU_ASSERT_EQUAL(sp_preflight_pairs(8, two, 2, &n_rounds), 2);
    CU_ASSERT_EQUAL(two[2].to, 0);
}

/* ---- where ---- */

static void a_node_is_looked_for_where_it_came_from_first(void) {
    char out[SP_MEASURE_TO_BYTES];
    sp_pod_agent a = {.address = "10.0.0.5:51234"};
    snprintf(a.words.measure, sizeof a.words.measure,
             "192.168.1.5:4100,10.0.0.5:4100,[fd00::5]:4100,172.17.0.1:4100,127.0.0.1:4100");
    CU_ASSERT(sp_preflight_where(&a, out, sizeof out));
    CU_ASSERT_STRING_EQUAL(out, "10.0.0.5:4100,192.168.1.5:4100,[fd00::5]:4100");
    snprintf(a.address, sizeof a.address, "[fd00::9]:51234");
    snprintf(a.words.measure, sizeof a.words.measure, "127.0.0.1:4100,[::1]:4100");
    CU_ASSERT(sp_preflight_where(&a, out, sizeof out));
    CU_ASSERT_STRING_EQUAL(out, "[fd00::9]:4100");
    CU_ASSERT(sp_preflight_where(&a, out, 4)); /* cut, never overrun */
    a.words.measure[0] = 0;
    CU_ASSERT_FALSE(sp_preflight_where(&a, out, sizeof out));
    a.address[0] = 0;
    snprintf(a.words.measure, sizeof a.words.measure, "10.1.1.1:9");
    CU_ASSERT(sp_preflight_where(&a, out, sizeof out));
    CU_ASSERT_STRING_EQUAL(out, "10.1.1.1:9");
}

/* ---- verdicts ---- */

static sp_roster roster;
static sp_preflight_link links[6];
static int64_t clocks[4];
static sp_preflight figures;
static sp_preflight_remarks remarks;

/* Four good nodes h0..h3, all pairs. */
static void make_good(void) {
    int32_t n_rounds;
    memset(&roster, 0, sizeof roster);
    roster.n_agents = roster.n_nodes = 4;
    for (int32_t i = 0; i < 4; i++) {
        sp_agent_words *w = &roster.agents[i].words;
        roster.agents[i].node = i;
        *w = (sp_agent_words){
            .cores = 8, .memlock_bytes = -1, .shm_bytes = 1 << 30, .open_files = 1024};
        snprintf(w->host, sizeof w->host, "h%d", (int)i);
        clocks[i] = i * 1000;
    }
    figures = (sp_preflight){
        .n_nodes = 4, .n_agents = 4, .n_links = 6, .links = links, .clock_us = clocks};
    CU_ASSERT_EQUAL_FATAL(sp_preflight_pairs(4, links, 6, &n_rounds), 6);
    for (int i = 0; i < 6; i++) {
        links[i].measured = true;
        links[i].rtt_ns = 60000;
        links[i].bytes_per_s = 900000000;
    }
}
static sp_preflight_link *link_of(int32_t from, int32_t to) {
    for (int i = 0; i < 6; i++)
        if (links[i].from == from && links[i].to == to) return &links[i];
    return NULL;
}
static void expect_good(void) {
    sp_preflight_judge(&figures, &roster, &remarks);
    if (remarks.n) printf("\n    %s\n", remarks.at[0]);
    CU_ASSERT_EQUAL(remarks.n, 0);
}
static void expect_one(const char *a, const char *b, const char *c) {
    sp_preflight_judge(&figures, &roster, &remarks);
    CU_ASSERT_EQUAL(remarks.n, 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(remarks.at[0], a));
    CU_ASSERT_PTR_NOT_NULL(strstr(remarks.at[0], b));
    CU_ASSERT_PTR_NOT_NULL(strstr(remarks.at[0], c));
}

static void good_figures_get_no_remark(void) {
    make_good();
    expect_good();
    link_of(1, 2)->bytes_per_s = 300000000; /* a third of the others */
    link_of(0, 3)->rtt_ns = 900000;         /* farther, but near */
    expect_good();
    link_of(2, 3)->measured = false; /* there was no time for it */
    link_of(2, 3)->why[0] = 0;
    expect_good();
}
static void a_pair_that_cannot_connect_is_named_by_both_hosts(void) {
    make_good();
    sp_preflight_link *l = link_of(1, 3);
    l->measured = false;
    snprintf(l->why, sizeof l->why, "'10.0.0.3:4100' No route to host");
    expect_one("'h1' and 'h3' cannot connect", "10.0.0.3:4100", "No route");
}
static void a_link_that_differs_from_the_others_is_named(void) {
    make_good();
    link_of(1, 2)->bytes_per_s = 100000000;
    expect_one("'h1' to 'h2'", "slower than the others", "0.900");
    make_good();
    link_of(0, 2)->rtt_ns = 5000000;
    expect_one("'h0' to 'h2'", "farther than the others", "5000 us");
    make_good();
    link_of(0, 2)->bytes_per_s = 1000000;
    expect_one("'h0' to 'h2'", "is slow", "0.0010");
}
static void two_nodes_have_no_others_to_differ_from(void) {
    make_good();
    roster.n_agents = roster.n_nodes = figures.n_nodes = figures.n_agents = 2;
    figures.n_links = 1;
    links[0] = (sp_preflight_link){
        .from = 0, .to = 1, .measured = true, .rtt_ns = 40000000, .bytes_per_s = 20000000};
    expect_good();
    links[0].bytes_per_s = 1000;
    expect_one("'h0'", "'h1'", "is slow");
}
static void a_clock_more_than_a_second_off_is_named(void) {
    make_good();
    clocks[2] = 1000000;
    clocks[1] = SP_PREFLIGHT_CLOCK_NONE;
    expect_good();
    clocks[2] = 12300000;
    expect_one("'h2'", "12.3 s ahead of", "logs");
    clocks[2] = -3600000000;
    expect_one("'h2'", "3600.0 s behind", "logs");
}
static void limits_that_are_too_low_are_named(void) {
    make_good();
    roster.agents[3].words.open_files = 256;
    expect_one("'h3'", "256 files", "1024");
    make_good();
    roster.agents[1].words.memlock_bytes = 8 << 20;
    expect_good(); /* no RDMA: nobody locks memory */
    roster.agents[1].words.rdma = 2;
    expect_one("'h1'", "8.0 MiB", "1.0 GiB");
    roster.agents[1].words.memlock_bytes = (int64_t)2 << 30;
    expect_good();
}
static void agents_of_one_node_are_looked_at_once(void) {
    make_good();
    for (int i = 0; i < 4; i++) {
        roster.agents[i].node = 0;
        roster.agents[i].words.open_files = 100;
    }
    roster.n_nodes = figures.n_nodes = 1;
    figures.n_links = 0;
    expect_one("'h0'", "100 files", "1024");
}
static void remarks_beyond_the_array_are_counted(void) {
    static sp_preflight_link many[40];
    make_good();
    for (int i = 0; i < 40; i++) {
        many[i] = (sp_preflight_link){.from = 0, .to = 1 + i % 3};
        snprintf(many[i].why, sizeof many[i].why, "%0150d", i);
    }
    figures.links = many;
    figures.n_links = 40;
    sp_preflight_judge(&figures, &roster, &remarks);
    CU_ASSERT_EQUAL(remarks.n, 40);
    CU_ASSERT(strlen(remarks.at[15]) < sizeof remarks.at[15]);
}

static void modes_are_known_by_their_words(void) {
    CU_ASSERT_EQUAL(sp_preflight_mode_of("off"), SP_PREFLIGHT_OFF);
    CU_ASSERT_EQUAL(sp_preflight_mode_of("strict"), SP_PREFLIGHT_STRICT);
    CU_ASSERT_EQUAL(sp_preflight_mode_of("warn"), SP_PREFLIGHT_WARN);
}

/* ---- the whole, with agents that are threads ---- */

typedef enum manner {
    HONEST,
    SILENT,
    SAYS_A_RANK_ENDED,
    LEAVES,
    BABBLES
} manner;
typedef struct fake_agent {
    sp_link *link;
    sp_token token;
    sp_measure *measure;
    manner manner;
    bool ended; /* was told END */
    sp_thread thread;
} fake_agent;

static void *agent_main(void *arg) {
    fake_agent *a = arg;
    int64_t end = sp_now_ns() + 20 * SP_NS_PER_S;
    sp_err bad = {0};
    while (sp_now_ns() < end) {
        sp_frame f;
        sp_measure_look(a->measure);
        sp_status st = sp_link_recv(a->link, &f, sp_now_ns() + SP_NS_PER_MS, &bad);
        if (st == SP_AGAIN) continue;
        if (st != SP_OK || a->manner == LEAVES) break;
        if (a->manner == SAYS_A_RANK_ENDED || a->manner == BABBLES) {
            const char *text = a->manner == BABBLES ? "{\"op\":7}" : "{\"local\":0,\"code\":10}";
            sp_piece piece = {text, (uint32_t)strlen(text)};
            (void)!sp_link_send(a->link, a->manner == BABBLES ? SP_FRAME_MEASURE : SP_FRAME_STATUS,
                                &piece, 1, end, &bad);
            a->manner = SILENT;
        }
        if (a->manner == HONEST && sp_measure_take(&a->measure, a->link, &a->token,
                                                   (sp_slice){f.payload, f.length}, &bad) != SP_OK)
            break;
        if (a->manner == HONEST && !a->measure) a->ended = true;
    }
    sp_link_close(a->link);
    sp_measure_close(a->measure);
    return NULL;
}

typedef struct stage {
    fake_agent agents[3]; /* [0] is the head's own */
    sp_join join;
    sp_token token;
    sp_preflight out;
} stage;

/* Three nodes that are all this one: their listeners are real, on loopback. */
static stage *open_stage(manner first) {
    stage *s = sp_alloc(sizeof *s);
    memset(s->token.bytes, 7, sizeof s->token.bytes);
    memset(&roster, 0, sizeof roster);
    roster.n_agents = roster.n_nodes = 3;
    s->join.roster = &roster;
    for (int i = 0; i < 3; i++) {
        sp_agent_words *w = &roster.agents[i].words;
        sp_agent_words_here(w);
        w->open_files = 4096;
        snprintf(w->host, sizeof w->host, "h%d", i);
        roster.agents[i].node = i;
        if (i == 0) continue;
        int fds[2];
        fake_agent *a = &s->agents[i];
        CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&s->join.agents[i], fds[0], NULL, &err), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&a->link, fds[1], NULL, &err), SP_OK);
        a->token = s->token;
        a->manner = i == 1 ? first : HONEST;
        CU_ASSERT_EQUAL_FATAL(
            sp_measure_open(&a->measure, &s->token, w->measure, sizeof w->measure, &err), SP_OK);
        snprintf(roster.agents[i].address, sizeof roster.agents[i].address, "127.0.0.1:5");
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&a->thread, "agent", agent_main, a, &err), SP_OK);
    }
    return s;
}
static void close_stage(stage *s) {
    for (int i = 1; i < 3; i++) {
        sp_link_close(s->join.agents[i]);
        sp_thread_join(&s->agents[i].thread);
    }
    sp_preflight_fini(&s->out);
    sp_free(s);
}
static sp_status run_stage(stage *s, sp_preflight_mode mode, int64_t *took_ns) {
    int64_t start = sp_now_ns();
    err = (sp_err){0};
    sp_status st = sp_preflight_run(&s->out, &s->join, &s->token, mode, &err);
    *took_ns = sp_now_ns() - start;
    return st;
}

static void all_links_and_clocks_of_three_nodes_are_measured(void) {
    int64_t took;
    stage *s = open_stage(HONEST);
    CU_ASSERT_EQUAL(run_stage(s, SP_PREFLIGHT_WARN, &took), SP_OK);
    CU_ASSERT(took < 2 * SP_PREFLIGHT_NS);
    CU_ASSERT_EQUAL(s->out.n_links, 3);
    for (int i = 0; i < s->out.n_links; i++) {
        const sp_preflight_link *l = &s->out.links[i];
        if (!l->measured) printf("\n    %d-%d: %s\n", (int)l->from, (int)l->to, l->why);
        CU_ASSERT(l->measured && l->rtt_ns > 0 && l->bytes_per_s > 0);
    }
    CU_ASSERT_EQUAL(s->out.clock_us[0], 0);
    for (int i = 1; i < 3; i++)
        CU_ASSERT(s->out.clock_us[i] > -500000 && s->out.clock_us[i] < 500000);
    fake_agent *first = &s->agents[1];
    for (int i = 1; i < 3; i++) sp_link_close(s->join.agents[i]), s->join.agents[i] = NULL;
    for (int i = 1; i < 3; i++) sp_thread_join(&s->agents[i].thread);
    CU_ASSERT(first->ended && s->agents[2].ended);
    sp_preflight_fini(&s->out);
    sp_free(s);
}
static void a_silent_agent_is_named_and_holds_nobody_up(void) {
    int64_t took;
    stage *s = open_stage(SILENT);
    CU_ASSERT_EQUAL(run_stage(s, SP_PREFLIGHT_STRICT, &took), SP_E_INVALID);
    CU_ASSERT(took < 2 * SP_PREFLIGHT_NS);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "preflight: 1 remark"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'h1' and 'h2' cannot connect: no answer in time"));
    /* It still listens: only what it should have measured itself is missing. */
    for (int i = 0; i < s->out.n_links; i++)
        CU_ASSERT_EQUAL(s->out.links[i].measured, s->out.links[i].from != 1);
    CU_ASSERT_EQUAL(s->out.clock_us[1], SP_PREFLIGHT_CLOCK_NONE);
    close_stage(s);
}
static void nothing_is_measured_when_it_is_off(void) {
    int64_t took;
    stage *s = open_stage(SILENT);
    CU_ASSERT_EQUAL(run_stage(s, SP_PREFLIGHT_OFF, &took), SP_OK);
    CU_ASSERT_EQUAL(s->out.n_links, 0);
    CU_ASSERT(took < 200 * SP_NS_PER_MS);
    close_stage(s);
}
static void agents_that_break_off_end_the_join(void) {
    static const struct {
        manner manner;
        sp_status want;
        const char *word;
    } cases[] = {{SAYS_A_RANK_ENDED, SP_E_INVALID, "ended with 10"},
                 {LEAVES, SP_E_PEER_LOST, "left"},
                 {BABBLES, SP_E_PEER_LOST, "no sense"}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        int64_t took;
        stage *s = open_stage(cases[i].manner);
        CU_ASSERT_EQUAL(run_stage(s, SP_PREFLIGHT_WARN, &took), cases[i].want);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, cases[i].word));
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'h1'"));
        close_stage(s);
    }
}

SP_TEST_MAIN("preflight", SP_TEST(no_node_is_in_two_pairs_of_a_round_and_all_are_measured),
             SP_TEST(up_to_eight_nodes_every_pair_is_measured),
             SP_TEST(one_node_has_no_pair_and_an_array_is_never_overrun),
             SP_TEST(a_node_is_looked_for_where_it_came_from_first),
             SP_TEST(good_figures_get_no_remark),
             SP_TEST(a_pair_that_cannot_connect_is_named_by_both_hosts),
             SP_TEST(a_link_that_differs_from_the_others_is_named),
             SP_TEST(two_nodes_have_no_others_to_differ_from),
             SP_TEST(a_clock_more_than_a_second_off_is_named),
             SP_TEST(limits_that_are_too_low_are_named),
             SP_TEST(agents_of_one_node_are_looked_at_once),
             SP_TEST(remarks_beyond_the_array_are_counted), SP_TEST(modes_are_known_by_their_words),
             SP_TEST(all_links_and_clocks_of_three_nodes_are_measured),
             SP_TEST(a_silent_agent_is_named_and_holds_nobody_up),
             SP_TEST(nothing_is_measured_when_it_is_off),
             SP_TEST(agents_that_break_off_end_the_join))
