#include "runtime/text/added.h"

#include "runtime/text/unicode.h"

#define NONE UINT32_MAX

/* A trie over bytes. The first level is a table, because nearly every search ends there; below it
 * children are a list, because tokens that share a beginning are few or go different ways soon. */
typedef struct node {
    uint32_t child, sibling; /* NONE: no such */
    int32_t token;           /* index of the token that ends here, or -1 */
    unsigned char byte;
} node;

typedef struct trie {
    node *nodes;
    uint32_t n_nodes, cap;
    uint32_t roots[256];
} trie;

struct sp_added {
    sp_added_token *tokens;
    int n_tokens, cap;
    trie tries[2];                /* raw, normalized */
    uint32_t *by_content, *by_id; /* hash tables of index + 1; 0: free */
    size_t n_slots;               /* of each; a power of two, at least twice n_tokens */
};

sp_status sp_added_create(sp_added **out, sp_err *err) {
    sp_added *a = sp_try_alloc(sizeof *a);
    if (!a) return SP_FAIL(err, SP_E_NOMEM, "no memory for added tokens");
    for (int i = 0; i < 2; i++) memset(a->tries[i].roots, 0xff, sizeof a->tries[i].roots);
    *out = a;
    return SP_OK;
}

static void free_slice(sp_slice s) {
    sp_free((char *)(uintptr_t)s.ptr);
}

static void free_token(const sp_added_token *t) {
    if (t->written.ptr != t->content.ptr) free_slice(t->written);
    free_slice(t->content);
}

void sp_added_free(sp_added *a) {
    if (!a) return;
    for (int i = 0; i < a->n_tokens; i++) free_token(&a->tokens[i]);
    sp_free(a->tokens);
    sp_free(a->tries[0].nodes);
    sp_free(a->tries[1].nodes);
    sp_free(a->by_content);
    sp_free(a->by_id);
    sp_free(a);
}

int sp_added_count(const sp_added *a) {
    return a->n_tokens;
}
const sp_added_token *sp_added_at(const sp_added *a, int i) {
    return &a->tokens[i];
}

/* ---- tables ---- */

static size_t content_slot(const sp_added *a, sp_slice content) {
    size_t i = sp_hash_bytes(content.ptr, content.len) & (a->n_slots - 1);
    while (a->by_content[i] && !sp_slice_eq(a->tokens[a->by_content[i] - 1].content, content))
        i = (i + 1) & (a->n_slots - 1);
    return i;
}

static size_t id_slot(const sp_added *a, int32_t id) {
    size_t i = ((uint32_t)id * 2654435761u) & (a->n_slots - 1);
    while (a->by_id[i] && a->tokens[a->by_id[i] - 1].id != id) i = (i + 1) & (a->n_slots - 1);
    return i;
}

const sp_added_token *sp_added_find(const sp_added *a, sp_slice content) {
    uint32_t at = a->n_slots ? a->by_content[content_slot(a, content)] : 0;
    return at ? &a->tokens[at - 1] : NULL;
}

const sp_added_token *sp_added_get(const sp_added *a, int32_t id) {
    uint32_t at = a->n_slots ? a->by_id[id_slot(a, id)] : 0;
    return at ? &a->tokens[at - 1] : NULL;
}

static sp_status grow_tables(sp_added *a, sp_err *err) {
    if ((size_t)a->n_tokens * 2 < a->n_slots) return SP_OK;
    size_t n = a->n_slots ? a->n_slots * 2 : 64;
    uint32_t *by_content = sp_try_alloc_array(n, sizeof *by_content);
    uint32_t *by_id = sp_try_alloc_array(n, sizeof *by_id);
    if (!by_content || !by_id) {
        sp_free(by_content);
        sp_free(by_id);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for %d added tokens", a->n_tokens);
    }
    sp_free(a->by_content);
    sp_free(a->by_id);
    a->by_content = by_content;
    a->by_id = by_id;
    a->n_slots = n;
    for (int i = 0; i < a->n_tokens; i++) {
        by_content[content_slot(a, a->tokens[i].content)] = (uint32_t)i + 1;
        by_id[id_slot(a, a->tokens[i].id)] = (uint32_t)i + 1;
    }
    return SP_OK;
}

