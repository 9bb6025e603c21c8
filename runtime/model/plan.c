#include "runtime/model/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

_Static_assert(sizeof(sp_kv_trailer) == 64, "the trailer is one cache line");

#define ALIGN_BYTES 64
#define KV_SHARE_PERCENT 40
#define RESERVE_DIVISOR 32 /* of the limit: stacks, tables, the allocator's own */

static uint64_t round_up(uint64_t n, uint64_t unit) {
    return (n + unit - 1) / unit * unit;
}

static uint64_t times(uint64_t a, uint64_t b) { /* UINT64_MAX when it does not fit */
    uint64_t r;
    return __builtin_mul_overflow(a, b, &r) ? UINT64_MAX : r;
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

typedef struct bytes_text {
    char s[24];
} bytes_text;
static bytes_text show(uint64_t bytes) {
    bytes_text t;
    sp_format_bytes(t.s, sizeof t.s, bytes);
    return t;
}

/* ---- KV blocks ---- */

sp_kv_layout sp_kv_layout_of(int32_t n_layers, int32_t n_kv_heads, int32_t head_dim,
                             int32_t block_tokens, sp_dtype dtype) {
    sp_kv_layout l = {n_layers, n_kv_heads, head_dim, block_tokens, dtype, 0, 0, 0, 0};
    size_t row = (size_t)n_kv_heads * (size_t)head_dim * (size_t)sp_dtype_bits(dtype) / 8;
    l.token_bytes = 2 * row * (size_t)n_layers;
    l.layer_bytes = 2 * row * (size_t)block_tokens;
    l.trailer_offset = (size_t)round_up(l.layer_bytes * (size_t)n_layers, ALIGN_BYTES);
    l.block_bytes = l.trailer_offset + sizeof(sp_kv_trailer);
    return l;
}

size_t sp_kv_layer_offset(const sp_kv_layout *l, int32_t layer) {
    SP_DASSERT(layer >= 0 && layer < l->n_layers);
    return l->layer_bytes * (size_t)layer;
}

sp_status sp_kv_dtype_parse(const char *word, sp_dtype *out, sp_err *err) {
    static const struct {
        const char *word;
        sp_dtype dtype;
    } words[] = {
        {"auto", SP_DTYPE_F32},  {"f32", SP_DTYPE_F32},       {"float32", SP_DTYPE_F32},
        {"f16", SP_DTYPE_F16},   {"fp16", SP_DTYPE_F16},      {"float16", SP_DTYPE_F16},
        {"bf16", SP_DTYPE_BF16}, {"bfloat16", SP_DTYPE_BF16},
    };
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(word, words[i].word) == 0) {
            *out = words[i].dtype;
            return SP_OK;
        }
    if (strncmp(word, "fp8", 3) == 0 || strncmp(word, "int8", 4) == 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "--kv-cache-dtype '%s' is not supported; supported: auto, f32, f16, bf16",
                       word);
    return SP_FAIL(err, SP_E_INVALID, "--kv-cache-dtype is '%.40s', want auto, f32, f16 or bf16",
                   word);
}

/* ---- memory of this machine ---- */

#define PATH_BYTES 1024
#define LINE_BYTES 512

/* The number after `key` at the start of a line ("" : the first line is the number). */
static bool read_number(const char *path, const char *key, uint64_t *out) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    char line[LINE_BYTES];
    size_t n = strlen(key);
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, n) != 0) continue;
        char *end;
        uint64_t v = strtoull(line + n, &end, 10);
        found = end != line + n;
        if (found) *out = v;
    }
    fclose(f);
    return found;
}

typedef struct cgroup_files {
    const char *controller; /* of a line of /proc/self/cgroup: "" is v2 */
    const char *mounts[2];
    const char *limit, *used, *inactive;
} cgroup_files;

static const cgroup_files V1 = {"memory",
                                {"/sys/fs/cgroup/memory", NULL},
                                "memory.limit_in_bytes",
                                "memory.usage_in_bytes",
                                "total_inactive_file "};
