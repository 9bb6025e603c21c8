#include "runtime/engine/engine_offer.h"

#include "runtime/engine/dispatch.h"

#include <stdio.h>
#include <string.h>

static sp_status check_config(const sp_engine_config *c, sp_err *err) {
    const struct {
        const char *name;
        int64_t value, min;
    } rows[] = {
        {"max_num_seqs", c->max_num_seqs, 1},
        {"max_batched_tokens", c->max_batched_tokens, 1},
        {"max_step_rows", c->max_step_rows, 0},
        {"block_tokens", c->block_tokens, 1},
        {"n_blocks", c->n_blocks, 0},
        {"max_model_len", c->max_model_len, 1},
        {"n_vocab", c->n_vocab, 1},
        {"n_eos_ids", c->n_eos_ids, 0},
        {"queue_max", c->queue_max, 1},
        {"n_stages", c->n_stages, 0},
        {"sampler", c->sampler, 0},
        {"send_timeout_ns", c->send_timeout_ns, 1},
        {"prefill_threshold_tokens", c->prefill_threshold_tokens, 0},
        {"kv_timeout_ns", c->kv_timeout_ns, 0},
        {"kv_block_bytes", c->kv_block_bytes, 0},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %lld, want at least %lld", rows[i].name,
                           (long long)rows[i].value, (long long)rows[i].min);
    return SP_OK;
}

static sp_status check_group(const sp_engine_group *g, int i, int first_link, int n_links,
                             sp_err *err) {
    if (g->first_link != first_link || g->n_links < 1 || g->n_links > n_links - first_link)
        return SP_FAIL(err, SP_E_INVALID, "group %d has links %d+%d, want some from %d on of %d", i,
                       g->first_link, g->n_links, first_link, n_links);
    if (g->sampler < first_link || g->sampler >= first_link + g->n_links)
        return SP_FAIL(err, SP_E_INVALID, "'sampler' of group %d is link %d, it has %d..%d", i,
                       g->sampler, first_link, first_link + g->n_links - 1);
    if (g->n_stages < 0 || g->n_blocks < 0 || (unsigned)g->role > SP_POOL_DECODE ||
        !memchr(g->pool, 0, sizeof g->pool))
        return SP_FAIL(err, SP_E_INVALID, "group %d has %d stages, %d blocks and role %d", i,
                       g->n_stages, g->n_blocks, (int)g->role);
    return SP_OK;
}

/* Every link in one group, and somebody who decodes. */
static sp_status check_groups(const sp_engine_config *c, int n_links, sp_err *err) {
    if (c->n_groups < 1 || c->n_groups > SP_ENGINE_GROUPS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d groups, want 1..%d", c->n_groups,
                       SP_ENGINE_GROUPS_MAX);
    sp_pool_role roles[SP_ENGINE_GROUPS_MAX];
    int at = 0;
    for (int32_t i = 0; i < c->n_groups; i++) {
        SP_TRY(check_group(&c->groups[i], i, at, n_links, err));
        at += c->groups[i].n_links;
        roles[i] = c->groups[i].role;
    }
    if (at != n_links)
        return SP_FAIL(err, SP_E_INVALID, "groups have %d links, there are %d", at, n_links);
    if (!sp_dispatch_can_decode(roles, c->n_groups))
        return SP_FAIL(err, SP_E_INVALID, "no group decodes, want one that is mixed or decode");
    return SP_OK;
}

sp_status sp_config_fits(const sp_engine_config *c, int n_links, sp_err *err) {
    SP_TRY(check_config(c, err));
    if (c->groups) return check_groups(c, n_links, err);
    if (c->sampler < n_links) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "'sampler' is link %d, there are %d", c->sampler, n_links);
}

static sp_status want_most(const char *what, int32_t offered, int32_t wanted, int rank,
                           sp_err *err) {
    if (offered >= wanted) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "rank %d's '%s' is %d, want at least %d", rank, what,
                   offered, wanted);
}

/* What one rank offers against what is asked. */
sp_status sp_offer_fits(const sp_engine_config *c, int32_t n_blocks, const sp_wire_ready *r,
                        int rank, sp_err *err) {
    const struct {
        const char *name;
        int32_t offered, wanted;
    } same[] = {
        {"n_vocab", r->n_vocab, c->n_vocab},
        {"block_tokens", r->block_tokens, c->block_tokens},
        {"n_groups", r->n_groups, 1},
    };
    for (size_t i = 0; i < SP_LEN(same); i++)
        if (same[i].offered != same[i].wanted)
            return SP_FAIL(err, SP_E_PROTOCOL, "rank %d's '%s' is %d, want %d", rank, same[i].name,
                           same[i].offered, same[i].wanted);
    SP_TRY(want_most("max_num_seqs", r->max_num_seqs, c->max_num_seqs, rank, err));
    SP_TRY(
        want_most("max_batched_tokens", r->max_batched_tokens, c->max_batched_tokens, rank, err));
    SP_TRY(want_most("max_step_rows", r->max_step_rows, c->max_step_rows, rank, err));
    SP_TRY(want_most("max_step_rows", r->max_step_rows, c->max_num_seqs, rank, err));
    return want_most("n_blocks", r->n_blocks, n_blocks, rank, err);
}

static const char *hex8(const uint8_t *bytes, char out[17]) {
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    return out;
}

/* Ranks of one pod are alike in all but their blocks, or they would not do the same step. */
sp_status sp_offer_equals(const sp_wire_ready *r, int rank, const sp_wire_ready *first,
                          int first_rank, sp_err *err) {
    const struct {
        const char *name;
        int32_t seen, wanted;
    } same[] = {
        {"max_model_len", r->max_model_len, first->max_model_len},
        {"max_num_seqs", r->max_num_seqs, first->max_num_seqs},
        {"max_batched_tokens", r->max_batched_tokens, first->max_batched_tokens},
        {"max_step_rows", r->max_step_rows, first->max_step_rows},
    };
    for (size_t i = 0; i < SP_LEN(same); i++)
        if (same[i].seen != same[i].wanted)
            return SP_FAIL(err, SP_E_PROTOCOL, "rank %d's '%s' is %d, want %d as rank %d", rank,
                           same[i].name, same[i].seen, same[i].wanted, first_rank);
    if (strncmp(r->kv_dtype, first->kv_dtype, sizeof r->kv_dtype) != 0)
        return SP_FAIL(err, SP_E_PROTOCOL,
                       "rank %d's 'kv_dtype' is '%.16s', want '%.16s' as rank %d", rank,
                       r->kv_dtype, first->kv_dtype, first_rank);
    char seen[17], wanted[17];
    if (memcmp(r->numerics, first->numerics, sizeof r->numerics) != 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "rank %d's 'numerics' is %s, want %s as rank %d", rank,
                       hex8(r->numerics, seen), hex8(first->numerics, wanted), first_rank);
    return SP_OK;
}
