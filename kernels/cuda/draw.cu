/* A token of each row: the bits of runtime/gen/sampler.h, by four kernels.
 *
 *   read    a block a segment   the untouched row's first place; the edited copy, and its first place
 *   filter  a block a row       is the row sound; min_p, top_k, top_p: the last survivor
 *   pick    a block a segment   the segment's winner; with logprobs its mass and most likely tokens
 *   finish  a block a row       the row's winner; with logprobs its rank; the answer, last[slot]
 *
 * Always these four, whatever the parameters: a graph of them serves every step of n rows. What a row
 * does not need, its blocks leave at once. Blocks know nothing of other rows: a row's bits do not
 * depend on its company.
 *
 * Floors, V elements a row, one SM for a block of `filter` and `finish`, eight for the others:
 *   greedy         4 V bytes read. With edits 4 V more, 4 V written, and the history read 8 times.
 *   temperature    4 V read again (from L2) and about 100 integer operations an element for Philox:
 *                  2 V / 128 cycles on each of eight SMs. f64 logarithms only where the bound of
 *                  draw_pick.cuh lets an element through: few of a sharp row, all of a flat one.
 *   top_k          3 passes (4 V bytes each) and V shared additions, which are slowest where many
 *                  logits share sign, exponent and two bits: a lane a cycle.
 *   top_p          1 pass with an exp, then 4 or 5 for each piece of 1023 places that the sum needs,
 *                  55 steps of a sort, and a chain of f64 additions: about 20 cycles a survivor. A flat
 *                  row of 2^17 with top_p 0.9 is the worst: about 120 pieces.
 *   min_p          nothing.
 *   logprobs       4 V bytes and V exp, chains of V / 128 additions; 4 V more for the rank; a pass of
 *                  one thread over V / 2048 elements for each most likely token.
 * Numerics: as sampler.h, row.h and filter.h say; sums of masses in f32, 16 lanes a segment by (id -
 *   segment start) mod 16, ascending, the lane tree, the segment tree; top_p's sum in f64, one after
 *   the other; scores in f64. exp and log from kernels/math.h and math_log.h. Compile with -fmad=false.
 *   Bound against the host's sampler: 0, of every field.
 * Launch: grid (8, n) x 256 threads, grid n x 1024, grid (8, n) x 256, grid n x 256; DRAW_ROWS rows at
 *   a time, so that scratch stays below DRAW_ROWS rows of 8 bytes an element.
 * An answer without a token: id -1, rank 0 when the row itself is broken (a NaN, +inf, nothing above
 *   -inf), rank 1 when the request's masks left nothing. Fields that were not asked for are 0. */
#include "kernels/cuda/draw_edit.cuh"
#include "kernels/cuda/draw_filter.cuh"
#include "kernels/cuda/draw_pick.cuh"

#define THREADS 256
#define DRAW_ROWS 128  /* that share the scratch */
#define PICK_MASS 4096 /* as DRAW_MASS, of one segment */
#define ALIGN ((size_t)256)

/* ---- read ---- */

typedef struct seen {
    float max;
    int32_t id; /* -1: nothing above -inf */
    int32_t bad;
} seen;

static __device__ __forceinline__ void look(seen *s, float x, int32_t id) {
    s->bad |= x != x;
    if (!(x > s->max)) return; /* ids ascend: the lowest of equal ones stays */
    s->max = x;
    s->id = id;
}

/* The block's: its first place, and whether it saw a NaN. */
static __device__ void gather_seen(seen s, long long *first, int32_t *bad) {
    const long long most = cu_block_max(s.id >= 0 ? draw_place(s.max, s.id) : DRAW_NOWHERE);
    const int32_t any = __syncthreads_or(s.bad);
    if (threadIdx.x != 0) return;
    *first = most;
    *bad = any;
}

