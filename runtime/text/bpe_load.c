#include "runtime/text/bpe.h"

#include "runtime/base/mem.h"
#include "runtime/text/bpe_impl.h"

void sp_bpe_free(sp_bpe *m) {
    if (!m) return;
    sp_free(m->text);
    sp_free(m->offsets);
    sp_free(m->lens);
    sp_free(m->present);
    sp_free(m->slots);
    sp_free(m->merges);
    sp_free(m->chars);
    sp_free(m->seams);
    sp_free((char *)(uintptr_t)m->prefix.ptr);
    sp_free((char *)(uintptr_t)m->suffix.ptr);
    sp_free(m);
}

typedef struct triple {
    int32_t left, right, id;
} triple;

typedef struct loader {
    sp_bpe *m;
    size_t text_len, n_merges;
    triple *triples; /* the merges in their order */
    sp_buf key;      /* for keys that hold NULs, and for merged pieces */
    sp_err *err;
} loader;

static size_t slots_for(size_t n) {
    size_t slots = 16;
    while (slots < n * 2) slots *= 2;
    return slots;
}

/* A key with an escaped NUL comes out of the JSON tree as C0 80, which UTF-8 does not know. */
static sp_slice key_of(const sp_json_node *v, sp_buf *tmp) {
    sp_slice key = sp_json_key(v);
    if (sp_slice_find(key, SP_SLICE("\xc0\x80"), 0) < 0) return key;
    sp_buf_clear(tmp);
    for (size_t i = 0; i < key.len; i++) {
        bool nul = key.ptr[i] == '\xc0';
        sp_buf_putc(tmp, nul ? 0 : key.ptr[i]);
        i += nul;
    }
    return sp_buf_slice(tmp);
}

static sp_status measure(loader *l, const sp_json_node *vocab) {
    int64_t highest = -1;
    size_t n = 0;
    for (const sp_json_node *v = sp_json_first(vocab); v; v = sp_json_next(v), n++) {
        sp_json_type type = sp_json_type_of(v);
        int64_t id = type == SP_JSON_INT ? sp_json_int(v) : -1;
        if (type != SP_JSON_INT)
            return SP_FAIL(l->err, SP_E_FORMAT, "vocab: '%.60s': want an integer, got %s",
                           sp_json_key(v).ptr, sp_json_type_name(type));
        if (id < 0 || id >= SP_BPE_IDS_MAX)
            return SP_FAIL(l->err, SP_E_FORMAT, "vocab: '%.60s': want an id from 0 to %d, got %lld",
                           sp_json_key(v).ptr, SP_BPE_IDS_MAX - 1, (long long)id);
        if (id > highest) highest = id;
        l->text_len += sp_json_key(v).len;
    }
    if (highest < 0) return SP_FAIL(l->err, SP_E_FORMAT, "vocab: is empty");
    if (l->text_len > UINT32_MAX)
        return SP_FAIL(l->err, SP_E_TOOLONG, "vocab: more than 4 GiB of pieces");
    l->m->n_ids = (int32_t)(highest + 1);
    l->m->n_slots = slots_for(n);
    return SP_OK;
}

static sp_status add_piece(loader *l, sp_slice piece, int32_t id) {
    sp_bpe *m = l->m;
    if (m->present[id])
        return SP_FAIL(l->err, SP_E_FORMAT, "vocab: '%.*s' and '%.60s' have the same id %d",
                       (int)(m->lens[id] < 60 ? m->lens[id] : 60), m->text + m->offsets[id],
                       piece.ptr, id);
    memcpy(m->text + l->text_len, piece.ptr, piece.len);
    m->offsets[id] = (uint32_t)l->text_len;
    m->lens[id] = (uint32_t)piece.len;
    m->present[id] = true;
    l->text_len += piece.len;
    uint32_t hash = sp_bpe_hash(piece.ptr, piece.len);
    size_t i = hash & (m->n_slots - 1);
    while (m->slots[i].id >= 0) i = (i + 1) & (m->n_slots - 1);
    m->slots[i] = (sp_bpe_slot){hash, id};
    return SP_OK;
}

