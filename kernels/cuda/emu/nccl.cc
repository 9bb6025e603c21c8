// NCCL's names over shared memory: the part of the library that superpod calls, for members that are
// threads or processes of one machine.
//
// What a GPU's library does and tests should meet is done here too: communicators are made with
// blocking = 0 only and are "in progress" for a while; the first group of a communicator, and with
// random streams now and then another, is queued later, when its state is asked for; an operation of
// a communicator in progress is refused; a send ends when it was received; a sum has no tree's order;
// members that disagree, or are gone, leave the stream stuck until the communicator is aborted.
// Beyond a GPU's: members that disagree are found and named, and buffers are looked at.
//
//   SUPERPOD_EMU_NCCL_VERSION   what ncclGetVersion says (22809)
//   SUPERPOD_EMU_NCCL_LOST      wait (as the real one); error: a lost member is an async error
#include "kernels/cuda/emu/nccl_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_MAX 65536
#define POLLS_TO_READY 3 // questions that are answered "in progress" though all have joined

static pthread_mutex_t comms_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ncclComm *comms;
static __thread char last_words[NCCL_WORDS]; // of calls without a communicator

typedef struct queued {
    struct ncclComm *comm;
    struct CUstream_st *stream;
    nccl_call call;
} queued;
static __thread struct {
    int depth;
    queued *at;
    int n, cap;
    cu_nccl_result bad;
} group;

static cu_nccl_result refuse(cu_nccl_result r, const char *words) {
    snprintf(last_words, sizeof last_words, "%s", words);
    return r;
}

/* ---- communicators ---- */

