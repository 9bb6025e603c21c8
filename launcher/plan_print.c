#include "launcher/plan_impl.h"
#include "runtime/base/json.h"

#include <stdio.h>

/* One rank, wherever it is told. */
typedef struct placed {
    int32_t rank, node, pool, group, stage, tp_rank;
    const sp_plan *plan;
    sp_plan_rank bytes;
} placed;

static placed place_of(const sp_planned *p, int32_t rank) {
    sp_pools_place at = sp_pools_place_of(&p->pools, rank);
    placed r = {.rank = rank,
                .node = sp_fit_node(&p->fit, sp_pools_ranks(&p->pools), rank),
                .pool = at.pool,
                .group = at.group,
                .stage = at.stage,
                .tp_rank = at.tp_rank,
                .plan = &p->pool[at.pool].plan};
    sp_plan_rank_of(&r.bytes, r.plan, &p->pool[at.pool].req, at.stage, at.tp_rank);
    return r;
}

/* "0", or "0,1": where a group lies. */
static void group_nodes(const sp_planned *p, int32_t group, char *out, size_t n) {
    int32_t first, all = sp_pools_ranks(&p->pools), last = -1;
    const sp_pool_spec *s = sp_pools_group(&p->pools, group, &first);
    size_t at = 0;
    out[0] = 0;
    for (int32_t r = first; r < first + s->tp * s->pp && at + 12 < n; r++) {
        int32_t node = sp_fit_node(&p->fit, all, r);
        if (node == last) continue;
        at += (size_t)snprintf(out + at, n - at, last < 0 ? "%d" : ",%d", (int)node);
        last = node;
    }
}

/* ---- a table ---- */

static void print_rank(const sp_planned *p, int32_t rank) {
    placed r = place_of(p, rank);
    const sp_plan_stage *s = &r.plan->stages[r.stage];
    char layers[24], a[24], b[24], c[24], d[24];
    snprintf(layers, sizeof layers, "%d-%d", (int)s->layer_first,
             (int)(s->layer_first + s->n_layers - 1));
    printf("%4d %4d ", (int)rank, (int)r.node);
    if (p->pools.given) printf("%5d %-10.10s ", (int)r.group, p->pools.at[r.pool].name);
    printf("%5d %3d %9s %5d %3d %11s %11s %11s %10s\n", (int)r.stage, (int)r.tp_rank, layers,
           (int)r.plan->slices[r.tp_rank].n_heads, (int)r.plan->slices[r.tp_rank].n_kv_heads,
           sp_format_bytes(a, sizeof a, r.bytes.packed_bytes + r.bytes.vector_bytes),
           sp_format_bytes(b, sizeof b, r.bytes.scratch_bytes),
           sp_format_bytes(c, sizeof c, r.bytes.kv_bytes),
           sp_format_bytes(d, sizeof d, r.bytes.total_bytes));
}

static void print_fit(const sp_plan *plan) {
    char a[24], b[24];
    printf("fits: %s of %s on the fullest rank; KV for %lld tokens (%.1f sequences of %d)\n",
           sp_format_bytes(a, sizeof a, plan->total_bytes),
           sp_format_bytes(b, sizeof b, plan->limit_bytes),
           (long long)plan->n_blocks * plan->kv.block_tokens, plan->max_concurrency,
           (int)plan->max_model_len);
}

static void print_times(const sp_planned *p, int32_t pool) {
    const sp_plan *plan = &p->pool[pool].plan;
    const sp_device_kind *k = &p->hw.kind;
    const sp_pool_role role = p->pools.at[pool].role;
    const int32_t batches[] = {1, plan->max_num_seqs};
    if (!sp_plan_is_timed(p)) {
        puts("no times are predicted: the data sheet of this device is not known (--nodes has "
             "some)");
        return;
    }
    printf("predicted at best (%g GB/s, %g TFLOP/s a device%s), context %d:\n", k->bandwidth_gbs,
           k->peak_tflops, k->is_cpu ? ", assumed" : "", SP_PLAN_CONTEXT);
    if (p->pools.given && role != SP_POOL_DECODE) {
        sp_step_time t = sp_plan_prefill_time(p, pool);
        printf("  chunk %4d: %9.3f ms,         %10.1f tokens/s of prompts\n",
               (int)plan->max_num_batched_tokens, t.ms, t.tok_per_s);
    }
    for (size_t i = 0; i < SP_LEN(batches) && role != SP_POOL_PREFILL; i++) {
        sp_step_time t = sp_plan_decode_time(p, pool, batches[i]);
        printf("  batch %4d: %9.3f ms a token, %10.1f tokens/s\n", (int)batches[i], t.ms,
               t.tok_per_s);
    }
}

