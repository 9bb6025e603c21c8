#include "comm/ucx_api.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#ifndef SP_HAVE_UCX

static sp_status refuse(sp_err *err) {
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "this build has no ucx: its headers were not there when it was compiled");
}

sp_status sp_ucx_open(sp_ucx **out, sp_err *err) {
    (void)out;
    return refuse(err);
}

void sp_ucx_close(sp_ucx *u) {
    (void)u;
}

const void *sp_ucx_address(const sp_ucx *u, size_t *bytes) {
    (void)u;
    *bytes = 0;
    return NULL;
}

const char *sp_ucx_version(const sp_ucx *u) {
    (void)u;
    return "none";
}

sp_status sp_ucx_home_open(sp_ucx_home **out, sp_err *err) {
    (void)out;
    return refuse(err);
}

void sp_ucx_home_close(sp_ucx_home *h) {
    (void)h;
}

sp_status sp_ucx_open_at(sp_ucx **out, sp_ucx_home *h, sp_err *err) {
    (void)out, (void)h;
    return refuse(err);
}

#else

#include <ucp/api/ucp.h>

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LIBRARY "libucp.so.0"
#define SIGNALS_MAX 32
#define GENERATIONS_MAX 1024
#define CLOSE_ROUNDS 1000

/* Everything of UCX that we call. dlsym looks into what libucp needs as well, so that
 * ucs_status_string comes by the same handle. */
#define UCX_CALLS(X) \
    X(ucp_get_version_string) \
    X(ucp_config_read) \
    X(ucp_config_modify) \
    X(ucp_config_release) \
    X(ucp_init_version) \
    X(ucp_cleanup) \
    X(ucp_worker_create) \
    X(ucp_worker_destroy) \
    X(ucp_worker_get_address) \
    X(ucp_worker_release_address) \
    X(ucp_worker_progress) \
    X(ucp_worker_get_efd) \
    X(ucp_worker_arm) \
    X(ucp_ep_create) \
    X(ucp_ep_close_nbx) \
    X(ucp_tag_send_nbx) \
    X(ucp_tag_send_sync_nbx) \
    X(ucp_tag_recv_nbx) \
    X(ucp_tag_probe_nb) \
    X(ucp_tag_msg_recv_nbx) \
    X(ucp_request_cancel) \
    X(ucp_request_check_status) \
    X(ucp_request_free) \
    X(ucs_status_string)

typedef struct ucx_calls {
#define X(name) __typeof__ (&(name))(name);
    UCX_CALLS(X)
#undef X
} ucx_calls;

struct sp_ucx_peer_link {
    sp_ucx *ucx;
    ucp_ep_h ep;
    const char *lost; /* set by UCX's callback, inside progress */
    int n_users;
    size_t bytes;
    unsigned char address[];
};

typedef struct generation {
    uint32_t base, n;
} generation;

typedef struct kept {
    struct kept *next;
    void *memory;
} kept;

struct sp_ucx_home {
    ucx_calls call;
    ucp_context_h context;
};

struct sp_ucx {
    ucx_calls call;
    ucp_context_h context;
    bool at_home; /* the context is a home's */
    ucp_worker_h worker;
    ucp_address_t *address;
    size_t address_bytes;
    int fd;
    sp_ucx_peer_link *peers[SP_UCX_PEERS_MAX];
    uint32_t groups[SP_UCX_GROUPS_MAX];
    int n_groups;
    generation generations[GENERATIONS_MAX];
    int n_generations;
    kept *kept;
};

/* ---- the library ---- */

/* UCX reads these once, when it is loaded: there is no later moment to say them. */
static const char *const load_settings[][2] = {
    {"UCX_HANDLE_ERRORS", "none"},     {"UCX_ERROR_SIGNALS", ""}, {"UCX_LOG_LEVEL", "fatal"},
    {"UCX_WARN_UNUSED_ENV_VARS", "n"}, {"UCX_VFS_ENABLE", "n"},
};

