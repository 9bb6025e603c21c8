#include "runtime/engine/stage_kv.h"

#include "runtime/base/clock.h"

#define SEND_TIMEOUT_NS (60 * SP_NS_PER_S)

static sp_status check_block(const sp_frame *f, uint32_t block, int32_t n_blocks, sp_err *err) {
    if (block < (uint32_t)n_blocks) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "a frame of type %d: block %u, want below %d", (int)f->type,
                   block, n_blocks);
}

static sp_status decode_list(const sp_frame *f, int32_t n_blocks, sp_wire_kv_list *out,
                             sp_err *err) {
    SP_TRY(sp_wire_kv_list_decode(f->payload, f->length, f->type == SP_FRAME_KV_FREE, out, err));
    for (int32_t i = 0; i < out->n; i++)
        SP_TRY(check_block(f, out->blocks[i].block, n_blocks, err));
    return SP_OK;
}

static sp_status take_seal(const sp_stage_kvx *k, sp_link *link, int32_t n_blocks,
                           const sp_frame *f, sp_err *err) {
    sp_wire_kv_list list;
    SP_TRY(decode_list(f, n_blocks, &list, err));
    SP_TRY(k->seal(k->ctx, list.blocks, list.n, err));
    const sp_wire_kv_sealed sealed = {list.ticket};
    const sp_piece piece = {&sealed, sizeof sealed};
    return sp_link_send(link, SP_FRAME_KV_SEALED, &piece, 1, sp_now_ns() + SEND_TIMEOUT_NS, err);
}

static sp_status take_free(const sp_stage_kvx *k, int32_t n_blocks, const sp_frame *f,
                           sp_err *err) {
    sp_wire_kv_list list;
    SP_TRY(decode_list(f, n_blocks, &list, err));
    return k->free_blocks(k->ctx, list.blocks, list.n, err);
}

/* Only the exporter knows how many blocks it has; what it has not got is an outcome. */
static sp_status take_pull(const sp_stage_kvx *k, int32_t n_blocks, const sp_frame *f,
                           sp_err *err) {
    sp_wire_kv_pull pull;
    SP_TRY(sp_wire_kv_pull_decode(f->payload, f->length, &pull, err));
    for (int32_t i = 0; i < pull.n; i++)
        SP_TRY(check_block(f, pull.moves[i].dst_block, n_blocks, err));
    return k->pull(k->ctx, &pull, err);
}

static sp_status take_source(const sp_stage_kvx *k, const sp_frame *f, sp_err *err) {
    uint32_t source;
    sp_slice text;
    SP_TRY(sp_wire_kv_source_decode(f->payload, f->length, &source, &text, err));
    return k->source(k->ctx, source, text, err);
}

static sp_status take_leave(const sp_stage_kvx *k, const sp_frame *f, sp_err *err) {
    sp_wire_kv_leave leave;
    SP_TRY(sp_wire_kv_leave_decode(f->payload, f->length, &leave, err));
    return k->leave(k->ctx, &leave, err);
}

sp_status sp_stage_kv_take(const sp_stage_kvx *k, sp_link *link, int32_t n_blocks,
                           const sp_frame *f, sp_err *err) {
    switch (f->type) {
    case SP_FRAME_KV_SEAL:
        return take_seal(k, link, n_blocks, f, err);
    case SP_FRAME_KV_PULL:
        return take_pull(k, n_blocks, f, err);
    case SP_FRAME_KV_FREE:
        return take_free(k, n_blocks, f, err);
    case SP_FRAME_KV_SOURCE:
        return take_source(k, f, err);
    case SP_FRAME_KV_LEAVE:
        return take_leave(k, f, err);
    default:
        return SP_AGAIN;
    }
}

static sp_status tell_note(const sp_stage_kv_note *note, sp_link *link, sp_err *err) {
    const sp_wire_kv_lease lease = {.lease = note->id, .renewed = note->renewed};
    const sp_wire_kv_renew renew = {note->id};
    const sp_piece pieces[] = {{&renew, sizeof renew}, {&lease, sizeof lease}};
    return sp_link_send(link, note->of_lease ? SP_FRAME_KV_LEASE : SP_FRAME_KV_RENEW,
                        &pieces[note->of_lease], 1, sp_now_ns() + SEND_TIMEOUT_NS, err);
}

sp_status sp_stage_kv_tell(const sp_stage_kvx *k, sp_link *link, sp_err *err) {
    sp_stage_kv_note note;
    sp_wire_kv_pulled p;
    while (k->poll_note(k->ctx, &note)) SP_TRY(tell_note(&note, link, err));
    if (k->settle) SP_TRY(k->settle(k->ctx, err));
    while (k->poll_done(k->ctx, &p)) {
        sp_wire_kv_pulled_head head;
        sp_piece pieces[2];
        const int n = sp_wire_kv_pulled_pieces(&p, &head, pieces);
        SP_TRY(
            sp_link_send(link, SP_FRAME_KV_PULLED, pieces, n, sp_now_ns() + SEND_TIMEOUT_NS, err));
    }
    return SP_OK;
}
