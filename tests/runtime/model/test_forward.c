/* Covers runtime/model/{weights,forward,attn,ffn}.c: the goldens, and that cutting a prompt into
 * chunks, its block size, its neighbours in the batch and the backend change no bit. */
#include "runtime/model/forward.h"

#include "kernels/dev.h"
#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/gen/sampler.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 256
#define MAX_LEN 512
#define GOLDENS 4
static const char *const golden_dirs[GOLDENS] = {
    "tests/data/goldens/llama2", "tests/data/goldens/llama3.1", "tests/data/goldens/llama-bias",
    "configs/podling"};

typedef struct fixture {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
    sp_dev dev;
    sp_forward *stage;
} fixture;

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static void open_fixture(fixture *f, const char *dir, const char *backend, int threads,
                         int block_tokens) {
    sp_err err = {0};
    *f = (fixture){0};
    must(sp_model_desc_load(&f->desc, dir, &err), &err);
    must(sp_arch_find(&f->arch, &f->desc, &err), &err);
    must(sp_model_dir_open(&f->dir, dir, &err), &err);
    sp_dev_config dc = {.backend = backend, .n_threads = threads};
    must(sp_dev_open(&f->dev, &dc, &err), &err);
    sp_forward_config sc = {.max_tokens = MAX_TOKENS,
                            .max_rows = MAX_TOKENS,
                            .max_model_len = MAX_LEN,
                            .block_tokens = block_tokens,
                            .n_blocks = 2 * MAX_LEN / block_tokens,
                            .kv_dtype = SP_DTYPE_F32};
    must(sp_part_of(&sc.part, &f->desc, f->arch, 1, 1, NULL, 0, 0, &err), &err);
    must(sp_forward_open(&f->stage, &f->dev, f->dir, &f->desc, f->arch, &sc, NULL, NULL, &err),
         &err);
    /* What a freed block holds is never read: NaN everywhere would show it. */
    memset(f->stage->kv, 0xff, f->stage->kv_bytes);
}

static void close_fixture(fixture *f) {
    sp_forward_close(f->stage);
    sp_dev_close(&f->dev);
    sp_model_dir_close(f->dir);
}

/* Runs `ids` in chunks of `chunk` over blocks that are scattered; logits [n, V] to `out`. With a
 * neighbour, every step also carries a chunk of another sequence before ours. */
static void run(fixture *f, const int32_t *ids, int32_t n, int32_t chunk, bool neighbour,
                float *out) {
    int32_t B = f->stage->config.block_tokens, V = f->desc.vocab;
    int32_t *mine = sp_alloc(MAX_LEN * sizeof *mine), *theirs = sp_alloc(MAX_LEN * sizeof *theirs);
    int32_t *rows = sp_alloc(MAX_TOKENS * sizeof *rows), *all = sp_alloc(MAX_TOKENS * sizeof *all);
    int32_t n_blocks = f->stage->config.n_blocks;
    for (int32_t i = 0; i < n_blocks / 2; i++) {
        mine[i] = n_blocks - 1 - 2 * i; /* every second one, backwards */
        theirs[i] = 2 * i;
    }
    (void)B;
    for (int32_t at = 0; at < n; at += chunk) {
        int32_t m = at + chunk > n ? n - at : chunk, before = 0;
        sp_seq_rows seqs[2];
        int n_seqs = 0;
        if (neighbour) {
            before = m + 3 > MAX_TOKENS - m ? 1 : 3;
            for (int32_t i = 0; i < before; i++) all[i] = (ids[0] + 7 * i + at) % V;
            seqs[n_seqs++] = (sp_seq_rows){0, before, at, theirs};
        }
        memcpy(all + before, ids + at, (size_t)m * sizeof *all);
        seqs[n_seqs++] = (sp_seq_rows){before, m, at, mine};
        for (int32_t i = 0; i < m; i++) rows[i] = before + i;
        sp_batch b = {all, before + m, seqs, n_seqs, rows, m};
        const float *logits;
        sp_err err = {0};
        must(sp_forward_run(f->stage, &b, &logits, &err), &err);
        memcpy(out + (size_t)at * (size_t)V, logits, (size_t)m * (size_t)V * sizeof *out);
    }
    sp_free(mine);
    sp_free(theirs);
    sp_free(rows);
    sp_free(all);
}

typedef struct golden {
    sp_json *doc;
    float *logits;
    char text_path[128], logits_path[128];
} golden;

static void read_golden(golden *g, const char *dir) {
    bool podling = strstr(dir, "podling") != NULL;
    snprintf(g->text_path, sizeof g->text_path, "%s",
             podling ? "tests/data/podling_golden.json" : dir);
    if (!podling) snprintf(g->text_path, sizeof g->text_path, "%s/golden.json", dir);
    snprintf(g->logits_path, sizeof g->logits_path, "%s",
             podling ? "tests/data/podling_logits.f32" : dir);
    if (!podling) snprintf(g->logits_path, sizeof g->logits_path, "%s/logits.f32", dir);
    size_t len;
    char *text = sp_test_read(g->text_path, &len);
    sp_err err = {0};
    must(sp_json_parse(&g->doc, (sp_slice){text, len}, 0, &err), &err);
    free(text);
    g->logits = (float *)(void *)sp_test_read(g->logits_path, NULL);
}

static void free_golden(golden *g) {
    sp_json_free(g->doc);
    free(g->logits);
}

static int32_t read_ids(const sp_json_node *array, int32_t *ids) {
    int32_t n = 0;
    for (const sp_json_node *v = sp_json_first(array); v; v = sp_json_next(v))
        ids[n++] = (int32_t)sp_json_int(v);
    return n;
}

