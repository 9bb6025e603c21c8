#include "tests/tiny_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TENSORS_MAX 1024
#define NAME_BYTES 96

SP_NORETURN static void give_up(const char *what, const char *path) {
    fprintf(stderr, "tiny model: cannot %s '%s'\n", what, path);
    abort();
}

sp_tiny sp_tiny_default(void) {
    return (sp_tiny){
        .seed = 1,
        .hidden = 112,
        .n_layers = 3,
        .intermediate = 344,
        .vocab = 317,
        .n_heads = 14,
        .n_kv_heads = 2,
        .max_positions = 512,
        .dtype = SP_DTYPE_BF16,
        .n_shards = 1,
        .rope_theta = 10000,
    };
}

/* ---- folders and files ---- */

char *sp_tiny_folder(void) {
    const char *tmp = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/sp-tiny-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(path)) give_up("make", path);
    return sp_strdup(path);
}

static int remove_one(const char *path, const struct stat *sb, int kind, struct FTW *at) {
    (void)sb, (void)kind, (void)at;
    return remove(path);
}

void sp_tiny_remove(char *dir) {
    if (!dir) return;
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    sp_free(dir);
}

void sp_tiny_put(const char *dir, const char *name, const void *bytes, size_t n) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) give_up("create", path);
    if (fwrite(bytes, 1, n, f) != n || fclose(f) != 0) give_up("write", path);
}

static void put_buf(const char *dir, const char *name, sp_buf *b) {
    if (b->failed) give_up("hold", name);
    sp_tiny_put(dir, name, b->ptr, b->len);
    sp_buf_fini(b);
}

/* ---- random numbers ---- */

/* splitmix64: any seed is a good one. */
static uint64_t next_u64(uint64_t *s) {
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Sum of 12 uniform numbers: a bell curve of deviation 1 without libm, the same on every machine. */
static float next_normal(uint64_t *s) {
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t u = next_u64(s);
        sum += (double)(u & 0x1fffff) + (double)(u >> 21 & 0x1fffff) + (double)(u >> 42 & 0x1fffff);
    }
    return (float)(sum / 2097152.0 - 6.0);
}

/* ---- tensors ---- */

typedef struct tensor {
    char name[NAME_BYTES];
    int n_dims;
    int64_t shape[2];
    float mean, deviation;
    int shard;
} tensor;

typedef struct plan {
    const sp_tiny *t;
    tensor *list;
    int n;
} plan;

static int32_t head_dim_of(const sp_tiny *t) {
    return t->head_dim ? t->head_dim : t->hidden / t->n_heads;
}

static void add(plan *p, int layer, const char *name, int64_t rows, int64_t cols, float mean,
                float deviation) {
    if (p->n == TENSORS_MAX) give_up("hold so many tensors as of", name);
    tensor *t = &p->list[p->n++];
    *t = (tensor){.n_dims = cols ? 2 : 1, .shape = {rows, cols}, .mean = mean};
    t->deviation = deviation;
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, name);
}

/* y = W x keeps the size of x when W's deviation is 1 / sqrt(columns); `gain` scales that. */
static void add_linear(plan *p, int layer, const char *name, int64_t rows, int64_t cols, float gain,
                       bool bias) {
    char full[NAME_BYTES];
    snprintf(full, sizeof full, "%s.weight", name);
    add(p, layer, full, rows, cols, 0, gain / sqrtf((float)cols));
    if (!bias) return;
    snprintf(full, sizeof full, "%s.bias", name);
    add(p, layer, full, rows, 0, 0, 0.25f);
}

/* The residual must be mostly what the layers add: with tied embeddings the token itself would
 * otherwise win every time. The last norm spreads the logits: deviation about 10. */
