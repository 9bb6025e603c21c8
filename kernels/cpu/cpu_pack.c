#include "kernels/cpu/cpu_pack.h"

#include "kernels/check.h"
#include "runtime/base/mem.h"

#include <sys/mman.h>

#define MAP_FROM ((size_t)1 << 20) /* smaller pieces come from the heap */
#define HUGE_PAGE ((size_t)2 << 20)

void *sp_cpu_mem_take(size_t bytes) {
    if (bytes < MAP_FROM) return sp_try_alloc_aligned(64, bytes ? bytes : 64);
    /* Room to begin at a huge page: a KV pool or weight then costs 512 times fewer page faults and
     * TLB misses. What is not used at either end is given back. */
    const size_t size = (bytes + 4095) / 4096 * 4096, whole = size + HUGE_PAGE;
    unsigned char *p =
        mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    const size_t skip = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (skip) munmap(p, skip);
    munmap(p + skip + size, whole - skip - size);
    (void)madvise(p + skip, size, MADV_HUGEPAGE);
    return p + skip;
}

void sp_cpu_mem_free(void *p, size_t bytes) {
    if (!p) return;
    if (bytes < MAP_FROM)
        sp_free(p);
    else
        munmap(p, (bytes + 4095) / 4096 * 4096);
}

void sp_cpu_slab_close(sp_cpu_slab *slab) {
    if (!slab || --slab->n_weights > 0) return;
    sp_cpu_mem_free(slab->base, slab->bytes);
    sp_free(slab);
}

/* A slab with one holder. */
static sp_cpu_slab *slab_open(size_t bytes) {
    sp_cpu_slab *s = sp_try_alloc(sizeof *s);
    if (!s) return NULL;
    *s = (sp_cpu_slab){.base = sp_cpu_mem_take(bytes), .bytes = bytes, .n_weights = 1};
    if (s->base) return s;
    sp_free(s);
    return NULL;
}

/* Memory for `bytes` in the slab being filled, a new one, or one of its own. */
static bool place(sp_weight *w, sp_cpu_slab **slab, size_t bytes) {
    const size_t size = (bytes + 63) / 64 * 64;
    if (size > SP_CPU_SLAB_BYTES / 4) {
        w->slab = slab_open(size);
    } else {
        if (!*slab || (*slab)->bytes - (*slab)->used < size) {
            sp_cpu_slab *fresh = slab_open(SP_CPU_SLAB_BYTES);
            if (!fresh) return false;
            sp_cpu_slab_close(*slab);
            *slab = fresh;
        }
        w->slab = *slab;
        w->slab->n_weights++;
    }
    if (!w->slab) return false;
    w->tiles = w->slab->base + w->slab->used;
    w->slab->used += size;
    return true;
}

static size_t tile_bytes(int32_t cols, sp_dtype dtype) {
    const size_t n = SP_LANES * (size_t)cols * (size_t)sp_dtype_bits(dtype) / 8;
    return (n + 63) / 64 * 64;
}

size_t sp_cpu_packed_bytes(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    const size_t n_tiles = ((size_t)rows + SP_LANES - 1) / SP_LANES;
    return sizeof(sp_weight) + n_tiles * tile_bytes(seg->edge[seg->n], dtype);
}

/* Cuts the segments into phases: each ends where the shortest of its active segments does. */
static void make_phases(sp_weight *w) {
    const sp_segments *s = &w->seg;
    int32_t done = 0, before = 0;
    for (w->n_phases = 0; w->n_phases < SP_SEGMENTS; w->n_phases++) {
        sp_cpu_phase *p = &w->phase[w->n_phases];
        *p = (sp_cpu_phase){.len = INT32_MAX, .before = before};
        for (int i = 0; i < s->n; i++) {
            const int32_t left = s->edge[i + 1] - s->edge[i] - done;
            if (left <= 0) continue;
            p->seg[p->n_active] = i;
            p->k0[p->n_active++] = s->edge[i] + done;
            p->len = left < p->len ? left : p->len;
        }
        if (!p->n_active) return;
        done += p->len;
        before += p->len * p->n_active;
    }
}

typedef struct pack_job {
    sp_weight *w;
    const sp_weight_part *parts;
    int n_parts;
    sp_cpu_turn *turn;
} pack_job;

