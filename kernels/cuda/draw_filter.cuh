/* kernels/cuda/draw_filter.cuh - min_p, top_k and top_p of one row by one block, in the host's order.
 *
 * draw_select() is a radix select: three passes over the row with bins of 11, 11 and 10 bits, no sort.
 * top_p adds masses in the order of the row, in f64, one after the other, as the host does. So the
 * order is needed, but only as far as the sum goes: pieces of at most DRAW_SORT - 1 places are cut off
 * by a select, sorted in shared memory and added by one thread; the logits equal to the piece's bound
 * have one mass, and are added without being sorted. A row of one single value is one such tie. */
#pragma once

#include "kernels/cuda/draw_row.cuh"
#include "kernels/math_log.h"

#define DRAW_FILTER_THREADS 1024
#define DRAW_BINS 2048
#define DRAW_GROUP 32 /* bins that one thread adds up */
#define DRAW_SORT 1024
#define DRAW_MASS 512 /* elements of a segment between two barriers; a multiple of 16 */

/* ---- the mass of segments ---- */

/* Sums of e^((x - max) / temperature) over x >= least, of PARTS neighbouring segments: 16 lanes, the
 * lane tree. sum[p] is there for all threads after the call. chunk: [PARTS][LENGTH]. */
template <int PARTS, int LENGTH, int BLOCK>
static __device__ void draw_masses(float *sum, float *chunk, const float *row, int32_t V,
                                   int32_t first_part, float max, float temperature, float least) {
    static_assert(PARTS * LENGTH % (DRAW_BATCH * BLOCK) == 0, "whole batches");
    const int32_t tid = (int32_t)threadIdx.x;
    const int32_t part = tid / SP_LANES, l = tid % SP_LANES;
    const bool adds = part < PARTS;
    float lane = 0;
    for (int32_t at = 0; at < V / DRAW_PARTS + 1; at += LENGTH) {
        for (int32_t k = tid; k < PARTS * LENGTH; k += DRAW_BATCH * BLOCK) {
            float x[DRAW_BATCH];
            CU_UNROLL for (int32_t u = 0; u < DRAW_BATCH; u++) {
                const int32_t p = first_part + (k + u * BLOCK) / LENGTH;
                const int32_t i = draw_edge(V, p) + at + (k + u * BLOCK) % LENGTH;
                x[u] = i < draw_edge(V, p + 1) ? row[i] : -INFINITY; /* adds +0 */
            }
            CU_UNROLL for (int32_t u = 0; u < DRAW_BATCH; u++) {
                const float e = sp_expf(__fdiv_rn(__fsub_rn(x[u], max), temperature));
                chunk[k + u * BLOCK] = x[u] >= least ? e : 0.0f;
            }
        }
        __syncthreads();
        if (adds)
            for (int32_t k = l; k < LENGTH; k += SP_LANES)
                lane = __fadd_rn(lane, chunk[part * LENGTH + k]);
        __syncthreads(); /* the chunk is filled again */
    }
    if (tid / 32 * 32 < PARTS * SP_LANES) { /* whole warps */
        const float all = cu_warp_sum<SP_LANES>(lane);
        if (adds && l == 0) sum[part] = all;
    }
    __syncthreads();
}

/* ---- the k-th largest ---- */

typedef struct draw_shared {
    uint32_t bins[DRAW_BINS];
    uint32_t group[DRAW_BINS / DRAW_GROUP];
    uint32_t digit, rank, same;
    int32_t enough;
    long long place[DRAW_SORT];
    double mass[DRAW_SORT];
    uint32_t n_places;
    int32_t end; /* of top_p: draw_end */
    draw_cut cut;
    uint32_t need;
    float chunk[DRAW_PARTS * DRAW_MASS], sum[DRAW_PARTS];
} draw_shared;

typedef struct draw_kth {
    bool enough;        /* false: there are fewer than k */
    uint32_t key, same; /* how many have this key */
} draw_kth;

/* Elements of a row that a select looks at, each with a key. */
struct draw_between { /* at least a logit, below a key */
    const float *row;
    float least;
    uint32_t below;
    __device__ __forceinline__ bool key(float x, int32_t i, uint32_t *key) const {
        (void)i;
        *key = draw_key(x);
        return x >= least && *key < below;
    }
};
struct draw_tied { /* of one key: the k-th largest is then the k-th lowest id */
    const float *row;
    uint32_t all;
    __device__ __forceinline__ bool key(float x, int32_t i, uint32_t *key) const {
        *key = (uint32_t)~i;
        return draw_key(x) == all;
    }
};