/* Loads the library with our settings and puts environment and signal actions back: UCX takes
 * SIGHUP in any case. Once a process; the lock is for ranks that are threads. */
static void *load_quietly(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    bool ours[SP_LEN(load_settings)] = {false};
    struct sigaction before[SIGNALS_MAX];

    pthread_mutex_lock(&lock);
    void *lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (!lib) {
        for (size_t i = 0; i < SP_LEN(load_settings); i++)
            if (!getenv(load_settings[i][0]))
                ours[i] = setenv(load_settings[i][0], load_settings[i][1], 0) == 0;
        for (int s = 1; s < SIGNALS_MAX; s++) sigaction(s, NULL, &before[s]);
        /* NODELETE: UCX leaves hooks and a thread-exit key behind. */
        lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        for (int s = 1; s < SIGNALS_MAX; s++)
            if (s != SIGKILL && s != SIGSTOP) sigaction(s, &before[s], NULL);
        for (size_t i = 0; i < SP_LEN(load_settings); i++)
            if (ours[i]) unsetenv(load_settings[i][0]);
    }
    pthread_mutex_unlock(&lock);
    return lib;
}

static sp_status load(ucx_calls *call, sp_err *err) {
    void *lib = load_quietly();
    if (!lib)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "no ucx on this machine: '%s' cannot be loaded",
                       LIBRARY);
    const char *missing = NULL;
    void *at;
    /* A function pointer by way of memory: ISO C has no conversion from void *. */
#define X(name) \
    at = dlsym(lib, #name); \
    if (!at) missing = #name; \
    memcpy(&call->name, &at, sizeof at);
    UCX_CALLS(X)
#undef X
    if (missing)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "ucx on this machine has no '%s', want 1.10 or later",
                       missing);
    return SP_OK;
}

/* ---- context and worker ---- */

static const struct {
    const char *variable, *name, *value;
    const char *at_home; /* NULL: the same */
    bool must;
} settings[] = {
    {"UCX_TLS", "TLS", "tcp,self,cma,ib", NULL, true},
    {"UCX_RNDV_THRESH", "RNDV_THRESH", "inf", NULL, true},
    {"UCX_ZCOPY_THRESH", "ZCOPY_THRESH", "4096", "inf", true},
    {"UCX_WARN_INVALID_CONFIG", "WARN_INVALID_CONFIG", "n", NULL, false},
};

/* What the user says in UCX_* stands. */
static sp_status configure(const ucx_calls *call, ucp_config_t *config, bool is_home, sp_err *err) {
    for (size_t i = 0; i < SP_LEN(settings); i++) {
        if (getenv(settings[i].variable)) continue;
        const char *value =
            is_home && settings[i].at_home ? settings[i].at_home : settings[i].value;
        ucs_status_t st = call->ucp_config_modify(config, settings[i].name, value);
        if (st != UCS_OK && settings[i].must)
            return SP_FAIL(err, SP_E_DEVICE, "ucx does not take '%s' as '%s': %s", settings[i].name,
                           value, call->ucs_status_string(st));
    }
    return SP_OK;
}

static sp_status open_context(const ucx_calls *call, ucp_context_h *out, bool is_home,
                              sp_err *err) {
    ucp_config_t *config;
    ucs_status_t st = call->ucp_config_read(NULL, NULL, &config);
    if (st != UCS_OK)
        return SP_FAIL(err, SP_E_DEVICE, "ucx refuses its settings (UCX_*): %s",
                       call->ucs_status_string(st));
    sp_status status = configure(call, config, is_home, err);
    if (status == SP_OK) {
        ucp_params_t params = {.field_mask =
                                   UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
                               .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP,
                               .mt_workers_shared = is_home};
        st = call->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, out);
        if (st != UCS_OK)
            status =
                SP_FAIL(err, SP_E_DEVICE, "ucx does not start: %s", call->ucs_status_string(st));
    }
    call->ucp_config_release(config);
    return status;
}

