/* Products of mode fast: few rows by our own kernel, more by cuBLASLt.
 *
 *   w [N, ld] row-major  is  A [ld, N] column-major, transposed
 *   x [T, K or ld]       is  B [K or ld, T]
 *   y [T, N]             is  D [N, T] = A^T B, the bias a value a row of D
 *
 * An algorithm is asked for once for a bucket of T (four an octave) of a product, and kept; whether it
 * takes the T at hand is a question to the host alone, asked each time. Where it does not, T gets one of
 * its own; where there is none at all, rows go in groups through the kernel for few. */
#include "kernels/cuda/cuda_dev.h"

#include "kernels/check.h"
#include "kernels/cuda/cublas_api.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

#define CHOICES_MAX 256 /* buckets of all products: four an octave, five products a model */

/* Everything that an algorithm depends on, but for strides, which cu_cublas.check() looks at. Compared
 * by its bytes: it has no holes. */
typedef struct key {
    int32_t n, k, tokens, dtype;
    uint32_t align_x, align_y; /* bytes */
    int32_t bias, whole;       /* whole: for these tokens alone, not up to them */
} key;

typedef struct choice {
    key key;
    bool none;
    cu_lt_algo algo;
} choice;

struct cu_lt {
    cu_cublas api;
    cu_lt_handle handle;
    cu_lt_desc desc; /* as the product at hand wants it; so are the layouts */
    cu_lt_layout a, b, d;
    cu_lt_preference preference;
    void *workspace;
    choice *choices; /* [CHOICES_MAX] */
    int n_choices, oldest;
};

typedef struct product {
    float *y;
    const void *x; /* as the weight's type */
    const cu_weight *w;
    const float *bias;
    int32_t T, k, ldx, ldy;
} product;

/* ---- open and close ---- */

static sp_status make_objects(cu_cublas *api, struct cu_lt *lt, sp_err *err) {
    cu_lt_status s = api->create(&lt->handle);
    if (s == CU_LT_OK) s = api->desc_create(&lt->desc, CU_LT_COMPUTE_F32, CU_LT_F32);
    if (s == CU_LT_OK) s = api->layout_create(&lt->a, CU_LT_F32, 1, 1, 1);
    if (s == CU_LT_OK) s = api->layout_create(&lt->b, CU_LT_F32, 1, 1, 1);
    if (s == CU_LT_OK) s = api->layout_create(&lt->d, CU_LT_F32, 1, 1, 1);
    if (s == CU_LT_OK) s = api->preference_create(&lt->preference);
    const int32_t transposed = CU_LT_OP_T;
    const uint64_t workspace = CU_LT_WORKSPACE;
    if (s == CU_LT_OK)
        s = api->desc_set(lt->desc, CU_LT_DESC_TRANS_A, &transposed, sizeof transposed);
    if (s == CU_LT_OK)
        s = api->preference_set(lt->preference, CU_LT_PREF_WORKSPACE, &workspace, sizeof workspace);
    if (s == CU_LT_OK) return SP_OK;
    return SP_FAIL(err, SP_E_UNSUPPORTED, "cuBLASLt %s does not start: %s", api->version_text,
                   api->status_name(s));
}

static void lt_close(struct cu_lt *lt) {
    const cu_cublas *api = &lt->api;
    if (lt->preference) (void)api->preference_destroy(lt->preference);
    if (lt->d) (void)api->layout_destroy(lt->d);
    if (lt->b) (void)api->layout_destroy(lt->b);
    if (lt->a) (void)api->layout_destroy(lt->a);
    if (lt->desc) (void)api->desc_destroy(lt->desc);
    if (lt->handle) (void)api->destroy(lt->handle);
    cu_mem_drop(lt->workspace);
    cu_cublas_close(&lt->api);
    sp_free(lt->choices);
    sp_free(lt);
}

sp_status cu_fast_open(cu_dev *cu, sp_err *err) {
    sp_err why = {0};
    struct cu_lt *lt = sp_try_alloc(sizeof *lt);
    if (!lt) return SP_FAIL(err, SP_E_NOMEM, "no memory for mode fast");
    lt->choices = sp_try_alloc_array(CHOICES_MAX, sizeof *lt->choices);
    if (!lt->choices) {
        lt_close(lt);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for mode fast");
    }
    sp_status st = cu_cublas_open(&lt->api, NULL, &why);
    if (st == SP_OK) st = make_objects(&lt->api, lt, &why);
    if (st != SP_OK) {
        lt_close(lt);
        snprintf(cu->note, sizeof cu->note, "numerics fast is by superpod's own kernels: %s",
                 why.text);
        return SP_OK;
    }
    lt->workspace = cu_mem_take(cu, CU_LT_WORKSPACE);
    if (!lt->workspace) {
        lt_close(lt);
        SP_TRY(sp_fault_status(&cu->fault, err));
        return SP_FAIL(err, SP_E_NOMEM, "GPU %d has no %zu bytes for cuBLASLt", cu->index,
                       CU_LT_WORKSPACE);
    }
    cu->lt = lt;
    return SP_OK;
}

