/* Covers kernels/cuda/{cuda_dev,cuda_memory,cuda_step,plugin}.c on the emulated device: operations
 * against ref, memory and copies, the ring of step data, faults, and what a probe refuses. */
#include "kernels/cuda/cuda_dev.h"

#include "kernels/cuda/emu/emu.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

const sp_dev_plugin *superpod_device_plugin(int abi);

#if defined(__SANITIZE_THREAD__)
#define NEEDS_FIBRES() SP_SKIP("fibres under the thread sanitizer")
#else
#define NEEDS_FIBRES() (void)0
#endif

static uint64_t rng_state = 1;
static float value(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(rng_state >> 32)) / 2147483648.0f;
}
static void fill(float *p, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = value();
}

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) printf("    %s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static void fresh(cu_emu_pace pace, cu_emu_order order) {
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.pace = pace;
    c.order = order;
    c.seed = 7;
    c.protect = 1; /* the host side never looks into device memory */
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
}

static sp_dev open_dev(cu_emu_pace pace, cu_emu_order order) {
    fresh(pace, order);
    sp_err err = {0};
    sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
    const sp_dev_config config = {.backend = "emu"};
    must(dev.ops->open(&dev, &config, &err), &err);
    return dev;
}

static sp_dev open_ref(void) {
    sp_err err = {0};
    sp_dev dev = {.ops = &sp_dev_ref};
    const sp_dev_config config = {.backend = "ref"};
    must(dev.ops->open(&dev, &config, &err), &err);
    return dev;
}

static sp_status settle(sp_dev *dev, sp_err *err) {
    return dev->ops->poll(dev, dev->ops->submit(dev), SP_NEVER, err);
}

/* Memory of a device with what `from` has; the same bytes on ref. */
static float *put(sp_dev *dev, const float *from, size_t n) {
    float *p = dev->ops->alloc(dev, n * sizeof *p);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    if (from) dev->ops->upload(dev, p, from, n * sizeof *p);
    return p;
}

/* What device memory holds, in memory that the caller frees by host_free(). */
static float *get(sp_dev *dev, const float *from, size_t n) {
    sp_err err = {0};
    float *p = dev->ops->host_alloc(dev, n * sizeof *p);
    CU_ASSERT_PTR_NOT_NULL_FATAL(p);
    dev->ops->download(dev, p, from, n * sizeof *p);
    must(settle(dev, &err), &err);
    return p;
}

static sp_mat mat(float *p, int32_t rows, int32_t cols) {
    return (sp_mat){p, rows, cols, cols, SP_DTYPE_F32};
}

static double worst_of(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* NaN too */
    }
    return worst;
}

/* ---- one layer by every operation ---- */

enum {
    T = 11,
    E = 48,
    H = 4,
    K = 2,
    D = 16,
    F = 40,
    V = 70,
    B = 8,
    N_BLOCKS = 12,
    MAX_POS = 64,
    QKV = (H + 2 * K) * D,
    KV_BYTES = N_BLOCKS * 2 * K * B * D * 4
};

typedef struct layer {
    sp_dev *dev;
    sp_weight *embed, *qkv, *o, *gate_up, *down;
    float *norm, *bias, *cos, *sin;
    float *x, *normed, *q, *attn, *gu, *act, *partial, *last;
    unsigned char *kv;
} layer;

static sp_weight *pack(sp_dev *dev, const float *w, int32_t rows, int32_t cols, int32_t unit) {
    sp_err err = {0};
    sp_weight *out = NULL;
    const sp_segments seg = sp_segments_of(cols / unit, unit);
    /* Two parts, the first one cut out of wider rows: what a rank's slice looks like. */
    const int32_t half = rows / 3;
    float *wide = malloc((size_t)half * (size_t)(cols + 5) * sizeof *wide);
    for (int32_t r = 0; r < half; r++)
        memcpy(wide + r * (cols + 5), w + r * cols, (size_t)cols * sizeof *w);
    const sp_weight_part parts[] = {{wide, SP_DTYPE_F32, half, cols, cols + 5},
                                    {w + half * cols, SP_DTYPE_F32, rows - half, cols, cols}};
    must(dev->ops->pack(dev, &out, parts, 2, &seg, &err), &err);
    free(wide);
    return out;
}

