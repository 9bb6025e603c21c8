#include "runtime/engine/sched.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <string.h>

/* A quarter of the budget is kept for prompts while any wait: credit counts quarter tokens. */
#define PREFILL_SHARE 4
/* Rows of logits that one sequence gets from all steps in flight, at most: they are large. */
#define ROWS_IN_FLIGHT_MAX 128
/* Blocks kept free for those that run, when another is admitted: one of so many in the pool. */
#define RESERVE_PART 64
/* Blocks that are not lent to what comes from elsewhere, beside one for each that runs. */
#define LEND_PART 16

typedef struct seq_list {
    sp_seq *head, *tail;
    int32_t n;
} seq_list;

typedef struct slot {
    sp_seq *seq; /* NULL: free, or its drop was not sent yet */
    uint32_t generation;
} slot;

struct sp_sched {
    sp_sched_config config;
    sp_kv_pool *pool;
    sp_kv_prefix *prefix;
    sp_waitq waitq;
    seq_list prefilling; /* in order */
    seq_list decoding;   /* the one whose turn it is first */
    slot *slots;
    int32_t *free_slots;
    int32_t n_free_slots, n_running, n_live, n_paused;
    uint64_t n_requests;
    sp_wire_seq *drops;
    int32_t n_drops;
    sp_seq **chosen;
    int32_t n_chosen;
    int32_t decodes_left; /* that this step may take, so that the next ones have some too */
    int32_t n_sitting;    /* sit out this step until fenced blocks come */
    bool squeezed;        /* this plan was short of blocks: admit nobody */
    int64_t credit;
    sp_seq *doomed;
    int32_t *scratch; /* [block_tokens] */
    sp_sched_stats stats;
};

/* ---- lists ---- */

static void list_remove(seq_list *l, sp_seq *q) {
    if (q->prev)
        q->prev->next = q->next;
    else
        l->head = q->next;
    if (q->next)
        q->next->prev = q->prev;
    else
        l->tail = q->prev;
    q->prev = q->next = NULL;
    l->n--;
}

/* Puts `q` after `at` (NULL: first). */
static void list_insert(seq_list *l, sp_seq *at, sp_seq *q) {
    q->prev = at;
    q->next = at ? at->next : l->head;
    if (q->next)
        q->next->prev = q;
    else
        l->tail = q;
    if (at)
        at->next = q;
    else
        l->head = q;
    l->n++;
}

static void list_insert_ordered(seq_list *l, sp_seq *q) {
    sp_seq *at = l->tail;
    while (at && sp_seq_before(q, at)) at = at->prev;
    list_insert(l, at, q);
}

static seq_list *list_of(sp_sched *s, const sp_seq *q) {
    return q->state == SP_SEQ_PREFILL ? &s->prefilling : &s->decoding;
}

/* ---- creation ---- */

static sp_status check_config(const sp_sched_config *c, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, min, max;
    } rows[] = {
        {"max_num_seqs", c->max_num_seqs, 1, SP_STEP_ENTRIES_MAX},
        {"max_batched_tokens", c->max_batched_tokens, 1, 1 << 20},
        {"max_step_rows", c->max_step_rows, c->max_num_seqs, 1 << 20},
        {"block_tokens", c->block_tokens, 1, 4096},
        {"n_blocks", c->n_blocks, 1, SP_KV_BLOCKS_MAX},
        {"max_model_len", c->max_model_len, 1, 1 << 30},
        {"steps_in_flight", c->steps_in_flight, 1, SP_KV_STEPS_MAX},
        {"n_stages", c->n_stages, 0, SP_KV_STEPS_MAX - 1},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %d, want %d..%d", rows[i].name,
                           rows[i].value, rows[i].min, rows[i].max);
    int32_t per_seq = sp_kv_blocks_for(c->max_model_len, c->block_tokens);
    if (per_seq > c->n_blocks)
        return SP_FAIL(err, SP_E_INVALID, "'max_model_len' %d needs %d blocks, there are %d",
                       c->max_model_len, per_seq, c->n_blocks);
    if (per_seq > SP_STEP_BLOCKS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "'max_model_len' %d needs %d blocks, a step carries %d",
                       c->max_model_len, per_seq, SP_STEP_BLOCKS_MAX);
    return SP_OK;
}

