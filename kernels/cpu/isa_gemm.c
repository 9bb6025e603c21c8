/* Matrix products: y[t,n] = tree over segments of sum_k x[t,k] w[n,k], lanes over 16 outputs n.
 *
 * Two kernels read the same packed weights (cpu_pack.h) and give the same bits:
 *   stream  few rows: all segments of a tile at once, in memory order. Bound by reading weights.
 *   block   many rows: one segment at a time, TILES tiles x up to 12 rows in registers, so that a
 *           widened weight vector serves all rows. Bound by fma.
 * Both read x from a panel in exactly their order, so the inner loops have one pointer each. */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec16.h"

/* Register budgets. AVX-512 has 32 registers of 16 lanes: stream holds 8 segments x 3 rows, block
 * 12 rows x 2 tiles. AVX2 has 16 of 8 lanes: 4 segments x 1 row, 6 rows x 1 tile. */
#if defined(SP_ISA_avx512)
#define STREAM_SEGS 8
#define STREAM_ROWS 3
#define STREAM_MAX_ROWS 3 /* up to here stream wins: 12.8 against 11.6 GB/s at 3 rows */
#define BLOCK_ROWS 12
#define TILES 2
#else
#define STREAM_SEGS 4
#define STREAM_ROWS 1
#define STREAM_MAX_ROWS 1
#define BLOCK_ROWS 6
#define TILES 1
#endif
/* Rows of one pass over the weights: at 48 a tile's reading costs a tenth of its arithmetic. */
#define GROUP_ROWS 48
#define AHEAD 3072 /* bytes */

SP_INLINE void to_l1(const void *p) {
    __builtin_prefetch(p, 0, 3);
}
SP_INLINE void to_l2(const void *p) {
    __builtin_prefetch(p, 0, 2);
}

/* ---- stream ---- */

/* One phase of a tile: S of its A active segments, R rows. acc[a][r] go on. */
SP_INLINE void stream_phase(v16 *acc, const unsigned char *w, const float *x, int32_t len, size_t A,
                            const int S, const int R, const sp_dtype type) {
    v16 c[8 * 3];
    UNROLL for (int i = 0; i < S * R; i++) c[i] = acc[i];
    if (type == SP_DTYPE_BF16) {
        for (int32_t j = 0; j < len / 2; j++, w += A * 64, x += A * 2 * (size_t)R) {
            UNROLL for (int s = 0; s < S; s++) {
                v16 lo, hi;
                v16_pair(w + s * 64, &lo, &hi);
                to_l1(w + s * 64 + AHEAD);
                UNROLL for (int r = 0; r < R; r++) c[s * R + r] =
                    v16_fma(lo, v16_set(x[2 * s * R + r]), c[s * R + r]);
                UNROLL for (int r = 0; r < R; r++) c[s * R + r] =
                    v16_fma(hi, v16_set(x[(2 * s + 1) * R + r]), c[s * R + r]);
            }
        }
        UNROLL for (int i = 0; i < S * R; i++) acc[i] = c[i];
        return;
    }
    const size_t vec = type == SP_DTYPE_F32 ? 64 : 32;
    for (int32_t j = 0; j < len; j++, w += A * vec, x += A * (size_t)R) {
        UNROLL for (int s = 0; s < S; s++) {
            const void *p = w + (size_t)s * vec;
            const v16 v = type == SP_DTYPE_F32 ? v16_load(p) : v16_load_f16(p);
            to_l1((const char *)p + AHEAD);
            UNROLL for (int r = 0; r < R; r++) c[s * R + r] =
                v16_fma(v, v16_set(x[s * R + r]), c[s * R + r]);
        }
    }
    UNROLL for (int i = 0; i < S * R; i++) acc[i] = c[i];
}

