#include "runtime/gen/row.h"

#include "kernels/math.h"

#include <math.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 16 /* of the scan and of the sum */
#define SEGMENTS 8

static float max_of_16(const float *lane) {
    float m = lane[0];
    for (int i = 1; i < LANES; i++) m = lane[i] > m ? lane[i] : m;
    return m;
}

/* x > m keeps m when x is NaN, which is also what the vector instruction does. */
static float scan_block(const float *x, int n, bool *has_nan) {
    float m[LANES];
    int bad[LANES] = {0}, any = 0, i = 0;
    for (int j = 0; j < LANES; j++) m[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            bad[j] |= x[i + j] != x[i + j];
            m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
        }
    for (int j = 0; i + j < n; j++) {
        bad[j] |= x[i + j] != x[i + j];
        m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    }
    for (int j = 0; j < LANES; j++) any |= bad[j];
    *has_nan |= any != 0;
    return max_of_16(m);
}

sp_row sp_row_scan(const float *logits, int32_t n, float *block_max) {
    sp_row r = {.logits = logits, .n = n, .max = -INFINITY, .block_max = block_max};
    for (int32_t b = 0, at = 0; at < n; b++, at += SP_ROW_BLOCK) {
        int len = n - at < SP_ROW_BLOCK ? n - at : SP_ROW_BLOCK;
        block_max[b] = scan_block(logits + at, len, &r.has_nan);
        if (block_max[b] > r.max) r.max = block_max[b];
    }
    return r;
}

bool sp_row_is_sound(const sp_row *r) {
    return !r->has_nan && r->max > -INFINITY && r->max < INFINITY;
}

int32_t sp_row_argmax(const sp_row *r) {
    int32_t b = 0;
    while (r->block_max[b] != r->max) b++;
    int32_t i = b * SP_ROW_BLOCK;
    while (r->logits[i] != r->max) i++;
    return i;
}

typedef struct sum_job {
    const float *logits;
    float max, temperature, least;
} sum_job;

/* Adds logits [from, to), at most LANES of them, each to its own lane. */
static void add_some(const sum_job *j, int32_t from, int32_t to, float *lane) {
    for (int32_t i = from; i < to; i++) {
        if (!(j->logits[i] >= j->least)) continue;
        lane[i - from] += sp_expf((j->logits[i] - j->max) / j->temperature);
    }
}

static void add_lanes(const sum_job *j, int32_t at, float *lane) {
    add_some(j, at, at + LANES, lane);
}

#if defined(__x86_64__)
/* sp_expf(), line for line, on 8 lanes: the same IEEE operations, so the same bits (the test of
 * sp_row_mass() compares them). Without it every fma is a library call, and a row of 128k tokens
 * takes 5 times as long. kernels/cpu/vecmath.h has it too, but only where a file is compiled once
 * for each instruction set. */
__attribute__((target("avx2,fma"))) static __m256 exp_avx2(__m256 x) {
    const __m256 magic = _mm256_set1_ps(SP_MAGIC);
    const __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(SP_LOG2E), magic);
    const __m256 n = _mm256_sub_ps(t, magic);
    const __m256 hi = _mm256_fmadd_ps(n, _mm256_set1_ps(-SP_LN2_HI), x);
    const __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-SP_LN2_LO), hi);
    __m256 q = _mm256_set1_ps(sp_expf_poly[4]);
    for (int i = 3; i >= 0; i--) q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(sp_expf_poly[i]));
    const __m256 p = _mm256_add_ps(_mm256_fmadd_ps(q, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1));
    const __m256i i = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    const __m256i half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
    const __m256i s0 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i s1 = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    const __m256 scaled = _mm256_mul_ps(p, _mm256_castsi256_ps(s0));
    const __m256 y = _mm256_mul_ps(scaled, _mm256_castsi256_ps(s1));
    /* Arguments are never positive here, so there is no upper bound to look at. */
    const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(SP_EXPF_MIN), _CMP_LT_OQ);
    return _mm256_andnot_ps(tiny, y);
}

__attribute__((target("avx2,fma"))) static void add_lanes_avx2(const sum_job *j, int32_t at,
                                                               float *lane) {
    for (int32_t i = 0; i < LANES; i += 8) {
        const __m256 x = _mm256_loadu_ps(j->logits + at + i);
        const __m256 d = _mm256_sub_ps(x, _mm256_set1_ps(j->max));
        const __m256 e = exp_avx2(_mm256_div_ps(d, _mm256_set1_ps(j->temperature)));
        const __m256 in = _mm256_cmp_ps(x, _mm256_set1_ps(j->least), _CMP_GE_OQ);
        const __m256 sum = _mm256_add_ps(_mm256_loadu_ps(lane + i), _mm256_and_ps(e, in));
        _mm256_storeu_ps(lane + i, sum);
    }
}
#endif

static float segment_mass(const sp_row *r, const sum_job *j, int32_t from, int32_t to) {
    void (*add)(const sum_job *, int32_t, float *) = add_lanes;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add = add_lanes_avx2;
#endif
    float lane[LANES] = {0};
    for (int32_t i = from; i < to; i += LANES) {
        int32_t last = to - i < LANES ? to - 1 : i + LANES - 1;
        if (r->block_max[i / SP_ROW_BLOCK] < j->least &&
            r->block_max[last / SP_ROW_BLOCK] < j->least)
            continue;
        if (last - i == LANES - 1)
            add(j, i, lane);
        else
            add_some(j, i, to, lane);
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

float sp_row_mass(const sp_row *r, float temperature, float least) {
    const sum_job j = {r->logits, r->max, temperature, least};
    float sum[SEGMENTS];
    for (int s = 0; s < SEGMENTS; s++) {
        int64_t from = (int64_t)s * r->n / SEGMENTS, to = (int64_t)(s + 1) * r->n / SEGMENTS;
        sum[s] = segment_mass(r, &j, (int32_t)from, (int32_t)to);
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

int32_t sp_row_rank(const sp_row *r, int32_t id) {
    const float x = r->logits[id];
    int32_t before = 0;
    for (int32_t b = 0, at = 0; at < r->n; b++, at += SP_ROW_BLOCK) {
        if (r->block_max[b] < x) continue;
        int32_t end = r->n - at < SP_ROW_BLOCK ? r->n : at + SP_ROW_BLOCK;
        for (int32_t i = at; i < end; i++)
            before += r->logits[i] > x || (r->logits[i] == x && i < id);
    }
    return before + 1;
}

/* Ids come in ascending order, so an equal logit goes behind those that are there. */
static void insert(sp_top_logprob *top, int32_t *n, int32_t n_max, int32_t id, float x) {
    int32_t at = *n < n_max ? (*n)++ : n_max - 1;
    for (; at > 0 && top[at - 1].logprob < x; at--) top[at] = top[at - 1];
    top[at] = (sp_top_logprob){id, x};
}

int32_t sp_row_top(const sp_row *r, int32_t n, sp_top_logprob *out) {
    int32_t have = 0;
    if (n <= 0) return 0;
    for (int32_t b = 0, at = 0; at < r->n; b++, at += SP_ROW_BLOCK) {
        if (have == n && r->block_max[b] <= out[n - 1].logprob) continue;
        int32_t end = r->n - at < SP_ROW_BLOCK ? r->n : at + SP_ROW_BLOCK;
        for (int32_t i = at; i < end; i++)
            if (have < n || r->logits[i] > out[n - 1].logprob)
                insert(out, &have, n, i, r->logits[i]);
    }
    return have;
}
