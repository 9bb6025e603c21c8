#include "kernels/cuda/cuda_dev.h"

#include "kernels/check.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

/* ---- faults ---- */

/* A refusal of a kernel (a shape it has no code for) is not a broken card. */
static sp_status status_of(cudaError_t e) {
    if (e == cudaErrorMemoryAllocation) return SP_E_NOMEM;
    if (e == cudaErrorNotSupported || e == cudaErrorInvalidConfiguration) return SP_E_UNSUPPORTED;
    return SP_E_DEVICE;
}

bool cu_check(cu_dev *cu, cudaError_t e, const char *op) {
    if (e != cudaSuccess && cu->graphs.now) { /* queued again plainly: a true fault shows then */
        cu->graphs.spoilt = true;
        (void)cudaGetLastError();
        return false;
    }
    if (e != cudaSuccess) {
        sp_err err = {0};
        (void)SP_FAIL(&err, status_of(e), "GPU %d: '%s' failed: %s (%s)", cu->index, op,
                      cudaGetErrorName(e), cudaGetErrorString(e));
        sp_fault_keep(&cu->fault, &err);
        (void)cudaGetLastError(); /* an error that is not the device's own does not come again */
    }
    return cu->fault.code == SP_OK;
}

bool cu_begin(cu_dev *cu, const char *op) {
    if (cu->fault.code != SP_OK) return false;
    cu->op = op;
    return true;
}

/* As it, for what belongs to a step. */
static bool begin_op(cu_dev *cu, const char *op) {
    return cu_begin(cu, op) && cu_step_mark(cu);
}

/* ---- open ---- */

static void dev_close(sp_dev *dev) {
    cu_dev *cu = dev->impl;
    if (!cu) return;
    cu_graphs_close(cu);
    cu_ring_close(cu);
    cu_host_unpin(cu, cu->pinned);
    cu_stage_close(&cu->stage);
    cu_mem_drop(cu->scratch);
    cu_fast_close(cu);
    cu_mem_drop(cu->fault_dev);
    cu_host_drop(cu->fault_host);
    if (cu->stream) (void)cudaStreamDestroy(cu->stream);
    sp_free(cu);
    dev->impl = NULL;
}

static sp_status open_stream(cu_dev *cu, sp_err *err) {
    struct cudaDeviceProp prop;
    cudaError_t e = cudaSetDevice(cu->index);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&prop, cu->index);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&cu->stream, cudaStreamNonBlocking);
    if (!cu_check(cu, e, "open")) return sp_fault_status(&cu->fault, err);
    snprintf(cu->detail, sizeof cu->detail, "GPU %d '%.64s', compute capability %d.%d, %llu MiB",
             cu->index, prop.name, prop.major, prop.minor,
             (unsigned long long)(prop.totalGlobalMem >> 20));
    cu->fault_dev = cu_mem_take(cu, sizeof *cu->fault_dev);
    cu->fault_host = cu_host_take(cu, CU_SLOTS * sizeof *cu->fault_host);
    SP_TRY(sp_fault_status(&cu->fault, err));
    if (!cu->fault_dev || !cu->fault_host)
        return SP_FAIL(err, SP_E_NOMEM, "GPU %d has no memory for a fault word", cu->index);
    return cu_ring_open(cu, err);
}

static sp_status dev_open(sp_dev *dev, const sp_dev_config *config, sp_err *err) {
    sp_dev_info info;
    SP_TRY(cu_probe(&info, config->index, err));
    cu_dev *cu = sp_try_alloc(sizeof *cu);
    if (!cu) return SP_FAIL(err, SP_E_NOMEM, "no memory for a device");
    cu->index = config->index;
    cu->op = "open";
    cu->fast = config->fast;
    dev->impl = cu;
    sp_status st = open_stream(cu, err);
    if (st == SP_OK && cu->fast) st = cu_fast_open(cu, err);
    if (st != SP_OK) {
        dev_close(dev);
        return st;
    }
    const size_t said = strlen(cu->detail);
    snprintf(cu->detail + said, sizeof cu->detail - said, ", %s",
             cu->fast ? "fast" : "deterministic");
    dev->detail = cu->detail;
    dev->note = cu->note[0] ? cu->note : NULL;
    return SP_OK;
}

