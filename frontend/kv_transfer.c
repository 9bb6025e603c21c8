#include "frontend/kv_transfer.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

#define PARAMS "kv_transfer_params"
#define MAC_BYTES 32
#define TEXT_MAX 1024              /* of a name, an id, a host */
#define EXPIRES_MAX_S 253402300799 /* the end of year 9999, which stands for "never" too */

/* All that the proof covers; texts are borrowed. */
typedef struct words {
    sp_slice engine, request, host, mode, identity, source;
    int64_t port, tp, n_tokens, expires_ms, block_tokens;
    uint64_t lease;
    const sp_kv_lent *blocks;
    int32_t n_blocks;
} words;

const char *sp_kv_refusal_name(sp_kv_refusal r) {
    static const char *const names[SP_KV_REFUSAL_COUNT] = {
        [SP_KV_REFUSED_NOT] = "none",          [SP_KV_REFUSED_FOREIGN] = "foreign",
        [SP_KV_REFUSED_MAC] = "mac",           [SP_KV_REFUSED_EXPIRED] = "expired",
        [SP_KV_REFUSED_IDENTITY] = "identity", [SP_KV_REFUSED_MALFORMED] = "malformed"};
    return names[r];
}

int64_t sp_kv_transfer_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The proof. */

/* Lengths stand before texts, so that no two sets of words make one text. */
static void put_word(sp_buf *b, const char *key, sp_slice v) {
    sp_buf_printf(b, "%s %zu:", key, v.len);
    sp_buf_put_slice(b, v);
    sp_buf_putc(b, '\n');
}

static void put_number(sp_buf *b, const char *key, int64_t v) {
    sp_buf_printf(b, "%s %lld\n", key, (long long)v);
}

/* False: no memory for the text, and `out` is not written. */
static bool prove(const words *v, const sp_server_kv *kv, uint8_t out[MAC_BYTES]) {
    sp_buf b;
    sp_buf_init(&b, 0);
    put_number(&b, "superpod kv blocks", SP_KV_TRANSFER_VERSION);
    put_word(&b, "engine", v->engine);
    put_word(&b, "request", v->request);
    put_word(&b, "host", v->host);
    put_number(&b, "port", v->port);
    put_number(&b, "tp", v->tp);
    put_word(&b, "mode", v->mode);
    put_word(&b, "identity", v->identity);
    put_number(&b, "block size", v->block_tokens);
    put_number(&b, "tokens", v->n_tokens);
    put_number(&b, "expires", v->expires_ms);
    sp_buf_printf(&b, "lease %016llx\n", (unsigned long long)v->lease);
    put_word(&b, "source", v->source);
    put_number(&b, "blocks", v->n_blocks);
    for (int32_t i = 0; i < v->n_blocks; i++)
        sp_buf_printf(&b, "%u %u %016llx\n", v->blocks[i].block, v->blocks[i].generation,
                      (unsigned long long)v->blocks[i].name);
    bool good = !b.failed;
    if (good) kv->mac(kv->ctx, sp_buf_slice(&b), out);
    sp_buf_fini(&b);
    return good;
}

/* In equal time wherever they differ, so that nobody finds a proof byte by byte. */
static bool same_proof(const uint8_t *a, const uint8_t *b) {
    unsigned differ = 0;
    for (int i = 0; i < MAC_BYTES; i++) differ |= (unsigned)(a[i] ^ b[i]);
    return differ == 0;
}

/* Reading. */

/* Members that must be there. What is absent or wrong is a violation, and 0 or no text comes back. */

static bool is_there(sp_fields *f, const sp_json_node *o, const char *key) {
    if (!sp_json_is_null(sp_json_find(o, key))) return true;
    sp_fields_bad(f, key, "is missing");
    return false;
}

static int64_t need_int(sp_fields *f, const sp_json_node *o, const char *key, int64_t min,
                        int64_t max) {
    int64_t v = 0;
    if (is_there(f, o, key)) sp_field_int(f, o, key, min, max, &v);
    return v;
}

