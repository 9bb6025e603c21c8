#include "launcher/bench_wireup.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RANKS_MAX 512
#define RUNS_MAX 1000
#define RUN_LIMIT_NS (120 * SP_NS_PER_S)
#define LINE_MAX_BYTES 2048

/* Small in all that costs memory, divisible by every number of ranks a pod may have. */
static const char tiny[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":512,"
    "\"hidden_size\":512,\"intermediate_size\":512,\"num_hidden_layers\":64,"
    "\"num_attention_heads\":64,\"num_key_value_heads\":64,\"head_dim\":8,"
    "\"max_position_embeddings\":2048,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
    "\"bos_token_id\":0,\"eos_token_id\":1}\n";

typedef struct bench {
    int64_t ranks, tp, pp, runs;
    const char *model; /* as given, or `folder` */
    char folder[256];  /* ours; "": none */
    bool json;
    int signal_fd; /* who stops us stops the pod, and the folder goes */
    double *formed_ms, *ready_ms, *ended_ms, *cpu_ms; /* [runs] */
} bench;

/* What a pod says, line by line. */
typedef struct ear {
    int fd;
    size_t n;
    char line[LINE_MAX_BYTES];
    char last[200]; /* for words when it fails */
} ear;

/* One start. */
typedef struct start {
    pid_t pid;
    int64_t began_ns, formed_ns, ready_ns; /* 0: not yet */
    ear out, err;
} start;

/* ---- the model ---- */

static void remove_model(bench *b) {
    char path[300];
    if (!b->folder[0]) return;
    snprintf(path, sizeof path, "%s/config.json", b->folder);
    if (unlink(path) != 0 || rmdir(b->folder) != 0)
        fprintf(stderr, "superpod: '%s' is left behind: %s\n", b->folder, strerror(errno));
    b->folder[0] = 0;
}

static sp_status make_model(bench *b, sp_err *err) {
    if (b->model) return SP_OK;
    const char *tmp = getenv("TMPDIR");
    char folder[sizeof b->folder], path[300];
    int n =
        snprintf(folder, sizeof folder, "%s/superpod-wireup-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (n < 0 || (size_t)n >= sizeof folder)
        return SP_FAIL(err, SP_E_TOOLONG, "TMPDIR is %zu bytes long", strlen(tmp));
    if (!mkdtemp(folder))
        return SP_FAIL(err, SP_E_IO, "'%s' cannot be made: %s", folder, strerror(errno));
    snprintf(b->folder, sizeof b->folder, "%s", folder);
    b->model = b->folder;
    snprintf(path, sizeof path, "%s/config.json", folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t wrote = fd < 0 ? -1 : write(fd, tiny, sizeof tiny - 1);
    int saved = errno;
    if (fd >= 0) close(fd);
    if (wrote == (ssize_t)sizeof tiny - 1) return SP_OK;
    return SP_FAIL(err, SP_E_IO, "'%s' cannot be written: %s", path, strerror(saved));
}

/* ---- a pod of its own ---- */

SP_NORETURN static void become(const bench *b, int out, int err, pid_t parent) {
    char tp[24], pp[24];
    snprintf(tp, sizeof tp, "%lld", (long long)b->tp);
    snprintf(pp, sizeof pp, "%lld", (long long)b->pp);
    const char *args[] = {"superpod",
                          "serve",
                          "--null-model",
                          "--model",
                          b->model,
                          "--tp",
                          tp,
                          "--pp",
                          pp,
                          "--port",
                          "0",
                          "--host",
                          "127.0.0.1",
                          "--role",
                          "head",
                          "--nnodes",
                          "1",
                          "--preflight",
                          "off",
                          "--log-level",
                          "info",
                          "--log-format",
                          "text",
                          NULL};
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_UNBLOCK, &all, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int null = open("/dev/null", O_RDONLY);
    bool ok = null >= 0 && dup2(null, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2;
    if (ok && getppid() == parent) execv("/proc/self/exe", (char *const *)(uintptr_t)args);
    _exit(SP_EXIT_HARDWARE);
}

static sp_status start_pod(const bench *b, start *s, sp_err *err) {
    int out[2], log[2];
    if (pipe2(out, O_CLOEXEC) != 0) return SP_FAIL(err, SP_E_IO, "pipe: %s", strerror(errno));
    if (pipe2(log, O_CLOEXEC) != 0) {
        close(out[0]), close(out[1]);
        return SP_FAIL(err, SP_E_IO, "pipe: %s", strerror(errno));
    }
    *s = (start){.out = {.fd = out[0]}, .err = {.fd = log[0]}, .began_ns = sp_now_ns()};
    pid_t self = getpid();
    s->pid = fork();
    if (s->pid == 0) become(b, out[1], log[1], self);
    int saved = errno;
    close(out[1]), close(log[1]);
    if (s->pid > 0) return SP_OK;
    close(out[0]), close(log[0]);
    return SP_FAIL(err, SP_E_NOMEM, "fork: %s", strerror(saved));
}

static void take_line(start *s, ear *e) {
    int64_t now = sp_now_ns();
    e->line[e->n < sizeof e->line ? e->n : sizeof e->line - 1] = 0;
    if (e == &s->out && strncmp(e->line, "superpod: serving ", 18) == 0) s->ready_ns = now;
    if (e == &s->err && strstr(e->line, "pod: pod of ")) s->formed_ns = now;
    if (e->n) snprintf(e->last, sizeof e->last, "%.190s", e->line);
}

/* False: it has closed. Lines longer than the room are cut. */
static bool listen_to(start *s, ear *e) {
    char bytes[4096];
    ssize_t n = read(e->fd, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) return true;
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') {
            if (e->n + 1 < sizeof e->line) e->line[e->n++] = bytes[i];
            continue;
        }
        take_line(s, e);
        e->n = 0;
    }
    if (n > 0) return true;
    close(e->fd);
    e->fd = -1;
    return false;
}

typedef enum heard {
    HEARD, /* what was waited for */
    HEARD_TOO_LATE,
    HEARD_SIGNAL,
} heard;

/* Until both ends are closed, so until the last process has ended; or until it serves. */
static heard listen_on(const bench *b, start *s, bool until_ready, int64_t deadline_ns) {
    while ((s->out.fd >= 0 || s->err.fd >= 0) && !(until_ready && s->ready_ns)) {
        int64_t left = deadline_ns - sp_now_ns();
        struct pollfd p[3] = {{.fd = s->out.fd, .events = POLLIN},
                              {.fd = s->err.fd, .events = POLLIN},
                              {.fd = until_ready ? b->signal_fd : -1, .events = POLLIN}};
        if (left <= 0) return HEARD_TOO_LATE;
        if (poll(p, 3, (int)(left / SP_NS_PER_MS) + 1) <= 0) continue;
        if (p[0].revents) listen_to(s, &s->out);
        if (p[1].revents) listen_to(s, &s->err);
        if (p[2].revents) return HEARD_SIGNAL;
    }
    return HEARD;
}

static double ms(int64_t ns) {
    return (double)ns / 1e6;
}

static double cpu_of(const struct rusage *u) {
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) * 1e3 +
           (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) / 1e3;
}

static sp_status judge(const bench *b, const start *s, heard h, int how, sp_err *err) {
    int code = WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    if (h == HEARD_SIGNAL) return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
    if (h == HEARD_TOO_LATE)
        return SP_FAIL(err, SP_E_TIMEOUT, "%d ranks were not ready within %d s", (int)b->ranks,
                       (int)(RUN_LIMIT_NS / SP_NS_PER_S));
    if (s->ready_ns && code == 0) return SP_OK;
    return SP_FAIL(err, code == SP_EXIT_CONFIG ? SP_E_INVALID : SP_E_PEER_LOST,
                   "the pod ended with %d: %s", code, s->err.last);
}

/* Starts, waits until it serves, drains. Its agent's death would take all others along. */
static sp_status run_once(bench *b, int64_t i, sp_err *err) {
    start s;
    struct rusage used = {0};
    int how = 0;
    SP_TRY(start_pod(b, &s, err));
    heard h = listen_on(b, &s, true, s.began_ns + RUN_LIMIT_NS);
    int64_t stopped_ns = sp_now_ns();
    kill(s.pid, h == HEARD_TOO_LATE ? SIGKILL : SIGTERM);
    if (listen_on(b, &s, false, stopped_ns + RUN_LIMIT_NS) != HEARD) kill(s.pid, SIGKILL);
    while (wait4(s.pid, &how, 0, &used) < 0 && errno == EINTR) continue;
    int64_t ended_ns = sp_now_ns();
    if (s.out.fd >= 0) close(s.out.fd);
    if (s.err.fd >= 0) close(s.err.fd);
    SP_TRY(judge(b, &s, h, how, err));
    b->ready_ms[i] = ms(s.ready_ns - s.began_ns);
    b->formed_ms[i] = s.formed_ns ? ms(s.formed_ns - s.began_ns) : 0;
    b->ended_ms[i] = ms(ended_ns - stopped_ns);
    b->cpu_ms[i] = cpu_of(&used);
    return SP_OK;
}

static sp_status catch_signals(bench *b, sp_err *err) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    b->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    return b->signal_fd >= 0 ? SP_OK : SP_FAIL(err, SP_E_IO, "signalfd: %s", strerror(errno));
}

