#include "launcher/place.h"

#include "runtime/base/str.h"

#include <stdio.h>
#include <stdlib.h>

#define PORT_MAX 65535
#define HOST_MAX 512
/* Slurm numbers the steps that nobody asked for from here: batch script, interactive shell, extern. */
#define SLURM_STEP_RESERVED ((int64_t)0xfffffff0)
/* Slurm's INFINITE and NO_VAL, where a time could stand. */
#define SLURM_NO_TIME ((int64_t)0xfffffffe)

/* What flags and SUPERPOD_ variables say, in one shape. */
typedef struct wish {
    bool head_role, worker_role; /* neither: auto */
    char head[600];              /* "": not given */
    int head_port, rank, nnodes; /* the port of `head` counts as head_port when that is not given */
} wish;

typedef struct asker {
    sp_env_get get;
    void *ctx;
    wish w;
    sp_err *err;
} asker;

static const char *var(const asker *a, const char *name) {
    const char *value = name ? a->get(a->ctx, name) : NULL;
    return value && *value ? value : NULL;
}

/* Leaves *out alone where the variable is not there. */
static sp_status read_i64(const asker *a, const char *name, int64_t min, int64_t max,
                          int64_t *out) {
    const char *text = var(a, name);
    int64_t v;
    if (!text) return SP_OK;
    if (sp_parse_i64(sp_slice_of(text), &v) != SP_OK || v < min || v > max)
        return SP_FAIL(a->err, SP_E_INVALID, "%s is '%.40s', want a whole number from %lld to %lld",
                       name, text, (long long)min, (long long)max);
    *out = v;
    return SP_OK;
}

static sp_status read_int(const asker *a, const char *name, int min, int max, int *out) {
    int64_t v = *out;
    SP_TRY(read_i64(a, name, min, max, &v));
    *out = (int)v;
    return SP_OK;
}

/* ---- addresses ---- */

static bool is_host(sp_slice host) {
    if (!host.len || host.len > HOST_MAX) return false;
    for (size_t i = 0; i < host.len; i++) {
        unsigned char c = (unsigned char)host.ptr[i];
        if (c <= ' ' || c >= 0x7f || strchr(",/[]@\"'|", c)) return false;
    }
    return true;
}

/* A bare IPv6 address gets the brackets that keep its colons from the port's. */
static sp_status put_address(const asker *a, char out[600], const char *who, sp_slice host,
                             int port) {
    if (!is_host(host))
        return SP_FAIL(a->err, SP_E_INVALID, "%s is '%.*s', want a host name or an address", who,
                       host.len < 80 ? (int)host.len : 80, host.ptr);
    bool v6 = memchr(host.ptr, ':', host.len) != NULL;
    snprintf(out, 600, v6 ? "[%.*s]:%d" : "%.*s:%d", (int)host.len, host.ptr, port);
    return SP_OK;
}

/* "host", "host:port", "[v6]", "[v6]:port" or a bare IPv6 address. */
static sp_status read_head(const asker *a, const char *who, const char *text, wish *w) {
    sp_slice host = sp_slice_of(text), rest = {0};
    const char *close = strrchr(text, ']'), *colon = strrchr(text, ':');
    if (text[0] == '[' && close) {
        host = (sp_slice){text + 1, (size_t)(close - text) - 1};
        rest = sp_slice_of(close + 1);
    } else if (colon && strchr(text, ':') == colon) {
        host = (sp_slice){text, (size_t)(colon - text)};
        rest = sp_slice_of(colon);
    }
    int64_t port = w->head_port ? w->head_port : SP_HEAD_PORT;
    if (rest.len) {
        sp_slice digits = {rest.ptr + 1, rest.len - 1};
        if (rest.ptr[0] != ':' || sp_parse_i64(digits, &port) != SP_OK || port < 1 ||
            port > PORT_MAX)
            return SP_FAIL(a->err, SP_E_INVALID, "%s is '%.80s', want HOST:PORT", who, text);
        if (!w->head_port) w->head_port = (int)port;
    }
    return put_address(a, w->head, who, host, (int)port);
}

static int known_port(const asker *a) {
    return a->w.head_port ? a->w.head_port : SP_HEAD_PORT;
}

/* ---- what the user said ---- */

static sp_status read_role(const asker *a, const char *role, wish *w) {
    if (!role || strcmp(role, "auto") == 0) return SP_OK;
    w->head_role = strcmp(role, "head") == 0;
    w->worker_role = strcmp(role, "worker") == 0;
    if (w->head_role || w->worker_role) return SP_OK;
    return SP_FAIL(a->err, SP_E_INVALID, "--role is '%.40s', want auto, head or worker", role);
}