static void make_layer(layer *l, sp_dev *dev) {
    static float w[V * E + QKV * E + E * H * D + 2 * F * E + E * F + 4096];
    rng_state = 5;
    fill(w, SP_LEN(w));
    const float *at = w;
    *l = (layer){.dev = dev};
    l->embed = pack(dev, at, V, E, 1), at += V * E;
    l->qkv = pack(dev, at, QKV, E, 1), at += QKV * E;
    l->o = pack(dev, at, E, H * D, D), at += E * H * D;
    l->gate_up = pack(dev, at, 2 * F, E, 1), at += 2 * F * E;
    l->down = pack(dev, at, E, F, 1), at += E * F;
    l->norm = put(dev, at, E), at += E;
    l->bias = put(dev, at, QKV), at += QKV;
    float angle_cos[MAX_POS * D / 2], angle_sin[MAX_POS * D / 2];
    for (int i = 0; i < MAX_POS * D / 2; i++) {
        angle_cos[i] = (float)cos(i * 0.37);
        angle_sin[i] = (float)sin(i * 0.37);
    }
    l->cos = put(dev, angle_cos, SP_LEN(angle_cos));
    l->sin = put(dev, angle_sin, SP_LEN(angle_sin));
    l->x = put(dev, NULL, T * E);
    l->normed = put(dev, NULL, T * E);
    l->q = put(dev, NULL, T * QKV);
    l->attn = put(dev, NULL, T * H * D);
    l->gu = put(dev, NULL, T * 2 * F);
    l->act = put(dev, NULL, T * F);
    l->partial = put(dev, NULL, T * E);
    l->last = put(dev, NULL, T * E);
    l->kv = dev->ops->alloc(dev, KV_BYTES);
}

static void free_layer(layer *l) {
    const sp_dev_ops *ops = l->dev->ops;
    sp_weight *const weights[] = {l->embed, l->qkv, l->o, l->gate_up, l->down};
    for (size_t i = 0; i < SP_LEN(weights); i++) ops->weight_free(l->dev, weights[i]);
    const struct {
        void *p;
        size_t n;
    } mem[] = {{l->norm, E},
               {l->bias, QKV},
               {l->cos, MAX_POS * D / 2},
               {l->sin, MAX_POS * D / 2},
               {l->x, T * E},
               {l->normed, T * E},
               {l->q, T * QKV},
               {l->attn, T * H * D},
               {l->gu, T * 2 * F},
               {l->act, T * F},
               {l->partial, T * E},
               {l->last, T * E}};
    for (size_t i = 0; i < SP_LEN(mem); i++) ops->free(l->dev, mem[i].p, mem[i].n * sizeof(float));
    ops->free(l->dev, l->kv, KV_BYTES);
}

/* All operations of a step, for two sequences; the rows 2 and 10 come out in `last`. */
static void run_layer(layer *l, const int32_t *ids, int32_t pos0) {
    const sp_dev_ops *o = l->dev->ops;
    sp_dev *d = l->dev;
    static const int32_t mine[] = {3, 7, 1, 0, 9, 4, 8}, theirs[] = {5, 2, 11};
    const sp_seq_rows seqs[] = {{0, 8, pos0, mine}, {8, 3, 2, theirs}};
    static const int32_t rows[] = {2, 10};
    const sp_mat x = mat(l->x, T, E), normed = mat(l->normed, T, E), none = {0};
    const sp_mat q = mat(l->q, T, QKV), attn = mat(l->attn, T, H * D);
    const sp_mat partial = mat(l->partial, T, E);
    const sp_kv_view kv = {l->kv, KV_BYTES / N_BLOCKS, 0, B, K, D, SP_DTYPE_F32};
    o->embed(d, x, l->embed, ids);
    o->add_rmsnorm(d, normed, x, none, NULL, l->norm, 1e-5f);
    o->gemm(d, q, normed, l->qkv, l->bias);
    o->rope_store(d, &(sp_rope_store_args){.qkv = q,
                                           .n_heads = H,
                                           .rope = {l->cos, l->sin, MAX_POS, D, false},
                                           .kv = kv,
                                           .seqs = seqs,
                                           .n_seqs = 2});
    o->attend(d, &(sp_attn_args){.out = attn,
                                 .qkv = q,
                                 .n_heads = H,
                                 .scale = 0.25f,
                                 .kv = kv,
                                 .seqs = seqs,
                                 .n_seqs = 2});
    o->gemm(d, partial, attn, l->o, NULL);
    o->add_rmsnorm(d, normed, x, partial, l->norm, l->norm, 1e-5f);
    o->gemm(d, mat(l->gu, T, 2 * F), normed, l->gate_up, NULL);
    o->act_mul(d, mat(l->act, T, F), mat(l->gu, T, 2 * F), SP_ACT_SILU);
    o->gemm(d, partial, mat(l->act, T, F), l->down, NULL);
    o->add(d, x, partial, l->bias);
    o->gather_rows(d, mat(l->last, 2, E), x, rows);
}

