/* runtime/engine/pulls.h - one KV_PULL on its way: which ranks have answered, and what they said.
 *
 * A block has arrived when every rank of the group that pulls says so; else it is the first fault
 * that was said of it.
 *
 * Thread: engine. */
#pragma once

#include "runtime/engine/wire.h"

typedef struct sp_pull {
    uint64_t transfer; /* of the last one asked; 0: none was */
    int32_t n;         /* blocks of it */
    int32_t n_links, n_answered;
    uint32_t *outcome;        /* [n_max] */
    bool *answered;           /* [n_links] */
    int64_t sent_ns, sign_ns; /* sign: the last one of life */
} sp_pull;

/** Room for pulls of at most `n_max` blocks by `n_links` ranks.
 * Owner: caller, sp_pull_fini(). Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_pull_init(sp_pull *p, int32_t n_max, int32_t n_links, sp_err *err);
void sp_pull_fini(sp_pull *p);

void sp_pull_begin(sp_pull *p, uint64_t transfer, int32_t n, int64_t now_ns);
/** The answer of rank `at`. Errors: SP_E_PROTOCOL it answered already, or says what cannot be. */
SP_NODISCARD sp_status sp_pull_take(sp_pull *p, int32_t at, const sp_wire_kv_pulled *w,
                                    int64_t now_ns, sp_err *err);
static inline bool sp_pull_is_answered(const sp_pull *p) {
    return p->n_answered == p->n_links;
}
/** Blocks from the first on that arrived without a gap. */
int32_t sp_pull_good(const sp_pull *p);