static sp_status take_memory(sp_sched *s, sp_err *err) {
    const sp_sched_config *c = &s->config;
    size_t n = (size_t)c->max_num_seqs;
    s->slots = sp_try_alloc_array(n, sizeof *s->slots);
    s->free_slots = sp_try_alloc_array(n, sizeof *s->free_slots);
    s->drops = sp_try_alloc_array(n, sizeof *s->drops);
    s->chosen = sp_try_alloc_array(n, sizeof *s->chosen);
    s->scratch = sp_try_alloc_array((size_t)c->block_tokens, sizeof *s->scratch);
    if (!s->slots || !s->free_slots || !s->drops || !s->chosen || !s->scratch)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for %d sequences", c->max_num_seqs);
    SP_TRY(sp_kv_pool_create(&s->pool, c->n_blocks, err));
    sp_kv_prefix_config px = {.block_tokens = c->block_tokens,
                              .identity = c->identity,
                              .identity_bytes = c->identity_bytes};
    memcpy(px.key, c->cache_key, sizeof px.key);
    return sp_kv_prefix_create(&s->prefix, s->pool, &px, err);
}

sp_status sp_sched_create(sp_sched **out, const sp_sched_config *config, sp_err *err) {
    SP_TRY(check_config(config, err));
    sp_sched *s = sp_alloc(sizeof *s);
    s->config = *config;
    if (s->config.n_stages == 0) s->config.n_stages = 1;
    sp_status st = take_memory(s, err);
    if (st != SP_OK) {
        sp_sched_destroy(s);
        return st;
    }
    s->config.identity = NULL;
    for (int32_t i = config->max_num_seqs - 1; i >= 0; i--) s->free_slots[s->n_free_slots++] = i;
    *out = s;
    return SP_OK;
}

void sp_sched_destroy(sp_sched *s) {
    if (!s) return;
    SP_ASSERT(s->n_live == 0);
    sp_kv_prefix_destroy(s->prefix);
    sp_kv_pool_destroy(s->pool);
    sp_waitq_fini(&s->waitq);
    sp_free(s->scratch);
    sp_free(s->chosen);
    sp_free(s->drops);
    sp_free(s->free_slots);
    sp_free(s->slots);
    sp_free(s);
}

sp_status sp_step_init(sp_step *st, const sp_sched *s, sp_err *err) {
    const sp_sched_config *c = &s->config;
    size_t n = (size_t)c->max_num_seqs;
    int64_t blocks = (int64_t)c->max_num_seqs * sp_kv_blocks_for(c->max_model_len, c->block_tokens);
    *st =
        (sp_step){.blocks_cap = blocks < SP_STEP_BLOCKS_MAX ? (int32_t)blocks : SP_STEP_BLOCKS_MAX};
    st->entries = sp_try_alloc_array(n, sizeof *st->entries);
    st->deltas = sp_try_alloc_array(n, sizeof *st->deltas);
    st->admitted = sp_try_alloc_array(n, sizeof(sp_seq *));
    st->blocks = sp_try_alloc_array((size_t)st->blocks_cap, sizeof *st->blocks);
    if (st->entries && st->deltas && st->admitted && st->blocks) return SP_OK;
    sp_step_fini(st);
    return SP_FAIL(err, SP_E_NOMEM, "no memory for a step of %d sequences", c->max_num_seqs);
}

void sp_step_fini(sp_step *st) {
    sp_free(st->blocks);
    sp_free(st->admitted);
    sp_free(st->deltas);
    sp_free(st->entries);
    *st = (sp_step){0};
}

/* ---- life of a sequence ---- */

static sp_status take_in(sp_sched *s, sp_request *r, sp_err *err) {
    SP_TRY(sp_waitq_reserve(&s->waitq, s->n_live + r->params.n, err));
    r->order = ++s->n_requests;
    r->private_root = !s->config.enable_prefix_cache;
    s->n_live += r->params.n;
    return SP_OK;
}

