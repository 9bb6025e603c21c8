#include "runtime/engine/wire.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are read where they lie");

static const uint32_t part_item[SP_PART_COUNT] = {
    [SP_PART_PARAMS] = sizeof(sp_wire_params),    [SP_PART_PROMPT] = sizeof(int32_t),
    [SP_PART_OUTPUT] = sizeof(int32_t),           [SP_PART_STOP_IDS] = sizeof(int32_t),
    [SP_PART_LOGIT_BIAS] = sizeof(sp_logit_bias), [SP_PART_ALLOWED] = sizeof(int32_t),
    [SP_PART_BAD_WORDS] = sizeof(int32_t),
};
_Static_assert(sizeof(sp_logit_bias) == 8, "wire layout");

static const char *const fault_names[SP_FAULT_COUNT] = {
    [SP_FAULT_PROTOCOL] = "protocol", [SP_FAULT_DEVICE] = "device",
    [SP_FAULT_MEMORY] = "memory",     [SP_FAULT_MODEL] = "model",
    [SP_FAULT_INTERNAL] = "internal", [SP_FAULT_PEER] = "peer",
};

uint32_t sp_wire_part_item(sp_wire_part part) {
    SP_ASSERT(part < SP_PART_COUNT);
    return part_item[part];
}

const char *sp_fault_name(sp_fault reason) {
    return reason < SP_FAULT_COUNT ? fault_names[reason] : "unknown";
}

/* Whether a payload holds its head and exactly `body` bytes more. */
static sp_status want(const char *frame, uint32_t length, size_t head, uint64_t body, sp_err *err) {
    if (length >= head && length - head == body) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "'%s' frame of %u bytes, want %llu", frame, length,
                   (unsigned long long)(head + body));
}

static sp_status want_head(const char *frame, uint32_t length, size_t head, sp_err *err) {
    if (length >= head) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "'%s' frame of %u bytes, want at least %zu", frame, length,
                   head);
}

sp_status sp_wire_add_decode(const void *payload, uint32_t length, sp_wire_add *out, sp_err *err) {
    const sp_wire_add_head *h = payload;
    SP_TRY(want_head("seq_add", length, sizeof *h, err));
    if (h->part >= SP_PART_COUNT || h->zero || h->zero2)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' part %u, want 0..%d", h->part,
                       SP_PART_COUNT - 1);
    SP_TRY(want("seq_add", length, sizeof *h, (uint64_t)h->count * part_item[h->part], err));
    if (h->part == SP_PART_PARAMS && (h->count != 1 || h->offset != 0))
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' with %u sets of parameters, want 1",
                       h->count);
    if (h->offset > INT32_MAX - h->count || h->count > INT32_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'seq_add' items %u+%u are too many", h->offset,
                       h->count);
    *out = (sp_wire_add){.seq = {h->slot, h->generation},
                         .part = h->part,
                         .offset = h->offset,
                         .count = h->count,
                         .data = h + 1};
    return SP_OK;
}

sp_status sp_wire_drop_decode(const void *payload, uint32_t length, const sp_wire_seq **out,
                              int32_t *n, sp_err *err) {
    const sp_wire_drop_head *h = payload;
    SP_TRY(want_head("seq_drop", length, sizeof *h, err));
    SP_TRY(want("seq_drop", length, sizeof *h, (uint64_t)h->count * sizeof(sp_wire_seq), err));
    if (h->zero) return SP_FAIL(err, SP_E_PROTOCOL, "'seq_drop' field is %u, want 0", h->zero);
    *out = (const sp_wire_seq *)(h + 1);
    *n = (int32_t)h->count;
    return SP_OK;
}