static const cgroup_files V2 = {"",
                                {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"},
                                "memory.max",
                                "memory.current",
                                "inactive_file "};

/* One group's own limit. "max" and v1's near-2^63 are none. */
static void apply_group(sp_memory *m, const cgroup_files *files, const char *dir) {
    char path[PATH_BYTES + 32];
    uint64_t limit = UINT64_MAX, used = 0, cache = 0;
    snprintf(path, sizeof path, "%s/%s", dir, files->limit);
    if (!read_number(path, "", &limit) || limit >= UINT64_MAX / 4) return;
    snprintf(path, sizeof path, "%s/%s", dir, files->used);
    read_number(path, "", &used);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    read_number(path, files->inactive, &cache);
    used -= least(used, cache);
    m->cgroup_limit_bytes = least(m->cgroup_limit_bytes, limit);
    m->cgroup_left_bytes = least(m->cgroup_left_bytes, limit - least(limit, used));
}

/* The group and all above it: the least limit counts. Inside a container the named path is often
 * the host's and not to be seen; the mount's root is the container's group then. */
static void apply_path(sp_memory *m, const cgroup_files *files, const char *root,
                       const char *group) {
    for (int i = 0; i < 2 && files->mounts[i]; i++) {
        char dir[PATH_BYTES];
        size_t base = (size_t)snprintf(dir, sizeof dir, "%s%s", root, files->mounts[i]);
        if (base >= sizeof dir) continue;
        snprintf(dir + base, sizeof dir - base, "%s", strstr(group, "..") ? "" : group);
        for (;;) {
            apply_group(m, files, dir);
            char *slash = strrchr(dir + base, '/');
            if (!slash) break;
            *slash = 0;
        }
    }
}

/* "4:memory:/a/b" or "0::/a/b" */
static void apply_line(sp_memory *m, const char *root, char *line) {
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : 0;
    if (!group) return;
    controllers++;
    *group++ = 0;
    if (group[0] == '/' && !group[1]) group++;
    if (!controllers[0]) {
        apply_path(m, &V2, root, group);
        return;
    }
    for (char *save, *c = strtok_r(controllers, ",", &save); c; c = strtok_r(NULL, ",", &save))
        if (strcmp(c, V1.controller) == 0) apply_path(m, &V1, root, group);
}

sp_status sp_memory_read(sp_memory *out, const char *root, sp_err *err) {
    sp_memory m = {0, UINT64_MAX, UINT64_MAX};
    char path[PATH_BYTES], line[LINE_BYTES];
    uint64_t kib;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (!read_number(path, "MemAvailable:", &kib))
        return SP_FAIL(err, SP_E_IO, "'%.100s' tells no MemAvailable", path);
    m.available_bytes = times(kib, 1024);
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) apply_line(&m, root, line);
    if (f) fclose(f);
    *out = m;
    return SP_OK;
}

/* ---- wishes ---- */

static sp_status check_range(const char *option, int32_t v, int32_t min, int32_t max, sp_err *err) {
    if (v >= min && v <= max) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "%s is %d, want %d to %d", option, v, min, max);
}

