#include "runtime/format/model_desc.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>

#define CONFIG_BYTES_MAX ((size_t)16 << 20)
#define CONFIG_DEPTH_MAX 64

/* One file while it is read. A wrapper around a text model keeps the text model's keys in
 * `text_config` and some shared ones outside: a key is looked up inside first. */
typedef struct reader {
    const char *file;
    const sp_json_node *top, *text; /* text is top when nothing is nested */
    const char *within;             /* "rope_scaling." and the like, for messages */
    sp_err *err;
} reader;

static const sp_json_node *find(const reader *r, const char *key) {
    const sp_json_node *v = sp_json_find(r->text, key);
    return sp_json_is_null(v) && r->text != r->top ? sp_json_find(r->top, key) : v;
}

/* The first of several spellings that is there and not null; `*key` becomes that spelling. */
#define SPELLINGS_MAX 5
static const sp_json_node *find_any(const reader *r, const char *const *keys, const char **key) {
    *key = keys[0];
    for (int i = 0; i < SPELLINGS_MAX && keys[i]; i++) {
        const sp_json_node *v = find(r, keys[i]);
        if (sp_json_is_null(v)) continue;
        *key = keys[i];
        return v;
    }
    return NULL;
}

static sp_status refuse(const reader *r, const char *key, const sp_json_node *v, const char *want) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_node(&w, v);
    sp_status st = SP_FAIL(r->err, SP_E_INVALID, "%s: %s%s is %.60s%s, want %s", r->file, r->within,
                           key, b.ptr ? b.ptr : "", b.len > 60 ? "..." : "", want);
    sp_buf_fini(&b);
    return st;
}

static sp_status read_int(const reader *r, const char *const *keys, int64_t min, int64_t max,
                          int32_t *out) {
    const char *key;
    const sp_json_node *v = find_any(r, keys, &key);
    if (!v) return SP_OK;
    char want[80];
    snprintf(want, sizeof want, "an integer from %lld to %lld", (long long)min, (long long)max);
    if (sp_json_type_of(v) != SP_JSON_INT || sp_json_int(v) < min || sp_json_int(v) > max)
        return refuse(r, key, v, want);
    *out = (int32_t)sp_json_int(v);
    return SP_OK;
}

typedef struct range {
    double min, max;
    bool above, below; /* the bound itself is out */
    const char *words;
} range;

static const range POSITIVE = {0, INFINITY, true, true, "a number above 0"};
static const range FRACTION = {0, 1, true, false, "a number above 0 and at most 1"};

static sp_status read_number(const reader *r, const char *const *keys, range in, double *out) {
    const char *key;
    const sp_json_node *v = find_any(r, keys, &key);
    if (!v) return SP_OK;
    sp_json_type t = sp_json_type_of(v);
    double x = sp_json_number(v);
    bool fits = (t == SP_JSON_INT || t == SP_JSON_FLOAT) && isfinite(x) &&
                (in.above ? x > in.min : x >= in.min) && (in.below ? x < in.max : x <= in.max);
    if (!fits) return refuse(r, key, v, in.words);
    *out = x;
    return SP_OK;
}

static sp_status read_bool(const reader *r, const char *key, bool *out) {
    const sp_json_node *v = find(r, key);
    if (sp_json_is_null(v)) return SP_OK;
    if (sp_json_type_of(v) != SP_JSON_BOOL) return refuse(r, key, v, "true or false");
    *out = sp_json_bool(v);
    return SP_OK;
}

/* A word is printable ASCII: it is compared with ours and printed in messages. */
static bool is_word(sp_slice s, size_t n) {
    if (s.len == 0 || s.len >= n) return false;
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] <= ' ' || s.ptr[i] > '~') return false;
    return true;
}

static sp_status take_word(const reader *r, const char *key, const sp_json_node *v, char *out,
                           size_t n) {
    if (sp_json_is_null(v)) return SP_OK;
    char want[64];
    snprintf(want, sizeof want, "a word of at most %zu letters", n - 1);
    if (sp_json_type_of(v) != SP_JSON_STRING || !is_word(sp_json_string(v), n))
        return refuse(r, key, v, want);
    sp_slice s = sp_json_string(v);
    memcpy(out, s.ptr, s.len);
    out[s.len] = 0;
    return SP_OK;
}

static sp_status read_word(const reader *r, const char *const *keys, char *out, size_t n) {
    const char *key;
    const sp_json_node *v = find_any(r, keys, &key);
    return take_word(r, key, v, out, n);
}

#define KEYS(...) ((const char *const[SPELLINGS_MAX]){__VA_ARGS__})

/* ---- config.json ---- */