#define EMBED_DEVIATION 0.25f
#define LOGIT_DEVIATION 10.0f
static void list_tensors(plan *p) {
    const sp_tiny *t = p->t;
    int64_t E = t->hidden, D = head_dim_of(t), H = t->n_heads, K = t->n_kv_heads;
    int64_t F = t->intermediate, V = t->vocab;
    add(p, -1, "model.embed_tokens.weight", V, E, 0, EMBED_DEVIATION);
    for (int i = 0; i < t->n_layers; i++) {
        add(p, i, "input_layernorm.weight", E, 0, 1, 0.1f);
        add_linear(p, i, "self_attn.q_proj", H * D, E, 1.5f, t->attention_bias);
        add_linear(p, i, "self_attn.k_proj", K * D, E, 1.5f, t->attention_bias);
        add_linear(p, i, "self_attn.v_proj", K * D, E, 1, t->attention_bias);
        add_linear(p, i, "self_attn.o_proj", E, H * D, 1.5f, t->attention_bias);
        add(p, i, "post_attention_layernorm.weight", E, 0, 1, 0.1f);
        add_linear(p, i, "mlp.gate_proj", F, E, 1, t->mlp_bias);
        add_linear(p, i, "mlp.up_proj", F, E, 1, t->mlp_bias);
        add_linear(p, i, "mlp.down_proj", E, F, 2, t->mlp_bias);
    }
    float spread = LOGIT_DEVIATION / (EMBED_DEVIATION * sqrtf((float)E));
    add(p, -1, "model.norm.weight", E, 0, spread, spread / 10);
    if (!t->tied) add(p, -1, "lm_head.weight", V, E, 0, EMBED_DEVIATION);
    for (int i = 0; i < p->n; i++) p->list[i].shard = i * t->n_shards / p->n;
}

static size_t element_bytes(const sp_tiny *t) {
    return t->dtype == SP_DTYPE_F32 ? 4 : 2;
}

static uint64_t tensor_bytes(const sp_tiny *t, const tensor *x) {
    return (uint64_t)x->shape[0] * (uint64_t)(x->n_dims == 2 ? x->shape[1] : 1) * element_bytes(t);
}

/* Seeded by name as well, so that a tensor does not depend on what comes before it. */
static void put_values(sp_buf *b, const sp_tiny *t, const tensor *x) {
    uint64_t rng = t->seed ^ sp_hash_bytes(x->name, strlen(x->name));
    uint64_t n = tensor_bytes(t, x) / element_bytes(t);
    for (uint64_t i = 0; i < n; i++) {
        float f = x->mean + x->deviation * next_normal(&rng);
        uint16_t half = t->dtype == SP_DTYPE_F16 ? sp_f16_of_f32(f) : sp_bf16_of_f32(f);
        if (t->dtype == SP_DTYPE_F32)
            sp_buf_put(b, &f, sizeof f);
        else
            sp_buf_put(b, &half, sizeof half);
    }
}

static void put_header(sp_buf *b, const plan *p, int shard) {
    uint64_t at = 0;
    sp_jw w = sp_jw_on(b);
    sp_jw_object(&w);
    sp_jw_key(&w, "__metadata__");
    sp_jw_raw(&w, SP_SLICE("{\"format\":\"pt\"}"));
    for (int i = 0; i < p->n; i++) {
        const tensor *x = &p->list[i];
        if (x->shard != shard) continue;
        uint64_t bytes = tensor_bytes(p->t, x);
        sp_jw_key(&w, x->name);
        sp_jw_object(&w);
        sp_jw_key(&w, "dtype");
        sp_jw_str(&w, sp_dtype_name(p->t->dtype));
        sp_jw_key(&w, "shape");
        sp_jw_array(&w);
        for (int k = 0; k < x->n_dims; k++) sp_jw_int(&w, x->shape[k]);
        sp_jw_array_end(&w);
        sp_jw_key(&w, "data_offsets");
        sp_jw_array(&w);
        sp_jw_int(&w, (int64_t)at);
        sp_jw_int(&w, (int64_t)(at += bytes));
        sp_jw_array_end(&w);
        sp_jw_object_end(&w);
    }
    sp_jw_object_end(&w);
    while (b->len % 8 != (p->t->unaligned ? 1 : 0)) sp_buf_putc(b, ' ');
}

static const char *shard_name(char out[64], const sp_tiny *t, int shard) {
    if (t->n_shards == 1) return "model.safetensors";
    snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, t->n_shards);
    return out;
}

static void write_shard(const char *dir, const plan *p, int shard) {
    sp_buf header, file;
    sp_buf_init(&header, 0);
    sp_buf_init(&file, 0);
    put_header(&header, p, shard);
    for (int i = 0; i < 8; i++) sp_buf_putc(&file, (char)(header.len >> (8 * i)));
    sp_buf_put_slice(&file, sp_buf_slice(&header));
    for (int i = 0; i < p->n; i++)
        if (p->list[i].shard == shard) put_values(&file, p->t, &p->list[i]);
    char name[64];
    put_buf(dir, shard_name(name, p->t, shard), &file);
    sp_buf_fini(&header);
}

