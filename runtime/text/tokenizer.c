#include "runtime/text/tokenizer.h"

#include "runtime/base/mem.h"
#include "runtime/text/tokenizer_impl.h"
#include "runtime/text/unicode.h"

#define TEXT_BYTES_MAX ((size_t)256 << 20)

sp_status sp_ids_push(sp_ids *ids, int32_t id) {
    if (ids->len == ids->cap) {
        size_t cap = ids->cap ? ids->cap * 2 : 32, bytes;
        if (__builtin_mul_overflow(cap, sizeof *ids->ptr, &bytes)) return SP_E_NOMEM;
        int32_t *grown = sp_try_realloc(ids->ptr, bytes);
        if (!grown) return SP_E_NOMEM;
        ids->ptr = grown;
        ids->cap = cap;
    }
    ids->ptr[ids->len++] = id;
    return SP_OK;
}

void sp_ids_fini(sp_ids *ids) {
    sp_free(ids->ptr);
    *ids = (sp_ids){0};
}

/* ---- encode ---- */

/* A marker becomes one character that the text does not hold, so that it goes through the
 * normalizer as a stranger and is taken out only after both searches for added tokens. */
#define STRANGER_BYTES 3

typedef struct encoding {
    const sp_tokenizer *t;
    int flags;
    sp_arena arena;
    sp_pieces pieces, spare;
    sp_regex_scratch regex;
    sp_normalizer_scratch normalizer;
    sp_bpe_scratch bpe;
    char stranger[STRANGER_BYTES];
    bool marked;
    sp_err *err;
} encoding;

static void release(encoding *e) {
    sp_bpe_scratch_fini(&e->bpe);
    sp_normalizer_scratch_fini(&e->normalizer);
    sp_regex_scratch_fini(&e->regex);
    sp_pieces_fini(&e->spare);
    sp_pieces_fini(&e->pieces);
    sp_arena_fini(&e->arena);
}

static sp_status no_memory(encoding *e, size_t n) {
    return SP_FAIL(e->err, SP_E_NOMEM, "no memory to encode %zu bytes of text", n);
}

/* A noncharacter (U+FDD0..U+FDEF) that `text` does not hold. A text with all 32 of them, which is a
 * text made against us, gets its own U+FDD0 dropped. */
static void choose_stranger(sp_slice text, char out[STRANGER_BYTES]) {
    for (uint32_t cp = 0xfdef; cp >= 0xfdd0; cp--) {
        char utf8[4];
        sp_utf8_encode(cp, utf8);
        memcpy(out, utf8, STRANGER_BYTES);
        if (sp_slice_find(text, (sp_slice){out, STRANGER_BYTES}, 0) < 0) return;
    }
}

/* Copies the text with markers exchanged and with what is not UTF-8 repaired. */
static sp_status clean_text(encoding *e, sp_slice *text, sp_slice marker) {
    e->marked = marker.len && sp_slice_find(*text, marker, 0) >= 0;
    if (!e->marked && sp_utf8_valid(*text)) return SP_OK;
    if (e->marked) choose_stranger(*text, e->stranger);
    sp_buf out;
    sp_buf_init(&out, 0);
    for (size_t done = 0; done < text->len;) {
        ptrdiff_t at = e->marked ? sp_slice_find(*text, marker, done) : -1;
        size_t end = at < 0 ? text->len : (size_t)at;
        sp_utf8_repair((sp_slice){text->ptr + done, end - done}, &out);
        if (at >= 0) sp_buf_put(&out, e->stranger, STRANGER_BYTES);
        done = at < 0 ? text->len : end + marker.len;
    }
    char *copy = out.failed ? NULL : sp_arena_try(&e->arena, out.len + 1);
    if (copy) memcpy(copy, out.ptr, out.len);
    if (copy) *text = (sp_slice){copy, out.len};
    sp_buf_fini(&out);
    return copy ? SP_OK : no_memory(e, text->len);
}

static void swap_lists(encoding *e) {
    sp_pieces p = e->pieces;
    e->pieces = e->spare;
    e->spare = p;
    e->spare.len = 0;
}

static bool is_only_strangers(const encoding *e, sp_piece p) {
    if (!e->marked || p.len % STRANGER_BYTES) return false;
    for (size_t i = 0; i < p.len; i += STRANGER_BYTES)
        if (memcmp(p.ptr + i, e->stranger, STRANGER_BYTES) != 0) return false;
    return true;
}

