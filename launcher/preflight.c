#include "launcher/preflight.h"

#include "launcher/measure.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SP_LOG "preflight"
#define CLOCK_ROUNDS 4
#define CLOCK_ROUND_NS (50 * SP_NS_PER_MS)
#define SLACK_NS (20 * SP_NS_PER_MS) /* of a round, for the words before and after */
#define ROUND_NS_MAX (300 * SP_NS_PER_MS)
#define ROUND_NS_MIN (10 * SP_NS_PER_MS)
#define BULK_NS_MAX (40 * SP_NS_PER_MS)
#define SEND_NS (100 * SP_NS_PER_MS)
#define SHARE_OF_IDS 1024 /* ids of a round of clocks: more than there are agents */

typedef struct drive {
    sp_preflight *p;
    sp_join *j;
    const sp_token *token;
    int64_t end_ns;
    int32_t clock_round;
    int32_t lead[SP_POD_AGENTS_MAX];    /* of each node, the agent that measures */
    int32_t pending[SP_POD_AGENTS_MAX]; /* answers that an agent owes */
    int64_t asked_ns[SP_POD_AGENTS_MAX], best_ns[SP_POD_AGENTS_MAX]; /* clocks */
    struct pollfd polls[SP_POD_AGENTS_MAX];
} drive;

sp_preflight_mode sp_preflight_mode_of(const char *word) {
    return strcmp(word, "off") == 0      ? SP_PREFLIGHT_OFF
           : strcmp(word, "strict") == 0 ? SP_PREFLIGHT_STRICT
                                         : SP_PREFLIGHT_WARN;
}

static const char *host_of(const sp_roster *r, int32_t agent) {
    return r->agents[agent].words.host;
}

/* ---- words with agents ---- */

static sp_status ask(drive *d, int32_t agent, const sp_measure_ask *a, sp_err *err) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_measure_ask_write(a, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_status st =
        sp_link_send(d->j->agents[agent], SP_FRAME_MEASURE, &piece, 1, sp_now_ns() + SEND_NS, err);
    sp_buf_fini(&text);
    if (st == SP_OK) {
        d->pending[agent] += a->op != SP_MEASURE_END;
        return SP_OK;
    }
    return SP_FAIL(err, SP_E_PEER_LOST, "agent %d on '%s' takes no word", (int)agent,
                   host_of(d->j->roster, agent));
}

/* An answer that is late by a round would make the way look quicker than it is. */
static void take_clock(drive *d, int32_t agent, const sp_measure_answer *a) {
    int64_t rtt_ns = sp_now_ns() - d->asked_ns[agent];
    if (a->id != (int64_t)d->clock_round * SHARE_OF_IDS + agent) return;
    if (rtt_ns >= d->best_ns[agent]) return;
    d->best_ns[agent] = rtt_ns;
    d->p->clock_us[agent] = a->unix_us - (sp_unix_us() - rtt_ns / 2 / SP_NS_PER_US);
}

static void take_way(drive *d, int32_t agent, const sp_measure_answer *a) {
    if (a->id >= d->p->n_links) return;
    sp_preflight_link *l = &d->p->links[a->id];
    if (d->lead[l->from] != agent) return;
    l->measured = a->why[0] == 0;
    l->rtt_ns = a->rtt_ns;
    l->bytes_per_s = a->bytes_per_s;
    snprintf(l->why, sizeof l->why, "%s", a->why);
}

static sp_status take_frame(drive *d, int32_t agent, const sp_frame *f, sp_err *err) {
    sp_measure_answer a;
    sp_rank_end end;
    sp_slice words = {f->payload, f->length};
    const char *host = host_of(d->j->roster, agent);
    if (f->type == SP_FRAME_STATUS && sp_rank_end_read(&end, words, err) == SP_OK)
        return SP_FAIL(err, end.code == SP_EXIT_CONFIG ? SP_E_INVALID : SP_E_PEER_LOST,
                       "rank %d of agent %d on '%s' ended with %d during the join", (int)end.local,
                       (int)agent, host, (int)end.code);
    if (f->type != SP_FRAME_MEASURE || sp_measure_answer_read(&a, words, err) != SP_OK)
        return SP_FAIL(err, SP_E_PEER_LOST, "agent %d on '%s' says what makes no sense", (int)agent,
                       host);
    if (d->pending[agent] > 0) d->pending[agent]--;
    if (a.op == SP_MEASURE_CLOCK)
        take_clock(d, agent, &a);
    else
        take_way(d, agent, &a);
    return SP_OK;
}

