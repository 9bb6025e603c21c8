/* kernels/cuda/emu/device.h - what code of a kernel calls in the emulator, under the names of CUDA
 * that shim/cuda_runtime.h and portable.cuh give it.
 *
 * A warp operation is a meeting: each lane lays a pointer to its operands down, and the last one to
 * arrive computes for all lanes of the mask. Places are passed for the reports.
 *
 * Thread: only inside a kernel, but for cu_emu_launch(). */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus

#define CU_TLS __thread __attribute__((tls_model("initial-exec")))
extern CU_TLS uint3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

#define CU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern "C" {

typedef struct cu_emu_op {
    const char *name;
    /* slots[lane] of lanes in the mask; others are NULL. */
    void (*run)(void *const *slots, uint32_t mask);
    bool orders_memory; /* __syncwarp: what lanes wrote before is seen after */
} cu_emu_op;

typedef struct cu_emu_block_op {
    const char *name;
    void (*run)(void *const *slots, int n); /* NULL: only a barrier */
} cu_emu_block_op;

/** Meets the other lanes of `mask`. */
void cu_emu_meet(const cu_emu_op *op, uint32_t mask, void *slot, const char *file, int line);
/** Meets all threads of the block; a barrier. */
void cu_emu_gather(const cu_emu_block_op *op, void *slot, const char *file, int line);

/** Shared memory of this block for the declaration that `key` stands for. */
void *cu_emu_shared(const void *key, size_t bytes, size_t align, const char *name, const char *file,
                    int line);
void *cu_emu_dynamic(void);

void cu_emu_copy_async(void *smem, const void *gmem, int bytes, int from_src, const char *file,
                       int line);
void cu_emu_copy_commit(void);
void cu_emu_copy_wait(int keep_groups, const char *file, int line);

/** Tells the race checker of an access that the compiler does not see. */
void cu_emu_touch(const void *ptr, size_t bytes, bool write, bool atomic);
/** A pointer that an instruction needs in shared memory, aligned. */
void cu_emu_want_shared(const void *ptr, size_t bytes, size_t align, const char *what,
                        const char *file, int line);
__attribute__((noreturn)) void cu_emu_trap(const char *what, const char *file, int line);

/** Queues a kernel; `pointers` has bit i for an argument that is a pointer. */
cudaError_t cu_emu_launch(void *fn, void (*thunk)(void *fn, void **args),
                          const cudaLaunchConfig_t *config, void *const *args,
                          const uint32_t *sizes, int n, uint64_t pointers);

/* ---- warp.cc: operations ---- */
uint64_t cu_emu_shuffle(int mode, uint32_t mask, uint64_t value, int lane, int width,
                        const char *file, int line);
uint32_t cu_emu_vote(int mode, uint32_t mask, int64_t value, const char *file, int line);
void cu_emu_syncwarp(uint32_t mask, const char *file, int line);
int cu_emu_sync_count(int mode, int predicate, const char *file, int line);
/* m16n8k16, A row major, B column major; half: f16, else bf16. */
void cu_emu_mma(bool half, float *d, const uint32_t *a, const uint32_t *b, const float *c,
                const char *file, int line);
void cu_emu_ldmatrix(int n, bool transposed, uint32_t *d, const void *row, const char *file,
                     int line);

} // extern "C"

enum {
    CU_SHFL_IDX,
    CU_SHFL_UP,
    CU_SHFL_DOWN,
    CU_SHFL_XOR
};
enum {
    CU_VOTE_ALL,
    CU_VOTE_ANY,
    CU_VOTE_BALLOT,
    CU_VOTE_MATCH,
    CU_VOTE_ADD,
    CU_VOTE_MIN,
    CU_VOTE_MAX,
    CU_VOTE_UMIN,
    CU_VOTE_UMAX,
    CU_VOTE_AND,
    CU_VOTE_OR,
    CU_VOTE_XOR
};
enum {
    CU_SYNC_COUNT,
    CU_SYNC_AND,
    CU_SYNC_OR
};

#endif
