/* runtime/engine/moves_core.h - what the files of moves.h share: a move, and all of them.
 *
 * moves_begin.c takes requests in, moves.c does the rest. Thread: engine. */
#pragma once

#include "runtime/engine/moves.h"
#include "runtime/engine/pulls.h"

#define SP_MOVES_SLOT_BITS 12
_Static_assert(SP_MOVES_MAX <= 1 << SP_MOVES_SLOT_BITS, "a slot fits its bits");
#define SP_MOVES_NO_SOURCE (-1)

typedef struct sp_move {
    sp_handoff core;
    sp_request *req;    /* held at the target; NULL: given, or ended */
    sp_request *shadow; /* at the source; NULL: ended, or another pod computed it */
    int32_t source;     /* group; of another pod: its number, or SP_MOVES_NO_SOURCE */
    int32_t target, slot;
    sp_block *src, *dst;  /* [core.n] */
    uint64_t *names;      /* [core.n] of the source blocks, as those who computed them say */
    uint32_t *generation; /* [core.n], of the source blocks; 0: not sealed for us yet */
    sp_pull pull;
    uint64_t lease; /* of another pod, not given back yet; 0: none */
    bool imported;
    sp_kv_cause refused; /* what was wrong with the handle, before anything was pulled */
    bool failure_counted;
    int64_t begun_ns, sealing_ns;
    int64_t ready_ns; /* since when something could be pulled; 0: nothing can */
    bool listed;      /* among those to be looked at */
    struct sp_move *todo_next;
} sp_move;

struct sp_moves {
    sp_moves_config config;
    sp_sources *sources;
    sp_move *slots[SP_MOVES_MAX];
    int32_t free_slots[SP_MOVES_MAX], n_free;
    uint64_t serial;
    int64_t next_ns;
    sp_move *todo, *todo_last;
    sp_wire_kv_move frame[SP_KV_FRAME_BLOCKS_MAX]; /* at hand */
};

static inline sp_stepper *sp_moves_stepper(const sp_moves *x, int32_t group) {
    return sp_seals_stepper(x->config.seals[group]);
}
static inline sp_sched *sp_moves_sched(const sp_moves *x, int32_t group) {
    return sp_stepper_sched(sp_moves_stepper(x, group));
}

void sp_move_free(sp_move *m);
void sp_moves_look_at(sp_moves *x, sp_move *m);       /* in the next turn */
void sp_moves_failed(sp_moves *x, sp_kv_cause cause); /* counts it */
/** How many of the prompt's first `most` blocks the other pod says it has. */
int32_t sp_moves_offered(const sp_request *r, int32_t most);
