/* Memory of the caller's that copies go to and from without a stop in between (sp_dev_ops.host_pin). */
#include "kernels/cuda/cuda_dev.h"

/* A machine that does not let us (a limit, a kind of memory that cannot be locked) is no fault of the
 * device. One that has failed before says so at the next call. */
bool cu_host_pin(cu_dev *cu, void *p, size_t bytes) {
    if (cu->pinned || !bytes || !cu_begin(cu, "host_pin")) return false;
    if (cudaHostRegister(p, bytes, cudaHostRegisterDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    cu->pinned = p;
    cu->pinned_bytes = bytes;
    return true;
}

/* Waits for what is queued, as freeing does. */
void cu_host_unpin(cu_dev *cu, void *p) {
    if (!p || cu->pinned != p) return;
    (void)cudaHostUnregister(p);
    cu->pinned = NULL;
    cu->pinned_bytes = 0;
}

bool cu_host_is_pinned(const cu_dev *cu, const void *p, size_t bytes) {
    const uintptr_t at = (uintptr_t)p, first = (uintptr_t)cu->pinned;
    return first && at >= first && at - first < cu->pinned_bytes &&
           bytes <= cu->pinned_bytes - (at - first);
}
