#include "launcher/agent.h"

#include "launcher/children.h"
#include "launcher/meeting.h"
#include "launcher/pools.h"
#include "launcher/roster.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define SP_LOG "agent"
#define RING_BYTES ((uint32_t)8 << 20)
/* What is left gets this long to say its last words once another child is gone... */
#define GRACE_NS (5 * SP_NS_PER_S)
/* ...and ranks this long once the head is: one that waits for a dead neighbour hears nobody. */
#define GRACE_HEADLESS_NS (1 * SP_NS_PER_S)
/* timeout(1) and launchers signal a process and then its group: one request that comes twice. */
#define SAME_REQUEST_NS (500 * SP_NS_PER_MS)
#define PORT_GIVEN 7000

typedef struct agent {
    const sp_config *config;
    const sp_place *place;
    sp_pools pools;
    sp_child head, ranks[SP_BOOT_RINGS_MAX];
    int n_ranks;
    int bell_fd, signal_fd, listen_fd, joined_fd, launcher_fd;
    sp_contact contact;
    int64_t kill_at_ns; /* SP_NEVER: nobody is waited for */
    int stop_signals;   /* how many times we were asked to stop */
    int64_t asked_ns;   /* when last */
    bool killed;        /* by us: ends by a signal say nothing any more */
} agent;

/* ---- starting ---- */

static int n_agents_of(const sp_config *c, const sp_pools *pools, const sp_place *place) {
    if (c->command != SP_CMD_SERVE) return 1;
    if (c->nnodes > 0) return (int)c->nnodes;
    if (place->size > 0) return place->size;
    /* A head that waits for workers and was not told how many: one node a stage. */
    if (place->meeting == SP_MEET_NOBODY) return 1;
    int n = 0;
    for (int32_t i = 0; i < pools->n; i++) n += pools->at[i].replicas * pools->at[i].pp;
    return n;
}

static sp_status open_descriptors(agent *a, sp_err *err) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    a->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    a->joined_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (a->signal_fd < 0 || a->bell_fd < 0 || a->joined_fd < 0)
        return SP_FAIL(err, SP_E_IO, "signalfd, eventfd: %s", strerror(errno));
    return SP_OK;
}

/* Where others find us, and the token that proves it is us. */
static sp_status open_door(agent *a, sp_boot *b, sp_err *err) {
    bool found;
    int wanted = (int)a->config->head_port;
    if (wanted == 0 && a->place->meeting == SP_MEET_GIVEN) wanted = PORT_GIVEN;
    SP_TRY(sp_token_load(&a->contact.token, &found, a->config->token_file, err));
    if (!found && a->place->meeting == SP_MEET_GIVEN)
        return SP_FAIL(err, SP_E_INVALID,
                       "no pod token: give --token-file or SUPERPOD_POD_TOKEN to head and workers");
    if (!found) SP_TRY(sp_token_make(&a->contact.token, err));
    /* Where the launcher says that all agents are on this node, nobody else has to reach us. */
    bool near = a->place->local_size > 0 && a->place->local_size == a->place->size;
    SP_TRY(sp_door_listen(&a->listen_fd, &b->port, near ? "127.0.0.1" : "", wanted, err));
    b->listen_fd = a->listen_fd;
    b->token = a->contact.token;
    if (!near)
        return sp_local_addresses(a->contact.addresses, sizeof a->contact.addresses, b->port, err);
    snprintf(a->contact.addresses, sizeof a->contact.addresses, "127.0.0.1:%d", b->port);
    return SP_OK;
}

static sp_status start_ranks(agent *a, sp_boot *b, sp_err *err) {
    for (int i = 0; i < a->n_ranks; i++) {
        sp_child *c = &a->ranks[i];
        sp_boot own = {.ring_fd = -1, .bell_fd = a->bell_fd, .listen_fd = -1, .joined_fd = -1};
        snprintf(c->name, sizeof c->name, "rank %d", i);
        SP_TRY(sp_ring_create(&c->ring_fd, RING_BYTES, err));
        own.ring_fd = b->rings[i] = c->ring_fd;
        const int keep[] = {c->ring_fd, a->bell_fd};
        SP_TRY(sp_child_start(c, "internal-rank", &own, keep, 2, NULL, err));
        b->rank_pids[i] = c->pid;
    }
    b->n_rings = a->n_ranks;
    return SP_OK;
}

static sp_status start_head(agent *a, const sp_boot *b, char **argv, sp_err *err) {
    int keep[SP_BOOT_RINGS_MAX + 3], n = 0;
    for (int i = 0; i < b->n_rings; i++) keep[n++] = b->rings[i];
    keep[n++] = a->bell_fd;
    keep[n++] = a->listen_fd;
    keep[n++] = a->joined_fd;
    snprintf(a->head.name, sizeof a->head.name, "head");
    return sp_child_start(&a->head, "internal-head", b, keep, n, argv, err);
}