static sp_status open_worker(sp_ucx *u, sp_err *err) {
    /* SERIALIZED: opened by one thread, used by another. */
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t st = u->call.ucp_worker_create(u->context, &params, &u->worker);
    if (st != UCS_OK)
        return SP_FAIL(err, SP_E_DEVICE, "no ucx worker: %s", u->call.ucs_status_string(st));
    st = u->call.ucp_worker_get_efd(u->worker, &u->fd);
    if (st == UCS_OK)
        st = u->call.ucp_worker_get_address(u->worker, &u->address, &u->address_bytes);
    if (st != UCS_OK) {
        u->call.ucp_worker_destroy(u->worker);
        return SP_FAIL(err, SP_E_DEVICE, "ucx worker without descriptor or address: %s",
                       u->call.ucs_status_string(st));
    }
    return SP_OK;
}

sp_status sp_ucx_open(sp_ucx **out, sp_err *err) {
    sp_ucx *u = sp_try_alloc(sizeof *u);
    if (!u) return SP_FAIL(err, SP_E_NOMEM, "no memory for a ucx worker");
    sp_status st = load(&u->call, err);
    if (st != SP_OK) goto free_u;
    st = open_context(&u->call, &u->context, false, err);
    if (st != SP_OK) goto free_u;
    st = open_worker(u, err);
    if (st != SP_OK) goto cleanup;
    *out = u;
    return SP_OK;

cleanup:
    u->call.ucp_cleanup(u->context);
free_u:
    sp_free(u);
    return st;
}

sp_status sp_ucx_open_at(sp_ucx **out, sp_ucx_home *h, sp_err *err) {
    sp_ucx *u = sp_try_alloc(sizeof *u);
    if (!u) return SP_FAIL(err, SP_E_NOMEM, "no memory for a ucx worker");
    u->call = h->call;
    u->context = h->context;
    u->at_home = true;
    sp_status st = open_worker(u, err);
    if (st != SP_OK)
        sp_free(u);
    else
        *out = u;
    return st;
}

void sp_ucx_close(sp_ucx *u) {
    if (!u) return;
    SP_ASSERT(u->n_groups == 0);
    for (int i = 0; i < SP_UCX_PEERS_MAX; i++) {
        if (!u->peers[i]) continue;
        sp_ucx_peer_cut(u, u->peers[i]);
        sp_free(u->peers[i]);
    }
    u->call.ucp_worker_release_address(u->worker, u->address);
    u->call.ucp_worker_destroy(u->worker);
    if (!u->at_home) u->call.ucp_cleanup(u->context);
    while (u->kept) {
        kept *k = u->kept;
        u->kept = k->next;
        sp_free(k->memory);
        sp_free(k);
    }
    sp_free(u);
}

const void *sp_ucx_address(const sp_ucx *u, size_t *bytes) {
    *bytes = u->address_bytes;
    return u->address;
}

const char *sp_ucx_version(const sp_ucx *u) {
    return u->call.ucp_get_version_string();
}

/* ---- a home of several workers ---- */

sp_status sp_ucx_home_open(sp_ucx_home **out, sp_err *err) {
    sp_ucx_home *h = sp_try_alloc(sizeof *h);
    if (!h) return SP_FAIL(err, SP_E_NOMEM, "no memory for a ucx context");
    sp_status st = load(&h->call, err);
    if (st == SP_OK) st = open_context(&h->call, &h->context, true, err);
    if (st != SP_OK)
        sp_free(h);
    else
        *out = h;
    return st;
}

void sp_ucx_home_close(sp_ucx_home *h) {
    if (!h) return;
    h->call.ucp_cleanup(h->context);
    sp_free(h);
}

/* ---- peers ---- */

/* Inside progress: UCX forbids closing the endpoint here. */
static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status) {
    sp_ucx_peer_link *p = arg;
    (void)ep;
    if (!p->lost) p->lost = p->ucx->call.ucs_status_string(status);
}

