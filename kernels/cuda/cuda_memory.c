#include "kernels/cuda/cuda_dev.h"

#include "kernels/check.h"
#include "runtime/base/mem.h"

#include <string.h>

/* ---- device and pinned memory ---- */

void *cu_mem_take(cu_dev *cu, size_t bytes) {
    void *p = NULL;
    if (!cu_begin(cu, "alloc")) return NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    /* Too little memory is the caller's to name; the device works on. */
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    if (e == cudaSuccess) e = cudaMemsetAsync(p, 0, bytes ? bytes : 1, cu->stream);
    if (cu_check(cu, e, cu->op)) return p;
    cu_mem_drop(p);
    return NULL;
}

/* Frees after everything that is queued: cudaFree waits for the device. It fails only where the
 * device has failed before, whose fault is kept. */
void cu_mem_drop(void *p) {
    if (p) (void)cudaFree(p);
}

void *cu_host_take(cu_dev *cu, size_t bytes) {
    void *p = NULL;
    if (!cu_begin(cu, "host_alloc")) return NULL;
    cudaError_t e = cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocDefault);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    if (!cu_check(cu, e, cu->op)) return NULL;
    memset(p, 0, bytes);
    return p;
}

void cu_host_drop(void *p) {
    if (p) (void)cudaFreeHost(p);
}

/* ---- staging ---- */

static bool open_stage(cu_dev *cu) {
    cu_stage *s = &cu->stage;
    if (s->dev) return true;
    for (int i = 0; i < 2; i++) {
        s->host[i] = cu_host_take(cu, CU_STAGE_BYTES);
        if (!s->host[i]) return false;
        cudaError_t e = cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming);
        if (!cu_check(cu, e, "staging")) return false;
    }
    s->dev = cu_mem_take(cu, CU_STAGE_BYTES);
    return s->dev != NULL;
}

void cu_stage_close(cu_stage *s) {
    for (int i = 0; i < 2; i++) {
        cu_host_drop(s->host[i]);
        if (s->copied[i]) (void)cudaEventDestroy(s->copied[i]);
    }
    cu_mem_drop(s->dev);
    *s = (cu_stage){0};
}

/* The buffer whose turn it is, once its last copy has happened. NULL: a fault stands, or is made. */
static unsigned char *take_turn(cu_dev *cu) {
    cu_stage *s = &cu->stage;
    if (!open_stage(cu)) {
        cu_check(cu, cu->fault.code == SP_OK ? cudaErrorMemoryAllocation : cudaSuccess, "staging");
        return NULL;
    }
    if (s->used[s->turn] && !cu_wait(cu, s->copied[s->turn], "staging")) return NULL;
    s->used[s->turn] = false;
    return s->host[s->turn];
}

static bool copy_turn(cu_dev *cu, void *dst, size_t bytes) {
    cu_stage *s = &cu->stage;
    const int i = s->turn;
    cudaError_t e = cudaMemcpyAsync(dst, s->host[i], bytes, cudaMemcpyHostToDevice, cu->stream);
    if (e == cudaSuccess) e = cudaEventRecord(s->copied[i], cu->stream);
    if (!cu_check(cu, e, cu->op)) return false;
    s->used[i] = true;
    s->turn = !i;
    return true;
}

void cu_upload(cu_dev *cu, void *dst, const void *src, size_t bytes) {
    if (!cu_begin(cu, "upload")) return;
    if (cu_host_is_pinned(cu, src, bytes)) {
        cu_check(cu, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, cu->stream), cu->op);
        return;
    }
    for (size_t at = 0; at < bytes;) {
        const size_t n = bytes - at < CU_STAGE_BYTES ? bytes - at : CU_STAGE_BYTES;
        unsigned char *to = take_turn(cu);
        if (!to) return;
        memcpy(to, (const unsigned char *)src + at, n);
        if (!copy_turn(cu, (unsigned char *)dst + at, n)) return;
        at += n;
    }
}

/* ---- weights ---- */

/* A driver gives memory in pages: what is large has pages of its own, small pieces share them.
 * Mode fast pads rows to 16 bytes: less than tiles do. */
size_t cu_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    const size_t bytes = cu_weight_bytes(rows, seg->edge[seg->n], dtype, seg);
    const size_t grain = bytes < CU_PAGE_BYTES / 2 ? CU_PIECE_BYTES : CU_PAGE_BYTES;
    return (bytes + grain - 1) / grain * grain;
}

/* Rows that lie one after another in the staging, into the weight: tiles, or rows with a gap. */
static cudaError_t lay_rows(cu_dev *cu, sp_weight *w, int32_t row0, int32_t n, size_t row_bytes) {
    const size_t pitch = (size_t)w->w.ld * (size_t)sp_dtype_bits(w->w.dtype) / 8; /* 0: tiles */
    if (!pitch)
        return cu_weight_pack(cu->stream, w->data, &w->w, row0, cu->stage.dev, n, w->w.cols);
    return cudaMemcpy2DAsync((unsigned char *)w->data + (size_t)row0 * pitch, pitch, cu->stage.dev,
                             row_bytes, row_bytes, (size_t)n, cudaMemcpyDeviceToDevice, cu->stream);
}

