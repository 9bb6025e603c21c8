#include "comm/group_nccl.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

/* Compiled into the CUDA shared object, against the toolkit's headers or the emulator's. Elsewhere
 * there is nothing to queue on. */
#if !__has_include(<cuda_runtime_api.h>)

sp_status sp_group_nccl_id(cu_nccl_id *id, const cu_nccl *nccl, sp_err *err) {
    (void)id, (void)nccl;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "this build has no CUDA");
}

sp_status sp_group_open_nccl(sp_group **out, const cu_nccl *nccl, const cu_nccl_id *id,
                             struct CUstream_st *stream, bool fast, const sp_group_config *config,
                             const sp_group_wait *wait, sp_err *err) {
    (void)out, (void)nccl, (void)id, (void)stream, (void)fast, (void)config, (void)wait;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "this build has no CUDA");
}

size_t sp_group_nccl_bytes(const sp_group_config *config) {
    (void)config;
    return 0;
}

#else

#include "kernels/cuda/kernels.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define OPEN_NS (30 * SP_NS_PER_S)
#define END_NS (3 * SP_NS_PER_S) /* of closing: then the thread and its memory are left behind */
#define SETTLE_NS (30 * SP_NS_PER_S) /* of connecting, when config.timeout_ns is 0 */
#define CALL_NS SP_NS_PER_S          /* a library call that takes longer is stuck */
#define PIECE_MIN ((size_t)4096)
#define DIRECT_MAX ((size_t)65536) /* floats; above, slices move less */
#define INDEX_SLOTS 4
#define SPIN_NS (50 * SP_NS_PER_US)
#define NAP_NS 20000
#define LONG_NS (SP_NS_PER_S / 2) /* who has waited for so long may wait for ever: without haste */
#define LONG_NAP_NS 500000

typedef enum end_how {
    END_NOT,
    END_ABORT,
    END_CLOSE,
} end_how;

typedef struct index_slot {
    int32_t *host, *dev; /* [2 * SP_NCCL_ROWS_MAX] */
    cudaEvent_t copied;
    bool used;
} index_slot;

typedef struct group_nccl {
    sp_group base;
    sp_group_config config;
    const cu_nccl *nccl;
    cudaStream_t stream;
    bool fast;
    size_t piece;   /* floats of one member's contribution at a time */
    float *scratch; /* device [(n + 1) * piece] */
    index_slot index[INDEX_SLOTS];
    unsigned next_index;
    const char *op;            /* queued last */
    int64_t waiting_ns;        /* since when poll() has found work undone; 0: it has not */
    sp_err fault;              /* sticks */
    const sp_group_wait *wait; /* while it is opened; else NULL */

    /* Shared with the thread that ends the communicator. */
    _Atomic bool aborted; /* by abort() */
    pthread_mutex_t call; /* around every call of the library */
    cu_nccl_comm comm;    /* NULL: ended; under `call` */
    pthread_mutex_t lock;
    pthread_cond_t told;
    end_how how; /* under `lock` */
    pthread_t ender;
    bool has_ender;
} group_nccl;

static group_nccl *of(sp_group *g) {
    return (group_nccl *)g;
}

static bool failed(const group_nccl *g) {
    return g->fault.code != SP_OK;
}

static void tell_ender(group_nccl *g, end_how how) {
    pthread_mutex_lock(&g->lock);
    if (g->how == END_NOT) g->how = how;
    pthread_cond_signal(&g->told);
    pthread_mutex_unlock(&g->lock);
}

/* Keeps the first fault, and frees the stream of what waits in it for members. */
static void keep_fault(group_nccl *g) {
    tell_ender(g, END_ABORT);
}
#define FAIL(g, code, ...) (SP_FAIL(&(g)->fault, code, __VA_ARGS__), keep_fault(g))

/* As the device says it (kernels/cuda/cuda_dev.c): whoever meets an error first, the words are one. */
static void fail_cuda(group_nccl *g, cudaError_t e) {
    int index = -1;
    (void)cudaGetDevice(&index);
    FAIL(g, SP_E_DEVICE, "GPU %d: '%s' failed: %s (%s)", index, g->op, cudaGetErrorName(e),
         cudaGetErrorString(e));
}