/* ---- words ---- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int64_t n) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static void print_json(const bench *b, double formed, double ready, double ended, double cpu) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "ranks"), sp_jw_int(&w, b->ranks);
    sp_jw_key(&w, "tp"), sp_jw_int(&w, b->tp);
    sp_jw_key(&w, "pp"), sp_jw_int(&w, b->pp);
    sp_jw_key(&w, "runs"), sp_jw_int(&w, b->runs);
    sp_jw_key(&w, "formed_ms"), sp_jw_number(&w, formed);
    sp_jw_key(&w, "ready_ms"), sp_jw_number(&w, ready);
    sp_jw_key(&w, "ready_ms_min"), sp_jw_number(&w, b->ready_ms[0]);
    sp_jw_key(&w, "ready_ms_max"), sp_jw_number(&w, b->ready_ms[b->runs - 1]);
    sp_jw_key(&w, "ended_ms"), sp_jw_number(&w, ended);
    sp_jw_key(&w, "cpu_ms"), sp_jw_number(&w, cpu);
    sp_jw_object_end(&w);
    printf("%s\n", text.failed ? "{}" : text.ptr);
    sp_buf_fini(&text);
}

static void print(bench *b) {
    double formed = median(b->formed_ms, b->runs), ready = median(b->ready_ms, b->runs);
    double ended = median(b->ended_ms, b->runs), cpu = median(b->cpu_ms, b->runs);
    if (b->json) {
        print_json(b, formed, ready, ended, cpu);
        return;
    }
    printf("%d ranks (tp %d x pp %d), median of %d starts\n", (int)b->ranks, (int)b->tp, (int)b->pp,
           (int)b->runs);
    if (b->ranks > 1) printf("  formed  %8.1f ms  ranks started and introduced\n", formed);
    printf("  ready   %8.1f ms  (%.1f to %.1f)\n", ready, b->ready_ms[0], b->ready_ms[b->runs - 1]);
    printf("  ended   %8.1f ms  after the signal\n", ended);
    printf("  cpu     %8.1f ms  of all processes, start to end\n", cpu);
}

static sp_status run(bench *b, sp_err *err) {
    size_t n = (size_t)b->runs;
    b->formed_ms = sp_alloc(n * sizeof *b->formed_ms);
    b->ready_ms = sp_alloc(n * sizeof *b->ready_ms);
    b->ended_ms = sp_alloc(n * sizeof *b->ended_ms);
    b->cpu_ms = sp_alloc(n * sizeof *b->cpu_ms);
    sp_status st = catch_signals(b, err);
    if (st == SP_OK) st = make_model(b, err);
    for (int64_t i = 0; i < b->runs && st == SP_OK; i++) st = run_once(b, i, err);
    remove_model(b);
    if (b->signal_fd >= 0) close(b->signal_fd);
    if (st == SP_OK) print(b);
    sp_free(b->formed_ms);
    sp_free(b->ready_ms);
    sp_free(b->ended_ms);
    sp_free(b->cpu_ms);
    return st;
}

static int help(FILE *to) {
    fputs("usage: superpod bench wireup [--ranks N] [--tp N] [--pp N] [--runs R] [--model DIR]\n"
          "                             [--json]\n\n"
          "  --ranks N        ranks of the pod, all on this node (8)\n"
          "  --tp N, --pp N   its shape (the lesser of 8 and N; N / tp)\n"
          "  --runs R         starts, of which the median is told (5)\n"
          "  --model DIR      rehearse this model's config.json, not a built-in one\n"
          "  --json           one line of JSON\n",
          to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

static bool read_option(bench *b, const char *name, const char *value) {
    const struct {
        const char *name;
        int64_t *at, max;
    } rows[] = {{"--ranks", &b->ranks, RANKS_MAX},
                {"--tp", &b->tp, 64},
                {"--pp", &b->pp, 64},
                {"--runs", &b->runs, RUNS_MAX}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        int64_t v;
        if (strcmp(name, rows[i].name) != 0) continue;
        if (sp_parse_i64(sp_slice_of(value), &v) != SP_OK || v < 1 || v > rows[i].max) return false;
        *rows[i].at = v;
        return true;
    }
    if (strcmp(name, "--model") != 0) return false;
    b->model = value;
    return true;
}

/* Sizes that were not given follow from those that were. */
static bool settle_shape(bench *b) {
    if (!b->ranks) b->ranks = b->tp && b->pp ? b->tp * b->pp : 8;
    if (!b->tp && b->pp) b->tp = b->ranks / b->pp;
    if (!b->tp) b->tp = b->ranks < 8 ? b->ranks : 8;
    if (!b->pp) b->pp = b->tp ? b->ranks / b->tp : 0;
    return b->tp * b->pp == b->ranks;
}

int sp_bench_wireup(int argc, char **argv) {
    bench b = {.runs = 5};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return help(stdout);
        if (strcmp(argv[i], "--json") == 0) {
            b.json = true;
            continue;
        }
        if (i + 1 < argc && read_option(&b, argv[i], argv[i + 1])) {
            i++;
            continue;
        }
        fprintf(stderr, "superpod: bench wireup: cannot take '%s %s'\n", argv[i],
                i + 1 < argc ? argv[i + 1] : "");
        return help(stderr);
    }
    if (!settle_shape(&b)) {
        fprintf(stderr, "superpod: bench wireup: tp %d x pp %d is not %d ranks\n", (int)b.tp,
                (int)b.pp, (int)b.ranks);
        return SP_EXIT_USAGE;
    }
    sp_err err = {0};
    sp_status st = run(&b, &err);
    if (st == SP_OK) return SP_EXIT_OK;
    fprintf(stderr, "superpod: bench wireup: %s\n", err.text);
    if (st == SP_E_CANCELED) return 128 + SIGINT;
    return st == SP_E_TIMEOUT || st == SP_E_PEER_LOST ? SP_EXIT_PEER : SP_EXIT_CONFIG;
}
