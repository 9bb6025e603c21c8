#include "launcher/inspect_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/model/arch.h"
#include "runtime/model/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#define REFUSALS_MAX 8

/* ---- arguments and endings ---- */

typedef struct request {
    const char *word; /* "tensors", … */
    const char *model, *file;
    bool json, help;
} request;

static int wrong_usage(const request *r, const char *words, const char *subject) {
    fprintf(stderr, "superpod: inspect %s: %s%s%s; see superpod inspect %s --help\n", r->word,
            words, subject ? " " : "", subject ? subject : "", r->word);
    return SP_EXIT_USAGE;
}

/* Names inside a file may hold anything; the terminal gets one plain line. */
static int refuse(const request *r, sp_err *err) {
    for (char *p = err->text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    fprintf(stderr, "superpod: inspect %s: %s\n", r->word, err->text);
    return SP_EXIT_CONFIG;
}

static int finish(const request *r) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return SP_EXIT_OK;
    sp_err err = {.text = "cannot write the result to standard output"};
    return refuse(r, &err);
}

/* "--model DIR" or "--model=DIR"; *i moves over what was used. */
static bool take_model(request *r, int argc, char **argv, int *i) {
    const char *arg = argv[*i];
    if (strncmp(arg, "--model=", 8) == 0) {
        r->model = arg + 8;
        return true;
    }
    if (strcmp(arg, "--model") != 0 || *i + 1 >= argc) return false;
    r->model = argv[++*i];
    return true;
}

static int parse_args(request *r, bool wants_file, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0)
            r->help = true;
        else if (!wants_file && take_model(r, argc, argv, &i))
            continue;
        else if (!wants_file && strcmp(arg, "--json") == 0)
            r->json = true;
        else if (wants_file && !r->file && arg[0] != '-' && arg[0])
            r->file = arg;
        else
            return wrong_usage(r, "unknown argument, or an option without its value:", arg);
    }
    if (r->help) return SP_EXIT_OK;
    if (wants_file && !r->file) return wrong_usage(r, "FILE is missing", NULL);
    if (!wants_file && !r->model) return wrong_usage(r, "--model is missing", NULL);
    return SP_EXIT_OK;
}

/* ---- writing ---- */

static void key_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void key_number(sp_jw *w, const char *key, double v) {
    sp_jw_key(w, key);
    sp_jw_number(w, v); /* NaN: null */
}
static void key_bool(sp_jw *w, const char *key, bool v) {
    sp_jw_key(w, key);
    sp_jw_bool(w, v);
}
static void key_word(sp_jw *w, const char *key, const char *v) { /* "" : null */
    sp_jw_key(w, key);
    if (v[0])
        sp_jw_str(w, v);
    else
        sp_jw_null(w);
}
static void key_some(sp_jw *w, const char *key, int64_t v, int64_t none) { /* `none`: null */
    sp_jw_key(w, key);
    if (v == none)
        sp_jw_null(w);
    else
        sp_jw_int(w, v);
}

static void put_refusals(sp_jw *w, const sp_model_desc *d) {
    sp_err reasons[REFUSALS_MAX];
    int n = sp_arch_refusals(d, reasons, REFUSALS_MAX);
    key_bool(w, "supported", n == 0);
    sp_jw_key(w, "refused");
    sp_jw_array(w);
    for (int i = 0; i < n; i++) sp_jw_str(w, reasons[i].text);
    sp_jw_array_end(w);
}

static void put_rope(sp_jw *w, const sp_model_desc *d) {
    const sp_rope_desc *r = &d->rope;
    sp_jw_key(w, "rope");
    sp_jw_object(w);
    key_word(w, "type", r->type_name);
    key_number(w, "theta", r->theta);
    key_int(w, "dims", sp_arch_rope_dims(d));
    if (r->factor > 0) key_number(w, "factor", r->factor);
    if (r->low_freq_factor > 0) key_number(w, "low_freq_factor", r->low_freq_factor);
    if (r->high_freq_factor > 0) key_number(w, "high_freq_factor", r->high_freq_factor);
    if (r->original_max_positions > 0)
        key_int(w, "original_max_position_embeddings", r->original_max_positions);
    sp_jw_object_end(w);
}