sp_status sp_sched_add(sp_sched *s, sp_request *r, sp_err *err) {
    SP_TRY(take_in(s, r, err));
    sp_waitq_push(&s->waitq, &r->seqs[0]);
    return SP_OK;
}

sp_status sp_sched_hold(sp_sched *s, sp_request *r, sp_err *err) {
    SP_TRY(take_in(s, r, err));
    r->held = true;
    r->seqs[0].state = SP_SEQ_HELD; /* as its brothers: nobody leads yet */
    return SP_OK;
}

static void leave_slot(sp_sched *s, sp_seq *q) {
    list_remove(list_of(s, q), q);
    sp_kv_blocks_release(&q->blocks, s->pool, q->last_step);
    s->slots[q->slot].seq = NULL;
    s->drops[s->n_drops++] = (sp_wire_seq){(uint32_t)q->slot, q->generation};
    q->slot = -1;
    q->n_sent = q->n_blocks_sent = q->n_indexed = 0;
    q->n_planned = q->n_output;
    q->last_step = 0;
    q->row_have = 0;
    s->n_running--;
}

static void wait_or_park(sp_sched *s, sp_seq *q) {
    if (q->paused)
        sp_seq_move(q, SP_SEQ_PARK);
    else
        sp_waitq_push(&s->waitq, q);
}

static void preempt(sp_sched *s, sp_seq *q) {
    leave_slot(s, q);
    sp_seq_unreserve(q, false);
    sp_seq_move(q, SP_SEQ_PREEMPT);
    q->blocks_short = 0;
    s->stats.preemptions++;
    wait_or_park(s, q);
}

static void let_go(sp_sched *s, sp_seq *q) {
    sp_seq_move(q, SP_SEQ_FORK);
    wait_or_park(s, q);
}

/* The leader sent the whole prompt: what its brothers need can be found from now on. */
static void fork_brothers(sp_sched *s, sp_request *r) {
    r->forked = true;
    for (int32_t i = 0; i < r->params.n; i++)
        if (r->seqs[i].state == SP_SEQ_HELD) let_go(s, &r->seqs[i]);
}

static void next_leader(sp_sched *s, sp_request *r) {
    for (int32_t i = 0; i < r->params.n; i++) {
        if (r->seqs[i].state != SP_SEQ_HELD) continue;
        r->leader = i;
        let_go(s, &r->seqs[i]);
        return;
    }
}

void sp_sched_let_in(sp_sched *s, sp_request *r) {
    SP_ASSERT(r->held);
    r->held = false;
    next_leader(s, r);
}

void sp_sched_end(sp_sched *s, sp_seq *q) {
    if (q->paused) sp_sched_pause(s, q, false);
    if (sp_seq_runs(q))
        leave_slot(s, q);
    else if (q->state == SP_SEQ_WAITING)
        sp_waitq_remove(&s->waitq, q);
    sp_seq_move(q, SP_SEQ_END);
    sp_seq_unreserve(q, true);
    s->n_live--;
    if (!q->req->forked && !q->req->held && q->choice == q->req->leader) next_leader(s, q->req);
}

void sp_sched_pause(sp_sched *s, sp_seq *q, bool paused) {
    if (q->paused == paused || q->state == SP_SEQ_DONE) return;
    q->paused = paused;
    s->n_paused += paused ? 1 : -1;
    if (paused && q->state == SP_SEQ_WAITING) {
        sp_waitq_remove(&s->waitq, q);
        sp_seq_move(q, SP_SEQ_PARK);
    } else if (!paused && q->state == SP_SEQ_PARKED) {
        sp_seq_move(q, SP_SEQ_RESUME);
        sp_waitq_push(&s->waitq, q);
    }
}

sp_seq *sp_sched_find(const sp_sched *s, uint32_t at, uint32_t generation) {
    if (at >= (uint32_t)s->config.max_num_seqs) return NULL;
    const slot *x = &s->slots[at];
    return x->seq && x->generation == generation ? x->seq : NULL;
}

