#include "runtime/gen/filter.h"

#include "kernels/math.h"

#include <float.h>
#include <math.h>

/* The smallest float that is not below x: the same survivors with a float comparison. */
static float round_up(double x) {
    if (x <= -(double)FLT_MAX) return -FLT_MAX;
    float f = (float)x;
    return (double)f < x ? nextafterf(f, INFINITY) : f;
}

static float min_p_cut(const sp_row *r, const sp_gen_params *p) {
    if (!(p->min_p > 0)) return -FLT_MAX;
    double log_p = p->min_p < 1 ? sp_log((double)p->min_p) : 0.0;
    return round_up((double)r->max + (double)p->temperature * log_p);
}

/* Smallest at the root: what must be beaten to be among the k largest. */
static void sift_least(float *heap, int32_t n, int32_t at) {
    const float x = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[at] = heap[child];
    }
    heap[at] = x;
}

/* The k-th largest logit, k <= n. */
static float kth_largest(const sp_row *r, int32_t k, float *heap) {
    for (int32_t i = 0; i < k; i++) heap[i] = r->logits[i];
    for (int32_t i = k / 2; i >= 0; i--) sift_least(heap, k, i);
    for (int32_t b = k / SP_ROW_BLOCK, at = b * SP_ROW_BLOCK; at < r->n; b++, at += SP_ROW_BLOCK) {
        if (r->block_max[b] <= heap[0]) continue;
        int32_t i = at < k ? k : at, end = r->n - at < SP_ROW_BLOCK ? r->n : at + SP_ROW_BLOCK;
        for (; i < end; i++)
            if (r->logits[i] > heap[0]) {
                heap[0] = r->logits[i];
                sift_least(heap, k, 0);
            }
    }
    return heap[0];
}

static bool is_before(sp_filter_entry a, sp_filter_entry b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* First in order at the root. */
static void sift_first(sp_filter_entry *heap, int32_t n, int32_t at) {
    const sp_filter_entry x = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_before(heap[child + 1], heap[child])) child++;
        if (!is_before(heap[child], x)) break;
        heap[at] = heap[child];
    }
    heap[at] = x;
}

static int32_t collect(const sp_row *r, float least, sp_filter_entry *out) {
    int32_t n = 0;
    for (int32_t b = 0, at = 0; at < r->n; b++, at += SP_ROW_BLOCK) {
        if (r->block_max[b] < least) continue;
        int32_t end = r->n - at < SP_ROW_BLOCK ? r->n : at + SP_ROW_BLOCK;
        for (int32_t i = at; i < end; i++)
            if (r->logits[i] >= least) out[n++] = (sp_filter_entry){r->logits[i], i};
    }
    return n;
}

/* Takes tokens in order, of those with at least `least`, until their mass is `wanted`. False: it
 * never was; *last is then the last of all. */
static bool take_mass(const sp_row *r, float temperature, double wanted, float least,
                      sp_filter_entry *heap, sp_cut *last) {
    int32_t n = collect(r, least, heap);
    double before = 0;
    for (int32_t i = n / 2; i >= 0; i--) sift_first(heap, n, i);
    while (n > 0) {
        *last = (sp_cut){heap[0].logit, heap[0].id};
        before += (double)sp_expf((heap[0].logit - r->max) / temperature);
        if (!(before < wanted)) return true;
        heap[0] = heap[--n];
        sift_first(heap, n, 0);
    }
    return false;
}

/* Only tokens that can be among the survivors are put in order. Those with a mass below
 * (1 - top_p) / n of the whole have less than 1 - top_p together, so the survivors are among the
 * others; a factor e covers the rounding. When it did not, all are put in order. */
static sp_cut top_p_cut(const sp_row *r, const sp_gen_params *p, float least,
                        sp_filter_entry *scratch) {
    float total = sp_row_mass(r, p->temperature, least);
    double wanted = (double)p->top_p * (double)total;
    double share = (1.0 - (double)p->top_p) * (double)total / r->n;
    float likely = round_up((double)r->max + (double)p->temperature * (sp_log(share) - 1.0));
    sp_cut last = {r->max, INT32_MAX};
    if (likely > least && take_mass(r, p->temperature, wanted, likely, scratch, &last)) return last;
    (void)take_mass(r, p->temperature, wanted, least, scratch, &last);
    return last;
}

sp_cut sp_filter(const sp_row *r, const sp_gen_params *p, sp_filter_entry *scratch) {
    /* min_p and top_k are both lower bounds, and so is what they give one after the other: when
     * fewer than k tokens pass min_p, the k-th largest of all is below min_p's bound. */
    float least = min_p_cut(r, p);
    if (p->top_k > 0 && p->top_k < r->n) {
        float kth = kth_largest(r, p->top_k, (float *)scratch);
        if (kth > least) least = kth;
    }
    if (!(p->top_p < 1)) return (sp_cut){least, INT32_MAX};
    return top_p_cut(r, p, least, scratch);
}
