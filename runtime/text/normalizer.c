#include "runtime/text/normalizer.h"

#include "runtime/text/unicode.h"

/* A Replace may turn one byte into many; this bounds what a short request can make of it. */
#define GROWTH_MAX 16
#define GROWTH_FREE_BYTES ((size_t)1 << 20)

typedef struct job {
    sp_slice text;
    sp_buf *out;
    sp_normalizer_scratch *scratch;
    bool *cut;
    sp_err *err;
} job;

typedef struct step {
    sp_status (*apply)(const struct step *s, const job *j);
    sp_unicode_form form;         /* NFC and its kin */
    bool strip_left, strip_right; /* Strip */
    sp_pattern pattern;           /* Replace */
    sp_slice content;             /* owned; Replace, Prepend */
} step;

struct sp_normalizer {
    int n_steps;
    step steps[SP_NORMALIZER_STEPS_MAX];
};

static sp_status apply_form(const step *s, const job *j) {
    return sp_unicode_normalize(s->form, j->text, j->out, j->err);
}

static sp_status apply_lowercase(const step *s, const job *j) {
    (void)s;
    sp_unicode_lower(j->text, j->out);
    return SP_OK;
}

static sp_status apply_strip(const step *s, const job *j) {
    size_t from = 0, to = j->text.len;
    int len;
    while (s->strip_left && from < to &&
           sp_unicode_is_space(sp_utf8_get(j->text.ptr + from, to - from, &len)))
        from += (size_t)len;
    while (s->strip_right && to > from &&
           sp_unicode_is_space(sp_utf8_before(j->text.ptr, to, &len)))
        to -= (size_t)len;
    if (from > 0) *j->cut = true;
    sp_buf_put(j->out, j->text.ptr + from, to - from);
    return SP_OK;
}

static sp_status apply_strip_accents(const step *s, const job *j) {
    (void)s;
    for (size_t i = 0; i < j->text.len;) {
        int len;
        uint32_t cp = sp_utf8_get(j->text.ptr + i, j->text.len - i, &len);
        bool mark = sp_unicode_is_mark(cp);
        if (!mark) sp_buf_put(j->out, j->text.ptr + i, (size_t)len);
        if (mark && i == 0) *j->cut = true;
        i += (size_t)len;
    }
    return SP_OK;
}

static sp_status apply_prepend(const step *s, const job *j) {
    if (j->text.len) sp_buf_put_slice(j->out, s->content);
    sp_buf_put_slice(j->out, j->text);
    return SP_OK;
}

static sp_status apply_bytelevel(const step *s, const job *j) {
    (void)s;
    for (size_t i = 0; i < j->text.len; i++) {
        char utf8[4];
        uint32_t cp = sp_bytelevel_char((unsigned char)j->text.ptr[i]);
        sp_buf_put(j->out, utf8, (size_t)sp_utf8_encode(cp, utf8));
    }
    return SP_OK;
}

static sp_status apply_replace(const step *s, const job *j) {
    sp_regex_walk walk = sp_regex_walk_begin();
    size_t done = 0, start, end;
    for (;;) {
        bool found;
        SP_TRY(sp_pattern_next(&s->pattern, j->scratch->regex, j->text, &walk, &start, &end, &found,
                               j->err));
        if (!found) break;
        if (start == 0 && end > 0 && s->content.len == 0) *j->cut = true;
        sp_buf_put(j->out, j->text.ptr + done, start - done);
        sp_buf_put_slice(j->out, s->content);
        done = end;
    }
    sp_buf_put(j->out, j->text.ptr + done, j->text.len - done);
    return SP_OK;
}

sp_status sp_normalizer_run(const sp_normalizer *n, sp_slice text, sp_normalizer_scratch *s,
                            sp_slice *out, bool *cut, sp_err *err) {
    size_t limit;
    if (__builtin_mul_overflow(text.len, (size_t)GROWTH_MAX, &limit) ||
        __builtin_add_overflow(limit, GROWTH_FREE_BYTES, &limit))
        return SP_FAIL(err, SP_E_TOOLONG, "%zu bytes of text are too many", text.len);
    size_t bytes = text.len;
    *cut = false;
    for (int i = 0; i < n->n_steps; i++) {
        sp_buf *to = &s->bufs[i % 2];
        sp_buf_clear(to);
        to->limit = limit;
        job j = {.text = text, .out = to, .scratch = s, .cut = cut, .err = err};
        SP_TRY(n->steps[i].apply(&n->steps[i], &j));
        if (to->failed)
            return SP_FAIL(err, SP_E_TOOLONG, "normalizing %zu bytes of text needs more than %zu",
                           bytes, limit);
        text = (sp_slice){to->ptr ? to->ptr : "", to->len};
    }
    *out = text;
    return SP_OK;
}

