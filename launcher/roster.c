#include "launcher/roster.h"

#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int32_t sp_roster_share(int32_t n_ranks, int32_t n_agents, int32_t index) {
    return n_ranks / n_agents + (index < n_ranks % n_agents);
}

const char *sp_rank_state_name(sp_rank_state s) {
    static const char *const names[] = {"joining", "loading", "active", "lost"};
    return names[s];
}

static sp_status check_agents(const sp_roster *r, sp_err *err) {
    for (int32_t i = 0; i < r->n_agents; i++)
        for (int32_t k = i + 1; k < r->n_agents; k++) {
            int64_t rank = r->agents[i].words.rank;
            if (rank >= 0 && rank == r->agents[k].words.rank)
                return SP_FAIL(err, SP_E_INVALID,
                               "two agents say they are number %d: '%s' and '%s'", (int)rank,
                               r->agents[i].words.host, r->agents[k].words.host);
        }
    return SP_OK;
}

/* Of the agents in order of arrival: whose node came first, then the launcher's number. */
typedef struct seat {
    int32_t from, node_order;
    int64_t rank;
} seat;

static int by_seat(const void *a, const void *b) {
    const seat *x = a, *y = b;
    if (x->node_order != y->node_order) return x->node_order < y->node_order ? -1 : 1;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* A node's place is that of its lowest launcher number; the head's node is first. */
static int32_t node_order_of(const sp_roster *r, int32_t i) {
    int64_t best = INT32_MAX;
    const char *node = r->agents[i].words.node;
    if (strcmp(node, r->agents[0].words.node) == 0) return -1;
    for (int32_t k = 0; k < r->n_agents; k++) {
        int64_t rank = r->agents[k].words.rank;
        int64_t key = rank >= 0 ? rank : SP_POD_AGENTS_MAX + k;
        if (strcmp(r->agents[k].words.node, node) == 0 && key < best) best = key;
    }
    return (int32_t)best;
}

static void put_in_order(sp_roster *r, int32_t *order) {
    seat *seats = sp_alloc((size_t)r->n_agents * sizeof *seats);
    sp_pod_agent *copy = sp_alloc((size_t)r->n_agents * sizeof *copy);
    for (int32_t i = 0; i < r->n_agents; i++)
        seats[i] = (seat){i, node_order_of(r, i), i == 0 ? -1 : r->agents[i].words.rank};
    qsort(seats, (size_t)r->n_agents, sizeof *seats, by_seat);
    memcpy(copy, r->agents, (size_t)r->n_agents * sizeof *copy);
    for (int32_t i = 0; i < r->n_agents; i++) {
        r->agents[i] = copy[seats[i].from];
        order[seats[i].from] = i;
    }
    sp_free(copy);
    sp_free(seats);
}

static void number_nodes(sp_roster *r) {
    r->n_nodes = 0;
    for (int32_t i = 0; i < r->n_agents; i++) {
        bool same = i > 0 && strcmp(r->agents[i].words.node, r->agents[i - 1].words.node) == 0;
        r->agents[i].node = same ? r->n_nodes - 1 : r->n_nodes++;
    }
}

/* The most ranks that can be shared out over these agents. */
static int32_t most_ranks(const sp_roster *r) {
    for (int32_t n = r->n_ranks; n > 0; n--) {
        bool fits = true;
        for (int32_t i = 0; i < r->n_agents; i++) {
            int64_t slots = r->agents[i].words.slots;
            fits = fits && (slots <= 0 || sp_roster_share(n, r->n_agents, i) <= slots);
        }
        if (fits) return n;
    }
    return 0;
}

static sp_status give_ranks(sp_roster *r, sp_err *err) {
    int32_t next = 0;
    for (int32_t i = 0; i < r->n_agents; i++) {
        sp_pod_agent *a = &r->agents[i];
        a->first = next;
        a->n = sp_roster_share(r->n_ranks, r->n_agents, i);
        if (a->words.slots > 0 && a->n > a->words.slots)
            return SP_FAIL(
                err, SP_E_INVALID,
                "%d ranks (%s) over %d agents give '%.60s' %d, it has %d slot%s; at most "
                "%d ranks would fit",
                r->n_ranks, r->shape, r->n_agents, a->words.host, a->n, (int)a->words.slots,
                a->words.slots == 1 ? "" : "s", most_ranks(r));
        for (int32_t k = 0; k < a->n; k++, next++) {
            r->ranks[next].agent = i;
            r->ranks[next].local = k;
            r->ranks[next].node = a->node;
        }
    }
    return SP_OK;
}

static void count_neighbours(sp_roster *r) {
    int32_t n[SP_POD_AGENTS_MAX] = {0};
    for (int32_t i = 0; i < r->n_ranks; i++) r->ranks[i].local_rank = n[r->ranks[i].node]++;
    for (int32_t i = 0; i < r->n_ranks; i++) r->ranks[i].local_ranks = n[r->ranks[i].node];
}

sp_status sp_roster_assign(sp_roster *r, int32_t *order, sp_err *err) {
    SP_ASSERT(r->n_agents >= 1 && r->n_agents <= SP_POD_AGENTS_MAX);
    SP_ASSERT(r->n_ranks >= 1 && r->n_ranks <= SP_POD_RANKS_MAX);
    SP_TRY(check_agents(r, err));
    put_in_order(r, order);
    number_nodes(r);
    SP_TRY(give_ranks(r, err));
    count_neighbours(r);
    return SP_OK;
}

void sp_roster_nodes(const sp_roster *r, char *out, size_t n) {
    size_t at = 0;
    out[0] = 0;
    for (int32_t i = 0; i < r->n_ranks && at + 12 < n; i++)
        at += (size_t)snprintf(out + at, n - at, i ? ",%d" : "%d", r->ranks[i].node);
}
