#include "launcher/plan.h"

#include "kernels/dev.h"
#include "launcher/plan_impl.h"
#include "runtime/base/mem.h"
#include "runtime/format/model_dir.h"

#include <stdio.h>
#include <string.h>

#define FIT_PP_MAX 16
#define REASON_BYTES 200
#define REASON_KEPT 120

/* ---- the request ---- */

static sp_status read_model(sp_planned *p, sp_err *err) {
    const sp_config *c = &p->config;
    SP_TRY(sp_model_resolve(&p->dir, c->model, err));
    SP_TRY(sp_model_desc_load(&p->desc, p->dir, err));
    SP_TRY(sp_arch_find(&p->arch, &p->desc, err));
    sp_err none = {0};
    if (sp_model_dir_open(&p->tensors, p->dir, &none) != SP_OK) p->tensors = NULL;
    return SP_OK;
}

/* The GPUs of this machine: what they are is asked, nothing is opened. */
static sp_status read_own_device(sp_planned *p, sp_err *err) {
    SP_TRY(sp_device_choose(&p->device, p->config.backend, err));
    p->hw = (sp_hardware){.n_nodes = 1,
                          .n_devices = p->device.n_devices,
                          .kind = {.memory_bytes = p->device.memory_bytes}};
    snprintf(p->hw.kind.name, sizeof p->hw.kind.name, "%.31s", p->device.name);
    return SP_OK;
}

static sp_status read_device(sp_planned *p, sp_err *err) {
    const char *backend = p->config.backend;
    const sp_device_kind *k = &p->hw.kind;
    const sp_dev_plugin *plugin;
    const bool wants_gpu = sp_dev_is_plugin(backend), any = strcmp(backend, "auto") == 0;
    if (wants_gpu && !p->config.nodes) return read_own_device(p, err);
    if (!any && !wants_gpu && strncmp(backend, "cpu", 3) != 0)
        return SP_FAIL(err, SP_E_INVALID,
                       "option 'device': want cuda, emu, cpu or auto, got '%.40s'", backend);
    SP_TRY(sp_hardware_parse(&p->hw, p->config.nodes, err));
    if (!any && wants_gpu == k->is_cpu)
        return SP_FAIL(err, SP_E_INVALID, "option 'device' is %.20s: '%s' of option 'nodes' is %s",
                       backend, k->name, k->is_cpu ? "no GPU" : "a GPU");
    if (wants_gpu) SP_TRY(sp_dev_plugin_open(&plugin, backend, err));
    if (!k->is_cpu) sp_device_imagine(&p->device, any ? NULL : backend, k->memory_bytes);
    return SP_OK;
}

static sp_status read_wishes(sp_planned *p, sp_err *err) {
    const sp_device_kind *k = &p->hw.kind;
    SP_TRY(sp_pools_of(&p->pools, &p->config, err));
    sp_pool_spec *only = &p->pools.at[0];
    if (!p->pools.given && !only->tp) only->tp = p->hw.n_devices;
    if (!p->pools.given && !only->pp) only->pp = p->hw.n_nodes;
    SP_TRY(sp_fit_wish(&p->fit.wish, &p->config, &p->desc, p->arch, p->tensors, err));
    p->fit.wish.packed = k->is_cpu ? sp_dev_cpu.packed_bytes : NULL;
    p->fit.memory = (sp_memory){k->memory_bytes, UINT64_MAX, UINT64_MAX};
    p->fit.device = k->is_cpu ? NULL : &p->device;
    p->fit.shared = k->is_cpu;
    p->fit.n_nodes = p->hw.n_nodes;
    p->fit.n_devices = p->hw.n_devices;
    p->pool = sp_alloc((size_t)p->pools.n * sizeof *p->pool);
    return SP_OK;
}

/* ---- what would fit instead, where there are no pools ---- */

