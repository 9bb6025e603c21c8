#include "launcher/form.h"

#include <stddef.h>

typedef struct form_row {
    const char *key;
    enum {
        TEXT,
        NUMBER,
        FLAG
    } kind;
    size_t offset, size;
    int64_t min, max;
} form_row;

#define TEXT_ROW(field) \
    { #field, TEXT, offsetof(sp_form, field), sizeof(((sp_form *)0)->field), 0, 0 }
#define NUMBER_ROW(field, min, max) \
    { #field, NUMBER, offsetof(sp_form, field), 0, (min), (max) }
#define FLAG_ROW(field) \
    { #field, FLAG, offsetof(sp_form, field), 0, 0, 0 }

static const form_row rows[] = {
    TEXT_ROW(model_dir),
    TEXT_ROW(backend),
    TEXT_ROW(kv_dtype),
    TEXT_ROW(log_level),
    NUMBER_ROW(threads, 0, 1024),
    NUMBER_ROW(block_tokens, 8, 128),
    NUMBER_ROW(n_blocks, 1, 1 << 26),
    NUMBER_ROW(max_model_len, 1, 1 << 24),
    NUMBER_ROW(max_num_seqs, 1, 1 << 16),
    NUMBER_ROW(max_batched_tokens, 1, 1 << 20),
    NUMBER_ROW(max_step_rows, 1, 1 << 20),
    FLAG_ROW(pin),
    FLAG_ROW(log_json),
};

void sp_form_write(const sp_form *form, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        const char *at = (const char *)form + rows[i].offset;
        sp_jw_key(&w, rows[i].key);
        switch (rows[i].kind) {
        case TEXT:
            sp_jw_str(&w, at);
            break;
        case NUMBER:
            sp_jw_int(&w, *(const int64_t *)at);
            break;
        case FLAG:
            sp_jw_bool(&w, *(const bool *)at);
            break;
        }
    }
    sp_jw_object_end(&w);
}

static sp_status read_row(sp_form *form, const form_row *r, const sp_json_node *root, sp_err *err) {
    char *at = (char *)form + r->offset;
    if (sp_json_is_null(sp_json_find(root, r->key)))
        return SP_FAIL(err, SP_E_INVALID, "%s: missing", r->key);
    if (r->kind == NUMBER) return sp_json_get_int(root, r->key, r->min, r->max, (int64_t *)at, err);
    if (r->kind == FLAG) return sp_json_get_bool(root, r->key, (bool *)at, err);
    sp_slice text = {0};
    SP_TRY(sp_json_get_string(root, r->key, &text, err));
    if (text.len >= r->size)
        return SP_FAIL(err, SP_E_INVALID, "%s: want at most %zu bytes, got %zu", r->key,
                       r->size - 1, text.len);
    memcpy(at, text.ptr, text.len);
    at[text.len] = 0;
    return SP_OK;
}

sp_status sp_form_read(sp_form *out, sp_slice json, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, json, 4, err));
    const sp_json_node *root = sp_json_root(doc);
    sp_form form = {0};
    sp_status st = SP_OK;
    if (sp_json_type_of(root) != SP_JSON_OBJECT || sp_json_count(root) != (int)SP_LEN(rows))
        st = SP_FAIL(err, SP_E_INVALID, "want an object of %zu keys, got %d", SP_LEN(rows),
                     sp_json_count(root));
    for (size_t i = 0; i < SP_LEN(rows) && st == SP_OK; i++)
        st = read_row(&form, &rows[i], root, err);
    sp_json_free(doc);
    if (st == SP_OK) *out = form;
    return st;
}