static sp_status connect_peer(sp_ucx_peer_link *p, sp_err *err) {
    sp_ucx *u = p->ucx;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)p->address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = p},
    };
    ucs_status_t st = u->call.ucp_ep_create(u->worker, &params, &p->ep);
    if (st != UCS_OK)
        return SP_FAIL(err, SP_E_PEER_LOST, "ucx does not connect: %s",
                       u->call.ucs_status_string(st));
    return SP_OK;
}

/* A free place, recycling lost peers that nobody uses. */
static int find_place(sp_ucx *u) {
    for (int i = 0; i < SP_UCX_PEERS_MAX; i++) {
        sp_ucx_peer_link *p = u->peers[i];
        if (!p) return i;
        if (p->n_users > 0 || !p->lost) continue;
        sp_ucx_peer_cut(u, p);
        sp_free(p);
        u->peers[i] = NULL;
        return i;
    }
    return -1;
}

static sp_ucx_peer_link *find_peer(sp_ucx *u, const void *address, size_t bytes) {
    for (int i = 0; i < SP_UCX_PEERS_MAX; i++) {
        sp_ucx_peer_link *p = u->peers[i];
        if (p && !p->lost && p->bytes == bytes && memcmp(p->address, address, bytes) == 0) return p;
    }
    return NULL;
}

sp_status sp_ucx_peer_take(sp_ucx_peer_link **out, sp_ucx *u, const void *address, size_t bytes,
                           sp_err *err) {
    sp_ucx_peer_link *p = find_peer(u, address, bytes);
    if (p) {
        p->n_users++;
        *out = p;
        return SP_OK;
    }
    int at = find_place(u);
    if (at < 0)
        return SP_FAIL(err, SP_E_LIMIT, "a ucx worker has at most %d peers", SP_UCX_PEERS_MAX);
    p = sp_try_alloc(sizeof *p + bytes);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for a ucx peer");
    p->ucx = u;
    p->bytes = bytes;
    p->n_users = 1;
    memcpy(p->address, address, bytes);
    sp_status st = connect_peer(p, err);
    if (st != SP_OK) {
        sp_free(p);
        return st;
    }
    u->peers[at] = p;
    *out = p;
    return SP_OK;
}

void sp_ucx_peer_drop(sp_ucx *u, sp_ucx_peer_link *p) {
    (void)u;
    SP_ASSERT(p->n_users > 0);
    p->n_users--;
}

const char *sp_ucx_peer_lost(const sp_ucx_peer_link *p) {
    return p->lost;
}

void sp_ucx_peer_cut(sp_ucx *u, sp_ucx_peer_link *p) {
    if (!p->lost) p->lost = "cut by this member";
    if (!p->ep) return;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE};
    void *h = u->call.ucp_ep_close_nbx(p->ep, &param);
    p->ep = NULL;
    if (!UCS_PTR_IS_PTR(h)) return;
    /* Forced closing took 0.0 ms; the bound is for a transport that we have not met. */
    for (int i = 0; i < CLOSE_ROUNDS && u->call.ucp_request_check_status(h) == UCS_INPROGRESS; i++)
        u->call.ucp_worker_progress(u->worker);
    u->call.ucp_request_free(h);
}

/* ---- requests ---- */

static void finish(sp_ucx_req *r, ucs_status_t st) {
    r->handle = NULL;
    if (st == UCS_OK)
        r->state = SP_UCX_DONE;
    else if (st == UCS_ERR_MESSAGE_TRUNCATED)
        r->state = SP_UCX_TOOBIG;
    else {
        r->state = SP_UCX_FAILED;
        r->why = r->ucx->call.ucs_status_string(st);
    }
}

static void on_sent(void *handle, ucs_status_t status, void *arg) {
    sp_ucx_req *r = arg;
    finish(r, status);
    r->ucx->call.ucp_request_free(handle);
}