static sp_status check_wishes(const sp_plan_request *r, sp_err *err) {
    SP_TRY(check_range("--tensor-parallel-size", r->tp, 0, SP_PLAN_TP_MAX, err));
    SP_TRY(check_range("--pipeline-parallel-size", r->pp, 0, SP_PLAN_PP_MAX, err));
    SP_TRY(check_range("--block-size", r->block_tokens, SP_PLAN_BLOCK_TOKENS_MIN,
                       SP_PLAN_BLOCK_TOKENS_MAX, err));
    SP_TRY(check_range("--max-num-seqs", r->max_num_seqs, 1, SP_PLAN_SEQS_MAX, err));
    SP_TRY(check_range("--max-num-batched-tokens", r->max_num_batched_tokens, 1,
                       SP_PLAN_BATCH_TOKENS_MAX, err));
    SP_TRY(check_range("logits rows", r->max_rows, 0, SP_PLAN_BATCH_TOKENS_MAX, err));
    SP_TRY(check_range("KV blocks", r->n_blocks, 0, SP_PLAN_BLOCKS_MAX, err));
    if (r->max_model_len < 0 || r->max_model_len > r->desc->max_positions)
        return SP_FAIL(err, SP_E_INVALID,
                       "--max-model-len is %d, want 1 to %d (max_position_embeddings)",
                       r->max_model_len, r->desc->max_positions);
    if (r->kv_dtype != SP_DTYPE_F32 && r->kv_dtype != SP_DTYPE_F16 && r->kv_dtype != SP_DTYPE_BF16)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "KV type %s is not supported, want F32, F16 or BF16",
                       sp_dtype_name(r->kv_dtype));
    return SP_OK;
}

/* ---- partition ---- */

static sp_status divide(sp_plan *p, const sp_plan_request *r, sp_err *err) {
    p->tp = r->tp ? r->tp : 1;
    p->pp = r->pp ? r->pp : 1;
    p->exact = sp_part_is_exact(p->tp);
    SP_TRY(sp_part_slices(p->slices, r->desc, p->tp, err));
    SP_TRY(sp_part_stages(p->stages, r->desc, r->arch, p->pp, r->pp_layers, err));
    p->max_model_len = r->max_model_len ? r->max_model_len : r->desc->max_positions;
    p->max_num_seqs = r->max_num_seqs;
    p->max_num_batched_tokens = r->max_num_batched_tokens;
    p->max_rows = r->max_rows;
    if (!p->max_rows)
        p->max_rows =
            (int32_t)least((uint64_t)r->max_num_seqs, (uint64_t)r->max_num_batched_tokens);
    p->blocks_per_seq = (p->max_model_len + r->block_tokens - 1) / r->block_tokens;
    return SP_OK;
}

/* ---- weights ---- */

#define NAME_BYTES 160
#define PARTS_MAX 3

static sp_dtype dtype_of(const sp_plan_request *r, const char *pattern, int layer,
                         const char *suffix) {
    char name[NAME_BYTES];
    const sp_tensor *t = NULL;
    if (r->dir)
        t = sp_model_dir_find(r->dir, sp_arch_name(name, sizeof name, pattern, layer, suffix));
    return t ? t->dtype : r->desc->dtype;
}

/* Matrices of equal width that are packed as one. */
static void count_matrix(sp_plan_rank *k, const sp_plan_request *r, const char *const *patterns,
                         const int32_t *rows, int n, int layer, const sp_segments *seg) {
    const int32_t cols = seg->edge[seg->n];
    int32_t all_rows = 0;
    uint64_t bytes = 0;
    sp_dtype first = dtype_of(r, patterns[0], layer, ".weight");
    for (int i = 0; i < n; i++) {
        uint64_t elements = (uint64_t)rows[i] * (uint64_t)cols;
        int bits = sp_dtype_bits(dtype_of(r, patterns[i], layer, ".weight"));
        bytes += elements * (uint64_t)bits / 8;
        k->n_params += elements;
        all_rows += rows[i];
    }
    k->weight_bytes += bytes;
    /* Loading refuses other types by name; until then they count as they are. */
    bool packs = first == SP_DTYPE_F32 || first == SP_DTYPE_F16 || first == SP_DTYPE_BF16;
    k->packed_bytes += r->packed && packs ? r->packed(all_rows, seg, first) : bytes;
}

static void count_vector(sp_plan_rank *k, const sp_plan_request *r, const char *const *patterns,
                         const int32_t *sizes, int n, int layer, const char *suffix) {
    for (int i = 0; i < n; i++) {
        uint64_t bits = (uint64_t)sp_dtype_bits(dtype_of(r, patterns[i], layer, suffix));
        k->n_params += (uint64_t)sizes[i];
        k->weight_bytes += (uint64_t)sizes[i] * bits / 8;
        k->vector_bytes += (uint64_t)sizes[i] * sizeof(float);
    }
}

