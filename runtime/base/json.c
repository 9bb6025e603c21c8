#include "runtime/base/json.h"

#include "runtime/base/json_scan.h"
#include "runtime/base/mem.h"

#include <cjson/cJSON.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct sp_json {
    cJSON *root;
};

/* cJSON's strings end at a NUL. An escaped NUL becomes C0 80 (never valid UTF-8, so the scan lets
 * none other through) before cJSON sees it; sp_json_string() hands such strings out of this table,
 * turned back, with their length in front. The node's valueint says which kind a string is. */
#define HAS_NUL 1

static void put_without_nul_escapes(sp_buf *out, sp_slice text) {
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] != '\\') {
            sp_buf_putc(out, text.ptr[i]);
        } else if (text.len - i >= 6 && memcmp(text.ptr + i, "\\u0000", 6) == 0) {
            sp_buf_put(out, "\xc0\x80", 2);
            i += 5;
        } else {
            sp_buf_put(out, text.ptr + i, 2);
            i++;
        }
    }
}

/* "C0 80" -> NUL in place. The string keeps a NUL at its end; its length goes to valuedouble. */
static void restore_nuls(cJSON *v) {
    if (!cJSON_IsString(v) || !strstr(v->valuestring, "\xc0\x80")) return;
    char *s = v->valuestring;
    size_t n = 0;
    for (size_t i = 0; s[i]; i++)
        if (s[i] == '\xc0' && s[i + 1] == '\x80') {
            s[n++] = 0;
            i++;
        } else {
            s[n++] = s[i];
        }
    s[n] = 0;
    v->valueint = HAS_NUL;
    v->valuedouble = (double)n;
}

static int by_key(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

/* A message is one line, whatever the key holds. */
static sp_status say_duplicate(const char *key, sp_err *err) {
    char clean[100];
    size_t n = 0;
    for (; key[n] && n + 1 < sizeof clean; n++)
        clean[n] = (unsigned char)key[n] < 0x20 ? '?' : key[n];
    clean[n] = 0;
    return SP_FAIL(err, SP_E_FORMAT, "JSON key '%s' comes twice in one object", clean);
}

static sp_status refuse_duplicates(const cJSON *object, sp_err *err) {
    size_t n = (size_t)cJSON_GetArraySize(object), i = 0;
    if (n < 2) return SP_OK;
    const cJSON **keys = sp_try_alloc_array(n, sizeof *keys);
    if (!keys) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu JSON keys", n);
    for (const cJSON *m = object->child; m; m = m->next) keys[i++] = m;
    qsort(keys, n, sizeof *keys, by_key);
    sp_status st = SP_OK;
    for (i = 1; i < n && st == SP_OK; i++)
        if (strcmp(keys[i - 1]->string, keys[i]->string) == 0)
            st = say_duplicate(keys[i]->string, err);
    sp_free(keys);
    return st;
}

/* Walks the tree beside the text: the numbers come in the same order in both. */
typedef struct walk {
    const char *s;
    size_t n, at;
    const sp_json_facts *facts;
    sp_err *err;
} walk;

/* Moves to the next number outside strings and returns its text. */
static sp_slice next_number(walk *w, bool *keep) {
    for (bool in_string = false; w->at < w->n; w->at++) {
        char ch = w->s[w->at];
        if (in_string) {
            if (ch == '\\') w->at++;
            if (ch == '"') in_string = false;
        } else if (ch == '"') {
            in_string = true;
        } else if (ch == '-' || (ch >= '0' && ch <= '9')) {
            size_t len = sp_json_scan_number(w->s + w->at, w->n - w->at, keep);
            sp_slice text = {w->s + w->at, len};
            w->at += len;
            return text;
        }
    }
    return (sp_slice){0};
}

static sp_status finish_node(walk *w, cJSON *v) {
    if (cJSON_IsNumber(v) && w->facts->n_lexemes) {
        bool keep = false;
        sp_slice text = next_number(w, &keep);
        /* cJSON_Delete() frees valuestring of any node, so the text lives with its number. */
        if (keep) v->valuestring = sp_strndup(text.ptr, text.len);
    }
    if (w->facts->n_nul) restore_nuls(v);
    if (cJSON_IsObject(v)) SP_TRY(refuse_duplicates(v, w->err));
    for (cJSON *c = v->child; c; c = c->next) SP_TRY(finish_node(w, c));
    return SP_OK;
}

/* cJSON recurses, and gives up at a depth of its own that is far above ours. */
static int depth_of(int depth_max) {
    return depth_max > 0 && depth_max < SP_JSON_DEPTH_MAX ? depth_max : SP_JSON_DEPTH_MAX;
}

sp_status sp_json_parse(sp_json **out, sp_slice text, int depth_max, sp_err *err) {
    sp_json_facts facts;
    SP_TRY(sp_json_scan(text, depth_of(depth_max), &facts, err));
    sp_buf copy;
    sp_buf_init(&copy, 0);
    if (facts.n_nul) {
        put_without_nul_escapes(&copy, text);
        if (copy.failed) {
            sp_buf_fini(&copy);
            return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes of JSON", text.len);
        }
        text = sp_buf_slice(&copy);
    }
    sp_status st = SP_OK;
    sp_json *doc = sp_try_alloc(sizeof *doc);
    cJSON *root = doc ? cJSON_ParseWithLength(text.ptr, text.len) : NULL;
    if (!root) {
        /* The scan has proven the text, so only memory can be short. */
        st = SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes of JSON", text.len);
    } else {
        walk w = {text.ptr, text.len, 0, &facts, err};
        st = finish_node(&w, root);
    }
    sp_buf_fini(&copy);
    if (st != SP_OK) {
        cJSON_Delete(root);
        sp_free(doc);
        return st;
    }
    doc->root = root;
    *out = doc;
    return SP_OK;
}

void sp_json_free(sp_json *doc) {
    if (!doc) return;
    cJSON_Delete(doc->root);
    sp_free(doc);
}

const sp_json_node *sp_json_root(const sp_json *doc) {
    return doc ? doc->root : NULL;
}

sp_json_type sp_json_type_of(const sp_json_node *v) {
    if (!v || cJSON_IsNull(v)) return SP_JSON_NULL;
    if (cJSON_IsBool(v)) return SP_JSON_BOOL;
    if (cJSON_IsString(v)) return SP_JSON_STRING;
    if (cJSON_IsArray(v)) return SP_JSON_ARRAY;
    if (cJSON_IsObject(v)) return SP_JSON_OBJECT;
    int64_t i;
    if (!v->valuestring) return SP_JSON_INT;
    return sp_parse_i64(sp_slice_of(v->valuestring), &i) == SP_OK ? SP_JSON_INT : SP_JSON_FLOAT;
}

const char *sp_json_type_name(sp_json_type t) {
    static const char *const names[] = {"null",     "a boolean", "an integer", "a number",
                                        "a string", "an array",  "an object"};
    return names[t];
}

const sp_json_node *sp_json_find(const sp_json_node *object, const char *key) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}
const sp_json_node *sp_json_at(const sp_json_node *array, int index) {
    return array ? cJSON_GetArrayItem(array, index) : NULL;
}
const sp_json_node *sp_json_first(const sp_json_node *container) {
    return container ? container->child : NULL;
}
const sp_json_node *sp_json_next(const sp_json_node *v) {
    return v ? v->next : NULL;
}
int sp_json_count(const sp_json_node *container) {
    return container ? cJSON_GetArraySize(container) : 0;
}
sp_slice sp_json_key(const sp_json_node *v) {
    return sp_slice_of(v ? v->string : NULL);
}
bool sp_json_is_null(const sp_json_node *v) {
    return !v || cJSON_IsNull(v);
}