void cu_fast_close(cu_dev *cu) {
    if (cu->lt) lt_close(cu->lt);
    cu->lt = NULL;
}

/* ---- what the library is told ---- */

static uint32_t alignment_of(const void *p) {
    const uintptr_t at = (uintptr_t)p | 256;
    return (uint32_t)(at & (~at + 1));
}

static int32_t type_of(sp_dtype t) {
    return t == SP_DTYPE_F32 ? CU_LT_F32 : t == SP_DTYPE_F16 ? CU_LT_F16 : CU_LT_BF16;
}

/* The end of the bucket that T lies in: steps of a quarter of the octave, 16 at least. */
static int32_t bucket_of(int32_t T) {
    int32_t step = 16;
    while (step < 1 << 20 && step * 8 < T) step *= 2;
    return (T + step - 1) / step * step;
}

static key key_of(const product *p, bool whole) {
    return (key){.n = p->w->rows,
                 .k = p->k,
                 .tokens = whole ? p->T : bucket_of(p->T),
                 .dtype = (int32_t)p->w->dtype,
                 .align_x = alignment_of(p->x),
                 .align_y = alignment_of(p->y),
                 .bias = p->bias != NULL,
                 .whole = whole};
}

static cu_lt_status shape(const cu_cublas *api, cu_lt_layout layout, int32_t type, int32_t rows,
                          int32_t cols, int32_t ld) {
    const uint64_t r = (uint64_t)rows, c = (uint64_t)cols;
    const int64_t stride = ld;
    cu_lt_status s = api->layout_set(layout, CU_LT_LAYOUT_TYPE, &type, sizeof type);
    if (s == CU_LT_OK) s = api->layout_set(layout, CU_LT_LAYOUT_ROWS, &r, sizeof r);
    if (s == CU_LT_OK) s = api->layout_set(layout, CU_LT_LAYOUT_COLS, &c, sizeof c);
    if (s == CU_LT_OK) s = api->layout_set(layout, CU_LT_LAYOUT_LD, &stride, sizeof stride);
    return s;
}

