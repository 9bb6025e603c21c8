#include "kernels/cuda/cuda_dev.h"

/* Spans are made by the rank, from tokens that it keeps itself: like shapes, they are asserted. */
static void check_span(int32_t from, int32_t n, int32_t all) {
    SP_ASSERT(n == 0 || (n > 0 && from >= 0 && n <= all - from));
}

static void check_draws(const sp_draw_args *a) {
    SP_ASSERT(a->V > 0 && a->ld >= a->V && a->n_tokens >= 0 && a->n_bias >= 0);
    for (int32_t i = 0; i < a->n; i++) {
        const sp_draw *d = &a->draws[i];
        SP_ASSERT(d->row >= 0);
        check_span(d->prompt0, d->n_prompt, a->n_tokens);
        check_span(d->output0, d->n_output, a->n_tokens);
        check_span(d->bias0, d->n_bias, a->n_bias);
        check_span(d->allowed0, d->n_allowed < 0 ? 0 : d->n_allowed, a->n_tokens);
    }
}

/* True: *there is where the array will be; an empty one is nowhere. */
static bool send(cu_dev *cu, const void **there, const void *array, int32_t n, size_t size) {
    *there = NULL;
    if (n == 0) return true;
    *there = cu_send(cu, array, (size_t)n * size);
    return *there != NULL;
}

void cu_op_draw(sp_dev *dev, const sp_draw_args *a) {
    cu_dev *cu = dev->impl;
    check_draws(a);
    if (a->n == 0 || !cu_begin(cu, "draw")) return;
    const void *draws, *tokens, *bias;
    if (!send(cu, &draws, a->draws, a->n, sizeof *a->draws) ||
        !send(cu, &tokens, a->tokens, a->n_tokens, sizeof *a->tokens) ||
        !send(cu, &bias, a->bias, a->n_bias, sizeof *a->bias))
        return;
    if (!cu_scratch(cu, cu_draw_scratch(a->n, a->V))) return;
    sp_draw_args there = *a;
    there.draws = draws;
    there.tokens = tokens;
    there.bias = bias;
    cu_check(cu, cu_draw(cu->stream, &there, cu->scratch), cu->op);
}