/* Positions 0..7 must be in the cache before 8..15 attend to them: two steps. */
static void run_steps(layer *l, float out[2 * E]) {
    int32_t ids[T];
    sp_err err = {0};
    for (int32_t s = 0; s < 3; s++) {
        for (int t = 0; t < T; t++) ids[t] = (s * 31 + t * 7) % V;
        run_layer(l, ids, 8 * s);
        memset(ids, 0xee, sizeof ids); /* what was queued does not look here again */
        if (s < 2) l->dev->ops->submit(l->dev);
    }
    float *got = get(l->dev, l->last, 2 * E);
    memcpy(out, got, 2 * E * sizeof *out);
    l->dev->ops->host_free(l->dev, got, 2 * E * sizeof *got);
    must(settle(l->dev, &err), &err);
}

static void every_operation_gives_what_ref_gives_in_any_order_and_pace(void) {
    NEEDS_FIBRES();
    static const struct {
        cu_emu_pace pace;
        cu_emu_order order;
    } ways[] = {{CU_EMU_EAGER, CU_EMU_FORWARD},
                {CU_EMU_LAZY, CU_EMU_BACKWARD},
                {CU_EMU_MIXED, CU_EMU_RANDOM}};
    float want[2 * E], got[2 * E], first[2 * E];
    layer l;
    sp_dev ref = open_ref();
    make_layer(&l, &ref);
    run_steps(&l, want);
    free_layer(&l);
    sp_dev_close(&ref);
    for (size_t i = 0; i < SP_LEN(ways); i++) {
        sp_dev dev = open_dev(ways[i].pace, ways[i].order);
        make_layer(&l, &dev);
        run_steps(&l, got);
        free_layer(&l);
        sp_dev_close(&dev);
        const double worst = worst_of(got, want, 2 * E);
        printf("    greatest difference %.2e\n", worst);
        CU_ASSERT(worst <= 2e-4);
        if (i == 0) memcpy(first, got, sizeof first);
        CU_ASSERT_EQUAL(memcmp(first, got, sizeof got), 0);
        CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
    }
}

/* ---- the ring of step data ---- */

static void the_data_of_a_step_is_kept_until_the_step_has_ended(void) {
    NEEDS_FIBRES();
    sp_err err = {0};
    enum {
        STEPS = 3 * CU_SLOTS + 1
    };
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        sp_dev dev = open_dev((cu_emu_pace)pace, CU_EMU_FORWARD);
        const sp_dev_ops *o = dev.ops;
        float table[V * E];
        for (int i = 0; i < V * E; i++) table[i] = (float)(i / E);
        sp_weight *w = pack(&dev, table, V, E, 1);
        float *y = o->alloc(&dev, STEPS * T * E * sizeof *y);
        sp_ticket ticket[STEPS];
        for (int s = 0; s < STEPS; s++) {
            int32_t ids[T];
            for (int t = 0; t < T; t++) ids[t] = (s * 5 + t) % V;
            o->embed(&dev, mat(y + s * T * E, T, E), w, ids);
            ticket[s] = o->submit(&dev);
        }
        must(o->poll(&dev, ticket[0], SP_NEVER, &err), &err); /* older than the ring: done */
        must(o->poll(&dev, ticket[STEPS - 1], SP_NEVER, &err), &err);
        float *got = get(&dev, y, STEPS * T * E);
        int wrong = 0;
        for (int s = 0; s < STEPS; s++)
            for (int t = 0; t < T; t++)
                for (int e = 0; e < E; e++)
                    wrong += got[(s * T + t) * E + e] != (float)((s * 5 + t) % V);
        CU_ASSERT_EQUAL(wrong, 0);
        o->host_free(&dev, got, STEPS * T * E * sizeof *got);
        o->free(&dev, y, STEPS * T * E * sizeof *y);
        o->weight_free(&dev, w);
        sp_dev_close(&dev);
    }
}