static sp_status check_range(const asker *a, const char *flag, int v, int min, int max) {
    if (v >= min && v <= max) return SP_OK;
    return SP_FAIL(a->err, SP_E_INVALID, "%s is %d, want %d to %d", flag, v, min, max);
}

static sp_status read_wish(asker *a, const sp_place_flags *f) {
    wish w = {.rank = f->rank, .nnodes = f->nnodes, .head_port = f->head_port};
    if (w.rank < 0) SP_TRY(read_int(a, "SUPERPOD_RANK", -1, SP_AGENTS_MAX - 1, &w.rank));
    if (w.nnodes <= 0) SP_TRY(read_int(a, "SUPERPOD_NNODES", 0, SP_AGENTS_MAX, &w.nnodes));
    SP_TRY(check_range(a, "--rank", w.rank, -1, SP_AGENTS_MAX - 1));
    SP_TRY(check_range(a, "--nnodes", w.nnodes, 0, SP_AGENTS_MAX));
    SP_TRY(check_range(a, "--head-port", w.head_port, 0, PORT_MAX));

    const char *role = f->role && *f->role ? f->role : NULL, *head = f->head;
    bool said = role && strcmp(role, "auto") != 0;
    SP_TRY(read_role(a, said ? role : var(a, "SUPERPOD_ROLE"), &w));
    if (!head || !*head) head = var(a, "SUPERPOD_HEAD");
    if (head) SP_TRY(read_head(a, "--head", head, &w));
    a->w = w;
    return SP_OK;
}

/* ---- the launchers ---- */

/* A step of Slurm's, and not the shell of sbatch or salloc, which carries SLURM_PROCID 0 too. */
static bool in_slurm_step(const asker *a) {
    const char *step = var(a, "SLURM_STEP_ID");
    int64_t id;
    if (!var(a, "SLURM_JOB_ID") || !step || !var(a, "SLURM_PROCID")) return false;
    return sp_parse_i64(sp_slice_of(step), &id) != SP_OK || id < SLURM_STEP_RESERVED;
}

static bool has_pmix(const asker *a) {
    static const char *const servers[] = {
        "PMIX_NAMESPACE",   "PMIX_SERVER_URI",  "PMIX_SERVER_URI2",  "PMIX_SERVER_URI21",
        "PMIX_SERVER_URI3", "PMIX_SERVER_URI4", "PMIX_SERVER_URI41", "PMIX_SERVER_URI5"};
    if (!var(a, "PMIX_RANK")) return false;
    for (size_t i = 0; i < SP_LEN(servers); i++)
        if (var(a, servers[i])) return true;
    return false;
}

static bool in_lws(const asker *a) {
    return var(a, "LWS_LEADER_ADDRESS") || var(a, "LWS_WORKER_INDEX");
}

static bool in_open_mpi(const asker *a) {
    return var(a, "OMPI_COMM_WORLD_RANK") || var(a, "OMPI_COMM_WORLD_SIZE");
}

/* The names are anybody's: one of them alone says nothing. */
static bool in_torchrun(const asker *a) {
    return var(a, "RANK") && var(a, "WORLD_SIZE");
}

static bool is_kserve_worker(const asker *a) {
    static const char *const also[] = {"POD_NAMESPACE", "ISVC_NAME", "INFERENCE_SERVICE_NAME",
                                       "RAY_NODE_COUNT", "KUBERNETES_SERVICE_HOST"};
    if (!var(a, "HEAD_SVC")) return false;
    for (size_t i = 0; i < SP_LEN(also); i++)
        if (var(a, also[i])) return true;
    return false;
}

/* Versions differ in what they set, and each name is anybody's; a name of the service together with
 * a count that only workerSpec brings is certain enough, unless a launcher numbers the processes:
 * then those variables are the user's own, and every process would call itself the head. */
static bool is_kserve_head(const asker *a) {
    if (var(a, "HEAD_SVC") || in_open_mpi(a) || has_pmix(a) || in_slurm_step(a)) return false;
    bool named = var(a, "MODEL_NAME") || var(a, "ISVC_NAME") || var(a, "INFERENCE_SERVICE_NAME");
    if (var(a, "RAY_NODE_COUNT")) return named || var(a, "REQUEST_GPU_COUNT");
    return named && var(a, "PIPELINE_PARALLEL_SIZE");
}