/* The library's "the device failed" is not all that the device has to say. */
static bool fail_by_device(group_nccl *g) {
    cudaError_t e = cudaStreamQuery(g->stream);
    if (e == cudaSuccess || e == cudaErrorNotReady) return false;
    fail_cuda(g, e);
    return true;
}

static void fail_nccl(group_nccl *g, cu_nccl_result r) {
    if (r == CU_NCCL_CUDA_ERROR && fail_by_device(g)) return;
    const char *words = g->nccl->get_last_error && g->comm ? g->nccl->get_last_error(g->comm) : "";
    sp_status code = r == CU_NCCL_REMOTE_ERROR || r == CU_NCCL_SYSTEM_ERROR ? SP_E_PEER_LOST
                     : r == CU_NCCL_CUDA_ERROR                              ? SP_E_DEVICE
                                                                            : SP_E_INTERNAL;
    FAIL(g, code, "%s: %s%s%s", g->op, g->nccl->get_error_string(r), words && *words ? ": " : "",
         words ? words : "");
}

static void cuda(group_nccl *g, cudaError_t e) {
    if (e != cudaSuccess && !failed(g)) fail_cuda(g, e);
}

static void nap(const group_nccl *g, int64_t since_ns) {
    const int64_t waited = sp_now_ns() - since_ns;
    if (!g->config.crowded && waited < SPIN_NS) return;
    nanosleep(&(struct timespec){.tv_nsec = waited < LONG_NS ? NAP_NS : LONG_NAP_NS}, NULL);
}

/* ---- calls of the library ----
 * The ender destroys the communicator under a call's feet, so each call holds `call` and looks. */

static bool enter(group_nccl *g) {
    if (!failed(g) && atomic_load(&g->aborted)) FAIL(g, SP_E_CANCELED, "the group was aborted");
    if (failed(g)) return false;
    /* Only the ender may have it. */
    if (pthread_mutex_trylock(&g->call) != 0) {
        FAIL(g, SP_E_CANCELED, "the group was aborted");
        return false;
    }
    if (g->comm) return true;
    pthread_mutex_unlock(&g->call);
    FAIL(g, SP_E_CANCELED, "the group was aborted");
    return false;
}

static void leave(group_nccl *g) {
    pthread_mutex_unlock(&g->call);
}

/* The communicator's state; false: there is a fault. */
static bool ask(group_nccl *g, cu_nccl_result *state) {
    if (g->wait && g->wait->gave_up && !failed(g) && g->wait->gave_up(g->wait->ctx))
        FAIL(g, SP_E_CANCELED, "%s: given up", g->op);
    if (!enter(g)) return false;
    cu_nccl_result r = g->nccl->comm_get_async_error(g->comm, state);
    if (r == CU_NCCL_OK && *state != CU_NCCL_OK && *state != CU_NCCL_IN_PROGRESS) r = *state;
    if (r != CU_NCCL_OK) fail_nccl(g, r);
    leave(g);
    return !failed(g);
}

/* The first use of a communicator connects it, on a thread of the library's own: until it says that
 * it is no longer in progress, nothing is on the stream, and what is queued now would overtake it. */
static bool settle(group_nccl *g, int64_t timeout_ns) {
    int64_t since = sp_now_ns();
    cu_nccl_result state = CU_NCCL_IN_PROGRESS;
    while (ask(g, &state) && state == CU_NCCL_IN_PROGRESS) {
        if (sp_now_ns() - since > timeout_ns)
            FAIL(g, SP_E_PEER_LOST, "%s: not all %d members came within %lld ms", g->op, g->base.n,
                 (long long)(timeout_ns / SP_NS_PER_MS));
        else
            nap(g, since);
    }
    return !failed(g);
}

static bool begin(group_nccl *g, const char *op) {
    if (failed(g)) return false;
    g->op = op;
    if (!enter(g)) return false;
    cu_nccl_result r = g->nccl->group_start();
    if (r == CU_NCCL_OK) return true;
    fail_nccl(g, r);
    leave(g);
    return false;
}

