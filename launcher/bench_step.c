#include "launcher/bench_step.h"

#include "launcher/model.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/gen/sampler.h"
#include "runtime/model/forward.h"

#include <stdlib.h>
#include <string.h>

#define PROMPT_TOKENS 32
#define WARM_STEPS 8

typedef struct bench {
    const sp_config *config;
    sp_model model;
    sp_dev dev;
    sp_model_dir *dir;
    sp_forward *stage;
    sp_sampler *sampler;
    /* of the batch: S sequences, each with a table of its own blocks */
    int32_t n, blocks_each;
    int32_t *blocks, *ids, *rows;
    sp_seq_rows *seqs;
    double *step_ms;
} bench;

static sp_status take_batch(bench *b, sp_err *err) {
    const sp_config *c = b->config;
    int64_t tokens = PROMPT_TOKENS + WARM_STEPS + c->steps;
    if (tokens > b->model.max_model_len)
        return SP_FAIL(err, SP_E_INVALID, "%lld steps do not fit the context of %d tokens",
                       (long long)c->steps, b->model.max_model_len);
    b->n = (int32_t)c->batch;
    b->blocks_each = (int32_t)((tokens + c->block_size - 1) / c->block_size);
    size_t n = (size_t)b->n;
    b->blocks = sp_alloc(n * (size_t)b->blocks_each * sizeof *b->blocks);
    b->ids = sp_alloc(n * sizeof *b->ids);
    b->rows = sp_alloc(n * sizeof *b->rows);
    b->seqs = sp_alloc(n * sizeof *b->seqs);
    b->step_ms = sp_alloc((size_t)c->steps * sizeof *b->step_ms);
    for (int32_t i = 0; i < b->n * b->blocks_each; i++) b->blocks[i] = i;
    return SP_OK;
}

static sp_status open_bench(bench *b, sp_err *err) {
    const sp_config *c = b->config;
    sp_dev_config dc = {.backend = c->backend,
                        .n_threads = (int)c->threads,
                        .pin_threads = c->pin,
                        .fast = strcmp(c->numerics, "fast") == 0};
    if (c->tp * c->pp != 1)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "bench step times one rank without neighbours, got tp %d x pp %d",
                       (int)c->tp, (int)c->pp);
    SP_TRY(sp_model_prove(&b->model, c, err));
    SP_TRY(take_batch(b, err));
    SP_TRY(sp_dev_open(&b->dev, &dc, err));
    SP_TRY(sp_model_dir_open(&b->dir, b->model.dir, err));
    sp_forward_config sc = {
        .max_tokens = b->n > PROMPT_TOKENS ? b->n : PROMPT_TOKENS,
        .max_rows = b->n,
        .max_model_len = b->model.max_model_len,
        .block_tokens = (int32_t)c->block_size,
        .n_blocks = b->n * b->blocks_each,
        .kv_dtype = b->model.pool[0].plan.kv.dtype,
    };
    SP_TRY(sp_part_of(&sc.part, &b->model.desc, b->model.arch, 1, 1, NULL, 0, 0, err));
    SP_TRY(sp_forward_open(&b->stage, &b->dev, b->dir, &b->model.desc, b->model.arch, &sc, NULL,
                           NULL, err));
    b->sampler = sp_sampler_create(b->model.desc.vocab);
    return SP_OK;
}

static void close_bench(bench *b) {
    sp_sampler_destroy(b->sampler);
    sp_forward_close(b->stage);
    sp_model_dir_close(b->dir);
    if (b->dev.ops) sp_dev_close(&b->dev);
    sp_model_fini(&b->model);
    sp_free(b->blocks);
    sp_free(b->ids);
    sp_free(b->rows);
    sp_free(b->seqs);
    sp_free(b->step_ms);
}

/* Prompts differ from sequence to sequence, so that no row is another's copy. */
static sp_status prefill(bench *b, sp_err *err) {
    int32_t ids[PROMPT_TOKENS];
    const float *logits;
    for (int32_t s = 0; s < b->n; s++) {
        for (int32_t t = 0; t < PROMPT_TOKENS; t++)
            ids[t] = (int32_t)(((uint32_t)(s * PROMPT_TOKENS + t) * 2654435761u >> 8) %
                               (uint32_t)b->model.desc.vocab);
        sp_seq_rows seq = {0, PROMPT_TOKENS, 0, b->blocks + (size_t)s * (size_t)b->blocks_each};
        sp_batch batch = {.ids = ids, .n_tokens = PROMPT_TOKENS, .seqs = &seq, .n_seqs = 1};
        SP_TRY(sp_forward_run(b->stage, &batch, &logits, err));
        b->ids[s] = ids[0];
    }
    return SP_OK;
}