static sp_status lws_head(const asker *a, sp_place *p) {
    const char *host = var(a, "LWS_LEADER_ADDRESS");
    if (!host)
        return SP_FAIL(a->err, SP_E_INVALID,
                       "LWS_WORKER_INDEX is there, LWS_LEADER_ADDRESS is not");
    p->head_port = known_port(a);
    return put_address(a, p->head, "LWS_LEADER_ADDRESS", sp_slice_of(host), p->head_port);
}

static sp_status torchrun_head(const asker *a, sp_place *p) {
    const char *host = var(a, "MASTER_ADDR"), *busy = var(a, "TORCHELASTIC_USE_AGENT_STORE");
    int port = SP_HEAD_PORT;
    if (!host)
        return SP_FAIL(a->err, SP_E_INVALID, "RANK and WORLD_SIZE are there, MASTER_ADDR is not");
    SP_TRY(read_int(a, "MASTER_PORT", 1, PORT_MAX, &port));
    /* Then torchrun itself listens there. */
    if (busy && (strcmp(busy, "True") == 0 || strcmp(busy, "1") == 0)) port = SP_HEAD_PORT;
    p->head_port = a->w.head_port ? a->w.head_port : port;
    return put_address(a, p->head, "MASTER_ADDR", sp_slice_of(host), p->head_port);
}

/* A launcher that gives each agent its number. Sizes are looked for in the order given. */
typedef struct launcher {
    const char *name;
    bool (*is_there)(const asker *a);
    const char *rank, *sizes[2];
    bool size_optional;
    const char *local_rank, *local_size;
    const char *local_list; /* a comma list with one item for each agent of this node */
    sp_meeting meeting;
    sp_status (*find_head)(const asker *a, sp_place *p); /* NULL: the meeting tells */
} launcher;

static const launcher lws = {"LWS",
                             in_lws,
                             .rank = "LWS_WORKER_INDEX",
                             .sizes = {"LWS_GROUP_SIZE"},
                             .size_optional = true,
                             .meeting = SP_MEET_GIVEN,
                             .find_head = lws_head};
