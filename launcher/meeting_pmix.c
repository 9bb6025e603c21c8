#include "launcher/meeting_way.h"

#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <string.h>

#if defined(__has_include)
#if __has_include(<pmix.h>)
#define HAVE_PMIX 1
#endif
#endif

#ifdef HAVE_PMIX
#include <pmix.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SP_LOG "meeting"
#define LIBRARY "libpmix.so.2"
#define KEY "superpod.head"
#define SAY_NS (10 * SP_NS_PER_S)
#define LOOK_MS 200 /* how often a stop signal and the deadline are looked at */

/* What the child found, in one write: below PIPE_BUF, so it arrives whole or not at all. */
typedef struct answer {
    int32_t status;
    char why[200];
    char text[SP_CONTACT_TEXT_MAX];
} answer;

/* ---- the child ---- */

typedef struct api { /* only what is used: the library is there at run time or not */
    pmix_status_t (*init)(pmix_proc_t *, pmix_info_t *, size_t);
    pmix_status_t (*put)(pmix_scope_t, const char *, pmix_value_t *);
    pmix_status_t (*commit)(void);
    pmix_status_t (*fence)(const pmix_proc_t *, size_t, const pmix_info_t *, size_t);
    pmix_status_t (*get)(const pmix_proc_t *, const char *, const pmix_info_t *, size_t,
                         pmix_value_t **);
    pmix_status_t (*finalize)(const pmix_info_t *, size_t);
    const char *(*error_string)(pmix_status_t);
} api;

static bool load_one(void *lib, const char *name, void *function) {
    void *p = dlsym(lib, name);
    memcpy(function, &p, sizeof p);
    return p != NULL;
}

static sp_status load_api(api *out, sp_err *err) {
    void *lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "no PMIx (%.80s): want --token-file and --head",
                       dlerror());
    bool all = load_one(lib, "PMIx_Init", &out->init) && load_one(lib, "PMIx_Put", &out->put) &&
               load_one(lib, "PMIx_Commit", &out->commit) &&
               load_one(lib, "PMIx_Fence", &out->fence) && load_one(lib, "PMIx_Get", &out->get) &&
               load_one(lib, "PMIx_Finalize", &out->finalize) &&
               load_one(lib, "PMIx_Error_string", &out->error_string);
    if (all) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED, LIBRARY " is not the PMIx that was expected");
}

static sp_status check(const api *a, const char *what, pmix_status_t rc, sp_err *err) {
    if (rc == PMIX_SUCCESS) return SP_OK;
    return SP_FAIL(err, SP_E_IO, "%s: %s", what, a->error_string(rc));
}

/* The values are filled by hand: the macros of pmix.h call functions that only linking would find. */
static sp_status put_and_fence(const api *a, const pmix_proc_t *self, char *give, sp_err *err) {
    if (give) {
        pmix_value_t v = {.type = PMIX_STRING, .data.string = give};
        SP_TRY(check(a, "PMIx_Put", a->put(PMIX_GLOBAL, KEY, &v), err));
    }
    SP_TRY(check(a, "PMIx_Commit", a->commit(), err));
    pmix_proc_t all = *self;
    all.rank = PMIX_RANK_WILDCARD;
    pmix_info_t collect = {.value = {.type = PMIX_BOOL, .data.flag = true}};
    memcpy(collect.key, PMIX_COLLECT_DATA, sizeof PMIX_COLLECT_DATA);
    return check(a, "PMIx_Fence", a->fence(&all, 1, &collect, 1), err);
}

static sp_status get_first(const api *a, const pmix_proc_t *self, char *take, sp_err *err) {
    pmix_proc_t first = *self;
    first.rank = 0;
    pmix_value_t *v = NULL;
    SP_TRY(check(a, "PMIx_Get of agent 0's address", a->get(&first, KEY, NULL, 0, &v), err));
    if (!v || v->type != PMIX_STRING || !v->data.string ||
        strlen(v->data.string) >= SP_CONTACT_TEXT_MAX)
        return SP_FAIL(err, SP_E_FORMAT, "agent 0's address came back as something else");
    memcpy(take, v->data.string, strlen(v->data.string) + 1);
    sp_wipe(v->data.string, strlen(v->data.string));
    return SP_OK;
}

