#include "launcher/plan_impl.h"

static int32_t first_rank(const sp_planned *p, int32_t pool) {
    int32_t first = 0;
    for (int32_t i = 0; i < pool; i++)
        first += p->pools.at[i].replicas * p->pools.at[i].tp * p->pools.at[i].pp;
    return first;
}

int32_t sp_plan_stage_nodes(const sp_planned *p, int32_t pool, int32_t first, int32_t stage) {
    int32_t n = sp_pools_ranks(&p->pools), tp = p->pools.at[pool].tp, rank = first + stage * tp;
    return sp_fit_node(&p->fit, n, rank + tp - 1) - sp_fit_node(&p->fit, n, rank) + 1;
}

/* Of all groups of the pool: a stage that spans nodes sets the pace. */
static bool is_wide(const sp_planned *p, int32_t pool, int32_t stage) {
    const sp_pool_spec *s = &p->pools.at[pool];
    for (int32_t g = 0; g < s->replicas; g++)
        if (sp_plan_stage_nodes(p, pool, first_rank(p, pool) + g * s->tp * s->pp, stage) > 1)
            return true;
    return false;
}

double sp_plan_stage_seconds(const sp_planned *p, int32_t pool, int32_t stage, int32_t rows,
                             int32_t seqs) {
    const sp_device_kind *k = &p->hw.kind;
    const sp_plan *plan = &p->pool[pool].plan;
    double slowest = 0;
    for (int32_t t = 0; t < plan->tp; t++) {
        sp_plan_rank r;
        sp_plan_rank_of(&r, plan, &p->pool[pool].req, stage, t);
        double kv = (double)r.kv.token_bytes * SP_PLAN_CONTEXT * seqs;
        /* An embedding that is only looked up is not read. */
        double weights = (double)r.weight_bytes;
        if (stage == 0 && plan->pp > 1)
            weights -=
                (double)plan->slices[t].n_vocab * p->desc.hidden * sp_dtype_bits(p->desc.dtype) / 8;
        double bytes = (weights + kv) / (k->bandwidth_gbs * 1e9);
        double flops = 2.0 * (double)r.n_params * rows / (k->peak_tflops * 1e12);
        double s = bytes > flops ? bytes : flops;
        if (s > slowest) slowest = s;
    }
    if (plan->tp == 1) return slowest;
    bool wide = is_wide(p, pool, stage);
    double gbs = wide ? p->hw.net_gbs : k->link_gbs, us = wide ? p->hw.net_us : k->link_us;
    double bytes = (double)rows * p->desc.hidden * sizeof(float) * 2;
    return slowest + 2.0 * plan->stages[stage].n_layers * (us * 1e-6 + bytes / (gbs * 1e9));
}

/* Milliseconds through all stages, and of the slowest one, for `rows` tokens of `seqs` sequences. */
static double through(const sp_planned *p, int32_t pool, int32_t rows, int32_t seqs, double *most) {
    double sum = 0;
    *most = 0;
    for (int32_t s = 0; s < p->pool[pool].plan.pp; s++) {
        double ms = sp_plan_stage_seconds(p, pool, s, rows, seqs) * 1e3;
        if (s > 0)
            ms += p->hw.net_us * 1e-3 +
                  (double)rows * p->desc.hidden * sizeof(float) / (p->hw.net_gbs * 1e6);
        sum += ms;
        if (ms > *most) *most = ms;
    }
    return sum;
}

sp_step_time sp_plan_decode_time(const sp_planned *p, int32_t pool, int32_t batch) {
    int32_t pp = p->pool[pool].plan.pp;
    int32_t each = (batch + pp - 1) / pp; /* batches that follow each other */
    double most, ms = through(p, pool, each, each, &most);
    /* One stream waits for all stages; full batches keep all of them busy. */
    return (sp_step_time){ms, batch == 1 ? 1e3 / ms : each * 1e3 / most};
}

sp_step_time sp_plan_prefill_time(const sp_planned *p, int32_t pool) {
    int32_t rows = p->pool[pool].plan.max_num_batched_tokens;
    double most, ms = through(p, pool, rows, 1, &most);
    return (sp_step_time){ms, rows * 1e3 / most};
}

double sp_plan_balance(const sp_planned *p) {
    double prefill = 0, decode = 0;
    for (int32_t i = 0; i < p->pools.n; i++) {
        const sp_pool_spec *s = &p->pools.at[i];
        if (s->role == SP_POOL_MIXED) return 0;
        if (s->role == SP_POOL_PREFILL)
            prefill += s->replicas * sp_plan_prefill_time(p, i).tok_per_s;
        else
            decode +=
                s->replicas * sp_plan_decode_time(p, i, p->pool[i].plan.max_num_seqs).tok_per_s;
    }
    return decode > 0 ? prefill / decode : 0;
}
