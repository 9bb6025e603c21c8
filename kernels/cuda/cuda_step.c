#include "kernels/cuda/cuda_dev.h"

#include "kernels/check.h"
#include "runtime/base/clock.h"

#include <limits.h>
#include <string.h>
#include <time.h>

/* ---- waiting ---- */

#define SPINS 2000
#define NAP_NS 20000

/* A decode step of a small model ends in tens of microseconds: asked for a while without sleeping. */
static void pause_after(int asked) {
    if (asked < SPINS) return;
    const struct timespec nap = {.tv_nsec = NAP_NS};
    nanosleep(&nap, NULL);
}

/* SP_OK, SP_AGAIN, or the fault that asking found. */
static sp_status ask(cu_dev *cu, cudaEvent_t event) {
    const cudaError_t e = cudaEventQuery(event);
    if (e == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return SP_AGAIN;
    }
    return cu_check(cu, e, cu->op) ? SP_OK : cu->fault.code;
}

bool cu_wait(cu_dev *cu, cudaEvent_t event, const char *what) {
    const int64_t until = sp_now_ns() + CU_HANG_NS;
    for (int asked = 0;; asked++) {
        const sp_status st = ask(cu, event);
        if (st != SP_AGAIN) return st == SP_OK;
        if (sp_now_ns() > until) {
            sp_err err = {0};
            (void)SP_FAIL(&err, SP_E_DEVICE, "GPU %d: '%s' did not end within %d s", cu->index,
                          what, (int)(CU_HANG_NS / SP_NS_PER_S));
            sp_fault_keep(&cu->fault, &err);
            return false;
        }
        pause_after(asked);
    }
}

/* ---- the ring ---- */

static cu_slot *slot_now(cu_dev *cu) {
    return &cu->slot[cu->submitted % CU_SLOTS];
}

static bool add_chunk(cu_dev *cu, cu_slot *s, size_t bytes) {
    cu_chunk *c = &s->chunk[s->n_chunks];
    *c = (cu_chunk){.bytes = bytes};
    c->host = cu_host_take(cu, bytes);
    if (c->host) c->dev = cu_mem_take(cu, bytes);
    if (c->dev) {
        s->n_chunks++;
        return true;
    }
    cu_host_drop(c->host);
    return false;
}

static void drop_chunks(cu_slot *s) {
    for (int i = 0; i < s->n_chunks; i++) {
        cu_host_drop(s->chunk[i].host);
        cu_mem_drop(s->chunk[i].dev);
    }
    s->n_chunks = 0;
}

sp_status cu_ring_open(cu_dev *cu, sp_err *err) {
    for (int i = 0; i < CU_SLOTS; i++) {
        cudaError_t e = cudaEventCreate(&cu->slot[i].begin);
        if (e == cudaSuccess) e = cudaEventCreate(&cu->slot[i].done);
        if (!cu_check(cu, e, "open")) return sp_fault_status(&cu->fault, err);
        if (add_chunk(cu, &cu->slot[i], CU_CHUNK_MIN)) continue;
        SP_TRY(sp_fault_status(&cu->fault, err));
        return SP_FAIL(err, SP_E_NOMEM, "GPU %d has no memory for the data of %d steps", cu->index,
                       CU_SLOTS);
    }
    return SP_OK;
}

void cu_ring_close(cu_dev *cu) {
    for (int i = 0; i < CU_SLOTS; i++) {
        drop_chunks(&cu->slot[i]);
        if (cu->slot[i].begin) (void)cudaEventDestroy(cu->slot[i].begin);
        if (cu->slot[i].done) (void)cudaEventDestroy(cu->slot[i].done);
    }
}

/* The largest step so far decides: several chunks become one, and the next one as large takes no
 * memory. Nothing of this slot is in use any more. */
static bool renew_slot(cu_dev *cu, cu_slot *s) {
    s->kept = (cu_rows_kept){0};
    size_t all = 0;
    for (int i = 0; i < s->n_chunks; i++) all += s->chunk[i].bytes;
    if (s->n_chunks > 1) {
        drop_chunks(s);
        if (!add_chunk(cu, s, all)) return cu_check(cu, cudaErrorMemoryAllocation, "step data");
    }
    s->chunk[0].used = 0;
    return true;
}

/* Room for `bytes` in the step's slot; a step that outgrows it takes one more piece, because what
 * was sent before may already be read. */
static cu_chunk *room(cu_dev *cu, size_t bytes) {
    cu_slot *s = slot_now(cu);
    cu_chunk *c = &s->chunk[s->n_chunks - 1];
    if (c->bytes - c->used >= bytes) return c;
    size_t size = 2 * c->bytes;
    while (size < bytes) size *= 2;
    if (s->n_chunks == CU_CHUNKS || size > CU_SLOT_BYTES_MAX) {
        sp_err err = {0};
        (void)SP_FAIL(&err, SP_E_LIMIT, "a step with more than %zu MiB of ids and block tables",
                      CU_SLOT_BYTES_MAX >> 20);
        sp_fault_keep(&cu->fault, &err);
        return NULL;
    }
    const char *op = cu->op;
    const bool ok = add_chunk(cu, s, size);
    cu->op = op;
    if (ok) return &s->chunk[s->n_chunks - 1];
    (void)cu_check(cu, cudaErrorMemoryAllocation, "step data");
    return NULL;
}

