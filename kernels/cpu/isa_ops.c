/* Row by row: embedding, norm, activation, rotation with the store into the cache, and the vector
 * functions for their test. */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vecmath.h"

static float *row_of(sp_mat m, int32_t row) {
    return (float *)m.data + (ptrdiff_t)row * m.stride;
}

static int part(int32_t left) {
    return left < SP_LANES ? (int)left : SP_LANES;
}

/* One row of a packed weight is one lane of a tile; neighbours in K are a vector apart. The offset
 * is looked up once a phase run, not once an element. */
static void embed(sp_mat y, const sp_weight *w, const int32_t *ids, int32_t row0, int32_t row1) {
    for (int32_t t = row0; t < row1; t++) {
        const unsigned char *tile = w->tiles + (size_t)(ids[t] / SP_LANES) * w->tile_bytes;
        const size_t lane = (size_t)(ids[t] % SP_LANES), elt = (size_t)w->elt;
        for (int n = 0; n < w->n_phases; n++) {
            const sp_cpu_phase *p = &w->phase[n];
            for (int a = 0; a < p->n_active; a++) {
                float *to = row_of(y, t) + p->k0[a];
                for (int32_t j = 0; j < p->len; j++) {
                    const size_t at = sp_cpu_phase_at(w, p, a, j, lane) * elt;
                    if (elt == 4)
                        memcpy(to + j, tile + at, 4);
                    else if (w->dtype == SP_DTYPE_F16)
                        to[j] = sp_f32_of_f16(*(const uint16_t *)(const void *)(tile + at));
                    else
                        to[j] = sp_f32_of_bf16(*(const uint16_t *)(const void *)(tile + at));
                }
            }
        }
    }
}

SP_INLINE v16 added(const float *x, const float *p, const float *bias, int32_t i, int n) {
    const v16 add = v16_load_n(p + i, n);
    return v16_add(v16_load_n(x + i, n), bias ? v16_add(add, v16_load_n(bias + i, n)) : add);
}

static void norm_row(float *y, float *x, const float *p, const float *bias, const float *weight,
                     int32_t E, float eps) {
    v16 lanes = v16_zero();
    for (int32_t i = 0; i < E; i += SP_LANES) {
        const int n = part(E - i);
        v16 v = v16_load_n(x + i, n);
        if (p) v16_store_n(x + i, v = added(x, p, bias, i, n), n);
        lanes = v16_fma(v, v, lanes);
    }
    const float mean = v16_tree(lanes) / (float)E;
    const v16 scale = v16_set(1.0f / __builtin_sqrtf(mean + eps));
    for (int32_t i = 0; i < E; i += SP_LANES) {
        const int n = part(E - i);
        const v16 scaled = v16_mul(v16_load_n(x + i, n), scale);
        v16_store_n(y + i, v16_mul(scaled, v16_load_n(weight + i, n)), n);
    }
}

static void add_rmsnorm(sp_mat y, sp_mat x, sp_mat partial, const float *bias, const float *weight,
                        float eps, int32_t row0, int32_t row1) {
    for (int32_t t = row0; t < row1; t++)
        norm_row(row_of(y, t), row_of(x, t), partial.data ? row_of(partial, t) : NULL, bias, weight,
                 x.cols, eps);
}

static void add(sp_mat x, sp_mat partial, const float *bias, int32_t row0, int32_t row1) {
    for (int32_t t = row0; t < row1; t++) {
        float *xr = row_of(x, t);
        const float *p = row_of(partial, t);
        for (int32_t i = 0; i < x.cols; i += SP_LANES) {
            const int n = part(x.cols - i);
            v16_store_n(xr + i, added(xr, p, bias, i, n), n);
        }
    }
}

SP_INLINE void act_row(float *y, const float *gate, const float *up, int32_t F, const sp_act act) {
    for (int32_t i = 0; i < F; i += SP_LANES) {
        const int n = part(F - i);
        const v16 g = v16_load_n(gate + i, n);
        const v16 a = act == SP_ACT_SILU   ? v16_silu(g)
                      : act == SP_ACT_GELU ? v16_gelu(g)
                                           : v16_gelu_tanh(g);
        v16_store_n(y + i, v16_mul(a, v16_load_n(up + i, n)), n);
    }
}

static void act_mul(sp_mat y, sp_mat gate_up, sp_act act, int32_t piece0, int32_t piece1) {
    const int32_t per_row = (y.cols + SP_ACT_COLS - 1) / SP_ACT_COLS;
    for (int32_t i = piece0; i < piece1; i++) {
        const int32_t row = i / per_row, c0 = i % per_row * SP_ACT_COLS;
        const int32_t n = y.cols - c0 < SP_ACT_COLS ? y.cols - c0 : SP_ACT_COLS;
        const float *gate = row_of(gate_up, row) + c0, *up = gate + y.cols;
        float *to = row_of(y, row) + c0;
        switch (act) {
        case SP_ACT_SILU:
            act_row(to, gate, up, n, SP_ACT_SILU);
            break;
        case SP_ACT_GELU:
            act_row(to, gate, up, n, SP_ACT_GELU);
            break;
        case SP_ACT_GELU_TANH:
            act_row(to, gate, up, n, SP_ACT_GELU_TANH);
            break;
        }
    }
}

