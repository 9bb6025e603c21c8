// Meetings of lanes and of threads, and what is computed at them.
#include "kernels/cuda/emu/engine.h"
#include "kernels/cuda/emu/half.h"

#include <stdio.h>
#include <string.h>

const cu_race_hooks *cu_race __attribute__((weak)) = NULL;

/* ---- who is missing ---- */

static const char *state_of(const cu_thread *t, char *out, size_t size) {
    switch (t->state) {
    case CU_ENDED:
        return "has left the kernel";
    case CU_AT_BARRIER:
        snprintf(out, size, "waits in %s at %s:%d", ((const cu_emu_block_op *)t->op)->name, t->file,
                 t->line);
        return out;
    case CU_IN_WARP:
        snprintf(out, size, "waits in %s at %s:%d with mask 0x%08x",
                 ((const cu_emu_op *)t->op)->name, t->file, t->line, t->mask);
        return out;
    default:
        return "runs";
    }
}

// Two threads in different states say most: one that waits and one that will never come.
void cu_engine_stuck(cu_engine *e) {
    const cu_thread *a = NULL, *b = NULL;
    for (int i = 0; i < e->n_threads && !a; i++)
        if (e->threads[i].state != CU_ENDED) a = &e->threads[i];
    for (int i = 0; i < e->n_threads && !b; i++) {
        const cu_thread *t = &e->threads[i];
        bool awaited = a->state == CU_AT_BARRIER ||
                       (t->id / CU_WARP == a->id / CU_WARP && (a->mask >> (t->id % CU_WARP) & 1));
        if (awaited && t->state != a->state) b = t;
    }
    char first[300], second[300];
    cu_emu_kind kind = a->state == CU_IN_WARP ? CU_EMU_DIVERGED : CU_EMU_BARRIER;
    if (!b) b = a;
    int error =
        cu_emu_report(kind, "thread %d %s, but thread %d %s", a->id,
                      state_of(a, first, sizeof first), b->id, state_of(b, second, sizeof second));
    cu_engine_abandon(error);
}

/* ---- warp ---- */

static cu_thread *lane_of(cu_engine *e, const cu_thread *self, int lane) {
    int id = self->id / CU_WARP * CU_WARP + lane;
    return id < e->n_threads ? &e->threads[id] : NULL;
}

static void compare(const cu_thread *self, const cu_emu_op *op, uint32_t mask, const cu_thread *t,
                    const char *file, int line) {
    if (t->op == op && t->mask == mask &&
        (op->orders_memory || (t->line == line && (t->file == file || strcmp(t->file, file) == 0))))
        return;
    char other[300];
    cu_engine_fault(CU_EMU_DIVERGED, "lane %d is in %s at %s:%d with mask 0x%08x, but lane %d %s",
                    self->id % CU_WARP, op->name, file, line, mask, t->id % CU_WARP,
                    state_of(t, other, sizeof other));
}

static void check_mask(cu_engine *e, const cu_thread *self, const cu_emu_op *op, uint32_t mask,
                       const char *file, int line) {
    int warp = self->id / CU_WARP;
    if (!(mask >> (self->id % CU_WARP) & 1))
        cu_engine_fault(CU_EMU_OUTSIDE, "%s at %s:%d: lane %d is not in its mask 0x%08x", op->name,
                        file, line, self->id % CU_WARP, mask);
    uint32_t gone = mask & e->gone[warp];
    if (gone) {
        int lane = __builtin_ctz(gone);
        cu_engine_fault(CU_EMU_OUTSIDE, "%s at %s:%d: lane %d of mask 0x%08x %s", op->name, file,
                        line, lane, mask,
                        lane_of(e, self, lane) ? "has left the kernel" : "does not exist");
    }
    uint32_t waiting = mask & e->in_warp[warp];
    if (waiting) compare(self, op, mask, lane_of(e, self, __builtin_ctz(waiting)), file, line);
}

