#include "runtime/engine/seq.h"

#include "runtime/base/mem.h"

#include <string.h>

/* One row a state, one column an event; COUNT: cannot be. */
#define NO SP_SEQ_STATE_COUNT
static const sp_seq_state next_state[SP_SEQ_STATE_COUNT][SP_SEQ_EVENT_COUNT] = {
    /* ADMIT, PREFILLED, PREEMPT, PARK, RESUME, FORK, END */
    [SP_SEQ_HELD] = {NO, NO, NO, NO, NO, SP_SEQ_WAITING, SP_SEQ_DONE},
    [SP_SEQ_WAITING] = {SP_SEQ_PREFILL, NO, NO, SP_SEQ_PARKED, NO, NO, SP_SEQ_DONE},
    [SP_SEQ_PARKED] = {NO, NO, NO, NO, SP_SEQ_WAITING, NO, SP_SEQ_DONE},
    [SP_SEQ_PREFILL] = {NO, SP_SEQ_DECODE, SP_SEQ_WAITING, NO, NO, NO, SP_SEQ_DONE},
    [SP_SEQ_DECODE] = {NO, NO, SP_SEQ_WAITING, NO, NO, NO, SP_SEQ_DONE},
    [SP_SEQ_DONE] = {NO, NO, NO, NO, NO, NO, NO},
};

static const char *const state_names[] = {
#define X(name) #name,
    SP_SEQ_STATES(X)
#undef X
};

const char *sp_seq_state_name(sp_seq_state st) {
    return st < SP_SEQ_STATE_COUNT ? state_names[st] : "?";
}

void sp_seq_move(sp_seq *s, sp_seq_event ev) {
    sp_seq_state to = next_state[s->state][ev];
    SP_ASSERT(to != NO);
    s->state = to;
}

/* ---- a request in one piece ---- */

typedef struct carver {
    unsigned char *base; /* NULL while only counting */
    size_t used;
    bool overflow;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 64 ||
        __builtin_add_overflow(c->used, (bytes + 15) & ~(size_t)15, &end)) {
        c->overflow = true;
        return NULL;
    }
    void *p = c->base ? c->base + c->used : NULL;
    c->used = end;
    return p;
}

static const void *carve_copy(carver *c, const void *from, int32_t count, size_t size) {
    if (!from) return NULL;
    void *p = carve(c, (size_t)count, size);
    if (p) memcpy(p, from, (size_t)count * size);
    return p;
}

/* Of the handle no more than the prompt has blocks. */
static const sp_kv_import *carve_import(carver *c, const sp_kv_import *from, int32_t n_blocks) {
    const sp_kv_handle *h = from->handle;
    if (h->n_blocks < n_blocks) n_blocks = h->n_blocks;
    sp_kv_import *to = carve(c, 1, sizeof *to);
    char *text = carve(c, from->source.len, 1);
    size_t blocks = (size_t)n_blocks * sizeof h->blocks[0];
    sp_kv_handle *handle = carve(c, 1, sizeof *handle + blocks);
    if (!to) return NULL;
    *to = *from;
    memcpy(text, from->source.ptr, from->source.len);
    to->source.ptr = text;
    memcpy(handle, h, sizeof *h + blocks);
    handle->n_blocks = n_blocks;
    to->handle = handle;
    return to;
}

/* Run twice: once to count the bytes, once to fill them. */
static sp_request *lay_out(carver *c, const sp_engine_request *req, int32_t block_tokens) {
    const sp_gen_params *p = req->params;
    sp_request head = {.params = *p};
    void *r = carve(c, 1, sizeof head + (size_t)p->n * sizeof(sp_seq));
    head.params.stop_ids = carve_copy(c, p->stop_ids, p->n_stop_ids, sizeof(int32_t));
    head.params.logit_bias = carve_copy(c, p->logit_bias, p->n_logit_bias, sizeof(sp_logit_bias));
    head.params.allowed_ids = carve_copy(c, p->allowed_ids, p->n_allowed_ids, sizeof(int32_t));
    head.params.bad_words = carve_copy(c, p->bad_words, p->n_bad_words_ints, sizeof(int32_t));
    head.prompt = (int32_t *)carve_copy(c, req->prompt, req->n_prompt, sizeof(int32_t));
    head.n_prompt_full = req->n_prompt / block_tokens;
    head.names = carve(c, (size_t)head.n_prompt_full, sizeof *head.names);
    if (req->kv_from) head.import = carve_import(c, req->kv_from, head.n_prompt_full);
    size_t salt = req->cache_salt ? strlen(req->cache_salt) + 1 : 0;
    head.salt = carve(c, salt, 1);
    if (!r) return NULL;
    if (salt)
        memcpy(head.salt, req->cache_salt, salt);
    else
        head.salt = NULL;
    memcpy(r, &head, sizeof head);
    return r;
}