__global__ void __launch_bounds__(THREADS) read_kernel(draw_job j) {
    const int32_t draw = (int32_t)blockIdx.y, part = (int32_t)blockIdx.x;
    const int32_t tid = (int32_t)threadIdx.x;
    const sp_draw *d = &j.draws[draw];
    draw_part *out = &j.parts[draw * DRAW_PARTS + part];
    const int32_t from = draw_edge(j.V, part), to = draw_edge(j.V, part + 1);
    const float *raw = draw_raw(j, draw);
    const bool edits = draw_has_edits(d), all = d->n_allowed < 0;
    float *edited = j.edited + (int64_t)draw * j.V;
    seen s = {-INFINITY, -1, 0};
    for (int32_t at = from + tid; at < to; at += DRAW_BATCH * THREADS) {
        float x[DRAW_BATCH];
        draw_load(x, raw, at, THREADS, to);
        CU_UNROLL for (int32_t k = 0; k < DRAW_BATCH; k++) {
            const int32_t i = at + k * THREADS;
            if (i >= to) continue;
            look(&s, x[k], i);
            if (edits) edited[i] = all ? x[k] : -INFINITY;
        }
    }
    gather_seen(s, &out->raw_first, &out->raw_bad);
    if (edits) {
        draw_edit({edited, j.counts + (int64_t)draw * j.V, from, to}, j, d, raw);
        s = {-INFINITY, -1, 0};
        for (int32_t i = from + tid; i < to; i += THREADS) look(&s, edited[i], i);
    }
    gather_seen(s, &out->first, &out->bad);
}

/* ---- filter ---- */

static __device__ draw_choice choose(const draw_job &j, int32_t draw) {
    const draw_part *p = &j.parts[draw * DRAW_PARTS];
    long long raw_first = DRAW_NOWHERE, first = DRAW_NOWHERE;
    int32_t raw_bad = 0, bad = 0;
    for (int32_t i = 0; i < DRAW_PARTS; i++) {
        raw_first = max(raw_first, p[i].raw_first);
        first = max(first, p[i].first);
        raw_bad |= p[i].raw_bad;
        bad |= p[i].bad;
    }
    draw_choice c = {DRAW_BROKEN, 0, 0, 0, {-FLT_MAX, INT_MAX}};
    if (raw_bad || raw_first == DRAW_NOWHERE) return c;
    c.raw_max = draw_raw(j, draw)[draw_id_of(raw_first)];
    if (c.raw_max == INFINITY) return c;
    c.state = DRAW_EMPTY;
    if (bad || first == DRAW_NOWHERE) return c;
    c.first = draw_id_of(first);
    c.max = draw_row(j, draw)[c.first];
    if (c.max < INFINITY) c.state = DRAW_SOUND;
    return c;
}

__global__ void __launch_bounds__(DRAW_FILTER_THREADS) filter_kernel(draw_job j) {
    CU_SHARED(draw_shared, s, );
    const int32_t draw = (int32_t)blockIdx.x;
    const sp_draw *d = &j.draws[draw];
    draw_choice c = choose(j, draw);
    if (c.state == DRAW_SOUND && !(d->temperature < DRAW_GREEDY_BELOW))
        c.cut = draw_filter(&s, draw_row(j, draw), j.V, d, c.max);
    if (threadIdx.x == 0) j.choices[draw] = c;
}

/* ---- pick ---- */