void cu_emu_meet(const cu_emu_op *op, uint32_t mask, void *slot, const char *file, int line) {
    cu_engine *e = cu_now;
    cu_thread *self = e->current;
    int warp = self->id / CU_WARP;
    check_mask(e, self, op, mask, file, line);
    self->slot = slot;
    if ((mask & e->in_warp[warp]) != (mask & ~(1u << (self->id % CU_WARP)))) {
        e->in_warp[warp] |= 1u << (self->id % CU_WARP);
        self->state = CU_IN_WARP;
        self->op = op;
        self->mask = mask;
        self->file = file;
        self->line = line;
        cu_engine_sleep(e);
        return;
    }
    void *slots[CU_WARP] = {};
    for (uint32_t left = mask; left; left &= left - 1) {
        const cu_thread *t = lane_of(e, self, __builtin_ctz(left));
        if (t != self) compare(self, op, mask, t, file, line);
        slots[__builtin_ctz(left)] = t->slot;
    }
    if (op->run) op->run(slots, mask);
    if (cu_race && op->orders_memory) cu_race->warp(warp, mask);
    e->in_warp[warp] &= ~mask;
    for (int k = 0; k < CU_WARP; k++) {
        int lane = e->order == CU_EMU_BACKWARD ? CU_WARP - 1 - k : k;
        if (mask >> lane & 1) cu_engine_wake(e, lane_of(e, self, lane));
    }
    cu_engine_sleep(e); // ready ourselves: in the order of the others
}

static const cu_emu_op syncwarp_op = {"__syncwarp", NULL, true};
void cu_emu_syncwarp(uint32_t mask, const char *file, int line) {
    cu_emu_meet(&syncwarp_op, mask, NULL, file, line);
}

typedef struct shuffle {
    uint64_t value, out;
    int mode, lane, width;
} shuffle;

// What a lane reads that the mask does not name is anything on a GPU, and NaN here.
static void shuffle_run(void *const *slots, uint32_t mask) {
    for (int lane = 0; lane < CU_WARP; lane++) {
        shuffle *s = (shuffle *)slots[lane];
        if (!(mask >> lane & 1)) continue;
        int low = lane & ~(s->width - 1), high = low + s->width - 1, from = lane;
        switch (s->mode) {
        case CU_SHFL_IDX:
            from = low + (s->lane & (s->width - 1));
            break;
        case CU_SHFL_UP:
            from = lane - s->lane >= low ? lane - s->lane : lane;
            break;
        case CU_SHFL_DOWN:
            from = lane + s->lane <= high ? lane + s->lane : lane;
            break;
        default:
            from = (lane ^ s->lane) <= high ? lane ^ s->lane : lane;
            break;
        }
        s->out = (mask >> from & 1) ? ((const shuffle *)slots[from])->value : ~(uint64_t)0;
    }
}

static const cu_emu_op shuffle_ops[4] = {{"__shfl_sync", shuffle_run, false},
                                         {"__shfl_up_sync", shuffle_run, false},
                                         {"__shfl_down_sync", shuffle_run, false},
                                         {"__shfl_xor_sync", shuffle_run, false}};

uint64_t cu_emu_shuffle(int mode, uint32_t mask, uint64_t value, int lane, int width,
                        const char *file, int line) {
    if (width < 1 || width > CU_WARP || (width & (width - 1)))
        cu_engine_fault(CU_EMU_MISUSE, "shuffle at %s:%d: width %d", file, line, width);
    shuffle s = {value, 0, mode, lane, width};
    cu_emu_meet(&shuffle_ops[mode], mask, &s, file, line);
    return s.out;
}

typedef struct vote {
    int64_t value;
    uint32_t out;
    int mode;
} vote;

static uint32_t vote_join(int mode, uint32_t a, uint32_t b) {
    switch (mode) {
    case CU_VOTE_ADD:
        return a + b;
    case CU_VOTE_MIN:
        return (int32_t)b < (int32_t)a ? b : a;
    case CU_VOTE_MAX:
        return (int32_t)b > (int32_t)a ? b : a;
    case CU_VOTE_UMIN:
        return b < a ? b : a;
    case CU_VOTE_UMAX:
        return b > a ? b : a;
    case CU_VOTE_AND:
        return a & b;
    case CU_VOTE_OR:
        return a | b;
    default:
        return a ^ b;
    }
}

static void vote_run(void *const *slots, uint32_t mask) {
    uint32_t ballot = 0, joined = 0;
    int mode = 0;
    bool first = true;
    for (int lane = 0; lane < CU_WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        const vote *v = (const vote *)slots[lane];
        mode = v->mode;
        if (v->value) ballot |= 1u << lane;
        joined = first ? (uint32_t)v->value : vote_join(mode, joined, (uint32_t)v->value);
        first = false;
    }
    if (mode == CU_VOTE_ALL) joined = ballot == mask;
    if (mode == CU_VOTE_ANY) joined = ballot != 0;
    if (mode == CU_VOTE_BALLOT) joined = ballot;
    for (int lane = 0; lane < CU_WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        vote *v = (vote *)slots[lane];
        v->out = joined;
        if (mode != CU_VOTE_MATCH) continue;
        v->out = 0;
        for (int other = 0; other < CU_WARP; other++)
            if ((mask >> other & 1) && ((const vote *)slots[other])->value == v->value)
                v->out |= 1u << other;
    }
}