static sp_status hear(drive *d, int32_t agent, sp_err *err) {
    for (;;) {
        sp_frame f;
        sp_status st = sp_link_recv(d->j->agents[agent], &f, 0, err);
        if (st == SP_AGAIN) return SP_OK;
        if (st != SP_OK)
            return SP_FAIL(err, SP_E_PEER_LOST, "agent %d on '%s' left during the join", (int)agent,
                           host_of(d->j->roster, agent));
        SP_TRY(take_frame(d, agent, &f, err));
    }
}

/* Until nobody owes an answer, or the deadline. */
static sp_status gather(drive *d, int64_t deadline_ns, sp_err *err) {
    for (;;) {
        nfds_t n = 0;
        for (int32_t i = 1; i < d->p->n_agents; i++) {
            if (d->pending[i] == 0) continue;
            SP_TRY(hear(d, i, err));
            if (d->pending[i] == 0) continue;
            d->polls[n++] = (struct pollfd){.fd = sp_link_fd(d->j->agents[i]), .events = POLLIN};
        }
        int64_t left = deadline_ns - sp_now_ns();
        if (n == 0 || left <= 0) return SP_OK;
        poll(d->polls, n, (int)(left / SP_NS_PER_MS) + 1);
    }
}

/* ---- clocks ---- */

static sp_status read_clocks(drive *d, sp_err *err) {
    for (int32_t i = 0; i < d->p->n_agents; i++) {
        d->best_ns[i] = SP_NEVER;
        d->p->clock_us[i] = i ? SP_PREFLIGHT_CLOCK_NONE : 0;
    }
    for (d->clock_round = 0; d->clock_round < CLOCK_ROUNDS; d->clock_round++) {
        for (int32_t i = 1; i < d->p->n_agents; i++) {
            sp_measure_ask a = {.op = SP_MEASURE_CLOCK,
                                .id = (int64_t)d->clock_round * SHARE_OF_IDS + i};
            d->asked_ns[i] = sp_now_ns();
            SP_TRY(ask(d, i, &a, err));
        }
        SP_TRY(gather(d, sp_now_ns() + CLOCK_ROUND_NS, err));
    }
    return SP_OK;
}

/* ---- links ---- */

static void measure_here(drive *d, sp_preflight_link *l, const sp_measure_ask *a) {
    sp_measure_figure f = {0};
    sp_err err = {0};
    sp_status st = sp_measure_way(&f, a->to, a->node, d->token, a->budget_us * SP_NS_PER_US,
                                  a->bulk_us * SP_NS_PER_US, &err);
    l->measured = st == SP_OK;
    l->rtt_ns = f.rtt_ns;
    l->bytes_per_s = f.bytes_per_s;
    if (st != SP_OK)
        snprintf(l->why, sizeof l->why, "%s", err.text);
    else
        l->why[0] = 0;
}

/* The question for a link; false: there is none to ask. */
static bool make_ask(const drive *d, int32_t link, int64_t budget_ns, sp_measure_ask *a) {
    sp_preflight_link *l = &d->p->links[link];
    const sp_pod_agent *to = &d->j->roster->agents[d->lead[l->to]];
    int64_t bulk_ns = budget_ns / 3 < BULK_NS_MAX ? budget_ns / 3 : BULK_NS_MAX;
    *a = (sp_measure_ask){.op = SP_MEASURE_WAY,
                          .id = link,
                          .budget_us = budget_ns / SP_NS_PER_US,
                          .bulk_us = bulk_ns / SP_NS_PER_US};
    snprintf(a->node, sizeof a->node, "%s", to->words.node);
    if (sp_preflight_where(to, a->to, sizeof a->to)) return true;
    snprintf(l->why, sizeof l->why, "'%s' listens nowhere", to->words.host);
    return false;
}

static sp_status run_round(drive *d, int32_t round, int64_t share_ns, sp_err *err) {
    sp_measure_ask a;
    int64_t start = sp_now_ns();
    int32_t own = -1;
    for (int32_t i = 0; i < d->p->n_links; i++) {
        sp_preflight_link *l = &d->p->links[i];
        if (l->round != round || !make_ask(d, i, share_ns - SLACK_NS, &a)) continue;
        snprintf(l->why, sizeof l->why, "no answer in time from '%s'",
                 host_of(d->j->roster, d->lead[l->from]));
        if (l->from == 0)
            own = i;
        else
            SP_TRY(ask(d, d->lead[l->from], &a, err));
    }
    if (own >= 0 && make_ask(d, own, share_ns - SLACK_NS, &a))
        measure_here(d, &d->p->links[own], &a);
    return gather(d, start + share_ns, err);
}