#define SEND_ALIGN ((size_t)256)

/* Pinned memory to be filled and then sent by push(); *dev: where it will be. */
static void *reserve_room(cu_dev *cu, size_t bytes, void **dev) {
    const size_t whole = (bytes + SEND_ALIGN - 1) / SEND_ALIGN * SEND_ALIGN;
    cu_chunk *c = room(cu, whole);
    if (!c) return NULL;
    void *host = c->host + c->used;
    *dev = c->dev + c->used;
    c->used += whole;
    return host;
}

static bool push(cu_dev *cu, void *dev, const void *host, size_t bytes) {
    return cu_check(cu, cudaMemcpyAsync(dev, host, bytes, cudaMemcpyHostToDevice, cu->stream),
                    cu->op);
}

void *cu_step_room(cu_dev *cu, size_t bytes) {
    void *dev;
    return cu_step_mark(cu) ? reserve_room(cu, bytes, &dev) : NULL;
}

const void *cu_send(cu_dev *cu, const void *src, size_t bytes) {
    if (cu->graphs.now) return cu_graph_data(cu, src, bytes);
    void *dev;
    void *host = reserve_room(cu, bytes, &dev);
    if (!host) return NULL;
    memcpy(host, src, bytes);
    return push(cu, dev, host, bytes) ? dev : NULL;
}

/* ---- rows ---- */

static uint64_t mix(uint64_t h, uint64_t v) {
    return (h ^ v) * UINT64_C(0x9e3779b97f4a7c15) + (h >> 29);
}

static uint64_t digest_of(const sp_seq_rows *seqs, int32_t n) {
    uint64_t h = (uint64_t)n;
    for (int32_t s = 0; s < n; s++) {
        h = mix(h, ((uint64_t)(uint32_t)seqs[s].row0 << 32) | (uint32_t)seqs[s].n_rows);
        h = mix(h, (uint64_t)(uint32_t)seqs[s].pos0);
        h = mix(h, (uint64_t)(uintptr_t)seqs[s].blocks);
    }
    return h;
}

static int32_t blocks_of(const sp_seq_rows *s, int32_t block_tokens) {
    return s->n_rows ? (s->pos0 + s->n_rows - 1) / block_tokens + 1 : 0;
}

/* pos[T] | table[T] | blocks: written in one piece, sent by one copy. */
static void fill_rows(int32_t *to, int32_t T, const sp_seq_rows *seqs, int32_t n_seqs,
                      int32_t block_tokens) {
    int32_t *pos = to, *table = to + T, *blocks = to + 2 * (size_t)T;
    int32_t t = 0, at = 0;
    for (int32_t s = 0; s < n_seqs; s++) {
        const int32_t n = blocks_of(&seqs[s], block_tokens);
        for (int32_t i = 0; i < seqs[s].n_rows; i++, t++) {
            pos[t] = seqs[s].pos0 + i;
            table[t] = at;
        }
        if (n) memcpy(blocks + at, seqs[s].blocks, (size_t)n * sizeof *blocks);
        at += n;
    }
}

bool cu_send_rows(cu_dev *cu, cu_rows *out, const sp_seq_rows *seqs, int32_t n_seqs,
                  int32_t block_tokens) {
    if (cu->graphs.now) {
        SP_DASSERT(n_seqs == cu->graphs.n);
        *out = cu->graphs.rows;
        return true;
    }
    cu_rows_kept *kept = &slot_now(cu)->kept;
    const uint64_t digest = digest_of(seqs, n_seqs);
    if (kept->seqs == seqs && kept->n_seqs == n_seqs && kept->digest == digest &&
        kept->block_tokens == block_tokens) {
        *out = kept->rows;
        return true;
    }
    int64_t T = 0, n_blocks = 0;
    int32_t max_pos = 0;
    for (int32_t s = 0; s < n_seqs; s++) {
        SP_ASSERT(seqs[s].row0 == T && seqs[s].n_rows >= 0 && seqs[s].pos0 >= 0);
        T += seqs[s].n_rows;
        n_blocks += blocks_of(&seqs[s], block_tokens);
        const int32_t last = seqs[s].pos0 + seqs[s].n_rows - 1;
        if (last > max_pos) max_pos = last;
    }
    SP_ASSERT(2 * T + n_blocks <= INT32_MAX);
    const size_t bytes = (size_t)(2 * T + n_blocks) * sizeof(int32_t);
    void *dev;
    int32_t *host = reserve_room(cu, bytes ? bytes : sizeof *host, &dev);
    if (!host) return false;
    fill_rows(host, (int32_t)T, seqs, n_seqs, block_tokens);
    if (bytes && !push(cu, dev, host, bytes)) return false;
    const int32_t *there = dev;
    *kept = (cu_rows_kept){
        .seqs = seqs,
        .n_seqs = n_seqs,
        .block_tokens = block_tokens,
        .digest = digest,
        .rows = {there, there + T, there + 2 * T, (int32_t)T, max_pos},
    };
    *out = kept->rows;
    return true;
}

