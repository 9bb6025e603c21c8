/* The pure parts of launcher/preflight.h: who is measured with whom, and what is to be said of it. */
#include "launcher/preflight.h"

#include "runtime/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLOCK_US_MAX 1000000
#define OPEN_FILES_MIN 1024
#define MEMLOCK_BYTES_MIN ((int64_t)1 << 30) /* UCX registers what it sends from and receives in */
#define RATE_MIN 12500000                    /* 100 Mbit/s: below it every step waits */
/* An outlier is a neighbour's fault or a wrong cable; what is quick enough is none. */
#define RATE_OUTLIER 4
#define RATE_QUICK 1000000000
#define RTT_OUTLIER 4
#define RTT_QUICK_NS 1000000
#define OUTLIER_LINKS_MIN 3

/* ---- pairs ---- */

typedef struct pairs {
    sp_preflight_link *at;
    int32_t n, max, round;
} pairs;

static void add(pairs *p, int32_t a, int32_t b) {
    if (p->n == p->max) return;
    p->at[p->n++] =
        (sp_preflight_link){.from = a < b ? a : b, .to = a < b ? b : a, .round = p->round};
}

/* A tournament: one stays, the others turn around it; with an odd number one pauses each time. */
static void add_tournament(pairs *p, int32_t n_nodes) {
    int32_t n = n_nodes + n_nodes % 2;
    for (p->round = 0; p->round < n - 1; p->round++)
        for (int32_t k = 0; k < n / 2; k++) {
            int32_t a = k == 0 ? n - 1 : (p->round + k) % (n - 1);
            int32_t b = (p->round + n - 1 - k) % (n - 1);
            if (a < n_nodes && b < n_nodes) add(p, a, b);
        }
}

static void add_ring(pairs *p, int32_t n) {
    for (p->round = 0; p->round < 2; p->round++)
        for (int32_t i = p->round; i + 1 < n; i += 2) add(p, i, i + 1);
    if (n % 2 == 0) p->round = 1; /* the ends are free in the second round, or in none */
    add(p, 0, n - 1);
    p->round++;
}

/* Each half of the nodes with the other, then each quarter with the next, ... */
static void add_sample(pairs *p, int32_t n) {
    for (int32_t d = n / 2; d >= 2 && p->round < SP_PREFLIGHT_ROUNDS_MAX; d /= 2, p->round++)
        for (int32_t i = 0; i + d < n; i++)
            if (i / d % 2 == 0) add(p, i, i + d);
}

int32_t sp_preflight_pairs(int32_t n_nodes, sp_preflight_link *out, int32_t max,
                           int32_t *n_rounds) {
    pairs p = {.at = out, .max = max};
    if (n_nodes >= 2 && n_nodes <= SP_PREFLIGHT_PAIRS_NODES_MAX) {
        add_tournament(&p, n_nodes);
    } else if (n_nodes > 2) {
        add_ring(&p, n_nodes);
        add_sample(&p, n_nodes);
    }
    *n_rounds = p.round;
    return p.n;
}

/* ---- where ---- */

static bool is_loopback(const char *item) {
    return strncmp(item, "127.", 4) == 0 || strncmp(item, "[::1]", 5) == 0;
}

bool sp_preflight_where(const sp_pod_agent *a, char *out, size_t n) {
    char list[sizeof a->words.measure], first[sizeof a->address + 8] = "", *save = NULL;
    const char *port = strrchr(a->words.measure, ':'), *came = strrchr(a->address, ':');
    snprintf(list, sizeof list, "%s", a->words.measure);
    out[0] = 0;
    if (!port) return false;
    if (came) snprintf(first, sizeof first, "%.*s%s", (int)(came - a->address), a->address, port);
    size_t at = (size_t)snprintf(out, n, "%s", first);
    int left = 3 - (at > 0);
    for (char *item = strtok_r(list, ",", &save); item && left > 0;
         item = strtok_r(NULL, ",", &save)) {
        if (is_loopback(item) || strcmp(item, first) == 0) continue;
        size_t more = strlen(item) + (at > 0);
        if (at + more >= n) break;
        at += (size_t)snprintf(out + at, n - at, "%s%s", at ? "," : "", item);
        left--;
    }
    return at > 0;
}

/* ---- remarks ---- */

static void remark(sp_preflight_remarks *m, const char *fmt, ...) SP_PRINTF(2, 3);
static void remark(sp_preflight_remarks *m, const char *fmt, ...) {
    if (m->n < (int32_t)SP_LEN(m->at)) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(m->at[m->n], sizeof m->at[0], fmt, args);
        va_end(args);
    }
    m->n++;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

