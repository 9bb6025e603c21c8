/* Covers runtime/model/part.c: stages, slices, segments, and what is refused with words. */
#include "runtime/model/part.h"

#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static sp_model_desc llama(int32_t E, int32_t n_layers, int32_t F, int32_t V, int32_t H,
                           int32_t K) {
    return (sp_model_desc){
        .architecture = "LlamaForCausalLM",
        .hidden = E,
        .n_layers = n_layers,
        .intermediate = F,
        .vocab = V,
        .n_heads = H,
        .n_kv_heads = K,
        .head_dim = E / H,
        .max_positions = 4096,
        .act = "silu",
        .norm_eps = 1e-5,
        .rope = {.theta = 10000, .partial_rotary_factor = 1, .type_name = "default"},
        .dtype = SP_DTYPE_BF16,
    };
}

static const sp_arch *arch_of(const sp_model_desc *d) {
    const sp_arch *a = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&a, d, NULL), SP_OK);
    return a;
}

static void expect_layers(const sp_model_desc *d, int32_t pp, const int32_t *want) {
    sp_plan_stage s[SP_PLAN_PP_MAX];
    CU_ASSERT_EQUAL_FATAL(sp_part_stages(s, d, arch_of(d), pp, NULL, NULL), SP_OK);
    int32_t first = 0;
    for (int32_t i = 0; i < pp; i++) {
        if (s[i].n_layers != want[i])
            fprintf(stderr, "    stage %d of %d has %d layers, want %d\n", i, pp, s[i].n_layers,
                    want[i]);
        CU_ASSERT_EQUAL(s[i].n_layers, want[i]);
        CU_ASSERT_EQUAL(s[i].layer_first, first);
        CU_ASSERT_EQUAL(s[i].has_embed, i == 0);
        CU_ASSERT_EQUAL(s[i].has_head, i == pp - 1);
        first += s[i].n_layers;
    }
    CU_ASSERT_EQUAL(first, d->n_layers);
}

static void stages_weigh_about_the_same_with_the_ends_counted(void) {
    sp_model_desc d = llama(16384, 126, 53248, 128256, 128, 8); /* 405B */
    expect_layers(&d, 1, (const int32_t[]){126});
    expect_layers(&d, 2, (const int32_t[]){63, 63});
    expect_layers(&d, 4, (const int32_t[]){31, 32, 32, 31});
    d = llama(2048, 16, 8192, 128256, 32, 8); /* 1B: the vocabulary weighs 4 layers */
    expect_layers(&d, 2, (const int32_t[]){8, 8});
    expect_layers(&d, 4, (const int32_t[]){2, 6, 6, 2});
    d = llama(8192, 80, 28672, 128256, 64, 8); /* 70B */
    expect_layers(&d, 4, (const int32_t[]){19, 21, 21, 19});
    expect_layers(&d, 8, (const int32_t[]){9, 11, 11, 10, 10, 10, 10, 9});
    d = llama(64, 4, 128, 1 << 20, 8, 8); /* nearly all of it is vocabulary */
    expect_layers(&d, 3, (const int32_t[]){1, 2, 1});
    expect_layers(&d, 4, (const int32_t[]){1, 1, 1, 1});
}

static void no_other_cut_has_a_lighter_heaviest_stage(void) {
    for (int32_t n = 2; n <= 9; n++)
        for (int32_t V = 100; V < 4000; V += 777) {
            sp_model_desc d = llama(64, n, 128, V, 8, 8);
            const int64_t layer = 64 * 64 * 4 + 3 * 64 * 128 + 128, end = V * 64;
            sp_plan_stage s[2];
            CU_ASSERT_EQUAL(sp_part_stages(s, &d, arch_of(&d), 2, NULL, NULL), SP_OK);
            int64_t best = INT64_MAX, a, b;
            for (int32_t k = 1; k < n; k++) {
                a = k * layer + end;
                b = (n - k) * layer + end + 64;
                if ((a > b ? a : b) < best) best = a > b ? a : b;
            }
            a = s[0].n_layers * layer + end;
            b = s[1].n_layers * layer + end + 64;
            CU_ASSERT_EQUAL(a > b ? a : b, best);
        }
}