/* ---- memory ---- */

static void *dev_alloc(sp_dev *dev, size_t bytes) {
    return cu_mem_take(dev->impl, bytes);
}
static void dev_free(sp_dev *dev, void *p, size_t bytes) {
    (void)bytes;
    cu_graphs_drop(dev->impl);
    cu_mem_drop(p);
}
static void *dev_host_alloc(sp_dev *dev, size_t bytes) {
    return cu_host_take(dev->impl, bytes);
}
static void dev_host_free(sp_dev *dev, void *p, size_t bytes) {
    (void)dev;
    (void)bytes;
    cu_host_drop(p);
}
static sp_status dev_pack(sp_dev *dev, sp_weight **out, const sp_weight_part *parts, int n_parts,
                          const sp_segments *seg, sp_err *err) {
    return cu_pack(dev->impl, out, parts, n_parts, seg, err);
}
static void dev_weight_free(sp_dev *dev, sp_weight *w) {
    cu_graphs_drop(dev->impl);
    cu_weight_drop(dev->impl, w);
}
static void dev_upload(sp_dev *dev, void *dst, const void *src, size_t bytes) {
    cu_upload(dev->impl, dst, src, bytes);
}

static void dev_download(sp_dev *dev, void *dst, const void *src, size_t bytes) {
    cu_dev *cu = dev->impl;
    if (bytes == 0 || !cu_begin(cu, "download")) return;
    cu_check(cu, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cu->stream), cu->op);
}

static bool dev_host_pin(sp_dev *dev, void *p, size_t bytes) {
    return cu_host_pin(dev->impl, p, bytes);
}
static void dev_host_unpin(sp_dev *dev, void *p) {
    cu_host_unpin(dev->impl, p);
}

static sp_status dev_memory(sp_dev *dev, uint64_t *free_bytes, uint64_t *total_bytes, sp_err *err) {
    cu_dev *cu = dev->impl;
    size_t left, all;
    if (!cu_check(cu, cudaMemGetInfo(&left, &all), "memory"))
        return sp_fault_status(&cu->fault, err);
    *free_bytes = left;
    *total_bytes = all;
    return SP_OK;
}

static sp_status dev_reserve(sp_dev *dev, const sp_dev_sizes *sizes, sp_err *err) {
    return cu_reserve(dev->impl, sizes, err);
}

/* ---- operations ---- */

static float *floats(sp_mat m) {
    SP_DASSERT(m.dtype == SP_DTYPE_F32 && m.stride >= m.cols);
    return m.data;
}

/* Rows of an operation: a step that is recorded has as many as its bucket. */
static int32_t rows_of(const cu_dev *cu, sp_mat m) {
    SP_DASSERT(!cu->graphs.now || m.rows == cu->graphs.n);
    return cu->graphs.now ? cu->graphs.now->rows : m.rows;
}

static void embed_there(cu_dev *cu, sp_mat y, const sp_weight *w, const int32_t *there) {
    cu->vocab = w->w.rows;
    cu_check(cu,
             cu_embed(cu->stream, floats(y), y.stride, &w->w, there, rows_of(cu, y), cu->fault_dev),
             cu->op);
}

static void dev_embed(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(y.cols == w->w.cols);
    /* The device would find a wrong id too, after it had read beside the weights' end. */
    if (y.rows == 0 || !sp_check_ids(&cu->fault, ids, y.rows, w->w.rows)) return;
    if (!begin_op(cu, "embed")) return;
    const int32_t *there = cu_send(cu, ids, (size_t)y.rows * sizeof *ids);
    if (there) embed_there(cu, y, w, there);
}

