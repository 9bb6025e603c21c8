/* What a plugin offers as comm/group_dev.h: NCCL, found at run time, on the stream of the device. */
#include "comm/group_dev.h"
#include "comm/group_nccl.h"
#include "kernels/cuda/cuda_dev.h"
#include "runtime/base/mem.h"

#include <stdio.h>

#ifdef CUDA_EMULATED
#define REMARK " (emulated)"
#else
#define REMARK ""
#endif

_Static_assert(sizeof(sp_dev_group_id) == sizeof(cu_nccl_id), "an id is NCCL's");

struct sp_dev_comms {
    cu_nccl nccl;
    char version[64];
};

static sp_status groups_open(sp_dev_comms **out, sp_err *err) {
    sp_dev_comms *c = sp_try_alloc(sizeof *c);
    if (!c) return SP_FAIL(err, SP_E_NOMEM, "no memory for a table of NCCL");
    sp_status st = cu_nccl_open(&c->nccl, NULL, err);
    if (st != SP_OK) {
        sp_free(c);
        return st;
    }
    snprintf(c->version, sizeof c->version, "NCCL %s" REMARK, c->nccl.version_text);
    *out = c;
    return SP_OK;
}

static void groups_close(sp_dev_comms *c) {
    if (!c) return;
    cu_nccl_close(&c->nccl);
    sp_free(c);
}

static const char *groups_version(const sp_dev_comms *c) {
    return c->version;
}

static sp_status groups_make_id(const sp_dev_comms *c, sp_dev_group_id *out, sp_err *err) {
    cu_nccl_id id;
    SP_TRY(sp_group_nccl_id(&id, &c->nccl, err));
    memcpy(out->bytes, id.internal, sizeof out->bytes);
    return SP_OK;
}

static sp_status groups_join(sp_group **out, const sp_dev_comms *c, sp_dev *dev,
                             const sp_dev_group_id *id, bool fast, const sp_group_config *config,
                             const sp_group_wait *wait, sp_err *err) {
    const cu_dev *cu = dev->impl;
    cu_nccl_id nccl_id;
    memcpy(nccl_id.internal, id->bytes, sizeof nccl_id.internal);
    return sp_group_open_nccl(out, &c->nccl, &nccl_id, cu->stream, fast, config, wait, err);
}

const struct sp_dev_groups cu_dev_groups = {
    .name = "nccl",
    .open = groups_open,
    .close = groups_close,
    .version = groups_version,
    .bytes = sp_group_nccl_bytes,
    .make_id = groups_make_id,
    .join = groups_join,
};
