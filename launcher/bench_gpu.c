#include "launcher/bench_gpu.h"

#include "launcher/bench_gpu_impl.h"
#include "launcher/bench_step.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/format/model_dir.h"
#include "runtime/model/arch.h"
#include "runtime/model/plan.h"

#include <stdio.h>
#include <string.h>

#define STEPS_MAX 4096
#define CONTEXT 1024 /* of decode steps: as short as the model allows would do */
#define BATCHES 4
#define NUMBER_BYTES 16

typedef struct options {
    const char *device, *model, *kv_dtype;
    int64_t steps;
    bool json;
} options;

typedef struct bench {
    options o;
    sp_gpu g;
    sp_bench_step_figures step[BATCHES];
    char step_why[BATCHES][240]; /* it was not run */
    int32_t batch[BATCHES];
    int n_steps;
} bench;

/* ---- shapes ---- */

/* A layer of a Llama of 8B parameters; for the emulated device one that takes no time. */
static const sp_gpu_shape large_shape = {.E = 4096,
                                         .H = 32,
                                         .K = 8,
                                         .D = 128,
                                         .F = 14336,
                                         .V = 128256,
                                         .rope_dims = 128,
                                         .act = SP_ACT_SILU,
                                         .dtype = SP_DTYPE_BF16};
static const sp_gpu_shape small_shape = {.E = 64,
                                         .H = 4,
                                         .K = 2,
                                         .D = 16,
                                         .F = 96,
                                         .V = 128,
                                         .rope_dims = 16,
                                         .act = SP_ACT_SILU,
                                         .dtype = SP_DTYPE_BF16};

static sp_status shape_of_dir(sp_gpu_shape *out, const char *dir, sp_err *err) {
    sp_model_desc d;
    const sp_arch *arch;
    sp_gpu_shape s = {0};
    SP_TRY(sp_model_desc_load(&d, dir, err));
    SP_TRY(sp_arch_find(&arch, &d, err));
    SP_TRY(sp_arch_act(&s.act, &d, err));
    if (d.dtype != SP_DTYPE_F32 && d.dtype != SP_DTYPE_F16 && d.dtype != SP_DTYPE_BF16)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "weights of type %s, want F32, F16 or BF16",
                       sp_dtype_name(d.dtype));
    s.E = d.hidden;
    s.H = d.n_heads;
    s.K = d.n_kv_heads;
    s.D = d.head_dim;
    s.F = d.intermediate;
    s.V = d.vocab;
    s.rope_dims = sp_arch_rope_dims(&d);
    s.dtype = d.dtype;
    *out = s;
    return SP_OK;
}

static sp_status read_shape(bench *b, sp_err *err) {
    sp_gpu_shape *s = &b->g.shape;
    char *dir = NULL;
    sp_status st = SP_OK;
    *s = b->g.emulated ? small_shape : large_shape;
    if (b->o.model) {
        st = sp_model_resolve(&dir, b->o.model, err);
        if (st == SP_OK) st = shape_of_dir(s, dir, err);
        sp_free(dir);
    }
    if (st == SP_OK) st = sp_kv_dtype_parse(b->o.kv_dtype, &s->kv_dtype, err);
    return st;
}

/* ---- the run ---- */

static sp_status measure(bench *b, sp_err *err) {
    sp_gpu *g = &b->g;
    const sp_dev_plugin *plugin;
    const sp_dev_config config = {.backend = b->o.device};
    SP_TRY(sp_dev_plugin_open(&plugin, b->o.device, err));
    SP_TRY(plugin->probe(&g->info, 0, err));
    g->meter = plugin->meter;
    SP_TRY(read_shape(b, err));
    SP_TRY(sp_dev_open(&g->dev, &config, err));
    sp_status st = sp_gpu_measure_ceilings(g, err);
    if (st == SP_OK) st = sp_gpu_measure_ops(g, err);
    sp_dev_close(&g->dev); /* its memory is the decode steps' */
    return st;
}

static sp_status context_of(const options *o, char out[NUMBER_BYTES], sp_err *err) {
    sp_model_desc d;
    char *dir;
    SP_TRY(sp_model_resolve(&dir, o->model, err));
    sp_status st = sp_model_desc_load(&d, dir, err);
    sp_free(dir);
    if (st != SP_OK) return st;
    const int64_t most = o->steps + 64 > CONTEXT ? o->steps + 64 : CONTEXT;
    snprintf(out, NUMBER_BYTES, "%lld",
             (long long)(d.max_positions < most ? d.max_positions : most));
    return SP_OK;
}