const sp_wire_seq *sp_sched_drops(sp_sched *s, int32_t *n) {
    *n = s->n_drops;
    for (int32_t i = 0; i < s->n_drops; i++)
        s->free_slots[s->n_free_slots++] = (int32_t)s->drops[i].slot;
    s->n_drops = 0;
    return s->drops;
}

bool sp_sched_has_drops(const sp_sched *s) {
    return s->n_drops > 0;
}

sp_seq *sp_sched_doomed(sp_sched *s) {
    sp_seq *q = s->doomed;
    s->doomed = NULL;
    return q;
}

/* ---- the prefix index ---- */

static bool is_indexed(const sp_sched *s, const sp_request *r) {
    return s->config.enable_prefix_cache || r->params.n > 1;
}

/* Offers every block that is full of known tokens and was sent. Steps run in order, so a block is
 * good for later steps as soon as the step that fills it was sent. */
static void index_blocks(sp_sched *s, sp_seq *q) {
    int32_t B = s->config.block_tokens, known = sp_seq_known(q);
    int32_t full = (q->n_sent < known ? q->n_sent : known) / B;
    if (q->n_indexed >= full || !is_indexed(s, q->req)) return;
    for (; q->n_indexed < full; q->n_indexed++) {
        int32_t i = q->n_indexed;
        const sp_kv_hash *name = sp_seq_name(q, s->prefix, i, B, s->scratch);
        (void)sp_kv_prefix_add(s->prefix, q->blocks.ids[i], name,
                               sp_seq_tokens(q, i * B, B, s->scratch));
    }
}

void sp_sched_grown(sp_sched *s, sp_seq *q) {
    index_blocks(s, q);
}

/* Tokens that may be taken from the cache: never all of them, since the last one's logits are what
 * the next token is drawn from; and none whose own logits are wanted and have not come. */
static int32_t hit_limit(const sp_sched *s, const sp_seq *q) {
    if (!is_indexed(s, q->req)) return 0;
    int32_t limit = sp_seq_known(q) - 1;
    if (q->rows_done < sp_seq_rows_limit(q) && q->rows_done < limit) limit = q->rows_done;
    return limit;
}

static void adopt_prefix(sp_sched *s, sp_seq *q) {
    int32_t B = s->config.block_tokens, n = hit_limit(s, q) / B;
    for (int32_t i = 0; i < n; i++) {
        const sp_kv_hash *name = sp_seq_name(q, s->prefix, i, B, s->scratch);
        sp_block b = sp_kv_prefix_find(s->prefix, name, sp_seq_tokens(q, i * B, B, s->scratch));
        if (b == SP_BLOCK_NONE) return;
        sp_kv_blocks_adopt(&q->blocks, s->pool, b);
    }
}

int32_t sp_sched_cached(sp_sched *s, sp_request *r, int32_t most) {
    int32_t B = s->config.block_tokens, n = 0;
    r->private_root = !s->config.enable_prefix_cache;
    for (; n < most && n < r->n_prompt_full; n++) {
        const sp_kv_hash *name = sp_seq_name(&r->seqs[0], s->prefix, n, B, s->scratch);
        if (sp_kv_prefix_find(s->prefix, name, r->prompt + (size_t)n * (size_t)B) == SP_BLOCK_NONE)
            break;
    }
    return n;
}

const sp_kv_hash *sp_sched_prompt_name(sp_sched *s, sp_request *r, int32_t i) {
    SP_ASSERT(i < r->n_prompt_full);
    return sp_seq_name(&r->seqs[0], s->prefix, i, s->config.block_tokens, s->scratch);
}

sp_block sp_sched_lend(sp_sched *s) {
    int32_t keep = s->n_running + s->config.n_blocks / LEND_PART;
    return sp_kv_pool_available(s->pool) > keep ? sp_kv_pool_take(s->pool) : SP_BLOCK_NONE;
}

bool sp_sched_name(sp_sched *s, sp_request *r, int32_t i, sp_block b) {
    int32_t B = s->config.block_tokens;
    const sp_kv_hash *name = sp_sched_prompt_name(s, r, i);
    return sp_kv_prefix_add(s->prefix, b, name, r->prompt + (size_t)i * (size_t)B);
}

