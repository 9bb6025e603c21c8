#include "runtime/kv/pool.h"

#include "runtime/base/mem.h"

/* The places a block can be in. All but HELD are doubly linked lists threaded through prev/next,
 * with the list's own node after the blocks: moving a block is a constant number of stores. */
enum {
    LIST_FREE,
    LIST_IDLE,
    LIST_FENCED, /* one list for each step that may be in flight, by step modulo */
    LIST_COUNT = LIST_FENCED + SP_KV_STEPS_MAX,
    HELD = LIST_COUNT,
};

struct sp_kv_pool {
    int32_t n_blocks;
    int32_t count[LIST_COUNT];
    int32_t n_fenced;
    uint64_t retired;
    sp_kv_evict_fn evict;
    void *evict_ctx;
    int32_t *refs;
    uint64_t *fence; /* last step that names it */
    int32_t *prev, *next;
    uint8_t *where;
    bool *kept;
};

static void list_remove(sp_kv_pool *p, sp_block b) {
    p->next[p->prev[b]] = p->next[b];
    p->prev[p->next[b]] = p->prev[b];
    p->count[p->where[b]]--;
    if (p->where[b] >= LIST_FENCED) p->n_fenced--;
    p->where[b] = HELD;
}

static void list_append(sp_kv_pool *p, int list, sp_block b) {
    int32_t node = p->n_blocks + list;
    p->prev[b] = p->prev[node];
    p->next[b] = node;
    p->next[p->prev[node]] = b;
    p->prev[node] = b;
    p->where[b] = (uint8_t)list;
    p->count[list]++;
    if (list >= LIST_FENCED) p->n_fenced++;
}

static sp_block list_first(const sp_kv_pool *p, int list) {
    sp_block b = p->next[p->n_blocks + list];
    return b < p->n_blocks ? b : SP_BLOCK_NONE;
}

sp_status sp_kv_pool_create(sp_kv_pool **out, int32_t n_blocks, sp_err *err) {
    SP_ASSERT(out);
    if (n_blocks < 1 || n_blocks > SP_KV_BLOCKS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "kv pool of %d blocks, want 1..%d", n_blocks,
                       SP_KV_BLOCKS_MAX);
    sp_kv_pool *p = sp_alloc(sizeof *p);
    size_t n = (size_t)n_blocks, nodes = n + LIST_COUNT;
    p->n_blocks = n_blocks;
    p->refs = sp_try_alloc_array(n, sizeof *p->refs);
    p->fence = sp_try_alloc_array(n, sizeof *p->fence);
    p->prev = sp_try_alloc_array(nodes, sizeof *p->prev);
    p->next = sp_try_alloc_array(nodes, sizeof *p->next);
    p->where = sp_try_alloc_array(n, sizeof *p->where);
    p->kept = sp_try_alloc_array(n, sizeof *p->kept);
    if (!p->refs || !p->fence || !p->prev || !p->next || !p->where || !p->kept) {
        sp_kv_pool_destroy(p);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for the books of %d kv blocks", n_blocks);
    }
    for (int32_t l = 0; l < LIST_COUNT; l++)
        p->prev[n_blocks + l] = p->next[n_blocks + l] = n_blocks + l;
    /* Ascending, so that block 0 is handed out first: traces stay readable. */
    for (sp_block b = 0; b < n_blocks; b++) list_append(p, LIST_FREE, b);
    *out = p;
    return SP_OK;
}

void sp_kv_pool_destroy(sp_kv_pool *p) {
    if (!p) return;
    sp_free(p->kept);
    sp_free(p->where);
    sp_free(p->next);
    sp_free(p->prev);
    sp_free(p->fence);
    sp_free(p->refs);
    sp_free(p);
}

void sp_kv_pool_on_evict(sp_kv_pool *p, sp_kv_evict_fn fn, void *ctx) {
    p->evict = fn;
    p->evict_ctx = ctx;
}

