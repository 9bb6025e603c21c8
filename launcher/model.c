#include "launcher/model.h"

#include "kernels/dev.h"
#include "runtime/base/mem.h"
#include "runtime/model/weights.h"

/* The tensors' own types count, not what config.json says of them. */
static sp_status plan_model(sp_model *m, const sp_config *c, const sp_model_dir *dir, sp_err *err) {
    sp_plan_request req = {
        .desc = &m->desc,
        .arch = m->arch,
        .dir = dir,
        .max_rows = (int32_t)c->max_num_seqs,
        .packed = sp_dev_cpu.packed_bytes,
        .tp = (int32_t)c->tp,
        .pp = (int32_t)c->pp,
        .block_tokens = (int32_t)c->block_size,
        .max_model_len = (int32_t)c->max_model_len,
        .max_num_seqs = (int32_t)c->max_num_seqs,
        .max_num_batched_tokens = (int32_t)c->max_num_batched_tokens,
        .n_blocks = (int32_t)c->num_blocks,
    };
    SP_TRY(sp_kv_dtype_parse(c->kv_cache_dtype, &req.kv_dtype, err));
    SP_TRY(sp_memory_read(&req.memory, "", err));
    SP_TRY(sp_plan_make(&m->plan, &req, err));
    m->max_model_len = m->plan.max_model_len;
    return SP_OK;
}

sp_status sp_model_prove(sp_model *out, const sp_config *config, sp_err *err) {
    sp_model m = {0};
    if (config->pp_layers)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "option 'pp-layers': this version runs one stage, got '%.60s'",
                       config->pp_layers);
    SP_TRY(sp_model_resolve(&m.dir, config->model, err));
    sp_status st = sp_model_desc_load(&m.desc, m.dir, err);
    if (st == SP_OK) st = sp_arch_find(&m.arch, &m.desc, err);
    sp_model_dir *tensors = NULL;
    if (st == SP_OK) st = sp_model_dir_open(&tensors, m.dir, err);
    if (st == SP_OK) st = sp_weights_check(tensors, &m.desc, m.arch, err);
    if (st == SP_OK) st = plan_model(&m, config, tensors, err);
    sp_model_dir_close(tensors);
    if (st != SP_OK) {
        sp_model_fini(&m);
        return st;
    }
    *out = m;
    return SP_OK;
}

void sp_model_fini(sp_model *m) {
    sp_free(m->dir);
    m->dir = NULL;
}