static sp_status grow_tokens(sp_added *a, sp_err *err) {
    if (a->n_tokens >= SP_ADDED_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "more than %d added tokens", SP_ADDED_MAX);
    if (a->n_tokens < a->cap) return SP_OK;
    int cap = a->cap ? a->cap * 2 : 16;
    sp_added_token *grown = sp_try_realloc(a->tokens, (size_t)cap * sizeof *grown);
    if (!grown) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d added tokens", cap);
    a->tokens = grown;
    a->cap = cap;
    return SP_OK;
}

static sp_status copy_slice(sp_slice s, sp_slice *out, sp_err *err) {
    char *p = sp_try_alloc(s.len + 1);
    if (!p) return SP_FAIL(err, SP_E_NOMEM, "no memory for an added token");
    memcpy(p, s.ptr, s.len);
    *out = (sp_slice){p, s.len};
    return SP_OK;
}

/* The spelling that is looked for in normalized text, which is also what decoders are given. */
static sp_status write_normalized(sp_added_token *t, const sp_normalizer *n, sp_err *err) {
    t->written = t->content;
    if (!t->normalized || sp_normalizer_is_empty(n)) return SP_OK;
    sp_regex_scratch regex = {0};
    sp_normalizer_scratch scratch = {.regex = &regex};
    sp_slice text;
    bool cut;
    sp_status st = sp_normalizer_run(n, t->content, &scratch, &text, &cut, err);
    if (st == SP_OK && !sp_slice_eq(text, t->content)) st = copy_slice(text, &t->written, err);
    sp_normalizer_scratch_fini(&scratch);
    sp_regex_scratch_fini(&regex);
    return st;
}

static sp_status put_new(sp_added *a, const sp_added_token *token, const sp_normalizer *n,
                         sp_err *err) {
    SP_TRY(grow_tokens(a, err));
    sp_added_token copy = *token;
    SP_TRY(copy_slice(token->content, &copy.content, err));
    sp_status st = write_normalized(&copy, n, err);
    if (st != SP_OK) {
        free_slice(copy.content);
        return st;
    }
    a->tokens[a->n_tokens++] = copy;
    st = grow_tables(a, err);
    if (st != SP_OK) {
        free_token(&a->tokens[--a->n_tokens]);
        return st;
    }
    a->by_content[content_slot(a, copy.content)] = (uint32_t)a->n_tokens;
    a->by_id[id_slot(a, copy.id)] = (uint32_t)a->n_tokens;
    return SP_OK;
}

sp_status sp_added_put(sp_added *a, const sp_added_token *token, const sp_normalizer *n,
                       sp_err *err) {
    if (token->content.len > SP_ADDED_BYTES_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "added token %d has %zu bytes, at most %zu are allowed",
                       token->id, token->content.len, SP_ADDED_BYTES_MAX);
    const sp_added_token *same_id = sp_added_get(a, token->id);
    if (same_id && !sp_slice_eq(same_id->content, token->content))
        return SP_FAIL(err, SP_E_FORMAT, "added tokens '%.60s' and '%.60s' have the same id %d",
                       same_id->content.ptr, token->content.ptr, token->id);
    const sp_added_token *old = sp_added_find(a, token->content);
    if (!old) return put_new(a, token, n, err);
    if (old->id != token->id)
        return SP_FAIL(err, SP_E_FORMAT, "added token '%.60s' has two ids, %d and %d",
                       old->content.ptr, old->id, token->id);
    sp_added_token *t = &a->tokens[old - a->tokens];
    t->single_word = token->single_word;
    t->lstrip = token->lstrip;
    t->rstrip = token->rstrip;
    t->special = token->special;
    return SP_OK;
}

/* ---- search ---- */

static uint32_t new_node(trie *t, unsigned char byte) {
    if (t->n_nodes == t->cap) {
        uint32_t cap = t->cap ? t->cap * 2 : 256;
        node *grown = sp_try_realloc(t->nodes, (size_t)cap * sizeof *grown);
        if (!grown) return NONE;
        t->nodes = grown;
        t->cap = cap;
    }
    t->nodes[t->n_nodes] = (node){.child = NONE, .sibling = NONE, .token = -1, .byte = byte};
    return t->n_nodes++;
}

static uint32_t find_child(const trie *t, uint32_t at, unsigned char byte) {
    uint32_t c = t->nodes[at].child;
    while (c != NONE && t->nodes[c].byte != byte) c = t->nodes[c].sibling;
    return c;
}

