#include "tests/ucx_cast.h"

#include "runtime/base/clock.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
/* What UCX keeps until the process ends. Nothing of ours. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libucs\nleak:libucp\nleak:libuct\nleak:libucm\n";
}
#endif
#ifdef __SANITIZE_THREAD__
/* UCX is not instrumented: its spin locks are not seen. It ends what it began from the loader, whose
 * function has a name only where its symbols are installed. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
    return "called_from_lib:libucs.so\ncalled_from_lib:libucp.so\ncalled_from_lib:libuct.so\n"
           "called_from_lib:libucm.so\ndeadlock:libucm\nmutex:_dl_call_fini\nmutex:ld-linux\n";
}
#endif

void sp_cast_want(member *m, bool cond, int line) {
    if (cond) return;
    m->bad++;
    fprintf(stderr, "    member %d of %d: line %d\n", m->me, m->config.n, line);
}

void sp_cast_want_poll(member *m, sp_status wanted, const char *words, int line) {
    sp_err err = {0};
    sp_status st = m->g->ops->poll(m->g, SP_NEVER, &err);
    bool good = st == wanted && (!words || strstr(err.text, words));
    if (!good) fprintf(stderr, "    got %s: %s\n", sp_status_name(st), err.text);
    sp_cast_want(m, good, line);
}

bool sp_cast_has_ucx(void) {
    sp_ucx *u;
    sp_err err = {0};
    sp_status st = sp_ucx_open(&u, &err);
    if (st == SP_OK) sp_ucx_close(u);
    if (st != SP_OK && st != SP_E_UNSUPPORTED) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT(st == SP_OK || st == SP_E_UNSUPPORTED);
    return st == SP_OK;
}

sp_group_config sp_cast_config_of(int n) {
    return (sp_group_config){.n = n,
                             .max_reduce = 100000,
                             .max_message = 1 << 16,
                             .timeout_ns = 5 * SP_NS_PER_S,
                             .crowded = n > 2};
}

/* ---- members as threads ---- */

void sp_cast_open_group(member *m, uint32_t id) {
    sp_err err = {0};
    m->g = NULL;
    sp_status st = sp_group_open_ucx(&m->g, m->ucx, m->peers, id, &m->config, &err);
    if (st != SP_OK) fprintf(stderr, "    %s\n", err.text);
    WANT(m, st == SP_OK);
}

static void *thread_main(void *arg) {
    member *m = arg;
    cast *c = m->cast;
    WANT(m, sp_ucx_open(&m->ucx, NULL) == SP_OK);
    c->peers[m->me].address = sp_ucx_address(m->ucx, &c->peers[m->me].bytes);
    pthread_barrier_wait(&c->barrier);
    sp_cast_open_group(m, 7);
    if (m->g) {
        c->play(m);
        if (m->g) m->g->ops->close(m->g);
    }
    pthread_barrier_wait(&c->barrier);
    sp_ucx_close(m->ucx);
    return NULL;
}

int sp_cast_play_threads(const sp_group_config *config, void (*play)(member *m)) {
    cast c = {.config = *config, .play = play};
    member members[MEMBERS_MAX];
    pthread_t threads[MEMBERS_MAX];
    int bad = 0;
    pthread_barrier_init(&c.barrier, NULL, (unsigned)config->n);
    for (int i = 0; i < config->n; i++) {
        members[i] = (member){.cast = &c, .me = i, .peers = c.peers, .config = *config};
        members[i].config.me = i;
        pthread_create(&threads[i], NULL, thread_main, &members[i]);
    }
    for (int i = 0; i < config->n; i++) {
        pthread_join(threads[i], NULL);
        bad += members[i].bad;
    }
    pthread_barrier_destroy(&c.barrier);
    return bad;
}

void sp_cast_meet(member *m) {
    pthread_barrier_wait(&m->cast->barrier);
}

/* ---- members as processes ---- */

static bool move_all(int fd, void *data, size_t bytes, bool in) {
    for (size_t at = 0; at < bytes;) {
        ssize_t n =
            in ? read(fd, (char *)data + at, bytes - at) : write(fd, (char *)data + at, bytes - at);
        if (n <= 0) return false;
        at += (size_t)n;
    }
    return true;
}

static int child_main(const sp_group_config *config, int me, int from_parent, int to_parent,
                      void (*play)(member *m)) {
    static packet all[MEMBERS_MAX];
    sp_ucx_peer peers[MEMBERS_MAX];
    member m = {.me = me, .peers = peers, .config = *config};
    m.config.me = me;
    packet own = {0};
    if (sp_ucx_open(&m.ucx, NULL) == SP_OK) {
        const void *address = sp_ucx_address(m.ucx, &own.bytes);
        if (own.bytes <= ADDRESS_MAX) memcpy(own.address, address, own.bytes);
    }
    if (!move_all(to_parent, &own, sizeof own, false) || own.bytes == 0) return 2;
    if (!move_all(from_parent, all, (size_t)config->n * sizeof *all, true)) return 3;
    for (int i = 0; i < config->n; i++) peers[i] = (sp_ucx_peer){all[i].address, all[i].bytes};
    sp_cast_open_group(&m, 9);
    if (m.g) {
        play(&m);
        m.g->ops->close(m.g);
    }
    /* Nobody leaves before all have done: the last word of a parent. */
    char c = 'x';
    move_all(to_parent, &c, 1, false);
    move_all(from_parent, &c, 1, true);
    sp_ucx_close(m.ucx);
    return m.bad ? 1 : 0;
}

