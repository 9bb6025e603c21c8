#include "launcher/bench_group.h"

#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ITERATIONS_MAX 10000000
#define BYTES_MAX ((int64_t)1 << 30)
#define WARM 200
#define ADDRESS_MAX 4096 /* of a UCX worker; real ones are some hundred bytes */
#define TIMEOUT_NS (30 * SP_NS_PER_S)

typedef struct figures {
    double median_us, p99_us, min_us;
    bool right; /* the sums were */
} figures;

typedef struct bench bench;

/* A way to join members: made before they are forked, opened by each. */
typedef struct transport {
    const char *name;
    sp_status (*prepare)(bench *b, const sp_group_config *c, sp_err *err); /* sets b->handle */
    sp_status (*join)(bench *b, sp_group **out, const sp_group_config *c, sp_err *err);
} transport;

struct bench {
    const transport *via;
    int64_t ranks, bytes, iterations;
    int handle;  /* memory that all members see */
    int out[2];  /* pipe: member 0 writes its figures */
    sp_ucx *ucx; /* of a member */
};

/* ---- shm ---- */

static sp_status make_area(bench *b, const sp_group_config *c, sp_err *err) {
    return sp_group_shm_create(&b->handle, c, err);
}

static sp_status join_area(bench *b, sp_group **out, const sp_group_config *c, sp_err *err) {
    return sp_group_open_shm(out, b->handle, c, err);
}

/* ---- ucx: a file of addresses, in which each member writes its own ---- */

typedef struct entry {
    uint32_t bytes; /* 0: not written yet */
    unsigned char address[ADDRESS_MAX];
} entry;

static sp_status make_book(bench *b, const sp_group_config *c, sp_err *err) {
    return sp_memfd_create(&b->handle, "superpod-bench", (size_t)c->n * sizeof(entry), false, err);
}

/* The length last: who reads one other than 0 finds the address there. */
static sp_status write_entry(const bench *b, int me, sp_err *err) {
    size_t bytes;
    const void *address = sp_ucx_address(b->ucx, &bytes);
    const uint32_t length = (uint32_t)bytes;
    off_t at = (off_t)me * (off_t)sizeof(entry);
    if (bytes > ADDRESS_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "a UCX address of %zu bytes, at most %d", bytes,
                       ADDRESS_MAX);
    if (pwrite(b->handle, address, bytes, at + (off_t)offsetof(entry, address)) == (ssize_t)bytes &&
        pwrite(b->handle, &length, sizeof length, at) == sizeof length)
        return SP_OK;
    return SP_FAIL(err, SP_E_IO, "telling the others an address: %s", strerror(errno));
}

static sp_status read_entries(const bench *b, entry *of, sp_ucx_peer *peers, int n, sp_err *err) {
    const struct timespec nap = {.tv_nsec = SP_NS_PER_MS};
    int64_t deadline = sp_now_ns() + TIMEOUT_NS;
    for (int i = 0; i < n; i++) {
        off_t at = (off_t)i * (off_t)sizeof *of;
        while (pread(b->handle, &of[i].bytes, sizeof of[i].bytes, at) == sizeof of[i].bytes &&
               of[i].bytes == 0) {
            if (sp_now_ns() >= deadline)
                return SP_FAIL(err, SP_E_TIMEOUT, "member %d did not say its address", i);
            nanosleep(&nap, NULL);
        }
        if (pread(b->handle, &of[i], sizeof *of, at) != sizeof *of || of[i].bytes > ADDRESS_MAX)
            return SP_FAIL(err, SP_E_IO, "reading the address of member %d", i);
        peers[i] = (sp_ucx_peer){of[i].address, of[i].bytes};
    }
    return SP_OK;
}

static sp_status join_by_book(bench *b, sp_group **out, const sp_group_config *c, sp_err *err) {
    sp_ucx_peer peers[SP_GROUP_MEMBERS_MAX];
    entry *of = sp_alloc((size_t)c->n * sizeof *of);
    sp_status st = sp_ucx_open(&b->ucx, err);
    if (st == SP_OK) st = write_entry(b, c->me, err);
    if (st == SP_OK) st = read_entries(b, of, peers, c->n, err);
    if (st == SP_OK) st = sp_group_open_ucx(out, b->ucx, peers, 1, c, err);
    sp_free(of);
    return st;
}