/* Ends what begin() began; `r`: the first refusal of a call in it. */
static bool finish(group_nccl *g, cu_nccl_result r) {
    cu_nccl_result ended = g->nccl->group_end();
    if (r == CU_NCCL_OK || r == CU_NCCL_IN_PROGRESS) r = ended;
    if (r != CU_NCCL_OK && r != CU_NCCL_IN_PROGRESS) fail_nccl(g, r);
    leave(g);
    if (failed(g)) return false;
    int64_t timeout = g->config.timeout_ns > 0 ? g->config.timeout_ns : SETTLE_NS;
    return r == CU_NCCL_OK || settle(g, timeout);
}

static void join(cu_nccl_result *first, cu_nccl_result r) {
    if (*first == CU_NCCL_OK || *first == CU_NCCL_IN_PROGRESS) *first = r;
}

static void put(group_nccl *g, cu_nccl_result *r, const float *from, size_t n, int to) {
    if (n) join(r, g->nccl->send(from, n, CU_NCCL_F32, to, g->comm, g->stream));
}

static void get(group_nccl *g, cu_nccl_result *r, float *to, size_t n, int from) {
    if (n) join(r, g->nccl->recv(to, n, CU_NCCL_F32, from, g->comm, g->stream));
}

static bool gather(group_nccl *g, const float *from, float *to, size_t n) {
    if (!begin(g, g->op)) return false;
    return finish(g, g->nccl->all_gather(from, to, n, CU_NCCL_F32, g->comm, g->stream));
}

static void copy(group_nccl *g, float *to, const float *from, size_t n) {
    cuda(g, cudaMemcpyAsync(to, from, n * sizeof *to, cudaMemcpyDeviceToDevice, g->stream));
}

/* ---- all_reduce ---- */

static void reduce_direct(group_nccl *g, float *buf, size_t n) {
    if (gather(g, buf, g->scratch, n))
        cuda(g, cu_tree_sum(g->stream, buf, g->scratch, g->base.n, n));
}

/* Slice m begins here; multiples of 64 floats, so that vectors stay aligned. */
static size_t slice_at(const group_nccl *g, size_t n, int m) {
    size_t at = (n + 63) / 64 * (size_t)m / (size_t)g->base.n * 64;
    return at < n ? at : n;
}

/* Slice m goes to member m, is summed there and comes back to everybody. */
static void reduce_sliced(group_nccl *g, float *buf, size_t n) {
    const int me = g->base.me, members = g->base.n;
    const size_t mine = slice_at(g, n, me), n_mine = slice_at(g, n, me + 1) - mine;
    cu_nccl_result r = CU_NCCL_OK;
    copy(g, g->scratch + (size_t)me * n_mine, buf + mine, n_mine);
    if (!begin(g, "all_reduce")) return;
    for (int k = 1; k < members; k++) {
        int m = (me + k) % members;
        size_t at = slice_at(g, n, m);
        put(g, &r, buf + at, slice_at(g, n, m + 1) - at, m);
        get(g, &r, g->scratch + (size_t)m * n_mine, n_mine, m);
    }
    if (!finish(g, r)) return;
    cuda(g, cu_tree_sum(g->stream, buf + mine, g->scratch, members, n_mine));
    if (!begin(g, "all_reduce")) return;
    r = CU_NCCL_OK;
    for (int k = 1; k < members; k++) {
        int m = (me + k) % members;
        size_t at = slice_at(g, n, m);
        put(g, &r, buf + mine, n_mine, m);
        get(g, &r, buf + at, slice_at(g, n, m + 1) - at, m);
    }
    finish(g, r);
}

static void reduce_fast(group_nccl *g, float *buf, size_t n) {
    if (!begin(g, "all_reduce")) return;
    finish(g, g->nccl->all_reduce(buf, buf, n, CU_NCCL_F32, CU_NCCL_SUM, g->comm, g->stream));
}

