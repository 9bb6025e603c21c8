#include "runtime/text/bpe.h"

#include "runtime/base/mem.h"
#include "runtime/text/bpe_impl.h"
#include "runtime/text/unicode.h"

int32_t sp_bpe_size(const sp_bpe *m) {
    return m->n_ids;
}

sp_slice sp_bpe_piece(const sp_bpe *m, int32_t id) {
    if (id < 0 || id >= m->n_ids || !m->present[id]) return (sp_slice){0};
    return (sp_slice){m->text + m->offsets[id], m->lens[id]};
}

int32_t sp_bpe_find(const sp_bpe *m, sp_slice piece) {
    uint32_t hash = sp_bpe_hash(piece.ptr, piece.len);
    for (size_t i = hash & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        const sp_bpe_slot *s = &m->slots[i];
        if (s->id < 0) return -1;
        if (s->hash == hash && m->lens[s->id] == piece.len &&
            memcmp(m->text + m->offsets[s->id], piece.ptr, piece.len) == 0)
            return s->id;
    }
}

static const sp_bpe_merge *find_merge(const sp_bpe *m, int32_t left, int32_t right) {
    const sp_bpe_merge *found = sp_bpe_merge_slot(m, sp_bpe_pair(left, right));
    return found->pair == SP_BPE_FREE ? NULL : found;
}

/* ---- encoding ---- */

typedef struct symbol {
    int32_t id;         /* -1: merged into the one before it */
    int32_t prev, next; /* -1: none */
} symbol;

typedef struct candidate {
    uint32_t rank;
    int32_t at, id;
} candidate;

void sp_bpe_scratch_fini(sp_bpe_scratch *s) {
    sp_free(s->symbols);
    sp_free(s->heap);
    *s = (sp_bpe_scratch){0};
}