/* Borrowed from the document. */
static sp_slice need_text(sp_fields *f, const sp_json_node *o, const char *key, size_t max) {
    const sp_json_node *v = sp_json_find(o, key);
    if (!is_there(f, o, key)) return (sp_slice){0};
    sp_slice s = sp_json_string(v);
    if (sp_json_type_of(v) != SP_JSON_STRING)
        sp_fields_bad(f, key, "want a string, got %s", sp_json_type_name(sp_json_type_of(v)));
    else if (s.len > max)
        sp_fields_bad(f, key, "want at most %zu bytes, got %zu", max, s.len);
    else
        return s;
    return (sp_slice){0};
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_hex(sp_slice s, uint8_t *out, size_t n) {
    if (s.len != 2 * n) return false;
    for (size_t i = 0; i < n; i++) {
        int high = hex_digit(s.ptr[2 * i]), low = hex_digit(s.ptr[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool parse_hex_u64(const sp_json_node *v, uint64_t *out) {
    uint8_t bytes[8];
    if (sp_json_type_of(v) != SP_JSON_STRING || !parse_hex(sp_json_string(v), bytes, sizeof bytes))
        return false;
    *out = 0;
    for (size_t i = 0; i < sizeof bytes; i++) *out = *out << 8 | bytes[i];
    return true;
}

static uint64_t need_hex_u64(sp_fields *f, const sp_json_node *o, const char *key) {
    uint64_t v = 0;
    if (is_there(f, o, key) && !parse_hex_u64(sp_json_find(o, key), &v))
        sp_fields_bad(f, key, "want a string of 16 hexadecimal digits");
    return v;
}

static void need_mac(sp_fields *f, const sp_json_node *o, uint8_t out[MAC_BYTES]) {
    sp_slice s = need_text(f, o, "mac", 2 * MAC_BYTES);
    if (s.ptr && !parse_hex(s, out, MAC_BYTES))
        sp_fields_bad(f, "mac", "want a string of %d hexadecimal digits", 2 * MAC_BYTES);
}

/* "POD-GROUP"; -1 (and a violation) when it is not. */
static int32_t group_of(sp_fields *f, sp_slice engine) {
    size_t at = engine.len;
    int64_t group;
    while (at > 0 && engine.ptr[at - 1] != '-') at--;
    if (at < 2 || sp_parse_i64((sp_slice){engine.ptr + at, engine.len - at}, &group) != SP_OK ||
        group < 0 || group > INT32_MAX || memchr(engine.ptr, 0, engine.len)) {
        if (engine.ptr) sp_fields_bad(f, "remote_engine_id", "want a pod and its group, 'POD-N'");
        return -1;
    }
    return (int32_t)group;
}

/* A list with as many items as there are blocks; NULL: it is not (said so). */
static const sp_json_node *need_list(sp_fields *f, const sp_json_node *o, const char *key, int n) {
    if (!is_there(f, o, key)) return NULL;
    const sp_json_node *list = sp_field_array(f, o, key, SP_KV_TRANSFER_BLOCKS_MAX);
    if (!list || n < 0 || sp_json_count(list) == n) return list;
    sp_fields_bad(f, key, "want %d items, as remote_block_ids has, got %d", n, sp_json_count(list));
    return NULL;
}

/* The three lists become one. */
typedef enum column {
    BLOCK,
    GENERATION,
    NAME
} column;

static bool take_cell(sp_kv_lent *b, column c, const sp_json_node *v) {
    int64_t i = 0;
    if (c == NAME) return parse_hex_u64(v, &b->name);
    int64_t min = c == BLOCK ? 0 : 1, max = c == BLOCK ? INT32_MAX : UINT32_MAX;
    if (!sp_json_as_int(v, &i) || i < min || i > max) return false;
    *(c == BLOCK ? &b->block : &b->generation) = (uint32_t)i;
    return true;
}

static void take_column(sp_fields *f, const char *key, const sp_json_node *list, column c,
                        sp_kv_lent *blocks) {
    static const char *const wanted[] = {"the number of a block", "a generation, 1 to 4294967295",
                                         "a string of 16 hexadecimal digits"};
    int i = 0;
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v), i++) {
        if (take_cell(&blocks[i], c, v)) continue;
        size_t mark = sp_fields_enter(f, key, i);
        sp_fields_bad(f, NULL, "want %s", wanted[c]);
        sp_fields_leave(f, mark);
        return;
    }
}

static sp_kv_handle *read_blocks(sp_fields *f, const sp_json_node *o, const sp_json_node *own) {
    const sp_json_node *ids = need_list(f, o, "remote_block_ids", -1);
    int n = sp_json_count(ids);
    sp_kv_handle *h = sp_arena_alloc(f->arena, sizeof *h + (size_t)n * sizeof h->blocks[0]);
    h->n_blocks = n;
    if (ids) take_column(f, "remote_block_ids", ids, BLOCK, h->blocks);
    size_t mark = sp_fields_enter(f, "superpod", -1);
    const sp_json_node *list = ids ? need_list(f, own, "generations", n) : NULL;
    if (list) take_column(f, "generations", list, GENERATION, h->blocks);
    list = ids ? need_list(f, own, "names", n) : NULL;
    if (list) take_column(f, "names", list, NAME, h->blocks);
    sp_fields_leave(f, mark);
    return h;
}

static int64_t read_expiry_ms(sp_fields *f, const sp_json_node *o) {
    double s = 0;
    if (is_there(f, o, "remote_blocks_expiry_time"))
        sp_field_number(f, o, "remote_blocks_expiry_time", 0, EXPIRES_MAX_S, false, &s);
    return llround(s * 1000);
}

/* Everything by its type; what is wrong goes to `f`. */
static words read_words(sp_fields *f, const sp_json_node *o, const sp_json_node *own,
                        sp_kv_handle **handle, uint8_t mac[MAC_BYTES]) {
    words v = {.engine = need_text(f, o, "remote_engine_id", SP_KV_ENGINE_BYTES - 1),
               .request = need_text(f, o, "remote_request_id", TEXT_MAX),
               .host = need_text(f, o, "remote_host", TEXT_MAX),
               .mode = need_text(f, o, "transfer_mode", TEXT_MAX),
               .port = need_int(f, o, "remote_port", 0, 65535),
               .tp = need_int(f, o, "tp_size", 0, INT32_MAX),
               .n_tokens = need_int(f, o, "remote_num_tokens", 0, INT32_MAX),
               .expires_ms = read_expiry_ms(f, o)};
    sp_kv_handle *h = read_blocks(f, o, own);
    h->group = group_of(f, v.engine);
    size_t mark = sp_fields_enter(f, "superpod", -1);
    v.identity = need_text(f, own, "identity", TEXT_MAX);
    v.block_tokens = need_int(f, own, "block_size", 1, INT32_MAX);
    v.lease = need_hex_u64(f, own, "lease");
    v.source = need_text(f, own, "source", SP_KV_TRANSFER_SOURCE_MAX);
    need_mac(f, own, mac);
    if (v.lease == 0 && h->n_blocks > 0) sp_fields_bad(f, "lease", "no lease is 0");
    sp_fields_leave(f, mark);
    h->lease = v.lease;
    h->n_tokens = (int32_t)v.n_tokens;
    h->expires_unix_ms = v.expires_ms;
    v.blocks = h->blocks;
    v.n_blocks = h->n_blocks;
    *handle = h;
    return v;
}

static bool is_ours(const words *v, const sp_server_kv *kv) {
    return sp_slice_is(v->identity, kv->identity) && v->block_tokens == kv->block_tokens;
}

static const sp_kv_import *import_of(sp_arena *a, const words *v, const sp_kv_handle *h,
                                     bool must) {
    sp_kv_import *from = sp_arena_alloc(a, sizeof *from);
    memcpy(from->engine, v->engine.ptr, v->engine.len); /* shorter, and the arena gives zeros */
    from->source = (sp_slice){sp_arena_strndup(a, v->source.ptr, v->source.len), v->source.len};
    from->handle = h;
    from->must = must;
    return from;
}

/* An object of this version, which has all it should have or is malformed. */
static sp_kv_refusal read_own(sp_fields *f, const sp_json_node *o, const sp_json_node *own,
                              const sp_server_kv *kv, int64_t now_ms, sp_kv_transfer *out) {
    uint8_t said[MAC_BYTES] = {0}, made[MAC_BYTES];
    sp_kv_handle *h;
    int before = f->n;
    words v = read_words(f, o, own, &h, said);
    if (f->n > before) return SP_KV_REFUSED_MALFORMED;
    if (!prove(&v, kv, made) || !same_proof(said, made)) return SP_KV_REFUSED_MAC;
    if (!is_ours(&v, kv)) return SP_KV_REFUSED_IDENTITY;
    if (v.n_blocks == 0) return SP_KV_REFUSED_NOT; /* nothing was lent: all is computed here */
    if (now_ms >= v.expires_ms) return SP_KV_REFUSED_EXPIRED;
    out->from = import_of(f->arena, &v, h, !kv->recompute);
    return SP_KV_REFUSED_NOT;
}

static sp_kv_refusal read_object(sp_fields *f, const sp_json_node *o, const sp_server_kv *kv,
                                 int64_t now_ms, sp_kv_transfer *out) {
    int before = f->n;
    if (sp_json_is_null(sp_json_find(o, "superpod"))) return SP_KV_REFUSED_FOREIGN;
    const sp_json_node *own = sp_field_object(f, o, "superpod");
    size_t mark = sp_fields_enter(f, "superpod", -1);
    int64_t version = own ? need_int(f, own, "version", INT64_MIN, INT64_MAX) : 0;
    sp_fields_leave(f, mark);
    if (f->n > before) return SP_KV_REFUSED_MALFORMED;
    if (version != SP_KV_TRANSFER_VERSION) return SP_KV_REFUSED_FOREIGN;
    return read_own(f, o, own, kv, now_ms, out);
}

static void say_refusal(sp_fields *f, sp_kv_refusal why) {
    static const char *const texts[SP_KV_REFUSAL_COUNT] = {
        [SP_KV_REFUSED_FOREIGN] = "they were lent by another kind or version of server",
        [SP_KV_REFUSED_MAC] = "the proof is wrong: lent by a pod with another "
                              "--kv-secret-file, or changed on the way",
        [SP_KV_REFUSED_EXPIRED] = "their lease has ended",
        [SP_KV_REFUSED_IDENTITY] = "they are of another model, numerics, KV type or block size"};
    sp_fields_bad(f, NULL,
                  "the lent KV blocks are refused: %s (--kv-load-failure-policy recompute would "
                  "compute them)",
                  texts[why]);
}

void sp_kv_transfer_read(sp_fields *f, const sp_json_node *root, const sp_server_kv *kv,
                         int64_t now_unix_ms, sp_kv_transfer *out) {
    *out = (sp_kv_transfer){0};
    const sp_json_node *o = sp_field_object(f, root, PARAMS);
    if (!o) return;
    size_t mark = sp_fields_enter(f, PARAMS, -1);
    sp_field_bool(f, o, "do_remote_decode", &out->lend);
    sp_field_bool(f, o, "do_remote_prefill", &out->borrow);
    if (out->lend && out->borrow) {
        sp_fields_bad(f, NULL, "do_remote_decode and do_remote_prefill are both true, want one");
    } else if ((out->lend || out->borrow) && !kv) {
        sp_fields_bad(f, NULL,
                      "this server shares no KV blocks with other pods: start both with "
                      "--kv-secret-file and the same secret");
    } else if (out->borrow) {
        out->refusal = read_object(f, o, kv, now_unix_ms, out);
        bool told = out->refusal == SP_KV_REFUSED_NOT || out->refusal == SP_KV_REFUSED_MALFORMED;
        if (!told && !kv->recompute) say_refusal(f, out->refusal);
    }
    sp_fields_leave(f, mark);
}

/* Writing. */

/* Degree of tensor parallelism, out of the text that the ranks' own reader takes apart. */
static int64_t tp_of(sp_slice source) {
    sp_json *doc = NULL;
    sp_err err = {0};
    if (sp_json_parse(&doc, source, 0, &err) != SP_OK) return 0;
    int64_t tp = 0;
    if (!sp_json_as_int(sp_json_find(sp_json_root(doc), "tp"), &tp)) tp = 0;
    sp_json_free(doc);
    return tp;
}

static void put_hex_u64(sp_jw *w, uint64_t v) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)v);
    sp_jw_str(w, text);
}

