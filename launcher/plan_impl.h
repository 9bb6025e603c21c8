/* launcher/plan_impl.h - what the files of `superpod plan` share: the plan that was made, how fast it
 * would be, how it is told.
 *
 * Thread: main. */
#pragma once

#include "launcher/fit.h"
#include "launcher/hardware.h"

#define SP_PLAN_CONTEXT 1024 /* tokens of every sequence, where times are predicted */

typedef struct sp_planned {
    sp_config config;
    sp_hardware hw;
    char *dir;
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *tensors; /* NULL: config.json alone */
    sp_pools pools;
    sp_device device; /* of GPUs; its ops may not be known */
    sp_fit fit;
    sp_fit_pool *pool; /* owned [pools.n] */
} sp_planned;

/** The device's data sheet is known: times can be predicted. */
static inline bool sp_plan_is_timed(const sp_planned *p) {
    return p->hw.kind.bandwidth_gbs > 0;
}

/** How many nodes the ranks of a stage lie on, in a group that begins at rank `first` of the pod. */
int32_t sp_plan_stage_nodes(const sp_planned *p, int32_t pool, int32_t first, int32_t stage);

/** Seconds at best of one stage's slowest rank for `rows` tokens of `seqs` sequences. */
double sp_plan_stage_seconds(const sp_planned *p, int32_t pool, int32_t stage, int32_t rows,
                             int32_t seqs);

typedef struct sp_step_time {
    double ms;        /* of a token through all stages */
    double tok_per_s; /* of one group */
} sp_step_time;
/** Decode of `batch` sequences by a group of the pool. */
sp_step_time sp_plan_decode_time(const sp_planned *p, int32_t pool, int32_t batch);
/** A prompt in chunks of --max-num-batched-tokens; ms is a chunk's. */
sp_step_time sp_plan_prefill_time(const sp_planned *p, int32_t pool);
/** How many times longer than answers prompts are when prefill and decode pools are equally busy;
 * 0: not all groups have one of these roles. */
double sp_plan_balance(const sp_planned *p);

void sp_plan_print_table(const sp_planned *p);
void sp_plan_print_json(const sp_planned *p);
