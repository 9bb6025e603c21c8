#include "runtime/text/jinja_value.h"

#include "runtime/text/jinja_iter.h"

#include <string.h>

double sp_jval_as_float(sp_jval v) {
    if (v.type == SP_J_FLOAT) return v.f;
    if (v.type != SP_J_BIG) return (double)sp_jval_as_int(v);
    double f = 0;
    size_t i = v.s->ptr[0] == '-';
    for (; i < v.s->len; i++) f = f * 10 + (v.s->ptr[i] - '0');
    return v.s->ptr[0] == '-' ? -f : f;
}

/* --- text being written --- */

static sp_status text_reserve(sp_jrun *r, sp_jtext *t, size_t more) {
    if (more <= t->cap - t->len) return SP_OK;
    size_t need;
    if (__builtin_add_overflow(t->len, more, &need) || need > SIZE_MAX / 4)
        return sp_jrun_fail(r, "a text of more than %zu bytes", SIZE_MAX / 4);
    size_t cap = t->cap ? t->cap : 32;
    while (cap < need) cap *= 2;
    void *p;
    SP_TRY(sp_jrun_take(r, cap, &p));
    if (t->len) memcpy(p, t->ptr, t->len);
    t->ptr = p;
    t->cap = cap;
    return SP_OK;
}

sp_status sp_jtext_put(sp_jrun *r, sp_jtext *t, sp_slice s) {
    if (s.len == 0) return SP_OK;
    SP_TRY(text_reserve(r, t, s.len));
    memcpy(t->ptr + t->len, s.ptr, s.len);
    t->len += s.len;
    return SP_OK;
}

sp_status sp_jtext_puts(sp_jrun *r, sp_jtext *t, const char *s) {
    return sp_jtext_put(r, t, sp_slice_of(s));
}

sp_status sp_jtext_char(sp_jrun *r, sp_jtext *t, uint32_t cp) {
    char bytes[4];
    int n = sp_utf8_encode(cp, bytes);
    return sp_jtext_put(r, t, (sp_slice){bytes, (size_t)n});
}

sp_status sp_jtext_fill(sp_jrun *r, sp_jtext *t, sp_slice s, int64_t n) {
    size_t total;
    if (n <= 0 || s.len == 0) return SP_OK;
    if (__builtin_mul_overflow((size_t)n, s.len, &total))
        return sp_jrun_fail(r, "a text repeated %lld times is too long", (long long)n);
    SP_TRY(sp_jrun_charge(r, total / 64));
    SP_TRY(text_reserve(r, t, total));
    for (int64_t i = 0; i < n; i++, t->len += s.len) memcpy(t->ptr + t->len, s.ptr, s.len);
    return SP_OK;
}

sp_status sp_jtext_done(sp_jrun *r, const sp_jtext *t, sp_jval *out) {
    return sp_jval_str(r, (sp_slice){t->len ? t->ptr : "", t->len}, out);
}

/* --- strings --- */

sp_status sp_jval_str(sp_jrun *r, sp_slice s, sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jstr), &p));
    sp_jstr *str = p;
    *str = (sp_jstr){.ptr = s.ptr ? s.ptr : "", .len = s.len, .n_chars = SIZE_MAX};
    *out = (sp_jval){.type = SP_J_STR, .s = str};
    return SP_OK;
}

sp_status sp_jval_str_copy(sp_jrun *r, sp_slice s, sp_jval *out) {
    sp_jtext t = {0};
    SP_TRY(sp_jtext_put(r, &t, s));
    return sp_jtext_done(r, &t, out);
}

size_t sp_jstr_chars(sp_jstr *s) {
    if (s->n_chars != SIZE_MAX) return s->n_chars;
    size_t n = 0;
    for (size_t i = 0; i < s->len; i++) n += ((unsigned char)s->ptr[i] & 0xc0) != 0x80;
    return s->n_chars = n;
}

size_t sp_jstr_byte(sp_jstr *s, size_t index) {
    size_t n = sp_jstr_chars(s);
    if (n == s->len) return index;
    if (index >= n) return s->len;
    size_t at = 0;
    for (size_t seen = 0;; at++) {
        if (((unsigned char)s->ptr[at] & 0xc0) == 0x80) continue;
        if (seen++ == index) return at;
    }
}

/* A joined string short enough is simply copied; a longer one gets a text with room behind it. A
 * string that is the last thing in such a text grows there: nobody sees bytes past his length. */
#define GROW_FROM ((size_t)256)