static sp_status check_entries(const sp_wire_step *s, sp_err *err) {
    int64_t tokens = 0;
    for (int32_t i = 0; i < s->n_entries; i++) {
        const sp_wire_entry *e = &s->entries[i];
        if (e->start < 0 || e->n < 1 || e->start > INT32_MAX - e->n)
            return SP_FAIL(err, SP_E_PROTOCOL, "'step' entry %d has positions %d+%d", i, e->start,
                           e->n);
        if ((e->flags & ~(uint32_t)SP_ENTRY_FLAGS) || e->zero)
            return SP_FAIL(err, SP_E_PROTOCOL, "'step' entry %d has flags %#x", i, e->flags);
        tokens += e->n;
    }
    if (tokens != s->n_tokens)
        return SP_FAIL(err, SP_E_PROTOCOL, "'step' entries have %lld tokens, head says %d",
                       (long long)tokens, s->n_tokens);
    return SP_OK;
}

static sp_status check_deltas(const sp_wire_step *s, sp_err *err) {
    int64_t blocks = 0;
    for (int32_t i = 0; i < s->n_deltas; i++) {
        const sp_wire_delta *d = &s->deltas[i];
        if (d->entry >= (uint32_t)s->n_entries || d->zero)
            return SP_FAIL(err, SP_E_PROTOCOL, "'step' delta %d is of entry %u, there are %d", i,
                           d->entry, s->n_entries);
        if (d->first < 0 || d->count < 1 || d->first > INT32_MAX - d->count)
            return SP_FAIL(err, SP_E_PROTOCOL, "'step' delta %d has places %d+%d", i, d->first,
                           d->count);
        blocks += d->count;
    }
    if (blocks != s->n_blocks)
        return SP_FAIL(err, SP_E_PROTOCOL, "'step' deltas have %lld blocks, head says %d",
                       (long long)blocks, s->n_blocks);
    return SP_OK;
}

