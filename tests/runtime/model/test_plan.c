/* Covers runtime/model/plan.c: bytes of known models, what fits, and the memory of a machine. */
#include "runtime/model/plan.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <sys/stat.h>

#define GIB ((uint64_t)1 << 30)

static sp_model_desc llama_8b(void) {
    return (sp_model_desc){
        .architecture = "LlamaForCausalLM",
        .hidden = 4096,
        .n_layers = 32,
        .intermediate = 14336,
        .vocab = 128256,
        .n_heads = 32,
        .n_kv_heads = 8,
        .head_dim = 128,
        .max_positions = 131072,
        .act = "silu",
        .norm_eps = 1e-5,
        .rope = {.theta = 500000, .partial_rotary_factor = 1, .type_name = "default"},
        .dtype = SP_DTYPE_BF16,
    };
}

static sp_plan_request request(const sp_model_desc *d, uint64_t memory) {
    sp_plan_request r = {
        .desc = d,
        .block_tokens = 16,
        .max_num_seqs = 16,
        .max_num_batched_tokens = 512,
        .max_model_len = 8192,
        .kv_dtype = SP_DTYPE_BF16,
        .memory = {memory, UINT64_MAX, UINT64_MAX},
    };
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&r.arch, d, NULL), SP_OK);
    return r;
}

static void refused(const sp_plan_request *r, sp_status want, const char *words) {
    sp_plan *p = sp_alloc(sizeof *p);
    sp_err err = {0};
    sp_status st = sp_plan_make(p, r, &err);
    if (st != want || !strstr(err.text, words))
        fprintf(stderr, "    want '%s', got %s: %s\n", words, sp_status_name(st), err.text);
    CU_ASSERT_EQUAL(st, want);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_EQUAL(p->tp, 0); /* written only on success */
    sp_free(p);
}

static void refused_with_layers(const sp_plan_request *r, const int32_t *layers) {
    sp_plan_request forced = *r;
    forced.pp_layers = layers;
    refused(&forced, SP_E_LIMIT, "use more ranks (--tp, --pp)");
}

static void known_models_have_their_known_sizes(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_request r = request(&d, 64 * GIB);
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_params, 8030261248);
    CU_ASSERT_EQUAL(p.weight_bytes, 2 * 8030261248);
    CU_ASSERT_EQUAL(p.kv.token_bytes, 131072);
    d.hidden = 16384;
    d.n_layers = 126;
    d.intermediate = 53248;
    d.n_heads = 128;
    r.memory.available_bytes = 2048 * GIB;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_params, 405853388800);
    CU_ASSERT_EQUAL(p.kv.token_bytes, 516096);
    d = llama_8b(); /* 3.2 1B: tied */
    d.hidden = 2048;
    d.n_layers = 16;
    d.intermediate = 8192;
    d.head_dim = 64;
    d.has_tie_key = d.tie_embeddings = true;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_params, 1235814400);
}

static void the_parts_add_up_and_one_rank_holds_all(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_request r = request(&d, 64 * GIB);
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT(p.tp == 1 && p.pp == 1);
    CU_ASSERT(p.stages[0].n_layers == 32 && p.stages[0].has_embed && p.stages[0].has_head);
    CU_ASSERT(p.slices[0].n_heads == 32 && p.slices[0].n_kv_heads == 8);
    CU_ASSERT(p.slices[0].n_ffn == 14336 && p.slices[0].n_vocab == 128256);
    CU_ASSERT_EQUAL(p.vector_bytes, 65 * 4096 * 4);
    uint64_t vectors_as_stored = 65 * 4096 * 2;
    CU_ASSERT_EQUAL(p.packed_bytes, p.weight_bytes - vectors_as_stored);
    uint64_t scratch = 4 * (512ull * (3 * 4096 + 48 * 128 + 32 * 128 + 3 * 14336) + 2 * 16 * 4096 +
                            16 * 128256 + 8192 * 128);
    CU_ASSERT_EQUAL(p.scratch_bytes, scratch);
    CU_ASSERT_EQUAL(p.total_bytes, p.packed_bytes + p.vector_bytes + p.scratch_bytes + p.kv_bytes);
    CU_ASSERT_EQUAL(p.limit_bytes, 62 * GIB);
    CU_ASSERT(p.total_bytes <= p.limit_bytes);
}