static void write_index(const char *dir, const plan *p) {
    sp_buf b;
    char file[64];
    uint64_t total = 0;
    sp_buf_init(&b, 0);
    for (int i = 0; i < p->n; i++) total += tensor_bytes(p->t, &p->list[i]);
    sp_buf_printf(&b,
                  "{\"metadata\":{\"total_size\":%llu},\"weight_map\":", (unsigned long long)total);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    for (int i = 0; i < p->n; i++) {
        sp_jw_key(&w, p->list[i].name);
        sp_jw_str(&w, shard_name(file, p->t, p->list[i].shard));
    }
    sp_jw_object_end(&w);
    sp_buf_putc(&b, '}');
    put_buf(dir, "model.safetensors.index.json", &b);
}

/* ---- config.json ---- */

static void key_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void key_number(sp_jw *w, const char *key, double v) {
    sp_jw_key(w, key);
    sp_jw_number(w, v);
}
static void key_str(sp_jw *w, const char *key, const char *v) {
    sp_jw_key(w, key);
    sp_jw_str(w, v);
}
static void key_bool(sp_jw *w, const char *key, bool v) {
    sp_jw_key(w, key);
    sp_jw_bool(w, v);
}

static void put_rope_type(sp_jw *w, const sp_tiny *t) {
    static const char *const words[] = {"default", "linear", "llama3"};
    key_str(w, "rope_type", words[t->rope]);
    if (t->rope == SP_TINY_ROPE_LINEAR) key_number(w, "factor", 2);
    if (t->rope != SP_TINY_ROPE_LLAMA3) return;
    key_number(w, "factor", 8);
    key_number(w, "low_freq_factor", 1);
    key_number(w, "high_freq_factor", 4);
    key_int(w, "original_max_position_embeddings", 64);
}

static void put_rope(sp_jw *w, const sp_tiny *t) {
    if (!t->transformers5) key_number(w, "rope_theta", t->rope_theta);
    sp_jw_key(w, t->transformers5 ? "rope_parameters" : "rope_scaling");
    if (!t->transformers5 && t->rope == SP_TINY_ROPE_DEFAULT) {
        sp_jw_null(w);
        return;
    }
    sp_jw_object(w);
    if (t->transformers5) key_number(w, "rope_theta", t->rope_theta);
    put_rope_type(w, t);
    sp_jw_object_end(w);
}

static void write_config(const char *dir, const sp_tiny *t) {
    const char *dtype = t->dtype == SP_DTYPE_F32   ? "float32"
                        : t->dtype == SP_DTYPE_F16 ? "float16"
                                                   : "bfloat16";
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "architectures");
    sp_jw_raw(&w, SP_SLICE("[\"LlamaForCausalLM\"]"));
    key_str(&w, "model_type", "llama");
    key_int(&w, "hidden_size", t->hidden);
    key_int(&w, "num_hidden_layers", t->n_layers);
    key_int(&w, "intermediate_size", t->intermediate);
    key_int(&w, "vocab_size", t->vocab);
    key_int(&w, "num_attention_heads", t->n_heads);
    key_int(&w, "num_key_value_heads", t->n_kv_heads);
    if (t->head_dim) key_int(&w, "head_dim", t->head_dim);
    key_int(&w, "max_position_embeddings", t->max_positions);
    key_str(&w, "hidden_act", "silu");
    key_number(&w, "rms_norm_eps", 1e-5);
    put_rope(&w, t);
    key_bool(&w, "attention_bias", t->attention_bias);
    key_bool(&w, "mlp_bias", t->mlp_bias);
    key_bool(&w, "tie_word_embeddings", t->tied);
    key_str(&w, t->transformers5 ? "dtype" : "torch_dtype", dtype);
    key_int(&w, "bos_token_id", SP_TINY_BOS);
    key_int(&w, "eos_token_id", SP_TINY_EOS);
    key_int(&w, "pad_token_id", SP_TINY_PAD);
    sp_jw_object_end(&w);
    put_buf(dir, "config.json", &b);
    static const char generation[] = "{\"bos_token_id\":0,\"eos_token_id\":[1],\"pad_token_id\":2}";
    sp_tiny_put(dir, "generation_config.json", generation, sizeof generation - 1);
}

/* ---- tokenizer ---- */

static const char *const specials[] = {"<s>",      "</s>",          "<pad>",
                                       "<|user|>", "<|assistant|>", "<|system|>"};
#define PATTERN "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+"

/* Byte-level BPE spells a byte as a printable character: itself where it is one, else the next
 * free one from U+0100 on. Source: GPT-2's byte table. */
static void byte_spelling(int byte, char out[5]) {
    int next = 256, cp = 0;
    for (int b = 0; b <= byte; b++) {
        bool plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        cp = plain ? b : next++;
    }
    out[sp_utf8_encode((uint32_t)cp, out)] = 0;
}