static sp_status meet(char *give, char *take, sp_err *err) {
    api a;
    pmix_proc_t self = {0};
    SP_TRY(load_api(&a, err));
    pmix_status_t rc = a.init(&self, NULL, 0);
    if (rc != PMIX_SUCCESS)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "PMIx_Init: %s: no PMIx server here; want --token-file and --head",
                       a.error_string(rc));
    sp_status st = put_and_fence(&a, &self, give, err);
    if (st == SP_OK) st = get_first(&a, &self, take, err);
    /* Without it the launcher takes the child's end for the death of the agent. */
    a.finalize(NULL, 0);
    return st;
}

SP_NORETURN static void be_child(int fd, const char *give, pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(SP_EXIT_PEER);
    char copy[SP_CONTACT_TEXT_MAX] = "";
    if (give) snprintf(copy, sizeof copy, "%s", give);
    answer out = {0};
    sp_err err = {0};
    out.status = meet(give ? copy : NULL, out.text, &err);
    snprintf(out.why, sizeof out.why, "%s", err.text);
    ssize_t n = write(fd, &out, sizeof out);
    sp_wipe(copy, sizeof copy);
    sp_wipe(&out, sizeof out);
    _exit(n == (ssize_t)sizeof out ? 0 : 1);
}

/* ---- the agent ---- */

static sp_status await_answer(answer *out, int fd, int64_t deadline_ns, sp_err *err) {
    for (int64_t said = sp_now_ns();;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, LOOK_MS) > 0) {
            ssize_t n = read(fd, out, sizeof *out);
            if (n == (ssize_t)sizeof *out) return SP_OK;
            return SP_FAIL(err, SP_E_IO, "the process that asked PMIx ended without an answer");
        }
        int64_t now = sp_now_ns();
        if (now >= deadline_ns)
            return SP_FAIL(err, SP_E_TIMEOUT,
                           "not all agents of the job came to the PMIx fence in time");
        if (sp_meeting_is_stopped())
            return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal while meeting the others");
        if (now - said < SAY_NS) continue;
        sp_info("waiting for the other agents at the PMIx fence");
        said = now;
    }
}

static sp_status read_answer(char *take, const answer *a, sp_err *err) {
    if (a->status != SP_OK)
        return SP_FAIL(err, (sp_status)a->status, "%.*s", (int)sizeof a->why - 1, a->why);
    memcpy(take, a->text, sizeof a->text);
    return SP_OK;
}

sp_status sp_meeting_pmix(const char *give, char *take, int64_t deadline_ns, sp_err *err) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return SP_FAIL(err, SP_E_IO, "pipe: %s", strerror(errno));
    pid_t self = getpid(), pid = fork();
    if (pid == 0) be_child(ends[1], give, self);
    close(ends[1]);
    answer a = {0};
    sp_status st = SP_OK;
    if (pid < 0) {
        st = SP_FAIL(err, SP_E_NOMEM, "fork: %s", strerror(errno));
        goto close_pipe;
    }
    st = await_answer(&a, ends[0], deadline_ns, err);
    if (st == SP_OK)
        st = read_answer(take, &a, err);
    else
        kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
close_pipe:
    close(ends[0]);
    sp_wipe(&a, sizeof a);
    return st;
}

#else

sp_status sp_meeting_pmix(const char *give, char *take, int64_t deadline_ns, sp_err *err) {
    (void)give, (void)take, (void)deadline_ns;
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "this build knows no PMIx (libpmix-dev was not there): want --token-file and "
                   "--head");
}

#endif
