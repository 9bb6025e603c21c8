#include "runtime/text/pretok.h"

#include "runtime/text/regex_syntax.h"
#include "runtime/text/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Steps of one match. A match of an honest pattern over 1 MiB needs a few steps a byte. */
#define MATCH_STEPS_MAX 20000000u
#define HEAP_KIB_MAX (64u * 1024) /* of the interpreter, where there is no JIT */
#define JIT_STACK_MIN ((size_t)32 * 1024)
#define JIT_STACK_MAX ((size_t)4 * 1024 * 1024)
#define REWRITTEN_BYTES_MAX ((size_t)1 << 20)

/* What ByteLevel splits by when use_regex is set. */
#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* ---- regex ---- */

struct sp_regex {
    pcre2_code *code;
};

void sp_regex_free(sp_regex *r) {
    if (!r) return;
    pcre2_code_free(r->code);
    sp_free(r);
}

static sp_status compile(sp_regex *r, sp_slice rewritten, sp_err *err) {
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    if (!ctx) return SP_FAIL(err, SP_E_NOMEM, "no memory for a regex");
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    r->code = pcre2_compile((PCRE2_SPTR)rewritten.ptr, rewritten.len, options, &code, &at, ctx);
    pcre2_compile_context_free(ctx);
    if (!r->code) {
        char words[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)words, sizeof words);
        return SP_FAIL(err, SP_E_FORMAT, "regex: %s at byte %zu of '%.80s'", words, (size_t)at,
                       rewritten.ptr);
    }
    /* Where the system forbids JIT the interpreter does the same work, slower. */
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    return SP_OK;
}

sp_status sp_regex_compile(sp_regex **out, sp_slice pattern, sp_err *err) {
    sp_regex *r = sp_try_alloc(sizeof *r);
    if (!r) return SP_FAIL(err, SP_E_NOMEM, "no memory for a regex");
    sp_buf rewritten;
    sp_buf_init(&rewritten, REWRITTEN_BYTES_MAX);
    sp_buf_puts(&rewritten, ""); /* a pattern may be empty, its pointer may not */
    sp_status st = sp_regex_rewrite(pattern, &rewritten, err);
    if (st == SP_OK) st = compile(r, sp_buf_slice(&rewritten), err);
    sp_buf_fini(&rewritten);
    if (st != SP_OK) {
        sp_regex_free(r);
        return st;
    }
    *out = r;
    return SP_OK;
}

void sp_regex_scratch_fini(sp_regex_scratch *s) {
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->limits);
    pcre2_jit_stack_free(s->stack);
    *s = (sp_regex_scratch){0};
}

static sp_status ready(sp_regex_scratch *s, sp_err *err) {
    if (s->match) return SP_OK;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    if (!match || !limits) {
        pcre2_match_data_free(match);
        pcre2_match_context_free(limits);
        return SP_FAIL(err, SP_E_NOMEM, "no memory to match a regex");
    }
    pcre2_set_match_limit(limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(limits, HEAP_KIB_MAX);
    pcre2_jit_stack *stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (stack) pcre2_jit_stack_assign(limits, NULL, stack);
    s->match = match;
    s->limits = limits;
    s->stack = stack;
    return SP_OK;
}

static int match_at(const sp_regex *r, sp_regex_scratch *s, sp_slice text, size_t from) {
    /* Without NO_UTF_CHECK every call would read the whole text: quadratic. */
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK,
                         s->match, s->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, (PCRE2_SPTR)text.ptr, text.len, from,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match, s->limits);
    return rc;
}