static sp_status measure_links(drive *d, int32_t n_rounds, sp_err *err) {
    for (int32_t round = 0; round < n_rounds; round++) {
        int64_t share = (d->end_ns - sp_now_ns()) / (n_rounds - round);
        if (share > ROUND_NS_MAX) share = ROUND_NS_MAX;
        if (share < ROUND_NS_MIN + SLACK_NS) return SP_OK; /* the rest is said to be not measured */
        SP_TRY(run_round(d, round, share, err));
    }
    return SP_OK;
}

static int by_ends(const void *a, const void *b) {
    const sp_preflight_link *x = a, *y = b;
    return x->from != y->from ? x->from - y->from : x->to - y->to;
}

static sp_status measure_all(drive *d, sp_err *err) {
    const sp_roster *r = d->j->roster;
    int32_t max = r->n_nodes * SP_PREFLIGHT_ROUNDS_MAX, n_rounds;
    int64_t start = sp_now_ns();
    d->end_ns = start + SP_PREFLIGHT_NS - SLACK_NS;
    for (int32_t i = r->n_agents - 1; i >= 0; i--) d->lead[r->agents[i].node] = i;
    d->p->links = sp_alloc((size_t)max * sizeof *d->p->links);
    d->p->n_links = sp_preflight_pairs(r->n_nodes, d->p->links, max, &n_rounds);
    SP_TRY(read_clocks(d, err));
    SP_TRY(measure_links(d, n_rounds, err));
    qsort(d->p->links, (size_t)d->p->n_links, sizeof *d->p->links, by_ends);
    d->p->took_ns = sp_now_ns() - start;
    return SP_OK;
}

/* ---- words for people ---- */

static const char *rate_text(char out[16], const sp_preflight_link *l) {
    if (l->bytes_per_s > 0)
        snprintf(out, 16, "%.3f", (double)l->bytes_per_s / 1e9);
    else
        snprintf(out, 16, "-");
    return out;
}

static void say_link(const sp_preflight *p, const sp_roster *r, const int32_t *lead, int32_t i) {
    const sp_preflight_link *l = &p->links[i];
    char rate[16];
    const char *a = host_of(r, lead[l->from]), *b = host_of(r, lead[l->to]);
    /* Beyond what a person reads: only what is wrong. */
    sp_log_level level =
        l->measured && p->n_nodes > SP_PREFLIGHT_PAIRS_NODES_MAX ? SP_LOG_DEBUG : SP_LOG_INFO;
    if (l->measured)
        sp_log_at(level, "%-16s %-16s %10.1f %10s", a, b, (double)l->rtt_ns / 1e3,
                  rate_text(rate, l));
    else
        sp_log_at(level, "%-16s %-16s %s", a, b, l->why[0] ? l->why : "not measured: out of time");
}

static const char *limit_text(char out[24], int64_t bytes) {
    if (bytes < 0) return "none";
    return sp_format_bytes(out, 24, (uint64_t)bytes);
}

static void say_node(const sp_preflight *p, const sp_roster *r, int32_t agent) {
    const sp_agent_words *w = &r->agents[agent].words;
    char lock[24], shm[24], files[24] = "none", clock[24] = "-";
    if (w->open_files >= 0) snprintf(files, sizeof files, "%lld", (long long)w->open_files);
    if (p->clock_us[agent] != SP_PREFLIGHT_CLOCK_NONE)
        snprintf(clock, sizeof clock, "%+.3f", (double)p->clock_us[agent] / 1e3);
    sp_log_at(p->n_nodes > 2 * SP_PREFLIGHT_PAIRS_NODES_MAX ? SP_LOG_DEBUG : SP_LOG_INFO,
              "%-16s %5lld %5lld %10s %10s %8s %12s", w->host, (long long)w->cores,
              (long long)w->rdma, limit_text(lock, w->memlock_bytes), limit_text(shm, w->shm_bytes),
              files, clock);
}

