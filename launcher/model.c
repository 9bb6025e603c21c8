#include "launcher/model.h"

#include "comm/group.h"
#include "kernels/dev.h"
#include "launcher/device_groups.h"
#include "runtime/base/mem.h"
#include "runtime/engine/stage.h"
#include "runtime/model/weights.h"

#include <stdio.h>
#include <string.h>

/* A rehearsal holds no weights and no keys: its sizes are what a step and a context need. */
#define NULL_MODEL_LEN 8192
#define NULL_STEP_BYTES ((int64_t)8 << 20) /* of activations: 128 tokens of a 405B model */

static int32_t ranks_on_node(const sp_model *m, const sp_config *c) {
    return c->ranks_on_node ? c->ranks_on_node : sp_pools_ranks(&m->pools);
}

static sp_status make_request(sp_plan_request *out, const sp_model *m, const sp_pool_spec *s,
                              const int32_t *pp_layers, const sp_config *c, const sp_model_dir *dir,
                              sp_err *err) {
    sp_plan_request req = {
        .desc = &m->desc,
        .arch = m->arch,
        .dir = dir,
        .max_rows = (int32_t)c->max_num_seqs,
        .packed = sp_dev_cpu.packed_bytes,
        .tp = s->tp,
        .pp = s->pp,
        .pp_layers = pp_layers,
        .block_tokens = (int32_t)c->block_size,
        .max_model_len = (int32_t)c->max_model_len,
        .max_num_seqs = (int32_t)c->max_num_seqs,
        .max_num_batched_tokens = (int32_t)c->max_num_batched_tokens,
        .n_blocks = (int32_t)c->num_blocks,
        .ranks_on_node = ranks_on_node(m, c),
    };
    SP_TRY(sp_kv_dtype_parse(c->kv_cache_dtype, &req.kv_dtype, err));
    SP_TRY(sp_memory_read(&req.memory, "", err));
    sp_device_plan(&m->device, &req);
    if (c->null_model) {
        req.memory = (sp_memory){UINT64_MAX, UINT64_MAX, UINT64_MAX};
        int64_t fit = NULL_STEP_BYTES / ((int64_t)sizeof(float) * m->desc.hidden);
        if (req.max_num_batched_tokens > fit)
            req.max_num_batched_tokens = fit < 1 ? 1 : (int32_t)fit;
        if (!req.max_model_len && m->desc.max_positions > NULL_MODEL_LEN)
            req.max_model_len = NULL_MODEL_LEN;
    }
    *out = req;
    return SP_OK;
}

/* With other groups, or a secret, a rank's blocks may be read by others. */
static sp_status plan_mirror(const sp_model *m, const sp_config *c, sp_plan *plan,
                             sp_plan_request *req, sp_err *err) {
    sp_memory host;
    const bool shared = sp_pools_groups(&m->pools) > 1 || (c->kv_secret_file && *c->kv_secret_file);
    if (!shared) return SP_OK;
    SP_TRY(sp_memory_read(&host, "", err));
    return sp_device_plan_mirror(&m->device, plan, req, &host, ranks_on_node(m, c), err);
}

/* What the parts of a pod can hold: known before anything is started. */
static sp_status check_shape(const sp_pool_spec *s, sp_err *err) {
    /* The ranks that embed and the one that draws are a group too. */
    const int tp_max = SP_GROUP_MEMBERS_MAX - (s->pp > 1), pp_max = SP_STAGE_STEPS_MAX - 1;
    if (s->pp > pp_max)
        return SP_FAIL(err, SP_E_INVALID, "option 'pipeline-parallel-size': want 1 to %d, got %d",
                       pp_max, (int)s->pp);
    if (s->tp > tp_max)
        return SP_FAIL(err, SP_E_INVALID,
                       "option 'tensor-parallel-size': want 1 to %d with %d stages, got %d", tp_max,
                       (int)s->pp, (int)s->tp);
    return SP_OK;
}

/* The bytes of the ranks of each group of pool `i`, which begins at rank `first`. */
static void plan_ranks(sp_model *m, int32_t i, int32_t first, const sp_plan_request *req) {
    const sp_plan *plan = &m->pool[i].plan;
    int32_t each = plan->tp * plan->pp;
    for (int32_t r = 0; r < each * m->pools.at[i].replicas; r++)
        sp_plan_rank_of(&m->ranks[first + r], plan, req, r % each / plan->tp, r % plan->tp);
}

static sp_status plan_pool(sp_model *m, int32_t i, int32_t first, const sp_config *c,
                           const sp_model_dir *dir, sp_err *err) {
    const sp_pool_spec *s = &m->pools.at[i];
    sp_model_pool *p = &m->pool[i];
    bool cut = s->pp_layers[0] != 0;
    sp_plan_request req;
    SP_TRY(check_shape(s, err));
    if (cut) SP_TRY(sp_pp_layers_parse(s->pp_layers, s->pp, p->pp_layers, err));
    SP_TRY(make_request(&req, m, s, cut ? p->pp_layers : NULL, c, dir, err));
    SP_TRY(sp_plan_make(&p->plan, &req, err));
    SP_TRY(plan_mirror(m, c, &p->plan, &req, err));
    for (int32_t k = 0; k < p->plan.pp; k++) p->pp_layers[k] = p->plan.stages[k].n_layers;
    plan_ranks(m, i, first, &req);
    return SP_OK;
}

