// Rotation and the cache on the emulated device: ref's bytes, in every cache type and block size, and
// nothing beside them.
#include "tests/kernels/cuda/attend_env.h"

/* Ref's rows, laid out as `got` has its blocks, in a cache that began as ours did. */
static bool same_cache(const model *m, const text *t, const result *ref, const result *got) {
    unsigned char *want = malloc(got->bytes);
    memset(want, 0xff, got->bytes);
    sp_kv_view kv = got->kv;
    kv.base = want;
    for (int32_t s = 0; s < t->n; s++)
        for (int32_t i = 0; i < t->length[s] * m->K; i++) {
            const int32_t pos = i / m->K, h = i % m->K;
            const unsigned char *from = sp_kv_k_row(&ref->kv, ref->tables + ref->table0[s], h, pos);
            unsigned char *to = sp_kv_k_row(&kv, got->tables + got->table0[s], h, pos);
            memcpy(to, from, sp_kv_row_bytes(&kv));
            memcpy(to + sp_kv_v_offset(&kv), from + sp_kv_v_offset(&ref->kv), sp_kv_row_bytes(&kv));
        }
    const bool ok = memcmp(want, got->memory, got->bytes) == 0;
    free(want);
    return ok;
}

static void the_cache_and_q_have_ref_s_bytes(void) {
    EMU_NEEDS_FIBRES();
    rng_state = 71;
    for (int32_t round = 0; round < 36; round++) {
        emu_fresh((cu_emu_order)(round % 3), CU_EMU_EAGER);
        const int32_t K = PICK(1, 2, 3), D = PICK(2, 5, 8, 20, 64, 80, 128);
        const int32_t dims = rng() % 2 ? D / 2 * 2 : D / 4 * 2 > 0 ? D / 4 * 2 : 2;
        model m = model_make(K * PICK(1, 2, 5), K, D, 0,
                             (sp_dtype)PICK(SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16), dims,
                             rng() % 2, 70);
        text t = {0};
        for (int32_t s = between(1, 3); s > 0; s--) text_add(&t, &m, between(1, 70), 5);
        for (int32_t i = 0; i < 30; i++) /* what rounds: large, subnormal in f16, halfway */
            t.qkv[0][rng() % (uint32_t)(t.length[0] * width_of(&m))] *= i % 3 == 0   ? 7e4f
                                                                        : i % 3 == 1 ? 0x1p-20f
                                                                                     : 0x1p-130f;
        const way y = {PICK(1, 8, 16, 128), PICK(1, 3, 100), rng() % 2, NULL, PICK(0, 2) * 2};
        result ref = ref_run(&m, &t), got = cuda_run(&m, &t, &y);
        bool ok = same_cache(&m, &t, &ref, &got);
        for (int32_t s = 0; s < t.n; s++)
            ok = ok && same(ref.q[s], got.q[s], rows_of(&t, s) * (size_t)(m.H * m.D));
        if (!ok) say("other bytes", &m, &y, &t);
        CU_ASSERT(ok);
        result_free(&ref, &t);
        result_free(&got, &t);
        text_free(&t);
        model_free(&m);
    }
}

/* One row by hand: H 1, K 1, D 4, at position 2 of a cache of f32. */
typedef struct by_hand {
    model m;
    text t;
    result r;
    there d;
    cu_rows rows;
    float *qkv;
} by_hand;

static by_hand hand_make(int32_t pos, const float *qkv) {
    by_hand b = {.m = model_make(1, 1, 4, 0, SP_DTYPE_F32, 4, false, 8)};
    const int32_t table = 0;
    text_add(&b.t, &b.m, 8, 1);
    b.r = result_make(&b.m, &b.t, 8);
    b.d = there_make(&b.m, &b.r, 0);
    b.rows = (cu_rows){to_device(&pos, 4), to_device(&table, 4), b.d.blocks, 1, pos < 0 ? 0 : pos};
    b.qkv = to_device(qkv, 12 * sizeof(float));
    return b;
}
static cudaError_t hand_run(by_hand *b, float *qkv) {
    const cudaError_t err = cu_rope_store(NULL, b->qkv, 12, 1, &b->d.rope, &b->d.kv, &b->rows);
    if (err != cudaSuccess) return err;
    EMU_OK(cudaMemcpy(qkv, b->qkv, 12 * sizeof(float), cudaMemcpyDeviceToHost));
    EMU_OK(cudaMemcpy(b->r.memory, b->d.kv.base, b->r.bytes, cudaMemcpyDeviceToHost));
    return err;
}
static void hand_free(by_hand *b) {
    result_free(&b->r, &b->t);
    text_free(&b->t);
    model_free(&b->m);
}