static void on_received(void *handle, ucs_status_t status, const ucp_tag_recv_info_t *info,
                        void *arg) {
    sp_ucx_req *r = arg;
    if (status == UCS_OK) {
        r->tag = info->sender_tag;
        r->bytes = info->length;
    }
    finish(r, status);
    r->ucx->call.ucp_request_free(handle);
}

/* What a call of the nbx family gave: NULL done, a request, or an error. The callback has not run
 * in the first and the last case; it may have run already in the second. */
static void started(sp_ucx_req *r, void *given) {
    if (r->state != SP_UCX_OPEN) return;
    if (UCS_PTR_IS_PTR(given))
        r->handle = given;
    else
        finish(r, UCS_PTR_STATUS(given));
}

static void prepare(sp_ucx_req *r, sp_ucx *u) {
    SP_DASSERT(r->state != SP_UCX_OPEN);
    *r = (sp_ucx_req){.state = SP_UCX_OPEN, .ucx = u};
}

static bool refuse_lost(sp_ucx_req *r, const sp_ucx_peer_link *p) {
    if (!p->lost) return false;
    r->state = SP_UCX_FAILED;
    r->why = p->lost;
    return true;
}

void sp_ucx_send(sp_ucx *u, sp_ucx_peer_link *p, sp_ucx_req *r, uint64_t tag, const void *data,
                 size_t bytes, bool sync) {
    prepare(r, u);
    if (refuse_lost(r, p)) return;
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_sent,
                                 .user_data = r};
    started(r, sync ? u->call.ucp_tag_send_sync_nbx(p->ep, data, bytes, tag, &param)
                    : u->call.ucp_tag_send_nbx(p->ep, data, bytes, tag, &param));
}

/* UCX's own list of places is laid out as the system's. */
_Static_assert(sizeof(ucp_dt_iov_t) == sizeof(struct iovec) &&
                   offsetof(ucp_dt_iov_t, buffer) == offsetof(struct iovec, iov_base) &&
                   offsetof(ucp_dt_iov_t, length) == offsetof(struct iovec, iov_len),
               "the same list");

void sp_ucx_send_all(sp_ucx *u, sp_ucx_peer_link *p, sp_ucx_req *r, uint64_t tag,
                     const struct iovec *v, size_t n) {
    if (n == 1) { /* not as a list of one: UCX has shorter ways for a single place */
        sp_ucx_send(u, p, r, tag, v->iov_base, v->iov_len, false);
        return;
    }
    prepare(r, u);
    if (refuse_lost(r, p)) return;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_DATATYPE,
                                 .datatype = ucp_dt_make_iov(),
                                 .cb.send = on_sent,
                                 .user_data = r};
    started(r, u->call.ucp_tag_send_nbx(p->ep, v, n, tag, &param));
}

static void receive(sp_ucx *u, sp_ucx_req *r, uint64_t tag, uint64_t mask, void *data, size_t n,
                    ucp_datatype_t type) {
    prepare(r, u);
    /* 1.13 tells tag and length of a message that was there already only to the callback. */
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                                     UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
                                 .datatype = type,
                                 .cb.recv = on_received,
                                 .user_data = r};
    started(r, u->call.ucp_tag_recv_nbx(u->worker, data, n, tag, mask, &param));
}

void sp_ucx_recv(sp_ucx *u, sp_ucx_req *r, uint64_t tag, uint64_t mask, void *data, size_t bytes) {
    receive(u, r, tag, mask, data, bytes, ucp_dt_make_contig(1));
}

void sp_ucx_recv_all(sp_ucx *u, sp_ucx_req *r, uint64_t tag, uint64_t mask, const struct iovec *v,
                     size_t n) {
    if (n == 1)
        receive(u, r, tag, mask, v->iov_base, v->iov_len, ucp_dt_make_contig(1));
    else
        receive(u, r, tag, mask, (void *)(uintptr_t)v, n, ucp_dt_make_iov());
}