/* The next smaller pools of at most so many ranks. */
static void say_smaller(const sp_pools *pools, int64_t ranks, char out[SP_POOLS_TEXT]) {
    sp_pools at = *pools;
    bool more = true;
    while (more && sp_pools_ranks(&at) > ranks) more = sp_pools_shrink(&at);
    sp_pools_text(&at, out);
    if (!more) snprintf(out, SP_POOLS_TEXT, "only %d slots or more", (int)pools->n);
}

/* Sets the share of the ranks that this agent starts. */
static sp_status check_sizes(agent *a, const sp_pools *pools, int n_agents, sp_err *err) {
    char shape[SP_POOLS_TEXT];
    int n_ranks = sp_pools_ranks(pools);
    sp_pools_text(pools, shape);
    const sp_config *c = a->config;
    if (n_ranks > SP_BOOT_RINGS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d ranks (%s), at most %d", n_ranks, shape,
                       SP_BOOT_RINGS_MAX);
    if (n_agents > SP_POD_AGENTS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d agents in the pod, at most %d", n_agents,
                       SP_POD_AGENTS_MAX);
    int share = sp_roster_share(n_ranks, n_agents, 0);
    if (c->slots > 0 && share > c->slots) {
        char fits[SP_POOLS_TEXT];
        say_smaller(pools, c->slots * n_agents, fits);
        return SP_FAIL(
            err, SP_E_INVALID,
            "%d ranks (%s) over %d agent%s are %d here, %s would fit: there %s %d slot%s", n_ranks,
            shape, n_agents, n_agents == 1 ? "" : "s", share, fits, c->slots == 1 ? "is" : "are",
            (int)c->slots, c->slots == 1 ? "" : "s");
    }
    a->n_ranks = share;
    return SP_OK;
}

static sp_status start_all(agent *a, char **argv, sp_err *err) {
    const sp_config *c = a->config;
    SP_TRY(sp_pools_of(&a->pools, c, err));
    int n_agents = n_agents_of(c, &a->pools, a->place);
    SP_TRY(open_descriptors(a, err));
    sp_boot b = {.bell_fd = a->bell_fd,
                 .listen_fd = -1,
                 .joined_fd = a->joined_fd,
                 .ring_fd = -1,
                 .n_agents = n_agents,
                 .end_time_s = a->place->end_time_s,
                 .outward = a->place->outward,
                 .ranks_on_node = c->ranks_on_node};
    snprintf(b.source, sizeof b.source, "%s", a->place->source);
    SP_TRY(check_sizes(a, &a->pools, n_agents, err));
    if (n_agents > 1) SP_TRY(open_door(a, &b, err));
    sp_status st = start_ranks(a, &b, err);
    if (st == SP_OK) st = start_head(a, &b, argv, err);
    sp_token_wipe(&b.token);
    if (st == SP_OK && n_agents > 1)
        st = sp_meeting_put(a->place, &a->contact, sp_now_ns() + c->join_timeout_s * SP_NS_PER_S,
                            err);
    return st;
}

static sp_status write_word(const char *path, const char *word, int n, sp_err *err) {
    FILE *f = fopen(path, "we");
    bool ok = f && fprintf(f, "%s%d\n", word, n) > 0;
    if (f && fclose(f) != 0) ok = false;
    if (ok) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "option 'pid-file': '%.100s' cannot be written: %s", path,
                   strerror(errno));
}

/* Launchers that keep a job alive when a process is lost also lose its exit code: who started us by
 * one finds it here. */
static void end_pid_file(const char *path, int code) {
    sp_err err = {0};
    if (!path) return;
    if (code == SP_EXIT_OK && unlink(path) != 0) sp_debug("the pid file is gone already");
    if (code != SP_EXIT_OK && write_word(path, "exit ", code, &err) != SP_OK)
        sp_debug("%s", err.text);
}

/* ---- watching ---- */

static void kill_all(agent *a) {
    a->killed = true;
    sp_child_kill(&a->head, SIGKILL);
    for (int i = 0; i < a->n_ranks; i++) sp_child_kill(&a->ranks[i], SIGKILL);
}

static bool any_runs(const agent *a) {
    bool runs = a->head.pid != 0;
    for (int i = 0; i < a->n_ranks; i++) runs = runs || a->ranks[i].pid;
    return runs;
}

static void hurry(agent *a, int64_t grace_ns) {
    int64_t at = sp_now_ns() + grace_ns;
    if (at < a->kill_at_ns) a->kill_at_ns = at;
}

/* A neighbour that dies of it may be reaped before the one that was killed. The ranks of this agent
 * are the pod's first. */
static void say_end(const agent *a, const sp_child *c) {
    char of[sizeof a->pools.at[0].name + 16] = "";
    if (c->code >= 0 || a->killed) return;
    if (a->pools.given && c != &a->head) {
        int32_t pool = sp_pools_place_of(&a->pools, (int32_t)(c - a->ranks)).pool;
        snprintf(of, sizeof of, " of pool '%s'", a->pools.at[pool].name);
    }
    sp_error("%s%s was killed by signal %d", c->name, of, -c->code);
}

