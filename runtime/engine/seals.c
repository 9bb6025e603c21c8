#include "runtime/engine/seals.h"

#include "runtime/base/mem.h"

typedef struct sealed_block {
    uint64_t ticket; /* the seal that covers it */
    uint32_t generation, holders;
} sealed_block;

struct sp_seals {
    sp_seals_config config;
    sealed_block *blocks; /* [n_blocks] */
    uint64_t *answered;   /* [n_links] last ticket that each answered: in order */
    uint64_t asked, sealed;
    uint32_t generation;
    int32_t n_held;
    sp_wire_kv_block frame[SP_KV_FRAME_BLOCKS_MAX]; /* at hand */
};

sp_status sp_seals_create(sp_seals **out, const sp_seals_config *config, sp_err *err) {
    sp_seals *s = sp_try_alloc(sizeof *s);
    if (s) {
        s->config = *config;
        s->blocks = sp_try_alloc_array((size_t)config->n_blocks, sizeof *s->blocks);
        s->answered = sp_try_alloc_array((size_t)config->n_links, sizeof *s->answered);
    }
    if (!s || !s->blocks || !s->answered) {
        sp_seals_destroy(s);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for the seals of %d blocks", config->n_blocks);
    }
    *out = s;
    return SP_OK;
}

void sp_seals_destroy(sp_seals *s) {
    if (!s) return;
    sp_free(s->answered);
    sp_free(s->blocks);
    sp_free(s);
}

static sp_status send_list(sp_seals *s, sp_frame_type type, uint64_t ticket, int32_t n,
                           sp_err *err) {
    sp_wire_kv_list list = {.ticket = ticket, .n = n, .blocks = s->frame};
    sp_wire_kv_head head;
    sp_piece pieces[2];
    int n_pieces = sp_wire_kv_list_pieces(&list, &head, pieces);
    return sp_stepper_send(s->config.stepper, type, pieces, n_pieces, err);
}

static int32_t piece_end(int32_t from, int32_t n) {
    return n - from < SP_KV_FRAME_BLOCKS_MAX ? n : from + SP_KV_FRAME_BLOCKS_MAX;
}

/* One that somebody else had sealed is not asked again: its answer is waited for. */
sp_status sp_seals_add(sp_seals *s, const sp_block *blocks, const uint64_t *names, int32_t n,
                       uint32_t *generation, uint64_t *ticket, sp_err *err) {
    *ticket = 0;
    for (int32_t from = 0, end; from < n; from = end) {
        int32_t fresh = 0;
        end = piece_end(from, n);
        for (int32_t i = from; i < end; i++) {
            sealed_block *b = &s->blocks[blocks[i]];
            if (b->holders++ == 0) {
                if (++s->generation == 0) s->generation = 1;
                b->generation = s->generation;
                b->ticket = s->asked + 1;
                s->n_held++;
                s->frame[fresh++] =
                    (sp_wire_kv_block){names[i], (uint32_t)blocks[i], b->generation};
            }
            generation[i] = b->generation;
            if (b->ticket > *ticket) *ticket = b->ticket;
        }
        if (fresh > 0) SP_TRY(send_list(s, SP_FRAME_KV_SEAL, ++s->asked, fresh, err));
    }
    return SP_OK;
}

sp_status sp_seals_drop(sp_seals *s, const sp_block *blocks, const uint32_t *generation, int32_t n,
                        sp_err *err) {
    sp_sched *sched = sp_stepper_sched(s->config.stepper);
    for (int32_t from = 0, end; from < n; from = end) {
        int32_t last = 0;
        end = piece_end(from, n);
        for (int32_t i = from; i < end; i++) {
            sealed_block *b = &s->blocks[blocks[i]];
            if (generation[i] == 0) continue;
            SP_ASSERT(b->holders > 0 && b->generation == generation[i]);
            if (--b->holders > 0) continue;
            s->n_held--;
            s->frame[last++] =
                (sp_wire_kv_block){.block = (uint32_t)blocks[i], .generation = b->generation};
        }
        if (last > 0) SP_TRY(send_list(s, SP_FRAME_KV_FREE, 0, last, err));
        for (int32_t i = from; i < end; i++) sp_sched_drop(sched, blocks[i]);
    }
    return SP_OK;
}

bool sp_seals_done(const sp_seals *s, uint64_t ticket) {
    return s->sealed >= ticket;
}
uint64_t sp_seals_answered(const sp_seals *s) {
    return s->sealed;
}

sp_status sp_seals_take(sp_seals *s, int link, const sp_frame *f, bool *news, sp_err *err) {
    uint64_t ticket;
    SP_TRY(sp_wire_kv_sealed_decode(f->payload, f->length, &ticket, err));
    uint64_t *last = &s->answered[link - s->config.first_link];
    if (ticket != *last + 1 || ticket > s->asked)
        return SP_FAIL(err, SP_E_PROTOCOL, "it sealed ticket %llu, want %llu of %llu",
                       (unsigned long long)ticket, (unsigned long long)*last + 1,
                       (unsigned long long)s->asked);
    *last = ticket;
    uint64_t all = ticket;
    for (int32_t i = 0; i < s->config.n_links; i++)
        if (s->answered[i] < all) all = s->answered[i];
    *news = all > s->sealed;
    s->sealed = all;
    return SP_OK;
}

sp_stepper *sp_seals_stepper(const sp_seals *s) {
    return s->config.stepper;
}
int32_t sp_seals_held(const sp_seals *s) {
    return s->n_held;
}
const sp_seals_config *sp_seals_get_config(const sp_seals *s) {
    return &s->config;
}