static void put_mac(sp_jw *w, const words *v, const sp_server_kv *kv) {
    uint8_t mac[MAC_BYTES];
    char text[2 * MAC_BYTES + 1] = "";
    if (!prove(v, kv, mac)) w->out->failed = true; /* the answer is then a 500 */
    for (int i = 0; i < MAC_BYTES && !w->out->failed; i++)
        snprintf(text + (size_t)2 * i, 3, "%02x", mac[i]);
    sp_jw_key(w, "mac"), sp_jw_str(w, text);
}

/* What no other server understands. */
static void put_own(sp_jw *w, const words *v, const sp_server_kv *kv) {
    sp_jw_object(w);
    sp_jw_key(w, "version"), sp_jw_int(w, SP_KV_TRANSFER_VERSION);
    sp_jw_key(w, "identity"), sp_jw_string(w, v->identity);
    sp_jw_key(w, "block_size"), sp_jw_int(w, v->block_tokens);
    sp_jw_key(w, "lease"), put_hex_u64(w, v->lease);
    sp_jw_key(w, "generations"), sp_jw_array(w);
    for (int32_t i = 0; i < v->n_blocks; i++) sp_jw_int(w, v->blocks[i].generation);
    sp_jw_array_end(w);
    sp_jw_key(w, "names"), sp_jw_array(w);
    for (int32_t i = 0; i < v->n_blocks; i++) put_hex_u64(w, v->blocks[i].name);
    sp_jw_array_end(w);
    sp_jw_key(w, "source"), sp_jw_string(w, v->source);
    put_mac(w, v, kv);
    sp_jw_object_end(w);
}