typedef void stream_fn(v16 *acc, const unsigned char *w, const float *x, int32_t len, size_t A);
#define STREAM_FN(type, S, R) \
    static void stream_##type##_##S##_##R(v16 *acc, const unsigned char *w, const float *x, \
                                          int32_t len, size_t A) { \
        stream_phase(acc, w, x, len, A, S, R, SP_DTYPE_##type); \
    }
#if STREAM_ROWS == 3
/* clang-format off */
#define STREAM_FNS(type) \
    STREAM_FN(type, 1, 1) STREAM_FN(type, 1, 2) STREAM_FN(type, 1, 3) \
    STREAM_FN(type, 2, 1) STREAM_FN(type, 2, 2) STREAM_FN(type, 2, 3) \
    STREAM_FN(type, 4, 1) STREAM_FN(type, 4, 2) STREAM_FN(type, 4, 3) \
    STREAM_FN(type, 8, 1) STREAM_FN(type, 8, 2) STREAM_FN(type, 8, 3)
/* clang-format on */
#define STREAM_ROW(type, S) \
    { stream_##type##_##S##_1, stream_##type##_##S##_2, stream_##type##_##S##_3 }
#define STREAM_TABLE(type) \
    { STREAM_ROW(type, 1), STREAM_ROW(type, 2), STREAM_ROW(type, 4), STREAM_ROW(type, 8) }
#else
#define STREAM_FNS(type) STREAM_FN(type, 1, 1) STREAM_FN(type, 2, 1) STREAM_FN(type, 4, 1)
#define STREAM_TABLE(type) \
    { \
        {stream_##type##_1_1}, {stream_##type##_2_1}, { \
            stream_##type##_4_1 \
        } \
    }
#endif
STREAM_FNS(F32)
STREAM_FNS(F16)
STREAM_FNS(BF16)

static int type_index(sp_dtype t) {
    return t == SP_DTYPE_F32 ? 0 : t == SP_DTYPE_F16 ? 1 : 2;
}

/* [type][log2 of segments][rows - 1] */
static stream_fn *const stream_fns[3][4][STREAM_ROWS] = {STREAM_TABLE(F32), STREAM_TABLE(F16),
                                                         STREAM_TABLE(BF16)};

/* The odd last j of a bf16 phase: one value a lane. */
static void stream_last(v16 *acc, const unsigned char *w, const float *x, int32_t A, int32_t R) {
    for (int32_t a = 0; a < A; a++) {
        const v16 v = v16_load_bf16((const uint16_t *)(const void *)(w + a * 32));
        for (int32_t r = 0; r < R; r++)
            acc[a * R + r] = v16_fma(v, v16_set(x[a * R + r]), acc[a * R + r]);
    }
}

/* Sums of all segments of one tile for R rows: sum[segment * R + row]. */
static void stream_tile(const sp_weight *w, const unsigned char *tile, const float *panel,
                        int32_t R, v16 *sum) {
    const int type = type_index(w->dtype);
    for (int i = 0; i < w->seg.n * R; i++) sum[i] = v16_zero();
    for (int n = 0; n < w->n_phases; n++) {
        const sp_cpu_phase *p = &w->phase[n];
        const unsigned char *at = tile + (size_t)p->before * SP_LANES * (size_t)w->elt;
        const float *x = panel + (size_t)p->before * (size_t)R;
        const int32_t A = p->n_active;
        const int32_t per = w->dtype == SP_DTYPE_BF16 ? 2 : 1; /* values of k a vector step */
        v16 acc[SP_SEGMENTS * STREAM_ROWS];
        for (int i = 0; i < A * R; i++) acc[i] = sum[p->seg[i / R] * R + i % R];
        for (int32_t a = 0; a < A;) {
            int s = 0;
            while (2 << s <= STREAM_SEGS && 2 << s <= A - a) s++;
            stream_fns[type][s][R - 1](acc + a * R,
                                       at + (size_t)(a * per) * SP_LANES * (size_t)w->elt,
                                       x + a * per * R, p->len, (size_t)A);
            a += 1 << s;
        }
        if (per == 2 && p->len % 2) {
            const size_t done = (size_t)(p->len - 1) * (size_t)A;
            stream_last(acc, at + done * SP_LANES * 2, x + done * (size_t)R, A, R);
        }
        for (int i = 0; i < A * R; i++) sum[p->seg[i / R] * R + i % R] = acc[i];
    }
}

SP_INLINE void store_outputs(const sp_cpu_gemm *g, int32_t tile, int32_t row, v16 v) {
    const int32_t n0 = tile * SP_LANES, n = g->w->rows - n0;
    float *y = g->y + row * g->y_stride + n0;
    if (n >= SP_LANES) {
        v16_store(y, g->bias ? v16_add(v, v16_load(g->bias + n0)) : v);
        return;
    }
    v16_store_n(y, g->bias ? v16_add(v, v16_load_n(g->bias + n0, n)) : v, n);
}

static void stream_store(const sp_cpu_gemm *g, int32_t tile, int32_t row0, int32_t R, v16 *sum) {
    for (int left = g->w->seg.n; left > 1; left /= 2)
        for (int i = 0; i < left / 2 * R; i++) {
            const int s = i / R, r = i % R;
            sum[i] = v16_add(sum[2 * s * R + r], sum[(2 * s + 1) * R + r]);
        }
    for (int32_t r = 0; r < R; r++) store_outputs(g, tile, row0 + r, sum[r]);
}

/* Rows in groups as even as can be: 4 rows are 2 + 2. */
static int32_t stream_groups(int32_t n_rows) {
    return (n_rows + STREAM_ROWS - 1) / STREAM_ROWS;
}

static void stream_tiles(const sp_cpu_gemm *g, int32_t tile0, int32_t tile1) {
    const sp_weight *w = g->w;
    const int32_t n = stream_groups(g->n_rows);
    for (int32_t tile = tile0; tile < tile1; tile++)
        for (int32_t i = 0; i < n; i++) {
            const int32_t row0 = i * g->n_rows / n, R = (i + 1) * g->n_rows / n - row0;
            v16 sum[SP_SEGMENTS * STREAM_ROWS];
            stream_tile(w, w->tiles + (size_t)tile * w->tile_bytes,
                        g->panel + (size_t)row0 * (size_t)w->cols, R, sum);
            stream_store(g, tile, row0, R, sum);
        }
}

/* Rows row0..row0+R-1 of x, in the order in which a tile is read. */
static void stream_pack(const sp_cpu_gemm *g, int32_t row0, int32_t R) {
    const sp_weight *w = g->w;
    const int32_t per = w->dtype == SP_DTYPE_BF16 ? 2 : 1;
    float *to = g->panel + (size_t)row0 * (size_t)w->cols;
    for (int n = 0; n < w->n_phases; n++) {
        const sp_cpu_phase *p = &w->phase[n];
        for (int32_t j = 0; j < p->len; j += per)
            for (int32_t a = 0; a < p->n_active; a++)
                for (int32_t h = 0; h < per && j + h < p->len; h++)
                    for (int32_t r = 0; r < R; r++)
                        *to++ = g->x[(row0 + r) * g->x_stride + p->k0[a] + j + h];
    }
}

/* ---- block ---- */

/* Goes on with sum[r * TILES + tile] over `len` values of k of one segment. `step`: bytes from one
 * value (bf16: pair) of the segment to its next; x is [k][R]; what lies `ahead` bytes further is
 * fetched for later (0: nothing). */
SP_INLINE void block_run(v16 *sum, const unsigned char *w0, const unsigned char *w1, size_t step,
                         const float *x, int32_t len, size_t ahead, const int R,
                         const sp_dtype type) {
    v16 c[BLOCK_ROWS][TILES];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int i = 0; i < TILES; i++) {
            c[r][i] = sum[r * TILES + i];
        }
    }
    const int per = type == SP_DTYPE_BF16 ? 2 : 1;
    for (int32_t j = 0; j < len; j += per, w0 += step, w1 += step, x += per * R) {
        v16 v[2][2];
        if (type == SP_DTYPE_BF16) {
            v16_pair(w0, &v[0][0], &v[1][0]);
            if (TILES == 2) v16_pair(w1, &v[0][1], &v[1][1]);
        } else {
            v[0][0] =
                type == SP_DTYPE_F32 ? v16_load((const void *)w0) : v16_load_f16((const void *)w0);
            if (TILES == 2)
                v[0][1] = type == SP_DTYPE_F32 ? v16_load((const void *)w1)
                                               : v16_load_f16((const void *)w1);
        }
        if (ahead) {
            to_l2(w0 + ahead);
            if (TILES == 2) to_l2(w1 + ahead);
        }
        UNROLL for (int h = 0; h < per; h++) {
            UNROLL for (int r = 0; r < R; r++) {
                const v16 b = v16_set(x[h * R + r]);
                UNROLL for (int i = 0; i < TILES; i++) {
                    c[r][i] = v16_fma(v[h][i], b, c[r][i]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int i = 0; i < TILES; i++) {
            sum[r * TILES + i] = c[r][i];
        }
    }
}

typedef void block_fn(v16 *sum, const unsigned char *w0, const unsigned char *w1, size_t step,
                      const float *x, int32_t len, size_t ahead);
#define BLOCK_FN(type, R) \
    static void block_##type##_##R(v16 *sum, const unsigned char *w0, const unsigned char *w1, \
                                   size_t step, const float *x, int32_t len, size_t ahead) { \
        block_run(sum, w0, w1, step, x, len, ahead, R, SP_DTYPE_##type); \
    }
#if BLOCK_ROWS == 12
#define BLOCK_SIZES \
    { 2, 4, 6, 8, 10, 12 }
#define BLOCK_FNS(type) \
    BLOCK_FN(type, 2) \
    BLOCK_FN(type, 4) BLOCK_FN(type, 6) BLOCK_FN(type, 8) BLOCK_FN(type, 10) BLOCK_FN(type, 12)
#define BLOCK_TABLE(type) \
    { \
        block_##type##_2, block_##type##_4, block_##type##_6, block_##type##_8, block_##type##_10, \
            block_##type##_12 \
    }
#else
#define BLOCK_SIZES \
    { 2, 4, 6 }
#define BLOCK_FNS(type) BLOCK_FN(type, 2) BLOCK_FN(type, 4) BLOCK_FN(type, 6)
#define BLOCK_TABLE(type) \
    { block_##type##_2, block_##type##_4, block_##type##_6 }
#endif
BLOCK_FNS(F32)
BLOCK_FNS(F16)
BLOCK_FNS(BF16)
static const int block_sizes[] = BLOCK_SIZES;
static block_fn *const block_fns[3][SP_LEN(block_sizes)] = {BLOCK_TABLE(F32), BLOCK_TABLE(F16),
                                                            BLOCK_TABLE(BF16)};

/* Rows are cut evenly into blocks, all of one padded size: 13 rows are 8 + 8 (7 + 6 used). */
typedef struct block_plan {
    int32_t n, size, kind; /* blocks, rows of each with padding, index into block_sizes */
} block_plan;

static block_plan plan_blocks(int32_t n_rows) {
    block_plan p = {.n = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS};
    const int32_t each = (n_rows + p.n - 1) / p.n;
    while (block_sizes[p.kind] < each) p.kind++;
    p.size = block_sizes[p.kind];
    return p;
}

static int32_t block_row0(const sp_cpu_gemm *g, block_plan p, int32_t b) {
    return b * g->n_rows / p.n;
}

/* x of one block as [k][size]: 16 x 16 pieces turned in registers. */
static void block_pack(const sp_cpu_gemm *g, block_plan p, int32_t b) {
    const int32_t K = g->w->cols, row0 = block_row0(g, p, b), n = block_row0(g, p, b + 1) - row0;
    float *to = g->panel + (size_t)b * (size_t)p.size * (size_t)K;
    for (int32_t k = 0; k < K; k += SP_LANES) {
        const int32_t left = K - k < SP_LANES ? K - k : SP_LANES;
        v16 t[SP_LANES];
        for (int r = 0; r < SP_LANES; r++)
            t[r] = r < n ? v16_load_n(g->x + (row0 + r) * g->x_stride + k, left) : v16_zero();
        v16_transpose(t);
        for (int32_t i = 0; i < left; i++)
            v16_store_n(to + (size_t)(k + i) * (size_t)p.size, t[i], p.size);
    }
}

/* All of one segment for one block of rows and TILES tiles. */
static void block_segment(const sp_weight *w, int seg, const unsigned char *t0,
                          const unsigned char *t1, const float *x, block_plan p, bool fetch,
                          v16 *sum) {
    const int type = type_index(w->dtype);
    for (int n = 0; n < w->n_phases; n++) {
        const sp_cpu_phase *ph = &w->phase[n];
        int a = 0;
        while (a < ph->n_active && ph->seg[a] != seg) a++;
        if (a == ph->n_active) continue;
        const int32_t per = w->dtype == SP_DTYPE_BF16 ? 2 : 1, whole = ph->len / per * per;
        const size_t vec = SP_LANES * (size_t)w->elt * (size_t)per;
        const size_t at = (size_t)ph->before * SP_LANES * (size_t)w->elt;
        const float *xs = x + (size_t)ph->k0[a] * (size_t)p.size;
        /* What comes next lies beside it: the next segment, or the first one of the next tiles. */
        const size_t back = (size_t)(ph->n_active - 1) * vec;
        const size_t ahead = a + 1 < ph->n_active ? vec : TILES * w->tile_bytes - back;
        block_fns[type][p.kind](sum, t0 + at + (size_t)a * vec, t1 + at + (size_t)a * vec,
                                vec * (size_t)ph->n_active, xs, whole, fetch ? ahead : 0);
        if (whole == ph->len) continue;
        const size_t last = at + (size_t)whole * (size_t)ph->n_active * 32 + (size_t)a * 32;
        xs += (size_t)whole * (size_t)p.size;
        for (int i = 0; i < TILES; i++) {
            const v16 v = v16_load_bf16((const void *)((i ? t1 : t0) + last));
            for (int32_t r = 0; r < p.size; r++)
                sum[r * TILES + i] = v16_fma(v, v16_set(xs[r]), sum[r * TILES + i]);
        }
    }
}

/* Sums of TILES tiles and all rows: [block][row][tile]. */
typedef v16 block_sums[GROUP_ROWS * TILES];

/* One segment at a time for all rows: its part of x and of the tiles stays in L2 while it is used
 * (K 8192, 48 rows: 129 against 105 GFLOP/s with all segments of 12 rows first). The tree is made
 * on the fly: after segment s, as many pairs are added as s + 1 has trailing zeros, so at most four
 * sums wait. */
static void block_tile(const sp_cpu_gemm *g, block_plan p, int32_t tile, block_sums *wait) {
    const sp_weight *w = g->w;
    const unsigned char *t0 = w->tiles + (size_t)tile * w->tile_bytes;
    const unsigned char *t1 = TILES == 2 && tile + 1 < w->n_tiles ? t0 + w->tile_bytes : t0;
    const int n = p.n * p.size * TILES;
    int depth = 0;
    for (int s = 0; s < w->seg.n; s++) {
        for (int i = 0; i < n; i++) wait[depth][i] = v16_zero();
        for (int32_t b = 0; b < p.n; b++)
            block_segment(w, s, t0, t1, g->panel + (size_t)(b * p.size) * (size_t)w->cols, p,
                          b == 0, wait[depth] + b * p.size * TILES);
        depth++;
        for (int bits = s; bits & 1; bits >>= 1) {
            depth--;
            for (int i = 0; i < n; i++)
                wait[depth - 1][i] = v16_add(wait[depth - 1][i], wait[depth][i]);
        }
    }
}

static void block_tiles(const sp_cpu_gemm *g, int32_t tile0, int32_t tile1) {
    const block_plan p = plan_blocks(g->n_rows);
    block_sums wait[4];
    for (int32_t tile = tile0; tile < tile1; tile += TILES) {
        block_tile(g, p, tile, wait);
        for (int32_t b = 0; b < p.n; b++) {
            const int32_t row0 = block_row0(g, p, b), rows = block_row0(g, p, b + 1) - row0;
            for (int32_t i = 0; i < rows * TILES; i++)
                if (tile + i % TILES < tile1)
                    store_outputs(g, tile + i % TILES, row0 + i / TILES,
                                  wait[0][b * p.size * TILES + i]);
        }
    }
}

/* ---- both ---- */

static int32_t gemm_blocks(const sp_cpu_gemm *g) {
    return g->n_rows <= STREAM_MAX_ROWS ? stream_groups(g->n_rows) : plan_blocks(g->n_rows).n;
}

static void gemm_pack(const sp_cpu_gemm *g, int32_t block0, int32_t block1) {
    const int32_t n = gemm_blocks(g);
    for (int32_t b = block0; b < block1; b++) {
        const int32_t row0 = b * g->n_rows / n, R = (b + 1) * g->n_rows / n - row0;
        if (g->n_rows <= STREAM_MAX_ROWS)
            stream_pack(g, row0, R);
        else
            block_pack(g, plan_blocks(g->n_rows), b);
    }
}

static void gemm_tiles(const sp_cpu_gemm *g, int32_t tile0, int32_t tile1) {
    if (g->n_rows <= STREAM_MAX_ROWS)
        stream_tiles(g, tile0, tile1);
    else
        block_tiles(g, tile0, tile1);
}

const sp_isa_gemm SP_ISA_NAME(sp_isa_gemm_) = {GROUP_ROWS, gemm_blocks, gemm_pack, gemm_tiles};