/* The bin in which the rank-th largest lies; `rank` becomes its rank in there. */
static __device__ void draw_find_bin(draw_shared *s) {
    const int32_t tid = (int32_t)threadIdx.x;
    if (tid < DRAW_BINS / DRAW_GROUP) {
        uint32_t sum = 0;
        /* Turned by the thread's number: no two threads of a warp in one bank. */
        for (int32_t i = 0; i < DRAW_GROUP; i++)
            sum += s->bins[tid * DRAW_GROUP + (i + tid) % DRAW_GROUP];
        s->group[tid] = sum;
    }
    __syncthreads();
    if (tid == 0) {
        uint32_t rank = s->rank;
        int32_t g = DRAW_BINS / DRAW_GROUP - 1;
        for (; g >= 0 && s->group[g] < rank; g--) rank -= s->group[g];
        s->enough = g >= 0;
        int32_t b = g >= 0 ? g * DRAW_GROUP + DRAW_GROUP - 1 : 0;
        for (; g >= 0 && s->bins[b] < rank; b--) rank -= s->bins[b];
        s->digit = (uint32_t)b;
        s->same = s->bins[b];
        s->rank = rank;
    }
    __syncthreads();
}

template <class Of>
static __device__ draw_kth draw_select(draw_shared *s, const Of &of, int32_t V, uint32_t k) {
    const int32_t tid = (int32_t)threadIdx.x;
    uint32_t found = 0;
    __syncthreads(); /* whoever read the last answer has it */
    if (tid == 0) s->rank = k;
    for (int32_t shift = 21, width = 11; shift >= 0;
         width = shift == 10 ? 10 : 11, shift -= width) {
        for (int32_t b = tid; b < DRAW_BINS; b += DRAW_FILTER_THREADS) s->bins[b] = 0;
        __syncthreads();
        for (int32_t at = tid; at < V; at += DRAW_BATCH * DRAW_FILTER_THREADS) {
            float x[DRAW_BATCH];
            draw_load(x, of.row, at, DRAW_FILTER_THREADS, V);
            CU_UNROLL for (int32_t u = 0; u < DRAW_BATCH; u++) {
                const int32_t i = at + u * DRAW_FILTER_THREADS;
                uint32_t key;
                if (i >= V || !of.key(x[u], i, &key)) continue;
                if (shift < 21 && key >> (shift + width) != found) continue;
                (void)atomicAdd(&s->bins[key >> shift & ((1u << width) - 1)], 1u);
            }
        }
        __syncthreads();
        draw_find_bin(s);
        if (!s->enough) return {false, 0, 0};
        found = found << width | s->digit;
    }
    return {true, found, s->same};
}

/* ---- min_p ---- */

/* The smallest float that is not below x. */
static __device__ __forceinline__ float draw_round_up(double x) {
    if (x <= -(double)FLT_MAX) return -FLT_MAX;
    const float f = (float)x;
    return (double)f < x ? draw_float_above(f) : f;
}

static __device__ __forceinline__ float draw_min_p(const sp_draw *d, float max) {
    if (!(d->min_p > 0)) return -FLT_MAX;
    const double log_p = d->min_p < 1 ? sp_log_both((double)d->min_p) : 0.0;
    return draw_round_up((double)max + (double)d->temperature * log_p);
}

/* ---- top_p ---- */

typedef enum draw_end {
    DRAW_NOT_YET,
    DRAW_AT_PLACE,
    DRAW_IN_TIE
} draw_end;

/* The places of a piece, in order; what fills it up to a power of two is nowhere. */
static __device__ void draw_sort_piece(draw_shared *s, const draw_between &of, int32_t V,
                                       draw_kth bound) {
    const int32_t tid = (int32_t)threadIdx.x, threads = DRAW_FILTER_THREADS;
    if (tid == 0) s->n_places = 0;
    for (int32_t i = tid; i < DRAW_SORT; i += threads) s->place[i] = DRAW_NOWHERE;
    __syncthreads();
    for (int32_t at = tid; at < V; at += DRAW_BATCH * threads) {
        float x[DRAW_BATCH];
        draw_load(x, of.row, at, threads, V);
        CU_UNROLL for (int32_t u = 0; u < DRAW_BATCH; u++) {
            const int32_t i = at + u * threads;
            uint32_t key;
            if (i >= V || !of.key(x[u], i, &key) || (bound.enough && key <= bound.key)) continue;
            s->place[atomicAdd(&s->n_places, 1u)] = draw_place(x[u], i);
        }
    }
    __syncthreads();
    int32_t n = 2;
    while (n < (int32_t)s->n_places) n *= 2;
    for (int32_t run = 2; run <= n; run *= 2)
        for (int32_t step = run / 2; step > 0; step /= 2) {
            for (int32_t k = tid; k < n / 2; k += threads) {
                const int32_t a = k / step * step * 2 + k % step, b = a + step;
                const long long x = s->place[a], y = s->place[b];
                if ((x < y) == ((a & run) == 0)) {
                    s->place[a] = y;
                    s->place[b] = x;
                }
            }
            __syncthreads();
        }
}