sp_status sp_jval_concat(sp_jrun *r, sp_jval a, sp_slice b, sp_jval *out) {
    sp_jtext *t = a.s->tail;
    if (!t || t->ptr + t->len != a.s->ptr + a.s->len) {
        void *p;
        SP_TRY(sp_jrun_take(r, sizeof *t, &p));
        t = p;
        size_t total = a.s->len + b.len;
        SP_TRY(text_reserve(r, t, total < GROW_FROM ? total : 2 * total));
        SP_TRY(sp_jtext_put(r, t, sp_jval_slice(a)));
    }
    size_t before = a.s->len, text_before = t->len;
    SP_TRY(sp_jtext_put(r, t, b));
    sp_slice s = {t->ptr + (text_before - before), before + b.len};
    SP_TRY(sp_jval_str(r, s, out));
    out->s->tail = t;
    out->mark = a.mark;
    return SP_OK;
}

/* --- undefined --- */

sp_status sp_jval_undefined(sp_jrun *r, const char *hint, const char *owner, sp_jval name,
                            sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jundef) + sizeof(sp_jval), &p));
    sp_jundef *u = p;
    u->hint = hint;
    u->owner = owner;
    u->name = (sp_jval *)(u + 1);
    *u->name = name;
    *out = (sp_jval){.type = SP_J_UNDEFINED, .undef = u};
    return SP_OK;
}

sp_status sp_jval_fail_undefined(sp_jrun *r, sp_jval undefined) {
    const sp_jundef *u = undefined.undef;
    if (u->hint) return sp_jrun_fail(r, "%s", u->hint);
    sp_jtext t = {0};
    SP_TRY(sp_jval_put_repr(r, *u->name, &t));
    if (!u->owner) return sp_jrun_fail(r, "%.*s is undefined", (int)t.len, t.ptr);
    return sp_jrun_fail(r, "'%s' object has no %s %.*s", u->owner,
                        u->name->type == SP_J_STR ? "attribute" : "element", (int)t.len, t.ptr);
}

/* --- lists --- */

sp_status sp_jlist_create(sp_jrun *r, size_t cap, sp_jlist **out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jlist), &p));
    sp_jlist *l = p;
    if (cap > SIZE_MAX / sizeof(sp_jval)) return sp_jrun_fail(r, "a list of %zu items", cap);
    if (cap) {
        SP_TRY(sp_jrun_take(r, cap * sizeof(sp_jval), &p));
        l->at = p;
        l->cap = cap;
    }
    *out = l;
    return SP_OK;
}

sp_status sp_jlist_push(sp_jrun *r, sp_jlist *l, sp_jval v) {
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 4;
        void *p;
        SP_TRY(sp_jrun_take(r, cap * sizeof(sp_jval), &p));
        if (l->n) memcpy(p, l->at, l->n * sizeof(sp_jval));
        l->at = p;
        l->cap = cap;
    }
    l->at[l->n++] = v;
    return SP_OK;
}

sp_status sp_jval_pair(sp_jrun *r, sp_jval a, sp_jval b, sp_jval *out) {
    sp_jlist *l = NULL;
    SP_TRY(sp_jlist_create(r, 2, &l));
    l->at[0] = a;
    l->at[1] = b;
    l->n = 2;
    *out = sp_jval_tuple(l);
    return SP_OK;
}

/* --- dicts --- */

#define INDEX_FROM 8 /* entries that are searched one by one */

static uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    return x ^ x >> 29;
}

static sp_status hash_of(sp_jrun *r, sp_jval v, uint64_t *out);

static sp_status hash_tuple(sp_jrun *r, const sp_jlist *l, uint64_t *out) {
    uint64_t h = 17, item = 0;
    SP_TRY(sp_jrun_charge(r, l->n));
    SP_TRY(sp_jrun_enter(r));
    for (size_t i = 0; i < l->n; i++) {
        SP_TRY(hash_of(r, l->at[i], &item));
        h = mix(h * 31 + item);
    }
    sp_jrun_leave(r);
    *out = h;
    return SP_OK;
}