static sp_status load_vocab(loader *l, const sp_json_node *model) {
    const sp_json_node *vocab = NULL;
    SP_TRY(sp_json_get_object(model, "vocab", &vocab, l->err));
    if (!vocab) return SP_FAIL(l->err, SP_E_FORMAT, "vocab: is missing");
    SP_TRY(measure(l, vocab));
    sp_bpe *m = l->m;
    m->text = sp_try_alloc(l->text_len + 1);
    m->offsets = sp_try_alloc_array((size_t)m->n_ids, sizeof *m->offsets);
    m->lens = sp_try_alloc_array((size_t)m->n_ids, sizeof *m->lens);
    m->present = sp_try_alloc_array((size_t)m->n_ids, sizeof *m->present);
    m->slots = sp_try_alloc_array(m->n_slots, sizeof *m->slots);
    if (!m->text || !m->offsets || !m->lens || !m->present || !m->slots)
        return SP_FAIL(l->err, SP_E_NOMEM, "no memory for a vocabulary of %d ids", m->n_ids);
    for (size_t i = 0; i < m->n_slots; i++) m->slots[i].id = -1;
    l->text_len = 0;
    for (const sp_json_node *v = sp_json_first(vocab); v; v = sp_json_next(v))
        SP_TRY(add_piece(l, key_of(v, &l->key), (int32_t)sp_json_int(v)));
    return SP_OK;
}

/* "a b" or ["a", "b"]. */
static bool read_merge(const sp_json_node *v, sp_slice *a, sp_slice *b) {
    if (sp_json_type_of(v) == SP_JSON_ARRAY) {
        const sp_json_node *first = sp_json_first(v), *second = sp_json_next(first);
        if (sp_json_count(v) != 2 || sp_json_type_of(first) != SP_JSON_STRING ||
            sp_json_type_of(second) != SP_JSON_STRING)
            return false;
        *a = sp_json_string(first);
        *b = sp_json_string(second);
        return true;
    }
    if (sp_json_type_of(v) != SP_JSON_STRING) return false;
    sp_slice s = sp_json_string(v);
    const char *space = memchr(s.ptr, ' ', s.len);
    if (!space || memchr(space + 1, ' ', s.len - (size_t)(space + 1 - s.ptr))) return false;
    *a = (sp_slice){s.ptr, (size_t)(space - s.ptr)};
    *b = (sp_slice){space + 1, s.len - a->len - 1};
    return true;
}

static sp_status unknown_piece(loader *l, uint32_t rank, sp_slice piece) {
    return SP_FAIL(l->err, SP_E_FORMAT,
                   "merges: entry %u needs the token '%.*s', which is not in "
                   "the vocabulary",
                   rank, (int)(piece.len < 60 ? piece.len : 60), piece.ptr);
}

static sp_status add_merge(loader *l, const sp_json_node *v, uint32_t rank) {
    sp_bpe *m = l->m;
    sp_slice a, b;
    if (!read_merge(v, &a, &b))
        return SP_FAIL(l->err, SP_E_FORMAT,
                       "merges: entry %u is neither \"a b\" nor [\"a\", \"b\"]", rank);
    int32_t left = sp_bpe_find(m, a), right = sp_bpe_find(m, b);
    if (left < 0) return unknown_piece(l, rank, a);
    if (right < 0) return unknown_piece(l, rank, b);
    if (b.len < m->prefix.len) return unknown_piece(l, rank, b);
    sp_buf_clear(&l->key);
    sp_buf_put_slice(&l->key, a);
    sp_buf_put(&l->key, b.ptr + m->prefix.len, b.len - m->prefix.len);
    int32_t id = sp_bpe_find(m, (sp_slice){l->key.ptr ? l->key.ptr : "", l->key.len});
    if (id < 0) return unknown_piece(l, rank, sp_buf_slice(&l->key));
    l->triples[rank] = (triple){left, right, id};
    uint64_t pair = sp_bpe_pair(left, right);
    *sp_bpe_merge_slot(m, pair) = (sp_bpe_merge){pair, rank, id}; /* of equals the last one wins */
    return SP_OK;
}

