/* kernels/cuda/cublas_api.h - cuBLASLt as a table of functions, found at run time.
 *
 * As nccl_api.h: the real library (libcublasLt.so.13 or .12) and the emulated device's
 * (kernels/cuda/emu/cublaslt.cc) give the same names, so that the same host code loads either; types
 * and values stand here, as far as they are used, and a test compares them with the toolkit's
 * cublasLt.h where there is one. Only mode fast opens it: nobody else loads half a gigabyte.
 *
 * Limits: cuBLASLt 12.0 or newer. Descriptors are made by the library, whose sizes of them differ.
 * Source: cublasLt.h 12.0 to 13.1, cuBLAS's user guide.
 * Thread: any for open; descriptors belong to the thread that uses them. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

struct CUstream_st;
typedef struct cublasLtContext *cu_lt_handle;
/* The library's own structs, told apart by pointers alone. */
typedef struct cu_lt_desc_opaque *cu_lt_desc;
typedef struct cu_lt_layout_opaque *cu_lt_layout;
typedef struct cu_lt_preference_opaque *cu_lt_preference;

typedef enum cu_lt_status {
    CU_LT_OK = 0,
    CU_LT_NOT_INITIALIZED = 1,
    CU_LT_ALLOC_FAILED = 3,
    CU_LT_INVALID_VALUE = 7,
    CU_LT_ARCH_MISMATCH = 8,
    CU_LT_EXECUTION_FAILED = 13,
    CU_LT_INTERNAL_ERROR = 14,
    CU_LT_NOT_SUPPORTED = 15,
} cu_lt_status;

typedef enum cu_lt_type { /* cudaDataType */
    CU_LT_F32 = 0,
    CU_LT_F16 = 2,
    CU_LT_BF16 = 14,
} cu_lt_type;

#define CU_LT_COMPUTE_F32 68 /* adds in f32; f32 operands are not shortened to TF32 */
#define CU_LT_OP_N 0
#define CU_LT_OP_T 1

typedef enum cu_lt_desc_attribute {
    CU_LT_DESC_TRANS_A = 3,    /* int32_t */
    CU_LT_DESC_TRANS_B = 4,    /* int32_t */
    CU_LT_DESC_EPILOGUE = 7,   /* uint32_t */
    CU_LT_DESC_BIAS = 8,       /* const void *: a value a row of D, of D's type */
    CU_LT_DESC_BIAS_TYPE = 26, /* int32_t; -1: as D */
} cu_lt_desc_attribute;
#define CU_LT_EPILOGUE_NONE 1
#define CU_LT_EPILOGUE_BIAS 4

typedef enum cu_lt_layout_attribute { /* column-major unless said */
    CU_LT_LAYOUT_TYPE = 0,            /* uint32_t: a cu_lt_type */
    CU_LT_LAYOUT_ROWS = 2,            /* uint64_t */
    CU_LT_LAYOUT_COLS = 3,            /* uint64_t */
    CU_LT_LAYOUT_LD = 4,              /* int64_t */
} cu_lt_layout_attribute;

/* Alignments say what pointers will have, in bytes; 256 unless said. */
typedef enum cu_lt_preference_attribute {
    CU_LT_PREF_WORKSPACE = 1, /* uint64_t: bytes at most */
    CU_LT_PREF_ALIGN_A = 5,   /* uint32_t */
    CU_LT_PREF_ALIGN_B = 6,
    CU_LT_PREF_ALIGN_C = 7,
    CU_LT_PREF_ALIGN_D = 8,
} cu_lt_preference_attribute;

typedef struct cu_lt_algo {
    uint64_t data[8];
} cu_lt_algo;

typedef struct cu_lt_found {
    cu_lt_algo algo;
    size_t workspace_bytes;
    cu_lt_status state; /* of this one: the others count only where it is CU_LT_OK */
    float waves;
    int reserved[4];
} cu_lt_found;

/* field, cuBLASLt's name, arguments; all answer a cu_lt_status */
#define CU_LT_CALLS(X) \
    X(create, Create, (cu_lt_handle * handle)) \
    X(destroy, Destroy, (cu_lt_handle handle)) \
    X(desc_create, MatmulDescCreate, (cu_lt_desc * desc, int compute, cu_lt_type scale)) \
    X(desc_destroy, MatmulDescDestroy, (cu_lt_desc desc)) \
    X(desc_set, MatmulDescSetAttribute, \
      (cu_lt_desc desc, cu_lt_desc_attribute attribute, const void *value, size_t size)) \
    X(layout_create, MatrixLayoutCreate, \
      (cu_lt_layout * layout, cu_lt_type type, uint64_t rows, uint64_t cols, int64_t ld)) \
    X(layout_destroy, MatrixLayoutDestroy, (cu_lt_layout layout)) \
    X(layout_set, MatrixLayoutSetAttribute, \
      (cu_lt_layout layout, cu_lt_layout_attribute attribute, const void *value, size_t size)) \
    X(preference_create, MatmulPreferenceCreate, (cu_lt_preference * preference)) \
    X(preference_destroy, MatmulPreferenceDestroy, (cu_lt_preference preference)) \
    X(preference_set, MatmulPreferenceSetAttribute, \
      (cu_lt_preference preference, cu_lt_preference_attribute attribute, const void *value, \
       size_t size)) \
    X(heuristic, MatmulAlgoGetHeuristic, \
      (cu_lt_handle handle, cu_lt_desc desc, cu_lt_layout a, cu_lt_layout b, cu_lt_layout c, \
       cu_lt_layout d, cu_lt_preference preference, int wanted, cu_lt_found *found, int *n_found)) \
    X(check, MatmulAlgoCheck, \
      (cu_lt_handle handle, cu_lt_desc desc, cu_lt_layout a, cu_lt_layout b, cu_lt_layout c, \
       cu_lt_layout d, const cu_lt_algo *algo, cu_lt_found *found)) \
    X(matmul, Matmul, \
      (cu_lt_handle handle, cu_lt_desc desc, const void *alpha, const void *a, \
       cu_lt_layout a_layout, const void *b, cu_lt_layout b_layout, const void *beta, \
       const void *c, cu_lt_layout c_layout, void *d, cu_lt_layout d_layout, \
       const cu_lt_algo *algo, void *workspace, size_t workspace_bytes, \
       struct CUstream_st *stream))

#define CU_LT_OLDEST 120000 /* 12.0.0, as cublasLtGetVersion codes it */

typedef struct cu_cublas {
    void *library;  /* dlopen's */
    size_t version; /* 130100: 13.1.0 */
    char version_text[24];
#define X(field, name, arguments) cu_lt_status(*field) arguments;
    CU_LT_CALLS(X)
#undef X
    size_t (*get_version)(void);
    const char *(*status_name)(cu_lt_status status);
} cu_cublas;

/** Finds cuBLASLt. `library`: a path or name for dlopen; NULL: the object that this code is part of,
 * when cuBLASLt's names are in it (the emulated device's are), else libcublasLt.so.13, then .12.
 * Errors: SP_E_UNSUPPORTED there is none, a function is missing, or it is older than 12.0; names the
 *         library, what was seen and what is wanted. Owner: caller, cu_cublas_close(). */
SP_NODISCARD sp_status cu_cublas_open(cu_cublas *out, const char *library, sp_err *err);
void cu_cublas_close(cu_cublas *c);

/** "13.1.0" of 130100. */
void cu_cublas_version_text(size_t version, char *out, size_t size);