static void count_layer(sp_plan_rank *k, const sp_plan_request *r, const sp_part *part, int layer) {
    const sp_plan_slice *s = &part->slice;
    const sp_segments all = sp_segments_of(r->desc->hidden, 1);
    const sp_model_desc *d = r->desc;
    const sp_arch *a = r->arch;
    const char *const qkv[] = {a->q, a->k, a->v}, *const gate_up[] = {a->gate, a->up};
    const int32_t q = s->n_heads * d->head_dim, kv = s->n_kv_heads * d->head_dim;
    const int32_t qkv_rows[] = {q, kv, kv}, ffn_rows[] = {s->n_ffn, s->n_ffn};
    count_vector(k, r, &a->attn_norm, &d->hidden, 1, layer, ".weight");
    count_matrix(k, r, qkv, qkv_rows, PARTS_MAX, layer, &all);
    count_matrix(k, r, &a->o, &d->hidden, 1, layer, &part->o_segments);
    count_vector(k, r, &a->ffn_norm, &d->hidden, 1, layer, ".weight");
    count_matrix(k, r, gate_up, ffn_rows, 2, layer, &all);
    count_matrix(k, r, &a->down, &d->hidden, 1, layer, &part->down_segments);
    if (sp_arch_has_bias(a->qkv_bias, d->attention_bias))
        count_vector(k, r, qkv, qkv_rows, PARTS_MAX, layer, ".bias");
    if (sp_arch_has_bias(a->o_bias, d->attention_bias))
        count_vector(k, r, &a->o, &d->hidden, 1, layer, ".bias");
    if (!sp_arch_has_bias(a->mlp_bias, d->mlp_bias)) return;
    count_vector(k, r, gate_up, ffn_rows, 2, layer, ".bias");
    count_vector(k, r, &a->down, &d->hidden, 1, layer, ".bias");
}

static void count_weights(sp_plan_rank *k, const sp_plan_request *r, const sp_part *part) {
    const sp_plan_stage *stage = &part->stage;
    const sp_plan_slice *s = &part->slice;
    const sp_arch *a = r->arch;
    const sp_segments all = sp_segments_of(r->desc->hidden, 1);
    bool tied = sp_arch_is_tied(a, r->desc);
    for (int32_t i = 0; i < stage->n_layers; i++) count_layer(k, r, part, stage->layer_first + i);
    if (stage->has_embed || (stage->has_head && tied))
        count_matrix(k, r, &a->embed, &s->n_vocab, 1, 0, &all);
    if (!stage->has_head) return;
    count_vector(k, r, &a->final_norm, &r->desc->hidden, 1, 0, ".weight");
    if (!tied) count_matrix(k, r, &a->lm_head, &s->n_vocab, 1, 0, &all);
}

/* ---- scratch ---- */

static void count_scratch(sp_plan_rank *k, const sp_plan *p, const sp_plan_request *r,
                          const sp_plan_stage *stage, int32_t tp_rank) {
    const sp_plan_slice *s = &p->slices[tp_rank];
    const bool split = p->tp > 1, head = stage->has_head;
    uint64_t T = (uint64_t)p->max_num_batched_tokens, R = (uint64_t)p->max_rows;
    uint64_t E = (uint64_t)r->desc->hidden, D = (uint64_t)r->desc->head_dim;
    uint64_t H = (uint64_t)s->n_heads, K = (uint64_t)s->n_kv_heads, F = (uint64_t)s->n_ffn;
    k->scratch = (sp_plan_scratch){
        .x = T * E,
        .normed = T * E,
        .partial = T * E,
        .qkv = T * (H + 2 * K) * D,
        .attn = T * H * D,
        .gate_up = T * 2 * F,
        .act = T * F,
        .last = head ? 2 * R * E : 0,
        .logits = head && tp_rank == 0 ? R * (uint64_t)r->desc->vocab : 0,
        .logits_part = head && split ? R * (uint64_t)s->n_vocab : 0,
        .rope = (uint64_t)p->max_model_len * (uint64_t)(sp_arch_rope_dims(r->desc) / 2) * 2,
        .ids = stage->has_embed && split ? 2 * T : 0,
    };
    const sp_plan_scratch *c = &k->scratch;
    const uint64_t ranges[] = {c->x,       c->normed,   c->partial, c->qkv,    c->attn,
                               c->gate_up, c->act,      c->last,    c->logits, c->logits_part,
                               c->ids,     c->rope / 2, c->rope / 2};
    for (size_t i = 0; i < SP_LEN(ranges); i++)
        k->scratch_bytes += round_up(ranges[i] * sizeof(float), ALIGN_BYTES);
}

