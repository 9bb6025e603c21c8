/* What `superpod bench gpu` measures with: marks of the device around queued work, and copies inside
 * its memory. The marks have events of their own: those of the ring keep no time. */
#include "kernels/cuda/cuda_dev.h"

#include "kernels/check.h"

static sp_status elapsed(sp_dev *dev, void (*work)(void *ctx), void *ctx, double *us, sp_err *err) {
    cu_dev *cu = dev->impl;
    cudaEvent_t mark[2] = {NULL, NULL};
    float ms = 0;
    bool ok = true;
    for (int i = 0; i < 2 && ok; i++)
        ok = cu_check(cu, cudaEventCreateWithFlags(&mark[i], cudaEventDefault), "meter");
    ok = ok && cu_check(cu, cudaEventRecord(mark[0], cu->stream), "meter");
    if (ok) {
        work(ctx);
        ok = cu_check(cu, cudaEventRecord(mark[1], cu->stream), "meter");
    }
    ok = ok && cu_wait(cu, mark[1], "meter");
    ok = ok && cu_check(cu, cudaEventElapsedTime(&ms, mark[0], mark[1]), "meter");
    for (int i = 0; i < 2; i++)
        if (mark[i]) (void)cudaEventDestroy(mark[i]);
    if (!ok) return sp_fault_status(&cu->fault, err);
    *us = (double)ms * 1e3;
    return SP_OK;
}

static void copy(sp_dev *dev, void *dst, const void *src, size_t bytes) {
    cu_dev *cu = dev->impl;
    if (bytes == 0 || !cu_begin(cu, "copy")) return;
    cu_check(cu, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cu->stream), cu->op);
}

const sp_dev_meter cu_meter = {.elapsed = elapsed, .copy = copy};