static const transport transports[] = {{"shm", make_area, join_area},
                                       {"ucx", make_book, join_by_book}};

/* ---- measuring ---- */

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Member m adds (m + 1) * (1 + i mod 7): the sums are whole numbers, exact in any order. */
static void fill(float *buf, size_t n, int m) {
    for (size_t i = 0; i < n; i++) buf[i] = (float)((m + 1) * (int)(1 + i % 7));
}

static bool is_right(const float *buf, size_t n, int members) {
    int sum = members * (members + 1) / 2;
    for (size_t i = 0; i < n; i++)
        if (buf[i] != (float)(sum * (int)(1 + i % 7))) return false;
    return true;
}

static sp_status measure(const bench *b, sp_group *g, figures *f, sp_err *err) {
    size_t n = (size_t)b->bytes / sizeof(float), times = (size_t)b->iterations;
    float *fresh = sp_try_alloc_array(n, sizeof *fresh), *buf = sp_try_alloc_array(n, sizeof *buf);
    int64_t *ns = sp_try_alloc_array(times, sizeof *ns);
    sp_status st = SP_E_NOMEM;
    if (!fresh || !buf || !ns) {
        st = SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes and %zu times", n * sizeof *buf,
                     times);
        goto free_all;
    }
    fill(fresh, n, g->me);
    for (size_t i = 0; i < times + WARM; i++) {
        memcpy(buf, fresh, n * sizeof *buf); /* as a product just computed: in this core's cache */
        int64_t begin = sp_now_ns();
        g->ops->all_reduce(g, buf, n);
        if (i >= WARM) ns[i - WARM] = sp_now_ns() - begin;
    }
    st = g->ops->poll(g, sp_now_ns() + TIMEOUT_NS, err);
    if (st != SP_OK) goto free_all;
    qsort(ns, times, sizeof *ns, by_value);
    *f = (figures){.median_us = (double)ns[times / 2] / 1e3,
                   .p99_us = (double)ns[times - 1 - times / 100] / 1e3,
                   .min_us = (double)ns[0] / 1e3,
                   .right = is_right(buf, n, g->n)};

free_all:
    sp_free(ns);
    sp_free(buf);
    sp_free(fresh);
    return st;
}

static sp_group_config config_of(const bench *b, int me) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return (sp_group_config){.n = (int)b->ranks,
                             .me = me,
                             .max_reduce = (size_t)b->bytes / sizeof(float),
                             .max_message = 4096,
                             .timeout_ns = TIMEOUT_NS,
                             .crowded = b->ranks > cores};
}

/* The life of one member's process. */
static int be_member(bench *b, int me) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(b->out[0]);
    sp_group_config c = config_of(b, me);
    sp_group *g;
    sp_err err = {0};
    figures f = {0};
    sp_status st = b->via->join(b, &g, &c, &err);
    if (st == SP_OK) {
        st = measure(b, g, &f, &err);
        g->ops->close(g);
    }
    sp_ucx_close(b->ucx);
    if (st != SP_OK)
        fprintf(stderr, "superpod: member %d: %s\n", me, err.text);
    else if (!f.right)
        fprintf(stderr, "superpod: member %d got a wrong sum\n", me);
    if (st != SP_OK || !f.right) return 1;
    return me == 0 && write(b->out[1], &f, sizeof f) != sizeof f;
}

/* Forks the members and waits for all. False: one of them failed. */
static bool run_members(bench *b) {
    pid_t pids[SP_GROUP_MEMBERS_MAX];
    int n = 0;
    bool good = true;
    fflush(NULL);
    for (; n < b->ranks; n++) {
        pids[n] = fork();
        if (pids[n] == 0) _exit(be_member(b, n));
        if (pids[n] > 0) continue;
        fprintf(stderr, "superpod: fork: %s\n", strerror(errno));
        good = false;
        break;
    }
    for (int i = 0; i < n; i++) {
        if (!good) kill(pids[i], SIGKILL);
        int how = 0;
        if (waitpid(pids[i], &how, 0) != pids[i] || how != 0) good = false;
    }
    return good;
}

