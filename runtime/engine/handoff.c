#include "runtime/engine/handoff.h"

#include "runtime/engine/wire.h"

static int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

void sp_handoff_init(sp_handoff *h, int32_t first, int32_t n) {
    SP_ASSERT(first >= 0 && n >= first);
    *h = (sp_handoff){.first = first,
                      .n = n,
                      .n_computed = first,
                      .n_sealing = first,
                      .n_sealed = first,
                      .n_pulling = first,
                      .n_pulled = first,
                      .n_settled = first,
                      .n_released = first,
                      .n_good = first,
                      .prefilling = true};
}

void sp_handoff_init_sealed(sp_handoff *h, int32_t first, int32_t n) {
    sp_handoff_init(h, first, n);
    h->n_computed = h->n_sealing = h->n_sealed = h->n_released = n;
    h->prefilling = false;
}

/* Nothing more can arrive: all of it did, or the way is cut, or the source has stopped short. */
static bool is_decided(const sp_handoff *h) {
    if (h->failed || h->n_good == h->n) return true;
    return !h->prefilling && h->n_pulled == h->n_computed;
}

/* Source blocks below this are named by no answer that is still to come. */
static int32_t releasable(const sp_handoff *h) {
    bool waits = !h->expired && (sp_handoff_seals(h) || sp_handoff_pulls(h));
    return h->given && !waits ? h->n_computed : h->n_settled;
}

static sp_handoff_act move_on(const sp_handoff *h) {
    if (!sp_handoff_seals(h) && h->n_computed > h->n_sealing)
        return (sp_handoff_act){SP_HANDOFF_SEAL, h->n_sealing,
                                min32(h->n_computed, h->n_sealing + SP_KV_FRAME_BLOCKS_MAX), 0};
    if (!sp_handoff_pulls(h) && h->n_sealed > h->n_pulling)
        return (sp_handoff_act){SP_HANDOFF_PULL, h->n_pulling,
                                min32(h->n_sealed, h->n_pulling + SP_KV_FRAME_BLOCKS_MAX), 0};
    return (sp_handoff_act){0};
}

sp_handoff_act sp_handoff_next(sp_handoff *h) {
    sp_handoff_act act = {.from = h->n_settled, .to = h->n_pulled, .good = h->n_good};
    if (h->n_settled < h->n_pulled) {
        act.what = SP_HANDOFF_SETTLE;
        h->n_settled = h->n_pulled;
        return act;
    }
    if (!h->given && is_decided(h)) {
        h->given = true;
        act.what = SP_HANDOFF_GIVE;
        return act;
    }
    if (!h->given) {
        act = move_on(h);
        if (act.what != SP_HANDOFF_NOTHING) return act;
    }
    if (h->n_released < releasable(h)) {
        act = (sp_handoff_act){SP_HANDOFF_RELEASE, h->n_released, releasable(h), 0};
        h->n_released = act.to;
        return act;
    }
    if (h->given && h->prefilling) return (sp_handoff_act){.what = SP_HANDOFF_END_PREFILL};
    bool over = h->given && !sp_handoff_seals(h) && !sp_handoff_pulls(h);
    return (sp_handoff_act){.what = over ? SP_HANDOFF_OVER : SP_HANDOFF_NOTHING};
}

void sp_handoff_seal_sent(sp_handoff *h, int32_t to, uint64_t ticket) {
    SP_ASSERT(!sp_handoff_seals(h) && to > h->n_sealing && to <= h->n_computed);
    h->n_sealing = to;
    h->ticket = ticket;
}

void sp_handoff_pull_sent(sp_handoff *h, int32_t to) {
    SP_ASSERT(!sp_handoff_pulls(h) && to <= h->n_sealed);
    if (to <= h->n_pulling) {
        sp_handoff_fail(h, SP_KV_NO_ROOM);
        return;
    }
    h->n_pulling = to;
}

int32_t sp_handoff_computed(sp_handoff *h, int32_t to) {
    int32_t from = h->n_computed;
    to = min32(to, h->n);
    if (h->given || h->failed || !h->prefilling || to <= from) return INT32_MAX;
    h->n_computed = to;
    return from;
}

void sp_handoff_prefill_ended(sp_handoff *h) {
    h->prefilling = false;
    if (h->n_computed < h->n && !h->given) sp_handoff_fail(h, SP_KV_PREFILL_ENDED);
}

void sp_handoff_sealed(sp_handoff *h, uint64_t up_to_ticket) {
    if (sp_handoff_seals(h) && up_to_ticket >= h->ticket) h->n_sealed = h->n_sealing;
}

void sp_handoff_pulled(sp_handoff *h, int32_t good_to, sp_kv_cause why) {
    if (!sp_handoff_pulls(h)) return;
    good_to = min32(good_to, h->n_pulling);
    /* A gap before it: what came now cannot be found. */
    if (h->n_good == h->n_pulled && good_to > h->n_good) h->n_good = good_to;
    h->n_pulled = h->n_pulling;
    if (h->n_good < h->n_pulled) sp_handoff_fail(h, why);
}

void sp_handoff_fail(sp_handoff *h, sp_kv_cause cause) {
    if (h->failed || h->given) return;
    h->failed = true;
    h->cause = cause;
}

/* Frames reach a rank in order: what is freed was sealed before, whether that is answered or not. */
void sp_handoff_expired(sp_handoff *h) {
    h->expired = true;
    h->n_sealing = h->n_sealed;
    sp_handoff_fail(h, SP_KV_EXPIRED);
}

void sp_handoff_gone(sp_handoff *h) {
    h->given = true;
}

void sp_handoff_source_lost(sp_handoff *h) {
    h->prefilling = false;
    h->n_sealing = h->n_sealed; /* nobody will answer: they count as computed, and are let go */
    sp_handoff_fail(h, SP_KV_LOST);
}

void sp_handoff_target_lost(sp_handoff *h) {
    h->given = true;
    if (sp_handoff_pulls(h)) h->n_pulled = h->n_pulling;
}

bool sp_handoff_check(const sp_handoff *h) {
    return h->first <= h->n_released && h->n_settled <= h->n_pulled &&
           h->n_pulled <= h->n_pulling && h->n_pulling <= h->n_sealed &&
           h->n_sealed <= h->n_sealing && h->n_sealing <= h->n_computed && h->n_computed <= h->n &&
           h->n_released <= h->n_computed && h->first <= h->n_good && h->n_good <= h->n_pulled;
}
