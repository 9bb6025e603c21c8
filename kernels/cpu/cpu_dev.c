#include "kernels/cpu/cpu_dev.h"

#include "kernels/check.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* ---- which instruction set ---- */

#define ISA(word) \
    { #word, &sp_isa_gemm_##word, &sp_isa_attn_##word, &sp_isa_ops_##word }
static const sp_cpu_isa generic = ISA(generic);
#if defined(__x86_64__)
static const sp_cpu_isa avx512 = ISA(avx512), avx2 = ISA(avx2);

static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
/* __builtin_cpu_supports also looks at what the system saves of the registers. */
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const sp_cpu_isa *const *sp_cpu_isas(void) {
#if defined(__x86_64__)
    static const sp_cpu_isa *const all[] = {&avx512, &avx2, &generic, NULL};
    return has_avx512() ? all : has_avx2() ? all + 1 : all + 2;
#else
    static const sp_cpu_isa *const all[] = {&generic, NULL};
    return all;
#endif
}

/* "auto" and "cpu" are the fastest; "cpu-avx2" is that one or nothing. */
static const sp_cpu_isa *find_isa(const char *backend) {
    const sp_cpu_isa *const *isas = sp_cpu_isas();
    if (strncmp(backend, "cpu-", 4) != 0) return isas[0];
    while (*isas && strcmp((*isas)->name, backend + 4) != 0) isas++;
    return *isas;
}

/* ---- open, memory ---- */

static void cpu_close(sp_dev *dev) {
    sp_cpu *cpu = dev->impl;
    if (!cpu) return;
    sp_cpu_pool_destroy(cpu->pool);
    sp_cpu_slab_close(cpu->packer.slab);
    sp_cpu_mem_free(cpu->panel, cpu->panel_floats * sizeof(float));
    sp_cpu_mem_free(cpu->scratch, cpu->scratch_bytes);
    sp_cpu_mem_free(cpu->parts, 2 * SP_CPU_PART_FLOATS * sizeof(float));
    sp_free(cpu->units);
    sp_free(cpu);
    dev->impl = NULL;
}

static sp_status take_scratch(sp_cpu *cpu, sp_err *err) {
    cpu->scratch_bytes = cpu->isa->attn->scratch_floats * (size_t)cpu->n_threads * sizeof(float);
    cpu->scratch = sp_cpu_mem_take(cpu->scratch_bytes);
    bool ok = cpu->scratch != NULL;
    if (ok && cpu->n_threads > 1) {
        cpu->parts = sp_cpu_mem_take(2 * SP_CPU_PART_FLOATS * sizeof(float));
        cpu->units = sp_try_alloc_array(SP_CPU_UNITS, sizeof *cpu->units);
        ok = cpu->parts && cpu->units;
    }
    if (ok) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for the scratch of %d threads", cpu->n_threads);
}

static sp_status cpu_open(sp_dev *dev, const sp_dev_config *config, sp_err *err) {
    const sp_cpu_isa *isa = find_isa(config->backend);
    if (!isa)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "this machine cannot run backend '%s'",
                       config->backend);
    sp_cpu *cpu = sp_try_alloc(sizeof *cpu);
    if (!cpu) return SP_FAIL(err, SP_E_NOMEM, "no memory for a device");
    cpu->isa = isa;
    sp_status st = sp_cpu_pool_create(&cpu->pool, config->n_threads, config->pin_threads, err);
    if (st != SP_OK) {
        sp_free(cpu);
        return st;
    }
    cpu->n_threads = sp_cpu_pool_threads(cpu->pool);
    cpu->packer = (sp_cpu_packer){.pool = cpu->pool, .turn = isa->ops->turn};
    dev->impl = cpu;
    st = take_scratch(cpu, err);
    if (st != SP_OK) {
        cpu_close(dev);
        return st;
    }
    snprintf(cpu->detail, sizeof cpu->detail, "%s, %d thread%s", isa->name, cpu->n_threads,
             cpu->n_threads == 1 ? "" : "s");
    dev->detail = cpu->detail;
    return SP_OK;
}

static void *cpu_alloc(sp_dev *dev, size_t bytes) {
    (void)dev;
    return sp_cpu_mem_take(bytes);
}

static void cpu_free(sp_dev *dev, void *p, size_t bytes) {
    (void)dev;
    sp_cpu_mem_free(p, bytes);
}

static sp_status grow_panel(sp_cpu *cpu, int32_t cols, sp_err *err) {
    const size_t floats = (size_t)cpu->isa->gemm->group_rows * (size_t)cols;
    if (floats <= cpu->panel_floats) return SP_OK;
    float *panel = sp_cpu_mem_take(floats * sizeof *panel);
    if (!panel)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for a panel of %zu bytes",
                       floats * sizeof *panel);
    sp_cpu_mem_free(cpu->panel, cpu->panel_floats * sizeof(float));
    cpu->panel = panel;
    cpu->panel_floats = floats;
    return SP_OK;
}

