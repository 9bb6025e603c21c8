#include "runtime/engine/kv_source.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/engine/wire.h"

#define DEPTH 3
#define KEYS 4
#define LAYERS_MAX (1 << 20) /* of one stage: what the model has is for the reader to compare */

static sp_status get_degree(const sp_json_node *root, const char *key, int32_t max, int32_t *out,
                            sp_err *err) {
    int64_t v = 0;
    SP_TRY(sp_json_get_int(root, key, 1, max, &v, err));
    if (v == 0) return SP_FAIL(err, SP_E_INVALID, "%s: missing", key);
    *out = (int32_t)v;
    return SP_OK;
}

static sp_status get_list(const sp_json_node *root, const char *key, int32_t n,
                          const sp_json_node **out, sp_err *err) {
    const sp_json_node *list = NULL;
    SP_TRY(sp_json_get_array(root, key, &list, err));
    if (!list) return SP_FAIL(err, SP_E_INVALID, "%s: missing", key);
    if (sp_json_count(list) != n)
        return SP_FAIL(err, SP_E_INVALID, "%s: want %d of them, got %d", key, n,
                       sp_json_count(list));
    *out = list;
    return SP_OK;
}

static sp_status read_layers(sp_kv_source_words *w, const sp_json_node *root, sp_err *err) {
    const sp_json_node *list = NULL;
    SP_TRY(get_list(root, "pp_layers", w->pp, &list, err));
    const sp_json_node *at = sp_json_first(list);
    for (int32_t i = 0; i < w->pp; i++, at = sp_json_next(at)) {
        if (sp_json_type_of(at) != SP_JSON_INT || sp_json_int(at) < 1 ||
            sp_json_int(at) > LAYERS_MAX)
            return SP_FAIL(err, SP_E_INVALID, "pp_layers: want integers from 1 to %d", LAYERS_MAX);
        w->pp_layers[i] = (int32_t)sp_json_int(at);
    }
    return SP_OK;
}

/* What an address says is for comm/kvx.h; here it is a line of printable text. */
static bool is_line(sp_slice s) {
    if (s.len == 0 || s.len > SP_KV_SOURCE_TEXT_MAX) return false;
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] < ' ' || s.ptr[i] > '~') return false;
    return true;
}

static sp_status read_ranks(sp_kv_source_words *w, const sp_json_node *root, sp_err *err) {
    const sp_json_node *list = NULL;
    const int32_t n = w->tp * w->pp;
    SP_TRY(get_list(root, "ranks", n, &list, err));
    w->ranks = sp_try_alloc_array((size_t)n, sizeof *w->ranks);
    if (!w->ranks) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d addresses", n);
    const sp_json_node *at = sp_json_first(list);
    for (int32_t i = 0; i < n; i++, at = sp_json_next(at)) {
        sp_slice s = {NULL, 0};
        if (sp_json_type_of(at) == SP_JSON_STRING) s = sp_json_string(at);
        if (!is_line(s))
            return SP_FAIL(err, SP_E_INVALID, "ranks: number %d is no line of printable text", i);
        w->ranks[i] = sp_try_alloc(s.len + 1);
        if (!w->ranks[i]) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d addresses", n);
        memcpy(w->ranks[i], s.ptr, s.len);
    }
    return SP_OK;
}

static sp_status read_root(sp_kv_source_words *w, const sp_json_node *root, sp_err *err) {
    if (sp_json_type_of(root) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_INVALID, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(root)));
    SP_TRY(get_degree(root, "tp", SP_KV_SOURCE_TP_MAX, &w->tp, err));
    SP_TRY(get_degree(root, "pp", SP_KV_SOURCE_STAGES_MAX, &w->pp, err));
    SP_TRY(read_layers(w, root, err));
    SP_TRY(read_ranks(w, root, err));
    if (sp_json_count(root) != KEYS)
        return SP_FAIL(err, SP_E_INVALID, "want the keys tp, pp, pp_layers and ranks alone, got %d",
                       sp_json_count(root));
    return SP_OK;
}

sp_status sp_kv_source_read(sp_kv_source_words *out, sp_slice text, sp_err *err) {
    sp_kv_source_words w = {0};
    sp_json *doc = NULL;
    if (text.len > SP_KV_SOURCE_TEXT_MAX)
        return SP_FAIL(err, SP_E_INVALID, "want at most %d bytes, got %zu", SP_KV_SOURCE_TEXT_MAX,
                       text.len);
    sp_status st = sp_json_parse(&doc, text, DEPTH, err);
    if (st == SP_E_TOOLONG) st = SP_FAIL(err, SP_E_FORMAT, "nested deeper than %d", DEPTH);
    if (st == SP_OK) st = read_root(&w, sp_json_root(doc), err);
    sp_json_free(doc);
    if (st != SP_OK) {
        sp_kv_source_words_fini(&w);
        return st;
    }
    *out = w;
    return SP_OK;
}

void sp_kv_source_words_fini(sp_kv_source_words *w) {
    for (int32_t i = 0; w->ranks && i < w->tp * w->pp; i++) sp_free(w->ranks[i]);
    sp_free(w->ranks);
    *w = (sp_kv_source_words){0};
}

void sp_kv_source_write(sp_buf *out, int32_t tp, int32_t pp, const int32_t *pp_layers,
                        const char *const *ranks) {
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, "tp"), sp_jw_int(&w, tp);
    sp_jw_key(&w, "pp"), sp_jw_int(&w, pp);
    sp_jw_key(&w, "pp_layers"), sp_jw_array(&w);
    for (int32_t i = 0; i < pp; i++) sp_jw_int(&w, pp_layers[i]);
    sp_jw_array_end(&w);
    sp_jw_key(&w, "ranks"), sp_jw_array(&w);
    for (int32_t i = 0; i < tp * pp; i++) sp_jw_str(&w, ranks[i]);
    sp_jw_array_end(&w);
    sp_jw_object_end(&w);
}
