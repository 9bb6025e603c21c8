// The table of kernels/cuda/cublas_api.h against the toolkit's cublasLt.h, where there is one: values,
// structs, and of each function how many arguments, how large and of what sort.
#include "kernels/cuda/cublas_api.h"

#include <stddef.h>

extern "C" int emu_cublaslt_checked(void);

#ifdef EMU_TOOLKIT
#include <cublasLt.h>
#include <type_traits>

template <class A, class B> struct same_sort {
    static const bool value = sizeof(A) == sizeof(B) &&
                              std::is_pointer<A>::value == std::is_pointer<B>::value &&
                              std::is_class<A>::value == std::is_class<B>::value;
};
template <class A, class B> struct same_call { static const bool value = false; };
template <class R, class... P, class S, class... Q> struct same_call<R (*)(P...), S (*)(Q...)> {
    template <bool all> static constexpr bool check() {
        if constexpr (sizeof...(P) != sizeof...(Q))
            return false;
        else
            return (same_sort<P, Q>::value && ... && all);
    }
    static const bool value = same_sort<R, S>::value && check<true>();
};

#define X(field, name, arguments) \
    static_assert(same_call<decltype(cu_cublas::field), decltype(&cublasLt##name)>::value, #name);
CU_LT_CALLS(X)
#undef X
static_assert(same_call<decltype(cu_cublas::get_version), decltype(&cublasLtGetVersion)>::value,
              "");
static_assert(same_call<decltype(cu_cublas::status_name), decltype(&cublasLtGetStatusName)>::value,
              "");

#define SAME(a, b) static_assert((int)(a) == (int)(b), #a)
SAME(CU_LT_OK, CUBLAS_STATUS_SUCCESS);
SAME(CU_LT_NOT_INITIALIZED, CUBLAS_STATUS_NOT_INITIALIZED);
SAME(CU_LT_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
SAME(CU_LT_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(CU_LT_ARCH_MISMATCH, CUBLAS_STATUS_ARCH_MISMATCH);
SAME(CU_LT_EXECUTION_FAILED, CUBLAS_STATUS_EXECUTION_FAILED);
SAME(CU_LT_INTERNAL_ERROR, CUBLAS_STATUS_INTERNAL_ERROR);
SAME(CU_LT_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(CU_LT_F32, CUDA_R_32F);
SAME(CU_LT_F16, CUDA_R_16F);
SAME(CU_LT_BF16, CUDA_R_16BF);
SAME(CU_LT_COMPUTE_F32, CUBLAS_COMPUTE_32F);
SAME(CU_LT_OP_N, CUBLAS_OP_N);
SAME(CU_LT_OP_T, CUBLAS_OP_T);
SAME(CU_LT_DESC_TRANS_A, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(CU_LT_DESC_TRANS_B, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(CU_LT_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(CU_LT_DESC_BIAS, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(CU_LT_DESC_BIAS_TYPE, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(CU_LT_EPILOGUE_NONE, CUBLASLT_EPILOGUE_DEFAULT);
SAME(CU_LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(CU_LT_LAYOUT_TYPE, CUBLASLT_MATRIX_LAYOUT_TYPE);
SAME(CU_LT_LAYOUT_ROWS, CUBLASLT_MATRIX_LAYOUT_ROWS);
SAME(CU_LT_LAYOUT_COLS, CUBLASLT_MATRIX_LAYOUT_COLS);
SAME(CU_LT_LAYOUT_LD, CUBLASLT_MATRIX_LAYOUT_LD);
SAME(CU_LT_PREF_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(CU_LT_PREF_ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(CU_LT_PREF_ALIGN_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(CU_LT_PREF_ALIGN_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(CU_LT_PREF_ALIGN_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);

#define PLACE(a, b) SAME(offsetof(cu_lt_found, a), offsetof(cublasLtMatmulHeuristicResult_t, b))
PLACE(algo, algo);
PLACE(workspace_bytes, workspaceSize);
PLACE(state, state);
PLACE(waves, wavesCount);
PLACE(reserved, reserved);
static_assert(sizeof(cu_lt_algo) == sizeof(cublasLtMatmulAlgo_t), "");
static_assert(sizeof(cu_lt_found) == sizeof(cublasLtMatmulHeuristicResult_t), "");

int emu_cublaslt_checked(void) {
    return 1;
}
#else
int emu_cublaslt_checked(void) {
    return -1;
}
#endif