static void nccl_all_reduce(sp_group *base, float *buf, size_t n) {
    group_nccl *g = of(base);
    g->op = "all_reduce";
    for (size_t done = 0; done < n && base->n > 1 && !failed(g);) {
        size_t now = n - done < g->piece ? n - done : g->piece;
        if (g->fast)
            reduce_fast(g, buf + done, now);
        else if (now <= DIRECT_MAX || base->n == 2) /* between two, slices save nothing */
            reduce_direct(g, buf + done, now);
        else
            reduce_sliced(g, buf + done, now);
        done += now;
    }
}

/* ---- pick_rows ---- */

/* A slot whose last copy has happened. */
static index_slot *take_index(group_nccl *g) {
    index_slot *s = &g->index[g->next_index++ % INDEX_SLOTS];
    int64_t since = sp_now_ns();
    cudaError_t e = cudaErrorNotReady;
    while (s->used && !failed(g) && (e = cudaEventQuery(s->copied)) == cudaErrorNotReady) {
        cu_nccl_result state;
        if (!ask(g, &state)) break;
        if (g->config.timeout_ns > 0 && sp_now_ns() - since > g->config.timeout_ns)
            FAIL(g, SP_E_PEER_LOST, "%s: a member did not come within %lld ms", g->op,
                 (long long)(g->config.timeout_ns / SP_NS_PER_MS));
        else
            nap(g, since);
    }
    if (s->used && !failed(g)) cuda(g, e);
    return failed(g) ? NULL : s;
}

/* Rows travel packed: each member's own side by side, as many as the member with most of them has,
 * and are put where they belong by their place in what was gathered. */
static void pick_piece(group_nccl *g, float *rows, size_t n_rows, size_t cols, size_t stride,
                       const int32_t *owner) {
    size_t n_own[SP_GROUP_MEMBERS_MAX] = {0}, most = 0;
    for (size_t i = 0; i < n_rows; i++) {
        size_t n = ++n_own[owner[i]];
        if (n > most) most = n;
    }
    index_slot *s = take_index(g);
    if (!s) return;
    int32_t *own = s->host, *place = s->host + n_rows;
    memset(n_own, 0, sizeof n_own);
    for (size_t i = 0; i < n_rows; i++) {
        size_t at = n_own[owner[i]]++;
        if (owner[i] == g->base.me) own[at] = (int32_t)i;
        place[i] = (int32_t)((size_t)owner[i] * most + at);
    }
    const size_t n_mine = n_own[g->base.me];
    cuda(g, cudaMemcpyAsync(s->dev, s->host, 2 * n_rows * sizeof *own, cudaMemcpyHostToDevice,
                            g->stream));
    cuda(g, cudaEventRecord(s->copied, g->stream));
    s->used = true;
    float *packed = g->scratch + (size_t)g->base.n * g->piece;
    if (n_mine)
        cuda(g, cu_gather_rows(g->stream, packed, (int32_t)cols, rows, (int32_t)stride, s->dev,
                               (int32_t)n_mine, (int32_t)cols));
    if (failed(g) || !gather(g, packed, g->scratch, most * cols)) return;
    cuda(g, cu_gather_rows(g->stream, rows, (int32_t)stride, g->scratch, (int32_t)cols,
                           s->dev + n_rows, (int32_t)n_rows, (int32_t)cols));
}

static void nccl_pick_rows(sp_group *base, float *rows, size_t n_rows, size_t cols,
                           const int32_t *owner) {
    group_nccl *g = of(base);
    g->op = "pick_rows";
    if (cols > INT32_MAX && !failed(g)) FAIL(g, SP_E_INTERNAL, "pick_rows: %zu columns", cols);
    for (size_t i = 0; i < n_rows && !failed(g); i++)
        if (owner[i] < 0 || owner[i] >= base->n)
            FAIL(g, SP_E_INTERNAL, "pick_rows: row %zu is of member %d, there are %d", i, owner[i],
                 base->n);
    if (base->n == 1 || cols == 0) return;
    const size_t width = cols < g->piece ? cols : g->piece;
    size_t height = g->piece / width;
    if (height > SP_NCCL_ROWS_MAX) height = SP_NCCL_ROWS_MAX;
    for (size_t i = 0; i < n_rows && !failed(g); i += height)
        for (size_t c = 0; c < cols && !failed(g); c += width)
            pick_piece(g, rows + i * cols + c, n_rows - i < height ? n_rows - i : height,
                       cols - c < width ? cols - c : width, cols, owner + i);
}