sp_status sp_regex_next(const sp_regex *r, sp_regex_scratch *s, sp_slice text, sp_regex_walk *walk,
                        size_t *start, size_t *end, bool *found, sp_err *err) {
    SP_TRY(ready(s, err));
    *found = false;
    while (walk->from <= text.len) {
        int rc = match_at(r, s, text, walk->from);
        if (rc == PCRE2_ERROR_NOMATCH) return SP_OK;
        if (rc < 0) {
            char words[120];
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)words, sizeof words);
            return SP_FAIL(err, rc == PCRE2_ERROR_NOMEMORY ? SP_E_NOMEM : SP_E_TOOLONG,
                           "the tokenizer's regex gave up at byte %zu of %zu: %s", walk->from,
                           text.len, words);
        }
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->match);
        *start = at[0];
        *end = at[1] < at[0] ? at[0] : at[1]; /* \K may turn them round */
        bool again = *end == *start && walk->last_end == *end;
        walk->from = walk->last_end = *end;
        if (!again) {
            *found = true;
            return SP_OK;
        }
        int len = 1;
        if (*end < text.len) sp_utf8_get(text.ptr + *end, text.len - *end, &len);
        walk->from += (size_t)len;
    }
    return SP_OK;
}

sp_status sp_pattern_load(sp_pattern *out, const sp_json_node *node, sp_err *err) {
    const sp_json_node *text = sp_json_find(node, "String"), *regex = sp_json_find(node, "Regex");
    const sp_json_node *v = text ? text : regex;
    if (sp_json_type_of(node) != SP_JSON_OBJECT || sp_json_count(node) != 1 ||
        sp_json_type_of(v) != SP_JSON_STRING)
        return SP_FAIL(err, SP_E_FORMAT, "pattern: want {\"String\": …} or {\"Regex\": …}");
    sp_pattern p = {0};
    sp_slice s = sp_json_string(v);
    if (regex || s.len == 0) { /* an empty string matches as an empty regex does */
        SP_TRY(sp_regex_compile(&p.regex, s, err));
    } else {
        if (s.len > SP_REGEX_PATTERN_BYTES_MAX)
            return SP_FAIL(err, SP_E_TOOLONG, "pattern of %zu bytes, at most %zu are allowed",
                           s.len, SP_REGEX_PATTERN_BYTES_MAX);
        p.text = (sp_slice){sp_strndup(s.ptr, s.len), s.len};
    }
    *out = p;
    return SP_OK;
}

void sp_pattern_fini(sp_pattern *p) {
    sp_regex_free(p->regex);
    sp_free((char *)(uintptr_t)p->text.ptr);
    *p = (sp_pattern){0};
}

sp_status sp_pattern_next(const sp_pattern *p, sp_regex_scratch *s, sp_slice text,
                          sp_regex_walk *walk, size_t *start, size_t *end, bool *found,
                          sp_err *err) {
    if (p->regex) return sp_regex_next(p->regex, s, text, walk, start, end, found, err);
    ptrdiff_t at = sp_slice_find(text, p->text, walk->from);
    *found = at >= 0;
    if (!*found) return SP_OK;
    *start = (size_t)at;
    walk->from = walk->last_end = *end = *start + p->text.len;
    return SP_OK;
}

/* ---- pieces ---- */

sp_status sp_pieces_push(sp_pieces *p, sp_piece piece) {
    if (p->len == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 64, bytes;
        if (__builtin_mul_overflow(cap, sizeof *p->ptr, &bytes)) return SP_E_NOMEM;
        sp_piece *grown = sp_try_realloc(p->ptr, bytes);
        if (!grown) return SP_E_NOMEM;
        p->ptr = grown;
        p->cap = cap;
    }
    p->ptr[p->len++] = piece;
    return SP_OK;
}

void sp_pieces_fini(sp_pieces *p) {
    sp_free(p->ptr);
    *p = (sp_pieces){0};
}

/* ---- steps ---- */

typedef enum behavior {
    REMOVED,
    ISOLATED,
    MERGED_WITH_PREVIOUS,
    MERGED_WITH_NEXT,
    CONTIGUOUS,
} behavior;

typedef enum prepend {
    ALWAYS,
    FIRST,
    NEVER
} prepend;

typedef struct run run;
typedef struct step {
    sp_status (*apply)(const struct step *step, run *r, sp_piece piece);
    sp_pattern pattern;           /* Split; ByteLevel's regex */
    behavior behavior;            /* Split, Punctuation, Digits */
    bool invert;                  /* Split */
    bool (*matches)(uint32_t cp); /* Digits, Punctuation, WhitespaceSplit */
    bool add_prefix_space;        /* ByteLevel */
    bool split;                   /* Metaspace */
    prepend prepend;              /* Metaspace */
    char mark[4];                 /* Metaspace's replacement */
    size_t mark_len;
} step;