static size_t twice(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    CU_ASSERT_EQUAL(dtype, SP_DTYPE_F16);
    return 2 * (size_t)rows * (size_t)seg->edge[seg->n];
}

static void types_come_from_the_tensors_when_they_are_there(void) {
    sp_tiny t = sp_tiny_default();
    t.dtype = SP_DTYPE_F16;
    t.attention_bias = t.mlp_bias = true;
    char *dir = sp_tiny_create(&t);
    sp_model_desc d;
    sp_model_dir *tensors = NULL;
    sp_plan p;
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&d, dir, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&tensors, dir, NULL), SP_OK);
    d.dtype = SP_DTYPE_F32; /* as a config that does not say */
    sp_plan_request r = request(&d, GIB);
    r.max_model_len = 0;
    r.dir = tensors;
    r.packed = twice;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.weight_bytes, sp_model_dir_bytes(tensors));
    CU_ASSERT_EQUAL(p.n_params * 2, sp_model_dir_bytes(tensors));
    CU_ASSERT_EQUAL(p.packed_bytes + p.vector_bytes / 2, p.weight_bytes);
    CU_ASSERT_EQUAL(p.max_model_len, 512);
    r.dir = NULL;
    r.packed = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.weight_bytes, 2 * sp_model_dir_bytes(tensors));
    sp_model_dir_close(tensors);
    sp_tiny_remove(dir);
}

static void the_cache_takes_what_is_wished_or_two_fifths_of_the_rest(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_request r = request(&d, 256 * GIB);
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.blocks_per_seq, 512);
    CU_ASSERT_EQUAL(p.n_blocks, 16 * 512);
    CU_ASSERT_EQUAL(p.max_concurrency, 16);
    r.max_num_seqs = 4096;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    double left = (double)(p.limit_bytes - (p.total_bytes - p.kv_bytes));
    CU_ASSERT(fabs((double)p.kv_bytes / left - 0.4) < 0.001);
    r.memory.available_bytes = 35 * GIB / 2; /* 40 % would be less than one sequence: it gets one */
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_blocks, 512);
    CU_ASSERT_EQUAL(p.max_concurrency, 1);
    r.memory = (sp_memory){UINT64_MAX, UINT64_MAX, UINT64_MAX}; /* no bound at all */
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_blocks, 4096 * 512);
}

static void what_does_not_fit_is_told_with_what_would(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_err err = {0};
    sp_plan_request r = request(&d, 24 * GIB);
    r.max_model_len = 0;
    refused(&r, SP_E_LIMIT, "max_model_len 131072 needs 16.0 GiB of KV, 8.");
    CU_ASSERT_EQUAL(sp_plan_make(&p, &r, &err), SP_E_LIMIT);
    int fits = 0;
    const char *hint = strstr(err.text, "use --max-model-len <= ");
    CU_ASSERT_PTR_NOT_NULL_FATAL(hint);
    CU_ASSERT_EQUAL(sscanf(hint, "use --max-model-len <= %d", &fits), 1);
    CU_ASSERT(fits > 1024 && fits < 131072 && fits % 16 == 0);
    r.max_model_len = fits; /* the hint keeps its word: a shorter table of rope leaves more */
    CU_ASSERT_EQUAL(sp_plan_make(&p, &r, NULL), SP_OK);
    r.memory.available_bytes = 8 * GIB;
    refused(&r, SP_E_LIMIT, "weights need 15.0 GiB and activations");
    r = request(&d, 64 * GIB);
    r.mapped_bytes = UINT64_MAX;
    refused(&r, SP_E_LIMIT, "weights need");
    r.mapped_bytes = 60 * GIB;
    refused(&r, SP_E_LIMIT, "weights need 75.0 GiB");
}

static void the_cgroup_and_the_other_ranks_share_the_memory(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_request r = request(&d, 640 * GIB);
    r.memory.cgroup_left_bytes = 64 * GIB;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.limit_bytes, 62 * GIB);
    r.ranks_on_node = 2;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.limit_bytes, 31 * GIB);
}

