#include "kernels/check.h"

void sp_fault_keep(sp_err *fault, const sp_err *err) {
    if (fault->code == SP_OK) *fault = *err;
}

sp_status sp_fault_status(const sp_err *fault, sp_err *err) {
    if (fault->code != SP_OK && err) *err = *fault;
    return fault->code;
}

bool sp_is_float_weight(sp_dtype t) {
    return t == SP_DTYPE_F32 || t == SP_DTYPE_F16 || t == SP_DTYPE_BF16;
}

bool sp_check_ids(sp_err *fault, const int32_t *ids, int32_t n, int32_t n_rows) {
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < n_rows) continue;
        sp_err err = {0};
        (void)SP_FAIL(&err, SP_E_INVALID, "token id %d in row %d, vocabulary has %d", ids[i], i,
                      n_rows);
        sp_fault_keep(fault, &err);
        return false;
    }
    return true;
}

static bool check_kv(sp_err *fault, const sp_kv_view *kv) {
    sp_err err = {0};
    if (!sp_is_float_weight(kv->dtype))
        (void)SP_FAIL(&err, SP_E_UNSUPPORTED, "KV cache of type '%s', wanted F32, F16 or BF16",
                      sp_dtype_name(kv->dtype));
    else if (kv->head_dim < 1 || kv->head_dim > SP_HEAD_DIM_MAX)
        (void)SP_FAIL(&err, SP_E_UNSUPPORTED, "head dimension %d, at most %d", kv->head_dim,
                      SP_HEAD_DIM_MAX);
    else
        return true;
    sp_fault_keep(fault, &err);
    return false;
}

bool sp_check_rope(sp_err *fault, const sp_rope_store_args *a) {
    SP_ASSERT(a->rope.dims % 2 == 0 && a->rope.dims <= a->kv.head_dim);
    if (!check_kv(fault, &a->kv)) return false;
    for (int32_t s = 0; s < a->n_seqs; s++) {
        const int64_t end = (int64_t)a->seqs[s].pos0 + a->seqs[s].n_rows;
        if (a->seqs[s].pos0 >= 0 && end <= a->rope.n_positions) continue;
        sp_err err = {0};
        (void)SP_FAIL(&err, SP_E_INVALID, "positions %d to %lld, rope table has %d",
                      a->seqs[s].pos0, (long long)end - 1, a->rope.n_positions);
        sp_fault_keep(fault, &err);
        return false;
    }
    return true;
}

bool sp_check_attn(sp_err *fault, const sp_attn_args *a) {
    SP_ASSERT(a->kv.n_kv_heads > 0 && a->n_heads % a->kv.n_kv_heads == 0 && a->window >= 0);
    return check_kv(fault, &a->kv);
}

sp_status sp_check_parts(const sp_weight_part *parts, int n_parts, const sp_segments *seg,
                         int32_t *rows, sp_err *err) {
    SP_ASSERT(n_parts >= 1);
    const int n = seg->n;
    SP_ASSERT(n == 1 || n == 2 || n == 4 || n == 8);
    SP_ASSERT(seg->edge[0] == 0 && seg->edge[n] == parts[0].cols);
    for (int i = 0; i < n; i++) SP_ASSERT(seg->edge[i] <= seg->edge[i + 1]);
    int64_t total = 0;
    for (int i = 0; i < n_parts; i++) {
        if (!sp_is_float_weight(parts[i].dtype))
            return SP_FAIL(err, SP_E_UNSUPPORTED, "weights of type '%s', wanted F32, F16 or BF16",
                           sp_dtype_name(parts[i].dtype));
        SP_ASSERT(parts[i].dtype == parts[0].dtype && parts[i].cols == parts[0].cols);
        total += parts[i].rows;
    }
    SP_ASSERT(total <= INT32_MAX);
    *rows = (int32_t)total;
    return SP_OK;
}