sp_block sp_kv_pool_take(sp_kv_pool *p) {
    sp_block b = list_first(p, LIST_FREE);
    if (b == SP_BLOCK_NONE) {
        b = list_first(p, LIST_IDLE);
        if (b == SP_BLOCK_NONE) return SP_BLOCK_NONE;
        p->kept[b] = false;
        if (p->evict) p->evict(p->evict_ctx, b);
    }
    SP_DASSERT(p->fence[b] <= p->retired);
    list_remove(p, b);
    p->refs[b] = 1;
    return b;
}

void sp_kv_pool_share(sp_kv_pool *p, sp_block b) {
    SP_ASSERT(b >= 0 && b < p->n_blocks);
    if (p->where[b] != HELD) {
        SP_ASSERT(p->kept[b]);
        list_remove(p, b);
    }
    p->refs[b]++;
}

static void settle(sp_kv_pool *p, sp_block b) {
    if (p->fence[b] > p->retired) {
        SP_ASSERT(p->fence[b] - p->retired <= SP_KV_STEPS_MAX);
        list_append(p, LIST_FENCED + (int)(p->fence[b] % SP_KV_STEPS_MAX), b);
        return;
    }
    list_append(p, p->kept[b] ? LIST_IDLE : LIST_FREE, b);
}

void sp_kv_pool_drop(sp_kv_pool *p, sp_block b, uint64_t last_step) {
    SP_ASSERT(b >= 0 && b < p->n_blocks && p->refs[b] > 0);
    if (last_step > p->fence[b]) p->fence[b] = last_step;
    if (--p->refs[b] == 0) settle(p, b);
}

void sp_kv_pool_keep(sp_kv_pool *p, sp_block b) {
    SP_ASSERT(b >= 0 && b < p->n_blocks && p->refs[b] > 0);
    p->kept[b] = true;
}

void sp_kv_pool_retire(sp_kv_pool *p, uint64_t step) {
    while (p->retired < step) {
        p->retired++;
        int list = LIST_FENCED + (int)(p->retired % SP_KV_STEPS_MAX);
        for (sp_block b; (b = list_first(p, list)) != SP_BLOCK_NONE;) {
            list_remove(p, b);
            settle(p, b);
        }
    }
}

int32_t sp_kv_pool_count(const sp_kv_pool *p) {
    return p->n_blocks;
}
int32_t sp_kv_pool_idle(const sp_kv_pool *p) {
    return p->count[LIST_IDLE];
}
int32_t sp_kv_pool_fenced(const sp_kv_pool *p) {
    return p->n_fenced;
}

int32_t sp_kv_pool_available(const sp_kv_pool *p) {
    return p->count[LIST_FREE] + p->count[LIST_IDLE];
}

int32_t sp_kv_pool_held(const sp_kv_pool *p) {
    return p->n_blocks - sp_kv_pool_available(p) - p->n_fenced;
}

bool sp_kv_pool_is_held(const sp_kv_pool *p, sp_block b) {
    return b >= 0 && b < p->n_blocks && p->where[b] == HELD;
}

static bool list_check(const sp_kv_pool *p, int list) {
    int32_t n = 0, node = p->n_blocks + list;
    for (int32_t b = p->next[node]; b != node; b = p->next[b]) {
        if (b < 0 || b >= p->n_blocks || p->where[b] != list) return false;
        if (p->prev[p->next[b]] != b || p->refs[b] != 0 || ++n > p->n_blocks) return false;
        bool fenced = list >= LIST_FENCED;
        if (fenced != (p->fence[b] > p->retired)) return false;
        if (!fenced && p->kept[b] != (list == LIST_IDLE)) return false;
    }
    return n == p->count[list];
}

bool sp_kv_pool_check(const sp_kv_pool *p) {
    int32_t listed = 0, fenced = 0, held = 0;
    for (int l = 0; l < LIST_COUNT; l++) {
        if (!list_check(p, l)) return false;
        listed += p->count[l];
        if (l >= LIST_FENCED) fenced += p->count[l];
    }
    for (sp_block b = 0; b < p->n_blocks; b++) {
        if ((p->where[b] == HELD) != (p->refs[b] > 0)) return false;
        held += p->where[b] == HELD;
    }
    return fenced == p->n_fenced && held + listed == p->n_blocks;
}
