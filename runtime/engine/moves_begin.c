#define SP_LOG "engine"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/moves_core.h"

#include <string.h>

void sp_move_free(sp_move *m) {
    if (!m) return;
    sp_pull_fini(&m->pull);
    sp_free(m->generation);
    sp_free(m->names);
    sp_free(m->dst);
    sp_free(m->src);
    sp_free(m);
}

int32_t sp_moves_blocks(const sp_request *r, int32_t block_tokens) {
    if (r->params.n_prompt_logprobs >= 0 || r->params.all_logits) return 0;
    return (r->n_prompt - 1) / block_tokens;
}

static sp_status new_move(const sp_moves *x, sp_move **out, int32_t n, int32_t target,
                          sp_err *err) {
    if (x->n_free == 0) return SP_FAIL(err, SP_E_LIMIT, "%d prompts move already", SP_MOVES_MAX);
    int32_t most = n < SP_KV_FRAME_BLOCKS_MAX ? n : SP_KV_FRAME_BLOCKS_MAX;
    sp_move *m = sp_try_alloc(sizeof *m);
    if (!m) goto no_memory;
    m->src = sp_try_alloc_array((size_t)n, sizeof *m->src);
    m->dst = sp_try_alloc_array((size_t)n, sizeof *m->dst);
    m->names = sp_try_alloc_array((size_t)n, sizeof *m->names);
    m->generation = sp_try_alloc_array((size_t)n, sizeof *m->generation);
    if (!m->src || !m->dst || !m->names || !m->generation) goto no_memory;
    int32_t n_links = sp_seals_get_config(x->config.seals[target])->n_links;
    if (sp_pull_init(&m->pull, most, n_links, err) != SP_OK) goto no_memory;
    m->target = target;
    m->begun_ns = sp_now_ns();
    *out = m;
    return SP_OK;

no_memory:
    sp_move_free(m);
    return SP_FAIL(err, SP_E_NOMEM, "no memory to move %d blocks", n);
}

/* The same prompt as far as it moves, with the names that are known. */
static sp_status make_shadow(sp_request **out, const sp_request *r, int32_t n_blocks, int32_t B,
                             sp_err *err) {
    sp_gen_params params = SP_GEN_PARAMS_DEFAULT;
    params.max_tokens = 0;
    sp_engine_request req = {.prompt = r->prompt,
                             .n_prompt = n_blocks * B,
                             .params = &params,
                             .deadline_ns = SP_NEVER,
                             .priority = r->priority,
                             .cache_salt = r->salt};
    sp_request *s;
    SP_TRY(sp_request_create(&s, &req, 0, B, err));
    s->shadow = true;
    s->id = r->id;
    s->arrival_ns = r->arrival_ns;
    s->has_root = r->has_root;
    s->root = r->root;
    s->n_named = r->n_named < n_blocks ? r->n_named : n_blocks;
    memcpy(s->names, r->names, (size_t)s->n_named * sizeof *s->names);
    *out = s;
    return SP_OK;
}

/* The request is held: from now on nothing can fail. */
static void enter(sp_moves *x, sp_move *m, sp_request *r) {
    r->moved_cached = m->core.first * x->config.block_tokens;
    r->group = m->target;
    r->move = m;
    m->req = r;
    m->slot = x->free_slots[--x->n_free];
    x->slots[m->slot] = m;
}

sp_status sp_moves_begin(sp_moves *x, sp_request *r, int32_t source, int32_t target, int32_t cached,
                         sp_err *err) {
    int32_t n = sp_moves_blocks(r, x->config.block_tokens);
    sp_move *m;
    SP_TRY(new_move(x, &m, n, target, err));
    sp_request *shadow = NULL;
    sp_status st = make_shadow(&shadow, r, n, x->config.block_tokens, err);
    if (st == SP_OK) st = sp_stepper_add_shadow(sp_moves_stepper(x, source), shadow, err);
    if (st != SP_OK) goto free_shadow;
    shadow->move = m;
    shadow->group = source;
    m->shadow = shadow;
    m->source = source;
    st = sp_stepper_hold(sp_moves_stepper(x, target), r, err);
    if (st != SP_OK) goto end_shadow;
    sp_handoff_init(&m->core, cached, n);
    enter(x, m, r);
    return SP_OK;

end_shadow: /* sp_moves_ended() frees it */
    sp_stepper_end_shadow(sp_moves_stepper(x, source), shadow);
    shadow = NULL;
free_shadow:
    sp_request_destroy(shadow);
    sp_move_free(m);
    return st;
}

int32_t sp_moves_offered(const sp_request *r, int32_t most) {
    int32_t n = r->import->handle->n_blocks;
    return n < most ? n : most;
}

/* Blocks first..n-1 are to be had there. A source that we cannot name is nobody we know. */
static void take_handle(sp_moves *x, sp_move *m, sp_request *r, int32_t most, int32_t first) {
    const sp_kv_import *from = r->import;
    sp_err err = {0};
    int32_t n = first;
    m->source = SP_MOVES_NO_SOURCE;
    sp_status st = sp_sources_take(x->sources, from->engine, from->source, &m->source, &err);
    if (first < sp_moves_offered(r, most)) {
        n = sp_import_blocks(sp_moves_sched(x, m->target), r, most, sp_unix_ms(), &m->refused);
        if (st != SP_OK && m->refused == SP_KV_OK) m->refused = SP_KV_PEER;
        if (st != SP_OK || n < first) n = first;
    }
    if (st != SP_OK) sp_debug("blocks of '%s' cannot be had: %s", from->engine, err.text);
    if (m->refused != SP_KV_OK) sp_moves_failed(x, m->refused);
    for (int32_t i = first; i < n; i++) {
        m->src[i] = (sp_block)from->handle->blocks[i].block;
        m->generation[i] = from->handle->blocks[i].generation;
    }
    sp_handoff_init_sealed(&m->core, first, n);
}

sp_status sp_moves_import(sp_moves *x, sp_request *r, int32_t target, int32_t cached, sp_err *err) {
    int32_t B = x->config.block_tokens, most = sp_moves_blocks(r, B);
    sp_move *m;
    SP_TRY(new_move(x, &m, most, target, err));
    sp_status st = sp_stepper_hold(sp_moves_stepper(x, target), r, err);
    if (st != SP_OK) {
        sp_move_free(m);
        return st;
    }
    m->imported = true;
    m->ready_ns = m->begun_ns;
    if (cached > most) cached = most;
    take_handle(x, m, r, most, cached);
    if (r->import->handle->n_blocks > 0) m->lease = r->import->handle->lease;
    sp_counter_add(&x->config.metrics->kv_queries, (uint64_t)(most - cached) * (uint64_t)B);
    enter(x, m, r);
    sp_moves_look_at(x, m);
    return SP_OK;
}