void sp_sched_share(sp_sched *s, sp_block b) {
    sp_kv_pool_share(s->pool, b);
}
void sp_sched_drop(sp_sched *s, sp_block b) {
    sp_kv_pool_drop(s->pool, b, 0);
}

static void account_hits(sp_sched *s, sp_seq *q, int64_t now_ns) {
    sp_request *r = q->req;
    int32_t hit = q->blocks.n * s->config.block_tokens;
    if (hit > r->n_prompt) hit = r->n_prompt;
    /* What another group computed for it just now was not cached. */
    if (r->moved && hit > r->moved_cached) hit = r->moved_cached;
    if (q->scheduled_ns == 0) {
        q->scheduled_ns = now_ns;
        q->n_computed = r->n_prompt - hit;
    }
    if (r->n_cached >= 0) return;
    r->n_cached = hit;
    if (!s->config.enable_prefix_cache || sp_seq_rows_limit(q) > 0 || r->shadow) return;
    s->stats.prefix_queries += (uint64_t)r->n_prompt;
    s->stats.prefix_hits += (uint64_t)hit;
}

/* ---- planning ---- */

static int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static int32_t tokens_left(const sp_sched *s, const sp_step *st) {
    return s->config.max_batched_tokens - st->wire.n_tokens;
}
static int32_t rows_left(const sp_sched *s, const sp_step *st) {
    return s->config.max_step_rows - st->n_rows;
}

static void put(sp_step *st, sp_seq *q, int32_t n, uint32_t flags, int32_t rows) {
    int32_t at = st->wire.n_entries++;
    st->entries[at] = (sp_wire_entry){.slot = (uint32_t)q->slot,
                                      .generation = q->generation,
                                      .start = q->n_sent,
                                      .n = n,
                                      .flags = flags};
    int32_t fresh = q->blocks.n - q->n_blocks_sent;
    if (fresh > 0) {
        st->deltas[st->wire.n_deltas++] =
            (sp_wire_delta){.entry = (uint32_t)at, .first = q->n_blocks_sent, .count = fresh};
        memcpy(st->blocks + st->wire.n_blocks, q->blocks.ids + q->n_blocks_sent,
               (size_t)fresh * sizeof *st->blocks);
        st->wire.n_blocks += fresh;
        q->n_blocks_sent = q->blocks.n;
    }
    q->n_sent += n;
    q->last_step = st->wire.number;
    if (flags & SP_ENTRY_SAMPLE) q->n_planned++;
    st->wire.n_tokens += n;
    st->n_rows += rows;
}

/* The next piece of a sequence: as much as budget, rows and what is wanted of it allow. */
static bool put_piece(const sp_sched *s, sp_step *st, sp_seq *q) {
    int32_t known = q->state == SP_SEQ_DECODE ? q->n_sent + 1 : sp_seq_known(q);
    int32_t n = min32(known - q->n_sent, tokens_left(s, st)), rows = rows_left(s, st);
    if (n < 1 || rows < 1 || st->blocks_cap - st->wire.n_blocks < q->blocks.n - q->n_blocks_sent)
        return false;
    int32_t limit = sp_seq_rows_limit(q), wanted = 0;
    uint32_t flags = 0;
    if (q->rows_done < limit && q->n_sent < limit) {
        if (q->n_sent < q->rows_done) {
            n = min32(n, q->rows_done - q->n_sent); /* computed again: told already */
        } else {
            bool all = q->req->params.all_logits;
            n = min32(n, all ? min32(rows, ROWS_IN_FLIGHT_MAX / s->config.steps_in_flight) : rows);
            wanted = min32(n, limit - q->n_sent);
            flags = (all ? SP_ENTRY_ROWS : 0u) |
                    (q->choice == 0 && q->req->params.n_prompt_logprobs >= 0 &&
                             q->n_sent < q->req->n_prompt - 1
                         ? SP_ENTRY_PROMPT_LOGPROBS
                         : 0u);
        }
    }
    bool last = q->n_sent + n == known;
    if (last && q->n_planned < q->req->params.max_tokens) {
        flags |= SP_ENTRY_SAMPLE;
        if (wanted < n) wanted++; /* else its row is among those wanted */
    }
    put(st, q, n, flags, wanted);
    return true;
}

