#include "kernels/cpu/cpu_dev.h"

/* Pieces ("units") of attention: queries of one sequence that share a kv head, at most `chunk` of
 * them. Numbered by sequence, kv head, chunk. */
typedef struct units {
    sp_cpu *cpu;
    const sp_attn_args *a;
    int32_t group, chunk, n;
} units;

static int32_t chunks_of(const units *u, const sp_seq_rows *seq) {
    return (seq->n_rows * u->group + u->chunk - 1) / u->chunk;
}

static int32_t count_units(const units *u) {
    int32_t n = 0;
    for (int32_t s = 0; s < u->a->n_seqs; s++)
        n += chunks_of(u, &u->a->seqs[s]) * u->a->kv.n_kv_heads;
    return n;
}

static sp_cpu_attn unit_of(const units *u, const sp_seq_rows *seq, int32_t i) {
    const int32_t chunks = chunks_of(u, seq), query0 = i % chunks * u->chunk;
    const int32_t left = seq->n_rows * u->group - query0;
    return (sp_cpu_attn){
        .a = u->a,
        .seq = seq,
        .kv_head = i / chunks,
        .group = u->group,
        .query0 = query0,
        .n_queries = left < u->chunk ? left : u->chunk,
    };
}

/* Calls for the units i0..i1-1; the sequences before are skipped once a range. */
static void run_units(void *ctx, int thread, int32_t i0, int32_t i1) {
    const units *u = ctx;
    float *scratch = u->cpu->scratch + (size_t)thread * u->cpu->isa->attn->scratch_floats;
    int32_t base = 0;
    for (int32_t s = 0; s < u->a->n_seqs && base < i1; s++) {
        const sp_seq_rows *seq = &u->a->seqs[s];
        const int32_t n = chunks_of(u, seq) * u->a->kv.n_kv_heads;
        for (int32_t i = i0 > base ? i0 - base : 0; i < n && base + i < i1; i++) {
            const sp_cpu_attn t = unit_of(u, seq, i);
            u->cpu->isa->attn->run(&t, scratch);
        }
        base += n;
    }
}

/* ---- fewer units than threads: split by split ---- */

typedef struct wave {
    sp_cpu *cpu;
    int32_t n_units, split0, split1;
    size_t part;        /* floats of one */
    size_t unit_floats; /* of one unit's parts of one split */
} wave;

static float *wave_parts(const wave *w, int32_t unit) {
    return w->cpu->parts + (size_t)unit * (size_t)(w->split1 - w->split0) * w->unit_floats;
}

static void wave_splits(void *ctx, int thread, int32_t i0, int32_t i1) {
    const wave *w = ctx;
    float *scratch = w->cpu->scratch + (size_t)thread * w->cpu->isa->attn->scratch_floats;
    for (int32_t i = i0; i < i1; i++) {
        const int32_t unit = i % w->n_units, split = w->split0 + i / w->n_units;
        const sp_cpu_attn *t = &w->cpu->units[unit];
        float *parts =
            wave_parts(w, unit) + (size_t)(split - w->split0) * (size_t)t->n_queries * w->part;
        w->cpu->isa->attn->split(t, split, parts, scratch);
    }
}

static void wave_merge(void *ctx, int thread, int32_t i0, int32_t i1) {
    (void)thread;
    const wave *w = ctx;
    float *states = w->cpu->parts + SP_CPU_PART_FLOATS;
    for (int32_t i = i0; i < i1; i++)
        w->cpu->isa->attn->merge(&w->cpu->units[i], w->split0, w->split1, wave_parts(w, i),
                                 states + (size_t)i * w->unit_floats);
}

/* Puts all units into cpu->units; the number of splits to look at, from *first. */
static int32_t list_units(const units *u, int32_t *first, int32_t *queries_max) {
    int32_t n = 0, from = INT32_MAX, to = 0;
    *queries_max = 0;
    for (int32_t s = 0; s < u->a->n_seqs; s++) {
        const sp_seq_rows *seq = &u->a->seqs[s];
        if (seq->n_rows == 0) continue;
        const int32_t here = chunks_of(u, seq) * u->a->kv.n_kv_heads, window = u->a->window;
        for (int32_t i = 0; i < here; i++, n++) {
            u->cpu->units[n] = unit_of(u, seq, i);
            const int32_t q = u->cpu->units[n].n_queries;
            *queries_max = q > *queries_max ? q : *queries_max;
        }
        const int32_t lo = window && seq->pos0 + 1 > window ? seq->pos0 + 1 - window : 0;
        const int32_t last = (seq->pos0 + seq->n_rows - 1) / SP_ATTN_SPLIT;
        from = lo / SP_ATTN_SPLIT < from ? lo / SP_ATTN_SPLIT : from;
        to = last + 1 > to ? last + 1 : to;
    }
    *first = from;
    return to - from;
}

static void attend_by_splits(const units *u, double ns) {
    int32_t first, queries;
    const int32_t n_splits = list_units(u, &first, &queries);
    wave w = {.cpu = u->cpu, .n_units = u->n, .part = SP_ATTN_PART(u->a->kv.head_dim)};
    w.unit_floats = (size_t)queries * w.part;
    const size_t fits = SP_CPU_PART_FLOATS / (w.unit_floats * (size_t)u->n);
    const int32_t step = fits < (size_t)n_splits ? (int32_t)fits : n_splits;
    for (int32_t s = 0; s < n_splits; s += step) {
        w.split0 = first + s;
        w.split1 = first + (s + step < n_splits ? s + step : n_splits);
        const int32_t n = (w.split1 - w.split0) * u->n;
        sp_cpu_spread(u->cpu, wave_splits, &w, n, 1, ns / n_splits / u->n);
        sp_cpu_spread(u->cpu, wave_merge, &w, u->n, 1, 100.0 * (w.split1 - w.split0));
    }
}

/* Measured where it matters, on short contexts: 0.3 ns a dimension of a query and position. */
static double work_ns(const sp_attn_args *a) {
    double n = 0;
    for (int32_t s = 0; s < a->n_seqs; s++) {
        const int32_t end = a->seqs[s].pos0 + a->seqs[s].n_rows;
        const int32_t seen = a->window && a->window < end ? a->window : end;
        n += (double)a->seqs[s].n_rows * seen;
    }
    return n * a->n_heads * a->kv.head_dim * 0.3;
}

void sp_cpu_attend(sp_cpu *cpu, const sp_attn_args *a) {
    units u = {.cpu = cpu, .a = a, .group = a->n_heads / a->kv.n_kv_heads};
    u.chunk = SP_ATTN_QUERIES;
    u.n = count_units(&u);
    /* One long prompt with few kv heads: smaller chunks, so that there is work for everyone. */
    while (u.n < 3 * cpu->n_threads && u.chunk > 16) {
        u.chunk /= 2;
        u.n = count_units(&u);
    }
    if (u.n == 0) return;
    const double ns = work_ns(a);
    const size_t states = (size_t)u.n * (size_t)u.chunk * SP_ATTN_PART(a->kv.head_dim);
    const bool few = u.n < cpu->n_threads && u.n <= SP_CPU_UNITS && states <= SP_CPU_PART_FLOATS;
    if (cpu->parts && few && ns > 4 * SP_CPU_ALONE_NS)
        attend_by_splits(&u, ns);
    else
        sp_cpu_spread(cpu, run_units, &u, u.n, 1, ns / u.n);
}