static void put_ids(sp_jw *w, const sp_model_desc *d) {
    key_some(w, "bos_token_id", d->bos_id, -1);
    sp_jw_key(w, "eos_token_id");
    sp_jw_array(w);
    for (int i = 0; i < d->n_eos; i++) sp_jw_int(w, d->eos[i]);
    sp_jw_array_end(w);
    key_some(w, "pad_token_id", d->pad_id, -1);
}

/* The keys both words share, named as config.json names them. Absent sizes are null. */
static void put_desc(sp_jw *w, const sp_model_desc *d) {
    key_word(w, "architecture", d->architecture);
    key_word(w, "model_type", d->model_type);
    put_refusals(w, d);
    key_some(w, "hidden_size", d->hidden, 0);
    key_some(w, "num_hidden_layers", d->n_layers, 0);
    key_some(w, "intermediate_size", d->intermediate, 0);
    key_some(w, "vocab_size", d->vocab, 0);
    key_some(w, "num_attention_heads", d->n_heads, 0);
    key_some(w, "num_key_value_heads", d->n_kv_heads, 0);
    key_some(w, "head_dim", d->head_dim, 0);
    key_some(w, "max_position_embeddings", d->max_positions, 0);
    key_word(w, "hidden_act", d->act);
    sp_jw_key(w, "norm_eps");
    sp_jw_number(w, d->norm_eps > 0 ? d->norm_eps : NAN);
    put_rope(w, d);
    key_some(w, "sliding_window", d->sliding_window, 0);
    key_bool(w, "attention_bias", d->attention_bias);
    key_bool(w, "mlp_bias", d->mlp_bias);
    key_word(w, "quant_method", d->quant_method);
    key_word(w, "dtype", sp_dtype_name(d->dtype));
    put_ids(w, d);
}

static void put_generation(sp_jw *w, const sp_model_desc *d) {
    sp_jw_key(w, "generation");
    sp_jw_object(w);
    key_number(w, "temperature", d->gen_temperature);
    key_number(w, "top_p", d->gen_top_p);
    key_number(w, "min_p", d->gen_min_p);
    key_some(w, "top_k", d->gen_top_k, -1);
    key_number(w, "repetition_penalty", d->gen_repetition_penalty);
    key_some(w, "max_new_tokens", d->gen_max_new_tokens, -1);
    sp_jw_object_end(w);
}

/* ---- what is known about a model ---- */

typedef struct facts {
    char *dir; /* owned */
    sp_model_desc desc;
    const sp_arch *arch;      /* NULL: not supported */
    sp_err no_weights;        /* why there are none; text "" when there are */
    int32_t n_tensors;        /* 0 without weights */
    uint64_t n_params, bytes; /* of the files, else by config.json; 0: not known */
    bool tied;
} facts;

static uint64_t elements_of(const sp_tensor *t) {
    uint64_t n = 1; /* the open proved that the product fits */
    for (int i = 0; i < t->n_dims; i++) n *= (uint64_t)t->shape[i];
    return n;
}

static sp_status count_files(facts *f, sp_err *err) {
    sp_model_dir *dir = NULL;
    sp_status st = sp_model_dir_open(&dir, f->dir, &f->no_weights);
    if (st == SP_E_FORMAT || st == SP_E_NOMEM || st == SP_E_IO) { /* there, but broken */
        if (err) *err = f->no_weights;
        return st;
    }
    if (st != SP_OK) return SP_OK; /* a folder of configurations can be looked at, too */
    f->n_tensors = sp_model_dir_count(dir);
    f->bytes = sp_model_dir_bytes(dir);
    for (int i = 0; i < f->n_tensors; i++) f->n_params += elements_of(sp_model_dir_at(dir, i));
    sp_model_dir_close(dir);
    return SP_OK;
}

static sp_status count_by_config(facts *f, sp_err *err) {
    const uint64_t any = UINT64_MAX;
    sp_plan_request r = {.desc = &f->desc,
                         .arch = f->arch,
                         .block_tokens = 16,
                         .max_num_seqs = 1,
                         .max_num_batched_tokens = 1,
                         .memory = {any, any, any}};
    sp_plan p;
    SP_TRY(sp_plan_make(&p, &r, err));
    f->n_params = p.n_params;
    f->bytes = p.weight_bytes;
    return SP_OK;
}