static const float numbers[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, INFINITY};

static void q_turns_in_place_and_k_only_in_the_cache(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    float qkv[12];
    by_hand b = hand_make(2, numbers);
    EMU_OK(hand_run(&b, qkv));
    const float *k = (const float *)(const void *)sp_kv_k_row(&b.r.kv, b.r.tables, 0, 2);
    const float *v = k + sp_kv_v_offset(&b.r.kv) / sizeof(float);
    for (int32_t i = 0; i < 4; i++) {
        const double c = cos(2 * pow(10000, -i % 2 / 2.0)), s = sin(2 * pow(10000, -i % 2 / 2.0));
        const double sign = i < 2 ? -1 : 1;
        CU_ASSERT(fabs((double)qkv[i] - (numbers[i] * c + sign * numbers[i ^ 2] * s)) < 1e-5);
        CU_ASSERT(fabs((double)k[i] - (numbers[4 + i] * c + sign * numbers[4 + (i ^ 2)] * s)) <
                  1e-5);
        CU_ASSERT_EQUAL(v[i], numbers[8 + i]);
    }
    CU_ASSERT_EQUAL(memcmp(qkv + 4, numbers + 4, 8 * sizeof(float)), 0);
    hand_free(&b);
}

static void a_padding_row_is_left_alone(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    float qkv[12];
    by_hand b = hand_make(-1, numbers);
    EMU_OK(hand_run(&b, qkv));
    CU_ASSERT_EQUAL(memcmp(qkv, numbers, sizeof qkv), 0);
    for (size_t i = 0; i < b.r.bytes; i++) CU_ASSERT_EQUAL_FATAL(b.r.memory[i], 0xff);
    hand_free(&b);
}

static void a_position_past_the_table_and_a_huge_head_are_refused(void) {
    EMU_NEEDS_FIBRES();
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
    float qkv[12];
    by_hand b = hand_make(7, numbers);
    const int64_t before = cu_emu_launches();
    b.rows.max_pos = 8;
    CU_ASSERT_EQUAL(hand_run(&b, qkv), cudaErrorInvalidValue);
    b.rows.max_pos = 7;
    b.d.rope.dims = 6;
    CU_ASSERT_EQUAL(hand_run(&b, qkv), cudaErrorInvalidValue);
    b.d.rope.dims = 4;
    b.d.kv.head_dim = SP_HEAD_DIM_MAX + 1;
    CU_ASSERT_EQUAL(hand_run(&b, qkv), cudaErrorInvalidValue);
    b.d.kv.head_dim = 4;
    b.d.kv.dtype = SP_DTYPE_I8;
    CU_ASSERT_EQUAL(hand_run(&b, qkv), cudaErrorInvalidValue);
    b.d.kv.dtype = SP_DTYPE_F32;
    b.rows.T = 0;
    EMU_OK(hand_run(&b, qkv));
    CU_ASSERT_EQUAL(cu_emu_launches(), before);
    b.rows.T = 1;
    EMU_OK(hand_run(&b, qkv));
    CU_ASSERT_EQUAL(cu_emu_launches(), before + 1);
    hand_free(&b);
}

SP_TEST_MAIN("kernels/cuda/rope", SP_TEST(the_cache_and_q_have_ref_s_bytes),
             SP_TEST(q_turns_in_place_and_k_only_in_the_cache),
             SP_TEST(a_padding_row_is_left_alone),
             SP_TEST(a_position_past_the_table_and_a_huge_head_are_refused))