/* ---- gather_cols ---- */

/* Rows row.. of columns col.. (below each member's number) of everybody, to the root. */
typedef struct cols_tile {
    const float *mine;
    float *out;
    const int32_t *cols;
    size_t all; /* columns of `out` */
    size_t row, n_rows, col, n_cols;
} cols_tile;

static size_t tile_width(const cols_tile *t, int m) {
    size_t cols = (size_t)t->cols[m];
    if (cols <= t->col) return 0;
    return cols - t->col < t->n_cols ? cols - t->col : t->n_cols;
}

static void place_tile(group_nccl *g, const cols_tile *t, int m, size_t first, const float *from,
                       size_t stride) {
    size_t width = tile_width(t, m) * sizeof *from;
    if (width)
        cuda(g, cudaMemcpy2DAsync(t->out + t->row * t->all + first + t->col, t->all * sizeof *from,
                                  from, stride * sizeof *from, width, t->n_rows,
                                  cudaMemcpyDeviceToDevice, g->stream));
}

static void gather_tile(group_nccl *g, int root, const cols_tile *t) {
    const int me = g->base.me;
    const size_t stride = (size_t)t->cols[me];
    const float *own = t->mine + t->row * stride + t->col;
    cu_nccl_result r = CU_NCCL_OK;
    if (!begin(g, "gather_cols")) return;
    /* A tile is whole rows or a part of one, so that a member's share lies in one piece. */
    if (me != root) put(g, &r, own, t->n_rows * tile_width(t, me), root);
    for (int m = 0; m < g->base.n && me == root; m++)
        if (m != me) get(g, &r, g->scratch + (size_t)m * g->piece, t->n_rows * tile_width(t, m), m);
    if (!finish(g, r) || me != root) return;
    size_t first = 0;
    for (int m = 0; m < g->base.n && !failed(g); m++) {
        if (m == me)
            place_tile(g, t, m, first, own, stride);
        else
            place_tile(g, t, m, first, g->scratch + (size_t)m * g->piece, tile_width(t, m));
        first += (size_t)t->cols[m];
    }
}

static void nccl_gather_cols(sp_group *base, int root, const float *mine, float *out, size_t n_rows,
                             const int32_t *cols) {
    group_nccl *g = of(base);
    g->op = "gather_cols";
    cols_tile t = {.mine = mine, .out = out, .cols = cols};
    size_t most = 0;
    bool bad = root < 0 || root >= base->n;
    for (int m = 0; m < base->n && !bad; m++) {
        bad = cols[m] < 0;
        if (!bad && (size_t)cols[m] > most) most = (size_t)cols[m];
        t.all += bad ? 0 : (size_t)cols[m];
    }
    if (bad && !failed(g))
        FAIL(g, SP_E_INTERNAL, "gather_cols: no such columns, or root %d of %d", root, base->n);
    if (failed(g) || most == 0) return;
    const size_t width = most < g->piece ? most : g->piece;
    const size_t height = width < most ? 1 : g->piece / most;
    for (t.row = 0; t.row < n_rows && !failed(g); t.row += height)
        for (t.col = 0; t.col < most && !failed(g); t.col += width) {
            t.n_rows = n_rows - t.row < height ? n_rows - t.row : height;
            t.n_cols = width;
            if (base->n == 1)
                place_tile(g, &t, 0, 0, mine + t.row * most + t.col, most);
            else
                gather_tile(g, root, &t);
        }
}

/* ---- messages ---- */

static bool check_peer(group_nccl *g, const char *op, int peer) {
    if (failed(g)) return false;
    g->op = op;
    if (peer >= 0 && peer < g->base.n && peer != g->base.me) return true;
    FAIL(g, SP_E_INTERNAL, "%s: member %d has no member %d beside it", op, g->base.me, peer);
    return false;
}