static void print_line(const bench *b, const figures *f) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "ranks"), sp_jw_int(&w, b->ranks);
    sp_jw_key(&w, "bytes"), sp_jw_int(&w, b->bytes);
    sp_jw_key(&w, "transport"), sp_jw_str(&w, b->via->name);
    sp_jw_key(&w, "iterations"), sp_jw_int(&w, b->iterations);
    sp_jw_key(&w, "median_us"), sp_jw_number(&w, f->median_us);
    sp_jw_key(&w, "p99_us"), sp_jw_number(&w, f->p99_us);
    sp_jw_key(&w, "min_us"), sp_jw_number(&w, f->min_us);
    sp_jw_key(&w, "gb_per_s"), sp_jw_number(&w, (double)b->bytes / f->median_us / 1e3);
    sp_jw_object_end(&w);
    printf("%s\n", text.failed ? "{}" : text.ptr);
    sp_buf_fini(&text);
}

static int run(bench *b) {
    sp_err err = {0};
    sp_group_config c = config_of(b, 0);
    figures f;
    if (b->via->prepare(b, &c, &err) != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_CONFIG;
    }
    if (pipe(b->out) != 0) {
        fprintf(stderr, "superpod: pipe: %s\n", strerror(errno));
        close(b->handle);
        return SP_EXIT_CONFIG;
    }
    bool good = run_members(b);
    close(b->out[1]);
    good = good && read(b->out[0], &f, sizeof f) == sizeof f;
    close(b->out[0]);
    close(b->handle);
    if (!good) return SP_EXIT_PEER;
    print_line(b, &f);
    return SP_EXIT_OK;
}

static int help(FILE *to) {
    fputs(
        "usage: superpod bench allreduce [--ranks N] [--bytes B] [--iterations I]\n"
        "                                [--transport shm|ucx]\n\n"
        "  --ranks N        processes on this node, 1 to 64 (2)\n"
        "  --bytes B        of one sum, a multiple of 4; 16k, 1MiB (16KiB)\n"
        "  --iterations I   timed sums (5000)\n"
        "  --transport T    shm (inside a node) or ucx (between nodes; here over loopback) (shm)\n"
        "\nPrints one line of JSON: median, 99th percentile and minimum at member 0.\n",
        to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

static bool read_int(const char *text, bool is_bytes, int64_t min, int64_t max, int64_t *out) {
    sp_slice s = sp_slice_of(text);
    int64_t v = -1;
    uint64_t bytes = 0;
    if (is_bytes ? sp_parse_bytes(s, &bytes) != SP_OK : sp_parse_i64(s, &v) != SP_OK) return false;
    if (is_bytes) v = bytes > (uint64_t)max ? -1 : (int64_t)bytes;
    if (v < min || v > max) return false;
    *out = v;
    return true;
}

static bool read_option(bench *b, const char *name, const char *value) {
    if (strcmp(name, "--ranks") == 0)
        return read_int(value, false, 1, SP_GROUP_MEMBERS_MAX, &b->ranks);
    if (strcmp(name, "--bytes") == 0)
        return read_int(value, true, 4, BYTES_MAX, &b->bytes) && b->bytes % 4 == 0;
    if (strcmp(name, "--iterations") == 0)
        return read_int(value, false, 1, ITERATIONS_MAX, &b->iterations);
    if (strcmp(name, "--transport") != 0) return false;
    for (size_t i = 0; i < SP_LEN(transports); i++) {
        if (strcmp(value, transports[i].name) != 0) continue;
        b->via = &transports[i];
        return true;
    }
    return false;
}

int sp_bench_group(int argc, char **argv) {
    bench b = {.via = &transports[0], .ranks = 2, .bytes = 16384, .iterations = 5000};
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return help(stdout);
        if (i + 1 < argc && read_option(&b, argv[i], argv[i + 1])) continue;
        fprintf(stderr, "superpod: bench allreduce: cannot take '%s %s'\n", argv[i],
                i + 1 < argc ? argv[i + 1] : "");
        return help(stderr);
    }
    return run(&b);
}