static sp_seq *worse(sp_seq *a, sp_seq *b) {
    if (!a || !b) return a ? a : b;
    if (a->paused != b->paused) return a->paused ? a : b;
    return sp_seq_before(a, b) ? b : a;
}

/* Who gives its blocks: one that is paused, else the last in order. */
static sp_seq *victim(const sp_sched *s) {
    sp_seq *v = NULL;
    for (sp_seq *q = s->prefilling.head; q; q = q->next) v = worse(v, q);
    for (sp_seq *q = s->decoding.head; q; q = q->next) v = worse(v, q);
    return v;
}

/* Room for the next position of a decode. Blocks that come free when sent steps retire are counted
 * before anybody is preempted: those who wait for them sit out a step. */
static bool secure(sp_sched *s, sp_seq *q, bool may_preempt) {
    while (q->blocks.n * (int64_t)s->config.block_tokens <= q->n_sent) {
        if (sp_kv_blocks_grow(&q->blocks, s->pool, 1)) continue;
        s->squeezed = true;
        if (sp_kv_pool_fenced(s->pool) > s->n_sitting) {
            s->n_sitting++;
            return false;
        }
        if (!may_preempt) return false;
        sp_seq *v = victim(s);
        preempt(s, v);
        if (v == q) return false;
    }
    return true;
}

/* With a pipeline, the token of a step is known when its successor enters the first stage only if
 * that is a whole round later; sooner, the first stage would stand still until it comes. A sequence
 * that has one token to come may be `forced`: there is nothing better to do, and it is no more ahead
 * than it would be on one stage. */
static bool decode_ready(const sp_sched *s, const sp_seq *q, uint64_t number, bool forced) {
    int32_t to_come = q->n_planned - q->n_output;
    if (q->paused || q->chosen_step == number || q->n_planned >= q->req->params.max_tokens)
        return false;
    return to_come == 0 || number - q->last_step >= (uint64_t)s->config.n_stages ||
           (forced && to_come < 2);
}

/* Chosen first and put into the step afterwards, since a later one's need of a block may preempt an
 * earlier one. Who is chosen goes to the end of the list: everybody has a turn, and those who found
 * no block or no token stay in front. */
static void plan_decodes(sp_sched *s, sp_step *st, int32_t limit, bool may_preempt, bool forced) {
    int32_t n = 0;
    limit = min32(min32(limit, rows_left(s, st)), s->decodes_left);
    s->n_chosen = 0;
    if (limit < 1) return;
    for (sp_seq *q = s->decoding.head; q; q = q->next)
        if (decode_ready(s, q, st->wire.number, forced)) s->chosen[n++] = q;
    for (int32_t i = 0; i < n && s->n_chosen < limit; i++) {
        sp_seq *q = s->chosen[i];
        if (q->state != SP_SEQ_DECODE || !secure(s, q, may_preempt)) continue;
        list_remove(&s->decoding, q);
        list_insert(&s->decoding, s->decoding.tail, q);
        q->chosen_step = st->wire.number;
        s->chosen[s->n_chosen++] = q;
    }
    for (int32_t i = 0; i < s->n_chosen; i++)
        if (s->chosen[i]->state == SP_SEQ_DECODE && put_piece(s, st, s->chosen[i]))
            s->decodes_left--;
}

static void put_prompt_piece(sp_sched *s, sp_step *st, sp_seq *q) {
    int32_t before = st->wire.n_tokens;
    if (!put_piece(s, st, q)) return;
    st->n_prompt_tokens += st->wire.n_tokens - before;
    if (q->n_sent < sp_seq_known(q)) return;
    list_remove(&s->prefilling, q);
    sp_seq_move(q, SP_SEQ_PREFILLED);
    list_insert(&s->decoding, s->decoding.tail, q);
    q->chosen_step = st->wire.number;
}

static void plan_prompts(sp_sched *s, sp_step *st) {
    for (sp_seq *q = s->prefilling.head, *next; q; q = next) {
        next = q->next;
        if (tokens_left(s, st) < 1) return;
        if (!q->paused) put_prompt_piece(s, st, q);
    }
}

