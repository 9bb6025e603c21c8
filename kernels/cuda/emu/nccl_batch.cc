// A queued batch of an emulated NCCL communicator: what runs where a kernel would.
#include "kernels/cuda/emu/half.h"
#include "kernels/cuda/emu/nccl_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_AFTER 64 // runs in vain before the others' lives are looked at

/* ---- numbers ---- */

size_t nccl_type_bytes(cu_nccl_type type) {
    static const unsigned char bytes[CU_NCCL_TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return type >= 0 && type < CU_NCCL_TYPES ? bytes[type] : 0;
}

bool nccl_can_reduce(cu_nccl_type type, cu_nccl_op op) {
    return type >= 0 && type < CU_NCCL_F8E4M3 && op >= 0 && op < CU_NCCL_OPS;
}

template <class T> static T join(T a, T b, cu_nccl_op op) {
    switch (op) {
    case CU_NCCL_PROD:
        return (T)(a * b);
    case CU_NCCL_MAX:
        return a < b ? b : a;
    case CU_NCCL_MIN:
        return b < a ? b : a;
    default:
        return (T)(a + b);
    }
}

struct f16 {
    uint16_t bits;
    f16() = default;
    explicit f16(float v) : bits(cu_f16_from_float(v)) {}
    operator float() const { return cu_f16_to_float(bits); }
};
struct bf16 {
    uint16_t bits;
    bf16() = default;
    explicit bf16(float v) : bits(cu_bf16_from_float(v)) {}
    operator float() const { return cu_bf16_to_float(bits); }
};

template <class T, class Wide>
static void reduce_as(void *to, const void *const *parts, int n, size_t count, cu_nccl_op op) {
    for (size_t i = 0; i < count; i++) {
        int first = (int)(i * (size_t)n / count);
        Wide sum = (Wide)((const T *)parts[(first + 1) % n])[i];
        for (int k = 2; k <= n; k++)
            sum = (Wide)(T)join<Wide>(sum, (Wide)((const T *)parts[(first + k) % n])[i], op);
        if (op == CU_NCCL_AVG) sum = (Wide)(sum / (Wide)n);
        ((T *)to)[i] = (T)sum;
    }
}

void nccl_reduce(void *to, const void *const *parts, int n, size_t count, cu_nccl_type type,
                 cu_nccl_op op) {
    switch (type) {
    case CU_NCCL_INT8:
        return reduce_as<int8_t, int32_t>(to, parts, n, count, op);
    case CU_NCCL_UINT8:
        return reduce_as<uint8_t, uint32_t>(to, parts, n, count, op);
    case CU_NCCL_INT32:
        return reduce_as<int32_t, int32_t>(to, parts, n, count, op);
    case CU_NCCL_UINT32:
        return reduce_as<uint32_t, uint32_t>(to, parts, n, count, op);
    case CU_NCCL_INT64:
        return reduce_as<int64_t, int64_t>(to, parts, n, count, op);
    case CU_NCCL_UINT64:
        return reduce_as<uint64_t, uint64_t>(to, parts, n, count, op);
    case CU_NCCL_F16:
        return reduce_as<f16, float>(to, parts, n, count, op);
    case CU_NCCL_BF16:
        return reduce_as<bf16, float>(to, parts, n, count, op);
    case CU_NCCL_F64:
        return reduce_as<double, double>(to, parts, n, count, op);
    default:
        return reduce_as<float, float>(to, parts, n, count, op);
    }
}

/* ---- flows ---- */

static nccl_flow *add_flow(nccl_batch *b, const nccl_call *c, const nccl_frame *frame, int peer,
                           bool out) {
    nccl_flow *f = &b->flows[b->n_flows++];
    memset(f, 0, sizeof *f);
    f->peer = peer;
    f->out = out;
    f->bytes = c->count * nccl_type_bytes(c->type);
    f->from = (const char *)c->from;
    f->frame = *frame;
    return f;
}

static void begin_p2p(nccl_batch *b, const nccl_call *c, const nccl_frame *frame) {
    nccl_flow *f = add_flow(b, c, frame, c->root, c->out);
    f->to = (char *)c->to;
    f->taken = true; // a send that nobody receives does not end
    f->frame.root = 0;
}

static void begin_collective(nccl_batch *b, const nccl_call *c, const nccl_frame *frame,
                             char **scratch) {
    const int n = b->comm->wire.n, me = b->comm->wire.rank;
    const size_t bytes = c->count * nccl_type_bytes(c->type);
    const bool broadcast = c->kind == NCCL_BROADCAST;
    for (int m = 0; m < n; m++) {
        if (m == me) continue;
        if (!broadcast || c->root == me) add_flow(b, c, frame, m, true);
        if (broadcast && c->root != m) continue;
        nccl_flow *in = add_flow(b, c, frame, m, false);
        if (broadcast) in->to = (char *)c->to;
        if (c->kind == NCCL_ALL_GATHER) in->to = (char *)c->to + (size_t)m * bytes;
        if (c->kind == NCCL_ALL_REDUCE) {
            in->to = *scratch;
            *scratch += bytes;
        }
    }
    char *own = (char *)c->to;
    if (c->kind == NCCL_ALL_GATHER) own += (size_t)me * bytes;
    bool copies = c->kind == NCCL_ALL_GATHER || (broadcast && c->root == me);
    if (copies && bytes && own != c->from) memmove(own, c->from, bytes);
}

// A call's buffers, as the library would touch them.
static int check_buffers(const struct ncclComm *comm, const nccl_call *c) {
    const size_t n = (size_t)comm->wire.n, bytes = c->count * nccl_type_bytes(c->type);
    const bool reads = c->kind == NCCL_P2P         ? c->out
                       : c->kind == NCCL_BROADCAST ? c->root == comm->wire.rank
                                                   : true;
    const bool writes = c->kind != NCCL_P2P || !c->out;
    const size_t to_bytes = c->kind == NCCL_ALL_GATHER ? bytes * n : bytes;
    if (bytes == 0) return 0;
    if (reads && !cu_emu_is_device(c->from, bytes))
        return cu_emu_report(CU_EMU_ADDRESS, "nccl: %zu bytes at %p are not the device's", bytes,
                             c->from);
    if (writes && !cu_emu_is_device(c->to, to_bytes))
        return cu_emu_report(CU_EMU_ADDRESS, "nccl: %zu bytes at %p are not the device's", to_bytes,
                             c->to);
    return 0;
}

static int begin(nccl_batch *b) {
    struct ncclComm *comm = b->comm;
    size_t room = 0, most = (size_t)b->n_calls * 2 * (size_t)comm->wire.n;
    for (int i = 0; i < b->n_calls; i++)
        if (b->calls[i].kind == NCCL_ALL_REDUCE)
            room += b->calls[i].count * nccl_type_bytes(b->calls[i].type) * (size_t)comm->wire.n;
    b->flows = (nccl_flow *)malloc(most * sizeof *b->flows);
    b->scratch = (char *)malloc(room + 1);
    if (!b->flows || !b->scratch) return cudaErrorMemoryAllocation;
    b->n_flows = 0;
    char *scratch = b->scratch;
    // Inside of a group collectives and messages have no order between them.
    for (int p2p = 0; p2p < 2; p2p++)
        for (int i = 0; i < b->n_calls; i++) {
            const nccl_call *c = &b->calls[i];
            if ((c->kind == NCCL_P2P) != p2p) continue;
            nccl_frame frame = {(uint32_t)c->kind,
                                (uint32_t)c->type,
                                c->kind == NCCL_ALL_REDUCE ? (uint32_t)c->op : 0,
                                c->kind == NCCL_BROADCAST ? c->root : 0,
                                c->count,
                                0};
            if (!p2p) frame.seq = ++comm->seq;
            if (p2p)
                begin_p2p(b, c, &frame);
            else
                begin_collective(b, c, &frame, &scratch);
        }
    return 0;
}

static void forget_run(nccl_batch *b) {
    free(b->flows);
    free(b->scratch);
    b->flows = NULL;
    b->scratch = NULL;
    if (b->comm->running == b) b->comm->running = NULL;
}

static void finish(nccl_batch *b) {
    const int n = b->comm->wire.n, me = b->comm->wire.rank;
    const char *scratch = b->scratch;
    for (int i = 0; i < b->n_calls; i++) {
        const nccl_call *c = &b->calls[i];
        if (c->kind != NCCL_ALL_REDUCE || c->count == 0) continue;
        const void *parts[NCCL_MEMBERS_MAX];
        for (int m = 0; m < n; m++) {
            parts[m] = m == me ? c->from : scratch;
            if (m != me) scratch += c->count * nccl_type_bytes(c->type);
        }
        nccl_reduce(c->to, parts, n, c->count, c->type, c->op);
    }
    forget_run(b);
}

// Moves each lane (a peer and a direction) in order. True when all is done.
static bool move_all(nccl_batch *b, bool *moved) {
    bool stopped[2][NCCL_MEMBERS_MAX] = {}, done = true;
    nccl_flow *f = b->flows;
    int kept = 0;
    for (int i = 0; i < b->n_flows; i++) {
        bool *stop = &stopped[f[i].out][f[i].peer];
        nccl_moved how = *stop ? NCCL_STILL : nccl_wire_move(&b->comm->wire, &f[i]);
        if (how == NCCL_MISMATCH) {
            b->disagrees = true;
            return false;
        }
        if (how != NCCL_STILL) *moved = true;
        // A send waits for its receiver, but what follows it may go into the ring behind it.
        if (how != NCCL_DONE && !(f[i].out && f[i].end)) *stop = true;
        if (how != NCCL_DONE) done = false;
        if (how != NCCL_DONE) f[kept++] = f[i];
    }
    b->n_flows = kept;
    return done;
}

static void look_for_lost(nccl_batch *b) {
    struct ncclComm *c = b->comm;
    for (int i = 0; c->say_lost && i < b->n_flows && !c->error; i++) {
        if (!nccl_wire_gone(&c->wire, b->flows[i].peer)) continue;
        snprintf(c->words, sizeof c->words, "member %d is gone", b->flows[i].peer);
        c->error = CU_NCCL_REMOTE_ERROR;
    }
}

static int run_locked(nccl_batch *b) {
    struct ncclComm *c = b->comm;
    if (c->aborted) {
        forget_run(b);
        return 0; // the stream goes on; what it finds in the buffers is anything
    }
    if (c->error || nccl_wire_error(&c->wire, NULL)) return CU_EMU_AGAIN;
    if (c->running && c->running != b) return CU_EMU_AGAIN;
    if (!c->running) {
        c->running = b;
        int bad = begin(b);
        if (bad) {
            forget_run(b);
            return bad;
        }
    }
    bool moved = false;
    if (move_all(b, &moved)) {
        finish(b);
        return 0;
    }
    b->idle = moved ? 0 : b->idle + 1;
    if (b->idle % LOOK_AFTER == LOOK_AFTER - 1) look_for_lost(b);
    return CU_EMU_AGAIN;
}

// What asks the emulator is done without the communicator's lock: drop() is called with the
// emulator's own and wants this one.
int nccl_batch_run(void *batch) {
    nccl_batch *b = (nccl_batch *)batch;
    struct ncclComm *c = b->comm;
    for (int i = 0; !b->flows && i < b->n_calls; i++) {
        int bad = check_buffers(c, &b->calls[i]);
        if (bad) return bad;
    }
    pthread_mutex_lock(&c->lock);
    int rc = run_locked(b);
    pthread_mutex_unlock(&c->lock);
    const char *words = "";
    if (b->disagrees && nccl_wire_error(&c->wire, &words))
        cu_emu_report(CU_EMU_MISUSE, "nccl: %s", words);
    b->disagrees = false;
    return rc;
}

void nccl_batch_drop(void *batch) {
    nccl_batch *b = (nccl_batch *)batch;
    struct ncclComm *c = b->comm;
    pthread_mutex_lock(&c->lock);
    forget_run(b);
    c->n_batches--;
    pthread_mutex_unlock(&c->lock);
    free(b->calls);
    free(b);
    nccl_comm_unref(c);
}