static size_t count_strangers(const encoding *e, sp_slice text) {
    sp_slice stranger = {e->stranger, STRANGER_BYTES};
    size_t n = 0;
    ptrdiff_t at = e->marked ? sp_slice_find(text, stranger, 0) : -1;
    for (; at >= 0; at = sp_slice_find(text, stranger, (size_t)at + STRANGER_BYTES)) n++;
    return n;
}

/* *lost: the normalizer took a stranger out, so that it can no longer break what it broke. */
static sp_status normalize(encoding *e, sp_piece *p, bool *lost) {
    *lost = false;
    if (is_only_strangers(e, *p)) p->len = 0; /* a Prepend must not write before nothing */
    if (p->len == 0 || sp_normalizer_is_empty(e->t->normalizer)) return SP_OK;
    sp_slice text;
    bool cut;
    SP_TRY(sp_normalizer_run(e->t->normalizer, (sp_slice){p->ptr, p->len}, &e->normalizer, &text,
                             &cut, e->err));
    char *copy = sp_arena_try(&e->arena, text.len + 1);
    if (!copy) return no_memory(e, text.len);
    memcpy(copy, text.ptr, text.len);
    *lost = count_strangers(e, text) < count_strangers(e, (sp_slice){p->ptr, p->len});
    p->ptr = copy;
    p->len = text.len;
    if (cut) p->first = false;
    return SP_OK;
}

static void drop_strangers(encoding *e, sp_piece *p) {
    sp_slice stranger = {e->stranger, STRANGER_BYTES};
    ptrdiff_t at = sp_slice_find((sp_slice){p->ptr, p->len}, stranger, 0);
    if (at < 0) return;
    /* A marked text was copied by clean_text(), so that the piece may be changed in place. */
    char *to = (char *)(uintptr_t)p->ptr + at;
    size_t done = (size_t)at;
    while (at >= 0) {
        done = (size_t)at + STRANGER_BYTES;
        at = sp_slice_find((sp_slice){p->ptr, p->len}, stranger, done);
        size_t end = at < 0 ? p->len : (size_t)at;
        memmove(to, p->ptr + done, end - done);
        to += end - done;
    }
    p->len = (size_t)(to - p->ptr);
}

/* Both searches for added tokens, with the normalizer between them. */
static sp_status split_added(encoding *e, sp_slice text) {
    const sp_added *added = e->t->added;
    bool special = (e->flags & SP_ENCODE_SPECIAL) != 0;
    sp_piece whole = {.ptr = text.ptr, .len = text.len, .id = -1, .first = true};
    if (sp_added_split(added, false, special, whole, &e->pieces) != SP_OK)
        return no_memory(e, text.len);
    for (size_t i = 0; i < e->pieces.len; i++) {
        sp_piece p = e->pieces.ptr[i];
        bool lost = false;
        if (p.id < 0) SP_TRY(normalize(e, &p, &lost));
        sp_status st = p.id < 0 ? sp_added_split(added, true, special && !lost, p, &e->spare)
                                : sp_pieces_push(&e->spare, p);
        if (st != SP_OK) return no_memory(e, text.len);
    }
    swap_lists(e);
    for (size_t i = 0; e->marked && i < e->pieces.len; i++)
        if (e->pieces.ptr[i].id < 0) drop_strangers(e, &e->pieces.ptr[i]);
    return SP_OK;
}

static sp_status push_all(encoding *e, const sp_ids *ids, sp_ids *out) {
    if (!(e->flags & SP_ENCODE_BOS)) return SP_OK;
    for (size_t i = 0; i < ids->len; i++)
        if (sp_ids_push(out, ids->ptr[i]) != SP_OK) return no_memory(e, 0);
    return SP_OK;
}

static sp_status encode(encoding *e, sp_slice text, sp_slice marker, sp_ids *out) {
    const sp_tokenizer *t = e->t;
    SP_TRY(clean_text(e, &text, marker));
    SP_TRY(split_added(e, text));
    SP_TRY(sp_pretok_run(t->pretok, &e->pieces, &e->spare, &e->arena, &e->regex, e->err));
    SP_TRY(push_all(e, &t->before, out));
    for (size_t i = 0; i < e->pieces.len; i++) {
        sp_piece p = e->pieces.ptr[i];
        if (p.id < 0)
            SP_TRY(sp_bpe_encode(t->bpe, (sp_slice){p.ptr, p.len}, &e->bpe, out, e->err));
        else if (sp_ids_push(out, p.id) != SP_OK)
            return no_memory(e, text.len);
    }
    return push_all(e, &t->after, out);
}