static sp_status run_step(bench *b, int i, sp_err *err) {
    const options *o = &b->o;
    char batch[NUMBER_BYTES], steps[NUMBER_BYTES], context[NUMBER_BYTES];
    snprintf(batch, sizeof batch, "%d", (int)b->batch[i]);
    snprintf(steps, sizeof steps, "%lld", (long long)o->steps);
    SP_TRY(context_of(o, context, err));
    const char *argv[] = {"step", "--model", o->model, "--device",         o->device,  "--batch",
                          batch,  "--steps", steps,    "--max-model-len",  context,    "--tp",
                          "1",    "--pp",    "1",      "--kv-cache-dtype", o->kv_dtype};
    sp_config c;
    bool help;
    SP_TRY(
        sp_config_parse(&c, SP_CMD_STEP, (int)SP_LEN(argv), (char **)(uintptr_t)argv, &help, err));
    sp_status st = sp_bench_step_run(&b->step[i], &c, err);
    sp_config_fini(&c);
    return st;
}

/* A batch that is too large for the card is told and left out; everything else ends the run. */
static sp_status run_steps(bench *b, sp_err *err) {
    static const int32_t real[BATCHES] = {1, 8, 64, 256}, small[] = {1, 4};
    const int n = b->g.emulated ? (int)SP_LEN(small) : BATCHES;
    if (!b->o.model) return SP_OK;
    memcpy(b->batch, b->g.emulated ? small : real, (size_t)n * sizeof *real);
    for (int i = 0; i < n; i++) {
        sp_err why = {0};
        sp_status st = run_step(b, i, &why);
        if (st != SP_OK && (i == 0 || st != SP_E_NOMEM)) {
            *err = why;
            return st;
        }
        snprintf(b->step_why[i], sizeof b->step_why[i], "%s", why.text);
        b->n_steps = i + 1;
    }
    return SP_OK;
}

/* ---- telling ---- */

static void print_rows(const sp_gpu *g) {
    printf("%-12s %-34s %10s %10s %10s %10s %8s %8s\n", "operation", "shape", "us", "MB", "MFLOP",
           "floor us", "bound by", "x floor");
    for (int i = 0; i < g->n_rows; i++) {
        const sp_gpu_row *r = &g->rows[i];
        bool by_memory;
        const double floor = sp_gpu_floor_us(&g->ceilings, r, &by_memory);
        printf("%-12s %-34s %10.2f %10.3f %10.2f %10.2f %8s %8.2f\n", r->op, r->shape, r->us,
               r->bytes / 1e6, r->flops / 1e6, floor, by_memory ? "memory" : "products",
               r->us / floor);
    }
}

static void print_text(const bench *b) {
    const sp_gpu *g = &b->g;
    const sp_gpu_shape *s = &g->shape;
    printf("%s: %s, compute capability %d.%d, %d multiprocessors\n", b->o.device, g->info.name,
           g->info.major, g->info.minor, g->info.units);
    if (g->emulated) puts("the device is emulated: these times say nothing about a GPU");
    printf("shapes of %s: E %d H %d K %d D %d F %d V %d, weights %s, KV %s\n\n",
           b->o.model    ? b->o.model
           : g->emulated ? "no model (small)"
                         : "no model (as of 8B parameters)",
           s->E, s->H, s->K, s->D, s->F, s->V, sp_dtype_name(s->dtype), sp_dtype_name(s->kv_dtype));
    printf("ceilings: copy %.1f GB/s (read and written), largest product %.4g TFLOP/s, smallest "
           "launch %.2f us\n\n",
           g->ceilings.copy_bytes_s / 1e9, g->ceilings.gemm_flops_s / 1e12, g->ceilings.launch_us);
    print_rows(g);
    putchar('\n');
    if (!b->o.model) puts("no decode steps: they want the weights of a --model");
    for (int i = 0; i < b->n_steps; i++)
        if (b->step_why[i][0])
            printf("decode, batch %4d: %s\n", (int)b->batch[i], b->step_why[i]);
        else
            printf("decode, batch %4d: %9.3f ms a step, %10.1f tok/s\n", (int)b->batch[i],
                   b->step[i].step_ms_p50, b->step[i].tok_per_s_p50);
}

static void put_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void put_number(sp_jw *w, const char *key, double v) {
    sp_jw_key(w, key);
    sp_jw_number(w, v);
}
static void put_str(sp_jw *w, const char *key, const char *v) {
    sp_jw_key(w, key);
    if (v)
        sp_jw_str(w, v);
    else
        sp_jw_null(w);
}

