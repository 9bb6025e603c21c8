#include "launcher/device.h"

#include "launcher/device_groups.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sp_status probe_all(sp_device *d, const sp_dev_plugin *p, sp_err *err) {
    sp_dev_info info;
    d->memory_bytes = UINT64_MAX;
    d->n_devices = 1;
    for (int i = 0; i < d->n_devices; i++) {
        SP_TRY(p->probe(&info, i, err));
        d->n_devices = info.n_devices;
        if (info.memory_bytes < d->memory_bytes) d->memory_bytes = info.memory_bytes;
        if (i == 0) snprintf(d->name, sizeof d->name, "%s", info.name);
    }
    return SP_OK;
}

static sp_status ask_plugin(sp_device *d, sp_err *err) {
    const sp_dev_plugin *p;
    sp_status st = sp_dev_plugin_open(&p, d->backend, err);
    if (st == SP_OK) st = probe_all(d, p, err);
    if (st != SP_OK) {
        sp_err_context(err, "option 'device' is %s", d->backend);
        return st;
    }
    d->ops = p->ops;
    d->own_memory = !p->ops->host_memory;
    return SP_OK;
}

sp_status sp_device_choose(sp_device *out, const char *backend, sp_err *err) {
    sp_device d = {.ops = &sp_dev_cpu};
    const char *name = strcmp(backend, "auto") == 0 ? sp_dev_auto(d.why, sizeof d.why) : backend;
    snprintf(d.backend, sizeof d.backend, "%s", name);
    if (sp_dev_is_plugin(d.backend))
        SP_TRY(ask_plugin(&d, err));
    else
        SP_TRY(sp_dev_find(&d.ops, d.backend, err));
    *out = d;
    return SP_OK;
}

void sp_device_imagine(sp_device *out, const char *backend, uint64_t memory_bytes) {
    static const char *const any[] = {"cuda", "emu"};
    sp_device d = {.own_memory = true, .memory_bytes = memory_bytes, .n_devices = 1};
    const sp_dev_plugin *p;
    for (size_t i = 0; i < SP_LEN(any) && !d.ops; i++)
        if ((!backend || strcmp(backend, any[i]) == 0) &&
            sp_dev_plugin_open(&p, any[i], NULL) == SP_OK)
            d.ops = p->ops;
    snprintf(d.backend, sizeof d.backend, "%s", backend ? backend : any[0]);
    *out = d;
}

/* What the launcher left to be seen is this agent's; without that all agents of a node see all. */
static bool is_shared_out(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && *visible;
}

/* A GPU for each rank; an emulated one is its process's own. */
static sp_status check_share(const sp_device *d, const sp_config *config, sp_err *err) {
    const int ranks = is_shared_out() ? config->ranks_here : config->ranks_on_node;
    if (strcmp(d->backend, "cuda") != 0 || ranks <= d->n_devices) return SP_OK;
    return SP_FAIL(
        err, SP_E_UNSUPPORTED,
        "option 'device' is cuda: %d ranks %s want a GPU each, there %s %d%s; want fewer "
        "--tp x --pp or more nodes",
        ranks, is_shared_out() ? "of this agent" : "on this node", d->n_devices == 1 ? "is" : "are",
        d->n_devices, is_shared_out() ? " (CUDA_VISIBLE_DEVICES)" : "");
}

sp_status sp_device_check(const sp_device *d, const sp_config *config, sp_err *err) {
    if (!d->own_memory) return SP_OK;
    return check_share(d, config, err);
}

sp_status sp_device_settle_numerics(sp_device *d, const char *numerics, sp_err *err) {
    d->fast = strcmp(numerics, "fast") == 0;
    if (!d->fast || d->own_memory) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "option 'numerics' is fast: device '%s' computes exactly only; want --device "
                   "cuda or --numerics exact",
                   d->backend);
}

void sp_device_plan(const sp_device *d, sp_plan_request *req) {
    if (!d->own_memory) return;
    const int32_t tp = req->tp ? req->tp : 1;
    const int32_t E = req->desc->hidden, F = (req->desc->intermediate + tp - 1) / tp;
    const int32_t HD = (req->desc->n_heads + tp - 1) / tp * req->desc->head_dim;
    const sp_dev_sizes sizes = {
        .max_tokens = req->max_num_batched_tokens,
        .max_positions = req->max_model_len ? req->max_model_len : req->desc->max_positions,
        .n_heads = (req->desc->n_heads + tp - 1) / tp,
        .n_kv_heads = (req->desc->n_kv_heads + tp - 1) / tp,
        .head_dim = req->desc->head_dim,
        .max_cols = E > F && E > HD ? E
                    : F > HD        ? F
                                    : HD,
        .fast = d->fast,
        .max_draws = !d->ops || !d->ops->draw ? 0
                     : req->max_rows          ? req->max_rows
                                              : req->max_num_batched_tokens,
        .vocab = req->desc->vocab,
    };
    const uint64_t own =
        (d->ops ? d->ops->reserve_bytes(&sizes) : 0) + sp_device_group_bytes(d, req);
    const uint64_t all = d->memory_bytes / 100 * SP_DEVICE_USABLE_PERCENT;
    const uint64_t left = all > own ? all - own : 0;
    req->packed = d->ops ? d->ops->packed_bytes : NULL;
    req->memory = (sp_memory){left, UINT64_MAX, UINT64_MAX};
    req->ranks_on_node = 1;
}

#define HOST_RESERVE_DIVISOR 32 /* as of a rank's memory where the host has all of it */

sp_status sp_device_plan_mirror(const sp_device *d, sp_plan *plan, sp_plan_request *req,
                                const sp_memory *host, int32_t ranks_on_node, sp_err *err) {
    if (!d->own_memory) return SP_OK;
    uint64_t left = host->available_bytes < host->cgroup_left_bytes ? host->available_bytes
                                                                    : host->cgroup_left_bytes;
    if (ranks_on_node > 1) left /= (uint64_t)ranks_on_node;
    left -= left / HOST_RESERVE_DIVISOR;
    const uint64_t block = plan->kv.block_bytes, fit = left / block;
    if ((uint64_t)plan->n_blocks <= fit) return SP_OK;
    if (req->n_blocks || fit < (uint64_t)plan->blocks_per_seq) {
        const int32_t want = req->n_blocks ? plan->n_blocks : plan->blocks_per_seq;
        return SP_FAIL(
            err, SP_E_LIMIT,
            "KV blocks that others may read need memory of the host as well: %llu MiB for "
            "%d blocks, a rank's share is %llu MiB, at most %llu blocks",
            (unsigned long long)((uint64_t)want * block >> 20), want,
            (unsigned long long)(left >> 20), (unsigned long long)fit);
    }
    req->n_blocks = (int32_t)fit;
    return sp_plan_make(plan, req, err);
}

int sp_device_index(const char *backend, int local_rank) {
    sp_dev_info info;
    const sp_dev_plugin *p;
    /* Each process that emulates a device has one to itself. */
    if (strcmp(backend, "cuda") != 0) return 0;
    if (sp_dev_plugin_open(&p, backend, NULL) != SP_OK || p->probe(&info, 0, NULL) != SP_OK)
        return local_rank; /* opening it says why */
    /* Agents' ranks are neighbours: each agent's fill the GPUs that it was left. */
    return is_shared_out() ? local_rank % info.n_devices : local_rank;
}
