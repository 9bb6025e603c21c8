#include "runtime/text/decoder.h"

#include "runtime/text/unicode.h"

typedef struct stage stage;

/* What a decoder does with a chunk of a token, at the end of a token, and at the end of all. */
typedef struct step_ops {
    const char *name;
    void (*put)(stage *s, sp_slice chunk);
    void (*end_token)(stage *s);
    void (*finish)(stage *s);
    void (*settle)(stage *s); /* optional */
} step_ops;

typedef struct step {
    const step_ops *ops;
    sp_pattern pattern; /* Replace */
    sp_slice text;      /* owned: Replace's content, BPEDecoder's suffix, Strip's and Metaspace's
                            character */
    size_t start, stop; /* Strip */
    bool drops_first;   /* Metaspace: no space for the mark in the first token */
    bool after_fuse;    /* Strip: its one token is the whole text */
} step;

struct sp_decoder {
    int n_steps;
    step steps[SP_DECODER_STEPS_MAX];
};

struct stage {
    const step *step;
    sp_decode_stream *stream;
    sp_buf hold;   /* of the current token */
    sp_buf run;    /* ByteFallback: bytes of a run; BPEDecoder: the last token; ByteLevel: a cut
                      character */
    size_t count;  /* Strip: characters cut; tokens seen by others */
    size_t held;   /* Strip: characters held back at the end */
    size_t primed; /* bytes of `run` that came before sp_decode_settle() */
    bool flag;     /* Strip: past the beginning; ByteFallback: the run is bad;
                      BPEDecoder: `run` holds a token */
};

struct sp_decode_stream {
    const sp_decoder *decoder;
    sp_buf *out;
    sp_regex_scratch regex;
    bool raw;
    stage stages[];
};

/* ---- passing on ---- */

static bool is_last(const stage *s) {
    return s == &s->stream->stages[s->stream->decoder->n_steps - 1];
}

static void pass(stage *s, const char *p, size_t n) {
    if (n == 0) return;
    if (is_last(s))
        sp_buf_put(s->stream->out, p, n);
    else
        s[1].step->ops->put(s + 1, (sp_slice){p, n});
}

static void pass_end(stage *s) {
    if (!is_last(s)) s[1].step->ops->end_token(s + 1);
}

static void pass_replacement(stage *s) {
    pass(s, SP_UTF8_REPLACEMENT, 3);
}

/* The bytes of a buffer that may never have been written to. */
static sp_slice bytes_in(const sp_buf *b) {
    return (sp_slice){b->ptr ? b->ptr : "", b->len};
}

static void finish_nothing(stage *s) {
    (void)s;
}
static void hold_chunk(stage *s, sp_slice chunk) {
    sp_buf_put_slice(&s->hold, chunk);
}

static void settle_hold(stage *s) {
    sp_buf_clear(&s->hold);
}

/* ---- no decoder: a space between tokens ---- */

static void join_put(stage *s, sp_slice chunk) {
    pass(s, chunk.ptr, chunk.len);
}
static void join_end_token(stage *s) {
    s->count++;
}

/* ---- Replace ---- */

/* Bytes at the end of `text` that may be the beginning of `pattern`. */
static size_t open_end(sp_slice text, sp_slice pattern) {
    size_t n = pattern.len - 1 < text.len ? pattern.len - 1 : text.len;
    while (n > 0 && memcmp(text.ptr + text.len - n, pattern.ptr, n) != 0) n--;
    return n;
}

static void replace_held(stage *s, bool at_end) {
    const step *t = s->step;
    sp_slice text = bytes_in(&s->hold);
    sp_regex_walk walk = sp_regex_walk_begin();
    size_t done = 0, start, end;
    bool found = text.len > 0;
    while (found) {
        /* A regex that hits a limit leaves the rest as it is; there is nobody to tell. */
        if (sp_pattern_next(&t->pattern, &s->stream->regex, text, &walk, &start, &end, &found,
                            NULL) != SP_OK)
            break;
        if (!found) break;
        pass(s, text.ptr + done, start - done);
        pass(s, t->text.ptr, t->text.len);
        done = end;
    }
    sp_slice rest = {text.ptr + done, text.len - done};
    size_t keep = at_end ? 0 : open_end(rest, t->pattern.text);
    pass(s, rest.ptr, rest.len - keep);
    if (keep) memmove(s->hold.ptr, rest.ptr + rest.len - keep, keep);
    s->hold.len = keep;
}