static void a_step_that_outgrows_its_slot_is_right_and_the_next_takes_no_memory(void) {
    NEEDS_FIBRES();
    enum {
        N = 60000 /* ids: several times the first memory of a slot */
    };
    sp_err err = {0};
    sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD);
    const sp_dev_ops *o = dev.ops;
    float table[4] = {0, 1, 2, 3};
    const sp_segments seg = sp_segments_of(1, 1);
    const sp_weight_part part = {table, SP_DTYPE_F32, 4, 1, 1};
    sp_weight *w = NULL;
    must(o->pack(&dev, &w, &part, 1, &seg, &err), &err);
    float *x = o->alloc(&dev, 4 * sizeof *x), *y = o->alloc(&dev, N * sizeof *y);
    o->upload(&dev, x, table, sizeof table);
    int32_t *rows = malloc(N * sizeof *rows);
    uint64_t left = 0, before = 0, total;
    for (int s = 0; s < 3 * CU_SLOTS; s++) {
        for (int i = 0; i < N; i++) rows[i] = (i + s) % 4;
        o->gather_rows(&dev, mat(y, N / 3, 1), mat(x, 4, 1), rows);
        o->gather_rows(&dev, mat(y + N / 3, N - N / 3, 1), mat(x, 4, 1), rows + N / 3);
        float *got = get(&dev, y, N);
        int wrong = 0;
        for (int i = 0; i < N; i++) wrong += got[i] != (float)((i + s) % 4);
        CU_ASSERT_EQUAL(wrong, 0);
        o->host_free(&dev, got, N * sizeof *got);
        must(o->memory(&dev, &left, &total, &err), &err);
        if (s == 2 * CU_SLOTS - 1) before = left;
    }
    CU_ASSERT_EQUAL(left, before);
    free(rows);
    o->free(&dev, x, 4 * sizeof *x);
    o->free(&dev, y, N * sizeof *y);
    o->weight_free(&dev, w);
    sp_dev_close(&dev);
}

static void a_poll_gives_up_at_its_deadline_and_may_be_asked_again(void) {
    NEEDS_FIBRES();
    sp_err err = {0};
    sp_dev dev = open_dev(CU_EMU_LAZY, CU_EMU_FORWARD);
    float data[64], *x = put(&dev, NULL, 64);
    fill(data, 64);
    for (int i = 0; i < 20; i++) dev.ops->upload(&dev, x, data, sizeof data);
    sp_ticket ticket = dev.ops->submit(&dev);
    CU_ASSERT_EQUAL(dev.ops->poll(&dev, ticket, sp_now_ns() - 1, &err), SP_AGAIN);
    must(dev.ops->poll(&dev, ticket, SP_NEVER, &err), &err);
    must(dev.ops->poll(&dev, ticket, 0, &err), &err); /* done stays done */
    dev.ops->free(&dev, x, sizeof data);
    sp_dev_close(&dev);
}

/* ---- memory ---- */

static void copies_larger_than_the_staging_arrive_whole(void) {
    NEEDS_FIBRES();
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        sp_dev dev = open_dev((cu_emu_pace)pace, CU_EMU_FORWARD);
        const size_t n = 3 * CU_STAGE_BYTES / sizeof(float) + 77;
        float *data = malloc(n * sizeof *data);
        for (size_t i = 0; i < n; i++) data[i] = (float)(i % 8388593);
        float *there = put(&dev, data, n);
        memset(data, 0, n * sizeof *data); /* read during the call */
        float *got = get(&dev, there, n);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++) wrong += got[i] != (float)(i % 8388593);
        CU_ASSERT_EQUAL(wrong, 0);
        dev.ops->host_free(&dev, got, n * sizeof *got);
        dev.ops->free(&dev, there, n * sizeof *there);
        free(data);
        sp_dev_close(&dev);
    }
}