static void print_pool(const sp_planned *p, int32_t pool, int32_t first_group) {
    const sp_pool_spec *s = &p->pools.at[pool];
    char nodes[64];
    printf("\npool '%s' (%s): %d of tp %d x pp %d, %d KV blocks each%s\n", s->name,
           sp_pool_role_name(s->role), (int)s->replicas, (int)s->tp, (int)s->pp,
           (int)p->pool[pool].plan.n_blocks,
           p->pool[pool].plan.exact ? "" : " (this tp does not give the bits of tp 1)");
    for (int32_t g = 0; g < s->replicas; g++) {
        int32_t first, spans = 1;
        sp_pools_group(&p->pools, first_group + g, &first);
        for (int32_t k = 0; k < s->pp; k++) {
            int32_t n = sp_plan_stage_nodes(p, pool, first, k);
            spans = n > spans ? n : spans;
        }
        group_nodes(p, first_group + g, nodes, sizeof nodes);
        printf("group %d: ranks %d-%d on node %s%s\n", (int)(first_group + g), (int)first,
               (int)(first + s->tp * s->pp - 1), nodes,
               spans > 1 ? " (a stage lies on more than one: its sums cross the network)" : "");
    }
    print_fit(&p->pool[pool].plan);
    print_times(p, pool);
}

static void print_balance(const sp_planned *p) {
    double times = sp_plan_is_timed(p) ? sp_plan_balance(p) : 0;
    if (times <= 0) return;
    printf(
        "\npools are equally busy at best when prompts are %.1f times as long as answers: longer "
        "ones want more\nprefill groups, shorter ones more decode groups (cached tokens do not "
        "count)\n",
        times);
}

void sp_plan_print_table(const sp_planned *p) {
    const sp_plan *plan = &p->pool[0].plan;
    char shape[SP_POOLS_TEXT];
    sp_pools_text(&p->pools, shape);
    printf("%s on %d x %d %s: %s%s\n\n", p->config.model, (int)p->hw.n_nodes, (int)p->hw.n_devices,
           p->hw.kind.name, shape,
           p->pools.given || plan->exact ? "" : " (this tp does not give the bits of tp 1)");
    if (p->fit.device && !p->device.ops)
        puts("weights count as the checkpoint has them: how a GPU packs them is not known without "
             "superpod_cuda.so (make cuda) or superpod_cuda_emu.so (make emu)\n");
    printf("%4s %4s ", "rank", "node");
    if (p->pools.given) printf("%5s %-10s ", "group", "pool");
    printf("%5s %3s %9s %5s %3s %11s %11s %11s %10s\n", "stage", "tp", "layers", "heads", "kv",
           "weights", "activations", "kv cache", "total");
    for (int32_t r = 0; r < sp_pools_ranks(&p->pools); r++) print_rank(p, r);
    if (!p->pools.given) {
        putchar('\n');
        print_fit(plan);
        print_times(p, 0);
        return;
    }
    for (int32_t i = 0, group = 0; i < p->pools.n; group += p->pools.at[i++].replicas)
        print_pool(p, i, group);
    print_balance(p);
}

/* ---- JSON ---- */

static void put_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void put_number(sp_jw *w, const char *key, double v) {
    sp_jw_key(w, key);
    sp_jw_number(w, v);
}

static void put_rank(const sp_planned *p, int32_t rank, sp_jw *w) {
    placed r = place_of(p, rank);
    const sp_plan_stage *stage = &r.plan->stages[r.stage];
    const sp_plan_slice *slice = &r.plan->slices[r.tp_rank];
    const struct {
        const char *key;
        int64_t value;
    } rows[] = {
        {"rank", rank},
        {"node", r.node},
        {"group", r.group},
        {"stage", r.stage},
        {"tp_rank", r.tp_rank},
        {"layer_first", stage->layer_first},
        {"n_layers", stage->n_layers},
        {"head_first", slice->head_first},
        {"n_heads", slice->n_heads},
        {"kv_head_first", slice->kv_head_first},
        {"n_kv_heads", slice->n_kv_heads},
        {"n_params", (int64_t)r.bytes.n_params},
        {"weight_bytes", (int64_t)r.bytes.weight_bytes},
        {"packed_bytes", (int64_t)(r.bytes.packed_bytes + r.bytes.vector_bytes)},
        {"scratch_bytes", (int64_t)r.bytes.scratch_bytes},
        {"kv_bytes", (int64_t)r.bytes.kv_bytes},
        {"kv_tokens", (int64_t)r.plan->n_blocks * r.plan->kv.block_tokens},
        {"total_bytes", (int64_t)r.bytes.total_bytes},
    };
    sp_jw_object(w);
    for (size_t i = 0; i < SP_LEN(rows); i++) put_int(w, rows[i].key, rows[i].value);
    sp_jw_key(w, "pool"), sp_jw_str(w, p->pools.at[r.pool].name);
    if (sp_plan_is_timed(p))
        put_number(w, "stage_ms", sp_plan_stage_seconds(p, r.pool, r.stage, 1, 1) * 1e3);
    sp_jw_object_end(w);
}