static void put_rows(const sp_gpu *g, sp_jw *w) {
    sp_jw_key(w, "operations"), sp_jw_array(w);
    for (int i = 0; i < g->n_rows; i++) {
        const sp_gpu_row *r = &g->rows[i];
        bool by_memory;
        const double floor = sp_gpu_floor_us(&g->ceilings, r, &by_memory);
        sp_jw_object(w);
        put_str(w, "op", r->op);
        put_str(w, "shape", r->shape);
        put_number(w, "us", r->us);
        put_number(w, "bytes", r->bytes);
        put_number(w, "flops", r->flops);
        put_number(w, "floor_us", floor);
        put_str(w, "bound", by_memory ? "memory" : "products");
        put_number(w, "ratio", r->us / floor);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void put_steps(const bench *b, sp_jw *w) {
    sp_jw_key(w, "decode"), sp_jw_array(w);
    for (int i = 0; i < b->n_steps; i++) {
        const bool done = !b->step_why[i][0];
        sp_jw_object(w);
        put_int(w, "batch", b->batch[i]);
        put_str(w, "why", done ? NULL : b->step_why[i]);
        if (done) put_number(w, "step_ms_p50", b->step[i].step_ms_p50);
        if (done) put_number(w, "tok_per_s", b->step[i].tok_per_s_p50);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void print_json(const bench *b) {
    const sp_gpu *g = &b->g;
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    put_str(&w, "device", b->o.device);
    put_str(&w, "name", g->info.name);
    sp_jw_key(&w, "emulated"), sp_jw_bool(&w, g->emulated);
    put_str(&w, "model", b->o.model);
    put_str(&w, "kv_dtype", sp_dtype_name(g->shape.kv_dtype));
    put_number(&w, "copy_gb_per_s", g->ceilings.copy_bytes_s / 1e9);
    put_number(&w, "gemm_tflop_per_s", g->ceilings.gemm_flops_s / 1e12);
    put_number(&w, "launch_us", g->ceilings.launch_us);
    put_rows(g, &w);
    put_steps(b, &w);
    sp_jw_object_end(&w);
    printf("%s\n", text.failed ? "{}" : text.ptr);
    sp_buf_fini(&text);
}

/* ---- options ---- */

static int help(FILE *to) {
    fputs(
        "usage: superpod bench gpu [--device cuda|emu] [--model DIR] [--kv-cache-dtype T]\n"
        "                          [--steps N] [--json]\n\n"
        "  --device D          cuda, or emu (the emulated GPU: its times mean nothing) (cuda)\n"
        "  --model DIR         whose shapes, and whose decode steps (shapes as of 8B parameters,\n"
        "                      no steps)\n"
        "  --kv-cache-dtype T  f32, f16 or bf16 (bf16)\n"
        "  --steps N           decode steps a batch, 1 to 4096 (64; emulated 2)\n"
        "  --json              one JSON object\n"
        "\nMeasures what the card gives (copies, products, launches), every operation against the\n"
        "floor of its bytes and operations, and decode steps at batch 1, 8, 64 and 256.\n",
        to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

static bool read_option(options *o, const char *name, const char *value) {
    if (strcmp(name, "--model") == 0) {
        o->model = value;
        return true;
    }
    if (strcmp(name, "--device") == 0) {
        o->device = value;
        return sp_dev_is_plugin(value);
    }
    if (strcmp(name, "--kv-cache-dtype") == 0) {
        sp_dtype t;
        o->kv_dtype = value;
        return sp_kv_dtype_parse(value, &t, NULL) == SP_OK;
    }
    return strcmp(name, "--steps") == 0 && sp_parse_i64(sp_slice_of(value), &o->steps) == SP_OK &&
           o->steps >= 1 && o->steps <= STEPS_MAX;
}

int sp_bench_gpu(int argc, char **argv) {
    bench *b = sp_alloc(sizeof *b);
    b->o = (options){.device = "cuda", .kv_dtype = "bf16"};
    int code = SP_EXIT_OK;
    for (int i = 1; i < argc && code == SP_EXIT_OK; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            sp_free(b);
            return help(stdout);
        }
        if (strcmp(argv[i], "--json") == 0) {
            b->o.json = true;
            continue;
        }
        if (i + 1 < argc && read_option(&b->o, argv[i], argv[i + 1])) {
            i++;
            continue;
        }
        fprintf(stderr, "superpod: bench gpu: cannot take '%s %s'\n", argv[i],
                i + 1 < argc ? argv[i + 1] : "");
        code = help(stderr);
    }
    if (code == SP_EXIT_OK) {
        sp_err err = {0};
        b->g.emulated = strcmp(b->o.device, "emu") == 0;
        if (!b->o.steps) b->o.steps = b->g.emulated ? 2 : 64;
        sp_status st = measure(b, &err);
        if (st == SP_OK) st = run_steps(b, &err);
        if (st != SP_OK) {
            fprintf(stderr, "superpod: bench gpu: %s\n", err.text);
            code = SP_EXIT_CONFIG;
        } else if (b->o.json) {
            print_json(b);
        } else {
            print_text(b);
        }
    }
    sp_free(b);
    return code;
}