static sp_status cpu_pack(sp_dev *dev, sp_weight **out, const sp_weight_part *parts, int n_parts,
                          const sp_segments *seg, sp_err *err) {
    sp_cpu *cpu = dev->impl;
    SP_TRY(grow_panel(cpu, parts[0].cols, err));
    return sp_cpu_weight_pack(out, &cpu->packer, parts, n_parts, seg, err);
}

static void cpu_weight_free(sp_dev *dev, sp_weight *w) {
    (void)dev;
    sp_cpu_weight_free(w);
}

/* ---- spreading work ---- */

typedef struct spread_job {
    sp_cpu_range *fn;
    void *ctx;
    int32_t n, grain, n_tasks;
} spread_job;

static void spread_task(void *ctx, int thread, int32_t task) {
    const spread_job *j = ctx;
    const int64_t grains = (j->n + j->grain - 1) / j->grain;
    const int32_t i0 = (int32_t)(grains * task / j->n_tasks) * j->grain;
    const int32_t i1 = (int32_t)(grains * (task + 1) / j->n_tasks) * j->grain;
    j->fn(j->ctx, thread, i0, i1 < j->n ? i1 : j->n);
}

void sp_cpu_spread(sp_cpu *cpu, sp_cpu_range *fn, void *ctx, int32_t n, int32_t grain, double ns) {
    const int32_t grains = (n + grain - 1) / grain;
    const double total = ns * n;
    if (cpu->n_threads == 1 || grains <= 1 || total < SP_CPU_ALONE_NS) {
        if (n > 0) fn(ctx, 0, 0, n);
        return;
    }
    /* One range a thread when there is little to do; more of them even out a noisy machine. */
    const int32_t per_thread = total / cpu->n_threads > 20 * SP_CPU_ALONE_NS  ? 8
                               : total / cpu->n_threads > 4 * SP_CPU_ALONE_NS ? 3
                                                                              : 1;
    spread_job j = {fn, ctx, n, grain, per_thread * cpu->n_threads};
    if (j.n_tasks > grains) j.n_tasks = grains;
    sp_cpu_pool_run(cpu->pool, spread_task, &j, j.n_tasks);
}

/* ---- operations ---- */

static float *row_of(sp_mat m, int32_t row) {
    SP_DASSERT(m.dtype == SP_DTYPE_F32 && m.stride >= m.cols);
    return (float *)m.data + (ptrdiff_t)row * m.stride;
}

typedef struct gemm_job {
    sp_cpu *cpu;
    sp_cpu_gemm g;
} gemm_job;

static void gemm_pack_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const gemm_job *j = ctx;
    j->cpu->isa->gemm->pack(&j->g, i0, i1);
}

static void gemm_tile_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const gemm_job *j = ctx;
    j->cpu->isa->gemm->tiles(&j->g, i0, i1);
}

static void cpu_gemm(sp_dev *dev, sp_mat y, sp_mat x, const sp_weight *w, const float *bias) {
    sp_cpu *cpu = dev->impl;
    const sp_isa_gemm *isa = cpu->isa->gemm;
    SP_ASSERT(x.cols == w->cols && y.cols == w->rows && x.rows == y.rows);
    gemm_job j = {.cpu = cpu};
    for (int32_t t = 0; t < y.rows; t += isa->group_rows) {
        const int32_t n = y.rows - t < isa->group_rows ? y.rows - t : isa->group_rows;
        j.g = (sp_cpu_gemm){
            .w = w,
            .x = row_of(x, t),
            .y = row_of(y, t),
            .x_stride = x.stride,
            .y_stride = y.stride,
            .bias = bias,
            .n_rows = n,
            .panel = cpu->panel,
        };
        const int32_t blocks = isa->n_blocks(&j.g);
        sp_cpu_spread(cpu, gemm_pack_range, &j, blocks, 1, 0.3 * n / blocks * w->cols);
        /* A tile costs its reading (about 16 bytes a ns) or its arithmetic. */
        const double ns = (double)w->tile_bytes / 16 + 0.2 * n * w->cols;
        sp_cpu_spread(cpu, gemm_tile_range, &j, w->n_tiles, 2, ns);
    }
}

typedef struct row_job {
    sp_cpu *cpu;
    sp_mat y, x, partial;
    const sp_weight *w;
    const int32_t *ids;
    const float *bias, *weight;
    float eps;
    sp_act act;
    const sp_rope_store_args *rope;
} row_job;

static void embed_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const row_job *j = ctx;
    j->cpu->isa->ops->embed(j->y, j->w, j->ids, i0, i1);
}

static void cpu_embed(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids) {
    sp_cpu *cpu = dev->impl;
    SP_ASSERT(y.cols == w->cols);
    if (!sp_check_ids(&cpu->fault, ids, y.rows, w->rows)) return;
    row_job j = {.cpu = cpu, .y = y, .w = w, .ids = ids};
    sp_cpu_spread(cpu, embed_range, &j, y.rows, 1, 2.0 * y.cols);
}

static void norm_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const row_job *j = ctx;
    j->cpu->isa->ops->add_rmsnorm(j->y, j->x, j->partial, j->bias, j->weight, j->eps, i0, i1);
}