void sp_ucx_cancel(sp_ucx *u, sp_ucx_req *r) {
    if (r->state == SP_UCX_OPEN) u->call.ucp_request_cancel(u->worker, r->handle);
}

bool sp_ucx_probe(sp_ucx *u, uint64_t tag, uint64_t mask) {
    ucp_tag_recv_info_t info;
    return u->call.ucp_tag_probe_nb(u->worker, tag, mask, 0, &info) != NULL;
}

void sp_ucx_discard(sp_ucx *u, uint64_t tag, uint64_t mask) {
    ucp_tag_recv_info_t info;
    ucp_tag_message_h m;
    while ((m = u->call.ucp_tag_probe_nb(u->worker, tag, mask, 1, &info)) != NULL) {
        /* Into no bytes at all: UCX then drops what has come and what may still follow. */
        ucp_request_param_t param = {0};
        void *h = u->call.ucp_tag_msg_recv_nbx(u->worker, NULL, 0, m, &param);
        if (UCS_PTR_IS_PTR(h)) u->call.ucp_request_free(h);
    }
}

/* ---- progress ---- */

bool sp_ucx_progress(sp_ucx *u) {
    return u->call.ucp_worker_progress(u->worker) != 0;
}

short sp_ucx_sleep_on(sp_ucx *u, int fd, short events, int64_t ns) {
    /* BUSY: something came since the last progress. */
    if (u->call.ucp_worker_arm(u->worker) != UCS_OK || ns <= 0) return 0;
    struct pollfd fds[2] = {{.fd = u->fd, .events = POLLIN}, {.fd = fd, .events = events}};
    struct timespec t = {.tv_sec = (time_t)(ns / SP_NS_PER_S), .tv_nsec = (long)(ns % SP_NS_PER_S)};
    int n = ppoll(fds, 2, &t, NULL); /* early returns are fine: the caller looks again */
    return n > 0 ? fds[1].revents : 0;
}

void sp_ucx_sleep(sp_ucx *u, int wake_fd, int64_t ns) {
    (void)sp_ucx_sleep_on(u, wake_fd, POLLIN, ns);
}

/* ---- groups ---- */

sp_status sp_ucx_group_add(sp_ucx *u, uint32_t fence, sp_err *err) {
    for (int i = 0; i < u->n_groups; i++)
        if (u->groups[i] == fence)
            return SP_FAIL(err, SP_E_INVALID, "a ucx group of this id and these members is open");
    if (u->n_groups == SP_UCX_GROUPS_MAX)
        return SP_FAIL(err, SP_E_LIMIT, "a ucx worker has at most %d open groups",
                       SP_UCX_GROUPS_MAX);
    u->groups[u->n_groups++] = fence;
    return SP_OK;
}

void sp_ucx_group_remove(sp_ucx *u, uint32_t fence) {
    for (int i = 0; i < u->n_groups; i++)
        if (u->groups[i] == fence) {
            u->groups[i] = u->groups[--u->n_groups];
            return;
        }
}

sp_status sp_ucx_generation(sp_ucx *u, uint32_t base, uint32_t *n, sp_err *err) {
    for (int i = 0; i < u->n_generations; i++)
        if (u->generations[i].base == base) {
            *n = ++u->generations[i].n;
            return SP_OK;
        }
    if (u->n_generations == GENERATIONS_MAX)
        return SP_FAIL(err, SP_E_LIMIT, "a ucx worker serves at most %d different groups",
                       GENERATIONS_MAX);
    u->generations[u->n_generations++] = (generation){.base = base, .n = 0};
    *n = 0;
    return SP_OK;
}

void sp_ucx_keep(sp_ucx *u, void *memory) {
    kept *k = sp_alloc(sizeof *k);
    *k = (kept){.next = u->kept, .memory = memory};
    u->kept = k;
}

#endif