/* Merges are the letters of these words, left to right, until the vocabulary is full. */
static const char *const words[] = {"the",   "and",    "ing",   "token", "model", "that",
                                    "with",  "head",   "rank",  "layer", "is",    "one",
                                    "her",   "answer", "hello", "world", "block", "cache",
                                    "super", "pod",    "step",  "stage", "what",  "question"};

typedef struct merges {
    sp_buf vocab, list; /* JSON: the entries of model.vocab after the bytes, and model.merges */
    char pieces[512][24];
    int n;
} merges;

static void add_merge(merges *m, const char *left, const char *right, int32_t id) {
    char *piece = m->pieces[m->n];
    snprintf(piece, sizeof m->pieces[0], "%s%s", left, right);
    for (int i = 0; i < m->n; i++)
        if (strcmp(m->pieces[i], piece) == 0) return;
    sp_buf_printf(&m->vocab, ",\"%s\":%d", piece, id);
    sp_buf_printf(&m->list, "%s[\"%s\",\"%s\"]", m->n ? "," : "", left, right);
    m->n++;
}

static void fill_merges(merges *m, int32_t vocab) {
    for (size_t w = 0; w < SP_LEN(words); w++) {
        char left[24] = {words[w][0]};
        for (size_t i = 1; words[w][i]; i++) {
            if (SP_TINY_VOCAB_MIN + m->n >= vocab) return;
            char right[2] = {words[w][i]};
            add_merge(m, left, right, SP_TINY_VOCAB_MIN + m->n);
            left[i] = words[w][i];
        }
    }
}

static void put_added(sp_buf *b) {
    sp_buf_puts(b, "\"added_tokens\":[");
    for (int i = 0; i < (int)SP_LEN(specials); i++)
        sp_buf_printf(b,
                      "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
                      "\"rstrip\":false,\"normalized\":false,\"special\":true}",
                      i ? "," : "", i, specials[i]);
    sp_buf_puts(b, "],");
}

static void put_vocab(sp_buf *b) {
    sp_jw w = sp_jw_on(b);
    sp_jw_object(&w);
    for (int i = 0; i < (int)SP_LEN(specials); i++) key_int(&w, specials[i], i);
    for (int i = 0; i < 256; i++) {
        char spelling[5];
        byte_spelling(i, spelling);
        key_int(&w, spelling, SP_TINY_BYTES + i);
    }
}

static void write_tokenizer(const char *dir, const sp_tiny *t) {
    merges *m = sp_alloc(sizeof *m);
    sp_buf b;
    sp_buf_init(&b, 0);
    fill_merges(m, t->vocab);
    sp_buf_puts(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,");
    put_added(&b);
    sp_buf_puts(&b, "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
                    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":");
    sp_jw w = sp_jw_on(&b);
    sp_jw_str(&w, PATTERN);
    sp_buf_puts(&b, "},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
                    "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\","
                    "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
                    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                    "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"
                    "\"vocab\":");
    put_vocab(&b);
    sp_buf_put_slice(&b, sp_buf_slice(&m->vocab));
    sp_buf_puts(&b, "},\"merges\":[");
    sp_buf_put_slice(&b, sp_buf_slice(&m->list));
    sp_buf_puts(&b, "]}}");
    put_buf(dir, "tokenizer.json", &b);
    sp_buf_fini(&m->vocab);
    sp_buf_fini(&m->list);
    sp_free(m);
}

static void write_tokenizer_config(const char *dir) {
    static const char text[] =
        "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":\"<s>\","
        "\"eos_token\":\"</s>\",\"pad_token\":\"<pad>\",\"clean_up_tokenization_spaces\":false,"
        "\"chat_template\":\"{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}\"}";
    sp_tiny_put(dir, "tokenizer_config.json", text, sizeof text - 1);
}

void sp_tiny_write(const char *dir, const sp_tiny *t) {
    SP_ASSERT(t->vocab >= SP_TINY_VOCAB_MIN && t->n_shards >= 1);
    plan p = {t, sp_alloc(TENSORS_MAX * sizeof(tensor)), 0};
    write_config(dir, t);
    write_tokenizer(dir, t);
    write_tokenizer_config(dir);
    list_tensors(&p);
    for (int i = 0; i < t->n_shards; i++) write_shard(dir, &p, i);
    if (t->n_shards > 1) write_index(dir, &p);
    sp_free(p.list);
}

char *sp_tiny_create(const sp_tiny *t) {
    char *dir = sp_tiny_folder();
    sp_tiny_write(dir, t);
    return dir;
}