void nccl_comm_unref(struct ncclComm *c) {
    pthread_mutex_lock(&c->lock);
    bool last = --c->refs == 0;
    pthread_mutex_unlock(&c->lock);
    if (!last) return;
    nccl_wire_leave(&c->wire);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

// A handle that lives, with a reference; NULL for any other.
static struct ncclComm *take(cu_nccl_comm handle) {
    pthread_mutex_lock(&comms_lock);
    struct ncclComm *c = comms;
    while (c && c != handle) c = c->next;
    if (c) {
        pthread_mutex_lock(&c->lock);
        c->refs++;
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&comms_lock);
    if (!c) refuse(CU_NCCL_INVALID_ARGUMENT, "not a communicator, or one that was destroyed");
    return c;
}

static void remember(struct ncclComm *c) {
    pthread_mutex_lock(&comms_lock);
    c->next = comms;
    comms = c;
    pthread_mutex_unlock(&comms_lock);
}

static bool forget(const struct ncclComm *c) {
    pthread_mutex_lock(&comms_lock);
    struct ncclComm **at = &comms;
    while (*at && *at != c) at = &(*at)->next;
    bool was = *at != NULL;
    if (was) *at = c->next;
    pthread_mutex_unlock(&comms_lock);
    return was;
}

extern "C" cu_nccl_result ncclGetVersion(int *version) {
    const char *text = getenv("SUPERPOD_EMU_NCCL_VERSION");
    *version = text && *text ? atoi(text) : 22809;
    return CU_NCCL_OK;
}

extern "C" cu_nccl_result ncclGetUniqueId(cu_nccl_id *id) {
    return nccl_wire_make(id, last_words);
}

extern "C" cu_nccl_result ncclCommInitRankConfig(cu_nccl_comm *comm, int n, cu_nccl_id id, int rank,
                                                 cu_nccl_config *config) {
    if (!comm || n < 1 || n > NCCL_MEMBERS_MAX || rank < 0 || rank >= n)
        return refuse(CU_NCCL_INVALID_ARGUMENT, "no such member of a communicator");
    if (!config || config->magic != CU_NCCL_MAGIC || config->size < sizeof *config)
        return refuse(CU_NCCL_INVALID_ARGUMENT, "a configuration that was not initialised");
    if (config->blocking != 0)
        return refuse(CU_NCCL_INVALID_USAGE, "only blocking = 0 is emulated");
    struct ncclComm *c = (struct ncclComm *)calloc(1, sizeof *c);
    if (!c) return refuse(CU_NCCL_SYSTEM_ERROR, "no memory for a communicator");
    cu_nccl_result r = nccl_wire_join(&c->wire, &id, n, rank, last_words);
    if (r != CU_NCCL_OK) {
        free(c);
        return r;
    }
    pthread_mutex_init(&c->lock, NULL);
    cu_emu_config emu;
    cu_emu_get_config(&emu);
    const char *lost = getenv("SUPERPOD_EMU_NCCL_LOST");
    c->say_lost = lost && strcmp(lost, "error") == 0;
    c->random = emu.seed + (uint64_t)rank;
    c->refs = 1;
    remember(c);
    *comm = c;
    return CU_NCCL_IN_PROGRESS;
}

// Queues what was held back. Closures lock the communicator, so this may not.
static cudaError_t queue_all(nccl_batch *list) {
    cudaError_t first = cudaSuccess;
    while (list) {
        nccl_batch *b = list;
        list = b->next;
        b->next = NULL;
        cudaError_t err = cu_emu_enqueue(b->stream, "nccl", nccl_batch_run, b, nccl_batch_drop);
        if (!first) first = err;
    }
    return first;
}

static cu_nccl_result state_of(struct ncclComm *c) {
    if (c->error) return (cu_nccl_result)c->error;
    cu_nccl_result shared = nccl_wire_error(&c->wire, NULL);
    if (shared) return shared;
    if (!c->ready || c->held) return CU_NCCL_IN_PROGRESS;
    if (c->finalizing && (c->n_batches || !nccl_wire_all(&c->wire, NCCL_FINALIZED)))
        return CU_NCCL_IN_PROGRESS;
    return CU_NCCL_OK;
}

extern "C" cu_nccl_result ncclCommGetAsyncError(cu_nccl_comm comm, cu_nccl_result *error) {
    struct ncclComm *c = take(comm);
    if (!c) return CU_NCCL_INVALID_ARGUMENT;
    pthread_mutex_lock(&c->lock);
    nccl_batch *held = NULL;
    bool wait = !c->ready && !nccl_wire_complete(&c->wire);
    if (!c->ready && !wait && ++c->polls >= POLLS_TO_READY) c->ready = true;
    *error = state_of(c);
    if (c->ready && c->held && *error == CU_NCCL_IN_PROGRESS) {
        held = c->held;
        c->held = NULL;
    }
    pthread_mutex_unlock(&c->lock);
    cudaError_t bad = queue_all(held); // asked once more, it says that it is done
    if (bad) {
        pthread_mutex_lock(&c->lock);
        c->error = CU_NCCL_CUDA_ERROR;
        snprintf(c->words, sizeof c->words, "queueing failed: %s", cudaGetErrorString(bad));
        pthread_mutex_unlock(&c->lock);
        *error = CU_NCCL_CUDA_ERROR;
    }
    nccl_comm_unref(c);
    return CU_NCCL_OK;
}

static cu_nccl_result end(cu_nccl_comm comm, bool abort) {
    struct ncclComm *c = take(comm);
    if (!c) return CU_NCCL_INVALID_ARGUMENT;
    pthread_mutex_lock(&c->lock);
    cu_nccl_result state = state_of(c);
    nccl_batch *held = NULL;
    // The real one would wait here, some versions for ever.
    bool refused = !abort && (state != CU_NCCL_OK || c->n_batches);
    if (refused)
        refuse(CU_NCCL_INVALID_USAGE, "destroyed while something is under way: abort it");
    else {
        held = c->held;
        c->held = NULL;
        c->aborted = true;
        if (abort) nccl_wire_say(&c->wire, NCCL_ABORTED);
    }
    pthread_mutex_unlock(&c->lock);
    for (nccl_batch *b = held; b;) {
        nccl_batch *next = b->next;
        nccl_batch_drop(b);
        b = next;
    }
    if (!refused && forget(c)) nccl_comm_unref(c); // the handle's
    nccl_comm_unref(c);
    return refused ? CU_NCCL_INVALID_USAGE : CU_NCCL_OK;
}

extern "C" cu_nccl_result ncclCommAbort(cu_nccl_comm comm) {
    return end(comm, true);
}
extern "C" cu_nccl_result ncclCommDestroy(cu_nccl_comm comm) {
    return end(comm, false);
}

extern "C" cu_nccl_result ncclCommFinalize(cu_nccl_comm comm) {
    struct ncclComm *c = take(comm);
    if (!c) return CU_NCCL_INVALID_ARGUMENT;
    pthread_mutex_lock(&c->lock);
    cu_nccl_result r = state_of(c);
    if (r == CU_NCCL_OK && c->finalizing) r = CU_NCCL_INVALID_USAGE;
    if (r == CU_NCCL_OK) {
        c->finalizing = true;
        nccl_wire_say(&c->wire, NCCL_FINALIZED);
        r = CU_NCCL_IN_PROGRESS;
    }
    pthread_mutex_unlock(&c->lock);
    nccl_comm_unref(c);
    return r;
}

extern "C" const char *ncclGetErrorString(cu_nccl_result result) {
    static const char *const words[CU_NCCL_RESULTS] = {
        "no error",         "the device failed", "the system failed", "internal error",
        "invalid argument", "invalid usage",     "a member is lost",  "in progress",
    };
    return result >= 0 && result < CU_NCCL_RESULTS ? words[result] : "unknown result";
}

extern "C" const char *ncclGetLastError(cu_nccl_comm comm) {
    static __thread char text[NCCL_WORDS];
    struct ncclComm *c = comm ? take(comm) : NULL;
    if (!c) return last_words;
    const char *words = last_words;
    pthread_mutex_lock(&c->lock);
    if (c->error) words = c->words;
    nccl_wire_error(&c->wire, &words);
    snprintf(text, sizeof text, "%s", words);
    pthread_mutex_unlock(&c->lock);
    nccl_comm_unref(c);
    return text;
}

/* ---- operations ---- */

static bool hold_back(struct ncclComm *c, bool mixed) {
    bool first = !c->used;
    c->used = true;
    return first || (mixed && cu_random(&c->random) % 4 == 0);
}

// The calls of one communicator become one batch. Moves nothing of the group.
static cu_nccl_result launch(struct ncclComm *c, const queued *all, int n) {
    nccl_batch *b = (nccl_batch *)calloc(1, sizeof *b);
    nccl_call *calls = (nccl_call *)calloc((size_t)n, sizeof *calls);
    if (!b || !calls) {
        free(b);
        free(calls);
        return refuse(CU_NCCL_SYSTEM_ERROR, "no memory for a group of calls");
    }
    b->comm = c;
    b->calls = calls;
    for (int i = 0; i < n; i++) {
        if (all[i].comm != c) continue;
        b->stream = all[i].stream;
        calls[b->n_calls++] = all[i].call;
    }
    cu_emu_config emu; // asked before the lock: the emulator's is taken first, always
    cu_emu_get_config(&emu);
    pthread_mutex_lock(&c->lock);
    c->refs++;
    c->n_batches++;
    bool hold = hold_back(c, emu.pace == CU_EMU_MIXED);
    if (hold) c->held = b;
    pthread_mutex_unlock(&c->lock);
    if (hold) return CU_NCCL_IN_PROGRESS;
    cudaError_t err = queue_all(b);
    return err ? refuse(CU_NCCL_CUDA_ERROR, cudaGetErrorString(err)) : CU_NCCL_OK;
}

static bool one_stream(const queued *all, int n, int i) {
    for (int k = i + 1; k < n; k++)
        if (all[k].comm == all[i].comm && all[k].stream != all[i].stream) return false;
    return true;
}

static cu_nccl_result launch_all(const queued *all, int n) {
    cu_nccl_result result = CU_NCCL_OK;
    for (int i = 0; i < n; i++)
        if (!one_stream(all, n, i))
            return refuse(CU_NCCL_INVALID_USAGE, "one communicator on two streams in a group");
    for (int i = 0; i < n; i++) {
        bool seen = false;
        for (int k = 0; k < i; k++) seen = seen || all[k].comm == all[i].comm;
        cu_nccl_result r = seen ? CU_NCCL_OK : launch(all[i].comm, all, n);
        if (r != CU_NCCL_OK && (result == CU_NCCL_OK || result == CU_NCCL_IN_PROGRESS)) result = r;
    }
    return result;
}

extern "C" cu_nccl_result ncclGroupStart(void) {
    group.depth++;
    return CU_NCCL_OK;
}

extern "C" cu_nccl_result ncclGroupEnd(void) {
    if (group.depth == 0)
        return refuse(CU_NCCL_INVALID_USAGE, "the end of a group that was not started");
    if (--group.depth) return CU_NCCL_OK;
    cu_nccl_result r = group.bad ? group.bad : launch_all(group.at, group.n);
    for (int i = 0; i < group.n; i++) nccl_comm_unref(group.at[i].comm);
    free(group.at);
    group.at = NULL;
    group.n = group.cap = 0;
    group.bad = CU_NCCL_OK;
    return r;
}

static cu_nccl_result check(struct ncclComm *c, const nccl_call *call) {
    pthread_mutex_lock(&c->lock);
    cu_nccl_result state = state_of(c);
    pthread_mutex_unlock(&c->lock);
    if (state == CU_NCCL_IN_PROGRESS)
        return refuse(CU_NCCL_INVALID_ARGUMENT, "the communicator is in progress");
    if (state != CU_NCCL_OK) return state;
    if (c->finalizing) return refuse(CU_NCCL_INVALID_USAGE, "the communicator is finalized");
    if (nccl_type_bytes(call->type) == 0 || call->count > SIZE_MAX / 8 / NCCL_MEMBERS_MAX)
        return refuse(CU_NCCL_INVALID_ARGUMENT, "no such type, or too many of it");
    if (call->root < 0 || call->root >= c->wire.n)
        return refuse(CU_NCCL_INVALID_ARGUMENT, "no such member");
    if (call->kind == NCCL_ALL_REDUCE && !nccl_can_reduce(call->type, call->op))
        return refuse(CU_NCCL_INVALID_ARGUMENT, "this reduction is not emulated");
    return CU_NCCL_OK;
}

static cu_nccl_result keep(struct ncclComm *c, struct CUstream_st *stream, const nccl_call *call) {
    if (group.n == GROUP_MAX) return refuse(CU_NCCL_INVALID_USAGE, "too many calls in a group");
    if (group.n == group.cap) {
        int cap = group.cap ? group.cap * 2 : 8;
        void *p = realloc(group.at, (size_t)cap * sizeof *group.at);
        if (!p) return refuse(CU_NCCL_SYSTEM_ERROR, "no memory for a group of calls");
        group.at = (queued *)p;
        group.cap = cap;
    }
    queued q = {c, stream, *call};
    group.at[group.n++] = q;
    return CU_NCCL_OK;
}

static cu_nccl_result call(cu_nccl_comm comm, struct CUstream_st *stream, const nccl_call *what) {
    struct ncclComm *c = take(comm);
    cu_nccl_result r = c ? check(c, what) : CU_NCCL_INVALID_ARGUMENT;
    ncclGroupStart();
    if (r == CU_NCCL_OK) r = keep(c, stream, what); // moves the reference
    if (r != CU_NCCL_OK && c) nccl_comm_unref(c);
    if (r != CU_NCCL_OK && !group.bad) group.bad = r;
    cu_nccl_result ended = ncclGroupEnd();
    return r != CU_NCCL_OK ? r : ended;
}

extern "C" cu_nccl_result ncclAllGather(const void *from, void *to, size_t count, cu_nccl_type type,
                                        cu_nccl_comm comm, struct CUstream_st *stream) {
    nccl_call c = {NCCL_ALL_GATHER, true, from, to, count, type, CU_NCCL_SUM, 0};
    return call(comm, stream, &c);
}

extern "C" cu_nccl_result ncclAllReduce(const void *from, void *to, size_t count, cu_nccl_type type,
                                        cu_nccl_op op, cu_nccl_comm comm,
                                        struct CUstream_st *stream) {
    nccl_call c = {NCCL_ALL_REDUCE, true, from, to, count, type, op, 0};
    return call(comm, stream, &c);
}

extern "C" cu_nccl_result ncclBroadcast(const void *from, void *to, size_t count, cu_nccl_type type,
                                        int root, cu_nccl_comm comm, struct CUstream_st *stream) {
    nccl_call c = {NCCL_BROADCAST, true, from, to, count, type, CU_NCCL_SUM, root};
    return call(comm, stream, &c);
}

extern "C" cu_nccl_result ncclSend(const void *from, size_t count, cu_nccl_type type, int peer,
                                   cu_nccl_comm comm, struct CUstream_st *stream) {
    nccl_call c = {NCCL_P2P, true, from, NULL, count, type, CU_NCCL_SUM, peer};
    return call(comm, stream, &c);
}

extern "C" cu_nccl_result ncclRecv(void *to, size_t count, cu_nccl_type type, int peer,
                                   cu_nccl_comm comm, struct CUstream_st *stream) {
    nccl_call c = {NCCL_P2P, false, NULL, to, count, type, CU_NCCL_SUM, peer};
    return call(comm, stream, &c);
}
