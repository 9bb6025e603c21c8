/* runtime/engine/group_figures.h - what one group of ranks does, for readers of its status.
 *
 * Rates are over the last SP_RATE_WINDOW_NS to twice that: of two moments, that far apart or more,
 * the older one is what the totals are compared with, and steps move them on. A group that rests
 * shows a rate that falls as time goes by.
 *
 * Thread: set by the engine's, read by any. */
#pragma once

#include "runtime/engine/stepper.h"

#define SP_RATE_WINDOW_NS ((int64_t)5 * 1000 * 1000 * 1000)

typedef struct sp_rate_moment {
    sp_gauge at_ns, prompt_tokens, generated_tokens;
} sp_rate_moment;

typedef struct sp_group_figures {
    sp_gauge running, waiting, blocks_used, blocks_total, load, prompt_tokens, generated_tokens;
    sp_rate_moment old, young;
} sp_group_figures;

void sp_group_figures_set(sp_group_figures *g, const sp_stepper_figures *f, int64_t now_ns);
/** Fills the figures of a status; the rest is left as it is. */
void sp_group_figures_get(const sp_group_figures *g, int64_t now_ns, sp_engine_group_status *out);