/* ---- KV and the sum ---- */

static uint64_t limit_of(const sp_plan_request *r) {
    uint64_t there = least(r->memory.available_bytes, r->memory.cgroup_left_bytes);
    if (there == UINT64_MAX) return there;
    if (r->ranks_on_node > 1) there /= (uint64_t)r->ranks_on_node;
    return there - there / RESERVE_DIVISOR;
}

static sp_status refuse_kv(const sp_plan *p, const sp_kv_layout *kv, uint64_t left, sp_err *err) {
    uint64_t need = times((uint64_t)p->blocks_per_seq, kv->block_bytes);
    uint64_t fits = left / kv->block_bytes * (uint64_t)kv->block_tokens;
    if (fits == 0)
        return SP_FAIL(err, SP_E_LIMIT,
                       "one KV block of %d tokens needs %s, %s are left: use a smaller "
                       "--block-size, --kv-cache-dtype or --max-num-batched-tokens",
                       kv->block_tokens, show(kv->block_bytes).s, show(left).s);
    return SP_FAIL(err, SP_E_LIMIT,
                   "max_model_len %d needs %s of KV, %s are left: use --max-model-len <= %" PRIu64,
                   p->max_model_len, show(need).s, show(left).s, fits);
}

/* `left` bytes for blocks of `kv`, on the rank with the least room for them. */
static sp_status choose_blocks(sp_plan *p, const sp_plan_request *r, const sp_kv_layout *kv,
                               uint64_t left, sp_err *err) {
    uint64_t block = kv->block_bytes, one = (uint64_t)p->blocks_per_seq;
    if (r->n_blocks && (uint64_t)r->n_blocks < one)
        return SP_FAIL(
            err, SP_E_INVALID, "%d KV blocks hold %d tokens, want %d blocks for max_model_len %d",
            r->n_blocks, r->n_blocks * kv->block_tokens, p->blocks_per_seq, p->max_model_len);
    if (one > left / block) return refuse_kv(p, kv, left, err);
    if ((uint64_t)r->n_blocks > left / block)
        return SP_FAIL(err, SP_E_LIMIT,
                       "%d KV blocks need %s, %s are left: at most %" PRIu64 " fit", r->n_blocks,
                       show(times((uint64_t)r->n_blocks, block)).s, show(left).s, left / block);
    uint64_t wish = (uint64_t)p->max_num_seqs * one;
    uint64_t share = left / 100 * KV_SHARE_PERCENT / block;
    uint64_t n = least(least(wish, share), SP_PLAN_BLOCKS_MAX);
    if (n < one) n = one;
    p->n_blocks = r->n_blocks ? r->n_blocks : (int32_t)n;
    p->max_concurrency = (double)p->n_blocks * (double)kv->block_tokens / (double)p->max_model_len;
    return SP_OK;
}