static void refused(const sp_model_desc *d, int32_t tp, int32_t pp, const int32_t *layers,
                    const char *words) {
    sp_part p = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_part_of(&p, d, arch_of(d), tp, pp, layers, 0, 0, &err), SP_E_INVALID);
    if (!strstr(err.text, words)) fprintf(stderr, "    want '%s', got: %s\n", words, err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
    CU_ASSERT_EQUAL(p.tp, 0);
}

static void layers_may_be_forced_and_must_add_up(void) {
    sp_model_desc d = llama(64, 7, 128, 320, 8, 4);
    sp_part p;
    const int32_t forced[] = {1, 5, 1};
    CU_ASSERT_EQUAL(sp_part_of(&p, &d, arch_of(&d), 2, 3, forced, 1, 1, NULL), SP_OK);
    CU_ASSERT(p.stage.layer_first == 1 && p.stage.n_layers == 5);
    CU_ASSERT(!p.stage.has_embed && !p.stage.has_head && p.stage_index == 1 && p.tp_rank == 1);
    refused(&d, 1, 3, (const int32_t[]){1, 4, 1}, "add up to 6 layers, the model has 7");
    refused(&d, 1, 3, (const int32_t[]){8, 0, -1}, "gives stage 1 0 layers, want 1 or more");
    refused(&d, 1, 3, (const int32_t[]){INT32_MAX, INT32_MAX, 9}, "add up to 4294967303 layers");
    refused(&d, 1, 8, NULL, "--pipeline-parallel-size is 8, want 1 to 7: the model has 7 layers");
    refused(&d, 1, 0, NULL, "--pipeline-parallel-size is 0");
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_part_of(&p, &d, arch_of(&d), 2, 3, NULL, 3, 0, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_part_of(&p, &d, arch_of(&d), 2, 3, NULL, 0, 2, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rank 2 of stage 0, want below 2 and 3"));
}

static void a_list_of_layers_is_parsed_strictly(void) {
    int32_t out[4] = {0};
    CU_ASSERT_EQUAL(sp_pp_layers_parse("30,32,32,32", 4, out, NULL), SP_OK);
    CU_ASSERT(out[0] == 30 && out[1] == 32 && out[3] == 32);
    CU_ASSERT_EQUAL(sp_pp_layers_parse("7", 1, out, NULL), SP_OK);
    CU_ASSERT_EQUAL(out[0], 7);
    static const char *const bad[] = {"",
                                      "1",
                                      "1,2,3",
                                      "1,",
                                      ",1",
                                      "1,0",
                                      "1,-2",
                                      "1,x",
                                      "1 2",
                                      "1,,2",
                                      "1, 2",
                                      "1,2147483648",
                                      "99999999999999999999,1"};
    out[0] = -5;
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_pp_layers_parse(bad[i], 2, out, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "want 2 numbers above 0"));
    }
    CU_ASSERT_EQUAL(sp_pp_layers_parse(NULL, 2, out, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(out[0], -5);
}

/* Slices lie side by side, cover everything, and query heads find their KV head here. */
static void check_slices(const sp_model_desc *d, int32_t tp) {
    sp_plan_slice s[SP_PLAN_TP_MAX];
    CU_ASSERT_EQUAL_FATAL(sp_part_slices(s, d, tp, NULL), SP_OK);
    int32_t heads = 0, ffn = 0, vocab = 0;
    const int32_t group = d->n_heads / d->n_kv_heads;
    for (int32_t i = 0; i < tp; i++) {
        CU_ASSERT(s[i].head_first == heads && s[i].ffn_first == ffn && s[i].vocab_first == vocab);
        CU_ASSERT(s[i].n_heads > 0 && s[i].n_ffn > 0 && s[i].n_vocab > 0 && s[i].n_kv_heads > 0);
        CU_ASSERT_EQUAL(s[i].n_heads % s[i].n_kv_heads, 0);
        for (int32_t h = 0; h < s[i].n_heads; h++) {
            const int32_t here = h / (s[i].n_heads / s[i].n_kv_heads);
            CU_ASSERT_EQUAL(s[i].kv_head_first + here, (s[i].head_first + h) / group);
        }
        for (int32_t v = 0; v < s[i].n_vocab; v++)
            CU_ASSERT_EQUAL(sp_part_owner(d->vocab, tp, s[i].vocab_first + v), i);
        heads += s[i].n_heads;
        ffn += s[i].n_ffn;
        vocab += s[i].n_vocab;
    }
    CU_ASSERT(heads == d->n_heads && ffn == d->intermediate && vocab == d->vocab);
}

static void slices_cover_the_model_and_keep_query_heads_with_their_kv_heads(void) {
    const struct {
        int32_t F, V, H, K, tps[8];
    } cases[] = {{128, 320, 8, 8, {1, 2, 4, 8}},     {344, 317, 14, 2, {1, 2, 14}},
                 {347, 1001, 8, 2, {1, 2, 4, 8}},    {131, 64, 8, 1, {1, 2, 4, 8}},
                 {53248, 1283, 128, 8, {8, 16, 64}}, {96, 97, 12, 4, {2, 4, 12}}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        sp_model_desc d = llama(cases[i].H * 8, 2, cases[i].F, cases[i].V, cases[i].H, cases[i].K);
        for (int k = 0; k < 8 && cases[i].tps[k]; k++) check_slices(&d, cases[i].tps[k]);
    }
}

static void segments_of_the_ranks_are_the_segments_of_the_whole(void) {
    sp_model_desc d = llama(112, 2, 347, 317, 8, 2);
    d.head_dim = 10;
    const sp_segments o = sp_segments_of(8, 10), down = sp_segments_of(347, 1);
    for (int32_t tp = 1; tp <= 8; tp *= 2)
        for (int32_t r = 0; r < tp; r++) {
            sp_part p;
            CU_ASSERT_EQUAL_FATAL(sp_part_of(&p, &d, arch_of(&d), tp, 1, NULL, 0, r, NULL), SP_OK);
            CU_ASSERT(p.o_segments.n == 8 / tp && p.down_segments.n == 8 / tp);
            for (int32_t i = 0; i <= 8 / tp; i++) {
                const int32_t at = r * 8 / tp + i;
                CU_ASSERT_EQUAL(p.slice.head_first * 10 + p.o_segments.edge[i], o.edge[at]);
                CU_ASSERT_EQUAL(p.slice.ffn_first + p.down_segments.edge[i], down.edge[at]);
            }
        }
    sp_part p;
    d = llama(112, 2, 344, 317, 14, 2);
    CU_ASSERT_EQUAL_FATAL(sp_part_of(&p, &d, arch_of(&d), 14, 1, NULL, 0, 5, NULL), SP_OK);
    CU_ASSERT(!sp_part_is_exact(14) && p.o_segments.n == 8 && p.o_segments.edge[8] == 8);
    CU_ASSERT(p.down_segments.n == 8 && p.down_segments.edge[8] == p.slice.n_ffn);
}

static void a_degree_that_does_not_divide_is_refused_with_those_that_do(void) {
    sp_model_desc d = llama(112, 3, 344, 317, 14, 2);
    refused(&d, 4, 1, NULL,
            "--tensor-parallel-size 4 does not divide the 14 attention heads; this model works "
            "with 1, 2, 14");
    refused(&d, 7, 1, NULL,
            "7 neither divides the 2 KV heads nor is a multiple of them; this model works with 1, "
            "2, 14");
    refused(&d, 0, 1, NULL, "--tensor-parallel-size is 0, want 1 to 64");
    refused(&d, 65, 1, NULL, "--tensor-parallel-size is 65, want 1 to 64");
    d = llama(64, 2, 6, 320, 8, 8);
    refused(&d, 8, 1, NULL, "leave a rank with nothing; this model works with 1, 2, 4");
}

SP_TEST_MAIN("runtime/model/part", SP_TEST(stages_weigh_about_the_same_with_the_ends_counted),
             SP_TEST(no_other_cut_has_a_lighter_heaviest_stage),
             SP_TEST(layers_may_be_forced_and_must_add_up),
             SP_TEST(a_list_of_layers_is_parsed_strictly),
             SP_TEST(slices_cover_the_model_and_keep_query_heads_with_their_kv_heads),
             SP_TEST(segments_of_the_ranks_are_the_segments_of_the_whole),
             SP_TEST(a_degree_that_does_not_divide_is_refused_with_those_that_do))