static int32_t running_reserve(const sp_sched *s) {
    return min32(s->n_running, s->config.n_blocks / RESERVE_PART + 1);
}

static void take_slot(sp_sched *s, sp_seq *q) {
    q->slot = s->free_slots[--s->n_free_slots];
    slot *x = &s->slots[q->slot];
    x->seq = q;
    q->generation = ++x->generation;
    s->n_running++;
    sp_waitq_remove(&s->waitq, q);
    sp_seq_move(q, SP_SEQ_ADMIT);
    list_insert_ordered(&s->prefilling, q);
}

/* Blocks for every known token, cached ones first. SP_AGAIN: not now. */
static sp_status take_blocks(sp_sched *s, const sp_step *st, sp_seq *q, int64_t now_ns) {
    int32_t B = s->config.block_tokens, available = sp_kv_pool_available(s->pool);
    if (available < q->blocks_short + (q->blocks_short ? running_reserve(s) : 0)) return SP_AGAIN;
    int32_t all = sp_kv_blocks_for(sp_seq_known(q), B);
    if (st->blocks_cap - st->wire.n_blocks < all) return SP_AGAIN;
    SP_TRY(sp_seq_reserve(q, B, NULL));
    adopt_prefix(s, q);
    int32_t need = all - q->blocks.n, left = sp_kv_pool_available(s->pool);
    if (left < need + running_reserve(s)) {
        /* Remembered, so that a long cached prompt is not looked up again at every step. */
        q->blocks_short = need + (available - left);
        sp_kv_blocks_release(&q->blocks, s->pool, 0);
        sp_seq_unreserve(q, q->n_output == 0);
        return SP_AGAIN;
    }
    account_hits(s, q, now_ns);
    q->n_indexed = q->blocks.n;
    q->n_sent = q->blocks.n * B;
    SP_ASSERT(sp_kv_blocks_grow(&q->blocks, s->pool, need));
    return SP_OK;
}

static void preempt_paused(sp_sched *s) {
    if (s->n_paused == 0) return;
    sp_seq *v = victim(s);
    if (v && v->paused) preempt(s, v);
}

static void admit(sp_sched *s, sp_step *st, int64_t now_ns) {
    while (!s->doomed && tokens_left(s, st) > 0 && rows_left(s, st) > 0) {
        sp_seq *q = sp_waitq_top(&s->waitq);
        if (!q) return;
        sp_status got = s->n_free_slots ? take_blocks(s, st, q, now_ns) : SP_AGAIN;
        if (got == SP_AGAIN) {
            preempt_paused(s); /* a slow reader does not keep others out */
            return;
        }
        if (got != SP_OK) {
            q->doom = got;
            s->doomed = q;
            return;
        }
        take_slot(s, q);
        st->admitted[st->n_admitted++] = q;
        put_prompt_piece(s, st, q);
    }
}

/* Tokens of this step kept back from decodes for prompts. */
static int32_t prompt_reserve(sp_sched *s) {
    bool wanted = s->prefilling.n > 0 || (s->waitq.n > 0 && s->n_free_slots > 0);
    if (!wanted) {
        s->credit = 0;
        return 0;
    }
    int64_t budget = s->config.max_batched_tokens;
    s->credit += budget;
    if (s->credit > PREFILL_SHARE * budget) s->credit = PREFILL_SHARE * budget;
    return (int32_t)(s->credit / PREFILL_SHARE);
}

static void step_begin(sp_step *st, uint64_t number) {
    st->wire = (sp_wire_step){
        .number = number, .entries = st->entries, .deltas = st->deltas, .blocks = st->blocks};
    st->n_admitted = st->n_rows = st->n_prompt_tokens = 0;
    st->sent_ns = 0;
}