static cu_lt_status describe(const struct cu_lt *lt, const product *p, int32_t tokens) {
    const cu_cublas *api = &lt->api;
    const uint32_t epilogue = p->bias ? CU_LT_EPILOGUE_BIAS : CU_LT_EPILOGUE_NONE;
    const void *bias = p->bias;
    const int32_t type = type_of(p->w->dtype);
    cu_lt_status s = shape(api, lt->a, type, p->k, p->w->rows, p->w->ld);
    if (s == CU_LT_OK) s = shape(api, lt->b, type, p->k, tokens, p->ldx);
    if (s == CU_LT_OK) s = shape(api, lt->d, CU_LT_F32, p->w->rows, tokens, p->ldy);
    if (s == CU_LT_OK) s = api->desc_set(lt->desc, CU_LT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (s == CU_LT_OK) s = api->desc_set(lt->desc, CU_LT_DESC_BIAS, &bias, sizeof bias);
    return s;
}

static cu_lt_status prefer(const struct cu_lt *lt, const key *k) {
    const cu_cublas *api = &lt->api;
    cu_lt_status s =
        api->preference_set(lt->preference, CU_LT_PREF_ALIGN_B, &k->align_x, sizeof k->align_x);
    if (s == CU_LT_OK)
        s = api->preference_set(lt->preference, CU_LT_PREF_ALIGN_C, &k->align_y, sizeof k->align_y);
    if (s == CU_LT_OK)
        s = api->preference_set(lt->preference, CU_LT_PREF_ALIGN_D, &k->align_y, sizeof k->align_y);
    return s;
}

/* ---- algorithms ---- */

static choice *find(struct cu_lt *lt, const key *k) {
    for (int i = 0; i < lt->n_choices; i++)
        if (memcmp(&lt->choices[i].key, k, sizeof *k) == 0) return &lt->choices[i];
    return NULL;
}

/* The table is full only where buckets of many alignments meet: then the oldest goes. */
static choice *place(struct cu_lt *lt) {
    if (lt->n_choices < CHOICES_MAX) return &lt->choices[lt->n_choices++];
    choice *c = &lt->choices[lt->oldest];
    lt->oldest = (lt->oldest + 1) % CHOICES_MAX;
    return c;
}

static const choice *choose(struct cu_lt *lt, const product *p, bool whole) {
    const key k = key_of(p, whole);
    choice *c = find(lt, &k);
    if (c) return c;
    cu_lt_found found;
    memset(&found, 0, sizeof found);
    int n = 0;
    cu_lt_status s = describe(lt, p, k.tokens);
    if (s == CU_LT_OK) s = prefer(lt, &k);
    if (s == CU_LT_OK)
        s = lt->api.heuristic(lt->handle, lt->desc, lt->a, lt->b, lt->d, lt->d, lt->preference, 1,
                              &found, &n);
    c = place(lt);
    *c = (choice){
        .key = k, .none = s != CU_LT_OK || n < 1 || found.state != CU_LT_OK, .algo = found.algo};
    return c;
}

static bool fits(const struct cu_lt *lt, const choice *c) {
    cu_lt_found found;
    memset(&found, 0, sizeof found);
    return !c->none &&
           lt->api.check(lt->handle, lt->desc, lt->a, lt->b, lt->d, lt->d, &c->algo, &found) ==
               CU_LT_OK &&
           found.workspace_bytes <= CU_LT_WORKSPACE;
}

/* The algorithm for the rows at hand; NULL: the library has none. */
static const choice *settle(struct cu_lt *lt, const product *p) {
    for (int whole = 0; whole < 2; whole++) {
        const choice *c = choose(lt, p, whole);
        if (describe(lt, p, p->T) == CU_LT_OK && fits(lt, c)) return c;
    }
    return NULL;
}

/* ---- products ---- */

/* Refusals come before anything is queued. */
static bool is_refusal(cu_lt_status s) {
    return s == CU_LT_NOT_SUPPORTED || s == CU_LT_INVALID_VALUE || s == CU_LT_ARCH_MISMATCH;
}

static bool lt_gemm(cu_dev *cu, const product *p) {
    static const float one = 1, zero = 0;
    struct cu_lt *lt = cu->lt;
    const choice *c = settle(lt, p);
    if (!c) return false;
    const cu_lt_status s =
        lt->api.matmul(lt->handle, lt->desc, &one, p->w->data, lt->a, p->x, lt->b, &zero, p->y,
                       lt->d, p->y, lt->d, &c->algo, lt->workspace, CU_LT_WORKSPACE, cu->stream);
    if (s == CU_LT_OK) return true;
    if (is_refusal(s)) return false;
    sp_err err = {0};
    (void)SP_FAIL(&err, SP_E_DEVICE, "GPU %d: '%s' failed: %s (cuBLASLt %s)", cu->index, cu->op,
                  lt->api.status_name(s), lt->api.version_text);
    sp_fault_keep(&cu->fault, &err);
    return true;
}

static void few_at_a_time(cu_dev *cu, sp_mat y, sp_mat x, const cu_weight *w, const float *bias) {
    for (int32_t t = 0; t < y.rows; t += CU_PLAIN_ROWS) {
        const int32_t n = y.rows - t < CU_PLAIN_ROWS ? y.rows - t : CU_PLAIN_ROWS;
        const cudaError_t e = cu_plain_gemm(
            cu->stream, (float *)y.data + (size_t)t * (size_t)y.stride, y.stride,
            (const float *)x.data + (size_t)t * (size_t)x.stride, x.stride, w, bias, n);
        if (!cu_check(cu, e, cu->op)) return;
    }
}

/* x as the library takes it: f32 as it is, else rounded into scratch, which is not more than the
 * deterministic product of these rows takes. False: a fault stands. */
static bool take_x(cu_dev *cu, product *p, sp_mat x) {
    const bool wide = p->w->dtype == SP_DTYPE_F32;
    p->x = x.data;
    p->k = wide ? x.cols : p->w->ld;
    p->ldx = wide ? x.stride : p->w->ld;
    if (wide) return true;
    if (!cu_scratch(cu, (size_t)x.rows * (size_t)p->w->ld * 2)) return false;
    p->x = cu->scratch;
    return cu_check(cu,
                    cu_plain_round(cu->stream, cu->scratch, p->w->ld, p->w->dtype, x.data, x.stride,
                                   x.rows, x.cols),
                    cu->op);
}

bool cu_fast_gemm(cu_dev *cu, sp_mat y, sp_mat x, const sp_weight *w, const float *bias) {
    SP_DASSERT(y.dtype == SP_DTYPE_F32 && x.dtype == SP_DTYPE_F32);
    if (!w->w.ld && x.cols > 0) { /* no cuBLASLt: tiles */
        if (y.rows > CU_PLAIN_ROWS) return false;
        cu_check(
            cu, cu_gemm_skinny(cu->stream, y.data, y.stride, x.data, x.stride, &w->w, bias, y.rows),
            cu->op);
        return true;
    }
    product p = {.y = y.data, .w = &w->w, .bias = bias, .T = y.rows, .ldy = y.stride};
    if (y.rows > CU_PLAIN_ROWS && x.cols > 0) {
        if (!take_x(cu, &p, x) || lt_gemm(cu, &p)) return true;
    }
    few_at_a_time(cu, y, x, &w->w, bias);
    return true;
}