static const cu_emu_op vote_ops[] = {
    {"__all_sync", vote_run, false},        {"__any_sync", vote_run, false},
    {"__ballot_sync", vote_run, false},     {"__match_any_sync", vote_run, false},
    {"__reduce_add_sync", vote_run, false}, {"__reduce_min_sync", vote_run, false},
    {"__reduce_max_sync", vote_run, false}, {"__reduce_min_sync", vote_run, false},
    {"__reduce_max_sync", vote_run, false}, {"__reduce_and_sync", vote_run, false},
    {"__reduce_or_sync", vote_run, false},  {"__reduce_xor_sync", vote_run, false},
};

uint32_t cu_emu_vote(int mode, uint32_t mask, int64_t value, const char *file, int line) {
    vote v = {value, 0, mode};
    cu_emu_meet(&vote_ops[mode], mask, &v, file, line);
    return v.out;
}

/* ---- tensor cores ---- */

typedef struct mma {
    float *d;
    const uint32_t *a, *b;
    const float *c;
} mma;

static float widen(bool half, uint32_t pair, int high) {
    uint16_t bits = (uint16_t)(high ? pair >> 16 : pair);
    return half ? cu_f16_to_float(bits) : cu_bf16_to_float(bits);
}

// D = A B + C; lane 4g+t holds A(g, 2t), A(g+8, 2t), both again at k+8; B(2t, g), again at k+8; and
// C(g, 2t), C(g+8, 2t). k ascends, every product is exact in f32, every sum is rounded: a tensor
// core keeps other bits, so that results are compared within bounds and never to the bit.
static void mma_run(void *const *slots, bool half) {
    typedef float row __attribute__((vector_size(32))); // half of the time of a model's test
    float a[16][16];
    row b[16], c[16];
    for (int lane = 0; lane < CU_WARP; lane++) {
        const mma *m = (const mma *)slots[lane];
        int g = lane >> 2, t = (lane & 3) * 2;
        for (int h = 0; h < 2; h++) {
            a[g][t + h] = widen(half, m->a[0], h);
            a[g + 8][t + h] = widen(half, m->a[1], h);
            a[g][t + 8 + h] = widen(half, m->a[2], h);
            a[g + 8][t + 8 + h] = widen(half, m->a[3], h);
            b[t + h][g] = widen(half, m->b[0], h);
            b[t + 8 + h][g] = widen(half, m->b[1], h);
            c[g][t + h] = m->c[h];
            c[g + 8][t + h] = m->c[2 + h];
        }
    }
    // What a row of zeros adds, to the bit: most rows of a decode step are padding.
    row none = 0.0f * b[0];
    for (int k = 1; k < 16; k++) none += 0.0f * b[k];
    static const float zeros[16] = {};
    for (int r = 0; r < 16; r++) {
        row sum = c[r];
        if (memcmp(a[r], zeros, sizeof zeros) == 0)
            sum += none;
        else
            for (int k = 0; k < 16; k++) sum += a[r][k] * b[k];
        c[r] = sum;
    }
    for (int lane = 0; lane < CU_WARP; lane++) {
        float *d = ((const mma *)slots[lane])->d;
        int g = lane >> 2, t = (lane & 3) * 2;
        for (int h = 0; h < 2; h++) {
            d[h] = c[g][t + h];
            d[2 + h] = c[g + 8][t + h];
        }
    }
}

static void mma_f16(void *const *slots, uint32_t mask) {
    (void)mask, mma_run(slots, true);
}
static void mma_bf16(void *const *slots, uint32_t mask) {
    (void)mask, mma_run(slots, false);
}
static const cu_emu_op mma_ops[2] = {{"mma bf16", mma_bf16, false}, {"mma f16", mma_f16, false}};

void cu_emu_mma(bool half, float *d, const uint32_t *a, const uint32_t *b, const float *c,
                const char *file, int line) {
    mma m = {d, a, b, c};
    cu_emu_meet(&mma_ops[half], 0xffffffffu, &m, file, line);
}

typedef struct ldmatrix {
    uint32_t *d;
    const void *row;
    int n;
    bool transposed;
} ldmatrix;

