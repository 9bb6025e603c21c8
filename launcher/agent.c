#include "launcher/agent.h"

#include "comm/link.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define SP_LOG "agent"
#define RING_BYTES ((uint32_t)8 << 20)
/* What is left gets this long to say its last words once the other child is gone. */
#define GRACE_NS (5 * SP_NS_PER_S)

typedef struct child {
    pid_t pid; /* 0: not running */
    int code;  /* as ended: exit code, or -signal */
} child;

typedef struct agent {
    const sp_config *config;
    child head, rank;
    int ring_fd, signal_fd;
    int64_t kill_at_ns; /* SP_NEVER: nobody is waited for */
    int stop_signals;   /* how many times we were asked to stop */
} agent;

/* In the child: dies with the agent, becomes `argv`. Signals that ask to stop stay blocked, so that
 * one that comes before the child can listen waits for it instead of killing it. */
SP_NORETURN static void become(char *const *argv, pid_t parent) {
    sigset_t reaped;
    sigemptyset(&reaped);
    sigaddset(&reaped, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &reaped, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent) execv("/proc/self/exe", argv);
    _exit(SP_EXIT_PEER);
}

static sp_status spawn(child *c, char *const *argv, sp_err *err) {
    pid_t self = getpid(), pid = fork();
    if (pid < 0) return SP_FAIL(err, SP_E_NOMEM, "fork of '%s': %s", argv[0], strerror(errno));
    if (pid == 0) become(argv, self);
    *c = (child){.pid = pid};
    return SP_OK;
}

static sp_status start_children(agent *a, int argc, char **argv, sp_err *err) {
    char fd_text[16], rank_title[] = "superpod: rank 0", rank_word[] = "internal-rank";
    char head_title[] = "superpod: head", head_word[] = "internal-head";
    snprintf(fd_text, sizeof fd_text, "%d", a->ring_fd);
    char *rank_argv[] = {rank_title, rank_word, fd_text, NULL};
    SP_TRY(spawn(&a->rank, rank_argv, err));

    char **head_argv = sp_alloc((size_t)(argc + 4) * sizeof *head_argv);
    head_argv[0] = head_title;
    head_argv[1] = head_word;
    head_argv[2] = fd_text;
    for (int i = 0; i < argc; i++) head_argv[3 + i] = argv[i];
    sp_status st = spawn(&a->head, head_argv, err);
    sp_free(head_argv);
    return st;
}

static void reap_one(agent *a, child *c, const char *name) {
    int status;
    if (!c->pid || waitpid(c->pid, &status, WNOHANG) != c->pid) return;
    pid_t pid = c->pid;
    c->pid = 0;
    c->code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    if (c->code < 0 && a->kill_at_ns == SP_NEVER)
        sp_error("%s (pid %d) was killed by signal %d", name, (int)pid, -c->code);
    /* The other one learns it from the ring, says its last words and ends. */
    sp_ring_mark_closed(a->ring_fd);
    a->kill_at_ns = sp_now_ns() + GRACE_NS;
}

static void kill_child(const child *c, int sig) {
    if (c->pid) kill(c->pid, sig);
}

static void on_signal(agent *a, int sig) {
    if (sig == SIGCHLD) {
        reap_one(a, &a->rank, "rank 0");
        reap_one(a, &a->head, "head");
        return;
    }
    /* A terminal gives SIGINT to the head as well, and `run` means one answer by it. */
    if (sig == SIGINT && a->config->command == SP_CMD_RUN) return;
    if (++a->stop_signals > 1 && a->config->command == SP_CMD_SERVE) {
        sp_warn("asked to stop again: not waiting for running requests");
        kill_child(&a->head, SIGKILL);
        kill_child(&a->rank, SIGKILL);
        return;
    }
    kill_child(&a->head, SIGTERM);
}

static void wait_for_events(agent *a) {
    int64_t left = a->kill_at_ns - sp_now_ns();
    int timeout_ms = a->kill_at_ns == SP_NEVER ? -1
                     : left <= 0               ? 0
                                               : (int)(left / SP_NS_PER_MS) + 1;
    struct pollfd p = {.fd = a->signal_fd, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) > 0) {
        struct signalfd_siginfo info;
        if (read(a->signal_fd, &info, sizeof info) == sizeof info)
            on_signal(a, (int)info.ssi_signo);
    } else if (a->kill_at_ns != SP_NEVER && sp_now_ns() >= a->kill_at_ns) {
        kill_child(&a->head, SIGKILL);
        kill_child(&a->rank, SIGKILL);
        a->kill_at_ns = SP_NEVER;
    }
}

/* A rank that refused (10) or whose hardware failed (30) knows best; a signal is a lost peer. */
static int exit_code(const agent *a) {
    if (a->rank.code == SP_EXIT_CONFIG || a->rank.code == SP_EXIT_HARDWARE) return a->rank.code;
    if (a->stop_signals > 1 && a->head.code < 0) return 128 + SIGINT;
    return a->head.code < 0 ? SP_EXIT_PEER : a->head.code;
}

static sp_status open_signals(agent *a, sp_err *err) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (a->signal_fd < 0) return SP_FAIL(err, SP_E_IO, "signalfd: %s", strerror(errno));
    return SP_OK;
}

int sp_agent_run(const sp_config *config, int argc, char **argv) {
    agent a = {.config = config, .ring_fd = -1, .signal_fd = -1, .kill_at_ns = SP_NEVER};
    sp_err err = {0};
    sp_status st = open_signals(&a, &err);
    if (st == SP_OK) st = sp_ring_create(&a.ring_fd, RING_BYTES, &err);
    if (st == SP_OK) st = start_children(&a, argc, argv, &err);
    if (st != SP_OK) {
        sp_error("%s", err.text);
        kill_child(&a.rank, SIGKILL);
    }
    while (a.head.pid || a.rank.pid) wait_for_events(&a);
    if (a.signal_fd >= 0) close(a.signal_fd);
    if (a.ring_fd >= 0) close(a.ring_fd);
    return st == SP_OK ? exit_code(&a) : SP_EXIT_PEER;
}
