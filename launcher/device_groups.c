#include "launcher/device_groups.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <poll.h>
#include <string.h>

#define LOOK_MS 100
/* A rank that hears the end by itself needs no abort: its groups then end as they should. */
#define GRACE_NS (300 * SP_NS_PER_MS)

/* ---- what can be ---- */

static sp_status check_library(const sp_device *d, const char *collectives, int n_ranks,
                               sp_err *err) {
    const sp_dev_plugin *p;
    sp_dev_comms *comms;
    SP_TRY(sp_dev_plugin_open(&p, d->backend, err));
    if (!p->groups)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'device' is %s: its plugin has no collectives, so one rank alone, "
                       "got %d; want --tp 1 --pp 1 or --device cpu",
                       d->backend, n_ranks);
    if (strcmp(collectives, "auto") != 0 && strcmp(collectives, p->groups->name) != 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'collectives' is %.16s: device '%s' has memory of its own, which "
                       "only %s reaches; want auto or %s",
                       collectives, d->backend, p->groups->name, p->groups->name);
    sp_status st = p->groups->open(&comms, err);
    if (st != SP_OK) {
        sp_err_context(err, "option 'device' is %s, %d ranks", d->backend, n_ranks);
        return st;
    }
    p->groups->close(comms);
    return SP_OK;
}

sp_status sp_device_check_groups(const sp_device *d, const char *collectives, int n_ranks,
                                 int n_groups, sp_err *err) {
    if (!d->own_memory && strcmp(collectives, "nccl") == 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'collectives' is nccl: device '%s' computes in the host's memory; "
                       "want auto, shm or ucx",
                       d->backend);
    if (!d->own_memory || n_ranks == n_groups) return SP_OK;
    return check_library(d, collectives, n_ranks, err);
}

uint64_t sp_device_group_bytes(const sp_device *d, const sp_plan_request *req) {
    const sp_dev_plugin *p;
    const int32_t tp = req->tp ? req->tp : 1, pp = req->pp ? req->pp : 1;
    if (!d->own_memory || tp * pp == 1 || !sp_dev_is_plugin(d->backend)) return 0;
    if (sp_dev_plugin_open(&p, d->backend, NULL) != SP_OK || !p->groups) return 0;
    const int32_t tokens = req->max_num_batched_tokens, rows = req->max_rows;
    const sp_group_config of_tp =
        sp_groups_tp_sizes(tp, req->desc->hidden, req->desc->vocab, tokens, rows ? rows : tokens);
    const sp_group_config of_pp = {.n = pp};
    return (tp > 1 ? p->groups->bytes(&of_tp) : 0) + (pp > 1 ? p->groups->bytes(&of_pp) : 0);
}

/* ---- while it runs ---- */

struct sp_group_watch {
    const sp_link *link;
    sp_groups *groups;
    sp_wake stop;
    sp_thread thread;
};

static bool stopped_within(const sp_group_watch *w, int64_t ns) {
    struct pollfd p = {.fd = w->stop.fd, .events = POLLIN};
    return poll(&p, 1, (int)(ns / SP_NS_PER_MS)) > 0;
}

static void *watch_main(void *arg) {
    const sp_group_watch *w = arg;
    while (!sp_link_is_over(w->link))
        if (stopped_within(w, LOOK_MS * SP_NS_PER_MS)) return NULL;
    if (!stopped_within(w, GRACE_NS)) sp_groups_abort(w->groups);
    return NULL;
}

sp_status sp_group_watch_start(sp_group_watch **out, const sp_link *link, sp_groups *groups,
                               sp_err *err) {
    sp_group_watch *w = sp_alloc(sizeof *w);
    *w = (sp_group_watch){.link = link, .groups = groups};
    sp_status st = sp_wake_open(&w->stop, err);
    if (st != SP_OK) goto free_it;
    st = sp_thread_start(&w->thread, "watch", watch_main, w, err);
    if (st != SP_OK) goto close_wake;
    *out = w;
    return SP_OK;

close_wake:
    sp_wake_close(&w->stop);
free_it:
    sp_free(w);
    return st;
}

void sp_group_watch_stop(sp_group_watch *w) {
    if (!w) return;
    sp_wake_signal(&w->stop);
    sp_thread_join(&w->thread);
    sp_wake_close(&w->stop);
    sp_free(w);
}