static void nccl_send(sp_group *base, int to, const void *data, size_t bytes) {
    group_nccl *g = of(base);
    if (!check_peer(g, "send", to) || bytes == 0 || !begin(g, "send")) return;
    finish(g, g->nccl->send(data, bytes, CU_NCCL_UINT8, to, g->comm, g->stream));
}

static void nccl_recv(sp_group *base, int from, void *data, size_t bytes) {
    group_nccl *g = of(base);
    if (!check_peer(g, "recv", from) || bytes == 0 || !begin(g, "recv")) return;
    finish(g, g->nccl->recv(data, bytes, CU_NCCL_UINT8, from, g->comm, g->stream));
}

static bool nccl_can_recv(sp_group *base, int from) {
    (void)base, (void)from;
    return true;
}

/* ---- poll and the end ---- */

static sp_status say_fault(const group_nccl *g, sp_err *err) {
    if (err) *err = g->fault;
    return g->fault.code;
}

static sp_status nccl_poll(sp_group *base, int64_t deadline_ns, sp_err *err) {
    group_nccl *g = of(base);
    const int64_t since = sp_now_ns();
    for (;;) {
        cu_nccl_result state = CU_NCCL_OK;
        if (!ask(g, &state)) return say_fault(g, err);
        cudaError_t e = cudaStreamQuery(g->stream);
        if (e == cudaSuccess) {
            g->waiting_ns = 0;
            return SP_OK;
        }
        int64_t now = sp_now_ns();
        if (e != cudaErrorNotReady)
            fail_cuda(g, e);
        else if (g->waiting_ns == 0)
            g->waiting_ns = now;
        else if (g->config.timeout_ns > 0 && now - g->waiting_ns > g->config.timeout_ns)
            FAIL(g, SP_E_PEER_LOST, "%s: a member did not come within %lld ms", g->op,
                 (long long)(g->config.timeout_ns / SP_NS_PER_MS));
        if (failed(g)) return say_fault(g, err);
        if (now >= deadline_ns) return SP_AGAIN;
        nap(g, since);
    }
}

static void nccl_came(sp_group *base) {
    of(base)->waiting_ns = 0;
}

static void nccl_abort(sp_group *base) {
    atomic_store(&of(base)->aborted, true);
    tell_ender(of(base), END_ABORT);
}

static struct timespec after(clockid_t clock, int64_t ns) {
    struct timespec t;
    clock_gettime(clock, &t);
    ns += t.tv_nsec;
    t.tv_sec += ns / SP_NS_PER_S;
    t.tv_nsec = ns % SP_NS_PER_S;
    return t;
}

/* A healthy end is a meeting of all members; who does not come to it in time is not waited for. */
static cu_nccl_result end_well(const cu_nccl *nccl, cu_nccl_comm comm) {
    cu_nccl_result state = nccl->comm_finalize(comm);
    int64_t until = sp_now_ns() + SP_NS_PER_S;
    while (state == CU_NCCL_IN_PROGRESS && sp_now_ns() < until) {
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
        if (nccl->comm_get_async_error(comm, &state) != CU_NCCL_OK) state = CU_NCCL_INTERNAL_ERROR;
    }
    return state == CU_NCCL_OK ? nccl->comm_destroy(comm) : nccl->comm_abort(comm);
}

static void *end_main(void *arg) {
    group_nccl *g = arg;
    pthread_mutex_lock(&g->lock);
    while (g->how == END_NOT) pthread_cond_wait(&g->told, &g->lock);
    end_how how = g->how;
    pthread_mutex_unlock(&g->lock);
    /* A call that is stuck in the library is what an abort is for: it goes on without the lock. */
    struct timespec t = after(CLOCK_REALTIME, CALL_NS);
    bool locked = pthread_mutex_timedlock(&g->call, &t) == 0;
    cu_nccl_comm comm = g->comm;
    g->comm = NULL;
    if (comm && how == END_CLOSE) end_well(g->nccl, comm);
    if (comm && how == END_ABORT) g->nccl->comm_abort(comm);
    if (locked) pthread_mutex_unlock(&g->call);
    return NULL;
}