static void memory_is_zeroed_and_all_of_it_is_given_back(void) {
    NEEDS_FIBRES();
    sp_err err = {0};
    uint64_t left, total;
    sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD);
    float *p = put(&dev, NULL, 1000), *got = get(&dev, p, 1000);
    for (int i = 0; i < 1000; i++) CU_ASSERT_EQUAL_FATAL(got[i], 0.0f);
    dev.ops->host_free(&dev, got, 1000 * sizeof *got);
    dev.ops->free(&dev, p, 1000 * sizeof *p);
    layer l;
    make_layer(&l, &dev);
    free_layer(&l);
    must(dev.ops->memory(&dev, &left, &total, &err), &err);
    CU_ASSERT(left < total);
    sp_dev_close(&dev);
    size_t free_bytes, all;
    CU_ASSERT_EQUAL(cudaMemGetInfo(&free_bytes, &all), cudaSuccess);
    CU_ASSERT_EQUAL(free_bytes, all);
}

static void too_little_memory_is_named_and_the_device_works_on(void) {
    NEEDS_FIBRES();
    static float data[64 * 64];
    const sp_segments seg = sp_segments_of(64, 1);
    const sp_weight_part part = {data, SP_DTYPE_F32, 64, 64, 64};
    for (int nth = 1; nth < 12; nth++) {
        sp_err err = {0};
        sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD);
        sp_weight *w = NULL;
        cu_emu_fail_malloc(nth);
        sp_status st = dev.ops->pack(&dev, &w, &part, 1, &seg, &err);
        cu_emu_fail_malloc(0);
        if (nth == 1) {
            CU_ASSERT_EQUAL(st, SP_E_NOMEM);
            CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "bytes of weights"));
            CU_ASSERT_PTR_NULL(w);
            must(dev.ops->pack(&dev, &w, &part, 1, &seg, &err), &err);
        }
        CU_ASSERT(st == SP_OK || st == SP_E_NOMEM);
        if (w) dev.ops->weight_free(&dev, w);
        sp_dev_close(&dev);
    }
    for (int nth = 1; nth < 8; nth++) {
        sp_err err = {0};
        fresh(CU_EMU_EAGER, CU_EMU_FORWARD);
        cu_emu_fail_malloc(nth);
        sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
        const sp_dev_config config = {.backend = "emu"};
        sp_status st = dev.ops->open(&dev, &config, &err);
        cu_emu_fail_malloc(0);
        if (nth == 1) CU_ASSERT_EQUAL(st, SP_E_NOMEM);
        if (st == SP_OK) sp_dev_close(&dev);
    }
}

static void quantised_weights_are_refused_by_name(void) {
    NEEDS_FIBRES();
    const sp_weight_part part = {.dtype = SP_DTYPE_F8_E4M3, .rows = 1, .cols = 8, .stride = 8};
    const sp_segments seg = sp_segments_of(8, 1);
    sp_err err = {0};
    sp_weight *w = NULL;
    sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD);
    CU_ASSERT_EQUAL(dev.ops->pack(&dev, &w, &part, 1, &seg, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "F8_E4M3"));
    sp_dev_close(&dev);
}

static void the_plan_is_told_the_bytes_that_packing_takes_in_whole_pieces(void) {
    const int32_t tp_of[] = {1, 2, 4, 8}, unit_of[] = {1, 24, 100, 128};
    for (int32_t cols = 8; cols < 700; cols += 13)
        for (size_t i = 0; i < SP_LEN(tp_of) * SP_LEN(unit_of); i++) {
            const int32_t tp = tp_of[i % 4], unit = unit_of[i / 4];
            const sp_segments whole = sp_segments_of(cols * 8 / unit, unit);
            const sp_segments seg = sp_segments_slice(whole, tp, tp - 1, NULL);
            const int32_t here = seg.edge[seg.n];
            for (int32_t rows = 33; rows < 2000; rows += 1500) {
                const size_t told = cu_packed_bytes(rows, &seg, SP_DTYPE_BF16);
                const size_t takes = cu_weight_bytes(rows, here, SP_DTYPE_BF16, &seg);
                CU_ASSERT(told >= takes && told - takes < CU_PAGE_BYTES);
                CU_ASSERT(takes >= CU_PAGE_BYTES / 2 || told - takes < CU_PIECE_BYTES);
                CU_ASSERT(takes < CU_PAGE_BYTES / 2 || told % CU_PAGE_BYTES == 0);
            }
        }
}

/* ---- faults ---- */

