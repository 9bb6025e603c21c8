/* Rows of the embedding on the device, out of weights packed in every way, and ids that do not exist. */
#include "tests/kernels/cuda/rows_env.h"

#include <math.h>

static const sp_dtype dtypes[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};

static cu_fault *no_fault(void) {
    const cu_fault none = {0};
    return upload(&none, sizeof none);
}
static cu_fault fault_of(const cu_fault *device) {
    cu_fault f;
    CUDA_OK(cudaMemcpy(&f, device, sizeof f, cudaMemcpyDeviceToHost));
    return f;
}

static void rows_of_any_packing_come_out_as_they_went_in(void) {
    NEEDS_FIBRES();
    rng_state = 41;
    for (int round = 0; round < ROUNDS(45); round++) {
        device_fresh(round);
        const int32_t V = between(1, 200), E = between(1, 300), T = between(1, 9);
        source src = any_source(V, E, dtypes[round % 3]);
        const sp_segments seg = any_segments(E);
        const cu_weight w = device_weight(&src, &seg);
        const int32_t ld = E + between(0, 2);
        int32_t ids[9];
        for (int32_t t = 0; t < T; t++) ids[t] = t ? between(0, V - 1) : V - 1;
        float *fill = canaries((size_t)T * (size_t)ld);
        float *dy = upload_floats(fill, (size_t)T * (size_t)ld);
        cu_fault *fault = no_fault();
        CUDA_OK(cu_embed(NULL, dy, ld, &w, upload(ids, sizeof ids), T, fault));
        float *y = download(dy, (size_t)T * (size_t)ld);
        bool ok = fault_of(fault).code == 0;
        for (int32_t t = 0; t < T; t++)
            for (int32_t k = 0; k < E; k++) {
                const float want = source_at(&src, ids[t], k);
                ok = ok && same(&y[(ptrdiff_t)t * ld + k], &want, 1);
            }
        if (!ok) printf("V %d E %d %s\n", V, E, sp_dtype_name(src.dtype));
        CU_ASSERT(ok);
        expect_gaps_untouched(y, T, E, ld);
        free(y);
        free(fill);
        free(src.data);
    }
}

static void padding_of_a_packed_weight_is_zero_and_its_size_counts_it(void) {
    NEEDS_FIBRES();
    rng_state = 42;
    device_fresh(0);
    /* 3 segments with 65, 0 and 1 columns take 2, 0 and 1 tiles; 70 rows take 2. */
    const sp_segments seg = {4, {0, 65, 65, 66, 66}};
    CU_ASSERT_EQUAL(cu_weight_bytes(70, 66, SP_DTYPE_BF16, &seg), 2 * 3 * 64 * 64 * 2);
    CU_ASSERT_EQUAL(cu_weight_bytes(64, 66, SP_DTYPE_F32, &seg), 3 * 64 * 64 * 4);
    CU_ASSERT_EQUAL(cu_weight_bytes(0, 66, SP_DTYPE_F32, &seg), 0);
    source src = any_source(70, 66, SP_DTYPE_BF16);
    for (int32_t i = 0; i < 70 * (int32_t)src.stride; i++) ((uint16_t *)src.data)[i] = 0x3f80;
    const cu_weight w = device_weight(&src, &seg);
    uint16_t packed[2 * 3 * 64 * 64];
    CUDA_OK(cudaMemcpy(packed, w.data, sizeof packed, cudaMemcpyDeviceToHost));
    int ones = 0, zeros = 0;
    for (size_t i = 0; i < SP_LEN(packed); i++) {
        ones += packed[i] == 0x3f80;
        zeros += packed[i] == 0;
    }
    CU_ASSERT_EQUAL(ones, 70 * 66);
    CU_ASSERT_EQUAL(zeros, (int)SP_LEN(packed) - 70 * 66);
    free(src.data);
}

static void the_first_id_outside_the_vocabulary_is_the_fault_in_every_order(void) {
    NEEDS_FIBRES();
    rng_state = 43;
    for (int round = 0; round < 9; round++) {
        enum {
            T = 600
        };
        device_fresh(round);
        source src = any_source(30, 20, dtypes[round % 3]);
        const sp_segments seg = sp_segments_of(20, 1);
        const cu_weight w = device_weight(&src, &seg);
        int32_t ids[T];
        for (int32_t t = 0; t < T; t++) ids[t] = between(0, 29);
        const int32_t bad = between(0, T - 2), value = round % 2 ? -1 : 30;
        ids[bad] = value;
        ids[between(bad + 1, T - 1)] = INT32_MAX;
        if (bad + 256 < T) ids[bad + 256] = 31; /* looked at by the same thread */
        cu_fault *fault = no_fault();
        float *dy = upload(NULL, T * 20 * sizeof *dy);
        CUDA_OK(cu_embed(NULL, dy, 20, &w, upload(ids, sizeof ids), T, fault));
        cu_fault f = fault_of(fault);
        CU_ASSERT(f.code == CU_FAULT_ID && f.row == bad && f.value == value);
        float *y = download(dy, T * 20);
        for (int32_t k = 0; k < 20; k++) CU_ASSERT_EQUAL(y[bad * 20 + k], 0.0f);
        free(y);
        /* A later call's fault changes nothing. */
        ids[0] = -7;
        CUDA_OK(cu_embed(NULL, dy, 20, &w, upload(ids, sizeof ids), 1, fault));
        f = fault_of(fault);
        CU_ASSERT(f.code == CU_FAULT_ID && f.row == bad && f.value == value);
        free(src.data);
    }
}

