#include "runtime/engine/group_figures.h"

#include "runtime/base/clock.h"

static void begin(sp_rate_moment *m, const sp_stepper_figures *f, int64_t now_ns) {
    sp_gauge_set(&m->prompt_tokens, f->prompt_tokens);
    sp_gauge_set(&m->generated_tokens, f->generated_tokens);
    sp_gauge_set(&m->at_ns, now_ns);
}

static void copy(sp_rate_moment *to, const sp_rate_moment *from) {
    sp_gauge_set(&to->prompt_tokens, sp_gauge_get(&from->prompt_tokens));
    sp_gauge_set(&to->generated_tokens, sp_gauge_get(&from->generated_tokens));
    sp_gauge_set(&to->at_ns, sp_gauge_get(&from->at_ns));
}

void sp_group_figures_set(sp_group_figures *g, const sp_stepper_figures *f, int64_t now_ns) {
    /* Before the totals: what this step gave is of the time from now on. */
    if (now_ns - sp_gauge_get(&g->young.at_ns) >= SP_RATE_WINDOW_NS) {
        const sp_stepper_figures before = {.prompt_tokens = sp_gauge_get(&g->prompt_tokens),
                                           .generated_tokens = sp_gauge_get(&g->generated_tokens)};
        copy(&g->old, &g->young);
        begin(&g->young, &before, now_ns);
    }
    sp_gauge_set(&g->running, f->running);
    sp_gauge_set(&g->waiting, f->waiting);
    sp_gauge_set(&g->blocks_used, f->blocks_used);
    sp_gauge_set(&g->blocks_total, f->blocks_total);
    sp_gauge_set(&g->load, f->load);
    sp_gauge_set(&g->prompt_tokens, f->prompt_tokens);
    sp_gauge_set(&g->generated_tokens, f->generated_tokens);
}

/* The moment that is at least a window ago and, when steps go on, not much more. */
static const sp_rate_moment *since(const sp_group_figures *g, int64_t now_ns) {
    const bool is_young = now_ns - sp_gauge_get(&g->young.at_ns) < SP_RATE_WINDOW_NS;
    return is_young && sp_gauge_get(&g->old.at_ns) ? &g->old : &g->young;
}

static double rate(int64_t n, int64_t ns) {
    return n > 0 && ns > 0 ? (double)n * SP_NS_PER_S / (double)ns : 0;
}

void sp_group_figures_get(const sp_group_figures *g, int64_t now_ns, sp_engine_group_status *out) {
    const sp_rate_moment *m = since(g, now_ns);
    const int64_t ns = now_ns - sp_gauge_get(&m->at_ns);
    out->running = (int32_t)sp_gauge_get(&g->running);
    out->waiting = (int32_t)sp_gauge_get(&g->waiting);
    out->blocks_used = (int32_t)sp_gauge_get(&g->blocks_used);
    out->blocks_total = (int32_t)sp_gauge_get(&g->blocks_total);
    out->load_tokens = sp_gauge_get(&g->load);
    out->prompt_tokens = sp_gauge_get(&g->prompt_tokens);
    out->generated_tokens = sp_gauge_get(&g->generated_tokens);
    out->prompt_tokens_per_s = rate(out->prompt_tokens - sp_gauge_get(&m->prompt_tokens), ns);
    out->generated_tokens_per_s =
        rate(out->generated_tokens - sp_gauge_get(&m->generated_tokens), ns);
}
