#include "runtime/text/tokenizer_impl.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <stdio.h>

#define FILE_BYTES_MAX ((size_t)256 << 20)
#define PATH_BYTES_MAX 4096
#define TEMPLATE_IDS_MAX 64 /* ids that a post-processor adds to a text */

/* ---- files ---- */

static sp_status read_json(sp_json **out, const char *dir, const char *name, sp_err *err) {
    char path[PATH_BYTES_MAX];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return SP_FAIL(err, SP_E_TOOLONG, "path of '%s' has more than %d bytes", name,
                       PATH_BYTES_MAX);
    char *text;
    size_t len;
    SP_TRY(sp_file_read(path, FILE_BYTES_MAX, &text, &len, err));
    sp_json *doc = NULL;
    sp_status st = sp_json_parse(&doc, (sp_slice){text, len}, 0, err);
    sp_free(text);
    if (st == SP_OK && sp_json_type_of(sp_json_root(doc)) != SP_JSON_OBJECT) {
        st = SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                     sp_json_type_name(sp_json_type_of(sp_json_root(doc))));
        sp_json_free(doc);
    }
    if (st != SP_OK) {
        sp_err_context(err, "'%s'", path);
        return st;
    }
    *out = doc;
    return SP_OK;
}

/* A file that need not be there. */
static sp_status read_optional(sp_json **out, const char *dir, const char *name, sp_err *err) {
    sp_err why = {0};
    sp_status st = read_json(out, dir, name, &why);
    if (st == SP_OK || st == SP_E_NOTFOUND) return SP_OK;
    if (err) *err = why;
    return st;
}

/* Reads of JSON are "invalid values"; in a model's file that is a bad file. */
static sp_status in_file(sp_status st, const char *dir, const char *name, sp_err *err) {
    if (st == SP_OK) return SP_OK;
    sp_err_context(err, "'%s/%s'", dir, name);
    if (st != SP_E_INVALID) return st;
    if (err) err->code = SP_E_FORMAT;
    return SP_E_FORMAT;
}

/* ---- added tokens ---- */

static sp_status read_added(const sp_json_node *node, sp_added_token *t, sp_err *err) {
    if (sp_json_type_of(node) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(node)));
    SP_TRY(sp_json_get_string(node, "content", &t->content, err));
    if (!t->content.ptr) return SP_FAIL(err, SP_E_FORMAT, "content: is missing");
    SP_TRY(sp_json_get_bool(node, "single_word", &t->single_word, err));
    SP_TRY(sp_json_get_bool(node, "lstrip", &t->lstrip, err));
    SP_TRY(sp_json_get_bool(node, "rstrip", &t->rstrip, err));
    SP_TRY(sp_json_get_bool(node, "special", &t->special, err));
    t->normalized = !t->special;
    return sp_json_get_bool(node, "normalized", &t->normalized, err);
}

/* The vocabulary decides where both know a token, as in the library; an id that the vocabulary has
 * given to something else is refused. */
static sp_status put_added(sp_tokenizer *t, sp_added_token *token, sp_err *err) {
    if (token->content.len == 0) return SP_OK; /* the library passes over it too */
    int32_t known = sp_bpe_find(t->bpe, token->content);
    if (known >= 0) token->id = known;
    sp_slice there = sp_bpe_piece(t->bpe, token->id);
    if (there.ptr && !sp_slice_eq(there, token->content))
        return SP_FAIL(err, SP_E_FORMAT,
                       "added token '%.60s' has the id %d, which the vocabulary gives to '%.*s'",
                       token->content.ptr, token->id, (int)(there.len < 60 ? there.len : 60),
                       there.ptr);
    return sp_added_put(t->added, token, t->normalizer, err);
}

static sp_status load_added(sp_tokenizer *t, const sp_json_node *root, sp_err *err) {
    const sp_json_node *list = NULL;
    SP_TRY(sp_json_get_array(root, "added_tokens", &list, err));
    int i = 0;
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v), i++) {
        sp_added_token token = {0};
        int64_t id = -1;
        sp_status st = read_added(v, &token, err);
        if (st == SP_OK) st = sp_json_get_int(v, "id", 0, SP_BPE_IDS_MAX - 1, &id, err);
        if (st == SP_OK && id < 0) st = SP_FAIL(err, SP_E_FORMAT, "id: is missing");
        token.id = (int32_t)id;
        if (st == SP_OK) st = put_added(t, &token, err);
        if (st != SP_OK) {
            sp_err_context(err, "added_tokens[%d]", i);
            return st;
        }
    }
    return SP_OK;
}