static void a_failed_launch_sticks_and_names_the_error_and_the_operation(void) {
    NEEDS_FIBRES();
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_LAZY; pace++)
        for (int nth = 1; nth < 8; nth++) {
            sp_err err = {0};
            layer l;
            int32_t ids[T] = {0};
            sp_dev dev = open_dev((cu_emu_pace)pace, CU_EMU_FORWARD);
            make_layer(&l, &dev);
            must(settle(&dev, &err), &err);
            cu_emu_fail_launch(nth, cudaErrorECCUncorrectable);
            run_layer(&l, ids, 0);
            const int64_t launches = cu_emu_launches();
            sp_status st = settle(&dev, &err);
            CU_ASSERT_EQUAL(st, SP_E_DEVICE);
            CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "cudaErrorECCUncorrectable"));
            CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "GPU 0: '"));
            run_layer(&l, ids, 0); /* nothing is queued any more */
            CU_ASSERT(pace != CU_EMU_EAGER || cu_emu_launches() == launches);
            CU_ASSERT_EQUAL(settle(&dev, &err), SP_E_DEVICE);
            CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "cudaErrorECCUncorrectable"));
            CU_ASSERT_PTR_NULL(dev.ops->alloc(&dev, 64));
            free_layer(&l);
            sp_dev_close(&dev);
        }
}

static void ids_outside_the_vocabulary_are_refused_as_the_cpu_refuses_them(void) {
    NEEDS_FIBRES();
    const int32_t bad[] = {V, -1};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_err err = {0}, cpu_err = {0};
        int32_t ids[T] = {0};
        ids[4] = bad[i];
        layer l;
        sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD), ref = open_ref();
        make_layer(&l, &dev);
        run_layer(&l, ids, 0);
        CU_ASSERT_EQUAL(settle(&dev, &err), SP_E_INVALID);
        free_layer(&l);
        make_layer(&l, &ref);
        run_layer(&l, ids, 0);
        CU_ASSERT_EQUAL(settle(&ref, &cpu_err), SP_E_INVALID);
        CU_ASSERT_STRING_EQUAL(err.text, cpu_err.text);
        free_layer(&l);
        sp_dev_close(&ref);
        sp_dev_close(&dev);
    }
}

static void positions_outside_the_rope_table_are_refused(void) {
    NEEDS_FIBRES();
    sp_err err = {0};
    layer l;
    int32_t ids[T] = {0};
    sp_dev dev = open_dev(CU_EMU_EAGER, CU_EMU_FORWARD);
    make_layer(&l, &dev);
    run_layer(&l, ids, MAX_POS - 4);
    CU_ASSERT_EQUAL(settle(&dev, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "rope table has 64"));
    free_layer(&l);
    sp_dev_close(&dev);
}

/* ---- the plugin ---- */

static void another_build_gets_no_table(void) {
    CU_ASSERT_PTR_NULL(superpod_device_plugin(SP_DEV_PLUGIN_ABI + 1));
    const sp_dev_plugin *p = superpod_device_plugin(SP_DEV_PLUGIN_ABI);
    CU_ASSERT_STRING_EQUAL(p->name, "emu");
    CU_ASSERT_FALSE(p->ops->host_memory);
}

/* In a child: the number of devices is fixed by the first call. */
static int driver_version = CUDART_VERSION;
static sp_status probe_in_child(const char *devices, const char *arch, int index, char text[240]) {
    int fd[2];
    sp_status st = SP_E_INTERNAL;
    if (pipe(fd) != 0) return st;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        cu_emu_config c;
        cu_emu_get_config(&c);
        c.devices = atoi(devices);
        c.arch = atoi(arch);
        c.driver = driver_version;
        cu_emu_configure(&c);
        sp_err err = {0};
        sp_dev_info info;
        st = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->probe(&info, index, &err);
        if (st == SP_OK)
            snprintf(err.text, sizeof err.text, "%d of '%s' %d.%d", info.n_devices, info.name,
                     info.major, info.minor);
        bool ok = write(fd[1], &st, sizeof st) == sizeof st &&
                  write(fd[1], err.text, sizeof err.text) == sizeof err.text;
        _exit(!ok);
    }
    close(fd[1]);
    if (read(fd[0], &st, sizeof st) != sizeof st || read(fd[0], text, 240) != 240)
        st = SP_E_INTERNAL;
    close(fd[0]);
    waitpid(child, NULL, 0);
    return st;
}

