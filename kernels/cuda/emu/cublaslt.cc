// cuBLASLt's names, as far as superpod calls them: column-major products of f32, f16 and bf16 with f32
// sums and results, a bias a row of D, no batches.
//
// As the real one: an algorithm belongs to operands of its types, operations and epilogue, wants
// alignments and a workspace, and is refused, before anything is queued, where it does not fit; the
// heuristic believes the alignments that the preference promises; the workspace is overwritten; sums
// have an order of their own. Beyond it: attributes that are not emulated are a report, and buffers
// are looked at when the product runs.
//
//   SUPERPOD_EMU_CUBLASLT_VERSION   what cublasLtGetVersion says (130100)
//   SUPERPOD_EMU_CUBLASLT_ALGOS     all; aligned: none for operands that are not at 16 bytes
#include "kernels/cuda/cublas_api.h"
#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/half.h"

#include <stdlib.h>
#include <string.h>

#define ALGO_MAGIC 0x6c74616c676f0000u
enum {
    WIDE = 1,
    NARROW = 2
};
#define WIDE_ALIGN 16

struct cublasLtContext {
    uint32_t magic;
};
struct cu_lt_desc_opaque {
    uint32_t magic;
    int compute;
    cu_lt_type scale;
    int32_t trans_a, trans_b, bias_type;
    uint32_t epilogue;
    const void *bias;
};
struct cu_lt_layout_opaque {
    uint32_t magic, type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cu_lt_preference_opaque {
    uint32_t magic;
    uint64_t workspace;
    uint32_t align[4]; // A, B, C, D
};
#define MAGIC_HANDLE 0x4c544831u
#define MAGIC_DESC 0x4c544431u
#define MAGIC_LAYOUT 0x4c544c31u
#define MAGIC_PREFERENCE 0x4c545031u

static int64_t n_heuristics, n_products;
extern "C" int64_t cu_emu_lt_heuristics(void) {
    return __atomic_load_n(&n_heuristics, __ATOMIC_RELAXED);
}
extern "C" int64_t cu_emu_lt_products(void) {
    return __atomic_load_n(&n_products, __ATOMIC_RELAXED);
}

extern "C" size_t cublasLtGetVersion(void) {
    const char *text = getenv("SUPERPOD_EMU_CUBLASLT_VERSION");
    return text && *text ? (size_t)atol(text) : 130100;
}

extern "C" const char *cublasLtGetStatusName(cu_lt_status status) {
    switch (status) {
    case CU_LT_OK:
        return "CUBLAS_STATUS_SUCCESS";
    case CU_LT_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CU_LT_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CU_LT_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CU_LT_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CU_LT_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CU_LT_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CU_LT_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "<unknown>";
}

/* ---- objects ---- */

template <class T> static cu_lt_status make(T **out, uint32_t magic) {
    if (!out) return CU_LT_INVALID_VALUE;
    *out = (T *)calloc(1, sizeof **out);
    if (!*out) return CU_LT_ALLOC_FAILED;
    (*out)->magic = magic;
    return CU_LT_OK;
}

template <class T> static cu_lt_status unmake(T *p, uint32_t magic) {
    if (!p || p->magic != magic) return CU_LT_INVALID_VALUE;
    p->magic = 0;
    free(p);
    return CU_LT_OK;
}

template <class T> static cu_lt_status assign(T *to, const void *value, size_t size) {
    if (!value || size != sizeof *to) return CU_LT_INVALID_VALUE;
    memcpy(to, value, size);
    return CU_LT_OK;
}

static cu_lt_status not_emulated(const char *what, int attribute) {
    (void)cu_emu_report(CU_EMU_MISUSE, "cublasLt: %s attribute %d is not emulated", what,
                        attribute);
    return CU_LT_NOT_SUPPORTED;
}

extern "C" cu_lt_status cublasLtCreate(cu_lt_handle *handle) {
    int device;
    if (cudaGetDevice(&device) != cudaSuccess) return CU_LT_NOT_INITIALIZED;
    return make(handle, MAGIC_HANDLE);
}
extern "C" cu_lt_status cublasLtDestroy(cu_lt_handle handle) {
    return unmake(handle, MAGIC_HANDLE);
}

extern "C" cu_lt_status cublasLtMatmulDescCreate(cu_lt_desc *desc, int compute, cu_lt_type scale) {
    const cu_lt_status s = make(desc, MAGIC_DESC);
    if (s != CU_LT_OK) return s;
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    (*desc)->bias_type = -1;
    (*desc)->epilogue = CU_LT_EPILOGUE_NONE;
    return CU_LT_OK;
}
extern "C" cu_lt_status cublasLtMatmulDescDestroy(cu_lt_desc desc) {
    return unmake(desc, MAGIC_DESC);
}
extern "C" cu_lt_status cublasLtMatmulDescSetAttribute(cu_lt_desc desc,
                                                       cu_lt_desc_attribute attribute,
                                                       const void *value, size_t size) {
    if (!desc || desc->magic != MAGIC_DESC) return CU_LT_INVALID_VALUE;
    switch (attribute) {
    case CU_LT_DESC_TRANS_A:
        return assign(&desc->trans_a, value, size);
    case CU_LT_DESC_TRANS_B:
        return assign(&desc->trans_b, value, size);
    case CU_LT_DESC_EPILOGUE:
        return assign(&desc->epilogue, value, size);
    case CU_LT_DESC_BIAS:
        return assign(&desc->bias, value, size);
    case CU_LT_DESC_BIAS_TYPE:
        return assign(&desc->bias_type, value, size);
    }
    return not_emulated("product", attribute);
}

extern "C" cu_lt_status cublasLtMatrixLayoutCreate(cu_lt_layout *layout, cu_lt_type type,
                                                   uint64_t rows, uint64_t cols, int64_t ld) {
    const cu_lt_status s = make(layout, MAGIC_LAYOUT);
    if (s != CU_LT_OK) return s;
    (*layout)->type = (uint32_t)type;
    (*layout)->rows = rows;
    (*layout)->cols = cols;
    (*layout)->ld = ld;
    return CU_LT_OK;
}
extern "C" cu_lt_status cublasLtMatrixLayoutDestroy(cu_lt_layout layout) {
    return unmake(layout, MAGIC_LAYOUT);
}
extern "C" cu_lt_status cublasLtMatrixLayoutSetAttribute(cu_lt_layout layout,
                                                         cu_lt_layout_attribute attribute,
                                                         const void *value, size_t size) {
    if (!layout || layout->magic != MAGIC_LAYOUT) return CU_LT_INVALID_VALUE;
    switch (attribute) {
    case CU_LT_LAYOUT_TYPE:
        return assign(&layout->type, value, size);
    case CU_LT_LAYOUT_ROWS:
        return assign(&layout->rows, value, size);
    case CU_LT_LAYOUT_COLS:
        return assign(&layout->cols, value, size);
    case CU_LT_LAYOUT_LD:
        return assign(&layout->ld, value, size);
    }
    return not_emulated("layout", attribute);
}

extern "C" cu_lt_status cublasLtMatmulPreferenceCreate(cu_lt_preference *preference) {
    const cu_lt_status s = make(preference, MAGIC_PREFERENCE);
    if (s != CU_LT_OK) return s;
    for (int i = 0; i < 4; i++) (*preference)->align[i] = 256;
    return CU_LT_OK;
}
extern "C" cu_lt_status cublasLtMatmulPreferenceDestroy(cu_lt_preference preference) {
    return unmake(preference, MAGIC_PREFERENCE);
}
extern "C" cu_lt_status cublasLtMatmulPreferenceSetAttribute(cu_lt_preference preference,
                                                             cu_lt_preference_attribute attribute,
                                                             const void *value, size_t size) {
    if (!preference || preference->magic != MAGIC_PREFERENCE) return CU_LT_INVALID_VALUE;
    if (attribute == CU_LT_PREF_WORKSPACE) return assign(&preference->workspace, value, size);
    if (attribute >= CU_LT_PREF_ALIGN_A && attribute <= CU_LT_PREF_ALIGN_D)
        return assign(&preference->align[attribute - CU_LT_PREF_ALIGN_A], value, size);
    return not_emulated("preference", attribute);
}

/* ---- what is asked for ---- */

typedef struct problem {
    uint64_t m, n, k;
    uint32_t type;
    bool trans_a, trans_b, has_bias;
    int64_t lda, ldb, ldc, ldd;
} problem;

static bool is_layout(const cu_lt_layout l) {
    return l && l->magic == MAGIC_LAYOUT && l->rows > 0 && l->cols > 0 && l->ld > 0 &&
           (uint64_t)l->ld >= l->rows;
}

static cu_lt_status resolve(problem *out, cu_lt_handle handle, cu_lt_desc desc, cu_lt_layout a,
                            cu_lt_layout b, cu_lt_layout c, cu_lt_layout d) {
    if (!handle || handle->magic != MAGIC_HANDLE) return CU_LT_NOT_INITIALIZED;
    if (!desc || desc->magic != MAGIC_DESC || !is_layout(a) || !is_layout(b) || !is_layout(c) ||
        !is_layout(d))
        return CU_LT_INVALID_VALUE;
    problem p = {};
    p.trans_a = desc->trans_a == CU_LT_OP_T;
    p.trans_b = desc->trans_b == CU_LT_OP_T;
    p.has_bias = desc->epilogue == CU_LT_EPILOGUE_BIAS;
    p.m = p.trans_a ? a->cols : a->rows;
    p.k = p.trans_a ? a->rows : a->cols;
    p.n = p.trans_b ? b->rows : b->cols;
    p.type = a->type;
    p.lda = a->ld, p.ldb = b->ld, p.ldc = c->ld, p.ldd = d->ld;
    if (p.k != (p.trans_b ? b->cols : b->rows) || c->rows != p.m || c->cols != p.n ||
        d->rows != p.m || d->cols != p.n || c->type != d->type)
        return CU_LT_INVALID_VALUE;
    if (p.has_bias && !desc->bias) return CU_LT_INVALID_VALUE;
    const bool known = a->type == CU_LT_F32 || a->type == CU_LT_F16 || a->type == CU_LT_BF16;
    if (!known || b->type != a->type || d->type != CU_LT_F32 || desc->scale != CU_LT_F32 ||
        desc->compute != CU_LT_COMPUTE_F32 ||
        (desc->epilogue != CU_LT_EPILOGUE_NONE && !p.has_bias) ||
        (p.has_bias && desc->bias_type != -1 && desc->bias_type != CU_LT_F32))
        return CU_LT_NOT_SUPPORTED;
    *out = p;
    return CU_LT_OK;
}

/* ---- algorithms ----
 * WIDE   splits K in two through the workspace; pointers and columns begin at 16 bytes
 * NARROW takes what there is */

static size_t element(const problem *p) {
    return p->type == CU_LT_F32 ? 4 : 2;
}

static bool wide_strides(const problem *p) {
    const uint64_t e = element(p);
    return (uint64_t)p->lda * e % WIDE_ALIGN == 0 && (uint64_t)p->ldb * e % WIDE_ALIGN == 0 &&
           (uint64_t)p->ldc * 4 % WIDE_ALIGN == 0 && (uint64_t)p->ldd * 4 % WIDE_ALIGN == 0;
}

static size_t workspace_of(int id, const problem *p) {
    return id == WIDE ? (size_t)(p->m * p->n) * 2 * sizeof(float) : 0;
}

static uint64_t signature(const problem *p) {
    return (uint64_t)p->type << 8 | (uint64_t)p->trans_a << 2 | (uint64_t)p->trans_b << 1 |
           (uint64_t)p->has_bias;
}

static cu_lt_found found_of(int id, const problem *p) {
    cu_lt_found f = {};
    f.algo.data[0] = ALGO_MAGIC | (uint64_t)id;
    f.algo.data[1] = signature(p);
    f.workspace_bytes = workspace_of(id, p);
    f.waves = 1;
    return f;
}

static int id_of(const cu_lt_algo *algo, const problem *p) {
    const uint64_t id = algo->data[0] - ALGO_MAGIC;
    return (id == WIDE || id == NARROW) && algo->data[1] == signature(p) ? (int)id : 0;
}

static bool narrow_exists(void) {
    const char *text = getenv("SUPERPOD_EMU_CUBLASLT_ALGOS");
    return !text || strcmp(text, "aligned") != 0;
}

extern "C" cu_lt_status cublasLtMatmulAlgoGetHeuristic(cu_lt_handle handle, cu_lt_desc desc,
                                                       cu_lt_layout a, cu_lt_layout b,
                                                       cu_lt_layout c, cu_lt_layout d,
                                                       cu_lt_preference preference, int wanted,
                                                       cu_lt_found *found, int *n_found) {
    problem p;
    __atomic_fetch_add(&n_heuristics, 1, __ATOMIC_RELAXED);
    if (wanted < 1 || !found || !n_found || !preference || preference->magic != MAGIC_PREFERENCE)
        return CU_LT_INVALID_VALUE;
    *n_found = 0;
    const cu_lt_status s = resolve(&p, handle, desc, a, b, c, d);
    if (s != CU_LT_OK) return s;
    bool wide = wide_strides(&p) && workspace_of(WIDE, &p) <= preference->workspace;
    for (int i = 0; i < 4; i++) wide = wide && preference->align[i] >= WIDE_ALIGN;
    if (wide) found[(*n_found)++] = found_of(WIDE, &p);
    if (narrow_exists() && *n_found < wanted) found[(*n_found)++] = found_of(NARROW, &p);
    return *n_found ? CU_LT_OK : CU_LT_NOT_SUPPORTED;
}

extern "C" cu_lt_status cublasLtMatmulAlgoCheck(cu_lt_handle handle, cu_lt_desc desc,
                                                cu_lt_layout a, cu_lt_layout b, cu_lt_layout c,
                                                cu_lt_layout d, const cu_lt_algo *algo,
                                                cu_lt_found *found) {
    problem p;
    const cu_lt_status s = resolve(&p, handle, desc, a, b, c, d);
    if (s != CU_LT_OK) return s;
    const int id = algo && found ? id_of(algo, &p) : 0;
    if (!id) return CU_LT_INVALID_VALUE;
    if (id == WIDE && !wide_strides(&p)) return CU_LT_NOT_SUPPORTED;
    found->workspace_bytes = workspace_of(id, &p);
    found->state = CU_LT_OK;
    found->waves = 1;
    return CU_LT_OK;
}

/* ---- products ---- */

typedef struct job {
    problem p;
    float alpha, beta;
    const void *a, *b, *c, *bias;
    void *d, *workspace;
    size_t workspace_bytes;
} job;

static float load(const void *p, uint32_t type, size_t i) {
    if (type == CU_LT_F32) return ((const float *)p)[i];
    const uint16_t h = ((const uint16_t *)p)[i];
    return type == CU_LT_F16 ? cu_f16_to_float(h) : cu_bf16_to_float(h);
}

// Operand as [cols of the result][k] f32.
static void unfold(float *to, const void *from, uint32_t type, uint64_t n, uint64_t k, int64_t ld,
                   bool k_first) {
    for (uint64_t i = 0; i < n; i++)
        for (uint64_t j = 0; j < k; j++)
            to[i * k + j] = load(from, type, k_first ? i * (uint64_t)ld + j : j * (uint64_t)ld + i);
}

// Four sums that take turns by pieces of 8 k: no other kernel here adds so.
static float dot(const float *a, const float *b, uint64_t k) {
    float s[4] = {};
    for (uint64_t i = 0; i < k; i++) s[i / 8 % 4] += a[i] * b[i];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

static bool touch(const char *what, const void *p, uint64_t n, int64_t ld, uint64_t rows,
                  size_t elt, int *err) {
    const size_t bytes = (size_t)((n - 1) * (uint64_t)ld + rows) * elt;
    if (cu_emu_is_device(p, bytes)) return true;
    *err =
        cu_emu_report(CU_EMU_ADDRESS, "cublasLtMatmul: %s (%zu bytes at %p) is not device memory",
                      what, bytes, p);
    return false;
}

static bool touch_all(const job *j, int *err) {
    const problem *p = &j->p;
    const size_t e = element(p);
    return touch("A", j->a, p->trans_a ? p->m : p->k, p->lda, p->trans_a ? p->k : p->m, e, err) &&
           touch("B", j->b, p->trans_b ? p->k : p->n, p->ldb, p->trans_b ? p->n : p->k, e, err) &&
           touch("D", j->d, p->n, p->ldd, p->m, 4, err) &&
           (j->beta == 0 || touch("C", j->c, p->n, p->ldc, p->m, 4, err)) &&
           (!j->bias || touch("the bias", j->bias, 1, 1, p->m, 4, err)) &&
           (!j->workspace_bytes ||
            touch("the workspace", j->workspace, 1, 1, j->workspace_bytes, 1, err));
}

static int run(void *arg) {
    const job *j = (const job *)arg;
    const problem *p = &j->p;
    int err = 0;
    if (!touch_all(j, &err)) return err;
    float *a = (float *)malloc((size_t)((p->m + p->n) * p->k) * sizeof *a);
    if (!a) return cudaErrorMemoryAllocation;
    float *b = a + p->m * p->k;
    unfold(a, j->a, p->type, p->m, p->k, p->lda, p->trans_a);
    unfold(b, j->b, p->type, p->n, p->k, p->ldb, !p->trans_b);
    if (j->workspace_bytes) memset(j->workspace, 0xFF, j->workspace_bytes);
    for (uint64_t n = 0; n < p->n; n++)
        for (uint64_t m = 0; m < p->m; m++) {
            float v = j->alpha * dot(a + m * p->k, b + n * p->k, p->k);
            if (j->beta != 0) v += j->beta * ((const float *)j->c)[n * (uint64_t)p->ldc + m];
            if (j->bias) v += ((const float *)j->bias)[m];
            ((float *)j->d)[n * (uint64_t)p->ldd + m] = v;
        }
    free(a);
    return 0;
}

// Each is true when all of the pointers begin at so many bytes; NULL does.
static bool aligned(size_t by, const void *a, const void *b, const void *c, const void *d) {
    return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d) & (by - 1)) == 0;
}

extern "C" cu_lt_status cublasLtMatmul(cu_lt_handle handle, cu_lt_desc desc, const void *alpha,
                                       const void *a, cu_lt_layout a_layout, const void *b,
                                       cu_lt_layout b_layout, const void *beta, const void *c,
                                       cu_lt_layout c_layout, void *d, cu_lt_layout d_layout,
                                       const cu_lt_algo *algo, void *workspace,
                                       size_t workspace_bytes, struct CUstream_st *stream) {
    job j = {};
    const cu_lt_status s = resolve(&j.p, handle, desc, a_layout, b_layout, c_layout, d_layout);
    if (s != CU_LT_OK) return s;
    // Without an algorithm the real one asks its heuristic each time.
    if (!algo) return not_emulated("no algorithm: product", 0);
    const int id = id_of(algo, &j.p);
    if (!id || !alpha || !beta || !a || !b || !c || !d) return CU_LT_INVALID_VALUE;
    if (id == WIDE && !wide_strides(&j.p)) return CU_LT_NOT_SUPPORTED;
    if (!aligned(id == WIDE ? WIDE_ALIGN : element(&j.p), a, b, NULL, NULL) ||
        !aligned(id == WIDE ? WIDE_ALIGN : 4, c, d, NULL, NULL))
        return CU_LT_INVALID_VALUE;
    j.workspace_bytes = workspace_of(id, &j.p);
    if (j.workspace_bytes && (workspace_bytes < j.workspace_bytes || !workspace ||
                              !aligned(16, workspace, NULL, NULL, NULL)))
        return CU_LT_INVALID_VALUE;
    j.alpha = *(const float *)alpha, j.beta = *(const float *)beta;
    j.a = a, j.b = b, j.c = c, j.d = d, j.workspace = workspace;
    j.bias = j.p.has_bias ? desc->bias : NULL;
    job *queued = (job *)malloc(sizeof *queued);
    if (!queued) return CU_LT_ALLOC_FAILED;
    *queued = j;
    __atomic_fetch_add(&n_products, 1, __ATOMIC_RELAXED);
    return cu_emu_enqueue(stream, "cublasLtMatmul", run, queued, free) == cudaSuccess
               ? CU_LT_OK
               : CU_LT_EXECUTION_FAILED;
}