static sp_status load_merges(loader *l, const sp_json_node *model) {
    const sp_json_node *merges = NULL;
    SP_TRY(sp_json_get_array(model, "merges", &merges, l->err));
    if (!merges) return SP_FAIL(l->err, SP_E_FORMAT, "merges: is missing");
    sp_bpe *m = l->m;
    size_t n = (size_t)sp_json_count(merges);
    m->n_merge_slots = slots_for(n);
    m->merges = sp_try_alloc_array(m->n_merge_slots, sizeof *m->merges);
    l->triples = sp_try_alloc_array(n, sizeof *l->triples);
    if (!m->merges || !l->triples) return SP_FAIL(l->err, SP_E_NOMEM, "no memory for the merges");
    for (size_t i = 0; i < m->n_merge_slots; i++) m->merges[i].pair = SP_BPE_FREE;
    uint32_t rank = 0;
    for (const sp_json_node *v = sp_json_first(merges); v; v = sp_json_next(v)) {
        if (sp_slice_starts(sp_json_string(v), SP_SLICE("#version"))) continue;
        SP_TRY(add_merge(l, v, rank++));
    }
    l->n_merges = rank;
    return SP_OK;
}

static sp_status load_affix(const sp_json_node *model, const char *key, sp_slice *out,
                            sp_err *err) {
    sp_slice s = {0};
    SP_TRY(sp_json_get_string(model, key, &s, err));
    if (!s.len) return SP_OK;
    if (s.len > SP_BPE_AFFIX_BYTES_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "%s: %zu bytes, at most %d are allowed", key, s.len,
                       SP_BPE_AFFIX_BYTES_MAX);
    *out = (sp_slice){sp_strndup(s.ptr, s.len), s.len};
    return SP_OK;
}

static sp_status load_options(loader *l, const sp_json_node *model) {
    sp_bpe *m = l->m;
    SP_TRY(sp_json_get_bool(model, "byte_fallback", &m->byte_fallback, l->err));
    SP_TRY(sp_json_get_bool(model, "fuse_unk", &m->fuse_unk, l->err));
    SP_TRY(sp_json_get_bool(model, "ignore_merges", &m->ignore_merges, l->err));
    double dropout = 0;
    SP_TRY(sp_json_get_number(model, "dropout", &dropout, l->err));
    if (dropout != 0)
        return SP_FAIL(l->err, SP_E_UNSUPPORTED,
                       "dropout: %g makes the ids random; only 0 or null is supported", dropout);
    SP_TRY(load_affix(model, "continuing_subword_prefix", &m->prefix, l->err));
    return load_affix(model, "end_of_word_suffix", &m->suffix, l->err);
}

static sp_status load_unk(loader *l, const sp_json_node *model) {
    sp_slice unk = {0};
    SP_TRY(sp_json_get_string(model, "unk_token", &unk, l->err));
    l->m->has_unk = unk.ptr != NULL;
    l->m->unk = unk.ptr ? sp_bpe_find(l->m, unk) : -1;
    return SP_OK;
}

static sp_status make_tables(loader *l) {
    sp_bpe *m = l->m;
    for (int b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
        m->bytes[b] = sp_bpe_find(m, (sp_slice){name, sizeof name});
    }
    if (m->prefix.len || m->suffix.len) return SP_OK;
    m->chars = sp_try_alloc_array(SP_BPE_CHARS, sizeof *m->chars);
    if (!m->chars) return SP_FAIL(l->err, SP_E_NOMEM, "no memory for a vocabulary");
    memset(m->chars, 0xff, SP_BPE_CHARS * sizeof *m->chars);
    for (int32_t id = 0; id < m->n_ids; id++) {
        uint32_t cp;
        sp_slice piece = sp_bpe_piece(m, id);
        int len = sp_utf8_decode(piece.ptr, piece.len, &cp);
        if (len && (size_t)len == piece.len && cp < SP_BPE_CHARS) m->chars[cp] = id;
    }
    return SP_OK;
}

/* The first and the last symbol of each token, as its merges build it up. */
typedef struct ends {
    int32_t first, last; /* -1: no merge makes the token, it is its own */
} ends;

static int32_t first_of(const ends *e, int32_t id) {
    return e[id].first < 0 ? id : e[id].first;
}
static int32_t last_of(const ends *e, int32_t id) {
    return e[id].last < 0 ? id : e[id].last;
}