static const unsigned char *source_row(const pack_job *job, int32_t row) {
    for (int i = 0; i < job->n_parts; i++) {
        const sp_weight_part *p = &job->parts[i];
        if (row < p->rows)
            return (const unsigned char *)p->data +
                   (size_t)row * (size_t)p->stride * (size_t)job->w->elt;
        row -= p->rows;
    }
    return NULL; /* a zero row that fills up the last tile; its bytes are zero already */
}

/* One phase of one tile, 16 rows at a time; a bf16 pair travels as one 32-bit value. */
static void put_turned(unsigned char *to, const unsigned char *const *rows, const sp_weight *w,
                       const sp_cpu_phase *p, sp_cpu_turn *turn) {
    const size_t elt = (size_t)w->elt, A = (size_t)p->n_active;
    const int32_t n = (int32_t)((size_t)p->len * elt / 4);
    for (size_t a = 0; a < A; a++) {
        const unsigned char *from[SP_LANES];
        for (int i = 0; i < SP_LANES; i++)
            from[i] = rows[i] ? rows[i] + (size_t)p->k0[a] * elt : NULL;
        turn(to + a * 4 * SP_LANES, A * 4 * SP_LANES, from, n);
        if (elt == 4 || p->len % 2 == 0) continue;
        unsigned char *last = to + (size_t)n * A * 4 * SP_LANES + a * 2 * SP_LANES;
        for (int i = 0; i < SP_LANES; i++)
            if (from[i]) memcpy(last + i * 2, from[i] + (size_t)n * 4, 2);
    }
}

static void put_f16(unsigned char *to, const unsigned char *const *rows, const sp_cpu_phase *p) {
    const size_t A = (size_t)p->n_active;
    for (size_t i = 0; i < A * SP_LANES; i++) {
        const size_t a = i / SP_LANES, lane = i % SP_LANES;
        if (!rows[lane]) continue;
        const unsigned char *from = rows[lane] + (size_t)p->k0[a] * 2;
        unsigned char *d = to + i * 2;
        for (int32_t j = 0; j < p->len; j++, d += A * SP_LANES * 2, from += 2) memcpy(d, from, 2);
    }
}

static void pack_tile(void *ctx, int thread, int32_t tile) {
    (void)thread;
    const pack_job *job = ctx;
    const sp_weight *w = job->w;
    const unsigned char *rows[SP_LANES];
    for (int i = 0; i < SP_LANES; i++) rows[i] = source_row(job, tile * SP_LANES + i);
    for (int i = 0; i < w->n_phases; i++) {
        const sp_cpu_phase *p = &w->phase[i];
        unsigned char *to =
            w->tiles + (size_t)tile * w->tile_bytes + (size_t)p->before * SP_LANES * (size_t)w->elt;
        if (w->dtype == SP_DTYPE_F16)
            put_f16(to, rows, p);
        else
            put_turned(to, rows, w, p, job->turn);
    }
}

sp_status sp_cpu_weight_pack(sp_weight **out, sp_cpu_packer *packer, const sp_weight_part *parts,
                             int n_parts, const sp_segments *seg, sp_err *err) {
    int32_t rows;
    SP_TRY(sp_check_parts(parts, n_parts, seg, &rows, err));
    sp_weight *w = sp_try_alloc(sizeof *w);
    if (!w) return SP_FAIL(err, SP_E_NOMEM, "no memory for a weight's header");
    *w = (sp_weight){
        .dtype = parts[0].dtype,
        .rows = rows,
        .cols = parts[0].cols,
        .n_tiles = (rows + SP_LANES - 1) / SP_LANES,
        .elt = sp_dtype_bits(parts[0].dtype) / 8,
        .tile_bytes = tile_bytes(parts[0].cols, parts[0].dtype),
        .seg = *seg,
    };
    make_phases(w);
    const size_t bytes = (size_t)w->n_tiles * w->tile_bytes;
    if (!place(w, &packer->slab, bytes)) {
        sp_free(w);
        return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes of weights", bytes);
    }
    pack_job job = {w, parts, n_parts, packer->turn};
    sp_cpu_pool_run(packer->pool, pack_tile, &job, w->n_tiles);
    *out = w;
    return SP_OK;
}

void sp_cpu_weight_free(sp_weight *w) {
    if (!w) return;
    sp_cpu_slab_close(w->slab);
    sp_free(w);
}