sp_status sp_request_create(sp_request **out, const sp_engine_request *req, int32_t max_tokens,
                            int32_t block_tokens, sp_err *err) {
    carver c = {0};
    (void)lay_out(&c, req, block_tokens);
    if (!c.overflow) c.base = sp_try_alloc(c.used);
    if (!c.base)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for a request of %d tokens", req->n_prompt);
    c.used = 0;
    sp_request *r = lay_out(&c, req, block_tokens);
    r->user = req->user;
    r->n_prompt = req->n_prompt;
    r->params.max_tokens = max_tokens;
    r->priority = req->priority;
    r->deadline_ns = req->deadline_ns;
    r->keep_kv = req->keep_kv;
    r->n_live = r->params.n;
    r->n_cached = -1;
    r->ticket = -1;
    for (int32_t i = 0; i < r->params.n; i++)
        r->seqs[i] = (sp_seq){.req = r,
                              .choice = i,
                              .state = i == 0 ? SP_SEQ_WAITING : SP_SEQ_HELD,
                              .slot = -1,
                              .heap_at = -1};
    *out = r;
    return SP_OK;
}

void sp_request_destroy(sp_request *r) {
    if (!r) return;
    for (int32_t i = 0; i < r->params.n; i++) {
        sp_seq_unreserve(&r->seqs[i], true);
        sp_free(r->seqs[i].row);
    }
    for (int32_t i = 0; r->prompt_logprobs && i < r->n_prompt; i++) sp_free(r->prompt_logprobs[i]);
    sp_free(r->prompt_logprobs);
    sp_free(r);
}

sp_status sp_seq_reserve(sp_seq *s, int32_t block_tokens, sp_err *err) {
    int32_t n_blocks = sp_kv_blocks_for(sp_seq_positions_max(s), block_tokens);
    SP_TRY(sp_kv_blocks_init(&s->blocks, n_blocks, err));
    int32_t own = n_blocks - s->req->n_prompt_full;
    s->names = sp_try_alloc_array((size_t)(own > 0 ? own : 0), sizeof *s->names);
    if (!s->output)
        s->output = sp_try_alloc_array((size_t)s->req->params.max_tokens, sizeof *s->output);
    if (s->names && s->output) return SP_OK;
    sp_seq_unreserve(s, s->n_output == 0);
    return SP_FAIL(err, SP_E_NOMEM, "no memory for a sequence of %d positions",
                   sp_seq_positions_max(s));
}

void sp_seq_unreserve(sp_seq *s, bool all) {
    sp_kv_blocks_fini(&s->blocks);
    sp_free(s->names);
    s->names = NULL;
    s->n_named = 0;
    if (!all) return;
    sp_free(s->output);
    s->output = NULL;
}

int32_t sp_seq_rows_limit(const sp_seq *s) {
    const sp_request *r = s->req;
    if (r->params.all_logits) return INT32_MAX;
    /* A position's row tells about the token after it, so the prompt's last row is not asked. */
    return r->params.n_prompt_logprobs >= 0 && s->choice == 0 ? r->n_prompt - 1 : 0;
}

const int32_t *sp_seq_tokens(const sp_seq *s, int32_t from, int32_t n, int32_t *scratch) {
    int32_t n_prompt = s->req->n_prompt;
    SP_ASSERT(from >= 0 && n >= 0 && from + n <= sp_seq_known(s));
    if (from + n <= n_prompt) return s->req->prompt + from;
    if (from >= n_prompt) return s->output + (from - n_prompt);
    int32_t first = n_prompt - from;
    memcpy(scratch, s->req->prompt + from, (size_t)first * sizeof *scratch);
    memcpy(scratch + first, s->output, (size_t)(n - first) * sizeof *scratch);
    return scratch;
}

static sp_kv_hash *name_place(const sp_seq *s, int32_t i) {
    int32_t full = s->req->n_prompt_full;
    return i < full ? &s->req->names[i] : &s->names[i - full];
}