static void a_wish_for_blocks_is_kept_or_refused(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_request r = request(&d, 24 * GIB);
    r.n_blocks = 600;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT_EQUAL(p.n_blocks, 600);
    CU_ASSERT_EQUAL(p.kv_bytes, 600 * (16ull * 131072 + 64));
    r.n_blocks = 511;
    refused(&r, SP_E_INVALID, "511 KV blocks hold 8176 tokens, want 512 blocks");
    r.n_blocks = 1 << 20;
    refused(&r, SP_E_LIMIT, "1048576 KV blocks need 2.0 TiB, 8.");
    r.n_blocks = SP_PLAN_BLOCKS_MAX + 1;
    refused(&r, SP_E_INVALID, "KV blocks is 67108865");
}

static void a_wish_out_of_range_is_refused_by_its_option(void) {
    sp_model_desc d = llama_8b();
    const sp_plan_request good = request(&d, 64 * GIB);
    sp_plan_request r = good;
#define REFUSED(field, value, status, words) \
    do { \
        r = good; \
        r.field = (value); \
        refused(&r, status, words); \
    } while (0)
    REFUSED(tp, 3, SP_E_INVALID, "--tensor-parallel-size 3 does not divide the 32 attention heads");
    REFUSED(tp, 65, SP_E_INVALID, "--tensor-parallel-size is 65");
    REFUSED(tp, -1, SP_E_INVALID, "--tensor-parallel-size is -1");
    REFUSED(pp, 33, SP_E_INVALID, "--pipeline-parallel-size is 33, want 1 to 32");
    REFUSED(pp, 129, SP_E_INVALID, "--pipeline-parallel-size is 129");
    REFUSED(block_tokens, 4, SP_E_INVALID, "--block-size is 4, want 8 to 128");
    REFUSED(block_tokens, 129, SP_E_INVALID, "--block-size is 129");
    REFUSED(max_num_seqs, 0, SP_E_INVALID, "--max-num-seqs is 0");
    REFUSED(max_num_batched_tokens, 0, SP_E_INVALID, "--max-num-batched-tokens is 0");
    REFUSED(max_rows, -1, SP_E_INVALID, "logits rows is -1");
    REFUSED(max_model_len, -1, SP_E_INVALID, "--max-model-len is -1");
    REFUSED(max_model_len, 131073, SP_E_INVALID,
            "--max-model-len is 131073, want 1 to 131072 (max_position_embeddings)");
    REFUSED(kv_dtype, SP_DTYPE_F8_E4M3, SP_E_UNSUPPORTED, "KV type F8_E4M3");
#undef REFUSED
}

/* ---- many ranks ---- */

/* Elements of all ranks; what every TP rank has for itself (norms) is counted once. */
static uint64_t params_of_all(const sp_plan *p, const sp_plan_request *r) {
    uint64_t sum = 0, norms = 0;
    for (int32_t i = 0; i < p->pp; i++) {
        const sp_plan_stage *s = &p->stages[i];
        norms += (uint64_t)r->desc->hidden * (uint64_t)(2 * s->n_layers + s->has_head);
        for (int32_t k = 0; k < p->tp; k++) {
            sp_plan_rank rank;
            sp_plan_rank_of(&rank, p, r, i, k);
            CU_ASSERT(rank.total_bytes <= p->total_bytes && rank.total_bytes <= p->limit_bytes);
            CU_ASSERT_EQUAL(rank.kv_bytes, (uint64_t)p->n_blocks * rank.kv.block_bytes);
            sum += rank.n_params;
        }
    }
    return sum - (uint64_t)(p->tp - 1) * norms;
}

