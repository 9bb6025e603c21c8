/* runtime/engine/null_model.h - a model that computes nothing but depends on everything.
 *
 * For rehearsals without weights and as the oracle of tests. Each position's token leaves a hash in
 * its place (block, offset), as keys and values would; the logits of a position are a function of
 * the hashes of all positions up to it, read back through the block table, as attention would. A
 * wrong table, a stale block or a wrong prefix hit therefore gives another token. The next token of
 * a given prefix is the same whatever the batch, the blocks and the chunks.
 *
 * Thread: the rank's engine thread. */
#pragma once

#include "runtime/engine/stage.h"

typedef struct sp_null_model sp_null_model;

typedef struct sp_null_model_config {
    int32_t n_vocab, n_blocks, block_tokens, max_step_rows;
    int64_t step_ns; /* every step takes at least so long: a stand-in for a device */
} sp_null_model_config;

/** Owner: caller, sp_null_model_destroy(). Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_null_model_create(sp_null_model **out, const sp_null_model_config *config,
                                            sp_err *err);
void sp_null_model_destroy(sp_null_model *m);
sp_stage_model sp_null_model_callbacks(sp_null_model *m);

/** The logits [n_vocab] after tokens [n], computed from the tokens alone. */
void sp_null_model_logits(const int32_t *tokens, int32_t n, float *logits, int32_t n_vocab);

/** The parts of it, for rehearsal.h: the hash that a token leaves in its place; the state of a
 * position from the sum of the hashes up to it; the logits [n_vocab] of a state. */
uint64_t sp_null_model_hash(int32_t token, int32_t position);
uint64_t sp_null_model_state(uint64_t sum);
void sp_null_model_row(uint64_t state, float *logits, int32_t n_vocab);

/** The block_tokens hashes of a block: for tests that carry blocks from model to model. */
uint64_t *sp_null_model_block(sp_null_model *m, int32_t block);
