/* runtime/engine/handoff.h - a prompt computed by one group of ranks for another: the order of things.
 *
 * A pure core: no clock, no link, no pool. Blocks first..n-1 of the prompt move, in order, so each
 * stage of their way is one number:
 *
 *   n_released <= n_settled <= n_pulled <= n_pulling <= n_sealed <= n_sealing <= n_computed <= n
 *
 * At most one seal and one pull are on their way; blocks that fill up meanwhile go with the next:
 * computing, sealing and pulling overlap. The first block that does not arrive ends it, since what
 * comes after it could not be found without it. However it ends, the request goes to the group that
 * decodes, which computes what did not arrive. Blocks on both sides stay held until the answers
 * that name them have come, or those who would answer are gone. Source blocks have a lease besides:
 * when it ends they are let go though somebody may still read them, who then finds them stale;
 * where they were to go stays held, since that may still be written to.
 *
 * Blocks of another pod are computed and sealed from the beginning (sp_handoff_init_sealed()), and
 * held by nobody here.
 *
 * Events may come in any order, twice, late or never; what they cannot mean now changes nothing.
 *
 * Thread: engine. */
#pragma once

#include "runtime/engine/engine.h"

typedef enum sp_handoff_do {
    SP_HANDOFF_NOTHING, /* wait for events */
    SP_HANDOFF_SEAL,    /* blocks from..to: ask; then sp_handoff_seal_sent() */
    SP_HANDOFF_PULL,    /* blocks from..to: ask; then sp_handoff_pull_sent() */
    SP_HANDOFF_SETTLE,  /* from..to were answered: those below `good` arrived; give up the rest */
    SP_HANDOFF_GIVE,    /* the request goes to the group that decodes */
    SP_HANDOFF_END_PREFILL, /* what still computes is to end; then the event */
    SP_HANDOFF_RELEASE,     /* source blocks from..to are not needed any more */
    SP_HANDOFF_OVER,        /* nothing is held, nobody will answer: forget it */
} sp_handoff_do;

typedef struct sp_handoff_act {
    sp_handoff_do what;
    int32_t from, to, good;
} sp_handoff_act;

typedef struct sp_handoff {
    int32_t first, n;
    int32_t n_computed, n_sealing, n_sealed, n_pulling, n_pulled, n_settled, n_released;
    int32_t n_good; /* arrived, from `first` on without a gap */
    uint64_t ticket;
    bool prefilling; /* the source computes */
    bool given;      /* the request has left: given to decode, or ended */
    bool expired;    /* the lease has ended: source blocks wait for nobody */
    bool failed;
    sp_kv_cause cause; /* with failed */
} sp_handoff;

void sp_handoff_init(sp_handoff *h, int32_t first, int32_t n);
/** The blocks are sealed somewhere, and whoever sealed them holds them: only pulls are to be done. */
void sp_handoff_init_sealed(sp_handoff *h, int32_t first, int32_t n);

/** What to do now; asked again until SP_HANDOFF_NOTHING or _OVER. */
sp_handoff_act sp_handoff_next(sp_handoff *h);
/** Blocks up to `to` are being sealed; the answer that covers them is `ticket`. */
void sp_handoff_seal_sent(sp_handoff *h, int32_t to, uint64_t ticket);
/** Blocks up to `to` are being pulled. to <= n_pulling: there was no room, nothing was asked. */
void sp_handoff_pull_sent(sp_handoff *h, int32_t to);

/** The source has computed all blocks below `to`. Returns the first one that is new; the caller
 * takes hold of it and of those after it, up to min(to, n). INT32_MAX: none is wanted. */
int32_t sp_handoff_computed(sp_handoff *h, int32_t to);
void sp_handoff_prefill_ended(sp_handoff *h);
void sp_handoff_sealed(sp_handoff *h, uint64_t up_to_ticket);
/** The pull on its way is answered: all its blocks below `good_to` arrived; `why` the next did not. */
void sp_handoff_pulled(sp_handoff *h, int32_t good_to, sp_kv_cause why);
void sp_handoff_fail(sp_handoff *h, sp_kv_cause cause); /* late: do not wait for it any more */
/** The lease has ended: the request goes on, source blocks are let go, answers may still come. */
void sp_handoff_expired(sp_handoff *h);
void sp_handoff_gone(sp_handoff *h);        /* the request has ended */
void sp_handoff_source_lost(sp_handoff *h); /* nobody there answers any more */
void sp_handoff_target_lost(sp_handoff *h);

static inline bool sp_handoff_seals(const sp_handoff *h) {
    return h->n_sealing > h->n_sealed;
}
static inline bool sp_handoff_pulls(const sp_handoff *h) {
    return h->n_pulling > h->n_pulled;
}
bool sp_handoff_check(const sp_handoff *h);