bool sp_sched_plan(sp_sched *s, uint64_t number, int64_t now_ns, sp_step *st) {
    step_begin(st, number);
    s->squeezed = false;
    s->n_sitting = 0;
    int32_t reserve = prompt_reserve(s), stages = s->config.n_stages;
    s->decodes_left = (s->decoding.n + stages - 1) / stages;
    plan_decodes(s, st, s->config.max_batched_tokens - reserve, true, false);
    plan_prompts(s, st);
    if (!s->squeezed) admit(s, st, now_ns);
    s->credit -= (int64_t)PREFILL_SHARE * st->n_prompt_tokens;
    /* Kept back and not wanted: it does not pile up against the decodes. */
    if (s->credit < 0 || (reserve > 0 && st->n_prompt_tokens == 0)) s->credit = 0;
    /* Decodes take what is left; nobody who is in the step already may lose blocks to them. */
    plan_decodes(s, st, tokens_left(s, st), st->wire.n_entries == 0, false);
    if (st->wire.n_entries == 0 && stages > 1)
        plan_decodes(s, st, s->config.max_batched_tokens, false, true);
    for (int32_t i = 0; i < st->wire.n_entries; i++) {
        sp_seq *q = s->slots[st->entries[i].slot].seq;
        index_blocks(s, q);
        if (q->state == SP_SEQ_DECODE && !q->req->forked && q->choice == q->req->leader)
            fork_brothers(s, q->req);
    }
    SP_DASSERT(sp_sched_check(s));
    return st->wire.n_entries > 0;
}

void sp_sched_retire(sp_sched *s, uint64_t number) {
    sp_kv_pool_retire(s->pool, number);
}

/* ---- what it says of itself ---- */

bool sp_sched_is_starved(const sp_sched *s) {
    const sp_seq *q = sp_waitq_top(&s->waitq);
    return s->n_running == 0 && q && q->blocks_short > sp_kv_pool_available(s->pool) &&
           sp_kv_pool_fenced(s->pool) == 0;
}

int32_t sp_sched_running(const sp_sched *s) {
    return s->n_running;
}
int32_t sp_sched_waiting(const sp_sched *s) {
    return s->n_live - s->n_running;
}
const sp_kv_pool *sp_sched_pool(const sp_sched *s) {
    return s->pool;
}
sp_sched_stats sp_sched_get_stats(const sp_sched *s) {
    return s->stats;
}
const sp_sched_config *sp_sched_get_config(const sp_sched *s) {
    return &s->config;
}

static bool list_check(const sp_sched *s, const seq_list *l, sp_seq_state state) {
    int32_t n = 0;
    /* How many tokens of a sequence may be on their way: with a pipeline never more than two. */
    int32_t ahead = s->config.steps_in_flight;
    if (s->config.n_stages > 1 && ahead <= s->config.n_stages + 1) ahead = min32(ahead, 2);
    const sp_seq *prev = NULL;
    for (const sp_seq *q = l->head; q; prev = q, q = q->next, n++) {
        if (q->n_planned - q->n_output > ahead) return false;
        if (q->prev != prev || q->state != state || n > s->config.max_num_seqs) return false;
        if (!sp_seq_check(q, s->config.block_tokens)) return false;
        if (!sp_kv_blocks_check(&q->blocks, s->pool)) return false;
        if (sp_sched_find(s, (uint32_t)q->slot, q->generation) != q) return false;
        if (state == SP_SEQ_PREFILL && prev && sp_seq_before(q, prev)) return false;
    }
    return l->tail == prev && n == l->n;
}

bool sp_sched_check(const sp_sched *s) {
    if (!sp_kv_pool_check(s->pool) || !sp_kv_prefix_check(s->prefix)) return false;
    if (!sp_waitq_check(&s->waitq)) return false;
    for (int32_t i = 0; i < s->waitq.n; i++)
        if (!sp_seq_check(s->waitq.items[i], s->config.block_tokens)) return false;
    if (!list_check(s, &s->prefilling, SP_SEQ_PREFILL)) return false;
    if (!list_check(s, &s->decoding, SP_SEQ_DECODE)) return false;
    if (s->prefilling.n + s->decoding.n != s->n_running) return false;
    int32_t used = 0;
    for (int32_t i = 0; i < s->config.max_num_seqs; i++) used += s->slots[i].seq != NULL;
    return used == s->n_running && used + s->n_free_slots + s->n_drops == s->config.max_num_seqs;
}