struct sp_pretok {
    int n_steps;
    step steps[SP_PRETOK_STEPS_MAX];
};

/* One run of a step: where pieces go, and what they may borrow from. */
struct run {
    sp_pieces *out;
    sp_arena *arena;
    sp_regex_scratch *scratch;
    sp_err *err;
};

static sp_status emit(run *r, sp_piece piece) {
    if (piece.len == 0 && piece.id < 0) return SP_OK;
    if (sp_pieces_push(r->out, piece) == SP_OK) return SP_OK;
    return SP_FAIL(r->err, SP_E_NOMEM, "no memory for %zu pieces of text", r->out->len);
}

static char *take(run *r, size_t n, sp_status *st) {
    char *p = sp_arena_try(r->arena, n + 1);
    *st = p ? SP_OK : SP_FAIL(r->err, SP_E_NOMEM, "no memory for %zu bytes of text", n);
    return p;
}

/* Puts spans of a piece together as a behavior wants. Spans come in order and cover the piece. */
typedef struct joiner {
    run *r;
    sp_piece piece;
    behavior behavior;
    bool held, held_match, prev_match;
    size_t start, end; /* of the span held */
} joiner;

static sp_status release(joiner *j) {
    if (!j->held) return SP_OK;
    j->held = false;
    return emit(j->r, (sp_piece){.ptr = j->piece.ptr + j->start,
                                 .len = j->end - j->start,
                                 .id = -1,
                                 .first = j->piece.first && j->start == 0});
}

static bool joins(const joiner *j, bool match) {
    switch (j->behavior) {
    case MERGED_WITH_PREVIOUS:
        return match && !j->prev_match;
    case MERGED_WITH_NEXT:
        return !match && j->held_match;
    case CONTIGUOUS:
        return match == j->prev_match;
    case REMOVED:
    case ISOLATED:
        break;
    }
    return false;
}

static sp_status add_span(joiner *j, size_t start, size_t end, bool match) {
    bool join = j->held && joins(j, match);
    j->prev_match = match;
    if (join) {
        j->end = end;
        j->held_match = false;
        return SP_OK;
    }
    SP_TRY(release(j));
    if (j->behavior == REMOVED && match) return SP_OK;
    j->held = true;
    j->held_match = match;
    j->start = start;
    j->end = end;
    return SP_OK;
}

static sp_status split_by_pattern(const step *s, run *r, sp_piece piece, behavior b, bool invert) {
    joiner j = {.r = r, .piece = piece, .behavior = b};
    sp_slice text = {piece.ptr, piece.len};
    sp_regex_walk walk = sp_regex_walk_begin();
    size_t done = 0, start, end;
    for (bool found = true; found;) {
        SP_TRY(sp_pattern_next(&s->pattern, r->scratch, text, &walk, &start, &end, &found, r->err));
        if (!found) break;
        if (start > done) SP_TRY(add_span(&j, done, start, invert));
        SP_TRY(add_span(&j, start, end, !invert));
        done = end;
    }
    if (done < text.len) SP_TRY(add_span(&j, done, text.len, invert));
    return release(&j);
}

static sp_status apply_split(const step *s, run *r, sp_piece piece) {
    return split_by_pattern(s, r, piece, s->behavior, s->invert);
}

static sp_status apply_class(const step *s, run *r, sp_piece piece) {
    joiner j = {.r = r, .piece = piece, .behavior = s->behavior};
    size_t done = 0;
    for (size_t i = 0; i < piece.len;) {
        int len;
        bool match = s->matches(sp_utf8_get(piece.ptr + i, piece.len - i, &len));
        size_t next = i + (size_t)len;
        if (match && done < i) SP_TRY(add_span(&j, done, i, false));
        if (match) SP_TRY(add_span(&j, i, next, true));
        if (match) done = next;
        i = next;
    }
    if (done < piece.len) SP_TRY(add_span(&j, done, piece.len, false));
    return release(&j);
}