static void ranks_of_a_big_model_hold_it_once(void) {
    static const struct {
        const char *dir;
        int32_t tp, pp;
        uint64_t params, kv_token_bytes;
    } cases[] = {{"llama-3.1-405b", 8, 2, 405853388800, 63 * 2 * 1 * 128 * 2},
                 {"llama-3.1-70b", 4, 1, 70553706496, 80 * 2 * 2 * 128 * 2},
                 {"llama-3.1-8b", 2, 4, 8030261248, 0}};
    const char *fixtures = sp_test_fixtures();
    if (!fixtures) SP_SKIP("no fixtures beside the checkout");
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        char dir[512];
        sp_model_desc d;
        sp_plan p;
        snprintf(dir, sizeof dir, "%s/configs/%s", fixtures, cases[i].dir);
        CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&d, dir, NULL), SP_OK);
        sp_plan_request r = request(&d, 1024 * GIB);
        r.tp = cases[i].tp;
        r.pp = cases[i].pp;
        r.ranks_on_node = 8;
        CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
        CU_ASSERT(p.tp == cases[i].tp && p.pp == cases[i].pp);
        CU_ASSERT(p.exact);
        CU_ASSERT_EQUAL(params_of_all(&p, &r), cases[i].params);
        CU_ASSERT_EQUAL(p.limit_bytes, 124 * GIB);
        /* The rank that needs most has about its share: it may owe that to its cache. */
        const uint64_t share = 2 * cases[i].params / (uint64_t)(p.tp * p.pp);
        CU_ASSERT(p.weight_bytes > share - share / 8 && p.weight_bytes < share + share / 8);
        if (i < 2) CU_ASSERT_EQUAL(p.kv.token_bytes, cases[i].kv_token_bytes);
    }
}

static void the_rank_with_the_least_room_decides_the_blocks(void) {
    sp_model_desc d = llama_8b();
    sp_plan p, q;
    sp_plan_request r = request(&d, 10 * GIB);
    const int32_t uneven[] = {8, 24};
    r.pp = 2;
    r.max_num_seqs = 4096;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    CU_ASSERT(p.stages[0].n_layers == 16 && p.stages[1].n_layers == 16);
    refused_with_layers(&r, uneven);
    r.memory.available_bytes = 16 * GIB;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    r.pp_layers = uneven;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&q, &r, NULL), SP_OK);
    CU_ASSERT(q.n_blocks < p.n_blocks && q.stages[1].layer_first == 8);
    CU_ASSERT(q.most_stage == 1 && q.kv.n_layers == 24);
    CU_ASSERT_EQUAL(q.total_bytes, q.packed_bytes + q.vector_bytes + q.scratch_bytes + q.kv_bytes);
    CU_ASSERT(q.total_bytes <= q.limit_bytes);
}

static void only_the_ends_hold_what_only_they_need(void) {
    sp_model_desc d = llama_8b();
    sp_plan p;
    sp_plan_rank k;
    sp_plan_request r = request(&d, 64 * GIB);
    r.tp = 2;
    r.pp = 3;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    const uint64_t V = 128256, R = 16, E = 4096, T = 512;
    sp_plan_rank_of(&k, &p, &r, 0, 1);
    CU_ASSERT(k.scratch.last == 0 && k.scratch.logits == 0 && k.scratch.logits_part == 0);
    CU_ASSERT_EQUAL(k.scratch.ids, 2 * T);
    sp_plan_rank_of(&k, &p, &r, 1, 0);
    CU_ASSERT(k.scratch.last == 0 && k.scratch.logits == 0 && k.scratch.ids == 0);
    CU_ASSERT_EQUAL(k.n_params,
                    (uint64_t)p.stages[1].n_layers * (E * 4096 + E * 1024 + 3 * E * 7168 + 2 * E));
    sp_plan_rank_of(&k, &p, &r, 2, 0);
    CU_ASSERT(k.scratch.last == 2 * R * E && k.scratch.logits == R * V);
    CU_ASSERT_EQUAL(k.scratch.logits_part, R * V / 2);
    sp_plan_rank_of(&k, &p, &r, 2, 1);
    CU_ASSERT(k.scratch.logits == 0 && k.scratch.logits_part == R * V / 2);
    /* A tied embedding lies on both ends. */
    d.has_tie_key = d.tie_embeddings = true;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &r, NULL), SP_OK);
    uint64_t sum = params_of_all(&p, &r);
    CU_ASSERT_EQUAL(sum, 8030261248);
}