static sp_status read_names(const reader *r, sp_model_desc *d) {
    const sp_json_node *list = sp_json_find(r->top, "architectures");
    if (sp_json_is_null(list)) list = sp_json_find(r->text, "architectures");
    if (!sp_json_is_null(list) && sp_json_type_of(list) != SP_JSON_ARRAY)
        return refuse(r, "architectures", list, "an array of names");
    SP_TRY(take_word(r, "architectures[0]", sp_json_first(list), d->architecture,
                     sizeof d->architecture));
    SP_TRY(take_word(r, "model_type", sp_json_find(r->top, "model_type"), d->model_type,
                     sizeof d->model_type));
    return read_word(r, KEYS("hidden_activation", "hidden_act", "activation_function"), d->act,
                     sizeof d->act);
}

static sp_status read_sizes(const reader *r, sp_model_desc *d) {
    SP_TRY(read_int(r, KEYS("hidden_size"), 1, 1 << 20, &d->hidden));
    SP_TRY(read_int(r, KEYS("num_hidden_layers"), 1, 4096, &d->n_layers));
    SP_TRY(read_int(r, KEYS("intermediate_size"), 1, 1 << 24, &d->intermediate));
    SP_TRY(read_int(r, KEYS("vocab_size"), 1, 1 << 24, &d->vocab));
    SP_TRY(read_int(r, KEYS("num_attention_heads"), 1, 4096, &d->n_heads));
    d->n_kv_heads = d->n_heads;
    SP_TRY(read_int(r, KEYS("num_key_value_heads"), 1, 4096, &d->n_kv_heads));
    SP_TRY(read_int(r, KEYS("head_dim"), 1, 1 << 14, &d->head_dim));
    SP_TRY(read_int(r, KEYS("max_position_embeddings", "n_positions", "max_sequence_length"), 1,
                    1 << 27, &d->max_positions));
    if (d->n_heads && d->n_kv_heads && d->n_heads % d->n_kv_heads)
        return SP_FAIL(r->err, SP_E_INVALID,
                       "%s: num_key_value_heads is %d, want a divisor of num_attention_heads %d",
                       r->file, d->n_kv_heads, d->n_heads);
    if (d->head_dim || !d->n_heads || !d->hidden) return SP_OK;
    if (d->hidden % d->n_heads)
        return SP_FAIL(r->err, SP_E_INVALID,
                       "%s: hidden_size is %d, want a multiple of num_attention_heads %d (or a "
                       "head_dim)",
                       r->file, d->hidden, d->n_heads);
    d->head_dim = d->hidden / d->n_heads;
    return SP_OK;
}

