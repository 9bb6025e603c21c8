#include "launcher/fit.h"

#include "launcher/roster.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

#define PROPOSAL_BYTES (SP_POOLS_TEXT + 40)

sp_status sp_fit_wish(sp_plan_request *out, const sp_config *c, const sp_model_desc *desc,
                      const sp_arch *arch, const sp_model_dir *dir, sp_err *err) {
    sp_plan_request r = {.desc = desc,
                         .arch = arch,
                         .dir = dir,
                         .max_rows = (int32_t)c->max_num_seqs,
                         .block_tokens = (int32_t)c->block_size,
                         .max_model_len = (int32_t)c->max_model_len,
                         .max_num_seqs = (int32_t)c->max_num_seqs,
                         .max_num_batched_tokens = (int32_t)c->max_num_batched_tokens,
                         .n_blocks = (int32_t)c->num_blocks};
    SP_TRY(sp_kv_dtype_parse(c->kv_cache_dtype, &r.kv_dtype, err));
    *out = r;
    return SP_OK;
}

static sp_status plan_pool(const sp_fit *f, const sp_pool_spec *s, int32_t ranks_on_node,
                           sp_fit_pool *out, sp_err *err) {
    bool cut = s->pp_layers[0] != 0;
    if (cut) SP_TRY(sp_pp_layers_parse(s->pp_layers, s->pp, out->pp_layers, err));
    out->req = f->wish;
    out->req.tp = s->tp;
    out->req.pp = s->pp;
    out->req.pp_layers = cut ? out->pp_layers : NULL;
    out->req.memory = f->memory;
    out->req.ranks_on_node = f->shared ? ranks_on_node : 1;
    if (f->device) sp_device_plan(f->device, &out->req);
    return sp_plan_make(&out->plan, &out->req, err);
}

static sp_status check_ranks(const sp_fit *f, const sp_pools *p, sp_err *err) {
    int64_t have = (int64_t)f->n_nodes * f->n_devices;
    int32_t want = sp_pools_ranks(p);
    char shape[SP_POOLS_TEXT];
    sp_pools_text(p, shape);
    if (want <= have) return SP_OK;
    return SP_FAIL(err, SP_E_LIMIT, "%s are %d ranks, %d nodes of %d devices have %lld", shape,
                   (int)want, (int)f->n_nodes, (int)f->n_devices, (long long)have);
}

sp_status sp_fit_pools(const sp_fit *f, const sp_pools *p, sp_fit_pool *out, sp_err *err) {
    int32_t on_node = sp_roster_share(sp_pools_ranks(p), f->n_nodes, 0);
    SP_TRY(check_ranks(f, p, err));
    for (int32_t i = 0; i < p->n; i++) {
        sp_status st = plan_pool(f, &p->at[i], on_node, &out[i], err);
        if (st != SP_OK && p->given) sp_err_context(err, "pool '%s'", p->at[i].name);
        if (st != SP_OK) return st;
    }
    return sp_pools_check_bits(p, err);
}

static bool fits(const sp_fit *f, const sp_pools *p, sp_fit_pool *room) {
    return sp_fit_pools(f, p, room, NULL) == SP_OK;
}

/* Twice the ranks that share a layer, or where a node has no more, another stage. */
static bool enlarge(const sp_fit *f, sp_pool_spec *s) {
    const sp_model_desc *d = f->wish.desc;
    bool wider = s->tp * 2 <= f->n_devices && d->n_heads % (s->tp * 2) == 0;
    s->pp_layers[0] = 0;
    if (wider)
        s->tp *= 2;
    else
        s->pp++;
    return s->pp <= d->n_layers;
}

/* A group each, enlarged in turn until a rank's part is small enough. */
static bool fits_enlarged(const sp_fit *f, sp_pools *p, sp_fit_pool *room) {
    sp_pools at = *p;
    for (int32_t i = 0; i < at.n; i++) at.at[i].replicas = 1;
    for (;;) {
        int32_t least = 0;
        for (int32_t i = 1; i < at.n; i++)
            if (at.at[i].pp * at.at[i].tp < at.at[least].pp * at.at[least].tp) least = i;
        if (!enlarge(f, &at.at[least])) return false;
        if (sp_pools_ranks(&at) > f->n_nodes * f->n_devices) return false;
        if (!fits(f, &at, room)) continue;
        *p = at;
        return true;
    }
}

bool sp_fit_other(const sp_fit *f, sp_pools *p) {
    sp_fit_pool *room = sp_alloc((size_t)p->n * sizeof *room);
    sp_pools at = *p;
    bool found = false;
    while (!found && sp_pools_shrink(&at)) found = fits(f, &at, room);
    if (found)
        *p = at;
    else
        found = fits_enlarged(f, p, room);
    sp_free(room);
    return found;
}

void sp_fit_say_other(const sp_fit *f, const sp_pools *p, sp_err *err) {
    sp_pools at = *p;
    char shape[SP_POOLS_TEXT], tail[PROPOSAL_BYTES];
    snprintf(tail, sizeof tail, "; no other shape%s would fit", p->given ? "s of these pools" : "");
    if ((int64_t)p->n > (int64_t)f->n_nodes * f->n_devices) {
        snprintf(tail, sizeof tail, "; %d pools want at least %d", (int)p->n, (int)p->n);
    } else if (sp_fit_other(f, &at)) {
        sp_pools_text(&at, shape);
        snprintf(tail, sizeof tail, "; would fit: %s", shape);
    }
    size_t room = sizeof err->text - strlen(tail) - 1;
    if (strlen(err->text) > room) {
        /* A proposal of the plan after its colon, of options that are not the pools', goes first. */
        char *colon = strrchr(err->text, ':');
        if (colon && colon > err->text && colon[-1] != '\'') *colon = 0;
    }
    if (strlen(err->text) > room) err->text[room] = 0;
    size_t at_end = strlen(err->text);
    snprintf(err->text + at_end, sizeof err->text - at_end, "%s", tail);
}

int32_t sp_fit_node(const sp_fit *f, int32_t n_ranks, int32_t rank) {
    if (!f->shared) return rank / f->n_devices;
    int32_t node = 0;
    for (int32_t left = rank;; node++) {
        int32_t share = sp_roster_share(n_ranks, f->n_nodes, node);
        if (left < share) return node;
        left -= share;
    }
}