static void the_logits_of_every_golden_are_within_2e_4(void) {
    for (int i = 0; i < GOLDENS; i++) {
        fixture f;
        golden g;
        open_fixture(&f, golden_dirs[i], "auto", 1, 16);
        read_golden(&g, golden_dirs[i]);
        const float *want = g.logits;
        float *got = sp_alloc((size_t)MAX_LEN * (size_t)f.desc.vocab * sizeof *got);
        const sp_json_node *seqs = sp_json_find(sp_json_root(g.doc), "sequences");
        double worst = 0;
        for (const sp_json_node *s = sp_json_first(seqs); s; s = sp_json_next(s)) {
            int32_t ids[MAX_LEN], n = read_ids(s, ids);
            run(&f, ids, n, 64, false, got);
            for (size_t k = 0; k < (size_t)n * (size_t)f.desc.vocab; k++) {
                double d = fabs((double)got[k] - (double)want[k]);
                if (!(d <= worst)) worst = d;
            }
            want += (size_t)n * (size_t)f.desc.vocab;
        }
        printf("  %s: greatest difference %.2e\n", golden_dirs[i], worst);
        CU_ASSERT(worst <= 2e-4);
        sp_free(got);
        free_golden(&g);
        close_fixture(&f);
    }
}

static int32_t argmax(const float *row, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static void greedy_tokens_of_every_golden_are_equal(void) {
    for (int i = 0; i + 1 < GOLDENS; i++) {
        fixture f;
        golden g;
        open_fixture(&f, golden_dirs[i], "auto", 2, 16);
        read_golden(&g, golden_dirs[i]);
        const sp_json_node *greedy = sp_json_find(sp_json_root(g.doc), "greedy");
        int32_t ids[MAX_LEN], want[MAX_LEN];
        int32_t n = read_ids(sp_json_find(greedy, "prompt"), ids);
        int32_t n_want = read_ids(sp_json_find(greedy, "tokens"), want);
        float *got = sp_alloc((size_t)MAX_LEN * (size_t)f.desc.vocab * sizeof *got);
        for (int32_t k = 0; k < n_want; k++, n++) {
            run(&f, ids, n, MAX_TOKENS, false, got);
            ids[n] = argmax(got + (size_t)(n - 1) * (size_t)f.desc.vocab, f.desc.vocab);
            CU_ASSERT_EQUAL(ids[n], want[k]);
        }
        sp_free(got);
        free_golden(&g);
        close_fixture(&f);
    }
}

/* The logits of one prompt under one way of computing them. */
static float *logits_of(const char *dir, const char *backend, int threads, int block, int chunk,
                        bool neighbour, const int32_t *ids, int32_t n, int32_t *vocab) {
    fixture f;
    open_fixture(&f, dir, backend, threads, block);
    *vocab = f.desc.vocab;
    float *out = sp_alloc((size_t)n * (size_t)f.desc.vocab * sizeof *out);
    run(&f, ids, n, chunk, neighbour, out);
    close_fixture(&f);
    return out;
}

static void no_way_of_computing_a_prompt_changes_a_bit(void) {
    static const struct {
        const char *backend;
        int threads, block, chunk;
        bool neighbour;
    } ways[] = {{"cpu", 1, 16, 1, false},     {"cpu", 2, 8, 7, false},
                {"cpu", 2, 32, 64, true},     {"cpu", 3, 128, 70, true},
                {"cpu", 2, 16, 1, true},      {"cpu-generic", 1, 16, 64, false},
                {"cpu-avx2", 2, 8, 13, true}, {"cpu-avx512", 2, 8, 13, true}};
    int32_t ids[90], vocab;
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 90; k++) ids[k] = (k * 37 + 11) % 300;
        float *want = logits_of(golden_dirs[i + 1], "ref", 1, 16, 90, false, ids, 90, &vocab);
        for (size_t w = 0; w < SP_LEN(ways); w++) {
            bool there = false;
            for (const char *const *b = sp_dev_backends(); *b; b++)
                there |= strcmp(*b, ways[w].backend) == 0;
            if (!there) continue;
            float *got =
                logits_of(golden_dirs[i + 1], ways[w].backend, ways[w].threads, ways[w].block,
                          ways[w].chunk, ways[w].neighbour, ids, 90, &vocab);
            CU_ASSERT_EQUAL(memcmp(got, want, 90 * (size_t)vocab * sizeof *got), 0);
            sp_free(got);
        }
        sp_free(want);
    }
}

static void a_step_allocates_nothing(void) {
    fixture f;
    open_fixture(&f, golden_dirs[0], "auto", 2, 16);
    int32_t id = 5, row = 0, blocks[MAX_LEN] = {0};
    sp_err err = {0};
    const float *logits;
    uint64_t before = 0;
    for (int pos = 0; pos < 8; pos++) {
        sp_seq_rows seq = {0, 1, pos, blocks};
        sp_batch b = {&id, 1, &seq, 1, &row, 1};
        if (pos == 2) before = sp_mem_count();
        must(sp_forward_run(f.stage, &b, &logits, &err), &err);
    }
    CU_ASSERT_EQUAL(sp_mem_count(), before);
    close_fixture(&f);
}

SP_TEST_MAIN("runtime/model/forward", SP_TEST(the_logits_of_every_golden_are_within_2e_4),
             SP_TEST(greedy_tokens_of_every_golden_are_equal),
             SP_TEST(no_way_of_computing_a_prompt_changes_a_bit), SP_TEST(a_step_allocates_nothing))