static sp_status decode_step(bench *b, int32_t position, sp_err *err) {
    for (int32_t s = 0; s < b->n; s++) {
        b->rows[s] = s;
        b->seqs[s] = (sp_seq_rows){s, 1, position, b->blocks + (size_t)s * (size_t)b->blocks_each};
    }
    sp_batch batch = {b->ids, b->n, b->seqs, b->n, b->rows, b->n};
    const float *logits;
    SP_TRY(sp_forward_run(b->stage, &batch, &logits, err));
    sp_gen_params greedy = SP_GEN_PARAMS_DEFAULT;
    greedy.temperature = 0;
    for (int32_t s = 0; s < b->n; s++) {
        sp_sample_input in = {.logits = logits + (size_t)s * (size_t)b->model.desc.vocab,
                              .n_vocab = b->model.desc.vocab,
                              .params = &greedy,
                              .position = position + 1};
        sp_sample sample;
        if (sp_sampler_draw(b->sampler, &in, &sample) != SP_OK)
            return SP_FAIL(err, SP_E_INTERNAL, "no token can be drawn at position %d", position);
        b->ids[s] = sample.id;
    }
    return SP_OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static sp_status run_bench(bench *b, sp_bench_step_figures *f, sp_err *err) {
    SP_TRY(prefill(b, err));
    int32_t position = PROMPT_TOKENS;
    for (int i = 0; i < WARM_STEPS; i++) SP_TRY(decode_step(b, position++, err));
    int64_t begin = sp_now_ns();
    for (int64_t i = 0; i < b->config->steps; i++) {
        int64_t at = sp_now_ns();
        SP_TRY(decode_step(b, position++, err));
        b->step_ms[i] = (double)(sp_now_ns() - at) / 1e6;
    }
    double wall_s = (double)(sp_now_ns() - begin) / 1e9;
    qsort(b->step_ms, (size_t)b->config->steps, sizeof *b->step_ms, by_value);
    double median = b->step_ms[b->config->steps / 2];
    *f = (sp_bench_step_figures){.batch = b->n,
                                 .steps = b->config->steps,
                                 .step_ms_p50 = median,
                                 .step_ms_min = b->step_ms[0],
                                 .tok_per_s = (double)b->config->steps * b->n / wall_s,
                                 .tok_per_s_p50 = 1e3 * b->n / median};
    snprintf(f->device, sizeof f->device, "%s", b->dev.detail);
    return SP_OK;
}

sp_status sp_bench_step_run(sp_bench_step_figures *out, const sp_config *config, sp_err *err) {
    bench b = {.config = config};
    sp_status st = open_bench(&b, err);
    if (st == SP_OK) st = run_bench(&b, out, err);
    close_bench(&b);
    return st;
}

int sp_bench_step(int argc, char **argv) {
    sp_config config;
    sp_err err = {0};
    bool help;
    if (sp_config_parse(&config, SP_CMD_STEP, argc, argv, &help, &err) != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_USAGE;
    }
    if (help) {
        puts("usage: superpod bench step --model DIR [options]\n");
        sp_config_help(SP_CMD_STEP, stdout);
        return SP_EXIT_OK;
    }
    sp_log_level level = SP_LOG_WARN;
    if (sp_log_parse_level(config.log_level, &level) == SP_OK) sp_log_setup("bench", level, false);
    sp_bench_step_figures f;
    sp_status st = sp_bench_step_run(&f, &config, &err);
    if (st != SP_OK)
        fprintf(stderr, "superpod: %s\n", err.text);
    else
        printf("{\"backend\":\"%s\",\"batch\":%d,\"steps\":%lld,\"step_ms_p50\":%.4f,"
               "\"step_ms_min\":%.4f,\"tok_per_s\":%.1f,\"tok_per_s_p50\":%.1f}\n",
               f.device, f.batch, (long long)f.steps, f.step_ms_p50, f.step_ms_min, f.tok_per_s,
               f.tok_per_s_p50);
    sp_config_fini(&config);
    return st == SP_OK ? SP_EXIT_OK : SP_EXIT_CONFIG;
}