static sp_status read_switches(const reader *r, sp_model_desc *d) {
    SP_TRY(read_number(
        r, KEYS("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        (range){0, 1, true, true, "a number above 0 and below 1"}, &d->norm_eps));
    SP_TRY(read_bool(r, "attention_bias", &d->attention_bias));
    SP_TRY(read_bool(r, "mlp_bias", &d->mlp_bias));
    d->has_tie_key = !sp_json_is_null(find(r, "tie_word_embeddings"));
    return read_bool(r, "tie_word_embeddings", &d->tie_embeddings);
}

static sp_status read_dtype(const reader *r, sp_model_desc *d) {
    static const struct {
        const char *word;
        sp_dtype dtype;
    } words[] = {
        {"float32", SP_DTYPE_F32},
        {"float16", SP_DTYPE_F16},
        {"bfloat16", SP_DTYPE_BF16},
        {"half", SP_DTYPE_F16},
        {"float", SP_DTYPE_F32},
        {"float64", SP_DTYPE_F64},
        {"auto", SP_DTYPE_F32},
        {"float8_e4m3fn", SP_DTYPE_F8_E4M3},
        {"float8_e5m2", SP_DTYPE_F8_E5M2},
    };
    const char *key;
    const sp_json_node *v = find_any(r, KEYS("dtype", "torch_dtype"), &key);
    if (!v) return SP_OK;
    char word[32] = "";
    SP_TRY(take_word(r, key, v, word, sizeof word));
    const char *bare = strncmp(word, "torch.", 6) == 0 ? word + 6 : word;
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(bare, words[i].word) == 0) {
            d->dtype = words[i].dtype;
            return SP_OK;
        }
    return refuse(r, key, v, "float32, float16 or bfloat16");
}

/* ---- rotary embedding ---- */

static sp_rope_type rope_type_of(const char *word) {
    static const struct {
        const char *word;
        sp_rope_type type;
    } words[] = {
        {"default", SP_ROPE_DEFAULT}, {"linear", SP_ROPE_LINEAR}, {"llama3", SP_ROPE_LLAMA3},
        {"dynamic", SP_ROPE_DYNAMIC}, {"yarn", SP_ROPE_YARN},     {"longrope", SP_ROPE_LONGROPE},
        {"su", SP_ROPE_LONGROPE},
    };
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(word, words[i].word) == 0) return words[i].type;
    return SP_ROPE_OTHER;
}

static sp_status require(const reader *r, const char *type, const char *key) {
    if (!sp_json_is_null(sp_json_find(r->text, key))) return SP_OK;
    return SP_FAIL(r->err, SP_E_INVALID, "%s: %s%s is missing, rope type '%s' wants it", r->file,
                   r->within, key, type);
}

static sp_status check_rope(const reader *r, const sp_rope_desc *rope) {
    static const char *const llama3[] = {"factor", "low_freq_factor", "high_freq_factor",
                                         "original_max_position_embeddings"};
    if (rope->type == SP_ROPE_LINEAR) return require(r, "linear", "factor");
    if (rope->type != SP_ROPE_LLAMA3) return SP_OK;
    for (size_t i = 0; i < SP_LEN(llama3); i++) SP_TRY(require(r, "llama3", llama3[i]));
    /* Equal bounds are fine: every wavelength is then on one side or the other. */
    if (rope->high_freq_factor < rope->low_freq_factor)
        return SP_FAIL(r->err, SP_E_INVALID,
                       "%s: %shigh_freq_factor is %g, want at least low_freq_factor %g", r->file,
                       r->within, rope->high_freq_factor, rope->low_freq_factor);
    return SP_OK;
}

static sp_status read_rope_object(const reader *r, sp_rope_desc *rope) {
    SP_TRY(read_number(r, KEYS("rope_theta"), POSITIVE, &rope->theta));
    SP_TRY(read_number(r, KEYS("partial_rotary_factor"), FRACTION, &rope->partial_rotary_factor));
    SP_TRY(read_number(r, KEYS("factor"), POSITIVE, &rope->factor));
    SP_TRY(read_number(r, KEYS("low_freq_factor"), POSITIVE, &rope->low_freq_factor));
    SP_TRY(read_number(r, KEYS("high_freq_factor"), POSITIVE, &rope->high_freq_factor));
    SP_TRY(read_int(r, KEYS("original_max_position_embeddings"), 1, 1 << 27,
                    &rope->original_max_positions));
    SP_TRY(read_word(r, KEYS("rope_type", "type"), rope->type_name, sizeof rope->type_name));
    const char *key;
    if (rope->factor > 0 && !find_any(r, KEYS("rope_type", "type"), &key))
        return SP_FAIL(r->err, SP_E_INVALID, "%s: %srope_type is missing, a factor wants it",
                       r->file, r->within);
    rope->type = rope_type_of(rope->type_name);
    return check_rope(r, rope);
}

/* {"full_attention": {...}, "sliding_attention": {...}}: the full one's parameters, or NULL. */
static const sp_json_node *by_layer_type(const sp_json_node *o) {
    for (const sp_json_node *m = sp_json_first(o); m; m = sp_json_next(m))
        if (sp_json_type_of(m) != SP_JSON_OBJECT) return NULL;
    const sp_json_node *full = sp_json_find(o, "full_attention");
    return full ? full : sp_json_first(o);
}

static sp_status read_rope(const reader *r, sp_model_desc *d) {
    sp_rope_desc *rope = &d->rope;
    *rope = (sp_rope_desc){.theta = 10000, .partial_rotary_factor = 1, .type_name = "default"};
    SP_TRY(read_number(r, KEYS("rope_theta", "rotary_emb_base"), POSITIVE, &rope->theta));
    SP_TRY(read_number(r, KEYS("partial_rotary_factor", "rotary_pct"), FRACTION,
                       &rope->partial_rotary_factor));
    const char *key;
    const sp_json_node *o = find_any(r, KEYS("rope_parameters", "rope_scaling"), &key);
    if (!o) return SP_OK;
    if (sp_json_type_of(o) != SP_JSON_OBJECT) return refuse(r, key, o, "an object or null");
    char within[32];
    snprintf(within, sizeof within, "%s.", key);
    const sp_json_node *full = by_layer_type(o);
    rope->by_layer_type = full != NULL;
    if (full) o = full;
    return read_rope_object(&(reader){r->file, o, o, within, r->err}, rope);
}

/* ---- attention windows ---- */

/* Keeps the window only where some layer uses it: layer_types wins, else Qwen's switches, else the
 * bare key (Mistral, Phi). */
static sp_status read_window(const reader *r, sp_model_desc *d) {
    bool used = strncmp(d->model_type, "qwen", 4) != 0; /* Qwen's switch is off when absent */
    int32_t from_layer = 0;
    SP_TRY(read_int(r, KEYS("sliding_window"), 0, INT32_MAX, &d->sliding_window));
    SP_TRY(read_bool(r, "use_sliding_window", &used));
    SP_TRY(read_int(r, KEYS("max_window_layers"), 0, INT32_MAX, &from_layer));
    const sp_json_node *types = find(r, "layer_types");
    bool use_key = !sp_json_is_null(find(r, "use_sliding_window"));
    if (sp_json_is_null(types)) {
        if (!used || (use_key && from_layer >= d->n_layers)) d->sliding_window = 0;
        return SP_OK;
    }
    if (sp_json_type_of(types) != SP_JSON_ARRAY)
        return refuse(r, "layer_types", types, "an array of names");
    bool sliding = false;
    for (const sp_json_node *v = sp_json_first(types); v; v = sp_json_next(v)) {
        char word[32] = "";
        SP_TRY(take_word(r, "layer_types", v, word, sizeof word));
        sliding |= strcmp(word, "sliding_attention") == 0;
        if (!d->layer_type[0] && strcmp(word, "full_attention") != 0)
            memcpy(d->layer_type, word, sizeof word);
    }
    if (!sliding) d->sliding_window = 0;
    return SP_OK;
}

/* ---- token ids ---- */

static sp_status add_eos(const reader *r, sp_model_desc *d, const sp_json_node *v) {
    char want[80];
    int64_t end = d->vocab ? d->vocab : INT32_MAX, id = sp_json_int(v);
    snprintf(want, sizeof want, "token ids from 0 to %lld", (long long)end - 1);
    if (sp_json_type_of(v) != SP_JSON_INT || id < 0 || id >= end)
        return refuse(r, "eos_token_id", v, want);
    for (int i = 0; i < d->n_eos; i++)
        if (d->eos[i] == id) return SP_OK;
    if (d->n_eos == SP_EOS_MAX)
        return SP_FAIL(r->err, SP_E_INVALID, "%s: more than %d eos_token_id, want fewer", r->file,
                       SP_EOS_MAX);
    d->eos[d->n_eos++] = (int32_t)id;
    return SP_OK;
}

static sp_status read_ids(const reader *r, sp_model_desc *d) {
    const sp_json_node *eos = find(r, "eos_token_id");
    if (sp_json_type_of(eos) == SP_JSON_ARRAY) {
        for (const sp_json_node *v = sp_json_first(eos); v; v = sp_json_next(v))
            SP_TRY(add_eos(r, d, v));
    } else if (!sp_json_is_null(eos)) {
        SP_TRY(add_eos(r, d, eos));
    }
    int32_t end = d->vocab ? d->vocab : INT32_MAX, bos = d->bos_id, pad = d->pad_id;
    SP_TRY(read_int(r, KEYS("bos_token_id"), -1, end - 1, &bos));
    /* Published files give pad ids of -1 and just past the vocabulary; none is ever computed. */
    SP_TRY(read_int(r, KEYS("pad_token_id"), -1, INT32_MAX, &pad));
    if (d->bos_id < 0) d->bos_id = bos;
    if (d->pad_id < 0 && pad < end) d->pad_id = pad;
    return SP_OK;
}

/* ---- quantisation ---- */

static sp_status read_quantization(const reader *r, sp_model_desc *d) {
    const char *key;
    const sp_json_node *q = find_any(r, KEYS("quantization_config", "compression_config"), &key);
    if (!q) return SP_OK;
    if (sp_json_type_of(q) != SP_JSON_OBJECT) return refuse(r, key, q, "an object or null");
    const sp_json_node *method = sp_json_find(q, "quant_method");
    bool old = strcmp(key, "compression_config") == 0;
    snprintf(d->quant_method, sizeof d->quant_method, "%s", old ? "compressed-tensors" : "unknown");
    return take_word(r, "quant_method", method, d->quant_method, sizeof d->quant_method);
}

/* ---- files ---- */

/* Parses DIR/name. */
static sp_status parse(sp_json **out, const char *dir, const char *name, sp_err *err) {
    sp_buf path;
    sp_buf_init(&path, 0);
    sp_buf_printf(&path, "%s/%s", dir, name);
    char *text = NULL;
    size_t len = 0;
    sp_status st = path.failed ? SP_FAIL(err, SP_E_NOMEM, "no memory for a path")
                               : sp_file_read(path.ptr, CONFIG_BYTES_MAX, &text, &len, err);
    sp_buf_fini(&path);
    if (st != SP_OK) return st;
    sp_json *doc = NULL;
    st = sp_json_parse(&doc, (sp_slice){text, len}, CONFIG_DEPTH_MAX, err);
    sp_free(text);
    if (st == SP_OK && sp_json_type_of(sp_json_root(doc)) != SP_JSON_OBJECT) {
        st = SP_FAIL(err, SP_E_FORMAT, "is %s, want an object",
                     sp_json_type_name(sp_json_type_of(sp_json_root(doc))));
        sp_json_free(doc);
    }
    if (st != SP_OK) {
        sp_err_context(err, "%s", name);
        return st == SP_E_NOMEM ? st : SP_E_FORMAT;
    }
    *out = doc;
    return SP_OK;
}

static sp_status read_config(const reader *r, sp_model_desc *d) {
    SP_TRY(read_names(r, d));
    SP_TRY(read_sizes(r, d));
    SP_TRY(read_switches(r, d));
    SP_TRY(read_dtype(r, d));
    SP_TRY(read_rope(r, d));
    SP_TRY(read_window(r, d));
    SP_TRY(read_ids(r, d));
    return read_quantization(r, d);
}

static sp_status load_config(sp_model_desc *d, const char *dir, sp_err *err) {
    sp_json *doc = NULL;
    SP_TRY(parse(&doc, dir, "config.json", err));
    const sp_json_node *top = sp_json_root(doc), *text = sp_json_find(top, "text_config");
    bool nested = sp_json_is_null(sp_json_find(top, "hidden_size")) &&
                  sp_json_type_of(text) == SP_JSON_OBJECT;
    sp_status st = read_config(&(reader){"config.json", top, nested ? text : top, "", err}, d);
    sp_json_free(doc);
    return st;
}

/* A file that need not be there: *out stays NULL then. */
static sp_status parse_optional(sp_json **out, const char *dir, const char *name, sp_err *err) {
    sp_err why = {0};
    sp_status st = parse(out, dir, name, &why);
    if (st == SP_OK || st == SP_E_NOTFOUND) return SP_OK;
    if (err) *err = why;
    return st;
}

static sp_status load_generation(sp_model_desc *d, const char *dir, sp_err *err) {
    sp_json *doc = NULL;
    SP_TRY(parse_optional(&doc, dir, "generation_config.json", err));
    if (!doc) return SP_OK;
    const sp_json_node *top = sp_json_root(doc);
    reader r = {"generation_config.json", top, top, "", err};
    range from_0 = {0, INFINITY, false, true, "a number of at least 0"};
    range to_1 = {0, 1, false, false, "a number from 0 to 1"};
    sp_status st = read_ids(&r, d);
    if (st == SP_OK) st = read_number(&r, KEYS("temperature"), from_0, &d->gen_temperature);
    if (st == SP_OK) st = read_number(&r, KEYS("top_p"), FRACTION, &d->gen_top_p);
    if (st == SP_OK) st = read_number(&r, KEYS("min_p"), to_1, &d->gen_min_p);
    if (st == SP_OK)
        st = read_number(&r, KEYS("repetition_penalty"), POSITIVE, &d->gen_repetition_penalty);
    if (st == SP_OK) st = read_int(&r, KEYS("top_k"), -1, INT32_MAX, &d->gen_top_k);
    if (st == SP_OK)
        st = read_int(&r, KEYS("max_new_tokens"), 1, INT32_MAX, &d->gen_max_new_tokens);
    sp_json_free(doc);
    return st;
}

/* ModelOpt's own file says that the weights are quantised where config.json does not. */
static sp_status load_modelopt(sp_model_desc *d, const char *dir, sp_err *err) {
    sp_json *doc = NULL;
    SP_TRY(parse_optional(&doc, dir, "hf_quant_config.json", err));
    if (doc && !d->quant_method[0]) snprintf(d->quant_method, sizeof d->quant_method, "modelopt");
    sp_json_free(doc);
    return SP_OK;
}

sp_status sp_model_desc_load(sp_model_desc *out, const char *dir, sp_err *err) {
    sp_model_desc d = {
        .dtype = SP_DTYPE_F32,
        .bos_id = -1,
        .pad_id = -1,
        .gen_temperature = NAN,
        .gen_top_p = NAN,
        .gen_min_p = NAN,
        .gen_repetition_penalty = NAN,
        .gen_top_k = -1,
        .gen_max_new_tokens = -1,
    };
    SP_TRY(load_config(&d, dir, err));
    SP_TRY(load_generation(&d, dir, err));
    SP_TRY(load_modelopt(&d, dir, err));
    *out = d;
    return SP_OK;
}
