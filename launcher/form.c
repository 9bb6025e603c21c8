#include "launcher/form.h"

#include "launcher/fingerprint.h"
#include "launcher/flat.h"

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(field) SP_FLAT_TEXT_ROW(sp_form, field)
#define NUMBER(field, min, max) SP_FLAT_NUMBER_ROW(sp_form, field, min, max)
#define FLAG(field) SP_FLAT_FLAG_ROW(sp_form, field)

/* The first SHARED rows are the same for all ranks, and no secret of other pods too. */
static const sp_flat_row rows[] = {
    TEXT(model_dir),
    TEXT(backend),
    TEXT(kv_dtype),
    TEXT(log_level),
    TEXT(collectives),
    TEXT(shapes),
    TEXT(nodes),
    TEXT(group_key),
    TEXT(fingerprint),
    NUMBER(ranks, 1, 512),
    NUMBER(threads, 0, 1024),
    NUMBER(block_tokens, 8, 128),
    NUMBER(max_model_len, 1, 1 << 24),
    NUMBER(max_num_seqs, 1, 1 << 16),
    NUMBER(max_batched_tokens, 1, 1 << 20),
    NUMBER(max_step_rows, 1, 1 << 20),
    NUMBER(timeout_ms, 1, INT32_MAX),
    FLAG(pin),
    FLAG(log_json),
    FLAG(null_model),
    FLAG(fast),
    TEXT(kv_key),
    NUMBER(group, 0, SP_FORM_GROUPS_MAX - 1),
    NUMBER(first, 0, 511),
    NUMBER(tp, 1, 64),
    NUMBER(pp, 1, SP_FORM_STAGES_MAX),
    NUMBER(n_blocks, 1, 1 << 26),
    NUMBER(rank, 0, 8191),
    NUMBER(local_rank, 0, 8191),
    NUMBER(local_ranks, 1, 8192),
};
#define SHARED (SP_LEN(rows) - 9)

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
    if (form.first + form.tp * form.pp > form.ranks)
        return SP_FAIL(err, SP_E_INVALID, "first: want at most %lld, got %lld",
                       (long long)(form.ranks - form.tp * form.pp), (long long)form.first);
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

static sp_status read_key(const char *key, const char *hex, uint8_t *out, sp_err *err) {
    if (sp_hex_read(out, SP_FORM_KEY_BYTES, hex) == SP_OK) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "%s: want %d hexadecimal digits", key, 2 * SP_FORM_KEY_BYTES);
}

sp_status sp_form_key(const sp_form *form, uint8_t out[SP_FORM_KEY_BYTES], sp_err *err) {
    return read_key("group_key", form->group_key, out, err);
}

sp_status sp_form_kv_key(const sp_form *form, uint8_t out[SP_FORM_KEY_BYTES], sp_err *err) {
    if (!form->kv_key[0]) return sp_form_key(form, out, err);
    return read_key("kv_key", form->kv_key, out, err);
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

void sp_form_put_pool(sp_form *f, int32_t replicas, int32_t tp, int32_t pp,
                      const int32_t *pp_layers) {
    size_t at = strlen(f->shapes);
    at += (size_t)snprintf(f->shapes + at, sizeof f->shapes - at, "%s%d,%d,%d", at ? ";" : "",
                           replicas, tp, pp);
    for (int32_t s = 0; s < pp && at + 12 < sizeof f->shapes; s++)
        at += (size_t)snprintf(f->shapes + at, sizeof f->shapes - at, ",%d", pp_layers[s]);
}

/* "replicas,tp,pp,layers..." of one pool. */
static sp_status read_pool(const char *text, sp_form_group *out, int32_t *replicas, sp_err *err) {
    int32_t v[3 + SP_FORM_STAGES_MAX];
    int n = 1;
    for (const char *c = text; *c; c++) n += *c == ',';
    if (n < 4 || n > (int)SP_LEN(v))
        return SP_FAIL(err, SP_E_INVALID, "shapes: want 4 to %d numbers a pool, got %d",
                       (int)SP_LEN(v), n);
    SP_TRY(sp_form_numbers(text, n, 1, INT32_MAX, v, err));
    if (v[0] > SP_FORM_GROUPS_MAX || v[1] > 64 || v[2] != n - 3)
        return SP_FAIL(err, SP_E_INVALID, "shapes: a pool cannot be '%.60s'", text);
    *replicas = v[0];
    out->tp = v[1];
    out->pp = v[2];
    memcpy(out->pp_layers, v + 3, (size_t)out->pp * sizeof v[0]);
    return SP_OK;
}

sp_status sp_form_groups(const sp_form *form, sp_form_group *out, int32_t *n, sp_err *err) {
    char text[sizeof form->shapes], *save = NULL;
    int32_t groups = 0, first = 0;
    memcpy(text, form->shapes, sizeof text);
    for (char *at = strtok_r(text, ";", &save); at; at = strtok_r(NULL, ";", &save)) {
        sp_form_group g = {0};
        int32_t replicas = 0;
        SP_TRY(read_pool(at, &g, &replicas, err));
        if (replicas > SP_FORM_GROUPS_MAX - groups)
            return SP_FAIL(err, SP_E_INVALID, "shapes: more than %d groups", SP_FORM_GROUPS_MAX);
        for (; replicas > 0; replicas--, first += g.tp * g.pp) {
            out[groups] = g;
            out[groups++].first = first;
        }
    }
    if (first != form->ranks)
        return SP_FAIL(err, SP_E_INVALID, "shapes: want %d ranks, got %d", (int)form->ranks,
                       (int)first);
    *n = groups;
    return SP_OK;
}
