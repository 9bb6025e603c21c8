#include "runtime/engine/kv_port.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <string.h>

#define ASKS_AT_ONCE 64

/* One rank of another group and the part of our blocks that it gives. */
typedef struct giver {
    sp_kv_piece piece;
    sp_kvx *reader;
} giver;

typedef struct group {
    giver *givers; /* [n] */
    int32_t n;
} group;

typedef struct job {
    uint64_t transfer;
    uint32_t source;
    int32_t n;
    uint32_t *outcomes; /* [n], behind the moves */
    sp_wire_kv_move moves[];
} job;

struct sp_kv_port {
    sp_kvx_region *region;
    sp_part part;
    sp_kv_layout layout;
    size_t piece_bytes;
    unsigned char *kv;
    sp_link *link;
    group *groups; /* [n_groups] */
    int32_t n_groups;
    sp_stage_kvx callbacks;
    sp_thread thread;
    sp_queue *todo, *done;
    int32_t n_open; /* pulls that have not been told of */
    job *told;      /* lent to whoever asked last */
};

sp_kvx_shape sp_kv_port_shape(const sp_kv_layout *layout, const sp_part *part, int32_t n_blocks) {
    return (sp_kvx_shape){.n_blocks = n_blocks,
                          .block_tokens = layout->block_tokens,
                          .head_dim = layout->head_dim,
                          .dtype = layout->dtype,
                          .layer_first = part->stage.layer_first,
                          .n_layers = layout->n_layers,
                          .head_first = part->slice.kv_head_first,
                          .n_heads = layout->n_kv_heads,
                          .block_bytes = layout->block_bytes};
}

/* ---- the thread that pulls ---- */

static sp_kvx_ask ask_of(const sp_kv_port *p, const sp_kv_piece *piece, const sp_wire_kv_move *r) {
    size_t layer = (size_t)(piece->layer_first - p->part.stage.layer_first);
    size_t head = (size_t)(piece->head_first - p->part.slice.kv_head_first);
    return (sp_kvx_ask){.block = r->src_block,
                        .generation = r->generation,
                        .layer_first = piece->layer_first,
                        .n_layers = piece->n_layers,
                        .head_first = piece->head_first,
                        .n_heads = piece->n_heads,
                        .to = p->kv + (size_t)r->dst_block * p->layout.block_bytes +
                              layer * p->layout.layer_bytes + head * p->piece_bytes,
                        .layer_stride = p->layout.layer_bytes,
                        .value_offset = p->layout.layer_bytes / 2};
}

/* Not this block's own: the next one would fare the same. */
static bool is_of_peer(sp_kvx_fault f) {
    return f == SP_KVX_PEER || f == SP_KVX_TIMEOUT || f == SP_KVX_IDENTITY;
}

/* From `*at` on: some of the blocks that are still good, from one giver. */
static void pull_some(const sp_kv_port *p, job *j, const giver *g, int32_t *at) {
    sp_kvx_ask asks[ASKS_AT_ONCE];
    sp_kvx_fault faults[ASKS_AT_ONCE];
    int32_t which[ASKS_AT_ONCE];
    int n = 0;
    for (; *at < j->n && n < ASKS_AT_ONCE; ++*at) {
        if (j->outcomes[*at] != SP_KVX_OK) continue;
        which[n] = *at;
        asks[n++] = ask_of(p, &g->piece, &j->moves[*at]);
    }
    if (n == 0) return;
    sp_kvx_read(g->reader, asks, n, faults);
    for (int i = 0; i < n; i++) j->outcomes[which[i]] = faults[i];
    if (!is_of_peer(faults[n - 1])) return;
    /* Trying again for each of the rest would make one lost peer cost minutes. */
    for (; *at < j->n; ++*at)
        if (j->outcomes[*at] == SP_KVX_OK) j->outcomes[*at] = faults[n - 1];
}

static void pull(const sp_kv_port *p, job *j) {
    const group *from = &p->groups[j->source];
    for (int32_t i = 0; i < from->n; i++)
        for (int32_t at = 0; at < j->n;) pull_some(p, j, &from->givers[i], &at);
}

static void *pull_all(void *arg) {
    sp_kv_port *p = arg;
    job *j;
    while ((j = sp_queue_pop(p->todo, SP_NEVER)) != NULL) {
        pull(p, j);
        /* Never full: there are no more jobs than it has places. */
        if (sp_queue_push(p->done, j) != SP_OK) sp_free(j);
        if (p->link) sp_link_wake(p->link);
    }
    return NULL;
}

/* ---- the callbacks ---- */

static sp_status seal(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    const sp_kv_port *p = ctx;
    if (!p->region) return SP_FAIL(err, SP_E_PROTOCOL, "this rank's KV blocks are not shared");
    for (int32_t i = 0; i < n; i++)
        SP_TRY(sp_kvx_seal(p->region, blocks[i].block, blocks[i].generation, err));
    return SP_OK;
}

static sp_status free_blocks(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    const sp_kv_port *p = ctx;
    if (!p->region) return SP_FAIL(err, SP_E_PROTOCOL, "this rank's KV blocks are not shared");
    for (int32_t i = 0; i < n; i++)
        SP_TRY(sp_kvx_free(p->region, blocks[i].block, blocks[i].generation, err));
    return SP_OK;
}

