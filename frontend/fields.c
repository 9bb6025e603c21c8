#include "frontend/fields.h"

#include <math.h>
#include <stdio.h>

#define WORDS_MAX ((size_t)8192)

void sp_fields_init(sp_fields *f, sp_arena *arena) {
    *f = (sp_fields){.arena = arena};
    sp_buf_init(&f->words, WORDS_MAX);
}

void sp_fields_fini(sp_fields *f) {
    sp_buf_fini(&f->words);
}

void sp_fields_bad(sp_fields *f, const char *key, const char *fmt, ...) {
    char path[2 * SP_FIELDS_PATH_MAX], text[200];
    snprintf(path, sizeof path, "%s%.80s", f->path, key ? key : "");
    size_t len = strlen(path);
    if (!key && len && path[len - 1] == '.') path[len - 1] = 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (f->n++ == 0) snprintf(f->first, sizeof f->first, "%.119s", path);
    if (f->n > SP_FIELDS_SHOWN_MAX) return;
    if (f->words.len) sp_buf_puts(&f->words, "; ");
    sp_buf_printf(&f->words, "%s%s%s", path, path[0] ? ": " : "", text);
}

const char *sp_fields_message(sp_fields *f) {
    if (f->n == 0) return NULL;
    sp_buf b;
    sp_buf_init(&b, 2 * WORDS_MAX);
    if (f->n > 1) sp_buf_printf(&b, "%d errors: ", f->n);
    sp_buf_put_slice(&b, sp_buf_slice(&f->words));
    if (f->n > SP_FIELDS_SHOWN_MAX) sp_buf_printf(&b, "; and %d more", f->n - SP_FIELDS_SHOWN_MAX);
    const char *text = sp_arena_strndup(f->arena, b.ptr ? b.ptr : "", b.len);
    sp_buf_fini(&b);
    return text;
}

size_t sp_fields_enter(sp_fields *f, const char *key, int index) {
    size_t mark = strlen(f->path), room = sizeof f->path - mark;
    if (index >= 0)
        snprintf(f->path + mark, room, "%s.%d.", key, index);
    else
        snprintf(f->path + mark, room, "%s.", key);
    return mark;
}

void sp_fields_leave(sp_fields *f, size_t mark) {
    f->path[mark] = 0;
}

static const char *seen(const sp_json_node *v) {
    return sp_json_type_name(sp_json_type_of(v));
}

/* The member when it is there; null is absent. */
static const sp_json_node *member(const sp_json_node *o, const char *key) {
    const sp_json_node *v = sp_json_find(o, key);
    return sp_json_is_null(v) ? NULL : v;
}

bool sp_json_as_int(const sp_json_node *v, int64_t *out) {
    sp_json_type t = sp_json_type_of(v);
    if (t == SP_JSON_INT) {
        *out = sp_json_int(v);
        return true;
    }
    if (t != SP_JSON_FLOAT) return false;
    double d = sp_json_number(v);
    /* Beyond 2^53 a float that looks whole says nothing. */
    if (!(fabs(d) < 9007199254740992.0) || d != floor(d)) return false;
    *out = (int64_t)d;
    return true;
}

bool sp_field_bool(sp_fields *f, const sp_json_node *o, const char *key, bool *out) {
    const sp_json_node *v = member(o, key);
    if (!v) return false;
    if (sp_json_type_of(v) != SP_JSON_BOOL) {
        sp_fields_bad(f, key, "want a boolean, got %s", seen(v));
        return false;
    }
    *out = sp_json_bool(v);
    return true;
}

static void bad_int(sp_fields *f, const char *key, int64_t min, int64_t max, const char *got) {
    if (max == INT64_MAX && min == INT64_MIN)
        sp_fields_bad(f, key, "want an integer, got %s", got);
    else if (max >= INT32_MAX)
        sp_fields_bad(f, key, "want an integer of at least %lld, got %s", (long long)min, got);
    else
        sp_fields_bad(f, key, "want an integer from %lld to %lld, got %s", (long long)min,
                      (long long)max, got);
}

bool sp_field_int(sp_fields *f, const sp_json_node *o, const char *key, int64_t min, int64_t max,
                  int64_t *out) {
    const sp_json_node *v = member(o, key);
    if (!v) return false;
    int64_t i;
    char text[32];
    if (!sp_json_as_int(v, &i)) {
        bad_int(f, key, min, max, seen(v));
        return false;
    }
    if (i < min || i > max) {
        snprintf(text, sizeof text, "%lld", (long long)i);
        bad_int(f, key, min, max, text);
        return false;
    }
    *out = i;
    return true;
}