/* In place of rows that nobody would read. */
static void say_span(const sp_preflight *p) {
    int64_t rtt[2] = {INT64_MAX, 0}, rate[2] = {INT64_MAX, 0};
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_links; i++) {
        const sp_preflight_link *l = &p->links[i];
        if (!l->measured) continue;
        n++;
        if (l->rtt_ns < rtt[0]) rtt[0] = l->rtt_ns;
        if (l->rtt_ns > rtt[1]) rtt[1] = l->rtt_ns;
        if (l->bytes_per_s < rate[0]) rate[0] = l->bytes_per_s;
        if (l->bytes_per_s > rate[1]) rate[1] = l->bytes_per_s;
    }
    sp_info("%d of %d links of %d nodes (a ring and a sample)", (int)n, (int)p->n_links,
            (int)p->n_nodes);
    if (n == 0) return;
    sp_info("%-33s %10.1f %10.3f", "best", (double)rtt[0] / 1e3, (double)rate[1] / 1e9);
    sp_info("%-33s %10.1f %10.3f", "worst", (double)rtt[1] / 1e3, (double)rate[0] / 1e9);
}

static void say_table(const drive *d) {
    const sp_preflight *p = d->p;
    const sp_roster *r = d->j->roster;
    sp_info("%-16s %5s %5s %10s %10s %8s %12s", "node", "cores", "rdma", "memlock", "/dev/shm",
            "files", "clock ms");
    for (int32_t i = 0; i < p->n_nodes; i++) say_node(p, r, d->lead[i]);
    sp_info("%-16s %-16s %10s %10s", "link", "", "rtt us", "GB/s tcp");
    for (int32_t i = 0; i < p->n_links; i++) say_link(p, r, d->lead, i);
    if (p->n_nodes > SP_PREFLIGHT_PAIRS_NODES_MAX) say_span(p);
}

static void join_remarks(const sp_preflight_remarks *m, char *out, size_t n) {
    size_t at = (size_t)snprintf(out, n, "%d remark%s: ", (int)m->n, m->n == 1 ? "" : "s");
    int32_t i = 0;
    for (; i < m->n && i < (int32_t)SP_LEN(m->at) && at + sizeof m->at[0] + 32 < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%s", i ? "; " : "", m->at[i]);
    if (i < m->n) snprintf(out + at, n - at, "; and %d more", (int)(m->n - i));
}

static sp_status say_verdict(const drive *d, sp_preflight_mode mode, sp_err *err) {
    sp_preflight_remarks m;
    char text[900];
    sp_preflight_judge(d->p, d->j->roster, &m);
    if (d->p->n_links > 0) say_table(d);
    if (m.n == 0) {
        if (d->p->n_links > 0) sp_info("good (%.0f ms)", (double)d->p->took_ns / 1e6);
        return SP_OK;
    }
    join_remarks(&m, text, sizeof text);
    if (mode == SP_PREFLIGHT_STRICT) return SP_FAIL(err, SP_E_INVALID, "preflight: %s", text);
    sp_warn("%s", text);
    return SP_OK;
}

/* ---- the whole ---- */

static sp_status end_listening(drive *d, sp_err *err) {
    sp_measure_ask a = {.op = SP_MEASURE_END};
    for (int32_t i = 1; i < d->p->n_agents; i++) SP_TRY(ask(d, i, &a, err));
    return SP_OK;
}

sp_status sp_preflight_run(sp_preflight *out, sp_join *j, const sp_token *token,
                           sp_preflight_mode mode, sp_err *err) {
    const sp_roster *r = j->roster;
    drive *d = sp_alloc(sizeof *d);
    *out = (sp_preflight){.n_nodes = r->n_nodes, .n_agents = r->n_agents};
    out->clock_us = sp_alloc((size_t)r->n_agents * sizeof *out->clock_us);
    for (int32_t i = 1; i < r->n_agents; i++) out->clock_us[i] = SP_PREFLIGHT_CLOCK_NONE;
    d->p = out;
    d->j = j;
    d->token = token;
    sp_status st = SP_OK;
    if (mode != SP_PREFLIGHT_OFF && r->n_nodes > 1) st = measure_all(d, err);
    if (st == SP_OK) st = end_listening(d, err);
    if (st == SP_OK && mode != SP_PREFLIGHT_OFF) st = say_verdict(d, mode, err);
    sp_free(d);
    return st;
}

void sp_preflight_fini(sp_preflight *p) {
    sp_free(p->links);
    sp_free(p->clock_us);
    *p = (sp_preflight){0};
}