/* Rows of one part, as many at a time as the staging holds. */
static bool pack_part(cu_dev *cu, sp_weight *w, int32_t row0, const sp_weight_part *part) {
    const size_t elt = (size_t)sp_dtype_bits(part->dtype) / 8;
    const size_t row_bytes = (size_t)part->cols * elt;
    const int32_t step = (int32_t)(CU_STAGE_BYTES / row_bytes);
    for (int32_t r = 0; r < part->rows; r += step) {
        const int32_t n = part->rows - r < step ? part->rows - r : step;
        unsigned char *to = take_turn(cu);
        if (!to) return false;
        for (int32_t i = 0; i < n; i++)
            memcpy(to + (size_t)i * row_bytes,
                   (const unsigned char *)part->data + (size_t)(r + i) * (size_t)part->stride * elt,
                   row_bytes);
        if (!copy_turn(cu, cu->stage.dev, (size_t)n * row_bytes)) return false;
        cudaError_t e = lay_rows(cu, w, row0 + r, n, row_bytes);
        if (!cu_check(cu, e, "pack")) return false;
    }
    return true;
}

static void link_weight(cu_dev *cu, sp_weight *w) {
    w->next = cu->weights;
    if (w->next) w->next->prev = w;
    cu->weights = w;
}

void cu_weight_drop(cu_dev *cu, sp_weight *w) {
    if (!w) return;
    *(w->prev ? &w->prev->next : &cu->weights) = w->next;
    if (w->next) w->next->prev = w->prev;
    cu_mem_drop(w->data);
    sp_free(w);
}

sp_status cu_pack(cu_dev *cu, sp_weight **out, const sp_weight_part *parts, int n_parts,
                  const sp_segments *seg, sp_err *err) {
    int32_t rows, row0 = 0;
    SP_TRY(sp_check_parts(parts, n_parts, seg, &rows, err));
    const int32_t cols = parts[0].cols;
    const size_t row_bytes = (size_t)cols * (size_t)sp_dtype_bits(parts[0].dtype) / 8;
    if (row_bytes > CU_STAGE_BYTES)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "rows of %zu bytes, at most %zu on this device",
                       row_bytes, CU_STAGE_BYTES);
    if (!cu_begin(cu, "pack")) return sp_fault_status(&cu->fault, err);
    sp_weight *w = sp_try_alloc(sizeof *w);
    if (!w) return SP_FAIL(err, SP_E_NOMEM, "no memory for a weight");
    w->w = (cu_weight){.dtype = parts[0].dtype, .rows = rows, .cols = cols, .seg = *seg};
    if (cu->lt) w->w.ld = cu_plain_ld(cols, w->w.dtype);
    w->bytes = w->w.ld ? (size_t)rows * (size_t)w->w.ld * (size_t)sp_dtype_bits(w->w.dtype) / 8
                       : cu_weight_bytes(rows, cols, w->w.dtype, seg);
    link_weight(cu, w);
    w->data = cu_mem_take(cu, w->bytes);
    w->w.data = w->data;
    bool ok = w->data != NULL;
    for (int i = 0; i < n_parts && ok; i++) {
        ok = parts[i].rows == 0 || pack_part(cu, w, row0, &parts[i]);
        row0 += parts[i].rows;
    }
    if (ok) {
        *out = w;
        return SP_OK;
    }
    sp_status st = sp_fault_status(&cu->fault, err);
    if (st == SP_OK)
        st = SP_FAIL(err, SP_E_NOMEM, "no device memory for %zu bytes of weights", w->bytes);
    cu_weight_drop(cu, w);
    return st;
}

/* ---- scratch ---- */

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

size_t cu_reserve_bytes(const sp_dev_sizes *s) {
    const size_t slots = (size_t)CU_SLOTS * CU_CHUNK_MIN;
    const size_t gemm = cu_gemm_scratch(CU_GEMM_TILE_N, s->max_cols, SP_DTYPE_BF16, s->max_tokens);
    const size_t draw = cu_draw_scratch(s->max_draws, s->vocab);
    const size_t attend =
        cu_attend_scratch(s->max_tokens, s->n_heads, s->head_dim, s->max_positions);
    return larger(larger(gemm, draw), attend) + CU_STAGE_BYTES + slots + CU_GRAPH_DATA_MIN +
           (s->fast ? CU_LT_WORKSPACE : 0);
}

bool cu_scratch(cu_dev *cu, size_t bytes) {
    if (bytes <= cu->scratch_bytes) return true;
    const char *op = cu->op;
    void *p = cu_mem_take(cu, bytes);
    cu->op = op;
    if (!p) return cu_check(cu, cudaErrorMemoryAllocation, "scratch");
    cu_graphs_drop(cu);
    cu_mem_drop(cu->scratch);
    cu->scratch = p;
    cu->scratch_bytes = bytes;
    return true;
}

sp_status cu_reserve(cu_dev *cu, const sp_dev_sizes *s, sp_err *err) {
    size_t need = cu_attend_scratch(s->max_tokens, s->n_heads, s->head_dim, s->max_positions);
    need = larger(need, cu_draw_scratch(s->max_draws, s->vocab));
    for (const sp_weight *w = cu->weights; w; w = w->next)
        need = larger(need, cu_gemm_scratch(w->w.rows, w->w.cols, w->w.dtype, s->max_tokens));
    SP_TRY(sp_fault_status(&cu->fault, err));
    (void)cu_graphs_reserve(cu); /* without it, steps are queued plainly */
    SP_TRY(sp_fault_status(&cu->fault, err));
    if (need <= cu->scratch_bytes) return SP_OK;
    void *p = cu_mem_take(cu, need);
    SP_TRY(sp_fault_status(&cu->fault, err));
    if (!p)
        return SP_FAIL(err, SP_E_NOMEM,
                       "no device memory for %zu bytes of scratch (%d tokens, %d positions)", need,
                       s->max_tokens, s->max_positions);
    cu_graphs_drop(cu);
    cu_mem_drop(cu->scratch);
    cu->scratch = p;
    cu->scratch_bytes = need;
    return SP_OK;
}
