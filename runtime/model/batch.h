/* runtime/model/batch.h - one step as a stage computes it. Plain and borrowed for the call.
 *
 * Sequences come in the order of their rows, which follow each other without gaps.
 *
 *   ids   | prompt chunk of seq 0 ........ | one token of seq 1 | one token of seq 2 |
 *   seqs  | row0=0 n_rows=6 pos0=32        | row0=6 n_rows=1    | row0=7 n_rows=1    |
 *   rows  wanted logits: 5, 6, 7
 *
 * Thread: plain data. */
#pragma once

#include "kernels/args.h"

typedef struct sp_batch {
    const int32_t *ids; /* [n_tokens] */
    int32_t n_tokens;   /* T */
    const sp_seq_rows *seqs;
    int32_t n_seqs;
    const int32_t *rows; /* [n_rows] whose logits are wanted, ascending */
    int32_t n_rows;
} sp_batch;