__global__ void __launch_bounds__(THREADS) pick_kernel(draw_job j) {
    CU_SHARED(float, chunk, [PICK_MASS]);
    CU_SHARED(float, limit, [DRAW_LIMITS]);
    CU_SHARED(float, mass, );
    const int32_t draw = (int32_t)blockIdx.y, part = (int32_t)blockIdx.x;
    const sp_draw *d = &j.draws[draw];
    const draw_choice *c = &j.choices[draw];
    draw_part *out = &j.parts[draw * DRAW_PARTS + part];
    const int32_t from = draw_edge(j.V, part), to = draw_edge(j.V, part + 1);
    if (c->state != DRAW_SOUND) return;
    if (!(d->temperature < DRAW_GREEDY_BELOW))
        draw_pick<THREADS>(out, limit, d, draw_row(j, draw), c, from, to);
    if (d->n_logprobs < 0) return;
    const float *raw = draw_raw(j, draw);
    draw_masses<1, PICK_MASS, THREADS>(&mass, chunk, raw, j.V, part, c->raw_max, 1.0f, -INFINITY);
    if (threadIdx.x == 0) out->mass = mass;
    draw_top(out, raw, from, to, min(d->n_logprobs, SP_DRAW_TOP_MAX));
}

/* ---- finish ---- */

/* The winner of the segments' winners. */
static __device__ int32_t winner(const draw_part *p, int32_t first) {
    int32_t id = -1;
    double best = 0;
    for (int32_t i = 0; i < DRAW_PARTS; i++) {
        if (p[i].id < 0 || (id >= 0 && !(p[i].score > best))) continue; /* ids ascend here too */
        id = p[i].id;
        best = p[i].score;
    }
    return id < 0 ? first : id;
}

static __device__ float log_mass(const draw_part *p) {
    const float a = __fadd_rn(__fadd_rn(p[0].mass, p[1].mass), __fadd_rn(p[2].mass, p[3].mass));
    const float b = __fadd_rn(__fadd_rn(p[4].mass, p[5].mass), __fadd_rn(p[6].mass, p[7].mass));
    return sp_logf(__fadd_rn(a, b));
}

static __device__ int32_t places_before(const float *row, int32_t V, int32_t id) {
    const float x = row[id];
    int32_t before = 0;
    for (int32_t at = (int32_t)threadIdx.x; at < V; at += 2 * DRAW_BATCH * THREADS) {
        float y[2 * DRAW_BATCH];
        draw_load(y, row, at, THREADS, V);
        CU_UNROLL for (int32_t k = 0; k < 2 * DRAW_BATCH; k++) {
            const int32_t i = at + k * THREADS;
            before += i < V && (y[k] > x || (y[k] == x && i < id));
        }
    }
    return cu_block_sum(before);
}

/* Each segment's most likely tokens are in order: where one of them stands among all of them. */
static __device__ int32_t standing(const draw_part *p, long long place, int32_t n) {
    int32_t before = 0;
    for (int32_t i = 0; i < DRAW_PARTS; i++)
        for (int32_t k = 0; k < n && p[i].top[k] > place; k++) before++;
    return before;
}

/* The block calls it together; *out is zeroed but for its id, before a sum of the block and so before
 * anything is written here. */
static __device__ void report(sp_drawn *out, const draw_part *p, const float *raw, int32_t V,
                              float max, int32_t id, int32_t n_top) {
    const int32_t n = min(n_top, SP_DRAW_TOP_MAX), t = (int32_t)threadIdx.x;
    const float log_sum = log_mass(p);
    const int32_t before = places_before(raw, V, id);
    if (t == 0) {
        out->logprob = __fsub_rn(__fsub_rn(raw[id], max), log_sum);
        out->rank = before + 1;
        out->n_top = min(n, V);
    }
    if (t >= DRAW_PARTS * n) return;
    const long long place = p[t / n].top[t % n];
    if (place == DRAW_NOWHERE) return;
    const int32_t at = standing(p, place, n), top_id = draw_id_of(place);
    if (at >= n) return;
    out->top_id[at] = top_id;
    out->top_logprob[at] = __fsub_rn(__fsub_rn(raw[top_id], max), log_sum);
}

