#include "runtime/engine/kv_port.h"

#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/metric.h"
#include "runtime/base/thread.h"

#include <string.h>
#include <time.h>

#define SP_LOG "kv"
#define ASKS_AT_ONCE 64
#define SLOW_MS 200 /* SP_CHAOS_KV_SLOW, in steps of: */
#define SLOW_STEP_MS 10

/* Whom blocks are pulled from. Its opened part is the pulling thread's alone; who lets go of it last
 * closes it, when nobody can be using it. */
typedef struct source {
    int users;        /* whoever knows it by its number, and each job that names it; locked */
    bool is_foreign;  /* of another pod */
    bool tried;       /* to be opened */
    bool read;        /* from, once: how blocks come is known */
    sp_kvx_fault bad; /* not OK: it could not be, and this is what every block of it is */
    sp_kv_from from;
    size_t text_bytes;
    char text[]; /* of a foreign one */
} source;

typedef struct job {  /* a pull, or a lease to be given back (n 0) */
    struct job *next; /* of those that are ready to be told of */
    source *source;
    uint64_t transfer, lease;
    int64_t renew_at_ns; /* the lease, there */
    int32_t n;
    uint32_t *outcomes; /* [n], behind the moves */
    sp_wire_kv_move moves[];
} job;

struct sp_kv_port {
    sp_kvx_region *region;
    sp_kv_leases *leases;
    sp_kv_own own;
    size_t piece_bytes;
    unsigned char *kv;
    sp_kv_mirror *mirror; /* NULL: `kv` is what steps work in */
    sp_link *link;
    int64_t renew_ns;
    source **groups; /* [n_groups]; NULL: none may be pulled from */
    int32_t n_groups;
    source *foreign[SP_KV_SOURCES_MAX];
    sp_stage_kvx callbacks;
    sp_thread thread;
    sp_queue *todo, *done;
    uint64_t open[SP_KV_PULLS_MAX]; /* transfers that have not been told of */
    int32_t n_open, n_to_renew; /* of those, the first ones: they are alive, and it is not said */
    job *ready, **ready_end;    /* their blocks are where they must be */
    job *told;                  /* lent to whoever asked last */
    uint64_t n_leaves;          /* begun */
    sp_counter leaves_done;     /* by the pulling thread */
    sp_counter moves;           /* goes up while bytes come in */
    uint64_t moves_seen;
    sp_counter failed_notices;
    int64_t said_ns; /* when `moves` last went up; the pulling thread's */
    pthread_mutex_t lock;
    sp_kv_from *active; /* being read from: to be cancelled */
    bool closing;
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

/* ---- sources ---- */

static source *new_source(sp_slice text) {
    source *s = sp_try_alloc(sizeof *s + text.len);
    if (!s) return NULL;
    s->users = 1;
    s->text_bytes = text.len;
    if (text.len) memcpy(s->text, text.ptr, text.len);
    return s;
}

static source *hold(sp_kv_port *p, source *s) {
    pthread_mutex_lock(&p->lock);
    s->users++;
    pthread_mutex_unlock(&p->lock);
    return s;
}

static void let_go(sp_kv_port *p, source *s) {
    if (!s) return;
    pthread_mutex_lock(&p->lock);
    const bool is_used = --s->users > 0;
    pthread_mutex_unlock(&p->lock);
    if (is_used) return;
    sp_kv_from_close(&s->from);
    sp_free(s);
}

/* Opening connects to nobody yet: that is the first read's. */
static void open_source(const sp_kv_port *p, source *s) {
    sp_err err = {0};
    if (s->tried) return;
    s->tried = true;
    sp_status st =
        sp_kv_from_open_text(&s->from, &p->own, (sp_slice){s->text, s->text_bytes}, &err);
    if (st == SP_OK) return;
    s->bad = st == SP_E_NOMEM ? SP_KVX_PEER : SP_KVX_IDENTITY;
    sp_warn("KV blocks of another pod cannot be read: %s", err.text);
}

/* ---- the thread that pulls ---- */

/* From now on close() reaches what is read here. False: it has come already. */
static bool enter(sp_kv_port *p, source *s) {
    pthread_mutex_lock(&p->lock);
    const bool may = !p->closing;
    if (may) p->active = &s->from;
    pthread_mutex_unlock(&p->lock);
    return may;
}

static bool is_closing(sp_kv_port *p) {
    pthread_mutex_lock(&p->lock);
    const bool is = p->closing;
    pthread_mutex_unlock(&p->lock);
    return is;
}

static void quit(sp_kv_port *p) {
    pthread_mutex_lock(&p->lock);
    p->active = NULL;
    pthread_mutex_unlock(&p->lock);
}

static void linger(sp_kv_port *p) {
    const struct timespec step = {0, SLOW_STEP_MS * 1000 * 1000};
    for (int i = 0; i < SLOW_MS / SLOW_STEP_MS && !is_closing(p); i++) nanosleep(&step, NULL);
}

/* The first rank has the first layer's first head, so its first reader is of the first rank there. */
static bool is_first(const sp_kv_port *p) {
    return p->own.part.stage_index == 0 && p->own.part.tp_rank == 0;
}

static void notify(sp_kv_port *p, const source *s, uint64_t lease, bool renew) {
    const sp_kvx_fault f = sp_kvx_lease(s->from.readers[0], lease, renew);
    if (f == SP_KVX_OK) return;
    sp_counter_add(&p->failed_notices, 1);
    sp_debug("the lease %016llx was not %s: %s", (unsigned long long)lease,
             renew ? "renewed" : "given back", sp_kvx_fault_name(f));
}

static void renew_lease(sp_kv_port *p, job *j) {
    if (!j->lease || !j->source->is_foreign || !is_first(p)) return;
    const int64_t now = sp_now_ns();
    if (now < j->renew_at_ns) return;
    notify(p, j->source, j->lease, true);
    j->renew_at_ns = now + p->renew_ns;
}

/* Well before it is due, for the next read may take its time. */
static void say_alive(sp_kv_port *p) {
    const int64_t now = sp_now_ns();
    if (now - p->said_ns < p->renew_ns / 4) return;
    p->said_ns = now;
    sp_counter_add(&p->moves, 1);
    if (p->link) sp_link_wake(p->link);
}

static sp_kvx_ask ask_of(const sp_kv_port *p, const sp_kv_piece *piece, const sp_wire_kv_move *m) {
    const sp_kv_layout *own = &p->own.layout;
    size_t layer = (size_t)(piece->layer_first - p->own.part.stage.layer_first);
    size_t head = (size_t)(piece->head_first - p->own.part.slice.kv_head_first);
    return (sp_kvx_ask){.block = m->src_block,
                        .generation = m->generation,
                        .name = m->name,
                        .layer_first = piece->layer_first,
                        .n_layers = piece->n_layers,
                        .head_first = piece->head_first,
                        .n_heads = piece->n_heads,
                        .to = p->kv + (size_t)m->dst_block * own->block_bytes +
                              layer * own->layer_bytes + head * p->piece_bytes,
                        .layer_stride = own->layer_bytes,
                        .value_offset = own->layer_bytes / 2};
}

/* Not this block's own: the next one would fare the same. */
static bool is_of_peer(sp_kvx_fault f) {
    return f == SP_KVX_PEER || f == SP_KVX_TIMEOUT || f == SP_KVX_IDENTITY;
}

static int asks_at_once(const sp_kv_port *p, const sp_kv_giver *g) {
    const size_t n = SP_KV_READ_BYTES / sp_kv_giver_bytes(&p->own, g);
    return n < 1 ? 1 : n < ASKS_AT_ONCE ? (int)n : ASKS_AT_ONCE;
}

static void fail_from(job *j, int32_t at, sp_kvx_fault fault) {
    for (; at < j->n; at++)
        if (j->outcomes[at] == SP_KVX_OK) j->outcomes[at] = fault;
}

/* From `*at` on: some of the blocks that are still good, from one giver. */
static void pull_some(sp_kv_port *p, job *j, const sp_kv_giver *g, int32_t *at) {
    sp_kvx_ask asks[ASKS_AT_ONCE];
    sp_kvx_fault faults[ASKS_AT_ONCE];
    int32_t which[ASKS_AT_ONCE];
    const int most = asks_at_once(p, g);
    bool any = false;
    int n = 0;
    for (; *at < j->n && n < most; ++*at) {
        if (j->outcomes[*at] != SP_KVX_OK) continue;
        which[n] = *at;
        asks[n++] = ask_of(p, &g->piece, &j->moves[*at]);
    }
    if (n == 0) return;
    sp_kvx_read(g->reader, asks, n, faults);
    for (int i = 0; i < n; i++) {
        j->outcomes[which[i]] = faults[i];
        any |= faults[i] == SP_KVX_OK;
    }
    if (any) say_alive(p);
    if (!is_of_peer(faults[n - 1])) return;
    /* Trying again for each of the rest would make one lost peer cost minutes. */
    fail_from(j, *at, faults[n - 1]);
    *at = j->n;
}

static void pull(sp_kv_port *p, job *j) {
    const sp_kv_from *from = &j->source->from;
    if (sp_chaos_hit(SP_CHAOS_KV_SLOW)) linger(p);
    for (int32_t i = 0; i < from->n_givers; i++)
        for (int32_t at = 0; at < j->n;) {
            renew_lease(p, j);
            pull_some(p, j, &from->givers[i], &at);
        }
    if (!j->source->read) sp_debug("KV blocks come by %s", sp_kvx_way(from->readers[0]));
    j->source->read = true;
}

static void work(sp_kv_port *p, job *j) {
    if (j->source->is_foreign) open_source(p, j->source);
    sp_kvx_fault bad = j->source->bad;
    if (bad == SP_KVX_OK && !enter(p, j->source)) bad = SP_KVX_PEER;
    if (bad != SP_KVX_OK) {
        fail_from(j, 0, bad);
        if (!j->n) sp_counter_add(&p->failed_notices, 1);
        return;
    }
    if (j->n)
        pull(p, j);
    else
        notify(p, j->source, j->lease, false);
    quit(p);
}

static void *pull_all(void *arg) {
    sp_kv_port *p = arg;
    job *j;
    while ((j = sp_queue_pop(p->todo, SP_NEVER)) != NULL) {
        work(p, j);
        let_go(p, j->source);
        if (j->n == 0) {
            sp_counter_add(&p->leaves_done, 1);
            sp_free(j);
            continue;
        }
        /* Never full: there are no more pulls than it has places. */
        if (sp_queue_push(p->done, j) != SP_OK) sp_free(j);
        if (p->link) sp_link_wake(p->link);
    }
    return NULL;
}

/* ---- the callbacks ---- */

static sp_status save_blocks(sp_kv_mirror *m, const sp_wire_kv_block *blocks, int32_t n,
                             sp_err *err) {
    if (!m) return SP_OK;
    for (int32_t i = 0; i < n; i++) sp_kv_mirror_save(m, blocks[i].block);
    return sp_kv_mirror_settle(m, err);
}

static sp_status seal(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    const sp_kv_port *p = ctx;
    if (!p->region) return SP_FAIL(err, SP_E_PROTOCOL, "this rank's KV blocks are not shared");
    SP_TRY(save_blocks(p->mirror, blocks, n, err));
    for (int32_t i = 0; i < n; i++)
        SP_TRY(sp_kvx_seal(p->region, blocks[i].block, blocks[i].generation, blocks[i].name, err));
    return SP_OK;
}

static sp_status free_blocks(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    const sp_kv_port *p = ctx;
    if (!p->region) return SP_FAIL(err, SP_E_PROTOCOL, "this rank's KV blocks are not shared");
    for (int32_t i = 0; i < n; i++)
        SP_TRY(sp_kvx_free(p->region, blocks[i].block, blocks[i].generation, err));
    return SP_OK;
}

static source *find_source(const sp_kv_port *p, uint32_t number) {
    if (number < (uint32_t)p->n_groups) return p->groups[number];
    if (number < SP_KV_SOURCE_FIRST || number - SP_KV_SOURCE_FIRST >= SP_KV_SOURCES_MAX)
        return NULL;
    return p->foreign[number - SP_KV_SOURCE_FIRST];
}

/* A job of `n` blocks; its source is held, and what it is to know of time is set. */
static job *new_job(sp_kv_port *p, source *s, int32_t n) {
    job *j = sp_try_alloc(sizeof *j + (size_t)n * (sizeof *j->moves + sizeof *j->outcomes));
    if (!j) return NULL;
    j->source = hold(p, s);
    j->n = n;
    j->outcomes = (uint32_t *)(j->moves + n);
    j->renew_at_ns = sp_now_ns() + p->renew_ns;
    return j;
}

static sp_status hand_over(sp_kv_port *p, job *j, sp_err *err) {
    if (sp_queue_push(p->todo, j) == SP_OK) return SP_OK;
    let_go(p, j->source);
    sp_free(j);
    return SP_FAIL(err, SP_E_INTERNAL, "the thread that pulls takes no work");
}

static sp_status begin_pull(void *ctx, const sp_wire_kv_pull *w, sp_err *err) {
    sp_kv_port *p = ctx;
    source *s = p->kv ? find_source(p, w->source) : NULL;
    if (!s) return SP_FAIL(err, SP_E_PROTOCOL, "no KV blocks can be pulled from %u", w->source);
    if (p->n_open == SP_KV_PULLS_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "more than %d pulls at a time", SP_KV_PULLS_MAX);
    job *j = new_job(p, s, w->n);
    if (!j) return SP_FAIL(err, SP_E_NOMEM, "no memory to pull %d KV blocks", w->n);
    j->transfer = w->transfer;
    j->lease = w->lease;
    memcpy(j->moves, w->moves, (size_t)w->n * sizeof *w->moves);
    SP_TRY(hand_over(p, j, err));
    p->open[p->n_open++] = w->transfer;
    return SP_OK;
}

static sp_status take_source(void *ctx, uint32_t number, sp_slice text, sp_err *err) {
    sp_kv_port *p = ctx;
    source *s = NULL;
    if (!p->kv) return SP_FAIL(err, SP_E_PROTOCOL, "this rank takes no KV blocks of other pods");
    if (number < SP_KV_SOURCE_FIRST || number - SP_KV_SOURCE_FIRST >= SP_KV_SOURCES_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "no number of another pod's group: %u", number);
    if (text.len) {
        s = new_source(text);
        if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for a source of %zu bytes", text.len);
        s->is_foreign = true;
    }
    source **at = &p->foreign[number - SP_KV_SOURCE_FIRST];
    let_go(p, *at);
    *at = s;
    return SP_OK;
}

/* What cannot be done is no error: the lease ends by itself a little later. */
static sp_status give_back(void *ctx, const sp_wire_kv_leave *w, sp_err *err) {
    sp_kv_port *p = ctx;
    if (!is_first(p)) return SP_OK;
    source *s = p->kv ? find_source(p, w->source) : NULL;
    job *j = NULL;
    if (s && s->is_foreign && p->n_leaves - sp_counter_get(&p->leaves_done) < SP_KV_LEAVES_MAX)
        j = new_job(p, s, 0);
    if (!j) {
        sp_counter_add(&p->failed_notices, 1);
        sp_debug("the lease %016llx is not given back", (unsigned long long)w->lease);
        return SP_OK;
    }
    j->lease = w->lease;
    p->n_leaves++;
    return hand_over(p, j, err);
}

static bool poll_note(void *ctx, sp_stage_kv_note *out) {
    sp_kv_port *p = ctx;
    const uint64_t moves = sp_counter_get(&p->moves);
    if (moves != p->moves_seen) p->n_to_renew = p->n_open;
    p->moves_seen = moves;
    if (p->n_to_renew > 0) {
        *out = (sp_stage_kv_note){.id = p->open[--p->n_to_renew]};
        return true;
    }
    sp_stage_kv_note note = {.of_lease = true};
    if (!p->leases || !sp_kv_leases_take(p->leases, &note.id, &note.renewed)) return false;
    *out = note;
    return true;
}

static void forget(sp_kv_port *p, uint64_t transfer) {
    int32_t i = 0;
    while (i < p->n_open && p->open[i] != transfer) i++;
    if (i == p->n_open) return;
    p->n_open--;
    memmove(&p->open[i], &p->open[i + 1], (size_t)(p->n_open - i) * sizeof p->open[0]);
    if (p->n_to_renew > i) p->n_to_renew--;
}

static void load_blocks(sp_kv_mirror *m, const job *j) {
    for (int32_t i = 0; m && i < j->n; i++)
        if (j->outcomes[i] == SP_KVX_OK) sp_kv_mirror_load(m, j->moves[i].dst_block);
}

/* All that have ended by now wait for the device once. */
static sp_status settle(void *ctx, sp_err *err) {
    sp_kv_port *p = ctx;
    job *j;
    while ((j = sp_queue_try_pop(p->done)) != NULL) {
        load_blocks(p->mirror, j);
        j->next = NULL;
        *p->ready_end = j;
        p->ready_end = &j->next;
    }
    return p->mirror ? sp_kv_mirror_settle(p->mirror, err) : SP_OK;
}

static job *next_ready(sp_kv_port *p) {
    job *j = p->ready;
    if (!j) return NULL;
    p->ready = j->next;
    if (!p->ready) p->ready_end = &p->ready;
    return j;
}

static bool poll_done(void *ctx, sp_wire_kv_pulled *out) {
    sp_kv_port *p = ctx;
    sp_free(p->told);
    p->told = next_ready(p);
    if (!p->told) return false;
    forget(p, p->told->transfer);
    *out = (sp_wire_kv_pulled){p->told->transfer, p->told->n, p->told->outcomes};
    return true;
}

/* ---- opening ---- */

static sp_status open_group(sp_kv_port *p, int32_t i, const sp_kv_group *g, sp_err *err) {
    source *s = new_source((sp_slice){NULL, 0});
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for a group");
    p->groups[i] = s;
    return sp_kv_from_open(&s->from, &p->own, &g->cut, g->addresses, g->same_node, err);
}

static sp_status open_groups(sp_kv_port *p, const sp_kv_port_config *c, sp_err *err) {
    if (!c->kv) return SP_OK;
    p->groups = sp_try_alloc_array((size_t)c->n_groups, sizeof(source *));
    if (!p->groups) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d groups", c->n_groups);
    p->n_groups = c->n_groups;
    for (int32_t i = 0; i < c->n_groups; i++) {
        if (!c->groups[i].cut.tp) continue;
        sp_status st = open_group(p, i, &c->groups[i], err);
        if (st == SP_OK) continue;
        sp_err_context(err, "KV blocks of group %d", i);
        return st;
    }
    return sp_thread_start(&p->thread, "kv-pull", pull_all, p, err);
}

sp_status sp_kv_port_open(sp_kv_port **out, const sp_kv_port_config *c, sp_err *err) {
    sp_kv_port *p = sp_try_alloc(sizeof *p);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for the way of KV blocks");
    *p = (sp_kv_port){.region = c->region,
                      .leases = c->leases,
                      .own = {.desc = c->desc,
                              .arch = c->arch,
                              .part = c->part,
                              .layout = c->layout,
                              .ucx = c->ucx,
                              .shape = sp_kv_port_shape(&c->layout, &c->part, c->n_blocks)},
                      .kv = c->kv,
                      .link = c->link,
                      .renew_ns = c->renew_ns ? c->renew_ns : SP_KV_RENEW_NS,
                      .callbacks = {seal, free_blocks, begin_pull, take_source, give_back,
                                    poll_note, poll_done, settle, p},
                      .todo = sp_queue_create(SP_KV_PULLS_MAX + SP_KV_LEAVES_MAX),
                      .done = sp_queue_create(SP_KV_PULLS_MAX)};
    p->ready_end = &p->ready;
    p->piece_bytes = sp_kvx_piece_bytes(&p->own.shape);
    memcpy(p->own.key, c->key, sizeof p->own.key);
    memcpy(p->own.identity, c->identity, sizeof p->own.identity);
    pthread_mutex_init(&p->lock, NULL);
    sp_status st = open_groups(p, c, err);
    if (st != SP_OK) {
        sp_kv_port_close(p);
        return st;
    }
    *out = p;
    return SP_OK;
}

void sp_kv_port_close(sp_kv_port *p) {
    job *j;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    if (p->active) sp_kv_from_cancel(p->active);
    pthread_mutex_unlock(&p->lock);
    sp_queue_close(p->todo);
    sp_thread_join(&p->thread); /* it has taken every job, and done none that had not begun */
    for (int32_t i = 0; i < p->n_groups; i++) let_go(p, p->groups[i]);
    for (int32_t i = 0; i < SP_KV_SOURCES_MAX; i++) let_go(p, p->foreign[i]);
    while ((j = sp_queue_try_pop(p->done)) != NULL) sp_free(j);
    while ((j = next_ready(p)) != NULL) sp_free(j);
    sp_queue_destroy(p->todo);
    sp_queue_destroy(p->done);
    pthread_mutex_destroy(&p->lock);
    sp_free(p->groups);
    sp_free(p->told);
    explicit_bzero(p->own.key, sizeof p->own.key);
    sp_free(p);
}

void sp_kv_port_set_mirror(sp_kv_port *p, sp_kv_mirror *m) {
    p->mirror = m;
}

const sp_stage_kvx *sp_kv_port_callbacks(const sp_kv_port *p) {
    return &p->callbacks;
}

uint64_t sp_kv_port_failed_notices(const sp_kv_port *p) {
    return sp_counter_get(&p->failed_notices);
}