/* Whitespace: runs of word characters, and runs of what is neither word nor space. */
static sp_status apply_whitespace(const step *s, run *r, sp_piece piece) {
    (void)s;
    enum {
        SPACES,
        WORDS,
        OTHERS
    } kind = SPACES, now;
    size_t start = 0;
    for (size_t i = 0; i < piece.len;) {
        int len;
        uint32_t cp = sp_utf8_get(piece.ptr + i, piece.len - i, &len);
        now = sp_unicode_is_word(cp) ? WORDS : sp_unicode_is_space(cp) ? SPACES : OTHERS;
        if (now != kind) {
            sp_piece done = {piece.ptr + start, i - start, -1, piece.first && start == 0};
            if (kind != SPACES) SP_TRY(emit(r, done));
            start = i;
            kind = now;
        }
        i += (size_t)len;
    }
    sp_piece rest = {piece.ptr + start, piece.len - start, -1, piece.first && start == 0};
    return kind == SPACES ? SP_OK : emit(r, rest);
}

static sp_status with_prefix(run *r, sp_piece *piece, const char *prefix, size_t n) {
    sp_status st;
    char *p = take(r, piece->len + n, &st);
    if (!p) return st;
    memcpy(p, prefix, n);
    memcpy(p + n, piece->ptr, piece->len);
    piece->ptr = p;
    piece->len += n;
    return SP_OK;
}

static sp_status map_bytes(run *r, sp_piece *piece) {
    sp_status st;
    char *p = take(r, 2 * piece->len, &st);
    if (!p) return st;
    size_t n = 0;
    for (size_t i = 0; i < piece->len; i++)
        n += (size_t)sp_utf8_encode(sp_bytelevel_char((unsigned char)piece->ptr[i]), p + n);
    piece->ptr = p;
    piece->len = n;
    return SP_OK;
}

static sp_status apply_bytelevel(const step *s, run *r, sp_piece piece) {
    if (s->add_prefix_space && piece.ptr[0] != ' ') SP_TRY(with_prefix(r, &piece, " ", 1));
    size_t from = r->out->len;
    SP_TRY(s->pattern.regex ? split_by_pattern(s, r, piece, ISOLATED, false) : emit(r, piece));
    for (size_t i = from; i < r->out->len; i++) SP_TRY(map_bytes(r, &r->out->ptr[i]));
    return SP_OK;
}

static sp_status replace_spaces(const step *s, run *r, sp_piece *piece) {
    size_t spaces = 0;
    for (size_t i = 0; i < piece->len; i++) spaces += piece->ptr[i] == ' ';
    if (!spaces) return SP_OK;
    sp_status st;
    char *p = take(r, piece->len + spaces * s->mark_len, &st);
    if (!p) return st;
    size_t n = 0;
    for (size_t i = 0; i < piece->len; i++) {
        bool space = piece->ptr[i] == ' ';
        memcpy(p + n, space ? s->mark : piece->ptr + i, space ? s->mark_len : 1);
        n += space ? s->mark_len : 1;
    }
    piece->ptr = p;
    piece->len = n;
    return SP_OK;
}

static sp_status apply_metaspace(const step *s, run *r, sp_piece piece) {
    SP_TRY(replace_spaces(s, r, &piece));
    sp_slice mark = {s->mark, s->mark_len};
    bool marked = sp_slice_starts((sp_slice){piece.ptr, piece.len}, mark);
    bool wanted = s->prepend == ALWAYS || (s->prepend == FIRST && piece.first);
    if (wanted && !marked) SP_TRY(with_prefix(r, &piece, s->mark, s->mark_len));
    if (!s->split) return emit(r, piece);
    joiner j = {.r = r, .piece = piece, .behavior = MERGED_WITH_NEXT};
    size_t done = 0;
    for (;;) {
        ptrdiff_t at = sp_slice_find((sp_slice){piece.ptr, piece.len}, mark, done);
        if (at < 0) break;
        if ((size_t)at > done) SP_TRY(add_span(&j, done, (size_t)at, false));
        done = (size_t)at + mark.len;
        SP_TRY(add_span(&j, (size_t)at, done, true));
    }
    if (done < piece.len) SP_TRY(add_span(&j, done, piece.len, false));
    return release(&j);
}