static void a_probe_says_what_there_is_and_names_what_cannot_be_used(void) {
    char text[240] = "";
    CU_ASSERT_EQUAL(probe_in_child("2", "90", 1, text), SP_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "2 of 'emulated device sm_90' 9.0"));
    CU_ASSERT_EQUAL(probe_in_child("0", "80", 0, text), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "no GPU on this machine"));
    CU_ASSERT_EQUAL(probe_in_child("1", "75", 0, text), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "compute capability 7.5, want 8.0"));
    CU_ASSERT_EQUAL(probe_in_child("2", "80", 2, text), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "GPU 2 is wanted, this process sees 2"));
}

static void a_driver_older_than_the_toolkit_is_told_from_one_that_is_not_there(void) {
    char text[240] = "", want[80];
    driver_version = CUDART_VERSION - 1000 + 20;
    CU_ASSERT_EQUAL(probe_in_child("1", "80", 0, text), SP_E_UNSUPPORTED);
    snprintf(want, sizeof want, "version %d.2, older than the toolkit %d.",
             CUDART_VERSION / 1000 - 1, CUDART_VERSION / 1000);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, want));
    driver_version = 0;
    CU_ASSERT_EQUAL(probe_in_child("1", "80", 0, text), SP_E_UNAVAILABLE);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "no CUDA driver on this machine"));
    driver_version = CUDART_VERSION + 10; /* newer ones serve */
    CU_ASSERT_EQUAL(probe_in_child("1", "80", 0, text), SP_OK);
    driver_version = CUDART_VERSION;
}

static void work_queue(void *ctx) {
    sp_dev *dev = ctx;
    float *p = dev->ops->alloc(dev, 4096);
    superpod_device_plugin(SP_DEV_PLUGIN_ABI)->meter->copy(dev, p + 512, p, 2048);
    dev->ops->free(dev, p, 4096);
}
static void marks_of_the_device_tell_how_long_work_took_and_its_fault(void) {
    const sp_dev_meter *meter = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->meter;
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        sp_dev dev = open_dev((cu_emu_pace)pace, CU_EMU_FORWARD);
        sp_err err = {0};
        double us = -1;
        CU_ASSERT_EQUAL(meter->elapsed(&dev, work_queue, &dev, &us, &err), SP_OK);
        CU_ASSERT(us >= 0 && us < 60e6);
        meter->copy(&dev, (void *)16, (void *)32, 64); /* not device memory */
        CU_ASSERT_EQUAL(meter->elapsed(&dev, work_queue, &dev, &us, &err), SP_E_DEVICE);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'copy' failed"));
        sp_dev_close(&dev);
    }
}

static void links_say_which_devices_reach_one_another(void) {
    const sp_dev_plugin *p = superpod_device_plugin(SP_DEV_PLUGIN_ABI);
    sp_dev_link link = {.peer = true};
    sp_err err = {0};
    CU_ASSERT_EQUAL(p->link(&link, 0, 0, &err), SP_OK);
    CU_ASSERT_FALSE(link.peer);
    CU_ASSERT_EQUAL(p->link(&link, 0, 99, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "GPU 99 is wanted"));
}

SP_TEST_MAIN("kernels/cuda/cuda_dev",
             SP_TEST(a_driver_older_than_the_toolkit_is_told_from_one_that_is_not_there),
             SP_TEST(marks_of_the_device_tell_how_long_work_took_and_its_fault),
             SP_TEST(links_say_which_devices_reach_one_another),
             SP_TEST(a_probe_says_what_there_is_and_names_what_cannot_be_used),
             SP_TEST(another_build_gets_no_table),
             SP_TEST(every_operation_gives_what_ref_gives_in_any_order_and_pace),
             SP_TEST(the_data_of_a_step_is_kept_until_the_step_has_ended),
             SP_TEST(a_step_that_outgrows_its_slot_is_right_and_the_next_takes_no_memory),
             SP_TEST(a_poll_gives_up_at_its_deadline_and_may_be_asked_again),
             SP_TEST(copies_larger_than_the_staging_arrive_whole),
             SP_TEST(memory_is_zeroed_and_all_of_it_is_given_back),
             SP_TEST(too_little_memory_is_named_and_the_device_works_on),
             SP_TEST(quantised_weights_are_refused_by_name),
             SP_TEST(the_plan_is_told_the_bytes_that_packing_takes_in_whole_pieces),
             SP_TEST(a_failed_launch_sticks_and_names_the_error_and_the_operation),
             SP_TEST(ids_outside_the_vocabulary_are_refused_as_the_cpu_refuses_them),
             SP_TEST(positions_outside_the_rope_table_are_refused))