static void reap(agent *a) {
    for (int i = 0; i < a->n_ranks; i++) {
        sp_child *c = &a->ranks[i];
        if (!sp_child_reap(c)) continue;
        say_end(a, c);
        /* The head learns it from the ring, says its last words and ends. */
        sp_ring_mark_closed(c->ring_fd);
        eventfd_write(a->bell_fd, 1);
        hurry(a, GRACE_NS);
    }
    if (sp_child_reap(&a->head)) {
        say_end(a, &a->head);
        for (int i = 0; i < a->n_ranks; i++) sp_ring_mark_closed(a->ranks[i].ring_fd);
        hurry(a, GRACE_HEADLESS_NS);
    }
}

static void on_signal(agent *a, int sig) {
    if (sig == SIGCHLD) {
        reap(a);
        return;
    }
    /* A terminal gives SIGINT to the head as well, and `run` means one answer by it. */
    if (sig == SIGINT && a->config->command == SP_CMD_RUN) return;
    int64_t now = sp_now_ns();
    if (a->stop_signals > 0 && now - a->asked_ns < SAME_REQUEST_NS) return;
    a->asked_ns = now;
    if (++a->stop_signals > 1 && a->config->command == SP_CMD_SERVE) {
        sp_warn("asked to stop again: not waiting for running requests");
        kill_all(a);
        return;
    }
    sp_child_kill(&a->head, SIGTERM);
}

static int timeout_ms(const agent *a) {
    if (a->kill_at_ns == SP_NEVER) return -1;
    int64_t left = a->kill_at_ns - sp_now_ns();
    return left <= 0 ? 0 : (int)(left / SP_NS_PER_MS) + 1;
}

static void wait_for_events(agent *a) {
    struct pollfd p[3] = {{.fd = a->signal_fd, .events = POLLIN},
                          {.fd = a->joined_fd, .events = POLLIN},
                          {.fd = a->launcher_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    eventfd_t none;
    poll(p, SP_LEN(p), timeout_ms(a));
    if (p[2].revents) {
        sp_error("the launcher is gone: ending at once");
        close(a->launcher_fd);
        a->launcher_fd = -1;
        kill_all(a);
    }
    if (p[1].revents && eventfd_read(a->joined_fd, &none) == 0) sp_meeting_end(a->place);
    while (read(a->signal_fd, &info, sizeof info) == sizeof info) on_signal(a, (int)info.ssi_signo);
    if (a->kill_at_ns != SP_NEVER && sp_now_ns() >= a->kill_at_ns) {
        kill_all(a);
        a->kill_at_ns = SP_NEVER;
    }
}

/* A rank that refused (10) or whose hardware failed (30) knows best; a signal is a lost peer. */
static int exit_code(const agent *a) {
    for (int i = 0; i < a->n_ranks; i++)
        if (a->ranks[i].code == SP_EXIT_CONFIG || a->ranks[i].code == SP_EXIT_HARDWARE)
            return a->ranks[i].code;
    if (a->stop_signals > 1 && a->head.code < 0) return 128 + SIGINT;
    return a->head.code < 0 ? SP_EXIT_PEER : a->head.code;
}

static void close_all(agent *a) {
    const int fds[] = {a->signal_fd, a->bell_fd, a->joined_fd, a->listen_fd, a->launcher_fd};
    for (size_t i = 0; i < SP_LEN(fds); i++)
        if (fds[i] >= 0) close(fds[i]);
    for (int i = 0; i < a->n_ranks; i++)
        if (a->ranks[i].ring_fd >= 0) close(a->ranks[i].ring_fd);
    sp_token_wipe(&a->contact.token);
}

int sp_agent_lead(const sp_config *config, const sp_place *place, int argc, char **argv) {
    (void)argc;
    agent *a = sp_alloc(sizeof *a);
    *a = (agent){.config = config,
                 .place = place,
                 .bell_fd = -1,
                 .signal_fd = -1,
                 .listen_fd = -1,
                 .joined_fd = -1,
                 .launcher_fd = sp_launcher_watch(place->source),
                 .kill_at_ns = SP_NEVER};
    for (int i = 0; i < SP_BOOT_RINGS_MAX; i++) a->ranks[i].ring_fd = -1;
    sp_err err = {0};
    sp_status st = SP_OK;
    if (config->pid_file) st = write_word(config->pid_file, "", (int)getpid(), &err);
    if (st == SP_OK) st = start_all(a, argv, &err);
    if (st != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        kill_all(a);
    }
    while (any_runs(a)) wait_for_events(a);
    sp_meeting_end(place);
    bool refused = st == SP_E_INVALID || st == SP_E_DENIED || st == SP_E_UNSUPPORTED ||
                   ((st == SP_E_IO || st == SP_E_NOTFOUND) && !a->head.was_started);
    int code = st == SP_OK ? exit_code(a) : refused ? SP_EXIT_CONFIG : SP_EXIT_PEER;
    end_pid_file(config->pid_file, code);
    close_all(a);
    sp_free(a);
    return code;
}
