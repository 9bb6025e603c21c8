#include "kernels/ref/ref_dev.h"

#include "kernels/check.h"
#include "runtime/base/mem.h"

static sp_status ref_open(sp_dev *dev, const sp_dev_config *config, sp_err *err) {
    (void)config;
    (void)err;
    dev->impl = sp_alloc(sizeof(sp_ref));
    dev->detail = "scalar reference, 1 thread";
    return SP_OK;
}

static void ref_close(sp_dev *dev) {
    sp_free(dev->impl);
}

static void *ref_alloc(sp_dev *dev, size_t bytes) {
    (void)dev;
    return sp_try_alloc_aligned(64, bytes);
}

static void ref_free(sp_dev *dev, void *p, size_t bytes) {
    (void)dev;
    (void)bytes;
    sp_free(p);
}

static size_t ref_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    return sizeof(sp_weight) +
           (size_t)rows * (size_t)seg->edge[seg->n] * (size_t)sp_dtype_bits(dtype) / 8;
}

static sp_status ref_pack(sp_dev *dev, sp_weight **out, const sp_weight_part *parts, int n_parts,
                          const sp_segments *seg, sp_err *err) {
    (void)dev;
    int32_t rows;
    SP_TRY(sp_check_parts(parts, n_parts, seg, &rows, err));
    const size_t size = ref_packed_bytes(rows, seg, parts[0].dtype);
    sp_weight *w = sp_try_alloc(size);
    if (!w) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes of weights", size);
    *w = (sp_weight){.dtype = parts[0].dtype, .rows = rows, .cols = parts[0].cols, .seg = *seg};
    const size_t elt = (size_t)sp_dtype_bits(w->dtype) / 8, row_bytes = (size_t)w->cols * elt;
    unsigned char *to = w->data;
    for (int i = 0; i < n_parts; i++)
        for (int32_t r = 0; r < parts[i].rows; r++, to += row_bytes)
            memcpy(to,
                   (const unsigned char *)parts[i].data + (size_t)r * (size_t)parts[i].stride * elt,
                   row_bytes);
    *out = w;
    return SP_OK;
}

static void ref_weight_free(sp_dev *dev, sp_weight *w) {
    (void)dev;
    sp_free(w);
}

static sp_ticket ref_submit(sp_dev *dev) {
    return ++((sp_ref *)dev->impl)->last;
}

static sp_status ref_poll(sp_dev *dev, sp_ticket ticket, int64_t deadline_ns, sp_err *err) {
    (void)ticket;
    (void)deadline_ns;
    return sp_fault_status(&((sp_ref *)dev->impl)->fault, err);
}

/* Device memory is the host's: copies are made at once, by those who ask for them. */
static void ref_copy(sp_dev *dev, void *dst, const void *src, size_t bytes) {
    (void)dev;
    memcpy(dst, src, bytes);
}

const sp_dev_ops sp_dev_ref = {
    .name = "ref",
    .host_memory = true,
    .open = ref_open,
    .close = ref_close,
    .alloc = ref_alloc,
    .free = ref_free,
    .packed_bytes = ref_packed_bytes,
    .pack = ref_pack,
    .weight_free = ref_weight_free,
    .embed = sp_ref_embed,
    .add_rmsnorm = sp_ref_add_rmsnorm,
    .add = sp_ref_add,
    .gemm = sp_ref_gemm,
    .rope_store = sp_ref_rope_store,
    .attend = sp_ref_attend,
    .act_mul = sp_ref_act_mul,
    .gather_rows = sp_ref_gather_rows,
    .submit = ref_submit,
    .poll = ref_poll,
    .upload = ref_copy,
    .download = ref_copy,
    .host_alloc = ref_alloc,
    .host_free = ref_free,
};