static void dev_embed_fed(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids,
                          const int32_t *last, int32_t n_last) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(y.cols == w->w.cols);
    for (int32_t t = 0; t < y.rows; t++) {
        SP_ASSERT(ids[t] >= 0 || -1 - ids[t] < n_last);
        if (ids[t] >= 0 && !sp_check_ids(&cu->fault, ids + t, 1, w->w.rows)) return;
    }
    if (y.rows == 0 || !begin_op(cu, "embed")) return;
    int32_t *there = (int32_t *)(uintptr_t)cu_send(cu, ids, (size_t)y.rows * sizeof *ids);
    if (!there) return;
    if (cu_check(cu, cu_feed(cu->stream, there, last, n_last, rows_of(cu, y)), cu->op))
        embed_there(cu, y, w, there);
}

static void dev_embed_part(sp_dev *dev, sp_mat y, const sp_weight *w, const int32_t *ids,
                           const sp_embed_part *part) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(y.cols == w->w.cols && part->first >= 0 && w->w.rows <= part->vocab - part->first);
    for (int32_t t = 0; t < y.rows; t++) {
        SP_ASSERT(ids[t] >= 0 || -1 - ids[t] < part->n_last);
        if (ids[t] >= 0 && !sp_check_ids(&cu->fault, ids + t, 1, part->vocab)) return;
    }
    if (y.rows == 0 || !begin_op(cu, "embed")) return;
    const int32_t *there = cu_send(cu, ids, (size_t)y.rows * sizeof *ids);
    if (!there) return;
    const cu_embed_from from = {part->last, part->n_last, part->first, part->vocab};
    cu->vocab = part->vocab;
    cu_check(cu,
             cu_embed_part(cu->stream, floats(y), y.stride, &w->w, there, rows_of(cu, y), &from,
                           cu->fault_dev),
             cu->op);
}

static void dev_add_rmsnorm(sp_dev *dev, sp_mat y, sp_mat x, sp_mat partial, const float *bias,
                            const float *weight, float eps) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(y.cols == x.cols && y.data != x.data);
    if (x.rows == 0 || !begin_op(cu, "add_rmsnorm")) return;
    /* Without a sum to add there is no bias either (dev.h). */
    const float *add = partial.data ? floats(partial) : NULL;
    cu_check(cu,
             cu_add_rmsnorm(cu->stream, floats(y), y.stride, floats(x), x.stride, add,
                            partial.stride, add ? bias : NULL, weight, eps, rows_of(cu, x), x.cols),
             cu->op);
}

static void dev_add(sp_dev *dev, sp_mat x, sp_mat partial, const float *bias) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(x.cols == partial.cols && x.rows == partial.rows);
    if (x.rows == 0 || !begin_op(cu, "add")) return;
    cu_check(cu,
             cu_add_rmsnorm(cu->stream, NULL, 0, floats(x), x.stride, floats(partial),
                            partial.stride, bias, NULL, 0, rows_of(cu, x), x.cols),
             cu->op);
}

static void dev_gemm(sp_dev *dev, sp_mat y, sp_mat x, const sp_weight *w, const float *bias) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(x.cols == w->w.cols && y.cols == w->w.rows && x.rows == y.rows);
    if (y.rows == 0 || !begin_op(cu, "gemm")) return;
    const int32_t T = rows_of(cu, y);
    y.rows = x.rows = T;
    if (cu->fast && cu_fast_gemm(cu, y, x, w, bias)) return;
    const size_t need = cu_gemm_scratch(w->w.rows, w->w.cols, w->w.dtype, T);
    if (!cu_scratch(cu, need)) return;
    cu_check(cu,
             cu_gemm(cu->stream, floats(y), y.stride, floats(x), x.stride, &w->w, bias, T,
                     need ? cu->scratch : NULL),
             cu->op);
}

static void dev_rope_store(sp_dev *dev, const sp_rope_store_args *a) {
    cu_dev *cu = dev->impl;
    cu_rows rows;
    if (!sp_check_rope(&cu->fault, a) || !begin_op(cu, "rope_store")) return;
    if (!cu_send_rows(cu, &rows, a->seqs, a->n_seqs, a->kv.block_tokens) || rows.T == 0) return;
    cu_check(cu,
             cu_rope_store(cu->stream, floats(a->qkv), a->qkv.stride, a->n_heads, &a->rope, &a->kv,
                           &rows),
             cu->op);
}