static void start_child(troupe *t, const sp_group_config *config, int i, void (*play)(member *m)) {
    int down[2], up[2];
    CU_ASSERT_FATAL(pipe(down) == 0 && pipe(up) == 0);
    fflush(NULL);
    t->pids[i] = fork();
    if (t->pids[i] == 0) {
        for (int k = 0; k < i; k++) {
            close(t->to[k]);
            close(t->from[k]);
        }
        close(down[1]);
        close(up[0]);
        int rc = child_main(config, i, down[0], up[1], play);
        fflush(NULL);
        _exit(rc);
    }
    close(down[0]);
    close(up[1]);
    t->to[i] = down[1];
    t->from[i] = up[0];
}

/* Starts the children and hands the addresses round. */
bool sp_cast_start_children(troupe *t, const sp_group_config *config, void (*play)(member *m)) {
    static packet all[MEMBERS_MAX];
    bool good = true;
    t->n = config->n;
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < t->n; i++) start_child(t, config, i, play);
    for (int i = 0; i < t->n; i++) good = good && move_all(t->from[i], &all[i], sizeof *all, true);
    for (int i = 0; i < t->n; i++)
        good = good && move_all(t->to[i], all, (size_t)t->n * sizeof *all, false);
    return good;
}

/* Waits for all; `killed` is expected to have died by SIGKILL (-1: nobody). The number of others
 * that did not end well. */
int sp_cast_end_children(troupe *t, int killed) {
    int bad = 0;
    char c = 'x';
    for (int i = 0; i < t->n; i++)
        if (i != killed) move_all(t->from[i], &c, 1, true);
    for (int i = 0; i < t->n; i++) {
        int status;
        if (i != killed) move_all(t->to[i], &c, 1, false);
        waitpid(t->pids[i], &status, 0);
        if (i == killed)
            bad += !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        else
            bad += !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        close(t->to[i]);
        close(t->from[i]);
    }
    return bad;
}

int sp_cast_play_processes(const sp_group_config *config, void (*play)(member *m)) {
    troupe t;
    if (!sp_cast_start_children(&t, config, play)) return 1000 + sp_cast_end_children(&t, -1);
    return sp_cast_end_children(&t, -1);
}

/* ---- values and the sum that they must give ---- */

/* Of very different sizes, so that another order of adding gives other bits; some are -0. */
float sp_cast_value(int member_no, size_t i) {
    uint32_t h = (uint32_t)i * 2654435761u ^ (uint32_t)(member_no + 1) * 2246822519u;
    h ^= h >> 15;
    h *= 2654435761u;
    h ^= h >> 13;
    if (i % 11 == 3) return -0.0f;
    float f = (float)(int32_t)h / 65536.0f;
    return (h & 7) == 0 ? f * 1e-6f : (h & 7) == 1 ? f * 1e5f : f;
}

static float tree(size_t i, int from, int width, int n) {
    if (width == 1) return sp_cast_value(from, i);
    float left = tree(i, from, width / 2, n);
    if (from + width / 2 >= n) return left;
    return left + tree(i, from + width / 2, width / 2, n);
}

static float wanted_sum(size_t i, int n) {
    int width = 1;
    while (width < n) width *= 2;
    return tree(i, 0, width, n);
}

void sp_cast_reduce_and_check(member *m, size_t n) {
    float *buf = malloc((n + 1) * sizeof *buf);
    for (size_t i = 0; i < n; i++) buf[i] = sp_cast_value(m->me, i);
    buf[n] = 42;
    m->g->ops->all_reduce(m->g, buf, n);
    WANT_POLL(m, SP_OK, NULL);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        float w = wanted_sum(i, m->config.n);
        wrong += memcmp(&w, &buf[i], sizeof w) != 0;
    }
    WANT(m, wrong == 0);
    WANT(m, buf[n] == 42);
    free(buf);
}

void sp_cast_pick_and_check(member *m, size_t n_rows, size_t cols, int pattern) {
    float *rows = calloc(n_rows * cols + 1, sizeof *rows);
    int32_t *owner = calloc(n_rows + 1, sizeof *owner);
    for (size_t r = 0; r < n_rows; r++) {
        owner[r] = pattern < 0 ? (int32_t)(r * 7 % (size_t)m->config.n) : pattern;
        for (size_t c = 0; c < cols; c++) rows[r * cols + c] = sp_cast_value(m->me, r * cols + c);
    }
    m->g->ops->pick_rows(m->g, rows, n_rows, cols, owner);
    WANT_POLL(m, SP_OK, NULL);
    size_t wrong = 0;
    for (size_t i = 0; i < n_rows * cols; i++) {
        float w = sp_cast_value(owner[i / cols], i);
        wrong += memcmp(&w, &rows[i], sizeof w) != 0;
    }
    WANT(m, wrong == 0);
    free(rows);
    free(owner);
}

void sp_cast_gather_and_check(member *m, int root, size_t n_rows, const int32_t *cols) {
    size_t total = 0, mine = (size_t)cols[m->me];
    for (int i = 0; i < m->config.n; i++) total += (size_t)cols[i];
    float *own = calloc(n_rows * mine + 1, sizeof *own);
    float *out = m->me == root ? malloc((n_rows * total + 1) * sizeof *out) : NULL;
    for (size_t i = 0; i < n_rows * mine; i++) own[i] = sp_cast_value(m->me, i);
    m->g->ops->gather_cols(m->g, root, own, out, n_rows, cols);
    WANT_POLL(m, SP_OK, NULL);
    size_t wrong = 0;
    for (size_t r = 0; out && r < n_rows; r++) {
        float *row = out + r * total;
        for (int k = 0; k < m->config.n; k++)
            for (size_t c = 0; c < (size_t)cols[k]; c++, row++) {
                float w = sp_cast_value(k, r * (size_t)cols[k] + c);
                wrong += memcmp(&w, row, sizeof w) != 0;
            }
    }
    WANT(m, wrong == 0);
    free(own);
    free(out);
}