static bool insert(trie *t, sp_slice text, int32_t token) {
    uint32_t at = NONE;
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.ptr[i];
        uint32_t next = i == 0 ? t->roots[byte] : find_child(t, at, byte);
        if (next == NONE) {
            next = new_node(t, byte);
            if (next == NONE) return false;
            if (i == 0) {
                t->roots[byte] = next;
            } else {
                t->nodes[next].sibling = t->nodes[at].child;
                t->nodes[at].child = next;
            }
        }
        at = next;
    }
    /* Two tokens with one normalized spelling: the first one keeps it. */
    if (at != NONE && t->nodes[at].token < 0) t->nodes[at].token = token;
    return true;
}

sp_status sp_added_finish(sp_added *a, sp_err *err) {
    for (int i = 0; i < a->n_tokens; i++) {
        const sp_added_token *t = &a->tokens[i];
        if (!insert(&a->tries[t->normalized], t->written, i))
            return SP_FAIL(err, SP_E_NOMEM, "no memory for %d added tokens", a->n_tokens);
    }
    return SP_OK;
}

/* The longest token at `at`, or NULL. */
static const sp_added_token *longest(const sp_added *a, const trie *t, sp_slice text, size_t at) {
    int32_t best = -1;
    uint32_t n = t->roots[(unsigned char)text.ptr[at]];
    while (n != NONE) {
        if (t->nodes[n].token >= 0) best = t->nodes[n].token;
        if (++at == text.len) break;
        n = find_child(t, n, (unsigned char)text.ptr[at]);
    }
    return best < 0 ? NULL : &a->tokens[best];
}

static bool is_single_word(sp_slice text, size_t start, size_t end) {
    int len;
    if (start > 0 && sp_unicode_is_word(sp_utf8_before(text.ptr, start, &len))) return false;
    return end == text.len ||
           !sp_unicode_is_word(sp_utf8_get(text.ptr + end, text.len - end, &len));
}

static size_t spaces_before(sp_slice text, size_t at, size_t floor) {
    int len;
    while (at > floor && sp_unicode_is_space(sp_utf8_before(text.ptr, at, &len))) at -= (size_t)len;
    return at;
}

static size_t spaces_after(sp_slice text, size_t at) {
    int len;
    while (at < text.len && sp_unicode_is_space(sp_utf8_get(text.ptr + at, text.len - at, &len)))
        at += (size_t)len;
    return at;
}

/* Empty pieces vanish, even those of a token whose place an earlier one took with its spaces. */
static sp_status push(sp_pieces *out, sp_piece piece, size_t start, size_t end, int32_t id) {
    if (start == end) return SP_OK;
    return sp_pieces_push(out, (sp_piece){.ptr = piece.ptr + start,
                                          .len = end - start,
                                          .id = id,
                                          .first = piece.first && start == 0});
}

sp_status sp_added_split(const sp_added *a, bool normalized, bool with_special, sp_piece piece,
                         sp_pieces *out) {
    const trie *t = &a->tries[normalized];
    sp_slice text = {piece.ptr, piece.len};
    size_t done = 0;                   /* what is before it has been given out */
    size_t run_start = 0, run_end = 0; /* spaces behind the last rstrip token, so that a long run
                                          that many tokens reach into is read once */
    for (size_t i = 0; t->n_nodes && i < text.len;) {
        const sp_added_token *hit = longest(a, t, text, i);
        if (!hit) {
            i++;
            continue;
        }
        size_t start = i, end = i + hit->written.len;
        i = end;
        if (hit->special && !with_special) continue;
        if (hit->single_word && !is_single_word(text, start, end)) continue;
        if (hit->lstrip) start = done < start ? spaces_before(text, start, done) : done;
        if (hit->rstrip) {
            if (end < run_start || end >= run_end) run_end = spaces_after(text, end);
            run_start = end;
            end = run_end > end ? run_end : end;
        }
        if (start > end) start = end; /* the last token's spaces reached over this one */
        if (done < start) SP_TRY(push(out, piece, done, start, -1));
        SP_TRY(push(out, piece, start, end, hit->id));
        done = end;
    }
    return done < text.len ? push(out, piece, done, text.len, -1) : SP_OK;
}