static void put_object(sp_jw *w, const words *v, const sp_server_kv *kv) {
    sp_jw_object(w);
    sp_jw_key(w, "do_remote_prefill"), sp_jw_bool(w, true);
    sp_jw_key(w, "do_remote_decode"), sp_jw_bool(w, false);
    sp_jw_key(w, "remote_engine_id"), sp_jw_string(w, v->engine);
    sp_jw_key(w, "remote_request_id"), sp_jw_string(w, v->request);
    sp_jw_key(w, "remote_block_ids"), sp_jw_array(w);
    for (int32_t i = 0; i < v->n_blocks; i++) sp_jw_int(w, v->blocks[i].block);
    sp_jw_array_end(w);
    sp_jw_key(w, "remote_host"), sp_jw_string(w, v->host);
    sp_jw_key(w, "remote_port"), sp_jw_int(w, v->port);
    sp_jw_key(w, "tp_size"), sp_jw_int(w, v->tp);
    sp_jw_key(w, "remote_num_tokens"), sp_jw_int(w, v->n_tokens);
    sp_jw_key(w, "remote_blocks_expiry_time"), sp_jw_number(w, (double)v->expires_ms / 1000);
    sp_jw_key(w, "transfer_mode"), sp_jw_string(w, v->mode);
    sp_jw_key(w, "superpod"), put_own(w, v, kv);
    sp_jw_object_end(w);
}