static size_t row_bytes(const source *s) {
    return (size_t)s->stride * (s->dtype == SP_DTYPE_F32 ? 4 : 2);
}

static void put_minus_zero(source *s, int32_t row, int32_t col) {
    const size_t i = (size_t)row * (size_t)s->stride + (size_t)col;
    if (s->dtype == SP_DTYPE_F32)
        ((float *)s->data)[i] = -0.0f;
    else
        ((uint16_t *)s->data)[i] = 0x8000;
}

/* Ids of which some are named by a slot; each member has rows of its own, and the sum is the whole. */
static void parts_of_a_vocabulary_add_up_to_the_whole_to_the_bit(void) {
    NEEDS_FIBRES();
    rng_state = 44;
    for (int round = 0; round < ROUNDS(24); round++) {
        enum {
            SLOTS = 5
        };
        device_fresh(round);
        const int32_t n = 1 + round % 4, V = between(4, 150), E = between(1, 200);
        const int32_t T = between(1, 9);
        source src = any_source(V, E, dtypes[round % 3]);
        /* A -0 has to come out as one. */
        for (int32_t v = 0; v < V; v++) put_minus_zero(&src, v, between(0, E - 1));
        const sp_segments seg = any_segments(E);
        int32_t ids[9], named[9], last[SLOTS];
        for (int32_t s = 0; s < SLOTS; s++) last[s] = between(0, V - 1);
        for (int32_t t = 0; t < T; t++) {
            named[t] = between(0, 1) ? -1 - between(0, SLOTS - 1) : between(0, V - 1);
            ids[t] = named[t] < 0 ? last[-1 - named[t]] : named[t];
        }
        const int32_t *there = upload(named, sizeof named), *known = upload(last, sizeof last);
        const size_t count = (size_t)T * (size_t)E;
        float *all = upload(NULL, (size_t)n * count * sizeof *all);
        cu_fault *fault = no_fault();
        for (int32_t m = 0; m < n; m++) {
            const int32_t first = V * m / n, end = V * (m + 1) / n;
            source mine = src;
            mine.rows = end - first;
            mine.data = (char *)src.data + (size_t)first * row_bytes(&src);
            const cu_weight w = device_weight(&mine, &seg);
            const cu_embed_from from = {known, SLOTS, first, V};
            CUDA_OK(cu_embed_part(NULL, all + (size_t)m * count, E, &w, there, T, &from, fault));
        }
        float *sum = upload(NULL, count * sizeof *sum);
        CUDA_OK(cu_tree_sum(NULL, sum, all, n, count));
        float *y = download(sum, count);
        bool ok = fault_of(fault).code == 0;
        for (int32_t t = 0; t < T; t++)
            for (int32_t k = 0; k < E; k++) {
                const float want = source_at(&src, ids[t], k);
                ok = ok && memcmp(&y[t * E + k], &want, sizeof want) == 0;
            }
        CU_ASSERT(ok);
        free(y);
        free(src.data);
    }
}

static void an_id_that_no_part_has_is_every_part_s_fault(void) {
    NEEDS_FIBRES();
    rng_state = 45;
    static const struct {
        int32_t id, value;
    } rows[] = {{40, 40}, {-1, 77}, {-3, -3}, {INT32_MIN, INT32_MIN}};
    const int32_t last[] = {77, 39};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        device_fresh((int)i);
        source src = any_source(20, 8, SP_DTYPE_F32);
        const sp_segments seg = sp_segments_of(8, 1);
        const cu_weight w = device_weight(&src, &seg);
        const int32_t ids[] = {0, -2, rows[i].id}, *there = upload(ids, sizeof ids);
        const cu_embed_from from = {upload(last, sizeof last), 2, 20, 40};
        cu_fault *fault = no_fault();
        float *dy = upload(NULL, 3 * 8 * sizeof *dy);
        CUDA_OK(cu_embed_part(NULL, dy, 8, &w, there, 3, &from, fault));
        const cu_fault f = fault_of(fault);
        CU_ASSERT(f.code == CU_FAULT_ID && f.row == 2 && f.value == rows[i].value);
        float *y = download(dy, 3 * 8);
        for (int32_t k = 0; k < 8; k++) CU_ASSERT(y[k] == 0 && signbit(y[k]));
        free(y);
        free(src.data);
    }
}

SP_TEST_MAIN("cuda embed", SP_TEST(rows_of_any_packing_come_out_as_they_went_in),
             SP_TEST(padding_of_a_packed_weight_is_zero_and_its_size_counts_it),
             SP_TEST(the_first_id_outside_the_vocabulary_is_the_fault_in_every_order),
             SP_TEST(parts_of_a_vocabulary_add_up_to_the_whole_to_the_bit),
             SP_TEST(an_id_that_no_part_has_is_every_part_s_fault))