/* Equal values have equal hashes, and 1 == 1.0 == true. */
static sp_status hash_of(sp_jrun *r, sp_jval v, uint64_t *out) {
    bool whole;
    switch ((sp_jtype)v.type) {
    case SP_J_STR:
    case SP_J_BIG:
        *out = sp_hash_bytes(v.s->ptr, v.s->len);
        return SP_OK;
    case SP_J_BOOL:
    case SP_J_INT:
        *out = mix((uint64_t)sp_jval_as_int(v));
        return SP_OK;
    case SP_J_FLOAT:
        whole = v.f >= -9e18 && v.f <= 9e18 && v.f == (double)(int64_t)v.f;
        *out = whole ? mix((uint64_t)(int64_t)v.f) : sp_hash_bytes(&v.f, sizeof v.f);
        return SP_OK;
    case SP_J_TUPLE:
        return hash_tuple(r, v.list, out);
    case SP_J_NONE:
    case SP_J_UNDEFINED:
        *out = v.type;
        return SP_OK;
    case SP_J_LIST:
    case SP_J_DICT:
    case SP_J_VIEW:
        return sp_jrun_fail(r, "unhashable type: '%s'", sp_jval_type_name(v));
    default:
        *out = mix((uint64_t)(uintptr_t)v.fn);
        return SP_OK;
    }
}

sp_status sp_jdict_create(sp_jrun *r, size_t cap, sp_jdict **out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jdict), &p));
    sp_jdict *d = p;
    if (cap > SIZE_MAX / sizeof(sp_jentry)) return sp_jrun_fail(r, "a dict of %zu items", cap);
    if (cap) {
        SP_TRY(sp_jrun_take(r, cap * sizeof(sp_jentry), &p));
        d->at = p;
        d->cap = cap;
    }
    *out = d;
    return SP_OK;
}

/* The slot of `index` that names entry `e`, or the free one where it would go. */
static void index_insert(sp_jdict *d, size_t entry) {
    size_t slot = d->at[entry].hash & (d->index_size - 1);
    while (d->index[slot]) slot = (slot + 1) & (d->index_size - 1);
    d->index[slot] = (uint32_t)entry + 1;
}

static sp_status grow(sp_jrun *r, sp_jdict *d) {
    void *p;
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 4;
        if (cap > UINT32_MAX) return sp_jrun_fail(r, "a dict of more than 2^32 items");
        SP_TRY(sp_jrun_take(r, cap * sizeof(sp_jentry), &p));
        if (d->n) memcpy(p, d->at, d->n * sizeof(sp_jentry));
        d->at = p;
        d->cap = cap;
    }
    if (d->n < INDEX_FROM || 2 * (d->n + 1) <= d->index_size) return SP_OK;
    size_t size = d->index_size ? 2 * d->index_size : 4 * INDEX_FROM;
    SP_TRY(sp_jrun_take(r, size * sizeof *d->index, &p));
    d->index = p;
    d->index_size = size;
    for (size_t i = 0; i < d->n; i++) index_insert(d, i);
    return SP_OK;
}

static sp_status find_entry(sp_jrun *r, const sp_jdict *d, sp_jval key, uint64_t hash,
                            sp_jentry **out) {
    size_t slot = d->index_size ? hash & (d->index_size - 1) : 0, probes = 0;
    *out = NULL;
    for (;; probes++) {
        size_t i = probes;
        if (d->index_size) {
            i = d->index[slot];
            if (i-- == 0) break;
            slot = (slot + 1) & (d->index_size - 1);
        } else if (i == d->n) {
            break;
        }
        bool same = false;
        if (d->at[i].hash == hash) SP_TRY(sp_jval_eq(r, d->at[i].key, key, &same));
        if (!same) continue;
        *out = &d->at[i];
        break;
    }
    /* Keys made to collide cost their sender steps. */
    return probes > INDEX_FROM ? sp_jrun_charge(r, probes / 8) : SP_OK;
}

sp_status sp_jdict_put(sp_jrun *r, sp_jdict *d, sp_jval key, sp_jval value) {
    uint64_t hash = 0;
    sp_jentry *e = NULL;
    SP_TRY(hash_of(r, key, &hash));
    SP_TRY(find_entry(r, d, key, hash, &e));
    if (e) {
        e->value = value;
        return SP_OK;
    }
    SP_TRY(grow(r, d));
    d->at[d->n++] = (sp_jentry){key, value, hash};
    if (d->index_size) index_insert(d, d->n - 1);
    return SP_OK;
}

sp_status sp_jdict_get(sp_jrun *r, const sp_jdict *d, sp_jval key, sp_jval *out) {
    uint64_t hash = 0;
    sp_jentry *e = NULL;
    SP_TRY(hash_of(r, key, &hash));
    SP_TRY(find_entry(r, d, key, hash, &e));
    *out = e ? e->value : sp_jval_missing();
    return SP_OK;
}

