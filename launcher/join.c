#include "launcher/join.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define SP_LOG "join"
#define SAY_NS (10 * SP_NS_PER_S)
#define SEND_NS (2 * SP_NS_PER_S)
#define LOOK_MS 250 /* how often the deadline and the words of waiting are looked at */

void sp_join_refuse(sp_guest *g, int code, const char *why) {
    sp_pod_end end = {.code = code};
    snprintf(end.why, sizeof end.why, "%s", why);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_pod_end_write(&end, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_err err = {0};
    if (sp_link_send(g->link, SP_FRAME_BYE, &piece, 1, sp_now_ns() + SEND_NS, &err) != SP_OK)
        sp_debug("no refusal to %s: %s", g->address, err.text);
    sp_buf_fini(&text);
    sp_link_close(g->link);
    g->link = NULL;
    sp_warn("refused %s: %s", g->address, why);
}

/* What is waited for, for people: said now and then. */
typedef struct waiting {
    const char *what; /* "agents" */
    int32_t have, want;
    int64_t said_ns;
} waiting;

static void seen_hosts(const sp_join *j, char *out, size_t n, int32_t count) {
    size_t at = 0;
    out[0] = 0;
    for (int32_t i = 0; i < count && at + SP_HOST_BYTES + 2 < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%s", i ? " " : "",
                               j->roster->agents[i].words.host);
}

static sp_status look_at_agents(const sp_join *j, int32_t n, sp_err *err) {
    for (int32_t i = 1; i < n; i++) {
        sp_frame f;
        sp_err why = {0};
        sp_status st = j->agents[i] ? sp_link_recv(j->agents[i], &f, 0, &why) : SP_AGAIN;
        sp_rank_end end;
        if (st == SP_OK && f.type == SP_FRAME_STATUS &&
            sp_rank_end_read(&end, (sp_slice){f.payload, f.length}, &why) == SP_OK)
            return SP_FAIL(err, end.code == SP_EXIT_CONFIG ? SP_E_INVALID : SP_E_PEER_LOST,
                           "rank %d of agent %d on '%s' ended with %d during the join",
                           (int)end.local, (int)i, j->roster->agents[i].words.host, (int)end.code);
        if (st != SP_AGAIN)
            return SP_FAIL(err, SP_E_PEER_LOST, "agent %d on '%s' left during the join", (int)i,
                           j->roster->agents[i].words.host);
    }
    return SP_OK;
}

/* One guest, or an error; says what it waits for. */
static sp_status next_guest(sp_join *j, waiting *w, int32_t n_agents, sp_guest *out, sp_err *err) {
    for (;;) {
        sp_status st = sp_door_next(j->door, out, sp_now_ns(), err);
        if (st != SP_AGAIN) return st;
        SP_TRY(look_at_agents(j, n_agents, err));
        int64_t now = sp_now_ns();
        if (now >= j->deadline_ns) {
            char hosts[400];
            seen_hosts(j, hosts, sizeof hosts, n_agents);
            return SP_FAIL(err, SP_E_TIMEOUT, "%d of %d %s joined within %lld s (%s); seen: %.100s",
                           (int)w->have, (int)w->want, w->what,
                           (long long)j->config->join_timeout_s, j->roster->shape, hosts);
        }
        if (now - w->said_ns > SAY_NS) {
            if (w->said_ns)
                sp_info("waiting for %d of %d %s", (int)(w->want - w->have), (int)w->want, w->what);
            w->said_ns = now;
        }
        struct pollfd p[2] = {{.fd = sp_door_fd(j->door), .events = POLLIN},
                              {.fd = j->stop_fd, .events = POLLIN}};
        if (poll(p, 2, LOOK_MS) > 0 && p[1].revents)
            return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
    }
}

static bool take_agent(sp_join *j, sp_guest *g, int32_t n) {
    if (g->role != SP_ROLE_AGENT) {
        sp_join_refuse(g, SP_EXIT_PEER, "no rank is awaited yet");
        return false;
    }
    sp_pod_agent *a = &j->roster->agents[n];
    sp_err bad = {0};
    if (sp_agent_words_read(&a->words, sp_slice_of(g->words), &bad) != SP_OK) {
        sp_join_refuse(g, SP_EXIT_CONFIG, bad.text);
        return false;
    }
    for (int32_t i = 0; i < n; i++)
        if (a->words.rank >= 0 && a->words.rank == j->roster->agents[i].words.rank) {
            sp_join_refuse(g, SP_EXIT_CONFIG, "another agent has this number");
            return false;
        }
    snprintf(a->address, sizeof a->address, "%s", g->address);
    j->agents[n] = g->link;
    sp_info("agent '%s' joined from %s", a->words.host, g->address);
    return true;
}

static sp_status wait_agents(sp_join *j, sp_err *err) {
    waiting w = {.what = "agents", .have = 1, .want = j->roster->n_agents};
    while (w.have < w.want) {
        sp_guest g;
        SP_TRY(next_guest(j, &w, w.have, &g, err));
        w.have += take_agent(j, &g, w.have);
    }
    return SP_OK;
}

static void put_links_in_order(sp_join *j, const int32_t *order) {
    sp_link *copy[SP_POD_AGENTS_MAX];
    size_t n = (size_t)j->roster->n_agents;
    memcpy(copy, j->agents, n * sizeof copy[0]);
    for (size_t i = 0; i < n; i++) j->agents[order[i]] = copy[i];
}

static sp_status welcome(const sp_join *j, int32_t i, sp_err *err) {
    sp_welcome w = {.agent = i, .ranks = j->roster->agents[i].n};
    snprintf(w.log_level, sizeof w.log_level, "%s", j->config->log_level);
    w.log_json = strcmp(j->config->log_format, "json") == 0;
    if (w.ranks == 0)
        sp_warn("agent %d on '%s' is one more than there are ranks: it starts none", (int)i,
                j->roster->agents[i].words.host);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_welcome_write(&w, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_status st =
        sp_link_send(j->agents[i], SP_FRAME_WELCOME, &piece, 1, sp_now_ns() + SEND_NS, err);
    sp_buf_fini(&text);
    if (st == SP_OK) return SP_OK;
    return SP_FAIL(err, SP_E_PEER_LOST, "agent %d on '%s' takes no word", (int)i,
                   j->roster->agents[i].words.host);
}

/* Whose rank it says it is; NULL: it cannot be. */
static sp_pod_rank *rank_of(const sp_join *j, const sp_rank_words *w) {
    if (w->agent < 1 || w->agent >= j->roster->n_agents) return NULL;
    const sp_pod_agent *a = &j->roster->agents[w->agent];
    return w->local < a->n ? &j->roster->ranks[a->first + w->local] : NULL;
}

static bool take_rank(sp_join *j, sp_guest *g) {
    sp_rank_words w;
    sp_err bad = {0};
    if (g->role != SP_ROLE_RANK) {
        sp_join_refuse(g, SP_EXIT_CONFIG, "the pod is complete: one agent too many");
        return false;
    }
    sp_status st = sp_rank_words_read(&w, sp_slice_of(g->words), &bad);
    sp_pod_rank *r = st == SP_OK ? rank_of(j, &w) : NULL;
    size_t i = r ? (size_t)(r - j->roster->ranks) : 0;
    if (!r || j->ranks[i]) {
        sp_join_refuse(g, SP_EXIT_CONFIG, r ? "this rank has joined before" : "no such rank");
        return false;
    }
    r->pid = w.pid;
    j->ranks[i] = g->link;
    return true;
}

static sp_status wait_ranks(sp_join *j, sp_err *err) {
    waiting w = {.what = "ranks", .have = j->roster->agents[0].n, .want = j->roster->n_ranks};
    while (w.have < w.want) {
        sp_guest g;
        SP_TRY(next_guest(j, &w, j->roster->n_agents, &g, err));
        w.have += take_rank(j, &g);
    }
    return SP_OK;
}

sp_status sp_join_all(sp_join *j, sp_err *err) {
    int32_t order[SP_POD_AGENTS_MAX];
    SP_TRY(wait_agents(j, err));
    SP_TRY(sp_roster_assign(j->roster, order, err));
    put_links_in_order(j, order);
    for (int32_t i = 1; i < j->roster->n_agents; i++) SP_TRY(welcome(j, i, err));
    return wait_ranks(j, err);
}