static void the_largest_numbers_do_not_wrap(void) {
    sp_model_desc d = llama_8b();
    d.hidden = 1 << 20;
    d.n_layers = 4096;
    d.intermediate = d.vocab = 1 << 24;
    d.n_heads = d.n_kv_heads = 4096;
    d.head_dim = 512;
    d.max_positions = 1 << 27;
    sp_plan_request r = request(&d, (uint64_t)1 << 62);
    r.max_model_len = 0;
    r.max_num_seqs = SP_PLAN_SEQS_MAX;
    r.max_num_batched_tokens = SP_PLAN_BATCH_TOKENS_MAX;
    r.block_tokens = 128;
    r.kv_dtype = SP_DTYPE_F32;
    refused(&r, SP_E_LIMIT, "max_model_len 134217728 needs");
    r.memory.available_bytes = GIB;
    refused(&r, SP_E_LIMIT, "weights need");
}

static void a_block_is_layers_of_k_and_v_and_a_trailer(void) {
    sp_kv_layout l = sp_kv_layout_of(3, 2, 8, 16, SP_DTYPE_F32);
    CU_ASSERT_EQUAL(l.layer_bytes, 2 * 2 * 16 * 8 * 4);
    CU_ASSERT_EQUAL(sp_kv_layer_offset(&l, 0), 0);
    CU_ASSERT_EQUAL(sp_kv_layer_offset(&l, 2), 2 * l.layer_bytes);
    CU_ASSERT_EQUAL(l.trailer_offset, 3 * l.layer_bytes);
    CU_ASSERT_EQUAL(l.block_bytes, 3 * l.layer_bytes + 64);
    CU_ASSERT_EQUAL(l.token_bytes, 3 * 2 * 2 * 8 * 4);
    l = sp_kv_layout_of(1, 1, 2, 9, SP_DTYPE_F16); /* 72 bytes: padded, so that blocks align */
    CU_ASSERT_EQUAL(l.layer_bytes, 72);
    CU_ASSERT_EQUAL(l.trailer_offset, 128);
    CU_ASSERT_EQUAL(l.block_bytes, 192);
}

static void cache_types_are_known_by_their_words(void) {
    const struct {
        const char *word;
        sp_dtype dtype;
    } good[] = {{"auto", SP_DTYPE_F32},     {"f32", SP_DTYPE_F32},     {"float32", SP_DTYPE_F32},
                {"f16", SP_DTYPE_F16},      {"float16", SP_DTYPE_F16}, {"bf16", SP_DTYPE_BF16},
                {"bfloat16", SP_DTYPE_BF16}};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        sp_dtype t = SP_DTYPE_BOOL;
        CU_ASSERT_EQUAL(sp_kv_dtype_parse(good[i].word, &t, NULL), SP_OK);
        CU_ASSERT_EQUAL(t, good[i].dtype);
    }
    static const char *const later[] = {"fp8", "fp8_e4m3", "fp8_e5m2", "int8"};
    sp_err err = {0};
    sp_dtype t;
    for (size_t i = 0; i < SP_LEN(later); i++) {
        CU_ASSERT_EQUAL(sp_kv_dtype_parse(later[i], &t, &err), SP_E_UNSUPPORTED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, later[i]));
    }
    CU_ASSERT_EQUAL(sp_kv_dtype_parse("f64", &t, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'f64', want auto, f32, f16 or bf16"));
}

/* ---- memory of a machine ---- */

static void put(const char *root, const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0755);
        *p = '/';
    }
    sp_tiny_put(root, path + 1, text, strlen(text));
}

static char *machine(const char *cgroup) {
    char *root = sp_tiny_folder();
    put(root, "/proc/meminfo",
        "MemTotal:       32000000 kB\nMemFree:  100 kB\nMemAvailable:   16000000 kB\n");
    if (cgroup) put(root, "/proc/self/cgroup", cgroup);
    return root;
}

static sp_memory memory_of(char *root) {
    sp_memory m = {0};
    CU_ASSERT_EQUAL(sp_memory_read(&m, root, NULL), SP_OK);
    CU_ASSERT_EQUAL(m.available_bytes, 16000000ull * 1024);
    sp_tiny_remove(root);
    return m;
}

