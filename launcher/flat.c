#include "launcher/flat.h"

#include <string.h>

#define DEPTH_MAX 4

void sp_flat_write(const void *at, const sp_flat_row *rows, size_t n, sp_jw *w) {
    sp_jw_object(w);
    for (size_t i = 0; i < n; i++) {
        const char *field = (const char *)at + rows[i].offset;
        sp_jw_key(w, rows[i].key);
        switch (rows[i].kind) {
        case SP_FLAT_TEXT:
            sp_jw_str(w, field);
            break;
        case SP_FLAT_NUMBER:
            sp_jw_int(w, *(const int64_t *)field);
            break;
        case SP_FLAT_FLAG:
            sp_jw_bool(w, *(const bool *)field);
            break;
        }
    }
    sp_jw_object_end(w);
}

static sp_status read_row(void *at, const sp_flat_row *r, const sp_json_node *root, sp_err *err) {
    char *field = (char *)at + r->offset;
    if (sp_json_is_null(sp_json_find(root, r->key)))
        return SP_FAIL(err, SP_E_INVALID, "%s: missing", r->key);
    if (r->kind == SP_FLAT_NUMBER)
        return sp_json_get_int(root, r->key, r->min, r->max, (int64_t *)field, err);
    if (r->kind == SP_FLAT_FLAG) return sp_json_get_bool(root, r->key, (bool *)field, err);
    sp_slice text = {0};
    SP_TRY(sp_json_get_string(root, r->key, &text, err));
    if (text.len >= r->size)
        return SP_FAIL(err, SP_E_INVALID, "%s: want at most %zu bytes, got %zu", r->key,
                       r->size - 1, text.len);
    if (memchr(text.ptr, 0, text.len))
        return SP_FAIL(err, SP_E_INVALID, "%s: want text, got a NUL in it", r->key);
    memcpy(field, text.ptr, text.len);
    field[text.len] = 0;
    return SP_OK;
}

sp_status sp_flat_read(void *at, const sp_flat_row *rows, size_t n, const sp_json_node *root,
                       sp_err *err) {
    if (sp_json_type_of(root) != SP_JSON_OBJECT || sp_json_count(root) != (int)n)
        return SP_FAIL(err, SP_E_INVALID, "want an object of %zu keys, got %d", n,
                       sp_json_count(root));
    for (size_t i = 0; i < n; i++) SP_TRY(read_row(at, &rows[i], root, err));
    return SP_OK;
}

sp_status sp_flat_parse(void *at, const sp_flat_row *rows, size_t n, sp_slice json, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, json, DEPTH_MAX, err));
    sp_status st = sp_flat_read(at, rows, n, sp_json_root(doc), err);
    sp_json_free(doc);
    return st;
}
