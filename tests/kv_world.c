#include "tests/kv_world.h"

#include "runtime/base/mem.h"
#include "runtime/engine/kv_source.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define TICK_NS SP_NS_PER_MS
#define LOST_TICKS 30 /* longer than any lease of a test that loses answers */

struct kv_job {
    sp_wire_kv_pull pull; /* moves: our copy */
    uint32_t *outcomes;   /* what is to go wrong; then what became of it */
    kv_node *from;        /* NULL: nobody */
    int ticks;            /* until it is done */
    bool silent;
    kv_job *next;
};

uint32_t kv_chance(uint64_t *s, uint32_t n) {
    *s = *s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*s >> 33) % n;
}

static bool hits(kv_node *d, int percent) {
    return (int)kv_chance(&d->seed, 100) < percent;
}

/* The lock is held. */
static void note(kv_node *d, bool of_lease, uint64_t id, bool renewed) {
    if (d->gone || d->n_notes - d->n_noted == KV_NOTES_MAX) return;
    d->notes[d->n_notes++ % KV_NOTES_MAX] = (sp_stage_kv_note){of_lease, id, renewed};
    sp_link_wake(d->rank.rank);
}

/* ---- the exporter's side ---- */

static sp_status node_seal(void *ctx, const sp_wire_kv_block *b, int32_t n, sp_err *err) {
    kv_node *d = ctx;
    (void)err;
    pthread_mutex_lock(&d->lock);
    for (int32_t i = 0; i < n; i++) {
        d->generation[b[i].block] = b[i].generation;
        d->name[b[i].block] = b[i].name;
    }
    pthread_mutex_unlock(&d->lock);
    return SP_OK;
}

static sp_status node_free(void *ctx, const sp_wire_kv_block *b, int32_t n, sp_err *err) {
    kv_node *d = ctx;
    pthread_mutex_lock(&d->lock);
    bool same = true;
    for (int32_t i = 0; i < n; i++) {
        same = same && d->generation[b[i].block] == b[i].generation;
        d->generation[b[i].block] = 0;
    }
    pthread_mutex_unlock(&d->lock);
    return same ? SP_OK : SP_FAIL(err, SP_E_PROTOCOL, "freed what was not sealed");
}

/* ---- the reader's side ---- */

/* Whose memory a source is; NULL: nobody's. */
static kv_node *exporter(kv_node *d, uint32_t source) {
    kv_world *other = d->w->other;
    if (source < (uint32_t)d->w->n) return &d->w->nodes[source];
    if (source < SP_KV_SOURCE_FIRST || !other) return NULL;
    const sp_buf *text = &d->sources[source - SP_KV_SOURCE_FIRST];
    bool same = text->len == other->text.len && memcmp(text->ptr, other->text.ptr, text->len) == 0;
    return same ? &other->nodes[0] : NULL;
}

/* Under the lock of the source: what is freed meanwhile is not read. */
static uint32_t copy_block(kv_node *d, kv_node *from, const sp_wire_kv_move *m, uint32_t planned) {
    if (!from) return SP_KV_PEER;
    size_t bytes = (size_t)d->w->p.config.block_tokens * sizeof(uint64_t);
    void *to = sp_null_model_block(d->rank.null, (int32_t)m->dst_block);
    uint32_t at = m->src_block, outcome = planned;
    if (at >= KV_BLOCKS_MAX) return SP_KV_RANGE;
    pthread_mutex_lock(&from->lock);
    if (from->generation[at] != m->generation)
        outcome = SP_KV_STALE;
    else if (from->name[at] != m->name)
        outcome = SP_KV_FOREIGN;
    else if (!d->w->faults.pretends)
        memcpy(to, sp_null_model_block(from->rank.null, (int32_t)at), bytes);
    pthread_mutex_unlock(&from->lock);
    if (outcome) memset(to, 0xa5, bytes); /* it holds anything */
    return outcome;
}