static void without_cgroups_only_the_machine_counts(void) {
    sp_memory m = memory_of(machine(NULL));
    CU_ASSERT_EQUAL(m.cgroup_limit_bytes, UINT64_MAX);
    CU_ASSERT_EQUAL(m.cgroup_left_bytes, UINT64_MAX);
    m = memory_of(machine("0::/user.slice\n"));
    CU_ASSERT_EQUAL(m.cgroup_left_bytes, UINT64_MAX);
    char *root = sp_tiny_folder();
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_memory_read(&m, root, &err), SP_E_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "meminfo"));
    sp_tiny_remove(root);
}

static void the_least_limit_of_a_v2_group_and_its_parents_counts(void) {
    char *root = machine("0::/a/b/c\n");
    put(root, "/sys/fs/cgroup/a/memory.max", "8000000\n");
    put(root, "/sys/fs/cgroup/a/memory.current", "3000000\n");
    put(root, "/sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 1000000\nx 1\n");
    put(root, "/sys/fs/cgroup/a/b/memory.max", "max\n");
    put(root, "/sys/fs/cgroup/a/b/c/memory.max", "7000000\n");
    put(root, "/sys/fs/cgroup/a/b/c/memory.current", "500000\n");
    sp_memory m = memory_of(root);
    CU_ASSERT_EQUAL(m.cgroup_limit_bytes, 7000000);
    CU_ASSERT_EQUAL(m.cgroup_left_bytes, 6000000); /* 8 - (3 - 1) */
}

static void a_container_sees_its_v1_limit_at_the_root_of_the_mount(void) {
    char *root = machine("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n");
    put(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096000\n");
    put(root, "/sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000\n");
    put(root, "/sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 2000000\n");
    sp_memory m = memory_of(root);
    CU_ASSERT_EQUAL(m.cgroup_limit_bytes, 4096000);
    CU_ASSERT_EQUAL(m.cgroup_left_bytes, 1096000);
    root = machine("4:memory:/\n");
    put(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    CU_ASSERT_EQUAL(memory_of(root).cgroup_limit_bytes, UINT64_MAX);
    root = machine("4:memory:/../../escape\n");
    put(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "77\n");
    put(root, "/sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n");
    m = memory_of(root);
    CU_ASSERT_EQUAL(m.cgroup_limit_bytes, 77);
    CU_ASSERT_EQUAL(m.cgroup_left_bytes, 0);
}

static void this_machine_can_be_read(void) {
    sp_memory m = {0};
    CU_ASSERT_EQUAL(sp_memory_read(&m, "", NULL), SP_OK);
    CU_ASSERT(m.available_bytes > 0);
    CU_ASSERT(m.cgroup_left_bytes <= m.cgroup_limit_bytes);
}

SP_TEST_MAIN("plan", SP_TEST(known_models_have_their_known_sizes),
             SP_TEST(the_parts_add_up_and_one_rank_holds_all),
             SP_TEST(types_come_from_the_tensors_when_they_are_there),
             SP_TEST(the_cache_takes_what_is_wished_or_two_fifths_of_the_rest),
             SP_TEST(what_does_not_fit_is_told_with_what_would),
             SP_TEST(the_cgroup_and_the_other_ranks_share_the_memory),
             SP_TEST(a_wish_for_blocks_is_kept_or_refused),
             SP_TEST(a_wish_out_of_range_is_refused_by_its_option),
             SP_TEST(ranks_of_a_big_model_hold_it_once),
             SP_TEST(the_rank_with_the_least_room_decides_the_blocks),
             SP_TEST(only_the_ends_hold_what_only_they_need),
             SP_TEST(the_largest_numbers_do_not_wrap),
             SP_TEST(a_block_is_layers_of_k_and_v_and_a_trailer),
             SP_TEST(cache_types_are_known_by_their_words),
             SP_TEST(without_cgroups_only_the_machine_counts),
             SP_TEST(the_least_limit_of_a_v2_group_and_its_parents_counts),
             SP_TEST(a_container_sees_its_v1_limit_at_the_root_of_the_mount),
             SP_TEST(this_machine_can_be_read))
