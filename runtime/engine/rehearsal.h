/* runtime/engine/rehearsal.h - a rank of a TP x PP pod that moves all the bytes and computes nothing.
 *
 * For trying a pod's shape, network and faults without weights. A step runs the collectives of the
 * real forward pass in its order and with its sizes: rows of the embedding picked by vocabulary, two
 * all-reduces of [T, E] a layer, [T, E] from stage to stage, a gather at the last stage. Instead of
 * logits there is one token a row: a hash of all tokens up to it, as in null_model.h.
 *
 * What makes a wrong table or a lost token show: every rank keeps a hash a position in its own
 * blocks, where the step's table says. The hash of a token is made where its embedding row would be,
 * by the tensor-parallel rank that holds the row, and travels in bytes 0..7 of the token's row of
 * activations through every stage. For a wanted row each rank adds up the hashes of all positions
 * through its table and compares with the sum of the stage before (bytes 8..15); at the last stage
 * rank 0 compares those of all tensor-parallel ranks. While all agree the sum goes on as it is, so a
 * pod of any shape gives the same tokens; where one differs, another token comes out.
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "comm/group.h"
#include "runtime/engine/stage.h"

typedef struct sp_rehearsal sp_rehearsal;

typedef struct sp_rehearsal_config {
    int32_t hidden;   /* E, 4 or more */
    int32_t n_layers; /* of this stage */
    sp_group *tp;     /* borrowed; this stage's ranks; NULL: alone */
    sp_group *pp;     /* borrowed; this slice's stages, member 0 the first; NULL: alone */
    int32_t n_vocab;
    int32_t token_lo, token_hi; /* what is drawn lies in here, both included */
    int32_t n_blocks, block_tokens, max_batched_tokens, max_step_rows;
    int64_t step_ns; /* a step takes at least so long: a stand-in for a device; 0 */
} sp_rehearsal_config;

/** Owner: caller, sp_rehearsal_destroy(). Errors: SP_E_INVALID a value out of range, by name;
 * SP_E_NOMEM. */
SP_NODISCARD sp_status sp_rehearsal_create(sp_rehearsal **out, const sp_rehearsal_config *config,
                                           sp_err *err);
void sp_rehearsal_destroy(sp_rehearsal *r);
/** forward() and token(); logits stay NULL. Errors of forward: SP_E_PEER_LOST, SP_E_CANCELED of a
 * group; SP_E_INTERNAL a sum over the group that is not one. */
sp_stage_model sp_rehearsal_callbacks(sp_rehearsal *r);

/** Of row `row` of the last step, at TP rank 0 of the last stage: the null model's state. */
uint64_t sp_rehearsal_state(const sp_rehearsal *r, int32_t row);
/** The token after tokens [n], from the tokens alone. */
int32_t sp_rehearsal_token(const int32_t *tokens, int32_t n, int32_t token_lo, int32_t token_hi);
