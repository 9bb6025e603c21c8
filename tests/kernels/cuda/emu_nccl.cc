// The table of kernels/cuda/nccl_api.h against the toolkit's nccl.h, where there is one: values, the
// configuration's places, and of each function how many arguments, how large and of what sort.
#include "kernels/cuda/nccl_api.h"

#include <stddef.h>

extern "C" int emu_nccl_checked(void);

#if __has_include(<nccl.h>)
#include <nccl.h>
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
    static_assert(same_call<decltype(cu_nccl::field), decltype(&nccl##name)>::value, #name);
CU_NCCL_CALLS(X)
#undef X
static_assert(same_call<decltype(cu_nccl::get_error_string), decltype(&ncclGetErrorString)>::value,
              "");
static_assert(same_call<decltype(cu_nccl::get_last_error), decltype(&ncclGetLastError)>::value, "");

#define SAME(a, b) static_assert((int)(a) == (int)(b), #a)
SAME(CU_NCCL_ID_BYTES, NCCL_UNIQUE_ID_BYTES);
SAME(CU_NCCL_OK, ncclSuccess);
SAME(CU_NCCL_CUDA_ERROR, ncclUnhandledCudaError);
SAME(CU_NCCL_SYSTEM_ERROR, ncclSystemError);
SAME(CU_NCCL_INTERNAL_ERROR, ncclInternalError);
SAME(CU_NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(CU_NCCL_INVALID_USAGE, ncclInvalidUsage);
SAME(CU_NCCL_REMOTE_ERROR, ncclRemoteError);
SAME(CU_NCCL_IN_PROGRESS, ncclInProgress);
SAME(CU_NCCL_INT8, ncclInt8);
SAME(CU_NCCL_UINT8, ncclUint8);
SAME(CU_NCCL_INT32, ncclInt32);
SAME(CU_NCCL_UINT32, ncclUint32);
SAME(CU_NCCL_INT64, ncclInt64);
SAME(CU_NCCL_UINT64, ncclUint64);
SAME(CU_NCCL_F16, ncclFloat16);
SAME(CU_NCCL_F32, ncclFloat32);
SAME(CU_NCCL_F64, ncclFloat64);
SAME(CU_NCCL_BF16, ncclBfloat16);
SAME(CU_NCCL_SUM, ncclSum);
SAME(CU_NCCL_PROD, ncclProd);
SAME(CU_NCCL_MAX, ncclMax);
SAME(CU_NCCL_MIN, ncclMin);
SAME(CU_NCCL_AVG, ncclAvg);

#define PLACE(a, b) SAME(offsetof(cu_nccl_config, a), offsetof(ncclConfig_t, b))
PLACE(size, size);
PLACE(magic, magic);
PLACE(version, version);
PLACE(blocking, blocking);
PLACE(cga_cluster_size, cgaClusterSize);
PLACE(min_ctas, minCTAs);
PLACE(max_ctas, maxCTAs);
PLACE(net_name, netName);
PLACE(split_share, splitShare);
#if NCCL_VERSION_CODE >= 22700
PLACE(traffic_class, trafficClass);
#endif
static_assert(sizeof(cu_nccl_config) <= sizeof(ncclConfig_t), "");

int emu_nccl_checked(void) {
    ncclConfig_t c = NCCL_CONFIG_INITIALIZER;
    return c.magic == CU_NCCL_MAGIC && c.splitShare == CU_NCCL_UNSET &&
           NCCL_VERSION(2, 19, 0) == CU_NCCL_OLDEST;
}
#else
int emu_nccl_checked(void) {
    return -1;
}
#endif