/* added_tokens_decoder of tokenizer_config.json may hold tokens that tokenizer.json lacks. */
static sp_status load_added_of_config(sp_tokenizer *t, sp_err *err) {
    const sp_json_node *map = NULL;
    SP_TRY(sp_json_get_object(sp_json_root(t->config), "added_tokens_decoder", &map, err));
    for (const sp_json_node *v = sp_json_first(map); v; v = sp_json_next(v)) {
        sp_added_token token = {0};
        int64_t id;
        sp_status st = read_added(v, &token, err);
        if (st == SP_OK && sp_added_find(t->added, token.content)) continue;
        if (st == SP_OK &&
            (sp_parse_i64(sp_json_key(v), &id) != SP_OK || id < 0 || id >= SP_BPE_IDS_MAX))
            st = SP_FAIL(err, SP_E_FORMAT, "want an id from 0 to %d", SP_BPE_IDS_MAX - 1);
        if (st == SP_OK) {
            token.id = (int32_t)id;
            st = put_added(t, &token, err);
        }
        if (st != SP_OK) {
            sp_err_context(err, "added_tokens_decoder['%.20s']", sp_json_key(v).ptr);
            return st;
        }
    }
    return SP_OK;
}

/* ---- named tokens ---- */

/* "<s>" or {"content": "<s>", …}. */
static sp_slice spelled(const sp_json_node *v) {
    if (sp_json_type_of(v) == SP_JSON_OBJECT) v = sp_json_find(v, "content");
    return sp_json_type_of(v) == SP_JSON_STRING ? sp_json_string(v) : (sp_slice){0};
}

/* A token that is named but not among the added ones becomes a special one, as in transformers:
 * older files list </s> only in the vocabulary. */
static sp_status make_special(sp_tokenizer *t, sp_slice name, sp_err *err) {
    int32_t id = sp_bpe_find(t->bpe, name);
    if (id < 0 || sp_added_find(t->added, name)) return SP_OK;
    sp_added_token token = {.id = id, .content = name, .special = true};
    return sp_added_put(t->added, &token, t->normalizer, err);
}

static sp_status load_names(sp_tokenizer *t, sp_err *err) {
    static const char *const keys[SP_TOKENIZER_NAMES] = {"bos_token", "eos_token", "pad_token",
                                                         "unk_token"};
    for (int i = 0; i < SP_TOKENIZER_NAMES; i++) {
        sp_slice name = spelled(sp_json_find(sp_json_root(t->config), keys[i]));
        if (!name.len) name = spelled(sp_json_find(sp_json_root(t->special_map), keys[i]));
        if (!name.len) continue;
        t->names[i] = name;
        SP_TRY(make_special(t, name, err));
    }
    return SP_OK;
}

/* ---- post-processor ---- */

static sp_status push_id(sp_tokenizer *t, sp_ids *ids, int64_t id, sp_err *err) {
    if (id < 0 || id >= t->n_ids)
        return SP_FAIL(err, SP_E_FORMAT, "id %lld has no token, the highest is %d", (long long)id,
                       t->n_ids - 1);
    if (ids->len == TEMPLATE_IDS_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "adds more than %d ids", TEMPLATE_IDS_MAX);
    if (sp_ids_push(ids, (int32_t)id) == SP_OK) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for a template");
}

/* The library gives the pieces of one such processor to the next one singly: no file means that. */
static sp_status claim(bool *adds, sp_err *err) {
    if (*adds) return SP_FAIL(err, SP_E_UNSUPPORTED, "more than one processor adds tokens");
    *adds = true;
    return SP_OK;
}

static sp_status push_special(sp_tokenizer *t, const sp_json_node *processor,
                              const sp_json_node *piece, sp_ids *ids, sp_err *err) {
    sp_slice name = SP_SLICE("");
    SP_TRY(sp_json_get_string(piece, "id", &name, err));
    const sp_json_node *map = NULL, *list = NULL, *token = NULL;
    SP_TRY(sp_json_get_object(processor, "special_tokens", &map, err));
    for (const sp_json_node *v = sp_json_first(map); v && !token; v = sp_json_next(v))
        if (sp_slice_eq(sp_json_key(v), name)) token = v;
    if (sp_json_type_of(token) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "special_tokens: has no '%.60s'", name.ptr);
    SP_TRY(sp_json_get_array(token, "ids", &list, err));
    if (!list) return SP_FAIL(err, SP_E_FORMAT, "special_tokens: '%.60s' has no ids", name.ptr);
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v)) {
        if (sp_json_type_of(v) != SP_JSON_INT)
            return SP_FAIL(err, SP_E_FORMAT, "special_tokens: '%.60s': want an integer, got %s",
                           name.ptr, sp_json_type_name(sp_json_type_of(v)));
        SP_TRY(push_id(t, ids, sp_json_int(v), err));
    }
    return SP_OK;
}

