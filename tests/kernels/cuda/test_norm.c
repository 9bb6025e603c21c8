/* The residual sum and norm on the device: ref's bits, in every order of threads. */
#include "tests/kernels/cuda/rows_env.h"

typedef struct shape {
    int32_t T, E, ldx, ldy, ldp;
    float *x, *partial, *bias, *weight, eps;
    bool norm; /* else only the sum */
} shape;

static shape any_shape(int32_t T, int32_t E) {
    shape s = {.T = T, .E = E, .eps = rng() % 4 ? 1e-5f : 0.0f, .norm = rng() % 4 != 0};
    s.ldx = E + between(0, 1) * 3;
    s.ldy = E + between(0, 1) * 5;
    s.ldp = E + between(0, 1);
    s.x = values((size_t)T * (size_t)s.ldx);
    s.partial = rng() % 3 ? values((size_t)T * (size_t)s.ldp) : NULL;
    s.bias = rng() % 2 ? values((size_t)E) : NULL;
    s.weight = values((size_t)E);
    return s;
}

static void shape_free(shape *s) {
    free(s->x);
    free(s->partial);
    free(s->bias);
    free(s->weight);
}

static void run_ref(sp_dev *ref, const shape *s, float *x, float *y) {
    const sp_mat xm = mat(x, s->T, s->E, s->ldx), pm = mat(s->partial, s->T, s->E, s->ldp);
    if (s->norm)
        ref->ops->add_rmsnorm(ref, mat(y, s->T, s->E, s->ldy), xm, pm, s->bias, s->weight, s->eps);
    else if (s->partial)
        ref->ops->add(ref, xm, pm, s->bias);
}

static void compare(sp_dev *ref, const shape *s) {
    const size_t nx = (size_t)s->T * (size_t)s->ldx, ny = (size_t)s->T * (size_t)s->ldy;
    float *y = canaries(ny), *x = malloc(nx * sizeof *x);
    float *dx = upload_floats(s->x, nx), *dy = s->norm ? upload_floats(y, ny) : NULL;
    memcpy(x, s->x, nx * sizeof *x);
    CUDA_OK(cu_add_rmsnorm(NULL, dy, s->ldy, dx, s->ldx,
                           upload_floats(s->partial, (size_t)s->T * (size_t)s->ldp), s->ldp,
                           upload_floats(s->bias, (size_t)s->E),
                           upload_floats(s->weight, (size_t)s->E), s->eps, s->T, s->E));
    run_ref(ref, s, x, y);
    float *gx = download(dx, nx), *gy = s->norm ? download(dy, ny) : NULL;
    const bool ok = same(gx, x, nx) && (!gy || same(gy, y, ny));
    if (!ok) printf("T %d E %d: %s\n", s->T, s->E, cu_emu_last_report());
    CU_ASSERT(ok);
    free(y);
    free(x);
    free(gx);
    free(gy);
}

static void norm_and_sum_give_the_bits_of_ref(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(31);
    for (int round = 0; round < ROUNDS(60); round++) {
        device_fresh(round);
        shape s = any_shape(PICK(1, 2, 5), PICK(1, 2, 15, 16, 17, 127, 128, 129, 200, 500));
        compare(&ref, &s);
        shape_free(&s);
    }
    sp_dev_close(&ref);
}

static void rows_of_several_chunks_give_the_bits_of_ref(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(32);
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        shape s = any_shape(2, (int32_t[]){2047, 2048, 2049, 4096, 5000, 6161}[round]);
        s.norm = true;
        compare(&ref, &s);
        shape_free(&s);
    }
    sp_dev_close(&ref);
}

static void a_row_of_zeros_or_infinities_is_what_ref_says(void) {
    NEEDS_FIBRES();
    sp_dev ref = ref_open(33);
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        shape s = any_shape(2, 40);
        s.norm = true;
        s.eps = round ? 1e-6f : 0.0f;
        for (int32_t i = 0; i < 40; i++) s.x[i] = round == 2 ? INFINITY : 0.0f;
        compare(&ref, &s);
        shape_free(&s);
    }
    sp_dev_close(&ref);
}

static void nothing_is_done_for_no_rows_and_no_work(void) {
    NEEDS_FIBRES();
    device_fresh(0);
    float *x = upload(NULL, 64);
    const int64_t before = cu_emu_launches();
    CUDA_OK(cu_add_rmsnorm(NULL, x, 4, x, 4, NULL, 0, NULL, x, 0, 0, 4));
    CUDA_OK(cu_add_rmsnorm(NULL, NULL, 0, x, 4, NULL, 0, NULL, NULL, 0, 2, 4));
    CU_ASSERT_EQUAL(cu_emu_launches(), before);
    CU_ASSERT_EQUAL(cu_add_rmsnorm(NULL, x, 4, x, 4, NULL, 0, NULL, NULL, 0, 1, 4),
                    cudaErrorInvalidValue);
}

SP_TEST_MAIN("cuda norm", SP_TEST(norm_and_sum_give_the_bits_of_ref),
             SP_TEST(rows_of_several_chunks_give_the_bits_of_ref),
             SP_TEST(a_row_of_zeros_or_infinities_is_what_ref_says),
             SP_TEST(nothing_is_done_for_no_rows_and_no_work))