/* One thread: the sum is one chain of f64 additions. */
static __device__ double draw_add_piece(draw_shared *s, const float *row, double before,
                                        double wanted) {
    for (uint32_t i = 0; i < s->n_places; i++) {
        before += s->mass[i];
        if (before < wanted) continue;
        const int32_t id = draw_id_of(s->place[i]);
        s->cut = {row[id], id};
        s->end = DRAW_AT_PLACE;
        break;
    }
    return before;
}
static __device__ double draw_add_tie(draw_shared *s, double mass, uint32_t n, double before,
                                      double wanted) {
    for (uint32_t i = 1; i <= n; i++) {
        before += mass;
        if (before < wanted) continue;
        s->need = i;
        s->end = DRAW_IN_TIE;
        break;
    }
    return before;
}

/* The last token in order that the mass before it lets in, of those with at least `least`. */
static __device__ draw_cut draw_top_p(draw_shared *s, const float *row, int32_t V, const sp_draw *d,
                                      float max, float least) {
    const int32_t tid = (int32_t)threadIdx.x;
    draw_masses<DRAW_PARTS, DRAW_MASS, DRAW_FILTER_THREADS>(s->sum, s->chunk, row, V, 0, max,
                                                            d->temperature, least);
    const float *m = s->sum;
    const float total = __fadd_rn(__fadd_rn(__fadd_rn(m[0], m[1]), __fadd_rn(m[2], m[3])),
                                  __fadd_rn(__fadd_rn(m[4], m[5]), __fadd_rn(m[6], m[7])));
    const double wanted = (double)d->top_p * (double)total;
    double before = 0; /* of thread 0 */
    draw_between of = {row, least, UINT_MAX};
    if (tid == 0) s->end = DRAW_NOT_YET;
    for (;;) {
        const draw_kth bound = draw_select(s, of, V, DRAW_SORT);
        draw_sort_piece(s, of, V, bound);
        for (uint32_t i = (uint32_t)tid; i < s->n_places; i += DRAW_FILTER_THREADS) {
            const float x = row[draw_id_of(s->place[i])];
            s->mass[i] = (double)sp_expf(__fdiv_rn(__fsub_rn(x, max), d->temperature));
        }
        __syncthreads();
        if (tid == 0) {
            before = draw_add_piece(s, row, before, wanted);
            if (s->end == DRAW_NOT_YET && bound.enough) {
                const float x = draw_logit_of_key(bound.key);
                const float e = sp_expf(__fdiv_rn(__fsub_rn(x, max), d->temperature));
                before = draw_add_tie(s, (double)e, bound.same, before, wanted);
            }
        }
        __syncthreads();
        if (s->end == DRAW_AT_PLACE) return s->cut;
        if (s->end == DRAW_IN_TIE) {
            const float x = draw_logit_of_key(bound.key);
            return {x, (int32_t)~draw_select(s, draw_tied{row, bound.key}, V, s->need).key};
        }
        if (!bound.enough) return {least, INT_MAX}; /* all together are not enough: all stay */
        of.below = bound.key;
    }
}

/* ---- all three ---- */

static __device__ draw_cut draw_filter(draw_shared *s, const float *row, int32_t V,
                                       const sp_draw *d, float max) {
    float least = draw_min_p(d, max);
    if (d->top_k > 0 && d->top_k < V) {
        const draw_between of = {row, least, UINT_MAX};
        const draw_kth kth = draw_select(s, of, V, (uint32_t)d->top_k);
        if (kth.enough) least = draw_logit_of_key(kth.key);
    }
    if (!(d->top_p < 1)) return {least, INT_MAX};
    return draw_top_p(s, row, V, d, max, least);
}