static int64_t expiry_of(const sp_kv_handle *h, int64_t now_unix_ms) {
    const int64_t max = EXPIRES_MAX_S * INT64_C(1000);
    if (h->n_blocks == 0) return now_unix_ms;
    return h->expires_unix_ms < max ? h->expires_unix_ms : max;
}

void sp_kv_transfer_put(sp_jw *w, const sp_kv_offer *offer, const sp_server_kv *kv) {
    static const sp_kv_handle nothing;
    const sp_kv_handle *h = offer->handle ? offer->handle : &nothing;
    char engine[SP_KV_ENGINE_BYTES];
    sp_buf source;
    sp_buf_init(&source, SP_KV_TRANSFER_SOURCE_MAX);
    /* A group that is gone since then lends nothing. */
    bool there = kv->source(kv->ctx, h->group, &source) && !source.failed && source.len > 0;
    if (!there) {
        h = &nothing;
        sp_buf_clear(&source);
        sp_buf_puts(&source, "{}");
    }
    snprintf(engine, sizeof engine, "%.32s-%d", kv->pod, h->group);
    words v = {.engine = sp_slice_of(engine),
               .request = sp_slice_of(offer->request_id),
               .host = sp_slice_of(kv->host),
               .mode = SP_SLICE("pull"),
               .identity = sp_slice_of(kv->identity),
               .source = sp_buf_slice(&source),
               .port = offer->port,
               .tp = tp_of(sp_buf_slice(&source)),
               .n_tokens = h->n_tokens,
               .expires_ms = expiry_of(h, offer->now_unix_ms),
               .block_tokens = kv->block_tokens,
               .lease = h->lease,
               .blocks = h->blocks,
               .n_blocks = h->n_blocks};
    put_object(w, &v, kv);
    sp_buf_fini(&source);
}