typedef struct usual { /* medians of what was measured */
    int32_t n;
    int64_t rtt_ns, bytes_per_s;
} usual;

static usual find_usual(const sp_preflight *p) {
    usual u = {0};
    int64_t *rtt = sp_alloc(((size_t)p->n_links + 1) * sizeof *rtt);
    int64_t *rate = sp_alloc(((size_t)p->n_links + 1) * sizeof *rate);
    for (int32_t i = 0; i < p->n_links; i++)
        if (p->links[i].measured && p->links[i].bytes_per_s > 0) {
            rtt[u.n] = p->links[i].rtt_ns;
            rate[u.n++] = p->links[i].bytes_per_s;
        }
    qsort(rtt, (size_t)u.n, sizeof *rtt, by_size);
    qsort(rate, (size_t)u.n, sizeof *rate, by_size);
    u.rtt_ns = rtt[u.n / 2];
    u.bytes_per_s = rate[u.n / 2];
    sp_free(rate);
    sp_free(rtt);
    return u;
}

static void judge_link(const sp_preflight_link *l, const usual *u, const char *a, const char *b,
                       sp_preflight_remarks *m) {
    if (!l->measured) {
        if (l->why[0]) remark(m, "'%s' and '%s' cannot connect: %s", a, b, l->why);
        return;
    }
    if (l->bytes_per_s <= 0) return;
    double rate = (double)l->bytes_per_s / 1e9, other = (double)u->bytes_per_s / 1e9;
    if (l->bytes_per_s < RATE_MIN)
        remark(m, "'%s' to '%s' is slow: %.4f GB/s, want %.4f", a, b, rate, RATE_MIN / 1e9);
    else if (u->n >= OUTLIER_LINKS_MIN && l->bytes_per_s < RATE_QUICK &&
             l->bytes_per_s < u->bytes_per_s / RATE_OUTLIER)
        remark(m, "'%s' to '%s' is slower than the others: %.3f GB/s, the median is %.3f", a, b,
               rate, other);
    if (u->n >= OUTLIER_LINKS_MIN && l->rtt_ns > RTT_QUICK_NS &&
        l->rtt_ns > u->rtt_ns * RTT_OUTLIER)
        remark(m, "'%s' to '%s' is farther than the others: %.0f us, the median is %.0f", a, b,
               (double)l->rtt_ns / 1e3, (double)u->rtt_ns / 1e3);
}

static void judge_clock(int64_t offset_us, const char *host, sp_preflight_remarks *m) {
    if (offset_us == SP_PREFLIGHT_CLOCK_NONE) return;
    if (offset_us <= CLOCK_US_MAX && offset_us >= -CLOCK_US_MAX) return;
    double s = (double)offset_us / 1e6;
    remark(m, "the clock of '%s' is %.1f s %s the head's: logs do not line up", host,
           s < 0 ? -s : s, s < 0 ? "behind" : "ahead of");
}

static void judge_limits(const sp_agent_words *w, sp_preflight_remarks *m) {
    char text[24], want[24];
    if (w->open_files >= 0 && w->open_files < OPEN_FILES_MIN)
        remark(m, "'%s' may open %lld files, want %d: ulimit -n", w->host, (long long)w->open_files,
               OPEN_FILES_MIN);
    if (w->rdma > 0 && w->memlock_bytes >= 0 && w->memlock_bytes < MEMLOCK_BYTES_MIN)
        remark(m, "'%s' may lock %s of memory, RDMA wants %s or no limit: ulimit -l", w->host,
               sp_format_bytes(text, sizeof text, (uint64_t)w->memlock_bytes),
               sp_format_bytes(want, sizeof want, (uint64_t)MEMLOCK_BYTES_MIN));
}

void sp_preflight_judge(const sp_preflight *p, const sp_roster *r, sp_preflight_remarks *out) {
    const char *hosts[SP_POD_AGENTS_MAX];
    usual u = find_usual(p);
    memset(out, 0, sizeof *out);
    for (int32_t i = r->n_agents - 1; i >= 0; i--)
        hosts[r->agents[i].node] = r->agents[i].words.host;
    for (int32_t i = 0; i < p->n_links; i++)
        judge_link(&p->links[i], &u, hosts[p->links[i].from], hosts[p->links[i].to], out);
    for (int32_t i = 0; i < r->n_agents; i++) {
        if (i > 0 && r->agents[i].node == r->agents[i - 1].node) continue;
        judge_clock(p->clock_us ? p->clock_us[i] : 0, r->agents[i].words.host, out);
        judge_limits(&r->agents[i].words, out);
    }
}