/* ---- submit and poll ---- */

/* What a kernel found wrong with its data; copied with the step. */
static void take_fault(cu_dev *cu, const cu_fault *f) {
    sp_err err = {0};
    if (f->code == 0) return;
    if (f->code == CU_FAULT_ID)
        (void)SP_FAIL(&err, SP_E_INVALID, "token id %d in row %d, vocabulary has %d", f->value,
                      f->row, cu->vocab);
    else
        (void)SP_FAIL(&err, SP_E_INTERNAL, "GPU %d: fault %d in row %d, value %d", cu->index,
                      f->code, f->row, f->value);
    sp_fault_keep(&cu->fault, &err);
}

bool cu_step_mark(cu_dev *cu) {
    cu_slot *s = slot_now(cu);
    if (s->begun || cu->graphs.now) return true;
    s->ticket = 0;
    s->follows = cu->follows;
    s->begun = cu_check(cu, cudaEventRecord(s->begin, cu->stream), cu->op);
    return s->begun;
}

static uint64_t ns_between(cudaEvent_t from, cudaEvent_t to) {
    float ms = 0;
    if (cudaEventElapsedTime(&ms, from, to) == cudaSuccess)
        return ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
    (void)cudaGetLastError();
    return 0;
}

/* The step before has ended too; where its events are used again already, its end is not known. */
static void count_times(cu_dev *cu, const cu_slot *s) {
    const cu_slot *before = &cu->slot[(s - cu->slot + CU_SLOTS - 1) % CU_SLOTS];
    if (!s->begun) return;
    cu->times.steps++;
    cu->times.busy_ns += ns_between(s->begin, s->done);
    if (s->follows && before->ticket + 1 == s->ticket && !before->used)
        cu->times.idle_ns += ns_between(before->done, s->begin);
}

/* The slot's step has ended: its memory may be used again, and its fault is here. */
static void end_slot(cu_dev *cu, cu_slot *s) {
    s->used = false;
    count_times(cu, s);
    take_fault(cu, &cu->fault_host[s - cu->slot]);
}

/* A step that has ended: so have those before it, whose times come first. */
static void end_slots(cu_dev *cu, sp_ticket last) {
    const sp_ticket all = CU_SLOTS - 1;
    for (sp_ticket t = last > all ? last - all : 1; t <= last; t++) {
        cu_slot *s = &cu->slot[(t - 1) % CU_SLOTS];
        if (s->used && s->ticket == t) end_slot(cu, s);
    }
}

sp_ticket cu_submit(cu_dev *cu) {
    cu_slot *s = slot_now(cu);
    const sp_ticket ticket = cu->submitted + 1;
    if (cu->fault.code != SP_OK) return ticket;
    cudaError_t e = cudaMemcpyAsync(&cu->fault_host[s - cu->slot], cu->fault_dev,
                                    sizeof *cu->fault_dev, cudaMemcpyDeviceToHost, cu->stream);
    if (e == cudaSuccess) e = cudaEventRecord(s->done, cu->stream);
    if (!cu_check(cu, e, cu->op)) return ticket;
    s->used = true;
    s->asked = 0;
    s->ticket = cu->submitted = ticket;
    if (s->begun) cu->follows = true;
    /* The next slot was submitted CU_SLOTS - 1 steps ago: almost always long done. */
    cu_slot *next = slot_now(cu);
    if (next->used) {
        if (!cu_wait(cu, next->done, "step")) return ticket;
        end_slot(cu, next);
    }
    next->begun = false;
    renew_slot(cu, next);
    return ticket;
}

sp_status cu_poll(cu_dev *cu, sp_ticket ticket, int64_t deadline_ns, sp_err *err) {
    SP_TRY(sp_fault_status(&cu->fault, err));
    SP_ASSERT(ticket <= cu->submitted);
    /* Older than the ring: its slot was waited for when it was used again. */
    if (ticket == 0 || cu->submitted - ticket >= CU_SLOTS - 1)
        return sp_fault_status(&cu->fault, err);
    cu_slot *s = &cu->slot[(ticket - 1) % CU_SLOTS];
    while (s->used) {
        const sp_status st = ask(cu, s->done);
        if (st == SP_OK) {
            end_slots(cu, ticket);
            break;
        }
        if (st != SP_AGAIN) return sp_fault_status(&cu->fault, err);
        if (deadline_ns != SP_NEVER && sp_now_ns() >= deadline_ns) return SP_AGAIN;
        pause_after(s->asked);
        if (s->asked < SPINS) s->asked++;
    }
    return sp_fault_status(&cu->fault, err);
}