/* ---- rotation and store ---- */

static void rotate(float *to, const float *from, const sp_rope_table *rope, int32_t pos) {
    const int32_t half = rope->dims / 2;
    const float *c = rope->cos + (ptrdiff_t)pos * half, *s = rope->sin + (ptrdiff_t)pos * half;
    if (rope->interleaved) {
        for (int32_t i = 0; i < half; i++) {
            const float x = from[2 * i], y = from[2 * i + 1];
            to[2 * i] = sp_fmaf(x, c[i], -(y * s[i]));
            to[2 * i + 1] = sp_fmaf(y, c[i], x * s[i]);
        }
        return;
    }
    const v16i sign = v16i_set(0x80000000u);
    for (int32_t i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const v16 x = v16_load_n(from + i, n), y = v16_load_n(from + half + i, n);
        const v16 cv = v16_load_n(c + i, n), sv = v16_load_n(s + i, n);
        const v16 minus = v16_of_bits(v16i_add(v16_bits(v16_mul(y, sv)), sign));
        v16_store_n(to + i, v16_fma(x, cv, minus), n);
        v16_store_n(to + half + i, v16_fma(y, cv, v16_mul(x, sv)), n);
    }
}

static void store_row(unsigned char *to, const float *from, int32_t D, sp_dtype type) {
    for (int32_t d = 0; d < D; d += 16) {
        const int n = D - d < 16 ? D - d : 16;
        const v16 x = v16_load_n(from + d, n);
        if (type == SP_DTYPE_F32)
            v16_store_n((float *)(void *)to + d, x, n);
        else if (type == SP_DTYPE_F16)
            v16_store_f16_n((uint16_t *)(void *)to + d, x, n);
        else
            v16_store_bf16_n((uint16_t *)(void *)to + d, x, n);
    }
}

static void rope_store(const sp_rope_store_args *a, const sp_seq_rows *seq, int32_t row0,
                       int32_t row1) {
    const sp_kv_view *kv = &a->kv;
    const int32_t D = kv->head_dim;
    const size_t v_offset = sp_kv_v_offset(kv);
    for (int32_t i = row0; i < row1; i++) {
        const int32_t pos = seq->pos0 + i;
        float *q = (float *)a->qkv.data + (ptrdiff_t)(seq->row0 + i) * a->qkv.stride;
        const float *k = q + (ptrdiff_t)a->n_heads * D, *v = k + (ptrdiff_t)kv->n_kv_heads * D;
        for (int32_t h = 0; h < a->n_heads; h++, q += D) rotate(q, q, &a->rope, pos);
        for (int32_t h = 0; h < kv->n_kv_heads; h++, k += D, v += D) {
            float turned[SP_HEAD_DIM_MAX];
            unsigned char *to = sp_kv_k_row(kv, seq->blocks, h, pos);
            memcpy(turned, k, (size_t)D * sizeof *turned);
            rotate(turned, k, &a->rope, pos);
            store_row(to, turned, D, kv->dtype);
            store_row(to + v_offset, v, D, kv->dtype);
        }
    }
}

static void turn(unsigned char *to, size_t step, const unsigned char *const *rows, int32_t n) {
    for (int32_t j = 0; j < n; j += SP_LANES) {
        const int left = part(n - j);
        v16 t[SP_LANES];
        for (int i = 0; i < SP_LANES; i++) {
            float values[SP_LANES]; /* a copy: a row may lie at any address */
            if (left < SP_LANES || !rows[i]) memset(values, 0, sizeof values);
            if (rows[i] && left == SP_LANES) memcpy(values, rows[i] + (size_t)j * 4, sizeof values);
            if (rows[i] && left < SP_LANES)
                memcpy(values, rows[i] + (size_t)j * 4, (size_t)left * 4);
            t[i] = v16_load(values);
        }
        v16_transpose(t);
        for (int i = 0; i < left; i++) {
            v16_store((float *)(void *)to, t[i]);
            to += step;
        }
    }
}

static void math(sp_isa_fn fn, float *y, const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i += SP_LANES) {
        const v16 v = v16_load_n(x + i, part(n - i));
        v16 r = v;
        switch (fn) {
        case SP_FN_EXP:
            r = v16_exp(v);
            break;
        case SP_FN_LOG:
            r = v16_log(v);
            break;
        case SP_FN_TANH:
            r = v16_tanh(v);
            break;
        case SP_FN_ERF:
            r = v16_erf(v);
            break;
        }
        v16_store_n(y + i, r, part(n - i));
    }
}

const sp_isa_ops SP_ISA_NAME(sp_isa_ops_) = {embed,      add_rmsnorm, add, act_mul,
                                             rope_store, turn,        math};