/* ---- loading ---- */

typedef struct loader {
    sp_pretok *p;
    sp_err *err;
} loader;

static sp_status load_behavior(const sp_json_node *node, behavior *out, sp_err *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    sp_slice name = {0};
    SP_TRY(sp_json_get_string(node, "behavior", &name, err));
    if (!name.ptr) return SP_OK;
    for (size_t i = 0; i < SP_LEN(names); i++)
        if (sp_slice_is(name, names[i])) {
            *out = (behavior)i;
            return SP_OK;
        }
    return SP_FAIL(err, SP_E_FORMAT, "behavior: '%.*s' is not one of the five", (int)name.len,
                   name.ptr);
}

static sp_status load_split(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_split;
    if (!sp_json_find(node, "behavior")) return SP_FAIL(err, SP_E_FORMAT, "behavior: is missing");
    SP_TRY(load_behavior(node, &s->behavior, err));
    SP_TRY(sp_json_get_bool(node, "invert", &s->invert, err));
    return sp_pattern_load(&s->pattern, sp_json_find(node, "pattern"), err);
}

static sp_status load_bytelevel(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_bytelevel;
    s->add_prefix_space = true;
    bool use_regex = true;
    SP_TRY(sp_json_get_bool(node, "add_prefix_space", &s->add_prefix_space, err));
    SP_TRY(sp_json_get_bool(node, "use_regex", &use_regex, err));
    if (!use_regex) return SP_OK;
    return sp_regex_compile(&s->pattern.regex, SP_SLICE(GPT2_PATTERN), err);
}

static sp_status load_metaspace(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_metaspace;
    s->split = true;
    sp_slice mark = {0}, scheme = SP_SLICE("always");
    bool add_prefix_space = true;
    SP_TRY(sp_json_get_string(node, "replacement", &mark, err));
    SP_TRY(sp_json_get_string(node, "prepend_scheme", &scheme, err));
    SP_TRY(sp_json_get_bool(node, "add_prefix_space", &add_prefix_space, err));
    SP_TRY(sp_json_get_bool(node, "split", &s->split, err));
    uint32_t cp;
    int len = mark.len ? sp_utf8_decode(mark.ptr, mark.len, &cp) : 0;
    if (len == 0 || (size_t)len != mark.len)
        return SP_FAIL(err, SP_E_FORMAT, "replacement: want one character, got '%.*s'",
                       (int)mark.len, mark.ptr ? mark.ptr : "");
    memcpy(s->mark, mark.ptr, mark.len);
    s->mark_len = mark.len;
    bool always = sp_slice_is(scheme, "always"), first = sp_slice_is(scheme, "first");
    if (!always && !first && !sp_slice_is(scheme, "never"))
        return SP_FAIL(err, SP_E_FORMAT, "prepend_scheme: want always, first or never, got '%.*s'",
                       (int)scheme.len, scheme.ptr);
    /* Older files have only add_prefix_space. */
    s->prepend = always && add_prefix_space ? ALWAYS : first && add_prefix_space ? FIRST : NEVER;
    return SP_OK;
}

static sp_status load_digits(const sp_json_node *node, step *s, sp_err *err) {
    bool individual = false;
    SP_TRY(sp_json_get_bool(node, "individual_digits", &individual, err));
    s->apply = apply_class;
    s->matches = sp_unicode_is_numeric;
    s->behavior = individual ? ISOLATED : CONTIGUOUS;
    return SP_OK;
}

static sp_status load_punctuation(const sp_json_node *node, step *s, sp_err *err) {
    s->apply = apply_class;
    s->matches = sp_unicode_is_punct;
    s->behavior = ISOLATED;
    return load_behavior(node, &s->behavior, err);
}