void sp_plan_rank_of(sp_plan_rank *out, const sp_plan *p, const sp_plan_request *req, int32_t stage,
                     int32_t tp_rank) {
    SP_ASSERT(stage >= 0 && stage < p->pp && tp_rank >= 0 && tp_rank < p->tp);
    const sp_plan_stage *s = &p->stages[stage];
    const sp_plan_slice *slice = &p->slices[tp_rank];
    sp_plan_rank k = {0};
    sp_part part = {.stage = *s, .slice = *slice};
    sp_part_segments(&part.o_segments, &part.down_segments, req->desc, p->tp, tp_rank);
    count_weights(&k, req, &part);
    count_scratch(&k, p, req, s, tp_rank);
    k.kv = sp_kv_layout_of(s->n_layers, slice->n_kv_heads, req->desc->head_dim, req->block_tokens,
                           req->kv_dtype);
    k.kv_bytes = times((uint64_t)p->n_blocks, k.kv.block_bytes);
    uint64_t base = k.packed_bytes + k.vector_bytes + k.scratch_bytes;
    if (__builtin_add_overflow(base, req->mapped_bytes, &base) ||
        __builtin_add_overflow(base, k.kv_bytes, &k.total_bytes))
        k.total_bytes = UINT64_MAX;
    *out = k;
}

/* The two ranks that decide: the one that needs most with p->n_blocks (0 before they are chosen),
 * and the one with room for the least blocks. */
typedef struct extremes {
    sp_plan_rank most, tight;
    int32_t most_stage, most_tp_rank;
} extremes;

static void find_extremes(extremes *x, const sp_plan *p, const sp_plan_request *r) {
    uint64_t least_fits = UINT64_MAX;
    for (int32_t i = 0; i < p->pp * p->tp; i++) {
        sp_plan_rank k;
        sp_plan_rank_of(&k, p, r, i / p->tp, i % p->tp);
        if (i == 0 || k.total_bytes > x->most.total_bytes) {
            x->most = k;
            x->most_stage = i / p->tp;
            x->most_tp_rank = i % p->tp;
        }
        uint64_t left = p->limit_bytes - least(p->limit_bytes, k.total_bytes);
        if (i > 0 && left / k.kv.block_bytes >= least_fits) continue;
        least_fits = left / k.kv.block_bytes;
        x->tight = k;
    }
}

static void tell_most(sp_plan *p, const extremes *x) {
    const sp_plan_rank *k = &x->most;
    p->most_stage = x->most_stage;
    p->most_tp_rank = x->most_tp_rank;
    p->n_params = k->n_params;
    p->weight_bytes = k->weight_bytes;
    p->packed_bytes = k->packed_bytes;
    p->vector_bytes = k->vector_bytes;
    p->scratch = k->scratch;
    p->scratch_bytes = k->scratch_bytes;
    p->kv = k->kv;
    p->kv_bytes = k->kv_bytes;
    p->total_bytes = k->total_bytes;
}

static sp_status fit(sp_plan *p, const sp_plan_request *r, sp_err *err) {
    extremes x;
    p->mapped_bytes = r->mapped_bytes;
    p->limit_bytes = limit_of(r);
    find_extremes(&x, p, r);
    const uint64_t base = x.most.total_bytes; /* no blocks yet */
    if (base > p->limit_bytes)
        return SP_FAIL(
            err, SP_E_LIMIT,
            "weights need %s and activations %s, %s are there: use more ranks (--tp, --pp), "
            "a machine with more memory or a smaller --max-num-batched-tokens",
            show(base - x.most.scratch_bytes).s, show(x.most.scratch_bytes).s,
            show(p->limit_bytes).s);
    SP_TRY(choose_blocks(p, r, &x.tight.kv, p->limit_bytes - x.tight.total_bytes, err));
    find_extremes(&x, p, r);
    tell_most(p, &x);
    return SP_OK;
}

sp_status sp_plan_make(sp_plan *out, const sp_plan_request *req, sp_err *err) {
    SP_ASSERT(req->desc && req->arch);
    SP_TRY(check_wishes(req, err));
    sp_plan p = {0};
    SP_TRY(divide(&p, req, err));
    SP_TRY(fit(&p, req, err));
    *out = p;
    return SP_OK;
}
