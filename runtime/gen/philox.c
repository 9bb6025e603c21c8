#include "runtime/gen/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MUL_0 0xd2511f53u
#define MUL_1 0xcd9e8d57u
#define WEYL_0 0x9e3779b9u
#define WEYL_1 0xbb67ae85u
#define ROUNDS 10

static inline void mix(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t p0 = (uint64_t)MUL_0 * c[0], p1 = (uint64_t)MUL_1 * c[2];
        uint32_t c1 = c[1], c3 = c[3];
        c[0] = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c[1] = (uint32_t)p1;
        c[2] = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c[3] = (uint32_t)p0;
        k0 += WEYL_0;
        k1 += WEYL_1;
    }
}

void sp_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    mix(c, key[0], key[1]);
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

static void words(const uint32_t key[2], const uint32_t counter[4], int n, uint32_t *out) {
    for (int i = 0; i < n; i++) {
        uint32_t c[4] = {counter[0], counter[1], counter[2] + (uint32_t)i, counter[3]};
        mix(c, key[0], key[1]);
        out[i] = c[0];
    }
}

#if defined(__x86_64__)
/* Integers only, so a wider instruction set cannot change a bit; it is 5 times as fast, which a draw
 * over 128k tokens needs. A word sits in the low half of a 64-bit lane; the multiplication ignores
 * the high half, so what is left there is never cleared. Four vectors hide its latency. */
#define VECTORS 4
#define LANES (4 * VECTORS)
__attribute__((target("avx2"))) static void words_avx2(const uint32_t key[2],
                                                       const uint32_t counter[4], int n,
                                                       uint32_t *out) {
    const __m256i m0 = _mm256_set1_epi64x(MUL_0), m1 = _mm256_set1_epi64x(MUL_1);
    const __m256i low = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (int i = 0; i + LANES <= n; i += LANES) {
        __m256i a[VECTORS], b[VECTORS], c[VECTORS], d[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            uint32_t id = counter[2] + (uint32_t)(i + 4 * v);
            a[v] = _mm256_set1_epi64x(counter[0]);
            b[v] = _mm256_set1_epi64x(counter[1]);
            c[v] =
                _mm256_setr_epi32((int)id, 0, (int)(id + 1), 0, (int)(id + 2), 0, (int)(id + 3), 0);
            d[v] = _mm256_set1_epi64x(counter[3]);
        }
        uint32_t k0 = key[0], k1 = key[1];
        for (int round = 0; round < ROUNDS; round++, k0 += WEYL_0, k1 += WEYL_1) {
            const __m256i w0 = _mm256_set1_epi64x(k0), w1 = _mm256_set1_epi64x(k1);
            for (int v = 0; v < VECTORS; v++) {
                __m256i p0 = _mm256_mul_epu32(a[v], m0), p1 = _mm256_mul_epu32(c[v], m1);
                a[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), b[v]), w0);
                c[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), d[v]), w1);
                b[v] = p1;
                d[v] = p0;
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            __m256i packed = _mm256_permutevar8x32_epi32(a[v], low);
            _mm_storeu_si128((__m128i *)(out + i + 4 * v), _mm256_castsi256_si128(packed));
        }
    }
    int done = n / LANES * LANES;
    const uint32_t rest[4] = {counter[0], counter[1], counter[2] + (uint32_t)done, counter[3]};
    words(key, rest, n - done, out + done);
}
#endif

void sp_philox_words(uint64_t seed, int32_t choice, int32_t position, int32_t first_id, int32_t n,
                     uint32_t *out) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)choice, (uint32_t)position, (uint32_t)first_id, 0};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        words_avx2(key, counter, n, out);
        return;
    }
#endif
    words(key, counter, n, out);
}