static sp_status load_template(sp_tokenizer *t, const sp_json_node *processor, sp_err *err) {
    const sp_json_node *single = NULL;
    SP_TRY(sp_json_get_array(processor, "single", &single, err));
    if (!single) return SP_FAIL(err, SP_E_FORMAT, "single: is missing");
    int n_texts = 0;
    for (const sp_json_node *v = sp_json_first(single); v; v = sp_json_next(v)) {
        const sp_json_node *special = sp_json_find(v, "SpecialToken");
        const sp_json_node *text = sp_json_find(v, "Sequence");
        if (special)
            SP_TRY(push_special(t, processor, special, n_texts ? &t->after : &t->before, err));
        else if (text && sp_slice_is(sp_json_string(sp_json_find(text, "id")), "A"))
            n_texts++;
        else
            return SP_FAIL(err, SP_E_FORMAT, "single: want SpecialToken or the Sequence 'A'");
    }
    if (n_texts == 1) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "single: holds the text %d times, want 1", n_texts);
}

/* BertProcessing, RobertaProcessing: "cls": ["[CLS]", 101], "sep": ["[SEP]", 102]. */
static sp_status load_pair(const sp_json_node *processor, const char *key, int64_t *id,
                           sp_err *err) {
    const sp_json_node *pair = NULL;
    SP_TRY(sp_json_get_array(processor, key, &pair, err));
    const sp_json_node *v = sp_json_at(pair, 1);
    if (sp_json_count(pair) != 2 || sp_json_type_of(v) != SP_JSON_INT)
        return SP_FAIL(err, SP_E_FORMAT, "%s: want [token, id]", key);
    *id = sp_json_int(v);
    return SP_OK;
}

static sp_status load_cls_sep(sp_tokenizer *t, const sp_json_node *processor, sp_err *err) {
    int64_t cls, sep;
    SP_TRY(load_pair(processor, "cls", &cls, err));
    SP_TRY(load_pair(processor, "sep", &sep, err));
    SP_TRY(push_id(t, &t->before, cls, err));
    return push_id(t, &t->after, sep, err);
}

static sp_status load_processor(sp_tokenizer *t, const sp_json_node *node, bool *adds,
                                sp_err *err) {
    if (sp_json_is_null(node)) return SP_OK;
    if (sp_json_type_of(node) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "want an object, got %s",
                       sp_json_type_name(sp_json_type_of(node)));
    sp_slice type = SP_SLICE("");
    SP_TRY(sp_json_get_string(node, "type", &type, err));
    if (sp_slice_is(type, "ByteLevel")) return SP_OK; /* it changes offsets only */
    bool template = sp_slice_is(type, "TemplateProcessing");
    if (template || sp_slice_is(type, "BertProcessing") || sp_slice_is(type, "RobertaProcessing")) {
        SP_TRY(claim(adds, err));
        return template ? load_template(t, node, err) : load_cls_sep(t, node, err);
    }
    if (!sp_slice_is(type, "Sequence"))
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "type '%.*s' is not supported; supported: Sequence, TemplateProcessing, "
                       "ByteLevel, BertProcessing, RobertaProcessing",
                       (int)(type.len < 60 ? type.len : 60), type.ptr);
    const sp_json_node *list = NULL;
    SP_TRY(sp_json_get_array(node, "processors", &list, err));
    if (!list) return SP_FAIL(err, SP_E_FORMAT, "Sequence has no 'processors'");
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v))
        SP_TRY(load_processor(t, v, adds, err));
    return SP_OK;
}

/* ---- all of it ---- */