static void cpu_add_rmsnorm(sp_dev *dev, sp_mat y, sp_mat x, sp_mat partial, const float *bias,
                            const float *weight, float eps) {
    sp_cpu *cpu = dev->impl;
    SP_ASSERT(y.cols == x.cols && y.data != x.data);
    row_job j = {
        .cpu = cpu, .y = y, .x = x, .partial = partial, .bias = bias, .weight = weight, .eps = eps};
    sp_cpu_spread(cpu, norm_range, &j, x.rows, 1, 0.3 * x.cols);
}

static void add_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const row_job *j = ctx;
    j->cpu->isa->ops->add(j->x, j->partial, j->bias, i0, i1);
}

static void cpu_add(sp_dev *dev, sp_mat x, sp_mat partial, const float *bias) {
    sp_cpu *cpu = dev->impl;
    SP_ASSERT(x.cols == partial.cols && x.rows == partial.rows);
    row_job j = {.cpu = cpu, .x = x, .partial = partial, .bias = bias};
    sp_cpu_spread(cpu, add_range, &j, x.rows, 1, 0.2 * x.cols);
}

static void act_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const row_job *j = ctx;
    j->cpu->isa->ops->act_mul(j->y, j->x, j->act, i0, i1);
}

static void cpu_act_mul(sp_dev *dev, sp_mat y, sp_mat gate_up, sp_act act) {
    sp_cpu *cpu = dev->impl;
    SP_ASSERT(gate_up.cols == 2 * y.cols);
    row_job j = {.cpu = cpu, .y = y, .x = gate_up, .act = act};
    const int32_t per_row = (y.cols + SP_ACT_COLS - 1) / SP_ACT_COLS;
    const int32_t cols = y.cols < SP_ACT_COLS ? y.cols : SP_ACT_COLS;
    sp_cpu_spread(cpu, act_range, &j, y.rows * per_row, 1, 0.8 * cols);
}

/* Rows of all sequences, one after the other. */
static void rope_range(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const row_job *j = ctx;
    int32_t base = 0;
    for (int32_t s = 0; s < j->rope->n_seqs && base < i1; s++) {
        const sp_seq_rows *seq = &j->rope->seqs[s];
        const int32_t from = i0 > base ? i0 - base : 0;
        const int32_t to = i1 - base < seq->n_rows ? i1 - base : seq->n_rows;
        if (from < to) j->cpu->isa->ops->rope_store(j->rope, seq, from, to);
        base += seq->n_rows;
    }
}

static void cpu_rope_store(sp_dev *dev, const sp_rope_store_args *a) {
    sp_cpu *cpu = dev->impl;
    if (!sp_check_rope(&cpu->fault, a)) return;
    row_job j = {.cpu = cpu, .rope = a};
    int32_t rows = 0;
    for (int32_t s = 0; s < a->n_seqs; s++) rows += a->seqs[s].n_rows;
    const double ns = 0.2 * a->kv.head_dim * (a->n_heads + 2 * a->kv.n_kv_heads);
    sp_cpu_spread(cpu, rope_range, &j, rows, 1, ns);
}

static void cpu_attend(sp_dev *dev, const sp_attn_args *a) {
    sp_cpu *cpu = dev->impl;
    if (sp_check_attn(&cpu->fault, a)) sp_cpu_attend(cpu, a);
}

static void cpu_gather_rows(sp_dev *dev, sp_mat y, sp_mat x, const int32_t *rows) {
    (void)dev;
    for (int32_t s = 0; s < y.rows; s++) {
        SP_ASSERT(rows[s] >= 0 && rows[s] < x.rows);
        memcpy(row_of(y, s), row_of(x, rows[s]), (size_t)y.cols * sizeof(float));
    }
}

static sp_ticket cpu_submit(sp_dev *dev) {
    return ++((sp_cpu *)dev->impl)->last;
}

static sp_status cpu_poll(sp_dev *dev, sp_ticket ticket, int64_t deadline_ns, sp_err *err) {
    (void)ticket;
    (void)deadline_ns;
    return sp_fault_status(&((sp_cpu *)dev->impl)->fault, err);
}

/* Device memory is the host's: copies are made at once, by those who ask for them. */
static void cpu_copy(sp_dev *dev, void *dst, const void *src, size_t bytes) {
    (void)dev;
    memcpy(dst, src, bytes);
}

const sp_dev_ops sp_dev_cpu = {
    .name = "cpu",
    .host_memory = true,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .packed_bytes = sp_cpu_packed_bytes,
    .pack = cpu_pack,
    .weight_free = cpu_weight_free,
    .embed = cpu_embed,
    .add_rmsnorm = cpu_add_rmsnorm,
    .add = cpu_add,
    .gemm = cpu_gemm,
    .rope_store = cpu_rope_store,
    .attend = cpu_attend,
    .act_mul = cpu_act_mul,
    .gather_rows = cpu_gather_rows,
    .submit = cpu_submit,
    .poll = cpu_poll,
    .upload = cpu_copy,
    .download = cpu_copy,
    .host_alloc = cpu_alloc,
    .host_free = cpu_free,
};