void sp_normalizer_scratch_fini(sp_normalizer_scratch *s) {
    sp_buf_fini(&s->bufs[0]);
    sp_buf_fini(&s->bufs[1]);
}

bool sp_normalizer_is_empty(const sp_normalizer *n) {
    return n->n_steps == 0;
}

/* ---- loading ---- */

static sp_status load_content(const sp_json_node *node, const char *key, step *s, sp_err *err) {
    sp_slice text = {0};
    SP_TRY(sp_json_get_string(node, key, &text, err));
    if (!text.ptr) return SP_FAIL(err, SP_E_FORMAT, "%s: is missing", key);
    char *copy = sp_try_alloc(text.len + 1);
    if (!copy) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes", text.len);
    memcpy(copy, text.ptr, text.len);
    s->content = (sp_slice){copy, text.len};
    return SP_OK;
}

static sp_status load_replace(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_replace;
    SP_TRY(sp_pattern_load(&s->pattern, sp_json_find(node, "pattern"), err));
    return load_content(node, "content", s, err);
}

static sp_status load_prepend(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_prepend;
    return load_content(node, "prepend", s, err);
}

static sp_status load_strip(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_strip;
    SP_TRY(sp_json_get_bool(node, "strip_left", &s->strip_left, err));
    return sp_json_get_bool(node, "strip_right", &s->strip_right, err);
}

static sp_status load_type(sp_slice type, const sp_json_node *node, step *s, sp_err *err) {
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    for (size_t i = 0; i < SP_LEN(forms); i++)
        if (sp_slice_is(type, forms[i])) {
            *s = (step){.apply = apply_form, .form = (sp_unicode_form)i};
            return SP_OK;
        }
    if (sp_slice_is(type, "Replace")) return load_replace(node, s, err);
    if (sp_slice_is(type, "Prepend")) return load_prepend(node, s, err);
    if (sp_slice_is(type, "Strip")) return load_strip(node, s, err);
    if (sp_slice_is(type, "Lowercase"))
        s->apply = apply_lowercase;
    else if (sp_slice_is(type, "StripAccents"))
        s->apply = apply_strip_accents;
    else if (sp_slice_is(type, "ByteLevel"))
        s->apply = apply_bytelevel;
    else
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "type '%.*s' is not supported; supported: Sequence, NFC, NFD, NFKC, NFKD, "
                       "Lowercase, Strip, StripAccents, Replace, Prepend, ByteLevel",
                       (int)(type.len < 60 ? type.len : 60), type.ptr);
    return SP_OK;
}

static sp_status load_node(sp_normalizer *n, const sp_json_node *node, sp_err *err) {
    if (sp_json_type_of(node) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(node)));
    sp_slice type = SP_SLICE("");
    SP_TRY(sp_json_get_string(node, "type", &type, err));
    if (sp_slice_is(type, "Sequence")) {
        const sp_json_node *list = NULL;
        SP_TRY(sp_json_get_array(node, "normalizers", &list, err));
        if (!list) return SP_FAIL(err, SP_E_FORMAT, "Sequence has no 'normalizers'");
        for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v))
            SP_TRY(load_node(n, v, err));
        return SP_OK;
    }
    if (n->n_steps == SP_NORMALIZER_STEPS_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "more than %d steps", SP_NORMALIZER_STEPS_MAX);
    return load_type(type, node, &n->steps[n->n_steps++], err);
}

sp_status sp_normalizer_load(sp_normalizer **out, const sp_json_node *node, sp_err *err) {
    sp_normalizer *n = sp_try_alloc(sizeof *n);
    if (!n) return SP_FAIL(err, SP_E_NOMEM, "no memory for a normalizer");
    sp_status st = sp_json_is_null(node) ? SP_OK : load_node(n, node, err);
    if (st != SP_OK) {
        sp_normalizer_free(n);
        sp_err_context(err, "normalizer");
        return st;
    }
    *out = n;
    return SP_OK;
}

void sp_normalizer_free(sp_normalizer *n) {
    if (!n) return;
    for (int i = 0; i < n->n_steps; i++) {
        sp_pattern_fini(&n->steps[i].pattern);
        sp_free((char *)(uintptr_t)n->steps[i].content.ptr);
    }
    sp_free(n);
}
