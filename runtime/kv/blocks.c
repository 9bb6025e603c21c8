#include "runtime/kv/blocks.h"

#include "runtime/base/mem.h"

sp_status sp_kv_blocks_init(sp_kv_blocks *t, int32_t cap, sp_err *err) {
    SP_ASSERT(cap >= 0);
    sp_block *ids = sp_try_alloc_array((size_t)cap, sizeof *ids);
    if (!ids) return SP_FAIL(err, SP_E_NOMEM, "no memory for a table of %d kv blocks", cap);
    *t = (sp_kv_blocks){.ids = ids, .cap = cap};
    return SP_OK;
}

void sp_kv_blocks_fini(sp_kv_blocks *t) {
    SP_ASSERT(t->n == 0);
    sp_free(t->ids);
    *t = (sp_kv_blocks){0};
}

void sp_kv_blocks_adopt(sp_kv_blocks *t, sp_kv_pool *pool, sp_block b) {
    SP_ASSERT(t->n < t->cap);
    sp_kv_pool_share(pool, b);
    t->ids[t->n++] = b;
}

bool sp_kv_blocks_grow(sp_kv_blocks *t, sp_kv_pool *pool, int32_t n) {
    SP_ASSERT(n >= 0 && n <= t->cap - t->n);
    if (sp_kv_pool_available(pool) < n) return false;
    for (int32_t i = 0; i < n; i++) t->ids[t->n++] = sp_kv_pool_take(pool);
    return true;
}

void sp_kv_blocks_release(sp_kv_blocks *t, sp_kv_pool *pool, uint64_t last_step) {
    while (t->n > 0) sp_kv_pool_drop(pool, t->ids[--t->n], last_step);
}

bool sp_kv_blocks_check(const sp_kv_blocks *t, const sp_kv_pool *pool) {
    if (t->n < 0 || t->n > t->cap || (t->cap > 0 && !t->ids)) return false;
    for (int32_t i = 0; i < t->n; i++)
        if (!sp_kv_pool_is_held(pool, t->ids[i])) return false;
    return true;
}