sp_status sp_wire_step_decode(const void *payload, uint32_t length, sp_wire_step *out,
                              sp_err *err) {
    const sp_wire_step_head *h = payload;
    SP_TRY(want_head("step", length, sizeof *h, err));
    uint64_t body = (uint64_t)h->n_entries * sizeof(sp_wire_entry) +
                    (uint64_t)h->n_deltas * sizeof(sp_wire_delta) +
                    (uint64_t)h->n_blocks * sizeof(int32_t);
    SP_TRY(want("step", length, sizeof *h, body, err));
    if (h->n_entries < 1 || h->n_entries > SP_STEP_ENTRIES_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'step' of %u entries, want 1..%d", h->n_entries,
                       SP_STEP_ENTRIES_MAX);
    if (h->n_tokens > INT32_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'step' of %u tokens", h->n_tokens);
    sp_wire_step s = {.number = h->number,
                      .n_entries = (int32_t)h->n_entries,
                      .n_deltas = (int32_t)h->n_deltas,
                      .n_blocks = (int32_t)h->n_blocks,
                      .n_tokens = (int32_t)h->n_tokens};
    s.entries = (const sp_wire_entry *)(h + 1);
    s.deltas = (const sp_wire_delta *)(s.entries + s.n_entries);
    s.blocks = (const int32_t *)(s.deltas + s.n_deltas);
    SP_TRY(check_entries(&s, err));
    SP_TRY(check_deltas(&s, err));
    *out = s;
    return SP_OK;
}

static sp_status check_record(const sp_wire_record *r, uint64_t left, sp_err *err) {
    if (left < sizeof *r || left < sizeof *r + r->n_top * sizeof r->top[0])
        return SP_FAIL(err, SP_E_PROTOCOL, "'tokens' record runs over the end: %llu bytes left",
                       (unsigned long long)left);
    if (r->kind >= SP_RECORD_KIND_COUNT || r->zero || r->n_top > SP_LOGPROBS_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'tokens' record of kind %u with %u more, want 0..%d",
                       r->kind, r->n_top, SP_RECORD_KIND_COUNT - 1);
    bool failed = r->kind == SP_RECORD_FAILED;
    if (r->position < 0 || (failed ? r->token >= 0 : r->token < 0))
        return SP_FAIL(err, SP_E_PROTOCOL, "'tokens' record of token %d at position %d", r->token,
                       r->position);
    return SP_OK;
}

sp_status sp_wire_tokens_decode(const void *payload, uint32_t length, sp_wire_tokens *out,
                                sp_err *err) {
    const sp_wire_tokens_head *h = payload;
    SP_TRY(want_head("tokens", length, sizeof *h, err));
    if (h->flags & ~(uint32_t)SP_TOKENS_MORE)
        return SP_FAIL(err, SP_E_PROTOCOL, "'tokens' frame has flags %#x", h->flags);
    const unsigned char *at = (const unsigned char *)(h + 1),
                        *end = (const unsigned char *)payload + length;
    /* All of it before any of it is used: a frame is applied whole or not at all. */
    for (uint32_t i = 0; i < h->n_records; i++) {
        const sp_wire_record *r = (const void *)at;
        SP_TRY(check_record(r, (uint64_t)(end - at), err));
        at += sizeof *r + r->n_top * sizeof r->top[0];
    }
    if (at != end)
        return SP_FAIL(err, SP_E_PROTOCOL, "'tokens' frame has %td bytes after its %u records",
                       end - at, h->n_records);
    *out = (sp_wire_tokens){.number = h->number,
                            .n_records = (int32_t)h->n_records,
                            .more = h->flags & SP_TOKENS_MORE,
                            .at = (const unsigned char *)(h + 1)};
    return SP_OK;
}

const sp_wire_record *sp_wire_tokens_next(sp_wire_tokens *t) {
    if (t->n_records == 0) return NULL;
    const sp_wire_record *r = (const void *)t->at;
    t->n_records--;
    t->at += sizeof *r + r->n_top * sizeof r->top[0];
    return r;
}

sp_status sp_wire_row_decode(const void *payload, uint32_t length, sp_wire_row *out, sp_err *err) {
    const sp_wire_row_head *h = payload;
    SP_TRY(want_head("row", length, sizeof *h, err));
    SP_TRY(want("row", length, sizeof *h, (uint64_t)h->count * sizeof(float), err));
    if (h->position < 0 || h->count < 1 || h->offset > h->total ||
        h->count > h->total - h->offset || h->total > INT32_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'row' of position %d has values %u+%u of %u",
                       h->position, h->offset, h->count, h->total);
    *out = (sp_wire_row){.number = h->number,
                         .seq = {h->slot, h->generation},
                         .position = h->position,
                         .offset = h->offset,
                         .count = h->count,
                         .total = h->total,
                         .values = (const float *)(h + 1)};
    return SP_OK;
}

sp_status sp_wire_ready_decode(const void *payload, uint32_t length, sp_wire_ready *out,
                               sp_err *err) {
    const sp_wire_ready *r = payload;
    SP_TRY(want("ready", length, sizeof *r, 0, err));
    const struct {
        const char *name;
        int32_t value;
    } fields[] = {
        {"n_vocab", r->n_vocab},
        {"max_model_len", r->max_model_len},
        {"max_num_seqs", r->max_num_seqs},
        {"max_batched_tokens", r->max_batched_tokens},
        {"max_step_rows", r->max_step_rows},
        {"block_tokens", r->block_tokens},
        {"n_blocks", r->n_blocks},
        {"n_groups", r->n_groups},
    };
    for (size_t i = 0; i < SP_LEN(fields); i++)
        if (fields[i].value < 1)
            return SP_FAIL(err, SP_E_PROTOCOL, "'ready' says %s is %d, want 1 or more",
                           fields[i].name, fields[i].value);
    if (!memchr(r->kv_dtype, 0, sizeof r->kv_dtype))
        return SP_FAIL(err, SP_E_PROTOCOL, "'ready' has a kv type without an end");
    *out = *r;
    return SP_OK;
}

sp_status sp_wire_progress_decode(const void *payload, uint32_t length, sp_wire_progress *out,
                                  sp_err *err) {
    SP_TRY(want("progress", length, sizeof *out, 0, err));
    memcpy(out, payload, sizeof *out);
    return SP_OK;
}

sp_status sp_wire_fault_decode(const void *payload, uint32_t length, sp_fault *reason, char *text,
                               sp_err *err) {
    const sp_wire_fault_head *h = payload;
    SP_TRY(want_head("fault", length, sizeof *h, err));
    SP_TRY(want("fault", length, sizeof *h, h->text_bytes, err));
    if (h->reason >= SP_FAULT_COUNT || h->text_bytes > SP_FAULT_TEXT_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'fault' of reason %u with %u bytes of text", h->reason,
                       h->text_bytes);
    memcpy(text, h + 1, h->text_bytes);
    text[h->text_bytes] = 0;
    /* It ends in a log line and in an error body: no line breaks, no terminal codes. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = ' ';
    *reason = (sp_fault)h->reason;
    return SP_OK;
}

static sp_status check_kv_count(const char *frame, uint32_t n, sp_err *err) {
    if (n >= 1 && n <= SP_KV_FRAME_BLOCKS_MAX) return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "'%s' of %u blocks, want 1..%d", frame, n,
                   SP_KV_FRAME_BLOCKS_MAX);
}

sp_status sp_wire_kv_list_decode(const void *payload, uint32_t length, bool freed,
                                 sp_wire_kv_list *out, sp_err *err) {
    const char *frame = freed ? "kv_free" : "kv_seal";
    const sp_wire_kv_head *h = payload;
    SP_TRY(want_head(frame, length, sizeof *h, err));
    SP_TRY(check_kv_count(frame, h->n, err));
    SP_TRY(want(frame, length, sizeof *h, (uint64_t)h->n * sizeof(sp_wire_kv_block), err));
    if (h->zero || freed != (h->ticket == 0))
        return SP_FAIL(err, SP_E_PROTOCOL, "'%s' has ticket %llu and field %u", frame,
                       (unsigned long long)h->ticket, h->zero);
    const sp_wire_kv_block *blocks = (const sp_wire_kv_block *)(h + 1);
    for (uint32_t i = 0; i < h->n; i++) {
        if (blocks[i].generation == 0 || blocks[i].block > INT32_MAX)
            return SP_FAIL(err, SP_E_PROTOCOL, "'%s' has block %u of generation %u", frame,
                           blocks[i].block, blocks[i].generation);
        if (freed && blocks[i].name)
            return SP_FAIL(err, SP_E_PROTOCOL, "'%s' has a name for block %u, want 0", frame,
                           blocks[i].block);
    }
    *out = (sp_wire_kv_list){.ticket = h->ticket, .n = (int32_t)h->n, .blocks = blocks};
    return SP_OK;
}

sp_status sp_wire_kv_sealed_decode(const void *payload, uint32_t length, uint64_t *ticket,
                                   sp_err *err) {
    const sp_wire_kv_sealed *w = payload;
    SP_TRY(want("kv_sealed", length, sizeof *w, 0, err));
    *ticket = w->ticket;
    return SP_OK;
}

static sp_status check_kv_moves(const sp_wire_kv_move *moves, uint32_t n, sp_err *err) {
    for (uint32_t i = 0; i < n; i++)
        if (moves[i].generation == 0 || moves[i].src_block > INT32_MAX ||
            moves[i].dst_block > INT32_MAX || moves[i].zero)
            return SP_FAIL(
                err, SP_E_PROTOCOL, "'kv_pull' moves block %u of generation %u to %u, field %u",
                moves[i].src_block, moves[i].generation, moves[i].dst_block, moves[i].zero);
    return SP_OK;
}

sp_status sp_wire_kv_pull_decode(const void *payload, uint32_t length, sp_wire_kv_pull *out,
                                 sp_err *err) {
    const sp_wire_kv_pull_head *h = payload;
    SP_TRY(want_head("kv_pull", length, sizeof *h, err));
    SP_TRY(check_kv_count("kv_pull", h->n, err));
    SP_TRY(want("kv_pull", length, sizeof *h, (uint64_t)h->n * sizeof(sp_wire_kv_move), err));
    if (h->source >= SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX || h->lease == 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "'kv_pull' of source %u with lease %llu", h->source,
                       (unsigned long long)h->lease);
    const sp_wire_kv_move *moves = (const sp_wire_kv_move *)(h + 1);
    SP_TRY(check_kv_moves(moves, h->n, err));
    *out = (sp_wire_kv_pull){.transfer = h->transfer,
                             .lease = h->lease,
                             .source = h->source,
                             .n = (int32_t)h->n,
                             .moves = moves};
    return SP_OK;
}

sp_status sp_wire_kv_pulled_decode(const void *payload, uint32_t length, sp_wire_kv_pulled *out,
                                   sp_err *err) {
    const sp_wire_kv_pulled_head *h = payload;
    SP_TRY(want_head("kv_pulled", length, sizeof *h, err));
    SP_TRY(check_kv_count("kv_pulled", h->n, err));
    SP_TRY(want("kv_pulled", length, sizeof *h, (uint64_t)h->n * sizeof(uint32_t), err));
    if (h->zero) return SP_FAIL(err, SP_E_PROTOCOL, "'kv_pulled' field is %u, want 0", h->zero);
    *out = (sp_wire_kv_pulled){
        .transfer = h->transfer, .n = (int32_t)h->n, .outcomes = (const uint32_t *)(h + 1)};
    return SP_OK;
}

sp_status sp_wire_times_decode(const void *payload, uint32_t length, sp_wire_times *out,
                               sp_err *err) {
    SP_TRY(want("times", length, sizeof *out, 0, err));
    memcpy(out, payload, sizeof *out);
    return SP_OK;
}

sp_status sp_wire_kv_renew_decode(const void *payload, uint32_t length, uint64_t *transfer,
                                  sp_err *err) {
    const sp_wire_kv_renew *w = payload;
    SP_TRY(want("kv_renew", length, sizeof *w, 0, err));
    *transfer = w->transfer;
    return SP_OK;
}

/* Numbers of other pods' groups: a group of this pod has none of them. */
static sp_status check_kv_source(const char *frame, uint32_t source, sp_err *err) {
    if (source >= SP_KV_SOURCE_FIRST && source < SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX)
        return SP_OK;
    return SP_FAIL(err, SP_E_PROTOCOL, "'%s' of source %u, want %d..%d", frame, source,
                   SP_KV_SOURCE_FIRST, SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX - 1);
}

sp_status sp_wire_kv_source_decode(const void *payload, uint32_t length, uint32_t *source,
                                   sp_slice *text, sp_err *err) {
    const sp_wire_kv_source_head *h = payload;
    SP_TRY(want_head("kv_source", length, sizeof *h, err));
    SP_TRY(want("kv_source", length, sizeof *h, h->text_bytes, err));
    SP_TRY(check_kv_source("kv_source", h->source, err));
    if (h->text_bytes > SP_KV_SOURCE_TEXT_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "'kv_source' of %u bytes of text, want at most %d",
                       h->text_bytes, SP_KV_SOURCE_TEXT_MAX);
    *source = h->source;
    *text = (sp_slice){(const char *)(h + 1), h->text_bytes};
    return SP_OK;
}

sp_status sp_wire_kv_leave_decode(const void *payload, uint32_t length, sp_wire_kv_leave *out,
                                  sp_err *err) {
    const sp_wire_kv_leave *w = payload;
    SP_TRY(want("kv_leave", length, sizeof *w, 0, err));
    SP_TRY(check_kv_source("kv_leave", w->source, err));
    if (w->lease == 0 || w->zero)
        return SP_FAIL(err, SP_E_PROTOCOL, "'kv_leave' has lease %llu and field %u",
                       (unsigned long long)w->lease, w->zero);
    *out = *w;
    return SP_OK;
}

sp_status sp_wire_kv_lease_decode(const void *payload, uint32_t length, sp_wire_kv_lease *out,
                                  sp_err *err) {
    const sp_wire_kv_lease *w = payload;
    SP_TRY(want("kv_lease", length, sizeof *w, 0, err));
    if (w->lease == 0 || w->renewed > 1 || w->zero)
        return SP_FAIL(err, SP_E_PROTOCOL, "'kv_lease' has lease %llu, verb %u and field %u",
                       (unsigned long long)w->lease, w->renewed, w->zero);
    *out = *w;
    return SP_OK;
}

int sp_wire_kv_list_pieces(const sp_wire_kv_list *list, sp_wire_kv_head *head, sp_piece out[2]) {
    *head = (sp_wire_kv_head){.ticket = list->ticket, .n = (uint32_t)list->n};
    out[0] = (sp_piece){head, sizeof *head};
    out[1] = (sp_piece){list->blocks, head->n * (uint32_t)sizeof *list->blocks};
    return 2;
}

int sp_wire_kv_pull_pieces(const sp_wire_kv_pull *pull, sp_wire_kv_pull_head *head,
                           sp_piece out[2]) {
    *head = (sp_wire_kv_pull_head){.transfer = pull->transfer,
                                   .source = pull->source,
                                   .n = (uint32_t)pull->n,
                                   .lease = pull->lease};
    out[0] = (sp_piece){head, sizeof *head};
    out[1] = (sp_piece){pull->moves, head->n * (uint32_t)sizeof *pull->moves};
    return 2;
}

int sp_wire_kv_pulled_pieces(const sp_wire_kv_pulled *pulled, sp_wire_kv_pulled_head *head,
                             sp_piece out[2]) {
    *head = (sp_wire_kv_pulled_head){.transfer = pulled->transfer, .n = (uint32_t)pulled->n};
    out[0] = (sp_piece){head, sizeof *head};
    out[1] = (sp_piece){pulled->outcomes, head->n * (uint32_t)sizeof *pulled->outcomes};
    return 2;
}

int sp_wire_step_pieces(const sp_wire_step *step, sp_wire_step_head *head, sp_piece out[4]) {
    *head = (sp_wire_step_head){.number = step->number,
                                .n_entries = (uint32_t)step->n_entries,
                                .n_deltas = (uint32_t)step->n_deltas,
                                .n_blocks = (uint32_t)step->n_blocks,
                                .n_tokens = (uint32_t)step->n_tokens};
    out[0] = (sp_piece){head, sizeof *head};
    out[1] = (sp_piece){step->entries, head->n_entries * (uint32_t)sizeof(sp_wire_entry)};
    out[2] = (sp_piece){step->deltas, head->n_deltas * (uint32_t)sizeof(sp_wire_delta)};
    out[3] = (sp_piece){step->blocks, head->n_blocks * (uint32_t)sizeof(int32_t)};
    return 4;
}

sp_wire_params sp_wire_params_of(const sp_gen_params *p, int32_t choice) {
    return (sp_wire_params){
        .seed = p->seed,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
        .top_k = p->top_k,
        .min_tokens = p->min_tokens,
        .max_tokens = p->max_tokens,
        .n_logprobs = p->n_logprobs,
        .n_prompt_logprobs = p->n_prompt_logprobs,
        .choice = choice,
        .n_stop_ids = p->n_stop_ids,
        .n_logit_bias = p->n_logit_bias,
        .n_allowed_ids = p->n_allowed_ids,
        .n_bad_words = p->n_bad_words_ints,
        .flags =
            (p->ignore_eos ? SP_PARAMS_IGNORE_EOS : 0u) | (p->allowed_ids ? SP_PARAMS_ALLOWED : 0u),
    };
}

sp_gen_params sp_wire_params_to(const sp_wire_params *w) {
    return (sp_gen_params){
        .temperature = w->temperature,
        .top_p = w->top_p,
        .min_p = w->min_p,
        .top_k = w->top_k,
        .repetition_penalty = w->repetition_penalty,
        .presence_penalty = w->presence_penalty,
        .frequency_penalty = w->frequency_penalty,
        .seed = w->seed,
        .n = 1,
        .max_tokens = w->max_tokens,
        .min_tokens = w->min_tokens,
        .ignore_eos = w->flags & SP_PARAMS_IGNORE_EOS,
        .n_logprobs = w->n_logprobs,
        .n_prompt_logprobs = w->n_prompt_logprobs,
        .n_stop_ids = w->n_stop_ids,
        .n_logit_bias = w->n_logit_bias,
        .n_allowed_ids = w->n_allowed_ids,
        .n_bad_words_ints = w->n_bad_words,
    };
}