static sp_status gather(facts *f, const char *model, bool weights, sp_err *err) {
    SP_TRY(sp_model_resolve(&f->dir, model, err));
    SP_TRY(sp_model_desc_load(&f->desc, f->dir, err));
    if (sp_arch_find(&f->arch, &f->desc, NULL) != SP_OK) f->arch = NULL;
    f->tied = f->arch ? sp_arch_is_tied(f->arch, &f->desc) : f->desc.tie_embeddings;
    if (!weights) return SP_OK;
    SP_TRY(count_files(f, err));
    if (f->no_weights.text[0] && f->arch) return count_by_config(f, err);
    return SP_OK;
}

static uint64_t kv_token_bytes(const sp_model_desc *d, sp_dtype t) {
    return sp_kv_layout_of(d->n_layers, d->n_kv_heads, d->head_dim, 16, t).token_bytes;
}

static void put_counts(sp_jw *w, const facts *f) {
    static const struct {
        const char *key;
        sp_dtype dtype;
    } types[] = {{"f32", SP_DTYPE_F32}, {"f16", SP_DTYPE_F16}, {"bf16", SP_DTYPE_BF16}};
    key_bool(w, "tie_word_embeddings", f->tied);
    key_some(w, "tensors", f->n_tensors, 0);
    key_some(w, "parameters", (int64_t)f->n_params, 0);
    key_some(w, "weight_bytes", (int64_t)f->bytes, 0);
    key_word(w, "no_weights", f->no_weights.text);
    sp_jw_key(w, "kv_bytes_per_token");
    if (!f->arch) {
        sp_jw_null(w);
        return;
    }
    sp_jw_object(w);
    for (size_t i = 0; i < SP_LEN(types); i++)
        key_int(w, types[i].key, (int64_t)kv_token_bytes(&f->desc, types[i].dtype));
    sp_jw_object_end(w);
}

static void print_json(const facts *f, bool all) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "directory");
    sp_jw_str(&w, f->dir);
    put_desc(&w, &f->desc);
    if (all) put_counts(&w, f);
    if (!all) key_bool(&w, "tie_word_embeddings", f->tied);
    put_generation(&w, &f->desc);
    sp_jw_object_end(&w);
    puts(b.ptr);
    sp_buf_fini(&b);
}

/* ---- the table ---- */

static void row(const char *name, const char *fmt, ...) SP_PRINTF(2, 3);
static void row(const char *name, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    printf("%-15s ", name);
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
}

static const char *size_text(char out[24], int32_t v) {
    if (v)
        snprintf(out, 24, "%d", v);
    else
        snprintf(out, 24, "?");
    return out;
}

static void print_counts(const facts *f) {
    const sp_model_desc *d = &f->desc;
    char a[24], b[24];
    bool large = f->n_params >= (uint64_t)1000 * 1000 * 1000;
    if (f->n_params)
        row("parameters", "%.2f %s (%llu)", (double)f->n_params / (large ? 1e9 : 1e6),
            large ? "billion" : "million", (unsigned long long)f->n_params);
    if (f->bytes)
        row("weights", "%s in %s", sp_format_bytes(a, sizeof a, f->bytes),
            f->n_tensors ? "the files" : "all, by config.json");
    if (f->n_tensors) row("tensors", "%d", f->n_tensors);
    if (f->no_weights.text[0]) row("no weights", "%s", f->no_weights.text);
    if (!f->arch) return;
    uint64_t f32 = kv_token_bytes(d, SP_DTYPE_F32), half = kv_token_bytes(d, SP_DTYPE_BF16);
    row("KV a token", "%s as f32, %s as f16 or bf16", sp_format_bytes(a, sizeof a, f32),
        sp_format_bytes(b, sizeof b, half));
    row("KV a sequence", "%s as f32 at %d tokens",
        sp_format_bytes(a, sizeof a, f32 * (uint64_t)d->max_positions), d->max_positions);
}

