#include "launcher/plan.h"

#include "kernels/dev.h"
#include "launcher/config.h"
#include "launcher/hardware.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/format/model_dir.h"
#include "runtime/model/plan.h"

#include <stdio.h>
#include <string.h>

#define CONTEXT_TOKENS 1024 /* of every sequence, where the step time is predicted */
#define USABLE_PERCENT 92   /* of a GPU's memory: the driver and NCCL take the rest */
#define FIT_PP_MAX 16
#define REASON_BYTES 200
#define REASON_KEPT 120

typedef struct planned {
    sp_config config;
    sp_hardware hw;
    char *dir;
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *tensors; /* NULL: config.json alone */
    int32_t pp_layers[SP_PLAN_PP_MAX];
    sp_plan_request req;
    sp_plan plan;
} planned;

typedef struct step_time {
    double ms, stage_ms_max; /* of one token through all stages; of the slowest stage */
    double tok_per_s;
} step_time;

/* ---- the request ---- */

static void set_degrees(planned *p, int32_t tp, int32_t pp) {
    int32_t on_node = tp * pp < p->hw.n_devices ? tp * pp : p->hw.n_devices;
    uint64_t memory = p->hw.kind.memory_bytes;
    p->req.tp = tp;
    p->req.pp = pp;
    p->req.pp_layers = p->config.pp_layers ? p->pp_layers : NULL;
    /* A CPU's memory is its node's and shared by the ranks there; a GPU's is its own. */
    p->req.ranks_on_node = p->hw.kind.is_cpu ? on_node : 1;
    if (!p->hw.kind.is_cpu) memory = memory / 100 * USABLE_PERCENT;
    p->req.memory = (sp_memory){memory, UINT64_MAX, UINT64_MAX};
    p->req.packed = p->hw.kind.is_cpu ? sp_dev_cpu.packed_bytes : NULL;
}

static sp_status read_model(planned *p, sp_err *err) {
    const sp_config *c = &p->config;
    SP_TRY(sp_model_resolve(&p->dir, c->model, err));
    SP_TRY(sp_model_desc_load(&p->desc, p->dir, err));
    SP_TRY(sp_arch_find(&p->arch, &p->desc, err));
    sp_err none = {0};
    if (sp_model_dir_open(&p->tensors, p->dir, &none) != SP_OK) p->tensors = NULL;
    p->req = (sp_plan_request){.desc = &p->desc,
                               .arch = p->arch,
                               .dir = p->tensors,
                               .max_rows = (int32_t)c->max_num_seqs,
                               .block_tokens = (int32_t)c->block_size,
                               .max_model_len = (int32_t)c->max_model_len,
                               .max_num_seqs = (int32_t)c->max_num_seqs,
                               .max_num_batched_tokens = (int32_t)c->max_num_batched_tokens,
                               .n_blocks = (int32_t)c->num_blocks};
    return sp_kv_dtype_parse(c->kv_cache_dtype, &p->req.kv_dtype, err);
}

static bool would_fit(planned *p, int32_t tp, int32_t pp) {
    sp_plan *plan = sp_alloc(sizeof *plan);
    sp_plan_request kept = p->req;
    set_degrees(p, tp, pp);
    p->req.pp_layers = NULL;
    bool fits = sp_plan_make(plan, &p->req, NULL) == SP_OK;
    p->req = kept;
    sp_free(plan);
    return fits;
}

/* The pod on the fewest nodes that would hold it, of those the one with the widest stages; 0 x 0:
 * none up to FIT_PP_MAX stages. */
static void find_fit(planned *p, int32_t *tp, int32_t *pp) {
    static const int32_t degrees[] = {16, 8, 4, 2, 1};
    int32_t best = INT32_MAX;
    for (size_t i = 0; i < SP_LEN(degrees); i++) {
        if (degrees[i] > p->hw.n_devices) continue;
        for (int32_t s = 1; s <= FIT_PP_MAX; s++) {
            int32_t nodes = (degrees[i] * s + p->hw.n_devices - 1) / p->hw.n_devices;
            if (nodes >= best) break;
            if (!would_fit(p, degrees[i], s)) continue;
            best = nodes;
            *tp = degrees[i];
            *pp = s;
            break;
        }
    }
}