static bool comes_before(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static sp_status heap_push(sp_bpe_scratch *s, candidate c) {
    if (s->heap_len == s->heap_cap) {
        size_t cap = s->heap_cap ? s->heap_cap * 2 : 64;
        candidate *grown = sp_try_realloc(s->heap, cap * sizeof *grown);
        if (!grown) return SP_E_NOMEM;
        s->heap = grown;
        s->heap_cap = cap;
    }
    candidate *h = s->heap;
    size_t i = s->heap_len++;
    while (i > 0 && comes_before(&c, &h[(i - 1) / 2])) {
        h[i] = h[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h[i] = c;
    return SP_OK;
}

static candidate heap_pop(sp_bpe_scratch *s) {
    candidate *h = s->heap, top = h[0], last = h[--s->heap_len];
    size_t n = s->heap_len, i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && comes_before(&h[child + 1], &h[child])) child++;
        if (!comes_before(&h[child], &last)) break;
        h[i] = h[child];
        i = child;
    }
    h[i] = last;
    return top;
}

static sp_status reserve_symbols(sp_bpe_scratch *s, size_t n) {
    if (n <= s->symbols_cap) return SP_OK;
    size_t cap = n < 64 ? 64 : n, bytes;
    if (__builtin_mul_overflow(cap, sizeof(symbol), &bytes)) return SP_E_NOMEM;
    void *grown = sp_try_realloc(s->symbols, bytes);
    if (!grown) return SP_E_NOMEM;
    s->symbols = grown;
    s->symbols_cap = cap;
    return SP_OK;
}

static sp_status add_candidate(const sp_bpe *m, sp_bpe_scratch *s, int32_t at) {
    const symbol *symbols = s->symbols;
    int32_t next = symbols[at].next;
    if (next < 0) return SP_OK;
    const sp_bpe_merge *found = find_merge(m, symbols[at].id, symbols[next].id);
    if (!found) return SP_OK;
    return heap_push(s, (candidate){.rank = found->rank, .at = at, .id = found->id});
}

/* The token of one character with what the file puts before or behind it; -1: none. */
static int32_t char_token(const sp_bpe *m, sp_slice word, size_t at, int len) {
    if (m->chars) {
        uint32_t cp = sp_utf8_get(word.ptr + at, word.len - at, &len);
        if (cp < SP_BPE_CHARS) return m->chars[cp];
    }
    char key[2 * SP_BPE_AFFIX_BYTES_MAX + 4];
    size_t n = 0;
    if (at > 0 && m->prefix.len) {
        memcpy(key, m->prefix.ptr, m->prefix.len);
        n = m->prefix.len;
    }
    memcpy(key + n, word.ptr + at, (size_t)len);
    n += (size_t)len;
    if (at + (size_t)len == word.len && m->suffix.len) {
        memcpy(key + n, m->suffix.ptr, m->suffix.len);
        n += m->suffix.len;
    }
    return sp_bpe_find(m, (sp_slice){key, n});
}

typedef struct word_builder {
    symbol *symbols;
    int32_t n;
    bool unk_waits; /* an unknown token not yet written, so that the next one can join it */
} word_builder;

static void add_symbol(word_builder *w, int32_t id) {
    if (w->n > 0) w->symbols[w->n - 1].next = w->n;
    w->symbols[w->n] = (symbol){.id = id, .prev = w->n - 1, .next = -1};
    w->n++;
}

/* The bytes of a character, and of the prefix and suffix that belong to it, as byte tokens. */
static bool add_bytes(const sp_bpe *m, word_builder *w, sp_slice word, size_t at, int len) {
    bool last = at + (size_t)len == word.len;
    sp_slice parts[3] = {at > 0 ? m->prefix : (sp_slice){0},
                         {word.ptr + at, (size_t)len},
                         last ? m->suffix : (sp_slice){0}};
    for (int pass = 0; pass < 2; pass++) {
        for (size_t k = 0; k < SP_LEN(parts); k++)
            for (size_t i = 0; i < parts[k].len; i++) {
                int32_t id = m->bytes[(unsigned char)parts[k].ptr[i]];
                if (id < 0) return false; /* in the first pass, before anything is written */
                if (pass == 1) add_symbol(w, id);
            }
    }
    return true;
}

static void flush_unk(const sp_bpe *m, word_builder *w) {
    if (w->unk_waits) add_symbol(w, m->unk);
    w->unk_waits = false;
}

static sp_status add_char(const sp_bpe *m, word_builder *w, sp_slice word, size_t at, int len,
                          sp_err *err) {
    int32_t id = char_token(m, word, at, len);
    if (id >= 0) {
        flush_unk(m, w);
        add_symbol(w, id);
        return SP_OK;
    }
    /* Byte tokens do not write out a waiting unknown token: the library does not either. */
    if (m->byte_fallback && add_bytes(m, w, word, at, len)) return SP_OK;
    if (!m->has_unk) return SP_OK;
    if (m->unk < 0)
        return SP_FAIL(err, SP_E_INVALID,
                       "'%.*s' has no token, and the tokenizer's unk_token is not in its "
                       "vocabulary",
                       len, word.ptr + at);
    if (!m->fuse_unk) flush_unk(m, w);
    w->unk_waits = true;
    return SP_OK;
}

static sp_status build_word(const sp_bpe *m, sp_slice word, sp_bpe_scratch *s, int32_t *n,
                            sp_err *err) {
    size_t most = word.len; /* a symbol a character, or one a byte with byte fallback */
    if (m->byte_fallback) {
        size_t affixes = word.len * m->prefix.len + m->suffix.len;
        most += affixes; /* both are far below the overflow, see the limits of text and affixes */
    }
    if (most > INT32_MAX - 1)
        return SP_FAIL(err, SP_E_TOOLONG, "a word of %zu bytes is too long", word.len);
    if (reserve_symbols(s, most + 1) != SP_OK)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for a word of %zu bytes", word.len);
    word_builder w = {.symbols = s->symbols};
    for (size_t i = 0; i < word.len;) {
        int len;
        sp_utf8_get(word.ptr + i, word.len - i, &len);
        SP_TRY(add_char(m, &w, word, i, len, err));
        i += (size_t)len;
    }
    flush_unk(m, &w);
    *n = w.n;
    return SP_OK;
}

/* Merges the symbols from `from` to the one before `to`, which nothing outside can join. */
static sp_status merge_stretch(const sp_bpe *m, sp_bpe_scratch *s, int32_t from, int32_t to) {
    symbol *symbols = s->symbols;
    s->heap_len = 0;
    for (int32_t i = from; i + 1 < to; i++) SP_TRY(add_candidate(m, s, i));
    while (s->heap_len) {
        candidate c = heap_pop(s);
        symbol *left = &symbols[c.at];
        if (left->id < 0 || left->next < 0) continue;
        symbol *right = &symbols[left->next];
        const sp_bpe_merge *now = find_merge(m, left->id, right->id);
        if (!now || now->id != c.id) continue; /* a neighbour was merged meanwhile */
        left->id = c.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].prev = c.at;
        if (left->prev >= 0) SP_TRY(add_candidate(m, s, left->prev));
        SP_TRY(add_candidate(m, s, c.at));
    }
    return SP_OK;
}

static bool may_meet(const sp_bpe *m, int32_t left, int32_t right) {
    if (!m->seams) return true;
    uint32_t bit = sp_bpe_seam_bit(left, right);
    return m->seams[bit / 64] >> (bit % 64) & 1;
}

/* Appends the ids of the symbols, merged stretch by stretch. */
static sp_status merge_all(const sp_bpe *m, sp_bpe_scratch *s, int32_t n, sp_ids *out) {
    symbol *symbols = s->symbols;
    for (int32_t from = 0, to; from < n; from = to) {
        to = from + 1;
        while (to < n && may_meet(m, symbols[to - 1].id, symbols[to].id)) to++;
        symbols[from].prev = -1;
        symbols[to - 1].next = -1;
        SP_TRY(merge_stretch(m, s, from, to));
        /* Nothing is merged to the left, so the first symbol stays the head of the list. */
        for (int32_t i = from; i >= 0; i = symbols[i].next) SP_TRY(sp_ids_push(out, symbols[i].id));
    }
    return SP_OK;
}

sp_status sp_bpe_encode(const sp_bpe *m, sp_slice word, sp_bpe_scratch *s, sp_ids *out,
                        sp_err *err) {
    if (word.len == 0) return SP_OK;
    sp_status st = SP_OK;
    int32_t whole = m->ignore_merges ? sp_bpe_find(m, word) : -1;
    if (whole >= 0) {
        st = sp_ids_push(out, whole);
    } else {
        int32_t n = 0;
        SP_TRY(build_word(m, word, s, &n, err));
        st = merge_all(m, s, n, out);
    }
    if (st != SP_OK) return SP_FAIL(err, st, "no memory for the ids of %zu bytes", word.len);
    return SP_OK;
}