static void free_group(group_nccl *g) {
    for (int i = 0; i < INDEX_SLOTS; i++) {
        if (g->index[i].copied) cudaEventDestroy(g->index[i].copied);
        cudaFreeHost(g->index[i].host);
        cudaFree(g->index[i].dev);
    }
    cudaFree(g->scratch);
    pthread_cond_destroy(&g->told);
    pthread_mutex_destroy(&g->lock);
    pthread_mutex_destroy(&g->call);
    sp_free(g);
}

static void nccl_close(sp_group *base) {
    group_nccl *g = of(base);
    struct timespec t = after(CLOCK_REALTIME, END_NS);
    bool idle = !failed(g) && cudaStreamQuery(g->stream) == cudaSuccess;
    tell_ender(g, idle ? END_CLOSE : END_ABORT);
    if (g->has_ender && pthread_timedjoin_np(g->ender, NULL, &t) != 0) {
        pthread_detach(g->ender);
        return;
    }
    /* Aborted operations leave the stream; freeing what they use has to wait for that. */
    int64_t since = sp_now_ns();
    while (cudaStreamQuery(g->stream) == cudaErrorNotReady) {
        if (sp_now_ns() - since > END_NS) return;
        nap(g, since);
    }
    free_group(g);
}

static const sp_group_ops nccl_ops = {
    .name = "nccl",
    .close = nccl_close,
    .all_reduce = nccl_all_reduce,
    .pick_rows = nccl_pick_rows,
    .gather_cols = nccl_gather_cols,
    .send = nccl_send,
    .recv = nccl_recv,
    .can_recv = nccl_can_recv,
    .poll = nccl_poll,
    .came = nccl_came,
    .abort = nccl_abort,
};

/* ---- opening ---- */

sp_status sp_group_nccl_id(cu_nccl_id *id, const cu_nccl *nccl, sp_err *err) {
    cu_nccl_result r = nccl->get_unique_id(id);
    if (r == CU_NCCL_OK) return SP_OK;
    return SP_FAIL(err, SP_E_DEVICE, "no unique id from NCCL %s: %s", nccl->version_text,
                   nccl->get_error_string(r));
}

static sp_status check_config(const sp_group_config *c, sp_err *err) {
    if (c->n < 1 || c->n > SP_GROUP_MEMBERS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a group of %d members, want 1 to %d", c->n,
                       SP_GROUP_MEMBERS_MAX);
    if (c->me < 0 || c->me >= c->n)
        return SP_FAIL(err, SP_E_INVALID, "member %d of a group of %d", c->me, c->n);
    if (c->max_reduce > SIZE_MAX / sizeof(float) / (SP_GROUP_MEMBERS_MAX + 1))
        return SP_FAIL(err, SP_E_INVALID, "contributions of %zu floats", c->max_reduce);
    return SP_OK;
}

static size_t piece_of(const sp_group_config *c) {
    return c->max_reduce < PIECE_MIN ? PIECE_MIN : c->max_reduce;
}

#define INDEX_BYTES (2 * SP_NCCL_ROWS_MAX * sizeof(int32_t))

static size_t scratch_bytes(const sp_group_config *c) {
    return ((size_t)c->n + 1) * piece_of(c) * sizeof(float);
}

size_t sp_group_nccl_bytes(const sp_group_config *config) {
    return scratch_bytes(config) + INDEX_SLOTS * INDEX_BYTES;
}

static sp_status take_memory(group_nccl *g, sp_err *err) {
    const size_t bytes = scratch_bytes(&g->config), index = INDEX_BYTES;
    cudaError_t e = cudaMalloc((void **)&g->scratch, bytes);
    for (int i = 0; i < INDEX_SLOTS && e == cudaSuccess; i++) {
        index_slot *s = &g->index[i];
        e = cudaMallocHost((void **)&s->host, index);
        if (e == cudaSuccess) e = cudaMalloc((void **)&s->dev, index);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming);
    }
    if (e == cudaSuccess) return SP_OK;
    return SP_FAIL(err, e == cudaErrorMemoryAllocation ? SP_E_NOMEM : SP_E_DEVICE,
                   "%zu bytes for a group of %d: %s", bytes, g->base.n, cudaGetErrorString(e));
}