/* No lock is held: two nodes may read each other. */
static void run_job(kv_node *d, kv_job *j) {
    for (int32_t i = 0; i < j->pull.n; i++)
        j->outcomes[i] = copy_block(d, j->from, &j->pull.moves[i], j->outcomes[i]);
    pthread_mutex_lock(&d->lock);
    j->next = d->done;
    d->done = j;
    if (!d->gone) sp_link_wake(d->rank.rank);
    pthread_mutex_unlock(&d->lock);
}

static void tell_lease(kv_node *from, uint64_t lease, bool renewed) {
    if (!from) return;
    pthread_mutex_lock(&from->lock);
    note(from, true, lease, renewed);
    pthread_mutex_unlock(&from->lock);
}

static void free_jobs(kv_job *j) {
    for (kv_job *next; j; j = next) {
        next = j->next;
        sp_free((void *)(uintptr_t)j->pull.moves);
        sp_free(j->outcomes);
        sp_free(j);
    }
}

/* The lock is held. */
static void plan_job(kv_node *d, kv_job *j) {
    const kv_faults *f = &d->w->faults;
    int32_t n = j->pull.n, whole = n;
    if (hits(d, f->truncated)) whole = (int32_t)kv_chance(&d->seed, (uint32_t)n);
    for (int32_t i = 0; i < n; i++)
        if (i >= whole)
            j->outcomes[i] = SP_KV_PEER;
        else if (hits(d, f->block))
            j->outcomes[i] = 1 + kv_chance(&d->seed, SP_KV_NO_ROOM - 1);
    j->silent = hits(d, f->lost);
    if (j->silent)
        j->ticks = LOST_TICKS;
    else if (hits(d, f->slow))
        j->ticks = f->slow_ticks ? f->slow_ticks : 1 + (int)kv_chance(&d->seed, 6);
    j->from = exporter(d, j->pull.source);
}

static sp_status node_pull(void *ctx, const sp_wire_kv_pull *pull, sp_err *err) {
    kv_node *d = ctx;
    (void)err;
    size_t n = (size_t)pull->n;
    kv_job *j = sp_alloc(sizeof *j);
    sp_wire_kv_move *moves = sp_alloc(n * sizeof *moves);
    memcpy(moves, pull->moves, n * sizeof *moves);
    j->pull = *pull;
    j->pull.moves = moves;
    j->outcomes = sp_alloc(n * sizeof *j->outcomes);
    pthread_mutex_lock(&d->lock);
    plan_job(d, j);
    bool now = j->ticks == 0;
    if (!now) {
        j->next = d->waiting;
        d->waiting = j;
    }
    pthread_mutex_unlock(&d->lock);
    if (now) run_job(d, j);
    return SP_OK;
}

static sp_status node_source(void *ctx, uint32_t source, sp_slice text, sp_err *err) {
    kv_node *d = ctx;
    (void)err;
    pthread_mutex_lock(&d->lock);
    sp_buf *b = &d->sources[source - SP_KV_SOURCE_FIRST];
    sp_buf_clear(b);
    sp_buf_put_slice(b, text);
    d->n_sources += text.len > 0;
    pthread_mutex_unlock(&d->lock);
    return SP_OK;
}

static sp_status node_leave(void *ctx, const sp_wire_kv_leave *leave, sp_err *err) {
    kv_node *d = ctx;
    (void)err;
    pthread_mutex_lock(&d->lock);
    d->n_leaves++;
    kv_node *from = hits(d, d->w->faults.leave_lost) ? NULL : exporter(d, leave->source);
    pthread_mutex_unlock(&d->lock);
    tell_lease(from, leave->lease, false);
    return SP_OK;
}

static bool node_note(void *ctx, sp_stage_kv_note *out) {
    kv_node *d = ctx;
    pthread_mutex_lock(&d->lock);
    bool any = d->n_noted < d->n_notes;
    if (any) *out = d->notes[d->n_noted++ % KV_NOTES_MAX];
    pthread_mutex_unlock(&d->lock);
    return any;
}

static bool node_done(void *ctx, sp_wire_kv_pulled *out) {
    kv_node *d = ctx;
    pthread_mutex_lock(&d->lock);
    free_jobs(d->told);
    kv_job *j = d->told = d->done;
    if (j) {
        d->done = j->next;
        j->next = NULL;
        *out = (sp_wire_kv_pulled){j->pull.transfer, j->pull.n, j->outcomes};
    }
    pthread_mutex_unlock(&d->lock);
    return j != NULL;
}