const sp_jval *sp_jdict_find(const sp_jdict *d, sp_slice key) {
    uint64_t hash = sp_hash_bytes(key.ptr, key.len);
    if (!d->index_size) {
        for (size_t i = 0; i < d->n; i++)
            if (d->at[i].hash == hash && d->at[i].key.type == SP_J_STR &&
                sp_slice_eq(sp_jval_slice(d->at[i].key), key))
                return &d->at[i].value;
        return NULL;
    }
    for (size_t slot = hash & (d->index_size - 1);; slot = (slot + 1) & (d->index_size - 1)) {
        if (!d->index[slot]) return NULL;
        const sp_jentry *e = &d->at[d->index[slot] - 1];
        if (e->hash == hash && e->key.type == SP_J_STR && sp_slice_eq(sp_jval_slice(e->key), key))
            return &e->value;
    }
}

/* --- from JSON --- */

static sp_status of_number(sp_jrun *r, const sp_json_node *node, sp_jval *out) {
    if (sp_json_type_of(node) == SP_JSON_INT) {
        *out = sp_jval_int(sp_json_int(node));
        return SP_OK;
    }
    *out = sp_jval_float(sp_json_number(node));
    double f = out->f < 0 ? -out->f : out->f;
    if (f < 9e18) return SP_OK;
    /* Only the text tells 18446744073709551615 from 1.8e19. */
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_node(&w, node);
    sp_status st = SP_OK;
    if (text.len && !strpbrk(text.ptr, ".eE")) {
        st = sp_jval_str_copy(r, sp_buf_slice(&text), out);
        if (st == SP_OK) out->type = SP_J_BIG;
    }
    sp_buf_fini(&text);
    return st;
}

static sp_status of_array(sp_jrun *r, const sp_json_node *node, sp_jval *out) {
    sp_jlist *l = NULL;
    SP_TRY(sp_jlist_create(r, (size_t)sp_json_count(node), &l));
    for (const sp_json_node *c = sp_json_first(node); c; c = sp_json_next(c)) {
        sp_jval v;
        SP_TRY(sp_jval_of_json(r, c, &v));
        SP_TRY(sp_jlist_push(r, l, v));
    }
    *out = sp_jval_list(l);
    return SP_OK;
}

/* base/json.h gives a key without its NULs, each as the two bytes C0 80, which no UTF-8 holds. */
static sp_status of_key(sp_jrun *r, sp_slice key, sp_jval *out) {
    if (sp_slice_find(key, SP_SLICE("\xc0\x80"), 0) < 0) return sp_jval_str(r, key, out);
    sp_jtext t = {0};
    for (size_t i = 0; i < key.len; i++) {
        bool nul = key.ptr[i] == '\xc0';
        SP_TRY(sp_jtext_put(r, &t, nul ? (sp_slice){"", 1} : (sp_slice){&key.ptr[i], 1}));
        i += nul;
    }
    return sp_jtext_done(r, &t, out);
}

static sp_status of_object(sp_jrun *r, const sp_json_node *node, sp_jval *out) {
    sp_jdict *d = NULL;
    SP_TRY(sp_jdict_create(r, (size_t)sp_json_count(node), &d));
    for (const sp_json_node *c = sp_json_first(node); c; c = sp_json_next(c)) {
        sp_jval k, v;
        SP_TRY(of_key(r, sp_json_key(c), &k));
        SP_TRY(sp_jval_of_json(r, c, &v));
        SP_TRY(sp_jdict_put(r, d, k, v));
    }
    *out = (sp_jval){.type = SP_J_DICT, .dict = d};
    return SP_OK;
}

sp_status sp_jval_of_json(sp_jrun *r, const sp_json_node *node, sp_jval *out) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r));
    switch (sp_json_type_of(node)) {
    case SP_JSON_NULL:
        *out = sp_jval_none();
        break;
    case SP_JSON_BOOL:
        *out = sp_jval_bool(sp_json_bool(node));
        break;
    case SP_JSON_INT:
    case SP_JSON_FLOAT:
        SP_TRY(of_number(r, node, out));
        break;
    case SP_JSON_STRING:
        SP_TRY(sp_jval_str(r, sp_json_string(node), out));
        break;
    case SP_JSON_ARRAY:
        SP_TRY(of_array(r, node, out));
        break;
    case SP_JSON_OBJECT:
        SP_TRY(of_object(r, node, out));
        break;
    }
    sp_jrun_leave(r);
    return SP_OK;
}
