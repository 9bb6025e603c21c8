#include "comm/group_tree.h"

#include "comm/group.h"
#include "runtime/base/status.h"

#include <string.h>

#define LANES 16  /* summed at a time; a local array of these, so that `out` may be a part */
#define LEAVES 8  /* parts summed by one expression */
#define BLOCK 256 /* elements whose subtree sums lie in the first-level cache */
#define SUBTREES_MAX (SP_GROUP_MEMBERS_MAX / LEAVES)

/* The tree over up to 8 leaves. With `n` a constant only one line of it is left. */
static inline __attribute__((always_inline)) float tree8(const float *const *p, int n, size_t i) {
    if (n == 1) return p[0][i];
    float ab = p[0][i] + p[1][i];
    if (n == 2) return ab;
    if (n == 3) return ab + p[2][i];
    float abcd = ab + (p[2][i] + p[3][i]);
    if (n == 4) return abcd;
    if (n == 5) return abcd + p[4][i];
    float ef = p[4][i] + p[5][i];
    if (n == 6) return abcd + ef;
    if (n == 7) return abcd + (ef + p[6][i]);
    return abcd + (ef + (p[6][i] + p[7][i]));
}

static inline __attribute__((always_inline)) void sum(float *out, const float *const *parts, int n,
                                                      size_t from, size_t to) {
    const float *p[LEAVES];
    for (int k = 0; k < n; k++) p[k] = parts[k];
    size_t i = from;
    for (; i + LANES <= to; i += LANES) {
        float lane[LANES];
        for (size_t l = 0; l < LANES; l++) lane[l] = tree8(p, n, i + l);
        memcpy(out + (i - from), lane, sizeof lane);
    }
    for (; i < to; i++) out[i - from] = tree8(p, n, i);
}

/* out[0..to-from) = the tree over parts[0..n)[from..to). */
static void sum_leaves(float *out, const float *const *parts, int n, size_t from, size_t to) {
    switch (n) {
    case 1:
        sum(out, parts, 1, from, to);
        break;
    case 2:
        sum(out, parts, 2, from, to);
        break;
    case 3:
        sum(out, parts, 3, from, to);
        break;
    case 4:
        sum(out, parts, 4, from, to);
        break;
    case 5:
        sum(out, parts, 5, from, to);
        break;
    case 6:
        sum(out, parts, 6, from, to);
        break;
    case 7:
        sum(out, parts, 7, from, to);
        break;
    default:
        sum(out, parts, 8, from, to);
        break;
    }
}

void sp_group_tree(float *out, const float *const *parts, int n_parts, size_t n) {
    SP_ASSERT(n_parts >= 1 && n_parts <= SP_GROUP_MEMBERS_MAX);
    if (n_parts <= LEAVES) {
        sum_leaves(out, parts, n_parts, 0, n);
        return;
    }
    /* A full subtree of 8 leaves is one leaf of the tree above, which has at most 8 of them. */
    float subtree[SUBTREES_MAX][BLOCK];
    const float *above[SUBTREES_MAX] = {0};
    int n_above = (n_parts + LEAVES - 1) / LEAVES;
    for (int t = 0; t < n_above; t++) above[t] = subtree[t];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t end = n - at < BLOCK ? n : at + BLOCK;
        for (int t = 0; t < n_above; t++) {
            int left = n_parts - t * LEAVES;
            sum_leaves(subtree[t], parts + t * LEAVES, left < LEAVES ? left : LEAVES, at, end);
        }
        sum_leaves(out + at, above, n_above, 0, end - at);
    }
}