__global__ void __launch_bounds__(THREADS) finish_kernel(draw_job j) {
    const int32_t draw = (int32_t)blockIdx.x, t = (int32_t)threadIdx.x;
    const sp_draw *d = &j.draws[draw];
    const draw_choice c = j.choices[draw];
    const draw_part *p = &j.parts[draw * DRAW_PARTS];
    sp_drawn *out = &j.drawn[draw];
    const bool sound = c.state == DRAW_SOUND;
    const int32_t id = !sound                               ? -1
                       : d->temperature < DRAW_GREEDY_BELOW ? c.first
                                                            : winner(p, c.first);
    if (t < SP_DRAW_TOP_MAX) {
        out->top_id[t] = 0;
        out->top_logprob[t] = 0;
    }
    if (t == 0) {
        out->id = id;
        out->logprob = 0;
        out->rank = c.state == DRAW_EMPTY;
        out->n_top = 0;
        if (d->slot >= 0) j.last[d->slot] = sound ? id : 0;
    }
    if (sound && d->n_logprobs >= 0)
        report(out, p, draw_raw(j, draw), j.V, c.raw_max, id, d->n_logprobs);
}

/* ---- host ---- */

static_assert(DRAW_PARTS * SP_DRAW_TOP_MAX <= THREADS, "a thread for each of the most likely");
static_assert(SP_DRAW_TOP_MAX <= THREADS && DRAW_LIMITS <= THREADS, "a thread for each");
static_assert(DRAW_SORT - 1 <= DRAW_BINS && DRAW_PARTS == 8, "trees are written out");

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}
static int32_t rows_at_once(int32_t n) {
    return n < DRAW_ROWS ? n : DRAW_ROWS;
}
static size_t parts_bytes(int32_t rows) {
    return aligned((size_t)rows * DRAW_PARTS * sizeof(draw_part));
}
static size_t choices_bytes(int32_t rows) {
    return aligned((size_t)rows * sizeof(draw_choice));
}
static size_t row_bytes(int32_t rows, int32_t V) {
    return aligned((size_t)rows * (size_t)V * sizeof(float));
}

extern "C" size_t cu_draw_scratch(int32_t n, int32_t V) {
    if (n <= 0 || V <= 0) return 0;
    const int32_t rows = rows_at_once(n);
    return parts_bytes(rows) + choices_bytes(rows) + 2 * row_bytes(rows, V);
}

static cudaError_t draw_rows(cudaStream_t st, const draw_job &j, int32_t n) {
    const dim3 segments(DRAW_PARTS, (unsigned)n), rows((unsigned)n), threads(THREADS);
    cudaError_t e = cu_launch({segments, threads, 0, st}, read_kernel, j);
    if (e == cudaSuccess) e = cu_launch({rows, dim3(DRAW_FILTER_THREADS), 0, st}, filter_kernel, j);
    if (e == cudaSuccess) e = cu_launch({segments, threads, 0, st}, pick_kernel, j);
    if (e == cudaSuccess) e = cu_launch({rows, threads, 0, st}, finish_kernel, j);
    return e;
}

extern "C" cudaError_t cu_draw(cudaStream_t st, const sp_draw_args *a, void *scratch) {
    if (a->n == 0) return cudaSuccess;
    if (a->n < 0 || a->V <= 0 || a->ld < a->V || !scratch) return cudaErrorInvalidValue;
    const int32_t rows = rows_at_once(a->n);
    unsigned char *at = (unsigned char *)scratch;
    draw_job j = {};
    j.logits = a->logits;
    j.ld = a->ld;
    j.V = a->V;
    j.tokens = a->tokens;
    j.bias = a->bias;
    j.last = a->last;
    j.parts = (draw_part *)(void *)at;
    j.choices = (draw_choice *)(void *)(at + parts_bytes(rows));
    at += parts_bytes(rows) + choices_bytes(rows);
    j.edited = (float *)(void *)at;
    j.counts = (uint32_t *)(void *)(at + row_bytes(rows, a->V));
    for (int32_t from = 0; from < a->n; from += rows) {
        j.draws = a->draws + from;
        j.drawn = a->drawn + from;
        const cudaError_t e = draw_rows(st, j, min(rows, a->n - from));
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