static void print_table(const facts *f) {
    const sp_model_desc *d = &f->desc;
    char a[24], b[24], c[24];
    sp_err reasons[REFUSALS_MAX];
    int n = sp_arch_refusals(d, reasons, REFUSALS_MAX);
    row("directory", "%s", f->dir);
    row("architecture", "%s%s", d->architecture[0] ? d->architecture : "?",
        n ? "" : ", can be served");
    for (int i = 0; i < n; i++) row(i ? "" : "refused", "%s", reasons[i].text);
    row("layers", "%s", size_text(a, d->n_layers));
    row("hidden", "%s, feed-forward %s, vocabulary %s", size_text(a, d->hidden),
        size_text(b, d->intermediate), size_text(c, d->vocab));
    row("heads", "%s over %s KV heads of %s", size_text(a, d->n_heads), size_text(b, d->n_kv_heads),
        size_text(c, d->head_dim));
    row("embeddings", "%s", f->tied ? "tied" : "not tied");
    row("positions", "%s", size_text(a, d->max_positions));
    row("rope", "%s, theta %g, %d dimensions", d->rope.type_name, d->rope.theta,
        sp_arch_rope_dims(d));
    if (d->sliding_window) row("window", "%d", d->sliding_window);
    row("quantization", "%s", d->quant_method[0] ? d->quant_method : "none");
    sp_buf eos;
    sp_buf_init(&eos, 0);
    for (int i = 0; i < d->n_eos; i++) sp_buf_printf(&eos, "%s%d", i ? ", " : "", d->eos[i]);
    row("eos", "%s", d->n_eos ? eos.ptr : "none");
    sp_buf_fini(&eos);
    print_counts(f);
}

/* ---- the three words ---- */

static void print_tensor(const sp_tensor *t, sp_buf *line) {
    sp_buf_clear(line);
    sp_jw w = sp_jw_on(line);
    sp_jw_object(&w);
    sp_jw_key(&w, "name");
    sp_jw_str(&w, t->name);
    sp_jw_key(&w, "dtype");
    sp_jw_str(&w, sp_dtype_name(t->dtype));
    sp_jw_key(&w, "shape");
    sp_jw_array(&w);
    for (int i = 0; i < t->n_dims; i++) sp_jw_int(&w, t->shape[i]);
    sp_jw_array_end(&w);
    sp_jw_object_end(&w);
    puts(line->ptr);
}

int sp_inspect_tensors(int argc, char **argv) {
    request r = {.word = "tensors"};
    int code = parse_args(&r, true, argc, argv);
    if (code != SP_EXIT_OK) return code;
    if (r.help) {
        puts("usage: superpod inspect tensors FILE\n\n"
             "  FILE   a safetensors file; one JSON object a tensor: name, dtype, shape");
        return finish(&r);
    }
    sp_safetensors *s = NULL;
    sp_err err = {0};
    if (sp_safetensors_open(&s, r.file, &err) != SP_OK) return refuse(&r, &err);
    sp_buf line;
    sp_buf_init(&line, 0);
    for (int i = 0; i < sp_safetensors_count(s); i++) print_tensor(sp_safetensors_at(s, i), &line);
    sp_buf_fini(&line);
    sp_safetensors_close(s);
    return finish(&r);
}

static int describe(request *r, bool all) {
    facts f = {0};
    sp_err err = {0};
    int code;
    if (gather(&f, r->model, all, &err) != SP_OK) {
        code = refuse(r, &err);
    } else {
        if (all && !r->json)
            print_table(&f);
        else
            print_json(&f, all);
        code = finish(r);
    }
    sp_free(f.dir);
    return code;
}

int sp_inspect_model(int argc, char **argv) {
    request r = {.word = "model"};
    int code = parse_args(&r, false, argc, argv);
    if (code != SP_EXIT_OK) return code;
    if (!r.help) return describe(&r, true);
    puts("usage: superpod inspect model --model DIR [--json]\n\n"
         "  --model DIR   a model directory or org/name; no weight is read, headers alone\n"
         "  --json        one JSON object instead of a table");
    return finish(&r);
}

int sp_inspect_config(int argc, char **argv) {
    request r = {.word = "config"};
    int code = parse_args(&r, false, argc, argv);
    if (code != SP_EXIT_OK) return code;
    if (!r.help) return describe(&r, false);
    puts("usage: superpod inspect config --model DIR\n\n"
         "  --model DIR   a model directory or org/name\n\n"
         "Writes config.json and generation_config.json as they were understood, as JSON; "
         "\"refused\"\n"
         "lists what keeps the model from being served, and why.");
    return finish(&r);
}