static sp_status begin_pull(void *ctx, const sp_wire_kv_pull *w, sp_err *err) {
    sp_kv_port *p = ctx;
    if (!p->kv || w->source_group >= (uint32_t)p->n_groups || p->groups[w->source_group].n == 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "no KV blocks can be pulled from group %u",
                       w->source_group);
    if (p->n_open == SP_KV_PULLS_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "more than %d pulls at a time", SP_KV_PULLS_MAX);
    job *j = sp_try_alloc(sizeof *j + (size_t)w->n * (sizeof *j->moves + sizeof *j->outcomes));
    if (!j) return SP_FAIL(err, SP_E_NOMEM, "no memory to pull %d KV blocks", w->n);
    j->transfer = w->transfer;
    j->source = w->source_group;
    j->n = w->n;
    j->outcomes = (uint32_t *)(j->moves + w->n);
    memcpy(j->moves, w->moves, (size_t)w->n * sizeof *w->moves);
    sp_status st = sp_queue_push(p->todo, j);
    if (st != SP_OK) {
        sp_free(j);
        return SP_FAIL(err, SP_E_INTERNAL, "the thread that pulls takes no work");
    }
    p->n_open++;
    return SP_OK;
}

static bool poll_done(void *ctx, sp_wire_kv_pulled *out) {
    sp_kv_port *p = ctx;
    sp_free(p->told);
    p->told = sp_queue_try_pop(p->done);
    if (!p->told) return false;
    p->n_open--;
    *out = (sp_wire_kv_pulled){p->told->transfer, p->told->n, p->told->outcomes};
    return true;
}

/* ---- opening ---- */

static sp_status open_readers(sp_kv_port *p, group *out, const sp_kv_port_config *c,
                              const sp_kv_group *g, sp_err *err) {
    sp_kv_piece *pieces = sp_try_alloc_array(SP_KV_PIECES_MAX, sizeof *pieces);
    int32_t n = 0;
    if (!pieces) return SP_FAIL(err, SP_E_NOMEM, "no memory for the ranks of a group");
    sp_status st =
        sp_kv_pieces(pieces, SP_KV_PIECES_MAX, &n, &c->part, &g->cut, c->desc, c->arch, err);
    if (st == SP_OK) {
        out->givers = sp_try_alloc_array((size_t)n, sizeof *out->givers);
        if (!out->givers) st = SP_FAIL(err, SP_E_NOMEM, "no memory for %d readers", n);
    }
    sp_kvx_reader_config rc = {.shape = sp_kv_port_shape(&p->layout, &p->part, c->n_blocks)};
    memcpy(rc.key, c->key, sizeof rc.key);
    memcpy(rc.identity, c->identity, sizeof rc.identity);
    for (int32_t i = 0; st == SP_OK && i < n; i++) {
        int32_t rank = pieces[i].stage * g->cut.tp + pieces[i].tp_rank;
        rc.same_node = g->same_node[rank];
        st = sp_kvx_open(&out->givers[i].reader, g->addresses[rank], &rc, err);
        if (st != SP_OK) break;
        out->givers[i].piece = pieces[i];
        out->n = i + 1;
    }
    explicit_bzero(rc.key, sizeof rc.key);
    sp_free(pieces);
    return st;
}

static sp_status open_groups(sp_kv_port *p, const sp_kv_port_config *c, sp_err *err) {
    if (!c->kv || c->n_groups == 0) return SP_OK;
    p->groups = sp_try_alloc_array((size_t)c->n_groups, sizeof *p->groups);
    if (!p->groups) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d groups", c->n_groups);
    p->n_groups = c->n_groups;
    for (int32_t i = 0; i < c->n_groups; i++)
        if (c->groups[i].cut.tp) {
            sp_status st = open_readers(p, &p->groups[i], c, &c->groups[i], err);
            if (st == SP_OK) continue;
            sp_err_context(err, "KV blocks of group %d", i);
            return st;
        }
    return sp_thread_start(&p->thread, "kv-pull", pull_all, p, err);
}

sp_status sp_kv_port_open(sp_kv_port **out, const sp_kv_port_config *c, sp_err *err) {
    sp_kv_port *p = sp_try_alloc(sizeof *p);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for the way of KV blocks");
    const sp_kvx_shape shape = sp_kv_port_shape(&c->layout, &c->part, c->n_blocks);
    *p = (sp_kv_port){.region = c->region,
                      .part = c->part,
                      .layout = c->layout,
                      .piece_bytes = sp_kvx_piece_bytes(&shape),
                      .kv = c->kv,
                      .link = c->link,
                      .callbacks = {seal, free_blocks, begin_pull, poll_done, p},
                      .todo = sp_queue_create(SP_KV_PULLS_MAX),
                      .done = sp_queue_create(SP_KV_PULLS_MAX)};
    sp_status st = open_groups(p, c, err);
    if (st != SP_OK) {
        sp_kv_port_close(p);
        return st;
    }
    *out = p;
    return SP_OK;
}

static void drop_all(sp_queue *q) {
    job *j;
    while ((j = sp_queue_try_pop(q)) != NULL) sp_free(j);
    sp_queue_destroy(q);
}

void sp_kv_port_close(sp_kv_port *p) {
    if (!p) return;
    for (int32_t i = 0; i < p->n_groups; i++)
        for (int32_t k = 0; k < p->groups[i].n; k++) sp_kvx_cancel(p->groups[i].givers[k].reader);
    sp_queue_close(p->todo);
    sp_thread_join(&p->thread);
    for (int32_t i = 0; i < p->n_groups; i++) {
        for (int32_t k = 0; k < p->groups[i].n; k++) sp_kvx_close(p->groups[i].givers[k].reader);
        sp_free(p->groups[i].givers);
    }
    sp_free(p->groups);
    drop_all(p->todo);
    drop_all(p->done);
    sp_free(p->told);
    sp_free(p);
}

const sp_stage_kvx *sp_kv_port_callbacks(const sp_kv_port *p) {
    return &p->callbacks;
}