static void put_decode(const sp_planned *p, int32_t pool, int32_t batch, sp_jw *w) {
    sp_step_time t = sp_plan_decode_time(p, pool, batch);
    sp_jw_object(w);
    put_int(w, "batch", batch);
    put_int(w, "context", SP_PLAN_CONTEXT);
    put_number(w, "step_ms", t.ms);
    put_number(w, "tok_per_s", t.tok_per_s);
    sp_jw_object_end(w);
}

/* What every pool has; without pools the whole has it. */
static void put_plan(const sp_planned *p, int32_t pool, sp_jw *w) {
    const sp_plan *plan = &p->pool[pool].plan;
    put_int(w, "tp", plan->tp);
    put_int(w, "pp", plan->pp);
    sp_jw_key(w, "exact"), sp_jw_bool(w, plan->exact);
    put_int(w, "max_model_len", plan->max_model_len);
    put_int(w, "limit_bytes", (int64_t)plan->limit_bytes);
    put_int(w, "total_bytes", (int64_t)plan->total_bytes);
    put_int(w, "n_blocks", plan->n_blocks);
    put_number(w, "max_concurrency", plan->max_concurrency);
    sp_jw_key(w, "predicted"), sp_jw_array(w);
    if (sp_plan_is_timed(p)) {
        put_decode(p, pool, 1, w);
        put_decode(p, pool, plan->max_num_seqs, w);
    }
    sp_jw_array_end(w);
}

static void put_group(const sp_planned *p, int32_t group, sp_jw *w) {
    int32_t first, all = sp_pools_ranks(&p->pools), last = -1;
    const sp_pool_spec *s = sp_pools_group(&p->pools, group, &first);
    sp_jw_object(w);
    put_int(w, "group", group);
    put_int(w, "first_rank", first);
    put_int(w, "n_ranks", s->tp * s->pp);
    sp_jw_key(w, "nodes"), sp_jw_array(w);
    for (int32_t r = first; r < first + s->tp * s->pp; r++) {
        int32_t node = sp_fit_node(&p->fit, all, r);
        if (node != last) sp_jw_int(w, node);
        last = node;
    }
    sp_jw_array_end(w);
    sp_jw_object_end(w);
}

static void put_pool(const sp_planned *p, int32_t pool, int32_t first_group, sp_jw *w) {
    const sp_pool_spec *s = &p->pools.at[pool];
    sp_jw_object(w);
    sp_jw_key(w, "name"), sp_jw_str(w, s->name);
    sp_jw_key(w, "role"), sp_jw_str(w, sp_pool_role_name(s->role));
    put_int(w, "replicas", s->replicas);
    put_plan(p, pool, w);
    if (sp_plan_is_timed(p)) {
        sp_step_time t = sp_plan_prefill_time(p, pool);
        put_number(w, "chunk_ms", t.ms);
        put_number(w, "prompt_tok_per_s", t.tok_per_s);
    }
    sp_jw_key(w, "groups"), sp_jw_array(w);
    for (int32_t g = 0; g < s->replicas; g++) put_group(p, first_group + g, w);
    sp_jw_array_end(w);
    sp_jw_object_end(w);
}

void sp_plan_print_json(const sp_planned *p) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "model"), sp_jw_str(&w, p->config.model);
    sp_jw_key(&w, "device"), sp_jw_str(&w, p->hw.kind.name);
    sp_jw_key(&w, "packing_known"), sp_jw_bool(&w, !p->fit.device || p->device.ops);
    put_int(&w, "nodes", p->hw.n_nodes);
    put_int(&w, "devices_per_node", p->hw.n_devices);
    sp_jw_key(&w, "fits"), sp_jw_bool(&w, true);
    if (!p->pools.given) put_plan(p, 0, &w);
    sp_jw_key(&w, "ranks"), sp_jw_array(&w);
    for (int32_t r = 0; r < sp_pools_ranks(&p->pools); r++) put_rank(p, r, &w);
    sp_jw_array_end(&w);
    sp_jw_key(&w, "pools"), sp_jw_array(&w);
    for (int32_t i = 0, group = 0; i < p->pools.n; group += p->pools.at[i++].replicas)
        put_pool(p, i, group, &w);
    sp_jw_array_end(&w);
    double balance = sp_plan_is_timed(p) ? sp_plan_balance(p) : 0;
    if (balance > 0) put_number(&w, "balanced_prompt_per_answer", balance);
    sp_jw_object_end(&w);
    printf("%s\n", text.ptr);
    sp_buf_fini(&text);
}
