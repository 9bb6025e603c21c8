#include "launcher/form.h"

#include "launcher/fingerprint.h"
#include "launcher/flat.h"

#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>

#define TEXT(field) SP_FLAT_TEXT_ROW(sp_form, field)
#define NUMBER(field, min, max) SP_FLAT_NUMBER_ROW(sp_form, field, min, max)
#define FLAG(field) SP_FLAT_FLAG_ROW(sp_form, field)

/* The first SHARED rows are the same for all ranks. */
static const sp_flat_row rows[] = {
    TEXT(model_dir),
    TEXT(backend),
    TEXT(kv_dtype),
    TEXT(log_level),
    TEXT(collectives),
    TEXT(pp_layers),
    TEXT(nodes),
    TEXT(group_key),
    TEXT(fingerprint),
    NUMBER(tp, 1, 64),
    NUMBER(pp, 1, 128),
    NUMBER(threads, 0, 1024),
    NUMBER(block_tokens, 8, 128),
    NUMBER(n_blocks, 1, 1 << 26),
    NUMBER(max_model_len, 1, 1 << 24),
    NUMBER(max_num_seqs, 1, 1 << 16),
    NUMBER(max_batched_tokens, 1, 1 << 20),
    NUMBER(max_step_rows, 1, 1 << 20),
    NUMBER(timeout_ms, 1, INT32_MAX),
    FLAG(pin),
    FLAG(log_json),
    FLAG(null_model),
    NUMBER(rank, 0, 8191),
    NUMBER(local_rank, 0, 8191),
    NUMBER(local_ranks, 1, 8192),
};
#define SHARED (SP_LEN(rows) - 3)

void sp_form_write(const sp_form *form, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_flat_write(form, rows, SP_LEN(rows), &w);
}

sp_status sp_form_read(sp_form *out, sp_slice json, sp_err *err) {
    sp_form form = {0};
    SP_TRY(sp_flat_parse(&form, rows, SP_LEN(rows), json, err));
    if (form.rank >= form.tp * form.pp)
        return SP_FAIL(err, SP_E_INVALID, "rank: want below %lld, got %lld",
                       (long long)(form.tp * form.pp), (long long)form.rank);
    if (form.local_rank >= form.local_ranks)
        return SP_FAIL(err, SP_E_INVALID, "local_rank: want below %lld, got %lld",
                       (long long)form.local_ranks, (long long)form.local_rank);
    *out = form;
    return SP_OK;
}

void sp_form_hash(const sp_form *form, char out[SP_CONFIG_HASH_BYTES]) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_flat_write(form, rows, SHARED, &w);
    uint8_t digest[SP_FINGERPRINT_BYTES];
    sp_fingerprint_bytes(digest, text.ptr, text.len);
    sp_buf_fini(&text);
    sp_fingerprint_text(digest, out);
}

sp_status sp_form_numbers(const char *text, int n, int32_t min, int32_t max, int32_t *out,
                          sp_err *err) {
    const char *at = text;
    for (int i = 0; i < n; i++) {
        char *end;
        long v = strtol(at, &end, 10);
        if (!isdigit((unsigned char)*at) || v < min || v > max || *end != (i + 1 < n ? ',' : 0))
            return SP_FAIL(err, SP_E_INVALID, "want %d numbers of %d to %d, got '%.60s'", n, min,
                           max, text);
        out[i] = (int32_t)v;
        at = end + 1;
    }
    return SP_OK;
}