sp_slice sp_json_string(const sp_json_node *v) {
    if (!cJSON_IsString(v)) return (sp_slice){0};
    if (v->valueint == HAS_NUL) return (sp_slice){v->valuestring, (size_t)v->valuedouble};
    return sp_slice_of(v->valuestring);
}

int64_t sp_json_int(const sp_json_node *v) {
    int64_t i = 0;
    if (!v) return 0;
    if (v->valuestring && sp_parse_i64(sp_slice_of(v->valuestring), &i) == SP_OK) return i;
    return (int64_t)v->valuedouble;
}
double sp_json_number(const sp_json_node *v) {
    return v ? v->valuedouble : 0;
}
bool sp_json_bool(const sp_json_node *v) {
    return cJSON_IsTrue(v);
}

static sp_status wrong(const char *key, const char *wanted, const sp_json_node *v, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "%s: want %s, got %s", key, wanted,
                   sp_json_type_name(sp_json_type_of(v)));
}

sp_status sp_json_get_bool(const sp_json_node *o, const char *key, bool *out, sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (!cJSON_IsBool(v)) return wrong(key, "a boolean", v, err);
    *out = cJSON_IsTrue(v);
    return SP_OK;
}

sp_status sp_json_get_int(const sp_json_node *o, const char *key, int64_t min, int64_t max,
                          int64_t *out, sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (sp_json_type_of(v) != SP_JSON_INT) return wrong(key, "an integer", v, err);
    int64_t i = sp_json_int(v);
    if (i < min || i > max)
        return SP_FAIL(err, SP_E_INVALID, "%s: want an integer from %lld to %lld, got %lld", key,
                       (long long)min, (long long)max, (long long)i);
    *out = i;
    return SP_OK;
}

sp_status sp_json_get_number(const sp_json_node *o, const char *key, double *out, sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (!cJSON_IsNumber(v)) return wrong(key, "a number", v, err);
    if (!isfinite(v->valuedouble))
        return SP_FAIL(err, SP_E_INVALID, "%s: want a finite number", key);
    *out = v->valuedouble;
    return SP_OK;
}

sp_status sp_json_get_string(const sp_json_node *o, const char *key, sp_slice *out, sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (!cJSON_IsString(v)) return wrong(key, "a string", v, err);
    *out = sp_json_string(v);
    return SP_OK;
}

