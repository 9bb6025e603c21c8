/* runtime/gen/filter.h - which tokens min_p, top_k and top_p leave.
 *
 * Each of them keeps a beginning of the order (logit descending, id ascending), so what they leave
 * together is one too, and is told by its last token:
 *
 *   min_p  logit >= max + T log(min_p), which is p >= min_p max(p)
 *   top_k  logit >= the k-th largest of those: ties with it survive
 *   top_p  of those, in order, as long as the mass before a token is below top_p of their mass;
 *          the first always. A token's mass is e^((logit - max) / T) in f32, their sum is
 *          sp_row_mass(), the mass before a token is added up in order in f64.
 *
 * Thread: any; scratch belongs to one thread at a time. */
#pragma once

#include "runtime/gen/row.h"

typedef struct sp_filter_entry {
    float logit;
    int32_t id;
} sp_filter_entry;

typedef struct sp_cut { /* the last token that survives; its logit is finite */
    float logit;
    int32_t id; /* INT32_MAX: all of that logit */
} sp_cut;

static inline bool sp_cut_keeps(sp_cut c, float logit, int32_t id) {
    return logit > c.logit || (logit == c.logit && id <= c.id);
}

/** `scratch` has room for n_vocab entries. The row is sound. */
sp_cut sp_filter(const sp_row *r, const sp_gen_params *p, sp_filter_entry *scratch);
