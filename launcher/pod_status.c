#include "launcher/pod_impl.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <unistd.h>

#define SP_LOG "pod"

static void put_clock(const sp_pod *p, int32_t agent, sp_jw *w) {
    int64_t us = p->preflight.clock_us ? p->preflight.clock_us[agent] : SP_PREFLIGHT_CLOCK_NONE;
    sp_jw_key(w, "clock_offset_us");
    if (us == SP_PREFLIGHT_CLOCK_NONE)
        sp_jw_null(w);
    else
        sp_jw_int(w, us);
}

static void put_node(const sp_pod *p, int32_t i, sp_jw *w) {
    const sp_pod_agent *a = &p->roster.agents[i];
    sp_jw_object(w);
    sp_jw_key(w, "agent"), sp_jw_int(w, i);
    sp_jw_key(w, "node"), sp_jw_int(w, a->node);
    sp_jw_key(w, "host"), sp_jw_str(w, a->words.host);
    sp_jw_key(w, "address"), sp_jw_str(w, a->address[0] ? a->address : "local");
    sp_jw_key(w, "pid"), sp_jw_int(w, i ? a->words.pid : getppid());
    sp_jw_key(w, "cores"), sp_jw_int(w, a->words.cores);
    sp_jw_key(w, "ranks"), sp_jw_int(w, a->n);
    sp_jw_key(w, "state"), sp_jw_str(w, sp_gauge_get(&a->gone) ? "lost" : "active");
    put_clock(p, i, w);
    sp_jw_object_end(w);
}

/* What could not be measured is null, and says why. */
static void put_link(const sp_pod *p, const int32_t *lead, const sp_preflight_link *l, sp_jw *w) {
    sp_jw_object(w);
    sp_jw_key(w, "from"), sp_jw_str(w, p->roster.agents[lead[l->from]].words.host);
    sp_jw_key(w, "to"), sp_jw_str(w, p->roster.agents[lead[l->to]].words.host);
    sp_jw_key(w, "from_node"), sp_jw_int(w, l->from);
    sp_jw_key(w, "to_node"), sp_jw_int(w, l->to);
    sp_jw_key(w, "rtt_us");
    if (l->measured)
        sp_jw_number(w, (double)l->rtt_ns / 1e3);
    else
        sp_jw_null(w);
    sp_jw_key(w, "gb_per_s");
    if (l->measured && l->bytes_per_s > 0)
        sp_jw_number(w, (double)l->bytes_per_s / 1e9);
    else
        sp_jw_null(w);
    sp_jw_key(w, "error");
    if (l->measured || !l->why[0])
        sp_jw_null(w);
    else
        sp_jw_str(w, l->why);
    sp_jw_object_end(w);
}

static void put_links(const sp_pod *p, sp_jw *w) {
    int32_t lead[SP_POD_AGENTS_MAX];
    for (int32_t i = p->roster.n_agents - 1; i >= 0; i--) lead[p->roster.agents[i].node] = i;
    sp_jw_array(w);
    for (int32_t i = 0; i < p->preflight.n_links; i++) put_link(p, lead, &p->preflight.links[i], w);
    sp_jw_array_end(w);
}

static void put_rank(const sp_pod *p, const sp_engine *e, int32_t r, sp_jw *w) {
    const sp_pod_rank *k = &p->roster.ranks[r];
    sp_pools_place at = sp_pools_place_of(&p->model->pools, r);
    const sp_plan *plan = &p->model->pool[at.pool].plan;
    const sp_plan_stage *s = &plan->stages[at.stage];
    const sp_plan_slice *c = &plan->slices[at.tp_rank];
    sp_engine_group_status g = {.role = p->model->pools.at[at.pool].role};
    if (!sp_engine_group_info(e, at.group, &g)) sp_debug("no group %d", (int)at.group);
    const sp_plan_rank *bytes = &p->model->ranks[r];
    sp_jw_object(w);
    sp_jw_key(w, "rank"), sp_jw_int(w, r);
    sp_jw_key(w, "pid"), sp_jw_int(w, k->pid);
    sp_jw_key(w, "node"), sp_jw_int(w, k->node);
    sp_jw_key(w, "host"), sp_jw_str(w, p->roster.agents[k->agent].words.host);
    sp_jw_key(w, "agent"), sp_jw_int(w, k->agent);
    sp_jw_key(w, "group"), sp_jw_int(w, at.group);
    sp_jw_key(w, "role"), sp_jw_str(w, sp_pool_role_name(g.role));
    sp_jw_key(w, "stage"), sp_jw_int(w, at.stage);
    sp_jw_key(w, "tp_rank"), sp_jw_int(w, at.tp_rank);
    sp_jw_key(w, "layers"), sp_jw_array(w);
    sp_jw_int(w, s->layer_first), sp_jw_int(w, s->layer_first + s->n_layers - 1);
    sp_jw_array_end(w);
    sp_jw_key(w, "heads"), sp_jw_int(w, c->n_heads);
    sp_jw_key(w, "kv_heads"), sp_jw_int(w, c->n_kv_heads);
    sp_jw_key(w, "weight_bytes"),
        sp_jw_int(w, (int64_t)(bytes->packed_bytes + bytes->vector_bytes));
    sp_jw_key(w, "kv_bytes"), sp_jw_int(w, (int64_t)bytes->kv_bytes);
    sp_jw_key(w, "total_bytes"), sp_jw_int(w, (int64_t)bytes->total_bytes);
    sp_jw_key(w, "state"), sp_jw_str(w, sp_rank_state_name((sp_rank_state)sp_gauge_get(&k->state)));
    sp_jw_object_end(w);
}