/* Everybody's sizes, so that a difference is an error here and not a wrong number later; it also
 * connects the members before the first step. */
static bool greet(group_nccl *g) {
    uint64_t mine[2] = {g->piece, (uint64_t)g->fast}, all[2 * SP_GROUP_MEMBERS_MAX];
    const size_t bytes = sizeof mine, n = (size_t)g->base.n;
    char *at = (char *)g->scratch;
    float *own = (float *)(void *)(at + n * bytes);
    cuda(g, cudaMemcpyAsync(own, mine, bytes, cudaMemcpyHostToDevice, g->stream));
    if (!gather(g, own, g->scratch, bytes / sizeof(float))) return false;
    if (nccl_poll(&g->base, SP_NEVER, NULL) != SP_OK) return false;
    cuda(g, cudaMemcpyAsync(all, at, n * bytes, cudaMemcpyDeviceToHost, g->stream));
    if (nccl_poll(&g->base, SP_NEVER, NULL) != SP_OK) return false;
    for (int m = 0; m < g->base.n; m++)
        if (memcmp(all + 2 * m, mine, bytes) != 0) {
            FAIL(g, SP_E_INVALID, "member %d has pieces of %llu floats%s, member %d of %llu%s", m,
                 (unsigned long long)all[2 * m], all[2 * m + 1] ? ", fast" : "", g->base.me,
                 (unsigned long long)mine[0], mine[1] ? ", fast" : "");
            return false;
        }
    return true;
}

static bool meet(group_nccl *g, const cu_nccl_id *id) {
    const int64_t timeout = g->config.timeout_ns;
    cu_nccl_config config = cu_nccl_config_make();
    g->op = "open";
    cu_nccl_result r =
        g->nccl->comm_init_rank_config(&g->comm, g->base.n, *id, g->base.me, &config);
    if (r != CU_NCCL_OK && r != CU_NCCL_IN_PROGRESS) {
        const char *words = g->nccl->get_last_error ? g->nccl->get_last_error(NULL) : "";
        sp_status code = r == CU_NCCL_INVALID_ARGUMENT || r == CU_NCCL_INVALID_USAGE
                             ? SP_E_INVALID
                             : SP_E_PEER_LOST;
        FAIL(g, code, "open: %s: %s", g->nccl->get_error_string(r), words ? words : "");
        g->comm = NULL;
        return false;
    }
    int64_t most = timeout > OPEN_NS || timeout <= 0 ? OPEN_NS : timeout;
    if (g->wait) most = g->wait->deadline_ns - sp_now_ns();
    g->config.timeout_ns = most > 1 ? most : 1;
    bool good = settle(g, g->config.timeout_ns) && greet(g);
    g->config.timeout_ns = timeout;
    g->wait = NULL;
    return good;
}

sp_status sp_group_open_nccl(sp_group **out, const cu_nccl *nccl, const cu_nccl_id *id,
                             struct CUstream_st *stream, bool fast, const sp_group_config *config,
                             const sp_group_wait *wait, sp_err *err) {
    SP_TRY(check_config(config, err));
    group_nccl *g = sp_try_alloc(sizeof *g);
    if (!g) return SP_FAIL(err, SP_E_NOMEM, "no memory for a group of %d", config->n);
    g->base = (sp_group){.ops = &nccl_ops, .n = config->n, .me = config->me};
    g->config = *config;
    g->nccl = nccl;
    g->stream = stream;
    g->fast = fast;
    g->piece = piece_of(config);
    g->wait = wait;
    pthread_mutex_init(&g->call, NULL);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->told, NULL);
    sp_status st = take_memory(g, err);
    if (st != SP_OK) {
        free_group(g);
        return st;
    }
    g->has_ender = pthread_create(&g->ender, NULL, end_main, g) == 0;
    if (!g->has_ender) {
        free_group(g);
        return SP_FAIL(err, SP_E_NOMEM, "no thread for a group of %d", config->n);
    }
    if (!meet(g, id)) {
        st = say_fault(g, err);
        nccl_close(&g->base);
        return st;
    }
    *out = &g->base;
    return SP_OK;
}

#endif
