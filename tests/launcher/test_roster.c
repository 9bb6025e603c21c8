/* Covers launcher/roster.c: ranks shared out evenly, agents of a node side by side, in the
 * launcher's order, the head first. */
#include "launcher/roster.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sp_roster r; /* large */
static int32_t order[SP_POD_AGENTS_MAX];
static sp_err err;

static void shares_add_up_and_differ_by_one_at_most(void) {
    for (int32_t ranks = 1; ranks <= 40; ranks++)
        for (int32_t agents = 1; agents <= 45; agents++) {
            int32_t sum = 0, first = sp_roster_share(ranks, agents, 0);
            for (int32_t i = 0; i < agents; i++) {
                int32_t n = sp_roster_share(ranks, agents, i);
                CU_ASSERT(n == first || n == first - 1);
                sum += n;
            }
            CU_ASSERT_EQUAL(sum, ranks);
        }
}

/* Agents "node:launcher rank:slots", the head's first. */
static sp_status assign(int32_t tp, int32_t pp, const char *const *agents) {
    memset(&r, 0, sizeof r);
    snprintf(r.shape, sizeof r.shape, "tp %d x pp %d", tp, pp);
    r.n_ranks = tp * pp;
    for (; agents[r.n_agents]; r.n_agents++) {
        sp_agent_words *w = &r.agents[r.n_agents].words;
        const char *text = agents[r.n_agents], *colon = strchr(text, ':');
        snprintf(w->node, sizeof w->node, "%.*s", (int)(colon - text), text);
        snprintf(w->host, sizeof w->host, "host-%s", text);
        w->rank = strtol(colon + 1, NULL, 10);
        colon = strchr(colon + 1, ':');
        w->slots = colon ? strtol(colon + 1, NULL, 10) : 0;
    }
    err = (sp_err){0};
    memset(order, 0xff, sizeof order);
    return sp_roster_assign(&r, order, &err);
}
#define ASSIGN(tp, pp, ...) assign(tp, pp, (const char *const[]){__VA_ARGS__, NULL})

static void expect_nodes(int line, sp_status st, const char *nodes, const char *agents) {
    char got[200], of[200] = "";
    if (st == SP_OK) sp_roster_nodes(&r, got, sizeof got);
    for (int32_t i = 0, at = 0; st == SP_OK && i < r.n_ranks; i++)
        at += snprintf(of + at, sizeof of - (size_t)at, "%d", r.ranks[i].agent);
    bool ok = st == SP_OK && strcmp(got, nodes) == 0 && strcmp(of, agents) == 0;
    if (!ok)
        fprintf(stderr, "    line %d: %s; nodes %s, agents %s\n", line, err.text,
                st == SP_OK ? got : "-", of);
    CU_ASSERT(ok);
}
#define EXPECT(nodes, agents, st) expect_nodes(__LINE__, st, nodes, agents)

static void one_agent_has_all_ranks(void) {
    EXPECT("0,0,0,0", "0000", ASSIGN(2, 2, "a:-1"));
    CU_ASSERT_EQUAL(order[0], 0);
    CU_ASSERT(r.ranks[3].local == 3 && r.ranks[3].local_rank == 3 && r.ranks[3].local_ranks == 4);
    CU_ASSERT_EQUAL(r.n_nodes, 1);
}
static void agents_of_a_node_follow_each_other_in_the_launchers_order(void) {
    /* As they came in: node b's before the second of node a. */
    EXPECT("0,0,1,1", "0123", ASSIGN(2, 2, "a:0", "b:3", "b:2", "a:1"));
    CU_ASSERT(order[0] == 0 && order[1] == 3 && order[2] == 2 && order[3] == 1);
    CU_ASSERT_STRING_EQUAL(r.agents[1].words.host, "host-a:1");
    CU_ASSERT(r.ranks[2].local == 0 && r.ranks[2].local_rank == 0 && r.ranks[2].local_ranks == 2);
    CU_ASSERT(r.ranks[3].local == 0 && r.ranks[3].local_rank == 1);
    CU_ASSERT_EQUAL(r.n_nodes, 2);
}
static void the_head_is_first_whatever_its_number(void) {
    EXPECT("0,0,1,1", "0123", ASSIGN(2, 2, "a:3", "b:0", "b:1", "a:2"));
    CU_ASSERT_EQUAL(order[0], 0);
    CU_ASSERT_EQUAL(order[3], 1);
}
static void agents_without_numbers_keep_their_order(void) {
    EXPECT("0,1,2", "012", ASSIGN(1, 3, "a:0", "c:-1", "b:-1"));
    CU_ASSERT_STRING_EQUAL(r.agents[1].words.node, "c");
}
static void more_agents_than_ranks_leave_some_without(void) {
    EXPECT("0,1", "01", ASSIGN(2, 1, "a:0", "b:1", "c:2"));
    CU_ASSERT_EQUAL(r.agents[2].n, 0);
    CU_ASSERT_EQUAL(r.n_nodes, 3);
}
static void an_uneven_share_goes_to_the_first(void) {
    EXPECT("0,0,1,2", "0012", ASSIGN(2, 2, "a:0", "b:1", "c:2"));
    CU_ASSERT(r.agents[0].n == 2 && r.agents[1].first == 2 && r.agents[2].first == 3);
}
static void too_few_slots_are_told_with_the_host(void) {
    CU_ASSERT_EQUAL(ASSIGN(2, 2, "a:0:2", "b:1:1"), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'host-b:1:1' 2, it has 1 slot; at most 3 ranks"));
    CU_ASSERT_EQUAL(ASSIGN(8, 2, "a:0:2", "b:1:4", "c:2:7"), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "at most 6 ranks"));
    EXPECT("0,0,1,1", "0011", ASSIGN(2, 2, "a:0:2", "b:1:2"));
    EXPECT("0,0,1,1", "0011", ASSIGN(2, 2, "a:0:0", "b:1:512"));
}
static void two_agents_with_one_number_are_refused(void) {
    CU_ASSERT_EQUAL(ASSIGN(2, 2, "a:0", "b:2", "c:2"), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "number 2"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'host-c:2'"));
}
static void nodes_are_cut_where_there_is_no_room(void) {
    char text[14];
    CU_ASSERT_EQUAL_FATAL(ASSIGN(8, 4, "a:0"), SP_OK);
    sp_roster_nodes(&r, text, sizeof text);
    CU_ASSERT(strlen(text) < sizeof text);
    char all[64 * 12];
    sp_roster_nodes(&r, all, sizeof all);
    CU_ASSERT_EQUAL(strlen(all), 32 * 2 - 1);
}
static void states_have_names(void) {
    CU_ASSERT_STRING_EQUAL(sp_rank_state_name(SP_RANK_JOINING), "joining");
    CU_ASSERT_STRING_EQUAL(sp_rank_state_name(SP_RANK_LOST), "lost");
}

SP_TEST_MAIN("launcher/roster", SP_TEST(shares_add_up_and_differ_by_one_at_most),
             SP_TEST(one_agent_has_all_ranks),
             SP_TEST(agents_of_a_node_follow_each_other_in_the_launchers_order),
             SP_TEST(the_head_is_first_whatever_its_number),
             SP_TEST(agents_without_numbers_keep_their_order),
             SP_TEST(more_agents_than_ranks_leave_some_without),
             SP_TEST(an_uneven_share_goes_to_the_first),
             SP_TEST(too_few_slots_are_told_with_the_host),
             SP_TEST(two_agents_with_one_number_are_refused),
             SP_TEST(nodes_are_cut_where_there_is_no_room), SP_TEST(states_have_names))