/* ---- slow answers ---- */

/* The lock is held: an exporter of another world reads nobody here. */
static void give_sign(kv_node *d, const kv_job *j) {
    note(d, false, j->pull.transfer, false);
    if (j->pull.source >= SP_KV_SOURCE_FIRST) tell_lease(j->from, j->pull.lease, true);
}

/* Takes out what is due now. */
static kv_job *due(kv_node *d, bool find_lost) {
    kv_job *out = NULL;
    pthread_mutex_lock(&d->lock);
    for (kv_job **at = &d->waiting; *at;) {
        kv_job *j = *at;
        bool is_due = --j->ticks == 0 || (j->silent && find_lost);
        if (!is_due) {
            if (!j->silent) give_sign(d, j);
            at = &j->next;
            continue;
        }
        *at = j->next;
        j->next = out;
        out = j;
    }
    pthread_mutex_unlock(&d->lock);
    return out;
}

static void tick(kv_node *d, bool find_lost) {
    for (kv_job *j = due(d, find_lost), *next; j; j = next) {
        next = j->next;
        run_job(d, j);
    }
}

static void *keep(void *arg) {
    kv_world *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += TICK_NS;
        if (t.tv_nsec >= SP_NS_PER_S) {
            t.tv_nsec -= SP_NS_PER_S;
            t.tv_sec++;
        }
        bool find_lost = w->find_lost;
        pthread_mutex_unlock(&w->lock);
        for (int i = 0; i < w->n; i++) tick(&w->nodes[i], find_lost);
        pthread_mutex_lock(&w->lock);
        while (!w->stop && pthread_cond_timedwait(&w->changed, &w->lock, &t) != ETIMEDOUT) continue;
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- the world ---- */

static void node_gone(sp_fake_rank *r, void *ctx) {
    (void)r;
    kv_node *d = ctx;
    pthread_mutex_lock(&d->lock);
    d->gone = true;
    pthread_mutex_unlock(&d->lock);
}

static void node_open(kv_world *w, int i, int n_blocks, sp_pool_role role) {
    sp_err err = {0};
    kv_node *d = &w->nodes[i];
    d->kvx = (sp_stage_kvx){.seal = node_seal,
                            .free_blocks = node_free,
                            .pull = node_pull,
                            .source = node_source,
                            .leave = node_leave,
                            .poll_note = node_note,
                            .poll_done = node_done,
                            .ctx = d};
    sp_fake_rank_config rc = {.offer = sp_fake_offer(VOCAB, n_blocks, 16),
                              .eos = w->p.config.eos_ids,
                              .n_eos = 1,
                              .allowed = -1,
                              .bell = sp_fan_bell(w->fan),
                              .role = {.embeds = true, .samples = true},
                              .kvx = &d->kvx,
                              .gone = node_gone,
                              .gone_ctx = d};
    sp_fake_rank_open(&d->rank, &rc);
    CU_ASSERT_EQUAL_FATAL(sp_fan_add(w->fan, d->rank.head, &err), SP_OK);
    w->groups[i] =
        (sp_engine_group){.first_link = i, .n_links = 1, .n_stages = 1, .sampler = i, .role = role};
    snprintf(w->groups[i].pool, sizeof w->groups[i].pool, "%s", sp_pool_role_name(role));
}

sp_engine_config kv_world_config(void) {
    sp_engine_config c = pod_config();
    c.prefill_threshold_tokens = 16;
    c.kv_shared = true;
    c.kv_block_bytes = 4096;
    return c;
}

kv_world *kv_world_start(uint64_t seed, int n, const sp_pool_role *roles, int n_blocks,
                         kv_faults faults, const sp_engine_config *config) {
    sp_err err = {0};
    kv_world *w = sp_alloc(sizeof *w);
    w->p.config = config ? *config : kv_world_config();
    w->n = n;
    w->faults = faults;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    CU_ASSERT_EQUAL_FATAL(sp_fan_open(&w->fan, -1, &err), SP_OK);
    for (int i = 0; i < n; i++) { /* all, before any thread */
        pthread_mutex_init(&w->nodes[i].lock, NULL);
        w->nodes[i].w = w;
        w->nodes[i].seed = seed * 31 + (uint64_t)i + 1;
    }
    for (int i = 0; i < n; i++) node_open(w, i, n_blocks, roles ? roles[i] : SP_POOL_MIXED);
    char rank[32];
    snprintf(rank, sizeof rank, "world %llu", (unsigned long long)seed);
    const char *ranks[] = {rank};
    sp_kv_source_write(&w->text, 1, 1, (int32_t[]){1}, ranks);
    w->p.config.groups = w->groups;
    w->p.config.n_groups = n;
    CU_ASSERT_EQUAL_FATAL(sp_engine_create(&w->p.engine, &w->p.config, w->fan, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_engine_start(w->p.engine, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&w->keeper, "keeper", keep, w, &err), SP_OK);
    pod_wait_state(&w->p, SP_ENGINE_READY);
    return w;
}

void kv_world_settle(kv_world *w) {
    pthread_mutex_lock(&w->lock);
    w->find_lost = true;
    pthread_mutex_unlock(&w->lock);
    char why[160] = "";
    CU_ASSERT_EQUAL(sp_engine_get_state(w->p.engine), SP_ENGINE_READY);
    if (sp_engine_get_state(w->p.engine) == SP_ENGINE_FAILED) {
        fprintf(stderr, "%s\n", sp_engine_why(w->p.engine, why, sizeof why));
        CU_FAIL_FATAL("the engine is gone");
    }
    int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    while (GAUGE(&w->p, kv_lent) > 0 || GAUGE(&w->p, blocks_used) > 0) {
        (void)pod_pump(&w->p, 1);
        if (sp_now_ns() < until) continue;
        fprintf(stderr, "still held: %lld blocks, %lld lent\n",
                (long long)GAUGE(&w->p, blocks_used), (long long)GAUGE(&w->p, kv_lent));
        CU_FAIL_FATAL("blocks are held for ever");
    }
}

void kv_world_end(kv_world *w) {
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    sp_thread_join(&w->keeper);
    for (int i = 0; i < w->n; i++) node_gone(NULL, &w->nodes[i]); /* nobody is woken any more */
    sp_engine_stop(w->p.engine);
    CU_ASSERT(sp_engine_check(w->p.engine));
    sp_engine_destroy(w->p.engine);
    sp_fan_close(w->fan);
    for (int i = 0; i < w->n; i++) {
        kv_node *d = &w->nodes[i];
        sp_fake_rank_fini(&d->rank);
        free_jobs(d->waiting);
        free_jobs(d->done);
        free_jobs(d->told);
        for (int k = 0; k < SP_KV_SOURCES_MAX; k++) sp_buf_fini(&d->sources[k]);
        pthread_mutex_destroy(&d->lock);
    }
    sp_buf_fini(&w->text);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    sp_free(w);
}

void kv_world_link(kv_world *w, kv_world *lender) {
    for (int i = 0; i < w->n; i++) pthread_mutex_lock(&w->nodes[i].lock);
    w->other = lender;
    for (int i = 0; i < w->n; i++) pthread_mutex_unlock(&w->nodes[i].lock);
}

void kv_world_wait_leaves(kv_world *w, int n) {
    int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    for (int have = 0; have != n;) {
        have = 0;
        for (int i = 0; i < w->n; i++) {
            pthread_mutex_lock(&w->nodes[i].lock);
            have += w->nodes[i].n_leaves;
            pthread_mutex_unlock(&w->nodes[i].lock);
        }
        CU_ASSERT_FATAL(have <= n && sp_now_ns() < until);
        if (have < n) (void)pod_pump(&w->p, 1);
    }
}

sp_kv_import kv_world_import(const kv_world *lender, const sp_kv_handle *handle) {
    sp_kv_import from = {.source = {lender->text.ptr, lender->text.len}, .handle = handle};
    snprintf(from.engine, sizeof from.engine, "lender-0");
    return from;
}
