/* runtime/engine/seals.h - blocks of one group of ranks that others may read: who holds them, and
 * which the ranks have made readable.
 *
 * A block that somebody may read is held (a reference in the pool) and sealed: every rank of the
 * group was told its generation and name by KV_SEAL. Several may hold it at a time (a prompt that
 * moves twice, one that is lent besides); the first one has it sealed, the last one lets go: KV_FREE
 * goes out first, then the reference goes, since from then on a step may name the block.
 *
 * Frames go out in sp_seals_add() and sp_seals_drop() alone, which the engine's turn calls; answers
 * are only noted.
 *
 * Limits: generations are 32 bits, 0 is skipped; tickets are answered in order.
 * Thread: engine. */
#pragma once

#include "runtime/engine/stepper.h"

typedef struct sp_seals sp_seals;

typedef struct sp_seals_config {
    sp_stepper *stepper; /* borrowed */
    int32_t first_link, n_links, n_blocks;
} sp_seals_config;

/** Owner: caller, sp_seals_destroy(), before the stepper goes. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_seals_create(sp_seals **out, const sp_seals_config *config, sp_err *err);
void sp_seals_destroy(sp_seals *s);

/** Has `n` blocks sealed, of which the caller has a reference each. generation[i] is what readers
 * ask for; they may once sp_seals_done(*ticket). Errors: of sp_stepper_send(). */
SP_NODISCARD sp_status sp_seals_add(sp_seals *s, const sp_block *blocks, const uint64_t *names,
                                    int32_t n, uint32_t *generation, uint64_t *ticket, sp_err *err);
/** Lets go of blocks and of the caller's references; generation 0: it was not sealed.
 * Errors: of sp_stepper_send(). */
SP_NODISCARD sp_status sp_seals_drop(sp_seals *s, const sp_block *blocks,
                                     const uint32_t *generation, int32_t n, sp_err *err);
/** Whether every rank has answered that ticket. */
bool sp_seals_done(const sp_seals *s, uint64_t ticket);
uint64_t sp_seals_answered(const sp_seals *s); /* by every rank: this ticket and all before */

/** Takes KV_SEALED of a link; `*news`: every rank has answered one more. Errors: SP_E_PROTOCOL. */
SP_NODISCARD sp_status sp_seals_take(sp_seals *s, int link, const sp_frame *f, bool *news,
                                     sp_err *err);

sp_stepper *sp_seals_stepper(const sp_seals *s);
int32_t sp_seals_held(const sp_seals *s); /* blocks that are sealed now */
const sp_seals_config *sp_seals_get_config(const sp_seals *s);

/** The first bytes of a block's name, as ranks compare them. */
static inline uint64_t sp_seals_name(const sp_kv_hash *name) {
    uint64_t head;
    __builtin_memcpy(&head, name->bytes, sizeof head);
    return head;
}