sp_status sp_json_get_object(const sp_json_node *o, const char *key, const sp_json_node **out,
                             sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (!cJSON_IsObject(v)) return wrong(key, "an object", v, err);
    *out = v;
    return SP_OK;
}

sp_status sp_json_get_array(const sp_json_node *o, const char *key, const sp_json_node **out,
                            sp_err *err) {
    const sp_json_node *v = sp_json_find(o, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (!cJSON_IsArray(v)) return wrong(key, "an array", v, err);
    *out = v;
    return SP_OK;
}

static void before_value(sp_jw *w) {
    if (w->comma) sp_buf_putc(w->out, ',');
    w->comma = true;
}
static void open(sp_jw *w, char c) {
    before_value(w);
    sp_buf_putc(w->out, c);
    w->comma = false;
}
static void shut(sp_jw *w, char c) {
    sp_buf_putc(w->out, c);
    w->comma = true;
}
void sp_jw_object(sp_jw *w) {
    open(w, '{');
}
void sp_jw_object_end(sp_jw *w) {
    shut(w, '}');
}
void sp_jw_array(sp_jw *w) {
    open(w, '[');
}
void sp_jw_array_end(sp_jw *w) {
    shut(w, ']');
}

static void put_quoted(sp_buf *b, sp_slice s) {
    static const char hex[] = "0123456789abcdef";
    sp_buf_putc(b, '"');
    size_t plain = 0; /* start of bytes not yet written */
    for (size_t i = 0; i < s.len;) {
        unsigned char ch = (unsigned char)s.ptr[i];
        uint32_t cp;
        int len = ch < 0x80 ? 1 : sp_utf8_decode(s.ptr + i, s.len - i, &cp);
        if (len && ch >= 0x20 && ch != '"' && ch != '\\') {
            i += (size_t)len;
            continue;
        }
        sp_buf_put(b, s.ptr + plain, i - plain);
        if (ch == 0xc0 && i + 1 < s.len && s.ptr[i + 1] == '\x80') { /* a NUL inside a key */
            sp_buf_puts(b, "\\u0000");
            plain = i += 2;
            continue;
        }
        const char *at = ch ? strchr("\"\"\\\\\bb\ff\nn\rr\tt", ch) : NULL;
        if (!len)
            sp_buf_puts(b, "\xef\xbf\xbd");
        else if (at)
            sp_buf_put(b, (char[]){'\\', at[1]}, 2);
        else
            sp_buf_put(b, (char[]){'\\', 'u', '0', '0', hex[ch >> 4], hex[ch & 15]}, 6);
        plain = ++i;
    }
    sp_buf_put(b, s.ptr + plain, s.len - plain);
    sp_buf_putc(b, '"');
}

void sp_jw_key(sp_jw *w, const char *key) {
    if (w->comma) sp_buf_putc(w->out, ',');
    put_quoted(w->out, sp_slice_of(key));
    sp_buf_putc(w->out, ':');
    w->comma = false;
}

void sp_jw_raw(sp_jw *w, sp_slice json) {
    before_value(w);
    sp_buf_put_slice(w->out, json);
}
void sp_jw_null(sp_jw *w) {
    sp_jw_raw(w, SP_SLICE("null"));
}
void sp_jw_bool(sp_jw *w, bool v) {
    sp_jw_raw(w, v ? SP_SLICE("true") : SP_SLICE("false"));
}
void sp_jw_int(sp_jw *w, int64_t v) {
    before_value(w);
    sp_buf_printf(w->out, "%lld", (long long)v);
}

void sp_jw_number(sp_jw *w, double v) {
    if (!isfinite(v)) {
        sp_jw_null(w);
        return;
    }
    char text[40];
    /* 15 digits are what every decimal survives; most doubles need 15 to 17. */
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    sp_jw_raw(w, sp_slice_of(text));
}

void sp_jw_string(sp_jw *w, sp_slice s) {
    before_value(w);
    put_quoted(w->out, s);
}

void sp_jw_node(sp_jw *w, const sp_json_node *v) {
    switch (sp_json_type_of(v)) {
    case SP_JSON_NULL:
        sp_jw_null(w);
        return;
    case SP_JSON_BOOL:
        sp_jw_bool(w, sp_json_bool(v));
        return;
    case SP_JSON_STRING:
        sp_jw_string(w, sp_json_string(v));
        return;
    case SP_JSON_INT:
    case SP_JSON_FLOAT:
        if (v->valuestring)
            sp_jw_raw(w, sp_slice_of(v->valuestring));
        else
            sp_jw_int(w, sp_json_int(v));
        return;
    case SP_JSON_ARRAY:
    case SP_JSON_OBJECT:
        break;
    }
    bool object = cJSON_IsObject(v);
    open(w, object ? '{' : '[');
    for (const cJSON *c = v->child; c; c = c->next) {
        if (object) sp_jw_key(w, c->string);
        sp_jw_node(w, c);
    }
    shut(w, object ? '}' : ']');
}