bool sp_field_number(sp_fields *f, const sp_json_node *o, const char *key, double min, double max,
                     bool above_min, double *out) {
    const sp_json_node *v = member(o, key);
    if (!v) return false;
    sp_json_type t = sp_json_type_of(v);
    double d = sp_json_number(v);
    bool is_number = t == SP_JSON_INT || t == SP_JSON_FLOAT;
    if (is_number && isfinite(d) && d <= max && (above_min ? d > min : d >= min)) {
        *out = d;
        return true;
    }
    char got[40];
    if (is_number)
        snprintf(got, sizeof got, "%.9g", d);
    else
        snprintf(got, sizeof got, "%s", seen(v));
    const char *from = above_min ? "above" : "from";
    if (isinf(min))
        sp_fields_bad(f, key, "want a finite number, got %s", got);
    else if (isinf(max))
        sp_fields_bad(f, key, "want a finite number %s %g, got %s", from, min, got);
    else
        sp_fields_bad(f, key, "want a number %s %g to %g, got %s", from, min, max, got);
    return false;
}

bool sp_field_string(sp_fields *f, const sp_json_node *o, const char *key, sp_slice *out) {
    const sp_json_node *v = member(o, key);
    if (!v) return false;
    if (sp_json_type_of(v) != SP_JSON_STRING) {
        sp_fields_bad(f, key, "want a string, got %s", seen(v));
        return false;
    }
    sp_slice s = sp_json_string(v);
    if (s.len > SP_FIELDS_STRING_MAX) {
        sp_fields_bad(f, key, "want at most %d bytes, got %zu", SP_FIELDS_STRING_MAX, s.len);
        return false;
    }
    *out = (sp_slice){sp_arena_strndup(f->arena, s.ptr, s.len), s.len};
    return true;
}

const sp_json_node *sp_field_array(sp_fields *f, const sp_json_node *o, const char *key,
                                   int max_items) {
    const sp_json_node *v = member(o, key);
    if (!v) return NULL;
    if (sp_json_type_of(v) != SP_JSON_ARRAY) {
        sp_fields_bad(f, key, "want an array, got %s", seen(v));
        return NULL;
    }
    int n = sp_json_count(v);
    if (n <= max_items) return v;
    sp_fields_bad(f, key, "want at most %d items, got %d", max_items, n);
    return NULL;
}

const sp_json_node *sp_field_object(sp_fields *f, const sp_json_node *o, const char *key) {
    const sp_json_node *v = member(o, key);
    if (!v || sp_json_type_of(v) == SP_JSON_OBJECT) return v;
    sp_fields_bad(f, key, "want an object, got %s", seen(v));
    return NULL;
}

bool sp_fields_take_ids(sp_fields *f, const char *key, const sp_json_node *array, int32_t n_vocab,
                        int32_t *out) {
    int i = 0;
    for (const sp_json_node *v = sp_json_first(array); v; v = sp_json_next(v), i++) {
        int64_t id;
        size_t mark = sp_fields_enter(f, key, i);
        bool good = sp_json_as_int(v, &id);
        if (!good)
            sp_fields_bad(f, NULL, "want a token id, got %s", seen(v));
        else if (id < 0 || id >= n_vocab)
            sp_fields_bad(f, NULL, "want a token id from 0 to %d, got %lld", n_vocab - 1,
                          (long long)id);
        good = good && id >= 0 && id < n_vocab;
        sp_fields_leave(f, mark);
        if (!good) return false;
        out[i] = (int32_t)id;
    }
    return true;
}

bool sp_field_ids(sp_fields *f, const sp_json_node *o, const char *key, int max_items,
                  int32_t n_vocab, const int32_t **out, int32_t *n) {
    const sp_json_node *v = sp_field_array(f, o, key, max_items);
    if (!v) return false;
    int count = sp_json_count(v);
    int32_t *ids = sp_arena_alloc(f->arena, (size_t)count * sizeof *ids + 1);
    if (!sp_fields_take_ids(f, key, v, n_vocab, ids)) return false;
    *out = ids;
    *n = count;
    return true;
}