/* A token that a word can begin with as it is: one character, a byte, the unknown token. */
static bool is_initial(const sp_bpe *m, int32_t id) {
    uint32_t cp;
    sp_slice piece = sp_bpe_piece(m, id);
    if (sp_utf8_decode(piece.ptr, piece.len, &cp) == (int)piece.len || id == m->unk) return true;
    if (piece.len != 6 || piece.ptr[0] != '<') return false;
    for (int b = 0; b < 256; b++)
        if (m->bytes[b] == id) return true;
    return false;
}

/* Goes over the merges until nothing changes: files list a token's merge before those that use it,
 * so that two rounds are the rule. false: a token has no single first or last symbol. */
static bool find_ends(const loader *l, ends *e) {
    enum {
        ROUNDS_MAX = 8
    };
    for (int round = 0; round < ROUNDS_MAX; round++) {
        bool changed = false;
        for (size_t i = 0; i < l->n_merges; i++) {
            const triple *t = &l->triples[i];
            if (round == 0 && is_initial(l->m, t->id)) return false;
            ends now = {first_of(e, t->left), last_of(e, t->right)}, *had = &e[t->id];
            changed |= had->first != now.first || had->last != now.last;
            *had = now;
        }
        if (!changed) return true;
    }
    return false;
}

static sp_status make_seams(loader *l) {
    sp_bpe *m = l->m;
    if (m->prefix.len || m->suffix.len) return SP_OK; /* rare, and more than one way to begin */
    ends *e = sp_try_alloc_array((size_t)m->n_ids, sizeof *e);
    uint64_t *seams = sp_try_alloc_array(((size_t)1 << SP_BPE_SEAM_BITS) / 64, sizeof *seams);
    if (!e || !seams) {
        sp_free(e);
        sp_free(seams);
        return SP_FAIL(l->err, SP_E_NOMEM, "no memory for the merges");
    }
    memset(e, 0xff, (size_t)m->n_ids * sizeof *e);
    if (find_ends(l, e)) {
        for (size_t i = 0; i < l->n_merges; i++) {
            const triple *t = &l->triples[i];
            uint32_t bit = sp_bpe_seam_bit(last_of(e, t->left), first_of(e, t->right));
            seams[bit / 64] |= (uint64_t)1 << (bit % 64);
        }
        m->seams = seams;
        seams = NULL;
    }
    sp_free(seams);
    sp_free(e);
    return SP_OK;
}

static sp_status check_type(const sp_json_node *model, sp_err *err) {
    if (sp_json_type_of(model) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(model)));
    sp_slice type = {0};
    SP_TRY(sp_json_get_string(model, "type", &type, err));
    /* Older files leave the type out; what they hold tells. */
    if (!type.ptr && sp_json_find(model, "merges")) return SP_OK;
    if (sp_slice_is(type, "BPE")) return SP_OK;
    if (!type.ptr)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "model without type and merges is not supported; "
                       "supported: BPE");
    return SP_FAIL(err, SP_E_UNSUPPORTED, "model type '%.*s' is not supported; supported: BPE",
                   (int)(type.len < 60 ? type.len : 60), type.ptr);
}

sp_status sp_bpe_load(sp_bpe **out, const sp_json_node *model, sp_err *err) {
    SP_TRY(check_type(model, err));
    loader l = {.m = sp_try_alloc(sizeof *l.m), .err = err};
    if (!l.m) return SP_FAIL(err, SP_E_NOMEM, "no memory for a vocabulary");
    sp_buf_init(&l.key, 0);
    sp_status st = load_options(&l, model);
    if (st == SP_OK) st = load_vocab(&l, model);
    if (st == SP_OK) st = load_merges(&l, model);
    if (st == SP_OK) st = load_unk(&l, model);
    if (st == SP_OK) st = make_tables(&l);
    if (st == SP_OK) st = make_seams(&l);
    if (st == SP_OK && l.key.failed) st = SP_FAIL(err, SP_E_NOMEM, "no memory for a vocabulary");
    sp_buf_fini(&l.key);
    sp_free(l.triples);
    if (st != SP_OK) {
        sp_bpe_free(l.m);
        sp_err_context(err, "model");
        return st;
    }
    *out = l.m;
    return SP_OK;
}