// Matrix i is the eight rows that lanes 8i..8i+7 point to. Lane l gets elements (l/4, 2(l%4)) and
// its right neighbour; transposed: (2(l%4), l/4) and the one below.
static void ldmatrix_run(void *const *slots, uint32_t mask) {
    (void)mask;
    const ldmatrix *first = (const ldmatrix *)slots[0];
    for (int i = 0; i < first->n; i++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) memcpy(m[r], ((const ldmatrix *)slots[8 * i + r])->row, 16);
        for (int lane = 0; lane < CU_WARP; lane++) {
            int r = lane >> 2, c = (lane & 3) * 2;
            uint16_t low = first->transposed ? m[c][r] : m[r][c];
            uint16_t high = first->transposed ? m[c + 1][r] : m[r][c + 1];
            ((const ldmatrix *)slots[lane])->d[i] = low | (uint32_t)high << 16;
        }
    }
}

static const cu_emu_op ldmatrix_op = {"ldmatrix", ldmatrix_run, false};

void cu_emu_ldmatrix(int n, bool transposed, uint32_t *d, const void *row, const char *file,
                     int line) {
    if (cu_now->current->id % CU_WARP < 8 * n) {
        cu_emu_want_shared(row, 16, 16, "ldmatrix", file, line);
        cu_emu_touch(row, 16, false, false);
    }
    ldmatrix l = {d, row, n, transposed};
    cu_emu_meet(&ldmatrix_op, 0xffffffffu, &l, file, line);
}

/* ---- block ---- */

// Exited threads and different places are undefined by the manual, though a GPU may let them pass.
void cu_emu_gather(const cu_emu_block_op *op, void *slot, const char *file, int line) {
    cu_engine *e = cu_now;
    cu_thread *self = e->current;
    for (int i = 0; e->ended && i < e->n_threads; i++)
        if (e->threads[i].state == CU_ENDED)
            cu_engine_fault(CU_EMU_BARRIER, "%s at %s:%d: thread %d has left the kernel", op->name,
                            file, line, i);
    const cu_thread *other = e->at_barrier ? e->first_there : NULL;
    if (other && (other->op != op || other->line != line ||
                  (other->file != file && strcmp(other->file, file) != 0))) {
        char text[300];
        cu_engine_fault(CU_EMU_BARRIER, "thread %d is in %s at %s:%d, but thread %d %s", self->id,
                        op->name, file, line, other->id, state_of(other, text, sizeof text));
    }
    if (!other) e->first_there = self;
    self->slot = slot;
    self->state = CU_AT_BARRIER;
    self->op = op;
    self->file = file;
    self->line = line;
    if (++e->at_barrier < e->n_threads) {
        cu_engine_sleep(e);
        return;
    }
    void *slots[CU_MAX_THREADS];
    for (int i = 0; i < e->n_threads && op->run; i++) slots[i] = e->threads[i].slot;
    if (op->run) op->run(slots, e->n_threads);
    if (cu_race) cu_race->barrier();
    e->at_barrier = 0;
    for (int k = 0; k < e->n_threads; k++)
        cu_engine_wake(e, &e->threads[e->order == CU_EMU_BACKWARD ? e->n_threads - 1 - k : k]);
    cu_engine_sleep(e);
}

typedef struct count {
    int value, out, mode;
} count;

static void count_run(void *const *slots, int n) {
    int set = 0, mode = ((const count *)slots[0])->mode;
    for (int i = 0; i < n; i++) set += ((const count *)slots[i])->value != 0;
    int out = mode == CU_SYNC_COUNT ? set : mode == CU_SYNC_AND ? set == n : set > 0;
    for (int i = 0; i < n; i++) ((count *)slots[i])->out = out;
}

static const cu_emu_block_op count_ops[3] = {{"__syncthreads_count", count_run},
                                             {"__syncthreads_and", count_run},
                                             {"__syncthreads_or", count_run}};

int cu_emu_sync_count(int mode, int predicate, const char *file, int line) {
    count c = {predicate, 0, mode};
    cu_emu_gather(&count_ops[mode], &c, file, line);
    return c.out;
}

/* ---- the rest ---- */

void cu_emu_touch(const void *ptr, size_t bytes, bool write, bool atomic) {
    if (cu_race) cu_race->access(ptr, bytes, write, atomic, __builtin_return_address(0));
}

void cu_emu_trap(const char *what, const char *file, int line) {
    cu_engine_fault(CU_EMU_TRAP, "%s at %s:%d", what, file, line);
}
