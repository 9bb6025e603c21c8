/* launcher/fit.h - whether pools of groups fit the nodes, and which others would.
 *
 * A CPU's memory and cores are its node's, so ranks are spread evenly over all nodes, as an agent a
 * node does it (launcher/roster.h). A GPU is its rank's alone, so a node is filled before the next.
 * What is proposed has the same pools and roles: fewer groups first, which is what a user gives up
 * most easily; then smaller ones; then, for weights too large for a rank, a larger group of each.
 *
 * Thread: plain data. */
#pragma once

#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/pools.h"
#include "runtime/model/plan.h"

typedef struct sp_fit {
    sp_plan_request wish;    /* what all pools share; the rest is set for each */
    sp_memory memory;        /* of a node */
    const sp_device *device; /* borrowed; a GPU, whose memory and packing count instead; or NULL */
    bool shared;             /* ... of a node, by its ranks */
    int32_t n_nodes, n_devices; /* devices, or slots, of a node */
} sp_fit;

/** Fills `wish` from the options; borrows the rest. Errors: as sp_kv_dtype_parse(). */
SP_NODISCARD sp_status sp_fit_wish(sp_plan_request *out, const sp_config *c,
                                   const sp_model_desc *desc, const sp_arch *arch,
                                   const sp_model_dir *dir, sp_err *err);

/** One pool as planned; `req` is what sp_plan_rank_of() wants. Does not move: `req` points into it. */
typedef struct sp_fit_pool {
    sp_plan_request req;
    sp_plan plan;
    int32_t pp_layers[SP_PLAN_PP_MAX];
} sp_fit_pool;

/** Plans every pool: out[p->n].
 * Errors: SP_E_LIMIT more ranks than devices, or bytes that are not there; SP_E_INVALID as
 * sp_plan_make(), sp_pp_layers_parse() and sp_pools_check_bits(); the pool is named. */
SP_NODISCARD sp_status sp_fit_pools(const sp_fit *f, const sp_pools *p, sp_fit_pool *out,
                                    sp_err *err);

/** Makes `p` the first that fits in that order; false: none does, and `p` is as it was. */
bool sp_fit_other(const sp_fit *f, sp_pools *p);

/** Puts what would fit behind the words of a refusal, with as much of those as there is room for. */
void sp_fit_say_other(const sp_fit *f, const sp_pools *p, sp_err *err);

/** The node of a rank. */
int32_t sp_fit_node(const sp_fit *f, int32_t n_ranks, int32_t rank);