static sp_status say_what_fits(planned *p, sp_err *err) {
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

static sp_status make_plan(planned *p, sp_err *err) {
    const sp_config *c = &p->config;
    int32_t tp = c->tp ? (int32_t)c->tp : p->hw.n_devices;
    int32_t pp = c->pp ? (int32_t)c->pp : p->hw.n_nodes;
    if (c->pp_layers) SP_TRY(sp_pp_layers_parse(c->pp_layers, pp, p->pp_layers, err));
    set_degrees(p, tp, pp);
    if ((int64_t)tp * pp > (int64_t)p->hw.n_nodes * p->hw.n_devices)
        return SP_FAIL(err, SP_E_LIMIT,
                       "tp %d x pp %d are %d ranks, %d nodes of %d devices have %d", (int)tp,
                       (int)pp, (int)(tp * pp), (int)p->hw.n_nodes, (int)p->hw.n_devices,
                       (int)(p->hw.n_nodes * p->hw.n_devices));
    sp_status st = sp_plan_make(&p->plan, &p->req, err);
    return st == SP_E_LIMIT ? say_what_fits(p, err) : st;
}

/* ---- how fast ---- */

/* Seconds of one stage's slowest rank for `batch` sequences of CONTEXT_TOKENS. */
static double stage_seconds(const planned *p, int32_t stage, int32_t batch) {
    const sp_device_kind *k = &p->hw.kind;
    const sp_plan *plan = &p->plan;
    double slowest = 0;
    for (int32_t t = 0; t < plan->tp; t++) {
        sp_plan_rank r;
        sp_plan_rank_of(&r, plan, &p->req, stage, t);
        double kv = (double)r.kv.token_bytes * CONTEXT_TOKENS * batch;
        /* An embedding that is only looked up is not read. */
        double weights = (double)r.weight_bytes;
        if (stage == 0 && plan->pp > 1)
            weights -=
                (double)plan->slices[t].n_vocab * p->desc.hidden * sp_dtype_bits(p->desc.dtype) / 8;
        double bytes = (weights + kv) / (k->bandwidth_gbs * 1e9);
        double flops = 2.0 * (double)r.n_params * batch / (k->peak_tflops * 1e12);
        double s = bytes > flops ? bytes : flops;
        if (s > slowest) slowest = s;
    }
    if (plan->tp == 1) return slowest;
    bool wide = plan->tp > p->hw.n_devices;
    double gbs = wide ? p->hw.net_gbs : k->link_gbs, us = wide ? p->hw.net_us : k->link_us;
    double bytes = (double)batch * p->desc.hidden * sizeof(float) * 2;
    return slowest + 2.0 * plan->stages[stage].n_layers * (us * 1e-6 + bytes / (gbs * 1e9));
}

static step_time predict(const planned *p, int32_t batch) {
    step_time t = {0};
    int32_t each = (batch + p->plan.pp - 1) / p->plan.pp; /* batches that follow each other */
    for (int32_t s = 0; s < p->plan.pp; s++) {
        double ms = stage_seconds(p, s, each) * 1e3;
        if (s > 0)
            ms += p->hw.net_us * 1e-3 +
                  (double)each * p->desc.hidden * sizeof(float) / (p->hw.net_gbs * 1e6);
        t.ms += ms;
        if (ms > t.stage_ms_max) t.stage_ms_max = ms;
    }
    /* One stream waits for all stages; full batches keep all of them busy. */
    t.tok_per_s = batch == 1 ? 1e3 / t.ms : each * 1e3 / t.stage_ms_max;
    return t;
}

/* ---- words ---- */

static const char *bytes_text(char *out, size_t n, uint64_t bytes) {
    return sp_format_bytes(out, n, bytes);
}

static void print_table(const planned *p) {
    const sp_plan *plan = &p->plan;
    const sp_device_kind *k = &p->hw.kind;
    char a[24], b[24], c[24], d[24];
    printf("%s on %d x %d %s: tp %d x pp %d%s\n\n", p->config.model, (int)p->hw.n_nodes,
           (int)p->hw.n_devices, k->name, (int)plan->tp, (int)plan->pp,
           plan->exact ? "" : " (this tp does not give the bits of tp 1)");
    printf("%4s %4s %5s %3s %9s %5s %3s %11s %11s %11s %10s\n", "rank", "node", "stage", "tp",
           "layers", "heads", "kv", "weights", "activations", "kv cache", "total");
    for (int32_t s = 0; s < plan->pp; s++)
        for (int32_t t = 0; t < plan->tp; t++) {
            sp_plan_rank r;
            int32_t rank = s * plan->tp + t;
            char layers[24];
            sp_plan_rank_of(&r, plan, &p->req, s, t);
            snprintf(layers, sizeof layers, "%d-%d", (int)plan->stages[s].layer_first,
                     (int)(plan->stages[s].layer_first + plan->stages[s].n_layers - 1));
            printf("%4d %4d %5d %3d %9s %5d %3d %11s %11s %11s %10s\n", (int)rank,
                   (int)(rank / p->hw.n_devices), (int)s, (int)t, layers,
                   (int)plan->slices[t].n_heads, (int)plan->slices[t].n_kv_heads,
                   bytes_text(a, sizeof a, r.packed_bytes + r.vector_bytes),
                   bytes_text(b, sizeof b, r.scratch_bytes), bytes_text(c, sizeof c, r.kv_bytes),
                   bytes_text(d, sizeof d, r.total_bytes));
        }
    printf("\nfits: %s of %s on the fullest rank; KV for %lld tokens (%.1f sequences of %d)\n",
           bytes_text(a, sizeof a, plan->total_bytes), bytes_text(b, sizeof b, plan->limit_bytes),
           (long long)plan->n_blocks * plan->kv.block_tokens, plan->max_concurrency,
           (int)plan->max_model_len);
    printf("predicted at best (%g GB/s, %g TFLOP/s a device%s), context %d:\n", k->bandwidth_gbs,
           k->peak_tflops, k->is_cpu ? ", assumed" : "", CONTEXT_TOKENS);
    const int32_t batches[] = {1, plan->max_num_seqs};
    for (size_t i = 0; i < SP_LEN(batches); i++) {
        step_time t = predict(p, batches[i]);
        printf("  batch %4d: %9.3f ms a token, %10.1f tokens/s\n", (int)batches[i], t.ms,
               t.tok_per_s);
    }
}

static void put_rank(const planned *p, int32_t s, int32_t t, sp_jw *w) {
    const sp_plan *plan = &p->plan;
    sp_plan_rank r;
    sp_plan_rank_of(&r, plan, &p->req, s, t);
    const struct {
        const char *key;
        int64_t value;
    } rows[] = {
        {"rank", s * plan->tp + t},
        {"node", (s * plan->tp + t) / p->hw.n_devices},
        {"stage", s},
        {"tp_rank", t},
        {"layer_first", plan->stages[s].layer_first},
        {"n_layers", plan->stages[s].n_layers},
        {"head_first", plan->slices[t].head_first},
        {"n_heads", plan->slices[t].n_heads},
        {"kv_head_first", plan->slices[t].kv_head_first},
        {"n_kv_heads", plan->slices[t].n_kv_heads},
        {"n_params", (int64_t)r.n_params},
        {"weight_bytes", (int64_t)r.weight_bytes},
        {"packed_bytes", (int64_t)(r.packed_bytes + r.vector_bytes)},
        {"scratch_bytes", (int64_t)r.scratch_bytes},
        {"kv_bytes", (int64_t)r.kv_bytes},
        {"kv_tokens", (int64_t)plan->n_blocks * plan->kv.block_tokens},
        {"total_bytes", (int64_t)r.total_bytes},
    };
    sp_jw_object(w);
    for (size_t i = 0; i < SP_LEN(rows); i++)
        sp_jw_key(w, rows[i].key), sp_jw_int(w, rows[i].value);
    sp_jw_key(w, "stage_ms"), sp_jw_number(w, stage_seconds(p, s, 1) * 1e3);
    sp_jw_object_end(w);
}

static void put_prediction(const planned *p, int32_t batch, sp_jw *w) {
    step_time t = predict(p, batch);
    sp_jw_object(w);
    sp_jw_key(w, "batch"), sp_jw_int(w, batch);
    sp_jw_key(w, "context"), sp_jw_int(w, CONTEXT_TOKENS);
    sp_jw_key(w, "step_ms"), sp_jw_number(w, t.ms);
    sp_jw_key(w, "tok_per_s"), sp_jw_number(w, t.tok_per_s);
    sp_jw_object_end(w);
}

static void print_json(const planned *p) {
    const sp_plan *plan = &p->plan;
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "model"), sp_jw_str(&w, p->config.model);
    sp_jw_key(&w, "device"), sp_jw_str(&w, p->hw.kind.name);
    sp_jw_key(&w, "nodes"), sp_jw_int(&w, p->hw.n_nodes);
    sp_jw_key(&w, "devices_per_node"), sp_jw_int(&w, p->hw.n_devices);
    sp_jw_key(&w, "tp"), sp_jw_int(&w, plan->tp);
    sp_jw_key(&w, "pp"), sp_jw_int(&w, plan->pp);
    sp_jw_key(&w, "exact"), sp_jw_bool(&w, plan->exact);
    sp_jw_key(&w, "fits"), sp_jw_bool(&w, true);
    sp_jw_key(&w, "max_model_len"), sp_jw_int(&w, plan->max_model_len);
    sp_jw_key(&w, "limit_bytes"), sp_jw_int(&w, (int64_t)plan->limit_bytes);
    sp_jw_key(&w, "total_bytes"), sp_jw_int(&w, (int64_t)plan->total_bytes);
    sp_jw_key(&w, "n_blocks"), sp_jw_int(&w, plan->n_blocks);
    sp_jw_key(&w, "max_concurrency"), sp_jw_number(&w, plan->max_concurrency);
    sp_jw_key(&w, "ranks"), sp_jw_array(&w);
    for (int32_t s = 0; s < plan->pp; s++)
        for (int32_t t = 0; t < plan->tp; t++) put_rank(p, s, t, &w);
    sp_jw_array_end(&w);
    sp_jw_key(&w, "predicted"), sp_jw_array(&w);
    put_prediction(p, 1, &w);
    put_prediction(p, plan->max_num_seqs, &w);
    sp_jw_array_end(&w);
    sp_jw_object_end(&w);
    printf("%s\n", text.ptr);
    sp_buf_fini(&text);
}

static int run(planned *p) {
    sp_err err = {0};
    if (!p->config.nodes) {
        fprintf(stderr, "superpod: plan wants --nodes, as 2x8xH100-80G or CPU-64G\n");
        return SP_EXIT_USAGE;
    }
    sp_status st = sp_hardware_parse(&p->hw, p->config.nodes, &err);
    if (st == SP_OK) st = read_model(p, &err);
    if (st == SP_OK) st = make_plan(p, &err);
    if (st != SP_OK)
        fprintf(stderr, "superpod: %s\n", err.text);
    else if (p->config.json)
        print_json(p);
    else
        print_table(p);
    sp_model_dir_close(p->tensors);
    sp_free(p->dir);
    return st == SP_OK ? SP_EXIT_OK : SP_EXIT_CONFIG;
}

int sp_plan_command(int argc, char **argv) {
    planned *p = sp_alloc(sizeof *p);
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
