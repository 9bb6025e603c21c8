#include "runtime/engine/dispatch.h"

/* Of groups that prefill only, or of those that may decode. */
static int32_t pick(const sp_dispatch_group *g, int32_t n, bool prefill) {
    int32_t idle = -1, warm = -1;
    for (int32_t i = 0; i < n; i++) {
        if ((g[i].role == SP_POOL_PREFILL) != prefill) continue;
        if (idle < 0 || g[i].load < g[idle].load) idle = i;
        if (warm < 0 || g[i].cached > g[warm].cached ||
            (g[i].cached == g[warm].cached && g[i].load < g[warm].load))
            warm = i;
    }
    if (idle < 0 || idle == warm) return idle;
    int64_t busier = g[warm].load - g[idle].load, saved = g[warm].cached - g[idle].cached;
    int64_t usual = g[idle].load > SP_DISPATCH_SLACK ? g[idle].load : SP_DISPATCH_SLACK;
    return busier > saved + usual ? idle : warm;
}

sp_dispatch_choice sp_dispatch(const sp_dispatch_group *g, int32_t n, int32_t n_prefill,
                               int32_t threshold) {
    sp_dispatch_choice c = {.decode = pick(g, n, false), .prefill = -1};
    if (c.decode >= 0 && n_prefill > 0 && n_prefill - g[c.decode].cached > threshold)
        c.prefill = pick(g, n, true);
    return c;
}

bool sp_dispatch_can_decode(const sp_pool_role *roles, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (roles[i] != SP_POOL_PREFILL) return true;
    return false;
}