static void dev_attend(sp_dev *dev, const sp_attn_args *a) {
    cu_dev *cu = dev->impl;
    cu_rows rows;
    if (!sp_check_attn(&cu->fault, a) || !begin_op(cu, "attend")) return;
    if (!cu_send_rows(cu, &rows, a->seqs, a->n_seqs, a->kv.block_tokens) || rows.T == 0) return;
    const size_t need = cu_attend_scratch(rows.T, a->n_heads, a->kv.head_dim, rows.max_pos + 1);
    if (!cu_scratch(cu, need)) return;
    cu_check(cu,
             cu_attend(cu->stream, floats(a->out), a->out.stride, floats(a->qkv), a->qkv.stride,
                       a->n_heads, a->scale, a->window, &a->kv, &rows, need ? cu->scratch : NULL),
             cu->op);
}

static void dev_act_mul(sp_dev *dev, sp_mat y, sp_mat gate_up, sp_act act) {
    cu_dev *cu = dev->impl;
    SP_ASSERT(gate_up.cols == 2 * y.cols && gate_up.rows == y.rows);
    if (y.rows == 0 || !begin_op(cu, "act_mul")) return;
    cu_check(cu,
             cu_act_mul(cu->stream, floats(y), y.stride, floats(gate_up), gate_up.stride, act,
                        rows_of(cu, y), y.cols),
             cu->op);
}

static void dev_gather_rows(sp_dev *dev, sp_mat y, sp_mat x, const int32_t *rows) {
    cu_dev *cu = dev->impl;
    for (int32_t s = 0; s < y.rows; s++) SP_ASSERT(rows[s] >= 0 && rows[s] < x.rows);
    if (y.rows == 0 || !begin_op(cu, "gather_rows")) return;
    const int32_t *there = cu_send(cu, rows, (size_t)y.rows * sizeof *rows);
    if (!there) return;
    cu_check(cu,
             cu_gather_rows(cu->stream, floats(y), y.stride, floats(x), x.stride, there,
                            rows_of(cu, y), y.cols),
             cu->op);
}

static bool dev_decode_begin(sp_dev *dev, const sp_dev_decode *d) {
    return cu_decode_begin(dev->impl, d);
}
static bool dev_decode_end(sp_dev *dev) {
    return cu_decode_end(dev->impl);
}
static void dev_rest(sp_dev *dev) {
    ((cu_dev *)dev->impl)->follows = false;
}
static void dev_times(sp_dev *dev, sp_dev_times *out) {
    *out = ((cu_dev *)dev->impl)->times;
}

static sp_ticket dev_submit(sp_dev *dev) {
    return cu_submit(dev->impl);
}
static sp_status dev_poll(sp_dev *dev, sp_ticket ticket, int64_t deadline_ns, sp_err *err) {
    return cu_poll(dev->impl, ticket, deadline_ns, err);
}

const sp_dev_ops cu_dev_ops = {
    .name = CU_BACKEND,
    .host_memory = false,
    .open = dev_open,
    .close = dev_close,
    .alloc = dev_alloc,
    .free = dev_free,
    .packed_bytes = cu_packed_bytes,
    .pack = dev_pack,
    .weight_free = dev_weight_free,
    .embed = dev_embed,
    .add_rmsnorm = dev_add_rmsnorm,
    .add = dev_add,
    .gemm = dev_gemm,
    .rope_store = dev_rope_store,
    .attend = dev_attend,
    .act_mul = dev_act_mul,
    .gather_rows = dev_gather_rows,
    .draw = cu_op_draw,
    .submit = dev_submit,
    .poll = dev_poll,
    .upload = dev_upload,
    .download = dev_download,
    .host_alloc = dev_host_alloc,
    .host_free = dev_host_free,
    .memory = dev_memory,
    .reserve_bytes = cu_reserve_bytes,
    .reserve = dev_reserve,
    .host_pin = dev_host_pin,
    .host_unpin = dev_host_unpin,
    .embed_fed = dev_embed_fed,
    .embed_part = dev_embed_part,
    .decode_begin = dev_decode_begin,
    .decode_end = dev_decode_end,
    .rest = dev_rest,
    .times = dev_times,
};