static const launcher numbered[] = {
    {"Open MPI", in_open_mpi, .rank = "OMPI_COMM_WORLD_RANK", .sizes = {"OMPI_COMM_WORLD_SIZE"},
     .local_rank = "OMPI_COMM_WORLD_LOCAL_RANK", .local_size = "OMPI_COMM_WORLD_LOCAL_SIZE",
     .meeting = SP_MEET_PMIX},
    {"PMIx", has_pmix, .rank = "PMIX_RANK", .size_optional = true, .meeting = SP_MEET_PMIX},
    {"Slurm", in_slurm_step, .rank = "SLURM_PROCID",
     .sizes = {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}, .local_rank = "SLURM_LOCALID",
     .local_list = "SLURM_GTIDS", .meeting = SP_MEET_FILE},
    {"torchrun", in_torchrun, .rank = "RANK", .sizes = {"WORLD_SIZE"}, .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE", .meeting = SP_MEET_GIVEN, .find_head = torchrun_head},
};
/* The same step by PMIx: its number and its meeting there, the sizes as Slurm says them. prun in an
 * allocation has Slurm's variables as well, but they are the allocation's, not its own. */
static const launcher pmix_in_slurm = {"PMIx",
                                       has_pmix,
                                       .rank = "PMIX_RANK",
                                       .sizes = {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"},
                                       .size_optional = true,
                                       .local_rank = "SLURM_LOCALID",
                                       .local_list = "SLURM_GTIDS",
                                       .meeting = SP_MEET_PMIX};

static sp_status read_local(const asker *a, const launcher *l, sp_place *p) {
    const char *list = var(a, l->local_list);
    SP_TRY(read_int(a, l->local_rank, 0, SP_AGENTS_MAX - 1, &p->local_rank));
    SP_TRY(read_int(a, l->local_size, 1, SP_AGENTS_MAX, &p->local_size));
    if (list) p->local_size = 1;
    for (; list && *list; list++) p->local_size += *list == ',';
    if (p->local_size && (p->local_rank >= p->local_size || (p->size && p->local_size > p->size)))
        return SP_FAIL(a->err, SP_E_INVALID, "%s says local agent %d of %d, and %d agents in all",
                       l->name, p->local_rank, p->local_size, p->size);
    return SP_OK;
}

static sp_status ask_launcher(const asker *a, const launcher *l, sp_place *p) {
    int rank = -1, size = 0;
    SP_TRY(read_int(a, l->rank, 0, SP_AGENTS_MAX - 1, &rank));
    for (size_t i = 0; i < SP_LEN(l->sizes) && size == 0; i++)
        SP_TRY(read_int(a, l->sizes[i], 1, SP_AGENTS_MAX, &size));
    if (rank < 0 || (size == 0 && !l->size_optional))
        return SP_FAIL(a->err, SP_E_INVALID, "this looks like %s, but %s is not set", l->name,
                       rank < 0 ? l->rank : l->sizes[0]);
    if (size && rank >= size)
        return SP_FAIL(a->err, SP_E_INVALID, "%s is %d, but there are %d agents", l->rank, rank,
                       size);
    *p = (sp_place){.source = l->name,
                    .rank = rank,
                    .size = size,
                    .meeting = l->meeting,
                    .local_rank = -1,
                    .head_port = a->w.head_port};
    if (l->find_head && size != 1) SP_TRY(l->find_head(a, p));
    return read_local(a, l, p);
}

static sp_status ask_kserve(const asker *a, bool is_worker, sp_place *p) {
    int size = a->w.nnodes;
    if (!size) SP_TRY(read_int(a, "RAY_NODE_COUNT", 1, SP_AGENTS_MAX, &size));
    if (!size) SP_TRY(read_int(a, "PIPELINE_PARALLEL_SIZE", 1, SP_AGENTS_MAX, &size));
    *p = (sp_place){.source = "KServe",
                    .rank = is_worker ? -1 : 0,
                    .size = size,
                    .local_rank = 0,
                    .local_size = 1,
                    .meeting = SP_MEET_GIVEN,
                    .head_port = known_port(a)};
    if (!is_worker) return SP_OK;
    /* Without the namespace the search domains of the pod's resolver find it as well. */
    const char *service = var(a, "HEAD_SVC"), *space = var(a, "POD_NAMESPACE");
    char host[HOST_MAX + 1];
    int n = snprintf(host, sizeof host, space ? "%s.%s.svc.cluster.local" : "%s", service, space);
    if (n >= (int)sizeof host)
        return SP_FAIL(a->err, SP_E_INVALID, "HEAD_SVC and POD_NAMESPACE have %d bytes, want %d", n,
                       HOST_MAX);
    return put_address(a, p->head, "HEAD_SVC", sp_slice_of(host), p->head_port);
}

/* *p stays without a source where there is no launcher. */
static sp_status ask_all(const asker *a, sp_place *p) {
    if (in_lws(a)) return ask_launcher(a, &lws, p);
    bool is_worker = is_kserve_worker(a);
    if (is_worker || is_kserve_head(a)) return ask_kserve(a, is_worker, p);
    for (size_t i = 0; i < SP_LEN(numbered); i++) {
        const launcher *l = &numbered[i];
        if (!l->is_there(a)) continue;
        const char *space = var(a, "PMIX_NAMESPACE");
        bool slurms = in_slurm_step(a) || (space && strncmp(space, "slurm.", 6) == 0);
        return ask_launcher(a, l->is_there == has_pmix && slurms ? &pmix_in_slurm : l, p);
    }
    return SP_OK;
}

/* ---- putting it together ---- */

static sp_status from_flags(const asker *a, sp_place *p) {
    const wish *w = &a->w;
    int rank = w->rank >= 0 ? w->rank : w->head_role ? 0 : -1;
    if (rank != 0 && !w->head[0])
        return SP_FAIL(a->err, SP_E_INVALID, "%s needs --head HOST:PORT",
                       rank > 0 ? "--rank above 0" : "--role worker without a launcher");
    if (w->nnodes && rank >= w->nnodes)
        return SP_FAIL(a->err, SP_E_INVALID, "--rank is %d, but --nnodes is %d", rank, w->nnodes);
    *p = (sp_place){.source = "flags",
                    .rank = rank,
                    .size = w->nnodes,
                    .local_rank = -1,
                    .meeting = SP_MEET_GIVEN,
                    .head_port = known_port(a)};
    return SP_OK;
}

static bool flags_suffice(const asker *a) {
    return a->w.rank >= 0 || (a->w.worker_role && a->w.head[0]);
}

static sp_status find_source(const asker *a, sp_place *p) {
    if (flags_suffice(a)) return from_flags(a, p);
    SP_TRY(ask_all(a, p));
    if (p->source) return SP_OK;
    if (a->w.head_role || a->w.worker_role || a->w.head[0]) return from_flags(a, p);
    if (a->w.nnodes > 1)
        return SP_FAIL(a->err, SP_E_INVALID,
                       "--nnodes is %d, but neither --rank, --role nor a launcher says which agent "
                       "this is",
                       a->w.nnodes);
    *p = (sp_place){.source = a->w.nnodes ? "flags" : "alone", .size = 1, .local_rank = -1};
    return SP_OK;
}

/* Flags against what was found: sizes agree, and exactly agent 0 starts the head. */
static sp_status check_flags(const asker *a, sp_place *p) {
    const wish *w = &a->w;
    if (w->nnodes && p->size && p->size != w->nnodes)
        return SP_FAIL(a->err, SP_E_INVALID, "--nnodes is %d, but %s says %d agents", w->nnodes,
                       p->source, p->size);
    if (w->nnodes) p->size = w->nnodes;
    if (p->size && p->rank >= p->size)
        return SP_FAIL(a->err, SP_E_INVALID, "%s says agent %d, but --nnodes is %d", p->source,
                       p->rank, p->size);
    if (p->rank < 0 && p->size == 1)
        return SP_FAIL(a->err, SP_E_INVALID, "a worker (%s) in a pod of 1 agent", p->source);
    if (w->head_role && p->rank != 0)
        return SP_FAIL(a->err, SP_E_INVALID,
                       p->rank < 0 ? "--role is head, but this is a worker (%s)"
                                   : "--role is head, but this is agent %2$d (%1$s), want 0",
                       p->source, p->rank);
    if (w->worker_role && p->rank == 0)
        return SP_FAIL(a->err, SP_E_INVALID,
                       "--role is worker, but this is agent 0 (%s), which starts the head",
                       p->source);
    return SP_OK;
}

static sp_status settle(const asker *a, sp_place *p) {
    const wish *w = &a->w;
    p->is_head = p->rank == 0;
    if (p->size == 1 && p->local_size == 0) {
        p->local_rank = 0;
        p->local_size = 1;
    }
    if (p->size == 1 && !w->head_role) {
        p->meeting = SP_MEET_NOBODY;
        p->head_port = w->head_port;
    } else if (w->head[0] || p->size == 1) {
        p->meeting = SP_MEET_GIVEN;
        p->head_port = known_port(a);
        memcpy(p->head, w->head, sizeof p->head);
    } else if (p->meeting == SP_MEET_PMIX && !has_pmix(a)) {
        return SP_FAIL(a->err, SP_E_INVALID,
                       "%s says agent %d of %d, but names no PMIx server to meet the others at: "
                       "want --head HOST:PORT and --token-file",
                       p->source, p->rank, p->size);
    }
    if (p->is_head) p->head[0] = 0;
    return SP_OK;
}

static bool is_outward(const asker *a, const sp_place *p) {
    if (strcmp(p->source, "alone") == 0) return false;
    bool mpi = strcmp(p->source, "Open MPI") == 0 || strcmp(p->source, "PMIx") == 0;
    return in_lws(a) || is_kserve_worker(a) || is_kserve_head(a) || in_slurm_step(a) ||
           (mpi && var(a, "SLURM_JOB_ID"));
}

sp_status sp_place_find_in(sp_place *out, const sp_place_flags *flags, sp_env_get get, void *ctx,
                           sp_err *err) {
    SP_ASSERT(out && flags && get);
    asker a = {.get = get, .ctx = ctx, .err = err};
    sp_place p = {0};
    SP_TRY(read_wish(&a, flags));
    SP_TRY(find_source(&a, &p));
    SP_TRY(check_flags(&a, &p));
    SP_TRY(settle(&a, &p));
    p.outward = is_outward(&a, &p);
    if (var(&a, "SLURM_JOB_ID"))
        SP_TRY(read_i64(&a, "SLURM_JOB_END_TIME", 0, INT64_MAX, &p.end_time_s));
    if (p.end_time_s == SLURM_NO_TIME || p.end_time_s == SLURM_NO_TIME + 1) p.end_time_s = 0;
    *out = p;
    return SP_OK;
}

static const char *get_real(void *ctx, const char *name) {
    (void)ctx;
    return getenv(name);
}

sp_status sp_place_find(sp_place *out, const sp_place_flags *flags, sp_err *err) {
    return sp_place_find_in(out, flags, get_real, NULL, err);
}