static sp_status load_whitespace(const sp_json_node *node, step *s, sp_err *err) {
    (void)node;
    (void)err;
    s->apply = apply_whitespace;
    return SP_OK;
}

static sp_status load_whitespace_split(const sp_json_node *node, step *s, sp_err *err) {
    (void)node;
    (void)err;
    s->apply = apply_class;
    s->matches = sp_unicode_is_space;
    s->behavior = REMOVED;
    return SP_OK;
}

static sp_status load_node(loader *l, const sp_json_node *node);

static sp_status load_sequence(loader *l, const sp_json_node *node) {
    const sp_json_node *list = NULL;
    SP_TRY(sp_json_get_array(node, "pretokenizers", &list, l->err));
    if (!list) return SP_FAIL(l->err, SP_E_FORMAT, "Sequence has no 'pretokenizers'");
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v))
        SP_TRY(load_node(l, v));
    return SP_OK;
}

static sp_status load_node(loader *l, const sp_json_node *node) {
    static const struct {
        const char *type;
        sp_status (*load)(const sp_json_node *, step *, sp_err *);
    } types[] = {{"Split", load_split},
                 {"ByteLevel", load_bytelevel},
                 {"Metaspace", load_metaspace},
                 {"Digits", load_digits},
                 {"Punctuation", load_punctuation},
                 {"Whitespace", load_whitespace},
                 {"WhitespaceSplit", load_whitespace_split}};
    if (sp_json_type_of(node) != SP_JSON_OBJECT)
        return SP_FAIL(l->err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(node)));
    sp_slice type = SP_SLICE("");
    SP_TRY(sp_json_get_string(node, "type", &type, l->err));
    if (sp_slice_is(type, "Sequence")) return load_sequence(l, node);
    if (l->p->n_steps == SP_PRETOK_STEPS_MAX)
        return SP_FAIL(l->err, SP_E_TOOLONG, "more than %d steps", SP_PRETOK_STEPS_MAX);
    for (size_t i = 0; i < SP_LEN(types); i++) {
        if (!sp_slice_is(type, types[i].type)) continue;
        sp_status st = types[i].load(node, &l->p->steps[l->p->n_steps++], l->err);
        if (st != SP_OK) sp_err_context(l->err, "%s", types[i].type);
        return st;
    }
    return SP_FAIL(l->err, SP_E_UNSUPPORTED,
                   "type '%.*s' is not supported; supported: Sequence, Split, ByteLevel, "
                   "Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit",
                   (int)(type.len < 60 ? type.len : 60), type.ptr);
}

sp_status sp_pretok_load(sp_pretok **out, const sp_json_node *node, sp_err *err) {
    loader l = {.p = sp_try_alloc(sizeof *l.p), .err = err};
    if (!l.p) return SP_FAIL(err, SP_E_NOMEM, "no memory for a pre-tokenizer");
    sp_status st = sp_json_is_null(node) ? SP_OK : load_node(&l, node);
    if (st != SP_OK) {
        sp_pretok_free(l.p);
        sp_err_context(err, "pre_tokenizer");
        return st;
    }
    *out = l.p;
    return SP_OK;
}

void sp_pretok_free(sp_pretok *p) {
    if (!p) return;
    for (int i = 0; i < p->n_steps; i++) sp_pattern_fini(&p->steps[i].pattern);
    sp_free(p);
}

sp_status sp_pretok_run(const sp_pretok *p, sp_pieces *pieces, sp_pieces *spare, sp_arena *arena,
                        sp_regex_scratch *scratch, sp_err *err) {
    for (int i = 0; i < p->n_steps; i++) {
        spare->len = 0;
        run r = {.out = spare, .arena = arena, .scratch = scratch, .err = err};
        const step *s = &p->steps[i];
        for (size_t k = 0; k < pieces->len; k++) {
            sp_piece piece = pieces->ptr[k];
            if (piece.len == 0 && piece.id < 0) continue;
            SP_TRY(piece.id >= 0 ? emit(&r, piece) : s->apply(s, &r, piece));
        }
        sp_pieces swap = *pieces;
        *pieces = *spare;
        *spare = swap;
    }
    return SP_OK;
}
