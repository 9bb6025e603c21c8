/* kernels/cuda/nccl_api.h - NCCL as a table of functions, found at run time.
 *
 * The real library (libnccl.so.2) and the emulated device's (kernels/cuda/emu/nccl.cc) give the same
 * names, so that the same host code loads either. Neither is linked and no header of NCCL is needed:
 * types and values stand here, as far as they are used, and a test compares them with the toolkit's
 * nccl.h where there is one. A CUDA stream is named by its struct for the same reason.
 *
 * Limits: NCCL 2.19 or newer; older ones hang when a communicator is aborted. Only communicators
 *         with blocking = 0 are made: others cannot be aborted at any moment.
 * Source: nccl.h 2.19 to 2.28, NCCL's user guide.
 * Thread: any for open; a communicator's calls are made by one thread at a time, but for abort. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

struct CUstream_st;
typedef struct ncclComm *cu_nccl_comm;

#define CU_NCCL_ID_BYTES 128
typedef struct cu_nccl_id {
    char internal[CU_NCCL_ID_BYTES];
} cu_nccl_id;

typedef enum cu_nccl_result {
    CU_NCCL_OK,
    CU_NCCL_CUDA_ERROR,
    CU_NCCL_SYSTEM_ERROR,
    CU_NCCL_INTERNAL_ERROR,
    CU_NCCL_INVALID_ARGUMENT,
    CU_NCCL_INVALID_USAGE,
    CU_NCCL_REMOTE_ERROR,
    CU_NCCL_IN_PROGRESS, /* ask comm_get_async_error() until it says another word */
    CU_NCCL_RESULTS
} cu_nccl_result;

typedef enum cu_nccl_type {
    CU_NCCL_INT8,
    CU_NCCL_UINT8,
    CU_NCCL_INT32,
    CU_NCCL_UINT32,
    CU_NCCL_INT64,
    CU_NCCL_UINT64,
    CU_NCCL_F16,
    CU_NCCL_F32,
    CU_NCCL_F64,
    CU_NCCL_BF16,
    CU_NCCL_F8E4M3,
    CU_NCCL_F8E5M2,
    CU_NCCL_TYPES
} cu_nccl_type;

typedef enum cu_nccl_op {
    CU_NCCL_SUM,
    CU_NCCL_PROD,
    CU_NCCL_MAX,
    CU_NCCL_MIN,
    CU_NCCL_AVG,
    CU_NCCL_OPS
} cu_nccl_op;

/* The head of ncclConfig_t as all versions since 2.19 know it: they take a shorter one. */
typedef struct cu_nccl_config {
    size_t size;
    unsigned int magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
    int traffic_class; /* padding for old versions, a field for new ones */
} cu_nccl_config;

#define CU_NCCL_UNSET INT32_MIN
#define CU_NCCL_MAGIC 0xcafebeefu
#define CU_NCCL_OLDEST 21900 /* 2.19.0, as ncclGetVersion codes it */

/* field, NCCL's name, arguments; all answer a cu_nccl_result */
#define CU_NCCL_CALLS(X) \
    X(get_version, GetVersion, (int *version)) \
    X(get_unique_id, GetUniqueId, (cu_nccl_id * id)) \
    X(comm_init_rank_config, CommInitRankConfig, \
      (cu_nccl_comm * comm, int n, cu_nccl_id id, int rank, cu_nccl_config *config)) \
    X(comm_finalize, CommFinalize, (cu_nccl_comm comm)) \
    X(comm_destroy, CommDestroy, (cu_nccl_comm comm)) \
    X(comm_abort, CommAbort, (cu_nccl_comm comm)) \
    X(comm_get_async_error, CommGetAsyncError, (cu_nccl_comm comm, cu_nccl_result * error)) \
    X(all_gather, AllGather, \
      (const void *from, void *to, size_t count, cu_nccl_type type, cu_nccl_comm comm, \
       struct CUstream_st *stream)) \
    X(all_reduce, AllReduce, \
      (const void *from, void *to, size_t count, cu_nccl_type type, cu_nccl_op op, \
       cu_nccl_comm comm, struct CUstream_st *stream)) \
    X(broadcast, Broadcast, \
      (const void *from, void *to, size_t count, cu_nccl_type type, int root, cu_nccl_comm comm, \
       struct CUstream_st *stream)) \
    X(send, Send, \
      (const void *from, size_t count, cu_nccl_type type, int peer, cu_nccl_comm comm, \
       struct CUstream_st *stream)) \
    X(recv, Recv, \
      (void *to, size_t count, cu_nccl_type type, int peer, cu_nccl_comm comm, \
       struct CUstream_st *stream)) \
    X(group_start, GroupStart, (void)) \
    X(group_end, GroupEnd, (void))

typedef struct cu_nccl {
    void *library; /* dlopen's */
    int version;   /* 22809: 2.28.9 */
    char version_text[24];
#define X(field, name, arguments) cu_nccl_result(*field) arguments;
    CU_NCCL_CALLS(X)
#undef X
    const char *(*get_error_string)(cu_nccl_result result);
    const char *(*get_last_error)(cu_nccl_comm comm); /* may be NULL */
} cu_nccl;

/** Finds NCCL. `library`: a path or name for dlopen; NULL: the object that this code is part of,
 * when NCCL's names are in it (the emulated device's are), else libnccl.so.2.
 * Errors: SP_E_UNSUPPORTED there is none, a function is missing, or it is older than 2.19; names the
 *         library, what was seen and what is wanted. Owner: caller, cu_nccl_close(). */
SP_NODISCARD sp_status cu_nccl_open(cu_nccl *out, const char *library, sp_err *err);
void cu_nccl_close(cu_nccl *n);

/** A configuration for comm_init_rank_config: nothing set but blocking = 0. */
cu_nccl_config cu_nccl_config_make(void);

/** "2.28.9" of 22809; versions below 2.9 are coded by another rule. */
void cu_nccl_version_text(int version, char *out, size_t size);