/* The tensors' own types count, not what config.json says of them. */
static sp_status plan_model(sp_model *m, const sp_config *c, const sp_model_dir *dir, sp_err *err) {
    int32_t first = 0;
    m->pool = sp_alloc((size_t)m->pools.n * sizeof *m->pool);
    m->ranks = sp_alloc((size_t)sp_pools_ranks(&m->pools) * sizeof *m->ranks);
    for (int32_t i = 0; i < m->pools.n; i++) {
        const sp_pool_spec *s = &m->pools.at[i];
        sp_status st = plan_pool(m, i, first, c, dir, err);
        if (st != SP_OK && m->pools.given) sp_err_context(err, "pool '%s'", s->name);
        if (st != SP_OK) return st;
        first += s->replicas * s->tp * s->pp;
    }
    m->max_model_len = m->pool[0].plan.max_model_len;
    return SP_OK;
}

/* Blocks that another pod is to find must be there, and findable. */
static sp_status check_sharing(const sp_config *c, sp_err *err) {
    if (!c->kv_secret_file || !*c->kv_secret_file) return SP_OK;
    if (c->null_model)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'kv-secret-file': a rehearsal ('null-model') has no KV blocks");
    if (!c->prefix_caching)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'kv-secret-file': blocks are found by the prefix cache, which "
                       "'enable-prefix-caching' turns off");
    return SP_OK;
}

static sp_status prove_tensors(sp_model *m, const sp_config *c, sp_err *err) {
    sp_model_dir *tensors = NULL;
    sp_status st = c->null_model ? SP_OK : sp_model_dir_open(&tensors, m->dir, err);
    if (st == SP_OK && tensors) st = sp_weights_check(tensors, &m->desc, m->arch, err);
    if (st == SP_OK) st = plan_model(m, c, tensors, err);
    if (st == SP_OK) st = sp_fingerprint_of(m->fingerprint, m->dir, tensors, err);
    sp_model_dir_close(tensors);
    return st;
}

/* What was asked for by name is refused by name; "auto" that found a GPU which cannot do what the
 * other options want serves by the CPU, and says so. */
sp_status sp_model_device(sp_device *out, const sp_config *config, const sp_pools *pools,
                          sp_err *err) {
    sp_err why = {0};
    sp_device d;
    const int ranks = sp_pools_ranks(pools), groups = sp_pools_groups(pools);
    SP_TRY(sp_device_choose(&d, config->backend, err));
    sp_status st = sp_device_check(&d, config, &why);
    if (st == SP_OK) st = sp_device_check_groups(&d, config->collectives, ranks, groups, &why);
    if (st != SP_OK && strcmp(config->backend, "auto") != 0) {
        if (err) *err = why;
        return st;
    }
    if (st != SP_OK) {
        d = (sp_device){.backend = "cpu", .ops = &sp_dev_cpu};
        snprintf(d.why, sizeof d.why, "cpu: %.240s", why.text);
    }
    *out = d;
    return SP_OK;
}

sp_status sp_model_prove(sp_model *out, const sp_config *config, sp_err *err) {
    sp_model m = {0};
    SP_TRY(sp_pools_of(&m.pools, config, err));
    SP_TRY(check_sharing(config, err));
    if (config->null_model && sp_pools_groups(&m.pools) > 1)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'null-model': a rehearsal is of one group, got %d (%s)",
                       (int)sp_pools_groups(&m.pools), "option 'pool'");
    if (config->null_model) {
        m.device = (sp_device){.backend = "cpu", .ops = &sp_dev_cpu}; /* it computes nothing */
    } else {
        SP_TRY(sp_model_device(&m.device, config, &m.pools, err));
        SP_TRY(sp_device_settle_numerics(&m.device, config->numerics, err));
    }
    SP_TRY(sp_model_resolve(&m.dir, config->model, err));
    sp_status st = sp_model_desc_load(&m.desc, m.dir, err);
    if (st == SP_OK) st = sp_arch_find(&m.arch, &m.desc, err);
    if (st == SP_OK) st = prove_tensors(&m, config, err);
    if (st == SP_OK) st = sp_pools_check_bits(&m.pools, err);
    if (st != SP_OK) {
        sp_model_fini(&m);
        return st;
    }
    *out = m;
    return SP_OK;
}

void sp_model_fini(sp_model *m) {
    sp_free(m->dir);
    sp_free(m->ranks);
    sp_free(m->pool);
    m->dir = NULL;
    m->pool = NULL;
    m->ranks = NULL;
}
