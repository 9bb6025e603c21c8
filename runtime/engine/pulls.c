#include "runtime/engine/pulls.h"

#include "comm/kvx.h"
#include "runtime/base/mem.h"

#include <string.h>

sp_status sp_pull_init(sp_pull *p, int32_t n_max, int32_t n_links, sp_err *err) {
    sp_pull made = {.n_links = n_links};
    made.outcome = sp_try_alloc_array((size_t)n_max, sizeof *made.outcome);
    made.answered = sp_try_alloc_array((size_t)n_links, sizeof *made.answered);
    if (!made.outcome || !made.answered) {
        sp_pull_fini(&made);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for a pull of %d blocks", n_max);
    }
    *p = made;
    return SP_OK;
}

void sp_pull_fini(sp_pull *p) {
    sp_free(p->answered);
    sp_free(p->outcome);
    *p = (sp_pull){0};
}

void sp_pull_begin(sp_pull *p, uint64_t transfer, int32_t n, int64_t now_ns) {
    p->transfer = transfer;
    p->n = n;
    p->n_answered = 0;
    p->sent_ns = p->sign_ns = now_ns;
    memset(p->outcome, 0, (size_t)n * sizeof *p->outcome);
    memset(p->answered, 0, (size_t)p->n_links * sizeof *p->answered);
}

sp_status sp_pull_take(sp_pull *p, int32_t at, const sp_wire_kv_pulled *w, int64_t now_ns,
                       sp_err *err) {
    if (p->answered[at] || w->n != p->n)
        return SP_FAIL(err, SP_E_PROTOCOL, "it pulled %d blocks %s, want %d once", w->n,
                       p->answered[at] ? "again" : "", p->n);
    for (int32_t i = 0; i < w->n; i++)
        if (w->outcomes[i] >= SP_KVX_FAULT_COUNT)
            return SP_FAIL(err, SP_E_PROTOCOL, "it pulled a block with outcome %u, want 0..%d",
                           w->outcomes[i], SP_KVX_FAULT_COUNT - 1);
    for (int32_t i = 0; i < w->n; i++)
        if (p->outcome[i] == 0) p->outcome[i] = w->outcomes[i];
    p->answered[at] = true;
    p->n_answered++;
    p->sign_ns = now_ns;
    return SP_OK;
}

int32_t sp_pull_good(const sp_pull *p) {
    int32_t good = 0;
    while (good < p->n && p->outcome[good] == 0) good++;
    return good;
}