static void put_group(const sp_engine *e, int32_t group, sp_jw *w) {
    sp_engine_group_status g = {0};
    if (!sp_engine_group_info(e, group, &g)) return;
    const struct {
        const char *key;
        int64_t value;
    } rows[] = {{"first_rank", g.first_link},
                {"ranks", g.n_links},
                {"running", g.running},
                {"waiting", g.waiting},
                {"blocks_used", g.blocks_used},
                {"blocks_total", g.blocks_total},
                {"load_tokens", g.load_tokens},
                {"prompt_tokens", g.prompt_tokens},
                {"generated_tokens", g.generated_tokens}};
    sp_jw_object(w);
    sp_jw_key(w, "group"), sp_jw_int(w, group);
    sp_jw_key(w, "role"), sp_jw_str(w, sp_pool_role_name(g.role));
    for (size_t i = 0; i < SP_LEN(rows); i++)
        sp_jw_key(w, rows[i].key), sp_jw_int(w, rows[i].value);
    sp_jw_key(w, "prompt_tokens_per_s"), sp_jw_number(w, g.prompt_tokens_per_s);
    sp_jw_key(w, "generated_tokens_per_s"), sp_jw_number(w, g.generated_tokens_per_s);
    sp_jw_object_end(w);
}

/* A pool's own role is the one that all its groups have now, or "various". */
static const char *role_of(const sp_engine *e, int32_t first, int32_t n) {
    sp_engine_group_status a = {0}, b = {0};
    for (int32_t i = 0; i < n; i++) {
        if (!sp_engine_group_info(e, first + i, i ? &b : &a)) return "unknown";
        if (i && a.role != b.role) return "various";
    }
    return sp_pool_role_name(a.role);
}

void sp_pod_put_pools(const sp_pod *p, const sp_engine *e, sp_jw *w) {
    int32_t group = 0;
    sp_jw_array(w);
    for (int32_t i = 0; i < p->model->pools.n; i++) {
        const sp_pool_spec *s = &p->model->pools.at[i];
        sp_jw_object(w);
        sp_jw_key(w, "name"), sp_jw_str(w, s->name);
        sp_jw_key(w, "role"), sp_jw_str(w, role_of(e, group, s->replicas));
        sp_jw_key(w, "replicas"), sp_jw_int(w, s->replicas);
        sp_jw_key(w, "tp"), sp_jw_int(w, s->tp);
        sp_jw_key(w, "pp"), sp_jw_int(w, s->pp);
        sp_jw_key(w, "groups"), sp_jw_array(w);
        for (int32_t k = 0; k < s->replicas; k++) put_group(e, group++, w);
        sp_jw_array_end(w);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

void sp_pod_status(const sp_pod *p, const sp_engine *e, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, "head"), sp_jw_object(&w);
    sp_jw_key(&w, "pid"), sp_jw_int(&w, getpid());
    sp_jw_key(&w, "host"), sp_jw_str(&w, p->roster.agents[0].words.host);
    sp_jw_key(&w, "term"), sp_jw_int(&w, 1);
    sp_jw_key(&w, "launcher"), sp_jw_str(&w, p->boot->source);
    sp_jw_key(&w, "join_port"), sp_jw_int(&w, p->join.door ? p->boot->port : 0);
    sp_jw_key(&w, "uptime_s"), sp_jw_int(&w, sp_unix_s() - p->started_s);
    sp_jw_object_end(&w);
    sp_jw_key(&w, "model"), sp_jw_str(&w, p->config->model);
    sp_jw_key(&w, "tp"), sp_jw_int(&w, p->model->pools.at[0].tp);
    sp_jw_key(&w, "pp"), sp_jw_int(&w, p->model->pools.at[0].pp);
    sp_jw_key(&w, "shape"), sp_jw_str(&w, p->roster.shape);
    sp_jw_key(&w, "epoch"), sp_jw_int(&w, 1);
    sp_jw_key(&w, "configuration"), sp_jw_str(&w, p->hash);
    sp_jw_key(&w, "kv_shared"), sp_jw_bool(&w, p->share->on);
    sp_jw_key(&w, "refused"), sp_jw_object(&w);
    for (int r = 1; p->join.door && r < SP_REFUSE_COUNT; r++)
        sp_jw_key(&w, sp_refusal_name((sp_refusal)r)), sp_jw_int(&w, sp_gauge_get(&p->refused[r]));
    sp_jw_object_end(&w);
    sp_jw_key(&w, "nodes"), sp_jw_array(&w);
    for (int32_t i = 0; i < p->roster.n_agents; i++) put_node(p, i, &w);
    sp_jw_array_end(&w);
    sp_jw_key(&w, "ranks"), sp_jw_array(&w);
    for (int32_t r = 0; r < p->roster.n_ranks; r++) put_rank(p, e, r, &w);
    sp_jw_array_end(&w);
    sp_jw_key(&w, "links"), put_links(p, &w);
    sp_jw_key(&w, "pools"), sp_pod_put_pools(p, e, &w);
    sp_jw_object_end(&w);
}