sp_status sp_tokenizer_encode(const sp_tokenizer *t, sp_slice text, int flags, sp_slice marker,
                              sp_ids *out, sp_err *err) {
    if (text.len > TEXT_BYTES_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "text of %zu bytes, at most %zu can be encoded", text.len,
                       TEXT_BYTES_MAX);
    if (!text.ptr) text = SP_SLICE("");
    encoding e = {.t = t, .flags = flags, .err = err};
    e.normalizer.regex = &e.regex;
    sp_arena_init(&e.arena, 0);
    size_t had = out->len;
    sp_status st = encode(&e, text, marker, out);
    if (st != SP_OK) out->len = had;
    release(&e);
    return st;
}

/* ---- decode ---- */

sp_slice sp_tokenizer_written(const sp_tokenizer *t, int32_t id) {
    const sp_added_token *a = sp_added_get(t->added, id);
    return a ? a->written : sp_bpe_piece(t->bpe, id);
}

void sp_tokenizer_decode(const sp_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                         sp_buf *out) {
    sp_decode_stream *s;
    if (sp_decode_open(&s, t->decoder, false) != SP_OK) {
        out->failed = true;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        sp_slice written = sp_tokenizer_written(t, ids[i]);
        if (!written.ptr || (skip_special && sp_tokenizer_is_special(t, ids[i]))) continue;
        sp_decode_token(s, written, out);
    }
    sp_decode_end(s, out);
    sp_decode_close(s);
}

void sp_tokenizer_token_bytes(const sp_tokenizer *t, int32_t id, sp_buf *out) {
    sp_slice written = sp_tokenizer_written(t, id);
    sp_decode_stream *s;
    if (!written.ptr) return;
    if (sp_decode_open(&s, t->decoder, true) != SP_OK) {
        out->failed = true;
        return;
    }
    sp_decode_token(s, written, out);
    sp_decode_end(s, out);
    sp_decode_close(s);
}

/* ---- questions ---- */

int32_t sp_tokenizer_size(const sp_tokenizer *t) {
    return t->n_ids;
}

sp_slice sp_tokenizer_piece(const sp_tokenizer *t, int32_t id) {
    const sp_added_token *a = sp_added_get(t->added, id);
    return a ? a->content : sp_bpe_piece(t->bpe, id);
}

int32_t sp_tokenizer_find(const sp_tokenizer *t, sp_slice piece) {
    if (!piece.ptr) return -1;
    const sp_added_token *a = sp_added_find(t->added, piece);
    return a ? a->id : sp_bpe_find(t->bpe, piece);
}

bool sp_tokenizer_is_special(const sp_tokenizer *t, int32_t id) {
    const sp_added_token *a = sp_added_get(t->added, id);
    return a && a->special;
}

static int32_t id_of_name(const sp_tokenizer *t, int name) {
    return t->names[name].len ? sp_tokenizer_find(t, t->names[name]) : -1;
}
int32_t sp_tokenizer_bos(const sp_tokenizer *t) {
    return id_of_name(t, SP_TOKENIZER_BOS);
}
int32_t sp_tokenizer_eos(const sp_tokenizer *t) {
    return id_of_name(t, SP_TOKENIZER_EOS);
}

sp_slice sp_tokenizer_named(const sp_tokenizer *t, const char *name) {
    static const char *const names[SP_TOKENIZER_NAMES] = {"bos_token", "eos_token", "pad_token",
                                                          "unk_token"};
    for (int i = 0; i < SP_TOKENIZER_NAMES; i++)
        if (strcmp(names[i], name) == 0) return t->names[i];
    return (sp_slice){0};
}

int sp_tokenizer_n_special(const sp_tokenizer *t) {
    return t->n_specials;
}

sp_slice sp_tokenizer_special(const sp_tokenizer *t, int i) {
    return sp_added_at(t->added, t->specials[i])->content;
}

const sp_json_node *sp_tokenizer_config(const sp_tokenizer *t) {
    return sp_json_root(t->config);
}