static sp_status list_specials(sp_tokenizer *t, sp_err *err) {
    int n = sp_added_count(t->added);
    t->specials = sp_try_alloc_array((size_t)n, sizeof *t->specials);
    if (!t->specials) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d special tokens", n);
    t->n_ids = sp_bpe_size(t->bpe);
    for (int i = 0; i < n; i++) {
        const sp_added_token *a = sp_added_at(t->added, i);
        if (a->special) t->specials[t->n_specials++] = i;
        if (a->id >= t->n_ids) t->n_ids = a->id + 1;
    }
    return SP_OK;
}

static sp_status check_version(const sp_json_node *root, sp_err *err) {
    sp_slice version = SP_SLICE("1.0");
    SP_TRY(sp_json_get_string(root, "version", &version, err));
    if (sp_slice_is(version, "1.0")) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "version '%.20s' is not supported; supported: 1.0",
                   version.ptr);
}

static sp_status load_parts(sp_tokenizer *t, const sp_json_node *root, sp_err *err) {
    SP_TRY(check_version(root, err));
    if (!sp_json_find(root, "model")) return SP_FAIL(err, SP_E_FORMAT, "model: is missing");
    SP_TRY(sp_bpe_load(&t->bpe, sp_json_find(root, "model"), err));
    SP_TRY(sp_normalizer_load(&t->normalizer, sp_json_find(root, "normalizer"), err));
    SP_TRY(sp_pretok_load(&t->pretok, sp_json_find(root, "pre_tokenizer"), err));
    SP_TRY(sp_decoder_load(&t->decoder, sp_json_find(root, "decoder"), err));
    SP_TRY(sp_added_create(&t->added, err));
    return load_added(t, root, err);
}

static sp_status load_post(sp_tokenizer *t, const sp_json_node *root, sp_err *err) {
    SP_TRY(sp_added_finish(t->added, err));
    SP_TRY(list_specials(t, err));
    bool adds = false;
    sp_status st = load_processor(t, sp_json_find(root, "post_processor"), &adds, err);
    if (st != SP_OK) sp_err_context(err, "post_processor");
    return st;
}

static sp_status load_doc(sp_tokenizer *t, const char *dir, sp_json *doc, sp_err *err) {
    static const char main_file[] = "tokenizer.json", config_file[] = "tokenizer_config.json";
    const sp_json_node *root = sp_json_root(doc);
    sp_status st = in_file(load_parts(t, root, err), dir, main_file, err);
    if (st == SP_OK) st = in_file(load_added_of_config(t, err), dir, config_file, err);
    if (st == SP_OK) st = in_file(load_names(t, err), dir, config_file, err);
    if (st == SP_OK) st = in_file(load_post(t, root, err), dir, main_file, err);
    return st;
}

static sp_status load_all(sp_tokenizer *t, const char *dir, sp_err *err) {
    SP_TRY(read_optional(&t->config, dir, "tokenizer_config.json", err));
    SP_TRY(read_optional(&t->special_map, dir, "special_tokens_map.json", err));
    sp_json *doc = NULL;
    SP_TRY(read_json(&doc, dir, "tokenizer.json", err));
    sp_status st = load_doc(t, dir, doc, err);
    sp_json_free(doc);
    return st;
}

sp_status sp_tokenizer_parse(sp_tokenizer **out, sp_slice json, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, json, 0, err));
    sp_tokenizer *t = sp_alloc(sizeof *t);
    sp_status st = load_doc(t, "memory", doc, err);
    sp_json_free(doc);
    if (st != SP_OK) {
        sp_tokenizer_free(t);
        return st;
    }
    *out = t;
    return SP_OK;
}

sp_status sp_tokenizer_load(sp_tokenizer **out, const char *dir, sp_err *err) {
    sp_tokenizer *t = sp_try_alloc(sizeof *t);
    if (!t) return SP_FAIL(err, SP_E_NOMEM, "no memory for a tokenizer");
    sp_status st = load_all(t, dir, err);
    if (st != SP_OK) {
        sp_tokenizer_free(t);
        return st;
    }
    *out = t;
    return SP_OK;
}

void sp_tokenizer_free(sp_tokenizer *t) {
    if (!t) return;
    sp_added_free(t->added);
    sp_normalizer_free(t->normalizer);
    sp_pretok_free(t->pretok);
    sp_bpe_free(t->bpe);
    sp_decoder_free(t->decoder);
    sp_ids_fini(&t->before);
    sp_ids_fini(&t->after);
    sp_free(t->specials);
    sp_json_free(t->config);
    sp_json_free(t->special_map);
    sp_free(t);
}