static bool would_fit(const sp_planned *p, int32_t tp, int32_t pp, int32_t nodes) {
    sp_fit_pool *room = sp_alloc(sizeof *room);
    sp_fit fit = p->fit;
    sp_pools one = {.n = 1, .at = {{.replicas = 1, .tp = tp, .pp = pp}}};
    fit.n_nodes = nodes;
    bool fits = sp_fit_pools(&fit, &one, room, NULL) == SP_OK;
    sp_free(room);
    return fits;
}

/* The pod on the fewest nodes that would hold it, of those the one with the widest stages; 0 x 0:
 * none up to FIT_PP_MAX stages. */
static void find_fit(const sp_planned *p, int32_t *tp, int32_t *pp) {
    static const int32_t degrees[] = {16, 8, 4, 2, 1};
    int32_t best = INT32_MAX;
    for (size_t i = 0; i < SP_LEN(degrees); i++) {
        if (degrees[i] > p->hw.n_devices) continue;
        for (int32_t s = 1; s <= FIT_PP_MAX; s++) {
            int32_t nodes = (degrees[i] * s + p->hw.n_devices - 1) / p->hw.n_devices;
            if (nodes >= best) break;
            if (!would_fit(p, degrees[i], s, nodes)) continue;
            best = nodes;
            *tp = degrees[i];
            *pp = s;
            break;
        }
    }
}

static sp_status say_what_fits(const sp_planned *p, sp_err *err) {
    int32_t tp = 0, pp = 0;
    char why[REASON_BYTES];
    /* What the plan proposes after the colon is kept when it is short: a smaller wish. */
    int n = strlen(err->text) < REASON_KEPT ? REASON_KEPT : (int)strcspn(err->text, ":");
    snprintf(why, sizeof why, "%.*s", n, err->text);
    find_fit(p, &tp, &pp);
    if (tp)
        return SP_FAIL(err, SP_E_LIMIT, "%s; tp %d x pp %d would fit: %d of %s", why, (int)tp,
                       (int)pp, (int)(tp * pp), p->hw.kind.name);
    return SP_FAIL(err, SP_E_LIMIT, "%s; no pod of up to 16 stages of %s holds it", why,
                   p->hw.kind.name);
}

static sp_status make_plan(sp_planned *p, sp_err *err) {
    SP_TRY(read_wishes(p, err));
    sp_status st = sp_fit_pools(&p->fit, &p->pools, p->pool, err);
    if (st != SP_E_LIMIT) return st;
    if (!p->pools.given) return say_what_fits(p, err);
    sp_fit_say_other(&p->fit, &p->pools, err);
    return st;
}

static int run(sp_planned *p) {
    sp_err err = {0};
    if (!p->config.nodes && !sp_dev_is_plugin(p->config.backend)) {
        fprintf(stderr,
                "superpod: plan wants --nodes, as 2x8xH100-80G or CPU-64G, or --device cuda "
                "for the GPUs of this machine\n");
        return SP_EXIT_USAGE;
    }
    sp_status st = read_device(p, &err);
    if (st == SP_OK) st = read_model(p, &err);
    if (st == SP_OK) st = make_plan(p, &err);
    if (st != SP_OK)
        fprintf(stderr, "superpod: %s\n", err.text);
    else if (p->config.json)
        sp_plan_print_json(p);
    else
        sp_plan_print_table(p);
    sp_model_dir_close(p->tensors);
    sp_free(p->pool);
    sp_free(p->dir);
    return st == SP_OK ? SP_EXIT_OK : SP_EXIT_CONFIG;
}

int sp_plan_command(int argc, char **argv) {
    sp_planned *p = sp_alloc(sizeof *p);
    sp_err err = {0};
    bool help;
    int code = SP_EXIT_USAGE;
    if (sp_config_parse(&p->config, SP_CMD_PLAN, argc, argv, &help, &err) != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        sp_free(p);
        return code;
    }
    if (help) {
        puts("usage: superpod plan --model DIR --nodes 2x8xH100-80G [options]\n");
        sp_config_help(SP_CMD_PLAN, stdout);
        code = SP_EXIT_OK;
    } else {
        code = run(p);
    }
    sp_config_fini(&p->config);
    sp_free(p);
    return code;
}