const sp_kv_hash *sp_seq_name(sp_seq *s, sp_kv_prefix *x, int32_t i, int32_t block_tokens,
                              int32_t *scratch) {
    sp_request *r = s->req;
    if (!r->has_root) {
        /* With the cache off, choices of one request still share its prompt, and nobody else. */
        const void *salt = r->private_root ? (const void *)&r->id : r->salt;
        size_t bytes = r->private_root ? sizeof r->id : r->salt ? strlen(r->salt) : 0;
        sp_kv_prefix_root(x, salt, bytes, &r->root);
        r->has_root = true;
    }
    if (s->n_named < r->n_named) s->n_named = r->n_named;
    for (; s->n_named <= i; s->n_named++) {
        const sp_kv_hash *parent = s->n_named ? name_place(s, s->n_named - 1) : &r->root;
        const int32_t *tokens = sp_seq_tokens(s, s->n_named * block_tokens, block_tokens, scratch);
        sp_kv_prefix_next(x, parent, tokens, name_place(s, s->n_named));
        if (s->n_named < r->n_prompt_full) r->n_named = s->n_named + 1;
    }
    return name_place(s, i);
}

bool sp_seq_before(const sp_seq *a, const sp_seq *b) {
    if (a->req->priority != b->req->priority) return a->req->priority < b->req->priority;
    if (a->req->order != b->req->order) return a->req->order < b->req->order;
    return a->choice < b->choice;
}

bool sp_seq_check(const sp_seq *s, int32_t block_tokens) {
    if (s->n_output < 0 || s->n_output > s->n_planned || s->n_planned > s->req->params.max_tokens)
        return false;
    if (!sp_seq_runs(s)) {
        if (s->slot >= 0 || s->blocks.n || s->n_sent || s->n_planned != s->n_output) return false;
        return (s->state == SP_SEQ_WAITING) == (s->heap_at >= 0);
    }
    if (s->slot < 0 || s->heap_at >= 0 || s->n_blocks_sent > s->blocks.n) return false;
    if ((int64_t)s->blocks.n * block_tokens < s->n_sent) return false;
    int32_t planned_end = s->req->n_prompt + s->n_planned;
    if (s->state == SP_SEQ_PREFILL) return s->n_sent < sp_seq_known(s);
    /* Every token but the newest one planned was sent; with max_tokens 0, every one. */
    return s->n_sent == planned_end - (s->n_planned > 0);
}

/* ---- those that wait ---- */

static void place(sp_waitq *q, int32_t at, sp_seq *s) {
    q->items[at] = s;
    s->heap_at = at;
}

static void sift(sp_waitq *q, int32_t at) {
    sp_seq *s = q->items[at];
    while (at > 0 && sp_seq_before(s, q->items[(at - 1) / 2])) {
        place(q, at, q->items[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (int32_t child; (child = 2 * at + 1) < q->n; at = child) {
        if (child + 1 < q->n && sp_seq_before(q->items[child + 1], q->items[child])) child++;
        if (!sp_seq_before(q->items[child], s)) break;
        place(q, at, q->items[child]);
    }
    place(q, at, s);
}

sp_status sp_waitq_reserve(sp_waitq *q, int32_t n, sp_err *err) {
    if (n <= q->cap) return SP_OK;
    int32_t cap = n < 1 << 29 ? n * 2 : n;
    sp_seq **items = sp_try_realloc(q->items, (size_t)cap * sizeof(sp_seq *));
    if (!items) return SP_FAIL(err, SP_E_NOMEM, "no memory for a queue of %d", cap);
    q->items = items;
    q->cap = cap;
    return SP_OK;
}

void sp_waitq_fini(sp_waitq *q) {
    sp_free(q->items);
    *q = (sp_waitq){0};
}

void sp_waitq_push(sp_waitq *q, sp_seq *s) {
    SP_ASSERT(q->n < q->cap && s->heap_at < 0);
    place(q, q->n++, s);
    sift(q, s->heap_at);
}

void sp_waitq_remove(sp_waitq *q, sp_seq *s) {
    int32_t at = s->heap_at;
    SP_ASSERT(at >= 0 && at < q->n && q->items[at] == s);
    s->heap_at = -1;
    sp_seq *last = q->items[--q->n];
    if (last == s) return;
    place(q, at, last);
    sift(q, at);
}

sp_seq *sp_waitq_top(const sp_waitq *q) {
    return q->n ? q->items[0] : NULL;
}

bool sp_waitq_check(const sp_waitq *q) {
    for (int32_t i = 0; i < q->n; i++) {
        if (q->items[i]->heap_at != i || q->items[i]->state != SP_SEQ_WAITING) return false;
        if (i > 0 && sp_seq_before(q->items[i], q->items[(i - 1) / 2])) return false;
    }
    return true;
}
