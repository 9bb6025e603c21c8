#include "kernels/args.h"

sp_segments sp_segments_of(int32_t units, int32_t unit_size) {
    SP_ASSERT(units >= 0 && unit_size > 0);
    sp_segments s = {.n = SP_SEGMENTS};
    for (int i = 0; i <= SP_SEGMENTS; i++)
        s.edge[i] = (int32_t)((int64_t)i * units / SP_SEGMENTS * unit_size);
    return s;
}

sp_segments sp_segments_slice(sp_segments whole, int tp, int tp_rank, int32_t *first) {
    SP_ASSERT(tp >= 1 && whole.n % tp == 0 && tp_rank >= 0 && tp_rank < tp);
    const int n = whole.n / tp;
    const int32_t *edge = whole.edge + tp_rank * n;
    sp_segments s = {.n = n};
    for (int i = 0; i <= n; i++) s.edge[i] = edge[i] - edge[0];
    if (first) *first = edge[0];
    return s;
}