static void replace_put(stage *s, sp_slice chunk) {
    sp_buf_put_slice(&s->hold, chunk);
    if (!s->step->pattern.regex) replace_held(s, false);
}

static void replace_end_token(stage *s) {
    bool readable = !s->stream->raw || sp_utf8_valid(bytes_in(&s->hold));
    if (readable)
        replace_held(s, true);
    else
        pass(s, s->hold.ptr, s->hold.len);
    sp_buf_clear(&s->hold);
    pass_end(s);
}

/* ---- ByteFallback ---- */

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    char low = (char)(c | 32);
    return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

static int byte_of_token(sp_slice t) {
    if (t.len != 6 || memcmp(t.ptr, "<0x", 3) != 0 || t.ptr[5] != '>') return -1;
    int high = hex_value(t.ptr[3]), low = hex_value(t.ptr[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static void flush_bad_run(stage *s) {
    for (size_t i = s->primed; i < s->run.len; i++) {
        pass_replacement(s);
        pass_end(s);
    }
}

static void forget_run(stage *s) {
    sp_buf_clear(&s->run);
    s->count = s->primed = 0;
    s->flag = false;
}

static void end_run(stage *s) {
    sp_slice run = bytes_in(&s->run);
    if (run.len && s->count == run.len) {
        pass(s, run.ptr, run.len);
        pass_end(s);
    } else if (run.len) {
        flush_bad_run(s);
    }
    forget_run(s);
}

/* `count` is the part of the run that is whole characters. A run that can no longer become valid is
 * given out at once, and so is each byte that follows in it. */
static void add_byte(stage *s, char byte) {
    if (s->stream->raw) {
        pass(s, &byte, 1);
        pass_end(s);
        return;
    }
    if (s->flag) {
        pass_replacement(s);
        pass_end(s);
        return;
    }
    sp_buf_putc(&s->run, byte);
    if (s->run.failed) return;
    int len = sp_utf8_next(s->run.ptr + s->count, s->run.len - s->count);
    if (len > 0) s->count += (size_t)len;
    if (len >= 0) return;
    flush_bad_run(s);
    forget_run(s);
    s->flag = true;
}

static void bytes_end_token(stage *s) {
    sp_slice token = bytes_in(&s->hold);
    int byte = byte_of_token(token);
    if (byte >= 0) {
        add_byte(s, (char)byte);
    } else {
        end_run(s);
        pass(s, token.ptr, token.len);
        pass_end(s);
    }
    sp_buf_clear(&s->hold);
}

static void bytes_settle(stage *s) {
    sp_buf_clear(&s->hold);
    size_t keep = s->run.len - s->count;
    if (keep && s->count) memmove(s->run.ptr, s->run.ptr + s->count, keep);
    s->run.len = s->primed = keep;
    s->count = 0;
    s->flag = false;
}

/* ---- ByteLevel ---- */

/* The bytes a token spells, or the token itself where a character spells none. */
static sp_slice bytes_of_token(stage *s) {
    sp_slice token = bytes_in(&s->hold);
    size_t n = 0;
    for (size_t i = 0; i < token.len;) {
        uint32_t cp;
        int len = sp_utf8_decode(token.ptr + i, token.len - i, &cp);
        if (len == 0 || sp_bytelevel_byte(cp) < 0) return token;
        i += (size_t)len;
    }
    for (size_t i = 0; i < token.len;) { /* in place: a character is never shorter than its byte */
        int len;
        uint32_t cp = sp_utf8_get(token.ptr + i, token.len - i, &len);
        s->hold.ptr[n++] = (char)sp_bytelevel_byte(cp);
        i += (size_t)len;
    }
    return (sp_slice){token.ptr, n};
}

static void level_end_token(stage *s) {
    sp_slice bytes = bytes_of_token(s);
    if (s->stream->raw) {
        pass(s, bytes.ptr, bytes.len);
        sp_buf_clear(&s->hold);
        return;
    }
    /* The cut character of the last token comes first. */
    sp_buf_put_slice(&s->run, bytes);
    sp_slice run = bytes_in(&s->run);
    size_t done = 0, good = 0;
    while (done < run.len) {
        int len = sp_utf8_next(run.ptr + done, run.len - done);
        if (len == 0) break;
        if (len < 0) {
            pass(s, run.ptr + good, done - good);
            if (done >= s->primed) pass_replacement(s);
            good = done + (size_t)-len;
        }
        done += (size_t)(len < 0 ? -len : len);
    }
    pass(s, run.ptr + good, done - good);
    size_t keep = run.len - done;
    if (keep && done) memmove(s->run.ptr, s->run.ptr + done, keep);
    s->run.len = keep;
    s->primed = done < s->primed ? s->primed - done : 0;
    sp_buf_clear(&s->hold);
}

static void level_finish(stage *s) {
    if (s->run.len && !s->primed) pass_replacement(s);
    sp_buf_clear(&s->run);
    pass_end(s);
}

static void level_settle(stage *s) {
    sp_buf_clear(&s->hold);
    s->primed = s->run.len;
}

/* ---- Fuse ---- */

static void fuse_end_token(stage *s) {
    (void)s;
}

/* ---- Strip ---- */

static void strip_put(stage *s, sp_slice chunk) {
    const step *t = s->step;
    /* One token cut out of a text has no beginning and no end to strip. */
    bool whole = s->stream->raw && t->after_fuse;
    if (whole || (t->stop == 0 && (s->flag || s->count == t->start))) {
        pass(s, chunk.ptr, chunk.len);
        return;
    }
    for (size_t i = 0; i < chunk.len;) {
        int len;
        sp_utf8_get(chunk.ptr + i, chunk.len - i, &len);
        sp_slice c = {chunk.ptr + i, (size_t)len};
        bool match = sp_slice_eq(c, t->text);
        i += (size_t)len;
        if (match && !s->flag && s->count < t->start) {
            s->count++;
            continue;
        }
        s->flag = true;
        if (match && s->held < t->stop) {
            s->held++;
            continue;
        }
        for (; s->held && !match; s->held--) pass(s, t->text.ptr, t->text.len);
        pass(s, c.ptr, c.len);
    }
}

static void strip_end_token(stage *s) {
    s->count = s->held = 0;
    s->flag = false;
    pass_end(s);
}

static void strip_settle(stage *s) {
    s->held = 0;
}

/* ---- Metaspace ---- */

static void metaspace_put(stage *s, sp_slice chunk) {
    sp_slice mark = s->step->text;
    bool drop = s->count == 0 && s->step->drops_first && !s->stream->raw;
    size_t done = 0;
    for (;;) {
        ptrdiff_t at = sp_slice_find(chunk, mark, done);
        if (at < 0) break;
        pass(s, chunk.ptr + done, (size_t)at - done);
        if (!drop) pass(s, " ", 1);
        done = (size_t)at + mark.len;
    }
    pass(s, chunk.ptr + done, chunk.len - done);
}

static void metaspace_end_token(stage *s) {
    s->count = 1;
    pass_end(s);
}

/* ---- BPEDecoder ---- */

static void pass_replaced(stage *s, sp_slice token, const char *with) {
    sp_slice suffix = s->step->text;
    size_t done = 0;
    for (;;) {
        ptrdiff_t at = sp_slice_find(token, suffix, done);
        if (at < 0) break;
        pass(s, token.ptr + done, (size_t)at - done);
        pass(s, with, strlen(with));
        done = (size_t)at + suffix.len;
    }
    pass(s, token.ptr + done, token.len - done);
    pass_end(s);
}

static void bpe_release(stage *s, const char *with) {
    if (s->flag) pass_replaced(s, bytes_in(&s->run), with);
    s->flag = false;
    sp_buf_clear(&s->run);
}

static void bpe_end_token(stage *s) {
    bpe_release(s, " ");
    sp_slice token = bytes_in(&s->hold);
    if (sp_slice_find(token, s->step->text, 0) >= 0) {
        /* Its suffix is a space if another token follows, else nothing. */
        sp_buf_put_slice(&s->run, token);
        s->flag = true;
        if (s->stream->raw) bpe_release(s, " ");
    } else {
        pass(s, token.ptr, token.len);
        pass_end(s);
    }
    sp_buf_clear(&s->hold);
}

static void bpe_finish(stage *s) {
    bpe_release(s, "");
}

static void bpe_settle(stage *s) {
    sp_buf_clear(&s->hold);
    sp_buf_clear(&s->run);
    s->flag = false;
}

static const step_ops JOIN = {"join", join_put, join_end_token, finish_nothing, NULL};
static const step_ops REPLACE = {"Replace", replace_put, replace_end_token, finish_nothing,
                                 settle_hold};
static const step_ops BYTE_FALLBACK = {"ByteFallback", hold_chunk, bytes_end_token, end_run,
                                       bytes_settle};
static const step_ops BYTE_LEVEL = {"ByteLevel", hold_chunk, level_end_token, level_finish,
                                    level_settle};
static const step_ops FUSE = {"Fuse", join_put, fuse_end_token, pass_end, NULL};
static const step_ops STRIP = {"Strip", strip_put, strip_end_token, finish_nothing, strip_settle};
static const step_ops METASPACE = {"Metaspace", metaspace_put, metaspace_end_token, finish_nothing,
                                   NULL};
static const step_ops BPE_DECODER = {"BPEDecoder", hold_chunk, bpe_end_token, bpe_finish,
                                     bpe_settle};

/* ---- streams ---- */

sp_status sp_decode_open(sp_decode_stream **out, const sp_decoder *d, bool raw) {
    sp_decode_stream *s = sp_try_alloc(sizeof *s + (size_t)d->n_steps * sizeof s->stages[0]);
    if (!s) return SP_E_NOMEM;
    s->decoder = d;
    s->raw = raw;
    for (int i = 0; i < d->n_steps; i++) {
        s->stages[i].step = &d->steps[i];
        s->stages[i].stream = s;
    }
    *out = s;
    return SP_OK;
}

void sp_decode_close(sp_decode_stream *s) {
    if (!s) return;
    for (int i = 0; i < s->decoder->n_steps; i++) {
        sp_buf_fini(&s->stages[i].hold);
        sp_buf_fini(&s->stages[i].run);
    }
    sp_regex_scratch_fini(&s->regex);
    sp_free(s);
}

static void report_failures(sp_decode_stream *s, sp_buf *out) {
    for (int i = 0; i < s->decoder->n_steps; i++)
        if (s->stages[i].hold.failed || s->stages[i].run.failed) out->failed = true;
}

void sp_decode_token(sp_decode_stream *s, sp_slice token, sp_buf *out) {
    s->out = out;
    stage *first = &s->stages[0];
    if (first->step->ops == &JOIN && first->count > 0 && !s->raw) pass(first, " ", 1);
    if (token.len) first->step->ops->put(first, token);
    first->step->ops->end_token(first);
    report_failures(s, out);
}

void sp_decode_end(sp_decode_stream *s, sp_buf *out) {
    s->out = out;
    for (int i = 0; i < s->decoder->n_steps; i++) s->stages[i].step->ops->finish(&s->stages[i]);
    report_failures(s, out);
}

void sp_decode_settle(sp_decode_stream *s) {
    for (int i = 0; i < s->decoder->n_steps; i++)
        if (s->stages[i].step->ops->settle) s->stages[i].step->ops->settle(&s->stages[i]);
}

/* ---- loading ---- */

static sp_status copy_text(step *s, sp_slice text, sp_err *err) {
    char *p = sp_try_alloc(text.len + 1);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for a decoder");
    if (text.len) memcpy(p, text.ptr, text.len);
    s->text = (sp_slice){p, text.len};
    return SP_OK;
}

static sp_status load_char(const sp_json_node *node, const char *key, step *s, sp_err *err) {
    sp_slice text = SP_SLICE("");
    uint32_t cp;
    SP_TRY(sp_json_get_string(node, key, &text, err));
    int len = sp_utf8_decode(text.ptr, text.len, &cp);
    if (len == 0 || (size_t)len != text.len)
        return SP_FAIL(err, SP_E_FORMAT, "%s: want one character, got '%.*s'", key,
                       (int)(text.len < 60 ? text.len : 60), text.ptr);
    return copy_text(s, text, err);
}

static sp_status load_replace(const sp_json_node *node, step *s, sp_err *err) {
    sp_slice content = {0};
    SP_TRY(sp_json_get_string(node, "content", &content, err));
    if (!content.ptr) return SP_FAIL(err, SP_E_FORMAT, "content: is missing");
    SP_TRY(sp_pattern_load(&s->pattern, sp_json_find(node, "pattern"), err));
    return copy_text(s, content, err);
}

static sp_status load_strip(const sp_json_node *node, step *s, sp_err *err) {
    int64_t start = 0, stop = 0;
    SP_TRY(sp_json_get_int(node, "start", 0, INT32_MAX, &start, err));
    SP_TRY(sp_json_get_int(node, "stop", 0, INT32_MAX, &stop, err));
    s->start = (size_t)start;
    s->stop = (size_t)stop;
    return load_char(node, "content", s, err);
}

static sp_status load_metaspace(const sp_json_node *node, step *s, sp_err *err) {
    sp_slice scheme = SP_SLICE("always");
    bool add_prefix_space = true;
    SP_TRY(sp_json_get_string(node, "prepend_scheme", &scheme, err));
    SP_TRY(sp_json_get_bool(node, "add_prefix_space", &add_prefix_space, err));
    s->drops_first = add_prefix_space && !sp_slice_is(scheme, "never");
    return load_char(node, "replacement", s, err);
}

static sp_status load_bpe(const sp_json_node *node, step *s, sp_err *err) {
    sp_slice suffix = SP_SLICE("</w>");
    SP_TRY(sp_json_get_string(node, "suffix", &suffix, err));
    if (suffix.len == 0) return SP_FAIL(err, SP_E_FORMAT, "suffix: is empty");
    return copy_text(s, suffix, err);
}

static sp_status load_nothing(const sp_json_node *node, step *s, sp_err *err) {
    (void)node;
    (void)s;
    (void)err;
    return SP_OK;
}

static sp_status load_node(sp_decoder *d, const sp_json_node *node, sp_err *err);

static sp_status load_sequence(sp_decoder *d, const sp_json_node *node, sp_err *err) {
    const sp_json_node *list = NULL;
    SP_TRY(sp_json_get_array(node, "decoders", &list, err));
    if (!list) return SP_FAIL(err, SP_E_FORMAT, "Sequence has no 'decoders'");
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v))
        SP_TRY(load_node(d, v, err));
    return SP_OK;
}

static sp_status add_step(sp_decoder *d, const step_ops *ops, step **out, sp_err *err) {
    if (d->n_steps == SP_DECODER_STEPS_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "more than %d steps", SP_DECODER_STEPS_MAX);
    step *s = &d->steps[d->n_steps++];
    s->ops = ops;
    for (int i = 0; i + 1 < d->n_steps; i++)
        s->after_fuse |= d->steps[i].ops == &FUSE || d->steps[i].ops == &BYTE_LEVEL;
    *out = s;
    return SP_OK;
}

static sp_status load_node(sp_decoder *d, const sp_json_node *node, sp_err *err) {
    static const struct {
        const step_ops *ops;
        sp_status (*load)(const sp_json_node *, step *, sp_err *);
    } types[] = {{&REPLACE, load_replace},    {&BYTE_FALLBACK, load_nothing},
                 {&BYTE_LEVEL, load_nothing}, {&FUSE, load_nothing},
                 {&STRIP, load_strip},        {&METASPACE, load_metaspace},
                 {&BPE_DECODER, load_bpe}};
    if (sp_json_type_of(node) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(node)));
    sp_slice type = SP_SLICE("");
    SP_TRY(sp_json_get_string(node, "type", &type, err));
    if (sp_slice_is(type, "Sequence")) return load_sequence(d, node, err);
    for (size_t i = 0; i < SP_LEN(types); i++) {
        if (!sp_slice_is(type, types[i].ops->name)) continue;
        step *s = NULL;
        SP_TRY(add_step(d, types[i].ops, &s, err));
        sp_status st = types[i].load(node, s, err);
        if (st != SP_OK) sp_err_context(err, "%s", types[i].ops->name);
        return st;
    }
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "type '%.*s' is not supported; supported: Sequence, ByteLevel, ByteFallback, "
                   "Fuse, Replace, Strip, Metaspace, BPEDecoder",
                   (int)(type.len < 60 ? type.len : 60), type.ptr);
}

sp_status sp_decoder_load(sp_decoder **out, const sp_json_node *node, sp_err *err) {
    sp_decoder *d = sp_try_alloc(sizeof *d);
    if (!d) return SP_FAIL(err, SP_E_NOMEM, "no memory for a decoder");
    step *s = NULL;
    sp_status st = sp_json_is_null(node) ? add_step(d, &JOIN, &s, err) : load_node(d, node, err);
    if (st == SP_OK && d->n_steps == 0) st = add_step(d, &FUSE, &s, err); /* an empty Sequence */
    if (st != SP_OK) {
        sp_decoder_free(d);
        sp_err_context(err, "decoder");
        return st;
    }
    *out = d;
    return SP_OK;
}

void sp_decoder_free(sp_decoder *d) {
    if (!d) return;
    for (int i = 0; i < d->n_steps; i++) {
        sp_pattern_fini(&d->steps[i].pattern);
        sp_free((char *)(uintptr_t)d->steps[i].text.ptr);
    }
    sp_free(d);
}
